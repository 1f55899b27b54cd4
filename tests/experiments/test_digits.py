"""The comparison on the digits: equal evaluations, gradients where a method says so, a distance with a zero, its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from itlib.baselines.accounting import BaselineStep, Counts
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.digits import base, truth
from itlib.experiments.digits import methods as comparison
from itlib.experiments.digits.images import IMAGE_PROBLEMS, ImageProblem, new_denoiser, strongest, symmetry_reward
from itlib.experiments.digits.methods import (
    EVALUATIONS,
    METHODS,
    Setting,
    differentiable,
    implicit,
    paper,
    path_card,
    recommended,
)
from itlib.experiments.experiment import Record
from itlib.experiments.methods import fine_tune
from itlib.experiments.records import load_record, load_records, save_record
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.network import Residual
from itlib.rewards import ForwardOnly, parse_reward
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "book" / "reference" / "digits"


TRAINED = [name for name, method in METHODS.items() if method.train]


@pytest.fixture
def setting(cosine: Cosine, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """Few evaluations of a black box that refuses gradients, with an untrained base and short walks."""
    monkeypatch.setattr(comparison, "J", 6)
    for tilting in (iterative_tilting, recommended_tilting):
        monkeypatch.setattr(
            comparison,
            tilting.__name__,
            lambda base, reward, schedule, config, tilting=tilting, **more: tilting(
                base, reward, schedule, replace(config, E=4), **more
            ),
        )
    black = ImageProblem(ForwardOnly(symmetry_reward), 2.0, (2.0,))
    monkeypatch.setattr(comparison, "surrogate", lambda reward, x, seed: symmetry_reward if len(reward(x)) else None)
    return Setting(new_denoiser(cosine), black, cosine, 320, "rewards", 1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_spends_its_evaluations_and_no_gradient(name: str, setting: Setting) -> None:
    before = {key: value.clone() for key, value in setting.base.state_dict().items()}
    *_, last = fine_tune(METHODS[name], setting)
    assert last.counts.reward <= 320
    assert last.counts.reward > 160 or name.startswith(("implicit", "recommended"))  # whose strength may be reached earlier
    assert METHODS[name].gradient == (last.counts.reward_gradient > 0)
    assert all(torch.equal(value, before[key]) for key, value in setting.base.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
def test_the_strength_of_the_task_reaches_every_method(name: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    for function in ("iterative_tilting", "recommended_tilting", "policy_gradient", "draft", "adjoint_matching"):
        original = getattr(comparison, function)

        def spied(
            *arguments: Any, original: Callable[..., Iterator[BaselineStep]] = original, **more: Any
        ) -> Iterator[BaselineStep]:
            seen.append(arguments[3].lam)
            return original(*arguments, **more)

        monkeypatch.setattr(comparison, function, spied)
    next(fine_tune(METHODS[name], setting))
    assert seen == [2.0]


def test_a_gradient_that_exists_costs_no_surrogate(setting: Setting) -> None:
    smooth = replace(setting.problem, reward=symmetry_reward, smooth=True)
    assert differentiable(setting)[1] == 320
    assert differentiable(replace(setting, problem=smooth)) == (symmetry_reward, 0)


def test_the_configurations_say_where_they_depart(setting: Setting) -> None:
    for config, default, changed in (
        (paper(setting), TiltingConfig(), {"N", "lam", "S", "J", "B", "lr"}),
        (
            implicit(setting),
            RecommendedConfig.like(TiltingConfig()),
            {"lam", "S", "J", "B", "lr", "E", "decay", "learner", "variance", "student", "target_ess"},
        ),
        (
            implicit(setting, "copy"),
            RecommendedConfig.like(TiltingConfig()),
            {"lam", "S", "J", "B", "lr", "E", "decay", "learner", "variance", "target_ess"},
        ),
        (recommended(setting), RecommendedConfig(), {"lam", "S", "J", "lr", "E"}),
    ):
        departs = {key for key, value in vars(config).items() if value != vars(default)[key]}
        assert departs <= changed, (default, departs)
    assert setting.budget == paper(setting).N * paper(setting).S


class Counted:
    """A method that only counts."""

    def __init__(self, per_step: int) -> None:
        self.per_step = per_step

    def __call__(self, s: Setting) -> Iterator[BaselineStep]:
        for k in range(1, 1000):
            yield BaselineStep(k, s.base, 0.0, Counts(reward=k * self.per_step), 0.0)


def test_a_method_ends_with_its_evaluations(setting: Setting) -> None:
    steps = list(fine_tune(replace(METHODS["paper"], train=Counted(100)), setting))
    assert [s.counts.reward for s in steps] == [100, 200, 300, 400]


def test_the_distance_is_zero_for_the_exact_tilt_only(cosine: Cosine, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the paper's task all is known, log Z = 4 too. Discrete steps leave a little, the base all of its KL."""
    mixture = paper_mixture()

    def reward(x: Tensor) -> Tensor:
        return 4.0 * x[:, 1]

    monkeypatch.setattr(comparison, "J", 200)
    target = mixture.tilted(parse_reward("paper"))
    plain, tilt = ExactNoisePredictor(mixture, cosine), ExactNoisePredictor(target, cosine)
    one = Setting(plain, ImageProblem(reward, 1.0, (1.0,), d=2), cosine, 320)
    x, exact = path_card(tilt, one, 4000, torch.Generator().manual_seed(0))
    _, same = path_card(plain, one, 4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, 2)
    assert exact["distance"] + 4.0 == pytest.approx(0.0, abs=0.25)
    assert exact["path_kl"] > 3.0
    assert exact["distance"] == pytest.approx(exact["path_kl"] - exact["mean_reward"], rel=1e-4)
    assert same["path_kl"] == 0.0
    assert same["distance"] + 4.0 == pytest.approx(4.0, abs=5 * same["distance_se"])
    assert exact["mean_reward"] == pytest.approx(8.0, abs=0.2)
    assert exact["ess"] > 0.5 > 0.1 > same["ess"]


