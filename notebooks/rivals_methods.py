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
# Iterative tilting is one of many ways to move a diffusion model toward a reward. {doc}`rivals_comparison` lets them compete with learned
# networks and equal budgets. Here each shows its idea, formula and code, and the error that is left when all else is
# exact. {doc}`rivals_sampling` does the same for methods that train nothing. Both pages are for reference.
#
# **You will see** that explicit Tilt Matching *is* Algorithm 2; what its implicit form mends, and at what cost; and which policy
# gradients and reward gradients end at the tilted density, and where the others go.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points, paths and iterations

# %%
import math
from functools import cache

import numpy as np
import torch
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

# %%
torch.set_num_threads(1)
full = profile == "full"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The task, and two questions
#
# All methods get the same base $p_0^b$, and the tilted density {eq}`eq-2-14` judges them. The base is the paper's mixture of two
# Gaussians, *exactly*: there is no network, so what goes wrong is the method's own fault. The reward is `one-mode`,
# $r(x) = 1.5\,x_1 + 3\,x_2$, because the paper's $4x_2$ hides the errors that we look for ({doc}`s3_1_tilted_score`). Throughout,
# $\lambda = 1$.

# %%
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("one-mode")
exact, target = ExactNoisePredictor(base, schedule), base.tilted(reward)
figures.glue(kl=f"{base.tilt_kl(reward):.2f}", left=f"{float(target.weights[0]):.4f}")

# %% [markdown]
# The tilt is {glue:text}`kl` nats from the base; it leaves the left mode a weight of {glue:text}`left`.
#
# *Does a method need the reward's gradient?* We ask the code: each method of the comparison takes one step, on a tiny network, with a
# reward that raises an error as soon as autograd touches it.


# %%
class Forward(QuadraticReward):
    def __call__(self, x):
        return ForwardOnly(super().__call__)(x)


network = Network(2, width=8, depth=1, embedding=4)
tiny = Setting(network, Toy(base, Forward(reward.b)), schedule, WORK["smoke"], full=False)


def asks_for_gradient(method):
    try:
        next(method.train(tiny))
    except RuntimeError as error:
        if "forward-only" not in str(error):
            raise
        return True
    return False


# %% tags=["hide-input"]
ELSEWHERE = {"recommended", "equal-steps", "at-once", "value", "ram", "balance", "distilled", "sift", "adjoint-kept"}
mine = {name: method for name, method in METHODS.items() if method.train and name not in ELSEWHERE}
needs_gradient = {name: asks_for_gradient(method) for name, method in mine.items()}
torch.set_default_dtype(torch.float64)  # after the networks, which are single
answered = set()


def verdicts(found):
    """A section's answers: name -> (is the exact tilt the optimum?, what was measured)."""
    rows = []
    for name, (optimum, measured) in found.items():
        method = METHODS[name]
        assert (needs_gradient[name], bool(optimum)) == (method.gradient, method.exact), name
        row = {"method": method.title, r"needs $\nabla r$": "yes" if method.gradient else "no"}
        rows.append(row | {"ends at the tilt": "yes" if optimum else "no", "found here": measured})
    answered.update(found)
    figures.table(rows)


