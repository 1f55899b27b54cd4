# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/molecules
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
# # Molecules and a black box
#
# The paper's conclusion asks for "real-world tasks such as molecular design". Here is a small one. The samples are molecules, and the
# reward is a program that reads a molecule and answers: a random forest that learned from measured solubilities. This page is for
# reference; the main path does not need it.
#
# **You will see** a diffusion model of drug-like molecules; what its exact tilt looks like, and that of its training data; which
# methods come near with 5,120 answers; what judges say that are no reward; and what stands in the way.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" draws fewer molecules; the records are the same in both profiles
reference = "../book/reference/molecules"  # the committed runs, and the forest

# %%
import math

import numpy as np
import pandas as pd
import torch

from itlib import figures
from itlib.experiments.files import located
from itlib.experiments.methods import watched
from itlib.experiments.molecules import base, judges, methods, model, pictures, truth
from itlib.experiments.molecules.data import parsed
from itlib.experiments.molecules.methods import METHODS
from itlib.experiments.molecules.rewards import TASKS, Forest, OfMolecules
from itlib.experiments.records import load_records
from itlib.sampling import reverse_process, sample

torch.set_num_threads(1)
full, folder = profile == "full", located(reference)
known, forest = model.load(), Forest.load(folder / "solubility.safetensors")
task = TASKS["solubility"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% tags=["hide-input"]
SEEDS = (1, 2, 3)  # seed 0 chose the learning rates
weighed = {(r.parameters.problem, r.parameters.seed): r for r in load_records(folder, truth.Parameters)}
of_data = {r.parameters.problem: r for r in load_records(folder, truth.DataParameters)}
finished = load_records(folder, methods.Parameters)
runs = {(r.parameters.method, r.parameters.budget, r.parameters.seed): r for r in finished}
BUDGET, LARGER = methods.EVALUATIONS["full"], methods.LARGER
TITLES = {name: method.title for name, method in METHODS.items()}
TRAINED = [name for name, method in METHODS.items() if method.train]
assert not any(r.failure for r in finished)


def exact(key, lam=task.lam):
    """What the weights say, over seeds."""
    sweeps = [pd.DataFrame(weighed["solubility", s].curve).set_index("lam") for s in SEEDS]
    return np.array([sweep.loc[lam, key] for sweep in sweeps])


def metric(name, key, budget=BUDGET):
    """One metric of a method, or of "base" or "truth", over seeds."""
    if name in ("base", "truth"):
        return np.array([weighed["solubility", s][name][key] for s in SEEDS])
    return np.array([runs[name, budget, s].metrics.get(key, np.nan) for s in SEEDS], float)


# %% tags=["hide-input"]
def distance(name, budget=BUDGET):
    """KL of the law of paths to that of the exact tilt, in nats, over seeds."""
    if name == "base":
        return exact("log_z") - task.lam * metric("base", "mean_reward")
    return metric(name, "distance", budget) + exact("log_z")


def fcd(name, budget=BUDGET):
    """Fréchet ChemNet distance to the weighted truth, over seeds."""
    if name in ("base", "truth"):
        return np.array([weighed["solubility", s][f"fcd_{name}"] for s in SEEDS])
    return metric(name, "fcd", budget)


def pm(values, form=".2f"):
    """Mean and standard error over seeds, with a minus sign of its own."""
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    return f"{mean:{form}} ± {error:{form}}".replace("-", "−")


def minus(value, form=".2f"):
    return f"{value:{form}}".replace("-", "−")


# %% [markdown]
# ## The model
#
# A diffusion needs vectors of numbers, and a molecule is a graph. {mod}`itlib.experiments.molecules.data` describes each of the
# MOSES molecules {cite}`polykovskiy2020moses` by how often each of its neighbourhoods occurs, and by a dozen properties; the principal components of
# this, 64 numbers, are blurred a little and diffused as everywhere in this book. A small recurrent network writes a sample down as
# SMILES, the usual text form of a molecule, always the same one. So a reward of a molecule is a reward of a sample.

# %%
noises = torch.randn(8, known.d, generator=seeded(3))


def drawn(denoiser):
    """Latents and strings from the same noises."""
    how = {"steps": truth.J, "generator": seeded(5)}
    *_, (_, z) = reverse_process(denoiser, known.schedule, noises, **how)
    return z, known.decode(z)


z, before = drawn(known.denoiser)
print(*before[:3], sep="\n")


# %% tags=["hide-input"]
def show(strings, name, alt):
    """Formulas, each with the forest's probability under it."""
    found = [parsed(text) for text in strings]
    captions = ["no molecule" if one is None else f"{forest.probability(one):.0%}" for one in found]
    strings = [text or "" for text in strings]
    figures.show_drawing(pictures.drawing(strings, captions, name, alt), pictures.bitmap(strings, captions), name, alt)


show(before, "before", "Eight formulas of small drug-like molecules with rings, and a probability under each.")
(worth,) = load_records(folder, base.Parameters)
gaps = {name: worth[name]["fcd"] for name in ("base", "data")}
assert worth["base"]["valid"] > 0.98
assert gaps["base"] < 2 * gaps["data"] + 1
figures.glue(
    n_base=f"{worth['n']:,.0f}",
    valid=f"{worth['base']['valid']:.1%}",
    novel=f"{worth['base']['novel']:.0%}",
    fcd_base=f"{gaps['base']:.2f}",
    fcd_data=f"{gaps['data']:.2f}",
)

# %% [markdown]
# ```{glue:figure} before
# :name: fig-molecules-before
#
# Eight samples of the model. Under each, the probability that it dissolves well, as the reward's forest has it.
# ```
#
# Of {glue:text}`n_base` samples {glue:text}`valid` are molecules and {glue:text}`novel` of those are new, not in the training set. The
# Fréchet ChemNet distance (FCD) compares a network's view of two sets of molecules {cite}`preuer2018fcd`; from the test set it is
# {glue:text}`fcd_base` for the model, and {glue:text}`fcd_data` for as many real molecules.
#
# ## The reward and its two truths
#
# A random forest of 100 trees learned from 1,025 measured solubilities {cite}`huuskonen2000solubility` to tell molecules that dissolve to
# more than 10 mmol per litre of water. The reward is its smoothed log-probability, $r=\log\frac{\text{votes}+1}{\text{trees}+2}$. It is constant
# between the trees' thresholds, so its gradient is zero wherever it exists, and the decoder has none either. What is no molecule
# counts $r = -6$, below all molecules; a program that fails at a molecule would count the same, with a warning.
#
# For every $\lambda$ the weights $e^{\lambda r}$ give a truth, and here they give two: from samples of the model, which is what a
# fine-tuned model should draw, and from the training molecules, which is what we might have wished for.

# %% tags=["hide-input"]
rows = []
data = pd.DataFrame(of_data["solubility"].curve).set_index("lam")
for lam in task.sweep:
    row = {"λ": f"**{lam:g}**" if lam == task.lam else f"{lam:g}", "effective": f"{exact('ess', lam).mean():.1%}"}
    row |= {"KL to the base": pm(exact("kl", lam)), "mean reward": pm(exact("mean_reward", lam))}
    rows.append(row | {"mean reward, data": minus(data.loc[lam, "mean_reward"])})
figures.table(rows)
strongest = task.sweep[-1]
best_kl = math.log(truth.CANDIDATES) - (truth.CANDIDATES - 1) / truth.CANDIDATES
best_mean = np.array([weighed["solubility", s]["best"] for s in SEEDS])
assert exact("ess", strongest).mean() < 0.02
assert exact("mean_reward", strongest).mean() > best_mean.mean() + 0.2
figures.glue(
    n_truth=f"{weighed['solubility', 1]['n']:,.0f}",
    lam=f"{task.lam:g}",
    lam_strong=f"{strongest:g}",
    few=f"{exact('ess', strongest).mean() * weighed['solubility', 1]['n']:.0f}",
    best_reward=minus(best_mean.mean()),
    strong_reward=minus(exact("mean_reward", strongest).mean()),
)

# %% [markdown]
# Weights of {glue:text}`n_truth` samples; mean ± standard error over three seeds. By the rule of {doc}`d_digits`, the largest strength that
# leaves one sample in twelve effective, we take $\lambda$ = {glue:text}`lam`. At $\lambda$ = {glue:text}`lam_strong` weights fail, with {glue:text}`few` effective
# samples, and so does the best of 16: its mean reward is {glue:text}`best_reward`, that of the tilt {glue:text}`strong_reward`.

# %% tags=["hide-input"]
LABELS = {"delaney": r"$\log_{10}$ solubility", "log_p": "log P", "weight": "weight"}


def densities(axes, record, end, **style):
    for ax, name in zip(axes, LABELS, strict=True):
        low, high = judges.RANGES[name]
        middles = low + (np.arange(judges.BINS) + 0.5) * (high - low) / judges.BINS
        ax.plot(middles, record[f"{name}_{end}"], **style)


BEST = "recommended-lora"
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.6, 3.0))
    own, C = weighed["solubility", 1], figures.COLORS
    densities(axes, own, "base", color=C["base"], label="the model")
    densities(axes, own, "truth", color=C["target"], label="its tilt")
    densities(axes, of_data["solubility"], "truth", color=C["target"], linestyle=":", label="tilt of the data")
    learned = runs[BEST, BUDGET, 1]
    densities(axes, learned, "density", color=C["learned"], linestyle="--", label=TITLES[BEST])
    for ax, label in zip(axes, LABELS.values(), strict=True):
        ax.set(xlabel=label, yticks=[])
    axes[0].set_ylabel("density")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
