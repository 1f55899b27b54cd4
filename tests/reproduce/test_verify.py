"""Verification: exact on the same machine, by band elsewhere; and a band holds what it should, not what it should not."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_batch
import torch

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import Record
from itlib.experiments.records import load_record, save_record
from itlib.reproduce import cell as cell_module
from itlib.reproduce import command, execute
from itlib.reproduce.cell import Cell
from itlib.reproduce.command import main
from itlib.reproduce.verify import FEWEST, band, cell_of, figures, judge, outside, peers
from itlib.reproduce.verify import verify as verify_records

REFERENCE = small_batch.ROOT / "book" / "reference"


def verify(*arguments: str, root: Path = small_batch.ROOT) -> subprocess.CompletedProcess[str]:
    """In an environment whose cache is empty, as verification wants it."""
    return small_batch.batch(root, "--verify", *arguments)


def everything(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_a_record_comes_out_again_and_a_changed_one_does_not(tmp_path: Path) -> None:
    """In a clone; and nothing is written that git, or a look at all other files, can see."""
    root = small_batch.copy(tmp_path / "root")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(root)]
    shutil.copy(small_batch.ROOT / ".gitignore", root)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All of it"]):
        subprocess.run([*git, *arguments], check=True)
    made = small_batch.finished() / "book" / "runs"  # on this machine
    record, changed = tmp_path / "N002_seed0.json", tmp_path / "changed.json"
    shutil.copy(made / record.name, record)
    found = json.loads(record.read_text())
    found["metrics"]["nll_target"] *= 1.001
    changed.write_text(json.dumps(found))
    # One of the two has been run again by a call that was stopped then, so it is not run once more.
    again = root / "_build" / "verify" / f"{tmp_path.name}_changed.json"
    again.parent.mkdir(parents=True)
    shutil.copy(record, again)
    before = everything(tmp_path)
    result = verify(str(record), str(changed), root=root)
    assert result.returncode == 1, result.stderr
    assert result.stdout.splitlines() == [
        str(record),
        "  the same in every digit: parameters, metrics and trace",
        "  made with this processor, these versions and this library",
        str(changed),
        "  differs, and must not on the same machine: nll_target by 0.1 %",
        "  made with this processor, these versions and this library",
    ]
    assert "changed" not in result.stderr, "it was looked up, and not run"
    assert not (root / "_build" / "verify").exists()
    assert subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True).stdout == b""
    assert everything(tmp_path).keys() == before.keys() - {again}
    assert all(content == before[path] for path, content in everything(tmp_path).items())


def test_of_every_grid_only_the_own_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run does is pretended; where its record and its tensors go is not."""
    monkeypatch.chdir(tmp_path)
    pretended = {
        name: replace(e, run=lambda p, folder: Record(p, {"x": 1.0}, tensors={"weights": torch.zeros(1)}))
        for name, e in EXPERIMENTS.items()
    }
    monkeypatch.setattr(cell_module, "EXPERIMENTS", pretended)
    monkeypatch.setattr(execute, "run_in_process", lambda cell, *_: cell_module.execute(Cell(**cell)) or "")
    (tmp_path / "given").mkdir()
    paths = []
    for name, experiment in EXPERIMENTS.items():
        stem, parameters = next(iter(experiment.cells([0]).items()))
        paths.append(tmp_path / "given" / f"{name}_{stem}.json")
        save_record(paths[-1], Record(parameters, {"x": 1.0}, tensors={"weights": torch.ones(1)}))
    before = everything(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        assert verify_records(paths, tmp_path, tmp_path / "work", threads, 1) == 0
    assert everything(tmp_path) == before
    assert len(paths) >= 10


def test_what_cannot_be_verified_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    record = str(REFERENCE / "paper" / "N020_seed0.json")
    for arguments, says in (
        ([str(tmp_path / "x.json")], "is no record of a run, or damaged"),
        ([str(tmp_path / "no.json")], "there is no file"),
        ([record, "--executor", "tcp://127.0.0.1:1"], "leave out --executor"),
        ([record, "--profile", "smoke"], "takes all from the record: leave out --profile"),
        ([record, "--seeds", "1"], "leave out --seeds"),
        ([record, "--records-only"], "leave out --records-only"),
        ([record, "--set", "lr=1"], "leave out --set"),
    ):
        assert command.main(["--root", str(tmp_path), "--verify", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error


def test_every_committed_record_can_be_made_again(tmp_path: Path) -> None:
    records = {path: load_record(path) for path in sorted(REFERENCE.rglob("*.json"))}
    assert len(records) > 200
    for path, record in records.items():
        cell = cell_of(record, path, tmp_path)
        assert cell.asked() == record.parameters, path
        assert Path(cell.record).is_relative_to(tmp_path)
        assert not cell.page


@pytest.mark.parametrize(
    ("name", "seeds"),
    [("paper/N020_seed0", 10), ("paper/base_seed3", 10), ("small/N003_seed0", 3), ("rivals/paper_smc_seed0", 3)],
)
def test_the_peers_of_a_record_are_its_other_seeds(name: str, seeds: int) -> None:
    """Among them that of the documented example, which is to say yes or no everywhere."""
    record = load_record(REFERENCE / f"{name}.json")
    found = peers(record, [load_record(path) for path in sorted(REFERENCE.rglob("*.json"))])
    assert len({r.parameters.seed for r in found}) >= max(seeds, FEWEST)
    assert len({replace(r.parameters, seed=0) for r in found}) == 1


# ---- the band ------------------------------------------------------------------------------------------------------


def seeds_of(name: str) -> list[Record[Any]]:
    return [load_record(path) for path in sorted((REFERENCE / "paper").glob(f"{name}_seed*.json"))]


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
        for record in map(load_record, sorted((REFERENCE / "choices").glob(f"{choice}_N020_seed*.json"))):
            assert outside(record, seeds_of("N020")), choice


def elsewhere(record: Record[Any], **provenance: Any) -> Record[Any]:
    return replace(record, provenance={**record.provenance, "processor": "another", **provenance})


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
    there = replace(there, metrics={**there.metrics, "nll_target": there["nll_target"] + 5})
    verdict = judge(record, there, records)
    assert verdict.agrees is False
    assert "outside the band of 10 seeds" in verdict.says
    assert "nll_target 7." in verdict.says
    assert judge(record, elsewhere(record), []).says == "the same in every digit: parameters, metrics and trace"
    other = replace(other, provenance={k: v for k, v in other.provenance.items() if k != "processor"})
    assert judge(other, record, records).because == "made with a processor there that the record does not name"
    newer = elsewhere(record, processor="this", content="new", versions={"torch": "9"})
    assert judge(record, newer, records).because.startswith("made with torch 2.13.0+cpu there and 9 here; another state")


def test_figures_are_numbers_one_by_one() -> None:
    base = EXPERIMENTS["base"].parameters()
    record = Record(base, {"a": 1, "b": [2.0, [3.0, None]], "c": None}, trace=[1.0, 3.0])  # type: ignore[list-item]
    assert figures(record) == {"a": 1.0, "b[0]": 2.0, "b[1][0]": 3.0, "mean of the trace": 2.0}
    flat = Record(base, {"a": 1.0})
    assert band([flat, flat]) == {"a": (1.0 - 1e-5, 1.0 + 1e-5)}
    assert outside(Record(base, {}), [flat, flat]).keys() == {"a"}


def test_clocks_are_no_figures() -> None:
    record = elsewhere(load_record(REFERENCE / "rivals" / "paper_dpok_seed0.json"), processor="this")
    slower = [None if s is None else 2 * s for s in record.curve["seconds"]]
    again = replace(record, curve={**record.curve, "seconds": slower}, seconds={"training": 1e3, "sampling": 0.0})
    assert judge(record, again, []).agrees is True
    worse = replace(record, curve={**record.curve, "sliced_w2": [9.0 for _ in slower]})
    assert judge(record, worse, []).agrees is False


@pytest.mark.parametrize("name", ["README.md", "nowhere.json", "folder"])
def test_what_is_no_record_is_told_in_a_sentence_and_left_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("# A file of the user's\n")
    (tmp_path / "folder").mkdir()
    assert main(["--verify", str(tmp_path / name), "--root", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert str(tmp_path / name) in said
    assert "delete" not in said
    assert said.count("\n") == 1
