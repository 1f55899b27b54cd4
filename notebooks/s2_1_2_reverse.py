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
# # 2.1.2 Reverse process and DDIM
#
# Section 2.1.2 of the paper walks the forward process backwards. Its transitions would be exact, but they need what nobody knows, and
# conditional means take its place. This chapter looks at both: the freedom that the exact transitions leave, and the price of the means.
#
# **You will see** that the exact transition keeps every marginal, whatever its noise; Algorithm 1 line by line; how much variance one of its
# steps loses, and how much a whole chain loses, in formulas; and how this loss compounds when a model learns from its own samples.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points

# %% tags=["remove-cell"]
import math
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.integrate import quad
from scipy.stats import kstest, linregress, norm

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.network import FromX0
from itlib.rewards import parse_reward
from itlib.sampling import ddpm_std, reverse_process, sample, time_grid, transition
from itlib.schedules import Cosine, Linear

torch.set_num_threads(1)
full = profile == "full"
cosine, linear = Cosine(), Linear()
base = paper_mixture()
lopsided = base.tilted(parse_reward("unequal"))  # no symmetry in which a wrong sign could hide


def at(schedule, t):
    """alpha and sigma at one time, or at an array of them, in double precision."""
    time = torch.as_tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    return (alpha.numpy(), sigma.numpy()) if time.ndim else (float(alpha), float(sigma))


def posterior_draws(mixture, x, t, schedule):
    """One X_0 given X_t = x for each x."""
    with torch.random.fork_rng(devices=[]):  # torch.distributions takes no generator
        torch.manual_seed(1)
        return mixture.posterior(x, torch.tensor(t, dtype=torch.float64), schedule).sample()


def projected_cdf(mixture, direction):
    """Distribution function of <direction, X> for X from a mixture."""
    centre = (mixture.means @ direction).numpy()
    width = torch.einsum("d,kde,e->k", direction, mixture.covariances, direction).sqrt().numpy()
    return lambda x: norm.cdf((np.asarray(x)[:, None] - centre) / width) @ mixture.weights.numpy()


# %% [markdown]
# ## A bridge that keeps the marginals
#
# A reverse step from $t$ to $s < t$ should turn a sample of $p_t$ into one of $p_s$. The DDIM family {cite}`song2021denoising` does this in
# two stages: draw both ends of the path given $x_t$, then put a point between them,
#
# $$p_{s|t}^\eta(x_s \mid x_t) = \mathbb E\big[ q_{s|0,1}^\eta(x_s \mid X_0, X_1) \,\big|\, X_t = x_t \big], \tag{2.3}$$ (eq-2-3)
#
# $$q_{s|0,1}^\eta(x_s \mid x_0, x_1) = \mathcal N\Big(x_s;\ \alpha_s x_0 + \sqrt{\sigma_s^2-\eta_s^2}\; x_1,\ \eta_s^2 I_d\Big). \tag{2.4}$$ (eq-2-4)
#
# The second formula is the *bridge*. It takes the noise of {eq}`eq-2-1` apart: a share $\eta_s^2$ of its variance $\sigma_s^2$ is
# drawn anew, the rest is the old $X_1$. Since old and new are independent, their sum is again Gaussian with variance $\sigma_s^2$. So
#
# $$p_s(x_s) = \int p_{s|t}^\eta(x_s \mid x_t)\; p_t(x_t)\, dx_t \qquad\text{for every } 0 \le \eta_s \le \sigma_s .$$ (eq-marginalisation)
#
# What $\eta$ changes is how much of $x_t$ survives in $x_s$, a property of the *pair*. To see both, we sample the right side of
# {eq}`eq-marginalisation` step by step: $X_t$ from $p_t$, then $X_0$ from its exact law given $X_t$, then $X_1$ from {eq}`eq-2-1`, then the
# bridge. The mixture is the lopsided one of {doc}`s2_1_1_forward`.

# %%
n = 20_000 if full else 5_000
s, t = 0.3, 0.6
generator = torch.Generator().manual_seed(0)


def bridge(x_0, x_1, sigma_s, alpha_s, eta_s):
    """One draw from (2.4) for each pair of end points."""
    z = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)
    return alpha_s * x_0 + math.sqrt(sigma_s**2 - eta_s**2) * x_1 + eta_s * z


(alpha_t, sigma_t), (alpha_s, sigma_s) = at(cosine, t), at(cosine, s)
pairs = {}
for share in (0.0, 0.3, 0.7, 1.0):  # eta_s / sigma_s
    x_t = lopsided.noised(cosine, t).sample(n, generator)
    x_0 = posterior_draws(lopsided, x_t, t, cosine)
    x_1 = (x_t - alpha_t * x_0) / sigma_t
    pairs[share] = bridge(x_0, x_1, sigma_s, alpha_s, share * sigma_s), x_t

# %% tags=["hide-input"]
directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
p_s, rows, p_values, correlations = lopsided.noised(cosine, s), [], [], []
for share, (x_s, x_t) in pairs.items():
    found = [kstest((x_s @ u).numpy(), projected_cdf(p_s, u), method="asymp").pvalue for u in directions]
    p_values += found
    correlations.append(float(torch.corrcoef(torch.stack([x_s[:, 1], x_t[:, 1]]))[0, 1]))
    rows.append(
        {
            r"$\eta_s/\sigma_s$": f"{share:g}",
            "smallest of 3 p-values": f"{min(found):.2f}",
            "correlation of $x_s$ and $x_t$, second coordinate": f"{correlations[-1]:.3f}",
        }
    )
