"""Small models of diffusers, trained on nothing, and what a perfect one says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

SHAPE, D = (3, 4, 4), 48
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def unet(seed: int = 0) -> UNet2DModel:
    """A model whose shape has nothing of ours: colour, convolutions, attention, whole-numbered times."""
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=4,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


def noise_of(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


class Says(nn.Module):
    """A module that answers with a function of the state and the time it is told."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.answer(x, timestep) + 0 * self.weight
