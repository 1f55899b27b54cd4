"""Check that each notebook's .ipynb is its .py and holds no output. Usage: ``python tests/support/pairs.py [FOLDER]``."""

from __future__ import annotations

import sys
from pathlib import Path

import jupytext

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def problems(folder: Path) -> list[str]:
    """What is wrong with the pairs of a folder, one line each."""
    found = []
    stems = sorted({p.stem for p in folder.iterdir() if p.suffix in (".py", ".ipynb")})
    for stem in stems:
        source, pair = folder / f"{stem}.py", folder / f"{stem}.ipynb"
        if not source.exists() or not pair.exists():
            missing = pair if source.exists() else source
            found.append(f"{missing.name} is missing: jupytext --sync {folder.name}/{stem}.*")
            continue
        text, notebook = jupytext.read(source), jupytext.read(pair)
        same = [(c.cell_type, c.source, dict(c.metadata)) for c in text.cells] == [
            (c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells
        ]
        if not same or text.metadata.get("itlib") != notebook.metadata.get("itlib"):
            found.append(f"{pair.name} differs from {source.name}: jupytext --sync {folder.name}/{source.name}")
        code = [c for c in notebook.cells if c.cell_type == "code"]
        if any(c.outputs or c.execution_count for c in code):
            found.append(f"{pair.name} holds outputs: jupyter nbconvert --clear-output --inplace {folder.name}/{pair.name}")
    return found


if __name__ == "__main__":
    lines = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOKS)
    print("\n".join(lines) or "each notebook's pair agrees with it")
    sys.exit(bool(lines))