assert min(p_values) > 1e-3 / len(p_values)  # a false alarm once in a thousand seeds
assert (np.diff(correlations) < 0).all()
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# Kolmogorov–Smirnov tests of three projections find no difference: all the marginals are $p_s$. The correlation falls as $\eta_s$ grows.
#
# ## The noise of DDPM
#
# One value of $\eta_s$ is special. Run the forward process as a Markov chain, $X_t = (\alpha_t/\alpha_s)\,X_s + \text{fresh noise}$. Given
# $X_0$, the pair has covariance $(\alpha_t/\alpha_s)\,\sigma_s^2$. Under the bridge, $X_s$ and $X_t$ share only $X_1$, so their covariance is
# $\sqrt{\sigma_s^2-\eta_s^2}\;\sigma_t$. Equate the two and solve:
#
# $$\eta_s^{\text{DDPM}} = \sigma_s\sqrt{1 - \frac{\alpha_t^2\,\sigma_s^2}{\alpha_s^2\,\sigma_t^2}}
#   \;\overset{\text{VP}}{=}\; \frac{\sigma_s}{\sigma_t}\sqrt{1-\frac{\alpha_t^2}{\alpha_s^2}} .$$ (eq-ddpm-eta)
#
# The paper prints $\sigma_t\sqrt{1-\alpha_t^2/\alpha_s^2}$, with $\sigma_t$ where $\sigma_s/\sigma_t$ should be ({ref}`erratum <err-ddpm-eta>`). The
# covariance tells the two apart at once.

# %% tags=["hide-input"]
worst, printed_gap = 0.0, 0.0
for schedule in (cosine, linear):
    times = time_grid(schedule, 50)
    for s, t in pairwise(times[1:]):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = at(schedule, t), at(schedule, s)
        markov = alpha_t / alpha_s * sigma_s**2
        worst = max(worst, abs(math.sqrt(sigma_s**2 - ddpm_std(schedule, s, t) ** 2) * sigma_t - markov))
        if schedule is cosine:
            printed = sigma_t * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
            printed_gap = max(printed_gap, abs(math.sqrt(sigma_s**2 - printed**2) * sigma_t / markov - 1))
assert worst < 1e-14
assert printed_gap > 0.1
display(
    Markdown(
        f"Largest mismatch of the covariances: {worst:.0e} with {{eq}}`eq-ddpm-eta`, {printed_gap:.0%} as printed (50 steps)."
    )
)

# %% [markdown]
# The scalar `eta` of the library multiplies {eq}`eq-ddpm-eta`, as in {cite:t}`song2021denoising`: 0 is the deterministic DDIM, 1 is DDPM
# {cite}`ho2020denoising`. We call this multiplier $e$ below, and keep $\eta_s$ for the standard deviation.
#
# ## Two means for two unknowns
#
# The expectation in {eq}`eq-2-3` needs the joint law of $(X_0, X_1)$ given $X_t$. Nobody has it. What a network can learn are the means,
#
# $$\hat x_0(x_t, t) = \mathbb E[X_0 \mid X_t = x_t], \qquad \hat x_1(x_t, t) = \mathbb E[X_1 \mid X_t = x_t], \tag{2.5}$$ (eq-2-5)
#
# and one of them is enough. Given $X_t = x_t$, the mean of $\alpha_t X_0 + \sigma_t X_1$ is $x_t$ itself. So learned means, marked $\theta$, are
# tied in the same way:
#
# $$\hat x_1^\theta(x_t, t) = \frac{x_t - \alpha_t \hat x_0^\theta(x_t, t)}{\sigma_t}, \qquad
#   \hat x_0^\theta(x_t, t) = \frac{x_t - \sigma_t \hat x_1^\theta(x_t, t)}{\alpha_t}. \tag{2.6}$$ (eq-2-6)
#
# In this book a *denoiser* predicts $X_1$. For the mixture both means are integrals against the law of $X_0$ given $X_t$. Here they are added
# up on a grid, and compared with {py:class}`~itlib.gaussian_mixture.ExactNoisePredictor`, which is computed in another way, from the score.

# %%
axis = torch.linspace(-9, 9, 301, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)
log_prior = lopsided.log_prob(grid)


def means(x, t, schedule):
    """(2.5) by quadrature: X_0 on the grid, X_1 as (2.1) leaves it."""
    alpha, sigma = at(schedule, t)
    x_1 = (x - alpha * grid) / sigma
    weight = torch.softmax(log_prior - 0.5 * x_1.square().sum(-1), 0)
    return weight @ grid, weight @ x_1


# %% tags=["hide-input"]
gap = {"(2.5)": 0.0, "(2.6), left": 0.0, "(2.6), right": 0.0}
for schedule in (cosine, linear):
    denoiser = ExactNoisePredictor(lopsided, schedule)
    for t in (0.2, 0.5, 0.8):
        time, (alpha, sigma) = torch.tensor(t, dtype=torch.float64), at(schedule, t)
        for x in lopsided.noised(schedule, t).sample(4, generator):
            x0_hat, x1_hat = means(x, t, schedule)
            exact = denoiser(x[None], time)[0]
            wrapped = FromX0(lambda *_, value=x0_hat: value, schedule)(x[None], time)[0]  # (2.6), left, in itlib
            for name, difference in zip(
                gap, (exact - x1_hat, exact - wrapped, (x - sigma * exact) / alpha - x0_hat), strict=True
            ):
                gap[name] = max(gap[name], float(difference.abs().max()))
assert max(gap.values()) < 1e-11
display(Markdown("Largest differences: " + "; ".join(f"{value:.0e} for {name}" for name, value in gap.items()) + "."))

