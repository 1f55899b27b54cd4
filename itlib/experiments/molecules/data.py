r"""The molecules of MOSES, as numbers that a diffusion can model and as tokens that a decoder can write.

The data (Polykovskiy et al., arXiv 1811.12823) are 1.58 million drug-like molecules of ZINC, as SMILES. A molecule is
described by closed formulas alone: the square roots of its Morgan counts (how often each neighbourhood of radius 0 and 1
occurs, folded to 512 numbers) and 12 descriptors in units of their standard deviation. With mean :math:`m` and principal
components :math:`Q` of these features :math:`f`, and :math:`s_i` the standard deviation along component i, the latent is

.. math::

   z = S^{-1/2}\,Q^\top(f - m),\qquad S = \mathrm{diag}(s_1,\dots,s_d),

so that component i keeps the standard deviation :math:`s_i^{1/2}`: the first components say most, the last still count.

A SMILES is cut into atoms, bonds and brackets; the pairs of neighbours that occur most often are then merged, again and
again (byte-pair encoding), until a benzene ring is one token and a molecule about eleven.
"""

from __future__ import annotations

import gzip
import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "test", "test_scaffolds"]

#: Folded Morgan counts of a molecule.
COUNTS = 512
#: The descriptors, by their names in RDKit.
DESCRIPTORS = (
    "MolWt", "MolLogP", "TPSA", "HeavyAtomCount", "NumHDonors", "NumHAcceptors", "NumRotatableBonds", "NumAromaticRings",
    "RingCount", "FractionCSP3", "NumHeteroatoms", "NumAliphaticRings",
)  # fmt: skip
#: What precedes and follows the tokens of a molecule.
START, END = 0, 1
_ATOM = re.compile(r"\[[^\]]+\]|Br|Cl|.")


@cache
def chemistry() -> ModuleType:
    """RDKit's ``Chem``, with its log silenced.

    Raises:
        ModuleNotFoundError: without RDKit, with the command that installs it.
    """
    try:
        from rdkit import Chem, RDLogger
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the molecules need RDKit: pip install 'itlib[molecules]'") from None
    RDLogger.DisableLog("rdApp.*")
    found: ModuleType = Chem
    return found


def moses(name: str) -> Path:
    """A data file of the package molsets, which is read and never imported: its code needs packages that no longer build.

    Raises:
        ModuleNotFoundError: if it is not installed, with the command that installs it.
    """
    found = importlib.util.find_spec("moses")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the MOSES data are missing: pip install --no-deps molsets==0.3.1")
    return Path(found.origin).parent / "dataset" / "data" / name


@cache
def smiles(split: Split = "train") -> tuple[str, ...]:
    """The SMILES of a split: 1,584,663 to train on, 176,074 to test, and as many whose scaffolds the first lacks.

    Raises:
        ModuleNotFoundError: without molsets.
    """
    with gzip.open(moses(f"{split}.csv.gz"), "rt") as lines:
        return tuple(line.strip() for line in lines)[1:]


def some(split: Split, n: int, seed: int = 0) -> list[str]:
    """Different SMILES of a split in random order, n of them."""
    everything = smiles(split)
    return [everything[i] for i in np.random.default_rng(seed).permutation(len(everything))[:n]]


def parsed(text: str | None) -> Any | None:
    """The molecule that a SMILES stands for, or None if there is none."""
    return chemistry().MolFromSmiles(text) or None if text else None


