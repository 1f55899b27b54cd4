"""The digits: data, a model of them, rewards without a gradient, and judges that can disagree with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from itlib.experiments.digits.images import (
    DIGIT,
    IMAGE_PROBLEMS,
    SIDE,
    D,
    ResidualPerceptron,
    class_reward,
    digits,
    hole_reward,
    image_card,
    judge,
    judged,
    new_denoiser,
    strongest,
    surrogate,
    symmetry_reward,
    tilt_identity,
    trained_denoiser,
    votes,
)
from itlib.rewards import evaluate
from itlib.sampling import sample
from itlib.schedules import Cosine
from itlib.training import TrainingConfig, train_noise_predictor

WEIGHTS = Path(__file__).parents[2] / "book" / "reference" / "digits" / "base_seed0.safetensors"


def ring(left: int = 2, right: int = 5) -> Tensor:
    """Dark pixels around a piece of paper, (8, 8)."""
    image = -torch.ones(SIDE, SIDE)
    image[2:6, left : right + 1] = 1.0
    image[3:5, left + 1 : right] = -1.0
    return image


def test_grey_levels_became_intervals() -> None:
    """Rounding down gives scikit-learn's levels back, and within an interval the numbers are uniform."""
    from sklearn.datasets import load_digits

    data, (levels, labels) = digits(), load_digits(return_X_y=True)
    place = (data.x.double() + 1) * 17 / 2
    inside = place - torch.from_numpy(levels)
    assert float(inside.min()) > -1e-5
    assert float(inside.max()) < 1 + 1e-5
    assert float(inside.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / inside.numel()) ** 0.5)
    assert float(inside.var()) == pytest.approx(1 / 12, rel=0.02)
    assert data.labels.tolist() == labels.tolist()
    assert int(data.for_reward.sum()) == len(data.x) // 2


def test_judge_and_forest_learned_from_different_halves() -> None:
    """Each knows its own half better than the other, and is good on both."""
    data = digits()
    seen, unseen = ~data.for_reward, data.for_reward
    right = judged(data.x) == data.labels
    assert float(right[seen].float().mean()) > float(right[unseen].float().mean()) > 0.95
    assert judge().n_features_in_ == D
    forest_right = votes(data.x).argmax(1) == data.labels
    assert float(forest_right[data.for_reward].float().mean()) > 0.99
    assert 0.9 < float(forest_right[~data.for_reward].float().mean()) < 0.99


def test_the_class_reward_counts_votes() -> None:
    x = digits().x[:50]
    count = votes(x)
    assert bool((count.sum(1) == 100).all())
    torch.testing.assert_close(class_reward(x), torch.log((count[:, DIGIT] + 1) / 110))
    right = class_reward(digits().x[digits().labels == DIGIT]).mean()
    assert float(right) > float(class_reward(digits().x[digits().labels != DIGIT]).mean()) + 2
    noise = torch.randn(200, D)
    assert bool(torch.isfinite(class_reward(noise)).all())  # a class without a vote is no minus infinity
    assert float(class_reward(noise).min()) >= float(torch.log(torch.tensor(1 / 110))) - 1e-6


def test_the_class_reward_has_no_gradient() -> None:
    x = digits().x[:20]
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(class_reward(x), class_reward(x + step))  # constant between the thresholds of the trees


