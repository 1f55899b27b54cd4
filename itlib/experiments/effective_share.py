r"""When is tilting needed at all? One task, harder and harder, and the cheap families beside Algorithm 2.

The strength is set by the share of the base's samples that the tilt leaves effective, which for a mixture is known,

.. math:: \mathrm{share}(\lambda) = \frac{\mathbb E[e^{\lambda r}]^2}{\mathbb E[e^{2\lambda r}]}
          = \exp\big(2\log Z_\lambda-\log Z_{2\lambda}\big) ,

from a half, where importance weights do, to :math:`10^{-8}`, where no sample of the base counts. The base is exact, so what
goes wrong is the family's own fault. Each draws at most as many samples or chains: importance resampling, best of n (n is
1/share, at most 64), sequential Monte Carlo, which evaluates the reward at every step and not at the ends alone, each of the
first and the last distilled into a network; Algorithm 2 with twenty tilts of a twentieth of the samples; the recommended
steps on chains of the same size, of which there may be fewer; and the value, on a quarter of the samples and then seven
rounds of a tenth. The last two measure the effective share of their own chains, ``own_share``: what they would tell a user
who has no exact target. These two train on chains of half as many steps, which keep the variance, as every model does when
it is judged.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from itlib.baselines.distillation import DistillationConfig, distillation
from itlib.baselines.monte_carlo import SMCConfig, best_of_n, importance, sequential_monte_carlo, systematic
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.beyond.value import ValueConfig, value_tilting
from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.experiments.problems import Toy, problem
from itlib.gaussian_mixture import ExactNoisePredictor, NotNormalisableError
from itlib.metrics import mode_weights, sliced_wasserstein
from itlib.network import NoisePredictor
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, derive_seed, iterative_tilting

COMPARED = ("paper", "one-mode", "tails")
SHARES = (0.5, 0.05, 1e-3, 1e-5, 1e-8)


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """A task and how hard it is.

    Args:
        problem: a name of :data:`itlib.experiments.problems.PROBLEMS`.
        share: effective share of the base's samples under the tilt, between 0 and 1.
        n: samples of each family; Algorithm 2 draws a twentieth of them in each of twenty tilts.
        J: steps of the sampler; half as many for the two that learn on chains.
    """

    experiment: ClassVar[str] = "effective_share"
    problem: str = "one-mode"
    share: float = 0.5
    n: int = 10_000
    J: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        problem(self.problem)
        if not 0 < self.share < 1:
            raise ValueError(f"share lies between 0 and 1, got {self.share}")
        self._at_most(n=400, J=8)


def log_share(toy: Toy, lam: float) -> float:
    """Logarithm of the effective share of the base's samples under a tilt; -inf if weights have no variance."""
    try:
        return 2 * toy.base.log_normaliser(toy.reward, lam) - toy.base.log_normaliser(toy.reward, 2 * lam)
    except NotNormalisableError:
        return -float("inf")


def strength_of(toy: Toy, share: float) -> float:
    """The strength, at least 0, that leaves this effective share: the share falls as the strength grows."""
    low, high, aim = 0.0, 1.0, float(torch.tensor(share).log())
    while log_share(toy, high) > aim:
        low, high = high, 2 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if log_share(toy, middle) > aim else (low, middle)
    return low


