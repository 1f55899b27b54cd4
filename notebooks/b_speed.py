# ---
# jupyter:
#   itlib:
#     reads:
#     - book/bench.json
#     - book/reference
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
# # How fast it is
#
# Figures should come back soon after an idea has changed them. So we measured the code against what one would publish, what a library
# gives, and what the processor can do at all. This page is for reference, and for those who change the code.
#
# **You will see** how to measure on a machine whose speed drifts; which targets were set, and which are met; where the time goes, and what
# was tried to spend less; how time and memory grow with every size of the problem; and when more machines help.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # the record is the same in both profiles
bench = "../book/bench.json"  # left by `make bench RECORD=1`
reference = "../book/reference"  # runs of the paper's grid and of the ablation

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd

from itlib import figures
from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments import ablation, paper
from itlib.experiments.files import located
from itlib.experiments.records import load_records

processors = json.loads(located(bench).read_text())["processors"]
kind = max(processors, key=lambda name: len(processors[name]["parts"]))  # the one that this page shows
parts, beyond = processors[kind]["parts"], processors[kind]["beyond"]
ratios = {name: part["ratios"] for name, part in parts.items()}
found = {name: part["found"] for name, part in parts.items()}
absolute = {name: part["absolute"] for name, part in parts.items()}


def ratio(part, name):
    return ratios[part][name]["median"]


def amount(part, name):
    return absolute[part][name]["median"]


# %% tags=["hide-input"]
def reached(figure):
    """Whether a figure meets its target."""
    return figure["median"] >= figure["target"] if figure["better"] == "high" else figure["median"] <= figure["target"]


def number(value, form=".2f"):
    """A number in print; none is minus zero."""
    return f"{value:z{form}}".replace("-", "−")


def within(figure, form=".2f"):
    """Median and quartiles."""
    low, median, high = (number(figure[k], form) for k in ("low", "median", "high"))
    return median if low == high else f"{median} ({low} to {high})"


def fit(found):
    """An exponent and its standard error, on one line."""
    digits = 2 if found["error"] >= 0.005 else 3
    return f"{found['exponent']:.{digits}f} ± {found['error']:.{digits}f}".replace("-", "−").replace(" ", "\u00a0")


# %% tags=["hide-input"]
def bars_with_quartiles(ax, rows, color, marker="o"):
    """Median and quartiles of each row, from top to bottom, and its number."""
    for y, (name, figure) in enumerate(reversed(rows.items())):
        shade = figures.COLORS["learned" if name == "itlib" else "band" if "products," in name else color]
        ax.plot([figure["low"], figure["high"]], [y, y], color=shade, linewidth=3, alpha=0.5)
        ax.plot(figure["median"], y, "s" if "products," in name else marker, color=shade, markersize=6)
        at = (figure["high"], y)
        ax.annotate(f"{figure['median']:.2f}", at, (7, 0), textcoords="offset points", va="center", fontsize=9)
    ax.axvline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.set_yticks(range(len(rows)), list(rows)[::-1])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.tick_params(axis="y", length=0)


# %% [markdown]
# ## Measured in turns
#
# The same loop takes twice as long when a neighbour uses the other half of a core, and a laptop slows down as it warms up. So what we
# compare is measured *in turns*, many times. Each turn gives a ratio; the median over turns is reported with its quartiles. On one thread
# the clock counts the processor's seconds, which others do not lengthen. Memory that is freed is kept, for all alike; a script of yours
# may gain by the same two variables (`bench` in the Makefile).
#
# `make bench` does that. It writes a record, compares it with the one in git of the same kind of processor, and says which ratios got
# worse by more than a fifth. This page shows the record in git of:

# %% tags=["hide-input"]
rows = []
for name, part in parts.items():
    made = part["made"]
    commit = f"`{made['commit'][:7]}`" + (" and changes" if "+" in made["commit"] else "")
    load = "" if made["load before"] is None else f"{made['load before']:.1f}"
    row = {"part": name, "processor": made["processor"], "system": made["platform"], "commit": commit}
    rows.append(row | {"load before": load, "minutes": f"{made['seconds'] / 60:.1f}"})
machine = pd.DataFrame(rows)
alike = [column for column in ("processor", "system", "commit") if machine[column].nunique() == 1]
figures.table(machine.drop(columns=alike))
versions = parts["sampling"]["made"]["versions"]
said = [machine[column].iloc[0] for column in alike]
figures.glue(made="; ".join(said + [f"{k} {versions[k]}" for k in ("python", "torch", "diffusers")]))
by_the_wall = machine[machine["part"] != "seeds"]
assert max(float(load or 0) for load in by_the_wall["load before"]) < 2.5  # more would spoil them

# %% [markdown]
# {glue:text}`made`. *Load before*: how many processes wanted the two cores before a part began.
#
# ## Targets
#
# They were set before anything was measured. Here is each figure as a multiple of its target, on the side where it is better.

