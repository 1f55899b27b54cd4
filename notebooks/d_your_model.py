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
# You have a diffusion model and a function that scores what it makes. This page takes both as they are and tilts one by the other.
#
# **You will see** how to read a model of the diffusers library in one call that checks itself, how to write a reward, how to watch a run, stop it
# and go on, how to tell without a truth whether the tilt has arrived, and how to give the model back.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" trains and tilts for a moment only

# %% [markdown]
# ## Set up
#
# All cells below run in this order when you copy them. The sizes are those of this page.

# %%
import io
import logging
import tempfile
from pathlib import Path

import torch

from itlib import figures
from itlib.metrics import effective_sample_size
from itlib.training import TrainingConfig, train_noise_predictor

logging.getLogger("diffusers").setLevel(logging.ERROR)
torch.set_num_threads(1)
torch.manual_seed(0)
images, epochs = 3000, 12  # of the base's training
K, n = 15, 256  # steps of a chain, chains to judge by
pilot, S, fit, rounds = 3000, 500, 250, 2  # chains of the base, of a round; minibatches

# %% tags=["remove-cell"]
if profile == "smoke":
    images, epochs, K, n, pilot, S, fit, rounds = 200, 1, 6, 32, 800, 32, 5, 1

# %% [markdown]
# ## A model that is not ours
#
# A convolutional U-Net of diffusers, for colour images of 16 by 16 pixels, with the noise of Stable Diffusion and the steps of Karras. Its data are
# patches of the two photographs that come with scikit-learn, a temple and a flower. One number is ours: `beta_end` is .012 in Stable Diffusion, which
# stops at $\alpha=.068$. There bright patches can be told from dark ones still, and what the start of a chain decides no correction moves.

# %%
from diffusers import EulerDiscreteScheduler, UNet2DModel

unet = UNet2DModel(
    sample_size=16,
    in_channels=3,
    out_channels=3,
    layers_per_block=1,
    block_out_channels=(16, 16),
    norm_num_groups=8,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    add_attention=False,
).eval()
scheduler = EulerDiscreteScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.02,
    prediction_type="v_prediction",
    use_karras_sigmas=True,
)

# %% [markdown]
# ## Read it
#
# One call. It takes a pipeline, or a model and its scheduler, and gives back a predictor of the noise like every other in this book, a schedule
# whose `steps` even steps are the scheduler's own, and what it found when it walked down from the same noise with both.

# %%
from itlib.pretrained import from_diffusers

wrapped = from_diffusers(unet, scheduler, steps=K, model={"microbatch": 64})
base, schedule, d = wrapped.predictor, wrapped.schedule, wrapped.predictor.d
print(wrapped)

# %% [markdown]
# The wrong prediction type, or a table read backwards, raises no error: it gives noise, after an hour. Here every difference has a name and a size:
# Stable Diffusion's DDIM, for one, stops a noise level early (`set_alpha_to_one=False`). `microbatch` is how many states the model is asked about in one call.
#
# | your model predicts | the scheduler calls it | your scheduler | |
# |:--|:--|:--|:--|
# | the noise | `epsilon` | DDIM, DDPM, Euler, Euler ancestral | equal step by step; clipping: see below |
# | the clean image | `sample` | the same | |
# | $v=\alpha_t\varepsilon-\sigma_tx_0$ | `v_prediction` | the same, also with zero terminal signal | starts at $\alpha=.005$ (`alpha_min`) |
# | the velocity $\varepsilon-x_0$ | `flow_prediction` | FlowMatchEuler, with its shift (SD3; Flux: see below) | starts at $\alpha=.005$ |
# | $F$ of EDM | a `sigma_data` | EDMEuler | divided into a variance-preserving process, exactly |
#
# - *Clipping* (`clip_sample`, `thresholding`) is kept, and the noise found again from what was clipped, as `use_clipped_model_output=True` does in DDIM.
#   DDIM's default leaves that out; then the call names `use_clipped_model_output=False` and what it moves. On pixels in $[-1,1]$, 0.05 is harmless and 2
#   is another sampler. Set `clip_sample=False`, or sample with `use_clipped_model_output=True` later.
# - *Flux* sees packed latents and is told times in $[0,1]$: write a module that divides its `timestep` by 1000 and asks the transformer, and call
#   `from_diffusers(module, scheduler, shape=(tokens, channels), mu=mu, model={"condition": ...})`. `mu` goes on to the scheduler.
# - *Every other scheduler of diffusers* is refused, with what to pass instead: for a solver of higher order (PNDM, DPM-Solver, Heun) one of first
#   order with the same noise levels; for a model distilled to a few steps (LCM, TCD) the model that it was made from.
# - *A variance that the model learned* (DiT, guided diffusion: twice the channels) is left out, and named.
# - *`J` must equal `steps`* in every tilt below. Another number of steps is another grid, which nobody checked.
#
# A model of a
# library of your own is any module that maps `(x, timestep)` to a tensor: {py:class}`~itlib.pretrained.models.FromModel`, with a schedule from
# {py:mod}`itlib.pretrained.schedules`. What it needs besides, such as an embedding, goes in `condition={...}`;
# {py:class}`~itlib.pretrained.models.Guided` adds classifier-free guidance. A function around a model is refused: it would hide the weights.
#
# Skip this cell if your model is trained.

