r"""The paper's figures, and the few drawings that several pages share. They take arrays and Axes, and never compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from itlib.figures.style import COLORS, INK, LINES, MARKERS, SERIES, house_style

Array = NDArray[np.floating[Any]]
Density = tuple[Array, Array, Array]  # xs (W,), ys (H,), log density (H, W)


def samples(
    ax: Axes,
    points: Array,
    *,
    density: Density | None = None,
    color: str = COLORS["learned"],
    title: str | None = None,
    limits: tuple[float, float, float, float] = (-5, 5, -3.5, 5.5),
) -> None:
    """Scatter samples over contours of a density.

    Args:
        ax: where to draw.
        points: samples, shape (S, 2).
        density: grid coordinates (W,), (H,) and log density (H, W); drawn as contours of the density at
            1, 10, 40 and 80 per cent of its maximum.
        color: of the points.
        title: above the axes.
        limits: x from, x to, y from, y to.
    """
    ax.scatter(points[:, 0], points[:, 1], s=5, color=color, alpha=0.45, linewidths=0, rasterized=True)
    if density is not None:
        xs, ys, log_density = density
        levels = float(log_density.max()) + np.log([0.01, 0.1, 0.4, 0.8])
        ax.contour(xs, ys, log_density, levels=levels, colors=INK, linewidths=0.6, linestyles="solid")
    ax.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")
    ax.locator_params(nbins=5)
    if title is not None:
        ax.set_title(title)


def figure_1(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Samples half way, at the end, and of the exact target: one row per N, as in the paper's Figure 1.

    Args:
        rows: one mapping per N with ``N``; samples ``half``, ``final``, ``target``, each (S, 2); and the
            densities ``density_half``, ``density`` for the contours, or None.
    """
    with house_style():
        fig, axes = plt.subplots(
            len(rows), 3, figsize=(7.2, 2.25 * len(rows) + 0.3), sharex=True, sharey=True, squeeze=False
        )
        for i, (row, (left, middle, right)) in enumerate(zip(rows, axes, strict=True)):
            half, full = row.get("density_half"), row.get("density")
            titles = ("$k = N/2$", "$k = N$", "target") if i == 0 else (None, None, None)
            samples(left, row["half"], density=half, title=titles[0])
            samples(middle, row["final"], density=full, title=titles[1])
            samples(right, row["target"], density=full, color=COLORS["target"], title=titles[2])
            left.set_ylabel(f"$N = {row['N']}$")
    return fig


def figure_2(
    curves: Mapping[int, Array],
    bands: Mapping[int, tuple[Array, Array, Array]] | None = None,
    paper: Mapping[int, tuple[Array, Array]] | None = None,
    normalise: bool = True,
) -> Figure:
    """Score error after each tilt, one curve per N, as in the paper's Figure 2.

    Args:
        curves: N to the score RMSE (4.13) after tilts 1..N, shape (N,).
        bands: N to (k/N, low, high), each (M,): the range of reference runs, shaded.
        paper: N to (k/N, RMSE) read off the paper's figure, each (M,), drawn as thin lines.
        normalise: put k/N on the horizontal axis rather than k.
    """
    with house_style():
        fig, ax = plt.subplots(figsize=(7.2, 3.8))
        for i, (n, rmse) in enumerate(sorted(curves.items())):
            color, scale = SERIES[i % len(SERIES)], 1 if normalise else n
            x = np.arange(1, len(rmse) + 1) * (scale / n)
            look: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "linestyle": LINES[i % len(LINES)]}
            ax.plot(x, rmse, color=color, markevery=[-1], label=f"$N = {n}$", linewidth=1.3, **look)
            if bands and n in bands:
                at, low, high = bands[n]
                ax.fill_between(at * scale, low, high, color=color, alpha=0.18, linewidth=0)
            if paper and n in paper:
                ax.plot(paper[n][0] * scale, paper[n][1], color=color, linewidth=0.7, alpha=0.8)
        ax.set(yscale="log", xlabel="$k/N$" if normalise else "tilt $k$", ylabel="score RMSE")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # not a power of ten
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="y", which="both", color=COLORS["band"], alpha=0.25, linewidth=0.5)
        fig.legend(loc="outside upper center", ncols=len(curves))
    return fig


def losses(ax: Axes, train: Array, validation: Array, best_epoch: int) -> None:
    """Training and validation loss per epoch, (E,) each, with the epoch (from 0) whose weights were kept."""
    epochs = np.arange(len(train))
    ax.plot(epochs, train, color=COLORS["band"], linewidth=1, label="training")
    ax.plot(np.arange(len(validation)), validation, color=COLORS["base"], label="validation")
    ax.axvline(best_epoch, color=INK, linewidth=0.7, linestyle=(0, (2, 2)))
    ax.plot([best_epoch], [validation[best_epoch]], "o", color=COLORS["base"], markersize=5, label="kept")
    ax.set(xlabel="epoch", ylabel="loss")
    ax.legend(loc="upper right")


def against_band(ax: Axes, labels: Sequence[str], own: Array, low: Array, median: Array, high: Array) -> None:
    """Own values against the range of reference runs: one line per label, from the top.

    Args:
        ax: where to draw.
        labels: names of the lines, L of them.
        own: this run's values, (L,); a value that is not finite is left out.
        low: lower ends of the reference range, (L,).
        median: reference medians, (L,).
        high: upper ends, (L,).
    """
    y = np.arange(len(labels))
    ax.hlines(y, low, high, color=COLORS["band"], linewidth=7, alpha=0.45, label="reference runs")
    ax.plot(median, y, "|", color=INK, markersize=9, markeredgewidth=1, label="their median")
    ax.plot(own, y, "o", color=COLORS["learned"], markersize=5.5, label="this run")
    ax.set_yticks(y, list(labels))
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=COLORS["band"], alpha=0.25, linewidth=0.5)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.4)


def before_and_after(images: Sequence[Array], values: Sequence[Array], unit: str, columns: int = 12) -> Figure:
    """Images of the base in a row and of the tilted model below, each row with a histogram of what was rewarded.

    Args:
        images: of both, (n, height, width, 3) with values in [0, 1].
        values: of both, (n,).
        unit: of the values.
        columns: number of images in a row.
    """
    with house_style():
        fig, axes = plt.subplots(2, columns + 1, figsize=(7.2, 1.3), width_ratios=[*[1] * columns, 3])
        span = min(map(np.min, values)), max(map(np.max, values))
        rows = zip(axes, images, values, ("base", "learned"), strict=True)
        for row, pictures, numbers, name in rows:
            for ax, picture in zip(row[:columns], pictures, strict=False):
                ax.imshow(picture)
                ax.set(xticks=[], yticks=[])
            row[0].set_ylabel(name)
            row[columns].hist(numbers, bins=20, range=span, color=COLORS[name])
            row[columns].set(yticks=[])
        axes[0, columns].set_xticks([])
        axes[1, columns].set_xlabel(unit)
    return fig
