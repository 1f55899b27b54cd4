"""Running the cells of a batch: their order, a progress bar, and a folder that no second batch disturbs."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from itlib.experiments.files import DamagedFileError, sweep
from itlib.reproduce.cell import BatchError, Cell
from itlib.reproduce.plan import order
from itlib.reproduce.worker import run_in_process


def run_batch(cells: Sequence[Cell], executor: Executor, *, scratch: Path, jobs: int = 1) -> dict[str, str]:
    """Run cells that are not fresh, each after the ones it waits for, and return {name: what went wrong}.

    The longest go first, and chapters take what the others leave free.

    Args:
        cells: what to run; a cell may only wait for cells of this list.
        executor: where to run them.
        scratch: folder for progress files, shared with the workers.
        jobs: a chapter starts only while fewer cells are running: all others are handed to the executor at once.

    Raises:
        BatchError: if cells wait for each other.
    """
    failures: dict[str, str] = {}
    sorter, named = order(cells), {cell.name: cell for cell in cells}
    ready: list[Cell] = []
    running: dict[Future[str], Cell] = {}
    over: set[str] = set()
    scratch.mkdir(parents=True, exist_ok=True)

    def end(cell: Cell, error: str = "") -> None:
        if error:
            failures[cell.name] = error
        over.add(cell.name)
        sorter.done(cell.name)

    look = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=sum(cell.work for cell in cells), disable=None, bar_format=look) as bar:  # None: no bar in a log file
        while sorter.is_active():
            ready += [named[name] for name in sorter.get_ready()]
            for cell in sorted(ready, key=lambda c: (c.chapter, -c.work)):
                if cell.chapter and len(running) >= jobs:
                    break
                ready.remove(cell)
                if not cell.chapter and (broken := [name for name in cell.after if name in failures]):
                    end(cell, f"not run, because {broken[0]} failed")
                    continue
                try:
                    fresh = cell.is_fresh()
                except DamagedFileError as error:
                    end(cell, str(error))
                    continue
                if fresh:
                    end(cell)
                    continue
                progress = str(scratch / f"{cell.name}.progress")
                Path(progress).unlink(missing_ok=True)
                running[executor.submit(run_in_process, asdict(cell), progress, cell.code())] = cell
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in done:
                cell = running.pop(future)
                said = _outcome(future)
                end(cell, said)
                if not said:
                    bar.write(f"{cell.name} is done", file=sys.stderr)
                (scratch / f"{cell.name}.progress").unlink(missing_ok=True)
            _draw(bar, cells, over, running.values(), scratch)
    return failures


def _outcome(future: Future[str]) -> str:
    try:
        return future.result()
    except CancelledError:
        return "the scheduler went away: start it and its workers again, then run the same command"
    except Exception as lost:  # of the executor: no cell raises
        if deaths := getattr(lost, "allowed_failures", 0):  # Dask's KilledWorker
            return f"{deaths + 1} workers died while they ran it: see their logs; if memory was short, give them more"
        return f"{type(lost).__name__}: {lost}"


def _draw(bar: Any, cells: Sequence[Cell], over: set[str], running: Iterable[Cell], scratch: Path) -> None:
    work, notes = float(sum(cell.work for cell in cells if cell.name in over)), []
    for cell in running:
        try:
            what, done, total = (scratch / f"{cell.name}.progress").read_text().split()
        except (OSError, ValueError):
            continue
        # A tilting cell whose base is not in the cache trains it first: that is not progress of its own tilts yet.
        if (what == "base") == (cell.experiment == "base"):
            work += 0.95 * cell.work * int(done) / int(total)  # the rest is for its metrics and figures
        notes.append(f"{cell.name} {'epoch' if what == 'base' else 'tilt'} {done}/{total}")
    bar.n = min(work, bar.total or 0)
    bar.set_description_str(f"{len(over)}/{len(cells)} cells", refresh=False)
    bar.set_postfix_str(", ".join(notes), refresh=False)
    bar.refresh()


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder against a second batch, and clear it of what killed ones had begun to write.

    Raises:
        BatchError: if it cannot be written, or another batch holds it. The lock ends with its process, however that ends.
    """
    import fcntl  # Windows has none, and is told so before

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
