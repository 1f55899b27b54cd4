r"""Guidance: steer the sampler toward the reward and train nothing.

The model of the tilted distribution differs from the base's by the gradient of a *value*,

.. math::

   \hat x_1^{\lambda r}(x,t) = \hat x_1(x,t) - \sigma_t\nabla_x V_t(x),\qquad
   V_t(x) = \log\mathbb E\big[e^{\lambda r(X_0)}\mid X_t=x\big] = \log\frac{p_t^{\lambda r}(x)}{p_t(x)} + \log Z ,

which is Proposition 3.1 again. Guidance needs :math:`V` while it samples:

- :func:`exact_value`: the closed form of a mixture. With the exact base it samples the exact target; with a learned base it
  shows what the base alone costs.
- :func:`plug_in_value`: :math:`\lambda r(\hat x_0(x,t))`, the reward of the predicted clean sample (Chung et al., arXiv
  2209.14687, among others). It needs :math:`\nabla r` through the network and is biased: it takes the exponential of a mean
  for the mean of an exponential, :math:`V_t\ge\lambda\,\mathbb E[r\mid x]`.

*Classifier-free guidance* (Ho and Salimans, arXiv 2207.12598), which the paper's introduction mentions, extrapolates from
an unconditional to a conditional model, :func:`classifier_free`. It moves each :math:`p_t` toward
:math:`p_t\,p_t(c\mid x)^w`, and these are not the noised versions of :math:`p_0\,p_0(c\mid x)^w`: unless w is 0 or 1
it does not sample the tilt by :math:`r=\log p_0(c\mid x)`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itlib._checks import checked
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import NoisePredictor
from itlib.rewards import QuadraticReward, Reward
from itlib.schedules import Schedule, column

#: A value: (x (B, d), t () or (B,)) to V_t(x), (B,); differentiable in x.
Value = Callable[[Tensor, Tensor], Tensor]


@checked
def clean(eps: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The predicted clean sample of (2.6), (x - sigma_t eps) / alpha_t, (B, d)."""
    alpha, sigma = (column(f(t.double()), x).to(x) for f in (schedule.alpha, schedule.sigma))
    return (x - sigma * eps) / alpha


@checked
def exact_value(base: GaussianMixture, reward: QuadraticReward, schedule: Schedule, lam: float = 1.0) -> Value:
    """V_t in closed form at one time t, (), for a mixture tilted by a quadratic reward.

    Raises:
        NotNormalisableError: if the tilt does not exist.
    """
    target, log_z = base.tilted(reward, lam), base.log_normaliser(reward, lam)

    def value(x: Tensor, t: Tensor) -> Tensor:
        at = float(t)
        return target.noised(schedule, at).log_prob(x) - base.noised(schedule, at).log_prob(x) + log_z

    return value


@checked
def plug_in_value(base: NoisePredictor, reward: Reward, schedule: Schedule, lam: float = 1.0) -> Value:
    """The reward of the predicted clean sample, lam r(x_0_hat(x, t)); the reward must be differentiable."""
    return lambda x, t: lam * reward(clean(base(x, t), x, t, schedule))


@checked
def guided(base: NoisePredictor, value: Value, schedule: Schedule) -> NoisePredictor:
    """The base's prediction of X_1 shifted by -sigma_t grad V_t, as a model for any sampler."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        twice = torch.is_grad_enabled() and x.requires_grad  # a likelihood differentiates the model itself
        with torch.enable_grad():
            y = x if twice else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(value(y, t).sum(), y, create_graph=twice)
        return base(x, t) - column(schedule.sigma(t.double()), x).to(x) * gradient

    return model


@checked
def exactly_guided(
    base: NoisePredictor, mixture: GaussianMixture, target: GaussianMixture, schedule: Schedule
) -> NoisePredictor:
    """The base guided by :func:`exact_value`, for times of any shape; its error is that of the base."""
    before, after = ExactNoisePredictor(mixture, schedule), ExactNoisePredictor(target, schedule)
    return lambda x, t: base(x, t) + after(x, t) - before(x, t)


@checked
def classifier_free(unconditional: NoisePredictor, conditional: NoisePredictor, w: float) -> NoisePredictor:
    """Classifier-free guidance: (1 - w) unconditional + w conditional; w = 1 is the conditional model itself."""
    return lambda x, t: torch.lerp(unconditional(x, t), conditional(x, t), w)
