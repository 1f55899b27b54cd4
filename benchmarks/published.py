"""What `itlib` is compared with: Algorithms 1 and 2 as one would publish them, and the same with diffusers.

The network is that of Section 4.2 as it is usually written: time is embedded for every sample and is one more input of the
first layer. Its weights are those of an :class:`itlib.network.Network`, so that all of them compute the same function.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from itlib.network import Network
from itlib.sampling import ddpm_std, time_grid
from itlib.schedules import Schedule, column


class Plain(nn.Module):
    """The network of Section 4.2 as it is usually written, with the weights of another."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.register_buffer("frequencies", network.features.frequencies.clone())
        first = nn.Linear(network.space.in_features + network.time.in_features, network.space.out_features)
        first.weight.data = torch.cat([network.space.weight, network.time.weight], 1).detach().clone()
        first.bias.data = network.space.bias.detach().clone()
        self.layers = nn.ModuleList([first, *(copy.deepcopy(layer) for layer in (*network.hidden, network.output))])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = 2 * math.pi * t[:, None] * self.frequencies
        h = torch.cat([x, torch.sin(angle), torch.cos(angle)], 1)
        for layer in self.layers[:-1]:
            h = functional.silu(layer(h))
        return self.layers[-1](h)


@torch.no_grad()
def textbook_sample(network: nn.Module, schedule: Schedule, n: int, steps: int, generator: torch.Generator) -> Tensor:
    """Algorithm 1 as it is printed, with the standard deviation of the true bridge."""
    times = time_grid(schedule, steps)
    x = torch.randn(n, 2, generator=generator)
    for k in range(steps, 0, -1):
        t, s = torch.full((n,), times[k]), torch.full((n,), times[k - 1])
        alpha_t, sigma_t, alpha_s, sigma_s = (column(f(u), x) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
        x_1 = network(x, t)
        x_0 = (x - sigma_t * x_1) / alpha_t
        eta = ddpm_std(schedule, times[k - 1], times[k])
        x = alpha_s * x_0 + torch.sqrt(sigma_s**2 - eta**2) * x_1
        if k > 1:
            x = x + eta * torch.randn(n, 2, generator=generator)
    return x


def textbook_tilt(
    student: nn.Module, data: Tensor, rewards: Tensor, schedule: Schedule, delta: float, E: int, B: int, lr: float = 1e-4
) -> None:
    """Lines 4 to 14 of Algorithm 2 as they are printed, with plain Adam."""
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.Adam(student.parameters(), lr=lr)
    for _ in range(E):
        index = torch.randperm(len(data))[:B]
        x_0, r = data[index], rewards[index]
        t = torch.rand(B).clamp_min(schedule.t_min)
        z = torch.randn_like(x_0)
        alpha_t, sigma_t = column(schedule.alpha(t), x_0), column(schedule.sigma(t), x_0)
        x_t = alpha_t * x_0 + sigma_t * z
        with torch.no_grad():
            score_old = -teacher(x_t, t) / sigma_t
        covariance = r[:, None] * (-z / sigma_t - score_old)
        target = -sigma_t * (score_old + delta * covariance)
        loss = (sigma_t**2 * (student(x_t, t) - target) ** 2).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _betas(schedule: Schedule, steps: int) -> Any:
    """What makes index k - 1 of a diffusers scheduler our time t_k."""
    squares = schedule.alpha(torch.tensor(time_grid(schedule, steps), dtype=torch.float64)) ** 2
    return (1 - squares[1:] / squares[:-1]).numpy()


def _scheduler(name: str, schedule: Schedule, steps: int) -> Any:
    warnings.filterwarnings("ignore", message="IProgress not found")
    import diffusers  # here, because it takes seconds

    options = {"set_alpha_to_one": True} if name == "DDIMScheduler" else {}
    return getattr(diffusers, name)(steps, trained_betas=_betas(schedule, steps), clip_sample=False, **options)


@torch.no_grad()
def diffusers_sample(
    network: nn.Module, schedule: Schedule, n: int, steps: int, generator: torch.Generator, name: str = "DDPMScheduler"
) -> Tensor:
    """The loop of a diffusers pipeline around a network that takes our times; the standard deviations are DDPM's."""
    scheduler, times = _scheduler(name, schedule, steps), torch.tensor(time_grid(schedule, steps)[1:])
    options = {"eta": 1.0} if name == "DDIMScheduler" else {}
    scheduler.set_timesteps(steps)
    x = torch.randn(n, 2, generator=generator)
    for k in scheduler.timesteps:
        x = scheduler.step(network(x, times[k].expand(n)), k, x, generator=generator, **options).prev_sample
    return x


def diffusers_tilt(
    student: nn.Module, data: Tensor, rewards: Tensor, schedule: Schedule, delta: float, E: int, B: int, lr: float = 1e-4
) -> None:
    """A plain training loop around `add_noise` with the regression of Algorithm 2, in the denoiser's units."""
    scheduler, times = _scheduler("DDPMScheduler", schedule, 1000), torch.tensor(time_grid(schedule, 1000)[1:])
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(data, rewards), batch_size=B, shuffle=True, drop_last=True
    )
    done = 0
    while done < E:
        for x_0, r in loader:
            k = torch.randint(0, 1000, (B,))
            z = torch.randn_like(x_0)
            x_t, t = scheduler.add_noise(x_0, z, k), times[k]
            with torch.no_grad():
                old = teacher(x_t, t)
            target = old - delta * r[:, None] * (old - z)
            loss = functional.mse_loss(student(x_t, t), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == E:
                break
