"""Adjoint Matching: its adjoint against autograd, its optimum against the exact control, its convergence in the steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.accounting import FineTuning, trajectory
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching, lean_adjoint
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample, time_grid, transition
from itlib.schedules import Cosine, Linear

F64 = torch.float64


def test_the_trajectory_is_algorithm_1(paper: GaussianMixture) -> None:
    denoiser = ExactNoisePredictor(paper, Cosine())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 2, generator=generator, dtype=F64)
    states = trajectory(denoiser, denoiser, Cosine(), x, 7, generator)
    theirs = sample(denoiser, Cosine(), 10, steps=7, generator=torch.Generator().manual_seed(0), dtype=F64)
    torch.testing.assert_close(states[-1], theirs)
    assert len(states) == 8


def test_widths_of_the_base_keep_its_variance() -> None:
    """Chains of few steps of N(0, v): narrower than v with DDPM's noise, and v with the widths that are measured."""
    v, J = 0.5, 12
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), v * torch.eye(2)[None])
    base, schedule = ExactNoisePredictor(gaussian, Cosine()), Cosine()
    widths = FineTuning(base, lambda x: x[:, 1], 2, 0, 1e-3).widths(schedule, J, "analytic", 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40_000, 2, generator=generator)
    narrow = trajectory(base, base, schedule, x, J, generator)[-1].var()
    kept = trajectory(base, base, schedule, x, J, generator, widths)[-1].var()
    assert narrow < 0.9 * v
    assert float(kept) == pytest.approx(v, rel=0.05)  # of 2,000 chains' means, and 40,000 draws


def test_the_lean_adjoint_is_the_gradient_through_the_base(paper: GaussianMixture) -> None:
    """With the noises held fixed, a_k is minus the gradient of the reward at x_0 in the state x_k, by autograd."""
    base, reward, steps = ExactNoisePredictor(paper, Cosine()), parse_reward("unequal"), 6
    generator = torch.Generator().manual_seed(1)
    states = trajectory(base, base, Cosine(), torch.randn(4, 2, generator=generator, dtype=F64), steps, generator)
    adjoints = lean_adjoint(states, base, reward, Cosine(), 0.7)
    times = time_grid(Cosine(), steps)
    for k in range(1, steps):
        x = start = states[steps - k].clone().requires_grad_()
        for j in range(k, 0, -1):
            a, b, _ = transition(Cosine(), times[j - 1], times[j], 1.0)
            mean = a * x + b * base(x, torch.tensor(times[j], dtype=F64))
            x = mean + (states[steps - j + 1] - mean).detach() if j < k else mean + (states[steps - k + 1] - mean).detach()
        (gradient,) = torch.autograd.grad(0.7 * reward(x).sum(), start)
        torch.testing.assert_close(adjoints[k], -gradient)


def test_for_one_gaussian_the_adjoint_is_the_exact_control() -> None:
    """A linear reward on N(0, I): the adjoint is the same on every path, and -eta a the control of the exact tilt.

    In discrete time the exact denoiser of the tilt is the control up to the steps' error: of the first order for the linear
    schedule. For the cosine it is log K / K, which no straight line fits.
    """
    gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    reward, errors, counts = parse_reward("paper"), [], [50, 100, 200, 400, 800]
    base, tilted = (ExactNoisePredictor(m, Linear()) for m in (gaussian, gaussian.tilted(reward)))
    for steps in counts:
        generator = torch.Generator().manual_seed(0)
        states = trajectory(tilted, base, Linear(), torch.randn(3, 2, generator=generator, dtype=F64), steps, generator)
        adjoints, times = lean_adjoint(states, base, reward, Linear(), 1.0), time_grid(Linear(), steps)
        gap = size = 0.0
        for k in range(2, steps + 1):
            _, b, std = transition(Linear(), times[k - 1], times[k], 1.0)
            x, t = states[steps - k], torch.tensor(times[k], dtype=F64)
            exact = b / std * (tilted(x, t) - base(x, t))
            gap += float((exact + std * adjoints[k - 1]).square().sum())
            size += float(exact.square().sum())
        errors.append((gap / size) ** 0.5)
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope + 1) < 0.1, errors


