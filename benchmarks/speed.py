"""Speed as ratios of things measured side by side in one run, one thread: ``make bench``.

Absolute seconds mean little on a machine whose speed drifts. So each figure is divided by a floor that is measured in
turns with it, on the same shapes, and the median over the turns is shown. Clocks count processor seconds.
"""

from __future__ import annotations

import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from itlib.gaussian_mixture import paper_mixture
from itlib.metrics import score_errors
from itlib.network import Network
from itlib.rewards import parse_reward
from itlib.runs import profile, resumable_base
from itlib.sampling import ddpm_std, sample, time_grid
from itlib.schedules import Cosine, column
from itlib.tilting import TiltingConfig, TiltStep, iterative_tilting
from itlib.training import regression_step

SCHEDULE, S, J, B = Cosine(), 1000, 200, 64
PAPER_GRID, CORES = (20, 50, 100, 200), 2
TURNS, TILTS = 7, 8


@torch.no_grad()
def textbook(network: Network, n: int, steps: int, generator: torch.Generator) -> Tensor:
    """Algorithm 1 as it is printed, with a network as it is usually written: time is one more input of each sample."""
    weight = torch.cat([network.space.weight, network.time.weight], 1)
    times = time_grid(SCHEDULE, steps)
    x = torch.randn(n, 2, generator=generator)
    for k in range(steps, 0, -1):
        t, s = torch.full((n,), times[k]), torch.full((n,), times[k - 1])
        alpha_t, sigma_t, alpha_s, sigma_s = (column(f(u), x) for u in (t, s) for f in (SCHEDULE.alpha, SCHEDULE.sigma))
        angle = 2 * math.pi * t[:, None] * network.features.frequencies
        embedding = torch.cat([torch.sin(angle), torch.cos(angle)], 1)
        h = functional.silu(functional.linear(torch.cat([x, embedding], 1), weight, network.space.bias))
        for layer in network.hidden:
            h = functional.silu(layer(h))
        x_1 = network.output(h)
        x_0 = (x - sigma_t * x_1) / alpha_t
        eta = ddpm_std(SCHEDULE, times[k - 1], times[k])
        x = alpha_s * x_0 + torch.sqrt(sigma_s**2 - eta**2) * x_1
        if k > 1:
            x = x + eta * torch.randn(n, 2, generator=generator)
    return x


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def flops(n: int, network: Network, embedding: bool) -> int:
    """Floating-point operations of the matrix products of one forward pass on n samples."""
    layers = [network.space, *network.hidden, network.output, *([network.time] if embedding else [])]
    return sum(2 * n * int(layer.weight.numel()) for layer in layers)


def multiply(n: int, times: int) -> Callable[[], None]:
    """Matrix products of a hidden layer's shape, (n, 256) times (256, 256), and nothing else."""
    a, out, weights = torch.randn(n, 256), torch.empty(n, 256), [torch.randn(256, 256) / 16 for _ in range(4)]

    def work() -> None:
        for i in range(times):
            torch.mm(a, weights[i % 4], out=out)

    return work


def rate(n: int, times: int) -> float:
    """Operations a second of those products, now."""
    return times * 2 * n * 256 * 256 / seconds(multiply(n, times))


