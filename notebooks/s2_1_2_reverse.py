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
# Section 2.1.2 of the paper walks the forward process backwards. The exact transitions need what nobody knows, and
# conditional means take its place.
#
# **You will see** that the exact transition keeps every marginal, whatever its noise; Algorithm 1 line by line, in the page; and how much
# variance the means cost, in one step, in a chain, and when a model learns from its own samples.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points

# %%
import math
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import quad
from scipy.stats import kstest, linregress, norm

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.network import FromX0
from itlib.rewards import parse_reward
from itlib.sampling import ddpm_std, reverse_process, sample, time_grid, transition
from itlib.schedules import Cosine, Linear

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"
cosine, linear = Cosine(), Linear()
base = paper_mixture()
lopsided = base.tilted(parse_reward("unequal"))  # no symmetry hides a wrong sign


# %% tags=["hide-input"]
def at(schedule, t):
    """alpha and sigma at one time, or at an array of them, in double precision."""
    time = torch.as_tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    return (alpha.numpy(), sigma.numpy()) if time.ndim else (float(alpha), float(sigma))


def posterior_draws(mixture, x, t, schedule):
    """One X_0 given X_t = x for each x."""
    with torch.random.fork_rng(devices=[]):  # torch.distributions takes no generator
        torch.manual_seed(1)
        return mixture.posterior(x, torch.tensor(t), schedule).sample()


def projected_cdf(mixture, direction):
    """Distribution function of <direction, X> for X from a mixture."""
    centre = (mixture.means @ direction).numpy()
    width = torch.einsum("d,kde,e->k", direction, mixture.covariances, direction).sqrt().numpy()
    return lambda x: norm.cdf((np.asarray(x)[:, None] - centre) / width) @ mixture.weights.numpy()


# %% [markdown]
# ## A bridge that keeps the marginals
#
# A reverse step from $t$ to $s < t$ should turn a sample of $p_t$ into one of $p_s$. The DDIM family {cite}`song2021denoising` does this in
# two stages: draw both ends of the path given $x_t$, then a point between them,
#
# $$p_{s|t}^\eta(x_s \mid x_t) = \mathbb E\big[ q_{s|0,1}^\eta(x_s \mid X_0, X_1) \,\big|\, X_t = x_t \big], \tag{2.3}$$ (eq-2-3)
#
# $$q_{s|0,1}^\eta(x_s \mid x_0, x_1) = \mathcal N\Big(x_s;\ \alpha_s x_0 + \sqrt{\sigma_s^2-\eta_s^2}\; x_1,\ \eta_s^2 I_d\Big). \tag{2.4}$$ (eq-2-4)
#
# The second formula is the *bridge*. Of the noise's variance $\sigma_s^2$ a share $\eta_s^2$ is drawn anew, and the rest is the old $X_1$.
# Old and new are independent, so their sum is again Gaussian with variance $\sigma_s^2$:
#
# $$p_s(x_s) = \int p_{s|t}^\eta(x_s \mid x_t)\; p_t(x_t)\, dx_t \qquad\text{for every } 0 \le \eta_s \le \sigma_s .$$ (eq-marginalisation)
#
# What $\eta_s$ changes is how much of $x_t$ survives in $x_s$. To see both, draw $X_t$ from $p_t$, then $X_0$ from its exact law given $X_t$, then
# $X_1$ from {eq}`eq-2-1`, then the bridge.

# %%
n, s, t = 20_000 if full else 5_000, 0.3, 0.6
generator = torch.Generator().manual_seed(0)
(alpha_t, sigma_t), (alpha_s, sigma_s) = at(cosine, t), at(cosine, s)


def bridge(x_0, x_1, eta_s):
    """One draw from (2.4) for each pair of end points."""
    z = torch.randn(x_0.shape, generator=generator)
    return alpha_s * x_0 + math.sqrt(sigma_s**2 - eta_s**2) * x_1 + eta_s * z


pairs = {}
for share in (0.0, 0.3, 0.7, 1.0):  # eta_s / sigma_s
    x_t = lopsided.noised(cosine, t).sample(n, generator)
    x_0 = posterior_draws(lopsided, x_t, t, cosine)
    x_1 = (x_t - alpha_t * x_0) / sigma_t
    pairs[share] = bridge(x_0, x_1, share * sigma_s), x_t

