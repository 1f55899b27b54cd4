r"""Advantage-weighted matching (AWM; Xue et al., arXiv 2509.25050): the denoising loss times an advantage.

The paper's policy gradient takes minus the denoising loss for the log-density, with likelihood ratios to the model
that drew :math:`X_0` and a penalty of squared distance to the base. On policy, as published, every ratio is 1 and the
gradient is that of

.. math:: \mathbb E\,\Big[A\,\|\varepsilon_\theta-z\|^2 + \kappa\,\|\varepsilon_\theta-\varepsilon_{\mathrm{base}}\|^2\Big],
          \qquad A = \frac{r-\bar r}{\mathrm{std}(r)}\ \text{clipped} .

It is also that of a regression on :math:`\varepsilon_{\mathrm{old}}+A(z-\varepsilon_{\mathrm{old}})
+\kappa(\varepsilon_{\mathrm{base}}-\varepsilon_{\mathrm{old}})`, which is how it is computed here: an ``update`` of
:func:`~itlib.tilting.iterative_tilting`. It stops where :math:`\kappa(\varepsilon_\theta-\varepsilon_{\mathrm{base}})
=\mathbb E_\theta[A(z-\varepsilon_\theta)\mid x_t]`: the fixed point of
:mod:`~itlib.baselines.reinforce_adjoint_matching` at the strength :math:`\lambda=1/(\kappa\,\mathrm{std}_\theta(r))`,
which is known only at the end of the run. With :math:`\kappa=0` every round tilts further, by :math:`1/\mathrm{std}(r)`,
forever.

Published values, from the authors' code: advantages clipped at 5 and divided by 5 against kappa = .001, which is .005
here; groups of 24, learning rate 3e-4. The code also raises the denoising loss to the power 1/4, which moves its
minimiser, and adds a second penalty to a moving average of the model, which vanishes where it stops; both are left
out here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from itlib._checks import NotNegative, Positive, checked
from itlib.network import NoisePredictor
from itlib.tilting import TiltBatch, Update


def standardised(rewards: Tensor, group: Tensor, clip: float) -> Tensor:
    """Advantages (r - mean) / std of a group, (M,), kept within -clip and clip."""
    return ((rewards - group.mean()) / group.std().clamp_min(1e-8)).clamp(-clip, clip)


@checked
def advantage_weighted(base: NoisePredictor, *, kappa: NotNegative = 1.0, clip: Positive = 5.0) -> Update:
    """The target of advantage-weighted matching; the step of a tilt is ignored.

    Args:
        base: the pretrained model.
        kappa: weight of the squared distance to it.
        clip: largest advantage, in either direction, in standard deviations.
    """

    def update(batch: TiltBatch, delta: float) -> tuple[Tensor, Tensor]:
        A = standardised(batch.r, batch.rewards, clip).unsqueeze(-1)
        with torch.no_grad():
            anchor = base(batch.x_t, batch.t)
        return batch.eps_old + A * (batch.z - batch.eps_old) + kappa * (anchor - batch.eps_old), torch.ones(())

    return update
