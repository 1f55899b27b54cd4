"""Small batches in a copy of the checkout: the real notebooks with tiny parameters, or ones that only pretend to work."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cache
from pathlib import Path

import psutil
import small_book
from filelock import FileLock

from itlib.experiments import base, paper
from itlib.experiments.experiment import Parameters
from itlib.experiments.provenance import content

ROOT = Path(__file__).parents[2]
#: A run of the template in seconds.
SMALL = ("--profile", "smoke", "--set", "S=64", "J=5", "E=3", "B=32", "lr=1e-5")

HEADER = """# ---
# jupyter:
{more}#   jupytext:
#     notebook_metadata_filter: itlib,-widgets
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # {title}

"""

#: What stands in for the notebooks of the experiments: it writes a record, after waiting or failing where a file asks it to,
#: its name to ``executed`` and its process to ``kernels``. It imports nothing that takes long.
PRETEND = """# %% tags=["parameters"]
{parameters}
record = ""

# %%
import json, os, time
from pathlib import Path

name, content = Path(record).stem, json.loads(os.environ["CONTENT"])[{experiment!r}]
with open("../executed", "a") as file:
    file.write(f"{{name}}\\n")
with open("../kernels", "a") as file:
    file.write(f"{{name}} {{os.getpid()}}\\n")
while Path(f"../hold_{{name}}").exists():
    time.sleep(0.05)
if Path(f"../fail_{{name}}").exists():
    raise ValueError("the moon is\\nin the way")
{chosen}
found = {{
    "experiment": {experiment!r},
    "parameters": {{{given}}},
    "metrics": {{"nll_target": float(seed)}},
    "seconds": {{"sampling": 0.0, "training": 0.0}},
    "provenance": {{"versions": {{}}, "commit": "", "content": content, "platform": ""}},
}}
Path(record).parent.mkdir(parents=True, exist_ok=True)
Path(record).write_text(json.dumps(found))
"""
#: The knobs that a profile fills in.
CHOSEN = """
default = {"full": dict(S=1000, J=200, E=100, lr=1e-4), "smoke": dict(S=500, J=50, E=100, lr=1e-4)}[profile]
default |= dict(B=64, eta=1.0, epoch="minibatch", optimizer="adam")
knobs = dict(S=S, J=J, B=B, E=E, lr=lr, eta=eta, epoch=epoch, optimizer=optimizer)
chosen = {k: default[k] if v is None else v for k, v in knobs.items()}
"""

CHAPTER = """# %% tags=["parameters"]
profile = "full"

# %%
with open("../executed", "a") as file:
    file.write("chapter\\n")
"""


@cache
def folder() -> Path:
    """A folder of this test session, which its workers share, removed at its end (see conftest.py)."""
    if not (path := os.environ.get("ITLIB_TESTS")):
        path = tempfile.mkdtemp(prefix="itlib-tests-")
        atexit.register(shutil.rmtree, path, ignore_errors=True)
    return Path(path)


def once(make: Callable[[Path], None], name: str) -> Path:
    """A folder that the first worker who asks for it makes, and the others wait for."""
    place = folder() / name
    with FileLock(place.with_suffix(".lock")):
        if not place.with_suffix(".made").exists():
            shutil.rmtree(place, ignore_errors=True)
            make(place)
            place.with_suffix(".made").touch()
    return place


def environment(root: Path) -> dict[str, str]:
    """For processes that work in a copy: its own library, and one cache for the whole session."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {
        "PYTHONPATH": str(root),
        "ITLIB_CACHE": str(folder() / "cache"),
        "OMP_NUM_THREADS": "1",
        "CONTENT": json.dumps({name: content(f"itlib.experiments.{name}") for name in ("base", "paper")}),
        "PYTHONWARNINGS": "default",
    }


def copy(root: Path) -> Path:
    """Copy what a batch and the book need."""
    left_out = shutil.ignore_patterns("__pycache__", "runs", "pages", ".ipynb_checkpoints")
    for name in ("itlib", "notebooks", "book"):
        shutil.copytree(ROOT / name, root / name, ignore=left_out)
    for name in ("pyproject.toml", "_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    return root


def pretend(root: Path) -> Path:
    """A copy whose notebooks do nothing but leave records, fail (``fail_NAME``) or wait (while there is a ``hold_NAME``)."""
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "itlib", root / "itlib", ignore=shutil.ignore_patterns("__pycache__"))
    for stem, title, more, text in (
        ("s4_2_experiment", "The experiment", "#   itlib:\n#     experiment: paper\n", _pretended(paper.Parameters, CHOSEN)),
        ("s2_1_base_model", "The base", "#   itlib:\n#     experiment: base\n", _pretended(base.Parameters, "")),
        ("s9_chapter", "A chapter", "#   itlib:\n#     reads: [book/runs]\n", CHAPTER),
    ):
        (root / "notebooks" / f"{stem}.py").write_text(HEADER.format(title=title, more=more) + text)
    return root


def _pretended(kind: type[Parameters], chosen: str) -> str:
    knobs = {field.name: field.default for field in fields(kind)}
    given = "".join(f'"{name}": {name}, ' for name in knobs) + ("**chosen" if chosen else "")
    assigned = "\n".join(f"{name} = {value!r}" for name, value in knobs.items())
    return PRETEND.format(parameters=assigned, given=given, experiment=kind.experiment, chosen=chosen)


def executed(root: Path) -> list[str]:
    """The pretended notebooks that ran since the last call, in alphabetical order."""
    log = root / "executed"
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def command(*arguments: str) -> list[str]:
    """The command line of a batch."""
    return [sys.executable, "-m", "itlib.reproduce", *arguments]


