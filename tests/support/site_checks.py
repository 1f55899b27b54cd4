"""Checks of a built site that read its files only. Usage: ``python tests/support/site_checks.py _build/html``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup, Tag

LOADED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "object": "data",
    "use": "href",
}
NOT_LOADED = {"canonical", "next", "prev", "search", "index", "author", "copyright"}  # links that are not fetched


def is_remote(url: str) -> bool:
    """Whether a browser would leave the site for this address."""
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "ws", "wss")


def has_name(tag: Tag) -> bool:
    """Whether a picture says what it shows; an empty alt marks decoration."""
    return tag.has_attr("alt") or bool(tag.get("aria-label")) or tag.get("aria-hidden") == "true"


#: What may not stand among words.
BLOCKS = {
    "p",
    "div",
    "ul",
    "ol",
    "dl",
    "table",
    "section",
    "figure",
    "pre",
    "blockquote",
    "details",
    "aside",
    "h1",
    "h2",
    "h3",
}


def invalid(soup: BeautifulSoup) -> list[str]:
    """What an HTML validator would say of the markup: blocks among words, empty headings, landmarks of the same name."""
    found = []
    for name in ("summary", "p", "button", "h1", "h2", "h3", "h4", "span"):
        for tag in soup.find_all(name):
            inside = BLOCKS - ({"h1", "h2", "h3"} if name == "summary" else set())
            found += [f"<{block.name}> in <{name}>: {str(block)[:60]}" for block in tag.find_all(inside)][:1]
    found += [f"an empty <{tag.name}>" for tag in soup.find_all(["h1", "h2", "h3", "h4"]) if not tag.get_text(strip=True)]
    names = Counter(
        (tag.name, str(tag.get("aria-label") or tag.get("aria-labelledby"))) for tag in soup.find_all(["aside", "nav"])
    )
    found += [f"{count} <{name}> are called {label}" for (name, label), count in names.items() if count > 1]
    return found


def check_page(page: Path, soup: BeautifulSoup) -> list[str]:
    """Problems of one page that need no other page."""
    ids = Counter(str(tag["id"]) for tag in soup.find_all(id=True))
    found = [f"the id {name!r} is used {count} times" for name, count in ids.items() if count > 1]
    found += [f"an image without alt text: {tag.get('src')}" for tag in soup.find_all("img") if not has_name(tag)]
    found += [f"a drawing without aria-label: {str(tag)[:80]}" for tag in soup.find_all(role="img") if not has_name(tag)]
    for name, attribute in LOADED.items():
        for tag in soup.find_all(name):
            url = str(tag.get(attribute) or tag.get(f"xlink:{attribute}") or "")
            if is_remote(url) and not (name == "link" and NOT_LOADED & set(tag.get("rel") or [])):
                found.append(f"loads {url}")
    for tag in soup.select("thead th, tbody th"):
        if not tag.get("scope"):
            found.append(f"a table header without scope: {tag.get_text(strip=True)!r}")
    if len(soup.find_all("h1")) < 1 or not soup.find("main"):
        found.append("no heading or no main landmark")
    if soup.select(".system-message, .problematic"):
        found.append("an error of docutils is shown to the reader")
    return [f"{page.name}: {problem}" for problem in found]


def check_site(html_dir: Path | str) -> list[str]:
    """All problems of a built site: local links and anchors, ids, alt texts, table headers, requests that leave it.

    Args:
        html_dir: the folder with the site's ``index.html``.

    Returns:
        One line per problem; an empty list for a sound site.
    """
    root = Path(html_dir).resolve()
    files = sorted(p for p in root.rglob("*.html") if "_static" not in p.parts)
    if not files:
        return [f"no page under {root}"]
    soups = {p: BeautifulSoup(p.read_text("utf-8"), "html.parser") for p in files}
    anchors = {
        p: {str(t.get("id") or t.get("name")) for t in s.find_all(lambda t: t.get("id") or t.get("name"))}
        for p, s in soups.items()
    }
    problems: list[str] = []
    for page, soup in soups.items():
        if soup.find("meta", attrs={"http-equiv": "Refresh"}) is None and soup.find("body") and page.name not in (
            "genindex.html", "search.html", "py-modindex.html",
        ):  # fmt: skip
            problems += check_page(page, soup)
        problems += [f"{page.name}: {problem}" for problem in invalid(soup)]
        for tag in soup.select("a[href], link[href], script[src], img[src]"):
            url = urlsplit(unquote(str(tag.get("href") or tag.get("src"))))
            if url.scheme or url.netloc or (not url.path and url.fragment in ("", "top")):
                continue
            target = (page.parent / url.path).resolve() if url.path else page
            if not target.exists():
                problems.append(f"{page.relative_to(root)}: nothing at {url.path}")
            elif url.fragment and target in anchors and url.fragment not in anchors[target]:
                problems.append(f"{page.relative_to(root)}: no #{url.fragment} in {target.name}")
    for sheet in root.rglob("*.css"):
        text = sheet.read_text("utf-8", errors="replace")
        problems += [
            f"{sheet.name}: imports {part[:60]}" for part in text.split("url(")[1:] if is_remote(part.strip("'\" "))
        ]
    return problems


if __name__ == "__main__":
    lines = check_site(sys.argv[1])
    print("\n".join(lines) or "no problem found")
    sys.exit(bool(lines))
