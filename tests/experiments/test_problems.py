"""The problems: the figures that their sources give, and the exact tilt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from itlib.experiments.problems import OTHERS, PROBLEMS, base_of, problem


@pytest.mark.parametrize(
    ("name", "base", "target", "kl"), [("nine", -11.08, -0.2907, 1.149), ("eight", -9.23, -1.340, 1.628)]
)
def test_the_external_problems_have_the_figures_of_their_source(name: str, base: float, target: float, kl: float) -> None:
    one = problem(name)
    assert one.base.expected_reward(one.reward) == pytest.approx(base, abs=0.005)
    assert one.target.expected_reward(one.reward) == pytest.approx(target, abs=0.0005)
    assert one.base.tilt_kl(one.reward) == pytest.approx(kl, abs=0.0005)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_target_is_the_tilt(name: str) -> None:
    one = PROBLEMS[name]
    x = 3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gap = one.target.log_prob(x) - one.base.log_prob(x) - one.reward(x)
    torch.testing.assert_close(gap, torch.full_like(gap, -one.base.log_normaliser(one.reward)))


def test_an_unknown_problem_is_named() -> None:
    with pytest.raises(ValueError, match=r"no problem 'ten': choose from paper, .*nine"):
        problem("ten")


def test_a_base_serves_every_problem_with_the_same_mixture() -> None:
    found = {name: base_of(name) for name in (*PROBLEMS, "tails")}
    same = dict.fromkeys(("paper", "unequal", "one-mode", "quadratic"), "paper")
    assert found == same | {"eight": "eight", "nine": "nine", "tails": "tails"}


def test_the_table_of_tasks_is_what_is_computed() -> None:
    """The notation page shows each reward as a formula; here it is evaluated."""
    rows = (Path(__file__).parents[2] / "book" / "notation.md").read_text("utf-8").split(":name: tab-tasks")[1]
    found = dict(re.findall(r"^\| `([\w-]+)` \| .+ \| \$(.+)\$ \|$", rows, re.MULTILINE))
    assert set(found) == {*PROBLEMS, *OTHERS}
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name, formula in found.items():
        python = re.sub(r"\\frac(\d)(\d)|\\frac(\d)\{(\d+)\}", lambda m: f"({m[1] or m[3]}/{m[2] or m[4]})*", formula)
        python = re.sub(r"(\d)(x_)", r"\1*\2", python).replace("^2", "**2").replace(")*(", ")*(")
        python = python.replace("x_1", "x[:, 0]").replace("x_2", "x[:, 1]")
        expected = eval(python, {"x": x})
        assert torch.allclose(problem(name).reward(x), expected, rtol=1e-12, atol=1e-12), name
