# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/untuned
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
# # Learn the value instead
#
# Every method so far moves a score. But what a tilt adds to a score is the gradient of one number, and a number can be learned by regression.
#
# **You will see** that number, the *value* of a state; a loss for it that accepts chains of any student and whose noise vanishes, in continuous time, when the chains are those of the exact tilt; a run of it, round by round, on a ring of eight Gaussians where mode
# weights are the difficulty; how it says that it has not arrived; what a reward with a long way down does to it; and where it is not good enough yet.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" does less of everything
untuned = "../book/reference/untuned"  # random tasks; the records are the same in both profiles

# %%
import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from itlib import figures
from itlib.beyond.chains import chain_steps
from itlib.beyond.value import Guided, ValueConfig, displaced, draw_pool, value_gradient, value_tilting
from itlib.experiments.problems import problem
from itlib.experiments.random_tasks import random_task
from itlib.experiments.records import load_records
from itlib.experiments.untuned import REPORTED, Parameters
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import effective_sample_size, mode_weights, score_errors
from itlib.schedules import Cosine

torch.set_num_threads(1)
full = profile == "full"
schedule = Cosine()

# %% [markdown]
# ## One number for every state
#
# Let $V_s(x, t) = \log \mathbb E_{\text{base}}[e^{s\,r(X_0)} \mid X_t = x]$. Bayes' rule gives the noised tilt as $p_t^{s}(x) = p_t(x)\, e^{V_s(x,t)} / Z_s$, so its score is the base's plus $\nabla V_s$, and
#
# $$\hat x_1^{s}(x, t) = \hat x_1(x, t) - \sigma_t \nabla V_s(x, t).$$ (eq-value)
#
# $e^{V}$ is the function $h$ of Doob's transform, $V$ the soft value of control {cite}`uehara2024finetuning`. To first order its gradient is $s$ times the covariance of Algorithm 2: at $s=0$, $\partial_s \nabla V_s = \mathrm{Cov}(\nabla \log q, r)$. The expectation is over chains of
# the *base*. Chains of another student count too, if they carry their weight. A student that shifts each step by $u$ of its standard deviations and draws the noises $z$ leaves, from time $t$ on,
#
# $$\begin{aligned} L_t &= \log \frac{p_{\text{base}}(x_{<t} \mid x_t)}{p_{\text{student}}(x_{<t} \mid x_t)} = -\sum_{t' \le t} \big(u_{t'}^\top z_{t'} + \tfrac12 |u_{t'}|^2\big), \\ e^{V_s(x_t, t)} &= \mathbb E_{\text{student}}\big[e^{s\,r(x_0) + L_t} \mid x_t\big], \end{aligned}$$ (eq-value-weights)
#
# whoever the student is. So chains are drawn once, and may be used again in later rounds without asking a network.
#
# ## The loss
#
# With $\Delta = s\,r(x_0) + L_t - V_\phi(x_t, t)$ the loss is $\mathrm{sg}[1 - e^{\Delta}]\, V_\phi$, where sg stops the gradient. Its mean gradient at a state is $(1 - \mathbb E[e^\Delta \mid x_t])\, \nabla_\phi V_\phi$, which vanishes if and only if $V_\phi = V_s$, *whatever law* the states have. (It is
# the gradient of $V + e^{\log w - V}$, the negative log-likelihood of a weight $w$ under an exponential law of mean $e^V$: the Itakura–Saito loss, which {cite:t}`udovichenko2025risk` use for values of this kind.) Regressing with squares on $s\,r + L_t$ would learn the mean of a logarithm instead, and that lies below by Jensen's inequality.
#
# Now let the student be right. Then in continuous time $s\,r(x_0) + L_t = V_s(x_t, t)$ on *every* chain, so $\Delta = 0$ and the noise of the loss is gone. Here are the base's chains and those of the exact tilt, on the ring of {doc}`rivals_comparison`.

# %%
ring = problem("eight")
base = ExactNoisePredictor(ring.base, schedule)


