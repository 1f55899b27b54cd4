"""Estimators of the covariance step: their means and variances against closed forms, and what they do not depend on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import random_mixture, random_reward
from torch import Tensor

from itlib.beyond.estimators import Value, centred, fit_value, local_baseline, per_dataset, rao_blackwell, value_gradient
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.schedules import Cosine, Linear, Schedule, add_noise
from itlib.tilting import CovarianceEstimator, TiltBatch, TiltingConfig, explicit, iterative_tilting, single_sample

F64 = torch.float64


def exact_value(mixture: GaussianMixture, reward: QuadraticReward, schedule: Schedule) -> Value:
    return lambda x, t: mixture.posterior_reward(x, t, schedule, reward)


def posterior_draws(
    mixture: GaussianMixture,
    reward: QuadraticReward,
    schedule: Schedule,
    x: Tensor,
    t: float,
    n: int,
    teacher: GaussianMixture | None = None,
) -> TiltBatch:
    """n clean samples behind one noisy point x (d,); D_k is 50 samples of the mixture, its rewards' mean one number."""
    time = torch.tensor(t, dtype=F64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_0 = mixture.posterior(x[None], time, schedule).sample((n,))[:, 0]
    z = (x - schedule.alpha(time) * x_0) / schedule.sigma(time)
    eps_old = ExactNoisePredictor(teacher or mixture, schedule)(x[None], time).expand(n, -1)
    samples = mixture.sample(50, torch.Generator().manual_seed(1))
    return TiltBatch(1, x_0, reward(x_0), time.expand(n), z, x.expand(n, -1), eps_old, reward(samples), samples)


def step(mixture: GaussianMixture, reward: QuadraticReward, schedule: Schedule, x: Tensor, t: float) -> Tensor:
    """The exact sigma_t C at one point, (d,)."""
    time = torch.tensor(t, dtype=F64)
    return schedule.sigma(time) * mixture.covariance(x[None], time, schedule, reward)[0]


def z_scores(values: Tensor, expected: Tensor) -> float:
    """Largest distance of the mean over draws, (n, ...), from what is expected, in standard errors."""
    return float(((values.mean(0) - expected).abs() / (values.std(0) / math.sqrt(len(values)))).max())


# ---- one draw ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
@pytest.mark.parametrize(("x", "t"), [((0.5, -1.0), 0.2), ((0.0, 0.0), 0.5), ((-2.0, 1.5), 0.8)])
def test_baselines_leave_the_mean_alone(schedule: Schedule, x: tuple[float, float], t: float) -> None:
    """With the exact teacher, any constant and any function of (x_t, t) may be taken off the reward."""
    mixture, at = random_mixture(3), torch.tensor(x, dtype=F64)
    reward = random_reward(3, mixture)
    batch, expected = posterior_draws(mixture, reward, schedule, at, t, 40_000), step(mixture, reward, schedule, at, t)
    values = exact_value(mixture, reward, schedule)
    for estimator in (centred(), centred(3.0), local_baseline(values), local_baseline(lambda x, t: 2 * x[:, 0] - t)):
        estimates = estimator(batch)
        assert z_scores(estimates, expected) < 5
        assert z_scores(estimates, -expected) > 5  # the other sign would not pass


@pytest.mark.parametrize("d", [1, 2, 5])
def test_variance_of_one_draw_is_the_closed_form(d: int) -> None:
    """A linear reward on a Gaussian: (alpha s / sigma)^2 (d (E[r|x] - v)^2 + (d + 1) s^2 |b|^2), s the posterior's width."""
    schedule, g, n, t = Cosine(), torch.Generator().manual_seed(d), 100_000, 0.4
    mean, b = torch.randn(2, d, generator=g, dtype=F64)
    x = mean + 2 * b / b.norm()  # where the reward is not its mean
    law = GaussianMixture(torch.ones(1), mean[None], 0.7 * torch.eye(d)[None])
    reward, time = QuadraticReward(b, c=1.5), torch.tensor(t, dtype=F64)
    batch = posterior_draws(law, reward, schedule, x, t, n)
    alpha, sigma = float(schedule.alpha(time)), float(schedule.sigma(time))
    width = 0.7 * sigma**2 / (0.7 * alpha**2 + sigma**2)  # s^2
    r_bar = float(law.posterior_reward(x[None], time, schedule, reward))
    expected, found = [], []
    for v, estimator in (
        (0.0, single_sample),
        (float(batch.rewards.mean()), centred()),
        (r_bar, local_baseline(exact_value(law, reward, schedule))),
    ):
        square = (estimator(batch) - step(law, reward, schedule, x, t)).square().sum(-1)
        expected.append(alpha**2 * width / sigma**2 * (d * (r_bar - v) ** 2 + (d + 1) * width * float(b @ b)))
        found.append(square)
    assert z_scores(torch.stack(found, 1), torch.tensor(expected, dtype=F64)) < 5
    assert expected[2] < 0.9 * min(expected[:2])  # the three are told apart: five standard errors are 3 %


def test_the_posterior_mean_is_the_best_baseline_here() -> None:
    """On the paper's task, over points and times, at any other constant the variance is larger."""
    law, reward, schedule = paper_mixture(), parse_reward("paper"), Cosine()
    x = torch.tensor([1.0, -0.5], dtype=F64)
    batch, exact = posterior_draws(law, reward, schedule, x, 0.5, 40_000), step(law, reward, schedule, x, 0.5)
    best = float(law.posterior_reward(x[None], batch.t[:1], schedule, reward))
    noise = [
        float((centred(c)(batch) - exact).square().sum(-1).mean())
        for c in (best, best - 1.5, best + 1.5, best - 3, best + 3)
    ]
    assert noise[0] < min(noise[1:3])
    assert max(noise[1:3]) < min(noise[3:])


# ---- what they do not depend on ---------------------------------------------------------------------------------------

OFF = GaussianMixture(torch.ones(2), paper_mixture().means, 0.3 * torch.eye(2).expand(2, 2, 2))


def shifted(batch: TiltBatch, c: float) -> TiltBatch:
    return replace(batch, r=batch.r + c, rewards=batch.rewards + c)


def test_a_constant_is_taken_out_exactly() -> None:
    """Estimates from r and from r + c agree to rounding, also with a teacher that is off. The single sample's do not."""
    law, reward, schedule = paper_mixture(), parse_reward("one-mode"), Cosine()
    batch = posterior_draws(law, reward, schedule, torch.tensor([0.3, 0.4], dtype=F64), 0.5, 500, teacher=OFF)
    more = shifted(batch, 8.0)
    torch.testing.assert_close(centred()(more), centred()(batch), rtol=0, atol=1e-13)
    torch.testing.assert_close(rao_blackwell(schedule)(more), rao_blackwell(schedule)(batch), rtol=0, atol=1e-13)
    fits = [value_gradient(fit_value(b.samples, b.rewards, schedule, steps=20), schedule)(batch) for b in (batch, more)]
    torch.testing.assert_close(*fits, rtol=0, atol=1e-10)
    moved = single_sample(more) - single_sample(batch)
    torch.testing.assert_close(moved, 8.0 * (batch.eps_old - batch.z), rtol=0, atol=1e-12)


def test_the_mean_under_a_wrong_teacher() -> None:
    """sigma C + (E[r|x] - v) E[eps_old - z|x]: a wrong teacher moves all single samples but the one with v = E[r|x]."""
    law, reward, schedule = paper_mixture(), QuadraticReward(torch.tensor([1.5, 3.0]), c=2.0), Cosine()
    x, t = torch.tensor([0.8, 0.4], dtype=F64), 0.5
    batch, exact = posterior_draws(law, reward, schedule, x, t, 100_000, teacher=OFF), step(law, reward, schedule, x, t)
    values = exact_value(law, reward, schedule)
    r_bar, gap = (
        float(values(x[None], batch.t[:1])),
        batch.eps_old[0] - ExactNoisePredictor(law, schedule)(x[None], batch.t[:1])[0],
    )
    assert z_scores(single_sample(batch), exact + r_bar * gap) < 5
    assert z_scores(centred(1.0)(batch), exact + (r_bar - 1.0) * gap) < 5
    assert z_scores(local_baseline(values)(batch), exact) < 5
    assert z_scores(single_sample(batch), exact) > 20
    assert z_scores(centred(1.0)(batch), exact) > 20
    other = replace(batch, eps_old=torch.zeros_like(batch.eps_old), z=torch.zeros_like(batch.z))
    for estimator in (rao_blackwell(schedule), value_gradient(values, schedule)):  # neither teacher nor noise
        assert torch.equal(estimator(batch), estimator(other))


# ---- all samples at once ----------------------------------------------------------------------------------------------


def plain_covariance(schedule: Schedule, x: Tensor, t: Tensor, samples: Tensor, rewards: Tensor) -> Tensor:
    """sigma Cov(grad log q, r) under the empirical posterior, one point and one sample at a time, straight from (3.9)."""
    rows = []
    for x_t, alpha, sigma in zip(x, schedule.alpha(t), schedule.sigma(t), strict=True):
        kernel = torch.distributions.Normal(alpha * samples, sigma)
        w = torch.softmax(kernel.log_prob(x_t).sum(-1), 0)
        g = (alpha * samples - x_t) / sigma**2
        rows.append(sigma * ((w * rewards) @ g - (w @ rewards) * (w @ g)))
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [1, 70, 10**6])
@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
def test_rao_blackwell_is_the_covariance_of_the_weighted_samples(schedule: Schedule, chunk: int) -> None:
    g = torch.Generator().manual_seed(0)
    samples, x, t = (
        torch.randn(40, 3, generator=g, dtype=F64),
        torch.randn(17, 3, generator=g, dtype=F64),
        torch.rand(17, generator=g, dtype=F64),
    )
    t, rewards = 0.01 + 0.98 * t, samples[:, 0].sin() + 2
    batch = TiltBatch(1, x, x[:, 0], t, x, x, x, rewards, samples)
    expected = plain_covariance(schedule, x, t, samples, rewards)
    torch.testing.assert_close(rao_blackwell(schedule, chunk=chunk)(batch), expected, rtol=1e-9, atol=1e-9)
    alone = replace(batch, x_0=samples[:17], r=rewards[:17], samples=torch.empty(0), rewards=torch.empty(0))
    expected = plain_covariance(schedule, x, t, samples[:17], rewards[:17])  # without D_k: the batch's own samples
    torch.testing.assert_close(rao_blackwell(schedule, chunk=chunk)(alone), expected, rtol=1e-9, atol=1e-9)


