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
# # The rivals that train nothing
#
# The methods of {doc}`rivals_methods` end with a trained model. Those of this page leave the base alone: they weigh its samples, or add
# something to its prediction while it samples. Again everything but the method is exact. This page is for reference; the table at its end
# covers the methods of both pages.
#
# **You will see** that importance weights are exact and soon run out of samples; that the best of $n$ samples is no tilt; what
# sequential Monte Carlo gains from a good potential, and from a good move; how near a chain of Gaussian steps can come to the tilt; and
# that classifier-free guidance does not draw from the density that it is named after.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer samples and runs

# %%
import math
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import linregress, wasserstein_distance

from itlib import figures
from itlib.baselines import monte_carlo
from itlib.baselines.accounting import EvaluationCounter
from itlib.baselines.guidance import classifier_free, exact_value, exactly_guided, guided, plug_in_value
from itlib.experiments.problems import Toy
from itlib.experiments.rivals import METHODS, WORK, Setting
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.metrics import effective_sample_size
from itlib.network import Network
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.sampling import path_log_weights, time_grid, transition
from itlib.schedules import Cosine

torch.set_num_threads(1)
full = profile == "full"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The same task, the same two questions
#
# Base and reward are those of {doc}`rivals_methods`: the paper's mixture, given exactly, and `one-mode`. Does a method need the reward's
# gradient? Again each runs for a moment on a tiny network, with a reward that raises an error as soon as autograd touches it. Does it end
# at the tilted density? The sections below find out.

# %%
schedule, base, reward = Cosine(), paper_mixture(), parse_reward("one-mode")
exact, target = ExactNoisePredictor(base, schedule), base.tilted(reward)


# %% tags=["hide-input"]
class Forward(QuadraticReward):
    def __call__(self, x):
        return ForwardOnly(super().__call__)(x)


network = Network(2, width=8, depth=1, embedding=4)
tiny = Setting(network, Toy(base, Forward(reward.b)), schedule, WORK["smoke"], full=False)


def asks_for_gradient(method):
    try:
        if drawn := method.draw(tiny, EvaluationCounter()).model:
            drawn(torch.zeros(1, 2), torch.tensor(0.5))
    except RuntimeError as error:
        if "forward-only" not in str(error):
            raise
        return True
    return False


needs_gradient = {name: asks_for_gradient(method) for name, method in METHODS.items() if not method.train}
torch.set_default_dtype(torch.float64)  # after the networks, which are single
answered = set()


# %% tags=["hide-input"]
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


def rms(v):
    return float(v.square().sum(-1).mean().sqrt())


# %% [markdown]
# ## Weighted samples
#
# Draw from the base, and let weights or choices do the rest. At best this gives the tilt of what the base's *sampler* draws, so we must
# know that law. In one dimension we carry the masses of a grid from step to step, by quadrature with the Gaussian of
# {eq}`eq-2-7`. That is enough: the coordinates of the base are independent, and the reward is a sum over them.

# %%
grid = torch.linspace(-8, 8, 801)
h = float(grid[1] - grid[0])


def normal(mean, std):
    """Masses of N(mean, std^2) on the grid, one column for each mean."""
    z = (grid[:, None] - mean) / std
    return torch.exp(-0.5 * z**2) * h / (std * math.sqrt(2 * math.pi))


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


# %%
steps, variance = 40, torch.full((2, 1, 1), 0.5)
pair = GaussianMixture(torch.ones(2), torch.tensor([[-2.0], [2.0]]), variance)  # of x_1
one = GaussianMixture(torch.ones(1), torch.zeros(1, 1), variance[:1])  # of x_2


def coordinates(J):
    return [law_drawn(ExactNoisePredictor(law, schedule), J) for law in (pair, one)]


laws_drawn = coordinates(steps)

# %% tags=["hide-input"]
assert all(abs(float(mass.sum()) - 1) < 1e-8 for _, mass in laws_drawn)


def tilt_of_drawn(lam):
    """Mean of the tilt of what the sampler draws, and which share of its samples counts when they are weighted."""
    mean, counting = [], 1.0
    for (points, mass), b in zip(laws_drawn, reward.b, strict=True):
        w = torch.exp(lam * b * points)
        mean.append(float((mass * w * points).sum() / (mass * w).sum()))
        counting *= float((mass * w).sum() ** 2 / (mass * w**2).sum())
    return torch.tensor(mean), counting


def vector(v):
    return f"({v[0]:.3f}, {v[1]:.3f})"


mean_drawn, share_drawn = tilt_of_drawn(1.0)
figures.glue(mean_target=vector(target.mean), mean_drawn=vector(mean_drawn))

# %% [markdown]
# The mean of the tilt is {glue:text}`mean_target` for the exact base, and {glue:text}`mean_drawn` for what its 40-step sampler draws.
#
# ### Importance resampling
#
# *Idea.* Draw $n$ samples from the base, weigh each by $w = e^{\lambda r(x)}$, and resample in proportion to the weights.
#
# It is exact as $n \to \infty$. But ESS$/n \to e^{-D_2}$, with the Rényi divergence $D_2 = \log\mathbb E_{\text{tilt}}[w / Z]$ of the
# tilted density from the base.