def features(texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Square roots of Morgan counts and descriptors, (n, 512 + 12).

    Args:
        texts: n SMILES.

    Raises:
        ValueError: if one is not the SMILES of a molecule, naming it.
    """
    chemistry()
    from rdkit.Chem import Descriptors, rdFingerprintGenerator

    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=1, fpSize=COUNTS)
    describe = [getattr(Descriptors, name) for name in DESCRIPTORS]
    found = np.empty((len(texts), COUNTS + len(DESCRIPTORS)), np.float32)
    for row, text in zip(found, texts, strict=True):
        if (molecule := parsed(text)) is None:
            raise ValueError(f"not the SMILES of a molecule: {text!r}")
        row[:COUNTS] = np.sqrt(morgan.GetCountFingerprintAsNumPy(molecule))
        row[COUNTS:] = [f(molecule) for f in describe]
    return found


@dataclass(frozen=True)
class Latent:
    """The linear map from features to latents.

    Args:
        mean: of the features, (524,).
        unit: by which features are divided first, (524,): 1 for counts, the standard deviation for descriptors.
        components: the columns of Q S^(-1/2), (524, d).
    """

    mean: Tensor
    unit: Tensor
    components: Tensor

    @classmethod
    def fitted(cls, f: Tensor, d: int) -> Latent:
        """The principal components of features, (n, 524)."""
        unit = torch.ones(f.shape[1])
        unit[COUNTS:] = f[:, COUNTS:].std(0)
        f = f / unit
        mean = f.mean(0)
        values, vectors = torch.linalg.eigh((f - mean).T.double().cov())
        values, vectors = values.flip(0)[:d], vectors.flip(1)[:, :d]
        # A component has no sign of its own: its largest entry is made positive.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        return cls(mean * unit, unit, (vectors / values.pow(0.25)).float())

    def encode(self, f: Tensor) -> Tensor:
        """Latents, (n, d), of features, (n, 524)."""
        z: Tensor = (f - self.mean) / self.unit @ self.components
        return z

    def features(self, z: Tensor) -> Tensor:
        """The features nearest to the mean that have latents z, (n, d), as (n, 524)."""
        f: Tensor = z @ torch.linalg.pinv(self.components) * self.unit + self.mean
        return f


def _merged(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    """Tokens of a molecule with each occurrence of a pair made one."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        step = 2 if tuple(tokens[i : i + 2]) == pair else 1
        out.append("".join(tokens[i : i + step]))
        i += step
    return out


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of SMILES.

    Args:
        atoms: the smallest ones.
        merges: pairs of tokens that become one, in the order in which they were found.
    """

    atoms: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]

    @classmethod
    def learned(cls, texts: Sequence[str], merges: int, look_at: int = 10_000) -> Vocabulary:
        """Byte-pair encoding of SMILES: the atoms of all of them, the merges of the first few."""
        atoms = tuple(sorted(set[str]().union(*map(_ATOM.findall, texts))))
        words, found = [_ATOM.findall(text) for text in texts[:look_at]], list[tuple[str, str]]()
        for _ in range(merges):
            counts = Counter(pair for word in words for pair in pairwise(word))
            pair = min(counts, key=lambda p: (-counts[p], p))
            words = [_merged(word, pair) if pair[0] in word else word for word in words]
            found.append(pair)
        return cls(atoms, tuple(found))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """All of them; the first two are empty and stand for start and end."""
        return ("", "", *self.atoms, *dict.fromkeys(a + b for a, b in self.merges))

    def encode(self, text: str) -> list[int]:
        """The tokens of a SMILES, closed by the end.

        Raises:
            ValueError: for a character that no token has.
        """
        number, rank = self._numbers
        word = _ATOM.findall(text)
        while pairs := [pair for pair in pairwise(word) if pair in rank]:
            word = _merged(word, min(pairs, key=rank.__getitem__))
        if unknown := [token for token in word if token not in number]:
            raise ValueError(f"no token for {unknown[0]!r} in {text!r}")
        return [*map(number.__getitem__, word), END]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens up to the end."""
        names = self.tokens
        stop = tokens.index(END) if END in tokens else len(tokens)
        return "".join(names[i] for i in tokens[:stop])

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
        numbers = {token: i for i, token in enumerate(self.tokens) if token}
        return numbers, {pair: i for i, pair in enumerate(self.merges)}
