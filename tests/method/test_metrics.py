"""Every metric on cases whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from itlib import metrics
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine, Linear, Schedule
from itlib.training import TrainingStep

F64 = torch.float64


def draw(mixture: GaussianMixture, n: int, seed: int = 0) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def target(paper: GaussianMixture) -> GaussianMixture:
    return paper.tilted(parse_reward("paper"))


# ---- score errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
def test_the_exact_denoiser_has_no_error(paper: GaussianMixture, schedule: Schedule) -> None:
    errors = metrics.score_errors(ExactNoisePredictor(paper, schedule), paper, schedule, n=2000)
    # Single precision inputs and outputs: 6e-8 times values of a few units, and 1 / sigma <= 1000 on top.
    assert errors.eps_rmse < 1e-6
    assert errors.score_rmse < 1e-3


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
def test_a_constant_offset_is_its_own_error(paper: GaussianMixture, schedule: Schedule) -> None:
    """E||c||^2 = |c|^2, and in the score's units |c|^2 E[1 / sigma_t^2], t uniform on [t_min, t_max]."""
    offset, n = torch.tensor([0.3, -0.4]), 5000
    exact = ExactNoisePredictor(paper, schedule)
    errors = metrics.score_errors(lambda x, t: exact(x, t) + offset, paper, schedule, n=n)
    assert errors.eps_rmse == pytest.approx(0.5, abs=1e-6)
    # The exact mean and variance of the estimate, by a midpoint rule in log t.
    edges = torch.linspace(math.log(schedule.t_min), math.log(schedule.t_max), 200_001, dtype=F64)
    t = ((edges[1:] + edges[:-1]) / 2).exp()
    w = t * edges.diff() / (schedule.t_max - schedule.t_min)
    inverse = 1 / schedule.sigma(t) ** 2
    mean = float(w @ inverse)
    deviation = math.sqrt(float(w @ inverse**2) - mean**2)
    assert errors.score_rmse**2 == pytest.approx(0.25 * mean, abs=0.25 * 5 * deviation / math.sqrt(n))


def test_score_errors_compare_on_the_same_draws(paper: GaussianMixture, target: GaussianMixture, cosine: Cosine) -> None:
    base = ExactNoisePredictor(paper, cosine)
    first = metrics.score_errors(base, target, cosine, n=500, seed=1)
    assert metrics.score_errors(base, target, cosine, n=500, seed=1) == first
    assert metrics.score_errors(base, target, cosine, n=500, seed=2) != first
    # `truth` replaces the comparison, not the draws.
    assert metrics.score_errors(base, target, cosine, n=500, seed=1, truth=base).eps_rmse < 1e-6
    swapped = metrics.score_errors(ExactNoisePredictor(target, cosine), target, cosine, n=500, seed=1, truth=base)
    assert swapped == pytest.approx(first, rel=1e-5)


def test_the_distance_of_the_base_from_the_papers_target_is_the_tilt(
    paper: GaussianMixture, target: GaussianMixture
) -> None:
    """The whole tilt moves the score by alpha / (2 v) b everywhere: its mean square is an integral over t alone."""
    schedule, n = Cosine(), 5000
    t = torch.linspace(schedule.t_min, schedule.t_max, 20_001, dtype=F64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    squared = (4 * alpha / (2 * (alpha**2 / 2 + sigma**2))) ** 2
    errors = metrics.score_errors(ExactNoisePredictor(paper, schedule), target, schedule, n=n)
    for actual, values in ((errors.score_rmse, squared), (errors.eps_rmse, sigma**2 * squared)):
        assert actual**2 == pytest.approx(float(values.mean()), abs=5 * float(values.std()) / math.sqrt(n))


# ---- samples against a density ----------------------------------------------------------------------------------------


def test_nll_of_exact_samples_is_the_entropy(paper: GaussianMixture, target: GaussianMixture) -> None:
    """Under another density it is the entropy plus the divergence: 2.83 + 4 for the target's samples under the base."""
    x, n = draw(target, 20_000), 20_000
    for mixture, expected in ((target, target.entropy()), (paper, target.entropy() + paper.tilt_kl(parse_reward("paper")))):
        error = float(mixture.log_prob(x).std()) / math.sqrt(n)
        assert metrics.negative_log_likelihood(x, mixture) == pytest.approx(expected, abs=5 * error)


def test_mean_mse_averages_over_coordinates(paper: GaussianMixture, target: GaussianMixture) -> None:
    x = torch.tensor([[2.0, 4.0], [4.0, 4.0]])  # mean (3, 4), from (0, 0) and from (0, 2)
    assert metrics.mean_mse(x, paper) == pytest.approx(25 / 2)
    assert metrics.mean_mse(x, target) == pytest.approx((9 + 4) / 2)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3)])
