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
# # 2.1.3 Score, denoiser and training
#
# A diffusion model needs one function, the score of the noised law. Section 2.1.3 of the paper says that it is a conditional mean,
# and that a regression learns conditional means. Two regressions are on offer. They have the same answer, and weigh its errors
# differently.
#
# **You will see** the score computed in five ways that agree; why a prediction of the clean point says nothing of the score near $t = 0$,
# and a prediction of the noise nothing of the clean point near $t = 1$; the loss of a perfect network, to ten digits; networks
# trained on the two losses; and a map of where the trained base can be trusted. The tilted target lives where it cannot.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points and hardly trains

# %% tags=["remove-cell"]

import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from itlib import figures
from itlib.experiments.checkpoints import profile as profile_named
from itlib.experiments.checkpoints import resumable_base
from itlib.gaussian_mixture import ExactNoisePredictor, paper_mixture
from itlib.metrics import score_errors
from itlib.network import FromX0, Network
from itlib.rewards import parse_reward
from itlib.schedules import Cosine, add_noise, column
from itlib.tilting import tilt_path
from itlib.training import TrainingConfig, regression_step, train_noise_predictor

torch.set_num_threads(1)
full = profile == "full"

# %% [markdown]
# ## The score is a conditional mean
#
# The density of $X_t = \alpha_t X_0 + \sigma_t X_1$ is $p_t(x_t) = \mathbb E\,[q_{t|0}(x_t \mid X_0)]$. Its logarithm has the
# gradient
#
# $$\nabla_{x_t} \log p_t(x_t) = \mathbb E\big[\nabla_{x_t} \log q_{t|0}(x_t \mid X_0) \,\big|\, X_t = x_t\big]
#   = -\frac{\hat x_1(x_t, t)}{\sigma_t} \qquad (t > 0). \tag{2.8}$$ (eq-2-8)
#
# *The first equality* is Fisher's identity. Differentiate under the expectation, use $\nabla q = q\, \nabla \log q$ and divide by
# $p_t$: what is left in front of $\nabla \log q$ is the posterior. {doc}`s3_1_tilted_score` does it line by line, for the tilted law
# too. *The second equality* needs no expectation. The kernel is Gaussian, and given $X_t = x_t$ the noise is a
# function of $X_0$. So for each sample, and hence on average,
#
# $$\nabla_{x_t} \log q_{t|0}(x_t \mid X_0) = -\frac{x_t - \alpha_t X_0}{\sigma_t^2} = -\frac{X_1}{\sigma_t}.$$ (eq-kernel-score)
#
# Solved for the clean point, {eq}`eq-2-8` is Tweedie's formula: the score tells where the clean point is expected,
#
# $$\alpha_t\, \hat x_0(x_t, t) = x_t + \sigma_t^2\, \nabla \log p_t(x_t).$$ (eq-tweedie)
#
# Here is a picture of that, at a point between the two modes of the paper's base.

# %%
schedule, base = Cosine(), paper_mixture()
exact = ExactNoisePredictor(base, schedule)  # the true x1_hat


def clock(t):
    return torch.as_tensor(t, dtype=torch.float64)


def at(t):
    return float(schedule.alpha(clock(t))), float(schedule.sigma(clock(t)))


def kernel_score(x_t, x_0, t):
    alpha, sigma = at(t)
    return (alpha * x_0 - x_t) / sigma**2


t, x_t = 0.4, torch.tensor([[0.35, 1.1]], dtype=torch.float64)
alpha, sigma = at(t)
with torch.random.fork_rng(devices=[]):  # torch.distributions take no generator
    torch.manual_seed(3)
    x_0 = base.posterior(x_t, clock(t), schedule).sample((60,))[:, 0]
landing = x_t + sigma**2 * kernel_score(x_t, x_0, t)  # alpha x_0, by (2.2)
assert torch.allclose(landing, alpha * x_0, rtol=0, atol=1e-12)
mean_landing = x_t + sigma**2 * base.score(x_t, clock(t), schedule)

# %% tags=["hide-input"]
xs, ys = np.linspace(-3.4, 3.4, 137), np.linspace(-2.3, 2.6, 99)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
density = base.noised(schedule, t).log_prob(plane).exp().reshape(len(ys), len(xs)).numpy()
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(6.2, 3.9))
    ax.contour(xs, ys, density, levels=6, colors=figures.COLORS["band"], linewidths=0.7)
    for point in landing:
        ax.plot(*zip(x_t[0].tolist(), point.tolist(), strict=True), color=figures.COLORS["base"], linewidth=0.5, alpha=0.5)
    ax.plot(
        landing[:, 0],
        landing[:, 1],
        "o",
        color=figures.COLORS["base"],
        markersize=3.5,
        label=r"$\alpha_t X_0$, draws given $x_t$",
    )
    arrow = {"arrowstyle": "-|>", "color": figures.COLORS["learned"], "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", mean_landing[0].tolist(), x_t[0].tolist(), arrowprops=arrow)
    ax.plot([], [], color=figures.COLORS["learned"], linewidth=2.2, label=r"$\sigma_t^2$ times the score: their mean")
    ax.plot(*x_t[0].tolist(), "s", color=figures.INK, markersize=6, label="$x_t$")
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    fig.legend(loc="outside upper center", ncols=3, handletextpad=0.4)
figures.show(
    fig,
    "pull",
    "From one noised point between two modes, thin lines lead to draws of the clean point, most of them in the right mode. A thick "
    "arrow, the score, leads to their mean, which lies between the modes.",
)

# %% [markdown]
# ```{glue:figure} pull
# :name: fig-score-pull
#
# Tweedie's formula {eq}`eq-tweedie` at $t = 0.4$. Each thin line is a kernel score times $\sigma_t^2$: it ends at $\alpha_t$ times a clean point that
# $x_t$ may have come from. The score is their mean, and points at $\alpha_t \hat x_0$, where hardly any clean point lies. Grey: contours of $p_t$.
# ```
#
# Now the check. All the numbers below are scores at the same points $x_t \sim p_t$: the library's closed form; autograd through the
# log-density of the noised mixture; Fisher's mean by quadrature over $x_0$; {eq}`eq-tweedie` with the exact posterior mean; and Fisher's
# mean by *self-normalised Monte Carlo*, which knows $p_0$ only through samples. It draws $X_0 \sim p_0$ and weighs the draws by
# $w \propto q_{t|0}(x_t \mid X_0)$. With kernel scores $g_j$ and their weighted mean $\bar g$, its standard error is
# $(\sum_j w_j^2\, (g_j - \bar g)^2)^{1/2}$ by the delta method.

