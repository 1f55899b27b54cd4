"""Algorithm 2: its covariance estimate, its regression, its bookkeeping, and one tilt that must succeed."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from oracles import random_mixture, random_reward
from torch import Tensor, nn

from itlib import tilting
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.metrics import score_errors
from itlib.network import Network, NoisePredictor, Residual
from itlib.rewards import ForwardOnly, QuadraticReward, parse_reward
from itlib.schedules import Cosine, Linear, Schedule, add_noise, column
from itlib.tilting import (
    EqualSteps,
    TiltBatch,
    TiltingConfig,
    TiltState,
    TiltStep,
    derive_seed,
    exact_covariance,
    exact_samples,
    explicit,
    iterative_tilting,
    single_sample,
    tilt_path,
    trainable_copy,
)

F64 = torch.float64
EXACT = ExactNoisePredictor(paper_mixture(), Cosine())
QUICK = TiltingConfig(N=3, S=64, J=4, B=16, E=5, lr=1e-3)


def small(seed: int = 0) -> Network:
    return Network(width=16, depth=2, embedding=8, seed=seed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def ones(batch: TiltBatch) -> Tensor:
    return torch.ones_like(batch.x_t)


class Recorder:
    """An estimator that keeps what it was shown."""

    def __init__(self, estimator: object = ones) -> None:
        self.estimator, self.batches = estimator, []

    def __call__(self, batch: TiltBatch) -> Tensor:
        assert not torch.is_grad_enabled()
        self.batches.append(batch)
        return self.estimator(batch)

    def all(self, name: str) -> Tensor:
        return torch.cat([getattr(b, name) for b in self.batches])


# ---- the covariance estimate ------------------------------------------------------------------------------------------


def batch_at(
    mixture: GaussianMixture, schedule: Schedule, reward: QuadraticReward, x_t: Tensor, t: float, n: int
) -> TiltBatch:
    """n draws of X_0 from the exact posterior at one point x_t (d,), with the noise that leads from each to x_t."""
    time = torch.tensor(t, dtype=F64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x_0 = mixture.posterior(x_t[None], time, schedule).sample((n,))[:, 0]
    z = (x_t - schedule.alpha(time) * x_0) / schedule.sigma(time)
    eps_old = ExactNoisePredictor(mixture, schedule)(x_t[None], time).expand(n, -1)
    return TiltBatch(1, x_0, reward(x_0), time.expand(n), z, x_t.expand(n, -1), eps_old)


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
@pytest.mark.parametrize(("x", "t"), [((0.5, -1.0), 0.2), ((0.0, 0.0), 0.5), ((-2.0, 1.5), 0.8)])
def test_single_sample_is_unbiased(schedule: Schedule, x: tuple[float, float], t: float) -> None:
    """Its mean over the exact posterior is sigma_t C(x, t), with C by the closed form, within 5 standard errors."""
    mixture, n = random_mixture(3), 40_000
    reward, x_t = random_reward(3, mixture), torch.tensor(x, dtype=F64)
    batch = batch_at(mixture, schedule, reward, x_t, t, n)
    estimates = single_sample(batch)
    expected = exact_covariance(tilt_path(mixture, reward, 1.0, 1), reward, schedule)(batch)[0]
    sigma = schedule.sigma(torch.tensor(t, dtype=F64))
    torch.testing.assert_close(
        expected, sigma * mixture.covariance(x_t[None], torch.tensor(t), schedule, reward)[0], rtol=1e-6, atol=1e-6
    )
    error = estimates.std(0) / math.sqrt(n)
    assert bool(((estimates.mean(0) - expected).abs() < 5 * error).all())
    assert bool((expected.abs() > 5 * error).any())  # zero, or the other sign, would not pass


@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=repr)
def test_single_sample_is_the_papers_g_in_the_units_of_the_denoiser(schedule: Schedule) -> None:
    """sigma_t r (g - s_old) with g = (alpha x_0 - x_t) / sigma^2 (3.1) and s_old = -eps_old / sigma_t (2.8)."""
    g = torch.Generator().manual_seed(0)
    x_0, z, eps_old = torch.randn(3, 50, 2, generator=g, dtype=F64)
    t, r = 0.01 + 0.98 * torch.rand(50, generator=g, dtype=F64), torch.randn(50, generator=g, dtype=F64)
    x_t = add_noise(schedule, x_0, z, t)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    expected = sigma * r[:, None] * ((alpha * x_0 - x_t) / sigma**2 + eps_old / sigma)
    torch.testing.assert_close(single_sample(TiltBatch(1, x_0, r, t, z, x_t, eps_old)), expected, rtol=1e-9, atol=1e-9)


def test_exact_covariance_follows_the_path(paper: GaussianMixture, cosine: Cosine) -> None:
    """At tilt k it is the covariance under p^{k-1}, which moves when the reward changes the mode weights."""
    reward, N = parse_reward("one-mode"), 4
    path = tilt_path(paper, reward, 2.0, N)
    x, t = torch.tensor([[0.1, 0.2], [1.0, -1.0]], dtype=F64), torch.tensor([0.5, 0.7], dtype=F64)
    seen = []
    for k in range(1, N + 1):
        actual = exact_covariance(path, reward, cosine)(TiltBatch(k, x, reward(x), t, x, x, x))
        expected = cosine.sigma(t)[:, None] * paper.tilted(reward, 2.0 * (k - 1) / N).covariance(x, t, cosine, reward)
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        seen.append(actual)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in itertools.pairwise(seen))


def test_exact_covariance_is_finite_at_time_zero(paper: GaussianMixture, cosine: Cosine) -> None:
    reward, x = parse_reward("paper"), torch.zeros(2, 2)
    estimate = exact_covariance(tilt_path(paper, reward, 1.0, 1), reward, cosine)
    assert bool(torch.isfinite(estimate(TiltBatch(1, x, reward(x), torch.tensor([0.0, 1.0]), x, x, x))).all())


def test_tilt_path_and_exact_samples(paper: GaussianMixture) -> None:
    reward, n = parse_reward("paper"), 4000
    path = tilt_path(paper, reward, 3.0, 6)
    for k in (0, 1, 6):
        assert path(k).means[:, 1].tolist() == pytest.approx([2 * 3.0 * k / 6] * 2)
    draws = exact_samples(path)(ExactNoisePredictor(paper, Cosine()), 3, n, torch.Generator().manual_seed(0))
    assert draws.shape == (n, 2)
    assert draws.dtype == torch.float32
    assert float(draws[:, 1].mean()) == pytest.approx(2.0, abs=5 * math.sqrt(0.5 / n))  # k - 1 = 2 of 6 tilts of 3


# ---- the regression ---------------------------------------------------------------------------------------------------


def test_every_line_of_one_tilt(cosine: Cosine) -> None:
    """Lines 3 to 13 on what the estimator saw and on the first loss, when student and teacher are still equal."""
    base, recorder = small(), Recorder()
    config = TiltingConfig(N=2, lam=3.0, S=50, J=4, B=20, E=7, lr=1e-3)
    step = next(iterative_tilting(base, lambda x: x[:, 0].tanh(), cosine, config, update=explicit(recorder)))
    rows = {tuple(x): float(r) for x, r in zip(step.samples.tolist(), step.rewards, strict=True)}
    assert step.k == 1
    assert step.samples.shape == (50, 2)
    torch.testing.assert_close(step.rewards, step.samples[:, 0].tanh())
    assert {b.k for b in recorder.batches} == {1}
    x_0, r, t, z, x_t, eps_old = (recorder.all(name) for name in ("x_0", "r", "t", "z", "x_t", "eps_old"))
    assert x_0.shape == z.shape == (7 * 20, 2)
    assert [rows[tuple(x)] for x in x_0.tolist()] == pytest.approx(r.tolist())
    torch.testing.assert_close(x_t, add_noise(cosine, x_0, z, t))
    with torch.no_grad():
        torch.testing.assert_close(eps_old, base(x_t, t), rtol=1e-5, atol=1e-5)
    # sigma_t^2 ||eps_old - target||^2 with target = eps_old - (lam / N) estimate and estimate = (1, 1).
    first = (cosine.sigma(t[:20]) ** 2 * 1.5**2 * 2).mean()
    assert float(step.losses[0]) == pytest.approx(float(first), rel=1e-4)
    assert step.losses.shape == (7,)


def test_times_and_noise_have_their_laws(cosine: Cosine) -> None:
    recorder, n = Recorder(), 20 * 1000
    config = TiltingConfig(N=1, S=1000, J=1, B=1000, E=20)
    next(iterative_tilting(small(), lambda x: x[:, 0], cosine, config, update=explicit(recorder)))
    t, z = recorder.all("t"), recorder.all("z")
    assert len(t) == len(set(t.tolist())) or len(set(t.tolist())) > n - 100  # a time for each sample
    assert float(t.mean()) == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / n))
    assert float(t.var()) == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / n))
    assert float(z.mean()) == pytest.approx(0.0, abs=5 / math.sqrt(2 * n))
    assert float(z.var()) == pytest.approx(1.0, abs=5 * math.sqrt(2 / (2 * n)))


def test_minibatches_are_drawn_without_replacement_and_a_pass_uses_every_sample(cosine: Cosine) -> None:
    for epoch, steps, seen in (("minibatch", 3, 3 * 20), ("pass", 3 * 3, 3 * 50)):
        recorder = Recorder()
        config = TiltingConfig(N=1, S=50, J=2, B=20, E=3, epoch=epoch)
        (step,) = iterative_tilting(small(), lambda x: x[:, 0], cosine, config, update=explicit(recorder))
        assert len(step.losses) == steps
        rows = [tuple(x) for x in recorder.all("x_0").tolist()]
        data = {tuple(x) for x in step.samples.tolist()}
        assert len(rows) == seen
        per_epoch = seen // 3
        for i in range(3):
            epoch_rows = rows[i * per_epoch : (i + 1) * per_epoch]
            assert len(set(epoch_rows)) == per_epoch
            assert set(epoch_rows) <= data
        assert rows[:per_epoch] != rows[per_epoch : 2 * per_epoch]


def test_grouping_the_teachers_calls_changes_nothing_but_their_number(cosine: Cosine) -> None:
    """2,400 samples in minibatches of 400: the estimator is called on groups, and the losses stay one a minibatch."""
    recorder = Recorder()
    config = TiltingConfig(N=1, S=800, J=1, B=400, E=6)
    (step,) = iterative_tilting(small(), lambda x: x[:, 0], cosine, config, update=explicit(recorder))
    assert [len(b.x_0) for b in recorder.batches] == [1600, 800]
    assert len(step.losses) == 6


class OneVector(nn.Module):
    """The exact base denoiser plus theta times a known function of time: on the paper's toy this family holds every p^k.

    There sigma_t C = h(t) b with h = alpha sigma / (2 v), so tilt k must end at theta = -(k/N) lam b.
    """

    def __init__(self, base: NoisePredictor) -> None:
        super().__init__()
        self.base, self.theta = base, nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = Cosine().alpha(t), Cosine().sigma(t)
        return self.base(x, t) + column(alpha * sigma / (alpha**2 + 2 * sigma**2), x) * self.theta


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_exact_ingredients_recover_the_path_exactly(paper: GaussianMixture, cosine: Cosine, optimizer: str) -> None:
    reward, N, lam = parse_reward("paper"), 4, 0.5
    path = tilt_path(paper, reward, lam, N)
    lr = {"adam": 0.02, "sgd": 5.0}[optimizer]
    config = TiltingConfig(N=N, lam=lam, S=200, B=100, E=300, lr=lr, optimizer=optimizer)
    run = iterative_tilting(
        OneVector(ExactNoisePredictor(paper, cosine)), reward, cosine, config,
        update=explicit(exact_covariance(path, reward, cosine)), sampler=exact_samples(path),
    )  # fmt: skip
    for step in run:
        # The target lies in the family, so no sampling error is left: only single precision and the optimiser's tail.
        assert step.model.theta.tolist() == pytest.approx([0.0, -4 * lam * step.k / N], abs=1e-3)
        assert float(step.losses[-1]) < 1e-7
        error = score_errors(step.model, path(step.k), cosine, n=500)
        assert error.eps_rmse < 1e-3


def test_the_single_sample_regression_is_unbiased(paper: GaussianMixture, cosine: Cosine) -> None:
    """The same family with the paper's estimate: theta is an average of noisy targets, around -lam b."""
    reward, lam = parse_reward("paper"), 0.1
    path, recorder = tilt_path(paper, reward, lam, 1), Recorder(single_sample)
    config = TiltingConfig(N=1, lam=lam, S=4000, B=4000, E=30, lr=5.0, optimizer="sgd")
    model = OneVector(ExactNoisePredictor(paper, cosine))
    (step,) = iterative_tilting(model, reward, cosine, config, update=explicit(recorder), sampler=exact_samples(path))
    # Least squares with weights sigma^2: theta* = -lam sum sigma^2 h e / sum sigma^2 h^2 over the draws e of the estimate.
    t, e = recorder.all("t").double(), single_sample(recorder_batch(recorder)).double()
    alpha, sigma = cosine.alpha(t)[:, None], cosine.sigma(t)[:, None]
    h = alpha * sigma / (alpha**2 + 2 * sigma**2)
    terms, scale = -lam * sigma**2 * h * e, float((sigma**2 * h**2).mean())
    # The 30 minibatches reuse the same 4,000 samples, and plain gradient descent remembers a few of the last ones:
    # the standard error is that of one minibatch.
    error = (terms - sigma**2 * h**2 * torch.tensor([0.0, -4 * lam])).std(0) / scale / math.sqrt(4000)
    distance = (step.model.theta.detach() - torch.tensor([0.0, -4 * lam])).abs()
    assert bool((distance < 5 * error).all())
    assert float(5 * error[1]) < 4 * lam  # the test can tell the step from none


