r"""The look of every figure: colours, markers, lines, and matplotlib's settings.

A colour means the same thing everywhere (:data:`COLORS`): the base model, the learned model, the exact target, the
paper's printed values. The first three hues are Okabe and Ito's. The others were chosen to stay apart from them, and from
one another, for readers who miss one kind of cone, and to have a contrast of 3 to 1 on white and on black. That leaves
little room in lightness: in grey, markers (:data:`MARKERS`) and line styles (:data:`LINES`) tell curves apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

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