# %% tags=["hide-input"]
TITLES = {
    ("sampling", "textbook / itlib"): "sampling: textbook / itlib",
    ("sampling", "diffusers DDPM / itlib"): "sampling: diffusers' DDPM / itlib",
    ("sampling", "diffusers DDIM / itlib"): "sampling: diffusers' DDIM / itlib",
    ("sampling", "floor / itlib"): "sampling: share of the multiplication rate",
    ("training", "textbook / itlib"): "training: textbook / itlib",
    ("training", "one step / floor"): "a training step, in units of its products",
    ("seeds", "textbook / stack, a step"): "ten seeds in a stack: textbook / stack",
    ("seeds", "stack / floor, a step"): "ten seeds in a stack, in units of its products",
    ("equal", "textbook / as good: the sampler alone"): "as good samples, the sampler alone",
    ("equal", "textbook / as good: the paper's network"): "as good samples, the paper's network",
    ("equal", "textbook / as good: the recommended base"): "as good samples, the recommended base",
    ("grid", "the paper's grid on two cores"): "the paper's grid on two cores, minutes",
    ("recommended", "paper at N = 50 / recommended, seconds"): "N = 50 / recommended, seconds",
    ("recommended", "paper at N = 50 / recommended, error"): "N = 50 / recommended, error (two bases)",
    ("workers", "two workers / one"): "two workers / one",
    ("imports", "import itlib, beyond import torch"): "import itlib beyond torch, seconds",
    ("book", "make book, smoke"): "make book, smoke, minutes",
    ("book", "make book again, smoke"): "make book again, smoke, seconds",
    ("book", "make book, full"): "make book, full, minutes",
    ("book", "make book again, full"): "make book again, full, seconds",
}
goals = [
    {"title": TITLES.get((part, name), name), **figure}
    for part in parts
    for name, figure in (ratios[part] | absolute[part]).items()
    if "target" in figure
]
order = list(TITLES.values())
goals.sort(key=lambda goal: order.index(goal["title"]) if goal["title"] in order else len(order))
missed = [goal for goal in goals if not reached(goal)]


# %% tags=["hide-input"]
def multiple(goal):
    value, target = max(goal["median"], 1e-3), goal["target"]  # import costs may come out as nothing, or less
    return value / target if goal["better"] == "high" else target / value


with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.6, 0.29 * len(goals) + 0.9))
    for row, goal in enumerate(reversed(goals)):
        at, good = min(max(multiple(goal), 0.25), 12.0), reached(goal)
        color = figures.COLORS["target" if good else "learned"]
        ax.plot([1, at], [row, row], color=color, linewidth=1.2)
        ax.plot(at, row, "o" if good else "X", color=color, markersize=6)
        text = f"{number(goal['median'])} {'≥' if goal['better'] == 'high' else '≤'} {goal['target']:g}"
        ax.annotate(text, (max(at, 1), row), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.axvline(1, color=figures.INK, linewidth=0.8)
    ax.set_yticks(range(len(goals)), [goal["title"] for goal in reversed(goals)])
    ax.set(xscale="log", xlim=(0.22, 42), xlabel="multiple of the target (cut off at ¼ and 12)")
    ax.set_xticks([0.25, 0.5, 1, 2, 5, 10], ["¼", "½", "1", "2", "5", "10"])
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
alt = f"One row for each of {len(goals)} targets with the figure that was found; {len(goals) - len(missed)} lie on the good side of a line"
figures.show(fig, "speed-targets", f"{alt} at one, {len(missed)} on the other.")
figures.glue(targets=len(goals), met=len(goals) - len(missed))
in_short = {goal["title"].split(":")[0].split(",")[0] for goal in missed}
assert in_short == {"training", "a training step", "as good samples", "ten seeds in a stack"}

# %% [markdown]
# ```{glue:figure} speed-targets
# :name: fig-speed-targets
#
# What was found beside what was asked for. Circles are met, crosses missed. One thread and medians, but for two workers, which need two
# cores.
# ```
#
# Of {glue:text}`targets` targets {glue:text}`met` are met. Missed are targets on training, of one network and of ten side by side, and
# equally good samples with the paper's network. The sections below say what bounds them.
#
# Which library multiplies faster depends on the processor, and with it every ratio to a floor or to other people's code:

# %% tags=["hide-input"]
carried = [(part, name) for part, name in TITLES if part in ("sampling", "training")]
measured = {k: r["parts"] for k, r in processors.items() if {"sampling", "training"} <= r["parts"].keys()}
rows = [
    {"": TITLES[part, name]} | {k: within(found_there[part]["ratios"][name]) for k, found_there in measured.items()}
    for part, name in carried
]
figures.table(rows)
ceilings = [
    there["sampling"]["ratios"]["textbook / itlib"]["median"] / there["sampling"]["ratios"]["floor / itlib"]["median"]
    for there in measured.values()
]
figures.glue(ceiling=f"{min(ceilings):.2f}", ceiling_high=f"{max(ceilings):.1f}")

# %% [markdown]
# What is said of speed outside of this page holds in every column. The share of the multiplication rate carries over; the lead over the
# textbook does not. A sampler that did nothing but multiply would be {glue:text}`ceiling` times as fast as the textbook on one kind, and
# {glue:text}`ceiling_high` times on the other, where the call that torch makes by default is the slow one.
#
# ## Sampling
#
# A dataset of the paper is 1,000 chains of 200 steps. Four programs draw it from the same noise, and get the same samples up to rounding:
#
# - *textbook*: Algorithm 1 as printed, one batched call of the network a step, without gradients. The network is as one writes it: time
#   is embedded for each sample, and is one more input.
# - *diffusers*: the same network in the loop of a pipeline, with the library's DDPM or DDIM scheduler.
# - *itlib*.
# - *nothing but products*: matrix products of a hidden layer's shape, as many operations as the layers need, by the faster of two
#   libraries.

# %%
own = amount("sampling", "itlib, 1 thread")
names = ["diffusers DDPM", "diffusers DDIM", "textbook"]
names += ["diffusers, our network", "itlib"]
bars = {name: amount("sampling", f"{name}, 1 thread") / own for name in names}
bars["products and SiLU"] = ratio("sampling", "products with SiLU / itlib")
bars["nothing but products"] = ratio("sampling", "floor / itlib")

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.4, 2.7))
    for row, (name, value) in enumerate(reversed(bars.items())):
        color = figures.COLORS["learned" if name == "itlib" else "band" if "products" in name else "base"]
        ax.barh(row, value, color=color, height=0.62, hatch="//" if "products" in name else "", edgecolor="white")
        ax.annotate(f"{value:.2f}", (value, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), list(bars)[::-1])
    ax.set(xlabel="seconds, in units of itlib's")
    ax.tick_params(axis="y", length=0)
