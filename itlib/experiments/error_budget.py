r"""Where the error of Algorithm 2 comes from: its ingredients, and the exact counterpart of each.

One tilt is made of samples :math:`D_k`, a teacher :math:`\hat x_1^{k-1}`, a covariance and an optimiser. On a mixture with a
quadratic reward the first three have closed forms, since :math:`p^{k-1}` is known: :func:`ingredients` puts any of them into
:func:`~itlib.tilting.iterative_tilting`. The regression target of an exact teacher is

.. math:: \varepsilon_{\mathrm{target}} = -\sigma_t\nabla\log p_t^{k-1} - \delta\,\sigma_tC_{k-1} ,

with the covariance either exact or :math:`r(X_0)(-\sigma_t\nabla\log p_t^{k-1}-z)`, whose mean given :math:`x_t` is exact
if :math:`X_0\sim p^{k-1}`. Errors of earlier tilts are then no part of the target.

The grid of runs is a :math:`2\times2` factorial of samples and covariance, and further exchanges one at a
time, from everything learned and from samples and covariance exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from itlib.beyond.estimators import centred
from itlib.experiments import base, experiment
from itlib.experiments.checkpoints import profile
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.experiments.problems import problem
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import (
    component_variances,
    mean_mse,
    mode_weights,
    negative_log_likelihood,
    score_errors,
    sliced_wasserstein,
)
from itlib.network import NoisePredictor
from itlib.rewards import QuadraticReward
from itlib.sampling import sample
from itlib.schedules import Cosine, Schedule
from itlib.tilting import (
    DatasetSampler,
    TiltBatch,
    TiltingConfig,
    Update,
    derive_seed,
    exact_covariance,
    exact_samples,
    explicit,
    iterative_tilting,
    single_sample,
    tilt_path,
)

#: Where D_k comes from: Algorithm 1, Algorithm 1 with the variance put back that it loses, or p^{k-1} itself.
Samples = Literal["model", "analytic", "exact"]
#: The covariance of a tilt: the paper's single sample, the same with the mean reward subtracted, or the closed form.
Covariance = Literal["single", "centred", "exact"]


def taught_by(path: Callable[[int], GaussianMixture], schedule: Schedule, update: Update) -> Update:
    """The same update, with the exact model of p^{k-1} for a teacher."""

    def taught(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        truth = ExactNoisePredictor(path(batch.k - 1), schedule)
        return update(replace(batch, eps_old=truth(batch.x_t, batch.t.clamp_min(schedule.t_min))), delta)

    return taught


def analytic_sampler(schedule: Schedule, d: int, steps: int) -> DatasetSampler:
    """D_k by Algorithm 1, with the mean variance of the posterior of X_0 put back."""

    def draw(model: NoisePredictor, k: int, S: int, generator: torch.Generator) -> Tensor:
        return sample(model, schedule, S, d, steps=steps, variance="analytic", generator=generator)

    return draw


def ingredients(
    path: Callable[[int], GaussianMixture],
    reward: QuadraticReward,
    schedule: Schedule,
    *,
    samples: Samples = "model",
    covariance: Covariance = "single",
    exact_teacher: bool = False,
    J: int = 200,
) -> tuple[Update, DatasetSampler | None]:
    """What to hand to :func:`~itlib.tilting.iterative_tilting` as ``update`` and ``sampler``.

    Args:
        path: the exact p^k of (3.8), see :func:`~itlib.tilting.tilt_path`.
        reward: the tilt.
        schedule: the pair alpha, sigma.
        samples: where D_k comes from.
        covariance: "single", "centred" or "exact".
        exact_teacher: whether the teacher is the exact model of p^{k-1} instead of the network of the last tilt.
        J: reverse steps of the sampler "analytic".

    Raises:
        ValueError: for samples or a covariance that do not exist.
    """
    samplers = {"model": None, "analytic": analytic_sampler(schedule, len(reward.b), J), "exact": exact_samples(path)}
    estimators = {"single": single_sample, "centred": centred(), "exact": exact_covariance(path, reward, schedule)}
    if samples not in samplers or covariance not in estimators:
        raise ValueError(
            f"samples are one of {[*samplers]} and the covariance of {[*estimators]}, got {samples!r}, {covariance!r}"
        )
    update = explicit(estimators[covariance])
    return taught_by(path, schedule, update) if exact_teacher else update, samplers[samples]


# ---- the experiment -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """Algorithm 2 with exchanges.

    Args:
        problem: a name of :data:`itlib.experiments.problems.PROBLEMS`.
        N: number of tilts.
        samples: where D_k comes from: "model" (Algorithm 1), "analytic" (with its lost variance put back), "exact".
        covariance: "single" (the paper's estimate), "centred" (its mean reward subtracted) or "exact".
        exact_teacher: whether the teacher is the exact model of p^{k-1}.
        exact_base: whether the tilts start from the exact base, under a correction that starts at zero.
        S: samples per tilt.
        E: minibatches of 64 per tilt.
        J: reverse steps.
        lr: learning rate.
    """

    experiment: ClassVar[str] = "error_budget"
    problem: str = "paper"
    N: int = 20
    samples: Samples = "model"
    covariance: Covariance = "single"
    exact_teacher: bool = False
    exact_base: bool = False
    S: int = 1000
    E: int = 100
    J: int = 200
    lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_most(S=200, E=10, J=20)
        problem(self.problem)

    @property
    def tilting(self) -> TiltingConfig:
        """All knobs of the tilts."""
        return TiltingConfig(N=self.N, S=self.S, E=self.E, J=self.J, lr=self.lr)

    @property
    def exchange(self) -> str:
        """Its name in :data:`EXCHANGES`."""
        return next(name for name, changes in EXCHANGES.items() if self == replace(_PLAIN, **_shared(self), **changes))


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Tilt, and look at ten moments at the model: its error against the exact p^k, and a thousand of its samples.

    They are drawn with the variance put back that Algorithm 1 loses, so that the network is judged and not the sampler.
    """
    torch.set_num_threads(1)
    p, schedule, asked, work = parameters, Cosine(), problem(parameters.problem), profile(parameters.profile)
    path = tilt_path(asked.base, asked.reward, 1.0, p.N)
    update, sampler = ingredients(
        path,
        asked.reward,
        schedule,
        samples=p.samples,
        covariance=p.covariance,
        exact_teacher=p.exact_teacher,
        J=p.J,
    )
    start: NoisePredictor = ExactNoisePredictor(asked.base, schedule)
    if not p.exact_base:
        for needed in base.before(p.problem, p).values():
            *_, trained = base.train(needed, schedule)
            start = trained.model

    def look(model: NoisePredictor, k: int, n: int) -> tuple[Tensor, dict[str, float]]:
        """Samples of the model of tilt k, (n, 2), and what it says of p^k."""
        generator = torch.Generator().manual_seed(derive_seed(p.seed, "look", k))
        x = sample(model, schedule, n, steps=50, variance="analytic", generator=generator).double()
        errors = score_errors(model, path(k), schedule, n=work.samples, seed=derive_seed(p.seed, "trace"))
        weights, variances = mode_weights(x, path(k)), component_variances(x, path(k))
        return x, {
            "k": k,
            "eps_rmse": errors.eps_rmse,
            "score_rmse": errors.score_rmse,
            "weight": float(weights[1]),
            "mean_0": float(x[:, 0].mean()),
            "mean_1": float(x[:, 1].mean()),
            "variance": float((weights.unsqueeze(1) * variances).nansum() / 2),
        }

    marks = {max(1, round(p.N * i / 10)) for i in range(1, 11)}
    curve, seconds = [look(start, 0, 1000)[1]], {"sampling": 0.0, "training": 0.0}
    for step in iterative_tilting(start, asked.reward, schedule, p.tilting, seed=p.seed, update=update, sampler=sampler):
        seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
        if step.k in marks:
            curve.append(look(step.model, step.k, 1000)[1])
    target = asked.target
    x, last = look(step.model, p.N, work.samples)
    weights = mode_weights(x, target)
    metrics: dict[str, Metric] = {key: last[key] for key in ("eps_rmse", "score_rmse", "variance", "mean_0", "mean_1")}
    metrics |= {
        "mean_mse_target": mean_mse(x, target),
        "mean_mse_base": mean_mse(x, asked.base),
        "nll_target": negative_log_likelihood(x, target),
        "nll_base": negative_log_likelihood(x, asked.base),
        "sliced_w2": sliced_wasserstein(x, target, seed=p.seed),
        "mode_weights": weights.tolist(),
        "mode_weight_error": float((weights - target.weights).abs().sum() / 2),
        "component_variances": component_variances(x, target).tolist(),
    }
    return Record(p, metrics, curve={key: [row[key] for row in curve] for key in curve[0]}, seconds=seconds)


# ---- the grid -------------------------------------------------------------------------------------------------------

#: Exchanges by name; what is not named is Algorithm 2's own. The first four are the factorial.
EXCHANGES: dict[str, dict[str, Any]] = {
    "learned": {},
    "samples": {"samples": "exact"},
    "covariance": {"covariance": "exact"},
    "both": {"samples": "exact", "covariance": "exact"},
    # from everything learned, one
    "sampler": {"samples": "analytic"},
    "teacher": {"exact_teacher": True},
    "base": {"exact_base": True},
    "centred": {"covariance": "centred"},
    # from exact samples
    "fresh": {"samples": "exact", "S": 20_000},
    "samples_long": {"samples": "exact", "E": 300},
    "fresh_long": {"samples": "exact", "S": 20_000, "E": 300},
    # from exact samples and covariance, one more
    "both_teacher": {"samples": "exact", "covariance": "exact", "exact_teacher": True},
    "both_base": {"samples": "exact", "covariance": "exact", "exact_base": True},
    "both_long": {"samples": "exact", "covariance": "exact", "E": 300},
}
FACTORIAL = ("learned", "samples", "covariance", "both")
#: So few tilts that the samples of one hardly reach the next, which is about coverage.
FEW = (1, 2)


_PLAIN = Parameters()


def _shared(parameters: Parameters) -> dict[str, Any]:
    """What no exchange changes."""
    return {name: getattr(parameters, name) for name in ("problem", "N", "lr", "seed", "profile")}


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    asked = [
        *(("paper", 20, name) for name in EXCHANGES),
        *(("paper", N, "samples") for N in FEW),
        *(("paper", 100, name) for name in FACTORIAL),
        *(("one-mode", 20, name) for name in FACTORIAL),
    ]
    return {
        f"{problem}_N{N:03d}_{name}_seed{seed}": Parameters(problem=problem, N=N, seed=seed, **EXCHANGES[name])
        for seed in seeds
        for problem, N, name in asked
    }


EXPERIMENT = Experiment(
    "error_budget", Parameters, run, cells, after=lambda p: base.before(p.problem, p), work=lambda p: p.N
)