def recorder_batch(recorder: Recorder) -> TiltBatch:
    names = ("x_0", "r", "t", "z", "x_t", "eps_old")
    return TiltBatch(1, *(recorder.all(name) for name in names))


@pytest.mark.parametrize("name", ["paper", "quadratic"])
def test_one_tilt_moves_an_exact_denoiser_toward_the_tilted_one(paper: GaussianMixture, cosine: Cosine, name: str) -> None:
    """Exact samples and covariance, a network on top of the exact base: the error must at least fall by half."""
    reward = parse_reward(name)
    path = tilt_path(paper, reward, 0.25, 1)
    base = ExactNoisePredictor(paper, cosine)
    config = TiltingConfig(N=1, lam=0.25, S=1000, B=128, E=200, lr=1e-3)
    (step,) = iterative_tilting(
        base, reward, cosine, config, update=explicit(exact_covariance(path, reward, cosine)), sampler=exact_samples(path)
    )
    assert isinstance(step.model, Residual)
    before, after = (score_errors(f, path(1), cosine, n=1000) for f in (base, step.model))
    assert after.eps_rmse < 0.5 * before.eps_rmse


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_tilt_is_a_fixed_point(cosine: Cosine, optimizer: str) -> None:
    """lambda = 0, in double precision: teacher and student differ by rounding, and so do the weights afterwards."""
    base = small().double()
    config = TiltingConfig(N=2, lam=0.0, S=64, B=16, E=10, lr=1e-2, optimizer=optimizer)
    run = iterative_tilting(
        base, lambda x: 100 * x[:, 0], cosine, config,
        sampler=lambda f, k, S, g: torch.randn(S, 2, generator=g, dtype=F64),
    )  # fmt: skip
    for step in run:
        assert float(step.losses.max()) < 1e-25
        for p, q in zip(step.model.parameters(), base.parameters(), strict=True):
            # Adam divides a gradient of 1e-16 by its eps of 1e-8: at most 1e-8 of a learning rate a step.
            torch.testing.assert_close(p, q, rtol=0, atol=2 * 10 * 1e-2 * 1e-7)


