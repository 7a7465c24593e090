r"""Explicit Runge-Kutta steps of drift, noise and jumps: a method is its tableau.

References
----------
.. [1] J. Butcher, "Numerical methods for ordinary differential equations", 2016, Section 23.
.. [2] P. Kloeden, E. Platen, "Numerical solution of stochastic differential equations", 1992, Sections 10.2 and 14.1:
   Euler-Maruyama, and the weak order 2 of the Heun step under additive noise.
.. [3] D. Gillespie, "Approximate accelerated stochastic simulation", J. Chem. Phys. 115 (2001): tau-leaping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..generators.multiplicative import NotFiniteError
from ..paths import GaussianPath
from ..random import Draws
from ..spaces.states import State
from ..triplet import Triplet, Triplets
from .exponential import Exponential
from .field import Field
from .part import DataEnding, FlowEnding, end_by_flow, end_noise, rates_are_finite
from .solver import Solver, refuse_negative, refuse_parts
from .transition import Transition, apply_transition

__all__ = ["RK4", "Euler", "Heun", "Midpoint", "RungeKutta"]


class Step(NamedTuple):
    """One step: its length, the stages' instants, and for a last step whose end is singular the data prediction's.

    Of a sum with jumps that is the data prediction of a flow among its terms.
    """

    h: float
    instants: tuple[OperatorInstant, ...]
    last: Transition | None = None
    ending: FlowEnding | DataEnding | None = None


class RungeKutta(Solver):
    r"""An explicit Runge-Kutta method given by its tableau; a subclass sets four attributes.

    .. math:: k_j = L_{t + c_j h}\bigl(x \oplus h\textstyle\sum_l a_{jl} k_l\bigr), \qquad
       x' = x \oplus h\textstyle\sum_j b_j k_j

    where :math:`\oplus` is the space's move. The Brownian increment is one per step, shared between its stages; on
    tokens whether and where a position jumps is drawn from the rates of the last sum.

    The last step ends at t = 1 by the method itself where the field is finite there. Where it is not (a data network's
    velocity, a score at the data) it is one exponential step of order 1, which ends in the data prediction. So it is
    in a sum of a flow and jumps, whose rates are infinite at the data: by the flow alone.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def defined(self, field: Field, t: float) -> bool:
        """Whether drift and variance are finite at ``t``."""
        return field.finite(field.at(torch.tensor([t], dtype=torch.float64))[0])

    def plan(self, field: Field, times: Tensor) -> list[Step]:
        """Stage times and the numbers at them; the jump hazard averaged over each step."""
        starts, ends = times[:-1], times[1:]
        h = ends - starts
        lengths = (h * field.speed).tolist()  # of a generator that is run back they are positive again
        (first,) = field.at(starts[:1])
        parts = field.parts(first)
        refuse_parts(self, parts, _offers(parts))
        if parts & {"variance", "rates"} and min(lengths) < 0:
            raise ValueError(
                "noise and jumps run from noise to data: with times that fall use a flow, drift alone, or the "
                "generator's reverse, gm.Reverse(generator)"
            )
        if len(self.c) > 1 and "variance" in parts and not all(g.additive for _, g in field.operator.terms):
            raise ValueError(
                f"{type(self).__name__} needs additive noise, the same at every state: a method of several stages "
                "would converge to another law. Use gm.solvers.Euler()"
            )
        if "rates" in parts or len(self.c) == 1:  # what a path knows as averages over the step
            rows = [field.at(starts, ends)]
        else:
            # A stage at c = 1 is at the exact grid point.
            stages = torch.cat([starts + c * h if c < 1 else ends for c in self.c])
            every = field.at(stages)
            rows = [every[i : i + len(h)] for i in range(0, len(every), len(h))]
        for stage_rows in rows:
            field.settle(first, stage_rows)
            refuse_negative(field, stage_rows)
        plan = [Step(float(length), tuple(row)) for length, *row in zip(lengths, *rows, strict=True)]
        end = float(times[-1])
        if end in (0.0, 1.0) and parts & {"drift", "variance"} and not self.defined(field, end):
            plan[-1] = self._last(field, times, plan[-1])
        jumps = "rates" in parts and isinstance(field.operator.path, GaussianPath)
        if jumps and not rates_are_finite(field, field.at(times[-2:-1], times[-1:])[0]):
            plan[-1] = plan[-1]._replace(ending=end_by_flow(field, times[-2:]))
        return plan

    def _last(self, field: Field, times: Tensor, step: Step) -> Step:
        end = field.at(times[-1:])[0]
        if Exponential.why_not(field):
            noise = field.parts(step.instants[0]) & {"variance"}
            if field.speed < 0 and noise and not _finite_variance(field, end):
                raise ValueError(
                    f"the noise is infinite at t = {float(times[-1]):g}, where this run ends: stop a little before, by "
                    f"stop={abs(float(times[-1]) - 0.02):g}, or take noise that is finite, "
                    "gm.diffusivity.EndpointSafe()"
                )
            bridge = not isinstance(field.operator.path, GaussianPath)
            if (noise or bridge) and field.speed > 0 and float(times[-1]) == 1.0:
                ending = end_noise(field, times[-2:])
                if ending is not None:
                    return Step(step.h, step.instants[:1], ending=ending)
            last = field.at(times[-2:-1], times[-1:])
            field.settle(step.instants[0], last)
            return Step(step.h, tuple(last))  # one Euler step: it looks at the start alone
        return Step(step.h, step.instants[:1], Exponential(order=1).single(field, times[-2:]))

    def evaluations(self, plan: Sequence[Step]) -> int:
        """One for each stage."""
        return sum(len(step.instants) for step in plan)

    def step(self, field: Field, x: State, c: Step, draws: Draws, carry: None) -> tuple[State, None]:
        """One step; see the class."""
        if c.ending is not None:
            return c.ending.step(field, x), None
        if c.last is not None:
            return apply_transition(field, x, c.last, draws)[0], None
        space, h = field.space, c.h
        first = field(x, c.instants[0])
        if len(c.instants) == 1:
            return space.move(x, first, h, draws), None
        noise = space.brownian(x, draws) if "variance" in first.parts else None
        slopes = [first]
        for weights, instant in zip(self.a[1:], c.instants[1:], strict=True):
            slopes.append(field(space.move(x, _combine(weights, slopes), h, draws, noise), instant))
        return space.move(x, _combine(self.b, slopes), h, draws, noise), None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Euler(RungeKutta):
    """One evaluation, order 1: Euler on a drift, Euler-Maruyama on a diffusion, tau-leaping on rates, all in one."""

    a, b, c = ((),), (1.0,), (0.0,)
    order = 1
    parts = frozenset({"drift", "variance", "rates"})