class ExactValue(torch.nn.Module):
    """V of the exact base: log of p'_t Z / p_t."""

    def forward(self, x, t):
        target, start = (law.noised(schedule, float(t)) for law in (ring.target, ring.base))
        return (target.log_prob(x) - start.log_prob(x)).to(x) + ring.base.log_normaliser(ring.reward)


class Exact(Guided):
    """The base with the exact correction."""

    def correction(self, x, t):
        return ExactNoisePredictor(ring.target, schedule)(x, t) - self.base(x, t)


exact = Exact(base, ExactValue(), schedule)
n, misfits = 1000 if full else 100, {}
for J in (25, 100) if full else (10, 20):
    steps = chain_steps(base, schedule, n, 2, steps=J, generator=torch.Generator().manual_seed(0))
    for name, fraction in (("base", 0.0), ("exact tilt", 1.0)):
        pool = draw_pool(exact, steps, torch.full((n,), fraction), 2, generator=torch.Generator().manual_seed(1))
        log_w = ring.reward(pool.x_0).unsqueeze(1) + pool.log_ratio
        values = torch.stack([exact.value(pool.x_t[:, k], torch.tensor(step.t)) for k, step in enumerate(steps)], 1)
        misfits[name, J] = [step.t for step in steps], log_w - values

# %% tags=["hide-input"]
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 2, figsize=(8.2, 3.3))
    for (name, J), (t, delta) in misfits.items():
        color = figures.COLORS["base" if name == "base" else "target"]
        style = "-" if max(j for _, j in misfits) == J else "--"
        gradient = value_gradient(torch.zeros_like(delta), delta, clamp=50.0)
        axes[0].plot(t, delta.std(0), style, color=color, label=f"{name}, {J} steps")
        axes[1].plot(t, gradient.mean(0), style, color=color)
    axes[0].set(xlabel="$t$", ylabel=r"standard deviation of $\Delta$ at the exact $V$", yscale="log", ylim=(1e-3, None))
    axes[1].set(xlabel="$t$", ylabel="mean of the gradient's factor", ylim=(-1, 1))
    axes[1].axhline(0, color=figures.INK, linewidth=0.7)
    axes[0].legend(fontsize=8.5)
figures.show(
    fig,
    "value-noise",
    "Left: the spread of the log weights about the exact value, against time. Chains of the base have a spread of several nats at high noise; those of the exact tilt a few tenths, less with more steps. Right: the mean gradient at the exact value is near zero for both laws of chains.",
)

# %% [markdown]
# ```{glue:figure} value-noise
#
# At the exact value. Left: the noise of the loss, for two students and two numbers of steps. Right: its mean, near zero for both; chains of the base are noisier.
# ```

# %% tags=["remove-cell"]
spreads = {key: float(delta.std(0).max()) for key, (_, delta) in misfits.items()}
few, many = sorted({J for _, J in misfits})
if full:
    assert spreads["exact tilt", many] < 0.75 * spreads["exact tilt", few]
    assert spreads["exact tilt", many] < 0.3 * spreads["base", many]
figures.glue(
    spread_few=spreads["exact tilt", few], spread_many=spreads["exact tilt", many], spread_base=spreads["base", many]
)

# %% [markdown]
# What is left on chains of the exact tilt is the discretisation: its largest spread falls from {glue:text}`spread_few` to {glue:text}`spread_many` with four times the steps (the base's is {glue:text}`spread_base`).
#
# Compare the loss on whole chains of {doc}`b_recommended`. It makes the weights of chains equal, and a wrong mode weight is a small part of their variance. Here every state is told what became of it, the early ones too, where the mode is decided.
#
# ## A run
#
# A round draws chains of the student, chooses the largest strength at which their weights keep an effective share of {glue:text}`target_ess`, and fits $V$ to the chains of the last {glue:text}`replay` rounds. Older chains are unbiased as well, but on them $e^\Delta$ has heavy tails (the left panel above), and a fit to all
# of them ends farther away. A few chains follow only a fraction of the correction, so that a mode that $V$ has lost by mistake is still visited. Rewards are evaluated, never differentiated, and the base is not trained.

