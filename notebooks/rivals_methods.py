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
# # The rivals that train
#
# Iterative tilting is one of many ways to move a diffusion model toward a reward. {doc}`rivals_comparison` lets them compete with learned networks and equal
# budgets. Before that, here they are one at a time: the idea, the formula, a few lines of code, and what is left of the error when everything
# but the method is exact. {doc}`rivals_sampling` does the same for methods that train nothing.
#
# **You will see** that explicit Tilt Matching *is* Algorithm 2, and what the implicit form mends and what it costs; and which policy gradients and
# which reward gradients end at the tilted density, and where the others go.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points, paths and iterations

# %% tags=["remove-cell"]
import math
from functools import cache

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from scipy.optimize import root
from scipy.stats import linregress
from torch import nn

from itlib import figures
from itlib.baselines.accounting import NoisySteps, trajectory
from itlib.baselines.adjoint_matching import AdjointMatchingConfig, adjoint_matching
from itlib.baselines.draft import DraftConfig, draft, rollout
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.baselines.reward_weighted import reweighted
from itlib.beyond.estimators import centred
from itlib.beyond.implicit import implicit
from itlib.experiments.problems import Toy
from itlib.experiments.rivals import METHODS, WORK, Setting
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, NotNormalisableError, paper_mixture
from itlib.network import Network
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.sampling import time_grid, transition
from itlib.schedules import Cosine, add_noise, column
from itlib.tilting import PAPER_UPDATE, TiltBatch, explicit

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
exact, target = ExactNoisePredictor(base, schedule), base.tilted(reward)

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
tiny = Setting(network, Toy(base, Forward(reward.b)), schedule, WORK["smoke"], full=False)


needs_gradient = {}
for name, method in METHODS.items():
    if not method.train or name == "recommended":
        continue  # the next chapter's, and the one that has a chapter of its own
    try:
        next(method.train(tiny))
        needs_gradient[name] = False
    except RuntimeError as error:
        if "forward-only" not in str(error):
            raise
        needs_gradient[name] = True

# %% [markdown]
# *Is the tilted density its optimum*, if nothing but the method is to blame? That is what the sections below find out. Each ends with both answers,
# and asserts that the table behind the comparison, `METHODS` of `itlib.experiments.rivals`, gives the same.

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
x_t = add_noise(schedule, x_0, z, t)
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
    eps_old = ExactNoisePredictor(law, schedule)(x, t).repeat_interleave(M, 0)
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
    truth = ExactNoisePredictor(base.tilted(reward, delta), schedule)(x, t)
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
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    for i, (name, label) in enumerate(labels.items()):
        style = {"color": figures.SERIES[i], "marker": figures.MARKERS[i], "markersize": 5, "linestyle": ("-", "--", ":")[i]}
        left.plot(deltas, np.maximum(error[name], 1e-16), label=label, **style)
        right.plot(deltas, one_sample[name], **style)
    left.plot(deltas, 2 * error["tilting"][-1] * deltas / deltas[-1], color=figures.INK, linewidth=0.8, linestyle="--")
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
figures.show(
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
assert torch.allclose(Student()(x_t[:, :1], t), ExactNoisePredictor(one, schedule)(x_t[:, :1], t))
line_target = one.tilted(line_reward)
assert torch.allclose(line_target.means, torch.tensor(1.0))
assert torch.allclose(line_target.covariances, torch.tensor(0.25))


def parameters(steps):
    """m and log v after each iteration."""
    return np.array([(step.model.mean.item(), step.model.log_variance.item()) for step in steps])


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
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
    for ax, names, title in zip(
        axes, (list(policy), [*through, "adjoint"]), ("values of $r$", "gradients of $r$"), strict=True
    ):
        start = law_of(START, J)
        ax.plot(*start, "o", color=figures.INK, markersize=6, zorder=5)
        ax.annotate("base", start, textcoords="offset points", xytext=(7, -2))
        ax.plot(*goal, "*", color=figures.INK, markersize=13, markerfacecolor="none", zorder=5)
        ax.annotate("tilt", goal, textcoords="offset points", xytext=(14, -5))
        if "dpok" in names:
            ax.plot(*stationary(J, forgetful), "x", color=figures.INK, markersize=8, markeredgewidth=1.5, zorder=5)
        for i, name in enumerate(names):
            path = np.array([start] + [law_of(v, J, name in blind) for v in learned[name][::2]])
            every = max(1, len(path) // 6)
            ax.plot(
                *path.T,
                color=figures.SERIES[i],
                marker=figures.MARKERS[i],
                markersize=4,
                markevery=(every, every),
                label=titles[name],
                linewidth=1.2,
            )
        ax.set(title=title, xlabel="mean of what is drawn", xlim=(-0.1, 2.4), ylim=(0, 0.48))
        ax.legend(loc="upper right")
    axes[0].set_ylabel("variance")
figures.show(
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


one_denoiser, noise_0 = ExactNoisePredictor(one, schedule), torch.randn(n, 1, generator=seeded(5))
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
assert answered == set(needs_gradient)  # every method that trains has had its turn

# %% [markdown]
# The methods that train nothing come next, {doc}`rivals_sampling`, and with them a table of what each method needs.
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
