# ---
# jupyter:
#   itlib:
#     reads:
#     - _build/cache
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
# # Fewer steps, less bias
#
# The paper draws every dataset $D_k$ with 200 steps of DDPM. That is most of the time of a tilt, and the samples are still too narrow
# ({doc}`s2_1_2_reverse`), a bias that tilting passes on ({doc}`s3_2_algorithm`).
#
# **You will see** how many evaluations of the network other samplers need for the same error; why they must not start too close to
# $t = 1$; and whether the ranking survives when the exact denoiser is replaced by a trained one.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer samples and no trained network

# %%
import math
import warnings

import numpy as np
import pandas as pd
import torch
from torchdiffeq import odeint

from itlib import figures
from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.likelihood import velocity
from itlib.sampling import sample
from itlib.schedules import Cosine

warnings.filterwarnings("ignore", message="IProgress not found")
from diffusers.schedulers.scheduling_dpmsolver_multistep import (
    DPMSolverMultistepScheduler,
)

torch.set_num_threads(1)
full = profile == "full"
schedule, base = Cosine(), paper_mixture()
exact = ExactNoisePredictor(base, schedule)
n, seeds = 20_000 if full else 1000, range(3 if full else 2)

# %% [markdown]
# ## What is measured
#
# Samplers are compared on the paper's base, two modes of variance ½, with the exact denoiser, so that the sampler alone errs. The price is
# counted in evaluations of the denoiser.
#
# The error is the sliced Wasserstein distance to the exact law: project on a line, sort, compare quantile by quantile, and take the root mean
# square over 16 directions. This would mostly measure the coin flips between the modes. Base and samplers are symmetric, so we fold the
# plane: a sample with $x_1 < 0$ is replaced by $-x$. Weights are reported apart.

# %%
angles = torch.arange(16, dtype=torch.float64) * math.pi / 16
directions = torch.stack([angles.cos(), angles.sin()])  # (2, 16)


def fold(x):
    return torch.where(x[:, :1] < 0, -x, x)


def sorted_projections(x):
    return (fold(x.double()) @ directions).sort(0).values


# %%
many = base.sample(20 * n, torch.Generator().manual_seed(0))
exact_quantiles = sorted_projections(many)


def distance(x):
    """Sliced Wasserstein distance between folded samples and the exact law."""
    rows = (torch.arange(len(x)) + 0.5) / len(x) * len(exact_quantiles)
    gaps = sorted_projections(x) - exact_quantiles[rows.long()]
    return float(gaps.square().mean().sqrt())


# %% tags=["hide-cell"]
def of_exact_samples(n, first):
    """Distances of ten sets of n exact samples: the least that can be seen."""
    return [distance(base.sample(n, torch.Generator().manual_seed(first + seed))) for seed in range(10)]


floor = of_exact_samples(n, 100)
figures.glue(n=f"{n:,}", floor=f"{np.mean(floor):.4f} ± {np.std(floor, ddof=1):.4f}")

# %% [markdown]
# Ten sets of {glue:text}`n` exact samples are at a distance of {glue:text}`floor`. No sampler can be seen to be better.
#
# ## The samplers
#
# **Algorithm 1** with $\eta = 1$ (DDPM, the paper's), with $\eta = 0$ (DDIM), and with `variance="analytic"`, which puts back the variance that
# {eq}`eq-2-7` leaves out {cite}`bao2022analytic`.
#
# **The probability flow** ({doc}`s2_1_4_sde`) with two solvers of torchdiffeq: Heun's, and Dormand and Prince's, which chooses its
# steps. In time the flow has a singular rate at both ends. In the angle $\varphi$ with $\alpha_t = \cos\varphi$, $\sigma_t = \sin\varphi$ it has
# none, so that is the clock.
#
# **Multistep solvers** of diffusers: DPM-Solver++ {cite}`lu2022dpmpp`, of second order from one evaluation a step because it
# remembers the last one, and its stochastic form.
#
# The solvers of higher order start where $\alpha = 0.02$, from a standard normal. The reason comes below.

