"""The network of Section 4.2 and its two wrappers."""

from __future__ import annotations

import copy

import pytest
import torch
from oracles import random_mixture, random_points
from torch import Tensor, nn

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import FourierFeatures, FromX0, Network, Residual
from itlib.sampling import sample
from itlib.schedules import Cosine, Linear, Schedule
from itlib.training import regression_step

X = random_points(0, 64, 2).float()
T = torch.rand(64, generator=torch.Generator().manual_seed(1))


class ExactX0(nn.Module):
    """E[X_0 | X_t = x] from the posterior of a mixture."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule) -> None:
        super().__init__()
        self.mixture, self.schedule = mixture, schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.mixture.posterior(x, t, self.schedule).mean


def test_the_papers_network_has_depth_5_and_width_256() -> None:
    network = Network()
    count = sum(p.numel() for p in network.parameters())
    first = 2 * 256 + 256 + 128 * 256
    assert count == first + 4 * (256 * 256 + 256) + (256 * 2 + 2)
    assert network.features.frequencies.shape == (64,)
    assert not network.features.frequencies.requires_grad
    assert "features.frequencies" in network.state_dict()


@pytest.mark.parametrize(("d", "width", "depth", "embedding"), [(1, 8, 1, 2), (5, 16, 3, 10)])
def test_shapes(d: int, width: int, depth: int, embedding: int) -> None:
    network = Network(d, width, depth, embedding)
    expected = d * width + width + embedding * width + (depth - 1) * (width + 1) * width + width * d + d
    assert sum(p.numel() for p in network.parameters()) == expected
    x = torch.randn(7, d, generator=torch.Generator().manual_seed(0))
    assert network(x, torch.tensor(0.3)).shape == (7, d)
    assert network(x, torch.full((7,), 0.3)).shape == (7, d)


def test_forward_is_the_formula_of_the_module() -> None:
    network = Network(width=16, depth=3, embedding=8)
    angle = 2 * torch.pi * T[:, None] * network.features.frequencies
    h = X @ network.space.weight.T + network.space.bias + torch.cat([angle.sin(), angle.cos()], -1) @ network.time.weight.T
    for layer in network.hidden:
        h = (h * torch.sigmoid(h)) @ layer.weight.T + layer.bias
    expected = (h * torch.sigmoid(h)) @ network.output.weight.T + network.output.bias
    torch.testing.assert_close(network(X, T), expected, rtol=1e-5, atol=1e-6)


def test_fourier_features() -> None:
    torch.manual_seed(0)
    features = FourierFeatures(dimension=20000, scale=3.0)
    # The standard deviation of n normals has standard error scale / sqrt(2 n).
    assert float(features.frequencies.std()) == pytest.approx(3.0, abs=5 * 3.0 / (2 * 10000) ** 0.5)
    phi = features(T)
    assert phi.shape == (64, 20000)
    torch.testing.assert_close(phi[:, :10000] ** 2 + phi[:, 10000:] ** 2, torch.ones(64, 10000))
    assert features(torch.tensor(0.0))[:10000].abs().max() == 0


def test_one_time_for_all_equals_a_time_each() -> None:
    network = Network()
    torch.testing.assert_close(network(X, torch.tensor(0.4)), network(X, torch.full((64,), 0.4)), rtol=1e-5, atol=1e-6)


def test_the_time_matters() -> None:
    network = Network()
    assert float((network(X, torch.tensor(0.2)) - network(X, torch.tensor(0.8))).detach().abs().mean()) > 1e-3


@pytest.mark.parametrize("t", [T, torch.tensor(0.4)], ids=["a time each", "one time"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_path_without_autograd_gives_the_same_numbers(t: Tensor, dtype: torch.dtype) -> None:
    network = Network().to(dtype)
    x = X.to(dtype)
    before = x.clone()
    with torch.no_grad():
        fused = network(x, t)
    assert not fused.requires_grad
    # Five layers of 256 sums: rounding of a few ten units in the last place.
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(fused, network(x, t).detach(), rtol=tolerance, atol=tolerance)
    assert torch.equal(x, before)


def test_seed_fixes_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = Network(seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = Network(seed=3), Network(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(first.space.weight, other.space.weight)
    assert not torch.equal(first.features.frequencies, other.features.frequencies)


@pytest.mark.parametrize("arguments", [{"d": 0}, {"width": 0}, {"depth": 0}])
def test_refuses_empty_networks(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Network(**arguments)


@pytest.mark.parametrize("embedding", [0, 1, 7, -2])
def test_refuses_an_odd_embedding(embedding: int) -> None:
    with pytest.raises(ValueError, match=r"even|at least 1"):
        Network(embedding=embedding)


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_from_x0_turns_the_posterior_mean_into_the_exact_denoiser(schedule: Schedule) -> None:
    mixture = random_mixture(1)
    x, t = X.double(), T.double().clamp(0.01, 0.99)
    expected = ExactNoisePredictor(mixture, schedule)(x, t)
    torch.testing.assert_close(FromX0(ExactX0(mixture, schedule), schedule)(x, t), expected, rtol=1e-10, atol=1e-10)
    at_one_time = FromX0(ExactX0(mixture, schedule), schedule)(x, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(
        at_one_time, ExactNoisePredictor(mixture, schedule)(x, torch.tensor(0.3)).double(), rtol=1e-6, atol=1e-6
    )


def test_from_x0_is_finite_at_time_zero_and_trains_its_network() -> None:
    wrapped = FromX0(Network(width=8), Cosine())
    assert bool(torch.isfinite(wrapped(X, torch.zeros(64))).all())
    wrapped(X, T).sum().backward()
    assert all(p.grad is not None for p in wrapped.x0_network.parameters())


@pytest.mark.parametrize(
    "base", [Network(width=8, seed=1), ExactNoisePredictor(random_mixture(0), Cosine())], ids=["network", "exact"]
)
def test_residual_starts_as_its_base(base: object) -> None:
    residual = Residual(base, Network(width=8, seed=2))
    with torch.no_grad():
        assert torch.equal(residual(X, T), base(X, T))


def test_residual_trains_only_the_correction() -> None:
    base = Network(width=8, seed=1)
    residual = Residual(base, Network(width=8, seed=2))
    before = copy.deepcopy(residual.state_dict())
    optimizer = torch.optim.Adam([p for p in residual.parameters() if p.requires_grad], lr=1e-2)
    losses = [float(regression_step(residual, optimizer, X, T, torch.ones(64, 2))) for _ in range(50)]
    assert losses[-1] < losses[0]
    changed = {name for name, value in residual.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"correction"}
    assert {f"correction.{name}" for name, _ in residual.correction.named_parameters()} == changed


def test_residual_is_a_denoiser_like_any_other() -> None:
    residual = Residual(ExactNoisePredictor(random_mixture(0), Cosine()), Network(width=8))
    expected = sample(residual.base, Cosine(), 10, steps=5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(residual, Cosine(), 10, steps=5, generator=torch.Generator().manual_seed(0)), expected)


def test_residual_has_the_jacobian_of_its_base() -> None:
    """The probability-flow likelihood differentiates a denoiser in x, so the frozen part must not be cut off."""
    base = ExactNoisePredictor(random_mixture(0), Cosine())
    x = X.double().requires_grad_()
    residual = Residual(base, Network(width=8).double())
    (expected,) = torch.autograd.grad(base(x, T.double()).sum(), x)
    (gradient,) = torch.autograd.grad(residual(x, T.double()).sum(), x)
    torch.testing.assert_close(gradient, expected)
