"""What a solver sees: an operator under one condition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..generators import Operator, OperatorInstant
from ..generators.multiplicative import NotFiniteError
from ..generators.operator import in_full
from ..predict.predictor import Condition
from ..schedules import Schedule, along_batch
from ..spaces import Euclidean, Manifold, Space
from ..spaces.states import State
from ..triplet import Triplet, Triplets

__all__ = ["Field", "Lift", "hold"]

# Given the operator's triplet as a function of (x, instant), the triplet of a larger state that holds x.
Lift = Callable[[Callable[[Tensor, OperatorInstant], Any], Tensor, OperatorInstant], Triplet]


class Field:
    """An operator under a condition, on states like ``like``.

    Parameters
    ----------
    operator
        The generator or sum of generators.
    like
        A state ``(B, *S)``: its shape, dtype and device are those of all states.
    condition
        Passed to the networks.
    fixed
        Bool ``(B, *S)``: token positions that do not move.
    speed
        What the operator's speed must be: 1, or -1 for a generator that is run back, from data to noise.
    lift
        For states that carry more than the operator moves (a log-density beside x, say), as one tensor ``(B, n)``: it
        is called as ``lift(triplet, state, instant)`` with ``triplet`` the operator's own, and returns that of the
        larger state. ``like`` stays a state of the operator.
    """

    __slots__ = ("_known", "condition", "fixed", "lift", "like", "models", "operator", "space", "speed")

    def __init__(
        self,
        operator: Operator,
        like: State,
        condition: Condition = None,
        fixed: State | None = None,
        *,
        speed: float = 1.0,
        lift: Lift | None = None,
    ) -> None:
        self.speed, self.lift = speed, lift
        self.operator, self.like, self.condition, self.fixed = operator, like, condition, fixed
        self.space: Space = operator.path.space if lift is None else Euclidean()
        self.models: tuple[Any, ...] = tuple(operator.models)
        self._known: dict[tuple[float, float | None], OperatorInstant] = {}

    def at(self, times: Tensor, until: Tensor | None = None) -> list[OperatorInstant]:
        """The operator's numbers at float64 ``times``; those that were asked before are remembered.

        A schedule's derivatives cost as much for one time as for a thousand, so a plan asks for all at once.
        """
        ends: list[Any] = [None] * len(times) if until is None else until.tolist()
        keys = list(zip(times.tolist(), ends, strict=True))
        missing = [i for i, key in enumerate(keys) if key not in self._known]
        if missing:
            rows = torch.tensor(missing)
            found = self.operator.at(times[rows], None if until is None else until[rows], speed=self.speed)
            self._known.update(zip([keys[i] for i in missing], found, strict=True))
        return [self._known[key] for key in keys]

    def among(self, t: Tensor) -> OperatorInstant:
        """The operator's numbers at a time for each sample, float64 ``(B,)``, to broadcast against their states."""
        like = self.like
        models = tuple(model.at(t).broadcast(like) for model in self.models)
        time = t if isinstance(like, Mapping) else along_batch(t, like)
        return OperatorInstant(time, models, self.operator.weights_at(time))

    def __call__(self, x: State, instant: OperatorInstant) -> Any:
        """The triplet at ``x``: each network runs once, unless a lift asks for more."""
        return self.triplet(x, instant) if self.lift is None else self.lift(self.triplet, x, instant)

    def triplet(self, x: State, instant: OperatorInstant) -> Any:
        """The operator's own triplet at ``x``."""
        operator = self.operator
        triplet = operator.read(x, instant, operator.predict(x, instant, self.condition))
        if self.fixed is None:
            return triplet
        if isinstance(triplet, Triplets):
            return Triplets({name: hold(part, self.fixed.get(name)) for name, part in triplet.items()})
        return hold(triplet, self.fixed)

    def native(self, x: Tensor, instant: OperatorInstant) -> Tensor:
        """The output of the only network, in the state's dtype: under autocast it may come in less."""
        self.refuse_lift()
        return in_full(self.models[0].native(x, instant.models[0], self.condition), x)

    def refuse_lift(self) -> None:
        """Raise if states carry more than the operator moves: for what looks at a network, past ``field(x, ...)``."""
        if self.lift is not None:
            raise ValueError(
                "these states carry more than the operator moves, and this step reads the network itself: use "
                "gm.solvers.RK4() or Heun()"
            )

    def probe(self, instant: OperatorInstant) -> Any:
        """The triplet of one made-up state from made-up predictions: which parts there are, and whether finite."""
        x = _made_up(self.operator.path, self.like)
        made_up: list[Any] = [
            model.prediction(x, i, model.blank(x)) for model, i in zip(self.models, instant.models, strict=True)
        ]
        return self.operator.read(x, instant, made_up)

    def parts(self, instant: OperatorInstant) -> frozenset[str]:
        """The parts of the triplet at any time: a weight that is a function of t may be 0 at this one."""
        weights = [1.0 if callable(w) else float(w) for w, _ in self.operator.terms]
        models = tuple(getattr(model, "running", model) for model in instant.models)
        return self.probe(instant._replace(weights=tuple(weights), models=models)).parts

    @staticmethod
    def settle(first: OperatorInstant, instants: Iterable[OperatorInstant]) -> None:
        """Take the derivatives of all instants where the first, after a probe, has them: a compiled step cannot."""
        for which, model in enumerate(first.models):
            if getattr(model, "derived", False):
                for instant in instants:
                    _ = instant.models[which].alpha_dot

    def finite(self, instant: OperatorInstant) -> bool:
        """Whether drift and variance are finite there (rates may be infinite: a certain jump)."""
        # Where a schedule's derivative is infinite so is every velocity, also one that a network returns untouched.
        for model in self.models:
            own = model.models.values() if model.kind == "product" else (model,)
            if any(m.kind == "velocity" and not _finite_derivatives(m.path.schedule, instant.t) for m in own):
                return False
        try:
            triplet = self.probe(instant)
        except NotFiniteError:
            return False
        return all(
            bool(part.isfinite().all()) if isinstance(part, Tensor) else math.isfinite(part)
            for own in (triplet.values() if isinstance(triplet, Triplets) else (triplet,))
            for part in (own.drift, own.variance)
            if part is not None
        )


def hold(triplet: Triplet, fixed: Tensor | None) -> Triplet:
    """The triplet without the jumps of fixed positions."""
    if fixed is None or triplet.rates is None:
        return triplet
    return Triplet(triplet.drift, triplet.variance, triplet.rates.keep(~fixed))


def _made_up(path: Any, like: State) -> State:
    """States on which a plan may look at an operator; on a masked path one of masks and one of tokens that show."""
    if isinstance(like, Mapping):
        return {name: _made_up(path.factors[name], part) for name, part in like.items()}
    mask = getattr(path, "mask", None)
    x = torch.full_like(like[:1], 1)
    if mask is not None:
        return torch.cat([torch.full_like(x, mask), x])
    return path.space.project(x) if isinstance(path.space, Manifold) else x


@lru_cache(maxsize=64)
def _finite_derivatives(schedule: Schedule, t: float) -> bool:
    """Whether a schedule's derivatives are finite at a time; remembered, as it is asked of the same ends each time."""
    instant = schedule.at(torch.tensor([t], dtype=torch.float64))
    return math.isfinite(instant.alpha_dot.item()) and math.isfinite(instant.sigma_dot.item())