def test_rao_blackwell_is_finite_at_the_edges_in_single_precision() -> None:
    samples = paper_mixture().sample(1000, torch.Generator().manual_seed(0)).float()
    t = torch.tensor([0.0, 1e-4, 0.5, 0.9999, 1.0])
    x = add_noise(Cosine(), samples[:5], torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), t)
    batch = TiltBatch(1, samples[:5], samples[:5, 1], t, x, x, x, samples[:, 1], samples)
    estimate = rao_blackwell(Cosine())(batch)
    exact = rao_blackwell(Cosine())(
        replace(batch, t=t.double(), x_t=x.double(), samples=samples.double(), rewards=samples[:, 1].double())
    )
    torch.testing.assert_close(estimate, exact.float(), rtol=0, atol=1e-3)


def test_mean_and_variance_of_rao_blackwell() -> None:
    """Its mean over datasets is the exact covariance up to O(1/S); S times its variance that of the delta method.

    The influence of a sample on a self-normalised covariance is w (r - E[r|x]) (X_0 - E[X_0|x]) - w Cov, w = q / p_t: its
    second moment under the law of the samples is an integral, here by Gauss-Hermite quadrature.
    """
    schedule, t, S, R = Cosine(), 0.6, 4000, 400
    law = GaussianMixture(torch.ones(1), torch.tensor([[0.4, -0.2]]), 0.6 * torch.eye(2)[None])
    reward, x, time = (
        QuadraticReward(torch.tensor([1.0, -2.0])),
        torch.tensor([0.5, 0.3], dtype=F64),
        torch.tensor(t, dtype=F64),
    )
    exact = step(law, reward, schedule, x, t)
    estimates = []
    for seed in range(R):
        samples = law.sample(S, torch.Generator().manual_seed(seed))
        estimates.append(
            rao_blackwell(schedule)(
                TiltBatch(1, x[None], x[:1], time[None], x[None], x[None], x[None], reward(samples), samples)
            )[0]
        )
    found = torch.stack(estimates)
    assert z_scores(found, exact) < 5
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(60))
    x_0 = law.means[0] + math.sqrt(0.6) * torch.cartesian_prod(nodes, nodes)
    w_0 = torch.outer(weights, weights).flatten() / (2 * math.pi)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    w = torch.exp(-0.5 * ((x - alpha * x_0) / sigma).square().sum(-1))
    w = w / (w_0 @ w)
    centred_r, centred_x = reward(x_0) - (w_0 * w) @ reward(x_0), x_0 - (w_0 * w) @ x_0
    influence = alpha / sigma * w[:, None] * centred_r[:, None] * centred_x - w[:, None] * exact
    expected = float(w_0 @ influence.square().sum(-1)) / S
    assert torch.allclose(
        alpha / sigma * (w_0 * w * centred_r) @ centred_x, exact, rtol=1e-6
    )  # the quadrature is fine enough
    squares = (found - exact).square().sum(-1)
    assert abs(float(squares.mean()) - expected) < 5 * float(squares.std()) / math.sqrt(R) < 0.5 * expected


