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
# # The tilted score
#
# Section 3.1 of the paper rests on one identity and one Taylor expansion. The identity says what tilting does to a score. The
# expansion makes it cheap: a small tilt moves the score by a covariance that needs values of the reward only.
#
# **You will see** the identity proved and checked against quadrature, also for a reward with a jump; the remainder of the
# expansion measured, per tilt and after all tilts; and why the paper's own experiment cannot show any remainder at all.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points

# %% tags=["remove-cell"]

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from itlib import figures
from itlib.gaussian_mixture import GaussianMixture, paper_mixture
from itlib.rewards import NAMED_REWARDS, parse_reward
from itlib.schedules import Cosine
from itlib.tilting import tilt_path

torch.set_num_threads(1)
full = profile == "full"

# %% [markdown]
# ## The identity
#
# Noise a clean sample with the Gaussian kernel $q_{t|0}$ {eq}`eq-2-2`. The score of that kernel needs no model,
#
# $$\nabla_{x_t}\log q_{t|0}(x_t \mid x_0) = \frac{\alpha_t x_0 - x_t}{\sigma_t^2} . \tag{3.1}$$ (eq-3-1)
#
# Now start from the tilted law {eq}`eq-2-14` instead of the base and look at the marginal,
#
# $$p_t^{\lambda r}(x_t) = \int q_{t|0}(x_t \mid x_0)\, p_0^{\lambda r}(x_0)\, dx_0 . \tag{3.2}$$ (eq-3-2)
#
# What a noisy point says about the clean one it came from is the posterior, for any prior $p_0^\circ$
#
# $$p_{0|t}^\circ(x_0 \mid x_t) \propto p_0^\circ(x_0)\, q_{t|0}(x_t \mid x_0). \tag{3.3}$$ (eq-3-3)
#
# (proposition-3-1)=
# **Proposition 3.1.** *The score of the tilted marginal is a weighted mean of kernel scores under the base posterior,*
#
# $$\nabla_{x_t} \log p_t^{\lambda r}(x_t) = \frac{\mathbb E_{p_{0|t}^b}\big[\nabla_{x_t} \log q_{t|0}(x_t \mid X_0)\, e^{\lambda r(X_0)}\big]}
#   {\mathbb E_{p_{0|t}^b}\big[e^{\lambda r(X_0)}\big]} . \tag{3.4}$$ (eq-3-4)
#
# *Step 1, differentiate.* The kernel is the only factor of {eq}`eq-3-2` that depends on $x_t$:
#
# $$\nabla_{x_t}\, p_t^{\lambda r}(x_t) = \int p_0^{\lambda r}(x_0)\, \nabla_{x_t} q_{t|0}(x_t \mid x_0)\, dx_0 . \tag{3.5}$$ (eq-3-5)
#
# *Step 2, divide by the marginal.* With $\nabla q = q\,\nabla\log q$ the integrand turns into a posterior {eq}`eq-3-3`, and
# the score becomes a mean. This is Fisher's identity,
#
# $$\nabla_{x_t} \log p_t^{\lambda r}(x_t) = \mathbb E_{p_{0|t}^{\lambda r}}\big[\nabla_{x_t} \log q_{t|0}(x_t \mid X_0)\big]. \tag{3.6}$$ (eq-3-6)
#
# *Step 3, tilt the posterior.* Prior times likelihood: the factor $e^{\lambda r}$ of the prior stays in front, the base's
# marginal cancels, and so does $Z_{\lambda r}$:
#
# $$p_{0|t}^{\lambda r}(x_0 \mid x_t) = \frac{e^{\lambda r(x_0)}\, p_{0|t}^b(x_0 \mid x_t)}{\mathbb E_{p_{0|t}^b}\big[e^{\lambda r(X_0)}\big]} . \tag{3.7}$$ (eq-3-7)
#
# Putting {eq}`eq-3-7` into {eq}`eq-3-6` gives {eq}`eq-3-4`. $\square$
#
# The paper asks for a reward of at most linear growth. That is more than is needed for the algebra and, for a heavy-tailed
# base, less than is needed for $Z_{\lambda r} < \infty$. What the proof uses is that {eq}`eq-3-5` exists; for a Gaussian mixture and a
# quadratic reward, which grows faster than linearly, $\Sigma_i^{-1} - \lambda A \succ 0$ is the right condition.
#
# ## Checked by quadrature
#
# The base is the paper's mixture of two Gaussians, and $\lambda = 1$ from here on. The rewards are the paper's and three more,
# which {doc}`s4_1_gaussian_tilts` draws: `b=.5,3` stands for $r(x) = 0.5\,x_1 + 3\,x_2$, and `A=-2,1` adds
# $\frac12(-2x_1^2 + x_2^2)$.
#
# The right side of {eq}`eq-3-4` needs an integral over the plane. A trapezoidal rule on a wide grid converges faster than any
# power of its spacing for smooth integrands that vanish at the edges, so it is as good as exact. The left side is the closed
# form of the tilted mixture. The two computations share nothing but the mixture's parameters.

