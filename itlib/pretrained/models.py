r"""A model of images, or of anything else, as a noise predictor :math:`\hat x_1(x,t)` of flat samples, (B, d), t in [0, 1].

Because :math:`x=\alpha X_0+\sigma X_1` holds for conditional means too, whatever a model predicts is linear in the noise: of
a state scaled by c it says :math:`F(c\,x)`, and :math:`\hat x_1=p\,x+q\,F` with (c, p, q) for the prediction of

.. math::

   X_1:\ (1,\,0,\,1),\qquad X_0:\ \Big(1,\tfrac1\sigma,-\tfrac\alpha\sigma\Big),\qquad
   \alpha X_1-\sigma X_0:\ (1,\sigma,\alpha),\qquad X_1-X_0:\ \Big(1,\tfrac1{\alpha+\sigma},\tfrac\alpha{\alpha+\sigma}\Big),

under the names ``epsilon``, ``sample``, ``v_prediction`` (Salimans and Ho, arXiv 2202.00512: only where
:math:`\alpha^2+\sigma^2=1`) and ``flow_prediction``. The score :math:`-\alpha X_1/\sigma` of the variance-exploding state
:math:`x/\alpha` has :math:`(1/\alpha,0,-\sigma/\alpha)`, and the network inside EDM's preconditioning, (7) of arXiv
2206.00364, :math:`(1/n,\ \sigma/n^2,\ -\alpha s/n)` with :math:`n^2=\sigma^2+s^2\alpha^2` and s its ``sigma_data``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itlib.network import evaluating
from itlib.pretrained.processes import together
from itlib.schedules import Schedule, column


class Linear(NamedTuple):
    """x1_hat = p x + q F(c x), each a number or shaped to multiply x."""

    c: Tensor | float
    p: Tensor | float
    q: Tensor | float


#: What a model predicts: from alpha and sigma to how its answer becomes a prediction of X_1.
Prediction = Callable[[Tensor, Tensor], Linear]


def edm(alpha: Tensor, sigma: Tensor, *, sigma_data: float = 0.5, sign: float = 1.0) -> Linear:
    """The preconditioned network of EDM; of diffusers' EDMEulerScheduler with prediction type v the sign is -1."""
    n = (sigma**2 + (sigma_data * alpha) ** 2).sqrt()
    return Linear(1 / n, sigma / n**2, -sign * sigma_data * alpha / n)


def _v(alpha: Tensor, sigma: Tensor) -> Linear:
    if not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha), atol=1e-3):
        raise ValueError("v_prediction is alpha X_1 - sigma X_0 with alpha^2 + sigma^2 = 1: here say 'flow_prediction'")
    return Linear(1.0, sigma, alpha)


#: Predictions by the names that diffusers' schedulers have for them (``scheduler.config.prediction_type``).
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": lambda alpha, sigma: Linear(1.0, 0.0, 1.0),
    "sample": lambda alpha, sigma: Linear(1.0, 1 / sigma, -alpha / sigma),
    "v_prediction": _v,
    "flow_prediction": lambda alpha, sigma: Linear(1.0, 1 / (alpha + sigma), alpha / (alpha + sigma)),
    "score": lambda alpha, sigma: Linear(1 / alpha, 0.0, -sigma / alpha),
}