# %%
n = 20_000 if full else 2_000
how = {"J": steps, "generator": seeded(7)}
x, log_w = monte_carlo.importance(exact, reward, schedule, n, **how)
counted = effective_sample_size(log_w) / len(x)

w_half = torch.softmax(0.5 * log_w.double(), 0)  # the same samples, for lambda = 1/2
half_mean = w_half @ x.double()
half_error = ((w_half**2) @ (x.double() - half_mean) ** 2).sqrt()

# %% tags=["hide-input"]
half_exact, half_share = tilt_of_drawn(0.5)
half_right = bool(((half_mean - half_exact).abs() < 4.5 * half_error).all())
share_exact = math.exp(2 * base.log_normaliser(reward, 1.0) - base.log_normaliser(reward, 2.0))
assert half_right
assert max(share_exact, share_drawn, counted) < 0.05
figures.glue(half_mean=f"{vector(half_mean)} ± {vector(half_error)}", half_exact=vector(half_exact))
figures.glue(half_share=f"{half_share:.0%}", share_drawn=f"{share_drawn:.2%}", share_exact=f"{share_exact:.2%}")
figures.glue(samples=f"{len(x):,}", counted=f"{counted:.2%}")

# %% [markdown]
# At $\lambda = 1/2$, where {glue:text}`half_share` of the samples count, the weighted mean is {glue:text}`half_mean`; exact is
# {glue:text}`half_exact`. At $\lambda = 1$ the limit of ESS$/n$ is {glue:text}`share_drawn` for the law of the sampler and
# {glue:text}`share_exact` for the exact base. The {glue:text}`samples` samples claim {glue:text}`counted`: such a measurement flatters,
# because the samples with the largest weights are seldom drawn.
#
# ### Best of n
#
# *Idea.* Draw $n$ candidates and keep the one with the highest reward.
#
# If $F$ is the distribution function of $r$ under the base, and continuous, the survivor has the density $n F(r(x))^{n-1} p_0^b(x)$. It
# is a tilt, but by $(n-1)\log F(r)$, not by $\lambda r$. Its KL divergence to the base is
#
# $$\mathrm{KL} = \int_0^1 n F^{n-1} \log\big(n F^{n-1}\big)\, dF = \log n - \frac{n-1}{n},$$ (eq-rivals-best)
#
# whatever $r$ is. With ties it is less, and {eq}`eq-rivals-best` is a bound {cite:p}`beirami2024theoretical`. We measure it on samples, also for the
# reward rounded down to multiples of 4, with ties.

# %%
candidates = 16
how = {"candidates": candidates, "J": steps, "generator": seeded(8)}
best = monte_carlo.best_of_n(exact, reward, schedule, n // 10, **how)
ranked = reward(x).sort().values
below = torch.searchsorted(ranked, reward(best), right=True)
F = below.clamp_min(1) / len(ranked)
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
figures.glue(kl_bound=f"{bound:.3f}", kl_measured=f"{float(kl_each.mean()):.3f} ± {se:.3f}", kl_ties=f"{kl_ties:.3f}")

# %% [markdown]
# For $n = 16$ the formula says {glue:text}`kl_bound`. Measured: {glue:text}`kl_measured`. With ties: {glue:text}`kl_ties`.
#
# For a given KL to the base no density has a higher mean reward than a tilt ({doc}`s2_2_fine_tuning`). How far behind is the best of
# $n$?

# %% tags=["hide-input"]
r_covariances = (reward.b @ base.covariances @ reward.b).view(-1, 1, 1)
r_law = GaussianMixture(base.weights, base.means @ reward.b[:, None], r_covariances)
r_grid = torch.linspace(-16, 24, 8001)
density = r_law.log_prob(r_grid[:, None]).exp()
F = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, r_grid)]).clamp_max(1.0)


def best_law(n):
    return n * F ** (n - 1) * density


def tilt_law(lam):
    return (lam * r_grid - base.log_normaliser(reward, lam)).exp() * density


def mean_of(law):
    return float(torch.trapezoid(law * r_grid, r_grid))


lams, ns = np.linspace(0.02, 1.2, 60), np.unique(np.geomspace(2, 400, 40).round())
tilts = np.array([(base.tilt_kl(reward, lam), mean_of(tilt_law(lam))) for lam in lams])
bests = np.array([(np.log(n) - (n - 1) / n, mean_of(best_law(n))) for n in ns])
kl_target = base.tilt_kl(reward)
n_same = round(float(np.interp(kl_target, bests[:, 0], ns)))
inside = bests[:, 0] < tilts[-1, 0]
assert (np.interp(bests[:, 0], tilts[:, 0], tilts[:, 1]) - bests[:, 1])[inside].min() > 0  # Gibbs

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    wide = {"color": figures.COLORS["target"], "alpha": 0.3, "linewidth": 0}
    left.fill_between(r_grid, tilt_law(1.0), label="tilt, $\\lambda = 1$", **wide)
    left.plot(r_grid, density, color=figures.COLORS["band"], linestyle=":", label="base")
    left.plot(r_grid, best_law(16), color=figures.COLORS["base"], linestyle="--", label="best of 16")
    left.plot(r_grid, best_law(n_same), color=figures.COLORS["learned"], label=f"best of {n_same}")
    left.set(xlim=(-10, 17), yticks=[], xlabel="reward", title="law of the reward", ylim=(0, 0.42))
    left.legend(loc="upper left")
    right.plot(*tilts.T, color=figures.COLORS["target"], linewidth=4, alpha=0.4, label="tilts")
    right.plot(*bests.T, color=figures.COLORS["learned"], marker="s", markersize=3, linewidth=0.8, label="best of $n$")
    star = kl_target, mean_of(tilt_law(1.0))
    right.plot(*star, "*", color=figures.INK, markersize=12, markerfacecolor="none")
    right.annotate("$\\lambda = 1$", star, textcoords="offset points", xytext=(-8, 8), ha="right")
    right.set(xlim=(0, 4.6), ylim=(0, 10.5), xlabel="KL to the base, nats", title="mean reward")
    right.legend(loc="lower right")
