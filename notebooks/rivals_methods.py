# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: py:percent,ipynb
#     notebook_metadata_filter: itlib,-widgets
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The rivals, one by one
#
# Iterative tilting is one of many ways to move a diffusion model toward a reward. {doc}`rivals_comparison` lets them compete with learned networks and equal
# budgets. This chapter comes first, and takes them one at a time: the idea, the formula, a few lines of code, and what is left of the error when everything
# but the method is exact.
#
# **You will see** that explicit Tilt Matching *is* Algorithm 2, and what the implicit form mends and what it costs; which policy gradients and
# which reward gradients end at the tilted density, and where the others go; that the best of $n$ samples is no tilt; what sequential Monte Carlo
# gains from a good potential, and that a good potential alone does not help; and that classifier-free guidance does not draw from the
# density that it is named after. A table at the end says what each method needs.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points, paths and iterations

# %% tags=["remove-cell"]
import math
from functools import cache

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.optimize import minimize_scalar, root
from scipy.stats import linregress, wasserstein_distance
from torch import nn

from itlib import plots
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.common import Account, NoisySteps, trajectory
from itlib.baselines.comparison import METHODS, Setting
from itlib.baselines.draft import DraftConfig, draft, rollout
from itlib.baselines.guidance import classifier_free, exact_value, exactly_guided, guided, plug_in_value
from itlib.baselines.monte_carlo import SMCConfig, best_of_n, effective_sample_size, importance, sequential_monte_carlo
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reward_weighted import reweighted
from itlib.estimators import centred
from itlib.gaussian_mixture import ExactDenoiser, GaussianMixture, NotNormalisableError, paper_mixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.sampling import time_grid, transition
from itlib.schedules import Cosine, column, noise
from itlib.tasks import Task
from itlib.tilting import PAPER_UPDATE, TiltBatch, explicit, implicit

torch.set_num_threads(1)
full = profile == "full"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The task, and two questions
#
# All methods are given the same base $p_0^b$, and all are judged by the tilted density {eq}`eq-2-14`. Here the base is the paper's mixture of two
# Gaussians, and it is given *exactly*: no network, so what goes wrong is the method's own fault. The reward is `one-mode`,
# $r(x) = 1.5\,x_1 + 3\,x_2$, because the paper's $4x_2$ hides the errors that we look for ({doc}`s3_1_tilted_score`). Throughout, $\lambda = 1$.

# %%
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("one-mode")
exact, target = ExactDenoiser(base, schedule), base.tilted(reward)

# %% tags=["hide-input"]
display(
    Markdown(
        f"The tilt moves the modes to ({target.means[0, 0]:.2f}, {target.means[0, 1]:.2f}) and ({target.means[1, 0]:.2f}, "
        f"{target.means[1, 1]:.2f}), and their weights from one half each to {float(target.weights[0]):.4f} and {float(target.weights[1]):.4f}. "
        f"It is {base.tilt_kl(reward):.2f} nats away from the base."
    )
)

# %% [markdown]
# Two questions are put to every method. *Does it need the reward's gradient?* We ask the code: each method of the comparison takes one step, on a
# tiny network, with a reward that raises an error as soon as autograd touches it.


# %%
class Forward(QuadraticReward):
    def __call__(self, x):
        return ForwardOnly(super().__call__)(x)


network = Network(2, width=8, depth=1, embedding=4)
tiny = Setting(network, Task(base, Forward(reward.b)), schedule, profile="smoke")


def takes_a_step(method):
    if method.train:
        next(method.train(tiny))
    elif drawn := method.draw(tiny, Account()).denoiser:
        drawn(torch.zeros(1, 2), torch.tensor(0.5))


needs_gradient = {}
for name, method in METHODS.items():
    try:
        takes_a_step(method)
        needs_gradient[name] = False
    except RuntimeError as error:
        if "forward-only" not in str(error):
            raise
        needs_gradient[name] = True

# %% [markdown]
# *Is the tilted density its optimum*, if nothing but the method is to blame? That is what the sections below find out. Each ends with both answers,
# and asserts that the table behind the comparison, `METHODS` of `itlib.baselines.comparison`, gives the same.

# %% tags=["remove-cell"]
torch.set_default_dtype(torch.float64)  # after the networks, which are single
answered = set()


def verdicts(found):
    """A section's answers: name -> (is the exact tilt the optimum?, what was measured)."""
    rows = []
    for name, (optimum, measured) in found.items():
        method = METHODS[name]
        assert (needs_gradient[name], bool(optimum)) == (method.gradient, method.exact), name
        rows.append([method.title, "yes" if method.gradient else "no", "yes" if optimum else "no", measured])
    answered.update(found)
    columns = ["method", r"needs $\nabla r$", "ends at the tilt", "found here"]
    display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)))


# %% [markdown]
# ## The tilting family
#
# ### Explicit Tilt Matching is Algorithm 2
#
# *Idea.* Move the prediction of a teacher along the covariance of noise and reward, in small tilts of size $\delta = \lambda/N$.
#
# {cite:t}`tiltmatching2025` found this at the same time. The paper calls their method "essentially the same"; it is the same, as we shall see. They follow the velocity of a
# stochastic interpolant as the tilt grows, by an ordinary differential equation in the size of the tilt, and take Euler steps of it. With the teacher's prediction $\varepsilon_{\mathrm{old}}$ of the noise $z$ in
# $x_t = \alpha_t X_0 + \sigma_t z$ and any constant $c$, one step is the regression
#
# $$\varepsilon_\theta(x_t, t) \;\leftarrow\; \varepsilon_{\mathrm{old}} + \delta\,\big(r(X_0) - c\big)\,(z - \varepsilon_{\mathrm{old}}).$$ (eq-rivals-explicit)
#
# Line 11 of [Algorithm 2](algorithm-2) is $s^{\mathrm{old}} + \delta\, r\,(g - s^{\mathrm{old}})$. Multiply it by $-\sigma_t$: then $-\sigma_t s^{\mathrm{old}} =
# \varepsilon_{\mathrm{old}}$ by {eq}`eq-2-8`, and $-\sigma_t g = z$ by {eq}`eq-3-1`. It is {eq}`eq-rivals-explicit` with $c = 0$. And velocities? Given $x_t$,
# the clean sample is $X_0 = (x_t - \sigma_t z)/\alpha_t$, so the velocity
#
# $$\dot\alpha_t X_0 + \dot\sigma_t z = \frac{\dot\alpha_t}{\alpha_t}\, x_t + \kappa_t\, z, \qquad
#   \kappa_t = \dot\sigma_t - \frac{\dot\alpha_t\sigma_t}{\alpha_t},$$
#
# is an affine function of the noise, and the teacher's velocity is the same function of $\varepsilon_{\mathrm{old}}$. Their difference is
# $\kappa_t (z - \varepsilon_{\mathrm{old}})$: the same regression, with another weight. Here are all four on one batch.

# %%
delta, n = 0.1, 1000
x_0, z = base.sample(n, seeded(0)), torch.randn(n, 2, generator=seeded(1))
t = 0.01 + 0.98 * torch.rand(n, generator=seeded(2))
x_t = noise(schedule, x_0, z, t)
batch = TiltBatch(1, x_0, reward(x_0), t, z, x_t, eps_old=exact(x_t, t))

alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
alpha_dot, sigma_dot = schedule.alpha_dot(t)[:, None], schedule.sigma_dot(t)[:, None]
s_old, g = -batch.eps_old / sigma, (alpha * x_0 - x_t) / sigma**2
r = batch.r[:, None]
line_11 = s_old + delta * r * (g - s_old)

old = alpha_dot * (x_t - sigma * batch.eps_old) / alpha + sigma_dot * batch.eps_old
velocity = old + delta * r * (alpha_dot * x_0 + sigma_dot * z - old)
kappa = sigma_dot - alpha_dot * sigma / alpha

algorithm_2, _ = PAPER_UPDATE(batch, delta)
tilt_matching, _ = explicit(centred(c=0.0))(batch, delta)
for other in (algorithm_2, -sigma * line_11, batch.eps_old + (velocity - old) / kappa):
    assert torch.allclose(other, tilt_matching, rtol=0, atol=1e-11)

# %% [markdown]
# The same method, found twice. The constant is a refinement: it leaves the tilted density alone, and lessens a bias where the
# teacher is not the score of its own samples ({doc}`s3_2_algorithm`). The comparison runs both, as *iterative tilting* with $c = 0$, and as *explicit Tilt Matching* with the mean reward of
# the tilt's samples for $c$.
#
# ### What the implicit form changes
#
# *Idea.* Replace the first order $\delta(r - c)$ by the whole exponential, and the teacher inside the bracket by the student:
#
# $$\varepsilon_\theta \;\leftarrow\; \varepsilon_{\mathrm{old}} + \big(e^{u} - 1\big)\,(z - \operatorname{sg}\varepsilon_\theta),$$ (eq-rivals-implicit)
#
# where $u = \delta\,(r(X_0) - c)$, and sg stops the gradient. Take the mean over what is random given $x_t$. At a fixed point
#
# $$\mathbb E\big[e^u(\varepsilon - z) \,\big|\, x_t\big] = \varepsilon_{\mathrm{old}} - \mathbb E[z \mid x_t],$$
#
# and if the teacher is right, the right side is zero. Then $\varepsilon = \mathbb E[e^{\delta r} z \mid x_t] / \mathbb E[e^{\delta r} \mid x_t]$, which is
# [Proposition 3.1](proposition-3-1) in the denoiser's units. Nothing has been expanded: the fixed point is exact for every $\delta$.
#
# ### Reward-weighted regression
#
# *Idea.* Denoise the model's own samples, each with the weight that the tilt gives it {cite:p}`peters2007reinforcement,lee2023aligning`:
#
# $$\min_\theta\ \mathbb E\,\big[e^{\delta r(X_0)}\,\|\varepsilon_\theta(x_t, t) - z\|^2\big].$$ (eq-rivals-weighted)
#
# Its minimiser is the same ratio, so it is exact for every $\delta$ too, and needs no teacher. With $\delta = \lambda$ it is done in *one shot*; else it is
# iterated, like the others.
#
# ### One tilt, with exact ingredients
#
# For a fair test, take the minimiser of each regression, and the noise that a single sample has around it, without any training: by Gauss–Hermite quadrature over the exact posterior of $X_0$. We do
# this at 300 points $x_t$ of the tilted law, where the new model will be used. The updates are the library's own; each returns what to regress on, and a factor of the residual.