# %%
schedule, base = Cosine(), paper_mixture()
axis = torch.linspace(-9, 9, 601 if full else 301, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)  # clean points x_0
log_prior = base.log_prob(grid)


def at(t):
    time = torch.tensor(t, dtype=torch.float64)
    return float(schedule.alpha(time)), float(schedule.sigma(time))


def proposition_3_1(x, t, values, lam=1.0):
    """Right side of (3.4) at one point x, from values of the reward on the grid."""
    alpha, sigma = at(t)
    g = (alpha * grid - x) / sigma**2  # (3.1)
    log_posterior = log_prior - 0.5 * ((x - alpha * grid) / sigma).square().sum(-1)  # (3.3) up to a constant
    weight = torch.softmax(log_posterior + lam * values, 0)  # (3.7)
    return weight @ g


generator = torch.Generator().manual_seed(0)
times = (0.2, 0.4, 0.7, 0.95)
rows = []
for name in NAMED_REWARDS:
    reward = parse_reward(name)
    target = base.tilted(reward)
    worst = 0.0
    for t in times:
        points = target.noised(schedule, t).sample(5, generator)
        closed = target.score(points, torch.tensor(t, dtype=torch.float64), schedule)
        integral = torch.stack([proposition_3_1(x, t, reward(grid)) for x in points])
        worst = max(worst, float((closed - integral).abs().max()))
    rows.append({"reward": name, "coefficients": f"`{NAMED_REWARDS[name]}`", "largest difference": f"{worst:.1e}"})
    assert worst < 1e-8
display(Markdown(pd.DataFrame(rows).to_markdown(index=False)))

# %% [markdown]
# Nothing in the proof asks the reward to be smooth. Here is one with a jump, worth 2 where $x_2 > 1$ and 0 elsewhere. There is
# no closed form now, so the left side is the logarithm of the integral {eq}`eq-3-2`, differentiated numerically in $x_t$.

# %%
jump = 2.0 * (grid[:, 1] > 1.0)


def log_marginal(x, t):
    alpha, sigma = at(t)
    return torch.logsumexp(log_prior + jump - 0.5 * ((x - alpha * grid) / sigma).square().sum(-1), 0)


