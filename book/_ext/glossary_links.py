"""Link a term of the glossary where a page uses it first.

Authors write plain text: the glossary decides what is a term. Headings, captions, tables, code and text that is a link
already stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform

CLOSED = (nodes.reference, nodes.title, nodes.caption, nodes.legend, nodes.table, nodes.literal, nodes.math, nodes.raw)
CLOSED_CLASSES = {"you-will-see"}


def pattern(terms: list[str]) -> re.Pattern[str]:
    """Matches any of the terms as whole words, in the singular or with a plural s; the longest first."""
    longest = sorted(terms, key=lambda term: (-len(term), term))
    # A hyphen joins words: "score-based" is not the term "score".
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest))})s?(?![\w-])", re.IGNORECASE)


class LinkFirstUse(SphinxPostTransform):
    """Turn the first use of each term on a page into a link."""

    default_priority = 20  # after references are resolved, so that no link gets into a link
    formats = ("html",)

    def run(self, **kwargs: Any) -> None:
        """Transform one page."""
        here, terms = self.env.docname, self.terms()
        if not terms or here in {page for page, _ in terms.values()}:
            return
        words, seen = pattern(list(terms)), set()
        for text in list(self.document.findall(nodes.Text)):
            if text.parent is None or not _open(text):
                continue
            parts: list[nodes.Node] = []
            start, source = 0, text.astext()
            for match in words.finditer(source):
                page, anchor = terms[match[1].lower()]
                if (page, anchor) in seen:
                    continue
                seen.add((page, anchor))
                uri = f"{self.app.builder.get_relative_uri(here, page)}#{anchor}"
                parts += [nodes.Text(source[start : match.start()])] if match.start() > start else []
                parts.append(nodes.reference("", match[0], refuri=uri, internal=True, classes=["term"]))
                start = match.end()
            if parts:
                rest = [nodes.Text(source[start:])] if start < len(source) else []
                text.parent.replace(text, parts + rest)

    def terms(self) -> dict[str, tuple[str, str]]:
        """Page and anchor of each term, in lower case; synonyms share those of the first."""
        found = {}
        for page in {page for _, _, kind, page, _, _ in self.env.get_domain("std").get_objects() if kind == "term"}:
            for item in self.env.get_doctree(page).findall(nodes.definition_list_item):
                names = [child for child in item.children if isinstance(child, nodes.term)]
                found |= {name.astext().lower(): (page, names[0]["ids"][0]) for name in names if names[0]["ids"]}
        return found


def _open(text: nodes.Node) -> bool:
    """Whether text is part of a paragraph, and of nothing that is closed to links."""
    node, in_paragraph = text.parent, False
    while node is not None:
        if isinstance(node, CLOSED) or CLOSED_CLASSES & set(node.get("classes", ())):
            return False
        in_paragraph |= isinstance(node, nodes.paragraph)
        node = node.parent
    return in_paragraph


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.add_post_transform(LinkFirstUse)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
