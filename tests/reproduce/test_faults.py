"""Faults: whatever is killed, at whatever moment, one more run ends with the bits of a run that nobody disturbed.

The notebooks are those of :data:`small_batch.WORK` on a disk that takes a while for every write, so that the moments of
writing are long enough to be hit. What is disturbed runs one cell at a time, what it is compared with two at a time.
``make test`` kills one process of each kind at a moment drawn from a seed; ``make test-faults`` kills each kind while every
cell trains, writes its checkpoint, its record and its page, and tries the rest of this file.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import safetensors
import safetensors.torch
import small_batch
import torch
from small_batch import SMALL, alive, cell_below, family, kill, wait_for

from itlib.experiments.records import load_record

#: Where and when a cell can be struck; it is waited for, and then for a moment more.
STAGES = ("training", "checkpoint", "record", "page")
#: Seconds that a write takes.
SLOW = 0.4


class Place:
    """A folder with a batch, a cache and logs of its own."""

    def __init__(self, root: Path, N: tuple[str, ...], jobs: int = 1, slow: float = SLOW) -> None:
        self.root, self.N, self.cells = root, N, ("base_seed0", *(f"N{int(n):03d}_seed0" for n in reversed(N)))
        self.options = ["--N", *N, *SMALL, "--jobs", str(jobs)]
        if not root.exists():
            small_batch.working(root)
        self.environment = small_batch.environment(root) | {"ITLIB_CACHE": str(root / "cache"), "SLOW_DISK": str(slow)}

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Begin a batch."""
        self.since = time.time()  # what older processes had begun to write does not count
        command, pipe = small_batch.command(*self.options, *more), subprocess.PIPE
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def finish(self, *more: str) -> str:
        """Run a batch to its end, which has to be a good one."""
        with self.start(*more) as process:
            out, error = process.communicate(timeout=1500)
        assert process.returncode == 0, error
        return str(out)

    def at(self, cell: str, stage: str) -> bool:
        """Whether a cell does just that."""
        runs, progress = self.root / "book" / "runs", self.root / "_build" / "progress" / f"{cell}.progress"
        places = {
            "training": [progress],
            "checkpoint": self.root.glob(f"cache/.{'base' if cell.startswith('base') else 'tilts'}_*.tmp"),
            "record": runs.glob(f".{cell}.json.*.tmp"),
            "page": [*runs.glob(f".{cell}.ipynb.*.tmp"), *runs.parent.glob(f"pages/.{cell}.ipynb.*.tmp")],
        }
        try:
            started = any(path.stat().st_mtime > self.since for path in places[stage])
            return started and (stage != "training" or (progress.read_text()[:4] == "base") == cell.startswith("base"))
        except OSError:
            return False

    def past(self, cell: str, stage: str) -> bool:
        """Whether a cell will not do that any more."""
        runs = self.root / "book" / "runs"
        page = runs / f"{cell}.ipynb" if cell in self.cells else runs.parent / "pages" / f"{cell}.ipynb"
        return page.exists() or (stage != "page" and (runs / f"{cell}.json").exists())

    def log(self, name: str) -> Counter[str]:
        """How often each line stands in a log of the notebooks."""
        path = self.root / name
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def complete(self) -> set[str]:
        """Cells that have left record and page."""
        runs = self.root / "book" / "runs"
        return {c for c in self.cells if all((runs / f"{c}{end}").exists() for end in (".json", ".ipynb"))}


def assert_same(place: Place, other: Place) -> None:
    """Records, weights, checkpoints and pages agree in every bit, and nothing else lies about."""
    for cell in place.cells:
        one, two = (load_record(p.root / "book" / "runs" / f"{cell}.json") for p in (place, other))
        for part in ("parameters", "metrics", "trace"):
            assert getattr(one, part) == getattr(two, part), (cell, part)
        for end in (".ipynb", ".safetensors"):
            a, b = ((p.root / "book" / "runs" / f"{cell}{end}").read_bytes() for p in (place, other))
            assert a == b, (cell, end)
    for path in place.root.glob("cache/*.safetensors"):
        with safetensors.safe_open(path, "pt") as a, safetensors.safe_open(other.root / "cache" / path.name, "pt") as b:
            notes = [json.loads(file.metadata()["notes"]) | {"seconds": None} for file in (a, b)]
            assert notes[0] == notes[1]
            assert set(a.keys()) == set(b.keys())
            assert all(torch.equal(a.get_tensor(k), b.get_tensor(k)) for k in b.keys())  # noqa: SIM118
    assert not list(place.root.rglob("*.tmp"))


