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

Two configurations have names. ``paper`` is Algorithm 2 as above. ``recommended``, the default, keeps its loop of small tilts
and changes what the chapters beyond the paper found to matter: a frozen base under a bounded correction
(:mod:`itlib.beyond.preconditioning`), a sampler that keeps its variance (:mod:`itlib.sampling`), steps chosen from the rewards
(:mod:`itlib.beyond.step_sizes`), a learning rate that falls to zero in every tilt, and in place of the regression a loss on whole
chains (:mod:`itlib.beyond.chains`), through which each tilt mends the errors of those before.

Between the two stands the implicit step of Tilt Matching (arXiv 2512.21829),

.. math:: \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}} + (e^{u}-1)\,(z-\mathrm{sg}\,\varepsilon_\theta),
          \qquad u=\delta\,r(X_0)-\log\overline{e^{\delta r}} .

At its fixed point :math:`\mathbb E[e^{u}(\varepsilon-z)\mid x_t]=\varepsilon_{\mathrm{old}}-\mathbb E[z\mid x_t]`, so that

.. math:: \varepsilon(x_t) = \frac{\mathbb E[e^{\delta r}z\mid x_t]}{\mathbb E[e^{\delta r}\mid x_t]}
          \quad\text{if}\quad \varepsilon_{\mathrm{old}}=\mathbb E[z\mid x_t],

which is Proposition 3.1 in the denoiser's units: exact for every :math:`\delta`, where the explicit step leaves
:math:`O(\delta^2)`. Because the second :math:`\varepsilon_\theta` is not differentiated, the implicit gradient is that of
a weighted regression with factor :math:`e^{u/2}` on the target :math:`z+e^{-u}(\varepsilon_{\mathrm{old}}-z)`, and this
is how it is computed.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeGuard, cast

import numpy as np
import torch
from torch import Tensor, nn

from itlib.beyond.chains import Beside, Corrected, Paths, chain_steps, draw_paths, log_variance_step
from itlib.beyond.preconditioning import adapter
from itlib.beyond.step_sizes import StepRule, bounded_gap, evenly
from itlib.gaussian_mixture import GaussianMixture
from itlib.network import Denoiser, Network, Residual, device_of
from itlib.rewards import QuadraticReward, Reward, evaluate
from itlib.sampling import Variance, sample
from itlib.schedules import Schedule, column, noise
from itlib.training import check_numbers, regression_step


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
        decay: whether the learning rate falls to zero along a cosine in every tilt, or stays.
        step: "explicit", line 11 of Algorithm 2; "implicit"; or "paths", on whole chains (see :mod:`itlib.beyond.chains`), of which
            B make a minibatch.
        variance: of the sampler's steps, "ddpm" or "analytic".
        student: "copy", all weights of the base that are not frozen, or "adapter", a small correction of the frozen base.
        share: if given, steps are chosen from the rewards so that about this share of the samples stays effective, and N
            is ignored; see :mod:`itlib.beyond.step_sizes`.
        settle: number of tilts, the last ones, that do not tilt further and only mend what is left. Needs "paths".

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
    decay: bool = False
    step: Literal["explicit", "implicit", "paths"] = "explicit"
    variance: Variance = "ddpm"
    student: Literal["copy", "adapter"] = "copy"
    share: float | None = None
    settle: int = 0

    def __post_init__(self) -> None:
        chosen = ("share",) if self.share is not None else ()
        check_numbers(self, whole=("N", "S", "J", "B", "E"), real=("lam", "eta", "lr", *chosen))
        if self.B > self.S:
            raise ValueError(f"a minibatch of B={self.B} cannot be drawn from S={self.S} samples: lower B or raise S")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        if not 0 < self.lr < math.inf or not math.isfinite(self.lam):
            raise ValueError(f"lr must be positive and lam finite, got lr={self.lr}, lam={self.lam}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {' or '.join(map(repr, choices))}, got {getattr(self, name)!r}")
        if self.step == "paths" and (self.B < 2 or self.eta < 1.0):
            raise ValueError("the step 'paths' compares chains that forget their start: B must be at least 2, and eta 1")
        if self.settle != 0 and (self.step != "paths" or not (type(self.settle) is int and 0 < self.settle < self.N)):
            raise ValueError(f"settle counts tilts, fewer than N={self.N}, and needs step='paths'; got {self.settle!r}")
        self.rule()

    @property
    def delta(self) -> float:
        """Size of one tilt, lambda / N, if all are equal; those that only settle are not counted."""
        return self.lam / (self.N - self.settle)

    def rule(self) -> StepRule | None:
        """The rule that chooses the steps, or None if they are equal."""
        if self.share is None:
            return None
        if not 0.0 < self.share < 1.0:
            raise ValueError(f"share must lie between 0 and 1, both excluded, got {self.share}")
        return evenly(bounded_gap(-0.5 * math.log(self.share)))


