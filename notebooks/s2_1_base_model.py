# ---
# jupyter:
#   itlib:
#     experiment: base
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
# # The base model
#
# This page trains the network that every run of the experiment starts from, and asks how good it is: where its own
# samples live, and where the *tilted* law will live. The second decides how well any fine-tuning that sees only this network can
# end.
#
# **You will see** the loss (2.10) fall, the trained network compared with the exact noise prediction, and its error grow in the tail.

# %% tags=["parameters"]
seed = 0  # fixes data, initial weights and training
problem = "paper"  # whose base distribution: a name of itlib.experiments.problems
profile = "full"  # "full" is Section 4.2 of the paper, "smoke" a first look in seconds
method = "paper"  # "paper" is the network of Section 4.2, "recommended" a small one that corrects a Gaussian
record = ""  # path of the JSON record to leave; empty for none

# %%
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from itlib import figures
from itlib.experiments.base import Parameters, judge, recorded, train
from itlib.experiments.paper import BASE_ROW
from itlib.experiments.problems import problem as problem_named
from itlib.experiments.records import save_record
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.metrics import score_errors
from itlib.schedules import Cosine

torch.set_num_threads(1)  # the same numbers on every machine with the same processor

# %% [markdown]
# ## Training
#
# The base law is the mixture (4.11): two Gaussians of variance 1/2 at $(-2, 0)$ and $(2, 0)$. The network sees a sample with noise
# in it, $X_t = \alpha_t X_0 + \sigma_t X_1$, and learns to predict the noise:
#
# $$L_{X_1}(\theta) = \int_0^1 \mathbb E\,\big\lVert \hat x_1^\theta(\alpha_t X_0 + \sigma_t X_1, t) - X_1 \big\rVert^2\, dt . \tag{2.10}$$
#
# The minimiser is $\mathbb E[X_1 \mid X_t]$, which is $-\sigma_t$ times the score. The paper gives the network, the number of samples and epochs, and the
# patience, but neither learning rate nor batch size; ours are in the table.

# %%
asked = Parameters(problem=problem, seed=seed, profile=profile, method=method)
schedule, work = Cosine(), asked.work
mixture, target = problem_named(problem).base, problem_named(problem).target
for base in tqdm(train(asked, schedule), total=work.training.epochs):
    pass
card = judge(asked, base, schedule)

# %% tags=["hide-input"]
figures.settings(
    {
        "training samples": work.n,
        "epochs at most": work.training.epochs,
        "epochs run": base.done,
        "epoch kept": int(np.argmin(base.trace)) + 1,
        "patience": work.training.patience,
        "held out for validation": f"{work.training.validation_fraction:.0%}",
        "batch size (ours)": work.training.batch_size,
        "Adam's learning rate (ours), cosine decay to 0": work.trained(method)["config"].lr,
        "moving average of the weights (ours), decay a step": work.training.averaging,
    }
)

# %% tags=["hide-input"]
floor = card["loss_exact"]
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(7.2, 3.2))
    figures.losses(ax, np.array(base.losses), np.array(base.trace), int(np.argmin(base.trace)))
    ax.axhline(floor, color=figures.COLORS["target"], linewidth=1, linestyle="--", label="exact")
    ax.set_ylim(floor - 0.02, floor + 0.12)
    ax.legend()
figures.show(fig, "loss", "Training and validation loss per epoch, falling toward the loss of the exact noise prediction.")

# %% [markdown]
# ```{glue:figure} loss
#
# The loss {eq}`eq-2-10` per epoch on both splits, the epoch that was kept, and the loss of the *exact* noise prediction (dashed; estimated on 200,000 draws of its
# own, so a gap to a split of a few thousand samples is partly chance). It is not zero, because the noise cannot be told from the mixture exactly.
# ```
#
# ## How good it is, and where
#
# The exact noise prediction is known, so the error can be measured at any point. We measure it at noised samples of the base, and at noised samples of
# the *target*, far out in the base's tail.

# %%
truth = ExactNoisePredictor(mixture, schedule)
places = {"base": (mixture, work.samples), "target": (target, 4 * work.samples)}


def chance(law, n):
    """Standard deviation of the error of x1_hat over ten sets of n draws."""
    errors = []
    for s in range(100, 110):
        found = score_errors(base.model, law, schedule, n=n, seed=s, truth=truth)
        errors.append(found.eps_rmse)
    return np.std(errors, ddof=1)


