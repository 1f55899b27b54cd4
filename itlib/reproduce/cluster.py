"""Where cells run: threads that watch processes of this machine, or the workers of a Dask scheduler."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from itlib.experiments.provenance import PACKAGES, content_of_all
from itlib.reproduce.cell import BatchError
from itlib.reproduce.worker import end_idle

#: Seconds to wait for the first worker of a scheduler.
PATIENCE = 60


def facts(root: str) -> dict[str, str]:
    """What a worker and the batch have to share, so that it does not matter which worker runs a cell."""
    known = {"Python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    return known | {"the library": content_of_all(), "the checkout": root if Path(root).is_dir() else "missing"}


@contextmanager
def executor(where: str, jobs: int, root: Path) -> Iterator[Executor]:
    """An executor of cells.

    Args:
        where: "local", or the address of a Dask scheduler.
        jobs: cells at a time, of this machine.
        root: the checkout, which all workers share.

    Raises:
        BatchError: if no scheduler or worker answers, or a worker is not like this machine.
    """
    if where == "local":
        with ThreadPoolExecutor(jobs) as threads:
            yield threads
        end_idle()
    else:
        with _dask(where, root) as workers:
            yield workers


def _dask(where: str, root: Path) -> Executor:
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
        start = f"start one with 'dask worker {where} --nthreads 1'"
        print(f"waiting {PATIENCE} s for a worker: {start}", file=sys.stderr)
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise BatchError(f"no worker came to {where} within {PATIENCE} s: {start}, then run the same command") from None
    here = facts(str(root))
    for worker, there in client.run(facts, str(root), on_error="return").items():
        if not isinstance(there, dict):
            raise BatchError(f"the worker {worker} cannot import the project ({there}): install the same checkout there")
        if wrong := [f"{name} is {there[name]} and not {here[name]}" for name in here if there[name] != here[name]]:
            raise BatchError(f"the worker {worker} is not like this batch ({'; '.join(wrong)}): install the same there")
    # Dask may run a task again after a worker was lost; a cell may be run twice, so that does no harm.
    found: Executor = client.get_executor(pure=False, retries=2)
    return found