# %%
alpha_start = 0.02


def time_of(phi):
    """The time with alpha = cos(phi)."""
    s = schedule.s
    whole = math.cos(math.pi / 2 * s / (1 + s))
    return 1 - (1 + s) * 2 / math.pi * torch.asin(torch.cos(phi) * whole)


# %%
def flow(eps, x, steps=1, **options):
    """The probability flow in phi; an adaptive solver chooses its own steps."""
    last = torch.tensor(schedule.t_min, dtype=torch.float64)
    ends = math.acos(alpha_start), math.acos(float(schedule.alpha(last)))

    def rate(phi, x):
        t = time_of(phi)
        dt_dphi = -schedule.sigma(t) / schedule.alpha_dot(t)
        return velocity(eps, schedule, x, t) * dt_dphi

    phis = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    return odeint(rate, x, phis, **options)[-1]


# %%
def multistep(eps, x, steps, generator=None, start=alpha_start, T=1000, **options):
    """DPM-Solver++: its index k - 1 is the time t_k, uniform from 0 to the start."""
    end = time_of(torch.tensor(math.acos(start)).double())
    t = end * torch.arange(1, T + 1).double() / T
    squares = schedule.alpha(t) ** 2  # diffusers' alphas_cumprod
    betas = 1 - squares / torch.cat([torch.ones(1).double(), squares[:-1]])
    solver = DPMSolverMultistepScheduler(T, trained_betas=betas.numpy(), **options)
    solver.set_timesteps(steps)
    for k in solver.timesteps:
        x = solver.step(eps(x, t[int(k)]), k, x, generator=generator).prev_sample
    return x


# %% tags=["hide-cell"]
def algorithm_1(**options):
    return lambda eps, x, steps, g: sample(eps, schedule, len(x), steps=steps, generator=g, dtype=x.dtype, **options)


def heun(eps, x, steps, g):
    return flow(eps, x, steps=steps, method="heun2")


def dopri5(eps, x, tolerance, g):
    return flow(eps, x, method="dopri5", rtol=tolerance, atol=tolerance)


def stochastic(eps, x, steps, g):
    return multistep(eps, x, steps, g, algorithm_type="sde-dpmsolver++")


# %% tags=["hide-cell"]
METHODS = {  # how, and the budgets to try: steps, or tolerances
    "DDPM": (algorithm_1(eta=1.0), (10, 20, 50, 100, 200)),
    "DDIM": (algorithm_1(eta=0.0), (5, 10, 20, 50, 100, 200)),
    "analytic": (algorithm_1(eta=1.0, variance="analytic"), (5, 10, 20, 40, 80, 140)),
    "flow, Heun": (heun, (3, 5, 8, 10, 12, 20, 30)),
    "flow, dopri5": (dopri5, (1e-2, 1e-3, 5e-4, 1e-4, 1e-5)),
    "DPM++": (multistep, (5, 8, 12, 16, 20, 24, 30, 60)),
    "SDE-DPM++": (stochastic, (5, 8, 10, 12, 16, 24, 40, 80)),
}
if not full:
    METHODS = {name: (method, budgets[1:4]) for name, (method, budgets) in METHODS.items()}

# %% [markdown]
# ## Error against evaluations


# %%
def run(method, budget, seed, eps=exact, n=n):
    """Samples, and how often the denoiser was asked."""
    generator, calls = torch.Generator().manual_seed(seed), 0

    def counted(x, t):
        nonlocal calls
        calls += 1
        return eps(x, t)

    with torch.no_grad():
        x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        x = METHODS[method][0](counted, x, budget, generator)
    return x, calls


# %%
def judge(x):
    """Distance; variance of x_2 and, folded, of x_1; weight of the left mode."""
    left = float((x[:, 0] < 0).double().mean())
    return distance(x), float(x[:, 1].var()), float(fold(x)[:, 0].var()), left


