"""What the batch can run: named grids, each a template notebook and the parameters of its cells.

``paper`` is the grid of Section 4.2 and makes pages; ``choices`` varies what the paper leaves open; ``rivals`` and
``tuning`` belong to the comparison (:mod:`itlib.experiments.comparison`), ``scaling`` to :mod:`itlib.experiments.scaling` and ``budget``
to :mod:`itlib.experiments.error_budget`; ``ablation`` (:mod:`itlib.experiments.ablation`) is what is recommended, with one change at a time; ``digits``
belongs to :mod:`itlib.experiments.digits.comparison`.
:mod:`itlib.reproduce` runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

#: Stems of the notebooks that are run with parameters: the experiment, the base that it starts from, one rival, one run of
#: how it scales, one with exact ingredients, one of what is recommended, one on images.
TEMPLATE, BASE, RIVAL, SCALING, BUDGET = "s4_2_experiment", "s2_1_base_model", "rivals_run", "scaling_run", "budget_run"
ABLATION, DIGITS = "ablation_run", "digits_run"
#: The notebook behind a record, by what the record says that it is.
NOTEBOOK_OF = {
    "base": BASE,
    "tilting": TEMPLATE,
    "rival": RIVAL,
    "scaling": SCALING,
    "budget": BUDGET,
    "ablation": ABLATION,
    "digits": DIGITS,
}
#: What Section 4.2 leaves open; each is varied alone, beside the paper grid, which holds the default of all.
CHOICES: dict[str, dict[str, Any]] = {
    "lr1e-5": {"lr": 1e-5},
    "lr3e-5": {"lr": 3e-5},
    "lr3e-4": {"lr": 3e-4},
    "lr1e-3": {"lr": 1e-3},
    "sgd1e-2": {"optimizer": "sgd", "lr": 1e-2},
    "sgd1e-1": {"optimizer": "sgd", "lr": 1e-1},
    "pass": {"epoch": "pass"},
}


def batched(cells: dict[str, Any], shown: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Typed parameters as the batch takes them."""
    words, found = {"problem": "task", "method": "config"}, {}
    for stem, parameters in cells.items():
        values = {name: getattr(parameters, name) for name in shown} | parameters.changes()
        found[stem.removesuffix("_seed0")] = {words.get(k, k): v for k, v in values.items()}
    return found


@dataclass(frozen=True)
class Grid:
    """A named grid: cells of one template.

    Args:
        template: stem of its notebook.
        variants: from the numbers of tilts asked for to {a cell's name before its seed: the parameters that it sets}.
        over_N: whether the numbers of tilts can be asked for.
        needs_base: whether a trained base is needed first.
    """

    template: str
    variants: Callable[[Sequence[int]], dict[str, dict[str, Any]]]
    over_N: bool = True
    needs_base: bool = True


def _rivals(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.comparison import cells  # here, so that the paper's batch starts without torch

    return cells()


def _tuning(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.comparison import tuning_cells

    return tuning_cells()


def _scaling(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.scaling import cells

    return cells()


def _budget(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.error_budget import cells

    return cells()


def _ablation(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.ablation import cells

    return cells()


def _digits(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    from itlib.experiments.digits.comparison import cells

    return cells()


GRIDS = {
    "paper": Grid(TEMPLATE, lambda N: {f"N{n:03d}": {"N": n} for n in N}),
    "choices": Grid(
        TEMPLATE, lambda N: {f"{name}_N{n:03d}": {"N": n, **changes} for name, changes in CHOICES.items() for n in N}
    ),
    "rivals": Grid(RIVAL, _rivals, over_N=False),
    "tuning": Grid(RIVAL, _tuning, over_N=False),
    "scaling": Grid(SCALING, _scaling, over_N=False, needs_base=False),
    "budget": Grid(BUDGET, _budget, over_N=False),
    "ablation": Grid(ABLATION, _ablation, over_N=False, needs_base=False),
    "digits": Grid(DIGITS, _digits, over_N=False, needs_base=False),
}

#: Tasks (itlib.experiments.problems) whose base is not the paper's.
OTHER_BASES = ("eight", "nine")
