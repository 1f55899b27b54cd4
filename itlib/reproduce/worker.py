"""Processes that run cells: each cell in one of its own, so that one that fails, or is killed, takes nothing with it.

A *worker* imports torch or papermill once and forks for each cell, and for the kernel of its page
(:mod:`itlib.reproduce.kernel`); that is quick, and as clean as a new process. Where forking after such imports is not safe
(macOS), it ends after a cell, and the next one gets a new worker. A worker and its cell end when the worker's standard input
closes, so nothing outlives a batch that was killed.
"""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from itlib.experiments.provenance import PACKAGE, content_of_all
from itlib.reproduce.cell import BatchError, Cell, execute
from itlib.reproduce.kernel import Spare

FORKS = sys.platform == "linux"


class Worker:
    """A running worker."""

    def __init__(self, library: str) -> None:
        self.library = library
        # One and the same library in the batch, in its workers and in their kernels, wherever they are started.
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        environment = dict(os.environ) | {
            "PYTHONPATH": path,
            "ITLIB_PACKAGE": str(PACKAGE.resolve()),
            "OMP_NUM_THREADS": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # as a kernel says, but for what a spare has imported
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it doubles the time that every kernel takes to import torch
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-P", "-m", "itlib.reproduce.worker"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, env=environment, text=True)

    def run(self, cell: dict[str, Any], progress: str, code: str) -> str:
        """Run a cell, and return "" or one sentence about what went wrong."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps([cell, progress, code]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return str(json.loads(answer))
        self.close()
        if self.process.returncode < 0:
            return f"killed by signal {-self.process.returncode}"
        return self.last_words or "its process ended"

    def close(self) -> None:
        """End it, and what it runs."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()
        self.process.wait()
        self.errors.seek(0)
        self.last_words = (self.errors.read().decode("utf-8", "replace").splitlines() or [""])[-1].strip()
        self.errors.close()


_idle: list[Worker] = []


def run_in_process(cell: dict[str, Any], progress: str = "", code: str = "") -> str:
    """Run a cell in a process of its own, and return "" or one sentence about what went wrong.

    This is what the executor runs, here or on a worker of a cluster; running it twice does no harm.

    Args:
        cell: the fields of a :class:`~itlib.reproduce.cell.Cell`.
        progress: file in which the cell says how far it is.
        code: what the batch takes it to run, :meth:`~itlib.reproduce.cell.Cell.code`; anything else is refused.
    """
    library = content_of_all()
    try:
        worker = _idle.pop()
    except IndexError:
        worker = Worker(library)
    if worker.library != library:  # it may have imported what was edited since
        worker.close()
        worker = Worker(library)
    says = worker.run(cell, progress, code)
    if worker.process.poll() is None:
        _idle.append(worker)
    return says


def end_idle() -> None:
    """End the workers that wait for a cell."""
    while _idle:
        _idle.pop().close()


# ---- in the worker -------------------------------------------------------------------------------------------------


def _serve() -> int:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a cell prints is no reply
    # Papermill imports without it: a grammar of addresses, which no notebook needs, and 1.2 of 2.0 seconds.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # None is what import takes for absent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the batch's to hear; this ends when the batch does
    for line in iter(sys.stdin.readline, ""):
        fields, progress, code = json.loads(line)
        cell = Cell(**fields)

        def work(cell: Cell = cell, progress: str = progress, code: str = code) -> str:
            return _work(cell, progress, code)

        says = _forked(cell, work, replies) if FORKS else work()
        try:
            replies.write(json.dumps(says) + "\n")
            replies.flush()
        except BrokenPipeError:
            return 1
        if not FORKS:
            break
    return 0


def _work(cell: Cell, progress: str, code: str) -> str:
    if progress:
        os.environ["ITLIB_PROGRESS"] = progress
    spare = Spare() if cell.notebook and FORKS else None
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        if code and cell.code() != code:
            return f"its code in {PACKAGE.parent} is not that of the batch, or was edited just now: run the same again"
        execute(cell, spare)
    except BatchError as error:
        return " ".join(str(error).split())
    except Exception as error:  # of an experiment, which may raise anything
        advice = "; run fewer --jobs" if "memory" in f"{type(error).__name__} {error}".lower() else ""
        return " ".join(f"{type(error).__name__}: {error}".split()) + advice
    return ""


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def _imports(notebook: Path) -> list[str]:
    """Modules that a notebook imports, but for those that only its functions do."""
    found = []
    for node in ast.parse(notebook.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def _forked(cell: Cell, work: Callable[[], str], replies: Any) -> str:
    """What some work in a fork of this process returns, or how the fork ended."""
    # What takes long to import is imported once, before; what is wrong, the fork says.
    pages = ("jupytext", "papermill", "jupyter_client.manager")
    for name in (*pages, *_imports(Path(cell.notebook))) if cell.notebook else ():
        with suppress(Exception):
            import_module(name)
    with suppress(Exception):
        if not cell.notebook:
            cell.asked()
        if "torch" in sys.modules:  # what the first optimiser and the first score card of a process ask for: two seconds
            for name in ("torch._dynamo", "torchdiffeq", "ot"):
                import_module(name)
    there, here = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(there)
            os.close(replies.fileno())
            os.write(here, json.dumps(work()).encode())
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return str(json.loads(said)) if said else "its process ended"


if __name__ == "__main__":
    sys.exit(_serve())
