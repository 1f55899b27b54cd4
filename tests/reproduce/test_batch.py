"""The batch: what it refuses, what it runs again, and what it survives."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_batch
from distributed.scheduler import KilledWorker
from small_batch import SMALL, alive, batch, executed, family, kernel, kill, started, wait_for

from itlib.experiments import EXPERIMENTS
from itlib.experiments.experiment import Record
from itlib.experiments.provenance import content
from itlib.experiments.records import load_record, save_record
from itlib.reproduce import cell as cell_module
from itlib.reproduce import command, execute
from itlib.reproduce.cell import BatchError, Cell, parameters_of
from itlib.reproduce.command import main
from itlib.reproduce.execute import run_batch
from itlib.reproduce.plan import asked_for, cells_of, chapters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretended notebooks that are never run."""
    return small_batch.pretend(tmp_path_factory.mktemp("idle") / "root")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretended notebooks after a batch of N = 2 and 3. Copy it before changing it."""
    root = small_batch.pretend(tmp_path_factory.mktemp("done") / "root")
    result = batch(root, "--N", "2", "3")
    assert result.returncode == 0, result.stderr
    assert executed(root) == ["N002_seed0", "N003_seed0", "base_seed0", "chapter"]
    return root


@pytest.fixture
def mine(done: Path, tmp_path: Path) -> Path:
    """An own copy of a finished batch."""
    return Path(shutil.copytree(done, tmp_path / "elsewhere"))


def grid(root: Path, name: str = "paper", *, out: Path | None = None, pages: bool = True, **options: Any) -> list[Cell]:
    """The cells of a grid in full, unless said otherwise."""
    experiment = EXPERIMENTS[name]
    asked = asked_for(experiment, **{"N": None, "seeds": [0], "profile": "full"} | options)
    return cells_of(root, experiment, asked, out or root / "book" / "runs", pages=pages)


def run_of(name: str, folder: Path, **more: Any) -> Cell:
    """A run whose record is not there."""
    return Cell(name, "base", record=str(folder / f"{name}.json"), **more)


class Recorder(Executor):
    """Runs nothing and remembers what it was given; a cell answers what ``answers`` says of it, "" if nothing."""

    def __init__(self, answers: dict[str, str] | None = None) -> None:
        self.names: list[str] = []
        self.answers = answers or {}

    def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.names.append(arguments[0]["name"])
        future.set_result(self.answers.get(self.names[-1], ""))
        return future


# ---- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--N", "0"], "argument --N: it is a whole number of at least 1, got '0'"),
        (["--N", "1.5"], "at least 1, got '1.5'"),
        (["--N", "-3"], "argument --N"),
        (["--N"], "argument --N: expected at least one argument"),
        (["--seeds", "x"], "a seed is a whole number of at least 0 and less than 2**63, got 'x'"),
        (["--jobs", "0"], "at least 1, got '0'"),
        (["--profile", "nope"], "argument --profile: invalid choice: 'nope' (choose from"),
        (["--config", "nope"], "argument --config: invalid choice: 'nope' (choose from"),
        (["--nope"], "unrecognized arguments: --nope"),
        (["--set", "lr"], "write NAME=VALUE, got 'lr'"),
        (
            ["--set", "nope=1"],
            "--set has no parameter nope that is free here: it has B, E, J, S, device, epoch, eta, lam, lr, ",
        ),
        (["--set", "N=5"], "--set has no parameter N"),
        (["--grid", "choices", "--set", "lr=1e-3"], "--set has no parameter lr that is free here"),
        (["--set", "reward=A=4,4"], "cannot be normalised"),
        (["--set", "reward=nonsense"], "cannot read the reward 'nonsense'"),
        (["--set", "lam=abc"], "lam is a number, got 'abc'"),
        (["--set", "lam=1e999"], "lam is a number, got inf"),
        (["--set", "S=1.5"], "S is a whole number, got 1.5"),
        (["--set", "S=0"], "S must be a whole number of at least 1, got 0"),
        (["--set", "B=5000"], "a minibatch of B=5000 cannot be drawn from S=1000 samples"),
        (["--set", "lr=-1"], "lr is at least 0, got -1"),
    ],
)
def test_a_wrong_command_is_one_sentence(
    idle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    try:
        status: Any = main(["--root", str(idle), *arguments])
    except SystemExit as end:
        status = end.code
    shown = capsys.readouterr()
    assert status == 2
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err
    assert not (idle / "executed").exists()


def test_a_scheduler_that_is_not_there_is_one_sentence_and_changes_nothing(mine: Path) -> None:
    result = batch(mine, "--profile", "smoke", "--executor", "tcp://127.0.0.1:1")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: no Dask scheduler answers at tcp://127.0.0.1:1 ")
    assert result.stderr.endswith("start one with 'dask scheduler'\n")
    assert result.stderr.count("\n") == 1, result.stderr
    assert len(list((mine / "book" / "runs").glob("*.json"))) == 3


@pytest.mark.parametrize("options", [[], ["--records-only"]])
@pytest.mark.parametrize("damage", ["truncated", "schema"])
def test_a_damaged_record_is_one_sentence(
    idle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str, options: list[str]
) -> None:
    (tmp_path / "N002_seed0.json").write_text(
        '{"experiment": "paper", "para' if damage == "truncated" else '{"experiment": "paper"}'
    )
    assert main(["--root", str(idle), "--N", "2", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {tmp_path / 'N002_seed0.json'} is ")
    assert error.endswith("delete it and run again to make it anew\n")
    assert not (idle / "executed").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    examples = [
        line.strip().split("    ")[0] for line in text.splitlines() if line.startswith("  python -m itlib.reproduce")
    ]
    assert len(examples) >= 4
    for example in examples:
        command._parser().parse_args(shlex.split(example)[3:])
    for word in ("--N", "--seeds", "--profile", "--set", "--jobs", "--executor", "--out", "Killed?", "ITLIB_CACHE"):
        assert word in text
    assert "--cell" not in text
    assert "--root" not in text


def test_help_comes_at_once() -> None:
    heavy = "{'torch', 'papermill', 'distributed', 'matplotlib'}"
    code = f"import sys, itlib.reproduce.command; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


# ---- what is run, and in which order -------------------------------------------------------------------------------


def test_the_grid_is_a_base_per_seed_and_a_run_per_cell(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in grid(ROOT, N=[20, 5], seeds=[0, 3], out=tmp_path, overrides={"lr": 1e-3})}
    assert set(cells) == {
        *("base_seed0", "N020_seed0", "N005_seed0"),
        *("base_seed3", "N020_seed3", "N005_seed3"),
    }
    cell = cells["N020_seed3"]
    assert cell.after == ("base_seed3",)
    assert cell.parameters == {"seed": 3, "lr": 1e-3}, "what has its default is left to it"
    assert Path(cell.record) == tmp_path / "N020_seed3.json"
    assert not Path(cell.injected()["record"]).is_absolute()
    assert (ROOT / "notebooks" / cell.injected()["record"]).resolve() == tmp_path / "N020_seed3.json"
    assert cells["base_seed0"].after == ()
    assert "lr" not in cells["base_seed0"].parameters
    assert all(c.notebook == c.page == "" for c in grid(ROOT, N=[1], pages=False))


def test_every_notebook_takes_what_the_batch_gives_it() -> None:
    cells = grid(ROOT, overrides={"S": 500, "lr": 1.0}) + chapters(ROOT, "smoke")
    assert {cell.experiment for cell in cells} == {"base", "paper", ""}
    for cell in cells:
        assert set(cell.injected()) <= set(parameters_of(cell.notebook)), cell.name
        if "load_record" in Path(cell.notebook).read_text():
            assert cell.reads, f"{cell.name} reads records, and its header should say which: itlib, reads"
        if cell.chapter and "import resumable_base" in Path(cell.notebook).read_text():
            assert str(ROOT / "_build/cache") in cell.reads, f"{cell.name} would train a base that another cell is training"


def test_the_knobs_of_a_notebook_are_those_of_its_experiment() -> None:
    for cell in grid(ROOT, N=[20]):
        asked = EXPERIMENTS[cell.experiment].parameters()
        defaults = parameters_of(cell.notebook)
        assert defaults.pop("record") == ""
        assert EXPERIMENTS[cell.experiment].parameters.of(defaults) == asked, cell.experiment


def test_every_grid_has_an_order_and_names_of_its_own() -> None:
    for name, experiment in EXPERIMENTS.items():
        cells = grid(ROOT, name, pages=False)
        assert cells, name
        known = {cell.name: cell for cell in cells}
        assert len(known) == len(cells), name
        assert all(first in known for cell in cells for first in cell.after), name
        assert {cell.asked() for cell in cells} >= set(experiment.cells([0]).values()) or experiment.over_N, name


def test_cells_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="these cells wait for each other: "):
        run_batch([Cell("a", after=("b",)), Cell("b", after=("a",))], Recorder(), scratch=tmp_path)


def test_bases_come_first_then_the_longest_and_a_broken_base_stops_only_its_own(tmp_path: Path) -> None:
    cells = [
        run_of(f"{kind}{seed}", tmp_path, after=(f"base{seed}",) if kind != "base" else (), work=work)
        for seed in (0, 1)
        for kind, work in (("short", 1), ("base", 9), ("long", 5))
    ]
    recorder = Recorder({"base1": "ValueError: no"})
    failures = run_batch(cells, recorder, scratch=tmp_path / "progress")
    assert recorder.names == ["base0", "base1", "long0", "short0"]
    assert failures == {
        "base1": "ValueError: no",
        "long1": "not run, because base1 failed",
        "short1": "not run, because base1 failed",
    }


def test_chapters_fill_what_the_grid_leaves_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run beside the base, give way to the runs, and those that read runs come after them, although one has failed."""
    (tmp_path / "x.py").write_text("")
    page = {"notebook": str(tmp_path / "x.py"), "page": str(tmp_path / "x.ipynb")}
    cells = [Cell(f"chapter{i}", **page) for i in range(8)]
    cells += [Cell("late", **page, after=("base", "long", "short")), run_of("base", tmp_path)]
    cells += [run_of(name, tmp_path, after=("base",)) for name in ("long", "short")]
    begun: list[str] = []

    def run(cell: dict[str, Any], *_: str) -> str:
        begun.append(cell["name"])
        if cell["name"] == "base":  # ends when two chapters have begun
            wait_for(lambda: "chapter1" in begun, "a second chapter", 20)
        if cell["name"] == "chapter2":  # ends when the base has ended
            wait_for(lambda: "long" in begun, "a run", 20)
        return "ValueError: no" if cell["name"] == "short" else ""

    monkeypatch.setattr(execute, "run_in_process", run)
    with ThreadPoolExecutor(2) as executor:
        failures = run_batch(cells, executor, scratch=tmp_path / "progress", jobs=2)
    assert failures == {"short": "ValueError: no"}
    assert begun[:2] == ["base", "chapter0"]
    assert max(begun.index("long"), begun.index("short")) < begun.index("chapter3")
    assert begun.index("late") > begun.index("short")
    assert sorted(begun) == sorted(cell.name for cell in cells)


