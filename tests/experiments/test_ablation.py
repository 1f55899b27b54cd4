"""The grid of what is recommended: valid, one change at a time, and what the committed records are of."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments.ablation import ADDED, MORE, REMOVED, cells, settings
from itlib.experiments.grids import ABLATION, GRIDS
from itlib.experiments.problems import task
from itlib.experiments.records import read_record
from itlib.reproduce.batch import parameters_of
from itlib.tilting import TiltingConfig

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "book" / "reference" / "ablation"


@pytest.mark.parametrize("name", cells())
def test_every_cell_can_be_run(name: str) -> None:
    """Its parameters are the template's, its task exists, and its change makes a valid configuration."""
    parameters = cells()[name]
    assert set(parameters) <= set(parameters_of(str(ROOT / "notebooks" / f"{ABLATION}.py")))
    task(parameters["task"])
    changes = {"": {}, **REMOVED, **MORE, **ADDED}[parameters.get("change", "")]
    config = settings(parameters["config"], parameters.get("N"), changes)
    assert (config.target_ess is None) == (parameters["config"] == "paper" or "N" in parameters or "N" in changes)
    assert GRIDS["ablation"].variants([]) == cells()


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
    seeds: dict[str, set[int]] = {name: set() for name in cells()}
    for path in sorted(REFERENCE.glob("*.json")):
        name, _, seed = path.stem.rpartition("_seed")
        record = read_record(path)
        parameters = record["parameters"]
        assert (record["task"], parameters["profile"], parameters["seed"]) == ("ablation", "full", int(seed))
        asked = cells()[name]
        assert {key: parameters[key] for key in asked if key != "base"} == {k: v for k, v in asked.items() if k != "base"}
        metrics = record["metrics"]
        assert len(record["trace"]) == metrics["tilts"]
        assert record["curve"]["floor"][-1] == metrics["floor"]
        seeds[name].add(int(seed))
    assert all(seeds.values()), [name for name, found in seeds.items() if not found]
    assert all(len(found) >= 5 for name, found in seeds.items() if "_main_" in name)
