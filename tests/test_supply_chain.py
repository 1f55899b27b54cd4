"""What the project is made of: a whole lock, licences that go together, nothing unpickled, a workflow that may little."""

from __future__ import annotations

import re
import sys
import tomllib
from email.message import Message
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
import torch
import yaml
from licences import is_fine, licence, problems
from test_architecture import MODULES, code, imported, room

from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.likelihood import log_likelihood
from itlib.metrics import sliced_wasserstein
from itlib.schedules import Cosine

ROOT = Path(__file__).parents[1]
LOCK = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith(("#", "-e"))]


#: How a distribution is called where its import is not.
IMPORT_NAMES = {"pot": "ot", "pillow": "pil", "scikit-learn": "sklearn", "dask-jobqueue": "dask_jobqueue"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names_of(*groups: list[str]) -> set[str]:
    """Distributions of lists of requirements, without extras and versions."""
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for group in groups for line in group}


EXTRAS = PROJECT["optional-dependencies"]
EVERY = names_of(PROJECT["dependencies"], *EXTRAS.values()) - {"itlib"}  # an extra may contain another


def test_the_library_imports_what_the_project_lists() -> None:
    """Somewhere; and what a module of the library needs to be imported at all comes with the library alone."""
    given = {"itlib", "__future__", *sys.stdlib_module_names}
    brought = {"nbformat", "nbclient", "ipython", "jupyter_client", "yaml"}  # what papermill and the kernel are made of
    by_hand = {"fcd"}  # its licence is the LGPL: never needed, and asked for by name
    for name, path in MODULES.items():
        needed = {found.split(".")[0] for found in imported(path)} - given
        assert {one.lower() for one in needed} <= {IMPORT_NAMES.get(one, one) for one in EVERY} | brought | by_hand, name
        if room(path) not in ("figures", "reproduce"):
            alone = names_of(PROJECT["dependencies"], EXTRAS["experiments"] if room(path) == "experiments" else [])
            first = {found.split(".")[0] for found in imported(path, nested=False)} - given
            assert first <= {IMPORT_NAMES.get(one, one) for one in alone}, name


def test_a_wheel_holds_every_module_and_every_file_of_data() -> None:
    """Packages are found by their ``__init__``, and data by the patterns of pyproject.toml."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    files = [path for path in (ROOT / "itlib").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 40
    for path in files:
        folder = path.parent
        assert (folder / "__init__.py").is_file(), folder
        patterns = data.get(".".join(folder.relative_to(ROOT).parts), [])
        assert path.suffix == ".py" or any(path.match(pattern) for pattern in patterns), path


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, mixture, points = Cosine(), paper_mixture(), torch.zeros(3, 2)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ModuleNotFoundError, match=r"need POT: pip install 'itlib\[metrics\]'"):
        sliced_wasserstein(points, mixture)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match=r"need torchdiffeq: pip install 'itlib\[metrics\]'"):
        log_likelihood(ExactNoisePredictor(mixture, schedule), schedule, points)
    assert {"pot", "torchdiffeq"} <= names_of(EXTRAS["metrics"])


def test_the_lock_is_exact_and_whole() -> None:
    assert all(re.match(r"[\w.-]+(\[.*\])?==[\w.+!-]+( ;.*)?$", line) for line in LOCK)
    assert {name.replace("_", "-") for name in EVERY} <= {re.split("[=[]", line)[0].lower() for line in LOCK}


def test_what_runs_here_is_what_is_locked() -> None:
    """Of packages that every machine needs: another version would give other digits."""
    for line in (line for line in LOCK if " ;" not in line):
        name, _, locked = line.partition("==")
        if name.lower() in ("torch", "numpy", "torchdiffeq", "pot", "papermill", "jupytext", "jupyter-book"):
            assert version(name).partition("+")[0] == locked


def test_licences_go_together() -> None:
    assert problems(distributions()) == []


@pytest.mark.parametrize(
    ("text", "fine"),
    [
        ("MIT", True),
        ("Apache-2.0 AND BSD-3-Clause", True),
        ("GPL-3.0-or-later OR MIT", True),
        ("Apache License, Version 2.0", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("BSD License, GNU General Public License v3", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_a_licence_that_does_not_fit_is_seen(text: str, fine: bool) -> None:
    assert is_fine(text) is fine


def test_a_licence_is_found_wherever_a_package_puts_it() -> None:
    class Package:
        metadata = Message()

    Package.metadata["Classifier"] = "License :: OSI Approved :: MIT License"
    assert licence(Package()) == "MIT License"
    Package.metadata["License-Expression"] = "BSD-3-Clause"
    assert licence(Package()) == "BSD-3-Clause"


#: What would run foreign code, or ask the network, at run time. A folder of safetensors may be read.
UNWANTED = re.compile(
    r"(?<!safetensors\.)\btorch\.(?:load|save)\b|\b(?:pickle|np\.load|requests|urllib\.request|urlretrieve)\b"
    r"|\bfrom_pretrained\b(?!\(folder, use_safetensors=True\))"
)


def test_no_notebook_and_no_page_unpickles_or_fetches() -> None:
    sources = [path for folder in ("notebooks", "book", "itlib", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 40
    texts = {str(path): "\n".join(text for _, text in code(path)) for path in sources}
    assert not {path: found for path, text in texts.items() if (found := UNWANTED.findall(text))}
    assert UNWANTED.findall("torch.load(x); safetensors.torch.save(y); pickle.loads(z)") == ["torch.load", "pickle"]


def test_the_workflow_may_read_and_nothing_else() -> None:
    (path,) = (ROOT / ".github" / "workflows").glob("*")
    text = path.read_text()
    flow = yaml.safe_load(text)
    assert flow["permissions"] == {"contents": "read"}
    assert "secrets." not in text
    assert "pull_request_target" not in text
    for job in flow["jobs"].values():
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@(v\d+|[0-9a-f]{40})", step["uses"])
            if step.get("uses", "").startswith("actions/checkout"):
                assert step["with"]["persist-credentials"] is False
            assert "github.event" not in step.get("run", "")
