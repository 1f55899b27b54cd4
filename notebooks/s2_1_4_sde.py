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
# # 2.1.4 Stochastic and ordinary differential equations
#
# *Reference: skip this page on a first reading.* Section 2.1.4 of the paper puts the noising process in continuous time. Data turn into noise along a stochastic
# differential equation; a second one turns noise into data; an ordinary one does the same without chance. DDPM and DDIM
# follow them in finitely many steps.
#
# **You will see** that the reverse equation and the flow are printed with wrong signs, with the right ones derived in four steps and
# checked without sampling noise; one family that joins the two, in which the $\eta$ of DDIM is the amount of noise; and the order of the
# samplers, measured.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer samples, steps and step sizes

# %%
import math
from itertools import pairwise

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.stats import norm
from torch.distributions import MultivariateNormal

from itlib import figures
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.likelihood import log_likelihood, velocity
from itlib.metrics import negative_log_likelihood
from itlib.sampling import reverse_process, time_grid, transition
from itlib.schedules import Cosine, Linear, Schedule

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
full = profile == "full"
schedule, base = Cosine(), paper_mixture()

# %% [markdown]
# ## From data to noise
#
# Pull every point toward the origin and shake it at the same time, both at a rate $\beta(t) > 0$:
#
# $$dX_t = -\tfrac12\beta(t) X_t\, dt + \sqrt{\beta(t)}\, dW_t, \qquad X_0 \sim p_0, \tag{2.11}$$ (eq-2-11)
#
# with a Brownian motion $W$ in $\mathbb R^d$. The equation is linear, so from a given $x_0$ the law is Gaussian at each later time. Its
# mean $m$ and its variance $v$ per coordinate obey
#
# $$\dot m = -\tfrac12\beta m, \qquad \dot v = -\beta v + \beta .$$ (eq-forward-moments)
#
# From $m = x_0$ and $v = 0$ this gives $m = \alpha_t x_0$ and $v = 1 - \alpha_t^2 = \sigma_t^2$, with
#
# $$\alpha_t = \exp\Big(-\tfrac12\int_0^t \beta(s)\, ds\Big), \qquad\text{so}\qquad \beta(t) = -2\,\frac{d}{dt} \log \alpha_t .$$ (eq-beta)
#
# That is the kernel {eq}`eq-2-2`: at any one time {eq}`eq-2-11` and the interpolation {eq}`eq-2-1` have the same law. To check, solve
# {eq}`eq-forward-moments` numerically for the cosine schedule.


# %%
def at(t):
    """alpha and sigma of the cosine schedule at one time."""
    time = torch.tensor(t)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def beta(t):
    return -2 * schedule.alpha_dot(t) / schedule.alpha(t)


def forward_moments(t, y):
    rate = float(beta(torch.tensor(t)))
    return [-0.5 * rate * y[0], -rate * y[1] + rate]


# %%
times, worst = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.99]), 0.0
alpha, sigma = np.array([at(t) for t in times]).T
for start in ((2.0, 0.0), (2.0, 0.5)):
    options = {"t_eval": times, "rtol": 1e-10, "atol": 1e-12}
    path = solve_ivp(forward_moments, (0, 0.99), start, **options).y
    right = [alpha * start[0], alpha**2 * start[1] + sigma**2]
    worst = max(worst, np.abs(path - right).max())
figures.check("(2.11) and (2.1) have the same moments", worst, below=1e-8)

# %% [markdown]
# The rate $\beta$ multiplies pull and noise alike, so it is only a clock. Count time by
# $\tau = \frac12\int_0^t\beta = -\log\alpha_t$, and {eq}`eq-2-11` becomes $dX = -X\, d\tau + \sqrt 2\, dW$, for every variance-preserving schedule. We
# use this clock to follow an equation step by step, because nothing is stiff in it. (By {eq}`eq-beta`, $\alpha_1 = 0$ needs
# $\int_0^1\beta = \infty$: {ref}`erratum 9 <err-beta>`.)


# %% tags=["hide-input"]
class OwnClock(Schedule):
    """The variance-preserving schedule with beta = 2; its time is tau = -log alpha, from 0 to infinity."""

    def alpha(self, t):
        return torch.exp(-t)

    def sigma(self, t):
        return torch.sqrt(-torch.expm1(-2 * t))

    def alpha_dot(self, t):
        return -self.alpha(t)

    def sigma_dot(self, t):
        return self.alpha(t) ** 2 / self.sigma(t)


END = -math.log(at(schedule.t_max)[0])  # tau at t = 0.999


def score(x, tau):
    return base.score(x, torch.tensor(float(tau)), OwnClock())


