r"""Algorithm 2: iterative tilting.

The target :math:`p_0^{\lambda r}\propto e^{\lambda r}p_0` is reached through :math:`p_0^k\propto e^{k\lambda r/N}p_0`
(3.8). By Corollary 3.2 one tilt of size :math:`\delta=\lambda/N` moves the score by

.. math::

   \nabla\log p_t^k(x) = \nabla\log p_t^{k-1}(x) + \delta\,C_{k-1}(x,t) + O(\delta^2),\qquad
   C_{k-1} = \mathrm{Cov}_{X_0\mid X_t=x}\big(\nabla_x\log q_{t|0}(x\mid X_0),\, r(X_0)\big). \tag{3.10}

In the units of the noise, :math:`\varepsilon=-\sigma_t s`, with :math:`x_t=\alpha_t X_0+\sigma_t z`, the paper's
single-sample estimate of the covariance and the regression of Algorithm 2 (lines 6-13) read

.. math::

   \sigma_t C \approx r(X_0)\,\big(\varepsilon_{\mathrm{old}}-z\big),\qquad
   \varepsilon_{\mathrm{target}} = \varepsilon_{\mathrm{old}} - \delta\,\sigma_t C,\qquad
   \min_\theta\ \mathbb E\,\sigma_t^2\,\big\|\varepsilon_\theta(x_t,t)-\varepsilon_{\mathrm{target}}\big\|^2 ,

which never divides by :math:`\sigma_t`. Three ingredients can be replaced by exact ones, so that the error of the method
and the errors of its parts can be told apart: the base model, the sampler that draws :math:`D_k`, and the estimate of the
covariance.

Two slips of the printed algorithm are corrected: the teacher of tilt k is :math:`\theta^{k-1}`, and one "epoch" is one
minibatch (line 6) unless ``epoch="pass"`` asks for a full pass over :math:`D_k`. The optimiser is new in every tilt; the
paper does not say.

The loop over tilts, :func:`run_tilts`, knows nothing of the regression. It takes a :class:`Learner`, which draws samples
and learns from their rewards, and :class:`StepSizes`, which say how far each tilt goes. Algorithm 2 is the loop with
:class:`Regression` and :class:`EqualSteps`; :mod:`itlib.beyond` has others of both.
"""

from __future__ import annotations

import copy
import functools
import math
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from itlib._checks import Fraction, Positive, autograd, checked
from itlib.gaussian_mixture import GaussianMixture
from itlib.metrics import effective_sample_size
from itlib.network import Network, NoisePredictor, Residual, device_of
from itlib.rewards import QuadraticReward, Reward, evaluate
from itlib.sampling import Variance, sample
from itlib.schedules import Schedule, add_noise, column
from itlib.training import regression_step


@dataclass(frozen=True)
@checked
class TiltingConfig:
    """The knobs of Algorithm 2; the defaults are those of Section 4.2, the names are the paper's letters.

    Args:
        N: number of tilts.
        lam: tilt strength lambda; (4.12) implies 1.
        S: samples per tilt.
        J: reverse steps of the sampler.
        eta: DDIM multiplier, 1 is DDPM.
        B: minibatch size.
        E: epochs per tilt.
        epoch: "minibatch" (Algorithm 2 as printed: one minibatch an epoch) or "pass" (all S samples an epoch).
        lr: learning rate. Not in the paper.
        optimizer: "adam" or "sgd". Not in the paper.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    N: int = 20
    lam: float = 1.0
    S: int = 1000
    J: int = 200
    eta: Fraction = 1.0
    B: int = 64
    E: int = 100
    epoch: Literal["minibatch", "pass"] = "minibatch"
    lr: Positive = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"

    def __post_init__(self) -> None:
        if self.B > self.S:
            raise ValueError(f"a minibatch of B={self.B} cannot be drawn from S={self.S} samples: lower B or raise S")


@dataclass(frozen=True)
class TiltBatch:
    """What an estimator of the covariance may look at: M noised samples of D_k and the teacher's predictions for them.

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


#: An estimator of sigma_t C_{k-1}(x_t, t), (M, d): the covariance (3.9) in the units of the noise.
CovarianceEstimator = Callable[[TiltBatch], Tensor]
#: Maps (batch, delta) to the target of the regression, (M, d), and a factor of the residual, (M, 1) or (): 1 in the paper.
Update = Callable[[TiltBatch, float], tuple[Tensor, Tensor]]
#: Draws D_k: (model, tilt k, S, generator) to samples (S, d).
DatasetSampler = Callable[[NoisePredictor, int, int, torch.Generator], Tensor]
#: A factor of the learning rate: (step of the optimiser, number of steps in the tilt) to a number.
RateFactor = Callable[[int, int], float]