# %% tags=["hide-input"]
nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(20))
nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / (2 * np.pi)


def posterior_batch(x, t, law, r):
    """Clean samples behind the points x, (B, d), at the nodes of a quadrature, as one batch; their probabilities (B, M)."""
    parts = law.posterior(x, t, schedule)
    components = parts.component_distribution
    x_0 = components.loc.unsqueeze(2) + torch.einsum("bkde,qe->bkqd", components.scale_tril, nodes)
    probabilities = (parts.mixture_distribution.probs.unsqueeze(-1) * weights).flatten(1)
    M = probabilities.shape[1]
    x_0, x_t = x_0.reshape(-1, x.shape[1]), x.repeat_interleave(M, 0)
    z = (x_t - schedule.alpha(t) * x_0) / schedule.sigma(t)
    eps_old = ExactDenoiser(law, schedule)(x, t).repeat_interleave(M, 0)
    return TiltBatch(1, x_0, r(x_0), t.expand(len(x_0)), z, x_t, eps_old, r(law.sample(1000, seeded(3)))), probabilities


# %%
def regression(update, delta, x):
    """At the points x, (B, d): the minimiser, (B, d), and the mean square of one sample's error, (B,)."""
    batch, p = posterior_batch(x, t, base, reward)
    goal, factor = update(batch, delta)
    w = (p * (factor**2).expand(p.numel(), 1).view_as(p)).unsqueeze(-1)
    goal = goal.view(*p.shape, -1)
    best = (w * goal).sum(1, keepdim=True) / w.sum(1, keepdim=True)
    one_sample = (w / p.unsqueeze(-1) * (goal - best)).square().sum(-1)
    return best[:, 0], (p * one_sample).sum(1) / w.sum((1, 2)).square()


# %% tags=["hide-input"]
def rms(v):
    return float(v.square().sum(-1).mean().sqrt())


def compared(update, delta, x):
    """Error of the minimiser, and noise of one sample, both in units of the tilt's step from the base."""
    truth = ExactDenoiser(base.tilted(reward, delta), schedule)(x, t)
    best, one_sample = regression(update, delta, x)
    step = rms(truth - exact(x, t))
    return rms(best - truth) / step, float(one_sample.mean().sqrt()) / step


t, deltas = torch.tensor(0.5), np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5])
updates = {"tilting": PAPER_UPDATE, "centred": explicit(centred()), "implicit": implicit, "reweighted": reweighted}
error, one_sample = {}, {}
for name, update in updates.items():
    at_tilt = [base.tilted(reward, delta).noised(schedule, 0.5).sample(300, seeded(4)) for delta in deltas]
    pairs = [compared(update, delta, x) for delta, x in zip(deltas, at_tilt, strict=True)]
    error[name], one_sample[name] = np.array(pairs).T

# %% tags=["hide-input"]
labels = {"tilting": "explicit = Algorithm 2", "implicit": "implicit", "reweighted": "reward-weighted"}
with plots.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    for i, (name, label) in enumerate(labels.items()):
        style = {"color": plots.SERIES[i], "marker": plots.MARKERS[i], "markersize": 5, "linestyle": ("-", "--", ":")[i]}
        left.plot(deltas, np.maximum(error[name], 1e-16), label=label, **style)
        right.plot(deltas, one_sample[name], **style)
    left.plot(deltas, 2 * error["tilting"][-1] * deltas / deltas[-1], color=plots.INK, linewidth=0.8, linestyle="--")
    left.text(0.1, 0.6, "slope 1", ha="right")
    left.set(
        xscale="log", yscale="log", xlabel=r"size of the tilt, $\delta$", title="error of the minimiser", ylim=(1e-16, 100)
    )
    right.set(xscale="log", yscale="log", xlabel=r"size of the tilt, $\delta$", title="noise of one sample")
    left.set_ylabel("in units of the step to learn")
    for ax in (left, right):
        ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
        ax.minorticks_off()
    right.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
plots.show(
    fig,
    "tilting-family",
    "Left: the error of the explicit tilt, in units of the step, grows in proportion to the size of the tilt; the implicit and the reward-weighted one stay at rounding "
    "level. Right: the noise of one sample, in units of the step, hardly depends on the size of the tilt for the explicit form, and for the implicit form until it rises at large tilts; for the reward-weighted regression it is many times larger at small tilts, and falls to the others.",
)

# %% [markdown]
# ```{glue:figure} tilting-family
# :name: fig-rivals-tilting
#
# One tilt of the `one-mode` task at $t = \frac12$, with exact teacher and exact posterior. The unit is the step that the tilt should make, which is itself proportional to $\delta$. Left: where the regression ends. The explicit
# form is off by a share $\propto\delta$ of the step, that is by $O(\delta^2)$; the two others are not off at all. Right: the standard deviation of a single sample's estimate. Squared, it is the number of samples at *one* point
# that resolve the step.
# ```

# %% tags=["hide-input"]
slope = 1 + linregress(np.log(deltas[:3]), np.log(error["tilting"][:3])).slope  # one more, for the unit
rise = linregress(np.log(deltas[:3]), np.log(one_sample["reweighted"][:3])).slope
assert abs(slope - 2) < 0.05
assert max(error[name].max() for name in ("implicit", "reweighted")) < 1e-11  # rounding, in steps of 0.03 and more
assert abs(rise + 1) < 0.05
assert (one_sample["implicit"] < 1.1 * one_sample["tilting"])[deltas <= 0.2].all()
assert one_sample["implicit"][-1] > 1.2 * one_sample["reweighted"][-1]
assert np.allclose(error["centred"], error["tilting"], rtol=1e-6)
display(
    Markdown(
        f"The explicit error grows like $\\delta^{{{slope:.2f}}}$. At $\\delta = 1/20$ it is {error['tilting'][1]:.1%} of the step, and one sample is off by {one_sample['tilting'][1]:.1f} steps with the explicit form, "
        f"{one_sample['implicit'][1]:.1f} with the implicit, {one_sample['reweighted'][1]:.1f} with the weighted regression."
    )
)

# %% [markdown]
# While the teacher is almost right it pays to regress on a *difference* to it. The plain noise $z$ has unit variance however small the tilt is, so the weighted regression drowns in it like $1/\delta$. The implicit form has the noise
# of the explicit one, without its bias, up to the middle of the picture. For larger tilts there are points that the tilt makes unlikely, where $\mathbb E[e^u \mid x_t]$ is tiny, and the implicit form divides by it.
#
# What a large tilt costs the weighted regression is its *effective sample size*, ESS: how many of $n$ weighted samples count ({doc}`s1_introduction`). Here is the worst
# of $N$ tilts, from the closed form of $\log Z$, as a share of $n$.


# %%
def share(law, r, delta):
    """Limit of ESS / n for the weights exp(delta r) under a law."""
    try:
        return math.exp(2 * law.log_normaliser(r, delta) - law.log_normaliser(r, 2 * delta))
    except NotNormalisableError:
        return 0.0  # the weights have no second moment


# %% tags=["hide-input"]
rows = []
for name in ("paper", "one-mode", "quadratic"):  # the last has infinite variance in one shot
    r = parse_reward(name)
    rows.append([name] + [min(share(base.tilted(r, k / N), r, 1 / N) for k in range(N)) for N in (1, 2, 5, 10, 20)])
columns = ["reward", "one shot", *(f"$N = {N}$" for N in (2, 5, 10, 20))]
display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, floatfmt=".2g")))
assert all(row[1] < 0.3 and row[-1] > 0.9 for row in rows)

# %% tags=["hide-input"]
first_order = abs(slope - 2) < 0.05  # of each tilt: the sum of N = 1 / delta of them vanishes
verdicts(
    {
        "tilting": (first_order, f"as $N \\to \\infty$: a tilt is off by $O(\\delta^{{{slope:.2f}}})$"),
        "centred": (first_order, "the same"),
        "implicit": (error["implicit"].max() < 1e-11, f"off by {error['implicit'].max():.0e} of a step"),
        "reweighted": (
            error["reweighted"].max() < 1e-11,
            f"off by {error['reweighted'].max():.0e} of a step; noise like $1/\\delta$",
        ),
        "oneshot": (error["reweighted"].max() < 1e-11, f"the same; but {rows[1][1]:.2%} of the samples count"),
    }
)

