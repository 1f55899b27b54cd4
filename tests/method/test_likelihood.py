"""Probability-flow likelihood against exact densities."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import log_noised, plane, random_mixture, random_points
from torch import Tensor

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.likelihood import log_likelihood, velocity
from itlib.network import Network, Residual
from itlib.schedules import Cosine, Linear, Schedule

F64 = torch.float64


@dataclass(frozen=True)
class LongLinear(Linear):
    """The straight line followed closer to t = 1, where its variance at t_max (0.998) would show."""

    t_max: float = 1.0 - 1e-5


def centred(seed: int, d: int = 2) -> GaussianMixture:
    mixture = random_mixture(seed, 3, d)
    return GaussianMixture(mixture.weights, mixture.means - mixture.mean, mixture.covariances)


def terminal_error(mixture: GaussianMixture, schedule: Schedule) -> float:
    """How far log p at t_max is from the standard normal assumed there, at most, within six standard deviations."""
    y, _ = plane(6, 101)
    normal = -0.5 * y.square().sum(-1) - math.log(2 * math.pi)
    return float((mixture.noised(schedule, schedule.t_max).log_prob(y) - normal).abs().max())


# ---- the velocity -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.floats(0.01, 0.99))
def test_velocity_is_2_13_with_its_sign_corrected(seed: int, t: float) -> None:
    mixture, schedule, x = random_mixture(seed), Cosine(), random_points(seed, 7, 2)
    time = torch.tensor(t, dtype=F64)
    beta = -2 * schedule.alpha_dot(time) / schedule.alpha(time)
    assert float(beta) > 0
    expected = -0.5 * beta * x - 0.5 * beta * mixture.score(x, time, schedule)
    # The two forms differ by 1 - alpha^2 - sigma^2 = 0, amplified by beta / sigma^2.
    tolerance = 1e-13 * float(beta / schedule.sigma(time) ** 2)
    torch.testing.assert_close(
        velocity(ExactNoisePredictor(mixture, schedule), schedule, x, time), expected, rtol=1e-9, atol=tolerance
    )


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
@given(seed=st.integers(0, 10**6), t=st.floats(0.05, 0.95), d=st.sampled_from([1, 2, 5]))
def test_velocity_carries_the_density(schedule: Schedule, seed: int, t: float, d: int) -> None:
    """The continuity equation d/dt log p + v . grad log p + div v = 0, every derivative by autograd."""
    mixture = random_mixture(seed, 3, d)
    x, time = random_points(seed, 5, d).requires_grad_(), torch.tensor(t, dtype=F64)
    alpha, sigma = (f(time).clone().requires_grad_() for f in (schedule.alpha, schedule.sigma))
    v = velocity(ExactNoisePredictor(mixture, schedule), schedule, x, time)
    divergence = sum(torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(d))
    residual = torch.zeros(5, dtype=F64)
    for i in range(5):
        log_p = log_noised(mixture, x[i : i + 1], alpha, sigma)
        in_x, in_alpha, in_sigma = torch.autograd.grad(log_p.sum(), (x, alpha, sigma))
        rate = in_alpha * schedule.alpha_dot(time) + in_sigma * schedule.sigma_dot(time)
        residual[i] = rate + v[i].detach() @ in_x[i] + divergence[i]
    scale = float(1 / schedule.sigma(time) ** 2 + 1 / schedule.alpha(time))
    torch.testing.assert_close(residual, torch.zeros(5, dtype=F64), rtol=0, atol=1e-9 * scale)


def test_velocity_takes_a_time_each() -> None:
    denoiser, x, t = (
        ExactNoisePredictor(random_mixture(0), Linear()),
        random_points(0, 4, 2),
        torch.linspace(0.2, 0.8, 4, dtype=F64),
    )
    for i in range(4):
        torch.testing.assert_close(velocity(denoiser, Linear(), x, t)[i], velocity(denoiser, Linear(), x, t[i])[i])


# ---- the likelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), LongLinear()], ids=["cosine", "linear"])
@pytest.mark.parametrize("seed", [1, 5])
def test_likelihood_is_the_exact_density(schedule: Schedule, seed: int) -> None:
    mixture = centred(seed)
    x = mixture.sample(25, torch.Generator().manual_seed(seed))
    actual = log_likelihood(ExactNoisePredictor(mixture, schedule), schedule, x, rtol=1e-7, atol=1e-7)
    expected = mixture.noised(schedule, schedule.t_min).log_prob(x)
    tolerance = terminal_error(mixture, schedule)
    assert tolerance < 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance + 1e-5)


def test_likelihood_in_other_dimensions() -> None:
    for d in (1, 4):
        mixture = GaussianMixture(torch.ones(1), torch.zeros(1, d), 0.3 * torch.eye(d)[None])
        x = mixture.sample(10, torch.Generator().manual_seed(0))
        actual = log_likelihood(ExactNoisePredictor(mixture, Cosine()), Cosine(), x, rtol=1e-7, atol=1e-7)
        # The start is off by alpha^2 (0.3 - 1) / 2 per squared coordinate: 1e-6 each, up to a few tens of them.
        torch.testing.assert_close(actual, mixture.noised(Cosine(), Cosine().t_min).log_prob(x), rtol=0, atol=1e-4)


def test_the_error_falls_with_the_tolerance() -> None:
    """Each hundredfold tightening of the solver gains at least a digit, from the default on."""
    mixture, schedule = centred(5), Cosine()
    x, denoiser = mixture.sample(25, torch.Generator().manual_seed(0)), ExactNoisePredictor(mixture, schedule)
    exact = log_likelihood(denoiser, schedule, x, rtol=1e-10, atol=1e-10)
    errors = [
        float((log_likelihood(denoiser, schedule, x, rtol=tol, atol=tol) - exact).abs().max()) for tol in (1e-4, 1e-6, 1e-8)
    ]
    assert torch.equal(log_likelihood(denoiser, schedule, x), log_likelihood(denoiser, schedule, x, rtol=1e-4, atol=1e-4))
    assert errors[0] < 0.05
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10


def test_single_precision_is_enough_for_the_default_tolerance() -> None:
    mixture, schedule = centred(5), Cosine()
    x, denoiser = mixture.sample(25, torch.Generator().manual_seed(0)), ExactNoisePredictor(mixture, schedule)
    single = log_likelihood(denoiser, schedule, x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), log_likelihood(denoiser, schedule, x), rtol=0, atol=1e-3)


class Perturbed(torch.nn.Module):
    """The exact denoiser of a standard normal plus a smooth function of a network that dies out with the data."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = Cosine().sigma(t.double()).to(x)
        return sigma * x + (1 - sigma**2) * sigma * torch.sin(3 * self.network(x, t))


