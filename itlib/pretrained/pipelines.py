"""Diffusers in one call: what a pipeline or a scheduler says, read, and checked against its own sampler.

:func:`from_diffusers` puts the scheduler's own grid of K noise levels on an even clock
(:class:`~itlib.pretrained.schedules.OnGrid`), so that K steps of Algorithm 1 visit what K steps of the scheduler visit. Then
it walks down from the same noise twice, and where the two part, finds the setting that does it. Algorithm 1 with eta = 0 is
DDIM, and Euler's method for EDM and for flow matching; with eta = 1 it is DDPM and Euler "ancestral".

Nothing here imports diffusers: a scheduler is what has ``config``, ``set_timesteps`` and ``step``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from itlib.network import device_of
from itlib.pretrained.models import PREDICTIONS, FromModel, Prediction, clamped, edm, thresholded
from itlib.pretrained.schedules import ALPHA_MIN, Flow, ModelSchedule, OnGrid, Tabulated, VarianceExploding
from itlib.sampling import reverse_process

#: What no predictor can share with a scheduler, and how it is here.
_OURS: dict[str, Any] = {
    "set_alpha_to_one": True,
    "final_sigmas_type": "zero",
    "variance_type": "fixed_small",
    "stochastic_sampling": False,
}
#: Schedulers whose steps are those of Algorithm 1.
_FIRST_ORDER = (
    *("DDIM", "DDIMParallel", "CogVideoXDDIM", "DDPM", "DDPMParallel", "EulerDiscrete", "EulerAncestralDiscrete"),
    *("EDMEuler", "FlowMatchEulerDiscrete", "FlowMapEulerDiscrete"),
)
#: Parts of the names of schedulers whose models say where a long step ends, not what the noise is.
_DISTILLED = ("LCM", "TCD", "Consisten", "SCM", "DMD", "Piflow")


@dataclass(frozen=True)
class Wrapped:
    """A model of diffusers as this package sees it.

    Args:
        predictor: the model as a noise predictor; ``predictor.d`` is the dimension.
        schedule: on the scheduler's clock.
        steps: K, whose even grid is the scheduler's.
        eta: of the steps that the scheduler takes: 0 or 1.
        gaps: settings of the scheduler that differ here, and the largest change that each makes to a sample; NaN for a
            variance that the model learned.
        gap: what is left between its samples and ours once these are as here.
    """

    predictor: FromModel
    schedule: OnGrid
    steps: int
    eta: float
    gaps: dict[str, float]
    gap: float

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Not a model itself.

        Raises:
            TypeError: always, naming what is.
        """
        raise TypeError("this is what from_diffusers found, and not a model: pass its .predictor")

    def __getattr__(self, name: str) -> Any:
        """For what only a model has, such as ``parameters``.

        Raises:
            AttributeError: always, naming what is a model.
        """
        raise AttributeError(f"what from_diffusers found has no {name!r}: its .predictor is the model")

    def __str__(self) -> str:
        """What agrees, and what does not, in a sentence each."""
        parts = [
            f"{name} is not used: steps have a width of their own here."
            if math.isnan(value)
            else f"{name} moves a sample by up to {value:.2g}."
            for name, value in self.gaps.items()
        ]
        return " ".join([*parts, f"Otherwise its samples and these differ by at most {self.gap:.1e}."])


def _first_order(kind: type) -> bool:
    return kind.__name__.removesuffix("Scheduler") in _FIRST_ORDER


def _refuse(scheduler: Any, why: str) -> NoReturn:
    """Say that a scheduler's steps are not those of Algorithm 1, and what to pass instead.

    Raises:
        ValueError: always.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    name = config.get("prediction_type", "epsilon")
    if any(part in kind for part in _DISTILLED):
        instead = "its model is distilled and predicts no noise: tilt the model that it was made from"
    elif "Flow" in kind or name == "flow_prediction" or config.get("use_flow_sigmas"):
        instead = f"pass FlowMatchEulerDiscreteScheduler(shift={config.get('flow_shift') or config.get('shift') or 1.0:g})"
    elif config.get("sigma_data") is not None:
        instead = "pass EDMEulerScheduler.from_config(scheduler.config)"
    elif "CogVideoX" in kind:
        instead = "pass CogVideoXDDIMScheduler.from_config(scheduler.config)"
    elif hasattr(scheduler, "alphas_cumprod"):  # from_config of another class would forget what is a default of this one
        instead = f"pass DDIMScheduler(trained_betas=scheduler.betas.tolist(), prediction_type={name!r}, clip_sample=False)"
    else:
        instead = "build a schedule of itlib.pretrained, such as ContinuousVP, and FromModel yourself"
    raise ValueError(f"the steps of {kind} are not those of Algorithm 1{why}; {instead}")


def read_scheduler(scheduler: Any, alpha_min: float = ALPHA_MIN) -> tuple[ModelSchedule, Prediction, float]:
    """The schedule, the prediction and eta of a scheduler of diffusers.

    Raises:
        ValueError: for a scheduler whose steps are not those of Algorithm 1, naming what to pass instead.
        ValueError: for another prediction.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    if not any(map(_first_order, type(scheduler).__mro__)):
        _refuse(scheduler, "")
    eta = 1.0 if "Ancestral" in kind or kind.startswith("DDPM") else 0.0
    name = config.get("prediction_type", "epsilon")
    if config.get("sigma_data") is not None:
        prediction = partial(edm, sigma_data=config.sigma_data, sign=-1.0 if name == "v_prediction" else 1.0)
        return VarianceExploding(config.sigma_max), prediction, eta
    if "Flow" in kind or name == "flow_prediction":
        return Flow(config.num_train_timesteps, alpha_min), PREDICTIONS["flow_prediction"], eta
    if name not in PREDICTIONS:
        raise ValueError(f"prediction_type is one of {', '.join(PREDICTIONS)}, got {name!r}: give FromModel a function")
    if config.get("timestep_type") == "continuous":
        return VarianceExploding(config.sigma_max), PREDICTIONS[name], eta
    return Tabulated(scheduler.alphas_cumprod, alpha_min), PREDICTIONS[name], eta


