"""The step rules: closed forms for a Gaussian reward, what they must not depend on, and the bound that they rest on."""

from __future__ import annotations

import math

import pytest
import torch
from oracles import plane, random_mixture, random_reward
from torch import Tensor

from itlib.beyond.step_sizes import StepRule, bounded_gap, constant_ess, evenly, jensen_gap
from itlib.gaussian_mixture import GaussianMixture
from itlib.rewards import QuadraticReward, parse_reward
from itlib.schedules import Cosine

F64 = torch.float64
RULES = {"ess": constant_ess(0.9), "gap": bounded_gap(0.05)}


def gaussian(v: float, n: int = 200_000) -> Tensor:
    """Rewards whose law is N(0, v): n quantiles, so that nothing is random."""
    return math.sqrt(v) * torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)


def skewed(seed: int = 0, n: int = 500) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=F64).exp()


def effective_share(rewards: Tensor, delta: float) -> float:
    """Of the weights exp(delta r), written out."""
    w = (delta * (rewards.double() - rewards.double().max())).exp()
    return float(w.sum() ** 2 / w.square().sum() / len(w))


# ---- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v", [0.25, 8.0])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_gaussian_reward_has_a_closed_form(v: float, share: float) -> None:
    """ESS / S = exp(-delta^2 v) and gap = delta^2 v / 2; the tolerance is for the tails, which quantiles cut."""
    expected = math.sqrt(-math.log(share) / v)
    assert constant_ess(share)(gaussian(v), 100.0) == pytest.approx(expected, rel=1e-3)
    assert bounded_gap(-0.5 * math.log(share))(gaussian(v), 100.0) == pytest.approx(expected, rel=1e-3)


def test_two_rewards_have_a_closed_form() -> None:
    """With r in {0, 1}: ESS / S = (1 + e)^2 / 2 (1 + e^2) for e = exp(delta), and gap = log cosh(delta / 2)."""
    r, e = torch.tensor([0.0, 1.0]), math.exp(1.0)
    assert constant_ess((1 + e) ** 2 / (2 * (1 + e**2)))(r, 9.0) == pytest.approx(1.0, rel=1e-12)
    assert bounded_gap(math.log(math.cosh(1.5)))(r, 9.0) == pytest.approx(3.0, rel=1e-12)


def test_the_step_uses_up_what_is_allowed() -> None:
    for seed in range(5):
        r = skewed(seed)
        delta = constant_ess(0.8)(r, 50.0)
        assert effective_share(r, delta) == pytest.approx(0.8, abs=1e-12)
        assert effective_share(r, delta) > 0.8 - 1e-14 > effective_share(r, delta * (1 + 1e-9))
        delta = bounded_gap(0.1)(r, 50.0)
        assert jensen_gap(r, delta) == pytest.approx(0.1, abs=1e-12)
        assert jensen_gap(r, delta) <= 0.1 < jensen_gap(r, delta * (1 + 1e-9))


def test_both_are_the_variance_for_small_steps() -> None:
    r = skewed()
    for rule, allowed in ((constant_ess(1 - 1e-8), 1e-8), (bounded_gap(0.5e-8), 1e-8)):
        assert rule(r, 1.0) == pytest.approx(math.sqrt(allowed / float(r.var(correction=0))), rel=1e-3)


# ---- what does not matter, and what does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_scale_and_zero_of_the_reward(rule: StepRule) -> None:
    r = skewed()
    delta = rule(r, 100.0)
    assert 0 < delta < 100
    assert rule(r + 1000.0, 100.0) == pytest.approx(delta, rel=1e-9)
    for scale in (1e-3, 7.0, 1e30):
        assert rule(scale * r, 100.0 / scale) == pytest.approx(delta / scale, rel=1e-12)
        assert rule(scale * r, 1e4) == pytest.approx(delta / scale, rel=1e-12)  # however small beside what is left
    assert rule(r.float(), 100.0) == pytest.approx(delta, rel=1e-6)
    assert rule(-r, 100.0) != pytest.approx(delta, rel=0.01)  # the tail that the tilt moves into is the one that counts


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_negative_strength_is_a_negative_reward(rule: StepRule) -> None:
    r = skewed()
    assert rule(r, -100.0) == -rule(-r, 100.0) < 0
    assert rule(r, -1e-3) == -1e-3


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_never_more_than_is_left(rule: StepRule) -> None:
    r = skewed()
    whole = rule(r, 100.0)
    assert rule(r, 0.9 * whole) == 0.9 * whole
    assert rule(r, 0.0) == 0.0
    assert rule(torch.full((10,), 0.1), 100.0) == 100.0  # equal rewards: the tilt changes nothing


