"""One way of checking what a caller hands over: by the annotations.

:func:`checked` looks at the arguments of a function, or at the fields of a configuration. Input with only one possible
meaning is accepted and converted: numbers and arrays of numpy, lists of numbers, integers for samples, a path as text.
Everything else is refused in one sentence that names the argument.

An ``int`` is a whole number of at least 1, or of at least 0 if it is a seed or 0 is its default; a ``float`` is finite; a
``Tensor`` holds real numbers. The types below say more. No check looks into a tensor unless its type says so: that would
make a device wait.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T", bound=Callable[..., Any])


class Rule(NamedTuple):
    """What an annotation asks for besides its type: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:  # what the API page shows
        return self.words


def finite(x: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    return bool(torch.isfinite(x).all())


Natural = Annotated[int, Rule("a whole number of at least 0", lambda v: v >= 0)]
Positive = Annotated[float, Rule("a positive finite number", lambda v: v > 0)]
NotNegative = Annotated[float, Rule("a finite number of at least 0", lambda v: v >= 0)]
Fraction = Annotated[float, Rule("a number from 0 to 1", lambda v: 0 <= v <= 1)]
Between0And1 = Annotated[float, Rule("a number between 0 and 1 (both excluded)", lambda v: 0 < v < 1)]
Below1 = Annotated[float, Rule("a number of at least 0 and less than 1", lambda v: 0 <= v < 1)]
Samples = Annotated[Tensor, Rule("finite numbers of shape (n, d)", lambda x: x.ndim == 2 and x.numel() > 0 and finite(x))]
Values = Annotated[Tensor, Rule("finite numbers of shape (n,)", lambda v: v.ndim == 1 and len(v) > 0 and finite(v))]
LogWeights = Annotated[
    Tensor,
    Rule("log weights of shape (n,), neither NaN nor all -inf", lambda w: w.ndim == 1 and len(w) > 0 and finite(w.max())),
]


def real(value: Any) -> Tensor:
    """A tensor of the numbers in a tensor, an array, a list or a number, in their own precision.

    Raises:
        ValueError: if these are no real numbers.
    """
    if isinstance(value, np.ndarray):
        value = np.array(value)  # strides may be negative, or the array read-only
    try:
        x = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError from None
    if isinstance(value, bool) or x.is_complex() or x.is_meta:
        raise ValueError
    if x.is_inference():
        with torch.inference_mode(False):
            x = x.clone()  # autograd takes no other
    return x


def _floating(value: Any) -> Tensor:
    x = real(value)
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _number(kind: Any, least: int | None, value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:
        value = value.item()  # of numpy, or a tensor
    if isinstance(value, bool) or not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    if least is not None and value < least:
        raise ValueError
    if isinstance(value, int) and value >= 2**63:
        raise OverflowError  # in torch, which says neither which argument nor which number
    return value


class Reader(NamedTuple):
    """What an annotation asks for, in words, and a function that converts a value or raises a ValueError."""

    words: str
    read: Callable[[Any], Any]


def _if(holds: Callable[[Any], bool], read: Callable[[Any], Any] = lambda value: value) -> Callable[[Any], Any]:
    def reading(value: Any) -> Any:
        if holds(value := read(value)):
            return value
        raise ValueError

    return reading


def _first(readers: list[Reader], value: Any) -> Any:
    for reader in readers:
        with suppress(ValueError):
            return reader.read(value)
    raise ValueError


@functools.cache
def _reader(hint: Any, least: int | None = 1) -> Reader:
    """For an annotation; whole numbers are not less than ``least``."""
    kind, options = get_origin(hint) or hint, get_args(hint)
    if kind is Annotated:
        rule = options[1]
        return Reader(rule.words, _if(rule.holds, _reader(options[0], None).read))
    if kind is Literal:
        return Reader(" or ".join(map(repr, options)), _if(lambda v: any(type(v) is type(o) and v == o for o in options)))
    if kind in (Union, UnionType):
        readers = [_reader(o, least) for o in sorted(options, key=lambda o: o is Tensor)]  # a number is a tensor, too
        return Reader(" or ".join(reader.words for reader in readers), functools.partial(_first, readers))
    if kind is int:
        return Reader(f"a whole number of at least {least}", functools.partial(_number, int, least))
    if kind is float:
        return Reader("a finite number", functools.partial(_number, int | float, None))
    if kind is bool:
        return Reader("True or False", lambda v: bool(_if(lambda v: isinstance(v, bool | np.bool_))(v)))
    if kind is Tensor:
        return Reader("real numbers", _floating)
    if kind is Path:
        return Reader("a path", lambda v: Path(_if(lambda v: isinstance(v, str | Path))(v)))
    if kind is list and options:
        each = _reader(options[0], least)
        return Reader(f"a list ({each.words})", lambda v: [each.read(x) for x in _if(lambda v: isinstance(v, list))(v)])
    if kind is torch.dtype:
        return Reader("a floating type", _if(lambda v: isinstance(v, torch.dtype) and v.is_floating_point))
    if kind is NoneType:
        return Reader("None", _if(lambda v: v is None))
    if kind is Callable:
        return Reader("a function", _if(lambda v: callable(v) and not isinstance(v, type)))
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if not name.startswith("_")]
        return Reader(f"an object with {' and '.join(names)}", _if(lambda v: all(hasattr(v, name) for name in names)))
    if isinstance(kind, type) and kind is not Any:
        return Reader(f"a {kind.__name__}", _if(lambda v: isinstance(v, kind)))
    return Reader("anything", lambda value: value)


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        holes = ", not all finite" if isinstance(value, Tensor) and not value.is_meta and not finite(value) else ""
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}{holes}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"an object of type {type(value).__name__}"


