r"""What is known of the tilted laws of digits: samples of the base, weighted.

Many samples of the base, with weights :math:`e^{\lambda r}` for every strength of a reward's sweep. Samples of the tilted
law are drawn from them, as long as enough of them stay effective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from itlib.baselines.monte_carlo import systematic
from itlib.experiments import experiment
from itlib.experiments.digits import base
from itlib.experiments.digits.images import IMAGE_PROBLEMS, D, image_card, judged
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.metrics import effective_sample_size
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import derive_seed


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """One reward.

    Args:
        problem: a name of :data:`itlib.experiments.digits.images.IMAGE_PROBLEMS`.
    """

    experiment: ClassVar[str] = "digits_truth"
    problem: str = "class"

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("problem", self.problem, IMAGE_PROBLEMS)


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Weigh base samples; resampled, they are the truth as far as they carry. The curve has a row for each strength."""
    torch.set_num_threads(1)
    p, schedule, problem = parameters, Cosine(), IMAGE_PROBLEMS[parameters.problem]
    n = 10_000 if p.full else 500

    def draws(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(p.seed, purpose))

    x = sample(base.trained(folder, schedule), schedule, n, D, steps=base.J, generator=draws("truth"))
    r, labels = problem.reward(x).double(), judged(x)
    rows = []
    for lam in problem.sweep:
        w = torch.softmax(lam * r, 0)
        log_z = float(torch.logsumexp(lam * r, 0)) - math.log(n)
        rows.append(
            {
                "lam": lam,
                "ess": effective_sample_size(lam * r) / n,
                "log_z": log_z,
                "log_z_se": float((n * w).std()) / math.sqrt(n),
                "mean_reward": float(w @ r),
                "kl": lam * float(w @ r) - log_z,
            }
            | {f"judge_{c}": float(w[labels == c].sum()) for c in range(10)}
        )
    kept = x[systematic(problem.lam * r, min(n // 10, 1000), draws("resampling"))]
    plain = image_card(x[: 1000 if p.full else 50]) | {"mean_reward": float(r.mean()), "reward_std": float(r.std())}
    metrics: dict[str, Metric] = {"base": plain, "truth": image_card(kept)}
    shown = base.rounded(kept[:: len(kept) // 16][:16]) if p.seed == 0 else []
    return Record(p, metrics, curve={key: [row[key] for row in rows] for key in rows[0]}, samples=shown)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    return {f"{name}_truth_seed{seed}": Parameters(problem=name, seed=seed) for seed in seeds for name in IMAGE_PROBLEMS}


EXPERIMENT = Experiment("digits_truth", Parameters, run, cells, after=base.before)
