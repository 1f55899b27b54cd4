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
# # Forward process and schedules
#
# A diffusion model starts from a process that destroys its data. Section 2.1.1 of the paper defines it in one line. There is nothing to
# learn in it, and for a Gaussian mixture nothing to simulate: the law at every time is known.
#
# **You will see** the paper's mixture melt into noise under two schedules, the closed form of its law against quadrature and against
# samples, what a schedule can change and what it cannot, and why no code should go to $t = 0$ or $t = 1$.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points

# %% tags=["remove-cell"]
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.optimize import brentq
from scipy.stats import kstest, norm

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.rewards import parse_reward
from itlib.schedules import Cosine, Linear, add_noise

torch.set_num_threads(1)
full = profile == "full"

# %% [markdown]
# ## One line
#
# Draw a clean sample $X_0$ and, independently, noise $X_1$. Mix them:
#
# $$X_t = \alpha_t X_0 + \sigma_t X_1, \qquad X_0 \sim p_0, \quad X_1 \sim \mathcal N(0, I_d). \tag{2.1}$$ (eq-2-1)
#
# Here $p_0$ is the law of the data, in $d$ dimensions. The two functions of time are the *schedule*. $\alpha$ falls from 1 to 0 and
# $\sigma$ rises from 0 to 1, so $X_t$ runs from data at $t = 0$ to noise at $t = 1$. Write $p_t$ for its law. Two schedules are in the library:
#
# $$\begin{aligned}
#   \text{cosine:}\quad & \alpha_t = \frac{\cos\theta_t}{\cos\theta_0}, \quad \sigma_t = \sqrt{1-\alpha_t^2}, \quad
#     \theta_t = \frac\pi2\,\frac{t+s}{1+s}, \quad s = 0.008, \\
#   \text{linear:}\quad & \alpha_t = 1-t, \quad \sigma_t = t.
#   \end{aligned}$$ (eq-schedules)
#
# The first is that of {cite:t}`nichol2021improved` and of the paper's experiment. It is *variance preserving* (VP), which
# means $\alpha_t^2+\sigma_t^2 = 1$. The second is that of flow matching {cite}`lipman2023flow`. We check the values at both ends,
# that neither function turns back, and the formula of the cosine.

# %%
schedules = {"cosine": Cosine(), "linear": Linear()}
base = paper_mixture()


def at(schedule, t):
    """alpha and sigma at one time, or at an array of them, in double precision."""
    time = torch.as_tensor(t, dtype=torch.float64)
    alpha, sigma = schedule.alpha(time), schedule.sigma(time)
    return (alpha.numpy(), sigma.numpy()) if time.ndim else (float(alpha), float(sigma))


every_t = np.linspace(0, 1, 2001)
for schedule in schedules.values():
    alpha, sigma = at(schedule, every_t)
    ends = [alpha[0], sigma[0], alpha[-1], sigma[-1]]
    assert np.allclose(ends, [1, 0, 0, 1], rtol=0, atol=1e-15)
    assert (np.diff(alpha) <= 0).all()
    assert (np.diff(sigma) >= -1e-15).all()
alpha, sigma = at(schedules["cosine"], every_t)
assert abs(alpha**2 + sigma**2 - 1).max() < 1e-14
theta = np.pi / 2 * (every_t + 0.008) / 1.008
assert abs(alpha - np.cos(theta) / np.cos(theta[0])).max() < 1e-14

# %% [markdown]
# Here is the process at work. Each point keeps its own $X_0$ and its own $X_1$ all the way.

# %%
n = 1500 if full else 300
generator = torch.Generator().manual_seed(0)
x_0 = base.sample(n, generator)
x_1 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
times = (0.0, 0.25, 0.5, 0.75, 1.0)
clouds = {name: [add_noise(s, x_0, x_1, torch.tensor(t)) for t in times] for name, s in schedules.items()}

# %% tags=["hide-input"]
xs, ys = torch.linspace(-4.6, 4.6, 121, dtype=torch.float64), torch.linspace(-3.4, 3.4, 91, dtype=torch.float64)
plane = torch.cartesian_prod(ys, xs).flip(-1)
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 5, figsize=(7.2, 2.9), sharex=True, sharey=True)
    for row, (name, schedule) in zip(axes, schedules.items(), strict=True):
        for ax, t, cloud in zip(row, times, clouds[name], strict=True):
            log_density = base.noised(schedule, t).log_prob(plane).reshape(len(ys), len(xs))
            figures.samples(
                ax,
                cloud.numpy(),
                density=(xs.numpy(), ys.numpy(), log_density.numpy()),
                color=figures.COLORS["base"],
                title=f"$t = {t:g}$" if schedule is schedules["cosine"] else None,
                limits=(-4.6, 4.6, -3.4, 3.4),
            )
            ax.set(xticks=[-3, 0, 3], yticks=[-3, 0, 3])
        row[0].set_ylabel(name)
