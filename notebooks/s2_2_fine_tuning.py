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
# # 2.2 Fine-tuning formulations
#
# A pretrained model draws from $p_0^b$; a reward says what we would rather have. Section 2.2 of the paper recalls two ways to get there
# that differentiate the reward: through the sampler (DRaFT), and along a path (stochastic optimal control, Adjoint Matching).
#
# **You will see** which objective has the tilted density as its optimum, and that DRaFT's has not: it runs away; what a
# control can and cannot reach, and why the sampler's noise decides about that; what a model learns from the wrong sign in
# (2.19); and what one step of each method asks of the reward and of the memory.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer samples and steps

# %% tags=["remove-cell"]
import weakref
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from torchdiffeq import odeint

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample, time_grid, transition
from itlib.schedules import Cosine
from itlib.tilting import TiltBatch, TiltingConfig, iterative_tilting, single_sample

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The target, and the objective that has it as its optimum
#
# All methods of the section are said to aim at the tilted density
#
# $$p_0^{\lambda r}(x) = Z_{\lambda r}^{-1} \exp(\lambda r(x))\, p_0^b(x). \tag{2.14}$$ (eq-2-14)
#
# ```{margin}
# The paper asks for a positive reward. Only $Z_{\lambda r} < \infty$ is needed.
# ```
#
# It is what you get if you want a large reward *and* a model that stays close to the base. For any density $q$,
#
# $$\mathbb E_q[\lambda r] - \mathrm{KL}(q \,\|\, p_0^b) = \log Z_{\lambda r} - \mathrm{KL}(q \,\|\, p_0^{\lambda r}).$$ (eq-gibbs)
#
# *Proof.* Take the logarithm of {eq}`eq-2-14`, $\lambda r = \log Z_{\lambda r} + \log p_0^{\lambda r} - \log p_0^b$, and average it under $q$.
# Subtract $\mathbb E_q[\log q - \log p_0^b]$ on both sides. $\square$
#
# The last term vanishes for $q = p_0^{\lambda r}$ alone. So the tilted density is the only maximum, and its value is
# $\log Z_{\lambda r}$: **Gibbs' variational principle**. Here are both sides, by quadrature, for six choices of $q$. The
# reward is the paper's $4x_2$ and, everywhere in this chapter, $\lambda = \frac12$: a lost factor $\lambda$ would not be
# seen at $\lambda = 1$.

# %%
lam = 0.5
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("paper")
target = base.tilted(reward, lam)

axis, h = torch.linspace(-9, 9, 361 if full else 121), 18 / (360 if full else 120)
grid = torch.cartesian_prod(axis, axis)
log_base, log_target = base.log_prob(grid), target.log_prob(grid)
log_tilt = lam * reward(grid) + log_base  # (2.14) without its Z
log_z = float(torch.logsumexp(log_tilt, 0)) + 2 * np.log(h)
assert abs(log_z - base.log_normaliser(reward, lam)) < 1e-10  # the trapezoidal rule is as good as exact here
assert float((log_tilt - log_z - log_target).abs().max()) < 1e-10


def kl(log_q, log_p):
    return float((log_q.exp() * (log_q - log_p)).sum() * h**2)


one = torch.eye(2).expand(1, 2, 2)
candidates = {
    "the base": base,
    "tilted half way": base.tilted(reward, lam / 2),
    "**the tilted density**": target,
    "tilted twice as far": base.tilted(reward, 2 * lam),
    "only the right mode": GaussianMixture(torch.ones(1), torch.tensor([[2.0, 1.0]]), 0.5 * one),
    "nearly a point, up high": GaussianMixture(torch.ones(1), torch.tensor([[2.0, 4.0]]), 0.05 * one),
}
rows = []
for name, q in candidates.items():
    log_q = q.log_prob(grid)
    gain, price = lam * float((log_q.exp() * reward(grid)).sum() * h**2), kl(log_q, log_base)
    gap = kl(log_q, log_target)
    assert abs(gain - price - (log_z - gap)) < 1e-9  # Gibbs
    numbers = (round(v, 9) + 0.0 for v in (gain, price, gain - price, gap))  # no -0.000
    rows.append([name, *numbers])
columns = ["$q$", r"$\mathbb E_q[\lambda r]$", "KL to base", "difference", "KL to tilt"]
display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, floatfmt=".2f")))
display(Markdown(rf"$\log Z_{{\lambda r}} = {log_z:.2f}$ is the largest difference there can be."))
differences = np.array([row[3] for row in rows])
assert abs(differences.max() - log_z) < 1e-8
assert (np.sort(differences)[:-1] < log_z - 0.1).all()  # reached once

# %% [markdown]
# The first column alone would lead to the last row, and beyond. This sorts the methods:
#
# | method | ends at the tilt | needs $\nabla r$ | optimises | a step keeps |
# |:--|:--|:--|:--|:--|
# | DRaFT {eq}`eq-2-15` | no | yes | $\mathbb E[r]$ | activations of all reverse steps |
# | DRaFT-$K$, DRaFT-LV | no | yes | no objective: a truncated gradient of $\mathbb E[r]$ | activations of the last $K$ steps, or of one |
# | control {eq}`eq-2-17`, differentiated through the path | if memoryless | yes | $\mathbb E[\lambda r]$ minus the KL of *paths* | activations of all steps |
# | Adjoint Matching {eq}`eq-2-18`, {eq}`eq-2-19` | if memoryless, with the sign mended | at the end of each path | the same, as a regression | states of a path, activations of one step |
# | iterative tilting {eq}`eq-3-10` | up to $O(1/N)$ | no | $N$ regressions | a dataset, activations of one evaluation |
#
# The reasons follow; those for $O(1/N)$ are in {doc}`s3_1_tilted_score`.
#
# ## DRaFT: differentiate the sampler
#
# Fix the Gaussian noises $\xi$ that Algorithm 1 draws. Then its output is a function $\psi_0(\theta, \xi)$ of the parameters, and
# {cite:t}`clark2024directly` climb
#
# $$J(\theta) = \mathbb E_\xi\big[r(\psi_0(\theta, \xi))\big] \tag{2.15}$$ (eq-2-15)
#
# by the chain rule,
#
# $$\nabla_\theta J(\theta) = \mathbb E_\xi\Big[\Big(\frac{\partial \psi_0(\theta, \xi)}{\partial \theta}\Big)^{\!\top} \nabla_x r(\psi_0(\theta, \xi))\Big].
#   \tag{2.16}$$ (eq-2-16)
#
# To test this without a network we give the *exact* denoiser a parameter, a constant shift: $\hat x_1^\theta = \hat x_1 +
# \theta$. The library's sampler does not track gradients, so its loop is spelled out.

# %%
exact = ExactNoisePredictor(base, schedule)


def reverse_steps(K, eta=1.0):
    """(t, a, b, std) of each reverse step x_s = a x_t + b x1_hat + std z, from noise to data."""
    times = time_grid(schedule, K)
    return [(t, *transition(schedule, s, t, eta)) for t, s in zip(times[:0:-1], times[-2::-1], strict=True)]


def psi_0(denoiser, xi, steps, last=None):
    """Output of Algorithm 1 from the noises xi; autograd sees the `last` steps only (None: all of them)."""
    x, tracked = xi[0], torch.is_grad_enabled()
    for k, (t, a, b, std) in enumerate(steps):
        with torch.set_grad_enabled(tracked and (last is None or len(steps) - k <= last)):
            x = a * x + b * denoiser(x, torch.tensor(t, dtype=x.dtype)) + std * xi[k + 1]
    return x


def J(theta, xi, r, steps):
    return r(psi_0(lambda x, t: exact(x, t) + theta, xi, steps)).mean()  # (2.15)


steps = reverse_steps(10)
n = 2000 if full else 500
generator = seeded(0)
xi = torch.stack([torch.randn(n, 2, generator=generator) for _ in range(11)])  # the order in which the library draws
own = psi_0(exact, xi, steps)
assert torch.allclose(
    own, sample(exact, schedule, n, steps=10, generator=seeded(0), dtype=torch.float64), rtol=0, atol=1e-12
)

# %% [markdown]
# Now {eq}`eq-2-16` as it is printed, against central differences of $J$ with the same noises. The reward is `quadratic`,
# whose gradient differs from sample to sample.

# %%
quadratic = parse_reward("quadratic")
theta = torch.tensor([0.02, -0.04])


def jacobian(theta):
    return torch.func.jacfwd(lambda v: psi_0(lambda x, t: exact(x, t) + v, xi, steps))(theta)  # (n, 2, 2)


