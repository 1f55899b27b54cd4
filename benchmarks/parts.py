"""What is measured, one function for each part of the record.

A part returns ``ratios``, which are compared with the committed record; ``absolute``, figures of this machine with a unit;
and ``found``, whatever else the chapter draws. What should reach a target says so. All is seeded.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import tried
from clocks import LIBRARIES, flops, in_turns, peak, products, seconds, threads
from fast import multistep, sliced_distance, sorted_projections
from judging import batch, exponent, judged, makespan, ratio, spread
from published import Plain, diffusers_sample, diffusers_tilt, textbook_sample, textbook_tilt
from torch import Tensor

from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.checkpoints import profile, resumable_base
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.metrics import score_errors
from itlib.network import Network
from itlib.rewards import parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import Regression, Tilt, TiltingConfig, iterative_tilting
from itlib.training import regression_step

ROOT = Path(__file__).parents[1]
SCHEDULE, S, J, B, E = Cosine(), 1000, 200, 64, 100
PAPER_GRID, CORES, SEEDS = (20, 50, 100, 200), 2, 10
#: Modules of every room that starts with torch and nothing heavier.
IMPORTED = ("itlib.tilting", "itlib.likelihood", "itlib.metrics", "itlib.beyond.recommended", "itlib.baselines.soft_value")
IMPORTED += ("itlib.experiments.records", "itlib.experiments.checkpoints")
Part = dict[str, dict[str, Any]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(name: str, config: str = "paper") -> torch.nn.Module:
    """The base of the paper's task, by profile and configuration; the second time it is found."""
    *_, base = resumable_base(paper_mixture(), SCHEDULE, **profile(name).trained(config))
    return base.model


def absolute(values: list[float], unit: str, better: str = "low", target: float | None = None) -> dict[str, Any]:
    """A figure of this machine."""
    return judged(values, better, target) | {"unit": unit}


# ---- side by side --------------------------------------------------------------------------------------------------


