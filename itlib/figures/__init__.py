"""Figures: how they look, how they reach a page. The only room that imports matplotlib and IPython.

::

    from itlib import figures

    with figures.house_style() as plt:
        fig, ax = plt.subplots()
        ax.plot(x, y, color=figures.COLORS["learned"])
    figures.show(fig, "learned-curve", "A curve that rises.")
"""

from itlib.figures.explorers import as_model, explorer, explorer_html, sheet
from itlib.figures.paper import against_band, before_and_after, figure_1, figure_2, losses, samples
from itlib.figures.style import COLORS, INK, LINES, MARKERS, SERIES, STYLE, house_style
from itlib.figures.svg import bundle, lighter, show, show_drawing, to_svg
from itlib.figures.text import check, glue, scientific, settings, table

__all__ = [
    "COLORS",
    "INK",
    "LINES",
    "MARKERS",
    "SERIES",
    "STYLE",
    "against_band",
    "as_model",
    "before_and_after",
    "bundle",
    "check",
    "explorer",
    "explorer_html",
    "figure_1",
    "figure_2",
    "glue",
    "house_style",
    "lighter",
    "losses",
    "samples",
    "scientific",
    "settings",
    "sheet",
    "show",
    "show_drawing",
    "table",
    "to_svg",
]