# %% [markdown]
# ## Climbing with values: policy gradients
#
# *Idea.* Treat each noisy step of the sampler as the action of a player, and make actions more likely that were followed by a high reward.
#
# A step of Algorithm 1 is Gaussian {eq}`eq-2-7`: $p_\theta(x_k \mid x_{k+1}) = N(m_\theta(x_{k+1}), \eta_k^2 I)$, where $x_k$ is the state at time $t_k$. So the
# gradient of an expected reward needs its values only {cite:p}`williams1992simple`. With the *advantage* $A$, the reward less a baseline,
#
# $$\nabla_\theta\,\mathbb E[r(x_0)] = \mathbb E\Big[A \sum_{k \ge 1} \nabla_\theta\log p_\theta(x_k \mid x_{k+1})\Big].$$ (eq-rivals-policy)
#
# - **DDPO** {cite:p}`black2024training`: $A$ is the reward, standardised over the batch. Several updates are made on one batch. Each uses the likelihood ratio
#   $\rho_k$ of new and old step, clipped to an interval around one: $\min(\rho_k A, \operatorname{clip}(\rho_k) A)$. Nothing holds the model near the base.
# - **DPOK** {cite:p}`fan2023dpok`: the baseline is a learned value of $x_{k+1}$, and every step pays the KL divergence to the base's step: a term of the path KL,
#   {eq}`eq-path-kl` of {doc}`s2_2_fine_tuning`.
#   Its gradient takes the law of $x_{k+1}$ as given, so an early step never learns that it makes *later* steps expensive.
# - **DPOK with future KL**: takes the later KLs off the reward of a step. This is the whole gradient of $\mathbb E[r] - \mathrm{KL}_{\mathrm{path}}$, whose maximum is the
#   tilted density.
#
# To see where each ends we need a student that can represent everything in question. Take one Gaussian coordinate: the base $N(0, \frac12)$, the reward $r(x) = 4x - x^2$
# with its maximum at 2, and the tilt $N(1, \frac14)$. The student is the *exact denoiser of* $N(m, v)$; it learns two numbers, $m$ and $\log v$. It starts at the base, and the
# tilt is in its reach.

# %%
line_reward = parse_reward("A=-2 b=4", d=1)


class Student(nn.Module):
    """The exact denoiser of N(m, v)."""

    def __init__(self, mean=0.0, variance=0.5):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_variance = nn.Parameter(torch.tensor(math.log(variance)))

    def forward(self, x, t):
        alpha, sigma = (column(f(t), x) for f in (schedule.alpha, schedule.sigma))
        v_t = alpha**2 * self.log_variance.exp() + sigma**2
        return sigma * (x - alpha * self.mean) / v_t


# %% tags=["hide-input"]
one = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), 0.5))
assert torch.allclose(Student()(x_t[:, :1], t), ExactDenoiser(one, schedule)(x_t[:, :1], t))
line_target = one.tilted(line_reward)
assert torch.allclose(line_target.means, torch.tensor(1.0))
assert torch.allclose(line_target.covariances, torch.tensor(0.25))


def parameters(steps):
    """m and log v after each iteration."""
    return np.array([(step.denoiser.mean.item(), step.denoiser.log_variance.item()) for step in steps])


# %%
J, iterations = (40, 80) if full else (10, 8)
setting = {"iterations": iterations, "J": J, "B": 128, "updates": 2, "lr": 0.03}
policy = {
    "ddpo": PolicyGradientConfig(**setting),
    "dpok": PolicyGradientConfig(**setting, kl=1.0, value=True),
    "dpok-future": PolicyGradientConfig(**setting, kl=1.0, value=True, future_kl=True),
}
learned, forward = {}, ForwardOnly(line_reward)
for name, config in policy.items():
    learned[name] = parameters(policy_gradient(Student(), forward, schedule, config, d=1))

# %% [markdown]
# Where do the two kinds of DPOK end, apart from noise? Every step of this student is linear in $x$. So what it draws is a Gaussian, whose mean and variance are exact sums over the steps, and so is its path KL.
# From these we get the *expected* gradients, and solve for the point where they vanish: no sampling, no learning rate. The aim is the tilt of what the base's sampler draws in $J$ steps, a Gaussian a
# little narrower than the base.


# %% tags=["hide-input"]
@cache
def sampler_steps(J):
    """(a, b, std, alpha, sigma, what the base's denoiser multiplies x by) of each step, from noise to data."""
    times = time_grid(schedule, J)
    coefficients = [transition(schedule, s, t, 1.0) for t, s in zip(times[:0:-1], times[-2::-1], strict=True)]
    alpha, sigma = (f(torch.tensor(times[:0:-1])) for f in (schedule.alpha, schedule.sigma))
    return [(*c, a, s, s / (0.5 * a**2 + s**2)) for c, a, s in zip(coefficients, alpha, sigma, strict=True)]


def linear(parameters, alpha, sigma):
    """The student's prediction is slope x + shift."""
    slope = sigma / (parameters[1].exp() * alpha**2 + sigma**2)
    return slope, -slope * alpha * parameters[0]


def drawn_law(parameters, J, own_last=False, forget=False):
    """Mean, variance and path KL of the student's J-step sampler; own_last: the last step is the student's, not the base's;
    forget: the KL of a step takes the law that it starts from as given.
    """
    mean, variance, price = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0)
    for a, b, std, alpha, sigma, of_base in sampler_steps(J):
        slope, shift = linear(parameters, alpha, sigma)
        if std > 0:
            m, v = (mean.detach(), variance.detach()) if forget else (mean, variance)
            price = price + (b / std) ** 2 * ((shift + (slope - of_base) * m) ** 2 + (slope - of_base) ** 2 * v) / 2
        elif not own_last:
            slope, shift = of_base, torch.tensor(0.0)
        mean, variance = (a + b * slope) * mean + b * shift, (a + b * slope) ** 2 * variance + std**2
    return mean, variance, price


def mean_reward(mean, variance):
    return 4 * mean - mean**2 - variance


def objective(parameters, J, forget=False):
    mean, variance, price = drawn_law(parameters, J, forget=forget)
    return mean_reward(mean, variance) - price


def stationary(J, climbed):
    """Mean and variance of what is drawn where the gradient of `climbed` vanishes."""

    def gradient(v):
        leaf = torch.tensor(v, requires_grad=True)
        return torch.autograd.grad(climbed(leaf, J), leaf)[0].numpy()

    solution = root(gradient, [0.8, math.log(0.3)])
    assert solution.success
    return law_of(solution.x, J)


@torch.no_grad()
def law_of(parameters, J, own_last=False):
    return [float(v) for v in drawn_law(torch.as_tensor(parameters), J, own_last)[:2]]


START = [0.0, math.log(0.5)]


def aim(J):
    """Mean and variance of the tilt of what the base's sampler draws."""
    drawn = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), law_of(START, J)[1])).tilted(line_reward)
    return float(drawn.means), float(drawn.covariances)


def forgetful(parameters, J):
    return objective(parameters, J, forget=True)


# %%
Js = (20, 40, 80) if full else (20, 40)
kinds = {"DPOK": forgetful, "with future KL": objective}
found = {name: [stationary(steps, climbed) for steps in Js] for name, climbed in kinds.items()}
gap = {
    name: [math.dist(point, aim(steps)) for steps, point in zip(Js, points, strict=True)] for name, points in found.items()
}

# %% tags=["hide-input"]
rows = [
    [steps, *(f"({m:.2f}, {v:.3f})" for m, v in (aim(steps), *(points[i] for points in found.values())))]
    for i, steps in enumerate(Js)
]
display(
    Markdown(
        "Mean and variance:\n\n"
        + pd.DataFrame(rows, columns=["steps", "aim", *found]).to_markdown(index=False, disable_numparse=True)
    )
)


def vanishes(gaps):
    """Whether twice the steps leave at most six tenths of a gap: a gap of first order in the steps is halved."""
    return gaps[-1] < 0.6 * gaps[-2]


# %% tags=["hide-input"]
def end(name, own_last=False, last=20):
    """What a student draws at the end: mean and variance, averaged over the last iterations."""
    return np.array([law_of(v, J, own_last) for v in learned[name][-last:]]).mean(0)


goal, spike = aim(J), (2.0, 0.01)
reward_alone = mean_reward(*goal) > mean_reward(*spike)  # is the tilt the best there is, if nothing but the reward counts?
ends = {name: end(name) for name in policy}
if full:  # the noise of 128 trajectories a batch
    assert mean_reward(*ends["ddpo"]) > 3.8
    assert math.dist(ends["dpok"], stationary(J, forgetful)) < 0.06
    assert math.dist(ends["dpok-future"], stationary(J, objective)) < 0.06
verdicts(
    {
        "ddpo": (reward_alone, f"runs to mean {ends['ddpo'][0]:.2f}, variance {ends['ddpo'][1]:.3f}"),
        "dpok": (
            vanishes(gap["DPOK"]),
            f"off by {gap['DPOK'][-1]:.2f} at {Js[-1]} steps, by {gap['DPOK'][-2]:.2f} at {Js[-2]}",
        ),
        "dpok-future": (
            vanishes(gap["with future KL"]),
            f"off by {gap['with future KL'][-1]:.3f} at {Js[-1]} steps, by {gap['with future KL'][-2]:.3f} at {Js[-2]}",
        ),
    }
)