# %% [markdown]
# ## From noise to data: what is printed
#
# The paper turns the clock around, $\bar X_t := X_{1-t}$, and prints
#
# $$d\bar X_t = \Big[-\tfrac12\beta(t)\bar X_t + \beta(t)\nabla_x\log p_t(\bar X_t)\Big] dt + \sqrt{\beta(t)}\, d\bar W_t
#   \qquad\text{(as printed).} \tag{2.12}$$ (eq-2-12)
#
# The correct equation differs in a sign and in the clock of the coefficients:
#
# $$d\bar X_t = \Big[+\tfrac12\beta(1-t)\bar X_t + \beta(1-t)\nabla_x\log p_{1-t}(\bar X_t)\Big] dt + \sqrt{\beta(1-t)}\, d\bar W_t .$$ (eq-reverse-sde)
#
# For the *probability flow*, the ordinary differential equation with the same marginals, the paper prints
#
# $$dx_t = \Big[-\tfrac12\beta(t) x_t + \tfrac12\beta(t)\nabla_x\log p_t(x_t)\Big] dt
#   \qquad\text{(as printed),} \tag{2.13}$$ (eq-2-13)
#
# where the correct one has the same sign twice, minus with the forward clock and plus with the reversed one:
#
# $$\begin{aligned}
#   \frac{dx_t}{dt} &= -\tfrac12\beta(t)\big[x_t + \nabla_x\log p_t(x_t)\big], \\[4pt]
#   \frac{d\bar x_t}{dt} &= +\tfrac12\beta(1-t)\big[\bar x_t + \nabla_x\log p_{1-t}(\bar x_t)\big] .
#   \end{aligned}$$ (eq-flow)
#
# A plausible origin: {cite:t}`song2021score` write the reverse equation with time running *down*, $dt<0$, where all of the drift has a minus. With time
# running up, all of it has a plus. Each printed line takes one term from each convention. The paper draws its samples by Algorithm 1, which uses neither
# equation, so its experiment does not suffer. A reader who implements them will.
#
# ## Why the signs are what they are
#
# The density of a process $dX = f\, dt + g\, dW$ obeys the Fokker–Planck equation
# $\partial_t\rho = -\nabla\cdot(f\rho) + \frac12 g^2\Delta\rho$: what the drift carries away, and what the noise spreads. All signs follow
# from it {cite}`anderson1982reverse`.
#
# *Step 1, forward.* For {eq}`eq-2-11` it reads $\partial_t p_t = \nabla\cdot(\frac12\beta x\, p_t) + \frac12\beta\,\Delta p_t$.
#
# *Step 2, noise as a drift.* Since $\nabla p = p\,\nabla\log p$, the Laplacian is a transport term too, $\Delta p = \nabla\cdot(p\,\nabla\log p)$. So
#
# $$\partial_t p_t = -\nabla\cdot(v_t\, p_t), \qquad v_t(x) = -\tfrac12\beta(t)\big[x + \nabla\log p_t(x)\big].$$ (eq-continuity)
#
# A deterministic particle of velocity $v$ has the same marginals: this is the flow {eq}`eq-flow`. Noise spreads a density, so the velocity that replaces it
# points *down* the gradient: minus.
#
# *Step 3, turn the clock.* $\rho_t = p_{1-t}$ obeys $\partial_t\rho_t = +\nabla\cdot(v_{1-t}\,\rho_t)$. The velocity is $-v_{1-t}$, and both terms get a plus.
#
# *Step 4, put noise back.* For any number $\eta$, add $\frac12\eta^2\beta\,\Delta\rho - \nabla\cdot(\frac12 \eta^2\beta\,\rho\,\nabla\log\rho) = 0$: noise, and
# a drift up the gradient that undoes it. (The name $\eta$ will be justified below.)
#
# $$d\bar X_t = \tfrac12\beta\Big[\bar X_t + (1 + \eta^2)\,\nabla\log p_{1-t}(\bar X_t)\Big] dt + \eta\sqrt{\beta}\, d\bar W_t .$$ (eq-family)
#
# Here $\beta$ is taken at $1-t$. $\eta = 0$ is the flow, $\eta = 1$ is {eq}`eq-reverse-sde`, and every $\eta$ has the marginals $p_{1-t}$. $\square$
#
# To check, divide the Fokker–Planck equation by $\rho$. The *residual*
#
# $$R = \partial_t\log\rho + \nabla\cdot f + f\cdot\nabla\log\rho - \tfrac12 g^2\big(\Delta\log\rho + |\nabla\log\rho|^2\big)$$ (eq-residual)
#
# must vanish everywhere if $\rho$ is to be the law. We put in the law that each equation claims to have, for a mixture without symmetries, and let automatic
# differentiation do the rest.

