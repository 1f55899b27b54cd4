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
# and that a regression learns conditional means. Two regressions are on offer. They have the same answer, and they weigh its errors
# differently.
#
# **You will see** the score as a picture, computed in five ways that agree; networks trained on the two losses, and where each of them
# fails; and a map of where the trained base can be trusted. The tilted target lives where it cannot.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" uses fewer points and hardly trains

# %%
import numpy as np
import torch

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
# $p_t$: what is left in front of $\nabla \log q$ is the posterior. {doc}`s3_1_tilted_score` does it line by line. *The second equality* holds
# sample by sample, since the kernel is Gaussian and, given $X_t = x_t$, the noise is a function of $X_0$:
#
# $$\nabla_{x_t} \log q_{t|0}(x_t \mid X_0) = -\frac{x_t - \alpha_t X_0}{\sigma_t^2} = -\frac{X_1}{\sigma_t}.$$ (eq-kernel-score)
#
# Solved for the clean point, {eq}`eq-2-8` is Tweedie's formula. The score points to where the clean point is expected:
#
# $$\alpha_t\, \hat x_0(x_t, t) = x_t + \sigma_t^2\, \nabla \log p_t(x_t).$$ (eq-tweedie)

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


# %%
t, x_t = 0.4, torch.tensor([[0.35, 1.1]], dtype=torch.float64)
alpha, sigma = at(t)
with torch.random.fork_rng(devices=[]):  # torch.distributions take no generator
    torch.manual_seed(3)
    x_0 = base.posterior(x_t, clock(t), schedule).sample((60,))[:, 0]
landing = x_t + sigma**2 * kernel_score(x_t, x_0, t)
mean_landing = x_t + sigma**2 * base.score(x_t, clock(t), schedule)
gap = float((landing - alpha * x_0).abs().max())
figures.check("each line ends at alpha x_0", gap, below=1e-12)

