"""Workers and kernels: one library for all, one kernel, and a reason for each that ends."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import small_batch

from itlib.experiments.provenance import PACKAGE
from itlib.reproduce import worker
from itlib.reproduce.cell import Cell

NOTEBOOK = (
    small_batch.HEADER.format(title="A page", more="") + '# %% tags=["parameters"]\nprofile = "full"\n\n# %%\n{code}\n'
)


@pytest.fixture(autouse=True)
def _no_worker_is_left() -> None:
    """Each test starts, and ends, its own."""
    worker.end_idle()


def page(folder: Path, code: str, name: str = "page") -> Cell:
    """A page of one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(NOTEBOOK.format(code=code))
    return Cell(
        name, parameters={"profile": "full"}, notebook=str(folder / f"{name}.py"), page=str(folder / f"{name}.ipynb")
    )


def run(cell: Cell, code: str = "") -> str:
    try:
        return worker.run_in_process(asdict(cell), code=code)
    finally:
        worker.end_idle()


def printed(cell: Cell) -> str:
    (output,) = json.loads(Path(cell.page).read_text())["cells"][-1]["outputs"]
    return "".join(output["text"]).strip()


def test_a_kernel_of_the_same_name_elsewhere_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a user has put on JUPYTER_PATH, with another Python; nor does another library on PYTHONPATH."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    wrong = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(wrong))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    (tmp_path / "other" / "itlib").mkdir(parents=True)
    (tmp_path / "other" / "itlib" / "__init__.py").write_text("")
    cell = page(tmp_path / "pages", "import sys, itlib\nprint(sys.executable, itlib.__file__)")
    assert run(cell) == ""
    assert printed(cell) == f"{sys.executable} {PACKAGE / '__init__.py'}"


def test_a_kernel_with_another_library_does_not_start(tmp_path: Path) -> None:
    """As one beside the notebook would be, which Python looks at first."""
    (tmp_path / "itlib" / "reproduce").mkdir(parents=True)
    for name in ("__init__", "reproduce/__init__"):
        (tmp_path / "itlib" / f"{name}.py").write_text("")
    shutil.copy(PACKAGE / "reproduce" / "kernel.py", tmp_path / "itlib" / "reproduce")
    says = run(page(tmp_path, "1"))
    assert says.startswith(f"its kernel did not start: it would import {tmp_path / 'itlib'} and not {PACKAGE}"), says
    assert "jobs" not in says


@pytest.mark.skipif(not worker.FORKS, reason="a kernel is started anew where forking is not safe")
def test_a_kernel_has_imported_what_its_page_will(tmp_path: Path) -> None:
    """It is forked, and shares nothing with its worker: neither input nor output, nor a group that signals reach."""
    look = "import os, sys\nprint('zipapp' in sys.modules, os.readlink('/proc/self/fd/0'), os.getpgid(0) == os.getpid(), "
    cell = page(tmp_path, look + "os.getcwd() in sys.path)\nimport zipapp")
    assert run(cell) == ""
    assert printed(cell) == "True /dev/null True True"


def test_a_kernel_that_dies_at_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").write_text("raise OSError('the moon is in the way')\n")
    says = run(page(tmp_path, "1"))
    assert says == "its kernel did not start: OSError: the moon is in the way"


def test_one_that_dies_later_says_what_it_was(tmp_path: Path) -> None:
    assert (
        run(page(tmp_path, "import os\nos._exit(3)"))
        == "its kernel died without a word; if memory was short, run fewer --jobs"
    )


def test_other_code_than_that_of_the_batch_is_refused(tmp_path: Path) -> None:
    cell = page(tmp_path, "1")
    says = run(cell, "another")
    assert says == f"its code in {PACKAGE.parent} is not that of the batch, or was edited just now: run the same again"
    assert not Path(cell.page).exists()
    assert run(cell, cell.code()) == ""


def test_an_experiment_runs_without_a_kernel_and_without_the_worker_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a process of its own, below the same worker; what one raises is a sentence."""
    first = Cell("a", "paper", {"lam": 1.0, "profile": "smoke", "S": 0}, record=str(tmp_path / "a.json"))
    says = worker.run_in_process(asdict(first))
    assert says.startswith("ValueError: "), says
    (before,) = (w.process.pid for w in worker._idle)
    assert "Traceback" not in says
    assert worker.run_in_process(asdict(first)) == says
    assert [w.process.pid for w in worker._idle] == [before]
    assert not (tmp_path / "a.json").exists()
    monkeypatch.setattr(worker, "content_of_all", lambda: "edited")
    assert worker.run_in_process(asdict(first)) == says
    assert [w.process.pid for w in worker._idle] != [before], "what it had imported may be another library's"
    worker.end_idle()
    assert not worker._idle


def test_a_copied_checkout_runs_its_own_library(tmp_path: Path) -> None:
    """With the environment of the original, whose editable install names the original's library."""
    root = small_batch.pretend(tmp_path / "copy")
    (root / "itlib" / "sampling.py").write_text((root / "itlib" / "sampling.py").read_text() + "\nCOPY = True\n")
    notebook = root / "notebooks" / "s9_chapter.py"
    notebook.write_text(notebook.read_text() + "\nfrom itlib import sampling\nprint(sampling.__file__, sampling.COPY)\n")
    for path in notebook.parent.glob("s[24]*.py"):
        path.unlink()
    environment = {k: v for k, v in small_batch.environment(root).items() if k != "PYTHONPATH"}
    code = "import sys; from itlib.reproduce import worker, plan; from dataclasses import asdict; from pathlib import Path; "
    code += "print(worker.run_in_process(asdict(plan.chapters(Path('.').resolve(), 'full')[0]))); worker.end_idle()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "\n", result.stdout + result.stderr
    made = (root / "book" / "pages" / "s9_chapter.ipynb").read_text()
    assert f"{root}/itlib/sampling.py True" in made
    assert os.path.realpath(root) != os.path.realpath(small_batch.ROOT)
