"""Reweigh, then distil: the exact tilt of a Gaussian, in one round and in several, and what a cut-off does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.distillation import DistillationConfig, cut_off, distillation
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly
from itlib.sampling import reverse_steps, time_grid
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


def drawn_variance(J: int) -> float:
    """Variance of what Algorithm 1 draws from the exact denoiser of N(0, 1), sigma x: its tilt by x has this for a mean."""
    times, variance = time_grid(SCHEDULE, J), 1.0
    for t, a, b, std in reverse_steps(SCHEDULE, times, 1.0):
        variance = (a + b * float(SCHEDULE.sigma(torch.tensor(t, dtype=F64)))) ** 2 * variance + std**2
    return variance


def shifts(lam: float, **knobs: object) -> list[float]:
    config = DistillationConfig(**{"lam": lam, "n": 4000, "J": 50, "steps": 150, "B": 200, "lr": 0.1} | knobs)
    steps = distillation(Tilt(), ForwardOnly(lambda x: x[:, 1]), SCHEDULE, config)
    return [float(step.model.shift[1].detach()) for step in steps]


@pytest.mark.parametrize("smc", [False, True])
def test_one_round_is_the_tilt_if_the_weights_carry_it(smc: bool) -> None:
    """Strength 1: the effective share is 1/e, and the shift is that of the tilt of what the sampler draws."""
    (end,) = shifts(1.0, smc=smc)
    assert abs(end + drawn_variance(50)) < 4.5 / (4000 / math.e) ** 0.5


def test_several_rounds_go_where_one_cannot() -> None:
    """Strength 5: an effective share of e^-25 leaves one round short; path weights bring the rest, cut off or not."""
    aim, error = -5 * drawn_variance(50), 4.5 / 2000**0.5  # half of the samples count in the last rounds, or more
    (once,) = shifts(5.0)
    assert abs(once - aim) > 2 * error
    for knobs in ({"rounds": 10}, {"rounds": 20, "accept": 0.3}):
        ends = shifts(5.0, **knobs)
        assert abs(ends[-1] - aim) < error, (ends, aim)
    assert ends[0] > once + 2 * error  # a cut-off makes the first round shorter


def test_a_cut_off_accepts_the_share_it_is_told() -> None:
    log_w = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=F64)
    cut = cut_off(log_w, 0.2)
    c = float(cut.max())
    assert float((log_w - c).clamp_max(0).exp().mean()) == pytest.approx(0.2)
    torch.testing.assert_close(cut, torch.minimum(log_w, torch.tensor(c, dtype=F64)))
    same = cut_off(torch.zeros(10, dtype=F64), 0.5)
    torch.testing.assert_close(same, torch.zeros(10, dtype=F64))


def test_counts_and_errors() -> None:
    network = Network(width=16, depth=2, embedding=8)
    config = DistillationConfig(rounds=2, n=10, J=4, steps=3, B=8)
    *_, last = distillation(network, ForwardOnly(lambda x: x[:, 0]), SCHEDULE, config)
    assert last.counts.reward == 20
    assert last.counts.network == 2 * (2 * 10 * 4 - 10 + 3 * 8)  # the last step is the base's alone
    for knobs in ({"accept": 0.0}, {"accept": 1.0}, {"lr": 0.0}, {"lam": float("inf")}, {"rounds": 0}):
        with pytest.raises(ValueError, match=r"must|share|positive"):
            DistillationConfig(**knobs)