def test_an_executor_that_breaks_fails_its_cells_only(tmp_path: Path) -> None:
    class Broken(Recorder):
        def submit(self, function: Any, /, *arguments: Any, **_: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if arguments[0]["name"] == "a":
                future.cancel()
                future.set_running_or_notify_cancel()
            elif arguments[0]["name"] == "b":
                future.set_exception(RuntimeError("the cluster went away"))
            elif arguments[0]["name"] == "c":
                future.set_exception(KilledWorker("c", SimpleNamespace(address="there"), 3))
            else:
                future.set_result("")
            return future

    failures = run_batch([run_of(name, tmp_path) for name in "abcd"], Broken(), scratch=tmp_path)
    assert failures == {
        "a": "the scheduler went away: start it and its workers again, then run the same command",
        "b": "RuntimeError: the cluster went away",
        "c": "4 workers died while they ran it: see their logs; if memory was short, give them more",
    }


def test_pieces_of_a_stream_are_one_output() -> None:
    def said(text: str, name: str = "stdout") -> dict[str, str]:
        return {"output_type": "stream", "name": name, "text": text}

    picture = {"output_type": "display_data"}
    pieces = [said("a"), said("\n"), said("b", "stderr"), said("c"), dict(picture), said("d"), said("e")]
    assert cell_module.joined(pieces) == [said("a\n"), said("b", "stderr"), said("c"), picture, said("de")]


def test_again_names_what_failed_and_keeps_the_rest() -> None:
    arguments = (
        "--N 2 3 5 --seeds 0 1 --profile smoke --set 'reward=A=-2,1 b=1,1' lr=1e-3 --jobs 1 --records-only --out 'a b'"
    )
    options = command._parser().parse_args(shlex.split(arguments))
    cells = {c.name: c for c in grid(ROOT, N=[2, 3, 5], seeds=[0, 1])}

    def again(*failed: str) -> argparse.Namespace:
        words = shlex.split(command._again(options, [cells[name] for name in failed]))
        assert words[:3] == ["python", "-m", "itlib.reproduce"]
        return command._parser().parse_args(words[3:])

    found = again("N003_seed1")
    assert (found.N, found.seeds) == ([3], [1])
    assert {**vars(found), "N": 0, "seeds": 0} == {**vars(options), "N": 0, "seeds": 0}
    found = again("base_seed1", "N002_seed1", "N003_seed1", "N005_seed1")
    assert (found.N, found.seeds) == ([2, 3, 5], [1])
    assert again() == options


def test_a_kernel_that_does_not_start_is_started_again(idle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import papermill

    (cell,) = (replace(c, page="") for c in grid(idle, N=[2]) if c.after)
    started: list[int] = []

    def mute(*_: Any, **__: Any) -> Any:
        raise RuntimeError("Kernel didn't respond in 60 seconds")

    def silent(notebook: Any, *_: Any, **__: Any) -> Any:
        started.append(1)
        if len(started) < 3:
            mute()
        return notebook

    monkeypatch.setattr(papermill, "execute_notebook", silent)
    cell_module.execute(cell)
    assert len(started) == 3
    monkeypatch.setattr(papermill, "execute_notebook", mute)
    with pytest.raises(BatchError, match=r"its kernel did not start: Kernel didn't respond"):
        cell_module.execute(cell)


def test_again_names_the_cells_of_a_grid_without_N() -> None:
    options = command._parser().parse_args(["--grid", "tuning", "--seeds", "100", "101", "--only", "paper_d*"])
    cells = {c.name: c for c in grid(ROOT, name="tuning", seeds=[100, 101], pages=False)}
    assert (
        command._again(options, [cells["paper_draft_lr1e-03_seed101"]])
        == "python -m itlib.reproduce --grid tuning --seeds 101 --only paper_draft_lr1e-03"
    )


def test_a_task_with_a_base_of_its_own_waits_for_it() -> None:
    cells = {c.name: c for c in grid(ROOT, name="rivals", seeds=[0], pages=False, only=["paper_smc", "nine_*"])}
    assert {name for name, c in cells.items() if not c.after} == {"base_seed0", "base_nine_seed0"}
    assert cells["paper_smc_seed0"].after == ("base_seed0",)
    assert cells["nine_smc_seed0"].after == ("base_nine_seed0",)
    assert cells["base_nine_seed0"].parameters["problem"] == "nine"


def test_a_grid_without_a_base_trains_none() -> None:
    cells = {c.name: c for c in grid(ROOT, name="scaling", seeds=[0, 1], pages=False, only=["jump_*"])}
    assert set(cells) == {f"jump_N{N:03d}_seed{seed}" for N in (5, 20) for seed in (0, 1)}
    assert all(c.after == () for c in cells.values())
    options = command._parser().parse_args(["--grid", "scaling", "--seeds", "0", "1"])
    assert (
        command._again(options, [cells["jump_N005_seed1"]])
        == "python -m itlib.reproduce --grid scaling --seeds 1 --only jump_N005"
    )


def test_a_grid_that_sets_its_own_N_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "rivals", "--N", "3"]) == 2
    assert "sets its own numbers of tilts" in capsys.readouterr().err
    assert main(["--grid", "rivals", "--only", "nothing"]) == 2
    assert "paper_tilting_N020" in capsys.readouterr().err