# %%
rows = []
for name, (_, budgets) in METHODS.items():
    for budget in budgets:
        for seed in seeds:
            x, calls = run(name, budget, seed)
            rows.append((name, budget, calls, seed, *judge(x)))
columns = ["method", "budget", "calls", "seed", "error", "variance", "folded", "left"]
found = pd.DataFrame(rows, columns=columns)

# %% tags=["hide-input"]
mean = found.groupby(["method", "budget"], sort=False).mean().reset_index().sort_values(["method", "calls"])
paper = mean[mean["method"] == "DDPM"].iloc[-1]
panels = {
    "Algorithm 1": {"DDPM": "o", "DDIM": "s", "analytic": "^"},
    "higher order": {"flow, Heun": "s", "flow, dopri5": "D", "DPM++": "^", "SDE-DPM++": "v"},
}
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.9), sharex=True, sharey=True)
    for ax, (title, methods) in zip(axes, panels.items(), strict=True):
        for (name, marker), color in zip(methods.items(), figures.SERIES, strict=False):
            own = found[found["method"] == name].groupby("calls")["error"]
            middle = own.mean()
            ax.plot(middle.index, middle, color=color, marker=marker, markersize=4.5, label=name)
            ax.fill_between(middle.index, own.min(), own.max(), color=color, alpha=0.18, linewidth=0)
        ax.axhline(np.mean(floor), color=figures.INK, linewidth=0.8, linestyle=":")
        ax.axhline(paper["error"], color=figures.INK, linewidth=0.8, linestyle="--")
        ax.plot(paper["calls"], paper["error"], "*", color=figures.INK, markersize=11)
        ax.set(xscale="log", yscale="log", title=title, xlabel="evaluations")
        ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        ax.set_yticks([0.01, 0.03, 0.1, 0.3], ["0.01", "0.03", "0.1", "0.3"])
        ax.minorticks_off()
        ax.legend(loc="upper right", fontsize=9)
    axes[0].set_ylabel("sliced $W_2$")
text = "Error against evaluations on logarithmic axes. Algorithm 1 in all three forms falls slowly towards the level of exact samples. The solvers of higher order fall steeply and reach the level of the paper's 200 steps, marked by a star, with a fraction of the evaluations."
figures.show(fig, "evaluations", text)

# %% [markdown]
# ```{glue:figure} evaluations
# :name: fig-samplers-evaluations
#
# Sliced Wasserstein distance to the exact law against evaluations of the exact denoiser, mean and range over seeds. Star and dashed line: the
# paper's 200 steps of DDPM. Dotted: exact samples.
# ```


# %% tags=["hide-input"]
def reaches(name):
    """The first budget from which on all that were tried are at least as good as the paper's steps; None if there is none."""
    own = mean[mean["method"] == name]
    good = (own["error"] <= paper["error"])[::-1].cummin()[::-1]
    return own[good].iloc[0] if good.any() else None


# %% tags=["hide-input"]
rows, calls = [], {}
for name in METHODS:
    there = reaches(name)
    own = there if there is not None else mean[mean["method"] == name].iloc[-1]
    calls[name] = own["calls"] if there is not None else math.inf
    row = {"sampler": name, "evaluations": f"{own['calls']:.0f}" if there is not None else f"> {own['calls']:.0f}"}
    row |= {"error": own["error"], "var $x_2$": own["variance"], "var $x_1$": own["folded"], "left": own["left"]}
    rows.append(row)
figures.table(rows, floatfmt=("", "", ".4f", ".3f", ".3f", ".3f"))

# %% tags=["hide-cell"]
exact_folded = float(fold(base.sample(10 * n, torch.Generator().manual_seed(1)))[:, 0].var())
total = n * len(seeds)
figures.glue(
    folded=f"{exact_folded:.3f}", sd_variance=f"{0.5 * (2 / total) ** 0.5:.3f}", sd_weight=f"{0.5 / total**0.5:.3f}"
)
# %% tags=["hide-cell"]
higher = [calls[name] for name in panels["higher order"]]
figures.glue(slowest=f"{max(higher):.0f}", fastest=f"{min(higher):.0f}", fewer=f"{200 / min(higher):.0f}")
if full:
    assert max(higher) <= 60
    assert paper["variance"] < 0.49

