# ---
# jupyter:
#   itlib:
#     reads:
#     - _build/cache
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
# # Introduction
#
# A diffusion model {cite}`sohldickstein2015deep,ho2020denoising,song2021score` has learned to draw from some distribution. We
# would like it to draw things that we *prefer*, and stay otherwise as it is. {cite:t}`pachebat2025iterative` propose to get there in
# many small steps, and to ask of the preference nothing but its value.
#
# **You will see** what reward tilting is; a reward whose gradient is zero almost everywhere, although its tilt is perfectly clear; why one
# large step fails and many small ones do not; and the whole idea as a picture that you can move, from a real run.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" trains a smaller base and tilts five times

# %% tags=["remove-cell"]
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.stats import norm

from itlib import figures
from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.metrics import score_errors
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import TiltingConfig, iterative_tilting, tilt_path

torch.set_num_threads(1)
full = profile == "full"

# %% [markdown]
# ## Tilting
#
# Let $p_0^b$ be the law of the model's samples, and let a *reward* $r(x)$ be larger where we like $x$ more. Multiply the density by
# $e^{\lambda r}$ and normalise: this is the tilted density {eq}`eq-2-14`,
#
# $$p_0^{\lambda r}(x) = \frac{e^{\lambda r(x)}\, p_0^b(x)}{Z_{\lambda r}}, \qquad Z_{\lambda r} = \mathbb E_{p_0^b}\big[e^{\lambda r}\big].$$
#
# Compare two samples $x$ and $y$: the tilt multiplies their odds by $e^{\lambda(r(x) - r(y))}$, and does nothing else. What the base never makes
# stays impossible, and among samples of equal reward nothing changes. The strength $\lambda > 0$ says how much a unit of reward counts.
#
# There is a second way to say it. Take reward as income and the Kullback–Leibler divergence from the base as a price. Among all densities $q$, the
# tilted one makes the best trade:
#
# $$\begin{aligned}
#   \lambda\, \mathbb E_q[r] - \mathrm{KL}(q \,\|\, p_0^b) & = \log Z_{\lambda r} - \mathrm{KL}(q \,\|\, p_0^{\lambda r}) \\
#   & \le \log Z_{\lambda r}, \quad \text{with equality for } q = p_0^{\lambda r}.
#   \end{aligned}$$ (eq-introduction-trade)
#
# {doc}`s2_2_fine_tuning` proves this and looks at the methods that start from here.
#
# ## A reward that has no useful gradient
#
# A reward can be a network, and then it has a gradient. It can also be a random forest, a simulator, a person, or a rule that somebody wrote down.
# Here is a rule: one point for each half unit of height $x_2$, four at the most.


# %%
def rule(x):
    return (2 * x[:, 1]).floor().clamp(0, 4)


# %% [markdown]
# We use it on the paper's base density {eq}`eq-4-11`: two Gaussians of variance $1/2$ that stand side by side at $(\pm 2, 0)$. Ask autograd for the
# gradient of the rule at samples of that base. It answers without complaint.

# %%
base = paper_mixture()
generator = torch.Generator().manual_seed(0)
x = base.sample(200_000, generator).requires_grad_()
values = rule(x)
(gradient,) = torch.autograd.grad(values.sum(), x)
assert torch.equal(gradient, torch.zeros_like(x))
x, values = x.detach(), values.detach()
assert float(values.std()) > 0.5  # and yet the rewards differ

# %% [markdown]
# ```{margin}
# Written with a comparison, `x[:, 1] > 1`, the rule would at least raise an error.
# ```
#
# Zero, at every sample. A method that follows the gradient of this reward does not move, and gives no warning.
#
# Yet the tilt is clear. Take $\lambda = 1$. The height $x_2$ is $\mathcal N(0, 1/2)$ and independent of $x_1$. The rule cuts it into five slices, so the
# tilt only changes the weights of the slices: slice $j$ gets its old probability times $e^{j}$, divided by the sum of these. That is exact. As a check,
# accept each sample $x$ of the base with probability $e^{r(x) - 4}$; what is accepted follows the tilted density.