# %%
axis = torch.linspace(-9, 9, 601 if full else 301, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)
log_prior = base.log_prob(grid)
draws = base.sample(200_000 if full else 50_000, torch.Generator().manual_seed(1))


def fisher(x, x_0, log_weight, t):
    """Weighted mean of kernel scores at one point, its standard error if the x_0 are draws, and their effective number."""
    alpha, sigma = at(t)
    w = torch.softmax(log_weight - 0.5 * ((x - alpha * x_0) / sigma).square().sum(-1), 0)
    g = kernel_score(x, x_0, t)
    mean = w @ g
    return mean, (w**2 @ (g - mean) ** 2).sqrt(), float(1 / w.square().sum())


# %% tags=["hide-input"]
generator = torch.Generator().manual_seed(0)
rows = []
for t in (0.05, 0.2, 0.5, 0.8, 0.95):
    alpha, sigma = at(t)
    law = base.noised(schedule, t)
    x = law.sample(5, generator).requires_grad_()
    (autograd,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    x = x.detach()
    quadrature = torch.stack([fisher(p, grid, log_prior, t)[0] for p in x])
    posterior_mean = base.posterior(x, clock(t), schedule).mean
    tweedie = (alpha * posterior_mean - x) / sigma**2
    carlo, error, effective = zip(*(fisher(p, draws, torch.zeros(len(draws)), t) for p in x), strict=True)
    gaps = {
        "closed form": base.score(x, clock(t), schedule),
        r"$-\hat x_1/\sigma_t$": -exact(x, clock(t)) / sigma,
        "quadrature": quadrature,
        "Tweedie": tweedie,
    }
    gaps = {name: float((value - autograd).abs().max()) for name, value in gaps.items()}
    z = float(((torch.stack(carlo) - autograd) / torch.stack(error)).abs().max())
    assert max(gaps.values()) < 1e-9  # rounding, times 1 / sigma^2 < 200 at the smallest t
    assert z < 5  # 10 comparisons at each of 5 times: beyond 5 with probability 3e-5, and the ratio is close to normal
    row = {"$t$": f"{t:g}"} | {name: f"{value:.0e}" for name, value in gaps.items()}
    rows.append(row | {"Monte Carlo: worst $z$": f"{z:.1f}", "effective draws": f"{min(effective):,.0f}"})
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# Four columns give the largest difference from autograd. For Monte Carlo it is counted in standard errors, and the last column is
# $1/\sum_j w_j^2$ at the worst point. Near $t = 0$ few draws come close to $x_t$, near $t = 1$ almost all count.
#
# ## One function, three names
#
# Score, $\hat x_1$ and $\hat x_0$ are the same function in three units. {eq}`eq-2-6` and {eq}`eq-2-8` convert them. So errors
# convert as well: for any model, at the same $x_t$,
#
# $$\begin{aligned}
#   \hat x_1^\theta - \hat x_1 &= -\sigma_t\,(s_\theta - s), \\
#   \hat x_0^\theta - \hat x_0 &= -\frac{\sigma_t}{\alpha_t}\,(\hat x_1^\theta - \hat x_1) = \frac{\sigma_t^2}{\alpha_t}\,(s_\theta - s).
#   \end{aligned}$$ (eq-error-units)
#
# These are identities, but they multiply errors. A network that predicts the noise to within $e$ knows the clean point to within
# $e\,\sigma_t/\alpha_t$, which is no knowledge at all near $t = 1$. One that predicts the clean point to within $e$ knows the noise to within
# $e\,\alpha_t/\sigma_t$, and that fails near $t = 0$. Even rounding shows it. We convert there and back in single precision, with exact
# predictions at $x_t \sim p_t$.


# %%
def to_x0(x, x_1, t):
    return (x - column(schedule.sigma(t), x).to(x) * x_1) / column(schedule.alpha(t), x).to(x)  # (2.6)


def to_x1(x, x_0, t):
    return (x - column(schedule.alpha(t), x).to(x) * x_0) / column(schedule.sigma(t), x).to(x)


def rms(v):
    return float(v.double().square().sum(-1).mean().sqrt())


times = 1 / (1 + np.exp(-np.linspace(-np.log(999), np.log(999), 49)))  # 0.001 to 0.999, dense at both ends
round_trips = []
for t in times:
    x = base.noised(schedule, t).sample(2000, torch.Generator().manual_seed(2))
    x_1, x_0 = exact(x, clock(t)), base.posterior(x, clock(t), schedule).mean
    assert torch.allclose(to_x1(x, x_0, clock(t)), x_1, rtol=0, atol=1e-11)  # two closed forms; rounding over sigma >= .006
    assert torch.allclose(to_x0(x, x_1, clock(t)), x_0, rtol=0, atol=1e-11)  # ... over alpha >= .0016
    nudge = torch.tensor([3e-3, -4e-3], dtype=torch.float64)  # an error of size .005, converted
    assert abs(rms(to_x0(x, x_1 + nudge, clock(t)) - x_0) / (5e-3 * at(t)[1] / at(t)[0]) - 1) < 1e-6
    y, y_1, y_0 = x.float(), x_1.float(), x_0.float()
    there_and_back = to_x1(y, to_x0(y, y_1, clock(t)), clock(t)) - y_1, to_x0(y, to_x1(y, y_0, clock(t)), clock(t)) - y_0
    round_trips.append([rms(v) for v in there_and_back] + [rms(x)])
round_trips = np.array(round_trips)
alphas, sigmas = np.array([at(t) for t in times]).T
unit = 2.0**-24  # relative rounding error of single precision, at most
for error, divisor in ((round_trips[:, 0], sigmas), (round_trips[:, 1], alphas)):
    ratio = error / (unit * round_trips[:, 2] / divisor)  # the intermediate is x_t / divisor, rounded once
    ends = divisor < 0.3
    assert (ratio[ends] > 0.1).all()  # a rounding error is a fraction of its bound on average ...
    assert (ratio < 3).all()  # ... and there are three operations

# %% tags=["hide-input"]
TICKS = ([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999], [".001", ".01", ".1", ".5", ".9", ".99", ".999"])


def logit_axis(ax):
    ax.set_xscale("logit")
    ax.set_xticks(*TICKS)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="$t$", xlim=(0.00085, 0.99915))


