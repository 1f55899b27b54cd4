r"""Judges of molecules that are part of no reward.

- *valid*, *unique*, *novel*: shares of strings that are molecules, of those that differ, of those not in the training set.
- *Delaney*: the solubility S in mol/l by a formula (J. Chem. Inf. Comput. Sci. 44, 1000, 2004), a linear regression on
  other measurements:

  .. math:: \log_{10} S = 0.16 - 0.63\log P - 0.0062\,\mathrm{weight} + 0.066\,\mathrm{rotatable} - 0.74\,\mathrm{aromatic}.

- *effort*: how hard a molecule is to make, from 1 to 10 (SA score; Ertl and Schuffenhauer, J. Cheminform. 1, 8, 2009).
- *alerts*: the share with a group that disturbs assays (PAINS; Baell and Holloway, J. Med. Chem. 53, 2719, 2010).
- *nearest*: similarity (Tanimoto, Morgan fingerprints of radius 2) to the nearest of some training molecules.
- *Fréchet ChemNet distance* (FCD; Preuer et al., J. Chem. Inf. Model. 58, 1736, 2018): between Gaussians with the moments of
  a network's activations. It depends on the number of molecules: compare equal numbers only. Needs the package fcd.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from itlib.experiments.molecules.data import parsed, smiles, some
from itlib.experiments.molecules.rewards import Forest, Molecule, descriptors, likeness

#: Properties whose distributions are shown, from and to, in so many bins.
RANGES: Mapping[str, tuple[float, float]] = {
    "delaney": (-7.0, 1.0),
    "log_p": (-2.0, 6.0),
    "weight": (200.0, 400.0),
    "likeness": (0.3, 1.0),
    "effort": (1.0, 6.0),
}
PROPERTIES = tuple(RANGES)
BINS = 24


def delaney(found: Molecule) -> float:
    """log10 of the solubility in mol/l, by the formula."""
    log_p, _, weight, heavy, _, _, rotatable, *_ = descriptors(found)
    aromatic = sum(atom.GetIsAromatic() for atom in found.GetAtoms()) / heavy
    return 0.16 - 0.63 * log_p - 0.0062 * weight + 0.066 * rotatable - 0.74 * float(aromatic)


@cache
def _effort() -> Any:
    """RDKit's own program for it, which lies outside of the package."""
    from rdkit.Chem import RDConfig

    folder = str(Path(RDConfig.RDContribDir) / "SA_Score")
    sys.path.append(folder)
    try:
        return importlib.import_module("sascorer")
    finally:
        sys.path.remove(folder)


@cache
def _alerts() -> Any:
    from rdkit.Chem.FilterCatalog import FilterCatalog, FilterCatalogParams

    return FilterCatalog(FilterCatalogParams(FilterCatalogParams.FilterCatalogs.PAINS))


@dataclass(frozen=True)
class Judged:
    """Molecules among strings, and what is measured of each.

    Args:
        asked: number of strings.
        spelled: RDKit's own spelling of those that are molecules.
        columns: their :data:`PROPERTIES`, ``soluble``, the forest's probability, and ``alerts``, 0 or 1, (molecules,) each.
    """

    asked: int
    spelled: Sequence[str]
    columns: Mapping[str, npt.NDArray[np.float64]]

    @classmethod
    def of(cls, strings: Sequence[str | None], forest: Forest) -> Judged:
        """Measure them; the forest is a suspect."""
        from rdkit import Chem

        found = [each for each in map(parsed, strings) if each is not None]
        rows = [_measured(each, forest) for each in found]
        columns = {name: np.array([row[name] for row in rows]) for name in (*PROPERTIES, "soluble", "alerts")}
        return cls(len(strings), [Chem.MolToSmiles(each) for each in found], columns)

    def card(self) -> dict[str, float]:
        """Shares ``valid`` and ``unique``, and means over the molecules; only ``valid`` if there are none."""
        card = {"valid": len(self.spelled) / self.asked}
        if not self.spelled:
            return card
        means = {name: float(values.mean()) for name, values in self.columns.items()}
        return card | {"unique": len(set(self.spelled)) / len(self.spelled)} | means

    def histograms(self, suffix: str) -> dict[str, list[float]]:
        """Densities of the properties, {name and suffix: one number for each of :data:`BINS`}."""
        n = max(1, len(self.spelled))
        return {
            f"{name}_{suffix}": (np.histogram(self.columns[name], BINS, (low, high))[0] * BINS / (high - low) / n).tolist()
            for name, (low, high) in RANGES.items()
        }


