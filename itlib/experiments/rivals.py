r"""The comparison on toys: every method on the same base, the same problem and the same budget of work.

*Budget.* Every fine-tuning method runs until it has spent :data:`WORK` units of work (:mod:`itlib.experiments.methods`),
what Algorithm 2 spends with the paper's settings at N = 20: 20 tilts of 1000 samples times 200 steps, and their training.
The methods that train nothing spend about the same on their samples. Evaluations of the reward and seconds follow from that
and are reported, not matched.

*Tuning.* Each method's learning rate is the one of :data:`RATES` with the lowest sliced Wasserstein distance to the target
at the end of one run on the paper's problem, with seed :data:`TUNING_SEED`, which is not used again (the smallest rate, if
no run ends). Some have no tuning run (:data:`UNTUNED`): a variant has the rate of what it varies, others have
their own default. Every other knob is the source's default where it states one that makes sense here, and is written in
:data:`METHODS` where it departs from the default of our code.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from itlib._checks import finite
from itlib.baselines.accounting import BaselineStep, EvaluationCounter
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.distillation import DistillationConfig, distillation
from itlib.baselines.draft import DraftConfig, draft
from itlib.baselines.guidance import exactly_guided, guided, plug_in_value
from itlib.baselines.monte_carlo import (
    SMCConfig,
    best_of_n,
    importance,
    sequential_monte_carlo,
    systematic,
)
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reinforce_adjoint_matching import reinforce_adjoint
from itlib.baselines.relative_trajectory_balance import TrajectoryBalanceConfig, trajectory_balance
from itlib.baselines.reward_weighted import reweighted
from itlib.baselines.tilt_matching import EXPLICIT, IMPLICIT
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.beyond.value import Guided, ValueConfig, value_tilting
from itlib.experiments import base, experiment, methods
from itlib.experiments.checkpoints import Profile, profile
from itlib.experiments.experiment import Experiment, Metric, Record, choose
from itlib.experiments.methods import UNENDING, Drawn, watched
from itlib.experiments.problems import Toy, problem
from itlib.metrics import effective_sample_size, flow_nll, sample_card, score_errors, sliced_wasserstein
from itlib.network import Network, NoisePredictor
from itlib.sampling import Variance, sample
from itlib.schedules import Cosine, Schedule
from itlib.tilting import PAPER_UPDATE, TiltingConfig, Update, iterative_tilting

#: Units of work of every fine-tuning method, and for a first look.
WORK = {"full": 4_500_000, "smoke": 60_000}
RATES = (1e-4, 3e-4, 1e-3)
TUNING_SEED = 100
#: Shares of the budget at which a method that trains is looked at.
LOOKS = (2**-8, 2**-7, 2**-6, 2**-5, 2**-4, 2**-3, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)

Setting = methods.Setting[Toy]
Method = methods.Method[Toy]


def _tilting(update: Update, one_shot: bool = False) -> Callable[[Setting], Iterator[BaselineStep]]:
    """Algorithm 2, or a relative of it, with its evaluations counted; a single tilt spends the budget on its training."""

    def train(s: Setting) -> Iterator[BaselineStep]:
        account = EvaluationCounter()
        base, reward = s.counted(account)
        full = s.full
        config = TiltingConfig(N=s.N, lr=s.lr, S=1000 if full else 128, J=200 if full else 10, E=100 if full else 5)
        if one_shot:  # one tilt with the samples and the training of twenty
            config = TiltingConfig(N=1, lr=s.lr, S=20 * config.S, J=config.J, E=20 * config.E)
        for step in iterative_tilting(base, reward, s.schedule, config, d=s.problem.d, seed=s.seed, update=update):
            yield account.tilt(step, s.problem.lam)

    return train


def _reinforce(s: Setting) -> Iterator[BaselineStep]:
    """RAM in rounds of Algorithm 2's size, each of the whole strength."""
    account = EvaluationCounter()
    base, reward = s.counted(account)
    config = TiltingConfig(N=20, lr=s.lr, S=1000, J=200, E=100) if s.full else TiltingConfig(N=20, lr=s.lr, S=128, J=10, E=5)
    update = reinforce_adjoint(base, s.problem.lam, centred=True)
    for step in iterative_tilting(base, reward, s.schedule, config, d=s.problem.d, seed=s.seed, update=update):
        yield account.step(step.k, step.model, float(step.losses.mean()))


