"""The closed forms that everything else is measured against, checked by autograd, quadrature and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import log_noised, plane, random_mixture, random_points, random_reward, slope
from torch import Tensor
from torch.distributions import MultivariateNormal

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, NotNormalisableError, paper_mixture
from itlib.rewards import NAMED_REWARDS, QuadraticReward, parse_reward
from itlib.schedules import Cosine, Linear, Schedule

SCHEDULES: list[Schedule] = [Cosine(), Linear()]
seeds = st.integers(0, 10**6)
dimensions = st.sampled_from([1, 2, 5])
components = st.integers(1, 4)
times = st.floats(0.01, 0.99)
schedules = st.sampled_from(SCHEDULES)
F64 = torch.float64


def at(t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


# ---- density, samples, construction -----------------------------------------------------------------------------------


def test_the_papers_mixture(paper: GaussianMixture) -> None:
    assert paper.weights.tolist() == [0.5, 0.5]
    assert paper.means.tolist() == [[-2, 0], [2, 0]]
    assert paper.covariances.tolist() == [[[0.5, 0], [0, 0.5]]] * 2
    assert paper.d == 2
    assert paper.mean.tolist() == [0, 0]


@given(seeds, components, dimensions)
def test_log_prob_is_the_sum_of_4_8(seed: int, K: int, d: int) -> None:
    mixture, x = random_mixture(seed, K, d), random_points(seed, 7, d)
    density = torch.zeros(7, dtype=F64)
    for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        maha = torch.einsum("bi,ij,bj->b", x - m, torch.linalg.inv(c), x - m)
        density += w * torch.exp(-0.5 * maha) / ((2 * math.pi) ** d * torch.linalg.det(c)).sqrt()
    torch.testing.assert_close(mixture.log_prob(x), density.log(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_density_integrates_to_one_and_to_the_mean(seed: int) -> None:
    mixture, (x, cell) = random_mixture(seed), plane()
    p = mixture.log_prob(x).exp() * cell
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-11)
    torch.testing.assert_close(p @ x, mixture.mean, rtol=0, atol=1e-10)


def test_log_prob_keeps_the_dtype_of_its_input(paper: GaussianMixture) -> None:
    assert paper.log_prob(torch.zeros(3, 2)).dtype == torch.float32
    assert paper.log_prob(torch.zeros(3, 2, dtype=F64)).dtype == F64


def test_weights_are_normalised() -> None:
    mixture = GaussianMixture(torch.tensor([1.0, 3.0]), torch.zeros(2, 1), torch.ones(2, 1, 1))
    assert mixture.weights.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        (torch.ones(2), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2), "needs weights"),
        (torch.ones(2), torch.zeros(2), torch.eye(2).expand(2, 2, 2), "needs weights"),
        (torch.ones(2), torch.zeros(2, 2), torch.eye(2), "needs weights"),
        (torch.ones(2), torch.zeros(2, 2), torch.ones(2, 2), "needs weights"),
        (torch.ones(2), torch.zeros(2, 2), torch.eye(3).expand(2, 3, 3), "needs weights"),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), "weight must be positive"),
        (torch.tensor([1.5, -0.5]), torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), "weight must be positive"),
        (
            torch.tensor([1.0, math.nan]),
            torch.zeros(2, 2),
            torch.eye(2).expand(2, 2, 2),
            "weight of a mixture must be finite",
        ),
        (torch.ones(1), torch.zeros(1, 2), torch.diag(torch.tensor([1.0, 0.0]))[None], "positive definite"),
        (torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 2.0], [2.0, 1.0]]]), "positive definite"),
    ],
)
def test_refuses(weights: Tensor, means: Tensor, covariances: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianMixture(weights, means, covariances)


def test_refuses_an_asymmetric_covariance() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.9], [0.0, 1.0]]]))


def test_samples_have_the_mean_the_covariance_and_the_weights() -> None:
    n = 40_000
    weights = torch.tensor([0.1, 0.6, 0.3], dtype=F64)
    means = torch.tensor([[-20.0, 0.0, 0.0], [0.0, 20.0, 5.0], [20.0, 0.0, 0.0]], dtype=F64)
    covariances = random_mixture(8, 3, 3).covariances  # three dimensions: eigenvectors that are not their own transpose
    x = GaussianMixture(weights, means, covariances).sample(n, torch.Generator().manual_seed(0))
    assert x.shape == (n, 3)
    assert x.dtype == F64
    nearest = torch.cdist(x, means).argmin(1)
    for i in range(3):  # the components are far apart: membership is certain
        own, w, cov = x[nearest == i], float(weights[i]), covariances[i]
        assert len(own) / n == pytest.approx(w, abs=5 * math.sqrt(w * (1 - w) / n))
        assert bool(((own.mean(0) - means[i]).abs() < 5 * (cov.diagonal() / len(own)).sqrt()).all())
        # Var of an entry of the empirical covariance: (c_jj c_kk + c_jk^2) / n.
        error = (cov.diagonal()[:, None] * cov.diagonal() + cov**2).sqrt() / math.sqrt(len(own))
        assert bool(((own.T.cov() - cov).abs() < 5 * error).all())


def test_a_generator_fixes_the_samples_and_the_global_state_plays_no_part(paper: GaussianMixture) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = paper.sample(50, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first, paper.sample(50, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, paper.sample(50, torch.Generator().manual_seed(4)))


# ---- noised: score, denoisers, posterior ------------------------------------------------------------------------------


@given(seeds, components, dimensions, times, schedules)
def test_noised_is_the_law_of_2_1(seed: int, K: int, d: int, t: float, schedule: Schedule) -> None:
    mixture, x = random_mixture(seed, K, d), random_points(seed, 7, d)
    expected = log_noised(mixture, x, schedule.alpha(at(t)), schedule.sigma(at(t)))
    torch.testing.assert_close(mixture.noised(schedule, t).log_prob(x), expected, rtol=1e-10, atol=1e-10)


@given(seeds, components, dimensions, times, schedules)
def test_score_is_the_gradient_of_the_noised_log_density(seed: int, K: int, d: int, t: float, schedule: Schedule) -> None:
    mixture, x = random_mixture(seed, K, d), random_points(seed, 7, d).requires_grad_()
    (expected,) = torch.autograd.grad(log_noised(mixture, x, schedule.alpha(at(t)), schedule.sigma(at(t))).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), at(t), schedule), expected, rtol=1e-9, atol=1e-9)
    denoised = ExactNoisePredictor(mixture, schedule)(x.detach(), at(t))
    torch.testing.assert_close(denoised, -schedule.sigma(at(t)) * expected, rtol=1e-9, atol=1e-9)


@given(seeds, dimensions, schedules)
def test_a_time_each_equals_one_time_for_all(seed: int, d: int, schedule: Schedule) -> None:
    mixture, reward = random_mixture(seed, 3, d), random_reward(seed, random_mixture(seed, 3, d))
    x, t = random_points(seed, 5, d), torch.linspace(0.1, 0.9, 5, dtype=F64)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, t: mixture.score(x, t, schedule),
        ExactNoisePredictor(mixture, schedule),
        lambda x, t: mixture.posterior(x, t, schedule).mean,
        lambda x, t: mixture.posterior_reward(x, t, schedule, reward),
        lambda x, t: mixture.covariance(x, t, schedule, reward),
    ]
    for f in functions:
        together = f(x, t)
        for i in range(5):
            torch.testing.assert_close(together[i], f(x, t[i])[i], rtol=1e-12, atol=1e-12)


@given(seeds, components, dimensions, times, schedules)
def test_posterior_is_bayes_rule(seed: int, K: int, d: int, t: float, schedule: Schedule) -> None:
    """log p(x_0 | x_t) = log p_0(x_0) + log q(x_t | x_0) - log p_t(x_t), point by point: (3.3) with its constant."""
    mixture = random_mixture(seed, K, d)
    x_t, alpha, sigma = random_points(seed + 1, 7, d), schedule.alpha(at(t)), schedule.sigma(at(t))
    posterior = mixture.posterior(x_t, at(t), schedule)
    x_0 = posterior.mean + posterior.variance.sqrt() * random_points(seed, 7, d)
    kernel = MultivariateNormal(alpha * x_0, sigma**2 * torch.eye(d, dtype=F64)).log_prob(x_t)
    expected = mixture.log_prob(x_0) + kernel - log_noised(mixture, x_t, alpha, sigma)
    torch.testing.assert_close(posterior.log_prob(x_0), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("t", [0.35, 0.8])
def test_posterior_moments_by_quadrature(t: float, schedule: Schedule) -> None:
    mixture, reward, (x_0, _) = random_mixture(4), random_reward(4, random_mixture(4)), plane()
    alpha, sigma = float(schedule.alpha(at(t))), float(schedule.sigma(at(t)))
    x_t = random_points(9, 4, 2)
    posterior, score = mixture.posterior(x_t, at(t), schedule), mixture.score(x_t, at(t), schedule)
    covariance = mixture.covariance(x_t, at(t), schedule, reward)
    expected_reward = mixture.posterior_reward(x_t, at(t), schedule, reward)
    for i in range(4):
        w = torch.softmax(mixture.log_prob(x_0) - 0.5 * (x_t[i] - alpha * x_0).square().sum(-1) / sigma**2, 0)
        mean = w @ x_0
        torch.testing.assert_close(posterior.mean[i], mean, rtol=0, atol=1e-9)
        torch.testing.assert_close(posterior.variance[i], w @ (x_0 - mean).square(), rtol=0, atol=1e-9)
        # Tweedie: the posterior mean of the kernel's score (3.1) is the score (2.8), and x_0 = (x + sigma^2 s) / alpha.
        g = (alpha * x_0 - x_t[i]) / sigma**2
        torch.testing.assert_close(score[i], w @ g, rtol=0, atol=1e-8)
        torch.testing.assert_close((x_t[i] + sigma**2 * score[i]) / alpha, mean, rtol=0, atol=1e-8)
        r = reward(x_0)
        torch.testing.assert_close(expected_reward[i], w @ r, rtol=0, atol=1e-9)
        torch.testing.assert_close(covariance[i], w @ (g * r.unsqueeze(-1)) - (w @ g) * (w @ r), rtol=0, atol=1e-7)
        # Proposition 3.1: the score of the tilted law is a reweighted mean of g.
        v = w * r.exp()
        torch.testing.assert_close(
            mixture.tilted(reward).score(x_t[i : i + 1], at(t), schedule)[0], v @ g / v.sum(), rtol=1e-8, atol=1e-8
        )


@given(seeds, components, dimensions, st.floats(0.05, 0.99), schedules)
def test_covariance_is_the_gradient_of_the_posterior_reward(seed: int, K: int, d: int, t: float, schedule: Schedule) -> None:
    mixture = random_mixture(seed, K, d)
    reward, x = random_reward(seed, mixture), random_points(seed, 7, d).requires_grad_()
    (expected,) = torch.autograd.grad(mixture.posterior_reward(x, at(t), schedule, reward).sum(), x)
    torch.testing.assert_close(mixture.covariance(x.detach(), at(t), schedule, reward), expected, rtol=1e-8, atol=1e-8)


def test_single_precision_in_and_out_costs_single_rounding(cosine: Cosine) -> None:
    mixture, x = random_mixture(2), random_points(2, 50, 2).float()
    t = torch.linspace(0.01, 0.99, 50)
    reward = random_reward(2, mixture)
    for f in (
        lambda x, t: mixture.score(x, t, cosine),
        ExactNoisePredictor(mixture, cosine),
        lambda x, t: mixture.covariance(x, t, cosine, reward),
        lambda x, t: mixture.posterior_reward(x, t, cosine, reward),
    ):
        single, double = f(x, t), f(x.double(), t.double())
        assert single.dtype == torch.float32
        assert double.dtype == F64
        torch.testing.assert_close(single.double(), double, rtol=4e-7, atol=1e-7)


# ---- tilted -----------------------------------------------------------------------------------------------------------


@given(seeds, components, dimensions, st.floats(-1, 1))
def test_tilted_density_is_proportional_to_exp_r_p(seed: int, K: int, d: int, lam: float) -> None:
    mixture, x = random_mixture(seed, K, d), random_points(seed, 9, d)
    reward = random_reward(seed, mixture)
    gap = mixture.tilted(reward, lam).log_prob(x) - mixture.log_prob(x) - lam * reward(x)
    expected = torch.full((9,), -mixture.log_normaliser(reward, lam), dtype=F64)
    torch.testing.assert_close(gap, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lam", [1.0, 0.5, -0.7])
def test_normaliser_divergence_and_expected_reward_by_quadrature(seed: int, lam: float) -> None:
    mixture, (x, cell) = random_mixture(seed), plane(20, 601)
    reward = random_reward(seed, mixture)
    log_p, r = mixture.log_prob(x), reward(x)
    log_z = float(torch.logsumexp(log_p + lam * r, 0)) + math.log(cell)
    q = (log_p + lam * r - log_z).exp() * cell
    assert mixture.log_normaliser(reward, lam) == pytest.approx(log_z, abs=1e-9)
    assert mixture.expected_reward(reward) == pytest.approx(float(log_p.exp() @ r * cell), abs=1e-9)
    assert mixture.tilted(reward, lam).expected_reward(reward) == pytest.approx(float(q @ r), abs=1e-8)
    assert mixture.tilt_kl(reward, lam) == pytest.approx(float(q @ (lam * r - log_z)), abs=1e-8)


@given(seeds, dimensions, st.floats(0, 1), st.floats(0, 1))
def test_two_tilts_are_one(seed: int, d: int, first: float, second: float) -> None:
    mixture = random_mixture(seed, 3, d)
    reward = random_reward(seed, mixture)
    twice, once = mixture.tilted(reward, first).tilted(reward, second), mixture.tilted(reward, first + second)
    for name in ("weights", "means", "covariances"):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name), rtol=1e-9, atol=1e-9)
    back = once.tilted(reward, -(first + second))
    for name in ("weights", "means", "covariances"):
        torch.testing.assert_close(getattr(back, name), getattr(mixture, name), rtol=1e-8, atol=1e-8)


#: log Z, KL, weights, means and diagonal covariance of the paper's base after each named reward.
TABLE = [
    ("paper", 4.0, 4.0, [0.5, 0.5], [[-2, 2], [2, 2]], [0.5, 0.5]),
    ("unequal", 2.746, 2.640, [0.119, 0.881], [[-1.75, 1.5], [2.25, 1.5]], [0.5, 0.5]),
    ("one-mode", 5.122, 3.488, [0.0025, 0.9975], [[-1.25, 1.5], [2.75, 1.5]], [0.5, 0.5]),
    ("quadratic", -0.941, 2.260, [0.119, 0.881], [[-0.75, 1], [1.25, 1]], [0.25, 1.0]),
]


@pytest.mark.parametrize(("name", "log_z", "kl", "weights", "means", "variances"), TABLE, ids=[row[0] for row in TABLE])
def test_the_named_tilts(
    paper: GaussianMixture,
    name: str,
    log_z: float,
    kl: float,
    weights: list[float],
    means: list[list[float]],
    variances: list[float],
) -> None:
    reward = parse_reward(name)
    target = paper.tilted(reward)
    assert paper.log_normaliser(reward) == pytest.approx(log_z, abs=5.1e-4)
    assert paper.tilt_kl(reward) == pytest.approx(kl, abs=5.1e-4)
    assert target.weights.tolist() == pytest.approx(weights, abs=5.1e-4)
    torch.testing.assert_close(target.means, torch.tensor(means, dtype=F64), rtol=0, atol=1e-12)
    expected = torch.diag(torch.tensor(variances, dtype=F64)).expand(2, 2, 2)
    torch.testing.assert_close(target.covariances, expected, rtol=0, atol=1e-12)


def test_the_table_has_every_named_reward() -> None:
    assert {row[0] for row in TABLE} == set(NAMED_REWARDS)


def test_the_constant_moves_the_normaliser_only(paper: GaussianMixture) -> None:
    b = torch.tensor([0.0, 4.0])
    plain, shifted = QuadraticReward(b), QuadraticReward(b, c=3.0)
    assert paper.log_normaliser(shifted, 0.5) - paper.log_normaliser(plain, 0.5) == pytest.approx(1.5, abs=1e-12)
    assert paper.tilt_kl(shifted, 0.5) == pytest.approx(paper.tilt_kl(plain, 0.5), abs=1e-12)
    x = random_points(0, 20, 2)
    torch.testing.assert_close(paper.tilted(shifted).log_prob(x), paper.tilted(plain).log_prob(x))


@pytest.mark.parametrize(("lam", "normalisable"), [(0.49, True), (0.5, False), (0.51, False), (-5.0, True)])
def test_a_tilt_that_cannot_be_normalised(lam: float, normalisable: bool) -> None:
    """Precisions 2 and 1 against lam A with eigenvalue 2 lam: the wider component breaks at lam = 1/2."""
    covariances = torch.stack([0.5 * torch.eye(2), torch.eye(2)])
    mixture = GaussianMixture(torch.ones(2), torch.zeros(2, 2), covariances)
    reward = parse_reward("A=0,2")
    if normalisable:
        assert bool(torch.isfinite(mixture.tilted(reward, lam).log_prob(torch.zeros(1, 2))).all())
        return
    for f in (mixture.tilted, mixture.log_normaliser, mixture.tilt_kl):
        with pytest.raises(NotNormalisableError, match="smaller lambda"):
            f(reward, lam)
    assert issubclass(NotNormalisableError, ValueError)


def test_a_tilt_that_starves_a_component_stays_a_mixture(paper: GaussianMixture) -> None:
    target = paper.tilted(parse_reward("b=400,0"))  # weights differ by exp(1600), beyond any double
    assert target.weights.tolist() == [0.0, 1.0] or float(target.weights[0]) < 1e-300
    assert bool(torch.isfinite(target.log_prob(target.means)).all())


def test_the_density_of_a_starved_component_is_right(paper: GaussianMixture) -> None:
    reward = parse_reward("b=20,0")  # left weight exp(-80)
    target, x = paper.tilted(reward), paper.means.clone()
    gap = target.log_prob(x) - paper.log_prob(x) - reward(x)
    torch.testing.assert_close(gap, torch.full((2,), -paper.log_normaliser(reward), dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_posterior_of_a_distant_component_is_right(paper: GaussianMixture, cosine: Cosine) -> None:
    x_0, x_t, t = paper.means[:1], torch.tensor([[6.0, 0.0]], dtype=F64), at(0.1)  # left weight exp(-48)
    alpha, sigma = cosine.alpha(t), cosine.sigma(t)
    kernel = MultivariateNormal(alpha * x_0, sigma**2 * torch.eye(2, dtype=F64)).log_prob(x_t)
    expected = paper.log_prob(x_0) + kernel - log_noised(paper, x_t, alpha, sigma)
    torch.testing.assert_close(paper.posterior(x_t, t, cosine).log_prob(x_0), expected, rtol=1e-9, atol=1e-9)


def test_entropy_of_the_paper_by_quadrature(paper: GaussianMixture) -> None:
    x, cell = plane()
    for mixture in (paper, paper.tilted(parse_reward("paper"))):
        log_p = mixture.log_prob(x)
        assert mixture.entropy() == pytest.approx(-float(log_p.exp() @ log_p) * cell, abs=1e-6)
        assert mixture.entropy() == pytest.approx(2.831, abs=5.1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_entropy_in_two_dimensions_by_quadrature(seed: int) -> None:
    mixture, (x, cell) = random_mixture(seed), plane()
    log_p = mixture.log_prob(x)
    assert mixture.entropy() == pytest.approx(-float(log_p.exp() @ log_p) * cell, abs=1e-4)


@pytest.mark.parametrize(("d", "tolerance"), [(1, 1e-12), (3, 1e-12), (5, 1e-3)])
def test_entropy_of_one_gaussian_is_the_formula(d: int, tolerance: float) -> None:
    """Gauss-Hermite integrates a quadratic exactly; the quasi Monte Carlo of d > 3 is stated to a few 1e-4."""
    mixture = random_mixture(0, 1, d)
    expected = 0.5 * float(torch.logdet(2 * math.pi * math.e * mixture.covariances[0]))
    assert mixture.entropy(8) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("d", [1, 3, 5])
def test_entropy_by_monte_carlo(d: int) -> None:
    mixture = random_mixture(3, 3, d)
    values = -mixture.log_prob(mixture.sample(100_000, torch.Generator().manual_seed(0)))
    assert mixture.entropy(32) == pytest.approx(
        float(values.mean()), abs=5 * float(values.std()) / 100_000**0.5 + 1e-3 * (d > 3)
    )


# ---- the Taylor step (3.10) -------------------------------------------------------------------------------------------


def recursion_error(reward: QuadraticReward, N: int, x: Tensor, t: float) -> float:
    """RMS over x of the score after N exact-covariance tilts of size 1/N, against the exact tilted score."""
    base, schedule = paper_mixture(), Cosine()
    score = base.score(x, at(t), schedule)
    for k in range(N):
        score = score + base.tilted(reward, k / N).covariance(x, at(t), schedule, reward) / N
    return float((score - base.tilted(reward).score(x, at(t), schedule)).square().sum(-1).mean().sqrt())


@given(t=st.floats(0.02, 0.98), lam=st.floats(0, 1), seed=seeds)
def test_on_the_papers_toy_the_covariance_is_the_same_everywhere_and_after_every_tilt(
    t: float, lam: float, seed: int
) -> None:
    """alpha / (2 v) b with v = alpha^2 / 2 + sigma^2: the reward is orthogonal to the modes' axis."""
    reward, schedule = parse_reward("paper"), Cosine()
    alpha, sigma = float(schedule.alpha(at(t))), float(schedule.sigma(at(t)))
    expected = (alpha / (2 * (alpha**2 / 2 + sigma**2)) * reward.b).expand(20, 2)
    x = random_points(seed, 20, 2, scale=4.0)
    actual = paper_mixture().tilted(reward, lam).covariance(x, at(t), schedule, reward)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("N", [1, 2, 20])
