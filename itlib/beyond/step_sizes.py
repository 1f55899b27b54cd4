r"""How far one tilt may go: the step, chosen from the rewards of the current model's samples.

Algorithm 2 takes N tilts of size :math:`\lambda/N`. Here each :math:`\delta` is chosen on the way. Let p be the current
model and :math:`p^\delta\propto e^{\delta r}p` its tilt, with noised marginals :math:`p_t` and :math:`p_t^\delta`, and

.. math::

   K(\delta) = \log\mathbb E_p[e^{\delta r}],\qquad K(\delta, x) = \log\mathbb E[e^{\delta r(X_0)}\mid X_t=x],\qquad
   m(x) = \mathbb E[r(X_0)\mid X_t=x].

**What a step misses.** The tilt multiplies :math:`p_t` by :math:`e^{K(\delta,x)}` (Proposition 3.1). The first-order step
(3.10) multiplies it by :math:`e^{\delta m(x)}`, because :math:`\nabla m` is the covariance (3.9). The difference of the two
logarithms is the gap in Jensen's inequality, and its gradient is the remainder of the score:

.. math::

   J(x) &= K(\delta,x)-\delta\,m(x) = \tfrac{\delta^2}{2}\,\mathrm{Var}(r\mid X_t=x)+O(\delta^3)\ \ge\ 0,\\
   \nabla J(x) &= \int_0^\delta(\delta-u)\,\kappa_3^{(u)}(g,r,r)\,du = \tfrac{\delta^2}{2}\,\kappa_3(g,r,r)+O(\delta^3),

with :math:`\kappa_3^{(u)}` the third cumulant under the posterior tilted by :math:`e^{ur}`. J needs that posterior. Its
mean does not, up to a bound: the logarithm is concave, so that at *every* t

.. math:: \mathbb E_{p_t}[J(X_t)]\ \le\ K(\delta)-\delta\,\mathbb E_p[r] = \mathrm{KL}(p\,\|\,p^\delta),

and :math:`\mathrm{KL}(q_t\|p_t^\delta)`, with :math:`q_t\propto e^{\delta m}p_t` the law of the step, has the same bound.
:func:`bounded_gap` keeps the right side small.

**What the samples carry.** The next law is known through samples of this one, whose effective number under the weights
:math:`e^{\delta r}` is a share :math:`\exp(2K(\delta)-K(2\delta))` of all. It falls as :math:`|\delta|` grows, because K is
convex. :func:`constant_ess` keeps it up. Sequential Monte Carlo chooses its temperatures in this way (Jasra, Stephens,
Doucet and Tsagaris, Scand. J. Stat. 38, 2011; Marion, Mathews and Schmidler, arXiv 1807.01346). Trust regions on path space
(TR-SOC, arXiv 2508.12511) and proximal samplers (PDNS, arXiv 2510.03824) choose the annealing steps of a control in the same
spirit. By the inequality of Cauchy and Schwarz, a region that has probability 1/S under p has at most
:math:`1/\sqrt{\mathrm{ESS}}` under :math:`p^\delta`: what S samples hardly visit stays unimportant for one more tilt.

Both quantities are :math:`\delta^2\,\mathrm{Var}_p(r)` to leading order, halved for the first. So either rule makes steps
of constant length in :math:`\int\sqrt{\mathrm{Var}_{p^s}(r)}\,ds`, and neither can see how J varies with x: on the paper's
task it is constant, and the remainder zero. No rule that sees only rewards can. In particular the third
cumulant of r under p, a tempting estimate of the remainder, may vanish where the remainder does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib._checks import Between0And1, Natural, Positive, Values, checked
from itlib.metrics import effective_sample_size
from itlib.tilting import StepSizes

#: Chooses the next step: (rewards of the current model's samples (S,), tilt strength that is left) to delta.
StepRule = Callable[[Tensor, float], float]


@checked
def jensen_gap(rewards: Values, delta: float) -> float:
    """Log of the mean of exp(delta (r - mean r)), in nats: the estimate of K(delta) - delta E[r].

    Args:
        rewards: r on the samples, (S,).
        delta: the step.
    """
    r = rewards.double()
    return float(torch.logsumexp(delta * (r - r.mean()), 0)) - math.log(len(r))


@checked
def constant_ess(target_ess: Between0And1) -> StepRule:
    """The largest step that leaves an effective sample size of at least target_ess * S.

    Args:
        target_ess: between 0 and 1, both excluded.

    Returns:
        A rule that takes the rewards, (S,), and the strength that is left, of either sign, and returns a step between
        zero and that strength. It raises a ValueError if given fewer than two rewards, or a NaN or an infinity.

    Raises:
        ValueError: if target_ess does not lie between 0 and 1.
    """

    def holds(rewards: Tensor, delta: float) -> bool:
        u = delta * rewards.double()
        return effective_sample_size(u - u.max()) >= target_ess * len(rewards)

    return lambda rewards, left: _largest(lambda delta: holds(rewards, delta), rewards, left)


@checked
def bounded_gap(nats: Positive) -> StepRule:
    """The largest step whose first-order error of the log-density is at most ``nats`` on average, at every t.

    Args:
        nats: the bound on K(delta) - delta E[r]. For a Gaussian reward, -log(target_ess) / 2 is the same as
            :func:`constant_ess`.

    Returns:
        A rule, as for :func:`constant_ess`.

    Raises:
        ValueError: if nats is not positive and finite.
    """
    return lambda rewards, left: _largest(lambda delta: jensen_gap(rewards, delta) <= nats, rewards, left)


@checked
def evenly(rule: StepRule) -> StepRule:
    """Steps no longer than those of a rule, and no short last step.

    If n steps of the present length would finish, the next step is 1/n of what is left.

    Args:
        rule: gives the longest step allowed.

    Returns:
        A rule, as for :func:`constant_ess`.
    """

    def step(rewards: Tensor, left: float) -> float:
        longest = rule(rewards, left)
        return left if longest == left else left / math.ceil(left / longest)

    return step


@dataclass(frozen=True)
@checked
class ChosenSteps:
    """Steps chosen by a rule until the strength is lam.

    Args:
        rule: of a single step.
        lam: tilt strength at the end.
    """

    rule: StepRule
    lam: float = 1.0

    def left(self, strengths: Sequence[float]) -> int:
        """Tilts to come if they are as long as the last one; 0 once the strength is lam."""
        if not strengths:
            return 1
        if math.isclose(strengths[-1], self.lam):
            return 0
        last = strengths[-1] - (strengths[-2] if len(strengths) > 1 else 0.0)
        return max(1, round((self.lam - strengths[-1]) / last))

    def choose(self, strengths: Sequence[float], rewards: Tensor) -> tuple[float, float]:
        """The rule's step.

        Raises:
            FloatingPointError: if it is shorter than a thousandth of lam.
        """
        strength = strengths[-1] if strengths else 0.0
        delta = self.rule(rewards, self.lam - strength)
        if abs(delta) < 1e-3 * abs(self.lam):
            raise FloatingPointError(
                f"tilt {len(strengths) + 1}: rewards with standard deviation {float(rewards.std()):.3g} allow a step of "
                f"only {delta:.3g}, less than a thousandth of lam ({self.lam:g}). The samples have run away, or the reward "
                "is too large for such a tilt: look at the samples, lower lam, or take N equal steps"
            )
        return delta, strength + delta


@dataclass(frozen=True)
@checked
class Polished:
    """Tilts of size zero once the strength is lam, which correct what the others left.

    Args:
        steps: those that tilt.
        rounds: number of tilts that follow.
        lam: tilt strength at the end.
    """

    steps: StepSizes
    rounds: Natural
    lam: float = 1.0

    def _polishing(self, strengths: Sequence[float]) -> bool:
        return bool(strengths) and math.isclose(strengths[-1], self.lam)

    def left(self, strengths: Sequence[float]) -> int:
        """Tilts to come, and the rounds after them."""
        if not self._polishing(strengths):
            return self.steps.left(strengths) + self.rounds
        return self.rounds + 1 - sum(math.isclose(s, self.lam) for s in strengths)

    def choose(self, strengths: Sequence[float], rewards: Tensor) -> tuple[float, float]:
        """The step of ``steps``, and zero once the strength is lam."""
        return (0.0, self.lam) if self._polishing(strengths) else self.steps.choose(strengths, rewards)


def _largest(holds: Callable[[float], bool], rewards: Tensor, left: float) -> float:
    """The largest delta between 0 and left that meets a condition which holds near zero and, once broken, stays broken."""
    if rewards.ndim != 1 or len(rewards) < 2:
        raise ValueError(f"a step is chosen from at least two rewards, shape (S,); got shape {tuple(rewards.shape)}")
    if not bool(torch.isfinite(rewards).all()) or not math.isfinite(left):
        raise ValueError("a step cannot be chosen: a reward, or the strength that is left, is NaN or infinite")
    if holds(left):
        return left
    low = left / 2  # halved first, so that the bisection is as precise for a small step as for a large one
    while not holds(low):
        low /= 2
    high = 2 * low
    for _ in range(52):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
