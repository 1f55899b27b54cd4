"""What a link leads to, for the reader who only wants a look: equations, terms of the glossary, entries of the bibliography.

A page opened from a file cannot fetch another page. So what can be looked at is taken from the finished pages and written
into one script, which ``previews.js`` loads when such a link is first hovered or focused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx

FILE = "previews-data.js"


def targets(html: str) -> Iterator[tuple[str, str]]:
    """Anchor and HTML of everything on a page that has a preview."""
    if not re.search(r'id="equation-|class="[^"]*\b(?:glossary|citation)\b', html):
        return
    soup = BeautifulSoup(re.sub(r"<(svg|pre|script|nav)\b.*?</\1>", "", html, flags=re.DOTALL), "html.parser")
    for tag in soup.select("a.headerlink"):
        tag.decompose()
    for block in soup.select("div.math[id^=equation-]"):
        yield str(block["id"]), plain(block)
    for term in soup.select("dl.glossary > dt[id]"):
        meaning = term.find_next_sibling("dd")
        yield str(term["id"]), f"<strong>{term.decode_contents().strip()}</strong>{plain(meaning) if meaning else ''}"
    for entry in soup.select("div.citation[id]"):
        yield str(entry["id"]), "".join(plain(part) for part in entry.find_all("p", recursive=False))


def plain(tag: Tag) -> str:
    """A copy that has no anchors and no links, which would be wrong on another page."""
    copy = BeautifulSoup(str(tag), "html.parser")
    for each in copy.find_all(True):
        del each["id"], each["href"]
    for link in copy.find_all("a"):
        link.unwrap()
    return str(copy).replace("<dd>", "<div>").replace("</dd>", "</div>")


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the script beside the other static files."""
    if error is None and app.builder.name == "html":
        found = {}
        for page in sorted(app.env.found_docs):
            uri = app.builder.get_target_uri(page)
            for anchor, html in targets(Path(app.outdir, uri).read_text("utf-8")):
                found[f"{uri}#{anchor}"] = html
        text = f"window.bookPreviews = {json.dumps(found, ensure_ascii=False, indent=0)};\n"
        Path(app.outdir, "_static", FILE).write_text(text, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
