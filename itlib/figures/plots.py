r"""Figures: the only module that imports matplotlib.

Plot functions take arrays and Axes, and never compute. A colour means the same thing everywhere
(:data:`COLORS`): the base model, the learned model, the exact target, the paper's printed values. The first three hues
are Okabe and Ito's. The others were chosen to stay apart from them, and from one another, for readers who miss one kind
of cone, and to have a contrast of 3 to 1 on white and on black. That leaves little room in lightness: in grey, markers
(:data:`MARKERS`) and line styles (:data:`LINES`) tell curves apart.

:func:`show` puts a figure on a page. Its ink is drawn in one odd colour, which becomes ``currentColor``, so
that a figure follows the page into dark mode; everything else about the file is fixed, so that the same
data give the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image  # matplotlib needs it too

from itlib.gaussian_mixture import GaussianMixture
from itlib.rewards import QuadraticReward

Array = NDArray[np.floating[Any]]
Density = tuple[Array, Array, Array]  # xs (W,), ys (H,), log density (H, W)

INK = "#010203"  # text and axes; replaced by currentColor
COLORS = {
    "base": "#0072B2",
    "learned": "#D55E00",
    "target": "#009E73",
    "paper": "#B57FB0",
    "band": "#8A8F98",
}
SERIES = (COLORS["base"], COLORS["target"], COLORS["learned"], COLORS["paper"], "#8C5B33", "#6B6874")
MARKERS = "os^Dvp"  # colour is never the only sign
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)))

STYLE: Any = {
    "font.family": "STIXGeneral",  # shipped with matplotlib: the same on every machine
    "mathtext.fontset": "stix",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.rcsetup.cycler(color=SERIES),
    "lines.linewidth": 1.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 160,  # of what is rasterised inside the SVG
    "svg.fonttype": "path",
    "svg.hashsalt": "itlib",
}
STYLE |= {f"{part}.facecolor": "none" for part in ("figure", "axes", "savefig")}
STYLE |= {f"{tick}.labelsize": 9.5 for tick in ("xtick", "ytick")}
STYLE |= {f"{tick}.{kind}.width": 0.5 for tick in ("xtick", "ytick") for kind in ("major", "minor")}
STYLE |= {f"axes.{part}color": INK for part in ("edge", "label", "title")}
STYLE |= {f"{part}.color": INK for part in ("text", "xtick", "ytick")}


@contextmanager
def house_style() -> Iterator[Any]:
    """Draw in the look of the book: ``with house_style() as plt:`` gives pyplot, and restores its settings after."""
    with mpl.rc_context(STYLE):
        yield plt


def svg(fig: Figure, name: str, alt: str) -> str:
    """One figure as SVG source, the same bytes for the same data.

    Args:
        fig: the figure.
        name: unique on its page; prefixes every id, so that figures on one page do not share ids.
        alt: what the picture says, for readers who cannot see it.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"a figure's name is lower case letters, digits and hyphens, not {name!r}")
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    source = buffer.getvalue()
    source = source[source.index("<svg") :].replace(INK, "currentColor").replace(INK.lower(), "currentColor")
    source = re.sub(r"<metadata>.*?</metadata>\s*", "", source, flags=re.DOTALL)
    # Matplotlib's rule for * would reach every other drawing of a page; on the root it is inherited by this one.
    source = re.sub(r"<style[^>]*>\s*\*\{stroke-linejoin: round; stroke-linecap: butt\}\s*</style>", "", source)
    source = re.sub(r'\bid="', f'id="{name}-', source)
    source = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", source)
    source, label = lighter(source), escape(alt, quote=True)
    return source.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" data-itlib-figure="{name}" stroke-linejoin="round" ', 1
    )


def lighter(source: str) -> str:
    """The same drawing in fewer bytes, to the eye: a tenth of a point is less than a pixel.

    Lines keep the vertices that matter, pictures inside 64 colours, elements the names that something refers to.
    """

    def line(match: re.Match[str]) -> str:
        parts = []
        for part in re.findall(r"M[^M]*", match[1]):
            points = np.array(re.findall(r"-?[\d.]+(?:e-?\d+)?", part), dtype=float).reshape(-1, 2)
            ends = " L ".join(f"{x:.1f} {y:.1f}" for x, y in points[_corners(points, 0.1)]).replace(".0", "")
            parts.append(f"M {ends}{' z' if 'z' in part else ''}")
        return f'd="{" ".join(parts)}"'

    def picture(match: re.Match[str]) -> str:
        small = io.BytesIO()
        with Image.open(io.BytesIO(base64.b64decode(match[1]))) as image:
            image.quantize(64).save(small, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(small.getvalue()).decode()}"

    source = re.sub(r'\bd="(M[^"CQ]*)"', line, source)  # straight lines only: letters are curves
    source = re.sub(r"data:image/png;base64,([^\"]*)", picture, source)
    used = set(re.findall(r"#([\w.-]+)", source))
    source = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", source)
    return re.sub(r">\s+<", "><", source)