figures.show(
    fig,
    "melting",
    "Samples of the two-mode mixture at five times under the cosine and the linear schedule. Two clouds move together and merge "
    "into one round cloud at t = 1; at t = 0.5 the linear schedule's clouds are smaller.",
)

# %% [markdown]
# ```{glue:figure} melting
# :name: fig-forward-melting
#
# The same draws of $(X_0, X_1)$ at five times (points), and the density $p_t$ in closed form (contours); nothing was fitted. Both schedules melt
# two modes into one, each at its own pace. On the way the linear one shrinks the picture.
# ```
#
# Where on the schedule is the noise that counts? Move $t$, and watch for the moment when the two modes become one.

# %% tags=["remove-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6))
    for ax, (name, schedule) in zip(axes, schedules.items(), strict=False):
        alpha, sigma = at(schedule, 0.25)
        density = base.noised(schedule, 0.25).log_prob(plane).reshape(len(ys), len(xs))
        points = alpha * x_0 + sigma * x_1
        figures.samples(
            ax,
            points.numpy(),
            density=(xs.numpy(), ys.numpy(), density.numpy()),
            color=figures.COLORS["base"],
            title=f"{name}, $t = 0.25$",
            limits=(-4.6, 4.6, -3.4, 3.4),
        )
    for i, (name, schedule) in enumerate(schedules.items()):
        for values, line in zip(at(schedule, every_t), ("-", "--"), strict=True):
            axes[2].plot(every_t, values, line, color=figures.SERIES[i], label=name if line == "-" else None)
    axes[2].axvline(0.25, color=figures.INK, linewidth=0.7)
    axes[2].set(xlabel="$t$", title=r"$\alpha_t$ (solid), $\sigma_t$ (dashed)")
    axes[2].legend(fontsize=9)
figures.show(
    fig,
    "noise-level",
    "Samples at t = 0.25 under the cosine and the linear schedule, with contours of their law, and both schedules as functions of t.",
)
figures.explorer("noise", {"mixture": figures.as_model(base)}, "noise-level")

# %% [markdown]
# ```{glue:figure} noise-level
# :name: fig-forward-noise
#
# Where $t$ lies on the schedule, and what $X_t$ looks like there. On the page, choose a schedule and move $t$; the script mixes draws by {eq}`eq-2-1` and
# computes their law {eq}`eq-noised-mixture`.
# ```
#
# ## The kernel, and the law of a noised mixture
#
# Given $X_0 = x_0$, only the noise is random. So the *kernel* is Gaussian:
#
# $$q_{t|0}(x_t \mid x_0) = \mathcal N(x_t;\ \alpha_t x_0,\ \sigma_t^2 I_d). \tag{2.2}$$ (eq-2-2)
#
# The marginal is its average over the data, $p_t(x_t) = \int q_{t|0}(x_t \mid x_0)\,p_0(x_0)\,dx_0$. For a mixture, each component is
# scaled by $\alpha_t$ and blurred by $\sigma_t$, and stays Gaussian:
#
# $$p_t = \sum_i \omega_i\, \mathcal N\big(\alpha_t\mu_i,\ \alpha_t^2\Sigma_i + \sigma_t^2 I_d\big).$$ (eq-noised-mixture)
#
# That is {py:meth}`base.noised(schedule, t) <itlib.gaussian_mixture.GaussianMixture.noised>`, and we check it twice. The paper's mixture is
# symmetric, which would hide a wrong sign; so the checks use a lopsided one, the base tilted by the reward `unequal` of
# {doc}`s4_1_gaussian_tilts`.
#
# *By quadrature.* Put {eq}`eq-2-2` into the integral and add it up on a fine grid. For smooth integrands that vanish at the edges this
# is exact up to rounding.

# %%
lopsided = base.tilted(parse_reward("unequal"))
axis = torch.linspace(-9, 9, 401 if full else 201, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)  # clean points x_0
log_cell = 2 * float((axis[1] - axis[0]).log())
log_prior = lopsided.log_prob(grid) + log_cell


def log_kernel(x_t, x_0, schedule, t):
    """log q_{t|0}(x_t | x_0), equation (2.2) in two dimensions."""
    alpha, sigma = at(schedule, t)
    return -0.5 * ((x_t - alpha * x_0) / sigma).square().sum(-1) - np.log(2 * np.pi * sigma**2)


