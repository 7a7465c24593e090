r"""Adams-Bashforth: the integral of the polynomial through the latest slopes, one evaluation a step.

References
----------
.. [1] E. Hairer, S. Norsett, G. Wanner, "Solving ordinary differential equations I", 1993, Section III.1 (equal steps),
   III.5 (unequal steps) and III.2, Theorem 2.4 with III.4 (what start-up costs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..spaces.states import State, each
from ..triplet import Triplet, Triplets
from .exponential import Exponential
from .field import Field
from .part import refuse_curved
from .runge_kutta import BogackiShampine, Ralston, RungeKutta, Step, weigh
from .solver import Solver, read_order, refuse_parts
from .transition import Transition, apply_transition, combine

__all__ = ["AdamsBashforth"]

# Steps of order one less than the run's until there are as many slopes. None of these methods looks at a step's end.
STARTS: dict[int, RungeKutta] = {3: Ralston(), 4: BogackiShampine()}


class Slopes(NamedTuple):
    """A step: what multiplies this slope and those before it, the latest first."""

    instant: OperatorInstant
    weights: tuple[float, ...]


class AdamsBashforth(Solver):
    r"""The Adams-Bashforth method of order 2 to 4 on any grid; drift only.

    .. math:: x_{i+1} = x_i + \sum_{j<p} w_{ij}\,u(x_{i-j}, t_{i-j}), \qquad
       w_{ij} = \int_{t_i}^{t_{i+1}} \prod_{k<p,\,k\ne j} \frac{t - t_{i-k}}{t_{i-j} - t_{i-k}}\,dt

    The weights are those of the grid's own steps. One evaluation a step, and :math:`(p-2)^2` for start-up: the first
    p - 2 steps are Runge-Kutta steps of order p - 1 and the next is of order p - 1 too, by the slopes that there are.
    Each errs by :math:`h^p` once, so the order is kept.

    Where the field is not finite at the end of the run (a data network's velocity at the data), the last step is an
    exponential one of order 1 if there can be one, which ends in the data prediction, as in :class:`RungeKutta`; its
    error is of order 2 under CondOT and of order 1.5 under VP. A step of the method itself, which never looks at its
    end, would keep order p on smooth data; but near the data the field is stiff, and orders 3 and 4 are then unstable:
    in few steps they leave noise in the samples.

    Parameters
    ----------
    order
        2, 3 or 4.
    """

    lifts = True
    parts = frozenset({"drift"})

    def __init__(self, order: int = 2) -> None:
        read_order(order, (2, 3, 4), ": order 1 is gm.solvers.Euler()")
        self.order = order

    def defined(self, field: Field, t: float) -> bool:
        """Whether the drift is finite at ``t``."""
        return field.finite(field.at(torch.tensor([t], dtype=torch.float64))[0])

    def plan(self, field: Field, times: Tensor) -> list[Slopes | Step | Transition]:
        """The weights of each step, and the stages of the first ones."""
        refuse_curved(self, field)
        instants = field.at(times[:-1])
        parts = field.parts(instants[0])
        refuse_parts(self, parts, "gm.solvers.Euler()" if "rates" in parts else "gm.solvers.Exponential() or Heun()")
        field.settle(instants[0], instants)
        rows = adams_weights(times, self.order)
        plan: list[Slopes | Step | Transition] = [
            Slopes(instant, tuple((field.speed * row).tolist())) for instant, row in zip(instants, rows, strict=True)
        ]
        plan[: self.order - 2] = self._first(field, times[: self.order - 1])
        if not self.defined(field, float(times[-1])) and not Exponential.why_not(field):
            plan[-1] = Exponential(order=1).single(field, times[-2:])
        return plan

    def _first(self, field: Field, times: Tensor) -> list[Step]:
        """Runge-Kutta steps between the first times."""
        if self.order == 2:
            return []
        h = times.diff()
        stages = [field.at(times[:-1] + c * h) for c in STARTS[self.order].c]
        for row in stages:
            field.settle(stages[0][0], row)
        lengths = (h * field.speed).tolist()
        return [Step(length, row) for length, row in zip(lengths, zip(*stages, strict=True), strict=True)]

    def evaluations(self, plan: Sequence[Slopes | Step | Transition]) -> int:
        """One a step, and one for each stage of a first step."""
        return sum(len(c.instants) if isinstance(c, Step) else 1 for c in plan)

    def step(self, field: Field, x: State, c: Any, draws: Draws, carry: Any) -> tuple[State, Any]:
        """One step; see the class. The slopes before it are carried, the latest first."""
        if carry is None:  # room for the slopes to come: no step looks at what stands there before
            carry = (x,) * (self.order - 1)
        if isinstance(c, Transition):
            return apply_transition(field, x, c, draws)[0], carry
        if isinstance(c, Step):
            start = STARTS[self.order]
            slopes, _ = start.stages(field, x, c, draws)
            return field.space.move(x, weigh(start.b, slopes), c.h, draws), (_drift(slopes[0], x), *carry[:-1])
        slope = _drift(field(x, c.instant), x)
        past = (slope, *carry)

        def move(own: Tensor, *slopes: Tensor) -> Tensor:
            return combine([(1.0, own), *zip(c.weights, slopes, strict=False)])

        return each(move, x, *past), past[:-1]

    def __repr__(self) -> str:
        return f"AdamsBashforth(order={self.order})"


def adams_weights(times: Tensor, order: int) -> list[Tensor]:
    """For each step between ``times`` the weights of its slope and of those before it, at most ``order`` of them."""
    few = range(min(order, len(times)) - 1)
    rows = [_weights(times[: i + 1].flip(0)[None], times[i : i + 2][None])[0] for i in few]
    if len(times) <= order:
        return rows
    knots = times[:-1].unfold(0, order, 1).flip(1)
    return rows + list(_weights(knots, torch.stack([times[order - 1 : -1], times[order:]], 1)))


def _weights(knots: Tensor, spans: Tensor) -> Tensor:
    """Integrals over spans (n, 2) of the Lagrange polynomials through knots (n, k), by quadrature exact for cubics."""
    places, halves = (torch.from_numpy(values) for values in legendre.leggauss(2))
    half = spans.diff(dim=1) / 2
    s = (spans[:, :1] + half * (1 + places))[:, None]  # (n, 1, 2)
    polynomials = []
    for j in range(knots.shape[1]):
        others = torch.cat([knots[:, :j], knots[:, j + 1 :]], 1)
        factors = (s - others[..., None]) / (knots[:, j, None, None] - others[..., None])
        polynomials.append(factors.prod(1))
    return (torch.stack(polynomials, 1) * halves).sum(2) * half


def _drift(triplet: Triplet | Triplets, x: State) -> State:
    """The drift of each factor, of the state's shape; of one that is absent 0."""
    if isinstance(triplet, Mapping):
        return {name: _drift(triplet.get(name, Triplet()), own) for name, own in x.items()}
    if triplet.drift is None:
        return torch.zeros_like(x)
    if triplet.drift.shape != x.shape:
        raise ValueError(f"a drift has the shape {tuple(x.shape)} of the state, got {tuple(triplet.drift.shape)}")
    return triplet.drift
