"""DDPO and DPOK: their gradient against that through the sampler, their optimum, and forward evaluations only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from itlib.baselines.accounting import NoisySteps, trajectory
from itlib.baselines.draft import DraftConfig, rollout
from itlib.baselines.policy_gradient import PolicyGradientConfig, policy_gradient
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.rewards import ForwardOnly
from itlib.sampling import time_grid, transition
from itlib.schedules import Cosine
from itlib.tilting import derive_seed

F64 = torch.float64
GAUSSIAN = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])


class Tilt(nn.Module):
    """The exact denoiser of N(0, I) plus a shift by sigma alpha: its tilts by linear rewards."""

    def __init__(self) -> None:
        super().__init__()
        self.exact, self.shift = ExactNoisePredictor(GAUSSIAN, Cosine()), nn.Parameter(torch.zeros(2, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale = (Cosine().sigma(t.double()) * Cosine().alpha(t.double())).unsqueeze(-1)
        return self.exact(x, t) + self.shift * scale


def test_the_score_function_gradient_is_the_pathwise_one() -> None:
    """Two estimators of the gradient of E[r], which share nothing but the sampler; the last step is the base's in both."""
    model, n, steps = Tilt(), 20_000, 10
    with torch.no_grad():
        model.shift += torch.tensor([0.2, -0.3])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, generator=generator, dtype=F64)
    states = trajectory(model, model.exact, Cosine(), x, steps, generator)
    batch = NoisySteps.of(states, model.exact, Cosine())
    rewards = states[-1][:, 1] + 0.3 * states[-1][:, 0].square()
    # The density of every step is an affine function of the shift near the current one: one gradient a sample.
    eps = model(batch.x, batch.t)
    _, a, b, std = batch.step
    scale = (Cosine().sigma(batch.t) * Cosine().alpha(batch.t)).unsqueeze(-1)
    per_step = (batch.arrived - a * batch.x - b * eps.detach()) / std**2 * b * scale
    per_sample = per_step.reshape(steps - 1, n, 2).sum(0) * (rewards - rewards.mean()).unsqueeze(-1)
    (total,) = torch.autograd.grad(
        (batch.log_density(eps).reshape(steps - 1, n).sum(0) * (rewards - rewards.mean())).mean(), model.shift
    )
    torch.testing.assert_close(total, per_sample.mean(0))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 2, generator=generator, dtype=F64)
    samples, _ = rollout(model, model.exact, Cosine(), x, DraftConfig(J=steps, kl=1.0), generator)
    (pathwise,) = torch.autograd.grad((samples[:, 1] + 0.3 * samples[:, 0].square()).mean(), model.shift)
    assert bool(((total - pathwise).abs() < 4.5 * per_sample.std(0) / n**0.5).all())


def test_the_steps_of_a_batch_have_the_densities_of_the_sampler() -> None:
    """The standardised steps are standard normal draws, and the KL is that of two Gaussians of equal covariance."""
    model = Tilt()
    with torch.no_grad():
        model.shift += torch.tensor([0.5, 0.0])
    generator = torch.Generator().manual_seed(0)
    states = trajectory(model, model.exact, Cosine(), torch.randn(500, 2, generator=generator, dtype=F64), 20, generator)
    batch = NoisySteps.of(states, model.exact, Cosine())
    _, a, b, std = batch.step
    eps = model(batch.x, batch.t).detach()
    z = (batch.arrived - a * batch.x - b * eps) / std
    assert abs(float(z.mean())) < 4 / (2 * len(z)) ** 0.5
    assert abs(float(z.var()) - 1) < 4 * (2 / (2 * len(z))) ** 0.5
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(
        normal(a * batch.x + b * eps, std), normal(a * batch.x + b * batch.eps_base, std)
    )
    torch.testing.assert_close(batch.kl(eps), exact.sum(-1))
    density = normal(a * batch.x + b * eps, std).log_prob(batch.arrived).sum(-1)
    difference = density - batch.log_density(eps) + 2 * std.log().squeeze(-1)
    assert float(difference.std()) < 1e-9


