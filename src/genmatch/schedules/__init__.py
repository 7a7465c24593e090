r"""Schedules: how much data and how much noise there is at each time.

A schedule maps t in [0, 1] to :math:`(\alpha_t, \sigma_t)` in :math:`x_t = \alpha_t x_1 + \sigma_t x_0`, with noise at
t = 0 and data at t = 1. A subclass writes ``__call__`` alone; derivatives are taken by forward-mode differentiation, so
none is ever written (or mistyped) by hand.

With :math:`\lambda = \log(\alpha/\sigma)` half the log signal-to-noise ratio, the Wronskian
:math:`W = \dot\alpha\sigma - \alpha\dot\sigma = \alpha\sigma\dot\lambda` is positive wherever the path moves from noise
to data.

References
----------
.. [1] Y. Lipman et al., "Flow matching for generative modeling", arXiv 2210.02747 (CondOT, with ``sigma_min``).
.. [2] X. Liu, C. Gong, Q. Liu, "Flow straight and fast", arXiv 2209.03003 (rectified flow: CondOT).
.. [3] A. Nichol, P. Dhariwal, "Improved denoising diffusion", arXiv 2102.09672; M. Albergo et al., "Stochastic
   interpolants", arXiv 2303.08797 (the trigonometric path).
.. [4] J. Ho, A. Jain, P. Abbeel, "Denoising diffusion probabilistic models", arXiv 2006.11239, Section 4.
.. [5] Y. Song et al., "Score-based generative modeling through SDEs", arXiv 2011.13456, Appendix C (VP, VE).
.. [6] T. Karras et al., "Elucidating the design space of diffusion-based generative models", arXiv 2206.00364, eq. 5.
.. [7] E. Hoogeboom, J. Heek, T. Salimans, "Simple diffusion", arXiv 2301.11093; P. Esser et al., "Scaling rectified
   flow transformers", arXiv 2403.03206, eq. 23 (schedules shifted with the resolution).
.. [8] S. Lin et al., "Common diffusion noise schedules and sample steps are flawed", arXiv 2305.08891 (zero terminal
   SNR).
"""

from __future__ import annotations

from .chain import DDPM
from .continuous import EDM, VE, VP, CondOT, Cosine, Polynomial
from .instant import Instant
from .instant import Number as Number
from .instant import along_batch as along_batch
from .instant import divide as divide
from .rescaled import Shifted, ZeroTerminal, resolution_shift
from .schedule import Schedule
from .schedule import check_positive as check_positive
from .schedule import rest as rest

__all__ = [
    "DDPM",
    "EDM",
    "VE",
    "VP",
    "CondOT",
    "Cosine",
    "Instant",
    "Polynomial",
    "Schedule",
    "Shifted",
    "ZeroTerminal",
    "resolution_shift",
]