alt = "Three panels of densities. The tilts of the model and of the data lie close together, at larger solubility and lower log P "
figures.show(fig, "properties", alt + "than the model; the learned model lies between.")

# %% [markdown]
# ```{glue:figure} properties
# :name: fig-molecules-properties
#
# Properties of a thousand molecules each. The solubility is that of a published formula, which is no part of the reward.
# ```
#
# ## Can the latents tell?
#
# A method that never sees inside the program learns from 64 numbers which molecule it will read, and what its answer will be. How
# much they tell bounds what a tilt can learn: the share $R^2$ of the reward's variance that a regression explains, on samples that it
# has not seen.

# %% tags=["hide-input"]
rows = []
for name in TASKS:
    record, chosen = weighed[name, 0], TASKS[name]
    row = {"reward": name, "λ": f"{chosen.lam:g}", "R²": minus(record["explained"])}
    sweep = pd.DataFrame(record.curve).set_index("lam").loc[chosen.lam]
    rows.append(row | {"effective": f"{sweep['ess']:.1%}", "KL to the base": f"{sweep['kl']:.2f}"})
figures.table(rows)
told = {name: weighed[name, 0]["explained"] for name in TASKS}
assert told["solubility"] > max(told["likeness"], told["rule"])
figures.glue(told=f"{told['solubility']:.2f}")