# %%
rows = []
for name, end in (("base", ""), ("target", "_at_target")):
    error = f"{card['eps_rmse' + end]:.3f} ± {chance(*places[name]):.4f}"
    row = {"at noised samples of the": name, r"error of $\hat x_1$": error}
    rows.append(row | {"error of the score": card["score_rmse" + end]})
figures.table(rows)
shift = (target.means - mixture.means)[0].norm() / mixture.covariances[0, 0, 0].sqrt()
figures.glue(shift=f"{shift:.1f}")
figures.glue(drawn=f"{work.samples:,}", drawn_at_target=f"{4 * work.samples:,}")

# %% [markdown]
# RMSE over {glue:text}`drawn` draws of $(x_t, t)$ at the base and {glue:text}`drawn_at_target` at the target; the ± is the standard deviation over ten other sets of draws.
# Each mode of the target lies {glue:text}`shift` standard deviations from a mode of the base. The second row is the **floor**: tilting turns the base's tail into the
# target's bulk, and the error that sits there comes along.

# %% tags=["hide-input"]
xs, ys = np.linspace(-5, 5, 161), np.linspace(-3.5, 5.5, 145)
grid = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
time = torch.tensor(0.2, dtype=torch.float64)
with torch.no_grad():
    error = (base.model(grid.float(), time) - truth(grid, time)).norm(dim=-1).reshape(len(ys), len(xs)).numpy()
with figures.house_style() as plt:
    fig, ax = plt.subplots(figsize=(5.6, 4.2))
    image = ax.pcolormesh(xs, ys, error, cmap="viridis", vmin=0, vmax=0.5, rasterized=True, shading="gouraud")
    for (law, _), style in zip(places.values(), ("solid", "dashed"), strict=True):
        noised = law.noised(schedule, float(time)).log_prob(grid).reshape(error.shape).numpy()
        levels = noised.max() + np.log([0.05, 0.5])
        ax.contour(xs, ys, noised, levels=levels, colors="white", linewidths=0.8, linestyles=style)
    ax.set(aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
    fig.colorbar(image, label=r"error of $\hat x_1$", extend="max")
figures.show(fig, "error-map", "Error of the base network over the plane: small on the base, larger where the target lies.")

# %% [markdown]
# ```{glue:figure} error-map
#
# Error of the base network at $t = 0.2$. Solid lines: the noised base. Dashed lines: the noised target, which the training data hardly visit.
# ```
#
# ## Against the paper's figures
#
# The paper reports a test negative log-likelihood and a squared error of the mean for its base model, without saying how
# either is computed.

# %%
entropy = mixture.entropy()
figures.settings(
    {
        "a perfect model: the entropy of the base": f"{entropy:.3f} nats",
        "our samples, by the exact density": f"{card['nll_base']:.3f} nats",
        "exact samples, by our probability flow": f"{card['flow_nll']:.3f} nats",
        "the paper's base model": f"{BASE_ROW.nll:.3f} nats",
    },
    name="NLL",
)
means = {"ours, averaged over coordinates": card["mean_mse_base"]}
means["the paper's"] = BASE_ROW.mse
figures.settings(means, name="squared error of the mean")
figures.glue(above=f"{BASE_ROW.nll - entropy:.2f}")
figures.glue(ours_above=f"{card['flow_nll'] - entropy:+.3f}")

# %% [markdown]
# The paper's NLL lies {glue:text}`above` nats above the entropy, ours {glue:text}`ours_above` by probability flow. The quality of such a network does not explain
# that gap, and we could not find out what the paper's figure measures. A discrete variational bound with few steps is one lead.
#
# ## Try this
#
# - *Predict, then run.* Set `seed` to another value and look at the floor again. How much of it is chance?
# - *Implement.* Train on (2.9) instead: replace the configuration in `asked` by one with `predict="x0"`, wrap what comes out in `FromX0` (of {py:mod}`itlib.network`),
#   and use that where the page has `base.model`. The loss is then another one, with another floor ({doc}`../pages/s2_1_3_score`).

# %% tags=["remove-cell"]
if record:
    save_record(Path(record), recorded(asked, base, card))
