"""Two processes are one: the same samples and rewards to the bit, the same gradient to rounding, half of the calls each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from foreign_models import SHAPE, D, unet
from torch import Tensor, multiprocessing, nn

from itlib.beyond.chains import UnreachedWarning
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.pretrained import FromModel, shared, with_lora
from itlib.schedules import Cosine

CONFIG = RecommendedConfig.equal_steps(2, student="copy", S=16, J=3, B=8, lam=0.5, pilot=16, polish_rounds=0)


class Counted(nn.Module):
    """A model that counts the states that it is asked about without and with a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.asked = unet(), [0, 0]
        with torch.no_grad():  # untrained, but sure of less than the noise there is
            for p in self.model.parameters():
                p.mul_(0.5)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        self.asked[torch.is_grad_enabled()] += len(x)
        result: Tensor = self.model(x, timestep).sample
        return result


def run(rank: int, processes: int, folder: Path) -> None:
    """Two tilts, and what each process found."""
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    graded: list[int] = []

    def brightness(x: Tensor) -> Tensor:
        graded.append(len(x))
        return x.mean(1)

    base = with_lora(FromModel(Counted(), Cosine(), SHAPE, microbatch=4, shared=True), 2)
    first, last = recommended_tilting(base, shared(brightness, batch=4), Cosine(), CONFIG, d=D)
    learned = [p.detach() for p in last.model.parameters() if p.requires_grad]
    asked = torch.tensor([m.asked for m in last.model.modules() if isinstance(m, Counted)])
    found = {
        "x": first.samples,
        "r": first.rewards,
        "losses": last.losses,
        "asked": asked,
        "graded": torch.tensor(sum(graded)),
    }
    torch.save(found | {"weights": torch.cat([p.flatten() for p in learned])}, folder / f"{processes}.{rank}.pt")
    if processes > 1:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_are_one(tmp_path: Path) -> None:
    with pytest.warns(UnreachedWarning):  # of so few chains
        run(0, 1, tmp_path)
    multiprocessing.spawn(run, (2, tmp_path), nprocs=2)
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1.0", "2.0", "2.1"))
    for name in ("x", "r"):
        assert torch.equal(two[0][name], one[name]), name
    for name in ("losses", "weights"):
        torch.testing.assert_close(two[0][name], one[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(two[0][name], two[1][name]), name
    for name in ("asked", "graded"):
        assert torch.equal(two[0][name] + two[1][name], one[name]), name
        assert 0.4 * one[name].sum() < two[0][name].sum() < 0.6 * one[name].sum()