# %%
directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
p_s, p_values, correlations = lopsided.noised(cosine, s), [], []
for x_s, x_t in pairs.values():
    for u in directions:
        test = kstest((x_s @ u).numpy(), projected_cdf(p_s, u), method="asymp")
        p_values.append(test.pvalue)
    both = torch.stack([x_s[:, 1], x_t[:, 1]])
    correlations.append(float(torch.corrcoef(both)[0, 1]))
assert min(p_values) > 1e-3 / len(p_values)  # a false alarm once in a thousand seeds
assert (np.diff(correlations) < 0).all()
first, *_, last = (f"{value:.2f}" for value in correlations)
figures.glue(tests=len(p_values), p=f"{min(p_values):.2f}", first=first, last=last)

# %% [markdown]
# Of {glue:text}`tests` Kolmogorov–Smirnov tests of $x_s$ against $p_s$, the smallest p-value is {glue:text}`p`: all the marginals are right. As $\eta_s$ grows
# from 0 to $\sigma_s$, the correlation of $x_s$ and $x_t$ falls from {glue:text}`first` to {glue:text}`last`.
#
# ### The noise of DDPM
#
# One $\eta_s$ is special. Run the forward process as a Markov chain, $X_t = (\alpha_t/\alpha_s)\,X_s + \text{fresh noise}$. Given
# $X_0$, the pair has covariance $(\alpha_t/\alpha_s)\,\sigma_s^2$. Under the bridge it is $\sqrt{\sigma_s^2-\eta_s^2}\;\sigma_t$. Equate the two and solve:
#
# $$\eta_s^{\text{DDPM}} = \sigma_s\sqrt{1 - \frac{\alpha_t^2\,\sigma_s^2}{\alpha_s^2\,\sigma_t^2}}
#   \;\overset{\text{VP}}{=}\; \frac{\sigma_s}{\sigma_t}\sqrt{1-\frac{\alpha_t^2}{\alpha_s^2}} .$$ (eq-ddpm-eta)
#
# The paper prints $\sigma_t\sqrt{1-\alpha_t^2/\alpha_s^2}$, with $\sigma_t$ where $\sigma_s/\sigma_t$ should be ({ref}`erratum <err-ddpm-eta>`).

# %%
right = printed = 0.0
for s, t in pairwise(time_grid(cosine, 50)[1:]):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = at(cosine, t), at(cosine, s)
    markov = alpha_t / alpha_s * sigma_s**2
    kept = math.sqrt(sigma_s**2 - ddpm_std(cosine, s, t) ** 2) * sigma_t
    as_printed = sigma_t * math.sqrt(1 - (alpha_t / alpha_s) ** 2)
    kept_printed = math.sqrt(sigma_s**2 - as_printed**2) * sigma_t
    right = max(right, abs(kept - markov))
    printed = max(printed, abs(kept_printed / markov - 1))
figures.check("the covariances agree", right, below=1e-14)
print(f"With the printed formula they differ by up to {printed:.0%}.")
assert printed > 0.1

# %% [markdown]
# The number `eta` of the library, $\eta$ without an index, multiplies {eq}`eq-ddpm-eta`, as in {cite:t}`song2021denoising`: 0 is the deterministic DDIM, 1
# is DDPM {cite}`ho2020denoising`.
#
# ## Two means for two unknowns
#
# The expectation in {eq}`eq-2-3` needs the joint law of $(X_0, X_1)$ given $X_t$. What a network can learn are the means,
#
# $$\hat x_0(x_t, t) = \mathbb E[X_0 \mid X_t = x_t], \qquad \hat x_1(x_t, t) = \mathbb E[X_1 \mid X_t = x_t], \tag{2.5}$$ (eq-2-5)
#
# and one of them is enough: given $X_t = x_t$, the mean of $\alpha_t X_0 + \sigma_t X_1$ is $x_t$ itself. So learned means, marked $\theta$, are
# tied in the same way:
#
# $$\hat x_1^\theta(x_t, t) = \frac{x_t - \alpha_t \hat x_0^\theta(x_t, t)}{\sigma_t}, \qquad
#   \hat x_0^\theta(x_t, t) = \frac{x_t - \sigma_t \hat x_1^\theta(x_t, t)}{\alpha_t}. \tag{2.6}$$ (eq-2-6)
#
# For the mixture both means are integrals against the law of $X_0$ given $X_t$. We sum them on a grid, and compare with
# {py:class}`~itlib.gaussian_mixture.ExactNoisePredictor`, which takes another way, by the score.

