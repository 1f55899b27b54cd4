# ---
# jupyter:
#   itlib:
#     reads:
#     - book/runs
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
# # Results
#
# All runs of the experiment side by side, next to what the paper prints, and next to a band of reference runs that were
# computed once and are part of this project.
#
# **You will see** Figures 1 and 2 and Table 1 of the paper made anew, each metric scored against the target *and* against
# the base, which of the two fits the paper's rows, and whether your own runs agree with ours.

# %% tags=["parameters", "remove-input"]
profile = "full"  # show the runs of this profile
runs = "../book/runs"  # your runs
reference = "../book/reference/paper"  # the committed ones

# %% tags=["remove-cell"]
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from IPython.display import Markdown, display

from itlib import figures
from itlib.experiments import base as base_model
from itlib.experiments import paper
from itlib.experiments.files import located
from itlib.experiments.paper import BASE_ROW, TABLE_1
from itlib.experiments.records import load_records
from itlib.gaussian_mixture import paper_mixture
from itlib.rewards import parse_reward

base, reward = paper_mixture(), parse_reward("paper")
target = base.tilted(reward)

PAPER = pd.DataFrame({N: row._asdict() for N, row in TABLE_1.items()}).T


def frame(records):
    """One row per record: parameters, numeric metrics and seconds, and the trace."""
    flat = [
        r.row()
        | {"trace": r.trace, "weight_left": r["mode_weights"][0]}
        | {f"seconds_{k}": v for k, v in r.seconds.items()}
        | {f"variance_{axis}": float(np.mean([v[i] for v in r["component_variances"]])) for i, axis in enumerate("xy")}
        for r in records
    ]
    return pd.DataFrame(flat)


# The experiment of the paper and nothing else: another reward, say, is another experiment, shown on its own page.
def of_the_paper(folder, kind):
    found = [r for r in load_records(Path(folder), kind) if r.parameters.method == "paper"]
    return [r for r in found if kind is base_model.Parameters or (r.parameters.reward, r.parameters.lam) == ("paper", 1.0)]


ours = of_the_paper(reference, paper.Parameters)
ref, ref_base = frame(ours), frame(of_the_paper(reference, base_model.Parameters))
own, own_base = (
    frame([r for r in of_the_paper(runs, kind) if r.parameters.profile == profile])
    for kind in (paper.Parameters, base_model.Parameters)
)
if own.empty:
    raise FileNotFoundError(
        f"there is no run of profile {profile!r} in {runs} yet: python -m itlib.reproduce --profile {profile}"
    )
Ns = sorted(own["N"].unique())

# %% tags=["remove-input"]
seeds = sorted(own["seed"].unique())
notes = [
    f"This page shows **{len(own)} run{'s' * (len(own) > 1)}** of yours: N = {', '.join(map(str, Ns))}; "
    f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."
]
if profile == "smoke":
    notes.append(
        "They come from the *smoke* profile, which only shows that everything works: **their figures mean nothing.**"
    )
if len(ref):
    commits = sorted({r.provenance["commit"][:10] for r in ours})
    where = sorted({r.provenance["platform"] for r in ours})
    notes.append(
        f"The reference grid has **{len(ref)} runs**: seeds {ref['seed'].min()} to {ref['seed'].max()} for each of N = "
        f"{', '.join(map(str, sorted(ref['N'].unique())))}, a base trained per seed; computed at commit {', '.join(commits)} on {'; '.join(where)}."
    )
display(Markdown("\n\n".join(notes)))

# %% [markdown]
# ## Figure 1: samples
#
# One row per number of tilts, for the lowest seed. Contours: the exact $p^{N/2}$ on the left, the exact target in the middle
# and on the right.

# %% tags=["hide-input"]
xs, ys = np.linspace(-5, 5, 120), np.linspace(-3.5, 5.5, 108)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def density(mixture):
    return xs, ys, mixture.log_prob(plane).reshape(len(ys), len(xs)).numpy()


