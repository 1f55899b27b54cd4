# ---
# jupyter:
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
# # Less variance
#
# Algorithm 2 learns the covariance $C_{k-1}(x_t, t)$ {eq}`eq-3-9` from single samples that are mostly noise ({doc}`s3_2_algorithm`).
# The same values can be put to better use. This page is for reference; its advice is under *Which one?*.
#
# **You will see** what the noise of one sample is made of, and how much of it a baseline removes; two estimators without it, which
# look at all samples at once; their bias and variance against the exact covariance; what a network learns from each; and how a
# drifted model can be weighed back.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points, datasets and steps

# %%
from itertools import pairwise

import numpy as np
import torch

from itlib import figures
from itlib.beyond import estimators as beyond
from itlib.beyond.implicit import implicit
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.metrics import effective_sample_size
from itlib.network import Network, Residual
from itlib.rewards import NAMED_REWARDS, QuadraticReward, parse_reward
from itlib.sampling import path_log_weights, time_grid, transition
from itlib.schedules import Cosine, add_noise
from itlib.tilting import TiltBatch, TiltingConfig, explicit, iterative_tilting, single_sample

torch.set_num_threads(1)
full, schedule = profile == "full", Cosine()


def at(t):
    time = torch.tensor(t, dtype=torch.float64)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## What the noise is made of
#
# In the denoiser's units one sample gives $\sigma_t\widehat C = r\,\zeta$, where $\zeta = \varepsilon_{\mathrm{old}} - z$ is the
# teacher's error about the noise. Subtract from the reward a *baseline* $v$ that depends on $(x_t, t)$ only. With
# $\bar r = \mathbb E[r \mid x_t]$ and $\bar\zeta = \mathbb E[\zeta \mid x_t]$,
#
# $$\mathbb E\big[(r - v)\,\zeta \mid x_t\big] = \sigma_t C + (\bar r - v)\,\bar\zeta . $$ (eq-baseline-mean)
#
# If the teacher is the score of the law of its samples, then $\bar\zeta = 0$, and every baseline has the right mean. So choose $v$ for
# its variance. Suppose that given $x_t$ the clean sample is Gaussian, $X_0 = \mu + \varsigma\xi$ with a standard normal $\xi$, and that
# the reward is linear with slope $b$. Then $\zeta = (\alpha_t/\sigma_t)\,\varsigma\,\xi$ and
# $r - v = (\bar r - v) + \varsigma\, b^\top\xi$. The mean of the product is $\sigma_t C = (\alpha_t/\sigma_t)\,\varsigma^2 b$. With
# $\mathbb E[(b^\top\xi)^2\|\xi\|^2] = (d+2)\|b\|^2$ its variance, in units of what it estimates, is
#
# $$ \frac{\mathrm{tr}\,\mathrm{Var}\big((r-v)\,\zeta \mid x_t\big)}{\|\sigma_t C\|^2} = (d + 1) + d\;\frac{(\bar r - v)^2}{\mathrm{Var}(r \mid x_t)} . $$ (eq-relative-noise)
#
# - The paper's choice, $v = 0$, pays for the *value* of the reward. **Centring**, $v = \mathbb E[r]$, pays for its spread over $x_t$
#   only. A **local baseline**, $v = \bar r(x_t, t)$, pays nothing.
# - No baseline gets below $d + 1$: the noise of one draw has at least $d+1$ times the square of the signal.
# - With $v = \bar r$ the bias in {eq}`eq-baseline-mean` vanishes for *any* teacher.
#
# Here is the formula, checked: one Gaussian, one point, many draws from the exact posterior.


# %% tags=["hide-input"]
def relative_noise(d, t=0.4, n=200_000 if full else 20_000):
    """Relative variance of one draw, measured, and from the formula, for three baselines."""
    (alpha, sigma), time = at(t), torch.tensor(t, dtype=torch.float64)
    law, slope = GaussianMixture(torch.ones(1), torch.ones(1, d), 0.5 * torch.eye(d)[None]), torch.ones(d)
    r, x = QuadraticReward(slope), torch.full((n, d), 1.5, dtype=torch.float64)
    width = 0.5 * sigma**2 / (0.5 * alpha**2 + sigma**2)
    r_bar = float(law.posterior_reward(x[:1], time, schedule, r))
    mean = 1 + 0.5 * alpha / (0.5 * alpha**2 + sigma**2) * (x - alpha)
    x_0 = mean + width**0.5 * torch.randn(n, d, generator=seeded(0), dtype=torch.float64)
    eps_old = ExactNoisePredictor(law, schedule)(x, time)
    batch = TiltBatch(1, x_0, r(x_0), time.expand(n), (x - alpha * x_0) / sigma, x, eps_old)
    exact = sigma * law.covariance(x[:1], time, schedule, r)[0]
    row = {"$d$": d}
    for name, v in (("$v = 0$", 0.0), ("$v = \\mathbb E\\,r$", law.expected_reward(r)), ("$v = \\bar r$", r_bar)):
        square = (beyond.centred(v)(batch) - exact).square().sum(-1) / exact.square().sum()
        formula = d + 1 + d * (r_bar - v) ** 2 / (width * d)
        assert abs(float(square.mean()) - formula) < 5 * float(square.std()) / n**0.5
        row[name] = f"{float(square.mean()):.2f} ({formula:.2f})"
    return row


