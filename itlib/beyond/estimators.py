r"""Estimators of the covariance step :math:`\sigma_tC(x_t,t)` of (3.9) with less variance, from values of the reward only.

Write :math:`\zeta=\varepsilon_{\mathrm{old}}-z` for the teacher's error about the noise, and a bar for a mean given
:math:`x_t`. For any function :math:`v` of :math:`(x_t,t)`

.. math::

   \mathbb E\big[(r-v)\,\zeta \mid x_t\big] = \sigma_tC + (\bar r-v)\,\bar\zeta , \qquad
   \bar r=\mathbb E[r(X_0)\mid x_t],

and :math:`\bar\zeta=0` if the teacher is the score of the law of its samples. The paper's single sample has :math:`v=0`;
:func:`centred` takes the mean reward of the dataset; :func:`local_baseline` takes :math:`v\approx\bar r`, and then the
teacher does not matter. For a linear reward :math:`b^\top x` and a Gaussian of variance :math:`\varsigma^2` as the
posterior of :math:`X_0`,

.. math:: \mathrm{tr}\,\mathrm{Var}\big((r-v)\,\zeta\mid x_t\big)
          = \frac{\alpha_t^2\varsigma^2}{\sigma_t^2}\Big(d\,(\bar r-v)^2+(d+1)\,\varsigma^2\|b\|^2\Big),

so a baseline can take away the first term and not the second. Two estimators have no noise :math:`z` in them at all.
:func:`rao_blackwell` replaces the one clean sample by its conditional mean over the :math:`S` samples of the dataset,

.. math:: \sigma_tC \approx \frac{\alpha_t}{\sigma_t}\sum_{i=1}^S w_i\,\Big(r_i-\sum_jw_jr_j\Big)\,X_0^i,\qquad
          w_i\propto q_{t|0}(x_t\mid X_0^i),

and :func:`value_gradient` uses that :math:`C(x_t,t)=\nabla_{x_t}\,\mathbb E[r(X_0)\mid x_t]`: a network learns the
conditional mean by regression on values of :math:`r`, and it is the *network* that is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from itlib._checks import Positive, Samples, Values, autograd, checked
from itlib.network import Network
from itlib.schedules import Schedule, add_noise, column
from itlib.tilting import CovarianceEstimator, TiltBatch, single_sample
from itlib.training import regression_step

#: A guess of E[r(X_0) | x_t], (M,), from x_t, (M, d), and t, (M,).
Value = Callable[[Tensor, Tensor], Tensor]


def _dataset(batch: TiltBatch) -> tuple[Tensor, Tensor]:
    """D_k and its rewards; the batch's own samples if it does not carry D_k."""
    return (batch.samples, batch.rewards) if len(batch.samples) else (batch.x_0, batch.r)


@checked
def centred(c: float | None = None) -> CovarianceEstimator:
    """Single sample of r - c; c is the mean reward of the tilt's dataset unless it is given."""

    def estimate(batch: TiltBatch) -> Tensor:
        centre = (batch.rewards if len(batch.rewards) else batch.r).mean() if c is None else c
        return single_sample(replace(batch, r=batch.r - centre))

    return estimate


@checked
def local_baseline(value: Value) -> CovarianceEstimator:
    """Single sample of r - v(x_t, t)."""
    return lambda batch: single_sample(replace(batch, r=batch.r - value(batch.x_t, batch.t)))


@checked
def rao_blackwell(schedule: Schedule, *, chunk: int = 2**20) -> CovarianceEstimator:
    """Covariance under the self-normalised posterior of x_t over the samples of the dataset.

    Args:
        schedule: the pair alpha, sigma; times are kept within its safe edges.
        chunk: number of pairs of a point and a sample in memory at a time.
    """

    def estimate(batch: TiltBatch) -> Tensor:
        samples, rewards = _dataset(batch)
        t = batch.t.clamp(schedule.t_min, schedule.t_max)
        alpha, sigma = (column(f(t), batch.x_t) for f in (schedule.alpha, schedule.sigma))
        rows, found = max(1, chunk // len(samples)), []
        for x_0_hat, ratio in zip((batch.x_t / alpha).split(rows), (alpha / sigma).split(rows), strict=True):
            distance = torch.cdist(x_0_hat, samples, compute_mode="donot_use_mm_for_euclid_dist")
            w = torch.softmax(-0.5 * (ratio * distance).square(), 1)  # (rows, S)
            found.append(ratio * ((w * (rewards - (w @ rewards).unsqueeze(-1))) @ samples))
        return torch.cat(found)

    return estimate


@autograd
def fit_value(
    samples: Samples,
    rewards: Values,
    schedule: Schedule,
    *,
    steps: int = 600,
    B: int = 512,
    lr: Positive = 1e-2,
    width: int = 64,
    depth: int = 2,
    seed: int = 0,
) -> Value:
    """A small network for E[r(X_0) | x_t], by regression of the rewards on noised samples.

    It is a function of alpha_t x_t and t, so that its gradient vanishes toward t = 1 as the covariance does.

    Args:
        samples: of the current model, (S, d).
        rewards: r at these samples, (S,).
        schedule: the pair alpha, sigma.
        steps: of Adam, with a learning rate that falls to zero.
        B: minibatch size.
        lr: learning rate at the start.
        width: units of a hidden layer.
        depth: number of hidden layers.
        seed: fixes initial weights and draws.
    """
    generator, (S, d) = torch.Generator().manual_seed(seed), samples.shape
    network = Network(d, width, depth, embedding=32, seed=seed)
    network.output = nn.utils.skip_init(nn.Linear, width, 1)
    for p in network.output.parameters():
        nn.init.zeros_(p)  # the first guess is the mean
    network.to(samples)
    centre, scale = rewards.mean(), rewards.std().clamp_min(1e-12)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            index = torch.randint(S, (B,), generator=generator)
            t = torch.rand(B, generator=generator).to(samples)
            z = torch.randn(B, d, generator=generator).to(samples)
            target = ((rewards[index] - centre) / scale).unsqueeze(-1)
            x_t = add_noise(schedule, samples[index], z, t)
            regression_step(network, optimizer, column(schedule.alpha(t), x_t) * x_t, t, target)
            decay.step()
    network.requires_grad_(False)
    return lambda x, t: centre + scale * network(column(schedule.alpha(t), x) * x, t).squeeze(-1)


@checked
def value_gradient(value: Value, schedule: Schedule) -> CovarianceEstimator:
    """sigma_t times the gradient in x_t of a differentiable guess of E[r(X_0) | x_t]; noise and teacher are not used."""

    def estimate(batch: TiltBatch) -> Tensor:
        with torch.enable_grad():
            x = batch.x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(x, batch.t).sum(), x)
        return column(schedule.sigma(batch.t), x) * gradient

    return estimate


@checked
def per_dataset(make: Callable[[Tensor, Tensor], CovarianceEstimator]) -> CovarianceEstimator:
    """An estimator rebuilt from each dataset D_k, (S, d), and its rewards, (S,), for example with :func:`fit_value`."""
    last: Tensor | None = None
    made: CovarianceEstimator = single_sample

    def estimate(batch: TiltBatch) -> Tensor:
        nonlocal last, made
        samples, rewards = _dataset(batch)
        if samples is not last:
            last, made = samples, make(samples, rewards)
        return made(batch)

    return estimate
