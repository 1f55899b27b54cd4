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
# A pretrained model draws from $p_0^b$, and a reward says what we prefer. Section 2.2 of the paper recalls two ways to get there
# that differentiate the reward: through the sampler (DRaFT), and along a path (stochastic optimal control, Adjoint Matching).
#
# **You will see** which objective has the tilted density as its optimum, and that DRaFT's has not; what a control can reach, and
# why that depends on the sampler's noise; what a model learns from the wrong sign in (2.19); and what a step of each method costs.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer samples and steps

# %%
import weakref
from collections import Counter
from itertools import pairwise

import numpy as np
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.distributions import Normal
from torchdiffeq import odeint

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import reverse_steps, sample, time_grid
from itlib.schedules import Cosine
from itlib.tilting import TiltBatch, TiltingConfig, iterative_tilting, single_sample

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"
seeded = torch.Generator().manual_seed

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
# You get it if you want a large reward *and* a model close to the base. For any density $q$,
#
# $$\mathbb E_q[\lambda r] - \mathrm{KL}(q \,\|\, p_0^b) = \log Z_{\lambda r} - \mathrm{KL}(q \,\|\, p_0^{\lambda r}).$$ (eq-gibbs)
#
# *Proof.* Take the logarithm of {eq}`eq-2-14`, $\lambda r = \log Z_{\lambda r} + \log p_0^{\lambda r} - \log p_0^b$, average it under $q$, and
# subtract $\mathbb E_q[\log q - \log p_0^b]$ on both sides. $\square$
#
# The last term vanishes for $q = p_0^{\lambda r}$ alone. So the tilted density is the only maximum, and the maximum is $\log Z_{\lambda r}$:
# **Gibbs' variational principle**. We check it by quadrature for a few $q$, with the paper's reward $4x_2$. On this page $\lambda = \frac12$,
# because at $\lambda = 1$ nobody would notice a forgotten $\lambda$.

# %%
lam = 0.5
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("paper")
target = base.tilted(reward, lam)
axis = torch.linspace(-9, 9, 361 if full else 121)
grid, cell = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
log_base = base.log_prob(grid)
log_tilt = lam * reward(grid) + log_base  # (2.14) without its Z
log_z = float(torch.logsumexp(log_tilt, 0) + cell.log())
gap = float((log_tilt - log_z - target.log_prob(grid)).abs().max())
figures.check("(2.14) agrees with the closed form", gap, below=1e-10)

# %%
one = torch.eye(2)[None]
high = GaussianMixture(torch.ones(1), torch.tensor([[2.0, 4.0]]), 0.05 * one)
candidates = {"the base": base, "tilted half way": base.tilted(reward, lam / 2)}
candidates |= {"**the tilted density**": target, "nearly a point, up high": high}


def mean(log_q, values):
    return float((log_q.exp() * values).sum() * cell)


# %%
rows = []
for name, q in candidates.items():
    log_q = q.log_prob(grid)
    gain = lam * mean(log_q, reward(grid))
    price = mean(log_q, log_q - log_base)
    gap = mean(log_q, log_q - target.log_prob(grid))
    assert abs(gain - price - (log_z - gap)) < 1e-9  # Gibbs
    columns = ("$q$", r"$\mathbb E_q[\lambda r]$", "KL to base", "difference")
    values = (round(v, 9) + 0.0 for v in (gain, price, gain - price))  # no -0.00
    rows.append(dict(zip(columns, (name, *values), strict=True)))
figures.table(rows, floatfmt=".2f")
figures.glue(log_z=f"{log_z:.2f}")

# %% [markdown]
# The largest difference there can be is $\log Z_{\lambda r}$, here {glue:text}`log_z`. The second column alone would lead to the last row, and
# beyond. This sorts the methods:
#
# | method | ends at the tilt | needs $\nabla r$ |
# |:--|:--|:--|
# | DRaFT {eq}`eq-2-15` | no | yes |
# | control {eq}`eq-2-17`, Adjoint Matching {eq}`eq-2-19` | if the process forgets its start, and the sign is mended | yes |
# | iterative tilting {eq}`eq-3-10` | up to $O(1/N)$ | no |
#
# ## DRaFT: differentiate the sampler
#
# Fix the Gaussian noises $\xi$ that Algorithm 1 draws. Then its output is a function $\psi_0(\theta, \xi)$ of the parameters, and
# {cite:t}`clark2024directly` maximise
#
# $$J(\theta) = \mathbb E_\xi\big[r(\psi_0(\theta, \xi))\big] \tag{2.15}$$ (eq-2-15)
#
# by the chain rule,
#
# $$\nabla_\theta J(\theta) = \mathbb E_\xi\Big[\Big(\frac{\partial \psi_0(\theta, \xi)}{\partial \theta}\Big)^{\!\top} \nabla_x r(\psi_0(\theta, \xi))\Big].
#   \tag{2.16}$$ (eq-2-16)
#
# We test this without a network: give the *exact* noise prediction a constant shift as its parameter, $\hat x_1^\theta = \hat x_1 + \theta$.

# %%
exact = ExactNoisePredictor(base, schedule)


def algorithm_1(K):
    return list(reverse_steps(schedule, time_grid(schedule, K), eta=1.0))


def psi_0(denoiser, xi, steps, last=None):
    """Output of Algorithm 1 from noises xi; autograd sees the `last` steps, or all."""
    x, tracked = xi[0], torch.is_grad_enabled()
    for k, step in enumerate(steps):
        seen = tracked and (last is None or len(steps) - k <= last)
        with torch.set_grad_enabled(seen):
            x_1 = denoiser(x, torch.tensor(step.t, dtype=x.dtype))
            x = step.draw(x, x_1, xi[k + 1])
    return x


# %%
def J(theta, xi, r, steps):
    return r(psi_0(lambda x, t: exact(x, t) + theta, xi, steps)).mean()  # (2.15)


n, steps, generator = 2000 if full else 500, algorithm_1(10), seeded(0)
xi = torch.stack([torch.randn(n, 2, generator=generator) for _ in range(11)])
library = sample(exact, schedule, n, steps=10, generator=seeded(0), dtype=torch.float64)
gap = float((psi_0(exact, xi, steps) - library).abs().max())
figures.check("psi_0 agrees with the library's sampler", gap, below=1e-12)

# %% [markdown]
# Now {eq}`eq-2-16` as it is printed, against central differences of $J$ with the same noises, for the reward `quadratic`.

# %%
quadratic, theta = parse_reward("quadratic"), torch.tensor([0.02, -0.04])


def output(theta):
    return psi_0(lambda x, t: exact(x, t) + theta, xi, steps)


x_0, jacobian = output(theta), torch.func.jacfwd(output)  # (n, 2), (n, 2, 2)
grad_r = x_0 @ quadratic.A + quadratic.b
chain_rule = torch.einsum("nij,ni->j", jacobian(theta), grad_r) / n  # (2.16)

# %%
h = 1e-7
ends = [[J(theta + s * e, xi, quadratic, steps) for s in (h, -h)] for e in torch.eye(2)]
differences = torch.tensor([(up - down) / (2 * h) for up, down in ends])
gap = float((chain_rule - differences).abs().max())
figures.check("(2.16) agrees with finite differences", gap, below=1e-5)