def test_no_tilt_has_no_loss_in_single_precision(cosine: Cosine) -> None:
    config = TiltingConfig(N=1, lam=0.0, S=64, B=16, E=10, lr=1e-2, optimizer="sgd")
    base = small()
    run = iterative_tilting(
        base, lambda x: 100 * x[:, 0], cosine, config, sampler=lambda f, k, S, g: torch.randn(S, 2, generator=g)
    )
    (step,) = run
    assert float(step.losses.max()) < 1e-11
    for p, q in zip(step.model.parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


# ---- bookkeeping ------------------------------------------------------------------------------------------------------


def steps(base: NoisePredictor | None = None, seed: int = 0, **arguments: object) -> Iterator[TiltStep]:
    arguments = {"config": QUICK, **arguments}
    return iterative_tilting(base or small(), lambda x: x[:, 1], Cosine(), seed=seed, **arguments)


def test_the_seed_fixes_everything_and_the_global_state_plays_no_part() -> None:
    runs = []
    for seed, global_seed in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(global_seed)
        runs.append([(copy.deepcopy(s.model), s.samples, s.losses) for s in steps(seed=seed)])
    for a, b in zip(runs[0], runs[1], strict=True):
        assert same(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])
    assert not torch.equal(runs[0][0][1], runs[2][0][1])