with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    for i, (values, label) in enumerate(
        (
            (sigmas / alphas, r"$\hat x_1$ to $\hat x_0$: $\sigma_t/\alpha_t$"),
            (alphas / sigmas, r"$\hat x_0$ to $\hat x_1$: $\alpha_t/\sigma_t$"),
            (1 / sigmas, r"$\hat x_1$ to score: $1/\sigma_t$"),
        )
    ):
        style = {
            "color": figures.SERIES[i],
            "linestyle": "-" if i < 2 else "--",
            "marker": figures.MARKERS[i],
            "markersize": 4.5,
        }
        left.plot(times, values, markevery=(4 * i, 12), label=label, **style)
    left.axhline(1, color=figures.INK, linewidth=0.6)
    left.set(yscale="log", ylabel="an error is multiplied by", ylim=(1e-3, 3e5))
    left.legend(loc="upper center", fontsize=9.5)
    for i, (column_, divisor, label) in enumerate(
        ((0, sigmas, r"$\hat x_1 \to \hat x_0 \to \hat x_1$"), (1, alphas, r"$\hat x_0 \to \hat x_1 \to \hat x_0$"))
    ):
        right.plot(times, round_trips[:, column_], figures.MARKERS[i], color=figures.SERIES[i], markersize=3.5, label=label)
        right.plot(times, unit * round_trips[:, 2] / divisor, color=figures.SERIES[i], linewidth=0.9)
    right.set(yscale="log", ylabel="error there and back, single precision", ylim=(1e-8, 3e-3))
    right.legend(loc="upper center")
    for ax in (left, right):
        logit_axis(ax)
figures.show(
    fig,
    "conversions",
    "Left: three factors against time. Noise to clean point explodes near one, clean point to noise and noise to score near zero. "
    "Right: round trips in single precision lose digits at the end where their second step divides by almost nothing.",
)

# %% [markdown]
# ```{glue:figure} conversions
# :name: fig-score-conversions
#
# Left: what a conversion does to an error {eq}`eq-error-units`. Right: the error (RMS) of converting there and back in single precision; the lines are
# $2^{-24}\,|x_t|$ divided by $\sigma_t$ and $\alpha_t$. Each conversion is safe in the middle and loses digits at one end.
# ```
#
# ## Two losses, one minimiser
#
# A network can regress either the clean point or the noise on $x_t = \alpha_t X_0 + \sigma_t X_1$:
#
# $$L_{X_0}(\theta) = \int_0^1 \mathbb E_{X_0 \sim p_0,\, X_1 \sim \mathcal N(0, I_d)}
#   \big\| \hat x_0^\theta(\alpha_t X_0 + \sigma_t X_1, t) - X_0 \big\|^2\, dt, \tag{2.9}$$ (eq-2-9)
#
# $$L_{X_1}(\theta) = \int_0^1 \mathbb E_{X_0 \sim p_0,\, X_1 \sim \mathcal N(0, I_d)}
#   \big\| \hat x_1^\theta(\alpha_t X_0 + \sigma_t X_1, t) - X_1 \big\|^2\, dt. \tag{2.10}$$ (eq-2-10)
#
# What is left over after the conditional mean, $X_1 - \hat x_1(X_t, t)$, is orthogonal to every function of $(X_t, t)$. So by
# Pythagoras the loss of *any* predictor $f$ is a part that training can remove, and one that nothing can:
#
# $$\mathbb E\,\|f(X_t, t) - X_1\|^2 = \underbrace{\mathbb E\,\|f(X_t, t) - \hat x_1(X_t, t)\|^2}_{\text{the gap}}
#   + \underbrace{\mathbb E\,\|X_1 - \hat x_1(X_t, t)\|^2}_{\text{the floor}},$$ (eq-score-pythagoras)
#
# and the same with $X_0$ and $\hat x_0$. The gap vanishes only at the conditional mean. We test this on three poor
# predictors and on the conditional mean itself. The two sides of {eq}`eq-score-pythagoras` are estimated on the same draws, and their difference must be zero
# within its own standard error.

