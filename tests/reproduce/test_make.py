"""The Makefile's own decisions, asked with ``make -n``, which does nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import small_batch
from build import chosen


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with an environment that was made in it."""
    root = tmp_path / "checkout"
    root.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(small_batch.ROOT / name, root)
    (root / ".venv").mkdir()
    (root / ".venv" / "pyvenv.cfg").write_text(f"home = /usr/bin\ncommand = /usr/bin/python3 -m venv {root}/.venv\n")
    (root / ".venv" / ".ready").touch()
    os.utime(root / ".venv" / ".ready", (4e9, 4e9))
    return root


def plan(root: Path, *arguments: str) -> str:
    """What make would do."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "-n", "-C", str(root), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_an_environment_that_was_moved_or_copied_is_made_anew(checkout: Path, tmp_path: Path) -> None:
    assert "venv" not in plan(checkout, ".venv/.ready").replace("is up to date", "").replace(".venv/.ready", "")
    for place in (shutil.copytree(checkout, tmp_path / "copy"), shutil.move(checkout, tmp_path / "moved")):
        shown = plan(Path(place), ".venv/.ready")
        assert "was made in another folder and moved or copied here: making it anew" in shown
        assert "rm -rf .venv" in shown
        assert "-r requirements.txt" in shown


def test_a_pdf_is_of_what_was_built_last(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("pdf", "site.zip"):
        assert "book/build.py --last --profile full" in plan(checkout, target)
        assert "book/build.py  --profile smoke" in plan(checkout, target, "PROFILE=smoke")
    default = ["--last", "--profile", "full", "--executor", "local"]
    assert chosen(checkout, default) == default[1:]
    (checkout / "_build").mkdir()
    last = ["--profile", "smoke", "--executor", "local", "--N", "3"]
    (checkout / "_build" / "book.json").write_text(json.dumps({"arguments": last}))
    assert chosen(checkout, default) == last
    assert capsys.readouterr().out == "What was built last: --profile smoke --executor local --N 3\n"
    assert chosen(checkout, default[1:]) == default[1:]


def test_root_may_open_jupyterlab(checkout: Path) -> None:
    assert ("--allow-root" in plan(checkout, "lab")) == (os.getuid() == 0)
