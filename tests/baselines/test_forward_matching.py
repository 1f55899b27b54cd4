"""RAM, DiffusionNFT and advantage-weighted matching: their losses as printed, and one fixed point for the three."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.advantage_weighted import advantage_weighted, standardised
from itlib.baselines.reinforce_adjoint_matching import reinforce_adjoint
from itlib.beyond.estimators import centred
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network, NoisePredictor
from itlib.rewards import QuadraticReward, parse_reward
from itlib.schedules import Cosine
from itlib.tilting import TiltBatch, TiltingConfig, Update, explicit, iterative_tilting

F64 = torch.float64
SCHEDULE = Cosine()
X, T = torch.tensor([[0.6, 0.9]], dtype=F64), torch.tensor(0.5, dtype=F64)
GAUSSIAN = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])


def batch_of(law: GaussianMixture, reward: QuadraticReward, n: int) -> TiltBatch:
    """Draws of the clean sample behind one noisy point of a law, whose exact denoiser is the teacher."""
    alpha, sigma = SCHEDULE.alpha(T), SCHEDULE.sigma(T)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x_0 = law.posterior(X, T, SCHEDULE).sample((n,))[:, 0]
    eps = ExactNoisePredictor(law, SCHEDULE)(X, T).expand(n, 2)
    return TiltBatch(1, x_0, reward(x_0), T.expand(n), (X - alpha * x_0) / sigma, X.expand(n, 2), eps, reward(x_0))


def pull(target: Tensor, batch: TiltBatch) -> tuple[Tensor, Tensor]:
    """Where the regression moves the student from the teacher, (2,), and the standard error of that."""
    moves = target - batch.eps_old
    return moves.mean(0), moves.std(0) / len(moves) ** 0.5


def negative_aware(base: NoisePredictor, *, beta: float = 1.0, kappa: float = 1e-4, clip: float = 5.0) -> Update:
    """The loss of DiffusionNFT (arXiv 2509.16117), its square completed: the step of a tilt is ignored.

    ``beta`` is the share of the student in its two mixtures with the old model, ``kappa`` the weight of the distance to the
    base, and ``clip`` the advantage, in standard deviations, that counts as surely good.
    """

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        A = standardised(batch.r, batch.rewards, clip).unsqueeze(-1)
        with torch.no_grad():
            anchor = base(batch.x_t, batch.t)
        weight = beta * clip + kappa
        target = (beta * clip * batch.eps_old + A * (batch.z - batch.eps_old) + kappa * anchor) / weight
        return target, torch.tensor(math.sqrt(weight))

    return update


@pytest.mark.parametrize("lam", [0.5, 1.0])
def test_a_gaussian_tilted_linearly_stays(lam: float) -> None:
    """There the posterior's covariance does not change with the strength, and the tilt is the fixed point."""
    reward = QuadraticReward(torch.tensor([0.5, -1.0]))
    batch = batch_of(GAUSSIAN.tilted(reward, lam), reward, 200_000)
    for is_centred in (False, True):
        target, factor = reinforce_adjoint(ExactNoisePredictor(GAUSSIAN, SCHEDULE), lam, centred=is_centred)(batch, 0.1)
        mean, error = pull(target, batch)
        assert float(factor) == 1.0
        assert bool((mean.abs() < 4.5 * error).all()), (mean, error)


def test_a_mixture_is_pulled_past_its_tilt(paper: GaussianMixture) -> None:
    """By lam C_lam minus the integral of C over strengths; C in closed form, the integral by Simpson's rule."""
    reward, lam = parse_reward("one-mode"), 0.5
    batch = batch_of(paper.tilted(reward, lam), reward, 400_000)
    mean, error = pull(reinforce_adjoint(ExactNoisePredictor(paper, SCHEDULE), lam)(batch, 0.1)[0], batch)
    nodes = torch.linspace(0.0, lam, 41, dtype=F64)
    C = torch.stack([paper.tilted(reward, float(s)).covariance(X, T, SCHEDULE, reward)[0] for s in nodes])
    simpson = torch.tensor([1.0, *([4.0, 2.0] * 19), 4.0, 1.0], dtype=F64)
    integral = (simpson.unsqueeze(-1) * C).sum(0) * lam / 120
    exact = -SCHEDULE.sigma(T) * (lam * C[-1] - integral)
    assert bool(((mean - exact).abs() < 4.5 * error).all()), (mean, exact, error)
    assert float(exact.norm()) > 20 * float(error.norm())


def test_the_three_have_one_fixed_point(paper: GaussianMixture) -> None:
    """Their pulls are the same up to a factor, sample by sample, at the strength 1 / (kappa std)."""
    reward, kappa, beta, clip = parse_reward("unequal"), 0.3, 0.7, 50.0
    batch, base = batch_of(paper.tilted(reward, 0.4), reward, 500), ExactNoisePredictor(paper, SCHEDULE)
    lam = 1.0 / (kappa * float(batch.rewards.std()))
    ram, awm = reinforce_adjoint(base, lam, centred=True)(batch, 0.1)[0], advantage_weighted(base, kappa=kappa, clip=clip)
    torch.testing.assert_close(kappa * (ram - batch.eps_old), awm(batch, 0.1)[0] - batch.eps_old)
    target, factor = negative_aware(base, beta=beta, kappa=kappa, clip=clip)(batch, 0.1)
    torch.testing.assert_close(factor**2 * (target - batch.eps_old), awm(batch, 0.1)[0] - batch.eps_old)