alt = f"Bars: the textbook takes {bars['textbook']:.2f} times as long as itlib, diffusers up to "
alt += f"{max(bars['diffusers DDPM'], bars['diffusers DDIM']):.2f} times, nothing but products {bars['nothing but products']:.2f}."
figures.show(fig, "speed-sampling", alt)
rates, both = found["sampling"]["floor"]["rates"], found["sampling"]["two threads"]
figures.glue(
    own=f"{own:.2f}",
    rates=" and ".join(f"{rate['median']:.0f} by {name}" for name, rate in rates.items()),
    rate_share=f"{100 * bars['nothing but products']:.0f} %",
    silu_gain=f"{100 * (1 / bars['products and SiLU'] - 1):.0f} %",
    product_gain=f"{100 * (1 / bars['nothing but products'] - 1):.0f} %",
    two_textbook=f"{both['textbook / itlib']['median']:.2f}",
    two_diffusers=f"{both['diffusers DDPM / itlib']['median']:.2f}",
    two_threads=f"{both['one thread / two']:.2f}",
)

# %% [markdown]
# ```{glue:figure} speed-sampling
# :name: fig-speed-sampling
#
# Time of 1,000 × 200 steps on one thread.
# ```
#
# itlib takes {glue:text}`own` s here. The processor multiplies this shape at {glue:text}`rates` (billion operations a second). Of the
# faster rate itlib reaches **{glue:text}`rate_share`**. So no code around the same layers, products followed by their SiLU, could be faster
# than itlib by more than {glue:text}`silu_gain`, and none that needs the products by more than {glue:text}`product_gain`. On two threads,
# by the clock on the wall, the textbook takes {glue:text}`two_textbook` times as long as itlib, and diffusers {glue:text}`two_diffusers`.
#
# ### The story of the profile
#
# What the textbook spends its time on, and what itlib does:

# %% tags=["hide-input"]
profiles = found["attempts"]["profiles"]
kinds = [k for k in profiles["sampling, itlib"] if max(p[k] for p in profiles.values()) > 0.005]
hatches = ("", "//", "..", "xx", "\\\\", "--", "")
box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.8, 2.6))
    for row, name in enumerate(reversed(profiles)):
        left = 0.0
        for i, kind in enumerate(kinds):
            value, color = 100 * profiles[name][kind], (*figures.SERIES, figures.COLORS["band"])[i % 7]
            style = {"color": color, "hatch": hatches[i % 7], "edgecolor": "white", "linewidth": 0.5}
            ax.barh(row, value, left=left, height=0.6, label=kind if row == 0 else None, **style)
            if value > 9:
                middle = {"ha": "center", "va": "center", "fontsize": 8.5}
                ax.text(left + value / 2, row, f"{value:.0f}", color="black", bbox=box, **middle)
            left += value
    ax.set_yticks(range(len(profiles)), list(profiles)[::-1])
    ax.set(xlabel="% of the time", xlim=(0, 100))
    ax.tick_params(axis="y", length=0)
    fig.legend(loc="outside upper center", ncols=3, fontsize=9)
alt = "Shares of time by kind of work. Sampling is mostly matrix products, with itlib more so than with the textbook; in training the "
figures.show(fig, "speed-profile", alt + "optimiser and the bookkeeping of gradients take a part.")

# %% [markdown]
# ```{glue:figure} speed-profile
# :name: fig-speed-profile
#
# Where the time goes, by the profiler of torch. itlib's products contain their SiLU.
# ```
#
# Four changes make the textbook's sampler ours. All samples of a step share its time, so the part of the first layer that sees time is
# computed *once a step*. SiLU works *in place*. Product, bias and SiLU are *one pass* over memory where oneDNN is there. The coefficients
# of all steps are computed *at once*. Each rung of the ladder below has the ones above it.

# %% tags=["hide-input"]
tried = found["attempts"]["sampling"]
ladder = ["as usually written", "embedding once a step", "and SiLU in place"]
ladder += ["and SiLU inside the product", "and coefficients at once (itlib)"]
kept = {name: tried[name]["time"] for name in ladder if name in tried}
dropped = {name: row["time"] for name, row in tried.items() if name not in kept}
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True, height_ratios=[len(kept), len(dropped)])
    bars_with_quartiles(axes[0], kept, "learned")
    bars_with_quartiles(axes[1], dropped, "base")
    axes[0].set_title("what was kept", loc="left")
    axes[1].set_title("what was tried and dropped", loc="left")
    axes[1].set_xlabel("seconds, in units of itlib's")
alt = "Times in units of itlib's, with quartiles. The kept changes descend to one; of those dropped only bfloat16 is far below one."
figures.show(fig, "speed-tried", alt)

