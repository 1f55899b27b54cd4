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
# # Where do the rivals stop?
#
# Many methods say that they aim at the tilt {eq}`eq-2-14`. Give each of them unlimited samples, a network that can represent anything and all the time that it wants, and look where it
# stops. If that is not the tilt, no budget will mend it.
#
# **You will see** that three recent methods that look different (RAM, DiffusionNFT, advantage-weighted matching) stop at the same place, which is not the tilt; that Flow-GRPO and DPOK stop exactly
# halfway to the tilt of twice the strength; how far off both are; and which methods have the tilt as their fixed point.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer strengths and samples

# %% tags=["remove-cell"]
import math

import numpy as np
import torch

from itlib import figures
from itlib.baselines.guidance import exact_value
from itlib.baselines.soft_value import decode
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.rewards import QuadraticReward
from itlib.sampling import sample
from itlib.schedules import Cosine

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"

# %% [markdown]
# ## Three losses, one equation
#
# All three draw $X_0$ from the current model, noise it as in pretraining, and regress. Let $z$ be the noise, $\varepsilon_b$ the base, sg a stopped gradient and $A = (r-\bar r)/\mathrm{std}(r)$ the
# standardised reward.
#
# - RAM {cite:p}`bergmeister2026reinforce` regresses on $\mathrm{sg}[\varepsilon_b + \lambda\, r\,(z - \varepsilon_\theta)]$: line 11 of [Algorithm 2](algorithm-2) with the whole strength in one step, and the
#   base for ever in the place of the teacher.
# - Advantage-weighted matching {cite:p}`xue2025advantage` descends $A\,\|\varepsilon_\theta - z\|^2 + \nu\,\|\varepsilon_\theta - \varepsilon_b\|^2$.
# - DiffusionNFT {cite:p}`zheng2025diffusionnft` fits a good mixture and a bad one of student and old model. Its loss is quadratic in $\varepsilon_\theta$, and completing the square leaves
#   an explicit step of size $1/(5\beta\,\mathrm{std}(r))$ from the old model and a pull of weight $\nu$ to the base.
#
# Set each gradient to zero. Up to a factor, all three stop where
#
# $$\varepsilon_\theta - \varepsilon_b = \lambda\,\mathbb E_\theta\big[(r - c)(z - \varepsilon_\theta)\mid x_t\big], \qquad \lambda = \frac{1}{\mu\,\mathrm{std}_\theta(r)} \text{ for the last two},$$ (eq-fixed-endpoint)
#
# sample by sample the same pull: a test of the library holds them together to rounding. In terms of the clean sample, and if the model is the score of what it draws, it reads
#
# $$\hat x_0^\theta = \hat x_0^b + \lambda\,\mathrm{Cov}_\theta(X_0, r \mid x_t).$$ (eq-fixed-covariance)
#
# The tilt is not that. By (3.8), $\hat x_0^{\lambda r} = \hat x_0^b + \int_0^\lambda \mathrm{Cov}_{\mu}(X_0, r\mid x_t)\,d\mu$, with the covariance under the tilt of strength $\mu$. The integral over
# all strengths has become $\lambda$ times its integrand at the end. The two agree if the covariance does not change on the way, as for a Gaussian base and a linear reward, and RAM's paper says so. Else
# the difference is $\tfrac{\lambda^2}{2}\mu_3 + O(\lambda^3)$, with $\mu_3$ the third cumulant of $(X_0, r, r)$ given $x_t$. Small tilts are what Algorithm 2 spends to follow the integral.
#
# Without the penalty ($\mu = 0$) there is no such place: every round adds a strength of $1/\mathrm{std}(r)$ or so, and the rounds end at the reward's maximum, like DDPO and DRaFT.
#
# ## Flow-GRPO and DPOK stop halfway to twice the strength
#
# Flow-GRPO {cite:p}`liu2025flowgrpo` is a policy gradient with group-normalised rewards and a KL to the base at every step, weighted by $\beta$; DPOK is the same with a learned baseline. Both forget that
# an early step changes the KL of later ones. Per step, the expected gradient vanishes where the control is $u = g\nabla Y$ with $Y = \lambda\,\mathbb E_\theta[r\mid x_t]$ and $\lambda = 1/(\beta\,\mathrm{std}(r))$ (for DPOK
# $\lambda$ itself). That expectation is taken under the very control: along the sampler, with drift $b$ and noise $g$,
#
# $$\partial_\tau Y + b\cdot\nabla Y + g\,u\cdot\nabla Y + \tfrac{g^2}{2}\Delta Y = 0 \quad\Longrightarrow\quad \partial_\tau Y + b\cdot\nabla Y + g^2\|\nabla Y\|^2 + \tfrac{g^2}{2}\Delta Y = 0 .$$
#
# The logarithm $V$ of Doob's $h$ solves the same equation with $\tfrac{g^2}{2}\|\nabla V\|^2$. So $2Y$ solves that of $V$, with twice the reward at the end: $2Y = \log\mathbb E_b[e^{2\lambda r}\mid x_t]$, and
#
# $$s_\theta = s_b + \nabla Y = \tfrac12\big(s_b + s^{2\lambda r}\big).$$ (eq-fixed-halfway)
#
# The fixed point is the mean of the base's score and that of the tilt of *twice* the strength. It is the tilt if scores are linear in the strength, too far by the same $\tfrac{\lambda^2}{2}\mu_3$ to second
# order else, and nowhere if the doubled tilt cannot be normalised. DPOK with future KL, which takes the later KL off the reward, gets $\tfrac{g^2}{2}$ and the tilt.
#
# ## In numbers
#
# One dimension is enough, and lets us write expectations as sums. The model is a table of $\hat x_0$ over angles and places ($\alpha = \cos\varphi$, $\sigma = \sin\varphi$). It is drawn by the probability flow from 221 quantiles of
# the noise, and what these become *is* the law of $X_0$, with known weights: no Monte Carlo, no network.

