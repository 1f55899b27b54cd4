r"""The comparison: every method on the same base, the same task and the same budget.

*Budget.* One unit of work is one forward evaluation of a denoiser on one sample; an evaluation that autograd records, and
that is differentiated afterwards, counts three. Every fine-tuning method runs until it has spent :data:`WORK` units, what
Algorithm 2 spends with the paper's settings at N = 20: 20 tilts of 1000 samples times 200 steps, and their training. The
methods that train nothing spend about the same on their samples. Evaluations of the reward and seconds follow from that and
are reported, not matched.

*Tuning.* Each method's learning rate is the one of :data:`RATES` with the lowest sliced Wasserstein distance to the target
at the end of one run on the paper's task, with seed :data:`TUNING_SEED`, which is not used again (the smallest rate, if no
run ends). Every other knob is the source's default where it states one that makes sense here, and is written in
:data:`METHODS` where it departs from the default of our code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from itlib.baselines.accounting import BaselineStep, EvaluationCounter
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.draft import DraftConfig, draft
from itlib.baselines.guidance import exactly_guided, guided, plug_in_value
from itlib.baselines.monte_carlo import (
    SMCConfig,
    best_of_n,
    importance,
    sequential_monte_carlo,
    systematic,
)
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reward_weighted import reweighted
from itlib.baselines.tilt_matching import EXPLICIT, IMPLICIT
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.problems import Task
from itlib.metrics import effective_sample_size
from itlib.network import Network, NoisePredictor
from itlib.rewards import Reward
from itlib.schedules import Schedule
from itlib.tilting import PAPER_UPDATE, TiltingConfig, Update, derive_seed, iterative_tilting

#: Units of work of every fine-tuning method, and for a first look.
WORK = {"full": 4_500_000, "smoke": 60_000}
RATES = (1e-4, 3e-4, 1e-3)
TUNING_SEED = 100
_UNENDING = 1_000_000_000


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Args:
        base: the pretrained network; not changed.
        task: base mixture and reward.
        schedule: the pair alpha, sigma.
        profile: "full" or "smoke".
        lr: learning rate of a fine-tuning method.
        N: number of tilts, for the methods that tilt.
        seed: fixes every random draw.
    """

    base: Network
    task: Task
    schedule: Schedule
    profile: Literal["full", "smoke"] = "full"
    lr: float = 1e-4
    N: int = 20
    seed: int = 0

    def counted(self, account: EvaluationCounter) -> tuple[Network, Reward]:
        """A copy of the base and the reward, whose evaluations go on the account."""
        base = copy.deepcopy(self.base)
        account.count_model(base)
        return base, account.count_reward(self.task.reward)

    @property
    def generator(self) -> torch.Generator:
        """Of the methods that train nothing."""
        return torch.Generator().manual_seed(derive_seed(self.seed, "inference"))