class Bent(Tilt):
    """A shift that depends on where it is asked, so that the KL of a step differs from sample to sample."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + self.shift[0] * x.tanh() * Cosine().sigma(t.double()).unsqueeze(-1)


def written_out(model: nn.Module, base: nn.Module, states: list[Tensor], j: int) -> tuple[Tensor, Tensor]:
    """Log-densities of step j of some trajectories, and its KL to the base; step 0 leaves the noise."""
    J, normal = len(states) - 1, torch.distributions.Normal
    times = time_grid(Cosine(), J)
    t = torch.tensor(times[J - j], dtype=F64)
    a, b, std = transition(Cosine(), times[J - j - 1], times[J - j], 1.0)
    one, other = (normal(a * states[j] + b * f(states[j], t), std) for f in (model, base))
    return one.log_prob(states[j + 1]).sum(1), torch.distributions.kl_divergence(one, other).sum(1)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"clip": 0.01, "updates": 4},
        {"advantage_clip": 0.5},
        {"kl": 0.7},
        {"kl": 0.7, "future_kl": True},
        {"kl": 0.7, "future_kl": True, "clip": 0.01, "advantage_clip": 0.3},
    ],
    ids=str,
)
def test_the_steps_are_those_of_the_formulas(knobs: dict[str, float]) -> None:
    """Written out trajectory by trajectory and step by step, for two batches: the second starts away from the base."""
    config = PolicyGradientConfig(**{"iterations": 2, "updates": 3, "lam": 1.5, "B": 6, "J": 5, "lr": 0.2} | knobs)

    def reward(x: Tensor) -> Tensor:
        return x[:, 1] + 0.3 * x[:, 0].square()

    *_, last = policy_gradient(Bent(), reward, Cosine(), config, seed=3)
    model, base = Bent(), Bent()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    for k in (1, 2):
        generator = torch.Generator().manual_seed(derive_seed(3, "policy gradient", k))
        x = torch.randn(config.B, 2, generator=generator, dtype=F64)
        states = [s.detach() for s in trajectory(model, base, Cosine(), x, config.J, generator)]
        r = config.lam * reward(states[-1])
        noisy = range(config.J - 1)
        with torch.no_grad():
            before = [written_out(model, base, states, j) for j in noisy]
            gains = []
            for j in noisy:
                later = sum((before[i][1] for i in noisy if i > j), torch.zeros(config.B, dtype=F64))
                gain = r - (config.kl * later if config.future_kl else 0.0)
                gain = gain - gain.mean()
                gain = gain if config.kl else gain / gain.std()
                gains.append(gain.clamp(-config.advantage_clip, config.advantage_clip))
        for _ in range(config.updates):
            loss = torch.zeros((), dtype=F64)
            for j in noisy:
                density, kl = written_out(model, base, states, j)
                for i in range(config.B):
                    ratio, gain = torch.exp(density[i] - before[j][0][i]), gains[j][i]
                    kept = ratio.clamp(1 - config.clip, 1 + config.clip)
                    loss = loss - (torch.minimum(ratio * gain, kept * gain) - config.kl * kl[i]) / config.B
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(last.model.shift, model.shift)
    assert last.loss == pytest.approx(float(loss.detach()))


def last(**knobs: object) -> Tensor:
    """Mean shift over the last third of a run with r(x) = x_2."""
    config = PolicyGradientConfig(B=512, J=20, lr=3e-2, iterations=60, **knobs)
    steps = [s.model.shift.tolist() for s in policy_gradient(Tilt(), ForwardOnly(lambda x: x[:, 1]), Cosine(), config)]
    return torch.tensor(steps[-20:]).mean(0)


def test_where_they_end() -> None:
    """The exact tilt has the shift (0, -1); with the whole KL that is the optimum, without it there is none."""
    ddpo = last()
    exact = last(kl=1.0, future_kl=True, updates=1)
    assert float(ddpo[1]) < -1.7
    assert float(exact[1]) == pytest.approx(-0.79, abs=0.15)  # 20 steps lose a fifth, as in Adjoint Matching
    assert abs(float(exact[0])) < 0.15


def test_dpok_learns_a_value() -> None:
    network = Network(width=16, depth=2, embedding=8)
    config = PolicyGradientConfig(iterations=3, updates=2, kl=1.0, value=True, B=16, J=5)
    steps = list(policy_gradient(network, ForwardOnly(lambda x: x[:, 0]), Cosine(), config))
    assert len(steps) == 3
    assert (steps[-1].counts.reward, steps[-1].counts.reward_gradient) == (48, 0)


def test_refuses() -> None:
    for knobs, message in (
        ({"B": 1}, "B and J"),
        ({"clip": 0.0}, "clip must be"),
        ({"future_kl": True}, "kl above 0"),
        ({"kl": -1.0}, "kl must be"),
        ({"lr": 0.0}, "lr must"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyGradientConfig(**knobs)
    with pytest.raises(ValueError, match="NaN"):
        next(policy_gradient(Network(width=8, depth=1, embedding=4), lambda x: x[:, 0] * float("nan"), Cosine()))