# %%
crooked = GaussianMixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-2.0, 0.5], [1.0, -0.5]]),
    torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.3, -0.1], [-0.1, 0.8]]]),
)


def log_p(x, t):
    """log p_t(x), (B,), differentiable in x, (B, 2), and t, (B,)."""
    a, s = (f(t)[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
    covariances = a**2 * crooked.covariances + s**2 * torch.eye(2)
    component = MultivariateNormal(a[..., 0] * crooked.means, covariances)
    log_weights = crooked.weights.log()
    return torch.logsumexp(log_weights + component.log_prob(x[:, None]), -1)


# %% tags=["hide-input"]
def derivatives(x, t):
    """Time derivative, gradient and Laplacian of log p_t at x."""
    x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
    in_time, gradient = torch.autograd.grad(log_p(x, t).sum(), (t, x), create_graph=True)
    laplacian = sum(torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2))
    return in_time.detach(), gradient.detach(), laplacian.detach()


def residual(x, t, pull, push, noise, *, law="p_t", coefficients="t"):
    """R / beta for dX = beta/2 [pull X + push score] dt + noise sqrt(beta) dW, at the process's own time t."""
    when = 1 - t if coefficients == "1-t" else t
    _, s, s_divergence = derivatives(x, when)
    f, f_divergence = 0.5 * (pull * x + push * s), 0.5 * (pull * 2 + push * s_divergence)  # over beta

    in_time, gradient, laplacian = derivatives(x, 1 - t if law == "p_{1-t}" else t)
    if law == "p_{1-t}":
        in_time = -in_time
    carried = f_divergence + (f * gradient).sum(-1)
    spread = 0.5 * noise**2 * (laplacian + gradient.square().sum(-1))
    return in_time / beta(when) + carried - spread


# %%
reversed_law = {"law": "p_{1-t}"}
turned = {"law": "p_{1-t}", "coefficients": "1-t"}
versions = [  # name, pull, push, noise, clocks, correct?
    ("{eq}`eq-2-11`, forward", -1, 0, 1, {}, True),
    ("{eq}`eq-2-12` as printed", -1, 2, 1, reversed_law, False),
    ("{eq}`eq-2-12`, clock mended only", -1, 2, 1, turned, False),
    ("{eq}`eq-2-12`, sign mended only", 1, 2, 1, reversed_law, False),
    ("{eq}`eq-reverse-sde`, corrected", 1, 2, 1, turned, True),
    ("{eq}`eq-2-13` as printed", -1, 1, 0, {}, False),
    ("{eq}`eq-flow`, forward clock", -1, -1, 0, {}, True),
    ("{eq}`eq-flow`, reversed clock", 1, 1, 0, turned, True),
    (r"{eq}`eq-family` with $\eta = 2$", 1, 5, 2, turned, True),
]

# %%
generator, rows = torch.Generator().manual_seed(0), []
x = 1.5 * torch.randn(200, 2, generator=generator)
t = 0.1 + 0.8 * torch.rand(200, generator=generator)
for name, pull, push, noise, clocks, correct in versions:
    size = residual(x, t, pull, push, noise, **clocks).abs()
    assert (size.max() < 1e-10) if correct else (size.median() > 0.1), name
    median = f"{size.median():.0g}"
    rows.append({"equation": name, r"median of $\lvert R\rvert/\beta$": median})
figures.table(rows)
direct = crooked.noised(schedule, float(t[0])).log_prob(x[:1])
gap = float((log_p(x[:1], t[:1]) - direct).abs())
figures.check("log p_t is the library's", gap, below=1e-12)

# %% [markdown]
# ## Where the wrong equations end
#
# For one Gaussian, $p_0 = \mathcal N(\mu, v_0)$, every drift above is linear, so mean and variance can be followed by a solver. Start from pure noise and run for
# all of $\tau\in(0,\infty)$. *Corrected*, the process ends in $\mathcal N(\mu, v_0)$. *As printed*, the clock runs from data to noise; at the end $p_t$ is $\mathcal N(0,1)$ and
# the drift is $-3X$, so what remains is $\mathcal N(0, \tfrac13)$, whatever the data were. With only the *sign mended* the drift there is $-X$, and noise comes out. With only the
# *clock mended* the data enter, but the wrong sign shrinks them.

# %%
mu, v0 = 2.0, 0.5


def moments(pull, push, noise, *, start, taus):
    """Mean and variance of dX = [pull X + push score] |dtau| + noise sqrt(2) dW."""
    first, last = taus  # rising: the forward clock; falling: the reversed one

    def rate(u, y):
        tau = first + math.copysign(u, last - first)
        m, v = math.exp(-tau) * mu, 1 - (1 - v0) * math.exp(-2 * tau)  # of p_t
        slope = pull - push / v
        return [slope * y[0] + push * m / v, 2 * slope * y[1] + 2 * noise**2]

    options = {"method": "DOP853", "rtol": 1e-11, "atol": 1e-13}
    return solve_ivp(rate, (0, abs(last - first)), start, **options).y[:, -1]


# %%
down, up = (30.0, 0.0), (0.0, 30.0)  # alpha = 1e-13 at the far end
cases = {  # pull, direction of tau, mean and variance by hand
    "as printed": (-1, up, (0, 1 / 3)),
    "clock mended only": (-1, down, None),
    "sign mended only": (1, up, (0, 1)),
    "corrected": (1, down, (mu, v0)),
}
rows, ends = [], {}
for name, (pull, taus, by_hand) in cases.items():
    ends[name] = moments(pull, 2, 1, start=(0.0, 1.0), taus=taus)
    assert by_hand is None or np.abs(ends[name] - by_hand).max() < 1e-8
    mean, variance = (f"{value + 0.0:.2f}" for value in ends[name].round(6))
    rows.append({"version of (2.12)": name, "mean": mean, "variance": variance})
figures.table(rows)
assert 0 < ends["clock mended only"][0] < 0.8 * mu

# %% [markdown]
# On the paper's mixture the same four versions can be drawn. The score is exact, the steps are small, the noise is the same: only
# signs and clocks differ.


# %%
def simulate(x, drift, noise, taus, generator):
    """Euler-Maruyama, every state: dX = drift(X, tau) |dtau| + noise sqrt(2) dW."""
    for now, then in pairwise(taus):
        h = abs(then - now)
        z = torch.randn(x.shape, generator=generator)
        x = x + h * drift(x, now) + noise * math.sqrt(2 * h) * z
        yield x


n, steps = (3000, 1000) if full else (800, 300)
drawn, fall = {}, np.linspace(END, 0, steps + 1)
for name, (pull, taus, _) in cases.items():
    seeded = torch.Generator().manual_seed(1)
    start = torch.randn(n, 2, generator=seeded)
    grid = fall if taus is down else fall[::-1]
    drift = lambda x, tau, pull=pull: pull * x + 2 * score(x, tau)  # noqa: E731
    *_, drawn[name] = simulate(start, drift, 1.0, grid, seeded)

# %% tags=["hide-input"]
h = END / steps
for name, points in drawn.items():
    assert abs(float(points[:, 1].var()) / ends[name][1] - 1) < 4 * math.sqrt(2 / n) + 4 * h
    error = float(base.log_prob(points).std()) / math.sqrt(n)  # and the first-order error of the scheme
    arrived = abs(negative_log_likelihood(points, base) - base.entropy()) < 4 * error + 4 * h
    assert arrived == (name == "corrected")
xs, ys = np.linspace(-4.5, 4.5, 181), np.linspace(-3, 3, 121)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
density = (xs, ys, base.log_prob(plane).reshape(len(ys), len(xs)).numpy())
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 5.3), sharex=True, sharey=True)
    for ax, (name, points) in zip(axes.flat, drawn.items(), strict=True):
        color = figures.COLORS["base" if name == "corrected" else "paper"]
        look = {"color": color, "title": name, "limits": (-4.5, 4.5, -3, 3)}
        figures.samples(ax, points[:1500].numpy(), density=density, **look)
    for ax in axes[1]:
        ax.set_xlabel("$x_1$")
    for ax in axes[:, 0]:
        ax.set_ylabel("$x_2$")