alt = f"Left: the reward of the best of {n_same} has about the same mean as under the tilt, but a much narrower law. Right: mean reward "
figures.show(fig, "best-of-n", alt + "against KL to the base; the best of n runs just below the curve of the tilts.")

# %% [markdown]
# ```{glue:figure} best-of-n
# :name: fig-rivals-best
#
# Best of $n$ on `one-mode`. Left: the law of the reward; the larger number of candidates has the KL of the tilt to the base. Right: mean
# reward against KL. The best of $n$ comes close to the curve of the tilts, which nothing can cross.
# ```

# %% tags=["hide-input"]
apart = float(torch.trapezoid((best_law(n_same) - tilt_law(1.0)).abs(), r_grid)) / 2
same_kl = math.log(n_same) - (n_same - 1) / n_same
loss = float(np.interp(same_kl, tilts[:, 0], tilts[:, 1])) - mean_of(best_law(n_same))
figures.glue(n_same=n_same, loss=f"{loss:.2f}", tilt_reward=f"{mean_of(tilt_law(1.0)):.2f}", apart=f"{apart:.2f}")

# %% [markdown]
# At the KL of the tilt ($n =$ {glue:text}`n_same`) the best of $n$ loses {glue:text}`loss` of a mean reward of
# {glue:text}`tilt_reward`, and the two laws have a total variation distance of {glue:text}`apart`. It is a nearly optimal way to a high
# reward, and no way to *this* density: $\lambda$ does not even occur in it.
#
# ### Sequential Monte Carlo
#
# *Idea.* Weigh and resample on the way, before the mistakes are complete.
#
# Choose a *potential* $\psi_t(x)$, a guess of the reward to come, with $\psi_0 = \lambda r$, and a proposal $q$ for the step from $t$ to
# $s$. At the start $T$ of the sampler a particle has the weight $e^{\psi_T}$. Each step changes it by
#
# $$\log w \mathrel{+}= \psi_s(x_s) - \psi_t(x_t) + \log\frac{p_{\mathrm{base}}(x_s \mid x_t)}{q(x_s \mid x_t)},$$ (eq-rivals-smc)
#
# and when the effective sample size falls below $n/2$, the population is resampled. With the initial weight the sum telescopes to
# $\lambda r$ and a likelihood ratio. So any $\psi$ and $q$ give the tilt of the base's *sampler* as $n \to \infty$, with an error
# $O(n^{-1/2})$ {cite:p}`delmoral2006sequential`. Three choices:
#
# - **SMC, plug-in potential**: $\psi_t = \alpha_t^2\,\lambda r(\hat x_0(x, t))$, the reward of the predicted clean sample, tempered; $q$ is
#   the base's step. Forward evaluations only; {cite:t}`kim2025testtime` temper in the same way. Feynman–Kac steering
#   {cite:p}`singhal2025general` is this with potentials to choose from.
# - **Twisted**: the same potential, and $q$ moves along $\nabla\psi_t$ {cite:p}`wu2023practical`. Needs $\nabla r$.
# - **The exact value** $\psi_t = V_t$ of the next section, with and without the move. Nobody has it in practice; it can be learned by
#   regression {cite:p}`lu2023contrastive,uehara2024finetuning`.
#
# We measure the error against the exact mean of the tilt of the sampler's law.

# %%
value = exact_value(base, reward, schedule)
variants = {  # settings, and what else
    "no potential": ({"threshold": 0.0}, {"tempering": lambda t: 0.0}),
    "plug-in": ({}, {}),
    "plug-in, twisted": ({"twisted": True}, {}),
    "exact": ({}, {"potential": value}),
    "exact, twisted": ({"twisted": True}, {"potential": value}),
}


def populations(name, n, seed):
    knobs, more = variants[name]
    config = monte_carlo.SMCConfig(n=n, J=steps, **knobs)
    more = more | {"generator": seeded(seed), "dtype": torch.float64}
    run = monte_carlo.sequential_monte_carlo(exact, reward, schedule, config, **more)
    return list(run)


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

