r"""Figures as SVG, and their way onto a page.

:func:`show` puts a figure on a page. Its ink is drawn in one odd colour, which becomes ``currentColor``, so that a figure
follows the page into dark mode; everything else about the file is fixed, so that the same data give the same bytes.
"""

from __future__ import annotations

import base64
import io
import json
import re
from html import escape
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image  # matplotlib needs it too

from itlib.figures.phone import panels
from itlib.figures.style import INK, STYLE


def to_svg(fig: Figure, name: str, alt: str) -> str:
    """One figure as SVG source, the same bytes for the same data.

    Args:
        fig: the figure.
        name: unique on its page; prefixes every id, so that figures on one page do not share ids.
        alt: what the picture says, for readers who cannot see it.

    Returns:
        The drawing. Its attribute ``data-panels`` says how to lay it out on a narrow screen (:mod:`itlib.figures.phone`).
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
    source, label, windows = lighter(source), escape(alt, quote=True), panels(fig)
    more = ""
    if windows:
        head, _, rest = source.partition(">")
        source = f'{head}><g id="{name}-all">{rest.removesuffix("</svg>")}</g></svg>'
        more = f'data-panels="{escape(json.dumps(windows, separators=(",", ":")), quote=True)}" '
    return source.replace(
        "<svg ", f'<svg role="img" aria-label="{label}" data-itlib-figure="{name}" {more}stroke-linejoin="round" ', 1
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


def _corners(points: NDArray[np.floating[Any]], tolerance: float) -> NDArray[np.bool_]:
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
    source, picture = to_svg(fig, name, alt), io.BytesIO()
    with mpl.rc_context(STYLE):
        fig.savefig(picture, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    plt.close(fig)
    png = base64.b64encode(picture.getvalue()).decode()
    return {"image/svg+xml": source, "image/png": png, "text/plain": f"[Figure: {alt}]"}, _metadata(name)


def show_drawing(source: str, png: bytes, name: str, alt: str) -> None:
    """Display a drawing that another library made, as :func:`show` does with a figure.

    Args:
        source: SVG, with the same name and description in it as :func:`to_svg` puts there.
        png: the same as a picture.
        name: lower case letters, digits and hyphens.
        alt: what the drawing says.
    """
    from IPython.display import display

    data = {"image/svg+xml": source, "image/png": base64.b64encode(png).decode(), "text/plain": f"[Figure: {alt}]"}
    display(data, raw=True, metadata=_metadata(name))


def _metadata(name: str) -> dict[str, Any]:
    return {
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