# %%
config = ValueConfig() if full else ValueConfig(J=10, pilot=256, S=128, B=64, fit=20, rounds=3)
rounds = []
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a first look does not arrive
    for step in value_tilting(base, ring.reward, schedule, config, seed=0):
        seen = mode_weights(step.samples[int(config.explore * len(step.samples)) :], ring.target)
        rounds.append((step.strength, step.diagnostics.ess, seen))
model = step.model

# %% tags=["hide-input"]
shares = np.array([share for _, share, _ in rounds])
weights = torch.stack([seen for _, _, seen in rounds])
with figures.house_style() as plt:
    fig, axes = plt.subplots(1, 3, figsize=(9.2, 3.1))
    axes[0].plot([s for s, _, _ in rounds], "o-", color=figures.INK, label="strength $s$ of the fit")
    axes[0].plot(shares, "s-", color=figures.COLORS["target"], label="effective share before it")
    axes[0].set(xlabel="round", ylim=(0, 1.05))
    axes[0].legend(fontsize=8)
    for k in range(8):
        (line,) = axes[1].plot(weights[:, k], ".-")
        axes[1].axhline(float(ring.target.weights[k]), color=line.get_color(), linestyle="--", linewidth=0.7)
    axes[1].set(xlabel="round", ylabel="weight of a mode")
    steps = chain_steps(base, schedule, 1000, 2, steps=config.J, generator=torch.Generator().manual_seed(2))
    pool = draw_pool(model, steps, torch.ones(2000 if full else 100), 2, generator=torch.Generator().manual_seed(3))
    x = torch.linspace(-6, 6, 80)
    plane = torch.stack(torch.meshgrid(x, x, indexing="xy"), -1).reshape(-1, 2)
    density = x.numpy(), x.numpy(), ring.target.log_prob(plane).reshape(80, 80).numpy()
    figures.samples(axes[2], pool.x_0.numpy(), density=density, limits=(-6, 6, -6, 6))
figures.show(
    fig,
    "value-run",
    "Strength and share by round; weights of the eight modes by round with the exact ones dashed, which they meet; samples of the final model over the exact density.",
)

# %% [markdown]
# ```{glue:figure} value-run
#
# Left: strength and effective share. Middle: mode weights of the student's chains in each round; the exact ones are dashed. Right: chains of the last model over the exact density.
# ```

# %% tags=["remove-cell"]
reached = score_errors(model, ring.target, schedule, n=5000 if full else 500).eps_rmse
untilted = score_errors(base, ring.target, schedule, n=5000 if full else 500).eps_rmse
off = float((mode_weights(pool.x_0, ring.target) - ring.target.weights).abs().max())
log_w = ring.reward(pool.x_0) + pool.log_ratio[:, 0]
share, moved = effective_sample_size(log_w) / len(pool.x_0), displaced(pool.x_0, log_w)
if full:
    assert moved < config.close
    assert reached < 0.25 * untilted
    assert off < 0.03
figures.glue(target_ess=config.target_ess, replay=config.replay, reached=reached, untilted=untilted, off=off, share=share)
figures.glue(moved=f"{moved:.2f}", close=config.close, enough=config.enough)

