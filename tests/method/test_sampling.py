"""Algorithm 1: its steps against diffusers and against algebra, its law against the exact one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import random_mixture, random_points, slope
from torch import Tensor

from itlib import sampling
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.sampling import Variance, ddpm_std, posterior_std, reverse_process, sample, time_grid, transition
from itlib.schedules import Cosine, Linear, Schedule

F64 = torch.float64
SCHEDULES: list[Schedule] = [Cosine(), Linear()]
schedules = st.sampled_from(SCHEDULES)


def coefficients(schedule: Schedule, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=F64)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


# ---- one transition ---------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.98), st.floats(0.001, 0.999), st.floats(0, 1), schedules)
def test_the_bridge_keeps_the_marginals(s: float, t: float, eta: float, schedule: Schedule) -> None:
    """With the true X_0, X_1 in place of their predictions x_s has mean alpha_s X_0 and variance sigma_s^2, exactly."""
    assume(t - s > 1e-3)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(schedule, s), coefficients(schedule, t)
    a, b, std = transition(schedule, s, t, eta)
    scale = alpha_s / alpha_t  # what cancels
    assert a * alpha_t == pytest.approx(alpha_s, rel=1e-14)
    assert math.hypot(a * sigma_t + b, std) == pytest.approx(sigma_s, abs=1e-14 * scale)
    assert a * sigma_t + b >= -1e-14 * scale


@given(st.floats(0, 0.98), st.floats(0.001, 0.999), schedules)
def test_eta_1_is_the_bridge_of_the_markov_forward_process(s: float, t: float, schedule: Schedule) -> None:
    """Bayes' rule for X_s given X_0 and X_t: precisions 1/sigma_s^2 and alpha_ts^2/sigma_ts^2 add up."""
    assume(t - s > 1e-3)
    assume(s > 1e-6)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(schedule, s), coefficients(schedule, t)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + alpha_ts**2 / variance_ts)
    a, b, std = transition(schedule, s, t, 1.0)
    assert std == pytest.approx(math.sqrt(variance), rel=1e-9)
    # x1_hat = (x_t - alpha_t x_0) / sigma_t turns a x_t + b x1_hat into weights on x_t and x_0.
    assert a + b / sigma_t == pytest.approx(variance * alpha_ts / variance_ts, abs=1e-10 * alpha_s / alpha_t)
    assert -b * alpha_t / sigma_t == pytest.approx(variance * alpha_s / sigma_s**2, abs=1e-10)


@given(st.floats(1e-4, 0.98), st.floats(0.001, 0.999))
def test_ddpm_std_has_the_variance_preserving_form(s: float, t: float) -> None:
    assume(t - s > 1e-3)
    (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(Cosine(), s), coefficients(Cosine(), t)
    expected = sigma_s / sigma_t * math.sqrt(1 - alpha_t**2 / alpha_s**2)
    assert ddpm_std(Cosine(), s, t) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_last_step_is_the_dirac_mass_at_the_denoised_sample(schedule: Schedule) -> None:
    alpha, sigma = coefficients(schedule, 0.3)
    for eta in (0.0, 1.0):
        assert transition(schedule, 0.0, 0.3, eta) == pytest.approx((1 / alpha, -sigma / alpha, 0.0), abs=1e-14)


@pytest.mark.parametrize(("s", "t"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.0), (0.5, 1.1)])
def test_transition_refuses_times(s: float, t: float) -> None:
    with pytest.raises(ValueError, match="0 <= s < t < 1"):
        transition(Linear(), s, t, 1.0)