def _floor(spent: dict[str, list[float]], done: dict[str, int], wanted: int) -> tuple[str, list[float]]:
    """The library that is faster here, and the seconds that it would take for some operations, turn by turn."""
    library = min(done, key=lambda name: sorted(spent[name])[len(spent[name]) // 2] / done[name])
    return library, [s * wanted / done[library] for s in spent[library]]


def sampling() -> Part:
    """The paper's dataset of a tilt, 1000 x 200 steps: itlib, the textbook, diffusers, and nothing but matrix products."""
    network = trained("smoke")
    plain = Plain(network)
    works: dict[str, Callable[[], Tensor]] = {
        "itlib": lambda: sample(network, SCHEDULE, S, steps=J, generator=seeded()),
        "textbook": lambda: textbook_sample(plain, SCHEDULE, S, J, seeded()),
        "diffusers DDPM": lambda: diffusers_sample(plain, SCHEDULE, S, J, seeded()),
        "diffusers DDIM": lambda: diffusers_sample(plain, SCHEDULE, S, J, seeded(), "DDIMScheduler"),
        "diffusers, our network": lambda: diffusers_sample(network, SCHEDULE, S, J, seeded()),
    }
    ours = works["itlib"]()
    apart = {name: float((work() - ours).abs().max()) for name, work in works.items()}
    if max(apart.values()) > 1e-2:
        raise AssertionError(f"from the same noise the samplers must agree, and they differ by {apart}")
    part: Part = {"ratios": {}, "absolute": {}, "found": {"apart": apart}}
    wanted = J * flops(S, network, embedding=False)
    for number in (1, 2):
        floors = {name: products(name, S, 200) for name in (*LIBRARIES, "with SiLU")}
        done = {name: count for name, (_, count) in floors.items() if name in LIBRARIES}
        with threads(number):
            spent = in_turns(
                works | {name: work for name, (work, _) in floors.items()},
                7 if number == 1 else 3,
                clock=time.process_time if number == 1 else time.perf_counter,
            )
        library, floor = _floor(spent, done, wanted)
        own, target = spent["itlib"], number == 1
        where = part["ratios"] if number == 1 else part["found"].setdefault("two threads", {})
        where["textbook / itlib"] = ratio(spent["textbook"], own, target=1.3 if target else None)
        where["diffusers DDPM / itlib"] = ratio(spent["diffusers DDPM"], own, target=1.5 if target else None)
        where["diffusers DDIM / itlib"] = ratio(spent["diffusers DDIM"], own, target=1.5 if target else None)
        where["floor / itlib"] = ratio(floor, own, target=0.8 if target else None)
        if number == 1:
            wanted_silu = wanted / floors["with SiLU"][1]
            where["products with SiLU / itlib"] = ratio([s * wanted_silu for s in spent["with SiLU"]], own)
            where["diffusers, our network / itlib"] = ratio(spent["diffusers, our network"], own)
            part["found"]["floor"] = {
                "library": library,
                "rates": {name: spread([count / s / 1e9 for s in spent[name]]) for name, count in done.items()},
            }
        part["absolute"] |= {f"{name}, {number} thread{'s' * (number > 1)}": absolute(spent[name], "s") for name in works}
    one, two = (part["absolute"][f"itlib, {n}"]["median"] for n in ("1 thread", "2 threads"))
    part["found"]["two threads"]["one thread / two"] = one / two
    return part


def training() -> Part:
    """An optimiser step of a tilt at batch 64: itlib, the textbook, a plain loop with diffusers, and the products alone."""
    network = trained("smoke")
    data = sample(network, SCHEDULE, S, steps=20, generator=seeded())
    rewards = parse_reward("paper")(data)
    config = TiltingConfig(lr=1e-6)
    student, plain, other = copy.deepcopy(network), Plain(network), Plain(network)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-6, fused=True)
    fixed = torch.randn(B, 2), torch.rand(B), torch.randn(B, 2), torch.rand(B, 1)

    learner, tilt = Regression(student, SCHEDULE, config), Tilt(1, data, rewards, 0.05, 0.05)

    def ours() -> None:
        learner.learn(tilt, seeded())

    def steps() -> None:
        for _ in range(E):
            regression_step(student, optimizer, *fixed)

    works = {
        "itlib": ours,
        "textbook": lambda: textbook_tilt(plain, data, rewards, SCHEDULE, 0.05, E, B, 1e-6),
        "diffusers": lambda: diffusers_tilt(other, data, rewards, SCHEDULE, 0.05, E, B, 1e-6),
        "one step": steps,
    }
    part: Part = {"ratios": {}, "absolute": {}, "found": {}}
    wanted = E * 3 * flops(B, network, embedding=True)  # forward, and twice as much backward
    for number in (1, 2):
        floors = {name: products(name, B, 400, training=True) for name in LIBRARIES}
        done = {name: count for name, (_, count) in floors.items()}
        with threads(number):
            spent = in_turns(
                works | {name: work for name, (work, _) in floors.items()},
                9 if number == 1 else 3,
                clock=time.process_time if number == 1 else time.perf_counter,
            )
        library, floor = _floor(spent, done, wanted)
        target = number == 1
        where = part["ratios"] if number == 1 else part["found"].setdefault("two threads", {})
        where["textbook / itlib"] = ratio(spent["textbook"], spent["itlib"], target=1.6 if target else None)
        where["diffusers / itlib"] = ratio(spent["diffusers"], spent["itlib"])
        where["one step / floor"] = ratio(spent["one step"], floor, "low", 1.8 if target else None)
        where["one step / torch.mm"] = ratio(
            spent["one step"], _floor(spent, {"torch.mm": done["torch.mm"]}, wanted)[1], "low"
        )
        if number == 1:
            part["found"]["floor"] = {
                "library": library,
                "rates": {name: spread([count / s / 1e9 for s in spent[name]]) for name, count in done.items()},
            }
        part["absolute"] |= {
            f"{name}, {number} thread{'s' * (number > 1)}": absolute([1e3 * s / E for s in spent[name]], "ms a step")
            for name in works
        }
    return part


def equal() -> Part:
    """How fast are samples that are at least as good as those of the textbook's 200 steps?

    The error is the sliced Wasserstein distance to the exact law, folded as in the book's chapter on samplers. It is asked
    three times: of the samplers alone, with the exact denoiser, their time being that of the same number of evaluations of
    the paper's network; of that network, trained; and of the base that is recommended, another network for the same data.
    The textbook's samples are itlib's (see `sampling`), drawn faster where only the error is asked. Times are those of 1000.
    """
    law, n, seeds = paper_mixture(), 10_000, range(4)
    network, skip = trained("full"), trained("full", "recommended")
    plain, oracle = Plain(network), ExactNoisePredictor(law, SCHEDULE)
    exact = sorted_projections(law.sample(40 * n, seeded(1000)))
    Sampler = Callable[[Any, int, torch.Generator], Tensor]

    def algorithm_1(steps: int, **options: Any) -> Sampler:
        return lambda eps, m, g: sample(eps, SCHEDULE, m, steps=steps, generator=g, **options)

    def solver(steps: int, **options: Any) -> Sampler:
        return lambda eps, m, g: multistep(eps, SCHEDULE, torch.randn(m, 2, generator=g), steps, g, **options)

    book = "Algorithm 1, 200"
    samplers: dict[str, Sampler] = {book: algorithm_1(J)}
    samplers |= {f"analytic, {k}": algorithm_1(k, variance="analytic") for k in (50, 100)}
    samplers |= {f"SDE-DPM++, {k}": solver(k, algorithm_type="sde-dpmsolver++") for k in (8, 16, 24, 40)}
    samplers |= {f"DPM++, {k}": solver(k) for k in (8, 12, 16, 20, 24, 32)}

    def error(draw: Callable[[torch.Generator], Tensor], seed: int) -> float:
        with torch.no_grad():
            return sliced_distance(draw(seeded(seed)), exact)

    def errors(eps: Any) -> dict[str, dict[str, Any]]:
        found = {}
        for name, draw in samplers.items():
            values = [error(lambda g, draw=draw: draw(eps, n, g), seed) for seed in seeds]
            deviation = statistics.stdev(values) / math.sqrt(len(values))
            found[name] = {"error": statistics.fmean(values), "standard error": deviation}
        return found

    def times(eps: Any, names: Iterable[str]) -> dict[str, list[float]]:
        works = {name: (lambda draw=samplers[name]: draw(eps, S, seeded())) for name in names}
        return in_turns({"textbook": lambda: textbook_sample(plain, SCHEDULE, S, J, seeded())} | works, 5)

    part: Part = {"ratios": {}, "absolute": {}, "found": {"n": n, "seeds": len(seeds)}}
    part["found"]["floor"] = spread([error(lambda g: law.sample(n, g), 100 + seed) for seed in range(10)])
    spent = {"network": times(network, samplers), "skip": times(skip, samplers)}
    settings = {
        "the sampler alone": (errors(oracle), spent["network"]),
        "the paper's network": (errors(network), spent["network"]),
        "the recommended base": (errors(skip), spent["skip"]),
    }
    bars = {name: found[book]["error"] for name, (found, _) in settings.items()}
    bars["the recommended base"] = bars["the paper's network"]
    for label, (found, clock) in settings.items():
        for name, row in found.items():
            row["faster"] = spread([a / b for a, b in zip(clock["textbook"], clock[name], strict=True)])
        # A sampler counts from the steps on from which all that were tried are good enough: below, it is luck.
        good = [
            name
            for name, row in found.items()
            if all(other["error"] <= bars[label] for kin, other in found.items() if _more(kin, name))
        ]
        best = max(good, key=lambda name: found[name]["faster"]["median"], default=None)
        part["found"][label] = {"samplers": found, "bar": bars[label], "best": best}
        if best is not None:
            part["ratios"][f"textbook / as good: {label}"] = ratio(clock["textbook"], clock[best], target=8.0)
    return part


def _more(one: str, other: str) -> bool:
    """Whether a sampler is another one with at least as many steps."""
    (kind, steps), (same, least) = one.split(", "), other.split(", ")
    return kind == same and int(steps) >= int(least)


# ---- the experiment ------------------------------------------------------------------------------------------------


def grid() -> Part:
    """The paper's grid: the cost of a tilt, and what it makes of four values of N on two cores."""
    network = trained("smoke")
    runs = {N: iterative_tilting(network, parse_reward("paper"), SCHEDULE, TiltingConfig(N=N)) for N in (20, 200)}
    target = paper_mixture().tilted(parse_reward("paper"))
    spent: dict[str, list[float]] = {"sampling": [], "training": [], "trace": []}
    by_N: dict[int, list[float]] = {N: [] for N in runs}
    for _ in range(8):
        for N, run in runs.items():
            step = next(run)
            by_N[N].append(sum(step.seconds.values()))
            for name, value in step.seconds.items():
                spent[name].append(value)
        spent["trace"].append(seconds(lambda: score_errors(network, target, SCHEDULE, n=5000, seed=0)))
    tilt = spread(by_N[20] + by_N[200])["median"]
    trace = spread(spent["trace"])["median"]
    reference = ROOT / "book/reference/paper"
    committed = [json.loads(path.read_text())["seconds"] for path in sorted(reference.glob("N*.json"))]
    bases = [json.loads(path.read_text())["seconds"]["training"] for path in sorted(reference.glob("base*.json"))]
    then = sum(sum(r.values()) for r in committed) / (sum(PAPER_GRID) * len(committed) / len(PAPER_GRID))
    wall = [makespan({str(N): (N * (t + trace), None) for N in PAPER_GRID}, CORES) / 60 for t in by_N[20] + by_N[200]]
    return {
        "ratios": {"a tilt at N = 200 / at N = 20": ratio(by_N[200], by_N[20], "low")},
        "absolute": {
            "the paper's grid on two cores": absolute(wall, "min", target=5.0),
            "a tilt": absolute(by_N[20] + by_N[200], "s"),
        },
        "found": {
            "seconds of a tilt": {name: spread(values) for name, values in spent.items()},
            "longest chain": max(PAPER_GRID) * (tilt + trace) / 60,
            "grid": list(PAPER_GRID),
            "committed": {
                "runs": len(committed),
                "a tilt with its trace": then,
                "a base, in tilts": statistics.fmean(bases) / then,
            },
        },
    }


def recommended() -> Part:
    """What is recommended, N chosen by its rule, beside the paper's N = 50, from the bases that each trains."""
    law, reward = paper_mixture(), parse_reward("paper")
    bases = {
        "paper": trained("full"),
        "recommended": trained("full", "recommended"),
    }
    runs = {
        "paper": iterative_tilting(bases["paper"], reward, SCHEDULE, TiltingConfig(N=50)),
        "recommended": recommended_tilting(bases["recommended"], reward, SCHEDULE),
    }
    found: dict[str, Any] = {}
    for name, run in runs.items():
        spent = {"sampling": 0.0, "training": 0.0}
        for step in run:
            spent = {key: value + step.seconds[key] for key, value in spent.items()}
        error = score_errors(step.model, law.tilted(reward), SCHEDULE, n=20_000, seed=1).eps_rmse
        found[name] = {"tilts": step.k, "error": error, "seconds": spent}
    total = {name: sum(run["seconds"].values()) for name, run in found.items()}
    return {
        "ratios": {
            "paper at N = 50 / recommended, seconds": ratio([total["paper"]], [total["recommended"]], target=1.0),
            "paper at N = 50 / recommended, error": ratio(
                [found["paper"]["error"]], [found["recommended"]["error"]], target=1.0
            ),
        },
        "absolute": {f"{name}, all tilts": absolute([value], "s") for name, value in total.items()},
        "found": found,
    }


# ---- growth --------------------------------------------------------------------------------------------------------


def growth() -> Part:
    """Seconds and memory against one size at a time, with fitted exponents."""
    network, reward = Network(2), parse_reward("paper")

    def tilts(N: int) -> None:
        for _ in iterative_tilting(network, reward, SCHEDULE, TiltingConfig(N=N, S=250, J=40, B=64, E=30, lr=1e-6)):
            pass

    def regression(rows: int) -> None:
        student = copy.deepcopy(network)
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-6, fused=True)
        fixed = torch.randn(rows, 2), torch.rand(rows), torch.randn(rows, 2)
        for _ in range(30):
            regression_step(student, optimizer, *fixed)

    def in_dimension(d: int) -> None:
        config = TiltingConfig(N=1, S=500, J=25, B=64, E=25, lr=1e-6)
        for _ in iterative_tilting(wide[d], lambda x: x[:, 0], SCHEDULE, config, d=d):
            pass

    wide = {d: Network(d) for d in (2, 10, 30, 100, 300, 1000)}
    sizes: dict[str, tuple[tuple[int, ...], Callable[[int], object]]] = {
        "N": ((4, 8, 16, 32), tilts),
        "S": ((250, 500, 1000, 2000, 4000, 8000), lambda n: sample(network, SCHEDULE, n, steps=25)),
        "J": ((25, 50, 100, 200, 400), lambda steps: sample(network, SCHEDULE, 500, steps=steps)),
        "B": ((16, 64, 256, 1024, 4096), regression),
        "d": (tuple(wide), in_dimension),
    }
    part: Part = {"ratios": {}, "absolute": {}, "found": {}}
    for name, (points, work) in sizes.items():
        spent = in_turns({str(p): (lambda p=p, work=work: work(p)) for p in points}, 3)
        memory = [peak(lambda p=p, work=work: work(p)) for p in points]
        part["found"][name] = {
            "points": list(points),
            "seconds": [spread(spent[str(p)]) for p in points],
            "MiB": memory,
            "exponent": exponent(points, [spread(spent[str(p)])["median"] for p in points]),
            "upper": exponent(points[-3:], [spread(spent[str(p)])["median"] for p in points[-3:]]),
        }
        if all(memory) and memory[-1] > 2 * memory[0]:  # less is the allocator's
            part["found"][name]["exponent of MiB"] = exponent(points[-3:], memory[-3:])
    part["found"]["seeds"] = tried.seeds_at_once()
    return part


