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
# Section 4.2 of the paper in one run: a network that samples two Gaussians is tilted $N$ times toward a higher reward, and compared with
# the exact answer.
#
# **You will see** the target in closed form, Algorithm 2, its samples half way and at the end, the error of its score after every tilt,
# and a table that scores the result both against the target and against the base.

# %% tags=["parameters"]
N = 20  # number of tilts
seed = 0  # fixes base and tilts
lam = 1.0  # tilt strength lambda; the paper's (4.12) implies 1
reward = "paper"  # a name, or coefficients: see itlib.rewards.parse_reward
S = None  # samples per tilt (None, here and below: the profile's choice, 1000 in full)
J = None  # reverse steps of the sampler (200)
eta = None  # DDIM multiplier, 1 is DDPM (1.0)
B = None  # minibatch size (64)
E = None  # epochs per tilt (100)
epoch = None  # "minibatch": one an epoch, as in Algorithm 2; "pass": all S samples
lr = None  # learning rate (1e-4); not in the paper
optimizer = None  # "adam" or "sgd" (adam); not in the paper
profile = "full"  # "full" is Section 4.2, "smoke" a first look in seconds
method = "paper"  # Algorithm 2; or "recommended", on a base of its own
device = "cpu"  # where the network lives; "cuda" if there is a GPU
record = ""  # path of the JSON record to leave; empty for none

# %%
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from itlib import figures
from itlib.experiments import base as base_of
from itlib.experiments.paper import Parameters, drawn, judge, recorded, tilts
from itlib.experiments.records import save_record
from itlib.gaussian_mixture import paper_mixture
from itlib.schedules import Cosine

torch.set_num_threads(1)  # the same numbers on every machine with the same processor

# %% [markdown]
# ## Base, reward, target
#
# The base is (4.11): two Gaussians. The reward is $r(x) = 4 x_2$, which pulls upward, unless a parameter above says otherwise. Tilting a
# Gaussian mixture by a quadratic reward gives a Gaussian mixture (4.10),
#
# $$p_0^{\lambda r}(x) = Z_{\lambda r}^{-1} \exp(\lambda r(x))\, p_0^{b}(x), \tag{2.14}$$
#
# so the target is known exactly:

# %%
asked = Parameters(
    N=N, seed=seed, lam=lam, reward=reward, S=S, J=J, eta=eta, B=B, E=E, epoch=epoch,
    lr=lr, optimizer=optimizer, profile=profile, method=method, device=device,
)  # fmt: skip
schedule, base_mixture = Cosine(), paper_mixture()
r, target = asked.tilt, asked.target

# %% tags=["hide-input"]
rows = []
for name, law in (("base", base_mixture), ("target", target)):
    for w, m, c in zip(law.weights, law.means, law.covariances, strict=True):
        mean, variances = (", ".join(f"{v:.2f}" for v in values) for values in (m, c.diagonal()))
        rows.append({"": name, "weight": float(w), "mean": f"({mean})", "variances": variances})
figures.table(rows, floatfmt=".3f")
kl = base_mixture.tilt_kl(r, lam)
figures.glue(log_z=f"{base_mixture.log_normaliser(r, lam):.3f}", kl=f"{kl:.3f}", entropy=f"{target.entropy():.3f}")

# %% [markdown]
# Here $\log Z_{\lambda r}$ is {glue:text}`log_z`, the target is {glue:text}`kl` nats away from the base (Kullback–Leibler), and its entropy
# is {glue:text}`entropy` nats.
#
# ## The algorithm
#
# Algorithm 2 cuts the tilt into $N$ small ones of size $\delta = \lambda/N$, and learns each by regression ({doc}`../pages/s3_2_algorithm`). In the
# units of the denoiser, $\varepsilon = -\sigma_t\, s$, one tilt is:
#
# 1. draw $S$ samples $X_0$ from the current model with Algorithm 1 ($J$ reverse steps) and evaluate $r$ on them, forward only;
# 2. freeze the current model as teacher, $\varepsilon_{\mathrm{old}}$;
# 3. $E$ times: take a minibatch of $B$ samples, noise it with $z$ at random times $t$, and step down the gradient of
#    $\sigma_t^2 \lVert \varepsilon_\theta - \varepsilon_{\mathrm{target}} \rVert^2$ with
#    $\varepsilon_{\mathrm{target}} = \varepsilon_{\mathrm{old}} + \delta\, r(X_0)\,(z - \varepsilon_{\mathrm{old}})$.
#
# The reward enters as a number per sample. Nothing is differentiated but the network.
#
# `tilts` saves a checkpoint after each tilt, so a notebook that was stopped goes on from there.

