"""The mathematics of the explorers, as a browser computes it, against itlib."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import complaints, violations, visit
from explorers import SCRIPTS, bundle, imported, plain
from scipy.stats import kstest, norm
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from torch import Tensor

from itlib import figures
from itlib.beyond.estimators import centred, local_baseline, rao_blackwell
from itlib.experiments.records import read_record
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, NotNormalisableError, paper_mixture
from itlib.rewards import QuadraticReward, parse_reward
from itlib.sampling import reverse_process, time_grid, transition
from itlib.schedules import Cosine, Linear, Schedule
from itlib.tilting import TiltBatch, single_sample

ROOT = Path(__file__).parents[2]

SCHEDULES: dict[str, Schedule] = {"cosine": Cosine(), "linear": Linear()}
#: Modules that compute, in the order in which they need one another.
COMPUTING = ("maths",)
#: Both sides compute in double precision, in formulas of a few steps; the differences seen are below 1e-12.
TIGHT = {"rtol": 1e-9, "atol": 1e-10}


def run(browser: Any, body: str, *arguments: Any) -> Any:
    """What a piece of script returns that sees the page's functions, and the arguments as a, b, c, ..."""
    modules = "".join(plain((SCRIPTS / f"{name}.js").read_text("utf-8")) for name in COMPUTING)
    names = ", ".join("abcdefg"[: len(arguments)])
    return browser.execute_script(f'"use strict"; {modules}\nconst [{names}] = arguments; {body}', *arguments)


def mount(browser: Any, folder: Path, name: str, model: Any, **how: Any) -> None:
    """Open a page that holds one explorer and nothing else."""
    style = (SCRIPTS / "explorers.css").read_text("utf-8")
    place = figures.explorer_html(name, model, "none")
    page = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{name}</title><style>{style}</style></head>"
    (folder / "page.html").write_text(
        f"{page}<body><main><h1>{name}</h1>{place}</main><script>{bundle([name])}</script>", "utf-8"
    )
    visit(browser, folder, "page", **how)


def said(browser: Any) -> str:
    return str(browser.execute_script("return document.querySelector('.explorer .says').textContent"))


def numbers(text: str) -> list[float]:
    return [float(v.replace("\u2212", "-").replace(",", "")) for v in re.findall(r"\u2212?\d[\d,]*(?:\.\d+)?", text)]