def seeds() -> Part:
    """Networks of ten seeds in one stack of batched products, against one after the other: a training step, and samples."""
    works = tried.stack_of_seeds(SEEDS, B)
    floors = {name: products(name, B, 100, training=True) for name in LIBRARIES}
    done = {name: count for name, (_, count) in floors.items()}
    spent = in_turns(
        {name: work for name, (work, _) in works.items()} | {name: work for name, (work, _) in floors.items()}, 7
    )
    steps = works["stack"][1]
    library, floor = _floor(spent, done, SEEDS * steps * 3 * flops(B, Network(2), embedding=True))
    return {
        "ratios": {
            "textbook / stack, a step": ratio(spent["textbook"], spent["stack"], target=1.8),
            "stack / floor, a step": ratio(spent["stack"], floor, "low", 1.5),
            "loop / stack, a step": ratio(spent["loop"], spent["stack"]),
            "loop / stack, samples": ratio(spent["samples, loop"], spent["samples, stack"]),
        },
        "absolute": {
            f"{name}, a seed's step": absolute([1e3 * s / SEEDS / steps for s in spent[name]], "ms")
            for name in ("loop", "textbook", "stack")
        },
        "found": {"seeds": SEEDS, "library": library},
    }


@contextmanager
def _worker() -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line, makes tilts, and says for how long."""
    code = f"""
