"""One tilt for every class, in closed form: Gaussians with labels, whose rewards differ by class."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from itlib.beyond.conditions import ConditionalDiagnostics, conditional_tilting
from itlib.beyond.recommended import RecommendedConfig, recommended_tilting
from itlib.network import Network
from itlib.pretrained import FromModel, Guided
from itlib.pretrained.models import conditioned
from itlib.sampling import sample
from itlib.schedules import Cosine, column
from itlib.tilting import TiltStep

SCHEDULE, V, J = Cosine(), 0.5, 10
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 1.0]])
PULL = torch.tensor([[0.0, 1.0], [1.0, -0.5]])
CONFIG = RecommendedConfig.equal_steps(6, student="copy", S=400, J=J, B=20, lr=5e-3, pilot=40_000, E=6)


class Labelled(nn.Module):
    """Exact for two classes, with a table of shifts that can learn every tilt by a linear reward."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2, J + 1, 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (column(f(t), x) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        exact = sigma * (x - alpha * MEANS[label]) / (alpha**2 * V + sigma**2)
        return exact + self.table[label, (J * t).round().long()]


def classes(generator: torch.Generator) -> dict[str, Tensor]:
    return {"label": torch.randint(2, (1,), generator=generator)}


def pulled(offset: float) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    return lambda x, c: x @ PULL[int(c["label"])] + offset * float(c["label"])


def tilted(offset: float) -> TiltStep:
    *_, last = conditional_tilting(FromModel(Labelled(), SCHEDULE, (2,)), pulled(offset), classes, SCHEDULE, CONFIG, d=2)
    return last


def of_classes(found: ConditionalDiagnostics) -> Tensor:
    """The mean over groups of log Z for each class."""
    label = torch.cat([c["label"] for c in found.conditions])
    return torch.stack([found.group_log_z[label == k].mean() for k in (0, 1)])


def test_every_class_has_its_own_tilt_and_its_own_log_z() -> None:
    """exp(b x) moves a Gaussian by V b, and log Z is b mu + V b b / 2; what a class earns by itself is not an error."""
    plain, offset = tilted(0.0), tilted(10.0)
    log_z = (PULL * MEANS).sum(1) + 0.5 * V * PULL.square().sum(1)
    for last, extra in ((plain, 0.0), (offset, 10.0)):
        found = last.diagnostics
        assert isinstance(found, ConditionalDiagnostics)
        torch.testing.assert_close(of_classes(found).float(), log_z + extra * torch.arange(2), atol=0.03, rtol=0)
        assert found.ess > 0.98
        for label in (0, 1):
            with conditioned(last.model, {"label": torch.tensor([label])}):
                x = sample(last.model, SCHEDULE, 4000, 2, steps=J, variance="analytic", generator=torch.Generator())
            torch.testing.assert_close(x.mean(0), MEANS[label] + V * PULL[label], atol=0.06, rtol=0)
    for a, b in zip(plain.model.parameters(), offset.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_the_condition_goes_through_guidance_to_whoever_asks() -> None:
    """Guided and in small calls, a condition for each state is that of its own row; afterwards it is forgotten."""
    model = Guided(Labelled(), 3.0, {"label": torch.tensor([0])})
    base = FromModel(model, SCHEDULE, (2,), microbatch=3)
    x, t, label = torch.randn(7, 2), torch.full((7,), 0.5), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with conditioned(base, {"label": label}):
        guided = base(x, t)
    none, given = (Labelled()(x, t, v) for v in (torch.zeros_like(label), label))
    torch.testing.assert_close(guided, none + 3 * (given - none))
    assert base.condition == {}
    with (
        pytest.raises(ValueError, match="a Network is told no condition: wrap the model in a FromModel"),
        conditioned(Network(2), {}),
    ):
        pass


def test_groups_are_whole_and_learn_on_chains() -> None:
    base = FromModel(Labelled(), SCHEDULE, (2,))
    with pytest.raises(ValueError, match="S must be a multiple of it, got 30"):
        next(conditional_tilting(base, pulled(0.0), classes, SCHEDULE, RecommendedConfig(student="copy", S=30, B=20), d=2))
    with pytest.raises(ValueError, match="conditions are learned on chains, by a copy"):
        next(conditional_tilting(base, pulled(0.0), classes, SCHEDULE, RecommendedConfig(), d=2))
    with pytest.raises(TypeError, match="label"):
        next(recommended_tilting(base, lambda x: x[:, 0], SCHEDULE, CONFIG, d=2))