# %% [markdown]
# *Is the tilted density its optimum*, if nothing but the method is to blame? Each section ends with both answers, and asserts that the
# table behind the comparison, `METHODS` of `itlib.experiments.rivals`, gives the same.
#
# The comparison has more methods: {doc}`b_recommended` and {doc}`b_value` treat ours, {doc}`rivals_fixed_points` RAM and its relatives.
#
# ## The tilting family
#
# ### Explicit Tilt Matching is Algorithm 2
#
# *Idea.* Move the prediction of a teacher along the covariance of noise and reward, in small tilts of size $\delta = \lambda/N$.
#
# {cite:t}`tiltmatching2025` found this at the same time. The paper calls their method "essentially the same"; it is the same. They follow
# the velocity of a stochastic interpolant as the tilt grows, and take Euler steps. With the teacher's prediction
# $\varepsilon_{\mathrm{old}}$ of the noise $z$ in $x_t = \alpha_t X_0 + \sigma_t z$ and any constant $c$, one step is the regression
#
# $$\varepsilon_\theta(x_t, t) \;\leftarrow\; \varepsilon_{\mathrm{old}} + \delta\,\big(r(X_0) - c\big)\,(z - \varepsilon_{\mathrm{old}}).$$ (eq-rivals-explicit)
#
# Line 11 of [Algorithm 2](algorithm-2) is $s^{\mathrm{old}} + \delta\, r\,(g - s^{\mathrm{old}})$. Multiply it by $-\sigma_t$: then
# $-\sigma_t s^{\mathrm{old}} = \varepsilon_{\mathrm{old}}$ by {eq}`eq-2-8`, and $-\sigma_t g = z$ by {eq}`eq-3-1`. This is
# {eq}`eq-rivals-explicit` with $c = 0$. And velocities? Given $x_t$, the clean sample is $X_0 = (x_t - \sigma_t z)/\alpha_t$, so the
# velocity
#
# $$\dot\alpha_t X_0 + \dot\sigma_t z = \frac{\dot\alpha_t}{\alpha_t}\, x_t + \Big(\dot\sigma_t - \frac{\dot\alpha_t\sigma_t}{\alpha_t}\Big)\, z$$
#
# is an affine function of the noise, and the teacher's velocity is the same function of $\varepsilon_{\mathrm{old}}$. Their difference is
# the bracket times $z - \varepsilon_{\mathrm{old}}$: the same regression, with another weight. Here are all of them on one batch.

# %%
delta, n = 0.1, 1000
x_0, z = base.sample(n, seeded(0)), torch.randn(n, 2, generator=seeded(1))
t = 0.01 + 0.98 * torch.rand(n, generator=seeded(2))
x_t = add_noise(schedule, x_0, z, t)
batch = TiltBatch(1, x_0, reward(x_0), t, z, x_t, eps_old=exact(x_t, t))
r, old = batch.r[:, None], batch.eps_old

alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
s_old, g = -old / sigma, (alpha * x_0 - x_t) / sigma**2
line_11 = s_old + delta * r * (g - s_old)

# %%
alpha_dot, sigma_dot = schedule.alpha_dot(t)[:, None], schedule.sigma_dot(t)[:, None]
v_old = alpha_dot * (x_t - sigma * old) / alpha + sigma_dot * old
v_new = v_old + delta * r * (alpha_dot * x_0 + sigma_dot * z - v_old)
bracket = sigma_dot - alpha_dot * sigma / alpha

tilt_matching, _ = explicit(centred(c=0.0))(batch, delta)
ways = {
    "Algorithm 2 of the library": PAPER_UPDATE(batch, delta)[0],
    "line 11 of the paper": -sigma * line_11,
    "by velocities": old + (v_new - v_old) / bracket,
}
for name, way in ways.items():
    apart = float((way - tilt_matching).abs().max())
    figures.check(f"{name} is explicit Tilt Matching", apart, below=1e-11)

# %% [markdown]
# The same method, found twice. The constant lessens a bias where the teacher is not the score of its own samples
# ({doc}`s3_2_algorithm`). The comparison runs *iterative tilting* with $c = 0$, and *explicit Tilt Matching* with the mean reward for $c$.
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
# and if the teacher is right, the right side is zero. Then
# $\varepsilon = \mathbb E[e^{\delta r} z \mid x_t] / \mathbb E[e^{\delta r} \mid x_t]$, which is [Proposition 3.1](proposition-3-1) in the
# denoiser's units. Nothing has been expanded: the fixed point is exact for every $\delta$.
#
# ### Reward-weighted regression
#
# *Idea.* Denoise the model's own samples, each with the weight that the tilt gives it
# {cite:p}`peters2007reinforcement,lee2023aligning`:
#
# $$\min_\theta\ \mathbb E\,\big[e^{\delta r(X_0)}\,\|\varepsilon_\theta(x_t, t) - z\|^2\big].$$ (eq-rivals-weighted)
#
# Its minimiser is the same ratio, so it is exact for every $\delta$ too, and needs no teacher. It is done in *one shot*, $\delta = \lambda$,
# or iterated like the others.
#
# ### One tilt, with exact ingredients
#
# We compute the minimiser of each regression, and the noise of a single sample around it, without training: by Gauss–Hermite quadrature
# over the exact posterior of $X_0$, at 300 points $x_t$ of the tilted law, where the new model will be used. The updates are the
# library's own; each returns what to regress on, and a factor of the residual.

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


