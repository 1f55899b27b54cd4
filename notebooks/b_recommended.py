# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/ablation
#     - book/reference/paper
#     - book/reference/rivals
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
# # What we recommend
#
# The chapters before this one found what is wrong with Algorithm 2. Its errors add up from tilt to tilt, its covariance is noisy
# even at the solution, its sampler loses variance, its network forgets what it was not shown, and its base is at its worst where
# the target lives ({doc}`b_floor`). This chapter puts the remedies together.
#
# **You will see** a loss on whole chains of the sampler that needs only rewards, aims at the tilt of the base instead of the last
# model's, and has almost no noise at its solution; what it reaches on four tasks; what limits it; and what each change contributes.
#
# Where a small network can learn the value of a state, {doc}`b_value` has since come closer on nearly all of twenty tasks that nobody
# tuned on ({numref}`fig-untuned`). On a larger model, whose own weights know what a new network would have to learn, it has not
# ({doc}`d_molecules`).

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points; the records are the same in both profiles
reference = "../book/reference/ablation"  # the committed runs
paper_runs = "../book/reference/paper"  # those of the paper's grid
rivals_runs = "../book/reference/rivals"  # those of the comparison

# %%
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from itlib import figures
from itlib.beyond.chains import chain_steps, draw_chains
from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments import paper, rivals
from itlib.experiments.ablation import ADDED, HARDER, REMOVED, Parameters, cell_of
from itlib.experiments.problems import problem as problem_named
from itlib.experiments.records import load_records
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig

torch.set_num_threads(1)
full = profile == "full"
schedule = Cosine()


# %% tags=["hide-input"]
def of_components(record):
    """Largest error of a weight, and largest relative error of a variance, among components of weight above 0.05."""
    target = problem_named(record.parameters.problem).target
    large = target.weights > 0.05
    weights = torch.tensor(record["mode_weights"])
    found = torch.tensor(record["component_variances"], dtype=torch.float64)
    exact = torch.stack([c.diagonal() for c in target.covariances])
    return {
        "weight_error": float((weights - target.weights).abs()[large].max()),
        "variance_error": float((found / exact - 1).abs()[large].max()),
    }


# %% tags=["hide-input"]
rows = []
for record in load_records(Path(reference), Parameters):
    metrics = {k: v for k, v in record.metrics.items() if not isinstance(v, list)}
    known = record.parameters
    rows.append(
        {"task": known.problem, "cell": cell_of(known), "seed": known.seed, "trace": record.trace}
        | metrics
        | of_components(record)
        | {
            "ratio": metrics["eps_rmse"] / metrics["floor"] if metrics["floor"] > 1e-6 else np.nan,
            "nll_gap": abs(metrics["flow_nll"] - metrics["entropy"]),
            "seconds": record.seconds["sampling"] + record.seconds["training"],
        }
    )

# %%
runs = pd.DataFrame(rows).set_index(["task", "cell", "seed"]).sort_index()
of_paper = load_records(Path(paper_runs), paper.Parameters)


def found(which, cell, key="eps_rmse"):
    """One figure of all seeds of a cell, (seeds,)."""
    return runs.loc[(which, cell), key].to_numpy(float)


def median(values, form=".3f"):
    """Median, and the worst seed in brackets."""
    return f"{np.median(values):{form}} ({np.max(values):{form}})"