# ---- the value's gradient ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "one-mode", "quadratic"])
def test_the_gradient_of_the_value_is_the_covariance(name: str) -> None:
    law, reward, schedule, g = paper_mixture(), parse_reward(name), Cosine(), torch.Generator().manual_seed(0)
    x, t = 2 * torch.randn(200, 2, generator=g, dtype=F64), 0.01 + 0.98 * torch.rand(200, generator=g, dtype=F64)
    with torch.no_grad():  # as in a tilt
        found = value_gradient(exact_value(law, reward, schedule), schedule)(TiltBatch(1, x, reward(x), t, x, x, x))
    assert not found.requires_grad
    torch.testing.assert_close(
        found, schedule.sigma(t)[:, None] * law.covariance(x, t, schedule, reward), rtol=1e-9, atol=1e-9
    )


def test_a_fitted_value_comes_near_the_least_squares_line() -> None:
    """A Gaussian and a linear reward: the conditional mean is linear in x_t, and its slope at one t is least squares'.

    Over datasets the slope of least squares has a known spread, and is unbiased. The network sees all times at once and
    has to find the form: its gradient must be right on average to within a tenth (least squares: to within one per cent),
    and more samples must help.
    """
    schedule, law, reward = (
        Cosine(),
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]),
        QuadraticReward(torch.tensor([2.0, -1.0])),
    )
    t = torch.linspace(0.1, 0.9, 200, dtype=F64)
    x = law.sample(200, torch.Generator().manual_seed(100))  # noised, it is standard normal again
    exact = schedule.sigma(t)[:, None] * law.covariance(x, t, schedule, reward)
    errors = {}
    for S in (100, 3000):
        estimates = []
        for seed in range(6):
            samples = law.sample(S, torch.Generator().manual_seed(seed)).float()
            value = fit_value(samples, reward(samples), schedule, seed=seed)
            estimates.append(value_gradient(value, schedule)(TiltBatch(1, x, x[:, 0], t.float(), x, x.float(), x)).double())
        found = torch.stack(estimates)
        errors[S] = [
            float((e.square().sum(-1).mean() / exact.square().sum(-1).mean()).sqrt())
            for e in (found - exact, found.mean(0) - exact)
        ]
    assert errors[3000][1] < 0.1
    assert errors[3000][0] < 0.5 * errors[100][0]