def rms(v):
    return float(v.square().sum(-1).mean().sqrt())


# %%
def regression(update, delta, x):
    """Minimiser at x, (B, d), and mean square of one sample's error, (B,)."""
    batch, p = posterior_batch(x, t, base, reward)
    goal, factor = update(batch, delta)
    w = (p * (factor**2).expand(p.numel(), 1).view_as(p)).unsqueeze(-1)
    goal = goal.view(*p.shape, -1)
    best = (w * goal).sum(1, keepdim=True) / w.sum(1, keepdim=True)
    one_sample = (w / p.unsqueeze(-1) * (goal - best)).square().sum(-1)
    return best[:, 0], (p * one_sample).sum(1) / w.sum((1, 2)).square()


def compared(update, delta, x):
    """Both in units of the tilt's step from the base."""
    truth = ExactNoisePredictor(base.tilted(reward, delta), schedule)(x, t)
    best, one_sample = regression(update, delta, x)
    step = rms(truth - exact(x, t))
    return rms(best - truth) / step, float(one_sample.mean().sqrt()) / step


# %%
t, deltas = torch.tensor(0.5), np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5])
noised = [base.tilted(reward, delta).noised(schedule, 0.5) for delta in deltas]
points = [law.sample(300, seeded(4)) for law in noised]
updates = {"tilting": PAPER_UPDATE, "centred": explicit(centred())}
updates |= {"implicit": implicit, "reweighted": reweighted}
error, one_sample = {}, {}
for name, update in updates.items():
    where = zip(deltas, points, strict=True)
    pairs = [compared(update, delta, x) for delta, x in where]
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
    left.set(title="error of the minimiser", ylabel="in units of the step to learn", ylim=(1e-16, 100))
    right.set(title="noise of one sample")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel=r"size of the tilt, $\delta$")
        ax.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
        ax.minorticks_off()
    right.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
alt = "Left: the error of the explicit tilt grows in proportion to the size of the tilt; the other two stay at rounding level. Right: the "
alt += "noise of one sample hardly depends on the size of the tilt, except for the reward-weighted regression, where it is many times larger."
figures.show(fig, "tilting-family", alt)

# %% [markdown]
# ```{glue:figure} tilting-family
# :name: fig-rivals-tilting
#
# One tilt of the `one-mode` task at $t = \frac12$, with exact teacher and exact posterior, in units of the step that the tilt should
# make, which is itself proportional to $\delta$. Left: where the regression ends. The explicit form is off by a share $\propto\delta$ of
# the step, that is by $O(\delta^2)$; the other two are exact. Right: the standard deviation of a single sample's estimate.
# ```

# %% tags=["hide-input"]
slope = 1 + linregress(np.log(deltas[:3]), np.log(error["tilting"][:3])).slope  # one more, for the unit
rise = linregress(np.log(deltas[:3]), np.log(one_sample["reweighted"][:3])).slope
assert abs(slope - 2) < 0.05
assert abs(rise + 1) < 0.05
assert (one_sample["implicit"] < 1.1 * one_sample["tilting"])[deltas <= 0.2].all()
assert one_sample["implicit"][-1] > 1.2 * one_sample["reweighted"][-1]
assert np.allclose(error["centred"], error["tilting"], rtol=1e-6)
for name in ("implicit", "reweighted"):
    figures.check(f"{labels[name]}: the minimiser is the tilt", error[name].max(), below=1e-11)
