"""Relative trajectory balance: its densities, its optimum, its normaliser, and replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.accounting import NoisySteps, trajectory
from itlib.baselines.relative_trajectory_balance import TrajectoryBalanceConfig, log_ratio, trajectory_balance
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly
from itlib.sampling import time_grid, transition
from itlib.schedules import Cosine

F64 = torch.float64
SCHEDULE = Cosine()


class Tilt(nn.Module):
    """The exact denoiser of N(0, I) plus a shift by sigma alpha: its tilts by linear rewards."""

    def __init__(self) -> None:
        super().__init__()
        gaussian = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
        self.exact, self.shift = ExactNoisePredictor(gaussian, SCHEDULE), nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (SCHEDULE.sigma(t.double()) * SCHEDULE.alpha(t.double())).unsqueeze(-1)
        return self.exact(x, t) + self.shift * scale


@pytest.mark.parametrize("wider", [0.0, 0.3])
def test_the_ratio_is_that_of_the_densities(wider: float) -> None:
    """Written out step by step with torch's own normal densities, for a law that is neither student nor base."""
    model, base, law, J, B = Tilt(), Tilt(), Tilt(), 7, 5
    with torch.no_grad():
        model.shift += torch.tensor([0.4, -0.7])
        law.shift += torch.tensor([-1.0, 0.2])
    generator = torch.Generator().manual_seed(0)
    times, x = time_grid(SCHEDULE, J), torch.randn(B, 2, generator=generator, dtype=F64)
    bridges = [transition(SCHEDULE, times[J - j - 1], times[J - j], 1.0)[2] for j in range(J)]
    widths = [std + wider for std in bridges] if wider else None
    states = trajectory(law, base, SCHEDULE, x, J, generator, widths)
    ours = log_ratio(model, NoisySteps.of(states, base, SCHEDULE, widths), B)
    exact = torch.zeros(B, dtype=F64)
    for j in range(J - 1):
        t = torch.tensor(times[J - j], dtype=F64)
        a, b, _ = transition(SCHEDULE, times[J - j - 1], times[J - j], 1.0)
        std = bridges[j] + wider
        for sign, f in ((1, model), (-1, base)):
            density = torch.distributions.Normal(a * states[j] + b * f(states[j], t), std)
            exact += sign * density.log_prob(states[j + 1]).sum(1)
    torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("replay", [0, 2])
def test_it_ends_at_the_exact_tilt_and_knows_its_normaliser(replay: int) -> None:
    """For r(x) = x_2 the shift is (0, -1) and log Z one half, up to an error of the first order in the steps."""
    counts, gaps, normalisers = (10, 20, 40), [], []
    for J in counts:
        config = TrajectoryBalanceConfig(iterations=120, J=J, B=32, lr=4e-2, replay=replay)
        runs = trajectory_balance(Tilt(), ForwardOnly(lambda x: x[:, 1]), SCHEDULE, config, seed=1)
        ends = [(step.model.shift.tolist(), step.loss) for step in runs][-40:]
        shift = np.mean([end for end, _ in ends], 0)
        assert abs(shift[0]) < 4 * np.std([end[0] for end, _ in ends]) / 10**0.5  # four iterations in a row say the same
        gaps.append(shift[1] + 1)
        normalisers.append(np.mean([loss for _, loss in ends]))
    slope = np.polyfit(np.log(counts), np.log(np.abs(gaps)), 1)[0]
    assert abs(slope + 1) < 0.25, gaps
    assert normalisers[-1] < 0.01  # the squared imbalance, which holds log Z, is gone


def test_old_chains_cost_no_rewards() -> None:
    network = Network(width=16, depth=2, embedding=8)
    config = TrajectoryBalanceConfig(iterations=3, J=4, B=8, replay=2, memory=1)
    *_, last = trajectory_balance(network, ForwardOnly(lambda x: x[:, 0]), SCHEDULE, config)
    assert (last.counts.reward, last.counts.reward_gradient) == (24, 0)
    chains = 8 * (1 + 3 + 3)  # fresh, and with two old batches in the second and third iteration
    assert last.counts.network == 3 * 8 * 4 + 2 * chains * 3
    assert last.counts.network_gradient == chains * 3


def test_bad_input() -> None:
    for knobs in (
        {"J": 1},
        {"replay": -1},
        {"replay": 0.5},
        {"lr": 0.0},
        {"lr_log_z": -1.0},
        {"lam": float("nan")},
        {"B": 0},
    ):
        with pytest.raises(ValueError, match=r"must|at least|positive"):
            TrajectoryBalanceConfig(**knobs)
    network = Network(width=16, depth=2, embedding=8)
    with pytest.raises(ValueError, match="NaN"):
        next(trajectory_balance(network, lambda x: x[:, 0] * float("nan"), SCHEDULE, TrajectoryBalanceConfig(J=4)))
