"""What was tried for speed, as ratios to what `itlib` does, with the change of results that it brings; and the profile."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from clocks import in_turns
from judging import ratio
from published import Plain
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

import itlib._kernels
from itlib.network import FourierFeatures, Network
from itlib.sampling import reverse_steps, sample
from itlib.schedules import Cosine, Schedule
from itlib.training import regression_step

SCHEDULE = Cosine()
#: What a profile calls the work that it sees, for people; the rest is "other".
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise", "aten::linear", "aten::bmm"),
    "SiLU": ("aten::silu", "aten::silu_", "aten::silu_backward"),
    "sines and cosines": ("aten::sin", "aten::cos"),
    "random numbers": ("aten::normal_", "aten::random_", "aten::uniform_", "aten::randperm"),
    "the optimiser": ("Optimizer", "aten::_fused_adam_", "aten::lerp_", "aten::addcmul_", "aten::addcdiv_"),
    "sums, products, copies": tuple(f"aten::{name}" for name in ("add", "add_", "mul", "sub", "div", "cat", "copy_", "sum")),
}  # fmt: skip


def profiled(work: Callable[[], object]) -> dict[str, float]:
    """Shares of the processor time of a call, by kind of work."""
    work()
    with warnings.catch_warnings(), profile(activities=[ProfilerActivity.CPU]) as seen:
        warnings.simplefilter("ignore")
        work()
    shares: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key in names or event.key.startswith(names[0] + "#")), "other")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: shares[kind] / total for kind in (*KINDS, "other")}


# ---- sampling ------------------------------------------------------------------------------------------------------


class Variant(nn.Module):
    """The network as `itlib` computes it, with one thing done differently."""

    def __init__(self, network: Network, *, hoist: bool = True, inplace: bool = True, fuse: bool = True) -> None:
        super().__init__()
        self.network, self.hoist, self.inplace, self.fuse = network, hoist, inplace, fuse

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.network
        t = t if self.hoist else t.expand(len(x))
        h = functional.silu(own.space(x) + own.time(own.features(t)), inplace=self.inplace)
        for layer in own.hidden:
            if self.fuse:
                h = torch.ops.mkldnn._linear_pointwise(h, layer.weight, layer.bias, "swish", [], "")
            else:
                h = functional.silu(layer(h), inplace=self.inplace)
        result: Tensor = own.output(h)
        return result


class Packed(Variant):
    """Weights laid out beforehand as oneDNN wants them."""

    def __init__(self, network: Network, rows: int) -> None:
        super().__init__(network)
        self.packed = [torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows) for layer in network.hidden]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.network
        h = functional.silu(own.space(x) + own.time(own.features(t)), inplace=True)
        for weight, layer in zip(self.packed, own.hidden, strict=True):
            h = torch.ops.mkldnn._linear_pointwise(h, weight, layer.bias, "swish", [], "")
        result: Tensor = own.output(h)
        return result


class Half(Variant):
    """Hidden layers in bfloat16."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.narrow = copy.deepcopy(network.hidden).bfloat16()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.network
        h = functional.silu(own.space(x) + own.time(own.features(t)), inplace=True).bfloat16()
        for layer in self.narrow:
            h = torch.ops.mkldnn._linear_pointwise(h, layer.weight, layer.bias, "swish", [], "")
        result: Tensor = own.output(h.float())
        return result


def _draw(network: nn.Module) -> Callable[[], Tensor]:
    return lambda: sample(network, SCHEDULE, 1000, steps=50, generator=torch.Generator().manual_seed(0))


def _step_by_step(schedule: Schedule, times: Sequence[float], eta: float) -> Iterator[tuple[float, float, float]]:
    """The coefficients of all steps, each computed when it is needed."""
    return (next(reverse_steps(schedule, pair, eta)) for pair in reversed(list(pairwise(times))))


def _draw_slowly(network: nn.Module) -> Callable[[], Tensor]:
    def work() -> Tensor:
        with patch("itlib.sampling.reverse_steps", _step_by_step):
            return _draw(network)()

    return work


@torch.inference_mode()
def _inference(network: nn.Module) -> Tensor:
    return _draw(network)()