# %% [markdown]
# The error of $\hat x_1$ ends at {glue:text}`reached`, from {glue:text}`untilted` before the first round. The largest error of a mode weight among these chains is {glue:text}`off`, and their effective share {glue:text}`share`.
#
# ## How it says that it has not arrived
#
# The share of the student's own chains is measured in every round on chains that were drawn after the last fit. A run goes on while it rises, keeps the best model, and warns if that model's share is below {glue:text}`enough`.
#
# A high share leaves much open. Let the chains be right up to a mode that should have the weight $p$ and has $p'$. Their share is
#
# $$ \text{share} = \Big(1 + \frac{(p - p')^2}{p'(1 - p')}\Big)^{-1}, $$
#
# so $p' = 0.19$ in place of $0.13$ costs two hundredths of it. That happened in {doc}`rivals_comparison`: with unequal weights and seed 0 the share was 0.90, and the distance to the target the largest on those tasks. But the chains know. Weighted, they have the right weights, so a run
# also measures how far the weights move its chains and their rewards: the Wasserstein distance along each coordinate, in standard deviations. Above {glue:text}`close` it warns, too. On the ring the last chains move by {glue:text}`moved`. It costs a sort. The cure is a longer fit, or to draw chains and resample them by their weights.
#
# Here is a bounded reward in ten dimensions, drawn at random
# (`itlib.experiments.random_tasks`), far from the base, with few rounds.

# %%
hard = random_task(2)
few_rounds = ValueConfig(rounds=3, fit=150) if full else config
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    hard_base = ExactNoisePredictor(hard.base, schedule)
    *_, last = value_tilting(hard_base, hard.reward, schedule, few_rounds, d=hard.base.d)
print(*(warning.message for warning in said), sep="\n")

# %% [markdown]
# ## Rewards with a long way down
#
# A reward that takes a hundred nats from a mode makes $V$ span a hundred nats. A network that spans a hundred is easily off by one where the other modes are decided. So mix a little of the base into the tilt: with $e^{s\,r} + a Z_s$ in place of $e^{s\,r}$ the value is $\log(e^{V_s} + a Z_s)$, never more than $\log(1/a)$ below $\log Z_s$, and all that it costs is a mass of $a$ from the base. The knob is `admixture`.
#
# A second one, `climb`, mends the choice of strengths. By default each is looked for from 0 on: the largest at which the chains keep the share asked for, or nine tenths of what they keep at $s = 0$, if that is less. Chains of a student far from the base keep next to nothing there, so it jumps to full strength with whatever share is left. With `climb=0.5` it goes on
# from the last strength, and a round gives up at most half of the share reached there.
#
# Here are three modes. A reward of $\pm 50$ nats, a smooth step, takes the largest of them away.

# %%
three = GaussianMixture(
    torch.tensor([0.8, 0.1, 0.1]), torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]]), 0.16 * torch.eye(2).expand(3, 2, 2)
)


def step_down(x):
    return -50 * torch.tanh(x[:, 0] - 0.75)


few_chains = ValueConfig(J=40, pilot=1500, S=600, B=256, fit=250, rounds=5) if full else config
shares = {}
for name, knobs in {"neither": {}, "climb": {"climb": 0.5}, "both": {"climb": 0.5, "admixture": 5e-5}}.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = value_tilting(
            ExactNoisePredictor(three, schedule), step_down, schedule, dataclasses.replace(few_chains, **knobs)
        )
        shares[name] = [step.diagnostics.ess for step in run][2:]  # of students at full strength, after the first two looks

# %% tags=["hide-input"]
figures.table([{"knobs": name} | {f"round {k + 2}": f"{v:.2f}" for k, v in enumerate(row)} for name, row in shares.items()])

# %% tags=["remove-cell"]
if full:
    assert max(shares["both"]) > 0.4
    assert max(*shares["neither"], *shares["climb"]) < 0.25
figures.glue(share_both=max(shares["both"]), share_neither=max(shares["neither"]))

# %% [markdown]
# The table has the effective share of the student's own chains. With a lower bound the same network, number of chains and of minibatches reach {glue:text}`share_both`, without one {glue:text}`share_neither`. The strengths alone do not help here: they matter where a run has to go up in several rounds.
#
# ## Where it is not good enough
#
# In two dimensions, with an exact base, it stays near an exact model up to the farthest tilt of {numref}`fig-families`. On {glue:text}`tasks` tasks drawn at random, on which nobody chose anything, with a small learned base, it does not. They have 2 to 32 dimensions, 1 to 12 modes, five kinds of rewards and tilts of 1 to 6 nats. *Error* is that of
# $\hat x_1$ over the base's own at the target, which is what guidance by the exact value would leave; *weights* is the largest error of a mode's weight.

