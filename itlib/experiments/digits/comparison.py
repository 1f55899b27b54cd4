r"""The comparison on the digits of :mod:`itlib.experiments.digits.images`: every method with the same number of evaluations of the reward.

A black box costs what its evaluations cost, so that is what is matched: :data:`EVALUATIONS` for each method. The methods
that need a gradient get one where the reward has one; elsewhere that of a network which is fitted to as many values of the
reward at samples of the base. Evaluations of the denoiser and seconds follow and are reported.

*Distance to the truth.* The tilted law is not known, but the tilt of the base's *sampler* can be held against any other
sampler with the same steps. With the weights of :func:`itlib.sampling.path_log_weights`,

.. math::

   \mathrm{KL}(P_\theta\,\|\,P^*) = \underbrace{\mathbb E_\theta[-\log w]}_{\mathrm{KL}(P_\theta\|P_{\mathrm{base}})}
   -\lambda\,\mathbb E_\theta[r(X_0)]+\log Z,\qquad Z=\mathbb E_{\mathrm{base}}[e^{\lambda r(X_0)}] ,

for the laws P of whole paths: an upper bound on the KL of the samples, zero for the exact tilt only. The first two terms are
means over paths of the model, Z is a mean over samples of the base.

*Learning rates* are set by hand, after single runs at one to five values with a seed that the grid does not use. The paper's
1e-4 moves this network far from the base in every direction, so that methods which train all weights by regression get less;
there was no even search, and a method may do better with another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from itlib.baselines.accounting import BaselineStep, EvaluationCounter
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.draft import DraftConfig, draft
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reward_weighted import reweighted
from itlib.baselines.tilt_matching import EXPLICIT
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.digits.images import TASKS, D, surrogate
from itlib.metrics import effective_sample_size
from itlib.pretrained import with_lora
from itlib.rewards import Reward
from itlib.sampling import path_log_weights, sample
from itlib.schedules import Schedule
from itlib.tilting import PAPER_UPDATE, TiltingConfig, Update, derive_seed, iterative_tilting

#: Evaluations of the reward of every method, and for a first look.
EVALUATIONS = {"full": 5120, "smoke": 320}
#: Steps of the sampler, everywhere.
J = 50
#: Candidates of best-of-n.
CANDIDATES = 16


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Args:
        base: the pretrained denoiser of the digits; not changed.
        task: a name of :data:`itlib.experiments.digits.images.TASKS`.
        schedule: the pair alpha, sigma.
        lr: learning rate.
        evaluations: of the reward.
        seed: fixes every random draw.
    """

    base: nn.Module
    task: str
    schedule: Schedule
    lr: float
    evaluations: int = EVALUATIONS["full"]
    seed: int = 0

    @property
    def lam(self) -> float:
        """Tilt strength."""
        return TASKS[self.task].lam

    @property
    def reward(self) -> Reward:
        """The black box."""
        return TASKS[self.task].reward


def paper(s: Setting) -> TiltingConfig:
    """The paper's configuration with half of its fewest tilts, 512 samples each, and 50 steps instead of 200."""
    S = s.evaluations // 10
    return TiltingConfig(N=10, lam=s.lam, S=S, J=J, B=min(64, S), lr=s.lr)


def implicit(s: Setting, student: Literal["copy", "adapter"] = "adapter") -> RecommendedConfig:
    """The implicit step with steps from the rewards, a decaying rate and a sampler that keeps its variance.

    How many tilts there are follows from the rewards; the run ends when the evaluations are spent.
    """
    S = s.evaluations // 10
    paper = TiltingConfig(lam=s.lam, S=S, J=J, B=min(128, S), E=150, lr=s.lr)
    changes = {"decay": True, "learner": "implicit", "variance": "analytic", "student": student, "target_ess": 0.9}
    return RecommendedConfig.like(paper, **changes)


def recommended(s: Setting, student: Literal["copy", "adapter"] = "adapter") -> RecommendedConfig:
    """The recommended configuration with what the budget allows: a tenth of the evaluations and three passes a tilt."""
    S = s.evaluations // 10
    return RecommendedConfig(lam=s.lam, S=S, J=J, E=3, lr=s.lr, student=student)


def _tilting(
    config: Callable[[Setting], TiltingConfig], update: Update = PAPER_UPDATE, lora: bool = False
) -> Callable[[Setting], Iterator[BaselineStep]]:
    def run(s: Setting) -> Iterator[BaselineStep]:
        account, base = EvaluationCounter(), copy.deepcopy(s.base)
        account.count_model(base)
        base = with_lora(base, seed=derive_seed(s.seed, "lora")) if lora else base
        reward = account.count_reward(s.reward)
        settings = config(s)
        if isinstance(settings, RecommendedConfig):
            steps = recommended_tilting(base, reward, s.schedule, settings, d=D, seed=s.seed)
        else:
            steps = iterative_tilting(base, reward, s.schedule, settings, d=D, seed=s.seed, update=update)
        for step in steps:
            yield account.step(step.k, step.model, float(step.losses.mean()))

    return run