def _read(name: str, reader: Reader, value: Any) -> Any:
    try:
        return reader.read(value)
    except ValueError:
        raise ValueError(f"{name} must be {reader.words}, got {_shown(value)}") from None
    except OverflowError:
        raise ValueError(f"{name} must be less than 2**63, got {value}") from None


def _least(name: str, default: Any) -> int:
    return 0 if name == "seed" or default == 0 else 1


@functools.cache
def _arguments(function: Callable[..., Any]) -> dict[str, Reader]:
    hints = get_type_hints(function, include_extras=True)
    found = inspect.signature(function).parameters.items()
    return {name: _reader(hints.get(name, Any), _least(name, p.default)) for name, p in found}


def checked(thing: T) -> T:
    """Check the arguments of a function, or the fields and methods of a class, against the annotations.

    Args:
        thing: annotated. A generator is checked when it is called, not when it is first asked. A dataclass is decorated
            before it becomes one; its fields are converted before its own ``__post_init__``.

    Raises:
        ValueError: on a call of the result, for an argument that does not fit.
    """
    if isinstance(thing, type):
        for name, method in list(vars(thing).items()):
            if inspect.isfunction(method) and (not name.startswith("_") or name == "__call__"):
                setattr(thing, name, checked(method))
        # The type has no such method: the decorator that makes it a dataclass comes later, and calls it.
        thing.__post_init__ = _converted(getattr(thing, "__post_init__", lambda self: None))  # type: ignore[attr-defined]
        return thing

    @functools.wraps(thing)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        readers = _arguments(thing)
        first = [_read(name, reader, value) for (name, reader), value in zip(readers.items(), args, strict=False)]
        others = {name: _read(name, readers[name], v) if name in readers else v for name, v in kwargs.items()}
        return thing(*first, *args[len(first) :], **others)

    return cast(T, wrapper)


def autograd(function: T) -> T:
    """As :func:`checked`, for a function that differentiates: it works under no_grad and inference_mode, too."""
    return checked(torch.inference_mode(False)(function))


@functools.cache
def _fields(kind: Any) -> dict[str, Reader]:
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: _reader(hints[f.name], _least(f.name, f.default)) for f in fields(kind) if f.init}


def _converted(then: Callable[[Any], None]) -> Callable[[Any], None]:
    @torch.inference_mode(False)
    def post_init(self: Any) -> None:
        kind: Any = type(self)
        for name, reader in _fields(kind).items():
            object.__setattr__(self, name, _read(name, reader, getattr(self, name)))
        then(self)

    return post_init