# %% tags=["hide-input"]
xs, ys = np.linspace(-3.4, 3.4, 137), np.linspace(-2.3, 2.6, 99)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
density = base.noised(schedule, t).log_prob(plane).exp().reshape(len(ys), len(xs)).numpy()
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(5.1, 3.6))
    ax.contour(xs, ys, density, levels=6, colors=figures.COLORS["band"], linewidths=0.7)
    for point in landing:
        ax.plot(*zip(x_t[0].tolist(), point.tolist(), strict=True), color=figures.COLORS["base"], linewidth=0.5, alpha=0.5)
    ax.plot(*landing.T, "o", color=figures.COLORS["base"], markersize=3.5, label=r"$\alpha_t X_0$, draws given $x_t$")
    arrow = {"arrowstyle": "-|>", "color": figures.INK, "linewidth": 2.2, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", mean_landing[0].tolist(), x_t[0].tolist(), arrowprops=arrow)
    ax.plot([], [], color=figures.INK, linewidth=2.2, label=r"$\sigma_t^2$ times the score: their mean")
    ax.plot(*x_t[0].tolist(), "s", color=figures.INK, markersize=6, label="$x_t$")
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    fig.legend(loc="outside upper center", ncols=3, handletextpad=0.4)
text = "From one noised point between two modes, thin lines lead to draws of the clean point, most of them in the right mode. A thick "
figures.show(fig, "pull", text + "arrow, the score, leads to their mean, which lies between the modes.")

# %% [markdown]
# ```{glue:figure} pull
# :name: fig-score-pull
#
# Tweedie's formula {eq}`eq-tweedie` at $t = 0.4$. Each thin line is a kernel score times $\sigma_t^2$; it ends at $\alpha_t$ times a clean point that
# $x_t$ may have come from. The score is their mean, and points at $\alpha_t \hat x_0$, where hardly any clean point lies. Grey: contours of $p_t$.
# ```
#
# Now the check, at points $x_t \sim p_t$. Autograd through $\log p_t$ is compared with $-\hat x_1/\sigma_t$ of the library, with {eq}`eq-tweedie`, and with
# Fisher's mean in two forms: by quadrature over $x_0$, and by samples $X_0 \sim p_0$ with the weights $w \propto q_{t|0}(x_t \mid X_0)$. The last one knows
# $p_0$ only through samples, and has a standard error.

# %%
axis = torch.linspace(-9, 9, 601 if full else 301, dtype=torch.float64)
grid = torch.cartesian_prod(axis, axis)
log_prior = base.log_prob(grid)
draws = base.sample(200_000 if full else 50_000, torch.Generator().manual_seed(1))


def fisher(x, x_0, log_weight, t):
    """Weighted mean of kernel scores at x; its standard error if the x_0 are draws."""
    alpha, sigma = at(t)
    log_kernel = -0.5 * ((x - alpha * x_0) / sigma).square().sum(-1)
    w, g = torch.softmax(log_weight + log_kernel, 0), kernel_score(x, x_0, t)
    mean = w @ g
    return mean, (w**2 @ (g - mean) ** 2).sqrt()


# %%
generator, gaps, apart = torch.Generator().manual_seed(0), [], []
for t in (0.05, 0.2, 0.5, 0.8, 0.95):
    (alpha, sigma), law = at(t), base.noised(schedule, t)
    x = law.sample(5, generator).requires_grad_()
    (autograd,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    x = x.detach()
    x0_hat = base.posterior(x, clock(t), schedule).mean
    quadrature = torch.stack([fisher(p, grid, log_prior, t)[0] for p in x])
    others = (-exact(x, clock(t)) / sigma, (alpha * x0_hat - x) / sigma**2, quadrature)
    gaps.append([float((other - autograd).abs().max()) for other in others])
    for point, right in zip(x, autograd, strict=True):
        mean, error = fisher(point, draws, torch.zeros(len(draws)), t)
        apart.append(float(((mean - right) / error).abs().max()))
names = ("noise prediction", "Tweedie", "quadrature")
for name, gap in zip(names, np.max(gaps, 0), strict=True):
    figures.check(f"{name} and autograd agree", gap, below=1e-9)
figures.check("samples and autograd, standard errors apart", max(apart), below=5)

# %% [markdown]
# ### One function, three names
#
# *Reference: skip on a first reading.* Score, $\hat x_1$ and $\hat x_0$ are the same function in three units {eq}`eq-2-6`. So errors convert too, at the same $x_t$:
#
# $$\begin{aligned}
#   \hat x_1^\theta - \hat x_1 &= -\sigma_t\,(s_\theta - s), \\
#   \hat x_0^\theta - \hat x_0 &= -\frac{\sigma_t}{\alpha_t}\,(\hat x_1^\theta - \hat x_1) = \frac{\sigma_t^2}{\alpha_t}\,(s_\theta - s).
#   \end{aligned}$$ (eq-error-units)
#
# The factors matter at the ends. Near $t = 1$, where $\sigma_t/\alpha_t$ is large, a good prediction of the noise says nothing of the clean point. Near
# $t = 0$ a good prediction of the clean point says nothing of the noise.


# %%
def to_x0(x, x_1, t):  # (2.6)
    return (x - column(schedule.sigma(t), x) * x_1) / column(schedule.alpha(t), x)


def to_x1(x, x_0, t):
    return (x - column(schedule.alpha(t), x) * x_0) / column(schedule.sigma(t), x)


worst = 0.0
for time in map(clock, (0.001, 0.1, 0.5, 0.9, 0.999)):
    gap = to_x0(x, exact(x, time), time) - base.posterior(x, time, schedule).mean
    worst = max(worst, float(gap.abs().max()))
figures.check("x1_hat, converted, agrees with the posterior mean", worst, below=1e-11)

# %% [markdown]
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
# The residual of the conditional mean, $X_1 - \hat x_1(X_t, t)$, is orthogonal to every function of $(X_t, t)$. So by
# Pythagoras the loss of *any* predictor $f$ has a part that training can remove, and one that nothing can:
#
# $$\mathbb E\,\|f(X_t, t) - X_1\|^2 = \underbrace{\mathbb E\,\|f(X_t, t) - \hat x_1(X_t, t)\|^2}_{\text{the gap}}
#   + \underbrace{\mathbb E\,\|X_1 - \hat x_1(X_t, t)\|^2}_{\text{the floor}},$$ (eq-score-pythagoras)
#
# and the same with $X_0$ and $\hat x_0$. The gap vanishes only at the conditional mean. We test this on three poor predictors of the noise.

# %%
n, generator = 200_000 if full else 40_000, torch.Generator().manual_seed(4)
x_0 = base.sample(n, generator)
x_1 = torch.randn(n, 2, generator=generator, dtype=torch.float64)
t = torch.rand(n, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, x_0, x_1, t)
a, s = (column(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
x1_hat = exact(x_t, t)
x0_hat = to_x0(x_t, x1_hat, t)


# %%
def squared(v):
    return v.square().sum(-1)


def estimate(values):
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# %%
variances = torch.tensor([4.5, 0.5], dtype=torch.float64)  # of X_0: within + between
linear = s * x_t / (a**2 * variances + s**2)  # right for one Gaussian
predictors = {"zero": 0 * x_t, "$x_t$ itself": x_t, "best linear": linear}
predictors["conditional mean"] = x1_hat
rows, apart = [], [0.0]
for name, f in predictors.items():
    loss, gap, floor = squared(f - x_1), squared(f - x1_hat), squared(x1_hat - x_1)
    row = {"predictor of $X_1$": name, "loss (2.10)": float(loss.mean())}
    rows.append(row | {"gap": float(gap.mean())})
    if name != "conditional mean":
        mean, error = estimate(loss - gap - floor)
        apart.append(abs(mean) / error)
figures.table(rows, floatfmt=".3f")
figures.check("loss and gap + floor, standard errors apart", max(apart), below=5)
assert rows[3]["loss (2.10)"] < min(row["loss (2.10)"] for row in rows[:3])

# %% [markdown]
# ### They weigh the score's errors differently
#
# *Reference: skip on a first reading.* Put {eq}`eq-error-units` into the two gaps:
#
# $$L_{X_1} - \text{floor} = \int_0^1 \sigma_t^2\; \mathbb E\,\|s_\theta - s\|^2\, dt, \qquad
#   L_{X_0} - \text{floor} = \int_0^1 \frac{\sigma_t^4}{\alpha_t^2}\; \mathbb E\,\|s_\theta - s\|^2\, dt .$$ (eq-score-weights)
#
# So both are denoising score matching {cite:p}`hyvarinen2005estimation,vincent2011connection`, with different weights. To check, disturb the exact
# score by $\alpha_t\, (1, -\tfrac12)$, whose square is $\tfrac54 \alpha_t^2$.

# %%
nodes, node_weights = np.polynomial.legendre.leggauss(64)
nodes, node_weights = (nodes + 1) / 2, node_weights / 2  # on [0, 1]
alpha_n, sigma_n = np.array([at(t) for t in nodes]).T
s_theta = base.score(x_t, t, schedule) + a * clock([1.0, -0.5])
excess_x1 = squared(-s * s_theta - x_1) - squared(x1_hat - x_1)
excess_x0 = squared((x_t + s**2 * s_theta) / a - x_0) - squared(x0_hat - x_0)
integrals = {"(2.10)": 1.25 * sigma_n**2 * alpha_n**2, "(2.9)": 1.25 * sigma_n**4}
for loss, values in (("(2.10)", excess_x1), ("(2.9)", excess_x0)):
    mean, error = estimate(values)
    apart = abs(mean - node_weights @ integrals[loss]) / error
    figures.check(f"{loss}: excess and integral, standard errors apart", apart, below=5)

# %% [markdown]
# The second weight explodes at $t = 1$. A network whose *noise* prediction is off by a constant has an infinite loss {eq}`eq-2-9`; one whose *clean*
# prediction is off by a constant has an infinite loss {eq}`eq-2-10`. The score error (4.13) of the paper diverges in the same way at $t = 0$
# ({ref}`item 12 <err-divergence>` of the {doc}`errata`).

# %% tags=["hide-input"]
cut = []
for tau in (1e-4, 1e-5, 1e-6):  # both ends of time are cut off at tau
    u = np.linspace(np.log(tau / (1 - tau)), -np.log(tau / (1 - tau)), 4001)
    time = 1 / (1 + np.exp(-u))  # dt = t (1 - t) du
    ratio = (schedule.alpha(clock(time)) / schedule.sigma(clock(time))).numpy()
    cut.append([np.trapezoid(w * time * (1 - time), u) for w in (ratio**-2.0, ratio**2)])
cut = np.array(cut)
figures.check("(2.9) grows like 1 / tau: ten times a decade, but for", abs(cut[2, 0] / cut[1, 0] - 10), below=0.1)
steps = np.diff(cut[:, 1])
figures.check("(2.10) grows like log(1 / tau): equal steps, but for", abs(steps[1] / steps[0] - 1), below=0.01)

# %% [markdown]
# ### The floor
#
# *Reference: skip on a first reading.* A loss means nothing before one knows what the perfect network would get. For the paper's base this is an integral over one coordinate. Let $v_t = \alpha_t^2/2 + \sigma_t^2$. Given $X_t$, each
# component of the posterior has variance $\sigma_t^2/(2 v_t)$ per coordinate, and the two posterior means lie $4\sigma_t^2/v_t$ apart. The law of total
# variance adds what is within to what is between:
#
# $$\begin{aligned}
#   \mathbb E\,\|X_0 - \hat x_0\|^2 &= \frac{\sigma_t^2}{v_t} + \Big(\frac{4\sigma_t^2}{v_t}\Big)^2\, \mathbb E\,[w\,(1-w)], \\
#   \mathbb E\,\|X_1 - \hat x_1\|^2 &= \frac{\alpha_t^2}{\sigma_t^2}\, \mathbb E\,\|X_0 - \hat x_0\|^2,
#   \end{aligned}$$ (eq-score-floor-mixture)
#
# where $w = 1/(1 + \exp(-4\alpha_t X_{t,1}/v_t))$ is the probability that $x_t$ came from the right mode, and $X_{t,1}$ its first coordinate.

# %%
h = 0.02
line = torch.arange(-12, 12, h, dtype=torch.float64)


def floors(t):
    """Least possible E||X_0 - f||^2 and E||X_1 - f||^2 at time t."""
    alpha, sigma = at(t)
    v = alpha**2 / 2 + sigma**2
    modes = [torch.exp(-((line - m * alpha) ** 2) / (2 * v)) for m in (-2, 2)]
    density = sum(modes) / (2 * (2 * np.pi * v) ** 0.5)
    w = torch.sigmoid(4 * alpha * line / v)
    unsure = float((density * w * (1 - w)).sum() * h)
    x0_floor = sigma**2 / v + (4 * sigma**2 / v) ** 2 * unsure
    return x0_floor, (alpha / sigma) ** 2 * x0_floor


# %%
floor_x0, floor_x1 = node_weights @ np.array([floors(t) for t in nodes])
residuals = {"(2.9)": (floor_x0, x0_hat - x_0), "(2.10)": (floor_x1, x1_hat - x_1)}
for loss, (floor, residual) in residuals.items():
    mean, error = estimate(squared(residual))
    what = f"{loss}: floor {floor:.6f} and draws, standard errors apart"
    figures.check(what, abs(mean - floor) / error, below=5)
figures.glue(floor_x1=f"{floor_x1:.4f}")

# %% tags=["hide-input"]
shown = np.linspace(0.001, 0.999, 200)
curves = np.array([floors(t) for t in shown])
alpha_s, sigma_s = np.array([at(t) for t in shown]).T
NAMES = {"x1": "noise, $X_1$ (2.10)", "x0": "clean point, $X_0$ (2.9)"}
LOOK = {"x1": {"color": figures.SERIES[2]}, "x0": {"color": figures.SERIES[3], "linestyle": "--"}}
weights = {"x1": sigma_s**2, "x0": sigma_s**4 / alpha_s**2}
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2))
    for predict, floor in (("x1", curves[:, 1]), ("x0", curves[:, 0])):
        left.plot(shown, floor, label=NAMES[predict], **LOOK[predict])
        right.plot(shown, weights[predict], **LOOK[predict])
    left.set(xlabel="$t$", title="the floor at time $t$", ylim=(0, None))
    right.set(xlabel="$t$", yscale="log", title="weight of a squared score error", ylim=(1e-8, 1e6))
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
text = "Left: the noise is unpredictable at time zero and known at one, the clean point the other way round. Right: both losses give "
figures.show(fig, "floors", text + "score errors little weight near zero; the clean-point loss explodes near one.")

# %% [markdown]
# ```{glue:figure} floors
# :name: fig-score-floors
#
# Left: the loss of a perfect network {eq}`eq-score-floor-mixture`. At $t = 0$ nothing is known of the noise, which costs
# $d = 2$; at $t = 1$ nothing is known of the clean point, which costs its variance, 5. Right: the weights of {eq}`eq-score-weights`.
# ```
#
# ## Two small trainings
#
# The integral over $t$ is a mean over $t \sim \mathrm{Unif}[0, 1]$, so a step of the training draws a time and a noise for each sample of a
# batch. This is all of it, for either loss, and it is what the library does:


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
    return float(loss.detach()), x_t, t, target


# %%
batch = base.sample(512, generator).float()
ours, theirs = Network(seed=0), Network(seed=0)
by_hand = torch.optim.Adam(ours.parameters(), lr=1e-3)
library = torch.optim.Adam(theirs.parameters(), lr=1e-3)
loss, *inputs = one_step(ours, by_hand, batch, generator, "x1")
gap = abs(float(regression_step(theirs, library, *inputs)) / loss - 1)
figures.check("the losses agree", gap, below=1e-5)
with torch.no_grad():
    gap = float((ours(*inputs[:2]) - theirs(*inputs[:2])).abs().max())
figures.check("the networks agree after the step", gap, below=1e-4)

# %% [markdown]
# Now train on both losses with the same budget: the paper's network at half its width, few epochs, the same data, initial
# weights, times and noises, three seeds. After each epoch we note the loss on held-out samples, which is all that one has in practice, and the gap of
# {eq}`eq-score-pythagoras`, which one has only here.

# %%
seeds, width = ((0, 1, 2), 128) if full else ((0,), 64)
samples, epochs, size = (20_000, 20, 512) if full else (2000, 6, 128)
few = slice(0, 20_000 if full else 4000)  # of the draws above
inputs = x_t[few].float(), t[few].float()
best = {"x1": x1_hat[few], "x0": x0_hat[few]}


def race(predict, seed):
    """Train one network; its held-out loss and its gap after each epoch."""
    data = base.sample(samples, torch.Generator().manual_seed(seed)).float()
    network, losses, gaps = Network(width=width, seed=seed), [], []
    config = TrainingConfig(epochs, batch_size=size, predict=predict, averaging=0.0)
    for step in train_noise_predictor(network, data, schedule, config, seed=seed):
        with torch.no_grad():
            gaps.append(float(squared(network(*inputs) - best[predict]).mean()))
        losses.append(step.validation_loss)
    return network, np.array(losses), np.array(gaps)


# %%
races = {(kind, seed): race(kind, seed) for kind in ("x1", "x0") for seed in seeds}
for _, _, gaps in races.values():
    assert gaps[-1] < (0.1 if full else 0.5) * gaps[0]  # the conditional mean
gap = float(np.mean([races["x1", seed][2][-1] for seed in seeds]))
spread = float(squared(x1_hat - x_1).std())  # of one draw of the loss
figures.glue(gap=f"{gap:.4f}", spread=f"{spread:.1f}")
figures.glue(needed=f"{float(f'{(2 * spread / gap) ** 2:.1g}'):,.0f}")

# %% tags=["hide-input"]
held_out = 4 * samples // 10  # four draws for each held-out sample, taken as independent
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    for (predict, seed), (_, losses, gaps) in races.items():
        label = NAMES[predict] if seed == 0 else None
        left.plot(np.arange(1, epochs + 1), losses, linewidth=1, label=label, **LOOK[predict])
        right.plot(np.arange(1, epochs + 1), gaps, linewidth=1, **LOOK[predict])
    for floor, residual in residuals.values():
        width_ = 2 * float(squared(residual).std()) / held_out**0.5
        left.axhline(floor, color=figures.COLORS["target"], linewidth=1)
        left.axhspan(floor - width_, floor + width_, color=figures.COLORS["band"], alpha=0.3, linewidth=0)
    left.set(xlabel="epoch", title="held-out loss, and the floors", ylim=(0.8, 2.1 if full else 4))
    right.set(xlabel="epoch", yscale="log", title="the gap")
    for ax in (left, right):
        ax.locator_params(axis="x", integer=True)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
text = "Left: both held-out losses fall within a few epochs to their floors and wander in the band of chance around them. Right: the gap, "
figures.show(fig, "race", text + "on a logarithmic scale, keeps falling.")

# %% [markdown]
# ```{glue:figure} race
# :name: fig-score-race
#
# Three seeds of each training. Left: loss on held-out samples; floors (green) with two standard errors of a floor that is estimated on as many
# samples. Right: the gap. It keeps falling when the loss no longer shows it.
# ```
#
# At the end the gap of the noise networks is {glue:text}`gap`, and the floor {glue:text}`floor_x1`. A single draw of the loss has standard deviation
# {glue:text}`spread`, so to see such a gap in a *loss*, at two standard errors, takes some {glue:text}`needed` draws. The loss of a trained network hardly
# says how good it is. Early stopping works only because all epochs are scored on the same draws.
#
# Which network is better? That depends on the time. {py:class}`~itlib.network.FromX0` turns the clean-point network into a noise predictor by
# {eq}`eq-2-6`.

# %%
denoisers = {key: network for key, (network, *_) in races.items()}
for seed in seeds:
    denoisers["x0", seed] = FromX0(denoisers["x0", seed], schedule)
every = 1 / (1 + np.exp(-np.linspace(-np.log(999), np.log(999), 41 if full else 13)))


def rms(v):
    return float(squared(v.double()).mean().sqrt())


def error_at(denoiser, t, law, n=4000, seed=5):
    """RMS error of x1_hat at one time, at noised samples of a law."""
    x = law.noised(schedule, float(t)).sample(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return rms(denoiser(x.float(), torch.tensor(float(t))) - exact(x, clock(t)))


def errors_over_time(denoiser, law):
    return np.array([error_at(denoiser, t, law) for t in every])


by_time = {key: errors_over_time(f, base) for key, f in denoisers.items()}
size_of_noise = errors_over_time(lambda x, t: 0 * x, base)  # x1_hat itself

# %% tags=["hide-input"]
for seed in seeds:
    assert by_time["x0", seed][0] > 5 * max(
        by_time["x1", other][0] for other in seeds
    )  # clean-point networks lose at t = .001,
    assert by_time["x1", seed][-1] > 5 * max(by_time["x0", other][-1] for other in seeds)  # noise networks at t = .999
TICKS = ([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999], [".001", ".01", ".1", ".5", ".9", ".99", ".999"])


def logit_axis(ax):
    ax.set_xscale("logit")
    ax.set_xticks(*TICKS)
    ax.set_xticks([], minor=True)
    ax.set(xlabel="$t$", xlim=(0.00085, 0.99915))


# %% tags=["hide-input"]
alpha_e, sigma_e = np.array([at(t) for t in every]).T
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
    for (predict, seed), values in by_time.items():
        left.plot(every, values, linewidth=1.1, label=NAMES[predict] if seed == 0 else None, **LOOK[predict])
        right.plot(every, values * sigma_e / alpha_e, linewidth=1.1, **LOOK[predict])
    left.plot(every, size_of_noise, color=figures.INK, linewidth=0.8, linestyle=":", label=r"size of $\hat x_1$ itself")
    left.set(yscale="log", title=r"error of $\hat x_1$", ylim=(1e-4, 30))
    right.set(yscale="log", title=r"error of $\hat x_0$", ylim=(1e-4, 100))
    for ax in (left, right):
        logit_axis(ax)
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
text = "Error against time for both kinds of network. In units of the noise the clean-point network is hopeless near zero and excellent near "
figures.show(
    fig,
    "by-time",
    text + "one; in units of the clean point the noise network is hopeless near one. The curves cross in the middle.",
)

# %% [markdown]
# ```{glue:figure} by-time
# :name: fig-score-by-time
#
# The same networks in two units, RMS over $x_t \sim p_t$. Above the dotted line, predicting zero noise would have been better. Each network's error varies
# least in the units of its own target; in the other's it is multiplied by the factor of {eq}`eq-error-units`.
# ```
#
# What follows uses the noise network, as the paper does. It has two weak ends. Near $t = 1$ its $\hat x_0$ is useless: one more reason why
# Algorithm 1, which divides by $\alpha_t$, cannot start at $t = 1$ ({doc}`s2_1_2_reverse`). And near $t = 0$ the exact $\hat x_1$ is so small
# that an error which looks harmless in the loss exceeds it.
#
# ## Where can the base be trusted?
#
# Now the network of the experiment: the paper's size and number of samples, seed 0. Its training has a page of its own (*The base model*). Here we ask about all times and
# two kinds of places: where the base's own noised samples are, and where those of the *target* are.

# %%
target = base.tilted(parse_reward("paper"))
network, n_training = races["x1", 0][0], samples
if full:
    work = profile_named(profile)
    *_, state = resumable_base(base, schedule, work.training, n=work.n, seed=0)
    network, n_training = state.model, work.n
laws = {"base": base, "target": target}
at_time = {name: errors_over_time(network, law) for name, law in laws.items()}
repeats, each = (10, 2000) if full else (4, 500)


def with_error(law, kind):
    """An error over all times with its standard error, from independent repeats."""
    squares = []
    for i in range(repeats):
        errors = score_errors(network, law, schedule, n=each, seed=i, truth=exact)
        squares.append(getattr(errors, kind) ** 2)
    value = np.mean(squares) ** 0.5
    return value, np.std(squares, ddof=1) / repeats**0.5 / (2 * value)


# %% tags=["hide-input"]
rows, eps = [], {}
for name, law in laws.items():
    eps[name], (value, error) = with_error(law, "eps_rmse"), with_error(law, "score_rmse")
    shown_eps = "{:.4f} ± {:.4f}".format(*eps[name])
    rows.append(
        {
            "at noised samples of": f"the {name}",
            r"error of $\hat x_1$": shown_eps,
            "of the score": f"{value:.2f} ± {error:.2f}",
        }
    )
figures.table(rows)
distance = (target.means - base.means)[0, 1] / base.covariances[0, 1, 1].sqrt()
beyond = float(torch.special.ndtr(-distance))
worthless = every[at_time["base"] > size_of_noise]
figures.glue(distance=f"{distance:.1f}", beyond=f"{beyond:.4f}", above=f"{n_training * beyond:.0f}", of=f"{n_training:,}")
figures.glue(worthless=f"{worthless.max() if len(worthless) else 0:.3f}")
if full:
    assert eps["target"][0] > eps["base"][0] + 5 * eps["target"][1]
    assert 0.001 <= worthless.max() < 0.05

# %% [markdown]
# A mode of the target lies {glue:text}`distance` standard deviations above a mode of the base. A clean sample of the base lies that high with
# probability {glue:text}`beyond`: some {glue:text}`above` of {glue:text}`of`. At the smallest times the score is worthless even at the base's own samples: up to
# time {glue:text}`worthless`, the error of $\hat x_1$ is larger than $\hat x_1$ itself.

# %%
heights = np.linspace(-4, 5, 121 if full else 41)  # along a cut through the right mode
cut_times = np.linspace(0.002, 0.998, 121 if full else 31)
error_map = np.empty((len(heights), len(cut_times)))
for j, t_ in enumerate(cut_times):
    x = torch.from_numpy(np.stack([np.full_like(heights, 2 * at(t_)[0]), heights], 1))
    with torch.no_grad():
        learned = network(x.float(), torch.tensor(float(t_)))
    error_map[:, j] = squared(learned - exact(x, clock(t_))).sqrt()

# %% tags=["hide-input"]
alpha_c, sigma_c = np.array([at(t) for t in cut_times]).T
spread_c, shades = np.sqrt(alpha_c**2 / 2 + sigma_c**2), np.log10(error_map.clip(1e-3))
with figures.house_style() as plt:
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), width_ratios=(1.35, 1))
    look = {"cmap": "viridis", "vmin": -2, "vmax": 0, "rasterized": True, "shading": "gouraud"}
    image = left.pcolormesh(cut_times, heights, shades, **look)
    for middle, style, name in ((0 * alpha_c, "-", "base"), (2 * alpha_c, "--", "target")):
        for sign in (-1, 1):
            left.plot(cut_times, middle + 2 * sign * spread_c, color="white", linewidth=1.1, linestyle=style)
        left.text(0.03, middle[0], name, color="white", va="center", fontsize=11)
        look = {"color": figures.COLORS[name], "linestyle": style, "marker": "os"[name == "target"]}
        right.plot(every, at_time[name], markersize=3.5, markevery=5, label=name, **look)
    left.set(xlabel="$t$", ylabel="$x_2$, at $x_1 = 2\\alpha_t$", ylim=(-4, 5))
    bar = fig.colorbar(image, ax=left, extend="both", ticks=[-2, -1.5, -1, -0.5, 0], location="top", shrink=0.9, pad=0.02)
    bar.ax.set_xticklabels([".01", ".03", ".1", ".3", "1"])
    bar.set_label(r"error of $\hat x_1$")
    right.set(yscale="log", ylabel=r"error of $\hat x_1$ (RMS)", ylim=(0.008, 0.5))
    right.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2, 0.5], [".01", ".02", ".05", ".1", ".2", ".5"])
    right.set_yticks([], minor=True)
    logit_axis(right)
    right.set_xticks([0.001, 0.01, 0.1, 0.5, 0.9, 0.99], [".001", ".01", ".1", ".5", ".9", ".99"])
    right.legend(title="at noised samples of the", loc="upper right")