# %% [markdown]
# (algorithm-1)=
# ## Algorithm 1
#
# Put the means where the bridge wants the ends:
#
# $$p_{t_k|t_{k+1}}^{\eta,\theta}(x_{t_k} \mid x_{t_{k+1}}) := q_{t_k|0,1}^{\eta}\big(x_{t_k} \,\big|\,
#   \hat x_0^\theta(x_{t_{k+1}}, t_{k+1}),\ \hat x_1^\theta(x_{t_{k+1}}, t_{k+1})\big), \tag{2.7}$$ (eq-2-7)
#
# and at $k = 0$ the point mass at $\hat x_0^\theta(x_{t_1}, t_1)$. Repeat along a grid of times. This is the paper's Algorithm 1,
# {numref}`alg-1`, with its line numbers:
#
# ```{code-block} text
# :caption: Algorithm 1, DDIM sampling, as printed. It needs a denoiser, times $0 = t_0 < \dots < t_K = 1$ and noise levels $\eta_{t_k}$.
# :name: alg-1
# :linenos:
#
# sample x ~ N(0, I)                                    state at t[K]
# for k = K-1, ..., 1:
#     x1_hat <- denoiser(x, t[k+1])                     predict X_1
#     x0_hat <- (x - sigma[k+1] * x1_hat) / alpha[k+1]  clean sample
#     mu <- alpha[k] * x0_hat + sqrt(sigma[k]^2 - eta[k]^2) * x1_hat
#     sample z ~ N(0, I)
#     x <- mu + eta[k] * z                              state at t[k]
# end for
# x_0 <- (x - sigma[1] * denoiser(x, t[1])) / alpha[1]  last step
# return x_0
# ```
#
# | lines | here | where |
# |:--|:--|:--|
# | 1 | `x = torch.randn(n, d)` | {py:func}`~itlib.sampling.sample` |
# | 2, 8 | `for t, s in ...` over the grid | {py:func}`~itlib.sampling.time_grid`, {py:func}`~itlib.sampling.reverse_process` |
# | 3 | `denoiser(x, t)` | {py:func}`~itlib.sampling.reverse_process` |
# | 4, 5 | `a * x + b * x1_hat`, with $\hat x_0$ eliminated | {py:func}`~itlib.sampling.transition` |
# | 6, 7 | `+ std * z` | {py:func}`~itlib.sampling.reverse_process` |
# | 9 | the same `transition` at $s = 0$, where $\sigma_0 = \eta_0 = 0$ | {py:func}`~itlib.sampling.transition` |
#
# Eliminating $\hat x_0$ leaves a step with three coefficients that depend on the times only,
#
# $$x_s = \underbrace{\frac{\alpha_s}{\alpha_t}}_{a}\, x_t
#   + \underbrace{\Big(\sqrt{\sigma_s^2-\eta_s^2} - \frac{\alpha_s\sigma_t}{\alpha_t}\Big)}_{b}\, \hat x_1 + \eta_s z .$$ (eq-coefficients)
#
# Here is the listing in Python, line by line. It must agree with the library, given the same random numbers.


# %%
def algorithm_1(denoiser, schedule, times, multiplier, x, generator):
    def predict(x, t):
        return denoiser(x, torch.tensor(t, dtype=x.dtype))

    alpha, sigma = at(schedule, np.array(times))
    for k in range(len(times) - 2, 0, -1):  # line 2
        eta = multiplier * ddpm_std(schedule, times[k], times[k + 1])
        x1_hat = predict(x, times[k + 1])  # line 3
        x0_hat = (x - sigma[k + 1] * x1_hat) / alpha[k + 1]  # line 4
        # lines 5, 6 and 7
        mu = alpha[k] * x0_hat + np.sqrt(sigma[k] ** 2 - eta**2) * x1_hat
        z = torch.randn(x.shape, generator=generator, dtype=x.dtype) if eta else 0
        x = mu + eta * z
    return (x - sigma[1] * predict(x, times[1])) / alpha[1]  # line 9


# %% tags=["hide-input"]
worst = 0.0
for schedule in (cosine, linear):
    denoiser = ExactNoisePredictor(lopsided, schedule)
    for multiplier in (0.0, 0.5, 1.0):
        rng = torch.Generator().manual_seed(2)
        start = torch.randn(500, 2, generator=rng, dtype=torch.float64)  # line 1
        ours = algorithm_1(denoiser, schedule, time_grid(schedule, 20), multiplier, start, rng)
        rng = torch.Generator().manual_seed(2)
        theirs = sample(denoiser, schedule, 500, steps=20, eta=multiplier, generator=rng, dtype=torch.float64)
        worst = max(worst, float((ours - theirs).abs().max()))
assert worst < 1e-11
display(Markdown(f"Largest difference between the listing and `itlib.sampling.sample`: {worst:.0e}."))

# %% [markdown]
# One thing is not as printed: the grid ends at $t_{\max} < 1$, not at 1. With $t_K = 1$ line 4 divides by $\alpha_1 = 0$ ({doc}`errata`). It is not
# only a matter of rounding. At $t = 1$ the point is the noise, $\hat x_1(x, 1) = x$, for *any* data. So the numerator is zero too, and the
# denoiser no longer says what $\hat x_0$ is. The limit does exist, and is the mean of the data:

# %% tags=["hide-input"]
x = torch.tensor([[0.7, -1.1]], dtype=torch.float64)
denoiser = ExactNoisePredictor(lopsided, cosine)
assert torch.allclose(denoiser(x, torch.tensor(1.0, dtype=torch.float64)), x, rtol=0, atol=1e-15)
rows = []
for gap_to_1 in (1e-1, 1e-2, 1e-3, 1e-4, 0.0):
    alpha, sigma = at(cosine, 1 - gap_to_1)
    guess = denoiser(x, torch.tensor(1 - gap_to_1, dtype=torch.float64))
    x0_hat = ((x - sigma * guess) / alpha)[0] if alpha else [math.nan] * 2  # torch would say nan as well
    rows.append({"$1 - t$": f"{gap_to_1:g}", r"$\hat x_0$ by line 4": ", ".join(f"{float(v):.4f}" for v in x0_hat)})
    if gap_to_1 == 1e-4:
        assert (x0_hat - lopsided.mean).abs().max() < 10 * alpha  # the first-order term is alpha Cov(X_0) x
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown("Mean of the data: " + ", ".join(f"{float(v):.4f}" for v in lopsided.mean) + "."))

# %% [markdown]
# So there are two remedies: start just below 1, as the library does, or let the denoiser predict $\hat x_0$ there. The calculations for one
# Gaussian below take the second one, and run from exactly 1.
#
# Here is what the algorithm does with the exact denoiser of the paper's mixture. In each panel the same twelve points start.

