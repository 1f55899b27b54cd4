r"""Algorithm 1: DDIM sampling, stochastic or deterministic.

Between times :math:`s<t` the transition (2.7) is the bridge (2.4) with both ends replaced by their predictions (2.6):

.. math::

   x_s = \alpha_s \hat x_0 + \sqrt{\sigma_s^2-\eta_s^2}\;\hat x_1 + \eta_s z
       = \frac{\alpha_s}{\alpha_t}\,x_t
         + \Big(\sqrt{\sigma_s^2-\eta_s^2}-\frac{\alpha_s\sigma_t}{\alpha_t}\Big)\hat x_1 + \eta_s z ,
   \qquad z\sim\mathcal N(0,I).

:math:`\eta=0` is deterministic. The stochastic sampler of DDPM has the standard deviation of the true bridge,

.. math:: \eta_s^{\mathrm{DDPM}} = \sigma_s\sqrt{1-\frac{\alpha_t^2\sigma_s^2}{\alpha_s^2\sigma_t^2}}
          \;\overset{\text{VP}}{=}\; \frac{\sigma_s}{\sigma_t}\sqrt{1-\frac{\alpha_t^2}{\alpha_s^2}},

and the scalar ``eta`` of the code (the paper's "η = 1.0" of Section 4.2) multiplies it, as in Song et al. (arXiv
2010.02502, eq. 16). The paper prints :math:`\sigma_t\sqrt{1-\alpha_t^2/\alpha_s^2}`, which swaps the times.

**The variance that is lost.** (2.7) puts a Dirac mass at :math:`\hat x_0` where the posterior of :math:`X_0` has a width.
With :math:`c=\alpha_s-\alpha_t\sqrt{\sigma_s^2-\eta_s^2}/\sigma_t` the true transition has the same mean and the covariance

.. math:: \eta_s^2 I + c^2\,\mathrm{Cov}(X_0\mid X_t=x_t), \qquad
          \mathbb E\,\tfrac1d\operatorname{tr}\mathrm{Cov}(X_0\mid X_t)
          = \frac{\sigma_t^2}{\alpha_t^2}\Big(1-\tfrac1d\,\mathbb E\|\hat x_1\|^2\Big) .

Leaving the second part out makes samples too narrow, by :math:`O(1/K)`. ``variance="analytic"`` puts its average back, with
the expectation taken over the batch that is being sampled (Bao et al., arXiv 2201.06503): no further evaluation of the
model, and exact for an isotropic Gaussian at any number of steps. Near :math:`t=1` the bracket is :math:`O(\alpha_t^2)`,
less than the noise of a mean of squares over a batch. There, for :math:`\sigma_t\ge\alpha_t`, we average its equal
:math:`\frac{\alpha_t}{\sigma_td}\,\mathbb E\,\hat x_1^\top(\hat x_0-\mathbb E\hat x_0)`, whose noise is of the bracket's own
size. At small times that form would multiply the network's error by :math:`\alpha_t/\sigma_t`.

**Weights.** At the same state the transitions of two models have the same width, and means that are :math:`u` standard
deviations apart. A step that :math:`\theta` draws with the noise :math:`z` has the density ratio

.. math:: \log\frac{p_{\mathrm{base}}(x_s\mid x_t)}{p_\theta(x_s\mid x_t)} = -u^\top z-\tfrac12\|u\|^2,\qquad
          u = \frac{1}{\eta_s}\Big(\sqrt{\sigma_s^2-\eta_s^2}-\frac{\alpha_s\sigma_t}{\alpha_t}\Big)
          \big(\hat x_1^\theta-\hat x_1^{\mathrm{base}}\big)(x_t,t) .

Summed along a path of :math:`\theta` this is the log weight that makes its end a sample of the base's sampler; with
:math:`\lambda r(x_0)` added, a sample of the exact tilt of that law. The last step has no noise; it is the base's.

Algorithm 1 as printed divides by :math:`\alpha_1=0` in its first step. The grid here therefore starts at
``schedule.t_max``, just below 1, where :math:`X_t` is still indistinguishable from noise; the last step is the Dirac
mass at :math:`\hat x_0` of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Generic, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from itlib._checks import autograd, checked
from itlib.network import NoisePredictor, device_of, evaluating
from itlib.schedules import Schedule

#: Variance of a reverse step: as in Algorithm 1, or with that of the posterior of X_0 added.
Variance = Literal["ddpm", "analytic"]

#: Samples that a model sees at once in a reverse process, so that memory does not grow with their number.
ROWS = 65_536


@checked
def time_grid(schedule: Schedule, steps: int) -> list[float]:
    """Times t_0 = 0 < t_1 < ... < t_K = schedule.t_max with K = steps, uniform except for the last.

    Raises:
        ValueError: if steps < 1.
    """
    scale = 1.0 if 1.0 - 1.0 / steps < schedule.t_max else schedule.t_max  # very fine grids end at t_max all the same
    return [scale * k / steps for k in range(steps)] + [schedule.t_max]


def _at(schedule: Schedule, *times: float) -> list[tuple[float, float]]:
    """alpha and sigma at some times, in double precision."""
    t = torch.tensor(times, dtype=torch.float64)
    return list(zip(schedule.alpha(t).tolist(), schedule.sigma(t).tolist(), strict=True))


#: A number for one step, or a column, (M, 1), for M steps at once.
Number = TypeVar("Number", bound=float | Tensor)


class ReverseStep(NamedTuple, Generic[Number]):
    """One step of Algorithm 1: x_s = a x_t + b x1_hat + std z.

    Args:
        t: the time that it leaves.
        a: factor of the state.
        b: factor of the prediction of X_1.
        std: of the noise.
    """

    t: Number
    a: Number
    b: Number
    std: Number

    def mean(self, x: Tensor, x1_hat: Tensor) -> Tensor:
        """Where the step leads on average, (B, d)."""
        return self.a * x + self.b * x1_hat

    def draw(self, x: Tensor, x1_hat: Tensor, z: Tensor) -> Tensor:
        """Where it leads with a noise z, (B, d)."""
        return self.mean(x, x1_hat) + self.std * z

    def noise(self, x: Tensor, x1_hat: Tensor, x_s: Tensor) -> Tensor:
        """The noise z with which it leads to x_s, (B, d)."""
        return (x_s - self.a * x - self.b * x1_hat) / self.std

    @property
    def gain(self) -> float | Tensor:
        """b / std: a change of x1_hat shifts the mean by this many standard deviations."""
        return self.b / self.std  # type: ignore[operator]  # both are numbers, or both are tensors

    def control(self, x1_hat: Tensor, base: Tensor) -> Tensor:
        """u: shift of the mean against that of another prediction, in standard deviations, (B, d)."""
        return self.gain * (x1_hat - base)


def log_density_ratio(z_p: Tensor, z_q: Tensor) -> Tensor:
    """log p / q of steps of equal width, summed over the last axis, from the noises z_p and z_q that lead p and q there."""
    return 0.5 * (z_q.square() - z_p.square()).sum(-1)


def ddpm_std(schedule: Schedule, s: float, t: float) -> float:
    """Standard deviation of the DDPM bridge from t to s < t, for any schedule."""
    return transition(schedule, s, t, 1.0)[2]


@checked
def transition(schedule: Schedule, s: float, t: float, eta: float) -> tuple[float, float, float]:
    """Coefficients (a, b, std) of x_s = a x_t + b x1_hat + std z, for 0 <= s < t < 1.

    At s = 0 this is the final denoising step of Algorithm 1, x_0 = (x_t - sigma_t x1_hat) / alpha_t.

    Raises:
        ValueError: if the times are out of order.
        ValueError: if alpha_t vanishes.
        ValueError: if eta lies outside [0, 1].
    """
    return next(reverse_steps(schedule, (s, t), eta))[1:]


def reverse_steps(schedule: Schedule, times: Sequence[float], eta: float) -> Iterator[ReverseStep[float]]:
    """The steps along a rising grid of times, from the last time to the first: alpha and sigma at once.

    Raises:
        ValueError: as :func:`transition` does.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta multiplies DDPM's noise and lies in [0, 1], got {eta:g}")
    ends = list(zip(times, _at(schedule, *times), strict=True))
    for (s, (alpha_s, sigma_s)), (t, (alpha_t, sigma_t)) in reversed(list(pairwise(ends))):
        if not 0.0 <= s < t or alpha_t <= 0.0:
            raise ValueError(f"a reverse step needs 0 <= s < t < 1, got s={s:g}, t={t:g}: at t=1 alpha is zero")
        std = eta * (sigma_s * math.sqrt(max(0.0, 1.0 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)))
        yield ReverseStep(t, alpha_s / alpha_t, math.sqrt(sigma_s**2 - std**2) - alpha_s * sigma_t / alpha_t, std)


