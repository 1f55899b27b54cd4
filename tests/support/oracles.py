"""Reference computations that share no formula with the package: autograd, grids and Monte Carlo."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from itlib.gaussian_mixture import GaussianMixture
from itlib.rewards import QuadraticReward


def random_mixture(seed: int, K: int = 3, d: int = 2) -> GaussianMixture:
    """A mixture with unequal weights and full, unequal covariances of eigenvalues above 0.15."""
    g = torch.Generator().manual_seed(seed)
    weights = 0.2 + torch.rand(K, generator=g, dtype=torch.float64)
    means = 1.5 * torch.randn(K, d, generator=g, dtype=torch.float64)
    root = torch.randn(K, d, d, generator=g, dtype=torch.float64)
    covariances = 0.4 * root @ root.mT / d + 0.15 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(weights, means, covariances)


def random_reward(seed: int, mixture: GaussianMixture) -> QuadraticReward:
    """A quadratic reward with curvature of both signs, at most 0.4 of what the mixture can bear."""
    g = torch.Generator().manual_seed(seed + 7919)
    d = mixture.d
    b = torch.randn(d, generator=g, dtype=torch.float64)
    A = torch.randn(d, d, generator=g, dtype=torch.float64)
    A = A + A.T
    largest = torch.linalg.eigvalsh(mixture.covariances).max()
    return QuadraticReward(b, A * 0.4 / (largest * torch.linalg.eigvalsh(A).abs().max()), c=0.3)


def random_points(seed: int, n: int, d: int, scale: float = 1.5) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 104729), dtype=torch.float64)


def log_noised(mixture: GaussianMixture, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """log p_t(x) straight from (2.1), differentiable in x, alpha and sigma. x is (B, d), alpha and sigma are ()."""
    covariances = alpha**2 * mixture.covariances + sigma**2 * torch.eye(mixture.d, dtype=torch.float64)
    components = MultivariateNormal(alpha * mixture.means, covariances)
    result: Tensor = MixtureSameFamily(Categorical(mixture.weights), components).log_prob(x)
    return result


def plane(radius: float = 13.0, n: int = 401) -> tuple[Tensor, float]:
    """Points (n^2, 2) of a square grid and the area of a cell.

    The trapezoidal rule on the whole plane is exact to rounding for Gaussians whose standard deviation exceeds the spacing
    (error exp(-2 pi^2 sd^2 / h^2)) and that have died out at the edge.
    """
    axis = torch.linspace(-radius, radius, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float((axis[1] - axis[0]) ** 2)


def slope(x: list[float], y: list[float]) -> float:
    """Slope of the regression of log y on log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
