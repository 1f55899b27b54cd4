"""What the tests share: one thread, reproducible property tests, and a small network trained once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from browsing import chromium
from hypothesis import settings

from itlib.gaussian_mixture import GaussianMixture, paper_mixture
from itlib.network import Network
from itlib.schedules import Cosine
from itlib.training import TrainingConfig, TrainingStep, train_noise_predictor

torch.set_num_threads(1)
settings.register_profile("itlib", derandomize=True, deadline=None, database=None, max_examples=25)
settings.load_profile("itlib")


def pytest_configure(config: pytest.Config) -> None:
    """Give the workers one folder: what takes minutes to build is built once."""
    if not hasattr(config, "workerinput") and "ITLIB_TESTS" not in os.environ:
        os.environ["ITLIB_TESTS"] = path = tempfile.mkdtemp(prefix="itlib-tests-")
        config.add_cleanup(lambda: shutil.rmtree(path, ignore_errors=True))


#: What a test is about, by its folder.
FOLDERS = {"book": "book", "reproduce": "batch"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, and keep those that share a build on one worker."""
    for item in items:
        mark = FOLDERS.get(item.path.parent.name) or ("book" if "reference" in item.path.name else None)
        if mark:
            item.add_marker(mark)
            item.add_marker(pytest.mark.xdist_group(mark))
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session")
def paper() -> GaussianMixture:
    """The base distribution of (4.11)."""
    return paper_mixture()


@pytest.fixture(scope="session")
def cosine() -> Cosine:
    """The schedule of Section 4.2."""
    return Cosine()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that ask for it are skipped on a machine without one."""
    with chromium() as chrome:
        yield chrome


@pytest.fixture(scope="session")
def trained(paper: GaussianMixture, cosine: Cosine) -> tuple[Network, list[TrainingStep]]:
    """A small network after a short training on the paper's mixture, and how it went. Copy it before changing it."""
    network = Network(width=64, depth=3, embedding=32)
    data = paper.sample(4000, torch.Generator().manual_seed(0))
    steps = list(train_noise_predictor(network, data, cosine, TrainingConfig(epochs=15, batch_size=128, lr=2e-3)))
    return network, steps