text = (
    "Four clouds of samples over the contours of two modes. Printed: one small blob in the middle. Clock mended: two tight "
)
figures.show(
    fig,
    "reverse-samples",
    text + "blobs too near the centre. Sign mended: one round cloud. Corrected: both modes are covered.",
)

# %% [markdown]
# ```{glue:figure} reverse-samples
# :name: fig-sde-samples
#
# Samples of the reverse SDE (2.12) in four versions, from the same noise and with the exact score. Contours: the
# data's density $p_0$. Only the corrected version arrives.
# ```
#
# ## The flow
#
# In one dimension the marginals of a flow can be tested without samples. Paths do not cross, so each keeps the same mass to its left: $F_t(x_t)$, with
# the distribution function $F_t$ of $p_t$, must stay constant along a path. The $x_1$ of the paper's mixture is such a one-dimensional problem.


# %%
def flow(x, tau_from, tau_to, sign=-1.0):
    """Follow dx/dtau = -x + sign * score; sign -1 is correct, +1 is printed."""

    def rate(tau, y):
        points = torch.from_numpy(y.reshape(-1, 2))
        return (-points + sign * score(points, tau)).numpy().ravel()

    start, options = np.asarray(x).ravel(), {"rtol": 1e-11, "atol": 1e-12}
    ends = solve_ivp(rate, (tau_from, tau_to), start, method="DOP853", **options)
    return ends.y[:, -1].reshape(-1, 2)


