"""The model of molecules: what is described, what is written, and what a sample of the diffusion stands for."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from itlib.experiments.molecules import model
from itlib.experiments.molecules.data import (
    COUNTS,
    DESCRIPTORS,
    END,
    START,
    Latent,
    Vocabulary,
    chemistry,
    features,
    moses,
    parsed,
    some,
)
from itlib.experiments.molecules.model import Decoder, MoleculeModel, beam, greedy, load, new_denoiser, save
from itlib.experiments.molecules.train import likelihood_loss, main
from itlib.sampling import sample
from itlib.schedules import Cosine

SOME = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "O=C(O)c1ccccc1O",
    "C[NH+](C)C",
    "BrCCl",
]


@pytest.fixture(scope="module")
def known() -> MoleculeModel:
    pytest.importorskip("rdkit")
    return load()


def small(d: int = 3, tokens: int = 5) -> Decoder:
    """A decoder that is sure of something without training."""
    decoder = Decoder(tokens, d, width=16)
    with torch.no_grad():
        decoder.output.weight.mul_(8.0)
    return decoder.requires_grad_(False)


# ---- data -----------------------------------------------------------------------------------------------------------


def test_features_of_benzene_follow_by_hand() -> None:
    """Six atoms that are alike, seen at radius 0 and at radius 1: two counts of six."""
    pytest.importorskip("rdkit")
    (row,) = features(["c1ccccc1"])
    assert sorted(np.square(row[:COUNTS][row[:COUNTS] > 0])) == pytest.approx([6, 6])
    by_name = dict(zip(DESCRIPTORS, row[COUNTS:].tolist(), strict=True))
    assert by_name["MolWt"] == pytest.approx(6 * 12.011 + 6 * 1.008)
    assert [by_name[k] for k in ("HeavyAtomCount", "NumAromaticRings", "RingCount", "TPSA")] == [6, 1, 1, 0]


def test_features_do_not_depend_on_how_a_molecule_is_spelled() -> None:
    pytest.importorskip("rdkit")
    one, other = features(["OC(=O)c1ccccc1O", "c1ccc(O)c(c1)C(O)=O"])
    assert one == pytest.approx(other, abs=1e-4)


def test_latents_are_principal_components_with_roots_of_their_scales() -> None:
    """Against the singular values of numpy; and all components together lose nothing."""
    mixing = torch.randn(COUNTS + 5, COUNTS + 5, generator=torch.Generator().manual_seed(1)).tril()
    f = torch.randn(2000, COUNTS + 5, generator=torch.Generator().manual_seed(0)) @ mixing + 3.0
    latent = Latent.fitted(f, 8)
    unit = np.r_[np.ones(COUNTS), f[:, COUNTS:].double().numpy().std(0, ddof=1)]
    scaled = f.double().numpy() / unit
    scales = np.linalg.svd(scaled - scaled.mean(0), compute_uv=False)[:8] / math.sqrt(1999)
    z = latent.encode(f)
    np.testing.assert_allclose(z.std(0).numpy(), scales**0.5, rtol=1e-3)
    np.testing.assert_allclose(z.mean(0).numpy(), 0, atol=1e-2)
    np.testing.assert_allclose(np.corrcoef(z.numpy().T), np.eye(8), atol=1e-3)
    np.testing.assert_allclose(latent.encode(latent.features(z)).numpy(), z.numpy(), atol=1e-2)


def test_pairs_are_merged_by_how_often_they_occur() -> None:
    found = Vocabulary.learned(["CCOCCO", "CCN"], 2)
    assert found.merges == (("C", "C"), ("CC", "O"))
    assert found.tokens == ("", "", "C", "N", "O", "CC", "CCO")
    assert [found.tokens[i] for i in found.encode("CCOCC")] == ["CCO", "CC", ""]


def test_what_is_encoded_is_decoded() -> None:
    found = Vocabulary.learned(SOME, 30)
    assert [found.decode(found.encode(text)) for text in SOME] == SOME
    assert "Br" in found.atoms
    assert "[NH+]" in found.atoms
    with pytest.raises(ValueError, match="no token for 'P' in 'CP'"):
        found.encode("CP")


def test_what_is_no_molecule_is_none_or_named() -> None:
    pytest.importorskip("rdkit")
    assert [parsed(text) for text in (None, "", "c1ccccc", "C(C)(C)(C)(C)C")] == [None] * 4
    with pytest.raises(ValueError, match="not the SMILES of a molecule: 'c1cc'"):
        features(["C", "c1cc"])


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    chemistry.cache_clear()
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ModuleNotFoundError, match=r"need RDKit: pip install 'itlib\[molecules\]'"):
        chemistry()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps molsets"):
        moses("train.csv.gz")


# ---- decoder --------------------------------------------------------------------------------------------------------


def log_probability(decoder: Decoder, x: Tensor, text: tuple[int, ...]) -> float:
    """Of tokens, one after the other, given a latent, (d,)."""
    (seen, state), total, token = decoder.start(x[None]), 0.0, START
    for following in text:
        logits, state = decoder.step(torch.tensor([[token]]), seen, state)
        total += float(logits[0, 0].log_softmax(0)[following])
        token = following
    return total


def test_the_loss_is_the_likelihood_of_whole_texts() -> None:
    """The probabilities of all texts, with their ends, sum to 1 with that of those that go on."""
    decoder, x = small(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    texts = [(2, 3, END), (4, END)]
    expected = -sum(log_probability(decoder, x[i], text) for i, text in enumerate(texts)) / 2
    tokens = torch.tensor([[2, 3, END, END, END], [4, END, END, END, END]])
    assert float(likelihood_loss(decoder, x, tokens)) == pytest.approx(expected, rel=1e-5)


def test_a_beam_that_keeps_all_finds_the_most_probable_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every text of up to three tokens."""
    monkeypatch.setattr(model, "LONGEST", 3)
    decoder, x = small(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    others = (START, 2, 3, 4)
    texts = [(*body, END) for n in range(3) for body in itertools.product(others, repeat=n)]
    texts += list(itertools.product(others, repeat=3))
    for row, found in zip(x, beam(decoder, x, width=len(texts)), strict=True):
        expected = sorted(texts, key=lambda text: -log_probability(decoder, row, text))[:6]
        cut = [tuple(f[: f.index(END) + 1] if END in f else f) for f in found]
        assert cut[:6] == expected


def test_greedy_takes_the_most_probable_token() -> None:
    decoder, x = small(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    written = torch.tensor(greedy(decoder, x))
    logits = decoder(x, written)
    before_end = (written != END).cumprod(1).bool()
    assert torch.equal(logits.argmax(-1)[before_end], written[before_end])


# ---- the model ------------------------------------------------------------------------------------------------------


def test_the_committed_weights_are_small_and_single_precision_in_use(known: MoleculeModel) -> None:
    assert model.WEIGHTS.stat().st_size <= 4_000_000
    assert known.d == known.latent.components.shape[1] == model.D
    assert {p.dtype for p in known.decoder.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in known.denoiser.parameters())


def test_a_sample_stands_for_one_molecule_whatever_stands_beside_it(known: MoleculeModel) -> None:
    """Alone, twice, and in another order; and what is decoded is canonical."""
    from rdkit import Chem

    x = sample(known.denoiser, known.schedule, 24, known.d, steps=20, generator=torch.Generator().manual_seed(0))
    texts = known.decode(x)
    assert known.decode(x) == texts
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert known.decode(x[order]) == [texts[i] for i in order.tolist()]
    assert [known.decode(row[None])[0] for row in x[:6]] == texts[:6]
    assert known.decode(x[:0]) == []
    molecules = [text for text in texts if text]
    assert len(molecules) >= 18
    assert [Chem.CanonSmiles(text) for text in molecules] == molecules


def test_a_latent_decodes_to_what_has_its_features(known: MoleculeModel) -> None:
    """Aspirin's and others' latents without noise give molecules that are near them in the latent space."""
    z = known.latent.encode(torch.from_numpy(features(SOME[:4])))
    texts = known.decode(z)
    again = known.latent.encode(torch.from_numpy(features([text for text in texts if text])))
    kept = z[[text is not None for text in texts]]
    assert len(kept) >= 3
    assert float((again - kept).square().sum(1).mean()) < 0.3 * float(torch.pdist(kept).square().mean())


def test_what_no_molecule_can_be_made_of_is_none(known: MoleculeModel) -> None:
    assert known.molecule([2, 3, 4]) is None  # it has no end
    assert known.molecule([END]) is None
    assert len(known.decode(torch.full((1, known.d), 50.0))) == 1


def test_bad_samples_are_refused(known: MoleculeModel) -> None:
    with pytest.raises(ValueError, match=rf"of shape \(n, {known.d}\), got \(2, 3\)"):
        known.decode(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="finite"):
        known.decode(torch.full((1, known.d), torch.nan))
    with pytest.raises(FileNotFoundError, match=r"missing: python -m itlib\.experiments\.molecules\.train"):
        load(Path("nowhere.safetensors"))


def test_a_model_is_kept_in_half_precision(tmp_path: Path) -> None:
    vocabulary = Vocabulary.learned(SOME, 5)
    latent = Latent(torch.zeros(7), torch.ones(7), torch.randn(7, 4))
    made = MoleculeModel(
        new_denoiser(Cosine(), torch.randn(9, 4)), Cosine(), Decoder(len(vocabulary.tokens), 4, 32), latent, vocabulary
    )
    save(made, tmp_path / "model.safetensors")
    found = load(tmp_path / "model.safetensors")
    assert found.vocabulary == vocabulary
    assert torch.equal(found.latent.components, latent.components)
    for one, other in zip(made.decoder.parameters(), found.decoder.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit")
    try:
        some("train", 1)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    monkeypatch.setattr("itlib.experiments.molecules.train.HELD_OUT", 50)
    main(["--out", str(tmp_path), "--minutes", "0.01", "--molecules", "400"])
    main(["--out", str(tmp_path), "--minutes", "0.02", "--molecules", "400"])
    said = capsys.readouterr().out
    assert said.count("described") == 1
    assert "going on after" in said
    assert load(tmp_path / "model.safetensors").d == model.D
