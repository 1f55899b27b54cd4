"""Schedules of other people's models: their tables, slopes by autograd, the way back from a noise level, and clocks."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from foreign_models import STABLE_DIFFUSION, Says
from torch import Tensor

from itlib.pretrained import ContinuousVP, Flow, FromModel, ModelSchedule, OnGrid, Tabulated, VarianceExploding
from itlib.sampling import sample, time_grid

T = 100
TABLE = DDIMScheduler(T, **STABLE_DIFFUSION).alphas_cumprod.double()
ALL: list[ModelSchedule] = [Tabulated(TABLE), ContinuousVP(), VarianceExploding(), Flow()]
GRID = OnGrid(Tabulated(TABLE), torch.tensor([0.0, 0.1, 0.3, 0.9]))


def test_the_table_is_met_at_its_times() -> None:
    schedule = Tabulated(TABLE)
    t = (torch.arange(T, dtype=torch.float64) + 1) / T
    torch.testing.assert_close(schedule.alpha(t) ** 2, TABLE)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - TABLE)
    torch.testing.assert_close(schedule.timestep(t), torch.arange(T, dtype=torch.float64))
    start = torch.zeros((), dtype=torch.float64)
    assert (float(schedule.alpha(start)), float(schedule.sigma(start))) == (1.0, 0.0)
    assert schedule.alpha(torch.rand(3, 2)).dtype == torch.float32


def test_score_sde_has_the_integral_of_its_rate() -> None:
    schedule, t = ContinuousVP(0.1, 20.0), 0.7
    fine = torch.linspace(0, t, 20_001, dtype=torch.float64)
    spent = float(torch.trapezoid(0.1 + fine * 19.9, fine))
    assert float(schedule.alpha(torch.tensor(t, dtype=torch.float64))) == pytest.approx(math.exp(-spent / 2), rel=1e-8)


def test_exploding_noise_is_what_diffusers_has() -> None:
    """The levels of EDMEulerScheduler, and what it tells the model."""
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(10)
    schedule, levels = VarianceExploding(), theirs.sigmas[:-1].double()
    t = schedule.time_of(levels)
    torch.testing.assert_close(schedule.sigma(t) / schedule.alpha(t), levels)
    torch.testing.assert_close(schedule.sigma(t) ** 2 + schedule.alpha(t) ** 2, torch.ones_like(t))
    torch.testing.assert_close(schedule.timestep(t), theirs.timesteps.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", [*ALL, GRID], ids=lambda s: type(s).__name__)
def test_slopes_are_those_of_the_values(schedule: ModelSchedule) -> None:
    t = ((torch.arange(90, dtype=torch.float64) + 5.5) / 100).requires_grad_()  # between the corners of the table
    for value, slope in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t.detach()), expected)


@pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
def test_the_time_of_a_level_has_that_level(schedule: ModelSchedule) -> None:
    t = torch.linspace(0.02, 0.98, 40, dtype=torch.float64)
    torch.testing.assert_close(schedule.time_of(schedule.sigma(t) / schedule.alpha(t)), t)


def test_even_steps_visit_the_given_times() -> None:
    told = torch.tensor([7.0, 31.0, 88.5])
    grid, inner = OnGrid(Tabulated(TABLE), torch.tensor([0.0, 0.1, 0.3, 0.9]), told), Tabulated(TABLE)
    t = torch.tensor(time_grid(grid, 3), dtype=torch.float64)
    torch.testing.assert_close(grid.alpha(t), inner.alpha(torch.tensor([0.0, 0.1, 0.3, 0.9], dtype=torch.float64)))
    torch.testing.assert_close(grid.timestep(t[1:]), told.double())


@pytest.mark.parametrize("times", [[0.1, 0.5], [0.0, 0.5, 0.4], [0.0], [0.0, 1.5]])
def test_times_that_are_no_grid_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="times of a grid rise from 0"):
        OnGrid(Tabulated(TABLE), torch.tensor(times))


@pytest.mark.parametrize("table", [[0.5, 0.7, 0.1], [1.0, 0.5, 0.2], [0.5], [0.5, 0.0], [0.5, 0.2, -0.1]])
def test_a_table_that_is_none_is_refused(table: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod must fall"):
        Tabulated(torch.tensor(table))


@pytest.mark.parametrize("clipped", [False, True])
def test_chains_start_where_predictions_can_be_trusted(clipped: bool) -> None:
    """A cosine table ends at alpha = 5e-5, a rescaled one at 0: an error of a hundredth must not become a sample of 200."""
    kind = {"beta_schedule": "squaredcos_cap_v2"} if not clipped else {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True}
    table = DDIMScheduler(1000, **kind).alphas_cumprod
    schedule = Tabulated(table)
    assert float(schedule.alpha(torch.tensor(schedule.t_max))) == pytest.approx(5e-3, rel=1e-3)
    variance = 4.5

    def nearly(x: Tensor, tau: Tensor) -> Tensor:
        square = table.clamp_min(2.5e-5)[tau.round().long()].unsqueeze(-1)
        exact = (1 - square).sqrt() * x / (square * variance + 1 - square)
        return exact + 0.01 * torch.cos(7 * x)

    base = FromModel(Says(nearly), schedule, (2,))
    drawn = sample(base, schedule, 4000, 2, steps=100, generator=torch.Generator().manual_seed(0))
    assert float(drawn.var()) == pytest.approx(
        variance, rel=0.1
    )  # 100 steps lose 5 %, the error adds (200 * .01)^2 / 2 * alpha
