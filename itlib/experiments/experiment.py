r"""What an experiment is: parameters, a function from them to a record, and the grid of its cells.

.. math:: \mathrm{run}:\ \text{parameters}\ \longmapsto\ \text{record}(\text{parameters},\ \text{metrics},\ \ldots)

The parameters are one frozen object. It is what is asked for and, unchanged, what the record says was run, so a record is
up to date if ``record.parameters == asked`` and the code that it depends on is the same. A knob that is left out (None) and
has a choice that depends on others, such as the profile, is filled in when the object is made.

A run writes nothing. What it leaves beside numbers, weights or samples, is in :attr:`Record.tensors`;
:func:`itlib.experiments.records.save_record` puts them in a safetensors file beside the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from torch import Tensor

ProfileName = Literal["full", "smoke"]
_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a name"}


def choose(what: str, name: str, known: Iterable[str]) -> str:
    """The name, if it is known.

    Raises:
        ValueError: if not, with the ones that are.
    """
    if name not in (choices := list(known)):
        raise ValueError(f"there is no {what} {name!r}: choose from {', '.join(choices)}")
    return name


def _fits(value: object, kind: Any) -> bool:
    if options := get_args(kind):
        return any(
            value == o and type(value) is type(o) if get_origin(kind) is Literal else _fits(value, o) for o in options
        )
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def _words(kind: Any) -> str:
    if options := get_args(kind):
        words = [repr(o) if get_origin(kind) is Literal else _words(o) for o in options if o is not NoneType]
        return " or ".join(words)
    return _KINDS[kind]


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What an experiment is asked for; each experiment extends it.

    Args:
        seed: fixes every random draw.
        profile: "full" is what the book reports; "smoke" runs the same code in seconds, and its figures mean nothing.

    Raises:
        ValueError: for a value of a wrong kind, or a name that does not exist, with the choices.
    """

    #: The experiment that takes them, and that a record of theirs names.
    experiment: ClassVar[str] = ""

    seed: int = 0
    profile: ProfileName = "full"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            value, kind = getattr(self, f.name), hints[f.name]
            if getattr(value, "ndim", None) == 0:  # a number of numpy
                value = value.item()
                object.__setattr__(self, f.name, value)
            if not _fits(value, kind):
                raise ValueError(f"{f.name} is {_words(kind)}, got {value!r}")
            if type(value) is int and (kind is float or float in get_args(kind)):
                object.__setattr__(self, f.name, float(value))
            if type(value) is int and value < 0:
                raise ValueError(f"{f.name} is at least 0, got {value}")

    def _settle(self, **chosen: Any) -> None:
        """Fill in knobs that were left out."""
        for name, value in chosen.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _at_most(self, **limits: int) -> None:
        """Lower what a first look does with less."""
        for name, limit in limits.items():
            if not self.full and (getattr(self, name) or 0) > limit:
                object.__setattr__(self, name, limit)

    @property
    def full(self) -> bool:
        """Whether the figures are meant."""
        return self.profile == "full"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Any:
        """From names and values, such as those of a record or a command line.

        Raises:
            ValueError: for a name that is no parameter, with the ones that are; and as the class itself.
        """
        for name in values:
            choose(f"parameter of {cls.experiment}", name, (f.name for f in fields(cls)))
        return cls(**values)

    def changes(self) -> dict[str, Any]:
        """What tells them from the defaults, in the order of the fields: from this the same object is made again."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        others = type(self)(**{f.name: own[f.name] for f in fields(self) if f.default is not None})
        default = {f.name: f.default if f.default is not None else getattr(others, f.name) for f in fields(self)}
        return {name: value for name, value in own.items() if value != default[name]}

    def but(self, **changes: Any) -> Any:
        """The same with some changes; what was filled in is filled in anew.

        Raises:
            ValueError: as :meth:`of`.
        """
        return self.of(self.changes() | changes)


P = TypeVar("P", bound=Parameters, covariant=True)
Q = TypeVar("Q", bound=Parameters)
#: A figure, or several: the weights of modes, (K,), variances within them, (K, d), or a card of another model by name.
#: None where it could not be had.
Metric = float | None | Sequence[float | None] | Sequence[Sequence[float | None]] | Mapping[str, float | None]


@dataclass(frozen=True)
class Record(Generic[P]):
    """What one run leaves.

    Args:
        parameters: the ones that were asked for.
        metrics: figures by name.
        trace: a figure for each tilt (the score RMSE (4.13)) or epoch (the validation loss).
        curve: columns of equal length: a row for each look at the model on its way, or as the experiment says.
        samples: a few, for pictures.
        seconds: processor seconds by activity.
        failure: why it ended early, or None.
        provenance: commit, content, versions, platform and processor; filled in when the record is written.
        tensors: what is kept beside the record and is not part of it: weights, or samples in full.
    """

    parameters: P
    metrics: Mapping[str, Metric]
    trace: Sequence[float] = ()
    curve: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    samples: Sequence[Sequence[float]] = ()
    seconds: Mapping[str, float] = field(default_factory=lambda: {"sampling": 0.0, "training": 0.0})
    failure: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def experiment(self) -> str:
        """What ran."""
        return self.parameters.experiment

    def row(self) -> dict[str, Any]:
        """Parameters and metrics, as a row of a table."""
        return asdict(self.parameters) | dict(self.metrics)

    def __getitem__(self, metric: str) -> Any:
        """A metric by name."""
        return self.metrics[metric]


@dataclass(frozen=True)
class Experiment(Generic[Q]):
    """An experiment with a grid of cells.

    Args:
        name: of the grid; two grids may run the same experiment, and share ``parameters`` and ``run``.
        parameters: their class.
        run: from parameters and a folder to what is found. The folder holds the records of :attr:`after`, and beside them
            what those left; it is read only.
        cells: from seeds to {stem of the record: parameters}. A stem is a name and says nothing: read the parameters.
        after: the cells that have to be finished first, {stem: parameters}; their experiment is ``parameters.experiment``.
        over_N: the same cells for other numbers of tilts, if they can be asked for: (seeds, N) to cells.
        title: what a page of this cell adds to its heading, and a progress bar shows.
        work: how long a cell takes, in tilts; only progress and the order of the cells use it.
    """

    name: str
    parameters: type[Q]
    run: Callable[[Q, Path], Record[Q]]
    cells: Callable[[Sequence[int]], dict[str, Q]]
    after: Callable[[Q], Mapping[str, Parameters]] = lambda parameters: {}
    over_N: Callable[[Sequence[int], Sequence[int]], dict[str, Q]] | None = None
    title: Callable[[Q], str] = lambda parameters: f"seed {parameters.seed}"
    work: Callable[[Q], int] = lambda parameters: 20
