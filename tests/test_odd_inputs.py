"""Odd inputs to every public function: one meaning is accepted, the rest is refused in one sentence.

The rows are the cross product of the public functions and configurations of the library with what their annotations make
odd, one parameter at a time. Each row says what it expects: the answer of an ordinary value that means the same, or a
refusal that names the parameter and comes from this library, not from inside torch or numpy. The ordinary calls, and those
under ``no_grad`` and ``inference_mode``, give no NaN.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import traceback
from collections import abc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import itlib
from itlib.baselines.adjoint_matching import AdjointMatchingConfig
from itlib.baselines.distillation import DistillationConfig
from itlib.baselines.draft import DraftConfig
from itlib.baselines.monte_carlo import SMCConfig
from itlib.baselines.policy_gradient import PolicyGradientConfig
from itlib.baselines.relative_trajectory_balance import TrajectoryBalanceConfig
from itlib.beyond.chains import Corrected, Student, correct
from itlib.beyond.estimators import centred
from itlib.beyond.preconditioning import Gaussian
from itlib.beyond.recommended import RecommendedConfig
from itlib.beyond.step_sizes import constant_ess
from itlib.beyond.value import ValueConfig, ValueFunction
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, HasScore, paper_mixture
from itlib.network import Network
from itlib.rewards import QuadraticReward
from itlib.sampling import reverse_steps, time_grid
from itlib.schedules import Cosine, Linear, Schedule
from itlib.tilting import EqualSteps, Learner, Regression, StepSizes, TiltingConfig
from itlib.training import TrainingConfig

ROOT = Path(itlib.__file__).parent
#: Functions that others of the library call with what they made, too often to look at it each time.
INNER = {
    *("column", "coefficients", "device_of", "linear_silu", "evaluating"),  # once a step, or more
    *("log_density_ratio", "reverse_steps", "posterior_std", "analytic_std", "randn"),  # parts of a step
    *("regression_step", "set_rate", "new_optimizer", "minibatches", "log_variance_step", "value_gradient"),  # of training
    *("single_sample", "implicit", "log_mean_exp", "reweighted", "standardised"),  # of a regression's target
    *(
        "is_trainable",
        "trainable_copy",
        "corrected",
        "correct",
        "resumed",
        "algorithm_1",
        "check_size",
        "begun",
        "on_chains",
    ),
    *("trajectory", "log_ratio", "draw_pool", "beyond.value.fit_value", "guarded", "cosine", "states_at_once"),  # of a round
    "conditional_tilting",  # of models that are told a condition, as no network here is: tests/beyond/test_conditions.py
}


def modules() -> Iterator[str]:
    for room in ("", "beyond", "baselines"):
        for found in pkgutil.iter_modules([str(ROOT / room)]):
            if not found.ispkg and found.name not in ("_checks", "example", "_kernels"):
                yield ".".join(filter(None, ("itlib", room, found.name)))


def public() -> dict[str, Callable[..., Any]]:
    """Functions, and configurations and other frozen classes that are made by hand, by name."""
    found: dict[str, Callable[..., Any]] = {}
    for name in modules():
        for key, thing in vars(importlib.import_module(name)).items():
            if getattr(thing, "__module__", "") != name or key.startswith("_"):
                continue
            if {key, f"{name.removeprefix('itlib.')}.{key}"} & INNER or getattr(thing, "__name__", key) != key:
                continue
            if (inspect.isfunction(thing) and inspect.signature(thing).parameters) or key.endswith("Config"):
                found[f"{name.removeprefix('itlib.')}.{key}"] = thing
    for thing in (GaussianMixture, QuadraticReward, ExactNoisePredictor, Network, Cosine, EqualSteps):
        found[thing.__name__] = thing
    for thing in (paper_mixture(), ExactNoisePredictor(paper_mixture(), Cosine()), reward(), Cosine(), Linear()):
        for key, method in inspect.getmembers(thing, inspect.ismethod):
            if (not key.startswith("_") or key == "__call__") and inspect.signature(method).parameters:
                found[f"{type(thing).__name__}.{key}"] = method
    return found


# ---- ordinary values ------------------------------------------------------------------------------------------------


def reward() -> QuadraticReward:
    return QuadraticReward(torch.tensor([0.5, 1.0]))


def exact() -> ExactNoisePredictor:
    return ExactNoisePredictor(paper_mixture(), Cosine())


def network() -> Network:
    return Network(2, width=8, depth=2, embedding=4)


POINTS = torch.tensor([[2.0, 1.0], [-2.0, 0.0], [1.0, -1.0], [-1.0, 1.0], [3.0, 0.0], [-3.0, -1.0]])
TILTING: dict[str, Any] = {"N": 2, "S": 8, "J": 3, "B": 4, "E": 2}
STEPS = list(reverse_steps(Cosine(), time_grid(Cosine(), 3), 1.0))[:-1]
#: By the class that is asked for; made anew for each call.
OBJECTS: dict[Any, Callable[[], Any]] = {
    Schedule: Cosine,
    GaussianMixture: paper_mixture,
    HasScore: paper_mixture,
    QuadraticReward: reward,
    nn.Module: network,
    Network: network,
    torch.Generator: lambda: torch.Generator().manual_seed(0),
    TiltingConfig: lambda: TiltingConfig(**TILTING),
    RecommendedConfig: lambda: RecommendedConfig(S=8, J=3, B=4, pilot=8),
    TrainingConfig: lambda: TrainingConfig(epochs=1, batch_size=4),
    ValueConfig: lambda: ValueConfig(J=3, pilot=16, S=8, B=8, fit=2, rounds=2, width=8, depth=1),
    SMCConfig: lambda: SMCConfig(n=6, J=3),
    AdjointMatchingConfig: lambda: AdjointMatchingConfig(J=3, B=4),
    DistillationConfig: lambda: DistillationConfig(J=3, n=8, steps=2, B=4),
    DraftConfig: lambda: DraftConfig(J=3, B=4, K=1, renoise=2),
    PolicyGradientConfig: lambda: PolicyGradientConfig(J=3, B=4, updates=1),
    TrajectoryBalanceConfig: lambda: TrajectoryBalanceConfig(J=3, B=4),
    Learner: lambda: Regression(network(), Cosine(), TiltingConfig(**TILTING)),
    StepSizes: lambda: EqualSteps(2),
    Corrected: lambda: correct(network(), 2, 0),
    Student: lambda: correct(network(), 2, 0),
    ValueFunction: lambda: ValueFunction(Gaussian(POINTS, Cosine()), 4, 1),
    torch.dtype: lambda: torch.float32,
}
WEIGHTS = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.0, 1.0])
#: By the name of the parameter.
TENSORS: dict[str, Tensor] = {
    "weights": torch.tensor([1.0, 3.0]),
    "means": torch.tensor([[0.0, 1.0], [2.0, 3.0]]),
    "covariances": torch.eye(2).expand(2, 2, 2),
    "b": torch.tensor([1.0, 2.0]),
    "A": torch.eye(2),
    "t": torch.tensor(0.5),
    **dict.fromkeys(("x", "x_0", "x_1", "eps", "samples", "exact", "data"), POINTS),
    **dict.fromkeys(("log_w", "rewards", "log_ratio", "tilt"), WEIGHTS),
}
FUNCTIONS: dict[str, Callable[[], Any]] = {
    "reward": reward,
    "estimator": centred,
    "rule": lambda: constant_ess(0.5),
    "path": lambda: lambda k: paper_mixture(),
    "make": lambda: lambda samples, rewards: centred(),
    "value": lambda: lambda x, t: x.sum(-1),
}
NUMBERS: dict[str, Any] = {
    "d": 2,
    "dimension": 4,
    "width": 4,
    "embedding": 4,
    "purpose": "data",
    "text": "b=0,4",
    "t": 0.7,
    "eta": 1.0,
    "renoise": 0,
    "samples": 24,
}
#: Whole numbers whose defaults are those of a book: lower, so that a call takes milliseconds.
SMALL = ("n", "steps", "J", "samples", "flow_samples", "iterations", "candidates", "projections", "B", "M", "width", "depth")


class Call(NamedTuple):
    """An entry point and its parameters: the annotation and the default of each."""

    function: Callable[..., Any]
    hints: dict[str, Any]
    defaults: dict[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Call:
        found = function.__init__ if function is Network else function  # type: ignore[misc]
        hints = get_type_hints(found, include_extras=True)
        parameters = inspect.signature(function).parameters
        return cls(function, {n: hints[n] for n in parameters}, {n: p.default for n, p in parameters.items()})

    def ordinary(self, **odd: Any) -> dict[str, Any]:
        """Arguments of an ordinary call, but for the odd ones."""
        needed = [n for n, default in self.defaults.items() if default is inspect.Parameter.empty]
        more = [n for n, hint in self.hints.items() if n in SMALL and int in kinds(hint)]
        more += [n for n, hint in self.hints.items() if any(k in OBJECTS for k in kinds(hint))]
        return {n: odd[n] if n in odd else ordinary(n, self.hints[n]) for n in dict.fromkeys((*needed, *more, *odd))}

    def answer(self, **odd: Any) -> list[Tensor]:
        torch.manual_seed(0)
        found = self.function(**self.ordinary(**odd))
        return numbers(next(found) if inspect.isgenerator(found) else found)


def kinds(hint: Any) -> tuple[Any, ...]:
    """What an annotation accepts, without what it says about values."""
    if get_origin(hint) is Annotated:
        return kinds(get_args(hint)[0])
    if hint is Corrected:
        return (Corrected,)
    if get_origin(hint) in (Union, UnionType):
        return tuple(kind for option in get_args(hint) for kind in kinds(option))
    return (hint,)


def ordinary(name: str, hint: Any) -> Any:
    kind = kinds(hint)[0]
    if kind in OBJECTS:
        return OBJECTS[kind]()
    if kind is Tensor:
        return TENSORS[name].clone()
    if get_origin(kind) is abc.Callable:
        return FUNCTIONS.get(name, exact)()
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) is list:
        return STEPS if "Step" in str(kind) else [POINTS.clone() for _ in range(4)]
    return NUMBERS.get(name, {int: 3, bool: False}.get(kind, 0.5))


def numbers(found: Any) -> list[Tensor]:
    """All numbers in an answer, but for clocks."""
    if isinstance(found, Tensor):
        return [found.detach().double()]
    if isinstance(found, nn.Module):
        return [value.double() for value in found.state_dict().values()]
    if dataclasses.is_dataclass(found):
        found = {f.name: getattr(found, f.name) for f in dataclasses.fields(found) if f.name != "seconds"}
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list | tuple):
        return [value for part in found for value in numbers(part)]
    return [torch.tensor(float(found), dtype=torch.float64)] if isinstance(found, int | float) else []


# ---- odd values -----------------------------------------------------------------------------------------------------


class Odd(NamedTuple):
    """A value, and the ordinary one that means the same; none if it is to be refused."""

    value: Any
    same: Any = None


def odd_values(name: str, hint: Any) -> Iterator[Odd]:
    """What is odd for a parameter."""
    options, usual = kinds(hint), ordinary(name, hint)
    kind = options[0]
    if NoneType not in options:
        yield Odd(None)
    if kind is int:
        yield from map(Odd, ("3", 1.5, True, -1, 2**70, math.nan, [3], POINTS, abs))
        yield Odd(np.int64(usual), usual)
    elif kind is float:
        yield from map(Odd, ("1", True, math.nan, math.inf, 1j, [1.0], POINTS))
        yield from (Odd(make(usual), usual) for make in (np.float64, partial(torch.tensor, dtype=torch.float64)))
    elif kind is bool:
        yield from map(Odd, ("no", 2, 0.0))
        yield Odd(np.bool_(usual), usual)
    elif kind is str:
        yield from map(Odd, (3, b"data"))
    elif kind is Tensor:
        yield from map(Odd, ("1", object(), usual.to(torch.complex64), usual.to("meta"), [None], {}))
        yield Odd(usual.numpy(), usual)
        yield Odd(usual.tolist(), usual)
        if name not in ("t", "covariances"):
            yield Odd(usual.long(), usual)
        if name not in ("t", "covariances", "A"):
            yield Odd(usual.numpy()[::-1], usual.flip(0))
        if get_origin(hint) is Annotated:
            yield from map(Odd, (usual * math.nan, torch.full_like(usual, -math.inf), usual[:0], usual.unsqueeze(-1)))
    elif get_origin(kind) is Literal:
        yield from map(Odd, ("nonsense", 0, ["ddpm"]))
    elif kind is torch.dtype:
        yield from map(Odd, ("float32", torch.int64, np.float32))
    elif get_origin(kind) is abc.Callable:
        yield from map(Odd, (3, "reward", Cosine(), Cosine, POINTS))
    elif kind in OBJECTS:
        yield from map(Odd, (20, "cosine", {}, object(), [usual], TrainingConfig() if kind is not TrainingConfig else 1.5))


def rows(function: Callable[..., Any]) -> list[tuple[str, Odd]]:
    hints = Call.of(function).hints
    found = [(name, odd) for name, hint in hints.items() for odd in odd_values(name, hint)]
    of_two = {"mixture", "truth"} & hints.keys() or "GaussianMixture." in function.__qualname__
    narrow = [
        (name, Odd(POINTS[:, :1]))
        for name, hint in hints.items()
        if Tensor in kinds(hint) and name in ("x", "x_0", "samples")
    ]
    return found + (narrow if of_two or "x_1" in hints else [])


PUBLIC = public()
every = pytest.mark.parametrize("name", PUBLIC)


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(one, two, strict=True)
    )


def wrong(call: Call, name: str, odd: Odd, expected: dict[str, list[Tensor]]) -> str:
    """What is wrong with the answer to an odd value; nothing if all is well. Answers that are expected are kept."""
    try:
        found = call.answer(**{name: odd.value})
    except Exception as error:
        said, last = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
        if odd.same is not None:
            return f"refused: {error!r}"
        if not isinstance(error, TypeError | ValueError):
            return f"refused by {type(error).__name__}: {said}"
        if not Path(last).is_relative_to(ROOT):
            return f"raised in {last}: {said}"
        named = rf"\b{name}\b" + (rf"|{re.escape(str(tuple(odd.value.shape)))}" if isinstance(odd.value, Tensor) else "")
        return "" if "\n" not in said and len(said) < 300 and re.search(named, said) else f"says: {said}"
    if odd.same is None:
        return "accepted"
    if (key := f"{name}={odd.same}") not in expected:
        expected[key] = call.answer(**{name: odd.same})
    return "" if same(found, expected[key]) else "another answer"


@every
def test_odd_values(name: str) -> None:
    call, expected = Call.of(PUBLIC[name]), {}
    found = [
        f"{parameter}={str(odd.value)[:40]!r}: {bad}"
        for parameter, odd in rows(call.function)
        if (bad := wrong(call, parameter, odd, expected))
    ]
    assert not found, "\n".join([f"{name} ({len(found)} of {len(rows(call.function))} rows)", *found])


@every
def test_without_autograd(name: str) -> None:
    """Called under no_grad or inference_mode, an entry point gives what it gives otherwise, and none gives NaN."""
    call = Call.of(PUBLIC[name])
    expected = call.answer()
    assert all(bool(torch.isfinite(value).all()) for value in expected)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert same(call.answer(), expected), context


def test_there_are_enough_rows() -> None:
    assert sum(len(rows(function)) for function in PUBLIC.values()) >= 300
