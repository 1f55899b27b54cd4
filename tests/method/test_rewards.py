"""Rewards: the quadratic family, reading it from text, and the forward-only contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from itlib.rewards import NAMED_REWARDS, ForwardOnly, QuadraticReward, evaluate, parse_reward

X = torch.tensor([[1.0, 2.0], [-0.5, 3.0], [0.0, 0.0]], dtype=torch.float64)


def test_quadratic_values_by_hand() -> None:
    A = torch.tensor([[2.0, 0.5], [0.5, -1.0]])
    reward = QuadraticReward(torch.tensor([3.0, -1.0]), A, c=0.25)
    by_hand = [0.5 * (2 * x * x + 2 * 0.5 * x * y - y * y) + 3 * x - y + 0.25 for x, y in X.tolist()]
    torch.testing.assert_close(reward(X), torch.tensor(by_hand, dtype=torch.float64), rtol=1e-15, atol=1e-15)


def test_quadratic_gradient_is_that_of_4_2() -> None:
    A = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    b = torch.tensor([3.0, -1.0], dtype=torch.float64)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(QuadraticReward(b, A)(x).sum(), x)
    torch.testing.assert_close(gradient, X @ A + b)


def test_quadratic_follows_the_dtype_and_batch_shape_of_its_input() -> None:
    reward = QuadraticReward(torch.tensor([0.0, 4.0]))
    assert reward(X.float()).dtype == torch.float32
    assert reward(X.reshape(3, 1, 2)).shape == (3, 1)
    torch.testing.assert_close(reward(X), 4 * X[:, 1])


@pytest.mark.parametrize(
    ("b", "A", "message"),
    [
        (torch.zeros(2), torch.zeros(3, 3), "shape"),
        (torch.zeros(2), torch.zeros(2), "shape"),
        (torch.zeros(2, 1), torch.zeros(2, 2), "shape"),
        (torch.zeros(2), torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
    ],
)
def test_quadratic_refuses(b: Tensor, A: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuadraticReward(b, A)


@pytest.mark.parametrize(
    ("text", "b", "A", "c"),
    [
        ("paper", [0, 4], [[0, 0], [0, 0]], 0),
        ("b=0,4", [0, 4], [[0, 0], [0, 0]], 0),
        ("one-mode", [1.5, 3], [[0, 0], [0, 0]], 0),
        ("unequal", [0.5, 3], [[0, 0], [0, 0]], 0),
        ("quadratic", [1, 1], [[-2, 0], [0, 1]], 0),
        ("A=-2,1", [0, 0], [[-2, 0], [0, 1]], 0),
        ("A=-2,.5;.5,1 b=1e-1,-2 c=-3", [0.1, -2], [[-2, 0.5], [0.5, 1]], -3),
        ("c=1", [0, 0], [[0, 0], [0, 0]], 1),
    ],
)
def test_parse(text: str, b: list[float], A: list[list[float]], c: float) -> None:
    reward = parse_reward(text)
    assert reward.b.tolist() == b
    assert reward.A.tolist() == A
    assert reward.c == c


def test_parse_in_other_dimensions() -> None:
    assert parse_reward("A=2 b=3", d=1).A.tolist() == [[2]]
    assert parse_reward("A=1,2,3", d=3).A.diagonal().tolist() == [1, 2, 3]


def test_every_named_reward_is_read() -> None:
    for name in NAMED_REWARDS:
        assert parse_reward(name).b.shape == (2,)


@pytest.mark.parametrize(
    "text",
    ["", " ", "b=", "b=0", "b=0,4,1", "b=0,x", "d=0,4", "b 0,4", "A=1,2,3", "A=1,2;3", "c=1,2", "nonsense", "b=0,4 +"],
)
def test_parse_refuses_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="b=0,4"):
        parse_reward(text)


def test_parse_refuses_an_asymmetric_matrix() -> None:
    with pytest.raises(ValueError, match="symmetric"):
        parse_reward("A=1,2;3,4")


def test_evaluate_never_lets_autograd_in() -> None:
    def picky(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        return x[:, 1]

    x = X.clone().requires_grad_()
    values = evaluate(picky, x)
    assert not values.requires_grad
    assert values.tolist() == [2, 3, 0]


@pytest.mark.parametrize(
    "convert", [list, np.array, lambda v: torch.tensor(v, dtype=torch.float64)], ids=["list", "numpy", "torch"]
)
def test_evaluate_takes_any_kind_of_numbers(convert: type) -> None:
    values = evaluate(lambda x: convert([float(v) for v in x[:, 0]]), X.float())
    assert values.dtype == torch.float32
    assert values.tolist() == [1.0, -0.5, 0.0]


@pytest.mark.parametrize("reward", [lambda x: x, lambda x: x.sum(), lambda x: x[:, :1], lambda x: x[1:, 0]])
def test_evaluate_refuses_a_wrong_shape(reward: object) -> None:
    with pytest.raises(ValueError, match="one number per sample"):
        evaluate(reward, X)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_evaluate_refuses_and_counts_numbers_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3"):
        evaluate(lambda x: torch.tensor([0.0, bad, 1.0]), X)


def test_forward_only() -> None:
    reward = ForwardOnly(QuadraticReward(torch.tensor([0.0, 4.0])))
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="forward-only"):
        reward(x)
    torch.testing.assert_close(reward(X), 4 * X[:, 1])
    torch.testing.assert_close(evaluate(reward, x), 4 * X[:, 1])
    with torch.no_grad():
        torch.testing.assert_close(reward(x), 4 * X[:, 1])