def cdf(x, tau):
    """Distribution function of the first coordinate of X_t."""
    a = math.exp(-tau)
    away = np.asarray(x)[..., None] - a * np.array([-2, 2])
    return norm.cdf(away / math.sqrt(1 - a**2 / 2)).mean(-1)


# %%
points = np.stack([np.linspace(-4, 4, 41), np.zeros(41)], -1)
changes = {1.0: [], -1.0: []}
for sign, found in changes.items():
    for t_end in (0.25, 0.5, 0.75, 0.999):
        tau = -math.log(at(t_end)[0])
        moved = cdf(flow(points, 0.0, tau, sign)[:, 0], tau)
        found.append(np.abs(moved - cdf(points[:, 0], 0.0)).max())
figures.check("corrected flow: F_t changes by", max(changes[-1.0]), below=1e-8)
print(f"Printed flow: by {min(changes[1.0]):.2f} to {max(changes[1.0]):.2f}.")
assert min(changes[1.0]) > 1e-2
back_again = flow(flow(points, 0.0, END), END, 0.0)
figures.check("there and back: off by", np.abs(back_again - points).max(), below=1e-7)

# %% [markdown]
# So the flow is a change of coordinates between data and noise. In the library its velocity is $\dot\alpha_t\hat x_0 + \dot\sigma_t\hat x_1$, which holds for
# every schedule.

# %%
denoiser = ExactNoisePredictor(base, schedule)
x = 2 * torch.randn(100, 2, generator=generator)
t = 0.05 + 0.9 * torch.rand(100, generator=generator)
right = -0.5 * beta(t)[:, None] * (x + base.score(x, t, schedule))
gap = (velocity(denoiser, schedule, x, t) - right).abs().max() / right.abs().max()
figures.check("the library's velocity is the corrected flow's", float(gap), below=1e-9)

# %% [markdown]
# ### Same marginals, different paths
#
# Follow the members of {eq}`eq-family` for $\mathcal N(\mu,v_0)$. The state at $t$ and the sample that it ends in have the correlation
#
# $$\mathrm{Corr}_\eta(\bar X_{1-t}, \bar X_1) = \varrho_t^{\,\eta^2}, \qquad \varrho_t = \mathrm{Corr}(X_t, X_0) = \alpha_t\sqrt{v_0/v_t},$$ (eq-correlation)
#
# with $v_t = \alpha_t^2v_0+\sigma_t^2$. Only $\eta = 1$ has the correlation of the forward process. That makes it the *time reversal*, and not just one of many equations with the right marginals.

# %%
tau = -math.log(at(0.5)[0])
alpha, v = math.exp(-tau), 1 - (1 - v0) * math.exp(-2 * tau)
rho, gaps = alpha * math.sqrt(v0 / v), []
for eta in (0.0, 0.5, 1.0, 2.0):
    ways = [(alpha * mu, v), (alpha * mu + 1, v)]
    near, there = (moments(1, 1 + eta**2, eta, start=w, taus=(tau, 0.0)) for w in ways)
    correlation = (there[0] - near[0]) * math.sqrt(v / v0)  # from the slope
    gaps += [*np.abs(near - (mu, v0)), abs(correlation - rho ** (eta**2))]
figures.check("moments and correlations agree", max(gaps), below=1e-9)

# %% tags=["hide-input"]
odds = np.linspace(math.log(schedule.t_max / (1 - schedule.t_max)), -5, 400 if full else 80)
clock = np.append(1 / (1 + np.exp(-odds)), 0.0)  # fine steps at both ends
taus = np.array([-math.log(at(t)[0]) for t in clock])
starts = np.stack([norm.ppf(np.linspace(0.05, 0.95, 10)), np.zeros(10)], -1)
kept = [*range(0, len(taus) - 1, 8), len(taus) - 1]
lines, shown = [starts], clock[kept]
for now, then in pairwise(np.maximum(taus[kept], 0.0)):
    lines.append(flow(lines[-1], now, then))
lines = np.stack(lines)[:, :, 0]
assert (np.diff(lines, axis=1) > 0).all()  # no two paths cross
one = torch.from_numpy(starts[6]).repeat(5, 1)
noisy = [one, *simulate(one, lambda x, tau: x + 2 * score(x, tau), 1.0, taus, torch.Generator().manual_seed(0))]
noisy = torch.stack(noisy)[:, :, 0].numpy()
assert noisy[-1].min() < 0 < noisy[-1].max()  # they part

