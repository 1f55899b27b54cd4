"""One notation for the book: each Greek letter in a formula stands in a table of the notation page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GREEK = (
    "alpha|beta|gamma|Gamma|delta|Delta|epsilon|varepsilon|zeta|eta|theta|Theta|kappa|lambda|Lambda|mu|nu|xi|Xi|Pi|rho|"
    "sigma|varsigma|Sigma|tau|phi|varphi|Phi|chi|psi|Psi|omega|Omega"
)
LETTER = re.compile(rf"\\({GREEK})(?![a-zA-Z])")
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def formulas(text: str) -> str:
    return " ".join(display or inline for display, inline in FORMULA.findall(text))


def letters(text: str) -> set[str]:
    """Greek letters in the formulas of a text."""
    return set(LETTER.findall(formulas(text)))


def rows(table: str) -> list[list[str]]:
    lines = (line for line in table.splitlines() if line.startswith("| ") and not line.startswith(("| symbol", "| letter")))
    return [line.strip("| ").split(" | ") for line in lines]


def prose(path: Path) -> str:
    """The Markdown of a page."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    return "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


NOTATION = (ROOT / "book" / "notation.md").read_text("utf-8")
OWN, BORROWED = NOTATION.split("A few letters mean something else")
#: Letters that mean the same everywhere, and of the others the pages on which they may be used.
EVERYWHERE = letters(OWN)
LENT = {
    (letter, page) for row in rows(BORROWED) for letter in letters(row[0]) for page in re.findall(r"pages/(\w+)", row[1])
}
PAGES = [*sorted((ROOT / "notebooks").glob("*.py")), *(ROOT / "book").glob("*.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_each_letter_is_in_a_table(path: Path) -> None:
    if path.stem != "notation":
        unknown = {letter for letter in letters(prose(path)) - EVERYWHERE if (letter, path.stem) not in LENT}
        assert unknown == set(), "add it to book/notation.md, or use the letter that is there"


def test_nothing_is_lent_that_nobody_uses() -> None:
    used = {(letter, path.stem) for path in PAGES for letter in letters(prose(path))}
    assert LENT - used == set()


def test_the_tables_are_read_as_they_stand() -> None:
    assert {"alpha", "sigma", "lambda", "theta", "varepsilon"} <= EVERYWHERE
    assert {"kappa", "tau", "rho"} & EVERYWHERE == set()
    assert letters(r"In $\tau$ and $$\int \betas \psi$$") == {"tau", "psi"}
