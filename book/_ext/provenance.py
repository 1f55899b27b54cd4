"""Where a page's numbers come from: a note at the end of each computed page, and a mark that leads to it from its figures.

The note names the notebook, the committed records that it reads (how many, of which seeds, made by which commit on which
processor), and the commands that make both again. It is read off the records themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from run_it import notebook_of
from sphinx.application import Sphinx

NOTE = "where-it-comes-from"
MARK = f' <a class="source-mark" href="#{NOTE}">source</a>'


class Records(NamedTuple):
    """What is known of the records in a folder."""

    place: str
    count: int
    seeds: tuple[int, ...]
    commits: tuple[str, ...]
    processors: tuple[str, ...]
    example: str


def ranges(numbers: tuple[int, ...]) -> str:
    """Whole numbers in increasing order, such as 0 to 9, 100."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} {'and' if len(r) == 2 else 'to'} {r[-1]}" for r in runs)


@cache
def records(root: Path, place: str) -> Records | None:
    """Look at a file or a folder of records; None if there are none."""
    path = root / place
    seeds, commits, processors, names = set(), set(), set(), []
    for file in [path] if path.suffix == ".json" and path.is_file() else sorted(path.rglob("*.json")):
        found = json.loads(file.read_text("utf-8"))
        if isinstance(found, dict) and {"parameters", "provenance"} <= found.keys():
            names.append(file.relative_to(root).as_posix())
            seeds.add(found["parameters"]["seed"])
            commits.add(found["provenance"].get("commit", "unknown")[:7])
            processors.add(found["provenance"].get("processor", "").partition(" (")[0])
    if not names:
        return None
    known = tuple(sorted(filter(None, processors)))
    return Records(place, len(names), tuple(sorted(seeds)), tuple(sorted(commits)), known, names[0])


def read(page: Path) -> list[str]:
    """The files and folders that the header of an executed notebook names."""
    header = json.loads(page.read_text("utf-8"))["metadata"].get("itlib", {})
    return [place for place in header.get("reads", []) if place.startswith("book/")]


def facts(notebook: str, page: Path, root: Path) -> Iterator[tuple[str, str]]:
    """What the note lists: term and HTML."""
    yield "Notebook", f"<code>notebooks/{escape(notebook)}.py</code>, executed from top to bottom"
    yield "Run it yourself", f"<code>make lab CHAPTER={escape(notebook)}</code>"
    own = records(root, page.with_suffix(".json").relative_to(root).as_posix())
    found = [own] if own else [r for place in read(page) if (r := records(root, place))]
    for r in found:
        count = "1 record" if r.count == 1 else f"{r.count} records"
        seeds = f"seed{'s' if len(r.seeds) > 1 else ''} {ranges(r.seeds)}"
        few = ", ".join(r.commits) if len(r.commits) < 4 else str(len(r.commits))
        commits = f"{few} commits" if len(r.commits) > 3 else f"commit {few}"
        processors = " and ".join(r.processors) or "processor not recorded"
        yield "Records", f"<code>{escape(r.place)}</code>: {count}, {seeds}; {escape(commits)}; {escape(processors)}"
    if found and not own:
        yield "Make one again", f"<code>python -m itlib.reproduce --verify {escape(found[0].example)}</code>"
        yield "Make all again", "<code>make reference</code>"


def add_note(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Put the note at the end of a computed page, and a mark into the caption of each of its figures and tables."""
    notebook, body = notebook_of(pagename), context.get("body")
    if not notebook or not body:
        return
    page = Path(app.env.doc2path(pagename))
    listed = "".join(f"<dt>{term}</dt><dd>{html}</dd>" for term, html in facts(notebook, page, Path(app.srcdir)))
    for tag in ("figcaption", "caption"):
        body = re.sub(rf"<{tag}\b.*?</{tag}>", _marked, body, flags=re.DOTALL)
    note = f"<h2>Where it comes from</h2><dl>{listed}</dl>"
    context["body"] = f'{body}\n<section id="{NOTE}" class="provenance">{note}</section>'


def _marked(caption: re.Match[str]) -> str:
    """Put the mark behind a caption's first paragraph."""
    place = max(caption[0].find('<a class="headerlink"'), 0) or min(
        k for k in (caption[0].find("</p>"), caption[0].rfind("</")) if k >= 0
    )
    return f"{caption[0][:place]}{MARK}{caption[0][place:]}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("html-page-context", add_note, priority=600)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
