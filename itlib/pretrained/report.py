r"""A verdict without a truth: what chains say of a tilted model when nobody can sample the exact tilt.

Chains of the tilted model have log weights :math:`\log W=s\,r(x_0)+\log p_{\mathrm{base}}/p_\theta`
(:func:`itlib.sampling.path_log_weights`). For any model

.. math::

   \log Z = \underbrace{s\,\mathbb E_\theta[r]-\mathrm{KL}(p_\theta\|p_{\mathrm{base}})}_{\text{what it reached}}
            + \mathrm{KL}(p_\theta\|p_{\mathrm{base}}^{s r}),\qquad
   \log Z=\log\mathbb E_\theta[W]=\log\mathbb E_{\mathrm{base}}[e^{s r}],

so the KL of the chains to the exact tilt is a difference of two numbers that can be estimated, and 0 for the tilt only.
Weighted by W the same chains give expectations under the exact tilt, as long as enough of them are effective. *Diversity* is
the total variance of samples, as a share of what the exact tilt has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from itlib.metrics import effective_sample_size
from itlib.network import NoisePredictor
from itlib.rewards import Reward, evaluate
from itlib.sampling import Variance, path_log_weights
from itlib.schedules import Schedule


@dataclass(frozen=True)
class Report:
    """What chains say of a tilted model; errors are one standard error.

    Args:
        n: number of chains.
        ess: effective share of the tilted model's chains.
        kl: KL of the tilted model's chains to the base's, and its error.
        gap: KL of the tilted model's chains to the exact tilt, by the identity above.
        log_z: from the tilted model's chains, and from the base's samples.
        reward: mean under the tilted model, and its error.
        expected: mean under the exact tilt, by weighted chains, and its error.
        base_reward: mean under the base.
        diversity: total variance of the samples over that of the exact tilt, by weighted chains.
        base_ess: effective share of the base's own samples under exp(s r).
        samples: of the base and of the tilted model, (n, d) each.
        rewards: of both, (n,) each.
        log_w: of the tilted model's chains, (n,).
    """

    n: int
    ess: float
    kl: tuple[float, float]
    gap: float
    log_z: tuple[float, float]
    reward: tuple[float, float]
    expected: tuple[float, float]
    base_reward: float
    diversity: float
    base_ess: float
    samples: tuple[Tensor, Tensor]
    rewards: tuple[Tensor, Tensor]
    log_w: Tensor

    @property
    def arrived(self) -> bool:
        """Whether half of the chains are effective, and the mean reward is within three errors of the exact tilt's."""
        error = math.hypot(self.reward[1], self.expected[1])
        return self.ess >= 0.5 and abs(self.reward[0] - self.expected[0]) <= 3 * error

    def __str__(self) -> str:
        """The verdict in sentences."""
        text = (
            f"{self.ess:.0%} of {self.n} chains are effective (of the base's samples {self.base_ess:.0%}); they are "
            f"{self.kl[0]:.2f} ± {self.kl[1]:.2f} nats from the base's and {self.gap:.2f} from the exact tilt. "
            f"Mean reward {self.reward[0]:.3g} ± {self.reward[1]:.2g}, base {self.base_reward:.3g}, "
        )
        if self.ess * self.n < 30:
            return text + "and too few chains are effective to say what the exact tilt has. This is not it."
        text += f"exact tilt {self.expected[0]:.3g} ± {self.expected[1]:.2g}. Diversity {self.diversity:.0%} of its. "
        return text + ("This is the tilt, as far as chains tell." if self.arrived else "It has not arrived.")


def report(
    base: NoisePredictor,
    tilted: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    *,
    d: int | None = None,
    lam: float = 1.0,
    n: int = 512,
    steps: int = 20,
    variance: Variance = "analytic",
    seed: int = 0,
) -> Report:
    """Judge a tilted model by n chains of its own and n of the base.

    Args:
        base: the pretrained model.
        tilted: what became of it.
        reward: evaluated 2 n times.
        schedule: the pair alpha, sigma.
        d: dimension of the data; by default the base's own, ``base.d``, or 2 if it has none.
        lam: the strength that was aimed at.
        n: number of chains of each.
        steps: of a chain, as in the tilts.
        variance: of the steps, as in the tilts.
        seed: fixes the chains.
    """
    d = d or int(getattr(base, "d", 2))

    def draws(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(2 * seed + k)

    own, _ = path_log_weights(base, base, schedule, n, d, steps=steps, variance=variance, generator=draws(0))
    x, log_ratio = path_log_weights(tilted, base, schedule, n, d, steps=steps, variance=variance, generator=draws(1))
    base_r, r, log_ratio = evaluate(reward, own).double(), evaluate(reward, x).double(), log_ratio.double()
    log_w = lam * r + log_ratio
    w = torch.softmax(log_w, 0)
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(n)
    kl, mean_r, expected = -float(log_ratio.mean()), float(r.mean()), float(w @ r)
    centred = x.double() - w @ x.double()
    return Report(
        n=n,
        ess=effective_sample_size(log_w) / n,
        kl=(kl, float(log_ratio.std()) / math.sqrt(n)),
        gap=log_z - (lam * mean_r - kl),
        log_z=(log_z, float(torch.logsumexp(lam * base_r, 0)) - math.log(n)),
        reward=(mean_r, float(r.std()) / math.sqrt(n)),
        expected=(expected, float((w.square() @ (r - expected).square()).sqrt())),
        base_reward=float(base_r.mean()),
        diversity=float(x.double().var(0, correction=0).sum() / (w @ centred.square()).sum()),
        base_ess=effective_sample_size(lam * base_r) / n,
        samples=(own, x),
        rewards=(base_r, r),
        log_w=log_w,
    )
