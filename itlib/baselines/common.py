r"""What the rivals share: the step that they yield, and an account of what they have spent.

Budgets are counted in samples, whatever the size of a call:

- *reward*: forward evaluations :math:`r(x)`; *reward_gradient*: evaluations whose gradient was asked for;
- *network*: evaluations of a denoiser; *network_gradient*: those of them that autograd recorded, which cost about three.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from itlib.network import Denoiser
from itlib.rewards import Reward


@dataclass
class Counts:
    """Evaluations so far, in samples."""

    reward: int = 0
    reward_gradient: int = 0
    network: int = 0
    network_gradient: int = 0


@dataclass(frozen=True)
class Step:
    """What one iteration of a rival leaves behind.

    Args:
        k: the iteration just finished, from 1.
        denoiser: the live network; copy it to keep it.
        loss: of this iteration.
        counts: what was spent so far.
        seconds: processor seconds spent so far.
    """

    k: int
    denoiser: nn.Module
    loss: float
    counts: Counts
    seconds: float


@dataclass
class Account:
    """Counts what goes through the callables that it wraps, and the time since it was opened."""

    counts: Counts = field(default_factory=Counts)
    opened: float = field(default_factory=time.process_time)

    def reward(self, reward: Reward) -> Reward:
        """The same reward, counted."""

        def counted(x: Tensor) -> Tensor:
            if torch.is_grad_enabled() and x.requires_grad:
                self.counts.reward_gradient += len(x)
            else:
                self.counts.reward += len(x)
            return reward(x)

        return counted

    def denoiser(self, denoiser: Denoiser) -> Denoiser:
        """The same denoiser, counted. A network keeps its type, and its copies are counted as well."""
        if isinstance(denoiser, nn.Module):
            denoiser.register_forward_hook(lambda module, inputs, output: self._count(output))
            return denoiser

        def counted(x: Tensor, t: Tensor) -> Tensor:
            output = denoiser(x, t)
            self._count(output)
            return output

        return counted

    def _count(self, output: Tensor) -> None:
        self.counts.network += len(output)
        self.counts.network_gradient += len(output) if output.requires_grad else 0

    def step(self, k: int, denoiser: nn.Module, loss: float) -> Step:
        """The step to yield, with a snapshot of the account."""
        return Step(k, denoiser, loss, Counts(**vars(self.counts)), time.process_time() - self.opened)
