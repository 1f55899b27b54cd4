r"""Tasks that nobody tuned on: a random mixture, a random reward, and the exact truth.

:func:`random_task` draws from a seed a base of 1 to 12 Gaussians with full covariances and unequal weights in 2 to 32
dimensions, and a reward of one of five kinds, scaled so that the KL of the target to the base is what was drawn, between 1
and 6 nats. Linear and quadratic rewards tilt a mixture into a mixture (4.10). The others, a bounded one, one with a jump
and one with a kink, are functions :math:`r(x)=\rho(w^\top x)` of one direction, and what they tilt is known through
integrals on a line: given :math:`X_t=x_t`, component i of the base's posterior (3.3) is :math:`\mathcal N(m_i,C_i)` with
probability :math:`\pi_i`, so that :math:`u=w^\top X_0\sim\mathcal N(w^\top m_i,s_i^2)`, :math:`s_i^2=w^\top C_iw`, and

.. math::

   Z_i = \mathbb E\big[e^{\rho(u)}\big],\qquad \pi_i'\propto\pi_iZ_i,\qquad
   \mathbb E'[X_0\mid x_t,i] = m_i + \frac{C_iw}{s_iZ_i}\,\mathbb E\big[e^{\rho(u)}q\big],\quad q=\frac{u-w^\top m_i}{s_i}.

The same integrals without noise give the weights of the target's modes and its samples. They are sums over
:data:`NODES` midpoints on :math:`|q|\le8`. At a jump of height h such a sum is off by at most half a cell's probability
times :math:`e^h-1`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import NoisePredictor
from itlib.rewards import QuadraticReward, Reward
from itlib.schedules import Schedule, coefficients

Kind = Literal["linear", "quadratic", "bounded", "jump", "kink"]
NODES = 1600


@dataclass(frozen=True, eq=False)
class Ridge:
    """A reward that is a function of one direction.

    Args:
        w: the direction, (d,), of length one.
        shape: what it does along the direction, elementwise.
    """

    w: Tensor
    shape: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Values, (S,), at samples, (S, d)."""
        return self.shape(x @ self.w.to(x))


@dataclass(frozen=True, eq=False)
class RandomTask:
    """A base, a reward and what is known of the tilt; the strength is one.

    Args:
        kind: of the reward.
        base: what the base model is trained on.
        reward: what to tilt by, a :class:`~itlib.rewards.QuadraticReward` or a :class:`Ridge`.
        kl: KL(target || base), in nats.
    """

    kind: Kind
    base: GaussianMixture
    reward: Reward
    kl: float

    @property
    def log_z(self) -> Tensor:
        """Log of E[e^r] in each component of the base, (K,), in nats."""
        return _log_z(self.base, self.reward)

    @property
    def log_normaliser(self) -> float:
        """log E[e^r] under the base, in nats."""
        return float(torch.logsumexp(self.base.weights.log() + self.log_z, 0))

    @property
    def weights(self) -> Tensor:
        """Weights of the target's components, (K,)."""
        return torch.softmax(self.base.weights.log() + self.log_z, 0)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n exact samples of the target, (n, d), in double precision."""
        if isinstance(self.reward, QuadraticReward):
            return self.base.tilted(self.reward).sample(n, generator)
        ridge = self.reward
        assert isinstance(ridge, Ridge)
        mean, std = _on_line(self.base, ridge.w)
        q, log_p = _nodes(ridge, mean, std)
        i = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        node = torch.multinomial(torch.softmax(log_p, -1)[i], 1, generator=generator).squeeze(-1)
        place = (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5) * (q[1] - q[0])
        z = torch.randn(n, self.base.d, generator=generator, dtype=torch.float64)
        x = self.base.means[i] + torch.einsum("nij,nj->ni", torch.linalg.cholesky(self.base.covariances)[i], z)
        along = torch.einsum("nij,j->ni", self.base.covariances[i], ridge.w) / std[i, None] ** 2
        wanted = mean[i] + std[i] * (q[node] + place)
        return x + along * (wanted - x @ ridge.w).unsqueeze(-1)

    def exact(self, schedule: Schedule) -> NoisePredictor:
        """The exact E[X_1 | X_t = x] of the target."""
        if isinstance(self.reward, QuadraticReward):
            return ExactNoisePredictor(self.base.tilted(self.reward), schedule)
        ridge = self.reward
        assert isinstance(ridge, Ridge)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            y, s = x.double(), t.double().expand(len(x))
            posterior = self.base.posterior(y, s, schedule)
            component = posterior.component_distribution
            assert isinstance(component, MultivariateNormal)
            m, spread = component.mean, component.covariance_matrix @ ridge.w  # (B, K, d) both
            std = (spread @ ridge.w).sqrt()
            q, log_p = _nodes(ridge, m @ ridge.w, std)
            log_z = torch.logsumexp(log_p, -1)
            shift = (torch.exp(log_p - log_z.unsqueeze(-1)) @ q) / std
            pi = torch.softmax(posterior.mixture_distribution.logits + log_z, -1)
            x_0 = torch.einsum("bk,bkd->bd", pi, m + spread * shift.unsqueeze(-1))
            alpha, sigma = coefficients(schedule, s, y)
            return ((y - alpha * x_0) / sigma).to(x)

        return predict

    def mode_weights(self, samples: Tensor, iterations: int = 200) -> Tensor:
        """Maximum-likelihood proportions, (K,), of the target's components in samples, (n, d), by EM."""
        component = self.base.distribution().component_distribution
        log_p = component.log_prob(samples.to(self.base.means).unsqueeze(1)) - self.log_z  # e^r is common to all
        # The sums on a line do not reach where e^r takes a component that is that unlikely, so its log_z means nothing.
        log_p = log_p.where(self.weights > 1e-12, -math.inf)
        weights = torch.full_like(self.base.weights, 1.0 / len(self.base.weights))
        for _ in range(iterations):
            weights = torch.softmax(log_p + weights.log(), -1).mean(0).clamp_min(1e-300)
        return weights


