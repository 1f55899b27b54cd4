"""The algorithm on one page is the library's: the same draws give the same numbers, up to rounding."""

from __future__ import annotations

import ast
import copy
import inspect
import re

import pytest
import torch
from torch import Tensor

from itlib import example
from itlib.schedules import Linear
from itlib.tilting import TiltingConfig, derive_seed, iterative_tilting


def reward(x: Tensor) -> Tensor:
    return 4 * x[:, 1]


def test_it_is_the_library_with_the_same_draws() -> None:
    """A minibatch of 1600 is a group of its own in the library, which then draws in the order of the page."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = example.Model()
    example.train(model, torch.Generator().manual_seed(2), steps=300)
    config = TiltingConfig(N=3, S=1700, J=20, B=1600, E=4, lr=1e-3)
    for step in iterative_tilting(copy.deepcopy(model), reward, Linear(), config, seed=5):
        generator = torch.Generator().manual_seed(derive_seed(5, "tilt", step.k))
        data = example.tilt(model, reward, 1 / 3, generator, S=1700, J=20, B=1600, E=4, lr=1e-3)
        torch.testing.assert_close(data, step.samples, rtol=1e-3, atol=1e-3)  # twenty steps in single precision
        x, t = torch.randn(100, 2, generator=generator), torch.rand(100, generator=generator)
        with torch.no_grad():
            torch.testing.assert_close(model(x, t), step.model(x, t), rtol=1e-3, atol=1e-3)


def test_it_imports_torch_only() -> None:
    roots = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(example)))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""])
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert roots == {"__future__", "collections", "copy", "math", "torch"}


def test_it_arrives(capsys: pytest.CaptureFixture[str]) -> None:
    """At least three quarters of the way from mean y 0 to 2, and no farther beyond."""
    example.main()
    found = re.search(r"at the end: mean y (\S+);", capsys.readouterr().out)
    assert found
    assert 1.5 < float(found[1]) < 2.5