# %%
axis = torch.linspace(-9, 9, 301)
grid = torch.cartesian_prod(axis, axis)
log_prior = lopsided.log_prob(grid)


def means(x, t, schedule):
    """(2.5) by quadrature: X_0 on the grid, X_1 as (2.1) leaves it."""
    alpha, sigma = at(schedule, t)
    x_1 = (x - alpha * grid) / sigma
    weight = torch.softmax(log_prior - 0.5 * x_1.square().sum(-1), 0)
    return weight @ grid, weight @ x_1


# %%
gaps = []
for schedule in (cosine, linear):
    denoiser = ExactNoisePredictor(lopsided, schedule)
    for t in (0.2, 0.5, 0.8):
        time, (alpha, sigma) = torch.tensor(t), at(schedule, t)
        for x in lopsided.noised(schedule, t).sample(4, generator):
            x0_hat, x1_hat = means(x, t, schedule)
            exact = denoiser(x[None], time)[0]
            wrapped = FromX0(lambda *_, value=x0_hat: value, schedule)(x[None], time)[0]
            other = (x - sigma * exact) / alpha
            differences = (exact - x1_hat, exact - wrapped, other - x0_hat)
            gaps.append([float(d.abs().max()) for d in differences])
names = ("(2.5)", "(2.6), left", "(2.6), right")
for name, gap in zip(names, np.max(gaps, 0), strict=True):
    figures.check(f"{name}: library and quadrature agree", gap, below=1e-11)

# %% [markdown]
# (algorithm-1)=
# ## Algorithm 1
#
# Put the means where the bridge wants the ends:
#
# $$p_{t_k|t_{k+1}}^{\eta,\theta}(x_{t_k} \mid x_{t_{k+1}}) := q_{t_k|0,1}^{\eta}\big(x_{t_k} \,\big|\,
#   \hat x_0^\theta(x_{t_{k+1}}, t_{k+1}),\ \hat x_1^\theta(x_{t_{k+1}}, t_{k+1})\big), \tag{2.7}$$ (eq-2-7)
#
# and at $k = 0$ the point mass at $\hat x_0^\theta(x_{t_1}, t_1)$. Repeat along a grid of times:
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
# The library ({py:func}`~itlib.sampling.reverse_process`) eliminates $\hat x_0$. What is left are three coefficients that depend on the times only:
#
# $$x_s = \underbrace{\frac{\alpha_s}{\alpha_t}}_{a}\, x_t
#   + \underbrace{\Big(\sqrt{\sigma_s^2-\eta_s^2} - \frac{\alpha_s\sigma_t}{\alpha_t}\Big)}_{b}\, \hat x_1 + \eta_s z .$$ (eq-coefficients)
#
# Here is {numref}`alg-1` in Python. Given the same random numbers, it must agree with the library.


# %%
def algorithm_1(denoiser, schedule, times, eta, x, generator):
    alpha, sigma = at(schedule, np.array(times))
    for k in range(len(times) - 2, 0, -1):  # line 2
        eta_k = eta * ddpm_std(schedule, times[k], times[k + 1])
        x1_hat = denoiser(x, torch.tensor(times[k + 1]))  # line 3
        x0_hat = (x - sigma[k + 1] * x1_hat) / alpha[k + 1]  # line 4
        mu = alpha[k] * x0_hat + np.sqrt(sigma[k] ** 2 - eta_k**2) * x1_hat  # line 5
        z = torch.randn(x.shape, generator=generator) if eta else 0  # line 6
        x = mu + eta_k * z  # line 7
    return (x - sigma[1] * denoiser(x, torch.tensor(times[1]))) / alpha[1]  # line 9


# %%
worst = 0.0
for schedule in (cosine, linear):
    denoiser, times = ExactNoisePredictor(lopsided, schedule), time_grid(schedule, 20)
    for eta in (0.0, 0.5, 1.0):
        first, second = (torch.Generator().manual_seed(2) for _ in range(2))
        start = torch.randn(500, 2, generator=first)  # line 1
        ours = algorithm_1(denoiser, schedule, times, eta, start, first)
        options = {"steps": 20, "eta": eta, "dtype": torch.float64}
        theirs = sample(denoiser, schedule, 500, generator=second, **options)
        worst = max(worst, float((ours - theirs).abs().max()))
figures.check("listing and library agree", worst, below=1e-11)