@cache
def undisturbed(N: tuple[str, ...]) -> Place:
    """A batch that nobody disturbs, two cells at a time."""
    place = Place(small_batch.folder() / f"undisturbed{'-'.join(N)}", N, jobs=2)
    place.finish()
    assert all(count == 1 for log in ("executed", "tilted") for count in place.log(log).values())
    return place


# ---- who is killed -------------------------------------------------------------------------------------------------


class Cluster:
    """A Dask scheduler and workers in processes of their own, on this machine."""

    def __init__(self, place: Place, workers: int = 2) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.place = place
        self.scheduler = self.dask("scheduler", "--host", self.address, "--no-dashboard", "--no-show")
        # It is given no time limit here: a batch waits 5 s for a scheduler, and a busy machine may take longer to start one.
        port = int(self.address.rpartition(":")[2])
        wait_for(lambda: any(c.laddr.port == port for c in psutil.Process(self.scheduler.pid).net_connections()), "Dask")
        self.workers = [self.worker() for _ in range(workers)]

    def dask(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        quiet, environment = subprocess.DEVNULL, self.place.environment | more
        command = [sys.executable, "-m", "dask", *arguments]
        # Not in the checkout, whose library would be found before that of another machine.
        return subprocess.Popen(command, cwd=self.place.root.parent, env=environment, stdout=quiet, stderr=quiet)

    def worker(self, **more: str) -> subprocess.Popen[bytes]:
        plain = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(self.place.root / "dask"))
        return self.dask("worker", self.address, *plain, **more)

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def strike(kind: str, cell: str, batch: subprocess.Popen[str], cluster: Cluster | None) -> bool:
    """Kill a process of a kind; False if there is none just now."""
    if kind == "batch":
        kill(batch.pid)
        return True
    if kind == "scheduler":
        assert cluster
        kill(cluster.scheduler.pid)
        return True
    if kind == "worker":
        assert cluster
        busy = [w for w in cluster.workers if cell_below(w.pid)]
        if busy:
            kill(busy[0].pid)
        return bool(busy)
    process = cell_below(batch.pid)
    with suppress(psutil.Error):
        if process and kind == "cell":
            process.kill()
            return True
        if process and (kernels := process.children()):
            kernels[0].kill()
            return True
    return False


#: What a batch says if it outlives what was killed, and has to be run again.
SAYS = {
    "cell": "killed by signal 9",
    "kernel": "its kernel died without a word; if memory was short, run fewer --jobs",
    "scheduler": "the scheduler went away: start it and its workers again",
    "worker": "4 workers died while they ran it",
}


def over(batch: subprocess.Popen[str] | None) -> str:
    """Wait for the end of a batch, if there is one, and return what it said."""
    if batch is None or batch.stderr is None or batch.stderr.closed:
        return ""
    return batch.communicate(timeout=900)[1]


