# ---
# jupyter:
#   itlib:
#     reads:
#     - book/equations.yml
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: py:percent,ipynb
#     notebook_metadata_filter: itlib,kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Equation by equation
#
# Every numbered equation of the paper, its two results and its two algorithms: what it says, where this book derives it, where
# the library computes it, and which check holds it.
#
# **You will see** one table to look things up in, and a second one that says how each check was tested in turn: a sign is flipped
# or a factor dropped in the formula's code, and the check has to fail.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # nothing here depends on it

# %% tags=["remove-cell"]
import importlib
from pathlib import Path

import pandas as pd
import yaml
from IPython.display import Markdown, display

from itlib.experiments.files import located

entries = yaml.safe_load(located("../book/equations.yml").read_text())

# %% tags=["remove-cell"]


def number(entry):
    """A link to where the paper's formula stands in the book."""
    if entry["id"][0].isdigit():
        return f"{{eq}}`eq-{entry['id'].replace('.', '-')}`"
    return f"{{ref}}`{entry['id']} <{entry['id'].lower().replace(' ', '-').replace('.', '-')}>`"


def exists(path):
    """Whether a dotted name can be imported."""
    parts = path.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for name in parts[i:]:
            found = getattr(found, name, None)
        return found is not None
    return False


def code(entry):
    """A link to the documentation of the code, or to the page that computes it."""
    place = entry["code"]
    if place.startswith("notebooks/"):
        return f"{{doc}}`on the page <{Path(place).stem}>`"
    assert exists(place), place
    return f"{{py:obj}}`{place.split('.')[-1]} <{place}>`"


def check(entry):
    """The name of the check, which says what it checks, as words."""
    _, _, name = entry["check"].partition("::")
    return name.removeprefix("test_").replace("_", " ") if name else "an assert on the page"


def table(rows):
    """A table whose rows are cards on a phone."""
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    display(Markdown(f":::{{table}}\n:class: cards\n\n{text}\n:::"))


def code_span(text):
    """Source text as code in a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`` {text} ``" if text else "nothing"


# %% [markdown]
# ## The table
#
# A *definition* cannot hold or fail, but its code can be wrong, so it has a check as well. *Holds corrected* means that the printed
# form has a slip, which {doc}`errata` shows. The column *derived in* leads to the chapter, *code* to the documentation.

# %% tags=["remove-input"]
counts = pd.Series([entry["verdict"] for entry in entries]).value_counts()
display(
    Markdown(
        f"{len(entries)} entries: {counts['holds']} hold, {counts['holds corrected']} hold once corrected, "
        f"{counts['definition']} are definitions. None is left without a check."
    )
)
rows = [
    {
        "": number(entry),
        "what it says": entry["says"],
        "derived in": f"{{doc}}`{entry['place']}`",
        "code": code(entry),
        "verdict": entry["verdict"],
    }
    for entry in entries
]
table(rows)

# %% [markdown]
# ## Do the checks bite?
#
# A test that cannot fail says nothing. So each check is itself tested: one place in the code of the formula is broken, and the check is
# run on that. `make test` does this for every row below and fails if a check lets its broken formula pass;
# `python tests/mutants.py 3.10` does it for one. The column *check* gives the name of a test in words.

# %% tags=["remove-input"]
rows = [
    {
        "": number(entry),
        "check": check(entry),
        "code, and what it is broken into": f"{code_span(entry['mutant']['old'])}<br>→ {code_span(entry['mutant']['new'])}",
    }
    for entry in entries
]
table(rows)

# %% [markdown]
# ## Try this
#
# Invent a mutant that survives: an entry of `book/equations.yml` whose `new` is wrong and whose check passes all the same. Equal up to
# rounding does not count. If you find one, a check is missing, and we would like to know.
