"""Models that are not ours as denoisers: every prediction, dtypes, modes, memory, conditions, and tilts."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from foreign_models import SHAPE, D, Says, noise_of, unet
from torch import Tensor, nn

from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.checkpoints import RunState, load_state, save_state
from itlib.pretrained import (
    PREDICTIONS,
    Flow,
    FromModel,
    Guided,
    Tabulated,
    VarianceExploding,
    clamped,
    edm,
    report,
    thresholded,
)
from itlib.rewards import ForwardOnly
from itlib.sampling import sample
from itlib.schedules import Cosine, Linear, Schedule, add_noise
from itlib.tilting import TiltingConfig, TiltState, iterative_tilting

T = 100
SCHEDULE = Tabulated(DDIMScheduler(T, beta_schedule="scaled_linear", beta_end=0.1).alphas_cumprod)


def brightness(x: Tensor) -> Tensor:
    return x.mean(1)


def told(prediction: str, schedule: Schedule, x_0: Tensor, z: Tensor, t: Tensor) -> nn.Module:
    """What a perfect model says of one known pair (x_0, z) at times t, by the definition of what it predicts."""
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    level = sigma / alpha
    scale = (level**2 + 0.25).sqrt()  # EDM with sigma_data = .5: D = x .25 / (level^2 + .25) + level .5 / scale F
    x = x_0 + level * z
    answer = {
        "epsilon": z,
        "sample": x_0,
        "v_prediction": alpha * z - sigma * x_0,
        "flow_prediction": z - x_0,
        "score": -z / level,
        "edm": (x_0 - x * 0.25 / scale**2) * scale / (0.5 * level),
    }[prediction]
    scaled = {"score": x, "edm": x / scale}.get(prediction, alpha * x)

    def says(given: Tensor, timestep: Tensor) -> Tensor:
        torch.testing.assert_close(given, scaled, rtol=1e-4, atol=1e-4)
        return answer

    return Says(says)


@pytest.mark.parametrize("prediction", [*PREDICTIONS, "edm"])
@pytest.mark.parametrize("schedule", [SCHEDULE, VarianceExploding(), Flow()], ids=lambda s: type(s).__name__)
def test_each_prediction_gives_the_noise_back(prediction: str, schedule: Schedule) -> None:
    if isinstance(schedule, Flow) and prediction == "v_prediction":
        pytest.skip("refused, below")
    x_0, z = (noise_of(6, seed).reshape(6, *SHAPE) for seed in (0, 1))
    t = torch.linspace(0.4, 0.9, 6)
    x_t = add_noise(schedule, x_0.flatten(1), z.flatten(1), t)
    model = told(prediction, schedule, x_0, z, t)
    denoiser = FromModel(model, schedule, SHAPE, edm if prediction == "edm" else prediction)
    torch.testing.assert_close(denoiser(x_t, t), z.flatten(1), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(denoiser(x_t.double(), t.double()), z.flatten(1).double(), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_told_apart_later_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction is one of epsilon, sample, v_prediction, flow_prediction"):
        FromModel(unet(), Cosine(), SHAPE, "velocity")
    with pytest.raises(ValueError, match="here say 'flow_prediction'"):
        FromModel(unet(), Linear(), SHAPE, "v_prediction")
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got partial: a function hides its weights"):
        FromModel(functools.partial(unet()), Cosine(), SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="microbatch counts states"):
        FromModel(unet(), Cosine(), SHAPE, microbatch=0)


@torch.no_grad()
@pytest.mark.parametrize("clip", [clamped(0.5), thresholded(0.9, 2.0)])
def test_predictions_of_x0_are_kept_in_bounds(clip: object) -> None:
    model = FromModel(unet(), SCHEDULE, SHAPE, clip=clip)  # type: ignore[arg-type]
    x, t = noise_of(4).double(), torch.tensor(0.8, dtype=torch.float64)
    x_0 = (x - SCHEDULE.sigma(t) * model(x, t)) / SCHEDULE.alpha(t)
    plain = (x - SCHEDULE.sigma(t) * FromModel(unet(), SCHEDULE, SHAPE)(x, t)) / SCHEDULE.alpha(t)
    assert float(plain.abs().max()) > 2 > 1.0001 > float(x_0.abs().max())
    theirs = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=2.0)
    expected = (
        plain.clamp(-0.5, 0.5) if isinstance(clip, functools.partial) else theirs._threshold_sample(plain[..., None])[..., 0]
    )
    torch.testing.assert_close(x_0, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_weights_is_followed(dtype: torch.dtype) -> None:
    """The state, and what it is told, stay in single precision: 999 is no bfloat16."""
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, D).to(dtype)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            seen.append((x.dtype, timestep.dtype))
            return self.layer(x)

    denoiser = FromModel(Spy(), SCHEDULE, (D,))
    assert denoiser(noise_of(2), torch.tensor(0.5)).dtype == torch.float32
    assert seen == [(dtype, torch.float32)]
    drawn = sample(denoiser, SCHEDULE, 4, D, steps=5, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32


def test_times_are_one_each_and_whole_if_asked() -> None:
    seen: list[Tensor] = []
    model = Says(lambda x, timestep: seen.append(timestep) or x)
    FromModel(model, SCHEDULE, SHAPE)(noise_of(3), torch.tensor(0.123))
    FromModel(model, SCHEDULE, SHAPE, integers=True)(noise_of(3), torch.tensor(0.123))
    assert [v.shape for v in seen] == [(3,), (3,)]
    torch.testing.assert_close(seen[0], torch.full((3,), 11.3))
    assert seen[1].tolist() == [11, 11, 11]


def test_dropout_and_batch_statistics_stay_as_they_were() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.drop, self.layer = nn.BatchNorm1d(D), nn.Dropout(0.5), nn.Linear(D, D)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return self.layer(self.drop(self.norm(x)))

    model = Noisy().train()
    base = FromModel(model, SCHEDULE, (D,))
    before = copy.deepcopy(base.state_dict())
    config = TiltingConfig(N=1, S=16, J=4, B=8, E=2, lr=1e-3)
    runs = [list(iterative_tilting(base, brightness, SCHEDULE, config, d=D)) for _ in range(2)]
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(part.training for part in model.modules())
    one, two = (run[0].model.state_dict() for run in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(one["model.norm.running_mean"], before["model.norm.running_mean"])


class Dropping(nn.Module):
    """A noise predictor that is no FromModel, with a part that is random while it trains and one that counts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.drop, self.layer = nn.BatchNorm1d(D), nn.Dropout(0.5), nn.Linear(D, D)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (f(t).unsqueeze(-1) for f in (Cosine().alpha, Cosine().sigma))
        return sigma * x + 0.1 * alpha * self.layer(self.drop(self.norm(x)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("student", ["copy", "adapter"])
@pytest.mark.filterwarnings("ignore:no weight of the base is trainable")
def test_a_plain_module_is_evaluated_and_left_as_it_was(frozen: bool, student: str) -> None:
    """Pilots, chains, samples and reports: the same twice, with no statistics moved and the mode of every part kept."""
    base = Dropping().train().requires_grad_(not frozen)
    base.drop.eval()
    before = copy.deepcopy(base.state_dict())
    config = RecommendedConfig.equal_steps(1, student=student, S=16, J=4, B=8, lam=0.1, pilot=16)
    runs = []
    for _ in range(2):
        base.drop.train()
        (step,) = recommended_tilting(base, brightness, Cosine(), config, d=D)
        drawn = sample(base, Cosine(), 8, D, steps=4, generator=torch.Generator().manual_seed(0))
        judged = report(base, step.model, brightness, Cosine(), d=D, n=8, steps=4)
        assert all(part.training for part in base.modules())
        base.drop.eval()
        sample(base, Cosine(), 8, D, steps=4)
        assert [part.training for part in base.children()] == [True, False, True]
        runs.append((step.samples, step.losses, drawn, judged.log_w))
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_small_calls_give_the_same_gradients() -> None:
    x, t = noise_of(10), torch.linspace(0.1, 0.9, 10)
    results = []
    for microbatch in (None, 3):
        sizes: list[int] = []
        model = unet()
        model.register_forward_pre_hook(lambda module, inputs, sizes=sizes: sizes.append(len(inputs[0])))
        denoiser = FromModel(model, SCHEDULE, SHAPE, microbatch=microbatch)
        loss = denoiser(x, t).square().sum()
        loss.backward()
        with torch.no_grad():
            quiet = denoiser(x, t)
        assert max(sizes) == (microbatch or 10)
        results.append((quiet, [p.grad for p in model.parameters()]))
    (one, grads), (other, others) = results
    torch.testing.assert_close(one, other)
    for a, b in zip(grads, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_guidance_is_between_the_two_answers_and_beyond() -> None:
    """A condition that stands for all, one for each sample, and guidance by its definition."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, timestep: Tensor, shift: Tensor) -> Tensor:
            return self.weight * x + shift.reshape(-1, 1)

    x, each = noise_of(4), torch.arange(4.0).reshape(4, 1)
    all_same = FromModel(Shifted(), SCHEDULE, (D,), condition={"shift": torch.tensor([[2.0]])})
    torch.testing.assert_close(all_same(x, torch.tensor(0.5)), x + 2)
    guided = Guided(Shifted(), 3.0, {"shift": torch.tensor([[-1.0]])})
    denoiser = FromModel(guided, SCHEDULE, (D,), condition={"shift": each}, microbatch=3)
    torch.testing.assert_close(denoiser(x, torch.tensor(0.5)), x - 1 + 3 * (each + 1))


def test_a_foreign_model_is_tilted_and_resumed(tmp_path: Path) -> None:
    """Convolutions, colour, a table and v: brighter after two tilts, and the same when the run is cut and goes on."""
    schedule, base = SCHEDULE, FromModel(unet(), SCHEDULE, SHAPE, "v_prediction")
    before = copy.deepcopy(base.state_dict())
    config = TiltingConfig(N=2, lam=60.0, S=64, J=8, B=32, E=30, lr=1e-3)
    *_, last = iterative_tilting(base, ForwardOnly(brightness), schedule, config, d=D)
    draws = [sample(m, schedule, 256, D, steps=10, generator=torch.Generator().manual_seed(5)) for m in (base, last.model)]
    rise = brightness(draws[1]) - brightness(draws[0])
    assert float(rise.mean()) > 5 * float(rise.std()) / 16  # five standard errors
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())

    first = next(iterative_tilting(base, brightness, schedule, config, d=D))
    save_state(tmp_path / "run.safetensors", RunState(1, 2, first.model, strengths=[first.strength]))
    found = load_state(tmp_path / "run.safetensors", FromModel(unet(1), schedule, SHAPE, "v_prediction"))
    state = TiltState(found.model, tuple(found.strengths))
    *_, resumed = iterative_tilting(base, brightness, schedule, config, d=D, state=state)
    for name, value in last.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