x_0 = psi_0(lambda x, t: exact(x, t) + theta, xi, steps)
grad_r = x_0 @ quadratic.A + quadratic.b
chain_rule = torch.einsum("nij,ni->j", jacobian(theta), grad_r) / n  # (2.16)
e = 1e-7 * torch.eye(2)
differences = torch.stack([(J(theta + v, xi, quadratic, steps) - J(theta - v, xi, quadratic, steps)) / 2e-7 for v in e])
leaf = theta.clone().requires_grad_()
(backward,) = torch.autograd.grad(J(leaf, xi, quadratic, steps), leaf)
assert torch.allclose(chain_rule, differences, rtol=0, atol=1e-5)  # O(h^2), and rounding of 1e-15 / h per unit
assert torch.allclose(chain_rule, backward, rtol=0, atol=1e-12)
display(
    Markdown(
        f"Chain rule ({chain_rule[0]:.6f}, {chain_rule[1]:.6f}), finite differences ({differences[0]:.6f}, {differences[1]:.6f})."
    )
)

# %% [markdown]
# ### Truncated gradients
#
# Differentiating all steps keeps the activations of all of them. DRaFT-$K$ differentiates the last $K$ only. DRaFT-LV
# takes the finished sample, noises it again to the time of the last step, differentiates that step, and averages over
# several such noisings. It is not what the paper says of it, a control variate that remains unbiased ({ref}`item 15
# <err-draft>`).

# %%
t_1, a_1, b_1, _ = steps[-1]
alpha_1, sigma_1 = (float(f(torch.tensor(t_1))) for f in (schedule.alpha, schedule.sigma))


def per_sample(loss, theta_n):
    return torch.autograd.grad(loss.sum(), theta_n)[0]


def draft(last):
    """One gradient per sample: each sample has its own copy of theta."""
    theta_n = theta.repeat(n, 1).requires_grad_()
    return per_sample(quadratic(psi_0(lambda x, t: exact(x, t) + theta_n, xi, steps, last)), theta_n)


def draft_lv(copies, generator):
    total = 0.0
    for _ in range(copies):
        theta_n = theta.repeat(n, 1).requires_grad_()
        x = alpha_1 * x_0 + sigma_1 * torch.randn(n, 2, generator=generator)  # x_0 is finished, and not differentiated
        total = total + per_sample(quadratic(a_1 * x + b_1 * (exact(x, torch.tensor(t_1)) + theta_n)), theta_n)
    return total / copies


gradients = {f"DRaFT-{K}": draft(K) for K in (1, 4)} | {"DRaFT, all 10 steps": draft(None)}
gradients |= {f"DRaFT-LV, {c} noisings": draft_lv(c, seeded(1)) for c in (2, 16)}
assert torch.allclose(gradients["DRaFT, all 10 steps"].mean(0), chain_rule, rtol=0, atol=1e-12)
whole = gradients["DRaFT, all 10 steps"].mean(0)
rows = [
    {
        "estimate": name,
        "mean gradient": f"({g[:, 0].mean():.3f}, {g[:, 1].mean():.3f})",
        "share of the full one": f"{float(g.mean(0) @ whole / whole.square().sum()):.0%}",
        "spread over samples": f"({g[:, 0].std():.3f}, {g[:, 1].std():.3f})",
    }
    for name, g in gradients.items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
short, lv = gradients["DRaFT-1"], gradients["DRaFT-LV, 16 noisings"]
standard_error = (short.std(0).square() + lv.std(0).square()).sqrt() / n**0.5
assert (lv.std(0) < short.std(0)).all()
assert ((short.mean(0) - lv.mean(0)).abs() < 4 * standard_error).all()  # the same gradient ...
assert float(lv.mean(0) @ whole / whole.square().sum()) < 0.1  # ... which is not the full one

# %% [markdown]
# *Share*: the component of the mean gradient along the full one. Averaging lowers the spread by little, since most of it
# comes from which $x_0$ was drawn. The mean stays a small share of the full gradient.
#
# ### Where it ends
#
# $\lambda$ does not occur in {eq}`eq-2-15`, so the tilted density cannot be its optimum. What is? Look at the second
# coordinate of the toy: one Gaussian, $N(0, \frac12)$, whose exact denoiser is linear. Give step $k$ a correction with a
# shift $\theta_k$ and a slope $\vartheta_k$: $\hat x_1^\theta = \hat x_1 + \theta_k + \vartheta_k x_2$. All states stay
# Gaussian, so $J$ is a function of a mean and a variance: no sampling, no noise in the gradient.
#
# What DRaFT lacks is a price for leaving the base. A step of Algorithm 1 is Gaussian with a mean $m_\theta$ and the
# standard deviation $\eta_k$. So the KL divergence between the laws of fine-tuned and base *paths* is a sum,
#
# $$\mathrm{KL}_{\mathrm{path}} = \sum_k \mathbb E\,\frac{\|m_\theta(x_{t_{k+1}}) - m_{\mathrm{base}}(x_{t_{k+1}})\|^2}{2\eta_k^2},$$ (eq-path-kl)
#
# and the new objective is $\mathbb E[\lambda r(\psi_0)] - \mathrm{KL}_{\mathrm{path}}$. The last step is noiseless; there
# the correction has to be zero. Of the two rewards below, $4x_2$ has no maximum, and $-(x_2 - 2)^2$ has one.


# %%
def second_coordinate(theta, steps):
    """Mean and variance of x_2 at the end, and the path KL, for corrections theta, (K, 2): shift and slope."""
    t, a, b, std = torch.tensor(steps).T
    shift, slope = theta.unbind(1)
    exact_slope = schedule.sigma(t) / (schedule.alpha(t) ** 2 / 2 + schedule.sigma(t) ** 2)
    means, variances = [torch.tensor(0.0)], [torch.tensor(1.0)]
    for factor, push, fresh in zip(a + b * (exact_slope + slope), b * shift, std**2, strict=True):
        means.append(factor * means[-1] + push)
        variances.append(factor**2 * variances[-1] + fresh)
    moved = (shift + slope * torch.stack(means[:-1])) ** 2 + slope**2 * torch.stack(variances[:-1])
    price = (b**2 * moved)[std > 0] / (2 * std[std > 0] ** 2)
    return means[-1], variances[-1], price.sum()


linear, bounded = parse_reward("b=4", d=1), parse_reward("A=-2 b=4 c=-4", d=1)  # 4 x_2, and -(x_2 - 2)^2


def objective(theta, steps, r, with_price):
    if with_price:
        theta = theta * torch.tensor([[1.0]] * (len(steps) - 1) + [[0.0]])  # the last step has no noise
    mean, variance, price = second_coordinate(theta, steps)
    value = r(mean.reshape(1, 1))[0] + 0.5 * r.A[0, 0] * variance  # E[r] of a Gaussian
    return lam * value - price if with_price else value


# %% [markdown]
# First a check on the sampler itself, with corrections picked at random.

# %% tags=["hide-input"]
steps = reverse_steps(20)
probe = 0.02 * torch.randn(20, 2, generator=seeded(2))
mean, variance, _ = second_coordinate(probe, steps)
noises = torch.randn(21, 20_000 if full else 5_000, 1, generator=seeded(3))
line = ExactNoisePredictor(GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), 0.5)), schedule)
at_step = {round(t, 6): row for (t, *_), row in zip(steps, probe, strict=True)}


def corrected(x, t):
    shift, slope = at_step[round(float(t), 6)]
    return line(x, t) + shift + slope * x


drawn = psi_0(corrected, noises, steps)
rewards, exact_J = bounded(drawn), float(objective(probe, steps, bounded, False))
assert abs(float(drawn.mean() - mean)) < 4 * float(variance / len(drawn)) ** 0.5
assert abs(float(drawn.var() / variance - 1)) < 4 * (2 / len(drawn)) ** 0.5
error = float(rewards.std()) / len(drawn) ** 0.5
assert abs(float(rewards.mean()) - exact_J) < 4 * error
display(
    Markdown(
        f"$J$ of the second reward: {exact_J:.4f} in closed form, {rewards.mean():.4f} ± {error:.4f} from {len(drawn):,} draws."
    )
)


# %% [markdown]
# Now climb, with Adam, on both objectives and with both rewards.


# %%
def climb(r, with_price, iterations):
    theta, trace = torch.zeros(20, 2, requires_grad=True), []
    optimiser = torch.optim.Adam([theta], lr=0.03)
    for _ in range(iterations):
        loss = -objective(theta, steps, r, with_price)
        (theta.grad,) = torch.autograd.grad(loss, theta)
        optimiser.step()
        with torch.no_grad():
            trace.append([float(v) for v in second_coordinate(theta, steps)[:2]])
    return np.array(trace)