# %% [markdown]
# ## The weight of a chain
#
# Draw a chain of states with a tilted model. How likely would the base have drawn the same chain? That ratio, times $e^{sr}$ at its end, is the chain's weight for strength $s$. It
# is known exactly, because every step of Algorithm 1 is Gaussian: $x_{t'} = a\, x_t + b\, \hat x_1(x_t, t) + \eta_{t'}\, z$. Let $\theta$ be a corrected base, $u_t = \tfrac{b}{\eta_{t'}} (\hat x_1^\theta - \hat x_1^{\text{base}})(x_t, t)$ its
# correction in standard deviations of the step, and $z_t$ the noises of a chain that $\theta$ drew. The log weight is
#
# $$ \log W_s \;=\; s\, r(x_{t_0}) + \log\frac{p_{\text{base}}}{p_\theta} \;=\; s\, r(x_{t_0}) + \tfrac12 \sum_t \big( |z_t|^2 - |z_t + u_t|^2 \big) . $$ (eq-chain-weight)
#
# Under these weights chains of $\theta$ become chains of the base, tilted by $e^{sr}$. {doc}`b_estimators` uses them to correct samples. They also say whether there is anything to correct: **all
# weights are equal if and only if the chains are those of the tilt.** (With DDPM's noise, `eta=1`. With less, the end of a chain remembers its start, whose law no correction moves.) So let a tilt minimise
#
# $$ \operatorname{Var}\big[ \log W_s \big] $$ (eq-log-variance)
#
# over the correction, for chains that are held fixed. This is the log-variance loss of {cite:t}`nusken2021solving`, whose gradient {cite:t}`richter2020vargrad` call VarGrad. For a diffusion model and its tilt it is *relative trajectory balance* {cite:p}`venkatraman2024amortizing` with the mean over the batch in the place of a learned $\log Z$; the book's part is small tilts, step sizes and the polishing rounds. It is a function of rewards, not of their gradients.
#
# Here it is with exact denoisers: the base of the paper, its tilt, and the chains that the tilt draws.


# %%
class Tilt:
    """What `draw_chains` asks of a student, in closed form."""

    def __init__(self, problem):
        target = ExactNoisePredictor(problem.target, schedule)
        self.base = ExactNoisePredictor(problem.base, schedule)
        self.correction = lambda x, t: target(x, t) - self.base(x, t)


# %%
def chains(problem, K, n, seed=0, eta=1.0):
    """Chains of the exact tilt in K steps, and their log weights, (n,)."""
    model, generator = Tilt(problem), torch.Generator().manual_seed(seed)
    steps = chain_steps(model.base, schedule, n, 2, steps=K, eta=eta, generator=generator)
    paths = draw_chains(model, steps, n, 2, generator=generator)
    return paths, problem.reward(paths.x_0) + paths.log_ratio(paths.correction)


# %%
n, counts = (4000, (12, 25, 50, 100, 200)) if full else (500, (12, 25, 50))
names, spread, alone = ("paper", *HARDER), {}, {}
for name in names:
    task = problem_named(name)
    spread[name] = [float(chains(task, K, n)[1].double().var()) for K in counts]
    exact = task.target.sample(20_000, torch.Generator().manual_seed(0))
    alone[name] = float(task.reward(exact).var())

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(5.1, 3.5))
    for name, color, marker in zip(names, figures.SERIES, figures.MARKERS, strict=False):
        ax.plot(counts, spread[name], color=color, marker=marker, label=name)
        ax.plot([counts[0], counts[-1]], [alone[name]] * 2, color=color, linestyle=":", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="steps of a chain", ylabel=r"variance of $\log W_1$")
    ax.set(xticks=counts, xticklabels=counts)
    ax.minorticks_off()
    ax.legend(ncols=2)
figures.show(
    fig,
    "chain-weights",
    "Variance of the log weights of chains of the exact tilt, falling in proportion to the number of steps on three tasks and nearly zero on the paper's, far below dotted lines for the variance of the reward.",
)

# %% tags=["hide-input"]
assert all(spread[name][-1] < alone[name] for name in names) or not full
figures.glue(
    steps=counts[-1],
    left=", ".join(f"{spread[name][-1]:.2g} ({name})" for name in names),
    rewarded=", ".join(f"{alone[name]:.2g}" for name in names),
    many=f"{n:,}",
)

# %% [markdown]
# ```{glue:figure} chain-weights
# :name: fig-chain-weights
#
# At the solution chains agree: variance of their log weights, drawn and weighted with exact denoisers. Dotted: the variance of $r$ under the target, which an estimate of a covariance has to average away however good the model is.
# ```
#
# With {glue:text}`steps` steps the log weights have variance {glue:text}`left`; the reward has {glue:text}`rewarded` ({glue:text}`many`
# chains). What is left falls in proportion to the length of a step: a step of the tilted chain is Gaussian only in the limit. On the paper's task it is Gaussian throughout.
#
# ```{admonition} Is this still iterative tilting?
# :class: note
# The loop is: $N$ small tilts, samples of the current model, one forward evaluation of the reward for each, no gradient of it. What is gone is the regression on a covariance. And the
# target of tilt $k$ is no longer "the last model, tilted by $\delta$" but "the base, tilted by $s_k$". The small steps are there for one reason only: so that chains of the last model still carry the next one.
# Among the rivals ({doc}`rivals_methods`), DPOK with future KL is closest: it follows the gradient of a divergence of chains, by policy gradients.
# ```
#
# ## What changes
#
# Each setting in the paper, what we recommend, and why.