# %% tags=["hide-input"]
heights = np.linspace(-4, 4, 161)
shade = np.stack([np.gradient(cdf(heights, tau), heights) for tau in taus], -1)
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
    for ax in axes:
        for low in (0.05, 0.12, 0.2, 0.28):
            ax.contourf(clock, heights, shade, levels=[low, 10], colors=[figures.COLORS["band"]], alpha=0.12)
        ax.set(xlim=(1, 0), ylim=(-4, 4), xlabel="$t$, from noise to data")
    axes[0].plot(shown, lines, color=figures.COLORS["base"], linewidth=1)
    axes[1].plot(clock, noisy, color=figures.SERIES[4], linewidth=0.6)
    axes[1].plot(shown, lines[:, 6], color=figures.COLORS["base"], linewidth=2)
    axes[0].set(title="the flow, ten starts", ylabel="$x_1$")
    axes[1].set(title="one start: SDE five times, and flow")
text = "First coordinate against time from noise to data. Left: ten smooth curves that fan out into two modes without crossing. "
figures.show(
    fig,
    "paths",
    text + "Right: from one start, five jagged paths of the SDE end in both modes; the flow's one smooth path ends in one.",
)

# %% [markdown]
# ```{glue:figure} paths
# :name: fig-sde-paths
#
# From noise ($t=1$) to data ($t=0$), first coordinate; shaded: the density of $p_t$. Left: paths of the flow keep their order. Right:
# from one start, the reverse SDE (thin) may still go to either mode, while the flow (thick) has decided at $t = 1$.
# ```
#
# ### Likelihood
#
# A change of coordinates carries densities. Along a path $\frac{d}{dt}\log p_t(x_t) = -\nabla\cdot v_t(x_t)$, by
# {eq}`eq-continuity`, and at the far end the density is a standard normal:
#
# $$\log p_0(x_0) = \log\mathcal N(x_1; 0, I) + \int_0^1 \nabla\cdot v_t(x_t)\, dt .$$ (eq-flow-likelihood)
#
# {py:func}`itlib.likelihood.log_likelihood` integrates this between the safe times of the schedule. The printed sign of (2.13) is easy to try: it is a noise prediction
# of the opposite sign.

# %%
x = base.sample(300 if full else 60, torch.Generator().manual_seed(3))
exact = base.noised(schedule, schedule.t_min).log_prob(x)
by_flow = log_likelihood(denoiser, schedule, x, rtol=1e-8, atol=1e-8)
opposite = lambda x, t: -denoiser(x, t)  # noqa: E731
printed = log_likelihood(opposite, schedule, x, rtol=1e-6, atol=1e-6)
gap = float((by_flow - exact).abs().max())
figures.check("log p by the flow and in closed form agree", gap, below=2e-4)
averages = (f"{float(v.mean()):.2f}" for v in (exact, by_flow, printed))
print("Average log p: exact {}, corrected flow {}, printed flow {}.".format(*averages))
assert float((printed - exact).abs().min()) > 1

# %% [markdown]
# The printed flow squeezes all data into a point on the way to noise, so it declares every sample nearly impossible.
#
# ## DDIM is a discretisation of the flow
#
# Let $y = x/\alpha$, and measure time by $\nu = \sigma/\alpha$. With $\nabla\log p_t = -\hat x_1/\sigma_t$ {eq}`eq-2-8` and
# $\alpha^2+\sigma^2 = 1$, the corrected {eq}`eq-flow` becomes
#
# $$\frac{dy}{d\nu} = \hat x_1 .$$ (eq-straight)
#
# The linear part of the drift is gone. An Euler step is $y_s = y_t + (\nu_s-\nu_t)\,\hat x_1$. Multiply by $\alpha_s$:
#
# $$x_s = \frac{\alpha_s}{\alpha_t}x_t + \Big(\sigma_s - \frac{\alpha_s\sigma_t}{\alpha_t}\Big)\hat x_1 ,$$
#
# which is the transition {eq}`eq-2-7` with $\eta = 0$ {cite}`song2021denoising`. Euler's method is of first order. To measure it we compare with a solver of order eight.

# %%
starts = torch.randn(100, 2, generator=torch.Generator().manual_seed(4))
early, tau = 0.8, -math.log(at(0.8)[0])
there = torch.from_numpy(flow(starts, END, tau))  # points of p_t at t = 0.8
hs = np.array([0.1, 0.05, 0.02, 0.01, 0.005, 0.002] if full else [0.02, 0.01, 0.005])


