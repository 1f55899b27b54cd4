"""Exact ingredients of Algorithm 2: each does what its name says, and the records are whole seeds of the grid."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch

from itlib.experiments import base
from itlib.experiments.error_budget import (
    EXCHANGES,
    EXPERIMENT,
    FACTORIAL,
    Parameters,
    Samples,
    analytic_sampler,
    cells,
    ingredients,
    run,
    taught_by,
)
from itlib.experiments.problems import problem
from itlib.experiments.records import load_record, load_records
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.schedules import Cosine, add_noise
from itlib.tilting import PAPER_UPDATE, DatasetSampler, TiltBatch, TiltingConfig, iterative_tilting, tilt_path

REFERENCE = Path(__file__).parents[2] / "book" / "reference" / "error_budget"
PROBLEM = problem("one-mode")
PATH = tilt_path(PROBLEM.base, PROBLEM.reward, 1.0, 10)


def batch(n: int, cosine: Cosine, eps_old: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], k: int = 3) -> TiltBatch:
    """Noised exact samples of p^{k-1}, in double precision, at one point in x and t if n is large."""
    generator = torch.Generator().manual_seed(0)
    x_0 = PATH(k - 1).sample(n, generator)
    t = 0.01 + 0.98 * torch.rand(n, generator=generator, dtype=torch.float64)
    z = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = add_noise(cosine, x_0, z, t)
    return TiltBatch(k, x_0, PROBLEM.reward(x_0), t, z, x_t, eps_old(x_t, t))


def wrong(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, 0.7)


def test_with_everything_exact_one_tilt_is_the_next_law_to_first_order(cosine: Cosine) -> None:
    """Whatever the teacher's network says; halving delta divides what is left by four."""
    update, _ = ingredients(PATH, PROBLEM.reward, cosine, covariance="exact", exact_teacher=True)
    given, k = batch(400, cosine, wrong), 3
    missed = []
    for delta in (0.1, 0.05, 0.025):
        truth = ExactNoisePredictor(PATH(k - 1).tilted(PROBLEM.reward, delta), cosine)(given.x_t, given.t)
        missed.append(float((update(given, delta)[0] - truth).square().mean().sqrt()))
    for large, small in pairwise(missed):
        assert large / small == pytest.approx(4.0, rel=0.15)


def test_the_exact_teacher_replaces_the_network_in_target_and_estimate(cosine: Cosine) -> None:
    truth = ExactNoisePredictor(PATH(2), cosine)
    taught, learned = (taught_by(PATH, cosine, PAPER_UPDATE), PAPER_UPDATE)
    given, right = batch(50, cosine, wrong), batch(50, cosine, truth)
    torch.testing.assert_close(taught(given, 0.1)[0], learned(right, 0.1)[0])
    assert not torch.allclose(learned(given, 0.1)[0], learned(right, 0.1)[0])


def test_single_and_exact_covariance_agree_on_average(cosine: Cosine) -> None:
    """With the exact teacher and samples of p^{k-1}; tested against functions of x_t, by five standard errors."""
    given = batch(200_000, cosine, ExactNoisePredictor(PATH(2), cosine))
    single, exact = (
        ingredients(PATH, PROBLEM.reward, cosine, covariance=c, exact_teacher=True)[0](given, 0.1)[0]
        for c in ("single", "exact")
    )
    for f in (torch.ones_like(given.x_t), given.x_t, torch.sin(given.x_t) * given.t.unsqueeze(1)):
        gap = ((single - exact) * f).sum(1)
        assert abs(float(gap.mean())) < 5 * float(gap.std()) / len(gap) ** 0.5
        assert float(gap.std()) > 0.01


