r"""One tilt for every condition: class, prompt, or anything else that a model is told besides the state.

The target for a condition c is :math:`p(x\mid c)\,e^{\lambda r(x,c)}/Z_c`. Its weights

.. math:: \log W = s\,r(x_{t_0},c)+\log\frac{p_{\mathrm{base}}(\cdot\mid c)}{p_\theta(\cdot\mid c)}

are constant, at :math:`\log Z_c`, for each c and not across them: some prompts earn more than others, and no model can
change that. So chains come in groups of B, each under a condition drawn anew from the user's distribution, and the variance
that is made small, the length of a tilt and the effective share are all taken within groups. Group means as baselines are
what policy gradients use for the same reason (Black et al., arXiv 2305.13301; Shao et al., arXiv 2402.03300).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from itlib._checks import autograd
from itlib.beyond.chains import ChainLearner, Corrected, diagnose, log_variance_step
from itlib.beyond.recommended import RecommendedConfig, begun, cosine, guarded, on_chains
from itlib.metrics import effective_sample_size
from itlib.pretrained.models import conditioned
from itlib.schedules import Schedule
from itlib.tilting import Diagnostics, StepSizes, Tilt, TiltState, TiltStep, derive_seed, new_optimizer, run_tilts, set_rate

#: Arguments of a model for one sample, by name: tensors with a first axis of length 1.
Condition = Mapping[str, Tensor]


@dataclass(frozen=True)
class ConditionalDiagnostics(Diagnostics):
    """Diagnostics within groups; ``log_z`` is the mean over them.

    Args:
        conditions: of each group.
        group_log_z: estimates of log E_base[exp(strength r) | c], one a group, (S / B,).
    """

    conditions: tuple[Condition, ...]
    group_log_z: Tensor


@dataclass(frozen=True)
class WithinGroups:
    """Steps chosen from the spread of rewards within groups.

    Args:
        steps: how far a tilt goes, given rewards.
        B: size of a group.
    """

    steps: StepSizes
    B: int

    def left(self, strengths: Sequence[float]) -> int:
        """Estimated number of tilts still to do."""
        return self.steps.left(strengths)

    def choose(self, strengths: Sequence[float], rewards: Tensor) -> tuple[float, float]:
        """The step for rewards less the means of their groups."""
        groups = rewards.reshape(-1, self.B)
        return self.steps.choose(strengths, (groups - groups.mean(1, keepdim=True)).flatten())


class ConditionalChains(ChainLearner):
    """A :class:`ChainLearner` whose minibatches are groups of B chains under one condition.

    Args:
        model: base and correction, with a :class:`~itlib.pretrained.models.FromModel` in each.
        schedule: the pair alpha, sigma.
        config: S chains a tilt in S / B groups.
        conditions: draws one.
        seed: fixes the chains on which the noise of the steps is measured, and their conditions.
        more: further arguments of a :class:`ChainLearner`.

    Raises:
        ValueError: if S is not a multiple of B.
    """

    def __init__(
        self,
        model: Corrected,
        schedule: Schedule,
        config: RecommendedConfig,
        conditions: Callable[[torch.Generator], Condition],
        *,
        seed: int = 0,
        **more: Any,
    ) -> None:
        if config.S % config.B:
            raise ValueError(f"chains come in groups of B={config.B}, so S must be a multiple of it, got {config.S}")
        self.conditions = conditions
        self.drawn: list[Condition] = []
        pilot = math.ceil((config.pilot or config.S) / config.B)
        first = self._drawn(pilot, torch.Generator().manual_seed(derive_seed(seed, "conditions")), config.B)
        with conditioned(model, first):
            super().__init__(model, schedule, config, seed=seed, pilot=pilot * config.B, **more)

    def _drawn(self, n: int, generator: torch.Generator, B: int) -> Condition:
        """Draw n conditions, each repeated for the chains of its group."""
        self.drawn = [self.conditions(generator) for _ in range(n)]
        return {name: torch.cat([c[name] for c in self.drawn]).repeat_interleave(B, 0) for name in self.drawn[0]}

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """The ends of S chains, (S, d), group by group."""
        with conditioned(self.model, self._drawn(self.config.S // self.config.B, generator, self.config.B)):
            return super().draw(k, generator)

    def learn(self, tilt: Tilt, generator: torch.Generator) -> tuple[Tensor, ConditionalDiagnostics]:
        """Make the weights constant within each group."""
        assert self.chains is not None, "draw comes first"
        config, optimizer, losses = self.config, new_optimizer(self.config, self.model), list[Tensor]()
        for _ in range(config.E):
            order = torch.randperm(len(self.drawn), generator=generator)
            for g in order[:1] if config.epoch == "minibatch" else order:
                index = g * config.B + torch.arange(config.B)
                set_rate(optimizer, config, self.rate, len(losses))
                with conditioned(self.model, self.drawn[g]):
                    loss = log_variance_step(self.model, optimizer, self.chains[index], tilt.rewards[index], tilt.strength)
                losses.append(loss)
        ratio, s_r = self.chains.own_log_ratio(), tilt.strength * tilt.rewards
        log_w = (s_r + ratio).double().reshape(-1, config.B)
        log_z = torch.logsumexp(log_w, 1) - math.log(config.B)
        return torch.stack(losses), ConditionalDiagnostics(
            ess=effective_sample_size((log_w - log_z.unsqueeze(1)).flatten()) / config.S,
            var_log_w=float(log_w.var(1).mean()),
            kl=diagnose(ratio, s_r).kl,
            log_z=float(log_z.mean()),
            conditions=tuple(self.drawn),
            group_log_z=log_z,
        )


@autograd
def conditional_tilting(
    base: nn.Module,
    reward: Callable[[Tensor, Condition], Tensor],
    conditions: Callable[[torch.Generator], Condition],
    schedule: Schedule,
    config: RecommendedConfig | None = None,
    *,
    d: int | None = None,
    seed: int = 0,
    state: TiltState | None = None,
) -> Iterator[TiltStep]:
    """Fine-tune a conditional model toward exp(lam r(x, c)) p(x | c) for all c at once, one tilt per item.

    Args:
        base: a :class:`~itlib.pretrained.models.FromModel` with weights to train, or one with adapters; not changed.
        reward: forward evaluations only; called once a group, on samples (B, d) and their condition, returns (B,).
        conditions: draws a condition with a generator, from a distribution of the user's.
        schedule: the pair alpha, sigma.
        config: the knobs, of chains and ``student="copy"``; B is the size of a group.
        d: dimension of the data; by default the base's own, ``base.d``, or 2 if it has none.
        seed: fixes every random draw.
        state: of an interrupted run of the same base, configuration and seed.

    Yields:
        A :class:`~itlib.tilting.TiltStep` per tilt, with :class:`ConditionalDiagnostics`.

    Raises:
        ValueError: for a configuration without chains or with another student.
        ValueError: as :func:`~itlib.beyond.recommended.recommended_tilting` does.
        FloatingPointError: as that does.
    """
    config, d = config or RecommendedConfig(student="copy"), d or int(getattr(base, "d", 2))
    if config.learner != "chains" or config.student != "copy":
        raise ValueError("conditions are learned on chains, by a copy of the model: learner='chains' and student='copy'")
    model, strengths, config = begun(base, schedule, config, d=d, seed=seed, state=state)
    learner = ConditionalChains(
        on_chains(model),
        schedule,
        config,
        conditions,
        d=d,
        seed=seed,
        variance=config.variance,
        rate=cosine if config.decay else None,
    )

    def graded(x: Tensor) -> Tensor:
        return torch.cat([reward(part, c) for part, c in zip(x.split(config.B), learner.drawn, strict=True)])

    yield from guarded(run_tilts(learner, graded, WithinGroups(config.steps, config.B), seed=seed, strengths=strengths))