text = "Left: error of the trained base over height and time; dark where the base's noised samples are, bright above and below. "
figures.show(fig, "map", text + "Right: the error is larger at samples of the target, most at small times.")

# %% [markdown]
# ```{glue:figure} map
# :name: fig-score-map
#
# The trained base (seed 0) against its exact score. Left: a cut through one mode, with two standard deviations of the noised base (solid) and of the noised
# target (dashed). Right: RMS over $x_t$ from either law. At large $t$ noise has merged the two laws; at small $t$ the target lies where the base was not trained.
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
    time = t.double()
    moves = [path(k).covariance(x.double(), time, schedule, reward) for k in range(N)]
    return network(x, t) - (column(schedule.sigma(time), x) * sum(moves) / N).float()


after = score_errors(ideally_tilted, target, schedule, n=2000, seed=0).eps_rmse
before = score_errors(network, target, schedule, n=2000, seed=0, truth=exact).eps_rmse
figures.check("error after ideal tilts - before", abs(after - before), below=1e-4)

# %% [markdown]
# The error in the second row of the table above is the *floor* of the {doc}`results <s4_2_results>`. Better covariances cannot lower it, only a base that is better in
# its tails.
#
# ## Try this
#
# - *Predict, then run.* A network that always answers zero: what are its losses {eq}`eq-2-10` and {eq}`eq-2-9`? (Hint: the modes are at $\pm2$.)

