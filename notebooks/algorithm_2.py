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
# # Algorithm 2 in one cell
#
# The method of the paper {cite}`pachebat2025iterative` fits on a page, and so does its code. Here are both, before any theory.
#
# **You will see** the algorithm in seven lines of words; the same in one cell of Python that needs torch and nothing else, so that you can copy it
# and run it in half a minute; and a target that twenty small tilts nearly reach, and one large tilt with the same work misses.
#
# ## In words
#
# A diffusion model draws from $p$. Each sample $x$ has a reward $r(x)$. We want the model of $e^{r}p$, up to normalisation: one more unit of
# reward multiplies a sample's odds against another by $e$. (This is the strength $\lambda = 1$.) The model is a network $\varepsilon_\theta(x_t, t)$ that sees a sample with noise in it,
# $x_t = \alpha_t x_0 + \sigma_t z$, and predicts the noise $z$.
#
# > **Repeat $N$ times:**
# >
# > 1. Draw $S$ samples $x_0$ from the model. Evaluate their rewards $r(x_0)$.
# > 2. Freeze a copy of the model, the teacher $\varepsilon_{\text{old}}$.
# > 3. **Repeat $E$ times:** take a few of the samples; put fresh noise $z$ in them, at random times $t$; take one gradient step on
# >
# >    $$\sigma_t^2\, \big\lVert \varepsilon_\theta(x_t, t) - \varepsilon_{\text{target}} \big\rVert^2, \qquad
# >      \varepsilon_{\text{target}} = \varepsilon_{\text{old}} + \tfrac1N\, r(x_0)\,\big(z - \varepsilon_{\text{old}}\big).$$
#
# That is all. Where the reward is positive, the target is shifted toward the true noise $z$. Taking $z$ out of $x_t$ gives back $x_0$, so the next model
# returns to samples like $x_0$ more often; where the reward is negative, less often. The reward enters as a number; nobody differentiates it.
# Line 4 of the paper's listing names the wrong network, and its "epoch" can be read in two ways; {doc}`errata` (13, 14) says what is done here.
#
# Here $\alpha_t$ is the weight of the sample and $\sigma_t$ that of the noise; $t = 0$ is data and $t = 1$ is noise. The code below takes
# $N = 20$ tilts, $S = 1{,}000$ samples and $E = 100$ gradient steps in each.
#
# ## In code
#
# The base is two Gaussians at $(\pm2, 0)$, whose exact noise prediction is known; the network learns what the tilts add to it. The reward
# $r(x) = -x_1^2 + \tfrac12 x_2^2 + x_1 + x_2$ pulls the two Gaussians together, stretches them upward, and prefers the right one.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" tilts with fewer samples

# %%
import copy
import math

import torch
from torch import nn


def alpha(t):  # weight of the sample: t = 0 is data, t = 1 is noise
    return torch.cos(math.pi / 2 * t)


def sigma(t):  # standard deviation of the noise
    return torch.sin(math.pi / 2 * t)


def reward(x):
    return -(x[:, 0] ** 2) + 0.5 * x[:, 1] ** 2 + x.sum(1)


def base(x, t):
    """Exact noise prediction for two Gaussians of variance 1/2 at (-2, 0) and (2, 0)."""
    v = alpha(t) ** 2 / 2 + sigma(t) ** 2
    away = x[:, None] - alpha(t)[:, None] * torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    mode = torch.softmax(-away.square().sum(-1) / (2 * v), 1)  # which Gaussian x came from
    return sigma(t) / v * (mode[..., None] * away).sum(1)


