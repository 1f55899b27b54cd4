"""The committed reference: what the front pages show of it, and one small cell that is run again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import small_batch

from itlib.experiments import base, paper
from itlib.experiments.records import load_record, load_records

REFERENCE = small_batch.ROOT / "book" / "reference"


def test_records_are_whole_seeds_of_the_papers_grid() -> None:
    """Every seed has a base and all four numbers of tilts, computed with the paper's parameters."""
    records = load_records(REFERENCE / "paper", paper.Parameters)
    seeds = sorted({record.parameters.seed for record in records})
    assert len(seeds) >= 2
    grid = paper.cells(seeds)
    assert {stem: load_record(REFERENCE / "paper" / f"{stem}.json").parameters for stem in grid} == grid
    assert len(records) == len(grid)
    assert all(len(record.trace) == record.parameters.N for record in records)
    bases = load_records(REFERENCE / "paper", base.Parameters)
    assert [record.parameters for record in bases] == [base.Parameters(seed=seed) for seed in seeds]
    plain = records[0].parameters.tilting
    section_4_2 = {"lam": 1.0, "S": 1000, "J": 200, "eta": 1.0, "B": 64, "E": 100, "epoch": "minibatch"}
    assert {name: getattr(plain, name) for name in section_4_2} == section_4_2


def test_each_open_choice_was_varied_alone() -> None:
    """Every variant has records, of the same seeds, and differs from the paper grid in its own parameters only."""
    records = load_records(REFERENCE / "choices", paper.Parameters)
    grid = paper.choices_over_N(sorted({r.parameters.seed for r in records}), sorted({r.parameters.N for r in records}))
    assert {stem: load_record(REFERENCE / "choices" / f"{stem}.json").parameters for stem in grid} == grid
    assert len(records) == len(grid)
    for changes in paper.OPEN.values():
        assert paper.Parameters(**changes).changes() == changes


def test_front_pages_show_the_records() -> None:
    check = [sys.executable, str(REFERENCE.parent / "showcase.py"), "--check"]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_small_cell_gives_the_committed_figures() -> None:
    """A run of today against the record of the same cell, base training included.

    Where the record was made all six digits agree. Another processor rounds differently, and training amplifies that, so two
    per cent are allowed; another random stream, step or formula changes far more.
    """
    name = Path("N003_seed0.json")
    committed = load_record(REFERENCE / "small" / name)
    again = load_record(small_batch.finished() / "book" / "runs" / name)
    assert again.parameters == committed.parameters
    assert again.trace == pytest.approx(committed.trace, rel=0.02)
    for key in ("score_rmse", "eps_rmse", "nll_target", "nll_base", "flow_nll"):
        assert again[key] == pytest.approx(committed[key], rel=0.02), key