# %% [markdown]
# ### Truncated gradients
#
# To differentiate all steps is to keep the activations of all of them. DRaFT-$K$ differentiates only the last $K$. DRaFT-LV
# noises the finished sample again, to the time of the last step, differentiates that step, and averages over several such noisings.
# The paper calls this a control variate that remains unbiased; it is neither ({ref}`item 15 <err-draft>`).


# %% tags=["hide-input"]
def each_sample(output):
    """One gradient per sample: each has its own copy of theta."""
    theta_n = theta.repeat(n, 1).requires_grad_()
    return torch.autograd.grad(quadratic(output(theta_n)).sum(), theta_n)[0]


def draft(last):
    return each_sample(lambda theta_n: psi_0(lambda x, t: exact(x, t) + theta_n, xi, steps, last))


def draft_lv(copies, generator):
    step, total = steps[-1], 0.0
    t = torch.tensor(step.t)
    for _ in range(copies):
        z = torch.randn(n, 2, generator=generator)
        x = schedule.alpha(t) * x_0 + schedule.sigma(t) * z  # x_0 is finished, and not differentiated
        total = total + each_sample(lambda theta_n, x=x: step.mean(x, exact(x, t) + theta_n))
    return total / copies


# %%
gradients = {"DRaFT, all 10 steps": draft(None)}
gradients |= {f"DRaFT-{K}": draft(K) for K in (4, 1)}
gradients |= {f"DRaFT-LV, {c} noisings": draft_lv(c, seeded(1)) for c in (2, 16)}
whole, rows = gradients["DRaFT, all 10 steps"].mean(0), []
gap = float((whole - chain_rule).abs().max())
figures.check("DRaFT agrees with (2.16)", gap, below=1e-12)
for name, g in gradients.items():
    share = f"{float(g.mean(0) @ whole / whole.square().sum()):.0%}"
    columns = ("estimate", "mean along the full gradient", "spread")
    values = (name, share, float(g.std(0).norm()))
    rows.append(dict(zip(columns, values, strict=True)))
figures.table(rows)

# %% tags=["hide-input"]
short, lv = gradients["DRaFT-1"], gradients["DRaFT-LV, 16 noisings"]
standard_error = (short.std(0).square() + lv.std(0).square()).sqrt() / n**0.5
assert (lv.std(0) < short.std(0)).all()
assert ((short.mean(0) - lv.mean(0)).abs() < 4 * standard_error).all()  # the same gradient ...
assert float(lv.mean(0) @ whole / whole.square().sum()) < 0.1  # ... which is not the full one

# %% [markdown]
# DRaFT-1 and DRaFT-LV estimate the same thing, a small share of the full gradient. Averaging helps little, because most of the spread comes from
# which $x_0$ was drawn.
#
# ### Where it ends
#
# $\lambda$ does not occur in {eq}`eq-2-15`, so the tilted density cannot be its optimum. What is? Look at the second coordinate of the
# toy, one Gaussian $\mathcal N(0, \frac12)$, and give step $k$ a shift and a slope to learn, $\hat x_1^\theta = \hat x_1 + \theta_k + \vartheta_k x_2$.
# All states stay Gaussian, so $J$ is a function of a mean and a variance: no sampling, no noise in the gradient.
#
# What DRaFT lacks is a price for leaving the base. A step of Algorithm 1 is Gaussian, with a mean $m_\theta$ and the standard deviation
# $\eta_k$. So the KL divergence between fine-tuned and base *paths* is a sum,
#
# $$\mathrm{KL}_{\mathrm{path}} = \sum_k \mathbb E\,\frac{\|m_\theta(x_{t_{k+1}}) - m_{\mathrm{base}}(x_{t_{k+1}})\|^2}{2\eta_k^2},$$ (eq-path-kl)
#
# and the objective with the price is $\mathbb E[\lambda r(\psi_0)] - \mathrm{KL}_{\mathrm{path}}$. The last step has no noise, so it keeps the base's mean.


# %%
def second_coordinate(theta, steps):
    """Mean and variance of x_2 at the end, path KL; theta (K, 2): shift, slope."""
    t, a, b, std = torch.tensor(steps).T
    shift, slope = theta.T
    sigma = schedule.sigma(t)
    exact_slope = sigma / (schedule.alpha(t) ** 2 / 2 + sigma**2)
    mean, variance, price = torch.tensor(0.0), torch.tensor(1.0), 0.0
    for k, noise in enumerate(std):
        if noise > 0:
            moved = (shift[k] + slope[k] * mean) ** 2 + slope[k] ** 2 * variance
            price = price + b[k] ** 2 * moved / (2 * noise**2)
        factor = a[k] + b[k] * (exact_slope[k] + slope[k])
        mean = factor * mean + b[k] * shift[k]
        variance = factor**2 * variance + noise**2
    return mean, variance, price


# %%
def objective(theta, steps, r, with_price):
    if with_price:  # the last step stays the base's
        theta = torch.cat([theta[:-1], torch.zeros(1, 2)])
    mean, variance, price = second_coordinate(theta, steps)
    value = r(mean.reshape(1, 1))[0] + 0.5 * r.A[0, 0] * variance  # E[r] of a Gaussian
    return lam * value - price if with_price else value


# %% tags=["hide-input"]
def climb(r, with_price, steps, iterations):
    """Mean and variance of x_2 after each step of Adam."""
    theta, trace = torch.zeros(len(steps), 2, requires_grad=True), []
    optimiser = torch.optim.Adam([theta], lr=0.03)
    for _ in range(iterations):
        (theta.grad,) = torch.autograd.grad(-objective(theta, steps, r, with_price), theta)
        optimiser.step()
        trace.append([float(v) for v in second_coordinate(theta.detach(), steps)[:2]])
    return np.array(trace)


def optimum(r, steps):
    """Mean and variance at the maximum with the price."""
    theta = torch.zeros(len(steps), 2, requires_grad=True)
    options = {"max_iter": 500, "tolerance_grad": 1e-11, "tolerance_change": 0}
    solver = torch.optim.LBFGS([theta], line_search_fn="strong_wolfe", **options)

    def closure():
        loss = -objective(theta, steps, r, True)
        (theta.grad,) = torch.autograd.grad(loss, theta)
        return loss

    solver.step(closure)
    return [float(v) for v in second_coordinate(theta.detach(), steps)[:2]]


# %%
linear = parse_reward("b=4", d=1)  # 4 x_2, without a maximum
bounded = parse_reward("A=-2 b=4 c=-4", d=1)  # -(x_2 - 2)^2
iterations = 250 if full else 60
few, many = (algorithm_1(K) for K in ((20, 40) if full else (10, 20)))
traces = {}
for name, r in (("linear", linear), ("bounded", bounded)):
    for priced in (False, True):
        traces[name, priced] = climb(r, priced, few, iterations)


# %% tags=["hide-input"]
def tilt_of(steps, r):
    """What the base's sampler draws, N(0, v), tilted: mean and variance."""
    v = second_coordinate(torch.zeros(len(steps), 2), steps)[1]
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 1), v.reshape(1, 1, 1)).tilted(r, lam)
    return float(law.means), float(law.covariances)


