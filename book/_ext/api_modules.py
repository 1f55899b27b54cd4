"""List the modules of ``itlib`` on the two API pages, as they are at build time.

The marker line on the first page is replaced by what ``import itlib`` gives, with its examples, and by one section per room
of :data:`LIBRARY`, from the paper's modules upwards, and in it one per module, each after those that it imports; that of the
second page by the other rooms. A module or a room that is new finds its place by itself. A module that cannot be imported,
or a docstring that is not valid reStructuredText, is a warning, and so an error.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

MARKER, REST = "<!-- the modules of itlib -->", "<!-- the modules that run and show -->"
#: Rooms from bottom to top; "" is the paper, flat. A room that is not named here comes last.
ROOMS = {
    "": "The paper",
    "pretrained": "Other people's models",
    "beyond": "Beyond the paper",
    "baselines": "Baselines",
    "experiments": "Experiments",
    "figures": "Figures",
    "reproduce": "The batch",
}
#: Those of the first page.
LIBRARY = ("", "pretrained", "beyond", "baselines")
#: How the paper goes on where imports leave it open.
READING = ("schedules", "rewards", "gaussian_mixture", "network", "training", "sampling", "tilting", "metrics", "likelihood")


def rooms(package: str = "itlib") -> dict[str, list[str]]:
    """Dotted names of all public modules below a package, by room, each after those of its room that it imports."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise ModuleNotFoundError(package)
    root = Path(spec.origin).parent
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        room = parts[0] if len(parts) > 1 or parts[0] in ROOMS else ""
        if not parts[-1].startswith("_"):
            found.setdefault(room, {})[".".join((package, *parts))] = path
    order = [*(room for room in ROOMS if room in found), *(room for room in found if room not in ROOMS)]
    return {room: _sorted(found[room]) for room in order}


def _sorted(files: dict[str, Path]) -> list[str]:
    """Names of modules, those that are imported first."""
    needs = {name: set(re.findall(r"^from ([\w.]+) import", path.read_text("utf-8"), re.M)) for name, path in files.items()}

    def place(name: str) -> tuple[int, str]:
        stem = name.rpartition(".")[2]
        return (READING.index(stem) if stem in READING else len(READING), name)

    waiting, order = sorted(files, key=place), list[str]()
    while waiting:
        order.append(next((name for name in waiting if not needs[name] & set(waiting)), waiting[0]))
        waiting.remove(order[-1])
    return order


def section(name: str) -> str:
    """MyST source of one module's section."""
    label = name.partition(".")[2].replace(".", "-").replace("_", "-")
    return (
        f"(api-{label})=\n### `{name}`\n\n"
        f"```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n```\n"
    )


def chapter(room: str, modules: list[str], package: str = "itlib") -> str:
    """MyST source of one room's section: what the room says of itself, then its modules."""
    title = ROOMS.get(room, room.capitalize())
    about = (
        f"```{{eval-rst}}\n.. automodule:: {package}.{room}\n   :noindex:\n```\n" if [f"{package}.{room}"] != modules else ""
    )
    return "\n".join([f"## {title}\n", *([about] if room else []), *map(section, modules)])


def front_door(package: str = "itlib") -> str:
    """MyST source of the first section: what the package says of itself, and where each name that it gives is described."""
    module = importlib.import_module(package)
    lines = []
    for name in module.__all__:
        thing = getattr(module, name)
        first = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"- :py:obj:`{name} <{thing.__module__}.{thing.__qualname__}>`: {first}")
    about = f".. automodule:: {package}\n   :noindex:\n\n**All names.**\n\n" + "\n".join(lines)
    return f"## `import {package}`\n\n```{{eval-rst}}\n{about}\n```\n"


def expand(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace a marker on the page that has it."""
    for marker, first in ((MARKER, True), (REST, False)):
        if marker in source[0]:
            parts = [chapter(*room) for room in rooms().items() if (room[0] in LIBRARY) is first]
            source[0] = source[0].replace(marker, "\n".join([front_door(), *parts] if first else parts))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension."""
    app.connect("source-read", expand)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
