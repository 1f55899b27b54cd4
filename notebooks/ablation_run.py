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
# # One run of what is recommended
#
# The template behind the chapters on the floor and on what we recommend: a base is trained, its error is measured where the target lives, and it is tilted with a named
# configuration, with one change if asked for (`itlib.experiments.ablation`). Papermill runs it once per task, change and seed.
#
# **You will see** the floor that the base sets, the error along the tilts, and what came out.

# %% tags=["parameters"]
task = "paper"  # a name of itlib.experiments.problems
N = None  # number of equal tilts; None: as the configuration says, which may choose its steps on the way
change = ""  # a name of itlib.experiments.ablation.REMOVED or MORE or, with config "paper", of ADDED; empty for none
base = None  # "skip", "plain", "wide", "small" or "exact"; None: "skip" if recommended, "plain" if the paper's
seed = 0  # fixes base and tilts
profile = "full"  # "full", or "smoke" for a first look in seconds
config = "recommended"  # named configuration of the method
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown, display
from tqdm import tqdm

from itlib.beyond.recommended import recommended_tilting
from itlib.experiments.ablation import ADDED, MORE, REMOVED, settings
from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.experiments.problems import task as task_named
from itlib.experiments.records import write_record
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.metrics import flow_nll as probability_flow_nll
from itlib.metrics import sample_card, score_errors
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import derive_seed

torch.set_num_threads(1)  # the same numbers on every machine with the same processor, whatever runs beside this
problem, work, schedule = task_named(task), profile_named(profile), Cosine()
full = profile == "full"

# %% [markdown]
# ## The base
#
# Trained on samples of the base distribution only. Its error is then measured at noised samples of the *tilted* distributions, of which the last is the target: there it will
# be used, and hardly one of its training samples came near.

# %%
changes = {"": {}, **(ADDED if config == "paper" else REMOVED | MORE)}[change]
base = changes.get("base", base) or ("plain" if config == "paper" else "skip")
if base == "exact":
    model, trained = ExactNoisePredictor(problem.base, schedule), 0.0
else:
    training = replace(work.training, lr=3e-3) if base in ("skip", "small") else work.training
    for state in tqdm(
        resumable_base(problem.base, schedule, training, n=work.n, seed=seed, kind=base), "epochs of the base"
    ):
        pass
    model, trained = state.denoiser.eval(), state.seconds["training"]

strengths = [0.0, 0.25, 0.5, 0.75, 1.0]
exact_base = ExactNoisePredictor(problem.base, schedule)
draws = {"n": 20_000 if full else 1000, "seed": derive_seed(seed, "trace")}
floors = [
    score_errors(model, problem.base.tilted(problem.reward, s), schedule, truth=exact_base, **draws).eps_rmse
    for s in strengths
]

# %% [markdown]
# ## The tilts

# %%
knobs = settings(config, N, changes)
if not full:
    knobs = replace(knobs, S=200, J=20, E=min(knobs.E, 10), B=min(knobs.B, 32), N=min(knobs.N, 5))
trace, seconds = [], {"sampling": 0.0, "training": 0.0}
evaluations = {"rewards": 0, "network": 0, "sample_steps": 0}
for step in tqdm(recommended_tilting(model, problem.reward, schedule, knobs, seed=seed), "tilts"):
    seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
    truth = problem.base.tilted(problem.reward, step.strength)
    trace.append(score_errors(step.model, truth, schedule, n=2000 if full else 200, seed=seed).eps_rmse)
    evaluations["rewards"] += knobs.S
    evaluations["network"] += knobs.S * knobs.J
    evaluations["sample_steps"] += len(step.losses) * knobs.B * (knobs.J if knobs.step == "paths" else 1)

# %% [markdown]
# ## What came out
#
# Samples are drawn in 100 steps with the variance put back that Algorithm 1 loses, so that the network is judged and not the sampler.

# %%
generator = torch.Generator().manual_seed(derive_seed(seed, "look"))
x = sample(step.model, schedule, 20_000 if full else 1000, steps=100, variance="analytic", generator=generator).double()
target = problem.target
errors = score_errors(step.model, target, schedule, **draws)
metrics = sample_card(x[:20_000], target, target=target, base=problem.base, seed=seed) | {
    "eps_rmse": errors.eps_rmse,
    "score_rmse": errors.score_rmse,
    "floor": floors[-1],
    "flow_nll": probability_flow_nll(step.model, schedule, target, target.sample(work.flow_samples, generator).float()),
    "entropy": target.entropy(),
    "mean_0": float(x[:, 0].mean()),
    "mean_1": float(x[:, 1].mean()),
    "tilts": step.k,
    "base_seconds": trained,
    **evaluations,
}

# %% tags=["remove-input"]
shown = {k: v for k, v in metrics.items() if not isinstance(v, list)} | {f"seconds {k}": v for k, v in seconds.items()}
display(Markdown(pd.Series(shown, name=f"{task}, {change or config}, seed {seed}").to_markdown(floatfmt=".4g")))
display(
    Markdown(pd.DataFrame({"strength": strengths, "error of the base": floors}).to_markdown(index=False, floatfmt=".3g"))
)

# %% tags=["remove-cell"]
if record:
    asked = {"task": task, "N": N, "change": change, "base": base, "seed": seed, "profile": profile, "config": config}
    write_record(
        Path(record),
        "ablation",
        {name: value for name, value in asked.items() if value is not None},
        metrics,
        trace,
        seconds,
        curve={"strength": strengths, "floor": floors},
    )
