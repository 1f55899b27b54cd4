"""DRaFT: its gradient against finite differences, its optimum with and without the path KL."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.draft import DraftConfig, draft, low_variance, rollout
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample, time_grid, transition
from itlib.schedules import Cosine
from itlib.tilting import tilt_path

F64 = torch.float64


class Shifted(nn.Module):
    """The exact denoiser plus a shift by sigma alpha, which is how a linear reward moves one of N(0, I): two parameters."""

    def __init__(self, mixture: GaussianMixture) -> None:
        super().__init__()
        self.exact, self.shift = ExactNoisePredictor(mixture, Cosine()), nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.exact(x, t) + self.shift * Cosine().sigma(t.double()) * Cosine().alpha(t.double())


def objective(model: nn.Module, base: object, config: DraftConfig, n: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 2, generator=generator, dtype=F64)
    samples, cost = rollout(model, base, Cosine(), x, config, generator)
    return (parse_reward("one-mode")(samples) - config.kl * cost).mean()


@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_the_gradient_is_that_of_finite_differences(paper: GaussianMixture, kl: float) -> None:
    """(2.16) through all steps; central differences with an error of the second order in h."""
    model, base = Shifted(paper), ExactNoisePredictor(paper, Cosine())
    with torch.no_grad():
        model.shift += torch.tensor([0.05, -0.02])
    config = DraftConfig(J=6, kl=kl)
    (gradient,) = torch.autograd.grad(objective(model, base, config), [model.shift])
    h = 1e-5
    for i in range(2):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                model.shift[i] += sign * h
                values.append(float(objective(model, base, config)))
                model.shift[i] -= sign * h
        assert float(gradient[i]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_the_chain_is_algorithm_1(paper: GaussianMixture, eta: float) -> None:
    denoiser = ExactNoisePredictor(paper, Cosine())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 2, generator=generator, dtype=F64)
    ours, cost = rollout(denoiser, denoiser, Cosine(), x, DraftConfig(J=7, eta=eta), generator)
    theirs = sample(denoiser, Cosine(), 10, steps=7, eta=eta, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(ours, theirs)
    assert not cost.any()


def test_draft_k_is_the_gradient_of_the_last_steps(paper: GaussianMixture) -> None:
    """K = J is the full gradient, and K = 1 that of the last step from a fixed state."""
    model, base = Shifted(paper), ExactNoisePredictor(paper, Cosine())
    full, all_kept, last = (
        torch.autograd.grad(objective(model, base, DraftConfig(J=5, K=K)), [model.shift])[0] for K in (None, 5, 1)
    )
    assert torch.equal(full, all_kept)
    assert not torch.allclose(full, last, rtol=0.1)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 2, generator=generator, dtype=F64)
    times = time_grid(Cosine(), 5)
    with torch.no_grad():
        for k in range(5, 1, -1):
            a, b, std = transition(Cosine(), times[k - 1], times[k], 1.0)
            x = a * x + b * model(x, torch.tensor(times[k], dtype=F64))
            x = x + std * torch.randn(x.shape, generator=generator, dtype=F64)
    a, b, _ = transition(Cosine(), 0.0, times[1], 0.0)
    reward = parse_reward("one-mode")(a * x + b * model(x, torch.tensor(times[1], dtype=F64))).mean()
    torch.testing.assert_close(last, torch.autograd.grad(reward, [model.shift])[0])


def test_low_variance_averages_over_new_noise(paper: GaussianMixture) -> None:
    """With the exact denoiser, noising and denoising at the last time returns to the sample, up to that time's sigma."""
    denoiser, x_0 = ExactNoisePredictor(paper, Cosine()), paper.sample(5, torch.Generator().manual_seed(0))
    config = DraftConfig(J=400, K=1, renoise=3)
    again = low_variance(denoiser, Cosine(), x_0, config, torch.Generator().manual_seed(1))
    assert again.shape == (15, 2)
    sigma = float(Cosine().sigma(torch.tensor(time_grid(Cosine(), 400)[1], dtype=F64)))
    assert float((again - x_0.repeat(3, 1)).norm(dim=-1).max()) < 6 * sigma


def test_the_path_kl_of_the_exact_tilt_is_that_of_the_target(paper: GaussianMixture) -> None:
    """KL of the tilted chain to the base chain is KL(target || base) = 4 nats, up to the steps' error."""
    reward = parse_reward("paper")
    base = ExactNoisePredictor(paper, Cosine())
    target = ExactNoisePredictor(tilt_path(paper, reward, 1.0, 1)(1), Cosine())
    gaps = []
    for J in (100, 200, 400):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2000, 2, generator=generator, dtype=F64)
        _, cost = rollout(target, base, Cosine(), x, DraftConfig(J=J, kl=1.0), generator)
        gaps.append(float(cost.mean()) - paper.tilt_kl(reward))
    assert abs(gaps[-1]) < 0.1
    assert abs(gaps[2]) < abs(gaps[1]) < abs(gaps[0])


def climb(kl: float, iterations: int) -> list[float]:
    """The second component of the shift, after an ascent of r(x) = x_2 on N(0, I)."""
    base = Shifted(GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]))
    config = DraftConfig(iterations=iterations, kl=kl, J=50, B=256, lr=5e-2)
    steps = [(step.counts, step.model.shift.tolist()) for step in draft(base, lambda x: x[:, 1], Cosine(), config)]
    assert steps[-1][0].reward == 0
    assert steps[-1][0].reward_gradient == iterations * 256
    return [shift for _, shift in steps]


def test_without_a_path_kl_the_reward_is_climbed_without_end() -> None:
    """The exact tilt has the shift (0, -1): the penalised objective ends there, and the plain one goes by."""
    plain, penalised = climb(0.0, 60)[-1], torch.tensor(climb(1.0, 100)[-30:]).mean(0)
    assert plain[1] < -2
    assert float(penalised[1]) == pytest.approx(-1.0, abs=0.1)  # 50 steps of the sampler, 256 samples a gradient
    assert abs(float(penalised[0])) < 0.1


def test_counts_and_errors() -> None:
    network = Network(width=16, depth=2, embedding=8)
    config = DraftConfig(iterations=2, J=4, B=8, K=1)
    steps = list(draft(network, lambda x: x[:, 0], Cosine(), config))
    assert [s.counts.network for s in steps] == [32, 64]
    assert [s.counts.network_gradient for s in steps] == [8, 16]
    with pytest.raises(RuntimeError, match="forward-only"):
        next(draft(network, ForwardOnly(lambda x: x[:, 0]), Cosine(), config))
    with pytest.raises(FloatingPointError, match="iteration 1"):
        next(draft(network, lambda x: x[:, 0] * float("nan"), Cosine(), config))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"B": 0}, "at least 1"),
        ({"iterations": 1.5}, "iterations must be a whole number"),
        ({"renoise": -1, "K": 1}, "renoise must be a whole number"),
        ({"K": 9, "J": 4}, "K must be at most J=4"),
        ({"renoise": 2}, "K=1"),
        ({"kl": 1.0, "eta": 0.0}, "noisy"),
        ({"kl": 1.0, "K": 1}, "that gradients reach"),
        ({"kl": -1.0}, "kl must be a finite number of at least 0"),
        ({"lr": 0.0}, "lr must be a positive finite number"),
        ({"eta": 2.0}, "eta must be a number from 0 to 1"),
        ({"lam": float("nan")}, "lam must be a finite number"),
        ({"kl": 1.0, "J": 1}, "that gradients reach"),
    ],
)
def test_refuses(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraftConfig(**knobs)
