"""Rewards, judges and truth of molecules against formulas, other libraries and hand counts; records of the comparison."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.linalg import sqrtm
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from itlib.experiments.digits.images import strongest
from itlib.experiments.molecules import base, judges, methods, pictures, solubility, truth
from itlib.experiments.molecules.data import parsed
from itlib.experiments.molecules.rewards import TASKS, Forest, OfMolecules, descriptors, likeness, rule
from itlib.experiments.records import load_record, load_records
from itlib.rewards import evaluate

REFERENCE = Path(__file__).parents[2] / "book" / "reference" / "molecules"
ASPIRIN, CAFFEINE, BENZENE = "CC(=O)Oc1ccccc1C(=O)O", "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "c1ccccc1"


@pytest.fixture(scope="module")
def forest() -> Forest:
    return Forest.load(REFERENCE / "solubility.safetensors")


def test_arrays_vote_as_the_trees_do(tmp_path: Path) -> None:
    """Against scikit-learn, at points and exactly on thresholds, before and after a file."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 10)).astype(np.float32)
    trained = RandomForestClassifier(20, random_state=0).fit(x, x[:, 0] + x[:, 3] ** 2 > 0.5)
    asked = np.concatenate([random.normal(size=(100, 10)).astype(np.float32), x[:100]])
    for i, tree in enumerate(trained.estimators_):
        asked[i, tree.tree_.feature[0]] = tree.tree_.threshold[0]
    forest = Forest.of(trained)
    safetensors.torch.save_file(forest.tensors(), tmp_path / "forest.safetensors")
    again = Forest.load(tmp_path / "forest.safetensors")
    expected = sum(tree.predict(asked) for tree in trained.estimators_)
    assert [forest.count(row) for row in asked] == [again.count(row) for row in asked] == expected.tolist()
    assert 0 < min(expected) + 1 < max(expected)


def test_a_missing_forest_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--grid molecules_solubility"):
        Forest.load(tmp_path / "solubility.safetensors")


def lettered(answers: dict[str, str | None]) -> OfMolecules:
    """A reward that counts atoms of the molecules that latents are looked up as, by their first number."""
    names = list(answers.values())
    return OfMolecules(lambda z: [names[int(i)] for i in z[:, 0]], lambda m: float(m.GetNumAtoms()), -7.0)


