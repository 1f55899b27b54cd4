"""Numbers as they are printed: 3·10⁻⁵ for 3e-05, and no line break in 1.23 ± 0.04, which is one thing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

POWER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)e([+-]?)0*(\d+)(?!\w)")


def printed(text: str) -> Iterator[nodes.Node]:
    """A text in pieces, each power of ten with a raised exponent. A mantissa of 1 is left out."""
    end = 0
    for match in POWER.finditer(text):
        mantissa, sign, exponent = match.groups()
        yield nodes.Text(text[end : match.start()] + ("" if mantissa == "1" else f"{mantissa}·") + "10")
        raised = ("−" if sign == "-" else "") + exponent
        yield nodes.superscript("", raised)
        end = match.end()
    yield nodes.Text(text[end:])


def typeset(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Print the powers of ten of a page, but for its code, and keep the two sides of each ± of its tables together."""
    for text in list(doctree.findall(nodes.Text)):
        parent = text.parent
        if POWER.search(text) and isinstance(parent, nodes.paragraph | nodes.emphasis | nodes.strong | nodes.caption):
            parent.replace(text, list(printed(text)))
    for entry in doctree.findall(nodes.entry):
        for text in list(entry.findall(nodes.Text)):
            if " ± " in text:
                text.parent.replace(text, nodes.Text(text.replace(" ± ", "\u00a0±\u00a0")))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("doctree-resolved", typeset)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
