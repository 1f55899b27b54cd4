"""Records: valid when written, checked when read, whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from itlib.experiments.files import DamagedFileError, write_atomically
from itlib.experiments.provenance import content
from itlib.experiments.records import compact, read_record, read_records, write_record

NAMES = ["nll_target", "nll_base", "mean_mse_target", "mean_mse_base", "score_rmse", "eps_rmse", "flow_nll", "sliced_w2"]


def a_run(**changes: Any) -> dict[str, Any]:
    metrics = dict.fromkeys(NAMES, 1.0) | {"mode_weights": [0.5, 0.5], "component_variances": [[1.0, math.nan]]}
    run = {
        "task": "tilting",
        "parameters": {"seed": 0, "profile": "smoke", "config": "paper", "N": 2, "lr": 1.23456789e-4},
        "metrics": metrics,
        "trace": [0.1, 0.2],
        "seconds": {"sampling": 1.0, "training": 2.0},
    }
    return run | changes


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    written = write_record(path, **a_run())
    assert read_record(path) == written
    assert read_records(path.parent) == [written]
    assert written["parameters"]["lr"] == 1.23457e-4
    assert written["metrics"]["component_variances"] == [[1.0, None]]
    assert "NaN" not in path.read_text()
    assert written["provenance"]["content"] == content("itlib.experiments.checkpoints")
    assert set(written["provenance"]["versions"]) == {"python", "itlib", "torch", "numpy", "torchdiffeq", "POT"}
    assert written["provenance"]["processor"]
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    assert json.dumps(compact({"a": [value, (1.0, value)]}), allow_nan=False) == '{"a": [null, [1.0, null]]}'


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"task": "dancing"}, "task"),
        ({"trace": ["high"]}, "trace/0"),
        ({"trace": [math.nan]}, "trace/0"),
        ({"seconds": {"sampling": -1.0, "training": 0.0}}, "seconds/sampling"),
        ({"metrics": {}}, "metrics"),
        ({"parameters": {"seed": -1, "profile": "smoke", "config": "paper"}}, "parameters/seed"),
        ({"parameters": {"seed": 0, "profile": "huge", "config": "paper"}}, "parameters/profile"),
        ({"parameters": {"seed": 0, "profile": "full", "config": "paper", "N": 0}}, "parameters/N"),
    ],
)
def test_an_invalid_record_is_not_written(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(DamagedFileError, match=f"not a valid run record: at {place}, "):
        write_record(tmp_path / "run.json", **a_run(**changes))
    assert not list(tmp_path.iterdir())


def test_an_invalid_record_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record = write_record(path, **a_run())
    for change, place in (({"schema": 2}, "schema"), ({"surprise": 1}, "the top level")):
        path.write_text(json.dumps(record | change))
        with pytest.raises(DamagedFileError, match=f"at {place}, .*delete it and run again"):
            read_record(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_record_is_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "run.json"
    write_record(path, **a_run())
    text = path.read_bytes().strip()
    path.write_bytes(text[: int(share * len(text))])
    with pytest.raises(DamagedFileError) as caught:
        read_records(tmp_path)
    assert str(caught.value) == f"{path} is truncated or not JSON: delete it and run again to make it anew"


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError, match="truncated or not JSON"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("step", ["write", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(*_: Any) -> None:
        if step == "write":
            temporary = _[0]
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY))  # a full disk leaves a stump
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((Path, "write_bytes") if step == "write" else (os, "replace")), fail)
    with pytest.raises(OSError, match="free some disk" if code != errno.EIO else "Input/output") as caught:
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert caught.value.errno == code
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("no tmpfs here")
    try:
        path = tmp_path / "file"
        write_atomically(path, b"old")
        with pytest.raises(OSError, match=r"no space left to write .*file: free some disk"):
            write_atomically(path, bytes(10**6))
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)