def rmse(x, y):
    difference = torch.as_tensor(x) - torch.as_tensor(y)
    return float(difference.square().sum(-1).mean().sqrt())


def ddim_step(x, s, t):
    a, b, _ = transition(schedule, s, t, 0.0)
    return a * x + b * denoiser(x, torch.tensor(t))


one_step = []
for h in hs:
    exact_step = flow(there, tau, -math.log(at(early - h)[0]))
    one_step.append(rmse(ddim_step(there, early - h, early), exact_step))

# %%
Ks = np.array([10, 20, 40, 80, 160, 320] if full else [40, 80, 160])
exact_end, all_steps = flow(starts, END, 0.0), {"DDIM": []}
for K in Ks:
    *_, (_, end) = reverse_process(denoiser, schedule, starts, steps=int(K), eta=0.0)
    all_steps["DDIM"].append(rmse(end, exact_end))

# %% [markdown]
# ## DDPM is a discretisation of the reverse SDE
#
# Give the sampler back its noise: DDPM's standard deviation times $\eta\in[0,1]$, as in {doc}`s2_1_2_reverse`. One step of length $h$ is
# $x_{t-h} = a\, x_t + b\,\hat x_1 + \eta_{t-h}\, z$. Put $\hat x_1 = -\sigma_t\nabla\log p_t$, and expand the three coefficients:
#
# $$\frac{a - 1}{h} \to \tfrac12\beta(t), \quad \frac{-b\,\sigma_t}{h} \to \tfrac12\big(1+\eta^2\big)\beta(t), \quad
#   \frac{\eta_{t-h}^2}{h} \to \eta^2\beta(t) \quad (h\to0).$$ (eq-rates)
#
# These are the drift and the noise of the family {eq}`eq-family`. **The multiplier of DDIM is the noise level of the equation.** Of the factor $1+\eta^2$, one
# part comes from moving along the flow, and the other from $\sqrt{\sigma_s^2-\eta_s^2}$ in {eq}`eq-2-7`: predicted noise is taken out to make room for fresh noise.

# %%
t_now, small = 0.5, np.array([0.02, 0.01, 0.005, 0.002, 0.001])
s_t, rate = at(t_now)[1], float(beta(torch.tensor(t_now)))
for eta in (0.0, 0.5, 1.0):
    a, b, std = np.array([transition(schedule, t_now - h, t_now, eta) for h in small]).T
    measured = np.stack([(a - 1) / small, -b * s_t / small, std**2 / small]) / rate
    limit = np.array([0.5, 0.5 * (1 + eta**2), eta**2])
    misses = np.abs(measured - limit[:, None])
    slopes = [np.polyfit(np.log(small), np.log(m), 1)[0] for m in misses if m.max() > 0]
    assert min(slopes) > 0.9  # the limits are reached like h, or faster
    what = f"eta = {eta:g}: the three rates at h = 0.001 and their limits"
    figures.check(what, misses[:, -1].max(), below=0.02)

# %% [markdown]
# A step whose drift and variance are right to first order gives a law that is right to first order. For $\mathcal N(2,\frac12)$ the law of DDPM's output is an exact
# recursion, and its distance from the reverse SDE's end must halve when the steps double.


# %%
def ddpm_variance(K):
    """What Algorithm 1 with eta = 1 and the exact denoiser returns for N(mu, v0)."""
    variance, grid = 1.0, time_grid(schedule, K)
    for t, s in pairwise(reversed(grid)):
        (a_t, s_t), (a, b, std) = at(t), transition(schedule, s, t, 1.0)
        gain = s_t / (a_t**2 * v0 + s_t**2)  # of the exact denoiser
        variance = (a + b * gain) ** 2 * variance + std**2
    return variance


sde_end = moments(1, 2, 1, start=(0.0, 1.0), taus=(END, 0.0))
all_steps["DDPM, variance"] = [abs(ddpm_variance(int(K)) - sde_end[1]) for K in Ks]

# %% tags=["hide-input"]
assert abs(np.polyfit(np.log(hs[-3:]), np.log(one_step[-3:]), 1)[0] - 2) < 0.1
for errors in all_steps.values():
    assert abs(np.polyfit(np.log(Ks[-3:]), np.log(errors[-3:]), 1)[0] + 1) < 0.15