# %% [markdown]
# ```{glue:figure} speed-tried
# :name: fig-speed-tried
#
# Sampling, one change at a time: median and quartiles of the ratio to itlib.
# ```
#
# A second path of code enters itlib if it is at least 1.5 times as fast. What was dropped:

# %% tags=["hide-input"]
WHY = {
    "weights packed beforehand": "a second copy of the weights must follow every training step",
    "bfloat16": "seven bits of a mantissa",
    "inference_mode": "nothing is left to save once gradients are off",
    "torch.compile": "needs a C++ compiler, and misses the fused product",
}
speed = {name: 1 / time["median"] for name, time in dropped.items()}
rows = [
    {"change": name, "times as fast": f"{speed[name]:.2f}", "samples move by": figures.scientific(tried[name]["samples"])}
    | {"but": WHY[name]}
    for name in dropped
]
figures.table(rows)
assert [name for name, times in speed.items() if times >= 1.5] == ["bfloat16"]
figures.glue(bf16=f"{speed['bfloat16']:.2f}", bf16_change=figures.scientific(tried["bfloat16"]["change"]))

# %% [markdown]
# Only bfloat16 is fast enough: {glue:text}`bf16` times. It moves predictions by {glue:text}`bf16_change` (root mean square), which is small
# beside the network's error of a few hundredths. We left it out all the same. A tilt is trained on differences of predictions,
# $\delta\, r\,(\varepsilon_{\text{old}} - z)$, and samples of one tilt are the data of the next. And every record in this book would have
# to be made again, on processors that have it.
#
# ## Training
#
# A tilt of the paper has a hundred optimiser steps on 64 rows. The textbook asks the teacher about 64 rows at a time; itlib asks once for
# 25 batches, since teacher, noise and times do not depend on the student. And Adam's update of all parameters is one fused loop.

# %% tags=["hide-input"]
r, variants = ratios["training"], found["attempts"]["training"]
one = {"median": 1.0, "low": 1.0, "high": 1.0}


def inverse(figure):
    return {"median": 1 / figure["median"], "low": 1 / figure["high"], "high": 1 / figure["low"]}


library = found["training"]["floor"]["library"]
above = {"diffusers": r["diffusers / itlib"], "textbook": r["textbook / itlib"], "itlib": one}
alone = {name: row["time"] for name, row in variants.items()} | {"itlib": one}
alone["nothing but products, torch.mm"] = inverse(r["one step / torch.mm"])
alone[f"nothing but products, {library}"] = inverse(r["one step / floor"])
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True, height_ratios=[len(above), len(alone)])
    for ax, rows, title in zip(axes, (above, alone), ("with the teacher's part", "the step alone"), strict=True):
        bars_with_quartiles(ax, rows, "base")
        ax.set_title(title, loc="left")
    axes[1].set_xlabel("seconds of an optimiser step, in units of itlib's")
    axes[1].set_xlim(0, None)
alt = f"Seconds of an optimiser step in units of itlib's: the textbook {r['textbook / itlib']['median']:.2f}, diffusers "
alt += f"{r['diffusers / itlib']['median']:.2f}, nothing but products {1 / r['one step / floor']['median']:.2f}; what was tried between."
figures.show(fig, "speed-training", alt)

# %% [markdown]
# ```{glue:figure} speed-training
# :name: fig-speed-training
#
# An optimiser step of a tilt on one thread: median and quartiles. Above, with the step's share of the teacher; below, a regression step
# alone, what was tried instead, and its products by each library. Autograd calls that of `torch.mm`.
# ```

# %% tags=["hide-input"]
products = profiles["training, itlib"]["matrix products"]
dnn, hand = (1 / variants[name]["time"]["median"] for name in ("products by oneDNN", "and no autograd"))
with_teacher, step = (amount("training", f"{name}, 1 thread") for name in ("itlib", "one step"))
by_hand = {"textbook / itlib": with_teacher / (with_teacher - step + step / hand), "one step / floor": 1 / hand}
assert max(dnn, hand) < 1.5
assert not any(reached(r[name]) for name in by_hand)
figures.glue(
    step_ms=f"{with_teacher:.2f}",
    products=f"{100 * products:.0f} %",
    at_most=f"{1 / products:.2f}",
    dnn=f"{dnn:.2f}",
    hand=f"{hand:.2f}",
    hand_change=figures.scientific(variants["and no autograd"]["change"]),
    would_be=" and ".join(f"{r[name]['median'] * factor:.2f}" for name, factor in by_hand.items()),
)

# %% [markdown]
# With its share of the teacher a step takes {glue:text}`step_ms` ms. Products are {glue:text}`products` of it, so all the rest together
# could gain {glue:text}`at_most` at most. The other handle is the library: with oneDNN forward and backward a step would be
# {glue:text}`dnn` times as fast; with the chain rule written out by hand as well, {glue:text}`hand` times, and gradients would change by
# {glue:text}`hand_change` of their length. Both gain less than 1.5, so they stay out, and both targets on training are missed. By hand
# they would come to {glue:text}`would_be`.
#
# ## As good, not as many steps
#
# Equally good samples are the better question, and there other samplers help far more than other code ({doc}`b_samplers`). The bar is the
# sliced Wasserstein distance of the textbook's 200 steps to the exact law.