# %% [markdown]
# Twice the steps, half the gap, if the whole KL counts; DPOK's gap stays. The left half of {numref}`fig-rivals-climbing` shows the library's runs on their way: one seed, 128 trajectories a batch, 40 steps of the sampler.
#
# ## Climbing with gradients of the reward
#
# *Idea.* The sampler is a function of its noises; differentiate the reward through it.
#
# {doc}`s2_2_fine_tuning` derives these methods, counts what they keep in memory, and shows that a truncated gradient is a small share of the full one. In short:
#
# - **DRaFT** {cite:p}`clark2024directly` climbs {eq}`eq-2-15` by {eq}`eq-2-16`, through all steps. **DRaFT-$K$** lets gradients through the last $K$ steps; **DRaFT-LV** through the last
#   one, averaged over several new noisings of the finished sample. None of them knows the base.
# - **DRaFT with path KL** climbs $\mathbb E[\lambda r] - \mathrm{KL}_{\mathrm{path}}$, like DPOK with future KL.
# - **Adjoint Matching** {cite:p}`domingoenrich2024adjoint` regresses the control $u_k = (m_\theta - m_{\mathrm{base}})(x_{k+1})/\eta_k$ on the lean adjoint {eq}`eq-2-18`, which in discrete time is
#
# $$\begin{gathered}
#   \tilde a_0 = -\lambda\nabla r(x_0), \qquad \tilde a_k = \Big(\frac{\partial m_{\mathrm{base}}}{\partial x}(x_k)\Big)^{\!\top} \tilde a_{k-1}, \\
#   \min_\theta\ \sum_{k\ge1} \mathbb E\,\|u_k + \eta_k\,\tilde a_k\|^2 .
#   \end{gathered}$$ (eq-rivals-adjoint)
#
# (The plus sign belongs to the minus of $\tilde a_0$: {doc}`errata`, {ref}`item 5 <err-am-sign>`.) The same student climbs with each.

# %%
setting = {"iterations": iterations, "J": J, "B": 64, "lr": 0.04}
through = {
    "draft": DraftConfig(**setting),
    "draft-5": DraftConfig(**setting, K=5),
    "draft-lv": DraftConfig(**setting, K=1, renoise=2),
    "draft-kl": DraftConfig(**setting, kl=1.0),
}
for name, config in through.items():
    learned[name] = parameters(draft(Student(), line_reward, schedule, config, d=1))
steps = adjoint_matching(Student(), line_reward, schedule, AdjointMatchingConfig(**setting), d=1)
learned["adjoint"] = parameters(steps)