def draw(seed: int) -> tuple[GaussianMixture, QuadraticReward, Tensor, Tensor]:
    """A mixture of three components without symmetry, a reward, and ten points with times."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    root = uniform(3, 2, 2) - 0.5
    mixture = GaussianMixture(uniform(3) + 0.1, 4 * uniform(3, 2) - 2, root @ root.mT + 0.1 * torch.eye(2))
    A = uniform(2, 2) - 0.5
    reward = QuadraticReward(4 * uniform(2) - 2, 0.5 * (A + A.mT), c=float(uniform(1)))
    return mixture, reward, 6 * uniform(10, 2) - 3, 0.05 + 0.9 * uniform(10)


def same(one: Any, two: Any) -> None:
    np.testing.assert_allclose(np.asarray(one, dtype=float), np.asarray(two, dtype=float), **TIGHT)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_and_steps(browser: Any, name: str) -> None:
    t = torch.linspace(0, 1, 23, dtype=torch.float64)
    found = run(browser, "return b.map(t => [schedules[a].alpha(t), schedules[a].sigma(t)]);", name, t.tolist())
    same(found, torch.stack([SCHEDULES[name].alpha(t), SCHEDULES[name].sigma(t)], 1))
    for steps in (1, 7, 2000):
        same(run(browser, "return timeGrid(a);", steps), time_grid(SCHEDULES[name], steps))
    for s, t_, eta in ((0.0, 0.3, 1.0), (0.2, 0.25, 0.0), (0.5, 0.999, 0.6)):
        found = run(browser, "return transition(schedules[a], b, c, d);", name, s, t_, eta)
        same(found, transition(SCHEDULES[name], s, t_, eta))


@pytest.mark.parametrize("seed", range(3))
def test_densities_scores_and_posteriors(browser: Any, seed: int) -> None:
    mixture, reward, x, t = draw(seed)
    script = """
      return b.map((x, i) => {
        const alpha = schedules.cosine.alpha(c[i]), sigma = schedules.cosine.sigma(c[i]);
        const p = prepare(noised(a, alpha, sigma)), after = posterior(a, alpha, sigma, x);
        return [logDensity(p, x), ...score(p, x), ...meanOf(after), expectedReward(after, d),
          ...covarianceStep(after, alpha, sigma, d), ...after.flatMap(g => [g.weight, ...g.mean, ...g.cov])];
      });
    """
    found = run(browser, script, figures.as_model(mixture), x.tolist(), t.tolist(), figures.as_model(reward))
    schedule, posterior = Cosine(), mixture.posterior(x, t, Cosine())
    weights, parts = posterior.mixture_distribution.probs, posterior.component_distribution
    covariances = parts.covariance_matrix.flatten(2)[..., [0, 1, 3]]
    log_p = torch.stack([mixture.noised(schedule, float(s)).log_prob(y[None])[0] for y, s in zip(x, t, strict=True)])
    expected = [
        log_p[:, None],
        mixture.score(x, t, schedule),
        posterior.mean,
        mixture.posterior_reward(x, t, schedule, reward)[:, None],
        schedule.sigma(t)[:, None] * mixture.covariance(x, t, schedule, reward),
        torch.cat([weights[..., None], parts.loc, covariances], -1).flatten(1),
    ]
    same(found, torch.cat(expected, 1))


def test_tilts_and_refusals(browser: Any) -> None:
    outcomes = set()
    for seed in range(12):
        mixture, reward, *_ = draw(seed)
        reward = QuadraticReward(reward.b, 6 * reward.A, c=reward.c)
        model = figures.as_model(mixture), figures.as_model(reward)
        found = run(browser, "return {...tilted(a, b, c), bound: largestTilt(a, b)};", *model, 0.8)
        try:
            target = mixture.tilted(reward, 0.8)
        except NotNormalisableError:
            assert found["mixture"] is None
            assert found["smallest"] <= 1e-12
            assert found["bound"] <= 0.8
        else:
            parts = [[g["weight"], *g["mean"], *g["cov"]] for g in found["mixture"]]
            covariances = target.covariances.flatten(1)[:, [0, 1, 3]]
            same(parts, torch.cat([target.weights[:, None], target.means, covariances], 1))
            same([found["logZ"], found["kl"]], [mixture.log_normaliser(reward, 0.8), mixture.tilt_kl(reward, 0.8)])
        outcomes.add(found["mixture"] is None)
        if found["bound"] is not None and np.isfinite(found["bound"]):
            mixture.tilted(reward, 0.999 * found["bound"])
            with pytest.raises(NotNormalisableError):
                mixture.tilted(reward, 1.001 * found["bound"])
    assert outcomes == {True, False}


def test_algorithm_1(browser: Any) -> None:
    mixture, _, x, _ = draw(0)
    for steps in (1, 12):
        script = "return ddim(a, schedules.cosine, b, c, 0, null);"
        found = run(browser, script, figures.as_model(mixture), x.tolist(), steps)
        *_, (_, last) = reverse_process(ExactNoisePredictor(mixture, Cosine()), Cosine(), x, steps=steps, eta=0.0)
        same(found, last)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_variance_of_the_chain(browser: Any, eta: float) -> None:
    """One Gaussian coordinate: each step is linear, so two states give its slope."""
    v, variance, schedule = 0.7, 1.0, Cosine()
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 1), torch.full((1, 1, 1), v, dtype=torch.float64))
    exact = ExactNoisePredictor(one, schedule)
    times, ends = time_grid(schedule, 9), torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, s in zip(times[:0:-1], times[-2::-1], strict=True):
        a, b, std = transition(schedule, s, t, eta)
        low, high = a * ends + b * exact(ends, torch.tensor(t, dtype=torch.float64))
        variance = float(high - low) ** 2 * variance + std**2
    same(run(browser, "return chainVariance(schedules.cosine, a, 9, b);", v, eta), variance)


@pytest.mark.parametrize("seed", range(2))
def test_estimators(browser: Any, seed: int) -> None:
    mixture, reward, x, t = draw(seed)
    schedule, c = Cosine(), 0.3
    script = """
      return b.map((x, i) => {
        const alpha = schedules.cosine.alpha(c[i]), sigma = schedules.cosine.sigma(c[i]);
        const after = posterior(a, alpha, sigma, x);
        return [...drawVariances(after, alpha, sigma, d, [0, e, expectedReward(after, d)]),
          ...raoBlackwell(f, f.map(s => reward(d, s)), alpha, sigma, x)];
      });
    """
    data = mixture.sample(50, torch.Generator().manual_seed(seed))
    models = figures.as_model(mixture), x.tolist(), t.tolist(), figures.as_model(reward), c, data.tolist()
    found = np.array(run(browser, script, *models))

    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(9))  # more than the page's four
    nodes, weights = torch.cartesian_prod(nodes, nodes), torch.outer(weights, weights).flatten() / (2 * np.pi)
    posterior = mixture.posterior(x, t, schedule)
    parts = posterior.component_distribution
    x_0 = (parts.loc.unsqueeze(2) + torch.einsum("bkde,qe->bkqd", parts.scale_tril, nodes)).flatten(1, 2)
    w = (posterior.mixture_distribution.probs.unsqueeze(-1) * weights).flatten(1)
    every = [v.repeat_interleave(w.shape[1], 0) for v in (x, ExactNoisePredictor(mixture, schedule)(x, t), t)]
    x_0, z = x_0.flatten(0, 1), torch.empty(0)
    alpha, sigma = (f(every[2])[:, None] for f in (schedule.alpha, schedule.sigma))
    z = (every[0] - alpha * x_0) / sigma
    batch = TiltBatch(1, x_0, reward(x_0), every[2], z, every[0], every[1])
    baseline = local_baseline(lambda x, t: mixture.posterior_reward(x, t, schedule, reward))
    for column, estimator in enumerate((single_sample, centred(c), baseline)):
        values = estimator(batch).reshape(len(x), -1, 2)
        mean = torch.einsum("bm,bmd->bd", w, values)
        same(found[:, column], torch.einsum("bm,bmd->b", w, (values - mean.unsqueeze(1)) ** 2))
    none = torch.zeros(len(x), dtype=torch.float64)
    whole = TiltBatch(1, x, none, t, x, x, x, reward(data), data)
    same(found[:, 3:], rao_blackwell(schedule)(whole))


def test_random_numbers_follow_the_mixture(browser: Any) -> None:
    """Kolmogorov and Smirnov's test of three projections; a false alarm for one seed in a thousand, of which one is used."""
    mixture, *_ = draw(1)
    found = np.array(run(browser, "return sample(a, 5000, random(0));", figures.as_model(mixture)))
    p_values = []
    for direction in ((1.0, 0.0), (0.0, 1.0), (0.6, -0.8)):
        u = torch.tensor(direction, dtype=torch.float64)
        centre = (mixture.means @ u).numpy()
        width = torch.einsum("d,kde,e->k", u, mixture.covariances, u).sqrt().numpy()
        weights = mixture.weights.numpy()

        def cdf(x: Any, centre: Any = centre, width: Any = width, weights: Any = weights) -> Any:
            return norm.cdf((np.asarray(x)[:, None] - centre) / width) @ weights

        p_values.append(kstest(found @ u.numpy(), cdf, method="asymp").pvalue)
    assert min(p_values) > 1e-3 / 3


