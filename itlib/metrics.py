r"""The metrics of Section 4.2, with every definition spelled out, and some that show what these miss.

- **Score error** (4.13): :math:`\mathrm{RMSE}^2=\mathbb E\|s_\theta(X_t,t)-\nabla\log p_t(X_t)\|^2` with
  :math:`X_t` an *exact* draw and :math:`t\sim U[t_{\min},t_{\max}]`. The weight :math:`1/\sigma_t^2` makes the integral
  diverge as :math:`t_{\min}\to0`, so :math:`t_{\min}` belongs to the definition. The error in the units of the noise,
  :math:`\sqrt{\mathbb E\|\hat x_1^\theta-\hat x_1\|^2}`, needs no such care.
- **Negative log-likelihood** of samples under a known density. A shrunken model scores *below* the entropy, so this is
  never a verdict on its own.
- **MSE of the mean**, averaged over coordinates.
- **Mode weights**: maximum-likelihood proportions of the known components. **Component variances**: per coordinate, about
  the component's own sample mean.
- **Probability-flow NLL**: the cross-entropy :math:`-\mathbb E\log p_\theta` over exact draws, at least the entropy for
  every model. It is computed as entropy plus the mean of :math:`\log p^*-\log p_\theta` over the same draws, which
  cancels most of their noise.
- **Sliced Wasserstein distance** of order 2 to exact samples (POT).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from itlib._checks import LogWeights, Samples, autograd, checked
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.likelihood import log_likelihood
from itlib.network import NoisePredictor, device_of
from itlib.sampling import Variance, sample
from itlib.schedules import Schedule, add_noise


@checked
def effective_sample_size(log_w: LogWeights) -> float:
    """(sum w)^2 / sum w^2 from log weights, (n,); between 1 and n."""
    log_w = log_w.double()
    return float(torch.exp(2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)))


class ScoreErrors(NamedTuple):
    """Root mean square errors of a model: in the units of X_1, and of the score (4.13)."""

    eps_rmse: float
    score_rmse: float


@autograd
def score_errors(
    model: NoisePredictor,
    mixture: GaussianMixture,
    schedule: Schedule,
    *,
    n: int = 5000,
    seed: int = 0,
    truth: NoisePredictor | None = None,
) -> ScoreErrors:
    """Errors of a model at exact draws of X_t, t uniform on [t_min, t_max] of the schedule.

    Args:
        model: the one to judge.
        mixture: where X_0 is drawn from.
        schedule: the pair alpha, sigma.
        n: number of draws, each with its own time (the paper's 5,000).
        seed: fixes draws and times, so that two models can be compared on the same ones.
        truth: what to compare with; the exact noise predictor of the mixture by default.
    """
    generator = torch.Generator().manual_seed(seed)
    x_0 = mixture.sample(n, generator)
    t = schedule.t_min + (schedule.t_max - schedule.t_min) * torch.rand(n, generator=generator, dtype=torch.float64)
    x_1 = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    x_t = add_noise(schedule, x_0, x_1, t).float()
    device = device_of(model)
    with torch.no_grad():
        error = model(x_t.to(device), t.float().to(device)).cpu() - (truth or ExactNoisePredictor(mixture, schedule))(x_t, t)
    squared = error.double().square().sum(-1)
    return ScoreErrors(float(squared.mean().sqrt()), float((squared / schedule.sigma(t) ** 2).mean().sqrt()))


@checked
def negative_log_likelihood(samples: Samples, mixture: GaussianMixture) -> float:
    """Mean of -log p over samples, (n, d), in nats."""
    return -float(mixture.log_prob(samples.to(mixture.means)).mean())


def _double(samples: Tensor, mixture: GaussianMixture) -> Tensor:
    if samples.shape[1:] != mixture.mean.shape:
        raise ValueError(f"samples of this mixture have shape (n, {mixture.d}), got {tuple(samples.shape)}")
    return samples.to(mixture.means)


@checked
def mean_mse(samples: Samples, mixture: GaussianMixture) -> float:
    """Squared distance between the samples' mean, (n, d), and the mixture's, averaged over coordinates."""
    return float((_double(samples, mixture).mean(0) - mixture.mean).square().mean())


def _responsibilities(samples: Tensor, mixture: GaussianMixture, weights: Tensor) -> Tensor:
    """Posterior probability of each component, (n, K), under the given weights, (K,)."""
    component = mixture.distribution().component_distribution
    log_p: Tensor = component.log_prob(_double(samples, mixture).unsqueeze(1))
    return torch.softmax(log_p + weights.log(), dim=-1)


@checked
def mode_weights(samples: Samples, mixture: GaussianMixture, iterations: int = 200) -> Tensor:
    """Maximum-likelihood mixture proportions, (K,), of samples, (n, d), with the components held fixed (EM)."""
    weights = torch.full_like(mixture.weights, 1.0 / len(mixture.weights))
    for _ in range(iterations):
        weights = _responsibilities(samples, mixture, weights).mean(0).clamp_min(1e-300)
    return weights


@checked
def component_variances(samples: Samples, mixture: GaussianMixture) -> Tensor:
    """Variance of each coordinate within each component, (K, d), of samples, (n, d), about the component's own mean.

    Components are told apart by their responsibilities. A component that holds no sample gets NaN.
    """
    r = _responsibilities(samples, mixture, mode_weights(samples, mixture))
    mass = r.sum(0).unsqueeze(-1)
    x = samples.to(mixture.means)
    means = r.T @ x / mass
    variances = r.T @ x.square() / mass - means.square()
    return torch.where(mass > 1.0, variances, torch.nan)


@checked
def sliced_wasserstein(samples: Samples, mixture: GaussianMixture, *, seed: int = 0, projections: int = 200) -> float:
    """Sliced 2-Wasserstein distance between samples, (n, d), and as many exact draws of the mixture."""
    try:
        from ot import sliced_wasserstein_distance as distance  # here, because it takes as long to import as torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("sliced Wasserstein distances need POT: pip install 'itlib[metrics]'") from error

    exact = mixture.sample(len(samples), torch.Generator().manual_seed(seed))
    return float(distance(_double(samples, mixture).numpy(), exact.numpy(), n_projections=projections, seed=seed))


@autograd
def flow_nll(model: NoisePredictor, schedule: Schedule, mixture: GaussianMixture, exact: Samples) -> float:
    """Cross-entropy in nats of the model's probability flow under the mixture, from exact draws, (n, d)."""
    found = log_likelihood(model, schedule, exact.to(device_of(model)))
    gap = mixture.log_prob(exact.double()) - found.to(mixture.means)
    return mixture.entropy() + float(gap.mean())


@checked
def sample_card(
    x: Samples, truth: GaussianMixture, *, target: GaussianMixture, base: GaussianMixture, seed: int = 0
) -> dict[str, Any]:
    """The part of :func:`score_card` that needs only samples, (n, d); same arguments and keys."""
    return {
        "nll_target": negative_log_likelihood(x, target),
        "nll_base": negative_log_likelihood(x, base),
        "mean_mse_target": mean_mse(x, target),
        "mean_mse_base": mean_mse(x, base),
        "mode_weights": mode_weights(x, truth).tolist(),
        "component_variances": component_variances(x, truth).tolist(),
        "sliced_w2": sliced_wasserstein(x, truth, seed=seed),
    }


@autograd
def score_card(
    model: NoisePredictor,
    schedule: Schedule,
    truth: GaussianMixture,
    *,
    target: GaussianMixture,
    base: GaussianMixture,
    samples: int = 5000,
    flow_samples: int = 2000,
    steps: int = 200,
    eta: float = 1.0,
    variance: Variance = "ddpm",
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a model, by the keys of a run record.

    Args:
        model: the one to judge.
        schedule: the pair alpha, sigma.
        truth: what the model should match: the target after the tilts, the base before them.
        target: the exact tilted mixture. NLL and mean are scored against it and against the base.
        base: the exact base mixture.
        samples: number of model samples, drawn by Algorithm 1 (and of exact draws for the score errors).
        flow_samples: exact draws of the truth for the probability-flow NLL.
        steps: reverse steps of Algorithm 1.
        eta: its DDIM multiplier.
        variance: of its steps.
        seed: fixes all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    x = sample(model, schedule, samples, truth.d, steps=steps, eta=eta, variance=variance, generator=generator)
    errors = score_errors(model, truth, schedule, n=samples, seed=seed)
    return sample_card(x, truth, target=target, base=base, seed=seed) | {
        "score_rmse": errors.score_rmse,
        "eps_rmse": errors.eps_rmse,
        "flow_nll": flow_nll(model, schedule, truth, truth.sample(flow_samples, generator).float()),
    }
