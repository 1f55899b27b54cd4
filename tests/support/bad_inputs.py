"""What happens to bad input: a table whose every row is tried.

``python tests/support/bad_inputs.py`` writes it to ``bad_inputs.md`` beside it; the test of the same name tries each row and
sees that the page is what the rows say. A row is refused by one sentence, or accepted, and then what comes out is checked.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from itlib.beyond.recommended import RecommendedConfig
from itlib.experiments.checkpoints import RunState, load_state, profile, save_state
from itlib.experiments.problems import problem
from itlib.experiments.records import load_record
from itlib.gaussian_mixture import ExactNoisePredictor, GaussianMixture, paper_mixture
from itlib.likelihood import log_likelihood
from itlib.network import Network
from itlib.rewards import QuadraticReward, evaluate, parse_reward
from itlib.sampling import sample
from itlib.schedules import Cosine, add_noise
from itlib.tilting import TiltingConfig, iterative_tilting
from itlib.training import TrainingConfig, train_noise_predictor

HERE = Path(__file__).parent
NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Row:
    """One input.

    Args:
        area: what it is given to.
        given: the input, in words.
        act: gives it; for an accepted one it returns whether what came out is right.
        says: part of the sentence that refuses it; empty if it is accepted.
        note: of an accepted one, what is done with it.
    """

    area: str
    given: str
    act: Callable[[], Any]
    says: str = ""
    note: str = ""


def mixture(weights: Any, means: Any, covariances: Any) -> Callable[[], Any]:
    return lambda: GaussianMixture(*(torch.tensor(v) for v in (weights, means, covariances)))


def rewarded(reward: Callable[[Tensor], Any]) -> Callable[[], Any]:
    return lambda: evaluate(reward, torch.arange(6.0).reshape(3, 2))


def tilts(denoiser: Any, reward: Any = lambda x: x[:, 0], d: int = 2, **knobs: Any) -> Callable[[], Any]:
    config = TiltingConfig(**{"N": 3, "S": 64, "J": 3, "B": 32, "E": 3, **knobs})
    return lambda: list(iterative_tilting(denoiser, reward, Cosine(), config, d=d))


class Exploit:
    """Pickled, it runs a command when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def file(content: bytes, read: Callable[[Path], Any]) -> Callable[[], Any]:
    """Read a file with such content; the message then shows FILE for its path."""

    def act() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(content)
            try:
                return read(path)
            except ValueError as error:
                raise type(error)(str(error).replace(str(path), "FILE")) from None

    return act


def checkpoint(content: bytes) -> Callable[[], Any]:
    return file(content, lambda path: load_state(path, Network(2)))


def hostile() -> Any:
    """A pickle where a checkpoint should be: refused, and nothing of it ran."""
    with tempfile.TemporaryDirectory() as folder:
        mark = str(Path(folder) / "mark")
        try:
            return checkpoint(pickle.dumps(Exploit(mark)))()
        finally:
            assert not Path(mark).exists()


def path_as_text() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        save_state(f"{folder}/file", RunState(1, 2, Network(2)))
        return load_state(f"{folder}/file", Network(2)).total == 2


def weights(d: int, notes: dict[str, Any] | None) -> bytes:
    tensors = {f"theta.{name}": value for name, value in Network(d).state_dict().items()}
    return bytes(safetensors.torch.save(tensors, {"notes": json.dumps(notes)} if notes is not None else None))


def record(**changes: Any) -> bytes:
    found = json.loads((HERE.parents[1] / "book" / "reference" / "small" / "N003_seed0.json").read_text())
    return json.dumps(found | changes).encode()


def stateful() -> bool:
    """A reward with a memory is asked once per tilt, on all samples at once."""
    asked: list[int] = []
    tilts(Network(2), lambda x: asked.append(len(x)) or x[:, 0])()
    return asked == [64] * 3


def overwriting(x: Tensor) -> Tensor:
    return x.zero_()[:, 0]


def tracking(x: Tensor) -> Tensor:
    with torch.enable_grad():
        return (x.requires_grad_() ** 2).sum(-1)


