"""The value of a state: weights are unbiased for any student, the loss is at rest at the exact value, training finds it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from itlib.beyond.chains import UnreachedWarning, chain_steps
from itlib.beyond.preconditioning import Gaussian
from itlib.beyond.value import (
    Guided,
    ImageValue,
    ValueConfig,
    ValueDiagnostics,
    ValueFunction,
    displaced,
    draw_pool,
    mixed_tilt,
    strongest,
    value_gradient,
    value_tilting,
)
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.metrics import score_errors
from itlib.pretrained import FromModel
from itlib.rewards import parse_reward
from itlib.sampling import ReverseStep
from itlib.schedules import Cosine

SCHEDULE, MIXTURE, REWARD = Cosine(), paper_mixture(), parse_reward("unequal")
TARGET, BASE = MIXTURE.tilted(REWARD), ExactNoisePredictor(MIXTURE, SCHEDULE)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_density(mixture: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """log p_t at (B, d) and one time, in plain torch so that autograd goes through."""
    alpha, sigma = SCHEDULE.alpha(t.double()), SCHEDULE.sigma(t.double())
    covariances = alpha**2 * mixture.covariances + sigma**2 * torch.eye(mixture.d)
    parts = torch.distributions.MultivariateNormal(alpha * mixture.means, covariances).log_prob(x.double().unsqueeze(1))
    return torch.logsumexp(mixture.weights.log() + parts, 1)


class ExactValue(nn.Module):
    """V of the exact base in continuous time: log Z p'_t / p_t."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        ratio = log_density(TARGET, x, t) - log_density(MIXTURE, x, t)
        return (ratio + MIXTURE.log_normaliser(REWARD)).to(x)


EXACT = Guided(BASE, ExactValue(), SCHEDULE)


def steps_of(J: int) -> list[ReverseStep[float]]:
    return chain_steps(BASE, SCHEDULE, 4000, 2, steps=J, generator=seeded(1))


def test_the_correction_of_the_exact_value_is_the_exact_one() -> None:
    x, t = 3 * torch.randn(50, 2, generator=seeded()), torch.tensor(0.4)
    expected = ExactNoisePredictor(TARGET, SCHEDULE)(x, t) - BASE(x, t)
    assert torch.allclose(EXACT.correction(x, t), expected, atol=1e-5)


def test_a_correction_can_be_differentiated_where_x_is_tracked() -> None:
    """The flow's likelihood needs the divergence: against central differences in double precision."""
    value = ValueFunction(Gaussian(2, SCHEDULE), width=8, depth=2).double()
    with torch.no_grad():
        value.network.output.weight.fill_(0.5)
    model, t = Guided(BASE, value, SCHEDULE), torch.tensor(0.5, dtype=torch.float64)
    x = torch.randn(1, 2, generator=seeded(), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: model.correction(y, t), x)


def test_weights_are_unbiased_whoever_draws_the_chains() -> None:
    """E_student[f e^(s r + L)] = E_base[f e^(s r)] for f of a state on the way: within five standard errors of both."""
    steps, n = steps_of(12), 20_000
    shaken = ValueFunction(Gaussian(MIXTURE.sample(500, seeded()).float(), SCHEDULE), width=16, depth=2, seed=3)
    with torch.no_grad():
        shaken.network.output.weight.copy_(0.3 * torch.randn(1, 16, generator=seeded(4)))
    base = draw_pool(EXACT, steps, torch.zeros(n), 2, generator=seeded(5))
    assert not bool(base.log_ratio.any())
    for student in (EXACT, Guided(BASE, shaken, SCHEDULE)):
        pool = draw_pool(student, steps, torch.rand(n, generator=seeded(6)), 2, generator=seeded(7))
        for k in (0, 6, 11):
            for f in (torch.ones_like, torch.tanh):
                pair = []
                for chains in (base, pool):
                    weight = torch.exp(0.3 * REWARD(chains.x_0) + chains.log_ratio[:, 0])
                    pair.append(f(chains.x_t[:, k, 0]) * weight)
                error = sum(v.var() / n for v in pair) ** 0.5
                assert abs(pair[0].mean() - pair[1].mean()) < 5 * error