class Model(nn.Module):
    """The base, and what the tilts add to it: a small network, zero at first."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(6, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        self.network = nn.Sequential(*hidden, nn.Linear(128, 2))
        nn.init.zeros_(self.network[-1].weight)
        nn.init.zeros_(self.network[-1].bias)

    def forward(self, x, t):
        seen = torch.cat([x, alpha(t), sigma(t), alpha(2 * t), sigma(2 * t)], 1)
        return base(x, t) + alpha(t) * sigma(t) * self.network(seen)


@torch.no_grad()
def sample(model, n, steps=100):
    """Algorithm 1: from noise to data, each step with fresh noise."""
    x, times = torch.randn(n, 2), torch.linspace(1, 0, steps + 1)
    times[0] = 0.999  # alpha vanishes at 1
    for t, s in zip(times[:-1, None, None], times[1:, None, None], strict=True):
        eps = model(x, t.expand(n, 1))
        std = sigma(s) / sigma(t) * (1 - alpha(t) ** 2 / alpha(s) ** 2).clamp_min(0).sqrt()
        kept = (sigma(s) ** 2 - std**2).clamp_min(0).sqrt()
        x = alpha(s) / alpha(t) * (x - sigma(t) * eps) + kept * eps
        x = x + std * torch.randn_like(x)
    return x


def tilt(N, S=1000, E=100, B=64, lr=1e-3):
    """Algorithm 2."""
    torch.manual_seed(0)
    model = Model()
    for _ in range(N):
        x_0 = sample(model, S)
        r, teacher = reward(x_0)[:, None], copy.deepcopy(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        for _ in range(E):
            i, t, z = torch.randperm(S)[:B], torch.rand(B, 1), torch.randn(B, 2)
            x_t = alpha(t) * x_0[i] + sigma(t) * z
            with torch.no_grad():
                eps_old = teacher(x_t, t)
                target = eps_old + r[i] / N * (z - eps_old)
            loss = (sigma(t) * (model(x_t, t) - target)).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


# %% [markdown]
# `sample(tilt(20), 2000)` tilts twenty times and draws from the result. Here are two runs
# with the same work: 20,000 samples drawn, 2,000 gradient steps. One spends it on a single large tilt, the other on twenty small ones.

# %%
S, E = 1000, 100
if globals().get("profile") == "smoke":  # a quick build of this book
    S, E = 100, 10
runs = {N: sample(tilt(N, S=20 * S // N, E=20 * E // N), 2000) for N in (1, 20)}

# %% [markdown]
# ## In a picture
#
# Tilting two Gaussians by a quadratic reward gives two Gaussians {eq}`eq-4-10`, so the answer is known. It is drawn as contours.

# %% tags=["hide-input"]
import numpy as np

from itlib import figures
from itlib.gaussian_mixture import paper_mixture
from itlib.rewards import parse_reward

exact_base = paper_mixture()
target = exact_base.tilted(parse_reward("quadratic"))
xs, ys = np.linspace(-4.2, 4.2, 127), np.linspace(-2.8, 4.6, 112)
plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))


def contours(mixture):
    return xs, ys, mixture.log_prob(plane).reshape(len(ys), len(xs)).numpy()


before = exact_base.sample(2000, torch.Generator().manual_seed(0))
panels = [("the base", before, exact_base, "base"), ("one tilt", runs[1], target, "learned")]
panels += [("twenty tilts", runs[20], target, "learned")]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.6), sharey=True)
    for ax, (title, points, law, color) in zip(axes, panels, strict=True):
        figures.samples(
            ax,
            points[:700].numpy(),
            density=contours(law),
            color=figures.COLORS[color],
            title=title,
            limits=(-4.2, 4.2, -2.8, 4.6),
        )
        ax.set_xlabel("$x_1$")
    axes[0].set_ylabel("$x_2$")
figures.show(
    fig,
    "two-runs",
    "Left: samples of two Gaussians side by side. Middle: after one tilt nearly all samples are on the right, lower than the contours of the "
    "exact target. Right: after twenty tilts both modes have samples, closer to the contours.",
)

# %% [markdown]
# ```{glue:figure} two-runs
# :name: fig-algorithm-2-runs
#
# Samples of the base, after one tilt and after twenty, at equal work, seed 0. Contours: the exact base (left) and the exact target, at 1, 10, 40 and 80 per cent
# of the maximum.
# ```

# %% tags=["hide-input"]
right = {N: x[x[:, 0] > 0] for N, x in runs.items()}
off = {N: float((x[:, 0] <= 0).double().mean()) for N, x in runs.items()}  # share on the left
height = {N: float(x[:, 1].mean()) for N, x in right.items()}
exact = target.sample(200_000, torch.Generator().manual_seed(0))
figures.glue(
    left_exact=f"{float((exact[:, 0] <= 0).double().mean()):.0%}",
    left_one=f"{off[1]:.0%}",
    left_twenty=f"{off[20]:.0%}",
    height_exact=f"{float(exact[exact[:, 0] > 0][:, 1].mean()):.2f}",
    height_one=f"{height[1]:.2f}",
    height_twenty=f"{height[20]:.2f}",
)
if profile == "full":
    assert off[1] < 0.03 < 0.08 < off[20]  # the left mode is lost in one tilt, and kept in twenty
    assert height[1] < height[20] < 0.95  # both fall short of the height

# %% [markdown]
# The exact target keeps {glue:text}`left_exact` of its mass on the left. Twenty tilts leave {glue:text}`left_twenty` there, one tilt only
# {glue:text}`left_one`. The right mode should stand at a height of {glue:text}`height_exact`: twenty tilts reach {glue:text}`height_twenty`, one reaches
# {glue:text}`height_one`. Two things go wrong with a large tilt. The step of the algorithm is the first term of a Taylor series
# ({doc}`s3_1_tilted_score`), and a large step needs more terms. And it is learned from samples of the base, few of which are where the target is.
#
# Twenty tilts are not exact either. {doc}`b_error_budget` finds out what is left; {doc}`b_recommended` has a better algorithm, and says how much better.
#
# ## Try this
#
# - *Predict, then run:* `tilt(5, S=4000, E=400)`, the same work once more. Where will the height of the right mode be?
# - Add a constant to the reward, `reward(x) + 4`. The tilted law stays the same, because a constant cancels when the density is normalised. Does the model stay the same?

# %% tags=["hide-cell"]
plain = reward


def reward(x):
    return plain(x) + 4


shifted = sample(tilt(20, S, E), 2000)
reward = plain
spread = {name: float(x[x[:, 0] > 0][:, 0].var()) for name, x in (("plain", runs[20]), ("shifted", shifted))}
print(f"variance of x_1 in the right mode: exact 0.25, reward {spread['plain']:.2f}, reward + 4 {spread['shifted']:.2f}")

# %% [markdown]
# - *Implement:* subtract the mean reward of the tilt's own samples before the inner loop. It is one change in one line. Does the height come closer to
#   {glue:text}`height_exact`? {doc}`s3_2_algorithm` explains when to expect help from this, and when not.

# %% tags=["hide-cell"]


def centred(x):  # within tilt(): r = reward(x_0)[:, None]; r = r - r.mean()
    return plain(x) - plain(x).mean()


reward = centred
x = sample(tilt(20, S, E), 2000)
reward = plain
print(f"height of the right mode: {float(x[x[:, 0] > 0][:, 1].mean()):.2f} centred, {height[20]:.2f} plain, 1.00 exact")
