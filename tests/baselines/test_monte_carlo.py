"""Weighted samples and guidance: exact as n grows, with any potential; what is biased is shown to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from itlib.baselines.guidance import Value, classifier_free, clean, exact_value, exactly_guided, guided, plug_in_value
from itlib.baselines.monte_carlo import (
    SMCConfig,
    best_of_n,
    effective_sample_size,
    importance,
    sequential_monte_carlo,
    systematic,
)
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.sampling import path_log_weights, sample, time_grid, transition
from itlib.schedules import Cosine, Linear

F64 = torch.float64
NORMAL = GaussianMixture(torch.ones(1), torch.tensor([[0.5]]), torch.tensor([[[0.6]]]))
LINEAR = QuadraticReward(torch.tensor([1.5]))


def chain(steps: int) -> tuple[float, float]:
    """Mean and variance of Algorithm 1 with the exact denoiser of a Gaussian: every step is linear."""
    schedule, exact, times = Cosine(), ExactNoisePredictor(NORMAL, Cosine()), time_grid(Cosine(), steps)
    mean, variance = 0.0, 1.0
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        a, b, std = transition(schedule, s, t, 1.0)
        at = torch.tensor(t, dtype=F64)
        zero, one = (float(exact(torch.tensor([[v]], dtype=F64), at)) for v in (0.0, 1.0))
        mean = a * mean + b * (zero + (one - zero) * mean)
        variance = (a + b * (one - zero)) ** 2 * variance + std**2
    return mean, variance


def populations(n: int, seed: int, twisted: bool, potential: Value | None = None, threshold: float = 0.5):
    return sequential_monte_carlo(
        ExactNoisePredictor(NORMAL, Cosine()), LINEAR, Cosine(), SMCConfig(n=n, J=12, twisted=twisted, threshold=threshold),
        d=1, generator=torch.Generator().manual_seed(seed), potential=potential, dtype=F64,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "twisted", "exact"])
def test_smc_tends_to_the_tilt_of_the_chain(kind: str) -> None:
    """Log Z and mean against closed forms of the base chain: the error has slope -1/2, so nothing is left at the end."""
    mean, variance = chain(12)
    log_z, tilted = 1.5 * mean + 0.5 * 1.5**2 * variance, mean + 1.5 * variance
    potential = exact_value(NORMAL, LINEAR, Cosine()) if kind == "exact" else None
    sizes, errors = (50, 200, 800), []
    for n in sizes:
        gaps = []
        for seed in range(120):
            *_, last = populations(n, seed, kind == "twisted", potential)
            gaps.append([math.exp(last.log_z - log_z) - 1, float(torch.softmax(last.log_w, 0) @ last.x[:, 0]) - tilted])
        errors.append(np.sqrt(np.square(gaps).mean(0)))
        # Unbiased: the mean of Z lies within the spread of its mean.
        assert abs(np.mean(gaps, 0)[0]) < 4.5 * np.std(gaps, 0)[0] / math.sqrt(120)
    slopes = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    # 120 repetitions give a standard deviation an error of 6.5 %, a slope over a factor of 16 one of 0.03.
    assert np.all(np.abs(slopes + 0.5) < 0.1), slopes


def test_the_exact_value_keeps_the_weights_even() -> None:
    """With psi = V and twisted proposals the weights are constant up to the step size: finer steps, more even weights."""
    spreads = []
    for steps in (20, 40, 80):
        config = SMCConfig(n=200, J=steps, twisted=True, threshold=0.0)
        *_, last = sequential_monte_carlo(
            ExactNoisePredictor(NORMAL, Linear()), LINEAR, Linear(), config, d=1, dtype=F64,
            generator=torch.Generator().manual_seed(0), potential=exact_value(NORMAL, LINEAR, Linear()),
        )  # fmt: skip
        spreads.append(float(last.log_w.std()))
    assert spreads[0] > 1.3 * spreads[1] > 1.3**2 * spreads[2]


def test_resampling_keeps_proportions_and_the_threshold_decides() -> None:
    log_w = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    index = systematic(log_w, 1000, torch.Generator().manual_seed(0))
    assert torch.bincount(index, minlength=4).tolist() == pytest.approx([100, 200, 300, 400], abs=1)
    *_, never = populations(100, 0, False, threshold=0.0)
    *_, always = populations(100, 0, False, threshold=1.0)
    assert (never.resampled, always.resampled) == (0, 12)


def test_effective_sample_size() -> None:
    assert effective_sample_size(torch.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, -1e4])) == pytest.approx(1)
    assert effective_sample_size(torch.log(torch.tensor([3.0, 1.0], dtype=F64)) + 500) == pytest.approx(1.6)


def test_importance_weights_are_those_of_the_tilt() -> None:
    mean, variance = chain(12)
    base = ExactNoisePredictor(NORMAL, Cosine())
    x, log_w = importance(base, LINEAR, Cosine(), 20_000, d=1, J=12, generator=torch.Generator().manual_seed(0))
    w = torch.softmax(log_w.double(), 0)
    error = math.sqrt(float((w**2 * (x[:, 0].double() - mean - 1.5 * variance) ** 2).sum()))
    assert float(w @ x[:, 0].double()) == pytest.approx(mean + 1.5 * variance, abs=4.5 * error)


def test_best_of_n_has_the_law_of_a_maximum() -> None:
    """The base's distribution function at the best of n is that of the maximum of n uniforms: mean n / (n + 1)."""
    mean, variance = chain(12)
    generator = torch.Generator().manual_seed(0)
    best = best_of_n(
        ExactNoisePredictor(NORMAL, Cosine()), LINEAR, Cosine(), 4000, candidates=5, d=1, J=12, generator=generator
    )
    u = torch.distributions.Normal(mean, math.sqrt(variance)).cdf(best[:, 0].double())
    assert float(u.mean()) == pytest.approx(5 / 6, abs=4.5 * math.sqrt(5 / 252 / 4000))