# %% tags=["hide-input"]
generator, worst = torch.Generator().manual_seed(1), 0.0
for schedule in schedules.values():
    for t in (0.2, 0.5, 0.8, 0.99):
        p_t = lopsided.noised(schedule, t)
        for x in p_t.sample(4, generator):
            integral = torch.logsumexp(log_prior + log_kernel(x, grid, schedule, t), 0)
            worst = max(worst, float((integral - p_t.log_prob(x[None])[0]).abs()))
assert worst < 1e-10
display(Markdown(f"Largest difference of the two log-densities: {worst:.0e}."))

# %% [markdown]
# *By samples.* Noise exact samples by {eq}`eq-2-1` and compare three projections with the distribution function of {eq}`eq-noised-mixture`,
# by Kolmogorov and Smirnov's test. Do the same for the kernel, from one fixed $x_0$. The seed is fixed; with a new one, all the tests
# together would raise a false alarm once in a thousand times.

# %% tags=["hide-input"]
n = 20_000 if full else 5_000
directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)


def projected_cdf(mixture, direction):
    """Distribution function of <direction, X> for X from a mixture."""
    centre = (mixture.means @ direction).numpy()
    width = torch.einsum("d,kde,e->k", direction, mixture.covariances, direction).sqrt().numpy()
    return lambda x: norm.cdf((np.asarray(x)[:, None] - centre) / width) @ mixture.weights.numpy()


p_values = []
point = torch.tensor([1.5, -1.0], dtype=torch.float64)
for schedule in schedules.values():
    for t in (0.1, 0.5, 0.9):
        x_0 = lopsided.sample(n, generator)
        x_1 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        time = torch.tensor(t, dtype=torch.float64)
        x_t, p_t = add_noise(schedule, x_0, x_1, time), lopsided.noised(schedule, t)
        p_values += [kstest((x_t @ u).numpy(), projected_cdf(p_t, u), method="asymp").pvalue for u in directions]
        alpha, sigma = at(schedule, t)
        standard = (add_noise(schedule, point.expand(n, 2), x_1, time) - alpha * point) / sigma  # standard normal by (2.2)
        p_values += [kstest(z.numpy(), norm.cdf, method="asymp").pvalue for z in standard.T]
assert min(p_values) > 1e-3 / len(p_values)
display(Markdown(f"Smallest of {len(p_values)} p-values: {min(p_values):.3f}; the alarm is at {1e-3 / len(p_values):.0e}."))

# %% [markdown]
# ## What a schedule can change
#
# How much of the data is left at time $t$? Dividing {eq}`eq-2-1` by $\alpha_t$ shows it: $X_t/\alpha_t = X_0 + (\sigma_t/\alpha_t)\,X_1$.
# Knowing $X_t$ is knowing $X_0$ up to noise of size $\sigma_t/\alpha_t$. All that counts is the *signal-to-noise ratio*
#
# $$\mathrm{SNR}_t = \frac{\alpha_t^2}{\sigma_t^2} .$$ (eq-snr)
#
# A schedule decides *when* a ratio is reached, and in which units $X_t$ is written. It decides nothing else.
#
# An example. Along the axis that joins its modes, the paper's mixture is made of two equal Gaussians at $\pm 2\alpha_t$ with variance
# $v_t = \alpha_t^2/2 + \sigma_t^2$. Their sum has two peaks as long as $2\alpha_t > \sqrt{v_t}$. So the modes merge when
# $4\alpha_t^2 = \alpha_t^2/2+\sigma_t^2$, at
#
# $$\mathrm{SNR} = \tfrac27 \quad\text{for every schedule.}$$ (eq-merge)
#
# To check, use the slope at the origin of the score $\nabla\log p_t$: positive in a valley of the density, negative on a peak.

# %%
h = 1e-4
across = torch.tensor([[-h, 0.0], [h, 0.0]], dtype=torch.float64)


def slope_at_origin(t, schedule):
    """d/dx_1 of the first component of the score of p_t, at the origin."""
    time = torch.tensor(t, dtype=torch.float64)
    score = base.score(across, time, schedule)[:, 0]
    return float(score[1] - score[0]) / (2 * h)


merge = {}
for name, schedule in schedules.items():
    merge[name] = brentq(slope_at_origin, 0.05, 0.95, args=(schedule,), xtol=1e-13)