def optimum(r, K):
    """Mean and variance at the maximum with the price."""
    theta, steps = torch.zeros(K, 2, requires_grad=True), reverse_steps(K)
    solver = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-11, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        loss = -objective(theta, steps, r, True)
        (theta.grad,) = torch.autograd.grad(loss, theta)
        return loss

    solver.step(closure)
    with torch.no_grad():
        return [float(v) for v in second_coordinate(theta, steps)[:2]]


# %% tags=["hide-input"]
iterations = 250 if full else 60
traces = {
    (name, priced): climb(r, priced, iterations)
    for name, r in (("linear", linear), ("bounded", bounded))
    for priced in (True, False)
}
v_sampler = float(second_coordinate(torch.zeros(20, 2), steps)[1])  # what the base sampler itself draws, N(0, v)


def tilt_of(v, r):
    """Mean and variance of N(0, v) tilted by exp(lam r): (4.10) with one component."""
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), v)).tilted(r, lam)
    return float(one.means), float(one.covariances)


# A linear reward asks for shifts only, which the corrections can do: exact, but for the solver and the memory of the chain.
best_linear = optimum(linear, 20)
assert np.allclose(best_linear, tilt_of(v_sampler, linear), rtol=0, atol=1e-4)
# A curved one asks for narrower transitions too, which they cannot: an error of the variance that falls like 1/K. The mean needs shifts only.
gaps = {}
few, many = (20, 40) if full else (10, 20)
for K in (few, many):
    v = float(second_coordinate(torch.zeros(K, 2), reverse_steps(K))[1])
    best, aim = optimum(bounded, K), tilt_of(v, bounded)
    assert abs(best[0] - aim[0]) < 1e-3
    gaps[K] = best[1] / aim[1] - 1
assert 0 < gaps[few] < 0.06
assert gaps[many] < 0.65 * gaps[few]
ends = {key: trace[-1] for key, trace in traces.items()}
assert ends["linear", False][0] > 20 * tilt_of(v_sampler, linear)[0]  # away
assert ends["bounded", False][1] < 0.7 * ends["bounded", True][1]  # and onto a point

# %% tags=["hide-input"]
xs = np.linspace(-2.2, 3.2, 800)


