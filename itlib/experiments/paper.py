"""Section 4.2: tilt the base of a seed N times, and score what comes out against the exact target.

Records of the paper's grid, and (:data:`CHOICES`) of what the paper leaves open, varied alone; the paper's grid holds the
default of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments import base, experiment
from itlib.experiments.checkpoints import Profile, RunState, profile, resumable_tilting
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.gaussian_mixture import GaussianMixture, paper_mixture
from itlib.metrics import score_card
from itlib.rewards import QuadraticReward, parse_reward
from itlib.sampling import Variance, sample
from itlib.schedules import Cosine, Schedule
from itlib.tilting import TiltingConfig


class Row(NamedTuple):
    """A row of the paper's Table 1: seconds of sampling and training, negative log-likelihood, MSE of the mean."""

    sampling: float
    training: float
    nll: float
    mse: float


#: Table 1 of the paper, by the number of tilts; and what Section 4.2 says of its base model.
TABLE_1 = {
    20: Row(28.77, 34.71, 6.48, 1.67),
    50: Row(71.83, 85.18, 6.94, 2.20),
    100: Row(149.14, 182.54, 7.23, 2.16),
    200: Row(289.61, 355.76, 6.34, 1.59),
}
BASE_ROW = Row(math.nan, math.nan, 3.278, 4.3e-3)
_KNOBS = ("S", "J", "eta", "B", "E", "epoch", "lr", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """The knobs of Algorithm 2; what is left out is the profile's choice.

    Args:
        N: number of tilts.
        lam: tilt strength lambda.
        reward: a name, or the coefficients of a quadratic: see :func:`itlib.rewards.parse_reward`.
        S: samples per tilt.
        J: reverse steps of the sampler.
        eta: DDIM multiplier, 1 is DDPM.
        B: minibatch size.
        E: epochs per tilt.
        epoch: "minibatch": one minibatch an epoch, as Algorithm 2 prints it; "pass": all S samples an epoch.
        lr: learning rate. Not in the paper.
        optimizer: "adam" or "sgd". Not in the paper.
        method: "paper" is Algorithm 2; "recommended" what the book ends with, on a base of its own.
        device: where the network lives.

    Raises:
        NotNormalisableError: if the target does not exist.
    """

    experiment: ClassVar[str] = "paper"
    N: int = 20
    lam: float = 1.0
    reward: str = "paper"
    S: int | None = None
    J: int | None = None
    eta: float | None = None
    B: int | None = None
    E: int | None = None
    epoch: Literal["minibatch", "pass"] | None = None
    lr: float | None = None
    optimizer: Literal["adam", "sgd"] | None = None
    method: Literal["paper", "recommended"] = "paper"
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = asdict(self.tilting)
        self._settle(**{name: chosen[name] for name in _KNOBS})
        self.target  # noqa: B018

    @property
    def work(self) -> Profile:
        """The profile."""
        return profile(self.profile)

    @property
    def tilting(self) -> TiltingConfig:
        """All knobs of the tilts."""
        given = {name: value for name in _KNOBS if (value := getattr(self, name)) is not None}
        return replace(self.work.configured(self.method, self.N), lam=self.lam, **given)

    @property
    def tilt(self) -> QuadraticReward:
        """The reward."""
        return parse_reward(self.reward)

    @property
    def target(self) -> GaussianMixture:
        """The exact tilt of the paper's base (4.11)."""
        return paper_mixture().tilted(self.tilt, self.lam)

    @property
    def base(self) -> base.Parameters:
        """The base that it starts from."""
        return base.Parameters(seed=self.seed, profile=self.profile, method=self.method)


def tilts(parameters: Parameters, network: nn.Module, schedule: Schedule) -> Iterator[RunState]:
    """Tilt a base, one state a tilt; a run that was stopped goes on at the last finished one."""
    p = parameters
    yield from resumable_tilting(
        network, paper_mixture(), p.tilt, schedule, p.tilting, seed=p.seed, trace_samples=p.work.samples
    )


def variance(knobs: TiltingConfig) -> Variance:
    """Of the steps of a configuration's sampler."""
    return knobs.variance if isinstance(knobs, RecommendedConfig) else "ddpm"


def drawn(parameters: Parameters, model: nn.Module, schedule: Schedule) -> Tensor:
    """Samples of a model by the sampler of its tilts, as many as one tilt draws, (S, 2)."""
    knobs, generator = parameters.tilting, torch.Generator().manual_seed(parameters.seed)
    kernel: dict[str, Any] = {"steps": knobs.J, "eta": knobs.eta, "variance": variance(knobs)}
    return sample(model, schedule, knobs.S, **kernel, generator=generator, device=parameters.device)


def judge(parameters: Parameters, model: nn.Module, schedule: Schedule) -> dict[str, Metric]:
    """The score card of a tilted model, against the target and against the base."""
    target, knobs, work = parameters.target, parameters.tilting, parameters.work
    card = score_card(
        model.cpu(),
        schedule,
        target,
        target=target,
        base=paper_mixture(),
        samples=work.samples,
        flow_samples=work.flow_samples,
        steps=knobs.J,
        eta=knobs.eta,
        variance=variance(knobs),
        seed=parameters.seed,
    )
    return card | {"entropy": target.entropy(), "t_min": schedule.t_min}


def recorded(parameters: Parameters, state: RunState, final: Tensor, metrics: dict[str, Metric]) -> Record[Parameters]:
    """What a tilted and judged model leaves; beside its record the samples of Figure 1, half way and at the end."""
    kept = {"half": state.halfway, "final": final} if state.halfway is not None else {"final": final}
    return Record(parameters, metrics, trace=state.trace, seconds=state.seconds, tensors=kept)


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Base, tilts, score card."""
    torch.set_num_threads(1)
    schedule = Cosine()
    *_, start = base.train(parameters.base, schedule)
    *_, state = tilts(parameters, start.model.to(parameters.device), schedule)
    final = drawn(parameters, state.model, schedule)
    return recorded(parameters, state, final, judge(parameters, state.model, schedule))


def over_N(seeds: Sequence[int], N: Sequence[int]) -> dict[str, Parameters]:
    """The paper's grid for some numbers of tilts."""
    return {f"N{n:03d}_seed{seed}": Parameters(N=n, seed=seed) for seed in seeds for n in N}


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The paper's grid."""
    return over_N(seeds, tuple(TABLE_1))


def _after(parameters: Parameters) -> dict[str, base.Parameters]:
    return {base.stem(parameters.base): parameters.base}


EXPERIMENT = Experiment(
    "paper",
    Parameters,
    run,
    cells,
    after=_after,
    over_N=over_N,
    title=lambda p: f"N = {p.N}, seed {p.seed}",
    work=lambda p: p.N,
)

#: What Section 4.2 leaves open; each is varied alone.
OPEN: dict[str, dict[str, Any]] = {
    "lr1e-5": {"lr": 1e-5},
    "lr3e-5": {"lr": 3e-5},
    "lr3e-4": {"lr": 3e-4},
    "lr1e-3": {"lr": 1e-3},
    "sgd1e-2": {"optimizer": "sgd", "lr": 1e-2},
    "sgd1e-1": {"optimizer": "sgd", "lr": 1e-1},
    "pass": {"epoch": "pass"},
}


def choices_over_N(seeds: Sequence[int], N: Sequence[int]) -> dict[str, Parameters]:
    """What the paper leaves open, for some numbers of tilts."""
    return {
        f"{name}_N{n:03d}_seed{seed}": Parameters(N=n, seed=seed, **changes)
        for seed in seeds
        for name, changes in OPEN.items()
        for n in N
    }


CHOICES = replace(EXPERIMENT, name="choices", cells=lambda seeds: choices_over_N(seeds, (20,)), over_N=choices_over_N)
