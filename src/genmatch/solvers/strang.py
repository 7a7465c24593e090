r"""Strang splitting: flow, noise and jumps in one step of weak order 2.

References
----------
.. [1] G. Strang, "On the construction and comparison of difference schemes", SIAM J. Numer. Anal. 5 (1968).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from .field import Field
from .part import FlowEnding, Part, end_by_flow, rates_are_finite, refuse_product, terms_with
from .runge_kutta import Heun, RungeKutta, Step
from .solver import Solver, refuse_negative, refuse_parts
from .two_event import JumpStep, plan_jumps, two_events

__all__ = ["Strang", "StrangStep"]

BEFORE, AFTER = 20, 21  # streams of the noise of the two halves
SMOOTH, RATES = frozenset({"drift", "variance"}), frozenset({"rates"})


class StrangStep(NamedTuple):
    """One step: half a step of drift and noise, the jumps, the other half; or a last step of another kind."""

    before: Step | None
    jumps: JumpStep
    after: Step | None
    smooth: frozenset[int]
    jumping: frozenset[int]
    ending: FlowEnding | None = None


class Strang(Solver):
    r"""Half a step of drift and noise, a step of jumps, half a step of drift and noise.

    .. math:: e^{h(A + B)} = e^{hA/2}\,e^{hB}\,e^{hA/2} + O(h^3)

    so a sum of flow, noise and jumps gets weak order 2 from a solver of order 2 for each: ``inner`` for A and
    :class:`TwoEvent` for B. A jump in the middle of a step of several stages would leave the stages on both sides of
    it, and the step at order 1.

    A step that ends where the rates are infinite (t = 1) is the data prediction of the flow, if there is one among the
    terms; otherwise one Euler step.

    Parameters
    ----------
    inner
        A Runge-Kutta solver for drift and noise; :class:`Heun` by default.
    """

    parts = SMOOTH | RATES
    order = 2

    def __init__(self, inner: RungeKutta | None = None) -> None:
        inner = Heun() if inner is None else inner
        if not isinstance(inner, RungeKutta):
            raise TypeError(f"inner must be a Runge-Kutta solver such as gm.solvers.Heun(), got {inner!r}")
        self.inner = inner
        self.order = min(2, inner.order)

    def defined(self, field: Field, t: float) -> bool:
        """Whether drift and variance are finite at ``t``."""
        return field.finite(field.at(torch.tensor([t], dtype=torch.float64))[0])

    def plan(self, field: Field, times: Tensor) -> list[StrangStep]:
        """Stage instants of both halves, and the middle for the jumps."""
        refuse_product(self, field)
        if bool(times[-1] < times[0]):
            raise ValueError(
                "noise and jumps run from noise to data: times that fall are for a flow, drift alone, and for "
                "gm.Reverse(generator) by gm.solvers.Euler()"
            )
        (first,) = field.at(times[:1])
        parts = field.parts(first)
        refuse_parts(self.inner, parts - RATES, "gm.solvers.Strang(gm.solvers.Heun())")
        smooth, jumping = terms_with(field, first, SMOOTH), terms_with(field, first, RATES)
        self._check_additive(field, terms_with(field, first, frozenset({"variance"})))
        middles = (times[1:] + times[:-1]) / 2
        before = self._halves(field, first, times[:-1], middles)
        after = self._halves(field, first, middles, times[1:])
        jumps = plan_jumps(field, times)
        refuse_negative(field, [step.instant for step in jumps])
        for halves in (before, after):
            for stage in zip(*(half.instants for half in halves), strict=True):
                refuse_negative(field, stage)
        rows = zip(before, jumps, after, strict=True)
        plan = [StrangStep(*row, smooth, jumping) for row in rows]
        (end,) = field.at(times[-1:])
        if not (field.finite(end) and rates_are_finite(field, end)):
            plan[-1] = self._last(field, times, plan[-1])
        return plan

    def step(self, field: Field, x: Tensor, c: StrangStep, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step; see the class."""
        if c.ending is not None:
            return c.ending.step(field, x), None
        if c.before is None or c.after is None:
            return field.space.move(x, field(x, c.jumps.instant), c.jumps.h, draws), None
        smooth, jumping = Part(field, SMOOTH, c.smooth), Part(field, RATES, c.jumping)
        if c.smooth:
            x, _ = self.inner.step(smooth, x, c.before, draws.fork(BEFORE), None)  # type: ignore[arg-type]
        if c.jumping:
            x = two_events(jumping, x, c.jumps, draws)
        if c.smooth:
            x, _ = self.inner.step(smooth, x, c.after, draws.fork(AFTER), None)  # type: ignore[arg-type]
        return x, None

    def evaluations(self, plan: Sequence[StrangStep]) -> int:
        """Of a network that all terms read: two a stage of ``inner``, and two for the jumps."""
        total = 0
        for step in plan:
            if step.ending is not None or step.before is None or step.after is None:
                total += 1
            else:
                stages = len(step.before.instants) + len(step.after.instants)
                total += stages * bool(step.smooth) + 2 * bool(step.jumping)
        return total

    def _halves(self, field: Field, first: OperatorInstant, starts: Tensor, ends: Tensor) -> list[Step]:
        h = ends - starts
        stages = [field.at(starts + c * h if c < 1 else ends) for c in self.inner.c]
        for rows in stages:
            field.settle(first, rows)
        return [Step(length, tuple(row)) for length, *row in zip(h.tolist(), *stages, strict=True)]

    def _last(self, field: Field, times: Tensor, step: StrangStep) -> StrangStep:
        ending = end_by_flow(field, times[-2:])
        averaged = JumpStep(step.jumps.h, field.at(times[-2:-1], times[-1:])[0], single=True)
        return StrangStep(None, averaged, None, step.smooth, step.jumping, ending)

    def _check_additive(self, field: Field, noisy: frozenset[int]) -> None:
        bad = [type(g).__name__ for i, (_, g) in enumerate(field.operator.terms) if i in noisy and not g.additive]
        if bad and len(self.inner.c) > 1:
            raise ValueError(
                f"{self.inner!r} needs additive noise, the same at every state, and that of {', '.join(bad)} is not: "
                "a method of several stages would converge to another law. Use gm.solvers.Euler()"
            )

    def __repr__(self) -> str:
        return f"Strang({self.inner!r})"
