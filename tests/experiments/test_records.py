"""Records: valid when written, checked when read, whole or not there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from itlib.experiments import paper
from itlib.experiments.experiment import Record
from itlib.experiments.files import DamagedFileError, write_atomically
from itlib.experiments.provenance import content
from itlib.experiments.records import compact, load_record, load_records, save_record


def a_run(**changes: Any) -> Record[paper.Parameters]:
    return replace(
        Record(
            paper.Parameters(N=2, lr=1 / 3, profile="smoke"),
            {"eps_rmse": 1.23456789, "mode_weights": [0.5, 0.5], "component_variances": [[1.0, math.nan]]},
            trace=[0.1, 0.2],
            seconds={"sampling": 1.0, "training": 2.0},
        ),
        **changes,
    )


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    written = save_record(path, a_run())
    assert load_record(path) == written
    assert load_records(path.parent, paper.Parameters) == [written]
    assert written.parameters.lr == 1 / 3  # what was asked for keeps its digits, or it could not be found again
    assert written["eps_rmse"] == 1.23457
    assert written["component_variances"] == [[1.0, None]]
    assert "NaN" not in path.read_text()
    assert written.provenance["content"] == content("itlib.experiments.paper")
    assert set(written.provenance["versions"]) == {"python", "itlib", "torch", "numpy", "torchdiffeq", "POT"}
    assert written.provenance["processor"]
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


def test_a_record_that_is_kept_keeps_its_origin(tmp_path: Path) -> None:
    first = save_record(tmp_path / "one.json", a_run())
    old = replace(first, provenance=dict(first.provenance) | {"commit": "before"})
    assert save_record(tmp_path / "two.json", old).provenance["commit"] == "before"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_null(value: float) -> None:
    assert json.dumps(compact({"a": [value, (1.0, value)]}), allow_nan=False) == '{"a": [null, [1.0, null]]}'


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"trace": ["high"]}, "trace"),
        ({"seconds": {"sampling": -1.0, "training": 0.0}}, "seconds/sampling"),
        ({"metrics": {"eps_rmse": "low"}}, "metrics/eps_rmse"),
        ({"curve": {"k": [1], "x": [1, 2]}}, "curve"),
    ],
)
def test_an_invalid_record_is_not_written(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    with pytest.raises(DamagedFileError, match=f"not a valid record: at {place}, "):
        save_record(tmp_path / "run.json", a_run(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_record_is_one_sentence(tmp_path: Path, share: float) -> None:
    path = tmp_path / "run.json"
    save_record(path, a_run())
    text = path.read_bytes().strip()
    path.write_bytes(text[: int(share * len(text))])
    with pytest.raises(DamagedFileError) as caught:
        load_records(tmp_path, paper.Parameters)
    assert str(caught.value) == f"{path} is truncated or not JSON: delete it and run again to make it anew"


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DamagedFileError, match="truncated or not JSON"):
        load_record(tmp_path / "run.json")


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
