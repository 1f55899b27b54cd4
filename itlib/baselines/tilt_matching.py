r"""Tilt Matching (arXiv 2512.21829), the concurrent paper: explicit and implicit.

In the denoiser's units, with :math:`z` the noise of :math:`x_t`, a tilt of size :math:`\delta` and any constant :math:`c`,

.. math::

   \text{explicit:}\quad & \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}}
       + \delta\,(r-c)\,(z-\varepsilon_{\mathrm{old}}), \\
   \text{implicit:}\quad & \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}}
       + (e^{\delta(r-c)}-1)\,(z-\mathrm{sg}\,\varepsilon_\theta).

The explicit target with :math:`c=0` is line 11 of Algorithm 2: the same method, found twice. The implicit one has the
student on both sides. At its fixed point :math:`\mathbb E[e^{u}(\varepsilon-z)\mid x_t]
=\varepsilon_{\mathrm{old}}-\mathbb E[z\mid x_t]` with :math:`u=\delta(r-c)`, so that

.. math:: \varepsilon(x_t) = \frac{\mathbb E[e^{\delta r}z\mid x_t]}{\mathbb E[e^{\delta r}\mid x_t]}
          \quad\text{if}\quad \varepsilon_{\mathrm{old}}=\mathbb E[z\mid x_t],

which is Proposition 3.1 in the denoiser's units: exact for every :math:`\delta`, where the explicit step leaves
:math:`O(\delta^2)`. Because the second :math:`\varepsilon_\theta` is not differentiated, the implicit gradient is that of
a weighted regression with factor :math:`e^{u/2}` on the target :math:`z+e^{-u}(\varepsilon_{\mathrm{old}}-z)`, and this
is how it is computed: as an ``update`` of :func:`~itlib.tilting.iterative_tilting`, as the explicit form is,
``explicit(centred(c))`` of :mod:`itlib.estimators`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itlib.tilting import TiltBatch


def log_mean_exp(batch: TiltBatch, delta: float) -> Tensor:
    r"""The constant :math:`\delta c = \log` mean of :math:`e^{\delta r}` over the tilt's dataset, ()."""
    rewards = batch.rewards if len(batch.rewards) else batch.r
    return torch.logsumexp(delta * rewards, 0) - math.log(len(rewards))


def implicit(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
    """The implicit form, as a weighted regression.

    Weights are kept above e^-10, so that targets stay finite in single precision.
    """
    u = (delta * batch.r - log_mean_exp(batch, delta)).clamp_min(-10.0).unsqueeze(-1)
    return batch.z + torch.exp(-u) * (batch.eps_old - batch.z), torch.exp(0.5 * u)
