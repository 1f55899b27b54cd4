"""On a GPU: the numbers of the CPU up to rounding, in the same place as the weights. Skipped where there is none."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.accounting import EvaluationCounter
from itlib.beyond.estimators import fit_value
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments import rivals
from itlib.experiments.checkpoints import RunState, load_state, save_state
from itlib.experiments.digits import images
from itlib.experiments.digits import methods as digits
from itlib.experiments.digits.images import image_card, new_denoiser
from itlib.experiments.methods import fine_tune
from itlib.experiments.problems import PROBLEMS
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.likelihood import log_likelihood
from itlib.metrics import score_card
from itlib.network import Network, Residual, device_of
from itlib.pretrained import FromModel, Tabulated, with_lora
from itlib.rewards import parse_reward
from itlib.sampling import path_log_weights, reverse_process, sample
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting
from itlib.training import TrainingConfig, train_noise_predictor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

LAW, SCHEDULE, REWARD = paper_mixture(), Cosine(), parse_reward("paper")
TRAINED = [name for name, method in rivals.METHODS.items() if method.train]
DRAWN = [name for name, method in rivals.METHODS.items() if method.draw]


def seeded(device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def base() -> Residual:
    """The exact denoiser, and a network that would learn."""
    return Residual(ExactNoisePredictor(LAW, SCHEDULE), Network(width=32, depth=2, embedding=8))


def on_gpu(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cuda()


def assert_same(there: Tensor, here: Tensor, atol: float = 1e-3) -> None:
    assert there.is_cuda
    assert not here.is_cuda
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=atol)


def assert_alike(there: nn.Module, here: nn.Module) -> None:
    """Predictions agree. Weights need not: Adam makes a whole step of a gradient that is nothing but rounding."""
    x, t = torch.randn(100, 2, generator=seeded()), torch.rand(100, generator=seeded())
    with torch.no_grad():
        assert_same(there(x.cuda(), t.cuda()), here(x, t))
    assert all(value.is_cuda for value in there.parameters())


@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"variance": "analytic"}], ids=str)
def test_samples_are_those_of_the_cpu(options: dict[str, object]) -> None:
    """With a generator of the CPU, wherever the denoiser is."""
    drawn = [sample(eps, SCHEDULE, 300, steps=50, generator=seeded(), **options) for eps in (on_gpu(base()), base())]
    assert_same(*drawn)


def test_a_generator_may_live_on_the_gpu() -> None:
    """It repeats itself there, and the law of the samples is the exact one."""
    eps = on_gpu(base())
    x, again = (sample(eps, SCHEDULE, 20_000, generator=seeded("cuda")) for _ in range(2))
    assert x.is_cuda
    assert torch.equal(x, again)
    assert float(x[:, 0].abs().mean()) == pytest.approx(2.0, abs=0.02)
    assert x.std(0).tolist() == pytest.approx([4.5**0.5, 0.5**0.5], rel=0.05)
    *_, (_, last) = reverse_process(eps, SCHEDULE, torch.randn(10, 2, device="cuda"), steps=3, generator=seeded("cuda"))
    assert last.is_cuda


def test_weights_of_paths_are_those_of_the_cpu() -> None:
    student = Network(width=16, depth=2, embedding=8)
    found = [
        path_log_weights(f(student), f(base()), SCHEDULE, 50, steps=20, generator=seeded()) for f in (on_gpu, copy.copy)
    ]
    for there, here in zip(*found, strict=True):
        assert_same(there, here, atol=1e-2)


def test_the_base_trains_there() -> None:
    networks = [f(Network(width=32, depth=2)) for f in (on_gpu, copy.deepcopy)]
    data, config = LAW.sample(2000, seeded()).float(), TrainingConfig(epochs=3, batch_size=100)
    traces = [
        [step.validation_loss for step in train_noise_predictor(network, data.to(device_of(network)), SCHEDULE, config)]
        for network in networks
    ]
    assert traces[0] == pytest.approx(traces[1], rel=1e-3)
    assert device_of(networks[0]).type == "cuda"


@pytest.mark.parametrize("config", [TiltingConfig(), RecommendedConfig()], ids=["paper", "recommended"])
def test_tilts_are_those_of_the_cpu(config: TiltingConfig) -> None:
    config = replace(config, S=128, J=20, E=5, B=32, lr=1e-4)
    tilting = recommended_tilting if isinstance(config, RecommendedConfig) else iterative_tilting
    (*_, there), (*_, here) = (
        [step for _, step in zip(range(2), tilting(f(base()), REWARD, SCHEDULE, config), strict=False)]
        for f in (on_gpu, copy.copy)
    )
    assert there.strength == pytest.approx(here.strength, rel=1e-3)
    assert_same(there.losses, here.losses, atol=1e-2)
    assert_alike(there.model, here.model)


@pytest.mark.parametrize("name", TRAINED)
def test_rivals_learn_there(name: str) -> None:
    setting = rivals.Setting(base(), PROBLEMS["paper"], SCHEDULE, rivals.WORK["smoke"], lr=1e-4, full=False)
    there, here = (next(fine_tune(rivals.METHODS[name], replace(setting, base=f(base())))) for f in (on_gpu, copy.copy))
    assert there.counts == here.counts
    assert there.loss == pytest.approx(here.loss, rel=1e-2, abs=1e-3)
    assert_alike(there.model, here.model)


@pytest.mark.parametrize("name", DRAWN)
def test_rivals_draw_there(name: str) -> None:
    setting = rivals.Setting(base(), PROBLEMS["paper"], SCHEDULE, rivals.WORK["smoke"], full=False)
    there, here = (
        rivals.METHODS[name].draw(replace(setting, base=f(base())), EvaluationCounter()) for f in (on_gpu, copy.copy)
    )
    if here.model is None:
        # Rounding may send a draw from a list of weights to its neighbour.
        assert there.samples.is_cuda
        moved = (there.samples.cpu() - here.samples).abs().amax(1) > 1e-2
        assert float(moved.float().mean()) < 0.05
    else:
        x, t = torch.randn(50, 2), torch.tensor(0.5)
        assert_same(there.model(x.cuda(), t.cuda()), here.model(x, t))


@pytest.mark.parametrize("name", [name for name, method in digits.METHODS.items() if method.train])
def test_the_digits_learn_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "J", 6)
    setting = digits.Setting(
        new_denoiser(SCHEDULE).cuda(), images.IMAGE_PROBLEMS["symmetry"], SCHEDULE, 320, "rewards", 1e-4
    )
    step = next(fine_tune(digits.METHODS[name], setting))
    assert device_of(step.model).type == "cuda"
    assert all(bool(torch.isfinite(value).all()) for value in step.model.parameters())


def test_figures_are_those_of_the_cpu() -> None:
    target, few = LAW.tilted(REWARD), {"samples": 500, "flow_samples": 50, "steps": 20}
    there, here = (score_card(f(base()), SCHEDULE, LAW, target=target, base=LAW, **few) for f in (on_gpu, copy.copy))
    for key, value in here.items():
        # The exact denoiser is beside itself, and the errors are rounding.
        torch.testing.assert_close(torch.tensor(there[key]), torch.tensor(value), rtol=2e-3, atol=1e-4, msg=key)
    images = torch.rand(20, 64)
    assert image_card(images.cuda()) == pytest.approx(image_card(images), nan_ok=True)


def test_exact_figures_are_asked_from_there() -> None:
    x, t = torch.randn(20, 2, generator=seeded()), torch.full((20,), 0.4)
    for there, here in (
        (LAW.log_prob(x.cuda()), LAW.log_prob(x)),
        (LAW.score(x.cuda(), t.cuda(), SCHEDULE), LAW.score(x, t, SCHEDULE)),
        (LAW.covariance(x.cuda(), t.cuda(), SCHEDULE, REWARD), LAW.covariance(x, t, SCHEDULE, REWARD)),
        (log_likelihood(on_gpu(base()), SCHEDULE, x.cuda()), log_likelihood(base(), SCHEDULE, x)),
    ):
        assert_same(there, here)


def test_a_value_is_fitted_there() -> None:
    x = LAW.sample(200, seeded()).float()
    there, here = (fit_value(x.to(device), REWARD(x).to(device), SCHEDULE, steps=20) for device in ("cuda", "cpu"))
    points, t = torch.randn(10, 2), torch.rand(10)
    assert_same(there(points.cuda(), t.cuda()), here(points, t), atol=1e-2)


def test_a_checkpoint_goes_from_one_to_the_other(tmp_path: Path) -> None:
    network = Network(width=16, depth=2).cuda()
    save_state(tmp_path / "state.safetensors", RunState(1, 2, network))
    here = load_state(tmp_path / "state.safetensors", Network(width=16, depth=2, seed=1)).model
    there = load_state(tmp_path / "state.safetensors", Network(width=16, depth=2, seed=1).cuda()).model
    for a, b, c in zip(network.parameters(), there.parameters(), here.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a.cpu(), c)


def test_a_model_of_images_with_an_adapter_learns_there() -> None:
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    unet = diffusers.UNet2DModel(
        sample_size=4, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        attention_head_dim=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    table = diffusers.DDIMScheduler(num_train_timesteps=100, beta_schedule="scaled_linear", beta_end=0.1).alphas_cumprod
    schedule = Tabulated(table)
    model = with_lora(FromModel(unet, schedule, (3, 4, 4)), rank=2).cuda()
    config = TiltingConfig(N=2, S=16, J=5, B=8, E=2)
    step = next(iterative_tilting(model, lambda x: x.mean(1), schedule, config, d=48))
    assert device_of(step.model).type == "cuda"
    assert bool(torch.isfinite(step.losses).all())