def numerical_gradient(x, t, h=1e-2):
    """Central differences, extrapolated twice (error of order h^6)."""
    columns = []
    for e in torch.eye(2, dtype=torch.float64):
        d = [(log_marginal(x + s * e, t) - log_marginal(x - s * e, t)) / (2 * s) for s in (h, h / 2, h / 4)]
        first = [(4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3]
        columns.append((16 * first[1] - first[0]) / 15)
    return torch.stack(columns)


differences = [
    float((proposition_3_1(x, t, jump) - numerical_gradient(x, t)).abs().max())
    for t in times
    for x in base.noised(schedule, t).sample(2, generator)
]
assert max(differences) < 1e-8
display(Markdown(f"Largest difference over {len(differences)} points: {max(differences):.1e}."))

# %% [markdown]
# ## The small step
#
# Cut the tilt into $N$ equal ones,
#
# $$p_0^k(x) = Z_k^{-1} \exp\!\Big(\frac kN \lambda r(x)\Big)\, p_0^b(x), \qquad k = 0, \dots, N, \tag{3.8}$$ (eq-3-8)
#
# and apply the proposition to one of them, of size $\delta = \lambda/N$. The base is now $p_0^{k-1}$. Write
# $\pi_{k-1} = p_{0|t}^{k-1}(\cdot \mid x_t)$ for its posterior and $g = \nabla_{x_t}\log q_{t|0}(x_t \mid X_0)$:
#
# $$\nabla \log p_t^k(x_t) = \frac{\mathbb E_{\pi_{k-1}}[g\, e^{\delta r}]}{\mathbb E_{\pi_{k-1}}[e^{\delta r}]} . \tag{3.11}$$ (eq-3-11)
#
# The right side is the gradient in $a$, at $a = 0$, of $\log\mathbb E_{\pi_{k-1}}[e^{a^\top g + \delta r}]$. That is a cumulant
# generating function, so the expansion in $\delta$ is a list of joint cumulants of $g$ and $r$:
#
# $$\nabla \log p_t^k = \underbrace{\mathbb E[g]}_{\nabla \log p_t^{k-1}} + \delta\, \underbrace{\mathrm{Cov}(g, r)}_{C_{k-1}}
#   + \frac{\delta^2}{2}\, \kappa_3(g, r, r) + O(\delta^3).$$ (eq-cumulants)
#
# where $\kappa_3(g, r, r) = \mathbb E\big[(g - \mathbb E g)(r - \mathbb E r)^2\big]$. Keep the first two terms and you have the
# paper's result.
#
# (corollary-3-2)=
# **Corollary 3.2.** *With the covariance under the posterior of the previous tilt,*
#
# $$C_{k-1}(x_t, t) = \operatorname{Cov}_{X_0 \sim \pi_{k-1}}\big(\nabla_{x_t}\log q_{t|0}(x_t \mid X_0),\ r(X_0)\big), \tag{3.9}$$ (eq-3-9)
#
# *the score moves by*
#
# $$\nabla_{x_t}\log p_t^k(x_t) = \nabla_{x_t}\log p_t^{k-1}(x_t) + \frac{\lambda}{N}\, C_{k-1}(x_t, t)
#   + O\Big(\frac{1}{N^2}\Big) . \tag{3.10}$$ (eq-3-10)
#
# Two remarks on the $O(1/N^2)$. It is the error of *one* tilt. There are $N$ of them, so what accumulates is $O(1/N)$. And it is
# pointwise: the constant depends on $x_t$ and $t$, through the third cumulant in {eq}`eq-cumulants`.
#
# At one point the formula is a picture. Take a noised point $x_t$, and draw the clean points that it may have come from: the posterior
# $\pi_{k-1}$, here of the base. A draw $X_0$ pulls the score toward itself, by $g = (\alpha_t X_0 - x_t)/\sigma_t^2$. If the draws of high reward lie on one
# side, $g$ and $r$ are correlated, and their covariance points to that side.

# %%
x_t, time, delta = torch.tensor([[0.3, 0.4]]).double(), torch.tensor(0.5).double(), 0.25
reward = parse_reward("one-mode")
law = base.posterior(x_t, time, schedule)
weights, parts = law.mixture_distribution.probs[0], law.component_distribution
draws = GaussianMixture(weights, parts.loc[0], parts.covariance_matrix[0]).sample(200, torch.Generator().manual_seed(0))
score, step = base.score(x_t, time, schedule), delta * base.covariance(x_t, time, schedule, reward)
exact = base.tilted(reward, delta).score(x_t, time, schedule)

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), width_ratios=(3, 2))
    xs, ys = np.linspace(-4.5, 4.5, 91), np.linspace(-2.6, 2.6, 53)
    density = base.log_prob(torch.cartesian_prod(torch.tensor(ys), torch.tensor(xs)).flip(-1)).exp().reshape(53, 91)
    left.contour(xs, ys, density, levels=4, colors=figures.COLORS["base"], linewidths=0.6, linestyles="dashed")
    values = reward(draws).argsort().argsort() / len(draws)
    left.scatter(*draws.T, c=values, s=4 + 12 * values, cmap="RdPu", vmin=-0.6, vmax=1.4, linewidths=0, rasterized=True)
    left.plot(*x_t[0], "o", color=figures.INK, markerfacecolor="none", markersize=8)
    left.set(aspect="equal", title="draws of $X_0$ given $x_t$")
    arrows = [
        ("exact", 0 * score, exact, figures.COLORS["target"], 0.02),
        ("base score", 0 * score, score, figures.COLORS["base"], 0.008),
        (r"$\delta\,C$", score, step, "#9A2F92", 0.008),
        ("new score", 0 * score, score + step, figures.COLORS["learned"], 0.008),
    ]
    for label, start, way, color, width in arrows:
        right.quiver(*start[0], *way[0], color=color, width=width, label=label, scale=1, scale_units="xy", angles="xy")
    right.set(aspect="equal", xlim=(-0.3, 1.7), ylim=(-0.8, 0.5), title="scores at $x_t$")
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
figures.show(
    fig,
    "one-step",
    "Draws of X_0 given one x_t, and arrows: base score plus delta times covariance ends near the exact score of the tilt.",
)
named = {name: figures.as_model(parse_reward(name)) for name in NAMED_REWARDS}
model = {
    "mixture": figures.as_model(base),
    "rewards": named,
    "first": "one-mode",
    "at": [0.3, 0.4],
    "time": 0.5,
    "delta": delta,
}
figures.explorer("covariance", model, "one-step")

