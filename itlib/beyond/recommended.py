r"""The recommended configuration, and every step on the way to it from Algorithm 2.

It keeps the loop of small tilts and changes what the chapters beyond the paper found to matter: a frozen base under a
bounded correction (:mod:`itlib.beyond.preconditioning`), a sampler that keeps its variance (:mod:`itlib.sampling`), steps
chosen from the rewards (:mod:`itlib.beyond.step_sizes`), a learning rate that falls to zero in every tilt, and in place of
the regression a loss on whole chains (:mod:`itlib.beyond.chains`), with which each tilt corrects the errors of those before.

Each change is a knob of :class:`RecommendedConfig`, which can be set back to what the paper does, so that the gain of each
can be measured.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from itlib._checks import Between0And1, Natural, Positive, autograd
from itlib.beyond.chains import ChainLearner, Corrected, UnreachedWarning, correct
from itlib.beyond.implicit import implicit
from itlib.beyond.preconditioning import adapter
from itlib.beyond.step_sizes import ChosenSteps, Polished, bounded_gap, evenly
from itlib.network import NoisePredictor, device_of
from itlib.rewards import Reward
from itlib.sampling import Variance
from itlib.schedules import Schedule
from itlib.tilting import (
    PAPER_UPDATE,
    EqualSteps,
    Learner,
    Regression,
    StepSizes,
    TiltingConfig,
    TiltState,
    TiltStep,
    algorithm_1,
    derive_seed,
    resumed,
    run_tilts,
    trainable_copy,
)


@dataclass(frozen=True)
class RecommendedConfig(TiltingConfig):
    """The knobs of :class:`~itlib.tilting.TiltingConfig` with the defaults that we recommend, and seven more.

    Args:
        N: number of equal tilts, if target_ess is None.
        S: samples, or chains, per tilt.
        B: minibatch size, in samples or chains.
        lr: learning rate. The default is for adapters; for a copy with n trainable weights it is at most 0.1 / sqrt(n), so
            that a step of Adam moves all of them together by a length of 0.1.
        decay: whether the learning rate falls to zero along a cosine in every tilt.
        learner: "chains" (:class:`~itlib.beyond.chains.ChainLearner`), or the regression of Algorithm 2 with its "explicit"
            or an "implicit" step.
        variance: of the sampler's steps, "ddpm" or "analytic".
        student: "copy", all weights of the base that are not frozen, or "adapter", a small correction of the frozen base.
        target_ess: steps are chosen from the rewards so that about this share of the samples stays effective; None takes N
            equal steps.
        polish_rounds: tilts of size zero at the end, which correct what is left. Needs "chains".
        pilot: number of the base's chains on which the noise of the steps is measured; None for the default of
            :class:`~itlib.beyond.chains.ChainLearner`.

    Raises:
        ValueError: for a value out of range, naming it.
        ValueError: for chains with fewer than two in a minibatch.
        ValueError: for chains with eta below 1.
        ValueError: for polishing rounds without chains.
    """

    S: int = 4000
    J: int = 100
    B: int = 16
    E: int = 1
    epoch: Literal["minibatch", "pass"] = "pass"
    lr: Positive = 6e-3
    decay: bool = True
    learner: Literal["chains", "implicit", "explicit"] = "chains"
    variance: Variance = "analytic"
    student: Literal["copy", "adapter"] = "adapter"
    target_ess: Between0And1 | None = 0.9
    polish_rounds: Natural = 2
    pilot: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learner == "chains" and (self.B < 2 or self.eta < 1.0):
            raise ValueError("chains are compared with each other and must forget their start: B is at least 2, and eta 1")
        if self.target_ess is None and self.polish_rounds >= self.N:
            raise ValueError(f"polish_rounds must be less than N={self.N}, got {self.polish_rounds}")
        if self.polish_rounds and self.learner != "chains":
            raise ValueError(f"only chains can be polished: set polish_rounds to 0 for the learner {self.learner!r}")

    @classmethod
    def equal_steps(cls, N: int, **changes: Any) -> RecommendedConfig:
        """N equal tilts in all, of at most 1000 chains each and 50,000 together.

        Args:
            N: number of tilts, polishing rounds included.
            changes: further knobs.
        """
        S = max(cls.B, min(1000, 50_000 // max(N, 1)))
        rounds = min(cls.polish_rounds, max(N - 1, 0))
        return cls(**{"N": N, "target_ess": None, "S": S, "polish_rounds": rounds} | changes)

    @classmethod
    def like(cls, config: TiltingConfig, **changes: Any) -> RecommendedConfig:
        """Algorithm 2 with the knobs of a configuration, and changes.

        Args:
            config: the knobs of Algorithm 2.
            changes: knobs that differ.
        """
        paper: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(TiltingConfig)}
        paper |= {"decay": False, "learner": "explicit", "variance": "ddpm", "student": "copy"}
        return cls(**paper | {"target_ess": None, "polish_rounds": 0} | changes)

    @property
    def steps(self) -> StepSizes:
        """How far each tilt goes."""
        steps: StepSizes = EqualSteps(self.N - self.polish_rounds, self.lam)
        if self.target_ess is not None:
            steps = ChosenSteps(evenly(bounded_gap(-0.5 * math.log(self.target_ess))), self.lam)
        return Polished(steps, self.polish_rounds, self.lam) if self.polish_rounds else steps


def cosine(step: int, steps: int) -> float:
    """A factor of the learning rate that falls from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


