r"""Small images that ship with a library, a model of them, rewards that have no gradient, and judges that are no reward.

The data are scikit-learn's 1797 handwritten digits, 8 by 8 pixels of 17 grey levels. A density needs numbers that are not
all whole, so that each level g becomes the interval it stands for, :math:`x=2(g+u)/17-1` with u uniform in [0, 1]; a sample
of shape (64,) is an image read row by row. The model is a residual perceptron that corrects the Gaussian with the mean and
covariance of the data in whitened coordinates (:mod:`itlib.beyond.preconditioning`).

Three rewards, each as the method sees it, by its values alone:

- *class*: :math:`r=\log\frac{\mathrm{votes}+1}{\mathrm{trees}+10}`, the smoothed log-probability of one digit under a random
  forest. It is constant between the thresholds of the trees: a gradient exists almost everywhere and is zero.
- *symmetry*: minus the mean squared difference between an image and its mirror image. Smooth.
- *hole*: 1 if the ink encloses a piece of paper, else 0. A jump.

The forest learns from one half of the digits. What judges a result, a support vector machine, learns from the other half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from itlib.beyond.preconditioning import Gaussian, Whitened
from itlib.network import FourierFeatures, Network, Residual
from itlib.rewards import Reward, evaluate
from itlib.schedules import Schedule
from itlib.tilting import derive_seed
from itlib.training import TrainingConfig

SIDE, D = 8, 64
#: The class that the reward of that name asks for.
DIGIT = 3
#: How the committed base was trained.
TRAINING = TrainingConfig(epochs=300, batch_size=128, lr=2e-3, patience=100)


@dataclass(frozen=True)
class Digits:
    """Images, (1797, 64) in [-1, 1], their labels, (1797,), and which of them the reward learns from, (1797,) of bool."""

    x: Tensor
    labels: Tensor
    for_reward: Tensor


@cache
def digits() -> Digits:
    """The digits of scikit-learn, with the width of a grey level put back; always the same.

    Raises:
        ModuleNotFoundError: without scikit-learn.
    """
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(derive_seed(0, "digits"))
    x = torch.from_numpy(levels) + torch.rand(levels.shape, generator=generator, dtype=torch.float64)
    half = torch.zeros(len(x), dtype=torch.bool)
    half[torch.randperm(len(x), generator=generator)[: len(x) // 2]] = True
    return Digits((2 * x / 17 - 1).float(), torch.from_numpy(labels), half)


class _Block(nn.Module):
    """h + W_2 silu(W_1 norm(h) + W_t phi(t)), with W_2 zero at first."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm, self.time = nn.LayerNorm(width), nn.Linear(embedding, width, bias=False)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor, phi: Tensor) -> Tensor:
        result: Tensor = h + self.second(functional.silu(self.first(self.norm(h)) + self.time(phi)))
        return result


class ResidualPerceptron(nn.Module):
    """Blocks that add to a state of fixed width, so that many small steps make one large one.

    Args:
        d: dimension of the data.
        width: of the state.
        blocks: number of them.
        embedding: dimension of the time embedding.
        seed: fixes the initial weights; the global random state is left alone.
    """

    def __init__(self, d: int = D, width: int = 192, blocks: int = 3, embedding: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.features, self.space = FourierFeatures(embedding), nn.Linear(d, width)
            self.blocks = nn.ModuleList(_Block(width, embedding) for _ in range(blocks))
            self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, d)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """From inputs x, (B, d), and times t, (B,) or (), to (B, d)."""
        phi, h = self.features(t.to(x)), self.space(x)
        for block in self.blocks:
            h = block(h, phi)
        result: Tensor = self.output(functional.silu(self.norm(h)))
        return result


def new_denoiser(schedule: Schedule, seed: int = 0) -> Residual:
    """An untrained denoiser of the digits, with 286,000 weights."""
    gaussian = Gaussian(digits().x, schedule)
    network = cast(Network, ResidualPerceptron(seed=seed))  # of which Whitened needs the call and the last layer
    return Residual(gaussian, Whitened(network, gaussian, tilt=False))


