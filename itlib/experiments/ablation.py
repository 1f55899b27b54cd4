r"""What the recommended configuration gains, and through what: the grid of runs behind it.

``main`` is what is recommended, on the paper's task for each number of tilts and for steps chosen from the rewards, and on
tasks where the number of tilts matters. Then one change is taken away from it at a time, one is added at a time to the
paper's Algorithm 2, and the budget is left behind to see what bounds the rest. Every run starts from a base of its seed,
trained on the same 30,000 samples: ``skip`` is :func:`~itlib.beyond.preconditioning.gaussian_skip_network`, ``plain`` the
network of Section 4.2, and ``exact`` needs no training.

The base's error is measured at noised samples of the *tilted* distributions, of which the last is the target: there it will
be used, and almost none of its training samples came near.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments import experiment
from itlib.experiments.checkpoints import profile, resumable_base
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.experiments.problems import problem
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.metrics import flow_nll, sample_card, score_errors
from itlib.network import NoisePredictor
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, derive_seed

#: What is taken away from the recommended configuration, with steps chosen from the rewards.
REMOVED: dict[str, dict[str, Any]] = {
    "no-skip": {"base": "plain"},  # the paper's base
    "no-paths": {"learner": "implicit", "polish_rounds": 0, "B": 128, "E": 3000, "epoch": "minibatch", "lr": 3e-3},
    "no-settling": {"polish_rounds": 0},
    "no-decay": {"decay": False},
    "no-rule": {"target_ess": None, "N": 11},  # as many steps, all equal
}
#: What is given to the recommended configuration beyond the budget of the comparison: each chain is seen four times.
MORE: dict[str, dict[str, Any]] = {"four-passes": {"E": 4}, "four-passes-exact": {"E": 4, "base": "exact"}}
_ADAPTER: dict[str, Any] = {"student": "adapter", "lr": 3e-3}
#: What is added to the paper's configuration, at N = 20.
ADDED: dict[str, dict[str, Any]] = {
    "paper": {},
    "skip": {"base": "skip"},
    "analytic": {"variance": "analytic"},
    "implicit": {"learner": "implicit"},
    "decay": {"decay": True},
    "adapter": _ADAPTER,
    # needs the adapter and the variance; the same samples and sample-steps a tilt
    "paths": _ADAPTER
    | {"variance": "analytic", "learner": "chains", "J": 100, "B": 16, "E": 1, "epoch": "pass", "lr": 6e-3},
}
HARDER = ("unequal", "one-mode", "quadratic")


def settings(config: str, N: int | None, changes: dict[str, Any]) -> RecommendedConfig:
    """The configuration "paper" or "recommended" with some knobs changed; what is no knob is left out."""
    knobs = {field.name for field in fields(RecommendedConfig)}
    changes = {name: value for name, value in changes.items() if name in knobs}
    if config == "paper":
        return RecommendedConfig.like(TiltingConfig(N=N or TiltingConfig.N), **changes)
    return replace(RecommendedConfig() if N is None else RecommendedConfig.equal_steps(N), **changes)


BaseName = Literal["skip", "plain", "wide", "small", "exact"]
#: Strengths of the tilt at which the base's error is measured.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """One run of a named configuration, with one change.

    Args:
        problem: a name of :data:`itlib.experiments.problems.PROBLEMS`.
        method: the configuration.
        N: number of equal tilts; None: as the configuration says, which may choose its steps on the way.
        change: a name of :data:`REMOVED` or :data:`MORE` or, with the method "paper", of :data:`ADDED`; empty for none.
        base: left out, it is what the change says, or "skip" if recommended and "plain" if the paper's.
    """

    experiment: ClassVar[str] = "ablation"
    problem: str = "paper"
    method: Literal["paper", "recommended"] = "recommended"
    N: int | None = None
    change: str = ""
    base: BaseName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        problem(self.problem)
        if self.change:
            choose(f"change of {self.method!r}", self.change, self._known)
        self._settle(base=self.changed.get("base", "plain" if self.method == "paper" else "skip"))

    @property
    def _known(self) -> dict[str, dict[str, Any]]:
        return ADDED if self.method == "paper" else REMOVED | MORE

    @property
    def changed(self) -> dict[str, Any]:
        """What the change changes."""
        return self._known.get(self.change, {})

    @property
    def tilting(self) -> RecommendedConfig:
        """All knobs of the tilts."""
        config = settings(self.method, self.N, self.changed)
        if self.full:
            return config
        return replace(config, S=200, J=20, E=min(config.E, 10), B=min(config.B, 32), N=min(config.N, 5))


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Train a base, tilt it, and judge both.

    Samples are drawn in 100 steps with the variance put back that Algorithm 1 loses, so that the network is judged and not
    the sampler.
    """
    torch.set_num_threads(1)
    p, schedule, asked, work, knobs = (
        parameters,
        Cosine(),
        problem(parameters.problem),
        profile(parameters.profile),
        parameters.tilting,
    )
    exact_base, trained = ExactNoisePredictor(asked.base, schedule), 0.0
    model: NoisePredictor = exact_base
    if p.base is not None and p.base != "exact":
        training = replace(work.training, lr=3e-3) if p.base in ("skip", "small") else work.training
        *_, state = resumable_base(asked.base, schedule, training, n=work.n, seed=p.seed, kind=p.base)
        model, trained = state.model.eval(), state.seconds["training"]
    n, seed = 20_000 if p.full else 1000, derive_seed(p.seed, "trace")
    floors = [
        score_errors(model, asked.base.tilted(asked.reward, s), schedule, n=n, seed=seed, truth=exact_base).eps_rmse
        for s in STRENGTHS
    ]
    trace, seconds = [], {"sampling": 0.0, "training": 0.0}
    evaluations = {"rewards": 0, "network": 0, "sample_steps": 0}
    for step in recommended_tilting(model, asked.reward, schedule, knobs, seed=p.seed):
        seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
        truth = asked.base.tilted(asked.reward, step.strength)
        trace.append(score_errors(step.model, truth, schedule, n=2000 if p.full else 200, seed=p.seed).eps_rmse)
        evaluations["rewards"] += knobs.S
        evaluations["network"] += knobs.S * knobs.J
        evaluations["sample_steps"] += len(step.losses) * knobs.B * (knobs.J if knobs.learner == "chains" else 1)

    generator = torch.Generator().manual_seed(derive_seed(p.seed, "look"))
    target = asked.target
    x = sample(step.model, schedule, n, steps=100, variance="analytic", generator=generator).double()
    errors = score_errors(step.model, target, schedule, n=n, seed=seed)
    metrics: dict[str, Metric] = sample_card(x[:20_000], target, target=target, base=asked.base, seed=p.seed) | {
        "eps_rmse": errors.eps_rmse,
        "score_rmse": errors.score_rmse,
        "floor": floors[-1],
        "flow_nll": flow_nll(step.model, schedule, target, target.sample(work.flow_samples, generator).float()),
        "entropy": target.entropy(),
        "mean_0": float(x[:, 0].mean()),
        "mean_1": float(x[:, 1].mean()),
        "tilts": step.k,
        "base_seconds": trained,
        **evaluations,
    }
    return Record(p, metrics, trace=trace, curve={"strength": STRENGTHS, "floor": floors}, seconds=seconds)


