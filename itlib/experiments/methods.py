r"""One comparison for all: what a method is given, what it may spend, and when it is looked at.

A method fine-tunes a base, one step at a time, or draws samples and trains nothing. It has a budget: of *work*, in forward
evaluations of a model on one sample, where an evaluation that autograd records, and that is differentiated afterwards,
counts three; or of *rewards*, evaluations of the black box (of its gradient, for a method that asks for that). What is not
matched follows and is reported. Looks at a method on its way are not on its clock.

The toys with an exact target are in :mod:`itlib.experiments.rivals`, the digits in :mod:`itlib.experiments.digits.methods`:
each a table of methods and what its results are judged by.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from itlib.baselines.accounting import BaselineStep, EvaluationCounter
from itlib.experiments.problems import Problem
from itlib.network import NoisePredictor
from itlib.rewards import Reward
from itlib.schedules import Schedule
from itlib.tilting import derive_seed

#: A method goes on until its budget is spent.
UNENDING = 1_000_000_000
A = TypeVar("A", bound=Problem, covariant=True)
B = TypeVar("B", bound=Problem)


@dataclass(frozen=True)
class Setting(Generic[A]):
    """What a method is given.

    Args:
        base: the pretrained network; not changed.
        problem: reward, strength and dimension.
        schedule: the pair alpha, sigma.
        budget: what it may spend, in units of ``unit``.
        unit: of the budget.
        lr: learning rate of a fine-tuning method.
        N: number of tilts, for the methods that tilt.
        seed: fixes every random draw.
        full: False for a first look, with fewer samples and steps.
    """

    base: nn.Module
    problem: A
    schedule: Schedule
    budget: int
    unit: Literal["work", "rewards"] = "work"
    lr: float = 1e-4
    N: int = 20
    seed: int = 0
    full: bool = True

    def counted(self, account: EvaluationCounter) -> tuple[nn.Module, Reward]:
        """A copy of the base and the reward, whose evaluations go on the account."""
        base = copy.deepcopy(self.base)
        account.count_model(base)
        return base, account.count_reward(self.problem.reward)

    def generator(self, purpose: str) -> torch.Generator:
        """Of the draws for one purpose."""
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose))


@dataclass(frozen=True)
class Drawn:
    """What a method that trains nothing gives: samples, or a model that draws them by Algorithm 1.

    Args:
        samples: (n, d), equally weighted, or None.
        model: or None.
        ess: effective sample size as a share of the particles, or None.
    """

    samples: Tensor | None = None
    model: NoisePredictor | None = None
    ess: float | None = None


@dataclass(frozen=True)
class Method(Generic[B]):
    """One row of the comparison.

    Args:
        title: its name in tables.
        gradient: whether it needs the reward's gradient.
        exact: whether it ends at the exact tilt with unlimited samples, steps of the sampler and tilts, and an exact base.
        lr: learning rate; 0 for a method that trains nothing.
        train: fine-tunes, one step per item, for a method that does ...
        draw: ... or draws, with an account to count on.
        tilts: whether the number of tilts N means something.
    """

    title: str
    gradient: bool = False
    exact: bool = False
    lr: float = 0.0
    train: Callable[[Setting[B]], Iterator[BaselineStep]] | None = None
    draw: Callable[[Setting[B], EvaluationCounter], Drawn] | None = None
    tilts: bool = False


def spent(method: Method[B], setting: Setting[B], step: BaselineStep) -> float:
    """The share of the budget that is spent."""
    counts = step.counts
    units = counts.work if setting.unit == "work" else counts.reward_gradient if method.gradient else counts.reward
    return units / setting.budget


def fine_tune(method: Method[B], setting: Setting[B]) -> Iterator[BaselineStep]:
    """Run a fine-tuning method until its budget is spent, one step per item.

    Raises:
        ValueError: for a method that trains nothing.
        FloatingPointError: if it diverges.
    """
    if method.train is None:
        raise ValueError(f"{method.title} trains nothing: call its draw")
    for step in method.train(setting):
        yield step
        if spent(method, setting, step) >= 1:
            return


def watched(method: Method[B], setting: Setting[B], shares: Sequence[float]) -> Iterator[tuple[BaselineStep, float]]:
    """Its steps at which shares of the budget are spent, and its last, with the seconds that it has taken by then.

    What the caller does with a step is not on that clock.

    Args:
        method: a method that trains.
        setting: what it is given.
        shares: increasing, at most 1.

    Raises:
        FloatingPointError: if it diverges.
    """
    left, looking, seen = list(shares), 0.0, 0
    for step in fine_tune(method, setting):
        done = spent(method, setting, step) + 1e-9
        if left and done >= left[0]:
            clock = time.process_time()
            yield step, step.seconds - looking
            left, seen = [share for share in left if share > done], step.k
            looking += time.process_time() - clock
    if seen != step.k:
        yield step, step.seconds - looking
