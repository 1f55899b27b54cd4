r"""Show equations under the numbers that the paper gives them.

An author writes ``\tag{2.1}`` inside a display and, where it is to be referenced, a label after it.
Sphinx would number the equation itself, so before the page is stored the tag is taken out of the TeX
and put where Sphinx looks for numbers: into the node (shown beside the equation) and into the math
domain (shown by ``{eq}``, from any page). Labelled equations without a tag are the book's own; they count from 1 on every
page. Needs ``math_numfig = False``.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

TAG = re.compile(r"\s*\\tag\*?\{([^{}]*)\}")


def split_tag(tex: str) -> tuple[str, str | None]:
    r"""Take the number out of a display: ``r"a = b \tag{2.1}"`` gives ``("a = b", "2.1")``.

    Raises:
        ValueError: the display has more than one tag.
    """
    numbers = TAG.findall(tex)
    if len(numbers) > 1:
        raise ValueError(f"an equation has one number, found {', '.join(numbers)}")
    return TAG.sub("", tex), (numbers[0].strip() if numbers else None)


def number_as_tagged(app: Sphinx, doctree: nodes.document) -> None:
    """Renumber the equations of one page."""
    equations: dict[str, tuple[str, Any]] = app.env.get_domain("math").data["objects"]
    own = 0
    for node in doctree.findall(nodes.math_block):
        tex, number = split_tag(node.astext())
        label = node.get("label")
        if number is None:
            if label not in equations:
                continue
            own += 1
            number = str(own)
        node.children[:] = [nodes.Text(tex)]
        node["number"] = number
        if label in equations:
            equations[label] = (equations[label][0], number)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("doctree-read", number_as_tagged)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