# %% [markdown]
# - *Solubility* is the reward above. It is mostly a matter of a few properties, which the latents know: {glue:text}`told`.
# - *Likeness* is the quantitative estimate of drug-likeness (QED).
# - *Rule* is 1 for a molecule within a window of weight, log P and polar surface that has an amide, else 0.
#
# We go on with solubility.
#
# ## As many answers for everyone
#
# Every method gets 5,120 answers of the program. The distance to the exact tilt is the path KL of {doc}`d_digits`, in nats; FCD is
# taken to the weighted truth, from a thousand molecules.


# %% tags=["hide-input"]
def row_of(name, budget=BUDGET, title=None):
    found = {"": title or TITLES[name], "path KL": pm(distance(name, budget)), "FCD": pm(fcd(name, budget))}
    found |= {"mean reward": pm(metric(name, "mean_reward", budget))}
    return found | {"KL to the base": "0" if name == "base" else pm(metric(name, "path_kl", budget))}


rows = [row_of("base", title="the base")]
truth_row = {"": "the exact tilt", "path KL": "0", "FCD": pm(fcd("truth"))}
rows.append(truth_row | {"mean reward": pm(exact("mean_reward")), "KL to the base": pm(exact("kl"))})
rows += [row_of(name) for name in TRAINED if (name, BUDGET, 1) in runs]
rows += [row_of(name, LARGER, f"{TITLES[name]}, {LARGER:,}") for name in (BEST, "value")]
bound = best_kl - task.lam * best_mean + exact("log_z")
best_row = {"": f"best of {truth.CANDIDATES}", "path KL": f"≤ {pm(bound.clip(min=0))}", "FCD": ""}
rows.append(best_row | {"mean reward": pm(best_mean), "KL to the base": f"≤ {best_kl:.2f}"})
figures.table(rows)
RUN = [name for name in TRAINED if (name, BUDGET, 1) in runs]
start, top = metric("base", "mean_reward").mean(), exact("mean_reward").mean()
way = (metric(BEST, "mean_reward").mean() - start) / (top - start)
nearer = [name for name in RUN if distance(name).mean() < distance("base").mean()]
assert set(nearer) == {BEST, "recommended", "value", "bounded", "ddpo"}
assert abs((distance("bounded") - distance("value")).mean()) < 0.5
assert max(distance(BEST).mean(), distance("recommended").mean()) < distance("value").mean()
assert abs((distance(BEST) - distance("recommended")).mean()) < 0.3
assert distance(BEST, LARGER).mean() > 0.4 * distance("base").mean()
gap = distance("base") - distance(BEST)
assert gap.mean() > 4.3 * gap.std(ddof=1) / 3**0.5
assert all((fcd(name) < fcd("base") - 2).all() for name in RUN if name != "dpok")
assert 0.4 < way < 0.75
figures.glue(
    closest=pm(distance(BEST)),
    small=pm(distance("recommended")),
    balance_kl=pm(distance("balance"), ".1f"),
    ddpo=pm(distance("ddpo")),
    dpok=pm(distance("dpok")),
    bounded=pm(distance("bounded")),
    reweighted_kl=pm(distance("reweighted"), ".1f"),
    larger=f"{LARGER:,}",
    closest_larger=pm(distance(BEST, LARGER)),
    value_larger=pm(distance("value", LARGER)),
    way_larger=f"{(metric(BEST, 'mean_reward', LARGER).mean() - start) / (top - start):.0%}",
    start=pm(distance("base")),
    left=f"{distance(BEST).mean() / distance('base').mean():.0%}",
    way=f"{way:.0%}",
    fcd_near=pm(fcd(BEST), ".1f"),
    fcd_start=pm(fcd("base"), ".1f"),
    fcd_floor=pm(fcd("truth"), ".1f"),
    value_kl=pm(distance("value")),
    paper_kl=pm(distance("paper"), ".1f"),
    distilled_kl=pm(distance("distilled"), ".1f"),
    paper_fcd=pm(fcd("paper"), ".1f"),
)

