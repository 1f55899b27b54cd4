# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: py:percent,ipynb
#     notebook_metadata_filter: itlib,-widgets
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One reward on the digits
#
# The template behind the chapter on digits. For one reward and one seed it weighs samples of the base, lets every method of
# `itlib.experiments.digits.comparison` spend the same number of evaluations, and judges what comes out. It also trains the base.
#
# **You will see** the figures of its record.

# %% tags=["parameters"]
task = "class"  # a name of itlib.experiments.digits.images.TASKS; or "base"
seed = 0  # fixes every random draw of the run; the base is the same for all
profile = "full"  # "full", or "smoke" for a first look in seconds
config = "paper"  # named configuration of the batch; each method says which one it uses
weights = "../book/reference/digits/base.safetensors"  # the base; written if the task is "base"
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from itlib.baselines.monte_carlo import best_of_n, effective_sample_size, systematic
from itlib.experiments.checkpoints import default_cache
from itlib.experiments.digits.comparison import ASKED, CANDIDATES, EVALUATIONS, METHODS, J, Setting, fine_tune, path_card
from itlib.experiments.digits.images import (
    TASKS,
    TRAINING,
    D,
    digits,
    image_card,
    judged,
    new_denoiser,
    tilt_identity,
    trained_denoiser,
)
from itlib.experiments.files import write_atomically
from itlib.experiments.provenance import content
from itlib.experiments.records import write_record
from itlib.likelihood import log_likelihood
from itlib.network import Network
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import derive_seed
from itlib.training import regression_step, train_noise_predictor

torch.set_num_threads(1)  # the same numbers on every machine with the same processor, whatever runs beside this
full, schedule = profile == "full", Cosine()
base = None if task == "base" else trained_denoiser(Path(weights), schedule)
problem = TASKS.get(task, TASKS["class"])
n_judged = 1000 if full else 50


def draws(purpose):
    """A generator for one purpose of this seed."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose))


# %% [markdown]
# ## The base
#
# Denoising score matching on all 1797 digits; and for comparison the paper's perceptron, as large and trained in the same way.


# %%
def train_base():
    """Train the base, keep its weights, and judge its samples."""
    denoiser = new_denoiser(schedule)
    settings = TRAINING if full else replace(TRAINING, epochs=2)
    clock = time.process_time()
    losses = [step.validation_loss for step in train_noise_predictor(denoiser, digits().x, schedule, settings)]
    seconds = time.process_time() - clock
    if full:
        write_atomically(Path(weights), safetensors.torch.save(dict(denoiser.state_dict())))
    x = sample(denoiser, schedule, n_judged, D, steps=J, generator=draws("judge"))
    metrics = image_card(x) | {"parameters": sum(p.numel() for p in denoiser.parameters())}
    plain = Network(D, width=240, embedding=64)
    for _ in train_noise_predictor(plain, digits().x, schedule, settings):
        pass
    y = sample(plain, schedule, n_judged, D, steps=J, generator=draws("judge"))
    metrics |= {f"perceptron {key}": value for key, value in image_card(y).items()}
    metrics["perceptron parameters"] = sum(p.numel() for p in plain.parameters())
    metrics |= {f"data {key}": value for key, value in image_card(digits().x).items() if "judge" in key or key == "agree"}
    return metrics, {"trace": losses, "samples": x, "training": seconds}


# %% [markdown]
# ## The truth, as far as weights carry
#
# Many samples of the base, weighted by $e^{\lambda r}$, for every strength of the sweep. Samples of the tilted law are drawn from them, as
# long as enough of them stay effective.


# %%
def weigh():
    """Importance weights of base samples; resampled, they are the truth as far as they carry."""
    n = 10_000 if full else 500
    x = sample(base, schedule, n, D, steps=J, generator=draws("truth"))
    r, labels = problem.reward(x).double(), judged(x)
    rows = []
    for lam in problem.sweep:
        w = torch.softmax(lam * r, 0)
        log_z = float(torch.logsumexp(lam * r, 0)) - math.log(n)
        rows.append(
            {
                "lam": lam,
                "ess": effective_sample_size(lam * r) / n,
                "log_z": log_z,
                "log_z_se": float((n * w).std()) / math.sqrt(n),
                "mean_reward": float(w @ r),
                "kl": lam * float(w @ r) - log_z,
            }
            | {f"judge_{c}": float(w[labels == c].sum()) for c in range(10)}
        )
    kept = x[systematic(problem.lam * r, min(n // 10, 1000), draws("resampling"))]
    metrics = {f"base {key}": value for key, value in image_card(x[:n_judged]).items()}
    metrics |= {"base mean_reward": float(r.mean()), "base reward_std": float(r.std())}
    return metrics | {f"truth {key}": value for key, value in image_card(kept).items()}, rows, kept


# %% [markdown]
# ## A method
#
# It is looked at after each quarter of its evaluations, with 200 samples; these looks are not on its clock. What it leaves is kept in the cache, so
# that a run which is killed goes on at the next method.


# %%
def run(name):
    """Fine-tune until the evaluations are spent, and judge the result."""
    setting = Setting(base, task, schedule, METHODS[name].lr, EVALUATIONS[profile], seed)
    marks, looking, curve, failure = [0.25, 0.5, 0.75, 1.0], 0.0, [], None
    try:
        for step in fine_tune(METHODS[name], setting):
            done = step.k * 64 / setting.evaluations if METHODS[name].gradient else step.counts.reward / setting.evaluations
            if marks and done >= marks[0] - 1e-9:
                clock = time.process_time()
                curve.append(look(step, setting, step.seconds - looking))
                marks = [mark for mark in marks if mark > done + 1e-9]
                looking += time.process_time() - clock
        if marks:  # the strength may be reached before all evaluations are spent
            curve.append(look(step, setting, step.seconds - looking))
    except FloatingPointError as error:
        return {"failure": str(error), "metrics": {}, "curve": curve, "samples": []}
    metrics = spent(step) | {"seconds": curve[-1]["seconds"]} | footprint(step.model)
    x, card = path_card(step.model, setting, n_judged, draws("judge"))
    metrics |= card | image_card(x)
    if name in ("paper", "implicit-full", "implicit", "recommended", "recommended-lora", "adjoint") and seed == 0 and full:
        metrics |= identity(step.model, setting)
    return {"failure": failure, "metrics": metrics, "curve": curve, "samples": x[:16].tolist()}


def spent(step):
    """Evaluations of the reward, and those of its gradient; the denoiser's would count the looks as well."""
    return {"reward": step.counts.reward, "reward_gradient": step.counts.reward_gradient}


