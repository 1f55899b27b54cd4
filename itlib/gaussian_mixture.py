r"""Gaussian mixtures: the family in which everything the paper learns is known exactly.

With :math:`p_0 = \sum_i \omega_i\,\mathcal N(\mu_i, \Sigma_i)` (4.8) and the forward process (2.1),

.. math::

   p_t &= \sum_i \omega_i\,\mathcal N(\alpha_t\mu_i,\ \alpha_t^2\Sigma_i + \sigma_t^2 I),\\
   X_0 \mid X_t = x,\, i &\sim \mathcal N\big(\mu_i + \alpha_t \Sigma_i V_i^{-1}(x-\alpha_t\mu_i),\;
       \sigma_t^2\,\Sigma_i V_i^{-1}\big),\qquad V_i = \alpha_t^2\Sigma_i + \sigma_t^2 I,

so the score (2.8), the denoisers (2.5), the posterior (3.3) and the covariance (3.9) have closed forms. Tilting by
:math:`e^{\lambda r}` with the quadratic reward (4.2) gives a mixture again (4.10):

.. math::

   \Sigma_i' = (\Sigma_i^{-1}-\lambda A)^{-1},\quad
   \mu_i' = \Sigma_i'(\Sigma_i^{-1}\mu_i+\lambda b),\quad
   \omega_i' \propto \omega_i \Big(\tfrac{|\Sigma_i'|}{|\Sigma_i|}\Big)^{1/2}
   \exp\tfrac12\big[\mu_i'^\top\Sigma_i'^{-1}\mu_i' - \mu_i^\top\Sigma_i^{-1}\mu_i\big].

All :math:`V_i` of a component share the eigenvectors of :math:`\Sigma_i`, so one eigendecomposition serves every time;
nothing is ever inverted per sample. Densities are those of :mod:`torch.distributions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from itlib._checks import checked, finite
from itlib.rewards import QuadraticReward
from itlib.schedules import Schedule, coefficients, column


class NotNormalisableError(ValueError):
    """The tilt exp(lambda r) grows faster than the Gaussian tails fall, so the tilted density does not exist."""


@dataclass(frozen=True, eq=False)
@checked
class GaussianMixture:
    r"""A mixture of K Gaussians in d dimensions with full covariances (4.8).

    Args:
        weights: (K,) positive; normalised here.
        means: (K, d).
        covariances: (K, d, d), symmetric positive definite.

    Raises:
        ValueError: if shapes disagree.
        ValueError: if a number is not finite.
        ValueError: if a weight is not positive.
        ValueError: if a covariance is not positive definite.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        # Double precision throughout: this class is the truth that everything else is measured against.
        weights, means, covariances = self.weights.double(), self.means.double(), self.covariances.double()
        sizes = weights.shape, means.shape, covariances.shape
        if means.ndim != 2 or not means.numel() or sizes != (means.shape[:1], means.shape, (*means.shape, means.shape[1])):
            raise ValueError(
                "a mixture needs weights (K,), means (K, d) and covariances (K, d, d); got "
                f"{', '.join(str(tuple(size)) for size in sizes)}"
            )
        for name, value in (("weight", weights), ("mean", means), ("covariance", covariances)):
            if not finite(value):
                raise ValueError(f"every {name} of a mixture must be finite, got {value.tolist()}")
        if not bool((weights > 0).all()):
            raise ValueError(f"every mixture weight must be positive: leave the others out, got {weights.tolist()}")
        eigenvalues, eigenvectors = torch.linalg.eigh(covariances)
        if not bool((eigenvalues > 0).all()) or not torch.allclose(covariances, covariances.mT):
            raise ValueError(f"every covariance must be symmetric positive definite, got {covariances.tolist()}")
        for name, value in [
            ("weights", weights / weights.sum()),
            ("means", means),
            ("covariances", covariances),
            ("_eigenvalues", eigenvalues),  # (K, d)
            ("_eigenvectors", eigenvectors),  # (K, d, d), columns
        ]:
            object.__setattr__(self, name, value)

    _eigenvalues: Tensor = field(init=False, repr=False)
    _eigenvectors: Tensor = field(init=False, repr=False)

    @property
    def d(self) -> int:
        """Dimension of the space."""
        return self.means.shape[1]

    def distribution(self) -> MixtureSameFamily:
        """The same mixture as a torch distribution."""
        # By logarithms: torch would clamp probabilities at 2e-16 and inflate the lightest components.
        return MixtureSameFamily(Categorical(logits=self.weights.log()), MultivariateNormal(self.means, self.covariances))

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, (B,), at finite points x, (B, d)."""
        if x.shape[-1:] != (self.d,) or not finite(x):
            raise ValueError(f"a density takes finite points of shape (B, {self.d}), got shape {tuple(x.shape)}")
        result: Tensor = self.distribution().log_prob(x.to(self.means))
        return result.to(x)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n exact samples, (n, d), in double precision.

        torch.distributions takes no generator, so this draws by hand: a component, then a Gaussian.
        """
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.d, generator=generator, dtype=torch.float64)
        root = self._eigenvectors * self._eigenvalues.sqrt().unsqueeze(-2)  # Q sqrt(Lambda), (K, d, d)
        return self.means[component] + torch.einsum("nij,nj->ni", root[component], z)

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, (d,)."""
        return self.weights @ self.means

    # ---- noised (2.1)-(2.8) ------------------------------------------------------------------------------------

    def noised(self, schedule: Schedule, t: float) -> GaussianMixture:
        """The law p_t of X_t at one time t in [0, 1], again a mixture."""
        alpha, sigma = map(float, coefficients(schedule, torch.tensor(t, dtype=torch.float64), self.means))
        eye = torch.eye(self.d, dtype=torch.float64)
        return GaussianMixture(self.weights, alpha * self.means, alpha**2 * self.covariances + sigma**2 * eye)

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Log responsibilities (B, K) and V_i^{-1}(x - alpha mu_i) in the eigenbases (B, K, d).

        x is (B, d); alpha and sigma are (B, 1) or ().
        """
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"points of this mixture have shape (B, {self.d}), got {tuple(x.shape)}")
        alpha, sigma = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        if len(alpha) not in (1, len(x)):
            raise ValueError(f"t must be one time or one for each of {len(x)} points, got {len(alpha)}")
        u = torch.einsum("bkd,kde->bke", x.unsqueeze(1) - alpha * self.means, self._eigenvectors)
        v = alpha**2 * self._eigenvalues + sigma**2  # eigenvalues of V_i, (B, K, d)
        log_w = self.weights.log() - 0.5 * (u**2 / v + v.log()).sum(-1)
        return torch.log_softmax(log_w, dim=-1), u / v

    def score(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Exact score of p_t at points x, (B, d), and times t, (B,) or (), as in (2.8). Returns (B, d).

        Times outside [0, 1] are not refused: a solver of the probability flow looks beyond the end to choose its first step.
        """
        y, s = x.to(self.means), t.to(self.means)
        log_w, u = self._components(y, column(schedule.alpha(s), y), column(schedule.sigma(s), y))
        return -torch.einsum("bk,bke,kde->bd", log_w.exp(), u, self._eigenvectors).to(x)

    def posterior(self, x: Tensor, t: Tensor, schedule: Schedule) -> MixtureSameFamily:
        """The law of X_0 given X_t = x (3.3), one mixture per point: batch shape (B,), event shape (d,).

        Args:
            x: points, (B, d).
            t: times in (0, 1], (B,) or ().
            schedule: the pair alpha, sigma.
        """
        _noisy(t, schedule)
        log_w, means, covariances = self._posterior(x.to(self.means), t.to(self.means), schedule)
        return MixtureSameFamily(Categorical(logits=log_w), MultivariateNormal(means, covariances))

    def _posterior(self, x: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights (B, K), means (B, K, d) and covariances (B, K, d, d) of X_0 given X_t = x."""
        alpha, sigma = (c.reshape(-1, 1, 1) for c in coefficients(schedule, t, x))
        log_w, u = self._components(x, alpha, sigma)
        q, lam = self._eigenvectors, self._eigenvalues
        means = self.means + torch.einsum("kde,bke->bkd", q, alpha * lam * u)
        spread = sigma**2 * lam / (alpha**2 * lam + sigma**2)  # (B or 1, K, d)
        covariances = torch.einsum("kde,bke,kfe->bkdf", q, spread, q)
        return log_w, means, covariances.expand(x.shape[0], -1, -1, -1)

    # ---- tilted (4.1)-(4.12) -----------------------------------------------------------------------------------

    def _tilt(self, reward: QuadraticReward, lam: float) -> tuple[GaussianMixture, Tensor]:
        """The tilted mixture and log Z."""
        if reward.b.shape != (self.d,):
            raise ValueError(f"a tilt of this mixture takes a reward in dimension {self.d}, got {len(reward.b)}")
        precision = torch.linalg.inv(self.covariances)
        tilted_precision = precision - lam * reward.A
        if not bool((torch.linalg.eigvalsh(tilted_precision) > 1e-12).all()):
            raise NotNormalisableError(
                f"the tilt exp(lambda r) with lambda={lam:g} cannot be normalised: Sigma^-1 - lambda A must be positive "
                "definite for every component. Use a smaller lambda or a reward with less positive curvature"
            )
        covariances = torch.linalg.inv(tilted_precision)
        shift = torch.einsum("kde,ke->kd", precision, self.means)  # Sigma^-1 mu
        tilted_shift = shift + lam * reward.b
        means = torch.einsum("kde,ke->kd", covariances, tilted_shift)
        log_w = (
            self.weights.log()
            + 0.5 * (torch.logdet(covariances) - torch.logdet(self.covariances))
            + 0.5 * ((means * tilted_shift).sum(-1) - (self.means * shift).sum(-1))
            + lam * reward.c
        )
        if not finite(log_w):
            raise NotNormalisableError(f"the tilt with lambda={lam:g} overflows double precision: use a smaller lambda")
        # A weight that underflows would be rejected as zero; the smallest positive number is as far as a double goes.
        weights = torch.softmax(log_w, 0).clamp_min(torch.finfo(torch.float64).tiny)
        covariances = 0.5 * (covariances + covariances.mT)
        return GaussianMixture(weights, means, covariances), torch.logsumexp(log_w, 0)

    def tilted(self, reward: QuadraticReward, lam: float = 1.0) -> GaussianMixture:
        """The mixture proportional to exp(lam r) p (2.14), by (4.10) with r replaced by lam r.

        Raises:
            NotNormalisableError: if Sigma_i^-1 - lam A is not positive definite for some component.
            NotNormalisableError: if a number overflows.
            ValueError: if the reward has another dimension.
        """
        return self._tilt(reward, lam)[0]

    def log_normaliser(self, reward: QuadraticReward, lam: float = 1.0) -> float:
        """log Z = log E[exp(lam r(X))] in nats: the mixture's form of (4.6)."""
        return float(self._tilt(reward, lam)[1])

    def expected_reward(self, reward: QuadraticReward) -> float:
        """E[r(X)] under this mixture."""
        per_component = reward(self.means) + 0.5 * torch.einsum("de,ked->k", reward.A, self.covariances)
        return float(self.weights @ per_component)

    def tilt_kl(self, reward: QuadraticReward, lam: float = 1.0) -> float:
        """KL(tilted || this) = lam E_tilted[r] - log Z, in nats."""
        target, log_z = self._tilt(reward, lam)
        return lam * target.expected_reward(reward) - float(log_z)

    def entropy(self, n: int = 64) -> float:
        """Differential entropy in nats, by Gauss-Hermite quadrature with n nodes a dimension (d <= 3), else by 2^16
        scrambled Sobol points a component (quasi Monte Carlo; a few 1e-4 in ten dimensions).
        """
        if self.d <= 3:
            import numpy as np

            nodes, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(n))
            z = torch.cartesian_prod(*[nodes] * self.d).reshape(-1, self.d)
            w = torch.stack(torch.meshgrid(*[w / math.sqrt(2 * math.pi)] * self.d, indexing="ij")).prod(0).flatten()
        else:
            uniform = torch.quasirandom.SobolEngine(self.d, scramble=True, seed=0).draw(2**16, dtype=torch.float64)
            z = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
            w = torch.full((len(z),), 1 / len(z), dtype=torch.float64)
        root = self._eigenvectors * self._eigenvalues.sqrt().unsqueeze(-2)
        total = 0.0
        for weight, mean, r in zip(self.weights, self.means, root, strict=True):
            total -= float(weight * (w @ self.log_prob(mean + z @ r.T)))
        return total

    # ---- what the tilts need ------------------------------------------------------------------------------------

    def posterior_reward(self, x: Tensor, t: Tensor, schedule: Schedule, reward: QuadraticReward) -> Tensor:
        """E[r(X_0) | X_t = x], (B,), for points x, (B, d), and times t, (B,) or ()."""
        log_w, means, covariances = self._posterior(x.to(self.means), t.to(self.means), schedule)
        values = reward(means) + 0.5 * torch.einsum("de,bked->bk", reward.A, covariances)
        return (log_w.exp() * values).sum(-1).to(x)

    def covariance(self, x: Tensor, t: Tensor, schedule: Schedule, reward: QuadraticReward) -> Tensor:
        r"""The exact :math:`C(x,t)` of (3.9), (B, d): covariance of the score of the kernel with the reward.

        By (3.1) it equals :math:`(\alpha_t/\sigma_t^2)\,\mathrm{Cov}(X_0, r(X_0)\mid X_t=x)`, and for a quadratic reward
        the inner covariance splits into a part within and a part between components.
        """
        _noisy(t, schedule)
        y, s = x.to(self.means), t.to(self.means)
        log_w, means, covariances = self._posterior(y, s, schedule)
        w = log_w.exp()
        gradients = torch.einsum("de,bke->bkd", reward.A, means) + reward.b
        within = torch.einsum("bk,bkde,bke->bd", w, covariances, gradients)
        values = reward(means) + 0.5 * torch.einsum("de,bked->bk", reward.A, covariances)
        centred = values - (w * values).sum(-1, keepdim=True)
        between = torch.einsum("bk,bkd,bk->bd", w, means - torch.einsum("bk,bkd->bd", w, means).unsqueeze(1), centred)
        factor = column(schedule.alpha(s) / schedule.sigma(s) ** 2, y)
        return (factor * (within + between)).to(x)


