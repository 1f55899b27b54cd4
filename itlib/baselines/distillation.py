r"""Reweigh, then distil: denoising score matching on weighted samples. It is the obvious baseline, and SIFT when repeated.

Chains of the student that end at :math:`x_0` are chains of the tilted base with log weight :math:`\lambda r(x_0)+\log
p_{\mathrm{base}}/p_\theta` (:mod:`itlib.sampling`). Draw n of them, resample by these weights, and train the student
by (2.10) on what is left. In the first round student and base agree, and this is importance resampling, then
distillation. Repeated it is *iterative importance fine-tuning* (SIFT; Denker et al.,
arXiv 2502.04468), the same update with the whole path in the weights. At the tilt all weights are equal, so the tilt
is the fixed point, exactly for any n up to the noise of n samples and the steps of the sampler. SIFT accepts a chain
of weight w with probability :math:`\min(1,w/c)`; so does ``accept``, which chooses c so that this share is accepted.
A cut-off changes where a round leads, not where rounds stop. SIFT's replay and its network, which sees the
reward's gradient, are left out.

``smc`` draws the first round by sequential Monte Carlo instead (:mod:`itlib.baselines.monte_carlo`): SMC, then
distil.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Between0And1, LogWeights, Positive, autograd, checked
from itlib.baselines.accounting import BaselineStep, FineTuning
from itlib.baselines.monte_carlo import SMCConfig, sequential_monte_carlo, systematic
from itlib.network import NoisePredictor, device_of
from itlib.rewards import Reward, evaluate
from itlib.sampling import path_log_weights
from itlib.schedules import Schedule, add_noise
from itlib.tilting import derive_seed


@dataclass(frozen=True)
@checked
class DistillationConfig:
    """The knobs of reweighing, then distilling.

    Args:
        rounds: how often; 1 is importance resampling, then distillation.
        lam: tilt strength.
        n: chains of a round.
        J: steps of the sampler.
        accept: if given, weights are cut off so that min(1, w/c) has this mean.
        smc: whether the first round is drawn by sequential Monte Carlo.
        steps: optimiser steps of a round.
        B: minibatch of noised samples.
        lr: Adam's learning rate; it falls to zero along a cosine in every round.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    rounds: int = 1
    lam: float = 1.0
    n: int = 20_000
    J: int = 200
    accept: Between0And1 | None = None
    smc: bool = False
    steps: int = 600
    B: int = 256
    lr: Positive = 1e-3


@checked
def cut_off(log_w: LogWeights, accept: Between0And1) -> Tensor:
    """Log weights (n,) cut off at the log c for which min(1, w / c) has the mean ``accept``."""
    low, high = float(log_w.min()), float(log_w.max()) - math.log(accept)
    for _ in range(60):
        c = 0.5 * (low + high)
        low, high = (c, high) if float((log_w - c).clamp_max(0).exp().mean()) > accept else (low, c)
    return log_w.clamp_max(high)


@autograd
def distillation(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: DistillationConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
) -> Iterator[BaselineStep]:
    """Reweigh and distil, one round per item. The reward is evaluated forward only.

    Arguments, items and errors are those of every baseline: see :mod:`itlib.baselines.accounting`.
    """
    config = config or DistillationConfig()
    bench = FineTuning(base, reward, d, seed, config.lr)
    dtype, device = bench.parameters[0].dtype, device_of(bench.student)
    for k in range(1, config.rounds + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "distillation", k))
        if config.smc and k == 1:
            smc = SMCConfig(n=config.n, lam=config.lam, J=config.J)
            *_, last = sequential_monte_carlo(bench.base, bench.reward, schedule, smc, d=d, generator=generator, dtype=dtype)
            x_0, log_w = last.x, last.log_w
        else:
            x_0, log_w = path_log_weights(
                bench.student, bench.base, schedule, config.n, d, steps=config.J, generator=generator, dtype=dtype
            )
            log_w = log_w + config.lam * evaluate(bench.reward, x_0)
        log_w = log_w if config.accept is None else cut_off(log_w, config.accept)
        x_0 = x_0[systematic(log_w, config.n, generator)]
        for i in range(config.steps):
            bench.optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1 + math.cos(math.pi * i / config.steps))
            index = torch.randint(config.n, (config.B,), generator=generator)
            t = torch.rand(config.B, generator=generator, dtype=dtype).to(device)
            z = torch.randn(config.B, d, generator=generator, dtype=dtype).to(device)
            loss = (bench.student(add_noise(schedule, x_0[index], z, t), t) - z).square().sum(-1).mean()
            bench.descend(k, loss)
        yield bench.step(k, loss)
