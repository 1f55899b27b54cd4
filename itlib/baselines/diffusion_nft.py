r"""DiffusionNFT (Zheng et al., arXiv 2509.16117): negative-aware fine-tuning on the forward process.

A reward becomes a probability of being good, :math:`\rho=\tfrac12+\tfrac12A/\mathrm{clip}` with the clipped
standardised advantage A, and the loss pulls two mixtures of student and old model toward the noise, one for the good
and one for the bad,

.. math:: \frac{\mathrm{clip}}{\beta}\Big[\rho\,\|(1-\beta)\varepsilon_{\mathrm{old}}+\beta\varepsilon_\theta-z\|^2
          +(1-\rho)\,\|(1+\beta)\varepsilon_{\mathrm{old}}-\beta\varepsilon_\theta-z\|^2\Big]
          +\kappa\,\|\varepsilon_\theta-\varepsilon_{\mathrm{base}}\|^2 .

It is quadratic in :math:`\varepsilon_\theta`: a regression with weight :math:`\beta\,\mathrm{clip}+\kappa` on

.. math:: \frac{\beta\,\mathrm{clip}\;\varepsilon_{\mathrm{old}} + A\,(z-\varepsilon_{\mathrm{old}})
          + \kappa\,\varepsilon_{\mathrm{base}}}{\beta\,\mathrm{clip}+\kappa} .

So with :math:`\kappa=0` a round *is* an explicit step of Algorithm 2, of size
:math:`\delta=1/(\beta\,\mathrm{clip}\,\mathrm{std}(r))` and with centred rewards, and the rounds never stop tilting.
With :math:`\kappa>0` they stop where :mod:`~itlib.baselines.advantage_weighted` does. An ``update`` of
:func:`~itlib.tilting.iterative_tilting`; the old model is the teacher.

Published values, from the authors' code: clip = 5, beta = 1 (.1 for one task), kappa = 1e-4, groups of 24. Left out:
a moving average of the old model, and a division of each square by its own mean absolute error, which moves the
minimiser.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from itlib._checks import NotNegative, Positive, checked
from itlib.baselines.advantage_weighted import standardised
from itlib.network import NoisePredictor
from itlib.tilting import TiltBatch, Update


@checked
def negative_aware(base: NoisePredictor, *, beta: Positive = 1.0, kappa: NotNegative = 1e-4, clip: Positive = 5.0) -> Update:
    """The target and factor of DiffusionNFT; the step of a tilt is ignored.

    Args:
        base: the pretrained model.
        beta: share of the student in the mixtures: the smaller, the longer a round's step.
        kappa: weight of the squared distance to the base.
        clip: advantage, in standard deviations, that counts as surely good.
    """

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        A = standardised(batch.r, batch.rewards, clip).unsqueeze(-1)
        with torch.no_grad():
            anchor = base(batch.x_t, batch.t)
        weight = beta * clip + kappa
        target = (beta * clip * batch.eps_old + A * (batch.z - batch.eps_old) + kappa * anchor) / weight
        return target, torch.tensor(math.sqrt(weight))

    return update