# %% tags=["hide-input"]
WHY = {
    "learner": "earlier errors are corrected, and the noise vanishes at the solution",
    "student": "a small correction of the frozen base, in whitened coordinates and bounded far out",
    "variance": "samples keep their variance: {doc}`b_samplers`",
    "target_ess": "steps from the rewards, which keep this share of the samples effective: {doc}`b_how_many_tilts`",
    "polish_rounds": "tilts at the end that tilt no further and only correct what is left",
    "decay": "the learning rate falls to zero in every tilt",
    "lr": "for a network of a few thousand weights",
    "S": "fewer tilts, so more chains in each",
    "J": "enough once the variance is kept",
    "B": "chains, each of $J$ states",
    "E": "a single pass",
    "epoch": "over all chains of the tilt",
}
old, new = asdict(RecommendedConfig.like(TiltingConfig())), asdict(RecommendedConfig())
changed = [key for key in WHY if old[key] != new[key]]
assert {key for key in old if old[key] != new[key]} <= set(WHY)
figures.table([{"": f"`{key}`", "paper → ours": f"{old[key]} → **{new[key]}**", "why": WHY[key]} for key in changed])

# %% [markdown]
# The base changes too. `resumable_base(..., kind="skip")` trains a smaller network as a correction of the Gaussian that fits its data, on the same 30,000 samples; {doc}`b_floor` says what that builds in.
# All of this is what `recommended_tilting(base, reward, schedule)` of {py:mod}`itlib.beyond.recommended` does if it is not told otherwise; `iterative_tilting(base, reward, schedule)` is Algorithm 2.
#
# ## What comes out
#
# We set the bar before we ran it: an error of $\hat x_1$ at most 1.2 times the *floor*, the error of the base network at noised samples of the target; squared error of the mean at most 0.005; weights of the modes
# right to 0.01; the likelihood of exact samples within 0.02 nats of the entropy; variances within 3 per cent. In bold what holds for the median seed, in brackets the worst.
#
# The knobs were chosen by hand, on these tasks and with bases of seeds 0 to 2, which are among the five below; seeds 3 and 4 were not looked at before. So read the rows as what can be reached here, not as a test on tasks
# that nobody had seen.

# %% tags=["hide-input"]
BARS = {
    "ratio": ("error / floor", 1.2, ".2f"),
    "mean_mse_target": ("mean", 5e-3, ".4f"),
    "weight_error": ("weights", 0.01, ".3f"),
    "nll_gap": ("likelihood", 0.02, ".3f"),
    "variance_error": ("variances", 0.03, ".3f"),
}

# %% tags=["hide-input"]
table, met = [], []
for which in names:
    cells = sorted(c for c in runs.loc[which].index.unique("cell") if c.startswith("main_N"))
    for cell in ("main_chosen", *cells):
        chosen = "–".join(f"{v:.0f}" for v in sorted({*found(which, cell, "tilts")})) + " chosen"
        row = {"task, tilts": f"{which}, " + (chosen if cell == "main_chosen" else f"{int(cell[6:])}")}
        row["error"] = f"{np.median(found(which, cell, 'eps_rmse')):.3f}"
        for key, (label, bar, form) in BARS.items():
            values = found(which, cell, key)
            reached = np.median(values) <= bar
            met.append({"cell": cell, "task": which, "bar": label, "met": reached})
            row[label] = f"**{np.median(values):{form}}** ({values.max():{form}})" if reached else median(values, form)
        table.append(row)
met, seeds = pd.DataFrame(met), len(found("paper", "main_chosen"))
figures.table(table)
by = met.groupby("bar", sort=False)["met"]
figures.glue(seeds=seeds, rows=len(table), hits=", ".join(f"{label}: {int(hits.sum())}" for label, hits in by))

# %% [markdown]
# {glue:text}`seeds` seeds, each with its own base. Of {glue:text}`rows` rows the median seed meets the bar in: {glue:text}`hits`.