# %% tags=["hide-cell"]
zero = {"(2.10)": (2.0, squared(x_1)), "(2.9)": (5.0, squared(x_0))}  # d, and 4 + 2 / 2
for loss, (predicted, values) in zero.items():
    mean, error = estimate(values)
    figures.check(f"{loss}: {predicted:g}, standard errors apart", abs(mean - predicted) / error, below=5)

# %% [markdown]
# - *Implement.* The floor of the loss knows the *entropy* of the data. With $\gamma = \alpha_t^2/\sigma_t^2$ and $m(\gamma)$ for the floor of {eq}`eq-2-9`
#   there, it is $\frac d2 \log 2\pi e - \frac12 \int_0^\infty \big[\frac{d}{1+\gamma} - m(\gamma)\big]\, d\gamma$. Compare with `base.entropy()`. (Hint: integrate
#   over $\log\gamma$.)

# %% tags=["hide-cell"]
u = np.linspace(np.log(1e-9), np.log(1e9), 2001)  # t / (1 - t), from one end of time to the other
ratios, integrand = [], []
for t_ in 1 / (1 + np.exp(-u)):
    alpha, sigma = at(t_)
    ratios.append((alpha / sigma) ** 2)
    integrand.append(2 / (1 + ratios[-1]) - floors(t_)[0])