# %% tags=["hide-input"]
titles = {"ddpo": "DDPO", "dpok": "DPOK", "dpok-future": "DPOK, future KL"}
titles |= {
    "draft": "DRaFT",
    "draft-5": "DRaFT-5",
    "draft-lv": "DRaFT-LV",
    "draft-kl": "DRaFT, path KL",
    "adjoint": "Adjoint Matching",
}
blind = ("draft", "draft-5", "draft-lv")
with plots.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
    for ax, names, title in zip(
        axes, (list(policy), [*through, "adjoint"]), ("values of $r$", "gradients of $r$"), strict=True
    ):
        start = law_of(START, J)
        ax.plot(*start, "o", color=plots.INK, markersize=6, zorder=5)
        ax.annotate("base", start, textcoords="offset points", xytext=(7, -2))
        ax.plot(*goal, "*", color=plots.INK, markersize=13, markerfacecolor="none", zorder=5)
        ax.annotate("tilt", goal, textcoords="offset points", xytext=(14, -5))
        if "dpok" in names:
            ax.plot(*stationary(J, forgetful), "x", color=plots.INK, markersize=8, markeredgewidth=1.5, zorder=5)
        for i, name in enumerate(names):
            path = np.array([start] + [law_of(v, J, name in blind) for v in learned[name][::2]])
            every = max(1, len(path) // 6)
            ax.plot(
                *path.T,
                color=plots.SERIES[i],
                marker=plots.MARKERS[i],
                markersize=4,
                markevery=(every, every),
                label=titles[name],
                linewidth=1.2,
            )
        ax.set(title=title, xlabel="mean of what is drawn", xlim=(-0.1, 2.4), ylim=(0, 0.48))
        ax.legend(loc="upper right")
    axes[0].set_ylabel("variance")
plots.show(
    fig,
    "climbing",
    "Paths in the plane of mean and variance. Methods without a KL run from the base past the tilt to mean 2 and variance near zero. DPOK stops short of the tilt. "
    "DPOK with future KL, DRaFT with path KL and Adjoint Matching end next to the tilt.",
)

# %% [markdown]
# ```{glue:figure} climbing
# :name: fig-rivals-climbing
#
# Mean and variance of what the student draws while it climbs. Without a KL everything ends as a spike at the reward's maximum, mean 2. With the whole path KL
# everything ends beside the tilt of what the base's sampler draws. DPOK forgets part of the KL, and stops where its expected gradient vanishes (cross).
# ```
#
# Values or gradients: the same objectives lead to the same ends. What the gradient of the reward buys is *less noise*. Here is the gradient of $\mathbb E[r]$ in $m$, at the base, from single trajectories: by {eq}`eq-rivals-policy`, and through the sampler.

# %% tags=["hide-input"]
n = 4000 if full else 500
m_each = torch.zeros(n, 1, requires_grad=True)  # a copy of m for every trajectory


def student(x, t):
    alpha, sigma = (column(f(t), x) for f in (schedule.alpha, schedule.sigma))
    return sigma * (x - alpha * m_each.repeat(len(x) // n, 1)) / (alpha**2 / 2 + sigma**2)


one_denoiser, noise_0 = ExactDenoiser(one, schedule), torch.randn(n, 1, generator=seeded(5))
states = trajectory(student, one_denoiser, schedule, noise_0, J, seeded(6))
noisy = NoisySteps.of(states, one_denoiser, schedule)
values = line_reward(states[-1])
log_p = noisy.log_density(student(noisy.x, noisy.t)).view(J - 1, n).sum(0)
(by_values,) = torch.autograd.grad(((values - values.mean()) * log_p).sum(), m_each)

samples, _ = rollout(student, one_denoiser, schedule, noise_0, DraftConfig(J=J, kl=1.0), seeded(6))
(by_gradient,) = torch.autograd.grad(line_reward(samples).sum(), m_each)

# %% tags=["hide-input"]
se = ((by_values.var() + by_gradient.var()) / n) ** 0.5  # of the difference; the trajectories are shared, which lowers it
assert abs(float(by_values.mean() - by_gradient.mean())) < 4 * float(se)
cost = float(by_values.var() / by_gradient.var())
assert cost > 4
display(
    Markdown(
        f"By values: {float(by_values.mean()):.2f} ± {float(by_values.std()) / n**0.5:.2f}, spread of one trajectory {float(by_values.std()):.1f}. Through the sampler: "
        f"{float(by_gradient.mean()):.2f} ± {float(by_gradient.std()) / n**0.5:.2f}, spread {float(by_gradient.std()):.1f}. The same gradient; by values it takes about {cost:.0f} times as many "
        "trajectories."
    )
)
ends |= {name: end(name, own_last=name in blind) for name in (*through, "adjoint")}


def adjoint_loss(parameters, J):
    """Minus half the expected loss of Adjoint Matching, with the law of the trajectories as given: all of them are linear."""
    mean, variance, states, A = torch.tensor(0.0), torch.tensor(1.0), [], []
    for a, b, std, alpha, sigma, of_base in sampler_steps(J):
        slope, shift = (v.detach() for v in linear(parameters, alpha, sigma)) if std > 0 else (of_base, torch.tensor(0.0))
        states.append((mean, variance))
        A.append(a + b * slope)
        mean, variance = A[-1] * mean + b * shift, A[-1] ** 2 * variance + std**2
    loss = torch.tensor(0.0)
    to_end, D = A[-1], None  # d x_0 / d x_k along the student, and along the base
    for k in range(J - 2, -1, -1):
        (a, b, std, alpha, sigma, of_base), (m, v) = sampler_steps(J)[k], states[k]
        below = sampler_steps(J)[k + 1]
        D = (below[0] + below[1] * below[5]) * (1.0 if D is None else D)
        to_end = A[k] * to_end
        slope, shift = linear(parameters, alpha, sigma)
        p, q = b / std * shift, b / std * (slope - of_base)  # the control is p + q x
        pull = std * D  # times the gradient of -r at x_0, 2 x_0 - 4
        loss = loss + (p + q * m + pull * (2 * mean - 4)) ** 2 + q**2 * v + 4 * pull * q * v * to_end
    return -loss / 2


gap["adjoint"] = [math.dist(stationary(steps, adjoint_loss), aim(steps)) for steps in Js]
if full:
    assert min(mean_reward(*ends[name]) for name in blind) > 3.7
    assert math.dist(ends["draft-kl"], stationary(J, objective)) < 0.04
    assert math.dist(ends["adjoint"], stationary(J, adjoint_loss)) < 0.04
runs_to = {name: f"runs to mean {ends[name][0]:.2f}, variance {ends[name][1]:.3f}" for name in blind}
verdicts(
    {name: (reward_alone, text) for name, text in runs_to.items()}
    | {
        name: (vanishes(gap[of]), f"off by {gap[of][-1]:.3f} at {Js[-1]} steps, by {gap[of][-2]:.3f} at {Js[-2]}")
        for name, of in {"draft-kl": "with future KL", "adjoint": "adjoint"}.items()
    }
)

# %% [markdown]
# ## Weighted samples
#
# These methods train nothing. They draw from the base, and let weights or choices do the rest. So they end, at best, at the tilt of what the base's *sampler* draws, and to judge them we must know its law.
# In one dimension it can be computed without sampling: carry the masses of a grid from step to step, by quadrature with the Gaussian of {eq}`eq-2-7`. And one dimension is enough here, because the coordinates of the base
# are independent, and the reward is a sum over them.

# %%
grid = torch.linspace(-8, 8, 801)
h = float(grid[1] - grid[0])


def normal(mean, std):
    """Masses of N(mean, std^2) on the grid, one column for each mean."""
    return torch.exp(-0.5 * ((grid[:, None] - mean) / std) ** 2) * h / (std * math.sqrt(2 * math.pi))


def law_drawn(denoiser, J=100, eta=1.0):
    """Points and masses of what Algorithm 1 draws in one dimension."""
    times = time_grid(schedule, J)
    points, mass = grid, normal(0.0, 1.0)[:, 0]
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        a, b, std = transition(schedule, s, t, eta)
        points = a * points + b * denoiser(points[:, None], torch.tensor(t))[:, 0]
        if std > 0:
            points, mass = grid, normal(points, std) @ mass
    return points, mass


steps = 40
pair = GaussianMixture(torch.ones(2), torch.tensor([[-2.0], [2.0]]), torch.full((2, 1, 1), 0.5))  # the first coordinate
laws_drawn = [law_drawn(ExactDenoiser(law, schedule), steps) for law in (pair, one)]


# %% tags=["hide-input"]
def tilt_of_drawn(lam):
    """Mean of the tilt of what the sampler draws, and which share of its samples counts when they are weighted."""
    mean, counting = [], 1.0
    for (points, mass), b in zip(laws_drawn, reward.b, strict=True):
        w = torch.exp(lam * b * points)
        mean.append(float((mass * w * points).sum() / (mass * w).sum()))
        counting *= float((mass * w).sum() ** 2 / (mass * w**2).sum())
    return torch.tensor(mean), counting


assert all(abs(float(mass.sum()) - 1) < 1e-8 for _, mass in laws_drawn)
mean_drawn, share_drawn = tilt_of_drawn(1.0)
display(
    Markdown(
        f"The mean of the tilt is ({target.mean[0]:.3f}, {target.mean[1]:.3f}) for the exact base, and ({mean_drawn[0]:.3f}, {mean_drawn[1]:.3f}) for what its {steps}-step sampler draws. "
        "This difference is the sampler's, and no method's fault."
    )
)

# %% [markdown]
# ### Importance resampling
#
# *Idea.* Draw $n$ samples from the base, weigh each by $w = e^{\lambda r(x)}$, and resample in proportion to the weights.
#
# It is exact as $n \to \infty$. But ESS$/n \to e^{-D_2}$, with the Rényi divergence $D_2 = \log\mathbb E_{\text{tilt}}[w / Z]$ of the tilted density from the base: the column "one shot"
# of the table above.

# %%
n = 20_000 if full else 2_000
x, log_w = importance(exact, reward, schedule, n, J=steps, generator=seeded(7))
counted = effective_sample_size(log_w) / len(x)

w_half = torch.softmax(0.5 * log_w.double(), 0)  # the same samples, for lambda = 1/2
half_mean = w_half @ x.double()
half_error = ((w_half**2) @ (x.double() - half_mean) ** 2).sqrt()

# %% tags=["hide-input"]
half_exact, half_share = tilt_of_drawn(0.5)
half_right = bool(((half_mean - half_exact).abs() < 4.5 * half_error).all())
assert half_right
assert max(share(base, reward, 1.0), share_drawn, counted) < 0.05
display(
    Markdown(
        f"At $\\lambda = 1/2$, where {half_share:.0%} of the samples count, the weighted mean is ({half_mean[0]:.3f}, {half_mean[1]:.3f}) ± ({half_error[0]:.3f}, {half_error[1]:.3f}); it should be "
        f"({half_exact[0]:.3f}, {half_exact[1]:.3f}). At $\\lambda = 1$ the limit of ESS$/n$ is {share_drawn:.2%} for the law of the sampler and {share(base, reward, 1.0):.2%} for the exact base. "
        f"The {len(x):,} samples claim {counted:.2%}: such a measurement flatters, because the samples with the largest weights are seldom drawn."
    )
)

# %% [markdown]
# ### Best of n
#
# *Idea.* Draw $n$ candidates and keep the one with the highest reward.
#
# If $F$ is the distribution function of $r$ under the base, and continuous, the survivor has the density $n F(r(x))^{n-1} p_0^b(x)$. It is a tilt, but by $(n-1)\log F(r)$, not by $\lambda r$. Its KL
# divergence to the base is
#
# $$\mathrm{KL} = \int_0^1 n F^{n-1} \log\big(n F^{n-1}\big)\, dF = \log n - \frac{n-1}{n},$$ (eq-rivals-best)
#
# whatever $r$ is. With ties it is less, and {eq}`eq-rivals-best` is a bound {cite:p}`beirami2024theoretical`. We measure it on the library's samples, as the mean of
# $\log n + (n-1)\log F$ with $F$ from other samples of the same base; then for the reward rounded down to multiples of 4, with ties, from the shares of
# its values.

# %%
candidates = 16
best = best_of_n(exact, reward, schedule, n // 10, candidates=candidates, J=steps, generator=seeded(8))
ranked = reward(x).sort().values
F = torch.searchsorted(ranked, reward(best), right=True).clamp_min(1) / len(ranked)
kl_each = math.log(candidates) + (candidates - 1) * F.log()

# %% tags=["hide-input"]
with_ties = 4 * torch.div(ranked, 4, rounding_mode="floor")
_, counts = with_ties.unique(return_counts=True)
before = counts / counts.sum()
after = (before.cumsum(0) ** candidates).diff(prepend=torch.zeros(1))
kl_ties = float((after * (after / before).log()).nan_to_num().sum())

bound = math.log(candidates) - (candidates - 1) / candidates
se = float(kl_each.std()) / len(kl_each) ** 0.5
# F has its own error: in the top 1/16 it rests on a sixteenth of the ranked samples.
assert abs(float(kl_each.mean()) - bound) < 4 * se + 4 * (candidates / len(ranked)) ** 0.5
assert kl_ties < bound - 0.1
display(
    Markdown(
        f"For $n = {candidates}$ the formula says {bound:.3f}. Measured: {float(kl_each.mean()):.3f} ± {se:.3f} over {len(best)} survivors. With ties: {kl_ties:.3f}."
    )
)

# %% [markdown]
# For a given KL to the base no density has a higher mean reward than a tilt: that is Gibbs' principle ({doc}`s2_2_fine_tuning`). How far behind is the best of $n$? Both curves are one-dimensional
# integrals, since $r$ is itself a mixture of two Gaussians.

# %% tags=["hide-input"]
r_law = GaussianMixture(
    base.weights, base.means @ reward.b[:, None], (reward.b @ base.covariances @ reward.b).view(-1, 1, 1)
)
r_grid = torch.linspace(-16, 24, 8001)
density = r_law.log_prob(r_grid[:, None]).exp()
F = torch.cumulative_trapezoid(density, r_grid)
F = torch.cat([torch.zeros(1), F]).clamp_max(1.0)


def best_law(n):
    return n * F ** (n - 1) * density


def tilt_law(lam):
    return (lam * r_grid - base.log_normaliser(reward, lam)).exp() * density


def mean_of(law):
    return float(torch.trapezoid(law * r_grid, r_grid))


lams, ns = np.linspace(0.02, 1.2, 60), np.unique(np.geomspace(2, 400, 40).round())
tilts = np.array([(base.tilt_kl(reward, lam), mean_of(tilt_law(lam))) for lam in lams])
bests = np.array([(np.log(n) - (n - 1) / n, mean_of(best_law(n))) for n in ns])

# %% tags=["hide-input"]
kl_target = base.tilt_kl(reward)
n_same = round(float(np.interp(kl_target, bests[:, 0], ns)))
below = np.interp(bests[:, 0], tilts[:, 0], tilts[:, 1]) - bests[:, 1]
inside = bests[:, 0] < tilts[-1, 0]
assert below[inside].min() > 0  # Gibbs
same_kl = math.log(n_same) - (n_same - 1) / n_same
loss = float(np.interp(same_kl, tilts[:, 0], tilts[:, 1])) - mean_of(best_law(n_same))
with plots.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    left.fill_between(
        r_grid, tilt_law(1.0), color=plots.COLORS["target"], alpha=0.3, linewidth=0, label="tilt, $\\lambda = 1$"
    )
    left.plot(r_grid, density, color=plots.COLORS["band"], label="base")
    left.plot(r_grid, best_law(16), color=plots.COLORS["base"], linestyle="--", label="best of 16")
    left.plot(r_grid, best_law(n_same), color=plots.COLORS["learned"], label=f"best of {n_same}")
    left.set(xlim=(-10, 17), yticks=[], xlabel="reward", title="law of the reward", ylim=(0, 0.42))
    left.legend(loc="upper left")
    right.plot(*tilts.T, color=plots.COLORS["target"], linewidth=4, alpha=0.4, label="tilts")
    right.plot(*bests.T, color=plots.COLORS["learned"], marker="s", markersize=3, linewidth=0.8, label="best of $n$")
    right.plot(kl_target, mean_of(tilt_law(1.0)), "*", color=plots.INK, markersize=12, markerfacecolor="none")
    right.annotate(
        "$\\lambda = 1$", (kl_target, mean_of(tilt_law(1.0))), textcoords="offset points", xytext=(-8, 8), ha="right"
    )
    right.set(xlim=(0, 4.6), ylim=(0, 10.5), xlabel="KL to the base, nats", title="mean reward")
    right.legend(loc="lower right")
plots.show(
    fig,
    "best-of-n",
    f"Left: the reward of the best of {n_same} has about the same mean as under the tilt, but a much narrower law. Right: mean reward against KL to the base; the best of n runs "
    "just below the curve of the tilts.",
)

# %% [markdown]
# ```{glue:figure} best-of-n
# :name: fig-rivals-best
#
# Best of $n$ on `one-mode`. Left: the law of the reward. The number of candidates in the legend is the one whose KL to the base is that of the tilt; its law is another. Right: mean
# reward against KL. The best of $n$ comes close to the curve of the tilts, which nothing can cross.
# ```

# %% tags=["hide-input"]
apart = float(torch.trapezoid((best_law(n_same) - tilt_law(1.0)).abs(), r_grid)) / 2
display(
    Markdown(
        f"At the KL of the tilt ($n = {n_same}$) the best of $n$ loses {loss:.2f} of a mean reward of {mean_of(tilt_law(1.0)):.2f}, and the two laws have a total variation distance of "
        f"{apart:.2f}. As a way to a high reward it is nearly optimal. As a way to *this* density it is not; $\\lambda$ does not even occur in it."
    )
)

# %% [markdown]
# ### Sequential Monte Carlo
#
# *Idea.* Weigh and resample on the way, before the mistakes are complete.
#
# Choose a *potential* $\psi_t(x)$, a guess of the reward to come, with $\psi_0 = \lambda r$, and a proposal $q$ for the step from $t$ to $s$. A particle's weight changes by
#
# $$\log w \mathrel{+}= \psi_s(x_s) - \psi_t(x_t) + \log\frac{p_{\mathrm{base}}(x_s \mid x_t)}{q(x_s \mid x_t)},$$ (eq-rivals-smc)
#
# and when the effective sample size falls below $n/2$, the population is resampled. The sum telescopes to $\lambda r$ and a likelihood ratio, so any $\psi$ and $q$ give the tilt of the base
# *sampler* as $n \to \infty$, with an error $O(n^{-1/2})$ {cite:p}`delmoral2006sequential`. Three choices:
#
# - **SMC, plug-in potential**: $\psi_t = \alpha_t^2\,\lambda r(\hat x_0(x, t))$, the reward of the predicted clean sample, tempered; $q$ is the base's step. Forward evaluations only; {cite:t}`kim2025testtime` temper
#   in the same way.
# - **Twisted**: the same potential, and $q$ moves along $\nabla\psi_t$ {cite:p}`wu2023practical`. Needs $\nabla r$.
# - **The exact value** $\psi_t = V_t$ of the next section, which nobody has in practice, with and without the move.
#
# The error is measured against the exact mean of the tilt of the sampler's law, which we computed above.

# %%
value = exact_value(base, reward, schedule)
variants = {
    "no potential": ({"threshold": 0.0}, {"tempering": lambda t: 0.0}),  # importance sampling
    "plug-in": ({}, {}),
    "plug-in, twisted": ({"twisted": True}, {}),
    "exact": ({}, {"potential": value}),
    "exact, twisted": ({"twisted": True}, {"potential": value}),
}


def populations(name, n, seed):
    knobs, more = variants[name]
    config = SMCConfig(n=n, J=steps, **knobs)
    return list(sequential_monte_carlo(exact, reward, schedule, config, generator=seeded(seed), dtype=torch.float64, **more))


# %% tags=["hide-input"]
def estimate(population):
    return torch.softmax(population.log_w, 0) @ population.x


sizes, repeats = ((50, 200, 800, 3200), 16) if full else ((50, 200), 3)
middle, measured = sizes[-2], ("plug-in", "plug-in, twisted", "exact, twisted")
runs = {
    name: {n: [populations(name, n, seed) for seed in range(repeats)] for n in (sizes if name in measured else [middle])}
    for name in variants
}
errors = {
    name: {n: rms(torch.stack([estimate(run[-1]) for run in of_n[n]]) - mean_drawn) for n in of_n}
    for name, of_n in runs.items()
}

looks = {
    "no potential": (plots.COLORS["band"], "v", ":"),
    "plug-in": (plots.SERIES[0], "o", "-"),
    "plug-in, twisted": (plots.SERIES[2], "^", "-"),
    "exact": (plots.SERIES[3], "D", "--"),
    "exact, twisted": (plots.SERIES[1], "s", "-"),
}
with plots.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8))
    for name, (color, marker, line) in looks.items():
        at = [population.t for population in runs[name][middle][0]]
        along = np.mean([[population.ess / middle for population in run] for run in runs[name][middle]], 0)
        style = {"color": color, "marker": marker, "linestyle": line, "markersize": 5}
        left.plot(at, along, markevery=6, label=name, **style)
        right.plot(*zip(*errors[name].items(), strict=True), **style)
    guide = 0.6 * np.array(sizes, dtype=float) ** -0.5
    right.plot(sizes, guide, color=plots.INK, linewidth=0.8)
    right.text(sizes[1], 0.8 * guide[1], "slope $-1/2$", ha="right", va="top")
    left.set(xlabel="$t$", xlim=(1, -0.01), ylim=(0, 1.05), title="effective sample size / $n$")
    right.set(xscale="log", yscale="log", xlabel="particles, $n$", title="error of the mean")
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
    right.minorticks_off()
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
plots.show(
    fig,
    "smc",
    "Left: effective sample size along the way. Without a potential it stays at one and collapses at the end; with potentials it oscillates between one half and one; with exact "
    "potential and twisted proposal it falls slowly and stays above 0.7. Right: errors fall with slope minus one half, least for twisted proposals.",
)

# %% [markdown]
# ```{glue:figure} smc
# :name: fig-rivals-smc
#
# Sequential Monte Carlo on `one-mode`, from noise ($t = 1$, left) to data. Left: effective sample size as a share of $n$, averaged over runs; a rise is a resampling. Right: root
# mean square error of the weighted mean against the exact tilt of the sampler's law.
# ```

# %% tags=["hide-input"]
rows, slopes = [], {name: linregress(*np.log(list(errors[name].items())).T).slope for name in measured}
for name in variants:
    last = [run[-1] for run in runs[name][middle]]
    slope_of = f"{slopes[name]:.2f}" if name in slopes else "–"
    often, kept = np.mean([p.resampled for p in last]), np.mean([p.ess for p in last]) / middle
    rows.append([name, f"{often:.1f}", f"{kept:.2f}", f"{errors[name][middle]:.3f}", slope_of])
columns = ["potential", "resampled", "ESS / n at the end", "error", "slope"]
display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)))
display(Markdown(f"({repeats} runs of {middle} particles; slopes over $n = {sizes[0]}$ to {sizes[-1]}.)"))
if full:
    # 32 squares make an error. If they were Gaussian its logarithm would be known to 0.13 and the slope to 0.04; their tails are heavier.
    assert all(abs(slope_of + 0.5) < 0.16 for slope_of in slopes.values())
    assert errors["exact, twisted"][middle] < errors["plug-in"][middle] / 1.5
    assert errors["no potential"][middle] > 1.5 * errors["plug-in"][middle]
    assert all(errors[f"{name}, twisted"][middle] < errors[name][middle] for name in ("plug-in", "exact"))
