"""List the modules of ``itlib`` on the API page, as they are at build time.

The marker line on the page is replaced by one section per module, lowest layer first. A module that
cannot be imported, or a docstring that is not valid reStructuredText, is a warning, and so an error.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MARKER = "<!-- the modules of itlib -->"
READING = (  # the paper's order, among modules that do not need each other; newcomers go to the end
    "schedules",
    "rewards",
    "gaussian_mixture",
    "network",
    "corrections",
    "training",
    "sampling",
    "stepsize",
    "tilting",
    "estimators",
    "budget",
    "likelihood",
    "metrics",
    "wrap",
    "images",
    "scaling",
    "records",
    "runs",
    "plots",
    "verify",
    "reproduce",
)


def module_names(package: str = "itlib") -> list[str]:
    """Public modules of the package, each after those that it imports."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(package)
    files = {p.stem: p for p in Path(spec.origin).parent.glob("[a-z]*.py")}
    imports = re.compile(rf"^(?:from|import) {package}\.(\w+)", re.MULTILINE)
    needs = {name: set(imports.findall(path.read_text("utf-8"))) & files.keys() for name, path in files.items()}
    waiting = sorted(files, key=lambda n: (READING.index(n) if n in READING else len(READING), n))
    order: list[str] = []
    while waiting:
        order.append(next((n for n in waiting if needs[n] <= set(order)), waiting[0]))
        waiting.remove(order[-1])
    return order


def section(name: str, package: str = "itlib") -> str:
    """MyST source of one module's section."""
    return (
        f"(api-{name.replace('_', '-')})=\n## `{package}.{name}`\n\n"
        f"```{{eval-rst}}\n.. automodule:: {package}.{name}\n   :members:\n   :show-inheritance:\n```\n"
    )


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the marker on the page that has it."""
    if MARKER in source[0]:
        rivals = "itlib.baselines"
        sections = [*map(section, module_names()), *(section(name, rivals) for name in module_names(rivals))]
        source[0] = source[0].replace(MARKER, "\n".join(sections))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", expand)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
