# ---
# jupyter:
#   itlib:
#     reads:
#     - book/bench.json
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
# A figure of this book should come back soon after an idea has changed it. So the code has been measured against what one would publish, what a library gives, and what
# the processor can do at all.
#
# **You will see** how to measure on a machine whose speed drifts; which targets were set, and which of them are met; where the time goes, and what was tried to spend less; how time and memory grow with every
# size of the problem; and when more machines help.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # the record is the same in both profiles
bench = "../book/bench.json"  # what `make bench RECORD=1` has left

# %% tags=["remove-cell"]
import json

import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from itlib import figures
from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments.files import located

record = json.loads(located(bench).read_text())
parts = record["parts"]
ratios = {name: part["ratios"] for name, part in parts.items()}
found = {name: part["found"] for name, part in parts.items()}
absolute = {name: part["absolute"] for name, part in parts.items()}


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


def power(value):
    """A small number as a digit and a power of ten."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"${digit}\\cdot10^{{{int(exponent)}}}$"


def fit(found):
    """An exponent and its standard error, on one line."""
    digits = 2 if found["error"] >= 0.005 else 3
    return f"{found['exponent']:.{digits}f} ± {found['error']:.{digits}f}".replace("-", "−").replace(" ", "\u00a0")


def plain_ticks(axis, values=None):
    """Numbers instead of powers of ten on a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if values is not None:
        axis.set_major_locator(FixedLocator(values))
        axis.set_minor_locator(NullLocator())


# %% [markdown]
# ## Measured in turns
#
# The same loop takes twice as long when a neighbour uses the other half of a core, and a laptop slows down as it warms up. Seconds alone say little. So what is compared is measured *in turns*, many times, each turn backwards after one forwards; each turn gives a ratio;
# and the median over turns is reported with its quartiles. On one thread the clock counts the processor's seconds, which others do not lengthen.
# Memory that is freed is kept, for all alike: whether the system takes it back at every step is chance, and a script of yours may gain by the same two variables (`bench` in the Makefile).
#
# `make bench` does that. It writes a record, compares it with the one in git, and says which ratios got worse by more than a fifth. This page shows the record in git, made on:

# %% tags=["remove-input"]
rows = []
for name in sorted(parts.keys() - {"gpu"}, key=list(parts).index):
    made = parts[name]["made"]
    rows.append(
        {
            "part": name,
            "processor": made["processor"],
            "system": made["platform"],
            "commit": f"`{made['commit'][:7]}`" + (" and changes" if "+" in made["commit"] else ""),
            "load before": "" if made["load before"] is None else f"{made['load before']:.1f}",
            "minutes": f"{made['seconds'] / 60:.1f}",
        }
    )
machine = pd.DataFrame(rows)
alike = [c for c in ("processor", "system", "commit") if machine[c].nunique() == 1]
versions = parts["sampling"]["made"]["versions"]
said = [f"{c} {machine[c].iloc[0]}" for c in alike] + [
    ", ".join(f"{k} {v}" for k, v in versions.items() if k in ("python", "torch", "diffusers"))
]
display(Markdown("; ".join(said) + f". All parts took {machine['minutes'].astype(float).sum():.0f} minutes."))
if len(alike) < 3:
    display(Markdown(machine.drop(columns=alike).to_markdown(index=False, disable_numparse=True)))
cores = 2
loads = [part["made"]["load before"] for part in parts.values() if part["made"]["load before"] is not None]
if max(loads, default=0) > cores + 0.5:
    display(
        Markdown(
            f"```{{warning}}\nUp to {max(loads):.1f} processes wanted the {cores} cores before a part began: figures of the wall clock, those of two threads and two workers among them, are worse than on a quiet machine.\n```"
        )
    )

# %% [markdown]
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
    ("equal", "textbook / as good: the sampler alone"): "as good samples, the sampler alone",
    ("equal", "textbook / as good: the paper's network"): "as good samples, the paper's network",
    ("equal", "textbook / as good: the recommended base"): "as good samples, the recommended base",
    ("grid", "the paper's grid on two cores"): "the paper's grid on two cores, minutes",
    ("recommended", "paper at N = 50 / recommended, seconds"): "N = 50 / recommended, seconds",
    ("recommended", "paper at N = 50 / recommended, error"): "N = 50 / recommended, error",
    ("workers", "two workers / one"): "two workers / one",
    ("imports", "import itlib, beyond import torch"): "import itlib beyond torch, seconds",
    ("book", "make book, smoke"): "make book, smoke, minutes",
    ("book", "make book again, smoke"): "make book again, smoke, seconds",
    ("book", "make book, full"): "make book, full, minutes",
    ("book", "make book again, full"): "make book again, full, seconds",
}
goals = [
    {"title": TITLES.get((part, name), name), "part": part, "name": name, **figure}
    for part in parts
    for name, figure in (ratios[part] | absolute[part]).items()
    if "target" in figure
]
tiny = 1e-3  # import costs may come out as nothing, or less


def multiple(goal, key="median"):
    value, target = max(goal[key], tiny), goal["target"]
    return value / target if goal["better"] == "high" else target / value


