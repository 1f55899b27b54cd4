r"""Low-rank adapters, and the way back: what was learned as a model of its own library.

A *low-rank adapter* (Hu et al., arXiv 2106.09685) leaves the weights W of a layer as they are and learns B and A of a small
rank, :math:`W+BA`, with B zero at first. :func:`with_lora` puts one on every linear, convolutional and attention layer that
can give it back; :func:`merge_lora` gives it back. :func:`exported` takes the model out of whatever was trained around it.

What no file of a model can hold is the variance of the sampler: a tilt learned with ``variance="analytic"`` is that of
chains with slightly wider steps than diffusers takes. The fewer the steps, the more it matters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from itlib.pretrained.models import FromModel
from itlib.schedules import Schedule, add_noise
from itlib.training import regression_step

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.MultiheadAttention)


def _names(module: nn.Module) -> dict[int, list[str]]:
    """All the names of each part, by its identity: of a part that is used twice, two."""
    found: dict[int, list[str]] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        found.setdefault(id(part), []).append(name)
    return found


def _replace(module: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, part)


def _targets(module: nn.Module) -> tuple[list[str], list[str]]:
    """The layers that get an adapter, by name, and those that cannot have one, with the reason."""
    chosen: list[str] = []
    left: list[str] = []
    inside: list[str] = []
    for name, part in module.named_modules():
        if name.startswith(tuple(inside)):
            continue
        if isinstance(part, nn.TransformerEncoderLayer):
            inside.append(f"{name}." if name else "")
            left.append(f"{name} (a fused layer, which reads its weights past an adapter)")
        elif isinstance(part, nn.MultiheadAttention):
            inside.append(f"{name}." if name else "")
            same = part._qkv_same_embed_dim
            (chosen if same else left).append(name if same else f"{name} (its keys and queries differ in size)")
        elif isinstance(part, _LAYERS):
            grouped = getattr(part, "groups", 1) > 1
            (left if grouped else chosen).append(f"{name} (its groups cannot take it back)" if grouped else name)
    return chosen, left


def with_lora(predictor: nn.Module, rank: int = 4, *, only: Sequence[str] = (), seed: int = 0) -> nn.Module:
    """A copy whose own weights are frozen, with low-rank adapters that learn in their place and change nothing at first.

    Frozen weights are shared with the original, not copied. What cannot have an adapter stays frozen, and a warning says so.

    Args:
        predictor: any network with linear, convolutional or attention layers. A layer that is used under two names gets one.
        rank: of the adapters.
        only: parts of the names of layers that get one, such as ``("time_embedding",)``; by default all do.
        seed: fixes their initial weights.

    Raises:
        ValueError: for a network without such layers.
        ValueError: for one that has adapters already.
        ModuleNotFoundError: without the package peft.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any("lora_" in name for name, _ in predictor.named_parameters()):
        raise ValueError("this predictor has adapters already: train them on as they are, or merge_lora them first")
    frozen = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in predictor.parameters()}
    student = copy.deepcopy(predictor, frozen)
    chosen, left = _targets(student)
    if only:
        chosen, left = [name for name in chosen if any(part in name for part in only)], []
    if not chosen:
        raise ValueError(
            f"the predictor has no linear or convolutional layer to put an adapter on: train all of it. {'; '.join(left)}"
        )
    if left:
        warnings.warn(f"left without an adapter, and frozen: {', '.join(left)}", stacklevel=2)
    names = _names(student)
    twins = {name: names[id(student.get_submodule(name))] for name in chosen}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=chosen)
        adapted: nn.Module = inject_adapter_in_model(config, student)
    for name, others in twins.items():
        for other in others:
            if other != name:
                _replace(adapted, other, adapted.get_submodule(name))
    return adapted


def merge_lora(predictor: nn.Module) -> nn.Module:
    """A copy with every adapter added into the weights that it was put on: the layers, and the speed, of the original.

    Weights that two layers share are two afterwards, if one of the layers had an adapter.
    """
    from peft.tuners.lora.layer import MultiheadAttention
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged = copy.deepcopy(predictor)
    for names in _names(merged).values():
        try:
            module = merged.get_submodule(names[0])
        except AttributeError:  # inside a layer that is merged
            continue
        if isinstance(module, MultiheadAttention):
            module = cast(Any, module).unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        elif isinstance(module, BaseTunerLayer):
            adapter = cast(Any, module)
            layer = adapter.get_base_layer()
            layer.weight = nn.Parameter(layer.weight.detach().clone())
            adapter.merge()
            module = layer
        else:
            continue
        for name in names:
            _replace(merged, name, module)
    return merged.requires_grad_(True)


def trainable(predictor: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name; of a network with adapters the adapters only."""
    return {name: p.detach().cpu().contiguous() for name, p in predictor.named_parameters() if p.requires_grad}


def _learned(student: nn.Module) -> FromModel:
    """The wrapped model inside what was trained."""
    inside = getattr(student, "student", student)
    if isinstance(inside, FromModel):
        return inside
    raise ValueError(
        f"a {type(inside).__name__} is a correction beside a frozen model, which no file of that model can hold: distil it "
        "into a copy with itlib.pretrained.distil, and export the copy"
    )


def exported(student: nn.Module) -> nn.Module:
    """The model itself with what it learned, for its own library: ``exported(student).save_pretrained(folder)``.

    Args:
        student: the predictor of a finished tilt: a :class:`FromModel` or the copy that learned beside one, adapters merged.

    Raises:
        ValueError: for a correction beside a frozen model, saying what to do.
    """
    return cast(FromModel, merge_lora(_learned(student))).model


def save_lora(student: nn.Module, folder: str | Path) -> None:
    """Write the adapters as peft does: ``peft.PeftModel.from_pretrained(model, folder)`` reads them.

    Args:
        student: the predictor of a finished tilt, adapters not merged.
        folder: made if need be; gets ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        ValueError: for a student without adapters, or a correction beside a frozen model.
    """
    inside = _learned(student)
    learned = {name: value for name, value in trainable(inside).items() if "lora_" in name}
    if not learned:
        raise ValueError("this student has no adapters: save exported(student) whole")
    config = copy.copy(cast(Any, inside).peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {f"base_model.{name.replace('.default', '')}": value for name, value in learned.items()}
    safetensors.torch.save_file(tensors, Path(folder) / "adapter_model.safetensors")


def distil(
    student: nn.Module,
    base: FromModel,
    data: Tensor,
    schedule: Schedule,
    *,
    steps: int = 1000,
    batch: int = 64,
    lr: float = 1e-4,
    seed: int = 0,
) -> Iterator[tuple[FromModel, float]]:
    """Teach a copy of the base what any student predicts, by regression at noised samples of the student.

    Args:
        student: any predictor, such as a correction beside the frozen base.
        base: what the copy starts from; not changed. With adapters, those learn.
        data: samples of the student, (S, d).
        schedule: the pair alpha, sigma.
        steps: of Adam, whose rate falls to zero.
        batch: samples of a step.
        lr: its first learning rate.
        seed: fixes the draws.

    Yields:
        The copy and the mean squared error of its prediction, after each step.
    """
    learner = copy.deepcopy(base)
    if not any(p.requires_grad for p in learner.parameters()):
        learner.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (batch,), generator=generator)]
        t = schedule.t_max * torch.rand(batch, generator=generator).to(x_0)
        x_t = add_noise(schedule, x_0, torch.randn(x_0.shape, generator=generator).to(x_0), t)
        with torch.no_grad():
            target = student(x_t, t)
        error = regression_step(learner, optimizer, x_t, t, target)
        falling.step()
        yield learner, float(error) / base.d
