r"""What explicit solvers of several stages share: the plan of their stages, and how they end at the data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..generators.multiplicative import NotFiniteError
from ..paths import GaussianPath
from ..random import Draws
from ..spaces.states import State
from ..triplet import Triplets
from .exponential import Exponential
from .field import Field
from .part import DataEnding, FlowEnding, end_by_flow, end_noise, rates_are_finite
from .solver import Solver, refuse_negative, refuse_parts
from .transition import Transition, apply_transition

__all__ = ["Staged", "Step", "offers", "refuse_state_noise"]


class Step(NamedTuple):
    """One step: its length, the stages' instants, and for a last step whose end is singular the data prediction's.

    Of a sum with jumps that is the data prediction of a flow among its terms.
    """

    h: float
    instants: tuple[OperatorInstant, ...]
    last: Transition | None = None
    ending: FlowEnding | DataEnding | None = None


class Staged(Solver):
    """An explicit method that evaluates the field at the times t + c h of a step, for each c of its tableau.

    The last step ends at t = 1 by the method itself where the field is finite there. Where it is not (a data network's
    velocity, a score at the data) it is one exponential step of order 1, which ends in the data prediction. So it is
    in a sum of a flow and jumps, whose rates are infinite at the data: by the flow alone.

    Attributes
    ----------
    c
        Where in a step its stages are.
    """

    c: tuple[float, ...]
    lifts = True

    @abstractmethod
    def check(self, field: Field, parts: frozenset[str]) -> None:
        """Raise unless the stages can carry what a field with these parts does."""

    @abstractmethod
    def advance(self, field: Field, x: State, c: Step, draws: Draws) -> State:
        """The state after one step that is not a last one of another kind."""

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
        refuse_parts(self, parts, offers(parts))
        if parts & {"variance", "rates"} and min(lengths) < 0:
            raise ValueError(
                "noise and jumps run from noise to data: with times that fall use a flow, drift alone, or the "
                "generator's reverse, gm.Reverse(generator)"
            )
        self.check(field, parts)
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
        return self.advance(field, x, c, draws), None


def refuse_state_noise(solver: Solver, field: Field, parts: frozenset[str], offer: str) -> None:
    """Raise if the noise depends on the state."""
    if "variance" in parts and not all(generator.additive for _, generator in field.operator.terms):
        raise ValueError(
            f"{type(solver).__name__} needs additive noise, the same at every state: a method of several stages "
            f"would converge to another law. Use {offer}"
        )


def _finite_variance(field: Field, instant: OperatorInstant) -> bool:
    try:
        triplet = field.probe(instant)
    except NotFiniteError:
        return False
    parts = triplet.values() if isinstance(triplet, Triplets) else (triplet,)
    return all(part.variance is None or bool(torch.as_tensor(part.variance).isfinite().all()) for part in parts)


def offers(parts: frozenset[str]) -> str:
    """Solvers that move a triplet's parts."""
    if "rates" in parts:
        return "gm.solvers.Euler(), which moves rates (tau-leaping), drift and variance"
    return "gm.solvers.Exponential(), Heun() or Euler(), which move drift and variance"