# %% tags=["hide-input"]
MARKS = {
    "plus_paper": ("Algorithm 2, $N = 20$", "learned", "o", -0.2),
    "main_N020": ("$N = 20$", "target", "D", 0.0),
    "main_chosen": ("chosen steps", "target", "s", 0.2),
    "base_exact": ("exact base", "base", "^", 0.35),
}


def marks(ax, x, values, kind, marker, label=None):
    """A mark for each seed."""
    ax.plot(np.full(len(values), x), values, marker, color=figures.COLORS[kind], alpha=0.8, label=label)


# %% tags=["hide-input"]
own_base = ~runs.index.get_level_values("cell").str.contains("plus|exact|no-skip|wide|small")
floor = np.median(runs[own_base].loc["paper", "floor"])
paper_grid = {N: [r["eps_rmse"] for r in of_paper if r.parameters.N == N] for N in (20, 50, 100, 200)}
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.6), sharey=True, width_ratios=(1.2, 1))
    for i, (N, values) in enumerate(paper_grid.items()):
        marks(axes[0], i - 0.12, values, "learned", "o", None if i else "Algorithm 2")
        marks(axes[0], i + 0.12, found("paper", f"main_N{N:03d}"), "target", "s", None if i else "recommended")
    marks(axes[0], 4.12, found("paper", "main_chosen"), "target", "s")
    for i, which in enumerate(HARDER):
        for cell, (label, kind, marker, offset) in MARKS.items():
            values = found(which, cell) if (which, cell) in runs.index.droplevel("seed") else []
            marks(axes[1], i + offset, values, kind, marker, None if i else label)
    axes[0].set(xticks=range(5), xticklabels=[*paper_grid, "chosen"], xlabel="number of tilts $N$", yscale="log")
    axes[0].set(ylabel=r"error of $\hat x_1$", title="the paper's task")
    axes[1].set(xticks=range(len(HARDER)), xticklabels=HARDER, title="harder tilts")
    for ax in axes:
        ax.axhline(floor, color=figures.INK, linestyle="--", linewidth=0.8)
        ax.legend(fontsize=8.5)
figures.show(
    fig,
    "recommended",
    "Error of the noise prediction for each seed. On the paper's task the recommended runs lie at the floor of the base for every number of tilts, several times below Algorithm 2; on harder tilts they lie between one and four times that floor, and with an exact base lower but for one seed.",
)

# %% [markdown]
# ```{glue:figure} recommended
# :name: fig-recommended
#
# Error of $\hat x_1$ at noised samples of the target, a mark per seed. Dashed: the floor on the paper's task. On the paper's task the number of tilts no longer matters, and little is left above the floor.
# ```

# %% [markdown]
# ## What bounds it
#
# The limit can be the base or the training. To tell, start the same tilts from the *exact* base: what is left is the error of the
# method. Or use every chain four times instead of once: that needs no further sample or reward, but more training than
# the comparison allows.

# %% tags=["hide-input"]
COLUMNS = {
    "main_chosen": "recommended",
    "four-passes": "four passes",
    "base_exact": "exact base",
    "four-passes-exact": "exact base, four passes",
}


def compare(key, form):
    """A table of one figure: tasks by what bounds them."""
    return pd.DataFrame(
        [
            {"task": which} | {label: median(found(which, cell, key), form) for cell, label in COLUMNS.items()}
            for which in names
        ]
    )


errors = compare("eps_rmse", ".3f")
errors.insert(1, "floor", [median(found(which, "main_chosen", "floor")) for which in names])
figures.table(errors)

# %% [markdown]
# That was the error of $\hat x_1$, median over seeds with the worst in brackets; and this is the error of the mode weights.

