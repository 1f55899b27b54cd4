"""Peak memory of a recommended tilt of a U-Net with LoRA at 3 x 64 x 64: ``python benchmarks/memory.py``.

A process of its own: what counts is all that it holds, libraries included.
"""

from __future__ import annotations

import resource
import sys

import torch
from diffusers import DDIMScheduler, UNet2DModel

from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.pretrained import from_diffusers, with_lora

#: GiB that the tilt may hold at its peak.
TARGET = 2.0


def peak() -> float:
    """GiB that this process has held at its peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(S: int = 256, J: int = 20) -> None:
    """One tilt of S chains of J steps, each chain seen once; ends with 1 if the peak is above the target."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=64,
        layers_per_block=1,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        add_attention=False,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
    )
    with torch.no_grad():  # untrained, but sure of less than the noise there is
        for p in unet.parameters():
            p.mul_(0.5)
    wrapped = from_diffusers(unet, DDIMScheduler(clip_sample=False), steps=J, check=0, model={"microbatch": 8})
    base, before = with_lora(wrapped.predictor, 4), peak()
    config = RecommendedConfig.equal_steps(1, student="copy", S=S, J=J, lam=0.1)
    for step in recommended_tilting(base, lambda x: x.mean(1), wrapped.schedule, config, d=wrapped.predictor.d):
        print(f"S={S}, J={J}: {peak():.2f} GiB at the peak, {before:.2f} before the tilt; {len(step.losses)} steps")
    sys.exit(peak() > TARGET)


if __name__ == "__main__":
    main()
