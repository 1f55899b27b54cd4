r"""Denoisers that were trained elsewhere: another schedule, another prediction, images instead of vectors, LoRA.

Everything in this package speaks to a denoiser :math:`\hat x_1(x,t)` of flat samples, (B, d), and times in [0, 1]. A model
of the diffusers library sees images, (B, C, H, W), at one of T times :math:`\tau`, and predicts one of

.. math::

   \varepsilon = X_1,\qquad X_0,\qquad v = \alpha\,X_1-\sigma\,X_0 ,

of which each gives the others, because :math:`x=\alpha X_0+\sigma X_1` holds for their conditional means as well:

.. math::

   \hat x_1 = \hat\varepsilon = \frac{x-\alpha\hat x_0}{\sigma} = \frac{\alpha\hat v+\sigma x}{\alpha^2+\sigma^2} .

Its schedule is a table :math:`\bar\alpha_0>\dots>\bar\alpha_{T-1}` of squared data weights. :class:`Tabulated` puts
:math:`\bar\alpha_\tau` at :math:`t=(\tau+1)/T`, 1 at :math:`t=0`, and its logarithm linearly between. Algorithm 1 on K steps
then visits the times that diffusers calls "trailing".

A *low-rank adapter* (Hu et al., arXiv 2106.09685) leaves the weights W of a layer as they are and learns B and A of a small
rank, :math:`W+BA`, with B zero at first. :func:`with_lora` puts one on every linear and convolutional layer.

Source of v: Salimans and Ho (arXiv 2202.00512).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from itlib.schedules import Schedule, column

#: What a model predicts, in the words of diffusers' schedulers (``scheduler.config.prediction_type``).
Prediction = Literal["epsilon", "sample", "v_prediction"]
PREDICTIONS: tuple[Prediction, ...] = ("epsilon", "sample", "v_prediction")


class Tabulated(Schedule):
    """The variance-preserving schedule of a table, such as ``scheduler.alphas_cumprod`` of diffusers.

    Args:
        alphas_cumprod: squared weights of the data at tau = 0, ..., T - 1, (T,): decreasing, in (0, 1). A last one of 0, a
            terminal signal-to-noise ratio of zero, is allowed, and its time left out of what is sampled.

    Raises:
        ValueError: for a table that is not of this kind.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        table = torch.as_tensor(alphas_cumprod, dtype=torch.float64).detach().cpu().clone()
        if table.ndim != 1 or len(table) < 3 or not bool((table[:-1] > table[1:]).all()) or table[0] >= 1 or table[-1] < 0:
            raise ValueError(
                f"alphas_cumprod must fall from below 1 to 0 or more, (T,) with T of 3 or more; got {tuple(table.shape)} "
                f"from {float(table.flatten()[0]):g} to {float(table.flatten()[-1]):g}"
            )
        self.T = len(table)
        self.t_max = 1.0 if table[-1] > 0 else 1.0 - 1.0 / self.T
        self.t_min = 0.5 / self.T
        # A zero has no logarithm: one more step as long as the last stands for it, beyond t_max.
        table[-1] = table[-1] if table[-1] > 0 else table[-2] ** 2 / table[-3]
        self._log = torch.cat([torch.zeros(1, dtype=torch.float64), table.log()])

    def _at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the squared weight at times t of any shape, and its slope."""
        log, place = self._log.to(t.device), t.double() * self.T
        left = place.detach().floor().clamp(0, self.T - 1).long()
        slope = log[left + 1] - log[left]
        return log[left] + (place - left) * slope, slope * self.T

    def timestep(self, t: Tensor) -> Tensor:
        """What the model is told at time t: tau, in general between two whole numbers; 0 also for earlier times."""
        return (t * self.T - 1.0).clamp(0.0, self.T - 1.0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(0.5 * self._at(t)[0]).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._at(t)[0])).to(t.dtype)

    def alpha_dot(self, t: Tensor) -> Tensor:
        log, slope = self._at(t)
        return (0.5 * slope * torch.exp(0.5 * log)).to(t.dtype)

    def sigma_dot(self, t: Tensor) -> Tensor:
        log, slope = self._at(t)
        return (-0.5 * slope * torch.exp(log) / torch.sqrt(-torch.expm1(log))).to(t.dtype)


class FromModel(nn.Module):
    """A model of images, or of anything else, as a denoiser of flat samples.

    Args:
        model: maps images of the shape below, B of them, and timesteps, (B,) or (), to predictions of the same shape, or to
            an object that holds them as ``sample``, as the models of diffusers do. Bind what else it needs, such as the
            embedding of a text, beforehand.
        schedule: the one that it was trained with.
        shape: of one sample, such as (1, 8, 8).
        prediction: what the model predicts.
        timestep: from times in [0, 1] to what the model is told; of a :class:`Tabulated` schedule its own, else t itself.

    Raises:
        ValueError: for another prediction.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        shape: Sequence[int],
        prediction: Prediction = "epsilon",
        timestep: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction is one of {', '.join(PREDICTIONS)}, got {prediction!r}")
        self.model, self.schedule, self.shape, self.prediction = model, schedule, tuple(shape), prediction
        self._timestep = timestep or getattr(schedule, "timestep", None) or (lambda t: t)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d), from noised samples x, (B, d), and times t, (B,) or ()."""
        output = self.model(x.reshape(len(x), *self.shape), self._timestep(t).to(x))
        prediction: Tensor = (output if isinstance(output, Tensor) else output.sample).reshape(x.shape)
        if self.prediction == "epsilon":
            return prediction
        t = t.clamp_min(self.schedule.t_min)
        alpha, sigma = (column(f(t), x).to(x) for f in (self.schedule.alpha, self.schedule.sigma))
        if self.prediction == "sample":
            return (x - alpha * prediction) / sigma
        return (alpha * prediction + sigma * x) / (alpha**2 + sigma**2)


def with_lora(denoiser: nn.Module, rank: int = 4, *, seed: int = 0) -> nn.Module:
    """A copy whose own weights are frozen, with low-rank adapters that learn in their place and change nothing at first.

    Args:
        denoiser: any network; each of its linear and convolutional layers gets an adapter.
        rank: of the adapters.
        seed: fixes their initial weights.

    Raises:
        ValueError: for a network without such layers.
        ModuleNotFoundError: without the package peft.
    """
    from peft import LoraConfig, inject_adapter_in_model

    student = copy.deepcopy(denoiser)
    layers = [name for name, module in student.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError("the denoiser has no linear or convolutional layer to put an adapter on: train all of it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
        adapted: nn.Module = inject_adapter_in_model(config, student)
    return adapted


def merge_lora(denoiser: nn.Module) -> nn.Module:
    """A copy with every adapter added into the weights that it was put on: the layers, and the speed, of the original."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(denoiser)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged.requires_grad_(True)


def trainable(denoiser: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name; of a network with adapters the adapters only."""
    return {name: p.detach().cpu().contiguous() for name, p in denoiser.named_parameters() if p.requires_grad}
