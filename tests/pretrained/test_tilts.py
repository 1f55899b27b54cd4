"""Tilting what a practitioner brings: nothing moves without a reason, rewards fail, verdicts need no truth."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from foreign_models import SHAPE, D, unet
from torch import Tensor, nn

from itlib.beyond.chains import TrainableCopy, UnreachedWarning, chain_steps, check_size, draw_chains, log_variance_step
from itlib.beyond.recommended import RecommendedConfig, guarded, recommended_tilting
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture
from itlib.network import Network, Residual
from itlib.pretrained import FromModel, Patient, RewardError, Tabulated, report, with_lora
from itlib.rewards import QuadraticReward
from itlib.sampling import path_log_weights
from itlib.schedules import Cosine
from itlib.tilting import Diagnostics, TiltStep

SCHEDULE = Tabulated(DDIMScheduler(100, beta_schedule="scaled_linear", beta_end=0.1, clip_sample=False).alphas_cumprod)
LAW = GaussianMixture(torch.ones(1), torch.tensor([[0.5, -0.5]]), torch.eye(2)[None])
REWARD = QuadraticReward(torch.tensor([1.0, 0.0]))


def seeded(k: int) -> torch.Generator:
    return torch.Generator().manual_seed(k)


def wrapped(microbatch: int | None = None) -> FromModel:
    model = unet()
    with torch.no_grad():  # untrained, but sure of less than the noise there is
        for p in model.parameters():
            p.mul_(0.5)
    return FromModel(model, SCHEDULE, SHAPE, microbatch=microbatch)


QUICK = RecommendedConfig.equal_steps(1, student="copy", S=16, J=4, B=8, lam=0.5, pilot=32)


def brightness(x: Tensor) -> Tensor:
    return x.mean(1)


@pytest.mark.parametrize("lora", [False, True])
def test_a_constant_reward_moves_nothing(lora: bool) -> None:
    base = with_lora(wrapped(), 2) if lora else wrapped()
    (step,) = recommended_tilting(base, lambda x: torch.full((len(x),), 7.0), SCHEDULE, QUICK, d=D)
    for name, value in base.state_dict().items():
        assert torch.equal(step.model.student.state_dict()[name], value), name


def test_a_copy_moves_by_a_length_that_belongs_to_its_size() -> None:
    """Adam moves each of n weights by at most about the rate: the default keeps lr sqrt(n) small, a chosen rate is kept."""
    base = wrapped()
    moved = []
    for config in (QUICK, replace(QUICK, lr=3e-3)):
        (step,) = recommended_tilting(base, brightness, SCHEDULE, config, d=D)
        pairs = zip(step.model.student.parameters(), base.parameters(), strict=True)
        moved.append(math.sqrt(sum(float((a - b).detach().square().sum()) for a, b in pairs)))
    assert 0 < moved[0] < 0.15 * len(step.losses)
    assert moved[1] > 1.5 * moved[0]


def test_small_calls_tilt_to_the_same_weights() -> None:
    one, other = (next(recommended_tilting(with_lora(wrapped(m), 2), brightness, SCHEDULE, QUICK, d=D)) for m in (None, 12))
    torch.testing.assert_close(one.samples, other.samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.losses, other.losses, rtol=1e-3, atol=1e-3)


def test_small_calls_keep_states_and_not_what_is_inside() -> None:
    """Bytes that autograd holds for one step on B chains, beside those of the step's own arithmetic on states."""
    kept: dict[int | None, float] = {}
    for microbatch in (None, 8):
        student = TrainableCopy(with_lora(wrapped(microbatch), 2))
        steps = chain_steps(student.base, SCHEDULE, 32, D, steps=4, generator=seeded(0))
        chains = draw_chains(student, steps, 16, D, generator=seeded(1))
        held: dict[int, int] = {}

        def hold(v: Tensor, held: dict[int, int] = held) -> Tensor:
            held[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
            return v

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda v: v):
            chains.log_ratio(chains.corrections(student)).var()
        weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
        kept[microbatch] = sum(n for place, n in held.items() if place not in weights) / chains.x_t.nbytes
    assert kept[8] < 10 < 50 < kept[None]