# %% tags=["hide-input"]
looks = {
    "no potential": (figures.COLORS["band"], "v", ":"),
    "plug-in": (figures.SERIES[0], "o", "-"),
    "plug-in, twisted": (figures.SERIES[2], "^", "-"),
    "exact": (figures.SERIES[3], "D", "--"),
    "exact, twisted": (figures.SERIES[1], "s", "-"),
}
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8))
    for name, (color, marker, line) in looks.items():
        at = [population.t for population in runs[name][middle][0]]
        along = np.mean([[population.ess / middle for population in run] for run in runs[name][middle]], 0)
        style = {"color": color, "marker": marker, "linestyle": line, "markersize": 5}
        left.plot(at, along, markevery=6, label=name, **style)
        right.plot(*zip(*errors[name].items(), strict=True), **style)
    guide = 0.6 * np.array(sizes, dtype=float) ** -0.5
    right.plot(sizes, guide, color=figures.INK, linewidth=0.8)
    right.text(sizes[1], 0.8 * guide[1], "slope $-1/2$", ha="right", va="top")
    left.set(xlabel="$t$", xlim=(1, -0.01), ylim=(0, 1.05), title="effective sample size / $n$")
    right.set(xscale="log", yscale="log", xlabel="particles, $n$", title="error of the mean")
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
    right.minorticks_off()
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
alt = "Left: effective sample size along the way. Without a potential it stays at one and collapses at the end; with potentials it "
alt += "oscillates between one half and one; with exact potential and twisted proposal it stays high. Right: errors fall with slope -1/2."
figures.show(fig, "smc", alt)

# %% [markdown]
# ```{glue:figure} smc
# :name: fig-rivals-smc
#
# Sequential Monte Carlo on `one-mode`, from noise ($t = 1$, left) to data. Left: effective sample size as a share of $n$, averaged over
# runs; a rise is a resampling. Right: root mean square error of the weighted mean against the exact tilt of the sampler's law.
# ```

# %% tags=["hide-input"]
rows, slopes = [], {name: linregress(*np.log(list(errors[name].items())).T).slope for name in measured}
for name in variants:
    last = [run[-1] for run in runs[name][middle]]
    often, kept = np.mean([p.resampled for p in last]), np.mean([p.ess for p in last]) / middle
    row = {"potential": name, "resampled": f"{often:.1f}", "ESS / n at the end": f"{kept:.2f}"}
    row |= {"error": f"{errors[name][middle]:.3f}"}
    rows.append(row | {"slope": f"{slopes[name]:.2f}" if name in slopes else "–"})
figures.table(rows)
if full:
    # 32 squares make an error. If they were Gaussian its logarithm would be known to 0.13 and the slope to 0.04; their tails are heavier.
    assert all(abs(slope_of + 0.5) < 0.16 for slope_of in slopes.values())
    assert errors["exact, twisted"][middle] < errors["plug-in"][middle] / 1.5
    assert errors["no potential"][middle] > 1.5 * errors["plug-in"][middle]
    assert all(errors[f"{name}, twisted"][middle] < errors[name][middle] for name in ("plug-in", "exact"))
assert not any(population.resampled for run in runs["exact, twisted"][middle] for population in run)
assert float(rows[3]["resampled"]) >= float(rows[1]["resampled"])  # the exact value without the move, and the plug-in

# %% [markdown]
# Sixteen runs of 800 particles; slopes over $n = 50$ to $3200$. Read the table from the bottom. With the exact value *and* the move along
# its gradient nothing has to be resampled. With the exact value and the base's own steps the population is resampled no less often than
# with a crude guess: a better judge does not make better moves. With either potential the move lowers the error, but needs a
# gradient.

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
# ### How near can Gaussian steps come?
#
# Weights reach the tilt $P^*$ of the base's chains. A model cannot: its steps are Gaussian, and those of $P^*$ are not, wherever a step
# leaves open in which mode the chain will end. With the weight $w$ of a path {eq}`eq-path-weight`, and the $Z_J$ of what the base draws in
# $J$ steps, a model's chains $P_\theta$ stay at
#
# $$\mathrm{KL}(P_\theta \,\|\, P^*) = \log Z_J - \mathbb E_\theta\big[\log w + \lambda r(x_0)\big] .$$ (eq-rivals-floor)
#
# The least value for steps of the base's variance follows by dynamic programming. Let $c_t(x)$ be the cost that is still to come. It starts
# from $-\lambda r(x_0)$ behind the noiseless last step. A step from $t$ to $s$ moves the base's mean by $u$ standard deviations, for
# $u^2/2$ nats:
#
# $$\begin{aligned}
#   c_t(x) &= \min_u \Big\{\tfrac12 u^2 + \mathbb E_z\big[c_s(m_{\mathrm{base}}(x) + \eta_s (u + z))\big]\Big\} , \\
#   \min_\theta \mathrm{KL} &= \log Z_J + \mathbb E[c_T(X_T)] .
#   \end{aligned}$$ (eq-rivals-bellman)


# %%
def log_Z(law, b):
    points, mass = law
    return float((mass * (b * points).exp()).sum().log())


