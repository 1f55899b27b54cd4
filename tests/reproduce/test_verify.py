"""Verification: exact on the same machine, by band elsewhere; and a band holds what it should, not what it should not."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import small_batch
from test_faults import Place, undisturbed

from itlib.experiments.records import read_record, read_records
from itlib.reproduce import batch as reproduce
from itlib.reproduce.verify import band, figures, judge, outside

REFERENCE = small_batch.ROOT / "book" / "reference"


def verify(place: Place, *records: Path) -> subprocess.CompletedProcess[str]:
    command = small_batch.command("--verify", *map(str, records))
    return subprocess.run(command, cwd=place.root, env=place.environment, capture_output=True, text=True, check=False)


def test_a_record_comes_out_again_and_a_changed_one_does_not(tmp_path: Path) -> None:
    done = undisturbed(("4",))
    place = Place(Path(shutil.copytree(done.root, tmp_path / "root")), done.N, slow=0.0)
    runs, changed = place.root / "book" / "runs", tmp_path / "changed.json"
    record = read_record(runs / "N004_seed0.json")
    record["metrics"]["nll_target"] *= 1.001
    changed.write_text(json.dumps(record))
    record["parameters"]["mood"] = "good"
    (foreign := tmp_path / "foreign.json").write_text(json.dumps(record))
    # Two of the three have been run again by a call that was stopped then, so they are not run once more.
    for stopped in (changed, foreign):
        again = place.root / "_build" / "verify" / f"{tmp_path.name}_{stopped.stem}.json"
        again.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs / "N004_seed0.json", again)
    before = place.log("executed").total()
    result = verify(place, runs / "N004_seed0.json", changed, foreign)
    assert result.returncode == 2, result.stderr
    assert result.stdout.splitlines() == [
        str(runs / "N004_seed0.json"),
        "  the same in every digit: parameters, metrics and trace",
        "  made with this processor, these versions and this library",
        str(changed),
        "  differs, and must not on the same machine: nll_target by 0.1 %",
        "  made with this processor, these versions and this library",
        str(foreign),
        "  cannot be run again here, where {'mood': 'good'} is no choice: verify it at its commit unknown",
    ]
    assert place.log("executed").total() == before + 1
    assert place.log("tilted")["runs_N004_seed0 1"] == 1, "it was looked up, and not run"
    assert not (place.root / "_build" / "verify").exists()
    assert (
        read_record(runs / "N004_seed0.json")["metrics"] == read_record(done.root / "book/runs/N004_seed0.json")["metrics"]
    )


def test_what_cannot_be_verified_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    for arguments, says in (
        ([str(tmp_path / "x.json")], "is not a valid run record"),
        ([str(tmp_path / "no.json")], "No such file"),
        ([str(REFERENCE / "paper" / "N020_seed0.json"), "--executor", "tcp://127.0.0.1:1"], "leave out --executor"),
    ):
        assert reproduce.main(["--verify", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error


def test_every_committed_record_can_be_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its notebook takes its parameters, but for choices of its own, and what a record does not mention has a default."""
    monkeypatch.setattr(reproduce, "parameters_of", functools.cache(reproduce.parameters_of))
    records = {path: read_record(path) for path in sorted(REFERENCE.rglob("*.json"))}
    assert len(records) > 200
    for path, record in records.items():
        cell = reproduce._cell_of(record, path, small_batch.ROOT, tmp_path)
        missing = {name for name, value in reproduce.parameters_of(cell.notebook).items() if value is None}
        own = {"budget": {"lr"}, "digits": {"lam", "J", "evaluations"}}.get(record["task"], set())
        assert (
            reproduce.compact({k: v for k, v in record["parameters"].items() if k not in own}).items()
            <= cell.recorded().items()
        ), path
        assert missing.isdisjoint({"task", "seed", "profile", "config"})


def test_the_peers_of_a_record_are_its_other_seeds() -> None:
    records = read_records(REFERENCE, "**/*.json")
    for name, seeds in (
        ("paper/N020_seed0", 10),
        ("paper/base_seed3", 10),
        ("small/N003_seed0", 1),
        ("budget/paper_N020_learned_seed0", 3),
    ):
        path = REFERENCE / f"{name}.json"
        cell = reproduce._cell_of(read_record(path), path, small_batch.ROOT, Path())
        found = {record["parameters"]["seed"] for record in reproduce._peers(cell, records)}
        assert len(found) >= seeds, name
        assert all(r["parameters"].get("N") == cell.parameters.get("N") for r in reproduce._peers(cell, records))


# ---- the band ------------------------------------------------------------------------------------------------------


def seeds_of(name: str) -> list[dict[str, Any]]:
    return read_records(REFERENCE / "paper", f"{name}_seed*.json")


def test_a_band_holds_another_seed_and_not_another_learning_rate() -> None:
    """Of our own runs, each against the band of the nine others; and runs with a rate ten times as high."""
    inside = total = 0
    for name in ("base", "N020", "N050", "N100", "N200"):
        records = seeds_of(name)
        assert len(records) == 10
        inside += sum(not outside(r, [other for other in records if other is not r]) for r in records)
        total += len(records)
    assert inside >= 0.9 * total, f"{inside} of {total}"
    for choice in ("lr1e-3", "sgd1e-1"):
        for record in read_records(REFERENCE / "choices", f"{choice}_N020_seed*.json"):
            assert outside(record, seeds_of("N020")), choice


def elsewhere(record: dict[str, Any], **provenance: Any) -> dict[str, Any]:
    other = copy.deepcopy(record)
    other["provenance"] |= {"processor": "another", **provenance}
    return other


def test_the_verdict_depends_on_where_a_run_was_made() -> None:
    records = [elsewhere(record, processor="this") for record in seeds_of("N020")]
    record, other = records[0], records[1]  # another seed stands in for another machine
    there = elsewhere(other)
    verdict = judge(record, there, records)
    assert verdict.agrees is True
    assert verdict.says.startswith("inside the band of 10 seeds (in which ")
    assert verdict.because == "made with this there and another here"
    assert judge(record, other, records).agrees is False
    assert "must not on the same machine" in judge(record, other, records).says
    assert judge(record, there, records[:2]).agrees is None
    assert "a band takes 3" in judge(record, there, records[:2]).says
    there["metrics"]["nll_target"] += 5
    verdict = judge(record, there, records)
    assert verdict.agrees is False
    assert "outside the band of 10 seeds" in verdict.says
    assert "nll_target 7." in verdict.says
    assert judge(record, elsewhere(record), []).says == "the same in every digit: parameters, metrics and trace"
    del other["provenance"]["processor"]
    assert judge(other, record, records).because == "made with a processor there that the record does not name"
    newer = elsewhere(record, processor="this", content="new", versions={"torch": "9"})
    assert judge(record, newer, records).because.startswith("made with torch 2.13.0+cpu there and 9 here; another state")


def test_figures_are_numbers_one_by_one() -> None:
    record = {"metrics": {"a": 1, "b": [2.0, [3.0, None]], "c": None}, "trace": [1.0, 3.0]}
    assert figures(record) == {"a": 1.0, "b[0]": 2.0, "b[1][0]": 3.0, "mean of the trace": 2.0}
    flat = {"metrics": {"a": 1.0}, "trace": []}
    assert band([flat, flat]) == {"a": (1.0 - 1e-5, 1.0 + 1e-5)}
    assert outside({"metrics": {}, "trace": []}, [flat, flat]).keys() == {"a"}
