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
# Every numbered equation of the paper, its two results and its two algorithms: what it says, where this book derives it, where the library
# computes it, and which check holds it.
#
# **You will see** one table to look things up in, and a second one that shows that each check bites: a sign is flipped or a factor
# dropped in the formula's code, and the check fails.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # nothing here depends on it

# %%
import importlib
from pathlib import Path

import pandas as pd
import yaml
from IPython.display import Markdown, display

from itlib import figures
from itlib.experiments.files import located

entries = yaml.safe_load(located("../book/equations.yml").read_text())
verdicts = [entry["verdict"].split()[-1] for entry in entries]
counts = {name: verdicts.count(name) for name in ("holds", "corrected", "definition")}
figures.glue(entries=len(entries), **counts)


# %% tags=["hide-cell"]
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


# %% tags=["hide-cell"]
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


def mutant(entry):
    """What the code is broken into, as code in a cell of a table."""
    old, new = (" ".join(entry["mutant"][key].split()).replace("|", "\\|") for key in ("old", "new"))
    return f"`` {old} ``<br>→ " + (f"`` {new} ``" if new else "nothing")


def cards(rows):
    """A table whose rows are cards on a phone."""
    text = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    display(Markdown(f":::{{table}}\n:class: cards\n\n{text}\n:::"))


# %% [markdown]
# ## The table
#
# Of {glue:text}`entries` entries {glue:text}`holds` hold, {glue:text}`corrected` hold once corrected ({doc}`errata` shows the slip), and
# {glue:text}`definition` are definitions. A definition cannot fail, but its code can be wrong, so it has a check as well.

# %% tags=["hide-input"]
rows = []
for entry in entries:
    row = {"": number(entry), "what it says": entry["says"], "derived in": f"{{doc}}`{entry['place']}`"}
    rows.append(row | {"code": code(entry), "verdict": entry["verdict"]})
cards(rows)

# %% [markdown]
# ## Do the checks bite?
#
# A test that cannot fail says nothing. So each formula's code is broken in one place, and its check has to notice. `make test` does this
# for every row below; `python tests/support/mutants.py 3.10` does it for one. The column *check* gives the name of a test in words.

# %% tags=["hide-input"]
cards([{"": number(e), "check": check(e), "code, and what it is broken into": mutant(e)} for e in entries])

# %% [markdown]
# ## Try this
#
# - *Predict, then run.* Which numbered formulas of the paper hold only once corrected? (Hint: {doc}`errata`.)

# %% tags=["hide-cell"]
print(*(entry["id"] for entry in entries if entry["verdict"] == "holds corrected"), sep=", ")

# %% [markdown]
# - *Implement.* Find a mutant that survives: an entry of `book/equations.yml` whose `new` is wrong and whose check passes all the same. Equal
#   up to rounding does not count. If you find one, a check is missing, and we would like to know.