def test_forward_only_where_it_says_so(paper: GaussianMixture) -> None:
    base, reward, generator = Network(), ForwardOnly(parse_reward("paper")), torch.Generator()
    importance(base, reward, Cosine(), 4, J=3, generator=generator)
    best_of_n(base, reward, Cosine(), 2, candidates=2, J=3, generator=generator)
    list(sequential_monte_carlo(base, reward, Cosine(), SMCConfig(n=4, J=3), generator=generator))
    with pytest.raises(RuntimeError, match="forward-only"):
        list(sequential_monte_carlo(base, reward, Cosine(), SMCConfig(n=4, J=3, twisted=True), generator=generator))
    with pytest.raises(RuntimeError, match="forward-only"):
        guided(base, plug_in_value(base, reward, Cosine()), Cosine())(torch.zeros(1, 2), torch.tensor(0.5))


def test_systematic_resampling_has_a_random_start() -> None:
    drawn = [int(systematic(torch.zeros(2), 1, torch.Generator().manual_seed(seed))) for seed in range(200)]
    assert sum(drawn) / 200 == pytest.approx(0.5, abs=4.5 * 0.5 / 200**0.5)


@pytest.mark.parametrize("reward", [lambda x: x[:, :1], lambda x: x[:, 0] * float("nan")])
def test_a_twisted_reward_is_one_finite_number_for_each(reward: Callable[[Tensor], Tensor]) -> None:
    config = SMCConfig(n=4, J=3, twisted=True)
    with pytest.raises(ValueError, match=r"must be finite, shape \(4,\)"):
        next(sequential_monte_carlo(Network(), reward, Cosine(), config, generator=torch.Generator()))


@pytest.mark.parametrize("knobs", [{"n": 0}, {"J": 1}, {"threshold": 1.5}])
def test_knobs_that_make_no_sense(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|between"):
        SMCConfig(**knobs)


@pytest.mark.parametrize("name", ["paper", "one-mode", "quadratic"])
def test_the_exact_value_guides_to_the_exact_denoiser(paper: GaussianMixture, name: str) -> None:
    reward, schedule = parse_reward(name), Cosine()
    base, exact = ExactNoisePredictor(paper, schedule), ExactNoisePredictor(paper.tilted(reward), schedule)
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in torch.tensor([0.05, 0.5, 0.95], dtype=F64):
        torch.testing.assert_close(guided(base, exact_value(paper, reward, schedule), schedule)(x, t), exact(x, t))
        torch.testing.assert_close(exactly_guided(base, paper, paper.tilted(reward), schedule)(x, t), exact(x, t))


def test_classifier_free_guidance_begins_without_and_ends_with_the_condition() -> None:
    x, t = torch.ones(2, 2), torch.tensor(0.5)
    for w, expected in ((0.0, 1.0), (1.0, 3.0), (1.5, 4.0)):
        assert classifier_free(lambda x, t: x, lambda x, t: 3 * x, w)(x, t).tolist() == [[expected] * 2] * 2


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_the_exact_value_is_a_posterior_expectation(paper: GaussianMixture, lam: float) -> None:
    reward, t = parse_reward("one-mode"), torch.tensor(0.4, dtype=F64)
    x = torch.tensor([[0.3, 0.8]], dtype=F64)
    torch.manual_seed(0)
    r = reward(paper.posterior(x, t, Cosine()).sample((200_000,))[:, 0])
    w = torch.exp(lam * r)
    expected, error = float(w.mean()), float(w.std()) / math.sqrt(len(w))
    assert math.exp(float(exact_value(paper, reward, Cosine(), lam)(x, t))) == pytest.approx(expected, abs=4.5 * error)


def test_the_plug_in_value_is_too_small(paper: GaussianMixture) -> None:
    """Jensen: the exponential of a mean against the mean of an exponential; and the samples show it."""
    reward, schedule = parse_reward("paper"), Cosine()
    base = ExactNoisePredictor(paper, schedule)
    x, t = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64), torch.tensor(0.5, dtype=F64)
    plug_in, exact = plug_in_value(base, reward, schedule), exact_value(paper, reward, schedule)
    assert bool((plug_in(x, t) < exact(x, t) - 1e-3).all())
    torch.testing.assert_close(clean(base(x, t), x, t, schedule), paper.posterior(x, t, schedule).mean)


