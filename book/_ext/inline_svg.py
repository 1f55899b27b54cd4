"""Put vector figures into the page itself, so that they take its colours.

A figure drawn by ``itlib.plots`` uses ``currentColor`` for its ink. As a separate image it could not see
the page's light or dark text colour; inlined it does. A notebook shows a figure where it is computed
and pastes it with a caption (``{glue:figure}``); the book keeps the captioned copy only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

MARK = "data-itlib-figure="  # written by itlib.plots


def strip_prolog(svg: str) -> str:
    """Drop what comes before ``<svg`` (XML declaration, doctype): it has no place inside HTML."""
    return svg[svg.index("<svg") :].strip()


class InlineFigures(SphinxPostTransform):
    """Replace images of our own figures by their source, once per page."""

    default_priority = 6  # after myst-nb has chosen one form of every output (4, 5)
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Transform one page."""
        images = [i for i in self.document.findall(nodes.image) if i["uri"].endswith(".svg")]
        captioned = {i["uri"] for i in images if _inside(i, nodes.figure)}
        for image in images:
            path = Path(self.app.srcdir, image["uri"])
            if not path.is_file() or MARK not in (svg := path.read_text("utf-8")):
                continue
            if image["uri"] in captioned and not _inside(image, nodes.figure):
                _remove_with_empty_parents(image)
            else:
                html = f'<div class="figure-svg">{strip_prolog(svg)}</div>'
                image.replace_self(nodes.raw("", html, format="html"))


def _inside(node: nodes.Node, kind: type[nodes.Element]) -> bool:
    while (parent := node.parent) is not None:
        if isinstance(parent, kind):
            return True
        node = parent
    return False


def _remove_with_empty_parents(node: nodes.Element) -> None:
    parent = node.parent
    parent.remove(node)
    if isinstance(parent, nodes.container) and not parent.children:
        _remove_with_empty_parents(parent)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_post_transform(InlineFigures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