def _recommended(s: Setting) -> Iterator[BaselineStep]:
    """The recommended step on all weights of the base; as many chains and steps as the budget lasts for."""
    account = EvaluationCounter()
    base, reward = s.counted(account)
    S, J = (900, 50) if s.full else (64, 10)
    config = RecommendedConfig(student="copy", S=S, J=J, lr=s.lr)
    for step in recommended_tilting(base, reward, s.schedule, config, d=s.problem.d, seed=s.seed):
        yield account.tilt(step, s.problem.lam)


def _rounds(first: bool) -> Callable[[Setting], Iterator[BaselineStep]]:
    """Twelve rounds of it, as many as the budget lasts for: ten equal steps and two that settle, or one and eleven."""

    def train(s: Setting) -> Iterator[BaselineStep]:
        account = EvaluationCounter()
        base, reward = s.counted(account)
        S, J = (900, 50) if s.full else (64, 10)
        settle = 11 if first else 2
        config = RecommendedConfig.equal_steps(12, student="copy", S=S, J=J, lr=s.lr, polish_rounds=settle)
        for step in recommended_tilting(base, reward, s.schedule, config, d=s.problem.d, seed=s.seed):
            yield account.tilt(step, s.problem.lam)

    return train


def _value(s: Setting) -> Iterator[BaselineStep]:
    """The value on chains; its evaluations count like the base's, of which it has a fifteenth of the weights."""
    account = EvaluationCounter()
    base, reward = s.counted(account)
    config = ValueConfig(S=1800, B=256, fit=400, lr=s.lr, rounds=5, patience=5, enough=0.0, close=1e9)
    config = config if s.full else replace(config, pilot=256, S=64, J=10, B=64, fit=10, rounds=3)
    for step in value_tilting(base, reward, s.schedule, config, d=s.problem.d, seed=s.seed):
        assert isinstance(step.model, Guided)
        if step.k == 1:  # it was made and fitted on the way to the first step
            account.counts.network += 2 * config.fit * config.B
            account.counts.network_gradient += 2 * config.fit * config.B
            account.count_model(step.model.value)
        yield account.tilt(step, s.problem.lam)