def _measured(found: Molecule, forest: Forest) -> dict[str, float]:
    log_p, _, weight, *_ = descriptors(found)
    return {
        "delaney": delaney(found),
        "log_p": log_p,
        "weight": weight,
        "likeness": likeness(found),
        "effort": float(_effort().calculateScore(found)),
        "soluble": forest.probability(found),
        "alerts": float(_alerts().HasMatch(found)),
    }


def fingerprints(molecules: Sequence[Molecule]) -> list[Any]:
    """Morgan fingerprints of radius 2, 1024 bits."""
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

    generator = GetMorganGenerator(radius=2, fpSize=1024)
    return [generator.GetFingerprint(each) for each in molecules]


@cache
def _training() -> tuple[frozenset[str], list[Any]]:
    """All molecules that the model learned from, and fingerprints of 20,000 of them."""
    return frozenset(smiles("train")), fingerprints([parsed(text) for text in some("train", 20_000)])


def training_card(spelled: Sequence[str]) -> dict[str, float]:
    """How far molecules are from those that the model was trained on.

    Args:
        spelled: what is judged, canonical strings.

    Returns:
        ``novel``, a share, and ``nearest``, the mean similarity to the nearest of 20,000 of them, over the first 200.
    """
    from rdkit.DataStructs import BulkTanimotoSimilarity

    known, near = _training()
    nearest = [max(BulkTanimotoSimilarity(one, near)) for one in fingerprints([parsed(s) for s in spelled[:200]])]
    return {"novel": float(np.mean([s not in known for s in spelled])), "nearest": float(np.mean(nearest))}


# ---- Fréchet distance -----------------------------------------------------------------------------------------------


def activations(strings: Sequence[str]) -> npt.NDArray[np.float64]:
    """ChemNet's, (n, 512), of canonical strings.

    Raises:
        ModuleNotFoundError: without the package fcd, with the command that installs it.
    """
    if importlib.util.find_spec("fcd") is None:
        raise ModuleNotFoundError("the Fréchet ChemNet distance needs its network: pip install --no-deps fcd==1.2.2")
    import fcd

    found: npt.NDArray[np.float64] = fcd.get_predictions(_chemnet(), list(strings), batch_size=256).astype(np.float64)
    return found


@cache
def _chemnet() -> Any:
    import fcd

    return fcd.load_ref_model()


def moments(found: npt.NDArray[np.float64], weights: npt.NDArray[np.float64] | None = None) -> tuple[Tensor, Tensor]:
    """Mean, (512,), and covariance, (512, 512), of activations, (n, 512), with weights that sum to 1, (n,), or none."""
    w = np.full(len(found), 1 / len(found)) if weights is None else weights
    mean = w @ found
    centred = found - mean
    return torch.from_numpy(mean), torch.from_numpy((centred * w[:, None]).T @ centred / (1 - np.square(w).sum()))


def frechet(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
    r"""Fréchet distance of two Gaussians, :math:`|m-m'|^2+\mathrm{tr}(C+C'-2(C^{1/2}C'C^{1/2})^{1/2})`."""
    (m, C), (m2, C2) = ((mean.double(), covariance.double()) for mean, covariance in (one, other))
    values, vectors = torch.linalg.eigh(C)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ C2 @ root).clamp_min(0).sqrt().sum()
    return float((m - m2).square().sum() + C.trace() + C2.trace() - 2 * both)