@pytest.mark.parametrize("t", [0.1, 0.7, 0.95])
def test_on_the_papers_toy_the_taylor_step_is_exact_for_any_number_of_tilts(N: int, t: float) -> None:
    x = paper_mixture().tilted(parse_reward("paper")).noised(Cosine(), t).sample(200, torch.Generator().manual_seed(0))
    assert recursion_error(parse_reward("paper"), N, x, t) < 1e-12


@pytest.mark.parametrize("name", ["one-mode", "quadratic"])
def test_elsewhere_the_accumulated_error_is_of_first_order_in_the_number_of_tilts(name: str) -> None:
    reward = parse_reward(name)
    x = paper_mixture().tilted(reward).noised(Cosine(), 0.7).sample(500, torch.Generator().manual_seed(0))
    N = [40, 80, 160, 320]
    errors = [recursion_error(reward, n, x, 0.7) for n in N]
    assert errors[0] > 1e-3  # there is an error to speak of
    assert slope([float(n) for n in N], errors) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("name", ["one-mode", "quadratic"])
def test_the_remainder_of_one_tilt_is_of_second_order(paper: GaussianMixture, cosine: Cosine, name: str) -> None:
    """Corollary 3.2: O(1/N^2) for one tilt of size 1/N."""
    reward, t = parse_reward(name), at(0.7)
    x = paper.noised(cosine, 0.7).sample(500, torch.Generator().manual_seed(0))
    N, errors = [40, 80, 160, 320], []
    for n in N:
        step = paper.score(x, t, cosine) + paper.covariance(x, t, cosine, reward) / n
        errors.append(float((paper.tilted(reward, 1 / n).score(x, t, cosine) - step).square().sum(-1).mean().sqrt()))
    assert slope([float(n) for n in N], errors) == pytest.approx(-2, abs=0.1)


@settings(max_examples=10)
@given(seeds, st.floats(0.2, 0.8))
def test_the_covariance_is_the_derivative_of_the_score_along_the_tilt(seed: int, t: float) -> None:
    """Central difference of the exact tilted score in lambda: error O(h^2) = 1e-8 times third derivatives."""
    mixture, schedule, h = random_mixture(seed), Cosine(), 1e-4
    reward, x = random_reward(seed, mixture), random_points(seed, 5, 2)
    up, down = (mixture.tilted(reward, s * h).score(x, at(t), schedule) for s in (1, -1))
    torch.testing.assert_close(mixture.covariance(x, at(t), schedule, reward), (up - down) / (2 * h), rtol=1e-5, atol=1e-5)