def posterior_std(schedule: Schedule, s: float, t: float, std: float, mean_square: float) -> float:
    """What the posterior of X_0 adds to the bridge's ``std``: c times its root mean variance per coordinate.

    Args:
        schedule: the pair alpha, sigma.
        s: the time stepped to.
        t: the time stepped from.
        std: standard deviation of the bridge, eta_s.
        mean_square: E ||x1_hat||^2 / d at time t. Above 1, which no exact predictor reaches, it counts as 1.
    """
    (alpha_s, sigma_s), (alpha_t, sigma_t) = _at(schedule, s, t)
    c = alpha_s - math.sqrt(sigma_s**2 - std**2) * alpha_t / sigma_t
    return c * sigma_t / alpha_t * math.sqrt(max(0.0, 1.0 - mean_square))


def analytic_std(schedule: Schedule, s: float, t: float, std: float, x: Tensor, x1_hat: Tensor) -> float:
    """The bridge's ``std`` with the mean width of the posterior of X_0 added.

    Args:
        schedule: the pair alpha, sigma.
        s: the time stepped to.
        t: the time stepped from.
        std: standard deviation of the bridge, eta_s.
        x: a batch at time t, (B, d).
        x1_hat: the model's prediction for it, (B, d).
    """
    ((alpha, sigma),) = _at(schedule, t)
    if sigma < alpha:
        mean_square = float(x1_hat.square().mean())
    else:
        x0_hat = (x - sigma * x1_hat) / alpha
        mean_square = 1.0 - alpha / sigma * float((x1_hat * (x0_hat - x0_hat.mean(0))).mean())
    return math.hypot(std, posterior_std(schedule, s, t, std, mean_square))


