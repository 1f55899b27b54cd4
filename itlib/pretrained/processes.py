r"""Several processes, each with its share of the work: the calls of a model, of a reward, and of gradients.

Every process runs the same script with the same seed under ``torchrun``, after ``torch.distributed.init_process_group``, and
holds all states. What is divided is what takes the time. Call i of a model goes to process i modulo their number; its rows
are added to zeros, and the sum over processes is the whole. So states, rewards and diagnostics are those of one process to
the bit. In training each process differentiates its own calls, and the gradients are added: those of one process to
rounding, since sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from itlib.rewards import Reward


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    here = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if here else (0, 1)


def added(x: Tensor) -> Tensor:
    """The sum of a tensor over processes, in place."""
    if place()[1] > 1:
        dist.all_reduce(x)
    return x


def together(calls: Sequence[Callable[[], Tensor]], whole: Tensor, rows: int) -> Tensor:
    """The answers of all calls, of which this process makes its share.

    Args:
        calls: each gives the next rows of the whole.
        whole: zeros, (n, ...), that are filled.
        rows: of each call; the last may have fewer.
    """
    rank, processes = place()
    for call, part in list(zip(calls, whole.split(rows), strict=True))[rank::processes]:
        part.copy_(call())
    return added(whole)


def shared(reward: Reward, batch: int = 64) -> Reward:
    """A reward of which each process evaluates its share.

    Args:
        reward: from samples, (B, d), to (B,).
        batch: largest B.
    """

    def divided(x: Tensor) -> Tensor:
        calls = [lambda part=part: reward(part) for part in x.split(batch)]
        return together(calls, torch.zeros_like(x[:, 0]), batch)

    return divided