def assault(place: Place, moments: list[tuple[str, str, str]], seed: int) -> int:
    """Kill at each of the moments (kind, cell, stage), one more run each time; returns how many kills there were."""
    draw, kills, extra = random.Random(seed), 0, Counter[str]()
    with ExitStack() as stack:
        cluster, batch = None, None
        for kind, cell, stage in moments:
            if kind in ("worker", "scheduler") and (cluster is None or cluster.scheduler.poll() is not None):
                over(batch)
                cluster = Cluster(place)
                stack.callback(cluster.end)
            if batch is None or batch.poll() is not None:
                over(batch)
                before, done = place.log("executed"), place.complete()
                batch = place.start(*(["--executor", cluster.address] if cluster else []))
                stack.callback(batch.kill)
            started = time.monotonic()
            while not place.at(cell, stage) and not place.past(cell, stage) and batch.poll() is None:
                time.sleep(0.01)
                assert time.monotonic() < started + 600, (kind, cell, stage)
            time.sleep(draw.uniform(0, SLOW / 2))  # within the write that was seen to begin
            known = family(batch.pid) + (family(cluster.scheduler.pid) if cluster else [])
            struck = False
            while batch.poll() is None and not struck and not place.past(cell, stage):
                struck = strike(kind, cell, batch, cluster)
                time.sleep(0.01)  # its process may not be there just now: a worker was lost, or it begins
            print(f"{kind} while {cell} is at its {stage}: {'killed' if struck else 'over before the blow'}")
            if not struck:
                if batch.poll() is not None:
                    error = over(batch)  # Dask gives a cell up when its worker was killed for the fourth time
                    assert batch.returncode == 0 or (kind == "worker" and SAYS[kind] in error), error
                continue
            kills += 1
            if kind == "worker":
                assert cluster
                cluster.workers.append(cluster.worker())
                continue  # its cell goes to another worker
            if kind == "scheduler":
                assert cluster
                cluster.end()  # its machine was lost: workers that stay would finish what they have begun
            error = over(batch)
            assert "Traceback" not in error, error
            if kind in SAYS and batch.returncode:  # the blow may have come when all was done
                assert SAYS[kind] in error, error
                assert error.splitlines()[-1].startswith("  python -m itlib.reproduce --N"), error
            wait_for(lambda known=known: not alive(known), "what was below to end", 60)
            extra.update({name: n - before[name] for name, n in place.log("executed").items() if name in done})
        over(batch)
    assert not +extra, f"finished cells ran again: {extra}"
    place.finish()
    again = sum(count - 1 for count in place.log("tilted").values())
    assert again <= kills, f"{kills} kills cost {again} tilts"
    assert not place.log("network")
    return kills


# ---- the matrix ----------------------------------------------------------------------------------------------------


def test_one_kill_of_each_kind(tmp_path: Path) -> None:
    seed = int(os.environ.get("ITLIB_FAULT_SEED", "1"))
    # A kernel whose cell was killed looks for it once a second, and tilts on until then: there are tilts for all blows.
    draw, N = random.Random(seed), ("16",)
    place, tilts = Place(tmp_path / "root", N), "N016_seed0"
    kinds = draw.sample(("kernel", "cell", "batch"), 3)
    stages = draw.sample(STAGES[:2], 2)
    moments = [
        (kinds[0], "base_seed0", draw.choice(STAGES[:3])),  # a page is written when its kernel is gone
        (kinds[1], tilts, stages[0]),
        (kinds[2], tilts, stages[1]),
        ("worker", tilts, "training"),
        ("scheduler", tilts, "record"),
    ]
    # One may come too late on a busy machine: a record is written once.
    assert assault(place, moments, seed) >= 4, moments
    assert_same(place, undisturbed(N))


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["batch", "cell", "kernel", "worker", "scheduler"])
def test_each_kind_at_every_stage(tmp_path: Path, kind: str) -> None:
    N = ("8",)
    place, (base, tilts) = Place(tmp_path / "root", N), ("base_seed0", "N008_seed0")
    moments = [(kind, base, stage) for stage in ("training", "training", "checkpoint", "record", "page")]
    moments += [(kind, tilts, stage) for stage in ("training", "checkpoint") * 4]
    moments += [(kind, tilts, "record"), (kind, tilts, "page"), (kind, "s9_chapter", "page")]
    kills = assault(place, moments, seed=len(kind))
    assert kills >= 10, moments
    assert_same(place, undisturbed(N))