# %% tags=["hide-input"]
found = pd.DataFrame([r.row() | {"told": bool(r.failure)} for r in load_records(Path(untuned), Parameters)])
found = found[found["seed"] >= REPORTED]
found["error"] = found["eps_rmse"] / found["floor"]
value, bounded, recommended, tilting = (
    found[found["method"] == m].set_index("seed") for m in ("value", "bounded", "chains", "tilting")
)
value["kind"] = [random_task(seed).kind for seed in value.index]
value["modes"] = value["target_weights"].str.len()
shown = value.sort_values("share", ascending=False)
LOOK = {
    "Algorithm 2": (tilting, "band", "^"),
    "recommended": (recommended, "base", "s"),
    "value": (value, "paper", "D"),
    "value, climbing and bounded": (bounded, "learned", "o"),
}
with figures.house_style() as plt:
    fig, axes = plt.subplots(2, 1, figsize=(5.1, 6.0), sharex=True)
    for ax, column, stopped in zip(axes, ("error", "mode_weight_error"), (100.0, 2.5), strict=True):
        for title, (own, color, marker) in LOOK.items():
            y = own.loc[shown.index, column].fillna(stopped).clip(lower=1e-3)
            told = own.loc[shown.index, "told"].to_numpy()
            style = {"marker": marker, "color": figures.COLORS[color], "linestyle": "", "markersize": 5}
            at = np.arange(len(shown))
            ax.plot(at[~told], y[~told], label=title, **style)
            ax.plot(at[told], y[told], markerfacecolor="none", **style)
        ax.axhline(stopped / 1.5, color=figures.INK, linewidth=0.5, linestyle=":")
        ax.text(0, stopped, "stopped", fontsize=9, va="center")
        ax.set(yscale="log", xticks=[])
    axes[0].set_ylabel("error, in the base's own")
    axes[1].set_ylabel("error of a mode's weight")
    axes[1].set_xlabel("twenty tasks, by the value's effective share")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
figures.show(
    fig,
    "untuned",
    "Two panels over twenty tasks. The bounded value lies lowest nearly everywhere, below 2.5 on all but three; Algorithm 2 lies highest, and stops on three tasks.",
)

# %% [markdown]
# ```{glue:figure} untuned
# :name: fig-untuned
#
# Error of $\hat x_1$, and of the worst mode weight, on tasks that nobody tuned on. Filled: the run ended without a warning. The table, folded away below, has every number.
# ```

# %% tags=["hide-cell"]
figures.table(
    [
        {
            "task": seed,
            "reward": row["kind"],
            "d": row["d"],
            "modes": row["modes"],
            "nats": f"{row['kl']:.1f}",
        }
        | {
            label + mark: text
            for mark, one in (("", row), (" *", bounded.loc[seed]), (" †", recommended.loc[seed]))
            for label, text in (
                ("error", f"{one['error']:.1f}" if one["error"] > 0 else "stopped"),
                ("weights", f"{one['mode_weight_error']:.2f}" if one["error"] > 0 else ""),
                ("share", f"{one['share']:.2f}" if one["error"] > 0 else ""),
                ("warned", "yes" if one["told"] else ""),
            )
        }
        for seed, row in shown.iterrows()
    ]
)
print("*: climb=0.5, admixture=5e-5. †: recommended.")

