"""Make what the front pages show from committed runs: pictures, and the README's result table.

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
from itlib.experiments import base as base_training
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
    base, reward = paper_mixture(), parse_reward(landing.PROBLEM)
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
        right.set(
            xlim=limits[:2],
            ylim=limits[2:],
            aspect="equal",
            title=f"score at $t = {landing.LEVEL}$: exact (green), learned (orange)",
        )
        right.locator_params(nbins=5)
        alt = (
            "Left: samples of the network after 20 tilts, with the paths that some took from the base, over contours of the "
            "exact target, whose two modes are closer together and taller. Right: the score of the network and the "
            "exact score "
            "as arrows."
        )
        return figures.to_svg(fig, "landing", alt)


def landing_data() -> bytes:
    """What the landing page's picture shows when it moves, as a text file: for each N the run with the median error."""
    records = load_records(REFERENCE / "landing", landing.Parameters)
    runs, seeds = [], set()
    for N in sorted({r.parameters.N for r in records}):
        ranked = sorted((r for r in records if r.parameters.N == N), key=lambda r: float(r["eps_rmse"]))
        record = ranked[len(ranked) // 2]
        stem = f"N{N:03d}_seed{record.parameters.seed}"
        kept = safetensors.torch.load_file(REFERENCE / "landing" / f"{stem}.safetensors")
        columns = zip(record.curve["k"], kept["points"], kept["score"], record.curve["error"], strict=True)
        frames = [
            {"k": int(k), "points": points.flatten().tolist(), "score": score.flatten().tolist(), "error": round(error, 4)}
            for k, points, score, error in columns
        ]
        seeds.add((N, record.parameters.seed))
        runs.append({"N": N, "frames": frames})
    model = {
        "mixture": figures.as_model(paper_mixture()),
        "reward": figures.as_model(parse_reward(landing.PROBLEM)),
        "level": landing.LEVEL,
        "xs": compact(landing.XS),
        "ys": compact(landing.YS),
        "runs": runs,
    }
    return (json.dumps({"seeds": dict(sorted(seeds)), "model": model}, separators=(",", ":")) + "\n").encode()


def errors_picture() -> str:
    """Error of the tilted models against N, one point a seed, with the floor, and another algorithm from the same bases."""
    runs = pd.DataFrame([r.row() for r in load_records(REFERENCE / "paper", paper.Parameters)])
    bases = pd.DataFrame([r.row() for r in load_records(REFERENCE / "paper", base_training.Parameters)])
    changed = load_records(REFERENCE / "ablation", ablation.Parameters)
    ours = [float(r["eps_rmse"]) for r in changed if r.parameters.problem == "paper" and r.parameters.change == "no-skip"]
    floor = bases["eps_rmse_at_target"].median()
    with figures.house_style() as plt:
        fig, ax = plt.subplots(figsize=(4.2, 3.0))
        groups = [(str(n), group["eps_rmse"].to_numpy()) for n, group in runs.groupby("N")]
        for i, (_, values) in enumerate(groups):
            spread = np.linspace(-0.12, 0.12, len(values))
            ax.plot(i + spread, np.sort(values), "o", color=figures.COLORS["learned"], markersize=4, alpha=0.8)
            ax.plot(i, np.median(values), "_", color=figures.INK, markersize=24)
        ax.plot(np.full(len(ours), len(groups)), ours, "D", color=figures.COLORS["base"], markersize=4.5)
        ax.plot(len(groups), np.median(ours), "_", color=figures.INK, markersize=24)
        ax.axhline(floor, color=figures.COLORS["target"], linestyle="--", linewidth=1)
        ax.annotate("floor: error of the base", (-0.45, floor), (0, -11), textcoords="offset points", fontsize=9)
        ax.set_xticks(range(len(groups) + 1), [f"${n}$" for n, _ in groups] + ["recom-\nmended"])
        ax.set(xlabel="tilts $N$", ylabel=r"error of $\hat x_1$", ylim=(0, None), xlim=(-0.5, len(groups) + 0.5))
        alt = (
            "Error of the tilted models, one dot for each of ten seeds: about 0.14 at N = 20, rising to about 0.24 at "
            "N = 200; the "
            "recommended algorithm, from the same base networks, has about 0.09; the floor, the error of the base network "
            "itself, is about 0.07."
        )
        return figures.to_svg(fig, "errors", alt)


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
    """The result table of the README: Algorithm 2, as the paper has it."""
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
    base, target = paper_mixture(), paper_mixture().tilted(parse_reward("paper"))
    exact = target.sample(400_000, torch.Generator().manual_seed(0))
    shift = float((target.mean - base.mean).square().mean())
    lines.append(f"| exact | {-float(base.log_prob(exact).mean()):.2f} | {target.entropy():.2f} | {shift:.2f} | 0 | 0 |")
    seeds = rows["seed"].nunique()
    return "\n".join(lines) + f"\n\nMean ± standard deviation over {seeds} seeds, base training included.\n"


def between_marks(page: Path, text: str) -> str:
    """A page with the text where its marks are."""
    before, rest = page.read_text().split(MARKS[0])
    return before + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1]


def main() -> int:
    """Write all, or check them."""
    static, readme = ROOT / "book" / "_static", ROOT / "README.md"
    made = {static / "hero-readme.svg": readme_picture().encode(), static / "landing.svg": landing_picture().encode()}
    made |= {static / "preview.png": preview(), ROOT / "book" / "landing.json": landing_data()}
    made |= {readme: between_marks(readme, table()).encode(), static / "errors.svg": errors_picture().encode()}
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