# %% tags=["hide-input"]
K = 200 if full else 50
start = torch.randn(12, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
    for ax, multiplier in zip(axes, (0.0, 0.5, 1.0), strict=True):
        path = [(cosine.t_max, start)]
        rng = torch.Generator().manual_seed(5)
        path += list(
            reverse_process(ExactNoisePredictor(base, cosine), cosine, start, steps=K, eta=multiplier, generator=rng)
        )
        time, x = [p[0] for p in path], torch.stack([p[1][:, 0] for p in path]).numpy()
        right = x[-1] > 0
        ax.plot(time, x[:, right], color=figures.COLORS["learned"], linewidth=0.8)
        ax.plot(time, x[:, ~right], color=figures.COLORS["base"], linewidth=0.8)
        ax.plot([1.0] * 12, x[0], "o", color=figures.INK, markersize=2.5)
        for sign in (-2, 2):
            ax.plot(time, sign * at(cosine, np.array(time))[0], color=figures.INK, linewidth=0.9, linestyle="--")
        ax.set(xlim=(1.03, -0.03), xticks=(1, 0.5, 0), xlabel="$t$", title=f"$e = {multiplier:g}$")
    axes[0].set_ylabel("first coordinate of $x_t$")
figures.show(
    fig,
    "trajectories",
    "Twelve trajectories from noise to data, first coordinate: smooth lines that never cross for e = 0, slightly rough ones for "
    "one half, and rough ones that cross for e = 1. All end near plus or minus 2.",
)

# %% [markdown]
# ```{glue:figure} trajectories
# :name: fig-reverse-trajectories
#
# Algorithm 1 from the same twelve points, time running from noise (left) to data (right). Colour: the mode in which a point ends. Dashed: the noised
# modes at $\pm 2\alpha_t$. Deterministic paths keep their order, so the start decides the mode; with noise it is decided on the way.
# ```
#
# ## What one step loses
#
# {eq}`eq-marginalisation` holds for {eq}`eq-2-3`. It does *not* hold for {eq}`eq-2-7`: a mean has no spread. Take $X_t \sim p_t$, and let $x_s$ be
# the result of one step with the exact means. In terms of $X_0$ and $X_t$, the bridge's centre is
# $\alpha_s X_0 + \sqrt{\sigma_s^2-\eta_s^2}\,(X_t-\alpha_t X_0)/\sigma_t = c\,X_0 + \text{a function of } X_t$, with
#
# $$c = \alpha_s - \sqrt{\sigma_s^2-\eta_s^2}\;\frac{\alpha_t}{\sigma_t} .$$
#
# The law of total expectation says that the mean of $x_s$ is right, for any data. The law of total variance says what is missing:
#
# $$\mathrm{Cov}(X_s) - \mathrm{Cov}(x_s) = c^2\; \mathbb E\big[\mathrm{Cov}(X_0 \mid X_t)\big] .$$ (eq-lost)
#
# The right side is never negative, and $c > 0$. **Every step loses variance, for any data with some spread and any $\eta$, even with a perfect
# network.** Here is the loss of one step for the lopsided mixture, by quadrature over $x_t$.

# %% tags=["hide-input"]
rows, worst = [], 0.0
s, t = 0.4, 0.5
(alpha_t, sigma_t), (alpha_s, sigma_s) = at(cosine, t), at(cosine, s)
weight = lopsided.noised(cosine, t).log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
posterior = lopsided.posterior(grid, torch.tensor(t, dtype=torch.float64), cosine)
eye = torch.eye(2, dtype=torch.float64)


def covariance_of(values, weight):
    centred = values - weight @ values
    return torch.einsum("b,bd,be->de", weight, centred, centred)


def mixture_covariance(mixture):
    spread = mixture.means - mixture.mean
    return torch.einsum("k,kd,ke->de", mixture.weights, spread, spread) + torch.einsum(
        "k,kde->de", mixture.weights, mixture.covariances
    )


guess = ExactNoisePredictor(lopsided, cosine)(grid, torch.tensor(t, dtype=torch.float64))
for multiplier in (0.0, 0.5, 1.0):
    a, b, std = transition(cosine, s, t, multiplier)
    after = covariance_of(a * grid + b * guess, weight) + std**2 * eye  # of x_s, one step of the library
    missing = mixture_covariance(lopsided.noised(cosine, s)) - after
    c = alpha_s - math.sqrt(sigma_s**2 - std**2) * alpha_t / sigma_t
    kept = mixture_covariance(lopsided) - covariance_of(posterior.mean, weight)  # E Cov(X_0 | X_t)
    worst = max(worst, float((missing - c**2 * kept).abs().max()))
    assert (torch.linalg.eigvalsh(missing) > 0).all()
    rows.append(
        {
            "$e$": f"{multiplier:g}",
            "$c$": f"{c:.4f}",
            "missing, $x_1$": f"{float(missing[0, 0]):.5f}",
            "missing, $x_2$": f"{float(missing[1, 1]):.5f}",
        }
    )
assert worst < 1e-11
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown(f"Largest difference of the two sides of {{eq}}`eq-lost`, as matrices: {worst:.0e}."))

# %% [markdown]
# When the step is small, let $\Delta$ be the drop of the log-SNR {eq}`eq-snr` from $s$ to $t$. Expanding the root with {eq}`eq-ddpm-eta` gives
#
# $$c \approx \tfrac12\,(1+e^2)\,\alpha_s\,\Delta .$$ (eq-c)
#
# One step's loss is quadratic in its size, so a chain of $K$ steps loses something of order $1/K$. And a DDPM step loses $(1+1)^2 = 4$ times as
# much as a deterministic one.
#
# ## What the chain loses, without Monte Carlo
#
# For one Gaussian, $p_0 = \mathcal N(\mu, v)$, the means are linear: with $V_t = \alpha_t^2 v+\sigma_t^2$,
# $\hat x_0 = \mu + \alpha_t v\,(x_t-\alpha_t\mu)/V_t$ and $\hat x_1 = \sigma_t\,(x_t-\alpha_t\mu)/V_t$. So $x_t$ stays Gaussian, and
# its mean $m_t$ and its variance $w_t$ obey
#
# $$\begin{aligned}
#   m_s - \alpha_s\mu & = A\,(m_t - \alpha_t\mu), \\
#   w_s & = A^2 w_t + \eta_s^2,
#   \end{aligned}
#   \qquad A = \frac{\alpha_s\alpha_t v + \sqrt{\sigma_s^2-\eta_s^2}\;\sigma_t}{V_t} .$$ (eq-recursion)
#
# A mean that starts right stays right, for any number of steps. The variance does not. By {eq}`eq-lost` each step loses
# $c^2\,\mathrm{Var}(X_0 \mid X_t) = c^2 \sigma_t^2 v / V_t$, and every later step multiplies that loss by its $A^2$. The sum of what is left
# of these losses is exactly what the chain of $K$ steps lacks, $v - w_K$.


