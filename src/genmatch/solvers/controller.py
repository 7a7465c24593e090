r"""The choice of steps: how large an error is, and how long the next step may be.

An error is measured against what is tolerated, :math:`\text{atol} + \text{rtol}\,|x|`, as the root mean square over a
sample's elements. From the last three of these, :math:`e_n, e_{n-1}, e_{n-2}`, a step h becomes

.. math:: h\,\min\bigl(M, \max\bigl(m,\; S\,e_n^{-(P+I+D)/5}\,e_{n-1}^{(P+2D)/5}\,e_{n-2}^{-D/5}\bigr)\bigr),

a controller of log h with proportional, integral and derivative gains P, I and D. I = 1 alone is the classical choice,
which aims at the tolerance with every step.

References
----------
.. [1] K. Gustafsson, "Control-theoretic techniques for stepsize selection in explicit Runge-Kutta methods", ACM TOMS 17
   (1991), eq. 3.4 (PI).
.. [2] G. Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003), eq. 12 (the general filter).
.. [3] E. Hairer, S. Nørsett, G. Wanner, "Solving ordinary differential equations I", 1993, Section II.4 (the norm, the
   first step, the limits of the factor).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Controller", "first_step", "size"]

ORDER = 5  # the local error is proportional to the fifth power of the step
LEAST, MOST = 0.2, 5.0  # m and M
SMALLEST = 1e-4  # an error below this, which steps of the largest growth leave, says nothing of the next


class Controller(NamedTuple):
    """Gains and the safety factor S."""

    proportional: float
    integral: float
    derivative: float
    safety: float

    def factor(self, error: Tensor, before: Tensor, earlier: Tensor, held: Tensor) -> Tensor:
        """What a step is multiplied by, ``(B,)``, float64.

        Parameters
        ----------
        error
            Of the step tried, float64 ``(B,)``: above 1, or not finite, it is rejected.
        before, earlier
            Of the two steps accepted before it.
        held
            Whether the try before was rejected: then the step does not grow.

        A rejected step is shortened by its own error alone.
        """
        p, i, d = (gain / ORDER for gain in self[:3])
        logs = [e.clamp(min=least).log() for e, least in ((error, 1e-10), (before, SMALLEST), (earlier, SMALLEST))]
        filtered = -(p + i + d) * logs[0] + (p + 2 * d) * logs[1] - d * logs[2]
        rejected = ~(error <= 1)
        wanted = self.safety * torch.where(rejected, -logs[0] / ORDER, filtered).exp()
        factor = wanted.nan_to_num(nan=LEAST, posinf=MOST).clamp(LEAST, MOST)
        # In float32's precision: the last bit of a logarithm differs between a batch of 1 and one of 1,000.
        return torch.where(held | rejected, factor.clamp(max=1.0), factor).float().double()


def size(values: Tensor, scale: Tensor) -> Tensor:
    """The root mean square of ``values / scale`` over each sample's elements, float64 ``(B,)``.

    The squares are added in pairs, by sums of whole tensors: the same bits for a sample in every batch.
    """
    # Without an absolute tolerance a value of 0 whose error is 0 would be 0 / 0.
    scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
    squares = (values / scale).reshape(len(values), -1).double() ** 2
    count = max(squares.shape[1], 1)
    width = 1 << max(count - 1, 0).bit_length()
    squares = torch.nn.functional.pad(squares, (0, width - squares.shape[1]))
    while width > 1:
        width //= 2
        squares = squares[:, :width] + squares[:, width:]
    return (squares[:, 0] / count).sqrt()


def first_step(slope: Tensor, change: Tensor, tried: Tensor) -> Tensor:
    """The length of a first step, ``(B,)``, from the sizes of the slope and of its change by an Euler step of length
    ``tried`` (Hairer, Nørsett and Wanner, Section II.4).
    """
    curve = change / tried
    largest = torch.maximum(slope, curve)
    wanted = ((0.01 / largest).log() / ORDER).exp()
    wanted = torch.where(largest > 1e-15, wanted, (tried * 1e-3).clamp(min=1e-6))
    return torch.minimum(100 * tried, wanted.nan_to_num(nan=0.0)).clamp(min=1e-10).float().double()
