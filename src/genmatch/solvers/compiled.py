"""The steps of a run through one compiled function, and the numbers that they take from outside of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch

from ..random import Draws
from ..spaces.states import State
from .field import Field
from .handed import Ask, Handed, Listening
from .numbers import as_tensors, kinds_of
from .solver import Solver

__all__ = ["CompiledStep", "listen"]


def listen(solver: Solver, plan: Sequence[Any], field: Field, x: State, draws: Draws) -> list[tuple[Ask, ...]]:
    """What each step of a plan asks its draws for, found by one eager run."""
    carry = solver.start(field, x)
    asks = []
    for c, now in zip(plan, draws.steps(len(plan)), strict=True):
        asked: dict[Ask, None] = {}
        x, carry = solver.step(field, x, c, Listening(now, asked), carry)  # type: ignore[arg-type]
        asks.append(tuple(asked))
    return asks


class CompiledStep:
    """A solver's step, compiled: its entries of a plan hold tensors, its draws hand over what was made outside.

    Parameters
    ----------
    solver, plan
        The step, and its numbers as host floats.
    device
        Of the states.

    Raises
    ------
    ValueError
        If the plan is not made of numbers.
    """

    def __init__(self, solver: Solver, plan: Sequence[Any], device: torch.device) -> None:
        self._kinds = kinds_of(plan)
        self._solver, self._numbers = solver, as_tensors(plan, device)
        self._asks: list[tuple[Ask, ...]] | None = None
        self._steps: dict[tuple[str, ...], Callable[..., Any]] = {}  # for each set of conditions its own

    @property
    def plan(self) -> list[tuple[Any, tuple[Ask, ...]]]:
        """For each step its numbers, and what is to be made before it: all that a step of its kind asks for."""
        if self._asks is None:
            raise RuntimeError("nobody has listened yet to what the steps draw")
        return list(zip(self._numbers, self._asks, strict=True))

    def ready(self) -> bool:
        """Whether it is known what the steps draw."""
        return self._asks is not None

    def learn(self, asks: Sequence[tuple[Ask, ...]]) -> None:
        """Take note of what each step draws; a last step without noise shares its graph with those that have it."""
        union: dict[int, dict[Ask, None]] = {}
        for kind, own in zip(self._kinds, asks, strict=True):
            union.setdefault(kind, {}).update(dict.fromkeys(own))
        self._asks = [tuple(union[kind]) for kind in self._kinds]

    def __call__(self, field: Field, x: State, c: tuple[Any, tuple[Ask, ...]], draws: Draws, carry: Any) -> Any:
        """One step."""
        numbers, asks = c
        names = tuple(field.condition or ())
        if names not in self._steps:
            self._steps[names] = torch.compile(_alone(self._solver), fullgraph=True, dynamic=False)
        return self._steps[names](field, x, numbers, Handed.of(draws, asks), carry)


def _alone(solver: Solver) -> Callable[..., Any]:
    """The solver's step as a function with code of its own.

    A compiler keeps graphs by the code that they were made of, and makes so many of each: those of other runs of the
    same solver must not count against this one's.
    """

    def step(field: Field, x: State, c: Any, draws: Any, carry: Any) -> tuple[State, Any]:
        return solver.step(field, x, c, draws, carry)

    return FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
