# ---
# jupyter:
#   itlib:
#     experiment: paper
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
# # The experiment
#
# Section 4.2 of the paper in one run: start from a network that samples two Gaussians, tilt it $N$ times toward a higher
# reward, and compare what comes out with the exact answer.
#
# **You will see** the tilted distribution computed in closed form, Algorithm 2 line by line, its samples half way and at the
# end, the error of its score after every tilt, and a table that scores the result both against the distribution it aims at
# and against the one it started from.

# %% tags=["parameters"]
N = 20  # number of tilts
seed = 0  # fixes base and tilts
lam = 1.0  # tilt strength lambda; the paper's (4.12) implies 1
reward = "paper"  # a name, or the coefficients of a quadratic: see itlib.rewards.parse_reward
S = None  # samples per tilt (None, here and below: the profile's choice, 1000 in full)
J = None  # reverse steps of the sampler (200)
eta = None  # DDIM multiplier, 1 is DDPM (1.0)
B = None  # minibatch size (64)
E = None  # epochs per tilt (100)
epoch = None  # "minibatch": one minibatch an epoch, as Algorithm 2 prints it; "pass": all S samples an epoch
lr = None  # learning rate (1e-4); not in the paper
optimizer = None  # "adam" or "sgd" (adam); not in the paper
profile = "full"  # "full" is Section 4.2, "smoke" a first look in seconds
method = "paper"  # "paper" is Algorithm 2 as below; "recommended" what the book ends with, on a base of its own
device = "cpu"  # where the network lives; "cuda" if there is a GPU
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from tqdm import tqdm

from itlib import figures
from itlib.experiments import base as base_of
from itlib.experiments.paper import Parameters, drawn, judge, recorded, tilts
from itlib.experiments.records import save_record
from itlib.gaussian_mixture import paper_mixture
from itlib.schedules import Cosine

torch.set_num_threads(1)  # the same numbers on every machine with the same processor, whatever runs beside this

# %% [markdown]
# ## Base, reward, target
#
# Base and reward are those of (4.11): two Gaussians and, unless a parameter above says otherwise, the linear reward
# $r(x) = 4 x_2$, which pulls upward. Tilting a Gaussian mixture by a quadratic reward gives a Gaussian mixture (4.10),
#
# $$p_0^{\lambda r}(x) = Z_{\lambda r}^{-1} \exp(\lambda r(x))\, p_0^{b}(x), \tag{2.14}$$
#
# so the target is known exactly: here is what tilting does to each component.

# %%
asked = Parameters(
    N=N, seed=seed, lam=lam, reward=reward, S=S, J=J, eta=eta, B=B, E=E, epoch=epoch, lr=lr, optimizer=optimizer,
    profile=profile, method=method, device=device,
)  # fmt: skip
schedule, base_mixture = Cosine(), paper_mixture()
r, target = asked.tilt, asked.target