def test_after_a_state_only_what_follows_counts() -> None:
    """L at the last state is the last step's: against the two Gaussian densities."""
    steps, fraction = steps_of(6), torch.full((100,), 0.7)
    pool = draw_pool(EXACT, steps, fraction, 2, generator=seeded())
    time, a, b, std = steps[-1]
    x, t = pool.x_t[:, -1], torch.tensor(time)
    mean = a * x + b * BASE(x, t)
    shifted = mean + b * 0.7 * EXACT.correction(x, t)
    ratio = torch.distributions.Normal(mean, std).log_prob(pool.x_0) - torch.distributions.Normal(shifted, std).log_prob(
        pool.x_0
    )
    assert torch.allclose(pool.log_ratio[:, -1], ratio.sum(-1), atol=1e-3)


def test_the_gradient_is_that_of_an_exponential_likelihood() -> None:
    """d/dV of V + e^(log w - V), the negative log-likelihood of w under an exponential law of mean e^V, by autograd."""
    V = torch.linspace(-2, 2, 9, requires_grad=True)
    log_w = torch.linspace(1, -3, 9)
    (expected,) = torch.autograd.grad((V + torch.exp(log_w - V)).sum(), V)
    assert torch.allclose(value_gradient(V, log_w, clamp=10.0), expected, atol=1e-6)
    assert torch.allclose(value_gradient(V, V.detach() + 9, clamp=2.0), torch.full((9,), 1 - math.exp(2)))


def test_at_the_exact_value_bias_and_noise_of_the_loss_vanish_with_the_steps() -> None:
    """Mean square of the log weights' distance to V falls like 1/J, and the mean of the gradient with it."""
    counts, spread, bias = (12, 24, 48), [], []
    for J in counts:
        pool = draw_pool(EXACT, steps := steps_of(J), torch.ones(8000), 2, generator=seeded(J))
        gradients, distances = [], []
        for k in range(0, J, J // 12):
            V = EXACT.value(pool.x_t[:, k], torch.tensor(steps[k].t))
            log_w = REWARD(pool.x_0) + pool.log_ratio[:, k]
            distances.append((log_w - V).square().mean())
            gradients.append(value_gradient(V, log_w, clamp=50.0).mean().abs())
        spread.append(float(torch.stack(distances).mean()))
        bias.append(float(torch.stack(gradients).mean()))

    def slope(values: list[float]) -> float:
        x, y = torch.tensor(counts).log(), torch.tensor(values).log()
        return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())

    assert -1.4 < slope(spread) < -0.9
    assert slope(bias) < -0.8


class Planes(nn.Module):
    """V of a linear reward and the chains of a Gaussian base: at each of some times its slope times the state."""

    def __init__(self, gaussian: Gaussian, t: Tensor, slopes: Tensor) -> None:
        super().__init__()
        self.gaussian, self.t, self.slopes = gaussian, t, slopes

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x @ self.slopes[int((self.t - t).abs().argmin())]