import time, torch
torch.set_num_threads(1)
from itlib.network import Network
from itlib.rewards import parse_reward
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting
run = iterative_tilting(Network(2), parse_reward("paper"), Cosine(), TiltingConfig(N=1000, S={S}, J=50, lr=1e-6))
next(run)
print("ready", flush=True)
while input():
    start = time.perf_counter()
    for _ in range(4):
        next(run)
    print(time.perf_counter() - start, flush=True)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("a worker did not start")
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()


def workers() -> Part:
    """Two processes that make tilts at the same time against one; wall time, which needs two free cores."""
    with _worker() as first, _worker() as second:

        def together(*children: Any) -> float:
            for child in children:
                child.stdin.write("go\n")
                child.stdin.flush()
            return max(float(child.stdout.readline()) for child in children)

        turns = [(together(first), together(first, second), together(second)) for _ in range(5)]
    gain = [(one + other) / both for one, both, other in turns]
    return {"ratios": {"two workers / one": judged(gain, target=1.8)}, "absolute": {}, "found": {}}


def cluster() -> Part:
    """A small batch on this machine and on a local Dask cluster, the model of both, and what it says beyond."""
    from distributed import LocalCluster

    grid_of = (2, 3, 4)
    small = ["--profile", "smoke", "--N", *map(str, grid_of), "--set", "S=64", "J=5", "E=3", "B=32", "lr=1e-5"]
    place = Path(tempfile.mkdtemp(prefix="itlib-bench-"))

    def run(name: str, *options: str) -> float:
        out = place / name
        command = [sys.executable, "-m", "itlib.reproduce", *small, "--records-only", "--out", str(out), *options]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the small batch failed: {done.stderr.strip().splitlines()[-1]}")
        return time.perf_counter() - start

    # Every cell trains the base once, here in advance; so the cells are alike and cost what a cell costs beside its work.
    before = os.environ.get("ITLIB_CACHE")
    os.environ["ITLIB_CACHE"] = str(place / "cache")
    try:
        run("first", "--jobs", "2")
        found: dict[str, dict[str, float]] = {}
        for jobs in (1, 2):
            shutil.rmtree(place / "first")
            found[f"local, {jobs}"] = {
                "seconds": run("first", "--jobs", str(jobs)),
                "again": run("first", "--jobs", str(jobs)),
            }
        for number in (1, 2):
            with LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address=None) as dask:
                shutil.rmtree(place / "first")
                address = ("--executor", dask.scheduler_address)
                found[f"Dask, {number}"] = {"seconds": run("first", *address), "again": run("first", *address)}
    finally:
        os.environ.pop("ITLIB_CACHE")
        if before is not None:
            os.environ["ITLIB_CACHE"] = before
        shutil.rmtree(place, ignore_errors=True)
    startup, cells = found["local, 1"]["again"], 1 + len(grid_of)
    each = (found["local, 1"]["seconds"] - startup) / cells
    return {
        "ratios": {},
        "absolute": {"a cell beside its work": absolute([each], "s"), "start of a batch": absolute([startup], "s")},
        "found": {
            "runs": found,
            "cells": cells,
            "each": each,
            "startup": {"local": startup, "Dask": found["Dask, 2"]["again"]},
        },
    }


