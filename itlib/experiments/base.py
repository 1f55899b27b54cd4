r"""The base of a seed: trained on samples of a problem's base mixture, and judged where it will be used.

The error of the noise prediction is measured at noised samples of the base and at those of the *target*, far out in the
base's tail, both times against the exact model of the base. The second is the floor of every tilt that starts here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from itlib.experiments import experiment
from itlib.experiments.checkpoints import Profile, RunState, profile, resumable_base
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.experiments.problems import base_of, problem
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import score_card, score_errors
from itlib.schedules import Cosine, Schedule, add_noise


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """Which base.

    Args:
        problem: whose base mixture, a name of :data:`itlib.experiments.problems.PROBLEMS`.
        method: "paper" trains the network of Section 4.2, "recommended" a small one that corrects a Gaussian.
    """

    experiment: ClassVar[str] = "base"
    problem: str = "paper"
    method: Literal["paper", "recommended"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        problem(self.problem)

    @property
    def work(self) -> Profile:
        """Samples and training of the profile."""
        return profile(self.profile)


def stem(parameters: Parameters) -> str:
    """The name of its record."""
    own = "" if parameters.problem == "paper" else f"{parameters.problem}_"
    return f"base_{own}seed{parameters.seed}"


def before(problem_name: str, parameters: experiment.Parameters) -> dict[str, Parameters]:
    """The paper's network for a problem's base mixture, of the seed and profile of other parameters: {stem: parameters}."""
    asked = Parameters(problem=base_of(problem_name), seed=parameters.seed, profile=parameters.profile)
    return {stem(asked): asked}


def train(parameters: Parameters, schedule: Schedule) -> Iterator[RunState]:
    """Train it, one state an epoch, or find it trained."""
    trained = parameters.work.trained(parameters.method)
    yield from resumable_base(problem(parameters.problem).base, schedule, seed=parameters.seed, **trained)


def exact_loss(mixture: GaussianMixture, schedule: Schedule) -> float:
    """The loss (2.10) of the exact model, estimated on 200,000 draws: no network gets below it."""
    generator = torch.Generator().manual_seed(1)
    x_0 = mixture.sample(200_000, generator)
    t = torch.rand(len(x_0), generator=generator, dtype=torch.float64)
    x_1 = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    return float((ExactNoisePredictor(mixture, schedule)(add_noise(schedule, x_0, x_1, t), t) - x_1).square().sum(-1).mean())


def judge(parameters: Parameters, state: RunState, schedule: Schedule) -> dict[str, Metric]:
    """The score card of a trained base, with its error at noised samples of the target."""
    asked, work, seed = problem(parameters.problem), parameters.work, parameters.seed
    target, mixture = asked.target, asked.base
    card = score_card(
        state.model,
        schedule,
        mixture,
        target=target,
        base=mixture,
        samples=work.samples,
        flow_samples=work.flow_samples,
        seed=seed,
    )
    # More draws than for the card, because the tail decides.
    truth, n = ExactNoisePredictor(mixture, schedule), 4 * work.samples
    at_target = score_errors(state.model, target, schedule, n=n, seed=seed, truth=truth)
    return card | {
        "eps_rmse_at_target": at_target.eps_rmse,
        "score_rmse_at_target": at_target.score_rmse,
        "loss_exact": exact_loss(mixture, schedule),
        "epochs": state.done,
        "entropy": mixture.entropy(),
    }


def recorded(parameters: Parameters, state: RunState, metrics: dict[str, Metric]) -> Record[Parameters]:
    """What a trained and judged base leaves."""
    return Record(parameters, metrics, trace=state.trace, seconds=state.seconds)


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Train and judge."""
    torch.set_num_threads(1)
    schedule = Cosine()
    *_, state = train(parameters, schedule)
    return recorded(parameters, state, judge(parameters, state, schedule))


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The paper's base of each seed."""
    return {stem(p): p for p in (Parameters(seed=seed) for seed in seeds)}


EXPERIMENT = Experiment("base", Parameters, run, cells, work=lambda _: 60)