order = list(TITLES.values())
goals.sort(key=lambda goal: order.index(goal["title"]) if goal["title"] in order else len(order))
narrowest, widest = 0.25, 12.0
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.6, 0.29 * len(goals) + 0.9))
    for row, goal in enumerate(reversed(goals)):
        at, good = min(max(multiple(goal), narrowest), widest), reached(goal)
        color = figures.COLORS["target" if good else "learned"]
        ax.plot([1, at], [row, row], color=color, linewidth=1.2)
        ax.plot(at, row, "o" if good else "X", color=color, markersize=6)
        sign = "≥" if goal["better"] == "high" else "≤"
        text = f"{number(goal['median'])} {sign} {goal['target']:g}"
        ax.annotate(text, (max(at, 1), row), (7, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.axvline(1, color=figures.INK, linewidth=0.8)
    ax.set_yticks(range(len(goals)), [goal["title"] for goal in reversed(goals)])
    ax.set(xscale="log", xlim=(0.22, widest * 3.5), xlabel="multiple of the target (cut off at ¼ and 12)")
    ax.set_xticks([0.25, 0.5, 1, 2, 5, 10], ["¼", "½", "1", "2", "5", "10"])
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
missed = [goal for goal in goals if not reached(goal)]
figures.show(
    fig,
    "speed-targets",
    f"One row for each of {len(goals)} targets with the figure that was found; {len(goals) - len(missed)} lie on the good side of a line at one, "
    + (f"{len(missed)} on the other." if missed else "none on the other."),
)

# %% [markdown]
# ```{glue:figure} speed-targets
# :name: fig-speed-targets
#
# What was found beside what was asked for. Circles are met, crosses missed. One thread and medians, but for two workers, which need two cores.
# ```

# %% tags=["remove-input"]
text = f"Of {len(goals)} targets {len(goals) - len(missed)} are met."
if missed:
    text += " Missed: " + "; ".join(f"*{g['title']}*, {within(g)} instead of {g['target']:g}" for g in missed) + "."
display(Markdown(text + " The sections below say what each means, and what bounds it."))

# %% [markdown]
# ## Sampling
#
# A dataset of the paper is 1,000 chains of 200 steps. Four programs draw it, from the same noise, and get the same samples up to rounding:
#
# - *textbook*: Algorithm 1 as printed, one batched call of the network a step, without gradients. The network is as one writes it: time is embedded for each sample, and is one more input.
# - *diffusers*: the same network in the loop of a pipeline, with the library's DDPM or DDIM scheduler.
# - *itlib*.
# - *nothing but products*: matrix products of a hidden layer's shape, as many operations as the layers need, by the faster of two libraries.

# %% tags=["hide-input"]
rates = found["sampling"]["floor"]["rates"]
own = absolute["sampling"]["itlib, 1 thread"]["median"]
floor = ratios["sampling"]["floor / itlib"]["median"] * own
silu = ratios["sampling"]["products with SiLU / itlib"]["median"] * own
bars = {
    "diffusers DDPM": absolute["sampling"]["diffusers DDPM, 1 thread"]["median"],
    "diffusers DDIM": absolute["sampling"]["diffusers DDIM, 1 thread"]["median"],
    "textbook": absolute["sampling"]["textbook, 1 thread"]["median"],
    "diffusers, our network": absolute["sampling"]["diffusers, our network, 1 thread"]["median"],
    "itlib": own,
    "products and SiLU": silu,
    "nothing but products": floor,
}
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.4, 2.7))
    for row, (name, value) in enumerate(reversed(bars.items())):
        color = figures.COLORS["learned" if name == "itlib" else "band" if "products" in name else "base"]
        ax.barh(row, value / own, color=color, height=0.62, hatch="//" if "products" in name else "", edgecolor="white")
        ax.annotate(f"{value / own:.2f}", (value / own, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(bars)), list(bars)[::-1])
    ax.set(xlabel="seconds, in units of itlib's")
    ax.tick_params(axis="y", length=0)
figures.show(
    fig,
    "speed-sampling",
    f"Bars: the textbook takes {bars['textbook'] / own:.2f} times as long as itlib, diffusers up to {max(bars['diffusers DDPM'], bars['diffusers DDIM']) / own:.2f} times, nothing but products {floor / own:.2f}.",
)

# %% [markdown]
# ```{glue:figure} speed-sampling
# :name: fig-speed-sampling
#
# Time of 1,000 × 200 steps on one thread.
# ```

# %% tags=["remove-input"]
libraries = " and ".join(f"{rate['median']:.0f} billion operations a second by {name}" for name, rate in rates.items())
share = ratios["sampling"]["floor / itlib"]
display(
    Markdown(
        f"itlib takes {own:.2f} s here. On this shape the processor multiplies {libraries}. Of the faster rate itlib reaches **{100 * share['median']:.0f} %**. Products that are followed by their SiLU, and nothing else, "
        f"would reach {100 * floor / silu:.0f} %, so no code around the same layers could be faster than itlib by more than {100 * (own / silu - 1):.0f} %; and none that needs the products, by more than {100 * (own / floor - 1):.0f} %."
    )
)
both = found["sampling"]["two threads"]
display(
    Markdown(
        f"On two threads, by the clock on the wall, the textbook takes {within(both['textbook / itlib'])} times as long as itlib and diffusers {within(both['diffusers DDPM / itlib'])}; "
        f"itlib is {both['one thread / two']:.2f} times as fast as on one, at {100 * both['floor / itlib']['median']:.0f} % of the rate that two threads multiply at."
    )
)