# %% tags=["hide-input"]
figures.table(compare("weight_error", ".4f"))
centre = {(w, c): np.median(found(w, c)) for w in names for c in COLUMNS}
share = {which: (centre[which, "base_exact"] / centre[which, "main_chosen"]) ** 2 for which in names}
gained = {which: centre[which, "four-passes-exact"] / centre[which, "base_exact"] for which in names}
right = [which for which in names if np.median(found(which, "four-passes-exact", "weight_error")) <= 0.01]
close = [which for which in names if np.median(found(which, "four-passes", "ratio")) <= 1.2]
harder = [gained[which] for which in HARDER]
assert max(harder) < 0.9 < gained["paper"]  # short of training on the harder tasks only
assert len(right) == len(names)
figures.glue(
    share=", ".join(f"{100 * value:.0f} ({which})" for which, value in share.items()),
    gained=", ".join(f"{value:.2f} ({which})" for which, value in gained.items()),
    close=f"{len(close)} of {len(names)}",
    passes=len(found("paper", "four-passes")),
)

# %% [markdown]
# Share of the squared error that remains with an exact base, in per cent: {glue:text}`share`. Four passes multiply the
# error from the exact base by {glue:text}`gained`. With both, the weights are right to 0.01 on every task. With four passes from the
# trained base the error is within 1.2 floors on {glue:text}`close` tasks. (Four passes: {glue:text}`passes` seeds.)
#
# So on the harder tasks the method was short of training. Errors of the base remain: the perfect tilt of a wrong base is wrong in its mode
# weights and tails, too, and the floor shows only the local part of that.
#
# We also tried, by hand, on single seeds and without keeping records: fewer steps of a chain and more passes for the same training, minibatches of 8 or 32 chains, wider and deeper corrections, averages of several, a Gauss–Newton
# step, and a regression with the weights of chains. None lowered the error enough to see; some raised it.
#
# ## What each change contributes
#
# From the top: the recommended configuration with one thing taken away. Below: Algorithm 2 at $N = 20$ with one thing added.

# %% tags=["hide-input"]
LABELS = {
    "main_chosen": "recommended",
    "no-skip": "the paper's base",
    "no-paths": "regression (implicit step) on 3,000 minibatches",
    "no-settling": "no polishing rounds",
    "no-decay": "constant learning rate",
    "no-rule": "equal steps",
    "plus_paper": "Algorithm 2",
    "plus_skip": "+ base as a correction of a Gaussian",
    "plus_analytic": "+ variance kept",
    "plus_implicit": "+ implicit step",
    "plus_decay": "+ decaying rate",
    "plus_adapter": "+ correction of a frozen base",
    "plus_paths": "+ the same, learned on chains",
}
assert set(LABELS) == {"main_chosen", *REMOVED, *(f"plus_{name}" for name in ADDED)}

# %% tags=["hide-input"]
shown = ("paper", "one-mode", "quadratic")
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(9, 4.6), sharex=True, sharey=True)
    for ax, which in zip(axes, shown, strict=True):
        for y, cell in enumerate(LABELS):
            if (which, cell) not in runs.index.droplevel("seed"):
                continue
            values, color = found(which, cell), figures.COLORS["learned" if cell.startswith("plus") else "target"]
            ax.plot(values, np.full(len(values), y), "o", color=color, markersize=4.5, alpha=0.75)
            ax.plot([np.median(values)] * 2, [y - 0.33, y + 0.33], color=color, linewidth=2.2)
        ax.axhline(5.5, color=figures.INK, linewidth=0.6)
        ax.axvline(np.median(found(which, "main_chosen", "floor")), color=figures.INK, linestyle="--", linewidth=0.8)
        ax.set(xscale="log", xlabel=r"error of $\hat x_1$", title=which)
    axes[0].set(yticks=range(len(LABELS)), yticklabels=LABELS.values(), ylim=(len(LABELS) - 0.4, -0.6))
figures.show(
    fig,
    "ablation",
    "Errors on three tasks, a mark per seed, for the recommended configuration with one change taken away and for Algorithm 2 with one added. Taking away the base on a Gaussian or the loss on chains costs most; equal steps and no polishing rounds cost nothing.",
)

# %% [markdown]
# ```{glue:figure} ablation
# :name: fig-ablation
#
# One change at a time; bars are medians, dashed the floor of the recommended base. For the quadratic task there are no runs of the lower half.
# ```


# %% tags=["hide-input"]
def times(which, cell):
    """By how much a cell multiplies the error, seed by seed: the same seed has the same data."""
    return (runs.loc[(which, cell), "eps_rmse"] / runs.loc[(which, "main_chosen"), "eps_rmse"]).dropna()