def _distilled(config: DistillationConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        known = replace(config, lr=s.lr)
        known = known if s.full else replace(known, rounds=10, n=200, J=20, steps=5, B=32)
        return distillation(s.base, s.problem.reward, s.schedule, known, d=s.problem.d, seed=s.seed)

    return train


def _balance(s: Setting) -> Iterator[BaselineStep]:
    config = TrajectoryBalanceConfig(iterations=UNENDING, lr=s.lr, variance="analytic")
    return trajectory_balance(s.base, s.problem.reward, s.schedule, config, d=s.problem.d, seed=s.seed)


def _draft(config: DraftConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        unending = replace(config, iterations=UNENDING, lr=s.lr)
        return draft(s.base, s.problem.reward, s.schedule, unending, d=s.problem.d, seed=s.seed)

    return train


def _adjoint(variance: Variance) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        config = AdjointMatchingConfig(iterations=UNENDING, lr=s.lr, variance=variance)
        return adjoint_matching(s.base, s.problem.reward, s.schedule, config, d=s.problem.d, seed=s.seed)

    return train


def _policy(config: PolicyGradientConfig) -> Callable[[Setting], Iterator[BaselineStep]]:
    def train(s: Setting) -> Iterator[BaselineStep]:
        unending = replace(config, iterations=UNENDING, lr=s.lr, B=128)
        return policy_gradient(s.base, s.problem.reward, s.schedule, unending, d=s.problem.d, seed=s.seed)

    return train


def _importance(s: Setting, account: EvaluationCounter) -> Drawn:
    n, J = (20_000, 200) if s.full else (500, 50)
    base, reward, generator = *s.counted(account), s.generator("inference")
    x, log_w = importance(base, reward, s.schedule, n, d=s.problem.d, J=J, generator=generator)
    return Drawn(x[systematic(log_w, n, generator)], ess=effective_sample_size(log_w) / n)


def _best_of_n(s: Setting, account: EvaluationCounter) -> Drawn:
    n, candidates, J = (1250, 16, 200) if s.full else (50, 4, 50)
    base, reward = s.counted(account)
    return Drawn(
        best_of_n(base, reward, s.schedule, n, candidates=candidates, d=s.problem.d, J=J, generator=s.generator("inference"))
    )


def _smc(twisted: bool) -> Callable[[Setting, EvaluationCounter], Drawn]:
    def draw(s: Setting, account: EvaluationCounter) -> Drawn:
        n, J = (20_000 // (3 if twisted else 1), 200) if s.full else (500, 50)
        base, reward, generator = *s.counted(account), s.generator("inference")
        config = SMCConfig(n=n, J=J, twisted=twisted)
        *_, population = sequential_monte_carlo(base, reward, s.schedule, config, d=s.problem.d, generator=generator)
        return Drawn(population.x[systematic(population.log_w, n, generator)], ess=population.ess / n)

    return draw


def _guided(exact: bool) -> Callable[[Setting, EvaluationCounter], Drawn]:
    def draw(s: Setting, account: EvaluationCounter) -> Drawn:
        base, reward = s.counted(account)
        if exact:
            return Drawn(model=exactly_guided(base, s.problem.base, s.problem.target, s.schedule))
        return Drawn(model=guided(base, plug_in_value(base, reward, s.schedule), s.schedule))

    return draw


SIFT = DistillationConfig(rounds=6, n=5000, J=50, steps=300)

METHODS: Mapping[str, Method] = {
    "tilting": Method("iterative tilting", False, True, 1e-4, _tilting(PAPER_UPDATE), tilts=True),
    "centred": Method("explicit Tilt Matching", False, True, 3e-4, _tilting(EXPLICIT), tilts=True),
    "implicit": Method("implicit Tilt Matching", False, True, 3e-4, _tilting(IMPLICIT), tilts=True),
    "reweighted": Method("reward-weighted, iterated", False, True, 1e-4, _tilting(reweighted), tilts=True),
    "oneshot": Method("reward-weighted, one shot", False, True, 1e-4, _tilting(reweighted, one_shot=True)),
    "recommended": Method("recommended here", False, True, 3e-4, _recommended),
    "ddpo": Method("DDPO", False, False, 1e-3, _policy(PolicyGradientConfig())),
    "dpok": Method("DPOK", False, False, 1e-4, _policy(PolicyGradientConfig(kl=1.0, value=True))),
    "dpok-future": Method(
        "DPOK with future KL", False, True, 1e-3, _policy(PolicyGradientConfig(kl=1.0, value=True, future_kl=True))
    ),
    "draft": Method("DRaFT", True, False, 1e-4, _draft(DraftConfig())),
    "draft-5": Method("DRaFT-5", True, False, 1e-4, _draft(DraftConfig(K=5))),
    "draft-lv": Method("DRaFT-LV", True, False, 1e-4, _draft(DraftConfig(K=1, renoise=2))),
    "draft-kl": Method("DRaFT with path KL", True, True, 3e-4, _draft(DraftConfig(kl=1.0))),
    "adjoint": Method("Adjoint Matching", True, True, 3e-4, _adjoint("ddpm")),
    "value": Method("value on chains", False, True, 1e-2, _value),
    "distilled": Method("resample, then distil", False, True, 1e-4, _distilled(DistillationConfig(n=20_000, J=100))),
    "sift": Method("resample, distil, repeat", False, True, 1e-3, _distilled(SIFT)),
    "equal-steps": Method("recommended, ten equal steps", False, True, 3e-4, _rounds(first=False)),
    "at-once": Method("recommended, at once", False, True, 1e-4, _rounds(first=True)),
    "balance": Method("trajectory balance", False, True, 1e-4, _balance),
    "adjoint-kept": Method("Adjoint Matching, kept variance", True, True, 3e-4, _adjoint("analytic")),
    "ram": Method("RAM", False, False, 3e-4, _reinforce),
    "importance": Method("importance resampling", False, True, draw=_importance),
    "best": Method("best of 16", False, False, draw=_best_of_n),
    "smc": Method("SMC", False, True, draw=_smc(False)),
    "twisted": Method("twisted SMC", True, True, draw=_smc(True)),
    "guided": Method("guidance, plug-in value", True, False, draw=_guided(False)),
    "exact": Method("guidance, exact value", False, True, draw=_guided(True)),
}


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """One method on one problem.

    Args:
        problem: a name of :data:`itlib.experiments.problems.PROBLEMS`.
        method: a name of :data:`METHODS`.
        N: number of tilts, for the methods that tilt (20).
        lr: learning rate; left out, the one that the tuning chose.
        budget: units of work; left out, :data:`WORK`.
    """

    experiment: ClassVar[str] = "rivals"
    problem: str = "paper"
    method: str = "implicit"
    N: int | None = None
    lr: float | None = None
    budget: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        problem(self.problem)
        chosen = METHODS[choose("method", self.method, METHODS)]
        if self.N is not None and not chosen.tilts:
            raise ValueError(f"the method {self.method!r} makes no tilts that are counted: leave out N={self.N}")
        self._settle(N=20 if chosen.tilts else None, lr=chosen.lr, budget=WORK[self.profile])

    def setting(self, network: torch.nn.Module, schedule: Schedule) -> Setting:
        """What the method is given, with a base."""
        return Setting(
            network,
            problem(self.problem),
            schedule,
            budget=self.budget or 0,
            lr=self.lr or 0.0,
            N=self.N or 20,
            seed=self.seed,
            full=self.full,
        )


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Train, or find, the base; let the method spend its budget; judge what comes out against the exact target.

    A method that trains is looked at now and then (:data:`LOOKS`). One whose loss or samples stop being finite ends there,
    and what is judged is the last look before.
    """
    torch.set_num_threads(1)
    p, schedule, asked, chosen = parameters, Cosine(), problem(parameters.problem), METHODS[parameters.method]
    for needed in base.before(p.problem, p).values():
        *_, trained = base.train(needed, schedule)
    setting, work = p.setting(trained.model, schedule), profile(p.profile)
    account, drawn, model = EvaluationCounter(), Drawn(), None
    failure, curve, reached = None, list[dict[str, float]](), dict[str, Metric]()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds
    if chosen.draw:
        account = EvaluationCounter()
        drawn = chosen.draw(setting, account)
        model, taken = drawn.model, {"training": 0.0, "sampling": time.process_time() - account.opened}
    else:
        model = trained.model
        try:
            for step, seconds in watched(chosen, setting, LOOKS):
                model, row = look(step, asked, schedule, work, p.seed)
                curve.append(asdict(step.counts) | {"seconds": seconds} | row)
                reached = {"strength": step.strength, "share": step.share}
        except FloatingPointError as error:
            failure = str(error)
        taken = {"training": curve[-1]["seconds"] if curve else 0.0, "sampling": 0.0}
    x = drawn.samples
    if model is not None:
        clock = time.process_time()
        generator = torch.Generator().manual_seed(p.seed + 1)
        x = sample(model, schedule, work.samples, asked.d, steps=200, generator=generator)
        taken["sampling"] += time.process_time() - clock if chosen.draw else 0.0
    assert x is not None
    metrics = judge(p, x, model, schedule)
    if finite(x):
        shown = x[:300].tolist() if p.seed == 0 and setting.N == 20 else []
    else:
        failure, shown = failure or "the samples are not finite", []
    # The best on the way is what an oracle's early stopping would end with.
    metrics |= {"best_sliced_w2": min((row["sliced_w2"] for row in curve), default=None), "ess": drawn.ess}
    metrics |= asdict(account.counts) if chosen.draw else reached
    columns = {key: [row[key] for row in curve] for key in curve[0]} if curve else {}
    return Record(p, metrics, curve=columns, samples=shown, seconds=taken, failure=failure)


def copied(model: torch.nn.Module, d: int) -> torch.nn.Module:
    """A copy whose evaluations are not counted."""
    if isinstance(model, Guided):
        value = copy.deepcopy(model.value)
        value._forward_hooks.clear()
        return Guided(copied(cast(torch.nn.Module, model.base), d), value, model.schedule)
    network = Network(d)
    network.load_state_dict(getattr(model, "student", model).state_dict())  # of two, the one that learns
    return network


def look(
    step: BaselineStep, asked: Toy, schedule: Schedule, work: Profile, seed: int
) -> tuple[NoisePredictor, dict[str, float]]:
    """A copy of the network, whose evaluations are not counted, and how far it is from the target.

    Raises:
        FloatingPointError: once its samples have run away.
    """
    network = copied(step.model, asked.d)
    generator = torch.Generator().manual_seed(seed)
    x = sample(network, schedule, work.samples // 2, asked.d, steps=50, generator=generator)
    if not finite(x):
        raise FloatingPointError(f"iteration {step.k}: the samples are no longer finite")
    errors = score_errors(network, asked.target, schedule, n=work.samples, seed=seed)
    return network, {"sliced_w2": sliced_wasserstein(x, asked.target, seed=seed), "eps_rmse": errors.eps_rmse}


def judge(parameters: Parameters, x: Tensor, model: NoisePredictor | None, schedule: Schedule) -> dict[str, Metric]:
    """The card of samples, (n, d), and of the model that drew them, if there is one."""
    p, asked, work = parameters, problem(parameters.problem), profile(parameters.profile)
    target, card = asked.target, dict[str, Any]()
    if finite(x):
        card = dict(sample_card(x, target, target=target, base=asked.base, seed=p.seed))
        card["mean_reward"] = float(asked.reward(x.double()).mean())
        card["mode_weight_error"] = float((torch.tensor(card["mode_weights"]) - target.weights).abs().sum() / 2)
    card["entropy"] = target.entropy()
    if model is None:
        return card
    errors = score_errors(model, target, schedule, n=work.samples, seed=p.seed)
    card |= {"eps_rmse": errors.eps_rmse, "score_rmse": errors.score_rmse}
    if errors.eps_rmse < 1:  # beyond, the model is worse than predicting zero, and its flow too stiff to follow
        exact = target.sample(work.flow_samples // 2, torch.Generator().manual_seed(p.seed)).float()
        card["flow_nll"] = flow_nll(model, schedule, target, exact)
        card["kl"] = card["flow_nll"] - card["entropy"]
    return card


#: Problems on which every method runs, and those on which only the best of the tuning and some that train nothing do.
MAIN, OTHER = ("paper", "one-mode"), ("unequal", "quadratic", "eight", "nine")
BEST = ("tilting", "implicit", "recommended", "dpok", "adjoint")
REFERENCES = ("importance", "best", "smc", "exact")
#: Methods without a tuning run: the first on every problem, the others on those that share the paper's base.
UNTUNED = ("value", "adjoint-kept")
SHARED_BASE = ("paper", "one-mode", "unequal", "quadratic")
#: Tuned like the others, and run on the problems that share the paper's base.
ON_SHARED = ("distilled", "balance", "at-once")
#: Methods that can be asked for, and are in no grid: without a tuning run, too.
NO_RECORDS = ("sift", "equal-steps", "ram")
#: Methods that are also run with fewer tilts than the paper's fewest: they cost less, and what does the rest buy?
FEWER = ("tilting", "implicit")


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    found: dict[str, Parameters] = {}
    for seed in seeds:
        for problem_name in (*MAIN, *OTHER):
            first = [name for name in METHODS if name not in (*UNTUNED, *ON_SHARED, *NO_RECORDS)]
            later = (*UNTUNED, *ON_SHARED) if problem_name in SHARED_BASE else UNTUNED[:1]
            for name in (*(first if problem_name in MAIN else (*BEST, *REFERENCES)), *later):
                known: dict[str, Any] = {"problem": problem_name, "method": name, "seed": seed}
                if not METHODS[name].tilts:
                    found[f"{problem_name}_{name}_seed{seed}"] = Parameters(**known)
                    continue
                for N in (5, 10, 20) if name in FEWER and problem_name in MAIN else (20,):
                    found[f"{problem_name}_{name}_N{N:03d}_seed{seed}"] = Parameters(N=N, **known)
    return found


def tuning_cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid that chooses learning rates; its seed is :data:`TUNING_SEED`."""
    trained = [name for name, method in METHODS.items() if method.train and name not in (*UNTUNED, *NO_RECORDS)]
    return {
        f"paper_{name}_lr{lr:.0e}_seed{seed}": Parameters(method=name, lr=lr, seed=seed)
        for seed in seeds
        for name in trained
        for lr in RATES
    }


EXPERIMENT = Experiment("rivals", Parameters, run, cells, after=lambda p: base.before(p.problem, p))
TUNING = replace(EXPERIMENT, name="tuning", cells=tuning_cells)