# %%
def chain(alpha, sigma, e, v=0.5, noise_share=None):
    """Algorithm 1 for N(mu, v), from N(0, 1); alpha and sigma give the grid.

    Returns the variance, and the loss of each step: as made, as left at the end.
    """
    alpha_s, alpha_t = alpha[:-1], alpha[1:]
    sigma_s, sigma_t = sigma[:-1], sigma[1:]
    if noise_share is None:
        ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
        eta = e * sigma_s * np.sqrt(1 - ratio**2)  # e times DDPM's
    else:
        eta = noise_share * sigma_s
    old = np.sqrt(sigma_s**2 - eta**2)
    V = alpha_t**2 * v + sigma_t**2
    A = (alpha_s * alpha_t * v + old * sigma_t) / V
    c = alpha_s - old * alpha_t / sigma_t
    made = c**2 * sigma_t**2 * v / V  # Var(X_0 | X_t) = sigma_t^2 v / V_t
    later = np.cumprod(np.append(1.0, A**2))  # effect of the later steps
    return later[-1] + later[:-1] @ eta**2, made, later[:-1] * made


def uniform(schedule, K):
    return at(schedule, np.linspace(0, 1, K + 1))


# %% tags=["hide-input"]
for schedule in (cosine, linear):
    for e in (0.0, 0.5, 1.0):
        w, made, left = chain(*uniform(schedule, 200), e)
        assert abs((0.5 - w) - left.sum()) < 1e-13  # the sum of what is left of the losses
        # The same chain from the library's coefficients, on the library's grid.
        times = time_grid(schedule, 50)
        grid_w, _, grid_left = chain(*at(schedule, np.array(times)), e)
        mean, variance = 0.0, 1.0
        for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
            alpha, sigma = at(schedule, t)
            a, b, std = transition(schedule, s, t, e)
            slope = sigma / (alpha**2 * 0.5 + sigma**2)  # of the exact denoiser
            mean, variance = a * mean + b * slope * (mean - alpha * 3.0), (a + b * slope) ** 2 * variance + std**2
        assert abs(variance - grid_w) < 1e-12
        assert abs(mean - 3.0) < 0.02  # starts at N(0, 1) rather than at alpha_t 3, and forgets it

# %% [markdown]
# The same sum gives the limit of many equal steps. Let $u_t = \sigma_t/\alpha_t$. In {eq}`eq-c` the drop is $\Delta \approx 2\,du/u$, and the product of
# the factors $A^2$ from 0 to $t$ tends to $\frac{v}{V_t}\big(\frac{v}{v+u_t^2}\big)^{e^2}$. So
#
# $$K\,(v - w_K) \;\longrightarrow\; (1+e^2)^2 \int_0^1 \Big(\frac{du_t}{dt}\Big)^{\!2} \Big(\frac{v}{v+u_t^2}\Big)^{2+e^2} dt .$$ (eq-rate)
#
# For the linear schedule $u = t/(1-t)$, and the integral can be done by hand:
#
# $$e = 0:\ \ v + \tfrac\pi4\sqrt v\,(1+v), \qquad\qquad e = 1:\ \ \tfrac{3\pi}4\sqrt v + 2v + \tfrac\pi4 v^{3/2} .$$ (eq-rate-linear)
#
# For the cosine schedule it diverges, though only just. There $u^2 \approx \kappa t$ near 0, so $(du/dt)^2 \approx \kappa/(4t)$ and the order is
# $(\log K)/K$. But $\kappa$ is small, because the cosine's offset $0.008$ is. In a plot of $\log(v-w_K)$ against $\log K$, the slope between $K$ and
# $2K$ should be $-1 + (1+e^2)^2\,\kappa\,/\,\big(4K(v-w_K)\big)$.

# %% tags=["hide-input"]
Ks = np.array([100, 200, 400, 800, 1600, 3200, 6400, 12800])
late = Ks >= 800


def rate(e, v):
    """Right side of (eq-rate) for the linear schedule, du/dt = (1 + u)^2, by quadrature over u."""
    return (1 + e**2) ** 2 * quad(lambda u: (1 + u) ** 2 * (v / (v + u * u)) ** (2 + e**2), 0, np.inf)[0]


for v in (0.1, 0.5, 2.0):
    assert abs(rate(0, v) - (v + math.pi / 4 * math.sqrt(v) * (1 + v))) < 1e-6
    assert abs(rate(1, v) - (3 * math.pi / 4 * math.sqrt(v) + 2 * v + math.pi / 4 * v**1.5)) < 1e-6

