"""Models that are not ours: against diffusers' own sampler, between predictions, through tilts, and with adapters."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from itlib.experiments.checkpoints import RunState, load_state, save_state
from itlib.network import Network
from itlib.pretrained import PREDICTIONS, FromModel, Tabulated, merge_lora, trainable, with_lora
from itlib.rewards import ForwardOnly
from itlib.sampling import reverse_process, sample, time_grid
from itlib.schedules import Cosine, add_noise
from itlib.tilting import TiltingConfig, TiltState, iterative_tilting

T, SHAPE = 100, (3, 4, 4)
D = 48


def scheduler(prediction: str = "epsilon", **more: object) -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=T,
        beta_schedule="scaled_linear",
        beta_end=0.1,
        prediction_type=prediction,
        clip_sample=False,
        timestep_spacing="trailing",
        **more,
    )


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


def test_the_table_is_met_at_its_times() -> None:
    table = scheduler().alphas_cumprod.double()
    schedule = Tabulated(table)
    t = (torch.arange(T, dtype=torch.float64) + 1) / T
    torch.testing.assert_close(schedule.alpha(t) ** 2, table)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - table)
    torch.testing.assert_close(schedule.timestep(t), torch.arange(T, dtype=torch.float64))
    start = torch.zeros((), dtype=torch.float64)
    assert (float(schedule.alpha(start)), float(schedule.sigma(start))) == (1.0, 0.0)
    assert schedule.alpha(torch.rand(3, 2)).dtype == torch.float32


def test_slopes_are_those_of_the_values() -> None:
    schedule = Tabulated(scheduler().alphas_cumprod)
    t = ((torch.arange(T, dtype=torch.float64) + 0.5) / T).requires_grad_()  # between the corners of the table
    for value, slope in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
        (expected,) = torch.autograd.grad(value(t).sum(), t)
        torch.testing.assert_close(slope(t.detach()), expected)


def test_a_terminal_ratio_of_zero_is_left_out() -> None:
    table = scheduler(rescale_betas_zero_snr=True).alphas_cumprod.double()
    table[-1] = 0.0
    schedule = Tabulated(table)
    assert table[-1] == 0.0  # still
    assert time_grid(schedule, 10)[-1] == schedule.t_max == 1 - 1 / T
    assert 0 < float(schedule.alpha(torch.tensor(1.0))) < float(schedule.alpha(torch.tensor(schedule.t_max)))


@pytest.mark.parametrize("table", [[0.5, 0.7, 0.1], [1.0, 0.5, 0.2], [0.5], [0.5, 0.0], [0.5, 0.2, -0.1]])
def test_a_table_that_is_none_is_refused(table: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod must fall"):
        Tabulated(torch.tensor(table))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_algorithm_1_walks_as_diffusers_does(prediction: str, eta: float) -> None:
    """Every state of 20 steps, whatever the model predicts."""
    theirs, model = scheduler(prediction), unet()
    schedule = Tabulated(theirs.alphas_cumprod)
    denoiser = FromModel(model, schedule, SHAPE, prediction)
    x = torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    ours = reverse_process(denoiser, schedule, x, steps=20, eta=eta, generator=torch.Generator().manual_seed(1))
    again = torch.Generator().manual_seed(1)
    theirs.set_timesteps(20)
    y = x.reshape(5, *SHAPE)
    for (s, state), tau in zip(ours, theirs.timesteps, strict=True):
        with torch.no_grad():
            output = model(y, tau).sample
        z = torch.randn(5, D, generator=again).reshape(y.shape) if eta and s > 0 else torch.zeros_like(y)
        y = theirs.step(output, int(tau), y, eta=eta, variance_noise=z).prev_sample
        torch.testing.assert_close(state, y.reshape(5, D), rtol=1e-3, atol=1e-4)


class Truth(nn.Module):
    """What a perfect model says of one known pair (x_0, z): each prediction in turn."""

    def __init__(self, x_0: Tensor, z: Tensor, schedule: Tabulated, prediction: str) -> None:
        super().__init__()
        self.x_0, self.z, self.schedule, self.prediction = x_0, z, schedule, prediction

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        t = (timestep + 1).double() / T
        alpha, sigma = (f(t).to(x).reshape(-1, 1, 1, 1) for f in (self.schedule.alpha, self.schedule.sigma))
        return {"epsilon": self.z, "sample": self.x_0, "v_prediction": alpha * self.z - sigma * self.x_0}[self.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_each_prediction_gives_the_noise_back(prediction: str) -> None:
    schedule = Tabulated(scheduler().alphas_cumprod)
    generator = torch.Generator().manual_seed(0)
    x_0, z = (torch.randn(6, *SHAPE, generator=generator) for _ in range(2))
    t = torch.linspace(0.1, 1.0, 6)
    x_t = add_noise(schedule, x_0.flatten(1), z.flatten(1), t)
    denoiser = FromModel(Truth(x_0, z, schedule, prediction), schedule, SHAPE, prediction)
    torch.testing.assert_close(denoiser(x_t, t), z.flatten(1), rtol=1e-4, atol=1e-4)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction is one of epsilon, sample, v_prediction, got 'flow'"):
        FromModel(unet(), Cosine(), SHAPE, "flow")


def brightness(x: Tensor) -> Tensor:
    return x.mean(1)


def test_a_foreign_model_is_tilted_and_resumed(tmp_path: Path) -> None:
    """Convolutions, colour, a table and v: brighter after three tilts, and the same when the run is cut and goes on."""
    schedule = Tabulated(scheduler().alphas_cumprod)
    base = FromModel(unet(), schedule, SHAPE, "v_prediction")
    before = copy.deepcopy(base.state_dict())
    config = TiltingConfig(N=3, lam=60.0, S=64, J=10, B=32, E=30, lr=1e-3)
    *_, last = iterative_tilting(base, ForwardOnly(brightness), schedule, config, d=D)
    draws = [sample(m, schedule, 256, D, steps=10, generator=torch.Generator().manual_seed(5)) for m in (base, last.model)]
    rise = brightness(draws[1]) - brightness(draws[0])
    assert float(rise.mean()) > 5 * float(rise.std()) / 16  # five standard errors
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())

    first = next(iterative_tilting(base, brightness, schedule, config, d=D))
    save_state(tmp_path / "run.safetensors", RunState(1, 3, first.model, strengths=[first.strength]))
    found = load_state(tmp_path / "run.safetensors", FromModel(unet(1), schedule, SHAPE, "v_prediction"))
    state = TiltState(found.denoiser, tuple(found.strengths))
    *_, resumed = iterative_tilting(base, brightness, schedule, config, d=D, state=state)
    for name, value in last.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)


def networks() -> list[nn.Module]:
    return [FromModel(unet(), Tabulated(scheduler().alphas_cumprod), SHAPE), Network(D, width=16, depth=3, embedding=8)]


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