# What is on the page


def test_the_step_at_one_point(browser: Any, tmp_path: Path) -> None:
    """What is said is what itlib computes, wherever the point is moved with the keyboard or the mouse."""
    mixture, reward = paper_mixture(), parse_reward("one-mode")
    schedule, delta, t = Cosine(), 0.25, torch.tensor(0.5, dtype=torch.float64)
    named = {"one-mode": figures.as_model(reward), "paper": figures.as_model(parse_reward("paper"))}
    model = {"mixture": figures.as_model(mixture), "rewards": named, "first": "one-mode", "at": [0.3, 0.4], "time": 0.5}
    mount(browser, tmp_path, "covariance", model | {"delta": delta})
    knob = browser.find_element(By.CSS_SELECTOR, ".handle")
    for press in ("", Keys.ARROW_LEFT, Keys.SHIFT + Keys.ARROW_UP, "drag"):
        if press == "drag":
            ActionChains(browser).click_and_hold(knob).move_by_offset(30, 20).release().perform()
        elif press:
            knob.send_keys(press)
        at = numbers(knob.get_attribute("aria-valuetext"))
        x = torch.tensor([at], dtype=torch.float64)
        base, covariance = mixture.score(x, t, schedule), mixture.covariance(x, t, schedule, reward)
        exact = mixture.tilted(reward, delta).score(x, t, schedule)
        step = base + delta * covariance
        missed = float(100 * (step - exact).norm() / (exact - base).norm())
        *found, percent, draws, u, v = numbers(said(browser))
        expected = torch.cat([base, torch.tensor([[delta]]), covariance, step, exact], 1)[0]
        np.testing.assert_allclose(found, expected, atol=0.0051)  # two decimals are printed
        assert percent == pytest.approx(missed, abs=0.51)
        law = mixture.posterior(x, t, schedule)
        # The covariance of n draws has, by the central limit theorem, the spread below; four of them per coordinate.
        clean = law.sample((20_000,))[:, 0]
        g = (schedule.alpha(t) * clean - x) / schedule.sigma(t) ** 2
        r = reward(clean)
        spread = ((g - g.mean(0)) * (r - r.mean()).unsqueeze(-1)).std(0) / draws**0.5
        assert bool(((torch.tensor([u, v]) - covariance[0]).abs() < 4 * spread).all())
    assert at != [0.3, 0.4]
    assert violations(browser) == []
    assert complaints(browser) == []