def _variants() -> dict[str, dict[str, Any]]:
    """The cells of a seed by the name before it."""
    found: dict[str, dict[str, Any]] = {}
    for task in ("paper", *HARDER):
        found[f"{task}_main_chosen"] = {"problem": task}
        for N in (20, 50, 100, 200) if task == "paper" else (20,):
            found[f"{task}_main_N{N:03d}"] = {"problem": task, "N": N}
        found[f"{task}_base_exact"] = {"problem": task, "base": "exact"}
        found |= {f"{task}_{name}": {"problem": task, "change": name} for name in MORE}
    for task in ("paper", "quadratic"):
        for base in ("wide", "small"):
            found[f"{task}_base_{base}"] = {"problem": task, "base": base}
    for base in ("skip", "plain", "exact"):
        found[f"tails_base_{base}"] = {"problem": "tails", "base": base}
    for task in ("paper", "one-mode", "quadratic"):
        found |= {f"{task}_{name}": {"problem": task, "change": name} for name in REMOVED}
    found = {name: {"method": "recommended", **parameters} for name, parameters in found.items()}
    for task in ("paper", "one-mode"):
        for name in ADDED:
            found[f"{task}_plus_{name}"] = {"method": "paper", "problem": task, "N": 20, "change": name}
    return found


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    variants = _variants()
    return {f"{name}_seed{seed}": Parameters(seed=seed, **knobs) for seed in seeds for name, knobs in variants.items()}


_NAMES = {parameters: stem.removesuffix("_seed0") for stem, parameters in cells([0]).items()}


def cell_of(parameters: Parameters) -> str:
    """The name of a cell of the grid within its problem, such as "main_N020"."""
    return _NAMES[replace(parameters, seed=0)].removeprefix(f"{parameters.problem}_")


EXPERIMENT = Experiment("ablation", Parameters, run, cells, work=lambda p: p.N or 20)
