"""The grid of what is recommended: valid, one change at a time, and what the committed records are of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments.ablation import ADDED, MORE, REMOVED, Parameters, cell_of, cells, run, settings
from itlib.experiments.records import load_record, load_records
from itlib.tilting import TiltingConfig

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "book" / "reference" / "ablation"


@pytest.mark.parametrize("asked", cells([0]).values(), ids=cell_of)
def test_every_cell_makes_a_valid_configuration(asked: Parameters) -> None:
    config = asked.tilting
    assert (config.target_ess is None) == (asked.method == "paper" or asked.N is not None or "N" in asked.changed)
    assert asked.base == asked.changed.get("base", asked.base)


def test_unknown_names_are_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no change of 'paper' 'no-rule': choose from paper, skip, analytic"):
        Parameters(method="paper", change="no-rule")
    with pytest.raises(ValueError, match=r"no problem 'sevn': choose from paper, .*tails"):
        Parameters(problem="sevn")
    with pytest.raises(ValueError, match="base is 'skip' or 'plain' or 'wide' or 'small' or 'exact', got 'large'"):
        Parameters(base="large")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:tilt .* of its chains are effective")  # a first look is short of chains
def test_a_run_with_the_exact_base_has_no_floor(tmp_path: Path) -> None:
    asked = Parameters(problem="one-mode", base="exact", N=2, profile="smoke")
    record = run(asked, tmp_path)
    assert record.parameters == asked
    assert max(record.curve["floor"]) < 1e-5 < record["eps_rmse"]
    assert len(record.trace) == record["tilts"] == 2
    assert record["rewards"] == 2 * 200


def test_a_change_changes_what_it_names() -> None:
    defaults = {"recommended": RecommendedConfig(), "paper": RecommendedConfig.like(TiltingConfig())}
    for config, changes in (("recommended", REMOVED | MORE), ("paper", ADDED)):
        default = asdict(defaults[config])
        for name, knobs in changes.items():
            changed = {key: value for key, value in asdict(settings(config, None, knobs)).items() if value != default[key]}
            assert changed == {key: value for key, value in knobs.items() if key in default and value != default[key]}, name


def test_no_configuration_spends_more_than_fifty_tilts_of_the_paper() -> None:
    for N in (20, 50, 100, 200):
        config = settings("recommended", N, {})
        assert config.S <= 1000
        assert config.S * N <= 50_000
        assert min(1600 * 64, 50 * 1600 * 64 / N) >= config.S * config.J * config.E  # sample-steps of a tilt


def test_records_are_of_the_grid() -> None:
    records = load_records(REFERENCE, Parameters)
    seeds: dict[str, set[int]] = {}
    for record in records:
        name, asked = cell_of(record.parameters), record.parameters
        assert load_record(REFERENCE / f"{asked.problem}_{name}_seed{asked.seed}.json") == record
        assert len(record.trace) == record["tilts"]
        assert record.curve["floor"][-1] == record["floor"]
        seeds.setdefault(f"{asked.problem}_{name}", set()).add(asked.seed)
    assert {f"{stem}_seed0" for stem in seeds} == set(cells([0]))
    assert all(len(found) >= 5 for name, found in seeds.items() if "_main_" in name)