looks = {"DDIM": ("o", figures.SERIES[4]), "DDPM, variance": ("^", figures.SERIES[5])}
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.4))
    for ax, values, at_x in ((axes[0], {"DDIM": one_step}, hs), (axes[1], all_steps, Ks)):
        for name, errors in values.items():
            marker, color = looks[name]
            ax.plot(at_x, errors, color=color, marker=marker, markersize=4.5, label=name)
        ax.set(xscale="log", yscale="log")
    axes[0].plot(hs, 2.5 * one_step[-1] * (hs / hs[-1]) ** 2, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[1].plot(Ks, 2.2 * all_steps["DDPM, variance"][-1] * Ks[-1] / Ks, color=figures.INK, linewidth=0.8, linestyle="--")
    axes[0].set(title="one step: dashed slope 2", xlabel="step $h$", ylabel="error")
    axes[1].set(title="all steps: dashed slope $-1$", xlabel="number of steps $K$")
    fig.legend(*axes[1].get_legend_handles_labels(), loc="outside upper center", ncols=2)
text = "Errors on logarithmic axes. One step of DDIM: a line of slope 2. All steps of DDIM and DDPM: lines of slope -1."
figures.show(fig, "orders", text)

# %% [markdown]
# ```{glue:figure} orders
# :name: fig-sde-orders
#
# Left: distance of one DDIM step from the exact flow, starting at $t = 0.8$. Right: after $K$ steps from noise to data; for DDPM the error of the
# variance on $\mathcal N(2, \frac12)$. Both are first-order methods.
# ```
#
# ## Try this
#
# - *Predict, then run.* Let the data be $\mathcal N(0, I)$, which is the noise already. The flow stands still. Does DDIM? (Hint: what is $\hat x_1$ here, and does it change with $t$?)

# %% tags=["hide-cell"]
still = ExactNoisePredictor(GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None]), schedule)
x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
figures.check("velocity of the flow", float(velocity(still, schedule, x, torch.tensor(0.5)).abs().max()), below=1e-12)
for K in (10, 50, 200):
    *_, (_, end) = reverse_process(still, schedule, x, steps=K, eta=0.0)
    lost = 1 - float((end / x).square().mean())
    print(f"K = {K}: DDIM loses {lost:.4f} of the variance; pi^2 / 4K = {math.pi**2 / (4 * K):.4f}")
assert abs(lost * 4 * K / math.pi**2 - 1) < 0.05  # the schedule's offset takes 2 %, the next order of 1/K less
print("No: x1_hat = sigma_t x changes with t though x should not move, and each step takes it as constant.")

# %% [markdown]
# - *Predict, then run.* In continuous time every $\eta$ of {eq}`eq-family` gives the same law. Keep the 1000 steps of the pictures and raise $\eta$. Does it still?

# %% tags=["hide-cell"]
biases, taus = [], np.linspace(END, 0, 1001)
h = taus[0] - taus[1]
for eta in (0.0, 0.5, 1.0, 2.0, 4.0, 6.0):
    variance = 1.0  # of x_2, whose Euler-Maruyama recursion is exact
    for tau in taus[:-1]:
        slope = 1 - (1 + eta**2) / (1 - (1 - v0) * math.exp(-2 * tau))
        variance = (1 + h * slope) ** 2 * variance + 2 * eta**2 * h
    biases.append(variance - v0)
    print(f"eta = {eta:g}: variance of x_2 {variance:.4f}, exact {v0:g}")
assert np.abs(biases[:3]).max() < 0.01 < biases[3] < biases[4] < biases[5]
print("No: the drift grows like 1 + eta^2, and so must the number of steps.")

# %% [markdown]
# - *Derive, then run.* Flow matching has $\alpha_t = 1 - t$ and $\sigma_t = t$. Which noise $g\,dW$ must go with the pull $(\dot\alpha/\alpha) X\, dt$, so that the variance
#   from a single point is $\sigma_t^2$? (Hint: $\frac{d}{dt}\sigma_t^2 = 2\frac{\dot\alpha}{\alpha}\sigma_t^2 + g^2$.)

# %% tags=["hide-cell"]
line = Linear()


def variance_at(t_end):
    """Variance at t_end from a single point, with g^2 = 2 sigma sigma' - 2 (alpha' / alpha) sigma^2 = 2t / (1 - t)."""

    def rate(t, v):
        time = torch.tensor(t)
        pull = float(line.alpha_dot(time) / line.alpha(time))
        return 2 * pull * v + 2 * t / (1 - t)

    return solve_ivp(rate, (0, t_end), [0.0], rtol=1e-10, atol=1e-12).y[0, -1]


gap = max(abs(variance_at(t) - t**2) for t in (0.25, 0.5, 0.75))
figures.check("g^2 = 2t / (1 - t): variance and t^2 agree", gap, below=1e-8)
print("With beta from the pull alone, (2.11) would give 1 - alpha^2: it can do nothing but preserve variance.")
