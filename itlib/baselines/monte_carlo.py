r"""Weighted samples: the tilt of the base *sampler*, by weights instead of training.

- *Importance resampling*: draw :math:`x_0` from the base, weigh by :math:`w=e^{\lambda r(x_0)}`, resample. Exact as
  :math:`n\to\infty`, but the effective sample size :math:`(\sum w)^2/\sum w^2` falls like :math:`n\,e^{-D_2}` with the Rényi
  divergence :math:`D_2` of target and base.
- *Best of n*: keep the best of n samples. Its law is not the tilt: :math:`r` has the law of the maximum of n draws, at a KL
  of at most :math:`\log n-(n-1)/n` from the base (Beirami et al., arXiv 2401.01879).
- *Sequential Monte Carlo*: weigh and resample on the way. With potentials :math:`\psi_t`, :math:`\psi_0=\lambda r`, and a
  proposal q, a step from t to s multiplies a particle's weight by

  .. math::

     \log w \mathrel{+}= \psi_s(x_s)-\psi_t(x_t)+\log\frac{p_{\mathrm{base}}(x_s\mid x_t)}{q(x_s\mid x_t)} ,

  and whenever the effective sample size falls below a share of n the population is resampled. Any :math:`\psi` and q give
  the exact tilt of the base chain as :math:`n\to\infty`, at error :math:`O(n^{-1/2})`, and an unbiased
  :math:`Z=\mathbb E_{\mathrm{base}}[e^{\lambda r}]`; good ones keep the constant small. By default
  :math:`\psi_t(x)=\gamma_t\lambda r(\hat x_0(x,t))` with :math:`\gamma_t=\alpha_t^2`, and q is the base: forward evaluations
  only (Kim, Kim and Park, arXiv 2501.05803, temper in the same way). ``twisted`` moves the proposal along
  :math:`\nabla\psi_t` as in the twisted diffusion sampler (Wu et al., arXiv 2306.17775), which needs :math:`\nabla r`. With
  :math:`\psi=V`, the exact value of :mod:`itlib.baselines.guidance`, *and* such a proposal the weights are constant up to
  the step size; with V alone they are not.

The last step of Algorithm 1 is a Dirac mass; it is the base's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Fraction, LogWeights, autograd, checked
from itlib.baselines.guidance import Value, clean
from itlib.metrics import effective_sample_size
from itlib.network import NoisePredictor, device_of
from itlib.rewards import Reward, evaluate
from itlib.sampling import log_density_ratio, randn, reverse_steps, sample, time_grid
from itlib.schedules import Schedule


@checked
def systematic(log_w: LogWeights, n: int, generator: torch.Generator) -> Tensor:
    """n indices drawn in proportion to exp(log_w), by systematic resampling: one uniform, evenly spaced points."""
    cumulative = torch.softmax(log_w.double(), 0).cumsum(0).cpu()
    start = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device).cpu()
    points = (torch.arange(n, dtype=torch.float64) + start) / n
    return torch.searchsorted(cumulative, points).clamp_max(len(log_w) - 1).to(log_w.device)


@autograd
def importance(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    n: int,
    *,
    d: int = 2,
    lam: float = 1.0,
    J: int = 200,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Samples of the base, (n, d), and their log weights lam r, (n,)."""
    x = sample(base, schedule, n, d, steps=J, generator=generator)
    return x, lam * evaluate(reward, x)


@autograd
def best_of_n(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    n: int,
    *,
    candidates: int = 16,
    d: int = 2,
    J: int = 200,
    generator: torch.Generator,
) -> Tensor:
    """n samples, (n, d), each the best by reward of so many candidates drawn from the base."""
    x = sample(base, schedule, n * candidates, d, steps=J, generator=generator)
    best = evaluate(reward, x).reshape(n, candidates).argmax(1)
    return x.reshape(n, candidates, d)[torch.arange(n, device=x.device), best]