def beyond(parts: dict[str, Part]) -> dict[str, Any]:
    """What the model says of the paper's grid on more workers, from the costs of a record's parts."""
    tilt = sum(parts["grid"]["found"]["seconds of a tilt"][name]["median"] for name in ("sampling", "training", "trace"))
    base = tilt * parts["grid"]["found"]["committed"]["a base, in tilts"]
    costs = parts["cluster"]["found"]
    # Two workers of this machine slow each other down, as measured; those of a cluster are taken to have a core each.
    slower = CORES / parts["workers"]["ratios"]["two workers / one"]["median"]
    curve: dict[str, Any] = {"workers": [1, 2, 4, 8, 16, 32, 64], "seconds": {}, "base": base, "slower": slower}
    for seeds in (1, 3, SEEDS):
        local, far = (batch(seeds, PAPER_GRID, pace * tilt, pace * base) for pace in (slower, 1.0))
        curve["seconds"][str(seeds)] = [
            makespan(local, w, each=slower * costs["each"], startup=costs["startup"]["local"])
            if w == CORES
            else makespan(far, w, each=costs["each"], startup=costs["startup"]["local" if w == 1 else "Dask"])
            for w in curve["workers"]
        ]
    small = {"base": (0.0, None)} | {f"cell {i}": (0.0, "base") for i in range(1, costs["cells"])}
    curve["model"] = {}
    for name, run in costs["runs"].items():
        number = int(name.rpartition(", ")[2])
        each = costs["each"] * (slower if number == CORES else 1.0)
        curve["model"][name] = makespan(small, number, each=each, startup=run["again"])
    curve["chain"] = base + max(PAPER_GRID) * tilt + 2 * costs["each"]
    return curve


