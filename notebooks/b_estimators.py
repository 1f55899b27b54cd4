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
# Algorithm 2 learns the covariance $C_{k-1}(x_t, t)$ {eq}`eq-3-9` from single samples that are mostly noise ({doc}`s3_2_algorithm`). The same
# values of the reward can be used in better ways.
#
# **You will see** what the noise of one sample is made of, and how much of it a baseline can take away; two estimators that have none of it, because they look at all samples
# at once; bias and variance of each against the exact covariance, over time, number of samples and dimension; what a network learns from each; and
# how the known noise of the sampler lets a drifted model be weighed back.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points, datasets and steps

# %% tags=["remove-cell"]
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from itlib import figures
from itlib.baselines.monte_carlo import effective_sample_size
from itlib.beyond.estimators import centred, fit_value, local_baseline, per_dataset, rao_blackwell, value_gradient
from itlib.beyond.implicit import implicit
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.network import Network, Residual
from itlib.rewards import NAMED_REWARDS, QuadraticReward, parse_reward
from itlib.sampling import path_log_weights, time_grid, transition
from itlib.schedules import Cosine, add_noise
from itlib.tilting import TiltBatch, TiltingConfig, explicit, iterative_tilting, single_sample

torch.set_num_threads(1)
full = profile == "full"
schedule = Cosine()


def at(t):
    time = torch.tensor(t, dtype=torch.float64)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## What the noise is made of
#
# In the denoiser's units one sample gives $\sigma_t\widehat C = r\,\zeta$, with $\zeta = \varepsilon_{\mathrm{old}} - z$, the teacher's error about the noise. Take anything off the reward
# that depends on $(x_t, t)$ only, a *baseline* $v$. With $\bar r = \mathbb E[r \mid x_t]$ and $\bar\zeta = \mathbb E[\zeta \mid x_t]$,
#
# $$\mathbb E\big[(r - v)\,\zeta \mid x_t\big] = \sigma_t C + (\bar r - v)\,\bar\zeta . $$ (eq-baseline-mean)
#
# If the teacher is the score of the law of its samples, $\bar\zeta = 0$, and every baseline has the right mean. So let us choose it for its variance. Suppose that given $x_t$ the clean sample is Gaussian,
# $X_0 = \mu + \varsigma\xi$ with a standard normal $\xi$, and that the reward is linear with slope $b$. Then $\zeta = (\alpha_t/\sigma_t)\,\varsigma\,\xi$ and
# $r - v = (\bar r - v) + \varsigma\, b^\top\xi$. The mean of the product is $\sigma_t C = (\alpha_t/\sigma_t)\,\varsigma^2 b$, and with $\mathbb E[(b^\top\xi)^2\|\xi\|^2] = (d+2)\|b\|^2$ its
# variance, in units of what it estimates, is
#
# $$ \frac{\mathrm{tr}\,\mathrm{Var}\big((r-v)\,\zeta \mid x_t\big)}{\|\sigma_t C\|^2} = (d + 1) + d\;\frac{(\bar r - v)^2}{\mathrm{Var}(r \mid x_t)} . $$ (eq-relative-noise)
#
# Three things follow.
#
# - The paper's choice, $v = 0$, pays for the *value* of the reward. **Centring**, $v = \mathbb E[r]$, pays for its spread over $x_t$ only. A **local baseline**, $v = \bar r(x_t, t)$, pays nothing.
# - No baseline gets below $d + 1$: one draw has at least $d+1$ times the square of the signal as noise, and more in higher dimension.
# - With $v = \bar r$ the bias in {eq}`eq-baseline-mean` vanishes for *any* teacher.
#
# ## Without the noise
#
# The $d+1$ is there because each target knows one $X_0$ and one $z$. Two estimators use all $S$ samples of $D_k$ for every target.
#
# **Rao–Blackwell.** Take the mean over which of the $S$ samples $x_t$ came from. It needs no model, only the Gaussian kernel:
#
# $$ \sigma_t C \approx \frac{\alpha_t}{\sigma_t}\sum_{i=1}^S w_i\,\Big(r_i - \sum_j w_j r_j\Big)\, X_0^i, \qquad w_i \propto q_{t|0}(x_t \mid X_0^i). $$ (eq-rao-blackwell)
#
# **The value's gradient.** The covariance is a gradient,
#
# $$ C(x_t, t) = \nabla_{x_t}\, \mathbb E[r(X_0) \mid x_t], $$ (eq-value-gradient)
#
# since $\nabla_{x_t}$ of the posterior {eq}`eq-3-3` is the posterior times $g - \mathbb E[g \mid x_t]$. So fit a small network $v_\phi(x_t, t)$ to the rewards by least squares, and differentiate *that*. The reward itself is only evaluated.
#
# All are functions of one batch, and interchangeable in {py:func}`~itlib.tilting.iterative_tilting` ({py:mod}`itlib.beyond.estimators`):


