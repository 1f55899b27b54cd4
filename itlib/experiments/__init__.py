"""Problems, parameters and records with types, and one module for each experiment.

:data:`EXPERIMENTS` has them all by name, each imported when it is asked for.

**A new experiment** is a module here with a class of parameters, a function and an ``Experiment``, and one line below::

    @dataclass(frozen=True, kw_only=True)
    class Parameters(experiment.Parameters):
        experiment: ClassVar[str] = "mine"
        N: int = 20

    def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
        ...
        return Record(parameters, {"eps_rmse": error}, seconds=seconds)

    def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
        return {f"N{N:03d}_seed{s}": Parameters(N=N, seed=s) for s in seeds for N in (5, 20)}

    EXPERIMENT = Experiment("mine", Parameters, run, cells)

``python -m itlib.reproduce --grid mine`` then runs its cells, and :func:`itlib.experiments.records.load_records` reads them.

**A new method** of the comparison is an entry of ``METHODS`` in :mod:`itlib.experiments.rivals`, for images in
:mod:`itlib.experiments.digits.methods`; **a new problem** one of ``PROBLEMS`` in :mod:`itlib.experiments.problems`; the
``cells`` of an experiment say which problems it runs on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from itlib.experiments.experiment import Experiment, choose

#: Module and name of each experiment, in the order in which ``make reference`` runs them.
_PLACES = {
    "base": "base:EXPERIMENT",
    "paper": "paper:EXPERIMENT",
    "choices": "paper:CHOICES",
    "tuning": "rivals:TUNING",
    "rivals": "rivals:EXPERIMENT",
    "scaling": "scaling:EXPERIMENT",
    "error_budget": "error_budget:EXPERIMENT",
    "ablation": "ablation:EXPERIMENT",
    "effective_share": "effective_share:EXPERIMENT",
    "untuned": "untuned:EXPERIMENT",
    "digits_base": "digits.base:EXPERIMENT",
    "digits_truth": "digits.truth:EXPERIMENT",
    "digits": "digits.methods:EXPERIMENT",
    "molecules_solubility": "molecules.solubility:EXPERIMENT",
    "molecules_base": "molecules.base:EXPERIMENT",
    "molecules_truth": "molecules.truth:EXPERIMENT",
    "molecules_data": "molecules.truth:DATA",
    "molecules": "molecules.methods:EXPERIMENT",
    "landing": "landing:EXPERIMENT",
}


class _Registry(Mapping[str, Experiment[Any]]):
    """Experiments by name."""

    def __getitem__(self, name: str) -> Experiment[Any]:
        module, _, attribute = _PLACES[choose("experiment", name, _PLACES)].partition(":")
        found: Experiment[Any] = getattr(import_module(f"itlib.experiments.{module}"), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


EXPERIMENTS = _Registry()