# ---- stale or not --------------------------------------------------------------------------------------------------


def stale(root: Path, *arguments: str) -> list[str]:
    """What a batch would run, in alphabetical order."""
    options = command._parser().parse_args(list(arguments))
    cells = grid(
        root, N=options.N or [2, 3], seeds=options.seeds, profile=options.profile, overrides=dict(options.set),
        pages=not options.records_only,
    )  # fmt: skip
    last = [] if options.records_only else chapters(root, options.profile)
    return sorted(cell.name for cell in [*cells, *last] if not cell.is_fresh())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_nothing_runs_twice(mine: Path) -> None:
    for path in mine.rglob("*"):
        os.utime(path, (2e9, 2e9))  # dates mean nothing, and neither does the folder that all of this lies in
    executed(mine)
    pages = {p: p.read_bytes() for p in (mine / "book").rglob("[!.]*") if p.is_file()}
    result = batch(mine, "--N", "2", "3")
    assert result.returncode == 0, result.stderr
    assert re.match(r"4 cells up to date in \d+ s: book/runs\n$", result.stdout)
    assert executed(mine) == []
    assert {p: p.read_bytes() for p in (mine / "book").rglob("[!.]*") if p.is_file()} == pages


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_what_is_up_to_date_never_runs_again(name: str, tmp_path: Path) -> None:
    """Asked twice of every grid; what a run has left is as :func:`save_record` writes it."""
    cells = grid(ROOT, name, out=tmp_path, pages=False, profile="smoke")
    recorder = Recorder()
    for cell in cells:
        asked = cell.asked()
        known = {"versions": {}, "commit": "", "platform": "", "content": content(type(asked).__module__)}
        record = Record(asked, {"x": 1 / 3}, provenance={} if cell is cells[0] else known)
        save_record(Path(cell.record), record)
    for _ in range(2):
        assert run_batch(cells, recorder, scratch=tmp_path / "progress") == {}
    assert recorder.names == []
    Path(cells[-1].record).unlink()
    assert run_batch(cells, recorder, scratch=tmp_path / "progress") == {}
    assert recorder.names == [cells[-1].name]


