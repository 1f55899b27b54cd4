r"""Policy gradients through the sampler: DDPO (Black et al., arXiv 2305.13301) and DPOK (Fan et al., arXiv 2305.16381).

Each noisy step of Algorithm 1 is an action with density :math:`p_\theta(x_k\mid x_{k+1})=\mathcal N(m_\theta,\eta_k^2I)`
(2.7), so the gradient of an expected reward needs its values only:

.. math:: \nabla J = \mathbb E\Big[A\sum_k \nabla\log p_\theta(x_k\mid x_{k+1})\Big] .

- *DDPO* (``kl=0``): the advantage A is the reward, standardised over the batch and clipped; several updates are made on
  one batch of trajectories, each with a clipped likelihood ratio per step. Nothing keeps the model near the base.
- *DPOK* (``kl=1, value=True``): subtracts a learned value :math:`v(x_k,t_k)\approx\mathbb E[\lambda r\mid x_k]` instead,
  and adds the KL of each step to the base's, :math:`\|m_\theta-m_{\mathrm{base}}\|^2/2\eta_k^2`. Its gradient leaves out
  that an early step changes the KL of later ones. ``future_kl`` takes these off the reward: then the exact tilt is the
  optimum.

The last step of Algorithm 1 has no density: it is the base's. Log-densities are summed over dimensions. The published
code of DDPO averages them and clips at 1e-4; in two dimensions a clip of .1 or .2 does the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from itlib._checks import NotNegative, Positive, autograd, checked
from itlib.baselines.accounting import BaselineStep, FineTuning, NoisySteps, trajectory
from itlib.network import NoisePredictor
from itlib.rewards import Reward, evaluate
from itlib.schedules import Schedule
from itlib.tilting import derive_seed


@dataclass(frozen=True)
@checked
class PolicyGradientConfig:
    """The knobs of both methods; the defaults are DDPO's.

    Args:
        iterations: batches of trajectories.
        updates: optimiser steps on each batch.
        lam: weight of the reward.
        kl: weight of the KL to the base.
        future_kl: whether the KL of later steps is taken off the reward of a step.
        value: whether a value is learned and subtracted; else the reward is centred over the batch.
        standardised: whether the centred reward is also divided by its standard deviation; by default if kl is 0.
        clip: the ratio of new to old density is kept within 1 - clip and 1 + clip.
        advantage_clip: largest advantage, in either direction: in standard deviations if so scaled, else in nats.
        B: trajectories of a batch.
        J: steps of the sampler.
        lr: Adam's learning rate.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    iterations: int = 100
    updates: int = 4
    lam: float = 1.0
    kl: NotNegative = 0.0
    future_kl: bool = False
    value: bool = False
    standardised: bool | None = None
    clip: Positive = 0.2
    advantage_clip: Positive = 5.0
    B: int = 256
    J: int = 50
    lr: Positive = 1e-4

    def __post_init__(self) -> None:
        if min(self.B, self.J) < 2:
            raise ValueError(f"B and J must be at least 2, got {self.B} and {self.J}")
        if self.future_kl and not self.kl:
            raise ValueError("future_kl takes the KL off the reward of a step: it needs kl above 0")


@autograd
def policy_gradient(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: PolicyGradientConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
) -> Iterator[BaselineStep]:
    """DDPO and DPOK, one batch of trajectories per item. The reward is evaluated forward only.

    Arguments, items and errors are those of every baseline: see :mod:`itlib.baselines.accounting`.
    """
    config = config or PolicyGradientConfig()
    bench = FineTuning(base, reward, d, seed, config.lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "value"))
        value = nn.Sequential(nn.Linear(d + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
    value = value.to(bench.parameters[0])
    fit = torch.optim.Adam(value.parameters(), lr=1e-3)
    for k in range(1, config.iterations + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "policy gradient", k))
        x = bench.noise(config.B, generator)
        states = trajectory(bench.student, bench.base, schedule, x, config.J, generator)
        rewards = config.lam * evaluate(bench.reward, states[-1])
        steps = NoisySteps.of(states, bench.base, schedule)
        with torch.no_grad():
            eps = bench.student(steps.x, steps.t)
            old, returns = steps.log_density(eps), rewards.repeat(config.J - 1)
            if config.future_kl:  # of the steps after this one; steps run from noise to data
                costs = config.kl * steps.kl(eps).reshape(config.J - 1, config.B)
                returns = returns - (costs.flip(0).cumsum(0).flip(0) - costs).flatten()
            inputs = torch.cat([steps.x, steps.t.unsqueeze(-1)], -1)
            if config.value:
                advantage = returns - value(inputs).squeeze(-1)
            else:
                by_step = returns.reshape(config.J - 1, config.B)
                advantage = by_step - by_step.mean(1, keepdim=True)
                # A KL is in nats: against it the reward keeps its scale.
                if not config.kl if config.standardised is None else config.standardised:
                    advantage = advantage / by_step.std(1, keepdim=True).clamp_min(1e-8)
                advantage = advantage.flatten()
            advantage = advantage.clamp(-config.advantage_clip, config.advantage_clip)
        for _ in range(config.updates):
            eps = bench.student(steps.x, steps.t)
            ratio = torch.exp(steps.log_density(eps) - old)
            kept = ratio.clamp(1 - config.clip, 1 + config.clip)
            gain = torch.minimum(ratio * advantage, kept * advantage) - config.kl * steps.kl(eps)
            loss = -gain.sum() / config.B
            bench.descend(k, loss)
            if config.value:
                fit.zero_grad(set_to_none=True)
                functional.mse_loss(value(inputs).squeeze(-1), returns).backward()
                fit.step()
        yield bench.step(k, loss)
