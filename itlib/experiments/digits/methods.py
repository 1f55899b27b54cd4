r"""The comparison on the digits: every method with the same number of evaluations of the reward.

A black box costs what its evaluations cost, so that is what is matched (:mod:`itlib.experiments.methods`):
:data:`EVALUATIONS` for each method. The methods
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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from itlib.baselines.accounting import BaselineStep, EvaluationCounter
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.draft import DraftConfig, draft
from itlib.baselines.monte_carlo import best_of_n
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reward_weighted import reweighted
from itlib.baselines.tilt_matching import EXPLICIT
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments import experiment, methods
from itlib.experiments.digits import base
from itlib.experiments.digits.images import IMAGE_PROBLEMS, D, ImageProblem, digits, image_card, surrogate, tilt_identity
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.experiments.methods import Drawn, watched
from itlib.experiments.problems import Problem
from itlib.likelihood import log_likelihood
from itlib.pretrained import with_lora
from itlib.rewards import Reward
from itlib.sampling import path_log_weights, sample
from itlib.schedules import Cosine, Schedule
from itlib.tilting import PAPER_UPDATE, TiltingConfig, Update, derive_seed, iterative_tilting
from itlib.training import regression_step

#: Evaluations of the reward of every method, and for a first look.
EVALUATIONS = {"full": 5120, "smoke": 320}
#: Steps of the sampler, everywhere.
J = base.J
#: Candidates of best-of-n.
CANDIDATES = 16


Setting = methods.Setting[ImageProblem]
Method = methods.Method[ImageProblem]


def paper(s: Setting) -> TiltingConfig:
    """The paper's configuration with half of its fewest tilts, 512 samples each, and 50 steps instead of 200."""
    S = s.budget // 10
    return TiltingConfig(N=10, lam=s.problem.lam, S=S, J=J, B=min(64, S), lr=s.lr)


def implicit(s: Setting, student: Literal["copy", "adapter"] = "adapter") -> RecommendedConfig:
    """The implicit step with steps from the rewards, a decaying rate and a sampler that keeps its variance.

    How many tilts there are follows from the rewards; the run ends when the evaluations are spent.
    """
    S = s.budget // 10
    paper = TiltingConfig(lam=s.problem.lam, S=S, J=J, B=min(128, S), E=150, lr=s.lr)
    changes = {"decay": True, "learner": "implicit", "variance": "analytic", "student": student, "target_ess": 0.9}
    return RecommendedConfig.like(paper, **changes)


def recommended(s: Setting, student: Literal["copy", "adapter"] = "adapter") -> RecommendedConfig:
    """The recommended configuration with what the budget allows: a tenth of the evaluations and three passes a tilt."""
    S = s.budget // 10
    return RecommendedConfig(lam=s.problem.lam, S=S, J=J, E=3, lr=s.lr, student=student)