def test_staleness_is_by_content(mine: Path) -> None:
    runs, notebooks = mine / "book" / "runs", mine / "notebooks"
    assert stale(mine) == stale(mine, "--records-only") == []
    assert stale(mine, "--N", "2", "5") == ["N005_seed0"]
    assert stale(mine, "--seeds", "1") == ["N002_seed1", "N003_seed1", "base_seed1"]
    # A parameter that is given changes runs, and not the base; one given as what it is anyway changes nothing.
    for options in ([], ["--records-only"]):
        assert stale(mine, "--set", "lr=1e-3", *options) == ["N002_seed0", "N003_seed0"]
        assert stale(mine, "--set", "reward=unequal", *options) == ["N002_seed0", "N003_seed0"]
    assert stale(mine, "--set", "S=1000", "lam=1") == []
    # The text of a notebook makes its own pages stale.
    edit(notebooks / "s4_2_experiment.py", "# # The experiment", "# # An experiment")
    assert stale(mine) == ["N002_seed0", "N003_seed0"]
    edit(notebooks / "s4_2_experiment.py", "# # An experiment", "# # The experiment")
    edit(notebooks / "s2_1_base_model.py", "# # The base", "# # A base")
    assert stale(mine) == ["base_seed0"]
    edit(notebooks / "s2_1_base_model.py", "# # A base", "# # The base")
    # A record that changes, comes or goes makes the pages stale that read it.
    edit(runs / "N002_seed0.json", '"nll_target": 0.0', '"nll_target": 0.5')
    assert stale(mine) == ["s9_chapter"]
    edit(runs / "N002_seed0.json", '"nll_target": 0.5', '"nll_target": 0.0')
    assert stale(mine) == []
    shutil.copy(runs / "N002_seed0.json", runs / "N009_seed0.json")
    assert stale(mine) == ["s9_chapter"]
    (runs / "N009_seed0.json").unlink()
    (runs / "N003_seed0.json").unlink()
    assert stale(mine) == ["N003_seed0", "s9_chapter"]


