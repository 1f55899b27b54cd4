# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/digits
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
# # Digits and a black box
#
# The method is made for a reward that is large, pretrained or only a black box. So far the reward was $4y$. Here the data are images, and the reward is a
# random forest: a hundred programs of if and else, whose gradient is zero wherever it exists.
#
# **You will see** a model of handwritten digits that learns to write threes because a forest likes them, tilt by tilt; how far it is from the exact tilt when
# that has no closed form; what other methods make of as many evaluations, and what a gradient would buy; and what it costs to train adapters of low rank instead of
# all weights.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" runs fewer tilts; the records are the same in both profiles
reference = "../book/reference/digits"  # the committed runs, and the weights of the base

# %% tags=["remove-cell"]
import base64
import io
import math
from html import escape

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display
from PIL import Image

from itlib import figures
from itlib.baselines.policy_gradient import PolicyGradientConfig
from itlib.experiments.digits.base import Parameters as Base
from itlib.experiments.digits.base import trained
from itlib.experiments.digits.images import DIGIT, PROBLEMS, D, digits, image_card, judged
from itlib.experiments.digits.methods import (
    ASKED,
    CANDIDATES,
    EVALUATIONS,
    METHODS,
    J,
    Parameters,
    implicit,
    paper,
    path_card,
    recommended,
)
from itlib.experiments.digits.truth import Parameters as Truth
from itlib.experiments.files import located
from itlib.experiments.records import load_records
from itlib.sampling import reverse_process, sample
from itlib.schedules import Cosine
from itlib.tilting import iterative_tilting

torch.set_num_threads(1)
full, schedule = profile == "full", Cosine()
folder = located(reference)
base = trained(folder, schedule)
of = {name: [r for r in load_records(folder, Truth) if r.parameters.problem == name] for name in PROBLEMS}
runs = {(r.parameters.problem, r.parameters.method, r.parameters.seed): r for r in load_records(folder, Parameters)}
TITLES = {name: method.title for name, method in METHODS.items()}
TRAINED = {name: method for name, method in METHODS.items() if method.train}
HERE = [name for name in PROBLEMS if of[name]]  # rewards that have been run


def sweep(record):
    """The rows of the sweep: one per strength, by importance weights of the base's samples."""
    return pd.DataFrame(record.curve).set_index("lam")


def truth(record, key):
    """What the weights say at the strength that was chosen."""
    return float(sweep(record).loc[PROBLEMS[record.parameters.problem].lam, key])


def of_method(task, name):
    """Its records, in the order of the seeds."""
    return [runs[task, name, r.parameters.seed] for r in of[task]]


def metric(task, name, key):
    """One metric of a method, or of "base" or "truth", an array over seeds; missing where a run failed."""
    cards = [r[name] for r in of[task]] if name in ("base", "truth") else [r.metrics for r in of_method(task, name)]
    return np.array([card.get(key) for card in cards], float)


def seconds(task, name):
    """Processor seconds of a method, over seeds."""
    return np.array([sum(r.seconds.values()) for r in of_method(task, name)])


def distance(task, name):
    """KL of the law of paths to that of the exact tilt, in nats, over seeds."""
    return metric(task, name, "distance") + np.array([truth(r, "log_z") for r in of[task]])


