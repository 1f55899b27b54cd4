"""Runs that survive: a base trained once, and tilts that resume where they were stopped.

:func:`resumable_base` wraps :func:`itlib.training.train_noise_predictor`, :func:`resumable_tilting` wraps
:func:`itlib.tilting.iterative_tilting`. Both keep a safetensors checkpoint (nothing here ever unpickles) whose name carries
a hash of everything that its content depends on: the code that made it, the parameters, the weights it starts from, the
version of torch. A finished run is found again, a changed one is not, and there is nothing to invalidate by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from itlib.beyond.preconditioning import gaussian_skip_network
from itlib.beyond.recommended import RecommendedConfig, new_model, recommended_tilting
from itlib.experiments.files import DamagedFileError, write_atomically
from itlib.experiments.provenance import content
from itlib.gaussian_mixture import GaussianMixture
from itlib.metrics import score_errors
from itlib.network import Network
from itlib.rewards import QuadraticReward
from itlib.schedules import Schedule
from itlib.tilting import TiltingConfig, TiltState, derive_seed, iterative_tilting
from itlib.training import TrainingConfig, train_noise_predictor


@dataclass(frozen=True)
class Profile:
    """How much work a run is: the paper's numbers, or a first look that only shows that everything works."""

    n: int
    training: TrainingConfig
    tilting: TiltingConfig
    samples: int
    flow_samples: int

    def configured(self, config: str, N: int) -> TiltingConfig:
        """The knobs of a named configuration for N equal tilts, with no more samples and steps than this profile has."""
        if config == "paper":
            return replace(self.tilting, N=N)
        chosen = RecommendedConfig.equal_steps(N)
        return replace(chosen, S=min(chosen.S, self.tilting.S), J=min(chosen.J, self.tilting.J))

    def trained(self, config: str) -> dict[str, Any]:
        """What :func:`resumable_base` is asked for by a named configuration: kind, training and number of samples."""
        ours = {"kind": "skip", "config": replace(self.training, lr=3e-3)}
        return {"config": self.training, "n": self.n} | (ours if config == "recommended" else {})


#: "full" is Section 4.2 of the paper; "smoke" runs the same code in seconds, and its figures mean nothing.
PROFILES: dict[str, Profile] = {
    "full": Profile(30_000, TrainingConfig(), TiltingConfig(), 5000, 2000),
    "smoke": Profile(6000, TrainingConfig(epochs=60, batch_size=256), TiltingConfig(S=500, J=50), 1000, 200),
}


def profile(name: str) -> Profile:
    """A profile by name.

    Raises:
        ValueError: for an unknown name, with the ones that exist.
    """
    if name not in PROFILES:
        raise ValueError(f"there is no profile {name!r}: choose from {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass
class RunState:
    """Where a resumable run stands.

    Args:
        done: finished tilts (or epochs).
        total: tilts (or epochs) in all.
        model: the network so far; copy it to keep it.
        trace: one figure per finished tilt (score RMSE) or epoch (validation loss).
        losses: mean training loss of each tilt or epoch.
        strengths: after each finished tilt.
        seconds: processor seconds by activity, over all the sessions that the run took.
        halfway: the samples of the model after tilt N // 2 (Figure 1), or at half the strength, (S, d), once drawn.
    """

    done: int
    total: int
    model: nn.Module
    trace: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"sampling": 0.0, "training": 0.0})
    halfway: Tensor | None = None


def default_cache() -> Path:
    """Where checkpoints live: ``$ITLIB_CACHE``, or ``_build/cache`` in the checkout (else in the working folder)."""
    checkout = Path(__file__).parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return Path(os.environ.get("ITLIB_CACHE") or root / "_build" / "cache")


