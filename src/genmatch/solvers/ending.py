r"""The end of an adaptive run at a time where the field is not finite: up to a cut by steps, from there in one.

The velocity of a data network is 0/0 at the data, and that of a noise network at pure noise. From the cut on the
remaining step is an exponential one of order 1, whose error follows from what it freezes. With
:math:`r = \sigma/\alpha` and :math:`y = x/\alpha` a flow is :math:`dy/dr = E_0`, and along it

.. math:: \frac{dX_1}{dr} = -r\,\frac{dE_0}{dr}, \qquad
   X_1(0) - X_1(r) = \int_0^r r'\,\frac{dE_0}{dr'}\,dr' \approx \frac{r^2}{2}\,\frac{dE_0}{dr},

where :math:`dE_0/dr` stays finite: for data of standard deviation s it is :math:`y/s^2`. So a cut at
:math:`r = \sqrt{\text{tolerance}}/4` errs by :math:`\text{tolerance}/32` in units in which s = 1, and by no more than
the tolerance for structure as fine as s = 0.18. From data to noise :math:`\alpha/\sigma` takes the place of r, and the
data's variance that of :math:`1/s^2`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..schedules import Schedule
from .exponential import Exponential
from .field import Field
from .transition import Transition

__all__ = ["before_the_end", "finite"]

MARGIN = 4.0


def before_the_end(field: Field, times: Tensor, tolerance: float) -> tuple[Tensor, Transition | None]:
    r"""The times up to which a field can be followed, and the step from there to their end if it is infinite there.

    Parameters
    ----------
    field
        The field.
    times
        Float64, strictly monotone: those at which states are wanted.
    tolerance
        Error that the last step may make, in units of data of variance 1.

    Returns
    -------
    ``times`` and ``None`` where the field is finite at their end. Else the times with the end moved to the cut, and the
    exponential step of order 1 from the cut to the end; where the last but one is beyond the cut already, it is the
    cut, and the times returned are one fewer.

    Raises
    ------
    ValueError
        If the field is infinite at the end and no exponential step can be made.
    """
    end = float(times[-1])
    if finite(field, end):
        return times, None
    why = Exponential.why_not(field) if field.lift is None else "the state carries more than the operator moves"
    if why:
        aside = abs(end - 1e-3)
        raise ValueError(
            f"the field is not finite at t = {end:g}, an end of this run, and no exponential step leads there, "
            f"as {why}: keep a little inside, at t = {aside:g}"
        )
    level = math.log(tolerance) - 2 * math.log(MARGIN)  # log r^2
    schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    cut = torch.tensor([_time_of(schedule, -level if end > float(times[0]) else level)], dtype=torch.float64)
    if bool((cut - times[-2]) * (times[-1] - times[-2]) <= 0):
        return times[:-1], Exponential(order=1).single(field, times[-2:])
    cut = cut.clamp(min(times[-2:].tolist()), max(times[-2:].tolist()))
    return torch.cat([times[:-1], cut]), Exponential(order=1).single(field, torch.cat([cut, times[-1:]]))


def finite(field: Field, t: float) -> bool:
    """Whether the field is finite at a time, read as adaptive steps read it: by numbers of each sample.

    A product with a host number 0 is left out where 0 times infinity would be nan: at the noise of a polynomial
    schedule, whose derivatives are 0 there, a noise network's velocity is 0 by host numbers and nan by tensors.
    """
    time = torch.tensor([t], dtype=torch.float64)
    if not field.finite(field.at(time)[0]):
        return False
    drift = getattr(field.probe(field.among(time.to(_device(field)))), "drift", None)
    return drift is None or bool(drift.isfinite().all())


def _device(field: Field) -> torch.device:
    return field.like.device if isinstance(field.like, Tensor) else torch.device("cpu")


@lru_cache(maxsize=64)
def _time_of(schedule: Schedule, log_snr: float) -> float:
    """The time of a log-SNR; remembered, as a bisection costs as much as many steps."""
    return schedule.inverse_log_snr(torch.tensor([log_snr], dtype=torch.float64)).item()