# %%
edges = np.array([-np.inf, 0.5, 1, 1.5, 2, np.inf])
before = np.diff(norm.cdf(edges, scale=0.5**0.5))
after = before * np.exp(np.arange(5))  # lambda = 1
after, Z = after / after.sum(), after.sum()

uniform = torch.rand(len(x), generator=generator, dtype=torch.float64)
accepted = values[uniform.log() < values - 4]
rate = len(accepted) / len(x)
share = np.bincount(accepted.int(), minlength=5) / len(accepted)

# Four standard errors of a proportion: one of the six checks fails by chance
# for less than one seed in 2,000.
assert abs(rate - Z / np.e**4) < 4 * (rate / len(x)) ** 0.5
standard_errors = np.sqrt(after * (1 - after) / len(accepted))
assert (np.abs(share - after) < 4 * standard_errors).all()

# %% tags=["hide-input"]
measured = [f"{s:.4f} ± {e:.4f}" for s, e in zip(share, standard_errors, strict=True)]
table = pd.DataFrame({"reward": np.arange(5), "base": before, "tilted": after, "by rejection": measured})
display(Markdown(table.to_markdown(index=False, floatfmt=("g", ".4f", ".4f", ""))))
display(
    Markdown(
        f"The mean reward rises from {before @ np.arange(5):.2f} to {after @ np.arange(5):.2f}. The gradient says that it cannot rise at all."
    )
)

# %% [markdown]
# The slices also make {eq}`eq-introduction-trade` easy to try. A thousand other ways to weigh them, drawn at random, all make a worse trade, by exactly
# their divergence from the tilted weights:

# %%
q = np.random.default_rng(0).dirichlet(np.ones(5), size=1000)
trade = q @ np.arange(5) - (q * np.log(q / before)).sum(1)
assert np.allclose(trade, np.log(Z) - (q * np.log(q / after)).sum(1), rtol=0, atol=1e-12)
assert trade.max() < np.log(Z)

# %% [markdown]
# What went wrong with the gradient? Shift all samples up by a little, $x_2 \to x_2 + h$. The mean reward does rise: some samples cross an edge. Each
# edge $a_j$, where the reward rises by one, contributes the density $p(a_j)$ of the height there. But the chain rule looks at one sample at a time, and no single sample is exactly on an
# edge. Derivative and mean may not be exchanged:
#
# $$\frac{d}{dh}\, \mathbb E[r(X_2 + h)] \Big|_{h=0} = \sum_j p(a_j) \;\ne\; \mathbb E[r'(X_2)] = 0 .$$
#
# Differentiate the density instead of the reward, and only values of $r$ are needed: the slope is $-\mathbb E[r(X_2)\, (\log p)'(X_2)]$. For a height
# that is $\mathcal N(0, v)$ this is $\mathbb E[r(X_2)\, X_2] / v$.

# %%
v = 0.5
slope = norm.pdf(edges[1:-1], scale=v**0.5).sum()
terms = (values * x[:, 1] / v).numpy()
from_values, error = terms.mean(), terms.std() / len(terms) ** 0.5
assert abs(from_values - slope) < 4 * error
display(
    Markdown(
        f"Exact slope {slope:.4f}; from values only {from_values:.4f} ± {error:.4f}; by the gradient of the reward {float(gradient[:, 1].mean()):.0f}."
    )
)

