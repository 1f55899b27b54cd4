"""Algorithm 2 on one page, with torch and nothing else: ``python -m itlib.example``.

Two Gaussians at (-2, 0) and (2, 0) are learned by denoising and tilted by r(x, y) = 4 y, to (-2, 2) and (2, 2). Data become
noise along X_t = (1 - t) X_0 + t X_1, and a model predicts the noise X_1. :mod:`itlib.tilting` does the same for any
schedule, sampler and estimate of the covariance, with other defaults; with the same knobs the numbers agree, which a test
checks. The lines of the paper's Algorithm 2, to which the comments refer::

    1   delta = lambda / N
    2   N times:
    3       draw S samples of the model, and evaluate their rewards r
    4       keep a frozen copy of the model, the teacher
    5       E times:
    6           draw B of the samples x_0, times t and noises z
    8           x_t = alpha_t x_0 + sigma_t z
    9-11        target: the teacher's prediction, moved by delta r (teacher - z)
    13          one gradient step on |sigma_t (model - target)|^2
    15      the model is the new theta
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """Predicts X_1, (B, 2), from x_t, (B, 2), and t, (B,) or ()."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.layers(torch.cat([x, t.expand(len(x)).unsqueeze(-1)], -1))
        return output


@torch.no_grad()
def sample(model: nn.Module, n: int, steps: int, generator: torch.Generator) -> Tensor:
    """Algorithm 1 with the noise of DDPM, (n, 2)."""
    x = torch.randn(n, 2, generator=generator)
    times = [k / steps for k in range(steps)] + [0.999]  # alpha is zero at t = 1
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        eps = model(x, torch.tensor(t))
        eta = s * math.sqrt(1 - ((1 - t) * s / ((1 - s) * t)) ** 2)
        x = (1 - s) * (x - t * eps) / (1 - t) + math.sqrt(s**2 - eta**2) * eps
        if s > 0:
            x = x + eta * torch.randn(n, 2, generator=generator)
    return x


def tilt(
    model: nn.Module,
    reward: Callable[[Tensor], Tensor],
    delta: float,
    generator: torch.Generator,
    *,
    S: int = 1000,
    J: int = 100,
    B: int = 64,
    E: int = 100,
    lr: float = 5e-4,
) -> Tensor:
    """One tilt of size delta: lines 3 to 14 of Algorithm 2. Trains the model and returns its old samples, (S, 2)."""
    data = sample(model, S, J, generator)  # line 3
    r = reward(data).unsqueeze(-1)
    teacher = copy.deepcopy(model).requires_grad_(False)  # line 4
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(E):
        i = torch.randperm(S, generator=generator)[:B]  # line 6
        t, z = torch.rand(B, generator=generator), torch.randn(B, 2, generator=generator)
        alpha, sigma = (1 - t).unsqueeze(-1), t.unsqueeze(-1)
        x_t = alpha * data[i] + sigma * z  # line 8
        eps_old = teacher(x_t, t)  # line 10
        target = eps_old - delta * r[i] * (eps_old - z)  # lines 9 and 11
        loss = (sigma * (model(x_t, t) - target)).square().sum(-1).mean()  # line 13
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data


def train(model: nn.Module, generator: torch.Generator, steps: int = 3000) -> None:
    """Learn the two Gaussians of variance 1/2 by (2.10)."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        side = torch.randint(2, (256, 1), generator=generator)
        x_0 = torch.randn(256, 2, generator=generator) * math.sqrt(0.5) + torch.cat([4.0 * side - 2, 0.0 * side], 1)
        t, z = torch.rand(256, generator=generator), torch.randn(256, 2, generator=generator)
        x_t = (1 - t).unsqueeze(-1) * x_0 + t.unsqueeze(-1) * z
        loss = (model(x_t, t) - z).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main(N: int = 20) -> None:
    """Train, tilt N times, and print the mean of the samples."""
    torch.manual_seed(0)
    model, generator = Model(), torch.Generator().manual_seed(0)
    train(model, generator)
    for k in range(1, N + 1):  # line 2
        data = tilt(model, lambda x: 4 * x[:, 1], 1 / N, generator)
        print(f"before tilt {k}: mean y {float(data[:, 1].mean()):.2f}")
    print(f"at the end: mean y {float(sample(model, 1000, 100, generator)[:, 1].mean()):.2f}; the exact tilt has 2")


if __name__ == "__main__":
    main()