figures.glue(slope=f"{slope:.2f}", off_at_20=f"{error['tilting'][1]:.1%}")
figures.glue(**{f"noise_{name}": f"{one_sample[name][1]:.1f}" for name in labels})

# %% [markdown]
# The explicit error grows with $\delta$ to the power {glue:text}`slope`. At $\delta = 1/20$ it is {glue:text}`off_at_20` of the step, and
# one sample is off by {glue:text}`noise_tilting` steps with the explicit form, {glue:text}`noise_implicit` with the implicit,
# {glue:text}`noise_reweighted` with the weighted regression.
#
# While the teacher is almost right it pays to regress on a *difference* to it. The plain noise $z$ has unit variance however small the
# tilt is, so the weighted regression drowns in it like $1/\delta$. The implicit form has the noise of the explicit one, without its bias,
# up to the middle of the picture. For larger tilts it divides by a tiny $\mathbb E[e^u \mid x_t]$ at points that the tilt makes unlikely.
#
# A large tilt costs the weighted regression *effective samples*: how many of $n$ weighted samples count ({doc}`s1_introduction`). Here is
# the worst of $N$ tilts, from the closed form of $\log Z$, as a share of $n$.


# %%
def share(law, r, delta):
    """Limit of ESS / n for the weights exp(delta r) under a law."""
    try:
        once, twice = (law.log_normaliser(r, k * delta) for k in (1, 2))
        return math.exp(2 * once - twice)
    except NotNormalisableError:
        return 0.0  # the weights have no second moment


def worst_tilt(r, N):
    return min(share(base.tilted(r, k / N), r, 1 / N) for k in range(N))


# %% tags=["hide-input"]
heads = {"one shot": 1} | {f"$N = {N}$": N for N in (2, 5, 10, 20)}
rows = []
for name in ("paper", "one-mode", "quadratic"):  # the last has infinite variance in one shot
    rows.append({"reward": name} | {head: worst_tilt(parse_reward(name), N) for head, N in heads.items()})
figures.table(rows, floatfmt=".2g")
assert all(row["one shot"] < 0.3 and row["$N = 20$"] > 0.9 for row in rows)

# %% tags=["hide-input"]
first_order = abs(slope - 2) < 0.05  # of each tilt: the sum of N = 1 / delta of them vanishes
off = {
    name: (error[name].max() < 1e-11, f"off by {figures.scientific(error[name].max())} of a step")
    for name in ("implicit", "reweighted")
}
verdicts(
    {
        "tilting": (first_order, f"as $N \\to \\infty$: a tilt is off by $O(\\delta^{{{slope:.2f}}})$"),
        "centred": (first_order, "the same"),
        "implicit": off["implicit"],
        "reweighted": (off["reweighted"][0], off["reweighted"][1] + "; noise like $1/\\delta$"),
        "oneshot": (off["reweighted"][0], f"the same; but {share(base, reward, 1.0):.2%} of the samples count"),
    }
)

