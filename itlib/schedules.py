r"""Noise schedules: the two functions that fix the forward process.

The forward process (2.1) mixes data and noise,

.. math:: X_t = \alpha_t X_0 + \sigma_t X_1, \qquad X_1 \sim \mathcal N(0, I_d),

with :math:`\alpha` falling from 1 to 0 and :math:`\sigma` rising from 0 to 1 on :math:`t\in[0,1]`; data sit at
:math:`t=0`. Two choices of the paper's Section 2.1.1 are here:

.. math::

   &\text{cosine, variance preserving:} \quad
   \alpha_t = \frac{\cos\theta_t}{\cos\theta_0},\quad \theta_t = \frac{\pi}{2}\,\frac{t+s}{1+s},\quad s = 0.008,\\
   &\text{linear, flow matching:} \quad
   \alpha_t = 1-t,\quad \sigma_t = t.

For the cosine schedule :math:`\sigma_t^2 = 1-\alpha_t^2` loses every digit near :math:`t=0` in single precision, so it
is evaluated as :math:`\sin(\theta_t-\theta_0)\sin(\theta_t+\theta_0)/\cos^2\theta_0`, which is the same number.

Sources: Nichol and Dhariwal (arXiv 2102.09672, eq. 17) and Lipman et al. (arXiv 2210.02747).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Positive, checked


class Schedule(ABC):
    r"""A pair :math:`(\alpha_t, \sigma_t)`; every method takes times of any shape and returns that shape.

    ``t_min`` and ``t_max`` are the safe edge times: scores divide by :math:`\sigma_t` (zero at 0) and
    :math:`\hat x_0` divides by :math:`\alpha_t` (zero at 1), so code that does either stays inside them.
    """

    t_min: float = 1e-3
    t_max: float = 1.0 - 1e-3

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data, non-increasing, 1 at t=0 and 0 at t=1."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, non-decreasing, 0 at t=0 and 1 at t=1."""

    @abstractmethod
    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of alpha."""

    @abstractmethod
    def sigma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of sigma. For the cosine schedule it grows without bound as t falls to 0."""


@dataclass(frozen=True)
@checked
class Cosine(Schedule):
    """The variance-preserving cosine schedule of Nichol and Dhariwal, used in Section 4.2.

    Args:
        s: offset that keeps the noise from vanishing too fast near t=0.
    """

    s: Positive = 0.008

    def _theta(self, t: Tensor) -> Tensor:
        return (t + self.s) * (0.5 * math.pi / (1.0 + self.s))

    @property
    def _theta_0(self) -> float:
        return 0.5 * math.pi * self.s / (1.0 + self.s)

    def alpha(self, t: Tensor) -> Tensor:
        # sin of the distance to pi/2 keeps its digits near t=1, where cos(theta) would not.
        return torch.sin((1.0 - t) * (0.5 * math.pi / (1.0 + self.s))) / math.cos(self._theta_0)

    def sigma(self, t: Tensor) -> Tensor:
        step = t * (0.5 * math.pi / (1.0 + self.s))  # theta_t - theta_0
        return torch.sqrt(torch.sin(step) * torch.sin(step + 2.0 * self._theta_0)) / math.cos(self._theta_0)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.sin(self._theta(t)) * (0.5 * math.pi / (1.0 + self.s)) / math.cos(self._theta_0)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * self.alpha_dot(t) / self.sigma(t)


@dataclass(frozen=True)
@checked
class Linear(Schedule):
    """The straight line between data and noise of flow matching: alpha = 1 - t, sigma = t."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


def column(values: Tensor, x: Tensor) -> Tensor:
    """Shape per-sample values, (B,) or (), so that they multiply samples x of shape (B, d)."""
    return values.unsqueeze(-1) if values.ndim == x.ndim - 1 and values.ndim > 0 else values


def coefficients(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t, (B, 1) or (), at times t, (B,) or (), for samples x, (B, d).

    Raises:
        ValueError: for a time outside [0, 1], where a schedule is not defined.
    """
    if not bool(((t >= 0.0) & (t <= 1.0)).all()):
        wrong = t[~((t >= 0.0) & (t <= 1.0))].flatten()[0]
        raise ValueError(
            f"a time lies between 0 (data) and 1 (noise), got {float(wrong):g}: clamp it to the schedule's range"
        )
    return column(schedule.alpha(t), x), column(schedule.sigma(t), x)


@checked
def add_noise(schedule: Schedule, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """The noised sample of (2.1), alpha_t x_0 + sigma_t x_1.

    Args:
        schedule: the pair alpha, sigma.
        x_0: clean samples, (B, d).
        x_1: standard normal noise, (B, d).
        t: times in [0, 1], (B,) or ().

    Returns:
        Samples of X_t given x_0, (B, d).

    Raises:
        ValueError: for a time outside [0, 1].
        ValueError: if the shapes do not fit together.
    """
    alpha, sigma = coefficients(schedule, t, x_0)
    if x_0.shape != x_1.shape or (alpha.ndim and alpha.shape != (len(x_0), *[1] * (x_0.ndim - 1))):
        raise ValueError(f"x_0 and x_1 are (B, d), t is (B,) or (); got {[tuple(v.shape) for v in (x_0, x_1, t)]}")
    return alpha * x_0 + sigma * x_1
