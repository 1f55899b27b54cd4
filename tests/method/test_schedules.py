"""Noise schedules: end points, shape, precision and derivatives."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from itlib.schedules import Cosine, Linear, Schedule, add_noise, column

SCHEDULES = [Cosine(), Cosine(s=0.05), Linear()]
EPS64, EPS32 = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).eps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_end_points(schedule: Schedule) -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t), torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=2 * EPS64)
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=2 * EPS64)
    # In single precision the ends are exact: alpha_1 = 0 and sigma_0 = 0, not merely small.
    assert schedule.alpha(torch.tensor(1.0)) == 0.0
    assert schedule.sigma(torch.tensor(0.0)) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_monotone(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 5001, dtype=torch.float64)
    assert bool((schedule.alpha(t).diff() < 0).all())
    assert bool((schedule.sigma(t).diff() > -2 * EPS64).all())
    assert bool((schedule.sigma(t[:4900]).diff() > 0).all())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_safe_edge_times(schedule: Schedule) -> None:
    assert 0 < schedule.t_min < schedule.t_max < 1


def test_linear_is_the_straight_line() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(Linear().alpha(t), 1 - t)
    assert torch.equal(Linear().sigma(t), t)


@given(st.floats(0, 1), st.sampled_from([0.008, 0.05]))
def test_cosine_preserves_variance(t: float, s: float) -> None:
    time = torch.tensor(t, dtype=torch.float64)
    schedule = Cosine(s=s)
    assert float(schedule.alpha(time) ** 2 + schedule.sigma(time) ** 2) == pytest.approx(1.0, rel=0, abs=8 * EPS64)


@given(st.floats(0, 1))
def test_cosine_is_the_formula_of_nichol_and_dhariwal(t: float) -> None:
    f = math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert float(Cosine().alpha(torch.tensor(t, dtype=torch.float64)) ** 2) == pytest.approx(f, rel=0, abs=8 * EPS64)


@pytest.mark.parametrize("t", [1e-12, 1e-9, 1e-6, 1e-3, 0.3, 0.999, 1 - 1e-9])
def test_cosine_keeps_its_digits_at_both_ends(t: float) -> None:
    """Relative, not absolute, accuracy: sigma where it vanishes (t near 0), alpha where it does (t near 1)."""
    with mpmath.workdps(60):
        s = mpmath.mpf(0.008)
        alpha = mpmath.cos(mpmath.pi / 2 * (mpmath.mpf(t) + s) / (1 + s)) / mpmath.cos(mpmath.pi / 2 * s / (1 + s))
        sigma = mpmath.sqrt(1 - alpha**2)
    time = torch.tensor(t, dtype=torch.float64)
    assert float(Cosine().alpha(time)) == pytest.approx(float(alpha), rel=16 * EPS64)
    assert float(Cosine().sigma(time)) == pytest.approx(float(sigma), rel=16 * EPS64)


def test_cosine_relative_accuracy_in_single_precision() -> None:
    t = torch.cat([torch.logspace(-12, -1, 200), 1 - torch.logspace(-6, -1, 200)])
    for f in (Cosine().alpha, Cosine().sigma):
        torch.testing.assert_close(f(t).double(), f(t.double()), rtol=8 * EPS32, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_derivatives_are_those_of_autograd(schedule: Schedule) -> None:
    t = torch.linspace(1e-4, 1 - 1e-4, 999, dtype=torch.float64, requires_grad=True)
    for f, derivative in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        (expected,) = torch.autograd.grad(f(t).sum(), t)
        torch.testing.assert_close(derivative(t.detach()), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("shape", [(), (4,), (3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_are_kept(schedule: Schedule, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    t = torch.full(shape, 0.4, dtype=dtype)
    for f in (schedule.alpha, schedule.sigma, schedule.alpha_dot, schedule.sigma_dot):
        assert f(t).shape == shape
        assert f(t).dtype == dtype


@pytest.mark.parametrize("s", [0.0, -0.1, math.nan])
def test_cosine_refuses_a_bad_offset(s: float) -> None:
    with pytest.raises(ValueError, match="s must be a positive finite number"):
        Cosine(s=s)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_noise_mixes_row_by_row(schedule: Schedule) -> None:
    x_0, x_1 = torch.randn(
        2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )  # B = d: traps mixing axes
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    x_t = add_noise(schedule, x_0, x_1, t)
    for i in range(5):
        expected = float(schedule.alpha(t[i])) * x_0[i] + float(schedule.sigma(t[i])) * x_1[i]
        torch.testing.assert_close(x_t[i], expected, rtol=0, atol=4 * EPS64)
    torch.testing.assert_close(x_t[0], x_0[0], rtol=4 * EPS64, atol=4 * EPS64)
    torch.testing.assert_close(x_t[4], x_1[4], rtol=4 * EPS64, atol=4 * EPS64)
    torch.testing.assert_close(add_noise(schedule, x_0, x_1, t[2])[2], x_t[2])


def test_column() -> None:
    x = torch.zeros(3, 2)
    assert column(torch.zeros(3), x).shape == (3, 1)
    assert column(torch.zeros(()), x).shape == ()
    assert column(torch.zeros(3, 1), x).shape == (3, 1)