# %% [markdown]
# $\lambda$ = {glue:text}`lam`; mean ± standard error over three seeds of the fine-tuning, with one base for all. FCD to a thousand
# molecules never falls to zero: a second draw of the exact tilt, which repeats some, has {glue:text}`fcd_floor`.
#
# - **The tilt can be learned, in part.** *Recommended* ({doc}`b_recommended`) goes from {glue:text}`start` nats to
#   {glue:text}`closest` with LoRA, which makes {glue:text}`way` of the way in mean reward, and to {glue:text}`small` with a small
#   correction beside the model. The value on chains ({doc}`b_value`) follows with {glue:text}`value_kl`, and with
#   {glue:text}`bounded` as it did best on mixtures.
# - **Policy gradients have hardly begun.** After as many answers DDPO is {glue:text}`ddpo` nats away, and DPOK {glue:text}`dpok`.
# - **More answers help a little.** {glue:text}`larger` of them end at {glue:text}`closest_larger` nats, {glue:text}`way_larger` of the
#   way, and at {glue:text}`value_larger` for the value. Nobody arrives.
# - **Samples can be close while paths are far.** By FCD everyone but DPOK has left the base: {glue:text}`fcd_near` for *recommended*,
#   {glue:text}`paper_fcd` for the paper's configuration, where the base has {glue:text}`fcd_start`. But paths pay for detours:
#   {glue:text}`balance_kl` nats with trajectory balance, {glue:text}`reweighted_kl` with reward-weighted regression, {glue:text}`paper_kl`
#   with the paper's configuration and {glue:text}`distilled_kl` with resampled and distilled samples, all more than the base.
# - **The best of 16** is close to the tilt. It needs no training and asks for 16 answers a molecule, for ever.
#
# ### What a nat buys
#
# Of all laws within some KL of the base, an exact tilt has the largest mean reward. So the tilts of all strengths are a curve that no
# method can pass, and how far below it a method ends is what it has paid for detours.

