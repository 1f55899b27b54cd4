"""Tilt Matching and reward-weighted regression: their fixed points are exact, their gradients are those of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from itlib.baselines.reward_weighted import reweighted
from itlib.beyond.estimators import centred
from itlib.beyond.implicit import implicit, log_mean_exp
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import QuadraticReward, parse_reward
from itlib.schedules import Cosine
from itlib.tilting import (
    TiltBatch,
    TiltingConfig,
    Update,
    explicit,
    iterative_tilting,
    single_sample,
)

F64 = torch.float64
X, T = torch.tensor([[0.6, 0.9]], dtype=F64), torch.tensor(0.5, dtype=F64)


def posterior_batch(mixture: GaussianMixture, reward: QuadraticReward, n: int, seed: int) -> TiltBatch:
    """Draws of the clean sample behind one noisy point, with the exact teacher."""
    schedule = Cosine()
    alpha, sigma = schedule.alpha(T), schedule.sigma(T)
    generator = torch.Generator().manual_seed(seed)
    log_w, means, covariances = mixture._posterior(X, T, schedule)
    component = torch.multinomial(log_w[0].exp(), n, replacement=True, generator=generator)
    roots = torch.linalg.cholesky(covariances[0])
    x_0 = means[0][component] + torch.einsum(
        "nij,nj->ni", roots[component], torch.randn(n, 2, generator=generator, dtype=F64)
    )
    z = (X - alpha * x_0) / sigma
    eps_old = ExactNoisePredictor(mixture, schedule)(X, T).expand(n, 2)
    return TiltBatch(1, x_0, reward(x_0), T.expand(n), z, X.expand(n, 2), eps_old, reward(x_0))


def minimiser(update: Update, batch: TiltBatch, delta: float) -> torch.Tensor:
    """What the regression returns at the point, (2,): the weighted mean of the targets."""
    target, factor = update(batch, delta)
    weight = (factor**2).expand(len(target), 1)
    return (weight * target).sum(0) / weight.sum()


@pytest.mark.parametrize("update", [implicit, reweighted])
@pytest.mark.parametrize("delta", [0.1, 0.5])
def test_the_fixed_point_is_the_exact_tilt_for_any_step(paper: GaussianMixture, update: Update, delta: float) -> None:
    """Error of the regression at one point against the number of samples: slope -1/2, with no floor."""
    reward = parse_reward("one-mode")
    exact = ExactNoisePredictor(paper.tilted(reward, delta), Cosine())(X, T)[0]
    sizes, errors = [1000, 4000, 16000, 64000], []
    for n in sizes:
        gaps = [minimiser(update, posterior_batch(paper, reward, n, seed), delta) - exact for seed in range(60)]
        errors.append(float(torch.stack(gaps).square().sum(-1).mean().sqrt()))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert abs(slope + 0.5) < 0.1, errors


def test_the_explicit_form_keeps_a_remainder_of_second_order(paper: GaussianMixture) -> None:
    reward, remainders = parse_reward("one-mode"), []
    for delta in (0.05, 0.1, 0.2):
        batch = posterior_batch(paper, reward, 400_000, 0)
        ours, exact = minimiser(explicit(centred()), batch, delta), minimiser(implicit, batch, delta)
        gap = ours - exact  # the same draws: noise cancels
        remainders.append(float(gap.norm()))
    slope = np.polyfit(np.log([0.05, 0.1, 0.2]), np.log(remainders), 1)[0]
    assert abs(slope - 2) < 0.2


def test_the_explicit_form_is_algorithm_2(paper: GaussianMixture) -> None:
    batch = posterior_batch(paper, parse_reward("paper"), 50, 0)
    ours, theirs = explicit(single_sample)(batch, 0.3), explicit(centred(0.0))(batch, 0.3)
    torch.testing.assert_close(ours, theirs)
    shifted = explicit(centred(2.0))(batch, 0.3)[0]
    torch.testing.assert_close(shifted, ours[0] - 0.3 * 2.0 * (batch.z - batch.eps_old))


def test_the_implicit_gradient_is_the_papers(paper: GaussianMixture) -> None:
    """The weighted regression against the form with a stopped gradient, through autograd."""
    batch, delta = posterior_batch(paper, parse_reward("unequal"), 64, 1), 0.4
    network = Network(width=16, depth=2, embedding=8).double()
    u = (delta * batch.r - log_mean_exp(batch, delta)).unsqueeze(-1)
    assert float(u.exp().mean()) == pytest.approx(1.0)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    eps = network(batch.x_t, batch.t)
    printed = eps - (batch.eps_old + torch.expm1(u) * (batch.z - eps.detach()))
    target, factor = implicit(batch, delta)
    ours = factor * (network(batch.x_t, batch.t) - target)
    torch.testing.assert_close(gradient(ours.square().sum(-1).mean()), gradient(printed.square().sum(-1).mean()))


@pytest.mark.parametrize("update", [implicit, reweighted, explicit(centred())])
def test_each_is_an_update_of_iterative_tilting(update: Update) -> None:
    config = TiltingConfig(N=2, S=64, J=4, B=16, E=5, lr=1e-3)
    steps = list(
        iterative_tilting(Network(width=16, depth=2, embedding=8), lambda x: x[:, 1], Cosine(), config, update=update)
    )
    assert len(steps) == 2
    assert all(torch.isfinite(step.losses).all() for step in steps)


def test_a_constant_reward_is_no_tilt(paper: GaussianMixture) -> None:
    batch = posterior_batch(paper, QuadraticReward(torch.zeros(2), c=7.0), 32, 0)
    target, factor = implicit(batch, 0.5)
    torch.testing.assert_close(target, batch.eps_old)
    torch.testing.assert_close(factor, torch.ones_like(factor))
    torch.testing.assert_close(explicit(centred())(batch, 0.5)[0], batch.eps_old)