# %%
def estimators(value):
    """All of them, from a guess of E[r(X_0) | x_t] as a function of points and times."""
    return {
        "single sample": single_sample,
        "centred": centred(),
        "local baseline": local_baseline(value),
        "Rao–Blackwell": rao_blackwell(schedule),
        "value's gradient": value_gradient(value, schedule),
    }


def learned_value(samples, rewards, seed=0):
    return fit_value(samples, rewards, schedule, steps=600 if full else 20, seed=seed)


names = list(estimators(learned_value))

# %% [markdown]
# First {eq}`eq-relative-noise`, checked: one Gaussian, one point, many draws from the exact posterior.

# %% tags=["hide-input"]
t, n, rows = 0.4, 200_000 if full else 20_000, []
(alpha, sigma), time = at(t), torch.tensor(t, dtype=torch.float64)
for d in (1, 2, 10):
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
        square = (centred(v)(batch) - exact).square().sum(-1) / exact.square().sum()
        formula = d + 1 + d * (r_bar - v) ** 2 / (width * d)
        assert abs(float(square.mean()) - formula) < 5 * float(square.std()) / n**0.5
        row[name] = f"{float(square.mean()):.2f} ({formula:.2f})"
    rows.append(row)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown(f"Relative variance of one draw, from {n:,} draws (from the formula), $t = {t}$."))

# %% [markdown]
# ## Bias and variance
#
# Now a harder case: the tilt of the *one-mode* task that starts half way, at strength $s = \frac12$. Samples and teacher are exact, $S = 1000$. Fix a point $x_t \sim p_t$. What is random, given $x_t$, is the $X_0$ that it was
# made from, and for the last two estimators the rest of the dataset as well. The first three have a closed-form mean and variance (a quadrature that is exact for polynomials, as in
# {doc}`s3_2_algorithm`; the baseline is the exact $\bar r$). For the others we draw datasets.

# %%
base, reward, S = paper_mixture(), parse_reward("one-mode"), 1000
law = base.tilted(reward, 0.5)
every_t = np.linspace(0.02, 0.98, 13 if full else 5)
n, datasets = 60 if full else 20, {"Rao–Blackwell": 20 if full else 4, "value's gradient": 6 if full else 2}

# %% tags=["hide-input"]
nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(4))
nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / (2 * np.pi)


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


def mean_square(v):
    return float(v.square().sum(-1).mean())


def split(estimates, exact):
    """Mean over points of bias^2, without its own noise, and of the variance, from independent estimates (R, n, d)."""
    variance = float(estimates.var(0).sum(-1).mean())
    return max(0.0, mean_square(estimates.mean(0) - exact) - variance / len(estimates)), variance


def over_datasets(name, t):
    """Estimates at fixed points from independent datasets, each with the sample that the point was made from: (R, n, 2)."""
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
            rows.append(rao_blackwell(schedule)(batch))
        found.append(torch.cat(rows))
    return split(torch.stack(found), exact)


fits = []
for seed in range(datasets["value's gradient"]):
    D = law.sample(S, seeded(100 + seed)).float()
    fits.append(estimators(learned_value(D, reward(D), seed)))