# %% [markdown]
# This is the pattern of the whole paper: a *covariance of the reward with the derivative of a log-density* replaces the derivative of the reward. (The
# mean of $(\log p)'$ is zero, so the mean above is a covariance.) In {eq}`eq-3-10` the density is the kernel that adds the noise, and its derivative is
# known. Methods that go through the reward's gradient ({cite:t}`clark2024directly`; {cite:t}`domingoenrich2024adjoint`) need what is zero here. Policy
# gradients ({cite:t}`black2024training`; {cite:t}`fan2023dpok`) do not; they treat each step of the sampler as an action.
#
# ## One large tilt, or many small ones
#
# If the reward is only ever evaluated, why not just reweight? For a tilt of size $\delta$, draw $n$ samples from the base and give sample $i$ the weight
# $w_i = e^{\delta r(x_i)}$. How many samples is the weighted set worth? The usual answer is the *effective sample size*,
#
# $$\mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}, \qquad
#   \frac{\mathrm{ESS}}{n} \to \frac{(\mathbb E\, e^{\delta r})^2}{\mathbb E\, e^{2\delta r}} = \frac{Z_{\delta r}^2}{Z_{2\delta r}}.$$ (eq-introduction-ess)
#
# If the reward is Gaussian under the base, with variance $s^2$, then $\log Z_{\delta r} = \delta\,\mathbb E[r] + \delta^2 s^2 / 2$, and the limit is
# $e^{-\delta^2 s^2}$. The paper's reward, $r = 4 x_2$, is that case, with $s^2 = 16 \cdot \frac12 = 8$.


# %%
def effective_share(log_weights):
    """ESS / n from the logarithms of n weights."""
    log_ess = 2 * torch.logsumexp(log_weights, 0) - torch.logsumexp(2 * log_weights, 0)
    return float(log_ess.exp()) / len(log_weights)


def exact_share(reward, delta):
    """Its limit, from the closed forms of log Z."""
    one, two = (base.log_normaliser(reward, d) for d in (delta, 2 * delta))
    return np.exp(2 * one - two)


paper = parse_reward("paper")
n, repeats = (100_000, 20) if full else (20_000, 10)
rows = []
for delta in (0.05, 0.1, 0.25):
    draws = (base.sample(n, generator) for _ in range(repeats))
    shares = np.array([effective_share(delta * paper(x)) for x in draws])
    standard_error = shares.std(ddof=1) / repeats**0.5
    exact, gaussian = exact_share(paper, delta), np.exp(-8 * delta**2)
    assert abs(exact - gaussian) < 1e-12
    # Five, because the standard error is itself estimated, from few repeats.
    assert abs(shares.mean() - exact) < 5 * standard_error
    rows.append((delta, shares.mean(), standard_error, exact, gaussian))

# %% tags=["hide-input"]
table = pd.DataFrame(rows, columns=["$\\delta$", "ESS/n measured", "±", "from $\\log Z$", "$e^{-8\\delta^2}$"])
display(Markdown(table.to_markdown(index=False, floatfmt=("g", ".4f", ".0e", ".4f", ".4f"))))

# %% tags=["hide-input"]
deltas = np.geomspace(0.01, 2, 80)
staircase = [(before @ np.exp(d * np.arange(5))) ** 2 / (before @ np.exp(2 * d * np.arange(5))) for d in deltas]
cloud = base.sample(1000, torch.Generator().manual_seed(1))
with figures.house_style() as plt:
    fig = plt.figure(figsize=(7.2, 3.1))
    left, *others = fig.subplots(1, 3, width_ratios=(1.25, 1, 1))
    for i, name in enumerate(("paper", "one-mode", "unequal")):
        curve = [exact_share(parse_reward(name), d) for d in deltas]
        left.plot(deltas, curve, color=figures.SERIES[i], marker=figures.MARKERS[i], markevery=13, markersize=4, label=name)
    left.plot(
        deltas, staircase, color=figures.SERIES[3], marker=figures.MARKERS[3], markevery=13, markersize=4, label="the rule"
    )
    for delta in (0.05, 1):
        left.axvline(delta, ymin=0.42, color=figures.INK, linewidth=0.6, linestyle=(0, (2, 2)))
    left.set(xscale="log", xlabel="$\\delta$", ylabel="ESS / n", title="exact", ylim=(-0.03, 1.03))
    left.legend(loc="lower left", fontsize=8.5, handlelength=1.4, borderpad=0)
    for ax, delta in zip(others, (0.05, 1.0), strict=True):
        weights = torch.softmax(delta * paper(cloud), 0).numpy()
        ax.scatter(*cloud.T, s=4000 * weights, color=figures.COLORS["base"], alpha=0.45, linewidths=0, rasterized=True)
        ax.set(
            xlim=(-5, 5),
            ylim=(-3, 3.6),
            xlabel="$x_1$",
            title=f"$\\delta = {delta:g}$: ESS {1000 * effective_share(delta * paper(cloud)):.0f}",
        )
        ax.locator_params(nbins=5)
    others[0].set_ylabel("$x_2$")
