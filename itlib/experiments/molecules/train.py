"""Train the model of molecules: ``python -m itlib.experiments.molecules.train --minutes 40``.

Three stages: read molecules and describe them (once; kept in the folder), train the denoiser (a twelfth of the time), train
the decoder (the rest). The learning rate falls as the time that was granted is used up. What is written, every three
minutes: ``model.safetensors``, a whole model, and ``checkpoint.safetensors``, from which the same command goes on. Copied
beside this module, the first is what the library reads.

The committed weights took 20 minutes, 3 of them for the denoiser: after 12 of 40 the command was given again with
``--minutes 20``, so that the rate fell to zero there.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from itlib.experiments.molecules.data import END, Latent, Vocabulary, features, some
from itlib.experiments.molecules.model import BLUR, WEIGHTS, D, Decoder, MoleculeModel, new_denoiser, save
from itlib.schedules import Cosine
from itlib.tilting import derive_seed
from itlib.training import TrainingConfig, train_noise_predictor

#: Molecules that are described; the last :data:`HELD_OUT` of them are not trained on.
MOLECULES, HELD_OUT = 120_000, 2000
#: Merges of the vocabulary.
MERGES = 128
BATCH, RATE = 128, 2e-3


@dataclass(frozen=True)
class Prepared:
    """Latents, (n, d), their tokens, (n, L), padded by the end, and how both were made."""

    z: Tensor
    tokens: Tensor
    latent: Latent
    vocabulary: Vocabulary


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Tokens of several molecules as a rectangle, (n, L)."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[END] * (longest - len(row))] for row in rows], dtype=torch.uint8)


def prepare(path: Path, molecules: int = MOLECULES) -> Prepared:
    """Describe molecules of the training split, or read what was kept of that."""
    if path.exists():
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["vocabulary"])
        kept = safetensors.torch.load_file(path)
        latent = Latent(kept["mean"], kept["unit"], kept["components"])
        return Prepared(
            kept["z"], kept["tokens"], latent, Vocabulary(tuple(about["atoms"]), tuple(map(tuple, about["merges"])))
        )
    texts = some("train", molecules)
    vocabulary = Vocabulary.learned(texts, MERGES)
    rows, pieces = [vocabulary.encode(text) for text in texts], []
    for start in range(0, len(texts), 5000):
        piece = texts[start : start + 5000]
        pieces.append(torch.from_numpy(features(piece)))
        print(f"described {start + len(piece)} of {len(texts)} molecules", flush=True)
    f = torch.cat(pieces)
    latent = Latent.fitted(f, D)
    found = Prepared(latent.encode(f), padded(rows), latent, vocabulary)
    tensors = {"z": found.z, "tokens": found.tokens} | {k: v.contiguous() for k, v in vars(latent).items()}
    about = {"vocabulary": json.dumps({"atoms": vocabulary.atoms, "merges": vocabulary.merges})}
    safetensors.torch.save_file(tensors, path, about)
    return found


def likelihood_loss(decoder: Decoder, x: Tensor, tokens: Tensor) -> Tensor:
    """Nats of a SMILES, on average over molecules, from latents x, (B, d), and tokens, (B, L)."""
    tokens = tokens[:, : int((tokens != END).sum(1).max()) + 1].long()
    logits = decoder(x, tokens)
    each = functional.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    live = (tokens != END).cumprod(1).roll(1, 1)  # up to and with the first end
    live[:, 0] = 1
    return (each * live).sum(1).mean()


def train(folder: Path, minutes: float, molecules: int = MOLECULES, every: float = 180.0) -> None:
    """Train within so many minutes of the processor, or go on where a checkpoint stands."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    data = prepare(folder / "data.safetensors", molecules)
    checkpoint, schedule, granted = folder / "checkpoint.safetensors", Cosine(), 60.0 * minutes
    generator = torch.Generator().manual_seed(derive_seed(0, "molecules"))

    def blurred(z: Tensor) -> Tensor:
        return z + BLUR * torch.randn(z.shape, generator=generator)

    z, z_out = data.z[:-HELD_OUT], data.z[-HELD_OUT:]
    denoiser, decoder = new_denoiser(schedule, blurred(z)), Decoder(len(data.vocabulary.tokens))
    average = copy.deepcopy(decoder)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=RATE)
    used, steps = 0.0, 0
    if checkpoint.exists():
        kept = safetensors.torch.load_file(checkpoint)
        used, steps = float(kept["used"]), int(kept["steps"])
        denoiser.load_state_dict({k[9:]: v for k, v in kept.items() if k.startswith("denoiser.")})
        decoder.load_state_dict({k[8:]: v for k, v in kept.items() if k.startswith("decoder.")})
        average.load_state_dict({k[8:]: v for k, v in kept.items() if k.startswith("average.")})
        for i, p in enumerate(decoder.parameters()):
            optimizer.state[p] = {n: kept[f"adam.{i}.{n}"] for n in ("step", "exp_avg", "exp_avg_sq")}
        generator.manual_seed(derive_seed(steps, "molecules"))
        print(f"going on after {used / 60:.1f} minutes and {steps} steps", flush=True)
    else:
        clock, epochs = time.process_time(), max(4, int(granted / 12 / (0.000045 * len(z))))
        config = TrainingConfig(epochs=epochs, batch_size=512, lr=2e-3, patience=epochs, validation_fraction=0.01)
        for step in train_noise_predictor(denoiser, blurred(z), schedule, config):
            spent = time.process_time() - clock
            print(f"denoiser, epoch {step.epoch} of {epochs}: loss {step.validation_loss:.3f}, {spent:.0f} s", flush=True)
        used = time.process_time() - clock

    def keep() -> None:
        tensors = {f"denoiser.{k}": v for k, v in denoiser.state_dict().items()}
        tensors |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
        for i, p in enumerate(decoder.parameters()):
            tensors |= {f"adam.{i}.{k}": v for k, v in optimizer.state[p].items()}
        tensors |= {"used": torch.tensor(used), "steps": torch.tensor(steps)}
        safetensors.torch.save_file({k: v.detach().contiguous() for k, v in tensors.items()}, checkpoint)
        model = MoleculeModel(denoiser, schedule, average, data.latent, data.vocabulary)
        save(model, folder / "model.safetensors")
        with torch.no_grad():
            x = z_out + BLUR * torch.randn(z_out.shape, generator=torch.Generator().manual_seed(1))
            loss = float(likelihood_loss(average, x, data.tokens[-HELD_OUT:]))
        valid = sum(text is not None for text in model.decode(x[:500])) / 5
        print(f"decoder, {used / 60:.1f} of {minutes:g} minutes, {steps} steps: {loss:.2f} nats a molecule (held out), "
              f"{valid:.0f} % of 500 held-out latents decoded", flush=True)  # fmt: skip

    clock, saved = time.process_time() - used, used
    while used < granted:
        rows = torch.randint(len(z), (BATCH,), generator=generator)
        warm = min(1.0, (steps + 1) / 200)
        optimizer.param_groups[0]["lr"] = RATE * warm * 0.5 * (1 + math.cos(math.pi * used / granted))
        loss = likelihood_loss(decoder, blurred(z[rows]), data.tokens[:-HELD_OUT][rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 2.0)
        optimizer.step()
        steps += 1
        with torch.no_grad():
            share = max(0.001, 10 / (10 + steps))
            torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), share)
        used = time.process_time() - clock
        if used - saved >= every:
            keep()
            clock += time.process_time() - clock - used  # what judging took is not training
            saved = used
    keep()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m itlib.experiments.molecules.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="of one processor core, for denoiser and decoder")
    parser.add_argument("--out", type=Path, default=Path("runs/molecules"), help="folder of data, checkpoint and model")
    parser.add_argument("--molecules", type=int, default=MOLECULES, help="how many are described at first")
    given = parser.parse_args(arguments)
    train(given.out, given.minutes, given.molecules)
    print(f"the model is {given.out / 'model.safetensors'}; the library reads {WEIGHTS}")


if __name__ == "__main__":
    main()