def bell(mean, variance):
    return np.exp(-((xs - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
    number = np.arange(1, iterations + 1)
    left.axhline(tilt_of(v_sampler, linear)[0], color=figures.COLORS["target"], linewidth=4, alpha=0.4, label="tilt")
    left.plot(number, traces["linear", False][:, 0], color=figures.COLORS["learned"], label="DRaFT")
    left.plot(number, traces["linear", True][:, 0], color=figures.COLORS["base"], linestyle="--", label="with path KL")
    left.set(
        yscale="log", ylim=(0.05, 1e6), xlim=(0, iterations), xlabel="optimiser step", title="$r = 4x_2$: mean of $x_2$"
    )
    left.legend(loc="center right")
    right.fill_between(
        xs, bell(*tilt_of(v_sampler, bounded)), color=figures.COLORS["target"], alpha=0.3, linewidth=0, label="tilt"
    )
    right.plot(xs, bell(0, v_sampler), color=figures.COLORS["band"], label="base")
    right.plot(xs, bell(*traces["bounded", True][-1]), color=figures.COLORS["base"], linestyle="--", label="with path KL")
    for share, alpha in ((0.1, 0.35), (0.3, 0.6), (1.0, 1.0)):
        mean, variance = traces["bounded", False][int(share * iterations) - 1]
        right.plot(
            xs, bell(mean, variance), color=figures.COLORS["learned"], alpha=alpha, label="DRaFT" if share == 1 else None
        )
    right.set(ylim=(0, None), xlabel="$x_2$", title="$r = -(x_2 - 2)^2$: density", yticks=[])
    right.legend(loc="upper left")
figures.show(
    fig,
    "runaway",
    "Left: under DRaFT the mean of the second coordinate leaves a logarithmic plot at the top; with the path KL it settles on the tilt. "
    "Right: under DRaFT the density narrows to a spike at 2; with the path KL it lies on the tilted density.",
)

# %% [markdown]
# ```{glue:figure} runaway
# :name: fig-fine-tuning-runaway
#
# DRaFT on the second coordinate of the toy, in closed form, 20 reverse steps. Left: a reward without a maximum; the mean never stops. Right: a
# reward with a maximum at 2; the density (from pale to full colour, as the optimiser goes on) contracts to a point. With the path KL the left one ends at the tilt, the right one close to it.
# ```

# %% tags=["hide-input"]
display(
    Markdown(
        f"After {iterations} steps of Adam DRaFT's mean is {ends['linear', False][0]:.1e} (linear reward), its variance {ends['bounded', False][1]:.3f} "
        f"(bounded). With the path KL the linear reward ends at mean {best_linear[0]:.4f}, variance {best_linear[1]:.4f}; the tilt of what the "
        f"*sampler* draws has {tilt_of(v_sampler, linear)[0]:.4f} and {tilt_of(v_sampler, linear)[1]:.4f}. For the bounded reward the variance is "
        f"{gaps[few]:.1%} too large with {few} reverse steps, {gaps[many]:.1%} with {many}: the corrections cannot narrow a transition."
    )
)

# %% [markdown]
# A KL of paths does the work of a KL of samples: by the chain rule it is that, plus the KL of the paths given their end.
# The optimum can make the rest vanish, unless the *start* of the path stands in its way, as we shall see.
#
# ## Stochastic optimal control
#
# **Clock.** Here, and only here, the paper's time runs from noise to data. We write $\tau = 1 - t$ for it, and $Y_\tau =
# X_{1-\tau}$. So $Y_0$ is noise and $Y_1$ is data.
#
# To the generative process, with drift $b$ and diffusion coefficient $g$, add a drift $g u$,
#
# $$dY_\tau = \big[b(Y_\tau, \tau) + g(\tau)\, u_\tau(Y_\tau)\big]\, d\tau + g(\tau)\, dW_\tau,$$
#
# and look for the control that solves
#
# $$\min_u\ \mathbb E\Big[\tfrac12 \int_0^1 \|u_\tau(Y_\tau)\|^2\, d\tau - \lambda r(Y_1)\Big]. \tag{2.17}$$ (eq-2-17)
#
# Two processes with the same $g$ that differ by a drift $g u$ have, by Girsanov's theorem,
#
# $$\begin{aligned}
#   \log\frac{dP^u}{dP}(Y) &= \int_0^1 u_\tau \cdot dW_\tau + \tfrac12 \int_0^1 \|u_\tau\|^2\, d\tau, \\
#   \mathrm{KL}(P^u \,\|\, P) &= \mathbb E\Big[\tfrac12\int_0^1 \|u_\tau\|^2\, d\tau\Big],
#   \end{aligned}$$ (eq-girsanov)
#
# with the Brownian motion $W$ of the controlled process. So {eq}`eq-2-17` is the path KL of {eq}`eq-path-kl` in
# continuous time, minus the reward. The check takes two modes in one dimension, at $\pm2$ with variance $\frac12$, $r(x)
# = x$, and {eq}`eq-reverse-sde` for the base process. The optimal control is the difference of two scores, $u^* =
# g\,(\nabla\log p_t^{\lambda r} - \nabla\log p_t^b)$: the next section says why.


# %%
def rate(t):
    """beta(t) of the cosine schedule, as a number."""
    time = torch.tensor(float(t))
    return float(-2 * schedule.alpha_dot(time) / schedule.alpha(time))


def clock(K):
    """Times t from noise to data, K steps."""
    return 1 / (1 + np.exp(-np.linspace(7, -7, K + 1)))


def drift(denoiser, y, t):
    """The base drift b of the memoryless process, (2.12) with its sign mended: beta (y / 2 + score)."""
    time = torch.tensor(t, dtype=y.dtype)
    return rate(t) * (0.5 * y - denoiser(y, time) / schedule.sigma(time))


def rollout(denoiser, control, times, n, d, generator):
    """Euler-Maruyama with the control added: states (K + 1, n, d), noises and controls (K, n, d)."""
    y = torch.randn(n, d, generator=generator)
    states, noises, controls = [y], [], []
    for t, s in pairwise(times):
        dt, g = t - s, rate(t) ** 0.5
        u, z = control(y, t), torch.randn(n, d, generator=generator)
        y = y + (drift(denoiser, y, t) + g * u) * dt + g * dt**0.5 * z
        states.append(y), noises.append(z), controls.append(u)
    return torch.stack(states), torch.stack(noises), torch.stack(controls)


ones = torch.full((2, 1, 1), 0.5)
pair = GaussianMixture(torch.ones(2), torch.tensor([[-2.0], [2.0]]), ones)
slope = parse_reward("b=1", d=1)
tilted_pair, log_z_pair = pair.tilted(slope, lam), pair.log_normaliser(slope, lam)
pair_denoiser = ExactNoisePredictor(pair, schedule)


def u_star(y, t, law=tilted_pair):
    time = torch.tensor(t)
    return rate(t) ** 0.5 * (law.score(y, time, schedule) - pair.score(y, time, schedule))


# %% [markdown]
# First Girsanov, with $u = \sin y$. The left side of {eq}`eq-girsanov` follows from the Gaussian densities of a path's
# steps, with and without control. Its mean has to be the control cost.

# %%
times = clock(280 if full else 140)
n_paths = 4000 if full else 1500
states, noises, controls = rollout(pair_denoiser, lambda y, t: torch.sin(y), times, n_paths, 1, seeded(4))
steps_dt = torch.from_numpy(times[:-1] - times[1:]).reshape(-1, 1, 1)
log_ratio = torch.zeros(n_paths)
for k, (t, dt) in enumerate(zip(times, steps_dt.flatten(), strict=False)):
    g, b = rate(t) ** 0.5, drift(pair_denoiser, states[k], t)
    with_u = torch.distributions.Normal(states[k] + (b + g * torch.sin(states[k])) * dt, g * dt**0.5)
    without = torch.distributions.Normal(states[k] + b * dt, g * dt**0.5)
    log_ratio += (with_u.log_prob(states[k + 1]) - without.log_prob(states[k + 1]))[:, 0]


def control_cost(controls):
    return (0.5 * controls**2 * steps_dt).sum((0, 2))  # of each path


gap = log_ratio - control_cost(controls)
assert abs(float(gap.mean())) < 4 * float(gap.std()) / n_paths**0.5
display(
    Markdown(
        f"Path KL {log_ratio.mean():.4f}, control cost {control_cost(controls).mean():.4f}; standard error of the difference {gap.std() / n_paths**0.5:.4f}."
    )
)

# %% [markdown]
# Then the objective. By Gibbs' principle for paths, no control costs less than $-\log Z_{\lambda r}$. The optimal one
# reaches it here, because this process forgets its start. More is true:
#
# $$\lambda r(Y_1) - \int_0^1 u^*\cdot dW - \tfrac12\int_0^1 \|u^*\|^2\, d\tau = \log Z_{\lambda r} \qquad \text{on every single path},$$ (eq-one-path)
#
# because $dP^{u^*}/dP = e^{\lambda r(Y_1)}/Z_{\lambda r}$. The control is optimal when nothing is left to chance.

# %%
rows, spreads, costs = [], {}, {}
for name, scale in (("0", 0.0), (r"$\frac12 u^*$", 0.5), ("$u^*$", 1.0), (r"$\frac32 u^*$", 1.5), ("$-u^*$", -1.0)):
    states, noises, controls = rollout(pair_denoiser, lambda y, t, c=scale: c * u_star(y, t), times, n_paths, 1, seeded(5))
    cost = control_cost(controls) - lam * slope(states[-1])  # (2.17)
    chance = -cost - (controls * noises * steps_dt**0.5).sum((0, 2))  # left side of the identity
    rows.append(
        {
            "control": name,
            "control cost": f"{control_cost(controls).mean():.3f}",
            "objective (2.17)": f"{cost.mean():.3f} ± {cost.std() / n_paths**0.5:.3f}",
            "spread over paths of the identity": f"{chance.std():.3f}",
        }
    )
    spreads[scale], costs[scale] = float(chance.std()), cost
    if scale == 1.0:
        energy = control_cost(controls)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
# Four standard errors, and half the time step (in log-odds of time): an Euler scheme is of first order.
step = 14 / (len(times) - 1)
allowed = 0.5 * step
exact_kl = pair.tilt_kl(slope, lam)
assert abs(float(energy.mean()) - exact_kl) < 4 * float(energy.std()) / n_paths**0.5 + allowed * exact_kl
assert abs(float(costs[1.0].mean()) + log_z_pair) < 4 * float(costs[1.0].std()) / n_paths**0.5 + allowed * log_z_pair
assert all(float(costs[1.0].mean()) < float(v.mean()) - 0.02 for scale, v in costs.items() if scale != 1.0)
assert spreads[1.0] < 0.6 * step**0.5  # it vanishes with the square root of the time step
assert min(v for scale, v in spreads.items() if scale != 1.0) > 0.3
display(
    Markdown(
        rf"The least objective should be $-\log Z_{{\lambda r}} = {-log_z_pair:.3f}$, its control cost $\mathrm{{KL}}(p_0^{{\lambda r}}\|p_0^b) = {exact_kl:.3f}$. "
        "The spread that is left in the row of $u^*$ is the time step's."
    )
)

# %% [markdown]
# ## What a control cannot reach
#
# A control cannot choose the start of a path. Let $V(y, \tau) = -\log \mathbb E[e^{\lambda r(Y_1)} \mid Y_\tau = y]$ be
# the value function, the least cost from $(y, \tau)$ on. Given $Y_0$, the best that can be had is the tilted conditional
# law, so the controlled pair has density
#
# $$p^*(y_0, y_1) = p^{\mathrm{base}}(y_0)\, \frac{p^{\mathrm{base}}(y_1 \mid y_0)\, e^{\lambda r(y_1)}}{\mathbb E[e^{\lambda r(Y_1)} \mid Y_0 = y_0]}
#   = p^{\mathrm{base}}(y_0, y_1)\, e^{\lambda r(y_1) + V(y_0, 0)} .$$ (eq-value-bias)
#
# The second marginal is the tilted density if $V(\cdot, 0)$ is constant, which holds for every reward only if $Y_1$ does
# not depend on $Y_0$: if the process is **memoryless**. For the time reversal of {eq}`eq-2-11`, $Y_\tau$ given $Y_1$ is
# the noising kernel, so $\mathbb E[e^{\lambda r(Y_1)} \mid Y_\tau = y] = Z_{\lambda r}\, p_t^{\lambda r}(y) / p_t^b(y)$,
# and $u^* = -g\,\nabla V$ is the difference of scores used above.
#
# One Gaussian and a linear reward make this explicit. Take $p_0^b = N(0, v_0)$, $v_0 = \frac12$, and $\lambda r(x) = \ell x$ with $\ell = 2$: the second coordinate
# of the toy. There is a base process for every noise level $g \ge 0$, and all have the same marginals $p_t$:
#
# $$b = \tfrac12 \beta\, y + \tfrac12 (\beta + g^2)\, \nabla\log p_t(y).$$ (eq-noise-levels)
#
# $g = 0$ is the probability flow {eq}`eq-flow` (reversed clock), $g^2 = \beta$ is the reverse SDE {eq}`eq-reverse-sde`. Every one is linear, so
# $Y_1 \mid Y_\tau = y$ is $N(A_\tau y, S_\tau)$ with
# $A_\tau = \exp\int_\tau^1 \partial_y b$ and $S_\tau = v_0 - A_\tau^2 v_t$. The Hamilton–Jacobi–Bellman equation and its solution are
#
# $$\begin{gathered}
#   \partial_\tau V + b\, \partial_y V - \tfrac12 g^2 (\partial_y V)^2 + \tfrac12 g^2\, \partial_y^2 V = 0, \\
#   V = -\ell A_\tau y - \tfrac12 \ell^2 S_\tau, \qquad u^* = -g\, \partial_y V = g\, \ell A_\tau .
#   \end{gathered}$$ (eq-hjb)
#
# The optimal process ends in $N(\ell S_0, v_0)$. The target is $N(\ell v_0, v_0)$. With the correlation $\rho$ of $Y_0$ and $Y_1$ under the base process,
#
# $$\text{share of the tilt that is reached} = \frac{\ell S_0}{\ell v_0} = 1 - \rho^2 .$$ (eq-share)
#
# For $g^2 = \gamma\beta$ the integral is elementary, $A = \alpha_t^{\gamma}\,(v_0 / v_t)^{(1+\gamma)/2}$. Checked are
# {eq}`eq-hjb` at random points, and {eq}`eq-share` in three ways: by the formula, as $\int A_\tau\, g u^*\, d\tau$, and
# by summing {eq}`eq-value-bias` over a grid.

# %%
v_0, ell = 0.5, 4 * lam


def v_at(t):
    return schedule.alpha(t) ** 2 * v_0 + schedule.sigma(t) ** 2


def A_closed(t, gamma):
    return schedule.alpha(t) ** gamma * (v_0 / v_at(t)) ** ((1 + gamma) / 2)


generator = seeded(6)
for gamma in (0.0, 0.3, 1.0, 2.0):
    y, t = (
        v.requires_grad_()
        for v in (torch.randn(100, generator=generator), 0.05 + 0.9 * torch.rand(100, generator=generator))
    )
    A = A_closed(t, gamma)
    V = -ell * A * y - 0.5 * ell**2 * (v_0 - A**2 * v_at(t))
    V_y, V_t = torch.autograd.grad(V.sum(), (y, t), create_graph=True)
    beta = -2 * schedule.alpha_dot(t) / schedule.alpha(t)
    b = 0.5 * beta * y - 0.5 * (1 + gamma) * beta * y / v_at(t)
    residual = -V_t + b * V_y - 0.5 * gamma * beta * V_y**2  # d/dtau = -d/dt; V is linear in y, so V_yy = 0
    assert float(residual.detach().abs().max()) < 1e-9

t_grid = torch.sigmoid(torch.linspace(-12, np.log(schedule.t_max / (1 - schedule.t_max)), 4001))
beta = -2 * schedule.alpha_dot(t_grid) / schedule.alpha(t_grid)


def reached(g_squared):
    """A along the grid, rho^2, and the mean of Y_1 under the optimal control."""
    slope_b = 0.5 * beta - 0.5 * (beta + g_squared) / v_at(t_grid)
    log_A = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(slope_b, t_grid)])
    A = log_A.exp()
    return A, float(A[-1] ** 2 * v_at(t_grid)[-1] / v_0), float(torch.trapezoid(A**2 * g_squared * ell, t_grid))


def end_law(A_0, y_1, m=201):
    """Density of Y_1 by summing (eq-value-bias) over y_0."""
    v_T = float(v_at(t_grid)[-1])
    y_0 = torch.linspace(-7, 7, m).unsqueeze(1)
    S = max(v_0 - A_0**2 * v_T, 1e-12)
    log_joint = -0.5 * y_0**2 / v_T - 0.5 * (y_1 - A_0 * y_0) ** 2 / S + ell * y_1 - ell * A_0 * y_0 - 0.5 * ell**2 * S
    p = log_joint.exp().sum(0)
    return p / torch.trapezoid(p, y_1)


# %% tags=["hide-input"]
levels = {"$g = 0$": 0.0 * beta, "$g^2 = 0.25$": 0.25 + 0 * beta, "$g^2 = 1$": 1 + 0 * beta, r"$g^2 = \beta$": beta}
y_1, rows, laws = torch.linspace(-4, 6, 1001), [], {}
for name, g_squared in levels.items():
    A, rho2, mean = reached(g_squared)
    assert abs(mean - ell * v_0 * (1 - rho2)) < 1e-3  # trapezoidal rule on 4000 steps
    if name != "$g = 0$":  # where the joint law has no density
        laws[name] = end_law(float(A[-1]), y_1)
        assert abs(float(torch.trapezoid(laws[name] * y_1, y_1)) - mean) < 1e-3
        assert abs(float(torch.trapezoid(laws[name] * (y_1 - mean) ** 2, y_1)) - v_0) < 1e-3
    else:
        laws[name] = torch.exp(-(y_1**2) / (2 * v_0)) / (2 * np.pi * v_0) ** 0.5
    # Tilting the start by exp(-V) as well, N(0, v_T) to mean ell A_0 v_T, gives the target whatever g is.
    assert abs(mean + ell * float(A[-1]) ** 2 * float(v_at(t_grid)[-1]) - ell * v_0) < 1e-3
    rows.append({"noise": name, r"$\rho^2$": rho2, "mean of $Y_1$": mean, "share of the tilt": mean / (ell * v_0)})
for gamma in (0.0, 0.3, 1.0):
    assert abs(float(reached(gamma * beta)[0][-1] / A_closed(t_grid[-1], gamma)) - 1) < 1e-3
shares = [row["share of the tilt"] for row in rows]
assert shares[0] < 1e-12  # a flow has no noise for a control to act through
assert np.all(np.diff(shares) > 0.05)
assert shares[-1] > 1 - 1e-4
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4f")))

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
    exact_law = torch.exp(-((y_1 - ell * v_0) ** 2) / (2 * v_0)) / (2 * np.pi * v_0) ** 0.5
    left.fill_between(y_1, exact_law, color=figures.COLORS["target"], alpha=0.3, linewidth=0, label="tilt")
    for (name, law), color, line_style in zip(
        laws.items(),
        (figures.COLORS["base"], figures.SERIES[5], figures.COLORS["paper"], figures.COLORS["learned"]),
        (":", "--", "-.", "-"),
        strict=True,
    ):
        left.plot(y_1, law, color=color, linestyle=line_style, label=name)
    left.set(xlim=(-2.5, 4.2), ylim=(0, 0.85), yticks=[], xlabel="$x$", title="law of $Y_1$ under the best control")
    left.legend(loc="upper right", handlelength=1.6)
    c = np.linspace(0, 4, 161)
    right.axhline(1, color=figures.COLORS["target"], linewidth=4, alpha=0.4)
    right.plot(
        c, [1 - reached(v + 0 * beta)[1] for v in c], color=figures.COLORS["paper"], linestyle="-.", label="$g^2 = c$"
    )
    right.plot(c, [1 - reached(v * beta)[1] for v in c], color=figures.COLORS["learned"], label=r"$g^2 = c\,\beta$")
    right.set(xlabel="$c$", ylim=(0, 1.08), title=r"share of the tilt, $1 - \rho^2$")
    right.legend(loc="lower right")
figures.show(
    fig,
    "memory",
    "Left: laws of the final sample under the optimal control. Without noise it is the base law; with more noise it moves toward the tilt, which it "
    "covers for the memoryless noise. Right: the share reached rises from 0 to 1 with the noise level, at once for noise proportional to beta.",
)

# %% [markdown]
# ```{glue:figure} memory
# :name: fig-fine-tuning-memory
#
# The value-function bias in closed form. Left: where the optimal control of {eq}`eq-2-17` ends, by noise level. Only the memoryless one,
# $g^2 = \beta$, covers the tilt. Right: the share of the tilt that is reached, for constant noise and for noise in proportion to $\beta$.
# ```
#
# Without noise there is nothing to steer with: (2.17) with $g = 0$ does not fine-tune at all. Noise in proportion to
# $\beta$ forgets at any level $\gamma > 0$: $\rho^2 \propto \alpha_t^{2\gamma}$ for a start at $t$, and $\alpha_t \to 0$
# as $t \to 1$. A constant $g$ never forgets entirely. The other way out is to tilt the start too, by $e^{-V(\cdot, 0)}$
# {cite}`uehara2024finetuning,tang2024finetuning`: that restores the target for every $g$.
#
# ## Adjoint Matching
#
# ### The lean adjoint is a gradient
#
# How does a small push at time $\tau$ change the reward at the end? By the chain rule, along the *base* drift and with the noise held fixed,
#
# $$\frac{d}{d\tau} \tilde a_\tau = -\big[\nabla_x b(Y_\tau, \tau)\big]^{\!\top}\, \tilde a_\tau, \qquad \tilde a_1 = \lambda\, \nabla_x r(Y_1). \tag{2.18}$$ (eq-2-18)
#
# So $\tilde a_\tau = \nabla_{Y_\tau}\, \lambda r(Y_1)$, and {eq}`eq-2-18` is backpropagation in continuous time. To test
# it to many digits, differentiate through a solver of the paper's flow, and solve {eq}`eq-2-18` backwards beside the
# path. A rotation is added to the drift: without one its Jacobian is symmetric, and a forgotten transpose would not show.

# %%
turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


def flow(tau, y):
    """(2.13) with its signs mended, in the clock of this section, plus a rotation."""
    t = (1 - tau).clamp_min(0.0)  # the solver looks past the end
    alpha = schedule.alpha(t)
    return -schedule.alpha_dot(t) / alpha * (y + base.score(y, t, schedule)) + y @ turn.T


def adjoint_rhs(tau, pair_of):
    """Right sides of the flow and of (2.18), together."""
    y, a = pair_of
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        b = flow(tau, y)
        (pulled,) = torch.autograd.grad(b, y, grad_outputs=a)  # [grad b]^T a
    return b.detach(), -pulled


solver = {"rtol": 1e-9, "atol": 1e-9, "method": "dopri5"}
start = base.noised(schedule, 0.6).sample(20, seeded(7)).requires_grad_()
end = odeint(flow, start, torch.tensor([0.4, 0.999]), **solver)[-1]
(by_autograd,) = torch.autograd.grad(lam * quadratic(end).sum(), start)
with torch.no_grad():
    terminal = lam * (end @ quadratic.A + quadratic.b)
    back, a_start = (v[-1] for v in odeint(adjoint_rhs, (end.detach(), terminal), torch.tensor([0.999, 0.4]), **solver))
assert torch.allclose(back, start.detach(), rtol=0, atol=1e-6)
assert torch.allclose(a_start, by_autograd, rtol=0, atol=1e-5)  # the solvers' tolerance, times the growth of the flow
display(
    Markdown(
        f"Largest difference of the two gradients: {float((a_start - by_autograd).abs().max()):.0e}, where they are as large as {float(by_autograd.abs().max()):.1f}."
    )
)

# %% [markdown]
# ### It is not the control, but its conditional mean is
#
# The paper goes on: "the optimal control is $u^*_t(x) = g(t)^\top \tilde a_t(x)$". But $\tilde a_\tau$ depends on the path after $\tau$; it is no function of $x$.
# What holds is
#
# $$u_\tau^*(y) = \mathbb E\big[g(\tau)\, \tilde a_\tau \,\big|\, Y_\tau = y\big]$$ (eq-conditional-adjoint)
#
# over paths of the *optimal* process, with the drift $b$ of the *base* in {eq}`eq-2-18`.
#
# *Why.* Differentiate $u^* = g\, \nabla_y \log \mathbb E_{\mathrm{base}}[e^{\lambda r(Y_1)} \mid Y_\tau = y]$ inside the
# expectation, with the noise held fixed: this gives $\mathbb E_{\mathrm{base}}[e^{\lambda r(Y_1)}\, \tilde a_\tau \mid
# y]$ over the normaliser, and the weight $e^{\lambda r(Y_1)}$ makes base paths optimal ones. $\square$
#
# Here the conditional mean is taken at all times, by a least-squares fit on a few fixed functions of $y$, in three
# variants: as it should be; over paths of the base; and with the *controlled* drift in {eq}`eq-2-18`. *Distance*: root
# mean square of $u - u^*$ over optimal paths and all times, divided by that of $u^*$.


# %%
def lean_adjoint(drift_of, states, times, terminal):
    """(2.18) backwards along stored states: a at the start of each step, (K, n, d)."""
    a, out = terminal, []
    for k in range(len(times) - 2, -1, -1):
        with torch.enable_grad():
            y = states[k].detach().requires_grad_()
            (pulled,) = torch.autograd.grad(drift_of(y, times[k]), y, grad_outputs=a)
        a = a + (times[k] - times[k + 1]) * pulled
        out.append(a)
    return torch.stack(out[::-1])


def features(y):
    """Thirteen smooth steps and a constant: bounded, so that a fit does not run off in the tails. (n, 1) to (n, 14)."""
    centres = torch.linspace(-3, 3, 13)
    return torch.cat([torch.tanh((y - centres) / 0.5), torch.ones_like(y)], -1)


def fit(y, values):
    """Least squares on the features, with a light ridge: a function of y."""
    F = features(y)
    w = torch.linalg.solve(F.T @ F + 1e-3 * len(F) * torch.eye(14), F.T @ values)
    return lambda y: features(y) @ w


def base_drift(y, t):
    return drift(pair_denoiser, y, t)


def controlled_drift(y, t):
    return base_drift(y, t) + rate(t) ** 0.5 * u_star(y, t)


coarse = clock(140 if full else 70)
roots = torch.tensor([rate(t) ** 0.5 for t in coarse[:-1]]).reshape(-1, 1, 1)
weights = torch.from_numpy(coarse[:-1] - coarse[1:])
probes = [tilted_pair.noised(schedule, t).sample(500, seeded(8)) for t in coarse[:-1]]  # where controls are compared


def distance(u, law=tilted_pair, sign=1.0, points=probes):
    """Relative distance of a control u(y, k) from sign times the optimal one of `law`."""
    gap = size = 0.0
    for k, (t, y) in enumerate(zip(coarse[:-1], points, strict=True)):
        right = sign * u_star(y, t, law)
        gap, size = gap + weights[k] * (u(y, k) - right).square().mean(), size + weights[k] * right.square().mean()
    return float((gap / size) ** 0.5)


zero = torch.zeros_like
runs = {"optimal, base drift": (u_star, base_drift), "base, base drift": (lambda y, t: zero(y), base_drift)}
runs["optimal, controlled drift"] = (u_star, controlled_drift)
rows, clouds = [], {}
for name, (control, drift_of) in runs.items():
    states, _, _ = rollout(pair_denoiser, control, coarse, n_paths, 1, seeded(9))
    a = lean_adjoint(drift_of, states, coarse, lam * torch.ones(n_paths, 1))
    fits = [fit(states[k], roots[k] * a[k]) for k in range(len(roots))]
    clouds[name] = states, roots * a, fits
    rows.append({"paths, drift in (2.18)": name, "distance from $u^*$": distance(lambda y, k, fits=fits: fits[k](y))})
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f")))
errors = [row["distance from $u^*$"] for row in rows]
assert errors[0] < (0.15 if full else 0.25)  # noise of the fit, and the time step
assert min(errors[1:]) > errors[0] + 0.08

# %% [markdown]
# The first row is left with the noise of fit and time step; the others estimate something else.
#
# ### The sign of (2.19)
#
# Adjoint Matching {cite:p}`domingoenrich2024adjoint` turns {eq}`eq-conditional-adjoint` into a regression: the minimiser of a squared error is a
# conditional mean. The paper prints
#
# $$L_{\mathrm{AM}}(\phi) = \mathbb E\Big[\int_0^1 \big\|u_\phi(Y_\tau, \tau) + g(\tau)^\top \tilde a_\tau\big\|^2\, d\tau\Big]
#   \qquad \text{(as printed)}. \tag{2.19}$$ (eq-2-19)
#
# Its minimiser is *minus* a conditional mean. With $\tilde a_1 = +\lambda\nabla r$ as in {eq}`eq-2-18` the loss has to be
#
# $$L_{\mathrm{AM}}(\phi) = \mathbb E\Big[\int_0^1 \big\|u_\phi(Y_\tau, \tau) - g(\tau)^\top \tilde a_\tau\big\|^2\, d\tau\Big],$$ (eq-am-corrected)
#
# or else the plus stays and the adjoint starts from $-\lambda\nabla r$ ({doc}`errata`, {ref}`item 5 <err-am-sign>`). The
# paths come from the current control $u_\phi$ and are not differentiated. For the Gaussian with a linear reward $\tilde
# a_\tau = \ell A_\tau$ is the same on every path, and $u^* = g\,\ell A_\tau$ by {eq}`eq-hjb`. So put $u = c\, u^*$ into
# both losses and look for the best $c$.


# %%
def loss_am(u, g_a, dt, sign):
    """(2.19) for controls and g a, (K, n, d), at time steps dt (K,): sign +1 is the printed one."""
    return (dt * (u + sign * g_a).square().sum(-1).mean(1)).sum()


A = reached(beta)[0]
best_control = (beta**0.5 * ell * A).reshape(-1, 1, 1)
time_weights = torch.gradient(t_grid)[0]
scale = np.linspace(-2, 2, 81)
rows = []
for name, sign in (("printed", 1.0), ("corrected", -1.0)):
    c = scale[np.argmin([float(loss_am(v * best_control, best_control, time_weights, sign)) for v in scale])]
    end_mean = c * reached(beta)[2]
    rows.append(
        {"(2.19)": name, "best $u / u^*$": c, "mean of $Y_1$": f"{end_mean:.2f}", "mean of the target": f"{ell * v_0:.2f}"}
    )
    assert abs(c + sign) < 1e-9
display(Markdown(pd.DataFrame(rows).to_markdown(index=False)))

# %% [markdown]
# For two modes the adjoint differs from path to path. Where Adjoint Matching takes one optimiser step on
# {eq}`eq-am-corrected` a round, we take the minimiser itself, with a control that is linear in fixed functions: simulate,
# solve {eq}`eq-2-18` along the *base* drift, fit.

# %%
index = {float(t): k for k, t in enumerate(coarse[:-1])}


def adjoint_matching(sign, rounds, seed=10):
    """Controls at each time, fitted round by round; sign +1 is the loss as printed."""
    fits = [zero] * len(roots)
    for j in range(rounds):
        states, _, _ = rollout(
            pair_denoiser, lambda y, t, fits=fits: fits[index[float(t)]](y), coarse, n_paths, 1, seeded(seed + j)
        )
        g_a = roots * lean_adjoint(base_drift, states, coarse, lam * torch.ones(n_paths, 1))  # grad r = 1
        fits = [fit(states[k], -sign * g_a[k]) for k in range(len(roots))]
        own = torch.stack([f(y) for f, y in zip(fits, states[:-1], strict=True)])
        assert loss_am(own, g_a, weights, sign) < min(loss_am(c * own, g_a, weights, sign) for c in (-1, 0.9, 1.1))
    return fits


# %% tags=["hide-input"]
rounds = 6 if full else 3
learned = {name: adjoint_matching(sign, rounds) for name, sign in (("corrected", -1.0), ("printed", 1.0))}
away_pair = pair.tilted(slope, -lam)
probes_away = [away_pair.noised(schedule, t).sample(500, seeded(11)) for t in coarse[:-1]]


def own(name):
    return lambda y, k: learned[name][k](y)


scores = {
    "corrected": [distance(own("corrected")), distance(own("corrected"), sign=-1.0), distance(own("corrected"), away_pair)],
    "printed": [
        distance(own("printed")),
        distance(own("printed"), sign=-1.0, points=probes_away),
        distance(own("printed"), away_pair, points=probes_away),
    ],
}
states, _, _ = rollout(pair_denoiser, u_star, coarse, n_paths, 1, seeded(12))
g_a = roots * lean_adjoint(base_drift, states, coarse, lam * torch.ones(n_paths, 1))
flipped = [fit(states[k], -g_a[k]) for k in range(len(roots))]
offline = distance(lambda y, k: flipped[k](y), sign=-1.0), distance(lambda y, k: flipped[k](y))
rows = [
    {"loss": name, "from $u^*$": a, "from $-u^*$": b, "from the optimal control of $-r$": c}
    for name, (a, b, c) in scores.items()
]
display(
    Markdown("Relative distance of the learned control:\n\n" + pd.DataFrame(rows).to_markdown(index=False, floatfmt=".2f"))
)
assert scores["corrected"][0] < (0.2 if full else 0.35)  # noise of the fit and time step, as above
assert scores["printed"][2] < (0.2 if full else 0.35)
assert scores["printed"][0] > 1.5
assert offline[0] < (0.2 if full else 0.35)
assert abs(offline[1] - 2) < 0.2

# %% [markdown]
# With the corrected sign the fit finds $u^*$. On fixed paths the printed sign would learn $-u^*$. But the paths follow
# the control, and a sign in front of $\tilde a$ is a sign in front of $r$: the iteration settles on the optimal control
# **of the reward $-r$** (over whose paths the last two entries of the second row are taken). The model flees the reward
# as well as it can.

# %% tags=["hide-input"]
k_mid = int(np.argmin(np.abs(coarse - 0.5)))
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8), sharey=True)
    ys = torch.linspace(-3.2, 3.2, 161).unsqueeze(1)
    truth = u_star(ys, float(coarse[k_mid]))
    paths, lean, fits = clouds["optimal, base drift"]
    shown = slice(0, 1200)
    left.plot(
        paths[k_mid, shown, 0],
        lean[k_mid, shown, 0],
        ".",
        color=figures.COLORS["band"],
        markersize=3,
        alpha=0.5,
        rasterized=True,
    )
    left.plot(ys, truth, color=figures.COLORS["target"], linewidth=4, alpha=0.4, label="$u^*$")
    left.plot(ys, fits[k_mid](ys), color=figures.COLORS["learned"], label="mean, optimal paths")
    left.plot(
        ys, clouds["base, base drift"][2][k_mid](ys), color=figures.COLORS["base"], linestyle=":", label="mean, base paths"
    )
    left.set(xlabel="$y$", title="the lean adjoint on single paths", xlim=(-3.3, 3.8), ylim=(-3, 4.2))
    left.legend(loc="lower right", fontsize=9, handlelength=1.8)
    right.plot(ys, truth, color=figures.COLORS["target"], linewidth=4, alpha=0.4, label="$u^*$")
    right.plot(ys, learned["corrected"][k_mid](ys), color=figures.COLORS["learned"], label="learned, corrected sign")
    right.plot(
        ys,
        u_star(ys, float(coarse[k_mid]), away_pair),
        color=figures.COLORS["band"],
        linewidth=4,
        alpha=0.5,
        label="optimal for $-r$",
    )
    right.plot(
        ys, learned["printed"][k_mid](ys), color=figures.COLORS["paper"], linestyle="--", label="learned, printed sign"
    )
    right.plot(ys, -truth, color=figures.INK, linewidth=0.8, linestyle=":", label="$-u^*$")
    right.set(xlabel="$y$", title="learned controls", xlim=(-3.3, 5.6))
    left.set_ylabel("control at $t = 0.5$")
    right.legend(loc="upper right", fontsize=9, handlelength=1.8, labelspacing=0.25)