@pytest.mark.parametrize("microbatch", [7, 64])
def test_small_calls_have_the_gradient_of_the_whole(microbatch: int) -> None:
    """What a step of SGD adds to the weights: 64 states in one call, in calls of 7 with a rest, in one not to be split."""
    moves = []
    for calls in (None, microbatch):
        student = TrainableCopy(with_lora(wrapped(calls), 2, seed=1))
        for name, p in student.student.named_parameters():  # a student that is not its base
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1, generator=seeded(len(name)))
        steps = chain_steps(student.base, SCHEDULE, 32, D, steps=4, generator=seeded(0))
        chains = draw_chains(student, steps, 16, D, generator=seeded(1))
        learning = [p for p in student.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in learning]
        loss = log_variance_step(student, torch.optim.SGD(learning, lr=1.0), chains, brightness(chains.x_0), 0.5)
        moves.append((loss, torch.cat([(p.detach() - b).flatten() for p, b in zip(learning, before, strict=True)])))
    (one, whole), (other, small) = moves
    torch.testing.assert_close(other, one)
    assert float((small - whole).norm() / whole.norm()) < 1e-5


def test_the_size_is_said_before_the_work() -> None:
    with pytest.raises(ValueError, match=r"S=4000 chains of J=100 steps in 3145728 dimensions are 14062.5 GiB"):
        check_size(4000, 100, 3 * 1024 * 1024, torch.device("cpu"))


def steps_with(*shares: float) -> list[TiltStep]:
    empty = torch.empty(0)
    return [
        TiltStep(k, nn.Identity(), empty, empty, empty, {}, 0.1, (0.1,), 1, Diagnostics(share, 1.0, 1.0, 0.0))
        for k, share in enumerate(shares, 1)
    ]


def test_tilts_that_lost_their_chains_warn_and_then_stop_and_an_end_with_few_warns() -> None:
    assert len(list(guarded(iter(steps_with(0.5, 0.3))))) == 2
    with pytest.warns(UnreachedWarning, match=r"with an effective share of 0\.29 among its own chains"):
        assert len(list(guarded(iter(steps_with(0.5, 0.29))))) == 2
    with pytest.warns(RuntimeWarning, match=r"tilt 2: 1.00% of its chains"):
        assert len(list(guarded(iter(steps_with(0.5, 0.01, 0.6))))) == 3
    lost = guarded(iter(steps_with(0.002, 0.001, 0.9)))
    assert next(lost).k == 1
    with pytest.warns(RuntimeWarning):
        assert next(lost).k == 2
    with pytest.raises(FloatingPointError, match=r"tilt 2: 0.10% .* not a tilt of the base"):
        next(lost)


def test_weights_of_a_run_with_its_variance_kept_are_its_chains_own() -> None:
    base = ExactNoisePredictor(LAW, Cosine())
    student = Residual(base, Network(2, width=16, depth=2, embedding=8))
    nn.init.normal_(student.correction.output.weight, std=0.002, generator=seeded(5))
    n = 4000
    steps = chain_steps(base, Cosine(), n, 2, steps=10, generator=seeded(0))
    own = draw_chains(student, steps, n, 2, generator=seeded(1)).own_log_ratio().double()
    _, seen = path_log_weights(student, base, Cosine(), n, 2, steps=10, variance="analytic", generator=seeded(2))
    seen = seen.double()
    assert float(seen.var()) == pytest.approx(float(own.var()), rel=0.2)
    for log_w in (own, seen):  # the base's law is one: E[W] = 1
        w = log_w.exp()
        assert abs(float(w.mean()) - 1) < 5 * float(w.std()) / math.sqrt(n)