# %%
angles = torch.linspace(0.1, math.pi / 2, 33).flip(0).tolist()  # from noise to data
places, start = torch.linspace(-6.5, 6.5, 131), torch.linspace(-5.5, 5.5, 221)
weights = torch.softmax(-0.5 * start**2, 0)


def exact_x0(law):
    """E[X_0 | X_t] of a mixture in one dimension, angles by places."""
    rows = []
    for a, s in ((math.cos(p), math.sin(p)) for p in angles):
        means, variances = law.means[:, 0], law.covariances[:, 0, 0]
        v, gap = a**2 * variances + s**2, places[:, None] - a * means
        w = torch.softmax(law.weights.log() - 0.5 * gap**2 / v - 0.5 * v.log(), 1)
        rows.append((w * (means + a * variances / v * gap)).sum(1))
    return torch.stack(rows)


def at(row, x):
    """Linear interpolation of a row of the table, constant beyond its ends."""
    i = ((x - places[0]) / (places[1] - places[0])).clamp(0, len(places) - 1.001)
    j = i.long()
    return torch.lerp(row[j], row[j + 1], i - j)


def drawn(table):
    """The quantiles after Heun's steps of the flow dx/dphi = (cos phi x - x0_hat) / sin phi, and one denoising step."""
    x, flow = start, lambda k, x: (math.cos(angles[k]) * x - at(table[k], x)) / math.sin(angles[k])
    for k in range(len(angles) - 1):
        h = angles[k + 1] - angles[k]
        v = flow(k, x)
        x = x + 0.5 * h * (v + flow(k + 1, x + h * v))
    a = math.cos(angles[-1])
    return (x - 0.5 * (x - a * at(table[-1], x))) / a  # half the last score: the flow's share of it


def covariance(x_0, r):
    """Cov(X_0, r | X_t) on the table when the law of X_0 is that of the quantiles."""
    rows = []
    for a, s in ((math.cos(p), math.sin(p)) for p in angles):
        q = torch.softmax(-0.5 * ((places[:, None] - a * x_0) / s) ** 2 + weights.log(), 1)
        rows.append(q @ (r * x_0) - (q @ r) * (q @ x_0))
    return torch.stack(rows)


# %% [markdown]
# The two families, and Algorithm 2 with $N$ tilts, are then three short functions. The first repeats {eq}`eq-fixed-covariance` until it stands still, the way RAM does, with half a step at a time.


# %%
def endpoint(base, reward, lam):
    """RAM, DiffusionNFT and advantage-weighted matching: what their fixed point draws."""
    table = anchor = exact_x0(base)
    mean = math.inf
    for _ in range(150):
        x_0 = drawn(table)
        table = 0.5 * (table + anchor + lam * covariance(x_0, reward(x_0[:, None])))
        mean, before = float(weights @ x_0), mean
        if abs(mean - before) < 1e-6:
            return x_0
    raise AssertionError(f"no fixed point after 150 rounds: the mean still moves by {abs(mean - before):.1e}")