def test_symmetry_is_zero_for_mirrored_images_only() -> None:
    image = torch.randn(3, SIDE, SIDE // 2)
    even = torch.cat([image, image.flip(-1)], -1).flatten(1)
    torch.testing.assert_close(symmetry_reward(even), torch.zeros(3))
    odd = torch.cat([image, -image.flip(-1)], -1).flatten(1)
    torch.testing.assert_close(symmetry_reward(odd), -4 * image.square().mean((1, 2)))
    x = torch.randn(2, D, requires_grad=True)
    (gradient,) = torch.autograd.grad(symmetry_reward(x).sum(), x)
    assert float(gradient.abs().max()) > 0


def test_holes_are_closed_rings() -> None:
    closed, broken, diagonal, framed = ring(), ring(), ring(), -torch.ones(SIDE, SIDE)
    broken[3, 2] = -1.0  # an opening in a side
    diagonal[2, 2] = -1.0  # paper that touches the hole by a corner only
    framed[:, 0] = framed[0] = framed[:, -1] = framed[-1] = 1.0  # a hole up to the edge
    images = torch.stack([closed, broken, diagonal, framed, -torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)])
    assert hole_reward(images.flatten(1)).tolist() == [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    # Written with a hole, and without; 4 is either.
    by_label = [float(hole_reward(digits().x[digits().labels == c]).mean()) for c in range(10)]
    assert min(by_label[c] for c in (0, 6, 8, 9)) > max(by_label[c] for c in (1, 2, 3, 5, 7))


@pytest.mark.parametrize("name", IMAGE_PROBLEMS)
def test_rewards_follow_the_convention(name: str) -> None:
    """One finite number for each sample, of noise too, and the samples are left alone."""
    x = torch.randn(7, D, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    assert evaluate(IMAGE_PROBLEMS[name].reward, x).shape == (7,)
    assert torch.equal(x, before)


def test_the_strongest_that_still_has_a_truth() -> None:
    assert strongest([0.5, 1.0, 2.0, 4.0], [0.8, 0.4, 0.09, 0.01]) == 2.0
    assert strongest([0.5, 1.0], [0.8, 0.4]) == 1.0
    with pytest.raises(ValueError, match="no strength keeps"):
        strongest([1.0], [0.01])


def test_the_network_is_small_seeded_and_starts_as_the_gaussian(cosine: Cosine) -> None:
    denoiser = new_denoiser(cosine)
    assert sum(p.numel() for p in denoiser.parameters()) <= 300_000
    x, t = torch.randn(5, D), torch.rand(5)
    torch.testing.assert_close(denoiser(x, t), denoiser.base(x, t))
    one, two, other = (ResidualPerceptron(seed=seed)(x, t) for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    alone = torch.stack([ResidualPerceptron()(x[:1], t[0])[0], ResidualPerceptron()(x, t)[0]])
    torch.testing.assert_close(alone[0], alone[1])


def test_blocks_take_part(cosine: Cosine) -> None:
    """After a few epochs each weight has moved, and the loss has fallen below the Gaussian's."""
    denoiser = new_denoiser(cosine)
    before = {name: p.clone() for name, p in denoiser.named_parameters()}
    steps = list(train_noise_predictor(denoiser, digits().x, cosine, TrainingConfig(epochs=3, batch_size=128, lr=2e-3)))
    assert steps[-1].validation_loss < steps[0].validation_loss
    assert all(not torch.equal(p, before[name]) for name, p in denoiser.named_parameters())


def test_missing_weights_say_how_they_are_made(tmp_path: Path, cosine: Cosine) -> None:
    with pytest.raises(FileNotFoundError, match="--grid digits_base"):
        trained_denoiser(tmp_path / "base_seed0.safetensors", cosine)


def test_the_committed_base_samples_digits(cosine: Cosine) -> None:
    """Forest and judge, which learned from different images, agree on most samples, not on those of an untrained model."""
    good, bad = (
        image_card(sample(m, cosine, 300, D, steps=50, generator=torch.Generator().manual_seed(0)))
        for m in (trained_denoiser(WEIGHTS, cosine), new_denoiser(cosine))
    )
    assert good["agree"] > 0.85
    assert bad["agree"] < 0.75
    assert min(good[f"judge_{c}"] for c in range(10)) > 0.02
    assert WEIGHTS.stat().st_size < 3e6


def test_a_surrogate_follows_the_values_it_was_given() -> None:
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    asked: list[int] = []

    def jump(v: Tensor) -> Tensor:
        asked.append(len(v))
        return (v[:, 0] > 0).float()

    network = surrogate(jump, x, steps=300)
    assert sum(asked) == 2000
    new = torch.randn(1000, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    guess = network(new)
    assert float(((guess > 0.5) == (new[:, 0] > 0)).float().mean()) > 0.9
    (gradient,) = torch.autograd.grad(guess.sum(), new)
    assert float(gradient[:, 0].mean()) > 3 * float(gradient[:, 1:].mean(0).abs().max())
    assert not any(p.requires_grad for p in network.parameters())


def test_a_card_sees_copies_and_strangers() -> None:
    x = digits().x
    copied = image_card(x[:200])
    many = 0.5 * torch.randn(1200, D, generator=torch.Generator().manual_seed(1))  # more than are compared at once
    assert image_card(many)["nearest"] == pytest.approx(float(torch.cdist(many, x).min(1).values.mean()), rel=1e-5)
    assert copied["nearest"] < 0.01  # distances come from a matrix product, in single precision
    assert (copied["copies"], copied["strange"]) == (1.0, 0.0)
    assert copied["outside"] == 0.0
    assert copied["agree"] > 0.9
    odd = image_card(2.0 * torch.randn(200, D, generator=torch.Generator().manual_seed(0)))
    assert (odd["copies"], odd["strange"]) == (0.0, 1.0)
    assert odd["outside"] > 0.5
    assert odd["spread"] > copied["spread"]
    one = image_card(x[digits().labels == DIGIT])
    assert one[f"judge_{DIGIT}"] > 0.95
    assert one["spread"] < copied["spread"]
    assert sum(one[f"judge_{c}"] for c in range(10)) == pytest.approx(1.0)


def test_the_identity_tells_the_tilt_from_the_base() -> None:
    tilt = torch.randn(500, generator=torch.Generator().manual_seed(0))
    exact = tilt_identity(tilt - 3.0, tilt)
    assert exact["slope"] == pytest.approx(1.0)
    assert exact["residual"] < 1e-6
    untouched = tilt_identity(torch.zeros(500), tilt)
    assert untouched["slope"] == 0.0
    assert untouched["residual"] == pytest.approx(untouched["untilted"])
    half = tilt_identity(0.5 * tilt + 1.0, tilt)
    assert half["slope"] == pytest.approx(0.5)
    assert isinstance(new_denoiser(Cosine()), nn.Module)