def ladder(network: Network) -> tuple[dict[str, Callable[[], Tensor]], dict[str, nn.Module], dict[str, float]]:
    """Samplers to time, the networks whose predictions to compare, and seconds that some need before the first call."""
    plain = Plain(network)
    modules: dict[str, nn.Module] = {
        "as usually written": _Expanded(plain),
        "embedding once a step": Variant(network, inplace=False, fuse=False),
        "and SiLU in place": Variant(network, fuse=False),
    }
    if itlib._kernels._FUSED:
        modules["and SiLU inside the product"] = network
    works: dict[str, Callable[[], Tensor]] = {name: _draw_slowly(module) for name, module in modules.items()}
    others: dict[str, nn.Module] = {"and coefficients at once (itlib)": network}
    if itlib._kernels._FUSED:
        others |= {"weights packed beforehand": Packed(network, 1000), "bfloat16": Half(network)}
    modules |= others
    works |= {name: _draw(module) for name, module in others.items()}
    works["inference_mode"] = lambda: _inference(network)
    before = {}
    try:
        start = time.perf_counter()
        compiled = torch.compile(Variant(network, inplace=False, fuse=False))
        _draw(compiled)()
        before["torch.compile"] = time.perf_counter() - start
        works["torch.compile"], modules["torch.compile"] = _draw(compiled), compiled
    except Exception as error:  # it needs a C++ compiler, and says so in many ways
        before["torch.compile"] = math.nan
        print(f"    torch.compile is not there: {type(error).__name__}")
    return works, modules, before