integral = -np.trapezoid(np.array(integrand) * ratios, np.log(ratios))  # gamma falls with t
by_loss = np.log(2 * np.pi * np.e) - 0.5 * integral
figures.check(f"{by_loss:.5f} nats, and the entropy", abs(by_loss - base.entropy()), below=1e-4)

# %% [markdown]
# - *Predict, then run.* How low can a network get on the samples that it is *trained* on? The best predictor for a dataset is the posterior mean with the
#   dataset as the prior: a softmax over its points.

# %% tags=["hide-cell"]
size_of_set, m, generator = *((1000, 4000) if full else (100, 1000)), torch.Generator().manual_seed(6)
dataset = base.sample(size_of_set, generator)
x_0 = dataset[torch.randint(size_of_set, (m,), generator=generator)]
t = torch.rand(m, generator=generator, dtype=torch.float64)
x_1 = torch.randn(m, 2, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, x_0, x_1, t)
a, s = (column(f(t), x_t) for f in (schedule.alpha, schedule.sigma))
closeness = -0.5 * ((x_t[:, None] - a[:, None] * dataset) / s[:, None]).square().sum(-1)
recited = to_x1(x_t, torch.softmax(closeness, 1) @ dataset, t)
own, fresh = float(squared(recited - x_1).mean()), float(squared(exact(x_t, t) - x_1).mean())
print(f"Reciting the dataset: {own:.3f}. The exact noise predictor, on the same draws: {fresh:.3f}.")
print(f"Yet it is the wrong function, by {rms(recited - exact(x_t, t)):.2f} (RMS of x1_hat).")
print("A training loss below the floor is no success: it means that the network recites.")
assert own < fresh
