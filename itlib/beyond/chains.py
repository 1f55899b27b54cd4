r"""Tilts learned on whole chains, by making their weights constant.

A chain of Algorithm 1 draws :math:`x_{t_K},\dots,x_{t_0}` by steps :math:`x_s=a\,x_t+b\,\hat x_1(x_t,t)+\eta\,z`. Let
:math:`p_{\mathrm{base}}` be the law of the chains of the base model and :math:`p_\theta` that of the student's, with the
same widths :math:`\eta`. A chain of the student that used the noises :math:`z` has, at strength s, the log weight

.. math::

   \log W_s = s\,r(x_{t_0}) + \log\frac{p_{\mathrm{base}}}{p_\theta}
            = s\,r(x_{t_0}) + \tfrac12\sum_{t}\big(|z_t|^2-|z_t+u_t|^2\big),\qquad
   u_t = \frac{b}{\eta}\,\big(\hat x_1^\theta-\hat x_1^{\mathrm{base}}\big)(x_t,t) .

These weights turn the student's chains into chains of the base tilted by :math:`e^{s r}`. They are all equal if and only if
the student *is* that tilt. (This needs DDPM's noise. With less, the end of a chain depends on its start, whose law no
correction moves, and no student is the tilt.) So a tilt may be learned by

.. math:: \min_\theta\ \mathrm{Var}\big[\log W_s\big]

over chains that are held fixed while :math:`\theta` moves: the log-variance loss (Nüsken and Richter, arXiv 2005.05409),
whose gradient is VarGrad (Richter et al., arXiv 2010.10436). For a diffusion model and its tilt this *is* relative
trajectory balance (Venkatraman et al., arXiv 2405.20971) with the batch mean for log Z;
:mod:`itlib.baselines.relative_trajectory_balance` has the form with a learned log Z and replay. On policy its gradient is
twice that of the reverse Kullback-Leibler divergence. For a chain drawn with correction :math:`u` and judged at
:math:`u'`, the noises that :math:`\theta'` would have needed are :math:`z+u-u'`.

Three things set it apart from the regression of Algorithm 2. It aims at the tilt of the *base*, not of the last model, so
that each tilt corrects what earlier ones got wrong. Its noise vanishes at the solution, where all chains agree, while the
estimate of a covariance stays noisy. And it learns the tilt of the chain as it is run. Like Algorithm 2 it evaluates
:math:`r` forward, once for each sample. What it cannot correct is the base: errors of :math:`\hat x_1^{\mathrm{base}}`
and of the chain's steps are tilted with it.

What learns is a correction of a frozen base: a small network on top of it, or a copy of all its weights
(:class:`TrainableCopy`).
"""

from __future__ import annotations

import copy
import itertools
import math
import os
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from itlib._checks import autograd, checked, finite
from itlib.metrics import effective_sample_size
from itlib.network import NoisePredictor, Residual, device_of
from itlib.pretrained.models import FromModel
from itlib.pretrained.processes import added, place
from itlib.sampling import ReverseStep, Variance, analytic_std, log_density_ratio, randn, reverse_steps, time_grid
from itlib.schedules import Schedule
from itlib.tilting import (
    Diagnostics,
    RateFactor,
    Tilt,
    TiltingConfig,
    corrected,
    derive_seed,
    is_trainable,
    minibatches,
    new_optimizer,
    set_rate,
)


class UnreachedWarning(UserWarning):
    """A run ended although the chains of its model do not agree on the tilt."""


class TrainableCopy(nn.Module):
    """A network that learns, beside a frozen copy of what it started from; the correction is their difference.

    Args:
        base: a network; it is copied twice.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        frozen = {id(p): p for p in base.parameters() if not p.requires_grad}  # three models can share what none changes
        self.base, self.student = (copy.deepcopy(base, dict(frozen)).eval() for _ in range(2))
        self.base.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d)."""
        result: Tensor = self.student(x, t)
        return result

    def correction(self, x: Tensor, t: Tensor) -> Tensor:
        """What the student adds to the base, (B, d)."""
        with torch.no_grad():
            frozen = self.base(x, t)
        result: Tensor = self.student(x, t) - frozen
        return result


class Student(Protocol):
    """A model that draws chains, learned or exact, and knows its base and what it adds to it."""

    @property
    def base(self) -> NoisePredictor:
        """The frozen model."""

    def correction(self, x: Tensor, t: Tensor) -> Tensor:
        """What it adds to the base, (B, d)."""


#: Models that can learn on chains.
Corrected = Residual | TrainableCopy