def _clip(scheduler: Any) -> Callable[[Tensor], Tensor] | None:
    """What a scheduler does to predictions of X_0."""
    config: Mapping[str, Any] = scheduler.config
    if "CogVideoX" in type(scheduler).__name__:  # whatever its settings say
        return None
    if config.get("thresholding"):
        return thresholded(config["dynamic_thresholding_ratio"], config["sample_max_value"])
    return clamped(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None


def _times(scheduler: Any, schedule: ModelSchedule, steps: int) -> Tensor:
    """The times, (K,), of the noise levels that a scheduler has been set to, the largest first."""
    told: Tensor = scheduler.timesteps.double().cpu()
    if len(told) != steps:
        _refuse(scheduler, f", which asks the model once a step, not {len(told)} times in {steps}")
    if not hasattr(scheduler, "sigmas"):
        return cast(Tensor, (told + 1) / scheduler.config.num_train_timesteps)
    sigmas: Tensor = scheduler.sigmas[:steps].double().cpu()
    times: Tensor = sigmas if isinstance(schedule, Flow) else schedule.time_of(sigmas)
    if not bool((times.diff() < 0).all()):
        _refuse(scheduler, f": its noise levels {[round(v, 3) for v in sigmas.tolist()]} do not fall, or leave its table")
    return times


def _walk(
    predictor: FromModel, scheduler: Any, x: Tensor, steps: int, *, recomputed: bool, even: bool, **how: Any
) -> Tensor:
    """Samples, (B, d), that a scheduler makes of noise x, (B, d), with the model of a noise predictor.

    Args:
        predictor: holds the model.
        scheduler: of diffusers; not changed.
        x: standard normal noise, (B, d).
        steps: their number.
        recomputed: whether DDIM is told to find epsilon again from a clipped X_0.
        even: whether DDIM is made to step to where its next step begins.
        how: further arguments of its set_timesteps.
    """
    scheduler = copy.deepcopy(scheduler)
    T = scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps, **how)
    taken = inspect.signature(scheduler.step).parameters
    given = {"eta": 0.0, "use_clipped_model_output": recomputed, "generator": torch.Generator().manual_seed(1)}
    state = x.reshape(-1, *predictor.shape)
    if hasattr(scheduler, "sigmas") and not isinstance(cast(OnGrid, predictor.schedule).schedule, Flow):
        state = state * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    for k, tau in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(state, tau) if hasattr(scheduler, "scale_model_input") else state
        answer = predictor.answer(scaled.flatten(1), tau.expand(len(x)))
        if even:  # DDIM subtracts T // K from tau
            after = scheduler.timesteps[k + 1] if k + 1 < steps else -1
            scheduler.register_to_config(num_train_timesteps=int(tau - after) * steps)
        options = {name: value for name, value in given.items() if name in taken}
        state = scheduler.step(answer.reshape(state.shape), tau, state, **options).prev_sample
    scheduler.register_to_config(num_train_timesteps=T)
    return state.flatten(1)


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    *,
    steps: int = 20,
    shape: Sequence[int] | None = None,
    alpha_min: float = ALPHA_MIN,
    check: int = 2,
    model: Mapping[str, Any] | None = None,
    **how: Any,
) -> Wrapped:
    """Take a pipeline of diffusers, or a model and its scheduler, as it is, and check that both sample alike.

    Args:
        source: a pipeline, or its model.
        scheduler: the model's, if it is no pipeline.
        steps: K, the number of steps to take.
        shape: of one sample; by default as the model's ``config`` says.
        alpha_min: chains start where alpha is at least this.
        check: number of samples to compare; 0 leaves it out, but for a scheduler of your own that is made from one of
            diffusers. Each comparison costs K calls of the model.
        model: further arguments of :class:`~itlib.pretrained.models.FromModel`: ``condition``, ``microbatch``, ...
        how: further arguments of the scheduler's ``set_timesteps``, such as ``mu`` for Flux.

    Raises:
        TypeError: for what is neither a module nor a pipeline with one, such as a function or a scheduler alone.
        ValueError: if no scheduler or no shape is known.
        ValueError: for a scheduler whose steps are not those of Algorithm 1, naming what to pass instead.
    """
    parts = [source, getattr(source, "unet", None), getattr(source, "transformer", None)]
    network = next((part for part in parts if isinstance(part, torch.nn.Module)), None)
    if network is None:
        raise TypeError(
            f"pass a pipeline, or a torch.nn.Module and its scheduler: from_diffusers(model, scheduler); got "
            f"{type(source).__name__}, which holds no module"
        )
    scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if scheduler is None:
        raise ValueError("pass the scheduler of this model as well: from_diffusers(model, scheduler)")
    if shape is None:
        config: Any = getattr(network, "config", None)
        size = getattr(config, "sample_size", None)
        if size is None:
            raise ValueError("the model's config does not say its sample_size: pass shape=(channels, height, width)")
        shape = (config.in_channels, *((size, size) if isinstance(size, int) else size))
    read_scheduler(scheduler, alpha_min)  # or refuse it
    theirs = copy.deepcopy(scheduler)
    theirs.set_timesteps(steps, **how)

    def wrapped(alpha_min: float) -> tuple[FromModel, OnGrid, float]:
        process, prediction, eta = read_scheduler(scheduler, alpha_min)
        times = torch.cat([torch.zeros(1), _times(theirs, process, steps).flip(0)])
        schedule = OnGrid(process, times, theirs.timesteps.flip(0))
        clip = _clip(scheduler)
        return FromModel(network, schedule, shape, prediction, clip=clip, **dict(model or {})), schedule, eta

    predictor, schedule, eta = wrapped(alpha_min)
    gaps: dict[str, float] = {}
    gap = math.nan
    if check := check or int(not _first_order(type(scheduler))):
        exact = predictor if schedule.t_max == 1.0 or eta else wrapped(1e-6)[0]
        x = torch.randn(check, predictor.d, generator=torch.Generator().manual_seed(0)).to(device_of(network))
        gaps, gap = _compare(predictor, exact, scheduler, x, steps, eta, how)
    return Wrapped(predictor, schedule, steps, eta, gaps, gap)


