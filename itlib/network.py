r"""The network of Section 4.2: a perceptron of depth 5 and width 256 that sees time through Fourier features.

.. math::

   h_1 = W_x x + W_t\,\phi(t) + b,\qquad h_{l+1} = W_l\,\mathrm{silu}(h_l) + b_l,\qquad
   \hat x_1^\theta(x,t) = W_{\mathrm{out}}\,\mathrm{silu}(h_5) + b_{\mathrm{out}},

with :math:`\phi(t) = [\sin 2\pi f t, \cos 2\pi f t]` at 64 fixed Gaussian frequencies :math:`f` (Tancik et al., arXiv
2006.10739). The output is a prediction of :math:`X_1`, so the score is :math:`-\hat x_1^\theta/\sigma_t` (2.8).

The first layer is split in two so that its time part is computed once when all samples share a time, as they do in
every reverse step of Algorithm 1.

What the paper leaves open and we chose: the activation (SiLU), the scale of the frequencies, and that "depth 5" counts
hidden layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from itlib._checks import autograd
from itlib._kernels import linear_silu
from itlib.schedules import Schedule, column

#: Maps (x (B, d), t (B,) or ()) to a prediction of the noise, E[X_1 | X_t = x], (B, d): a network, or the exact one. The
#: paper calls it the denoiser or X_1-prediction; elsewhere a denoiser predicts the clean sample X_0 (see :class:`FromX0`).
NoisePredictor = Callable[[Tensor, Tensor], Tensor]


def device_of(model: NoisePredictor) -> torch.device:
    """Where a model's parameters live; the CPU for one that has none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    return next((p.device for p in parameters), torch.device("cpu"))


@contextmanager
def evaluating(*models: NoisePredictor) -> Iterator[None]:
    """Evaluation mode: no dropout, batch statistics as they were learned. Restores the mode of every part."""
    training = [part for model in models if isinstance(model, nn.Module) for part in model.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class FourierFeatures(nn.Module):
    """Sines and cosines of time at fixed random frequencies.

    Args:
        dimension: size of the embedding, even.
        scale: standard deviation of the frequencies, in cycles per unit of time.
    """

    frequencies: Tensor

    def __init__(self, dimension: int = 128, scale: float = 1.0) -> None:
        super().__init__()
        if dimension < 2 or dimension % 2:
            raise ValueError(f"the time embedding needs an even dimension of at least 2, got {dimension}")
        self.register_buffer("frequencies", scale * torch.randn(dimension // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Features of times t, (B,) or (), as (B, dimension) or (dimension,)."""
        angle = 2.0 * math.pi * t.unsqueeze(-1) * self.frequencies
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class Network(nn.Module):
    """The network of Section 4.2.

    Args:
        d: dimension of the data.
        width: units of a hidden layer.
        depth: number of hidden layers.
        embedding: dimension of the time embedding.
        fourier_scale: standard deviation of its frequencies.
        seed: fixes the initial weights and the frequencies; the global random state is left alone.
        bounded: whether the last hidden layer is a hyperbolic tangent instead of a SiLU.
    """

    @autograd
    def __init__(
        self,
        d: int = 2,
        width: int = 256,
        depth: int = 5,
        embedding: int = 128,
        fourier_scale: float = 1.0,
        seed: int = 0,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        self.bounded = bounded
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = FourierFeatures(embedding, fourier_scale)
            self.space = nn.Linear(d, width)
            self.time = nn.Linear(embedding, width, bias=False)
            self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
            self.output = nn.Linear(width, d)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d), from noised samples x, (B, d), and times t, (B,) or ()."""
        if x.shape[-1:] != (self.space.in_features,):
            raise ValueError(f"this network denoises samples of shape (B, {self.space.in_features}), got {tuple(x.shape)}")
        h = functional.silu(self.space(x) + self.time(self.features(t.to(x))), inplace=not torch.is_grad_enabled())
        for layer in self.hidden[:-1] if self.bounded else self.hidden:
            h = linear_silu(layer, h)
        if self.bounded:
            h = torch.tanh(self.hidden[-1](h))
        result: Tensor = self.output(h)
        return result


class FromX0(nn.Module):
    r"""Turns an :math:`X_0`-prediction into a noise predictor by (2.6): :math:`\hat x_1 = (x - \alpha_t\hat x_0)/\sigma_t`.

    Args:
        x0_network: predicts X_0, such as a :class:`Network` trained on (2.9).
        schedule: the pair alpha, sigma; times are kept above its t_min, where sigma would vanish.
    """

    def __init__(self, x0_network: NoisePredictor, schedule: Schedule) -> None:
        super().__init__()
        self.x0_network, self.schedule = x0_network, schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d)."""
        t = t.clamp_min(self.schedule.t_min)
        alpha, sigma = (column(f(t), x).to(x) for f in (self.schedule.alpha, self.schedule.sigma))
        result: Tensor = (x - alpha * self.x0_network(x, t)) / sigma
        return result


class Residual(nn.Module):
    r"""A frozen noise predictor plus a trainable correction that starts at zero.

    This is how a model without parameters, such as the exact one of a mixture, is fine-tuned, and it is what the
    networks of :mod:`itlib.beyond.preconditioning` are.

    Args:
        base: any model. A regression does not train it; for a loss that differentiates samples, freeze its parameters.
        correction: the network that learns; its last layer, ``output``, is set to zero here.
    """

    def __init__(self, base: NoisePredictor, correction: nn.Module) -> None:
        super().__init__()
        if not isinstance(output := getattr(correction, "output", None), nn.Linear):
            raise ValueError(f"the last layer of a correction is an nn.Linear called output, got {type(output).__name__}")
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.base, self.correction = base, correction

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d)."""
        # Frozen in its parameters, not in x: the probability-flow likelihood differentiates a model in x.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            frozen = self.base(x, t)
        result: Tensor = frozen + self.correction(x, t)
        return result