figures.show(
    fig,
    "controls",
    "Left: a cloud of lean adjoints; its conditional mean over optimal paths lies on the optimal control, over base paths it does not. Right: the "
    "corrected loss learns the optimal control, the printed one a negative control that is optimal for minus the reward.",
)

# %% [markdown]
# ```{glue:figure} controls
# :name: fig-fine-tuning-controls
#
# Two modes at $\pm2$, $r(x) = x$, at $t = \frac12$. Left: dots are $g\tilde a$ on single optimal paths. No function of $y$ passes through them; their
# conditional mean is $u^*$ (thick), on optimal paths only. Right: with the corrected sign of {eq}`eq-2-19` Adjoint Matching learns $u^*$, with the
# printed one the optimal control for $-r$.
# ```
#
# ### Sampling without noise
#
# Afterwards, the paper says, one may sample with $g = 0$. This is true, with care. The fine-tuned drift of the memoryless
# process is $\beta\,(\frac12 y + \nabla\log p_t^b + u / g)$, so the fine-tuned *score* is
#
# $$s_\phi = \nabla\log p_t^b + \frac{u_\phi}{g},$$ (eq-absorbed)
#
# and any sampler can be built from it, with {eq}`eq-noise-levels` or Algorithm 1 at any $\eta$. To set $g = 0$ is to
# change the factor of the score too, from $\beta$ to $\frac12\beta$; to drop the noise alone gives another law. In one
# dimension a flow must take quantiles of noise to quantiles of the target, a check without any sampling.