def trained_denoiser(path: Path, schedule: Schedule) -> Residual:
    """The denoiser whose weights a file holds.

    Raises:
        FileNotFoundError: if there is no such file, with the command that makes it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python -m itlib.reproduce --grid digits_base --out {path.parent}")
    denoiser = new_denoiser(schedule)
    denoiser.load_state_dict(safetensors.torch.load_file(path))
    return denoiser


# ---- rewards --------------------------------------------------------------------------------------------------------


@cache
def forest(seed: int = 0) -> Any:
    """A random forest of 100 trees on the half of the digits that is the reward's."""
    from sklearn.ensemble import RandomForestClassifier

    data = digits()
    return RandomForestClassifier(100, random_state=seed).fit(data.x[data.for_reward].numpy(), data.labels[data.for_reward])


def votes(x: Tensor) -> Tensor:
    """How many trees of the forest vote for each digit, (S, 10), of images x, (S, 64)."""
    images = np.ascontiguousarray(x.detach().cpu().numpy(), dtype=np.float32)
    chosen = np.stack([tree.predict(images, check_input=False) for tree in forest().estimators_])
    return functional.one_hot(torch.from_numpy(chosen).long(), 10).sum(0)


def class_reward(x: Tensor) -> Tensor:
    """log((votes + 1) / (trees + 10)) for :data:`DIGIT`, (S,): between -4.7 and -0.1, never minus infinity."""
    return torch.log((votes(x)[:, DIGIT] + 1.0) / (len(forest().estimators_) + 10.0)).to(x)


def symmetry_reward(x: Tensor) -> Tensor:
    """Minus the mean squared difference between images, (S, 64), and their mirror images, (S,). It has a gradient."""
    images = x.reshape(-1, SIDE, SIDE)
    return -(images - images.flip(-1)).square().mean((1, 2))


