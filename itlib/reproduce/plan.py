"""Which cells a batch has: those of an experiment's grid with what they start from, and the chapters of the book."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import Experiment, Parameters
from itlib.reproduce.cell import BatchError, Cell, header

DEFAULT_N = {"full": (20, 50, 100, 200), "smoke": (10, 20)}


def order(cells: Sequence[Cell]) -> TopologicalSorter[str]:
    """The order in which cells can run, each after the ones that it waits for.

    Raises:
        BatchError: if there is none.
    """
    sorter = TopologicalSorter({cell.name: cell.after for cell in cells})
    try:
        sorter.prepare()
    except CycleError as error:
        raise BatchError(f"these cells wait for each other: {' < '.join(error.args[1])}") from None
    return sorter


def templates(root: Path) -> dict[str, Path]:
    """The notebook of each experiment that has one."""
    found = {header(path).get("experiment"): path for path in sorted((root / "notebooks").glob("*.py"))}
    return {name: path for name, path in found.items() if name}


def asked_for(
    experiment: Experiment[Any],
    *,
    N: Sequence[int] | None,
    seeds: Sequence[int],
    profile: str,
    only: Sequence[str] = ("*",),
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Parameters]:
    """The parameters of a grid's cells, by stem.

    Args:
        experiment: whose grid.
        N: numbers of tilts; None for the grid's own.
        seeds: seeds.
        profile: "full" or "smoke".
        only: patterns of stems, with or without the seed at their end.
        overrides: further parameters, the same for all cells.

    Raises:
        BatchError: for numbers of tilts that cannot be asked for, patterns that match nothing, and parameters that do not
            exist or that the grid sets itself.
        ValueError: for a value that a parameter cannot have.
    """
    if N and not experiment.over_N:
        raise BatchError(
            f"the grid {experiment.name} sets its own numbers of tilts: leave out --N, or choose cells with --only"
        )
    if experiment.over_N:
        grid: dict[str, Parameters] = experiment.over_N(seeds, N or DEFAULT_N[profile])
    else:
        grid = experiment.cells(seeds)
    settled = {"seed", "profile", *(["N"] if experiment.over_N else [])}.union(*(p.changes() for p in grid.values()))
    known = sorted({f.name for f in fields(experiment.parameters)} - settled)
    if unknown := sorted(set(overrides or {}).difference(known)):
        raise BatchError(f"--set has no parameter {', '.join(unknown)} that is free here: it has {', '.join(known)}")
    chosen = {stem: p for stem, p in grid.items() if any(fnmatch(s, o) for s in short_and_long(stem, p) for o in only)}
    if not chosen:
        names = dict.fromkeys(short_and_long(stem, p)[-1] for stem, p in grid.items())
        raise BatchError(f"--only matches no cell of the grid {experiment.name}: its names are {', '.join(names)}")
    return {stem: p.but(profile=profile, **(overrides or {})) for stem, p in chosen.items()}


def short_and_long(stem: str, parameters: Parameters) -> tuple[str, str]:
    """A cell's name with and without its seed."""
    return stem, stem.removesuffix(f"_seed{parameters.seed}")


def cells_of(
    root: Path, experiment: Experiment[Any], asked: Mapping[str, Parameters], out: Path, *, pages: bool
) -> list[Cell]:
    """A cell for each run that is asked for, and for each that one starts from.

    Args:
        root: the checkout, which holds notebooks/.
        experiment: whose grid.
        asked: parameters by stem.
        out: folder of records and pages.
        pages: whether those that have a notebook leave a page beside their record.

    Raises:
        BatchError: if two runs would leave the same file.
    """
    notebooks = templates(root) if pages else {}
    found: dict[str, tuple[Experiment[Any], Parameters, tuple[str, ...]]] = {}
    waiting: list[tuple[str, Experiment[Any], Parameters]] = [(stem, experiment, p) for stem, p in asked.items()]
    while waiting:
        stem, its, parameters = waiting.pop()
        if stem in found:
            if found[stem][1] != parameters:
                raise BatchError(f"two different runs would be called {stem}: run them one after the other, with --out")
            continue
        first = its.after(parameters)
        found[stem] = its, parameters, tuple(first)
        waiting += [(name, EXPERIMENTS[p.experiment], p) for name, p in first.items()]
    cells = []
    for stem, (its, parameters, after) in found.items():
        notebook = notebooks.get(parameters.experiment)
        cells.append(
            Cell(
                stem,
                parameters.experiment,
                parameters.changes(),
                record=str(out / f"{stem}.json"),
                notebook=str(notebook or ""),
                page=str(out / f"{stem}.ipynb") if notebook else "",
                title=its.title(parameters),
                after=after,
                work=its.work(parameters),
            )
        )
    return cells


def chapters(root: Path, profile: str, after: Iterable[str] = ()) -> list[Cell]:
    """A cell for each notebook that belongs to no experiment.

    Those that read what the grid leaves (its runs, or checkpoints) wait for the cells named in ``after``.
    """
    cells = []
    for path in sorted((root / "notebooks").glob("*.py")):
        own = header(path)
        if "experiment" in own:
            continue
        reads = own.get("reads", [])
        cells.append(
            Cell(
                path.stem,
                parameters={"profile": profile},
                notebook=str(path),
                page=str(root / "book" / "pages" / f"{path.stem}.ipynb"),
                after=tuple(after) if {"book/runs", "_build/cache"} & set(reads) else (),
                reads=tuple(str(root / folder) for folder in reads),
            )
        )
    return cells
