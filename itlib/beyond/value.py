r"""The value of a state, learned from whole chains.

Let chains of the base go :math:`x_{t_K},\dots,x_{t_0}` as in :mod:`itlib.beyond.chains`. What the tilt by :math:`e^{sr}`
adds to the score of the base at :math:`x_t` is the gradient of one number,

.. math:: V_s(x,t) = \log\mathbb E_{\mathrm{base}}\big[e^{s r(X_0)}\,\big|\,x_t=x\big],\qquad
          \hat x_1 = \hat x_1^{\mathrm{base}} - \sigma_t\nabla V_s ,

the logarithm of Doob's h, the soft value of control. The covariance of Algorithm 2 is :math:`\nabla\partial_sV_s`, taken in
one small step; here :math:`V_s` itself is learned.

**From anybody's chains.** A student whose steps are shifted by u standard deviations from the base's, and that used the
noises z, leaves after time t the weight

.. math:: L_t = \log\frac{p_{\mathrm{base}}(x_{<t}\mid x_t)}{p_{\mathrm{student}}(x_{<t}\mid x_t)}
              = -\sum_{t'\le t}\big(u_{t'}^\top z_{t'}+\tfrac12|u_{t'}|^2\big),\qquad
          \mathbb E_{\mathrm{student}}\big[e^{s r(x_0)+L_t}\,\big|\,x_t\big] = e^{V_s(x_t,t)} .

This holds for every student, so chains may be kept and used again, and no network is asked about them twice. It is exact in
discrete time, with :math:`V_s` that of the base's chain as it is run.

**The loss.** With :math:`\Delta=s r(x_0)+L_t-V_\phi(x_t,t)` and stop-gradient sg,

.. math:: \ell(\phi) = \mathrm{sg}\big[1-e^{\Delta}\big]\,V_\phi(x_t,t)

has the mean gradient :math:`(1-\mathbb E[e^{\Delta}|x_t])\nabla_\phi V_\phi`, that of the likelihood of an exponential law
with mean :math:`e^{V_\phi}` (the Itakura-Saito distance): zero in every direction if and only if :math:`V_\phi=V_s`,
whatever law the states have. A square of :math:`\Delta` would learn the mean of the logarithm, which lies below. At the
solution, with the student drawing its own chains, :math:`\Delta=0` on *every* chain up to the discretisation: the noise
goes away where the covariance of Algorithm 2 keeps its own. Unlike a variance over chains (:mod:`itlib.beyond.chains`), it
tells every state of a chain what became of it, and mode weights are decided early in a chain.

:math:`e^{\Delta}` has heavy tails where V is still wrong, so :math:`\Delta` is cut at ``clamp``. That pulls V down where
much of the mean comes from chains rarer than :math:`e^{-\mathrm{clamp}}`, and does nothing once the student visits what is
rewarded.

**Few steps.** :math:`-\sigma_t\nabla V_s` is right where steps are short. A step :math:`x_{t'}=m(x_t)+\eta z` of any length
has :math:`V(x_t,t)=\log\mathbb E\,e^{V(x_{t'},t')}`, so that, with :math:`J=\partial m/\partial x_t` and means
under the tilt,

.. math:: \nabla V(x_t,t) = J^\top\,\mathbb E'\big[\nabla V(x_{t'},t')\big],\qquad
          u = \mathbb E'[z] = \eta\,\mathbb E'\big[\nabla V(x_{t'},t')\big] = \eta\,J^{-\top}\nabla V(x_t,t) .

Of all shifts this is the one whose chains come nearest to the tilt. J needs the derivative of the base; ``finite`` takes
that of the Gaussian with the base's mean and covariance, :math:`a+b\sigma_t/V_t` in each of its directions. In the
directions of most variance the short-step form is too large, twice and more with a dozen steps.

**Strengths.** The first chains are the base's. s is the largest strength at which the weights :math:`e^{sr+L}` of the last
chains keep an effective share, so it may fall again where a fit went wrong. A fit takes the chains of the last few rounds.
Older ones are unbiased too, but on chains of a student far from the tilt :math:`e^{\Delta}` has heavy tails, and fitting to
all of them ended farther away. A small part of every draw follows the student at a fraction of its correction: modes that V
has lost by mistake are still visited. A run ends when the share of the student's own chains at full strength rises no more.
The best model seen is kept, and if its share is below ``enough``, an :class:`~itlib.beyond.chains.UnreachedWarning` says so.

**Rewards with a long way down.** What is punished by sixty nats makes V span sixty nats, of which a tenth decides on mode
weights. So a little of the base can be mixed into the tilt, ``admixture`` a: with :math:`e^{sr}+aZ_s` for :math:`e^{sr}`,

.. math:: V_s^a = \log\big(e^{V_s}+aZ_s\big) \ge \log Z_s+\log a ,

and beside a mass of one from the tilt there is a mass of a from the base. Nothing else changes: not the chains, nor their
weights. And the strength is looked for from the last one on (``climb``): where a student is far from the base, its chains
keep hardly any share at s = 0, a search from there has nothing to compare with, and jumps to full strength.

**What a high share leaves open.** Chains that are right up to a mode, to which they give the weight p' instead of p, have
the share :math:`1/(1+(p-p')^2/(p'(1-p')))`: with 0.19 instead of 0.13 that is 0.98. But weighted they have the right
weights, and :func:`displaced` measures how far the weights move the chains, in standard deviations. Above ``close`` the run
warns, too. Both are of chains which the student draws: they cannot see a mode that none visits.

Sources: soft values and Doob's transform in Uehara et al. (arXiv 2408.08252); contrastive energy prediction, the same target
without chains (Lu et al., arXiv 2304.12824); losses on chains of Nüsken and Richter (arXiv 2005.05409) and relative
trajectory balance (Venkatraman et al., arXiv 2405.20971).
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from itlib._checks import Below1, LogWeights, Positive, Samples, autograd, checked, finite
from itlib.beyond.chains import UnreachedWarning, chain_steps, diagnose, states_at_once
from itlib.beyond.preconditioning import Gaussian
from itlib.metrics import effective_sample_size
from itlib.network import FourierFeatures, Network, NoisePredictor, device_of
from itlib.rewards import Reward, evaluate
from itlib.sampling import ReverseStep, randn
from itlib.schedules import Schedule, column
from itlib.tilting import Diagnostics, TiltStep, derive_seed


@dataclass(frozen=True)
@checked
class ValueConfig:
    """The knobs of :func:`value_tilting`.

    Args:
        lam: tilt strength lambda.
        J: steps of a chain.
        pilot: chains of the base to begin with.
        S: chains of the student in a round.
        explore: share of them that follow the student at a random fraction of its correction.
        B: states in a minibatch.
        fit: minibatches of a round; the first has twice as many.
        replay: rounds, the last ones, whose chains are fitted to.
        lr: learning rate while the strength grows; half of it at full strength. It falls to zero in every fit.
        clamp: largest log weight of a state.
        target_ess: effective share of the chains that a strength must leave.
        rounds: after the pilot, at most.
        patience: rounds at full strength without a better share after which a run ends.
        enough: share of the student's own chains below which a run warns.
        close: how far their weights may move these chains, in standard deviations, before a run warns.
        width: of the network.
        depth: of the network.
        finite: whether the correction is that of steps of finite length.
        admixture: share of the base that is mixed into the tilt, so that V has a lower bound; 0 for none.
        climb: what part of the effective share at the strength reached a higher one must leave. At 0 every strength is
            looked for from 0 on, and may fall.

    Raises:
        ValueError: for a value out of range, naming it.
    """

    lam: float = 1.0
    J: int = 50
    pilot: int = 6000
    S: int = 3000
    explore: Below1 = 0.1
    B: int = 1024
    fit: int = 300
    replay: int = 3
    lr: Positive = 0.01
    clamp: Positive = 5.0
    target_ess: Below1 = 0.3
    rounds: int = 16
    patience: int = 3
    enough: Below1 = 0.3
    close: Positive = 0.15
    width: int = 64
    depth: int = 3
    finite: bool = False
    admixture: Below1 = 0.0
    climb: Below1 = 0.0

    def __post_init__(self) -> None:
        if not self.lam:
            raise ValueError("lam must not be 0: there is nothing to learn")


class ValueFunction(nn.Module):
    r"""V(x, t), a small network that sees the whitened linear estimate of X_0, which vanishes at t = 1 as V - log Z does.

    Args:
        gaussian: gives the coordinates.
        width: units of a hidden layer.
        depth: number of hidden layers.
        seed: fixes the initial weights.
        network: in place of the perceptron: maps what :meth:`inputs` gives, and times, to (B, 1) by a last layer ``output``.
    """

    network: Any
    scale: Tensor
    shift: Tensor

    def __init__(
        self, gaussian: Gaussian, width: int = 64, depth: int = 3, seed: int = 0, network: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.gaussian = gaussian
        self.network = network or Network(len(gaussian.mean), width, depth, 32, fourier_scale=0.5, seed=seed)
        if network is None:
            self.network.output = nn.Linear(width, 1)
        nn.init.zeros_(self.network.output.weight)
        nn.init.zeros_(self.network.output.bias)
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def restart(self, tilt: Tensor, log_z: float) -> None:
        """Start from the constant log Z, on the scale of s r at chains of the base, (S,), in nats."""
        self.scale.fill_(float(tilt.std().clamp_min(1e-3)))
        self.shift.fill_(log_z)

    def rescale(self, strength: float, before: float, rewards: Tensor) -> None:
        """Start from V_s times the ratio of two strengths or, from zero, from what rewards of the base, (S,), say of V_s."""
        if before:
            self.scale.mul_(strength / before)
            self.shift.mul_(strength / before)
        else:
            self.restart(strength * rewards, _log_mean_exp(strength * rewards))

    def inputs(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network sees of states, (B, d), at times, (B,) or (): the whitened linear estimate of X_0, (B, d)."""
        alpha, _, v, w = self.gaussian.whiten(x, t)
        return alpha * (self.gaussian.eigenvalues / v).sqrt() * w

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """V in nats, (B,), at states, (B, d), and times, (B,) or ()."""
        result: Tensor = self.shift + self.scale * self.network(self.inputs(x, t), t).squeeze(-1)
        return result


