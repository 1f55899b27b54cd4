r"""Steering by a learned value: SVDD (Li et al., arXiv 2408.08252), FK steering (Singhal et al., arXiv 2501.06848).

Both leave the model as it is. They learn a value on chains of the *base*, and choose between proposals of its sampler with
it:

- :func:`learn_value`: regress on the rewards at the ends of chains through :math:`x_t`. ``soft=True`` fits the exact
  potential, :math:`V=\log\mathbb E[e^{\lambda r}\mid x_t]`, by the convex loss :math:`\mathbb E[e^{\lambda r-V}+V]`,
  which is stationary where :math:`\mathbb E[e^{\lambda r-V}\mid x_t]=1`. ``soft=False`` fits :math:`\lambda\,\mathbb
  E[r\mid x_t]`, the Monte-Carlo regression of SVDD, which by Jensen's inequality lies below.
- *Feynman-Kac steering*: :func:`~itlib.baselines.monte_carlo.sequential_monte_carlo` with the value for its
  potential. All its weights are corrected at the end, so with many particles it draws the tilt for *any* potential.
  (The authors' code offers other potentials: their "max" ends with the largest reward along the path in the exponent,
  which is another target.)
- *SVDD*, :func:`decode`: each sample by itself takes M proposals for its next state and keeps one, with probability
  in proportion to :math:`e^V`. With M finite this is biased even with the exact value: :math:`e^V` is normalised by M
  draws where the tilt divides by its mean. The bias is of order 1/M in every step, so it falls with M; and with M = 1
  it is the base.

Published values: the authors' code of SVDD takes M = 5 to 20 and keeps the best proposal, the limit of large
strength.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from itlib._checks import Positive, autograd
from itlib.baselines.guidance import Value
from itlib.network import FourierFeatures, NoisePredictor, device_of
from itlib.rewards import Reward, evaluate
from itlib.sampling import randn, reverse_process, reverse_steps, time_grid
from itlib.schedules import Schedule
from itlib.tilting import derive_seed


class ValueNetwork(nn.Module):
    """A small network for a value, (x (B, d), t (B,) or ()) to (B,).

    Args:
        d: dimension of the data.
        width: units of its two hidden layers.
        seed: fixes the initial weights.
    """

    def __init__(self, d: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features, self.last = FourierFeatures(16), nn.Linear(width, 1)
            self.body = nn.Sequential(nn.Linear(d + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The value, (B,)."""
        features = self.features(t.to(x)).expand(len(x), -1)
        result: Tensor = self.last(self.body(torch.cat([x, features], -1))).squeeze(-1)
        return result


@autograd
def learn_value(
    base: NoisePredictor,
    reward: Reward,
    schedule: Schedule,
    *,
    n: int = 5000,
    J: int = 50,
    d: int = 2,
    lam: float = 1.0,
    soft: bool = True,
    steps: int = 2000,
    B: int = 256,
    lr: Positive = 2e-3,
    seed: int = 0,
) -> Iterator[ValueNetwork]:
    """Fit a value to n chains of the base, one optimiser step per item; the network is the same in all.

    Args:
        base: the pretrained model.
        reward: forward evaluations only, (S, d) to (S,); called once, on n samples.
        schedule: the pair alpha, sigma.
        n: chains.
        J: steps of the sampler; decode with the same.
        d: dimension of the data.
        lam: tilt strength.
        soft: whether the value is log E[exp(lam r)], or lam E[r].
        steps: optimiser steps.
        B: minibatch of states.
        lr: Adam's learning rate; it falls to zero along a cosine.
        seed: fixes every random draw.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "value"))
    x = randn((n, d), generator, torch.float32, device_of(base))
    states = [x, *(s for _, s in reverse_process(base, schedule, x, steps=J, generator=generator))]
    y = lam * evaluate(reward, states[-1])
    c = torch.logsumexp(y, 0) - math.log(n) if soft else y.mean()
    pool, times = torch.stack(states[:-1]), torch.tensor(time_grid(schedule, J)[:0:-1], device=x.device)
    network = ValueNetwork(d, seed=derive_seed(seed, "value weights")).to(x.device)
    with torch.no_grad():
        network.last.bias.fill_(float(c))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        k, i = (torch.randint(m, (B,), generator=generator) for m in (J, n))
        gap = y[i] - network(pool[k, i], times[k])
        loss = (gap.clamp_max(10.0).exp() - gap).mean() if soft else gap.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
        yield network


@autograd
@torch.no_grad()
def decode(
    base: NoisePredictor,
    value: Value,
    schedule: Schedule,
    n: int,
    *,
    M: int = 10,
    d: int = 2,
    J: int = 50,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """SVDD: n samples, (n, d), each choosing its next state among M proposals in proportion to exp(value).

    Args:
        base: the pretrained model.
        value: at noisy times; the last step of Algorithm 1 has one proposal only.
        schedule: the pair alpha, sigma.
        n: number of samples.
        M: proposals of a step.
        d: dimension of the data.
        J: steps of the sampler.
        generator: of all draws.
        dtype: of the samples.
    """
    times = time_grid(schedule, J)
    x = randn((n, d), generator, dtype, device_of(base))
    for s, step in zip(times[-2::-1], reverse_steps(schedule, times, 1.0), strict=True):
        mean = step.mean(x, base(x, torch.tensor(step.t, dtype=dtype, device=x.device)))
        if step.std == 0.0:
            return mean
        proposals = mean.unsqueeze(1) + step.std * randn((n, M, d), generator, dtype, x.device)
        score = value(proposals.reshape(n * M, d), torch.tensor(s, dtype=dtype, device=x.device)).reshape(n, M)
        pick = torch.multinomial(torch.softmax(score.cpu(), 1), 1, generator=generator).to(x.device)
        x = proposals[torch.arange(n, device=x.device), pick.squeeze(1)]
    return x
