r"""A second layout of a figure for narrow screens: its panels one by one, each at a size at which it can be read.

Nothing is drawn twice. A panel is a window on the one drawing (``<use>`` with a view box of its own), and axes that share
their tick labels with a neighbour borrow the strip of labels from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

#: More panels than this are a table of pictures, to be seen side by side.
LARGEST = 8
#: Pixels for a point: text of 11 points has 12.6 pixels.
SCALE = 1.15
#: What is lower than this, in points, is a legend, which has a row of its own.
LEGEND = 60.0


class Window(NamedTuple):
    """A rectangle of the drawing, and where its corner goes in the panel, all in points from the top left."""

    x: float
    y: float
    width: float
    height: float
    left: float = 0.0
    top: float = 0.0


def panels(fig: Figure) -> list[list[Window]]:
    """The windows that make up each panel of a figure that has been drawn, in reading order.

    Args:
        fig: the figure.

    Returns:
        One list a panel. No panels if there is one alone, if all stand in one column or are too many, or if something
        belongs to the figure as a whole other than a legend.
    """
    axes = [ax for ax in fig.axes if ax.get_visible()]
    whole = (fig.texts, fig.patches, fig.lines, fig.artists, fig.images, fig.subfigs)
    if any(whole) or len({round(ax.bbox.x0) for ax in axes}) < 2:
        return []
    tight = {ax: ax.get_tightbbox() for ax in axes}
    groups: list[list[Axes]] = []
    for ax in axes:
        near = [group for group in groups if any(_belong(ax, other, tight) for other in group)]
        groups = [group for group in groups if group not in near] + [[ax, *(a for group in near for a in group)]]
    if not 2 <= len(groups) <= LARGEST:
        return []
    groups.sort(key=lambda group: (-round(max(ax.bbox.y1 for ax in group)), min(ax.bbox.x0 for ax in group)))
    found = [list(_windows(fig, group, tight)) for group in groups]
    for legend in fig.legends:
        box = legend.get_window_extent()
        place = 0 if box.y0 > max(ax.bbox.y1 for ax in axes) else len(found)
        found.insert(place, [_window(fig, box)])
    return found


def _belong(one: Axes, other: Axes, tight: dict[Axes, Any]) -> bool:
    """Whether two axes overlap, or one is the colour bar of the other."""
    bars = [getattr(ax, "_colorbar", None) for ax in (one, other)]
    if any(bar is not None and bar.mappable.axes in (one, other) for bar in bars):
        return True
    shared = Bbox.intersection(tight[one], tight[other])
    return shared is not None and min(shared.width, shared.height) > 2.0


def _windows(fig: Figure, group: list[Axes], tight: dict[Axes, Any]) -> Iterator[Window]:
    """A panel's windows: itself, and tick labels of a neighbour at its left and below."""
    body = Bbox.union([tight[ax] for ax in group])
    left, below = _lender(group, "y", "labelleft"), _lender(group, "x", "labelbottom")
    own = Bbox.union([ax.bbox for ax in group])
    # Where a neighbour lends its labels, ticks of its own give way.
    body = Bbox.from_extents(own.x0 if left else body.x0, own.y0 if below else body.y0, body.x1, body.y1)
    shift = 0.0
    if left is not None:
        strip = Bbox.from_extents(tight[left].x0, body.y0, left.bbox.x0, body.y1)
        yield _window(fig, strip)
        shift = strip.width * 72 / fig.dpi
    window = _window(fig, body)
    yield window._replace(left=shift)
    if below is not None:
        strip = Bbox.from_extents(body.x0, tight[below].y0, body.x1, below.bbox.y0)
        yield _window(fig, strip)._replace(left=shift, top=window.height)


def _lender(group: list[Axes], axis: str, label: str) -> Axes | None:
    """The axes in line with a panel that carry its tick labels; None if it has its own, or shares with nobody."""
    main = max(group, key=lambda ax: ax.bbox.width * ax.bbox.height)
    if not main.axison or getattr(main, f"{axis}axis").get_tick_params()[label]:
        return None
    siblings: list[Axes] = getattr(main, f"get_shared_{axis}_axes")().get_siblings(main)
    ends = ("y0", "y1") if axis == "y" else ("x0", "x1")
    for other in siblings:
        aligned = all(abs(getattr(other.bbox, end) - getattr(main.bbox, end)) < 1.0 for end in ends)
        if aligned and getattr(other, f"{axis}axis").get_tick_params()[label]:
            return other
    return None


def _window(fig: Figure, box: Any) -> Window:
    scale, height = 72 / fig.dpi, 72 * fig.get_figheight()
    edges = box.x0 * scale, height - box.y1 * scale, box.width * scale, box.height * scale
    return Window(*(round(edge, 1) for edge in edges))


def layout(windows: list[list[Window]], name: str) -> str:
    """HTML of the panels of the drawing whose content is the group with the id ``name-all``."""
    parts = []
    for panel in windows:
        width = max(w.left + w.width for w in panel)
        height = max(w.top + w.height for w in panel)
        inner = "".join(
            f'<svg x="{w.left:g}" y="{w.top:g}" width="{w.width:g}" height="{w.height:g}" '
            f'viewBox="{w.x:g} {w.y:g} {w.width:g} {w.height:g}"><use href="#{name}-all"/></svg>'
            for w in panel
        )
        row = ' class="row"' if height < LEGEND else ""
        style = f"--row: {SCALE * width:.0f}px; width: var(--row)"
        parts.append(f'<svg{row} viewBox="0 0 {width:g} {height:g}" style="{style}">{inner}</svg>')
    return f'<div class="figure-panels" aria-hidden="true">{"".join(parts)}</div>'