@dataclass(frozen=True)
@checked
class SMCConfig:
    """The knobs of sequential Monte Carlo.

    Args:
        n: particles.
        lam: tilt strength.
        J: steps of the sampler.
        twisted: whether proposals move along the gradient of the potential.
        threshold: resample when the effective sample size falls below this share of n.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    n: int = 1000
    lam: float = 1.0
    J: int = 200
    twisted: bool = False
    threshold: Fraction = 0.5

    def __post_init__(self) -> None:
        if self.J < 2:
            raise ValueError(f"J must be at least 2, got {self.J}: the last step has no noise")


@dataclass(frozen=True)
class Population:
    """Weighted particles at one time of the sampler.

    Args:
        t: the time.
        x: particles, (n, d).
        log_w: their log weights since the last resampling, (n,).
        log_z: estimate of log E[exp(psi_t)] under the base chain so far; of log Z at t = 0.
        resampled: how often the population was resampled.
    """

    t: float
    x: Tensor
    log_w: Tensor
    log_z: float
    resampled: int

    @property
    def ess(self) -> float:
        """Effective sample size."""
        return effective_sample_size(self.log_w)


@autograd
def sequential_monte_carlo(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: SMCConfig | None = None,
    *,
    d: int = 2,
    generator: torch.Generator,
    tempering: Callable[[float], float] | None = None,
    potential: Value | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Population]:
    """Sequential Monte Carlo along Algorithm 1, as a generator over its steps; the last population has t = 0.

    Args:
        base: the pretrained model.
        reward: (n, d) to (n,); forward evaluations only, unless the proposal is twisted.
        schedule: the pair alpha, sigma.
        config: the knobs.
        d: dimension of the data.
        generator: of all draws.
        tempering: gamma_t in [0, 1], 1 at t = 0; alpha_t squared by default.
        potential: psi_t instead of gamma_t lam r(x_0_hat), at times above 0; psi_0 is lam r in any case.
        dtype: of the particles.

    Yields:
        A :class:`Population` per step.

    Raises:
        ValueError: from a reward with NaN or a wrong shape.
    """
    config = config or SMCConfig()
    n, lam = config.n, config.lam
    gamma = tempering or (lambda t: float(schedule.alpha(torch.tensor(t, dtype=torch.float64))) ** 2)
    times = time_grid(schedule, config.J)
    device = device_of(base)

    def look(x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """The base's prediction (n, d), the potential (n,), and what a twisted proposal adds to the prediction."""
        at = torch.tensor(t, dtype=dtype, device=device)
        with torch.set_grad_enabled(config.twisted):
            x = x.detach().requires_grad_(config.twisted)
            eps = base(x, at)
            if potential is not None:
                psi = potential(x, at)
            elif config.twisted:
                psi = gamma(t) * lam * reward(clean(eps, x, at, schedule))
            else:
                psi = gamma(t) * lam * evaluate(reward, clean(eps, x, at, schedule))
            if psi.shape != x.shape[:1] or not bool(torch.isfinite(psi).all()):
                raise ValueError(
                    f"reward and potential must be finite, shape ({len(x)},); got {tuple(psi.shape)} at t={t:g}"
                )
            shift = torch.zeros_like(x)
            if config.twisted:
                (gradient,) = torch.autograd.grad(psi.sum(), x)
                shift = -float(schedule.sigma(torch.tensor(t, dtype=torch.float64))) * gradient
        return eps.detach(), psi.detach(), shift

    x = randn((n, d), generator, dtype, device)
    eps, psi, shift = look(x, times[-1])
    log_w, log_z, resampled = psi, 0.0, 0
    for s, step in zip(times[-2::-1], reverse_steps(schedule, times, 1.0), strict=True):
        if effective_sample_size(log_w) < config.threshold * n:
            log_z += float(torch.logsumexp(log_w, 0)) - math.log(n)
            index = systematic(log_w, n, generator)
            x, eps, psi, shift = x[index], eps[index], psi[index], shift[index]
            log_w, resampled = torch.zeros_like(log_w), resampled + 1
        mean = step.mean(x, eps)
        if step.std > 0.0:
            z = randn(x.shape, generator, dtype, device)
            x = mean + step.b * shift + step.std * z
            log_w = log_w + log_density_ratio((x - mean) / step.std, z)
            eps, now, shift = look(x, s)
        else:
            x = mean
            now = lam * evaluate(reward, x)
        log_w, psi = log_w + now - psi, now
        yield Population(s, x, log_w, log_z + float(torch.logsumexp(log_w, 0)) - math.log(n), resampled)