# %% [markdown]
# ### The story of the profile
#
# What the textbook spends its time on, and what itlib does:

# %% tags=["hide-input"]
profiles = found["attempts"]["profiles"]
kinds = [k for k in profiles["sampling, itlib"] if max(p[k] for p in profiles.values()) > 0.005]
hatches = ("", "//", "..", "xx", "\\\\", "--", "")
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.8, 2.6))
    for row, name in enumerate(reversed(profiles)):
        left = 0.0
        for i, kind in enumerate(kinds):
            value = 100 * profiles[name][kind]
            color = (*figures.SERIES, figures.COLORS["band"])[i % 7]
            ax.barh(
                row,
                value,
                left=left,
                height=0.6,
                color=color,
                hatch=hatches[i % 7],
                edgecolor="white",
                linewidth=0.5,
                label=kind if row == 0 else None,
            )
            if value > 9:
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                ax.text(
                    left + value / 2, row, f"{value:.0f}", ha="center", va="center", fontsize=8.5, color="black", bbox=box
                )
            left += value
    ax.set_yticks(range(len(profiles)), list(profiles)[::-1])
    ax.set(xlabel="% of the time", xlim=(0, 100))
    ax.tick_params(axis="y", length=0)
    fig.legend(loc="outside upper center", ncols=3, fontsize=9)
figures.show(
    fig,
    "speed-profile",
    "Shares of time by kind of work. Sampling is mostly matrix products, with itlib more so than with the textbook; in training the optimiser and the bookkeeping of gradients take a part.",
)

# %% [markdown]
# ```{glue:figure} speed-profile
# :name: fig-speed-profile
#
# Where the time goes, by the profiler of torch. itlib's products contain their SiLU.
# ```
#
# Four changes make the textbook's sampler ours. All samples of a step share its time, so the part of the first layer that sees time is computed *once a step*. SiLU works *in place*, so that nothing is allocated. And product, bias and SiLU are *one pass* over memory
# where oneDNN is there. Last, the coefficients of all steps are computed *at once*. Each rung of the ladder below has the ones above it.

# %% tags=["hide-input"]
tried = found["attempts"]["sampling"]
ladder = [
    "as usually written",
    "embedding once a step",
    "and SiLU in place",
    "and SiLU inside the product",
    "and coefficients at once (itlib)",
]
ladder = [name for name in ladder if name in tried]
rest = {name: row for name, row in tried.items() if name not in ladder}
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.6), sharex=True, height_ratios=[len(ladder), len(rest)])
    for ax, names, color in ((axes[0], ladder, "learned"), (axes[1], list(rest), "base")):
        for row, name in enumerate(reversed(names)):
            time = tried[name]["time"]
            ax.plot([time["low"], time["high"]], [row, row], color=figures.COLORS[color], linewidth=3, alpha=0.5)
            ax.plot(time["median"], row, "o", color=figures.COLORS[color], markersize=6)
            ax.annotate(
                f"{time['median']:.2f}", (time["high"], row), (7, 0), textcoords="offset points", va="center", fontsize=9
            )
        ax.axvline(1, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(names)), names[::-1])
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.tick_params(axis="y", length=0)
    axes[0].set_title("what was kept", loc="left")
    axes[1].set_title("what was tried and dropped", loc="left")
    axes[1].set_xlabel("seconds, in units of itlib's")
figures.show(
    fig,
    "speed-tried",
    "Times in units of itlib's, with quartiles. The kept changes descend to one; of those dropped only bfloat16 is far below one.",
)

# %% [markdown]
# ```{glue:figure} speed-tried
# :name: fig-speed-tried
#
# Sampling, one change at a time: median and quartiles of the ratio to itlib.
# ```

# %% tags=["remove-input"]
WHY = {
    "weights packed beforehand": "A second copy of the weights that has to follow every training step",
    "bfloat16": "Seven bits of a mantissa; see below",
    "inference_mode": "Nothing is left to save once gradients are off",
    "torch.compile": "It needs a C++ compiler, and does not use the fused product",
}
threshold = 1.5
lines = []
for name, row in rest.items():
    gain = 1 / row["time"]["median"]
    change = row.get("change", row["samples"])
    verdict = f"{gain:.2f} times as fast" if gain >= 1 else f"{1 / gain:.2f} times as slow"
    exactly = (
        "the same bits"
        if change == row["samples"] == 0
        else f"predictions move by {power(change)}, samples by {power(row['samples'])} (root mean squares)"
    )
    before = f"; {row['beforehand']:.0f} s before the first sample" if row.get("beforehand") else ""
    lines.append(f"- *{name}*: {verdict}, {exactly}{before}. {WHY[name]}.")