gap = np.abs(np.array(optimum(linear, few)) - tilt_of(few, linear)).max()
figures.check("linear reward, with the path KL: the optimum is the tilt", gap, below=1e-4)
# A curved reward asks for narrower transitions too, which shift and slope cannot give: an error of the variance, of order 1/K.
wide = [optimum(bounded, steps)[1] / tilt_of(steps, bounded)[1] - 1 for steps in (few, many)]
assert 0 < wide[0] < 0.06
assert wide[1] < 0.65 * wide[0]
ends = {key: trace[-1] for key, trace in traces.items()}
assert ends["linear", False][0] > 20 * tilt_of(few, linear)[0]  # away
assert ends["bounded", False][1] < 0.7 * ends["bounded", True][1]  # and onto a point
figures.glue(
    draft_mean=float(ends["linear", False][0]), draft_variance=f"{ends['bounded', False][1]:.3f}", climbs=iterations
)
figures.glue(wide_few=f"{wide[0]:.1%}", wide_many=f"{wide[1]:.1%}", few=len(few), many=len(many))

# %% tags=["hide-input"]
xs = np.linspace(-2.2, 3.2, 400)


def bell(mean, variance):
    return np.exp(-((xs - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


base_color, learned_color, target_color = (figures.COLORS[name] for name in ("base", "learned", "target"))
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    number = np.arange(1, iterations + 1)
    left.axhline(tilt_of(few, linear)[0], color=target_color, linewidth=4, alpha=0.4)
    left.plot(number, traces["linear", False][:, 0], color=learned_color)
    left.plot(number, traces["linear", True][:, 0], color=base_color, linestyle="--")
    left.set(yscale="log", ylim=(0.05, 1e6), xlabel="optimiser step", ylabel="mean of $x_2$", title="$r = 4x_2$")
    right.fill_between(xs, bell(*tilt_of(few, bounded)), color=target_color, alpha=0.3, linewidth=0, label="tilt")
    for share in (0.1, 0.3, 1.0):
        now = bell(*traces["bounded", False][int(share * iterations) - 1])
        right.plot(xs, now, color=learned_color, alpha=share**0.5, label="DRaFT" if share == 1 else None)
    right.plot(xs, bell(*ends["bounded", True]), color=base_color, linestyle="--", label="with path KL")
    right.set(ylim=(0, None), xlabel="$x_2$", ylabel="density", title="$r = -(x_2 - 2)^2$", yticks=[])
    fig.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=3)
text = "Left: under DRaFT the mean of x_2 leaves the plot; with the path KL it settles on the tilt. Right: under DRaFT the density narrows "
figures.show(fig, "runaway", text + "to a spike at 2; with the path KL it lies on the tilted density.")

# %% [markdown]
# ```{glue:figure} runaway
# :name: fig-fine-tuning-runaway
#
# DRaFT on the second coordinate of the toy, in closed form. Left: without a maximum of the reward, the mean never stops. Right: with one, at 2, the
# density (from pale to full colour) contracts to a point. With the path KL both end at the tilt, or close to it.
# ```
#
# After {glue:text}`climbs` steps DRaFT's mean is {glue:text}`draft_mean` for the first reward, and its variance is {glue:text}`draft_variance`, and falling, for
# the second. With the path KL the second variance ends {glue:text}`wide_few` above the tilt's with {glue:text}`few` reverse steps, and {glue:text}`wide_many` with
# {glue:text}`many`: a shift and a slope cannot narrow the noise of a transition.
#
# A KL of paths is the KL of samples plus the KL of the paths given their end. The optimum can make the second part vanish, unless the
# *start* of the path stands in its way.
#
# ## Stochastic optimal control
#
# *Reference: skip on a first reading, as far as {ref}`what iterative tilting needs <needs-instead>`.*
#
# **Clock.** Here, and only here, the paper's time runs from noise to data. We write $\tau = 1 - t$ for it, and $Y_\tau = X_{1-\tau}$. So
# $Y_0$ is noise and $Y_1$ is data.
#
# To the generative process, with drift $b$ and diffusion coefficient $g$, add a drift $g u$,
#
# $$dY_\tau = \big[b(Y_\tau, \tau) + g(\tau)\, u_\tau(Y_\tau)\big]\, d\tau + g(\tau)\, dW_\tau,$$
#
# and look for the control that solves
#
# $$\min_u\ \mathbb E\Big[\tfrac12 \int_0^1 \|u_\tau(Y_\tau)\|^2\, d\tau - \lambda r(Y_1)\Big]. \tag{2.17}$$ (eq-2-17)
#
# This is the same trade again: by Girsanov's theorem the first term is the KL of paths. With the Brownian motion $W$ of the controlled process,
#
# $$\begin{aligned}
#   \log\frac{dP^u}{dP}(Y) &= \int_0^1 u_\tau \cdot dW_\tau + \tfrac12 \int_0^1 \|u_\tau\|^2\, d\tau, \\
#   \mathrm{KL}(P^u \,\|\, P) &= \mathbb E\Big[\tfrac12\int_0^1 \|u_\tau\|^2\, d\tau\Big].
#   \end{aligned}$$ (eq-girsanov)
#
# To check, take two modes in one dimension, at $\pm2$ with variance $\frac12$, the reward $r(x) = x$, and {eq}`eq-reverse-sde` as base process.


# %%
def rate(t):
    """beta(t) of the cosine schedule, as a number."""
    time = torch.tensor(float(t))
    return float(-2 * schedule.alpha_dot(time) / schedule.alpha(time))


def drift(denoiser, y, t):
    """Of the base process, (2.12) with its sign mended: beta (y / 2 + score)."""
    time = torch.tensor(t, dtype=y.dtype)
    return rate(t) * (0.5 * y - denoiser(y, time) / schedule.sigma(time))


# %%
def rollout(denoiser, control, times, n, d, generator):
    """Euler-Maruyama: states (K + 1, n, d), noises and controls (K, n, d)."""
    y = torch.randn(n, d, generator=generator)
    states, noises, controls = [y], [], []
    for t, s in pairwise(times):
        dt, g = t - s, rate(t) ** 0.5
        u, z = control(y, t), torch.randn(n, d, generator=generator)
        y = y + (drift(denoiser, y, t) + g * u) * dt + g * dt**0.5 * z
        states.append(y), noises.append(z), controls.append(u)
    return torch.stack(states), torch.stack(noises), torch.stack(controls)


# %%
two = torch.full((2, 1, 1), 0.5)
pair = GaussianMixture(torch.ones(2), torch.tensor([[-2.0], [2.0]]), two)
slope = parse_reward("b=1", d=1)
tilted_pair, log_z_pair = pair.tilted(slope, lam), pair.log_normaliser(slope, lam)
pair_denoiser = ExactNoisePredictor(pair, schedule)


def clock(K):
    """Times t from noise to data, K steps, dense at both ends."""
    return 1 / (1 + np.exp(-np.linspace(7, -7, K + 1)))


# %% [markdown]
# The left side of {eq}`eq-girsanov` follows from the Gaussian densities of a path's steps, with and without a control, say $u = \sin y$. Its mean has to
# be the control cost.

# %%
times, n_paths = clock(280 if full else 140), 4000 if full else 1500
steps_dt = torch.from_numpy(times[:-1] - times[1:]).reshape(-1, 1, 1)


def control_cost(controls):  # of each path
    return (0.5 * controls**2 * steps_dt).sum((0, 2))


run = rollout(pair_denoiser, lambda y, t: torch.sin(y), times, n_paths, 1, seeded(4))
states, _, controls = run

# %%
log_ratio = torch.zeros(n_paths)
for k, (t, s) in enumerate(pairwise(times)):
    dt, g = t - s, rate(t) ** 0.5
    free = states[k] + drift(pair_denoiser, states[k], t) * dt
    moved, std = free + g * controls[k] * dt, g * dt**0.5
    with_u, without = (Normal(m, std).log_prob(states[k + 1]) for m in (moved, free))
    log_ratio += (with_u - without)[:, 0]
gap = log_ratio - control_cost(controls)
apart = abs(float(gap.mean())) / float(gap.std()) * n_paths**0.5
figures.check("path KL and control cost, standard errors apart", apart, below=4)

# %% [markdown]
# Now the objective. By Gibbs' principle for paths, no control gets below $-\log Z_{\lambda r}$. The optimal one gets there if the process
# forgets its start, as this one does. It is a difference of scores, $u^* = g\,(\nabla\log p_t^{\lambda r} - \nabla\log p_t^b)$ (the next section says why),
# and it satisfies more:
#
# $$\lambda r(Y_1) - \int_0^1 u^*\cdot dW - \tfrac12\int_0^1 \|u^*\|^2\, d\tau = \log Z_{\lambda r} \qquad \text{on every single path},$$ (eq-one-path)
#
# because $dP^{u^*}/dP = e^{\lambda r(Y_1)}/Z_{\lambda r}$.


# %%
def u_star(y, t, law=tilted_pair):
    scores = (q.score(y, torch.tensor(t), schedule) for q in (law, pair))
    return rate(t) ** 0.5 * (next(scores) - next(scores))


def path_values(c):
    """Of each path, for u = c u*: (2.17), left side of the identity, control cost."""

    def control(y, t):
        return c * u_star(y, t)

    run = rollout(pair_denoiser, control, times, n_paths, 1, seeded(5))
    states, noises, controls = run
    value = control_cost(controls) - lam * slope(states[-1])
    identity = -value - (controls * noises * steps_dt**0.5).sum((0, 2))
    return value, identity, control_cost(controls)


# %%
names = {0.0: "0", 0.5: r"$\frac12 u^*$", 1.0: "$u^*$", 1.5: r"$\frac32 u^*$"}
found, rows = {c: path_values(c) for c in names}, []
for c, (value, identity, _) in found.items():
    shown = f"{value.mean():.3f} ± {value.std() / n_paths**0.5:.3f}"
    spread = float(identity.std())
    rows.append({"control": names[c], "objective": shown, "spread, identity": spread})
figures.table(rows)

# %% tags=["hide-input"]
step = 14 / (len(times) - 1)  # in log-odds of time: an Euler scheme errs by a share of it
value, identity, cost = found[1.0]
exact_kl = pair.tilt_kl(slope, lam)
for measured, right in ((value, -log_z_pair), (cost, exact_kl)):
    assert abs(float(measured.mean()) - right) < 4 * float(measured.std()) / n_paths**0.5 + 0.5 * step * abs(right)
assert all(float(value.mean()) < float(found[c][0].mean()) - 0.02 for c in names if c != 1.0)
assert float(identity.std()) < 0.6 * step**0.5  # it vanishes with the square root of the time step
assert min(float(found[c][1].std()) for c in names if c != 1.0) > 0.3
figures.glue(least=f"−{log_z_pair:.3f}")

# %% [markdown]
# The least objective, $-\log Z_{\lambda r}$, is {glue:text}`least`. The spread that is left in the row of $u^*$ comes from the time step.
#
# ## What a control cannot reach
#
# *Reference: skip on a first reading.* A control cannot choose the start of a path. Let $V(y, \tau) = -\log \mathbb E[e^{\lambda r(Y_1)} \mid Y_\tau = y]$ be the
# value function, the least cost from $(y, \tau)$ on. Given $Y_0$, the best end is the tilted conditional law. So start and end of the optimal process have the density
#
# $$p^*(y_0, y_1) = p^{\mathrm{base}}(y_0)\, \frac{p^{\mathrm{base}}(y_1 \mid y_0)\, e^{\lambda r(y_1)}}{\mathbb E[e^{\lambda r(Y_1)} \mid Y_0 = y_0]}
#   = p^{\mathrm{base}}(y_0, y_1)\, e^{\lambda r(y_1) + V(y_0, 0)} .$$ (eq-value-bias)
#
# Its second marginal is the tilted density if $V(\cdot, 0)$ is constant. That holds for every reward only if $Y_1$ does not depend on $Y_0$: if the process is
# **memoryless**. For the time reversal of {eq}`eq-2-11`, $Y_\tau$ given $Y_1$ is the noising kernel. So $e^{-V} = Z_{\lambda r}\, p_t^{\lambda r}(y) / p_t^b(y)$, and
# $u^* = -g\,\nabla V$ is the difference of scores used above.
#
# One Gaussian and a linear reward show it in closed form: $p_0^b = \mathcal N(0, v_0)$ with $v_0 = \frac12$, and $\lambda r(x) = \ell x$ with $\ell = 2$. There is a base
# process for every noise level $g \ge 0$, and all have the same marginals $p_t$:
#
# $$b = \tfrac12 \beta\, y + \tfrac12 (\beta + g^2)\, \nabla\log p_t(y).$$ (eq-noise-levels)
#
# $g = 0$ is the probability flow {eq}`eq-flow` (reversed clock), $g^2 = \beta$ is the reverse SDE {eq}`eq-reverse-sde`. Each is linear, so
# $Y_1$ given $Y_\tau = y$ is $\mathcal N(m_\tau y,\ v_0 - m_\tau^2 v_t)$ with $m_\tau = \exp\int_\tau^1 \partial_y b$, and
#
# $$V = -\ell m_\tau y - \tfrac12 \ell^2 (v_0 - m_\tau^2 v_t), \qquad u^* = -g\, \partial_y V = g\, \ell m_\tau .$$ (eq-linear-value)
#
# The target is $\mathcal N(\ell v_0, v_0)$. The optimal process has the right variance, but only a share of the mean, which depends on the correlation $\rho$ of $Y_0$
# and $Y_1$ under the base process:
#
# $$\text{share of the tilt that is reached} = 1 - \frac{m_0^2 v_1}{v_0} = 1 - \rho^2 .$$ (eq-share)

# %%
v_0, ell = 0.5, 4 * lam


def v_at(t):
    return schedule.alpha(t) ** 2 * v_0 + schedule.sigma(t) ** 2


# %%
t_grid = torch.sigmoid(torch.linspace(-12, np.log(999), 4001))
beta = -2 * schedule.alpha_dot(t_grid) / schedule.alpha(t_grid)
v_end = float(v_at(t_grid)[-1])  # of Y_0


def reached(g_squared):
    """m along the grid, rho^2, and the mean of Y_1 under the optimal control."""
    slope_b = 0.5 * beta - 0.5 * (beta + g_squared) / v_at(t_grid)
    log_m = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(slope_b, t_grid)])
    m = log_m.exp()
    mean = float(torch.trapezoid(m**2 * g_squared * ell, t_grid))  # integral of m g u*
    return m, float(m[-1] ** 2) * v_end / v_0, mean