def tilting(base, reward, lam, N):
    """Algorithm 2: N steps, each with the covariance of the model that it has reached."""
    table = exact_x0(base)
    for _ in range(N):
        x_0 = drawn(table)
        table = table + lam / N * covariance(x_0, reward(x_0[:, None]))
    return drawn(table)


def plug_in(base, reward, lam):
    """Guidance by the reward of the predicted clean sample, for a linear or quadratic reward."""
    table = exact_x0(base)
    slope = reward.b + reward.A[0, 0] * table  # r'(x0_hat)
    gradient = torch.gradient(table, spacing=(places,), dim=1)[0] * slope
    factor = torch.tensor([math.sin(p) ** 2 / max(math.cos(p), 1e-9) for p in angles])[:, None]
    correction = factor * gradient
    correction[0] = correction[1]  # pure noise, where both go to zero and infinity
    return drawn(table + lam * correction)


def mixture(weights, means):
    return GaussianMixture(torch.tensor(weights), torch.tensor(means)[:, None], 0.5 * torch.ones(len(means), 1, 1))


tasks = {
    "Gaussian, linear": (mixture([1.0], [0.0]), QuadraticReward([1.0])),
    "Gaussian, quadratic": (mixture([1.0], [0.0]), QuadraticReward([2.0], torch.tensor([[-2.0]]))),
    "two modes, linear": (mixture([0.5, 0.5], [-2.0, 2.0]), QuadraticReward([0.75])),
}


def mean_of(x_0):
    return float(weights @ x_0)


# %% [markdown]
# First a check of the instrument: the exact tilt, drawn from its own table, has the mean that the closed form says.

# %% tags=["hide-input"]
worst = max(
    abs(mean_of(drawn(exact_x0(base.tilted(reward)))) - float(base.tilted(reward).mean)) for base, reward in tasks.values()
)
figures.check("means of three tilts, drawn and in closed form", worst, 4e-3)

# %% [markdown]
# The policy gradients live on the stochastic sampler, whose law from {eq}`eq-fixed-halfway` is another than the flow's, because the mean of two scores is the score of nothing. So they are drawn by the library's sampler,
# with the noise that the exact tilt is drawn with too. SVDD {cite:p}`li2024derivative` is given the exact value and ten proposals a step, which it does not find too many.

# %%
schedule, n = Cosine(), 40_000 if full else 2000