# %% tags=["hide-input"]
rows = []
for name, schedule in schedules.items():
    alpha, sigma = at(schedule, merge[name])
    assert abs(alpha**2 / sigma**2 - 2 / 7) < 1e-6  # central differences: error of order h^2
    rows.append(
        {"schedule": name, "the modes merge at $t$ =": f"{merge[name]:.4f}", "SNR there": f"{alpha**2 / sigma**2:.6f}"}
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown(f"By {{eq}}`eq-merge` the ratio is {2 / 7:.6f}."))

# %% tags=["hide-input"]
inner = np.linspace(0.001, 0.999, 999)
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    for i, (name, schedule) in enumerate(schedules.items()):
        alpha, sigma = at(schedule, inner)
        look = {"color": figures.SERIES[i], "marker": figures.MARKERS[i], "markersize": 4, "markevery": (60 + 60 * i, 120)}
        left.plot(inner, alpha, label=name, **look)
        left.plot(inner, sigma, linestyle="--", **look)
        right.plot(inner, 2 * np.log(alpha / sigma), color=figures.SERIES[i], linestyle=figures.LINES[i])
        right.plot(merge[name], np.log(2 / 7), figures.MARKERS[i], color=figures.SERIES[i], markersize=6)
    right.axhline(np.log(2 / 7), color=figures.INK, linewidth=0.7, linestyle=":")
    right.text(0.03, np.log(2 / 7) - 0.4, "modes merge", va="top", fontsize=10)
    left.set(xlabel="$t$", title=r"$\alpha_t$ (solid), $\sigma_t$ (dashed)")
    right.set(xlabel="$t$", title="log-SNR")
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
figures.show(
    fig,
    "schedules",
    "Left: alpha falls and sigma rises, as quarter waves for the cosine schedule and straight lines for the linear one. Right: "
    "log-SNR falls from above 10 to below minus 10; both curves are steep at both ends.",
)

# %% [markdown]
# ```{glue:figure} schedules
# :name: fig-forward-schedules
#
# Two schedules. Left: $\alpha_t$ (solid) and $\sigma_t$ (dashed). Right: the logarithm of {eq}`eq-snr`. The markers are the times
# at which the modes merge, found from the score: the times differ, the ratio does not.
# ```
#
# ## The two ends
#
# Both ends of the time axis hold a division by zero.
#
# - At $t = 0$ the kernel {eq}`eq-2-2` is a point mass. Its score is $-X_1/\sigma_t$, of mean square $d/\sigma_t^2$. It is what a network
#   regresses on ({doc}`s2_1_3_score`).
# - At $t = 1$ nothing is left of the data. To recover $X_0 = (X_t - \sigma_t X_1)/\alpha_t$ from a guess of the noise, one divides by
#   $\alpha_t$, so an error of the guess is multiplied by $\sigma_t/\alpha_t$ ({doc}`s2_1_2_reverse`).
#
# So the library keeps to $t_{\min} \le t \le t_{\max}$, with $t_{\min} = 0.001$ and $t_{\max} = 0.999$, wherever it divides. What does the
# upper cut cost? A sampler that starts at $t_{\max}$ from $\mathcal N(0, I)$ starts from the wrong law. The mistake is the
# Kullback–Leibler divergence $\mathrm{KL}(p_{t_{\max}}\,\|\,\mathcal N(0, I))$, here by quadrature. There is also a bound that needs no more
# of the data than $\mathbb E\|X_0\|^2$. Averaging over $X_0$ can only lower a divergence, so
#
# $$\begin{aligned}
#   \mathrm{KL}\big(p_t \,\|\, \mathcal N(0, I)\big) & \le \mathbb E\,\mathrm{KL}\big(q_{t|0}(\cdot \mid X_0) \,\|\, \mathcal N(0, I)\big) \\
#   & = \tfrac12\big[\alpha_t^2\, \mathbb E\|X_0\|^2 + d\,(\sigma_t^2 - 1 - \log\sigma_t^2)\big].
#   \end{aligned}$$ (eq-start-bound)
#
# To tell the two laws apart, a test needs a number of draws of the order of $1/\mathrm{KL}$.

