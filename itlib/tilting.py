r"""Algorithm 2: iterative tilting.

The target :math:`p_0^{\lambda r}\propto e^{\lambda r}p_0` is reached through :math:`p_0^k\propto e^{k\lambda r/N}p_0`
(3.8). By Corollary 3.2 one tilt of size :math:`\delta=\lambda/N` moves the score by

.. math::

   \nabla\log p_t^k(x) = \nabla\log p_t^{k-1}(x) + \delta\,C_{k-1}(x,t) + O(\delta^2),\qquad
   C_{k-1} = \mathrm{Cov}_{X_0\mid X_t=x}\big(\nabla_x\log q_{t|0}(x\mid X_0),\, r(X_0)\big). \tag{3.10}

In the units of the denoiser, :math:`\varepsilon=-\sigma_t s`, with :math:`x_t=\alpha_t X_0+\sigma_t z`, the paper's
single-sample estimate of the covariance and the regression of Algorithm 2 (lines 6-13) read

.. math::

   \sigma_t C \approx r(X_0)\,\big(\varepsilon_{\mathrm{old}}-z\big),\qquad
   \varepsilon_{\mathrm{target}} = \varepsilon_{\mathrm{old}} - \delta\,\sigma_t C,\qquad
   \min_\theta\ \mathbb E\,\sigma_t^2\,\big\|\varepsilon_\theta(x_t,t)-\varepsilon_{\mathrm{target}}\big\|^2 ,

which never divides by :math:`\sigma_t`. Three ingredients can be exchanged for exact ones, so that the error of the
method and the errors of its parts can be told apart: the base denoiser, the sampler that makes :math:`D_k`, and the
estimate of the covariance.

Two slips of the printed algorithm are mended: the teacher of tilt k is :math:`\theta^{k-1}`, and one "epoch" is one
minibatch (line 6) unless ``epoch="pass"`` asks for a full pass over :math:`D_k`. The optimiser starts afresh in every
tilt; the paper does not say.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from itlib.gaussian_mixture import GaussianMixture
from itlib.network import Denoiser, Network, Residual, device_of
from itlib.rewards import QuadraticReward, Reward, evaluate
from itlib.sampling import sample
from itlib.schedules import Schedule, column, noise
from itlib.training import regression_step


@dataclass(frozen=True)
class TiltingConfig:
    """The knobs of Algorithm 2; the defaults are those of Section 4.2, the paper's letters are the names.

    Args:
        N: number of tilts.
        lam: tilt strength lambda; (4.12) implies 1.
        S: samples per tilt.
        J: reverse steps of the sampler.
        eta: DDIM multiplier, 1 is DDPM.
        B: minibatch size.
        E: epochs per tilt.
        epoch: "minibatch" (Algorithm 2 as printed: one minibatch an epoch) or "pass" (all of the S samples an epoch).
        lr: learning rate. Not in the paper.
        optimizer: "adam" or "sgd". Not in the paper.

    Raises:
        ValueError: for a value that makes no sense, saying which.
    """

    N: int = 20
    lam: float = 1.0
    S: int = 1000
    J: int = 200
    eta: float = 1.0
    B: int = 64
    E: int = 100
    epoch: Literal["minibatch", "pass"] = "minibatch"
    lr: float = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        for name in ("N", "S", "J", "B", "E"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.B > self.S:
            raise ValueError(f"a minibatch of B={self.B} cannot be drawn from S={self.S} samples: lower B or raise S")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        if not self.lr > 0 or not np.isfinite(self.lam):
            raise ValueError(f"lr must be positive and lam finite, got lr={self.lr}, lam={self.lam}")
        if self.epoch not in ("minibatch", "pass") or self.optimizer not in ("adam", "sgd"):
            raise ValueError(
                f"epoch is 'minibatch' or 'pass' and optimizer 'adam' or 'sgd', got {self.epoch!r}, {self.optimizer!r}"
            )

    @property
    def delta(self) -> float:
        """Size of one tilt, lambda / N."""
        return self.lam / self.N


@dataclass(frozen=True)
class TiltBatch:
    """What an estimator of the covariance may look at: M noised samples of D_k and what the teacher says of them.

    Args:
        k: the tilt, 1 to N.
        x_0: clean samples, (M, d).
        r: their rewards, (M,).
        t: times, (M,).
        z: the noise, (M, d).
        x_t: alpha_t x_0 + sigma_t z, (M, d).
        eps_old: the teacher's prediction of X_1 at (x_t, t), (M, d).
        rewards: of all of D_k, (S,), for rules that normalise by them.
        samples: D_k itself, (S, d), for estimators that look at all of it.
    """

    k: int
    x_0: Tensor
    r: Tensor
    t: Tensor
    z: Tensor
    x_t: Tensor
    eps_old: Tensor
    rewards: Tensor = field(default_factory=lambda: torch.empty(0))
    samples: Tensor = field(default_factory=lambda: torch.empty(0))


#: An estimator of sigma_t C_{k-1}(x_t, t), (M, d): the covariance (3.9) in the denoiser's units.
CovarianceEstimator = Callable[[TiltBatch], Tensor]
#: What a tilt of size delta regresses on: (batch, delta) to a target, (M, d), and a factor of the residual, (M, 1) or ().
Update = Callable[[TiltBatch, float], tuple[Tensor, Tensor]]
#: Draws D_k: (denoiser, tilt k, S, generator) to samples (S, d).
DatasetSampler = Callable[[Denoiser, int, int, torch.Generator], Tensor]


def single_sample(batch: TiltBatch) -> Tensor:
    """The paper's estimate, r (eps_old - z): sigma_t times g^i of Section 3.2, (M, d)."""
    return batch.r.unsqueeze(-1) * (batch.eps_old - batch.z)