pointwise = {
    "single sample": single_sample,
    "centred": centred(law.expected_reward(reward)),
    "local baseline": local_baseline(lambda x, t: law.posterior_reward(x, t, schedule, reward)),
}
curves = {name: [] for name in names}  # (bias^2, variance) at each time
signal = np.array([mean_square(sampled_from(law, float(t))[1]) for t in every_t])
for t in every_t:
    for name, estimator in pointwise.items():
        mean, variance, exact = one_draw(estimator, law, float(t))
        assert mean_square(mean - exact) < 1e-12  # unbiased: rounding only
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
        ax.plot(every_t, variance, color=color, marker=marker, markersize=4, label="variance")
        if name in datasets:
            shown = np.where(bias > 1e-7, bias, np.nan)
            ax.plot(every_t, shown, color=color, linestyle=":", marker=marker, markersize=4, markerfacecolor="none")
        ax.plot(every_t, signal, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set_title(name)
    for name, (color, marker) in looks.items():
        axes[1, 2].plot(every_t, total[name] / signal, color=color, marker=marker, markersize=4)
    axes[1, 2].axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[1, 2].set_title("all: error / signal")
    axes[0, 0].set(yscale="log", ylim=(1e-4, 1e3))
    for ax in axes[1]:
        ax.set_xlabel("$t$")
    for ax in axes[:, 0]:
        ax.set_ylabel("mean square")
    handles = [
        plt.Line2D([], [], color=figures.INK, linewidth=1.5),
        plt.Line2D([], [], color=figures.INK, linewidth=1.5, linestyle=":"),
        plt.Line2D([], [], color=figures.INK, linewidth=0.8, linestyle="--"),
    ]
    fig.legend(handles, ["variance", "bias squared", "signal"], loc="outside upper center", ncols=3)
figures.show(
    fig,
    "bias-variance",
    "Six panels of mean squares against t. The variance of the three single-sample estimators lies above the signal at all times, lowest for the local "
    "baseline; variance and bias of Rao-Blackwell and of the value's gradient lie far below it, except Rao-Blackwell near t = 0.",
)

# %% [markdown]
# ```{glue:figure} bias-variance
# :name: fig-estimators-bias-variance
#
# Bias squared and variance of one target, given $x_t$, averaged over $x_t \sim p_t$; dashed: the signal $\mathbb E\|\sigma_t C\|^2$. The first three have no bias. Last panel: total error in units of the signal. Below the
# dashed line a single target says more than no target at all.
# ```

# %% tags=["hide-input"]
rows = []
for name in names:
    ratio = total[name] / signal
    row = {"estimator": name}
    for t in (0.02, 0.2, 0.5, 0.8):
        i = int(np.abs(every_t - t).argmin())
        row[f"$t = {every_t[i]:.2f}$"] = f"{ratio[i]:,.2g}" if ratio[i] < 100 else f"{ratio[i]:,.0f}"
    rows.append(row)
display(Markdown("Mean square error of one target, in units of the signal:"))
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
assert (total["local baseline"] < total["centred"]).all()
assert (total["centred"] < total["single sample"]).all()
assert (total["local baseline"] > signal).all()
if full:
    late = every_t > 0.1
    assert (total["Rao–Blackwell"] < 0.25 * total["local baseline"]).all()
    assert (total["value's gradient"] < 0.3 * signal)[late].all()
    assert curves["Rao–Blackwell"][0, 0] > 10 * curves["value's gradient"][0, 0]

# %% [markdown]
# A reward has no natural zero: with a constant added, every tilt is the same. The noise of a single sample is not. Add one below, and see who minds.

# %% tags=["remove-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), sharey=True)
    for ax, c in zip(axes, (0.0, 10.0), strict=True):
        r = QuadraticReward(reward.b, c=c)
        for i, (name, estimator) in enumerate(pointwise.items()):
            v = {
                "single sample": estimator,
                "centred": centred(law.expected_reward(r)),
                "local baseline": local_baseline(lambda x, t, r=r: law.posterior_reward(x, t, schedule, r)),
            }[name]
            noise_of = np.array([float(one_draw(v, law, float(t), r=r)[1].mean()) for t in every_t])
            ax.plot(every_t, noise_of / signal, color=figures.SERIES[i], marker=figures.MARKERS[i], markersize=4, label=name)
        ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set(yscale="log", xlabel="$t$", title=f"reward plus {c:g}")
    axes[0].set_ylabel("variance / signal")
    axes[0].legend(fontsize=9)
figures.show(
    fig,
    "zero-of-the-reward",
    "Relative variance against t of single sample, centred and local baseline, for the reward and for the reward plus ten: only the single sample's curve rises.",
)
model = {
    "mixture": figures.as_model(base),
    "rewards": {name: figures.as_model(parse_reward(name)) for name in NAMED_REWARDS},
}
figures.explorer("estimators", model, "zero-of-the-reward")

# %% [markdown]
# ```{glue:figure} zero-of-the-reward
# :name: fig-estimators-zero
#
# Variance of one target in units of the signal; the constant changes no tilt. On the page, choose the reward, how far the tilt has come, the constant and the number of samples; the script computes the closed forms at eighty
# noised samples for each $t$, and Rao–Blackwell from one dataset.
# ```
#
# A baseline lowers the noise as {eq}`eq-relative-noise` says, and leaves it above the signal. The two others are below the signal at nearly all times. This comparison is not the whole story: a student *averages* the noise of single samples over thousands of draws.
# The error of Rao–Blackwell and of the value's gradient is common to all draws of a tilt, since it comes from the dataset, and no averaging removes it. We come to the student below.
#
# ## More samples, more dimensions
#
# **Rao–Blackwell memorises.** Near $t = 0$ the kernel is narrow, and all the weight falls on the nearest sample, usually the one that $x_t$ was made from. A covariance under one sample is zero. So the estimate vanishes: all bias. When does this happen? $X_t$ tells
# $I(X_0; X_t)$ nats about $X_0$, and $\log S$ nats are enough to tell $S$ samples apart. For a Gaussian with variance $\varrho^2$ in each coordinate the collapse is to be expected where
#
# $$ I(X_0; X_t) = \frac d2\,\log\Big(1 + \frac{\alpha_t^2\,\varrho^2}{\sigma_t^2}\Big) \;>\; \log S . $$ (eq-memorised)
#
# This is where dimension hurts: to hold the collapse at the same $t$, $S$ has to grow exponentially with $d$. We take the same mixture with $d - 2$ further coordinates that the reward does not see, turned by a random rotation so that no axis is special. The tilt is the same, and
# so is its KL divergence.


# %% tags=["hide-input"]
def in_dimension(d):
    """The mixture half way and the reward, with d - 2 more coordinates of the same variance, in a random basis."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=seeded(d), dtype=torch.float64))[0]
    means, b = torch.zeros(2, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    means[:, :2], b[:2] = base.means, reward.b
    start, r = GaussianMixture(base.weights, means @ Q, 0.5 * torch.eye(d).expand(2, d, d)), QuadraticReward(b @ Q)
    return start.tilted(r, 0.5), r


def relative_errors(d, S, seed, M=1500 if full else 300):
    """Square errors in units of the signal's mean square, (M,), at noised samples of one dataset, as the loss sees them; and the times."""
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
    squares = {
        name: (estimate(batch).double() - exact).square().sum(-1) / size
        for name, estimate in estimators(learned_value(batch.samples, batch.rewards, seed)).items()
    }
    return squares, t, exact.square().sum(-1) / size


dimensions, sizes, seeds = (2, 10, 30), (100, 1000, 10_000), range(3 if full else 2)
if not full:
    dimensions, sizes = (2, 10), (100, 1000)
for d in dimensions:  # the tilt is the same
    start, r = in_dimension(d)
    assert abs(start.log_normaliser(r, 0.1) - law.log_normaliser(reward, 0.1)) < 1e-9
runs = {(d, S): [relative_errors(d, S, seed) for seed in seeds] for d in dimensions for S in sizes if d == 2 or S == 1000}

# %% tags=["hide-input"]


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


edges = np.linspace(0, 1, 16 if full else 6)
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.5))
    for ax, keys, values in (
        (axes[0], [(2, S) for S in sizes], sizes),
        (axes[1], [(d, 1000) for d in dimensions], dimensions),
    ):
        for name, (color, marker) in looks.items():
            each = np.array([error(key, name) for key in keys])
            ax.plot(values, each.mean(1), color=color, marker=marker, markersize=4, label=name)
            ax.fill_between(values, each.min(1), each.max(1), color=color, alpha=0.2, linewidth=0)
        ax.set(xscale="log", yscale="log", ylim=(0.02, 60))
        ax.set_xticks(values, [f"{v:,}" for v in values])
        ax.minorticks_off()
        ax.axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    for i, d in enumerate(dimensions):
        curve, middle = against_t((d, 1000), "Rao–Blackwell", edges), 0.5 * (edges[1:] + edges[:-1])
        axes[2].plot(middle, curve, color=figures.SERIES[i], marker=figures.MARKERS[i], markersize=4)
        top = curve.argmax()
        axes[2].text(middle[top], curve[top] + 0.05, f"$d = {d}$", ha="right" if i else "left")
        axes[2].axvline(collapse(d, 1000), color=figures.SERIES[i], linewidth=0.8, linestyle=":")
    axes[2].axhline(1, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[0].set(xlabel="samples $S$", ylabel="relative error", title="$d = 2$")
    axes[1].set(xlabel="dimension $d$", title="$S$ = 1,000")
    axes[2].set(xlabel="$t$", title="Rao–Blackwell", ylim=(0, 1.7))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
figures.show(
    fig,
    "dimension",
    "Relative error against S, against d, and of Rao-Blackwell against t. The two estimators over all samples improve with S; the others do not. In 30 dimensions Rao-Blackwell is as "
    "wrong as no estimate, from t = 0 up to the predicted time of collapse, and worse around it; the value's gradient stays below one.",
)

# %% [markdown]
# ```{glue:figure} dimension
# :name: fig-estimators-dimension
#
# Root mean square error of a target over all $t$, in units of the signal, at noised samples of the dataset; mean and range over datasets. Right: Rao–Blackwell at 1,000 samples; dotted: the time where {eq}`eq-memorised` holds with
# equality. To its left the estimate is lost: 1 is the error of no estimate, and around the collapse a few samples are worse than none.
# ```

# %% tags=["hide-input"]
rows = []
for name in names:
    rows.append({"estimator": name} | {f"$d = {d}$": f"{error((d, 1000), name).mean():.2f}" for d in dimensions})
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
start, r = in_dimension(2)
display(
    Markdown(
        f"Relative error at $S$ = 1,000, mean over {len(seeds)} datasets. Base to target: {base.tilted(reward).expected_reward(reward) - base.log_normaliser(reward):.2f} nats in every dimension."
    )
)
if full:
    best = {d: min(names, key=lambda name: error((d, 1000), name).mean()) for d in dimensions}
    assert best[2] == "Rao–Blackwell"
    assert best[10] == best[30] == "value's gradient"
    assert error((30, 1000), "Rao–Blackwell").mean() > 0.7
    assert error((2, 10_000), "Rao–Blackwell").mean() < error((2, 100), "Rao–Blackwell").mean() / 5

# %% [markdown]
# ## When the teacher is off
#
# In the algorithm the teacher is never quite the score of its samples. Take samples that are 10 % too narrow, as a sampler with finitely many steps makes them, and a teacher that does not know. By {eq}`eq-baseline-mean` the estimate is then biased by $(\bar r - v)\,\bar\zeta$: for the paper's
# choice it depends on the zero of the reward, which means nothing. Centring removes that dependence, and the *mean* of the factor, not its spread. A local baseline removes the factor. The last two never ask the teacher.

# %% tags=["hide-input"]
narrow = GaussianMixture(law.weights, law.means, 0.9 * law.covariances)
times = [float(t) for t in every_t[1:-1]]


def bias(make, c):
    """Relative bias over points and times, for the reward plus c."""
    r, squares, sizes = QuadraticReward(reward.b, c=c), 0.0, 0.0
    for t in times:
        mean, _, exact = one_draw(make(r), narrow, t, teacher=law, r=r)
        squares, sizes = squares + mean_square(mean - exact), sizes + mean_square(exact)
    return (squares / sizes) ** 0.5


makes = {
    "single sample": lambda r: single_sample,
    "centred": lambda r: centred(narrow.expected_reward(r)),
    "local baseline": lambda r: local_baseline(lambda x, t: narrow.posterior_reward(x, t, schedule, r)),
}
off = {name: [bias(make, c) for c in (0.0, 4.0, -4.0)] for name, make in makes.items()}
assert np.ptp(off["centred"]) < 1e-6 < 0.01 < np.ptp(off["single sample"])
assert max(off["local baseline"]) < 1e-6
assert not full or off["centred"][0] < 0.5 * off["single sample"][0]
rows = [
    {"bias": name} | {f"${c}$": f"{v:.1%}" for c, v in zip(("r", "r + 4", "r - 4"), values, strict=True)}
    for name, values in off.items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown("Bias of the mean, relative to $\\sigma_t C$, root mean square over points and times."))

# %% [markdown]
# ## What a student learns
#
# A student averages over draws, so what counts is what it has learned when the tilt is over. Here is one tilt of $\delta = 0.1$ from $s = \frac12$, by the library's Algorithm 2 with an exact base and exact samples; minibatches of 64, a small network. Implicit Tilt Matching
# ({doc}`rivals_methods`) joins in. It is no estimator of the covariance: it regresses on $z + e^{-u}(\varepsilon_{\mathrm{old}} - z)$ with weight $e^u$, $u = \delta(r - c)$, which to first order in $\delta$ is the centred target. All are scored against the exact finite step.

# %%
delta, budgets = 0.1, (100, 500) if full else (20,)


def learned_error(update, E, seed, lr=1e-3):
    """Relative error of the step that a student has learned after E minibatches."""
    start = ExactNoisePredictor(law, schedule)
    tilts = iterative_tilting(
        Residual(start, Network(2, width=64, depth=3, seed=seed)),
        reward,
        schedule,
        TiltingConfig(N=1, lam=delta, S=S, E=E, lr=lr),
        seed=seed,
        update=update,
        sampler=lambda _, k, S, generator: law.sample(S, generator).float(),
    )
    student = next(tilts).model
    with torch.no_grad():
        step = (start(x_t, t) - student(x_t.float(), t.float())).double()
    return float(((step - exact_step).square().sum(-1).mean() / exact_step.square().sum(-1).mean()) ** 0.5)


# %% tags=["hide-input"]
generator, after = seeded(5), base.tilted(reward, 0.5 + delta)
t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(2000, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, law.sample(2000, generator), torch.randn(2000, 2, generator=generator, dtype=torch.float64), t)
exact_step = ExactNoisePredictor(law, schedule)(x_t, t) - ExactNoisePredictor(after, schedule)(x_t, t)
first_order = delta * schedule.sigma(t)[:, None] * law.covariance(x_t, t, schedule, reward)
remainder = float(((first_order - exact_step).square().sum(-1).mean() / exact_step.square().sum(-1).mean()) ** 0.5)


def fresh(name):
    """An estimator that fits its value, if it needs one, to each new dataset."""
    if name not in ("local baseline", "value's gradient"):
        return estimators(learned_value)[name]
    return per_dataset(lambda samples, rewards: estimators(learned_value(samples, rewards))[name])


updates = {name: explicit(fresh(name)) for name in names} | {"implicit": implicit}
after_tilt = {
    (name, E): np.array([learned_error(u, E, seed) for seed in seeds]) for name, u in updates.items() for E in budgets
}
rows = [
    {"error of the step": name}
    | {f"{E} minibatches": f"{after_tilt[name, E].mean():.3f} ± {after_tilt[name, E].std(ddof=1):.3f}" for E in budgets}
    for name in updates
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        f"Relative error of the learned step, mean ± standard deviation over {len(seeds)} seeds. The first-order step itself, without noise, is off by {remainder:.3f}. The local baseline and the value are learned, from the same $S$ = {S:,} samples."
    )
)
if full:
    late = {name: after_tilt[name, budgets[-1]] for name in updates}
    for name in datasets:
        assert late[name].max() < 0.8 * min(
            late[other].min() for other in ("single sample", "centred", "local baseline", "implicit")
        )
    assert late["centred"].mean() < late["single sample"].mean()
    gain = 1 - late["Rao–Blackwell"].mean() / late["single sample"].mean()
    early = 1 - after_tilt["Rao–Blackwell", budgets[0]].mean() / after_tilt["single sample", budgets[0]].mean()
    display(
        Markdown(
            f"Rao–Blackwell's error is {early:.0%} lower than the paper's after {budgets[0]} minibatches, and {gain:.0%} lower after {budgets[1]}."
        )
    )

