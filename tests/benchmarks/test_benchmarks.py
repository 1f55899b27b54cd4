"""What the benchmarks make of times, and that what is timed side by side computes the same. Nothing here is timed."""

from __future__ import annotations

import copy
import json
import math
from importlib.util import find_spec
from pathlib import Path

import bench
import clocks
import pytest
import torch
from fast import multistep, sliced_distance, sorted_projections
from judging import batch, exponent, judged, makespan, met, ratio, regressions, spread, worse_by
from parts import IMPORTED, beyond
from published import Plain, diffusers_sample, textbook_sample, textbook_tilt
from tried import OneDNN, Packed, Stack, Variant, step_by_hand

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import Regression, Tilt, TiltingConfig
from itlib.training import regression_step

ROOT = Path(__file__).parents[2]

# What is made of times


def test_spread() -> None:
    assert spread([3.0]) == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert spread([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_a_ratio_is_taken_turn_by_turn() -> None:
    """A machine that slows down by three in one turn leaves every ratio as it is."""
    found = ratio([2.0, 6.0, 2.0], [1.0, 3.0, 1.0], target=1.5)
    assert found == {"median": 2.0, "low": 2.0, "high": 2.0, "better": "high", "target": 1.5}


@pytest.mark.parametrize(
    ("value", "better", "reached"), [(2, "high", True), (1, "high", False), (1, "low", True), (2, "low", False)]
)
def test_met(value: float, better: str, reached: bool) -> None:
    assert met(judged([value], better, 1.5)) is reached
    assert met(judged([value], better))


def record(**ratios: dict[str, object]) -> dict[str, object]:
    """A record of one part."""
    return {"parts": {"sampling": {"ratios": ratios}}}


def test_worse_counts_in_the_direction_that_matters() -> None:
    assert worse_by(judged([3.0]), judged([2.0])) == pytest.approx(0.5)
    assert worse_by(judged([2.0], "low"), judged([3.0], "low")) == pytest.approx(0.5)
    assert worse_by(judged([2.0]), judged([3.0])) < 0


@pytest.mark.parametrize(
    ("before", "after", "better", "reported"),
    [
        (2.0, 1.7, "high", False),  # 18 %
        (2.0, 1.6, "high", True),  # 25 %
        (2.0, 9.0, "high", False),
        (1.0, 1.19, "low", False),
        (1.0, 1.21, "low", True),
        (1.0, 0.1, "low", False),
    ],
)
def test_regressions_of_more_than_a_fifth_are_reported(before: float, after: float, better: str, reported: bool) -> None:
    sentences = regressions(record(speed=judged([before], better)), record(speed=judged([after], better)))
    assert bool(sentences) is reported
    if reported:
        assert "sampling: 'speed'" in sentences[0]
        assert f"committed {before:.3g}" in sentences[0]


def test_a_ratio_that_is_gone_is_reported_and_a_part_that_was_not_asked_for_is_not() -> None:
    old = record(speed=judged([2.0]))
    assert regressions(old, record(other=judged([2.0]))) == ["sampling: 'speed' is no longer measured"]
    assert regressions(old, {"parts": {}}) == []
    assert regressions({"parts": {}}, old) == []


def test_exponent_of_a_power_law() -> None:
    x = [2.0, 10.0, 100.0, 1000.0]
    found = exponent(x, [3.0 * v**1.5 for v in x])
    assert found["exponent"] == pytest.approx(1.5, abs=1e-12)
    assert found["error"] < 1e-10
    with pytest.raises(ValueError, match="three points"):
        exponent([1, 2], [1, 2])


def test_the_error_of_an_exponent_is_that_of_a_slope() -> None:
    """Of many noisy fits the exponents scatter as the errors say."""
    generator = torch.Generator().manual_seed(0)
    x = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    noise = (0.1 * torch.randn(2000, len(x), generator=generator, dtype=torch.float64)).exp().tolist()
    fits = [exponent(x, [v * e for v, e in zip(x, row, strict=True)]) for row in noise]
    scatter = float(torch.tensor([f["exponent"] for f in fits], dtype=torch.float64).std())
    root_mean_square = math.sqrt(sum(f["error"] ** 2 for f in fits) / len(fits))
    assert root_mean_square == pytest.approx(scatter, rel=0.07)  # 2000 draws: 1.6 % of a deviation, and 1.6 % of the errors


# The model of a cluster


def test_one_worker_does_all_after_another() -> None:
    cells = batch(2, (20, 50), per_tilt=2.0, base=10.0)
    assert makespan(cells, 1, each=3.0, startup=5.0) == pytest.approx(5 + 2 * (10 + 40 + 100) + 6 * 3)


def test_many_workers_wait_for_the_longest_chain() -> None:
    cells = batch(4, (20, 50, 100, 200), per_tilt=1.0, base=60.0)
    assert makespan(cells, 100, each=1.0) == pytest.approx(60 + 200 + 2)


def test_the_longest_goes_first_and_nobody_starts_before_its_base() -> None:
    cells: dict[str, tuple[float, str | None]] = {
        "base": (4.0, None),
        "long": (6.0, "base"),
        "a": (3.0, "base"),
        "b": (3.0, "base"),
    }
    assert makespan(cells, 2) == pytest.approx(10.0)
    assert makespan(cells | {"free": (5.0, None)}, 2) == pytest.approx(11.0)  # 4, 6 | 5, 3, 3


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8])
def test_the_makespan_lies_between_its_bounds(workers: int) -> None:
    """Any greedy rule is at most twice the larger of mean load and longest chain (Graham)."""
    cells = batch(3, (20, 50, 100, 200), per_tilt=0.7, base=50.0)
    total, chain = sum(work for work, _ in cells.values()), 50.0 + 140.0
    found = makespan(cells, workers)
    assert max(total / workers, chain) <= found + 1e-9
    assert found <= total / workers + chain


