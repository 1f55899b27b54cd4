# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: py:percent,ipynb
#     notebook_metadata_filter: itlib,kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Use it on your own model
#
# You have a diffusion model and a function that scores what it makes. This page takes both as they are and tilts one by the other. It is a
# guide: every cell does one thing that you will do, in the order in which you will do it.
#
# **You will see** how to wrap a model of the diffusers library, with its own schedule and its own kind of prediction, how to tell that the
# wrapping is right before you spend an hour, how to write a reward, watch a run, stop it and go on, and what changes with LoRA or a GPU.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" trains and tilts for a moment only

# %% tags=["remove-cell"]
import logging
import math
import tempfile
from pathlib import Path

import torch
from IPython.display import Markdown, display

from itlib import figures
from itlib.training import TrainingConfig, train_noise_predictor

logging.getLogger("diffusers").setLevel(logging.ERROR)
torch.set_num_threads(1)
torch.manual_seed(0)
full = profile == "full"

# %% [markdown]
# ## A model that is not ours
#
# The example is a small U-Net of diffusers, with convolutions and attention, on colour images of 4 by 4 pixels. It predicts $v$ on the
# 1000-step schedule of Stable Diffusion: nothing here is like the networks of the other chapters. Its data are squares that fade from one colour to another.

# %%
from diffusers import DDIMScheduler, UNet2DModel

unet = UNet2DModel(
    sample_size=4,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(16, 32),
    norm_num_groups=4,
    attention_head_dim=8,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
).eval()
scheduler = DDIMScheduler(
    num_train_timesteps=1000,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    prediction_type="v_prediction",
    clip_sample=False,
    timestep_spacing="trailing",
)

# %% [markdown]
# ## Wrap it
#
# Three lines. The first reads the schedule off the scheduler's table; the second says what shape a sample has and what the model predicts, in
# the words that the scheduler uses itself. What comes out is a denoiser like every other in this book: it takes flat samples and a time in
# $[0, 1]$ and gives the predicted noise.

# %%
from itlib.pretrained import FromModel, Tabulated

schedule = Tabulated(scheduler.alphas_cumprod)
base = FromModel(unet, schedule, (3, 4, 4), prediction=scheduler.config.prediction_type)
d = math.prod(base.shape)

# %% [markdown]
# | your model predicts | in diffusers' words | $\hat x_1$ |
# |:--|:--|:--|
# | the noise $\varepsilon$ | `"epsilon"` | $\hat\varepsilon$ |
# | the clean image $x_0$ | `"sample"` | $(x-\alpha_t\hat x_0)/\sigma_t$ |
# | the velocity $v=\alpha_t\varepsilon-\sigma_tx_0$ | `"v_prediction"` | $(\alpha_t\hat v+\sigma_tx)/(\alpha_t^2+\sigma_t^2)$ |
#
# A text-conditioned model takes its embedding as well: bind it beforehand, with a module whose `forward` adds it. A model of a library of your own fits too, if it
# maps `(x, timestep)` to a tensor; a schedule in closed form is a class of `itlib.schedules` with four methods; `timestep=` says what the
# model is told for a time $t$.
#
# This U-Net is fresh, so it is trained first. You have done that already.


# %%
def fades(n, generator):
    """Colour images that fade from left to right, (n, 48) in [-1, 1]."""
    ends = 1.6 * torch.rand(n, 3, 1, 2, generator=generator) - 0.8
    return torch.nn.functional.interpolate(ends, (4, 4), mode="bilinear").flatten(1)


data = fades(2000 if full else 200, torch.Generator().manual_seed(1))
data = data + 0.05 * torch.randn(data.shape, generator=torch.Generator().manual_seed(2))
settings = TrainingConfig(epochs=25 if full else 1, batch_size=128, lr=3e-3, averaging=0.98)
for epoch in train_noise_predictor(base, data, schedule, settings):
    pass

# %% [markdown]
# ## Is the wrapping right?
#
# The wrong prediction type or a table read backwards does not raise an error: it gives noise, after an hour. So walk down from the same noise
# twice, once with `itlib` and once with the scheduler that the model came with.

# %%
from itlib.sampling import reverse_process

x = torch.randn(16, d, generator=torch.Generator().manual_seed(3))
*_, (_, ours) = reverse_process(base, schedule, x, steps=20, eta=0.0)