# %%
n = 200_000 if full else 40_000
generator = torch.Generator().manual_seed(4)
x_0, x_1 = base.sample(n, generator), torch.randn(n, 2, generator=generator, dtype=torch.float64)
t = torch.rand(n, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, x_0, x_1, t)
a, s = (column(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
x1_hat = exact(x_t, t)
x0_hat = to_x0(x_t, x1_hat, t)
variances = torch.tensor([4.5, 0.5], dtype=torch.float64)  # of X_0, per coordinate: within plus between the modes


def squared(v):
    return v.square().sum(-1)


def estimate(values):
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


linear = x_t / (a**2 * variances + s**2)  # -score of a Gaussian with the moments of p_t
cases = {
    "(2.10)": (x_1, x1_hat, {"zero": 0 * x_t, "$x_t$ itself": x_t, "best linear": s * linear, "conditional mean": x1_hat}),
    "(2.9)": (
        x_0,
        x0_hat,
        {"zero": 0 * x_t, "$x_t$ itself": x_t, "best linear": a * variances * linear, "conditional mean": x0_hat},
    ),
}
rows = []
for loss, (truth, best, predictors) in cases.items():
    for name, f in predictors.items():
        total, gap = squared(f - truth), squared(f - best)
        mean, error = estimate(total - squared(best - truth) - gap)
        z = mean / error if error else 0.0
        assert abs(z) < 5  # six comparisons
        assert name == "conditional mean" or float((total - squared(best - truth)).mean()) > 0.05  # nothing beats the mean
        rows.append(
            {
                "loss": loss,
                "predictor": name,
                "its loss": f"{total.mean():.3f}",
                "gap": f"{gap.mean():.3f}",
                "$z$": f"{z:+.1f}",
            }
        )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# ### They weigh the score's errors differently
#
# Put {eq}`eq-error-units` into the two gaps:
#
# $$L_{X_1} - \text{floor} = \int_0^1 \sigma_t^2\; \mathbb E\,\|s_\theta - s\|^2\, dt, \qquad
#   L_{X_0} - \text{floor} = \int_0^1 \frac{\sigma_t^4}{\alpha_t^2}\; \mathbb E\,\|s_\theta - s\|^2\, dt .$$ (eq-score-weights)
#
# So {eq}`eq-2-10` is denoising score matching {cite:p}`hyvarinen2005estimation,vincent2011connection` with the weight $\sigma_t^2$, as the
# paper says. {eq}`eq-2-9` is too, with another weight, which dies faster at 0 and explodes at 1. The check disturbs
# the exact score by $e(x, t) = \alpha_t\, (1, -\tfrac12)$. Its square is $\tfrac54 \alpha_t^2$, which leaves two integrals over time.

# %%
nodes, node_weights = np.polynomial.legendre.leggauss(64)
nodes, node_weights = (nodes + 1) / 2, node_weights / 2  # on [0, 1]
alpha_n, sigma_n = np.array([at(t) for t in nodes]).T

e = a * torch.tensor([1.0, -0.5], dtype=torch.float64)
s_theta = base.score(x_t, t, schedule) + e
excess = {
    "(2.10)": squared(-s * s_theta - x_1) - squared(x1_hat - x_1),
    "(2.9)": squared((x_t + s**2 * s_theta) / a - x_0) - squared(x0_hat - x_0),
}
predicted = {"(2.10)": 1.25 * node_weights @ (sigma_n**2 * alpha_n**2), "(2.9)": 1.25 * node_weights @ sigma_n**4}
rows = []
for loss, values in excess.items():
    mean, error = estimate(values)
    assert abs(mean - predicted[loss]) < 5 * error
    rows.append(
        {"loss": loss, "excess, Monte Carlo": f"{mean:.4f} ± {error:.4f}", "the weighted integral": f"{predicted[loss]:.4f}"}
    )
assert abs(predicted["(2.10)"] - predicted["(2.9)"]) > 0.1  # the two weights are told apart
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# Without the factor $\alpha_t$ in $e$ the integral for {eq}`eq-2-9` would be infinite. A network whose *noise* prediction is off by a constant has
# an infinite loss {eq}`eq-2-9`, and one whose *clean* prediction is off by a constant an infinite loss {eq}`eq-2-10`. What is
# integrated is $\sigma_t^2/\alpha_t^2$ and $\alpha_t^2/\sigma_t^2$. Cut both ends of time off at $\tau$, and let $\tau$ fall:

# %%
rows, slopes = [], []
for tau in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
    u = np.linspace(np.log(tau / (1 - tau)), -np.log(tau / (1 - tau)), 4001)  # t = 1 / (1 + exp(-u)), dt = t (1 - t) du
    time = 1 / (1 + np.exp(-u))
    alpha_u, sigma_u = (f(torch.from_numpy(time)).numpy() for f in (schedule.alpha, schedule.sigma))
    both = [float(np.trapezoid(w * time * (1 - time), u)) for w in ((sigma_u / alpha_u) ** 2, (alpha_u / sigma_u) ** 2)]
    slopes.append(both)
    rows.append(
        {
            r"$\tau$": f"{tau:.0e}",
            "(2.9), noise off by 1": f"{both[0]:,.0f}",
            "(2.10), clean point off by 1": f"{both[1]:.1f}",
        }
    )
slopes = np.array(slopes)
assert abs(slopes[-1, 0] / slopes[-2, 0] - 10) < 0.1  # like 1 / tau
assert abs((slopes[-1, 1] - slopes[-2, 1]) / (slopes[-2, 1] - slopes[-3, 1]) - 1) < 0.01  # like log(1 / tau)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% [markdown]
# The first diverges like $1/\tau$, the second like $\log(1/\tau)$: only thanks to the schedule's offset does $\sigma_t^2$ vanish like $t$ and
# not like $t^2$. Neither loss controls what the other one measures. The score error (4.13) of the paper has the same flaw at $t = 0$
# ({doc}`errata`, {ref}`item 12 <err-divergence>`).
#
# ### The floor, to ten digits
#
# A loss means nothing before one knows what the perfect network would get. Taking squares in {eq}`eq-2-8`, and with Pythagoras once
# more, the floor at one time is
#
# $$\begin{aligned}
#   \mathbb E\,\|X_1 - \hat x_1\|^2 &= d - \sigma_t^2\, \mathbb E\,\|\nabla \log p_t(X_t)\|^2, \\
#   \mathbb E\,\|X_0 - \hat x_0\|^2 &= \frac{\sigma_t^2}{\alpha_t^2}\; \mathbb E\,\|X_1 - \hat x_1\|^2 .
#   \end{aligned}$$ (eq-score-floor)
#
# For the paper's base the floor is an integral over one coordinate. Let $v_t = \alpha_t^2/2 + \sigma_t^2$. Given $X_t$, each component
# of the posterior has variance $\sigma_t^2/(2 v_t)$ per coordinate, and the two posterior means lie $4\sigma_t^2/v_t$ apart. The law of total
# variance adds what is within to what is between:
#
# $$\mathbb E\,\|X_0 - \hat x_0\|^2 = \frac{\sigma_t^2}{v_t} + \Big(\frac{4\sigma_t^2}{v_t}\Big)^2\, \mathbb E\,[w\,(1-w)],$$ (eq-score-floor-mixture)
#
# where $w = 1/(1 + \exp(-4\alpha_t X_{t,1}/v_t))$ is the probability that $x_t$ came from the right-hand mode, and $X_{t,1}$ its first coordinate.

# %%
h = 0.02
line = torch.arange(-12, 12, h, dtype=torch.float64)


def floors(t):
    """Least possible E||X_0 - f||^2 and E||X_1 - f||^2 at time t, for the paper's base."""
    alpha, sigma = at(t)
    v = alpha**2 / 2 + sigma**2
    density = sum(torch.exp(-((line - m * alpha) ** 2) / (2 * v)) for m in (-2, 2)) / (2 * (2 * np.pi * v) ** 0.5)
    w = torch.sigmoid(4 * alpha * line / v)
    unsure = float((density * w * (1 - w)).sum() * h)
    x0_floor = sigma**2 / v + (4 * sigma**2 / v) ** 2 * unsure
    return x0_floor, (alpha / sigma) ** 2 * x0_floor


per_node = np.array([floors(t) for t in nodes])
floor_x0, floor_x1 = node_weights @ per_node
coarse_nodes, coarse_weights = np.polynomial.legendre.leggauss(32)
coarse = coarse_weights / 2 @ np.array([floors((t + 1) / 2) for t in coarse_nodes])
assert np.abs(coarse - [floor_x0, floor_x1]).max() < 1e-10  # half the nodes give the same ten digits

for t_ in (0.1, 0.4, 0.8):  # the first form of the floor, by quadrature over the plane
    density = base.noised(schedule, t_).log_prob(grid).exp()
    fisher_information = float((density * squared(base.score(grid, clock(t_), schedule))).sum() * (axis[1] - axis[0]) ** 2)
    assert abs(2 - at(t_)[1] ** 2 * fisher_information - floors(t_)[1]) < 1e-9

rows = []
for loss, floor, values, nothing in (
    ("(2.9)", floor_x0, squared(x0_hat - x_0), r"5, that is $\mathbb E\,\lVert X_0 \rVert^2$"),
    ("(2.10)", floor_x1, squared(x1_hat - x_1), "2, that is $d$"),
):
    mean, error = estimate(values)
    assert abs(mean - floor) < 5 * error
    rows.append(
        {
            "loss": loss,
            "floor": f"{floor:.10f}",
            f"exact denoiser on {n:,} draws": f"{mean:.4f} ± {error:.4f}",
            "predicting zero": nothing,
        }
    )
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))

