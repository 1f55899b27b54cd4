# ---
# jupyter:
#   itlib:
#     reads:
#     - book/reference/molecules
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
# # Molecules and a black box
#
# The paper's conclusion asks for "real-world tasks such as molecular design". Here is a small one. The samples are molecules, and the
# reward is a program that reads a molecule and answers: a random forest that learned from measured solubilities. This page is for
# reference; the main path does not need it.
#
# **You will see** a diffusion model of drug-like molecules; what its exact tilt looks like, and that of its training data; which
# methods come near with 5,120 answers; what judges say that are no reward; and what stands in the way.

# %% tags=["parameters", "remove-cell"]
profile = "full"  # "smoke" draws fewer molecules; the records are the same in both profiles
reference = "../book/reference/molecules"  # the committed runs, and the forest

# %%
import math

import numpy as np
import pandas as pd
import torch

from itlib import figures
from itlib.beyond.value import value_tilting
from itlib.experiments.files import located
from itlib.experiments.molecules import methods, model, pictures, truth
from itlib.experiments.molecules.methods import METHODS
from itlib.experiments.molecules.rewards import TASKS, Forest
from itlib.experiments.molecules.solubility import Parameters as ForestParameters
from itlib.experiments.records import load_records
from itlib.sampling import reverse_process

torch.set_num_threads(1)
full, folder = profile == "full", located(reference)
known, forest = model.load(), Forest.load(folder / "solubility.safetensors")
task = TASKS["solubility"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% tags=["hide-input"]
SEEDS = (1, 2, 3)  # seed 0 chose the learning rates
weighed = {(r.parameters.problem, r.parameters.seed): r for r in load_records(folder, truth.Parameters)}
of_data = {r.parameters.problem: r for r in load_records(folder, truth.DataParameters)}
finished = load_records(folder, methods.Parameters)
runs = {(r.parameters.method, r.parameters.budget, r.parameters.seed): r for r in finished}
BUDGET = methods.EVALUATIONS["full"]
TITLES = {name: method.title for name, method in METHODS.items()}
TRAINED = [name for name, method in METHODS.items() if method.train]
assert not any(r.failure for r in finished)


def exact(key, lam=task.lam):
    """What the weights say, over seeds."""
    sweeps = [pd.DataFrame(weighed["solubility", s].curve).set_index("lam") for s in SEEDS]
    return np.array([sweep.loc[lam, key] for sweep in sweeps])


def metric(name, key, budget=BUDGET):
    """One metric of a method, or of "base" or "truth", over seeds."""
    if name in ("base", "truth"):
        return np.array([weighed["solubility", s][name][key] for s in SEEDS])
    return np.array([runs[name, budget, s].metrics.get(key, np.nan) for s in SEEDS], float)


# %% tags=["hide-input"]
def distance(name, budget=BUDGET):
    """KL of the law of paths to that of the exact tilt, in nats, over seeds."""
    if name == "base":
        return exact("log_z") - task.lam * metric("base", "mean_reward")
    return metric(name, "distance", budget) + exact("log_z")


def fcd(name, budget=BUDGET):
    """Fréchet ChemNet distance to the weighted truth, over seeds."""
    if name in ("base", "truth"):
        return np.array([weighed["solubility", s][f"fcd_{name}"] for s in SEEDS])
    return metric(name, "fcd", budget)


def pm(values, form=".2f"):
    """Mean and standard error over seeds, with a minus sign of its own."""
    mean, error = values.mean(), values.std(ddof=1) / len(values) ** 0.5
    return f"{mean:{form}} ± {error:{form}}".replace("-", "−")


def minus(value, form=".2f"):
    return f"{value:{form}}".replace("-", "−")