# What needs no browser


def test_a_bundle_leaves_no_import_and_no_name() -> None:
    source = bundle(["tilts", "budget", "tilts"])
    assert not re.search(r"^(import|export)\b", source, re.MULTILINE)
    assert source.startswith('(() => {\n"use strict";')
    assert source.count('explorer("tilts"') == 1
    assert imported("tilts") == ["maths", "ui"]  # other pages do not pay for what one explorer needs
    assert "as " not in "".join(re.findall(r"^import (.*?) from", (SCRIPTS / "estimators.js").read_text(), re.MULTILINE))


def test_scripts_stay_small_and_import_what_exists() -> None:
    files = sorted(SCRIPTS.glob("*.js"))
    assert max(len(path.read_text("utf-8").splitlines()) for path in files) <= 400
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) <= 2700
    exported = {
        path.name: set(re.findall(r"^export (?:const|function) (\w+)", path.read_text("utf-8"), re.MULTILINE))
        for path in files
    }
    for path in files:
        for names, module in re.findall(
            r"^import \{(.*?)\} from \"\./(\w+\.js)\";", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        ):
            assert {name.strip() for name in names.split(",") if name.strip()} <= exported[module], path.name


def test_colours_are_those_of_the_figures() -> None:
    style = (SCRIPTS / "explorers.css").read_text("utf-8")
    shown = dict(re.findall(r"--(base|learned|target|paper): (#\w{6})", style.split("@media")[0]))
    assert shown == {name: figures.COLORS[name].lower() for name in shown}
    assert len(shown) == 4


def test_the_landing_page_shows_the_reference_runs() -> None:
    path = ROOT / "book" / "landing.json"
    model = json.loads(path.read_text("utf-8"))["model"]
    assert path.stat().st_size < 150_000
    assert [run["N"] for run in model["runs"]] == [1, 5, 20, 100]
    for run_ in model["runs"]:
        frames, N = run_["frames"], run_["N"]
        assert [frames[0]["k"], frames[-1]["k"]] == [0, N]
        assert {len(frame["points"]) for frame in frames} == {240}
        assert {len(frame["score"]) for frame in frames} == {2 * len(model["xs"]) * len(model["ys"])}
        record = ROOT / "book" / "reference" / "paper" / f"N{N:03d}_seed0.json"
        if record.exists():  # the same run, looked at on the way
            assert frames[-1]["error"] == pytest.approx(read_record(record)["metrics"]["eps_rmse"], abs=6e-5)
    last = {run_["N"]: run_["frames"][-1]["error"] for run_ in model["runs"]}
    assert last[1] > last[20]  # what the page says
    assert last[100] > 0.9 * last[20]
    heights = {run_["N"]: np.mean(run_["frames"][-1]["points"][1::2]) / 100 for run_ in model["runs"]}
    assert heights[1] < heights[20] < 2