class _Expanded(nn.Module):
    """A network that wants a time for every sample."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        result: Tensor = self.network(x, t.expand(len(x)))
        return result


def sampling_variants(network: Network, turns: int = 5) -> dict[str, Any]:
    """Ratios of seconds to those of `itlib`, and root mean square changes of the predictions."""
    works, modules, before = ladder(network)
    works["itlib"] = _draw(network)
    spent = in_turns(works, turns)
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name in works:
            if name == "itlib":
                continue
            found[name] = {"time": ratio(spent[name], spent["itlib"], "low")}
            if name in modules:
                changes = [
                    (modules[name](x, torch.tensor(t)) - network(x, torch.tensor(t))).square().sum(-1).mean()
                    for t in (0.1, 0.5, 0.9)
                ]
                found[name]["change"] = float(torch.stack(changes).mean().sqrt())
            moved = works[name]() - works["itlib"]()
            found[name]["samples"] = float(moved.square().sum(-1).mean().sqrt())
            if name in before:
                found[name]["beforehand"] = before[name]
    return found


# ---- training ------------------------------------------------------------------------------------------------------


def _one_dnn(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")
    return product


class _Product(torch.autograd.Function):
    """A linear layer and its gradients by oneDNN."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(h, weight)
        return _one_dnn(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, weight = ctx.saved_tensors
        return _one_dnn(gradient, weight.t()), _one_dnn(gradient.t(), h.t()), gradient.sum(0)


class OneDNN(nn.Module):
    """The network with hidden layers that oneDNN multiplies forward and backward."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own = self.network
        h = functional.silu(own.space(x) + own.time(own.features(t)))
        for layer in own.hidden:
            h = functional.silu(_Product.apply(h, layer.weight, layer.bias))
        result: Tensor = own.output(h)
        return result


@torch.no_grad()
def step_by_hand(network: Network, optimizer: torch.optim.Optimizer, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
    """:func:`~itlib.training.regression_step` without autograd: the chain rule layer by layer, all products by oneDNN."""
    features = network.features(t)
    before = [network.space(x) + network.time(features)]  # what enters each SiLU ...
    after = [functional.silu(before[0])]  # ... and leaves it
    for layer in network.hidden:
        before.append(_one_dnn(after[-1], layer.weight, layer.bias))
        after.append(functional.silu(before[-1]))
    error = network.output(after[-1]) - target
    gradient = 2 / len(x) * error
    network.output.weight.grad, network.output.bias.grad = gradient.t() @ after[-1], gradient.sum(0)
    gradient = gradient @ network.output.weight
    for i, layer in reversed(list(enumerate(network.hidden))):
        gradient = torch.ops.aten.silu_backward(gradient, before[i + 1])
        layer.weight.grad, layer.bias.grad = _one_dnn(gradient.t(), after[i].t()), gradient.sum(0)
        gradient = _one_dnn(gradient, layer.weight.t())
    gradient = torch.ops.aten.silu_backward(gradient, before[0])
    network.space.weight.grad, network.space.bias.grad = gradient.t() @ x, gradient.sum(0)
    network.time.weight.grad = _one_dnn(gradient.t(), features.t())
    optimizer.step()
    return error.square().sum(-1).mean()


def training_variants(network: Network, turns: int = 7, rows: int = 64) -> dict[str, Any]:
    """Ratios of seconds of an optimiser step to those of `itlib`, and the change of its gradient."""
    generator = torch.Generator().manual_seed(2)
    x, target = (torch.randn(rows, 2, generator=generator) for _ in range(2))
    t = torch.rand(rows, generator=generator)
    works: dict[str, Callable[[], Any]] = {}
    gradients: dict[str, Tensor] = {}
    before = {}

    def add(name: str, wrap: Callable[[Network], nn.Module] = lambda n: n, step: Any = regression_step, **adam: Any) -> None:
        own = copy.deepcopy(network)
        module = wrap(own)
        optimizer = torch.optim.Adam(own.parameters(), lr=1e-7, **adam)

        def work(steps: int = 50) -> None:
            for _ in range(steps):
                step(module, optimizer, x, t, target)

        work(1)
        gradients[name] = torch.cat([p.grad.flatten() for p in own.parameters() if p.grad is not None])
        works[name] = work

    add("itlib", fused=True)
    add("Adam parameter by parameter", foreach=False)
    add("Adam over lists of parameters", foreach=True)
    if itlib._kernels._FUSED:
        add("products by oneDNN", OneDNN, fused=True)
        add("and no autograd", step=step_by_hand, fused=True)
    try:
        start = time.perf_counter()
        add("torch.compile", torch.compile, fused=True)
        before["torch.compile"] = time.perf_counter() - start
    except Exception as error:  # as above
        print(f"    torch.compile is not there: {type(error).__name__}")
    spent = in_turns(works, turns)
    scale = float(gradients["itlib"].norm())
    return {
        name: {
            "time": ratio(spent[name], spent["itlib"], "low"),
            "change": float((gradients[name] - gradients["itlib"]).norm()) / scale,
        }
        | ({"beforehand": before[name]} if name in before else {})
        for name in works
        if name != "itlib"
    }


# ---- several seeds in one network ----------------------------------------------------------------------------------


def seeds_at_once(counts: tuple[int, ...] = (1, 2, 4, 8)) -> dict[str, Any]:
    """How much faster networks of several seeds are, stacked by torch.func, than one after the other."""
    spent = [_stacked(count) for count in counts]
    gains = {what: [ratio(s[what], s[f"{what} at once"]) for s in spent] for what in ("forward", "gradient")}
    return {"seeds": list(counts)} | gains


def _stacked(count: int) -> dict[str, list[float]]:
    """Seconds of forward passes on 1000 rows, and of gradients on 64, of some networks: one by one, and at once."""
    networks = [Network(2, seed=seed) for seed in range(count)]
    modules = [_Simple(network) for network in networks]
    stacked, buffers = stack_module_state(modules)
    shell = copy.deepcopy(modules[0]).to("meta")
    x, t = torch.randn(count, 1000, 2), torch.tensor(0.5)
    xs, ts = torch.randn(count, 64, 2), torch.rand(count, 64)

    def call(p: Any, b: Any, x: Tensor, t: Tensor) -> Tensor:
        result: Tensor = functional_call(shell, (p, b), (x, t))
        return result

    def loss(p: Any, b: Any, x: Tensor, t: Tensor) -> Tensor:
        return call(p, b, x, t).square().sum(-1).mean()

    @torch.no_grad()
    def forward() -> None:
        for _ in range(6):
            for i, network in enumerate(networks):
                network(x[i], t)

    @torch.no_grad()
    def forward_at_once() -> None:
        for _ in range(6):
            torch.vmap(call, in_dims=(0, 0, 0, None))(stacked, buffers, x, t)

    def gradient() -> None:
        for _ in range(20):
            for i, network in enumerate(networks):
                network.zero_grad()
                network(xs[i], ts[i]).square().sum(-1).mean().backward()

    def gradient_at_once() -> None:
        for _ in range(20):
            torch.vmap(torch.func.grad(loss))(stacked, buffers, xs, ts)

    works = (forward, forward_at_once, gradient, gradient_at_once)
    return in_turns({work.__name__.replace("_", " "): work for work in works}, 5)


class _Simple(nn.Module):
    """The network without its fused path, which vmap cannot see through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        own: Any = self.network
        features: FourierFeatures = own.features
        h = functional.silu(own.space(x) + own.time(features(t)))
        for layer in own.hidden:
            h = functional.silu(layer(h))
        result: Tensor = own.output(h)
        return result


class Stack:
    """Networks of one shape side by side: a layer of all is one batched product, and gradients are written out by hand.

    Each network has data of its own, so what it learns does not depend on its company.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        def stack(read: Callable[[Network], Tensor]) -> nn.Parameter:
            return nn.Parameter(torch.stack([read(network).detach() for network in networks]))

        self.frequencies = torch.stack([network.features.frequencies for network in networks]).unsqueeze(1)
        self.time = stack(lambda n: n.time.weight)
        places = range(len(networks[0].hidden) + 2)
        layers = [[network.space, *network.hidden, network.output] for network in networks]
        of = dict(zip(networks, layers, strict=True))
        self.weights = [stack(lambda n, i=i: of[n][i].weight) for i in places]
        self.biases = [stack(lambda n, i=i: of[n][i].bias.unsqueeze(0)) for i in places]

    def parameters(self) -> list[nn.Parameter]:
        return [self.time, *self.weights, *self.biases]

    @torch.no_grad()
    def layers(self, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The embedding of times, (K, B) or (), what enters each SiLU, and what leaves it with the output at the end."""
        angle = 2.0 * math.pi * t.unsqueeze(-1) * self.frequencies
        features = torch.cat([angle.sin(), angle.cos()], -1)
        before = [torch.baddbmm(self.biases[0], x, self.weights[0].mT) + torch.bmm(features, self.time.mT)]
        after = [functional.silu(before[0])]
        for weight, bias in zip(self.weights[1:-1], self.biases[1:-1], strict=True):
            before.append(torch.baddbmm(bias, after[-1], weight.mT))
            after.append(functional.silu(before[-1]))
        return features, before, [*after, torch.baddbmm(self.biases[-1], after[-1], self.weights[-1].mT)]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x, t)[2][-1]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        """:func:`~itlib.training.regression_step` of each: samples (K, B, d), times (K, B); the losses, (K,)."""
        features, before, after = self.layers(x, t)
        error = after[-1] - target
        gradient = 2 / x.shape[1] * error
        for i, (weight, bias) in reversed(list(enumerate(zip(self.weights, self.biases, strict=True)))):
            if i < len(before):
                gradient = torch.ops.aten.silu_backward(gradient, before[i])
            weight.grad = torch.bmm(gradient.mT, after[i - 1] if i else x)
            bias.grad = gradient.sum(1, keepdim=True)
            if i:
                gradient = torch.bmm(gradient, weight)
        self.time.grad = torch.bmm(gradient.mT, features)
        optimizer.step()
        return error.square().sum(-1).mean(-1)


