"""The comparison: equal budgets, the same base, rewards differentiated only where a method says so, and its records."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from itlib.baselines.accounting import BaselineStep, Counts, EvaluationCounter
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.draft import DraftConfig, draft
from itlib.baselines.guidance import plug_in_value
from itlib.baselines.monte_carlo import SMCConfig, importance, sequential_monte_carlo
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.beyond.preconditioning import Gaussian
from itlib.beyond.value import Guided, ValueConfig, ValueFunction, value_tilting
from itlib.experiments import rivals
from itlib.experiments.checkpoints import RunState
from itlib.experiments.methods import fine_tune, watched
from itlib.experiments.problems import PROBLEMS, Toy
from itlib.experiments.records import load_record, load_records
from itlib.experiments.rivals import (
    BEST,
    EXPERIMENT,
    MAIN,
    METHODS,
    NO_RECORDS,
    ON_SHARED,
    OTHER,
    RATES,
    REFERENCES,
    SHARED_BASE,
    TUNING_SEED,
    UNTUNED,
    WORK,
    Method,
    Parameters,
    Setting,
    cells,
    run,
    tuning_cells,
)
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.network import Network, Residual
from itlib.rewards import ForwardOnly, QuadraticReward, Reward
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig

REFERENCE = Path(__file__).parents[2] / "book" / "reference"
TRAINED = [name for name, method in METHODS.items() if method.train]
DRAWN = [name for name, method in METHODS.items() if method.draw]


def setting(**changes: object) -> Setting:
    # A base that is right: of an untrained network the samples run away, and chains that do have no noise at their end.
    base = Residual(ExactNoisePredictor(PROBLEMS["paper"].base, Cosine()), Network(width=16, depth=2, embedding=8))
    return replace(Setting(base, PROBLEMS["paper"], Cosine(), WORK["smoke"], full=False), **changes)


class Strict(QuadraticReward):
    """Raises as soon as autograd reaches it."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ForwardOnly(super().__call__)(x)


def forward_only() -> Toy:
    reward = PROBLEMS["paper"].reward
    return Toy(PROBLEMS["paper"].base, Strict(reward.b, reward.A, reward.c))


def first(method: Method, one: Setting) -> Counts:
    if method.train:
        return next(fine_tune(method, one)).counts
    account = EvaluationCounter()
    assert method.draw is not None
    drawn = method.draw(one, account)
    if drawn.model is not None:
        drawn.model(torch.zeros(1, 2), torch.tensor(0.5))
    return account.counts


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_differentiates_the_reward_only_if_it_says_so(name: str) -> None:
    method = METHODS[name]
    if method.gradient:
        assert first(method, setting()).reward_gradient > 0
        with pytest.raises(RuntimeError, match="forward-only"):
            first(method, setting(problem=forward_only()))
    else:
        assert first(method, setting(problem=forward_only())).reward_gradient == 0


@pytest.mark.parametrize(
    "reward", [lambda x: x.sum(), lambda x: x[:, :1], lambda x: (x[:, 1] > 0).float()], ids=["sum", "column", "step"]
)
@pytest.mark.parametrize("name", ["draft-kl", "adjoint", "draft-lv"])
def test_a_reward_without_a_useful_gradient_is_refused(name: str, reward: Reward) -> None:
    with pytest.raises(ValueError, match="needs the reward's gradient, and one number per sample"):
        STRONG[name](1.0, reward)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_that_trains_spends_its_budget_and_leaves_the_base_alone(name: str) -> None:
    one = setting()
    before = copy.deepcopy(one.base.state_dict())
    works = [step.counts.work for step in fine_tune(METHODS[name], one)]
    assert all(torch.equal(value, before[key]) for key, value in one.base.state_dict().items())
    # It stops with the first step that reaches the budget. Tilts are sized to fill it, and end when they are done.
    assert all(work < WORK["smoke"] for work in works[:-1])
    assert works[-1] >= 0.8 * WORK["smoke"]


def test_the_budget_is_that_of_the_papers_algorithm() -> None:
    paper = TiltingConfig()
    sampling, training = paper.S * paper.J, paper.E * paper.B
    assert WORK["full"] == pytest.approx(paper.N * (sampling + (1 + 3) * training), rel=0.01)  # the teacher's, the student's


@pytest.mark.parametrize("name", DRAWN)
def test_a_method_that_draws_gives_samples_or_a_denoiser(name: str) -> None:
    draw = METHODS[name].draw
    assert draw is not None
    drawn = draw(setting(), EvaluationCounter())
    assert (drawn.model is None) == (drawn.samples is not None)
    assert drawn.samples is None or drawn.samples.shape[1:] == (2,)
    assert drawn.ess is None or 0 < drawn.ess <= 1
    with pytest.raises(ValueError, match="trains nothing"):
        next(fine_tune(METHODS[name], setting()))