# %%
levels = {"$g = 0$": 0.0, "$g^2 = 0.25$": 0.25, "$g^2 = 1$": 1.0}
levels[r"$g^2 = \beta$"] = beta
levels = {name: level + 0 * beta for name, level in levels.items()}
rows = []
for name, g_squared in levels.items():
    _, rho2, mean_end = reached(g_squared)
    assert abs(mean_end - ell * v_0 * (1 - rho2)) < 1e-3  # (eq-share); trapezoidal rule
    share = mean_end / (ell * v_0)
    rows.append({"noise": name, r"$\rho^2$": rho2, "share of the tilt": share})
figures.table(rows, floatfmt=".4f")
shares = [row["share of the tilt"] for row in rows]
assert shares[0] < 1e-12 < 0.05 < np.diff(shares).min()
assert shares[-1] > 1 - 1e-4


# %% tags=["hide-input"]
def end_law(m_0, y_1):
    """Density of Y_1 by summing (eq-value-bias) over y_0."""
    y_0, S = torch.linspace(-7, 7, 201).unsqueeze(1), v_0 - m_0**2 * v_end
    log_joint = -0.5 * y_0**2 / v_end - 0.5 * (y_1 - m_0 * y_0) ** 2 / S + ell * (y_1 - m_0 * y_0) - 0.5 * ell**2 * S
    p = log_joint.exp().sum(0)
    return p / torch.trapezoid(p, y_1)