figures.table([relative_noise(d) for d in (1, 2, 10)])

# %% [markdown]
# Relative variance of one draw at $t = 0.4$: measured (from the formula).
#
# ## Without the noise
#
# The $d+1$ is there because each target knows one $X_0$ and one $z$. Two estimators use all $S$ samples of $D_k$ for every target.
#
# **Rao–Blackwell.** Average over which of the $S$ samples $x_t$ came from. It needs no model, only the Gaussian kernel:
#
# $$ \sigma_t C \approx \frac{\alpha_t}{\sigma_t}\sum_{i=1}^S w_i\,\Big(r_i - \sum_j w_j r_j\Big)\, X_0^i, \qquad w_i \propto q_{t|0}(x_t \mid X_0^i). $$ (eq-rao-blackwell)
#
# **The value's gradient.** The covariance is a gradient,
#
# $$ C(x_t, t) = \nabla_{x_t}\, \mathbb E[r(X_0) \mid x_t], $$ (eq-value-gradient)
#
# since $\nabla_{x_t}$ of the posterior {eq}`eq-3-3` is the posterior times $g - \mathbb E[g \mid x_t]$. So fit a small network
# $v_\phi(x_t, t)$ to the rewards by least squares, and differentiate *that*. The reward itself is only evaluated.
#
# Each is a function of one batch, and {py:func}`~itlib.tilting.iterative_tilting` takes any of them
# ({py:mod}`itlib.beyond.estimators`):


# %%
def estimators(value):
    """All of them, from a guess of E[r(X_0) | x_t]."""
    return {
        "single sample": single_sample,
        "centred": beyond.centred(),
        "local baseline": beyond.local_baseline(value),
        "Rao–Blackwell": beyond.rao_blackwell(schedule),
        "value's gradient": beyond.value_gradient(value, schedule),
    }


def learned_value(samples, rewards, seed=0):
    steps = 600 if full else 20
    return beyond.fit_value(samples, rewards, schedule, steps=steps, seed=seed)


# %% [markdown]
# ## Bias and variance
#
# Now a harder case: the tilt of the `one-mode` task that starts half way, at strength $s = \frac12$. Samples and teacher are exact,
# $S = 1000$. At fixed points $x_t \sim p_t$ the mean and variance of the first three come from a quadrature, with the
# exact $\bar r$ as baseline; for the other two we draw datasets.

# %%
base, reward, S = paper_mixture(), parse_reward("one-mode"), 1000
law = base.tilted(reward, 0.5)
every_t = np.linspace(0.02, 0.98, 13 if full else 5)
n = 60 if full else 20
datasets = {"Rao–Blackwell": 20 if full else 4, "value's gradient": 6 if full else 2}

# %% tags=["hide-input"]
nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(4))
nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / (2 * np.pi)


def mean_square(v):
    return float(v.square().sum(-1).mean())


def sampled_from(law, t, n=n):
    """Points of p_t, (n, 2), the exact sigma_t C there, and the time."""
    time = torch.tensor(t, dtype=torch.float64)
    x = law.noised(schedule, t).sample(n, seeded(1))
    return x, at(t)[1] * law.covariance(x, time, schedule, reward), time


def one_draw(estimator, law, t, teacher=None, r=reward):
    """Mean, (n, 2), and variance, (n,), of an estimator that looks at one draw, given the points; and the exact step."""
    x, exact, time = sampled_from(law, t)
    (alpha, sigma), posterior = at(t), law.posterior(x, time, schedule)
    parts = posterior.component_distribution
    x_0 = parts.loc.unsqueeze(2) + torch.einsum("bkde,qe->bkqd", parts.scale_tril, nodes)
    w = (posterior.mixture_distribution.probs.unsqueeze(-1) * weights).flatten(1)
    x_0, M = x_0.reshape(-1, 2), w.shape[1]
    x_t, eps_old = (v.repeat_interleave(M, 0) for v in (x, ExactNoisePredictor(teacher or law, schedule)(x, time)))
    batch = TiltBatch(1, x_0, r(x_0), time.expand(len(x_0)), (x_t - alpha * x_0) / sigma, x_t, eps_old)
    values = estimator(batch).reshape(len(x), M, 2)
    mean = torch.einsum("bm,bmd->bd", w, values)
    return mean, torch.einsum("bm,bmd->b", w, (values - mean.unsqueeze(1)) ** 2), exact


# %% tags=["hide-input"]
def split(estimates, exact):
    """Mean over points of bias^2, without its own noise, and of the variance, from independent estimates (R, n, d)."""
    variance = float(estimates.var(0).sum(-1).mean())
    return max(0.0, mean_square(estimates.mean(0) - exact) - variance / len(estimates)), variance