def clamped(bound: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Keep predictions of X_0 in [-bound, bound]: diffusers' ``clip_sample``, with ``use_clipped_model_output``."""
    return partial(torch.clamp, min=-bound, max=bound)


def thresholded(ratio: float = 0.995, largest: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Diffusers' ``thresholding``: each X_0 clamped at a quantile of itself, and divided by it (arXiv 2205.11487)."""

    def threshold(x_0: Tensor) -> Tensor:
        bound = x_0.abs().quantile(ratio, dim=1, keepdim=True).clamp(1.0, max(1.0, largest))
        return x_0.clamp(-bound, bound) / bound

    return threshold


class FromModel(nn.Module):
    """A model as a noise predictor of flat samples, run in evaluation mode and in the dtype of its weights.

    Args:
        model: maps states of the shape below, B of them, and timesteps, (B,), to predictions of that shape, or to an object
            that holds them as ``sample``, as the models of diffusers do.
        schedule: the one that it was trained with.
        shape: of one sample, such as (3, 64, 64).
        prediction: what the model predicts, by its name or as a function.
        timestep: from times, (B,), to what the model is told, (B,); by default the schedule's own, else t itself.
        clip: applied to predictions of X_0, (B, d), such as :func:`clamped` or :func:`thresholded`.
        condition: further arguments of the model; a tensor for one sample stands for all.
        integers: whether timesteps are rounded to whole numbers, for models that look them up.
        microbatch: number of states in one call of the model. Gradients then compute it again instead of keeping what is
            inside: memory is that of one call, and results are the same to rounding.
        shared: whether each process of ``torch.distributed`` makes its share of these calls.

    Raises:
        TypeError: if the model is no module: nobody could find its weights, and another network would learn in its place.
        ValueError: for another prediction.
        ValueError: for calls that are shared without a microbatch.
        ValueError: for a v_prediction of a schedule that does not preserve variance.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        shape: Sequence[int],
        prediction: str | Prediction = "epsilon",
        timestep: Callable[[Tensor], Tensor] | None = None,
        *,
        clip: Callable[[Tensor], Tensor] | None = None,
        condition: Mapping[str, Any] | None = None,
        integers: bool = False,
        microbatch: int | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the model must be a torch.nn.Module, got {type(model).__name__}: a function hides its weights from "
                "training. Pass the module itself, and what it needs besides as condition={...}"
            )
        if isinstance(prediction, str) and prediction not in PREDICTIONS:
            raise ValueError(f"prediction is one of {', '.join(PREDICTIONS)}, or a function, got {prediction!r}")
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"microbatch counts states, at least 1, got {microbatch}")
        if shared and microbatch is None:
            raise ValueError("calls are shared out, so there must be some: give a microbatch with shared=True")
        self.model, self.schedule, self.shape, self.d = model, schedule, tuple(shape), torch.Size(shape).numel()
        self.prediction = PREDICTIONS[prediction] if isinstance(prediction, str) else prediction
        self.clip, self.condition, self.integers = clip, dict(condition or {}), integers
        self.microbatch, self.shared = microbatch, shared
        self._timestep = timestep or getattr(schedule, "timestep", None) or (lambda t: t)
        half = torch.tensor(0.5)
        self.prediction(schedule.alpha(half), schedule.sigma(half))

    def _call(self, x: Tensor, told: Tensor, *condition: Any) -> Tensor:
        with evaluating(self.model):
            output = _ask(self.model, x.reshape(-1, *self.shape), told, **dict(zip(self.condition, condition, strict=True)))
        answer: Tensor = output if isinstance(output, Tensor) else output[0] if isinstance(output, tuple) else output.sample
        if answer.shape == (len(x), 2 * self.shape[0], *self.shape[1:]):  # the second half is a variance that it learned
            answer = answer[:, : self.shape[0]]
        if answer.numel() != x.numel():
            raise ValueError(
                f"the model answers states {(len(x), *self.shape)} with {tuple(answer.shape)}: pass the shape of one sample"
            )
        return answer.reshape(x.shape)

    def answer(self, x: Tensor, told: Tensor) -> Tensor:
        """What the model itself says of states x, (B, d), in its own coordinates, told its own times, (B,)."""
        weights = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), x.dtype)
        scaled, told = x.to(weights), told.round().long() if self.integers else told
        condition = [_batch(v, len(x), x.device) for v in self.condition.values()]
        if self.microbatch is None or len(x) <= self.microbatch:
            return self._call(scaled, told, *condition).to(x)
        parts = [v.split(self.microbatch) if isinstance(v, Tensor) else [v] * len(x) for v in (scaled, told, *condition)]
        calls = [partial(self._part, *part) for part in zip(*parts, strict=False)]
        if self.shared and not torch.is_grad_enabled():
            return together(calls, torch.zeros_like(x), self.microbatch)
        return torch.cat([call() for call in calls]).to(x)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d), from noised samples x, (B, d), and times t, (B,) or ().

        Raises:
            ValueError: for states of another dimension.
        """
        if x.shape[1:] != (self.d,):
            raise ValueError(f"states of this model have shape (B, {self.d}), got {tuple(x.shape)}: pass d={self.d}")
        t = t.to(device=x.device).expand(len(x))
        told = self._timestep(t).to(torch.promote_types(x.dtype, torch.float32))
        t = t.clamp(self.schedule.t_min, self.schedule.t_max)
        alpha, sigma = (column(f(t), x).to(x) for f in (self.schedule.alpha, self.schedule.sigma))
        c, p, q = self.prediction(alpha, sigma)
        x1_hat: Tensor = p * x + q * self.answer(c * x, told)
        if self.clip is None:
            return x1_hat
        return (x - alpha * self.clip((x - sigma * x1_hat) / alpha)) / sigma

    def _part(self, *arguments: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self._call(*arguments)
        answer: Tensor = checkpoint(self._call, *arguments, use_reentrant=False, preserve_rng_state=False)
        return answer


def _ask(model: nn.Module, x: Tensor, told: Tensor, **condition: Any) -> Any:
    """A model's answer; the timestep is its second argument, or by name: transformers of diffusers have it elsewhere."""
    if "timestep" in inspect.signature(model.forward).parameters:
        return model(x, timestep=told, **condition)
    return model(x, told, **condition)


def _batch(value: Any, n: int, device: torch.device) -> Any:
    """A condition for n samples; that of one sample stands for all."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(device)
    return value.expand(n, *value.shape[1:]) if len(value) == 1 else value


@contextmanager
def conditioned(module: nn.Module, condition: Mapping[str, Any]) -> Iterator[None]:
    """Give every :class:`FromModel` in a module a condition, besides those that it has, for a while.

    Args:
        module: with a :class:`FromModel` in it.
        condition: arguments of its model by name; tensors for one sample, which stand for all, or for each.

    Raises:
        ValueError: if there is nothing to be told a condition.
    """
    parts = {part: part.condition for part in module.modules() if isinstance(part, FromModel)}
    if not parts:
        raise ValueError(f"a {type(module).__name__} is told no condition: wrap the model in a FromModel")
    for part, before in parts.items():
        part.condition = before | dict(condition)
    try:
        yield
    finally:
        for part, before in parts.items():
            part.condition = before


class Guided(nn.Module):
    """Classifier-free guidance (arXiv 2207.12598): F(none) + scale (F(condition) - F(none)), as a model of its own.

    Args:
        model: takes its conditions as keyword arguments.
        scale: 1 is the conditional model; pipelines of diffusers call it ``guidance_scale``.
        none: the arguments without a condition, for one sample: the embedding of an empty text, or a class of its own.
    """

    def __init__(self, model: nn.Module, scale: float, none: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.scale, self.none = model, scale, dict(none)

    def forward(self, x: Tensor, timestep: Tensor, **condition: Any) -> Tensor:
        """The guided prediction, of the shape of x: one call of the model on 2 B samples."""
        both = dict(condition)
        for name, value in self.none.items():
            empty = _batch(value, len(x), x.device)
            both[name] = torch.cat([empty, condition[name].to(empty)])
        for name in both.keys() - self.none.keys():
            both[name] = torch.cat([both[name]] * 2) if isinstance(both[name], Tensor) else both[name]
        output = _ask(self.model, torch.cat([x, x]), torch.cat([timestep, timestep]), **both)
        without, given = (output if isinstance(output, Tensor) else output.sample).chunk(2)
        guided: Tensor = without + self.scale * (given - without)
        return guided
