# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/rivals
#     - book/reference/tuning
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
# # The rivals on the same task
#
# The paper names its rivals and compares with none. Here they all start from the same network, aim at the same distribution, which
# is known exactly, and spend the same budget.
#
# **You will see** samples of every method side by side, their error against what they spent, in evaluations of the reward and in
# seconds, what happens on tasks that are harder than the paper's, and a table to decide from.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # the records are the same in both profiles
rivals = "../book/reference/rivals"  # the comparison
tuning = "../book/reference/tuning"  # the runs that chose the learning rates

# %% tags=["remove-cell"]
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import Markdown, display
from matplotlib.colors import LogNorm

from itlib import figures
from itlib.baselines.guidance import guided, plug_in_value
from itlib.experiments.problems import PROBLEMS
from itlib.experiments.records import load_records
from itlib.experiments.rivals import BEST, FEWER, MAIN, METHODS, OTHER, RATES, REFERENCES, WORK, Parameters
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import sliced_wasserstein
from itlib.sampling import sample
from itlib.schedules import Cosine

RUN_AWAY = 20.0  # a distance beyond ten times that of the base: the samples are nowhere near
records = load_records(Path(rivals), Parameters)
runs = pd.DataFrame([r.row() | {"record": i} for i, r in enumerate(records)]).rename(columns={"problem": "task"})
runs["seconds"] = [sum(r.seconds.values()) for r in records]
runs["failed"] = [r.failure is not None for r in records]
runs["N"] = runs["N"].fillna(20).astype(int)  # methods that do not tilt have no N
whole = runs[runs["N"] == 20]
n_seeds = runs.groupby(["task", "method", "N"])["seed"].nunique().min()
TITLES = {name: method.title for name, method in METHODS.items()}
TASK_TITLES = {
    "paper": "the paper's",
    "one-mode": "one mode",
    "unequal": "unequal weights",
    "quadratic": "quadratic",
    "eight": "eight Gaussians",
    "nine": "nine Gaussians",
}

# %% [markdown]
# ## The rules
#
# One unit of work is one evaluation of a denoiser on one sample; an evaluation that is differentiated counts three. Every method
# that trains stops when it has spent what Algorithm 2 spends with the paper's settings and $N = 20$. The methods that train
# nothing spend about as much on their samples (guidance by the exact value a quarter), so their sets differ in size: 20,000 for importance resampling and SMC, a third of that for twisted SMC, 1,250 for best of 16, and 5,000 of every model. A small set is a little farther from exact samples by its size alone. Evaluations of the reward, and seconds, follow from that; they are reported.
#
# *Recommended here* is what this book ends with ({doc}`b_recommended`), cut to these rules: its steps on chains, chosen from the rewards, train all weights of the same network
# as everyone's, from the same base, with fewer and shorter chains. Its other knobs were found by hand on four of these tasks, with bases of the same seeds as here; those of the rivals are the defaults of their sources, and were not searched.
#
# Algorithm 2 and its relatives draw with 200 steps, as the paper does. The policy and reward gradients run chains of 50 steps, and what they aim at is the tilt of a 50-step sampler, which is narrower. *Recommended here* has 50 steps too, but keeps the variance.