def test_on_a_mixture_the_control_is_the_conditional_mean_of_the_adjoint(paper: GaussianMixture) -> None:
    """Many paths of the optimal law from one state: the mean of -eta a is the exact control, a single path's is not."""
    reward, steps, k, n = parse_reward("unequal"), 200, 100, 40_000
    base, tilted = (ExactNoisePredictor(m, Cosine()) for m in (paper, paper.tilted(reward)))
    times = time_grid(Cosine(), steps)
    x = torch.tensor([[0.3, 0.8]], dtype=F64)
    _, b, std = transition(Cosine(), times[k - 1], times[k], 1.0)
    exact = (b / std * (tilted(x, torch.tensor(times[k], dtype=F64)) - base(x, torch.tensor(times[k], dtype=F64))))[0]
    generator = torch.Generator().manual_seed(0)
    state, states = x.expand(n, 2), [x.expand(n, 2)]
    for j in range(k, 0, -1):  # the lower part of a trajectory
        a, c, noise = transition(Cosine(), times[j - 1], times[j], 1.0)
        state = a * state + c * (tilted if j > 1 else base)(state, torch.tensor(times[j], dtype=F64))
        state = state + noise * torch.randn(state.shape, generator=generator, dtype=F64)
        states.append(state)
    # lean_adjoint reads the grid from the number of states: the upper part is not used.
    adjoint = lean_adjoint([x.expand(n, 2)] * (steps - k) + states, base, reward, Cosine(), 1.0)[k - 1]
    control = -std * adjoint
    standard_error = control.std(0) / n**0.5
    assert bool(((control.mean(0) - exact).abs() < 4 * standard_error + 0.02 * exact.norm()).all()), (control.mean(0), exact)
    assert float(control.std(0).max()) > 0.1 * float(exact.norm())


class Tilt(nn.Module):
    """The exact denoiser of N(0, I) plus a shift by sigma alpha: its tilts by linear rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = ExactNoisePredictor(GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]), Cosine())
        self.shift = nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (Cosine().sigma(t.double()) * Cosine().alpha(t.double())).unsqueeze(-1)
        return self.exact(x, t) + self.shift * scale


def test_it_ends_at_the_exact_tilt() -> None:
    """For r(x) = x_2 the shift of the exact tilt is (0, -1), up to an error of the first order in the steps."""
    counts, gaps = (25, 50, 100), []
    for J in counts:
        config = AdjointMatchingConfig(iterations=150, J=J, B=4, lr=2e-2)
        shifts = [step.model.shift.tolist() for step in adjoint_matching(Tilt(), lambda x: x[:, 1], Cosine(), config)]
        assert abs(shifts[-1][0]) < 1e-3
        gaps.append(shifts[-1][1] + 1)
    slope = np.polyfit(np.log(counts), np.log(gaps), 1)[0]
    assert abs(slope + 1) < 0.1, gaps


def test_counts_and_errors() -> None:
    network = Network(width=16, depth=2, embedding=8)
    config = AdjointMatchingConfig(iterations=2, J=4, B=8)
    step = next(adjoint_matching(network, lambda x: x[:, 0], Cosine(), config))
    assert (step.counts.reward, step.counts.reward_gradient) == (0, 8)
    assert step.counts.network == 8 * (4 + 3 + 3 + 3)  # trajectory, adjoint, base and student of the loss
    with pytest.raises(RuntimeError, match="forward-only"):
        next(adjoint_matching(network, ForwardOnly(lambda x: x[:, 0]), Cosine(), config))
    with pytest.raises(FloatingPointError, match="iteration 1"):
        next(adjoint_matching(network, lambda x: x[:, 0] * float("nan"), Cosine(), config))
    with pytest.raises(ValueError, match="J must be at least 2"):
        AdjointMatchingConfig(J=1)
