"""List the modules of ``itlib`` on the API page, as they are at build time.

The marker line on the page is replaced by one section per module, lowest layer first. A module that
cannot be imported, or a docstring that is not valid reStructuredText, is a warning, and so an error.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MARKER = "<!-- the modules of itlib -->"
LAYERS = (  # the order in which they build on each other; newcomers go to the end
    "schedules",
    "gaussian_mixture",
    "rewards",
    "network",
    "training",
    "sampling",
    "tilting",
    "likelihood",
    "metrics",
    "records",
    "plots",
    "reproduce",
)


def module_names(package: str = "itlib") -> list[str]:
    """Public modules of the package, in the order of the layers."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(package)
    found = pkgutil.iter_modules([str(Path(spec.origin).parent)])
    names = [m.name for m in found if not m.name.startswith("_")]
    return sorted(names, key=lambda n: (LAYERS.index(n) if n in LAYERS else len(LAYERS), n))


def section(name: str, package: str = "itlib") -> str:
    """MyST source of one module's section."""
    return (
        f"(api-{name.replace('_', '-')})=\n## `{package}.{name}`\n\n"
        f"```{{eval-rst}}\n.. automodule:: {package}.{name}\n   :members:\n   :show-inheritance:\n```\n"
    )


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marker on the page that has it."""
    if MARKER in source[0]:
        source[0] = source[0].replace(MARKER, "\n".join(map(section, module_names())))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", expand)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
