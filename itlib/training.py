r"""Denoising score matching: learning the base model.

The :math:`X_1`-prediction loss (2.10) and the :math:`X_0`-prediction loss (2.9),

.. math::

   L_{X_1}(\theta) = \int_0^1 \mathbb E\,\big\|\hat x_1^\theta(\alpha_tX_0+\sigma_tX_1, t) - X_1\big\|^2\,dt,\qquad
   L_{X_0}(\theta) = \int_0^1 \mathbb E\,\big\|\hat x_0^\theta(\alpha_tX_0+\sigma_tX_1, t) - X_0\big\|^2\,dt,

are estimated with one time and one noise per sample. Minimising the first learns the score (2.8) at every time.

The paper states 30,000 samples, 200 epochs and early stopping with patience 50. We hold out a tenth of the data, score
it after each epoch on times and noises drawn once, and return the weights of the best epoch. The paper gives no learning
rate, optimiser or batch size; they are fields of :class:`TrainingConfig`. Nor does it average weights; here the
exponential moving average of the weights is scored and returned. Without it the validation loss jitters at a high learning
rate, and patience runs out by chance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from itlib._checks import Below1, Between0And1, Positive, Samples, autograd, checked
from itlib.schedules import Schedule, add_noise


@dataclass(frozen=True)
@checked
class TrainingConfig:
    """Choices of the base training.

    Args:
        epochs: passes over the training split, at most.
        batch_size: samples of a step.
        lr: Adam's learning rate.
        patience: stop after this many epochs without a better validation loss.
        validation_fraction: share of the data held out, in (0, 1).
        averaging: decay per step of the moving average of the weights, in [0, 1); 0 is none.
        predict: "x1" for the loss (2.10), "x0" for (2.9).

    Raises:
        ValueError: for a value out of range, naming it.
    """

    epochs: int = 200
    batch_size: int = 512
    lr: Positive = 1e-3
    patience: int = 50
    validation_fraction: Between0And1 = 0.1
    averaging: Below1 = 0.999
    predict: Literal["x1", "x0"] = "x1"


@dataclass(frozen=True)
class TrainingStep:
    """One epoch of training: its number, the loss (2.10) or (2.9) on both splits, and the best epoch so far."""

    epoch: int
    train_loss: float
    validation_loss: float
    best_epoch: int


def regression_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_t: Tensor,
    t: Tensor,
    target: Tensor,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """One optimiser step on the batch mean of ||weight (network(x_t, t) - target)||^2.

    Args:
        network: maps (x_t (B, d), t (B,)) to (B, d).
        optimizer: holds the network's parameters.
        x_t: noised samples, (B, d).
        t: times, (B,).
        target: what to regress, (B, d).
        weight: per-sample factor, (B, 1), inside the square.

    Returns:
        The loss before the step, ().
    """
    loss: Tensor = (weight * (network(x_t, t) - target)).square().sum(-1).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """Exponential moving average with a short memory at first, so that the initial weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, n: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + int(n)) / (10 + int(n))))

    return update


@autograd
def train_noise_predictor(
    network: nn.Module, data: Samples, schedule: Schedule, config: TrainingConfig | None = None, *, seed: int = 0
) -> Iterator[TrainingStep]:
    """Train a network by denoising score matching, one epoch per item of the iterator.

    The network is trained in place; once the iterator is exhausted it holds the weights of the best epoch.

    Args:
        network: predicts X_1 (or X_0, see the configuration) from (x_t (B, d), t (B,)).
        data: samples of the base distribution, (n, d).
        schedule: the pair alpha, sigma.
        config: the training's choices.
        seed: fixes the split, the order, the times and the noises.

    Yields:
        A :class:`TrainingStep` per epoch.

    Raises:
        ValueError: if the data are too few to split.
        ValueError: if they are not finite.
        ValueError: if the network has no weight that learns.
        FloatingPointError: if the loss stops being finite.
    """
    config = config or TrainingConfig()
    if not (learning := [p for p in network.parameters() if p.requires_grad]):
        raise ValueError(f"network has no weight that learns, got {type(network).__name__}")
    data = data.to(learning[0])
    generator = torch.Generator().manual_seed(seed)
    n_validation = round(config.validation_fraction * len(data))
    if not 1 <= n_validation < len(data):
        raise ValueError(f"{len(data)} samples cannot be split into training and validation")
    order = torch.randperm(len(data), generator=generator)
    held_out, data = data[order[:n_validation]], data[order[n_validation:]]

    def draw(x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.rand(len(x_0), generator=generator).to(x_0)
        x_1 = torch.randn(x_0.shape, generator=generator).to(x_0)
        return add_noise(schedule, x_0, x_1, t), t, x_1 if config.predict == "x1" else x_0

    # Four draws for each held-out sample, made once: the validation loss then changes only with the weights.
    validation = draw(held_out.repeat(4, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr, fused=True)
    average = AveragedModel(network, multi_avg_fn=_moving_average(config.averaging)).eval()  # no dropout where it is scored
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    best_loss, best_epoch, best_weights = float("inf"), 0, copy.deepcopy(network.state_dict())
    for epoch in range(1, config.epochs + 1):
        x_t, t, target = draw(data[torch.randperm(len(data), generator=generator)])
        losses = []
        for batch in zip(*(v.split(config.batch_size) for v in (x_t, t, target)), strict=True):
            losses.append(regression_step(network, optimizer, *batch))
            average.update_parameters(network)
        decay.step()
        with torch.no_grad():
            error = average(validation[0], validation[1]) - validation[2]
            validation_loss = float(error.square().sum(-1).mean())
        train_loss = float(torch.stack(losses).mean())
        if not (train_loss < float("inf") and validation_loss < float("inf")):
            raise FloatingPointError(f"the training loss is no longer finite at epoch {epoch}: lower the learning rate")
        if validation_loss < best_loss:
            best_loss, best_epoch, best_weights = validation_loss, epoch, copy.deepcopy(average.module.state_dict())
        yield TrainingStep(epoch, train_loss, validation_loss, best_epoch)
        if epoch - best_epoch >= config.patience:
            break
    network.load_state_dict(best_weights)