assert not any(population.resampled for run in runs["exact, twisted"][middle] for population in run)
assert float(rows[3][1]) >= float(rows[1][1])  # the exact value without the move is resampled no less often than the plug-in

# %% [markdown]
# Read the table from the bottom. With the exact value *and* the move along its gradient, the weights hardly change: nothing has to be resampled. With the exact value and the base's own steps
# the population is resampled no less often than with a crude guess: a better judge does not make better moves. With either potential the
# move lowers the error. But moving needs a gradient.

# %% tags=["hide-input"]
falls = {name: errors[name][sizes[-1]] < 0.75 * errors[name][sizes[0]] for name in measured}
verdicts(
    {
        "importance": (half_right, f"as $n \\to \\infty$; {share_drawn:.2%} of the samples count"),
        "best": (apart < 0.05, f"another law, {apart:.2f} away in total variation"),
        "smc": (falls["plug-in"], f"as $n \\to \\infty$; error {errors['plug-in'][middle]:.3f} with {middle} particles"),
        "twisted": (falls["plug-in, twisted"], f"as $n \\to \\infty$; error {errors['plug-in, twisted'][middle]:.3f}"),
    }
)

# %% [markdown]
# ## Guidance
#
# *Idea.* Do not touch the network; add something to its prediction while sampling.
#
# By [Proposition 3.1](proposition-3-1) the right addition is the gradient of a *value*,
#
# $$\begin{aligned}
#   \hat x_1^{\lambda r}(x, t) &= \hat x_1(x, t) - \sigma_t\,\nabla_x V_t(x), \\
#   V_t(x) &= \log\mathbb E\big[e^{\lambda r(X_0)} \,\big|\, X_t = x\big].
#   \end{aligned}$$ (eq-rivals-value)
#
# For a mixture $V_t$ is $\log p_t^{\lambda r} - \log p_t^b$ up to a constant, so **exact guidance** of the exact base gives the exact denoiser of the tilt. The comparison runs it on learned bases, as a reference:
# it shows what a method could reach if only the base were to blame. The **plug-in value** $\lambda r(\hat x_0(x, t))$ {cite:p}`chung2023diffusion` is what one can have. It takes the exponential of a mean for the mean of an
# exponential.