# %% tags=["hide-input"]
equal = found["equal"]
settings = {name: equal[name] for name in ("the sampler alone", "the paper's network", "the recommended base")}
KINDS = {"Algorithm 1": ("learned", "*"), "analytic": ("paper", "s"), "SDE-DPM++": ("base", "o"), "DPM++": ("target", "^")}
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.4, 3.1), sharex=True, sharey=True)
    for ax, (title, setting) in zip(axes, settings.items(), strict=True):
        for kind, (color, marker) in KINDS.items():
            rows = [v for k, v in setting["samplers"].items() if k.split(", ")[0] == kind]
            x, y, e = ([v["faster"]["median"] for v in rows], *([v[k] for v in rows] for k in ("error", "standard error")))
            style = {"color": figures.COLORS[color], "marker": marker, "markersize": 9 if marker == "*" else 5}
            ax.errorbar(x, y, e, linewidth=1, label=kind, **style)
        ax.axhline(setting["bar"], color=figures.INK, linewidth=0.8, linestyle="--")
        ax.axhline(equal["floor"]["median"], color=figures.INK, linewidth=0.8, linestyle=":")
        ax.axvline(8, color=figures.COLORS["band"], linewidth=0.8)
        ax.set(xscale="log", yscale="log", title=title, xlabel="times as fast")
        ax.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        ax.minorticks_off()
    axes[0].set_ylabel("sliced $W_2$")
    axes[0].set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
    axes[0].minorticks_off()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
alt = "; ".join(f"{title}: {s['best'] or 'none'} is the fastest below the textbook's error" for title, s in settings.items())
figures.show(
    fig,
    "speed-equal",
    f"Error of samples against how much faster than the textbook they were drawn, in three panels. {alt}.",
)

# %% [markdown]
# ```{glue:figure} speed-equal
# :name: fig-speed-equal
#
# Error and speed of samplers, each with several numbers of steps. Dashed: the textbook's error, with the exact denoiser on the left and
# with the paper's trained network in the other two. Dotted: exact samples. Grey: eight times as fast. Bars: standard errors.
# ```

# %% tags=["hide-input"]
rows = []
for title, setting in settings.items():
    best = setting["samplers"][setting["best"]]
    row = {
        "": title,
        "fastest that is as good": setting["best"] + " steps",
        "times as fast": f"{best['faster']['median']:.0f}",
    }
    rows.append(row | {"error": f"{best['error']:.4f} ± {best['standard error']:.4f}", "bar": f"{setting['bar']:.4f}"})
figures.table(rows)
bests = [setting["best"].split(", ")[0] for setting in settings.values()]
assert bests == ["DPM++", "Algorithm 1", "DPM++"]
figures.glue(draws=f"{equal['n']:,}", equal_seeds=equal["seeds"], exact_draws=f"{equal['floor']['median']:.4f}")

# %% [markdown]
# {glue:text}`draws` samples, {glue:text}`equal_seeds` seeds; exact ones are at {glue:text}`exact_draws`. A sampler counts from the number
# of steps on from which all more that were tried are good enough.
#
# *The sampler alone* has the exact denoiser's error and the network's time. *The paper's network* has errors of its own: it is too wide,
# which 200 steps of DDPM hide by being too narrow, and a better sampler does not. *The recommended base* replaces the network too, by a
# smaller one on the same data, in better coordinates ({doc}`b_floor`).
#
# ## The experiment

# %% tags=["hide-input"]
grid, rec, minutes = found["grid"], found["recommended"], absolute["grid"]["the paper's grid on two cores"]
each = {name: value["median"] for name, value in grid["seconds of a tilt"].items()}
same_speed = ratio("grid", "a tilt at N = 200 / at N = 20")
assert abs(same_speed - 1) < 0.1
figures.glue(
    tilt=within(absolute["grid"]["a tilt"]),
    **{name: f"{value:.2f}" for name, value in each.items()},
    tilts=sum(grid["grid"]),
    minutes=f"{minutes['median']:.1f}",
    slowed=f"{minutes['median'] * beyond['slower']:.1f}",
    same_speed=f"{same_speed:.2f}",
    then=f"{grid['committed']['a tilt with its trace']:.2f}",
    longest=f"{grid['longest chain']:.1f}",
    chosen=rec["recommended"]["tilts"],
    rec_seconds=f"{amount('recommended', 'recommended, all tilts'):.1f}",
    paper_seconds=f"{amount('recommended', 'paper, all tilts'):.1f}",
    factor=f"{ratio('recommended', 'paper at N = 50 / recommended, seconds'):.1f}",
    two_bases=f"{ratio('recommended', 'paper at N = 50 / recommended, error'):.1f}",
)

# %%
of_paper = load_records(Path(reference) / "paper", paper.Parameters)
others = load_records(Path(reference) / "ablation", ablation.Parameters)
others = [r for r in others if r.parameters.problem == "paper"]
same_base = [r for r in others if ablation.cell_of(r.parameters) == "no-skip"]
same_base = [r["eps_rmse"] for r in same_base]
N_50 = [r for r in of_paper if r.parameters.N == 50 and r.parameters.seed < 3]
N_50 = [r["eps_rmse"] for r in N_50]
assert len(same_base) == len(N_50) == 3
assert 1 < np.mean(N_50) / np.mean(same_base) < 3
figures.glue(error_N_50=f"{np.mean(N_50):.2f}")
figures.glue(error_same_base=f"{np.mean(same_base):.2f}")

