"""The shape of the library: imports point one way, it stays small, and it needs what it says it needs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "itlib"
#: From bottom to top: a module may import those before it.
ORDER = [
    "schedules",
    "rewards",
    "gaussian_mixture",
    "tasks",
    "scaling",
    "network",
    "corrections",
    "sampling",
    "paths",
    "training",
    "stepsize",
    "tilting",
    "ablation",
    "estimators",
    "budget",
    "likelihood",
    "metrics",
    "wrap",
    "images",
    "records",
    "runs",
    "plots",
    "grids",
    "verify",
    "reproduce",
]
#: The rivals, from bottom to top: each may import the core and those before it. Only the list of grids knows of them.
RIVALS = [
    "baselines/common",
    "baselines/tilt_matching",
    "baselines/reward_weighted",
    "baselines/draft",
    "baselines/adjoint_matching",
    "baselines/policy_gradient",
    "baselines/guidance",
    "baselines/monte_carlo",
    "baselines/comparison",
    "baselines/digits",
]
BATCH = ("records", "runs", "verify", "reproduce")
CORE = tuple(name for name in ORDER if name not in (*BATCH, "grids", "plots"))
#: The part of the core that goes beyond the paper.
BEYOND = ("tasks", "corrections", "paths", "stepsize", "estimators", "scaling", "budget", "ablation")
#: Off the toys: other people's models, and a data set with what judges it.
OFF = ("wrap", "images")
#: Heavy guests, and the only modules that may invite them.
ONLY = {
    "matplotlib": {"plots"},
    "IPython": {"plots"},
    "seaborn": set(),
    "pandas": set(),
    "papermill": {"reproduce"},
    "jupytext": {"reproduce"},
    "nbformat": {"reproduce"},
    "nbclient": {"reproduce"},
    "distributed": {"reproduce"},
    "peft": {"wrap"},
    "diffusers": set(),
    "sklearn": {"images"},
    "scipy": {"images"},
}
#: How a distribution is called where its import is not.
IMPORT_NAMES = {"pot": "ot", "pillow": "pil", "scikit-learn": "sklearn"}


def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text("utf-8"))


def imported(nodes: list[ast.stmt] | ast.Module) -> set[str]:
    """Dotted names that are imported; ``from a import b`` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(nodes) if isinstance(nodes, ast.Module) else nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def code_lines(path: Path) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    source = path.read_text("utf-8")
    quiet: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            first = node.body[0]
            quiet |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and not line.lstrip().startswith("#") and number not in quiet)


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__")


def test_every_rival_has_its_place() -> None:
    assert sorted(RIVALS) == sorted(f"baselines/{p.stem}" for p in PACKAGE.glob("baselines/*.py") if p.stem != "__init__")


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_import_the_core_and_each_other(name: str) -> None:
    allowed = {f"itlib.{core}" for core in CORE}
    allowed |= {f"itlib.{rival.replace('/', '.')}" for rival in RIVALS[: RIVALS.index(name)]}
    ours = {dotted.rpartition(".")[0] for dotted in imported(tree(name)) if dotted.startswith("itlib.")}
    assert ours <= allowed
    assert not {dotted.split(".")[0] for dotted in imported(tree(name))} & set(ONLY)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_down(name: str) -> None:
    below = set(ORDER[: ORDER.index(name)])
    ours = {dotted.split(".")[1] for dotted in imported(tree(name)) if dotted.startswith("itlib.")}
    assert ours <= (below | {"baselines"} if name == "grids" else below)
    assert not {dotted.split(".")[0] for dotted in imported(tree(name))} & {
        guest for guest, hosts in ONLY.items() if name not in hosts
    }


def test_the_core_stays_small() -> None:
    size = {name: code_lines(PACKAGE / f"{name}.py") for name in ORDER}
    assert sum(size[name] for name in CORE if name not in (*BEYOND, *OFF)) <= 1075, size  # seventy-five for bad input
    assert sum(size[name] for name in BEYOND) <= 550, size
    assert sum(size[name] for name in OFF) <= 260, size
    assert sum(size[name] for name in BATCH) <= 930, size  # of which a quarter is locks, clusters and verification


def test_lines_are_counted_without_words(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        '"""Two\n\nlines."""\n\n# A comment.\ndef f():\n    """One."""\n    x = """not\n    a docstring"""\n    return x\n'
    )
    assert code_lines(path) == 4


@pytest.mark.parametrize("name", [*ORDER, *RIVALS])
def test_nothing_is_ever_unpickled(name: str) -> None:
    code = tree(name)
    assert not {dotted.split(".")[0] for dotted in imported(code)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    called = {ast.unparse(node.func) for node in ast.walk(code) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "torch.save", "np.load", "numpy.load", "marshal.loads", "eval", "exec"}


def test_the_core_starts_with_torch_and_no_other_heavy_library() -> None:
    """What takes long to import is imported where it is used."""
    modules = ", ".join(f"itlib.{name}" for name in (*CORE, "records", "runs"))
    code = f"import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"scipy", "torchdiffeq", "ot", "sklearn", "jsonschema", *ONLY} & set(loaded)


def distributions(requirements: Iterable[str]) -> set[str]:
    """Their names, without extras and versions."""
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in requirements}


def test_the_core_imports_what_the_project_lists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = distributions(project["dependencies"])
    needed = {
        dotted.split(".")[0] for name in (*CORE, *BATCH) for dotted in imported(tree(name).body)  # at the top level
    } - {"itlib", "__future__"} - set(sys.stdlib_module_names)  # fmt: skip
    assert needed <= {IMPORT_NAMES.get(name, name) for name in listed}
    for name in listed:
        assert importlib.metadata.version(name)


def test_imports_inside_functions_are_listed_too() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    listed = distributions(line for group in groups for line in group)
    listed |= {"nbformat", "nbclient", "ipython"}  # what papermill and the kernel are made of
    needed = {dotted.split(".")[0].lower() for name in ORDER for dotted in imported(tree(name))}
    needed -= {"itlib", "__future__"} | set(sys.stdlib_module_names)
    assert needed <= {IMPORT_NAMES.get(name, name) for name in listed}