# %% [markdown]
# One thing is not as printed: the grid ends at $t_{\max} < 1$. With $t_K = 1$ line 4 divides by $\alpha_1 = 0$ ({doc}`errata`), and by more than a slip: at
# $t = 1$ the point *is* the noise, $\hat x_1(x, 1) = x$ for any data, so $\hat x_1$ no longer says what $\hat x_0$ is. The limit exists, and is the mean
# of the data.

# %%
x, denoiser = torch.tensor([[0.7, -1.1]]), ExactNoisePredictor(lopsided, cosine)
gap = float((denoiser(x, torch.tensor(1.0)) - x).abs().max())
figures.check("x1_hat(x, 1) is x", gap, below=1e-15)
alpha, sigma = at(cosine, 1 - 1e-4)
x0_hat = (x - sigma * denoiser(x, torch.tensor(1 - 1e-4))) / alpha
gap = float((x0_hat[0] - lopsided.mean).abs().max())
figures.check("x0_hat at t = 0.9999 and the mean of the data", gap, below=10 * alpha)

# %% tags=["hide-input"]
exact = ExactNoisePredictor(base, cosine)
start = torch.randn(12, 2, generator=torch.Generator().manual_seed(4))
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
    for ax, eta in zip(axes, (0.0, 0.5, 1.0), strict=True):
        rng = torch.Generator().manual_seed(5)
        steps = reverse_process(exact, cosine, start, steps=200 if full else 50, eta=eta, generator=rng)
        path = [(cosine.t_max, start), *steps]
        time, x = [p[0] for p in path], torch.stack([p[1][:, 0] for p in path]).numpy()
        right = x[-1] > 0
        ax.plot(time, x[:, right], color=figures.SERIES[4], linewidth=0.8)
        ax.plot(time, x[:, ~right], color=figures.COLORS["base"], linewidth=0.8)
        ax.plot([1.0] * 12, x[0], "o", color=figures.INK, markersize=2.5)
        for sign in (-2, 2):
            ax.plot(time, sign * at(cosine, np.array(time))[0], color=figures.INK, linewidth=0.9, linestyle="--")
        ax.set(xlim=(1.03, -0.03), xticks=(1, 0.5, 0), xlabel="$t$", title=rf"$\eta = {eta:g}$")
    axes[0].set_ylabel("first coordinate of $x_t$")
text = "Twelve trajectories from noise to data, first coordinate: smooth lines that never cross for eta = 0, slightly rough ones for "
figures.show(fig, "trajectories", text + "one half, and rough ones that cross for eta = 1. All end near plus or minus 2.")

# %% [markdown]
# ```{glue:figure} trajectories
# :name: fig-reverse-trajectories
#
# Algorithm 1 with the exact denoiser of the paper's mixture, from the same twelve points, time running from noise (left) to data (right). Colour: the mode in
# which a point ends. Dashed: the noised modes. Deterministic paths keep their order, so the start decides the mode; with noise it is decided on the way.
# ```
#
# How few steps will do, and with how much noise? Try it: the samples below are Algorithm 1, drawn where you read this.

# %% tags=["hide-input"]
xs, ys = np.linspace(-4.6, 4.6, 121), np.linspace(-3.4, 3.4, 91)
density = base.log_prob(torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))).reshape(91, 121).numpy()


def variance_returned(K, eta, generator=None, n=4000):
    x = sample(exact, cosine, n, steps=K, eta=eta, generator=generator, dtype=torch.float64)
    return float(x[:, 1].var())


