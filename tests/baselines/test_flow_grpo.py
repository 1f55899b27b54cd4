"""Flow-GRPO: what its normalised advantages amount to, and where it stops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.guidance import exact_value
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.rewards import QuadraticReward
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


def test_normalised_advantages_set_the_strength() -> None:
    """At the base, where the KL has no gradient, and after: beta against r / std is beta std against r, up to scale."""

    def reward(x: Tensor) -> Tensor:
        seen.append(3.0 * x[:, 1] + x[:, 0].square())
        return seen[-1]

    seen: list[Tensor] = []
    knobs = {"iterations": 1, "updates": 6, "B": 32, "J": 5, "lr": 0.1, "clip": 1e9, "advantage_clip": 1e9}
    *_, ours = policy_gradient(Tilt(), reward, SCHEDULE, PolicyGradientConfig(kl=0.4, standardised=True, **knobs))
    std = float(seen[0].std())
    *_, theirs = policy_gradient(Tilt(), reward, SCHEDULE, PolicyGradientConfig(kl=0.4 * std, **knobs))
    assert std > 2
    torch.testing.assert_close(ours.model.shift, theirs.model.shift, rtol=1e-6, atol=1e-8)  # Adam's epsilon
    assert float(ours.model.shift.detach().norm()) > 0.1


@pytest.mark.parametrize("A", [0.0, -1.0])
def test_where_the_gradient_vanishes(A: float) -> None:
    """Under the control (score of the doubled tilt - base) / 2 the mean of lam r from a point is log E[e^{2 lam r}] / 2.

    The base is a mixture, so this is not the tilt: there the mean of lam r is below log E[e^{lam r}], which differs.
    """
    lam, n = 0.4, 20_000
    base = GaussianMixture(torch.tensor([0.4, 0.6]), torch.tensor([[-1.5], [1.0]]), torch.tensor([[[0.4]], [[0.7]]]))
    reward = QuadraticReward(torch.tensor([1.5]), torch.tensor([[A]]))
    before, doubled = ExactNoisePredictor(base, SCHEDULE), ExactNoisePredictor(base.tilted(reward, 2 * lam), SCHEDULE)
    value, gaps, error = exact_value(base, reward, SCHEDULE, 2 * lam), [], 0.0
    for J in (40, 80):
        times = time_grid(SCHEDULE, J)
        k = 3 * J // 4
        x = torch.full((n, 1), 0.3, dtype=F64)
        Y = 0.5 * float(value(x[:1], torch.tensor(times[k], dtype=F64)))
        generator = torch.Generator().manual_seed(0)
        for j in range(k, 0, -1):
            t = torch.tensor(times[j], dtype=F64)
            a, b, std = transition(SCHEDULE, times[j - 1], times[j], 1.0)
            x = a * x + b * 0.5 * (before(x, t) + doubled(x, t)) + std * torch.randn(n, 1, generator=generator, dtype=F64)
        gains = lam * reward(x)
        gaps.append(float(gains.mean()) - Y)
        error = float(gains.std()) / n**0.5
    assert abs(2 * gaps[1] - gaps[0]) < 4 * (5**0.5) * error, (gaps, error)  # what is of first order in the steps cancels
    start = torch.full((1, 1), 0.3, dtype=F64)
    at = torch.tensor(0.75, dtype=F64)
    assert abs(0.5 * float(value(start, at)) - float(exact_value(base, reward, SCHEDULE, lam)(start, at))) > 20 * error