def test_a_run_with_other_parameters_is_not_the_one_asked_for(mine: Path) -> None:
    # As if N = 2 had been run with another learning rate: what asks for the default must not find it.
    record = mine / "book" / "runs" / "N002_seed0.json"
    for name, other in (("lr", 1e-3), ("reward", "unequal"), ("lam", 0.5)):
        text = record.read_text()
        found = json.loads(text)
        found["parameters"][name] = other
        record.write_text(json.dumps(found))
        assert stale(mine, "--records-only") == ["N002_seed0"], name
        record.write_text(text)
    assert stale(mine, "--records-only") == []


def test_only_the_code_behind_a_page_makes_it_stale(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell_module, "content", lambda module: "another")
    assert stale(mine, "--records-only") == stale(mine) == ["N002_seed0", "N003_seed0", "base_seed0"]
    monkeypatch.undo()
    monkeypatch.setattr(cell_module, "content_of", lambda code: "other plots")
    assert stale(mine, "--records-only") == []  # other plots are no other numbers
    assert len(stale(mine)) == 4


def test_a_changed_text_runs_its_pages_and_what_reads_their_records(mine: Path) -> None:
    edit(mine / "notebooks" / "s4_2_experiment.py", "import json, os, time", "import json, os, time  # changed")
    edit(mine / "notebooks" / "s4_2_experiment.py", '"sampling": 0.0', '"sampling": 1.0')
    result = batch(mine, "--N", "2", "3")
    assert result.returncode == 0, result.stderr
    assert executed(mine) == ["N002_seed0", "N003_seed0", "chapter"]
    assert stale(mine) == []