class Convolutions(nn.Module):
    """A small network from images to a number: three convolutions that see the time, a mean over places, one hidden layer.

    Args:
        channels: of the images.
        width: channels after the first convolution; twice as many later.
        seed: fixes the initial weights.
    """

    def __init__(self, channels: int, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        sizes = (width, 2 * width, 2 * width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features = FourierFeatures(32, 0.5)
            self.space = nn.ModuleList(
                nn.Conv2d(before, after, 3, stride, 1)
                for before, after, stride in zip((channels, *sizes), sizes, (1, 2, 2), strict=False)
            )
            self.time = nn.ModuleList(nn.Linear(32, size, bias=False) for size in sizes)
            self.hidden, self.output = nn.Linear(2 * width, 2 * width), nn.Linear(2 * width, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Numbers, (B, 1), for images, (B, channels, height, width), and times, (B,) or ()."""
        features = self.features(t.to(x).expand(len(x)))
        for space, clock in zip(self.space, self.time, strict=True):
            x = functional.silu(space(x) + clock(features)[..., None, None])
        result: Tensor = self.output(functional.silu(self.hidden(x.mean((2, 3)))))
        return result


class ImageValue(ValueFunction):
    """V of images: a convolutional network that sees the linear estimate of X_0, which vanishes at t = 1, as an image.

    Args:
        gaussian: gives the estimate.
        shape: of one image, (channels, height, width).
        width: channels of the network's first layer.
        seed: fixes the initial weights.
    """

    def __init__(self, gaussian: Gaussian, shape: Sequence[int], width: int = 16, seed: int = 0) -> None:
        super().__init__(gaussian, network=Convolutions(shape[0], width, seed))
        self.shape = tuple(shape)

    def inputs(self, x: Tensor, t: Tensor) -> Tensor:
        """The estimate less the mean of X_0, (B, channels, height, width), at states, (B, d), and times, (B,) or ()."""
        alpha, _, v, w = self.gaussian.whiten(x, t)
        estimate = (alpha * self.gaussian.eigenvalues / v.sqrt() * w) @ self.gaussian.eigenvectors.T
        return estimate.reshape(-1, *self.shape)


class Guided(nn.Module):
    """A frozen base, corrected by the gradient of a value.

    Args:
        base: the pretrained model; copied if it has parameters.
        value: V, states (B, d) and times to (B,).
        schedule: the pair alpha, sigma.
        steps: of finite length, from :func:`~itlib.beyond.chains.chain_steps`; a time between them counts as the nearest.
            The value then has a ``gaussian``. None takes them as short.
    """

    times: Tensor
    factors: Tensor

    def __init__(
        self, base: NoisePredictor, value: nn.Module, schedule: Schedule, steps: list[ReverseStep[float]] | None = None
    ) -> None:
        super().__init__()
        self.base = copy.deepcopy(base).requires_grad_(False) if isinstance(base, nn.Module) else base
        self.value, self.schedule, self.finite = value, schedule, steps is not None
        if steps is not None:
            gaussian: Any = value.gaussian
            # In double precision: a and b nearly cancel where alpha is small.
            t, a, b, std = torch.tensor(steps, dtype=torch.float64).T.unsqueeze(-1)
            variance = schedule.alpha(t) ** 2 * gaussian.eigenvalues.cpu() + schedule.sigma(t) ** 2
            factors = std**2 / b / (a + b * schedule.sigma(t) / variance)
            self.register_buffer("times", t.squeeze(-1).to(gaussian.mean), persistent=False)
            self.register_buffer("factors", factors.to(gaussian.mean), persistent=False)

    def correction(self, x: Tensor, t: Tensor) -> Tensor:
        """What the value adds to the base, (B, d): -sigma_t grad V, or its form for steps of finite length.

        Differentiable in x if x is tracked.
        """
        few = states_at_once(self) or len(x)
        if len(x) > few:
            parts = zip(x.split(few), t.expand(len(x)).split(few), strict=True)
            return torch.cat([self.correction(*part) for part in parts])
        tracked = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            y = x if tracked else x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(y, t).sum(), y, create_graph=tracked)
        if not self.finite:
            return -column(self.schedule.sigma(t), x).to(x) * gradient
        gaussian: Any = self.value.gaussian
        Q: Tensor = gaussian.eigenvectors
        return (self.factors[(self.times - t.reshape(-1, 1)).abs().argmin(1)] * (gradient @ Q)) @ Q.T

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict X_1, (B, d)."""
        result: Tensor = self.base(x, t) + self.correction(x, t)
        return result


class Pool(NamedTuple):
    """Chains with what is left of their weights.

    Args:
        x_0: their ends, (S, d).
        x_t: their states, (S, K, d).
        log_ratio: L, log p_base / p_student of what follows each state, (S, K).
    """

    x_0: Tensor
    x_t: Tensor
    log_ratio: Tensor


@torch.no_grad()
def draw_pool(
    model: Guided, steps: list[ReverseStep[float]], fraction: Tensor, d: int, *, generator: torch.Generator | None = None
) -> Pool:
    """Draw chains that follow a fraction of the model's correction.

    Args:
        model: base and value.
        steps: those of the base, from :func:`~itlib.beyond.chains.chain_steps`.
        fraction: of each chain, (S,): 1 is the model, 0 the base.
        d: dimension of the data.
        generator: source of the noise.
    """
    x = randn((len(fraction), d), generator, torch.float32, device_of(model))
    states, increments = [], []
    for step in steps:
        time = torch.tensor(step.t, device=x.device)
        u = step.gain * fraction.unsqueeze(-1) * (model.correction(x, time) if bool(fraction.any()) else torch.zeros_like(x))
        z = randn(x.shape, generator, x.dtype, x.device)
        states.append(x)
        increments.append(-(u * (z + 0.5 * u)).sum(-1))
        x = step.mean(x, model.base(x, time)) + step.std * (u + z)
    return Pool(x, torch.stack(states, 1), torch.stack(increments, 1).flip(1).cumsum(1).flip(1))


def value_gradient(value: Tensor, log_weight: Tensor, clamp: float) -> Tensor:
    """What the loss multiplies V by, 1 - exp(min(log weight - V, clamp)), (B,), without a gradient."""
    return -torch.expm1((log_weight - value.detach()).clamp_max(clamp))


@checked
def mixed_tilt(tilt: Tensor, log_z: float, admixture: Positive) -> Tensor:
    """log(e^(s r) + admixture Z), (S,): what to tilt by for a tilt into which a share of the base is mixed.

    Args:
        tilt: s r, (S,).
        log_z: log of Z = E[e^(s r)].
        admixture: mass of the base beside a mass of one of the tilt.
    """
    return torch.logaddexp(tilt, torch.full_like(tilt, log_z + math.log(admixture)))


@autograd
def fit_value(
    value: ValueFunction,
    pools: list[Pool],
    tilts: list[Tensor],
    t: Tensor,
    *,
    steps: int,
    B: int,
    lr: float,
    clamp: float,
    generator: torch.Generator,
) -> Tensor:
    """Fit a value to the weights of chains.

    Args:
        value: trained in place.
        pools: chains.
        tilts: s r at their ends, one (S,) a pool.
        t: times of their states, (K,).
        steps: minibatches.
        B: states in each, drawn evenly from chains and times.
        lr: learning rate, which falls to zero along a cosine.
        clamp: largest log weight.
        generator: of the CPU; draws the minibatches.

    Returns:
        The root mean square of the log weights' distance to V in each minibatch, (steps,), in nats.
    """
    x = torch.cat([pool.x_t for pool in pools])
    log_weight = torch.cat([tilt.unsqueeze(-1) + pool.log_ratio for pool, tilt in zip(pools, tilts, strict=True)])
    optimizer = torch.optim.Adam(value.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    misfits = []
    for _ in range(steps):
        i, k = (torch.randint(n, (B,), generator=generator).to(x.device) for n in log_weight.shape)
        found = value(x[i, k], t[k])
        loss = (value_gradient(found, log_weight[i, k], clamp) * found).mean() / value.scale
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        misfits.append((log_weight[i, k] - found.detach()).square().mean().sqrt())
    return torch.stack(misfits)


@dataclass(frozen=True)
class ValueDiagnostics(Diagnostics):
    """What the student's own chains say.

    Args:
        displaced: how far their weights move them, in standard deviations.
    """

    displaced: float


@checked
def displaced(samples: Samples, log_w: LogWeights) -> float:
    """How far weights move samples, in standard deviations: 0 if they are all equal.

    That is the 1-Wasserstein distance between a column and the same column weighted, the integral of the difference of
    their distribution functions, over the column's standard deviation; the largest of all columns.

    Args:
        samples: or what else is looked at, such as their rewards beside them, (S, d).
        log_w: log weights, (S,).

    Raises:
        ValueError: if the lengths differ.
    """
    if len(samples) != len(log_w):
        raise ValueError(f"samples and log_w must have the same length, got {len(samples)} and {len(log_w)}")
    x, order = samples.double().sort(0)
    excess = torch.softmax(log_w.double(), 0) - 1 / len(log_w)
    gap = excess[order].cumsum(0)[:-1].abs() * x.diff(dim=0)
    return float((gap.sum(0) / x.std(0, unbiased=False).clamp_min(1e-12)).max())


def _log_mean_exp(log_w: Tensor) -> float:
    return float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))


@checked
def strongest(
    rewards: Tensor, log_ratio: Tensor, lam: float, target_ess: float, start: float = 0.0, part: float = 0.9
) -> float:
    """The strength from one that is reached to lam farthest from 0 at which weights exp(s r + L) keep an effective share.

    Args:
        rewards: r at the ends of chains, (S,).
        log_ratio: L of the whole chains, (S,).
        lam: the strength aimed at, of either sign.
        target_ess: share to keep; less where the chains do not have it at the start.
        start: the strength reached.
        part: of the share there, enough to keep.
    """

    def holds(s: float) -> bool:
        return effective_sample_size(s * rewards + log_ratio) >= share * len(rewards)

    reached = start * rewards + log_ratio if start else log_ratio  # a reward may be minus infinity
    share = min(target_ess, part * effective_sample_size(reached) / len(rewards))
    if holds(lam):
        return lam
    low, high = start, lam
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@autograd
def value_tilting(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    config: ValueConfig | None = None,
    *,
    d: int | None = None,
    seed: int = 0,
    value_of: Callable[[Gaussian, int], ValueFunction] | None = None,
) -> Iterator[TiltStep]:
    """Correct a model by the value of its states, one round per item. The base is never trained.

    Args:
        base: the pretrained model; not changed.
        reward: forward evaluations only; called once a round on (S, d), returns (S,).
        schedule: the pair alpha, sigma.
        config: the knobs.
        d: dimension of the data; by default the base's own, ``base.d``, or 2 if it has none.
        seed: fixes every random draw.
        value_of: makes V of the Gaussian of the first chains and of a seed; a perceptron of the configuration's size by
            default. For images take :class:`ImageValue`.

    Yields:
        A :class:`~itlib.tilting.TiltStep` per round, the first with chains of the base. Its diagnostics are of the model
        *before* the round, at the strength that it was fitted to; the last round only looks, and leaves the best model seen.

    Raises:
        ValueError: if the reward returns NaN or a wrong shape.
        FloatingPointError: if the chains stop being finite.

    Warns:
        UnreachedWarning: if the run ends below full strength, with an effective share below ``enough``, or with chains that
            their weights move by more than ``close``.
    """
    c, d = config or ValueConfig(), d or int(getattr(base, "d", 2))
    clock = time.process_time()

    def generator(purpose: str, k: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(seed, purpose, k))

    steps = chain_steps(base, schedule, min(10_000, max(c.S, 10**6 // d)), d, steps=c.J, generator=generator("widths"))
    device = device_of(base)
    t = torch.tensor([step.t for step in steps], device=device)
    fraction = torch.zeros(c.pilot, device=device)
    pool = draw_pool(Guided(base, nn.Identity(), schedule).to(device), steps, fraction, d, generator=generator("tilt"))
    _refuse_infinite(pool, 0)
    gaussian, weights = Gaussian(pool.x_0, schedule), derive_seed(seed, "weights")
    value = value_of(gaussian, weights) if value_of else ValueFunction(gaussian, c.width, c.depth, weights)
    value = value.to(device)
    model = Guided(base, value, schedule, steps if c.finite else None).to(device)
    pools, rewards, strengths = [pool], [evaluate(reward, pool.x_0)], [0.0]
    best, best_ess, best_displaced, since = {}, 0.0, 0.0, 0
    for k in range(c.rounds + 1):
        own = fraction == fraction.max()  # not those that explore
        r, log_ratio, strength = rewards[-1][own], pools[-1].log_ratio[own, 0], strengths[-1]
        log_w, ends = strength * r + log_ratio, torch.cat([pools[-1].x_0[own], r.unsqueeze(1).to(pools[-1].x_0)], 1)
        found = ValueDiagnostics(**vars(diagnose(log_ratio, strength * r)), displaced=displaced(ends, log_w))
        if strength == c.lam:
            since = 0 if found.ess > best_ess + 0.01 else since + 1
            if found.ess > best_ess:
                best, best_ess, best_displaced = copy.deepcopy(value.state_dict()), found.ess, found.displaced
        last = k == c.rounds or since >= c.patience
        sampled = time.process_time()
        losses, chosen = torch.empty(0), strength
        if last and best:
            value.load_state_dict(best)
        if not last:
            chosen = strongest(r, log_ratio, c.lam, c.target_ess, *((strength, c.climb) if c.climb else ()))
            tilts = [chosen * values for values in rewards]
            if c.admixture:
                log_z = _log_mean_exp(chosen * r + log_ratio)
                tilts = [mixed_tilt(tilt, log_z, c.admixture) for tilt in tilts]
                if strength:
                    value.shift.add_(log_z - _log_mean_exp(strength * r + log_ratio))
                else:
                    value.restart(tilts[-1], log_z)
            else:
                value.rescale(chosen, strength, r)
            losses = fit_value(
                value,
                pools,
                tilts,
                t,
                steps=c.fit if k else 2 * c.fit,
                B=c.B,
                lr=c.lr if chosen != c.lam else 0.5 * c.lr,
                clamp=c.clamp,
                generator=generator("fit", k),
            )
        strengths.append(chosen)
        seconds = {"sampling": sampled - clock, "training": time.process_time() - sampled}
        done, left = tuple(strengths[1:]), 0 if last else 1
        yield TiltStep(k + 1, model, pools[-1].x_0, rewards[-1], losses, seconds, chosen - strength, done, left, found)
        if last:
            break
        clock, draws = time.process_time(), generator("tilt", k + 1)
        fraction = torch.ones(c.S, device=device)
        fraction[: int(c.explore * c.S)] = torch.rand(int(c.explore * c.S), generator=draws).to(device)
        pools.append(draw_pool(model, steps, fraction, d, generator=draws))
        _refuse_infinite(pools[-1], k + 1)
        rewards.append(evaluate(reward, pools[-1].x_0))
        pools, rewards = pools[-c.replay :], rewards[-c.replay :]
    if best_ess < c.enough or best_displaced > c.close:
        reached = f"at strength {strengths[-1]:.3g} of {c.lam:g}"
        if best:
            reached = f"with an effective share of {best_ess:.2g} among its own chains, which their weights move by "
            reached += f"{best_displaced:.2g} standard deviations"
        warnings.warn(
            f"the run ended {reached}: its samples are not those of the tilt. Raise S, rounds, fit, B or width, or ask for "
            "a smaller lam",
            UnreachedWarning,
            stacklevel=3,
        )


def _refuse_infinite(pool: Pool, k: int) -> None:
    if not (finite(pool.x_0) and finite(pool.log_ratio)):
        raise FloatingPointError(
            f"round {k}: the chains are no longer finite. The base diverges, or lr or clamp is too large"
        )