def test_four_steps_of_finite_length_reach_the_tilt_of_a_gaussian() -> None:
    """All is linear: the slope of V before a step is its Jacobian, by autograd, times that after, and all weights agree."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    law = GaussianMixture(
        torch.ones(1), torch.tensor([[0.5, -1.0]]), (turn @ torch.diag(torch.tensor([4.0, 0.1])) @ turn.T)[None]
    )
    base, gaussian, slope = ExactNoisePredictor(law, SCHEDULE), Gaussian(2, SCHEDULE), torch.tensor([0.5, 0.3])
    gaussian.mean, gaussian.eigenvalues, gaussian.eigenvectors = law.means[0].float(), torch.tensor([4.0, 0.1]), turn
    steps = chain_steps(base, SCHEDULE, 4000, 2, steps=4, generator=seeded(1))
    slopes = [slope]
    for step in reversed(steps):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, step=step: step.mean(x, base(x[None], torch.tensor(step.t))[0]), torch.zeros(2)
        )
        slopes.append(jacobian.T.float() @ slopes[-1])
    value = Planes(gaussian, torch.tensor([step.t for step in steps]), torch.stack(slopes[:0:-1]))
    spread = []
    for finite in (steps, None):
        pool = draw_pool(Guided(base, value, SCHEDULE, finite), steps, torch.ones(2000), 2, generator=seeded(2))
        residual = pool.x_0 @ slope + pool.log_ratio[:, 0] - pool.x_t[:, 0] @ value.slopes[0]
        spread.append(float(residual.var()))
    assert spread[0] < 1e-5  # single precision
    assert spread[1] > 0.05


def test_images_are_seen_as_the_gaussian_estimates_them() -> None:
    """The estimate is the mean of X_0 given the state in the Gaussian, less its own mean: by conditioning."""
    data = torch.randn(200, 12, generator=seeded()) @ torch.randn(12, 12, generator=seeded(1)) + 1.0
    value, x, t = ImageValue(Gaussian(data, SCHEDULE), (3, 2, 2)), torch.randn(5, 12, generator=seeded(2)), torch.tensor(0.4)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    covariance = data.T.cov()
    kalman = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(12))
    estimate = (x - alpha * data.mean(0)) @ kalman.T
    torch.testing.assert_close(value.inputs(x, t), estimate.reshape(5, 3, 2, 2), rtol=1e-4, atol=1e-4)


def test_the_value_of_images_ends_at_the_tilt_of_a_gaussian() -> None:
    """A dozen steps, 4 x 4 pixels; log Z is that of the chain's own Gaussian, whose variance of the mean follows by hand."""
    law = GaussianMixture(torch.ones(1), torch.zeros(1, 16), (0.3 * torch.ones(16, 16) + 0.2 * torch.eye(16))[None])
    base = ExactNoisePredictor(law, SCHEDULE)
    config = ValueConfig(J=12, pilot=500, S=300, B=128, fit=60, rounds=3, finite=True)
    made = []

    def small(gaussian: Gaussian, seed: int) -> ImageValue:
        made.append(seed)
        return ImageValue(gaussian, (1, 4, 4), width=8, seed=seed)

    *_, last = value_tilting(base, lambda x: 1.5 * x.mean(1), SCHEDULE, config, d=16, value_of=small)
    assert len(made) == 1
    assert last.diagnostics is not None
    assert last.diagnostics.ess > 0.9
    variance, e = 1.0, torch.full((1, 16), 0.25)  # of the state's component along e, an eigenvector
    for step in chain_steps(base, SCHEDULE, 4000, 16, steps=12, generator=seeded(1)):
        variance = float((step.mean(e, base(e, torch.tensor(step.t))) * e).sum()) ** 2 * variance + step.std**2
    assert last.diagnostics.log_z == pytest.approx(0.5 * 1.5**2 * variance / 16, abs=0.06)


def test_few_states_at_once_have_the_same_correction() -> None:
    value = ValueFunction(Gaussian(MIXTURE.sample(500, seeded()).float(), SCHEDULE), width=8, depth=2)
    nn.init.ones_(value.network.output.weight)
    few = FromModel(nn.Identity(), SCHEDULE, (2,), microbatch=3)
    x, t = torch.randn(8, 2, generator=seeded(1)), torch.linspace(0.1, 0.9, 8)
    for time in (t, t[0]):
        one, other = (Guided(base, value, SCHEDULE).correction(x, time) for base in (BASE, few))
        torch.testing.assert_close(one, other)


def test_the_strength_is_the_one_with_the_share_asked_for() -> None:
    """For Gaussian rewards the share of exp(s r) is exp(-s^2): the normal quantiles stand for the law."""
    r = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    zero = torch.zeros_like(r)
    assert strongest(r, zero, 5.0, 0.3) == pytest.approx(math.sqrt(-math.log(0.3)), rel=1e-2)
    assert strongest(r, zero, -5.0, 0.3) == pytest.approx(-math.sqrt(-math.log(0.3)), rel=1e-2)
    assert strongest(r, zero, 0.5, 0.3) == 0.5
    assert strongest(r, -2.0 * r, 2.0, 0.3) == 2.0  # the student is there already