# %% tags=["hide-input"]
normal = torch.distributions.Normal(0.0, 1.0)
log_noise = normal.log_prob(grid).sum(-1)
rows = []
for name, schedule in schedules.items():
    assert (schedule.t_min, schedule.t_max) == (0.001, 0.999)  # what the text says
    log_p = base.noised(schedule, schedule.t_max).log_prob(grid)
    ratio = log_p - log_noise
    kl = float(
        (log_p.exp() * (ratio + torch.expm1(-ratio))).sum() * np.exp(log_cell)
    )  # p log(p/q) - p + q, free of cancellation
    alpha, sigma = at(schedule, schedule.t_max)
    bound = 0.5 * (alpha**2 * (4 + 2 * 0.5) + 2 * (sigma**2 - 1 - 2 * np.log(sigma)))
    assert 0 < kl < bound
    rows.append(
        {
            "schedule": name,
            r"$1/\sigma_t$ at $t_{\min}$": f"{1 / at(schedule, schedule.t_min)[1]:.0f}",
            r"$\sigma_t/\alpha_t$ at $t_{\max}$": f"{sigma / alpha:.0f}",
            r"KL at $t_{\max}$": f"{kl:.1e}",
            "bound": f"{bound:.1e}",
            "1 / KL": f"{1 / kl:.0e}",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
assert float(rows[0][r"KL at $t_{\max}$"]) < 1e-9  # a thousand million draws

# %% [markdown]
# No experiment in this book draws enough to notice the cut of the cosine schedule. That of the linear one is coarser, because $\sigma_t$ is
# still short of 1 there: the noise has variance $t_{\max}^2$ instead of 1.
#
# Near $t = 0$ there is one more difficulty. Written as $\sqrt{1-\alpha_t^2}$, the cosine's $\sigma_t$ subtracts two numbers that are almost equal.
# The library uses an equal expression without that difference, $\sigma_t^2 = \sin(\theta_t-\theta_0)\sin(\theta_t+\theta_0)/\cos^2\theta_0$.
#
# ## Try this
#
# - Take a time of the cosine schedule, and the time at which the *linear* schedule has the same SNR. Ask the exact denoiser of each, the
#   conditional mean of $X_1$, about the same point in its own units. How far apart are the answers?

# %% tags=["hide-cell"]
cosine, linear = schedules.values()
alpha, sigma = at(cosine, 0.4)
t = float(sigma / (alpha + sigma))  # of the linear schedule: (1 - t) / t = alpha / sigma
x = base.noised(cosine, 0.4).sample(1000, torch.Generator().manual_seed(2))
guess = ExactNoisePredictor(base, cosine)(x, torch.tensor(0.4, dtype=torch.float64))
other = ExactNoisePredictor(base, linear)(x * float((1 - t) / alpha), torch.tensor(t, dtype=torch.float64))
gap = float((guess - other).abs().max())
assert gap < 1e-12
display(
    Markdown(
        f"Not at all: {gap:.0e}. One network, told the SNR instead of $t$ and given its input in fixed units, could serve every schedule. "
        "What a schedule does decide is where training draws its times and where a sampler puts its steps."
    )
)

# %% [markdown]
# - "Variance preserving": is the variance of the paper's mixture preserved?

# %% tags=["hide-cell"]
rows = []
for t in (0.0, 0.25, 0.5, 0.75, 1.0):
    row = {"$t$": f"{t:g}"}
    for name, schedule in schedules.items():
        p_t = base.noised(schedule, t)
        variance = torch.einsum("k,kd->d", p_t.weights, p_t.means**2 + p_t.covariances.diagonal(dim1=1, dim2=2))
        alpha, sigma = at(schedule, t)
        assert np.allclose(variance.numpy(), alpha**2 * np.array([4.5, 0.5]) + sigma**2)
        row |= {f"{name}, $x_1$": f"{float(variance[0]):.2f}", f"{name}, $x_2$": f"{float(variance[1]):.2f}"}
    rows.append(row)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        r"No. The variance is $\alpha_t^2\,\mathrm{Var}(X_0) + \sigma_t^2$: a VP schedule preserves a variance of one, as the paper says, and pulls every "
        "other one toward it. Hence the advice to scale data first. The linear schedule preserves none: even from one it "
        "dips to a half on the way."
    )
)

# %% [markdown]
# - Compute the cosine's $\sigma_t$ as $\sqrt{1-\alpha_t^2}$ in single precision, at $t = 10^{-3}$, $10^{-5}$ and $10^{-7}$.

# %% tags=["hide-cell"]
rows = []
for t in (1e-3, 1e-5, 1e-7):
    exact = float(cosine.sigma(torch.tensor(t, dtype=torch.float64)))
    single = torch.tensor(t, dtype=torch.float32)
    ours, naive = float(cosine.sigma(single)), float((1 - cosine.alpha(single) ** 2).sqrt())
    assert abs(ours / exact - 1) < 1e-6
    rows.append(
        {
            "$t$": f"{t:.0e}",
            "relative error, naive": f"{abs(naive / exact - 1):.0e}",
            "library": f"{abs(ours / exact - 1):.0e}",
        }
    )
assert abs(naive / exact - 1) > 0.5
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        "At the last time the naive form has lost every digit. A score, which divides by it, would be wrong or infinite."
    )
)
