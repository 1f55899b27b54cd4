"""Put vector figures into the page itself, so that they take its colours.

A figure drawn by ``itlib.figures`` uses ``currentColor`` for its ink. As a separate image it could not see
the page's light or dark text colour; inlined it does. A notebook shows a figure where it is computed
and pastes it with a caption (``{glue:figure}``); the book keeps the captioned copy only, and folds the code that drew it
under the caption, also where the notebook asks that this code be left out of the page.
"""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

from itlib.figures.phone import Window, layout

MARK = "data-itlib-figure="  # written by itlib.figures


def strip_prolog(svg: str) -> str:
    """Drop what comes before ``<svg`` (XML declaration, doctype): it has no place inside HTML."""
    return svg[svg.index("<svg") :].strip()


def with_panels(svg: str) -> str:
    """The drawing in a box, and its panels for narrow screens below it if it has some."""
    width = re.search(r'\bviewBox="0 0 ([\d.]+)', svg)
    style = f' style="--width: {float(width[1]):.0f}"' if width else ""
    found = re.search(rf'{MARK}"([^"]+)" data-panels="([^"]+)" ', svg)
    if not found:
        return f'<div class="figure-svg"{style}>{svg}</div>'
    windows = [[Window(*window) for window in panel] for panel in json.loads(unescape(found[2]))]
    svg = svg.replace(f'data-panels="{found[2]}" ', "", 1)
    return f'<div class="figure-svg has-panels"{style}>{svg}{layout(windows, found[1])}</div>'


def fold_code(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fold the code of a figure where the tag ``remove-input`` would drop it, and show neighbouring folds as one.

    A figure is never without its code.
    """
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"] if MARK in source[0] else ():
        tags = cell["metadata"].get("tags", [])
        if "remove-input" in tags and any("image/svg+xml" in output.get("data", {}) for output in cell.get("outputs", ())):
            tags[tags.index("remove-input")] = "hide-input"
    notebook["cells"] = joined(notebook["cells"])
    source[0] = json.dumps(notebook)


def joined(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells of a notebook, a folded one that shows nothing as part of its folded neighbour."""
    kept: list[dict[str, Any]] = []
    for cell in cells:
        if kept and _folded(kept[-1]) and _folded(cell) and not (_shows(kept[-1]) and _shows(cell)):
            before = kept.pop()
            source = "".join(before["source"]) + "\n\n" + "".join(cell["source"])
            outputs, metadata = before["outputs"] + cell["outputs"], before["metadata"] | cell["metadata"]
            cell = cell | {"source": source, "outputs": outputs, "metadata": metadata}
        kept.append(cell)
    return kept


def _folded(cell: dict[str, Any]) -> bool:
    return cell["cell_type"] == "code" and "hide-input" in cell["metadata"].get("tags", [])


def _shows(cell: dict[str, Any]) -> bool:
    """Whether a cell has an output that a reader sees; what is only glued is shown elsewhere."""
    outputs = (output.get("data", {"text": ""}) for output in cell["outputs"])
    return any(not key.startswith("application/papermill.record/") for data in outputs for key in data)


class InlineFigures(SphinxPostTransform):
    """Replace images of our own figures by their source, once per page."""

    default_priority = 6  # after myst-nb has chosen one form of every output (4, 5)
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Transform one page."""
        images = [i for i in self.document.findall(nodes.image) if i["uri"].endswith(".svg")]
        captioned = {i["uri"]: figure for i in images if (figure := _inside(i, nodes.figure))}
        for image in images:
            path = Path(self.app.srcdir, image["uri"])
            if not path.is_file() or MARK not in (svg := path.read_text("utf-8")):
                continue
            if image["uri"] in captioned and not _inside(image, nodes.figure):
                if cell := _inside(image, nodes.container, "cell_code"):
                    _fold_code(captioned[image["uri"]], cell)
                _remove_with_empty_parents(image)
            else:
                html = with_panels(strip_prolog(svg))
                image.replace_self(nodes.raw("", html, format="html"))


class NameFolds(SphinxPostTransform):
    """Say what a folded cell holds: code, or the answer to a question under "Try this"."""

    default_priority = 7  # before the cells are folded (199)
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Transform one page."""
        for cell in self.document.findall(lambda n: isinstance(n, nodes.container) and "hide_mode" in n):
            section = _inside(cell, nodes.section)
            answer = cell["hide_mode"] == "all" and section is not None and section[0].astext() == "Try this"
            what = cell.get("holds") or ("the answer" if answer else "the code")
            cell["prompt_show"], cell["prompt_hide"] = f"Show {what}", f"Hide {what}"


def _fold_code(figure: nodes.Element, cell: nodes.Element) -> None:
    """Move the folded code of a cell under the figure that it drew; code in plain sight stays, and is linked."""
    code = next((c for c in cell.children if c.get("nb_element") == "cell_code_source"), None)
    if code is None:
        return
    if cell.get("hide_mode") == "input":
        folded = nodes.container("", **{k: v for k, v in cell.attributes.items() if k not in ("ids", "names")})
        folded["classes"] = [*cell["classes"], "figure-code"]
        folded["holds"] = "the code of this figure"
        cell.remove(code)
        folded += code
        figure.parent.insert(figure.parent.index(figure) + 1, folded)
    elif "hide_mode" not in cell:
        anchor = f"code-of-{figure['ids'][0]}"
        if not cell["ids"]:
            cell["ids"] = [anchor]
        link = nodes.reference("", "The code of this figure", refid=cell["ids"][0], internal=True)
        figure.parent.insert(figure.parent.index(figure) + 1, nodes.paragraph("", "", link, classes=["figure-code"]))


def _inside(node: nodes.Node, kind: type[nodes.Element], element: str | None = None) -> nodes.Element | None:
    """The nearest ancestor of a kind; of a notebook's elements, if one is named."""
    while (parent := node.parent) is not None:
        if isinstance(parent, kind) and (element is None or parent.get("nb_element") == element):
            return parent
        node = parent
    return None


def _remove_with_empty_parents(node: nodes.Element) -> None:
    parent = node.parent
    parent.remove(node)
    if isinstance(parent, nodes.container) and not parent.children:
        _remove_with_empty_parents(parent)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", fold_code)
    app.add_post_transform(InlineFigures)
    app.add_post_transform(NameFolds)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
