r"""Where the error of Algorithm 2 comes from: its ingredients, and the exact counterpart of each.

One tilt is made of samples :math:`D_k`, a teacher :math:`\hat x_1^{k-1}`, a covariance and an optimiser. On a mixture with a
quadratic reward the first three have closed forms, since :math:`p^{k-1}` is known: :func:`ingredients` puts either one into
:func:`~itlib.tilting.iterative_tilting`. The regression target of an exact teacher is

.. math:: \varepsilon_{\mathrm{target}} = -\sigma_t\nabla\log p_t^{k-1} - \delta\,\sigma_tC_{k-1} ,

with the covariance either exact or :math:`r(X_0)(-\sigma_t\nabla\log p_t^{k-1}-z)`, whose mean given :math:`x_t` is exact
if :math:`X_0\sim p^{k-1}`. Errors of earlier tilts are then no part of the target.

:func:`cells` is the grid of runs: a :math:`2\times2` factorial of samples and covariance, and further exchanges one at a
time, from everything learned and from samples and covariance exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from itlib.beyond.estimators import centred
from itlib.gaussian_mixture import ExactDenoiser, GaussianMixture
from itlib.network import Denoiser
from itlib.rewards import QuadraticReward
from itlib.sampling import sample
from itlib.schedules import Schedule
from itlib.tilting import (
    DatasetSampler,
    TiltBatch,
    Update,
    exact_covariance,
    exact_samples,
    explicit,
    single_sample,
)

#: Where D_k comes from: Algorithm 1, Algorithm 1 with the variance put back that it loses, or p^{k-1} itself.
Samples = Literal["model", "analytic", "exact"]
#: The covariance of a tilt: the paper's single sample, the same with the mean reward subtracted, or the closed form.
Covariance = Literal["single", "centred", "exact"]


def taught_by(path: Callable[[int], GaussianMixture], schedule: Schedule, update: Update) -> Update:
    """The same update, with the exact denoiser of p^{k-1} for a teacher."""

    def taught(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        truth = ExactDenoiser(path(batch.k - 1), schedule)
        return update(replace(batch, eps_old=truth(batch.x_t, batch.t.clamp_min(schedule.t_min))), delta)

    return taught


def analytic_sampler(schedule: Schedule, d: int, steps: int) -> DatasetSampler:
    """D_k by Algorithm 1, with the mean variance of the posterior of X_0 put back."""

    def draw(denoiser: Denoiser, k: int, S: int, generator: torch.Generator) -> Tensor:
        return sample(denoiser, schedule, S, d, steps=steps, variance="analytic", generator=generator)

    return draw


def ingredients(
    path: Callable[[int], GaussianMixture],
    reward: QuadraticReward,
    schedule: Schedule,
    *,
    samples: Samples = "model",
    covariance: Covariance = "single",
    exact_teacher: bool = False,
    J: int = 200,
) -> tuple[Update, DatasetSampler | None]:
    """What to hand to :func:`~itlib.tilting.iterative_tilting` as ``update`` and ``sampler``.

    Args:
        path: the exact p^k of (3.8), see :func:`~itlib.tilting.tilt_path`.
        reward: the tilt.
        schedule: the pair alpha, sigma.
        samples: where D_k comes from.
        covariance: "single", "centred" or "exact".
        exact_teacher: whether the teacher is the exact denoiser of p^{k-1} instead of the network of the last tilt.
        J: reverse steps of the sampler "analytic".

    Raises:
        ValueError: for samples or a covariance that do not exist.
    """
    samplers = {"model": None, "analytic": analytic_sampler(schedule, len(reward.b), J), "exact": exact_samples(path)}
    estimators = {"single": single_sample, "centred": centred(), "exact": exact_covariance(path, reward, schedule)}
    if samples not in samplers or covariance not in estimators:
        raise ValueError(
            f"samples are one of {[*samplers]} and the covariance of {[*estimators]}, got {samples!r}, {covariance!r}"
        )
    update = explicit(estimators[covariance])
    return taught_by(path, schedule, update) if exact_teacher else update, samplers[samples]


# ---- the grid -------------------------------------------------------------------------------------------------------

#: Exchanges by name; what is not named is Algorithm 2's own. The first four are the factorial.
EXCHANGES: dict[str, dict[str, str | int | bool]] = {
    "learned": {},
    "samples": {"samples": "exact"},
    "covariance": {"covariance": "exact"},
    "both": {"samples": "exact", "covariance": "exact"},
    # from everything learned, one
    "sampler": {"samples": "analytic"},
    "teacher": {"exact_teacher": True},
    "base": {"exact_base": True},
    "centred": {"covariance": "centred"},
    # from exact samples
    "fresh": {"samples": "exact", "S": 20_000},
    "samples_long": {"samples": "exact", "E": 300},
    "fresh_long": {"samples": "exact", "S": 20_000, "E": 300},
    # from exact samples and covariance, one more
    "both_teacher": {"samples": "exact", "covariance": "exact", "exact_teacher": True},
    "both_base": {"samples": "exact", "covariance": "exact", "exact_base": True},
    "both_long": {"samples": "exact", "covariance": "exact", "E": 300},
}
FACTORIAL = ("learned", "samples", "covariance", "both")
#: So few tilts that the samples of one hardly reach the next, which is about coverage.
FEW = (1, 2)


def cells() -> dict[str, dict[str, str | int | bool]]:
    """The grid: a cell's name before its seed, and its parameters."""
    asked = [
        *(("paper", 20, name) for name in EXCHANGES),
        *(("paper", N, "samples") for N in FEW),
        *(("paper", 100, name) for name in FACTORIAL),
        *(("one-mode", 20, name) for name in FACTORIAL),
    ]
    return {f"{task}_N{N:03d}_{name}": {"task": task, "N": N, **EXCHANGES[name]} for task, N, name in asked}