display(
    Markdown(
        "What was dropped, and why. A second path of code enters itlib if it gains half as much again:\n\n"
        + "\n".join(lines)
    )
)
if "bfloat16" in rest:
    half = rest["bfloat16"]
    gain = 1 / half["time"]["median"]
    enough = gain >= threshold
    display(
        Markdown(
            "bfloat16 is the one to think about. It "
            + (
                f"gains the factor of {threshold:g} that a second path must"
                if enough
                else f"gains {gain:.2f}, less than the {threshold:g} that a second path must"
            )
            + f", and its rounding, {power(half['change'])}, is small beside the error of the network, a few hundredths; so are the {power(half['samples'])} by which samples move. It was left out all the same: a tilt is trained on differences of predictions, "
            "$\\delta\\, r\\,(\\varepsilon_{\\text{old}} - z)$, samples of one tilt are the data of the next, and the records in this book would all have to be made again, on processors that have it."
        )
    )

# %% [markdown]
# ## Training
#
# A tilt of the paper has a hundred optimiser steps on 64 rows. The textbook asks the teacher about 64 rows at a time; itlib asks once for 25 batches, since teacher, noise and times do not depend on the student. And Adam's update of all parameters is one fused loop.

# %% tags=["hide-input"]
r, a = ratios["training"], absolute["training"]
variants = found["attempts"]["training"]
one = {"median": 1.0, "low": 1.0, "high": 1.0}


def inverse(figure):
    return {"median": 1 / figure["median"], "low": 1 / figure["high"], "high": 1 / figure["low"]}


library = found["training"]["floor"]["library"]
panels = {
    "with the teacher's part": {"diffusers": r["diffusers / itlib"], "textbook": r["textbook / itlib"], "itlib": one},
    "the step alone": {name: row["time"] for name, row in variants.items()}
    | {"itlib": one}
    | {"nothing but products, torch.mm": inverse(r["one step / torch.mm"])}
    | ({f"nothing but products, {library}": inverse(r["one step / floor"])} if library != "torch.mm" else {}),
}
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 1, figsize=(6.4, 4.2), sharex=True, height_ratios=[len(v) for v in panels.values()])
    for ax, (title, bars) in zip(axes, panels.items(), strict=True):
        for row, (name, figure) in enumerate(reversed(bars.items())):
            color = figures.COLORS["learned" if name == "itlib" else "band" if "products," in name else "base"]
            ax.plot([figure["low"], figure["high"]], [row, row], color=color, linewidth=3, alpha=0.5)
            ax.plot(figure["median"], row, "s" if "products," in name else "o", color=color, markersize=6)
            note = f"{figure['median']:.2f}"
            ax.annotate(note, (figure["high"], row), (7, 0), textcoords="offset points", va="center", fontsize=9)
        ax.axvline(1, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set_yticks(range(len(bars)), list(bars)[::-1])
        ax.set_ylim(-0.6, len(bars) - 0.4)
        ax.set_title(title, loc="left")
        ax.tick_params(axis="y", length=0)
    axes[1].set_xlabel("seconds of an optimiser step, in units of itlib's")
    axes[1].set_xlim(0, None)
figures.show(
    fig,
    "speed-training",
    f"Seconds of an optimiser step in units of itlib's: the textbook {r['textbook / itlib']['median']:.2f}, diffusers {r['diffusers / itlib']['median']:.2f}, nothing but products {1 / r['one step / floor']['median']:.2f}; what was tried lies between.",
)

# %% [markdown]
# ```{glue:figure} speed-training
# :name: fig-speed-training
#
# An optimiser step of a tilt on one thread: median and quartiles. Above, with the step's share of the teacher; below, a regression step alone, what was tried instead, and its products by each library. Autograd calls that of `torch.mm`.
# ```

# %% tags=["remove-input"]
products = 100 * profiles["training, itlib"]["matrix products"]
text = f"With its share of the teacher a step takes {a['itlib, 1 thread']['median']:.2f} ms. Products are {products:.0f} % of a step, so all the rest together could gain {100 / products:.2f} at most."
if "products by oneDNN" in variants:
    dnn, hand = variants["products by oneDNN"], variants["and no autograd"]
    gain = 1 / hand["time"]["median"]
    text += (
        f" The other handle is the library: with oneDNN forward and backward, in fifteen lines, a step would be {1 / dnn['time']['median']:.2f} times as fast here; with the chain rule written out by hand as well, in thirty, {gain:.2f} times. Either changes gradients by {power(hand['change'])} of their length. "
        + (
            "That would be enough for a second path."
            if gain >= threshold
            else f"Both are below the {threshold:g} that a second path must gain, so they stay out."
        )
    )
missing = [name for name in ("textbook / itlib", "one step / floor") if not reached(r[name])]
if missing:
    named = {"textbook / itlib": "the textbook", "one step / floor": "the products"}
    text += " So the target is missed for " + " and ".join(named[name] for name in missing) + "."
    if "and no autograd" in variants:
        with_teacher, alone = (a[f"{name}, 1 thread"]["median"] for name in ("itlib", "one step"))
        faster = {"textbook / itlib": with_teacher / (with_teacher - alone + alone / gain), "one step / floor": 1 / gain}
        text += (
            " By hand it would come to " + " and ".join(f"{r[name]['median'] * faster[name]:.2f}" for name in missing) + "."
        )
display(Markdown(text))

# %% [markdown]
# ## As good, not as many steps
#
# Equal steps are one question. Equally good samples are the better one, and there other samplers help far more than other code ({doc}`b_samplers`). The bar is the sliced Wasserstein distance of the textbook's 200 steps to the exact law.

# %% tags=["hide-input"]
equal = found["equal"]
settings = {name: equal[name] for name in ("the sampler alone", "the paper's network", "the recommended base")}
KINDS = {"Algorithm 1": ("learned", "*"), "analytic": ("paper", "s"), "SDE-DPM++": ("base", "o"), "DPM++": ("target", "^")}
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.4, 3.1), sharex=True, sharey=True)
    for ax, (title, setting) in zip(axes, settings.items(), strict=True):
        for kind, (color, marker) in KINDS.items():
            own_rows = [v for k, v in setting["samplers"].items() if k.split(", ")[0] == kind]
            x, y, e = (
                [v["faster"]["median"] for v in own_rows],
                [v["error"] for v in own_rows],
                [v["standard error"] for v in own_rows],
            )
            ax.errorbar(
                x,
                y,
                e,
                color=figures.COLORS[color],
                marker=marker,
                markersize=9 if marker == "*" else 5,
                linewidth=1,
                label=kind,
            )
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
figures.show(
    fig,
    "speed-equal",
    "Error of samples against how much faster than the textbook they were drawn, in three panels. "
    + "; ".join(
        f"{title}: {s['best'] or 'none'} is the fastest below the textbook's error" for title, s in settings.items()
    ),
)

