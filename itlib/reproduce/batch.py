"""Reproduce the paper's grid: one papermill run of the template notebook per number of tilts N and seed.

    python -m itlib.reproduce --N 20 50 --seeds 0 1

A *cell* is a notebook with parameters. The base denoiser of a seed is a cell too, and the tilts of that seed wait for it;
the longest cells go first, and chapters of the book take what they leave free. A cell runs in a process of its own, so one
that fails, or is killed, takes nothing with it. It leaves an executed notebook, which is a page of the book, and a JSON
record (:mod:`itlib.experiments.records`). A page is made again when the text of its notebook, the code that it imports, the records that it reads or its parameters
have changed (:mod:`itlib.experiments.provenance`), never because of a date; the tilts themselves live in checkpoints (:mod:`itlib.experiments.checkpoints`), so a page that only has to
be drawn again takes seconds, and a batch that was killed goes on at the last finished tilt.

The batch speaks to a :class:`concurrent.futures.Executor`: threads that watch local processes, or a Dask cluster. It holds
a lock on its folder, which ends with the process; a second batch there is told so.

``--verify`` runs the cell of a record again, from nothing, and says whether the same comes out (:mod:`itlib.reproduce.verify`).
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from itlib.experiments.files import DamagedFileError, sweep, write_atomically
from itlib.experiments.grids import BASE, GRIDS, NOTEBOOK_OF, OTHER_BASES, TEMPLATE
from itlib.experiments.provenance import PACKAGES, content, content_of, content_of_all
from itlib.experiments.records import MODULE_OF, compact, read_record, read_records
from itlib.reproduce.verify import judge

CONFIGS = ("paper", "recommended")
DEFAULT_N = {"full": (20, 50, 100, 200), "smoke": (10, 20)}
#: Work of training a base, and of a cell that makes no tilts, in tilts; only progress and the order of the cells use it.
BASE_WORK, OTHER_WORK = 60, 20


class BatchError(Exception):
    """Something the user can mend; the message is all that they need to see."""


@dataclass(frozen=True)
class Cell:
    """One notebook to execute.

    Args:
        name: unique, and the stem of what it leaves.
        notebook: path of the jupytext source.
        parameters: for its parameters cell.
        page: where the executed notebook goes; None if it is not a page.
        record: where its record goes; None if it leaves none.
        title: appended to its first heading.
        after: names of cells that have to end first, and to succeed unless this is a chapter.
        work: how long it takes, in tilts.
        reads: folders of records, and files, that the page shows: it is stale when they change.
        chapter: it takes what the others leave free, and is made even if what it waits for failed.
    """

    name: str
    notebook: str
    parameters: dict[str, Any]
    page: str | None = None
    record: str | None = None
    title: str = ""
    after: tuple[str, ...] = ()
    work: int = 5
    reads: tuple[str, ...] = field(default=())
    chapter: bool = False

    def key(self) -> str:
        """Hash of everything the page depends on."""
        text = re.sub(r"\A# ---\n(#.*\n)*?# ---\n", "", Path(self.notebook).read_text("utf-8"))  # editors rewrite the header
        digest = hashlib.sha256(text.encode())
        digest.update(json.dumps([content_of(text), self.parameters, self.title], sort_keys=True).encode())
        read = map(Path, self.reads)
        for path in sorted(p for place in read for p in ([place] if place.is_file() else place.rglob("*.json"))):
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()

    def recorded(self, defaults: dict[str, Any] | None = None) -> dict[str, Any]:
        """The parameters that its record must show: what is not given is the notebook's choice, and then the profile's."""
        from itlib.experiments.checkpoints import PROFILES

        asked = (defaults or parameters_of(self.notebook)) | self.parameters
        profiled = PROFILES[asked["profile"]]
        is_template = Path(self.notebook).stem == TEMPLATE
        chosen = asdict(profiled.configured(asked["config"], asked["N"])) if is_template else {}
        known = {k: chosen.get(k) if v is None else v for k, v in asked.items() if k != "record"}
        result: dict[str, Any] = compact({k: v for k, v in known.items() if v is not None})
        return result

    def is_fresh(self) -> bool:
        """Whether what the cell would leave is there already, made from the same source, library and parameters."""
        if self.record is not None:
            if not Path(self.record).exists():
                return False
            found = read_record(Path(self.record))
            made_as_asked = self.recorded().items() <= found["parameters"].items()
            if not made_as_asked or found["provenance"]["content"] != content(MODULE_OF[found["task"]]):
                return False
        if self.page is None:
            return self.record is not None
        try:
            metadata = json.loads(Path(self.page).read_text())["metadata"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(metadata.get("itlib", {}).get("key") == self.key())


def parameters_of(notebook: str) -> dict[str, Any]:
    """Names and defaults in the parameters cell of a notebook."""
    import jupytext

    cell = next(c for c in jupytext.read(notebook).cells if "parameters" in c.metadata.get("tags", ()))
    lines = [line for line in ast.parse(cell.source).body if isinstance(line, ast.Assign)]
    return {ast.unparse(line.targets[0]): ast.literal_eval(line.value) for line in lines}


def grid(
    root: Path,
    *,
    N: Sequence[int],
    seeds: Sequence[int],
    name: str = "paper",
    config: str = "paper",
    profile: str = "full",
    overrides: dict[str, Any] | None = None,
    out: Path | None = None,
    pages: bool = True,
    only: Sequence[str] = ("*",),
) -> list[Cell]:
    """The cells of a grid over variants and seeds: a base per seed, and a run of the template per variant and seed.

    Args:
        root: the checkout, which holds notebooks/.
        name: which of :data:`GRIDS`.
        N: numbers of tilts.
        seeds: seeds; each covers base training too.
        config: named configuration of the method.
        profile: "full" or "smoke".
        overrides: further parameters of the template, such as lr.
        out: folder of records and pages; book/runs by default.
        pages: whether executed notebooks are kept beside the records.
        only: patterns of names before the seed, such as "paper_*"; everything by default.

    Raises:
        BatchError: for a parameter that the template does not have, or that the grid sets itself.
    """
    out = out or root / "book" / "runs"
    template = GRIDS[name].template
    variants = {stem: p for stem, p in GRIDS[name].variants(N).items() if any(fnmatch(stem, o) for o in only)}
    if not variants:
        raise BatchError(f"--only matches no cell of the grid {name}: its names are {', '.join(GRIDS[name].variants(N))}")
    settled = {"N", "seed", "config", "profile", "record"}.union(*variants.values())  # what a cell's name says among them
    known = sorted(set(parameters_of(str(root / "notebooks" / f"{template}.py"))) - settled)
    if unknown := sorted(set(overrides or {}).difference(known)):
        raise BatchError(f"--set has no parameter {', '.join(unknown)} that is free here: it has {', '.join(known)}")
    common = {"profile": profile, "config": config}
    cells = []
    for seed in seeds:
        bases: dict[str, str] = {}  # name of the base cell to the task whose base it trains
        rows: list[tuple[str, str, dict[str, Any], str, int, tuple[str, ...]]] = []
        for stem, changes in variants.items():
            parameters = changes | (overrides or {})
            own = str(parameters.get("task", "paper"))
            base = f"base_{own}_seed{seed}" if own in OTHER_BASES else f"base_seed{seed}"
            needed = (base,) if GRIDS[name].needs_base else ()
            bases |= dict.fromkeys(needed, own if own in OTHER_BASES else "paper")
            title = f"N = {parameters['N']}, seed {seed}" if "N" in parameters else f"seed {seed}"
            rows.append((f"{stem}_seed{seed}", template, parameters, title, parameters.get("N", OTHER_WORK), needed))
        # As in every cell, a parameter that has its default is left to it.
        first = [(b, BASE, {"task": t} if t != "paper" else {}, f"seed {seed}", BASE_WORK, ()) for b, t in bases.items()]
        for stem, notebook, parameters, title, work, after in [*first, *rows]:
            record = out / f"{stem}.json"
            # The page shows its parameters: a path from the notebook's folder, which says nothing of this machine.
            shown = os.path.relpath(record, root / "notebooks")
            cells.append(
                Cell(
                    stem,
                    str(root / "notebooks" / f"{notebook}.py"),
                    {**common, "seed": seed, **parameters, "record": shown},
                    page=str(out / f"{stem}.ipynb") if pages else None,
                    record=str(record),
                    title=title,
                    after=after,
                    work=work,
                )
            )
    return cells


def chapters(root: Path, profile: str, after: Sequence[str] = ()) -> list[Cell]:
    """One cell per notebook that is not a template of the grid; its header says which folders of records it reads.

    Those that read what the grid leaves (its runs, or checkpoints) wait for the cells named in ``after``.
    """
    import jupytext

    cells = []
    for path in sorted((root / "notebooks").glob("*.py")):
        if path.stem in NOTEBOOK_OF.values():
            continue
        reads = jupytext.read(path).metadata.get("itlib", {}).get("reads", [])
        cells.append(
            Cell(
                path.stem,
                str(path),
                {"profile": profile},
                page=str(root / "book" / "pages" / f"{path.stem}.ipynb"),
                after=tuple(after) if {"book/runs", "_build/cache"} & set(reads) else (),
                reads=tuple(str(root / folder) for folder in reads),
                chapter=True,
            )
        )
    return cells


# ---- one cell, in a process of its own -----------------------------------------------------------------------------


def execute(cell: Cell) -> None:
    """Execute a cell with papermill in this process and leave its page.

    Raises:
        BatchError: naming what went wrong in the notebook.
    """
    import jupytext
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    notebook = jupytext.read(cell.notebook)
    if cell.title:
        first = next(c for c in notebook.cells if c.cell_type == "markdown")
        first.source = re.sub(r"^# .*$", rf"\g<0>: {cell.title}", first.source, count=1, flags=re.MULTILINE)
    # Kernels that start at the same time may be given the same port, and then one never answers: nothing ran, so try again.
    for attempt in (1, 2, 3):
        try:
            done = papermill.execute_notebook(
                notebook,
                None,
                parameters=cell.parameters,
                kernel_name="python3",
                cwd=str(Path(cell.notebook).parent),
                progress_bar=False,
            )
            break
        except papermill.PapermillExecutionError as error:
            advice = "; run fewer --jobs" if "memory" in f"{error.ename} {error.evalue}".lower() else ""
            raise BatchError(f"{error.ename}: {error.evalue}{advice}") from None
        except DeadKernelError:
            raise BatchError("its kernel died; if memory was short, run fewer --jobs") from None
        except RuntimeError as error:
            if "didn't respond" not in str(error) or attempt == 3:
                raise BatchError(f"its kernel did not start: {error}; run fewer --jobs") from None
    if cell.page is not None:
        # What differs from run to run without meaning anything (times, ids, progress bars) is left out of the page.
        done.metadata.pop("papermill", None)
        done.metadata["itlib"] = {"key": cell.key()}
        for i, c in enumerate(done.cells):
            c.id = f"cell-{i}"
            for noisy in ("papermill", "execution"):
                c.metadata.pop(noisy, None)
            if "injected-parameters" in c.metadata.get("tags", []):
                c.metadata.tags += [tag for tag in done.cells[i - 1].metadata.tags if tag != "parameters"]
            if c.cell_type == "code":
                c.outputs = [o for o in c.outputs if o.get("name") != "stderr"]
        write_atomically(Path(cell.page), nbformat.writes(done).encode())


def run_in_process(cell: dict[str, Any], progress: str | None = None) -> str:
    """Execute a cell in a fresh process, and return "" or one sentence about what went wrong.

    This is what the executor runs, here or on a worker of a cluster; running it twice does no harm.
    """
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time that every kernel takes to import torch
    if progress:
        environment["ITLIB_PROGRESS"] = progress
    # The cell ends when its standard input closes, so nothing outlives a batch, or a worker, that was killed.
    stdin, lifeline = os.pipe()
    try:
        command = [sys.executable, "-m", "itlib.reproduce", "--cell", json.dumps(cell)]
        child = subprocess.run(command, stdin=stdin, capture_output=True, text=True, env=environment)
    finally:
        os.close(stdin)
        os.close(lifeline)
    if child.returncode <= 0:
        return f"killed by signal {-child.returncode}" if child.returncode else ""
    return (child.stdout.strip() or child.stderr.strip() or "no message").splitlines()[-1]


def _child(text: str) -> int:
    """The process of one cell."""

    def end_with_parent() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    # None makes its import fail, as if it were not installed. Its grammar of addresses, by which no notebook is judged,
    # takes longer to load than all the rest of what papermill imports.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    values: dict[str, Any] = json.loads(text)
    try:
        execute(Cell(**values))
    except (BatchError, DamagedFileError, OSError) as error:
        print(" ".join(str(error).split()))
        return 1
    return 0


# ---- the batch -----------------------------------------------------------------------------------------------------


def run_batch(cells: Sequence[Cell], executor: Executor, *, scratch: Path, jobs: int = 1) -> dict[str, str]:
    """Run cells that are not fresh, each after the ones it waits for, and return {name: what went wrong}.

    Args:
        cells: what to run; a cell may only wait for cells of this list.
        executor: where to run them.
        scratch: folder for progress files, shared with the workers.
        jobs: a chapter starts only while fewer cells are running: all others are handed to the executor at once.
    """
    failures: dict[str, str] = {}
    waiting = {cell.name: cell for cell in cells}
    running: dict[Future[str], Cell] = {}
    finished: set[str] = set()
    scratch.mkdir(parents=True, exist_ok=True)
    look = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=sum(cell.work for cell in cells), disable=None, bar_format=look) as bar:  # None: no bar in a log file
        while waiting or running:
            ready = [c for c in waiting.values() if all(name in finished or name in failures for name in c.after)]
            for cell in sorted(ready, key=lambda c: (c.chapter, -c.work)):
                if cell.chapter and len(running) >= jobs:
                    break
                del waiting[cell.name]
                if not cell.chapter and (broken := [name for name in cell.after if name in failures]):
                    failures[cell.name] = f"not run, because {broken[0]} failed"
                elif _fresh(cell, failures):
                    finished.add(cell.name)
                elif cell.name not in failures:
                    progress = str(scratch / f"{cell.name}.progress")
                    Path(progress).unlink(missing_ok=True)
                    running[executor.submit(run_in_process, asdict(cell), progress)] = cell
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in done:
                cell = running.pop(future)
                try:
                    error = future.result()
                except CancelledError:
                    error = "the scheduler went away: start it and its workers again, then run the same command"
                except Exception as lost:  # of the executor: no cell raises
                    error = f"{type(lost).__name__}: {lost}"
                if error:
                    failures[cell.name] = error
                else:
                    finished.add(cell.name)
                    bar.write(f"{cell.name} is done", file=sys.stderr)
                (scratch / f"{cell.name}.progress").unlink(missing_ok=True)
            _draw(bar, cells, finished | set(failures), running.values(), scratch)
    return failures


def _fresh(cell: Cell, failures: dict[str, str]) -> bool:
    try:
        return cell.is_fresh()
    except DamagedFileError as error:
        failures[cell.name] = str(error)
        return False


def _draw(bar: Any, cells: Sequence[Cell], over: set[str], running: Iterable[Cell], scratch: Path) -> None:
    work, notes = float(sum(cell.work for cell in cells if cell.name in over)), []
    for cell in running:
        try:
            what, done, total = (scratch / f"{cell.name}.progress").read_text().split()
        except (OSError, ValueError):
            continue
        # A tilting cell whose base is not in the cache trains it first: that is not progress of its own tilts yet.
        if (what == "base") == (cell.name.startswith("base")):
            work += 0.95 * cell.work * int(done) / int(total)  # the rest is for its metrics and figures
        notes.append(f"{cell.name} {'epoch' if what == 'base' else 'tilt'} {done}/{total}")
    bar.n = min(work, bar.total or 0)
    bar.set_description_str(f"{sum(c.name in over for c in cells)}/{len(cells)} cells", refresh=False)
    bar.set_postfix_str(", ".join(notes), refresh=False)
    bar.refresh()


def facts(root: str) -> dict[str, str]:
    """What a worker and the batch have to share, so that it does not matter which worker runs a cell."""
    known = {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return known | {"the library": content_of_all(), "the checkout": root if Path(root).is_dir() else "missing"}


def _executor(where: str, jobs: int, root: Path) -> Executor:
    if where == "local":
        return ThreadPoolExecutor(jobs)
    try:
        from distributed import Client
    except ImportError:
        raise BatchError("a cluster needs the extra: pip install 'itlib[cluster]'") from None
    for name in ("distributed", "distributed.client", "distributed.core"):  # what matters to the user is said below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(where, timeout=5)
    except (OSError, ValueError) as error:
        raise BatchError(
            f"no Dask scheduler answers at {where} ({type(error).__name__}): start one with 'dask scheduler'"
        ) from None
    if not client.scheduler_info()["workers"]:
        print(f"waiting for a worker: start one with 'dask worker {where} --nthreads 1'", file=sys.stderr)
        client.wait_for_workers(1)
    here = facts(str(root))
    for worker, there in client.run(facts, str(root), on_error="return").items():
        if not isinstance(there, dict):
            raise BatchError(f"the worker {worker} cannot import the project ({there}): install the same checkout there")
        if wrong := [f"{name} is {there[name]} and not {here[name]}" for name in here if there[name] != here[name]]:
            raise BatchError(f"the worker {worker} is not like this batch ({'; '.join(wrong)}): install the same there")
    # Dask may run a task again after a worker was lost; a cell may be run twice, so that does no harm.
    executor: Executor = client.get_executor(pure=False, retries=2)
    return executor


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder against a second batch, and clear it of what killed ones had begun to write.

    Raises:
        BatchError: if it cannot be written, or another batch holds it. The lock ends with its process, however that ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise BatchError(f"cannot write in {folder} ({error.strerror}): choose another folder with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BatchError(
                f"another batch works in {folder}, {lock.read().strip()}: wait for it, end it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks: two batches would do work twice, and no harm
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        sweep(folder)
        yield


def _set_aside(out: Path, profile: str) -> None:
    """Remove pages and records of the other profile: they would mix with this one's. Their checkpoints stay."""
    for path in out.glob("*.json"):
        if read_record(path)["parameters"]["profile"] != profile:
            for suffix in (".json", ".ipynb", ".safetensors"):
                path.with_suffix(suffix).unlink(missing_ok=True)
            print(f"set aside {path.stem}: it was another profile's (its checkpoint is kept)")


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of tilts or jobs is a whole number of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a seed is a whole number of at least 0, got {text!r}")
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
        description="Run the paper's experiment, one notebook per number of tilts N and seed, and keep what each run "
        "leaves: an executed notebook, which is a page of the book, and a JSON record.",
        epilog="""examples:
  python -m itlib.reproduce                          the paper's grid: N = 20 50 100 200, seed 0
  python -m itlib.reproduce --profile smoke          the same code in a minute; its figures mean nothing
  python -m itlib.reproduce --N 10 30 --seeds 0 1    other numbers of tilts, two seeds
  python -m itlib.reproduce --config recommended --N 20 --out recommended    what we recommend, beside the paper's
  python -m itlib.reproduce --set lr=1e-3            another learning rate, or any parameter of the template
  python -m itlib.reproduce --grid choices --N 20    what the paper leaves open, varied one at a time: records only
  python -m itlib.reproduce --grid rivals --only 'paper_*'    every method of the comparison on the paper's task
  python -m itlib.reproduce --executor tcp://127.0.0.1:8786    on the workers of a running Dask scheduler
  python -m itlib.reproduce --verify book/reference/small/N003_seed0.json    run a record again: is it the same?

--verify trains everything anew, which takes as long as the run did, and compares with the record: every digit on the same
processor with the same versions; elsewhere by the band of the reference records with the same parameters and other seeds.
It says which. Exit status: 0 it agrees, 1 it does not, 2 that could not be told.

Killed? Run the same command again: it goes on at the last finished tilt. What is up to date is not run again.
Results: book/runs/N050_seed0.ipynb and .json. Checkpoints: _build/cache, or the folder in $ITLIB_CACHE.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--grid",
        choices=tuple(GRIDS),
        default="paper",
        help="which runs: the paper's, or those behind a chapter (see itlib/experiments/grids.py)",
    )
    parser.add_argument("--N", nargs="+", type=_number, metavar="N", help="numbers of tilts (20 50 100 200; smoke: 10 20)")
    parser.add_argument(
        "--seeds", nargs="+", type=_seed, default=[0], metavar="SEED", help="seeds, each with its own base (0)"
    )
    parser.add_argument("--config", choices=CONFIGS, default="paper", help="the method's configuration (paper)")
    parser.add_argument("--profile", choices=tuple(DEFAULT_N), default="full", help="amount of work (full)")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="cells by the name before their seed")
    parser.add_argument("--set", nargs="+", type=_assignment, default=[], metavar="NAME=VALUE", help="other parameters")
    parser.add_argument("--jobs", type=_number, default=os.cpu_count() or 1, metavar="K", help="cells at a time (all cores)")
    parser.add_argument("--executor", default="local", metavar="local|ADDRESS", help="where: here, or a Dask scheduler")
    parser.add_argument("--out", type=Path, help="folder for records and pages (book/runs)")
    parser.add_argument(
        "--verify", nargs="+", type=Path, metavar="RECORD", help="run records again and compare; nothing else"
    )
    parser.add_argument("--records-only", action="store_true", help="keep records and no pages, as the reference grid does")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[2], help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.cell:
        return _child(options.cell)
    try:
        return _verify(options) if options.verify else _batch(options)
    except KeyboardInterrupt:
        return _stop()
    except (BatchError, DamagedFileError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: the batch needs {error.name}: pip install 'itlib[book]', in a checkout", file=sys.stderr)
        return 2


def _stop() -> NoReturn:
    print("\nstopped; run the same command again to go on from here", file=sys.stderr, flush=True)
    os._exit(130)  # at once: an executor would wait for its cells, which end with this process


def _check(profile: str, overrides: dict[str, Any]) -> None:
    """Refuse what no cell can run, before the first one starts."""
    from itlib.experiments.checkpoints import PROFILES
    from itlib.gaussian_mixture import paper_mixture
    from itlib.rewards import parse_reward

    tilting = PROFILES[profile].tilting
    given = {f.name: overrides[f.name] for f in fields(tilting) if overrides.get(f.name) is not None}
    for name, value in given.items():
        kind = type(getattr(tilting, name))
        if not isinstance(value, (int, float) if kind is float else kind):
            raise BatchError(f"{name} takes a value such as {getattr(tilting, name)!r}, got {value!r}")
    paper_mixture().tilted(parse_reward(str(overrides.get("reward", "paper"))), replace(tilting, **given).lam)


def _again(options: argparse.Namespace, failed: Sequence[Cell]) -> str:
    """The command that runs the failed cells again; those of its grid that are up to date cost nothing."""
    values, defaults = dict(vars(options)), vars(_parser().parse_args([]))
    values["seeds"] = sorted({c.parameters["seed"] for c in failed if "seed" in c.parameters}) or values["seeds"]
    if GRIDS[options.grid].over_N:
        values["N"] = sorted({c.parameters["N"] for c in failed if "N" in c.parameters}) or values["N"]
    else:
        names = {c.name.rpartition("_seed")[0] for c in failed if Path(c.notebook).stem != BASE}
        values["only"] = sorted(names) or values["only"]
    values["set"] = [f"{name}={value}" for name, value in options.set]
    command = ["python", "-m", "itlib.reproduce"]
    for name, value in values.items():
        if value != defaults[name]:
            command.append("--" + name.replace("_", "-"))
            command += [str(v) for v in value] if isinstance(value, list) else [] if value is True else [str(value)]
    return shlex.join(command)


def _run(cells: Sequence[Cell], executor: Executor, scratch: Path, jobs: int) -> dict[str, str]:
    try:
        return run_batch(cells, executor, scratch=scratch, jobs=jobs)
    except KeyboardInterrupt:  # here, because leaving the executor would wait
        _stop()


def _batch(options: argparse.Namespace) -> int:
    root, overrides = options.root.resolve(), dict(options.set)
    runs = root / "book" / "runs"
    out = (options.out or (runs if options.grid == "paper" else runs / options.grid)).resolve()
    pages = not options.records_only and options.grid == "paper"  # the other grids are read by chapters
    if options.N and not GRIDS[options.grid].over_N:
        raise BatchError(
            f"the grid {options.grid} sets its own numbers of tilts: leave out --N, or choose cells with --only"
        )
    N, seeds = sorted(set(options.N or DEFAULT_N[options.profile])), sorted(set(options.seeds))
    cells = grid(
        root,
        N=N,
        seeds=seeds,
        name=options.grid,
        config=options.config,
        profile=options.profile,
        overrides=overrides,
        out=out,
        pages=pages,
        only=options.only,
    )
    from itlib.experiments.checkpoints import default_cache

    _check(options.profile, overrides)
    read_records(out)  # a damaged one is better reported before the work than after it
    # Chapters are made from whatever runs the book has.
    cells += chapters(root, options.profile, [cell.name for cell in cells]) if pages and out == runs else []
    start, scratch = time.perf_counter(), root / "_build" / "progress"
    with _alone(out), _executor(options.executor, options.jobs, root) as executor:
        if pages:
            _set_aside(out, options.profile)
        for folder in {Path(cell.page).parent for cell in cells if cell.page} | {default_cache()}:
            sweep(folder)
        failures = _run(cells, executor, scratch, options.jobs)
    if failures:
        print(f"\n{len(failures)} of {len(cells)} cells failed:", file=sys.stderr)
        for name, error in failures.items():
            print(f"  {name}: {error}", file=sys.stderr)
        print("The others are finished. To run the failed ones again:", file=sys.stderr)
        print(f"  {_again(options, [cell for cell in cells if cell.name in failures])}", file=sys.stderr)
        return 1
    print(f"{len(cells)} cells up to date in {time.perf_counter() - start:.0f} s: {os.path.relpath(out)}")
    return 0


# ---- verification --------------------------------------------------------------------------------------------------


def _cell_of(record: dict[str, Any], path: Path, root: Path, work: Path) -> Cell:
    """The cell that makes a record again; knobs that are younger than the record keep their defaults."""
    notebook = root / "notebooks" / f"{NOTEBOOK_OF[record['task']]}.py"
    taken = parameters_of(str(notebook)).keys()  # what else a record names is the notebook's own choice
    name = f"{path.parent.name}_{path.stem}"
    new = str(work / f"{name}.json")
    given = {key: value for key, value in record["parameters"].items() if key in taken}
    return Cell(name, str(notebook), given | {"record": new}, record=new)


def _verify(options: argparse.Namespace) -> int:
    if options.executor != "local":
        raise BatchError("--verify asks what this machine makes: leave out --executor, and run it on the other machine")
    root = options.root.resolve()
    work = root / "_build" / "verify"
    records = {path.resolve(): read_record(path) for path in options.verify}
    cells = {path: _cell_of(record, path, root, work) for path, record in records.items()}
    os.environ["ITLIB_CACHE"] = str(work / "cache")  # of the cells: nothing is found there but what a killed call has left
    with _alone(work), ThreadPoolExecutor(options.jobs) as executor:
        failures = _run(list(cells.values()), executor, work / "progress", options.jobs)
        reference = read_records(root / "book" / "reference", "**/*.json")
        statuses = []
        for path, cell in cells.items():
            if cell.name in failures:
                print(f"{path}\n  could not be run again: {failures[cell.name]}")
                statuses.append(2)
                continue
            again = read_record(Path(str(cell.record)))
            if lost := {k: v for k, v in records[path]["parameters"].items() if again["parameters"].get(k) != v}:
                commit = records[path]["provenance"]["commit"]
                print(f"{path}\n  cannot be run again here, where {lost} is no choice: verify it at its commit {commit}")
                statuses.append(2)
                continue
            verdict = judge(records[path], again, _peers(cell, reference))
            print(f"{path}\n  {verdict.says}\n  {verdict.because}")
            statuses.append({True: 0, False: 1, None: 2}[verdict.agrees])
        if not failures:
            shutil.rmtree(work)
    return max(statuses)


def _peers(cell: Cell, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with the same parameters but the seed."""
    defaults = parameters_of(cell.notebook)

    def settings(parameters: dict[str, Any]) -> dict[str, Any]:
        taken = {key: value for key, value in parameters.items() if key in defaults}
        return {**replace(cell, parameters=taken).recorded(defaults), "seed": None}

    mine = [r for r in records if NOTEBOOK_OF[r["task"]] == Path(cell.notebook).stem]
    return [r for r in mine if settings(r["parameters"]) == settings(cell.parameters)]


if __name__ == "__main__":
    sys.exit(main())