def single_sample(batch: TiltBatch) -> Tensor:
    """The paper's estimate, r (eps_old - z): sigma_t times g^i of Section 3.2, (M, d)."""
    return batch.r.unsqueeze(-1) * (batch.eps_old - batch.z)


@checked
def explicit(estimator: CovarianceEstimator) -> Update:
    """Line 11 of Algorithm 2: step from the teacher along the covariance, eps_old - delta sigma_t C."""

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        return batch.eps_old - delta * estimator(batch), torch.ones(())

    return update


#: Line 11 with the paper's single-sample covariance.
PAPER_UPDATE = explicit(single_sample)


@checked
def tilt_path(base: GaussianMixture, reward: QuadraticReward, lam: float, N: int) -> Callable[[int], GaussianMixture]:
    """The exact intermediate distributions p_0^k of (3.8), as a function of k = 0, ..., N."""
    return lambda k: base.tilted(reward, lam * k / N)


@checked
def exact_covariance(
    path: Callable[[int], GaussianMixture], reward: QuadraticReward, schedule: Schedule
) -> CovarianceEstimator:
    """The oracle: sigma_t C_{k-1} in closed form, for a mixture tilted along ``path`` (see :func:`tilt_path`)."""

    def estimate(batch: TiltBatch) -> Tensor:
        t = batch.t.clamp_min(schedule.t_min)
        sigma = column(schedule.sigma(t), batch.x_t)
        return sigma * path(batch.k - 1).covariance(batch.x_t, t, schedule, reward)

    return estimate


@checked
def exact_samples(path: Callable[[int], GaussianMixture]) -> DatasetSampler:
    """The oracle: D_k drawn from p_0^{k-1} itself instead of from the learned model."""
    return lambda model, k, S, generator: path(k - 1).sample(S, generator).float()


# ---- the loop over tilts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tilt:
    """One tilt, as a learner is asked to learn it.

    Args:
        k: its number, from 1.
        samples: what the learner drew, (S, d).
        rewards: r at the samples, (S,).
        delta: size of the tilt.
        strength: of all tilts up to and including this one.
    """

    k: int
    samples: Tensor
    rewards: Tensor
    delta: float
    strength: float


@dataclass(frozen=True)
class Diagnostics:
    """How far a learner's chains are from the tilt that it aims at.

    Args:
        ess: effective share of the chains, between 0 and 1, under the weights W that make them chains of the tilt.
        var_log_w: variance of log W; zero for the exact tilt.
        kl: KL of the chains to the base's, in nats.
        log_z: estimate of log E_base[exp(strength r)] from the weights.
    """

    ess: float
    var_log_w: float
    kl: float
    log_z: float


class Learner(Protocol):
    """How a tilt is learned. :class:`Regression` is the paper's way."""

    @property
    def model(self) -> nn.Module:
        """The model so far."""

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """Samples of the current model for tilt k, (S, d)."""

    def learn(self, tilt: Tilt, generator: torch.Generator) -> tuple[Tensor, Diagnostics | None]:
        """Train ``model`` in place; return the losses, one per step of the optimiser, and diagnostics if there are any."""


class StepSizes(Protocol):
    """How far each tilt goes. :class:`EqualSteps` is the paper's way."""

    def left(self, strengths: Sequence[float]) -> int:
        """Estimated number of tilts still to do, given the strengths reached so far; 0 ends the run."""

    def choose(self, strengths: Sequence[float], rewards: Tensor) -> tuple[float, float]:
        """Size delta of the next tilt and the strength that it reaches, given the rewards of its samples, (S,)."""