def hole_reward(x: Tensor) -> Tensor:
    """1.0 for images, (S, 64), whose dark pixels (above 0) enclose paper, else 0.0, (S,). Paper joins by its sides only."""
    from scipy.ndimage import label

    paper = np.pad(x.detach().cpu().numpy().reshape(-1, SIDE, SIDE) <= 0, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    return torch.tensor([float(label(image)[1] > 1) for image in paper]).to(x)


@dataclass(frozen=True)
class ImageProblem:
    """A reward and the strength of its tilt.

    Args:
        reward: (S, 64) to (S,).
        lam: chosen by one rule from the sweep, see :func:`strongest`.
        sweep: the strengths that were tried.
        smooth: whether the reward has a gradient that is worth something.
        d: dimension of the samples.
    """

    reward: Reward
    lam: float
    sweep: tuple[float, ...]
    smooth: bool = False
    d: int = D


#: The strengths follow from the committed sweep by :func:`strongest`, which a test holds.
IMAGE_PROBLEMS: Mapping[str, ImageProblem] = {
    "class": ImageProblem(class_reward, 2.0, (0.25, 0.5, 1.0, 2.0, 4.0)),
    "symmetry": ImageProblem(symmetry_reward, 16.0, (2.0, 4.0, 8.0, 16.0, 32.0), smooth=True),
    "hole": ImageProblem(hole_reward, 4.0, (0.5, 1.0, 2.0, 4.0)),
}


def strongest(lams: list[float], shares: list[float], least: float = 1 / 12) -> float:
    """The largest strength at which weights of base samples keep so large a share effective: there is a truth to hold.

    Raises:
        ValueError: if there is none.
    """
    kept = [lam for lam, share in zip(lams, shares, strict=True) if share >= least]
    if not kept:
        raise ValueError(f"no strength keeps a share of {least:g} of the samples effective: try smaller ones")
    return max(kept)


def surrogate(reward: Reward, x: Tensor, *, steps: int = 1500, seed: int = 0) -> nn.Module:
    """A differentiable stand-in for a reward, fitted to its values at some samples.

    Args:
        reward: (S, d) to (S,).
        x: where it is evaluated, once, (S, d).
        steps: of Adam, each on 256 of the samples.
        seed: fixes weights and batches.

    Returns:
        A network from (B, d) to (B,).
    """
    r = evaluate(reward, x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "surrogate"))
        network = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1), nn.Flatten(0)
        )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(derive_seed(seed, "surrogate batches"))
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=generator)
        loss = functional.mse_loss(network(x[rows]), r[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        decay.step()
    return network.requires_grad_(False)


# ---- judges ---------------------------------------------------------------------------------------------------------


@cache
def judge() -> Any:
    """A support vector machine on the half of the digits that the reward has not seen."""
    from sklearn.svm import SVC

    data = digits()
    return SVC(C=10).fit(data.x[~data.for_reward].numpy(), data.labels[~data.for_reward])


def judged(x: Tensor) -> Tensor:
    """What the judge takes images, (S, 64), for: labels, (S,)."""
    return torch.from_numpy(judge().predict(x.cpu().numpy()))


def _nearest(x: Tensor, data: Tensor) -> Tensor:
    """Distance to the nearest of the data, (S,)."""
    return torch.cat([torch.cdist(piece, data).min(1).values for piece in x.split(500)])


@cache
def _twins() -> Tensor:
    """Distance of each digit to the nearest other one, (1797,)."""
    x = digits().x
    return torch.cdist(x, x).fill_diagonal_(torch.inf).min(1).values


def image_card(x: Tensor) -> dict[str, float]:
    """What can be said of images, (S, 64), without the reward or with its forest as a suspect.

    Returns:
        ``judge_0`` to ``judge_9``, shares of the judge's labels; ``agree``, how often the forest gives the same label (a
        reward that is hacked parts the two); ``nearest``, mean distance to the nearest digit; ``copies``, the share nearer
        to one than 99 of 100 digits are to each other (memorising); ``strange``, the share farther than 99 of 100 are;
        ``spread``, mean distance of two samples; ``spread_class``, of two that the judge takes for :data:`DIGIT`; and
        ``outside``, the share of pixels beyond what data can show.
    """
    x = x.cpu()
    labels, near, twins = judged(x), _nearest(x, digits().x), _twins()
    card = {f"judge_{c}": float((labels == c).float().mean()) for c in range(10)}
    same = x[labels == DIGIT]
    return card | {
        "agree": float((votes(x).argmax(1) == labels).float().mean()),
        "nearest": float(near.mean()),
        "copies": float((near < twins.quantile(0.01)).float().mean()),
        "strange": float((near > twins.quantile(0.99)).float().mean()),
        "spread": float(torch.pdist(x[:1000]).mean()),
        "spread_class": float(torch.pdist(same[:1000]).mean()) if len(same) > 1 else float("nan"),
        "outside": float((x.abs() > 1.1).float().mean()),
    }


def tilt_identity(log_ratio: Tensor, tilt: Tensor) -> dict[str, float]:
    r"""How far :math:`\log p_\theta-\log p_{\mathrm{base}}-\lambda r` is from a constant.

    Args:
        log_ratio: the first difference at some points, (M,), in nats.
        tilt: lambda r there, (M,).

    Returns:
        ``slope`` of the ratio on lambda r, 1 for the exact tilt and 0 for the base; ``residual``, the standard deviation of
        what should be constant; ``untilted``, that of lambda r, which the base itself would leave.
    """
    ratio, tilt = log_ratio.double(), tilt.double()
    centred = tilt - tilt.mean()
    return {
        "slope": float((centred * ratio).sum() / centred.square().sum()),
        "residual": float((ratio - tilt).std()),
        "untilted": float(tilt.std()),
    }
