r"""What the recommended configuration gains, and through what: the grid of runs behind it.

``main`` is what is recommended, on the paper's task for each number of tilts and for steps chosen from the rewards, and on
tasks where the number of tilts matters. Then one change is taken away from it at a time, one is added at a time to the
paper's Algorithm 2, and the budget is left behind to see what bounds the rest. Every run starts from a base of its seed,
trained on the same 30,000 samples: ``skip`` is :func:`~itlib.beyond.preconditioning.skip_network`, ``plain`` the network of Section
4.2, and ``exact`` needs no training.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from itlib.tilting import TiltingConfig, configuration

#: What is taken away from the recommended configuration, with steps chosen from the rewards.
REMOVED: dict[str, dict[str, Any]] = {
    "no-skip": {"base": "plain"},  # the paper's base
    "no-paths": {"step": "implicit", "settle": 0, "B": 128, "E": 3000, "epoch": "minibatch", "lr": 3e-3},
    "no-settling": {"settle": 0},
    "no-decay": {"decay": False},
    "no-rule": {"share": None, "N": 11},  # as many steps, all equal
}
#: What is given to the recommended configuration beyond the budget of the comparison: each chain is seen four times.
MORE: dict[str, dict[str, Any]] = {"four-passes": {"E": 4}, "four-passes-exact": {"E": 4, "base": "exact"}}
_ADAPTER: dict[str, Any] = {"student": "adapter", "lr": 3e-3}
#: What is added to the paper's configuration, at N = 20.
ADDED: dict[str, dict[str, Any]] = {
    "paper": {},
    "skip": {"base": "skip"},
    "analytic": {"variance": "analytic"},
    "implicit": {"step": "implicit"},
    "decay": {"decay": True},
    "adapter": _ADAPTER,
    # needs the adapter and the variance; the same samples and sample-steps a tilt
    "paths": _ADAPTER | {"variance": "analytic", "step": "paths", "J": 100, "B": 16, "E": 1, "epoch": "pass", "lr": 6e-3},
}
HARDER = ("unequal", "one-mode", "quadratic")


def settings(config: str, N: int | None, changes: dict[str, Any]) -> TiltingConfig:
    """A named configuration with knobs of :class:`~itlib.tilting.TiltingConfig` changed; what is no knob is left out."""
    knobs = {field.name for field in fields(TiltingConfig)}
    return replace(configuration(config, N), **{name: value for name, value in changes.items() if name in knobs})


def cells() -> dict[str, dict[str, Any]]:
    """The grid: a cell's name before its seed, and its parameters."""
    found: dict[str, dict[str, Any]] = {}
    for task in ("paper", *HARDER):
        found[f"{task}_main_chosen"] = {"task": task}
        for N in (20, 50, 100, 200) if task == "paper" else (20,):
            found[f"{task}_main_N{N:03d}"] = {"task": task, "N": N}
        found[f"{task}_base_exact"] = {"task": task, "base": "exact"}
        found |= {f"{task}_{name}": {"task": task, "change": name} for name in MORE}
    for task in ("paper", "quadratic"):
        for base in ("wide", "small"):
            found[f"{task}_base_{base}"] = {"task": task, "base": base}
    for base in ("skip", "plain", "exact"):
        found[f"tails_base_{base}"] = {"task": "tails", "base": base}
    for task in ("paper", "one-mode", "quadratic"):
        found |= {f"{task}_{name}": {"task": task, "change": name} for name in REMOVED}
    found = {name: {"config": "recommended", **parameters} for name, parameters in found.items()}
    for task in ("paper", "one-mode"):
        for name in ADDED:
            found[f"{task}_plus_{name}"] = {"config": "paper", "task": task, "N": 20, "change": name}
    return found
