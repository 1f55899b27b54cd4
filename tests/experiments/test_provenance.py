"""What a result depends on: the code that was imported for it, and neither words nor anything else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from itlib.experiments import provenance
from itlib.experiments.provenance import PACKAGE, content, content_of, content_of_all

LIBRARY = {
    "__init__": '"""The door."""\n\nfrom itlib.tilting import tilt\n',
    "schedules": '"""Schedules."""\n\nRATE = 1.5\n',
    "tilting": "from itlib.schedules import RATE\n\n\ndef tilt(x):\n    return RATE * x\n",
    "figures/__init__": "",
    "figures/plots": "INK = 'black'\n",
    "experiments/__init__": "import importlib\n\n\ndef load(name):\n    return importlib.import_module(name)\n",
    "experiments/paper": "import math\n\n\ndef run():\n    from itlib import tilting\n\n    return tilting.tilt(math.pi)\n",
    "experiments/rivals": "import itlib.schedules\n\n\ndef run():\n    return itlib.schedules.RATE\n",
    "reproduce/__init__": "",
    "reproduce/batch": "from itlib.experiments import load\n",
}
NOTEBOOK = "from itlib import tilt\nfrom itlib.figures import plots\n\ntilt(1)\n"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library of our shape."""
    for name, text in LIBRARY.items():
        file = tmp_path / "itlib" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "itlib"


def hashes(library: Path) -> dict[str, str]:
    """Of two experiments, a page, and everything."""
    return {
        "paper": content("itlib.experiments.paper", library),
        "rivals": content("itlib.experiments.rivals", library),
        "page": content_of(NOTEBOOK, library),
        "all": content_of_all(library),
    }


@pytest.mark.parametrize(
    ("module", "old", "new", "changes"),
    [
        ("schedules", "1.5", "2.5", {"paper", "rivals", "page", "all"}),
        ("tilting", "RATE * x", "x * RATE", {"paper", "page", "all"}),
        ("experiments/paper", "math.pi", "math.tau", {"paper", "all"}),
        ("experiments/rivals", "RATE", "rate", {"rivals", "all"}),
        ("figures/plots", "black", "blue", {"page", "all"}),
        ("__init__", "import tilt", "import tilt as tilt2", {"page", "all"}),
        ("reproduce/batch", "load", "load as lade", {"all"}),
        ("experiments/__init__", "import_module", "find_module", {"all"}),
        ("schedules", '"""Schedules."""', '"""Other words."""', set()),
        ("schedules", "RATE = 1.5", "# A rate.\nRATE  =  (\n    1.5\n)  # or two", set()),
        ("tilting", "    return", '    """Tilt."""\n\n    return', set()),
    ],
)
def test_a_change_reaches_what_imports_it(library: Path, module: str, old: str, new: str, changes: set[str]) -> None:
    before = hashes(library)
    file = library / f"{module}.py"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    after = hashes(library)
    assert {name for name in before if before[name] != after[name]} == changes


def test_code_counts_and_its_comments_do_not(library: Path) -> None:
    assert content_of(NOTEBOOK + "# words\n", library) == content_of(NOTEBOOK, library)
    assert content_of(NOTEBOOK + "tilt(2)\n", library) != content_of(NOTEBOOK, library)
    assert content_of("x = 'a'", library) != content_of("x = 'b'", library)
    assert content_of("x = a + b", library) != content_of("x = a - b", library)


def test_a_module_that_is_not_there(library: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"has no module itlib\.nothing"):
        content("itlib.nothing", library)


def test_of_the_real_library() -> None:
    """The batch and the plots are behind no number; what is behind one is found wherever the library lies."""
    _, modules = provenance._read("import itlib.experiments.checkpoints", PACKAGE)
    assert modules == {"itlib.experiments.checkpoints"}
    assert content("itlib.tilting") == content("itlib.tilting", PACKAGE)
    seen: set[str] = set()
    waiting = ["itlib.experiments.checkpoints"]
    while waiting:
        seen.add(name := waiting.pop())
        waiting += [m for m in provenance._read_module(name, PACKAGE)[1] if m not in seen]
    assert {"itlib.tilting", "itlib.network", "itlib.schedules"} <= seen
    assert not {name for name in seen if name.split(".")[1] in ("reproduce", "figures", "baselines")}


def test_a_repository_that_is_not_this_checkout_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one in whose ignored environment the library was installed."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    copy = Path(shutil.copytree(PACKAGE / "experiments", tmp_path / "itlib" / "experiments"))
    monkeypatch.setattr(provenance, "PACKAGE", copy.parent)
    monkeypatch.setattr(provenance, "__file__", str(copy / "provenance.py"))
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "Another project")
    assert provenance.commit() == "unknown"
    git("add", "itlib")
    git("commit", "-q", "-m", "This one")
    assert provenance.commit() == git("rev-parse", "HEAD")
    (copy / "provenance.py").write_text("changed = 1\n")
    assert provenance.commit() == git("rev-parse", "HEAD") + "+changes"
