r"""What is made of measured times: spreads, exponents, the comparison with a committed record, and a model of a cluster.

Nothing here measures, so all of it can be tested.

**Growth.** A cost :math:`y \approx c\,x^p` is a line in logarithms, and :math:`p` its slope, by least squares, with the
standard error of a slope.

**A cluster.** The batch queues cells as soon as what they wait for is there, the longest of them first, and a free worker
takes the next. On :math:`W` workers of equal speed, with a start-up :math:`s` and a cost :math:`c` of each cell beside its
work, this takes

.. math:: T(W) = s + \text{the makespan of that rule},\qquad
          T(W) \ge s + \max\Big(\tfrac1W\sum_i (w_i+c),\ \text{longest chain}\Big).
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: A ratio that is worse than the committed one by more than this is reported.
TOLERANCE = 0.2


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def ratio(
    above: Sequence[float], below: Sequence[float], better: str = "high", target: float | None = None
) -> dict[str, Any]:
    """A ratio of two things that were measured in turns, pair by pair.

    Args:
        above: its numerators, one for each turn.
        below: its denominators.
        better: whether "high" or "low" is better.
        target: what it should reach, or None.
    """
    return judged([a / b for a, b in zip(above, below, strict=True)], better, target)


def judged(values: Sequence[float], better: str = "high", target: float | None = None) -> dict[str, Any]:
    """Ratios that were computed already, as :func:`ratio` gives them."""
    assert better in ("high", "low"), better
    return spread(values) | {"better": better} | ({} if target is None else {"target": target})


def met(found: Mapping[str, Any]) -> bool:
    """Whether the median reaches the target; true if there is none."""
    target = found.get("target")
    if target is None:
        return True
    return bool(found["median"] >= target if found["better"] == "high" else found["median"] <= target)


def worse_by(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """By which factor less one a ratio got worse: 0.25 is by 25 %, below zero is better."""
    before, after = old["median"], new["median"]
    return before / after - 1.0 if old["better"] == "high" else after / before - 1.0


def regressions(committed: Mapping[str, Any], found: Mapping[str, Any], tolerance: float = TOLERANCE) -> list[str]:
    """A sentence for each ratio of a record that got worse by more than the tolerance, or is gone.

    Args:
        committed: a record, {"parts": {part: {"ratios": {name: ratio}}}}.
        found: another; what it did not measure is not compared.
    """
    sentences = []
    for part, now in found["parts"].items():
        before = committed["parts"].get(part, {"ratios": {}})
        for name, old in before["ratios"].items():
            if name not in now["ratios"]:
                sentences.append(f"{part}: '{name}' is no longer measured")
                continue
            new = now["ratios"][name]
            if (worse := worse_by(old, new)) > tolerance:
                sentences.append(
                    f"{part}: '{name}' is worse by {worse:.0%}: "
                    f"{new['median']:.3g} ({new['low']:.3g} to {new['high']:.3g}), "
                    f"committed {old['median']:.3g} ({old['low']:.3g} to {old['high']:.3g})"
                )
    return sentences


def exponent(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The power p in y = c x^p, fitted in logarithms, and its standard error.

    Raises:
        ValueError: for fewer than three points, which leave no error to estimate.
    """
    if len(x) < 3:
        raise ValueError(f"an exponent with an error needs three points, got {len(x)}")
    u, v = [math.log(a) for a in x], [math.log(b) for b in y]
    mean_u, mean_v = statistics.fmean(u), statistics.fmean(v)
    square = sum((a - mean_u) ** 2 for a in u)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / square
    left = [b - mean_v - slope * (a - mean_u) for a, b in zip(u, v, strict=True)]
    return {"exponent": slope, "error": math.sqrt(sum(e * e for e in left) / (len(x) - 2) / square)}


def makespan(
    cells: Mapping[str, tuple[float, str | None]], workers: int, *, each: float = 0.0, startup: float = 0.0
) -> float:
    """Seconds that a batch takes on a number of equal workers.

    Args:
        cells: name to (seconds of work, the name of the cell that has to come first or None).
        workers: how many.
        each: seconds that every cell costs beside its work.
        startup: seconds before the first cell.
    """
    waiting, queue, done = dict(cells), list[str](), set[str | None]((None,))
    running: list[tuple[float, str]] = []
    now = startup
    while True:
        ready = [name for name, (_, first) in waiting.items() if first in done]
        queue += sorted(ready, key=lambda name: -cells[name][0])
        for name in ready:
            del waiting[name]
        while queue and len(running) < workers:
            name = queue.pop(0)
            heapq.heappush(running, (now + each + cells[name][0], name))
        if not running:
            return now
        now, name = heapq.heappop(running)
        done.add(name)


def batch(seeds: int, tilts: Sequence[int], per_tilt: float, base: float) -> dict[str, tuple[float, str | None]]:
    """The cells of the paper's grid for some seeds, as :func:`makespan` wants them."""
    cells: dict[str, tuple[float, str | None]] = {}
    for seed in range(seeds):
        cells[f"base_seed{seed}"] = (base, None)
        cells |= {f"N{N:03d}_seed{seed}": (N * per_tilt, f"base_seed{seed}") for N in tilts}
    return cells