def test_what_is_no_molecule_has_a_value_of_its_own() -> None:
    reward = lettered(
        {"benzene": BENZENE, "none": None, "empty": "", "open ring": "c1cccc", "valence": "C(C)(C)(C)(C)C", "two": "CC"}
    )
    z = torch.arange(6.0).unsqueeze(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(reward, z).tolist() == [6, -7, -7, -7, -7, 2]


def test_a_program_that_fails_loses_nothing() -> None:
    """One sentence, once; the molecule counts as a bad one, and the others keep their values."""
    reward = lettered({"benzene": BENZENE, "ethane": "CC", "water": "O", "methane": "C"})

    def fails(found: object) -> float:
        n = found.GetNumAtoms()  # type: ignore[attr-defined]
        if n == 2:
            raise KeyError("no entry")
        return math.nan if n == 6 else 3.0

    reward.score = fails
    with pytest.warns(UserWarning, match=r"answered nan at c1ccccc1, which counts -7") as seen:
        assert evaluate(reward, torch.arange(4.0).unsqueeze(1)).tolist() == [-7, -7, 3, 3]
    assert (len(seen), reward.failures) == (1, 2)
    reward.failures = 0
    with pytest.warns(UserWarning, match=r"raised KeyError \('no entry'\) at CC"):
        assert reward.of(["CC", "O"]) == [-7, 3]
    with pytest.raises(RuntimeError, match="failed at each of 1 molecules"):
        reward.of(["CC", None])


def test_rewards_of_known_molecules(forest: Forest) -> None:
    """QED of aspirin is published as 0.55; caffeine dissolves to 0.1 mol/l, and three fused rings hardly."""
    assert likeness(parsed(ASPIRIN)) == pytest.approx(0.55, abs=0.005)
    assert forest.score(parsed(CAFFEINE)) > math.log(0.5)
    assert forest.score(parsed("c1ccc2cc3ccccc3cc2c1")) == pytest.approx(math.log(1 / 102), abs=1.0)
    amide, ester = "COc1ccc(C(=O)NCCc2ccncc2)cc1", "COc1ccc(C(=O)OCCc2ccncc2)cc1"
    assert (rule(parsed(amide)), rule(parsed(ester)), rule(parsed("CC(N)=O"))) == (1.0, 0.0, 0.0)
    assert all(task.bad <= 0 for task in TASKS.values())


def test_delaney_by_hand() -> None:
    """Benzene: six carbons of +0.1581 and six hydrogens of +0.1230 make log P 1.6866."""
    log_p, _, weight, heavy, *_ = descriptors(parsed(BENZENE))
    assert (log_p, weight, heavy) == (pytest.approx(6 * (0.1581 + 0.123)), pytest.approx(78.114, abs=2e-3), 6)
    assert judges.delaney(parsed(BENZENE)) == pytest.approx(0.16 - 0.63 * 1.6866 - 0.0062 * 78.114 - 0.74, abs=1e-3)


def test_the_card_of_a_few_strings(forest: Forest) -> None:
    judged = judges.Judged.of([ASPIRIN, "OC(=O)c1ccccc1OC(C)=O", BENZENE, None, "C("], forest)
    card = judged.card()
    assert (card["valid"], card["unique"]) == (3 / 5, 2 / 3)
    assert card["weight"] == pytest.approx((2 * 180.159 + 78.114) / 3, abs=1e-3)
    low, high = judges.RANGES["weight"]
    assert np.sum(judged.histograms("x")["weight_x"]) * (high - low) / judges.BINS == 0  # all three are lighter
    assert judges.Judged.of([None], forest).card() == {"valid": 0.0}


def test_frechet_distance_against_scipy() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(size=(400, 6)), random.normal(size=(300, 6)) @ random.normal(size=(6, 6)) + 0.5
    (m, C), (n, D) = ((x.mean(0), np.cov(x.T)) for x in (a, b))
    expected = np.sum((m - n) ** 2) + np.trace(C + D - 2 * np.real(sqrtm(C @ D)))
    assert judges.frechet(judges.moments(a), judges.moments(b)) == pytest.approx(expected, rel=1e-9)
    w = random.random(400)
    mean, covariance = judges.moments(a, w / w.sum())
    np.testing.assert_allclose(mean, np.average(a, axis=0, weights=w))
    np.testing.assert_allclose(covariance, np.cov(a.T, aweights=w), rtol=1e-10, atol=1e-12)


def test_the_sweep_of_a_coin() -> None:
    """Rewards 0 and 1 in equal parts: Z = (1 + e^lam) / 2, and the tilted mean is a logistic function."""
    for row in truth.sweep(TASKS["rule"], torch.tensor([0.0, 1.0] * 50, dtype=torch.float64)):
        lam = row["lam"]
        mean = 1 / (1 + math.exp(-lam))
        assert row["log_z"] == pytest.approx(math.log((1 + math.exp(lam)) / 2))
        assert row["mean_reward"] == pytest.approx(mean)
        assert row["kl"] == pytest.approx(mean * math.log(2 * mean) + (1 - mean) * math.log(2 * (1 - mean)))
        assert row["ess"] == pytest.approx((1 + math.exp(lam)) ** 2 / (2 * (1 + math.exp(2 * lam))))


def test_best_of_and_what_latents_explain() -> None:
    assert truth.best_of(torch.arange(35.0)) == (15 + 31) / 2
    z = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    assert truth.explained(z, 2 * z[:, 0]) > 0.95
    assert truth.explained(z, torch.randn(2000, generator=torch.Generator().manual_seed(1))) < 0.05


def test_formulas_follow_the_page() -> None:
    source = pictures.drawing([ASPIRIN, CAFFEINE, BENZENE], ["a", "b & c", "d"], "some", 'three "formulas"', columns=2)
    assert source == pictures.drawing(
        [ASPIRIN, CAFFEINE, BENZENE], ["a", "b & c", "d"], "some", 'three "formulas"', columns=2
    )
    root = minidom.parseString(source).documentElement
    assert root is not None
    assert (root.getAttribute("aria-label"), root.getAttribute("viewBox")) == ('three "formulas"', "0 0 300 250")
    assert not re.search(r"#[0-9A-Fa-f]{6}|rdkit|class=", source)
    assert "currentColor" in source
    assert len(source) < 25_000


# ---- the whole way, with a model of a few molecules -----------------------------------------------------------------


class Tiny:
    """Four numbers, whose signs choose one of sixteen chains of carbon and oxygen; one of them is no molecule."""

    def __init__(self) -> None:
        from itlib.beyond.preconditioning import gaussian_skip_network
        from itlib.schedules import Cosine

        self.d, self.schedule = 4, Cosine()
        data = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
        self.denoiser = gaussian_skip_network(data, self.schedule, width=16)

    def decode(self, z: Tensor) -> list[str | None]:
        rows = ["".join("O" if value > 1 else "C" for value in row) for row in z.tolist()]
        return [None if row == "OOOO" else row for row in rows]


@pytest.mark.parametrize("method", ["paper", "distilled", "balance", "recommended-lora", "value"])
def test_every_method_spends_what_it_is_given(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods.model, "load", Tiny)
    for module in (methods, truth):
        monkeypatch.setattr(module, "J", 8)
    record = methods.run(methods.Parameters(method=method, profile="smoke", seed=1), REFERENCE)
    assert record.failure is None
    assert 0 < record["reward"] <= methods.EVALUATIONS["smoke"]
    assert record["valid"] > 0.9
    assert len(record.samples[0]) == 4


# ---- records --------------------------------------------------------------------------------------------------------


def test_the_comparison_is_complete() -> None:
    """Every cell of the grid has a record with the grid's parameters, and none has failed."""
    cells = {**solubility.cells([0]), **base.cells([0]), **truth.cells([0, 1, 2, 3]), **truth.data_cells([0])}
    cells |= methods.cells([1, 2, 3])
    for stem, asked in cells.items():
        record = load_record(REFERENCE / f"{stem}.json")
        assert (record.parameters, record.failure) == (asked, None), stem
    assert {path.stem for path in REFERENCE.glob("*.json")} == set(cells)


def test_strengths_follow_from_the_sweep() -> None:
    """The largest at which one in twelve is effective, as on the digits."""
    for name, task in TASKS.items():
        records = [r for r in load_records(REFERENCE, truth.Parameters) if r.parameters.problem == name]
        assert task.lam == strongest(records[0].curve["lam"], np.mean([r.curve["ess"] for r in records], axis=0).tolist())
        assert all(r.curve["lam"] == list(task.sweep) for r in records)


def test_the_forest_was_trained_on_measurements() -> None:
    record = load_record(REFERENCE / "solubility.json")
    assert record["auc"] > 0.95 > record["auc_delaney"] > 0.9
    assert (record["trained_on"], record["judged_on"]) == (1025, 257)
