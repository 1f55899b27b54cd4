"""Files of the repository are found from anywhere, and what is missing is one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from itlib.experiments import paper
from itlib.experiments.files import MissingFileError, located
from itlib.experiments.provenance import PACKAGE
from itlib.experiments.records import load_records

ROOT = PACKAGE.parent


@pytest.mark.parametrize("place", ["notebooks", ".", "elsewhere"])
def test_records_are_found_from_anywhere(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path if place == "elsewhere" else ROOT / place)
    found = load_records(Path("../book/reference/paper"), paper.Parameters)
    assert {r.parameters.N for r in found} == {20, 50, 100, 200}
    assert located("../book/equations.yml").samefile(ROOT / "book" / "equations.yml")


def test_what_lies_beside_the_notebook_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "reference" / "paper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert load_records(Path("../book/reference/paper"), paper.Parameters) == []


def test_alone_with_an_installed_library_it_is_one_sentence(tmp_path: Path) -> None:
    """The notebook's own code in an empty folder, with the library in another place without a checkout."""
    shutil.copytree(PACKAGE, tmp_path / "site" / "itlib", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "empty").mkdir()
    code = 'from itlib.experiments.files import located\nlocated("../book/reference/paper")'
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("itlib.experiments.files.MissingFileError: ../book/reference/paper is not here: ")
    for remedy in ("git clone", "make book", "parameter"):
        assert remedy in last
    with pytest.raises(MissingFileError):
        located("../nothing")
