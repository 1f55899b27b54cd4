r"""Reinforce Adjoint Matching (RAM; Bergmeister et al., arXiv 2605.10759): the pretraining target, corrected by the reward.

Draw :math:`X_0` from the current model, noise it as in pretraining, and regress. In units of the noise, with
strength :math:`\lambda` and sg a stopped gradient,

.. math:: \varepsilon_\theta(x_t,t)\ \leftarrow\ \mathrm{sg}\big[\varepsilon_{\mathrm{base}}(x_t,t)
          + \lambda\,(r(X_0)-c)\,(z-\varepsilon_\theta(x_t,t))\big] .

This is line 11 of Algorithm 2 with the whole strength in one step and with the anchor at the *base* forever. Where
it stops,

.. math:: \varepsilon_\theta - \varepsilon_{\mathrm{base}}
          = \lambda\,\mathbb E_\theta\big[(r-c)(z-\varepsilon_\theta)\mid x_t\big] ,

which is :math:`\lambda` times the covariance (3.9) under the *final* model, if that model's score is the score of
what it draws. The tilt asks for the integral of this covariance over all strengths from 0 to :math:`\lambda`. The two
agree for a Gaussian base and a linear reward, else to first order in :math:`\lambda`; the paper says so, and that a
correction for the cost of the path, left out for speed, makes the difference.

The loss as printed (c = 0) is a contraction only where :math:`1+\lambda(\mathbb E_\theta[r\mid x_t]-c)` is positive:
rewards far below c push the student away from its own samples.

An ``update`` of :func:`~itlib.tilting.iterative_tilting`, whose tilts are then rounds, all of full strength: sg of
theta is the teacher, which is as old as the round.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itlib._checks import checked
from itlib.network import NoisePredictor
from itlib.tilting import TiltBatch, Update


@checked
def reinforce_adjoint(base: NoisePredictor, lam: float = 1.0, *, centred: bool = False) -> Update:
    """The target of RAM; the step of a tilt is ignored.

    Args:
        base: the pretrained model, which stays the anchor.
        lam: tilt strength; the paper folds it into the reward.
        centred: whether c is the mean reward of the round, or 0 as printed.
    """

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        c = batch.rewards.mean() if centred else torch.zeros(())
        with torch.no_grad():
            anchor = base(batch.x_t, batch.t)
        return anchor + (lam * (batch.r - c)).unsqueeze(-1) * (batch.z - batch.eps_old), torch.ones(())

    return update
