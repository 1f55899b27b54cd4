"""The cell that readers copy is the library's algorithm: base, sampler and regression agree with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jupytext
import pytest
import torch

from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.rewards import parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import TiltBatch, single_sample

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "algorithm_2.py"


@pytest.fixture(scope="module")
def cell() -> dict[str, Any]:
    """What the cell defines."""
    source = next(c.source for c in jupytext.read(NOTEBOOK).cells if "def tilt(" in c.source)
    namespace: dict[str, Any] = {}
    exec(compile(source, str(NOTEBOOK), "exec"), namespace)
    return namespace


def test_it_needs_torch_alone(cell: dict[str, Any]) -> None:
    modules = {v.__name__.split(".")[0] for v in cell.values() if type(v).__name__ == "module"}
    assert modules == {"copy", "math", "torch"}


def test_base_reward_and_sampler_are_the_library_s(cell: dict[str, Any]) -> None:
    schedule = Cosine(s=1e-7)  # the cell has none of the offset that keeps noise from vanishing
    exact = ExactNoisePredictor(paper_mixture(), schedule)
    x, t = 2 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(0.01, 0.99, 200)
    torch.testing.assert_close(cell["base"](x, t[:, None]), exact(x, t), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cell["reward"](x), parse_reward("quadratic")(x))
    torch.manual_seed(0)
    ours = cell["sample"](lambda x, t: exact(x, t[:, 0]), 500, steps=20)
    theirs = sample(exact, schedule, 500, steps=20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)  # single precision, 20 steps


def test_its_first_step_follows_the_library_s_estimate(cell: dict[str, Any]) -> None:
    """The gradient of the first minibatch, by the paper's single-sample covariance."""
    seen: list[torch.Tensor] = []

    class Once(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            seen.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]))
            raise StopIteration

    patched = cell["torch"].optim.Adam
    torch.optim.Adam = Once  # type: ignore[misc]
    try:
        with pytest.raises(StopIteration):
            cell["tilt"](4, S=100, E=1, B=32)
    finally:
        torch.optim.Adam = patched  # type: ignore[misc]
    torch.manual_seed(0)  # the same draws again
    model = cell["Model"]()
    x_0 = cell["sample"](model, 100)
    i, t, z = torch.randperm(100)[:32], torch.rand(32, 1), torch.randn(32, 2)
    alpha, sigma = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
    x_t = alpha * x_0[i] + sigma * z
    old = model(x_t, t).detach()
    batch = TiltBatch(1, x_0[i], parse_reward("quadratic")(x_0[i]), t[:, 0], z, x_t, old)
    loss = (sigma * (model(x_t, t) - (old - single_sample(batch) / 4))).square().sum(1).mean()
    loss.backward()
    torch.testing.assert_close(seen[0], torch.cat([p.grad.flatten() for p in model.parameters()]), rtol=1e-4, atol=1e-6)