kappa = 2 * math.pi / 2 / 1.008 * math.tan(math.pi / 2 * 0.008 / 1.008)  # d(sigma^2)/dt at t = 0
deficits, rows = {}, {"linear": [], "cosine": []}
for name, schedule in (("cosine", cosine), ("linear", linear)):
    for e in (0.0, 0.5, 1.0):
        deficit = np.array([0.5 - chain(*uniform(schedule, int(K)), e)[0] for K in Ks])
        deficits[name, e] = deficit
        fit = linregress(np.log(Ks[late]), np.log(deficit[late]))
        row = {"$e$": f"{e:g}", "slope": f"{fit.slope:.4f} ± {fit.stderr:.4f}"}
        if name == "linear":
            assert abs(fit.slope + 1) < 0.005
            constant = 2 * Ks[-1] * deficit[-1] - Ks[-2] * deficit[-2]  # Richardson: the next order in 1/K cancels
            assert abs(constant / rate(e, 0.5) - 1) < 5e-4
            row |= {"$K(v-w_K)$": f"{Ks[-1] * deficit[-1]:.4f}", "its limit": f"{rate(e, 0.5):.4f}"}
        else:
            local = math.log2(deficit[-1] / deficit[-2])
            predicted = -1 + (1 + e**2) ** 2 * kappa / 4 / (Ks[-1] * deficit[-1])
            assert abs(local - predicted) < 2e-3
            row |= {"slope at the end": f"{local:.4f}", "predicted": f"{predicted:.4f}"}
        rows[name].append({key: value.replace("-", "−") for key, value in row.items()})