def test_the_density_of_any_network_integrates_to_one() -> None:
    network = Network(width=16, depth=2, embedding=8).double()
    denoiser, (x, cell) = Perturbed(network), plane(6, 41)
    before = [p.clone() for p in network.parameters()]
    log_p = log_likelihood(denoiser, Cosine(), x, rtol=1e-5, atol=1e-5)
    normal = -0.5 * x.square().sum(-1) - math.log(2 * math.pi)
    assert float((log_p - normal)[normal > -4].abs().max()) > 0.1  # not the normal density it started from
    assert float(log_p.exp().sum()) * cell == pytest.approx(1.0, abs=1e-3)
    assert all(p.requires_grad and torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))
    assert all(p.grad is None for p in network.parameters())


def test_frozen_parameters_stay_frozen(cosine: Cosine) -> None:
    network = Network(width=8, depth=2, embedding=8)
    network.output.bias.requires_grad_(False)
    log_likelihood(network, cosine, torch.zeros(2, 2), rtol=1e-2, atol=1e-2)
    assert not network.output.bias.requires_grad
    assert network.output.weight.requires_grad


def test_likelihood_of_an_untrained_residual_is_that_of_its_base() -> None:
    mixture, schedule = centred(5), Cosine()
    x, base = mixture.sample(10, torch.Generator().manual_seed(0)), ExactNoisePredictor(mixture, schedule)
    residual = Residual(base, Network(width=8, depth=2, embedding=8).double())
    torch.testing.assert_close(log_likelihood(residual, schedule, x), log_likelihood(base, schedule, x), rtol=0, atol=1e-6)
