"""The recommended configuration: its knobs, its steps, its students, and how it resumes."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from itlib import tilting
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.beyond.step_sizes import jensen_gap
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.network import Network
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, TiltState, iterative_tilting
from itlib.training import regression_step


def small(seed: int = 0) -> Network:
    return Network(width=16, depth=2, embedding=8, seed=seed)


EXACT = ExactNoisePredictor(paper_mixture(), Cosine())
FAST = RecommendedConfig(S=200, J=10, E=2)


def test_set_back_it_is_algorithm_2() -> None:
    """With every knob of its own set back, the numbers are those of the paper's function, bit for bit."""
    paper = TiltingConfig(N=3, S=64, J=4, B=16, E=5)
    ours = recommended_tilting(small(), lambda x: x[:, 1], Cosine(), RecommendedConfig.like(paper))
    for a, b in zip(ours, iterative_tilting(small(), lambda x: x[:, 1], Cosine(), paper), strict=True):
        assert torch.equal(a.samples, b.samples)
        assert torch.equal(a.losses, b.losses)


def test_equal_steps_bound_the_number_of_chains() -> None:
    for N, S in ((5, 1000), (100, 500)):
        config = RecommendedConfig.equal_steps(N, lr=1e-3)
        assert (config.N, config.S, config.target_ess, config.polish_rounds, config.lr) == (N, S, None, 2, 1e-3)
    assert RecommendedConfig.equal_steps(2).polish_rounds == 1  # at least one tilt tilts
    assert RecommendedConfig.equal_steps(1).polish_rounds == 0


def test_steps_chosen_from_rewards_add_up_to_lambda() -> None:
    for lam in (1.0, -1.0):
        steps = list(recommended_tilting(EXACT, lambda x: 4 * x[:, 1], Cosine(), replace(FAST, lam=lam)))
        assert len(steps) > 2
        assert [s.k for s in steps] == list(range(1, len(steps) + 1))
        assert sum(s.delta for s in steps) == pytest.approx(lam, rel=1e-9)
        assert steps[-1].strength == pytest.approx(lam, rel=1e-9)
        for s in steps:  # the promise of the rule, on the samples that it was shown
            assert jensen_gap(s.rewards, s.delta) <= -0.5 * math.log(0.9) * (1 + 1e-6)
        assert [s.left for s in steps[-3:]] == [2, 1, 0]
        assert [s.delta == 0 for s in steps] == [False] * (len(steps) - 2) + [True] * 2


def test_equal_steps_leave_room_for_polishing_rounds() -> None:
    config = replace(FAST, target_ess=None, N=5, polish_rounds=2)
    steps = list(recommended_tilting(EXACT, lambda x: x[:, 1], Cosine(), config))
    assert [s.strength for s in steps] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])
    assert [s.delta for s in steps] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0])
    assert [s.left for s in steps] == [4, 3, 2, 1, 0]


def test_a_model_that_runs_away_is_not_tilted_for_ever() -> None:
    with pytest.raises(FloatingPointError, match="tilt 1: rewards with standard deviation"):
        next(
            recommended_tilting(small(), lambda x: 4 * x[:, 1], Cosine(), replace(FAST, learner="implicit", polish_rounds=0))
        )
    with pytest.raises(ValueError, match="a base that is trained"):
        next(recommended_tilting(small(), lambda x: 4 * x[:, 1], Cosine(), FAST))  # untrained, it draws samples far out


def test_a_run_with_chosen_steps_resumes_to_the_same_weights() -> None:
    def reward(x: torch.Tensor) -> torch.Tensor:
        return 4 * x[:, 1]

    run = recommended_tilting(EXACT, reward, Cosine(), FAST)
    steps = [replace(s, model=copy.deepcopy(s.model)) for s in run]
    assert len(steps) >= 3
    rest = list(recommended_tilting(EXACT, reward, Cosine(), FAST, state=steps[1].state))
    assert [s.delta for s in rest] == [s.delta for s in steps[2:]]
    for a, b in zip(rest[-1].model.parameters(), steps[-1].model.parameters(), strict=True):
        assert torch.equal(a, b)
    polished = list(recommended_tilting(EXACT, reward, Cosine(), FAST, state=steps[-2].state))
    assert [s.delta for s in polished] == [0.0]
    with pytest.raises(ValueError, match="which knows its base"):
        next(recommended_tilting(EXACT, reward, Cosine(), FAST, state=TiltState(small(), steps[1].strengths)))
    frozen = copy.deepcopy(steps[1].model).requires_grad_(False)
    for unfit in (frozen, EXACT):
        with pytest.raises(ValueError, match="and not frozen"):
            next(recommended_tilting(EXACT, reward, Cosine(), FAST, state=TiltState(unfit, steps[1].strengths)))


def test_an_adapter_is_trained_and_the_base_is_not() -> None:
    base = Network(width=16, depth=2, embedding=8, seed=0)
    before = copy.deepcopy(base.state_dict())
    config = replace(FAST, target_ess=None, N=1, polish_rounds=0, learner="implicit", B=32, E=30)
    (step,) = recommended_tilting(base, lambda x: x[:, 1].tanh(), Cosine(), config)
    assert all(torch.equal(a, b) for a, b in zip(base.state_dict().values(), before.values(), strict=True))
    assert any(bool(p.abs().sum() > 0) for n, p in step.model.named_parameters() if "output" in n and p.requires_grad)
    frozen = [p for p in step.model.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, base.parameters(), strict=True))


def test_the_rate_decays_within_a_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def spy(student: nn.Module, optimizer: torch.optim.Optimizer, *columns: torch.Tensor) -> torch.Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return regression_step(student, optimizer, *columns)

    monkeypatch.setattr(tilting, "regression_step", spy)
    paper = TiltingConfig(N=2, S=64, J=4, B=16, E=4, epoch="pass", lr=1e-3)
    config = RecommendedConfig.like(paper, decay=True)
    list(recommended_tilting(small(), lambda x: x[:, 1], Cosine(), config))
    per_tilt = len(rates) // 2
    assert per_tilt == 4 * math.ceil(config.S / config.B)
    assert rates[:per_tilt] == rates[per_tilt:]
    assert rates[0] == config.lr
    assert all(a > b for a, b in itertools.pairwise(rates[:per_tilt]))
    assert rates[per_tilt - 1] < 0.1 * config.lr


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("learner", "exact"),
        ("variance", "none"),
        ("student", "lora"),
        ("target_ess", 0.0),
        ("target_ess", 1.0),
        ("target_ess", float("nan")),
    ],
)
def test_unknown_choices_are_refused(knob: str, value: object) -> None:
    with pytest.raises(ValueError, match=knob):
        RecommendedConfig(**{knob: value})


@pytest.mark.parametrize(
    "knobs",
    [
        {"B": 1},
        {"eta": 0.5},
        {"polish_rounds": 1.5},
        {"polish_rounds": True},
        {"polish_rounds": -1},
        {"polish_rounds": 20, "N": 20},
        {"polish_rounds": 1, "learner": "implicit"},
    ],
)
def test_chains_need_what_they_need(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"chains|polish_rounds"):
        RecommendedConfig(**({"target_ess": None} | knobs))
