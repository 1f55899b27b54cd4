r"""Reward-weighted regression: denoise the model's own samples, each with the weight that the tilt gives it.

.. math:: \min_\theta\ \mathbb E\,e^{\delta r(X_0)}\,\sigma_t^2\,\|\varepsilon_\theta(x_t,t)-z\|^2 ,

whose minimiser is again Proposition 3.1, :math:`\mathbb E[e^{\delta r}z\mid x_t]/\mathbb E[e^{\delta r}\mid x_t]`.
It asks nothing of the teacher but its samples. The price is variance: the noise :math:`z` has unit variance, where the
implicit form of Tilt Matching (:mod:`itlib.baselines.tilt_matching`) subtracts :math:`\varepsilon_{\mathrm{old}}`. With
N = 1 it is the one-shot method; iterated, N tilts of size :math:`\lambda/N`. An ``update`` of
:func:`~itlib.tilting.iterative_tilting`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itlib.beyond.implicit import log_mean_exp
from itlib.tilting import TiltBatch


def reweighted(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
    """Regress on the noise itself, with the factor exp(delta (r - c) / 2)."""
    return batch.z, torch.exp(0.5 * (delta * batch.r - log_mean_exp(batch, delta))).unsqueeze(-1)
