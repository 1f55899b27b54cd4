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
from itlib.experiments.digits import comparison
from itlib.experiments.digits.comparison import (
    ASKED,
    EVALUATIONS,
    METHODS,
    J,
    Setting,
    differentiable,
    fine_tune,
    implicit,
    paper,
    path_card,
    recommended,
)
from itlib.experiments.digits.images import TASKS, Task, new_denoiser, strongest, symmetry_reward
from itlib.experiments.grids import DIGITS, GRIDS
from itlib.experiments.records import read_record, read_records
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.network import Residual
from itlib.reproduce.batch import parameters_of
from itlib.rewards import ForwardOnly, parse_reward
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "book" / "reference" / "digits"


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
    black = Task(ForwardOnly(symmetry_reward), 2.0, (2.0,))
    monkeypatch.setattr(comparison, "TASKS", {"black": black, "smooth": replace(black, reward=symmetry_reward, smooth=True)})
    monkeypatch.setattr(comparison, "surrogate", lambda reward, x, seed: symmetry_reward if len(reward(x)) else None)
    return Setting(new_denoiser(cosine), "black", cosine, 1e-4, evaluations=320)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_spends_its_evaluations_and_no_gradient(name: str, setting: Setting) -> None:
    before = {key: value.clone() for key, value in setting.base.state_dict().items()}
    *_, last = fine_tune(METHODS[name], setting)
    assert last.counts.reward <= 320
    assert last.counts.reward > 160 or name.startswith(("implicit", "recommended"))  # whose strength may be reached earlier
    assert METHODS[name].gradient == (last.counts.reward_gradient > 0)
    assert all(torch.equal(value, before[key]) for key, value in setting.base.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
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
    assert differentiable(setting)[1] == 320
    assert differentiable(replace(setting, task="smooth")) == (symmetry_reward, 0)


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
    assert setting.evaluations == paper(setting).N * paper(setting).S


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

    monkeypatch.setattr(comparison, "TASKS", {"paper": Task(reward, 1.0, (1.0,))})
    monkeypatch.setattr(comparison, "D", 2)
    monkeypatch.setattr(comparison, "J", 200)
    target = mixture.tilted(parse_reward("paper"))
    base, tilt = ExactNoisePredictor(mixture, cosine), ExactNoisePredictor(target, cosine)
    one = Setting(base, "paper", cosine, 0.1)
    x, exact = path_card(tilt, one, 4000, torch.Generator().manual_seed(0))
    _, same = path_card(base, one, 4000, torch.Generator().manual_seed(0))
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
    base = new_denoiser(cosine)
    one = Setting(base, "symmetry", cosine, 0.1)
    _, card = path_card(base, one, 20, torch.Generator().manual_seed(0))
    assert card["path_kl"] == 0.0
    assert isinstance(base, Residual)


def test_the_grid_asks_for_what_the_template_has() -> None:
    grid = GRIDS["digits"]
    assert grid.template == DIGITS
    known = parameters_of(str(ROOT / "notebooks" / f"{DIGITS}.py"))
    assert set(grid.variants([])) == {"base", *TASKS}
    assert all(set(parameters) <= set(known) for parameters in grid.variants([]).values())
    assert {name for names in ASKED.values() for name in names} <= {"best", *METHODS}


def test_strengths_follow_from_the_sweep() -> None:
    """Of seed 0, whose rows are the sweep's first."""
    for path in sorted(REFERENCE.glob("*_seed0.json")):
        name, curve = path.stem.removesuffix("_seed0"), read_record(path).get("curve")
        if name not in TASKS:
            continue
        task = TASKS[name]
        rows = [(lam, ess) for lam, ess in zip(curve["lam"], curve["ess"], strict=True) if lam is not None]
        assert tuple(lam for lam, _ in rows) == task.sweep
        assert strongest([lam for lam, _ in rows], [ess for _, ess in rows]) == task.lam


def test_records_are_whole() -> None:
    """Every method of every reward that is there, at the strength and with the evaluations that the code says."""
    seeds: dict[str, set[int]] = {}
    for record in read_records(REFERENCE):
        parameters, metrics = record["parameters"], record["metrics"]
        assert (parameters["profile"], parameters["J"], record["task"]) == ("full", J, "digits")
        seeds.setdefault(parameters["task"], set()).add(parameters["seed"])
        if parameters["task"] in TASKS:
            assert parameters["lam"] == TASKS[parameters["task"]].lam
            assert parameters["evaluations"] == EVALUATIONS["full"]
            for name in ASKED[parameters["task"]]:
                assert f"{name} mean_reward" in metrics or name in record["failure"], (parameters, name)
            for lam, log_z, kl in zip(*(record["curve"][key] for key in ("lam", "log_z", "kl")), strict=True):
                assert lam is None or (math.isfinite(log_z) and kl >= 0)
    assert set(TASKS) <= set(seeds) <= {"base", *TASKS}
    assert all(0 in found for found in seeds.values())