# ---- imports, what was tried, a GPU, the book ------------------------------------------------------------------------


def imports() -> Part:
    """Starting Python with torch, and with the whole of itlib but its guests, in turns; wall time."""
    codes = {"torch": "import torch", "itlib": "import " + ", ".join(IMPORTED)}
    works = {
        name: (lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)) for name, code in codes.items()
    }
    spent = in_turns(works, 7, clock=time.perf_counter)
    extra = [a - b for a, b in zip(spent["itlib"], spent["torch"], strict=True)]
    return {
        "ratios": {"import itlib / import torch": ratio(spent["itlib"], spent["torch"], "low")},
        "absolute": {
            "import itlib, beyond import torch": absolute(extra, "s", target=0.2),
            "import torch": absolute(spent["torch"], "s"),
        },
        "found": {},
    }


def attempts() -> Part:
    """The profile, and what was tried."""
    network = trained("smoke")
    rows = torch.randn(B, 2), torch.rand(B), torch.randn(B, 2)
    student = copy.deepcopy(network)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-7, fused=True)

    def train() -> None:
        for _ in range(50):
            regression_step(student, optimizer, *rows)

    plain = Plain(network)
    profiles = {
        "sampling, textbook": tried.profiled(lambda: textbook_sample(plain, SCHEDULE, S, 50, seeded())),
        "sampling, itlib": tried.profiled(lambda: sample(network, SCHEDULE, S, steps=50, generator=seeded())),
        "training, itlib": tried.profiled(train),
    }
    found = {
        "profiles": profiles,
        "sampling": tried.sampling_variants(network),
        "training": tried.training_variants(network),
    }
    return {"ratios": {}, "absolute": {}, "found": found}


