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
# # 2.1 Diffusion, there and back
#
# A diffusion model destroys its data with noise, step by step, and learns one function that undoes it. This page is what you need
# of that before {doc}`s3_1_tilted_score`; it follows Section 2.1.1 of the paper and looks ahead to 2.1.2 and 2.1.3.
#
# **You will see** the paper's two Gaussians melt into noise, and their law at every time in closed form; the one function that
# leads back, and samples that follow it; and what a schedule can change.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points

# %%
import numpy as np
import torch

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.rewards import parse_reward
from itlib.sampling import reverse_process
from itlib.schedules import Cosine, Linear, add_noise

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"

# %% [markdown]
# ## From data to noise
#
# Draw a clean sample $X_0$ and, independently, noise $X_1$. Mix them:
#
# $$X_t = \alpha_t X_0 + \sigma_t X_1, \qquad X_0 \sim p_0, \quad X_1 \sim \mathcal N(0, I_d). \tag{2.1}$$ (eq-2-1)
#
# Here $p_0$ is the law of the data, in $d$ dimensions. The two functions of time are the *schedule*: $\alpha$ falls from 1 to 0,
# $\sigma$ rises from 0 to 1, so $X_t$ runs from data at $t = 0$ to noise at $t = 1$. Write $p_t$ for its law. The library has two
# schedules:
#
# $$\begin{aligned}
#   \text{cosine:}\quad & \alpha_t = \frac{\cos\theta_t}{\cos\theta_0}, \quad \sigma_t = \sqrt{1-\alpha_t^2}, \quad
#     \theta_t = \frac\pi2\,\frac{t+s}{1+s}, \quad s = 0.008, \\
#   \text{linear:}\quad & \alpha_t = 1-t, \quad \sigma_t = t.
#   \end{aligned}$$ (eq-schedules)
#
# The paper's experiment uses the cosine {cite}`nichol2021improved`. It is *variance preserving* (VP): $\alpha_t^2+\sigma_t^2 = 1$. The
# linear one is that of flow matching {cite}`lipman2023flow`.

# %%
schedules = {"cosine": Cosine(), "linear": Linear()}
base = paper_mixture()  # two Gaussians of variance 1/2, at (-2, 0) and (2, 0)
n = 1500 if full else 300
generator = torch.Generator().manual_seed(0)
x_0 = base.sample(n, generator)
x_1 = torch.randn(n, 2, generator=generator)


# %% tags=["hide-input"]
def at(schedule, t):
    """alpha and sigma at one time, or at an array of them, in double precision."""
    time = torch.as_tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    return (alpha.numpy(), sigma.numpy()) if time.ndim else (float(alpha), float(sigma))


every_t = np.linspace(0, 1, 2001)
for schedule in schedules.values():
    alpha, sigma = at(schedule, every_t)
    assert np.allclose([alpha[0], sigma[0], alpha[-1], sigma[-1]], [1, 0, 0, 1], rtol=0, atol=1e-15)
    assert (np.diff(alpha) <= 0).all()
    assert (np.diff(sigma) >= -1e-15).all()
alpha, sigma = at(schedules["cosine"], every_t)
theta = np.pi / 2 * (every_t + 0.008) / 1.008
gap = max(abs(alpha**2 + sigma**2 - 1).max(), abs(alpha - np.cos(theta) / np.cos(theta[0])).max())
figures.check("the library's cosine agrees with the formula", gap, below=1e-14)

# %% tags=["hide-input"]
xs, ys = torch.linspace(-4.6, 4.6, 121), torch.linspace(-3.4, 3.4, 91)
plane = torch.cartesian_prod(ys, xs).flip(-1)


def draw(ax, points, schedule, t, title):
    log_density = base.noised(schedule, t).log_prob(plane).reshape(len(ys), len(xs))
    density = (xs.numpy(), ys.numpy(), log_density.numpy())
    limits = (-4.6, 4.6, -3.4, 3.4)
    figures.samples(ax, points.numpy(), density=density, color=figures.COLORS["base"], title=title, limits=limits)


# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
    for ax, (name, schedule) in zip(axes, schedules.items(), strict=False):
        points = add_noise(schedule, x_0, x_1, torch.tensor(0.25))
        draw(ax, points, schedule, 0.25, f"{name}, $t = 0.25$")
        ax.set(xlabel="$x_1$", ylabel="$x_2$")
    for i, schedule in enumerate(schedules.values()):
        for values, line in zip(at(schedule, every_t), ("-", "--"), strict=True):
            axes[2].plot(every_t, values, line, color=figures.SERIES[i], label=list(schedules)[i] if line == "-" else None)
    axes[2].axvline(0.25, color=figures.INK, linewidth=0.7)
    axes[2].set(xlabel="$t$", title=r"$\alpha_t$ (solid), $\sigma_t$ (dashed)")
    axes[2].legend(fontsize=9, loc="lower center")
text = "Samples at t = 0.25 under the cosine and the linear schedule, with contours of their law, and both schedules as functions of t."
figures.show(fig, "noise-level", text)
figures.explorer("noise", {"mixture": figures.as_model(base)}, "noise-level")

# %% [markdown]
# ```{glue:figure} noise-level
# :name: fig-forward-noise
#
# What $X_t$ looks like (points) and its exact law (contours), and where $t$ lies on the schedule. On the page, move $t$ and watch
# for the moment when the two modes become one.
# ```
#
# ## The law at every time
#
# Given $X_0 = x_0$, only the noise is random, so the *kernel* is Gaussian:
#
# $$q_{t|0}(x_t \mid x_0) = \mathcal N(x_t;\ \alpha_t x_0,\ \sigma_t^2 I_d). \tag{2.2}$$ (eq-2-2)
#
# Averaged over the data it gives the marginal, $p_t(x_t) = \int q_{t|0}(x_t \mid x_0)\,p_0(x_0)\,dx_0$. If $p_0$ is a mixture of
# Gaussians, each of them is scaled by $\alpha_t$ and blurred by $\sigma_t$, and stays Gaussian:
#
# $$p_t = \sum_i \omega_i\, \mathcal N\big(\alpha_t\mu_i,\ \alpha_t^2\Sigma_i + \sigma_t^2 I_d\big).$$ (eq-noised-mixture)
#
# That is {py:meth}`base.noised(schedule, t) <itlib.gaussian_mixture.GaussianMixture.noised>`. To check it, put {eq}`eq-2-2` into the
# integral and sum over a fine grid. The paper's mixture is symmetric, which would hide a wrong sign, so we take a lopsided one.

# %%
lopsided = base.tilted(parse_reward("unequal"))
axis = torch.linspace(-9, 9, 401 if full else 201)
grid = torch.cartesian_prod(axis, axis)  # clean points x_0
log_prior = lopsided.log_prob(grid) + 2 * (axis[1] - axis[0]).log()


def log_kernel(x_t, x_0, alpha, sigma):
    """log q_{t|0}(x_t | x_0), equation (2.2) in two dimensions."""
    log_normaliser = np.log(2 * np.pi * sigma**2)
    return -0.5 * ((x_t - alpha * x_0) / sigma).square().sum(-1) - log_normaliser


# %%
worst = 0.0
for schedule in schedules.values():
    for t in (0.2, 0.5, 0.8, 0.99):
        p_t = lopsided.noised(schedule, t)
        for x in p_t.sample(4, generator):
            kernel = log_kernel(x, grid, *at(schedule, t))
            integral = torch.logsumexp(log_prior + kernel, 0)
            worst = max(worst, float((integral - p_t.log_prob(x[None])).abs()))
figures.check("log p_t: closed form and integral agree", worst, below=1e-10)

# %% [markdown]
# ## The way back
#
# A noisy point $x_t$ may have come from many clean ones. The best guess of the noise in it is the conditional mean
# $\hat x_1(x_t, t) = \mathbb E[X_1 \mid X_t = x_t]$, and this guess is, up to a factor, the *score*, the direction in which $\log p_t$
# rises fastest {eq}`eq-2-8`:
#
# $$\begin{aligned}
#   s(x_t, t) = \nabla_{x_t}\log p_t(x_t) &= \mathbb E\big[\nabla_{x_t}\log q_{t|0}(x_t \mid X_0) \,\big|\, X_t = x_t\big] \\
#   &= -\frac{\hat x_1(x_t, t)}{\sigma_t}.
#   \end{aligned}$$
#
# A conditional mean minimises a squared error. So a network learns $\hat x_1$ by regression: draw $X_0$, $X_1$ and $t$, show it
# $X_t$, ask for $X_1$ {eq}`eq-2-10`. For a mixture no network is needed; `ExactNoisePredictor` is the closed form. Autograd agrees:

