"""Write what the live page offers, ``book/live.json``, and the still picture in its place, ``book/_static/live.svg``.

The picture is of a run with the page's settings by the library. Part of ``make reference``, half a minute.
"""

import json
from pathlib import Path

import numpy as np
import torch

from itlib import figures
from itlib.beyond.preconditioning import adapter
from itlib.beyond.recommended import cosine
from itlib.experiments.problems import PROBLEMS
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.schedules import Cosine
from itlib.tilting import EqualSteps, Regression, TiltingConfig, run_tilts

BOOK = Path(__file__).parent
#: Rewards as the page reads them; the first is the paper's.
REWARDS = {
    "higher": "4y",
    "one mode": "1.5x + 3y",
    "step": "3 (y > 0)",
    "ring": "-(x^2 + y^2 - 9)^2 / 20",
    "waves": "2 cos(2x) + y",
}
SETTINGS = TiltingConfig(N=10, S=500, J=50, E=100, lr=1e-2)


def bases() -> dict[str, GaussianMixture]:
    """Bases by the names that they have on the page."""
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 2), 0.5 * torch.eye(2).unsqueeze(0))
    return {"two": PROBLEMS["paper"].base, "one": one, "eight": PROBLEMS["eight"].base, "nine": PROBLEMS["nine"].base}


def model() -> dict[str, object]:
    """What the script of the page is given."""
    return {"bases": {name: figures.as_model(base) for name, base in bases().items()}, "rewards": REWARDS}


def picture() -> str:
    """Samples before the first tilt, half way and after the last, over contours of the exact densities."""
    base, reward, schedule = PROBLEMS["paper"].base, PROBLEMS["paper"].reward, Cosine()
    data = base.sample(1000, torch.Generator().manual_seed(0)).float()
    student = adapter(ExactNoisePredictor(base, schedule), data, schedule)
    learner = Regression(student, schedule, SETTINGS, rate=cosine)
    run = run_tilts(learner, reward, EqualSteps(SETTINGS.N, 1.0), seed=0)
    shown = {step.k - 1: step.samples.numpy() for step in run if step.k - 1 in (0, 5, 9)}
    xs, ys = np.linspace(-5, 5, 120), np.linspace(-3, 5, 96)
    plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
    with figures.house_style() as plt:
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.1), sharey=True)
        for ax, (k, points) in zip(axes, shown.items(), strict=True):
            density = base.tilted(reward, k / SETTINGS.N).log_prob(plane).reshape(len(ys), len(xs)).numpy()
            figures.samples(ax, points, density=(xs, ys, density), title=f"after {k} tilts", limits=(-4.6, 4.6, -2.6, 4.6))
    alt = "Samples of the model after no tilt, five and nine, over contours of the exact densities: they fall behind."
    return figures.to_svg(fig, "live", alt)


def main() -> None:
    """Write both."""
    torch.set_num_threads(1)
    (BOOK / "live.json").write_text(json.dumps({"model": model()}, separators=(",", ":")) + "\n", "utf-8")
    (BOOK / "_static" / "live.svg").write_text(picture(), "utf-8")


if __name__ == "__main__":
    main()