def least_kl(law, b, J):
    """Least path KL of J Gaussian steps, in one dimension, for r(x) = b x."""
    denoiser, times = ExactNoisePredictor(law, schedule), time_grid(schedule, J)
    u = torch.linspace(-3, 3, 601)
    for s, t in pairwise(times):
        a, k, std = transition(schedule, s, t, 1.0)
        mean = a * grid + k * denoiser(grid[:, None], torch.tensor(t))[:, 0]
        if std == 0:  # the last step
            cost = -b * mean
            continue
        kernel = normal(grid, std)
        expected = cost @ kernel / kernel.sum(0)
        moved = np.interp(mean[:, None] + std * u, grid, expected)
        cost = (0.5 * u**2 + torch.from_numpy(moved)).min(1).values
    return log_Z(law_drawn(denoiser, J), b) + float(normal(0.0, 1.0)[:, 0] @ cost)


# %%
def kl_of_exact_score(J, n=4000 if full else 400):
    """Path KL of the chains of the tilt's exact score, and its standard error."""
    model = ExactNoisePredictor(target, schedule)
    how = {"steps": J, "generator": seeded(9), "dtype": torch.float64}
    x_0, log_w = path_log_weights(model, exact, schedule, n, **how)
    total = log_w + reward(x_0)
    laws = zip(coordinates(J), reward.b, strict=True)
    return sum(log_Z(law, b) for law, b in laws) - float(total.mean()), float(total.std()) / n**0.5


# %% tags=["hide-input"]
Js = (10, 20, 40, 80) if full else (10, 20)
by_score = {J: kl_of_exact_score(J) for J in Js}
least = {J: least_kl(pair, float(reward.b[0]), J) for J in Js}
alone = max(abs(least_kl(one, float(reward.b[1]), J)) for J in Js)
figures.check("one Gaussian alone: its tilt has Gaussian steps", alone, below=1e-3)
rows = [{"steps $J$": J, "least": f"{least[J]:.3f}"} for J in Js]
figures.table([row | {"exact score": "{:.2f} ± {:.2f}".format(*by_score[row["steps $J$"]])} for row in rows])
assert all(0.4 < least[2 * J] / least[J] < 0.65 for J in Js[:-1])
assert all(least[J] < by_score[J][0] / 3 for J in Js)

# %% [markdown]
# Path KL in nats. Twice the steps leave about half of the least. The exact score of the tilt leaves several times as much, because it is the
# answer for infinitely many steps. So zero is out of reach for every model that is judged by its paths, and *sampler's steps* in the last
# table means the least.
#
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
# For a mixture $V_t$ is $\log p_t^{\lambda r} - \log p_t^b$ up to a constant, so **exact guidance** of the exact base gives the exact
# denoiser of the tilt. The comparison runs it on learned bases, to show what a method could reach if only the base were to blame. The
# **plug-in value** $\lambda r(\hat x_0(x, t))$ {cite:p}`chung2023diffusion` is what one can have. It takes the exponential of a mean for
# the mean of an exponential.

# %%
t, paper = torch.tensor(0.5), parse_reward("paper")
x = target.noised(schedule, 0.5).sample(200, seeded(9))


def check(what, denoiser, goal, below=1e-10):
    gap = float((denoiser(x, t) - goal(x, t)).abs().max())
    figures.check(what, gap, below)


def by_plug_in(r):
    return guided(exact, plug_in_value(exact, r, schedule), schedule)


def one_tilt(x, t):
    return exact(x, t) - schedule.sigma(t) * base.covariance(x, t, schedule, reward)


of_target = ExactNoisePredictor(target, schedule)
of_paper = ExactNoisePredictor(base.tilted(paper), schedule)
closed_form = exactly_guided(exact, base, target, schedule)
check("exact value: the tilt", guided(exact, value, schedule), of_target)
check("its closed form: the tilt", closed_form, of_target, below=1e-12)
check("plug-in value: one first-order tilt", by_plug_in(reward), one_tilt)
check("plug-in value, the paper's reward: the tilt", by_plug_in(paper), of_paper)

# %% [markdown]
# The last two lines matter. For a linear reward $r(\hat x_0) = \mathbb E[r(X_0) \mid x]$, and the gradient of this is the covariance $C$ of
# {eq}`eq-3-9`. So **plug-in guidance by a linear reward is iterative tilting with $N = 1$**, at every $x$ and $t$, without training. On the
# paper's own task it is therefore *exact*, as every $N$ is. On `one-mode` it is not. The second coordinate is exact again; here is the
# first, without sampling.

# %%
pair_reward = QuadraticReward(reward.b[:1])
pair_exact, pair_target = ExactNoisePredictor(pair, schedule), pair.tilted(pair_reward)
pair_plug_in = plug_in_value(pair_exact, pair_reward, schedule)
drawn = {
    "exact value": law_drawn(ExactNoisePredictor(pair_target, schedule), eta=0.0),
    "plug-in value": law_drawn(guided(pair_exact, pair_plug_in, schedule), eta=0.0),
}

# %% tags=["hide-input"]
means = {name: float((points * mass).sum()) for name, (points, mass) in drawn.items()}
rows = []
for name, (points, mass) in drawn.items():
    spread = float(((points - means[name]) ** 2 * mass).sum()) ** 0.5
    rows.append({"guided by": name, "mean": means[name], "s.d.": spread, "mass below 0": float(mass[points < 0].sum())})
