"""Runs that survive: killed anywhere, they end with the same bits; damaged, they say so; changed, they start anew."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from itlib import tilting
from itlib.beyond.chains import TrainableCopy
from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments import checkpoints as runs
from itlib.experiments.checkpoints import (
    RunState,
    default_cache,
    load_state,
    profile,
    resumable_base,
    resumable_tilting,
    save_state,
)
from itlib.experiments.files import DamagedFileError
from itlib.gaussian_mixture import paper_mixture
from itlib.metrics import ScoreErrors
from itlib.network import Network
from itlib.rewards import parse_reward
from itlib.schedules import Cosine, Linear
from itlib.tilting import TiltingConfig
from itlib.training import TrainingConfig

CONFIG = TiltingConfig(N=6, S=64, J=5, E=3, B=32, lr=1e-4)
TRAINING = TrainingConfig(epochs=3, batch_size=128)

#: Where a run is killed, and at which call of that function; what is then found on disk: None, or the tilts done.
DEATHS: list[tuple[str, int, int | None]] = [
    ("in a step of the base", 6, None),
    ("before a file is moved", 3, 1),  # base and tilt 1 are in place, tilt 2 is whole but beside its place
    ("in a step of a tilt", 5, 2),  # in the middle of tilt 3
    ("while a file is written", 2, 3),  # tilt 3 is in place, half of tilt 4 is written
    ("between tilts", 2, 4),  # the first call tells what was found
    ("in the trace", 1, 4),
]

#: Runs base and tilts, once for each death, each time in a process of its own that kills itself.
SCRIPT = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import itlib.experiments.files, itlib.experiments.checkpoints, itlib.tilting, itlib.training
import test_checkpoints

cache = test_checkpoints.Path(sys.argv[2])
places = {
    "before a file is moved": (itlib.experiments.files.os, "replace"),
    "while a file is written": (test_checkpoints.Path, "write_bytes"),
    "in a step of the base": (itlib.training, "regression_step"),
    "in a step of a tilt": (itlib.tilting, "regression_step"),
    "in the trace": (itlib.experiments.checkpoints, "score_errors"),
    "between tilts": (itlib.experiments.checkpoints, "_announce"),
}

def run_and_die(where, count):
    module, name = places[where]
    original = getattr(module, name)
    calls = 0

    def deadly(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            if where == "while a file is written":
                with open(arguments[0], "wb") as file:
                    file.write(arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(module, name, deadly)
    test_checkpoints.run(cache)

for where, count, _ in test_checkpoints.DEATHS:
    child = os.fork()
    if not child:
        try:
            run_and_die(where, count)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), where + ": it was not killed"
    checkpoints = itlib.experiments.checkpoints
    found = [checkpoints.load_state(path, checkpoints.Network(2)).done for path in cache.glob("tilts_*.safetensors")]
    print(json.dumps(found))
"""


def run(cache: Path) -> tuple[list[RunState], list[RunState]]:
    mixture, schedule = paper_mixture(), Cosine()
    # The training yields one state that changes; its copies keep what it was.
    base = [dataclasses.replace(s) for s in resumable_base(mixture, schedule, TRAINING, n=500, seed=1, cache=cache)]
    tilts = resumable_tilting(
        base[-1].model, mixture, parse_reward("paper"), schedule, CONFIG, seed=1, trace_samples=200, cache=cache
    )
    return base, list(tilts)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunState], list[RunState]]:
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("whole")
    return cache, *run(cache)


def assert_same(one: RunState, two: RunState) -> None:
    assert (one.done, one.total, one.trace, one.losses) == (two.done, two.total, two.trace, two.losses)
    weights, others = one.model.state_dict(), two.model.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    if one.halfway is None or two.halfway is None:
        assert one.halfway is two.halfway
    else:
        assert torch.equal(one.halfway, two.halfway)


def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, whole: tuple[Path, list[RunState], list[RunState]]
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert found == [[] if done is None else [done] for _, _, done in DEATHS]
    base, tilts = run(tmp_path)
    assert [state.done for state in tilts] == [4, 5, 6]
    assert len(base) == 1
    assert_same(base[0], whole[1][-1])
    assert_same(tilts[-1], whole[2][-1])
    files = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (tmp_path, whole[0])]
    assert files[0] == files[1]
    for name in files[0]:
        one, two = (safetensors.torch.load_file(folder / name) for folder in (tmp_path, whole[0]))
        assert all(torch.equal(one[key], two[key]) for key in two)


