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
# # One method on one task
#
# The template behind the comparison of methods: it trains, or finds, the base network of a seed, lets one method of
# `itlib.experiments.comparison` spend its budget, and judges what comes out against the exact target. Papermill runs it once per
# method, task and seed.
#
# **You will see** the samples of the method over the exact density, its distance to the target while it trains, and its record.

# %% tags=["parameters"]
task = "paper"  # a name of itlib.experiments.problems
method = "implicit"  # a name of itlib.experiments.comparison.METHODS
N = 20  # number of tilts, for the methods that tilt
lr = None  # learning rate (None: the one that the tuning chose)
seed = 0  # fixes base and method
profile = "full"  # "full", or "smoke" for a first look in seconds
config = "paper"  # named configuration of Algorithm 2
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from tqdm import tqdm

from itlib import figures
from itlib.baselines.accounting import EvaluationCounter
from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.experiments.comparison import METHODS, WORK, Setting, fine_tune
from itlib.experiments.problems import task as task_named
from itlib.experiments.records import write_record
from itlib.metrics import flow_nll, sample_card, score_errors, sliced_wasserstein
from itlib.network import Network
from itlib.sampling import sample
from itlib.schedules import Cosine

torch.set_num_threads(1)  # the same numbers on every machine with the same processor, whatever runs beside this

# %%
problem, chosen, work, schedule = task_named(task), METHODS[method], profile_named(profile), Cosine()
for base in tqdm(resumable_base(problem.base, schedule, work.training, n=work.n, seed=seed), "epochs of the base"):
    pass
rate = chosen.lr if lr is None else lr
setting = Setting(base.denoiser, problem, schedule, profile, rate, N, seed)
target = problem.target

# %% [markdown]
# ## The run
#
# A method that trains is looked at now and then: with a few thousand samples for the sliced Wasserstein distance to exact ones,
# and with the error of its noise prediction at exact noised samples of the target. These looks are not on its clock. A method whose
# loss or samples stop being finite ends there, and what follows is about the last look before.

# %%
curve, failure, ess = [], None, None
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports for seconds


def look(step, seconds):
    """One row of the curve, from a copy of the network that is not counted; an error once its samples have run away."""
    network = Network(problem.base.d)
    network.load_state_dict(getattr(step.model, "student", step.model).state_dict())  # of two, the one that learns
    x = sample(network, schedule, work.samples // 2, problem.base.d, steps=50, generator=torch.Generator().manual_seed(seed))
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError(f"iteration {step.k}: the samples are no longer finite")
    errors = score_errors(network, target, schedule, n=work.samples, seed=seed)
    curve.append(
        asdict(step.counts)
        | {"seconds": seconds, "sliced_w2": sliced_wasserstein(x, target, seed=seed), "eps_rmse": errors.eps_rmse}
    )
    return network


if chosen.train:
    budget, looking, denoiser = WORK[profile], 0.0, base.denoiser
    marks = [budget * share for share in (2**-8, 2**-7, 2**-6, 2**-5, 2**-4, 2**-3, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1)]
    bar = tqdm(total=budget, desc=chosen.title, unit="evaluation", unit_scale=True)
    try:
        for step in fine_tune(chosen, setting):
            bar.update(min(step.counts.work, budget) - bar.n)
            if marks and step.counts.work >= marks[0]:
                clock = time.process_time()
                denoiser = look(step, step.seconds - looking)
                marks = [mark for mark in marks if mark > step.counts.work]
                looking += time.process_time() - clock
        if curve[-1]["network"] < step.counts.network:  # a method that ends before its budget is looked at once more
            denoiser = look(step, step.seconds - looking)
    except FloatingPointError as error:
        failure = str(error)
    spent = {"training": curve[-1]["seconds"] if curve else 0.0, "sampling": 0.0}
else:
    account = EvaluationCounter()
    drawn = chosen.draw(setting, account)
    denoiser, ess = drawn.denoiser, drawn.ess
    spent = {"training": 0.0, "sampling": time.process_time() - account.opened}

# %% [markdown]
# ## What came out
#
# Samples of the final model by Algorithm 1 with the paper's number of steps, or the weighted samples themselves.

# %%
if denoiser is not None:
    clock = time.process_time()
    x = sample(
        denoiser, schedule, work.samples, problem.base.d, steps=200, generator=torch.Generator().manual_seed(seed + 1)
    )
    if not chosen.train:
        spent["sampling"] += time.process_time() - clock
else:
    x = drawn.samples
card = {}
if bool(torch.isfinite(x).all()):
    card = sample_card(x, target, target=target, base=problem.base, seed=seed)
    card["mean_reward"] = float(problem.reward(x.double()).mean())
    card["mode_weight_error"] = float((torch.tensor(card["mode_weights"]) - target.weights).abs().sum() / 2)
else:
    failure = failure or "the samples are not finite"
card |= {
    "best_sliced_w2": min((row["sliced_w2"] for row in curve), default=None),  # on the way: an oracle's early stopping
    "ess": ess,
    "entropy": target.entropy(),
}
if not chosen.train:
    card |= asdict(account.counts)
if denoiser is not None:
    errors = score_errors(denoiser, target, schedule, n=work.samples, seed=seed)
    card |= {"eps_rmse": errors.eps_rmse, "score_rmse": errors.score_rmse}
    if errors.eps_rmse < 1:  # beyond, the denoiser is worse than predicting zero, and its flow too stiff to follow
        exact = target.sample(work.flow_samples // 2, torch.Generator().manual_seed(seed)).float()
        card["flow_nll"] = flow_nll(denoiser, schedule, target, exact)
        card["kl"] = card["flow_nll"] - card["entropy"]

# %% tags=["hide-input"]
shown = {k: v for k, v in card.items() if isinstance(v, float | int)} | ({"failure": failure} if failure else {})
display(Markdown(pd.Series(shown, name=f"{chosen.title}, {task}, seed {seed}").to_markdown(floatfmt=".4g")))
if curve:
    display(Markdown(pd.DataFrame(curve).to_markdown(index=False, floatfmt=".4g")))

# %% tags=["hide-input"]
low, high = target.means.min(0).values - 3, target.means.max(0).values + 3
xs, ys = (np.linspace(float(a), float(b), 120) for a, b in zip(low, high, strict=True))
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
density = xs, ys, target.log_prob(plane).reshape(len(ys), len(xs)).numpy()
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(4.8, 4))
    figures.samples(ax, x[:2000].numpy(), density=density, limits=(xs[0], xs[-1], ys[0], ys[-1]))
figures.show(fig, "samples", f"Samples of {chosen.title} over contours of the exact target.")

# %% [markdown]
# ```{glue:figure} samples
#
# Samples of the method over contours of the exact target.
# ```

# %% tags=["remove-cell"]
if record:
    more = {"samples": x[:300].tolist()} if seed == 0 and N == 20 and bool(torch.isfinite(x).all()) else {}
    if curve:
        more["curve"] = {key: [row[key] for row in curve] for key in curve[0]}
    write_record(
        Path(record),
        "rival",
        {"task": task, "method": method, "lr": rate, "seed": seed, "profile": profile, "config": config}
        | ({"N": N} if chosen.tilts else {}),
        card,
        [],
        spent,
        **more,
        **({"failure": failure} if failure else {}),
    )
