"""How things are measured: in turns, because the speed of a machine drifts; and the floors that they are divided by."""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from itlib.network import Network

Work = Callable[[], object]
Clock = Callable[[], float]


def seconds(work: Work, clock: Clock = time.process_time) -> float:
    """Seconds of a call: of the processor, which other processes do not lengthen, or of the wall."""
    start = clock()
    work()
    return clock() - start


def in_turns(
    works: Mapping[str, Work], turns: int, *, clock: Clock = time.process_time, warm: bool = True
) -> dict[str, list[float]]:
    """Seconds of each of several works in each turn; every other turn goes backwards, so that a drift cancels."""
    if warm:
        for work in works.values():
            work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns):
        for name in list(works)[:: 1 if turn % 2 == 0 else -1]:
            spent[name].append(seconds(works[name], clock))
    return spent


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ---- floors --------------------------------------------------------------------------------------------------------


def flops(rows: int, network: Network, embedding: bool) -> int:
    """Floating-point operations of the matrix products of one forward pass on some rows."""
    layers = [network.space, *network.hidden, network.output, *([network.time] if embedding else [])]
    return sum(2 * rows * int(layer.weight.numel()) for layer in layers)


def _one_dnn(a: Tensor, b: Tensor) -> Tensor:
    """The product a b by oneDNN, which wants the second factor transposed."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return product


#: What torch multiplies matrices with: `torch.mm`'s library, and oneDNN. Which is faster depends on the processor.
LIBRARIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": torch.mm} | (
    {"oneDNN": _one_dnn} if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
)


def _with_silu(a: Tensor, b: Tensor) -> Tensor:
    if "oneDNN" in LIBRARIES:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "swish", [], "")
        return product
    return functional.silu(torch.mm(a, b))


def products(library: str, rows: int, times: int, *, training: bool = False) -> tuple[Work, int]:
    """Matrix products of a hidden layer of the paper's network and nothing else, and their floating-point operations.

    Args:
        library: which of :data:`LIBRARIES`, or "with SiLU": each product followed by its activation.
        rows: samples, B.
        times: how often.
        training: whether the two products of the backward pass follow: (B, 256) (256, 256) and (256, B) (B, 256).
    """
    multiply = LIBRARIES.get(library, _with_silu)
    x, gradient, weight = torch.randn(rows, 256), torch.randn(rows, 256), torch.randn(256, 256) / 16
    pairs = [(x, weight.t())] + ([(gradient, weight), (gradient.t(), x)] if training else [])

    def work() -> None:
        with torch.no_grad():
            for a, b in itertools.islice(itertools.cycle(pairs), times * len(pairs)):
                multiply(a, b)

    return work, times * len(pairs) * 2 * rows * 256 * 256


# ---- memory --------------------------------------------------------------------------------------------------------


def _status(field: str) -> float:
    text = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(field))) / 1024


def peak(work: Work) -> float | None:
    """MiB that a call takes at its peak beyond what the process held before; None where Linux does not tell."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, StopIteration):
        return None
    work()
    return max(0.0, _status("VmHWM") - before)


def load() -> float | None:
    """Processes that want a core, on average over the last minute."""
    with suppress(OSError, AttributeError):
        return os.getloadavg()[0]
    return None