def randn(shape: Sequence[int], generator: torch.Generator | None, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Standard normal noise on a device, drawn where its generator lives.

    A CPU generator, or none, gives the same noise on every device; a generator of the device avoids the copy.
    """
    source = generator.device if generator else "cpu"
    return torch.randn(*shape, generator=generator, dtype=dtype, device=source).to(device)


@autograd
@torch.no_grad()
def reverse_process(
    model: NoisePredictor,
    schedule: Schedule,
    x: Tensor,
    *,
    steps: int = 200,
    eta: float = 1.0,
    variance: Variance = "ddpm",
    generator: torch.Generator | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Algorithm 1, one state at a time.

    Args:
        model: predicts X_1 from (x (B, d), t ()).
        schedule: the pair alpha, sigma.
        x: standard normal noise, (B, d): the state at schedule.t_max.
        steps: K, the number of evaluations of the model (the paper's J).
        eta: 0 is deterministic, 1 is DDPM.
        variance: "ddpm", that of Algorithm 1, or "analytic", which adds the mean variance of the posterior of X_0.
        generator: source of the noise z, of the CPU or of the device of x: see :func:`randn`.

    Yields:
        (t_k, x_{t_k}) for k = K-1, ..., 0; the last is (0, x_0).

    Raises:
        ValueError: if steps < 1.
        ValueError: if eta lies outside [0, 1].
        ValueError: for an unknown variance.
        ValueError: if the model returns another shape than that of x.
    """
    times = time_grid(schedule, steps)
    for s, step in zip(times[-2::-1], reverse_steps(schedule, times, eta), strict=True):
        time = torch.tensor(step.t, dtype=x.dtype, device=x.device)
        x1_hat = torch.cat([model(part, time) for part in x.split(ROWS)])
        if x1_hat.shape != x.shape:
            raise ValueError(
                f"a noise predictor must return the shape of its samples, {tuple(x.shape)}, got {tuple(x1_hat.shape)}"
            )
        if variance == "analytic":
            step = step._replace(std=analytic_std(schedule, s, step.t, step.std, x, x1_hat))
        x = step.mean(x, x1_hat)
        if step.std > 0.0:
            x = x + step.std * randn(x.shape, generator, x.dtype, x.device)
        yield s, x


@autograd
def sample(
    model: NoisePredictor,
    schedule: Schedule,
    n: int,
    d: int = 2,
    *,
    steps: int = 200,
    eta: float = 1.0,
    variance: Variance = "ddpm",
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw n samples of X_0, (n, d), by Algorithm 1, on a device, by default where the model's parameters are.

    Arguments as in :func:`reverse_process`.
    """
    x = randn((n, d), generator, dtype, device or device_of(model))
    with evaluating(model):
        for _, state in reverse_process(model, schedule, x, steps=steps, eta=eta, variance=variance, generator=generator):
            x = state
    return x


@autograd
@torch.no_grad()
def path_log_weights(
    model: NoisePredictor,
    base: NoisePredictor,
    schedule: Schedule,
    n: int,
    d: int = 2,
    *,
    steps: int = 200,
    eta: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    variance: Variance = "ddpm",
) -> tuple[Tensor, Tensor]:
    """Draw n samples of a model, (n, d), with the log weights, (n,), that make them samples of the base.

    Add lambda r(x_0) to the log weights, and they are samples of the tilted base. Arguments as for :func:`sample`, with one
    variance for both: the analytic one is that of the base, measured on n chains of its own beforehand.

    Raises:
        ValueError: if steps < 1.
        ValueError: if eta lies outside (0, 1]: steps without noise have no weights.
    """
    if eta <= 0.0:
        raise ValueError(f"paths have weights only if the steps are noisy: eta must be positive, got {eta:g}")
    times = time_grid(schedule, steps)
    kernels = list(reverse_steps(schedule, times, eta))
    with evaluating(model, base):
        if variance == "analytic":
            x = randn((n, d), generator, dtype, device or device_of(model))
            for k, (s, step) in enumerate(zip(times[-2::-1], list(kernels), strict=True)):
                x1_hat = base(x, torch.tensor(step.t, dtype=dtype, device=x.device))
                kernels[k] = step._replace(std=analytic_std(schedule, s, step.t, step.std, x, x1_hat))
                x = kernels[k].draw(x, x1_hat, randn(x.shape, generator, dtype, x.device))
        x = randn((n, d), generator, dtype, device or device_of(model))
        log_w = torch.zeros_like(x[:, 0])
        for step in kernels:
            time = torch.tensor(step.t, dtype=dtype, device=x.device)
            mean = step.mean(x, base(x, time))
            if step.std > 0.0:
                u = (step.mean(x, model(x, time)) - mean) / step.std
                z = randn(x.shape, generator, dtype, x.device)
                log_w -= (u * (z + 0.5 * u)).sum(-1)
                mean = mean + step.std * (u + z)
            x = mean
    return x, log_w
