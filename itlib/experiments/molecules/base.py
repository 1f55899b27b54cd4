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

import torch

from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.experiments.molecules import judges, model, solubility
from itlib.experiments.molecules.data import features, some
from itlib.experiments.molecules.rewards import Forest
from itlib.experiments.molecules.truth import J, explained
from itlib.sampling import sample
from itlib.tilting import derive_seed

if TYPE_CHECKING:
    from pathlib import Path

#: Test molecules whose moments Fréchet distances are taken to.
REFERENCE = 10_000
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


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Draw, decode and judge."""
    torch.set_num_threads(1)
    p, known, forest = parameters, model.load(), Forest.load(folder / "solubility.safetensors")
    n, others = (3000, REFERENCE) if p.full else (20, 20)

    def draws(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(p.seed, purpose))

    tested = some("test", n + others, p.seed)
    z = known.latent.encode(torch.from_numpy(features(tested[:n])))
    clock = time.process_time()
    x = sample(known.denoiser, known.schedule, n, known.d, steps=J, generator=draws("judge"))
    seconds = {"sampling": time.process_time() - clock, "training": 0.0}
    clock = time.process_time()
    strings = known.decode(x)
    seconds["decoding"] = time.process_time() - clock
    first = [known.molecule(tokens) for tokens in model.greedy(known.decoder, x)]
    sets: dict[str, Sequence[str | None]] = {
        "base": strings,
        "latents": known.decode(z + model.BLUR * torch.randn(z.shape, generator=draws("blur"))),
        "data": tested[:n],
    }
    metrics: dict[str, Metric] = {
        "n": float(n),
        "reference": float(others),
        "valid_greedy": sum(text is not None for text in first) / n,
        "weights": float(sum(v.numel() for part in (known.denoiser, known.decoder) for v in part.parameters())),
        "published_valid": {name: valid for name, (valid, _) in PUBLISHED.items()},
        "published_fcd": {name: distance for name, (_, distance) in PUBLISHED.items()},
    }
    reference = judges.moments(judges.activations(tested[n:])) if p.full else None
    for name, texts in sets.items():
        found = judges.Judged.of(texts, forest)
        card = found.card()
        if reference is not None:
            card |= judges.training_card(found.spelled)
            card["fcd"] = judges.frechet(judges.moments(judges.activations(found.spelled)), reference)
        metrics[name] = card
        metrics |= found.histograms(name)
        if name == "base":
            kept = x[[text is not None for text in strings]]
            metrics["explained"] = {
                key: explained(kept, torch.from_numpy(values)) for key, values in found.columns.items() if key != "alerts"
            }
    return Record(p, metrics, seconds=seconds)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """One."""
    return {"base_seed0": Parameters()}


EXPERIMENT = Experiment("molecules_base", Parameters, run, cells, after=solubility.before, work=lambda _: 60)