@torch.no_grad()
def _compare(
    predictor: FromModel, exact: FromModel, scheduler: Any, x: Tensor, steps: int, eta: float, how: Mapping[str, Any]
) -> tuple[dict[str, float], float]:
    """Both samplers from the same noise, then each setting that differs there: what it moves, and what is left."""
    kind = type(scheduler).__name__
    ddim = "DDIM" in kind
    others = {name: ours for name, ours in _OURS.items() if scheduler.config.get(name, ours) != ours}
    walk = partial(_walk, predictor, x=x, steps=steps, **how)
    plain = type(scheduler).from_config({**scheduler.config, **others})
    theirs = walk(scheduler=plain, recomputed=True, even=ddim)

    def ours(predictor: FromModel) -> Tensor:
        start = x if eta else x.double()  # single precision is short of digits at a small alpha_min
        again = torch.Generator().manual_seed(1)
        *_, (_, state) = reverse_process(predictor, predictor.schedule, start, steps=steps, eta=eta, generator=again)
        return state

    def moved(**changed: Any) -> float:
        return _furthest(walk(**({"scheduler": plain, "recomputed": True, "even": ddim} | changed)), theirs)

    gaps = {}
    for name in others:
        if str(scheduler.config[name]).startswith("learned"):
            gaps[f"{name}={scheduler.config[name]!r}"] = math.nan
            continue
        changed = type(scheduler).from_config({**plain.config, name: scheduler.config[name]})
        gaps[f"{name}={scheduler.config[name]!r}"] = moved(scheduler=changed)
    if predictor.clip is not None and ddim:
        gaps["use_clipped_model_output=False"] = moved(recomputed=False)
    if ddim:
        gaps[f"timestep_spacing={scheduler.config.timestep_spacing!r} with {steps} steps"] = moved(even=False)
    if exact is not predictor:
        gaps["The start at alpha_min"] = _furthest(ours(predictor), ours(exact))
    gap = _furthest(ours(exact), theirs)
    if not _first_order(type(scheduler)) and not gap <= 1e-3:
        _refuse(scheduler, f" (samples differ by up to {gap:.2g})")
    return {name: value for name, value in gaps.items() if not value <= 1e-4}, gap


def _furthest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())