def test_a_mean_of_other_samples_is_refused(paper: GaussianMixture, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"shape \(n, [2d]\), got"):
        metrics.mean_mse(torch.zeros(shape), paper)


def test_the_papers_table_scored_against_the_base(paper: GaussianMixture, target: GaussianMixture) -> None:
    """A perfect model scored against the base instead of the target: MSE 2 and NLL 6.83."""
    x = draw(target, 20_000)
    # mean y is 2 with standard error sqrt(.5 / n), mean x is 0 with sqrt(4.5 / n): the average of squares moves by 2 dy.
    assert metrics.mean_mse(x, paper) == pytest.approx(2.0, abs=5 * 2 * math.sqrt(0.5 / 20_000) + 25 * 4.5 / 20_000 / 2)
    assert metrics.mean_mse(x, target) < 25 * (4.5 + 0.5) / 20_000 / 2


def test_mode_weights_recovers_the_proportions(paper: GaussianMixture) -> None:
    """Samples split .1 / .9, scored against the mixture that says .5 / .5."""
    n = 10_000
    uneven = GaussianMixture(torch.tensor([0.1, 0.9]), paper.means, paper.covariances)
    weights = metrics.mode_weights(draw(uneven, n), paper)
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    # The modes overlap by .2 % of their mass, which costs little of the binomial's information.
    assert weights.tolist() == pytest.approx([0.1, 0.9], abs=5 * math.sqrt(0.09 / n))


def test_mode_weights_are_unbiased_when_the_modes_overlap(paper: GaussianMixture) -> None:
    """Modes one standard deviation apart: hard assignment would give .35, maximum likelihood does not."""
    n, means = 20_000, 0.125 * paper.means * math.sqrt(2)
    uneven = GaussianMixture(torch.tensor([0.2, 0.8]), means, paper.covariances)
    even = GaussianMixture(torch.tensor([0.5, 0.5]), means, paper.covariances)
    x = draw(uneven, n)
    p = even.distribution().component_distribution.log_prob(x.unsqueeze(1)).exp()
    information = float((((p[:, 0] - p[:, 1]) / (p @ uneven.weights)) ** 2).mean())  # Fisher, per sample
    assert float(metrics.mode_weights(x, even)[0]) == pytest.approx(0.2, abs=5 / math.sqrt(n * information))


def test_component_variances(paper: GaussianMixture) -> None:
    n = 10_000
    covariances = torch.stack([torch.diag(torch.tensor([0.5, 0.1])), torch.diag(torch.tensor([0.2, 0.8]))]).double()
    mixture = GaussianMixture(torch.tensor([0.3, 0.7]), 2 * paper.means, covariances)
    variances = metrics.component_variances(draw(mixture, n), mixture)
    expected = covariances.diagonal(dim1=1, dim2=2)
    error = expected * (2 / (n * mixture.weights)).sqrt().unsqueeze(-1)
    assert bool(((variances - expected).abs() < 5 * error).all())


def test_component_variances_are_about_the_samples_own_mean(paper: GaussianMixture) -> None:
    x = draw(paper, 2000)
    shifted = metrics.component_variances(x + torch.tensor([0.0, 5.0]), paper)
    torch.testing.assert_close(shifted, metrics.component_variances(x, paper), rtol=1e-9, atol=1e-9)
    squeezed = metrics.component_variances(0.5 * x, GaussianMixture(paper.weights, 0.5 * paper.means, paper.covariances / 4))
    torch.testing.assert_close(squeezed, metrics.component_variances(x, paper) / 4, rtol=1e-9, atol=1e-9)


