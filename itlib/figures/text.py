r"""What a page says in words: numbers for its sentences, tables, and checks in one line.

A sentence is written in Markdown, and takes its numbers from the code above it::

    figures.glue(lag=f"{lag:.2f}", seeds=len(rows))

    After all tilts the mean lags by {glue:text}`lag` ({glue:text}`seeds` seeds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scientific(value: float) -> str:
    """A number as it is printed: 0.0123 stays, 3.2e-13 becomes 3·10⁻¹³."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}·10{str(int(exponent)).translate(_RAISED)}"


def glue(**numbers: str | float) -> None:
    """Offer numbers to the sentences of the page, as ``{glue:text}`name```; nothing is shown here.

    Args:
        numbers: by name; strings are printed as they are, and other numbers like :func:`scientific`.
    """
    from IPython.display import display  # a reader without Jupyter can still draw

    for name, value in numbers.items():
        text = value if isinstance(value, str) else str(value) if isinstance(value, int) else scientific(float(value))
        prefix = "application/papermill.record/"  # a form of output that no page renders
        display({f"{prefix}text/plain": repr(text)}, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})


def table(rows: Any, floatfmt: str | Sequence[str] = ".3g", index: bool = False) -> None:
    """Show a table as Markdown, so that formulas and links in it work.

    Args:
        rows: a DataFrame, or what makes one: a list of mappings from column to value.
        floatfmt: of all columns, or one for each.
        index: whether the index is the first column.
    """
    import pandas as pd
    from IPython.display import Markdown, display

    frame = rows if isinstance(rows, pd.DataFrame | pd.Series) else pd.DataFrame(rows)
    display(Markdown(frame.to_markdown(index=index, floatfmt=floatfmt)))


def check(what: str, error: float, below: float) -> None:
    """Hold an error against its bound: one line on the page, or a page that cannot be built.

    Args:
        what: what agrees, such as "quadrature and the closed form".
        error: how well it does.
        below: what it has to stay below.

    Raises:
        AssertionError: if it does not.
    """
    if not error < below:
        raise AssertionError(f"{what}: {error:.3g} is not below {below:.3g}")
    print(f"✓ {what}: {scientific(error)} (below {scientific(below)})")


def settings(values: Mapping[str, Any], name: str = "value") -> None:
    """Show names and values as a table of two columns."""
    import pandas as pd

    table(pd.Series(dict(values), name=name), index=True)
