"""The folders of pages: one profile at a time, nothing foreign among them, and notebooks that agree with their pairs.

Nothing that a reader computed or wrote is deleted here: it is moved to ``_build/aside``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import Parameters
from itlib.experiments.files import DamagedFileError
from itlib.experiments.records import load_record
from itlib.reproduce.cell import BatchError, Cell

KINDS = (".json", ".ipynb", ".safetensors")


def tidy(root: Path, out: Path, pages: Path | None, cells: Iterable[Cell], profile: str) -> None:
    """Move away what is not of this profile, and what no batch has made; bring back what was moved for another profile.

    Args:
        root: the checkout.
        out: folder of records and their pages.
        pages: folder of the chapters; None if they are not of this batch.
        cells: those of this batch: a record that is called as theirs is theirs, even if it is damaged.
        profile: the one to be shown.
    """
    aside, mine = root / "_build" / "aside", {cell.name for cell in cells}
    found = {path.stem: _parameters(path) for path in sorted(out.glob("*.json"))}
    # A notebook that has lost its record, or never had one, is no page.
    found |= {path.stem: None for path in sorted(out.glob("*.ipynb")) if path.stem not in found}
    others = {stem: p.profile for stem, p in found.items() if p and p.profile != profile}
    foreign = [s for s, p in found.items() if not (p and _named(s, p)) and not (s in mine and (out / f"{s}.json").exists())]
    for other in sorted(set(others.values())):
        if pages:
            _move(pages.glob("*.ipynb"), _place(aside, other, root, pages))
        _move(
            (out / f"{s}{kind}" for s, its in others.items() if its == other for kind in KINDS),
            _place(aside, other, root, out),
        )
        print(f"what was made with the profile {other} is kept in {os.path.relpath(aside / other)}, and comes back with it")
    for stem in foreign:
        place = _place(aside, "foreign", root, out)
        _move((out / f"{stem}{kind}" for kind in KINDS), place)
        print(f"{stem} is no run of a batch, or has lost its record: it is kept in {os.path.relpath(place)}")
    for folder in filter(None, (out, pages)):
        kept = _place(aside, profile, root, folder)
        _move((path for path in sorted(kept.glob("*")) if not (folder / path.name).exists()), folder)


def _parameters(path: Path) -> Parameters | None:
    try:
        found: Parameters = load_record(path).parameters
    except DamagedFileError:
        return None
    return found


def _named(stem: str, parameters: Parameters) -> bool:
    """Whether a run with these parameters is called so by some grid."""
    same = [e for e in EXPERIMENTS.values() if e.parameters is type(parameters)]
    grids = [
        e.over_N([parameters.seed], [getattr(parameters, "N", 1)]) if e.over_N else e.cells([parameters.seed]) for e in same
    ]
    return any(stem in grid for grid in grids)


def _place(aside: Path, name: str, root: Path, folder: Path) -> Path:
    return aside / name / os.path.relpath(folder, root).replace(os.sep, "+")


def _move(files: Iterable[Path], folder: Path) -> None:
    for path in list(files):
        if path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / path.name)


def check_pairs(cells: Iterable[Cell]) -> None:
    """Refuse to build a notebook whose pair was edited after it and says something else.

    Raises:
        BatchError: naming the first one.
    """
    import jupytext

    for source in {Path(cell.notebook) for cell in cells if cell.notebook}:
        pair = source.with_suffix(".ipynb")
        if not pair.exists() or pair.stat().st_mtime_ns <= source.stat().st_mtime_ns:
            continue
        one, two = ([(c.cell_type, c.source) for c in jupytext.read(path).cells] for path in (source, pair))
        if one != two:
            raise BatchError(
                f"{pair.name} was edited and {source.name}, from which pages are made, was not: to take the edit over, run "
                f"'jupytext --sync notebooks/{pair.name}'; to drop it, 'jupytext --to ipynb notebooks/{source.name}'"
            )