def test_ties_are_counted_exactly() -> None:
    """Three of six share the maximum: half of the samples stay effective under any tilt."""
    r = torch.tensor([0.3, 0.3, 0.3, 0.1, -2.0, -5.0])
    assert constant_ess(0.5)(r, 1e6) == 1e6
    assert constant_ess(0.5001)(r, 1e6) < 100
    assert constant_ess(1 / 6)(torch.arange(6.0), 1e6) == 1e6


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_steps_add_up_to_the_whole_tilt(rule: StepRule) -> None:
    """Where the variance stays the same along the path, as on the paper's task, all steps but the last are equal."""
    r, steps = gaussian(8.0, 5_000), list[float]()
    while sum(steps) < 1.0:
        steps.append(rule(r + 8 * sum(steps), 1.0 - sum(steps)))
        assert len(steps) < 20
    assert sum(steps) == pytest.approx(1.0, abs=1e-12)
    assert len(steps) == math.ceil(1.0 / steps[0]) == 9
    assert steps[:-1] == pytest.approx([steps[0]] * 8, rel=1e-6)
    assert steps[-1] < steps[0]


def test_evenly_leaves_no_stub() -> None:
    """A rule of 0.3 takes 0.3, 0.3, 0.3, 0.1; evenly, four quarters. What is left may have either sign."""

    def rule(rewards: Tensor, left: float) -> float:
        return left if abs(left) <= 0.3 else math.copysign(0.3, left)

    for sign in (1.0, -1.0):
        left = sign
        for n in (4, 3, 2, 1):
            assert evenly(rule)(skewed(), left) == pytest.approx(sign * 0.25, abs=1e-15) == left / n
            left -= evenly(rule)(skewed(), left)
        assert left == 0.0
        assert evenly(rule)(skewed(), 0.0) == 0.0
    r = skewed()
    assert 0.5 * constant_ess(0.9)(r, 9.0) < evenly(constant_ess(0.9))(r, 9.0) <= constant_ess(0.9)(r, 9.0)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_what_samples_hardly_visit_stays_unimportant(share: float) -> None:
    """P(A) = 1 / S bounds the weighted mass of A by 1 / sqrt(ESS); here A is each sample in turn, the worst last."""
    r = skewed()
    delta = constant_ess(share)(r, 100.0)
    heaviest = float(torch.softmax(delta * r, 0).max())
    assert heaviest <= 1 / math.sqrt(share * len(r))
    assert heaviest > 0.1 / math.sqrt(share * len(r))


def test_stricter_is_shorter() -> None:
    r = skewed()
    steps = [constant_ess(share)(r, 100.0) for share in (0.3, 0.6, 0.9, 0.99)]
    assert steps == sorted(steps, reverse=True)
    steps = [bounded_gap(nats)(r, 100.0) for nats in (1.0, 0.1, 0.01)]
    assert steps == sorted(steps, reverse=True)
    assert constant_ess(1e-9)(r, 100.0) == 100.0  # one sample of 500 is always left
    assert bounded_gap(1e9)(r, 100.0) == 100.0


# ---- the bound --------------------------------------------------------------------------------------------------------


def log_mean_weight(
    mixture: GaussianMixture, reward: QuadraticReward, delta: float, x: Tensor, t: float, schedule: Cosine
) -> Tensor:
    """K(delta, x) = log E[exp(delta r) | X_t = x], from the two noised densities: no posterior."""
    before, after = mixture.noised(schedule, t), mixture.tilted(reward, delta).noised(schedule, t)
    return after.log_prob(x) - before.log_prob(x) + mixture.log_normaliser(reward, delta)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
