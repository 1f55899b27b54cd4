r"""What the baselines share: their arguments, the step that they yield, and a count of the evaluations that they spend.

A baseline that trains is a generator ``f(base, reward, schedule, config=None, *, d=2, seed=0)``. It takes a pretrained
model, which it does not change; a reward, (S, d) to (S,); the pair alpha, sigma; its knobs; the dimension of the data; and a
seed that fixes every random draw. It yields a :class:`BaselineStep` per iteration, and raises a FloatingPointError if the
loss stops being finite.

Budgets are counted in samples, whatever the size of a call:

- *reward*: forward evaluations :math:`r(x)`; *reward_gradient*: evaluations whose gradient was asked for;
- *network*: evaluations of a model; *network_gradient*: those of them that autograd recorded, which cost about three.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from itlib.beyond.chains import chain_steps
from itlib.network import NoisePredictor, device_of
from itlib.rewards import Reward
from itlib.sampling import ReverseStep, Variance, randn, reverse_process, reverse_steps, time_grid
from itlib.schedules import Schedule
from itlib.tilting import TiltStep, derive_seed, trainable_copy


@dataclass
class Counts:
    """Evaluations so far, in samples."""

    reward: int = 0
    reward_gradient: int = 0
    network: int = 0
    network_gradient: int = 0

    @property
    def work(self) -> int:
        """Cost in forward evaluations of a model: one that is differentiated counts three."""
        return self.network + 2 * self.network_gradient


@dataclass(frozen=True)
class BaselineStep:
    """What one iteration of a baseline leaves behind.

    Args:
        k: the iteration just finished, from 1.
        model: the live network; copy it to keep it.
        loss: of this iteration.
        counts: what was spent so far.
        seconds: processor seconds spent so far.
        strength: of the tilt that the model aims at, as a share of lambda.
        share: effective share of the model's own chains, before the iteration, for a method that measures it.
    """

    k: int
    model: nn.Module
    loss: float
    counts: Counts
    seconds: float
    strength: float = 1.0
    share: float | None = None


@dataclass
class EvaluationCounter:
    """Counts what goes through the callables that it wraps, and the processor time since it was made."""

    counts: Counts = field(default_factory=Counts)
    opened: float = field(default_factory=time.process_time)

    def count_reward(self, reward: Reward) -> Reward:
        """The same reward, counted."""

        def counted(x: Tensor) -> Tensor:
            if not (torch.is_grad_enabled() and x.requires_grad):
                self.counts.reward += len(x)
                return reward(x)
            self.counts.reward_gradient += len(x)
            values = reward(x)
            if values.shape != x.shape[:1] or not values.requires_grad:
                found = f"{tuple(values.shape)}" + ("" if values.requires_grad else ", without a gradient")
                raise ValueError(
                    f"this method needs the reward's gradient, and one number per sample, ({len(x)},); got {found}"
                )
            return values

        return counted

    def count_model(self, model: NoisePredictor) -> NoisePredictor:
        """The same model, counted. A network keeps its type, and its copies are counted as well."""
        if isinstance(model, nn.Module):
            model.register_forward_hook(lambda module, inputs, output: self._count(output))
            return model

        def counted(x: Tensor, t: Tensor) -> Tensor:
            output = model(x, t)
            self._count(output)
            return output

        return counted

    def _count(self, output: Tensor) -> None:
        self.counts.network += len(output)
        self.counts.network_gradient += len(output) if output.requires_grad else 0

    def step(self, k: int, model: nn.Module, loss: float) -> BaselineStep:
        """The step to yield, with a snapshot of the counts."""
        return BaselineStep(k, model, loss, replace(self.counts), time.process_time() - self.opened)

    def tilt(self, step: TiltStep, lam: float) -> BaselineStep:
        """The step to yield after a tilt of a run of strength lam, with a snapshot of the counts."""
        loss = float(step.losses.mean()) if len(step.losses) else 0.0
        share = step.diagnostics.ess if step.diagnostics else None
        return replace(self.step(step.k, step.model, loss), strength=step.strength / lam, share=share)


class FineTuning:
    """What every baseline starts from: a student, a frozen base and the reward, all counted, and an optimiser.

    Args:
        base: the pretrained model; not changed.
        reward: (S, d) to (S,).
        d: dimension of the data.
        seed: fixes initial weights, if there are any.
        lr: Adam's learning rate.
    """

    def __init__(self, base: NoisePredictor, reward: Reward, d: int, seed: int, lr: float) -> None:
        self.account = EvaluationCounter()
        self.student = trainable_copy(base, d, derive_seed(seed, "weights"))
        frozen = copy.deepcopy(base).requires_grad_(False) if isinstance(base, nn.Module) else base
        self.base = self.account.count_model(frozen)
        self.account.count_model(self.student)
        self.reward = self.account.count_reward(reward)
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr)
        self._shape = (d,)

    def noise(self, n: int, generator: torch.Generator) -> Tensor:
        """Where Algorithm 1 starts, (n, d), as the student's parameters are stored."""
        like = self.parameters[0]
        return randn((n, *self._shape), generator, like.dtype, device_of(self.student))

    def widths(self, schedule: Schedule, steps: int, variance: Variance, seed: int, n: int = 2000) -> list[float] | None:
        """Standard deviations of the sampler's noise for :func:`trajectory`: None for DDPM's, else those of n chains."""
        if variance == "ddpm":
            return None
        generator = torch.Generator().manual_seed(derive_seed(seed, "widths"))
        chains = chain_steps(self.base, schedule, n, *self._shape, steps=steps, variance=variance, generator=generator)
        return [step.std for step in chains]

    def descend(self, k: int, loss: Tensor) -> None:
        """One optimiser step of iteration k.

        Raises:
            FloatingPointError: if the loss is not finite; the student is left as it was.
        """
        if not bool(torch.isfinite(loss)):
            lr = self.optimizer.param_groups[0]["lr"]
            raise FloatingPointError(f"iteration {k}: the loss is no longer finite. Lower lr ({lr:g}) or lam")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def step(self, k: int, loss: Tensor) -> BaselineStep:
        """The step to yield."""
        return self.account.step(k, self.student, float(loss.detach()))


