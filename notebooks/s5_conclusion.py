# ---
# jupyter:
#   itlib:
#     reads: [book/reference/paper]
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
# # What holds, what does not, what is open
#
# The paper closes with a summary of its claims. This page goes through them with the evidence of the chapters before.
#
# **You will see** each claim with a verdict and the figure behind it, the one picture that decides most of them, and the questions that the
# paper's experiment cannot answer.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # the reference records are read in either profile
reference = "../book/reference/paper"  # the committed runs

# %% tags=["remove-cell"]
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from itlib import plots
from itlib.gaussian_mixture import ExactDenoiser, paper_mixture
from itlib.metrics import score_errors
from itlib.records import read_records
from itlib.rewards import parse_reward
from itlib.schedules import Cosine
from itlib.tilting import tilt_path

torch.set_num_threads(1)
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("paper")
target = base.tilted(reward)
records = read_records(Path(reference))
bases = {r["parameters"]["seed"]: r["metrics"] for r in records if r["task"] == "base"}
runs = pd.DataFrame(
    {
        "N": r["parameters"]["N"],
        "seed": r["parameters"]["seed"],
        "error": r["metrics"]["eps_rmse"],
        "floor": bases[r["parameters"]["seed"]]["eps_rmse_at_target"],
        "growth": r["trace"][-1] / r["trace"][0],
        "variance": float(np.mean(r["metrics"]["component_variances"])),
        "mean": r["metrics"]["mean_mse_target"],
        "drift": abs(r["metrics"]["mode_weights"][0] - 0.5),
        "seconds": (r["seconds"]["sampling"] + r["seconds"]["training"]) / r["parameters"]["N"],
        "evaluations": r["parameters"]["N"] * r["parameters"]["S"],
    }
    for r in records
    if r["task"] == "tilting"
)
Ns = sorted(runs["N"].unique())
by_N = runs.groupby("N")


def plus_minus(values, digits=3):
    """Mean and its standard error."""
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


# %% [markdown]
# ## One picture
#
# How far is the tilted model from the exact target, in the units in which the network is trained? Two marks give the scale. The *distance to
# travel* is the error of a perfect base model that was never tilted. The *floor* is the error of the trained base network at noised samples of
# the target: tilting adds to that network, and nobody tells it what it got wrong there.

# %% tags=["hide-input"]
travel = score_errors(ExactDenoiser(base, schedule), target, schedule).eps_rmse
with plots.house_style() as plt:
    fig, ax = plt.subplots(figsize=(7.2, 3.6))
    positions = np.arange(len(Ns))
    for seed, group in runs.groupby("seed"):
        ax.plot(
            np.searchsorted(Ns, group.sort_values("N")["N"]),
            group.sort_values("N")["error"],
            color=plots.COLORS["learned"],
            linewidth=0.6,
            alpha=0.6,
            marker="o",
            markersize=3.5,
            label="one seed" if seed == runs["seed"].min() else None,
        )
    ax.plot(positions, by_N["error"].mean(), color=plots.INK, marker="_", markersize=22, linestyle="none", label="mean")
    floors = [m["eps_rmse_at_target"] for m in bases.values()]
    ax.axhspan(min(floors), max(floors), color=plots.COLORS["base"], alpha=0.25, label="the floor, range of the seeds")
    ax.axhline(travel, color=plots.COLORS["target"], linestyle="--", linewidth=1, label="distance to travel")
    ax.set(xticks=positions, xticklabels=[f"$N = {N}$" for N in Ns], ylabel=r"error of $\hat x_1$", yscale="log")
    fig.legend(loc="outside upper center", ncols=4)
plots.show(
    fig,
    "verdict",
    "Error of the tilted models for each N, one line per seed, between the floor below and the distance to travel above.",
)

# %% [markdown]
# ```{glue:figure} verdict
# :name: fig-verdict
#
# Error of the noise prediction at exact samples of the target after all tilts, one line per seed. Most of the way is covered, the floor is not
# reached, and more tilts do not help.
# ```

# %% tags=["hide-input"]
first, last = (runs[runs["N"] == N].set_index("seed") for N in (Ns[0], Ns[-1]))
difference = (last["error"] - first["error"]).dropna()
t_value = difference.mean() / (difference.std(ddof=1) / np.sqrt(len(difference)))
taylor = 0.0
points = target.noised(schedule, 0.7).sample(500, torch.Generator().manual_seed(0))
time = torch.tensor(0.7, dtype=torch.float64)
for N in Ns:
    path, score = tilt_path(base, reward, 1.0, int(N)), base.score(points, time, schedule)
    for k in range(int(N)):
        score = score + path(k).covariance(points, time, schedule, reward) / N
    taylor = max(taylor, float((score - target.score(points, time, schedule)).abs().max()))