# %%
normal = torch.distributions.Normal(0.0, 1.0)
levels_q = torch.linspace(0.002, 0.998, 499)
wide = torch.linspace(-7, 8, 6001).unsqueeze(1)


def quantiles(law):
    cdf = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(law.log_prob(wide).exp(), wide[:, 0])])
    return torch.from_numpy(np.interp(levels_q, cdf, wide[:, 0]))


def deterministic(score, times, factor=0.5):
    """dy = beta (y / 2 + factor * score) dtau by Heun's method from quantiles of the noise, stopping at times[-1]."""
    y = normal.icdf(levels_q).unsqueeze(1)

    def velocity(y, k):
        return rate(times[k]) * (0.5 * y + factor * score(y, k))

    for k in range(len(times) - 2):
        dt = times[k] - times[k + 1]
        first = velocity(y, k)
        y = y + 0.5 * dt * (first + velocity(y + dt * first, k + 1))
    return y[:, 0]


def exact_score(y, k):
    time = torch.tensor(float(coarse[k]))
    return pair.score(y, time, schedule) + u_star(y, float(coarse[k])) / rate(coarse[k]) ** 0.5


def learned_score(y, k):
    return pair.score(y, torch.tensor(float(coarse[k])), schedule) + learned["corrected"][k](y) / rate(coarse[k]) ** 0.5