def test_what_lies_beyond_this_machine() -> None:
    """A base of 60 tilts and the grid: on one worker the sum, on many the longest chain; two here slow each other down."""
    tilt = {name: {"median": 1.0 / 3} for name in ("sampling", "training", "trace")}
    costs = {
        "each": 2.0,
        "cells": 3,
        "startup": {"local": 5.0, "Dask": 7.0},
        "runs": {"local, 1": {"again": 5.0}, "Dask, 2": {"again": 7.0}},
    }
    found = beyond(
        {
            "grid": {"found": {"seconds of a tilt": tilt, "committed": {"a base, in tilts": 60.0}}},
            "workers": {"ratios": {"two workers / one": {"median": 1.6}}},
            "cluster": {"found": costs},
        }
    )
    minutes = dict(zip(found["workers"], found["seconds"]["1"], strict=True))
    assert minutes[1] == pytest.approx(5 + 60 + 370 + 5 * 2)
    assert minutes[2] == pytest.approx(5 + 2 / 1.6 * (62 + 202))
    assert minutes[64] == pytest.approx(7 + found["chain"])
    assert found["chain"] == pytest.approx(60 + 200 + 2 * 2)
    assert found["model"] == pytest.approx({"local, 1": 5 + 3 * 2, "Dask, 2": 7 + 2 / 1.6 * 2 * 2})


# What is timed side by side computes the same


@pytest.fixture
def network() -> Network:
    return Network(2, width=32, depth=3, embedding=16)


def test_the_network_as_usually_written_is_the_same_function(network: Network) -> None:
    x, t = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 1, 50)
    with torch.no_grad():
        torch.testing.assert_close(Plain(network)(x, t), network(x, t), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["textbook", "DDPMScheduler", "DDIMScheduler"])
def test_samplers_draw_the_same_samples(network: Network, cosine: Cosine, name: str) -> None:
    """From the same noise, in single precision, over steps that multiply by up to 1 / alpha at the start."""
    ours = sample(network, cosine, 64, steps=12, generator=torch.Generator().manual_seed(1))
    generator, plain = torch.Generator().manual_seed(1), Plain(network)
    if name == "textbook":
        theirs = textbook_sample(plain, cosine, 64, 12, generator)
    else:
        theirs = diffusers_sample(plain, cosine, 64, 12, generator, name)
    assert float((ours - theirs).abs().max()) < 1e-4 * float(ours.abs().max())


