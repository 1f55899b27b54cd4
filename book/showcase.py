"""Make what the front pages show from committed runs: their pictures, and their result table.

Run by `make reference`; `--check` only says whether all is up to date.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
import torch

from itlib import figures
from itlib.experiments import ablation, landing, paper
from itlib.experiments.records import compact, load_records
from itlib.gaussian_mixture import paper_mixture
from itlib.rewards import parse_reward
from itlib.schedules import Cosine

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "book" / "reference"
MARKS = "<!-- results: written by book/showcase.py -->\n", "<!-- end of results -->\n"


def draw(axes: Any) -> None:
    """Base, half way, all tilts, target, each on its own axes. The samples of the model are those of one reference run."""
    base, reward = paper_mixture(), parse_reward("paper")
    kept = safetensors.torch.load_file(REFERENCE / "hero.safetensors")
    exact = [m.sample(1000, torch.Generator().manual_seed(0)).numpy() for m in (base, base.tilted(reward))]
    panels = [
        (exact[0], 0.0, "base", "$p_0^b$"),
        (kept["half"].numpy(), 0.5, "learned", "after $N/2$ tilts"),
        (kept["final"].numpy(), 1.0, "learned", "after $N$ tilts"),
        (exact[1], 1.0, "target", r"exact $p_0^{\lambda r}$"),
    ]
    xs, ys = np.linspace(-5, 5, 120), np.linspace(-3, 5, 96)
    plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
    for ax, (points, share, color, title) in zip(axes, panels, strict=True):
        density = base.tilted(reward, share).log_prob(plane).reshape(len(ys), len(xs)).numpy()
        figures.samples(
            ax,
            points,
            density=(xs, ys, density),
            color=figures.COLORS[color],
            title=title,
            limits=(-4.6, 4.6, -2.6, 4.6),
        )
        ax.set_axis_off()


def readme_picture() -> str:
    """Base, half way, all tilts, target. Its samples are those of one reference run."""
    with figures.house_style() as plt:
        fig, axes = plt.subplots(1, 4, figsize=(9.6, 2.35), sharey=True)
        draw(axes)
        alt = (
            "Four panels: samples of the two-mode base density, of the model after half of the tilts, of the model after "
            "all tilts, and of the exact tilted density, which lies above the base."
        )
        source = figures.to_svg(fig, "hero", alt)
    # A README shows the picture as an image of its own, which cannot see the page's text colour: grey reads on both.
    return source.replace("currentColor", "#808080")


def landing_picture() -> str:
    """What the landing page shows while its picture cannot be moved: all of 20 tilts, as the explorer opens."""
    base, reward = paper_mixture(), parse_reward("paper")
    model = json.loads(landing_data())["model"]
    frames = next(run["frames"] for run in model["runs"] if run["N"] == 20)
    paths = np.array([frame["points"] for frame in frames]).reshape(len(frames), -1, 2) / 100
    grid = np.stack(np.meshgrid(model["xs"], model["ys"]), -1).reshape(-1, 2)
    target = base.tilted(reward)
    exact = target.score(torch.from_numpy(grid), torch.tensor(model["level"]), Cosine()).numpy()
    xs, ys = np.linspace(-5, 5, 120), np.linspace(-3, 5, 96)
    plane = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2))
    before, after = (m.log_prob(plane).reshape(len(ys), len(xs)).numpy() for m in (base, target))
    limits = (-4.6, 4.6, -2.6, 4.4)
    with figures.house_style() as plt:
        fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.4))
        left.contour(xs, ys, before - before.max(), levels=[np.log(0.1)], colors=figures.COLORS["base"], linestyles="dashed")
        for i in range(0, paths.shape[1], 8):
            way = paths[:, i].copy()
            way[1:][np.abs(np.diff(way[:, 0])) > 1] = np.nan  # where a sample changed sides
            left.plot(*way.T, color=figures.COLORS["learned"], alpha=0.4, linewidth=0.8)
        figures.samples(left, paths[-1], density=(xs, ys, after), title="samples after 20 tilts", limits=limits)
        for scores, color, width in (
            (exact, "target", 0.006),
            (np.array(frames[-1]["score"]).reshape(-1, 2) / 100, "learned", 0.0035),
        ):
            right.quiver(
                *grid.T, *scores.T, color=figures.COLORS[color], angles="xy", scale_units="xy", scale=1 / 0.15, width=width
            )
        right.set(xlim=limits[:2], ylim=limits[2:], aspect="equal", title="score: exact (green), learned (orange)")
        right.locator_params(nbins=5)
        alt = (
            "Left: samples of the network after 20 tilts, with the paths that some took from the base, over contours of the "
            "exact target, which lies above the base. Right: the score of the network and the exact score as arrows."
        )
        return figures.to_svg(fig, "landing", alt)


def landing_data() -> bytes:
    """What the landing page's picture shows when it moves, as a text file: the frames of the committed runs."""
    runs = []
    for record in sorted(load_records(REFERENCE / "landing", landing.Parameters), key=lambda r: r.parameters.N):
        kept = safetensors.torch.load_file(REFERENCE / "landing" / f"N{record.parameters.N:03d}_seed0.safetensors")
        columns = zip(record.curve["k"], kept["points"], kept["score"], record.curve["error"], strict=True)
        frames = [
            {"k": int(k), "points": points.flatten().tolist(), "score": score.flatten().tolist(), "error": round(error, 4)}
            for k, points, score, error in columns
        ]
        runs.append({"N": record.parameters.N, "frames": frames})
    model = {
        "mixture": figures.as_model(paper_mixture()),
        "reward": figures.as_model(parse_reward("paper")),
        "level": landing.LEVEL,
        "xs": compact(landing.XS),
        "ys": compact(landing.YS),
        "runs": runs,
    }
    return (json.dumps({"seed": 0, "model": model}, separators=(",", ":")) + "\n").encode()