def ranged(ratios):
    """A median of few ratios, and all that it stands for."""
    return f"{ratios.median():.1f}, {ratios.min():.1f} to {ratios.max():.1f}"


# %% tags=["hide-input"]
def against_paper(cell):
    """How many times the error of Algorithm 2 a cell has, on the two tasks."""
    return " and ".join(
        f"{np.median(found(w, cell)) / np.median(found(w, 'plus_paper')):.1f}" for w in ("paper", "one-mode")
    )


# %% tags=["hide-input"]
narrow, kept = (found("paper", f"plus_{name}", "sliced_w2") for name in ("paper", "analytic"))
assert (kept > narrow).all()
least = min(len(found(which, name)) for which in shown for name in REMOVED)
added = min(len(found(which, f"plus_{name}")) for which in ("paper", "one-mode") for name in ADDED)
idle = [LABELS[name] for name in REMOVED if max(times(which, name).median() for which in shown) < 1.1]
assert idle == ["no polishing rounds", "equal steps"]
harm = [np.median(found(w, "plus_skip")) / np.median(found(w, "plus_paper")) for w in ("paper", "one-mode")]
assert min(harm) > 1.1
figures.table([{"without": label} | {w: ranged(times(w, c)) for w in shown} for c, label in LABELS.items() if c in REMOVED])
figures.glue(
    least=least,
    added=added,
    skip=against_paper("plus_skip"),
    adapter=against_paper("plus_adapter"),
    narrow=f"{np.median(narrow):.2f}",
    kept=f"{np.median(kept):.2f}",
)

# %% [markdown]
# Factors by which the error grows, each seed against itself: median, and range over {glue:text}`least` seeds or more. Without polishing rounds, or
# with equal steps, the error changes by less than a tenth: these two are there for safety.
#
# Added alone to Algorithm 2 ({glue:text}`added` seeds or more), the base on a Gaussian does harm: {glue:text}`skip` times the error on the paper's
# task and `one-mode`. Its few weights all move in every tilt; beyond that we do not know why. The correction of a frozen base alone has
# {glue:text}`adapter` times the error. It pays together with the loss on chains.
#
# **A warning.** A sampler that keeps its variance does harm in Algorithm 2 itself. On the paper's task the sliced Wasserstein distance
# of the samples from the target grows from {glue:text}`narrow` to {glue:text}`kept`, and it grows on every seed. Keep the variance with chains, or
# with exact covariances.
#
# ## What it costs


# %% tags=["hide-input"]
def cost(label, frame, seconds):
    values = {k: np.median(frame[k]) for k in ("rewards", "network", "sample_steps")}
    return {
        "": label,
        "rewards": f"{values['rewards']:,.0f}",
        "evaluations to sample": f"{values['network'] / 1e6:.1f} million",
        "sample-steps of training": f"{values['sample_steps'] / 1e6:.1f} million",
        "processor seconds": f"{np.median(seconds):.0f}",
    }


# %% tags=["hide-input"]
fifty = [r for r in of_paper if r.parameters.N == 50]
knobs = TiltingConfig()
paper_cost = pd.DataFrame(
    {"rewards": [50 * knobs.S], "network": [50 * knobs.S * knobs.J], "sample_steps": [50 * knobs.E * knobs.B]}
)
table = [
    cost("Algorithm 2, $N = 50$", paper_cost, [r.seconds["sampling"] + r.seconds["training"] for r in fifty]),
    cost("the same base, recommended", runs.loc[("paper", "no-skip")], found("paper", "no-skip", "seconds")),
    cost("recommended", runs.loc[("paper", "main_chosen")], found("paper", "main_chosen", "seconds")),
]
figures.table(table)

# %% tags=["hide-input"]
own = runs.loc[("paper", "no-skip")]
at_fifty = {r.parameters.seed: r["eps_rmse"] for r in fifty}
factors = [at_fifty[seed] / error for seed, error in own["eps_rmse"].items()]  # of the same seed, so of the same base
new_base = np.mean([at_fifty[seed] / found("paper", "main_chosen")[i] for i, seed in enumerate(own.index)])
figures.glue(
    low=f"{min(factors):.1f}",
    high=f"{max(factors):.1f}",
    paired=len(factors),
    new_base=f"{new_base:.1f}",
    before=f"{11_000 * RecommendedConfig.J / 1e6:.1f}",
)
assert new_base > max(factors)