# %% [markdown]
# ```{glue:figure} one-step
# :name: fig-tilted-score-one-step
#
# The step {eq}`eq-3-10` at one point (ring), for the reward `one-mode` and $\delta = 1/4$. Left: clean points that it may have come from; the higher the
# reward, the darker and the larger. Right: the base score, the step, and where it leads, beside the exact score. On the page, drag
# $x_t$ or move it with the arrow keys, and choose reward, time and step.
# ```
#
# The two rates of the error are easy to measure here, because $C_{k-1}$ is known exactly at every tilt. Nothing is learned in this
# experiment: it adds up exact covariances along the exact path.

# %%
t = torch.tensor(0.7, dtype=torch.float64)
Ns = np.array([1, 2, 5, 10, 20, 50, 100, 200] if full else [5, 10, 20, 50])
late = Ns >= 10  # where the first order has set in


def rmse(error):
    return float(error.square().sum(-1).mean().sqrt())


def errors(reward, N):
    """RMSE at t of one step of size 1/N from the base, and of N steps, with exact covariances."""
    path = tilt_path(base, reward, 1.0, N)
    points = path(N).noised(schedule, float(t)).sample(500, torch.Generator().manual_seed(1))
    score = base.score(points, t, schedule)
    one = score + path(0).covariance(points, t, schedule, reward) / N - path(1).score(points, t, schedule)
    for k in range(1, N + 1):
        score = score + path(k - 1).covariance(points, t, schedule, reward) / N
    return rmse(one), rmse(score - path(N).score(points, t, schedule))


measured = {name: np.array([errors(parse_reward(name), int(N)) for N in Ns]) for name in NAMED_REWARDS}

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 4.4), sharex=True, sharey="row", height_ratios=(4, 1))
    for i, (name, values) in enumerate(measured.items()):
        # Two curves nearly agree: a larger marker without a face stays visible under the other.
        marker = {"markersize": 8, "markerfacecolor": "none"} if name == "one-mode" else {"markersize": 4}
        for ax, column in zip(axes[int(name == "paper")], values.T, strict=True):
            ax.plot(Ns, np.maximum(column, 1e-16), color=figures.SERIES[i], marker=figures.MARKERS[i], label=name, **marker)
    for ax, power, title in zip(axes[0], (-2, -1), ("one tilt", "all $N$ tilts"), strict=True):
        guide = measured["one-mode"][-1, 0 if power == -2 else 1] * (Ns / Ns[-1]) ** float(power) * 3
        ax.plot(Ns[late], guide[late], color=figures.INK, linewidth=0.8, linestyle="--", label=None)
        ax.set(xscale="log", yscale="log", title=f"{title}: dashed slope ${power}$", ylim=(1e-6, 10))
    for ax in axes[1]:
        ax.set(xscale="log", yscale="log", xlabel="$N$", ylim=(1e-17, 1e-13), yticks=(1e-16, 1e-14))
        ax.minorticks_off()
    axes[0, 0].set_ylabel("score RMSE at $t = 0.7$")
    handles, labels = (a + b for a, b in zip(*(ax.get_legend_handles_labels() for ax in axes[::-1, 0]), strict=True))
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
figures.show(
    fig,
    "slopes",
    "Error of the first-order step against N: slopes -2 and -1, except for the paper's reward, at rounding level.",
)

# %% [markdown]
# ```{glue:figure} slopes
# :name: fig-tilted-score-slopes
#
# Error of the first-order step {eq}`eq-3-10` with exact covariances, against the number of tilts. Left: after the first tilt, it
# falls like $1/N^2$. Right: after all of them, like $1/N$. Below, on a scale of its own: the paper's reward has no error but
# rounding.
# ```