def over_datasets(name, t):
    """Bias^2 and variance over datasets that hold the sample that the point was made from."""
    x, exact, time = sampled_from(law, t)
    found = []
    with torch.random.fork_rng(devices=[]):  # the posterior of torch.distributions has no generator of its own
        torch.manual_seed(2)
        own = law.posterior(x, time, schedule).sample((datasets[name],))
    for seed in range(datasets[name]):
        D = torch.cat([law.sample(S - 1, seeded(seed)), own[seed, :1]])
        if name == "value's gradient":  # one fit for all points and times; which one point it holds does not matter
            found.append(fits[seed][name](TiltBatch(1, x, x[:, 0], time.float().expand(n), x, x.float(), x)).double())
            continue
        rows = []
        for i in range(n):
            D[-1] = own[seed, i]
            point = x[i : i + 1]
            batch = TiltBatch(1, point, point[:, 0], time[None], point, point, point, reward(D), D)
            rows.append(beyond.rao_blackwell(schedule)(batch))
        found.append(torch.cat(rows))
    return split(torch.stack(found), exact)


# %% tags=["hide-input"]
fits = []
for seed in range(datasets["value's gradient"]):
    D = law.sample(S, seeded(100 + seed)).float()
    fits.append(estimators(learned_value(D, reward(D), seed)))
names = list(fits[0])


def one_sample(r):
    """The three estimators that look at one draw, with exact baselines."""
    return {
        "single sample": single_sample,
        "centred": beyond.centred(law.expected_reward(r)),
        "local baseline": beyond.local_baseline(lambda x, t: law.posterior_reward(x, t, schedule, r)),
    }


# %%
curves = {name: [] for name in names}  # (bias^2, variance) at each time
signal = np.array([mean_square(sampled_from(law, float(t))[1]) for t in every_t])
for t in every_t:
    for name, estimator in one_sample(reward).items():
        mean, variance, exact = one_draw(estimator, law, float(t))
        assert mean_square(mean - exact) < 1e-12  # unbiased
        curves[name].append((0.0, float(variance.mean())))
    for name in datasets:
        curves[name].append(over_datasets(name, float(t)))
curves = {name: np.array(values) for name, values in curves.items()}
total = {name: values.sum(1) for name, values in curves.items()}