def _noisy(t: Tensor, schedule: Schedule) -> None:
    """Refuse t = 0, where X_0 given X_t is X_t itself and has no density."""
    if not bool((t > 0.0).all()):
        raise ValueError(f"X_0 given X_t has a density for t > 0 only: clamp times to at least {schedule.t_min:g}")


class HasScore(Protocol):
    """A law whose noised score is known."""

    def score(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """The score of p_t at points x, (B, d), and times t, (B,) or (); (B, d)."""
        ...


@dataclass(frozen=True)
@checked
class ExactNoisePredictor:
    r"""The exact :math:`\hat x_1(x,t)=\mathbb E[X_1\mid X_t=x] = -\sigma_t\nabla\log p_t(x)` of a mixture, (2.5) and (2.8).

    It is called like a network, so it runs wherever a learned one does.
    """

    mixture: HasScore
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """E[X_1 | X_t = x], (B, d), for x (B, d) and t (B,) or ()."""
        return -column(self.schedule.sigma(t.double()), x).to(x) * self.mixture.score(x, t, self.schedule)


def paper_mixture() -> GaussianMixture:
    """The base distribution of (4.11): two equal Gaussians of variance 1/2 at (-2, 0) and (2, 0)."""
    means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
    return GaussianMixture(torch.tensor([0.5, 0.5]), means, 0.5 * torch.eye(2).expand(2, 2, 2))