figures.show(
    fig,
    "effective-samples",
    "Left: the effective share of samples falls from one to nearly zero between delta one tenth and one. Middle: a thousand base samples, "
    "all of about the same weight, at delta one twentieth. Right: at delta one, a few large discs at the top carry everything.",
)

# %% [markdown]
# ```{glue:figure} effective-samples
# :name: fig-introduction-ess
#
# Left: the limit {eq}`eq-introduction-ess` against the size of the tilt, for the paper's reward, the rule, and two rewards of {doc}`s4_1_gaussian_tilts`; dotted
# lines at $\delta = 1/20$ and $1$. Middle and right: the same 1000 samples of the base, the area of each disc proportional to its weight $e^{\delta r}$ for the
# paper's reward. One tilt of size 1 rests on a few samples, a tilt of size $1/20$ on all.
# ```

# %% tags=["hide-input"]
rows = []
for N in (1, 5, 20, 100):
    each = exact_share(paper, 1 / N)
    rows.append((N, each, each**N))
    assert abs(each**N - np.exp(-8 / N)) < 1e-12
table = pd.DataFrame(rows, columns=["$N$", "ESS/n of one tilt, size $1/N$", "product over all $N$ tilts"])
display(Markdown(table.to_markdown(index=False, floatfmt=("g", ".4f", ".4f"))))
display(Markdown(f"In one step, an effective sample of 100 costs {100 / exact_share(paper, 1.0):,.0f} draws from the base."))

# %% [markdown]
# The loss per tilt falls like $1/N^2$, so all $N$ together lose like $1/N$: in the limit nothing. There is a condition. Tilt $k$ must start from *new*
# samples of the law that tilt $k-1$ has reached,
#
# $$p_0^k(x) \propto \exp\Big(\frac kN \lambda r(x)\Big)\, p_0^b(x), \qquad k = 0, \dots, N,$$
#
# which is {eq}`eq-3-8`. If the old samples are carried along, the small weights multiply up to the large one again:

# %%
N = 20  # tilts; lambda is 1
new = [effective_share(paper(tilt_path(base, paper, 1.0, N)(k).sample(n, generator)) / N) for k in range(N)]
old = cloud.new_zeros(len(cloud))
for _ in range(N):
    old = old + paper(cloud) / N  # the logarithms of N small weights
one_shot = effective_share(paper(cloud))
assert abs(effective_share(old) - one_shot) < 1e-12
# Near delta = 0 the share is 1 - delta^2 var(r), and a variance estimated from
# n Gaussian draws has relative error sqrt(2/n).
assert max(abs(share - exact_share(paper, 1 / N)) for share in new) < 6 * (8 / N**2) * (2 / n) ** 0.5
display(
    Markdown(
        f"Smallest share over {N} tilts from new samples: {min(new):.3f}. The same {N} tilts on the same 1000 samples: {effective_share(old):.3f}. "
        f"That is still too hopeful, for the exact share of one large tilt is {exact_share(paper, 1.0):.4f}; the second question below asks why."
    )
)

# %% [markdown]
# So somebody has to supply new samples after every small tilt. That is the job of the diffusion model: *learn* the small tilt, sample from what was learned, tilt again.
#
# ## The whole idea in one picture
#
# Below is a run of {doc}`Algorithm 2 <s3_2_algorithm>`. A network is trained on samples of the base, then tilted $N$ times toward the paper's target. The reward is wrapped in
# {py:class}`~itlib.rewards.ForwardOnly`, which raises an error if anything tries to differentiate it. After each tilt we draw samples with the *same* noise, so that a point can be followed
# from frame to frame. We also compare the network's prediction $\hat x_1$ of the noise with the exact one for $p_0^k$, which for a Gaussian mixture is known in
# closed form ({doc}`s2_1_3_score`).

