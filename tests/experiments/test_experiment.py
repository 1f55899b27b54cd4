"""Parameters, records and the registry: one object is what is asked for and what is recorded."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch

from itlib.experiments import EXPERIMENTS, base, experiment, paper
from itlib.experiments.experiment import Record
from itlib.experiments.files import DamagedFileError
from itlib.experiments.records import load_record, load_records, save_record
from itlib.gaussian_mixture import NotNormalisableError


@dataclass(frozen=True, kw_only=True)
class Small(experiment.Parameters):
    """A class of parameters with a knob of each kind, of which one follows from another."""

    experiment: ClassVar[str] = "paper"
    N: int = 20
    lr: float | None = None
    kind: Literal["plain", "skip"] = "plain"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settle(lr=1e-3 if self.kind == "skip" else 1e-4)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("N", 2.5, "N is a whole number, got 2.5"),
        ("N", True, "N is a whole number, got True"),
        ("N", -1, "N is at least 0, got -1"),
        ("lr", "fast", "lr is a number, got 'fast'"),
        ("lr", float("nan"), "lr is a number, got nan"),
        ("kind", "other", "kind is 'plain' or 'skip', got 'other'"),
        ("profile", "quick", "profile is 'full' or 'smoke', got 'quick'"),
    ],
)
def test_a_knob_of_a_wrong_kind_is_refused_with_what_it_takes(name: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=name) as found:
        Small(**{name: value})  # type: ignore[arg-type]
    assert str(found.value) == words


def test_numbers_of_numpy_are_knobs() -> None:
    """As what they are elsewhere, or a record could not be written."""
    found = Small(seed=np.int64(3), N=np.int32(5), lr=np.float64(0.5))
    assert found == Small(seed=3, N=5, lr=0.5)
    assert json.dumps(asdict(found)) == json.dumps(asdict(Small(seed=3, N=5, lr=0.5)))
    with pytest.raises(ValueError, match="N is a whole number, got True"):
        Small(N=np.bool_(True))


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no parameter of paper 'M': choose from seed, profile, N, lr, kind"):
        Small.of({"M": 3})


def test_what_was_left_out_is_filled_in_and_again_after_a_change() -> None:
    assert Small().lr == 1e-4
    assert Small(kind="skip").lr == 1e-3
    assert Small().but(kind="skip") == Small(kind="skip")
    assert Small(lr=0.5).but(kind="skip").lr == 0.5


@pytest.mark.parametrize("asked", [Small(), Small(kind="skip"), Small(N=3, lr=1e-3, seed=7), Small(lr=1)])
def test_changes_make_the_same_object_and_say_no_more_than_they_must(asked: Small) -> None:
    changes = asked.changes()
    assert Small(**changes) == asked
    for name in changes:
        assert Small(**{k: v for k, v in changes.items() if k != name}) != asked


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_cells_have_names_of_their_own_and_come_back_from_a_record(name: str, tmp_path: Path) -> None:
    found = EXPERIMENTS[name]
    cells = found.cells([0, 1])
    assert found.name == name
    assert len(set(cells.values())) == len(cells)
    for parameters in [*cells.values()][:: max(1, len(cells) // 5)]:
        assert EXPERIMENTS[parameters.experiment].run is found.run
        assert parameters.but() == parameters
        assert parameters.of(json.loads(json.dumps(asdict(parameters)))) == parameters
        for before in found.after(parameters).values():
            assert before.seed in (0, parameters.seed)
            assert before.profile == parameters.profile
            assert before.experiment in EXPERIMENTS


def test_an_unknown_experiment_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no experiment 'rivas': choose from base, paper, choices"):
        EXPERIMENTS["rivas"]


def test_a_record_comes_back_as_it_was_and_its_tensors_lie_beside_it(tmp_path: Path) -> None:
    asked = Small(lr=1 / 3)
    record = Record(
        paper.Parameters(lr=1 / 3),
        {"eps_rmse": 0.12345678, "flow_nll": float("nan"), "mode_weights": [0.25, 0.75]},
        trace=[1.0, 2.0],
        curve={"k": [1, 2]},
        tensors={"x": torch.ones(2)},
    )
    saved = save_record(tmp_path / "one.json", record)
    assert load_record(tmp_path / "one.json") == saved
    assert saved.parameters == paper.Parameters(lr=1 / 3)  # all digits of what was asked for,
    assert saved.metrics == {"eps_rmse": 0.123457, "flow_nll": None, "mode_weights": [0.25, 0.75]}  # six of what was found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json", "one.safetensors"]
    assert load_records(tmp_path, base.Parameters) == []
    assert load_records(tmp_path, paper.Parameters) == [saved]
    assert asked.lr == 1 / 3


GOOD = {
    "experiment": "base",
    "parameters": {"seed": 0},
    "metrics": {"eps_rmse": 0.1},
    "seconds": {"training": 1.0},
    "provenance": {"versions": {}, "commit": "", "content": "", "platform": ""},
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": {"eps_rmse": "low"}}, "at metrics/eps_rmse, there are no numbers"),
        ({"metrics": {"eps_rmse": True}}, "at metrics/eps_rmse, there are no numbers"),
        ({"metrics": {"w": [[[1.0]]]}}, "at metrics/w, there are no numbers"),
        ({"metrics": []}, "at metrics, there is no object of names and values"),
        ({"seconds": {"training": -1.0}}, "at seconds/training, there is no time"),
        ({"curve": {"k": [1], "x": [1, 2]}}, "at curve, the columns are not equally long"),
        ({"trace": "down"}, "at trace, there is no list of numbers"),
        ({"failure": 3}, "at failure, there are no words"),
        ({"provenance": {}}, "at provenance, commit is missing"),
        ({"more": 1}, "at the top level, more has no meaning"),
        ({"parameters": {"sead": 0}}, "at parameters, there is no parameter of base 'sead'"),
        ({"parameters": {"seed": "0"}}, "at parameters, seed is a whole number, got '0'"),
        ({"experiment": "bass"}, "there is no experiment 'bass'"),
    ],
)
def test_a_damaged_record_is_refused_with_the_place(tmp_path: Path, change: dict[str, object], words: str) -> None:
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert load_record(tmp_path / "good.json").parameters == base.Parameters()
    (tmp_path / "bad.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(DamagedFileError) as found:
        load_record(tmp_path / "bad.json")
    assert words in str(found.value)
    assert str(tmp_path / "bad.json") in str(found.value)
    assert str(found.value).endswith("delete it and run again to make it anew")


@pytest.mark.parametrize("text", ["", "{", '{"experiment": NaN}', "[" * 100_000, "[]"])
def test_what_is_no_record_at_all_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DamagedFileError):
        load_record(tmp_path / "bad.json")


def test_a_target_that_does_not_exist_is_refused_before_any_work() -> None:
    with pytest.raises(NotNormalisableError):
        paper.Parameters(reward="A=9,9")
    with pytest.raises(ValueError, match="cannot be drawn from"):
        paper.Parameters(S=10)


def test_parameters_of_the_paper_have_every_knob_of_their_tilts() -> None:
    asked = paper.Parameters(N=5, lr=1e-3, profile="smoke")
    for f in fields(asked.tilting):
        if hasattr(asked, f.name):
            assert getattr(asked, f.name) == getattr(asked.tilting, f.name)
    assert (asked.S, asked.J) == (500, 50)
    assert paper.Parameters(method="recommended").base.method == "recommended"
