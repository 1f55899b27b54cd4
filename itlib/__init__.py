"""Iterative tilting for diffusion fine-tuning (arXiv 2512.03234): the method, exact oracles and metrics.

What most people need can be imported from here; each name lives in a module that says more. A schedule fixes the forward
process, a mixture of Gaussians is known exactly at every time, and a *noise predictor* is any callable from (x, t) to a
prediction of the noise, the exact one of a mixture or a network:

>>> import torch
>>> from itlib import Cosine, GaussianMixture, ExactNoisePredictor, Network, add_noise, paper_mixture
>>> schedule, base = Cosine(), paper_mixture()
>>> x_0 = base.sample(500, torch.Generator().manual_seed(0)).float()
>>> add_noise(schedule, x_0, torch.randn_like(x_0), torch.full((500,), 0.5)).shape
torch.Size([500, 2])
>>> exact, network = ExactNoisePredictor(base, schedule), Network(2, width=32, depth=2)
>>> network(x_0, torch.tensor(0.5)).shape == exact(x_0, torch.tensor(0.5)).shape
True
>>> GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0)).d
2

Networks are trained by denoising score matching, and sampled by Algorithm 1:

>>> from itlib import TrainingConfig, sample, train_noise_predictor
>>> len(list(train_noise_predictor(network, x_0, schedule, TrainingConfig(epochs=2))))
2
>>> sample(exact, schedule, 100, steps=20).shape
torch.Size([100, 2])

A reward is a plain callable. Algorithm 2 tilts by it, one step at a time; a run goes on from the state of any step:

>>> from itlib import QuadraticReward, TiltingConfig, iterative_tilting
>>> reward = QuadraticReward(b=torch.tensor([0.0, 4.0]))
>>> config = TiltingConfig(N=2, S=64, J=5, B=16, E=3)
>>> first = next(iterative_tilting(exact, reward, schedule, config))
>>> first.strength
0.5
>>> [step.k for step in iterative_tilting(exact, reward, schedule, config, state=first.state)]
[2]

The recommended configuration has a name of its own. It measures its chains as it goes:

>>> from itlib import RecommendedConfig, recommended_tilting
>>> step = next(recommended_tilting(exact, reward, schedule, RecommendedConfig(S=64, J=10)))
>>> 0 < step.diagnostics.ess <= 1
True

The exact tilt is known, and so are the errors:

>>> from itlib import log_likelihood, mode_weights, score_errors
>>> target = base.tilted(reward)
>>> score_errors(ExactNoisePredictor(target, schedule), target, schedule, n=100).eps_rmse < 1e-5
True
>>> [round(float(w), 3) for w in mode_weights(target.sample(1), target)] in ([1.0, 0.0], [0.0, 1.0])
True
>>> bool((log_likelihood(exact, schedule, x_0[:5]) - base.log_prob(x_0[:5])).abs().max() < 0.1)
True
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
    from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
    from itlib.likelihood import log_likelihood
    from itlib.metrics import mode_weights, score_errors
    from itlib.network import Network
    from itlib.rewards import QuadraticReward
    from itlib.sampling import sample
    from itlib.schedules import Cosine, Linear, add_noise
    from itlib.tilting import TiltingConfig, iterative_tilting
    from itlib.training import TrainingConfig, train_noise_predictor

__all__ = [
    "Cosine",
    "ExactNoisePredictor",
    "GaussianMixture",
    "Linear",
    "Network",
    "QuadraticReward",
    "RecommendedConfig",
    "TiltingConfig",
    "TrainingConfig",
    "add_noise",
    "iterative_tilting",
    "log_likelihood",
    "mode_weights",
    "paper_mixture",
    "recommended_tilting",
    "sample",
    "score_errors",
    "train_noise_predictor",
]

__version__ = importlib.metadata.version("itlib")

_MODULES = {
    "schedules": ("Cosine", "Linear", "add_noise"),
    "gaussian_mixture": ("ExactNoisePredictor", "GaussianMixture", "paper_mixture"),
    "network": ("Network",),
    "rewards": ("QuadraticReward",),
    "training": ("TrainingConfig", "train_noise_predictor"),
    "sampling": ("sample",),
    "tilting": ("TiltingConfig", "iterative_tilting"),
    "likelihood": ("log_likelihood",),
    "metrics": ("mode_weights", "score_errors"),
    "beyond.recommended": ("RecommendedConfig", "recommended_tilting"),
}


def __getattr__(name: str) -> object:
    """Import on first use: the batch and the command line start without torch."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"itlib.{module}"), name)
    raise AttributeError(f"module 'itlib' has no attribute {name!r}")
