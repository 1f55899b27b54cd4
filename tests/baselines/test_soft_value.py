"""Steering by a value: what is learned, the bias of few proposals, and that Feynman-Kac weights mend any potential."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from itlib.baselines.guidance import exact_value
from itlib.baselines.monte_carlo import SMCConfig, sequential_monte_carlo
from itlib.baselines.soft_value import decode, learn_value
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.rewards import ForwardOnly, QuadraticReward
from itlib.sampling import sample
from itlib.schedules import Cosine

F64 = torch.float64
SCHEDULE = Cosine()
GAUSSIAN = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
BASE = ExactNoisePredictor(GAUSSIAN, SCHEDULE)
REWARD = QuadraticReward(torch.ones(1))


@pytest.mark.parametrize("soft", [True, False])
def test_the_value_learned_is_the_one_asked_for(soft: bool) -> None:
    """For N(0, 1) and r(x) = x they differ by half the posterior's variance: soft alpha x + sigma^2 / 2, plain alpha x."""
    *_, value = learn_value(BASE, ForwardOnly(REWARD), SCHEDULE, n=4000, J=40, d=1, soft=soft, steps=2500, lr=5e-3)
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(1))
    for t in (0.5, 0.8, 0.95):
        at = torch.tensor(t)
        alpha, sigma = float(SCHEDULE.alpha(at)), float(SCHEDULE.sigma(at))
        with torch.no_grad():
            gap = value(x, at) - alpha * x[:, 0]
        half = 0.5 * sigma**2
        assert abs(float(gap.mean()) - (half if soft else 0.0)) < 0.35 * half, (t, float(gap.mean()), half)


def test_few_proposals_are_biased_by_one_over_their_number() -> None:
    """With the exact value, against the exact tilt of the same chain: slope -1; one proposal draws the base."""
    J, n, value = 8, 40_000, exact_value(GAUSSIAN, REWARD, SCHEDULE)
    drawn = sample(BASE, SCHEDULE, n, 1, steps=J, generator=torch.Generator().manual_seed(9), dtype=F64)
    tilt = float(drawn.var())  # the mean of a Gaussian of this variance, tilted by x

    def mean(M: int) -> float:
        generator = torch.Generator().manual_seed(M)
        return float(decode(BASE, value, SCHEDULE, n, M=M, d=1, J=J, generator=generator, dtype=F64).mean())

    assert abs(mean(1)) < 4.5 * math.sqrt(tilt / n)
    counts = (4, 8, 16, 32)
    gaps = [tilt - mean(M) for M in counts]
    slope = np.polyfit(np.log(counts), np.log(gaps), 1)[0]
    assert abs(slope + 1) < 0.2, gaps


def test_feynman_kac_weights_mend_any_potential() -> None:
    """A value of the wrong sign, and none: the weighted mean is that of the tilt of the chain."""
    n, J = 20_000, 20
    drawn = sample(BASE, SCHEDULE, n, 1, steps=J, generator=torch.Generator().manual_seed(9), dtype=F64)
    potentials = {"wrong": lambda x, t: -0.3 * x[:, 0], "none": lambda x, t: torch.zeros_like(x[:, 0])}
    for name, potential in potentials.items():
        *_, last = sequential_monte_carlo(
            BASE, REWARD, SCHEDULE, SMCConfig(n=n, J=J), d=1, potential=potential, dtype=F64,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        w: Tensor = torch.softmax(last.log_w, 0)
        error = float((w * (last.x[:, 0] - (w * last.x[:, 0]).sum())).square().sum().sqrt())
        spread = float(drawn.var()) * math.sqrt(2 / n)  # of the variance that is the tilt's mean
        assert abs(float((w * last.x[:, 0]).sum()) - float(drawn.var())) < 4.5 * 2 * math.hypot(error, spread), name