def resident() -> float:
    """The most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure_sampling(network: Network) -> tuple[float, float]:
    """How much faster than the textbook, and which share of the multiplication rate."""

    def ours(steps: int = J) -> Tensor:
        return sample(network, SCHEDULE, S, steps=steps, generator=torch.Generator().manual_seed(0))

    def printed(steps: int = J) -> Tensor:
        return textbook(network, S, steps, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def embed() -> None:
        for t in time_grid(SCHEDULE, J)[1:]:
            network.time(network.features(torch.tensor(t)))

    difference = float((ours() - printed()).abs().max())
    assert difference < 1e-2, f"the two samplers disagree by {difference:g}"
    faster, share = [], []
    for _ in range(TURNS):
        before, own, slow, after = rate(S, 400), seconds(ours), seconds(printed), rate(S, 400)
        faster.append(slow / own)
        share.append(J * flops(S, network, embedding=False) / (own - seconds(embed)) / (0.5 * (before + after)))
    return statistics.median(faster), statistics.median(share)


def measure_training(network: Network) -> float:
    """A training step, in units of the time that its matrix products alone would take."""
    student = Network(2)
    student.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-6, fused=True)
    x, t, target, weight = torch.randn(B, 2), torch.rand(B), torch.randn(B, 2), torch.rand(B, 1)

    def steps() -> None:
        for _ in range(200):
            regression_step(student, optimizer, x, t, target, weight)

    steps()
    ratios = []
    for _ in range(TURNS):
        before, spent, after = rate(B, 4000), seconds(steps), rate(B, 4000)
        ratios.append(spent / 200 / (3 * flops(B, network, embedding=True) / (0.5 * (before + after))))
    return statistics.median(ratios)


def tilting(network: Network, config: TiltingConfig) -> Iterator[TiltStep]:
    """The paper's tilts."""
    return iterative_tilting(network, parse_reward("paper"), SCHEDULE, config)


def measure_tilts(network: Network) -> tuple[float, float]:
    """Seconds a tilt, and their ratio at N = 200 to N = 20."""
    runs = {N: tilting(network, TiltingConfig(N=N)) for N in (20, 200)}
    spent: dict[int, list[float]] = {N: [] for N in runs}
    for _ in range(TILTS):
        for N, run in runs.items():
            spent[N].append(sum(next(run).seconds.values()))
    ratio = statistics.median(slow / fast for slow, fast in zip(spent[200], spent[20], strict=True))
    return statistics.median(spent[20] + spent[200]), ratio


def measure_memory(network: Network) -> float:
    """MiB that each tilt adds to the peak, once the first ones have filled the allocator's pools."""
    run = tilting(network, TiltingConfig(N=200, J=10, lr=1e-6))
    held = [resident() for _, _ in zip(range(60), run, strict=False)]
    return (held[-1] - held[19]) / 40


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    print(f"{processor()}, {platform.system()}; torch {torch.__version__}, {torch.get_num_threads()} thread\n")
    work = profile("smoke")
    *_, base = resumable_base(paper_mixture(), SCHEDULE, work.training, n=work.n)
    network = base.denoiser

    def report(what: str, value: float, sign: str, target: float, unit: str = "") -> None:
        good = value >= target if sign == "≥" else value <= target
        print(f"{what:<66} {value:7.2f}{unit:<2} {sign} {target:.2f}{unit:<2} {'ok' if good else 'short'}", flush=True)

    print(f"{'':<66} {'found':>7}      target")
    faster, share = measure_sampling(network)
    report(f"(a) sampling {S} x {J} steps, times faster than the textbook", faster, "≥", 1.2)
    report("(b) its share of the float32 matrix-multiply rate", 100 * share, "≥", 75, "%")
    report(f"(c) a training step at batch {B}, in units of its products alone", measure_training(network), "≤", 2.2)
    tilt, ratio = measure_tilts(network)
    report("(d) seconds a tilt at N = 200 against N = 20, off by", 100 * abs(ratio - 1), "≤", 10, "%")
    report("(e) memory that each further tilt takes, MiB", measure_memory(network), "≤", 0.1)
    target = paper_mixture().tilted(parse_reward("paper"))
    trace = statistics.median(seconds(lambda: score_errors(network, target, SCHEDULE, n=5000, seed=0)) for _ in range(3))
    tilts = max(max(PAPER_GRID), sum(PAPER_GRID) / CORES)
    print(
        f"(f) {sum(PAPER_GRID)} tilts of {tilt:.2f} s and as many traces of {trace:.2f} s, on {CORES} cores:"
        f" {tilts * (tilt + trace) / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
