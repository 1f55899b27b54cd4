r"""DRaFT (Clark et al., arXiv 2309.17400): gradient ascent on the reward, through the sampler. Equations (2.15), (2.16).

With the noises :math:`\xi` of Algorithm 1 held fixed, its output :math:`\psi_0(\theta,\xi)` is a differentiable function of
:math:`\theta`, and

.. math:: J(\theta) = \mathbb E_\xi\,\lambda\,r(\psi_0(\theta,\xi)) - w\,\mathrm{KL}_{\mathrm{path}}(\theta).

The published method has :math:`w=0` and no optimum but the reward's maximum. The path KL between the chains of
the student and of the base,

.. math::

   \mathrm{KL}_{\mathrm{path}} = \sum_k \mathbb E\,\frac{\|m_\theta(x_{t_k})-m_{\mathrm{base}}(x_{t_k})\|^2}{2\,\eta_k^2},

with transition means :math:`m` and standard deviations :math:`\eta_k` of (2.7), makes the exact tilt of the base chain
the optimum at :math:`w=1` (with DDPM's noise; with less a chain remembers its start, and the optimum is another): the
objective (2.17) of stochastic optimal control in discrete time. Algorithm 1 ends with a Dirac mass, where a path KL cannot
be finite, so with :math:`w>0` the last step is the base's.

- ``K``: gradients flow through the last K steps only (DRaFT-K); all by default.
- ``renoise``: DRaFT-LV: the detached sample is noised to the last time again, n times, and denoised with gradient; the
  gradient is the average. The paper calls it an unbiased control variate, which it is not: it is another way to average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Fraction, NotNegative, Positive, autograd, checked
from itlib.baselines.accounting import BaselineStep, FineTuning
from itlib.network import NoisePredictor
from itlib.rewards import Reward
from itlib.sampling import randn, reverse_steps, time_grid
from itlib.schedules import Schedule, add_noise
from itlib.tilting import derive_seed


@dataclass(frozen=True)
@checked
class DraftConfig:
    """The knobs of DRaFT.

    Args:
        iterations: optimiser steps.
        lam: weight of the reward.
        kl: weight w of the path KL; 0 is the published method, 1 has the exact tilt as its optimum.
        K: steps that gradients flow through, counted from the end, those of the path KL too; None is all of them.
        renoise: n of DRaFT-LV (2 in its paper), with K = 1; 0 is none.
        B: samples of an iteration.
        J: steps of the sampler.
        eta: DDIM multiplier; the path KL needs noise, and has the tilt as its optimum with eta = 1 only.
        lr: Adam's learning rate.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    iterations: int = 200
    lam: float = 1.0
    kl: NotNegative = 0.0
    K: int | None = None
    renoise: int = 0
    B: int = 64
    J: int = 50
    eta: Fraction = 1.0
    lr: Positive = 1e-4

    def __post_init__(self) -> None:
        if self.K is not None and self.K > self.J:
            raise ValueError(f"K must be at most J={self.J}, got {self.K}")
        if self.renoise and (self.K != 1 or self.kl):
            raise ValueError("renoise is DRaFT-LV: it needs K=1 and kl=0")
        if self.kl and not (self.eta and self.J > 1 and self.K != 1):  # the last step has no noise
            raise ValueError(
                "a path KL needs noisy steps that gradients reach: set eta above 0, J and K above 1, or kl to 0"
            )


@checked
def rollout(
    student: NoisePredictor,
    base: NoisePredictor,
    schedule: Schedule,
    x: Tensor,
    config: DraftConfig,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 with autograd on through its last K steps.

    Args:
        student: predicts X_1; differentiated.
        base: the same for the base, needed for the path KL only.
        schedule: the pair alpha, sigma.
        x: noise, (B, d).
        config: K, kl, J and eta are used.
        generator: of the noises.

    Returns:
        Samples, (B, d), and the path KL of each, (B,); zero if config.kl is.
    """
    times = time_grid(schedule, config.J)
    keep = config.J if config.K is None else config.K
    cost = x.new_zeros(len(x))
    for k in range(config.J, 0, -1):
        step = next(reverse_steps(schedule, times[k - 1 : k + 1], config.eta))
        t = torch.tensor(step.t, dtype=x.dtype, device=x.device)
        with torch.set_grad_enabled(k <= keep):
            if config.kl and step.std == 0.0:
                return step.mean(x, base(x, t)), cost
            eps = student(x, t)
            if config.kl:
                cost = cost + step.gain**2 * 0.5 * (eps - base(x, t)).square().sum(-1)
            x = step.mean(x, eps)
            if step.std:
                x = x + step.std * randn(x.shape, generator, x.dtype, x.device)
    return x, cost


@checked
def low_variance(
    student: NoisePredictor, schedule: Schedule, x_0: Tensor, config: DraftConfig, generator: torch.Generator
) -> Tensor:
    """DRaFT-LV: noise detached samples to the last time, n times over, and denoise them with gradient, (n B, d)."""
    last = time_grid(schedule, config.J)[1]
    x_0 = x_0.detach().repeat(config.renoise, 1)
    t = torch.tensor(last, dtype=x_0.dtype, device=x_0.device)
    z = randn(x_0.shape, generator, x_0.dtype, x_0.device)
    x_t = add_noise(schedule, x_0, z, t)
    return next(reverse_steps(schedule, (0.0, last), 0.0)).mean(x_t, student(x_t, t))


@autograd
def draft(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: DraftConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
) -> Iterator[BaselineStep]:
    """DRaFT, one optimiser step per item. The reward must be differentiable.

    Arguments, items and errors are those of every baseline: see :mod:`itlib.baselines.accounting`.
    """
    config = config or DraftConfig()
    bench = FineTuning(base, reward, d, seed, config.lr)
    for k in range(1, config.iterations + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "draft", k))
        x = bench.noise(config.B, generator)
        if config.renoise:
            with torch.no_grad():
                x, _ = rollout(bench.student, bench.base, schedule, x, config, generator)
            samples = low_variance(bench.student, schedule, x, config, generator)
            loss = -config.lam * bench.reward(samples).mean()
        else:
            samples, cost = rollout(bench.student, bench.base, schedule, x, config, generator)
            loss = (config.kl * cost - config.lam * bench.reward(samples)).mean()
        bench.descend(k, loss)
        yield bench.step(k, loss)