def test_the_grid_is_what_the_chapter_promises() -> None:
    grid = cells([0]).values()
    for problem in MAIN:
        assert {p.method for p in grid if p.problem == problem} == set(METHODS) - set(NO_RECORDS)
    for problem in OTHER:
        later = (*UNTUNED, *ON_SHARED) if problem in SHARED_BASE else ("value",)
        assert {p.method for p in grid if p.problem == problem} == {*BEST, *REFERENCES, *later}
    assert len(tuning_cells([TUNING_SEED])) == (len(TRAINED) - len(UNTUNED) - len(NO_RECORDS)) * len(RATES)
    assert {asked.problem: [*EXPERIMENT.after(asked)] for asked in grid} == {
        **{name: ["base_seed0"] for name in ("paper", "one-mode", "unequal", "quadratic")},
        "eight": ["base_eight_seed0"],
        "nine": ["base_nine_seed0"],
    }


def tiny() -> Network:
    return Network(width=8, depth=2, embedding=4)


def landed(steps: Iterator[BaselineStep]) -> Tensor:
    """The weights that a few steps end with, and the loss, which Adam does not see the scale of."""
    *_, last = steps
    return torch.cat([p.detach().flatten() for p in last.model.parameters()] + [torch.tensor([last.loss])])


#: With little work, where each method lands for a strength and a reward.
STRONG: dict[str, Callable[[float, Reward], Tensor]] = {
    "draft": lambda lam, r: landed(draft(tiny(), r, Cosine(), DraftConfig(3, lam, B=8, J=4, lr=1e-2))),
    "draft-kl": lambda lam, r: landed(draft(tiny(), r, Cosine(), DraftConfig(3, lam, kl=1.0, B=8, J=4, lr=1e-2))),
    "draft-lv": lambda lam, r: landed(draft(tiny(), r, Cosine(), DraftConfig(3, lam, K=1, renoise=2, B=8, J=4, lr=1e-2))),
    "adjoint": lambda lam, r: landed(
        adjoint_matching(tiny(), r, Cosine(), AdjointMatchingConfig(iterations=3, lam=lam, B=8, J=4, lr=1e-2))
    ),
    "dpok": lambda lam, r: landed(
        policy_gradient(tiny(), r, Cosine(), PolicyGradientConfig(2, 2, lam, kl=1.0, advantage_clip=1e9, B=8, J=4, lr=1e-2))
    ),
    "importance": lambda lam, r: importance(tiny(), r, Cosine(), 8, lam=lam, J=4, generator=seeded())[1],
    "smc": lambda lam, r: population(r, SMCConfig(n=8, J=4, lam=lam)),
    "twisted": lambda lam, r: population(r, SMCConfig(n=8, J=4, lam=lam, twisted=True)),
    "plug-in": lambda lam, r: plug_in_value(tiny(), r, Cosine(), lam)(torch.ones(3, 2), torch.tensor(0.5)).detach(),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def population(reward: Reward, config: SMCConfig) -> Tensor:
    *_, last = sequential_monte_carlo(tiny(), reward, Cosine(), config, generator=seeded())
    return torch.cat([last.x.flatten(), last.log_w])


@pytest.mark.parametrize("name", STRONG)
def test_the_strength_multiplies_the_reward(name: str) -> None:
    def reward(x: Tensor) -> Tensor:
        return x[:, 0].sin() + x[:, 1]

    run = STRONG[name]
    torch.testing.assert_close(run(2.0, reward), run(1.0, lambda x: 2.0 * reward(x)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(run(2.0, reward), run(1.0, reward), rtol=1e-3)


@pytest.mark.parametrize("name", ["draft", "adjoint", "dpok"])
def test_every_iteration_and_every_seed_draws_anew(name: str) -> None:
    runs = {
        "draft": lambda seed: draft(tiny(), lambda x: x[:, 1], Cosine(), DraftConfig(2, lr=1e-12, B=8, J=4), seed=seed),
        "adjoint": lambda seed: adjoint_matching(
            tiny(), lambda x: x[:, 1].sin(), Cosine(), AdjointMatchingConfig(iterations=2, lr=1e-12, B=8, J=4), seed=seed
        ),
        "dpok": lambda seed: policy_gradient(
            tiny(), lambda x: x[:, 1], Cosine(), PolicyGradientConfig(2, 2, kl=1.0, clip=9.0, lr=1e-12, B=8, J=4), seed=seed
        ),
    }
    losses = [step.loss for seed in (0, 1) for step in runs[name](seed)]
    assert all(abs(a - b) > 1e-6 for a, b in itertools.combinations(losses, 2)), losses


def test_the_path_kl_counts_by_its_weight() -> None:
    """The first step does not see it, so that the second loss is linear in the weight."""
    first, second, third = (
        [s.loss for s in draft(tiny(), lambda x: x[:, 1], Cosine(), DraftConfig(2, kl=kl, B=8, J=4, lr=1e-2))][1]
        for kl in (1.0, 2.0, 3.0)
    )
    assert second - first > 1e-4
    assert third - second == pytest.approx(second - first, rel=1e-3)


def test_learning_rates_are_those_that_the_tuning_chose() -> None:
    """The rule of the module, applied to the committed records; a run that failed cannot win."""
    found: dict[str, dict[float, float]] = {}
    records = load_records(REFERENCE / "tuning", Parameters)
    assert {r.parameters for r in records} == set(tuning_cells([TUNING_SEED]).values())
    for record in records:
        assert record.parameters.lr is not None
        worst = float("inf") if record.failure else record["sliced_w2"]
        found.setdefault(record.parameters.method, {})[record.parameters.lr] = worst
    for name, scores in found.items():
        assert METHODS[name].lr == min(scores, key=lambda lr: (scores[lr], lr)), name


def test_records_are_whole_seeds_of_the_grid() -> None:
    """Every cell has the parameters of its name; a seed has all cells of its kind of problem, or none."""
    records = {record.parameters for record in load_records(REFERENCE / "rivals", Parameters)}
    for problems in (MAIN, OTHER):
        mine = {asked for asked in records if asked.problem in problems}
        grid = cells(sorted({asked.seed for asked in mine}))
        assert mine == {asked for asked in grid.values() if asked.problem in problems}
        for stem, asked in grid.items():
            if asked in mine:
                assert load_record(REFERENCE / "rivals" / f"{stem}.json").parameters == asked


def test_names_and_knobs_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no method 'ppo': choose from tilting, centred, implicit"):
        Parameters(method="ppo")
    with pytest.raises(ValueError, match="the method 'adjoint' makes no tilts that are counted: leave out N=20"):
        Parameters(method="adjoint", N=20)


class Counted:
    """A method that only counts: steps of 300 units, for ever or until it has no more to do."""

    def __init__(self, steps: int = 1000) -> None:
        self.steps = steps

    def __call__(self, s: Setting) -> Iterator[BaselineStep]:
        for k in range(1, self.steps + 1):
            yield BaselineStep(k, s.base, 0.0, Counts(network=300 * k, reward=k), 10.0 * k)


def test_a_method_is_watched_at_shares_of_its_budget_and_at_its_end() -> None:
    one = setting(budget=2000)
    seen = [step.counts.work for step, _ in watched(replace(METHODS["draft"], train=Counted()), one, (0.25, 0.5, 1.0))]
    assert seen == [600, 1200, 2100]
    ended = [step.counts.work for step, _ in watched(replace(METHODS["draft"], train=Counted(3)), one, (0.25, 0.5, 1.0))]
    assert ended == [600, 900]  # its last step, once
    once = [step.counts.work for step, _ in watched(replace(METHODS["draft"], train=Counted(4)), one, (0.25, 0.5, 1.0))]
    assert once == [600, 1200]  # which was looked at already


def test_a_budget_of_rewards_counts_what_a_method_asks_for() -> None:
    one = setting(budget=3, unit="rewards")
    assert len(list(fine_tune(replace(METHODS["ddpo"], train=Counted(9)), one))) == 3
    assert len(list(fine_tune(replace(METHODS["draft"], train=Counted(9)), one))) == 9  # its gradient, never evaluated


@pytest.mark.parametrize("name", ["importance", "exact"])
def test_a_run_leaves_a_record(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.base, "train", lambda *_: [RunState(1, 1, setting().base)])
    asked = Parameters(problem="one-mode", method=name, profile="smoke")
    record = run(asked, tmp_path)
    assert record.parameters == asked
    assert (record["ess"] is not None) == (name == "importance")
    assert ("eps_rmse" in record.metrics) == (name == "exact")
    assert record["mode_weight_error"] < 0.5
    assert record.failure is None
    assert len(record.samples) == 300
    assert not list(tmp_path.iterdir())


def test_a_copy_for_looking_at_is_the_same_model_and_not_counted() -> None:
    """Of a value on a base, with the base's own network."""
    gaussian = Gaussian(torch.randn(50, 2, generator=seeded()), Cosine())
    account, base, value = EvaluationCounter(), Network(2), ValueFunction(gaussian, seed=1)
    torch.nn.init.normal_(value.network.output.weight, generator=seeded())
    model = Guided(account.count_model(base), value, Cosine())
    account.count_model(value)
    x, t = torch.randn(7, 2, generator=seeded()), torch.full((7,), 0.4)
    found = model(x, t)
    assert account.counts.work == 7 * (1 + 3)  # the base is frozen, V differentiated
    again = rivals.copied(model, 2)
    torch.testing.assert_close(again(x, t), found)
    assert account.counts.work == 7 * (1 + 3)


def test_evaluations_of_the_value_count_like_the_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before the first step, when nobody holds the network yet, too."""
    seen = 0
    forward = ValueFunction.forward

    def counted(self: ValueFunction, x: Tensor, t: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        return forward(self, x, t)

    monkeypatch.setattr(ValueFunction, "forward", counted)
    one = setting(budget=10**9)
    account = EvaluationCounter()
    base, reward = one.counted(account)
    bare = ValueConfig(pilot=256, S=64, J=10, B=64, fit=10, rounds=3, patience=5, enough=0.0, lr=1e-2)
    for _ in value_tilting(base, reward, one.schedule, bare, d=2, seed=one.seed):
        pass
    alone, without_value = seen, account.counts.work
    *_, last = fine_tune(METHODS["value"], replace(one, lr=1e-2))
    assert seen == 2 * alone
    assert last.counts.work == without_value + 3 * alone