# %% tags=["remove-input"]
law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), 0.5))  # x_2, along which the reward is 4 x_2
lost = {}
for J, variance in ((200, "ddpm"), (50, "ddpm"), (50, "analytic")):
    drawn = sample(
        ExactNoisePredictor(law, Cosine()), Cosine(), 100_000, 1, steps=J, variance=variance,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    lost[J, variance] = 4 * 4 * (float(drawn.var()) - 0.5)  # tilted by 4 x_2, a Gaussian of variance v moves by 4 v
few, many, kept = (f"{gap:+z.1f}".replace("-", "−") for gap in (lost[50, "ddpm"], lost[200, "ddpm"], lost[50, "analytic"]))
display(
    Markdown(
        f"With the exact base, on the paper's task, the tilt of what the sampler draws differs from the target in its mean reward by {few} for 50 steps, {many} for 200, and {kept} for 50 that keep the variance."
    )
)

# %% [markdown]
# Each method's learning rate was chosen by one rule: of three values, the one whose final samples are closest to the target, on
# the paper's task, with a seed that is used for nothing else.

# %% tags=["hide-input"]
tried = pd.DataFrame(
    [
        {
            "method": TITLES[r.parameters.method],
            "rate": r.parameters.lr,
            "distance": np.inf if r.failure else r["sliced_w2"],
        }
        for r in load_records(Path(tuning), Parameters)
    ]
).pivot(index="method", columns="rate", values="distance")
tried = tried.reindex([m.title for m in METHODS.values() if m.train])
best = tried.fillna(np.inf).idxmin(axis=1)  # the smallest rate, if no run ended
shown = tried.map(lambda v: f"{v:.2f}" if v < RUN_AWAY else "ran away")
for title, rate in best.items():
    shown.loc[title, rate] = f"**{shown.loc[title, rate]}**"
shown.columns = [f"{rate:g}" for rate in shown.columns]
display(
    Markdown(
        f"Budget: {WORK['full'] / 1e6:.1f} million evaluations. Seeds: {n_seeds} for each method and task, a base network of its own for "
        f"each. Distance to the target after tuning runs at the rates {', '.join(f'{r:g}' for r in RATES)} (the chosen one in bold):"
    )
)
display(Markdown(shown.to_markdown()))

# %% tags=["remove-input"]
if n_seeds < 3:
    display(
        Markdown(
            f"**Read with care.** There {'is one seed' if n_seeds == 1 else f'are {n_seeds} seeds'} so far. {{doc}}`s4_2_results` shows how far one method's "
            "seeds lie apart; smaller differences between methods mean nothing."
        )
    )

# %% [markdown]
# *Ran away*: the samples left the region of base and target altogether, or were no longer finite. *Distance* is the sliced Wasserstein distance of order 2 to exact samples, here and below.
#
# ## What they sample

# %% tags=["hide-input"]
xs, ys = np.linspace(-5, 5.5, 120), np.linspace(-1.5, 4.8, 72)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def gallery(task):
    """Samples of every method, seed 0, over contours of the exact target."""
    density = xs, ys, PROBLEMS[task].target.log_prob(plane).reshape(len(ys), len(xs)).numpy()
    found = {r.parameters.method: np.array(r.samples) for r in records if r.samples and r.parameters.problem == task}
    shown = [name for name in METHODS if name in set(whole[whole["task"] == task]["method"])]
    rows = -(-len(shown) // 4)
    with figures.house_style() as plt:
        fig, axes = plt.subplots(rows, 4, figsize=(7.2, 1.35 * rows), sharex=True, sharey=True)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, name in zip(axes.flat, shown, strict=False):
            color = figures.COLORS["base"] if METHODS[name].gradient else figures.COLORS["learned"]
            own = found.get(name, np.empty((0, 2)))
            inside = own[(own[:, 0] > xs[0]) & (own[:, 0] < xs[-1]) & (own[:, 1] > ys[0]) & (own[:, 1] < ys[-1])]
            if len(inside) < 0.1 * len(own) or not len(own):
                ax.text(0.25, -1.0, "ran away", ha="center")
            figures.samples(ax, own, density=density, color=color, limits=(xs[0], xs[-1], ys[0], ys[-1]))
            ax.set_title(TITLES[name] + (" ∇" if METHODS[name].gradient else ""), fontsize=9)
    return fig


figures.show(
    gallery("paper"),
    "gallery-paper",
    "Small panels, one per method: samples over contours of the two modes of the paper's target. Some methods cover both modes, "
    "some have collapsed or lie too low.",
)

# %% [markdown]
# ```{glue:figure} gallery-paper
#
# The paper's task, one seed, a few hundred samples of each method. Contours: the exact target. Blue and ∇: the method needs the
# gradient of the reward; orange: it only evaluates it.
# ```

# %% tags=["hide-input"]
figures.show(
    gallery("one-mode"),
    "gallery-one-mode",
    "The same panels on the task whose target has nearly all of its weight in the right mode.",
)

# %% [markdown]
# ```{glue:figure} gallery-one-mode
#
# The task `one-mode`: the tilt moves nearly all of the weight into the right mode, so a method that cannot move mass between modes
# is seen at once.
# ```
#
# ## What it costs
#
# First the reward: the reason to tilt without gradients is that the reward may be slow, or a black box.

# %% tags=["hide-input"]
LINES = {
    name: (figures.SERIES[i % len(figures.SERIES)], "os^Dvp<>X*Phd"[i])
    for group in (False, True)
    for i, name in enumerate(n for n, m in METHODS.items() if m.gradient == group)
}


def against(quantity, label, task):
    """Distance against a cost, median over seeds: curves of methods that train, points of those that draw."""
    with figures.house_style() as plt:
        fig, axes = plt.subplots(1, 2, figsize=(7.2, 4.6), sharey=True)
        for ax, gradient in zip(axes, (False, True), strict=True):
            for name, method in METHODS.items():
                own = whole[(whole["task"] == task) & (whole["method"] == name)]
                if method.gradient != gradient or own.empty or name == "exact":
                    continue
                color, marker = LINES[name]
                if method.train:
                    curves = [records[i].curve for i in own["record"]]
                    length = min(len(c["sliced_w2"]) for c in curves)
                    cost = np.median([quantity(c)[:length] for c in curves], 0)
                    distance = np.median([c["sliced_w2"][:length] for c in curves], 0)
                else:
                    cost, distance = [np.median(quantity(own))], [np.median(own["sliced_w2"])]
                ax.plot(
                    cost, distance, color=color, marker=marker, markevery=[-1], linewidth=1.2, label=TITLES[name],
                    linestyle="-" if method.tilts or not method.train else "--",
                )  # fmt: skip
            ax.set(
                xscale="log",
                yscale="log",
                ylim=(0.03, 20),
                xlabel=label,
                title="needs the gradient" if gradient else "evaluations only",
            )
            ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        axes[0].set_ylabel("distance to the target")
    return fig


def reward_evaluations(c):
    return np.asarray(c["reward"], float) + np.asarray(c["reward_gradient"], float)


figures.show(
    against(reward_evaluations, "evaluations of the reward", "paper"),
    "reward-cost",
    "Distance to the target against evaluations of the reward, on logarithmic axes, in two panels, with and without gradient. Most curves fall; those of methods "
    "without a KL turn up and leave the picture.",
)

# %% [markdown]
# ```{glue:figure} reward-cost
#
# The paper's task: distance against evaluations of the reward, with and without gradient. Solid lines tilt step by step and arrive only
# with their last tilt; dashed lines aim at the target from the start; single markers train nothing. Median over seeds. What leaves the
# picture at the top has run away. The points of a curve are looks on the way, 2,500 samples of 50 steps, so it need not end at the distance of the tables, 5,000 of 200.
# ```
#
# Then the clock.

# %% tags=["hide-input"]
figures.show(
    against(lambda c: np.asarray(c["seconds"], float), "processor seconds", "paper"),
    "time-cost",
    "Distance to the target against processor seconds, on logarithmic axes.",
)

# %% [markdown]
# ```{glue:figure} time-cost
#
# The same runs against processor seconds of one core, base training and the looks at the model not counted.
# ```
#
# ## The figures
#
# Mean over seeds, and the standard error. With three seeds an interval of 95 per cent is 4.3 standard errors to either side, not two, and ratios of two such means are wider still. *KL* is that of the target against the model's probability flow, where there is a model and its
# flow can be followed. *Best on the way* is the smallest distance at any look while training (with 50 steps, so it can be worse than the end), in reach of an oracle only: it tells a method
# that passes the target from one that never comes near. *Reward* is the mean reward of the samples less that of the target: above zero a method has gone too far.


# %% tags=["hide-input"]
def spread(values):
    """Mean and standard error over seeds."""
    values = values.dropna()
    if values.empty:
        return ""
    if values.abs().max() > RUN_AWAY:
        return "ran away"
    return f"{values.mean():.2f}" + (f" ± {values.std() / np.sqrt(len(values)):.2f}" if len(values) > 1 else "")


def table(task):
    own = whole[whole["task"] == task].copy()
    own["reward gap"] = own["mean_reward"] - PROBLEMS[task].target.expected_reward(PROBLEMS[task].reward)
    rows = []
    for name in METHODS:
        group = own[own["method"] == name]
        if len(group):
            columns = {
                "distance": "sliced_w2",
                "best on the way": "best_sliced_w2",
                "KL, nats": "kl",
                "mode weights": "mode_weight_error",
                "reward": "reward gap",
            }
            rows.append({"method": TITLES[name]} | {title: spread(group[key]) for title, key in columns.items()})
    return pd.DataFrame(rows)


for task in MAIN:
    exact = PROBLEMS[task].target.sample(5000, torch.Generator().manual_seed(1))
    floor = sliced_wasserstein(exact, PROBLEMS[task].target)
    untouched = sliced_wasserstein(PROBLEMS[task].base.sample(5000, torch.Generator().manual_seed(1)), PROBLEMS[task].target)
    display(
        Markdown(
            f"**{TASK_TITLES[task].capitalize()} task.** 5,000 exact samples score a distance of {floor:.2f}, exact samples of the base "
            f"{untouched:.2f}."
        )
    )
    display(Markdown(table(task).to_markdown(index=False)))

# %% [markdown]
# ## Fewer tilts
#
# A tilt costs evaluations of the reward. Half as many tilts cost half as much; what is lost?

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3), sharey=True)
    for ax, task in zip(axes, MAIN, strict=True):
        for name in FEWER:
            color, marker = LINES[name]
            group = runs[(runs["task"] == task) & (runs["method"] == name)].groupby("N")["sliced_w2"]
            error = (group.std() / np.sqrt(group.count())).fillna(0)
            ax.errorbar(group.mean().index, group.mean(), error, color=color, marker=marker, capsize=2, label=TITLES[name])
        ax.set(xlabel="tilts $N$", title=f"{TASK_TITLES[task]} task", xscale="log")
        ax.set_xticks([5, 10, 20], ["5", "10", "20"])
        ax.minorticks_off()
    axes[0].set_ylabel("distance to the target")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
