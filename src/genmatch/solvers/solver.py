"""The contract of a solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..random import Draws
from ..spaces.states import State
from ..triplet import Triplets
from .field import Field

__all__ = ["Solver"]


class Solver(ABC):
    """A pure step over a plan of host numbers.

    ``plan`` sees the field and the times and returns one tuple of host floats for each step; whatever can be refused is
    refused there. ``step`` does the work: no state is stored, nothing is read to the host, nothing branches on a
    tensor, and randomness comes only from ``draws``, so a step compiles as one graph.

    Attributes
    ----------
    parts
        The parts of a triplet that it can move.
    order
        Its order of convergence (weak, where there is noise).
    default_steps
        How many equal steps ``gm.sample`` takes where none are asked for. An adaptive solver, which chooses its own
        between the times it is given, needs one.
    lifts
        Whether it moves a state that carries more than the operator does (a log-density beside x): it must look at the
        field by ``field(x, instant)`` alone.
    on_the_host
        Whether its steps ask the host how far each sample is, as adaptive and event-driven ones do: such a run is no
        fixed sequence of operations, and can be neither compiled nor captured.
    """

    parts: frozenset[str]
    order: int
    default_steps: int = 50
    lifts: bool = False
    on_the_host: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        parts = getattr(cls, "parts", frozenset())
        if isinstance(parts, str) or not set(parts) <= {"drift", "variance", "rates"}:
            raise TypeError(
                f"{cls.__name__}.parts must be a frozenset of 'drift', 'variance' and 'rates', got {parts!r}"
            )

    @abstractmethod
    def defined(self, field: Field, t: float) -> bool:
        """Whether all that the solver evaluates is finite at time ``t``."""

    @abstractmethod
    def plan(self, field: Field, times: Tensor) -> Sequence[Any]:
        """One tuple of host numbers for each step between the float64 ``times``."""

    @abstractmethod
    def step(self, field: Field, x: State, c: Any, draws: Draws, carry: Any) -> tuple[State, Any]:
        """The state ``(B, *S)`` after one step, and what the next step needs to know of it."""

    @abstractmethod
    def evaluations(self, plan: Sequence[Any]) -> int:
        """How often each network runs in a plan."""

    def start(self, field: Field, x: State) -> Any:
        """What the first step needs to know of the past: nothing."""
        return None


def read_order(order: int, allowed: tuple[int, ...], hint: str = "") -> int:
    """The order that a caller gave; raises unless it is one of those allowed."""
    if isinstance(order, bool) or not isinstance(order, int) or order not in allowed:
        names = ", ".join(map(str, allowed[:-1])) + f" or {allowed[-1]}"
        raise ValueError(f"order must be {names}, got {order!r}{hint}")
    return order


def refuse_parts(solver: Solver, parts: frozenset[str], offers: str) -> None:
    """Raise if a triplet has parts that the solver cannot move."""
    if not hasattr(solver, "parts"):
        raise TypeError(f"{type(solver).__name__} does not say what it moves: set parts = frozenset({{'drift'}}), say")
    wrong = sorted(parts - solver.parts)
    if wrong:
        raise ValueError(
            f"{type(solver).__name__} cannot move {' and '.join(wrong)}: it handles {', '.join(sorted(solver.parts))}. "
            f"Use {offers}"
        )


def refuse_negative(field: Field, rows: Sequence[Any]) -> None:
    """Raise if the weights make a variance or a rate negative at one of the instants.

    Only sums with a negative weight are looked at; a variance that depends on the state is looked at where it is
    probed.
    """
    for instant in rows:
        if field.operator.lowest_weight(instant) >= 0:
            continue
        triplet = field.probe(instant)
        parts = triplet.values() if isinstance(triplet, Triplets) else (triplet,)
        rates = [term.total for part in parts if part.rates is not None for term in part.rates.terms]
        if any(bool((torch.as_tensor(total) < 0).any()) for total in rates):
            raise ValueError(
                f"the weights {instant.weights} make a jump rate negative at t = {instant.t:g}"
                + (" in a factor" if all(weight >= 0 for weight in instant.weights) else "")
            )
        if any(part.variance is not None and bool((torch.as_tensor(part.variance) < 0).any()) for part in parts):
            raise ValueError(
                f"the weights {instant.weights} make the variance negative at t = {instant.t:g}: "
                "the diffusions subtracted carry more noise than those added"
            )