scheduler.set_timesteps(20)
theirs = x.reshape(16, *base.shape)
with torch.no_grad():
    for tau in scheduler.timesteps:
        theirs = scheduler.step(unet(theirs, tau).sample, tau, theirs).prev_sample
gap = float((ours - theirs.flatten(1)).abs().max())
assert gap < 1e-2

# %% tags=["remove-input"]
display(
    Markdown(
        f"The largest difference of any pixel of 16 samples after 20 steps is {gap:.1e}: rounding in single precision, and nothing else."
    )
)

# %% [markdown]
# ## Any Python function is a reward
#
# It gets a batch of flat samples and returns one finite number for each. It may loop, call another program, or ask a person; nothing is ever
# differentiated. This one asks that the left half be warmer than the right, and says so with a jump.


# %%
def warm_left(x):
    """1 for images whose left half has more red and less blue than the right, else 0."""
    scores = []
    for image in x.cpu().numpy().reshape(-1, *base.shape):
        red, blue = image[0], image[2]
        left, right = (red - blue)[:, :2].mean(), (red - blue)[:, 2:].mean()
        scores.append(float(left > right + 0.3))
    return torch.tensor(scores)


# %% [markdown]
# What decides is the size of $\lambda r$, not that of $r$. Before any training, weigh samples of the base: if hardly any stay effective, the tilt
# is far, and takes many steps or a smaller $\lambda$.

# %%
from itlib.metrics import effective_sample_size
from itlib.sampling import sample

lam = 3.0
drawn = sample(base, schedule, 512 if full else 64, d, steps=20, generator=torch.Generator().manual_seed(4))
before = warm_left(drawn)
wanted = float((before * math.exp(lam)).sum() / torch.exp(lam * before).sum())  # what the exact tilt gives

# %% tags=["remove-input"]
display(
    Markdown(
        f"Of the base's samples {before.mean():.0%} have the reward. Under $e^{{\\lambda r}}$ with $\\lambda = {lam:g}$ it is {wanted:.0%}, and "
        f"{effective_sample_size(lam * before) / len(before):.0%} of the samples stay effective."
    )
)

# %% [markdown]
# ## Tilt, and watch
#
# `iterative_tilting` is a generator. Each item is one tilt, with the samples it drew, their rewards, its loss and its seconds: print them,
# plot them, put a progress bar around them (`tqdm(…, total=config.N)`), stop when you have seen enough. The name of a configuration is enough to begin with; here its numbers are set one by one, so
# that the page is quick.

# %%
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.checkpoints import RunState, load_state, save_state
from itlib.tilting import TiltingConfig, TiltState

config = RecommendedConfig.like(
    TiltingConfig(N=10 if full else 3, lam=lam, S=256 if full else 64, J=20, B=64, E=60 if full else 5, lr=3e-4), decay=True
)
checkpoint = Path(tempfile.mkdtemp()) / "run.safetensors"
rows = []
for step in recommended_tilting(base, warm_left, schedule, config, d=d, seed=0):
    rows.append((step.k, step.strength, float(step.rewards.mean()), float(step.losses.mean())))
    save_state(checkpoint, RunState(step.k, config.N, step.model, strengths=list(step.strengths)))
    if step.k == config.N // 2:
        break  # a power cut

# %% [markdown]
# Tilt $k$ depends on the network after tilt $k-1$, the seed and $k$. So a run that was cut goes on from its checkpoint, in another process or
# on another day, and ends where it would have ended.

# %%
student = FromModel(UNet2DModel.from_config(unet.config), schedule, (3, 4, 4), scheduler.config.prediction_type)
found = load_state(checkpoint, student)
state = TiltState(found.denoiser, tuple(found.strengths))
for step in recommended_tilting(base, warm_left, schedule, config, d=d, seed=0, state=state):
    rows.append((step.k, step.strength, float(step.rewards.mean()), float(step.losses.mean())))
tilted = step.model

# %% tags=["hide-input"]
table = ["| tilt | strength before | mean reward before | loss |", "|--:|--:|--:|--:|"]
table += [f"| {k} | {s - lam / config.N:.2f} | {r:.2f} | {loss:.2f} |" for k, s, r, loss in rows]
display(Markdown("\n".join(table)))

