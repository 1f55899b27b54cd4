r"""Tasks that grow: many coordinates, modes far apart, and rewards of any shape on a line.

**In space**: :class:`Axis` has a mixture in its first coordinate and, independently, a Gaussian of variance 1/2 in every
other. A linear reward keeps this form,

.. math:: x_1 \sim p_{\text{line}}\, e^{b_1 x_1}/Z,\qquad x_{2:d} \sim \mathcal N\big(m + \tfrac12 b_{2:d},\ \tfrac12 I\big),

so sampling and scores cost :math:`O(d)` where :class:`~itlib.gaussian_mixture.GaussianMixture` would hold a
:math:`d\times d` matrix. :math:`\mathrm{KL}(\text{target}\,\|\,\text{base})` is that of the first coordinate plus
:math:`\tfrac14|b_{2:d}|^2`, which fixes the scale of the reward in any dimension (:func:`axis_task`).

**On a line**: :class:`Line` tabulates a law on a fine grid, so a reward may be any function, smooth or not. A tilt
multiplies the table, and the posterior (3.3), the score (3.4) and the covariance (3.9) are sums over it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from itlib.baselines.tilt_matching import EXPLICIT
from itlib.experiments import experiment
from itlib.experiments.experiment import Experiment, Metric, Record
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.metrics import mode_weights
from itlib.network import Network, NoisePredictor, Residual
from itlib.rewards import QuadraticReward, Reward
from itlib.sampling import sample
from itlib.schedules import Cosine, Schedule, add_noise, column
from itlib.tilting import PAPER_UPDATE, TiltingConfig, derive_seed, iterative_tilting

VARIANCE = 0.5


def two_modes(distance: float = 4.0) -> GaussianMixture:
    """Two equal modes on a line, of variance 1/2; the paper's first coordinate at distance 4."""
    return GaussianMixture(torch.ones(2), distance / 2 * torch.tensor([[-1.0], [1.0]]), VARIANCE * torch.ones(2, 1, 1))


@dataclass(frozen=True, eq=False)
class Axis:
    """A mixture in the first coordinate, independent Gaussians of variance 1/2 in the others.

    Args:
        line: law of the first coordinate.
        rest: means of the others, (d - 1,).
    """

    line: GaussianMixture
    rest: Tensor

    @property
    def d(self) -> int:
        """Dimension of the space."""
        return 1 + len(self.rest)

    @property
    def mean(self) -> Tensor:
        """Mean, (d,)."""
        return torch.cat([self.line.mean, self.rest])

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n exact samples, (n, d), in double precision."""
        z = torch.randn(n, self.d - 1, generator=generator, dtype=torch.float64)
        return torch.cat([self.line.sample(n, generator), self.rest + VARIANCE**0.5 * z], 1)

    def score(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Exact score of p_t at points x, (B, d), and times t, (B,) or (). Returns (B, d)."""
        alpha, sigma = (column(f(t.double()), x) for f in (schedule.alpha, schedule.sigma))
        rest = (alpha * self.rest - x[:, 1:]) / (alpha**2 * VARIANCE + sigma**2)
        return torch.cat([self.line.score(x[:, :1], t, schedule), rest.to(x)], 1)

    def tilted(self, b: Tensor, lam: float = 1.0) -> Axis:
        """The tilt by the linear reward b x, b of shape (d,)."""
        return Axis(self.line.tilted(QuadraticReward(b[:1]), lam), self.rest + lam * VARIANCE * b[1:].double())