def by_sampler(denoiser, seed=0):
    """Mean of n samples."""
    draws = sample(denoiser, schedule, n, 1, steps=100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return float(draws.mean())


def halfway(base, reward, lam):
    """What Flow-GRPO and DPOK stop at, as a denoiser."""
    before, after = ExactNoisePredictor(base, schedule), ExactNoisePredictor(base.tilted(reward, 2 * lam), schedule)
    return lambda x, t: 0.5 * (before(x, t) + after(x, t))


def proposals(base, reward, lam, M=10, J=25):
    """SVDD with the exact value, against the exact tilt drawn with as many steps: the difference of the means."""
    value = exact_value(base, reward, schedule, lam)
    draws = decode(
        ExactNoisePredictor(base, schedule), value, schedule, n // 4, M=M, d=1, J=J, dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    exact = sample(
        ExactNoisePredictor(base.tilted(reward, lam), schedule), schedule, n // 4, 1, steps=J, dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return float(draws.mean() - exact.mean())


# %% tags=["hide-input"]
errors = {}
for name, (base, reward) in tasks.items():
    target = mean_of(drawn(exact_x0(base.tilted(reward))))
    exact = by_sampler(ExactNoisePredictor(base.tilted(reward), schedule))
    errors[name] = {
        "Algorithm 2, N = 20": mean_of(tilting(base, reward, 1.0, 20)) - target,
        "Algorithm 2, N = 80": mean_of(tilting(base, reward, 1.0, 80)) - target,
        "RAM; NFT and AWM with a penalty": mean_of(endpoint(base, reward, 1.0)) - target,
        "Flow-GRPO, DPOK": by_sampler(halfway(base, reward, 1.0)) - exact,
        "guidance by the plug-in value": mean_of(plug_in(base, reward, 1.0)) - target,
        "SVDD, exact value, M = 10": proposals(base, reward, 1.0),
    }
why = {
    "Algorithm 2, N = 20": "up to $O(1/N)$",
    "Algorithm 2, N = 80": "up to $O(1/N)$",
    "RAM; NFT and AWM with a penalty": "no: {eq}`eq-fixed-covariance`",
    "Flow-GRPO, DPOK": "no: {eq}`eq-fixed-halfway`",
    "guidance by the plug-in value": "no: Jensen",
    "SVDD, exact value, M = 10": "up to $O(1/M)$",
}
rows = [{"method": m, "is the tilt where it stops?": why[m]} | {t: f"{errors[t][m]:+.3f}" for t in tasks} for m in why]
always = "implicit Tilt Matching, reward-weighted, SIFT, resample or SMC then distil, value on chains"
rows.append({"method": always, "is the tilt where it stops?": "yes, for any step"} | dict.fromkeys(tasks, "0"))
chains = "RTB, VarGrad, DPOK with future KL, Adjoint Matching, DRaFT with path KL"
rows.append({"method": chains, "is the tilt where it stops?": "yes, up to $O(1/K)$ steps"} | dict.fromkeys(tasks, "0"))
many = "importance weights, SMC, FK steering"
rows.append({"method": many, "is the tilt where it stops?": "yes, as particles grow"} | dict.fromkeys(tasks, "0"))
greedy = "DDPO, DRaFT; NFT and AWM without a penalty"
rows.append({"method": greedy, "is the tilt where it stops?": "no: the reward's maximum"} | dict.fromkeys(tasks, "–"))
figures.table(rows)

# %% [markdown]
# Error of the mean of what is drawn, at $\lambda = 1$, from nothing but the method. Zeros are proved, not measured: {doc}`rivals_methods` has the implicit form, reward weights and the chains, {doc}`rivals_sampling` the particles. A fixed point
# with weights (SIFT: {cite:t}`denker2025iterative`; resample, then distil) is exact because all weights are equal at the tilt and only there.

# %% tags=["hide-input"]
quadratic, modes = errors["Gaussian, quadratic"], errors["two modes, linear"]
ram, grpo = "RAM; NFT and AWM with a penalty", "Flow-GRPO, DPOK"
figures.check("RAM on a Gaussian with a linear reward", abs(errors["Gaussian, linear"][ram]), 5e-3)
figures.check("Flow-GRPO there", abs(errors["Gaussian, linear"][grpo]), 1e-3)
assert min(abs(modes[ram]), abs(modes[grpo])) > 10 * abs(modes["Algorithm 2, N = 80"])
assert abs(modes["Algorithm 2, N = 80"]) < 0.4 * abs(modes["Algorithm 2, N = 20"])
figures.glue(
    ram_modes=f"{-modes[ram]:.2f}",
    grpo_modes=f"{-modes[grpo]:.2f}",
    tilting_modes=f"{abs(modes['Algorithm 2, N = 20']):.2f}",
)

# %% [markdown]
# On two modes RAM's family falls {glue:text}`ram_modes` short of the tilt's mean and the policy gradients {glue:text}`grpo_modes`, while twenty tilts of Algorithm 2 are off by {glue:text}`tilting_modes`. At small $\lambda$ both errors are of
# second order, and begin alike.

# %%
base, reward = tasks["Gaussian, quadratic"]
small = (0.02, 0.04, 0.08)
second = {"endpoint": [], "halfway": []}
for lam in small:
    target = drawn(exact_x0(base.tilted(reward, lam)))
    between = drawn(0.5 * (exact_x0(base) + exact_x0(base.tilted(reward, 2 * lam))))
    for name, x_0 in (("endpoint", endpoint(base, reward, lam)), ("halfway", between)):
        second[name].append(abs(mean_of(x_0) - mean_of(target)))

# %% tags=["hide-input"]
orders = {name: np.polyfit(np.log(small), np.log(gaps), 1)[0] for name, gaps in second.items()}
figures.glue(order_endpoint=f"{orders['endpoint']:.2f}", order_halfway=f"{orders['halfway']:.2f}")
figures.check(
    "the two errors at the smallest strength, relatively", abs(second["endpoint"][0] / second["halfway"][0] - 1), 0.1
)
assert all(abs(order - 2) < 0.2 for order in orders.values()), orders

# %% [markdown]
# Error of the mean against $\lambda$, as a power: {glue:text}`order_endpoint` for the endpoint's covariance, {glue:text}`order_halfway` for halfway.

# %% tags=["hide-input"]
base, reward = tasks["two modes, linear"]
strengths = [0.25, 0.5, 0.75, 1.0] if full else [0.5, 1.0]
share = {name: [0.5] for name in ("tilt", "endpoint", "halfway")}


def right(x_0):
    """Share of the law right of zero, between quantiles."""
    cumulative = weights.cumsum(0) - 0.5 * weights
    return 1 - float(np.interp(0.0, x_0.numpy(), cumulative.numpy()))


for lam in strengths:
    share["tilt"].append(right(drawn(exact_x0(base.tilted(reward, lam)))))
    share["endpoint"].append(right(endpoint(base, reward, lam)))
    share["halfway"].append(right(drawn(0.5 * (exact_x0(base) + exact_x0(base.tilted(reward, 2 * lam))))))
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2))
    labels = {"tilt": "the tilt", "endpoint": "RAM, NFT, AWM", "halfway": "Flow-GRPO, DPOK"}
    for i, (name, label) in enumerate(labels.items()):
        odds = [math.log10(p / (1 - p)) for p in share[name]]
        axes[0].plot([0, *strengths], odds, marker=figures.MARKERS[i], color=figures.SERIES[i], label=label)
        law = {
            "tilt": drawn(exact_x0(base.tilted(reward))),
            "endpoint": endpoint(base, reward, 1.0),
            "halfway": drawn(0.5 * (exact_x0(base) + exact_x0(base.tilted(reward, 2.0)))),
        }[name]
        density = weights[1:-1] / (0.5 * (law[2:] - law[:-2]))
        axes[1].plot(law[1:-1], density, color=figures.SERIES[i])
    axes[0].set(xlabel=r"$\lambda$", ylabel="right : left, powers of ten")
    axes[1].set(xlabel="$x$", ylabel="density", xlim=(-4, 5))
    axes[0].legend()