def test_a_guided_denoiser_can_be_differentiated(paper: GaussianMixture) -> None:
    """As a probability-flow likelihood does; against finite differences."""
    base = ExactNoisePredictor(paper, Cosine())
    denoiser = guided(base, plug_in_value(base, parse_reward("quadratic"), Cosine()), Cosine())
    t = torch.tensor(0.5, dtype=F64)

    def first(x: Tensor) -> Tensor:
        return denoiser(x, t)

    assert torch.autograd.gradcheck(first, torch.tensor([[0.3, -0.2]], dtype=F64, requires_grad=True))


def test_the_chain_of_the_tests_is_the_sampler() -> None:
    mean, variance = chain(12)
    base = ExactNoisePredictor(NORMAL, Cosine())
    x = sample(base, Cosine(), 50_000, 1, steps=12, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert float(x.mean()) == pytest.approx(mean, abs=4.5 * math.sqrt(variance / 50_000))
    assert float(x.var()) == pytest.approx(variance, rel=4.5 * math.sqrt(2 / 50_000))


# ---- weights of paths -------------------------------------------------------------------------------------------------

DRIFTED = GaussianMixture(torch.ones(1), torch.tensor([[1.6]]), torch.tensor([[[0.4]]]))


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_a_path_of_the_base_weighs_nothing(paper: GaussianMixture, eta: float) -> None:
    base = ExactNoisePredictor(paper, Cosine())
    x, log_w = path_log_weights(base, base, Cosine(), 50, steps=9, eta=eta, generator=torch.Generator().manual_seed(3))
    assert torch.equal(log_w, torch.zeros(50))
    expected = sample(base, Cosine(), 50, steps=9, eta=eta, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.6, 1.0])
def test_a_paths_weight_is_the_ratio_of_its_densities(eta: float) -> None:
    """Two steps, of which one is noisy: the state between is found again from the sample, and torch has the densities."""
    schedule, times = Cosine(), time_grid(Cosine(), 2)
    model, base = ExactNoisePredictor(DRIFTED, schedule), ExactNoisePredictor(NORMAL, schedule)
    generator = torch.Generator().manual_seed(0)
    x_0, log_w = path_log_weights(model, base, schedule, 200, 1, steps=2, eta=eta, generator=generator, dtype=F64)
    a, b, std = transition(schedule, times[1], times[2], eta)
    generator, late, middle = torch.Generator().manual_seed(0), *(torch.tensor(t, dtype=F64) for t in times[:0:-1])
    start, z = (torch.randn(200, 1, generator=generator, dtype=F64) for _ in range(2))
    between = a * start + b * model(start, late) + std * z
    ratio = [
        torch.distributions.Normal(a * start + b * eps(start, late), std).log_prob(between)[:, 0] for eps in (base, model)
    ]
    torch.testing.assert_close(log_w, ratio[0] - ratio[1], rtol=0, atol=1e-9)
    a, b, _ = transition(schedule, 0.0, times[1], eta)
    torch.testing.assert_close(x_0, a * between + b * base(between, middle), rtol=0, atol=1e-9)  # the base has the last step


def test_weights_of_paths_mend_a_drifted_model() -> None:
    """Samples of another Gaussian, weighed: total weight, mean and variance of the base's chain and of its exact tilt."""
    mean, variance = chain(12)
    x, log_w = path_log_weights(
        ExactNoisePredictor(DRIFTED, Cosine()), ExactNoisePredictor(NORMAL, Cosine()), Cosine(), 100_000, 1,
        steps=12, dtype=F64, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    x = x[:, 0]
    for tilt, centre in ((0.0, mean), (1.5, mean + 1.5 * variance)):
        log_z = tilt * mean + 0.5 * tilt**2 * variance
        w = torch.exp(log_w + tilt * x - log_z)
        for value, expected in ((torch.ones_like(x), 1.0), (x, centre), ((x - centre) ** 2, variance)):
            assert float((w * value).mean()) == pytest.approx(
                expected, abs=4.5 * float((w * value).std()) / math.sqrt(len(x))
            )
    assert abs(float(x.mean()) - mean) > 0.5  # unweighed, they are far from the base


def test_paths_without_noise_have_no_weights() -> None:
    base = ExactNoisePredictor(NORMAL, Cosine())
    with pytest.raises(ValueError, match="noisy"):
        path_log_weights(base, base, Cosine(), 5, 1, eta=0.0)