def _corners(points: Array, tolerance: float) -> NDArray[np.bool_]:
    """Which vertices of a line, (n, 2), to keep so that it moves by less than the tolerance (Douglas and Peucker)."""
    keep, stack = np.zeros(len(points), dtype=bool), [(0, len(points) - 1)]
    keep[[0, -1]] = True
    while stack:
        first, last = stack.pop()
        chord, inner = points[last] - points[first], points[first + 1 : last] - points[first]
        length = float(np.hypot(*chord))
        far = np.abs(chord[0] * inner[:, 1] - chord[1] * inner[:, 0]) / length if length else np.hypot(*inner.T)
        if len(far) and far.max() > tolerance:
            middle = first + 1 + int(far.argmax())
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return keep


def bundle(fig: Figure, name: str, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What :func:`show` displays: a figure's data by MIME type, and its metadata. Closes the figure."""
    source, picture = svg(fig, name, alt), io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(picture, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(fig)
    png = base64.b64encode(picture.getvalue()).decode()
    return {"image/svg+xml": source, "image/png": png, "text/plain": f"[Figure: {alt}]"}, {
        "image/svg+xml": {"needs_background": "light"},
        "scrapbook": {"name": name, "mime_prefix": ""},  # what glue() leaves, without its import
    }


def show(fig: Figure, name: str, alt: str) -> None:
    """Display a figure in the notebook and offer it to the page under a name; close it.

    In JupyterLab and Colab the figure appears under the cell (a PNG stands in where SVG is not trusted).
    In the book the author pastes it, in a Markdown cell below, and the uncaptioned copy disappears::

        ```{glue:figure} score-error
        :name: fig-score-error

        Score error after each tilt, $N$ from 20 to 200. Compare {eq}`eq-4-13`.
        ```

    which numbers it; ``{numref}`fig-score-error``` refers to it from any page (``:name:`` is unique in the
    book, ``name`` on the page). The first paragraph is the caption, and takes maths, references and
    citations; further paragraphs become a legend. Tag the code cell ``remove-input`` or ``hide-input`` to
    keep its code out of the way: the book folds it under the caption.

    Args:
        fig: the figure, drawn inside :func:`house_style`.
        name: lower case letters, digits and hyphens, e.g. ``"score-error"``.
        alt: what the picture says, in one or two sentences without markup.
    """
    from IPython.display import display  # a reader without Jupyter can still draw

    data, metadata = bundle(fig, name, alt)
    display(data, raw=True, metadata=metadata)


def as_model(value: GaussianMixture | QuadraticReward) -> Any:
    """A mixture or a reward of the plane as the scripts of the book take it: lists and numbers."""
    if isinstance(value, QuadraticReward):
        (xx, xy), (_, yy) = value.A.tolist()
        return {"A": [xx, xy, yy], "b": value.b.tolist(), "c": float(value.c)}
    parts = zip(value.weights.tolist(), value.means.tolist(), value.covariances.tolist(), strict=True)
    return [{"weight": w, "mean": m, "cov": [xx, xy, yy]} for w, m, ((xx, xy), (_, yy)) in parts]


def explorer_html(name: str, model: Mapping[str, Any], still: str) -> str:
    """Where an explorer goes, with what it shows: hidden until its script has filled it. See :func:`explorer`."""
    text = escape(json.dumps(model, separators=(",", ":"), allow_nan=False), quote=True)
    return f'<div class="explorer" data-explorer="{name}" data-figure="{still}" data-model="{text}" hidden></div>'


def explorer(name: str, model: Mapping[str, Any], still: str) -> None:
    """Offer the page a picture that its reader can move, in place of a still one.

    On a page of the book the script ``book/_static/explorers/NAME.js`` takes the place of the captioned figure. Without
    scripts, on paper and in JupyterLab the figure stays.

    Args:
        name: of the script.
        model: what it shows: numbers, strings, lists and dictionaries; mixtures and rewards by :func:`as_model`.
        still: name of the figure, as given to :func:`show`.
    """
    from IPython.display import HTML, display

    display(HTML(explorer_html(name, model, still)))


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