# %% [markdown]
# Evaluations from which on a sampler is at least as good as the paper's 200 steps, and what it gives there. Exact: variance 0.5, folded
# variance of $x_1$ {glue:text}`folded`, left mode 0.5; standard errors {glue:text}`sd_variance` of a variance, {glue:text}`sd_weight` of the
# weight. All solvers of higher order are there by {glue:text}`slowest` evaluations, the cheapest with {glue:text}`fastest`:
# {glue:text}`fewer` times fewer than the paper's.
#
# - **Algorithm 1** is of first order, with noise and without, and lacks variance. Putting it back helps at few steps. It would be exact for one
#   isotropic Gaussian. Here the posterior is wide only between the modes; its mean width gives a sample inside a mode too much.
# - **Two evaluations a step** (Heun) and **one with a memory** (DPM-Solver++) come out alike: second order is what counts.
# - **The stochastic solver** gets worse before it gets better, as its variance crosses the right value from below and comes back from
#   above. A low error at such a crossing is luck, and we do not count it.
#
# ## Not too close to the start
#
# Every sampler turns $\hat x_1$ into $\hat x_0 = (x - \sigma\hat x_1)/\alpha$, and so multiplies its error by $\sigma/\alpha$, which is several hundred at
# the schedule's `t_max`. Fresh noise makes a sampler forget its first steps; a deterministic one remembers them. Here is an exact
# denoiser with an error of 0.01 added on purpose, in the second direction.


# %%
def slightly_wrong(x, t):
    return exact(x, t) + torch.tensor([0.0, 0.01], dtype=x.dtype)


# %%
edge = float(schedule.alpha(torch.tensor(schedule.t_max, dtype=torch.float64)))
x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ways = {
    f"DPM++ from {edge:.4f}": lambda eps: multistep(eps, x, 20, start=edge),
    f"DPM++ from {alpha_start}": lambda eps: multistep(eps, x, 20),
    "DDIM": lambda eps: run("DDIM", 20, 0, eps)[0],
    "DDPM": lambda eps: run("DDPM", 20, 0, eps)[0],
}
shifts = {}
for name, way in ways.items():
    shifts[name] = float((way(slightly_wrong) - way(exact))[:, 1].mean())

# %% tags=["hide-input"]
rows = [{"20 evaluations, from $\\alpha$": name, "shift of the mean": shift} for name, shift in shifts.items()]
figures.table(rows, floatfmt="+.3f")
edged, late, ddim, ddpm = (abs(v) for v in shifts.values())
assert min(edged, ddim) > 3 * max(late, ddpm)
figures.glue(moved=f"{max(edged, ddim):.2f}", times=f"{100 * max(edged, ddim):.0f}")

# %% [markdown]
# If nothing is forgotten, an error of 0.01 moves the samples by up to {glue:text}`moved`, {glue:text}`times` times as much. So a
# deterministic sampler should start at a moderate $\alpha$. Little is lost: at $\alpha = 0.02$ the law of $X_t$ is a standard normal to within
# a few hundredths in the mean of its modes.
#
# ## A trained network
#
# Now the denoiser is the base network of the paper's experiment ({doc}`s1_introduction`), whose errors no sampler can mend. DPM-Solver++ is
# started twice, once later still.


# %%
def later(eps, x, steps, g):
    return multistep(eps, x, steps, start=0.1)


chosen = ("DDPM", "analytic", "SDE-DPM++", "DPM++")
samplers = {name: METHODS[name][0] for name in chosen}
samplers["DPM++ from 0.1"] = later
budgets = dict(zip(samplers, (200, 80, 40, 30, 30), strict=True))
few = 2000  # for each seed: a network costs more than a formula