def stack_of_seeds(count: int, rows: int, samples: int = 1000) -> dict[str, tuple[Callable[[], None], int]]:
    """Works on networks of some seeds, and how many steps, or evaluations, of each network are in one."""
    networks = [Network(2, seed=seed) for seed in range(count)]
    stack, plain = Stack(networks), [Plain(network) for network in networks]
    together = torch.optim.Adam(stack.parameters(), lr=1e-7, fused=True)
    alone = [torch.optim.Adam(network.parameters(), lr=1e-7, fused=True) for network in networks]
    theirs = [torch.optim.Adam(network.parameters(), lr=1e-7) for network in plain]
    x, t, target = torch.randn(count, rows, 2), torch.rand(count, rows), torch.randn(count, rows, 2)
    many, time_of_all, steps, calls = torch.randn(count, samples, 2), torch.tensor(0.5), 20, 6

    def one_by_one(models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for _ in range(steps):
                regression_step(model, optimizer, x[i], t[i], target[i])

    def stacked() -> None:
        for _ in range(steps):
            stack.step(together, x, t, target)

    @torch.no_grad()
    def draw() -> None:
        for i, network in enumerate(networks):
            for _ in range(calls):
                network(many[i], time_of_all)

    def draw_stacked() -> None:
        for _ in range(calls):
            stack(many, time_of_all)

    return {
        "loop": (lambda: one_by_one(networks, alone), steps),
        "textbook": (lambda: one_by_one(plain, theirs), steps),
        "stack": (stacked, steps),
        "samples, loop": (draw, calls),
        "samples, stack": (draw_stacked, calls),
    }
