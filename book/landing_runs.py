"""Run what the landing page shows: Algorithm 2 on the paper's task with few tilts and with many, seed 0.

Part of ``make reference``, about five minutes. Writes ``book/landing.json``, which the page shows.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from itlib.experiments.checkpoints import profile, resumable_base
from itlib.experiments.files import write_atomically
from itlib.experiments.provenance import provenance
from itlib.experiments.records import compact
from itlib.figures import as_model
from itlib.gaussian_mixture import paper_mixture
from itlib.metrics import score_errors
from itlib.network import NoisePredictor
from itlib.rewards import ForwardOnly, parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.tilting import iterative_tilting, tilt_path

OUT = Path(__file__).with_name("landing.json")
#: Numbers of tilts, and how many of them pass between two pictures.
RUNS = {1: 1, 5: 1, 20: 1, 100: 5}
#: Samples drawn after a tilt, always from the same noise; and where the score is looked at: the noise level and the grid.
POINTS, LEVEL = 120, 0.25
XS, YS = [0.8 * i for i in range(-5, 6)], [0.8 * i for i in range(-3, 6)]


def hundredths(values: Tensor) -> list[int]:
    """One flat list of whole numbers: short as text."""
    return (100 * values.double()).round().int().flatten().tolist()


def look(denoiser: NoisePredictor, N: int, k: int) -> dict[str, object]:
    """What the page shows of the model after tilt k: samples (x, y, x, y, ...), scores on the grid, and its error."""
    schedule, path = Cosine(), tilt_path(paper_mixture(), parse_reward("paper"), 1.0, N)
    points = sample(denoiser, schedule, POINTS, generator=torch.Generator().manual_seed(1))
    grid, t = torch.cartesian_prod(torch.tensor(YS), torch.tensor(XS)).flip(-1), torch.tensor(LEVEL)
    with torch.no_grad():
        score = -denoiser(grid, t) / schedule.sigma(t)
    error = score_errors(denoiser, path(k), schedule).eps_rmse
    return {"k": k, "points": hundredths(points), "score": hundredths(score), "error": round(error, 4)}


def main() -> None:
    """Run all, one after the other."""
    torch.set_num_threads(1)
    work, schedule, base, reward = profile("full"), Cosine(), paper_mixture(), parse_reward("paper")
    network = [state.denoiser for state in resumable_base(base, schedule, work.training, n=work.n, seed=0)][-1]
    runs = []
    for N, every in RUNS.items():
        frames = [look(network, N, 0)]
        config = replace(work.tilting, N=N)
        for step in iterative_tilting(network, ForwardOnly(reward), schedule, config, seed=0):
            if step.k % every == 0:
                frames.append(look(step.model, N, step.k))
        runs.append({"N": N, "frames": frames})
    model = {
        "mixture": as_model(base),
        "reward": as_model(reward),
        "level": LEVEL,
        "xs": compact(XS),
        "ys": compact(YS),
        "runs": runs,
    }
    found = {"seed": 0, "provenance": provenance("itlib"), "model": model}
    write_atomically(OUT, (json.dumps(found, separators=(",", ":")) + "\n").encode())


if __name__ == "__main__":
    main()
