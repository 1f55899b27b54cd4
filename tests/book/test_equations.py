"""Every numbered equation of the paper has its place in the book and a check, and each check bites."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import mutants
import pytest
import small_batch

ROOT = Path(__file__).parents[2]
#: What the paper numbers.
PAPER = {f"{section}.{n}" for section, last in ((2, 19), (3, 13), (4, 13)) for n in range(1, last + 1)} | {
    "Proposition 3.1", "Corollary 3.2", "Algorithm 1", "Algorithm 2"
}  # fmt: skip
ENTRIES = mutants.entries()


def pages() -> dict[str, str]:
    """Sources of all pages, by stem."""
    return {p.stem: p.read_text() for folder in ("notebooks/*.py", "book/*.md") for p in ROOT.glob(folder)}


def test_nothing_that_the_paper_numbers_is_left_out() -> None:
    names = [entry["id"] for entry in ENTRIES]
    assert len(names) == len(set(names))
    assert set(names) == PAPER
    for entry in ENTRIES:
        assert set(entry) == {"id", "says", "place", "code", "check", "verdict", "mutant"}, entry["id"]
        assert entry["verdict"] in ("holds", "holds corrected", "definition"), entry["id"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_it_stands_on_its_page_and_nowhere_else(entry: dict[str, str]) -> None:
    name, texts = entry["id"], pages()
    if name[0].isdigit():
        label = f"(eq-{name.replace('.', '-')})"
        assert rf"\tag{{{name}}}" in texts[entry["place"]]
    else:
        label = f"({name.lower().replace(' ', '-').replace('.', '-')})="
    assert [stem for stem, text in texts.items() for _ in range(text.count(label))] == [entry["place"]]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_its_check_exists(entry: dict[str, str]) -> None:
    path, _, name = entry["check"].partition("::")
    tree = ast.parse((ROOT / path).read_text())
    if name:
        assert re.sub(r"\[.*", "", name) in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    else:
        assert path == f"notebooks/{entry['place']}.py"
        assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def test_every_check_bites() -> None:
    """One place in the code of each formula is broken, and its check must fail."""
    environment = small_batch.environment(ROOT) | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "mutants.py")]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(": bites\n") == len(PAPER)


def test_a_check_that_does_not_bite_is_found(tmp_path: Path) -> None:
    entry = next(e for e in ENTRIES if e["id"] == "4.2") | {"id": "harmless"}
    entry["mutant"] = {"file": "itlib/rewards.py", "old": "return 0.5 * ((x @ A) * x)", "new": "return 0.5 * (x * (x @ A))"}
    text = f"import mutants; print(mutants.survivors([{entry!r}]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "support")}
    result = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.splitlines()[-1] == "{'harmless': 'passes'}", result.stdout + result.stderr