def axis_task(d: int, reward: str, kl: float, distance: float = 4.0) -> tuple[Axis, Tensor]:
    """A base in d dimensions and a linear reward b, (d,), whose target has a given KL to it.

    Args:
        d: dimension.
        reward: "along" the axis of the modes, or "across" it, spread evenly over all other coordinates.
        kl: KL(target || base), in nats.
        distance: of the modes.

    Raises:
        ValueError: for another reward, or one across a line.
    """
    if reward not in ("along", "across") or (reward == "across" and d < 2):
        raise ValueError(f"the reward is 'along' or, from two dimensions on, 'across' the axis; got {reward!r} for d={d}")
    line, b = two_modes(distance), torch.zeros(d, dtype=torch.float64)
    if reward == "across":
        b[1:] = 2 * math.sqrt(kl / (d - 1))
    else:
        low, high = 0.0, 2 * math.sqrt(kl)  # alone, the shift within the modes would have this KL
        for _ in range(60):
            b[0] = (low + high) / 2
            low, high = (float(b[0]), high) if line.tilt_kl(QuadraticReward(b[:1])) < kl else (low, float(b[0]))
    return Axis(line, torch.zeros(d - 1, dtype=torch.float64)), b


def wave(x: Tensor) -> Tensor:
    """A reward that goes up and down, 3 sin 2x: (S, 1) to (S,)."""
    return 3 * torch.sin(2 * x[:, 0])


def jump(x: Tensor) -> Tensor:
    """A reward with a jump, 3 right of 1/2 and 0 left of it; its gradient is zero wherever there is one: (S, 1) to (S,)."""
    return 1.5 * (1 + torch.sign(x[:, 0] - 0.5))


SHAPES: dict[str, Reward] = {"wave": wave, "jump": jump}