truth = quantiles(tilted_pair)
ends = {
    "exact control, $g = 0$": deterministic(exact_score, coarse),
    "learned control, $g = 0$": deterministic(learned_score, coarse),
    "base, $g = 0$": deterministic(lambda y, k: pair.score(y, torch.tensor(float(coarse[k])), schedule), coarse),
    "exact control, noise dropped, drift kept": deterministic(exact_score, coarse, factor=1.0),
}
# %% tags=["hide-input"]
states, _, _ = rollout(pair_denoiser, u_star, coarse, n_paths, 1, seeded(13))
ends["exact control, with its noise"] = torch.quantile(states[-1][:, 0], levels_q)
ends["**the tilted density**"] = truth
rows = [
    {
        "sampler": name,
        "mass below 0": float(np.interp(0, end, levels_q)) if end[0] < 0 else 0.0,
        "mean": float(end.mean()),
        "s.d.": float(end.std()),
        "distance": float((end - truth).abs().mean()),
    }
    for name, end in ends.items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f")))
exact_gap, learned_gap, base_gap, dropped_gap, noisy_gap, _ = (row["distance"] for row in rows)
assert exact_gap < 0.02  # second order in the time step
# A control that is off by some share misses the target by at most about that share of the way from the base.
assert learned_gap < scores["corrected"][0] * base_gap
assert noisy_gap < (0.15 if full else 0.3)  # sampling noise and first order in the time step
assert min(base_gap, dropped_gap) > 0.5
assert rows[3]["s.d."] < 0.1  # everything lands on one point

# %% [markdown]
# *Distance*: mean over the quantiles. Without noise the law is the same, to the accuracy of the solver, or of the fit.
# With the noise dropped and the drift kept, all quantiles land on one point: a memoryless drift forgets where it started.
#
# ## What iterative tilting needs instead
#
# All methods above ask for $\nabla r$. Let each take one optimiser step on the same toy, with the network and the
# minibatch of Section 4.2 and equally many reverse steps. Counted are the samples on which the reward is evaluated, and
# differentiated, those on which the network is evaluated, and the peak of what autograd keeps, without the weights. The
# counts of iterative tilting are those of a tilt, divided by its number of steps. Its reward is wrapped in
# {py:class}`~itlib.rewards.ForwardOnly`.


# %% tags=["hide-input"]
class Meter:
    """Counts what happens inside `with`: reward values and gradients, network evaluations, peak of the kept activations."""

    def __init__(self, r):
        self.r, self.values, self.gradients, self.evaluations, self.kept, self.peak = r, 0, 0, 0, 0, 0
        self.alive = {}

    def reward(self, x):
        y = self.r(x)
        self.values += len(x)
        if y.requires_grad:
            y.register_hook(lambda g: setattr(self, "gradients", self.gradients + len(x)))
        return y

    def _pack(self, tensor):
        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self.alive:  # a storage counts once, until the last reference to it is gone
            self.kept += size
            self.peak = max(self.peak, self.kept)
            self.alive[key] = 0
        self.alive[key] += 1
        box = Box(tensor)
        weakref.finalize(box, self._drop, key, size)
        return box

    def _drop(self, key, size):
        self.alive[key] -= 1
        if not self.alive[key]:
            del self.alive[key]
            self.kept -= size

    def __enter__(self):
        def count(module, inputs, output):
            if isinstance(module, Network):
                self.evaluations += len(output)

        self.handle = torch.nn.modules.module.register_module_forward_hook(count)
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda v: v.tensor if isinstance(v, Box) else v)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)
        self.handle.remove()