figures.show(
    fig,
    "fewer-tilts",
    "Distance to the target against the number of tilts, for the explicit and the implicit form, on two tasks, with standard errors.",
)

# %% [markdown]
# ```{glue:figure} fewer-tilts
#
# The explicit step (Algorithm 2) leaves a Taylor remainder on the right-hand task; the implicit form has none ({doc}`rivals_methods`).
# Mean over seeds, and its standard error if there are several.
# ```
#
# ## Harder tasks
#
# Algorithm 2, its implicit form, the recommended step, DPOK (the policy gradient that did best in the tuning; on one mode it is better with future KL), Adjoint Matching, and methods that train nothing, with the learning rates that were chosen on the paper's task. The grid has four more
# tasks: two more tilts of the paper's base, and the ring and the grid of Gaussians that other work uses.

# %% tags=["hide-input"]
tasks = [task for task in (*MAIN, *OTHER) if task in set(whole["task"])]
if missing := [TASK_TITLES[task] for task in OTHER if task not in tasks]:
    display(Markdown(f"There are no records yet of the tasks {', '.join(missing)}: `make reference` computes them."))
names = [name for name in METHODS if name in {*BEST, *REFERENCES}]
with figures.house_style() as plt:
    rows = -(-len(tasks) // 3)
    fig, axes = plt.subplots(rows, 3, figsize=(7.2, 0.6 + 2.1 * rows), sharey=True, squeeze=False)
    for ax in axes.flat[len(tasks) :]:
        ax.set_axis_off()
    for ax, task in zip(axes.flat, tasks, strict=False):
        for row, name in enumerate(names):
            values = whole[(whole["task"] == task) & (whole["method"] == name)]["sliced_w2"]
            color = figures.COLORS["base"] if METHODS[name].gradient else figures.COLORS["learned"]
            ax.plot(values, [row] * len(values), "o", color=color, markersize=4, alpha=0.6)
            ax.plot(values.mean(), row, "|", color=figures.INK, markersize=10)
        exact = sliced_wasserstein(
            PROBLEMS[task].target.sample(5000, torch.Generator().manual_seed(1)), PROBLEMS[task].target
        )
        ax.axvline(exact, color=figures.COLORS["target"], linewidth=0.8, linestyle="--")
        ax.set(xscale="log", xlim=(0.02, 3), title=TASK_TITLES[task])
        ax.grid(axis="y", color=figures.COLORS["band"], alpha=0.25, linewidth=0.5)
    axes[0, 0].set_yticks(range(len(names)), [TITLES[name] for name in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    fig.supxlabel("distance to the target", fontsize=11)
figures.show(
    fig,
    "tasks",
    "One panel per task: the distance of each method's samples to the target, one dot per seed, with the distance between "
    "exact samples as a dashed line.",
)

# %% [markdown]
# ```{glue:figure} tasks
#
# Distance to the target on every task: a dot per seed, a bar for their mean. Blue needs gradients, orange does not. Dashed: two sets of 5,000 exact
# samples.
# ```
#
# Who is closest changes with the task. Learning rates were chosen on the paper's, and a base with more modes has more to unlearn.

# %% tags=["hide-input"]
mean = whole[whole["method"].isin(names)].groupby(["task", "method"])["sliced_w2"].mean().unstack().loc[tasks, names]
trained = mean[[name for name in names if METHODS[name].train]]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.6, 0.36 * len(names) + 0.8))
    sns.heatmap(
        mean.T,
        norm=LogNorm(0.03, 3),
        cmap=sns.light_palette(figures.COLORS["base"], 60)[:29],  # light enough for dark numbers
        annot=True,
        fmt=".2f",
        annot_kws={"fontsize": 9},
        linewidths=1,
        cbar=False,
        xticklabels=[TASK_TITLES[task].replace(" ", "\n") for task in tasks],
        yticklabels=[TITLES[name] for name in names],
        ax=ax,
    )
    for column, task in enumerate(tasks):
        row = names.index(trained.loc[task].idxmin())
        ax.add_patch(
            plt.Rectangle(
                (column, row), 1, 1, fill=False, edgecolor=figures.COLORS["learned"], linewidth=2.5, zorder=3, clip_on=False
            )
        )
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
figures.show(
    fig,
    "closest",
    "A table of colours: methods down, tasks across, in each cell the mean distance to the target. On each task the closest of the trained methods has a frame: "
    + "; ".join(f"{TASK_TITLES[task]}: {TITLES[trained.loc[task].idxmin()]}" for task in tasks)
    + ".",
)

# %% [markdown]
# ```{glue:figure} closest
#
# Mean distance to the target over seeds; darker is farther. A frame marks the closest of the trained methods on its task; differences smaller than the spread of the
# dots above mean little. From importance resampling on, nothing is trained.
# ```

# %% tags=["remove-input"]
better = sum(mean.loc[task, "importance"] < trained.loc[task].min() for task in tasks)
display(
    Markdown(
        f"On {better} of the {len(tasks)} tasks no trained method comes as close as importance resampling with the same budget. A tilt of a few "
        "nats leaves enough samples with weight; their share falls exponentially with the nats. What the trained methods have to show for it is a "
        "model that draws the next sample at the cost of the base."
    )
)

# %% [markdown]
# ## What went wrong
#
# A run counts as *diverged* if its loss or its samples stopped being finite, as *collapsed* if a mode of its samples kept less than half of the target's
# variance in some direction, as *overshooting* if its mean reward lies more than a standard deviation of the target's reward above the
# target's, and as *short* if it lies as far below.


# %% tags=["hide-input"]
def verdicts(run, record):
    task = PROBLEMS[run["task"]]
    if record.failure:
        return ["diverged"]
    found, target = [], task.target
    share = torch.tensor(record["mode_weights"])
    ratio = torch.tensor(
        [
            min((v if v is not None else np.nan) / float(exact) for v, exact in zip(own, c.diagonal(), strict=True))
            for own, c in zip(record["component_variances"], target.covariances, strict=True)
        ]
    )
    if bool((ratio[share > 0.05] < 0.5).any()):
        found.append("collapsed")
    exact = task.reward(target.sample(100_000, torch.Generator().manual_seed(0)))
    gap = run["mean_reward"] - float(exact.mean())
    if abs(gap) > float(exact.std()):
        found.append("overshooting" if gap > 0 else "short")
    return found


seen = []
for _, run in whole.iterrows():
    seen += [
        {"method": TITLES[run["method"]], "task": TASK_TITLES[run["task"]], "verdict": v}
        for v in verdicts(run, records[run["record"]])
    ]
counted = pd.DataFrame(seen, columns=["method", "task", "verdict"]).value_counts().reset_index(name="seeds")
order = {m.title: i for i, m in enumerate(METHODS.values())}
counted = counted.sort_values(["method", "task"], key=lambda c: c.map(order) if c.name == "method" else c)
display(Markdown(counted[["method", "task", "verdict", "seeds"]].to_markdown(index=False)))

# %% [markdown]
# ## A table to decide from
#
# *Memory*: whether autograd has to remember several steps of the sampler. *Exact*: whether the method ends at the exact tilt when samples, tilts,
# steps and network are unlimited. *A model*: whether what is left is a model that samples without evaluating the reward again. *Distance*: worst of
# the two tasks above, mean over seeds.

# %% tags=["hide-input"]
MEMORY = {
    "draft": "all steps",
    "draft-5": "5 steps",
    "draft-kl": "all steps",
    "draft-lv": "1 step",
    "recommended": "all steps, each apart",
}
rows = []
for name, method in METHODS.items():
    own = whole[(whole["method"] == name) & whole["task"].isin(MAIN)]
    paper = own[own["task"] == "paper"]
    counts = [
        (r.curve["reward"][-1] + r.curve["reward_gradient"][-1]) if r.curve else r["reward"] + r["reward_gradient"]
        for r in (records[i] for i in paper["record"])
    ]
    worst = own["sliced_w2"].fillna(np.inf).groupby(own["task"]).mean().max()
    rows.append(
        {
            "method": method.title,
            "gradient of r": "yes" if method.gradient else "no",
            "memory": MEMORY.get(name, "no"),
            "exact": "yes" if method.exact else "no",
            "a model": "yes" if method.train else "no",
            "rewards": f"{np.mean(counts) / 1e3:,.0f} k",
            "seconds": f"{paper['seconds'].mean():.0f}",
            "distance": f"{worst:.2f}" if worst < RUN_AWAY else "ran away",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# *Guidance by the exact value* is a reference, not a method: nobody has that value. It keeps the error of the base network alone, so it shows
# how close one comes that adds to this base and keeps it. What resamples or learns anew can come closer.
#
# ## Try this
#
# **Guidance by the plug-in value samples far from the target. Is the idea at fault, or the network?** Put the exact base in its place: on the
# paper's task, where the reward is linear and the covariances are equal, the plug-in value has the right gradient.

# %% tags=["hide-cell"]
schedule, one = Cosine(), PROBLEMS["paper"]
oracle = ExactNoisePredictor(one.base, schedule)
steered = guided(oracle, plug_in_value(oracle, one.reward, schedule), schedule)
x = sample(steered, schedule, 2000, steps=50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ours, network = (
    sliced_wasserstein(x, one.target),
    whole.query("task == 'paper' and method == 'guided'")["sliced_w2"].median(),
)
assert ours < 0.5 < network
display(
    Markdown(
        f"Distance with the exact base: {ours:.2f}. With the network: {network:.1f}. The value is differentiated through "
        "$\\hat x_0 = (x - \\sigma_t \\hat x_1)/\\alpha_t$, so near $t = 1$ small errors of the network are divided by a vanishing $\\alpha_t$."
    )
)

# %% [markdown]
# **Which method would you take if the reward cost a second, and which if it cost a microsecond?** Add the price of the rewards to the clock.

# %% tags=["hide-cell"]
table = pd.DataFrame(rows).query("`a model` == 'yes'").set_index("method")
thousands = table["rewards"].str.removesuffix(" k").str.replace(",", "").astype(float)
minutes = pd.DataFrame(
    {
        f"reward of {name}": (table["seconds"].astype(float) + 1e3 * thousands * price) / 60
        for name, price in (("1 µs", 1e-6), ("1 ms", 1e-3), ("1 s", 1.0))
    }
)
minutes["distance"] = table["distance"]
display(Markdown("Minutes until the model is tilted:"))
display(Markdown(minutes.to_markdown(floatfmt=",.1f")))