def _policy(config: PolicyGradientConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def run(s: Setting) -> Iterator[BaselineStep]:
        B = min(config.B, s.evaluations)
        asked = replace(config, iterations=s.evaluations // B, B=B, lam=s.lam, lr=s.lr, J=J)
        return policy_gradient(s.base, s.reward, s.schedule, asked, d=D, seed=s.seed)

    return run


def differentiable(s: Setting) -> tuple[Reward, int]:
    """What stands for the reward where a gradient is needed, and how many evaluations of the reward it has cost."""
    if TASKS[s.task].smooth:
        return s.reward, 0
    generator = torch.Generator().manual_seed(derive_seed(s.seed, "surrogate samples"))
    x = sample(s.base, s.schedule, s.evaluations, D, steps=J, generator=generator)
    return surrogate(s.reward, x, seed=s.seed), s.evaluations


def _with_gradient(
    run: Callable[[Setting, Reward, int], Iterator[BaselineStep]],
) -> Callable[[Setting], Iterator[BaselineStep]]:
    def counted(s: Setting) -> Iterator[BaselineStep]:
        reward, spent = differentiable(s)
        for step in run(s, reward, max(1, s.evaluations // 64)):
            yield replace(step, counts=replace(step.counts, reward=step.counts.reward + spent))

    return counted


def _draft(s: Setting, reward: Reward, iterations: int) -> Iterator[BaselineStep]:
    config = DraftConfig(iterations=iterations, lam=s.lam, kl=1.0, J=J, lr=s.lr)
    return draft(s.base, reward, s.schedule, config, d=D, seed=s.seed)


def _adjoint(s: Setting, reward: Reward, iterations: int) -> Iterator[BaselineStep]:
    config = AdjointMatchingConfig(iterations=iterations, lam=s.lam, J=J, lr=s.lr)
    return adjoint_matching(s.base, reward, s.schedule, config, d=D, seed=s.seed)


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Args:
        title: its name in tables.
        lr: learning rate.
        train: fine-tunes, one step per item.
        gradient: whether it needs a gradient of the reward.
    """

    title: str
    lr: float
    train: Callable[[Setting], Iterator[BaselineStep]]
    gradient: bool = False


_DDPO = PolicyGradientConfig(updates=2)
METHODS: Mapping[str, Method] = {
    "paper": Method("paper", 3e-5, _tilting(paper)),
    "centred": Method("paper, reward centred", 3e-5, _tilting(paper, update=EXPLICIT)),
    "paper-lora": Method("paper, LoRA", 3e-4, _tilting(paper, lora=True)),
    "implicit": Method("implicit, small correction", 1e-3, _tilting(implicit)),
    "implicit-full": Method("implicit, all weights", 3e-5, _tilting(lambda s: implicit(s, "copy"))),
    "implicit-lora": Method("implicit, LoRA", 3e-4, _tilting(lambda s: implicit(s, "copy"), lora=True)),
    "reweighted": Method("reward-weighted regression", 3e-5, _tilting(paper, update=reweighted)),
    "ddpo": Method("DDPO", 1e-4, _policy(_DDPO)),
    "dpok": Method("DPOK", 1e-4, _policy(replace(_DDPO, kl=1.0, value=True))),
    "draft": Method("DRaFT with path KL", 3e-4, _with_gradient(_draft), gradient=True),
    "adjoint": Method("Adjoint Matching", 3e-4, _with_gradient(_adjoint), gradient=True),
    "recommended": Method("recommended, small correction", 1e-3, _tilting(recommended)),
    "recommended-full": Method("recommended, all weights", 1e-4, _tilting(lambda s: recommended(s, "copy"))),
    "recommended-lora": Method("recommended, LoRA", 1e-3, _tilting(lambda s: recommended(s, "copy"), lora=True)),
}


def fine_tune(method: Method, setting: Setting) -> Iterator[BaselineStep]:
    """Run a method until its evaluations are spent, one step per item.

    Raises:
        FloatingPointError: if it diverges.
    """
    for step in method.train(setting):
        yield step
        if not method.gradient and step.counts.reward >= setting.evaluations:
            return


def path_card(
    denoiser: nn.Module, setting: Setting, n: int, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, float]]:
    """Samples of a model, with their mean reward, its path KL to the base, and the distance to the tilt but for log Z.

    Args:
        denoiser: the fine-tuned model.
        setting: base, reward and strength.
        n: samples.
        generator: of the draws.

    Returns:
        The samples, (n, 64), and ``mean_reward``, ``path_kl`` in nats, ``distance`` (add log Z) with its standard error
        ``distance_se``, and ``ess``, the share of the paths that stays effective under the weights of the exact tilt.
    """
    with torch.no_grad():
        x, log_w = path_log_weights(denoiser, setting.base, setting.schedule, n, D, steps=J, generator=generator)
    r = setting.reward(x)
    log_w, tilt = log_w.double(), setting.lam * r.double()
    return x, {
        "mean_reward": float(r.mean()),
        "path_kl": float(-log_w.mean()),
        "distance": float((-log_w - tilt).mean()),
        "distance_se": float((-log_w - tilt).std()) / n**0.5,
        "ess": effective_sample_size(log_w + tilt) / n,
    }


#: Which methods run for which reward; "best" is best-of-n, which trains nothing.
ASKED: Mapping[str, tuple[str, ...]] = {
    "class": ("best", *METHODS),
    "symmetry": ("best", "paper", "centred", "implicit", "ddpo", "draft", "adjoint", "recommended", "recommended-lora"),
    "hole": ("best", "paper", "centred", "implicit", "ddpo", "recommended", "recommended-lora"),
}


def cells() -> dict[str, dict[str, str]]:
    """The grid: a cell's name before its seed, and its parameters; the base first, from which the others start."""
    return {task: {"task": task} for task in ("base", *ASKED)}