# %% tags=["remove-cell"]
quiet, worse = value[~value["told"]], value[value["eps_rmse"] > value["untilted"]]
assert len(value) >= 20
assert worse["told"].all()
assert set(tilting.index) == set(value.index)
by_tilts = tilting["error"].fillna(np.inf)  # it diverged
assert by_tilts.median() > 2 * value["error"].median()
assert worse["share"].max() < 0.1
assert set(bounded.index) == set(value.index)
assert bounded["error"].max() < 0.1 * value["error"].max()
assert bounded["mode_weight_error"].median() < value["mode_weight_error"].median()
assert (bounded["error"] < by_tilts).all()
still_worse = bounded[bounded["eps_rmse"] > bounded["untilted"]]
assert still_worse["told"].all()
assert set(recommended.index) == set(value.index)
by_chains = recommended["error"].fillna(np.inf)
ended = recommended[np.isfinite(by_chains)]
chains_quiet = ended[~ended["told"]]
# TMPassert ended[ended["mode_weight_error"] > 0.2]["told"].all()
beaten = bounded[bounded["error"] >= by_chains]
assert bounded["error"].median() < value["error"].median() < by_chains.median()
figures.glue(
    chains_median=f"{by_chains.median():.1f}",
    chains_stopped=int(np.isinf(by_chains).sum()),
    chains_closer=len(beaten),
    chains_weights=f"{ended['mode_weight_error'].median():.2f}",
    chains_warned=int(ended["told"].sum()),
    chains_quiet_weights=f"{chains_quiet['mode_weight_error'].max():.2f}",
    chains_rewards=f"{ended['rewards'].median() / 1e3:.0f}",
    bounded_rewards=f"{bounded['rewards'].median() / 1e3:.0f}",
)
figures.glue(
    bounded_median=f"{bounded['error'].median():.1f}",
    bounded_worst=f"{bounded['error'].max():.1f}",
    bounded_weights=f"{bounded['mode_weight_error'].median():.3f}",
    bounded_weights_worst=f"{bounded['mode_weight_error'].max():.2f}",
    bounded_within=int((bounded["error"] <= 2.5).sum()),
    value_within=int((value["error"] <= 2.5).sum()),
    bounded_warned=int(bounded["told"].sum()),
    still_worse=len(still_worse),
    bounded_quiet_worst=f"{bounded[~bounded['told']]['error'].max():.1f}",
    bounded_quiet_weights=f"{bounded[~bounded['told']]['mode_weight_error'].max():.2f}",
    closer_than_value=int((bounded["error"] < value["error"]).sum()),
)
figures.glue(
    tasks=len(value),
    median=f"{value['error'].median():.1f}",
    worst=f"{value['error'].max():.0f}",
    by_tilts=f"{by_tilts.median():.1f}",
    diverged=int(np.isinf(by_tilts).sum()),
    closer=int((value["error"] < by_tilts).sum()),
    worse=len(worse),
    worse_share=f"{worse['share'].max():.2f}",
    weights_median=f"{value['mode_weight_error'].median():.3f}",
    weights_worst=f"{value['mode_weight_error'].max():.2f}",
    drawn=f"{value['exact_mode_weight_error'].max():.2f}",
    warned=int(value["told"].sum()),
    quiet=len(quiet),
    quiet_worst=f"{quiet['error'].max():.1f}",
    quiet_weights=f"{quiet['mode_weight_error'].max():.2f}",
)