# %%
t = torch.tensor(0.5)
x = target.noised(schedule, 0.5).sample(200, seeded(9))
of_target = ExactDenoiser(target, schedule)(x, t)
assert torch.allclose(guided(exact, value, schedule)(x, t), of_target, rtol=0, atol=1e-10)
assert torch.allclose(exactly_guided(exact, base, target, schedule)(x, t), of_target, rtol=0, atol=1e-12)

by_plug_in = guided(exact, plug_in_value(exact, reward, schedule), schedule)(x, t)
one_explicit_tilt = exact(x, t) - schedule.sigma(t) * base.covariance(x, t, schedule, reward)
assert torch.allclose(by_plug_in, one_explicit_tilt, rtol=0, atol=1e-10)

paper = parse_reward("paper")
by_plug_in = guided(exact, plug_in_value(exact, paper, schedule), schedule)(x, t)
of_target = ExactDenoiser(base.tilted(paper), schedule)(x, t)
assert torch.allclose(by_plug_in, of_target, rtol=0, atol=1e-10)

# %% [markdown]
# The last two asserts tell something. For a linear reward $r(\hat x_0) = \mathbb E[r(X_0) \mid x]$, and the gradient of this is the covariance $C$ of {eq}`eq-3-9`. So **plug-in guidance by a linear reward is
# iterative tilting with $N = 1$**, at every $x$ and $t$, without training. And on the paper's own task it is therefore *exact*, as every $N$ is: the task cannot tell this method from a correct one. On `one-mode` it can.
# The second coordinate is exact again; here is the first, without sampling.

# %%
pair_reward = QuadraticReward(reward.b[:1])
pair_exact, pair_target = ExactDenoiser(pair, schedule), pair.tilted(pair_reward)
drawn = {
    "exact value": law_drawn(ExactDenoiser(pair_target, schedule), eta=0.0),
    "plug-in value": law_drawn(guided(pair_exact, plug_in_value(pair_exact, pair_reward, schedule), schedule), eta=0.0),
}

# %% tags=["hide-input"]
left_mass = {name: float(mass[points < 0].sum()) for name, (points, mass) in drawn.items()}
means = {name: float((points * mass).sum()) for name, (points, mass) in drawn.items()}
spreads = {name: float(((points - means[name]) ** 2 * mass).sum()) ** 0.5 for name, (points, mass) in drawn.items()}
rows = [[name, means[name], spreads[name], left_mass[name]] for name in drawn]
truth_left = float((pair_target.log_prob(grid[:, None]).exp() * h)[grid < 0].sum())
truth_sd = float(pair_target.weights @ (pair_target.means[:, 0] ** 2 + 0.5) - pair_target.mean[0] ** 2) ** 0.5
rows.append(["the tilt", float(pair_target.mean[0]), truth_sd, truth_left])
display(
    Markdown(
        pd.DataFrame(rows, columns=["guided by", "mean of $x_1$", "s.d.", "mass below 0"]).to_markdown(
            index=False, floatfmt=".3f"
        )
    )
)
assert abs(means["exact value"] - rows[2][1]) < 0.01
assert abs(means["plug-in value"] - rows[2][1]) > 0.2

# %% [markdown]
# ### Classifier-free guidance
#
# *Idea.* Extrapolate from an unconditional to a conditional denoiser {cite:p}`ho2022classifier`. With the noised laws $p_t(x)$ and $p_t(x \mid c)$,
#
# $$\begin{aligned}
#   \varepsilon_w &= (1 - w)\,\varepsilon_\varnothing + w\,\varepsilon_c \\
#   &= \varepsilon_\varnothing - \sigma_t\,\nabla_x\big[w \log p_t(c \mid x)\big].
#   \end{aligned}$$ (eq-rivals-cfg)
#
# The paper's introduction counts it among the means of control. It looks like the tilt by $r = \log p(c \mid x)$ with $\lambda = w$, that is, like sampling $p(x)\,p(c \mid x)^w$. Compare
# {eq}`eq-rivals-value`: since $p_t(c \mid x) = \mathbb E[p(c \mid X_0) \mid X_t = x]$, the bracket is $w \log \mathbb E[p(c \mid X_0)]$, where $V_t = \log \mathbb E[p(c \mid X_0)^w]$ is needed. The *power of the mean* stands for the *mean
# of the power*. They agree for $w = 0$ and $w = 1$, and else only where $X_t$ leaves no doubt about the class {cite:p}`bradley2024classifier`.
#
# A class with two modes shows what that does. The class $c$ has modes at 0 and 2; the rest of the data has one at $-2$. Both denoisers are exact, and no law below is sampled.

# %%
w, narrow = 3.0, torch.full((3, 1, 1), 0.25)
everything = GaussianMixture(torch.tensor([0.5, 0.25, 0.25]), torch.tensor([[-2.0], [0.0], [2.0]]), narrow)
of_class = GaussianMixture(torch.ones(2), torch.tensor([[0.0], [2.0]]), narrow[:2])
free, conditional = ExactDenoiser(everything, schedule), ExactDenoiser(of_class, schedule)

log_all = everything.log_prob(grid[:, None])
log_c = of_class.log_prob(grid[:, None]) - log_all  # log p(c | x), up to a constant
wanted = torch.softmax(log_all + w * log_c, 0)  # p(x) p(c | x)^w, as masses