def run(asked: Parameters, folder: Path) -> Record[Parameters]:
    """Every family once, judged by sliced Wasserstein distance and mode weights."""
    toy = problem(asked.problem)
    lam = strength_of(toy, asked.share)
    target, schedule = toy.base.tilted(toy.reward, lam), Cosine()
    base, d, n, J = ExactNoisePredictor(toy.base, schedule), toy.d, asked.n, asked.J
    judged = min(n, 4000)  # all are judged by as many samples, but for best of n, which keeps fewer

    def drawn(model: NoisePredictor, name: str) -> Tensor:
        return sample(model, schedule, judged, d, steps=J, variance="analytic", generator=generator(name))

    def generator(name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(asked.seed, name))

    def by_weights(name: str) -> Tensor:
        x, log_w = importance(base, toy.reward, schedule, n, d=d, lam=lam, J=J, generator=generator(name))
        return x[systematic(log_w, n, generator("resampling"))[torch.randperm(n, generator=generator("order"))]]

    def by_choice(name: str) -> Tensor:
        of = min(64, max(2, round(1 / asked.share)))
        return best_of_n(base, toy.reward, schedule, max(n // of, 2), candidates=of, d=d, J=J, generator=generator(name))

    def by_smc(name: str) -> Tensor:
        config = SMCConfig(n=n, lam=lam, J=J)
        *_, last = sequential_monte_carlo(base, toy.reward, schedule, config, d=d, generator=generator(name))
        return last.x[systematic(last.log_w, n, generator("resampling"))[torch.randperm(n, generator=generator("order"))]]

    def distilled(smc: bool) -> Callable[[str], Tensor]:
        def draw(name: str) -> Tensor:
            config = DistillationConfig(lam=lam, n=n, J=J, smc=smc, steps=400 if asked.full else 5)
            *_, last = distillation(base, toy.reward, schedule, config, d=d, seed=asked.seed)
            return drawn(last.model, name)

        return draw

    def by_tilts(name: str) -> Tensor:
        config = TiltingConfig(N=20, lam=lam, S=n // 20, J=J, lr=3e-4, B=min(64, n // 20), E=100 if asked.full else 2)
        *_, last = iterative_tilting(base, toy.reward, schedule, config, d=d, seed=asked.seed)
        return drawn(last.model, name)

    def on_chains(name: str) -> Tensor:
        steps = RecommendedConfig(lam=lam, S=n // 20, J=J // 2)
        *_, last = itertools.islice(recommended_tilting(base, toy.reward, schedule, steps, d=d, seed=asked.seed), 20)
        strength[name], own_share[name] = last.strength / lam, last.diagnostics.ess if last.diagnostics else None
        return drawn(last.model, name)

    def by_value(name: str) -> Tensor:
        config = ValueConfig(lam=lam, J=J // 2, pilot=n // 4, S=n // 10, rounds=7)
        config = config if asked.full else replace(config, B=32, fit=5)
        *_, last = value_tilting(base, toy.reward, schedule, config, d=d, seed=asked.seed)
        strength[name], own_share[name] = last.strength / lam, last.diagnostics.ess if last.diagnostics else None
        return drawn(last.model, name)

    def by_itself(name: str) -> Tensor:
        return drawn(ExactNoisePredictor(target, schedule), name)

    families: dict[str, Callable[[str], Tensor]] = {
        "importance": by_weights,
        "best of n": by_choice,
        "smc": by_smc,
        "resample, distil": distilled(smc=False),
        "smc, distil": distilled(smc=True),
        "tilting": by_tilts,
        "recommended": on_chains,
        "value": by_value,
        "exact": by_itself,
    }
    strength: dict[str, float | None] = {}
    own_share: dict[str, float | None] = {}
    w2: dict[str, float | None] = {}
    weights: dict[str, float | None] = {}
    clock, failures = time.process_time(), []
    for name, draw in families.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it has not arrived: the own share is recorded
                x = draw(name)[:judged]
            w2[name] = sliced_wasserstein(x, target, seed=asked.seed)
            weights[name] = float((mode_weights(x, target) - target.weights).abs().sum() / 2)
        except FloatingPointError as error:
            w2[name] = weights[name] = None
            failures.append(f"{name}: {error}")
    seconds = {"sampling": time.process_time() - clock, "training": 0.0}
    metrics: dict[str, Metric] = {"lam": lam, "log_share": log_share(toy, lam), "sliced_w2": w2}
    metrics |= {"mode_weight_error": weights, "strength": strength, "own_share": own_share}
    return Record(asked, metrics, seconds=seconds, failure="; ".join(failures) or None)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """Three tasks from easy to hard."""
    return {
        f"{name}_{share:.0e}_seed{seed}": Parameters(problem=name, share=share, seed=seed)
        for seed in seeds
        for name in COMPARED
        for share in SHARES
    }


EXPERIMENT = Experiment("effective_share", Parameters, run, cells, title=lambda p: f"{p.problem}, share {p.share:g}")