# %%
for base in tqdm(base_of.train(asked.base, schedule), "epochs of the base"):
    pass
for run in tqdm(tilts(asked, base.model.to(device), schedule), "tilts", N):
    pass

# %% tags=["hide-input"]
figures.settings(asdict(asked.tilting) | {"profile": profile, "seed": seed})

# %% [markdown]
# ## What comes out

# %% tags=["hide-input"]
xs, ys = np.linspace(-5, 5, 120), np.linspace(-3.5, 5.5, 108)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def density(mixture):
    return xs, ys, mixture.log_prob(plane).reshape(len(ys), len(xs)).numpy()


final = drawn(asked, run.model, schedule)
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
# Samples after $N/2$ and $N$ tilts, and of the exact target: one row of the paper's Figure 1. The middle should look like the right.
# Contours: the exact $p^{N/2}$ on the left, the target elsewhere.
# ```
#
# ## The error after each tilt
#
# The root mean square error of the learned score,
#
# $$\mathrm{RMSE}_k = \mathbb E_{t,\, X_t \sim p_t^k}\big[\lVert s_{\theta^k}(X_t, t) - \nabla \log p_t^k(X_t)\rVert^2\big]^{1/2}, \tag{4.13}$$
#
# is the paper's Figure 2. We take $X_t$ from the exact $p_t^k$, and $t$ from $t_{\min}$ = {glue:text}`t_min` on, since the integral can
# diverge at 0.

# %% tags=["hide-input"]
figures.glue(t_min=f"{schedule.t_min:g}")
text = "Score RMSE of the model against the exact score, after each tilt."
figures.show(figures.figure_2({N: np.array(run.trace)}), "score-error", text)

# %% [markdown]
# ```{glue:figure} score-error
#
# Score error {eq}`eq-4-13` after each tilt. Each starts from what the one before got wrong.
# ```
#
# ## Scored twice
#
# A negative log-likelihood (NLL) and an error of the mean need a reference, and the paper does not say which: target or base?

# %%
card = judge(asked, run.model, schedule)

# %% tags=["hide-input"]
exact = target.sample(200_000, torch.Generator().manual_seed(0))
against = {name: -law.log_prob(exact) for name, law in (("target", target), ("base", base_mixture))}
rows = []
for name, law in (("target", target), ("base", base_mixture)):
    row = {"": f"NLL against {name}", "this run": card[f"nll_{name}"], "exact target": float(against[name].mean())}
    mse = float((target.mean - law.mean).square().mean())
    rows += [row, {"": f"MSE (mean) against {name}", "this run": card[f"mean_mse_{name}"], "exact target": mse}]
figures.table(rows, floatfmt=".3f")

# %% [markdown]
# A model that has *shrunk* scores a better likelihood than the truth. So here is the rest.

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


figures.table([{"": name, "this run": words(own), "exact": words(truth)} for name, (own, truth) in more.items()])

# %% [markdown]
# {doc}`../pages/s4_2_results` puts all runs side by side, next to the paper's rows.
#
# ## Try this
#
# - *Predict, then run.* Set `N = 1`. For the paper's reward the Taylor step is *exact*, whatever its size. So what goes wrong?

# %% tags=["hide-cell"]
drawn_once = base_mixture.sample(100_000, torch.Generator().manual_seed(0))
covered = 1000 * float((r(drawn_once) > r(exact).median()).double().mean())
print(f"Coverage: of 1,000 samples of the base, {covered:.1f} have more than the target's median reward.")

# %% [markdown]
# - *Derive.* What do exact samples of the target score against the base? (Hint: take logarithms in (2.14).)

# %% tags=["hide-cell"]
# log p_target = lambda r - log Z + log p_base, so -E[log p_base] = entropy + lambda E[r] - log Z = entropy + KL.
error = float(against["base"].std()) / len(exact) ** 0.5
z_score = abs(float(against["base"].mean()) - target.entropy() - kl) / error
figures.check("the entropy plus the divergence, standard errors apart", z_score, below=5)

# %% [markdown]
# - *Predict, then run.* Set `epoch = "pass"`: all $S$ samples in every epoch instead of one minibatch. What happens to the component
#   variances? Then set `reward = "one-mode"`, where the weights of the modes move. {doc}`../pages/s4_2_choices` has the first answer,
#   {doc}`../pages/b_how_many_tilts` the second.

# %% tags=["remove-cell"]
if record:  # with the samples of Figure 1 beside it, which the results page needs and nobody commits
    save_record(Path(record), recorded(asked, run, final, card))