# %% [markdown]
# ## Climbing with values: policy gradients
#
# *Idea.* Treat each noisy step of the sampler as the action of a player, and make actions more likely that were followed by a high
# reward.
#
# A step of Algorithm 1 is Gaussian {eq}`eq-2-7`: $p_\theta(x_k \mid x_{k+1}) = N(m_\theta(x_{k+1}), \eta_k^2 I)$, where $x_k$ is the state
# at time $t_k$. So the gradient of an expected reward needs its values only {cite:p}`williams1992simple`. With the *advantage* $A$, the
# reward minus a baseline,
#
# $$\nabla_\theta\,\mathbb E[r(x_0)] = \mathbb E\Big[A \sum_{k \ge 1} \nabla_\theta\log p_\theta(x_k \mid x_{k+1})\Big].$$ (eq-rivals-policy)
#
# - **DDPO** {cite:p}`black2024training`: $A$ is the reward, standardised over the batch. Several updates use one batch, each with a
#   clipped likelihood ratio. Nothing holds the model near the base.
# - **DPOK** {cite:p}`fan2023dpok`: the baseline is a learned value of $x_{k+1}$, and every step pays the KL divergence to the base's
#   step, a term of the path KL {eq}`eq-path-kl`. Its gradient takes the law of $x_{k+1}$ as given, so an early step never learns that it
#   makes *later* steps expensive.
# - **DPOK with future KL** subtracts the later KLs from the reward of a step. This is the whole gradient of
#   $\mathbb E[r] - \mathrm{KL}_{\mathrm{path}}$, whose maximum over all laws of paths is the tilt of the base's paths.
#
# To see where each ends we need a student that can represent the answer. Take one Gaussian coordinate: the base $N(0, \frac12)$, the
# reward $r(x) = 4x - x^2$ with its maximum at 2, and the tilt $N(1, \frac14)$. The student is the *exact denoiser of* $N(m, v)$; it learns
# $m$ and $\log v$, and starts at the base.

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
with_kl = {"kl": 1.0, "value": True}
policy = {
    "ddpo": PolicyGradientConfig(**setting),
    "dpok": PolicyGradientConfig(**setting, **with_kl),
    "dpok-future": PolicyGradientConfig(**setting, **with_kl, future_kl=True),
}
learned, forward = {}, ForwardOnly(line_reward)
for name, config in policy.items():
    steps = policy_gradient(Student(), forward, schedule, config, d=1)
    learned[name] = parameters(steps)

# %% [markdown]
# Where do the two kinds of DPOK end, apart from noise? Every step of this student is linear in $x$. So it draws a Gaussian, whose mean
# and variance are exact sums over the steps, and so is its path KL. From these we get the *expected* gradients, and solve for the point
# where they vanish. The aim is the tilt of what the base's sampler draws in $J$ steps, a Gaussian a little narrower than the base.


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


# %% tags=["hide-input"]
def mean_reward(mean, variance):
    return 4 * mean - mean**2 - variance


def objective(parameters, J, forget=False):
    mean, variance, price = drawn_law(parameters, J, forget=forget)
    return mean_reward(mean, variance) - price


def forgetful(parameters, J):
    return objective(parameters, J, forget=True)


@torch.no_grad()
def law_of(parameters, J, own_last=False):
    return [float(v) for v in drawn_law(torch.as_tensor(parameters), J, own_last)[:2]]


def stationary(J, climbed):
    """Mean and variance of what is drawn where the gradient of `climbed` vanishes."""

    def gradient(v):
        leaf = torch.tensor(v, requires_grad=True)
        return torch.autograd.grad(climbed(leaf, J), leaf)[0].numpy()

    solution = root(gradient, [0.8, math.log(0.3)])
    assert solution.success
    return law_of(solution.x, J)


# %%
START = [0.0, math.log(0.5)]


def aim(J):
    """Mean and variance of the tilt of what the base's sampler draws."""
    variance = torch.full((1, 1, 1), law_of(START, J)[1])
    drawn = GaussianMixture(torch.ones(1), torch.zeros(1, 1), variance)
    drawn = drawn.tilted(line_reward)
    return float(drawn.means), float(drawn.covariances)


def gaps(points):
    return [math.dist(point, aim(J)) for J, point in zip(Js, points, strict=True)]


Js = (20, 40, 80) if full else (20, 40)
kinds = {"DPOK": forgetful, "with future KL": objective}
found = {name: [stationary(steps, f) for steps in Js] for name, f in kinds.items()}
gap = {name: gaps(points) for name, points in found.items()}

# %% tags=["hide-input"]
both = {"aim": [aim(steps) for steps in Js]} | found
rows = [{"steps": steps} | {k: f"({v[i][0]:.2f}, {v[i][1]:.3f})" for k, v in both.items()} for i, steps in enumerate(Js)]
figures.table(rows)


