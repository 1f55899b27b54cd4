"""Panels of a figure one by one: each window shows what it should, and nothing is drawn twice."""

from __future__ import annotations

from typing import Any

import pytest
from inline_svg import with_panels
from matplotlib.figure import Figure

from itlib import figures
from itlib.figures.phone import panels


def drawn(rows: int, columns: int, **options: Any) -> tuple[Figure, Any]:
    """A figure with titles, as it is after it was saved."""
    with figures.house_style() as plt:
        fig, axes = plt.subplots(rows, columns, squeeze=False, figsize=(7.2, 4.0), **options)
        for i, ax in enumerate(axes.flat):
            ax.plot([0, 1], [0, 100 * (i + 1)])
            ax.set_title(f"panel {i}")
        axes[0, 0].set_ylabel("error")
    return fig, axes


def save(fig: Figure) -> str:
    return figures.to_svg(fig, "test", "Lines.")


def points(fig: Figure, ax: Any) -> tuple[float, float, float, float]:
    """Edges of some axes, in points from the top left: x from, x to, y from, y to."""
    s, height = 72 / fig.dpi, 72 * fig.get_figheight()
    return ax.bbox.x0 * s, ax.bbox.x1 * s, height - ax.bbox.y1 * s, height - ax.bbox.y0 * s


def test_each_axes_is_whole_in_one_panel_and_in_no_other() -> None:
    fig, axes = drawn(2, 2)
    save(fig)
    found = panels(fig)
    assert [len(panel) for panel in found] == [1, 1, 1, 1]
    for ax, (window,) in zip(axes.flat, found, strict=True):
        x0, x1, y0, y1 = points(fig, ax)
        assert window.x < x0 and x1 <= window.x + window.width + 0.1  # noqa: PT018
        assert window.y < y0 and y1 < window.y + window.height  # noqa: PT018
        for other in set(axes.flat) - {ax}:
            a, b, c, d = points(fig, other)
            apart = b < window.x or a > window.x + window.width or d < window.y or c > window.y + window.height
            assert apart, "a panel shows a neighbour"


def test_labels_that_a_neighbour_has_are_borrowed() -> None:
    fig, axes = drawn(1, 3, sharey=True)
    save(fig)
    first, *others = panels(fig)
    assert len(first) == 1
    left, _, _, _ = points(fig, axes[0, 0])
    for panel, ax in zip(others, axes[0, 1:], strict=True):
        strip, body = panel
        assert strip.x == first[0].x  # from the axes' label on
        assert strip.x + strip.width == pytest.approx(left, abs=0.2)
        assert (strip.y, strip.height) == (body.y, body.height)  # so that a tick meets its label
        assert body.left == pytest.approx(strip.width, abs=0.1)
        assert body.x == pytest.approx(points(fig, ax)[0], abs=0.1)


def test_a_colour_bar_stays_with_its_picture_and_a_legend_comes_first() -> None:
    with figures.house_style() as plt:
        fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
        fig.colorbar(left.imshow([[0.0, 1.0], [2.0, 3.0]]), ax=left)
        right.plot([0, 1], label="a line")
        fig.legend(loc="outside upper center")
    save(fig)
    legend, picture, line = panels(fig)
    assert legend[0].height < 40 < picture[0].height
    assert picture[0].x + picture[0].width > points(fig, fig.axes[2])[1]  # beyond the bar
    assert len(line) == 1


@pytest.mark.parametrize("kind", ["one", "column", "many", "labelled"])
def test_what_has_no_such_layout(kind: str) -> None:
    rows, columns = {"one": (1, 1), "column": (3, 1), "many": (3, 4), "labelled": (1, 2)}[kind]
    fig, _ = drawn(rows, columns)
    if kind == "labelled":
        fig.supxlabel("of all panels")
    assert "data-panels" not in save(fig)
    assert panels(fig) == []


def test_the_page_holds_the_drawing_once() -> None:
    fig, _ = drawn(1, 2)
    svg = save(fig)
    html = with_panels(svg)
    assert html.count("data-itlib-figure") == 1
    assert html.count('<use href="#test-all"/>') == 2
    assert html.count('id="test-all"') == 1
    assert "data-panels" not in html
    assert len(html) < len(svg) + 1500