def batch(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a batch to its end."""
    return subprocess.run(
        command(*arguments), cwd=root, env=environment(root), capture_output=True, text=True, timeout=900, check=False
    )


@contextmanager
def started(root: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A running batch, which does not outlive the test."""
    process = subprocess.Popen(
        command(*arguments), cwd=root, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests that a shell runs in its background would hand on that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.05)


def kill(pid: int) -> None:
    """Kill a process that a test started, with no chance to clean up."""
    os.kill(pid, signal.SIGKILL)


def family(pid: int) -> list[psutil.Process]:
    """A process's descendants."""
    with suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it may end while we look
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kernel(root: Path, name: str) -> psutil.Process | None:
    """The kernel of a pretended notebook, which is a child of the process of its cell; None if it has not begun."""
    log = root / "kernels"
    lines = log.read_text().splitlines() if log.exists() else []
    for line in reversed(lines):
        if line.split()[0] == name:
            with suppress(psutil.NoSuchProcess):  # it may have ended
                return psutil.Process(int(line.split()[1]))
    return None


def cell_below(pid: int) -> psutil.Process | None:
    """The process of a cell below a batch or a worker of Dask: what a worker of ours has forked, and not what that has."""
    for process in family(pid):
        with suppress(psutil.Error):  # it may end while we look
            line = (process, process.parent(), process.parent().parent())
            if [bool(one) and "itlib.reproduce.worker" in one.cmdline() for one in line] == [True, True, False]:
                return process
    return None


@cache
def finished() -> Path:
    """A copy with a finished batch of the real notebooks: N = 2 and 3, tiny parameters. Copy it before changing it."""

    def make(root: Path) -> None:
        result = batch(copy(root), "--N", "2", "3", *SMALL)
        assert result.returncode == 0, result.stderr

    return once(make, "finished")


@cache
def site() -> Path:
    """The real book, built from that batch: the folder of its pages."""

    def make(root: Path) -> None:
        shutil.copytree(finished(), root)
        result = small_book.build(root)
        assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]

    return once(make, "site") / "_build" / "html"


#: What stands in for base and template where the work has to be real and the time short: the true training, tilts and
#: checkpoints, without figures. Each tilt that is computed, not found, is written to ``tilted``.
WORK = """# %% tags=["parameters"]
{parameters}
record = ""

# %%
from pathlib import Path

import torch

import itlib.experiments.checkpoints
from itlib.experiments.checkpoints import resumable_base, resumable_tilting
from itlib.experiments.experiment import Record
from itlib.experiments.{experiment} import Parameters
from itlib.experiments.records import save_record
from itlib.gaussian_mixture import paper_mixture
from itlib.schedules import Cosine
from itlib.training import TrainingConfig

torch.set_num_threads(1)
name, schedule, mixture = Path(record).stem, Cosine(), paper_mixture()
with open("../executed", "a") as file:
    file.write(name + "\\n")
asked = Parameters({given})
for kept in resumable_base(mixture, schedule, TrainingConfig(epochs=4, batch_size=64), n=2000, seed=seed):
    pass
"""
TILTS = """
tilts = itlib.experiments.checkpoints.iterative_tilting


def counted(*arguments, **options):
    for step in tilts(*arguments, **options):
        with open("../tilted", "a") as file:
            file.write(f"{name} {step.k}\\n")
        yield step


itlib.experiments.checkpoints.iterative_tilting = counted
for kept in resumable_tilting(kept.model, mixture, asked.tilt, schedule, asked.tilting, seed=seed, trace_samples=200):
    pass
"""
LEFT = """
weights = dict(kept.model.state_dict())
metrics = {"nll_target": float(sum(w.double().sum() for w in weights.values())), "losses": kept.losses}
_ = save_record(Path(record), Record(asked, metrics, trace=kept.trace, seconds=kept.seconds, tensors=weights))
"""


#: Imported by every process of a copy: a disk on which each write takes $SLOW_DISK seconds, stopping half way, and a
#: log of addresses outside this machine that anything looks up or connects to.
SITE = """
import os, pathlib, sys, time

if seconds := float(os.environ.get("SLOW_DISK", 0)):

    def write_bytes(self, content):
        with open(self, "wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            if ".progress." not in self.name:
                time.sleep(seconds)
            file.write(content[len(content) // 2 :])

    pathlib.Path.write_bytes = write_bytes


def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        host = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = host[0] if isinstance(host, tuple) else host
        near = host is None or str(host).startswith(("127.", "/", "localhost", "::1")) or host in ("", b"", "0.0.0.0")
        if not near:
            with open(os.path.join(os.path.dirname(__file__), "network"), "a") as file:
                file.write(f"{event} {host!r} {sys.argv}\\n")


sys.addaudithook(watch)
"""


def working(root: Path) -> Path:
    """A copy whose notebooks do real, small work, in seconds: see :data:`WORK` and :data:`SITE`."""
    pretend(root)
    (root / "sitecustomize.py").write_text(SITE)
    for stem, kind, more in (("s4_2_experiment", paper.Parameters, TILTS), ("s2_1_base_model", base.Parameters, "")):
        knobs = {field.name: field.default for field in fields(kind)}
        parameters = "\n".join(f"{name} = {value!r}" for name, value in knobs.items())
        given = ", ".join(f"{name}={name}" for name in knobs)
        text = WORK.format(parameters=parameters, given=given, experiment=kind.experiment)
        head = HEADER.format(title=stem, more=f"#   itlib:\n#     experiment: {kind.experiment}\n")
        (root / "notebooks" / f"{stem}.py").write_text(head + text + more + LEFT)
    return root
