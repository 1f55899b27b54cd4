"""Corrections in whitened coordinates: exact where they should be, bounded where they should be, and savable."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from itlib.beyond.preconditioning import Gaussian, adapter, gaussian_skip_network
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network
from itlib.schedules import Cosine, Linear, Schedule

COVARIANCE = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=torch.float64)


def data(n: int = 500, seed: int = 0) -> torch.Tensor:
    law = GaussianMixture(torch.ones(1), torch.tensor([[1.0, -2.0]]), COVARIANCE.unsqueeze(0))
    return law.sample(n, torch.Generator().manual_seed(seed)).float()


def noised(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 3 * torch.randn(n, 2, generator=generator), torch.rand(n, generator=generator)


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
def test_a_gaussian_has_the_denoiser_of_its_moments(schedule: Schedule) -> None:
    samples, (x, t) = data(), noised()
    t = t.clamp(schedule.t_min, schedule.t_max)
    law = GaussianMixture(torch.ones(1), samples.mean(0, keepdim=True), samples.double().T.cov().unsqueeze(0))
    torch.testing.assert_close(
        Gaussian(samples, schedule)(x, t), ExactNoisePredictor(law, schedule)(x, t), rtol=1e-4, atol=1e-5
    )


def test_one_time_for_all_is_the_same_as_one_time_each() -> None:
    network = adapter(gaussian_skip_network(data(), Cosine(), seed=1), data(), Cosine(), seed=2)
    torch.nn.init.normal_(network.correction.get_parameter("network.output.weight"))
    x, _ = noised()
    torch.testing.assert_close(network(x, torch.tensor(0.3)), network(x, torch.full((len(x),), 0.3)))


def test_whitened_samples_have_unit_variance_at_every_time() -> None:
    samples = data(20_000)
    gaussian, schedule = Gaussian(samples, Cosine()), Cosine()
    for time in (0.01, 0.4, 0.9):
        t = torch.tensor(time)
        z = torch.randn(samples.shape, generator=torch.Generator().manual_seed(3))
        w = gaussian.whiten(schedule.alpha(t) * samples + schedule.sigma(t) * z, t)[-1]
        torch.testing.assert_close(w.T.cov(), torch.eye(2), rtol=0, atol=0.05)  # five standard errors


def test_both_start_as_what_they_correct() -> None:
    samples, (x, t) = data(), noised()
    base = Network(2, width=16, depth=2, embedding=8, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(
            gaussian_skip_network(samples, Cosine())(x, t), Gaussian(samples, Cosine())(x, t), rtol=0, atol=0
        )
        torch.testing.assert_close(adapter(base, samples, Cosine())(x, t), base(x, t), rtol=0, atol=0)


def test_an_adapter_trains_little_and_leaves_the_base_alone() -> None:
    base = Network(2)
    network = adapter(base, data(), Cosine())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained < 0.05 * sum(p.numel() for p in base.parameters())
    assert all(p.requires_grad for p in base.parameters())  # a copy was frozen
    x, t = noised()
    network(x, t).square().sum().backward()
    assert all(p.grad is None for p in base.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_the_correction_of_a_score_is_bounded_far_away(seed: int) -> None:
    """From a thousand to a million the correction of an adapter grows no more, that of a base network does."""
    samples = data()
    network = adapter(Gaussian(samples, Cosine()), samples, Cosine(), seed=seed)
    plain = gaussian_skip_network(samples, Cosine(), seed=seed)
    for one in (network, plain):
        torch.nn.init.normal_(one.correction.get_parameter("network.output.weight"))
    direction = torch.nn.functional.normalize(torch.randn(50, 2, generator=torch.Generator().manual_seed(seed)), dim=1)
    t = torch.full((50,), 0.5)

    def size(one: torch.nn.Module, radius: float) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = one.get_submodule("correction")(radius * direction, t).norm(dim=1)
        return found

    assert float((size(network, 1e6) / size(network, 1e3)).median()) < 2
    assert float((size(plain, 1e6) / size(plain, 1e3)).median()) > 100


def test_a_state_can_be_saved_and_loaded_into_other_data() -> None:
    network = adapter(gaussian_skip_network(data(), Cosine(), seed=1), data(seed=1), Cosine(), seed=2)
    torch.nn.init.normal_(network.correction.get_parameter("network.output.weight"))
    state = safetensors.torch.load(safetensors.torch.save(network.state_dict()))
    other = adapter(gaussian_skip_network(2, Cosine()), 2, Cosine())
    other.load_state_dict(state)
    x, t = noised()
    torch.testing.assert_close(other(x, t), network(x, t), rtol=0, atol=0)


@pytest.mark.parametrize("samples", [torch.zeros(10, 2), torch.randn(2, 3), torch.arange(10.0).unsqueeze(1).expand(10, 2)])
def test_data_without_variance_are_refused(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no variance in some direction"):
        Gaussian(samples, Cosine())


@pytest.mark.parametrize("schedule", [Cosine(), Linear()])
@pytest.mark.parametrize("tilt", [False, True])
def test_corrections_are_those_of_the_formula(schedule: Schedule, tilt: bool) -> None:
    """Point by point, with the moments of the data: whitened on the way in, scaled to what is left on the way out."""
    mixing = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.5, -0.4], [0.3, 0.0, 2.0]])
    data = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) @ mixing + torch.tensor([1.0, -2.0, 0.5])
    base = ExactNoisePredictor(GaussianMixture(torch.ones(1), torch.zeros(1, 3), torch.eye(3)[None]), schedule)
    model = adapter(base, data, schedule, seed=4) if tilt else gaussian_skip_network(data, schedule, seed=4)
    kind = (64, 2, 32, 0.5, 4, True) if tilt else (64, 3, 32, 0.5, 4)
    network = Network(3, *kind)
    for (name, ours), theirs in zip(
        model.correction.network.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs) != name.startswith("output"), name  # the last layer alone starts at zero
    torch.nn.init.normal_(model.correction.output.weight)
    mean, covariance = data.double().mean(0), data.double().T.cov()
    values, vectors = (torch.from_numpy(v) for v in np.linalg.eigh(covariance.numpy()))
    # The signs of eigenvectors are a library's choice, and the network sees them.
    vectors = vectors * (vectors * model.correction.gaussian.eigenvectors).sum(0).sign()
    x, t = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), torch.rand(20) * 0.98 + 0.01
    for i in range(20):
        alpha, sigma = float(schedule.alpha(t[i].double())), float(schedule.sigma(t[i].double()))
        v = alpha**2 * values + sigma**2
        w = vectors.T @ (x[i].double() - alpha * mean) / v.sqrt()
        learned = model.correction.network(w.float()[None], t[i : i + 1])[0].double()
        scale = alpha * values.sqrt() / v.sqrt() * (sigma / v.sqrt() if tilt else 1.0)
        found = model.correction(x[i : i + 1], t[i : i + 1])[0].double()
        torch.testing.assert_close(found, vectors @ (scale * learned), rtol=1e-3, atol=1e-5)