y_1 = torch.linspace(-4, 6, 1001)
laws = {"$g = 0$": Normal(0.0, v_0**0.5).log_prob(y_1).exp()}  # where the joint law has no density
for name, g_squared in list(levels.items())[1:]:
    m, _, mean_end = reached(g_squared)
    laws[name] = end_law(float(m[-1]), y_1)
    for power, right in ((1, mean_end), (2, v_0 + mean_end**2)):
        assert abs(float(torch.trapezoid(laws[name] * y_1**power, y_1)) - right) < 5e-3

# %% tags=["hide-input"]
looks = zip((base_color, figures.SERIES[5], figures.COLORS["paper"], learned_color), (":", "--", "-.", "-"), strict=True)
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    truth = Normal(ell * v_0, v_0**0.5).log_prob(y_1).exp()
    left.fill_between(y_1, truth, color=target_color, alpha=0.3, linewidth=0, label="tilt")
    for (name, law), (color, line) in zip(laws.items(), looks, strict=True):
        left.plot(y_1, law, color=color, linestyle=line, label=name)
    left.set(xlim=(-2.5, 5.4), ylim=(0, 0.65), yticks=[], xlabel="$x$", ylabel="density of $Y_1$")
    left.legend(loc="upper right", handlelength=1.6)
    c = np.linspace(0, 4, 161)
    right.axhline(1, color=target_color, linewidth=4, alpha=0.4)
    right.plot(c, [1 - reached(v * beta)[1] for v in c], color=learned_color, label=r"$g^2 = c\,\beta$")
    right.plot(
        c, [1 - reached(v + 0 * beta)[1] for v in c], color=figures.COLORS["paper"], linestyle="-.", label="$g^2 = c$"
    )
    right.set(xlabel="$c$", ylim=(0, 1.08), ylabel="share of the tilt")
    right.legend(loc="lower right")
text = "Left: laws of the final sample under the optimal control. Without noise it is the base law; with more noise it moves toward the tilt. "
figures.show(
    fig,
    "memory",
    text + "Right: the share reached rises from 0 to 1 with the noise level, at once for noise proportional to beta.",
)

# %% [markdown]
# ```{glue:figure} memory
# :name: fig-fine-tuning-memory
#
# Left: where the optimal control of {eq}`eq-2-17` ends, by noise level. Only the memoryless one, $g^2 = \beta$, covers the tilt. Right: the share of the
# tilt that is reached, for constant noise and for noise in proportion to $\beta$.
# ```
#
# Without noise there is nothing to steer with. Noise in proportion to $\beta$ forgets at any level; a constant $g$ never does so entirely. The other way out is to tilt the start too, by $e^{-V(\cdot, 0)}$ {cite}`uehara2024finetuning,tang2024finetuning`.
#
# ## Adjoint Matching
#
# *Reference: skip on a first reading.*
#
# ### The lean adjoint is a gradient
#
# How does a small push at time $\tau$ change the reward at the end? By the chain rule, along the *base* drift and with the noise held fixed,
#
# $$\frac{d}{d\tau} \tilde a_\tau = -\big[\nabla_x b(Y_\tau, \tau)\big]^{\!\top}\, \tilde a_\tau, \qquad \tilde a_1 = \lambda\, \nabla_x r(Y_1). \tag{2.18}$$ (eq-2-18)
#
# So $\tilde a_\tau = \nabla_{Y_\tau}\, \lambda r(Y_1)$: backpropagation in continuous time. We test it on the paper's flow, against autograd through a
# solver. A rotation is added to the drift. Without it the Jacobian is symmetric, and a forgotten transpose would not show.

# %%
turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])


def flow(tau, y):
    """(2.13) with its signs mended, in the clock of this section, plus a rotation."""
    t = (1 - tau).clamp_min(0.0)  # the solver looks past the end
    pull = -schedule.alpha_dot(t) / schedule.alpha(t)
    return pull * (y + base.score(y, t, schedule)) + y @ turn.T


def adjoint_rhs(tau, pair_of):
    """Right sides of the flow and of (2.18), together."""
    y, a = pair_of
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        b = flow(tau, y)
        (pulled,) = torch.autograd.grad(b, y, grad_outputs=a)  # [grad b]^T a
    return b.detach(), -pulled


# %%
solver = {"rtol": 1e-9, "atol": 1e-9, "method": "dopri5"}
start = base.noised(schedule, 0.6).sample(20, seeded(7)).requires_grad_()
end = odeint(flow, start, torch.tensor([0.4, 0.999]), **solver)[-1]
(by_autograd,) = torch.autograd.grad(lam * quadratic(end).sum(), start)
end = end.detach()
terminal = lam * (end @ quadratic.A + quadratic.b)
_, a_start = odeint(adjoint_rhs, (end, terminal), torch.tensor([0.999, 0.4]), **solver)
gap = float((a_start[-1] - by_autograd).abs().max())
figures.check("(2.18) agrees with autograd", gap, below=1e-5)

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
# *Why.* Differentiate $u^* = g\, \nabla_y \log \mathbb E_{\mathrm{base}}[e^{\lambda r(Y_1)} \mid Y_\tau = y]$ inside the expectation, with the noise held fixed.
# This gives $g\,\mathbb E_{\mathrm{base}}[e^{\lambda r(Y_1)}\, \tilde a_\tau \mid y]$ over the normaliser, and the weight $e^{\lambda r(Y_1)}$ makes base paths optimal ones. $\square$
#
# Below, the conditional mean is a least-squares fit on fixed functions of $y$: as it should be; over paths of the base; and with the
# *controlled* drift in {eq}`eq-2-18`.


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