@pytest.mark.parametrize("base", [small(), ExactNoisePredictor(random_mixture(0), Cosine())], ids=["network", "exact"])
def test_a_resumed_run_is_the_uninterrupted_one(base: NoisePredictor) -> None:
    whole = [(copy.deepcopy(s.model), s.samples, s.losses) for s in steps(base)]
    state = TiltState(whole[0][0], (1 / 3,))
    resumed = [(copy.deepcopy(s.model), s.samples, s.losses, s.k) for s in steps(base, state=state)]
    assert [r[3] for r in resumed] == [2, 3]
    for a, b in zip(whole[1:], resumed, strict=True):
        assert same(a[0], b[0])
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[2], b[2])
    assert list(steps(base, state=TiltState(whole[-1][0], (1 / 3, 2 / 3, 1.0)))) == []


def test_a_step_carries_the_state_to_resume_from() -> None:
    run = steps()
    first = next(run)
    assert first.state.model is first.model
    assert first.state.strengths == first.strengths == (pytest.approx(1 / 3),)
    assert first.diagnostics is None
    resumed = next(steps(state=TiltState(copy.deepcopy(first.model), first.strengths)))
    second = next(run)
    assert resumed.k == second.k == 2
    assert torch.equal(resumed.samples, second.samples)


def test_refuses_a_state_of_another_run() -> None:
    with pytest.raises(ValueError, match="4 tilts are done already, but N is 3"):
        next(steps(state=TiltState(small(), (0.25, 0.5, 0.75, 1.0))))
    with pytest.raises(ValueError, match=r"after 1 equal tilts of N=3 the strength is 0\.333333, not 0\.9"):
        next(steps(state=TiltState(small(), (0.9,))))
    for unfit in (small().requires_grad_(False), EXACT):
        with pytest.raises(ValueError, match="and not frozen"):
            next(steps(state=TiltState(unfit, (1 / 3,))))


