r"""The schedules of other people's models, and the clocks that their samplers go by.

All that a sampler needs of a schedule is the noise level :math:`\rho=\sigma/\alpha`: dividing a state by
:math:`\sqrt{\alpha^2+\sigma^2}` changes no chain. A *variance-exploding* process :math:`\tilde x=X_0+\rho X_1` (Karras et
al., arXiv 2206.00364) is therefore taken as the variance-preserving one that it is,

.. math:: x = \alpha\tilde x,\qquad \alpha=\frac{1}{\sqrt{1+\rho^2}},\qquad \sigma=\frac{\rho}{\sqrt{1+\rho^2}} .

The continuous variance-preserving process of Song et al. (arXiv 2011.13456) has
:math:`\log\alpha_t^2=-\tfrac12t^2(\beta_1-\beta_0)-t\beta_0`; a *table* of a discrete one has squared data weights
:math:`\bar\alpha_0>\dots>\bar\alpha_{T-1}`, put at :math:`t=(\tau+1)/T`, 1 at :math:`t=0`, the logarithm linear between.

**Where a chain may start.** :math:`\hat x_0=(x-\sigma\hat x_1)/\alpha` multiplies an error of the prediction by
:math:`\rho`. Tables that end at :math:`\alpha=5\cdot10^{-5}`, or at 0, are therefore left at ``alpha_min``. Noise is
then taken for a state that differs from it by :math:`\mathrm{KL}\le\alpha^2\,\mathbb E\|X_0\|^2/2`: with :math:`\alpha=.005`
some :math:`10^{-5}` nats a pixel.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from torch import Tensor

from itlib.schedules import Linear, Schedule

#: The smallest weight of the data that a chain starts from.
ALPHA_MIN = 5e-3


def _double(t: Tensor) -> Tensor:
    """Times in double precision, where the device has it."""
    return t.double() if t.device.type != "mps" else t.float()


class ModelSchedule(Schedule):
    """A schedule that knows what its model is told for a time, and finds the time of a noise level."""

    @abstractmethod
    def timestep(self, t: Tensor) -> Tensor:
        """What the model is told at times t, of any shape."""

    @abstractmethod
    def time_of(self, level: Tensor) -> Tensor:
        """The times at which sigma / alpha has given values, of any shape."""


class VariancePreserving(ModelSchedule):
    """A schedule with sigma^2 = 1 - alpha^2, given by the logarithm of alpha^2."""

    @abstractmethod
    def log_square(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha^2 at times t of any shape, in double precision, and its slope."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self.log_square(t)[0]).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self.log_square(t)[0])).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        log, slope = self.log_square(t)
        return (0.5 * slope * torch.exp(0.5 * log)).to(t.dtype)

    def sigma_dot(self, t: Tensor) -> Tensor:
        log, slope = self.log_square(t)
        return (-0.5 * slope * torch.exp(log) / torch.sqrt(-torch.expm1(log))).to(t.dtype)


class Tabulated(VariancePreserving):
    """The schedule of a table, such as ``scheduler.alphas_cumprod`` of diffusers; the model is told tau.

    Args:
        alphas_cumprod: squared weights of the data at tau = 0, ..., T - 1, (T,): decreasing, in (0, 1), the last perhaps 0.
        alpha_min: chains start where alpha is at least this.

    Raises:
        ValueError: for a table that is not of this kind.
    """

    def __init__(self, alphas_cumprod: Tensor, alpha_min: float = ALPHA_MIN) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu().clone()
        if table.ndim != 1 or len(table) < 3 or not bool((table[:-1] > table[1:]).all()) or table[0] >= 1 or table[-1] < 0:
            raise ValueError(
                f"alphas_cumprod must fall from below 1 to 0 or more, (T,) with T of 3 or more; got {tuple(table.shape)} "
                f"from {float(table.flatten()[0]):g} to {float(table.flatten()[-1]):g}"
            )
        self.T = len(table)
        if table[-1] == 0.0:  # has no logarithm, and no start: the least that a chain may start from stands for it
            table[-1] = min(alpha_min**2, 0.5 * float(table[-2]))
        self._log = torch.cat([torch.zeros(1, dtype=torch.float64), table.log()])
        self.t_min = 0.5 / self.T
        self.t_max = min(1.0, float(self.time_of(torch.tensor(1.0 / alpha_min**2 - 1.0).double().sqrt())))

    def log_square(self, t: Tensor) -> tuple[Tensor, Tensor]:
        place = _double(t) * self.T
        log = self._log.to(place)
        left = place.detach().floor().clamp(0, self.T - 1).long()
        slope = log[left + 1] - log[left]
        return log[left] + (place - left) * slope, slope * self.T

    def timestep(self, t: Tensor) -> Tensor:
        """Tau at times t, in general between two whole numbers; 0 also for earlier times."""
        return (t * self.T - 1.0).clamp(0.0, self.T - 1.0)

    def time_of(self, level: Tensor) -> Tensor:
        log = -torch.log1p(_double(level).square())
        return torch.as_tensor(np.interp(-log.numpy(), -self._log.numpy(), np.arange(self.T + 1.0) / self.T))


class ContinuousVP(VariancePreserving):
    """The continuous variance-preserving schedule of score_sde, whose model is told (T - 1) t.

    Args:
        beta_min: rate of noise at t = 0.
        beta_max: rate of noise at t = 1.
        T: number of its training times.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, T: int = 1000) -> None:
        self.beta_min, self.beta_max, self.T = beta_min, beta_max, T
        self.t_max = 1.0

    def log_square(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t, rise = _double(t), self.beta_max - self.beta_min
        return -0.5 * t.square() * rise - t * self.beta_min, -t * rise - self.beta_min

    def timestep(self, t: Tensor) -> Tensor:
        return t * (self.T - 1)

    def time_of(self, level: Tensor) -> Tensor:
        rise, spent = self.beta_max - self.beta_min, torch.log1p(_double(level).square())
        return 2 * spent / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * rise * spent))


