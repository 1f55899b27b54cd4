"""What the landing page shows: Algorithm 2 with few tilts and with many, at equal work.

Every run draws 20,000 samples in all and makes 2,000 steps of the optimiser, whatever the number of its tilts. The problem
is ``quadratic``, where a first-order step has a remainder: one large tilt loses a mode that the target keeps.

Frames along the tilts, each with samples of the model, always from the same noise, and its scores on a grid at one noise
level. They lie beside the record in hundredths, as whole numbers: ``points``, (F, 120, 2), and ``score``, (F, G, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from itlib.experiments import base, experiment
from itlib.experiments.checkpoints import profile
from itlib.experiments.experiment import Experiment, Record
from itlib.gaussian_mixture import paper_mixture
from itlib.metrics import score_errors
from itlib.network import NoisePredictor
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import iterative_tilting, tilt_path

#: The problem, the numbers of tilts, and what all tilts of a run share: samples, and steps of the optimiser.
PROBLEM, TILTS, SAMPLES, STEPS = "quadratic", (1, 5, 20), 20_000, 2_000
#: Samples of a frame; and where the score is looked at: the time and the grid.
POINTS, LEVEL = 120, 0.25
XS, YS = [1.2 * i for i in range(-3, 4)], [1.2 * i for i in range(-1, 4)]


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """One run.

    Args:
        N: number of tilts.
        J: reverse steps of the sampler.
    """

    experiment: ClassVar[str] = "landing"
    N: int = 20
    J: int = 100


def _hundredths(values: Tensor) -> Tensor:
    return (100 * values.double()).round().short()


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Tilt, and look at the model on its way."""
    torch.set_num_threads(1)
    p, schedule, reward = parameters, Cosine(), parse_reward(PROBLEM)
    path = tilt_path(paper_mixture(), reward, 1.0, p.N)
    grid, t = torch.cartesian_prod(torch.tensor(YS), torch.tensor(XS)).flip(-1), torch.tensor(LEVEL)
    ks: list[float] = []
    errors: list[float] = []
    points: list[Tensor] = []
    scores: list[Tensor] = []

    def look(model: NoisePredictor, k: int) -> None:
        ks.append(k)
        points.append(_hundredths(sample(model, schedule, POINTS, generator=torch.Generator().manual_seed(1))))
        with torch.no_grad():
            scores.append(_hundredths(-model(grid, t) / schedule.sigma(t)))
        errors.append(score_errors(model, path(k), schedule).eps_rmse)

    for needed in base.before(PROBLEM, p).values():
        *_, trained = base.train(needed, schedule)
    look(trained.model, 0)
    seconds = {"sampling": 0.0, "training": 0.0}
    share = 1 if p.full else 20
    config = replace(profile(p.profile).tilting, N=p.N, S=SAMPLES // p.N // share, E=STEPS // p.N // share, J=p.J)
    for step in iterative_tilting(trained.model, ForwardOnly(reward), schedule, config, seed=p.seed):
        seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
        look(step.model, step.k)
    return Record(
        p,
        {"eps_rmse": errors[-1]},
        curve={"k": ks, "error": errors},
        seconds=seconds,
        tensors={"points": torch.stack(points), "score": torch.stack(scores)},
    )


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The runs of the page."""
    return {f"N{N:03d}_seed{seed}": Parameters(N=N, seed=seed) for seed in seeds for N in TILTS}


EXPERIMENT = Experiment("landing", Parameters, run, cells, after=lambda p: base.before(PROBLEM, p), work=lambda p: 20)