def vanishes(gaps):
    """Whether twice the steps leave at most six tenths of a gap: a gap of first order in the steps is halved."""
    return gaps[-1] < 0.6 * gaps[-2]


def off_by(gaps):
    return vanishes(gaps), f"off by {gaps[-1]:.3f} at {Js[-1]} steps, by {gaps[-2]:.3f} at {Js[-2]}"


def end(name, own_last=False, last=20):
    """What a student draws at the end: mean and variance, averaged over the last iterations."""
    return np.array([law_of(v, J, own_last) for v in learned[name][-last:]]).mean(0)


# %% tags=["hide-input"]
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
        "dpok": off_by(gap["DPOK"]),
        "dpok-future": off_by(gap["with future KL"]),
    }
)

# %% [markdown]
# First table: mean and variance. With the whole KL, twice the steps leave less than half of the gap; DPOK's gap stays. The left half of
# {numref}`fig-rivals-climbing` shows the library's runs on their way: one seed, 128 trajectories a batch, 40 steps.
#
# ## Climbing with gradients of the reward
#
# *Idea.* The sampler is a function of its noises; differentiate the reward through it. {doc}`s2_2_fine_tuning` derives these methods.
# In short:
#
# - **DRaFT** {cite:p}`clark2024directly` climbs {eq}`eq-2-15` by {eq}`eq-2-16`, through all steps. **DRaFT-$K$** lets gradients through the
#   last $K$ steps; **DRaFT-LV** through the last one, averaged over several new noisings of the finished sample. None knows the base.
# - **DRaFT with path KL** climbs $\mathbb E[\lambda r] - \mathrm{KL}_{\mathrm{path}}$, like DPOK with future KL.
# - **Adjoint Matching** {cite:p}`domingoenrich2024adjoint` regresses the control
#   $u_k = (m_\theta - m_{\mathrm{base}})(x_{k+1})/\eta_k$ on the lean adjoint {eq}`eq-2-18`, which in discrete time is
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
config = AdjointMatchingConfig(**setting)
steps = adjoint_matching(Student(), line_reward, schedule, config, d=1)
learned["adjoint"] = parameters(steps)

# %% tags=["hide-input"]
titles = {"ddpo": "DDPO", "dpok": "DPOK", "dpok-future": "DPOK, future KL", "draft": "DRaFT", "draft-5": "DRaFT-5"}
titles |= {"draft-lv": "DRaFT-LV", "draft-kl": "DRaFT, path KL", "adjoint": "Adjoint Matching"}
blind = ("draft", "draft-5", "draft-lv")
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
    for ax, names, title in zip(axes, ([*policy], [*through, "adjoint"]), ("values", "gradients"), strict=True):
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
            style = {"color": figures.SERIES[i], "marker": figures.MARKERS[i], "markersize": 4}
            ax.plot(*path.T, markevery=(every, every), label=titles[name], linewidth=1.2, **style)
        ax.set(title=f"{title} of $r$", xlabel="mean of what is drawn", xlim=(-0.1, 2.4), ylim=(0, 0.48))
        ax.legend(loc="upper right")
    axes[0].set_ylabel("variance")
alt = "Paths in the plane of mean and variance. Methods without a KL run from the base past the tilt to mean 2 and variance near zero. DPOK "
alt += "stops short of the tilt. DPOK with future KL, DRaFT with path KL and Adjoint Matching end next to the tilt."
figures.show(fig, "climbing", alt)

# %% [markdown]
# ```{glue:figure} climbing
# :name: fig-rivals-climbing
#
# Mean and variance of what the student draws while it climbs. Without a KL everything ends as a spike at the reward's maximum, mean 2.
# With the whole path KL everything ends beside the tilt of what the base's sampler draws. DPOK forgets part of the KL, and stops where
# its expected gradient vanishes (cross).
# ```
#
# Values and gradients lead to the same ends. The gradient of the reward buys *less noise*. Here is the slope of $\mathbb E[r]$ in $m$, at
# the base, from single trajectories: by {eq}`eq-rivals-policy`, and through the sampler.

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