# %%
cosine, linear = schedules["cosine"], schedules["linear"]
exact = ExactNoisePredictor(lopsided, cosine)
p_t, time = lopsided.noised(cosine, 0.5), torch.tensor(0.5)
x = p_t.sample(1000, generator).requires_grad_()
(score,) = torch.autograd.grad(p_t.log_prob(x).sum(), x)
gap = (score + exact(x.detach(), time) / cosine.sigma(time)).abs().max()
figures.check("slope of log p_t and -x1_hat / sigma agree", float(gap), below=1e-12)

# %% [markdown]
# To sample, start from noise at $t$ near 1 and step down. From $t$ to $s < t$, take the noise out that the model sees, and
# put less of it back, part of it fresh ({ref}`Algorithm 1 <algorithm-1>`, {doc}`s2_1_2_reverse`):
#
# $$x_s = \alpha_s\,\hat x_0 + \sqrt{\sigma_s^2 - \eta_s^2}\;\hat x_1 + \eta_s z, \qquad \hat x_0 = \frac{x_t - \sigma_t\hat x_1}{\alpha_t},$$
#
# with a standard normal $z$.

# %%
start = torch.randn(n, 2, generator=generator)
exact = ExactNoisePredictor(base, cosine)
chain = list(reverse_process(exact, cosine, start, steps=200, generator=generator))
end = chain[-1][1]
spread = end[:, 1].std() * (2 * n) ** -0.5  # standard error of what follows
missed = float((end[:, 1].std() - 0.5**0.5).abs() / spread)
figures.check("spread of x_2, in standard errors from exact", missed, below=4)

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.5), sharex=True, sharey=True)
    tails = torch.cartesian_prod(torch.linspace(-4, 4, 7), torch.linspace(-2.7, 2.7, 5))
    for ax, wanted in zip(axes, (0.9, 0.4, 0.0), strict=True):
        t, points = min(chain, key=lambda state: abs(state[0] - wanted))
        draw(ax, points[:500], cosine, t, f"$t = {wanted:g}$")
        if t > 0:
            ways = base.score(tails, torch.tensor(t), cosine)
            scale = float(ways.norm(dim=1).max()) / 1.6
            ax.quiver(
                *tails.T, *ways.T, color=figures.COLORS["learned"], width=0.008, angles="xy", scale_units="xy", scale=scale
            )
        ax.set(xticks=[-3, 0, 3], yticks=[-3, 0, 3], xlabel="$x_1$")
    axes[0].set_ylabel("$x_2$")
text = "Samples at three times of the way back: one round cloud splits in two as t falls. Arrows, the score, lead toward the modes."
figures.show(fig, "way-back", text)

# %% [markdown]
# ```{glue:figure} way-back
# :name: fig-forward-way-back
#
# The way back with the exact $\hat x_1$: samples after 20, 120 and all 200 steps, contours of the exact $p_t$, and the score (arrows, each
# panel with a scale of its own). Nothing was learned; a network has to replace one function.
# (With 200 steps the samples are a little too narrow: {doc}`s2_1_2_reverse` says by how much.)
# ```
#
# **This is where tilting enters.** To draw from another law, it is enough to change $\hat x_1$. {doc}`s3_1_tilted_score` says how it
# has to change when the law is multiplied by $e^{\lambda r}$.
#
# ## What a schedule can change
#
# Divide {eq}`eq-2-1` by $\alpha_t$: $X_t/\alpha_t = X_0 + (\sigma_t/\alpha_t)\,X_1$. To know $X_t$ is to know $X_0$ up to noise of size
# $\sigma_t/\alpha_t$. So a schedule decides *when* a *signal-to-noise ratio* is reached, and in which units $X_t$ is written; nothing else.
#
# $$\mathrm{SNR}_t = \frac{\alpha_t^2}{\sigma_t^2}$$ (eq-snr)
#
# For example, two equal Gaussians at $\pm 2\alpha_t$ with variance $v_t = \alpha_t^2/2 + \sigma_t^2$ have two peaks as long as
# $2\alpha_t > \sqrt{v_t}$. So the modes of the paper's mixture merge when $4\alpha_t^2 = \alpha_t^2/2+\sigma_t^2$; the score
# agrees:
#
# $$\mathrm{SNR} = \tfrac27 \quad\text{for every schedule.}$$ (eq-merge)