mean, left = float(pair_target.mean[0]), float((pair_target.log_prob(grid[:, None]).exp() * h)[grid < 0].sum())
spread = float(pair_target.weights @ (pair_target.means[:, 0] ** 2 + 0.5) - mean**2) ** 0.5
rows.append({"guided by": "the tilt itself", "mean": mean, "s.d.": spread, "mass below 0": left})
figures.table(rows, floatfmt=".3f")
assert abs(means["exact value"] - mean) < 0.01
assert abs(means["plug-in value"] - mean) > 0.2

# %% [markdown]
# ### Classifier-free guidance
#
# *Idea.* Extrapolate from an unconditional to a conditional denoiser {cite:p}`ho2022classifier`. With the noised laws $p_t(x)$ and
# $p_t(x \mid c)$,
#
# $$\begin{aligned}
#   \varepsilon_w &= (1 - w)\,\varepsilon_\varnothing + w\,\varepsilon_c \\
#   &= \varepsilon_\varnothing - \sigma_t\,\nabla_x\big[w \log p_t(c \mid x)\big].
#   \end{aligned}$$ (eq-rivals-cfg)
#
# It looks like the tilt by $r = \log p(c \mid x)$ with $\lambda = w$, that is, like sampling $p(x)\,p(c \mid x)^w$. Compare
# {eq}`eq-rivals-value`: since $p_t(c \mid x) = \mathbb E[p(c \mid X_0) \mid X_t = x]$, the bracket is $w \log \mathbb E[p(c \mid X_0)]$, where
# $V_t = \log \mathbb E[p(c \mid X_0)^w]$ is needed. The *power of the mean* stands for the *mean of the power*. They agree for $w = 0$ and
# $w = 1$ only, or where $X_t$ leaves no doubt about the class {cite:p}`bradley2024classifier`.
#
# A class with two modes shows what that does: it has modes at 0 and 2, and the rest of the data has one at $-2$. Both denoisers are
# exact, and no law below is sampled.

# %%
w, narrow = 3.0, torch.full((3, 1, 1), 0.25)
places = torch.tensor([[-2.0], [0.0], [2.0]])
everything = GaussianMixture(torch.tensor([0.5, 0.25, 0.25]), places, narrow)
of_class = GaussianMixture(torch.ones(2), places[1:], narrow[1:])
free = ExactNoisePredictor(everything, schedule)
conditional = ExactNoisePredictor(of_class, schedule)

log_all = everything.log_prob(grid[:, None])
log_c = of_class.log_prob(grid[:, None]) - log_all  # log p(c | x), up to a constant
wanted = torch.softmax(log_all + w * log_c, 0)  # p(x) p(c | x)^w, as masses


