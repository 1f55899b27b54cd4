r"""Rewards of practice: slow, in batches, of images, and now and then unreachable.

A reward that somebody else computes is called in small batches, called again when it fails, and remembered, so that a run
which is started again asks for what it does not know yet. A *random* reward gives another answer when asked again. Noise of
variance v that does not depend on x leaves the tilt where it is, because
:math:`\mathbb E\,e^{s(r+\xi)}=e^{s r}\,\mathbb E\,e^{s\xi}`, but :math:`\mathrm{Var}\log W` cannot fall below
:math:`s^2v`, and no more than a share :math:`e^{-s^2v}` of the chains is effective: average some answers first.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm


class RewardError(RuntimeError):
    """A reward that failed too often, with what is known.

    Args:
        message: which batch failed, and how.
        samples: all that were asked about, (S, d).
        rewards: known so far, (S,); NaN for the rest.
    """

    def __init__(self, message: str, samples: Tensor, rewards: Tensor) -> None:
        super().__init__(message)
        self.samples, self.rewards = samples, rewards


@dataclass
class Patient:
    """A reward that is called in batches, again if it fails, and once for each sample.

    Args:
        reward: from samples, (B, ...), to B numbers. What it does with autograd inside is its own affair.
        shape: of a sample as the reward sees it, such as (3, 64, 64); flat if not given.
        batch: largest B.
        retries: number of further calls for a batch that failed.
        wait: seconds before the first of them, doubled each time.
        cache: whether answers are kept, by the bytes of the sample.
        progress: whether to show a bar.
    """

    reward: Callable[[Tensor], Any]
    shape: Sequence[int] | None = None
    batch: int = 64
    retries: int = 2
    wait: float = 1.0
    cache: bool = True
    progress: bool = False
    known: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, x: Tensor) -> Tensor:
        """Values r(x), (S,), for samples x, (S, d).

        Raises:
            RewardError: if a batch fails once more than ``retries`` times. What is known is kept: call again, or go on with
                the run from its last tilt, whose samples come out the same.
        """
        keys = [hashlib.sha256(row.tobytes()).digest() for row in x.detach().float().cpu().numpy()]
        found = {k: self.known[key] for k, key in enumerate(keys) if key in self.known} if self.cache else {}
        missing = [k for k in range(len(x)) if k not in found]
        for start in tqdm(range(0, len(missing), self.batch), disable=not self.progress, desc="reward"):
            rows = missing[start : start + self.batch]
            try:
                answers = self._ask(x[rows].reshape(-1, *(self.shape or x.shape[1:])))
            except Exception as error:
                values = torch.tensor([found.get(k, float("nan")) for k in range(len(x))])
                raise RewardError(f"the reward failed on {len(rows)} samples: {error!r}", x, values) from error
            found |= dict(zip(rows, answers, strict=True))
            if self.cache:
                self.known |= {keys[k]: found[k] for k in rows}
        return torch.tensor([found[k] for k in range(len(x))], dtype=torch.float64).to(x)

    def _ask(self, x: Tensor) -> list[float]:
        for attempt in range(self.retries + 1):
            try:
                with torch.enable_grad():
                    values = torch.as_tensor(self.reward(x.detach().clone())).detach().double().cpu()
                break
            except Exception:
                if attempt == self.retries:
                    raise
                time.sleep(self.wait * 2**attempt)
        if values.shape != x.shape[:1]:
            raise ValueError(f"the reward must return one number per sample, shape ({len(x)},); got {tuple(values.shape)}")
        answers: list[float] = values.tolist()
        return answers
