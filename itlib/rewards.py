r"""Rewards: plain callables from samples to numbers, and the quadratic family of (4.2).

A reward maps samples of shape (S, d) to values of shape (S,). The methods of this package only ever *evaluate* it:
:func:`evaluate` hands it detached samples under ``torch.no_grad`` and checks what comes back, so a reward may be a
Python loop, a scikit-learn model or a call to another machine. A reward that insists on gradients is wrapped in
:class:`ForwardOnly`, which raises as soon as autograd would pass through.

The quadratic reward (4.2),

.. math:: r(x) = \tfrac12 x^\top A x + b^\top x + c,

is special because it tilts Gaussian mixtures into Gaussian mixtures: see :mod:`itlib.gaussian_mixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from itlib._checks import checked, finite, real

Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
@checked
class QuadraticReward:
    r"""The reward of (4.2); A may be omitted for a linear reward.

    Args:
        b: (d,) linear part.
        A: (d, d) symmetric quadratic part; zero if omitted.
        c: constant. It changes log Z and the single-sample estimate of the covariance, which is not centred (Section
            3.2), but not the tilted distribution.

    Raises:
        ValueError: if the shapes disagree.
        ValueError: if a coefficient is not finite.
        ValueError: if A is not symmetric.
    """

    b: Tensor
    A: Tensor = field(default_factory=lambda: torch.empty(0))
    c: float = 0.0

    def __post_init__(self) -> None:
        b, A = self.b.double(), self.A.double()
        d = b.numel()
        A = A if A.numel() else torch.zeros(d, d, dtype=torch.float64)
        if b.ndim != 1 or A.shape != (d, d):
            raise ValueError(f"b must have shape (d,) and A (d, d); got {tuple(b.shape)} and {tuple(A.shape)}")
        if not (finite(A) and finite(b)):
            raise ValueError(f"a reward's coefficients must be finite, got b={b.tolist()}, A={A.tolist()}")
        if not torch.allclose(A, A.T):
            raise ValueError("A must be symmetric: replace it by (A + A.T) / 2, which is the same reward")
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "A", A)

    def __call__(self, x: Tensor) -> Tensor:
        """Values r(x), (S,), for samples x, (S, d)."""
        A, b = self.A.to(x), self.b.to(x)
        if x.shape[-1:] != b.shape:
            raise ValueError(f"this reward is of samples of shape (S, {len(b)}), got {tuple(x.shape)}")
        return 0.5 * ((x @ A) * x).sum(-1) + x @ b + self.c


class ForwardOnly:
    """A reward that refuses to be differentiated.

    Args:
        reward: any callable from (S, d) to (S,).

    Raises:
        RuntimeError: when called on a tensor that autograd tracks.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward

    def __call__(self, x: Tensor) -> Tensor:
        """Values r(x), (S,), for samples x, (S, d)."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("this reward is forward-only, but autograd reached it: detach the samples first")
        return self.reward(x)


@checked
def evaluate(reward: Reward, x: Tensor) -> Tensor:
    """Evaluate a reward without gradients and check its answer.

    Args:
        reward: callable from (S, d) to (S,).
        x: samples, (S, d).

    Returns:
        Finite values, (S,), in the dtype and on the device of x.

    Raises:
        ValueError: if the answer is not one real number per sample.
        ValueError: if it holds a NaN or an infinity.
        Exception: whatever the reward itself raises.
    """
    with torch.no_grad():
        answer = reward(x.detach().clone())  # a reward may write on what it is given
    try:
        values = real(answer)
    except ValueError:
        shown = f"{type(answer).__name__} ({str(answer)[:40]})"
        raise ValueError(f"the reward must return real numbers, one per sample, got {shown}") from None
    if values.shape != x.shape[:1]:
        raise ValueError(f"the reward must return one number per sample, shape ({x.shape[0]},); got {tuple(values.shape)}")
    values = values.detach().to(x)
    if bad := int((~torch.isfinite(values)).sum()):
        raise ValueError(
            f"the reward returned NaN or infinity for {bad} of {x.shape[0]} samples: clip it or make it defined everywhere"
        )
    return values


#: The tilts used in this book: the paper's (4.11), and three on the same base for which the number of tilts matters.
NAMED_REWARDS: dict[str, str] = {
    "paper": "b=0,4",
    "unequal": "b=.5,3",
    "one-mode": "b=1.5,3",
    "quadratic": "A=-2,1 b=1,1",
}


@checked
def parse_reward(text: str, d: int = 2) -> QuadraticReward:
    """Read a quadratic reward from a short text.

    Args:
        text: a name of :data:`NAMED_REWARDS`, or parts separated by spaces: ``b=0,4`` (linear part), ``A=-2,1`` (the
            diagonal) or ``A=-2,.5;.5,1`` (rows), ``c=1``.
        d: dimension that b and A must have.

    Returns:
        The reward.

    Raises:
        ValueError: if the text is not understood, with an example of one that is.
    """
    text = NAMED_REWARDS.get(text, text)
    parts: dict[str, Tensor] = {}
    try:
        for part in text.split():
            key, _, value = part.partition("=")
            if key not in ("A", "b", "c"):
                raise ValueError
            rows = [[float(v) for v in row.split(",")] for row in value.split(";")]
            parts[key] = torch.tensor(rows, dtype=torch.float64)
        b = parts["b"].reshape(d) if "b" in parts else torch.zeros(d, dtype=torch.float64)
        A = parts.get("A", torch.zeros(1, d, dtype=torch.float64))
        A = torch.diag(A[0]) if A.shape == (1, d) else A.reshape(d, d)
        c = float(parts["c"].reshape(())) if "c" in parts else 0.0
        if not parts:
            raise ValueError
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot read the reward {text!r}: use a name ({', '.join(NAMED_REWARDS)}) or parts in dimension {d} such as "
            "'b=0,4' or 'A=-2,1 b=1,1 c=0'"
        ) from error
    return QuadraticReward(b, A, c)