# %% tags=["hide-input"]
shown = np.linspace(0.001, 0.999, 200)
curves = np.array([floors(t) for t in shown])
alpha_s, sigma_s = np.array([at(t) for t in shown]).T
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    for i, (label, floor, weight) in enumerate(
        (
            ("$X_1$-prediction (2.10)", curves[:, 1], sigma_s**2),
            ("$X_0$-prediction (2.9)", curves[:, 0], sigma_s**4 / alpha_s**2),
        )
    ):
        style = {"color": figures.SERIES[2 * i], "linestyle": ("-", "--")[i], "label": label}
        left.plot(shown, floor, **style)
        right.plot(shown, weight, **style)
    left.set(xlabel="$t$", title="the floor at time $t$", ylim=(0, None))
    right.set(xlabel="$t$", yscale="log", title="weight of a squared score error", ylim=(1e-8, 1e6))
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
figures.show(
    fig,
    "floors",
    "Left: the noise is unpredictable at time zero and known at one, the clean point the other way round. Right: both losses give "
    "score errors little weight near zero; the clean-point loss explodes near one.",
)

# %% [markdown]
# ```{glue:figure} floors
# :name: fig-score-floors
#
# Left: the loss of a perfect network {eq}`eq-score-floor-mixture`, at each time. At $t = 0$ nothing is known of the noise, which costs
# $d = 2$; at $t = 1$ nothing is known of the clean point, which costs its variance, 5. Right: the weights of {eq}`eq-score-weights`; both
# losses ignore the score near $t = 0$.
# ```
#
# ## Two small trainings
#
# The integral over $t$ is a mean over $t \sim \mathrm{Unif}[0, 1]$, so one step of the training draws a time and a noise for each sample of a
# batch. This is all of it, for either loss, by hand and by the library:


# %%
def one_step(network, optimizer, x_0, generator, predict):
    """One step on (2.9) or (2.10); returns the loss, and what it was computed from."""
    t = torch.rand(len(x_0), generator=generator)
    x_1 = torch.randn(x_0.shape, generator=generator)
    x_t = add_noise(schedule, x_0, x_1, t)
    target = x_1 if predict == "x1" else x_0
    loss = (network(x_t, t) - target).square().sum(-1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach(), x_t, t, target


for predict in ("x1", "x0"):
    ours, theirs = Network(seed=0), Network(seed=0)
    by_hand, library = (torch.optim.Adam(network.parameters(), lr=1e-3) for network in (ours, theirs))
    loss, *batch = one_step(ours, by_hand, base.sample(512, generator).float(), generator, predict)
    assert torch.allclose(regression_step(theirs, library, *batch), loss, rtol=1e-5)
    probe = ours(batch[0], batch[1]).detach()
    assert torch.allclose(theirs(batch[0], batch[1]).detach(), probe, rtol=0, atol=1e-4)  # the same step, to rounding

# %% [markdown]
# ```{margin}
# The library scores a moving average of the weights. That is turned off here, so that loss and gap belong to
# the same network.
# ```
#
# Now train on both losses with the same budget: the paper's network at half its width, few epochs, the same data, initial
# weights, times and noises. Three seeds show how much is chance. After each epoch we note the loss on held-out samples,
# which is all that one would have in practice, and the gap of {eq}`eq-score-pythagoras`, which one has only here.

# %%
budget = {"samples": 20_000, "epochs": 20, "width": 128} if full else {"samples": 2000, "epochs": 6, "width": 64}
seeds = (0, 1, 2) if full else (0,)
few = slice(0, 20_000 if full else 4000)  # of the draws above
inputs = x_t[few].float(), t[few].float()
best = {"x1": x1_hat[few], "x0": x0_hat[few]}


def race(predict, seed):
    """Train one network; its held-out loss and its gap after each epoch."""
    data = base.sample(budget["samples"], torch.Generator().manual_seed(seed)).float()
    network, losses, gaps = Network(width=budget["width"], seed=seed), [], []
    config = TrainingConfig(epochs=budget["epochs"], batch_size=512 if full else 128, predict=predict, averaging=0.0)
    for step in train_noise_predictor(network, data, schedule, config, seed=seed):
        with torch.no_grad():
            gaps.append(float(squared(network(*inputs) - best[predict]).mean()))
        losses.append(step.validation_loss)
    return network, np.array(losses), np.array(gaps)


races = {(predict, seed): race(predict, seed) for predict in ("x1", "x0") for seed in seeds}
for _, losses, gaps in races.values():
    assert gaps[-1] < (0.1 if full else 0.5) * gaps[0]  # it is the conditional mean that they learn

# %% tags=["hide-input"]
NAMES = {"x1": "$X_1$-prediction (2.10)", "x0": "$X_0$-prediction (2.9)"}
LOOK = {"x1": (figures.SERIES[0], "-"), "x0": (figures.SERIES[2], "--")}
floor_of = {"x1": floor_x1, "x0": floor_x0}
held_out = budget["samples"] // 10
# Standard error of a floor on the held-out draws: four for each held-out sample, taken as independent.
spread = {
    "x1": float(squared(x1_hat - x_1).std()) / (4 * held_out) ** 0.5,
    "x0": float(squared(x0_hat - x_0).std()) / (4 * held_out) ** 0.5,
}
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    epochs = np.arange(1, budget["epochs"] + 1)
    for (predict, seed), (_, losses, gaps) in races.items():
        color, style = LOOK[predict]
        left.plot(epochs, losses, color=color, linestyle=style, linewidth=1, label=NAMES[predict] if seed == 0 else None)
        right.plot(epochs, gaps, color=color, linestyle=style, linewidth=1)
    for predict, floor in floor_of.items():
        left.axhline(floor, color=figures.INK, linewidth=0.7)
        left.axhspan(
            floor - 2 * spread[predict], floor + 2 * spread[predict], color=figures.COLORS["band"], alpha=0.3, linewidth=0
        )
    left.set(xlabel="epoch", title="held-out loss, and the floors", ylim=(0.8, 2.1 if full else 4))
    right.set(xlabel="epoch", yscale="log", title="the gap")
    for ax in (left, right):
        ax.locator_params(axis="x", integer=True)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
figures.show(
    fig,
    "race",
    "Left: both held-out losses fall within a few epochs to their floors and wander in the band of chance around them. Right: the gap, "
    "on a logarithmic scale, keeps falling.",
)

# %% [markdown]
# ```{glue:figure} race
# :name: fig-score-race
#
# Three seeds of each training. Left: loss on held-out samples. Lines: the floors; bands: two standard errors of a floor that is estimated on as many
# samples. Right: the gap. It keeps falling when the loss no longer shows it.
# ```

# %% tags=["hide-input"]
final = {predict: np.array([races[predict, seed][2][-1] for seed in seeds]) for predict in NAMES}
losses_std = float(squared(x1_hat - x_1).std())
needed_loss = (2 * losses_std / final["x1"].mean()) ** 2
display(
    Markdown(
        f"At the end the gap of the $X_1$-prediction is {final['x1'].mean():.4f}, the floor {floor_x1:.4f}, and a single draw of the loss has "
        f"standard deviation {losses_std:.1f}. To see such a gap in a *loss*, at two standard errors, one would need some {float(f'{needed_loss:.2g}'):,.0f} draws. So the "
        "loss of a trained network hardly says how good it is, and an early stopping that compares losses works only because all its epochs are scored on the "
        "same draws."
    )
)

# %% [markdown]
# Which network is better? That depends on the time. {py:class}`~itlib.network.FromX0` turns the clean-point network into a denoiser by
# {eq}`eq-2-6`, and then both can be held against the exact one.

# %%
denoisers = {
    (predict, seed): network if predict == "x1" else FromX0(network, schedule)
    for (predict, seed), (network, *_) in races.items()
}


def error_at(denoiser, t, law, n=4000, seed=5):
    """RMS error of x1_hat at one time, at noised samples of a law."""
    x = law.noised(schedule, float(t)).sample(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return rms(denoiser(x.float(), torch.tensor(float(t))) - exact(x, clock(t)))


every = 1 / (1 + np.exp(-np.linspace(-np.log(999), np.log(999), 41 if full else 13)))
by_time = {key: np.array([error_at(f, t, base) for t in every]) for key, f in denoisers.items()}
alpha_e, sigma_e = np.array([at(t) for t in every]).T
first, last = (np.array([by_time[p, s][i] for s in seeds]) for p, i in (("x1", 0), ("x0", -1)))
assert (np.array([by_time["x0", s][0] for s in seeds]) > 5 * first).all()  # clean-point networks lose at t = .001 ...
assert (np.array([by_time["x1", s][-1] for s in seeds]) > 5 * last).all()  # ... noise networks at t = .999

# %% tags=["hide-input"]
size = np.array(
    [rms(exact(base.noised(schedule, t).sample(4000, torch.Generator().manual_seed(5)), clock(t))) for t in every]
)
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5))
    for (predict, seed), values in by_time.items():
        color, style = LOOK[predict]
        left.plot(every, values, color=color, linestyle=style, linewidth=1.1, label=NAMES[predict] if seed == 0 else None)
        right.plot(every, values * sigma_e / alpha_e, color=color, linestyle=style, linewidth=1.1)
    left.plot(every, size, color=figures.INK, linewidth=0.8, linestyle=":", label=r"size of $\hat x_1$ itself")
    left.set(yscale="log", title=r"error of $\hat x_1$", ylim=(1e-4, 30))
    right.set(yscale="log", title=r"error of $\hat x_0$", ylim=(1e-4, 100))
    for ax in (left, right):
        logit_axis(ax)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
figures.show(
    fig,
    "by-time",
    "Error against time for both kinds of network. In units of the noise the clean-point network is hopeless near zero and excellent near "
    "one; in units of the clean point the noise network is hopeless near one. The curves cross in the middle.",
)

# %% [markdown]
# ```{glue:figure} by-time
# :name: fig-score-by-time
#
# The same networks in two units, RMS over $x_t \sim p_t$. Where a curve is above the dotted line, predicting zero noise would have been
# better. Each network's error varies least in the units of its own target; in the other's it is multiplied by the factor of
# {numref}`fig-score-conversions`.
# ```

# %% tags=["hide-input"]
rows = []
for predict, name in NAMES.items():
    row = {"trained on": name}
    for label, low, high in (
        ("$t < 0.1$", 0, 0.1),
        ("$0.1$ to $0.5$", 0.1, 0.5),
        ("$0.5$ to $0.9$", 0.5, 0.9),
        ("$t > 0.9$", 0.9, 1),
    ):
        inside = (t[few] >= low) & (t[few] < high)
        values = []
        for seed in seeds:
            with torch.no_grad():
                values.append(rms((denoisers[predict, seed](*inputs) - best["x1"])[inside]))
        row[label] = f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"
    rows.append(row)
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(r"Error of $\hat x_1$, $t$ uniform in each range: mean over the seeds, and the range from least to largest.")
)

# %% [markdown]
# Two things were changed at once here: the loss, and what the network's last layer stands for. *Try this* below separates them. What
# follows uses $X_1$-prediction, as the paper does. It has two weak ends. Near $t = 1$ its $\hat x_0$ is useless: one more reason why
# Algorithm 1, which divides by $\alpha_t$, cannot start at $t = 1$ ({doc}`s2_1_2_reverse`). And near $t = 0$ the exact $\hat x_1$ is so small, about
# $\sigma_t$ times a fixed score, that an error which looks harmless in the loss exceeds it.
#
# ## Where can the base be trusted?
#
# Now the network of the experiment: the paper's size and number of samples, up to 200 epochs, seed 0. Its training has a page of its own
# (*The base model*), with a map at one time. Here we ask about all times, and about two kinds of places:
# where the base's own noised samples are, and where those of the *target* are.

# %%
target = base.tilted(parse_reward("paper"))
if full:
    work = profile_named(profile)
    for state in resumable_base(base, schedule, work.training, n=work.n, seed=0):
        pass
    network = state.model
