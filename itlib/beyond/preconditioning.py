r"""Models that learn a correction in whitened coordinates: of a Gaussian, or of a pretrained model.

Let :math:`m` and :math:`\Sigma=Q\Lambda Q^\top` be mean and covariance of the data, and
:math:`V_t=\alpha_t^2\Lambda+\sigma_t^2`. The Gaussian with these two moments has the noise predictor
:math:`\hat x_1^G(x,t)=Q\,\sigma_tV_t^{-1}Q^\top(x-\alpha_tm)`. What is left to learn on top of it, or on top of a
pretrained model that is to be tilted, is written as

.. math::

   \hat x_1^\theta(x,t) = \hat x_1^{\mathrm{frozen}}(x,t) + Q\,c_t\,F_\theta(w,t),\qquad
   w = V_t^{-1/2}Q^\top(x-\alpha_tm),

with :math:`c_t=\alpha_t(\Lambda/V_t)^{1/2}` for a base (the preconditioning of Karras et al., arXiv 2206.00364, in the
units of the noise) and :math:`c_t=\sigma_t\alpha_t\Lambda^{1/2}/V_t` for a tilt, because its step :math:`\sigma_t C_k`
vanishes at both ends of time. The network sees inputs of unit variance at all times, and its output has one scale. The
correction of a tilt ends in a hyperbolic tangent, so it stays bounded where it has seen no data. One that grows there turns
a rare sample into an outlier, the outlier has a large reward, and the next tilt learns from it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from itlib._checks import autograd
from itlib.network import Network, NoisePredictor, Residual
from itlib.schedules import Schedule, column


class Gaussian(nn.Module):
    r"""The noise predictor :math:`\hat x_1^G` of the Gaussian with the mean and covariance of some data; it is affine in x.

    Args:
        data: samples that give mean and covariance, (n, d) with n > d; or d, if its state will be loaded.
        schedule: the pair alpha, sigma.

    Raises:
        ValueError: if the data have no variance in some direction.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor

    def __init__(self, data: Tensor | int, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        mean, covariance = (
            (torch.zeros(data), torch.eye(data)) if isinstance(data, int) else (data.mean(0), data.double().T.cov())
        )
        # By one library for all devices: they differ in the signs of eigenvectors, and a network would see other inputs.
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance.reshape(len(mean), -1).cpu())
        if not bool((eigenvalues > 1e-12 * eigenvalues.abs().max()).all()):
            raise ValueError("the data have no variance in some direction: give more samples, or fewer dimensions")
        for name, value in (("mean", mean), ("eigenvalues", eigenvalues), ("eigenvectors", eigenvectors)):
            self.register_buffer(name, value.detach().to(mean.device).float().clone(memory_format=torch.contiguous_format))

    def whiten(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha and sigma, (B, 1) or (), V_t, (B, d) or (d,), and the whitened x, (B, d)."""
        alpha, sigma = (column(f(t), x).to(x) for f in (self.schedule.alpha, self.schedule.sigma))
        v = alpha**2 * self.eigenvalues + sigma**2
        return alpha, sigma, v, (x - alpha * self.mean) @ self.eigenvectors / v.sqrt()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d)."""
        _, sigma, v, w = self.whiten(x, t)
        result: Tensor = (sigma * w / v.sqrt()) @ self.eigenvectors.T
        return result


class Whitened(nn.Module):
    """A network that sees whitened inputs, scaled to what is left to learn.

    Args:
        network: F_theta, (B, d) and times to (B, d).
        gaussian: gives the coordinates.
        tilt: whether to scale as the step of a tilt (vanishing at t = 0 too) or as the correction of a base.
    """

    def __init__(self, network: Network, gaussian: Gaussian, *, tilt: bool) -> None:
        super().__init__()
        # A copy: a tensor that is found twice in a module cannot be saved as safetensors.
        self.network, self.gaussian, self.tilt = network, copy.deepcopy(gaussian), tilt

    @property
    def output(self) -> nn.Linear:
        """The last layer, which a :class:`~itlib.network.Residual` sets to zero."""
        return self.network.output

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The correction, (B, d)."""
        alpha, sigma, v, w = self.gaussian.whiten(x, t)
        scale = alpha * (self.gaussian.eigenvalues / v).sqrt()
        if self.tilt:
            scale = scale * sigma / v.sqrt()
        result: Tensor = (scale * self.network(w, t)) @ self.gaussian.eigenvectors.T
        return result


@autograd
def gaussian_skip_network(
    data: Tensor | int,
    schedule: Schedule,
    *,
    width: int = 64,
    depth: int = 3,
    embedding: int = 32,
    fourier_scale: float = 0.5,
    seed: int = 0,
) -> Residual:
    """A network as a correction of the Gaussian of its data: close to linear where it has not learned otherwise.

    Args:
        data: the training data, (n, d), or d, as for :class:`Gaussian`.
        schedule: the pair alpha, sigma.
        width: as for :class:`Network`, whose defaults are those of the paper; in these coordinates less is enough.
        depth: likewise.
        embedding: likewise.
        fourier_scale: likewise.
        seed: as for :class:`Network`.
    """
    gaussian = Gaussian(data, schedule)
    network = Network(len(gaussian.mean), width, depth, embedding, fourier_scale, seed)
    return Residual(gaussian, Whitened(network, gaussian, tilt=False))


@autograd
def adapter(base: NoisePredictor, data: Tensor | int, schedule: Schedule, *, seed: int = 0) -> Residual:
    """A frozen model with a small bounded correction that learns the tilts.

    Args:
        base: the pretrained model; copied and frozen if it has parameters.
        data: samples of the base, (n, d), or d, as for :class:`Gaussian`.
        schedule: the pair alpha, sigma.
        seed: as for :class:`Network`.
    """
    frozen = copy.deepcopy(base).eval().requires_grad_(False) if isinstance(base, nn.Module) else base
    gaussian = Gaussian(data, schedule)
    network = Network(len(gaussian.mean), 64, 2, 32, fourier_scale=0.5, seed=seed, bounded=True)
    return Residual(frozen, Whitened(network, gaussian, tilt=True))
