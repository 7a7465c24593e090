r"""A jump step of weak order 2: the first jump of a step is exact, and what follows it is seen.

References
----------
.. [1] D. Gillespie, "Exact stochastic simulation of coupled chemical reactions", J. Phys. Chem. 81 (1977): the first
   jump of frozen rates.
.. [2] Y. Hu, T. Li, B. Min, "A weak second order tau-leaping method", J. Chem. Phys. 135 (2011): what order 2 asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..rates import Rates, Term
from ..triplet import Triplet
from .field import Field
from .part import rates_are_finite, refuse_product
from .solver import Solver, refuse_negative, refuse_parts

__all__ = ["JumpStep", "TwoEvent", "cumulative", "jump_once", "plan_jumps", "two_events"]

# Streams of a step's draws.
WHEN, WHICH, LANDING, REMAINDER = 16, 17, 18, 19
CERTAIN = 1e30  # a rate at which a jump is certain


class JumpStep(NamedTuple):
    """One step of jumps: its length, and the instant whose rates stand for all of it."""

    h: float
    instant: OperatorInstant
    single: bool = False  # one leap: the step ends where the rates are infinite


class TwoEvent(Solver):
    r"""Rates alone: weak order 2 from two evaluations.

    The first jump of the state, at any position, comes after an exponential time with the total rate
    :math:`\Lambda = \sum_i \lambda_i`, frozen. If it comes within the step, the rates are evaluated again where it has
    led, and the rest of the step is a leap with them. A step of :class:`Euler` is a leap alone, so that nothing that
    happens in it changes the rates: its error in a step is of order 2, and that of this step of order 3, as paths with
    two jumps are right. Rates are those of the middle of the step, which integrates their dependence on time to the
    same order.

    Where many positions jump in one step the first of many jumps changes little, and the step is about a leap: keep
    :math:`h\Lambda` of order one for order 2. A step that ends where the rates are infinite is a leap.
    """

    parts = frozenset({"rates"})
    order = 2

    def defined(self, field: Field, t: float) -> bool:
        """Always: no step evaluates its ends."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[JumpStep]:
        """The instants in the middle of the steps."""
        refuse_product(self, field)
        (first,) = field.at(times[:1])
        parts = field.parts(first)
        refuse_parts(self, parts, "gm.solvers.Strang(), which moves drift and noise besides")
        if bool(times[-1] < times[0]):
            raise ValueError("jumps run from noise to data: times that fall are for a flow, drift alone")
        steps = plan_jumps(field, times)
        refuse_negative(field, [step.instant for step in steps])
        return steps

    def step(self, field: Field, x: Tensor, c: JumpStep, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step; see the class."""
        if c.single:
            return field(x, c.instant).rates.leap(x, c.h, draws), None
        return two_events(field, x, c, draws), None

    def evaluations(self, plan: Sequence[JumpStep]) -> int:
        """Two a step, one for a step that is a leap."""
        return sum(1 if step.single else 2 for step in plan)

    def __repr__(self) -> str:
        return "TwoEvent()"


def plan_jumps(field: Field, times: Tensor) -> list[JumpStep]:
    """Steps at the middle instants; a last one that ends where rates are infinite with rates averaged over it."""
    lengths = times.diff().tolist()
    steps = [JumpStep(*pair) for pair in zip(lengths, field.at((times[1:] + times[:-1]) / 2), strict=True)]
    (end,) = field.at(times[-1:])
    if not rates_are_finite(field, end):
        steps[-1] = JumpStep(lengths[-1], field.at(times[-2:-1], times[-1:])[0], single=True)
    return steps


def two_events(field: Callable[[Tensor, OperatorInstant], Triplet], x: Tensor, c: JumpStep, draws: Draws) -> Tensor:
    """The state after a step of jumps; ``field`` gives a triplet with rates."""
    rates = field(x, c.instant).rates
    if rates is None:
        return x
    x, left = first_event(rates, x, c.h, draws)
    after = field(x, c.instant).rates
    return x if after is None else after.leap(x, left, draws.fork(REMAINDER))


def first_event(rates: Rates, x: Tensor, h: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """The state ``(B, *S)`` after its first jump in a time h, if there is one, and the time left, ``(B, 1, ..., 1)``.

    The time left is 0 where there was no jump.
    """
    edges = cumulative(rates, x)
    u = draws.fork(WHEN).uniform((len(x), 1), torch.float64)
    when = -torch.log1p(-u) / edges[:, -1:].clamp(min=1 / CERTAIN)
    jumps = when < h
    left = torch.where(jumps, h - when, 0.0).reshape(-1, *[1] * (x.ndim - 1))
    return jump_once(rates, x, edges, jumps, draws), left.to(torch.float32)


def cumulative(rates: Rates, x: Tensor) -> Tensor:
    """Running sums ``(B, n)``, float64, of the rates of all positions, and of the state as a whole, term by term."""
    totals = [
        torch.as_tensor(term.total, device=x.device).double().expand(shape).reshape(len(x), -1)
        for term, shape in zip(rates.terms, _shapes(rates, x), strict=True)
    ]
    return torch.cat(totals, 1).cumsum(1)


def jump_once(rates: Rates, x: Tensor, edges: Tensor, jumps: Tensor, draws: Draws) -> Tensor:
    """The state after one jump where the mask ``(B, 1)`` says so, of a position chosen by the rates."""
    total = edges[:, -1:].contiguous()
    level = draws.fork(WHICH).uniform((len(x), 1), torch.float64) * total
    level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))  # never a position of rate 0
    chosen = torch.nn.functional.one_hot(torch.searchsorted(edges, level, right=True).squeeze(1), edges.shape[1] + 1)
    shapes = _shapes(rates, x)
    parts = (chosen[:, :-1].bool() & jumps).split([math.prod(shape[1:]) for shape in shapes], 1)
    certain = [
        Term(torch.where(part.reshape(shape), CERTAIN, 0.0).to(torch.float32), term.where)
        for part, shape, term in zip(parts, shapes, rates.terms, strict=True)
    ]
    return Rates(*certain).leap(x, 1.0, draws.fork(LANDING))


def _shapes(rates: Rates, x: Tensor) -> list[tuple[int, ...]]:
    whole = (len(x), *[1] * (x.ndim - 1))
    return [whole if term.where.whole else tuple(x.shape) for term in rates.terms]