def test_a_higher_strength_leaves_a_part_of_the_share_reached() -> None:
    """The share of exp(s r - r + 2 z) falls like exp(-(s - 1)^2) for independent Gaussian r and any z: quantiles."""
    r, z = (torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n) for n in (50_000, 20))
    r, z = r.repeat_interleave(20), z.repeat(50_000)
    assert strongest(r, -r, 5.0, 0.3, start=1.0, part=0.5) == pytest.approx(1 + math.sqrt(-math.log(0.3)), rel=1e-2)
    assert strongest(r, -r + 2 * z, 5.0, 0.3, start=1.0, part=0.5) == pytest.approx(1 + math.sqrt(math.log(2)), rel=1e-2)
    assert strongest(-r, -r, -5.0, 0.3, start=-1.0, part=0.5) == pytest.approx(-1 - math.sqrt(-math.log(0.3)), rel=1e-2)


def test_the_value_of_a_mixed_tilt_is_that_of_a_mixture() -> None:
    """log Z (p'_t + a p_t) / p_t is the mean of exp(mixed_tilt) over X_0 given X_t: within five standard errors."""
    admixture, n, t = 0.05, 200_000, torch.tensor(0.5, dtype=torch.float64)
    x_0, noise = MIXTURE.sample(n, seeded()), torch.randn(n, 2, generator=seeded(1), dtype=torch.float64)
    x_t = SCHEDULE.alpha(t) * x_0 + SCHEDULE.sigma(t) * noise
    mixture = GaussianMixture(
        torch.cat([TARGET.weights, admixture * MIXTURE.weights]) / (1 + admixture),
        torch.cat([TARGET.means, MIXTURE.means]),
        torch.cat([TARGET.covariances, MIXTURE.covariances]),
    )
    log_z = MIXTURE.log_normaliser(REWARD)
    V = log_density(mixture, x_t, t) - log_density(MIXTURE, x_t, t) + log_z + math.log1p(admixture)
    ratio = torch.exp(mixed_tilt(REWARD(x_0), log_z, admixture) - V)
    for f in (torch.ones_like(ratio), torch.tanh(x_t[:, 0]), (V.median() > V).to(V)):
        error = f * (ratio - 1)
        assert abs(error.mean()) < 5 * error.std() / n**0.5


