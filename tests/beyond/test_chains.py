"""Tilts learned on paths: weights are ratios of densities, the loss vanishes at the exact tilt, and training finds it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from itlib.beyond.chains import Chains, Corrected, TrainableCopy, chain_steps, diagnose, draw_chains, log_variance_step
from itlib.beyond.preconditioning import adapter
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.metrics import effective_sample_size, score_errors
from itlib.network import Network, Residual
from itlib.rewards import parse_reward
from itlib.schedules import Cosine
from itlib.tilting import Diagnostics

SCHEDULE, BASE = Cosine(), ExactNoisePredictor(paper_mixture(), Cosine())


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Toward(Residual):
    """A base with the exact correction to a tilted mixture."""

    def __init__(self, base: GaussianMixture, target: GaussianMixture) -> None:
        torch.nn.Module.__init__(self)
        self.base = ExactNoisePredictor(base, SCHEDULE)
        exact = ExactNoisePredictor(target, SCHEDULE)
        self.correction = lambda x, t: exact(x, t) - self.base(x, t)


def noisy_adapter(scale: float = 0.05) -> Residual:
    student = adapter(BASE, paper_mixture().sample(500, seeded()).float(), SCHEDULE, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        torch.nn.init.normal_(student.correction.get_parameter("network.output.weight"), std=scale)
    return student


def noisy_copy(scale: float = 0.05) -> TrainableCopy:
    """All weights of a network, shaken."""
    student = TrainableCopy(Residual(BASE, Network(2, width=16, depth=2, seed=1)))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        for p in student.student.parameters():
            p += scale * torch.randn_like(p)
    return student


@pytest.mark.parametrize("noisy", [noisy_adapter, noisy_copy])
def test_the_ratio_is_that_of_the_densities_of_all_steps(noisy: Callable[..., Corrected]) -> None:
    """Against torch.distributions, step by step, for the student that drew the chains and for another one."""
    student, other = noisy(), noisy(0.2)
    steps = chain_steps(BASE, SCHEDULE, 500, 2, steps=7, generator=seeded(1))
    paths = draw_chains(student, steps, 40, 2, generator=seeded(2))
    ends = torch.cat([paths.x_t[:, 1:], paths.x_0.unsqueeze(1)], 1)

    def log_density(denoiser: Residual | ExactNoisePredictor) -> Tensor:
        total = torch.zeros(40)
        for i, (t, a, b, std) in enumerate(steps):
            mean = a * paths.x_t[:, i] + b * denoiser(paths.x_t[:, i], torch.tensor(t))
            total += torch.distributions.Normal(mean, std).log_prob(ends[:, i]).sum(-1)
        return total

    with torch.no_grad():
        for one in (student, other):
            expected = log_density(BASE) - log_density(one)
            torch.testing.assert_close(paths.log_ratio(paths.corrections(one)), expected, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(paths.corrections(student), paths.correction, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reward", "order"), [("paper", None), ("one-mode", 1.0), ("quadratic", 1.0)])
def test_the_exact_tilt_makes_all_weights_equal(reward: str, order: float | None) -> None:
    """The variance of the log weights under exact denoisers: none where the tilt shifts Gaussians, else as the step."""
    mixture, r = paper_mixture(), parse_reward(reward)
    found = []
    for K in (25, 50, 100):
        steps = chain_steps(BASE, SCHEDULE, 4000, 2, steps=K, generator=seeded(1))
        paths = draw_chains(Toward(mixture, mixture.tilted(r)), steps, 4000, 2, generator=seeded(2))
        log_w = r(paths.x_0) + paths.log_ratio(paths.correction)
        found.append(float(log_w.double().var()))
    assert float(r(paths.x_0).var()) > 2  # what a covariance has to average over
    if order is None:
        assert max(found) < 0.02
    else:
        slopes = torch.tensor(found).log2().diff()
        assert -order - 0.6 < float(slopes.mean()) < -order + 0.6
        assert found[-1] < 0.1


def test_weights_of_a_wrong_student_give_the_right_tilt() -> None:
    """Self-normalised weights of the untilted base's chains: an estimate of the tilt's mean, within its own errors."""
    mixture, r = paper_mixture(), parse_reward("b=.5,.5")
    steps = chain_steps(BASE, SCHEDULE, 4000, 2, steps=60, generator=seeded(1))
    paths = draw_chains(noisy_adapter(0.1), steps, 20_000, 2, generator=seeded(2))
    log_w = (r(paths.x_0) + paths.log_ratio(paths.correction)).double()
    w = torch.softmax(log_w, 0).unsqueeze(-1)
    mean = (w * paths.x_0).sum(0)
    error = (w * (paths.x_0 - mean)).square().sum(0).sqrt()
    assert bool(((mean - mixture.tilted(r).mean).abs() < 5 * error + 0.01).all())
    seen = diagnose(paths.log_ratio(paths.correction), r(paths.x_0))
    assert seen.ess == pytest.approx(1 / (20_000 * float(w.square().sum())), rel=1e-4)
    assert seen.var_log_w == pytest.approx(float(log_w.var()), rel=1e-4)
    spread = float((log_w - log_w.logsumexp(0)).exp().std()) * 20_000 / math.sqrt(20_000)  # of the mean weight, relative
    assert abs(seen.log_z - mixture.log_normaliser(r)) < 5 * spread + 0.01


def test_diagnostics_of_a_gaussian_log_weight() -> None:
    """With log p_base / p_theta normal of variance v and mean -v / 2 the KL is v / 2, log Z is 0 and the share exp(-v)."""
    v, n = 0.3, 400_000
    log_ratio = math.sqrt(v) * torch.randn(n, generator=seeded(0), dtype=torch.float64) - v / 2
    seen = diagnose(log_ratio, torch.zeros(n))
    assert seen.kl == pytest.approx(v / 2, abs=5 * math.sqrt(v / n))
    assert seen.var_log_w == pytest.approx(v, abs=5 * v * math.sqrt(2 / n))
    assert seen.log_z == pytest.approx(0.0, abs=5 * math.sqrt(math.expm1(v) / n))
    assert seen.ess == pytest.approx(math.exp(-v), rel=0.02)
    assert vars(diagnose(torch.zeros(5), torch.full((5,), 3.0))) == pytest.approx(vars(Diagnostics(1.0, 0.0, 0.0, 3.0)))


def test_a_part_of_the_paths_has_the_same_weights() -> None:
    steps = chain_steps(BASE, SCHEDULE, 200, 2, steps=5, generator=seeded(1))
    paths, index = draw_chains(noisy_adapter(), steps, 9, 2, generator=seeded(2)), torch.tensor([3, 0])
    part: Chains = paths[index]
    torch.testing.assert_close(part.log_ratio(part.correction), paths.log_ratio(paths.correction)[index])


def test_a_step_is_down_the_gradient_of_the_variance() -> None:
    student = noisy_adapter()
    steps = chain_steps(BASE, SCHEDULE, 200, 2, steps=5, generator=seeded(1))
    paths, before = draw_chains(student, steps, 50, 2, generator=seeded(2)), noisy_adapter()
    rewards = paths.x_0[:, 1]
    loss = log_variance_step(student, torch.optim.SGD(student.correction.parameters(), lr=1e-3), paths, rewards, 0.5)
    expected = (0.5 * rewards + paths.log_ratio(paths.corrections(before))).var()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    for p, q in zip(student.correction.parameters(), before.correction.parameters(), strict=True):
        torch.testing.assert_close(p, q - 1e-3 * q.grad, rtol=1e-3, atol=1e-6)


def test_chains_without_noise_have_no_weights() -> None:
    with pytest.raises(ValueError, match="use variance='analytic'"):
        chain_steps(BASE, SCHEDULE, 100, 2, steps=4, variance="ddpm")


def test_tilts_on_paths_arrive() -> None:
    """From an exact base: what fresh chains still disagree about, and the error, against those of the base itself."""
    mixture, reward = paper_mixture(), parse_reward("unequal")
    config = RecommendedConfig(S=1500, J=50)
    *_, last = recommended_tilting(BASE, reward, SCHEDULE, config)
    steps = chain_steps(BASE, SCHEDULE, 4000, 2, steps=50, generator=seeded(1))
    paths = draw_chains(last.model, steps, 4000, 2, generator=seeded(2))
    log_w = reward(paths.x_0) + paths.log_ratio(paths.correction)
    assert effective_sample_size(log_w) / 4000 > 0.9
    target = mixture.tilted(reward)
    errors = [score_errors(one, target, SCHEDULE, n=4000).eps_rmse for one in (BASE, last.model)]
    assert errors[1] < 0.1 * errors[0]


def test_all_weights_of_a_network_learn_on_paths() -> None:
    """A base with weights of its own is copied: the copy learns what it adds to the base, which stays as it is."""
    mixture, reward = paper_mixture(), parse_reward("unequal")
    base = Residual(BASE, Network(2, width=64, depth=3, seed=5))
    config = RecommendedConfig(S=1500, J=50, student="copy", lr=5e-3)
    run = [replace(s, model=copy.deepcopy(s.model)) for s in recommended_tilting(base, reward, SCHEDULE, config)]
    last, target = run[-1].model, mixture.tilted(reward)
    assert isinstance(last, TrainableCopy)
    for a, b in zip(last.base.parameters(), base.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    errors = [score_errors(one, target, SCHEDULE, n=4000).eps_rmse for one in (base, last)]
    assert errors[1] < 0.1 * errors[0]
    steps = chain_steps(BASE, SCHEDULE, 4000, 2, steps=50, generator=seeded(1))
    paths = draw_chains(last, steps, 4000, 2, generator=seeded(2))
    assert diagnose(paths.log_ratio(paths.correction), reward(paths.x_0)).ess > 0.8
    resumed = next(recommended_tilting(base, reward, SCHEDULE, config, state=run[-2].state)).model
    for a, b in zip(resumed.parameters(), last.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_exact_model_that_is_no_network_draws_chains() -> None:
    """Whatever has a base and a correction will do."""

    class Exact:
        def __init__(self) -> None:
            mixture = paper_mixture()
            target = ExactNoisePredictor(mixture.tilted(parse_reward("paper")), Cosine())
            self.base = ExactNoisePredictor(mixture, Cosine())
            self.correction = lambda x, t: target(x, t) - self.base(x, t)

    steps = chain_steps(Exact().base, Cosine(), 20, 2, steps=5, generator=seeded(0))
    assert draw_chains(Exact(), steps, 7, 2, generator=seeded(0)).x_0.shape == (7, 2)
    with pytest.raises(ValueError, match="student must be an object with"):
        draw_chains(object(), steps, 7, 2)  # type: ignore[arg-type]
