"""Random tasks: what is integrated on a line agrees with closed forms and with plain Monte Carlo."""

from __future__ import annotations

import pytest
import torch

from itlib.experiments.random_tasks import RandomTask, Ridge, random_base, random_task, tilt_kl
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.rewards import QuadraticReward
from itlib.schedules import Cosine

SCHEDULE = Cosine()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pair() -> tuple[RandomTask, RandomTask]:
    """One task twice: a linear reward in closed form, and as a function of its direction."""
    base = random_base(seeded(4))
    w = torch.randn(base.d, generator=seeded(1), dtype=torch.float64)
    w = w / w.norm()
    linear, ridge = QuadraticReward(1.5 * w), Ridge(w, lambda u: 1.5 * u)
    return RandomTask("linear", base, linear, tilt_kl(base, linear)), RandomTask("kink", base, ridge, tilt_kl(base, ridge))


def test_integrals_on_a_line_agree_with_the_closed_form(pair: tuple[RandomTask, RandomTask]) -> None:
    closed, line = pair
    assert line.kl == pytest.approx(closed.kl, rel=1e-6)
    assert torch.allclose(line.weights, closed.weights, atol=1e-8)
    assert torch.allclose(line.weights, closed.base.tilted(QuadraticReward(1.5 * line.reward.w)).weights, atol=1e-8)  # type: ignore[attr-defined]
    x = closed.sample(200, seeded()).float()
    for t in (0.05, 0.4, 0.9):
        time = torch.tensor(t)
        assert torch.allclose(line.exact(SCHEDULE)(x, time), closed.exact(SCHEDULE)(x, time), atol=1e-4)


def test_samples_of_both_have_the_same_moments(pair: tuple[RandomTask, RandomTask]) -> None:
    """Within five standard errors."""
    closed, line = (task.sample(20_000, seeded(i)) for i, task in enumerate(pair))
    for f in (lambda x: x, lambda x: x.square(), lambda x: x * x.roll(1, 1)):
        a, b = f(closed), f(line)
        error = ((a.var(0) + b.var(0)) / 20_000).sqrt()
        assert bool(((a.mean(0) - b.mean(0)).abs() < 5 * error).all())


def test_a_jump_against_weighted_draws_of_the_posterior() -> None:
    """E'[X_0 | x_t] is the mean of the base's posterior draws under the weights e^r; five standard errors."""
    task = random_task(3)
    assert task.kind == "jump"
    x, t = task.sample(5, seeded()), torch.tensor(0.5, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = task.base.posterior(x, t, SCHEDULE).sample(torch.Size([100_000]))  # (n, 5, d)
    w = torch.exp(task.reward(draws.reshape(-1, task.base.d)).reshape(100_000, 5, 1))
    w = w / w.mean(0)
    mean = (w * draws).mean(0)
    error = (w * (draws - mean)).std(0) / 100_000**0.5
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    found = (x - sigma * task.exact(SCHEDULE)(x, t)) / alpha
    assert bool(((found - mean).abs() < 5 * error + 1e-6).all())


def test_its_samples_have_its_weights() -> None:
    for seed in (2, 4):  # bounded, kink
        task = random_task(seed)
        found = task.mode_weights(task.sample(4000, seeded()))
        assert float((found - task.weights).abs().max()) < 5 * 0.5 / 4000**0.5


@pytest.mark.parametrize("seed", range(10))
def test_a_task_is_what_its_seed_says(seed: int) -> None:
    task, again = random_task(seed), random_task(seed)
    assert torch.equal(task.base.means, again.base.means)
    assert 1.0 <= task.kl <= 6.0
    assert 2 <= task.base.d <= 32
    assert 1 <= len(task.weights) <= 12
    assert task.kl == pytest.approx(float(task.reward(task.sample(50_000, seeded())).mean() - task.log_normaliser), abs=0.1)


def test_the_exact_prediction_of_no_tilt_is_the_base() -> None:
    base = random_base(seeded(7))
    task = RandomTask("kink", base, Ridge(torch.eye(base.d, dtype=torch.float64)[0], torch.zeros_like), 0.0)
    x, t = base.sample(50, seeded()), torch.rand(50, generator=seeded()) * 0.9 + 0.05
    assert torch.allclose(task.exact(SCHEDULE)(x, t), ExactNoisePredictor(base, SCHEDULE)(x, t), atol=1e-6)


def test_a_component_out_of_reach_takes_no_weight() -> None:
    """One that e^r takes eleven standard deviations away, with a weight of 1e-139: the others keep theirs."""
    task = random_task(1014)
    assert float(task.weights.min()) < 1e-100
    found = task.mode_weights(task.sample(3000, seeded()))
    assert float((found - task.weights).abs().max()) < 5 * 0.5 / 3000**0.5