assert taylor < 1e-11  # rounding: the first-order step is exact on this task
assert (runs["error"] > runs["floor"]).all()
assert (runs["error"] < travel).all()

claims = [
    (
        "Proposition 3.1: the tilted score is a reweighted mean",
        "**holds**",
        "by quadrature to 1e-8, for rewards with a jump too",
        "{doc}`s3_1_tilted_score`",
    ),
    (
        "Corollary 3.2: a small tilt is a covariance, up to $O(1/N^2)$",
        "**holds** per tilt",
        "over all tilts $O(1/N)$: slopes −2 and −1",
        "{doc}`s3_1_tilted_score`",
    ),
    (
        "Only forward evaluations of the reward are needed",
        "**holds**",
        ", ".join(f"{n:,}" for n in by_N["evaluations"].first()) + f" evaluations for N = {', '.join(map(str, Ns))}",
        "{doc}`s3_2_algorithm`",
    ),
    (
        "The cost is linear in $N$",
        "**holds**",
        "seconds per tilt: " + ", ".join(f"{s:.2f} (N = {N})" for N, s in by_N["seconds"].median().items()),
        "{doc}`s4_2_results`",
    ),
    (
        "A larger $N$ makes the first-order step more accurate",
        "**not on this task**",
        f"the step is exact for every N here, to {taylor:.0e}",
        "{doc}`s3_1_tilted_score`",
    ),
    (
        "More tilts give a better model",
        "**not seen**",
        f"error at N = {Ns[-1]} minus N = {Ns[0]}: {plus_minus(difference)} over {len(difference)} seeds (t = {t_value:.1f})",
        "{numref}`fig-verdict`",
    ),
    (
        "The learned score converges to the exact one",
        "**does not hold**",
        "from the first tilt to the last the score error is multiplied by "
        + ", ".join(f"{g:.1f} (N = {N})" for N, g in by_N["growth"].median().items()),
        "{doc}`s4_2_results`",
    ),
    (
        "The target distribution is recovered",
        "**in its means, not in its shape**",
        f"component variances {', '.join(f'{v:.2f}' for v in by_N['variance'].mean())} instead of "
        f"{float(target.covariances[0, 0, 0]):.2f}; mode weights off by {', '.join(f'{v:.2f}' for v in by_N['drift'].mean())}",
        "{doc}`s4_2_results`",
    ),
    (
        "Table 1",
        "**fits if it was scored against the base**",
        "no choice that the paper leaves open makes it fit the target",
        "{doc}`s4_2_choices`",
    ),
]
display(
    Markdown(
        pd.DataFrame(claims, columns=["claim", "verdict", "evidence", "where"]).to_markdown(
            index=False, disable_numparse=True
        )
    )
)

# %% [markdown]
# Standard errors are over seeds; a seed covers the base model as well.
#
# ## Why the models shrink
#
# Three causes were isolated on the way. Each pulls the same way, and each acts once per tilt, which is why a larger $N$ does not help.
#
# - The sampler of the experiment returns a little too little variance even with the exact score, and the next tilt learns from its samples:
#   {doc}`s2_1_2_reverse`.
# - The single-sample estimate is not centred. Where the teacher is not exactly the score of its own samples, a reward of mean $c$ moves the
#   model as a constant $c$ would, and this one pushes inward: {doc}`s3_2_algorithm`.
# - The target lies in the tail of the base, where the base network is least accurate: {doc}`s2_1_3_score`.
#
# ## What is open
#
# The paper names three questions: how to reduce the variance of the covariance estimate, how to choose $N$, and how the method combines with
# adapters on large models. Its task can answer none of them. The variance is small here because the reward is linear; $N$ has no optimum
# because the step is exact; and two dimensions are not many. A task that can answer needs a reward with third cumulants, modes of unequal
# fate, or a dimension in which a thousand samples are few. The comparison with the methods of {doc}`s2_2_fine_tuning` is open as well: the paper has
# none.
#
# ## Try this
#
# **If the step is exact, why not take one tilt?** Ask the formula, with everything exact.

# %% tags=["hide-cell"]
one = base.score(points, time, schedule) + base.covariance(points, time, schedule, reward)
gap = float((one - target.score(points, time, schedule)).abs().max())
assert gap < 1e-12
weights = torch.softmax(reward(base.sample(1000, torch.Generator().manual_seed(0))), 0)
display(
    Markdown(
        f"One tilt of size 1 with the exact covariance misses the exact score by {gap:.0e}. But the covariance has to be estimated where the target "
        f"lives, from samples of the base: of 1000 of them, reweighted by $e^r$, {float(1 / weights.square().sum()):.1f} are effective. "
        "Small tilts are not needed for the formula. They are needed so that the samples arrive before the tilt does."
    )
)