def pm(values, form=".2f"):
    """Mean and standard error over seeds."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return "–"
    return f"{values.mean():{form}}" + (
        f" ± {values.std(ddof=1) / math.sqrt(len(values)):{form}}" if len(values) > 1 else ""
    )


def strip(rows, names, name, alt, columns=16, width=7.2):
    """Rows of digits, each with a name on its left."""
    with figures.house_style() as plt:
        fig, axes = plt.subplots(len(rows), 1, figsize=(width, len(rows) * (width / columns + 0.06)), squeeze=False)
        for ax, images, label in zip(axes[:, 0], rows, names, strict=True):
            tiles = np.concatenate([np.pad(i, 1, constant_values=-1) for i in np.reshape(images, (-1, 8, 8))[:columns]], 1)
            ax.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    figures.show(fig, name, alt)


# %% [markdown]
# ## The model
#
# The data are the 1797 digits that come with scikit-learn {cite}`pedregosa2011scikit`, 8 by 8 pixels of 17 grey levels. Every level is spread over the interval that it stands for, so that the
# images have a density, and scaled to $[-1, 1]$. To the library an image is a vector of 64 numbers, and nothing else changes: the cosine schedule, the training
# {eq}`eq-2-10`, Algorithm 1 with 50 steps, Algorithm 2.
#
# The network is a perceptron with residual blocks, which corrects the Gaussian with the mean and covariance of the data ({mod}`itlib.experiments.digits.images`). Convolutions would be the
# usual choice; on one core of a processor matrix products are faster.

# %% tags=["remove-input"]
drawn = sample(base, schedule, 1000 if full else 100, D, steps=J, generator=torch.Generator().manual_seed(0))
m = image_card(drawn)
strip(
    [digits().x[:16].numpy(), digits().x[16:32].numpy(), drawn[:16].numpy(), drawn[16:32].numpy()],
    ["data", "", "model", ""],
    "base-samples",
    "Two rows of handwritten digits from the data and two rows sampled from the model, most of which are easy to read.",
)

# %% [markdown]
# ```{glue:figure} base-samples
# :name: fig-digits-base
#
# Digits, and samples of the base model.
# ```

# %% tags=["remove-input"]
near = torch.cdist(digits().x, digits().x).fill_diagonal_(torch.inf).min(1).values
display(
    Markdown(
        f"Two classifiers that learned from different halves of the data, a forest and a support vector machine, give the same label to {m['agree']:.0%} of the model's samples. "
        + "".join(
            f"A plain perceptron like the paper's, with as many weights ({r['perceptron']['parameters']:,}; ours has {r['base']['parameters']:,}) and the same training, manages {r['perceptron']['agree']:.0%}; {r['perceptron']['strange']:.1%} of its samples are farther from all digits than ninety-nine in a hundred digits are: it broke, and is no yardstick. "
            for r in load_records(folder, Base)
        )
        + f"A sample is {m['nearest']:.2f} from the nearest digit of the data on average, a digit is {float(near.mean()):.2f} from the nearest other one; {m['copies']:.1%} of the samples are "
        "closer to a digit than ninety-nine in a hundred digits are to each other. "
        + ("The model does not repeat its data." if m["copies"] < 0.1 else "The model repeats part of its data.")
    )
)

# %% [markdown]
# ## Three rewards, by their values only
#
# | reward | $r(x)$ | gradient |
# |:--|:--|:--|
# | class | $\log\dfrac{\text{votes for 3}+1}{\text{trees}+10}$, of a forest of 100 trees | zero almost everywhere |
# | symmetry | minus the mean squared difference to the mirror image | yes |
# | hole | 1 if the ink encloses a piece of paper, else 0 | a jump |
#
# The one and the ten under the logarithm keep it finite: a three that no tree votes for has $r=-4.7$, not minus infinity.
#
# How strong a tilt? If $\lambda$ is small enough, the truth can be had without the method: draw many samples of the base, weigh each with $e^{\lambda r}$, and see how many
# stay effective. The rule here is the largest strength of the sweep at which one in twelve does.

# %% tags=["hide-input"]
rows = []
for name in HERE:
    task = PROBLEMS[name]
    for lam in task.sweep:
        each = [sweep(r).loc[lam] for r in of[name]]
        rows.append(
            {
                "reward": name,
                "λ": f"**{lam:g}**" if lam == task.lam else f"{lam:g}",
                "effective": f"{np.mean([e['ess'] for e in each]):.1%}",
                "log Z": pm([e["log_z"] for e in each], ".3f"),
                "mean reward": pm([e["mean_reward"] for e in each], ".3f"),
                "KL to the base": pm([e["kl"] for e in each], ".2f"),
                "threes, by the judge": f"{np.mean([e[f'judge_{DIGIT}'] for e in each]):.0%}",
            }
        )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# The chosen strengths are bold. *Threes, by the judge* is the share that the support vector machine, which is no part of any reward, takes for a three.
#
# ## A run
#
# The paper's configuration, with fewer tilts, samples and steps (below). This run happens as the page is made.

# %%
setting = Parameters(method="paper", profile=profile).setting(base, schedule)
noises = torch.randn(24, D, generator=torch.Generator().manual_seed(3))
frames, reward_now, share_now, kl_now = [], [], [], []


def watch(model):
    """The same 24 noises through the model, and three figures from samples of their own."""
    frames.append(walk(model))
    x, card = path_card(model, setting, 300 if full else 24, torch.Generator().manual_seed(4))
    reward_now.append(card["mean_reward"])
    kl_now.append(max(0.0, card["path_kl"]))  # of the base itself it is zero, and not minus zero
    share_now.append(float((judged(x) == DIGIT).float().mean()))


def walk(model):
    """Algorithm 1 from the same noise, with the same noise on the way."""
    *_, (_, x) = reverse_process(model, schedule, noises, steps=J, generator=torch.Generator().manual_seed(5))
    return x.numpy()


watch(base)
for step in iterative_tilting(base, setting.problem.reward, schedule, paper(setting), d=D, seed=0):
    watch(step.model)

# %% tags=["remove-cell"]
N = len(frames) - 1
assert np.isfinite(frames).all()
assert share_now[-1] > share_now[0] if full else True  # it writes more threes at the end than at the start

# %% tags=["remove-input"]
strip(
    [frames[0][:12], frames[N // 2][:12], frames[N][:12]],
    ["before", "half way", "after"],
    "tilts",
    "Twelve samples of the base in a row, of the model after half of the tilts, and after all of them, from the same noise: some digits stay, others turn into threes.",
    columns=12,
)

# %% tags=["remove-cell"]
STYLE = """
div.text_html:has(#digit-tilts-style) { background: none !important; color: inherit !important; padding: 0 !important; overflow: visible; }
#digit-tilts { padding: 3px; font-size: .9rem; line-height: 1.4; max-width: 40rem; }
#digit-tilts[hidden] { display: none; }
#digit-tilts img { display: block; width: 100%; height: auto; image-rendering: pixelated; border: 1px solid currentColor; margin: 0; }
#digit-tilts p { margin: .3rem 0; font-variant-numeric: tabular-nums; min-height: 2.8em; }
#digit-tilts .dt-row { display: flex; align-items: center; gap: .6rem; flex-wrap: wrap; margin-top: .5rem; }
#digit-tilts input { flex: 1 1 6rem; min-width: 0; margin: 0; min-height: 1.9rem; accent-color: LEARNED; }
#digit-tilts output { flex: none; font-variant-numeric: tabular-nums; }
#digit-tilts button { font: inherit; color: inherit; background: none; border: 1px solid currentColor; border-radius: 4px;
  padding: .1rem .55rem; min-width: 4rem; min-height: 1.9rem; cursor: pointer; }