def preview() -> bytes:
    """What other sites show of a link to ours, 1200 by 630 pixels."""
    with figures.house_style() as plt:
        fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white", layout="none")
        fig.text(0.06, 0.80, "Iterative Tilting, reproduced", fontsize=46)
        fig.text(0.06, 0.70, "A density is moved toward a reward in small steps that use its values only.", fontsize=22)
        draw(
            fig.subplots(
                1, 4, sharey=True, gridspec_kw={"left": 0.04, "right": 0.96, "bottom": 0.06, "top": 0.56, "wspace": 0.05}
            )
        )
        for ax in fig.axes:
            ax.title.set_fontsize(22)
        out = io.BytesIO()
        fig.savefig(out, format="png", dpi=100, facecolor="white", metadata={"Software": None})
        plt.close(fig)
    return out.getvalue()


def table() -> str:
    """The result table of README and landing page."""
    rows = pd.DataFrame([r.row() for r in load_records(REFERENCE / "paper", paper.Parameters)])
    lines = [
        "| $N$ | NLL vs base (paper's) | NLL vs target | MSE of mean vs base (paper's) | vs target | error of $\\hat x_1$ |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for n, group in rows.groupby("N"):
        theirs = paper.TABLE_1[n]

        def spread(key: str, digits: int, group: pd.DataFrame = group) -> str:
            return f"{group[key].mean():.{digits}f} ± {group[key].std():.{digits}f}"

        lines.append(
            f"| {n} | {spread('nll_base', 2)} ({theirs.nll:.2f}) | {spread('nll_target', 2)} | {spread('mean_mse_base', 2)} "
            f"({theirs.mse:.2f}) | "
            f"{spread('mean_mse_target', 2)} | {spread('eps_rmse', 3)} |"
        )
    records = load_records(REFERENCE / "ablation", ablation.Parameters)
    for name in ("main_N020", "main_chosen"):
        chosen = [r for r in records if (r.parameters.problem, ablation.cell_of(r.parameters)) == ("paper", name)]
        ours = pd.DataFrame([r.metrics for r in chosen])
        least, most = int(ours["tilts"].min()), int(ours["tilts"].max())
        label = f"{least}, recommended" if least == most else f"{least} to {most}, recommended"
        mean, std = (getattr(ours.select_dtypes("number"), how)() for how in ("mean", "std"))
        columns = (("nll_base", 2), ("nll_target", 2), ("mean_mse_base", 2), ("mean_mse_target", 2), ("eps_rmse", 3))
        values = (f"{mean[key]:.{digits}f} ± {std[key]:.{digits}f}" for key, digits in columns)
        lines.append(f"| {label} | " + " | ".join(values) + " |")
    base, target = paper_mixture(), paper_mixture().tilted(parse_reward("paper"))
    exact = target.sample(400_000, torch.Generator().manual_seed(0))
    shift = float((target.mean - base.mean).square().mean())
    lines.append(f"| exact | {-float(base.log_prob(exact).mean()):.2f} | {target.entropy():.2f} | {shift:.2f} | 0 | 0 |")
    seeds = rows["seed"].nunique()
    return "\n".join(lines) + (
        f"\n\nMean ± standard deviation over {seeds} seeds ({len(ours)} for *recommended*), base training included.\n"
    )


def between_marks(page: Path, text: str) -> str:
    """A page with the text where its marks are."""
    before, rest = page.read_text().split(MARKS[0])
    return before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> int:
    """Write all, or check them."""
    static, pages = ROOT / "book" / "_static", (ROOT / "README.md", ROOT / "book" / "index.md")
    made = {static / "hero-readme.svg": readme_picture().encode(), static / "landing.svg": landing_picture().encode()}
    made |= {static / "preview.png": preview(), ROOT / "book" / "landing.json": landing_data()}
    made |= {page: between_marks(page, table()).encode() for page in pages}
    stale = [path for path, content in made.items() if not path.exists() or path.read_bytes() != content]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_bytes(made[path])
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} does not show the committed runs: python book/showcase.py")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