def test_a_run_yields_a_state_per_tilt(whole: tuple[Path, list[RunState], list[RunState]]) -> None:
    _, base, tilts = whole
    assert [state.done for state in base] == [1, 2, 3]
    assert [state.done for state in tilts] == [1, 2, 3, 4, 5, 6]
    assert [len(state.trace) for state in tilts] == [1, 2, 3, 4, 5, 6]
    assert [state.halfway is None for state in tilts] == [True] * 3 + [False] * 3
    assert set(tilts[-1].seconds) == {"sampling", "training", "trace"}
    assert all(value > 0 for value in tilts[-1].seconds.values())
    assert tilts[-1].seconds["sampling"] >= tilts[-2].seconds["sampling"]


def test_a_finished_run_is_found(
    whole: tuple[Path, list[RunState], list[RunState]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished run is repeated")

    monkeypatch.setattr(tilting, "regression_step", never)
    monkeypatch.setattr(runs, "train_noise_predictor", never)
    (base,), (tilts,) = run(whole[0])
    assert_same(base, whole[1][-1])
    assert_same(tilts, whole[2][-1])
    assert tilts.seconds == whole[2][-1].seconds


@pytest.mark.parametrize("kind", ["base", "tilts"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_sentence(
    tmp_path: Path, whole: tuple[Path, list[RunState], list[RunState]], kind: str, share: float
) -> None:
    for path in whole[0].glob("*.safetensors"):
        content = path.read_bytes()
        damaged = path.name.startswith(kind)
        (tmp_path / path.name).write_bytes(content[: int(share * len(content))] if damaged else content)
    with pytest.raises(DamagedFileError) as caught:
        run(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / kind))
    assert str(caught.value).endswith("is truncated or not a checkpoint: delete it, and the run starts anew")


@pytest.mark.parametrize(
    "content",
    [
        safetensors.torch.save({"theta.x": torch.zeros(1)}),
        safetensors.torch.save({"theta.x": torch.zeros(1)}, {"notes": "{}"}),
        safetensors.torch.save({"theta.x": torch.zeros(1)}, {"notes": "not JSON"}),
        safetensors.torch.save({f"theta.{k}": v for k, v in Network(2).state_dict().items()}, {"notes": '{"done": 1}'}),
        safetensors.torch.save({f"theta.{k}": v for k, v in Network(2).state_dict().items()}, {"notes": "[1]"}),
        b"\x80\x04\x95pickled",
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"x\.safetensors is truncated or not a checkpoint: delete it"):
        load_state(tmp_path / "x.safetensors", Network(2))


def test_a_recommended_run_resumes_with_the_same_bits(tmp_path: Path) -> None:
    """Skip base, adapter and chosen steps: stopped after two tilts, and gone on with from the disk."""
    mixture, schedule = paper_mixture(), Cosine()
    config = RecommendedConfig(S=200, J=20, lam=0.5)

    def tilts(cache: Path) -> Iterator[RunState]:
        *_, base = resumable_base(mixture, schedule, TRAINING, n=500, seed=1, kind="skip", cache=cache)
        yield from resumable_tilting(
            base.model, mixture, parse_reward("paper"), schedule, config, seed=1, trace_samples=200, cache=cache
        )

    whole = list(tilts(tmp_path / "whole"))
    assert len(whole) >= 4
    assert whole[-1].done == whole[-1].total
    assert whole[-1].strengths[-1] == pytest.approx(0.5, rel=1e-9)
    for i, stop in enumerate((2, len(whole) - 1)):  # among the tilts, and while it settles
        list(itertools.islice(tilts(tmp_path / f"parts{i}"), stop))
        found, *rest = tilts(tmp_path / f"parts{i}")
        assert found.done == stop
        assert [state.done for state in rest] == [state.done for state in whole[stop:]]
        assert_same(rest[-1], whole[-1])


def test_a_state_survives_the_disk(tmp_path: Path) -> None:
    state = RunState(
        3, 7, Network(2, seed=5), [0.1, 1 / 3], [1e-30], [0.7], {"sampling": 0.1 + 0.2, "training": 0.0}, torch.ones(4, 2)
    )
    save_state(tmp_path / "x.safetensors", state)
    found = load_state(tmp_path / "x.safetensors", Network(2))
    assert_same(found, state)
    assert found.seconds == state.seconds


def test_the_key_sees_everything_that_changes_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    original = runs._key

    def remembered(*parts: Any) -> str:
        keys.append(original(*parts))
        return keys[-1]

    monkeypatch.setattr(runs, "_key", remembered)
    monkeypatch.setattr(runs, "iterative_tilting", lambda *_, **__: iter(()))
    monkeypatch.setattr(runs, "recommended_tilting", lambda *_, **__: iter(()))
    monkeypatch.setattr(runs, "train_noise_predictor", lambda *_, **__: iter(()))
    mixture, shifted = paper_mixture(), paper_mixture().tilted(parse_reward("unequal"))
    network = Network(2, seed=0)

    def key(
        base: Network = network,
        reward: str = "paper",
        schedule: Any = Cosine(),  # noqa: B008
        seed: int = 0,
        n: int = 9,
        mixture: Any = mixture,
        **knobs: Any,
    ) -> str:
        if "polish_rounds" in knobs:
            knobs |= {"learner": "chains", "student": "adapter"}
        config = RecommendedConfig.like(CONFIG, **knobs)
        options = {"seed": seed, "trace_samples": n, "cache": tmp_path}
        list(resumable_tilting(base, mixture, parse_reward(reward), schedule, config, **options))
        return keys[-1]

    changed: dict[str, Any] = {"N": 7, "lam": 0.5, "S": 65, "J": 6, "eta": 0.5, "B": 31, "E": 4, "lr": 2e-4}
    changed |= {"epoch": "pass", "optimizer": "sgd", "decay": True, "learner": "implicit", "variance": "analytic"}
    changed |= {"student": "adapter", "target_ess": 0.9, "polish_rounds": 1, "pilot": 50}
    assert set(changed) == {field.name for field in dataclasses.fields(RecommendedConfig)}
    variants = [{}, *({name: value} for name, value in changed.items()), {"reward": "unequal"}, {"reward": "b=0,4 c=1"}]
    variants += [{"schedule": Linear()}, {"schedule": Cosine(0.01)}, {"seed": 1}, {"n": 10}, {"base": Network(2, seed=1)}]
    variants += [{"mixture": shifted}]
    assert len({key(**variant) for variant in variants}) == len(variants)
    assert key() == key(base=Network(2, seed=0))

    def base_key(mixture: Any = mixture, n: int = 100, seed: int = 0, kind: Any = "plain", **knobs: Any) -> str:
        training, cache = dataclasses.replace(TRAINING, **knobs), tmp_path / keys[-1]
        list(resumable_base(mixture, Cosine(), training, n=n, seed=seed, kind=kind, cache=cache))
        return keys[-1]

    knobs: dict[str, Any] = {"epochs": 4, "batch_size": 64, "lr": 1e-2, "patience": 3, "validation_fraction": 0.2}
    knobs |= {"predict": "x0", "averaging": 0.5}
    assert set(knobs) == {field.name for field in dataclasses.fields(TrainingConfig)}
    variants = [{}, *({name: value} for name, value in knobs.items()), {"n": 101}, {"seed": 1}, {"mixture": shifted}]
    variants += [{"kind": "skip"}, {"kind": "small"}, {"kind": "wide"}]
    assert len({base_key(**variant) for variant in variants}) == len(variants)

    before = key()
    monkeypatch.setattr(runs, "content", lambda module: "another state")
    assert key() != before


def test_a_watcher_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITLIB_PROGRESS", str(tmp_path / "progress"))
    base = resumable_base(paper_mixture(), Cosine(), TRAINING, n=500, cache=tmp_path)
    next(base)
    assert (tmp_path / "progress").read_text() == "base 1 3\n"
    tilts = resumable_tilting(
        Network(2), paper_mixture(), parse_reward("paper"), Cosine(), CONFIG, trace_samples=50, cache=tmp_path
    )
    next(tilts)
    next(tilts)
    assert (tmp_path / "progress").read_text() == "tilts 2 6\n"


def test_the_cache_is_where_it_is_told_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITLIB_CACHE", str(tmp_path / "here"))
    assert default_cache() == tmp_path / "here"
    monkeypatch.delenv("ITLIB_CACHE")
    assert default_cache() == Path(runs.__file__).parents[2] / "_build" / "cache"


def test_a_profile_bounds_the_work_of_a_configuration() -> None:
    full, smoke = profile("full"), profile("smoke")
    assert full.configured("paper", 50) == TiltingConfig(N=50)
    for N in (20, 200):
        assert full.configured("recommended", N) == RecommendedConfig.equal_steps(N)
    small = smoke.configured("recommended", 20)
    assert (small.S, small.J, small.learner) == (smoke.tilting.S, smoke.tilting.J, "chains")
    assert full.trained("paper") == {"config": TrainingConfig(), "n": 30_000}
    assert full.trained("recommended")["kind"] == "skip"


def test_an_unknown_profile_names_the_known_ones() -> None:
    assert profile("full").tilting == TiltingConfig()
    with pytest.raises(ValueError, match="no profile 'huge': choose from full, smoke"):
        profile("huge")


@pytest.mark.parametrize("where", ["weights", "score error"])
def test_a_run_that_diverges_stops_at_its_tilt_and_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A NaN in the third tilt, the last optimiser step's for instance, after which no loss is computed any more."""
    mixture, schedule = paper_mixture(), Cosine()

    def tilts() -> list[RunState]:
        reward, cache = parse_reward("paper"), tmp_path
        return list(resumable_tilting(Network(2), mixture, reward, schedule, CONFIG, trace_samples=50, cache=cache))

    with monkeypatch.context() as patch:
        calls = itertools.count(1)
        if where == "weights":
            original = tilting.regression_step

            def poisoned(network: Any, *arguments: Any) -> Any:
                loss = original(network, *arguments)
                if next(calls) == 3 * CONFIG.E:
                    with torch.no_grad():
                        network.output.bias.fill_(torch.nan)
                return loss

            patch.setattr(tilting, "regression_step", poisoned)
        else:
            patch.setattr(runs, "score_errors", lambda *_, **__: ScoreErrors(1.0, 1.0 if next(calls) < 3 else float("inf")))
        with pytest.raises(FloatingPointError, match=r"^tilt 3.*no longer finite\. .*lower the learning rate"):
            tilts()
    (path,) = tmp_path.glob("tilts_*")
    kept = load_state(path, Network(2))
    assert kept.done == 2
    assert all(bool(torch.isfinite(p).all()) for p in kept.model.parameters())
    assert [state.done for state in tilts()] == [2, 3, 4, 5, 6]


class Wrapper(nn.Module):
    """A network under the name that torch.compile, or data parallelism, gives it."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)


def test_names_of_wrappers_do_not_matter_and_another_network_is_no_reason_to_delete(tmp_path: Path) -> None:
    file = str(tmp_path / "x.safetensors")
    for name in ("_orig_mod", "module"):
        saved, found = Network(2, width=8, seed=1), Network(2, width=8, seed=2)
        save_state(file, RunState(1, 2, Wrapper(name, saved)))
        load_state(file, found)
        assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), found.parameters(), strict=True))
        load_state(file, Wrapper("module", found))
    for other in (TrainableCopy(Network(2, width=8)), Network(2, width=8, depth=2), Network(2, width=16)):
        with pytest.raises(DamagedFileError, match=r"is sound, but of .* keep it") as caught:
            load_state(file, other)
        assert "delete" not in str(caught.value)


def test_shared_and_half_precision_weights_are_kept(tmp_path: Path) -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    tied[1].weight = tied[0].weight
    save_state(tmp_path / "x.safetensors", RunState(1, 2, tied))
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    other[1].weight = other[0].weight
    load_state(tmp_path / "x.safetensors", other)
    assert torch.equal(other[1].weight, tied[0].weight)
    assert other[0].weight.dtype == torch.bfloat16