@dataclass(frozen=True)
class Drawn:
    """What a method that trains nothing gives: samples, and a denoiser if it has one.

    Args:
        samples: (n, d), equally weighted.
        denoiser: that drew them by Algorithm 1, or None.
        ess: effective sample size as a share of the particles, or None.
    """

    samples: Tensor
    denoiser: NoisePredictor | None = None
    ess: float | None = None


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Args:
        title: its name in tables.
        gradient: whether it needs the reward's gradient.
        exact: whether it ends at the exact tilt with unlimited samples, steps of the sampler and tilts, and an exact base.
        lr: learning rate that the tuning chose; 0 for a method that trains nothing.
        train: fine-tunes, one step per item, for a method that does ...
        draw: ... or draws, with an account to count on.
        tilts: whether the number of tilts N means something.
    """

    title: str
    gradient: bool
    exact: bool
    lr: float = 0.0
    train: Callable[[Setting], Iterator[BaselineStep]] | None = None
    draw: Callable[[Setting, EvaluationCounter], Drawn] | None = None
    tilts: bool = False


def _tilting(update: Update, one_shot: bool = False) -> Callable[[Setting], Iterator[BaselineStep]]:
    """Algorithm 2, or a relative of it, with its evaluations counted; a single tilt spends the budget on its training."""

    def train(s: Setting) -> Iterator[BaselineStep]:
        account = EvaluationCounter()
        base, reward = s.counted(account)
        full = s.profile == "full"
        config = TiltingConfig(N=s.N, lr=s.lr, S=1000 if full else 128, J=200 if full else 10, E=100 if full else 5)
        if one_shot:  # one tilt with the samples and the training of twenty
            config = TiltingConfig(N=1, lr=s.lr, S=20 * config.S, J=config.J, E=20 * config.E)
        for step in iterative_tilting(base, reward, s.schedule, config, d=s.task.base.d, seed=s.seed, update=update):
            yield account.step(step.k, step.model, float(step.losses.mean()))

    return train


def _recommended(s: Setting) -> Iterator[BaselineStep]:
    """The recommended step on all weights of the base; as many chains and steps as the budget lasts for."""
    account = EvaluationCounter()
    base, reward = s.counted(account)
    S, J = (900, 50) if s.profile == "full" else (64, 10)
    config = RecommendedConfig(student="copy", S=S, J=J, lr=s.lr)
    for step in recommended_tilting(base, reward, s.schedule, config, d=s.task.base.d, seed=s.seed):
        yield account.step(step.k, step.model, float(step.losses.mean()))


def _draft(config: DraftConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        unending = replace(config, iterations=_UNENDING, lr=s.lr)
        return draft(s.base, s.task.reward, s.schedule, unending, d=s.task.base.d, seed=s.seed)

    return train


def _adjoint(s: Setting) -> Iterator[BaselineStep]:
    config = AdjointMatchingConfig(iterations=_UNENDING, lr=s.lr)
    return adjoint_matching(s.base, s.task.reward, s.schedule, config, d=s.task.base.d, seed=s.seed)


def _policy(config: PolicyGradientConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        unending = replace(config, iterations=_UNENDING, lr=s.lr, B=128)
        return policy_gradient(s.base, s.task.reward, s.schedule, unending, d=s.task.base.d, seed=s.seed)

    return train


def _importance(s: Setting, account: EvaluationCounter) -> Drawn:
    n, J = (20_000, 200) if s.profile == "full" else (500, 50)
    base, reward, generator = *s.counted(account), s.generator
    x, log_w = importance(base, reward, s.schedule, n, d=s.task.base.d, J=J, generator=generator)
    return Drawn(x[systematic(log_w, n, generator)], ess=effective_sample_size(log_w) / n)


def _best_of_n(s: Setting, account: EvaluationCounter) -> Drawn:
    n, candidates, J = (1250, 16, 200) if s.profile == "full" else (50, 4, 50)
    base, reward = s.counted(account)
    return Drawn(best_of_n(base, reward, s.schedule, n, candidates=candidates, d=s.task.base.d, J=J, generator=s.generator))


def _smc(twisted: bool) -> Callable[[Setting, EvaluationCounter], Drawn]:
    def draw(s: Setting, account: EvaluationCounter) -> Drawn:
        n, J = (20_000 // (3 if twisted else 1), 200) if s.profile == "full" else (500, 50)
        base, reward, generator = *s.counted(account), s.generator
        config = SMCConfig(n=n, J=J, twisted=twisted)
        *_, population = sequential_monte_carlo(base, reward, s.schedule, config, d=s.task.base.d, generator=generator)
        return Drawn(population.x[systematic(population.log_w, n, generator)], ess=population.ess / n)

    return draw


def _guided(exact: bool) -> Callable[[Setting, EvaluationCounter], Drawn]:
    def draw(s: Setting, account: EvaluationCounter) -> Drawn:
        base, reward = s.counted(account)
        if exact:
            return Drawn(torch.empty(0), exactly_guided(base, s.task.base, s.task.target, s.schedule))
        return Drawn(torch.empty(0), guided(base, plug_in_value(base, reward, s.schedule), s.schedule))

    return draw


METHODS: Mapping[str, Method] = {
    "tilting": Method("iterative tilting", False, True, 1e-4, _tilting(PAPER_UPDATE), tilts=True),
    "centred": Method("explicit Tilt Matching", False, True, 3e-4, _tilting(EXPLICIT), tilts=True),
    "implicit": Method("implicit Tilt Matching", False, True, 3e-4, _tilting(IMPLICIT), tilts=True),
    "reweighted": Method("reward-weighted, iterated", False, True, 1e-4, _tilting(reweighted), tilts=True),
    "oneshot": Method("reward-weighted, one shot", False, True, 1e-4, _tilting(reweighted, one_shot=True)),
    "recommended": Method("recommended here", False, True, 3e-4, _recommended),
    "ddpo": Method("DDPO", False, False, 1e-3, _policy(PolicyGradientConfig())),
    "dpok": Method("DPOK", False, False, 1e-4, _policy(PolicyGradientConfig(kl=1.0, value=True))),
    "dpok-future": Method(
        "DPOK with future KL", False, True, 1e-3, _policy(PolicyGradientConfig(kl=1.0, value=True, future_kl=True))
    ),
    "draft": Method("DRaFT", True, False, 1e-4, _draft(DraftConfig())),
    "draft-5": Method("DRaFT-5", True, False, 1e-4, _draft(DraftConfig(K=5))),
    "draft-lv": Method("DRaFT-LV", True, False, 1e-4, _draft(DraftConfig(K=1, renoise=2))),
    "draft-kl": Method("DRaFT with path KL", True, True, 3e-4, _draft(DraftConfig(kl=1.0))),
    "adjoint": Method("Adjoint Matching", True, True, 3e-4, _adjoint),
    "importance": Method("importance resampling", False, True, draw=_importance),
    "best": Method("best of 16", False, False, draw=_best_of_n),
    "smc": Method("SMC", False, True, draw=_smc(False)),
    "twisted": Method("twisted SMC", True, True, draw=_smc(True)),
    "guided": Method("guidance, plug-in value", True, False, draw=_guided(False)),
    "exact": Method("guidance, exact value", False, True, draw=_guided(True)),
}


def fine_tune(method: Method, setting: Setting) -> Iterator[BaselineStep]:
    """Run a fine-tuning method until its work is done, one step per item.

    Raises:
        ValueError: for a method that trains nothing.
        FloatingPointError: if it diverges.
    """
    if method.train is None:
        raise ValueError(f"{method.title} trains nothing: call its draw")
    for step in method.train(setting):
        yield step
        if step.counts.work >= WORK[setting.profile]:
            return


#: Tasks on which every method runs, and those on which only the best of the tuning and some that train nothing do.
MAIN, OTHER = ("paper", "one-mode"), ("unequal", "quadratic", "eight", "nine")
BEST = ("tilting", "implicit", "recommended", "dpok", "adjoint")
REFERENCES = ("importance", "best", "smc", "exact")
#: Methods that are also run with fewer tilts than the paper's fewest: they cost less, and what does the rest buy?
FEWER = ("tilting", "implicit")


def cells() -> dict[str, dict[str, str | int]]:
    """The grid: a cell's name before its seed, and its parameters."""
    found: dict[str, dict[str, str | int]] = {}
    for task in (*MAIN, *OTHER):
        for name in METHODS if task in MAIN else (*BEST, *REFERENCES):
            for N in (5, 10, 20) if name in FEWER and task in MAIN else (20,):
                stem = f"{task}_{name}" + (f"_N{N:03d}" if METHODS[name].tilts else "")
                found[stem] = {"task": task, "method": name} | ({"N": N} if METHODS[name].tilts else {})
    return found


def tuning_cells() -> dict[str, dict[str, str | float]]:
    """The grid that chooses learning rates."""
    trained = [name for name, method in METHODS.items() if method.train]
    return {f"paper_{name}_lr{lr:.0e}": {"task": "paper", "method": name, "lr": lr} for name in trained for lr in RATES}
