r"""Flow-GRPO (Liu et al., arXiv 2505.05470): a policy gradient with group-normalised advantages and a KL at every step.

It is :mod:`~itlib.baselines.policy_gradient` with the advantage :math:`A=(r-\bar r)/\mathrm{std}(r)` of a group of
samples of one prompt (here there is one prompt, and the batch is the group), a clipped ratio, and
:math:`\beta\,\|m_\theta-m_{\mathrm{base}}\|^2/2\eta^2` for each step. As in DPOK the KL of later steps is not taken
off the reward of a step. **Where it stops** has a closed form. Per step the expected gradient vanishes where the
control is :math:`u=g\,\nabla Y` with :math:`Y=\lambda\,\mathbb E_\theta[r\mid x_t]` and
:math:`\lambda=1/(\beta\,\mathrm{std}(r))`. In continuous time the expectation of the reward under this very control
solves

.. math:: \partial_\tau Y + b\cdot\nabla Y + g^2\|\nabla Y\|^2 + \tfrac{g^2}{2}\Delta Y = 0 ,

so :math:`2Y` solves the equation of the tilt of *twice* the strength (Hopf and Cole), :math:`2Y=\log\mathbb
E_{\mathrm{base}}[e^{2\lambda r}\mid x_t]`, and

.. math:: s_\theta = s_{\mathrm{base}} + \nabla Y = \tfrac12\big(s_{\mathrm{base}} + s^{2\lambda r}\big) ,

halfway to the score of the doubled tilt: the tilt itself for a Gaussian base and a linear reward, too far by
:math:`\tfrac{\lambda^2}{2}\kappa_3(g,r,r)` else, and nowhere if the doubled tilt does not exist. This holds for DPOK
as well, with its own :math:`\lambda`.

Published values, from the authors' code: beta = .04, ratios within 1 ± 1e-4 of log-densities averaged over
dimensions, advantages clipped at 5, one update a batch or two, groups of 24. Its sampler has the noise
:math:`.7\sqrt{t/(1-t)}`, half of what forgets the start of a chain (:math:`\sqrt{2t/(1-t)}`); here it is DDPM's,
which does.
"""

from __future__ import annotations

from itlib.baselines.policy_gradient import PolicyGradientConfig

#: Knobs of :func:`~itlib.baselines.policy_gradient.policy_gradient`; beta is ``kl``, in units of a standardised reward.
FLOW_GRPO = PolicyGradientConfig(updates=2, kl=0.04, standardised=True, clip=0.2)
