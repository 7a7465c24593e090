r"""The pair of Dormand and Prince: a step of order 5, an estimate of its error, and the states within it.

References
----------
.. [1] J. Dormand, P. Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6 (1980), Table 2.
.. [2] E. Hairer, S. Nørsett, G. Wanner, "Solving ordinary differential equations I", 1993, Section II.6, eq. 6.12 (the
   states within a step, of order 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..schedules import Instant, Number, along_batch
from .field import Field
from .runge_kutta import DormandPrince
from .transition import combine

__all__ = ["CURVE", "ERROR", "STAGES", "Trial", "slope", "try_step"]

STAGES = 6  # evaluations of a step: the seventh is the first of the next
# The step minus that of order 4, and what a cubic through both ends and slopes misses, in units of h times the slopes.
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
CURVE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)


class Trial(NamedTuple):
    """A step that was tried: where it began, its length for each sample along the batch, its slopes, and its end."""

    x: Tensor
    step: Tensor
    slopes: tuple[Tensor, ...]
    end: Tensor

    @property
    def error(self) -> Tensor:
        """The difference to the step of order 4."""
        return self.step * combine(zip(ERROR, self.slopes, strict=True))

    def within(self, share: Tensor) -> Tensor:
        r"""The state after a share :math:`\theta \in [0, 1]` of the step, ``(B,)``: of order 4, exact at both ends.

        .. math:: x + \theta\Delta + \theta(1-\theta)\bigl[hk_1 - \Delta
           + \theta\bigl(2\Delta - hk_7 - hk_1 + (1-\theta)\,h\textstyle\sum_i d_i k_i\bigr)\bigr],
           \qquad \Delta = x' - x
        """
        theta, change = along_batch(share, self.x), self.end - self.x
        first, last = self.step * self.slopes[0], self.step * self.slopes[-1]
        curve = self.step * combine(zip(CURVE, self.slopes, strict=True))
        bend = first - change + theta * (2 * change - last - first + (1 - theta) * curve)
        # lerp starts from the nearer end, so that both are met exactly.
        return torch.lerp(self.x, self.end, theta.expand_as(self.x)) + theta * (1 - theta) * bend


def slope(field: Field, x: Tensor, instant: OperatorInstant) -> Tensor:
    """dx/dt at an instant of ``field.among``."""
    drift = field(x, instant).drift
    if drift is None:  # all weights are 0 there
        return torch.zeros_like(x)
    drift = drift if drift.dtype == x.dtype else drift.to(x.dtype)
    return (drift if field.speed == 1 else field.speed * drift).expand_as(x)


def try_step(field: Field, x: Tensor, first: Tensor, t: Tensor, until: Tensor) -> Trial:
    """A step from times t to times ``until``, float64 ``(B,)``, with the slope at its start given."""
    length = until - t
    step, slopes = along_batch(length, x), [first]
    inner = [t + c * length for c in DormandPrince.c[1:-1]]
    *instants, end = _among(field, [*inner, until])
    for weights, instant in zip(DormandPrince.a[1:], [*instants, end], strict=True):
        slopes.append(slope(field, x + step * combine(zip(weights, slopes, strict=True)), instant))
    moved = x + step * combine(zip(DormandPrince.b, slopes, strict=True))
    return Trial(x, step, (*slopes, slope(field, moved, end)), moved)


def _among(field: Field, times: list[Tensor]) -> list[OperatorInstant]:
    """The instants of several vectors of times: a schedule's derivatives cost as much for one as for all."""
    every = field.among(torch.cat(times))
    if not all(type(model) is Instant for model in every.models):
        return [field.among(t) for t in times]
    size = len(times[0])
    return [_rows(every, slice(begin, begin + size)) for begin in range(0, size * len(times), size)]


def _rows(instant: OperatorInstant, rows: slice) -> OperatorInstant:
    def part(value: Number) -> Number:
        return value[rows] if isinstance(value, Tensor) and value.ndim else value

    def own(model: Instant) -> Instant:
        return Instant(
            part(model.t),
            part(model.alpha),
            part(model.sigma),
            derive=lambda: (part(model.alpha_dot), part(model.sigma_dot)),
        )

    models = tuple(own(model) for model in instant.models)
    return OperatorInstant(part(instant.t), models, tuple(part(weight) for weight in instant.weights))