def test_path_weights_need_no_network(cosine: Cosine) -> None:
    """A student that is the base has no path KL: its weights are one."""
    plain = new_denoiser(cosine)
    one = Setting(plain, IMAGE_PROBLEMS["symmetry"], cosine, 320)
    _, card = path_card(plain, one, 20, torch.Generator().manual_seed(0))
    assert card["path_kl"] == 0.0
    assert isinstance(plain, Residual)


def test_strengths_follow_from_the_sweep() -> None:
    """Of seed 0."""
    found = {r.parameters.problem: r.curve for r in load_records(REFERENCE, truth.Parameters) if r.parameters.seed == 0}
    assert set(found) == set(IMAGE_PROBLEMS)
    for name, curve in found.items():
        lams, shares = ([float(v or 0.0) for v in curve[key]] for key in ("lam", "ess"))
        assert tuple(lams) == IMAGE_PROBLEMS[name].sweep
        assert strongest(lams, shares) == IMAGE_PROBLEMS[name].lam
        assert all(math.isfinite(v or math.nan) for v in curve["log_z"])
        assert min(v or 0.0 for v in curve["kl"]) >= 0


def test_records_are_whole() -> None:
    """Every method of every reward, of as many seeds, with the evaluations that the code says; and one base."""
    for module in (comparison, truth):
        records: list[Record[Any]] = load_records(REFERENCE, module.Parameters)
        grid = module.cells(sorted({r.parameters.seed for r in records}))
        assert {stem: load_record(REFERENCE / f"{stem}.json").parameters for stem in grid} == grid
        assert len(records) == len(grid)
    for record in load_records(REFERENCE, comparison.Parameters):
        assert record.failure or record["reward"] <= EVALUATIONS["full"]
    (one,) = load_records(REFERENCE, base.Parameters)
    assert one["base"]["parameters"] == sum(p.numel() for p in base.trained(REFERENCE, Cosine()).parameters())


def test_the_methods_start_from_the_base_of_their_folder(cosine: Cosine, tmp_path: Path) -> None:
    after = comparison.EXPERIMENT.after(comparison.Parameters(seed=2, profile="smoke"))
    assert after == {"base_seed0": base.Parameters(profile="smoke")}
    with pytest.raises(FileNotFoundError, match="--grid digits_base"):
        base.trained(tmp_path, cosine)


def test_a_base_leaves_its_weights_beside_its_record(tmp_path: Path) -> None:
    record = base.run(base.Parameters(profile="smoke"), tmp_path)
    assert not list(tmp_path.iterdir())
    save_record(tmp_path / "base_seed0.json", record)
    kept = base.trained(tmp_path, Cosine()).state_dict()
    assert all(torch.equal(value, record.tensors[name]) for name, value in kept.items())
    assert set(record.metrics) == {"base", "perceptron", "data"}


@pytest.mark.parametrize("method", ["best", "implicit", "draft"])
def test_a_run_leaves_a_record_of_its_method(method: str) -> None:
    asked = comparison.Parameters(problem="symmetry", method=method, profile="smoke")
    record = comparison.run(asked, REFERENCE)
    assert record.parameters == asked
    assert (record["reward"] or record["reward_gradient"]) <= EVALUATIONS["smoke"]
    assert len(record.samples) == 16
    assert bool(record.curve) == (method != "best")


def test_names_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no problem 'colour': choose from class, symmetry, hole"):
        comparison.Parameters(problem="colour")
    with pytest.raises(ValueError, match="no method 'ppo': choose from best, paper"):
        comparison.Parameters(method="ppo")