# %% [markdown]
# The gain is smaller than the variances suggest: a hundred minibatches leave a student unfinished whatever it is shown. With more work the estimators part, because noise is then what is left.
#
# **Which one?** In few dimensions, Rao–Blackwell: no fit, no knob, no teacher, and the price is $M \times S$ distances. In more than a handful of dimensions, the value's gradient: it is the one whose error grows slowly, and it is good near $t = 0$, where Rao–Blackwell is blind. It costs a fit per
# tilt, and is only as good as that fit: where the samples do not reach, it extrapolates. If neither is wanted, centre the reward. It costs nothing, lowers the noise, and takes out the one thing that should not matter, the zero of the reward.
#
# (self-correction)=
# ## Weighing a drifted model back
#
# Estimators make each tilt better. After many tilts the model has drifted all the same: mode weights wander, variances shrink. The noise of the sampler allows for a correction, without training. A step of Algorithm 1 with $\eta > 0$ has a Gaussian density, and we know it under the base as well as
# under the model. So a whole path has a known density under both, and
#
# $$ \log w = \frac kN\,\lambda\, r(x_0) + \sum_{\text{steps}} \log\frac{p_{\mathrm{base}}(x_s \mid x_t)}{p_\theta(x_s \mid x_t)} $$ (eq-path-weight)
#
# weighs the model's path back to a path of the base's sampler, and tilts it. The last step has no noise, so it has to be the base's for both: $r$ and $x_0$ are taken there. A step differs in its mean only, by $u$ standard deviations, and was made with a draw $z$: its term is
# $-u^\top z - \frac12\|u\|^2$. That is one evaluation of the base for each of the model ({py:func}`~itlib.sampling.path_log_weights`).
#
# We drift a model on purpose. It is the exact denoiser of a mixture with the modes where the paper's target has them, but with weights 0.65 and 0.35, and with a variance of 0.42 where 0.5 is right.