else:
    network = races["x1", 0][0]

repeats, each = (10, 2000) if full else (4, 500)


def with_error(denoiser, law, kind="eps_rmse"):
    """An error over all times with its standard error, from independent repeats."""
    squares = [
        getattr(score_errors(denoiser, law, schedule, n=each, seed=i, truth=exact), kind) ** 2 for i in range(repeats)
    ]
    value = np.mean(squares) ** 0.5
    return value, np.std(squares, ddof=1) / repeats**0.5 / (2 * value)


laws = {"base": base, "target": target}
table = {(name, kind): with_error(network, law, kind) for name, law in laws.items() for kind in ("eps_rmse", "score_rmse")}
at_time = {name: np.array([error_at(network, t, law) for t in every]) for name, law in laws.items()}
distance = (target.means - base.means)[0, 1] / base.covariances[0, 1, 1].sqrt()  # in standard deviations of a mode
beyond = float(torch.special.ndtr(-distance))
assert not full or table["target", "eps_rmse"][0] > table["base", "eps_rmse"][0] + 5 * table["target", "eps_rmse"][1]

# %% tags=["hide-input"]
rows = [
    {"at noised samples of": f"the {name}"}
    | {
        label: "{:.{digits}f} ± {:.{digits}f}".format(*table[name, kind], digits=digits)
        for kind, label, digits in (
            ("eps_rmse", r"error of $\hat x_1$ (RMSE)", 4),
            ("score_rmse", "error of the score (RMSE)", 2),
        )
    }
    for name in laws
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
words = [
    f"A mode of the target lies {distance:.1f} standard deviations above a mode of the base. A clean sample of the base lies that high with "
    f"probability {beyond:.4f}, and half of the target is higher still."
]
if full:
    kept, lowest = int(np.argmin(state.trace)) + 1, min(state.trace)
    trained_on = work.n - round(work.training.validation_fraction * work.n)
    words.append(
        f"Of the {trained_on:,} samples that the network was trained on, some {trained_on * beyond:.0f} show it what is there. The training ran "
        f"{state.done} epochs and kept number {kept}, for its held-out loss of {lowest:.4f}. The floor is {floor_x1:.4f}, and the gap of this network "
        f"{table['base', 'eps_rmse'][0] ** 2:.4f}; the rest is how easy the held-out draws happen to be."
    )
    if state.done < work.training.epochs:
        rate = 0.5 + 0.5 * np.cos(np.pi * state.done / work.training.epochs)
        words.append(
            f"No later epoch came below that figure, so the training stopped, its learning rate still at {rate:.0%} of where it started. What is "
            "scored and kept is a moving average of the weights, which jitters less than the weights do at such a rate."
        )
worthless = every[at_time["base"] > size]
if len(worthless):
    words.append(
        rf"At the smallest times the score is worthless even at the base's own samples: at $t = {worthless.max():.3f}$ and below, the error of "
        r"$\hat x_1$ is larger than $\hat x_1$ itself."
    )
display(Markdown(" ".join(words)))

# %% [markdown]
# The map shows a vertical cut through the right-hand mode, at all times.

# %%
heights = np.linspace(-4, 5, 121 if full else 41)
cut_times = np.linspace(0.002, 0.998, 121 if full else 31)
error_map = np.empty((len(heights), len(cut_times)))
for j, t_ in enumerate(cut_times):
    x = torch.from_numpy(np.stack([np.full_like(heights, 2 * at(t_)[0]), heights], 1))
    with torch.no_grad():
        error_map[:, j] = squared(network(x.float(), torch.tensor(float(t_))) - exact(x, clock(t_))).sqrt().numpy()

# %% tags=["hide-input"]
alpha_c, sigma_c = np.array([at(t) for t in cut_times]).T
spread_c = np.sqrt(alpha_c**2 / 2 + sigma_c**2)
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), width_ratios=(1.35, 1))
    image = left.pcolormesh(
        cut_times,
        heights,
        np.log10(error_map.clip(1e-3)),
        cmap="viridis",
        vmin=-2,
        vmax=0,
        rasterized=True,
        shading="gouraud",
    )
    for middle, style, name in ((0 * alpha_c, "-", "base"), (2 * alpha_c, "--", "target")):
        for sign in (-1, 1):
            left.plot(cut_times, middle + 2 * sign * spread_c, color="white", linewidth=1.1, linestyle=style)
        left.text(0.03, middle[0], name, color="white", va="center", fontsize=11)
    left.set(xlabel="$t$", ylabel="$x_2$, at $x_1 = 2\\alpha_t$", ylim=(-4, 5))
    bar = fig.colorbar(image, ax=left, extend="both", ticks=[-2, -1.5, -1, -0.5, 0], location="top", shrink=0.9, pad=0.02)
    bar.ax.set_xticklabels([".01", ".03", ".1", ".3", "1"])
    bar.set_label(r"error of $\hat x_1$")
    for name, style, marker in (("base", "-", "o"), ("target", "--", "s")):
        right.plot(
            every,
            at_time[name],
            color=figures.COLORS[name],
            linestyle=style,
            marker=marker,
            markersize=3.5,
            markevery=5,
            label=name,
        )
    right.set(yscale="log", ylabel=r"error of $\hat x_1$ (RMS)", ylim=(0.008, 0.5))
    right.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], [".01", ".02", ".05", ".1", ".2", ".5"])
    right.set_yticks([], minor=True)
    logit_axis(right)
    right.set_xticks([0.001, 0.01, 0.1, 0.5, 0.9, 0.99], [".001", ".01", ".1", ".5", ".9", ".99"])
    right.legend(title="at noised samples of the", loc="upper right")
figures.show(
    fig,
    "map",
    "Left: error of the trained base over height and time; dark where the base's noised samples are, bright above and below, and the "
    "band of the target reaches into the bright region at small times. Right: the error is larger at samples of the target, most at small times.",
)

# %% [markdown]
# ```{glue:figure} map
# :name: fig-score-map
#
# The trained base (seed 0) against its exact score. Left: a cut through one mode. Solid lines: two standard deviations of the noised base, dashed ones
# of the noised target. Right: RMS over $x_t$ from either law, at each time. At large $t$ noise has merged the two laws; at small $t$ the target
# lies where the base was not trained.
# ```
#
# ## Why this limits everything that follows
#
# Iterative tilting *adds* covariances $C_{k-1}$ to the base's score, in $N$ steps of $\delta = \lambda/N$ {eq}`eq-3-9`. Suppose that all
# of them were exact. For the paper's reward the small step has no remainder ({doc}`s3_1_tilted_score`), so the tilted model's error is
#
# $$\Big(\hat x_1^{\theta} - \sigma_t\,\delta \sum_{k=1}^N C_{k-1}\Big) - \hat x_1^{\lambda r} = \hat x_1^\theta - \hat x_1^b ,$$ (eq-score-inherited)
#
# the error of the *base* network, at the same point. But the points that count are now the target's.