_CHOICES: dict[str, tuple[Any, ...]] = {
    "decay": (False, True),
    "epoch": ("minibatch", "pass"),
    "optimizer": ("adam", "sgd"),
    "step": ("explicit", "implicit", "paths"),
    "variance": ("ddpm", "analytic"),
    "student": ("copy", "adapter"),
}

#: Configurations by name; the first is what the paper does, the second what we recommend.
CONFIGURATIONS = {
    "paper": TiltingConfig(),
    "recommended": TiltingConfig(
        S=4000,
        J=100,
        B=16,
        E=1,
        epoch="pass",
        lr=6e-3,
        decay=True,
        step="paths",
        variance="analytic",
        student="adapter",
        share=0.9,
        settle=2,
    ),
}


def configuration(name: str, N: int | None = None) -> TiltingConfig:
    """A configuration by name.

    Args:
        name: "paper" or "recommended".
        N: number of equal tilts. Without it "recommended" chooses its steps; with it, it draws at most 1000 chains a tilt
            and at most 50,000 in all.

    Raises:
        ValueError: for an unknown name, with the ones that exist.
    """
    if name not in CONFIGURATIONS:
        raise ValueError(f"there is no configuration {name!r}: choose from {', '.join(CONFIGURATIONS)}")
    config = CONFIGURATIONS[name]
    if N is None:
        return config
    S = config.S if config.share is None else max(config.B, min(1000, 50_000 // max(N, 1)))
    return replace(config, N=N, share=None, S=S, settle=min(config.settle, max(N - 1, 0)))


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


def log_mean_exp(batch: TiltBatch, delta: float) -> Tensor:
    """Log of the mean of exp(delta r) over the tilt's dataset, ()."""
    rewards = batch.rewards if len(batch.rewards) else batch.r
    return torch.logsumexp(delta * rewards, 0) - math.log(len(rewards))


def implicit(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
    """The implicit step, as a weighted regression.

    Weights are kept above e^-10, so that targets stay finite in single precision.
    """
    u = (delta * batch.r - log_mean_exp(batch, delta)).clamp_min(-10.0).unsqueeze(-1)
    return batch.z + torch.exp(-u) * (batch.eps_old - batch.z), torch.exp(0.5 * u)


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
        seconds: processor seconds spent "sampling" and "training" (wall-clock seconds, on a quiet machine). What a run does
            before its first tilt is sampling of that tilt.
        delta: size of the tilt.
        strength: of all tilts so far; lambda at the end.
        left: number of tilts to come, as far as can be seen.
    """

    k: int
    denoiser: nn.Module
    samples: Tensor
    rewards: Tensor
    losses: Tensor
    seconds: dict[str, float]
    delta: float
    strength: float
    left: int


def derive_seed(seed: int, purpose: str, k: int = 0) -> int:
    """A seed for one purpose ("data", "tilt", ...) and, if there are several, its k-th use: independent of all others."""
    key = (int.from_bytes(purpose.encode(), "big"), k)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)


def _learns(denoiser: Denoiser) -> TypeGuard[nn.Module]:
    return isinstance(denoiser, nn.Module) and any(p.requires_grad for p in denoiser.parameters())


def as_student(denoiser: Denoiser, d: int, seed: int, beside: bool = False) -> nn.Module:
    """A copy that learns, beside the original if asked for; what is frozen or no network gets a trainable correction."""
    if _learns(denoiser):
        return Beside(denoiser) if beside else copy.deepcopy(denoiser)
    return Residual(denoiser, Network(d, seed=seed)).to(device_of(denoiser))


def student_of(
    base: Denoiser, data: Tensor | int, schedule: Schedule, config: TiltingConfig, *, d: int, seed: int
) -> nn.Module:
    """What the tilts train, before the first: a network that predicts what the base does.

    Args:
        base: the pretrained denoiser.
        data: its samples, (n, d), or d for a network whose state will be loaded.
        schedule: the pair alpha, sigma.
        config: says which kind of student.
        d: dimension of the data.
        seed: fixes initial weights.
    """
    if config.student == "adapter":
        return adapter(base, data, schedule, seed=derive_seed(seed, "weights")).to(device_of(base))
    return as_student(base, d, derive_seed(seed, "weights"), beside=config.step == "paths")


def _chosen(rule: StepRule, rewards: Tensor, lam: float, strength: float, k: int) -> float:
    """The step that a rule chooses, if it leads anywhere."""
    delta = rule(rewards, lam - strength)
    if abs(delta) < 1e-3 * abs(lam):
        raise FloatingPointError(
            f"tilt {k}: rewards with standard deviation {float(rewards.std()):.3g} allow a step of only {delta:.3g}, "
            f"less than a thousandth of lam ({lam:g}). The samples have run away, or the reward is too large for "
            "such a tilt: look at the samples, lower lam, or choose N yourself with share=None"
        )
    return delta


def _likely_cause(config: TiltingConfig, delta: float, data: Tensor, rewards: Tensor) -> str:
    """Why a tilt diverged, as far as its samples tell, and what to do."""
    weights = torch.softmax(delta * rewards.double(), 0)
    share = float(1.0 / (weights.square().sum() * len(weights)))
    if not (spread := float(data.std())) < 1e3:
        return f"The model had run away to samples as wide as {spread:.3g}: lower lr ({config.lr:g}) or raise J ({config.J})"
    if share < 0.05:
        return (
            f"Only {share:.1%} of its samples carry a step of {delta:.3g} (coverage): raise N, scale the reward or lower lr"
        )
    return f"Its samples are sound, so the steps of the optimiser are too large: lower lr ({config.lr:g})"


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


def _set_rate(optimizer: torch.optim.Optimizer, config: TiltingConfig, step: int) -> None:
    """The learning rate of an optimiser step, which may fall along a cosine."""
    if config.decay:
        steps = config.E * (1 if config.epoch == "minibatch" else math.ceil(config.S / config.B))
        optimizer.param_groups[0]["lr"] = config.lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def _optimizer(config: TiltingConfig, student: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in student.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=config.lr, fused=True)
    return torch.optim.SGD(parameters, lr=config.lr)


def _learn_regression(
    student: nn.Module,
    data: Tensor,
    rewards: Tensor,
    schedule: Schedule,
    config: TiltingConfig,
    update: Update,
    k: int,
    delta: float,
    generator: torch.Generator,
) -> Tensor:
    """Lines 4 to 14 of Algorithm 2: regress on noised samples of D_k. Returns the losses."""
    device = device_of(student)
    teacher = copy.deepcopy(student).requires_grad_(False)  # line 4
    optimizer = _optimizer(config, student)
    losses: list[Tensor] = []
    for group in _batches(config, generator):
        # Teacher, noise and times do not depend on the student: one large call instead of a hundred small ones.
        index = torch.cat(group)
        x_0, r = data[index], rewards[index]
        t = torch.rand(len(index), generator=generator).to(device)  # line 6
        z = torch.randn(x_0.shape, generator=generator).to(device)
        x_t = noise(schedule, x_0, z, t)  # line 8
        with torch.no_grad():
            batch = TiltBatch(k, x_0, r, t, z, x_t, teacher(x_t, t), rewards, data)  # lines 9-10
            target, factor = update(batch, delta)  # line 11
        weight = factor * column(schedule.sigma(t), x_0)
        sizes = [len(rows) for rows in group]
        for columns in zip(*(v.split(sizes) for v in (x_t, t, target, weight)), strict=True):
            _set_rate(optimizer, config, len(losses))
            losses.append(regression_step(student, optimizer, *columns))  # line 13
    return torch.stack(losses)


def _learn_paths(
    student: Corrected, paths: Paths, rewards: Tensor, config: TiltingConfig, strength: float, generator: torch.Generator
) -> Tensor:
    """Make the weights of chains constant; see :mod:`itlib.beyond.chains`. Returns the losses."""
    optimizer = _optimizer(config, student)
    losses: list[Tensor] = []
    for index in itertools.chain.from_iterable(_batches(config, generator)):
        if len(index) > 1:  # one chain has no variance
            _set_rate(optimizer, config, len(losses))
            losses.append(log_variance_step(student, optimizer, paths[index], rewards[index], strength))
    return torch.stack(losses)


def iterative_tilting(
    base: Denoiser,
    reward: Reward,
    schedule: Schedule,
    config: TiltingConfig | str = "recommended",
    *,
    d: int = 2,
    seed: int = 0,
    update: Update | None = None,
    sampler: DatasetSampler | None = None,
    strengths: Sequence[float] = (),
) -> Iterator[TiltStep]:
    """Algorithm 2 as a generator: fine-tune a denoiser toward exp(lam r) p, one tilt per item.

    Tilt k depends on theta^{k-1}, the seed and the strengths so far only, so a run is resumed by passing theta^k as ``base``
    and the ``strengths`` of its k tilts.

    Two choices of "recommended" begin with samples of the base, each in one batch: the step on paths measures its noise on
    10,000 (for d above 100 on 10^6 / d, or S if that is more), and the adapter takes its coordinates from 1000 (or 2 d) and
    keeps a matrix of d x d. For images of many pixels choose ``student="copy"``, on LoRA if memory is short.

    Args:
        base: the pretrained denoiser, or theta^k. It is not changed: a network is copied, and a denoiser without parameters
            that learn, an exact one or a frozen network, stays under a trainable correction.
        reward: forward evaluations only; called once per tilt on (S, d), returns (S,).
        schedule: the pair alpha, sigma.
        config: "recommended", "paper", or the knobs one by one.
        d: dimension of the data.
        seed: fixes every random draw.
        update: what a tilt regresses on, if not what the configuration says: an exact covariance for instance.
        sampler: of D_k; Algorithm 1 on the current denoiser by default.
        strengths: after each tilt that is done already.

    Yields:
        A :class:`TiltStep` per tilt.

    Raises:
        ValueError: for an unknown configuration, more tilts done than there are, by no denoiser that learns or to another
            strength, a sampler or an update for a step on paths, or a reward that returns NaN or a wrong shape.
        FloatingPointError: if samples, loss or weights stop being finite or a chosen step vanishes, naming the tilt and the
            likely cause.
    """
    config = configuration(config) if isinstance(config, str) else config
    rule, start, on_paths = config.rule(), len(strengths), config.step == "paths"
    if rule is None and start > config.N:
        raise ValueError(f"{start} tilts are done already, but N is {config.N}")
    if start and not (_learns(base) and (not on_paths or isinstance(base, Corrected))):
        raise ValueError("to go on after tilts that are done, pass the denoiser that the last of them left, and not frozen")
    reached = config.lam * min(1.0, start / (config.N - config.settle))
    if rule is None and start and not math.isclose(strengths[-1], reached, rel_tol=1e-6):
        raise ValueError(f"after {start} equal tilts of N={config.N} the strength is {reached:g}, not {strengths[-1]:g}")
    if on_paths and (update is not None or sampler is not None):
        raise ValueError("a step on paths draws its own chains: leave out sampler and update, or choose another step")
    update = update or (PAPER_UPDATE if config.step == "explicit" else implicit)
    kernel: dict[str, Any] = {"steps": config.J, "eta": config.eta, "variance": config.variance}
    sampler = sampler or (lambda denoiser, k, S, draws: sample(denoiser, schedule, S, d, generator=draws, **kernel))
    clock = time.process_time()
    if start == 0 and config.student == "adapter":
        first = sampler(base, 1, max(1000, 2 * d), torch.Generator().manual_seed(derive_seed(seed, "coordinates")))
        student = student_of(base, first, schedule, config, d=d, seed=seed)
    else:
        student = as_student(base, d, derive_seed(seed, "weights"), beside=on_paths and start == 0)
    if on_paths:
        corrected, widths = cast(Corrected, student), torch.Generator().manual_seed(derive_seed(seed, "widths"))
        pilot = min(10_000, max(config.S, 10**6 // d))
        steps = chain_steps(corrected.base, schedule, pilot, d, generator=widths, **kernel)
    before = time.process_time() - clock
    _optimizer(config, student)  # the first optimiser of a process imports for seconds, which is no cost of a tilt
    strength = strengths[-1] if strengths else 0.0
    settled = sum(math.isclose(s, config.lam) for s in strengths) - 1
    for k in itertools.count(start + 1):  # line 2
        if k > config.N if rule is None else settled >= config.settle:
            return
        generator = torch.Generator().manual_seed(derive_seed(seed, "tilt", k))
        clock = time.process_time()
        if on_paths:
            paths = draw_paths(corrected, steps, config.S, d, generator=generator)
            data = paths.x_0
        else:
            data = sampler(student, k, config.S, generator).to(next(student.parameters()))  # line 3
        if not bool(torch.isfinite(data).all()):
            raise FloatingPointError(
                f"tilt {k}, strength {strength:g} of {config.lam:g}: the model so far no longer samples numbers. "
                f"It has diverged, or the sampler has: lower lr ({config.lr:g}) or raise J ({config.J})"
            )
        rewards = evaluate(reward, data)
        if math.isclose(strength, config.lam):
            delta, strength = 0.0, config.lam
        elif rule is None:
            delta, strength = config.delta, config.lam * k / (config.N - config.settle)
        else:
            delta = _chosen(rule, rewards, config.lam, strength, k)
            strength = strength + delta
        settled += math.isclose(strength, config.lam)
        left = config.settle - settled if settled >= 0 else round((config.lam - strength) / delta) + config.settle
        sampled = time.process_time()
        if on_paths:
            loss = _learn_paths(corrected, paths, rewards, config, strength, generator)
        else:
            loss = _learn_regression(student, data, rewards, schedule, config, update, k, delta, generator)
        trained = time.process_time()
        if not all(bool(torch.isfinite(v).all()) for v in (loss, *student.parameters())):
            raise FloatingPointError(
                f"tilt {k}, strength {strength:g} of {config.lam:g}: the loss is no longer finite. "
                f"{_likely_cause(config, delta, data, rewards)}"
            )
        spent, before = {"sampling": before + sampled - clock, "training": trained - sampled}, 0.0
        yield TiltStep(k, student, data, rewards, loss, spent, delta, strength, left)