# %% tags=["hide-input"]
rows = [
    {
        "": name,
        "weight": float(w),
        "mean": f"({m[0]:.2f}, {m[1]:.2f})",
        "variances": ", ".join(f"{v:.2f}" for v in c.diagonal()),
    }
    for name, mixture in (("base", base_mixture), ("target", target))
    for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f")))
facts = {
    "$\\log Z$": base_mixture.log_normaliser(r, lam),
    "KL(target ‖ base), nats": base_mixture.tilt_kl(r, lam),
    "entropy of the target, nats": target.entropy(),
}
display(Markdown(pd.Series(facts, name="value").to_markdown(floatfmt=".3f")))

# %% [markdown]
# ## The algorithm
#
# One large tilt is cut into $N$ small ones, $p_0^k \propto e^{k\lambda r/N} p_0^b$ (3.8). To first order, a tilt of size
# $\delta = \lambda/N$ moves the score by a covariance under the posterior of the clean sample:
#
# $$\begin{aligned} \nabla \log p_t^k(x_t) = {} & \nabla \log p_t^{k-1}(x_t) \\
#   & + \frac{\lambda}{N}\, \mathrm{Cov}_{X_0 \mid X_t = x_t}\!\big(\nabla_{x_t} \log q_{t|0}(x_t \mid X_0),\, r(X_0)\big) + O\!\Big(\frac{1}{N^2}\Big) . \end{aligned} \tag{3.10}$$
#
# Algorithm 2 learns that step by regression. In the units of the denoiser, $\varepsilon = -\sigma_t\, s$, one tilt is:
#
# 1. draw $S$ samples $X_0$ from the current model with Algorithm 1 ($J$ reverse steps) and evaluate $r$ on them, forward only;
# 2. freeze the current model as teacher, $\varepsilon_{\mathrm{old}}$;
# 3. $E$ times: take a minibatch of $B$ samples, noise it with $z$ at random times $t$, and step down the gradient of
#    $\sigma_t^2 \lVert \varepsilon_\theta - \varepsilon_{\mathrm{target}} \rVert^2$ with
#    $\varepsilon_{\mathrm{target}} = \varepsilon_{\mathrm{old}} + \delta\, r(X_0)\,(z - \varepsilon_{\mathrm{old}})$.
#
# The reward enters as a number per sample. Nothing is differentiated but the network.
#
# `tilts` runs `itlib.tilting.iterative_tilting`, saves a checkpoint after each tilt, and measures the score
# error against the exact $p^k$. If this notebook is stopped and started again, it goes on from the last finished tilt.

# %%
for base in tqdm(base_of.train(asked.base, schedule), "epochs of the base"):
    pass
for run in tqdm(tilts(asked, base.denoiser.to(device), schedule), "tilts", N):
    pass

# %% tags=["hide-input"]
display(Markdown(pd.Series(asdict(asked.tilting) | {"profile": profile, "seed": seed}, name="value").to_markdown()))

# %% [markdown]
# ## What comes out
#
# On the left the model after half of the tilts, with contours of the exact $p^{N/2}$; in the middle after all of them, with
# contours of the target; on the right exact samples of the target.

# %% tags=["hide-input"]
xs, ys = np.linspace(-5, 5, 120), np.linspace(-3.5, 5.5, 108)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def density(mixture):
    return xs, ys, mixture.log_prob(plane).reshape(len(ys), len(xs)).numpy()


final = drawn(asked, run.denoiser, schedule)
row = {
    "N": N,
    "half": run.halfway.cpu().numpy(),
    "final": final.cpu().numpy(),
    "target": target.sample(asked.S, torch.Generator().manual_seed(seed)).numpy(),
    "density_half": density(base_mixture.tilted(r, lam * (N // 2) / N)),
    "density": density(target),
}
figures.show(
    figures.figure_1([row]), "samples", "Samples after half and after all of the tilts beside exact samples of the target."
)

# %% [markdown]
# ```{glue:figure} samples
#
# Samples of the model after $N/2$ and $N$ tilts, and of the exact target: one row of the paper's Figure 1. The middle should look like the right.
# ```
#
# ## The error after each tilt
#
# The root mean square error of the learned score,
#
# $$\mathrm{RMSE}_k = \mathbb E_{t,\, X_t \sim p_t^k}\big[\lVert s_{\theta^k}(X_t, t) - \nabla \log p_t^k(X_t)\rVert^2\big]^{1/2}, \tag{4.13}$$
#
# is the paper's Figure 2. We take $X_t$ from the exact $p_t^k$, where the paper uses samples of the model, and $t$ uniform
# between the schedule's safe edge times: the score's weight $1/\sigma_t^2$ makes the integral diverge at $t = 0$.

# %% tags=["hide-input"]
display(Markdown(f"Lower edge of the time interval: $t_{{\\min}}$ = {schedule.t_min:g}."))
figures.show(
    figures.figure_2({N: np.array(run.trace)}),
    "score-error",
    "Score RMSE of the model against the exact score, after each tilt.",
)

# %% [markdown]
# ```{glue:figure} score-error
#
# Score error {eq}`eq-4-13` after each tilt. Each starts from what the one before got wrong.
# ```
#
# ## Scored twice
#
# A negative log-likelihood and an error of the mean need a reference. The paper does not say which. Exact samples of the
# target score their entropy against the target, and much more against the base they left behind, so the two columns below
# are easy to tell apart.

# %%
card = judge(asked, run.denoiser, schedule)

# %% tags=["hide-input"]
exact = target.sample(200_000, torch.Generator().manual_seed(0))
table = pd.DataFrame(
    {
        "NLL against target": [card["nll_target"], -float(target.log_prob(exact).mean())],
        "NLL against base": [card["nll_base"], -float(base_mixture.log_prob(exact).mean())],
        "MSE (mean) against target": [card["mean_mse_target"], 0.0],
        "MSE (mean) against base": [card["mean_mse_base"], float((target.mean - base_mixture.mean).square().mean())],
    },
    index=["this run", "exact target"],
)
display(Markdown(table.T.to_markdown(floatfmt=".3f")))

# %% [markdown]
# A log-likelihood of samples is no verdict on its own: a model that has *shrunk* scores better than the truth. So here is the
# rest.

# %% tags=["hide-input"]
more = {
    "mode weights": (card["mode_weights"], target.weights.tolist()),
    "component variances": (card["component_variances"], [c.diagonal().tolist() for c in target.covariances]),
    "probability-flow NLL of exact samples": (card["flow_nll"], target.entropy()),
    "error of $\\hat x_1$ (RMSE)": (card["eps_rmse"], 0.0),
    "score error (RMSE)": (card["score_rmse"], 0.0),
    "sliced Wasserstein distance to exact samples": (card["sliced_w2"], 0.0),
    "seconds of sampling": (run.seconds["sampling"], None),
    "seconds of training": (run.seconds["training"], None),
}


def words(value):
    if isinstance(value, list):
        return ", ".join(words(v) for v in value)
    return "" if value is None else f"{value:.3f}"


table = pd.DataFrame(
    {"this run": {k: words(a) for k, (a, _) in more.items()}, "exact": {k: words(b) for k, (_, b) in more.items()}}
)
display(Markdown(table.to_markdown()))

# %% [markdown]
# The results page puts all runs side by side, next to the paper's rows and a band of reference runs.
#
# ## Try this
#
# - Set `N = 1`. The Taylor step is *exact* for this reward, whatever its size. So what goes wrong?
# - Set `epoch = "pass"`: all $S$ samples in every epoch instead of one minibatch. Look at the component variances.
# - Set `reward = "one-mode"`: now the tilt changes the weights of the modes, and the number of tilts matters.

# %% tags=["remove-cell"]
if record:  # with the samples of Figure 1 beside it, which the results page needs and nobody commits
    save_record(Path(record), recorded(asked, run, final, card))