def _tilting(
    config: Callable[[Setting], TiltingConfig], update: Update = PAPER_UPDATE, lora: bool = False
) -> Callable[[Setting], Iterator[BaselineStep]]:
    def run(s: Setting) -> Iterator[BaselineStep]:
        account, base = EvaluationCounter(), copy.deepcopy(s.base)
        account.count_model(base)
        base = with_lora(base, seed=derive_seed(s.seed, "lora")) if lora else base
        reward = account.count_reward(s.problem.reward)
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
        B = min(config.B, s.budget)
        asked = replace(config, iterations=s.budget // B, B=B, lam=s.problem.lam, lr=s.lr, J=J)
        return policy_gradient(s.base, s.problem.reward, s.schedule, asked, d=D, seed=s.seed)

    return run


def differentiable(s: Setting) -> tuple[Reward, int]:
    """What stands for the reward where a gradient is needed, and how many evaluations of the reward it has cost."""
    if s.problem.smooth:
        return s.problem.reward, 0
    generator = torch.Generator().manual_seed(derive_seed(s.seed, "surrogate samples"))
    x = sample(s.base, s.schedule, s.budget, D, steps=J, generator=generator)
    return surrogate(s.problem.reward, x, seed=s.seed), s.budget


def _with_gradient(
    run: Callable[[Setting, Reward, int], Iterator[BaselineStep]],
) -> Callable[[Setting], Iterator[BaselineStep]]:
    def counted(s: Setting) -> Iterator[BaselineStep]:
        reward, spent = differentiable(s)
        for step in run(s, reward, max(1, s.budget // 64)):
            yield replace(step, counts=replace(step.counts, reward=step.counts.reward + spent))

    return counted


def _draft(s: Setting, reward: Reward, iterations: int) -> Iterator[BaselineStep]:
    config = DraftConfig(iterations=iterations, lam=s.problem.lam, kl=1.0, J=J, lr=s.lr)
    return draft(s.base, reward, s.schedule, config, d=D, seed=s.seed)


def _adjoint(s: Setting, reward: Reward, iterations: int) -> Iterator[BaselineStep]:
    config = AdjointMatchingConfig(iterations=iterations, lam=s.problem.lam, J=J, lr=s.lr)
    return adjoint_matching(s.base, reward, s.schedule, config, d=D, seed=s.seed)


def _best_of_n(s: Setting, account: EvaluationCounter) -> Drawn:
    n, base = s.budget // CANDIDATES, s.base
    reward, generator = account.count_reward(s.problem.reward), s.generator("best")
    return Drawn(best_of_n(base, reward, s.schedule, n, candidates=CANDIDATES, d=D, J=J, generator=generator))


_DDPO = PolicyGradientConfig(updates=2)
METHODS: Mapping[str, Method] = {
    "best": Method("best of 16", draw=_best_of_n),
    "paper": Method("paper", lr=3e-5, train=_tilting(paper)),
    "centred": Method("paper, reward centred", lr=3e-5, train=_tilting(paper, update=EXPLICIT)),
    "paper-lora": Method("paper, LoRA", lr=3e-4, train=_tilting(paper, lora=True)),
    "implicit": Method("implicit, small correction", lr=1e-3, train=_tilting(implicit)),
    "implicit-full": Method("implicit, all weights", lr=3e-5, train=_tilting(lambda s: implicit(s, "copy"))),
    "implicit-lora": Method("implicit, LoRA", lr=3e-4, train=_tilting(lambda s: implicit(s, "copy"), lora=True)),
    "reweighted": Method("reward-weighted regression", lr=3e-5, train=_tilting(paper, update=reweighted)),
    "ddpo": Method("DDPO", lr=1e-4, train=_policy(_DDPO)),
    "dpok": Method("DPOK", lr=1e-4, train=_policy(replace(_DDPO, kl=1.0, value=True))),
    "draft": Method("DRaFT with path KL", gradient=True, lr=3e-4, train=_with_gradient(_draft)),
    "adjoint": Method("Adjoint Matching", gradient=True, lr=3e-4, train=_with_gradient(_adjoint)),
    "recommended": Method("recommended, small correction", lr=1e-3, train=_tilting(recommended)),
    "recommended-full": Method("recommended, all weights", lr=1e-4, train=_tilting(lambda s: recommended(s, "copy"))),
    "recommended-lora": Method("recommended, LoRA", lr=1e-3, train=_tilting(lambda s: recommended(s, "copy"), lora=True)),
}


def path_card(
    denoiser: nn.Module, setting: methods.Setting[Problem], n: int, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, float]]:
    """Samples of a model, with their mean reward, its path KL to the base, and the distance to the tilt but for log Z.

    Args:
        denoiser: the fine-tuned model.
        setting: base, reward and strength.
        n: samples.
        generator: of the draws.

    Returns:
        The samples, (n, d), and ``mean_reward``, ``path_kl`` in nats, ``distance`` (add log Z) with its standard error
        ``distance_se``, and ``ess``, the share of the paths that stays effective under the weights of the exact tilt.
    """
    with torch.no_grad():
        x, log_w = path_log_weights(
            denoiser, setting.base, setting.schedule, n, setting.problem.d, steps=J, generator=generator
        )
    r = setting.problem.reward(x)
    log_w, tilt = log_w.double(), setting.problem.lam * r.double()
    ess = torch.exp(2 * torch.logsumexp(log_w + tilt, 0) - torch.logsumexp(2 * (log_w + tilt), 0))
    return x, {
        "mean_reward": float(r.mean()),
        "path_kl": float(-log_w.mean()),
        "distance": float((-log_w - tilt).mean()),
        "distance_se": float((-log_w - tilt).std()) / n**0.5,
        "ess": float(ess) / n,
    }


#: Which methods run for which reward.
ASKED: Mapping[str, Sequence[str]] = {
    "class": tuple(METHODS),
    "symmetry": ("best", "paper", "centred", "implicit", "ddpo", "draft", "adjoint", "recommended", "recommended-lora"),
    "hole": ("best", "paper", "centred", "implicit", "ddpo", "recommended", "recommended-lora"),
}
#: Whose tilt is held against likelihoods, with seed 0.
IDENTITY = ("paper", "implicit-full", "implicit", "recommended", "recommended-lora", "adjoint")


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """One method on one reward.

    Args:
        problem: a name of :data:`itlib.experiments.digits.images.IMAGE_PROBLEMS`.
        method: a name of :data:`METHODS`.
        lr: learning rate; left out, that of the table.
        budget: evaluations of the reward; left out, :data:`EVALUATIONS`.
    """

    experiment: ClassVar[str] = "digits"
    problem: str = "class"
    method: str = "recommended-lora"
    lr: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("problem", self.problem, IMAGE_PROBLEMS)
        self._settle(lr=METHODS[choose("method", self.method, METHODS)].lr, budget=EVALUATIONS[self.profile])

    def setting(self, denoiser: nn.Module, schedule: Schedule) -> Setting:
        """What the method is given, with a base."""
        return Setting(
            denoiser,
            IMAGE_PROBLEMS[self.problem],
            schedule,
            budget=self.budget or 0,
            unit="rewards",
            lr=self.lr or 0.0,
            seed=self.seed,
            full=self.full,
        )


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Spend the evaluations and judge the result.

    A method is looked at after each quarter of its evaluations, with 200 samples.
    """
    torch.set_num_threads(1)
    p, schedule, chosen = parameters, Cosine(), METHODS[parameters.method]
    denoiser = base.trained(folder, schedule)
    setting = p.setting(denoiser, schedule)
    if chosen.draw:
        clock = time.process_time()
        x = chosen.draw(setting, EvaluationCounter()).samples
        assert x is not None
        seconds = {"sampling": time.process_time() - clock, "training": 0.0}
        metrics: dict[str, Metric] = {"mean_reward": float(setting.problem.reward(x).mean()), "reward": setting.budget}
        return Record(p, metrics | image_card(x), samples=_kept(p, x), seconds=seconds)
    curve: list[dict[str, float]] = []
    columns: dict[str, list[float | None]] = {}
    try:
        for step, taken in watched(chosen, setting, (0.25, 0.5, 0.75, 1.0)):
            curve.append(look(step, setting, taken))
            columns = {key: [row[key] for row in curve] for key in curve[0]}
    except FloatingPointError as error:
        return Record(p, {}, curve=columns, failure=str(error))
    x, card = path_card(step.model, setting, 1000 if p.full else 50, setting.generator("judge"))
    metrics = {**spent(step), **footprint(step.model), **card, **image_card(x)}
    if p.method in IDENTITY and p.seed == 0 and p.full:
        metrics |= identity(step.model, setting)
    seconds = {"sampling": 0.0, "training": curve[-1]["seconds"]}
    return Record(p, metrics, curve=columns, samples=_kept(p, x), seconds=seconds)


def _kept(p: Parameters, x: torch.Tensor) -> list[list[float]]:
    """A few images of the first seed, for pictures."""
    return base.rounded(x[:16]) if p.seed == 0 else []


def spent(step: BaselineStep) -> dict[str, float]:
    """Evaluations of the reward, and those of its gradient; the denoiser's would count the looks as well."""
    return {"reward": step.counts.reward, "reward_gradient": step.counts.reward_gradient}


def look(step: BaselineStep, setting: Setting, seconds: float) -> dict[str, float]:
    """One row of the curve, from draws of its own."""
    _, card = path_card(step.model, setting, 200 if setting.full else 20, setting.generator("look"))
    return spent(step) | {"seconds": seconds} | {k: card[k] for k in ("mean_reward", "path_kl", "distance")}


def identity(denoiser: nn.Module, setting: Setting) -> dict[str, float]:
    """The tilt identity at real digits, through the likelihoods of both probability flows."""
    chosen = torch.randperm(len(digits().x), generator=torch.Generator().manual_seed(derive_seed(0, "identity")))[:40]
    points = digits().x[chosen]
    tilted, untilted = (
        log_likelihood(model, setting.schedule, points, rtol=1e-3, atol=1e-3) for model in (denoiser, setting.base)
    )
    found = tilt_identity(tilted - untilted, setting.problem.lam * setting.problem.reward(points))
    return {f"identity_{key}": value for key, value in found.items()}


def footprint(denoiser: nn.Module) -> dict[str, float]:
    """Bytes of a training step on 64 images, counted.

    They are the gradients and Adam's two averages of the weights that learn, and what autograd keeps for the way back.
    """
    parameters, kept = [p for p in denoiser.parameters() if p.requires_grad], set()
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    known = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    x, t = digits().x[:64], torch.full((64,), 0.5)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        regression_step(denoiser, optimizer, x, t, x)
    averages = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim]
    return {
        "trained": sum(p.numel() for p in parameters),
        "optimizer_bytes": sum(v.nbytes for v in [p.grad for p in parameters if p.grad is not None] + averages),
        "activation_bytes": sum(size for _, size in kept),
    }


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    return {
        f"{problem}_{method}_seed{seed}": Parameters(problem=problem, method=method, seed=seed)
        for seed in seeds
        for problem, methods in ASKED.items()
        for method in methods
    }


EXPERIMENT = Experiment("digits", Parameters, run, cells, after=base.before)