class Shifted(nn.Module):
    """The exact tilt of a Gaussian by a linear reward moves its mean: the noise of the base, shifted."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.exact = ExactNoisePredictor(LAW.tilted(REWARD, strength) if strength else LAW, Cosine())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.exact(x, t)


@pytest.mark.parametrize("strength", [1.0, 0.0, 2.0])
def test_a_report_tells_the_tilt_from_less_and_from_more(strength: float) -> None:
    """At strength s the KL to the base is s^2 / 2, to the aim (s - 1)^2 / 2; log Z = m + 1 / 2 and E r = m + 1, m = .5."""
    found = report(Shifted(0.0), Shifted(strength), REWARD, Cosine(), d=2, lam=1.0, n=4000, steps=50)
    assert found.log_z[1] == pytest.approx(1.0, abs=0.15)
    assert found.kl[0] == pytest.approx(strength**2 / 2, abs=4 * found.kl[1] + 0.05)
    assert found.gap == pytest.approx((strength - 1) ** 2 / 2, abs=0.12)
    assert found.reward[0] == pytest.approx(0.5 + strength, abs=5 * found.reward[1] + 0.02)
    assert found.expected[0] == pytest.approx(1.5, abs=5 * found.expected[1] + 0.02)
    assert found.diversity == pytest.approx(1.0, abs=0.2)
    assert found.base_ess == pytest.approx(math.exp(-1), abs=0.1)
    assert f"(of the base's samples {found.base_ess:.0%})" in str(found)
    assert found.arrived == (strength == 1.0)
    assert ("This is the tilt" in str(found)) == (strength == 1.0)


def test_a_report_with_hardly_a_chain_says_so() -> None:
    found = report(Shifted(0.0), Shifted(0.0), QuadraticReward(torch.tensor([6.0, 0.0])), Cosine(), d=2, n=100, steps=10)
    assert "too few chains are effective" in str(found)


def test_a_reward_that_fails_loses_nothing() -> None:
    """Batches, retries, what is known after a failure, and a run that goes on as if there had been none."""
    calls: list[tuple[int, ...]] = []
    broken = [False]

    def remote(images: Tensor) -> list[float]:
        calls.append(tuple(images.shape))
        if broken[0] and len(calls) % 3 == 0:
            raise ConnectionError("no answer")
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(images.square().sum(), images)  # autograd inside is allowed
        return gradient.mean((1, 2, 3)).tolist()

    x = torch.randn(20, D, generator=seeded(0))
    reward = Patient(remote, SHAPE, batch=8, retries=0)
    broken[0] = True
    with pytest.raises(RewardError, match="no answer") as failure:
        reward(x)
    assert calls == [(8, *SHAPE), (8, *SHAPE), (4, *SHAPE)]
    torch.testing.assert_close(failure.value.rewards[:16], 2 * x[:16].mean(1))
    assert bool(failure.value.rewards[16:].isnan().all())
    torch.testing.assert_close(reward(x), 2 * x.mean(1))
    assert len(calls) == 4  # only what was missing
    patient = Patient(remote, SHAPE, batch=4, retries=1, wait=0.0, cache=False)
    torch.testing.assert_close(patient(x), 2 * x.mean(1))


def test_a_run_goes_on_after_its_reward_failed() -> None:
    config = replace(QUICK, N=2)
    whole = [copy.deepcopy(s.model) for s in recommended_tilting(wrapped(), brightness, SCHEDULE, config, d=D)]
    count = [0]

    def failing(x: Tensor) -> Tensor:
        count[0] += 1
        if count[0] == 4:
            raise ConnectionError("no answer")
        return brightness(x)

    reward = Patient(failing, batch=8, retries=0)
    run = recommended_tilting(wrapped(), reward, SCHEDULE, config, d=D)
    state = next(run).state
    with pytest.raises(RewardError):
        next(run)
    *_, last = recommended_tilting(wrapped(), reward, SCHEDULE, config, d=D, state=state)
    assert count[0] == 5  # three batches, one that failed, and that one again
    for a, b in zip(last.model.parameters(), whole[-1].parameters(), strict=True):
        assert torch.equal(a, b)
