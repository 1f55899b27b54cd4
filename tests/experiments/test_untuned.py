"""Tasks that nobody tuned on: a run judges itself against the exact target and says when it did not arrive."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from itlib.experiments.records import load_record, load_records, save_record
from itlib.experiments.untuned import CHANGES, EXPERIMENT, REPORTED, Method, Parameters, run


@pytest.mark.parametrize("method", get_args(Method))
def test_a_first_look_leaves_a_record(tmp_path: Path, method: str) -> None:
    asked = Parameters(seed=16, method=method, profile="smoke")  # type: ignore[arg-type]
    record = run(asked, tmp_path)
    assert record["floor"] == pytest.approx(0.0, abs=1e-4)  # of an exact base, in single precision
    assert (0 if method != "exact" else -1) < record["eps_rmse"] < 3 * record["untilted"]
    if method == "exact":
        assert record["eps_rmse"] == pytest.approx(0.0, abs=1e-4)
    assert sum(record["mode_weights"]) == pytest.approx(1.0)
    saved = save_record(tmp_path / "one.json", record)
    assert load_record(tmp_path / "one.json").parameters == saved.parameters == asked


def test_reported_seeds_are_not_those_that_choices_were_made_on() -> None:
    grid = EXPERIMENT.cells([0, 1])
    reported = [p for p in grid.values() if p.seed >= REPORTED]
    assert {(p.method, p.change, p.base) for p in reported} == {(method, "", "skip") for method in get_args(Method)}
    assert {p.change for p in grid.values() if p.seed < REPORTED} == {"", *CHANGES}


def test_no_reported_task_is_left_out() -> None:
    """The first of the seeds that nobody chose on, one after the other, at least twenty of them."""
    records = load_records(Path(__file__).parents[2] / "book" / "reference" / "untuned", Parameters)
    assert {r.parameters.method for r in records} == {"value", "bounded", "chains", "tilting"}
    for method in ("value", "bounded", "chains", "tilting"):
        own = sorted(r.parameters.seed for r in records if r.parameters.method == method)
        assert own == list(range(REPORTED, REPORTED + len(own)))
        assert len(own) >= 20
    assert {(r.parameters.base, r.parameters.change) for r in records} == {("skip", "")}


def test_a_change_is_one_of_the_value() -> None:
    with pytest.raises(ValueError, match="choose from"):
        Parameters(change="nothing")
    with pytest.raises(ValueError, match="no change"):
        Parameters(method="chains", change="wider")
