"""Each command of the batch that a page or the README shows is one that works, as far as can be told without running it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from itlib.reproduce.command import main

ROOT = Path(__file__).parents[2]


def commands() -> list[str]:
    """All lines that call the batch, continued lines joined, and rows of the table of grids."""
    found = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]:
        text = path.read_text("utf-8").replace("\\\n", " ")
        found += re.findall(r"python -m itlib\.reproduce[^`\n#]*", text)
        for grids, options in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| .* \| `(--.+)` \|$", text, re.MULTILINE):
            last = re.findall(r"`(\w+)`", grids)[-1]
            found.append(f"python -m itlib.reproduce --grid {last} {options}")
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_it_finds_its_cells(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = shlex.split(command)[3:]
    if "--verify" in arguments:
        example = ROOT / arguments[arguments.index("--verify") + 1]
        assert example.is_file() or not example.suffix
        return
    if "--executor" in arguments:
        del arguments[arguments.index("--executor") : arguments.index("--executor") + 2]
    if "--out" in arguments:
        arguments[arguments.index("--out") + 1] = str(tmp_path)
    assert main([*arguments, "--list"]) == 0, capsys.readouterr().err
    assert "would run" in capsys.readouterr().out


def test_all_of_them_are_seen() -> None:
    assert len(commands()) > 12


def test_what_is_listed_is_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is made, not even the folder."""
    out = tmp_path / "out"
    assert main(["--N", "3", "--seeds", "1", "--records-only", "--out", str(out), "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == ["would run  run  N003_seed1", "would run  run  base_seed1"]
    assert not out.exists()
