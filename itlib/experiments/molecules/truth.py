r"""What is known of the tilted laws of molecules, twice: samples of the model, and molecules of its training set, weighted.

With weights :math:`e^{\lambda r}` the first tell what a fine-tuned model should draw, the second what the tilt of the *data*
would look like, which no tilt of the model can be asked for. Both as long as enough of them stay effective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from itlib.baselines.monte_carlo import systematic
from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.experiments.molecules import judges, model, solubility
from itlib.experiments.molecules.data import some
from itlib.experiments.molecules.rewards import TASKS, Forest, MoleculeProblem, OfMolecules, Task
from itlib.metrics import effective_sample_size
from itlib.sampling import sample
from itlib.tilting import derive_seed

#: Steps of the sampler, everywhere.
J = 50
#: Molecules of which properties are measured.
JUDGED = 500
#: Of the best of which a user would take one.
CANDIDATES = 16


@dataclass(frozen=True, kw_only=True)
class OfReward(experiment.Parameters):
    """One reward.

    Args:
        problem: a name of :data:`itlib.experiments.molecules.rewards.TASKS`.
    """

    problem: str = "solubility"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("problem", self.problem, TASKS)

    def draws(self, purpose: str) -> torch.Generator:
        """Of the draws for one purpose."""
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose))


@dataclass(frozen=True, kw_only=True)
class Parameters(OfReward):
    """Samples of the model for one reward."""

    experiment: ClassVar[str] = "molecules_truth"


@dataclass(frozen=True, kw_only=True)
class DataParameters(OfReward):
    """Molecules of the training set for one reward."""

    experiment: ClassVar[str] = "molecules_data"


def problem(name: str, known: model.MoleculeModel, forest: Forest) -> MoleculeProblem:
    """What the methods are given."""
    task = TASKS[name]
    return MoleculeProblem(OfMolecules(known.decode, task.score(name, forest), task.bad), task.lam, known.d)


def decoded(known: model.MoleculeModel, z: Tensor) -> list[str | None]:
    """What latents, (S, d), stand for, a thousand at a time."""
    return [text for piece in z.split(1000) for text in known.decode(piece)]


def sweep(task: Task, r: Tensor) -> list[dict[str, float]]:
    """What weights e^{lambda r} of rewards, (n,), say at each strength."""
    rows = []
    for lam in task.sweep:
        w, n = torch.softmax(lam * r, 0), len(r)
        log_z, mean = float(torch.logsumexp(lam * r, 0)) - math.log(n), float(w @ r)
        share = effective_sample_size(lam * r) / n
        error = float((n * w).std()) / math.sqrt(n)
        rows.append(
            {"lam": lam, "ess": share, "log_z": log_z, "log_z_se": error, "mean_reward": mean, "kl": lam * mean - log_z}
        )
    return rows


def explained(x: Tensor, y: Tensor) -> float:
    """R^2, on a fifth that is held out, of boosted trees from latents, (n, d), to values, (n,); 1 says that x tells all."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    kept = 4 * len(x) // 5
    fitted = HistGradientBoostingRegressor(random_state=0).fit(x[:kept].numpy(), y[:kept].numpy())
    return float(fitted.score(x[kept:].numpy(), y[kept:].numpy()))


def best_of(r: Tensor) -> float:
    """Mean reward of the best of every :data:`CANDIDATES`, of rewards (n,)."""
    whole = len(r) // CANDIDATES * CANDIDATES
    return float(r[:whole].reshape(-1, CANDIDATES).max(1).values.mean())


