"""The part of a run that steps of any length can follow, and the layers at its ends where the field is not finite."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .ending import before_the_end, finite
from .exponential import Exponential
from .field import Field
from .transition import Transition, apply_transition

__all__ = ["Opening", "Span", "read_span"]


class Opening(NamedTuple):
    r"""How a run leaves a time at which the field is not finite: the inverse of the step that ends there.

    From :math:`x` at the end to the cut near it. That step, of order 1, takes :math:`\tilde x = r x` at the cut to y,
    where r is :math:`\alpha_{cut}/\alpha` at the data and :math:`\sigma_{cut}/\sigma` at the noise. So
    :math:`\tilde x + r (x - y)` is what it takes to x, up to the square of the cut's error, and there and back is the
    identity to that order.
    """

    transition: Transition
    ratio: float

    def leave(self, field: Field, x: Tensor) -> Tensor:
        """The state at the cut, from one evaluation."""
        near = self.ratio * x
        return near + self.ratio * (x - apply_transition(field, near, self.transition, None)[0])


class Span(NamedTuple):
    """Where a run steps.

    Attributes
    ----------
    start, stop
        The times between which it does.
    opening
        How it gets to ``start``, where the run begins at a time at which the field is not finite.
    asked
        The times from ``start`` to before ``stop``, by their place among the run's.
    before, after
        For the places of the times outside, the exponential step of order 1 to them from ``start`` and from ``stop``.
    """

    start: float
    stop: float
    opening: Opening | None
    asked: dict[int, float]
    before: dict[int, Transition]
    after: dict[int, Transition]

    @property
    def sign(self) -> float:
        """Of the steps."""
        return 1.0 if self.stop >= self.start else -1.0


def read_span(field: Field, times: Tensor, tolerance: float) -> Span:
    """The span of a run through float64 ``times``, whose layers err by about the tolerance; see ``before_the_end``."""
    ends = times[[0, -1]]
    if field.lift is not None:
        for t in ends.tolist():
            if not finite(field, t):
                raise ValueError(
                    f"the field is not finite at t = {t:g}, and a state that carries more than the operator moves can "
                    f"only be followed by steps: keep a little inside, at t = {abs(t - 1e-3):g}"
                )
        inner, back, first = ends, ends.flip(0), None
    else:
        inner, _ = before_the_end(field, ends, tolerance)
        back, first = before_the_end(field, ends.flip(0), tolerance)
    start, stop = float(back[-1]), float(inner[-1])
    opening = None
    if first is not None:
        here, near = (i.models[0] for i in field.at(torch.tensor([float(ends[0]), start], dtype=torch.float64)))
        data = here.alpha > here.sigma
        opening = Opening(first, near.alpha / here.alpha if data else near.sigma / here.sigma)
    asked, before, after = {}, {}, {}
    sign = 1.0 if ends[1] > ends[0] else -1.0
    for place, t in enumerate(times.tolist()[1:], start=1):
        if sign * (t - start) < 0:
            before[place] = _layer(field, start, t)
        elif sign * (t - stop) > 0:
            after[place] = _layer(field, stop, t)
        elif sign * (t - stop) < 0:
            asked[place] = t
    return Span(start, stop, opening, asked, before, after)


def _layer(field: Field, origin: float, t: float) -> Transition:
    return Exponential(order=1).single(field, torch.tensor([origin, t], dtype=torch.float64))