@autograd
def new_model(
    base: NoisePredictor, data: Tensor | int, schedule: Schedule, config: RecommendedConfig, *, d: int, seed: int
) -> nn.Module:
    """The network that the tilts train; before the first it predicts what the base does.

    Args:
        base: the pretrained model.
        data: its samples, (n, d), for the coordinates of an adapter; or d, if its state will be loaded.
        schedule: the pair alpha, sigma.
        config: says which kind of student.
        d: dimension of the data.
        seed: fixes initial weights.
    """
    weights = derive_seed(seed, "weights")
    if config.student == "adapter":
        return adapter(base, data, schedule, seed=weights).to(device_of(base))
    return correct(base, d, weights) if config.learner == "chains" else trainable_copy(base, d, weights)


def begun(
    base: NoisePredictor, schedule: Schedule, config: RecommendedConfig, *, d: int, seed: int, state: TiltState | None
) -> tuple[nn.Module, tuple[float, ...], RecommendedConfig]:
    """The model that learns, the strengths of the tilts that made it, and the knobs with a rate that suits its size."""
    strengths: tuple[float, ...] = ()
    if state is not None:
        model, strengths = resumed(state)
    else:
        data: Tensor | int = d
        if config.student == "adapter":
            coordinates = torch.Generator().manual_seed(derive_seed(seed, "coordinates"))
            data = algorithm_1(schedule, config, d, config.variance)(base, 1, max(1000, 2 * d), coordinates)
        model = new_model(base, data, schedule, config, d=d, seed=seed)
    if config.student == "copy" and config.lr == RecommendedConfig.lr:
        weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
        config = replace(config, lr=min(config.lr, 0.1 / math.sqrt(weights)))
    return model, strengths, config


def on_chains(model: nn.Module) -> Corrected:
    """The model, if it knows its base.

    Raises:
        ValueError: if it does not.
    """
    if not isinstance(model, Corrected):
        raise ValueError("to resume on chains, pass the model that the last tilt left, which knows its base")
    return model


@autograd
def recommended_tilting(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: RecommendedConfig | None = None,
    *,
    d: int | None = None,
    seed: int = 0,
    state: TiltState | None = None,
) -> Iterator[TiltStep]:
    """Fine-tune a model toward exp(lam r) p as recommended, one tilt per item.

    Before the first tilt samples of the base are drawn, in one batch each: 10,000 for the noise of the chains' steps
    (10^6 / d for d above 100, or S if that is more), and 1000 (or 2 d) for the coordinates of the adapter. An adapter keeps
    a d x d matrix: for images of many pixels choose ``student="copy"``, on LoRA if memory is short.

    Args:
        base: the pretrained model; not changed.
        reward: forward evaluations only; called once per tilt on (S, d), returns (S,).
        schedule: the pair alpha, sigma.
        config: the knobs.
        d: dimension of the data; by default the base's own, ``base.d``, or 2 if it has none.
        seed: fixes every random draw.
        state: of an interrupted run of the same base, configuration and seed.

    Yields:
        A :class:`~itlib.tilting.TiltStep` per tilt.

    Raises:
        ValueError: if the state has no model that can learn in this configuration.
        ValueError: if the state's strengths are not those of this configuration.
        ValueError: if the reward returns NaN or a wrong shape.
        FloatingPointError: if samples, loss or weights stop being finite, or a chosen step vanishes, naming the tilt and the
            likely cause.
    """
    config = config or RecommendedConfig()
    d = d or int(getattr(base, "d", 2))
    clock = time.process_time()
    model, strengths, config = begun(base, schedule, config, d=d, seed=seed, state=state)
    rate = cosine if config.decay else None
    learner: Learner
    if config.learner == "chains":
        learner = ChainLearner(
            on_chains(model), schedule, config, d=d, seed=seed, variance=config.variance, rate=rate, pilot=config.pilot
        )
    else:
        update = implicit if config.learner == "implicit" else PAPER_UPDATE
        sampler = algorithm_1(schedule, config, d, config.variance)
        learner = Regression(model, schedule, config, d=d, update=update, sampler=sampler, rate=rate)
    spent = time.process_time() - clock
    steps = run_tilts(learner, reward, config.steps, seed=seed, strengths=strengths, preparation=spent)
    yield from guarded(steps)


def guarded(
    steps: Iterator[TiltStep], *, low: float = 0.02, least: float = 0.005, enough: float = 0.3
) -> Iterator[TiltStep]:
    """Pass tilts on; warn when few of a tilt's chains are effective, and stop when hardly any are, twice in a row.

    Args:
        steps: of any learner that measures diagnostics.
        low: effective share of the chains below which there is a warning.
        least: effective share below which two tilts in a row end the run.
        enough: effective share of the last tilt's chains below which the end of the run warns, as
            :class:`~itlib.beyond.value.ValueConfig` has it.

    Warns:
        UnreachedWarning: if the run ends with fewer.

    Raises:
        FloatingPointError: after the second of these tilts.
    """
    before = share = 1.0
    for step in steps:
        yield step
        if step.diagnostics is None:
            continue
        share = step.diagnostics.ess
        advice = f"tilt {step.k}: {share:.2%} of its chains are effective. Lower lr, take more tilts, or more samples"
        if max(share, before) < least:
            raise FloatingPointError(f"{advice}; what was learned so far is not a tilt of the base")
        if share < low:
            warnings.warn(advice, RuntimeWarning, stacklevel=2)
        before = share
    if share < enough:
        warnings.warn(
            f"the run ended with an effective share of {share:.2g} among its own chains: its samples are not those of the "
            "tilt. Raise S, E or polish_rounds, or ask for a smaller lam",
            UnreachedWarning,
            stacklevel=2,
        )