# %%
trained = {}
if full:
    work = profile_named(profile)
    for state in resumable_base(base, schedule, work.training, n=work.n, seed=0):
        pass  # trains the base network, or finds it trained

    def learned(x, t):
        return state.model(x.float(), torch.as_tensor(t).float()).to(x)

    for name, draw in samplers.items():
        parts = []
        for seed in seeds:
            g = torch.Generator().manual_seed(seed)
            x = torch.randn(few, 2, generator=g, dtype=torch.float64)
            with torch.no_grad():
                parts.append(draw(learned, x, budgets[name], g))
        trained[name] = judge(torch.cat(parts))

# %% tags=["hide-input"]
heads = ("error", "var $x_2$", "var $x_1$", "left")
rows = [{"sampler": name, "evaluations": budgets[name]} | dict(zip(heads, v, strict=True)) for name, v in trained.items()]
exactly = of_exact_samples(few * len(seeds), 200)
figures.glue(few=f"{few:,}", exactly=f"{np.mean(exactly):.3f} ± {np.std(exactly, ddof=1):.3f}")
if full:
    figures.table(rows, floatfmt=("", ".0f", ".3f", ".3f", ".3f", ".3f"))
    spread = np.std(exactly, ddof=1)
    assert trained["DPM++"][0] > trained["DPM++ from 0.1"][0] + 3 * spread
    assert trained["DPM++"][0] > trained["SDE-DPM++"][0] + 3 * spread
    assert abs(trained["SDE-DPM++"][0] - trained["DDPM"][0]) < 4 * spread
    assert min(v[1] for v in trained.values()) > paper["variance"] + 0.01  # the network is too wide

# %% [markdown]
# Three seeds of {glue:text}`few` samples, pooled; one training. Exact samples: {glue:text}`exactly`. The ranking does *not* survive.
#
# - DPM-Solver++, among the most accurate above, is now the worst. Started at $\alpha = 0.02$ it carries the network's errors at high noise
#   to the end, as its wide samples show. Started at 0.1 it is much better. An accurate solver of an inaccurate flow is not an accurate
#   sampler.
# - The stochastic ones forget these errors. SDE-DPM++ with a fifth of the evaluations comes close to the paper's 200 steps.
# - All samples are wider than with the exact denoiser, by the network's fault. DDPM is narrower than the rest by about what it
#   lost above. Its first place is partly luck: two errors with opposite signs.
#
# **For the tilts,** few noisy steps of a higher order are a safe saving. Deterministic ones save more, and need a late start and an eye on
# the variance. In a chain of tilts the sign of a bias can matter more than its size; this chapter does not measure that.
#
# ## Try this
#
# - *Predict, then run.* DPM-Solver++ has orders 1 to 3: `solver_order`. Which sampler is order 1? Does order 3 pay?

# %% tags=["hide-cell"]
x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
rows = []
for order in (1, 2, 3):
    row = {"order": order}
    for steps in (10, 16, 24):
        row[f"{steps} steps"] = distance(multistep(exact, x, steps, solver_order=order))
    rows.append(row)
figures.table(rows, floatfmt=("g", ".4f", ".4f", ".4f"))
assert rows[0]["16 steps"] > 2 * rows[1]["16 steps"]
print(f"Order 1 is DDIM. In 10 steps on its own grid Algorithm 1 without noise has {distance(run('DDIM', 10, 0)[0]):.4f}.")

# %% [markdown]
# - *Implement.* Stretch the samples of 50 DDPM steps, in each mode, until their variances are right. Is the distance right as well?

# %% tags=["hide-cell"]
x, _ = run("DDPM", 50, 0)
folded = fold(x)
factor = (torch.tensor([exact_folded, 0.5]).double() / folded.var(0)).sqrt()
stretched = (folded - folded.mean(0)) * factor + folded.mean(0)
print(f"Not quite: {distance(x):.4f} before, {distance(stretched):.4f} after; the rest is in the means and in the shape.")
print("And the two variances had to be known.")
assert distance(stretched) < distance(x)
