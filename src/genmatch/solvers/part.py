r"""Parts of a field, for solvers that treat drift, noise and jumps by turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import Operator, OperatorInstant
from ..generators.operator import in_full
from ..spaces import Euclidean, Manifold, Product
from ..spaces.states import State
from ..triplet import Triplet
from .exponential import Exponential
from .field import Field, hold
from .transition import Transition, apply_transition

__all__ = [
    "DataEnding",
    "FlowEnding",
    "Part",
    "end_by_flow",
    "end_noise",
    "rates_are_finite",
    "refuse_curved",
    "refuse_product",
    "terms_with",
]

LARGE = 1e20  # generators bound an infinite hazard, as 0 times infinity is no rate


class Part:
    """Some parts of a field's triplet, read off the terms that have them: networks that no such term reads do not run.

    Parameters
    ----------
    field
        The field.
    names
        Parts of a triplet: of "drift", "variance", "rates".
    terms
        The indices of the operator's terms that have one of them; see :func:`terms_with`.
    """

    __slots__ = ("field", "models", "names", "space", "terms")

    def __init__(self, field: Field, names: frozenset[str], terms: frozenset[int]) -> None:
        self.field, self.names, self.terms, self.space = field, names, terms, field.space
        read = [generator.model for i, (_, generator) in enumerate(field.operator.terms) if i in terms]
        self.models = tuple(i for i, model in enumerate(field.models) if any(model is other for other in read))

    def __call__(self, x: State, instant: OperatorInstant) -> Triplet:
        """The parts at ``x``."""
        self.field.refuse_lift()
        predictions = [
            model.prediction(x, own, in_full(model.native(x, own, self.field.condition), x))
            if i in self.models
            else None
            for i, (model, own) in enumerate(zip(self.field.models, instant.models, strict=True))
        ]
        weights = tuple(w if i in self.terms else 0.0 for i, w in enumerate(instant.weights))
        triplet = self.field.operator.read(x, instant._replace(weights=weights), predictions)
        return hold(Triplet(**{name: getattr(triplet, name) for name in self.names}), self.field.fixed)


def terms_with(field: Field, instant: OperatorInstant, names: frozenset[str]) -> frozenset[int]:
    """The terms of a field's operator whose triplets have one of the parts."""
    count = len(field.operator.terms)
    alone = [instant._replace(weights=tuple(float(i == j) for j in range(count))) for i in range(count)]
    return frozenset(i for i, only in enumerate(alone) if field.probe(only).parts & names)


def rates_are_finite(field: Field, instant: OperatorInstant) -> bool:
    """Whether the jump rates of a made-up state are finite at an instant."""
    rates = field.probe(instant).rates
    totals = [] if rates is None else [torch.as_tensor(term.total) for term in rates.terms]
    return all(bool((total < LARGE).all()) for total in totals)


def refuse_product(solver: Any, field: Field) -> None:
    """Raise for a product state, a dict: its factors' jumps are by turns only in Euler steps."""
    if isinstance(field.like, Mapping):
        raise ValueError(f"{type(solver).__name__} is for one space, not for a product. Use gm.solvers.Euler()")


def refuse_curved(solver: Any, field: Field) -> None:
    """Raise unless drifts at several states can be added: on a curved space they are in different tangent spaces."""
    spaces = field.space.factors.values() if isinstance(field.space, Product) else (field.space,)
    for space in spaces:
        if not isinstance(space, Euclidean):
            raise ValueError(
                f"{type(solver).__name__} adds drifts at several states, which makes sense in R^d alone and not on "
                f"{space!r}. Use gm.solvers.Euler()" + (" or Heun()" if isinstance(space, Manifold) else "")
            )


class DataEnding(NamedTuple):
    """A last step that ends in the data prediction, where no two numbers of a network's output give it."""

    instant: OperatorInstant

    def step(self, field: Field, x: Tensor) -> Tensor:
        """The state at the end, from one evaluation."""
        return field.operator.predict(x, self.instant, field.condition)[0].data


class FlowEnding(NamedTuple):
    """The last step of a sum of a flow and jumps, where the rates are infinite: by the flow's data prediction alone.

    Weights of a sum may depend on time, so the last step may be the flow's.
    """

    flow: Operator
    transition: Transition

    def step(self, field: Field, x: Tensor) -> Tensor:
        """The state at the end, from one evaluation."""
        alone = Field(self.flow, field.like, field.condition)
        return apply_transition(alone, x, self.transition, None)[0]  # a flow draws nothing


def end_noise(field: Field, times: Tensor) -> FlowEnding | DataEnding | None:
    """How a sum with noise that no exponential step takes ends at the data, whose noise it would leave there."""
    ending = end_by_flow(field, times)
    if ending is None and len(field.models) == 1 and "data" in field.models[0].readings:
        return DataEnding(field.at(times[:1])[0])
    return ending


def end_by_flow(field: Field, times: Tensor) -> FlowEnding | None:
    """How a flow among a sum's terms makes the step between two ``times``; ``None`` where there is none."""
    for _, generator in field.operator.terms:
        alone = Field(generator, field.like, field.condition)
        if generator.speed == 1.0 and generator.semilinear and not Exponential.why_not(alone):
            return FlowEnding(generator, Exponential(order=1).single(alone, times))
    return None