@pytest.mark.parametrize("samples", ["model", "analytic", "exact"])
def test_samples_come_from_where_they_say(samples: Samples, cosine: Cosine) -> None:
    """From a network that knows nothing: each is like itself and like no other."""
    settings = TiltingConfig(N=10, S=64, E=1, J=5, B=8)
    update, sampler = ingredients(PATH, PROBLEM.reward, cosine, samples=samples, J=5)

    def drawn(use: DatasetSampler | None) -> torch.Tensor:
        return next(iterative_tilting(Network(2), PROBLEM.reward, cosine, settings, update=update, sampler=use)).samples

    exact = ingredients(PATH, PROBLEM.reward, cosine, samples="exact")[1]
    same = {
        "model": torch.equal(drawn(sampler), drawn(None)),
        "analytic": torch.equal(drawn(sampler), drawn(analytic_sampler(cosine, 2, 5))),
        "exact": torch.equal(drawn(sampler), drawn(exact)),
    }
    assert [name for name, equal in same.items() if equal] == [samples]


def test_the_analytic_sampler_gives_back_the_variance(cosine: Cosine) -> None:
    """Of a Gaussian, from its exact denoiser and few steps: exact up to the noise of the draw; Algorithm 1 is too narrow."""
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.5 * torch.eye(2).unsqueeze(0))
    x = analytic_sampler(cosine, 2, 20)(ExactNoisePredictor(law, cosine), 1, 20_000, torch.Generator().manual_seed(0))
    assert float(x.var()) == pytest.approx(0.5, abs=5 * 0.5 * (2 / 40_000) ** 0.5)


def test_names_that_do_not_exist_are_refused(cosine: Cosine) -> None:
    unknown: Any
    for unknown in ({"samples": "heun"}, {"covariance": "double"}):
        with pytest.raises(ValueError, match="one of"):
            ingredients(PATH, PROBLEM.reward, cosine, **unknown)


def test_the_grid_is_a_factorial_and_exchanges_one_at_a_time() -> None:
    crossed = {(EXCHANGES[n].get("samples"), EXCHANGES[n].get("covariance")) for n in FACTORIAL}
    assert crossed == set(product((None, "exact"), repeat=2))
    for start, names in {
        "learned": ("samples", "covariance", "sampler", "teacher", "base", "centred"),
        "samples": ("both", "fresh", "samples_long"),
        "both": ("both_teacher", "both_base", "both_long"),
    }.items():
        for name in names:
            assert len(EXCHANGES[name].items() ^ EXCHANGES[start].items()) == 1, name


def test_both_problems_start_from_the_papers_base() -> None:
    after = [EXPERIMENT.after(asked) for asked in cells([3]).values()]
    assert all(found == {"base_seed3": base.Parameters(seed=3)} for found in after)


@pytest.mark.parametrize("name", list(EXCHANGES))
def test_an_exchange_is_known_by_its_parameters(name: str) -> None:
    assert Parameters(problem="one-mode", N=5, seed=7, **EXCHANGES[name]).exchange == name


def test_a_run_looks_along_the_tilts_and_with_all_exact_stays_close(tmp_path: Path) -> None:
    asked = Parameters(N=2, samples="exact", covariance="exact", exact_teacher=True, exact_base=True, profile="smoke")
    record = run(asked, tmp_path)
    assert record.parameters == asked
    assert list(record.curve["k"]) == [0, 1, 2]
    assert record.curve["eps_rmse"][0] < 1e-6  # the exact base, before anything was learned
    assert not list(tmp_path.iterdir())


def test_records_are_whole_seeds_of_the_grid() -> None:
    """Every cell has the parameters of its name, as many seeds of each, and looks along the tilts from base to end."""
    records = load_records(REFERENCE, Parameters)
    grid = cells(sorted({record.parameters.seed for record in records}))
    assert {stem: load_record(REFERENCE / f"{stem}.json").parameters for stem in grid} == grid
    assert len(records) == len(grid)
    for record in records:
        assert (record.curve["k"][0], record.curve["k"][-1]) == (0, record.parameters.N)
        assert len(record.curve["eps_rmse"]) == min(record.parameters.N, 10) + 1
