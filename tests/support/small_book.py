"""A small book with the real configuration: hand-made pages stand in for the runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from itlib import figures

ROOT = Path(__file__).parents[2]

RESULTS = r"""# Section 4.2: results

## The score

$$ e = 0 \tag{4.13} $$ (eq-4-13)

The error {eq}`eq-4-13` of {numref}`fig-score-error`, on the path {eq}`eq-own`, for {eq}`eq-3-10` of
{cite:t}`pachebat2025iterative`.

$$
\|s\|^2 = \int \|s_\theta - \nabla\log p\|^2\, p\, dx
  + \sum_{i=1}^{100} \frac{a_i b_i c_i d_i}{e_i f_i g_i h_i} + A + B + C + D + E + F + G
$$ (eq-own)

Without a label, a number may still be shown:

$$ x = y \tag{9.9} $$

```{glue:figure} score-error
:name: fig-score-error

Score error, $\mathrm{RMSE}_k$ of {eq}`eq-4-13`, with $N$ tilts.
```

:::{table} Metrics of the final model, $k = N$.
:name: tab-metrics

| $N$ | NLL | NLL, paper | MSE, summed over coordinates | MSE, paper | sampling seconds | training seconds |
|--:|--:|--:|--:|--:|--:|--:|
| 20 | 2.75 | 6.48 | .005 | 1.67 | 12.1 | 14.2 |
:::

See {numref}`tab-metrics` and {numref}`tab-output`."""

RUN = r"""# N = 20, seed 0

## Samples of a denoiser

All denoisers are learned, and a denoiser is a network.

```{margin}
Beside the text.
```

And more.

```{margin}
Beside it once more.
```

```{glue:figure} samples
:name: fig-samples-n020-seed0

Samples at $k = N/2$ and at the end, compare {numref}`fig-score-error` and {eq}`eq-2-1`.
```"""


def notebook(
    text: str, *drawings: tuple[Any, str, str], markdown: str = "", tags: tuple[str, ...] = ()
) -> nbformat.NotebookNode:
    """An executed notebook: cells, with tags, that show the figures, then the text."""
    title, rest = text.split("\n\n", 1)
    cells = [new_markdown_cell(title + "\n\nWhat this page shows.\n\n**You will see** a page.")]
    for figure, name, alt in drawings:
        data, metadata = figures.bundle(figure, name, alt)
        output = new_output("display_data", data=data, metadata=metadata)
        cells.append(
            new_code_cell(f"show(fig, {name!r})", execution_count=1, outputs=[output], metadata={"tags": list(tags)})
        )
    if markdown:
        output = new_output("display_data", data={"text/markdown": markdown, "text/plain": "table"})
        cells.append(new_code_cell("display(table)", execution_count=2, outputs=[output]))
    cells.append(new_markdown_cell(rest))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    meta = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python", "pygments_lexer": "ipython3"},
    }
    return new_notebook(cells=cells, metadata=meta)


def equations(stem: str) -> str:
    """The paper's equations that a chapter labels, with their numbers and nothing in them."""
    source = ROOT / "notebooks" / f"{stem}.py"
    labels = re.findall(r"\(eq-(\d+)-(\d+)\)$", source.read_text("utf-8"), re.MULTILINE) if source.exists() else []
    return "\n\n".join(f"$$ x \\tag{{{a}.{b}}} $$ (eq-{a}-{b})" for a, b in labels)


def make(root: Path) -> Path:
    """Copy the book's sources to a folder, with two hand-made pages in place of the computed ones."""
    generator = np.random.default_rng(0)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "book", root / "book", ignore=shutil.ignore_patterns("runs", "pages", "reference"))
    k = {n: np.arange(1, n + 1) / n for n in (20, 50, 100, 200)}
    error = {n: 0.2 + 0.4 * x + 0.05 * generator.standard_normal(n) for n, x in k.items()}
    bands = {n: (x, 0.15 + 0.4 * x, 0.25 + 0.4 * x) for n, x in k.items()}
    cloud = generator.standard_normal((4, 3, 1000, 2))
    xs, ys = np.linspace(-5, 5, 61), np.linspace(-3.5, 5.5, 55)
    grid = (xs, ys, -0.5 * (xs[None, :] ** 2 + ys[:, None] ** 2))
    rows = [
        {"N": n, "half": c[0], "final": c[1], "target": c[2], "density": grid, "density_half": grid}
        for n, c in zip(k, cloud, strict=True)
    ]
    table = ":::{table} Computed, $N = 20$, see {eq}`eq-2-1`.\n:name: tab-output\n\n"
    table += "| $N$ | value |\n|--:|--:|\n| 20 | $1.5$ |\n:::\n"
    pages = {
        "book/pages/s4_2_results.ipynb": notebook(
            RESULTS,
            (figures.figure_2(error, bands=bands), "score-error", "Curves that rise with k."),
            markdown=table,
        ),
        "book/runs/N020_seed0.ipynb": notebook(
            RUN, (figures.figure_1(rows), "samples", "Clouds of points."), tags=("remove-input",)
        ),
    }
    # The other computed pages of the contents: a title and the equations that others refer to are enough.
    listed = re.findall(r"file: (book/pages/\S+)", (root / "_toc.yml").read_text("utf-8"))
    for stem in (*listed, "book/runs/base_seed0"):
        pages.setdefault(f"{stem}.ipynb", notebook(f"# {Path(stem).name}\n\n## Equations\n\n{equations(Path(stem).name)}"))
    for path, page in pages.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page, root / path)
    return root


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """Build the book as ``make book`` does; the site is in ``_build/html``."""
    command = ["jupyter-book", "build", ".", "--all", "-W", "--keep-going", "-q"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1"}
    command[0] = str(Path(sys.executable).with_name("jupyter-book"))
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
