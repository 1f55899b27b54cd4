"""Samplers of higher order, by diffusers, and the error of samples: as in the book's chapter on samplers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from itlib.network import NoisePredictor
from itlib.schedules import Cosine

_ANGLES = torch.arange(16, dtype=torch.float64) * math.pi / 16
#: Directions to project on, (2, 16).
DIRECTIONS = torch.stack([_ANGLES.cos(), _ANGLES.sin()])


def sorted_projections(x: Tensor) -> Tensor:
    """Of samples, (n, 2), folded by their symmetry x -> -x, so that the coin flips between modes do not count."""
    folded = torch.where(x[:, :1] < 0, -x, x).double()
    return (folded @ DIRECTIONS).sort(0).values


def sliced_distance(x: Tensor, exact: Tensor) -> float:
    """Sliced Wasserstein distance of order 2 from samples, (n, 2), to the sorted projections of many exact ones."""
    rows = (torch.arange(len(x)) + 0.5) / len(x) * len(exact)
    return float((sorted_projections(x) - exact[rows.long()]).square().mean().sqrt())


def multistep(
    denoiser: NoisePredictor,
    schedule: Cosine,
    x: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Tensor:
    """DPM-Solver++ from where alpha is 0.02: its index k - 1 is the time t_k, k = 1..T, uniform up to that start."""
    warnings.filterwarnings("ignore", message="IProgress not found")
    from diffusers import DPMSolverMultistepScheduler  # here, because it takes seconds

    T, s = 1000, schedule.s
    start = 1 - (1 + s) * 2 / math.pi * math.asin(0.02 * math.cos(math.pi / 2 * s / (1 + s)))
    t = start * torch.arange(1, T + 1, dtype=torch.float64) / T
    squares = schedule.alpha(t) ** 2
    betas = 1 - squares / torch.cat([torch.ones(1, dtype=torch.float64), squares[:-1]])
    solver = DPMSolverMultistepScheduler(T, trained_betas=betas.numpy(), **options)
    solver.set_timesteps(steps)
    with torch.no_grad():
        for k in solver.timesteps:
            x = solver.step(denoiser(x, t[int(k)].to(x)), k, x, generator=generator).prev_sample
    return x