# %%
reward, N = parse_reward("paper"), 20
path = tilt_path(base, reward, 1.0, N)


def ideally_tilted(x, t):
    """The base network plus exact covariances at each of N tilts."""
    moved = sum(path(k).covariance(x.double(), t.double(), schedule, reward) for k in range(N)) / N
    return network(x, t) - (column(schedule.sigma(t.double()), x) * moved).float()


after = score_errors(ideally_tilted, target, schedule, n=2000, seed=0).eps_rmse
before = score_errors(network, target, schedule, n=2000, seed=0, truth=exact).eps_rmse
assert abs(after - before) < 1e-4  # single precision
display(
    Markdown(
        f"Error after {N} ideal tilts, against the target's score, and of the base at the target's samples: {after:.4f} and "
        f"{before:.4f}. This is the *floor* of the {{doc}}`results <s4_2_results>`: better covariances cannot lower it, only a base that is better in its tails."
    )
)

# %% [markdown]
# ## Try this
#
# - The floor of the loss knows the *entropy* of the data. With the signal-to-noise ratio $\gamma = \alpha_t^2/\sigma_t^2$ as the
#   clock and $m(\gamma)$ for the floor of {eq}`eq-2-9` there, the entropy of $p_0$ is
#   $\frac d2 \log 2\pi e - \frac12 \int_0^\infty \big[\frac{d}{1+\gamma} - m(\gamma)\big]\, d\gamma$. Compare with `base.entropy()`.

# %% tags=["hide-cell"]
u = np.linspace(np.log(1e-9), np.log(1e9), 2001)  # t / (1 - t), from one end of time to the other
gamma, integrand = [], []
for t_ in 1 / (1 + np.exp(-u)):
    alpha, sigma = at(t_)
    gamma.append((alpha / sigma) ** 2)
    integrand.append(2 / (1 + gamma[-1]) - floors(t_)[0])
by_loss = np.log(2 * np.pi * np.e) + 0.5 * np.trapezoid(np.array(integrand) * gamma, np.log(gamma))  # gamma falls with t
assert abs(by_loss - base.entropy()) < 1e-4  # the schedule's offset makes the step in log gamma uneven
display(
    Markdown(
        f"From the floor: {by_loss:.5f} nats. By quadrature of $-\\log p$: {base.entropy():.5f}. The easier data are to denoise, the fewer nats "
        "they hold."
    )
)

# %% [markdown]
# - The floor holds for fresh samples. How low can a network get on the samples that it is *trained* on? The best predictor for a dataset is
#   the posterior mean with the dataset as the prior: a softmax over its points.

# %% tags=["hide-cell"]
size_of_set, m = (1000, 4000) if full else (100, 1000)
generator = torch.Generator().manual_seed(6)
dataset = base.sample(size_of_set, generator)
x_0 = dataset[torch.randint(size_of_set, (m,), generator=generator)]
t = torch.rand(m, generator=generator, dtype=torch.float64)
x_1 = torch.randn(m, 2, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, x_0, x_1, t)
a, s = (column(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
closeness = -0.5 * ((x_t[:, None] - a[:, None] * dataset) / s[:, None]).square().sum(-1)
memory = to_x1(x_t, torch.softmax(closeness, 1) @ dataset, t)
own, fresh = float(squared(memory - x_1).mean()), float(squared(exact(x_t, t) - x_1).mean())
assert own < fresh
display(
    Markdown(
        f"With {size_of_set:,} samples, memory reaches {own:.3f} where the exact denoiser has {fresh:.3f} on the same draws. Yet it is "
        rf"the wrong function, by {rms(memory - exact(x_t, t)):.2f} (RMS of $\hat x_1$). A training loss below the floor is no success: it means that the "
        "network recites. Algorithm 2 draws 1,000 samples for a tilt, and {doc}`s3_2_algorithm` shows what happens if it trains on them for long."
    )
)

# %% [markdown]
# - Weigh {eq}`eq-2-9` by $\alpha_t^2/\sigma_t^2$. Sample by sample it is now {eq}`eq-2-10` of the converted network. Does the
#   clean-point network then end where the noise network does?

# %% tags=["hide-cell"]
weighted = Network(width=budget["width"], seed=0)
data = base.sample(budget["samples"], torch.Generator().manual_seed(0)).float()
optimizer = torch.optim.Adam(weighted.parameters(), lr=1e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget["epochs"])
generator = torch.Generator().manual_seed(0)
for _ in range(budget["epochs"]):
    for batch in data[torch.randperm(len(data), generator=generator)].split(512 if full else 128):
        t = torch.rand(len(batch), generator=generator).clamp_min(schedule.t_min)  # as FromX0 does
        z = torch.randn(batch.shape, generator=generator)
        x = add_noise(schedule, batch, z, t)
        weight = column(schedule.alpha(t) / schedule.sigma(t), batch)  # inside the square
        regression_step(weighted, optimizer, x, t, batch, weight)
    decay.step()
with torch.no_grad():
    one, other = squared(weight * (weighted(x, t) - batch)), squared(FromX0(weighted, schedule)(x, t) - z)
assert torch.allclose(one, other, rtol=1e-3, atol=1e-3)  # the same loss, up to single precision over sigma

trained = {
    "clean point (2.9)": denoisers["x0", 0],
    "clean point, weighted": FromX0(weighted, schedule),
    "noise (2.10)": denoisers["x1", 0],
}
rows = [
    {"network": name} | {f"$t = {v:g}$": f"{error_at(f, v, base):.3f}" for v in (0.001, 0.01, 0.1, 0.5, 0.9)}
    for name, f in trained.items()
]
display(Markdown(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)))
display(
    Markdown(
        r"Errors of $\hat x_1$, one seed. The loss is the same as that of the noise network, and the result is not. What the last layer *stands for* matters "
        r"as much as the loss. For small noise this network must hit $x_t/\alpha_t$ to within a fraction of $\sigma_t$, and the huge weights there "
        "disturb its training everywhere else."
    )
)