# %%
mean = {"values": float(by_values.mean()), "gradient": float(by_gradient.mean())}
spread = {"values": float(by_values.std()), "gradient": float(by_gradient.std())}
se = math.hypot(*spread.values()) / n**0.5  # of the difference; shared paths lower it
assert abs(mean["values"] - mean["gradient"]) < 4 * se
cost = (spread["values"] / spread["gradient"]) ** 2
assert cost > 4
figures.glue(**{f"by_{k}": f"{mean[k]:.2f} ± {spread[k] / n**0.5:.2f}" for k in mean})
figures.glue(**{f"spread_{k}": f"{spread[k]:.1f}" for k in mean}, cost=f"{cost:.0f}")

# %% [markdown]
# By values it is {glue:text}`by_values`, with a spread of one trajectory of {glue:text}`spread_values`; through the sampler
# {glue:text}`by_gradient`, with a spread of {glue:text}`spread_gradient`. The same gradient takes about {glue:text}`cost` times as many
# trajectories by values.


# %% tags=["hide-input"]
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


# %% tags=["hide-input"]
ends |= {name: end(name, own_last=name in blind) for name in (*through, "adjoint")}
gap["adjoint"] = gaps([stationary(steps, adjoint_loss) for steps in Js])
if full:
    assert min(mean_reward(*ends[name]) for name in blind) > 3.7
    assert math.dist(ends["draft-kl"], stationary(J, objective)) < 0.04
    assert math.dist(ends["adjoint"], stationary(J, adjoint_loss)) < 0.04
runs_to = {name: f"runs to mean {ends[name][0]:.2f}, variance {ends[name][1]:.3f}" for name in blind}
verdicts(
    {name: (reward_alone, text) for name, text in runs_to.items()}
    | {"draft-kl": off_by(gap["with future KL"]), "adjoint": off_by(gap["adjoint"])}
)
assert answered == set(needs_gradient)  # every method of this page has had its turn

# %% [markdown]
# The methods that train nothing come next, {doc}`rivals_sampling`, with a table of what each method needs.
#
# ## Try this
#
# - *Predict, then run.* The implicit form is exact for any $\delta$. So why not take a single tilt, $\delta = 1$? (Hint: compare the noise of
#   one sample at points of the tilt and at points of the base.)

# %% tags=["hide-cell"]
t, rows = torch.tensor(0.5), []
for name, law in (("the tilt", target), ("the base", base)):
    x = law.noised(schedule, 0.5).sample(100, seeded(4))
    noise_of = {which: compared(updates[which], 1.0, x)[1] for which in ("implicit", "reweighted")}
    rows.append({"noise, in steps, at points of": name} | noise_of)
figures.table(rows, floatfmt=".1f")
assert rows[1]["implicit"] > 50 * rows[0]["implicit"]
print(
    f"At points of the tilt it is bearable, but the samples come from the base, and {share(base, reward, 1.0):.2%} of them count."
)
print("At points that the tilt makes unlikely the implicit form divides the noise by a tiny mean of e^u.")

# %% [markdown]
# - *Derive.* The minimiser of {eq}`eq-rivals-weighted` does not change if a constant is added to the reward. Does that of
#   {eq}`eq-rivals-explicit` with $c = 0$, and for which teacher? (Hint: the mean of the bracket $z - \varepsilon_{\mathrm{old}}$.)

# %% tags=["hide-cell"]
shifted = QuadraticReward(reward.b, c=5.0)
x = points[2]
plain, _ = posterior_batch(x, t, base, reward)
more, p = posterior_batch(x, t, base, shifted)
change = PAPER_UPDATE(more, 0.1)[0] - PAPER_UPDATE(plain, 0.1)[0]
moved = float(torch.einsum("bm,bmd->bd", p, change.view(*p.shape, 2)).abs().max())
figures.check("with the teacher of the samples' law nothing moves", moved, below=1e-10)
print("In general the minimiser moves by δ c times the mean of the bracket, which is zero for that teacher only.")