class Midpoint(RungeKutta):
    """Two evaluations, order 2, drift only."""

    a, b, c = ((), (0.5,)), (0.0, 1.0), (0.0, 0.5)
    order = 2
    parts = frozenset({"drift"})


class Heun(RungeKutta):
    """Two evaluations, order 2; with additive noise the stochastic Heun step, of weak order 2."""

    a, b, c = ((), (1.0,)), (0.5, 0.5), (0.0, 1.0)
    order = 2
    parts = frozenset({"drift", "variance"})


class RK4(RungeKutta):
    """Four evaluations, order 4, drift only: the classical method."""

    a, b, c = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0)
    order = 4
    parts = frozenset({"drift"})


def _finite_variance(field: Field, instant: OperatorInstant) -> bool:
    try:
        triplet = field.probe(instant)
    except NotFiniteError:
        return False
    parts = triplet.values() if isinstance(triplet, Triplets) else (triplet,)
    return all(part.variance is None or bool(torch.as_tensor(part.variance).isfinite().all()) for part in parts)


def _combine(weights: tuple[float, ...], slopes: list[Triplet]) -> Triplet:
    terms = [w * slope if w != 1.0 else slope for w, slope in zip(weights, slopes, strict=False) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _offers(parts: frozenset[str]) -> str:
    if "rates" in parts:
        return "gm.solvers.Euler(), which moves rates (tau-leaping), drift and variance"
    return "gm.solvers.Exponential(), Heun() or Euler(), which move drift and variance"