def true_value(x, t):
    """log E[p(c | X_0)^w | X_t = x], by quadrature over X_0."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    log_posterior = log_all - 0.5 * ((x - alpha * grid) / sigma).square()
    return torch.logsumexp(log_posterior + w * log_c, 1) - torch.logsumexp(log_posterior, 1)


cfg = classifier_free(free, conditional, w)
laws = {
    "conditional model, w = 1": law_drawn(conditional, steps, eta=0.0),
    "classifier-free, no noise": law_drawn(cfg, steps, eta=0.0),
    "classifier-free, DDPM noise": law_drawn(cfg, steps, eta=1.0),
    "guided by the true value": law_drawn(guided(free, true_value, schedule), steps, eta=0.0),
}

# %% [markdown]
# ### Learned guidance weights
#
# *Idea.* Keep the form {eq}`eq-rivals-cfg`, but let the weight depend on the times $t$ and $s$ of a step, and learn it. {cite:t}`galashov2025learn` noise a sample to $s$, and noise it to $t > s$ and take it back to $s$ with one guided
# step; they train $\omega(s, t)$ (and its dependence on $c$) to make the two agree. Their distance is an energy distance, or the mean square. (They condition both on the same clean sample, and write $1 + \omega$ for our weight.)
#
# With exact ingredients the laws themselves can be compared. For each step of a sampler without noise, minimise over one number
#
# $$\omega(s, t) = \arg\min_\omega\ D\big(\text{one guided step from } p_t^w \text{ to } s,\ \ p_s^w\big),$$ (eq-rivals-learned)
#
# where $D$ is the energy distance and $p_t^w$ the noised version of $p(x)\,p(c \mid x)^w$. This flatters the method: nobody has samples of the tilt to train on. (For a reward, they add it to the loss.)


# %%
def distribution_function(masses, t):
    """Of the noised version of a law, given as masses, on the grid."""
    alpha, sigma = schedule.alpha(torch.tensor(t)), schedule.sigma(torch.tensor(t))
    noised = normal(alpha * grid, sigma) @ masses if t > 0 else masses
    return (noised.cumsum(0) - noised / 2).numpy()


def learned_weights(masses, J):
    """Times and weights of the J steps that carry the noised versions of a law into each other."""
    times, weights = time_grid(schedule, J), []
    F = [distribution_function(masses, t) for t in times]
    for k in range(1, J + 1):
        a, b, _ = transition(schedule, times[k - 1], times[k], 0.0)
        eps = [denoiser(grid[:, None], torch.tensor(times[k]))[:, 0] for denoiser in (free, conditional)]

        def energy_distance(omega, k=k, a=a, b=b, eps=eps):
            points, order = (a * grid + b * torch.lerp(*eps, omega)).sort()
            return np.square(np.interp(grid, points, F[k][order]) - F[k - 1]).sum() * h  # in one dimension; times two

        weights.append(minimize_scalar(energy_distance, bounds=(-2, 8), method="bounded").x)
    return np.array(times[1:]), np.array(weights)


at, omega = learned_weights(wanted, steps)


def guided_by_learned_weights(x, t):
    return torch.lerp(free(x, t), conditional(x, t), float(np.interp(float(t), at, omega)))


laws["classifier-free, learned weights"] = law_drawn(guided_by_learned_weights, steps, eta=0.0)
of_c = torch.softmax(log_all + log_c, 0)  # for w = 1 there is nothing to correct
plain, coarse = learned_weights(of_c, steps), learned_weights(of_c, steps // 2)


# %% tags=["hide-input"]
def on_grid(law):
    """A density on the grid, from points in increasing order and their masses."""
    points, mass = (v.numpy() for v in law)
    return np.interp(grid, points, mass / np.gradient(points), left=0, right=0)


with plots.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8), width_ratios=(1.5, 1))
    left.fill_between(grid, wanted / h, color=plots.COLORS["target"], alpha=0.3, linewidth=0, label="$p(x)\\,p(c\\mid x)^3$")
    for name, color, line, label in (
        ("conditional model, w = 1", plots.COLORS["band"], "-", "$p(x\\mid c)$, $w = 1$"),
        ("classifier-free, no noise", plots.COLORS["learned"], "-", "$w = 3$, no noise"),
        ("classifier-free, DDPM noise", plots.COLORS["base"], "--", "$w = 3$, DDPM noise"),
        ("classifier-free, learned weights", plots.COLORS["paper"], "-.", "learned weights"),
    ):
        left.plot(grid, on_grid(laws[name]), color=color, linestyle=line, label=label)
    left.set(xlim=(-2.5, 4.2), ylim=(0, None), yticks=[], xlabel="$x$", title="what is drawn")
    left.legend(loc="upper left")
    right.axhline(w, color=plots.COLORS["learned"], label="constant")
    right.plot(
        at,
        omega,
        color=plots.COLORS["paper"],
        linestyle="-.",
        marker="D",
        markersize=4,
        markevery=4,
        label="learned, for $w = 3$",
    )
    right.plot(
        *plain, color=plots.COLORS["band"], marker="o", markersize=3.5, markevery=(2, 4), label="learned, for $w = 1$"
    )
    right.set(xlabel="$t$, from noise to data", xlim=(1, 0), ylim=(0, 4.4), title="weight")
    right.legend(loc="upper left", fontsize=9)
plots.show(
    fig,
    "guidance",
    "Left: the wanted density has two modes, like the class. Classifier-free guidance with weight three and no noise draws one mode only, the outer one; with noise the inner mode is a fraction of what it "
    "should be; with learned weights both modes are there. Right: the learned weights are near one at high noise and rise to almost two near the data.",
)

# %% [markdown]
# ```{glue:figure} guidance
# :name: fig-rivals-guidance
#
# Classifier-free guidance with exact denoisers, a class with modes at 0 and 2 and the rest of the data at $-2$. Left: at $w = 3$ the wanted density hardly differs from the class, since within the class $p(c \mid x)$ is nearly one. Guidance
# with a constant weight draws something else, which depends on the sampler's noise. Right: weights that carry the wanted law from step to step.
# ```


# %% tags=["hide-input"]
def summary(points, mass):
    return [float((mass * points).sum()), float(mass[points < 1].sum())]


goal_law = (grid, wanted)
rows = [[name, *summary(*law), wasserstein_distance(law[0], grid, law[1], wanted)] for name, law in laws.items()]
rows.append(["**wanted**, $w = 3$", *summary(*goal_law), 0.0])
table = pd.DataFrame(rows, columns=["sampler", "mean", "mass below 1", "distance"])
display(Markdown(table.to_markdown(index=False, floatfmt=".3f")))
distance = dict(zip(laws, table["distance"], strict=False))
points, mass = laws["conditional model, w = 1"]
floor = wasserstein_distance(points, grid, mass, of_c)
early, early_coarse = (np.abs(weights[times >= 0.5] - 1).max() for times, weights in (plain, coarse))
# What the sampler costs by itself, against what the method adds.
assert max(distance["guided by the true value"], distance["classifier-free, learned weights"]) < 2 * floor
assert min(distance["classifier-free, no noise"], distance["classifier-free, DDPM noise"]) > 5 * floor
assert early < 0.65 * early_coarse  # of first order in the step
display(
    Markdown(
        f"(Distance: Wasserstein, to the wanted density. The {steps} steps alone cost {floor:.3f}: so far is what the conditional model draws from its own density.) For $w = 1$ the learned weights stay "
        f"within {early:.3f} of one for $t \\ge 1/2$, and fall below it near the data, where they make up for coarse steps: an exact conditional model needs no guidance."
    )
)

# %% [markdown]
# A weight that depends on time alone cannot turn one direction field into another: the ratio of $\nabla V_t$ and $\nabla\log p_t(c \mid x)$ differs from $x$ to $x$. On this toy it is good enough all the same. Its curve says where a
# constant weight goes wrong: at high noise, where hardly any extrapolation is right.
#
# Both need a conditional model, so neither is in the comparison.

# %% tags=["hide-input"]
plug_in_gap = abs(means["plug-in value"] - means["exact value"])
verdicts(
    {
        "guided": (plug_in_gap < 0.05, f"mean of $x_1$ off by {plug_in_gap:.2f}; exact on the paper's task"),
        "exact": (abs(means["exact value"] - float(pair_target.mean[0])) < 0.01, "the closed form"),
    }
)
assert answered == set(METHODS)  # every method of the comparison has had its turn

# %% [markdown]
# ## What each method needs
#
# *Ends at the tilt*: if nothing but the method is to blame. *Keeps*: what a training step, or a step of the sampler, remembers for a backward pass, in evaluations of the network ({doc}`s2_2_fine_tuning` measures it). *Left over*: the
# error that stays when network, optimiser and number of samples are perfect.

# %% tags=["hide-input"]
keeps = dict.fromkeys(METHODS, "one")
keeps |= {"draft": "all steps", "draft-kl": "all steps", "draft-5": "5 steps"}
keeps |= dict.fromkeys(("importance", "best", "smc", "exact"), "nothing") | {
    "twisted": "one, in $x$",
    "guided": "one, in $x$",
}
left_over = {
    "tilting": "$O(1/N)$",
    "centred": "$O(1/N)$",
    "implicit": "none",
    "reweighted": "none",
    "oneshot": "none; needs $n \\gg e^{D_2}$",
    "ddpo": "runs away",
    "dpok": "forgets later KLs",
    "dpok-future": "sampler's steps",
    "draft": "runs away",
    "draft-5": "runs away",
    "draft-lv": "runs away",
    "draft-kl": "sampler's steps",
    "adjoint": "sampler's steps",
    "importance": "none; needs $n \\gg e^{D_2}$",
    "best": "another law",
    "smc": "none",
    "twisted": "none",
    "guided": "exp of a mean",
    "exact": "none; needs $V_t$",
}
assert list(left_over) == list(METHODS)
reaches = {name: "yes" if method.exact else "no" for name, method in METHODS.items()}
reaches |= dict.fromkeys(("tilting", "centred"), "as $N \\to \\infty$")
rows = [
    [method.title, "yes" if method.gradient else "no", reaches[name], keeps[name], left_over[name]]
    for name, method in METHODS.items()
]
columns = ["method", r"$\nabla r$", "ends at the tilt", "keeps", "left over"]
display(Markdown(pd.DataFrame(rows, columns=columns).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# Read by columns, without any network yet. Of the methods that train with values of $r$ alone, the implicit form and the iterated weighted regression leave nothing over, and of these the first is less noisy in small tilts. Of those with a gradient, Adjoint Matching shares its optimum with DRaFT and a path KL, and keeps one evaluation instead of all
# steps. Weighted samples need no training, and pay with $n$. {doc}`rivals_comparison` asks what is left of this order when networks, budgets and samplers are finite.
#
# ## Try this
#
# - The implicit form is exact for any $\delta$. So why not take a single tilt, $\delta = 1$?

# %% tags=["hide-cell"]
t, rows = torch.tensor(0.5), []
for name, law in (("the tilt", target), ("the base", base)):
    x = law.noised(schedule, 0.5).sample(100, seeded(4))
    rows.append([name] + [compared(updates[which], 1.0, x)[1] for which in ("implicit", "reweighted")])
off_by, _ = compared(implicit, 1.0, x)
assert rows[1][1] > 50 * rows[0][1]
display(Markdown(pd.DataFrame(rows, columns=["points of", "implicit", "weighted"]).to_markdown(index=False, floatfmt=".1f")))
display(
    Markdown(
        f"Noise of one sample, in steps. At points of the tilt it is bearable, but the samples come from the base, and {share(base, reward, 1.0):.2%} of them count. At points that the tilt makes unlikely "
        "the implicit form divides the whole noise $z - \\varepsilon_{\\mathrm{old}}$ by a tiny $\\mathbb E[e^u \\mid x_t]$. "
        f"(There the library's guard against overflow is felt too: it keeps $u$ above $-10$, and moves the minimiser by {off_by:.1%} of the step.)"
    )
)

# %% [markdown]
# - Double $\lambda$. Which of best of $n$ and importance resampling notices?

# %% tags=["hide-cell"]
doubled = QuadraticReward(2 * reward.b)
again = best_of_n(exact, doubled, schedule, len(best), candidates=candidates, J=steps, generator=seeded(8))
assert torch.equal(again, best)
x, log_w = importance(exact, reward, schedule, n=2_000, lam=2.0, J=steps, generator=seeded(7))
display(
    Markdown(
        f"Best of $n$ keeps the very same samples: it knows ranks only. Importance resampling has {effective_sample_size(log_w):.1f} samples left of {len(x):,}."
    )
)
assert effective_sample_size(log_w) < 0.01 * len(x)

# %% [markdown]
# - Classifier-free guidance with $w = \frac12$: is it wrong there too?

# %% tags=["hide-cell"]
half = torch.softmax(log_all + 0.5 * log_c, 0)
points, mass = law_drawn(classifier_free(free, conditional, 0.5), eta=0.0)
off = wasserstein_distance(points, grid, mass, half)
assert off > 0.1
display(
    Markdown(
        f"Yes, the other way. The wanted density has a mass of {float(half[grid < -1].sum()):.2f} below $-1$, where the other class is; guidance draws {float(mass[points < -1].sum()):.2f}. (Distance {off:.2f}.) "
        "For $w < 1$ Jensen's inequality turns around."
    )
)