# %% tags=["hide-input"]
coarse = clock(140 if full else 70)
roots = torch.tensor([rate(t) ** 0.5 for t in coarse[:-1]]).reshape(-1, 1, 1)  # g
weights = torch.from_numpy(coarse[:-1] - coarse[1:])


def features(y):
    """Thirteen smooth steps and a constant: bounded, so that a fit does not run off in the tails. (n, 1) to (n, 14)."""
    return torch.cat([torch.tanh((y - torch.linspace(-3, 3, 13)) / 0.5), torch.ones_like(y)], -1)


def fit(y, values):
    """Least squares on the features, with a light ridge: a function of y."""
    F = features(y)
    w = torch.linalg.solve(F.T @ F + 1e-3 * len(F) * torch.eye(14), F.T @ values)
    return lambda y: features(y) @ w


def distance(fits, law=tilted_pair, paths=tilted_pair):
    """RMS of u - u* over times and noised draws of `paths`, relative to that of u*, the optimal control of `law`."""
    gap = size = 0.0
    for k, t in enumerate(coarse[:-1]):
        y = paths.noised(schedule, t).sample(500, seeded(8))
        right = u_star(y, t, law)
        gap += float(weights[k] * (fits[k](y) - right).square().mean())
        size += float(weights[k] * right.square().mean())
    return (gap / size) ** 0.5


# %%
def base_drift(y, t):
    return drift(pair_denoiser, y, t)


def controlled_drift(y, t):
    return base_drift(y, t) + rate(t) ** 0.5 * u_star(y, t)


def no_control(y, t):
    return torch.zeros_like(y)


cases = {"as it should be": (u_star, base_drift)}
cases |= {"base paths": (no_control, base_drift)}
cases |= {"controlled drift": (u_star, controlled_drift)}

# %%
rows, clouds, ones = [], {}, torch.ones(n_paths, 1)  # grad r = 1
for name, (control, drift_of) in cases.items():
    states, _, _ = rollout(pair_denoiser, control, coarse, n_paths, 1, seeded(9))
    g_a = roots * lean_adjoint(drift_of, states, coarse, lam * ones)
    fits = [fit(y, v) for y, v in zip(states, g_a, strict=False)]
    clouds[name] = states, g_a, fits
    rows.append({"conditional mean": name, "distance from $u^*$": distance(fits)})
figures.table(rows, floatfmt=".2f")
errors = [row["distance from $u^*$"] for row in rows]
assert errors[0] < (0.15 if full else 0.25)  # noise of the fit, and the time step
assert min(errors[1:]) > errors[0] + 0.08

# %% [markdown]
# *Distance*: root mean square of $u - u^*$ along optimal paths, divided by that of $u^*$. The first row is left with the noise of the fit and the
# time step.
#
# ### The sign of (2.19)
#
# Adjoint Matching {cite:p}`domingoenrich2024adjoint` turns {eq}`eq-conditional-adjoint` into a regression. The paper prints
#
# $$L_{\mathrm{AM}}(\phi) = \mathbb E\Big[\int_0^1 \big\|u_\phi(Y_\tau, \tau) + g(\tau)^\top \tilde a_\tau\big\|^2\, d\tau\Big]
#   \qquad \text{(as printed)}. \tag{2.19}$$ (eq-2-19)
#
# Its minimiser is *minus* a conditional mean. With $\tilde a_1 = +\lambda\nabla r$ as in {eq}`eq-2-18` the loss has to be
#
# $$L_{\mathrm{AM}}(\phi) = \mathbb E\Big[\int_0^1 \big\|u_\phi(Y_\tau, \tau) - g(\tau)^\top \tilde a_\tau\big\|^2\, d\tau\Big],$$ (eq-am-corrected)
#
# or else the plus stays and the adjoint starts from $-\lambda\nabla r$ ({doc}`errata`, {ref}`item 5 <err-am-sign>`). The paths come from the current
# control and are not differentiated.
#
# For the Gaussian with a linear reward, $\tilde a_\tau = \ell m_\tau$ on every path and $u^* = g\,\ell m_\tau$. Put $c\, u^*$ into both losses and look for
# the best $c$.


# %%
def loss_am(u, g_a, dt, sign):
    """(2.19) for controls and g a, (K, n, d), at time steps dt (K,); +1 as printed."""
    return (dt * (u + sign * g_a).square().sum(-1).mean(1)).sum()


best = (beta**0.5 * ell * reached(beta)[0]).reshape(-1, 1, 1)  # u*
dt, scales = torch.gradient(t_grid)[0], np.linspace(-2, 2, 81)
for name, sign in (("printed", 1.0), ("corrected", -1.0)):
    c = scales[np.argmin([float(loss_am(v * best, best, dt, sign)) for v in scales])]
    print(f"(2.19) {name}: the best c is {c:+.2f}")
    assert abs(c + sign) < 1e-9

# %% [markdown]
# For two modes the adjoint differs from path to path. Each round we simulate with the current control, solve {eq}`eq-2-18`, and take the minimiser of
# the loss among controls that are linear in the functions above. (Adjoint Matching takes one optimiser step there.)


# %%
def adjoint_matching(sign, rounds, seed=10):
    """Controls at each time, fitted round by round; sign +1 is the loss as printed."""
    index, fits = {t: k for k, t in enumerate(coarse)}, [torch.zeros_like] * len(roots)
    for j in range(rounds):
        now = lambda y, t, fits=fits: fits[index[t]](y)  # noqa: E731
        states, _, _ = rollout(pair_denoiser, now, coarse, n_paths, 1, seeded(seed + j))
        g_a = roots * lean_adjoint(base_drift, states, coarse, lam * ones)
        fits = [fit(y, -sign * v) for y, v in zip(states, g_a, strict=False)]
    return fits


# %%
rounds = 6 if full else 3
signs = {"corrected": -1.0, "printed": 1.0}
learned = {name: adjoint_matching(sign, rounds) for name, sign in signs.items()}
away = pair.tilted(slope, -lam)  # by the reward -r
scores = {
    "corrected, from $u^*$": distance(learned["corrected"]),
    "printed, from $u^*$": distance(learned["printed"]),
    "printed, from the optimal one for $-r$": distance(learned["printed"], away, away),
}
rows = [{"learned with the sign": k, "distance": v} for k, v in scores.items()]
figures.table(rows, floatfmt=".2f")
right, wrong, flees = scores.values()
assert max(right, flees) < (0.2 if full else 0.35) < 1.5 < wrong

# %% [markdown]
# With the corrected sign the fit finds $u^*$. With the printed one the paths follow the wrong control, and a sign in front of $\tilde a$ is a sign in front of
# $r$: the iteration settles on the optimal control **for the reward $-r$**. The model avoids the reward as well as it can.

