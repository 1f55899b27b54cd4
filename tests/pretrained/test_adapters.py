"""Low-rank adapters on other people's layers, and what goes back to their library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from foreign_models import SHAPE, D, noise_of, unet
from torch import Tensor, nn

from itlib.beyond.chains import TrainableCopy
from itlib.network import Network, Residual
from itlib.pretrained import FromModel, Tabulated, distil, exported, merge_lora, save_lora, trainable, with_lora
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting

SCHEDULE = Tabulated(DDIMScheduler(100, beta_schedule="scaled_linear", beta_end=0.1).alphas_cumprod)


def brightness(x: Tensor) -> Tensor:
    return x.mean(1)


def networks() -> list[nn.Module]:
    return [FromModel(unet(), SCHEDULE, SHAPE), Network(D, width=16, depth=3, embedding=8)]


@pytest.mark.parametrize("which", [0, 1])
def test_adapters_change_nothing_then_learn_alone(which: int) -> None:
    base = networks()[which]
    student = with_lora(base, 2)
    x, t = torch.randn(4, D, generator=torch.Generator().manual_seed(0)), torch.tensor(0.5)
    torch.testing.assert_close(student(x, t), base(x, t))
    learned = trainable(student)
    assert learned
    assert all("lora_" in name for name in learned)
    assert sum(v.numel() for v in learned.values()) < sum(p.numel() for p in base.parameters()) / 2
    assert all(p.requires_grad for p in base.parameters())

    torch.manual_seed(0)
    for p in student.parameters():
        if p.requires_grad:
            nn.init.normal_(p, std=0.3)
    with torch.no_grad():  # a fused layer that looked past its adapter would answer as the base does
        quiet = student(x, t)
        assert float((quiet - base(x, t)).abs().max()) > 0.01
    torch.testing.assert_close(student(x, t), quiet)
    merged = merge_lora(student)
    torch.testing.assert_close(merged(x, t), quiet, rtol=1e-4, atol=1e-4)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert all(p.requires_grad for p in merged.parameters())


def test_adapters_start_the_same_for_the_same_seed() -> None:
    base = networks()[1]
    one, two, other = (trainable(with_lora(base, 2, seed=seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_only_the_layers_that_are_named_learn() -> None:
    base = networks()[0]
    names = trainable(with_lora(base, 2, only=("time_embedding", "conv_out")))
    assert {name.split("lora_")[0] for name in names} == {
        "model.conv_out.",
        "model.time_embedding.linear_1.",
        "model.time_embedding.linear_2.",
    }
    with pytest.raises(ValueError, match="no linear or convolutional layer to put an adapter on"):
        with_lora(base, only=("attention_is_not_here",))


def test_tilts_move_the_adapters_only() -> None:
    base = networks()[1]
    student = with_lora(base, 2)
    config = TiltingConfig(N=1, S=32, J=4, B=16, E=5, lr=1e-2)
    (step,) = iterative_tilting(student, brightness, Cosine(), config, d=D)
    for name, value in student.state_dict().items():
        assert torch.equal(step.model.state_dict()[name], value) == ("lora_" not in name), name


def test_a_network_without_layers_gets_no_adapters() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0 * x

    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        with_lora(Nothing())


class Layers(nn.Module):
    """One layer under two names, one weight in two layers, attention that reads its weights itself, and convolutions."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 12)
        self.again = self.first
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.wide, self.one = nn.Conv1d(12, 12, 3, padding=1, groups=groups), nn.Conv1d(12, 12, 1)
        self.up, self.down = nn.Linear(12, 12), nn.Linear(12, 12)
        self.down.weight = self.up.weight

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.again(torch.tanh(self.first(x.reshape(len(x), 4, 12))))
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = h + self.one(self.wide(h.transpose(1, 2))).transpose(1, 2)
        return self.down(torch.tanh(self.up(h))).flatten(1)


def trained(student: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        (student(noise_of(4), torch.tensor(0.5)) - 1).square().mean().backward()
        optimizer.step()
    return student


def test_every_kind_of_layer_learns_and_is_merged() -> None:
    base, x, t = Layers(), noise_of(5, 1), torch.tensor(0.5)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    student = with_lora(base, 2)
    first = {name: value.clone() for name, value in trainable(student).items()}
    trained(student)
    idle = [name for name, value in trainable(student).items() if "lora_B" in name and torch.equal(value, first[name])]
    assert idle == []
    assert any("out_proj" in name for name in first)
    with torch.no_grad():
        expected = student(x, t)
        assert float((expected - base(x, t)).abs().max()) > 0.01
        merged = merge_lora(student)
        torch.testing.assert_close(merged(x, t), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(merge_lora(student)(x, t), expected, rtol=1e-4, atol=1e-5)  # and merging leaves it alone
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert merged.again is merged.first
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_layers_that_cannot_give_it_back_are_named() -> None:
    with pytest.warns(UserWarning, match=r"left without an adapter, and frozen: wide \(its groups"):
        student = with_lora(Layers(groups=2), 2)
    assert not any("wide" in name for name in trainable(student))
    with pytest.raises(ValueError, match=r"no linear or convolutional .*a fused layer"):
        with_lora(nn.TransformerEncoderLayer(8, 2))


def test_adapting_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="has adapters already"):
        with_lora(with_lora(networks()[1]))


def test_frozen_weights_are_not_copied() -> None:
    base = networks()[0]
    own = {p.data_ptr() for p in base.parameters()}
    assert all(p.requires_grad or p.data_ptr() in own for p in with_lora(base).parameters())


@pytest.mark.parametrize("beside", [False, True])
def test_what_was_learned_goes_back_to_diffusers(beside: bool, tmp_path: Path) -> None:
    base = networks()[0]
    student = trained(with_lora(base, 2))
    x, t = noise_of(3, 2), torch.tensor(0.4)
    exported(TrainableCopy(student) if beside else student).save_pretrained(tmp_path)
    again = FromModel(UNet2DModel.from_pretrained(tmp_path), SCHEDULE, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(again(x, t), student(x, t), rtol=1e-4, atol=1e-4)
        assert float((again(x, t) - base(x, t)).abs().max()) > 0.01


def test_adapters_are_read_by_peft(tmp_path: Path) -> None:
    from peft import PeftModel

    student = trained(with_lora(networks()[0], 2))
    save_lora(student, tmp_path)
    adapted = PeftModel.from_pretrained(unet(), str(tmp_path)).base_model.model
    x, t = noise_of(3, 2), torch.tensor(0.4)
    with torch.no_grad():
        torch.testing.assert_close(FromModel(adapted, SCHEDULE, SHAPE)(x, t), student(x, t), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="has no adapters: save exported"):
        save_lora(networks()[0], tmp_path)


def test_a_correction_is_distilled_and_then_exported() -> None:
    base = networks()[0]
    corrected = Residual(base, Network(D, width=16, depth=2, embedding=8))
    nn.init.normal_(corrected.correction.output.weight, std=0.05)
    with pytest.raises(ValueError, match=r"a Residual is a correction beside a frozen model.*distil"):
        exported(corrected)
    data = noise_of(64)
    *_, (copied, _) = steps = list(distil(corrected, base, data, SCHEDULE, steps=40, batch=16, lr=3e-3))
    errors = [error for _, error in steps]
    assert sum(errors[-10:]) < 0.5 * sum(errors[:10])
    assert isinstance(exported(copied), UNet2DModel)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), networks()[0].parameters(), strict=True))
