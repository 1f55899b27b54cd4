"""Make the site stand alone: no request leaves the page, and every page works from ``file://``.

- MathJax: one file from ``sphinx-mathjax-offline``, instead of a content delivery network.
- Thebe (live code) is switched off: it would load its code from the network, and declares its
  configuration twice.
- Table headers get the ``scope`` that docutils and pandas leave out.
- What accessibility checkers find in the markup of docutils and Sphinx is mended: an entry of the bibliography is a list
  item, a signature of several lines a list without terms.
- What validators find is mended too: a button that folds code holds words, not paragraphs, and is called what it says; each
  aside in the margin has a name of its own; a page that Sphinx makes has a title when it is printed.
- In a table of the class ``cards`` each cell gets the name of its column: on a phone its rows become cards (custom.css).
"""

from __future__ import annotations

import re
from importlib.metadata import distribution
from itertools import count, cycle
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

MATHJAX = "tex-svg.js"  # the TeX reader and the SVG writer in one file, fonts included
GENERATED = {"genindex": "Index", "py-modindex": "Modules", "search": "Search"}  # pages without a title of their own


def mathjax_file() -> Path:
    """Path of the MathJax bundle inside the installed package."""
    return Path(str(distribution("sphinx-mathjax-offline").locate_file(f"sphinx-mathjax-offline/static/mathjax/{MATHJAX}")))


def serve_mathjax(app: Sphinx, config: Config) -> None:
    """Copy the bundle beside the other static files and use it."""
    config.html_static_path = [*config.html_static_path, str(mathjax_file())]
    config.mathjax_path = MATHJAX


def switch_off(app: Sphinx, package: str) -> None:
    """Silence an extension that the book builder always loads."""
    for event, listeners in app.events.listeners.items():
        app.events.listeners[event] = [one for one in listeners if not one.handler.__module__.startswith(package)]
    asset = package.replace("_", "-")
    app.registry.css_files[:] = [f for f in app.registry.css_files if asset not in f[0]]


def add_scope(html: str) -> str:
    """Say of each table header whether it heads a column or a row."""

    def scoped(section: re.Match[str]) -> str:
        scope = "col" if section[1] == "thead" else "row"
        return re.sub(r"<th(?![a-z])(?![^>]*\bscope=)", f'<th scope="{scope}"', section[0])

    return re.sub(r"<(thead|tbody)\b.*?</\1>", scoped, html, flags=re.DOTALL)


def label_cells(html: str) -> str:
    """Put the name of its column into each cell of a table of the class ``cards``."""

    def labelled(table: re.Match[str]) -> str:
        heads = re.findall(r"<th\b[^>]*>(.*?)</th>", table[0], re.DOTALL)
        column = cycle(re.sub("<[^>]*>", "", head).strip() for head in heads)
        return re.sub(r"<td\b", lambda cell: f'{cell[0]} data-label="{next(column)}"', table[0])

    return re.sub(r'<table [^>]*class="[^"]*\bcards\b.*?</table>', labelled, html, flags=re.DOTALL)


def mend_lists(html: str) -> str:
    """Give lists the elements that they may have."""
    html = html.replace('role="doc-biblioentry"', 'role="listitem"')  # its parent has the role of a list

    def parameters(found: re.Match[str]) -> str:
        items = found[1].replace("<dd>", "<li>").replace("</dd>", "</li>")
        return f'<ul class="sig-parameters">{items}</ul>'

    return re.sub(r"<dl>((?:\s*<dd>(?:(?!<d[dlt]\b).)*?</dd>)+\s*)</dl>", parameters, html, flags=re.DOTALL)


def mend_folds(html: str) -> str:
    """Give what folds code away its words as its name, in elements that may stand there."""

    def summary(found: re.Match[str]) -> str:
        words = re.sub(r"<(/?)p(?![a-z])", r"<\1span", found[1])
        return f"<summary>{words}</summary>"

    return re.sub(r'<summary aria-label="Toggle hidden content">(.*?)</summary>', summary, html, flags=re.DOTALL)


def name_asides(html: str) -> str:
    """Number the asides of a page, each of which is a landmark and needs a name."""
    number = count(1)
    return re.sub(r'<aside class="margin\b', lambda found: f'<aside aria-label="Aside {next(number)}"{found[0][6:]}', html)


def finish_page(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: nodes.document | None,
) -> None:
    """Touch up the body of one page."""
    if body := context.get("body"):
        context["body"] = name_asides(mend_folds(mend_lists(label_cells(add_scope(body)))))
    context.setdefault("pagetitle", GENERATED.get(pagename, app.config.project))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    switch_off(app, "sphinx_thebe")
    app.connect("config-inited", serve_mathjax)
    app.connect("html-page-context", finish_page)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