@media screen { .dt-still { display: none; } }
@media print { #digit-tilts { display: none; } }
""".replace("LEARNED", figures.COLORS["learned"])

SCRIPT = r"""
(() => {
  "use strict";
  const id = "digit-tilts", root = document.getElementById(id), find = name => document.getElementById(id + "-" + name);
  const data = JSON.parse(root.dataset.run), last = data.frames.length - 1;
  const slider = find("k"), button = find("play"), status = find("status"), picture = find("picture");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let at = 0, timer = 0;
  function draw() {
    picture.src = "data:image/png;base64," + data.frames[at];
    slider.value = at;
    slider.setAttribute("aria-valuetext", data.names[at]);
    find("value").value = at + " of " + last;
    if (status.textContent !== data.names[at]) status.textContent = data.names[at];
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = still.matches ? "Next" : "Play";
    status.setAttribute("aria-live", "polite");
    draw();
  }
  function next() {
    at = Math.min(last, at + 1);
    if (at >= last) return stop();
    draw();
  }
  button.addEventListener("click", () => {
    if (timer) return stop();
    if (at >= last) at = -1;
    if (still.matches) { at = Math.min(last, at + 1); return draw(); }
    button.textContent = "Pause";
    status.setAttribute("aria-live", "off");
    timer = setInterval(next, 500);
    next();
  });
  slider.addEventListener("input", () => {
    const k = Number(slider.value);
    if (timer) stop();
    at = k;
    draw();
  });
  still.addEventListener("change", stop);
  function settle() {
    const figure = document.querySelector('figure [data-itlib-figure="tilts"]');
    if (!figure) return;
    figure.parentElement.classList.add("dt-still");
    figure.parentElement.before(root);
  }
  root.hidden = false;
  stop();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", settle);
  else settle();
})();
"""


def png(images, columns=8):
    """Images in rows, as the base64 of a small PNG."""
    tiles = [np.pad(i, 1, constant_values=-1) for i in images.reshape(-1, 8, 8)]
    sheet = np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)], 0)
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(127.5 * (1 - sheet.clip(-1, 1)))).resize(sheet.shape[::-1]).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def animation():
    """A slider over the tilts: frames are small pictures inside the page."""
    import json

    names = [
        ("Before the first tilt" if k == 0 else f"After tilt {k} of {N}")
        + f": mean reward {r:.2f}, {s:.0%} threes by the judge, KL to the base {c:.2f} nats.".replace("-", "\u2212")
        for k, (r, s, c) in enumerate(zip(reward_now, share_now, kl_now, strict=True))
    ]
    run = json.dumps({"frames": [png(f) for f in frames], "names": names}, separators=(",", ":"))
    return f"""<style id="digit-tilts-style">{STYLE}</style>
<div id="digit-tilts" role="group" aria-label="Samples, tilt by tilt" data-run="{escape(run, quote=True)}" hidden>
<img id="digit-tilts-picture" alt="24 digits, always from the same noise; the text below says after which tilt." src="data:image/png;base64,{png(frames[0])}">
<div class="dt-row"><button type="button" id="digit-tilts-play">Play</button>
<input type="range" id="digit-tilts-k" aria-label="tilt k" min="0" max="{N}" step="1" value="0">
<output id="digit-tilts-value" for="digit-tilts-k" aria-live="off">0 of {N}</output></div>
<p id="digit-tilts-status" role="status"></p></div>
<script>{SCRIPT}</script>"""


# %% tags=["remove-input"]
display(HTML(animation()))

# %% [markdown]
# ```{glue:figure} tilts
# :name: fig-digits-tilts
#
# Samples of the model before, between and after the tilts, always from the same noise. On the page, move the slider or press the button.
# ```

# %% tags=["remove-input"]
reached = np.mean([truth(r, "mean_reward") for r in of["class"]])
wanted = np.mean([truth(r, f"judge_{DIGIT}") for r in of["class"]])
display(
    Markdown(
        f"The mean reward goes from {reward_now[0]:.2f} to {reward_now[-1]:.2f}; the exact tilt has {reached:.2f}. The judge, who has never seen the forest, takes {share_now[0]:.0%} of the "
        f"samples for threes at the start and {share_now[-1]:.0%} at the end; of the exact tilt it is {wanted:.0%}."
        + ("" if full else " This is a first look: with so few samples a tilt its figures mean nothing.")
    )
)

# %% [markdown]
# ## How far from the truth?
#
# There is no closed form, but there is a number whose zero is known. Algorithm 1 on the tilted model and Algorithm 1 on the base are two laws of whole paths, and each step's density is
# a Gaussian that both can evaluate ({mod}`itlib.sampling`). With weights $w=p_{\mathrm{base}}/p_\theta$ of a path,
#
# $$
# \mathrm{KL}(P_\theta\,\|\,P^*)=\underbrace{\mathbb E_\theta[-\log w]}_{\mathrm{KL}(P_\theta\|P_{\mathrm{base}})}-\lambda\,\mathbb E_\theta[r(X_0)]+\log Z ,
# $$
#
# where $P^*$ is the base's law of paths, tilted by $e^{\lambda r(X_0)}$. The first two terms are means over paths of the model, $\log Z$ comes from samples of the base. It is zero for
# the exact tilt and for nothing else (the steps of that tilt are not quite Gaussian, so the least that a student can reach lies a little above zero), it bounds the KL of the samples, and it starts at $\log Z-\lambda\mathbb E_{\mathrm{base}}[r]$ for the base itself.
#
# ## Everyone with as many evaluations


# %% tags=["remove-input"]
def untouched(task):
    """The distance of the base itself, over seeds."""
    return np.array([truth(r, "log_z") for r in of[task]]) - PROBLEMS[task].lam * metric(task, "base", "mean_reward")


def effort(task):
    """Rows of the comparison on one task."""
    lam = PROBLEMS[task].lam
    rows = [
        {
            "method": "the base",
            "distance, nats": pm(untouched(task)),
            "KL to the base": "0",
            "mean reward": pm(metric(task, "base", "mean_reward")),
            "seconds": "",
        },
        {
            "method": "the exact tilt, by weights",
            "distance, nats": "0",
            "KL to the base": pm([truth(r, "kl") for r in of[task]]),
            "mean reward": pm([truth(r, "mean_reward") for r in of[task]]),
            "seconds": "",
        },
    ]
    for name in ASKED[task]:
        row = {
            "method": TITLES[name] + (" ∇" if METHODS[name].gradient else ""),
            "distance, nats": pm(distance(task, name)),
            "KL to the base": pm(metric(task, name, "path_kl")),
            "mean reward": pm(metric(task, name, "mean_reward")),
            "seconds": pm(seconds(task, name), ".0f"),
        }
        if name == "best":
            bound = math.log(CANDIDATES) - (CANDIDATES - 1) / CANDIDATES
            row["KL to the base"] = f"≤ {bound:.2f}"
            found = bound - lam * metric(task, name, "mean_reward") + np.array([truth(r, "log_z") for r in of[task]])
            row["distance, nats"] = f"≤ {pm(found.clip(min=0))}"  # below zero by the error of the means only
        rows.append(row)
    return pd.DataFrame(rows)


n_seeds = {task: len(of[task]) for task in HERE}
its, ours = (config(Parameters().setting(base, schedule)) for config in (paper, implicit))
display(
    Markdown(
        f"Every method may evaluate the reward {EVALUATIONS['full']:,} times. The two that need a gradient (∇) get that of a network which is fitted to as many values of the reward at samples of the "
        f"base. Learning rates were set by hand, after single runs at one to five values with a seed that is not used here. The paper's configuration has {its.N} tilts of "
        f"{its.S} samples, the implicit one as many as it asks for, of {ours.S} samples and {ours.E} minibatches; every sampler has {J} steps, and all else is theirs. "
        + (
            f"Mean and standard error over {n_seeds['class']} seeds of the fine-tuning"
            if n_seeds["class"] > 1
            else "One seed of the fine-tuning so far, so that small differences mean nothing"
        )
        + "; the base is the same for all."
    )
)
display(Markdown(effort("class").to_markdown(index=False, disable_numparse=True)))

# %% tags=["remove-input"]
ranked = sorted(
    (n for n in TRAINED if np.isfinite(distance("class", n)).any()), key=lambda n: np.nanmean(distance("class", n))
)
free = [n for n in ranked if not METHODS[n].gradient]
start = untouched("class").mean()
display(
    Markdown(
        f"Of the methods that train without a gradient the closest is *{TITLES[free[0]]}* ({pm(distance('class', free[0]))} nats of the {start:.2f} at the start), then *{TITLES[free[1]]}* ({pm(distance('class', free[1]))}); the farthest is "
        f"*{TITLES[free[-1]]}* ({pm(distance('class', free[-1]))}). "
        + (
            "By this distance some end farther from the exact tilt than the base: "
            + ", ".join(f"*{TITLES[n]}*" for n in ranked if np.nanmean(distance("class", n)) > start)
            + ". A reward that rises is no sign of arriving. (A path pays for every detour, also where its end is a sample as good as any; and this KL is what DPOK, DRaFT with path KL and *recommended* minimise.)"
            if any(np.nanmean(distance("class", n)) > start for n in ranked)
            else "All of them end closer to the exact tilt than the base is."
        )
        + f" {TITLES['best'].capitalize()} needs no training and is close to the tilt, at {CANDIDATES} samples for each one that is kept, for ever."
    )
)

# %% [markdown]
# A rise of the reward is not the whole of a tilt: every nat that goes into directions which the reward does not ask for counts against a method.

# %% tags=["remove-input"]
TILTS = [n for n in TRAINED if n.startswith(("paper", "centred", "implicit", "recommended"))]
exact_reward = [truth(r, "mean_reward") for r in of["class"]]
mean = {n: np.nanmean(distance("class", n)) for n in TRAINED}


def both(name):
    return (
        f"{pm(distance('class', name))} nats from the tilt, at a mean reward of {pm(metric('class', name, 'mean_reward'))}"
    )


short = np.nanmean(metric("class", "implicit", "mean_reward")) < np.mean(exact_reward) - 0.2
display(
    Markdown(
        f"- *Centring the reward*, which takes a constant off, moves the paper's configuration from {both('paper')} to {both('centred')}. The exact tilt has a mean reward of {pm(exact_reward)}.\n"
        "- *The implicit step* is taken here with steps from the rewards and a student that is a bounded correction of a frozen base in whitened coordinates, with two layers of 64 units; it was made in two dimensions, and here there are 64. "
        f"It ends {both('implicit')}. "
        + ("No other tilting strays less" if mean["implicit"] == min(mean[n] for n in TILTS) else "Others stray less")
        + (
            ", and it stops short: so small a correction does not say all that this reward asks.\n"
            if short
            else ", and its reward is what it should be.\n"
        )
        + f"- *The same steps* with LoRA in its place end {both('implicit-lora')}; with all weights, {both('implicit-full')}.\n"
        f"- *The recommended configuration* learns on whole chains ({{doc}}`b_recommended`). With the small correction it ends {both('recommended')}; with all weights, {both('recommended-full')}; "
        f"with LoRA, {both('recommended-lora')}. "
        + (
            "The last is the closest of all tilts: the loss sees every nat, and adapters inside the network can say what a small correction beside it cannot."
            if mean["recommended-lora"] == min(mean[n] for n in TILTS)
            else f"With {implicit(Parameters().setting(base, schedule)).S} chains a tilt in 64 dimensions that is not the closest: so few chains are fitted too well."
        )
    )
)

# %% tags=["hide-input"]
SHOWN = ("paper", "centred", "implicit", "recommended-lora", "ddpo", "adjoint")


def frontier(ax, task):
    """Mean reward against KL: the exact tilts of all strengths bound what is possible, each method takes a way of its own."""
    exact = sweep(of[task][0])
    ax.plot(exact["kl"], exact["mean_reward"], color=figures.COLORS["target"], linewidth=4, alpha=0.4, label="exact tilts")
    top = 0.0
    for i, name in enumerate(SHOWN):
        if name not in ASKED[task]:
            continue
        curves = [pd.DataFrame(r.curve, columns=["path_kl", "mean_reward"]).to_numpy() for r in of_method(task, name)]
        length = min(map(len, curves))
        if not length:
            continue
        mean = np.mean([c[:length] for c in curves], 0)
        start = [0.0, np.mean(metric(task, "base", "mean_reward"))]
        mean = np.vstack([start, mean])
        color = figures.SERIES[i % len(figures.SERIES)]
        ax.plot(
            mean[:, 0],
            mean[:, 1],
            color=color,
            marker=figures.MARKERS[i % len(figures.MARKERS)],
            markersize=4,
            linewidth=1.2,
            label=TITLES[name],
        )
        top = max(top, mean[-1, 0])
    ax.set(xlabel="KL to the base, nats", title=task, xlim=(-0.1, min(8.0, 1.05 * top)))


with figures.house_style() as plt:
    fig, axes = plt.subplots(1, len(HERE), figsize=(7.6, 3.9), squeeze=False)
    axes = axes[0]
    for ax, task in zip(axes, HERE, strict=True):
        frontier(ax, task)
    axes[0].set_ylabel("mean reward")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
figures.show(
    fig,
    "frontier",
    "Mean reward against the KL of the paths to the base, one panel per reward. A wide line of exact tilts bounds the picture from above; the methods' curves rise from the base and stay below it.",
)

# %% [markdown]
# ```{glue:figure} frontier
# :name: fig-digits-frontier
#
# Mean reward against KL to the base, after each quarter of the evaluations, mean over seeds. For a given KL no law has a higher mean reward than an exact tilt of some strength: the
# wide line, by importance weights. A curve far below it pays in KL for something other than reward. What leaves the picture on the right has more than eight nats.
# ```
#
# A smooth reward and a jump, with the same learning rates:

# %% tags=["remove-input"]
for task in HERE[1:]:
    display(
        Markdown(
            f"**{task.capitalize()}**, {n_seeds[task]} seed{'s' if n_seeds[task] > 1 else ''}, $\\lambda = {PROBLEMS[task].lam:g}$"
            + (": here ∇ is the reward's own gradient." if PROBLEMS[task].smooth else ".")
        )
    )
    display(Markdown(effort(task).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# ## What a gradient buys

# %% tags=["remove-input"]
lines = []
for task in (t for t in ("symmetry", "class") if t in HERE):
    have = [n for n in ASKED[task] if n in TRAINED]
    with_g = min(
        (n for n in have if METHODS[n].gradient), key=lambda n: np.nan_to_num(np.nanmean(distance(task, n)), nan=np.inf)
    )
    without = min(
        (n for n in have if not METHODS[n].gradient), key=lambda n: np.nan_to_num(np.nanmean(distance(task, n)), nan=np.inf)
    )
    a, b = np.nanmean(distance(task, with_g)), np.nanmean(distance(task, without))
    lines.append(
        f"- *{task}* ({'its own gradient' if PROBLEMS[task].smooth else 'the gradient of a fitted network'}): {TITLES[with_g]} ends {pm(distance(task, with_g))} nats from the exact tilt, the best that trains without a "
        f"gradient, {TITLES[without]}, {pm(distance(task, without))}."
        + (
            " The gradient is worth having."
            if a < 0.8 * b
            else " The gradient buys nothing here."
            if a > b
            else " That is about the same."
        )
    )
display(Markdown("\n".join(lines)))

# %% [markdown]
# ## Low-rank adapters
#
# With LoRA {cite}`hu2021lora` the base stays, and every linear layer learns a correction of rank 4 ({mod}`itlib.pretrained`). One training step on 64 images, counted in bytes, and the whole run in seconds of one core:

# %% tags=["remove-input"]
rows = []
for name in [n for n in TILTS if n != "centred"]:
    rows.append(
        {
            "method": TITLES[name],
            "weights that learn": f"{np.nanmean(metric('class', name, 'trained')):,.0f}",
            "gradients and Adam, kB": f"{np.nanmean(metric('class', name, 'optimizer_bytes')) / 1e3:,.0f}",
            "kept for the way back, kB": f"{np.nanmean(metric('class', name, 'activation_bytes')) / 1e3:,.0f}",
            "seconds": pm(seconds("class", name), ".1f"),
            "distance, nats": pm(distance("class", name)),
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% tags=["remove-input"]
ratio = np.nanmean(metric("class", "paper", "optimizer_bytes")) / np.nanmean(
    metric("class", "paper-lora", "optimizer_bytes")
)
slower = np.mean(seconds("class", "paper-lora")) / np.mean(seconds("class", "paper"))
saved = np.nanmean(metric("class", "implicit", "activation_bytes")) / np.nanmean(
    metric("class", "paper", "activation_bytes")
)
display(
    Markdown(
        f"Adapters divide the optimiser's memory by {ratio:.0f}. They do not make a step faster: a run of the paper's configuration takes {slower:.1f} times the seconds. What autograd keeps for the way back is not "
        f"less either, because the way back leads through the base. The small correction stands beside the base, not inside, and keeps {saved:.0%} of it. "
        "On a model whose optimiser state does not fit, the first column of bytes decides. What is *recommended* holds the base a second time, to know what its student adds, and asks it at every step of a chain: "
        f"with LoRA that is {np.mean(seconds('class', 'recommended-lora')) / np.mean(seconds('class', 'implicit-lora')):.0f} times the seconds of the implicit step."
    )
)

# %% [markdown]
# ## What the judges see
#
# The distance above is about paths and one reward. These judges look at the samples.

# %% tags=["remove-input"]
COLUMNS = (
    ("threes", f"judge_{DIGIT}", ".0%"),
    ("agree", "agree", ".0%"),
    ("spread of threes", "spread_class", ".2f"),
    ("nearest", "nearest", ".2f"),
    ("copies", "copies", ".1%"),
    ("strange", "strange", ".1%"),
)
rows = []
for title, prefix in (
    ("the base", "base"),
    ("the exact tilt, by weights", "truth"),
    *((TITLES[n], n) for n in ASKED["class"]),
):
    rows.append({"samples of": title} | {name: pm(metric("class", prefix, key), form) for name, key, form in COLUMNS})
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# - *Threes*: the share that the support vector machine takes for threes. It has never seen the forest, nor the forest's half of the data, so it shows whether the model writes
#   threes or something that only the forest takes for one. It can't tell a good three from a bad one, and on what is no digit it answers all the same.
# - *Agree*: how often forest and judge give one label. It falls when a reward is hacked: when votes rise and the judge does not follow. It says nothing of diversity.
# - *Spread of threes* is the mean distance of two samples that the judge takes for threes. It falls in a collapse; it rises with noise, too.
# - *Nearest* is the mean distance to the closest digit of the data; *copies* are closer to one than ninety-nine of a hundred digits are to each other, *strange* are farther from all than
#   ninety-nine of a hundred are. They see memorising and leaving the data, in pixels; not a digit that is new and wrong.
# - The *weights* of the base's samples are the truth for means, as long as enough stay effective. They know nothing of what the base never draws.
# - The *distance* counts every nat by which the paths go astray, those that the samples never show included: it is an upper bound, and can be far above what the samples' law pays.
#
# %% tags=["remove-input"]
low = min((n for n in ASKED["class"]), key=lambda n: np.nanmean(metric("class", n, "agree")))
display(
    Markdown(
        f"Is the forest fooled? Forest and judge agree on {np.mean(metric('class', 'base', 'agree')):.0%} of the base's samples. Of all methods they agree least for *{TITLES[low]}*, on {np.nanmean(metric('class', low, 'agree')):.0%}. "
        + (
            "Nowhere do votes for three rise without the judge."
            if np.nanmean(metric("class", low, "agree")) > np.mean(metric("class", "base", "agree")) - 0.03
            else "There votes rise for what the judge takes for something else, or the samples are less clear: the picture below helps to tell."
        )
    )
)

# %% [markdown]
# The last judge looks at densities. For the exact tilt, $\log p_\theta-\log p_{\mathrm{base}}-\lambda r$ is a constant. Both densities come from the probability flow ({mod}`itlib.likelihood`),
# at 40 digits of the data, which neither sampler drew.

# %% tags=["remove-input"]
rows = []
for name in TRAINED:
    slope = metric("class", name, "identity_slope")
    if np.isfinite(slope).any():
        rows.append(
            {
                "method": TITLES[name],
                "slope of log-ratio on λr": pm(slope),
                "what should be constant, nats": pm(metric("class", name, "identity_residual")),
                "λr alone, nats": pm(metric("class", name, "identity_untilted")),
            }
        )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# The slope is one for the exact tilt and zero for the base; the next column is the standard deviation of what should be a constant, the last what the base itself would leave. One seed. It sees the law of
# the samples without a path, but the flow of a network that was trained for noisy steps, and it asks about digits that real people wrote, not about what the model writes.
#
# %% tags=["remove-input"]
residual = {
    n: np.nanmean(metric("class", n, "identity_residual"))
    for n in TRAINED
    if np.isfinite(metric("class", n, "identity_residual")).any()
}
above = [n for n, value in residual.items() if value > np.nanmean(metric("class", n, "identity_untilted"))]
assert len(above) > len(residual) / 2
display(
    Markdown(
        f"By this judge {len(above)} of the {len(residual)} models are farther from the tilt than the untouched base: {', '.join(f'*{TITLES[n]}*' for n in above)}. It is the one judge that says so, and the hardest to please."
    )
)

# %% [markdown]
# ### Samples of everyone

# %% tags=["hide-input"]
first = next(r for r in of["class"] if r.parameters.seed == 0)
drawn = [np.array(r.samples) for r in (first, *(runs["class", n, 0] for n in ASKED["class"]))]
names = ["exact tilt", *(TITLES[n] for n in ASKED["class"])]
strip(
    drawn,
    names,
    "gallery",
    "Rows of sixteen digits, one row for the exact tilt by weights and one for each method. Most rows are mostly threes.",
    width=7.6,
)

# %% [markdown]
# ```{glue:figure} gallery
# :name: fig-digits-gallery
#
# The class reward, seed 0: samples of the exact tilt (base samples drawn by weight) and of every method.
# ```
#
# ## What this can't say

# %% tags=["remove-input"]
few = [f"{task}: {n}" for task, n in n_seeds.items() if n < 3]
policy, ours = PolicyGradientConfig(updates=2), recommended(Parameters().setting(base, schedule))
updates = {
    "policy": EVALUATIONS["full"] // policy.B * policy.updates,
    "recommended": EVALUATIONS["full"] // ours.B * ours.E,
}
failed = sum(r.failure is not None for r in runs.values())
display(
    Markdown(
        f"- The base is one network, trained once: its own luck is in every figure. Seeds differ in fine-tuning and in judging only ({', '.join(f'{task}: {n}' for task, n in n_seeds.items())})."
        + (f" Fewer than three make no band ({', '.join(few)})." if few else "")
        + "\n- Learning rates were set by hand; a search might move any row.\n"
        f"- Evaluations of the reward are matched, updates are not: DDPO and DPOK make {updates['policy']} steps of the optimiser, recommended {updates['recommended']}, which are cheap beside the chains but not beside nothing.\n"
        f"- The strength is one at which the best of {CANDIDATES} does well. Where importance weights fail, nothing here says who is ahead. The bytes of the last tables are those of a step on 64 images; recommended steps on whole chains.\n"
        + f"- {failed if failed else 'No'} run{'s' if failed != 1 else ''} diverged.\n"
        "- The images are tiny. A method that is twice as slow here need not be on a model a thousand times as large, and the digits say nothing about text."
    )
)

# %% [markdown]
# ## Try this
#
# - Replace `setting.problem.reward` in *A run* by a function of your own, such as "dark on the left", and move the slider.
# - `python -m itlib.reproduce --grid digits --only class --seeds 3 --out book/reference/digits` adds a seed to the tables.
# - {doc}`d_your_model` does the same with a model and a reward of yours.