rows = []
for N in Ns:
    seed = own.loc[own["N"] == N, "seed"].min()
    kept = safetensors.torch.load_file(located(runs) / f"N{N:03d}_seed{seed}.safetensors")
    rows.append(
        {
            "N": N,
            "half": kept["half"].numpy(),
            "final": kept["final"].numpy(),
            "target": target.sample(len(kept["final"]), torch.Generator().manual_seed(0)).numpy(),
            "density_half": density(base.tilted(reward, (N // 2) / N)),
            "density": density(target),
        }
    )
figures.show(
    figures.figure_1(rows),
    "figure-1",
    "Samples after half and after all tilts for each N, beside exact samples of the target.",
)

# %% [markdown]
# ```{glue:figure} figure-1
# :name: fig-results-1
#
# The paper's Figure 1: samples after $N/2$ tilts, after $N$ tilts, and of the exact target. By eye the two on the right are alike; the
# tables below say by how much they differ.
# ```
#
# ## Figure 2: the score after each tilt
#
# The paper's measure of progress is the distance of the learned score from the exact one along the path of tilts,
#
# $$\mathrm{RMSE}_k = \mathbb E_{t \sim \mathrm{Unif}[0,1],\, X_t \sim p_t^k}
#   \Big[\big\|s_{\theta^k}(X_t, t) - \nabla_x\log p_t^k(X_t)\big\|^2\Big]^{1/2} , \tag{4.13}$$ (eq-4-13)
#
# where $s_{\theta^k} = -\hat x_1^{\theta^k} / \sigma_t$ is the score of the model after $k$ tilts. We draw $X_t$ from the exact $p_t^k$. Near
# $t = 0$ the factor $1/\sigma_t^2$ can make the expectation infinite, so $t$ starts at a small $t_{\min}$ ({doc}`s4_2_choices` varies it).
# Each curve is the run of yours with the lowest seed; the band, where there is one, is the range of the reference runs.

# %% tags=["hide-input"]
curves = {N: np.array(own[own["N"] == N].sort_values("seed").iloc[0]["trace"]) for N in Ns}
bands = {}
for N, group in ref.groupby("N") if len(ref) else ():
    traces = np.array(group["trace"].tolist())
    bands[N] = (np.arange(1, N + 1) / N, traces.min(0), traces.max(0))
figures.show(
    figures.figure_2(curves, bands),
    "figure-2",
    "Score RMSE after each tilt, one curve per N, over the band of reference runs.",
)

# %% tags=["remove-input"]
grown = {N: curve[-1] / curve[0] for N, curve in curves.items()}
display(
    Markdown(
        "From the first tilt to the last the error is multiplied by "
        + ", ".join(f"{ratio:.1f} (N = {N})" for N, ratio in grown.items())
        + ". The paper's conclusion has it “converging at each tilt”."
    )
)

# %% [markdown]
# ```{glue:figure} figure-2
# :name: fig-results-2
#
# The paper's Figure 2: score RMSE against the share of tilts done. Shaded: lowest to highest of the reference runs. The errors of the tilts
# add up.
# ```
#
# ## Table 1: time, likelihood, mean
#
# The paper gives a negative log-likelihood (NLL) and a squared error of the mean (MSE) per $N$, and does not say against which
# distribution they are taken. We take both, of samples of the last model: the mean of $-\log p$ in nats, and the squared error of their mean averaged
# over coordinates, once with the target and once with the base. The last row is what exact samples of the target score.

# %% tags=["hide-input"]
exact = target.sample(400_000, torch.Generator().manual_seed(0))
perfect = {
    "nll_target": target.entropy(),
    "nll_base": -float(base.log_prob(exact).mean()),
    "mean_mse_target": 0.0,
    "mean_mse_base": float((target.mean - base.mean).square().mean()),
}
names = {
    "seconds_sampling": "sampling (s)",
    "seconds_training": "training (s)",
    "nll_target": "NLL vs target",
    "nll_base": "NLL vs base",
    "mean_mse_target": "MSE (mean) vs target",
    "mean_mse_base": "MSE (mean) vs base",
}


def cell(values, digits=2):
    """Mean, and the standard deviation over seeds where there is more than one."""
    values = np.asarray(values, dtype=float)
    return f"{values.mean():.{digits}f}" + (f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else "")


lines = []
for N in Ns:
    group = own[own["N"] == N]
    lines.append({"N": N, "": "yours"} | {title: cell(group[key], 3 if "mse" in key else 2) for key, title in names.items()})
    if len(ref) and (ref["N"] == N).any():
        group = ref[ref["N"] == N]
        lines.append(
            {"N": N, "": "reference"} | {title: cell(group[key], 3 if "mse" in key else 2) for key, title in names.items()}
        )
    if N in PAPER.index:
        p = PAPER.loc[N]
        lines.append(
            {"N": N, "": "paper", "sampling (s)": f"{p.sampling:.2f}", "training (s)": f"{p.training:.2f}"}
            | {title: f"{p.nll:.2f}" for key, title in names.items() if key.startswith("nll")}
            | {title: f"{p.mse:.2f}" for key, title in names.items() if key.startswith("mean")}
        )
lines.append(
    {"N": "", "": "perfect"} | {title: f"{perfect[key]:.2f}" if key in perfect else "" for key, title in names.items()}
)
display(Markdown(pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# Mean ± standard deviation over seeds. The paper's row repeats its one number under both readings. Our seconds are processor time of one
# thread. The paper does not state its hardware, so only the growth with $N$ can be compared.
#
# ### Which reading fits the paper?
#
# For exact samples of the target the two readings lie far apart. The paper's four rows should lie near one of them.

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(7.2, 4.2))
    show_ref = ref if len(ref) else own
    who = "reference runs" if len(ref) else "your runs"
    ax.scatter(
        show_ref["nll_target"],
        show_ref["mean_mse_target"],
        s=18,
        marker="s",
        color=figures.COLORS["target"],
        label=f"{who}, scored vs target",
    )
    ax.scatter(
        show_ref["nll_base"], show_ref["mean_mse_base"], s=18, color=figures.COLORS["base"], label=f"{who}, scored vs base"
    )
    ax.scatter(
        PAPER["nll"], PAPER["mse"], s=60, marker="*", color=figures.COLORS["paper"], label="the paper's rows", zorder=3
    )
    for N, p in PAPER.iterrows():
        below = N == 200  # its star is beside that of N = 20
        ax.annotate(
            f"{N}", (p.nll, p.mse), xytext=(0, -14 if below else 6), textcoords="offset points", ha="center", fontsize=9
        )
    ax.plot(
        [perfect["nll_target"], perfect["nll_base"]],
        [perfect["mean_mse_target"], perfect["mean_mse_base"]],
        "+",
        color=figures.INK,
        markersize=11,
        label="exact target",
    )
    ax.set(xlabel="negative log-likelihood (nats)", ylabel="MSE of the mean")
    ax.legend()
figures.show(
    fig,
    "readings",
    "Negative log-likelihood against MSE of the mean: the paper's rows lie among our runs scored against the base.",
)

# %% tags=["remove-input"]
distance = {}
for reading in ("target", "base"):
    at = np.array([perfect[f"nll_{reading}"], perfect[f"mean_mse_{reading}"]])
    distance[reading] = float(np.linalg.norm(PAPER[["nll", "mse"]].to_numpy() - at, axis=1).mean())
display(
    Markdown(
        "The paper's rows lie on average "
        f"{distance['base']:.2f} from the exact target scored against the *base* and {distance['target']:.2f} from it scored against the "
        "*target* (in the plane of the figure). So the likely reading is that Table 1 was scored against the **base** distribution. "
        "By symmetry, a model that was not tilted at all, or tilted twice, would give the same figures against the target: the table alone cannot tell."
    )
)

# %% [markdown]
# ```{glue:figure} readings
# :name: fig-results-readings
#
# Runs in the plane of the paper's two metrics, under both readings. The rows of the paper's Table 1 (stars, with their $N$) lie near the
# runs that are scored against the base.
# ```
#
# ## What the two metrics cannot show
#
# Samples that are too narrow score a *better* NLL than exact ones, and a mean says nothing of modes. So here is more:
#
# - the *error of $\hat x_1$*, root mean square over exact noised samples of the target, and the *score error*, the same divided by $\sigma_t$;
#   it is {eq}`eq-4-13` for $k = N$ at other draws, and differs from the end of the curve by chance;
# - the share of the *left mode* and the *variances* within the modes, of the model's samples;
# - how much worse than the target itself the model's *probability flow* explains exact samples, in nats;
# - the *sliced Wasserstein distance* $W_2$ of the model's samples from exact ones.

# %% tags=["hide-input"]
flow_excess = "flow NLL, excess"
for table in (own, ref):
    if len(table):
        table[flow_excess] = table["flow_nll"] - target.entropy()
more = {
    "eps_rmse": "error of $\\hat x_1$",
    "score_rmse": "score error",
    "weight_left": "left mode",
    "variance_x": "variance of $x_1$",
    "variance_y": "variance of $x_2$",
    flow_excess: flow_excess,
    "sliced_w2": "sliced $W_2$",
}
lines = []
for N in Ns:
    lines.append({"N": N, "": "yours"} | {title: cell(own.loc[own["N"] == N, key]) for key, title in more.items()})
    if len(ref) and (ref["N"] == N).any():
        lines.append({"N": N, "": "reference"} | {title: cell(ref.loc[ref["N"] == N, key]) for key, title in more.items()})
weight, variance = float(target.weights[0]), target.covariances[0].diagonal()
lines.append(
    {"N": "", "": "perfect"}
    | dict.fromkeys(more.values(), "0")
    | {
        more["weight_left"]: f"{weight:.2f}",
        more["variance_x"]: f"{variance[0]:.2f}",
        more["variance_y"]: f"{variance[1]:.2f}",
    }
)
display(Markdown(pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# ## The base model
#
# Everything starts from the base network. Its error at noised samples of the *target* is the floor: exact covariances, added to it, would keep just
# that error ({doc}`s2_1_3_score`).

# %% tags=["hide-input"]
lines = []
for who, table in (("yours", own_base), ("reference", ref_base)):
    if len(table):
        lines.append(
            {
                "": who,
                "NLL of its samples": cell(table["nll_base"], 3),
                "probability-flow NLL": cell(table["flow_nll"], 3),
                "MSE (mean)": cell(table["mean_mse_base"], 4),
                "error of $\\hat x_1$": cell(table["eps_rmse"], 3),
                "the floor: at noised target samples": cell(table["eps_rmse_at_target"], 3),
            }
        )
lines.append({"": "paper", "NLL of its samples": f"{BASE_ROW.nll:.3f}", "MSE (mean)": f"{BASE_ROW.mse:.4f}"})
lines.append(
    {
        "": "perfect",
        "NLL of its samples": f"{base.entropy():.3f}",
        "probability-flow NLL": f"{base.entropy():.3f}",
        "MSE (mean)": "0",
    }
)
display(Markdown(pd.DataFrame(lines).fillna("").to_markdown(index=False, disable_numparse=True)))

display(
    Markdown(
        f"The paper's base NLL lies {BASE_ROW.nll - base.entropy():.2f} nats above the entropy, which a network of this size nearly reaches. "
        "We could not explain that figure."
    )
)

# %% [markdown]
# ## Do your runs agree with ours?

# %% tags=["remove-input"]
shared = [N for N in Ns if len(ref) and (ref["N"] == N).any()]
if not shared:
    why = "the reference grid has none of your N" if len(ref) else "there are no reference records here"
    display(Markdown(f"There is nothing to compare: {why}."))
else:
    checks = {
        "nll_target": "NLL vs target",
        "mean_mse_target": "MSE (mean) vs target",
        "score_rmse": "score error",
        "eps_rmse": "error of $\\hat x_1$",
        "sliced_w2": "sliced $W_2$",
    }
    outside = []
    for N in shared:
        for key, title in checks.items():
            low, high = ref.loc[ref["N"] == N, key].agg(["min", "max"])
            for _, row in own[own["N"] == N].iterrows():
                if not low <= row[key] <= high:
                    outside.append(
                        f"{title} at N = {N}, seed {row['seed']}: {row[key]:.3g}, reference {low:.3g} to {high:.3g}"
                    )
    total = sum(len(own[own["N"] == N]) for N in shared) * len(checks)
    text = (
        f"Compared are {', '.join(list(checks.values())[:-1])} and {list(checks.values())[-1]} of each run. Of these {total} figures "
        f"**{total - len(outside)} lie inside** the range of the reference runs"
    )
    display(Markdown(text + (", and these do not:\n\n" + "\n".join(f"- {line}" for line in outside) if outside else ".")))
    if profile == "smoke":
        display(Markdown("(Your runs are of the smoke profile, so they should *not* agree.)"))

    with figures.house_style() as plt:
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 0.55 * len(shared) + 1.2))
        for ax, key in zip(axes, ("eps_rmse", "nll_target", "mean_mse_target"), strict=True):
            stats = ref[ref["N"].isin(shared)].groupby("N")[key].agg(["min", "median", "max"])
            value = own[own["N"].isin(shared)].groupby("N")[key].median()
            figures.against_band(
                ax, [f"N = {N}" for N in shared], value.to_numpy(), *(stats[c].to_numpy() for c in ("min", "median", "max"))
            )
            ax.set_xlabel(
                {
                    "eps_rmse": r"error of $\hat x_1$",
                    "nll_target": "NLL vs target",
                    "mean_mse_target": "MSE (mean) vs target",
                }[key]
            )
            ax.get_legend().remove()
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figures.show(
        fig, "own-and-reference", "Your runs as dots over the range of the reference runs, for three metrics and each N."
    )

    seeds = ref["seed"].nunique()
    display(
        Markdown(
            f"A run of a seed that the reference does not have leaves the range of its {seeds} with a chance of {2 / (seeds + 1):.0%} for each figure, so a few outside are no "
            f"alarm. Seeds {ref['seed'].min()} to {ref['seed'].max()} are in the reference: on the processor that made it they repeat it, and show only that. `make book SEEDS={ref['seed'].max() + 1}` is an independent test. Runs on another processor differ in the last bits, and tilting amplifies them."
        )
    )

# %% [markdown]
# ## Try this
#
# **How much of the difference between two $N$ is the seed?** Compare the spread over seeds with the differences between the means. Then
# `make book SEEDS="0 1 2"` shows it for your own runs.

# %% tags=["hide-cell"]
by_N = (ref if len(ref) else own).groupby("N")["eps_rmse"]
table = pd.DataFrame({"runs": by_N.size(), "mean": by_N.mean(), "standard deviation over seeds": by_N.std()})
display(Markdown("Error of $\\hat x_1$:\n\n" + table.to_markdown(floatfmt=("", ".0f", ".3f", ".3f"))))
between, within = float(np.ptp(by_N.mean())), float(by_N.std().mean())
display(
    Markdown(
        f"The means lie {between:.3f} apart at most, and seeds of one N typically by {within:.3f}. "
        + ("One run per N cannot rank them." if between < 2 * within else "The seed is the smaller part.")
    )
)

# %% [markdown]
# **Is $N = 1$ worse, although the first-order step is exact on this task?** `make book N="1 5"` shows what comes out;
# {doc}`s5_conclusion` says why.