@pytest.mark.parametrize("eta", [-0.1, 1.5, 10.0])
def test_transition_refuses_eta(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        transition(Cosine(), 0.5, 0.9, eta)


# ---- against diffusers ------------------------------------------------------------------------------------------------

K = 40


def discrete(scheduler_class: type, **options: object) -> object:
    """A diffusers scheduler whose index k - 1 is our time t_k, k = 1..K, with alphas_cumprod = alpha_t^2."""
    scheduler = scheduler_class(num_train_timesteps=K, clip_sample=False, prediction_type="epsilon", **options)
    times = torch.tensor(time_grid(Cosine(), K)[1:], dtype=F64)
    scheduler.alphas_cumprod = Cosine().alpha(times) ** 2
    scheduler.one = torch.tensor(1.0, dtype=F64)
    scheduler.set_timesteps(K)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_every_step_agrees_with_ddim_of_diffusers(eta: float) -> None:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler, times = discrete(DDIMScheduler, set_alpha_to_one=True), time_grid(Cosine(), K)
    x, eps, z = (random_points(i, 8, 2) for i in range(3))
    for k in range(1, K + 1):
        a, b, std = transition(Cosine(), times[k - 1], times[k], eta)
        theirs = scheduler.step(eps, k - 1, x, eta=eta, variance_noise=z).prev_sample
        # Near t = 1 the step multiplies by a = alpha_s / alpha_t, and 1 - alpha^2 loses digits near t = 0.
        torch.testing.assert_close(a * x + b * eps + std * z, theirs, rtol=0, atol=1e-12 * max(1.0, a))


def test_every_step_agrees_with_ddpm_of_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler, times = discrete(DDPMScheduler, variance_type="fixed_small"), time_grid(Cosine(), K)
    x, eps = (random_points(i, 8, 2) for i in range(2))
    for k in range(1, K + 1):
        a, b, std = transition(Cosine(), times[k - 1], times[k], 1.0)
        theirs = scheduler.step(eps, k - 1, x, generator=torch.Generator().manual_seed(k)).prev_sample
        z = torch.randn(8, 2, generator=torch.Generator().manual_seed(k), dtype=F64)
        torch.testing.assert_close(a * x + b * eps + std * z, theirs, rtol=0, atol=1e-12 * max(1.0, a))


# ---- the chain --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_time_grid(steps: int) -> None:
    times = time_grid(Cosine(), steps)
    assert len(times) == steps + 1
    assert times[0] == 0.0
    assert times[-1] == Cosine().t_max
    assert all(s < t for s, t in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [1000, 1001, 4000])
def test_time_grid_with_many_steps(steps: int) -> None:
    times = time_grid(Cosine(), steps)
    assert len(times) == steps + 1
    assert all(s < t for s, t in itertools.pairwise(times))


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_chain_is_algorithm_1(eta: float) -> None:
    """Written out with x0_hat as on the paper's lines 3 to 9, for a denoiser that uses its time."""
    schedule, K = Cosine(), 5

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * t

    x = random_points(0, 6, 2)
    states = list(reverse_process(denoiser, schedule, x, steps=K, eta=eta, generator=torch.Generator().manual_seed(1)))
    assert [t for t, _ in states] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    g, times = torch.Generator().manual_seed(1), [0.0, 0.2, 0.4, 0.6, 0.8, schedule.t_max]
    for k in range(K - 1, -1, -1):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(schedule, times[k]), coefficients(schedule, times[k + 1])
        x1_hat = denoiser(x, torch.tensor(times[k + 1], dtype=F64))
        x0_hat = (x - sigma_t * x1_hat) / alpha_t
        std = 0.0 if k == 0 else eta * sigma_s / sigma_t * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
        x = alpha_s * x0_hat + math.sqrt(sigma_s**2 - std**2) * x1_hat
        if std > 0:
            x = x + std * torch.randn(6, 2, generator=g, dtype=F64)
        torch.testing.assert_close(states[K - 1 - k][1], x, rtol=1e-9, atol=1e-9)


def gaussian_law(schedule: Schedule, steps: int, eta: float, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance of Algorithm 1's samples for N(mean, variance), whose exact denoiser is linear: no sampling."""
    times, m, v = time_grid(schedule, steps), 0.0, 1.0
    for k in range(steps, 0, -1):
        alpha, sigma = coefficients(schedule, times[k])
        total = alpha**2 * variance + sigma**2
        a, b, std = transition(schedule, times[k - 1], times[k], eta)
        m, v = a * m + b * sigma * (m - alpha * mean) / total, (a + b * sigma / total) ** 2 * v + std**2
    return m, v


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_follow_the_closed_form_recursion(schedule: Schedule, eta: float) -> None:
    n, steps = 20_000, 25
    one = GaussianMixture(torch.ones(1), torch.tensor([[2.0, -1.0]]), torch.diag(torch.tensor([0.5, 2.0]))[None])
    x = sample(
        ExactNoisePredictor(one, schedule),
        schedule,
        n,
        steps=steps,
        eta=eta,
        generator=torch.Generator().manual_seed(0),
        dtype=F64,
    )
    for i, (mean, variance) in enumerate([(2.0, 0.5), (-1.0, 2.0)]):
        m, v = gaussian_law(schedule, steps, eta, mean, variance)
        assert float(x[:, i].mean()) == pytest.approx(m, abs=5 * math.sqrt(v / n))
        assert float(x[:, i].var()) == pytest.approx(v, abs=5 * v * math.sqrt(2 / n))


def test_the_variance_bias_of_ddpm_is_of_first_order_in_the_steps() -> None:
    steps = [50, 100, 200, 400, 800]
    bias = [0.5 - gaussian_law(Cosine(), K, 1.0, 2.0, 0.5)[1] for K in steps]
    assert all(b > 0 for b in bias)  # the chain under-disperses
    assert bias[2] == pytest.approx(0.015, abs=0.001)  # .485 instead of .5 with the paper's 200 steps
    assert slope([float(K) for K in steps], bias) == pytest.approx(-1, abs=0.1)


def test_deterministic_sampling_is_more_accurate_than_ddpm_here() -> None:
    ddim, ddpm = (abs(gaussian_law(Cosine(), 200, eta, 2.0, 0.5)[1] - 0.5) for eta in (0.0, 1.0))
    assert ddim < 0.5 * ddpm


# ---- the law on a mixture ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(Cosine(), 1.0), (Cosine(), 0.0), (Linear(), 1.0)], ids=["ddpm", "ddim", "linear"])
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """3,000 samples of Algorithm 1 with the exact denoiser of a mixture, and as many exact ones."""
    schedule, eta = request.param
    mixture = random_mixture(11)
    ours = sample(
        ExactNoisePredictor(mixture, schedule),
        schedule,
        3000,
        steps=400,
        eta=eta,
        generator=torch.Generator().manual_seed(5),
        dtype=F64,
    )
    return ours, mixture.sample(3000, torch.Generator().manual_seed(6))


def test_projections_pass_a_kolmogorov_smirnov_test(pair: tuple[Tensor, Tensor]) -> None:
    """Twelve directions; the smallest p-value is held to 1e-4 over twelve (Bonferroni)."""
    from scipy.stats import ks_2samp

    ours, exact = pair
    for angle in np.linspace(0, math.pi, 12, endpoint=False):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
        assert ks_2samp((ours @ direction).numpy(), (exact @ direction).numpy()).pvalue > 1e-4 / 12


def c2st(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Held-out accuracy of two classifiers, and the standard error of an accuracy of one half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    x = torch.cat([a, b]).numpy()
    y = np.repeat([0, 1], len(a))
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    quadratic = make_pipeline(PolynomialFeatures(2), StandardScaler(), LogisticRegression())
    best = max(m.fit(x[train], y[train]).score(x[test], y[test]) for m in (quadratic, KNeighborsClassifier(25)))
    return best, 0.5 / math.sqrt(len(test))


def test_classifiers_cannot_tell_the_samples_from_exact_ones(pair: tuple[Tensor, Tensor]) -> None:
    accuracy, error = c2st(*pair)
    assert accuracy < 0.5 + 4 * error


def test_the_classifiers_would_notice(pair: tuple[Tensor, Tensor]) -> None:
    """Power of the test above: samples shrunk by a tenth, or moved by a fifth, are told apart."""
    ours, exact = pair
    for wrong in (0.8 * (ours - ours.mean(0)) + ours.mean(0), ours + 0.4):
        accuracy, error = c2st(wrong, exact)
        assert accuracy > 0.5 + 4 * error


# ---- calls ------------------------------------------------------------------------------------------------------------


def test_a_generator_fixes_the_samples_and_the_global_state_plays_no_part(paper: GaussianMixture, cosine: Cosine) -> None:
    denoiser = ExactNoisePredictor(paper, cosine)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = sample(denoiser, cosine, 20, steps=5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(first, sample(denoiser, cosine, 20, steps=5, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(first, sample(denoiser, cosine, 20, steps=5, generator=torch.Generator().manual_seed(2)))


def test_shapes_dtypes_and_the_number_of_evaluations() -> None:
    mixture, calls = random_mixture(0, 2, 5), []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        calls.append(float(t))
        return ExactNoisePredictor(mixture, Cosine())(x, t)

    x = sample(denoiser, Cosine(), 7, 5, steps=9, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert x.shape == (7, 5)
    assert x.dtype == F64
    assert calls == pytest.approx(time_grid(Cosine(), 9)[:0:-1])
    assert sample(denoiser, Cosine(), 1, 5, steps=1).dtype == torch.float32


@pytest.mark.parametrize("variance", ["ddpm", "analytic"])
def test_a_model_never_sees_more_rows_than_fit(
    paper: GaussianMixture, cosine: Cosine, monkeypatch: pytest.MonkeyPatch, variance: Variance
) -> None:
    """Its samples are those of one batch: what a batch is judged by as a whole, such as its variance, is of all rows."""
    exact, seen = ExactNoisePredictor(paper, cosine), []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        seen.append(len(x))
        return exact(x, t)

    def drawn() -> Tensor:
        return sample(counted, cosine, 70, steps=6, variance=variance, dtype=F64, generator=torch.Generator().manual_seed(0))

    together = drawn()
    assert set(seen) == {70}
    monkeypatch.setattr(sampling, "ROWS", 32)
    torch.testing.assert_close(drawn(), together, rtol=1e-12, atol=1e-12)
    assert seen[6:] == 6 * [32, 32, 6]


@pytest.mark.parametrize("steps", [0, -3])
def test_refuses_no_steps(paper: GaussianMixture, cosine: Cosine, steps: int) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        sample(ExactNoisePredictor(paper, cosine), cosine, 3, steps=steps)


@pytest.mark.parametrize("n", [0, -1])
def test_refuses_no_samples(paper: GaussianMixture, cosine: Cosine, n: int) -> None:
    with pytest.raises(ValueError, match="n must be a whole number of at least 1"):
        sample(ExactNoisePredictor(paper, cosine), cosine, n)


@pytest.mark.parametrize(("eta", "steps"), [(-0.01, 5), (1.2, 5), (2.0, 200)])
def test_refuses_eta(paper: GaussianMixture, cosine: Cosine, eta: float, steps: int) -> None:
    with pytest.raises(ValueError, match="eta"):
        sample(ExactNoisePredictor(paper, cosine), cosine, 3, steps=steps, eta=eta)


@pytest.mark.parametrize(("eta", "steps"), [(1.01, 200), (1.5, 1), (math.nan, 5)])
def test_refuses_every_eta_outside_the_unit_interval(paper: GaussianMixture, cosine: Cosine, eta: float, steps: int) -> None:
    with pytest.raises(ValueError, match="eta"):
        sample(ExactNoisePredictor(paper, cosine), cosine, 3, steps=steps, eta=eta)


# ---- the variance that Algorithm 1 loses ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_analytic_steps_are_the_true_transitions_of_a_gaussian(schedule: Schedule, eta: float) -> None:
    """Mean and variance of X_s | X_t by conditioning a Gaussian pair, against the step; X_t has its exact law."""
    mu, v, s, t = 0.7, 0.4, 0.35, 0.6
    gaussian = GaussianMixture(torch.ones(1), torch.tensor([[mu]]), torch.tensor([[[v]]]))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = coefficients(schedule, s), coefficients(schedule, t)
    a, b, std = transition(schedule, s, t, eta)
    total = alpha_t**2 * v + sigma_t**2
    mean_square = sigma_t**2 / total  # of the exact denoiser: E[(sigma (x - alpha mu) / total)^2]
    std = math.hypot(std, posterior_std(schedule, s, t, std, mean_square))
    slope = a + b * sigma_t / total  # x_s = slope x_t + ..., so x_s has the variance slope^2 total + std^2
    assert slope**2 * total + std**2 == pytest.approx(alpha_s**2 * v + sigma_s**2, rel=1e-12)
    assert float(ExactNoisePredictor(gaussian, schedule)(torch.tensor([[1.0]], dtype=F64), torch.tensor(t, dtype=F64))) == (
        pytest.approx(sigma_t * (1.0 - alpha_t * mu) / total)
    )


@pytest.mark.parametrize("steps", [5, 25])
def test_analytic_sampling_keeps_the_variance_of_a_gaussian(steps: int) -> None:
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.5 * torch.eye(2)[None])
    n, found = 40_000, {}
    for variance in ("ddpm", "analytic"):
        generator = torch.Generator().manual_seed(0)
        x = sample(
            ExactNoisePredictor(gaussian, Cosine()),
            Cosine(),
            n,
            steps=steps,
            variance=variance,
            generator=generator,
            dtype=F64,
        )
        found[variance] = float(x.var())
    # The standard error of a Gaussian's variance from 2 n numbers; the expectation inside is over the batch too.
    assert found["analytic"] == pytest.approx(0.5, abs=4.5 * 0.5 * math.sqrt(2 / (2 * n)) + 0.5 * 2e-3)
    assert found["ddpm"] < 0.45


@pytest.mark.parametrize("seed", range(4))
def test_analytic_variance_is_steady_with_few_samples(paper: GaussianMixture, cosine: Cosine, seed: int) -> None:
    """The first step multiplies the posterior's width by sigma / alpha, and a batch's noise with it: it must not show.

    With the paper's mixture moved off the origin, samples keep the size that a large batch gives them.
    """
    moved = GaussianMixture(paper.weights, paper.means + 3.0, paper.covariances)
    large, few = (
        sample(
            ExactNoisePredictor(moved, cosine),
            cosine,
            n,
            steps=5,
            variance="analytic",
            generator=torch.Generator().manual_seed(seed),
            dtype=F64,
        )
        for n in (40_000, 100)
    )
    assert float(few[:, 1].var()) < 2.0 * float(large[:, 1].var())  # 1 + 5 standard errors of a variance from 100 samples
    assert float(large[:, 1].var()) < 0.7


def test_an_unknown_variance_is_named(paper: GaussianMixture) -> None:
    with pytest.raises(ValueError, match="'ddpm' or 'analytic', got 'fixed'"):
        sample(ExactNoisePredictor(paper, Cosine()), Cosine(), 1, steps=2, variance="fixed")
