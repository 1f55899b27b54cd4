"""What other sites need of ours: a description of every page and, once ``html: baseurl`` is set, a preview and a sitemap.

Both speak of addresses, so a copy that is read from files, whose ``baseurl`` is empty, has neither.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from textwrap import shorten
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

PREVIEW = "preview.png"  # drawn by book/showcase.py
PREVIEW_SIZE = (1200, 630)


def description(doctree: nodes.document) -> str:
    """First sentences of a page, without formulas and notes."""
    for paragraph in doctree.findall(nodes.paragraph):
        silent = (nodes.math, nodes.raw, nodes.footnote_reference)
        text = "".join(t.astext() for t in paragraph.findall(nodes.Text) if not isinstance(t.parent, silent))
        if isinstance(paragraph.parent, nodes.section) and text.strip():
            return shorten(text, 200, placeholder=" …")
    return ""


def add_tags(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Describe a page in its head."""
    if doctree is None:
        return
    base, about = app.config.html_baseurl.rstrip("/"), description(doctree)
    title = nodes.Text(app.env.titles[pagename].astext()).astext()
    tags = {"description": about}
    if base:
        image = f"{base}/_static/{PREVIEW}"
        tags |= {
            "og:type": "article",
            "og:site_name": app.config.project,
            "og:title": title,
            "og:description": about,
            "og:url": f"{base}/{app.builder.get_target_uri(pagename)}",
            "og:image": image,
            "og:image:width": str(PREVIEW_SIZE[0]),
            "og:image:height": str(PREVIEW_SIZE[1]),
            "og:image:alt": "The base density, the model after half and all of the tilts, and the exact tilted density.",
            "twitter:card": "summary_large_image",
        }
    for name, content in tags.items():
        if content:
            key = "property" if name.startswith("og:") else "name"
            context["metatags"] += f'\n<meta {key}="{name}" content="{escape(content)}">'


def write_sitemap(app: Sphinx, error: Exception | None) -> None:
    """List the pages for search engines."""
    base = app.config.html_baseurl.rstrip("/")
    if error is None and base and app.builder.name == "html":
        pages = [
            f"  <url><loc>{escape(f'{base}/{app.builder.get_target_uri(d)}')}</loc></url>"
            for d in sorted(app.env.found_docs)
        ]
        frame = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
        Path(app.outdir, "sitemap.xml").write_text(frame + "\n".join(pages) + "\n</urlset>\n", "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("html-page-context", add_tags)
    app.connect("build-finished", write_sitemap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