# %% tags=["hide-input"]
LOOK = {
    BEST: ("learned", "o"),
    "recommended": ("learned", "X"),
    "value": ("paper", "s"),
    "balance": ("band", "^"),
    "distilled": ("band", "v"),
    "paper": ("base", "D"),
}
curve_kl = [0.0] + [exact("kl", lam).mean() for lam in task.sweep]
curve_mean = [metric("base", "mean_reward").mean()] + [exact("mean_reward", lam).mean() for lam in task.sweep]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(5.1, 4.4))
    ax.plot(curve_kl, curve_mean, color=figures.COLORS["target"], label="exact tilts of all strengths")
    ax.plot(exact("kl").mean(), exact("mean_reward").mean(), "*", color=figures.COLORS["target"], markersize=13)
    ax.plot(best_kl, best_mean.mean(), "P", color=figures.INK, markersize=8, label=f"best of {truth.CANDIDATES} (at most)")
    for name, (color, marker) in LOOK.items():
        style = {"color": figures.COLORS[color], "marker": marker, "markersize": 7, "linestyle": ":"}
        budgets = [b for b in (BUDGET, LARGER) if (name, b, 1) in runs]
        at = [[metric(name, key, b).mean() for b in budgets] for key in ("path_kl", "mean_reward")]
        ax.plot(*at, label=TITLES[name], **style)
    ax.set(xlabel="KL to the base, in nats", ylabel="mean reward", xscale="symlog")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
figures.show(
    fig,
    "nats",
    "Mean reward against the divergence from the base. The exact tilts are a rising curve; every method lies below it, recommended nearest, the "
    "paper's configuration and distilling farthest.",
)

# %% [markdown]
# ```{glue:figure} nats
# :name: fig-molecules-nats
#
# Mean reward against KL to the base, of paths for the methods; the star is the tilt that all are after. Dotted lines lead from
# 5,120 answers to 20,480.
# ```
#
# ## What other judges say
#
# A reward can be fooled. These judges are no part of it.

# %% tags=["hide-input"]
COLUMNS = {
    "valid": ("valid", ".1%"),
    "unique": ("unique", ".1%"),
    "log₁₀ S": ("delaney", ".2f"),
    "effort": ("effort", ".2f"),
    "alerts": ("alerts", ".1%"),
}
shown = {"base": "the base", "truth": "the exact tilt"} | {name: TITLES[name] for name in RUN}
figures.table(
    [
        {"": title} | {head: pm(metric(name, key), form) for head, (key, form) in COLUMNS.items()}
        for name, title in shown.items()
    ]
)

# %% [markdown]
# - *log₁₀ S*: the solubility by Delaney's formula {cite}`delaney2004esol`, a linear regression on other measurements.
# - *Effort*: how hard a molecule is to make, from 1 to 10 {cite}`ertl2009sa`. *Alerts*: groups that disturb assays (PAINS).
#
# ## A run
#
# The closest method with fewer answers, as the page is made, always from the same eight noises.

# %%
budget = 1280 if full else 64
asked = methods.Parameters(method=BEST, budget=budget, profile=profile, seed=4)
setting = asked.setting(known, forest)
stages = [before]
for step, _ in watched(METHODS[BEST], setting, (0.5, 1.0)):
    stages.append(drawn(step.model)[1])