# ---- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_cell_that_fails_stops_no_other(done: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(done, tmp_path / "root"))
    (root / "book" / "runs" / "N003_seed0.json").unlink()
    (root / "fail_N003_seed0").touch()
    result = batch(root, "--N", "3", "4", "--jobs", "1")
    assert result.returncode == 1
    assert "1 of 4 cells failed:\n  N003_seed0: ValueError: the moon is in the way\n" in result.stderr
    assert "Traceback" not in result.stderr
    assert executed(root) == ["N003_seed0", "N004_seed0", "chapter"]
    assert stale(root, "--N", "3", "4") == ["N003_seed0"]
    command = result.stderr.splitlines()[-1].strip()
    assert command == "python -m itlib.reproduce --N 3 --jobs 1"
    (root / "fail_N003_seed0").unlink()
    result = batch(root, *shlex.split(command)[3:])
    assert result.returncode == 0, result.stderr
    assert executed(root) == ["N003_seed0", "chapter"]


def test_a_killed_cell_and_a_dead_kernel_lose_only_themselves(done: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(done, tmp_path / "root"))
    for n in (4, 5):
        (root / f"hold_N00{n}_seed0").touch()
    with started(root, "--N", "2", "4", "5", "6") as process:
        wait_for(lambda: executed_so_far(root, "N004_seed0", "N005_seed0"), "two cells that wait")
        kernels = [kernel(root, "N004_seed0"), kernel(root, "N005_seed0")]
        assert kernels[0]
        assert kernels[1]
        kill(kernels[0].ppid())
        kill(kernels[1].pid)
        _, error = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "2 of 6 cells failed:" in error
    assert "N004_seed0: killed by signal 9\n" in error
    assert "N005_seed0: its kernel died without a word; if memory was short, run fewer --jobs\n" in error
    assert error.splitlines()[-1].strip() == "python -m itlib.reproduce --N 4 5"
    wait_for(lambda: not alive([k for k in kernels if k]), "the kernels to end", 60)
    assert (root / "book" / "runs" / "N006_seed0.json").exists()


