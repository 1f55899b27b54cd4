"""The command line: ``python -m itlib.reproduce``.

    python -m itlib.reproduce --N 20 50 --seeds 0 1

Killed and started again it goes on at the last finished tilt. ``--verify`` runs the cell of a record again, from nothing,
and says whether the same comes out (:mod:`itlib.reproduce.verify`).
"""

from __future__ import annotations

import argparse
import ast
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from itlib.experiments import EXPERIMENTS
from itlib.experiments.files import DamagedFileError, sweep
from itlib.experiments.records import load_record
from itlib.reproduce.cell import BatchError, Cell
from itlib.reproduce.cluster import executor
from itlib.reproduce.execute import alone, run_batch
from itlib.reproduce.pages import check_pairs, tidy
from itlib.reproduce.plan import DEFAULT_N, asked_for, cells_of, chapters
from itlib.reproduce.verify import verify

CONFIGS = ("paper", "recommended")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a whole number of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"a seed is a whole number of at least 0 and less than 2**63, got {text!r}")
    return int(text)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write NAME=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m itlib.reproduce",
        description="Run the paper's experiment for each number of tilts N and seed, or another grid, and keep what each "
        "run leaves: a JSON record, and for the paper's grid an executed notebook, which is a page of the book.",
        epilog="""examples:
  python -m itlib.reproduce                          the paper's grid: N = 20 50 100 200, seed 0
  python -m itlib.reproduce --profile smoke          the same code in a minute; its figures mean nothing
  python -m itlib.reproduce --N 10 30 --seeds 0 1    other numbers of tilts, two seeds
  python -m itlib.reproduce --config recommended --N 20 --out recommended    what we recommend, beside the paper's
  python -m itlib.reproduce --set lr=1e-3            another learning rate, or any parameter of the experiment
  python -m itlib.reproduce --grid choices --N 20    what the paper leaves open, varied one at a time: records only
  python -m itlib.reproduce --grid rivals --only 'paper_*'    every method of the comparison on the paper's task
  python -m itlib.reproduce --grid ablation --list    the cells of a grid, and which of them would run
  python -m itlib.reproduce --executor tcp://127.0.0.1:8786    on the workers of a running Dask scheduler
  python -m itlib.reproduce --verify book/reference/small/N003_seed0.json    run a record again: is it the same?

--verify trains everything anew, which takes as long as the run did, and compares with the record: every digit on the same
processor with the same versions; elsewhere by the band of the reference records with the same parameters and other seeds.
It says which, and writes nothing outside _build/verify. Exit status: 0 it agrees, 1 it does not, 2 that could not be told.

Killed? Run the same command again: it goes on at the last finished tilt. What is up to date is not run again, and what a
change reaches is: a run by the code that it imports, a page by its notebook and its records, too; words reach nothing.
A folder of pages shows one profile; those of the other are kept in _build/aside and come back when it is asked for again.
Results: book/runs/N050_seed0.ipynb and .json. Checkpoints: _build/cache, or the folder in $ITLIB_CACHE.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grid",
        choices=tuple(EXPERIMENTS),
        default="paper",
        help="which runs: the paper's, or those behind a chapter (see itlib/experiments/__init__.py)",
    )
    parser.add_argument("--N", nargs="+", type=_number, metavar="N", help="numbers of tilts (20 50 100 200; smoke: 10 20)")
    parser.add_argument(
        "--seeds", nargs="+", type=_seed, default=[0], metavar="SEED", help="seeds, each with its own base (0)"
    )
    parser.add_argument("--config", choices=CONFIGS, default="paper", help="the method's configuration (paper)")
    parser.add_argument("--profile", choices=tuple(DEFAULT_N), default="full", help="amount of work (full)")
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="cells by name, with or without the seed at its end"
    )
    parser.add_argument("--set", nargs="+", type=_assignment, default=[], metavar="NAME=VALUE", help="other parameters")
    parser.add_argument("--jobs", type=_number, default=os.cpu_count() or 1, metavar="K", help="cells at a time (all cores)")
    parser.add_argument("--executor", default="local", metavar="local|ADDRESS", help="where: here, or a Dask scheduler")
    parser.add_argument("--out", type=Path, help="folder for records and pages (book/runs)")
    parser.add_argument(
        "--verify", nargs="+", type=Path, metavar="RECORD", help="run records again and compare; nothing else"
    )
    parser.add_argument("--list", action="store_true", help="run nothing; say which cells are up to date")
    parser.add_argument("--records-only", action="store_true", help="keep records and no pages, as the reference grid does")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _verify(options) if options.verify else _batch(options)
    except KeyboardInterrupt:
        _stop()
    except (BatchError, DamagedFileError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: the batch needs {error.name}: pip install 'itlib[book]', in a checkout", file=sys.stderr)
        return 2


def _stop() -> NoReturn:
    print("\nstopped; run the same command again to go on from here", file=sys.stderr, flush=True)
    os._exit(130)  # at once: an executor would wait for its cells, which end with this process


def _again(options: argparse.Namespace, failed: Sequence[Cell]) -> str:
    """The command that runs the failed cells again; those of its grid that are up to date cost nothing."""
    values, defaults = dict(vars(options)), vars(_parser().parse_args([]))
    runs = [cell.asked() for cell in failed if cell.experiment]
    values["seeds"] = sorted({p.seed for p in runs}) or values["seeds"]
    experiment = EXPERIMENTS[options.grid]
    mine = [cell for cell in failed if cell.experiment == experiment.parameters.experiment]
    if experiment.over_N:
        values["N"] = sorted({cell.asked().N for cell in mine}) or values["N"]  # type: ignore[attr-defined]  # such have N
    else:
        values["only"] = sorted({cell.name.removesuffix(f"_seed{cell.asked().seed}") for cell in mine}) or values["only"]
    values["set"] = [f"{name}={value}" for name, value in options.set]
    return _command(values, defaults)


def _command(values: dict[str, Any], defaults: dict[str, Any]) -> str:
    command = ["python", "-m", "itlib.reproduce"]
    for name, value in values.items():
        if value != defaults[name]:
            command.append("--" + name.replace("_", "-"))
            command += [str(v) for v in value] if isinstance(value, list) else [] if value is True else [str(value)]
    return shlex.join(command)


def _batch(options: argparse.Namespace) -> int:
    root, experiment = options.root.resolve(), EXPERIMENTS[options.grid]
    runs = root / "book" / "runs"
    out = (options.out or (runs if options.grid == "paper" else runs / options.grid)).resolve()
    pages = not options.records_only and options.grid == "paper"  # the other grids are read by chapters
    overrides = dict(options.set) | ({"method": options.config} if options.config != "paper" else {})
    asked = asked_for(
        experiment,
        N=sorted(set(options.N)) if options.N else None,
        seeds=sorted(set(options.seeds)),
        profile=options.profile,
        only=options.only,
        overrides=overrides,
    )
    cells = cells_of(root, experiment, asked, out, pages=pages)
    book = pages and out == runs  # chapters show the book's runs, whatever they are
    cells += chapters(root, options.profile, [cell.name for cell in cells]) if book else []
    if options.list:
        for cell in sorted(cells, key=lambda cell: cell.name):
            print("up to date" if cell.is_fresh() else "would run ", "run " if cell.record else "page", cell.name)
        return 0
    from itlib.experiments.checkpoints import default_cache

    start, scratch = time.perf_counter(), root / "_build" / "progress"
    with alone(out), executor(options.executor, options.jobs, root) as workers:
        if pages:
            check_pairs(cells)
            tidy(root, out, root / "book" / "pages" if book else None, cells, options.profile)
        for cell in cells:  # a damaged record is better reported before the work than after it
            if cell.record and Path(cell.record).exists():
                load_record(Path(cell.record))
        for folder in {Path(cell.page).parent for cell in cells if cell.page} | {default_cache()}:
            sweep(folder)
        try:
            failures = run_batch(cells, workers, scratch=scratch, jobs=options.jobs)
        except KeyboardInterrupt:  # here, because leaving the executor would wait
            _stop()
    if failures:
        print(f"\n{len(failures)} of {len(cells)} cells failed:", file=sys.stderr)
        for name, error in failures.items():
            print(f"  {name}: {error}", file=sys.stderr)
        print("The others are finished. To run the failed ones again:", file=sys.stderr)
        print(f"  {_again(options, [cell for cell in cells if cell.name in failures])}", file=sys.stderr)
        return 1
    print(f"{len(cells)} cells up to date in {time.perf_counter() - start:.0f} s: {os.path.relpath(out)}")
    return 0


#: What --verify leaves to the record, or to the machine.
_IGNORED = ("grid", "N", "seeds", "config", "profile", "only", "set", "out", "list", "records_only")


def _verify(options: argparse.Namespace) -> int:
    if options.executor != "local":
        raise BatchError("--verify asks what this machine makes: leave out --executor, and run it on the other machine")
    defaults = vars(_parser().parse_args([]))
    if given := [name for name in _IGNORED if getattr(options, name) != defaults[name]]:
        raise BatchError(f"--verify takes all from the record: leave out --{given[0].replace('_', '-')}")
    root = options.root.resolve()
    work = root / "_build" / "verify"
    os.environ["ITLIB_CACHE"] = str(work / "cache")  # of the cells: nothing is found there but what a killed call has left
    with alone(work), executor("local", options.jobs, root) as workers:
        try:
            return verify(options.verify, root, work, workers, options.jobs)
        except KeyboardInterrupt:
            _stop()