with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0))
    for ax, K in zip(axes, (3, 10), strict=True):
        x = sample(exact, cosine, 1000, steps=K, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        look = {"color": figures.COLORS["base"], "limits": (-4.6, 4.6, -3.4, 3.4)}
        figures.samples(ax, x.numpy(), density=(xs, ys, density), title=rf"$K = {K}$, $\eta = 1$", **look)
        ax.set(xlabel="$x_1$", ylabel="$x_2$")
text = "Samples of Algorithm 1 after 3 and 10 steps, tighter than the contours of the exact density."
figures.show(fig, "few-steps", text)
variance = float(base.covariances[0, 1, 1])  # of x_2, which is Gaussian and independent of x_1
figures.explorer("ddim", {"mixture": figures.as_model(base), "variance": variance}, "few-steps")

# %% [markdown]
# ```{glue:figure} few-steps
# :name: fig-reverse-few-steps
#
# Algorithm 1 with the exact denoiser, against exact contours. With few steps the clouds are too tight, and the more noise the tighter. On the page, choose
# $K$ and $\eta$.
# ```
#
# ## What one step loses
#
# {eq}`eq-marginalisation` holds for {eq}`eq-2-3`. It does *not* hold for {eq}`eq-2-7`: a mean has no spread. Let $X_t \sim p_t$, and let $x_s$ be
# the result of one step with the exact means. The bridge's centre is $h\,X_0$ plus a function of $X_t$, with
# $h = \alpha_s - \sqrt{\sigma_s^2-\eta_s^2}\;\alpha_t/\sigma_t$. So the mean of $x_s$ is right, and by the law of total variance
#
# $$\mathrm{Cov}(X_s) - \mathrm{Cov}(x_s) = h^2\; \mathbb E\big[\mathrm{Cov}(X_0 \mid X_t)\big] .$$ (eq-lost)
#
# The right side is never negative, and $h > 0$. **Every step loses variance, for any data with some spread and any $\eta$, even with a perfect
# network.** Here are the two sides for the lopsided mixture, by quadrature over $x_t$.


# %% tags=["hide-input"]
def covariance_of(values, weight):
    centred = values - weight @ values
    return torch.einsum("b,bd,be->de", weight, centred, centred)


def mixture_covariance(mixture):
    spread = mixture.means - mixture.mean
    between = torch.einsum("k,kd,ke->de", mixture.weights, spread, spread)
    return between + torch.einsum("k,kde->de", mixture.weights, mixture.covariances)


# %%
s, t, eta = 0.4, 0.5, 1.0
(alpha_t, sigma_t), (alpha_s, sigma_s) = at(cosine, t), at(cosine, s)
a, b, std = transition(cosine, s, t, eta)
weight = lopsided.noised(cosine, t).log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
x_s = a * grid + b * ExactNoisePredictor(lopsided, cosine)(grid, torch.tensor(t))
after = covariance_of(x_s, weight) + std**2 * torch.eye(2)
missing = mixture_covariance(lopsided.noised(cosine, s)) - after
means_of_x0 = lopsided.posterior(grid, torch.tensor(t), cosine).mean
within = mixture_covariance(lopsided) - covariance_of(means_of_x0, weight)
h = alpha_s - math.sqrt(sigma_s**2 - std**2) * alpha_t / sigma_t
gap = float((missing - h**2 * within).abs().max())
figures.check("what one step loses: both sides agree", gap, below=1e-11)
assert (torch.linalg.eigvalsh(missing) > 0).all()

# %% [markdown]
# ## What the chain loses
#
# *Reference: skip on a first reading; the result is that DDPM with $K$ steps loses variance of the order $1/K$, and DDIM about half as much.*
#
# For one Gaussian, $p_0 = \mathcal N(\mu, v)$, the means are linear. With $V_t = \alpha_t^2 v+\sigma_t^2$,
# $\hat x_1 = \sigma_t\,(x_t-\alpha_t\mu)/V_t$. So $x_t$ stays Gaussian, and its mean $m_t$ and variance $w_t$ obey
#
# $$\begin{aligned}
#   m_s - \alpha_s\mu & = f\,(m_t - \alpha_t\mu), \\
#   w_s & = f^2 w_t + \eta_s^2,
#   \end{aligned}
#   \qquad f = a + \frac{b\,\sigma_t}{V_t} .$$ (eq-recursion)
#
# A mean that starts right stays right. The variance does not: by {eq}`eq-lost` each step loses
# $h^2\,\mathrm{Var}(X_0 \mid X_t) = h^2 \sigma_t^2 v / V_t$, and every later step multiplies that loss by its $f^2$.


# %%
def chain(alpha, sigma, eta, v=0.5, noise_share=None):
    """Algorithm 1 for N(mu, v): variance, and what is left of each loss at the end."""
    alpha_s, alpha_t, sigma_s, sigma_t = alpha[:-1], alpha[1:], sigma[:-1], sigma[1:]
    ratio = alpha_t * sigma_s / (alpha_s * sigma_t)
    std = eta * sigma_s * np.sqrt(1 - ratio**2)  # eta times DDPM's
    if noise_share is not None:
        std = noise_share * sigma_s
    old = np.sqrt(sigma_s**2 - std**2)
    V = alpha_t**2 * v + sigma_t**2
    f = (alpha_s * alpha_t * v + old * sigma_t) / V  # a + b sigma_t / V
    h = alpha_s - old * alpha_t / sigma_t
    later = np.cumprod(np.append(1.0, f**2))  # effect of the later steps
    return later[-1] + later[:-1] @ std**2, later[:-1] * h**2 * sigma_t**2 * v / V


def uniform(schedule, K):
    return at(schedule, np.linspace(0, 1, K + 1))


# %% tags=["hide-input"]
worst = [0.0, 0.0]
for schedule in (cosine, linear):
    for eta in (0.0, 0.5, 1.0):
        w, left = chain(*uniform(schedule, 200), eta)
        worst[0] = max(worst[0], abs((0.5 - w) - left.sum()))
        # The same chain from the library's coefficients, on the library's grid.
        times, variance = time_grid(schedule, 50), 1.0
        for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
            (alpha, sigma), (a, b, std) = at(schedule, t), transition(schedule, s, t, eta)
            variance = (a + b * sigma / (alpha**2 * 0.5 + sigma**2)) ** 2 * variance + std**2
        worst[1] = max(worst[1], abs(variance - chain(*at(schedule, np.array(times)), eta)[0]))
figures.check("v - w_K is the sum of what is left of the losses", worst[0], below=1e-13)
figures.check("the recursion and the library's steps agree", worst[1], below=1e-12)

# %% [markdown]
# With many equal steps the sum becomes an integral. Let $\nu_t = \sigma_t/\alpha_t$. For a small step $h \approx (1+\eta^2)\,\alpha_s\, d\nu/\nu$, and the product of the
# factors $f^2$ from 0 to $t$ tends to $\frac{v}{V_t}\big(\frac{v}{v+\nu_t^2}\big)^{\eta^2}$. So
#
# $$K\,(v - w_K) \;\longrightarrow\; (1+\eta^2)^2 \int_0^1 \Big(\frac{d\nu_t}{dt}\Big)^{\!2} \Big(\frac{v}{v+\nu_t^2}\Big)^{2+\eta^2} dt .$$ (eq-rate)
#
# One step of DDPM loses $(1+1)^2 = 4$ times as much as one of DDIM; but noise shrinks old errors too (the power $\eta^2$), so the chains differ by less. For the
# linear schedule the integral can be done by hand:
#
# $$\eta = 0:\ \ v + \tfrac\pi4\sqrt v\,(1+v), \qquad\qquad \eta = 1:\ \ \tfrac{3\pi}4\sqrt v + 2v + \tfrac\pi4 v^{3/2} .$$ (eq-rate-linear)
#
# For the cosine schedule it diverges at $t = 0$, but only like $\log K$ and with a small factor.


# %%
def rate(eta, v):
    """Right side of (eq-rate) for the linear schedule, where dnu/dt = (1 + nu)^2."""
    power = 2 + eta**2
    integral = quad(lambda nu: (1 + nu) ** 2 * (v / (v + nu**2)) ** power, 0, np.inf)[0]
    return (1 + eta**2) ** 2 * integral


for v in (0.1, 0.5, 2.0):
    by_hand = v + math.pi / 4 * math.sqrt(v) * (1 + v)
    noisy = 3 * math.pi / 4 * math.sqrt(v) + 2 * v + math.pi / 4 * v**1.5
    assert max(abs(rate(0, v) - by_hand), abs(rate(1, v) - noisy)) < 1e-6

# %%
Ks, late = np.array([100, 200, 400, 800, 1600, 3200, 6400, 12800]), slice(3, None)
deficits, rows = {}, []
for name, schedule in (("cosine", cosine), ("linear", linear)):
    for eta in (0.0, 0.5, 1.0):
        lost = np.array([0.5 - chain(*uniform(schedule, int(K)), eta)[0] for K in Ks])
        deficits[name, eta] = lost
        slope = linregress(np.log(Ks[late]), np.log(lost[late])).slope
        limit = f"{rate(eta, 0.5):.3f}" if name == "linear" else "–"
        row = {"schedule": name, r"$\eta$": eta, "slope": f"−{-slope:.3f}"}
        rows.append(row | {"$K(v-w_K)$": f"{Ks[-1] * lost[-1]:.3f}", "limit": limit})
figures.table(rows)

# %% tags=["hide-input"]
q = math.pi / 1.008 * math.tan(math.pi / 2 * 0.008 / 1.008)  # of the cosine: nu^2 is about q t near 0
for (name, eta), lost in deficits.items():
    if name == "linear":
        constant = 2 * Ks[-1] * lost[-1] - Ks[-2] * lost[-2]  # Richardson: the next order in 1/K cancels
        assert abs(constant / rate(eta, 0.5) - 1) < 5e-4
    else:  # (log K) / K: the slope is off by (1 + eta^2)^2 q / (4 K lost)
        local = math.log2(lost[-1] / lost[-2])
        assert abs(local + 1 - (1 + eta**2) ** 2 * q / 4 / (Ks[-1] * lost[-1])) < 2e-3
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
    for (name, eta), lost in deficits.items():
        ax, i = axes[int(name == "linear")], int(2 * eta)
        ax.plot(Ks, lost, color=figures.SERIES[3 + i], marker=figures.MARKERS[i], markersize=4, label=rf"$\eta = {eta:g}$")
        if name == "linear":
            ax.plot(Ks, rate(eta, 0.5) / Ks, color=figures.INK, linewidth=0.8, linestyle="--")
        ax.set(xscale="log", yscale="log", xlabel="steps $K$", title=name)
    axes[0].set_ylabel("variance lost, $v - w_K$")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
text = "Lost variance against number of steps, both axes logarithmic: three parallel lines of slope minus one in each panel, DDPM on top."
figures.show(fig, "order", text)

# %% [markdown]
# ```{glue:figure} order
# :name: fig-reverse-order
#
# Variance lost by Algorithm 1 with the exact denoiser of $\mathcal N(\mu, \frac12)$. Dashed, on the right: the limit {eq}`eq-rate` over $K$. The
# loss falls like $1/K$; noise costs a constant factor.
# ```
#
# ### Any $\eta_s$? Not with means
#
# {eq}`eq-marginalisation` allows every $\eta_s\le\sigma_s$. With means this freedom is gone: DDPM's $\eta_s$ shrinks with the step, and that is why the losses vanish in the
# limit. Take a fixed share $\eta_s = \varrho\,\sigma_s$ instead. Then $h$ does not shrink, and the chain forgets all but its last steps. Near $t = 0$ the recursion
# {eq}`eq-recursion` has $1 - f^2 \approx 2\,(1-\sqrt{1-\varrho^2})\,\sigma^2/v$, so its variance settles at
#
# $$w_\infty = \frac{\eta_s^2}{1-f^2} = v\;\frac{1+\sqrt{1-\varrho^2}}{2} \;<\; v .$$ (eq-fixed-share)

# %%
for share in (0.25, 0.5, 1.0):
    w = chain(*uniform(linear, 50_000), 0.0, noise_share=share)[0]
    limit = 0.5 * (1 + math.sqrt(1 - share**2)) / 2
    what = f"share {share:g}: 50,000 steps reach {w:.4f}, off the limit by"
    figures.check(what, abs(w - limit), below=1e-3)

# %% [markdown]
# More steps do not help. With $\eta_s = \sigma_s$, which the paper's condition permits, half of the variance $\frac12$ is lost.
#
# ### The paper's mixture, the library's sampler
#
# In the paper's mixture $x_2$ is independent of $x_1$, and Gaussian with variance 1/2. So {eq}`eq-recursion` predicts the variance that the library's sampler returns:

# %%
n, rows = 20_000 if full else 2_000, []
for K, eta in ((200, 1.0), (50, 1.0), (200, 0.0), (50, 0.0)) if full else ((50, 1.0),):
    measured = variance_returned(K, eta, torch.Generator().manual_seed(6), n)
    predicted = chain(*at(cosine, np.array(time_grid(cosine, K))), eta)[0]
    error = predicted * math.sqrt(2 / n)
    assert abs(measured - predicted) < 4 * error
    shown = f"{measured:.3f} ± {error:.3f}"
    rows.append({"steps": K, r"$\eta$": eta, "predicted": predicted, "measured": shown})
figures.table(rows)

# %% [markdown]
# ## How it compounds
#
# *Reference: skip on a first reading.* A few per cent of variance look harmless. But iterative tilting samples from its own model, again and again. Suppose the worst case
# first: at each of $N$ rounds a model is fitted, perfectly, to the samples of the last one. If the chain returns the variance $\rho v$ for data of variance $v$, then $N$
# rounds leave $v\,\rho^N$. It is worse than that: by {eq}`eq-rate-linear` the loss is of order $\sqrt v/K$ for small $v$, so narrow laws lose a *larger* share.


# %%
def refits(N, K=200, v=0.5):
    alpha, sigma = at(cosine, np.array(time_grid(cosine, K)))
    for _ in range(N):
        v = chain(alpha, sigma, 1.0, v)[0]
    return v


rho = refits(1) / 0.5
rows = []
for N in (1, 5, 20, 50, 100):
    rows.append({"rounds $N$": N, "variance": refits(N), r"$v\rho^N$": 0.5 * rho**N})
figures.table(rows, floatfmt=(".0f", ".3f", ".3f"))
assert all(row["variance"] < row[r"$v\rho^N$"] for row in rows[1:])

# %% [markdown]
# (200 steps of DDPM on the cosine schedule, from $v = 1/2$.) {ref}`Algorithm 2 <algorithm-2>` is kinder: it does not refit, it *corrects* its teacher. With a constant reward
# $\bar r$, which should do nothing, a tilt of size $\delta = \lambda/N$ moves the teacher by the fraction $\delta\,\bar r$ of the way to a refit. So $N$ tilts amount
# to about $\lambda\bar r$ refits, however large $N$ is; {ref}`the chapter on the algorithm <constant-reward>` derives this and runs it.
#
# ## Try this
#
# - *Predict, then run.* How many steps does DDPM need for the accuracy that DDIM has with 50, for $v = \frac12$? (Hint: the column $K(v - w_K)$ above.)

# %% tags=["hide-cell"]
ddim = 0.5 - chain(*uniform(cosine, 50), 0.0)[0]
needed = next(K for K in range(50, 500) if 0.5 - chain(*uniform(cosine, K), 1.0)[0] <= ddim)
print(f"{needed}. What noise buys is forgetting: it damps errors of the network at large t.")
assert 100 <= needed <= 120  # the ratio of the constants is about 2.2

# %% [markdown]
# - *Implement.* {eq}`eq-lost` says how much variance a step loses. Give it back: add noise of variance $h^2\,\mathrm{Var}(X_0 \mid X_t)$ to each step of `chain`. How
#   many steps does a Gaussian need now?

# %% tags=["hide-cell"]
worst = 0.0
for K in (1, 2, 10):
    for eta in (0.0, 1.0):
        (alpha, sigma), w = uniform(cosine, K), 1.0
        for k in range(K, 0, -1):
            std = eta * sigma[k - 1] * math.sqrt(1 - (alpha[k] * sigma[k - 1] / (alpha[k - 1] * sigma[k])) ** 2)
            old, V = math.sqrt(sigma[k - 1] ** 2 - std**2), alpha[k] ** 2 * 0.5 + sigma[k] ** 2
            f, h = (alpha[k - 1] * alpha[k] * 0.5 + old * sigma[k]) / V, alpha[k - 1] - old * alpha[k] / sigma[k]
            w = f**2 * w + std**2 + h**2 * sigma[k] ** 2 * 0.5 / V  # the one new term
        worst = max(worst, abs(w - 0.5))
figures.check("One step is enough; the variance is right to", worst, below=1e-14)
print("For other data the law of X_0 given X_t is not Gaussian, and depends on x_t.")

# %% [markdown]
# - *Derive, then run.* {eq}`eq-rate` weighs the speed of $\nu = \sigma/\alpha$ along the grid. Which grid loses least with DDIM? (Hint: by Cauchy–Schwarz, the square
#   root of the integrand has to be constant.)

# %% tags=["hide-cell"]
K, v = 2000, 0.5  # nu = sqrt(v) tan(pi t / 2): with variance one, the cosine schedule without its offset
angle = np.linspace(0, math.pi / 2, K + 1)
signal, noise_level = np.cos(angle), math.sqrt(v) * np.sin(angle)
total = signal + noise_level
grids = {"best": (signal / total, noise_level / total), "linear": uniform(linear, K), "cosine": uniform(cosine, K)}
lost = {name: K * (v - chain(*values, 0.0, v)[0]) for name, values in grids.items()}
print("K (v - w_K):", ", ".join(f"{name} {value:.4f}" for name, value in lost.items()))
figures.check("the best grid loses pi^2 v / 4, but for", abs(lost["best"] - math.pi**2 * v / 4), below=1e-2)
assert lost["best"] == min(lost.values())
