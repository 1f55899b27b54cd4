"""`make book`: it does what is needed, and nothing where nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from build import build, state

#: One of each kind of thing that a page is made from.
INPUTS = (
    "book/index.md",
    "book/equations.yml",
    "book/_static/custom.css",
    "book/_ext/previews.py",
    "book/reference/paper/N020_seed0.json",
    "book/pages/s1.ipynb",
    "book/runs/N020_seed0.ipynb",
    "book/runs/N020_seed0.json",
    "itlib/sampling.py",
    "notebooks/s1.py",
    "_config.yml",
    "_toc.yml",
    "requirements.txt",
)
REPRODUCE, SPHINX = "itlib.reproduce", "jupyter-book"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout in miniature."""
    for name in INPUTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


class Steps:
    """Stands in for the two steps, and remembers which were taken."""

    def __init__(self, *, fails: str = "", runs: str = "", edits: str = "") -> None:
        self.taken: list[str] = []
        self.fails, self.runs, self.edits = fails, runs, edits

    def __call__(self, command: Sequence[str], root: Path) -> int:
        step = SPHINX if command[0] == SPHINX else REPRODUCE
        self.taken.append(step)
        if step == REPRODUCE and self.runs:
            (root / self.runs).write_text("made anew")
        if step == SPHINX:
            (root / "_build" / "html").mkdir(parents=True, exist_ok=True)
            (root / "_build" / "html" / "index.html").write_text("page")
            if self.edits:
                (root / self.edits).write_text("by somebody else")
        return 7 if step == self.fails else 0


def taken(root: Path, *arguments: str, **how: str) -> list[str]:
    """The steps of a build."""
    steps = Steps(**how)
    assert build(root, arguments, steps) == (7 if how.get("fails") else 0)
    return steps.taken


def test_nothing_happens_when_nothing_changed(root: Path) -> None:
    assert taken(root) == [REPRODUCE, SPHINX]
    assert taken(root) == []


@pytest.mark.parametrize("name", INPUTS)
def test_whatever_changes_is_seen(root: Path, name: str) -> None:
    taken(root)
    (root / name).write_text("changed")
    assert taken(root) == [REPRODUCE, SPHINX]
    assert taken(root) == []
    (root / name).unlink()
    assert taken(root) == [REPRODUCE, SPHINX]


def test_a_new_file_is_seen_and_what_python_leaves_is_not(root: Path) -> None:
    before = state(root)
    for name in ("book/_ext/__pycache__/previews.pyc", "book/runs/.lock", "itlib/.sampling.py.swp"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("noise")
    assert state(root) == before
    (root / "book/_static/new.js").write_text("")
    assert state(root) != before


def test_a_damaged_site_is_built_again(root: Path) -> None:
    taken(root)
    (root / "_build/html/index.html").write_text("cut o")
    assert taken(root) == [REPRODUCE, SPHINX]
    (root / "_build/html/index.html").unlink()
    assert taken(root) == [REPRODUCE, SPHINX]


def test_other_options_are_asked_for_and_pages_that_stay_are_left(root: Path) -> None:
    taken(root, "--profile", "smoke")
    assert taken(root, "--profile", "smoke", "--jobs", "1") == [REPRODUCE]
    assert taken(root, "--profile", "full", runs="book/runs/N020_seed0.ipynb") == [REPRODUCE, SPHINX]
    assert taken(root, "--profile", "full") == []


@pytest.mark.parametrize("step", [REPRODUCE, SPHINX])
def test_a_failure_is_not_forgotten(root: Path, step: str) -> None:
    taken(root)
    (root / "_config.yml").write_text("wrong")
    assert taken(root, fails=step)[-1] == step
    assert taken(root) == [REPRODUCE, SPHINX]


def test_what_changes_during_a_build_is_built_next_time(root: Path) -> None:
    assert taken(root, edits="book/index.md") == [REPRODUCE, SPHINX]
    assert taken(root) == [REPRODUCE, SPHINX]
    assert taken(root) == []