# %% [markdown]
# A tilt of the paper takes {glue:text}`tilt` s: {glue:text}`sampling` s draw samples and {glue:text}`training` s train. The grid of
# $N = 20, 50, 100, 200$ is {glue:text}`tilts` tilts, so on two cores **{glue:text}`minutes` minutes**, or {glue:text}`slowed` if two runs
# slow each other down as measured below. A tilt at $N = 200$ takes {glue:text}`same_speed` times as long as one at $N = 20$. The records of
# {doc}`s4_2_results`, made on a slower machine, took {glue:text}`then` s a tilt.
#
# *The way to less.* Tilts of a run follow one another, so the run of 200 tilts takes {glue:text}`longest` minutes, however many cores
# there are. Fewer and cheaper tilts are the way: *recommended* chooses {glue:text}`chosen` tilts, and all of them take
# {glue:text}`rec_seconds` s against {glue:text}`paper_seconds` s of the paper's 50, a factor of **{glue:text}`factor`**.
#
# Its error in the figure of targets is {glue:text}`two_bases` times smaller, but that compares two base networks. On the paper's own base networks it is
# {glue:text}`error_same_base`, against {glue:text}`error_N_50` for $N = 50$ on the same three seeds ({doc}`b_recommended`). The rest is the
# better base.
#
# *All records of this book* are made again by `make reference`. What its grids took, by the records themselves:

# %% tags=["hide-input"]
rows = []
for place in sorted({path.parent for path in located(reference).glob("*/*.json")}):
    took = [json.loads(path.read_text())["seconds"] for path in place.glob("*.json")]
    if hours := sum(sum(t.values()) - t.get("base", 0.0) for t in took) / 3600:
        rows.append({"grid": place.name.replace("_", " "), "records": len(took), "processor hours": hours})
rows.sort(key=lambda row: -row["processor hours"])
figures.table([row for row in rows if row["processor hours"] >= 0.05], floatfmt=("", "", ".1f"))
figures.glue(reference_hours=f"{sum(row['processor hours'] for row in rows):.1f}")

# %% [markdown]
# Together {glue:text}`reference_hours` hours of one core, on the processors that the records name, some of them busy with other work. Bases are
# left out where several records share one: each is trained once.
#
# ## Growth
#
# One size at a time, the others small. The exponent $p$ of a cost $\propto x^p$ is the slope in logarithms, fitted to the last three
# points, where the overhead of Python no longer counts.

# %% tags=["hide-input"]
LABELS = {"N": "tilts $N$", "S": "samples $S$", "J": "steps $J$", "B": "minibatch $B$", "d": "dimension $d$"}
growth = found["growth"]


def panel(ax, size):
    """Seconds and memory against one size, as multiples of the first point."""
    row = growth[size]
    x, y = np.array(row["points"], float), np.array([v["median"] for v in row["seconds"]])
    y, memory = y / y[0], np.array([np.nan if v is None else v for v in row["MiB"]], float)
    ax.plot(x, y, color=figures.COLORS["base"], marker="o", markersize=4.5, label="seconds")
    style = {"color": figures.COLORS["learned"], "marker": "s", "markersize": 4, "linestyle": "--", "label": "memory"}
    if np.nanmin(memory) > 0:
        ax.plot(x, memory / memory[0], **style)
    ax.set(xscale="log", yscale="log", xlabel=LABELS[size], title=f"$p$ = {fit(row['upper'])}")
    some = x if len(x) < 5 else x[::2] if len(x) < 6 else x[[0, 2, 3, 5]]
    top = np.nanmax([*y, *memory / memory[0]])
    ticks = [v for v in (1, 2, 5, 10, 20, 50, 100, 200) if v <= 1.3 * top][:: 1 if top < 12 else 2]
    ax.set_xticks(some, [f"{v:g}" for v in some])
    ax.set_yticks(ticks, [f"{v:g}" for v in ticks])
    ax.minorticks_off()


# %% tags=["hide-input"]
seeds = growth["seeds"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 3, figsize=(7.4, 4.8))
    for ax, size in zip(axes.flat, LABELS, strict=False):
        panel(ax, size)
    for ax in axes[:, 0]:
        ax.set_ylabel("multiple of the first")
    ax = axes[1, 2]
    for what, color, marker in (("forward", "base", "o"), ("gradient", "learned", "s")):
        times = [v["median"] for v in seeds[what]]
        ax.plot(seeds["seeds"], times, color=figures.COLORS[color], marker=marker, markersize=4.5, label=what)
    ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.set(xscale="log", xlabel="seeds in one stack", title="stacked: times as fast", ylim=(0, None))
    ax.set_xticks(seeds["seeds"], [str(s) for s in seeds["seeds"]])
    ax.minorticks_off()
    ax.legend(fontsize=8.5)
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
alt = "Six small panels. Seconds grow about in proportion to tilts, samples, steps and rows, and more slowly with dimension. Stacked seeds "
figures.show(fig, "speed-growth", alt + "are not faster than separate ones.")

# %% [markdown]
# ```{glue:figure} speed-growth
# :name: fig-speed-growth
#
# Time and the most memory that is held at once, against each size alone, as multiples of the first point: whole runs of $N$ tilts,
# datasets of $S$ samples in $J$ steps, optimiser steps on $B$ rows, tilts in $d$ dimensions. Last panel: networks of several seeds stacked
# by `torch.func`, against one after the other.
# ```

