"""What the old batch can run."""

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


def _none(N: Sequence[int]) -> dict[str, dict[str, Any]]:
    return {}


GRIDS = {
    "paper": Grid(TEMPLATE, lambda N: {f"N{n:03d}": {"N": n} for n in N}),
    "choices": Grid(
        TEMPLATE, lambda N: {f"{name}_N{n:03d}": {"N": n, **changes} for name, changes in CHOICES.items() for n in N}
    ),
    "rivals": Grid(RIVAL, _none, over_N=False),
    "tuning": Grid(RIVAL, _none, over_N=False),
    "scaling": Grid(SCALING, _none, over_N=False, needs_base=False),
    "budget": Grid(BUDGET, _none, over_N=False),
    "ablation": Grid(ABLATION, _none, over_N=False, needs_base=False),
    "digits": Grid(DIGITS, _none, over_N=False, needs_base=False),
}

#: Tasks (itlib.experiments.problems) whose base is not the paper's.
OTHER_BASES = ("eight", "nine")
