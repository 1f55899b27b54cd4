r"""Adjoint Matching (Domingo-Enrich et al., arXiv 2409.08861): regress the control on the lean adjoint. (2.17)-(2.19).

In discrete time, along Algorithm 1 with DDPM's noise (the memoryless schedule), a step from :math:`t_{k+1}` to
:math:`t_k` is :math:`x_k = m_\theta(x_{k+1})+\eta_k z` with :math:`m = a\,x + b\,\varepsilon` (see
:mod:`itlib.sampling`), and the control is

.. math::

   u_k = \frac{m_\theta-m_{\mathrm{base}}}{\eta_k}(x_{k+1})
       = \frac{b_k}{\eta_k}(\varepsilon_\theta-\varepsilon_{\mathrm{base}})(x_{k+1}, t_{k+1}) .

The lean adjoint follows a trajectory of the current model back up from its sample, through the *base* only,

.. math:: \tilde a_0 = -\lambda\nabla r(x_0),\qquad
          \tilde a_{k+1} = \Big(\frac{\partial m_{\mathrm{base}}}{\partial x}(x_{k+1})\Big)^{\!\top}\tilde a_k ,

one vector-Jacobian product a step, and the loss is :math:`\sum_k\|u_k+\eta_k\,\tilde a_k\|^2` with the trajectory and the
adjoint detached. The sign is that of :math:`\tilde a_0=-\lambda\nabla r`; the paper pairs this loss with
:math:`\tilde a_1=+\lambda\nabla r`, which learns :math:`-u^*`. The optimum is
:math:`u^*=-\eta\,\mathbb E[\tilde a_k\mid x_{k+1}]` under the optimal law itself: a fixed point, not a target known in
advance. The last step of Algorithm 1 has no noise: it is the base's, and the adjoint goes through it.

Needs :math:`\nabla r`, and a base that can be differentiated in x; no memory over steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Positive, autograd, checked
from itlib.baselines.accounting import BaselineStep, FineTuning, NoisySteps, trajectory
from itlib.network import NoisePredictor
from itlib.rewards import Reward
from itlib.sampling import Variance, reverse_steps, time_grid
from itlib.schedules import Schedule
from itlib.tilting import derive_seed


@dataclass(frozen=True)
@checked
class AdjointMatchingConfig:
    """The knobs of Adjoint Matching.

    Args:
        iterations: optimiser steps.
        lam: tilt strength.
        B: trajectories of an iteration.
        J: steps of the sampler.
        variance: of its noise: "ddpm", or "analytic", measured on chains of the base beforehand.
        lr: Adam's learning rate.

    Raises:
        ValueError: for a value out of range, naming it.
        ValueError: if J is 1: its only step has no noise.
    """

    iterations: int = 200
    lam: float = 1.0
    B: int = 64
    J: int = 50
    lr: Positive = 1e-4
    variance: Variance = "ddpm"

    def __post_init__(self) -> None:
        if self.J < 2:
            raise ValueError(f"J must be at least 2, got {self.J}: the last step has no noise")


@autograd
def lean_adjoint(states: list[Tensor], base: NoisePredictor, reward: Reward, schedule: Schedule, lam: float) -> list[Tensor]:
    """The adjoint at x_0, ..., x_{K-1} of trajectories given as x_K, ..., x_0, each (B, d).

    Args:
        states: of :func:`~itlib.baselines.accounting.trajectory`.
        base: differentiable in x.
        reward: differentiable, (B, d) to (B,).
        schedule: the pair alpha, sigma.
        lam: tilt strength.
    """
    steps = len(states) - 1
    times = time_grid(schedule, steps)
    with torch.enable_grad():
        x = states[-1].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        adjoints = [-lam * gradient]
        for k in range(1, steps):  # from the state at t_{k-1} to that at t_k
            step = next(reverse_steps(schedule, times[k - 1 : k + 1], 1.0))
            x = states[steps - k].detach().requires_grad_()
            t = torch.tensor(step.t, dtype=x.dtype, device=x.device)
            (product,) = torch.autograd.grad(step.mean(x, base(x, t)), x, grad_outputs=adjoints[-1])
            adjoints.append(product)
    return adjoints


@autograd
def adjoint_matching(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: AdjointMatchingConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
) -> Iterator[BaselineStep]:
    """Adjoint Matching, one optimiser step per item. Reward and base must be differentiable in x.

    Arguments, items and errors are those of every baseline: see :mod:`itlib.baselines.accounting`.
    """
    config = config or AdjointMatchingConfig()
    bench = FineTuning(base, reward, d, seed, config.lr)
    widths = bench.widths(schedule, config.J, config.variance, seed)
    for k in range(1, config.iterations + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "adjoint matching", k))
        x = bench.noise(config.B, generator)
        states = trajectory(bench.student, bench.base, schedule, x, config.J, generator, widths)
        adjoints = lean_adjoint(states, bench.base, bench.reward, schedule, config.lam)
        steps = NoisySteps.of(states, bench.base, schedule, widths)
        adjoint = torch.cat(adjoints[:0:-1])  # at the states that the steps reach, from noise to data
        residual = steps.control(bench.student(steps.x, steps.t)) + steps.step.std * adjoint
        loss = residual.square().sum() / config.B
        bench.descend(k, loss)
        yield bench.step(k, loss)