@dataclass(frozen=True)
@checked
class EqualSteps:
    """N tilts of size lam / N.

    Args:
        N: number of tilts.
        lam: tilt strength at the end.
    """

    N: int
    lam: float = 1.0

    def left(self, strengths: Sequence[float]) -> int:
        """N less the tilts that are done.

        Raises:
            ValueError: if more than N tilts are done.
            ValueError: if they were not of this size.
        """
        k = len(strengths)
        if k > self.N:
            raise ValueError(f"{k} tilts are done already, but N is {self.N}")
        if k and not math.isclose(strengths[-1], self.lam * k / self.N, rel_tol=1e-6):
            raise ValueError(
                f"after {k} equal tilts of N={self.N} the strength is {self.lam * k / self.N:g}, not {strengths[-1]:g}"
            )
        return self.N - k

    def choose(self, strengths: Sequence[float], rewards: Tensor) -> tuple[float, float]:
        """lam / N, whatever the rewards are."""
        return self.lam / self.N, self.lam * (len(strengths) + 1) / self.N


@dataclass(frozen=True)
class TiltState:
    """Where a run stands: all that the next tilt depends on, apart from the seed.

    Args:
        model: theta^k.
        strengths: after each of the k tilts.
    """

    model: nn.Module
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class TiltStep:
    """What one tilt leaves behind.

    Args:
        k: the tilt just finished, 1 to N.
        model: the live network holding theta^k; copy it to keep it.
        samples: D_k, (S, d), drawn from the model of tilt k-1.
        rewards: r on D_k, (S,).
        losses: the loss of each optimiser step.
        seconds: processor seconds of "sampling" and "training"; what comes before the first tilt counts as sampling.
        delta: size of the tilt.
        strengths: after each tilt so far; lambda at the end.
        left: number of tilts to come, as far as can be foreseen.
        diagnostics: of the samples, if the learner measures any.
    """

    k: int
    model: nn.Module
    samples: Tensor
    rewards: Tensor
    losses: Tensor
    seconds: dict[str, float]
    delta: float
    strengths: tuple[float, ...]
    left: int
    diagnostics: Diagnostics | None = None

    @property
    def strength(self) -> float:
        """Strength of all tilts so far; lambda at the end."""
        return self.strengths[-1]

    @property
    def state(self) -> TiltState:
        """What to pass on in order to resume after this tilt; its model is the live network."""
        return TiltState(self.model, self.strengths)


@autograd
def run_tilts(
    learner: Learner,
    reward: Reward,
    steps: StepSizes,
    *,
    seed: int = 0,
    strengths: Sequence[float] = (),
    preparation: float = 0.0,
) -> Iterator[TiltStep]:
    """The loop of Algorithm 2: draw, evaluate, choose a step, learn.

    Args:
        learner: draws samples and learns from their rewards.
        reward: forward evaluations only; called once per tilt on (S, d), returns (S,).
        steps: how far each tilt goes.
        seed: fixes every random draw.
        strengths: after each tilt that made ``learner.model``.
        preparation: processor seconds spent before; they count as sampling of the first tilt.

    Yields:
        A :class:`TiltStep` per tilt.

    Raises:
        ValueError: if the reward returns NaN or a wrong shape.
        FloatingPointError: if samples, losses or weights stop being finite, naming the tilt and the likely cause.
    """
    torch.optim.Adam(learner.model.parameters())  # the first one of a process imports for seconds: no cost of a tilt
    done = tuple(strengths)
    while steps.left(done):  # line 2
        k, generator = len(done) + 1, torch.Generator().manual_seed(derive_seed(seed, "tilt", len(done) + 1))
        clock = time.process_time()
        samples = learner.draw(k, generator)  # line 3
        if not bool(torch.isfinite(samples).all()):
            raise FloatingPointError(
                f"tilt {k}, strength {done[-1] if done else 0.0:g} so far: the model no longer samples finite numbers. It "
                "has diverged, or the sampler has: lower the learning rate, or raise J"
            )
        rewards = evaluate(reward, samples)
        delta, strength = steps.choose(done, rewards)
        done = (*done, strength)
        sampled = time.process_time()
        losses, diagnostics = learner.learn(Tilt(k, samples, rewards, delta, strength), generator)  # lines 4 to 14
        trained = time.process_time()
        if not all(bool(torch.isfinite(v).all()) for v in (losses, *learner.model.parameters())):
            raise FloatingPointError(
                f"tilt {k}, strength {strength:g}: the loss is no longer finite. {_likely_cause(delta, samples, rewards)}"
            )
        seconds, preparation = {"sampling": preparation + sampled - clock, "training": trained - sampled}, 0.0
        yield TiltStep(k, learner.model, samples, rewards, losses, seconds, delta, done, steps.left(done), diagnostics)