# %% tags=["hide-input"]
from sklearn.datasets import load_sample_images


def patches(n, generator):
    """Patches of the two photographs, shrunk by 4, (n, 768) in [-1, 1]."""
    photographs = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.avg_pool2d(photographs / 127.5 - 1, 4)
    which = torch.randint(2, (n,), generator=generator)
    top, left = (torch.randint(size - 15, (n,), generator=generator) for size in small.shape[2:])
    rows = [small[w, :, i : i + 16, j : j + 16] for w, i, j in zip(which, top, left, strict=True)]
    return torch.stack(rows).flatten(1)


data = patches(images, torch.Generator().manual_seed(1))
settings = TrainingConfig(epochs=epochs, batch_size=64, lr=3e-3, averaging=0.98)
for epoch in train_noise_predictor(base, data, schedule, settings):
    pass

# %% [markdown]
# ## Any Python function is a reward
#
# It gets a batch of samples and returns one finite number for each. This one writes each image as a JPEG file and counts the bytes: nobody can
# differentiate that. {py:class}`~itlib.pretrained.rewards.Patient` calls it in batches, calls again when it fails and remembers the
# answers, so that a run that is started again asks only for what it does not know.

# %%
from PIL import Image

from itlib.pretrained import Patient


def jpeg_bytes(images):
    """Size of each image (3, 16, 16) as a JPEG file, in bytes."""
    sizes = []
    for pixels in ((images.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "jpeg")
        sizes.append(file.tell())
    return sizes


size = Patient(jpeg_bytes, shape=base.shape, batch=64)

# %% [markdown]
# What decides is the size of $\lambda r$, not that of $r$. So measure the reward on samples of the base, and give it in standard deviations. With
# $\lambda=0.8$ the tilt then asks for a little less than one of them.

# %%
from itlib.sampling import sample

drawn = sample(base, schedule, n, d, steps=K, variance="analytic", generator=torch.Generator().manual_seed(4))
before = size(drawn)
mean, spread = float(before.mean()), float(before.std())


def smaller(x):
    return (mean - size(x)) / spread


# %% [markdown]
# ## Is a tilt needed?
#
# Before anything is trained, ask what share of the base's samples stays effective when they are weighted by $e^{\lambda r}$.

# %%
lam = 0.8
share = effective_sample_size(lam * smaller(drawn)) / n
figures.glue(share=f"{share:.0%}")
print(f"{share:.0%} of {n} samples of the base are effective")

# %% [markdown]
# Above a tenth, {doc}`b_decision_guide` says, draw more samples of the base, resample them by these weights, and stop. With {glue:text}`share` that is the right
# advice here. We tilt all the same because weighted samples of the base say what the tilt should have, so this page can judge its own run. For your own reward
# tilt where the share is small, or where you want a model rather than a set of samples.
#
# ## Tilt
#
# The first way leaves the model as it is. A small network learns the *value* of a state: what $e^{\lambda r}$ is worth on average on the way down from
# there, $V(x,t)=\log\mathbb E[e^{\lambda r(X_0)}\mid x_t=x]$. Its gradient, with respect to the image, corrects every step ({doc}`b_value`). Values are learned by a
# regression on whole chains, which uses every state of each; the reward need not have a gradient. For images take `ImageValue`, a few convolutions.
# `finite=True` allows for steps as long as ours: without it the correction is too large where images vary most.
#
# *What it costs.* The reward is called on `pilot + rounds * S` samples, at most, and on as many as the report draws. With a reward of one second that is 84 min,
# however long the model takes.

# %%
from itlib.beyond.value import ImageValue, ValueConfig, value_tilting

chains = {"J": K, "pilot": pilot, "S": S, "explore": 0.05, "rounds": rounds, "patience": 2}
learning = {"B": 256, "fit": fit, "replay": 4, "lr": 4e-3, "finite": True}
config = ValueConfig(lam=lam, **chains, **learning)


def of_images(gaussian, seed):
    return ImageValue(gaussian, base.shape, seed=seed)


seen = list(value_tilting(base, smaller, schedule, config, value_of=of_images))
tilted = seen[-1].model


# %% tags=["hide-input"]
def watched(steps):
    """A row for each round or tilt."""
    return figures.table(
        [
            {
                "": step.k,
                "to strength": step.strength,
                "bytes before": mean - spread * float(step.rewards.mean()),
                "effective chains": f"{step.diagnostics.ess:.0%}",
                "Var log W": step.diagnostics.var_log_w,
                "KL to the base": step.diagnostics.kl or 0.0,  # and not -0
            }
            for step in steps
        ]
    )


watched(seen)

# %% [markdown]
# Row $k$ was measured before round $k$'s fit, so the first is of the base. The last round only looks. A run whose chains do not agree at the end warns.
#
# ## Has it arrived?
#
# Nobody can sample the exact tilt here. The chains of the tilted model, weighted, still tell what it would have
# ({py:mod}`itlib.pretrained.report`), and how far away the model is.

# %%
from itlib.pretrained import report

verdict = report(base, tilted, smaller, schedule, d=d, lam=lam, n=2 * n, steps=K)
print(verdict)

# %% tags=["hide-input"]
start = torch.randn(1000, d, generator=torch.Generator().manual_seed(6))
with torch.no_grad():
    at_start = tilted.value(start, torch.tensor(schedule.t_max))
figures.glue(ess=f"{verdict.ess:.0%}", bound=f"{effective_sample_size(at_start) / 1000:.0%}")

# %% tags=["hide-input"]
pictures = [x.reshape(-1, *base.shape).permute(0, 2, 3, 1).clamp(-1, 1) / 2 + 0.5 for x in verdict.samples]
fig = figures.before_and_after([p.numpy() for p in pictures], [mean - spread * r.numpy() for r in verdict.rewards], "bytes")
figures.show(
    fig,
    "patches",
    "Twelve patches of the base in a row and twelve of the tilted model below, each row with a histogram of its sizes in bytes, the lower one further left.",
)

# %% [markdown]
# ```{glue:figure} patches
# :name: fig-your-model
#
# Samples of the base and of the tilted model, and the sizes of all. The reward asks for images that are small as JPEG files.
# ```
#
# Of fresh chains {glue:text}`ess` are effective, of the base's samples {glue:text}`share`. What is missing? No correction moves where chains start, which alone
# would leave {glue:text}`bound`. The rest is the network's error, and the steps: their length, and the derivative of the base that `finite` takes from a Gaussian.
# More chains of the base (`pilot`) and more steps are what to spend next.
#
# ## Into the weights
#
# Where one model is needed rather than two, the weights themselves can learn. `distil` teaches a copy, or LoRA, what the corrected model predicts, by the
# mean square of the difference at noised samples: `for light, error in distil(tilted, with_lora(base), seen[-1].samples, schedule)`. Or learn them
# directly, by the recommended configuration on LoRA: `with_lora` freezes the model and puts a low-rank adapter on every layer that can give it back;
# `student="copy"` lets those learn. The learning rate is then that of a copy, by the number of its weights. `recommended_tilting` is a generator,
# of one item a tilt. Three short ones here, to be watched, cut, and resumed.

# %%
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.experiments.checkpoints import RunState, load_state, save_state
from itlib.pretrained import with_lora
from itlib.tilting import TiltState

light = with_lora(base, rank=4)
lora = {"student": "copy", "lam": lam, "S": 32, "J": K, "pilot": n}
config = RecommendedConfig.equal_steps(3, **lora, polish_rounds=1)
checkpoint = Path(tempfile.mkdtemp()) / "run.safetensors"
rows = []
for step in recommended_tilting(light, smaller, schedule, config, d=d):
    rows.append(step)
    kept = RunState(step.k, step.k + step.left, step.model, strengths=list(step.strengths))
    save_state(checkpoint, kept)
    if step.k == 2:
        break  # a power cut

# %% [markdown]
# Tilt $k$ depends on the model after tilt $k-1$, the seed and $k$. So a run that was cut goes on from its checkpoint, in another process or on
# another day, and ends where it would have ended. Rebuild the same wrapped LoRA model, then load the weights into it.

# %%
from itlib.beyond.chains import TrainableCopy

found = load_state(checkpoint, TrainableCopy(with_lora(base, rank=4)))
state = TiltState(found.model, tuple(found.strengths))
for step in recommended_tilting(light, smaller, schedule, config, d=d, state=state):
    rows.append(step)
learned = step.model

# %% tags=["hide-input"]
watched(rows)

# %% [markdown]
# When only few chains are effective, the run warns, and when hardly any are, twice in a row, it ends. At the end it warns if fewer than three in ten are. This one has only begun. What bounds it is how much of the reward
# a few hundred chains can tell the weights: in trials by hand, of which no records were kept, eight tilts of 600 chains still ended at about half, and a
# quarter of the way. Begin with a value, and distil it if you must.
#
# ## Give it back
#
# `exported` merges the adapters and takes the model out of what was built around it: a U-Net of diffusers with the keys of the original, for
# `pipeline.unet` or `save_pretrained`. `save_lora` writes the adapters alone, as peft does. A correction beside a frozen model (a value, or `student="adapter"`) is no
# such model; `distil` teaches it to a copy first. What no file holds is the width of our steps (`variance="analytic"`): the scheduler's are narrower. So measure once more.

# %%
from itlib.pretrained import exported, save_lora

folder = Path(tempfile.mkdtemp())
exported(learned).save_pretrained(folder)
save_lora(learned, folder / "lora")
again = from_diffusers(UNet2DModel.from_pretrained(folder, use_safetensors=True), scheduler, steps=K, check=0)
theirs = sample(again.predictor, again.schedule, n, d, steps=K, eta=1.0, generator=torch.Generator().manual_seed(5))

figures.glue(
    base_bytes=round(mean),
    tilted_bytes=round(mean - spread * verdict.reward[0]),
    exact_bytes=round(mean - spread * verdict.expected[0]),
    their_bytes=round(float(size(theirs).mean())),
)

# %% [markdown]
# Samples of the base take {glue:text}`base_bytes` bytes on average, those of the tilted model {glue:text}`tilted_bytes`, the exact tilt, as far as the
# chains can tell, {glue:text}`exact_bytes`. In diffusers, with the narrower steps, those of the U-Net with its three short tilts take {glue:text}`their_bytes`.
#
# ## Prompts and classes
#
# A model that is told something besides the state gets one tilt for every condition at once. You say how a condition is drawn; the reward sees it:
#
# ```python
# from itlib.beyond.conditions import conditional_tilting
#
# def prompts(generator):
#     k = int(torch.randint(len(embeddings), (), generator=generator))
#     return {"encoder_hidden_states": embeddings[k : k + 1]}
#
# for step in conditional_tilting(base, reward, prompts, schedule, config, d=base.d):
#     print(step.diagnostics.group_log_z)
# ```
#
# Chains come in groups of `B` under one condition, and all that is compared is compared within a group: what one prompt earns more than another is in its
# own $\log Z$, and no error. {py:class}`~itlib.pretrained.models.Guided` around the model adds classifier-free guidance; then the guided model is tilted.
#
# ## Large models
#
# - *Memory.* `from_diffusers(..., model={"microbatch": 16})` calls the model on 16 states at a time. The loss compares whole chains, but what it says of each
#   state goes back through one call at a time. What remains are the $3SJd$ numbers of the chains; if they do not fit, an error says how much they are before the work starts. Frozen weights
#   are shared, not copied. `benchmarks/memory.py` measures a tilt on LoRA at 3 × 64 × 64 with $S=256$ and $J=20$.
# - *Precision.* The model runs in the dtype of its weights, bfloat16 included; states, schedule and log weights stay in single precision.
# - *Dropout and batch statistics.* Every model runs in evaluation mode, and is left in yours.
# - *Several processes.* With `model={"microbatch": 16, "shared": True}` and {py:func}`shared(reward) <itlib.pretrained.processes.shared>`, under `torchrun`, each process makes its
#   share of the calls of model and reward, and `recommended_tilting` adds up their gradients. Samples are those of one process to the bit, weights to rounding (a test with two CPU
#   processes says so; nobody has tried several GPUs). Fits of a value are not shared out.
# - *A GPU.* Move the base, `base.to("cuda")`, and nothing else of ours. Samples come to the reward on that device: call `.cpu()` before `.numpy()` there. Random numbers are drawn on the processor, so a seed means the same on every device. {doc}`b_speed` has times.
#
# ## What cannot be done
#
# - *Models larger than a device.* Every process holds the whole model and all chains, and `accelerate` is not used.
# - *Solvers of higher order* are neither tilted nor matched, and chains need noise: a model that you will sample with DDIM at $\eta=0$ is tilted as a DDPM.
# - *Latent models* are tilted in their latent space: decode inside the reward.
# - *What the base never makes* cannot be learned from its samples, by any of these methods.
#
# ## What else people use
#
# Read in the code of [ddpo-pytorch](https://github.com/kvablack/ddpo-pytorch), [soc-fine-tuning-sd](https://github.com/microsoft/soc-fine-tuning-sd)
# (Adjoint Matching), [diffusion-finetuning](https://github.com/GFNOrg/diffusion-finetuning) (RTB), the scripts of
# [diffusers](https://github.com/huggingface/diffusers/tree/main/examples/research_projects) for DPO, and the README of
# [RAM](https://github.com/AndreasBergmeister/ram). DDPO's trainer in `trl` was removed in 2025.
#
# | | here | elsewhere |
# |:--|:--|:--|
# | gradient of the reward | not needed | soc needs it; DPO learns from pairs of images instead of a reward |
# | aim | the tilt of the base's chains | the tilt: soc, RTB; near it: RAM ({doc}`rivals_fixed_points`); the largest reward: ddpo |
# | how far it is | effective share, KL, $\log Z$, a report | soc: scores and diversity of samples; RTB: its loss and $\log Z$ |
# | checked against an exact target | yes | RTB: 25 Gaussians in the plane |
# | prompts | groups, $\log Z$ of each | all; ddpo keeps a mean for each prompt |
# | guidance | of the model that is tilted | ddpo, RTB: too; soc: three ways to combine it, compared |
# | LoRA | linear, convolution, attention | ddpo, RTB, DPO: attention; soc: all weights |
# | memory | small calls, recomputed for gradients | ddpo, soc, RTB, DPO: accumulated gradients; RTB, DPO: recomputed too |
# | precision | that of the weights | half precision in training: ddpo, RTB, DPO; soc: bfloat16 |
# | old samples used again | `E` passes over a tilt's chains | buffers: soc, RTB; inner epochs: ddpo |
# | resumes | to the bit | all, from checkpoints of their trainer |
# | slow rewards | batches, retries, a cache | ddpo: beside the sampling, in a thread |
# | several GPUs | processes that share calls, tried on CPUs | all, by accelerate or Lightning |
# | optimiser in 8 bit, averaged weights | no: adapters are small | 8 bit: ddpo, RTB, DPO |
# | logging services | no: a generator, log what you like | all: Weights & Biases |
# | rewards included | none | ddpo: JPEG size, aesthetics, LLaVA; soc, RTB: ImageReward; RAM: GenEval, OCR, PickScore |
#
# How the methods compare with exact targets is in {doc}`rivals_comparison`.
#
# ## When it does not work
#
# - *The reward does not move.* Look at the standard deviation of $\lambda r$ over one tilt's samples: at 0.01 there is nothing to learn.
# - *Few chains are effective.* Take more samples, more tilts (a larger `target_ess`), a smaller learning rate, or fewer weights:
#   `with_lora(base, only=("time_embedding",))` adapts only the layers whose names hold one of these words.
# - *The reward fails, or is random.* `Patient` keeps what it knows; noise of variance $v$ costs a factor $e^{-\lambda^2v}$ of the chains and does not move the target.
# - *An error of shapes.* `d` comes from the wrapper (`predictor.d`; the tilts and the report find it there), and the reward returns shape `(S,)`.
#
# ## Try this
#
# - Put a model of your own in the second cell, with its scheduler, and read what the call says.
# - Ask for larger files: is the tilt as easy? Which has the larger effective share before any training?
# - Leave out `with_lora`: compare time, and the report.
