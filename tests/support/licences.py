"""The licences of everything that is installed, and whether they go with this project's MIT licence.

``python tests/support/licences.py`` lists them. Nothing is shipped with the project but its own files, so what counts is
that the packages may be installed and used beside it: permissive licences, and those that ask for openness of their own
files only (MPL, LGPL), are fine; a strong copyleft licence, or none at all, is reported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

#: Words of licences that are fine, in lower case.
FINE = (
    "mit", "bsd", "apache", "isc", "psf", "python software foundation", "python-2.0", "mpl", "mozilla", "zlib", "unlicense",
    "cc0", "0bsd", "hpnd", "lgpl", "lesser general public", "historical permission", "public domain", "zpl", "cnri",
    "bsl-1.0",
)  # fmt: skip
#: Packages whose metadata sound worse than they are.
EXCEPTIONS = {
    "docutils": "the GPL is that of a mode for Emacs",
    "selenium-axe-python": "its licence file is the MPL's; its classifier says proprietary",
}


def licence(package: Distribution) -> str:
    """What a package says of its licence: the SPDX expression, else the classifiers, else the first line of the field."""
    data = package.metadata
    if expression := data.get("License-Expression"):
        return str(expression)
    classified = [c.rpartition(":: ")[2] for c in data.get_all("Classifier", []) if c.startswith("License ::")]
    named = [c for c in classified if c != "OSI Approved"]
    if named:
        return ", ".join(named)
    first = (data.get("License") or "").strip().splitlines()
    return first[0][:80] if first else ""


def is_fine(text: str) -> bool:
    """Whether a licence, or one of those offered ("or"), is among those that go with MIT."""
    offered = (re.split(r"\band\b|, (?!v)", choice) for choice in re.split(r"\bor\b", text.lower()))
    return any(all(any(re.search(rf"\b{re.escape(w)}", part) for w in FINE) for part in parts) for parts in offered)


def listed(packages: Iterable[Distribution]) -> dict[str, tuple[str, str]]:
    """{name: (version, licence)} in alphabetical order."""
    rows = {p.metadata["Name"].lower(): (p.version, licence(p)) for p in packages if p.metadata["Name"]}
    return dict(sorted(rows.items()))


def problems(packages: Iterable[Distribution]) -> list[str]:
    """Packages whose licence is missing or does not go with MIT."""
    rows = listed(packages).items()
    return [f"{name} {at}: {text or 'none'}" for name, (at, text) in rows if not is_fine(text) and name not in EXCEPTIONS]


if __name__ == "__main__":
    found = list(distributions())
    for name, (number, text) in listed(found).items():
        print(f"{name:32} {number:16} {text}")
    sys.exit("\n".join(["", "These do not go with MIT:", *problems(found)]) if problems(found) else 0)
