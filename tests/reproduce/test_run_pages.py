"""The folders of pages: profiles apart, nothing foreign in them, nothing lost; and notebooks that agree with their pairs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jupytext
import pytest
import small_batch

from itlib.experiments import base, paper
from itlib.experiments.experiment import Parameters, Record
from itlib.experiments.records import save_record
from itlib.reproduce.cell import BatchError, Cell, _kernel_manager, header
from itlib.reproduce.pages import check_pairs, tidy

NOTEBOOKS = small_batch.ROOT / "notebooks"


def leave(folder: Path, name: str, parameters: Parameters) -> None:
    """A record and its page."""
    provenance = {"versions": {}, "commit": "", "content": "", "platform": ""}
    save_record(folder / f"{name}.json", Record(parameters, {"x": 1.0}, provenance=provenance))
    (folder / f"{name}.ipynb").write_text(json.dumps({"page of": f"{name} {parameters.profile}"}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with two runs and a chapter, in full."""
    runs, pages = tmp_path / "book" / "runs", tmp_path / "book" / "pages"
    runs.mkdir(parents=True)
    pages.mkdir()
    leave(runs, "N030_seed1", paper.Parameters(N=30, seed=1))
    leave(runs, "base_seed1", base.Parameters(seed=1))
    (runs / "N030_seed1.safetensors").write_bytes(b"samples")
    (pages / "chapter.ipynb").write_text("of the full profile")
    return tmp_path


def tidied(root: Path, profile: str, *cells: Cell) -> None:
    tidy(root, root / "book" / "runs", root / "book" / "pages", cells, profile)


def test_a_profile_goes_and_comes_back_with_every_byte(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, pages = root / "book" / "runs", root / "book" / "pages"
    before = contents(runs), contents(pages)
    tidied(root, "full")
    assert (contents(runs), contents(pages)) == before
    assert capsys.readouterr().out == ""
    tidied(root, "smoke")
    assert names(runs) == names(pages) == []
    assert "what was made with the profile full is kept in " in capsys.readouterr().out
    leave(runs, "N002_seed0", paper.Parameters(N=2, profile="smoke"))
    (pages / "chapter.ipynb").write_text("of the first look")
    tidied(root, "full")
    assert (contents(runs), contents(pages)) == before
    tidied(root, "smoke")
    assert names(runs) == ["N002_seed0.ipynb", "N002_seed0.json"]
    assert contents(pages) == {"chapter.ipynb": b"of the first look"}


def test_what_no_batch_has_made_is_no_page_and_is_kept(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = root / "book" / "runs"
    before = names(runs)
    for kind in (".json", ".ipynb"):
        shutil.copy(runs / f"N030_seed1{kind}", runs / f"N030_seed1-Copy1{kind}")  # as Jupyter calls a duplicate
        shutil.copy(runs / f"N030_seed1{kind}", runs / f"N031_seed1{kind}")  # renamed
    (runs / "notes.json").write_text('{"mine": 1}')
    (runs / "N099_seed0.ipynb").write_text("a page without its record")
    (runs / "readme.txt").write_text("stays")
    tidied(root, "full")
    assert names(runs) == sorted([*before, "readme.txt"])
    said = capsys.readouterr().out
    assert said.count("is kept in") == 4
    assert "delete" not in said
    kept = [path.name for path in (root / "_build" / "aside").rglob("*") if path.is_file()]
    assert sorted(kept) == sorted(
        [f"{stem}{kind}" for stem in ("N030_seed1-Copy1", "N031_seed1") for kind in (".json", ".ipynb")]
        + ["notes.json", "N099_seed0.ipynb"]
    )


def test_a_damaged_record_of_this_batch_stays_to_be_reported(root: Path) -> None:
    record = root / "book" / "runs" / "N030_seed1.json"
    record.write_text("{")
    tidied(root, "full", Cell("N030_seed1", "paper", record=str(record)))
    assert record.exists()


# ---- pairs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A notebook and its pair, of one date."""
    for suffix in (".py", ".ipynb"):
        shutil.copy(NOTEBOOKS / f"s4_1_gaussian_tilts{suffix}", tmp_path)
        os.utime(tmp_path / f"s4_1_gaussian_tilts{suffix}", (1e9, 1e9))
    return tmp_path / "s4_1_gaussian_tilts.py"


def test_a_pair_that_was_edited_alone_is_not_built(pair: Path) -> None:
    cell = Cell("x", notebook=str(pair))
    twin = pair.with_suffix(".ipynb")
    check_pairs([cell])
    twin.touch()
    check_pairs([cell])  # a date alone means nothing
    notebook = jupytext.read(twin)
    notebook.cells[0].source += "\n\nAn edit."
    jupytext.write(notebook, twin)
    with pytest.raises(BatchError, match=r"s4_1_gaussian_tilts\.ipynb was edited and .*jupytext --sync"):
        check_pairs([cell])
    pair.write_text(pair.read_text() + "\n# %%\n1\n")  # the source is newer: it is what is built
    os.utime(pair, (4e9, 4e9))
    check_pairs([cell])


def test_saving_an_unchanged_notebook_in_jupyterlab_changes_no_byte_of_its_source(tmp_path: Path) -> None:
    """As jupytext's own contents manager does, when JupyterLab has added what it knows of the kernel."""
    server = pytest.importorskip("jupyter_server.services.contents.largefilemanager")
    from jupytext.sync_contentsmanager import build_sync_jupytext_contents_manager_class

    shutil.copy(small_batch.ROOT / "pyproject.toml", tmp_path)
    manager = build_sync_jupytext_contents_manager_class(server.LargeFileManager)()
    manager.root_dir = str(tmp_path)
    for stem in ("s4_2_experiment", "s4_2_results", "s3_2_algorithm", "s1_introduction"):
        for suffix in (".py", ".ipynb"):
            shutil.copy(NOTEBOOKS / f"{stem}{suffix}", tmp_path)
        source = tmp_path / f"{stem}.py"
        before, read = source.read_bytes(), header(source)
        model = manager.get(f"{stem}.ipynb")
        model["content"]["metadata"]["language_info"] = {"name": "python", "file_extension": ".py", "version": "3.11.7"}
        model["content"]["metadata"]["kernelspec"] = {
            "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"
        }  # fmt: skip
        manager.save(model, f"{stem}.ipynb")
        assert source.read_bytes() == before, stem
        assert header(source) == read


def test_all_headers_are_written_as_that_one_is() -> None:
    """But for what they say under ``itlib``."""
    texts = set()
    for path in NOTEBOOKS.glob("*.py"):
        lines = path.read_text().split("# ---\n")[1].splitlines()
        start = lines.index("#   jupytext:")
        texts.add("\n".join([lines[0], *lines[start:]]))
    assert len(texts) == 1, texts


@pytest.mark.skipif(os.name != "posix", reason="sockets are no files here")
def test_a_kernel_listens_at_files_of_its_own_unless_their_names_were_too_long() -> None:
    found = [_kernel_manager(None, folder, None)() for folder in ("/tmp/short", "/tmp/" + "long" * 30)]
    assert [(manager.transport, manager.ip) for manager in found] == [("ipc", "/tmp/short/kernel"), ("tcp", "127.0.0.1")]