# %% tags=["hide-input"]
show(
    [text for strings in (stages[0], stages[len(stages) // 2], stages[-1]) for text in strings[:4]],
    "stages",
    "Three rows of four formulas from the same noises, before, half way and after; probabilities grow down the columns.",
)
chances = [np.mean([forest.probability(m) for m in map(parsed, s) if m is not None]) for s in (stages[0], stages[-1])]
if full:
    assert chances[1] > chances[0]
figures.glue(chance_before=f"{chances[0]:.0%}", chance_after=f"{chances[1]:.0%}", budget=f"{budget:,}")

# %% [markdown]
# ```{glue:figure} stages
# :name: fig-molecules-stages
#
# From the same four noises: the base, the model half way, and after {glue:text}`budget` answers, with the forest's probabilities.
# ```
#
# Over all eight the mean probability goes from {glue:text}`chance_before` to {glue:text}`chance_after`.
#
# ## What this cannot say
#
# - Learning rates were taken over from the digits and not tuned; a search might move any row. Two knobs were changed after a look at
#   seeds that are reported: the value's rate, from 5·10⁻³, which ended 5.5 nats away and more, to 10⁻³, and the rounds of *recommended*,
#   from ten, which ended 2.7 and 2.9 nats away, to twenty. No records of those runs are kept.
# - Three seeds, one base, one reward. *Likeness* and *rule*, of which the latents tell less, were only weighed.
# - The forest is a model of solubility from 1,025 small molecules. It is the reward, not the truth.
#
# ## Try this
#
# - *Predict, then run.* Which of these dissolves best by the forest, and by Delaney's formula: caffeine, aspirin, cholesterol?

# %% tags=["hide-cell"]
STEROID = "CC(C)CCCC(C)C1CCC2C3CC=C4CC(O)CCC4(C)C3CCC12C"
some = {"caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C", "aspirin": "CC(=O)Oc1ccccc1C(=O)O", "cholesterol": STEROID}
answers = {n: (forest.probability(parsed(s)), judges.delaney(parsed(s))) for n, s in some.items()}
print(*(f"{n}: {p:.0%}, log10 S = {log_s:.1f}" for n, (p, log_s) in answers.items()), sep="\n")
assert max(answers, key=lambda n: answers[n][1]) == "caffeine"
assert answers["cholesterol"][0] < 0.05 < 0.5 < min(answers["caffeine"][0], answers["aspirin"][0])
assert min(answers, key=lambda n: answers[n][1]) == "cholesterol"

# %% [markdown]
# - *Implement.* Write a reward of your own: 1 for molecules with at least two nitrogen atoms in rings, else 0, and 0 for what is no
#   molecule. What share of the base's samples has it? (Hint: {class}`~itlib.experiments.molecules.rewards.OfMolecules` takes
#   `decode`, a function of one molecule of RDKit, and the value of what is none; atoms answer `GetAtomicNum()` and `IsInRing()`.)


# %% tags=["hide-cell"]
def nitrogens(found):
    return float(sum(a.GetAtomicNum() == 7 and a.IsInRing() for a in found.GetAtoms()) >= 2)


mine = OfMolecules(known.decode, nitrogens, bad=0.0)
n = 400 if full else 40
x = sample(known.denoiser, known.schedule, n, known.d, steps=truth.J, generator=seeded(9))
print(f"{float(mine(x).mean()):.0%} of {len(x)} samples")
assert mine.of(["c1cncnc1", "NCCN", None]) == [1.0, 0.0, 0.0]
assert 0.05 < float(mine(x).mean()) < 0.95

# %% [markdown]
# - *Derive.* The best of $n$ has a KL of at most $\log n - (n-1)/n$ from the base. How large must $n$ be before this bound allows the
#   exact tilt at the largest $\lambda$ of the table?

# %% tags=["hide-cell"]
kl = exact("kl", strongest).mean()
n = next(n for n in range(1, 100_000) if math.log(n) - (n - 1) / n >= kl)
print(f"The tilt is {kl:.2f} nats from the base: n = {n} at least")
assert n > truth.CANDIDATES