@dataclass(frozen=True)
class Chains:
    """Chains of a student, in the order of sampling.

    Args:
        x_0: their ends, (S, d).
        x_t: the states that the model was asked about, (S, K, d).
        z: the noises, (S, K, d).
        correction: of the base's prediction of X_1 at these states, (S, K, d).
        t: times of the states, (K,).
        gain: b / std of each step, (K, 1).
    """

    x_0: Tensor
    x_t: Tensor
    z: Tensor
    correction: Tensor
    t: Tensor
    gain: Tensor

    def __getitem__(self, index: Tensor) -> Chains:
        """Some of the chains."""
        return Chains(self.x_0[index], self.x_t[index], self.z[index], self.correction[index], self.t, self.gain)

    def corrections(self, student: Corrected) -> Tensor:
        """What a student adds to the base at the states, (S, K, d)."""
        S, K, d = self.x_t.shape
        result: Tensor = student.correction(self.x_t.reshape(-1, d), self.t.repeat(S)).reshape(S, K, d)
        return result

    def log_ratio(self, correction: Tensor) -> Tensor:
        """log p_base / p_theta of the chains, (S,), for the theta that has these corrections, (S, K, d)."""
        base = self.z + self.gain * self.correction
        return log_density_ratio(base.flatten(1), (base - self.gain * correction).flatten(1))

    def own_log_ratio(self) -> Tensor:
        """log p_base / p_theta of the chains, (S,), for the theta that drew them; in parts, to save memory."""
        some = max(1, 2**22 // self.x_t[0].numel())
        parts = (self[index] for index in torch.arange(len(self.x_t)).split(some))  # one copied at a time
        return torch.cat([part.log_ratio(part.correction) for part in parts])

    def rounding(self) -> float:
        """The variance of log weights that errors of 1e-6 in the corrections would cause."""
        return 1e-12 * self.x_t.shape[-1] * float(self.gain.square().sum())


@autograd
@torch.no_grad()
def chain_steps(
    model: NoisePredictor,
    schedule: Schedule,
    n: int,
    d: int,
    *,
    steps: int,
    eta: float = 1.0,
    variance: Variance = "analytic",
    generator: torch.Generator | None = None,
) -> list[ReverseStep[float]]:
    """The steps of Algorithm 1, their noise measured on n samples of a model. Arguments as for ``sample``.

    Raises:
        ValueError: if a step has no noise; then chains have no weights.
    """
    times, found = time_grid(schedule, steps), list[ReverseStep[float]]()
    x = randn((n, d), generator, torch.float32, device_of(model))
    for s, step in zip(times[-2::-1], reverse_steps(schedule, times, eta), strict=True):
        x1_hat = model(x, torch.tensor(step.t, device=x.device))
        if variance == "analytic":
            step = step._replace(std=analytic_std(schedule, s, step.t, step.std, x, x1_hat))
        if not step.std > 0.0:
            raise ValueError(
                f"the step from t={step.t:g} to {s:g} has no noise, so chains have no weights: use variance='analytic', and "
                "a base that is trained (its predictions of the noise have a mean square below 1)"
            )
        found.append(step)
        x = step.draw(x, x1_hat, randn(x.shape, generator, x.dtype, x.device))
    return found


@autograd
@torch.no_grad()
def draw_chains(
    student: Student,
    steps: list[ReverseStep[float]],
    n: int,
    d: int,
    *,
    generator: torch.Generator | None = None,
) -> Chains:
    """Draw n chains of a corrected base.

    Args:
        student: base and correction.
        steps: those of the base, from :func:`chain_steps`.
        n: number of chains.
        d: dimension of the data.
        generator: source of the noise.
    """
    x = randn((n, d), generator, torch.float32, device_of(student.base))
    x_t, z_t, corrections = (x.new_empty(n, len(steps), d) for _ in range(3))
    for k, step in enumerate(steps):
        time = torch.tensor(step.t, device=x.device)
        correction = student.correction(x, time)
        z = randn(x.shape, generator, x.dtype, x.device)
        x_t[:, k], z_t[:, k], corrections[:, k] = x, z, correction
        x = step.draw(x, student.base(x, time) + correction, z)
    t_k, gain = (torch.tensor(column, device=x.device) for column in ([s.t for s in steps], [s.gain for s in steps]))
    return Chains(x, x_t, z_t, corrections, t_k, gain.unsqueeze(-1))


def states_at_once(student: nn.Module) -> int | None:
    """The largest number of states that every model in a student takes in one call; None if all take any number."""
    return min((m.microbatch for m in student.modules() if isinstance(m, FromModel) and m.microbatch), default=None)


def log_variance_step(
    student: Corrected, optimizer: torch.optim.Optimizer, chains: Chains, rewards: Tensor, strength: float
) -> Tensor:
    """One optimiser step on the variance of the log weights of a few chains.

    The loss needs the corrections of all these chains at once, their network does not: with a model that takes few states
    in one call the corrections are found without a graph, and what the loss says of each goes back through one call at a
    time. Memory is then that of one call, and the gradient is the same to rounding.

    Args:
        student: base and correction.
        optimizer: holds the correction's parameters.
        chains: B of them.
        rewards: r at their ends, (B,).
        strength: s, the tilt aimed at.

    Returns:
        The variance before the step, (). At the level of rounding no step is taken: Adam would make it a full one.
    """
    few = states_at_once(student)
    with torch.set_grad_enabled(few is None):
        corrections = chains.corrections(student)
    if few is not None:
        corrections.requires_grad_()
    loss: Tensor = (strength * rewards + chains.log_ratio(corrections)).var()
    if float(loss.detach()) <= chains.rounding():
        return loss.detach()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if few is not None:
        assert corrections.grad is not None
        S, _, d = chains.x_t.shape
        parts = (chains.x_t.reshape(-1, d), chains.t.repeat(S), corrections.grad.reshape(-1, d))
        rank, processes = place() if any(isinstance(m, FromModel) and m.shared for m in student.modules()) else (0, 1)
        for x, t, gradient in list(zip(*(v.split(few) for v in parts), strict=True))[rank::processes]:
            student.correction(x, t).backward(gradient)
        if processes > 1:
            for p in student.parameters():
                if p.requires_grad:
                    p.grad = added(torch.zeros_like(p) if p.grad is None else p.grad)
    optimizer.step()
    return loss.detach()


@checked
def diagnose(log_ratio: Tensor, tilt: Tensor) -> Diagnostics:
    """Diagnostics of the model that drew some chains.

    Args:
        log_ratio: log p_base / p_theta of the chains, (S,).
        tilt: s r at their ends, (S,).
    """
    log_ratio, log_w = log_ratio.double(), (tilt + log_ratio).double()
    return Diagnostics(
        ess=effective_sample_size(log_w) / len(log_w) if finite(log_w) else math.nan,
        var_log_w=float(log_w.var()),
        kl=-float(log_ratio.mean()),
        log_z=float(torch.logsumexp(log_w, 0)) - math.log(len(log_w)),
    )


def correct(base: NoisePredictor, d: int, seed: int) -> Corrected:
    """A model that can learn on chains: a copy of the base, or a correction of a base without trainable weights."""
    return TrainableCopy(base) if is_trainable(base) else corrected(base, d, seed)


def check_size(S: int, J: int, d: int, device: torch.device) -> None:
    """Refuse chains that cannot be kept.

    Raises:
        ValueError: if they need more memory than the device has, saying how much.
    """
    needed = 3 * S * J * d * 4  # states, noises and corrections
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    if needed > there:
        raise ValueError(
            f"S={S} chains of J={J} steps in {d} dimensions are {needed / 2**30:.1f} GiB, and this device has "
            f"{there / 2**30:.1f}: lower S or J"
        )


class ChainLearner:
    """A learner that minimises the variance of the log weights of whole chains, B at a time.

    Args:
        model: base and correction; the correction is trained in place.
        schedule: the pair alpha, sigma.
        config: S chains a tilt of J steps each, and the knobs of the optimiser.
        d: dimension of the data.
        seed: fixes the chains on which the noise of the steps is measured.
        variance: of the steps.
        rate: factor of the learning rate; None leaves it constant.
        pilot: number of chains of the base on which that noise is measured; min(10,000, max(S, 10^6 / d)) by default.

    Raises:
        ValueError: if the chains need more memory than there is.
    """

    def __init__(
        self,
        model: Corrected,
        schedule: Schedule,
        config: TiltingConfig,
        *,
        d: int = 2,
        seed: int = 0,
        variance: Variance = "analytic",
        rate: RateFactor | None = None,
        pilot: int | None = None,
    ) -> None:
        self.model = model
        self.schedule, self.config, self.d, self.rate = schedule, config, d, rate
        check_size(config.S, config.J, d, device_of(model))
        widths = torch.Generator().manual_seed(derive_seed(seed, "widths"))
        pilot = pilot or min(10_000, max(config.S, 10**6 // d))
        self.steps = chain_steps(
            model.base, schedule, pilot, d, steps=config.J, eta=config.eta, variance=variance, generator=widths
        )
        self.chains: Chains | None = None

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """The ends of S chains, (S, d)."""
        self.chains = draw_chains(self.model, self.steps, self.config.S, self.d, generator=generator)
        return self.chains.x_0

    def learn(self, tilt: Tilt, generator: torch.Generator) -> tuple[Tensor, Diagnostics]:
        """Make the weights of the chains constant. Returns the losses, and the chains' diagnostics before that."""
        assert self.chains is not None, "draw comes first"
        chains, optimizer = self.chains, new_optimizer(self.config, self.model)
        losses: list[Tensor] = []
        for index in itertools.chain.from_iterable(minibatches(self.config, generator)):
            if len(index) > 1:  # one chain has no variance
                set_rate(optimizer, self.config, self.rate, len(losses))
                losses.append(log_variance_step(self.model, optimizer, chains[index], tilt.rewards[index], tilt.strength))
        return torch.stack(losses), diagnose(chains.own_log_ratio(), tilt.strength * tilt.rewards)
