"""Bad input: every row of the table, the mathematics in up to twenty dimensions, and what reaches a notebook as text."""

from __future__ import annotations

import ast
from pathlib import Path

import bad_inputs
import pytest
import torch
from bad_inputs import ROWS, Row, answer
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import score_errors
from itlib.network import FromX0
from itlib.rewards import QuadraticReward
from itlib.sampling import ddpm_std, sample, transition
from itlib.schedules import Cosine, Linear, Schedule, add_noise

schedules = st.sampled_from([Cosine(), Linear()])
dimensions, seeds = st.integers(1, 20), st.integers(0, 2**32 - 1)
dtypes = st.sampled_from([torch.float32, torch.float64])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.area}: {row.given}")
def test_each_row(row: Row) -> None:
    said = answer(row)
    if row.says:
        assert row.says in said
        assert "\n" not in said
        assert len(said) < 400
    else:
        assert said == ""
        assert row.note


def test_the_page_shows_the_rows() -> None:
    assert (Path(bad_inputs.__file__).with_suffix(".md")).read_text() == bad_inputs.table()


@given(st.one_of(st.text(), st.sampled_from(["'); import os #", '"""', "\\", "\\'", "a\nb = 1", "{0}", "%s"])))
def test_text_reaches_a_notebook_as_text(text: str) -> None:
    """Papermill writes parameters as code; whatever they say, it is read as the same text."""
    assert ast.literal_eval(PythonTranslator.translate(text)) == text


# ---- the mathematics, in any dimension and precision ---------------------------------------------------------------


def some_mixture(seed: int, d: int) -> GaussianMixture:
    """Up to three components whose covariances are well conditioned."""
    generator = torch.Generator().manual_seed(seed)
    K = 1 + seed % 3
    root = torch.randn(K, d, d, generator=generator, dtype=torch.float64) / d**0.5
    means = 2 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    return GaussianMixture(
        0.1 + torch.rand(K, generator=generator), means, root @ root.mT + 0.3 * torch.eye(d, dtype=torch.float64)
    )


@given(seeds, dimensions, dtypes, schedules, st.floats(0.0, 1.0))
def test_every_method_keeps_shape_precision_and_sense(
    seed: int, d: int, dtype: torch.dtype, schedule: Schedule, t: float
) -> None:
    mixture = some_mixture(seed, d)
    x = mixture.sample(5, torch.Generator().manual_seed(seed)).to(dtype)
    time = torch.tensor(t, dtype=dtype)
    inner = time.clamp(schedule.t_min, schedule.t_max)
    reward = QuadraticReward(torch.linspace(-1, 1, d), -0.1 * torch.eye(d, dtype=torch.float64))
    target = mixture.tilted(reward, 0.5)
    for value, shape in (
        (mixture.log_prob(x), (5,)),
        (mixture.score(x, time, schedule), (5, d)),
        (ExactNoisePredictor(mixture, schedule)(x, time), (5, d)),
        (mixture.covariance(x, inner, schedule, reward), (5, d)),
        (mixture.posterior_reward(x, inner, schedule, reward), (5,)),
        (target.log_prob(x), (5,)),
        (add_noise(schedule, x, x, time), (5, d)),
    ):
        assert value.shape == shape
        assert value.dtype == dtype
        assert bool(torch.isfinite(value).all())
    assert bool((torch.linalg.eigvalsh(target.covariances) > 0).all())
    assert float(target.weights.sum()) == pytest.approx(1.0)
    # Tilting twice by halves is tilting once.
    twice = mixture.tilted(reward, 0.25).tilted(reward, 0.25)
    assert torch.allclose(twice.means, target.means)
    assert torch.allclose(twice.weights, target.weights)


@given(seeds, dimensions, schedules)
def test_single_precision_follows_double(seed: int, d: int, schedule: Schedule) -> None:
    """At every time from edge to edge the score of single precision points is the score of the same points in double."""
    mixture = some_mixture(seed, d)
    x = mixture.sample(8, torch.Generator().manual_seed(seed)).float()
    for t in (0.0, schedule.t_min, 0.5, schedule.t_max, 1.0):
        single, double = (mixture.score(x.to(p), torch.tensor(t, dtype=p), schedule) for p in (torch.float32, torch.float64))
        scale = float(double.abs().max()) + 1.0
        assert float((single - double).abs().max()) <= 1e-4 * scale, t


# ---- the ends of time, in single precision -------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
def test_the_ends_of_time(schedule: Schedule) -> None:
    """Which functions reach t = 0 and t = 1, and which stop at the safe edge times."""
    mixture = some_mixture(1, 2)
    x = mixture.sample(64, torch.Generator().manual_seed(0)).float()
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    # At 0 there is no noise: the denoiser's answer is multiplied by sigma = 0, and the score is that of the data.
    assert torch.equal(ExactNoisePredictor(mixture, schedule)(x, zero), torch.zeros_like(x))
    assert torch.equal(add_noise(schedule, x, torch.randn_like(x), zero), x)
    reward = QuadraticReward(torch.tensor([1.0, -2.0]))
    assert torch.allclose(mixture.posterior_reward(x, zero, schedule, reward), reward(x), atol=1e-5)
    # At 1 there is no data.
    assert torch.allclose(mixture.score(x, one, schedule), -x, atol=1e-5)
    assert torch.allclose(ExactNoisePredictor(mixture, schedule)(x, one), x, atol=1e-5)
    # Close to 0 and 1 nothing loses more than rounding: denoised samples come back in single precision.
    for t in (1e-6, 1e-4, schedule.t_min):
        time = torch.tensor(t)
        x_t = add_noise(schedule, x, torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), time)
        denoised = (x_t - schedule.sigma(time) * ExactNoisePredictor(mixture, schedule)(x_t, time)) / schedule.alpha(time)
        assert float((denoised - x).abs().max()) < 10 * float(schedule.sigma(time)) + 1e-5
    # What divides by sigma or alpha stops inside: FromX0 clamps, the sampler starts at t_max, transitions refuse t = 1.
    assert bool(torch.isfinite(FromX0(lambda y, s: y, schedule)(x, zero)).all())
    assert ddpm_std(schedule, 0.0, schedule.t_min) == 0.0
    with pytest.raises(ValueError, match="at t=1 alpha is zero"):
        transition(schedule, 0.5, 1.5 if isinstance(schedule, Cosine) else 1.0, 1.0)
    drawn = sample(
        ExactNoisePredictor(mixture, schedule), schedule, 2000, steps=100, generator=torch.Generator().manual_seed(2)
    )
    assert drawn.dtype == torch.float32
    assert float((drawn.double().mean(0) - mixture.mean).abs().max()) < 0.2
    errors = score_errors(ExactNoisePredictor(mixture, schedule), mixture, schedule, n=2000)
    assert errors.eps_rmse < 1e-5
    assert errors.score_rmse < 1e-3  # the same error divided by sigma at t_min