def _key(*parts: Any) -> str:
    text = json.dumps([content(__name__), torch.__version__, *parts], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(mixture: GaussianMixture, schedule: Schedule) -> list[Any]:
    return [mixture.weights.tolist(), mixture.means.tolist(), mixture.covariances.tolist(), schedule]


def save_state(path: Path | str, state: RunState) -> None:
    """Write a state as one safetensors file, atomically. Weights that two layers share are written twice."""
    tensors = {f"theta.{name}": value.detach().cpu().clone() for name, value in state.model.state_dict().items()}
    if state.halfway is not None:
        tensors["halfway"] = state.halfway.cpu().contiguous()
    notes = {key: getattr(state, key) for key in ("done", "total", "trace", "losses", "strengths", "seconds")}
    write_atomically(Path(path), safetensors.torch.save(tensors, {"notes": json.dumps(notes)}))


def load_state(path: Path | str, model: nn.Module) -> RunState:
    """Read what :func:`save_state` wrote; the weights go into ``model``, whatever wrappers' prefixes their names have.

    Raises:
        DamagedFileError: if the file is truncated or not a checkpoint.
        DamagedFileError: if it is the checkpoint of another network, which is no reason to throw it away.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes = json.loads(file.metadata()["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        halfway = tensors.pop("halfway", None)
        state = RunState(model=model, halfway=halfway, **notes)
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedFileError(f"{path} is truncated or not a checkpoint: delete it, and the run starts anew") from error
    found = {_plain(name.removeprefix("theta.")): value for name, value in tensors.items()}
    wanted = {_plain(name): name for name in model.state_dict()}
    if found.keys() != wanted.keys():
        missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        raise DamagedFileError(
            f"{path} is sound, but of another network than this {type(model).__name__}: keep it, and pass one built "
            f"as that run built its own. Here {len(missing)} weights are missing ({', '.join(missing[:3])}) and "
            f"{len(more)} are too many ({', '.join(more[:3])})"
        )
    try:
        model.load_state_dict({wanted[name]: value for name, value in found.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise DamagedFileError(f"{path} is sound, but of a network of another size: keep it ({first})") from error
    return state


def _plain(name: str) -> str:
    """The name of a weight without what torch.compile and data parallelism put before it."""
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module"))


def _announce(what: str, state: RunState) -> None:
    """Tell whoever watches from outside (``$ITLIB_PROGRESS`` names a file) how far the run is."""
    if target := os.environ.get("ITLIB_PROGRESS"):
        write_atomically(Path(target), f"{what} {state.done} {state.total}\n".encode())


BaseKind = Literal["plain", "small", "skip", "wide"]
_SMALL: dict[str, Any] = {"width": 64, "depth": 3, "embedding": 32, "fourier_scale": 0.5}
_PAPER: dict[str, Any] = {"width": 256, "depth": 5, "embedding": 128, "fourier_scale": 1.0}
_SIZES = {"plain": _PAPER, "small": _SMALL, "skip": _SMALL, "wide": _PAPER}


def resumable_base(
    mixture: GaussianMixture,
    schedule: Schedule,
    config: TrainingConfig,
    *,
    n: int = 30_000,
    seed: int = 0,
    kind: BaseKind = "plain",
    cache: Path | None = None,
) -> Iterator[RunState]:
    """Train the base model of Section 4.2 on n samples of the mixture, or find it trained.

    Args:
        mixture: the base distribution.
        schedule: the pair alpha, sigma.
        config: of the training.
        n: number of training samples.
        seed: fixes samples, initial weights and training.
        kind: "plain" is the network of Section 4.2 and "small" one of fewer units; "skip" and "wide" are such networks as
            corrections of the Gaussian of the data, :func:`~itlib.beyond.preconditioning.gaussian_skip_network`.
        cache: folder of checkpoints.

    Yields:
        A :class:`RunState` per epoch, or a single one if it was found; the last holds the weights of the best epoch once
        the iterator is exhausted.
    """
    described = _described(mixture, schedule)
    path = (cache or default_cache()) / f"base_{_key('base', described, asdict(config), n, seed, kind)}.safetensors"
    data = mixture.sample(n, torch.Generator().manual_seed(derive_seed(seed, "data"))).float()
    weights = derive_seed(seed, "weights")
    size = _SIZES[kind]
    if kind in ("skip", "wide"):
        network: nn.Module = gaussian_skip_network(data, schedule, seed=weights, **size)
    else:
        network = Network(mixture.d, seed=weights, **size)
    state = RunState(0, config.epochs, network)
    if path.exists():
        yield load_state(path, state.model)
        return
    clock = time.process_time()
    for step in train_noise_predictor(state.model, data, schedule, config, seed=derive_seed(seed, "training")):
        state.done = step.epoch
        state.trace.append(step.validation_loss)
        state.losses.append(step.train_loss)
        state.seconds["training"] = time.process_time() - clock
        _announce("base", state)
        yield state
    save_state(path, state)


def resumable_tilting(
    base: nn.Module,
    mixture: GaussianMixture,
    reward: QuadraticReward,
    schedule: Schedule,
    config: TiltingConfig,
    *,
    seed: int = 0,
    trace_samples: int = 5000,
    cache: Path | None = None,
) -> Iterator[RunState]:
    """Run :func:`~itlib.tilting.iterative_tilting` so that it may be killed at any moment.

    After each tilt the network, the trace and the clock are saved; a second call with the same arguments goes on from
    there and ends with the same numbers, bit for bit on the same machine. A finished run is found, not repeated.

    Args:
        base: the pretrained model. What it computes follows from its parameters and the mixture, for they name the file.
        mixture: the exact base distribution: it gives the trace its truth, and the method nothing.
        reward: the tilt.
        schedule: the pair alpha, sigma.
        config: the knobs of Algorithm 2.
        seed: fixes every random draw.
        trace_samples: exact draws behind each figure of the trace.
        cache: folder of checkpoints.

    Yields:
        A :class:`RunState` per tilt, its trace the score RMSE (4.13) against the exact p^k; first the state that was
        found, if any.

    Raises:
        NotNormalisableError: before any work, if the target does not exist.
        DamagedFileError: if a checkpoint was found but cannot be read.
        FloatingPointError: if a tilt diverges; what was saved is the tilt before.
    """
    mixture.tilted(reward, config.lam)  # a target that does not exist is better found now than at the last tilt
    start = hashlib.sha256(safetensors.torch.save(dict(base.state_dict()))).hexdigest()
    tilt = [*_described(mixture, schedule), reward.A.tolist(), reward.b.tolist(), reward.c]
    file = (
        cache or default_cache()
    ) / f"tilts_{_key('tilts', start, tilt, asdict(config), seed, trace_samples)}.safetensors"
    state = RunState(0, config.N, base)
    if file.exists():
        recommended = config if isinstance(config, RecommendedConfig) else RecommendedConfig.like(config)
        state = load_state(file, new_model(base, mixture.d, schedule, recommended, d=mixture.d, seed=seed))
        _announce("tilts", state)
        yield state
    found = TiltState(state.model, tuple(state.strengths)) if state.done else None
    if isinstance(config, RecommendedConfig):
        steps = recommended_tilting(base, reward, schedule, config, d=mixture.d, seed=seed, state=found)
    else:
        steps = iterative_tilting(base, reward, schedule, config, d=mixture.d, seed=seed, state=found)
    for step in steps:
        clock = time.process_time()
        errors = score_errors(
            step.model, mixture.tilted(reward, step.strength), schedule, n=trace_samples, seed=derive_seed(seed, "trace")
        )
        if not math.isfinite(errors.score_rmse):
            raise FloatingPointError(
                f"tilt {step.k}: the score error is no longer finite. The network has diverged: "
                f"lower the learning rate ({config.lr:g})"
            )
        equal = getattr(config, "target_ess", None) is None
        passed = step.k / config.N > 0.5 if equal else (step.strength - step.delta) / config.lam >= 0.5
        spent = step.seconds | {"trace": time.process_time() - clock}
        state = replace(
            state,
            done=step.k,
            total=step.k + step.left,
            strengths=[*state.strengths, step.strength],
            model=step.model,
            trace=[*state.trace, errors.score_rmse],
            losses=[*state.losses, float(step.losses.mean())],
            seconds={key: state.seconds.get(key, 0.0) + value for key, value in spent.items()},
            halfway=step.samples if passed and state.halfway is None else state.halfway,
        )
        save_state(file, state)
        _announce("tilts", state)
        yield state