def test_without_a_penalty_nft_is_an_explicit_step(paper: GaussianMixture) -> None:
    reward, beta, clip = parse_reward("unequal"), 0.7, 50.0
    batch = batch_of(paper, reward, 500)
    ours = negative_aware(ExactNoisePredictor(paper, SCHEDULE), beta=beta, kappa=0.0, clip=clip)(batch, 9.9)[0]
    theirs = explicit(centred())(batch, 1.0 / (beta * clip * float(batch.rewards.std())))[0]
    torch.testing.assert_close(ours, theirs)


def gradients(network: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def test_gradients_are_those_of_the_losses_as_printed(paper: GaussianMixture) -> None:
    """With a student that is not the teacher for RAM and NFT; AWM's ratio is 1 where student and teacher agree."""
    batch, base = batch_of(paper, parse_reward("one-mode"), 64), ExactNoisePredictor(paper, SCHEDULE)
    network, lam, beta, kappa, clip = Network(width=16, depth=2, embedding=8).double(), 0.7, 0.6, 0.2, 1.5
    eps, anchor = network(batch.x_t, batch.t), base(batch.x_t, batch.t)
    r = batch.r.unsqueeze(-1)

    def ours(found: tuple[Tensor, Tensor]) -> Tensor:
        return gradients(network, (found[1] * (network(batch.x_t, batch.t) - found[0])).square().sum(-1).mean())

    printed = (eps - (anchor + lam * r * (batch.z - batch.eps_old))).square().sum(-1).mean()
    torch.testing.assert_close(ours(reinforce_adjoint(base, lam)(batch, 0.1)), gradients(network, printed))

    A = standardised(batch.r, batch.rewards, clip).unsqueeze(-1)
    assert 0 < int((A.abs() == clip).sum()) < len(A)  # some are clipped
    eps, good = network(batch.x_t, batch.t), 0.5 + 0.5 * A / clip
    plus, minus = (batch.eps_old + sign * beta * (eps - batch.eps_old) - batch.z for sign in (1, -1))
    printed = clip / beta * (good * plus.square() + (1 - good) * minus.square()) + kappa * (eps - anchor).square()
    nft = negative_aware(base, beta=beta, kappa=kappa, clip=clip)(batch, 0.1)
    torch.testing.assert_close(ours(nft), gradients(network, printed.sum(-1).mean()))

    eps = network(batch.x_t, batch.t)
    same = TiltBatch(**{**vars(batch), "eps_old": eps.detach()})
    log_p = -(eps - batch.z).square().sum(-1)
    ratio = torch.exp(log_p - log_p.detach())
    printed = (-A.squeeze(-1) * ratio + kappa * (eps - anchor).square().sum(-1)).mean()
    awm = advantage_weighted(base, kappa=kappa, clip=clip)(same, 0.1)
    torch.testing.assert_close(ours(awm), gradients(network, printed))


class Tilt(nn.Module):
    """The exact denoiser of N(0, I) plus a shift by sigma alpha: its tilts by linear rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.shift = ExactNoisePredictor(GAUSSIAN, SCHEDULE), nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (SCHEDULE.sigma(t.double()) * SCHEDULE.alpha(t.double())).unsqueeze(-1)
        return self.exact(x, t) + self.shift * scale


@pytest.mark.parametrize("name", ["ram", "awm", "nft"])
def test_rounds_end_there(name: str) -> None:
    """For r(x) = x_2 at strength 1 the shift of the tilt is (0, -1); std(r) is 1 all the way."""
    base, reward = Tilt().requires_grad_(False), QuadraticReward(torch.tensor([0.0, 1.0]))
    update = {
        "ram": reinforce_adjoint(base),
        "awm": advantage_weighted(base, kappa=1.0),
        "nft": negative_aware(base, beta=0.2, kappa=1.0),
    }[name]
    config = TiltingConfig(N=30, S=2000, J=50, B=500, E=40, lr=0.02)
    shifts = [
        step.model.shift.detach().clone() for step in iterative_tilting(Tilt(), reward, SCHEDULE, config, update=update)
    ]
    end = torch.stack(shifts[-15:])
    error = end.std(0) / 15**0.5 * 2  # rounds are correlated
    assert bool(((end.mean(0) - torch.tensor([0.0, -1.0])).abs() < 4 * error + 1 / config.J).all()), (end.mean(0), error)


def test_a_network_takes_rounds(paper: GaussianMixture) -> None:
    base = Network(width=16, depth=2, embedding=8)
    config = TiltingConfig(N=2, S=64, J=4, B=16, E=5, lr=1e-3)
    for update in (reinforce_adjoint(base), advantage_weighted(base), negative_aware(base)):
        steps = list(iterative_tilting(base, lambda x: x[:, 1], Cosine(), config, update=update))
        assert all(bool(torch.isfinite(step.losses).all()) for step in steps)