# %%
schedule, work = Cosine(), profile_named(profile)
config = TiltingConfig(N=20, S=1000, J=100)
if not full:
    config = replace(work.tilting, N=5, S=200, J=20, E=50)
N, path = config.N, tilt_path(base, paper, config.lam, config.N)

for state in resumable_base(base, schedule, work.training, n=work.n, seed=0):
    pass  # trains the base network, or finds it trained
network = state.denoiser


def look(denoiser, k):
    """300 samples, always from the same noise, and the error of the prediction, over the draws that records take."""
    noise = torch.Generator().manual_seed(1)
    points = sample(denoiser, schedule, 300, steps=config.J, generator=noise)
    errors = score_errors(denoiser, path(k), schedule, n=5000 if full else 1000, seed=0)
    return points.numpy(), errors.eps_rmse


frames = [look(network, 0)]
blind = ForwardOnly(paper)  # values only
for step in iterative_tilting(network, blind, schedule, config, seed=0):
    frames.append(look(step.model, step.k))

# %% tags=["remove-cell"]
points = np.stack([p for p, _ in frames])  # (N + 1, 300, 2)
errors = np.array([e for _, e in frames])
exact_means = np.array([path(k).mean.tolist() for k in range(N + 1)])
band = 2 * (0.5 / points.shape[1]) ** 0.5  # two standard errors of a mean of x_2 (variance 1/2 along the whole path)

assert np.isfinite(points).all()
assert np.allclose(exact_means[:, 1], 2 * np.arange(N + 1) / N, atol=1e-12)
assert np.corrcoef(points[:, :, 1].mean(1), exact_means[:, 1])[0, 1] > (0.99 if full else 0.5)  # it climbs
if full:
    moves = np.linalg.norm(np.diff(points, axis=0), axis=-1)
    assert np.median(moves) < 0.2  # a point can be followed: the exact law moves by 0.1 a tilt

LIMITS = (-4.6, 4.6, -2.6, 4.4)
xs, ys = np.arange(-5, 5.01, 0.05), np.arange(-3, 5.01, 0.05)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def log_density(k):
    values = path(k).log_prob(plane).reshape(len(ys), len(xs)).numpy()
    return values - values.max()


