r"""Tasks that nobody tuned on: a method, with its defaults, on random tasks; and what each part of the value method is
worth.

A seed is a task (:func:`itlib.experiments.random_tasks.random_task`). Choices were made on seeds below :data:`REPORTED`;
those from there on are looked at once, when they are reported. The base is exact, so that what is measured is the method,
or, for what is reported, a network trained on samples.

``eps_rmse`` is the error of the predicted noise at exact noised samples of the target, ``untilted`` that of the base, which
is what doing nothing would leave, and ``floor`` the base's own error there, against its exact predictor.
``mode_weight_error`` is the largest error of a weight among the modes in samples of the model, and
``exact_mode_weight_error`` the same for as many exact samples of the target.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch

from itlib.beyond.chains import UnreachedWarning
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.beyond.value import ValueConfig, ValueDiagnostics, value_tilting
from itlib.experiments import experiment
from itlib.experiments.checkpoints import profile, resumable_base
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.experiments.random_tasks import random_task
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.network import NoisePredictor
from itlib.sampling import sample
from itlib.schedules import Cosine, add_noise
from itlib.tilting import TiltStep, derive_seed, iterative_tilting

#: The first seed that no choice was made on.
REPORTED = 1000
#: One change of the value method at a time.
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "no-exploring": {"explore": 0.0},
    "all-chains": {"replay": 100},
    "last-chains": {"replay": 1},
    "small-batches": {"B": 128},
    "narrow-clamp": {"clamp": 2.0},
    "one-step": {"target_ess": 0.0},
    "wider": {"width": 128},
    "fewer-steps": {"J": 25},
}
#: What was chosen on seeds 100 to 109 after the value's own defaults had been reported.
BOUNDED: Mapping[str, Any] = {"admixture": 5e-5, "climb": 0.5}
Method = Literal["value", "bounded", "chains", "tilting", "exact"]


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """A method on the task of a seed.

    Args:
        method: the value on chains, the same with :data:`BOUNDED`, the log variance of chains, Algorithm 2, or guidance by
            the exact value.
        change: a name of :data:`CHANGES`, for the value; empty for none.
        base: "exact", or a trained network ("skip").
    """

    experiment: ClassVar[str] = "untuned"
    method: Method = "value"
    change: str = ""
    base: Literal["exact", "skip"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.change:
            choose("change of 'value'", self.change, CHANGES if self.method == "value" else ())

    def steps(self, base: NoisePredictor, reward: Callable[..., Any], d: int) -> Iterator[TiltStep]:
        """The run."""
        if self.method == "tilting":
            equal = profile(self.profile).tilting
            return iterative_tilting(base, reward, Cosine(), replace(equal, N=20), d=d, seed=self.seed)
        if self.method == "chains":
            chains = RecommendedConfig()
            chains = chains if self.full else replace(chains, S=64, J=10)
            return recommended_tilting(base, reward, Cosine(), chains, d=d, seed=self.seed)
        value = ValueConfig(**CHANGES.get(self.change, {}), **(BOUNDED if self.method == "bounded" else {}))
        value = value if self.full else replace(value, pilot=128, S=64, J=10, B=64, fit=10, rounds=3)
        return value_tilting(base, reward, Cosine(), value, d=d, seed=self.seed)


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Tilt the task's base, and judge the model against the exact target."""
    torch.set_num_threads(1)
    p, schedule, asked, work = parameters, Cosine(), random_task(parameters.seed), profile(parameters.profile)
    d, exact_base = asked.base.d, ExactNoisePredictor(asked.base, schedule)
    base: NoisePredictor = exact_base
    if p.base == "skip":
        training = replace(work.training, lr=3e-3)
        *_, state = resumable_base(asked.base, schedule, training, n=work.n, seed=p.seed, kind="skip")
        base = state.model.eval()
    model: NoisePredictor = base
    rewards, shares, strengths, moved = 0, [], [], []
    seconds = {"sampling": 0.0, "training": 0.0}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnreachedWarning)
        try:
            for step in p.steps(base, asked.reward, d) if p.method != "exact" else ():
                model, seconds = step.model, {key: value + step.seconds[key] for key, value in seconds.items()}
                rewards += len(step.rewards)
                strengths.append(step.strength)
                shares.append(step.diagnostics.ess if step.diagnostics else 0.0)
                moved.append(step.diagnostics.displaced if isinstance(step.diagnostics, ValueDiagnostics) else 0.0)
        except FloatingPointError as error:  # it diverged, and there is nothing to judge
            return Record(p, {"kl": asked.kl, "d": d, "rewards": rewards}, seconds=seconds, failure=str(error))
    told = next((str(w.message) for w in caught if issubclass(w.category, UnreachedWarning)), None)

    n, generator = (3000 if p.full else 300), torch.Generator().manual_seed(derive_seed(p.seed, "judge"))
    x_0 = asked.sample(n, generator)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(n, generator=generator, dtype=torch.float64)
    x_t = add_noise(schedule, x_0, torch.randn(x_0.shape, generator=generator, dtype=torch.float64), t).float()
    exact = asked.exact(schedule)
    truth = exact(x_t, t)
    with torch.no_grad():
        if p.method == "exact":
            model = lambda x, t: base(x, t) + exact(x, t) - exact_base(x, t)  # noqa: E731
        found, untilted, own = model(x_t, t.float()), base(x_t, t.float()), exact_base(x_t, t)

    def rms(error: torch.Tensor) -> float:
        return float(error.double().square().sum(-1).mean().sqrt())

    x = sample(model, schedule, n, d, steps=100, variance="analytic", generator=generator)
    weights = asked.mode_weights(x)
    # Shares are of the model before its round; the strength that they are measured at is that of the round before.
    at_end = [pair for *pair, strength in zip(shares[1:], moved[1:], strengths, strict=False) if strength == 1.0]
    share, displaced = max(at_end, default=(0.0, 0.0))
    metrics: dict[str, Metric] = {
        "eps_rmse": rms(found - truth),
        "untilted": rms(untilted - truth),
        "floor": rms(untilted - own),
        "mode_weight_error": float((weights - asked.weights).abs().max()),
        "exact_mode_weight_error": float((asked.mode_weights(x_0) - asked.weights).abs().max()),
        "mode_weights": weights.tolist(),
        "target_weights": asked.weights.tolist(),
        "mean_reward": float(asked.reward(x.double()).mean()),
        "target_reward": asked.kl + asked.log_normaliser,
        "kl": asked.kl,
        "d": d,
        "share": share,
        "displaced": displaced,
        "rewards": rewards,
        "rounds": len(shares),
    }
    return Record(p, metrics, curve={"strength": strengths, "share": shares}, seconds=seconds, failure=told)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid: a seed stands for the reported task that far from :data:`REPORTED`, and for one to choose on."""
    found = {}
    for seed in seeds:
        for method in get_args(Method):
            found[f"{method}_skip_seed{REPORTED + seed}"] = Parameters(seed=REPORTED + seed, method=method, base="skip")
        found |= {f"{change}_seed{seed}": Parameters(seed=seed, change=change) for change in CHANGES}
        found[f"value_seed{seed}"] = Parameters(seed=seed)
    return found


EXPERIMENT = Experiment("untuned", Parameters, run, cells)