def true_value(x, t):
    """log E[p(c | X_0)^w | X_t = x], by quadrature over X_0."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    log_posterior = log_all - 0.5 * ((x - alpha * grid) / sigma).square()
    tilted = torch.logsumexp(log_posterior + w * log_c, 1)
    return tilted - torch.logsumexp(log_posterior, 1)


# %%
cfg = classifier_free(free, conditional, w)
by_value = guided(free, true_value, schedule)
laws = {
    "conditional model, w = 1": law_drawn(conditional, steps, eta=0.0),
    "classifier-free, no noise": law_drawn(cfg, steps, eta=0.0),
    "classifier-free, DDPM noise": law_drawn(cfg, steps, eta=1.0),
    "guided by the true value": law_drawn(by_value, steps, eta=0.0),
}

# %% [markdown]
# ### Learned guidance weights
#
# *Idea.* Keep the form {eq}`eq-rivals-cfg`, but let the weight depend on the times $t$ and $s$ of a step, and learn it.
# {cite:t}`galashov2025learn` make two noised versions of a clean sample at time $s$: one noised directly, the other noised further, to
# $t > s$, and brought back by one guided step. They train $\omega(s, t)$ so that both have the same law, by an energy distance, or are
# close in mean square. (They write $1 + \omega$ for our weight.)
#
# With exact ingredients the laws themselves can be compared. For each step of a sampler without noise, minimise over one number
#
# $$\omega(s, t) = \arg\min_\omega\ D\big(\text{one guided step from } p_t^w \text{ to } s,\ \ p_s^w\big),$$ (eq-rivals-learned)
#
# where $D$ is the energy distance and $p_t^w$ the noised version of $p(x)\,p(c \mid x)^w$. Nobody has such samples to train on.


# %%
def distribution_function(masses, t):
    """Of the noised version of a law, given as masses, on the grid."""
    alpha, sigma = (f(torch.tensor(t)) for f in (schedule.alpha, schedule.sigma))
    noised = normal(alpha * grid, sigma) @ masses if t > 0 else masses
    return (noised.cumsum(0) - noised / 2).numpy()


def learned_weights(masses, J):
    """Times and weights of J steps between the noised versions of a law."""
    times, weights = time_grid(schedule, J), []
    F = [distribution_function(masses, t) for t in times]
    for k in range(1, J + 1):
        a, b, _ = transition(schedule, times[k - 1], times[k], 0.0)
        time = torch.tensor(times[k])
        eps = [denoiser(grid[:, None], time)[:, 0] for denoiser in (free, conditional)]

        def energy_distance(omega, k=k, a=a, b=b, eps=eps):  # times two
            points, order = (a * grid + b * torch.lerp(*eps, omega)).sort()
            return np.square(np.interp(grid, points, F[k][order]) - F[k - 1]).sum() * h

        found = minimize_scalar(energy_distance, bounds=(-2, 8), method="bounded")
        weights.append(found.x)
    return np.array(times[1:]), np.array(weights)


# %%
at, omega = learned_weights(wanted, steps)


def guided_by_learned_weights(x, t):
    weight = float(np.interp(float(t), at, omega))
    return torch.lerp(free(x, t), conditional(x, t), weight)


by_learned = law_drawn(guided_by_learned_weights, steps, eta=0.0)
laws["classifier-free, learned weights"] = by_learned
of_c = torch.softmax(log_all + log_c, 0)  # for w = 1 there is nothing to correct
plain, coarse = learned_weights(of_c, steps), learned_weights(of_c, steps // 2)


# %% tags=["hide-input"]
def on_grid(law):
    """A density on the grid, from points in increasing order and their masses."""
    points, mass = (v.numpy() for v in law)
    return np.interp(grid, points, mass / np.gradient(points), left=0, right=0)


curves = {
    "$p(x\\mid c)$, $w = 1$": ("conditional model, w = 1", "band", "-"),
    "$w = 3$, no noise": ("classifier-free, no noise", "learned", "-"),
    "$w = 3$, DDPM noise": ("classifier-free, DDPM noise", "base", "--"),
    "learned weights": ("classifier-free, learned weights", "paper", "-."),
}
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.8), width_ratios=(1.5, 1))
    wide = {"color": figures.COLORS["target"], "alpha": 0.3, "linewidth": 0}
    left.fill_between(grid, wanted / h, label="$p(x)\\,p(c\\mid x)^3$", **wide)
    for label, (name, color, line) in curves.items():
        left.plot(grid, on_grid(laws[name]), color=figures.COLORS[color], linestyle=line, label=label)
    left.set(xlim=(-2.5, 4.2), ylim=(0, None), yticks=[], xlabel="$x$", title="what is drawn")
    left.legend(loc="upper left")
    right.axhline(w, color=figures.COLORS["learned"], label="constant")
    style = {"color": figures.COLORS["paper"], "linestyle": "-.", "marker": "D", "markersize": 4}
    right.plot(at, omega, markevery=4, label="learned, for $w = 3$", **style)
    grey = {"color": figures.COLORS["band"], "marker": "o", "markersize": 3.5}
    right.plot(*plain, markevery=(2, 4), label="learned, for $w = 1$", **grey)
    right.set(xlabel="$t$, from noise to data", xlim=(1, 0), ylim=(0, 4.4), title="weight")
    right.legend(loc="upper left", fontsize=9)
alt = "Left: the wanted density has two modes, like the class. Classifier-free guidance with weight three and no noise draws the outer mode "
alt += "only; with noise the inner mode is too small; with learned weights both are there. Right: the learned weights rise from 1 to almost 2."
figures.show(fig, "guidance", alt)

# %% [markdown]
# ```{glue:figure} guidance
# :name: fig-rivals-guidance
#
# Classifier-free guidance with exact denoisers. Left: at $w = 3$ the wanted density hardly differs from the class, since within the class
# $p(c \mid x)$ is nearly one. Guidance with a constant weight draws something else, which depends on the sampler's noise. Right: weights
# that carry the wanted law from step to step.
# ```

# %% tags=["hide-input"]
samplers = laws | {"**wanted**, $w = 3$": (grid, wanted)}
distance = {name: wasserstein_distance(law[0], grid, law[1], wanted) for name, law in samplers.items()}
rows = [
    {"sampler": name, "mean": float((mass * points).sum()), "mass below 1": float(mass[points < 1].sum())}
    | {"distance": distance[name]}
    for name, (points, mass) in samplers.items()
]
figures.table(rows, floatfmt=".3f")
points, mass = laws["conditional model, w = 1"]
floor = wasserstein_distance(points, grid, mass, of_c)
early, early_coarse = (np.abs(weights[times >= 0.5] - 1).max() for times, weights in (plain, coarse))
# What the sampler costs by itself, against what the method adds.
assert max(distance["guided by the true value"], distance["classifier-free, learned weights"]) < 2 * floor
assert min(distance["classifier-free, no noise"], distance["classifier-free, DDPM noise"]) > 5 * floor
assert early < 0.65 * early_coarse  # of first order in the step
figures.glue(steps_cost=f"{floor:.3f}", early=f"{early:.3f}")

# %% [markdown]
# Wasserstein distance to the wanted density. The 40 steps alone cost {glue:text}`steps_cost`: so far is what the conditional model draws
# from its own density. For $w = 1$ the learned weights stay within {glue:text}`early` of one for $t \ge 1/2$, and fall below it near the
# data, where they make up for coarse steps.
#
# A weight that depends on time alone cannot turn one direction field into another. On this toy it is good enough all the same. Its curve
# says where a constant weight goes wrong: at high noise, where hardly any extrapolation is right.

# %% tags=["hide-input"]
plug_in_gap = abs(means["plug-in value"] - means["exact value"])
verdicts(
    {
        "guided": (plug_in_gap < 0.05, f"mean of $x_1$ off by {plug_in_gap:.2f}; exact on the paper's task"),
        "exact": (abs(means["exact value"] - float(pair_target.mean[0])) < 0.01, "the closed form"),
    }
)
assert answered == set(needs_gradient)  # every method that trains nothing has had its turn

# %% [markdown]
# ## What each method needs
#
# *Ends at the tilt*: if nothing but the method is to blame. *Keeps*: what a training step, or a step of the sampler, remembers for a
# backward pass, in evaluations of the network ({doc}`s2_2_fine_tuning` measures it). *Left over*: the error that stays when network,
# optimiser and number of samples are perfect.

# %% tags=["hide-input"]
ON_CHAINS = ("recommended", "equal-steps", "at-once", "balance")  # all steps of a chain in one loss
keeps = dict.fromkeys(METHODS, "one")
keeps |= dict.fromkeys(ON_CHAINS, "all steps, each apart")
keeps |= {"draft": "all steps", "draft-kl": "all steps", "draft-5": "5 steps"}
keeps |= dict.fromkeys(("importance", "best", "smc", "exact"), "nothing")
keeps |= dict.fromkeys(("twisted", "guided"), "one, in $x$")
left_over = dict.fromkeys(("implicit", "reweighted", "sift", "smc", "twisted"), "none")
left_over |= dict.fromkeys(("tilting", "centred"), "$O(1/N)$")
left_over |= dict.fromkeys(("oneshot", "distilled", "importance"), "none; needs $n \\gg e^{D_2}$")
left_over |= dict.fromkeys((*ON_CHAINS, "value", "dpok-future", "draft-kl", "adjoint", "adjoint-kept"), "sampler's steps")
left_over |= dict.fromkeys(("ddpo", "draft", "draft-5", "draft-lv"), "runs away")
left_over |= {"dpok": "forgets later KLs", "best": "another law", "ram": "another law", "guided": "exp of a mean"}
left_over |= {"exact": "none; needs $V_t$"}
misses = ("runs away", "forgets later KLs", "another law", "exp of a mean")
assert left_over.keys() == METHODS.keys()
assert all((left_over[name] in misses) != method.exact for name, method in METHODS.items())
reaches = {name: "yes" if method.exact else "no" for name, method in METHODS.items()}
reaches |= dict.fromkeys(("tilting", "centred"), "as $N \\to \\infty$")
rows = [
    {"method": method.title, r"$\nabla r$": "yes" if method.gradient else "no", "ends at the tilt": reaches[name]}
    | {"keeps": keeps[name], "left over": left_over[name]}
    for name, method in METHODS.items()
]
figures.table(rows)

# %% [markdown]
# {doc}`b_recommended` derives what is *recommended here*. Of the methods that train with values of $r$ alone, the implicit form and the
# iterated weighted regression leave nothing over, and the first is less noisy in small tilts. Of those with a gradient, Adjoint Matching
# shares its optimum, in the limit of many steps, with DRaFT and a path KL, and keeps one evaluation instead of all steps. Weighted samples
# need no training, and pay with $n$. {doc}`rivals_comparison` asks what is left of this order when networks, budgets and samplers are
# finite.
#
# ## Try this
#
# - *Predict, then run.* Double $\lambda$. Which of best of $n$ and importance resampling notices?

# %% tags=["hide-cell"]
doubled = QuadraticReward(2 * reward.b)
how = {"candidates": candidates, "J": steps, "generator": seeded(8)}
again = monte_carlo.best_of_n(exact, doubled, schedule, len(best), **how)
assert torch.equal(again, best)
x, log_w = monte_carlo.importance(exact, reward, schedule, n=2_000, lam=2.0, J=steps, generator=seeded(7))
left = effective_sample_size(log_w)
print(
    f"Best of n keeps the very same samples: it knows ranks only. Importance resampling has {left:.1f} left of {len(x):,}."
)
assert left < 0.01 * len(x)

# %% [markdown]
# - *Predict, then run.* Classifier-free guidance with $w = \frac12$: is it wrong there too? (Hint: Jensen's inequality.)

# %% tags=["hide-cell"]
half = torch.softmax(log_all + 0.5 * log_c, 0)
points, mass = law_drawn(classifier_free(free, conditional, 0.5), eta=0.0)
off = wasserstein_distance(points, grid, mass, half)
print(f"Yes, the other way. Below -1, where the other class is, the wanted mass is {float(half[grid < -1].sum()):.2f};")
print(
    f"guidance draws {float(mass[points < -1].sum()):.2f}. (Distance {off:.2f}.) For w < 1 Jensen's inequality turns around."
)
assert off > 0.1

# %% [markdown]
# - *Derive.* {eq}`eq-rivals-best`. (Hint: $\int_0^1 n F^{n-1} \log F\, dF = -1/n$, by parts.)

# %% tags=["hide-cell"]
F = torch.linspace(0, 1, 1_000_001)[1:]
kept = candidates * F ** (candidates - 1)  # density of the survivor's F
by_quadrature = float(torch.trapezoid(kept * kept.log(), F))
figures.check("log n - (n - 1) / n, for n = 16", abs(by_quadrature - bound), below=1e-6)
