"""The shape of the library: what no room may do, how large it may become, and that nothing is written twice.

A room is a folder of ``itlib``, or a module beside the paper's. Rooms stand one above another; modules find their place by
where they lie, so a newcomer needs no line here.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils.core import publish_doctree
from sphinx.ext.napoleon import Config, GoogleDocstring

PACKAGE = Path(__file__).parents[1] / "itlib"
#: From bottom to top: a room imports itself and those below it. What lies flat in ``itlib`` is the paper, but for its
#: front door, which opens on every room.
ROOMS = ("paper", "pretrained", "beyond", "baselines", "experiments", "figures", "reproduce")
#: Heavy guests, and the only room that may invite them.
GUESTS = {
    "matplotlib": "figures",
    "IPython": "figures",
    "seaborn": "notebooks",
    "pandas": "figures",
    "diffusers": "notebooks",
    "papermill": "reproduce",
    "jupytext": "reproduce",
    "nbformat": "reproduce",
    "nbclient": "reproduce",
    "distributed": "reproduce",
    "dask_jobqueue": "reproduce",
    "peft": "pretrained",
    "sklearn": "experiments",
    "scipy": "experiments",
    "rdkit": "experiments",
    "fcd": "experiments",
}


def room(path: Path) -> str:
    """The room of a module."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return {"__init__": "front door"}.get(first, first if first in ROOMS else "paper")


def dotted(path: Path) -> str:
    """The name by which a module is imported."""
    return ".".join(("itlib", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {dotted(path): path for path in sorted(PACKAGE.rglob("*.py"))}
every_module = pytest.mark.parametrize("path", MODULES.values(), ids=MODULES)


def imported(path: Path, nested: bool = True) -> set[str]:
    """Dotted names that a module imports, in functions too if nested; ``from a import b`` counts as a.b."""
    found: set[str] = set()
    module = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(module) if nested else module.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def code(path: Path, bare: bool = False) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank, comment or docstring; if bare, nor imports or signatures."""
    source = path.read_text("utf-8")
    quiet: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if bare and isinstance(node, ast.Import | ast.ImportFrom):
            quiet |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        if bare and isinstance(node, ast.FunctionDef):
            quiet |= set(range(node.lineno, node.body[0].lineno))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            quiet |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#") and number not in quiet:
            yield number, text


def test_the_rooms_are_there() -> None:
    assert {room(path) for path in MODULES.values()} == {*ROOMS, "front door"}


def test_one_plan_shows_the_rooms() -> None:
    """In the order in which they stand, from the roof down: where contributors read it, and on the API page."""
    root = PACKAGE.parent
    plans = [
        (root / name).read_text("utf-8").split("```text\n")[1].split("```")[0] for name in ("CONTRIBUTING.md", "book/api.md")
    ]
    assert plans[0] == plans[1]
    assert [line.split()[0] for line in plans[0].splitlines()] == [*ROOMS[:0:-1], "itlib"]


@every_module
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    ours = {name for name in imported(path) if name.startswith("itlib.")}
    for name in ours:
        there = name.split(".")[1]
        assert here == "front door" or there not in ROOMS or ROOMS.index(there) <= ROOMS.index(here), f"{here}: {name}"


@every_module
def test_guests_stay_in_their_room(path: Path) -> None:
    for name in {name.split(".")[0] for name in imported(path)} & GUESTS.keys():
        assert room(path) == GUESTS[name], name


@every_module
def test_no_module_knows_the_name_of_a_notebook(path: Path) -> None:
    """Not in its docstrings either: what a page is for is said in its own header."""
    names = "|".join(notebook.stem for notebook in (PACKAGE.parent / "notebooks").glob("*.py"))
    strings = [node.value for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Constant)]
    assert not [text for text in strings if isinstance(text, str) and re.search(rf"\b({names})\b", text)]


@every_module
def test_docstrings_are_valid(path: Path) -> None:
    """As the API page reads them, whose build is strict; roles and directives are left to Sphinx."""
    config, warnings = Config(napoleon_use_ivar=True, napoleon_use_rtype=False), io.StringIO()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            settings = {"warning_stream": warnings, "report_level": 2, "halt_level": 6}
            publish_doctree(str(GoogleDocstring(text, config)), getattr(node, "name", "module"), settings_overrides=settings)
    found = [line for line in warnings.getvalue().splitlines() if re.search(r"\((WARNING|ERROR|SEVERE)/", line)]
    assert [line for line in found if not re.search(r"Unknown (interpreted|directive)|No (role|directive)", line)] == []


@every_module
def test_nothing_is_ever_unpickled(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "torch.save", "np.load", "numpy.load", "marshal.loads", "eval", "exec"}


def test_no_module_imports_itself_in_a_circle() -> None:
    """Also inside a room, when modules are loaded."""
    from graphlib import TopologicalSorter

    needs = {
        name: {
            other
            for found in imported(path, nested=False)
            for other in (found, found.rpartition(".")[0])
            if other in MODULES
        }
        - {name}
        for name, path in MODULES.items()
        if name != "itlib"
    }
    assert list(TopologicalSorter({name: others - {"itlib"} for name, others in needs.items()}).static_order())


def test_it_can_be_read_in_an_evening() -> None:
    paper = {name: path for name, path in MODULES.items() if room(path) == "paper"}
    del paper["itlib.example"]  # the algorithm once more, on one page
    del paper["itlib._checks"]  # what is accepted, not what is computed
    size = {name: len(list(code(path))) for name, path in paper.items()}
    assert sum(size.values()) <= 1100, size


def test_nothing_is_written_twice() -> None:
    """No ten lines of code follow one another in two places."""
    seen: dict[tuple[str, ...], str] = {}
    for name, path in MODULES.items():
        lines = list(code(path, bare=True))
        for start in range(len(lines) - 9):
            run = tuple(text for _, text in lines[start : start + 10])
            place = f"{name}:{lines[start][0]}"
            assert seen.setdefault(run, place) == place, f"{place} repeats {seen[run]}"


def test_lines_are_counted_without_words(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        '"""Two\n\nlines."""\n\n# A comment.\ndef f():\n    """One."""\n    x = """not\n    a docstring"""\n    return x\n'
    )
    assert [number for number, _ in code(path)] == [6, 8, 9, 10]


def test_the_library_starts_with_torch_and_no_other_heavy_library() -> None:
    """What takes long to import is imported where it is used."""
    names = [name for name, path in MODULES.items() if room(path) not in ("figures", "reproduce")]
    script = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"torchdiffeq", "ot", "jsonschema", *GUESTS} & set(loaded)
