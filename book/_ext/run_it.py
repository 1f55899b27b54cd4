"""Head of a computed page: how long it takes to read, the ways to run it, and a warning if it was made in a hurry.

A page in ``book/pages`` or ``book/runs`` was made from a notebook in ``notebooks``; the links open that notebook, not the
page. Those that need the repository's address (Binder, Colab) are there once ``repository: url`` of ``_config.yml`` is set.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from itlib import __version__

WORDS_PER_MINUTE = 200
LEARN = "You will see"  # opens the paragraph that says what a page teaches
#: What is looked at rather than read. Figures and code, most of a page's elements, go before it is parsed.
UNREAD = re.compile(r"<(svg|pre|script|style)\b.*?</\1>", re.DOTALL)
SILENT = ".math, .headerlink, .eqno, .run-it, .hurried, .provenance, .source-mark, details.hide > summary"
HURRIED = (
    '<div class="admonition warning hurried"><p class="admonition-title">A first look</p><p>This page comes from '
    "<code>PROFILE=smoke</code>, which shows that everything works. What it computes means nothing, and may contradict its "
    "text.</p></div>"
)
GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")


def words(html: str) -> int:
    """Number of words in a page's text; code blocks, formulas and numbers are not words."""
    soup = BeautifulSoup(UNREAD.sub("", html), "html.parser")
    for tag in soup.select(SILENT):
        tag.decompose()
    return len(re.findall(r"[^\W_]*[^\W\d_][^\W_]*(?:[-'’][^\W_]+)*", soup.get_text(" ")))


def minutes(html: str) -> int:
    """Minutes that it takes to read a page, at least one."""
    return max(1, round(words(html) / WORDS_PER_MINUTE))


def notebook_of(pagename: str) -> str | None:
    """Stem of the notebook that a page was made from; None for a page in prose."""
    page = PurePosixPath(pagename)
    if page.parts[:2] == ("book", "pages"):
        return page.stem
    if page.parts[:2] == ("book", "runs"):
        return "s2_1_base_model" if page.stem.startswith("base") else "s4_2_experiment"
    return None


def hurried(page: Path) -> bool:
    """Whether an executed notebook was told to do little work."""
    cells = json.loads(page.read_text("utf-8"))["cells"]
    told = ["".join(c["source"]) for c in cells if "injected-parameters" in c["metadata"].get("tags", [])]
    return any('profile = "smoke"' in source.splitlines() for source in told)


def links(notebook: str, url: str, branch: str) -> list[tuple[str, str]]:
    """Label and address of the services that run a notebook of the repository at ``url``; none without one."""
    path = f"notebooks/{notebook}.ipynb"
    if not url:
        return []
    if hub := GITHUB.fullmatch(url):
        where = f"gh/{hub[1]}"
        colab = [("Colab", f"https://colab.research.google.com/github/{hub[1]}/blob/{branch}/{path}")]
    else:
        where, colab = f"git/{quote(url, safe='')}", []
    return [("JupyterLab on Binder", f"https://mybinder.org/v2/{where}/{branch}?urlpath=lab/tree/{path}"), *colab]


def head(notebook: str, download: str, time: int, url: str, branch: str) -> str:
    """HTML of the head: a line, and what Colab, which starts empty, has to be told first."""
    away = links(notebook, url, branch)
    parts = [
        f'<span class="reading-time">{time} min to read</span>',
        f"<code>make lab CHAPTER={escape(notebook)}</code>",
        *(f'<a href="{escape(link)}">{label}</a>' for label, link in away),
        f'<a href="{escape(download)}" download>Download</a>',
    ]
    html = f'<div class="run-it"><div>{"<span> · </span>".join(parts)}</div>'
    if any(label == "Colab" for label, _ in away):
        cell = f"!git clone -q --depth 1 -b {branch} {url} book && pip -q install './book[book]'\n%cd book/notebooks"
        html += f"<details><summary>In Colab, run this first</summary><pre>{escape(cell)}</pre></details>"
    return html + "</div>"


def add_head(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Put the head under the title of a computed page."""
    notebook, body = notebook_of(pagename), context.get("body")
    if notebook and body and "</h1>" in body:
        options = app.config.html_theme_options
        download = f"{context['pathto']('_sources', 1)}/{context['sourcename']}"
        html = head(
            notebook, download, minutes(body), options.get("repository_url", ""), options.get("repository_branch", "main")
        )
        html += HURRIED if hurried(Path(app.env.doc2path(pagename))) else ""
        context["body"] = body.replace("</h1>", f"</h1>\n{html}", 1)


def finish_options(app: Sphinx, config: Config) -> None:
    """Name the version at the foot; with an address, add buttons that lead to it and that report a fault of a page."""
    config.html_theme_options["extra_footer"] += f" Version {__version__}."
    if url := config.html_theme_options.get("repository_url"):
        config.html_theme_options["use_repository_button"] = True
        config.html_theme_options["use_issues_button"] = bool(GITHUB.fullmatch(url))  # other forges: a warning of the theme


def mark_learn(app: Sphinx, doctree: nodes.document) -> None:
    """Give the paragraph that says what a page teaches a class of its own."""
    for strong in doctree.findall(nodes.strong):
        paragraph = strong.parent
        if strong.astext() == LEARN and isinstance(paragraph, nodes.paragraph) and paragraph.astext().startswith(LEARN):
            paragraph["classes"].append("you-will-see")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("config-inited", finish_options)
    app.connect("doctree-read", mark_learn)
    app.connect("html-page-context", add_head)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