# %%
paper = parse_reward("paper")
target = base.tilted(paper)


def mixture(left, variance):
    return GaussianMixture(torch.tensor([left, 1 - left]), target.means, variance * torch.eye(2).expand(2, 2, 2))


def weighed(model, J, seed, base=base, n=2000 if full else 500, eta=1.0):
    """Left mode's weight, mean and variance of x_2 within the target's tilt: without weights, with them; and ESS / n."""
    denoisers = ExactNoisePredictor(model, schedule), ExactNoisePredictor(base, schedule)
    x, log_w = path_log_weights(*denoisers, schedule, n, steps=J, eta=eta, generator=seeded(seed))
    log_w = log_w + paper(x)
    x, rows = x.double(), []
    for w in (torch.full((n,), 1 / n, dtype=torch.float64), torch.softmax(log_w.double(), 0)):
        mean = float(w @ x[:, 1])
        rows.append([float(w @ (x[:, 0] < 0).double()), mean, float(w @ (x[:, 1] - mean) ** 2)])
    return np.array(rows), effective_sample_size(log_w) / n


# %% [markdown]
# What should come out is not the exact target, but the tilt of what the base's *sampler* draws. In the second coordinate that is known: with the exact denoiser of a Gaussian each step is linear, so its variance $v_J$ after $J$ steps follows from a recursion, and tilting gives the mean $4 v_J$. The modes
# are mirror images, for the sampler too, so each should have weight ½.