# %% tags=["hide-input"]
rows = []
for name, values in measured.items():
    if name == "paper":
        assert values.max() < 1e-11
        rows.append(
            {"reward": name, "slope, one tilt": "–", "slope, all tilts": "–", "largest error": f"{values.max():.0e}"}
        )
        continue
    slopes = [np.polyfit(np.log(Ns[late]), np.log(column[late]), 1)[0] for column in values.T]
    assert abs(slopes[0] + 2) < 0.1
    assert abs(slopes[1] + 1) < 0.1
    rows.append(
        {
            "reward": name,
            "slope, one tilt": f"{slopes[0]:.2f}",
            "slope, all tilts": f"{slopes[1]:.2f}",
            "largest error": f"{values.max():.2g}",
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# ## Why the paper's experiment shows nothing of this
#
# The paper's reward is $r(x) = 4x_2$. The two modes differ in $x_1$ only, and share their covariance, a multiple of the
# identity. So given $X_t$, the second coordinate of $X_0$ is independent of the first, and *Gaussian*, with a variance that
# depends neither on $x_t$ nor on the tilt. The first component of $g$ is then independent of $r$. The second is linear in a
# Gaussian variable, as $r$ is, and Gaussian variables have no joint cumulant beyond the covariance. So every later term of
# {eq}`eq-cumulants` vanishes. With $v_t = \alpha_t^2/2 + \sigma_t^2$,
#
# $$C_{k-1}(x_t, t) = \frac{\alpha_t}{2 v_t}\, b, \qquad b = (0, 4), \quad \text{for every } k \text{ and } x_t ,$$
#
# so {eq}`eq-3-10` is exact for every $N$, and one tilt is as good as two hundred. **On the exact laws nothing that
# depends on $N$ is the error of the Taylor step**, and a learned model, whose modes differ a little in variance, brings little of it back (the last question below). What depends on $N$ in the
# paper's Table 1 and Figure 2 is noise of the covariance estimate, optimisation, the sampler, or a region that the samples do not reach. The formula is checked below at random points, along the whole path.

# %%
alpha, sigma = at(float(t))
reward = parse_reward("paper")
points = 3 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
predicted = alpha / (2 * (alpha**2 / 2 + sigma**2)) * reward.b
spread = max(
    float((base.tilted(reward, share).covariance(points, t, schedule, reward) - predicted).abs().max())
    for share in (0.0, 0.25, 0.5, 1.0)
)
assert spread < 1e-12
display(Markdown(f"Largest deviation from the formula: {spread:.0e}."))

# %% [markdown]
# The leading term of the remainder can be checked too. For the other rewards, regress the error of one small tilt on
# $\frac{\delta^2}{2}\kappa_3(g, r, r)$, with the cumulant from quadrature. The coefficient should tend to one.


# %%
def third_cumulant(x, values):
    """kappa_3(g, r, r) under the base posterior at x, by quadrature."""
    log_posterior = log_prior - 0.5 * ((x - alpha * grid) / sigma).square().sum(-1)
    weight = torch.softmax(log_posterior, 0)
    g = (alpha * grid - x) / sigma**2
    g, r = g - weight @ g, values - weight @ values
    return weight @ (g * (r**2).unsqueeze(-1))


rows = []
for name in ("unequal", "one-mode", "quadratic"):
    reward = parse_reward(name)
    points = base.noised(schedule, float(t)).sample(5, torch.Generator().manual_seed(2))
    kappa = torch.stack([third_cumulant(x, reward(grid)) for x in points])
    row = {"reward": name}
    for N in (10, 100, 1000):
        exact = base.tilted(reward, 1 / N).score(points, t, schedule)
        remainder = exact - base.score(points, t, schedule) - base.covariance(points, t, schedule, reward) / N
        row[f"$N = {N}$"] = float((remainder * kappa).sum() / (kappa.square().sum() * 0.5 / N**2))
    assert abs(row["$N = 1000$"] - 1) < 0.02
    rows.append(row)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".4f")))

# %% [markdown]
# ## Try this
#
# - Turn the paper's reward a little toward the axis that joins the modes: `parse_reward("b=.1,4")`. Is the step still exact?

# %% tags=["hide-cell"]
one, accumulated = errors(parse_reward("b=.1,4"), 20)
display(
    Markdown(
        f"No: the error after 20 tilts is {accumulated:.1e}. The weights of the modes now move, and with them the posterior."
    )
)

# %% [markdown]
# - Keep the reward and give the two modes *unequal* variances. What happens?

# %% tags=["hide-cell"]
eye = torch.eye(2)
uneven = GaussianMixture(base.weights, base.means, torch.stack([0.5 * eye, 0.3 * eye]))
path = tilt_path(uneven, parse_reward("paper"), 1.0, 20)
points = path(20).noised(schedule, float(t)).sample(500, torch.Generator().manual_seed(1))
score = uneven.score(points, t, schedule)
for k in range(20):
    score = score + path(k).covariance(points, t, schedule, parse_reward("paper")) / 20
error = rmse(score - path(20).score(points, t, schedule))
display(
    Markdown(f"Again not exact: {error:.2g} after 20 tilts. Variance decides how far a mode moves, and the weights follow.")
)
