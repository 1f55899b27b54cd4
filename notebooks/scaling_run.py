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
# # One run of how it scales
#
# The template behind the chapter on scaling: Algorithm 2 on one task of `itlib.experiments.scaling`, from the *exact* base. The student is the exact
# denoiser plus a network that starts at zero, so there is no base to train and no floor. Papermill runs it once per task and seed.
#
# **You will see** the error of the tilted model split by direction, what its samples say, and what it cost.

# %% tags=["parameters"]
d = 2  # dimension
reward = "across"  # "across" or "along" the axis of the modes; "wave" or "jump" on a line (d = 1)
kl = 4.0  # KL(target || base) in nats, which sets the scale of a linear reward
distance = 4.0  # of the modes
N = 20  # number of tilts
S = 1000  # samples per tilt
E = 100  # minibatches of 64 per tilt
J = 50  # reverse steps
width = 256  # of the student's layers
centre = False  # whether the mean reward of a tilt's samples is subtracted
lr = 1e-4  # learning rate
seed = 0  # fixes every random draw
profile = "full"  # "full", or "smoke" for a first look in seconds
config = "paper"  # named configuration of Algorithm 2
record = ""  # path of the JSON record to leave; empty for none

# %% tags=["remove-cell"]
from dataclasses import replace
from pathlib import Path

import torch
from IPython.display import Markdown, display
from tqdm import tqdm

from itlib.baselines.tilt_matching import EXPLICIT
from itlib.experiments.records import write_record
from itlib.experiments.scaling import SHAPES, Line, axis_task, two_modes
from itlib.gaussian_mixture import ExactNoisePredictor
from itlib.metrics import mode_weights
from itlib.network import Network, Residual
from itlib.sampling import sample
from itlib.schedules import Cosine, add_noise
from itlib.tilting import PAPER_UPDATE, TiltingConfig, derive_seed, iterative_tilting

torch.set_num_threads(1)
schedule = Cosine()

# %% [markdown]
# ## The run

# %%
if reward in SHAPES:
    r, base = SHAPES[reward], Line.of(two_modes(distance))
    target, start = base.tilted(r), ExactNoisePredictor(two_modes(distance), schedule)
else:
    base, b = axis_task(d, reward, kl, distance)
    target, start = base.tilted(b), ExactNoisePredictor(base, schedule)

    def r(x):
        return x @ b.to(x)


settings = TiltingConfig(N=N, S=S, E=E, J=J, lr=lr)
if profile == "smoke":
    settings = replace(settings, S=128, E=5, J=10)


def draw(denoiser, k, n, generator):
    """Algorithm 1 with the posterior's width put back: few steps, and next to no bias of the sampler in what is measured."""
    return sample(denoiser, schedule, n, d, steps=settings.J, variance="analytic", generator=generator)


student = Residual(start, Network(d, width=width, seed=derive_seed(seed, "weights")))
update = EXPLICIT if centre else PAPER_UPDATE
steps = iterative_tilting(student, r, schedule, settings, d=d, seed=seed, update=update, sampler=draw)
seconds = {"sampling": 0.0, "training": 0.0}
for step in tqdm(steps, "tilts", total=N):
    for key in seconds:
        seconds[key] += step.seconds[key]
model = step.model

# %% [markdown]
# ## The error of the noise prediction
#
# Root mean square at noised exact samples of the target. With a linear reward it has three parts: along the gradient $b$ of the reward,
# along the axis of the modes, and in all directions that have nothing to do with either. *Way* is how much of the difference between base and
# target the model has covered, by regression.

# %%
n = 5000 if reward in SHAPES else 2000
generator = torch.Generator().manual_seed(derive_seed(seed, "judge"))
x_0 = target.sample(n, generator)
t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(n, generator=generator, dtype=torch.float64)
x_t = add_noise(schedule, x_0, torch.randn(n, d, generator=generator, dtype=torch.float64), t)
with torch.no_grad():
    learned = model(x_t.float(), t.float()).double()
# A table of the target's law needs memory for each point: in pieces.
exact, before = (
    torch.cat([ExactNoisePredictor(law, schedule)(*piece) for piece in zip(x_t.split(500), t.split(500), strict=True)])
    for law in (target, base)
)


def rms(v):
    return float(v.square().sum(-1).mean().sqrt())


error, travel = learned - exact, exact - before
metrics = {
    "eps_rmse": rms(error),
    "travel": rms(travel),
    "way": float(((learned - before) * travel).sum() / travel.square().sum()),
}

# %% [markdown]
# ## The samples

# %%
x = draw(model, N, n, generator).double()
curve = {}
if reward in SHAPES:
    edges = torch.linspace(-5, 5, 101, dtype=torch.float64)
    counts = torch.histogram(x.flatten(), edges)[0]
    metrics |= {
        "w2": target.wasserstein(x),
        "total_variation": float((counts / n - target.bins(edges)).abs().sum() / 2),
    }
    curve = {"left": edges[:-1].tolist(), "count": counts.tolist()}
else:
    u, axis = b / b.norm(), torch.eye(d, dtype=torch.float64)[0]
    rest = x - (x @ u).unsqueeze(1) * u - (x[:, :1] * axis if reward == "across" else 0)
    off = rest - (target.mean - (target.mean @ u) * u - (target.mean[0] * axis if reward == "across" else 0))
    mean_off, variance = off.mean(0), off.var(0).sum()
    metrics |= {
        "eps_along_b": rms((error @ u).unsqueeze(1)),
        "eps_along_axis": rms(error[:, :1]),
        "eps_rest": rms(error - (error @ u).unsqueeze(1) * u - (error[:, :1] * axis if reward == "across" else 0)),
        "mean_along_b": float((x.mean(0) - target.mean) @ u),
        # Squared, and without what n samples of an unbiased model would show: it may be negative.
        "mean_rest_squared": float(mean_off.square().sum() - variance / n),
        "variance_along_b": float((x @ u).var()),
        "mode_weight": float(mode_weights(x[:, :1], target.line)[1]),
        "mode_weight_exact": float(target.line.weights[1]),
    }

# %% tags=["remove-input"]
shown = metrics | {f"seconds {key}": value for key, value in seconds.items()}
display(Markdown("\n".join(["|  |  |", "|:--|--:|", *(f"| {key} | {value:.4g} |" for key, value in shown.items())])))

# %% tags=["remove-cell"]
if record:
    write_record(
        Path(record),
        "scaling",
        {
            "d": d, "reward": reward, "kl": kl, "distance": distance, "N": N, "S": S, "E": E, "J": J, "width": width,
            "centre": centre, "lr": lr, "seed": seed, "profile": profile, "config": config,
        },
        metrics,
        [],
        seconds,
        **({"curve": curve} if curve else {}),
    )  # fmt: skip