def _likely_cause(delta: float, samples: Tensor, rewards: Tensor) -> str:
    """Why a tilt diverged, as far as its samples tell, and what to do."""
    share = effective_sample_size(delta * rewards.double()) / len(rewards)
    if not (spread := float(samples.std())) < 1e3:
        return f"The model had already run away to samples as wide as {spread:.3g}: lower the learning rate or raise J"
    if share < 0.05:
        return (
            f"Only {share:.1%} of its samples carry a step of {delta:.3g} (coverage): raise N, scale the reward, "
            "or lower the learning rate"
        )
    return "Its samples are sound, so the optimiser's steps are too large: lower the learning rate"


# ---- Algorithm 2 ----------------------------------------------------------------------------------------------------


class Regression:
    """The learner of Algorithm 2: a regression on noised samples, lines 3 to 14.

    Args:
        model: theta^{k-1}; trained in place.
        schedule: the pair alpha, sigma.
        config: the knobs.
        d: dimension of the data.
        update: what a tilt regresses on.
        sampler: of D_k; Algorithm 1 by default.
        rate: factor of the learning rate; None leaves it constant.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        config: TiltingConfig,
        *,
        d: int = 2,
        update: Update = PAPER_UPDATE,
        sampler: DatasetSampler | None = None,
        rate: RateFactor | None = None,
    ) -> None:
        self.model, self.schedule, self.config, self.update, self.rate = model, schedule, config, update, rate
        self.sampler = sampler or algorithm_1(schedule, config, d)

    def draw(self, k: int, generator: torch.Generator) -> Tensor:
        """D_k, (S, d)."""
        return self.sampler(self.model, k, self.config.S, generator).to(next(self.model.parameters()))

    def learn(self, tilt: Tilt, generator: torch.Generator) -> tuple[Tensor, None]:
        """Lines 4 to 14. Returns the losses."""
        device = device_of(self.model)
        teacher = copy.deepcopy(self.model).requires_grad_(False)  # line 4
        optimizer = new_optimizer(self.config, self.model)
        losses: list[Tensor] = []
        for group in minibatches(self.config, generator):
            # Teacher, noise and times do not depend on the student: one large call instead of a hundred small ones.
            index = torch.cat(group)
            x_0, r = tilt.samples[index], tilt.rewards[index]
            t = torch.rand(len(index), generator=generator).to(device)  # line 6
            z = torch.randn(x_0.shape, generator=generator).to(device)
            x_t = add_noise(self.schedule, x_0, z, t)  # line 8
            with torch.no_grad():
                batch = TiltBatch(tilt.k, x_0, r, t, z, x_t, teacher(x_t, t), tilt.rewards, tilt.samples)  # lines 9-10
                target, factor = self.update(batch, tilt.delta)  # line 11
            weight = factor * column(self.schedule.sigma(t), x_0)
            sizes = [len(rows) for rows in group]
            for columns in zip(*(v.split(sizes) for v in (x_t, t, target, weight)), strict=True):
                set_rate(optimizer, self.config, self.rate, len(losses))
                losses.append(regression_step(self.model, optimizer, *columns))  # line 13
        return torch.stack(losses), None


@autograd
def iterative_tilting(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: TiltingConfig | None = None,
    *,
    d: int = 2,
    seed: int = 0,
    update: Update = PAPER_UPDATE,
    sampler: DatasetSampler | None = None,
    state: TiltState | None = None,
) -> Iterator[TiltStep]:
    """Algorithm 2 as a generator: fine-tune a model toward exp(lam r) p, one tilt per item.

    Tilt k depends only on theta^{k-1}, the seed and the strengths so far, so a run is resumed by passing the ``state`` of
    its last tilt.

    Args:
        base: the pretrained model. It is not changed: a network is copied, and a model without trainable parameters, an
            exact one or a frozen network, gets a trainable correction on top.
        reward: forward evaluations only; called once per tilt on (S, d), returns (S,).
        schedule: the pair alpha, sigma.
        config: the knobs.
        d: dimension of the data.
        seed: fixes every random draw.
        update: what a tilt regresses on: another estimate of the covariance, for instance the exact one.
        sampler: of D_k; Algorithm 1 on the current model by default.
        state: of an interrupted run of the same base, configuration and seed.

    Yields:
        A :class:`TiltStep` per tilt.

    Raises:
        ValueError: if the state has no trainable model.
        ValueError: if the state's strengths are not those of this configuration.
        ValueError: if the reward returns NaN or a wrong shape.
        FloatingPointError: if samples, loss or weights stop being finite, naming the tilt and the likely cause.
    """
    config = config or TiltingConfig()
    model, strengths = resumed(state) if state else (trainable_copy(base, d, derive_seed(seed, "weights")), ())
    learner = Regression(model, schedule, config, d=d, update=update, sampler=sampler)
    yield from run_tilts(learner, reward, EqualSteps(config.N, config.lam), seed=seed, strengths=strengths)


# ---- parts that other learners use too ------------------------------------------------------------------------------


@checked
def derive_seed(seed: int, purpose: str, k: int = 0) -> int:
    """A seed for the k-th use of one purpose ("data", "tilt", ...), independent of all others."""
    key = (int.from_bytes(purpose.encode(), "big"), k)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)


def is_trainable(model: NoisePredictor) -> TypeGuard[nn.Module]:
    """Whether a model is a module with a trainable parameter."""
    return isinstance(model, nn.Module) and any(p.requires_grad for p in model.parameters())


def trainable_copy(base: NoisePredictor, d: int, seed: int) -> nn.Module:
    """A copy that can be trained; a model without trainable parameters gets a correction, a new :class:`Network`, on top."""
    if is_trainable(base):
        return copy.deepcopy(base).eval()
    return corrected(base, d, seed)


def corrected(base: NoisePredictor, d: int, seed: int) -> Residual:
    """A model without trainable parameters, plus a new :class:`Network` that learns a correction.

    Raises:
        TypeError: for a function that wraps a trainable network.
    """
    parts: list[object] = []
    if isinstance(base, functools.partial):
        parts = [base.func, *base.args, *base.keywords.values()]
    elif isinstance(base, types.FunctionType):
        parts = [cell.cell_contents for cell in base.__closure__ or ()]
    if any(is_trainable(part) for part in parts if isinstance(part, nn.Module)):
        raise TypeError(
            "the base is a function around a network, whose weights it hides: they would stay as they are, and a new one "
            "would learn in their place. Pass a torch.nn.Module that does the same (itlib.pretrained.FromModel is one)"
        )
    if isinstance(base, nn.Module):
        if any(True for _ in base.parameters()):
            warnings.warn("no weight of the base is trainable: a new network learns a correction beside it", stacklevel=3)
        base = copy.deepcopy(base, {id(p): p for p in base.parameters()}).eval()  # weights are shared, the mode is not
    return Residual(base, Network(d, seed=seed)).to(device_of(base))


def resumed(state: TiltState) -> tuple[nn.Module, tuple[float, ...]]:
    """A copy of a state's model, and its strengths.

    Raises:
        ValueError: if no parameter of the model is trainable.
    """
    if not is_trainable(state.model):
        raise ValueError("to resume, pass the model that the last tilt left, and not frozen")
    return copy.deepcopy(state.model).eval(), state.strengths


def algorithm_1(schedule: Schedule, config: TiltingConfig, d: int, variance: Variance = "ddpm") -> DatasetSampler:
    """D_k by Algorithm 1 on the current model."""

    def draw(model: NoisePredictor, k: int, S: int, generator: torch.Generator) -> Tensor:
        return sample(model, schedule, S, d, steps=config.J, eta=config.eta, variance=variance, generator=generator)

    return draw


def minibatches(config: TiltingConfig, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Indices into D_k, grouped so that a group's targets are computed in one call of the teacher.

    A group has about 1600 rows, the size at which a row costs least. Times and noises are drawn for a group at a time.
    """
    group: list[Tensor] = []
    for _ in range(config.E):
        order = torch.randperm(config.S, generator=generator)
        group += [order[: config.B]] if config.epoch == "minibatch" else order.split(config.B)
        if len(group) * config.B >= 1600:
            yield group
            group = []
    if group:
        yield group


def new_optimizer(config: TiltingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of one tilt."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, fused=True)
    return torch.optim.SGD(parameters, lr=config.lr)


def set_rate(optimizer: torch.optim.Optimizer, config: TiltingConfig, rate: RateFactor | None, step: int) -> None:
    """The learning rate of one step of the optimiser."""
    if rate is not None:
        steps = config.E * (1 if config.epoch == "minibatch" else math.ceil(config.S / config.B))
        optimizer.param_groups[0]["lr"] = config.lr * rate(step, steps)