figures.show(
    fig,
    "stops",
    "Left: odds of the right mode against the strength; those of the tilt grow straight, those of both families fall behind. Right: densities at strength one; both families leave too much in the left mode.",
)

# %% [markdown]
# ```{glue:figure} stops
# :name: fig-stops
#
# Two modes, a linear reward, everything exact. Left: odds of the right mode against the left one. The tilt's are exponential in $\lambda$; both families fall behind as soon as the modes have to be weighed against each other. Right: what they draw
# at $\lambda = 1$ (all three by the probability flow).
# ```
#
# ## What this says about Algorithm 2
#
# A step from the base by the covariance of the *base* is the first-order tilt (N = 1). By the covariance of the *end* it is RAM. Algorithm 2 takes the covariances in between, one after the other, and its error falls with N. It costs N - 1 more
# datasets, and it costs the anchor: a mistake of an early tilt is part of the teacher of the next, where RAM and the chains of {doc}`b_recommended` are pulled to the same base for ever.
#
# Sources: the losses of DiffusionNFT, advantage-weighted matching, Flow-GRPO, RTB, SVDD and FK steering were checked in their authors' code, that of RAM in two independent accounts of the paper, SIFT in its abstract and public reviews. Two published details are left out because they
# move the fixed point further: DiffusionNFT divides each square by its own absolute error, and advantage-weighted matching takes the fourth root of its loss.
#
# ## Try this
#
# - What if the doubled tilt does not exist? Take a Gaussian of variance $1/2$ and $r = \tfrac a2 x^2$. The tilt exists for $\lambda a < 2$.

# %% tags=["hide-cell"]
gaussian = tasks["Gaussian, linear"][0]
for a in (0.9, 1.1):
    bowl = QuadraticReward([0.0], torch.tensor([[a]]))
    variance = float(gaussian.tilted(bowl).covariances[0, 0, 0])
    try:
        gaussian.tilted(bowl, 2.0)
        print(f"a = {a}: the tilt has variance {variance:.2f}, and Flow-GRPO stops")
    except ValueError:
        print(f"a = {a}: the tilt has variance {variance:.2f}, and Flow-GRPO never stops: the doubled tilt does not exist")
