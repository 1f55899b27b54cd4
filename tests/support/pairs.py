"""Check that each notebook's .ipynb is its .py and holds no output; with ``--mend`` write those that are not from their .py.

Usage: ``python tests/support/pairs.py [--mend] [FOLDER]``.
"""

from __future__ import annotations

import hashlib
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


def mend(folder: Path) -> list[str]:
    """Write each pair that differs from its source, and say which; a pair without a source is left alone."""
    wrong = {line.split(".ipynb")[0].split(":")[0] for line in problems(folder) if ".ipynb" in line.split(":")[0]}
    stems = sorted(stem for stem in wrong if (folder / f"{stem}.py").exists())
    for stem in stems:
        source, pair = folder / f"{stem}.py", folder / f"{stem}.ipynb"
        notebook, before = jupytext.read(source), jupytext.read(pair).cells if pair.exists() else []
        known = {(cell.cell_type, cell.source): cell.id for cell in before}
        for number, cell in enumerate(notebook.cells):  # cells that stay keep their ids, so that a difference is small
            new = hashlib.sha256(f"{number} {cell.source}".encode()).hexdigest()[:8]
            cell.id = known.pop((cell.cell_type, cell.source), new)
        jupytext.write(notebook, pair)
    return [f"{stem}.ipynb is written anew" for stem in stems]


if __name__ == "__main__":
    given = [argument for argument in sys.argv[1:] if argument != "--mend"]
    place = Path(given[0]) if given else NOTEBOOKS
    mended = mend(place) if "--mend" in sys.argv else []
    lines = problems(place)
    print("\n".join(mended + lines) or "each notebook's pair agrees with it")
    sys.exit(bool(mended + lines))
