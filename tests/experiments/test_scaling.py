"""Tasks that grow: against the mixtures with full covariances, against a linear reward on a table, and their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import norm

from itlib.experiments.records import load_record, load_records
from itlib.experiments.scaling import (
    LEVERS,
    SHAPES,
    VARIANCE,
    Axis,
    Line,
    Parameters,
    axis_task,
    cells,
    jump,
    run,
    two_modes,
    wave,
)
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.rewards import QuadraticReward
from itlib.schedules import Cosine

REFERENCE = Path(__file__).parents[2] / "book" / "reference" / "scaling"
TASKS = [("across", 10, 4.0, 4.0), ("along", 10, 4.0, 4.0), ("along", 1, 0.3, 2.0), ("along", 1, 0.3, 8.0)]


def full(law: Axis) -> GaussianMixture:
    """The same law with its covariances written out."""
    K = len(law.line.weights)
    means = torch.cat([law.line.means, law.rest.expand(K, -1)], 1)
    return GaussianMixture(law.line.weights, means, VARIANCE * torch.eye(law.d).expand(K, -1, -1))


@pytest.mark.parametrize(("reward", "d", "kl", "distance"), TASKS)
def test_the_axis_is_a_mixture(reward: str, d: int, kl: float, distance: float, cosine: Cosine) -> None:
    base, b = axis_task(d, reward, kl, distance)
    assert full(base).tilt_kl(QuadraticReward(b)) == pytest.approx(kl, abs=1e-9)
    x = 2 * torch.randn(40, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.01, 1, 40, dtype=torch.float64)
    for lam in (0.0, 0.3, 1.0):
        law, truth = base.tilted(b, lam), full(base).tilted(QuadraticReward(b), lam)
        torch.testing.assert_close(law.mean, truth.mean)
        torch.testing.assert_close(law.score(x, t, cosine), truth.score(x, t, cosine))
        torch.testing.assert_close(law.score(x, t[3], cosine), truth.score(x, t[3], cosine))


def test_samples_of_the_axis_have_its_mean_and_covariance() -> None:
    base, b = axis_task(5, "along", 1.0)
    law, n = base.tilted(b), 40_000
    x, truth = law.sample(n, torch.Generator().manual_seed(1)), full(law)
    covariance = torch.einsum("k,kd,ke->de", truth.weights, truth.means - law.mean, truth.means - law.mean)
    covariance = covariance + VARIANCE * torch.eye(5)
    # Five standard errors; the fourth moment of a mixture of two modes is below that of its Gaussian.
    assert bool(((x.mean(0) - law.mean).abs() < 5 * (covariance.diagonal() / n).sqrt()).all())
    bound = 5 * ((covariance.diagonal().outer(covariance.diagonal()) + covariance**2) / n).sqrt()
    assert bool(((x.T.cov() - covariance).abs() < bound).all())


def test_an_unknown_direction_is_refused() -> None:
    for d, reward in ((2, "up"), (1, "across")):
        with pytest.raises(ValueError, match="the reward is 'along' or, from two dimensions on, 'across'"):
            axis_task(d, reward, 1.0)


@pytest.mark.parametrize("lam", [1.0, 0.4])
def test_the_table_is_a_mixture(cosine: Cosine, lam: float) -> None:
    """Where the truth is known: a linear reward."""
    mixture, reward = two_modes(), QuadraticReward(torch.tensor([1.0]))
    table, truth = Line.of(mixture).tilted(reward, lam), mixture.tilted(reward, lam)
    t = torch.linspace(cosine.t_min, 0.999, 30, dtype=torch.float64)
    x = torch.linspace(-4, 4, 30, dtype=torch.float64).unsqueeze(1)
    torch.testing.assert_close(table.score(x, t, cosine), truth.score(x, t, cosine), rtol=1e-6, atol=1e-6)
    step = 2e-3
    assert float(table.p @ table.x) == pytest.approx(float(truth.mean), abs=1e-9)
    edges = torch.linspace(-8, 8, 33, dtype=torch.float64)
    parts = norm(truth.means[:, 0], VARIANCE**0.5).cdf(edges.unsqueeze(1))
    cdf = torch.from_numpy(parts) @ truth.weights
    torch.testing.assert_close(table.bins(edges), cdf.diff(), rtol=0, atol=1e-6)
    inside = (cdf > 1e-6) & (cdf < 1 - 1e-6)
    torch.testing.assert_close(table.quantile(cdf[inside]), edges[inside], rtol=0, atol=step)


def test_distances_to_a_table() -> None:
    table = Line.of(two_modes())
    own = table.quantile((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).unsqueeze(1)
    assert table.wasserstein(own) == 0.0
    assert table.wasserstein(own.flip(0) + 0.25) == pytest.approx(0.25, abs=1e-12)
    drawn = table.sample(4000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 1)
    edges = torch.linspace(-7, 7, 15, dtype=torch.float64)
    counts, expected = torch.histogram(drawn.flatten(), edges)[0], 4000 * table.bins(edges)
    assert bool(((counts - expected).abs() < 5 * expected.sqrt() + 1).all())  # five standard errors of a Poisson count


def test_a_tilt_of_the_table_is_exact(cosine: Cosine) -> None:
    """By Proposition 3.1, whatever the reward: a weighted mean of kernel scores under the base posterior (3.4)."""
    base = Line.of(two_modes())
    x, t = torch.linspace(-3, 3, 13, dtype=torch.float64).unsqueeze(1), torch.tensor(0.2, dtype=torch.float64)
    alpha, sigma = cosine.alpha(t), cosine.sigma(t)
    for reward in SHAPES.values():
        weight = base.posterior(x, t, cosine) * reward(base.x.unsqueeze(1)).exp()
        g = (alpha * base.x - x) / sigma**2
        expected = ((weight * g).sum(1) / weight.sum(1)).unsqueeze(1)
        torch.testing.assert_close(base.tilted(reward).score(x, t, cosine), expected)
    assert ExactNoisePredictor(base, cosine)(x.float(), t.float()).dtype == torch.float32


def test_the_jump_has_no_gradient() -> None:
    for reward, silent in ((jump, True), (wave, False)):
        x = torch.linspace(-2, 2, 11).unsqueeze(1).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(x).sum(), x)
        assert bool((gradient == 0).all()) == silent
    assert jump(torch.tensor([[0.4], [0.6]])).tolist() == [0.0, 3.0]


def test_records_are_whole_seeds_of_the_grid() -> None:
    """Every cell has the parameters of its name, and there are as many seeds of each; a lever changes what it says."""
    seeds = {record.parameters.seed for record in load_records(REFERENCE, Parameters)}
    grid = cells(sorted(seeds))
    assert {stem: load_record(REFERENCE / f"{stem}.json").parameters for stem in grid} == grid
    assert len(list(REFERENCE.glob("*.json"))) == len(grid)
    plain = grid["across_d0100_N020_seed0"]
    for name, changes in LEVERS.items():
        assert grid[f"across_d0100_N020_{name}_seed0"] == plain.but(**changes)


@pytest.mark.parametrize(
    "knobs", [{"reward": "across", "d": 5}, {"reward": "along", "centre": True}, {"reward": "jump", "d": 1}]
)
def test_a_run_leaves_a_record_of_its_kind_of_task(knobs: dict[str, Any], tmp_path: Path) -> None:
    asked = Parameters(N=1, width=8, profile="smoke", **knobs)
    record = run(asked, tmp_path)
    assert record.parameters == asked
    assert not list(tmp_path.iterdir())
    if asked.reward == "jump":
        assert 0 <= record["total_variation"] <= 1
        assert len(record.curve["count"]) == len(record.curve["left"]) == 100
    else:
        parts = (record[f"eps_{name}"] ** 2 for name in ("along_b", "rest"))
        across = record["eps_along_axis"] ** 2 if asked.reward == "across" else 0.0
        assert sum(parts) + across == pytest.approx(record["eps_rmse"] ** 2)  # Pythagoras
