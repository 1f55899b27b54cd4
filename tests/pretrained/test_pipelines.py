"""Schedulers of diffusers, read in one call: every state of their own loop, and every setting that moves a sample."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
)
from foreign_models import SHAPE, STABLE_DIFFUSION, Says, noise_of, unet
from torch import Tensor

from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.pretrained import from_diffusers, report, with_lora
from itlib.sampling import reverse_process, sample

SD = STABLE_DIFFUSION
ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler(**SD, clip_sample=False, steps_offset=1),
    "ddim x0": DDIMScheduler(**SD, clip_sample=False, prediction_type="sample", timestep_spacing="trailing"),
    "ddim v, no signal at the end": DDIMScheduler(**SD, clip_sample=False, **ZERO),
    "ddim, cosine, clipped": DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"),
    "ddpm, clipped": DDPMScheduler(),
    "ddpm, thresholded": DDPMScheduler(thresholding=True, sample_max_value=1.5, clip_sample=False),
    "euler": EulerDiscreteScheduler(**SD),
    "euler, karras": EulerDiscreteScheduler(**SD, use_karras_sigmas=True),
    "euler v": EulerDiscreteScheduler(**SD, timestep_spacing="trailing", prediction_type="v_prediction"),
    "ancestral": EulerAncestralDiscreteScheduler(**SD),
    "edm": EDMEulerScheduler(),
    "edm v": EDMEulerScheduler(prediction_type="v_prediction"),
    "video": EulerDiscreteScheduler(
        **SD,
        prediction_type="v_prediction",
        timestep_type="continuous",
        use_karras_sigmas=True,
        sigma_min=0.002,
        sigma_max=700.0,
    ),
    "cogvideox": CogVideoXDDIMScheduler(timestep_spacing="trailing", prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(),
    "flow, shifted": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@torch.no_grad()
def their_samples(scheduler: Any, model: Any, x: Tensor, steps: int, **options: Any) -> Tensor:
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    # Pipelines begin with noise of their own scale; here it is the one that x has at the first noise level.
    scale = (1 + scheduler.sigmas[0] ** 2) ** 0.5 if hasattr(scheduler, "sigmas") and not flow else 1.0
    y = x.reshape(-1, *SHAPE) * scale
    for tau in scheduler.timesteps:
        scaled = scheduler.scale_model_input(y, tau) if hasattr(scheduler, "scale_model_input") else y
        y = scheduler.step(model(scaled, tau).sample, tau, y, **options).prev_sample
    return y.flatten(1)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [20, 25])
def test_one_call_samples_as_diffusers_does(name: str, steps: int) -> None:
    scheduler, model, x = SCHEDULERS[name], unet(), noise_of(3)
    found = from_diffusers(model, scheduler, steps=steps, alpha_min=1e-6, check=0)
    noisy = isinstance(scheduler, DDPMScheduler | EulerAncestralDiscreteScheduler)
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)} if noisy else {}
    if isinstance(scheduler, DDIMScheduler):
        options = {"use_clipped_model_output": True}
    theirs = their_samples(scheduler, model, x, steps, **options)
    x = x if noisy else x.double()
    ours = walk(found, x, torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.float(), theirs, rtol=1e-4, atol=1e-4)


def walk(found: Any, x: Tensor, generator: torch.Generator) -> Tensor:
    *_, (_, state) = reverse_process(
        found.predictor, found.schedule, x, steps=found.steps, eta=found.eta, generator=generator
    )
    return state


def test_settings_of_stable_diffusion_are_named_with_what_they_move() -> None:
    """Its DDIM ends one noise level early, and a number of steps that does not divide 1000 is no grid."""
    model, x = unet(), torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    settings = {**SD, "clip_sample": False, "steps_offset": 1}
    found = from_diffusers(model, DDIMScheduler(**settings, set_alpha_to_one=False), steps=20)
    early, late = (their_samples(DDIMScheduler(**settings, set_alpha_to_one=one), model, x, 20) for one in (False, True))
    assert list(found.gaps) == ["set_alpha_to_one=False"]
    assert found.gaps["set_alpha_to_one=False"] == pytest.approx(float((early - late).abs().max()), rel=1e-3)
    assert found.gap < 1e-4
    assert "set_alpha_to_one=False moves a sample by up to 0.0" in str(found)

    uneven = from_diffusers(model, DDIMScheduler(**settings, timestep_spacing="trailing"), steps=30)
    assert list(uneven.gaps) == ["timestep_spacing='trailing' with 30 steps"]
    assert uneven.gap < 1e-4


def test_clipping_and_wider_noise_are_named() -> None:
    clipped = from_diffusers(unet(), DDIMScheduler(), steps=10)
    assert list(clipped.gaps) == ["use_clipped_model_output=False"]
    wide = from_diffusers(unet(), DDPMScheduler(variance_type="fixed_large"), steps=10)
    assert list(wide.gaps) == ["variance_type='fixed_large'"]
    assert max(clipped.gap, wide.gap) < 1e-4


def test_a_start_that_is_cut_is_named() -> None:
    found = from_diffusers(unet(), FlowMatchEulerDiscreteScheduler(), steps=20)
    assert list(found.gaps) == ["The start at alpha_min"]
    assert 1e-4 < found.gaps["The start at alpha_min"] < 0.02
    assert found.gap < 1e-4


#: What each scheduler of diffusers says when it is read; None for those that are walked, and end where they do themselves.
MADE: dict[str, dict[str, Any]] = {"AmusedScheduler": {"mask_token_id": 1}, "VQDiffusionScheduler": {"num_vec_classes": 3}}
MADE["RFD4ProteinaScheduler"] = {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0}
READ = {"DDIM", "DDIMParallel", "CogVideoXDDIM", "DDPM", "DDPMParallel", "EulerDiscrete", "EulerAncestralDiscrete"}
READ |= {"EDMEuler", "FlowMatchEulerDiscrete", "FlowMapEulerDiscrete"}
ALL = [name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and name != "KarrasDiffusionSchedulers"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("check", [0, 1])
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_each_scheduler_of_diffusers_is_read_rightly_or_refused_by_name(name: str, check: int) -> None:
    try:
        scheduler = getattr(diffusers.schedulers, name)(**MADE.get(name, {}))
    except ImportError as error:
        pytest.skip(str(error))
    if name.removesuffix("Scheduler") in READ:
        found = from_diffusers(unet(), scheduler, steps=10, check=check)
        assert not check or found.gap < 1e-3
        return
    with pytest.raises(ValueError, match=f"the steps of {name} are not those of Algorithm 1") as refused:
        from_diffusers(unet(), scheduler, steps=10, check=check)
    remedy = str(refused.value).rpartition("; ")[2]
    if remedy.startswith("pass "):  # and what it says to pass is read, with the noise levels that the model was trained on
        instead = eval(remedy.removeprefix("pass "), {**vars(diffusers), "scheduler": scheduler})
        assert from_diffusers(unet(), instead, steps=10).gap < 1e-3
        if hasattr(scheduler, "alphas_cumprod"):
            torch.testing.assert_close(instead.alphas_cumprod, scheduler.alphas_cumprod)
    else:
        assert remedy.startswith(("its model is distilled", "build a schedule"))


def test_a_scheduler_of_ones_own_is_compared_in_any_case() -> None:
    class Same(DDIMScheduler):
        pass

    class Half(DDIMScheduler):
        def step(self, output: Any, tau: Any, state: Any, **options: Any) -> Any:
            return super().step(0.5 * output, tau, state, **options)

    assert from_diffusers(unet(), Same(clip_sample=False), steps=10, check=0).gap < 1e-4
    with pytest.raises(ValueError, match=r"steps of Half are not those of Algorithm 1 \(samples differ by up to"):
        from_diffusers(unet(), Half(clip_sample=False), steps=10, check=0)


def test_noise_levels_that_do_not_fall_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"its noise levels \[0\.0.*do not fall.*FlowMatchEulerDiscreteScheduler\(shift=1\)"
    ):
        from_diffusers(unet(), FlowMatchEulerDiscreteScheduler(invert_sigmas=True), steps=10)
    with pytest.raises(ValueError, match=r"its noise levels \[700\.0.*leave its table"):
        from_diffusers(unet(), EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=700.0), steps=10)


def test_a_variance_that_the_model_learned_is_left_out_and_named() -> None:
    """DiT and guided diffusion answer with twice the channels; the second half is for their own steps."""
    net = unet()

    def twice(x: Tensor, tau: Tensor) -> Tensor:
        answer: Tensor = net(x, tau).sample
        return torch.cat([answer, torch.full_like(answer, torch.nan)], 1)

    found = from_diffusers(Says(twice), DDPMScheduler(variance_type="learned_range"), steps=10, shape=SHAPE)
    assert list(found.gaps) == ["variance_type='learned_range'"]
    assert found.gap < 1e-4
    assert "variance_type='learned_range' is not used" in str(found)
    alone = from_diffusers(net, DDPMScheduler(), steps=10).predictor
    torch.testing.assert_close(found.predictor(noise_of(2), torch.tensor(0.5)), alone(noise_of(2), torch.tensor(0.5)))
    wide = Says(lambda x, tau: torch.cat([x] * 3, 1))
    with pytest.raises(ValueError, match=r"answers states \(2, 3, 4, 4\) with \(2, 9, 4, 4\)"):
        from_diffusers(wide, DDPMScheduler(), steps=10, shape=SHAPE)


def test_a_pipeline_is_read_whole_and_a_model_alone_is_not_enough() -> None:
    model, scheduler = unet(), SCHEDULERS["ddim"]
    found = from_diffusers(SimpleNamespace(unet=model, scheduler=scheduler), steps=10, check=0)
    assert found.predictor.model is model
    assert found.predictor.d == 48
    drawn = sample(found.predictor, found.schedule, 2, 48, steps=10)
    assert bool(torch.isfinite(drawn).all())
    with pytest.raises(ValueError, match="pass the scheduler of this model"):
        from_diffusers(model)
    with pytest.raises(ValueError, match="pass shape="):
        from_diffusers(torch.nn.Linear(1, 1), scheduler)
    with pytest.raises(ValueError, match=r"steps of SimpleNamespace are not.*build a schedule"):
        from_diffusers(model, SimpleNamespace(config={"num_train_timesteps": 10}, set_timesteps=lambda n: None))


@pytest.mark.parametrize("source", [SCHEDULERS["ddim"], lambda x, t: x, SimpleNamespace(scheduler=SCHEDULERS["ddim"])])
def test_what_holds_no_module_is_refused(source: Any) -> None:
    with pytest.raises(TypeError, match=r"pass a pipeline, or a torch.nn.Module and its scheduler.*holds no module"):
        from_diffusers(source)


def test_what_was_found_is_no_model_and_names_what_is() -> None:
    found: Any = from_diffusers(unet(), SCHEDULERS["ddim"], steps=10, check=0)
    with pytest.raises(TypeError, match=r"pass its \.predictor"):
        sample(found, found.schedule, 2, 48, steps=10)
    with pytest.raises(AttributeError, match=r"has no 'named_parameters': its \.predictor is the model"):
        with_lora(found)


def test_a_dimension_comes_from_the_wrapper() -> None:
    found = from_diffusers(unet(), SCHEDULERS["ddim"], steps=3, check=0)
    base, schedule = found.predictor, found.schedule
    config = RecommendedConfig(student="copy", S=4, J=3, B=4, target_ess=None, N=1, polish_rounds=0, pilot=4)
    step = next(recommended_tilting(with_lora(base), lambda x: x.mean(1), schedule, config))
    assert report(base, step.model, lambda x: x.mean(1), schedule, n=4, steps=3).samples[0].shape == (4, 48)
    with pytest.raises(ValueError, match=r"states of this model have shape \(B, 48\), got \(4, 2\): pass d=48"):
        sample(base, schedule, 4, 2, steps=3)


def test_a_transformer_is_told_its_time_by_name() -> None:
    """The second argument of SD3's is the prompt."""
    torch.manual_seed(0)
    width: Any = dict.fromkeys(["joint_attention_dim", "caption_projection_dim", "pooled_projection_dim"], 8)
    size: Any = {"sample_size": 4, "patch_size": 1, "in_channels": 3, "out_channels": 3, "pos_embed_max_size": 4}
    heads: Any = {"num_layers": 1, "attention_head_dim": 4, "num_attention_heads": 2}
    model = SD3Transformer2DModel(**width, **size, **heads).eval()
    told = {"encoder_hidden_states": torch.randn(1, 5, 8), "pooled_projections": torch.randn(1, 8)}
    found = from_diffusers(model, FlowMatchEulerDiscreteScheduler(), steps=5, model={"condition": told}, check=0)
    x, tau = torch.randn(2, 48), torch.full((2,), 600.0)
    with torch.no_grad():
        theirs = model(x.reshape(2, 3, 4, 4), timestep=tau, **{k: v.expand(2, *v.shape[1:]) for k, v in told.items()}).sample
    torch.testing.assert_close(found.predictor.answer(x, tau), theirs.flatten(1))