# %%
rows, times = [], torch.from_numpy(every_t[1:-1])
near = torch.tensor([[1e-4, 0.0]]).expand(len(times), 2)  # right of the middle
for name, schedule in schedules.items():
    push = base.score(near, times, schedule)[:, 0]  # outward: a valley
    merged = float(times[push < 0][0])
    alpha, sigma = at(schedule, merged)
    ratio = (alpha / sigma) ** 2
    rows.append({"schedule": name, "modes merge at $t$": merged, "SNR": ratio})
    assert abs(ratio - 2 / 7) < 0.002  # the grid's spacing
figures.table(rows, floatfmt=".3f")

# %% [markdown]
# **The two ends.** At $t = 0$ a score divides by $\sigma_t = 0$; at $t = 1$ a clean point divides by $\alpha_t = 0$. So the library keeps to
# $0.001 \le t \le 0.999$ wherever it divides. The way back then starts from $\mathcal N(0, I)$ instead of $p_{0.999}$. How wrong is that?

# %%
assert (cosine.t_min, cosine.t_max) == (0.001, 0.999)
log_p = base.noised(cosine, cosine.t_max).log_prob(grid)
ratio = log_p - torch.distributions.Normal(0.0, 1.0).log_prob(grid).sum(-1)
integrand = log_p.exp() * (ratio + torch.expm1(-ratio))  # p log(p/q) - p + q
kl = float(integrand.sum() * (axis[1] - axis[0]) ** 2)
figures.check("KL divergence of p_0.999 from N(0, I)", kl, below=1e-9)

# %% [markdown]
# A test that is to tell the two laws apart needs about one over this number of draws: more than a thousand million.
#
# ## Try this
#
# - *Predict, then run.* Take $t = 0.4$ on the cosine schedule, and the time of the same SNR on the linear one. Show the exact
#   $\hat x_1$ of each the same point, in its own units. How far apart are the answers? (Hint: which $X_0$ and $X_1$ does each see?)

# %% tags=["hide-cell"]
alpha, sigma = at(cosine, 0.4)
t = sigma / (alpha + sigma)  # of the linear schedule: (1 - t) / t = alpha / sigma
x = base.noised(cosine, 0.4).sample(1000, generator)
guess = exact(x, torch.tensor(0.4))
other = ExactNoisePredictor(base, linear)(x * (1 - t) / alpha, torch.tensor(t))
figures.check("The same answers. Largest gap", float((guess - other).abs().max()), below=1e-12)

# %% [markdown]
# - *Predict, then run.* A "variance preserving" schedule: does it preserve the variance of the paper's mixture, 4.5 along $x_1$ and
#   0.5 along $x_2$?

# %% tags=["hide-cell"]
rows = []
for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    p_t, (alpha, sigma) = base.noised(cosine, t), at(cosine, t)
    second_moment = p_t.means**2 + p_t.covariances.diagonal(dim1=1, dim2=2)
    variance = (p_t.weights @ second_moment).numpy()
    assert np.allclose(variance, alpha**2 * np.array([4.5, 0.5]) + sigma**2)
    rows.append({"$t$": t, "along $x_1$": variance[0], "along $x_2$": variance[1]})
figures.table(rows)
print("No: a variance of one is preserved, and every other one is pulled toward one.")

# %% [markdown]
# - *Implement.* In single precision $\sqrt{1-\alpha_t^2}$ of the cosine loses all its digits near $t = 0$. Write $\sigma_t$ without that difference. (Hint:
#   $\cos^2 a - \cos^2 b = \sin(b - a)\sin(b + a)$.)

# %% tags=["hide-cell"]
t = torch.tensor(1e-7, dtype=torch.float32)
turn = torch.pi / 2 * t / 1.008  # theta_t - theta_0
theta_0 = torch.pi / 2 * 0.008 / 1.008
own = float((turn.sin() * (turn + 2 * theta_0).sin()).sqrt() / np.cos(theta_0))
right = at(cosine, 1e-7)[1]
naive = float((1 - cosine.alpha(t) ** 2).sqrt())
figures.check("sin(theta_t - theta_0) sin(theta_t + theta_0): relative error", abs(own / right - 1), below=1e-6)
print(f"1 - alpha^2: relative error {abs(naive / right - 1):.0%}")