def executed_so_far(root: Path, *names: str) -> bool:
    log = root / "executed"
    return log.exists() and set(names) <= set(log.read_text().split())


def test_a_batch_that_is_killed_leaves_no_orphan(done: Path, tmp_path: Path) -> None:
    """Ctrl-C is in tests/test_faults.py."""
    root = Path(shutil.copytree(done, tmp_path / "root"))
    (root / "hold_N004_seed0").touch()
    with started(root, "--N", "4", "5", "--jobs", "1") as process:  # N = 5 is done first, so the queue is empty
        wait_for(lambda: executed_so_far(root, "N004_seed0"), "a cell that waits")
        orphans = family(process.pid)
        assert len(alive(orphans)) >= 2
        kill(process.pid)
        wait_for(lambda: process.poll() is not None, "the batch to end", 60)
        wait_for(lambda: not alive(orphans), "the cell and its kernel to end", 60)
        _, error = process.communicate()
    assert "Traceback" not in error
    assert not (root / "book" / "runs" / "N004_seed0.json").exists()
    assert not [p for p in (root / "book").rglob("*") if p.suffix == ".tmp"]


def test_out_is_a_folder_of_its_own(done: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(done, tmp_path / "root"))
    recorder = Recorder()
    options = ["--root", str(root), "--N", "2", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "executor", lambda *_: recorder)
        assert main(options) == 0
    assert recorder.names == ["base_seed0", "N002_seed0"]  # and no chapter: chapters show the book's runs


# ---- a cluster -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers on this machine."""
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{free_port()}"
    dask = [sys.executable, "-m", "dask"]
    # An own cache, into which a test may put a trained base.
    environment = small_batch.environment(tmp_path / "root") | {"ITLIB_CACHE": str(tmp_path / "cache")}

    def begin(*arguments: str) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen([*dask, *arguments], cwd=tmp_path, env=environment, stdout=quiet, stderr=quiet)

    scheduler = begin("scheduler", "--host", address, "--no-dashboard", "--no-show")
    worker = [
        "worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--local-directory",
        str(tmp_path / "dask"),
    ]
    workers = [begin(*worker) for _ in range(2)]
    try:
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


@pytest.mark.faults  # tests/test_faults.py has a quicker one for every day
def test_a_cluster_gives_the_same_results_and_survives_a_lost_worker(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = cluster
    finished = small_batch.finished()
    root = small_batch.copy(tmp_path / "root")
    options = ["--N", "2", "3", *SMALL, "--records-only", "--executor", address]
    cache = tmp_path / "cache"
    cache.mkdir()
    for base in (small_batch.folder() / "cache").glob("base_*"):
        shutil.copy(base, cache)  # the base is found, the tilts are not

    def busy(worker: subprocess.Popen[bytes]) -> bool:
        return any(place.name.startswith("N00") for place in (root / "_build" / "progress").glob("N00*")) and bool(
            small_batch.cell_below(worker.pid)
        )

    with started(root, *options) as process:
        wait_for(lambda: any(map(busy, workers)), "a kernel on a worker")
        lost = next(filter(busy, workers))
        orphans = family(lost.pid)
        kill(lost.pid)
        wait_for(lambda: not alive(orphans), "the cell of a lost worker to end", 60)
        out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    assert "3 cells up to date" in out
    for name in ("base_seed0", "N002_seed0", "N003_seed0"):
        one, two = (load_record(place / "book" / "runs" / f"{name}.json") for place in (root, finished))
        assert (one.parameters, one.metrics, one.trace) == (two.parameters, two.metrics, two.trace), name
