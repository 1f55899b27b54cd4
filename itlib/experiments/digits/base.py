"""The base of the digits: trained once, with weights that are kept, and what little of the tilted laws is known.

Beside the record of the base lie its weights; the methods of :mod:`itlib.experiments.digits.methods` start from them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from itlib.experiments import experiment
from itlib.experiments.digits.images import TRAINING, D, digits, image_card, new_denoiser, trained_denoiser
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.network import Network, Residual
from itlib.sampling import sample
from itlib.schedules import Cosine, Schedule
from itlib.tilting import derive_seed
from itlib.training import train_noise_predictor

#: Steps of the sampler, everywhere.
J = 50


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """The base is the same for all seeds of a method; the seed fixes the samples by which it is judged."""

    experiment: ClassVar[str] = "digits_base"


def before(parameters: experiment.Parameters) -> Mapping[str, Parameters]:
    """The base from which others start: {stem: parameters}."""
    return {"base_seed0": Parameters(profile=parameters.profile)}


def trained(folder: Path, schedule: Schedule) -> Residual:
    """The base whose weights lie in a folder of records.

    Raises:
        FileNotFoundError: if there are none, with the command that makes them.
    """
    return trained_denoiser(folder / "base_seed0.safetensors", schedule)


def rounded(x: Tensor) -> list[list[float]]:
    """Images, (n, 64), as a record keeps them."""
    found: list[list[float]] = np.round(x.tolist(), 2).tolist()
    return found


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Denoising score matching on all 1797 digits; and for comparison the paper's perceptron, as large, trained alike."""
    torch.set_num_threads(1)
    schedule, full = Cosine(), parameters.full
    denoiser, settings = new_denoiser(schedule), TRAINING if full else replace(TRAINING, epochs=2)

    def card(model: torch.nn.Module) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(derive_seed(parameters.seed, "judge"))
        x = sample(model, schedule, 1000 if full else 50, D, steps=J, generator=generator)
        return x, image_card(x) | {"parameters": sum(p.numel() for p in model.parameters())}

    clock = time.process_time()
    losses = [step.validation_loss for step in train_noise_predictor(denoiser, digits().x, schedule, settings)]
    seconds = {"sampling": 0.0, "training": time.process_time() - clock}
    x, found = card(denoiser)
    plain = Network(D, width=240, embedding=64)
    for _ in train_noise_predictor(plain, digits().x, schedule, settings):
        pass
    _, other = card(plain)
    data = {key: value for key, value in image_card(digits().x).items() if "judge" in key or key == "agree"}
    metrics: dict[str, Metric] = {"base": found, "perceptron": other, "data": data}
    tensors = dict(denoiser.state_dict())
    return Record(parameters, metrics, trace=losses, samples=rounded(x[:32]), seconds=seconds, tensors=tensors)


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """One."""
    return dict(before(Parameters()))


EXPERIMENT = Experiment("digits_base", Parameters, run, cells, work=lambda _: 60)