# %% tags=["hide-input"]
looks = {name: (figures.SERIES[i], figures.MARKERS[i]) for i, name in enumerate(names)}
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.6), sharex=True, sharey=True)
    for ax, (name, (color, marker)) in zip(axes.flat, looks.items(), strict=False):
        bias, variance = curves[name].T
        ax.plot(every_t, variance, color=color, marker=marker, markersize=4)
        if name in datasets:
            shown = np.where(bias > 1e-7, bias, np.nan)
            ax.plot(every_t, shown, color=color, linestyle=":", marker=marker, markersize=4, markerfacecolor="none")
        ax.plot(every_t, signal, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set_title(name)
        axes[1, 2].plot(every_t, total[name] / signal, color=color, marker=marker, markersize=4)
    axes[1, 2].axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[1, 2].set_title("all: error / signal")
    axes[0, 0].set(yscale="log", ylim=(1e-4, 1e3))
    for below, left in zip(axes[1], axes[:, 0].repeat(2), strict=False):
        below.set_xlabel("$t$")
        left.set_ylabel("mean square")
    styles = ((1.5, "-"), (1.5, ":"), (0.8, "--"))
    handles = [plt.Line2D([], [], color=figures.INK, linewidth=width, linestyle=style) for width, style in styles]
    fig.legend(handles, ["variance", "bias squared", "signal"], loc="outside upper center", ncols=3)
alt = "Six panels of mean squares against t. The variance of the three single-sample estimators lies above the signal, lowest for the "
alt += "local baseline; variance and bias of Rao-Blackwell and of the value's gradient lie far below it, except Rao-Blackwell near t = 0."
figures.show(fig, "bias-variance", alt)

# %% [markdown]
# ```{glue:figure} bias-variance
# :name: fig-estimators-bias-variance
#
# Bias squared and variance of one target, given $x_t$, averaged over $x_t \sim p_t$; dashed: the signal
# $\mathbb E\|\sigma_t C\|^2$. The first three have no bias. Last panel: total error in units of the signal.
# ```

# %% tags=["hide-input"]
rows = []
for name in names:
    ratio, row = total[name] / signal, {"estimator": name}
    for t in (0.02, 0.2, 0.5, 0.8):
        i = int(np.abs(every_t - t).argmin())
        row[f"$t = {every_t[i]:.2f}$"] = f"{ratio[i]:,.2g}" if ratio[i] < 100 else f"{ratio[i]:,.0f}"
    rows.append(row)
figures.table(rows, floatfmt=",.4g")
assert (total["local baseline"] < total["centred"]).all()
assert (total["centred"] < total["single sample"]).all()
assert (total["local baseline"] > signal).all()
if full:
    late = every_t > 0.1
    assert (total["Rao–Blackwell"] < 0.25 * total["local baseline"]).all()
    assert (total["value's gradient"] < 0.3 * signal)[late].all()
    assert curves["Rao–Blackwell"][0, 0] > 10 * curves["value's gradient"][0, 0]

# %% [markdown]
# Mean square error of one target, in units of the signal.
#
# A reward has no natural zero: adding a constant changes no tilt. But it changes the noise of a single sample.

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    for ax, c in zip(axes, (0.0, 10.0), strict=True):
        r = QuadraticReward(reward.b, c=c)
        for name, v in one_sample(r).items():
            noise_of = np.array([float(one_draw(v, law, float(t), r=r)[1].mean()) for t in every_t])
            color, marker = looks[name]
            ax.plot(every_t, noise_of / signal, color=color, marker=marker, markersize=4, label=name)
        ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set(yscale="log", xlabel="$t$", title=f"reward plus {c:g}")
    axes[0].set_ylabel("variance / signal")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
alt = "Relative variance against t of single sample, centred and local baseline, for the reward and for the reward plus ten: only the "
figures.show(fig, "zero-of-the-reward", alt + "single sample's curve rises.")
rewards = {name: figures.as_model(parse_reward(name)) for name in NAMED_REWARDS}
figures.explorer("estimators", {"mixture": figures.as_model(base), "rewards": rewards}, "zero-of-the-reward")

# %% [markdown]
# ```{glue:figure} zero-of-the-reward
# :name: fig-estimators-zero
#
# Variance of one target in units of the signal. On the page, choose the reward, how far the tilt has come, the constant and the number
# of samples; the script computes the closed forms at eighty noised samples for each $t$, and Rao–Blackwell from one dataset.
# ```
#
# But a student *averages* the noise of single samples over thousands of draws. The error of the last two comes from the dataset, and no
# averaging removes it.
#
# ## More samples, more dimensions
#
# **Rao–Blackwell memorises.** Near $t = 0$ the kernel is narrow, and all the weight falls on the nearest sample, usually the one that
# $x_t$ was made from. A covariance under one sample is zero, so the estimate vanishes. When? $X_t$ tells $I(X_0; X_t)$ nats about
# $X_0$, and $\log S$ nats are enough to tell $S$ samples apart. For a Gaussian with variance $\varrho^2$ in each coordinate, expect
# the collapse where
#
# $$ I(X_0; X_t) = \frac d2\,\log\Big(1 + \frac{\alpha_t^2\,\varrho^2}{\sigma_t^2}\Big) \;>\; \log S . $$ (eq-memorised)
#
# To hold the collapse at the same $t$, $S$ has to grow exponentially with $d$. To measure this we add $d - 2$ coordinates that the
# reward does not see, and turn everything by a random rotation. The tilt and its KL divergence stay the same.


# %% tags=["hide-input"]
def in_dimension(d):
    """The mixture half way and the reward, with d - 2 more coordinates of the same variance, in a random basis."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=seeded(d), dtype=torch.float64))[0]
    means, b = torch.zeros(2, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    means[:, :2], b[:2] = base.means, reward.b
    start, r = GaussianMixture(base.weights, means @ Q, 0.5 * torch.eye(d).expand(2, d, d)), QuadraticReward(b @ Q)
    return start.tilted(r, 0.5), r


def relative_errors(d, S, seed, M=1500 if full else 300):
    """Square errors in units of the signal, (M,), at noised samples of one dataset, as the loss sees them; and the times."""
    law, r = in_dimension(d)
    generator = seeded(1000 * seed + d)
    D = law.sample(S, generator)
    x_0 = D[torch.randint(S, (M,), generator=generator)]
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(M, generator=generator, dtype=torch.float64)
    z = torch.randn(M, d, generator=generator, dtype=torch.float64)
    x = add_noise(schedule, x_0, z, t)
    batch = [r(x_0), t, z, x, ExactNoisePredictor(law, schedule)(x, t), r(D), D]
    batch = TiltBatch(1, x_0.float(), *(v.float() for v in batch))
    exact = schedule.sigma(t)[:, None] * law.covariance(x, t, schedule, r)
    size = exact.square().sum(-1).mean()
    learned = estimators(learned_value(batch.samples, batch.rewards, seed))
    squares = {name: (estimate(batch).double() - exact).square().sum(-1) / size for name, estimate in learned.items()}
    return squares, t, exact.square().sum(-1) / size


# %% tags=["hide-input"]
dimensions = (2, 10, 30) if full else (2, 10)
sizes, seeds = (100, 1000, 10_000) if full else (100, 1000), range(3 if full else 2)
for d in dimensions:  # the tilt is the same
    start, r = in_dimension(d)
    assert abs(start.log_normaliser(r, 0.1) - law.log_normaliser(reward, 0.1)) < 1e-9
keys = [(d, S) for d in dimensions for S in sizes if d == 2 or S == 1000]
runs = {(d, S): [relative_errors(d, S, seed) for seed in seeds] for d, S in keys}


def error(key, name):
    """Root of the mean square error in units of the signal, for each seed."""
    return np.array([float(squares[name].mean()) ** 0.5 for squares, *_ in runs[key]])


def against_t(key, name, edges):
    """The same within bins of t, over all seeds."""
    t = torch.cat([t for _, t, _ in runs[key]]).numpy()
    squares, signal = (torch.cat(v).numpy() for v in ([s[name] for s, *_ in runs[key]], [s for *_, s in runs[key]]))
    inside = [(t >= a) & (t < b) for a, b in pairwise(edges)]
    return np.array([np.sqrt(squares[i].mean() / signal[i].mean()) for i in inside])


def collapse(d, S):
    """The time at which (eq-memorised) holds with equality, for the variance of a component."""
    t = np.linspace(1e-3, 0.999, 2000)
    alpha, sigma = (f(torch.from_numpy(t)).numpy() for f in (schedule.alpha, schedule.sigma))
    return t[np.argmin(np.abs(0.5 * d * np.log1p(0.5 * alpha**2 / sigma**2) - np.log(S)))]


# %% tags=["hide-input"]
edges = np.linspace(0, 1, 16 if full else 6)
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.5))
    several = ([(2, S) for S in sizes], sizes), ([(d, 1000) for d in dimensions], dimensions)
    for ax, (keys, values) in zip(axes, several, strict=False):
        for name, (color, marker) in looks.items():
            each = np.array([error(key, name) for key in keys])
            ax.plot(values, each.mean(1), color=color, marker=marker, markersize=4, label=name)
            ax.fill_between(values, each.min(1), each.max(1), color=color, alpha=0.2, linewidth=0)
        ax.set(xscale="log", yscale="log", ylim=(0.02, 60))
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.minorticks_off()
    for i, d in enumerate(dimensions):
        curve, middle = against_t((d, 1000), "Rao–Blackwell", edges), 0.5 * (edges[1:] + edges[:-1])
        axes[2].plot(middle, curve, color=figures.SERIES[i], marker=figures.MARKERS[i], markersize=4)
        top = curve.argmax()
        axes[2].text(middle[top], curve[top] + 0.05, f"$d = {d}$", ha="right" if i else "left")
        axes[2].axvline(collapse(d, 1000), color=figures.SERIES[i], linewidth=0.8, linestyle=":")
    for ax in axes:
        ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[0].set(xlabel="samples $S$", ylabel="relative error", title="$d = 2$")
    axes[1].set(xlabel="dimension $d$", title="$S$ = 1,000")
    axes[2].set(xlabel="$t$", title="Rao–Blackwell", ylim=(0, 1.7))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
alt = "Relative error against S, against d, and of Rao-Blackwell against t. The two estimators over all samples improve with S. In 30 "
alt += "dimensions Rao-Blackwell is as wrong as no estimate up to the predicted time of collapse; the value's gradient stays below one."
figures.show(fig, "dimension", alt)

# %% [markdown]
# ```{glue:figure} dimension
# :name: fig-estimators-dimension
#
# Root mean square error of a target over all $t$, in units of the signal, at noised samples of the dataset; mean and range over
# datasets. Right: Rao–Blackwell at 1,000 samples; dotted: where {eq}`eq-memorised` holds with equality. To its left the estimate is
# lost: 1 is the error of no estimate, and around the collapse a few samples are worse than none.
# ```

# %% tags=["hide-input"]
columns = {f"$d = {d}$": d for d in dimensions}
figures.table(
    [{"estimator": name} | {title: f"{error((d, 1000), name).mean():.2f}" for title, d in columns.items()} for name in names]
)
start, r = in_dimension(2)
figures.glue(nats=f"{base.tilted(reward).expected_reward(reward) - base.log_normaliser(reward):.2f}")
if full:
    best = {d: min(names, key=lambda name: error((d, 1000), name).mean()) for d in dimensions}
    assert best[2] == "Rao–Blackwell"
    assert best[10] == best[30] == "value's gradient"
    assert error((30, 1000), "Rao–Blackwell").mean() > 0.7
    assert error((2, 10_000), "Rao–Blackwell").mean() < error((2, 100), "Rao–Blackwell").mean() / 5

# %% [markdown]
# Relative error at $S$ = 1,000, mean over datasets. The target is {glue:text}`nats` nats from the base in every dimension.
#
# ## When the teacher is off
#
# In the algorithm the teacher is never quite the score of its samples. Take samples that are 10 % too narrow, as a sampler with few
# steps makes them, and a teacher that does not know. By {eq}`eq-baseline-mean` the estimate has the bias $(\bar r - v)\,\bar\zeta$. For
# the paper's choice it depends on the zero of the reward, which means nothing. Centring removes that dependence; a local baseline
# removes the bias. The last two estimators never ask the teacher.

# %%
narrow = GaussianMixture(law.weights, law.means, 0.9 * law.covariances)


def bias(make, c):
    """Relative bias over points and times, for the reward plus c."""
    r, squares, sizes = QuadraticReward(reward.b, c=c), 0.0, 0.0
    for t in every_t[1:-1].tolist():
        mean, _, exact = one_draw(make(r), narrow, t, teacher=law, r=r)
        squares += mean_square(mean - exact)
        sizes += mean_square(exact)
    return (squares / sizes) ** 0.5


# %% tags=["hide-input"]
makes = {
    "single sample": lambda r: single_sample,
    "centred": lambda r: beyond.centred(narrow.expected_reward(r)),
    "local baseline": lambda r: beyond.local_baseline(lambda x, t: narrow.posterior_reward(x, t, schedule, r)),
}
off = {name: [bias(make, c) for c in (0.0, 4.0, -4.0)] for name, make in makes.items()}
assert np.ptp(off["centred"]) < 1e-6 < 0.01 < np.ptp(off["single sample"])
assert max(off["local baseline"]) < 1e-6
assert not full or off["centred"][0] < 0.5 * off["single sample"][0]
heads = ("$r$", "$r + 4$", "$r - 4$")
figures.table([{"bias": name} | {h: f"{v:.1%}" for h, v in zip(heads, values, strict=True)} for name, values in off.items()])

# %% [markdown]
# Bias of the mean, relative to $\sigma_t C$, root mean square over points and times.
#
# ## What a student learns
#
# What counts is what the student has learned when the tilt is over. Here is one tilt of $\delta = 0.1$ from $s = \frac12$, by Algorithm 2
# with an exact base and exact samples, minibatches of 64 and a small network. Implicit Tilt Matching ({doc}`rivals_methods`) joins in.
# It regresses on $z + e^{-u}(\varepsilon_{\mathrm{old}} - z)$ with weight $e^u$,
# $u = \delta(r - c)$, which to first order in $\delta$ is the centred target. All are scored against the exact finite step.

# %%
delta, budgets = 0.1, (100, 500) if full else (20,)
start = ExactNoisePredictor(law, schedule)


def learned_error(update, E, seed):
    """Relative error of the step that a student has learned after E minibatches."""
    student = Residual(start, Network(2, width=64, depth=3, seed=seed))
    config = TiltingConfig(N=1, lam=delta, S=S, E=E, lr=1e-3)
    knobs = {"seed": seed, "update": update, "sampler": exact_samples}
    learned = next(iterative_tilting(student, reward, schedule, config, **knobs)).model
    with torch.no_grad():
        return off_by((start(x_t, t) - learned(x_t.float(), t.float())).double())


def exact_samples(model, k, S, generator):
    return law.sample(S, generator).float()


# %% tags=["hide-input"]
generator, after = seeded(5), base.tilted(reward, 0.5 + delta)
t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(2000, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, law.sample(2000, generator), torch.randn(2000, 2, generator=generator, dtype=torch.float64), t)
exact_step = start(x_t, t) - ExactNoisePredictor(after, schedule)(x_t, t)
first_order = delta * schedule.sigma(t)[:, None] * law.covariance(x_t, t, schedule, reward)


def off_by(step):
    return (mean_square(step - exact_step) / mean_square(exact_step)) ** 0.5


def fresh(name):
    """An estimator that fits its value, if it needs one, to each new dataset."""
    if name not in ("local baseline", "value's gradient"):
        return estimators(learned_value)[name]
    return beyond.per_dataset(lambda samples, rewards: estimators(learned_value(samples, rewards))[name])


updates = {name: explicit(fresh(name)) for name in names} | {"implicit": implicit}
after_tilt = {
    (name, E): np.array([learned_error(u, E, seed) for seed in seeds]) for name, u in updates.items() for E in budgets
}

# %% tags=["hide-input"]
rows = [
    {"error of the step": name}
    | {f"{E} minibatches": f"{after_tilt[name, E].mean():.3f} ± {after_tilt[name, E].std(ddof=1):.3f}" for E in budgets}
    for name in updates
]
figures.table(rows)
gain = {E: 1 - after_tilt["Rao–Blackwell", E].mean() / after_tilt["single sample", E].mean() for E in budgets}
figures.glue(
    remainder=f"{off_by(first_order):.3f}", gain_early=f"{gain[budgets[0]]:.0%}", gain_late=f"{gain[budgets[-1]]:.0%}"
)
if full:
    late = {name: after_tilt[name, budgets[-1]] for name in updates}
    single = ("single sample", "centred", "local baseline", "implicit")
    for name in datasets:
        assert late[name].max() < 0.8 * min(late[other].min() for other in single)
    assert late["centred"].mean() < late["single sample"].mean()
    assert gain[budgets[0]] < gain[budgets[-1]]

# %% [markdown]
# Relative error of the learned step, mean ± standard deviation over three seeds. The first-order step itself, without noise, is off by
# {glue:text}`remainder`. The local baseline and the value are learned from the same 1,000 samples.
#
# Rao–Blackwell's error is {glue:text}`gain_early` lower than the paper's after 100 minibatches, and {glue:text}`gain_late` lower after
# 500. A hundred minibatches leave any student unfinished; with more work the
# noise is what is left.
#
# **Which one?** In few dimensions, Rao–Blackwell: no fit, no knob, no teacher, for $M \times S$ distances. In more than a handful, the
# value's gradient: its error grows slowly with $d$, and it is good near $t = 0$, where Rao–Blackwell is blind. It costs a fit per tilt,
# and where the samples do not reach, it extrapolates. If you want neither, centre the reward. That costs nothing, lowers the noise,
# and removes the one thing that should not matter, the zero of the reward.
#
# (self-correction)=
# ## Weighing a drifted model back
#
# After many tilts the model has drifted: mode weights wander, variances shrink. The noise of the sampler allows for a correction
# without training. A step of Algorithm 1 with $\eta > 0$ has a Gaussian density, which we know under the base and under the model. So a
# path has a known density under both, and
#
# $$ \log w = \frac kN\,\lambda\, r(x_0) + \sum_{\text{steps}} \log\frac{p_{\mathrm{base}}(x_s \mid x_t)}{p_\theta(x_s \mid x_t)} $$ (eq-path-weight)
#
# weighs the model's path back to a path of the base's sampler, and tilts it. The last step has no noise, so it has to be the base's for
# both, and gives the $x_0$ that is rewarded. A step differs in its mean only, by $u$ standard deviations, and was made with a draw $z$:
# its term is $-u^\top z - \frac12\|u\|^2$. This costs one evaluation of the base for each of the model
# ({py:func}`~itlib.sampling.path_log_weights`).
#
# We drift a model on purpose: its modes are where the paper's target has them, but with weights 0.65 and 0.35 instead of ½, and with a
# variance of 0.42 instead of 0.5.

# %%
paper = parse_reward("paper")
target = base.tilted(paper)


def mixture(left, variance):
    weights = torch.tensor([left, 1 - left])
    covariances = variance * torch.eye(2).expand(2, 2, 2)
    return GaussianMixture(weights, target.means, covariances)


def weighed(model, J, seed, base=base, n=2000 if full else 500, eta=1.0):
    """Left mode, mean and variance of x_2: without and with weights; and ESS / n."""
    both = ExactNoisePredictor(model, schedule), ExactNoisePredictor(base, schedule)
    how = {"steps": J, "eta": eta, "generator": seeded(seed)}
    x, log_w = path_log_weights(*both, schedule, n, **how)
    log_w = log_w + paper(x)
    x, rows = x.double(), []
    for w in (torch.ones_like(x[:, 0]) / n, torch.softmax(log_w.double(), 0)):
        mean = float(w @ x[:, 1])
        left, variance = w @ (x[:, 0] < 0).double(), w @ (x[:, 1] - mean) ** 2
        rows.append([float(left), mean, float(variance)])
    return np.array(rows), effective_sample_size(log_w) / n


# %% [markdown]
# What should come out is the tilt of what the base's *sampler* draws. In the second coordinate we know it: with the exact denoiser of a
# Gaussian each step is linear, so the variance $v_J$ after $J$ steps follows from a recursion, and tilting gives the mean $4 v_J$. By symmetry each
# mode has weight ½.


# %%
def chain_variance(J, v=0.5):
    """Variance of x_2 that Algorithm 1 returns with the exact denoiser of the base."""
    grid, variance = time_grid(schedule, J), 1.0
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        (alpha, sigma), (a, b, std) = at(t), transition(schedule, s, t, 1.0)
        shrinks = a + b * sigma / (alpha**2 * v + sigma**2)
        variance = shrinks**2 * variance + std**2
    return variance


# %% tags=["hide-input"]
Js, repeats = (25, 50, 100, 200, 400) if full else (25, 50), range(5 if full else 2)
drifted = {J: [weighed(mixture(0.65, 0.42), J, seed) for seed in repeats] for J in Js}
steady = {J: [weighed(target, J, seed) for seed in repeats] for J in Js}
moments = {J: np.array([rows for rows, _ in found]) for J, found in drifted.items()}  # (repeats, 2, 3)
ess = {name: np.array([[e for _, e in found[J]] for J in Js]) for name, found in (("drifted", drifted), ("exact", steady))}
goal = {J: np.array([0.5, 4 * chain_variance(J), chain_variance(J)]) for J in Js}

# %% tags=["hide-input"]
panels = ("left mode's weight", 0.5), ("mean of $x_2$", 2.0), ("variance of $x_2$", 0.5)
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 4, figsize=(7.2, 3.1), sharex=True)
    for i, (ax, (title, exact)) in enumerate(zip(axes, panels, strict=False)):
        for j, (label, color, marker) in enumerate((("drifted model", "learned", "o"), ("weighed", "base", "s"))):
            each = np.array([moments[J][:, j, i] for J in Js])
            spread = each.std(1, ddof=1) / len(repeats) ** 0.5
            ax.errorbar(Js, each.mean(1), 2 * spread, color=figures.COLORS[color], marker=marker, markersize=4, label=label)
        chain = {"color": figures.INK, "linewidth": 0.9, "linestyle": ":", "label": "tilt of the base's sampler"}
        ax.plot(Js, [goal[J][i] for J in Js], **chain)
        ax.axhline(exact, color=figures.COLORS["target"], linewidth=1, linestyle="--", label="exact target")
        ax.set_title(title, fontsize=10)
    for name, color, marker, style in (("drifted", "learned", "o", "-"), ("exact", "target", "^", "--")):
        share, color = ess[name].mean(1), figures.COLORS[color]
        axes[3].plot(Js, share, color=color, marker=marker, markersize=4, linestyle=style)
        axes[3].text(Js[-1], share[-1] - 0.04, name, ha="right", va="top", fontsize=9, color=color)
    axes[3].set(ylim=(0, 1.03))
    axes[3].set_title("effective share", fontsize=10)
    for ax in axes:
        ax.set(xscale="log", xlabel="steps $J$")
        ax.set_xticks(Js[::2], [f"{J}" for J in Js[::2]])
        ax.minorticks_off()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9, columnspacing=1.2)
alt = "Four panels against the number of steps: the weighed samples' mode weight, mean and variance lie on the dotted lines of the tilt "
figures.show(
    fig,
    "weighed",
    alt + "of the base's sampler, which near the exact target as steps grow. The effective share rises with the steps.",
)

# %% [markdown]
# ```{glue:figure} weighed
# :name: fig-estimators-weighed
#
# A drifted model before and after weighing its paths by {eq}`eq-path-weight`; bars: two standard errors. The weights find the tilt of
# the base's sampler (dotted) for any number of steps, and the exact target (dashed) only as the steps grow. Right: effective sample
# size over $n$, for the drifted model, and for one that is the exact target.
# ```

# %% tags=["hide-input"]
J = 200 if full else 50
kinds = {"drifted": moments[J][:, 0].mean(0), "weighed": moments[J][:, 1].mean(0)}
kinds |= {"tilt of the sampler": goal[J], "exact target": (0.5, 2.0, 0.5)}
heads = ("left mode", "mean of $x_2$", "variance")
figures.table([{"": name} | dict(zip(heads, values, strict=True)) for name, values in kinds.items()], floatfmt=".3f")
errors = moments[J][:, 1].std(0, ddof=1) / len(repeats) ** 0.5
share = {name: each[Js.index(J)].mean() for name, each in ess.items()}
figures.glue(
    J=J,
    errors=", ".join(f"{e:.3f}" for e in errors),
    share_drifted=f"{share['drifted']:.2f}",
    share_exact=f"{share['exact']:.2f}",
)
if full:
    for J in Js:
        found = moments[J][:, 1]
        # Five repetitions: 6 standard errors of a t distribution with four degrees of freedom, 15 comparisons.
        assert (np.abs(found.mean(0) - goal[J]) < 6 * found.std(0, ddof=1) / len(repeats) ** 0.5).all(), J
    assert (np.diff(ess["drifted"].mean(1)) > 0).all()
    assert abs(kinds["drifted"][0] - 0.65) < 0.02

# %% [markdown]
# $J$ = {glue:text}`J`, five repetitions; standard errors of the second row: {glue:text}`errors`. Effective share:
# {glue:text}`share_drifted`, and {glue:text}`share_exact` for the model that is the exact target.
#
# **What it mends**: all that the model got wrong and the base gets right, mode weights included, which no local loss can see. **What it
# measures**: the effective share says how far the model is from the tilt of the base, without knowing either density. **What it cannot mend**: the base. Take one
# with variance 0.45 instead of 0.5, and a model that *is* the exact target:

# %%
biased = GaussianMixture(base.weights, base.means, 0.45 * torch.eye(2).expand(2, 2, 2))
J = 200 if full else 50
found = np.array([weighed(target, J, seed, base=biased)[0][1] for seed in repeats])
mean, variance = found[:, 1].mean(), found[:, 2].mean()
error_of_mean = found[:, 1].std(ddof=1) / len(found) ** 0.5
assert not full or abs(mean - 4 * chain_variance(J, v=0.45)) < 6 * error_of_mean
figures.glue(biased_mean=f"{mean:.3f} ± {error_of_mean:.3f}")
figures.glue(biased_variance=f"{variance:.3f}")

# %% [markdown]
# Weighed, it has the mean {glue:text}`biased_mean` instead of 2 and the variance {glue:text}`biased_variance`. The weights have made a
# good model worse: they trust the base. So use such weights if the base is better than the model, and its sampler accurate
# ({doc}`b_samplers`).
#
# ## Try this
#
# - *Implement.* Run to the end on one dataset, the single-sample regression becomes Rao–Blackwell *with* the teacher:
#   $\sum_i w_i r_i\,(\varepsilon_{\mathrm{old}} - z_i)$. Compare it with {eq}`eq-rao-blackwell` at $t = 0.1$. (Hint: $z_i$ is the noise
#   that would have led from $X_0^i$ to $x_t$.)

# %% tags=["hide-cell"]
D, (alpha, sigma), time = law.sample(S, seeded(7)), at(0.1), torch.tensor(0.1, dtype=torch.float64)
own = D[:300]
z = torch.randn(300, 2, generator=seeded(8), dtype=torch.float64)
x = alpha * own + sigma * z
exact = sigma * law.covariance(x, time, schedule, reward)
z_i = (x.unsqueeze(1) - alpha * D) / sigma
wr = torch.softmax(-0.5 * z_i.square().sum(-1), 1) * reward(D)
eps_old = ExactNoisePredictor(law, schedule)(x, time)
with_teacher = wr.sum(1, keepdim=True) * eps_old - torch.einsum("ns,nsd->nd", wr, z_i)
batch = TiltBatch(1, own, reward(own), time.expand(300), z, x, eps_old, reward(D), D)
without = beyond.rao_blackwell(schedule)(batch)
relative = [(mean_square(v - exact) / mean_square(exact)) ** 0.5 for v in (with_teacher, without)]
assert relative[0] > 5 * relative[1]
print(
    f"Relative error {relative[0]:.1f} with the teacher, {relative[1]:.2f} without. They differ by the value of the reward,"
)
print("times the distance between the teacher and the score of the samples themselves. That distance is the memorising.")

# %% [markdown]
# - *Predict, then run.* Sample the drifted model with less noise, `eta=0.5`, and then the exact target. What happens to the effective
#   share?

# %% tags=["hide-cell"]
for name, model in (("Drifted", mixture(0.65, 0.42)), ("The exact target", target)):
    shares = {eta: np.mean([weighed(model, J, seed, eta=eta)[1] for seed in repeats]) for eta in (1.0, 0.7, 0.5)}
    print(f"{name}: " + "; ".join(f"η = {eta}: {share:.2f}" for eta, share in shares.items()) + ".")
    assert shares[1.0] > shares[0.7] > shares[0.5]
print("It falls for both. With less noise the end of a chain remembers its start, whose law no denoiser moves.")