# %% [markdown]
# ```{glue:figure} speed-equal
# :name: fig-speed-equal
#
# Error and speed of samplers, each with several numbers of steps. Dashed: the textbook's error, with the exact denoiser on the left and with the paper's trained network in the other two. Dotted: exact samples. Grey: eight times as fast.
# Bars: standard errors.
# ```

# %% tags=["remove-input"]
text = []
for title, setting in settings.items():
    if setting["best"]:
        row, steps = setting["samplers"][setting["best"]], setting["best"]
        who = "no other sampler is as good; the same steps by itlib" if steps.startswith("Algorithm 1") else f"{steps} steps"
        text.append(
            f"- *{title}*: {who} are {row['faster']['median']:.0f} times as fast, with an error of {row['error']:.4f} ± {row['standard error']:.4f} against {setting['bar']:.4f}."
        )
    else:
        close = min(
            (k for k in setting["samplers"] if not k.startswith("Algorithm 1")),
            key=lambda k: setting["samplers"][k]["error"],
        )
        row = setting["samplers"][close]
        text.append(
            f"- *{title}*: no other sampler comes below the bar of {setting['bar']:.4f} for good; {close} steps come closest, with {row['error']:.4f} ± {row['standard error']:.4f}, {row['faster']['median']:.0f} times as fast."
        )
display(
    Markdown(
        "\n".join(text)
        + f"\n\n{equal['n']:,} samples, {equal['seeds']} seeds; exact ones are at {equal['floor']['median']:.4f}. A sampler counts from the number of steps on from which all more that were tried are good enough."
    )
)

# %% [markdown]
# Two of the three change one thing only. *The sampler alone* has the exact denoiser's error and the network's time. *The paper's network* has errors of its own: it is too wide, which 200 steps of DDPM hide by being too narrow, and a better sampler does not. *The recommended base* replaces the network
# too: a smaller one on the same data, in better coordinates ({doc}`b_floor`).
#
# ## The experiment

# %% tags=["remove-input"]
g, rec = found["grid"], found["recommended"]
minutes = absolute["grid"]["the paper's grid on two cores"]
tilt = absolute["grid"]["a tilt"]
each = {name: value["median"] for name, value in g["seconds of a tilt"].items()}
N = g["grid"]
text = (
    f"A tilt of the paper takes {within(tilt)} s: {each['sampling']:.2f} s draw samples and {each['training']:.2f} s train; {each['trace']:.3f} s more trace its error. The grid of $N$ = {', '.join(map(str, N))} is {sum(N)} tilts, so on two cores "
    f"**{within(minutes, '.1f')} minutes**, or {minutes['median'] * record['beyond']['slower']:.1f} if two runs slow each other down as measured below. A tilt costs the same at $N = 200$ as at $N = 20$: {within(ratios['grid']['a tilt at N = 200 / at N = 20'])}. "
    f"The records of {{doc}}`s4_2_results`, {g['committed']['runs']} runs on a slower machine, took {g['committed']['a tilt with its trace']:.2f} s a tilt.\n\n"
    f"*The way to less.* Tilts of a run follow one another, so the run of {max(N)} tilts alone takes {g['longest chain']:.1f} minutes, however many cores there are. Fewer tilts and cheaper ones are the way: *recommended* chooses {rec['recommended']['tilts']} tilts by its rule, and all of them take "
    f"{absolute['recommended']['recommended, all tilts']['median']:.1f} s against {absolute['recommended']['paper, all tilts']['median']:.1f} s of the paper's 50, a factor of **{ratios['recommended']['paper at N = 50 / recommended, seconds']['median']:.1f}**. Its error of $\\hat x_1$ is "
    f"{rec['recommended']['error']:.3f} and not {rec['paper']['error']:.3f}. One seed, and two base networks: a good part of the smaller error is the base's, which {{doc}}`b_recommended` tells apart from the method's."
)
display(Markdown(text))