def look(step, setting, seconds):
    """One row of the curve, from draws of its own."""
    _, card = path_card(step.model, setting, 200 if full else 20, draws("look"))
    return spent(step) | {"seconds": seconds} | {k: card[k] for k in ("mean_reward", "path_kl", "distance")}


def identity(denoiser, setting):
    """The tilt identity at real digits, through the likelihoods of both probability flows."""
    chosen = torch.randperm(len(digits().x), generator=torch.Generator().manual_seed(derive_seed(0, "identity")))[:40]
    points = digits().x[chosen]
    ratio = log_likelihood(denoiser, schedule, points, rtol=1e-3, atol=1e-3) - base_likelihood(points)
    found = tilt_identity(ratio, setting.lam * setting.reward(points))
    return {f"identity_{key}": value for key, value in found.items()}


KNOWN = []


def base_likelihood(points):
    """The base's, once."""
    if not KNOWN:
        KNOWN.append(log_likelihood(base, schedule, points, rtol=1e-3, atol=1e-3))
    return KNOWN[0]


# %% [markdown]
# *Memory* of a training step on 64 images, counted: the gradients and Adam's two averages of the weights that learn, and what autograd keeps for
# the way back.


# %%
def footprint(denoiser):
    """Bytes of one training step."""
    parameters, kept = [p for p in denoiser.parameters() if p.requires_grad], set()
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    known = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    x, t = digits().x[:64], torch.full((64,), 0.5)

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in known:
            kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        regression_step(denoiser, optimizer, x, t, x)
    averages = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v) and v.ndim]
    return {
        "trained": sum(p.numel() for p in parameters),
        "optimizer_bytes": sum(v.nbytes for v in [p.grad for p in parameters] + averages),
        "activation_bytes": sum(size for _, size in kept),
    }


# %% [markdown]
# *Best of n*: of every 16 samples of the base, the one with the highest reward. Its law has no density to weigh.


# %%
def best():
    """The best of so many."""
    clock, n = time.process_time(), EVALUATIONS[profile] // CANDIDATES
    x = best_of_n(base, problem.reward, schedule, n, candidates=CANDIDATES, d=D, J=J, generator=draws("best"))
    seconds = time.process_time() - clock
    metrics = {"mean_reward": float(problem.reward(x).mean()), "reward": EVALUATIONS[profile], "seconds": seconds}
    return {"failure": None, "metrics": metrics | image_card(x), "curve": [], "samples": x[:16].tolist()}


# %% [markdown]
# ## What came out

# %%
trace, rows, more, seconds = [], [], {}, {"sampling": 0.0, "training": 0.0}
if task == "base":
    metrics, made = train_base()
    trace, seconds["training"], more["samples"] = made["trace"], made["training"], made["samples"][:32].tolist()
else:
    metrics, rows, kept = weigh()
    more["samples"] = kept[:: len(kept) // 16][:16].tolist() if seed == 0 else []
    for index, name in enumerate(ASKED[task]):
        place = (
            default_cache()
            / f"digits_{content('itlib.experiments.digits.comparison')}_{profile}_{task}_{name}_seed{seed}.json"
        )
        if not place.exists():
            write_atomically(place, json.dumps(best() if name == "best" else run(name)).encode())
        result = json.loads(place.read_text())
        metrics |= {f"{name} {key}": value for key, value in result["metrics"].items()}
        rows += [{"method": index} | row for row in result["curve"]]
        seconds["training"] += result["metrics"].get("seconds", 0.0)
        more["samples"] += result["samples"] if seed == 0 else []
        if result["failure"]:
            more["failure"] = f"{more.get('failure', '')} {name}: {result['failure']}".strip()
print(json.dumps(metrics, indent=1))

# %% tags=["remove-cell"]
if record:
    if rows:  # of the sweep, then of the methods: a column that has no value for a row is empty there
        names = dict.fromkeys(key for row in rows for key in row)
        more["curve"] = {key: [row.get(key) for row in rows] for key in names}
    more["samples"] = np.round(more.get("samples", []), 2).tolist()
    write_record(
        Path(record),
        "digits",
        {"task": task, "seed": seed, "profile": profile, "config": config, "J": J}
        | ({"lam": problem.lam, "evaluations": EVALUATIONS[profile]} if task in TASKS else {}),
        metrics,
        trace,
        seconds,
        **more,
    )
