r"""Relative trajectory balance (RTB; Venkatraman et al., arXiv 2405.20971) with a learned normaliser and replay.

For every chain the ratio of the tilted base to the student is to be one,

.. math:: \min_{\theta,\,\zeta}\ \mathbb E\,\tfrac12\Big(\log\frac{p_\theta(x_{t_K:t_0})}{p_{\mathrm{base}}(x_{t_K:t_0})}
          + \zeta - \lambda\,r(x_{t_0})\Big)^2 ,

over chains of *any* law that covers them: fresh ones of the student, or old ones kept for replay, whose rewards need
not be evaluated again. At zero loss the student is the tilt, whatever the law, and :math:`\zeta=\log Z`. On policy
the gradient in :math:`\theta` is that of the reverse Kullback-Leibler divergence with :math:`\zeta` for a baseline.
With :math:`\zeta` the mean over the batch the loss is the log-variance divergence (VarGrad, Richter et al., arXiv
2010.10436), which is what :mod:`itlib.beyond.chains` minimises.

A chain of K Gaussian steps cannot be the tilt exactly, so the minimum is above zero, by an amount that falls with K.
Only for this remainder does the law of the chains matter. The last step of Algorithm 1 has no density: it is the base's.

Published values: the authors' toy in two dimensions takes batches of 500, learning rate 1e-3, 5000 iterations and
fresh chains; their image code gives log Z a rate of .1, and a cut-off of small losses that is left out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from itlib._checks import Natural, Positive, autograd, checked
from itlib.baselines.accounting import BaselineStep, FineTuning, NoisySteps, trajectory
from itlib.network import NoisePredictor
from itlib.rewards import Reward, evaluate
from itlib.sampling import Variance
from itlib.schedules import Schedule
from itlib.tilting import derive_seed


@dataclass(frozen=True)
@checked
class TrajectoryBalanceConfig:
    """The knobs of relative trajectory balance.

    Args:
        iterations: optimiser steps.
        lam: tilt strength.
        B: fresh chains of an iteration.
        J: steps of the sampler.
        variance: of its noise: "ddpm", or "analytic", measured on chains of the base beforehand.
        lr: Adam's learning rate for the student.
        lr_log_z: the same for the normaliser.
        replay: chains of earlier iterations in each iteration, as a multiple of B; drawn evenly from the last ``memory``.
        memory: iterations whose chains are kept.

    Raises:
        ValueError: for a value out of range, naming it.
        ValueError: if J is 1: its only step has no noise.
    """

    iterations: int = 200
    lam: float = 1.0
    B: int = 64
    J: int = 50
    lr: Positive = 1e-4
    lr_log_z: Positive = 0.1
    replay: Natural = 1
    memory: int = 50
    variance: Variance = "ddpm"

    def __post_init__(self) -> None:
        if self.J < 2:
            raise ValueError(f"J must be at least 2, got {self.J}: the last step has no noise")


def log_ratio(student: NoisePredictor, steps: NoisySteps, B: int) -> Tensor:
    """log p_student / p_base of B chains, (B,)."""
    each = steps.log_density(student(steps.x, steps.t)) - steps.log_density(steps.eps_base)
    return each.reshape(-1, B).sum(0)


@autograd
def trajectory_balance(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: TrajectoryBalanceConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
) -> Iterator[BaselineStep]:
    """Relative trajectory balance, one optimiser step per item. The reward is evaluated forward only.

    Arguments, items and errors are those of every baseline: see :mod:`itlib.baselines.accounting`.
    """
    config = config or TrajectoryBalanceConfig()
    bench = FineTuning(base, reward, d, seed, config.lr)
    widths = bench.widths(schedule, config.J, config.variance, seed)
    log_z = nn.Parameter(torch.zeros((), dtype=bench.parameters[0].dtype, device=bench.parameters[0].device))
    bench.optimizer.add_param_group({"params": [log_z], "lr": config.lr_log_z})
    kept: list[tuple[Tensor, Tensor]] = []
    for k in range(1, config.iterations + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "trajectory balance", k))
        x = bench.noise(config.B, generator)
        # (J + 1, B, d)
        states = torch.stack(trajectory(bench.student, bench.base, schedule, x, config.J, generator, widths))
        fresh = (states, config.lam * evaluate(bench.reward, states[-1]))
        chosen = [kept[int(i)] for i in torch.randint(len(kept), (config.replay,), generator=generator)] if kept else []
        states, rewards = torch.cat([s for s, _ in (fresh, *chosen)], 1), torch.cat([r for _, r in (fresh, *chosen)])
        kept = [*kept, fresh][-config.memory :]
        steps = NoisySteps.of(list(states), bench.base, schedule, widths)
        loss = 0.5 * (log_ratio(bench.student, steps, len(rewards)) + log_z - rewards).square().mean()
        bench.descend(k, loss)
        yield bench.step(k, loss)
