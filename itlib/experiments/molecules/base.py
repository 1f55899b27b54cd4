"""What the model of molecules is worth, beside real molecules in the same number.

Three sets of strings are judged alike: what the model draws; what its decoder makes of blurred latents of real test
molecules, which tells what the decoder costs from what the diffusion does; and real test molecules. Fréchet ChemNet
distances are taken to :data:`REFERENCE` other test molecules; they fall with the number of molecules, so compare equal ones.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.experiments.molecules import judges, model, solubility
from itlib.experiments.molecules.data import features, some
from itlib.experiments.molecules.rewards import Forest
from itlib.sampling import sample
from itlib.tilting import derive_seed

if TYPE_CHECKING:
    from pathlib import Path

#: Steps of the sampler.
J = 50
#: Test molecules whose moments Fréchet distances are taken to.
REFERENCE = 20_000
#: Valid share and Fréchet ChemNet distance as published for MOSES (arXiv 1811.12823), at 30,000 molecules.
PUBLISHED: Mapping[str, tuple[float, float]] = {
    "CharRNN": (0.975, 0.073),
    "VAE": (0.977, 0.099),
    "LatentGAN": (0.897, 0.297),
    "n-grams": (0.238, 5.51),
}


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """The weights are those that :func:`itlib.experiments.molecules.model.load` reads; the seed fixes the samples."""

    experiment: ClassVar[str] = "molecules_base"


def explained(x: Tensor, y: Sequence[float]) -> float:
    """R^2 on the second half of the rows x, (n, d), of a kernel ridge regression of y, (n,), on the first half."""
    from sklearn.kernel_ridge import KernelRidge

    half, values = len(x) // 2, np.asarray(y)
    mean = values[:half].mean()
    fitted = KernelRidge(kernel="rbf", alpha=0.3, gamma=0.3 / x.shape[1]).fit(x[:half].numpy(), values[:half] - mean)
    return float(fitted.score(x[half:].numpy(), values[half:] - mean))


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Draw, decode and judge."""
    torch.set_num_threads(1)
    p, known, forest = parameters, model.load(), Forest.load(folder / "solubility.safetensors")
    n, few = (10_000, 2000) if p.full else (20, 10)

    def draws(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(p.seed, purpose))

    tested = some("test", n + (REFERENCE if p.full else 20), p.seed)
    real, others = tested[:n], tested[n:]
    z = known.latent.encode(torch.from_numpy(features(real[:few])))
    clock = time.process_time()
    x = sample(known.denoiser, known.schedule, n, known.d, steps=J, generator=draws("judge"))
    strings = known.decode(x)
    seconds = {"sampling": time.process_time() - clock, "training": 0.0}
    first = model.greedy(known.decoder, x[:few])
    sets = {
        "base": strings,
        "latents": known.decode(z + model.BLUR * torch.randn(z.shape, generator=draws("blur"))),
        "data": real,
    }
    weights = sum(v.numel() for part in (known.denoiser, known.decoder) for v in part.parameters())
    metrics: dict[str, Metric] = {
        "n": float(n),
        "n_few": float(few),
        "valid_greedy": sum(known.molecule(tokens) is not None for tokens in first) / few,
        "parameters": float(weights),
    }
    reference = judges.moments(judges.activations(others)) if p.full else None
    for name, texts in sets.items():
        found = judges.Judged.of(texts[:few], forest)
        molecules = [text for text in texts if text is not None]
        card = found.card() | {"valid": len(molecules) / len(texts), "unique": len(set(molecules)) / len(molecules)}
        if reference is not None:
            card |= judges.training_card(molecules)
            acts = judges.activations(molecules)
            card["fcd_few"] = judges.frechet(judges.moments(acts[:few]), reference)
            if len(texts) == n:
                card["fcd"] = judges.frechet(judges.moments(acts), reference)
        metrics |= {name: card} | found.histograms(name)
        if name == "base":
            kept = x[:few][[text is not None for text in texts[:few]]]
            metrics["explained"] = {
                key: explained(kept, values.tolist()) for key, values in found.columns.items() if key != "alerts"
            }
    return Record(p, metrics, seconds=seconds)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """One."""
    return {"base_seed0": Parameters()}


EXPERIMENT = Experiment("molecules_base", Parameters, run, cells, after=solubility.before, work=lambda _: 60)