def test_an_empty_component_has_no_variance(paper: GaussianMixture) -> None:
    right = GaussianMixture(torch.ones(1), 10 * paper.means[1:], paper.covariances[1:])
    wide = GaussianMixture(paper.weights, 10 * paper.means, paper.covariances)
    variances = metrics.component_variances(draw(right, 1000), wide)
    assert bool(variances[0].isnan().all())
    assert variances[1].tolist() == pytest.approx([0.5, 0.5], abs=5 * 0.5 * math.sqrt(2 / 1000))


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by D moves every projection by theta.D: the mean of the squares is |D|^2 / d."""
    n, projections, shift = 1000, 500, torch.tensor([3.0, 1.0], dtype=F64)
    one = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    distance = metrics.sliced_wasserstein(draw(one, n, 1) + shift, one, seed=0, projections=projections)
    squared = float(shift.square().sum()) / 2
    # cos^2 has standard deviation 1/sqrt(8) over directions; the two means differ by sqrt(2/n) a coordinate.
    error = squared * 2 / math.sqrt(8 * projections) + math.sqrt(2 / n) * float(shift.norm())
    assert distance**2 == pytest.approx(squared, abs=5 * error)


def test_sliced_wasserstein_of_the_same_draws_is_zero(paper: GaussianMixture) -> None:
    assert metrics.sliced_wasserstein(draw(paper, 500, 3), paper, seed=3) == pytest.approx(0.0, abs=1e-12)
    assert metrics.sliced_wasserstein(draw(paper, 500, 4), paper, seed=3) > 0.01


# ---- probability flow -------------------------------------------------------------------------------------------------


def test_flow_nll_of_the_exact_denoiser_is_the_entropy(paper: GaussianMixture, cosine: Cosine) -> None:
    x = draw(paper, 300)
    value = metrics.flow_nll(ExactNoisePredictor(paper, cosine), cosine, paper, x)
    # What remains is the noise of t_min, known exactly on these draws, and the solver's error at its default tolerance.
    smoothed = float((paper.log_prob(x) - paper.noised(cosine, cosine.t_min).log_prob(x)).mean())
    assert value == pytest.approx(paper.entropy() + smoothed, abs=0.01)


def test_flow_nll_of_another_density_is_the_cross_entropy(paper: GaussianMixture, cosine: Cosine) -> None:
    half = paper.tilted(parse_reward("paper"), 0.5)
    x = draw(half, 300)
    value = metrics.flow_nll(ExactNoisePredictor(paper, cosine), cosine, half, x)
    gap = half.log_prob(x) - paper.noised(cosine, cosine.t_min).log_prob(x)
    assert value == pytest.approx(half.entropy() + float(gap.mean()), abs=0.01)
    error = float(gap.std()) / math.sqrt(300)
    assert value == pytest.approx(half.entropy() + paper.tilt_kl(parse_reward("paper"), 0.5), abs=5 * error)


def test_flow_nll_of_a_learned_network_is_above_the_entropy(
    trained: tuple[Network, list[TrainingStep]], paper: GaussianMixture, cosine: Cosine
) -> None:
    x = draw(paper, 300).float()
    value = metrics.flow_nll(trained[0], cosine, paper, x)
    assert paper.entropy() - 0.01 < value < paper.entropy() + 1.0
    worse = metrics.flow_nll(ExactNoisePredictor(paper.tilted(parse_reward("paper")), cosine), cosine, paper, x)
    assert worse > value


# ---- all together -----------------------------------------------------------------------------------------------------


def test_score_card_of_a_perfect_model(paper: GaussianMixture, target: GaussianMixture, cosine: Cosine) -> None:
    denoiser = ExactNoisePredictor(target, cosine)
    card = metrics.score_card(
        denoiser, cosine, target, target=target, base=paper, samples=1500, flow_samples=50, steps=100, seed=3
    )
    x = sample(denoiser, cosine, 1500, steps=100, generator=torch.Generator().manual_seed(3))
    assert card["nll_target"] == metrics.negative_log_likelihood(x, target)
    assert card["nll_base"] == metrics.negative_log_likelihood(x, paper)
    assert card["mean_mse_target"] == metrics.mean_mse(x, target)
    assert card["mean_mse_base"] == metrics.mean_mse(x, paper)
    assert card["mode_weights"] == metrics.mode_weights(x, target).tolist()
    assert card["component_variances"] == metrics.component_variances(x, target).tolist()
    assert card["sliced_w2"] == metrics.sliced_wasserstein(x, target, seed=3)
    assert card["eps_rmse"] < 1e-6
    assert card["score_rmse"] < 1e-3
    assert card["flow_nll"] == pytest.approx(target.entropy(), abs=0.02)
    # Scored against the base, a perfect model looks like the rows of the paper's Table 1.
    assert card["nll_base"] == pytest.approx(6.83, abs=5 * 2.9 / math.sqrt(1500) + 0.1)
    assert card["mean_mse_base"] == pytest.approx(2.0, abs=5 * 2 * math.sqrt(0.5 / 1500) + 0.1)


def test_score_card_is_fixed_by_its_seed(paper: GaussianMixture, target: GaussianMixture, cosine: Cosine) -> None:
    def card(seed: int) -> dict[str, object]:
        denoiser = ExactNoisePredictor(paper, cosine)
        return metrics.score_card(
            denoiser, cosine, paper, target=target, base=paper, samples=200, flow_samples=10, steps=10, seed=seed
        )

    torch.manual_seed(0)
    first = card(1)
    torch.manual_seed(1)
    assert card(1) == first
    assert all(value != first[key] for key, value in card(2).items() if key not in ("eps_rmse", "score_rmse"))


def test_a_score_card_asks_what_it_says(paper: GaussianMixture, target: GaussianMixture, cosine: Cosine) -> None:
    """Truth, target and base are three mixtures, and no knob has its default."""
    truth = paper.tilted(parse_reward("unequal"))
    denoiser, knobs = ExactNoisePredictor(truth, cosine), {"steps": 30, "eta": 0.5, "variance": "analytic"}
    card = metrics.score_card(
        denoiser, cosine, truth, target=target, base=paper, samples=700, flow_samples=40, seed=5, **knobs
    )
    generator = torch.Generator().manual_seed(5)
    x = sample(denoiser, cosine, 700, 2, generator=generator, **knobs)
    exact = truth.sample(40, generator).float()
    errors = metrics.score_errors(denoiser, truth, cosine, n=700, seed=5)
    assert card == {
        "nll_target": metrics.negative_log_likelihood(x, target),
        "nll_base": metrics.negative_log_likelihood(x, paper),
        "mean_mse_target": metrics.mean_mse(x, target),
        "mean_mse_base": metrics.mean_mse(x, paper),
        "mode_weights": metrics.mode_weights(x, truth).tolist(),
        "component_variances": metrics.component_variances(x, truth).tolist(),
        "sliced_w2": metrics.sliced_wasserstein(x, truth, seed=5),
        "score_rmse": errors.score_rmse,
        "eps_rmse": errors.eps_rmse,
        "flow_nll": metrics.flow_nll(denoiser, cosine, truth, exact),
    }


def test_mode_weights_do_not_start_from_the_answer() -> None:
    """One step of EM from equal proportions, whatever those of the mixture are."""
    mixture = GaussianMixture(torch.tensor([0.9, 0.1]), torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1, 1))
    (one_step,) = (metrics.mode_weights(torch.tensor([[0.0], [1.0]]), mixture, iterations=1),)
    right = 0.5 * (0.5 + 1 / (1 + math.exp(-2.0)))
    assert one_step.tolist() == pytest.approx([1 - right, right])


def test_equal_weights_are_all_effective() -> None:
    assert metrics.effective_sample_size(torch.full((7,), -300.0)) == pytest.approx(7.0, rel=1e-12)
    assert metrics.effective_sample_size(torch.tensor([0.0, -200.0])) == pytest.approx(1.0, rel=1e-12)
    assert metrics.effective_sample_size(torch.tensor([1.0, 2.0, 3.0]).log()) == pytest.approx(36 / 14, rel=1e-6)
