"""Numbers for sentences, tables and checks."""

from __future__ import annotations

from typing import Any

import pytest

from itlib import figures


def displayed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    seen: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr("IPython.display.display", lambda value, **options: seen.append((value, options)))
    return seen


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01234, "0.0123"), (3.2e-13, "3·10⁻¹³"), (-2e-5, "-2·10⁻⁵"), (1.5e7, "2·10⁷"), (12.0, "12")],
)
def test_numbers_are_printed_as_a_book_prints_them(value: float, text: str) -> None:
    assert figures.scientific(value) == text


def test_glued_numbers_reach_the_page_and_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = displayed(monkeypatch)
    figures.glue(lag="0.12", seeds=3, gap=2e-9)
    assert [options["metadata"]["scrapbook"]["name"] for _, options in seen] == ["lag", "seeds", "gap"]
    assert [data for data, _ in seen] == [
        {"application/papermill.record/text/plain": f"'{t}'"} for t in ("0.12", "3", "2·10⁻⁹")
    ]


def test_a_check_that_fails_stops_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    figures.check("both forms", 3e-13, below=1e-9)
    assert capsys.readouterr().out == "✓ both forms: 3·10⁻¹³ (below 1·10⁻⁹)\n"
    for wrong in (1e-9, float("nan")):
        with pytest.raises(AssertionError, match="is not below 1e-09"):
            figures.check("both forms", wrong, below=1e-9)


def test_tables_keep_their_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = displayed(monkeypatch)
    figures.table([{"$N$": 20, "error": 0.12345}])
    figures.settings({"lr": 1e-4})
    assert "|   $N$ |   error |" in seen[0][0].data
    assert "0.123" in seen[0][0].data
    assert "| lr |" in seen[1][0].data