def test_the_base_is_not_changed_and_the_student_is_live() -> None:
    base = small()
    before = copy.deepcopy(base)
    students = []
    for step in steps(base):
        students.append(step.model)
        assert not same(step.model, before)
        assert all(p.requires_grad for p in step.model.parameters())
    assert same(base, before)
    assert all(p.requires_grad for p in base.parameters())
    assert students[0] is students[1] is students[2]
    assert students[0] is not base


def test_each_tilt_samples_and_teaches_from_the_model_of_the_one_before() -> None:
    """D_k is drawn from theta^{k-1}, and the first loss of every tilt has the teacher equal to the student."""
    seen, recorder = [], Recorder()

    def sampler(denoiser: NoisePredictor, k: int, S: int, generator: torch.Generator) -> Tensor:
        seen.append((k, copy.deepcopy(denoiser)))
        return torch.randn(S, 2, generator=generator)

    after = [copy.deepcopy(s.model) for s in steps(sampler=sampler, update=explicit(recorder))]
    assert [k for k, _ in seen] == [1, 2, 3]
    before = [small(), *after[:-1]]
    for (_, sampled_from), model in zip(seen, before, strict=True):
        assert same(sampled_from, model)
    for k, model in enumerate(before, start=1):
        for batch in (b for b in recorder.batches if b.k == k):
            with torch.no_grad():
                torch.testing.assert_close(batch.eps_old, model(batch.x_t, batch.t), rtol=1e-5, atol=1e-6)