@pytest.mark.faults
def test_twenty_random_kills_end_with_the_same_bits(tmp_path: Path) -> None:
    """A soak: of the batch and all below it, any process, at any moment, two cells at a time."""
    draw, N = random.Random(20), ("8", "12")
    place, killed = Place(tmp_path / "root", N, jobs=2, slow=0.1), 0
    for _ in range(20):
        with place.start() as batch:
            end = time.monotonic() + draw.uniform(0.0, 10.0)
            while time.monotonic() < end and batch.poll() is None:
                time.sleep(0.02)
            below = family(batch.pid)
            victim = draw.choice([psutil.Process(batch.pid), *below]) if batch.poll() is None else None
            with suppress(psutil.Error):
                if victim:
                    victim.kill()
                    killed += 1
            error = over(batch)
            assert "Traceback" not in error, error
            wait_for(lambda below=below: not alive(below), "what was below to end", 60)
    print(f"{killed} of 20 were still running when they were struck")
    place.finish()
    assert_same(place, undisturbed(N))


# ---- Ctrl-C, two at once, and other trouble ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["terminal", pytest.param("process", marks=pytest.mark.faults)])
def test_ctrl_c_ends_within_three_seconds(tmp_path: Path, where: str) -> None:
    """In a terminal the whole group gets it; from elsewhere only the batch does. Either way nothing is left running."""
    place = Place(tmp_path / "root", ("4",))
    batch = place.start()
    try:
        wait_for(lambda: place.at("base_seed0", "training"), "the base to train")
        below = family(batch.pid)
        assert len(below) >= 2
        (os.killpg if where == "terminal" else os.kill)(batch.pid, signal.SIGINT)
        sent = time.monotonic()
        wait_for(lambda: batch.poll() is not None and not alive(below), "everything to end", 60)
        took = time.monotonic() - sent
        _, error = batch.communicate()
    finally:
        batch.kill()
    assert batch.returncode == 130
    assert error == "\nstopped; run the same command again to go on from here\n"
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert took < 3.0 * busy, f"{took:.1f} s at {busy:.1f} processes a core"
    print(f"Ctrl-C, {where}: {took:.1f} s at {busy:.1f} processes a core")


def test_two_batches_in_one_folder(tmp_path: Path) -> None:
    """The second is told of the first; a lock whose holder was killed holds nobody up."""
    root = small_batch.pretend(tmp_path / "root")
    (root / "hold_base_seed0").touch()
    with small_batch.started(root, "--N", "2") as first:
        wait_for(lambda: (root / "executed").exists(), "the first to begin")
        second = small_batch.batch(root, "--N", "2")
        assert second.returncode == 2
        assert second.stderr == (
            f"error: another batch works in {root / 'book' / 'runs'}, process {first.pid} on {os.uname().nodename}: "
            "wait for it, end it, or choose another --out\n"
        )
        kill(first.pid)
        first.communicate()
    (root / "hold_base_seed0").unlink()
    result = small_batch.batch(root, "--N", "2")
    assert result.returncode == 0, result.stderr


@pytest.mark.faults
def test_two_batches_that_share_only_a_cache(tmp_path: Path) -> None:
    """The same cells at the same time into two folders: each leaves what one alone would."""
    place = Place(tmp_path / "root", ("4",))
    both = [place.start("--out", str(tmp_path / name)) for name in ("one", "two")]
    for batch in both:
        _, error = batch.communicate(timeout=900)
        assert batch.returncode == 0, error
    alone = undisturbed(("4",))
    for cell in place.cells:
        expected = load_record(alone.root / "book" / "runs" / f"{cell}.json")
        for name in ("one", "two"):
            found = load_record(tmp_path / name / f"{cell}.json")
            assert all(getattr(found, part) == getattr(expected, part) for part in ("parameters", "metrics", "trace"))
    assert not list(place.root.rglob("*.tmp"))