@dataclass(frozen=True, eq=False)
class Line:
    """A law on the line as a table.

    Args:
        x: midpoints of equal cells, (G,).
        p: their probabilities, (G,).
    """

    x: Tensor
    p: Tensor

    @classmethod
    def of(cls, mixture: GaussianMixture, reach: float = 7.0, step: float = 2e-3) -> Line:
        """The table of a mixture on [-reach, reach]: good for times at which the noise is wider than a few steps."""
        x = step * (torch.arange(round(2 * reach / step), dtype=torch.float64) + 0.5) - reach
        return cls(x, torch.softmax(mixture.log_prob(x.unsqueeze(1)), 0))

    def tilted(self, reward: Reward, lam: float = 1.0) -> Line:
        """The tilt by any reward."""
        return Line(self.x, torch.softmax(self.p.log() + lam * reward(self.x.unsqueeze(1)), 0))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n samples, (n, 1): a cell, and a place in it."""
        cell = torch.multinomial(self.p, n, replacement=True, generator=generator)
        place = torch.rand(n, generator=generator, dtype=torch.float64) - 0.5
        return (self.x[cell] + (self.x[1] - self.x[0]) * place).unsqueeze(1)

    def posterior(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Probabilities of the cells given X_t = x (3.3), (B, G), at points x, (B, 1), and times t, (B,) or ()."""
        alpha, sigma = (column(f(t.double()), x) for f in (schedule.alpha, schedule.sigma))
        return torch.softmax(self.p.log() - 0.5 * ((x.double() - alpha * self.x) / sigma).square(), 1)

    def score(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """Score of p_t, (B, 1), as the posterior mean of the kernel's (3.6)."""
        alpha, sigma = (column(f(t.double()), x) for f in (schedule.alpha, schedule.sigma))
        mean = (self.posterior(x, t, schedule) @ self.x).unsqueeze(1)
        return ((alpha * mean - x) / sigma**2).to(x)

    def quantile(self, u: Tensor) -> Tensor:
        """Quantiles at levels u in (0, 1), of any shape, to the width of a cell."""
        return self.x[torch.searchsorted(self.p.cumsum(0), u).clamp_max(len(self.x) - 1)]

    def wasserstein(self, samples: Tensor) -> float:
        """2-Wasserstein distance of samples, (n, 1), to this law."""
        n = len(samples)
        levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        return float((samples.double().flatten().sort().values - self.quantile(levels)).square().mean().sqrt())

    def bins(self, edges: Tensor) -> Tensor:
        """Probabilities of the intervals between edges, (m + 1,), as (m,)."""
        at = torch.bucketize(self.x, edges) - 1
        inside = (at >= 0) & (at < len(edges) - 1)
        return torch.zeros(len(edges) - 1, dtype=torch.float64).index_add(0, at[inside], self.p[inside])


# ---- the experiment -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parameters(experiment.Parameters):
    """Algorithm 2 from the *exact* base: the student is the exact denoiser plus a network that starts at zero.

    Args:
        d: dimension.
        reward: "across" or "along" the axis of the modes; "wave" or "jump" on a line (d = 1).
        kl: KL(target || base) in nats, which sets the scale of a linear reward.
        distance: of the modes.
        N: number of tilts.
        S: samples per tilt.
        E: minibatches of 64 per tilt.
        J: reverse steps.
        width: of the student's layers.
        centre: whether the mean reward of a tilt's samples is subtracted.
        lr: learning rate.
    """

    experiment: ClassVar[str] = "scaling"
    d: int = 2
    reward: Literal["across", "along", "wave", "jump"] = "across"
    kl: float = 4.0
    distance: float = 4.0
    N: int = 20
    S: int = 1000
    E: int = 100
    J: int = 50
    width: int = 256
    centre: bool = False
    lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_most(S=128, E=5, J=10)

    @property
    def tilting(self) -> TiltingConfig:
        """All knobs of the tilts."""
        return TiltingConfig(N=self.N, S=self.S, E=self.E, J=self.J, lr=self.lr)


def _rms(v: Tensor) -> float:
    return float(v.square().sum(-1).mean().sqrt())


def run(parameters: Parameters, folder: Path) -> Record[Parameters]:
    """Tilt, and judge at noised exact samples of the target and by samples of the model."""
    torch.set_num_threads(1)
    p, schedule = parameters, Cosine()
    reward: Reward
    base: Axis | Line
    target: Axis | Line
    if p.reward in SHAPES:
        line = Line.of(two_modes(p.distance))
        reward, base, target = SHAPES[p.reward], line, line.tilted(SHAPES[p.reward])
        start = ExactNoisePredictor(two_modes(p.distance), schedule)
    else:
        axis, b = axis_task(p.d, p.reward, p.kl, p.distance)
        base, target, start = axis, axis.tilted(b), ExactNoisePredictor(axis, schedule)

        def reward(x: Tensor) -> Tensor:
            return x @ b.to(x)

    def draw(denoiser: NoisePredictor, k: int, n: int, generator: torch.Generator) -> Tensor:
        """Algorithm 1 with the posterior's width put back: few steps, and next to no bias of the sampler."""
        return sample(denoiser, schedule, n, p.d, steps=p.J, variance="analytic", generator=generator)

    student = Residual(start, Network(p.d, width=p.width, seed=derive_seed(p.seed, "weights")))
    update = EXPLICIT if p.centre else PAPER_UPDATE
    seconds = {"sampling": 0.0, "training": 0.0}
    for step in iterative_tilting(student, reward, schedule, p.tilting, d=p.d, seed=p.seed, update=update, sampler=draw):
        seconds = {key: value + step.seconds[key] for key, value in seconds.items()}
    model = step.model

    n = 5000 if p.reward in SHAPES else 2000
    generator = torch.Generator().manual_seed(derive_seed(p.seed, "judge"))
    error, metrics = noise_errors(model, base, target, schedule, n, p.d, generator)
    x, curve = draw(model, p.N, n, generator).double(), {}
    if isinstance(target, Line):
        edges = torch.linspace(-5, 5, 101, dtype=torch.float64)
        counts = torch.histogram(x.flatten(), edges)[0]
        metrics |= {
            "w2": target.wasserstein(x),
            "total_variation": float((counts / n - target.bins(edges)).abs().sum() / 2),
        }
        curve = {"left": edges[:-1].tolist(), "count": counts.tolist()}
    else:
        metrics |= axis_card(x, error, target, b, across=p.reward == "across")
    return Record(p, metrics, curve=curve, seconds=seconds)


def noise_errors(
    model: NoisePredictor,
    base: Axis | Line,
    target: Axis | Line,
    schedule: Schedule,
    n: int,
    d: int,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Metric]]:
    """The error of the noise prediction at n noised exact samples of the target, (n, d), and its root mean square.

    ``way`` is how much of the difference between base and target the model has covered, by regression.
    """
    x_0 = target.sample(n, generator)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(n, generator=generator, dtype=torch.float64)
    x_t = add_noise(schedule, x_0, torch.randn(n, d, generator=generator, dtype=torch.float64), t)
    with torch.no_grad():
        learned = model(x_t.float(), t.float()).double()
    # A table of the target's law needs memory for each point: in pieces.
    exact, before = (
        torch.cat([ExactNoisePredictor(law, schedule)(*piece) for piece in zip(x_t.split(500), t.split(500), strict=True)])
        for law in (target, base)
    )
    error, travel = learned - exact, exact - before
    way = float(((learned - before) * travel).sum() / travel.square().sum())
    return error, {"eps_rmse": _rms(error), "travel": _rms(travel), "way": way}