def test_the_reward_is_called_once_per_tilt_and_only_forward() -> None:
    shapes = []

    def reward(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        shapes.append(tuple(x.shape))
        return x[:, 1]

    list(iterative_tilting(small(), ForwardOnly(reward), Cosine(), QUICK))
    assert shapes == [(64, 2)] * 3


@pytest.mark.parametrize(
    ("reward", "message"),
    [(lambda x: x[:, 0] * math.nan, "NaN or infinity for 64 of 64"), (lambda x: x, "one number per sample")],
)
def test_a_bad_reward_is_an_error(reward: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        next(iterative_tilting(small(), reward, Cosine(), QUICK))


def test_divergence_is_an_error_that_names_the_tilt() -> None:
    with pytest.raises(FloatingPointError, match="tilt 1, strength"):
        next(iterative_tilting(small(), lambda x: 1e30 * x[:, 0], Cosine(), QUICK))
    config = TiltingConfig(N=3, S=64, B=16, E=5, lr=1e20, optimizer="sgd")
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        list(steps(config=config))


def test_any_callable_in_any_dimension_is_a_denoiser() -> None:
    mixture = random_mixture(0, 2, 5)
    exact = ExactNoisePredictor(mixture, Cosine())
    config = TiltingConfig(N=1, S=32, J=3, B=16, E=2)
    for base in (exact, lambda x, t: exact(x, t)):
        (step,) = iterative_tilting(base, lambda x: x.sum(-1), Cosine(), config, d=5)
        assert step.samples.shape == (32, 5)
        assert isinstance(step.model, Residual)


def test_trainable_copy() -> None:
    network = small()
    copied = trainable_copy(network, 2, 0)
    assert type(copied) is Network
    assert copied is not network
    assert same(copied, network)
    frozen = small().requires_grad_(False)
    with pytest.warns(UserWarning, match="no weight of the base is trainable"):
        assert isinstance(trainable_copy(frozen, 2, 0), Residual)
    for hidden in (lambda x, t: network(x, t), functools.partial(network)):
        with pytest.raises(TypeError, match="whose weights it hides"):
            trainable_copy(hidden, 2, 0)
    assert same(trainable_copy(lambda x, t: x, 2, 3).correction.space, trainable_copy(lambda x, t: x, 2, 3).correction.space)


def test_processor_seconds_are_reported() -> None:
    step = next(steps())
    assert set(step.seconds) == {"sampling", "training"}
    assert all(v > 0 for v in step.seconds.values())


def test_derived_seeds_do_not_collide() -> None:
    purposes = ("data", "weights", "training", "trace", "tilt")
    seeds = {derive_seed(s, purpose, k) for s in range(30) for purpose in purposes for k in range(30)}
    assert len(seeds) == 30 * 30 * len(purposes)
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, "tilt", 2) == derive_seed(1, "tilt", 2) != derive_seed(2, "tilt", 1)
    assert derive_seed(1, "tilt") == derive_seed(1, "tilt", 0)


# ---- configuration ----------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_section_4_2() -> None:
    config = TiltingConfig()
    assert (config.S, config.J, config.eta, config.B, config.E, config.lam) == (1000, 200, 1.0, 64, 100, 1.0)
    assert config.N in (20, 50, 100, 200)
    assert config.epoch == "minibatch"
    assert EqualSteps(8, 2.0).choose((), torch.zeros(3)) == (0.25, 0.25)
    assert EqualSteps(8, 2.0).choose((0.25, 0.5), torch.zeros(3)) == (0.25, 0.75)
    assert [EqualSteps(3).left([1 / 3] * 0), EqualSteps(3).left([1 / 3, 2 / 3, 1.0])] == [3, 0]


@pytest.mark.parametrize("name", ["N", "S", "J", "B", "E"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, "3", True, None])
def test_refuses_counts_that_are_not_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number"):
        TiltingConfig(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"B": 65, "S": 64}, "lower B or raise S"),
        ({"eta": -0.1}, "eta must be a number from 0 to 1"),
        ({"eta": 1.1}, "eta must be a number from 0 to 1"),
        ({"eta": math.nan}, "eta must be a number from 0 to 1"),
        ({"lr": 0.0}, "lr must be a positive finite number"),
        ({"lr": math.nan}, "lr must be a positive finite number"),
        ({"lam": math.inf}, "lam must be a finite number"),
        ({"lam": math.nan}, "lam must be a finite number"),
        ({"epoch": "full"}, "epoch must be 'minibatch' or 'pass'"),
        ({"optimizer": "lion"}, "optimizer"),
    ],
)
def test_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TiltingConfig(**arguments)


def test_the_likely_cause_is_read_off_the_samples() -> None:
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    for data, delta, says in (
        (1e4 * x, 0.1, "samples as wide as 1"),
        (x, 30.0, "(coverage)"),
        (x, 0.1, "the optimiser's steps are too large: lower the learning rate"),
    ):
        assert says in tilting._likely_cause(delta, data, data[:, 0])