def trajectory(
    model: NoisePredictor,
    base: NoisePredictor,
    schedule: Schedule,
    x: Tensor,
    steps: int,
    generator: torch.Generator | None = None,
    widths: Sequence[float] | None = None,
) -> list[Tensor]:
    """States x_K, ..., x_0 of Algorithm 1, each (B, d); the last step is the base's.

    Noise has the standard deviations ``widths`` of the K steps, from noise to data; by default DDPM's, zero in the last.
    """
    if widths is not None:
        states, kernels = [x], reverse_steps(schedule, time_grid(schedule, steps), 1.0)
        for k, (step, std) in enumerate(zip(kernels, widths, strict=True), 1):
            with torch.no_grad():
                eps = (model if k < steps else base)(x, torch.tensor(step.t, dtype=x.dtype, device=x.device))
            x = step._replace(std=std).draw(x, eps, randn(x.shape, generator, x.dtype, x.device))
            states.append(x)
        return states
    last = torch.tensor(time_grid(schedule, steps)[1], dtype=x.dtype, device=x.device)

    def either(x: Tensor, t: Tensor) -> Tensor:
        return (model if bool(t > last) else base)(x, t)

    return [x, *(state for _, state in reverse_process(either, schedule, x, steps=steps, generator=generator))]


@dataclass(frozen=True)
class NoisySteps:
    """The noisy steps of B trajectories, M = B (K - 1) of them, from noise to data.

    Args:
        x: states that the steps leave, (M, d).
        arrived: states that they reach, (M, d).
        step: all of them at once: times (M, 1), and coefficients, (M, 1) each.
        eps_base: the base's prediction at x, (M, d).
    """

    x: Tensor
    arrived: Tensor
    step: ReverseStep[Tensor]
    eps_base: Tensor

    @classmethod
    def of(
        cls, states: list[Tensor], base: NoisePredictor, schedule: Schedule, widths: Sequence[float] | None = None
    ) -> NoisySteps:
        """Those of trajectories x_K, ..., x_0, as :func:`trajectory` gives them for the same widths."""
        x, B, steps = torch.cat(states[:-2]), len(states[0]), len(states) - 1
        times = time_grid(schedule, steps)
        each = list(reverse_steps(schedule, times, 1.0))[:-1]
        if widths is not None:
            each = [step._replace(std=std) for step, std in zip(each, widths, strict=False)]
        step = ReverseStep(
            *(
                torch.tensor(v, dtype=x.dtype, device=x.device).repeat_interleave(B).unsqueeze(-1)
                for v in zip(*each, strict=True)
            )
        )
        with torch.no_grad():
            eps_base = base(x, step.t.squeeze(-1))
        return cls(x, torch.cat(states[1:-1]), step, eps_base)

    @property
    def t(self) -> Tensor:
        """Times that the steps leave, (M,)."""
        return self.step.t.squeeze(-1)

    def control(self, eps: Tensor) -> Tensor:
        """Shift of each step's mean against the base's, in its standard deviations, (M, d)."""
        return self.step.control(eps, self.eps_base)

    def kl(self, eps: Tensor) -> Tensor:
        """KL of each step to the base's, (M,)."""
        return 0.5 * self.control(eps).square().sum(-1)

    def log_density(self, eps: Tensor) -> Tensor:
        """log p(arrived | x) of each step, (M,), up to a constant."""
        return -0.5 * self.step.noise(self.x, eps, self.arrived).square().sum(-1)