def gpu() -> Part:
    """Absolute times of the same code on a GPU, where there is one, and on one core beside it; nothing depends on them."""
    if not torch.cuda.is_available():
        return {"ratios": {}, "absolute": {}, "found": {}}
    works: dict[str, Callable[[], object]] = {}
    for place, device in (("GPU", "cuda"), ("one core", "cpu")):
        for name in ("paper", "recommended"):
            base = copy.deepcopy(trained("smoke", name)).to(device)
            if name == "paper":
                run = iterative_tilting(base, parse_reward("paper"), SCHEDULE, TiltingConfig(N=100, lr=1e-6))
            else:
                config = RecommendedConfig(target_ess=None, N=100, lr=1e-6)
                run = recommended_tilting(base, parse_reward("paper"), SCHEDULE, config)
            works[f"a tilt of {name}: {place}"] = lambda run=run: next(run)
        network = copy.deepcopy(trained("smoke")).to(device)
        for n in (1000, 10_000, 100_000, 1_000_000)[: None if device == "cuda" else 2]:
            works[f"{n:,} samples: {place}"] = lambda network=network, n=n: sample(
                network, SCHEDULE, n, steps=J, generator=seeded()
            )
            if device == "cuda":
                works[f"{n:,} samples: GPU, noise drawn there"] = lambda network=network, n=n: sample(
                    network, SCHEDULE, n, steps=J, generator=torch.Generator("cuda").manual_seed(0)
                )

    def complete(work: Callable[[], object]) -> Callable[[], object]:
        def done() -> None:
            work()
            torch.cuda.synchronize()

        return done

    spent = in_turns({name: complete(work) for name, work in works.items()}, 3, clock=time.perf_counter)
    figures = {name: absolute(values, "s") for name, values in spent.items()}
    return {"ratios": {}, "absolute": figures, "found": {"device": torch.cuda.get_device_name(), "steps": J}}


def book(full: bool = False) -> Part:
    """Building the book in a fresh clone: from nothing, and again when nothing has changed; wall time."""
    place = Path(tempfile.mkdtemp(prefix="itlib-book-"))
    clone, figures = place / "clone", dict[str, Any]()
    # Neither what this make was told nor a cache that is warm already.
    told = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ITLIB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in told}

    def make(*what: str) -> float:
        start = time.perf_counter()
        done = subprocess.run(
            ["make", "-C", str(clone), *what], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"make {' '.join(what)} failed: {(done.stdout + done.stderr).strip()[-1000:]}")
        return time.perf_counter() - start

    try:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        make(".venv/.ready")
        for name, target in (("smoke", 3.0), ("full", 15.0)) if full else (("smoke", 3.0),):
            make("clean")
            figures[f"make book, {name}"] = absolute([make("book", f"PROFILE={name}") / 60], "min", target=target)
            again = [make("book", f"PROFILE={name}") for _ in range(3)]
            figures[f"make book again, {name}"] = absolute(again, "s", target=5.0)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {"ratios": {}, "absolute": figures, "found": {}}
