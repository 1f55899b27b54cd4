"""The notebooks themselves: paired, free of outputs, run by the batch and by plain papermill, built into the real book."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pairs
import small_batch
import yaml
from bs4 import BeautifulSoup
from pairs import problems
from run_it import WORDS_PER_MINUTE, words
from site_checks import check_site

from itlib.experiments.records import load_record
from itlib.reproduce.cell import parameters_of

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_pairs_agree_and_hold_no_output() -> None:
    assert problems(NOTEBOOKS) == []


def test_a_pair_that_disagrees_is_found(tmp_path: Path) -> None:
    for name in ("s2_1_base_model", "s4_2_experiment"):
        for suffix in (".py", ".ipynb"):
            shutil.copy(NOTEBOOKS / f"{name}{suffix}", tmp_path)
    assert problems(tmp_path) == []
    path = tmp_path / "s2_1_base_model.ipynb"
    original = path.read_text()
    notebook = nbformat.reads(original, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.source += "\nx = 1"
    path.write_text(nbformat.writes(notebook))
    assert [line.split(":")[0] for line in problems(tmp_path)] == ["s2_1_base_model.ipynb differs from s2_1_base_model.py"]
    notebook = nbformat.reads(original, as_version=4)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("stream", text="hello")]
    path.write_text(nbformat.writes(notebook))
    assert [line.split(":")[0] for line in problems(tmp_path)] == ["s2_1_base_model.ipynb holds outputs"]
    path.unlink()
    command = [sys.executable, pairs.__file__, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stdout.startswith("s2_1_base_model.ipynb is missing")
    path.write_text(nbformat.writes(notebook))
    assert pairs.mend(tmp_path) == ["s2_1_base_model.ipynb is written anew"]
    assert path.read_text() == original
    assert pairs.mend(tmp_path) == problems(tmp_path) == []


def test_each_parameter_says_what_it_is() -> None:
    for path in sorted(NOTEBOOKS.glob("*.py")):
        text = path.read_text()
        for name in parameters_of(str(path)):
            assert re.search(rf"^{name} = .+  # \S+", text, re.MULTILINE), f"{path.name}: {name}"


def test_a_batch_leaves_records_and_pages() -> None:
    root = small_batch.finished()
    for name, trace in (("N002_seed0", 2), ("N003_seed0", 3)):
        record = load_record(root / "book" / "runs" / f"{name}.json")
        known = record.parameters
        assert len(record.trace) == trace
        assert (known.S, known.J, known.E, known.B, known.lr) == (64, 5, 3, 32, 1e-5)
        assert {"nll_target", "nll_base", "eps_rmse", "t_min"} <= set(record.metrics)
    pages = sorted((root / "book").rglob("*.ipynb"))
    assert len(pages) >= 4
    for path in pages:
        text = path.read_text()
        page = nbformat.reads(text, as_version=4)
        nbformat.validate(page)
        assert str(root) not in text, "a page says where it was made"
        assert "papermill" not in page.metadata
        outputs = [output for cell in page.cells if cell.cell_type == "code" for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], path.name
        assert re.fullmatch("[0-9a-f]{64}", page.metadata["itlib"]["key"])
    title = nbformat.read(root / "book" / "runs" / "N002_seed0.ipynb", as_version=4).cells[0].source.splitlines()[0]
    assert title.endswith(": N = 2, seed 0")
    assert not list((root / "_build" / "progress").iterdir())


def test_plain_papermill_runs_the_paired_notebook(tmp_path: Path) -> None:
    small_batch.finished()  # whose base is found again
    out, record = tmp_path / "out.ipynb", tmp_path / "record.json"
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / "s4_2_experiment.ipynb"), str(out)]
    command += ["-p", "N", "2", "-p", "profile", "smoke", "-p", "record", str(record)]
    for name, value in (assignment.split("=") for assignment in small_batch.SMALL[3:]):
        command += ["-p", name, value]
    environment = small_batch.environment(NOTEBOOKS.parent)
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert result.returncode == 0, result.stderr
    one, two = load_record(record), load_record(small_batch.finished() / "book" / "runs" / "N002_seed0.json")
    assert (one.parameters, one.metrics, one.trace) == (two.parameters, two.metrics, two.trace)


def test_the_real_book_builds_from_a_small_batch() -> None:
    site = small_batch.site()
    book = small_batch.finished() / "book"
    assert check_site(site) == []
    shown = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    made = {path.relative_to(book.parent).with_suffix("").as_posix() for path in book.rglob("*.ipynb")}
    assert made <= shown


def test_a_page_takes_twelve_minutes_at_most() -> None:
    """Of its text; the documentation of the library is to look things up in."""
    site = small_batch.site()
    pages = [path for path in (site / "book").rglob("*.html") if path.stem not in ("api", "api_experiments", "bibliography")]
    articles = {path.stem: BeautifulSoup(path.read_text("utf-8"), "html.parser").select_one("article") for path in pages}
    assert len(articles) > 20
    assert {name: count for name, text in articles.items() if (count := words(str(text))) > 12 * WORDS_PER_MINUTE} == {}


def test_the_main_path_takes_an_hour() -> None:
    """The first part of the contents, and the landing page."""
    contents = yaml.safe_load((NOTEBOOKS.parent / "_toc.yml").read_text("utf-8"))
    path = [contents["root"], *(chapter["file"] for chapter in contents["parts"][0]["chapters"])]
    assert "one hour" in contents["parts"][0]["caption"]
    site = small_batch.site()
    pages = [BeautifulSoup((site / f"{page}.html").read_text("utf-8"), "html.parser").select_one("article") for page in path]
    assert sum(words(str(page)) for page in pages) <= 60 * WORDS_PER_MINUTE