def explicit(estimator: CovarianceEstimator) -> Update:
    """Line 11 of Algorithm 2: step from the teacher along the covariance, eps_old - delta sigma_t C."""

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        return batch.eps_old - delta * estimator(batch), torch.ones(())

    return update


#: Line 11 with the paper's single-sample covariance.
PAPER_UPDATE = explicit(single_sample)


def tilt_path(base: GaussianMixture, reward: QuadraticReward, lam: float, N: int) -> Callable[[int], GaussianMixture]:
    """The exact intermediate distributions p_0^k of (3.8), as a function of k = 0, ..., N."""
    return lambda k: base.tilted(reward, lam * k / N)


def exact_covariance(
    path: Callable[[int], GaussianMixture], reward: QuadraticReward, schedule: Schedule
) -> CovarianceEstimator:
    """The oracle: sigma_t C_{k-1} in closed form, for a mixture tilted along ``path`` (see :func:`tilt_path`)."""

    def estimate(batch: TiltBatch) -> Tensor:
        t = batch.t.clamp_min(schedule.t_min)
        sigma = column(schedule.sigma(t), batch.x_t)
        return sigma * path(batch.k - 1).covariance(batch.x_t, t, schedule, reward)

    return estimate


def exact_samples(path: Callable[[int], GaussianMixture]) -> DatasetSampler:
    """The oracle: D_k drawn from p_0^{k-1} itself instead of from the learned model."""
    return lambda denoiser, k, S, generator: path(k - 1).sample(S, generator).float()


@dataclass(frozen=True)
class TiltStep:
    """What one tilt leaves behind.

    Args:
        k: the tilt just finished, 1 to N.
        denoiser: the live network holding theta^k; copy it to keep it.
        samples: D_k, (S, d), drawn from the model of tilt k-1.
        rewards: r on D_k, (S,).
        losses: the loss of each optimiser step.
        seconds: processor seconds spent "sampling" and "training" (wall-clock seconds, on a quiet machine).
    """

    k: int
    denoiser: nn.Module
    samples: Tensor
    rewards: Tensor
    losses: Tensor
    seconds: dict[str, float]


def derive_seed(seed: int, purpose: str, k: int = 0) -> int:
    """A seed for one purpose ("data", "tilt", ...) and, if there are several, its k-th use: independent of all others."""
    key = (int.from_bytes(purpose.encode(), "big"), k)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)


def as_student(denoiser: Denoiser, d: int, seed: int) -> nn.Module:
    """A trainable copy: networks are copied, anything else gets a :class:`~itlib.network.Residual` on top."""
    if isinstance(denoiser, nn.Module) and any(p.requires_grad for p in denoiser.parameters()):
        return copy.deepcopy(denoiser)
    return Residual(denoiser, Network(d, seed=seed))