def test_the_textbooks_training_step_has_the_same_gradient(network: Network, cosine: Cosine) -> None:
    """Line by line as printed, and as itlib computes it: one epoch, with the same draws in the same order."""
    generator = torch.Generator().manual_seed(2)
    data, rewards = torch.randn(40, 2, generator=generator), torch.randn(40, generator=generator)
    plain, student = Plain(network), copy.deepcopy(network)
    config = TiltingConfig(S=40, B=16, E=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        textbook_tilt(plain, data, rewards, cosine, 0.1, 1, 16)
    tilt = Tilt(1, data, rewards, 0.1, 0.1)
    Regression(student, cosine, config).learn(tilt, torch.Generator().manual_seed(3))
    first = plain.layers[0].weight.grad
    assert first is not None
    torch.testing.assert_close(first[:, :2], student.space.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(first[:, 2:], student.time.weight.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(plain.layers[-1].bias.grad, student.output.bias.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.skipif("oneDNN" not in clocks.LIBRARIES, reason="torch without oneDNN")
def test_what_was_tried_is_the_same_function(network: Network) -> None:
    x, t = torch.randn(20, 2, generator=torch.Generator().manual_seed(4)), torch.tensor(0.3)
    with torch.no_grad():
        expected = network(x, t)
        for other in (
            Variant(network),
            Variant(network, hoist=False),
            Variant(network, fuse=False, inplace=False),
            Packed(network, 20),
        ):
            torch.testing.assert_close(other(x, t), expected, rtol=0, atol=1e-5)
    own, other_network = copy.deepcopy(network), copy.deepcopy(network)
    for module in (own, OneDNN(other_network)):
        module(x, t).square().sum().backward()
    for a, b in zip(own.parameters(), other_network.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    times, target = torch.rand(20), torch.zeros(20, 2)
    losses = []
    for step, module in ((regression_step, own), (step_by_hand, other_network)):
        losses.append(step(module, torch.optim.SGD(module.parameters(), lr=1e-3), x, times, target))
    torch.testing.assert_close(*losses)
    for a, b in zip(own.parameters(), other_network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_a_stack_learns_what_its_networks_learn(count: int) -> None:
    """Each from its own data: predictions, losses, and weights after two steps, whatever company it has."""
    networks = [Network(2, width=16, depth=3, embedding=8, seed=seed) for seed in range(count)]
    generator = torch.Generator().manual_seed(0)
    x, target = torch.randn(2, count, 7, 2, generator=generator)
    t = torch.rand(count, 7, generator=generator)
    stack = Stack(networks)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    losses = [stack.step(optimizer, x, t, target) for _ in range(2)]
    for i, network in enumerate(networks):
        own = torch.optim.SGD(network.parameters(), lr=0.1)
        found = [regression_step(network, own, x[i], t[i], target[i]) for _ in range(2)]
        torch.testing.assert_close(torch.stack(found), torch.stack(losses)[:, i])
        layers = (network.space, *network.hidden, network.output)
        for weight, bias, layer in zip(stack.weights, stack.biases, layers, strict=True):
            torch.testing.assert_close(weight[i], layer.weight)
            torch.testing.assert_close(bias[i, 0], layer.bias)
        torch.testing.assert_close(stack.time[i], network.time.weight)
        with torch.no_grad():
            torch.testing.assert_close(stack(x, torch.tensor(0.3))[i], network(x[i], torch.tensor(0.3)))


@pytest.mark.parametrize("library", [*clocks.LIBRARIES, "with SiLU"])
def test_products_count_their_operations(library: str) -> None:
    work, operations = clocks.products(library, 8, 3)
    work()
    assert operations == 3 * 2 * 8 * 256 * 256
    assert clocks.products(library, 8, 3, training=True)[1] == 3 * operations


def test_turns_go_back_and_forth() -> None:
    order: list[str] = []
    spent = clocks.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, warm=False)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(values) for name, values in spent.items()} == {"a": 3, "b": 3}


def test_peak_sees_what_is_held_at_once() -> None:
    found = clocks.peak(lambda: torch.ones(32, 2**20))
    assert found is None or 127 < found < 140  # MiB


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers
def test_the_fast_sampler_and_its_distance(paper: GaussianMixture, cosine: Cosine) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = sorted_projections(paper.sample(40_000, generator))
    draws = {
        steps: multistep(
            ExactNoisePredictor(paper, cosine), cosine, torch.randn(2000, 2, generator=generator).double(), steps
        )
        for steps in (4, 24)
    }
    assert sliced_distance(draws[4], exact) > 2 * sliced_distance(draws[24], exact)
    assert sliced_distance(draws[24], exact) < 0.06  # exact samples, this many: 0.03


# The command


def test_the_command_records_compares_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speed, runs, kind = 2.0, 0, "one"
    made = {"versions": {}, "commit": "0", "content": "0", "platform": "here"}

    def part() -> dict[str, dict[str, object]]:
        """Stands in for a measurement."""
        nonlocal runs
        runs += 1
        return {"ratios": {"speed": judged([speed], target=1.9)}, "absolute": {}, "found": {}}

    monkeypatch.setattr(bench, "PARTS", {"sampling": part, "training": part})
    monkeypatch.setattr(bench, "provenance", lambda module: {**made, "processor": kind})
    monkeypatch.setattr(bench, "COMMITTED", tmp_path / "committed.json")
    monkeypatch.setattr(bench, "FOUND", tmp_path / "found.json")
    assert bench.main(["--record"]) == 0
    speed = 1.8
    assert bench.main(["--only", "sampling"]) == 0
    assert "MISSED" in capsys.readouterr().out
    speed = 1.5
    assert bench.main(["--resume"]) == 1  # of sampling it keeps what it has
    said = capsys.readouterr().out
    assert "training: 'speed' is worse by 33%" in said
    assert "sampling: 'speed'" not in said
    assert runs == 4
    records = [json.loads((tmp_path / name).read_text())["processors"] for name in ("committed.json", "found.json")]
    assert [r["one"]["parts"]["training"]["ratios"]["speed"]["median"] for r in records] == [2.0, 1.5]
    # On another kind of processor: nothing is compared, and what was recorded of the first stays.
    kind = "two"
    assert bench.main([]) == 0
    said = capsys.readouterr().out
    assert said.endswith("Nothing is committed of this kind of processor, two, to compare with: sampling, training\n")
    assert bench.main(["--only", "training", "--record"]) == 0
    kinds = json.loads((tmp_path / "committed.json").read_text())["processors"]
    assert kinds["one"] == records[0]["one"]
    assert list(kinds["two"]["parts"]) == ["training"]
    speed = 1.0
    assert bench.main(["--only", "training"]) == 1
    assert "committed 1.5" in capsys.readouterr().out


# The committed record


def test_the_committed_record_is_whole() -> None:
    processors = json.loads((ROOT / "book" / "bench.json").read_text())["processors"]
    for kind, committed in processors.items():
        for part in committed["parts"].values():
            assert {"commit", "versions", "platform"} <= set(part["made"])
            assert part["made"]["processor"] == kind
            for found in (*part["ratios"].values(), *part["absolute"].values()):
                assert found["low"] <= found["median"] <= found["high"]
            assert all("unit" in found for found in part["absolute"].values())
        assert regressions(committed, committed) == []
    shown = max(processors.values(), key=lambda record: len(record["parts"]))
    assert {name for name in bench.NAMES if name != "gpu"} <= set(shown["parts"])
    assert {"seconds", "model", "chain"} <= set(shown["beyond"])


def test_what_is_imported_is_there() -> None:
    assert all(find_spec(name) for name in IMPORTED)