# %% tags=["hide-input"]
k_mid = int(np.argmin(np.abs(coarse - 0.5)))
ys, t_mid = torch.linspace(-3.2, 3.2, 161).unsqueeze(1), float(coarse[k_mid])
paths, lean, fits = clouds["as it should be"]
thick = {"linewidth": 4, "alpha": 0.4}
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 4.0), sharey=True)
    dots = {"color": figures.COLORS["band"], "markersize": 3, "alpha": 0.5, "rasterized": True}
    left.plot(paths[k_mid, :1200, 0], lean[k_mid, :1200, 0], ".", label=r"$g\tilde a$ on one path", **dots)
    left.plot(ys, fits[k_mid](ys), color=learned_color, label="mean, optimal paths")
    left.plot(ys, clouds["base paths"][2][k_mid](ys), color=base_color, linestyle=":", label="mean, base paths")
    right.plot(ys, learned["corrected"][k_mid](ys), color=learned_color, label="corrected sign")
    right.plot(ys, u_star(ys, t_mid, away), color=figures.COLORS["band"], label="optimal for $-r$", **thick)
    right.plot(ys, learned["printed"][k_mid](ys), color=figures.COLORS["paper"], linestyle="--", label="printed sign")
    for ax, title in ((left, "the lean adjoint"), (right, "learned controls")):
        ax.plot(ys, u_star(ys, t_mid), color=target_color, label="$u^*$", **thick)
        ax.set(xlabel="$y$", title=title, xlim=(-3.3, 3.3), ylim=(-3, 3.5))
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
    left.set_ylabel("control at $t = 0.5$")
text = "Left: a cloud of lean adjoints; its conditional mean over optimal paths lies on the optimal control, over base paths it does not. "
figures.show(
    fig,
    "controls",
    text + "Right: the corrected loss learns the optimal control, the printed one is optimal for minus the reward.",
)

# %% [markdown]
# ```{glue:figure} controls
# :name: fig-fine-tuning-controls
#
# Two modes at $\pm2$, $r(x) = x$, at $t = \frac12$. Left: $g\tilde a$ on single optimal paths is no function of $y$; its conditional mean is $u^*$ (thick), on optimal
# paths only. Right: what Adjoint Matching learns with either sign of {eq}`eq-2-19`.
# ```
#
# ### Sampling without noise
#
# Afterwards, the paper says, one may sample with $g = 0$. This is true, with care. What has been learned is a *score*,
#
# $$s_\phi = \nabla\log p_t^b + \frac{u_\phi}{g},$$ (eq-absorbed)
#
# and any sampler can use it. But in {eq}`eq-noise-levels` $g = 0$ also halves the factor of the score; to drop the noise alone gives another law. In one
# dimension a flow must take quantiles of noise to quantiles of the target, which is a check without any sampling.

# %% tags=["hide-input"]
levels_q, wide_grid = torch.linspace(0.002, 0.998, 499), torch.linspace(-7, 8, 6001).unsqueeze(1)
cdf = torch.cumulative_trapezoid(tilted_pair.log_prob(wide_grid).exp(), wide_grid[:, 0])
truth = torch.from_numpy(np.interp(levels_q, torch.cat([torch.zeros(1), cdf]), wide_grid[:, 0]))


def deterministic(control, factor=0.5):
    """dy = beta (y / 2 + factor * s_phi) dtau by Heun's method from quantiles of the noise."""
    y = Normal(0.0, 1.0).icdf(levels_q).unsqueeze(1)

    def velocity(y, k):
        t, g = float(coarse[k]), rate(coarse[k]) ** 0.5
        score = pair.score(y, torch.tensor(t), schedule) + control(y, k) / g  # (eq-absorbed)
        return g**2 * (0.5 * y + factor * score)

    for k in range(len(coarse) - 2):
        dt = coarse[k] - coarse[k + 1]
        first = velocity(y, k)
        y = y + 0.5 * dt * (first + velocity(y + dt * first, k + 1))
    return y[:, 0]


# %%
def exact_control(y, k):
    return u_star(y, float(coarse[k]))


ends = {
    "exact control, $g = 0$": deterministic(exact_control),
    "learned control, $g = 0$": deterministic(lambda y, k: learned["corrected"][k](y)),
    "no control, $g = 0$": deterministic(lambda y, k: torch.zeros_like(y)),
    "noise dropped, drift kept": deterministic(exact_control, factor=1.0),
    "**the tilted density**": truth,
}
rows = []
for name, v in ends.items():
    numbers = {"mean": v.mean(), "s.d.": v.std(), "distance": (v - truth).abs().mean()}
    rows.append({"sampler": name} | {k: float(value) for k, value in numbers.items()})
figures.table(rows, floatfmt=".3f")

# %% tags=["hide-input"]
exact_gap, learned_gap, base_gap, dropped_gap, _ = (row["distance"] for row in rows)
assert exact_gap < 0.02  # second order in the time step
assert learned_gap < scores["corrected, from $u^*$"] * base_gap  # it misses by the share by which the control is off
assert min(base_gap, dropped_gap) > 0.5
assert rows[3]["s.d."] < 0.1

# %% [markdown]
# *Distance*: mean over the quantiles. With the noise dropped and the drift kept, all quantiles land on one point: a memoryless drift forgets where it
# started.
#
# (needs-instead)=
# ## What iterative tilting needs instead
#
# All methods above ask for $\nabla r$. Here is one optimiser step of each, with the network and the minibatch of Section 4.2 and equally many reverse steps. For
# iterative tilting, the counts of a tilt are divided by its steps, and its reward is wrapped in {py:class}`~itlib.rewards.ForwardOnly`, which refuses to be
# differentiated.


# %% tags=["hide-input"]
class Box:
    """A kept tensor, which can be watched."""

    def __init__(self, tensor):
        self.tensor = tensor


class Memory(saved_tensors_hooks):
    """What autograd keeps inside `with`, in bytes: now and at the peak, without the weights."""

    def __init__(self):
        super().__init__(self.pack, lambda box: box.tensor)
        self.users, self.now, self.peak = Counter(), 0, 0

    def pack(self, tensor):
        box, storage = Box(tensor), tensor.untyped_storage()
        if not any(isinstance(v, torch.nn.Parameter) for v in (tensor, tensor._base)):
            key, size = storage.data_ptr(), storage.nbytes()
            self.count(key, size, 1)
            weakref.finalize(box, self.count, key, size, -1)  # when autograd lets go of it
        return box

    def count(self, key, size, change):
        before, self.users[key] = self.users[key] > 0, self.users[key] + change
        self.now += size * ((self.users[key] > 0) - before)  # a storage counts once
        self.peak = max(self.peak, self.now)


# %% tags=["hide-input"]
counts = Counter()


def counted(x):
    """The paper's reward; counts its values and their gradients."""
    y = reward(x)
    counts["values"] += len(x)
    if y.requires_grad:
        y.register_hook(lambda g: counts.update(gradients=len(x)))
    return y


def count_evaluations(module, inputs, output):
    if isinstance(module, Network):
        counts["evaluations"] += len(output)


# %%
B, K = 64, 50 if full else 20  # minibatch, reverse steps
S, E = (1000, 100) if full else (300, 30)  # a tilt: samples, optimiser steps
torch.set_default_dtype(torch.float32)  # as networks are trained
network, frozen = Network(2, seed=0), Network(2, seed=0).requires_grad_(False)