# %% tags=["hide-input"]
def chain_variance(J, v=0.5):
    """Variance of x_2 that Algorithm 1 returns with the exact denoiser of the base."""
    grid, variance = time_grid(schedule, J), 1.0
    for t, s in zip(grid[:0:-1], grid[-2::-1], strict=True):
        (alpha, sigma), (a, b, std) = at(t), transition(schedule, s, t, 1.0)
        variance = (a + b * sigma / (alpha**2 * v + sigma**2)) ** 2 * variance + std**2
    return variance


Js, repeats = (25, 50, 100, 200, 400) if full else (25, 50), range(5 if full else 2)
drifted = {J: [weighed(mixture(0.65, 0.42), J, seed) for seed in repeats] for J in Js}
steady = {J: [weighed(target, J, seed) for seed in repeats] for J in Js}
moments = {J: np.array([rows for rows, _ in found]) for J, found in drifted.items()}  # (repeats, 2, 3)
ess = {name: np.array([[e for _, e in found[J]] for J in Js]) for name, found in (("drifted", drifted), ("exact", steady))}
goal = {J: np.array([0.5, 4 * chain_variance(J), chain_variance(J)]) for J in Js}

with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 4, figsize=(7.2, 3.1), sharex=True)
    for i, (ax, title) in enumerate(zip(axes, ("left mode's weight", "mean of $x_2$", "variance of $x_2$"), strict=False)):
        for j, (label, color, marker) in enumerate((("drifted model", "learned", "o"), ("weighed", "base", "s"))):
            each = np.array([moments[J][:, j, i] for J in Js])
            spread = each.std(1, ddof=1) / len(repeats) ** 0.5
            ax.errorbar(Js, each.mean(1), 2 * spread, color=figures.COLORS[color], marker=marker, markersize=4, label=label)
        ax.plot(
            Js, [goal[J][i] for J in Js], color=figures.INK, linewidth=0.9, linestyle=":", label="tilt of the base's sampler"
        )
        ax.axhline((0.5, 2.0, 0.5)[i], color=figures.COLORS["target"], linewidth=1, linestyle="--", label="exact target")
        ax.set_title(title, fontsize=10)
    for name, color, marker, style in (("drifted", "learned", "o", "-"), ("exact", "target", "^", "--")):
        axes[3].plot(Js, ess[name].mean(1), color=figures.COLORS[color], marker=marker, markersize=4, linestyle=style)
        axes[3].text(
            Js[-1], ess[name].mean(1)[-1] - 0.04, name, ha="right", va="top", fontsize=9, color=figures.COLORS[color]
        )
    axes[3].set(ylim=(0, 1.03))
    axes[3].set_title("effective share", fontsize=10)
    for ax in axes:
        ax.set(xscale="log", xlabel="steps $J$")
        ax.set_xticks(Js[::2], [f"{J}" for J in Js[::2]])
        ax.minorticks_off()
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9, columnspacing=1.2)
figures.show(
    fig,
    "weighed",
    "Four panels against the number of steps: the weighed samples' mode weight, mean and variance lie on the dotted lines of the tilt of the base's sampler, which reach the exact "
    "target as steps grow; the drifted model's do not. The effective share rises with the number of steps.",
)

