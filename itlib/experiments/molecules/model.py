r"""A generative model of molecules with a diffusion in it, and what it is made of.

The latent z of a molecule (:mod:`itlib.experiments.molecules.data`) is blurred, :math:`x_0 = z + \sigma\epsilon` with
:math:`\sigma=` :data:`BLUR`, so that it has a density. The diffusion models the law of :math:`x_0`, and a recurrent decoder
the law of the SMILES :math:`y_1,\dots,y_L` (in tokens) given :math:`x_0`,

.. math::

   p(y\mid x_0) = \prod_i p(y_i\mid y_{<i}, x_0).

A sample of the diffusion becomes one molecule, always the same: the most probable token at each step, and where RDKit
finds that this is no molecule, the first of a beam of four texts, in the order of their probabilities, that is one; where
none is, the first of a beam of sixteen. Where still none is, there is no molecule. A reward of a molecule is thus a
function of :math:`x_0` alone, as the paper has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from itlib.beyond.preconditioning import Gaussian, Whitened
from itlib.experiments.digits.images import ResidualPerceptron
from itlib.experiments.molecules.data import END, START, Latent, Vocabulary, chemistry, parsed
from itlib.network import Network, Residual
from itlib.schedules import Cosine, Schedule

#: Dimension of the latent.
D = 64
#: Standard deviation of the noise that is added to latents.
BLUR = 0.25
#: Texts that are kept in search of a molecule, at first and then.
BEAMS = (4, 16)
#: Texts that are written at a time, whatever is asked for.
AT_ONCE = 256
#: Tokens of the longest text that is tried.
LONGEST = 40
#: The committed weights.
WEIGHTS = Path(__file__).parent / "model.safetensors"


class Decoder(nn.Module):
    """A gated recurrent unit that writes a SMILES, token by token, with the latent in view at each step.

    Args:
        tokens: how many there are.
        d: dimension of the latent.
        width: units of the recurrent state.
        seed: fixes the initial weights; the global random state is left alone.
    """

    def __init__(self, tokens: int, d: int = D, width: int = 512, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(tokens, 64)
            self.condition = nn.Sequential(nn.Linear(d, 256), nn.SiLU(), nn.Linear(256, 96))
            self.begin = nn.Sequential(nn.Linear(d, 256), nn.SiLU(), nn.Linear(256, width), nn.Tanh())
            self.recurrent = nn.GRU(64 + 96, width, batch_first=True)
            self.output = nn.Linear(width, tokens)

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the latents x, (B, d), say at each step, (B, 96), and the first state, (1, B, width)."""
        return self.condition(x), self.begin(x).unsqueeze(0)

    def step(self, tokens: Tensor, seen: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of what follows each token, (B, L, tokens), and the state after the last, from tokens, (B, L)."""
        told = seen.unsqueeze(1).expand(-1, tokens.shape[1], -1)
        h, state = self.recurrent(torch.cat([self.embedding(tokens), told], -1), state)
        return self.output(h), state

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Logits, (B, L, tokens), of each of the tokens, (B, L), given latents x, (B, d), and the tokens before it."""
        begin = torch.full_like(tokens[:, :1], START)
        logits: Tensor = self.step(torch.cat([begin, tokens[:, :-1]], 1), *self.start(x))[0]
        return logits


@torch.no_grad()
def greedy(decoder: Decoder, x: Tensor) -> list[list[int]]:
    """The most probable token at each step, for latents x, (B, d)."""
    seen, state = decoder.start(x)
    token = torch.full((len(x), 1), START)
    written: list[Tensor] = []
    ended = torch.zeros(len(x), dtype=torch.bool)
    while len(written) < LONGEST and not ended.all():
        logits, state = decoder.step(token, seen, state)
        token = logits[:, -1].argmax(-1, keepdim=True)
        ended |= token[:, 0] == END
        written.append(token)
    found: list[list[int]] = torch.cat(written, 1).tolist()
    return found


@torch.no_grad()
def beam(decoder: Decoder, x: Tensor, width: int) -> list[list[list[int]]]:
    """Texts of high probability for each of the latents x, (B, d), best first."""
    n = len(x)
    seen, state = (v.repeat_interleave(width, -2) for v in decoder.start(x))
    texts = torch.empty(n, width, 0, dtype=torch.long)
    token = torch.full((n * width, 1), START)
    score = torch.full((n, width), -torch.inf)
    score[:, 0] = 0.0  # all are alike at first: only one may go on
    ended = torch.zeros(n, width, dtype=torch.bool)
    for _ in range(LONGEST):
        logits, state = decoder.step(token, seen, state)
        gain = functional.log_softmax(logits[:, -1], -1).view(n, width, -1)
        gain = gain.masked_fill(ended.unsqueeze(-1), -torch.inf)
        gain[..., END] = gain[..., END].masked_fill(ended, 0.0)
        score, best = (score.unsqueeze(-1) + gain).flatten(1).topk(width)
        parent, new = best // gain.shape[-1], best % gain.shape[-1]
        texts = torch.cat([texts.gather(1, parent.unsqueeze(-1).expand(-1, -1, texts.shape[-1])), new.unsqueeze(-1)], -1)
        state = state[:, (parent + width * torch.arange(n).unsqueeze(1)).flatten()]
        token, ended = new.view(-1, 1), new == END
        if ended.all():
            break
    found: list[list[list[int]]] = texts.tolist()
    return found


def new_denoiser(schedule: Schedule, data: Tensor | int = D, seed: int = 0) -> Residual:
    """An untrained denoiser of latents: a perceptron that corrects the Gaussian of the data, (n, d), or of dimension d."""
    gaussian = Gaussian(data, schedule)
    # Whitened needs of it the call and the last layer.
    network = cast(Network, ResidualPerceptron(len(gaussian.mean), 256, 3, seed=seed))
    return Residual(gaussian, Whitened(network, gaussian, tilt=False))


def _blocks(x: Tensor, size: int) -> Iterator[tuple[Tensor, int]]:
    """Rows in blocks of one size, the last filled up with zeros: the product of a row must not depend on the others."""
    for block in x.split(size) if len(x) else ():
        yield functional.pad(block, (0, 0, 0, size - len(block))), len(block)


@dataclass(frozen=True)
class MoleculeModel:
    """The diffusion and what makes molecules of its samples.

    Args:
        denoiser: predicts the noise in blurred latents, (B, d).
        schedule: of the diffusion.
        decoder: writes SMILES.
        latent: from features to latents.
        vocabulary: the tokens of the decoder.
    """

    denoiser: Residual
    schedule: Schedule
    decoder: Decoder
    latent: Latent
    vocabulary: Vocabulary

    @property
    def d(self) -> int:
        """Dimension of the samples."""
        return self.latent.components.shape[1]

    def decode(self, x: Tensor) -> list[str | None]:
        """Canonical SMILES of the molecules that samples, (n, d), stand for; None where there is none.

        The same row always gives the same molecule.

        Raises:
            ValueError: for samples of another dimension, or that are not finite.
            ModuleNotFoundError: without RDKit.
        """
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ValueError(f"this model decodes samples of shape (n, {self.d}), got {tuple(x.shape)}")
        if not x.isfinite().all():
            raise ValueError("samples to decode must be finite")
        texts: list[str | None] = []
        x = x.detach().cpu().float()
        for block, n in _blocks(x, AT_ONCE):
            texts += [self.molecule(tokens) for tokens in greedy(self.decoder, block)[:n]]
        for width in BEAMS:
            missing = [i for i, text in enumerate(texts) if text is None]
            found = [
                row for block, n in _blocks(x[missing], AT_ONCE // width) for row in beam(self.decoder, block, width)[:n]
            ]
            for i, candidates in zip(missing, found, strict=True):
                texts[i] = next(filter(None, map(self.molecule, candidates)), None)
        return texts

    def molecule(self, tokens: list[int]) -> str | None:
        """The canonical SMILES of tokens that end and are a molecule, else None."""
        found = parsed(self.vocabulary.decode(tokens)) if END in tokens else None
        return None if found is None else str(chemistry().MolToSmiles(found))


def load(path: Path = WEIGHTS) -> MoleculeModel:
    """The model whose weights a file holds; they are kept in half precision and used in single.

    Raises:
        FileNotFoundError: if there is no such file, with the command that makes it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python -m itlib.experiments.molecules.train")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["vocabulary"])
    tensors = {key: value.float() for key, value in safetensors.torch.load_file(path).items()}
    parts: dict[str, dict[str, Tensor]] = {"denoiser": {}, "decoder": {}, "latent": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = value
    vocabulary = Vocabulary(tuple(about["atoms"]), tuple(map(tuple, about["merges"])))
    latent, schedule = Latent(**parts["latent"]), Cosine()
    denoiser = new_denoiser(schedule, latent.components.shape[1])
    decoder = Decoder(len(vocabulary.tokens), latent.components.shape[1], len(parts["decoder"]["output.weight"][0]))
    for module, weights in ((denoiser, parts["denoiser"]), (decoder, parts["decoder"])):
        module.load_state_dict(weights)
        module.eval().requires_grad_(False)
    return MoleculeModel(denoiser, schedule, decoder, latent, vocabulary)


def save(model: MoleculeModel, path: Path) -> None:
    """Write a model in half precision."""
    tensors = {f"denoiser.{k}": v for k, v in model.denoiser.state_dict().items()}
    tensors |= {f"decoder.{k}": v for k, v in model.decoder.state_dict().items()}
    tensors = {k: v.half() if v.ndim == 2 else v for k, v in tensors.items()}
    tensors |= {f"latent.{k}": v for k, v in vars(model.latent).items()}
    about = {"vocabulary": json.dumps({"atoms": model.vocabulary.atoms, "merges": model.vocabulary.merges})}
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in tensors.items()}, path, about)