for name, text in (
    ("linear", f"Linear schedule, $v = 1/2$, up to $K = {Ks[-1]}$:"),
    ("cosine", f"Cosine schedule; the end is from $K = {Ks[-2]}$ to ${Ks[-1]}$:"),
):
    display(Markdown(text))
    table = pd.DataFrame(rows[name])
    display(Markdown(table.to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# There is no randomness in these tables. The ± is the standard error of the regression over the last five points, and measures how straight the
# line is.

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.3), sharey=True)
    for ax, name in zip(axes, ("cosine", "linear"), strict=True):
        for i, e in enumerate((0.0, 0.5, 1.0)):
            label = f"$e = {e:g}$"
            ax.plot(Ks, deficits[name, e], color=figures.SERIES[i], marker=figures.MARKERS[i], markersize=4, label=label)
            if name == "linear":
                ax.plot(Ks, rate(e, 0.5) / Ks, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set(xscale="log", yscale="log", xlabel="steps $K$", title=name)
    axes[0].set_ylabel("variance lost, $v - w_K$")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
figures.show(
    fig,
    "order",
    "Lost variance against number of steps, both axes logarithmic: three parallel lines of slope minus one in each panel, DDPM on top; "
    "in the right panel dashed predictions lie on the lines.",
)

# %% [markdown]
# ```{glue:figure} order
# :name: fig-reverse-order
#
# Variance lost by Algorithm 1 with the exact denoiser of $\mathcal N(\mu, \frac12)$. Dashed, on the right: the limit {eq}`eq-rate` over $K$. The
# loss falls like $1/K$ for every $e$, but for a logarithm on the left that is too weak to be seen; noise costs a constant factor.
# ```
#
# Over a whole chain DDPM loses less than 4 times as much as DDIM. {numref}`fig-reverse-variance` shows why: noise shrinks old errors too.
# That is the factor $\big(\frac{v}{v+u^2}\big)^{e^2}$ in {eq}`eq-rate`.

# %% tags=["hide-input"]
es = np.linspace(0, 1, 21)
with figures.house_style() as plt:
    fig, (ax, where) = plt.subplots(1, 2, figsize=(7.2, 3.3))
    for i, K in enumerate((20, 50, 200, 1000)):
        alpha, sigma = at(cosine, np.array(time_grid(cosine, K)))
        values = [chain(alpha, sigma, e)[0] for e in es]
        assert (np.diff(values) < 0).all()  # more noise, less variance
        ax.plot(
            es, values, color=figures.SERIES[i], marker=figures.MARKERS[i], markevery=5, markersize=4, label=f"$K = {K}$"
        )
    ax.axhline(0.5, color=figures.INK, linewidth=0.8, linestyle="--")
    ax.set(xlabel="multiplier $e$ of DDPM's noise", ylabel="variance returned")
    ax.legend(loc="lower left", fontsize=9)
    alpha, sigma = uniform(cosine, 200)
    for i, e in ((0, 0.0), (2, 1.0)):
        _, made, left = chain(alpha, sigma, e)
        arrival = np.linspace(0, 1, 201)[:-1]
        look = {"color": figures.SERIES[i], "marker": figures.MARKERS[i], "markersize": 4, "markevery": 25}
        where.plot(arrival, 200 * made, linewidth=0.9, linestyle="--", label=f"made, $e = {e:g}$", **look)
        where.plot(arrival, 200 * left, label=f"left at the end, $e = {e:g}$", **look)
    where.set(xlabel="$t$", ylabel="loss per unit of time", title="200 steps", xlim=(1, 0))
    where.legend(fontsize=9)
figures.show(
    fig,
    "variance",
    "Left: returned variance against e for 20 to 1000 steps; all curves fall below one half, more so for e near 1. Right: losses of "
    "each step over time, as made and as left at the end; for e = 1 much more is made and much of it is forgotten.",
)

# %% [markdown]
# ```{glue:figure} variance
# :name: fig-reverse-variance
#
# Left: variance returned for $v = \frac12$ (dashed) on the library's cosine grid; the more noise, the less. Right: when it is lost. With noise
# ($e = 1$, orange), a loss made early, at $t$ near 1, is forgotten. Without ($e = 0$, blue), it is scaled by $v/V_t$ and otherwise kept. The peak
# at $t = 0$ is the $\kappa/(4t)$ of the cosine.
# ```
#
# ## Any $\eta$? Not with means
#
# {eq}`eq-marginalisation` allows every $\eta_s\le\sigma_s$. With means in place of the ends this freedom is gone. The losses of {eq}`eq-c` vanish in
# the limit because DDPM's $\eta_s$ shrinks with the step, like its root. Take a fixed share $\eta_s = \varrho\,\sigma_s$ instead: then $c$ does not
# shrink with the step, and the chain forgets all but its last steps. Near $t = 0$ the recursion {eq}`eq-recursion` has
# $1 - A^2 \approx 2\,(1-\sqrt{1-\varrho^2})\,\sigma^2/v$, so its variance settles at
#
# $$w_\infty = \frac{\eta^2}{1-A^2} = v\;\frac{1+\sqrt{1-\varrho^2}}{2} \;<\; v .$$ (eq-fixed-share)
#
# More steps do not help. With $\eta_s = \sigma_s$, which the paper's condition permits, half of the variance is lost.

# %%
rows = []
for share in (0.25, 0.5, 1.0):
    row = {r"$\varrho = \eta_s/\sigma_s$": f"{share:g}"}
    for K in (50, 500, 5_000, 50_000):
        w = chain(*uniform(linear, K), 0.0, noise_share=share)[0]
        row[f"$K = {K}$"] = f"{w:.4f}"
    limit = 0.5 * (1 + math.sqrt(1 - share**2)) / 2
    assert abs(w - limit) < 1e-3
    rows.append(row | {"limit": f"{limit:.4f}"})
table = pd.DataFrame(rows)
display(Markdown(table.to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# ## The paper's mixture, the paper's sampler
#
# In the paper's mixture the second coordinate is independent of the first and Gaussian with variance 1/2, so {eq}`eq-recursion` predicts the
# variance of $x_2$ that the library's sampler returns with the exact denoiser:

# %% tags=["hide-input"]
n = 20_000 if full else 2_000
rows = []
for K, e in ((200, 1.0), (50, 1.0), (200, 0.0), (50, 0.0)) if full else ((50, 1.0), (50, 0.0)):
    x = sample(
        ExactNoisePredictor(base, cosine),
        cosine,
        n,
        steps=K,
        eta=e,
        generator=torch.Generator().manual_seed(6),
        dtype=torch.float64,
    )
    predicted = chain(*at(cosine, np.array(time_grid(cosine, K))), e)[0]
    measured, error = float(x[:, 1].var()), predicted * math.sqrt(2 / n)
    assert abs(measured - predicted) < 4 * error
    weight = float((x[:, 0] > 0).double().mean())
    assert abs(weight - 0.5) < 4 * 0.5 / math.sqrt(n)  # symmetry: the weights are not biased
    rows.append(
        {
            "steps": K,
            "$e$": f"{e:g}",
            "variance of $x_2$, predicted": f"{predicted:.4f}",
            "measured": f"{measured:.3f} ± {error:.3f}",
            "weight of the right mode": f"{weight:.3f} ± {0.5 / math.sqrt(n):.3f}",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# How few steps will do, and with how much noise? The exact denoiser is short enough to run in the page. So try it: the samples below are Algorithm 1, drawn where you read this.

# %% tags=["remove-input"]
every_K = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200])
xs, ys = np.linspace(-4.6, 4.6, 121), np.linspace(-3.4, 3.4, 91)
density = base.log_prob(torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))).reshape(91, 121).numpy()
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
    for ax, K in zip(axes, (3, 10), strict=False):
        x = sample(ExactNoisePredictor(base, cosine), cosine, 1000, steps=K, generator=torch.Generator().manual_seed(7))
        figures.samples(ax, x.numpy(), density=(xs, ys, density), title=f"$K = {K}$, $e = 1$", limits=(-4.6, 4.6, -3.4, 3.4))
    for i, e in enumerate((0.0, 0.5, 1.0)):
        values = [chain(*at(cosine, np.array(time_grid(cosine, int(K)))), e)[0] for K in every_K]
        axes[2].plot(every_K, values, color=figures.SERIES[i], marker=figures.MARKERS[i], markersize=3, label=f"$e = {e:g}$")
    axes[2].axhline(0.5, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[2].set(xscale="log", xlabel="steps $K$", title="variance of $x_2$", ylim=(0, 0.56))
    axes[2].legend(fontsize=9)
figures.show(
    fig,
    "few-steps",
    "Samples of Algorithm 1 after 3 and 10 steps, tighter than the contours of the exact density, and the variance of the second coordinate, which rises with the number of steps toward one half.",
)
variance = float(base.covariances[0, 1, 1])  # of x_2, which is Gaussian and independent of x_1
figures.explorer("ddim", {"mixture": figures.as_model(base), "variance": variance}, "few-steps")

# %% [markdown]
# ```{glue:figure} few-steps
# :name: fig-reverse-few-steps
#
# Algorithm 1 with the exact denoiser of the paper's mixture, against exact contours, and the variance of $x_2$ by {eq}`eq-recursion`. With few steps the clouds are too tight,
# and the more noise the tighter. On the page, choose $K$ and $e$.
# ```
#
# ## How it compounds
#
# A few per cent of variance look harmless. But iterative tilting samples from its own model, again and again. Suppose the worst case
# first: at each of $N$ rounds a model is fitted, perfectly, to the samples of the last one. A linear reward moves the mean and leaves the
# variance alone, so $v_k = S(v_{k-1})$, where $S(v) = w_K$ is the variance that the chain returns for data of variance $v$. A loss by a fixed
# factor would give $v_N = v\,\rho^N$ with $\rho = S(v)/v$. It is worse than that: by {eq}`eq-rate-linear`, $v - S(v)$ is of order $\sqrt v/K$ for
# small $v$, so narrow laws lose a *larger* share. For the linear schedule and DDPM, in the limit of many steps, the standard deviation
# $y = \sqrt{v}$ follows
#
# $$\begin{gathered}
#   \frac{dy}{dN} = -\frac1{2K}\Big(\frac{3\pi}4 + 2y + \frac\pi4\,y^2\Big), \\[1ex]
#   \arctan\frac{\frac\pi2 y_N+2}{D} = \arctan\frac{\frac\pi2 y_0+2}{D} - \frac{D\,N}{4K}, \qquad D = \sqrt{\tfrac{3\pi^2}4-4},
#   \end{gathered}$$ (eq-collapse)
#
# which reaches zero after finitely many rounds, a fixed multiple of $K$.


# %%
def refits(N, schedule, K=200, e=1.0, v=0.5):
    alpha, sigma = at(schedule, np.array(time_grid(schedule, K)))
    for _ in range(N):
        v = chain(alpha, sigma, e, v)[0]
    return v


def collapse(N, K, v=0.5):
    """(eq-collapse), solved for v_N."""
    D = math.sqrt(3 * math.pi**2 / 4 - 4)
    angle = math.atan((math.pi / 2 * math.sqrt(v) + 2) / D) - D * N / (4 * K)
    return (2 / math.pi * (D * math.tan(angle) - 2)) ** 2


# %% tags=["hide-input"]
D = math.sqrt(3 * math.pi**2 / 4 - 4)
lifetime = 4 * (math.atan((math.pi / 2 * math.sqrt(0.5) + 2) / D) - math.atan(2 / D)) / D  # rounds per step
for K in (200, 800):  # the same share of the way down: first order in 1/K again
    assert abs(refits(K // 10, linear, K) / collapse(K // 10, K) - 1) < 0.05 * 200 / K
rows = []
for N in (1, 5, 20, 50, 100):
    rho = refits(1, cosine) / 0.5
    rows.append(
        {
            "rounds $N$": N,
            "cosine": f"{refits(N, cosine):.3f}",
            r"cosine, $v\rho^N$": f"{0.5 * rho**N:.3f}",
            "linear": f"{refits(N, linear):.3f}",
            "linear, {eq}`eq-collapse`": f"{collapse(N, 200):.3f}" if 200 * lifetime > N else "0",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        f"Variance after $N$ rounds of 200 DDPM steps, from $v = 1/2$. By {{eq}}`eq-collapse` it reaches zero after ${lifetime:.3f}\\,K$ rounds."
    )
)

# %% [markdown]
# {ref}`Algorithm 2 <algorithm-2>` is kinder: it does not refit, it *corrects* its teacher. Give it a constant reward $\bar r$, which should do
# nothing. Then a tilt of size $\delta = \lambda/N$ moves the teacher by the fraction $\delta\,\bar r$ of the way to a refit, and $N$ tilts amount
# to about $\lambda\bar r$ refits, however large $N$ is. {ref}`The chapter on the algorithm <constant-reward>` derives this and runs it. A variant
# that refits at each tilt pays $N$ times.
#
# ## Try this
#
# - {eq}`eq-lost` says how much variance a step loses. Give it back: add noise of variance $c^2\,\mathrm{Var}(X_0 \mid X_t)$. How many steps does a
#   Gaussian need?

# %% tags=["hide-cell"]
rows = []
for K in (1, 2, 10):
    for e in (0.0, 1.0):
        alpha, sigma = uniform(cosine, K)
        w = 1.0
        for k in range(K, 0, -1):
            eta = e * sigma[k - 1] * math.sqrt(1 - (alpha[k] * sigma[k - 1] / (alpha[k - 1] * sigma[k])) ** 2)
            old, V = math.sqrt(sigma[k - 1] ** 2 - eta**2), alpha[k] ** 2 * 0.5 + sigma[k] ** 2
            A, c = (alpha[k - 1] * alpha[k] * 0.5 + old * sigma[k]) / V, alpha[k - 1] - old * alpha[k] / sigma[k]
            w = A**2 * w + eta**2 + c**2 * sigma[k] ** 2 * 0.5 / V  # the one new term
        assert abs(w - 0.5) < 1e-14
        rows.append({"$K$": K, "$e$": f"{e:g}", "variance": f"{w:.12f}", "without": f"{chain(alpha, sigma, e)[0]:.4f}"})
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        "One. The transition is then {eq}`eq-2-3` itself. With one step this is plain: noise of the variance of the data is drawn around the mean of the data. "
        "For other data the conditional covariance depends on $x_t$ and has to be learned, and the law of $X_0$ given $X_t$ is not Gaussian."
    )
)

# %% [markdown]
# - {eq}`eq-rate` weighs the speed of $u = \sigma/\alpha$ along the grid. Which grid loses least?

# %% tags=["hide-cell"]
K = 2000
angle = np.linspace(0, math.pi / 2, K + 1)
rows = []
for v in (0.5, 1.0):
    # Cauchy-Schwarz: du/dt should go like (v + u^2)^((2 + e^2) / 2) / v; for e = 0 this is u = sqrt(v) tan(pi t / 2).
    signal, noise_level = np.cos(angle), math.sqrt(v) * np.sin(angle)
    total = signal + noise_level
    best = K * (v - chain(signal / total, noise_level / total, 0.0, v)[0])
    assert abs(best - K * v * (1 - math.cos(math.pi / (2 * K)) ** (2 * K))) < 1e-9
    rows.append(
        {
            "$v$": v,
            "best grid": f"{best:.4f}",
            r"$\pi^2 v/4$": f"{math.pi**2 / 4 * v:.4f}",
            "linear": f"{K * (v - chain(*uniform(linear, K), 0.0, v)[0]):.4f}",
            "cosine": f"{K * (v - chain(*uniform(cosine, K), 0.0, v)[0]):.4f}",
        }
    )
display(Markdown("$K(v-w_K)$ for DDIM:"))
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        r"$\sigma_t/\alpha_t = \sqrt v\tan(\pi t/2)$, on which the chain returns exactly $v\cos^{2K}\frac{\pi}{2K}$. For data of variance one this is the cosine schedule with offset zero: for "
        "DDIM steps and such data no schedule does better, to first order. The usual ones come close to the best, so what is left to "
        "gain must come from a better step, not from a better grid."
    )
)

# %% [markdown]
# - Count steps instead of variance: how many does DDPM need for the accuracy that DDIM has with 50?

# %% tags=["hide-cell"]
ddim = 0.5 - chain(*uniform(cosine, 50), 0.0)[0]
needed = next(K for K in range(50, 500) if 0.5 - chain(*uniform(cosine, K), 1.0)[0] <= ddim)
assert 100 <= needed <= 120  # by the ratio of the constants in the table above, about 2.2
display(
    Markdown(
        f"DDPM needs {needed} steps. Noise is no error in itself, as the bridge shows, but it doubles $c$. What it buys is forgetting: it damps errors of the "
        "*network* at large $t$, which a deterministic sampler carries to the end."
    )
)