class Box:
    """A kept tensor; when autograd lets go of it, the meter hears."""

    def __init__(self, tensor):
        self.tensor = tensor


# %%
B, K = 64, 50 if full else 20  # minibatch, reverse steps
S, E = (1000, 100) if full else (300, 30)  # a tilt: samples, optimiser steps
torch.set_default_dtype(torch.float32)  # as networks are trained
network, frozen = Network(2, seed=0), Network(2, seed=0).requires_grad_(False)
toy = parse_reward("paper")


def draft_step(r, steps, last=None):
    xi = torch.randn(len(steps) + 1, B, 2, generator=seeded(14))
    (-r(psi_0(network, xi, steps, last)).mean()).backward()  # (2.16)


def draft_lv_step(r, steps, copies=2):
    generator = seeded(14)
    t, a, b, _ = steps[-1]
    time = torch.tensor(t)
    with torch.no_grad():
        clean = psi_0(network, torch.randn(len(steps) + 1, B, 2, generator=generator), steps)
    for _ in range(copies):
        x = schedule.alpha(time) * clean + schedule.sigma(time) * torch.randn(B, 2, generator=generator)
        (-r(a * x + b * network(x, time)).mean() / copies).backward()


def adjoint_matching_step(r, times):
    def control(y, t):
        time = torch.tensor(float(t))
        return -(rate(t) ** 0.5) * (network(y, time) - frozen(y, time)) / schedule.sigma(time)

    with torch.no_grad():
        states, _, _ = rollout(frozen, control, times, B, 2, seeded(14))
    end = states[-1].requires_grad_()
    (gradient,) = torch.autograd.grad(lam * r(end).sum(), end)
    a = lean_adjoint(lambda y, t: drift(frozen, y, t), states, times, gradient)  # (2.18)
    for k, (t, s) in enumerate(pairwise(times)):
        u, g_a = control(states[k], t)[None], rate(t) ** 0.5 * a[k : k + 1]
        loss_am(u, g_a, torch.tensor([t - s]), -1.0).backward()  # (2.19), corrected, a time step at a time


def iterative_tilting_step(r):
    student = Network(2, seed=0).float()
    config = TiltingConfig(N=20, lam=lam, S=S, J=K, B=B, E=E)
    next(iterative_tilting(student, ForwardOnly(r), schedule, config))
    return E


methods = {
    "DRaFT": lambda r: draft_step(r, reverse_steps(K)),
    "DRaFT-1": lambda r: draft_step(r, reverse_steps(K), 1),
    "DRaFT-LV": lambda r: draft_lv_step(r, reverse_steps(K)),
    "Adjoint Matching": lambda r: adjoint_matching_step(r, clock(K)),
    "iterative tilting": iterative_tilting_step,
}
measured = {}
for name, step_of in methods.items():
    with Meter(toy) as meter:
        share = step_of(meter.reward) or 1
    measured[name] = (meter.values / share, meter.gradients / share, meter.evaluations / share, meter.peak / 2**20)
    assert meter.kept == 0  # everything was let go in the end

# %% tags=["hide-input"]
with Meter(toy) as meter:
    draft_step(meter.reward, reverse_steps(2 * K))
rows = [
    {
        "method, one optimiser step": name,
        "values of $r$": f"{values:.0f}",
        r"gradients of $r$": f"{gradients:.0f}",
        "network evaluations": f"{evaluations:,.0f}",
        "kept at the peak, MiB": f"{peak:.2f}",
    }
    for name, (values, gradients, evaluations, peak) in measured.items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(Markdown(f"{B} samples a step, {K} reverse steps; a tilt draws {S} samples and takes {E} steps."))
assert measured["Adjoint Matching"][2] == 6 * B * K  # four calls of the base and two of the model for each state
assert measured["iterative tilting"][:2] == (S / E, 0)  # values, and never a gradient
assert all(measured[name][1] >= B for name in methods if name != "iterative tilting")
peaks = {name: row[3] for name, row in measured.items()}
assert abs(meter.peak / 2**20 / peaks["DRaFT"] - 2) < 0.02  # twice the reverse steps, twice the memory
assert abs(peaks["DRaFT"] / peaks["DRaFT-1"] - K) < 0.02 * K
assert max(peak for name, peak in peaks.items() if name != "DRaFT") < 1.1 * peaks["DRaFT-1"]

# %% [markdown]
# DRaFT keeps the activations of all its steps; the others keep those of one evaluation. Adjoint Matching pays in
# evaluations: both networks along each path and again in the loss, and a derivative of the base on the way back.
# Iterative tilting reuses its dataset, so it is cheap per step. The table does not show how many steps each needs, and
# how noisy they are ({doc}`s4_2_results`, {doc}`s3_2_algorithm`).
#
# ## Try this
#
# - Give the toy a reward with a jump: $r = 2$ where $x_2 > 1$, else $0$. What do the methods learn from it?

# %% tags=["hide-cell"]
torch.set_default_dtype(torch.float64)
m = 20_000 if full else 5_000


def jump(x):
    return 2.0 * (x[:, 1] > 1) + 0.0 * x[:, 1]  # the zero keeps autograd happy


theta_0 = torch.zeros(2, requires_grad=True)
ten = reverse_steps(10)
noises = torch.randn(11, 200, 2, generator=seeded(15))
(gradient,) = torch.autograd.grad(J(theta_0, noises, jump, ten), theta_0)
assert float(gradient.abs().max()) == 0.0

half = torch.tensor(0.5)
x_0, z = base.sample(m, seeded(16)), torch.randn(m, 2, generator=seeded(17))
x_t = schedule.alpha(half) * x_0 + schedule.sigma(half) * z
batch = TiltBatch(1, x_0, jump(x_0), half.expand(m), z, x_t, exact(x_t, half))
moved = single_sample(batch)[:, 1]
error = float(moved.std()) / m**0.5
assert float(moved.mean()) > 5 * error
display(
    Markdown(
        "DRaFT's gradient is exactly zero: where the reward has a derivative, it vanishes. The adjoint starts from zero too. The covariance of iterative tilting does "
        f"not mind: at $t = 0.5$ its single samples average {float(moved.mean()):.3f} ± {error:.3f} in the second coordinate, upwards."
    )
)

# %% [markdown]
# - Start the memoryless process of {eq}`eq-share` not at $t = 0.999$ but at $t = 0.5$, from the exact law $p_{0.5}$. Is it still memoryless?

# %% tags=["hide-cell"]
late = torch.tensor(0.5)
rho2 = float(A_closed(late, 1.0) ** 2 * v_at(late) / v_0)
assert abs(rho2 - float(schedule.alpha(late) ** 2 * v_0 / v_at(late))) < 1e-12
assert 0.2 < rho2 < 0.5
display(
    Markdown(
        rf"No: $\rho^2 = {rho2:.2f}$, and that share of the tilt is out of reach. Memoryless means that $\alpha$ vanishes at the start; $g^2 = \beta$ alone "
        "does not do it. The same bias waits for whoever fine-tunes only the last steps of a sampler."
    )
)