# %% tags=["remove-input"]
with figures.house_style() as plt:
    still = plt.figure(figsize=(7.2, 5.0))
    top, bottom = still.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = top.subplots(1, 3, sharey=True)
    for ax, k in zip(axes, (0, N // 2, N), strict=True):
        figures.samples(ax, points[k], density=(xs, ys, log_density(k)), title=f"$k = {k}$", limits=LIMITS)
    left, right = bottom.subplots(1, 2)
    ks = np.arange(N + 1)
    left.fill_between(
        ks, exact_means[:, 1] - band, exact_means[:, 1] + band, color=figures.COLORS["band"], alpha=0.3, linewidth=0
    )
    left.plot(ks, exact_means[:, 1], color=figures.COLORS["target"], linestyle="--", label="exact")
    left.plot(ks, points[:, :, 1].mean(1), color=figures.COLORS["learned"], marker="o", markersize=3, label="learned")
    left.set(xlabel="tilt $k$", title="mean of $x_2$")
    left.legend(loc="upper left")
    right.plot(ks, errors, color=figures.COLORS["learned"], marker="o", markersize=3)
    right.set(xlabel="tilt $k$", title="error of the network", ylim=(0, None))
figures.show(
    still,
    "tilts",
    f"Samples of the network before the tilts, after half and after all {N} of them, over contours of the exact density, which climbs from height 0 "
    f"to 2. The mean height of the samples ends at {points[N, :, 1].mean():.2f} and the error of the network grows from {errors[0]:.2f} to {errors[N]:.2f}.",
)

# %% tags=["remove-input"]
frames = [
    {"k": k, "points": np.round(100 * points[k]).astype(int).ravel().tolist(), "error": round(float(errors[k]), 4)}
    for k in range(N + 1)
]
model = {"mixture": figures.as_model(base), "reward": figures.as_model(paper), "runs": [{"N": N, "frames": frames}]}
figures.explorer("tilts", model, "tilts")

# %% [markdown]
# ```{glue:figure} tilts
# :name: fig-introduction-tilts
#
# From the base to the target in one run of Algorithm 2: 300 samples of the network after each tilt, with contours of the exact $p_0^k$ at 1, 10, 40 and 80 per
# cent of its maximum; the mean of $x_2$ beside the exact one; the root mean square error of $\hat x_1$. The samples follow the target, and fall behind.
# On the page, move the slider or press the button.
# ```

# %% tags=["remove-input"]
lag = exact_means[N, 1] - points[N, :, 1].mean()
display(
    Markdown(
        f"The run: base network trained on {work.n:,} samples, $N = {N}$, $S = {config.S}$ samples and $J = {config.J}$ reverse steps a tilt (the paper takes 1000 and 200), "
        f"{config.E} minibatches of {config.B} a tilt, Adam at {config.lr:g}, seed 0. A mean of 300 exact samples would miss by more than ±{band:.2f} one time in twenty."
    )
)

# %% [markdown]
# Three things to look for. *It works*: with values of the reward only, the samples climb from the base nearly to the target. *It lags*: by the end the dots trail the contours, by more
# than chance allows, and the error of the network has grown on the way. The target sits where the base has hardly any samples, and each tilt is learned from the one before.
# How far a run lags depends on what the paper leaves open, and {doc}`s4_2_choices` varies that. *Points are not particles*: most move up by the same small step, but now and then one changes sides. A
# tilt changes a law, not the fate of a sample.

# %% tags=["remove-input"]
if full:
    assert lag > band  # what the text says
    assert errors[N] > errors[0]
sides = int((np.diff(np.sign(points[:, :, 0]), axis=0) != 0).sum())
display(
    Markdown(
        f"In numbers: the mean of $x_2$ ends at {exact_means[N, 1] - lag:.2f}, and should at {exact_means[N, 1]:g}; the error goes from {errors[0]:.3f} to {errors[N]:.3f}; "
        f"a change of sides happened {sides} times, in {points.shape[1] * N:,} steps of a point."
    )
)

# %% [markdown]
# ## What the paper claims, and where this book looks at it
#
# | the paper says | this book |
# |:--|:--|
# | Large tilts split into small ones, each with a first-order update of the score | proved, and the remainder measured, in {doc}`s3_1_tilted_score` |
# | Only forward evaluations of the reward are needed | checked line by line in {doc}`s3_2_algorithm` |
# | Other methods differentiate through the reward and the sampler | shown at work in {doc}`s2_2_fine_tuning` |
# | The exact tilted mixture is known | derived in {doc}`s4_1_gaussian_tilts`, with three harder targets |
# | The target is recovered for all $N$, and the error converges | run with several seeds, and scored in two ways, in {doc}`s4_2_results` |
# | Run time grows linearly in $N$ | timed in {doc}`s4_2_results` |
# | Open: the variance of the single sample, the choice of $N$, high dimension, adapters | the first measured in {doc}`s3_2_algorithm`, the others discussed in {doc}`s5_conclusion` |
#
# {doc}`equations` lists every numbered equation with the code that implements it and the test that would notice if it were wrong. {doc}`errata` collects what the paper prints
# differently from what it means.
#
# The paper notes that a submission made at the same time {cite:p}`anonymous2025tilt`, since posted as {cite:t}`tiltmatching2025`, has essentially the same method. The
# difference it names is in the derivation: continuous time and stochastic interpolants there, diffusion and discrete time here.
#
# If you know diffusion models, skip {doc}`s2_1_1_forward` to {doc}`s2_1_4_sde` and go on with {doc}`s3_1_tilted_score`.
#
# ## Try this
#
# - Reweight in $d$ dimensions: the reward is a sum of $d$ independent Gaussian coordinates, each of variance 8. What does one step keep? And how many tilts are needed to keep nine samples
#   in ten in each, for $d = 1, 100, 10\,000$?

# %% tags=["hide-cell"]
rows = []
for d in (1, 100, 10_000):
    tilts = int(np.ceil((8 * d / -np.log(0.9)) ** 0.5))  # exp(-8 d / N^2) = 0.9
    assert np.exp(-8 * d / tilts**2) >= 0.9 > np.exp(-8 * d / (tilts - 1) ** 2)
    rows.append((d, f"$10^{{{-8 * d / np.log(10):.0f}}}$", tilts))
display(
    Markdown(
        pd.DataFrame(rows, columns=["$d$", "share kept by one step", "tilts for 0.9"]).to_markdown(
            index=False, disable_numparse=True
        )
    )
)
display(
    Markdown(
        "One step becomes hopeless exponentially fast. The number of tilts grows only like $\\sqrt d$, because a tilt of size $\\delta$ costs $\\delta^2$ times a variance. "
        "This counts tilts only: inside each, a model of $d$ dimensions has to be learned."
    )
)

# %% [markdown]
# - Estimate the effective share at $\lambda = 1$, $2$ and $4$ from 1000 samples, and look at the exact one. Does the estimate warn you in time?

# %% tags=["hide-cell"]
rows = []
for lam in (1, 2, 4):
    shares = [effective_share(lam * paper(base.sample(1000, torch.Generator().manual_seed(s)))) for s in range(20)]
    rows.append((lam, np.median(shares), exact_share(paper, lam)))
    assert min(shares) >= 1 / 1000 > rows[-1][2]  # no set of 1000 weights has an ESS below 1
display(
    Markdown(
        pd.DataFrame(rows, columns=["$\\lambda$", "estimate (median of 20)", "exact"]).to_markdown(
            index=False, floatfmt=("g", ".1e", ".1e")
        )
    )
)
display(
    Markdown(
        "No. An effective sample size is at least 1, so the estimate cannot fall below 0.001, however small the truth. The samples that would matter were never drawn, "
        "and a diagnostic that only sees the drawn ones cannot know. A tilt that is learned from samples is in the same position."
    )
)

# %% [markdown]
# - The samples in the picture were drawn with `eta=1.0`, the stochastic sampler. Draw them with `eta=0.0`: same network, same number of steps, and in theory the same law.

# %% tags=["hide-cell"]
exact = ExactNoisePredictor(base, schedule)


def first_step_exact(x, t):
    return (exact if float(t) >= schedule.t_max - 1e-6 else network)(x, t)


rows = []
for name, denoiser, eta in (
    ("network", network, 1.0),
    ("network", network, 0.0),
    ("network, first step exact", first_step_exact, 0.0),
    ("exact", exact, 0.0),
):
    drawn = sample(denoiser, schedule, 1000, steps=config.J, eta=eta, generator=torch.Generator().manual_seed(1))
    rows.append((eta, name, float((drawn[:, 0] > 0).double().mean()), float(drawn[:, 1].var())))
columns = ["$\\eta$", "denoiser", "share on the right", "variance of $x_2$"]
display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, floatfmt=("g", "", ".2f", ".2f"))))
spread = 0.5 * (2 / 1000) ** 0.5  # standard error of a variance of 1000 Gaussian draws
first = (rows[1][3] - rows[2][3]) / (rows[1][3] - rows[3][3])  # share of the first step in the excess
if full:
    assert abs(rows[1][3] - 0.5) > 3 * spread  # what the text says
    assert rows[1][3] - rows[3][3] > 3 * spread
    assert 0.25 < first < 1
display(
    Markdown(
        f"Look at the variance of $x_2$: {rows[1][3]:.2f} at $\\eta = 0$, where 1000 exact samples would give 0.5 ± {spread:.2f}. And this is only the *base*. In theory $\\eta$ changes the "
        "path and not the marginals {eq}`eq-2-4`; that is for exact denoisers and many steps. The last three rows have the same starting points, so they can be compared: "
        f"the very first step makes {first:.0%} of what the network adds. Close to $t = 1$ a small error of $\\hat x_1$ is a large error of the clean point. The deterministic sampler "
        "carries it to the end; the stochastic one washes it out with fresh noise."
    )
)