# %% tags=["hide-input"]
rows = []
for size, label in LABELS.items():
    row = growth[size]
    mib = [v for v in row["MiB"] if v is not None]
    line = {"": label, "from, to": f"{row['points'][0]:,} to {row['points'][-1]:,}", "exponent": fit(row["upper"])}
    line["MiB"] = f"{mib[0]:.0f} to {mib[-1]:.0f}" if mib else "not told here"
    rows.append(line | {"its exponent": fit(row["exponent of MiB"]) if "exponent of MiB" in row else "none"})
figures.table(rows)
of_d = [v["median"] for v in growth["d"]["seconds"]]
stack = {what: seeds[what][-1]["median"] for what in ("forward", "gradient")}
assert max(stack.values()) < 1.5
figures.glue(longer=f"{of_d[-1] / of_d[0]:.1f}", stacked=seeds["seeds"][-1])
figures.glue(stack_forward=f"{stack['forward']:.2f}", stack_gradient=f"{stack['gradient']:.2f}")

# %% [markdown]
# The dimension costs little until first and last layer, $256\,d$ weights each, outweigh the four of $256^2$: from 2 to 1,000 dimensions a
# tilt takes {glue:text}`longer` times as long. Tilts take time and hardly any memory.
#
# Stacking {glue:text}`stacked` seeds by `torch.func` is {glue:text}`stack_forward` times as fast as one after the other for samples, and
# {glue:text}`stack_gradient` for gradients.

# %% tags=["hide-input"]
stack = ratios["seeds"]
assert stack["loop / stack, samples"]["median"] < 1.2
figures.glue(
    ten=found["seeds"]["seeds"],
    by_hand_step=within(stack["loop / stack, a step"]),
    by_hand_samples=within(stack["loop / stack, samples"]),
    by_hand_textbook=within(stack["textbook / stack, a step"]),
    by_hand_floor=within(stack["stack / floor, a step"]),
)

# %% [markdown]
# Written by hand, as batched products with the chain rule spelt out (`benchmarks/tried.py`), {glue:text}`ten` seeds make a step
# {glue:text}`by_hand_step` times as fast as one after the other, {glue:text}`by_hand_textbook` times as fast as the textbook, in
# {glue:text}`by_hand_floor` times what their products take. What is saved is autograd's bookkeeping, and the chain rule by hand saves that
# for a single network, too ({glue:text}`hand` times as fast, above). Samples, which have none, come {glue:text}`by_hand_samples` times as
# fast. For this there would be a second loop of training, averaging, stopping and tilting, and no page trains many seeds. So seeds are
# processes here.
#
# ## Two workers, and many
#
# A run of one $N$ and seed, a *cell*, is a process with one thread. More cores take more cells. What does a cluster cost? A small batch of
# cells that do next to nothing ran here and on a local Dask cluster. The model: cells are queued when what they wait for is there, longest
# first, and a free worker takes the next; each costs its work and a fixed overhead.

# %% tags=["hide-input"]
cluster, two = found["cluster"], ratios["workers"]["two workers / one"]
rows = [
    {"where, workers": name, "measured, s": f"{row['seconds']:.1f}", "model, s": f"{beyond['model'][name]:.1f}"}
    | {"nothing to do, s": f"{row['again']:.1f}"}
    for name, row in cluster["runs"].items()
]
figures.table(rows)
assert two["median"] > both["one thread / two"]
figures.glue(two=within(two), cells=cluster["cells"], cell_seconds=f"{cluster['each']:.1f}")
figures.glue(extra=f"{cluster['startup']['Dask'] - cluster['startup']['local']:.1f}")

# %% [markdown]
# {glue:text}`cells` cells; the model was fitted to the first row. A cell costs {glue:text}`cell_seconds` s beside its work: it starts
# Python, torch and a kernel, judges the model and draws its page. Two workers do **{glue:text}`two`** times as much as one; two *threads* of
# one process sample {glue:text}`two_threads` times as fast as one. So cores are for cells.

