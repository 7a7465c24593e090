r"""Tanh-sinh quadrature: integrals for a solver's plan, exact to rounding and blind to end-point singularities.

With :math:`x = \tanh(\tfrac\pi2\sinh u)` an integrand decays doubly exponentially at both ends, and the trapezoidal
rule in u converges exponentially, also where the integrand blows up (integrably) at an end. At an end other than 0 the
distance to it is known to rounding only: there an inverse square root is integrated to about 1e-8.

References
----------
.. [1] H. Takahasi, M. Mori, "Double exponential formulas for numerical integration", Publ. RIMS 9 (1974).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["integrate"]

_NODES = 141
_REACH = 4.0  # |u| at which the weight has fallen below 1e-35, and that of 1/sqrt(t) at 0 below 1e-17


def integrate(function: Callable[[Tensor], Tensor], lower: Tensor, upper: Tensor) -> Tensor:
    r""":math:`\int_a^b f(t)\,dt` for vectors of limits.

    Parameters
    ----------
    function
        Maps times of shape ``(n, k)`` to values of that shape; called once.
    lower, upper
        Limits, float64, of shape ``(n,)``; ``upper < lower`` gives the negative integral.

    Returns
    -------
    float64, shape ``(n,)``.
    """
    u = torch.linspace(-_REACH, _REACH, _NODES, dtype=torch.float64)
    y = math.pi / 2 * torch.sinh(u)
    weight = math.pi / 2 * torch.cosh(u) / torch.cosh(y) ** 2 * _REACH / (_NODES - 1)
    fraction = torch.sigmoid(2 * y)  # (1 + tanh y) / 2, exact near 0
    width = (upper - lower)[:, None]
    # From the nearer end, so that nodes crowd it; and never on it, where the integrand may be infinite.
    times = torch.where(u < 0, lower[:, None] + width * fraction, upper[:, None] - width * torch.sigmoid(-2 * y))
    inner, outer = torch.nextafter(lower, upper)[:, None], torch.nextafter(upper, lower)[:, None]
    times = torch.minimum(torch.maximum(times, torch.minimum(inner, outer)), torch.maximum(inner, outer))
    return (function(times) * weight * width).sum(1)