def _on_line(base: GaussianMixture, w: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of w x in each component, (K,)."""
    return base.means @ w, torch.einsum("i,kij,j->k", w, base.covariances, w).sqrt()


def _nodes(ridge: Ridge, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Midpoints q, (G,), and the logarithms of N(q; 0, 1) dq e^rho(mean + std q), (..., G)."""
    q = 16 * (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES - 8
    normal = torch.log_softmax(-0.5 * q.square(), 0)
    return q, normal + ridge.shape(mean.unsqueeze(-1) + std.unsqueeze(-1) * q)


def _log_z(base: GaussianMixture, reward: Reward) -> Tensor:
    if isinstance(reward, QuadraticReward):
        parts = zip(base.means, base.covariances, strict=True)
        return torch.tensor(
            [GaussianMixture(torch.ones(1), m[None], c[None]).log_normaliser(reward) for m, c in parts], dtype=torch.float64
        )
    assert isinstance(reward, Ridge)
    return torch.logsumexp(_nodes(reward, *_on_line(base, reward.w))[1], -1)


def tilt_kl(base: GaussianMixture, reward: Reward) -> float:
    """KL(target || base) = E_target[r] - log Z, in nats.

    Raises:
        NotNormalisableError: if the target does not exist.
    """
    if isinstance(reward, QuadraticReward):
        return base.tilt_kl(reward)
    assert isinstance(reward, Ridge)
    mean, std = _on_line(base, reward.w)
    q, log_p = _nodes(reward, mean, std)
    joint = torch.softmax((base.weights.log().unsqueeze(-1) + log_p).flatten(), 0).reshape(log_p.shape)
    values = reward.shape(mean.unsqueeze(-1) + std.unsqueeze(-1) * q)
    log_z = torch.logsumexp((base.weights.log().unsqueeze(-1) + log_p).flatten(), 0)
    return float((joint * values).sum() - log_z)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def random_base(generator: torch.Generator) -> GaussianMixture:
    """A mixture of 1 to 12 Gaussians in 2 to 32 dimensions: standard deviations .4 to 1, means at least 3 apart."""
    d = int(2 * 16 ** float(torch.rand((), generator=generator)))
    K = int(torch.randint(1, 13, (), generator=generator))
    q = torch.linalg.qr(_normal(generator, K, d, d)).Q
    variances = torch.exp(math.log(0.16) * _uniform(generator, K, d))
    reach = 3.0
    while True:
        means = _normal(generator, K, d)
        means = reach * _uniform(generator, K, 1).sqrt() * means / means.norm(dim=-1, keepdim=True)
        if K == 1 or float(torch.pdist(means).min()) >= 3.0:
            weights = 0.2 - _uniform(generator, K).log()  # exponential, and none below a hundredth or so
            return GaussianMixture(weights, means, (q * variances.unsqueeze(-2)) @ q.mT)
        reach *= 1.05


def _shaped(kind: Kind, base: GaussianMixture, kl: float, generator: torch.Generator) -> Callable[[float], Reward]:
    """The reward of a kind as a function of its size."""
    w = _normal(generator, base.d)
    w = w / w.norm()
    if kind == "linear":
        return lambda size: QuadraticReward(size * w)
    if kind == "quadratic":
        root = torch.linalg.qr(_normal(generator, base.d, base.d)).Q
        curvature = root @ torch.diag(_uniform(generator, base.d) - 0.8) @ root.T / base.d**0.5  # mostly, not all, down
        return lambda size: QuadraticReward(size * w, size * (curvature + curvature.T) / 2)
    on_line = (base.sample(100_000, generator) @ w).sort().values
    if kind == "jump":  # to a set so likely that the tilt can have this KL, and not much more likely
        edge = on_line[int(len(on_line) * (1 - 0.6 * math.exp(-kl)))]
        return lambda size: Ridge(w, lambda u: size * (u > edge).to(u))
    middle = on_line[int(len(on_line) * float(0.1 + 0.8 * torch.rand((), generator=generator)))]
    if kind == "bounded":
        return lambda size: Ridge(w, lambda u: size * torch.tanh(u - middle))
    return lambda size: Ridge(w, lambda u: -size * (u - middle).abs())


def random_task(seed: int) -> RandomTask:
    """A task drawn from a seed; its kind goes round with the seed."""
    generator = torch.Generator().manual_seed(seed)
    kind = get_args(Kind)[seed % len(get_args(Kind))]
    base = random_base(generator)
    kl = 1 + 5 * float(torch.rand((), generator=generator))
    while True:
        reward = _shaped(kind, base, kl, generator)
        low, high = 0.0, 1.0
        try:
            while tilt_kl(base, reward(high)) < kl and high < 1e3:
                low, high = high, 2 * high
            for _ in range(50):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if tilt_kl(base, reward(middle)) < kl else (low, middle)
        except ValueError:  # the target ceases to exist before it is that far away: another reward
            continue
        if high < 1e3:
            return RandomTask(kind, base, reward(high), tilt_kl(base, reward(high)))
