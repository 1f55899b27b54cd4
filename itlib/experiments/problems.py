r"""Problems: a base mixture and a reward whose tilt is known exactly.

The paper's experiment (4.11) is one of them. On it the Taylor step of (3.10) has no error, so the number of tilts cannot
matter (Section 3.1); ``unequal``, ``one-mode`` and ``quadratic`` keep its base and change the reward, so that it does.
``eight`` and ``nine`` come from elsewhere: the toys of DAS (Kim, Kim and Park, arXiv 2501.05803), a ring and a grid of
Gaussians with a quadratic reward. ``tails`` has the paper's modes, each with a wide component under the narrow one, so that
what its target is made of cannot be told from the bulk of the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from itlib.experiments.experiment import choose
from itlib.gaussian_mixture import GaussianMixture, paper_mixture
from itlib.rewards import NAMED_REWARDS, QuadraticReward, Reward, parse_reward


class Problem(Protocol):
    """What a method is given to solve."""

    @property
    def reward(self) -> Reward:
        """What to tilt by, (S, d) to (S,)."""

    @property
    def lam(self) -> float:
        """Strength of the tilt."""

    @property
    def d(self) -> int:
        """Dimension of the samples."""


@dataclass(frozen=True, eq=False)
class Toy:
    """A base mixture and a reward, whose tilt is known exactly.

    Args:
        base: the distribution that the base model is trained on.
        reward: what to tilt by.
        lam: strength of the tilt.
    """

    base: GaussianMixture
    reward: QuadraticReward
    lam: float = 1.0

    @property
    def d(self) -> int:
        """Dimension of the samples."""
        return self.base.d

    @property
    def target(self) -> GaussianMixture:
        """The exact tilt of the base."""
        return self.base.tilted(self.reward, self.lam)


def _equal(means: list[tuple[float, float]]) -> GaussianMixture:
    K = len(means)
    return GaussianMixture(torch.ones(K), torch.tensor(means, dtype=torch.float64), 0.3 * torch.eye(2).expand(K, 2, 2))


def eight_gaussians() -> GaussianMixture:
    """A ring of radius 4: equal weights, variance 0.3."""
    return _equal([(4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)) for k in range(8)])


def nine_gaussians() -> GaussianMixture:
    """A grid of spacing 4: equal weights, variance 0.3."""
    return _equal([(x, y) for x in (-4.0, 0.0, 4.0) for y in (-4.0, 0.0, 4.0)])


PROBLEMS: dict[str, Toy] = {name: Toy(paper_mixture(), parse_reward(name)) for name in NAMED_REWARDS} | {
    "eight": Toy(eight_gaussians(), parse_reward("A=-2,-.2 b=0,.2 c=-.1")),  # -x^2 - (y - 1)^2 / 10
    "nine": Toy(nine_gaussians(), parse_reward("A=-.02,-2")),  # -x^2 / 100 - y^2
}


def heavy_tails() -> GaussianMixture:
    """The paper's two modes, a tenth of each with variance 3/2 instead of 1/2: tails that no Gaussian has."""
    paper = paper_mixture()
    weights, means = torch.cat([0.9 * paper.weights, 0.1 * paper.weights]), torch.cat([paper.means, paper.means])
    return GaussianMixture(weights, means, torch.cat([paper.covariances, 3 * paper.covariances]))


#: Further problems, which the chapters that go through all of :data:`PROBLEMS` leave out.
OTHERS = {"tails": Toy(heavy_tails(), parse_reward("b=0,2"))}


def problem(name: str) -> Toy:
    """A problem by name.

    Raises:
        ValueError: for an unknown name, with the ones that exist.
    """
    known = PROBLEMS | OTHERS
    return known[choose("problem", name, known)]


def base_of(name: str) -> str:
    """The first problem with the same base mixture: a base that is trained for one serves the other."""
    base = problem(name).base
    return next(other for other, known in (PROBLEMS | OTHERS).items() if _same(known.base, base))


def _same(one: GaussianMixture, two: GaussianMixture) -> bool:
    pairs = zip((one.weights, one.means, one.covariances), (two.weights, two.means, two.covariances), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