# %% [markdown]
# ## Growth
#
# One size at a time, the others small. The exponent $p$ of a cost $\propto x^p$ is the slope in logarithms, fitted to the last three points, where the overhead of Python no longer counts.

# %% tags=["hide-input"]
LABELS = {
    "N": "tilts $N$",
    "S": "samples $S$",
    "J": "steps $J$",
    "B": "minibatch $B$",
    "d": "dimension $d$",
}
growth = found["growth"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 3, figsize=(7.4, 4.8))
    for ax, (size, label) in zip(axes.flat, LABELS.items(), strict=False):
        row = growth[size]
        x, y = np.array(row["points"], float), np.array([v["median"] for v in row["seconds"]])
        ax.plot(x, y / y[0], color=figures.COLORS["base"], marker="o", markersize=4.5, label="seconds")
        memory = np.array([np.nan if v is None else v for v in row["MiB"]], float)
        if np.nanmin(memory) > 0:
            ax.plot(
                x,
                memory / memory[0],
                color=figures.COLORS["learned"],
                marker="s",
                markersize=4,
                linestyle="--",
                label="memory",
            )
        p = row["upper"]
        ax.set(xscale="log", yscale="log", xlabel=label, title=f"$p$ = {fit(p)}")
        plain_ticks(ax.xaxis, x if len(x) < 5 else x[::2] if len(x) < 6 else x[[0, 2, 3, 5]])
        top = np.nanmax([*y / y[0], *memory / memory[0]])
        plain_ticks(ax.yaxis, [v for v in (1, 2, 5, 10, 20, 50, 100, 200) if v <= 1.3 * top][:: 1 if top < 12 else 2])
    axes[0, 0].set_ylabel("multiple of the first")
    axes[1, 0].set_ylabel("multiple of the first")
    ax = axes[1, 2]
    seeds = growth["seeds"]
    for (what, color), marker in zip((("forward", "base"), ("gradient", "learned")), "os", strict=True):
        ax.plot(
            seeds["seeds"],
            [v["median"] for v in seeds[what]],
            color=figures.COLORS[color],
            marker=marker,
            markersize=4.5,
            label=what,
        )
    ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.set(xscale="log", xlabel="seeds in one stack", title="stacked: times as fast", ylim=(0, None))
    ax.set_xticks(seeds["seeds"], [str(s) for s in seeds["seeds"]])
    ax.minorticks_off()
    ax.legend(fontsize=8.5)
    fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
figures.show(
    fig,
    "speed-growth",
    "Six small panels. Seconds grow about in proportion to tilts, samples, steps and rows, and more slowly with dimension. Stacked seeds are not faster than separate ones.",
)

# %% [markdown]
# ```{glue:figure} speed-growth
# :name: fig-speed-growth
#
# Time and the most memory that is held at once, against each size alone, as multiples of the first point: whole runs of $N$ tilts, datasets of $S$ samples in $J$ steps, optimiser steps on $B$ rows, tilts in $d$ dimensions. Last panel: networks of several seeds stacked by `torch.func`, against one after the other.
# ```


