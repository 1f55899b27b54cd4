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
# # One run with exact ingredients
#
# The template behind the chapter on where the error comes from: Algorithm 2 from the trained base of a seed, with some of its ingredients exchanged
# for exact ones (`itlib.experiments.error_budget`). Papermill runs it once per exchange, task and seed.
#
# **You will see** the error along the tilts, the weights of the modes and the variances within them, and what the run cost.

# %% tags=["parameters"]
task = "paper"  # a name of itlib.experiments.problems
N = 20  # number of tilts
samples = "model"  # where D_k comes from: "model" (Algorithm 1), "analytic" (with its lost variance put back), "exact"
covariance = "single"  # "single" (the paper's estimate), "centred" (its mean reward subtracted) or "exact"
exact_teacher = False  # whether the teacher is the exact denoiser of p^{k-1}
exact_base = False  # whether the tilts start from the exact base, under a correction that starts at zero
S = 1000  # samples per tilt
E = 100  # minibatches of 64 per tilt
seed = 0  # fixes base and tilts
profile = "full"  # "full", or "smoke" for a first look in seconds
config = "paper"  # named configuration of Algorithm 2
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display
from tqdm import tqdm

from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.experiments.error_budget import ingredients
from itlib.experiments.problems import task as task_named
from itlib.experiments.records import write_record
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.metrics import (
    component_variances,
    mean_mse,
    mode_weights,
    negative_log_likelihood,
    score_errors,
    sliced_wasserstein,
)
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import derive_seed, iterative_tilting, tilt_path

torch.set_num_threads(1)  # the same numbers on every machine with the same processor, whatever runs beside this
problem, work, schedule = task_named(task), profile_named(profile), Cosine()

# %% [markdown]
# ## The run
#
# At ten moments the model is looked at: the error of its noise prediction against the exact $p^k$, and a thousand of its samples. They are drawn with the variance
# put back that Algorithm 1 loses, so that the network is judged and not the sampler.

# %%
path = tilt_path(problem.base, problem.reward, 1.0, N)
settings = replace(work.tilting, N=N, S=S, E=E)
if profile == "smoke":
    settings = replace(settings, S=min(S, 200), E=min(E, 10), J=20)
update, sampler = ingredients(
    path, problem.reward, schedule, samples=samples, covariance=covariance, exact_teacher=exact_teacher, J=settings.J
)
if exact_base:
    start = ExactNoisePredictor(problem.base, schedule)
else:
    for base in tqdm(resumable_base(problem.base, schedule, work.training, n=work.n, seed=seed), "epochs of the base"):
        start = base.denoiser


def look(model, k, n, steps=50):
    """What the model of tilt k says of p^k, and its samples, (n, 2)."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "look", k))
    x = sample(model, schedule, n, steps=steps, variance="analytic", generator=generator).double()
    errors = score_errors(model, path(k), schedule, n=work.samples, seed=derive_seed(seed, "trace"))
    weights, variances = mode_weights(x, path(k)), component_variances(x, path(k))
    row = {"k": k, "eps_rmse": errors.eps_rmse, "score_rmse": errors.score_rmse, "weight": float(weights[1])}
    row |= {f"mean_{i}": float(x[:, i].mean()) for i in (0, 1)}
    return x, row | {"variance": float((weights.unsqueeze(1) * variances).nansum() / 2)}


marks = {max(1, round(N * i / 10)) for i in range(1, 11)}
curve, seconds = [look(start, 0, 1000)[1]], {"sampling": 0.0, "training": 0.0}
for step in tqdm(
    iterative_tilting(start, problem.reward, schedule, settings, seed=seed, update=update, sampler=sampler), "tilts", total=N
):
    seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
    if step.k in marks:
        curve.append(look(step.model, step.k, 1000)[1])

# %% [markdown]
# ## What came out

# %%
target = problem.target
x, last = look(step.model, N, work.samples)
weights = mode_weights(x, target)
metrics = {key: last[key] for key in ("eps_rmse", "score_rmse", "variance", "mean_0", "mean_1")} | {
    "mean_mse_target": mean_mse(x, target),
    "mean_mse_base": mean_mse(x, problem.base),
    "nll_target": negative_log_likelihood(x, target),
    "nll_base": negative_log_likelihood(x, problem.base),
    "sliced_w2": sliced_wasserstein(x, target, seed=seed),
    "mode_weights": weights.tolist(),
    "mode_weight_error": float((weights - target.weights).abs().sum() / 2),
    "component_variances": component_variances(x, target).tolist(),
}

# %% tags=["remove-input"]
shown = {k: v for k, v in metrics.items() if isinstance(v, float)} | {f"seconds {k}": v for k, v in seconds.items()}
display(Markdown(pd.Series(shown, name=f"{task}, N = {N}, seed {seed}").to_markdown(floatfmt=".4g")))
display(Markdown(pd.DataFrame(curve).to_markdown(index=False, floatfmt=".3g")))

# %% tags=["remove-cell"]
if record:
    write_record(
        Path(record),
        "budget",
        {
            "task": task, "N": N, "samples": samples, "covariance": covariance, "exact_teacher": exact_teacher,
            "exact_base": exact_base, "S": S, "E": E, "lr": settings.lr, "seed": seed, "profile": profile, "config": config,
        },
        metrics,
        [],
        seconds,
        curve={key: [row[key] for row in curve] for key in curve[0]},
    )  # fmt: skip