def draft_step(K, last=None):
    xi = torch.randn(K + 1, B, 2, generator=seeded(14))
    (-counted(psi_0(network, xi, algorithm_1(K), last)).mean()).backward()  # (2.16)


def draft_lv_step(copies=2):
    *_, step = steps = algorithm_1(K)
    t, generator = torch.tensor(step.t), seeded(14)
    xi = torch.randn(K + 1, B, 2, generator=generator)
    with torch.no_grad():
        x_0 = psi_0(network, xi, steps)
    for _ in range(copies):
        z = torch.randn(B, 2, generator=generator)
        x = schedule.alpha(t) * x_0 + schedule.sigma(t) * z
        (-counted(step.mean(x, network(x, t))).mean() / copies).backward()


# %% tags=["hide-input"]
def adjoint_matching_step(times):
    def control(y, t):
        time = torch.tensor(float(t))
        return -(rate(t) ** 0.5) * (network(y, time) - frozen(y, time)) / schedule.sigma(time)

    with torch.no_grad():
        states, _, _ = rollout(frozen, control, times, B, 2, seeded(14))
    end = states[-1].requires_grad_()
    (gradient,) = torch.autograd.grad(lam * counted(end).sum(), end)
    a = lean_adjoint(lambda y, t: drift(frozen, y, t), states, times, gradient)  # (2.18)
    for k, (t, s) in enumerate(pairwise(times)):
        u, g_a = control(states[k], t)[None], rate(t) ** 0.5 * a[k : k + 1]
        loss_am(u, g_a, torch.tensor([t - s]), -1.0).backward()  # (2.19), corrected, a time step at a time


def iterative_tilting_step():
    config = TiltingConfig(N=20, lam=lam, S=S, J=K, B=B, E=E)
    next(iterative_tilting(Network(2, seed=0).float(), ForwardOnly(counted), schedule, config))


# %%
def measure(step):
    counts.clear()
    handle = torch.nn.modules.module.register_module_forward_hook(count_evaluations)
    memory = Memory()
    with memory:
        step()
    handle.remove()
    assert memory.now == 0  # everything was let go in the end
    seen = (counts[what] for what in ("values", "gradients", "evaluations"))
    return *seen, memory.peak / 2**20


measured = {
    "DRaFT": measure(lambda: draft_step(K)),
    "DRaFT-1": measure(lambda: draft_step(K, last=1)),
    "DRaFT-LV": measure(draft_lv_step),
    "Adjoint Matching": measure(lambda: adjoint_matching_step(clock(K))),
}
*tilt, peak = measure(iterative_tilting_step)
measured["iterative tilting"] = (*(v / E for v in tilt), peak)

# %% tags=["hide-input"]
columns = ("one step of", "values of $r$", "gradients", "network evaluations", "kept, MiB")
formats = ("", ".0f", ".0f", ",.0f", ".2f")
rows = [[format(v, f) for v, f in zip((name, *row), formats, strict=True)] for name, row in measured.items()]
figures.table([dict(zip(columns, row, strict=True)) for row in rows])
assert measured["Adjoint Matching"][2] == 6 * B * K  # four calls of the base and two of the model for each state
assert measured["iterative tilting"][:2] == (S / E, 0)  # values, and never a gradient
assert all(row[1] >= B for name, row in measured.items() if name != "iterative tilting")
peaks = {name: row[3] for name, row in measured.items()}
assert abs(measure(lambda: draft_step(2 * K))[3] / peaks["DRaFT"] - 2) < 0.02  # twice the reverse steps, twice the memory
assert abs(peaks["DRaFT"] / peaks["DRaFT-1"] - K) < 0.02 * K
assert max(peak for name, peak in peaks.items() if name != "DRaFT") < 1.1 * peaks["DRaFT-1"]
figures.glue(batch=B, reverse=K, samples=S, updates=E)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ({glue:text}`batch` samples a step, {glue:text}`reverse` reverse steps; a tilt draws {glue:text}`samples` samples and takes {glue:text}`updates` steps. *Kept*: activations
# at the peak.) DRaFT keeps those of all its steps; the others keep those of one evaluation. Adjoint Matching pays in evaluations of both networks. Iterative tilting reuses its
# dataset, so a step is cheap; how many each method needs is another question ({doc}`rivals_comparison`).
#
# ## Try this
#
# - *Derive, then run.* Among the densities $q = \mathcal N((2, m), \frac12 I)$ around the right mode, which $m$ is best for {eq}`eq-gibbs` with $r = 4x_2$ and $\lambda = \frac12$?
#   (Hint: the KL between two Gaussians of equal variance $\frac12$ is the squared distance of their means; the left mode adds a constant.)

# %% tags=["hide-cell"]
heights = np.linspace(-1, 3, 81)  # the difference is 2m - m^2 + constant, largest at m = 1
values = []
for m in heights:
    q = GaussianMixture(torch.ones(1), torch.tensor([[2.0, m]]), 0.5 * one)
    log_q = q.log_prob(grid)
    values.append(mean(log_q, lam * reward(grid) - log_q + log_base))
figures.check("distance of the best m from 1", abs(heights[np.argmax(values)] - 1), below=1e-6)

# %% [markdown]
# - *Predict, then run.* Let the reward be a jump: $r = 2$ where $x_2 > 1$, else $0$. What do DRaFT and iterative tilting learn from it? (Hint: where has it a derivative?)

# %% tags=["hide-cell"]
m = 20_000 if full else 5_000


def jump(x):
    return 2.0 * (x[:, 1] > 1) + 0.0 * x[:, 1]  # the zero keeps autograd happy


theta_0 = torch.zeros(2, requires_grad=True)
(gradient,) = torch.autograd.grad(J(theta_0, xi[:, :200], jump, algorithm_1(10)), theta_0)
assert float(gradient.abs().max()) == 0.0
half = torch.tensor(0.5)
x_0, z = base.sample(m, seeded(16)), torch.randn(m, 2, generator=seeded(17))
x_t = schedule.alpha(half) * x_0 + schedule.sigma(half) * z
batch = TiltBatch(1, x_0, jump(x_0), half.expand(m), z, x_t, exact(x_t, half))
moved = single_sample(batch)[:, 1]
error = float(moved.std()) / m**0.5
assert float(moved.mean()) > 5 * error
print("DRaFT: its gradient is exactly zero, and the adjoint starts from zero too.")
print(f"Iterative tilting, at t = 0.5: the covariance averages {float(moved.mean()):.3f} ± {error:.3f}, upwards.")

# %% [markdown]
# - *Predict, then run.* Start the memoryless process of {eq}`eq-share` not at $t = 0.999$ but at $t = 0.5$, from the exact law. Is it still memoryless?

# %% tags=["hide-cell"]
late = torch.tensor(0.5)
rho2 = float(schedule.alpha(late) ** 2 * v_0 / v_at(late))  # of X_t and X_0, whose time reversal it is
print(f"No: rho^2 = {rho2:.2f}, and that share of the tilt is out of reach. It takes an alpha that vanishes at the start.")
print("The same bias awaits whoever fine-tunes only the last steps of a sampler.")