# %% [markdown]
# The median error is {glue:text}`median` times the base's, the worst {glue:text}`worst` times; the median error of a weight {glue:text}`weights_median`, the worst {glue:text}`weights_worst` (exact samples, as many: at most {glue:text}`drawn`). Good would be 1.5, 2.5 and 0.03. Algorithm 2, with twenty tilts of the same bases, has a median of {glue:text}`by_tilts` and diverges on {glue:text}`diverged`; the value is closer on {glue:text}`closer`. {glue:text}`worse` runs end farther from the target than they began; their shares are {glue:text}`worse_share` at most. {glue:text}`warned` of the {glue:text}`tasks` runs warned, these among them; the other {glue:text}`quiet` end with errors of at most {glue:text}`quiet_worst`
# and weights off by at most {glue:text}`quiet_weights`.
#
# *Climbing and bounded* has both knobs of the last section, `climb=0.5` and `admixture=5e-5`. They were found on ten other tasks, *after* the defaults had been reported for these, and run on these once. The worst error falls to {glue:text}`bounded_worst`, the median to {glue:text}`bounded_median`; the median error of a weight is {glue:text}`bounded_weights`, the worst {glue:text}`bounded_weights_worst`; {glue:text}`bounded_within` runs instead of {glue:text}`value_within` have errors of at most 2.5, {glue:text}`closer_than_value` are closer than without, all are closer than Algorithm 2, and {glue:text}`bounded_warned` warn. {glue:text}`still_worse` still ends farther away than it began, with a warning. Those that do not warn reach {glue:text}`bounded_quiet_worst` and {glue:text}`bounded_quiet_weights` at worst.
#
# *Recommended* ({doc}`b_recommended`), with its defaults, is closer on {glue:text}`chains_closer` of the tasks, in whatever dimension, and stops on {glue:text}`chains_stopped`. Its median error is {glue:text}`chains_median`, and its weights are off by {glue:text}`chains_weights` in the median, with {glue:text}`chains_rewards` thousand rewards where the bounded value asks for {glue:text}`bounded_rewards`. {glue:text}`chains_warned` of its runs end with a warning; the others have weights that are off by up to {glue:text}`chains_quiet_weights`: a loss on whole chains hardly sees them.
#
# - **Dimension and distance.** The default network and number of chains leave shares well below that of the exact value: the fit is what is short.
# - **The chains are blind to what none visits.** A mode that neither the student nor the explorers meet lowers no share and moves nothing.
# - **Sampling costs a gradient of V** at each step, small beside a large base.
# - **The base.** As for every method here, its errors are tilted along ({doc}`b_floor`).
#
# ## Whose idea it is
#
# Fitting the value of a controlled process and drawing again under it is what controlled sequential Monte Carlo does, with quadratic functions {cite}`heng2017controlled`; the same $V$ is learned from samples, without chains and in one shot, by contrastive energy prediction {cite}`lu2023contrastive`, and by regression on rewards in
# SVDD {cite}`li2024derivative`. Weights of whole chains that train a student are the log-variance loss {cite}`nusken2021solving` and relative trajectory balance {cite}`venkatraman2024amortizing`; small steps in strength chosen by how the weights spread are trust regions on path space {cite}`blessing2025trust` and proximal samplers {cite}`guo2025proximal`. We know of none that regresses $V$ at every state
# on the whole remaining weight of replayed chains with this loss, and do not claim that there is none.
#
# ## Try this
#
# **A square of $\Delta$ in place of the loss: where would $V$ end?** Derive it, and read it off the chains of the first picture.

# %% tags=["hide-cell"]
# Where the mean of Delta vanishes: at E[log w | x_t], below log E[w | x_t] = V by Jensen's inequality.
below = {name: float(misfits[name, many][1].mean(0).min()) for name in ("base", "exact tilt")}
print(f"on chains of the base V would end up to {-below['base']:.1f} nats too low, of the tilt {-below['exact tilt']:.2f}")
assert not full or below["base"] < -1 < below["exact tilt"]

# %% [markdown]
# **Set `clamp=2`. Which way does $V$ drift, and on whose chains?** Predict the sign of the mean gradient at the exact $V$.

# %% tags=["hide-cell"]
drift = {
    (name, clamp): float(value_gradient(torch.zeros(()), misfits[name, many][1], clamp).mean(0).max())
    for name in ("base", "exact tilt")
    for clamp in (2.0, 5.0)
}
print("\n".join(f"{name}, clamp {clamp:g}: {found:+.2f}" for (name, clamp), found in drift.items()))
# Cutting e^Delta leaves a mean below 1, the gradient is positive, and descent lowers V: on chains of the base, not the tilt's.
assert not full or drift["base", 2.0] > max(drift["base", 5.0], drift["exact tilt", 2.0]) > 0

# %% [markdown]
# **Keep all chains.** Set `replay=100` in the run on the ring, and compare the shares. Then `target_ess=0.01`. (The left panel of the first picture tells what to expect of old chains.)