# %% tags=["remove-input"]
rows = []
for size, label in LABELS.items():
    row = growth[size]
    mib = [v for v in row["MiB"] if v is not None]
    rows.append(
        {
            "": label,
            "from, to": f"{row['points'][0]:,} to {row['points'][-1]:,}",
            "all points": fit(row["exponent"]),
            "last three": fit(row["upper"]),
            "MiB": f"{mib[0]:.0f} to {mib[-1]:.0f}" if mib else "not told here",
            "of MiB": fit(row["exponent of MiB"]) if "exponent of MiB" in row else "none",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
d = growth["d"]
seconds = [v["median"] for v in d["seconds"]]
N_memory = growth["N"]["MiB"]
stack = {what: growth["seeds"][what][-1]["median"] for what in ("forward", "gradient")}
text = f"The dimension costs little until first and last layer, $256\\,d$ weights each, outweigh the four of $256^2$: from {d['points'][0]} to {d['points'][-1]:,} dimensions a tilt takes {seconds[-1] / seconds[0]:.1f} times as long. "
if None not in N_memory:
    tilts_more = growth["N"]["points"][-1] - growth["N"]["points"][0]
    text += f"Tilts take time and hardly any memory: {(N_memory[-1] - N_memory[0]) / tilts_more:.2f} MiB each. ".replace(
        "-", "−"
    )
text += f"Stacking {growth['seeds']['seeds'][-1]} seeds is {stack['forward']:.2f} times as fast as one after the other for samples, and {stack['gradient']:.2f} for gradients. "
text += (
    "Batched products know nothing of SiLU and are no faster than plain ones on a processor; a stack pays where single products are too small to fill the device. So seeds are processes here."
    if max(stack.values()) < 1.5
    else "Where the gain is worth it, seeds could share a process; they are processes here, which a cluster needs anyway."
)
display(Markdown(text))

# %% [markdown]
# ## Two workers, and many
#
# A run of one $N$ and seed, a *cell*, is a process with one thread. More cores take more cells. How good are two?

# %% tags=["remove-input"]
two = ratios["workers"]["two workers / one"]
threads = found["sampling"]["two threads"], found["training"]["two threads"]
display(
    Markdown(
        f"Two workers do **{within(two)}** times as much as one"
        + (
            ""
            if reached(two)
            else f", less than the {two['target']:g} that was asked for: two that share caches, memory or the two halves of one core, or a machine that others use"
        )
        + f". Two *threads* of one process sample {threads[0]['one thread / two']:.2f} times as fast as one."
        + (" So cores are for cells." if two["median"] > threads[0]["one thread / two"] else "")
    )
)

# %% [markdown]
# What does a cluster cost? A small batch of cells that do next to nothing ran here and on a local Dask cluster. The model: cells are queued when what they wait for is there, longest first, and a free worker takes the next; each costs its work
# and a fixed overhead.

# %% tags=["hide-input"]
c, far = found["cluster"], record["beyond"]
rows = [
    {
        "where, workers": name,
        "measured, s": f"{row['seconds']:.1f}",
        "model, s": f"{far['model'][name]:.1f}",
        "nothing to do, s": f"{row['again']:.1f}",
    }
    for name, row in c["runs"].items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        f"{c['cells']} cells. A cell costs {c['each']:.1f} s beside its work: it starts Python, torch and a kernel, judges the model and draws its page. The model was fitted to the first row; that two workers here slow each other down by {far['slower']:.2f} was measured above."
    )
)

# %% tags=["hide-input"]
W = np.array(far["workers"])
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.2, 3.4))
    for (count, values), color, marker in zip(far["seconds"].items(), figures.SERIES, figures.MARKERS, strict=False):
        ax.plot(
            W, np.array(values) / 60, color=color, marker=marker, markersize=5, label=f"{count} seed{'s' * (count != '1')}"
        )
    ax.axhline(far["chain"] / 60, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.annotate("base and $N = 200$", (W[0], far["chain"] / 60), (0, -12), textcoords="offset points", fontsize=9)
    ax.set(xscale="log", yscale="log", xlabel="workers", ylabel="minutes")
    ax.set_xticks(W, [str(w) for w in W])
    ticks = [
        v for v in (2, 5, 10, 20, 50, 100) if far["chain"] / 120 < v < 2 * max(max(v) for v in far["seconds"].values()) / 60
    ]
    ax.set_yticks(ticks, [str(v) for v in ticks])
    ax.minorticks_off()
    ax.legend()
figures.show(
    fig,
    "speed-cluster",
    "Minutes that the paper's grid takes by the model against the number of workers, for one, three and ten seeds: each curve falls until it meets the line of the longest chain.",
)

# %% [markdown]
# ```{glue:figure} speed-cluster
# :name: fig-speed-cluster
#
# The paper's grid with its bases, by the model with the costs measured above: to two workers on this machine, from four on a Dask cluster whose workers are as fast. Dashed: what no number of workers shortens.
# ```

# %% tags=["remove-input"]
lines = []
extra = c["startup"]["Dask"] - c["startup"]["local"]
local = W.tolist().index(2)
for count, values in far["seconds"].items():
    enough = next(int(w) for w, v in zip(W, values, strict=True) if v < 1.1 * min(values))
    lines.append(
        f"- {count} seed{'s' * (count != '1')}: two cores here take {values[local] / 60:.1f} minutes; {enough} workers {values[W.tolist().index(enough)] / 60:.1f}, and more gain less than a tenth."
    )
display(Markdown("\n".join(lines)))
saved = {count: (values[local] - min(values)) / 60 for count, values in far["seconds"].items()}
display(
    Markdown(
        f"Dask costs {extra:.1f} s a batch more than local processes. So a cluster that stands already pays as soon as more of its workers find work than this machine has cores. One that has to be set up first pays if that takes less than it saves: at most "
        + ", ".join(f"{value:.1f} minutes for {count} seed{'s' * (count != '1')}" for count, value in saved.items())
        + "."
    )
)

# %% [markdown]
# ## Starting, and building

# %% tags=["remove-input"]
start = absolute["imports"]["import itlib, beyond import torch"]
text = f"Importing all of itlib but its guests takes {within(start)} s longer than importing torch, which takes {absolute['imports']['import torch']['median']:.1f} s. What takes long itself, the solver of the probability flow for one, is imported where it is used."
if "book" in parts or "full-book" in parts:
    book = absolute.get("full-book") or absolute["book"]
    text += (
        " The book in a fresh clone: "
        + "; ".join(f"`{name}` {within(figure, '.1f')} {figure['unit']}" for name, figure in book.items())
        + "."
    )
else:
    text += " How long `make book` takes is measured by `make bench ONLY=book`, and is not in this record."
display(Markdown(text))

# %% [markdown]
# An unchanged `make book` starts nothing: a build leaves a hash of what it was made from and of what it made.
#
# ## On a GPU

# %% tags=["remove-input"]
gpu = absolute.get("gpu", {})
if not gpu:
    display(
        Markdown(
            "None was at hand when the record was made. The code asks a denoiser where its weights are and works there; `make bench ONLY=gpu RECORD=1` adds the table."
        )
    )
else:
    places, made = ("GPU", "GPU, noise drawn there", "one core"), parts["gpu"]["made"]
    names = list(dict.fromkeys(name.rpartition(": ")[0] for name in gpu))
    table = [
        [name] + [number(gpu[f"{name}: {p}"]["median"]) if f"{name}: {p}" in gpu else "" for p in places] for name in names
    ]
    wide = max((figure["high"] - figure["low"]) / figure["median"] for figure in gpu.values())
    seconds = {name: figure["median"] for name, figure in gpu.items()}
    gains = {
        name: seconds[f"{name}: one core"] / seconds[f"{name}: GPU"] for name in names if f"{name}: one core" in seconds
    }
    few, more = (name for name in gains if "samples" in name)
    display(
        Markdown(
            f"Absolute seconds (medians; quartiles span at most {100 * wide:.0f} % of them) on one {found['gpu']['device']}, and on one core of the machine that it is in ({made['processor']}, torch {made['versions']['torch']}); samples in {found['gpu']['steps']} steps. A test holds that every method computes there what it computes here.\n\n"
            + pd.DataFrame(table, columns=["", *places]).to_markdown(index=False, disable_numparse=True)
            + f"\n\nA GPU is told each product separately, so {more} take {seconds[f'{more}: GPU'] / seconds[f'{few}: GPU']:.1f} times as long as {few}: the many are {gains[more]:.0f} times as fast as on a core, the few {gains[few]:.0f} times. A tilt of the paper is {gains['a tilt of paper']:.1f} times as fast; one of `recommended`, which learns from {RecommendedConfig.B} chains at a time, "
            + (
                f"{gains['a tilt of recommended']:.1f} times. "
                if gains["a tilt of recommended"] > 1.2
                else "gains nothing. "
            )
            + "Noise comes from the CPU by default, the same for all devices; a `generator` of the GPU draws it there."
        )
    )

# %% [markdown]
# ## When it gets slower
#
# `make bench` ends with exit status 1 and a sentence for each ratio that is worse than the one above by more than 20 %. Another processor is named, since its libraries have other strengths. Quartiles stand beside the medians, to tell a bad day from a bad change; `make bench ONLY="sampling training"`
# measures again.

# %% tags=["remove-input"]
width = {
    f"{part}: {name}": (f["high"] - f["low"]) / f["median"]
    for part in ratios
    for name, f in ratios[part].items()
    if f["high"] != f["low"]
}
noisy = max(width, key=width.get)
display(
    Markdown(
        f"In this record the middle half of the turns spans {100 * np.median(list(width.values())):.0f} % of the median for a typical ratio, and {100 * width[noisy]:.0f} % for the noisiest, *{noisy}*. So a fifth is "
        + (
            "outside what turns differ by."
            if width[noisy] < 0.2
            else "outside what turns of most ratios differ by, and not of all."
        )
    )
)

# %% [markdown]
# ## Try this
#
# - Of how many samples should a dataset be, if each is to cost as little as possible? {numref}`fig-speed-growth` has the answer, read per sample.

# %% tags=["hide-cell"]
S = growth["S"]
each_sample = np.array([v["median"] for v in S["seconds"]]) / np.array(S["points"])
cheapest = int(each_sample.argmin())
table = pd.DataFrame({"samples": S["points"], "cost of one": [f"{v:.2f}" for v in each_sample / each_sample.min()]})
display(Markdown(table.to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        f"In units of the cheapest, {S['points'][cheapest]:,}. Few rows pay Python's overhead and read all weights for little work; very many no longer fit in the cache."
    )
)

# %% [markdown]
# - Predict the shortest time in which any number of workers could run ten seeds of $N = 20$ alone. Which number of workers gets there?

# %% tags=["hide-cell"]
per_tilt, overhead = sum(each.values()), c["each"]
base_seconds = far["base"]
chain = base_seconds + 20 * per_tilt + 2 * overhead
display(
    Markdown(
        f"A base and twenty tilts, {chain / 60:.1f} minutes, and ten workers: every seed is a chain of its own, and {100 * base_seconds / chain:.0f} % of it is the base. So a faster training of bases would help more than faster tilts."
    )
)