def axis_card(x: Tensor, error: Tensor, target: Axis, b: Tensor, *, across: bool) -> dict[str, Metric]:
    """Errors of noise prediction and samples, both (n, d), in three parts.

    They are those along the gradient b of the reward, along the axis of the modes, and in all directions that have nothing
    to do with either.
    """
    u, axis = b / b.norm(), torch.eye(x.shape[1], dtype=torch.float64)[0]
    rest = x - (x @ u).unsqueeze(1) * u - (x[:, :1] * axis if across else 0)
    off = rest - (target.mean - (target.mean @ u) * u - (target.mean[0] * axis if across else 0))
    return {
        "eps_along_b": _rms((error @ u).unsqueeze(1)),
        "eps_along_axis": _rms(error[:, :1]),
        "eps_rest": _rms(error - (error @ u).unsqueeze(1) * u - (error[:, :1] * axis if across else 0)),
        "mean_along_b": float((x.mean(0) - target.mean) @ u),
        # Squared, and without what n samples of an unbiased model would show: it may be negative.
        "mean_rest_squared": float(off.mean(0).square().sum() - off.var(0).sum() / len(x)),
        "variance_along_b": float((x @ u).var()),
        "mode_weight": float(mode_weights(x[:, :1], target.line)[1]),
        "mode_weight_exact": float(target.line.weights[1]),
    }


# ---- the grid -------------------------------------------------------------------------------------------------------

DIMENSIONS, TILTS, DISTANCES = (2, 10, 100, 1000), (5, 20), (2, 4, 6, 8)
#: What may help in a high dimension, tried in the hundredth with twenty tilts: more samples, a centred reward, a smaller
#: student.
LEVERS: dict[str, dict[str, Any]] = {
    "samples": {"S": 4000, "E": 400},
    "centred": {"centre": True},
    "small": {"width": 32},
}


def _variants() -> dict[str, dict[str, Any]]:
    """The cells of a seed by the name before it."""
    found: dict[str, dict[str, Any]] = {}
    for reward in ("across", "along"):
        for d in DIMENSIONS if reward == "across" else (2, 100):
            for N in TILTS:
                found[f"{reward}_d{d:04d}_N{N:03d}"] = {"reward": reward, "d": d, "N": N}
    for name, changes in LEVERS.items():
        found[f"across_d0100_N020_{name}"] = {"reward": "across", "d": 100, "N": 20, **changes}
    for distance in DISTANCES:
        found[f"apart{distance}_N020"] = {"reward": "along", "d": 1, "N": 20, "kl": 0.3, "distance": float(distance)}
    for stem in ("along_d0002_N005", "along_d0002_N020", "apart8_N020"):
        found[f"{stem}_centred"] = found[stem] | {"centre": True}
    for shape in SHAPES:
        for N in TILTS:
            found[f"{shape}_N{N:03d}"] = {"reward": shape, "d": 1, "N": N, "lr": 1e-3}
    found["wave_N020_slow"] = {"reward": "wave", "d": 1, "N": 20, "lr": 1e-4}
    return found


def cells(seeds: Sequence[int]) -> dict[str, Parameters]:
    """The grid."""
    variants = _variants()
    return {f"{name}_seed{seed}": Parameters(seed=seed, **knobs) for seed in seeds for name, knobs in variants.items()}


EXPERIMENT = Experiment("scaling", Parameters, run, cells, work=lambda p: p.N)
