"""Keep a number and its uncertainty on one line in tables, where columns are narrow: 1.23 ± 0.04 is one thing."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def join(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Make the spaces around each ± of a table unbreakable."""
    for entry in doctree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            if " ± " in text:
                text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("doctree-resolved", join)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
