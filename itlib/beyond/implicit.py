r"""The implicit step of Tilt Matching (arXiv 2512.21829): a tilt without the Taylor error.

.. math:: \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}} + (e^{u}-1)\,(z-\mathrm{sg}\,\varepsilon_\theta),
          \qquad u=\delta\,r(X_0)-\log\overline{e^{\delta r}} .

At its fixed point :math:`\mathbb E[e^{u}(\varepsilon-z)\mid x_t]=\varepsilon_{\mathrm{old}}-\mathbb E[z\mid x_t]`, so that

.. math:: \varepsilon(x_t) = \frac{\mathbb E[e^{\delta r}z\mid x_t]}{\mathbb E[e^{\delta r}\mid x_t]}
          \quad\text{if}\quad \varepsilon_{\mathrm{old}}=\mathbb E[z\mid x_t],

which is Proposition 3.1 in the units of the noise: exact for every :math:`\delta`, where the explicit step leaves
:math:`O(\delta^2)`. Because the second :math:`\varepsilon_\theta` is not differentiated, the implicit gradient is that of
a weighted regression with factor :math:`e^{u/2}` on the target :math:`z+e^{-u}(\varepsilon_{\mathrm{old}}-z)`, and this
is how it is computed. It is an ``update`` of :func:`~itlib.tilting.iterative_tilting`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itlib.tilting import TiltBatch


def log_mean_exp(batch: TiltBatch, delta: float) -> Tensor:
    """Log of the mean of exp(delta r) over the tilt's dataset, ()."""
    rewards = batch.rewards if len(batch.rewards) else batch.r
    return torch.logsumexp(delta * rewards, 0) - math.log(len(rewards))


def implicit(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
    """The implicit step, as a weighted regression.

    Weights are kept above e^-10, so that targets stay finite in single precision.
    """
    u = (delta * batch.r - log_mean_exp(batch, delta)).clamp_min(-10.0).unsqueeze(-1)
    return batch.z + torch.exp(-u) * (batch.eps_old - batch.z), torch.exp(0.5 * u)