# ---- inside Algorithm 2 -----------------------------------------------------------------------------------------------


def learned(schedule: Schedule) -> CovarianceEstimator:
    return per_dataset(lambda samples, rewards: value_gradient(fit_value(samples, rewards, schedule, steps=30), schedule))


@pytest.mark.parametrize(
    "make", [lambda _: centred(), rao_blackwell, learned, lambda _: local_baseline(lambda x, t: x[:, 1])],
    ids=["centred", "rao_blackwell", "value_gradient", "local_baseline"],
)  # fmt: skip
def test_all_run_in_algorithm_2_on_values_of_the_reward(make: Callable[[Schedule], CovarianceEstimator]) -> None:
    schedule, reward = Cosine(), ForwardOnly(parse_reward("paper"))
    config = TiltingConfig(N=2, S=64, J=4, B=16, E=5, lr=1e-3)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        runs.append(
            [
                s.losses
                for s in iterative_tilting(
                    ExactNoisePredictor(paper_mixture(), schedule), reward, schedule, config, update=explicit(make(schedule))
                )
            ]
        )
        assert torch.equal(torch.get_rng_state(), before)  # no draw from the global generator
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


def test_per_dataset_looks_once_at_each() -> None:
    seen: list[Tensor] = []

    def make(samples: Tensor, rewards: Tensor) -> CovarianceEstimator:
        assert len(samples) == len(rewards)
        seen.append(samples)
        return single_sample

    config = TiltingConfig(N=3, S=64, J=4, B=64, E=60)
    steps = [
        s.samples
        for s in iterative_tilting(
            ExactNoisePredictor(paper_mixture(), Cosine()),
            parse_reward("paper"),
            Cosine(),
            config,
            update=explicit(per_dataset(make)),
        )
    ]
    assert len(seen) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen, steps, strict=True))