# %% tags=["remove-cell"]
after = sample(tilted, schedule, 512 if full else 64, d, steps=20, generator=torch.Generator().manual_seed(4))
gained = float(warm_left(after).mean())

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 12, figsize=(7.2, 1.35))
    for row, images, name in zip(axes, (drawn, after), ("base", "tilted"), strict=True):
        for ax, image in zip(row, images.reshape(-1, *base.shape), strict=False):
            ax.imshow((image.permute(1, 2, 0).numpy().clip(-1, 1) + 1) / 2)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
figures.show(
    fig,
    "fades",
    "Twelve colour squares of the base in a row, and below them twelve of the tilted model from the same noise, most of which are warmer on the left.",
)

# %% [markdown]
# ```{glue:figure} fades
# :name: fig-your-model
#
# Samples of the base and of the tilted model, drawn with the same noise. The reward asks for a left half that is warmer than the right.
# ```

# %% tags=["remove-input"]
display(
    Markdown(
        f"The share of samples with the reward went from {before.mean():.0%} to {gained:.0%}; the exact tilt of the base has {wanted:.0%}."
        + (
            " So few minibatches a tilt lag behind: raise `E`, or the learning rate."
            if gained < wanted - 0.1 and full
            else ""
        )
        + ("" if full else " This is a first look, after a moment of training: its figures mean nothing.")
    )
)

# %% [markdown]
# ## With LoRA
#
# A large model is not copied twice to be tilted once. `with_lora` freezes it and puts a low-rank adapter on every linear and convolutional layer;
# the rest of the page stays as it is. Save what learned, and give the merged model back to the program it came from.
#
# Here with the recommended step, on whole chains ({doc}`b_recommended`): `student="copy"` lets all weights learn that are not frozen, beside the base that they started from. On the digits
# this pair came closest of all methods without a gradient ({doc}`d_digits`).

# %%
from itlib.pretrained import merge_lora, trainable, with_lora

light = with_lora(base, rank=2)
one = RecommendedConfig.equal_steps(1, student="copy", lr=1e-3, lam=0.3, S=64, J=10)
(step,) = recommended_tilting(light, warm_left, schedule, one, d=d)
learned = trainable(step.model)  # a dictionary of tensors, for safetensors.torch.save_file
back = merge_lora(step.model.student).model  # a UNet2DModel again, with the keys of the original
assert back.state_dict().keys() == unet.state_dict().keys()

# %% tags=["remove-input"]
n_learned, n_all = sum(v.numel() for v in learned.values()), sum(p.numel() for p in base.parameters())
display(
    Markdown(
        f"The adapters have {n_learned:,} weights, the model {n_all:,}. How LoRA compares with all weights in quality, memory and time is measured in "
        "{doc}`d_digits`."
    )
)

# %% [markdown]
# ## On a GPU
#
# Move the base, `base.to("cuda")`, and nothing else. Samples are drawn where the weights are, the reward gets them there (hence `.cpu()` above), and
# a run draws its random numbers on the processor, so that a seed means the same on every device. A `generator` that you pass to `sample` may be one of the GPU.
# Where there is a GPU, the tests compare every method on it with the processor. The records of this book come from processors; {doc}`b_speed` has times of both.
#
# ## When it does not work
#
# - *The reward does not move.* Look at the standard deviation of $\lambda r$ over one tilt's samples: at 0.01 there is nothing to learn. Raise $\lambda$, or the
#   learning rate; with LoRA the learning rate is often ten times larger.
# - *The reward moves and the images fall apart.* Compare with the target's mean reward, as above: a model above it has gone too far. Use more tilts, a smaller
#   learning rate, or {py:func}`~itlib.beyond.recommended.recommended_tilting`, and look at samples half way.
# - *The reward is NaN for some samples.* The run stops and says so. Return a small number instead: minus infinity is no reward.
# - *An error of shapes.* `d` is the product of the sample's shape, and the reward returns shape `(S,)`.
#
# ## Try this
#
# - Put a model of your own in the second cell, with its scheduler, and run the check of the wrapping first.
# - Replace the prediction type by a wrong one and see what the check says.
# - Return the score itself instead of the jump: which tilt has the larger effective share at the same gain?
