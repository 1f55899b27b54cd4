r"""Tilt Matching (arXiv 2512.21829), the concurrent paper: explicit and implicit.

In the units of the noise, with :math:`z` the noise of :math:`x_t`, a tilt of size :math:`\delta` and any constant :math:`c`,

.. math::

   \text{explicit:}\quad & \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}}
       + \delta\,(r-c)\,(z-\varepsilon_{\mathrm{old}}), \\
   \text{implicit:}\quad & \varepsilon_\theta \leftarrow \varepsilon_{\mathrm{old}}
       + (e^{\delta(r-c)}-1)\,(z-\mathrm{sg}\,\varepsilon_\theta).

The explicit target with :math:`c=0` is line 11 of Algorithm 2: the same method, found twice. The implicit one has the
student on both sides, and at its fixed point is exact for every :math:`\delta` (derived in :mod:`itlib.beyond.implicit`).
Both are an ``update`` of :func:`~itlib.tilting.iterative_tilting`, and c is the mean reward of the tilt's dataset here.
"""

from __future__ import annotations

from itlib.beyond.estimators import centred
from itlib.beyond.implicit import implicit
from itlib.tilting import Update, explicit

EXPLICIT: Update = explicit(centred())
IMPLICIT: Update = implicit