# %% tags=["hide-input"]
W = np.array(beyond["workers"])
chain = beyond["chain"] / 60
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.2, 3.4))
    for (count, values), color, marker in zip(beyond["seconds"].items(), figures.SERIES, figures.MARKERS, strict=False):
        style = {"color": color, "marker": marker, "markersize": 5}
        ax.plot(W, np.array(values) / 60, label=f"{count} seed{'s' * (count != '1')}", **style)
    ax.axhline(chain, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.annotate("base and $N = 200$", (W[0], chain), (0, -12), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="workers", ylabel="minutes")
    ax.set_xticks(W, [str(w) for w in W])
    longest = max(max(v) for v in beyond["seconds"].values()) / 60
    ticks = [v for v in (2, 5, 10, 20, 50, 100) if chain / 2 < v < 2 * longest]
    ax.set_yticks(ticks, [str(v) for v in ticks])
    ax.minorticks_off()
    ax.legend()
alt = "Minutes that the paper's grid takes by the model against the number of workers, for one, three and ten seeds: each curve falls until "
figures.show(fig, "speed-cluster", alt + "it meets the line of the longest chain.")

# %% [markdown]
# ```{glue:figure} speed-cluster
# :name: fig-speed-cluster
#
# The paper's grid with its bases, by the model with the costs measured above: to two workers on this machine, from four on a Dask cluster
# whose workers are as fast. Dashed: what no number of workers shortens.
# ```

# %% tags=["hide-input"]
rows, local = [], W.tolist().index(2)
for count, values in beyond["seconds"].items():
    enough = next(i for i, v in enumerate(values) if v < 1.1 * min(values))
    row = {"seeds": count, "two cores here, minutes": f"{values[local] / 60:.1f}", "workers that are enough": int(W[enough])}
    rows.append(row | {"minutes with them": f"{values[enough] / 60:.1f}"})
figures.table(rows)

# %% [markdown]
# *Enough*: more workers gain less than a tenth. Dask costs {glue:text}`extra` s a batch more than local processes. So a cluster that stands
# already pays as soon as more of its workers find work than this machine has cores. One that has to be set up first pays if that takes
# less than the difference of the two columns.
#
# ## Starting, and building

# %% tags=["hide-input"]
start, book = absolute["imports"]["import itlib, beyond import torch"], absolute["full-book"]
figures.table([{"what": f"`{name}`", "took": f"{within(v, '.1f')} {v['unit']}"} for name, v in book.items()])
figures.glue(start=within(start), torch_start=f"{amount('imports', 'import torch'):.1f}")

# %% [markdown]
# The book in a fresh clone. An unchanged `make book` starts nothing: a build leaves a hash of what it was made from and of what it made.
# Importing all of itlib but its guests takes {glue:text}`start` s longer than importing torch, which takes {glue:text}`torch_start` s.
#
# ## On a GPU

# %% tags=["hide-input"]
there = next(r["parts"]["gpu"] for r in processors.values() if "gpu" in r["parts"])
gpu, made = there["absolute"], there["made"]
places = ("GPU", "GPU, noise drawn there", "one core")
names = list(dict.fromkeys(name.rpartition(": ")[0] for name in gpu))


def seconds_at(name, place):
    figure = gpu.get(f"{name}: {place}")
    return number(figure["median"]) if figure else ""


figures.table([{"seconds": name} | {place: seconds_at(name, place) for place in places} for name in names])
took = {name: figure["median"] for name, figure in gpu.items()}
gains = {n: took[f"{n}: one core"] / took[f"{n}: GPU"] for n in names if f"{n}: one core" in gpu}
few, more = (name for name in gains if "samples" in name)
assert gains["a tilt of recommended"] < 1.2
figures.glue(device=there["found"]["device"], host=made["processor"], gpu_torch=made["versions"]["torch"])
figures.glue(gpu_growth=f"{took[f'{more}: GPU'] / took[f'{few}: GPU']:.1f}", few=few, more=more)
figures.glue(gain_more=f"{gains[more]:.0f}", gain_few=f"{gains[few]:.0f}", gain_tilt=f"{gains['a tilt of paper']:.1f}")
figures.glue(chains=RecommendedConfig.B)

# %% [markdown]
# Medians on one {glue:text}`device`, and on one core of its machine ({glue:text}`host`, torch {glue:text}`gpu_torch`); samples in 200 steps.
# A test holds that every method computes there what it computes here.
#
# A GPU is told each product separately, so {glue:text}`more` take {glue:text}`gpu_growth` times as long as {glue:text}`few`: they are
# {glue:text}`gain_more` and {glue:text}`gain_few` times as fast as on a core. A tilt of the paper is {glue:text}`gain_tilt` times as fast;
# one of `recommended`, which learns from {glue:text}`chains` chains at a time, gains nothing. Noise comes from the CPU by default, the same
# for all devices; a `generator` of the GPU draws it there.
#
# ## When it gets slower
#
# `make bench` ends with exit status 1 and a sentence for each ratio that is worse than the record's by more than 20 %, and says what no
# record of the same kind of processor has. Quartiles stand beside the medians, to tell a bad day from a bad change;
# `make bench ONLY="sampling training"` measures again.

# %% tags=["hide-input"]
every = {f"{part}: {name}": figure for part in ratios for name, figure in ratios[part].items()}
width = {name: (f["high"] - f["low"]) / f["median"] for name, f in every.items() if f["high"] != f["low"]}
assert max(width.values()) < 0.2
figures.glue(typical=f"{100 * np.median([*width.values()]):.0f} %", noisiest=f"{100 * max(width.values()):.0f} %")

# %% [markdown]
# In this record the middle half of the turns spans {glue:text}`typical` of the median for a typical ratio, and {glue:text}`noisiest` for the
# noisiest. So a fifth is outside what turns differ by.
#
# ## Try this
#
# - *Predict, then run.* How many samples should a dataset have, if each is to cost as little as possible? (Hint: read
#   {numref}`fig-speed-growth` per sample.)

# %% tags=["hide-cell"]
S = growth["S"]
each_sample = np.array([v["median"] for v in S["seconds"]]) / np.array(S["points"])
cost = each_sample / each_sample.min()
figures.table([{"samples": f"{n:,}", "cost of one": c} for n, c in zip(S["points"], cost, strict=True)], floatfmt=".2f")
print("Few rows pay Python's overhead and read all weights for little work; very many no longer fit in the cache.")
assert each_sample[0] > each_sample.min()

# %% [markdown]
# - *Derive.* What is the shortest time in which any number of workers could run ten seeds of $N = 20$ alone, and how many workers get
#   there? (Hint: a base comes before its tilts, and both have the overhead of a cell.)

# %% tags=["hide-cell"]
chain = beyond["base"] + 20 * sum(each.values()) + 2 * cluster["each"]
share = beyond["base"] / chain
print(f"A base and twenty tilts, {chain / 60:.1f} minutes, by ten workers: every seed is a chain of its own.")
print(f"{100 * share:.0f} % of it is the base, so faster training of bases would help more than faster tilts.")
assert share > 0.5
