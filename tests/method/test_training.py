"""Denoising score matching (2.9), (2.10): what it converges to, when it stops and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import FromX0, Network
from itlib.schedules import Cosine, add_noise
from itlib.training import TrainingConfig, TrainingStep, regression_step, train_noise_predictor

SMALL = TrainingConfig(epochs=3, batch_size=32)


def small() -> Network:
    return Network(width=16, depth=2, embedding=8)


def data(n: int = 200, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def draws(
    mixture: GaussianMixture, schedule: Cosine, n: int, low: float = 0.0, high: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t, x_1) in single precision, t uniform on [low, high]."""
    g = torch.Generator().manual_seed(123)
    x_0, x_1 = mixture.sample(n, g).float(), torch.randn(n, mixture.d, generator=g)
    t = low + (high - low) * torch.rand(n, generator=g)
    return add_noise(schedule, x_0, x_1, t), t, x_1


# ---- one step ---------------------------------------------------------------------------------------------------------


def test_regression_step_is_one_step_of_gradient_descent() -> None:
    """On a linear network the gradient of mean_i w_i^2 ||W x_i - y_i||^2 is 2 mean_i w_i^2 (W x_i - y_i) x_i^T."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return x @ self.W.T

    network, x, y = Linear(), data(8).double(), data(8, 1).double()
    weight = torch.rand(8, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    error = weight**2 * (x @ network.W.detach().T - y)
    expected = network.W.detach() - 0.1 * 2 * error.T @ x / 8
    expected_loss = float((weight * (x @ network.W.detach().T - y)).square().sum() / 8)
    network.W.grad = torch.full((2, 2), 1e6, dtype=torch.float64)  # left over from before: must not leak in
    loss = regression_step(network, torch.optim.SGD(network.parameters(), lr=0.1), x, torch.zeros(8), y, weight)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-12)
    assert not loss.requires_grad
    torch.testing.assert_close(network.W.detach(), expected, rtol=1e-12, atol=1e-12)


# ---- what it learns ---------------------------------------------------------------------------------------------------


def test_the_loss_falls(trained: tuple[Network, list[TrainingStep]]) -> None:
    _, steps = trained
    assert [s.epoch for s in steps] == list(range(1, 16))
    assert steps[-1].train_loss < steps[0].train_loss
    assert steps[-1].validation_loss < 0.9 * steps[0].validation_loss
    best = min(steps, key=lambda s: s.validation_loss)
    assert steps[-1].best_epoch == best.epoch


def test_the_exact_denoiser_is_the_floor_of_the_loss(
    trained: tuple[Network, list[TrainingStep]], paper: GaussianMixture, cosine: Cosine
) -> None:
    """E||f - X_1||^2 - E||f* - X_1||^2 = E||f - f*||^2 for every f, which is why (2.10) learns the score."""
    network, steps = trained
    x_t, t, x_1 = draws(paper, cosine, 40_000)
    with torch.no_grad():
        f = network(x_t, t).double()
    exact = ExactNoisePredictor(paper, cosine)(x_t, t).double()
    excess = (f - x_1).square().sum(-1) - (exact - x_1).square().sum(-1)
    distance = (f - exact).square().sum(-1)
    error = float((excess - distance).std()) / 200
    assert float(excess.mean()) == pytest.approx(float(distance.mean()), abs=5 * error)
    assert float(distance.mean()) > 0
    # The validation loss of the returned weights is this loss, over 4 draws for each of 400 held-out samples.
    floor = (exact - x_1).square().sum(-1)
    expected = float((f - x_1).square().sum(-1).mean())
    assert min(s.validation_loss for s in steps) == pytest.approx(expected, abs=5 * float(floor.std()) / 20)
    # And the network has learned: it explains most of what a constant prediction does not.
    assert float(distance.mean()) < 0.1 * float((exact - exact.mean(0)).square().sum(-1).mean())


def test_training_leads_back_to_the_exact_denoiser(paper: GaussianMixture, cosine: Cosine) -> None:
    """(a, b) in a f*(x, t) + b starts at (0.7, 0.2, -0.2) and ends within a tenth of that distance of (1, 0, 0)."""

    class Affine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_b = nn.Parameter(torch.tensor([0.7, 0.2, -0.2]))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.a_b[0] * ExactNoisePredictor(paper, cosine)(x, t) + self.a_b[1:]

    network, optimum = Affine(), torch.tensor([1.0, 0.0, 0.0])
    start = network.a_b.detach().clone()
    x_0 = paper.sample(8000, torch.Generator().manual_seed(0))
    list(train_noise_predictor(network, x_0, cosine, TrainingConfig(epochs=10, batch_size=200, lr=1e-2)))
    assert float((network.a_b.detach() - optimum).norm()) < 0.1 * float((start - optimum).norm())


def test_both_predictions_learn_the_same_denoiser(
    trained: tuple[Network, list[TrainingStep]], paper: GaussianMixture, cosine: Cosine
) -> None:
    """In the middle of the time range, away from the divisions by sigma and alpha of (2.6)."""
    x0_network = Network(width=64, depth=3, embedding=32)
    config = TrainingConfig(epochs=15, batch_size=128, lr=2e-3, predict="x0")
    list(train_noise_predictor(x0_network, paper.sample(4000, torch.Generator().manual_seed(0)), cosine, config))
    x_t, t, _ = draws(paper, cosine, 5000, 0.2, 0.9)
    exact = ExactNoisePredictor(paper, cosine)(x_t, t)
    variance = (exact - exact.mean(0)).square().sum(-1).mean()
    with torch.no_grad():
        predictions = trained[0](x_t, t), FromX0(x0_network, cosine)(x_t, t)
    for prediction in (*predictions, predictions[0] - predictions[1] + exact):
        assert float((prediction - exact).square().sum(-1).mean() / variance) < 0.1


def test_the_x0_loss_is_2_9(cosine: Cosine) -> None:
    """A network that always answers zero has loss E||X_0||^2 (2.9) or E||X_1||^2 = d (2.10)."""

    class Zero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return 0 * self.w * x

    x_0 = torch.tensor([[3.0, 4.0]]).repeat(1000, 1)
    (x0_step,) = train_noise_predictor(Zero(), x_0, cosine, TrainingConfig(epochs=1, predict="x0", batch_size=100))
    assert (x0_step.train_loss, x0_step.validation_loss) == pytest.approx((25.0, 25.0))
    (x1_step,) = train_noise_predictor(Zero(), x_0, cosine, TrainingConfig(epochs=1, batch_size=100))
    assert x1_step.train_loss == pytest.approx(2.0, abs=5 * 2 / 900**0.5)  # chi-square of 2 degrees: variance 4
    assert x1_step.validation_loss == pytest.approx(2.0, abs=5 * 2 / 400**0.5)


# ---- early stopping ---------------------------------------------------------------------------------------------------


def test_early_stopping_waits_for_its_patience_and_returns_the_best_weights(cosine: Cosine) -> None:
    network = Network(width=32, depth=2, embedding=8)
    config = TrainingConfig(epochs=300, batch_size=8, lr=2e-2, patience=4, validation_fraction=0.3, averaging=0.0)
    steps, weights = [], []
    for step in train_noise_predictor(network, data(40), cosine, config):
        steps.append(step)
        weights.append(copy.deepcopy(network.state_dict()))
    losses = [s.validation_loss for s in steps]
    best = losses.index(min(losses))
    assert [s.best_epoch for s in steps] == [1 + losses.index(min(losses[: i + 1])) for i in range(len(losses))]
    assert len(steps) == best + 1 + 4 < 300
    final = network.state_dict()
    assert all(torch.equal(final[name], weights[best][name]) for name in final)
    assert any(not torch.equal(final[name], weights[-1][name]) for name in final)


def test_without_a_better_epoch_to_wait_for_all_epochs_are_run(cosine: Cosine) -> None:
    config = TrainingConfig(epochs=6, batch_size=8, lr=2e-2, patience=6, validation_fraction=0.3)
    assert len(list(train_noise_predictor(small(), data(40), cosine, config))) == 6


def test_validation_draws_are_made_once(cosine: Cosine) -> None:
    """With a learning rate that moves nothing, the validation loss is constant and the training loss is not."""
    config = TrainingConfig(epochs=4, batch_size=32, lr=1e-30)
    steps = list(train_noise_predictor(small(), data(), cosine, config))
    assert len({s.validation_loss for s in steps}) == 1
    assert len({s.train_loss for s in steps}) == 4


def test_what_is_returned_is_the_moving_average_of_the_weights(cosine: Cosine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decay min(a, (1 + n)/(10 + n)) at the n-th step, from the weights after the first step."""
    network, seen = small(), []

    def step(network: Network, *arguments: object) -> Tensor:
        loss = regression_step(network, *arguments)
        seen.append([p.detach().clone() for p in network.parameters()])
        return loss

    monkeypatch.setattr("itlib.training.regression_step", step)
    config = TrainingConfig(epochs=1, batch_size=4, lr=1e-2, validation_fraction=0.2, averaging=0.3)
    list(train_noise_predictor(network, data(100), cosine, config))
    expected = seen[0]
    for n, weights in enumerate(seen[1:], 1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = [decay * a + (1 - decay) * w for a, w in zip(expected, weights, strict=True)]
    assert len(seen) == 20
    assert all(torch.allclose(a, p, atol=1e-6) for a, p in zip(expected, network.parameters(), strict=True))
    assert not torch.allclose(seen[-1][0], expected[0], atol=1e-4)


# ---- determinism and errors -------------------------------------------------------------------------------------------


def test_the_seed_fixes_everything_and_the_global_state_plays_no_part(cosine: Cosine) -> None:
    runs = []
    for seed, global_seed in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(global_seed)
        network = small()
        runs.append((list(train_noise_predictor(network, data(), cosine, SMALL, seed=seed)), network.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
    assert runs[0][0] != runs[2][0]


def test_the_data_are_left_alone_and_converted(cosine: Cosine) -> None:
    x = data().double()
    before = x.clone()
    list(train_noise_predictor(small(), x, cosine, SMALL))
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"validation_fraction": 0.0},
        {"validation_fraction": 1.0},
        {"averaging": 1.0},
        {"averaging": -0.1},
        {"predict": "x2"},
    ],
)
def test_config_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        TrainingConfig(**arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.tensor([[0.0, math.nan]]).repeat(20, 1), "finite"),
        (torch.tensor([[0.0, math.inf]]).repeat(20, 1), "finite"),
        (torch.zeros(20), "shape"),
        (torch.zeros(1, 2), "split"),
        (torch.zeros(0, 2), "shape"),
    ],
)
def test_training_refuses(cosine: Cosine, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(train_noise_predictor(small(), x, cosine, SMALL))


def test_a_diverging_loss_is_an_error(cosine: Cosine) -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        list(train_noise_predictor(small(), data(), cosine, TrainingConfig(epochs=5, lr=1e30)))


def test_the_loop_is_the_one_that_is_written_here(cosine: Cosine) -> None:
    """Split, order, times, noises, Adam, its cosine decay and the average of the weights, number by number."""
    config, x = TrainingConfig(epochs=4, batch_size=30, lr=3e-3, validation_fraction=0.2, averaging=0.9), data(100)
    network, mine = small(), small()
    steps = list(train_noise_predictor(network, x, cosine, config, seed=7))
    generator = torch.Generator().manual_seed(7)
    order = torch.randperm(100, generator=generator)
    held_out, rest = x[order[:20]].repeat(4, 1), x[order[20:]]

    def drawn(x_0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.rand(len(x_0), generator=generator)
        x_1 = torch.randn(x_0.shape, generator=generator)
        return cosine.alpha(t).unsqueeze(1) * x_0 + cosine.sigma(t).unsqueeze(1) * x_1, t, x_1

    def loss(weights: list[Tensor], x_t: Tensor, t: Tensor, x_1: Tensor) -> Tensor:
        names = [name for name, _ in mine.named_parameters()]
        found: Tensor = torch.func.functional_call(mine, dict(zip(names, weights, strict=True)), (x_t, t))
        return (found - x_1).square().sum(1).mean()

    checks = drawn(held_out)
    weights = [p.detach().clone() for p in mine.parameters()]
    mean, square = ([torch.zeros_like(p) for p in weights] for _ in range(2))
    average, k, best = [p.clone() for p in weights], 0, (math.inf, weights)
    for epoch, step in enumerate(steps):
        lr = 3e-3 * 0.5 * (1 + math.cos(math.pi * epoch / 4))
        x_t, t, x_1 = drawn(rest[torch.randperm(80, generator=generator)])
        losses = []
        for i in range(0, 80, 30):
            live = [p.requires_grad_() for p in weights]
            value = loss(live, x_t[i : i + 30], t[i : i + 30], x_1[i : i + 30])
            gradients, k = torch.autograd.grad(value, live), k + 1
            losses.append(float(value.detach()))
            weights = [p.detach() for p in live]
            for j, g in enumerate(gradients):
                mean[j], square[j] = 0.9 * mean[j] + 0.1 * g, 0.999 * square[j] + 0.001 * g**2
                rise = (mean[j] / (1 - 0.9**k)) / ((square[j] / (1 - 0.999**k)).sqrt() + 1e-8)
                weights[j] = weights[j] - lr * rise
            share = 1 if k == 1 else 1 - min(0.9, (1 + k - 1) / (10 + k - 1))  # the first average is a copy
            average = [a + share * (p - a) for a, p in zip(average, weights, strict=True)]
        with torch.no_grad():
            validation = float(loss(average, *checks))
        assert step.train_loss == pytest.approx(sum(losses) / 3, rel=1e-4)
        assert step.validation_loss == pytest.approx(validation, rel=1e-4)
        best = min(best, (validation, average), key=lambda pair: pair[0])
    for p, q in zip(network.parameters(), best[1], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5)


def test_dropout_is_left_out_where_the_model_is_scored(cosine: Cosine) -> None:
    class Dropped(Network):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x, t), 0.5, self.training)

    config = TrainingConfig(epochs=2, batch_size=50, lr=1e-12, averaging=0.0)
    first, second = train_noise_predictor(Dropped(width=8, depth=2, embedding=4), data(), cosine, config)
    assert second.validation_loss == pytest.approx(first.validation_loss, rel=1e-6)