# %% [markdown]
# ```{glue:figure} weighed
# :name: fig-estimators-weighed
#
# A drifted model before and after weighing its paths by {eq}`eq-path-weight`; bars: two standard errors. The weights find the tilt of the base's sampler (dotted), whatever the number of steps, and the exact target (dashed) only as the steps
# grow. Right: effective sample size over $n$, for the drifted model, and for one that is the exact target.
# ```

# %% tags=["hide-input"]
J = 200 if full else 50
before, weighted = (moments[J][:, j].mean(0) for j in (0, 1))
errors = moments[J][:, 1].std(0, ddof=1) / len(repeats) ** 0.5
rows = [
    {"": name, "left mode": f"{v[0]:.3f}", "mean of $x_2$": f"{v[1]:.3f}", "variance": f"{v[2]:.3f}"}
    for name, v in (
        ("drifted", before),
        ("weighed", weighted),
        ("tilt of the sampler", goal[J]),
        ("exact target", (0.5, 2.0, 0.5)),
    )
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
i = Js.index(J)
display(
    Markdown(
        f"$J$ = {J}, {len(repeats)} repetitions. Standard errors of the second row: {errors[0]:.3f}, {errors[1]:.3f}, {errors[2]:.3f}. Effective share: {ess['drifted'][i].mean():.2f}; of the model that is the exact target: {ess['exact'][i].mean():.2f}."
    )
)
if full:
    for J in Js:
        found = moments[J][:, 1]
        # Five repetitions: 6 standard errors of a t distribution with four degrees of freedom, 15 comparisons.
        assert (np.abs(found.mean(0) - goal[J]) < 6 * found.std(0, ddof=1) / len(repeats) ** 0.5).all(), J
    assert (np.diff(ess["drifted"].mean(1)) > 0).all()
    assert abs(before[0] - 0.65) < 0.02
    assert goal[25][1] < 1.7

# %% [markdown]
# **What it mends**: all that the model got wrong and the base gets right, mode weights included, and those are what no local loss can see. **What it measures**: the effective share says how far the model is from the tilt of the base, without knowing either density. Even the exact target
# does not reach one: with few steps its sampler is not the tilt of the base's sampler. **What it cannot mend**: the base. If it is too narrow, so is its tilt, and the mean falls short too: here it is four times the variance.

# %%
biased = GaussianMixture(base.weights, base.means, 0.45 * torch.eye(2).expand(2, 2, 2))
found = np.array([weighed(target, 200 if full else 50, seed, base=biased)[0][1] for seed in repeats])
display(
    Markdown(
        f"A base with variance 0.45 where 0.5 is right; the model *is* the exact target. Weighed: mean of $x_2$ {found[:, 1].mean():.3f} ± {found[:, 1].std(ddof=1) / len(found) ** 0.5:.3f}, variance {found[:, 2].mean():.3f} ± {found[:, 2].std(ddof=1) / len(found) ** 0.5:.3f}. The weights have made a good model "
        "worse: they trust the base."
    )
)
shortfall = found[:, 1].mean() - 4 * chain_variance(200 if full else 50, v=0.45)
assert not full or abs(shortfall) < 6 * found[:, 1].std(ddof=1) / len(repeats) ** 0.5

# %% [markdown]
# So weights of this kind are worth having if the base is better than the model, and if its sampler is accurate. How to have an accurate one at few steps is the subject of {doc}`b_samplers`.
#
# ## Try this
#
# - {doc}`s3_2_algorithm` asks what the single-sample regression converges to if it is run to the end on one dataset. That is Rao–Blackwell *with* the teacher: $\sum_i w_i r_i\,(\varepsilon_{\mathrm{old}} - z_i)$. Compare it with {eq}`eq-rao-blackwell` at $t = 0.1$.

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
without = rao_blackwell(schedule)(TiltBatch(1, own, reward(own), time.expand(300), z, x, eps_old, reward(D), D))
relative = [(mean_square(v - exact) / mean_square(exact)) ** 0.5 for v in (with_teacher, without)]
assert relative[0] > 5 * relative[1]
display(
    Markdown(
        f"Relative error {relative[0]:.1f} with the teacher, {relative[1]:.2f} without. They differ by $\\bar r_w\\,(\\varepsilon_{{\\mathrm{{old}}}} - \\bar z_w)$: the reward's value times the distance between the teacher and the score of the *empirical* law. That distance is the memorising, and {{eq}}`eq-rao-blackwell` does not contain it."
    )
)

# %% [markdown]
# - Sample the drifted model with less noise, `eta=0.5`, and then the exact target. What happens to the effective share?

# %% tags=["hide-cell"]
J = 200 if full else 50
for name, model in (("Drifted", mixture(0.65, 0.42)), ("The exact target", target)):
    shares = {eta: np.mean([weighed(model, J, seed, eta=eta)[1] for seed in repeats]) for eta in (1.0, 0.7, 0.5)}
    display(Markdown(f"{name}: " + "; ".join(f"$\\eta = {eta}$: {share:.2f}" for eta, share in shares.items()) + "."))
    assert shares[1.0] > shares[0.7] > shares[0.5]
display(
    Markdown(
        "It falls, and so it does for a model that is the target. With less than DDPM's noise the end of a chain remembers its start, and no denoiser moves the law of that. So the tilted chains of the base are chains of no denoiser, and the exact target's are far from them; without noise they cannot be compared at all."
    )
)
