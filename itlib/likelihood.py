r"""Probability-flow likelihood: the density that a model assigns to a sample.

Along the probability-flow ODE of the process (2.1), written with both predictions (2.6),

.. math::

   \frac{dx}{dt} = v(x,t) = \dot\alpha_t\,\hat x_0(x,t) + \dot\sigma_t\,\hat x_1(x,t),

   \log p_{t_{\min}}(x_{t_{\min}}) = \log p_{t_{\max}}(x_{t_{\max}}) + \int_{t_{\min}}^{t_{\max}}\nabla\cdot v(x_t,t)\,dt,

with :math:`p_{t_{\max}}` taken as :math:`\mathcal N(0, \sigma_{t_{\max}}^2 I)`. For the variance-preserving schedule this
is (2.13) with the sign corrected. The integral runs between the schedule's safe edge times, so it gives the density of data
with noise of standard deviation :math:`\sigma_{t_{\min}}` (0.006 for the cosine schedule) added. The solver is dopri5 of
torchdiffeq; the divergence is exact, one vector-Jacobian product per dimension.

Source: Song et al. (arXiv 2011.13456, eq. 39).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itlib._checks import Positive, Samples, autograd, checked
from itlib.network import NoisePredictor
from itlib.schedules import Schedule, column


@checked
def velocity(model: NoisePredictor, schedule: Schedule, x: Tensor, t: Tensor) -> Tensor:
    """Velocity of the probability flow, (B, d), at x, (B, d), and a time t, () or (B,), with 0 < t < 1."""
    s = t.double()
    alpha, sigma = schedule.alpha(s), schedule.sigma(s)
    rate = schedule.alpha_dot(s) / alpha
    noise_rate = schedule.sigma_dot(s) - sigma * rate
    return column(rate, x).to(x) * x + column(noise_rate, x).to(x) * model(x, t)


@autograd
def log_likelihood(
    model: NoisePredictor, schedule: Schedule, x: Samples, *, rtol: Positive = 1e-4, atol: Positive = 1e-4
) -> Tensor:
    """Log-density in nats, (B,), that the probability flow of a model assigns to x, (B, d).

    Args:
        model: differentiable in x, a network or an exact one.
        schedule: the pair alpha, sigma.
        x: points, (B, d). The cost grows with d, since the divergence is exact.
        rtol: relative tolerance of the solver.
        atol: absolute tolerance of the solver.

    Raises:
        ValueError: if x is not finite.
        FloatingPointError: if the solver's step underflows, as it does for a model that is not smooth.
    """
    try:
        from torchdiffeq import odeint  # here, because it imports SciPy, which takes a third of the time of torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("likelihoods need torchdiffeq: pip install 'itlib[metrics]'") from error

    parameters = [p for p in getattr(model, "parameters", lambda: [])() if p.requires_grad]

    def dynamics(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = state[0].detach().requires_grad_()
            v = velocity(model, schedule, y, t)
            divergence = torch.zeros_like(state[1])
            for i in range(y.shape[1]):
                (row,) = torch.autograd.grad(v[:, i].sum(), y, retain_graph=i + 1 < y.shape[1])
                divergence = divergence + row[:, i]
        return v.detach(), divergence

    times = torch.tensor([schedule.t_min, schedule.t_max], dtype=x.dtype, device=x.device)
    for p in parameters:  # only the gradient in x is needed
        p.requires_grad_(False)
    try:
        with torch.no_grad():
            states, integrals = odeint(
                dynamics, (x, torch.zeros_like(x[:, 0])), times, rtol=rtol, atol=atol, method="dopri5"
            )
    except AssertionError as error:  # torchdiffeq's
        raise FloatingPointError(
            f"the flow of this model cannot be followed ({error}): it is not smooth, or diverged"
        ) from None
    finally:
        for p in parameters:
            p.requires_grad_(True)
    end, scale = states[-1], float(schedule.sigma(times[-1].double()))
    log_normal = -0.5 * (end / scale).square().sum(-1) - x.shape[1] * math.log(scale * math.sqrt(2.0 * math.pi))
    return torch.as_tensor(log_normal + integrals[-1])