class VarianceExploding(VariancePreserving):
    r"""Noise levels up to a largest one, divided into a variance-preserving schedule: rho = sigma_max t^7, the clock of EDM.

    Args:
        sigma_max: the largest noise level.
        log_time: whether the model is told log(rho) / 4, as by EDM, or rho itself.
    """

    exponent = 7.0

    def __init__(self, sigma_max: float = 80.0, log_time: bool = True) -> None:
        self.sigma_max, self.log_time = sigma_max, log_time
        self.t_max = 1.0

    def _level(self, t: Tensor) -> Tensor:
        return self.sigma_max * _double(t) ** self.exponent

    def log_square(self, t: Tensor) -> tuple[Tensor, Tensor]:
        level = self._level(t)
        slope = self.exponent * level / _double(t).clamp_min(1e-12)
        return -torch.log1p(level.square()), -2 * level * slope / (1 + level.square())

    def timestep(self, t: Tensor) -> Tensor:
        level = self._level(t.clamp_min(self.t_min)).to(t.dtype)
        return 0.25 * level.log() if self.log_time else level

    def time_of(self, level: Tensor) -> Tensor:
        return (_double(level) / self.sigma_max) ** (1 / self.exponent)


class Flow(Linear, ModelSchedule):
    """The straight line of flow matching, alpha = 1 - t and sigma = t, whose model is told T t.

    A shift s, t -> s t / (1 + (s - 1) t), is a matter of the grid, which :class:`OnGrid` follows.

    Args:
        T: number of training times.
        alpha_min: chains start where alpha is at least this.
    """

    def __init__(self, T: int = 1000, alpha_min: float = ALPHA_MIN) -> None:
        object.__setattr__(self, "T", T)
        object.__setattr__(self, "t_max", 1.0 - alpha_min)

    T: int

    def timestep(self, t: Tensor) -> Tensor:
        return self.T * t

    def time_of(self, level: Tensor) -> Tensor:
        return _double(level) / (1 + _double(level))


class OnGrid(Schedule):
    """The same process on another clock: K even steps of Algorithm 1 visit given times of it.

    Args:
        schedule: the process.
        times: that the steps visit, rising from 0, (K + 1,), up to 1.
        told: what the model is told there if not what the schedule says, (K,).

    Raises:
        ValueError: for times that do not rise from 0.
    """

    def __init__(self, schedule: ModelSchedule, times: Tensor, told: Tensor | None = None) -> None:
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2 or times[0] != 0 or not bool((times.diff() > 0).all()) or times[-1] > 1:
            raise ValueError(f"the times of a grid rise from 0 to at most 1, got {[round(v, 4) for v in times.tolist()]}")
        self.schedule, self._times, self.K = schedule, times, len(times) - 1
        shift = torch.zeros(self.K) if told is None else told.double().cpu() - schedule.timestep(times[1:])
        self._shift = torch.cat([shift[:1], shift]).double()
        self.t_min = 0.5 / self.K
        self.t_max = 1.0
        if times[-1] > schedule.t_max:  # only what lies in the last step can be left out, and the start of it is
            before = float(times[-2])
            self.t_max = (self.K - 1 + max(0.01, (schedule.t_max - before) / float(times[-1] - before))) / self.K

    def _along(self, values: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Values at the grid, (K + 1,), between its points, and their slope."""
        place = _double(t) * self.K
        values = values.to(place)
        left = place.detach().floor().clamp(0, self.K - 1).long()
        slope = values[left + 1] - values[left]
        return values[left] + (place - left) * slope, slope * self.K

    def _value(self, of: str, t: Tensor) -> Tensor:
        value: Tensor = getattr(self.schedule, of)(self._along(self._times, t)[0])
        return value

    def alpha(self, t: Tensor) -> Tensor:
        return self._value("alpha", t).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return self._value("sigma", t).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return (self._value("alpha_dot", t) * self._along(self._times, t)[1]).to(t.dtype)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return (self._value("sigma_dot", t) * self._along(self._times, t)[1]).to(t.dtype)

    def timestep(self, t: Tensor) -> Tensor:
        """What the model is told at times t."""
        return (self._value("timestep", t) + self._along(self._shift, t)[0]).to(t.dtype)
