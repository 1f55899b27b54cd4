"""When is tilting needed: the strength that a share asks for, and a first look at every family."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from itlib.experiments.effective_share import COMPARED, EXPERIMENT, Parameters, log_share, run, strength_of
from itlib.experiments.problems import Toy, problem
from itlib.experiments.records import load_records
from itlib.gaussian_mixture import GaussianMixture
from itlib.metrics import effective_sample_size
from itlib.rewards import QuadraticReward


def test_the_share_of_a_gaussian() -> None:
    """exp(-lam^2 b' Sigma b), so the strength has a closed form; and samples agree where they can."""
    toy = Toy(
        GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.5 * torch.eye(2)[None]),
        QuadraticReward(torch.tensor([0.0, 4.0])),
    )
    for share in (0.5, 1e-3, 1e-8):
        assert strength_of(toy, share) == pytest.approx(math.sqrt(-math.log(share) / 8))
    tails = problem("tails")
    lam = strength_of(tails, 0.5)
    x = tails.base.sample(400_000, torch.Generator().manual_seed(0))
    assert effective_sample_size(lam * tails.reward(x)) / len(x) == pytest.approx(0.5, abs=0.02)
    explosive = Toy(toy.base, QuadraticReward(torch.zeros(2), torch.eye(2)))
    assert log_share(explosive, 1.5) == -math.inf
    assert strength_of(explosive, 1e-8) < 1.0  # the tilt of twice the strength has to exist


def test_every_family_answers() -> None:
    record = run(Parameters(profile="smoke", share=0.5), Path())
    assert record.failure is None
    assert set(record["sliced_w2"]) == set(record["mode_weight_error"]) >= {"importance", "smc", "tilting", "exact"}
    assert set(record["own_share"]) == set(record["strength"]) == {"recommended", "value"}
    assert record["log_share"] == pytest.approx(math.log(0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        Parameters(share=1.0)
    assert {p.problem for p in EXPERIMENT.cells([0]).values()} == set(COMPARED)


def test_records_are_the_grid() -> None:
    """Every task from an easy tilt to one that no sample of the base is left of."""
    records = load_records(Path(__file__).parents[2] / "book" / "reference" / "effective_share", Parameters)
    assert {record.parameters for record in records} == set(EXPERIMENT.cells([0]).values())
    for record in records:
        assert record["log_share"] == pytest.approx(math.log(record.parameters.share), rel=1e-5)  # six digits are kept