# %% [markdown]
# On the *same* base network, the recommended algorithm divides the error of Algorithm 2 at $N = 50$ by {glue:text}`low` to {glue:text}`high`
# ({glue:text}`paired` seeds, each against itself); with its own base, by {glue:text}`new_base` on average. Most of the gain comes from the base, and only together with the loss on chains: the base alone does harm (above).
#
# Medians over seeds, without the training of the base; seconds were taken on busy machines and at different times. The table leaves
# out what a recommended run draws before its first tilt, 1,000 samples for coordinates and 10,000 for the noise of its steps:
# {glue:text}`before` million evaluations more. A training step is cheaper than it looks: only the small correction is differentiated, and
# what the base says along a chain is computed once.

# %% tags=["remove-cell"]
distances = pd.DataFrame(
    {"task": r.parameters.problem, "method": r.parameters.method, "distance": r["sliced_w2"]}
    for r in load_records(Path(rivals_runs), rivals.Parameters)
    if r.parameters.method in ("value", "recommended")
)
own, value = (distances[distances["method"] == name].groupby("task")["distance"].mean() for name in ("recommended", "value"))
assert set(own.index) == set(value.index) == {*rivals.MAIN, *rivals.OTHER}
assert list(own.index[own < value]) == ["paper"]
figures.glue(
    ring=f"{own['eight']:.2f}",
    ring_value=f"{value['eight']:.2f}",
    grid=f"{own['nine']:.2f}",
    grid_value=f"{value['nine']:.2f}",
)

# %% [markdown]
# ## What remains
#
# - The variances: the bar of 3 per cent is missed in nearly every row above, by the median seed. A chain of 100 steps tilts what its base draws, and the variance that is put back is an average over the batch.
# - The mode weights on the harder tilts. A mode's weight is decided early in a chain, where the correction is small; the loss sees it only through a small part of its variance and is slow there. {doc}`b_value` learns them directly: under one budget ({doc}`rivals_comparison`; two dimensions, three seeds) it ends closer on five of six tasks, at a mean distance of {glue:text}`ring_value` instead of {glue:text}`ring` on the ring and {glue:text}`grid_value` instead of {glue:text}`grid` on the grid, though not on the paper's task.
# - The base. Everything above takes its law for the truth ({doc}`b_floor`).
# - Chains need noise, a frozen base and memory for $S \times J$ states. A deterministic sampler has no weights.
# - Four tasks in two dimensions. {doc}`d_digits` takes the same step in 64, with other students; {doc}`rivals_comparison` puts it among its rivals, on everyone's network.
#
# ## Try this
#
# - *Derive.* An estimate of a covariance is noisy even where the model is right. Show that the gradient of {eq}`eq-log-variance` is not.
#   (Hint: the gradient of a variance is twice a covariance.)
#
# ```{dropdown} Answer
# The chains are held fixed, so $\nabla_\theta \operatorname{Var}[\log W] = 2 \operatorname{Cov}[\log W, \nabla_\theta \log W]$. A batch estimates it by the mean of
# $2\,(\log W_i - \overline{\log W})\,\nabla_\theta \log W_i$. At the solution all $\log W_i$ are equal, so every term is zero, not only their mean.
# ```
#
# - *Predict, then run.* Draw the chains with `eta=0.5`. Does the variance of their log weights still fall like one over the number of steps?

# %% tags=["hide-cell"]
half = [float(chains(problem_named("one-mode"), K, 500, eta=0.5)[1].double().var()) for K in (12, 50)]
print(f"No: {half[0]:.1f} with 12 steps, {half[1]:.1f} with 50. With little noise the end of a chain remembers its start,")
print("and no correction moves the law of the start.")
assert half[1] > half[0] / 4

# %% [markdown]
# - *Predict.* `itlib.experiments.scaling.jump` is a reward with a jump. Does {eq}`eq-log-variance` mind?
#
# ```{dropdown} Answer
# No. The reward enters as one number a chain, and nothing is differentiated but the correction. The jump makes the *solution* harder: near $t = 0$ the correction
# is steep where the reward jumps, and a small network follows it only in part. {doc}`b_scaling` measures how much that costs.
# ```