def test_the_gap_is_what_the_first_order_step_misses(seed: int, t: float) -> None:
    """J >= 0, grad J is the score's remainder, and mean J and the divergence of the step's law stay below the bound."""
    mixture, schedule, delta = random_mixture(seed), Cosine(), 0.5
    reward, time = random_reward(seed, mixture), torch.tensor(t, dtype=F64)
    tilted = mixture.tilted(reward, delta)

    few = mixture.noised(schedule, t).sample(20, torch.Generator().manual_seed(seed)).requires_grad_()
    posterior_mean = mixture.posterior_reward(few, time, schedule, reward)
    J = log_mean_weight(mixture, reward, delta, few, t, schedule) - delta * posterior_mean
    (gradient,) = torch.autograd.grad(J.sum(), few)
    few = few.detach()
    step = mixture.score(few, time, schedule) + delta * mixture.covariance(few, time, schedule, reward)
    remainder = tilted.score(few, time, schedule) - step
    torch.testing.assert_close(gradient, remainder, rtol=1e-8, atol=1e-10)
    assert float(remainder.abs().max()) > 1e-3

    x, area = plane(n=201)
    p, p_tilted = (mixture_t.noised(schedule, t).log_prob(x) for mixture_t in (mixture, tilted))
    m = mixture.posterior_reward(x, time, schedule, reward)
    J = log_mean_weight(mixture, reward, delta, x, t, schedule) - delta * m
    seen = p > -30  # beyond, the difference of two logarithms is rounding
    assert float(J[seen].min()) > 0
    bound = mixture.log_normaliser(reward, delta) - delta * mixture.expected_reward(reward)
    mean = float((p[seen].exp() * J[seen]).sum() * area)
    assert 0 < mean < bound
    log_q = p + delta * m
    log_q = log_q - torch.logsumexp(log_q, 0) - math.log(area)
    assert 0 < float((log_q.exp() * (log_q - p_tilted))[seen].sum() * area) < bound


def test_the_bound_is_attained_where_nothing_is_known() -> None:
    """Near t = 1 the posterior is the model itself, so J is the bound, up to a correlation of order alpha = 0.0016."""
    mixture, schedule, delta, t = random_mixture(0), Cosine(), 0.5, 0.999
    reward = random_reward(0, mixture)
    x = mixture.noised(schedule, t).sample(2000, torch.Generator().manual_seed(0))
    m = mixture.posterior_reward(x, torch.tensor(t, dtype=F64), schedule, reward)
    J = log_mean_weight(mixture, reward, delta, x, t, schedule) - delta * m
    bound = mixture.log_normaliser(reward, delta) - delta * mixture.expected_reward(reward)
    assert float(J.mean()) == pytest.approx(bound, rel=0.01)


def test_the_gap_of_samples_estimates_the_bound(paper: GaussianMixture) -> None:
    """And exp(2 K(delta) - K(2 delta)) is what the effective share estimates."""
    reward, delta, n = parse_reward("one-mode"), 0.1, 100_000
    K = [paper.log_normaliser(reward, f * delta) for f in (1.0, 2.0)]
    r = reward(paper.sample(n, torch.Generator().manual_seed(0)))
    w = (delta * r - K[0]).exp()  # mean one
    exact = K[0] - delta * paper.expected_reward(reward)
    error = float((w - delta * r).std()) / math.sqrt(n)  # log mean w, minus delta mean r, to first order
    assert abs(jensen_gap(r, delta) - exact) < 5 * error < 0.2 * exact
    share = math.exp(2 * K[0] - K[1])
    error = float((2 * w - w.square() / w.square().mean()).std()) / math.sqrt(n)  # of the logarithm
    assert abs(math.log(effective_share(r, delta) / share)) < 5 * error < -0.2 * math.log(share)


# ---- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 90.0, math.nan])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ValueError, match="target_ess must be a number between 0 and 1"):
        constant_ess(share)


@pytest.mark.parametrize("nats", [0.0, -1.0, math.inf, math.nan])
def test_nats_are_positive(nats: float) -> None:
    with pytest.raises(ValueError, match="nats must be a positive finite number"):
        bounded_gap(nats)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_bad_rewards_are_refused(rule: StepRule) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            rule(torch.tensor([0.0, bad, 1.0]), 1.0)
        with pytest.raises(ValueError, match="NaN or infinite"):
            rule(torch.tensor([0.0, 1.0]), bad)
    for shape in ((1,), (0,), (3, 1), ()):
        with pytest.raises(ValueError, match="at least two rewards"):
            rule(torch.zeros(shape), 1.0)