def _batches(config: TiltingConfig, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Indices into D_k, grouped so that a group's targets are computed in one call of the teacher."""
    group: list[Tensor] = []
    for _ in range(config.E):
        order = torch.randperm(config.S, generator=generator)
        group += [order[: config.B]] if config.epoch == "minibatch" else order.split(config.B)
        if len(group) * config.B >= 1600:
            yield group
            group = []
    if group:
        yield group


def _optimizer(config: TiltingConfig, student: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, fused=True)
    return torch.optim.SGD(parameters, lr=config.lr)


def iterative_tilting(
    base: Denoiser,
    reward: Reward,
    schedule: Schedule,
    config: TiltingConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
    update: Update = PAPER_UPDATE,
    sampler: DatasetSampler | None = None,
    start: int = 0,
) -> Iterator[TiltStep]:
    """Algorithm 2 as a generator: fine-tune a denoiser toward exp(lam r) p, one tilt per item.

    Tilt k depends on theta^{k-1}, the seed and k only, so a run is resumed by passing theta^k and ``start=k``.

    Args:
        base: the pretrained denoiser (theta^start). It is not changed: a network is copied, and a denoiser without
            parameters, such as an exact one, is frozen under a trainable correction.
        reward: forward evaluations only; called once per tilt on (S, d), returns (S,).
        schedule: the pair alpha, sigma.
        config: the knobs of Algorithm 2.
        d: dimension of the data.
        seed: fixes every random draw.
        update: what a tilt regresses on; the paper's step, with its single-sample covariance, by default.
        sampler: of D_k; Algorithm 1 on the current denoiser by default.
        start: number of tilts already done.

    Yields:
        A :class:`TiltStep` per tilt.

    Raises:
        ValueError: for start outside 0..N, or a reward that returns NaN or a wrong shape.
        FloatingPointError: if the loss stops being finite, naming the tilt.
    """
    config = config or TiltingConfig()
    if not 0 <= start <= config.N:
        raise ValueError(f"start must lie between 0 and N={config.N}, got {start}")
    student = as_student(base, d, derive_seed(seed, "weights"))
    device = device_of(student)
    _optimizer(config, student)  # the first optimiser of a process imports for seconds, which is no cost of a tilt
    if sampler is None:

        def sampler(denoiser: Denoiser, k: int, S: int, generator: torch.Generator) -> Tensor:
            return sample(denoiser, schedule, S, d, steps=config.J, eta=config.eta, generator=generator, device=device)

    for k in range(start + 1, config.N + 1):
        generator = torch.Generator().manual_seed(derive_seed(seed, "tilt", k))
        clock = time.process_time()
        data = sampler(student, k, config.S, generator).to(next(student.parameters()))  # line 3
        rewards = evaluate(reward, data)
        sampled = time.process_time()
        teacher = copy.deepcopy(student).requires_grad_(False)  # line 4
        optimizer = _optimizer(config, student)
        losses = []
        for group in _batches(config, generator):
            # Teacher, noise and times do not depend on the student: one large call instead of a hundred small ones.
            index = torch.cat(group)
            x_0, r = data[index], rewards[index]
            t = torch.rand(len(index), generator=generator).to(device)  # line 6
            z = torch.randn(x_0.shape, generator=generator).to(device)
            x_t = noise(schedule, x_0, z, t)  # line 8
            with torch.no_grad():
                batch = TiltBatch(k, x_0, r, t, z, x_t, teacher(x_t, t), rewards, data)  # lines 9-10
                target, factor = update(batch, config.delta)  # line 11
            weight = factor * column(schedule.sigma(t), x_0)
            sizes = [len(rows) for rows in group]
            for columns in zip(*(v.split(sizes) for v in (x_t, t, target, weight)), strict=True):
                losses.append(regression_step(student, optimizer, *columns))  # line 13
        trained = time.process_time()
        loss = torch.stack(losses)
        if not bool(torch.isfinite(loss).all()):
            raise FloatingPointError(
                f"tilt {k} of {config.N}: the loss is no longer finite. The tilts have diverged: lower lr ({config.lr:g}), "
                "raise N, or check the scale of the reward"
            )
        yield TiltStep(k, student, data, rewards, loss, {"sampling": sampled - clock, "training": trained - sampled})