@pytest.mark.faults
def test_a_limit_on_files_loses_nothing(tmp_path: Path) -> None:
    """A disk that takes no more than 100 kB a file: one sentence; without the limit the batch goes on."""
    place = Place(tmp_path / "root", ("4",), slow=0.0)
    command = ["prlimit", "--fsize=100000", *small_batch.command(*place.options)]
    result = subprocess.run(command, cwd=place.root, env=place.environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "base_seed0: OSError: a limit on the size of files (ulimit -f) forbids writing " in result.stderr
    assert "raise it and run again, nothing is lost\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(place.root.rglob("*.tmp"))
    place.finish()
    assert_same(place, undisturbed(("4",)))


@pytest.mark.faults
def test_a_short_memory_is_one_sentence(tmp_path: Path) -> None:
    root = small_batch.pretend(tmp_path / "root")
    template = root / "notebooks" / "s2_1_base_model.py"
    greedy = "import resource, torch\nresource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34))\ntorch.empty(1 << 36)\n"
    template.write_text(template.read_text() + greedy)
    result = small_batch.batch(root, "--N", "2")
    assert result.returncode == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("  base_seed0: "))
    assert "not enough memory" in line or "can't allocate memory" in line
    assert "run fewer --jobs" in line


@pytest.mark.parametrize("kind", [pytest.param("file", marks=pytest.mark.faults), "readonly"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, kind: str) -> None:
    root, out = small_batch.pretend(tmp_path / "root"), tmp_path / "out"
    if kind == "file":
        out.write_text("")
    else:
        out.mkdir(mode=0o555)
    if kind == "readonly" and os.geteuid() == 0:
        # Root may write anywhere but to a disk that is mounted so.
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", out], capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip("no read-only mount here")
    try:
        result = small_batch.batch(root, "--N", "2", "--out", str(out))
    finally:
        if kind == "readonly" and os.geteuid() == 0:
            subprocess.run(["umount", out], check=True)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: cannot write in {out} (")
    assert result.stderr.endswith("): choose another folder with --out\n")
    assert not (root / "executed").exists()


# ---- a cluster of other machines -----------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["none", "versions", "library"])
def test_workers_that_do_not_fit_are_told(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("distributed")
    place = Place(tmp_path / "root", ("4",), slow=0.0)
    cluster = Cluster(place, workers=0)
    other = tmp_path / "other"
    if fault == "none":  # a machine without the project
        other.mkdir()
        (other / "sitecustomize.py").write_text(
            "import sys\n\nclass Gone:\n  def find_spec(self, name, path=None, target=None):\n"
            "    if name.partition('.')[0] == 'itlib': raise ModuleNotFoundError(f'No module named {name!r}')\n"
            "sys.meta_path.insert(0, Gone())\n"
        )
    else:
        small_batch.working(other)
        if fault == "library":
            with open(other / "itlib" / "sampling.py", "a") as file:
                file.write("ANOTHER_STATE = 1\n")
        else:
            (other / "sitecustomize.py").write_text(
                "import importlib.metadata as m\nv = m.version\nm.version = lambda n: '1.0' if n == 'torch' else v(n)\n"
            )
    try:
        cluster.workers.append(cluster.worker(PYTHONPATH=str(other)))
        result = subprocess.run(
            small_batch.command(*place.options, "--executor", cluster.address), cwd=place.root, env=place.environment,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        cluster.end()
    lines = [line for line in result.stderr.splitlines() if not line.startswith("waiting for a worker: ")]
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    says = {
        "none": "cannot import the project (ModuleNotFoundError",
        "versions": "is not like this batch (torch is 1.0 and not 2.",
        "library": "is not like this batch (the library is ",
    }
    assert lines[0].startswith("error: the worker tcp://127.0.0.1:")
    assert says[fault] in lines[0]
    assert ": install the same" in lines[0]
    assert not place.log("executed")


@pytest.mark.faults
def test_a_small_batch_needs_no_network(tmp_path: Path) -> None:
    """In a network of its own, where nothing but this machine can be reached; elsewhere the log of addresses has to do."""
    place = Place(tmp_path / "root", ("4",), slow=0.0)
    inside = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    works = subprocess.run([*inside, "true"], capture_output=True, check=False).returncode == 0
    command = [*(inside if works else []), *small_batch.command(*place.options)]
    result = subprocess.run(command, cwd=place.root, env=place.environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not place.log("network")
    assert_same(place, undisturbed(("4",)))