@dataclass(frozen=True)
class Weighed:
    """Strings with their rewards, and a draw of them by weight.

    Args:
        strings: what is weighed.
        r: rewards, (n,).
        drawn: which of them are drawn in proportion to e^{lambda r}, at most a thousand.
        plain: the first :data:`JUDGED`, judged.
        tilted: the first of those that are drawn, judged.
    """

    strings: Sequence[str | None]
    r: Tensor
    drawn: Tensor
    plain: judges.Judged
    tilted: judges.Judged

    @classmethod
    def of(cls, p: OfReward, strings: Sequence[str | None], reward: OfMolecules, forest: Forest) -> Weighed:
        """Ask the reward, draw, and judge."""
        r = torch.tensor(reward.of(strings), dtype=torch.float64)
        n = min(1000, len(strings) // 2)
        drawn = systematic(TASKS[p.problem].lam * r, n, p.draws("resampling"))
        drawn = drawn[torch.randperm(n, generator=p.draws("order"))]
        sets = (strings[:JUDGED], [strings[i] for i in drawn[:JUDGED].tolist()])
        return cls(strings, r, drawn, *(judges.Judged.of(each, forest) for each in sets))

    def metrics(self) -> dict[str, Metric]:
        """Cards and histograms before and after; the number of strings, and what the best of sixteen would have."""
        rewards = {"mean_reward": float(self.r.mean()), "reward_std": float(self.r.std())}
        found: dict[str, Metric] = {"base": self.plain.card() | rewards, "truth": self.tilted.card()}
        found |= self.plain.histograms("base") | self.tilted.histograms("truth")
        return found | {"best": best_of(self.r), "n": float(len(self.r))}


def columns(rows: list[dict[str, float]]) -> dict[str, list[float | None]]:
    """Rows as columns."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def moments(strings: Sequence[str | None], log_w: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Moments of ChemNet's activations under log weights, (n,), from at most 5000 draws."""
    chosen, often = systematic(log_w, min(5000, len(log_w)), draws).unique(return_counts=True)
    pairs = [(text, float(n)) for i, n in zip(chosen.tolist(), often, strict=True) if (text := strings[i])]
    weights = np.array([n for _, n in pairs])
    return judges.moments(judges.activations([text for text, _ in pairs]), weights / weights.sum())


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Weigh samples of the model. The curve has a row for each strength.

    The first seed of solubility also leaves the moments to which Fréchet distances are taken; the others are held against
    them. The first seed of each reward says how much of it the latents tell.
    """
    torch.set_num_threads(1)
    p, known, forest = parameters, model.load(), Forest.load(folder / "solubility.safetensors")
    asked, main = problem(p.problem, known, forest), p.problem == "solubility"
    clock, draws, n = time.process_time(), p.draws("truth"), 500 if p.full else 20
    with torch.no_grad():
        z = torch.cat([sample(known.denoiser, known.schedule, n, known.d, steps=J, generator=draws) for _ in range(10)])
    strings = decoded(known, z)
    seconds = {"sampling": time.process_time() - clock, "training": 0.0}
    found = Weighed.of(p, strings, asked.reward, forest)
    metrics, tensors = found.metrics(), dict[str, Tensor]()
    if p.seed == 0:
        molecules = torch.tensor([text is not None for text in strings])
        metrics |= {"explained": explained(z, found.r), "explained_valid": explained(z[molecules], found.r[molecules])}
    if main and p.full:
        if p.seed == 0:
            mean, covariance = moments(strings, asked.lam * found.r, p.draws("moments"))
            tensors = {"mean": mean.float(), "covariance": covariance.float()}
        else:
            tilted = [strings[i] for i in found.drawn.tolist()]
            metrics |= {"fcd_base": fcd(strings[: len(tilted)], folder), "fcd_truth": fcd(tilted, folder)}
        if p.seed == 1:
            metrics |= {f"base_{k}": v for k, v in judges.training_card(found.plain.spelled).items()}
            metrics |= {f"truth_{k}": v for k, v in judges.training_card(found.tilted.spelled).items()}
    shown = np.round(z[found.drawn[:24]].tolist(), 4).tolist() if p.seed == 0 else []
    return Record(
        p, metrics, curve=columns(sweep(TASKS[p.problem], found.r)), samples=shown, seconds=seconds, tensors=tensors
    )


def fcd(strings: Sequence[str | None], folder: Path) -> float:
    """Fréchet ChemNet distance of those strings that are molecules from the weighted truth of solubility."""
    import safetensors.torch

    known = safetensors.torch.load_file(folder / "truth_solubility_seed0.safetensors")
    found = judges.activations([text for text in strings if text])
    return judges.frechet(judges.moments(found), (known["mean"], known["covariance"]))


def run_data(parameters: DataParameters, folder: Path) -> Record[DataParameters]:
    """Weigh molecules of the training set."""
    p, forest = parameters, Forest.load(folder / "solubility.safetensors")
    n = 5000 if p.full else 200
    task = TASKS[p.problem]
    reward = OfMolecules(lambda z: [None] * len(z), task.score(p.problem, forest), task.bad)
    found = Weighed.of(p, some("train", n, p.seed), reward, forest)
    return Record(p, found.metrics(), curve=columns(sweep(task, found.r)))


def first(p: Parameters) -> dict[str, experiment.Parameters]:
    """The forest and, for other seeds than the first, the moments: {stem: parameters}."""
    found: dict[str, experiment.Parameters] = dict(solubility.before(p))
    moments = {"truth_solubility_seed0": Parameters(profile=p.profile)}
    return found | (moments if p.seed and p.problem == "solubility" else {})


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid: all seeds for solubility, the first for the others."""
    found = {f"truth_solubility_seed{seed}": Parameters(seed=seed) for seed in seeds}
    return found | {f"truth_{name}_seed0": Parameters(problem=name) for name in TASKS if 0 in seeds}


def data_cells(seeds: Sequence[int]) -> dict[str, DataParameters]:
    """One, for solubility."""
    return {"data_solubility": DataParameters()}


EXPERIMENT = Experiment("molecules_truth", Parameters, run, cells, after=first)
DATA = Experiment("molecules_data", DataParameters, run_data, data_cells, after=solubility.before)