def test_weights_that_move_a_gaussian_move_it_as_far_as_they_should() -> None:
    """e^(m x) takes N(0, 1) to N(m, 1), at a distance m. A share of e^(-m^2) allows more; the largest column counts."""
    x = torch.special.ndtri((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    shuffled = x[torch.randperm(len(x), generator=seeded())]
    for m in (0.05, 0.3):
        assert displaced(torch.stack([3 * x + 7, shuffled], 1), m * x) == pytest.approx(m, rel=0.01)
        assert displaced(shuffled.unsqueeze(1), m * x) < 0.01
    assert displaced(x.unsqueeze(1), torch.zeros_like(x)) < 1e-10
    with pytest.raises(ValueError, match="same length"):
        displaced(x.unsqueeze(1), x[1:])


def test_two_modes_with_wrong_weights_are_found_out_at_a_high_share() -> None:
    """Mass moved times distance over standard deviation: of modes at 0 and 4 the first has a fifth instead of an eighth."""
    x = torch.cat([torch.zeros(200), torch.full((800,), 4.0)])
    log_w = torch.log(torch.cat([torch.full((200,), 0.125 / 0.2), torch.full((800,), 0.875 / 0.8)]))
    assert 1 / float(torch.softmax(log_w.double(), 0).square().sum()) > 0.96 * 1000
    assert displaced(x.unsqueeze(1), log_w) == pytest.approx(0.075 * 4 / 1.6, rel=1e-5)


SMALL = ValueConfig(J=40, pilot=1500, S=600, B=256, fit=250, rounds=5)


def test_a_run_ends_at_the_tilt() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *_, last = value_tilting(BASE, REWARD, SCHEDULE, SMALL, seed=1)
    assert last.strength == 1.0
    assert last.left == 0
    assert last.diagnostics is not None
    untilted, reached = (score_errors(model, TARGET, SCHEDULE, n=2000).eps_rmse for model in (BASE, last.model))
    assert reached < 0.2 * untilted
    assert last.diagnostics.ess > 0.8
    assert isinstance(last.diagnostics, ValueDiagnostics)
    assert last.diagnostics.displaced < SMALL.close
    assert last.diagnostics.log_z == pytest.approx(MIXTURE.log_normaliser(REWARD), abs=0.1)  # the chain's own bias is 0.03


def test_a_mode_that_is_punished_hard_does_not_cost_the_others_their_weights() -> None:
    """Where V spans a hundred nats, a tenth of one is lost on it. With an admixture it spans about fifteen."""
    law = GaussianMixture(
        torch.tensor([0.8, 0.1, 0.1]),
        torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]]),
        0.16 * torch.eye(2).expand(3, 2, 2),
    )
    line = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    first = torch.distributions.Normal(law.means[:, :1].double(), 0.4).log_prob(line).exp()
    tilted = torch.exp(-50 * torch.tanh(line - 0.75)) * (law.weights @ first)
    log_z = float(torch.log(torch.trapezoid(tilted, line)))
    shares = []
    for knobs in ({}, {"admixture": 5e-5, "climb": 0.5}):
        config = ValueConfig(**{**vars(SMALL), "enough": 0.0, "close": 1e9, **knobs})
        run = value_tilting(ExactNoisePredictor(law, SCHEDULE), lambda x: -50 * torch.tanh(x[:, 0] - 0.75), SCHEDULE, config)
        found = [step.diagnostics for step in run][2:]
        assert all(isinstance(one, ValueDiagnostics) for one in found)
        shares.append(max(one.ess for one in found if one))
    assert shares[1] > 0.4
    assert shares[1] > 2 * shares[0]
    assert found[-1] is not None
    assert found[-1].log_z == pytest.approx(log_z, abs=0.2)


def test_a_negative_strength_tilts_the_other_way() -> None:
    *_, last = value_tilting(BASE, REWARD, SCHEDULE, ValueConfig(**{**vars(SMALL), "lam": -1.0}), seed=1)
    errors = score_errors(last.model, MIXTURE.tilted(REWARD, -1.0), SCHEDULE, n=2000)
    assert errors.eps_rmse < 0.2 * score_errors(BASE, MIXTURE.tilted(REWARD, -1.0), SCHEDULE, n=2000).eps_rmse


def test_the_same_seed_gives_the_same_model() -> None:
    config = ValueConfig(J=5, pilot=64, S=32, B=32, fit=5, rounds=2, enough=0.0, close=1e9)
    runs = [[*value_tilting(BASE, REWARD, SCHEDULE, config, seed=s)][-1] for s in (0, 0, 1)]
    first, again, other = (run.model.state_dict()["value.network.output.weight"] for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_that_does_not_arrive_says_so() -> None:
    config = ValueConfig(J=5, pilot=256, S=128, B=32, fit=5, rounds=2)
    with pytest.warns(UnreachedWarning, match=r"at strength 0\.\d+ of 1"):
        [*value_tilting(BASE, lambda x: 40 * REWARD(x), SCHEDULE, config)]
    for knob in ({"enough": 0.9999}, {"enough": 0.0, "close": 1e-6}):
        with pytest.warns(UnreachedWarning, match=r"with an effective share of .* move by .* standard deviations"):
            [*value_tilting(BASE, lambda x: 0.1 * REWARD(x), SCHEDULE, ValueConfig(**{**vars(config), **knob}))]


def test_a_reward_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        next(value_tilting(BASE, lambda x: x[:, 0] * math.nan, SCHEDULE, ValueConfig(J=3, pilot=64, S=32)))


@pytest.mark.parametrize(
    "wrong", [{"lam": 0.0}, {"explore": 1.0}, {"enough": -0.1}, {"lr": 0.0}, {"clamp": 0.0}, {"J": 0}, {"S": 2.5}]
)
def test_knobs_out_of_range_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ValueConfig(**wrong)  # type: ignore[arg-type]