ONE = [[[1.0, 0.0], [0.0, 1.0]]]
POINTS, EXACT, PAPER = torch.zeros(3, 2), ExactNoisePredictor(paper_mixture(), Cosine()), parse_reward("paper")
T = torch.tensor
ROWS = [
    Row(
        "reward",
        "NaN for one sample of three",
        rewarded(lambda x: x[:, 0].where(x[:, 0] > 0, T(NAN))),
        "NaN or infinity for 1 of 3",
    ),
    Row("reward", "infinity", rewarded(lambda x: x[:, 0] + INF), "NaN or infinity for 3 of 3"),
    Row(
        "reward",
        "1e300 where samples are single precision",
        rewarded(lambda x: 1e300 + x[:, 0].double()),
        "NaN or infinity for 3 of 3",
    ),
    Row("reward", "a column", rewarded(lambda x: x[:, :1]), "shape (3,); got (3, 1)"),
    Row("reward", "one number for all", rewarded(lambda x: 1.0), "shape (3,); got ()"),
    Row("reward", "nothing", rewarded(lambda x: None), "real numbers, one per sample, got NoneType"),
    Row("reward", "text", rewarded(lambda x: "high"), "real numbers, one per sample, got str (high)"),
    Row(
        "reward",
        "complex numbers",
        rewarded(lambda x: x[:, 0].to(torch.complex64)),
        "real numbers, one per sample, got Tensor",
    ),
    Row(
        "reward", "a device without data", rewarded(lambda x: torch.empty(3, device="meta")), "real numbers, one per sample"
    ),
    Row("reward", "whole numbers", lambda: rewarded(lambda x: x[:, 0].long())().dtype == torch.float32, note="converted"),
    Row(
        "reward",
        "an array of numpy that runs backwards",
        lambda: rewarded(lambda x: x[:, 0].numpy()[::-1])().tolist() == [4, 2, 0],
        note="converted",
    ),
    Row("reward", "booleans", lambda: rewarded(lambda x: x[:, 0] > 1)().tolist() == [0, 1, 1], note="0 and 1"),
    Row("reward", "a list", lambda: rewarded(lambda x: [1.0, 2.0, 3.0])().tolist() == [1, 2, 3], note="converted"),
    Row(
        "reward", "double precision", lambda: rewarded(lambda x: x[:, 0].double())().dtype == torch.float32, note="converted"
    ),
    Row("reward", "an answer that tracks gradients", lambda: not rewarded(tracking)().requires_grad, note="cut off"),
    Row(
        "reward",
        "a function that writes on its samples",
        lambda: rewarded(overwriting)().tolist() == [0, 0, 0],
        note="it gets a copy",
    ),
    Row("reward", "a function with a memory", stateful, note="asked once per tilt, about all samples at once"),
    Row("reward", "a function that raises", rewarded(lambda x: 1 / 0), "division by zero"),
    Row(
        "quadratic reward",
        "b = (NaN, 0)",
        lambda: QuadraticReward(T([NAN, 0.0])),
        "coefficients must be finite, got b=[nan, 0.0]",
    ),
    Row("quadratic reward", "c = NaN", lambda: QuadraticReward(T([1.0]), c=NAN), "c must be a finite number, got nan"),
    Row(
        "quadratic reward",
        "A not symmetric",
        lambda: QuadraticReward(T([0.0, 0.0]), T([[0.0, 1.0], [0.0, 0.0]])),
        "replace it by (A + A.T) / 2",
    ),
    Row(
        "quadratic reward", "A of another size", lambda: QuadraticReward(T([0.0, 0.0]), torch.eye(3)), "got (2,) and (3, 3)"
    ),
    Row("quadratic reward", "'b=inf,1'", lambda: parse_reward("b=inf,1"), "coefficients must be finite, got b=[inf, 1.0]"),
    Row(
        "quadratic reward",
        "'b=1,2,3' in two dimensions",
        lambda: parse_reward("b=1,2,3"),
        "cannot read the reward 'b=1,2,3'",
    ),
    Row(
        "quadratic reward", "Python code as text", lambda: parse_reward("__import__('os').abort()"), "cannot read the reward"
    ),
    Row(
        "mixture",
        "a NaN mean",
        mixture([1.0], [[NAN, 0.0]], ONE),
        "every mean of a mixture must be finite, got [[nan, 0.0]]",
    ),
    Row(
        "mixture",
        "an infinite weight",
        mixture([INF, 1.0], [[0.0, 0.0]] * 2, ONE * 2),
        "every weight of a mixture must be finite, got [inf",
    ),
    Row(
        "mixture", "a weight of zero", mixture([1.0, 0.0], [[0.0, 0.0]] * 2, ONE * 2), "leave the others out, got [1.0, 0.0]"
    ),
    Row(
        "mixture",
        "weights that add up to 4",
        lambda: mixture([3.0, 1.0], [[0.0, 0.0]] * 2, ONE * 2)().weights.tolist() == [0.75, 0.25],
        note="normalised",
    ),
    Row(
        "mixture",
        "a covariance with a negative eigenvalue",
        mixture([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]]),
        "positive definite, got [[[1.0, 2.0], [2.0, 1.0]]]",
    ),
    Row(
        "mixture",
        "a covariance that is not symmetric",
        mixture([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]),
        "symmetric positive definite, got",
    ),
    Row("mixture", "two means and one weight", mixture([1.0], [[0.0, 0.0]] * 2, ONE), "got (1,), (2, 2), (1, 2, 2)"),
    Row(
        "mixture",
        "no component",
        mixture([], torch.zeros(0, 2).tolist() or [[]], torch.zeros(0, 2, 2).tolist() or [[[]]]),
        "needs weights (K,)",
    ),
    Row(
        "mixture",
        "-1 samples asked of it",
        lambda: paper_mixture().sample(-1),
        "n must be a whole number of at least 1, got -1",
    ),
    Row(
        "mixture",
        "points of another dimension",
        lambda: paper_mixture().score(torch.zeros(3, 5), T(0.5), Cosine()),
        "shape (B, 2), got (3, 5)",
    ),
    Row("mixture", "density at NaN", lambda: paper_mixture().log_prob(POINTS * NAN), "finite points of shape (B, 2)"),
    Row("tilt", "lambda = NaN", lambda: paper_mixture().tilted(PAPER, NAN), "lam must be a finite number, got nan"),
    Row(
        "tilt",
        "lambda = 1e300",
        lambda: paper_mixture().tilted(PAPER, 1e300),
        "overflows double precision: use a smaller lambda",
    ),
    Row(
        "tilt",
        "a reward that grows faster than the tails fall",
        lambda: paper_mixture().tilted(parse_reward("A=3,3")),
        "Use a smaller lambda",
    ),
    Row(
        "tilt",
        "a reward in three dimensions",
        lambda: paper_mixture().tilted(parse_reward("b=1,2,3", 3)),
        "takes a reward in dimension 2",
    ),
    Row("schedule", "offset s = 0", lambda: Cosine(0.0), "s must be a positive finite number, got 0.0"),
    Row("schedule", "offset s = infinity", lambda: Cosine(INF), "s must be a positive finite number, got inf"),
    Row(
        "times",
        "-0.1",
        lambda: add_noise(Cosine(), POINTS, POINTS, T([0.5, -0.1, 0.5])),
        "between 0 (data) and 1 (noise), got -0.1",
    ),
    Row("times", "1.5", lambda: paper_mixture().noised(Cosine(), 1.5), "between 0 (data) and 1 (noise), got 1.5"),
    Row("times", "NaN", lambda: add_noise(Cosine(), POINTS, POINTS, T(NAN)), "between 0 (data) and 1 (noise), got nan"),
    Row(
        "times",
        "0, for the posterior of X_0",
        lambda: paper_mixture().posterior(POINTS, T(0.0), Cosine()),
        "for t > 0 only: clamp times to at least 0.001",
    ),
    Row(
        "times",
        "0, for the score",
        lambda: bool(torch.isfinite(paper_mixture().score(POINTS, T(0.0), Cosine())).all()),
        note="that of p_0",
    ),
    Row(
        "times",
        "1, for the score",
        lambda: bool(torch.isfinite(paper_mixture().score(POINTS, T(1.0), Cosine())).all()),
        note="that of the noise",
    ),
    Row(
        "sampler",
        "0 steps",
        lambda: sample(EXACT, Cosine(), 3, steps=0),
        "steps must be a whole number of at least 1, got 0",
    ),
    Row(
        "sampler",
        "1.5 steps",
        lambda: sample(EXACT, Cosine(), 3, steps=1.5),
        "steps must be a whole number of at least 1, got 1.5",
    ),
    Row("sampler", "2.5 samples", lambda: sample(EXACT, Cosine(), 2.5), "n must be a whole number of at least 1, got 2.5"),
    Row("sampler", "eta = NaN", lambda: sample(EXACT, Cosine(), 3, eta=NAN), "eta must be a finite number, got nan"),
    Row(
        "sampler",
        "a denoiser that returns one column",
        lambda: sample(lambda x, t: x[:, :1], Cosine(), 3),
        "shape of its samples, (3, 2), got (3, 1)",
    ),
    Row(
        "sampler",
        "a network for another dimension",
        lambda: sample(Network(2), Cosine(), 3, d=5),
        "shape (B, 2), got (3, 5)",
    ),
    Row(
        "likelihood",
        "NaN points",
        lambda: log_likelihood(EXACT, Cosine(), POINTS * NAN),
        "x must be finite numbers of shape (n, d), got Tensor of shape (3, 2)",
    ),
    Row(
        "training",
        "no samples",
        lambda: next(train_noise_predictor(Network(2), torch.empty(0, 2), Cosine())),
        "data must be finite numbers of shape (n, d), got Tensor of shape (0, 2)",
    ),
    Row(
        "training",
        "NaN samples",
        lambda: next(train_noise_predictor(Network(2), POINTS * NAN, Cosine())),
        "data must be finite numbers of shape (n, d), got Tensor of shape (3, 2)",
    ),
    Row(
        "training",
        "samples of another dimension",
        lambda: next(train_noise_predictor(Network(2), torch.zeros(99, 3), Cosine())),
        "shape (B, 2), got (89, 3)",
    ),
    Row(
        "tilting",
        "a denoiser that returns NaN",
        tilts(lambda x, t: x * NAN),
        "tilt 1, strength 0 so far: the model no longer samples finite numbers",
    ),
    Row(
        "tilting",
        "a learning rate that diverges",
        tilts(Network(2), lambda x: torch.tanh(x[:, 0]), lr=1e30, optimizer="sgd"),
        "lower the learning rate",
    ),
    Row(
        "tilting",
        "a reward of the scale 1e30",
        tilts(EXACT, lambda x: 1e30 * x[:, 0], J=50),
        "(coverage): raise N, scale the reward, or lower the learning rate",
    ),
    *(
        Row("TiltingConfig", f"{name} = {value!r}", lambda n=name, v=value: TiltingConfig(**{n: v}), says)
        for name, value, says in (
            ("N", 0, "N must be a whole number of at least 1, got 0"),
            ("S", 1.5, "S must be a whole number of at least 1, got 1.5"),
            ("J", True, "J must be a whole number of at least 1, got True"),
            ("B", 5000, "lower B or raise S"),
            ("lam", "1", "lam must be a finite number, got '1'"),
            ("lam", INF, "lam must be a finite number, got inf"),
            ("lr", NAN, "lr must be a positive finite number, got nan"),
            ("lr", INF, "lr must be a positive finite number, got inf"),
            ("lr", -1.0, "lr must be a positive finite number, got -1.0"),
            ("eta", 1.1, "eta must be a number from 0 to 1, got 1.1"),
            ("optimizer", "lion", "optimizer must be 'adam' or 'sgd', got 'lion'"),
        )
    ),
    *(
        Row("RecommendedConfig", f"{name} = {value!r}", lambda n=name, v=value: RecommendedConfig(**{n: v}), says)
        for name, value, says in (
            ("target_ess", 1.0, "target_ess must be a number between 0 and 1 (both excluded) or None, got 1.0"),
            ("decay", "no", "decay must be True or False, got 'no'"),
            ("learner", "paths", "learner must be 'chains' or 'implicit' or 'explicit', got 'paths'"),
            ("polish_rounds", 1.5, "polish_rounds must be a whole number of at least 0, got 1.5"),
        )
    ),
    *(
        Row("TrainingConfig", f"{name} = {value!r}", lambda n=name, v=value: TrainingConfig(**{n: v}), says)
        for name, value, says in (
            ("epochs", 1.5, "epochs must be a whole number of at least 1, got 1.5"),
            ("patience", NAN, "patience must be a whole number of at least 1, got nan"),
            ("lr", INF, "lr must be a positive finite number, got inf"),
            ("averaging", 1.0, "averaging must be a number of at least 0 and less than 1, got 1.0"),
            ("predict", "x2", "predict must be 'x1' or 'x0', got 'x2'"),
        )
    ),
    Row("names", "profile 'huge'", lambda: profile("huge"), "choose from full, smoke"),
    Row("names", "problem 'ten'", lambda: problem("ten"), "there is no problem 'ten': choose from"),
    Row("checkpoint", "a path as text", path_as_text, note="the path"),
    Row("checkpoint", "cut in half", checkpoint(weights(2, {"done": 1})[:9000]), "truncated or not a checkpoint: delete it"),
    Row(
        "checkpoint",
        "of a network in three dimensions",
        checkpoint(weights(3, {"done": 1, "total": 2})),
        "is sound, but of a network of another size: keep it",
    ),
    Row("checkpoint", "without its notes", checkpoint(weights(2, None)), "truncated or not a checkpoint: delete it"),
    Row(
        "checkpoint",
        "with unknown notes (another version)",
        checkpoint(weights(2, {"done": 1, "total": 2, "mood": 3})),
        "truncated or not a checkpoint: delete it",
    ),
    Row("checkpoint", "a pickle that runs a command", hostile, "truncated or not a checkpoint: delete it"),
    Row("record", "cut in half", file(record()[:500], load_record), "truncated or not JSON: delete it"),
    Row(
        "record", "NaN in it, which JSON has not", file(record(trace=[NAN]), load_record), "truncated or not JSON: delete it"
    ),
    Row("record", "100,000 brackets", file(b"[" * 100_000, load_record), "truncated or not JSON: delete it"),
    Row(
        "record",
        "of another experiment",
        file(record(experiment="x"), load_record),
        "there is no experiment 'x': choose from base",
    ),
    Row(
        "record",
        "with a field that nobody knows",
        file(record(mood=1), load_record),
        "at the top level, mood has no meaning: delete it",
    ),
    Row(
        "record",
        "a seed of -1",
        file(record(parameters={"seed": -1}), load_record),
        "at parameters, seed is at least 0, got -1: delete it",
    ),
]


def answer(row: Row) -> str:
    """Try a row: the sentence that refuses it, or "" if it was accepted and right."""
    try:
        right = row.act()
    except Exception as error:  # whatever it is has to be a sentence
        return str(error)
    assert right is True, f"{row.area}, {row.given}: accepted, and wrong ({right!r})"
    return ""


def table() -> str:
    """All rows as Markdown."""
    lines = [
        "# Bad input",
        "",
        "Each row is tried by `tests/test_bad_inputs.py`; `python tests/support/bad_inputs.py` writes this page anew.",
        "",
        "| given to | what | answer |",
        "|---|---|---|",
    ]
    for row in ROWS:
        said = answer(row).replace("|", "\\|")
        lines.append(f"| {row.area} | {row.given} | {'refused: ' + said if said else 'accepted: ' + row.note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "bad_inputs.md").write_text(table())
