"""Explorers: pictures that a reader can move, in pages that ask for them.

An explorer is a small script in ``book/_static/explorers``, written as a module. Browsers load no module from ``file://``;
so a page that holds a ``<div data-explorer="name">`` gets the scripts that it needs as one closed function at its end,
and no other page gets any. A notebook writes the ``<div>`` with ``itlib.figures.explorer``, below a still figure whose
place the script takes; without scripts, and on paper, the figure stays. A page in prose writes

    ```{explorer} tilts
    :data: landing.json
    :still: landing.svg
    ```

with the model's file and the still picture in ``book`` and ``book/_static``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from inline_svg import strip_prolog
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from itlib.figures import explorer_html

SCRIPTS = Path(__file__).parents[1] / "_static" / "explorers"


def plain(module: str) -> str:
    """The statements of a module, without its imports and exports."""
    return re.sub(r"^export ", "", re.sub(r"^import .*?;\n", "", module, flags=re.DOTALL | re.MULTILINE), flags=re.MULTILINE)


def imported(name: str) -> list[str]:
    """The modules that a module needs, in an order in which they can be run."""
    found: list[str] = []
    for needed in re.findall(r'from "\./(\w+)\.js"', (SCRIPTS / f"{name}.js").read_text("utf-8")):
        found += [module for module in (*imported(needed), needed) if module not in found]
    return found


def bundle(names: list[str]) -> str:
    """One script that leaves no name behind: what the explorers import, once, then each of them in a block of its own."""
    own = sorted(set(names))
    shared = dict.fromkeys(module for name in own for module in imported(name))
    sources = {name: plain((SCRIPTS / f"{name}.js").read_text("utf-8")) for name in (*shared, *own)}
    blocks = "".join(f"{{\n{sources[name]}}}\n" for name in own)
    return '(() => {\n"use strict";\n' + "".join(sources[name] for name in shared) + blocks + "})();"


class Explorer(SphinxDirective):
    """``{explorer} name`` with ``:data:`` and ``:still:``."""

    required_arguments = 1
    option_spec: ClassVar = {"data": directives.unchanged_required, "still": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the still picture and the explorer's place."""
        book = Path(self.env.srcdir, "book")
        data, still = book / self.options["data"], book / "_static" / self.options["still"]
        for path in (data, still):
            self.env.note_dependency(str(path))
        svg = strip_prolog(still.read_text("utf-8"))
        name = re.search(r'data-itlib-figure="([^"]*)"', svg)
        if name is None:
            raise self.error(f"{still.name} is no figure of itlib.figures")
        model = json.loads(data.read_text("utf-8"))["model"]
        place = explorer_html(self.arguments[0], model, name[1])
        html = f'<figure class="landing"><div class="figure-svg">{svg}</div>{place}</figure>'
        return [nodes.raw("", html, format="html")]


def add_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give one page the scripts and the style that it asks for."""
    body = context.get("body") or ""
    if names := re.findall(r'data-explorer="([a-z]+)"', body):
        context["body"] = f"{body}<script>\n{bundle(names)}\n</script>"
        app.add_css_file("explorers/explorers.css")  # of this page alone, from within this event


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", add_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
