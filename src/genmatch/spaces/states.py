"""States that are one tensor or, on a product, a dict of them: the few things that are done to both alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["State", "all_finite", "batch", "each", "first", "same_factors"]

State = Any  # a tensor (B, *S), or a dict of such: a union would have to be narrowed wherever one of the two is meant


def each(function: Callable[..., Any], state: State, *others: State) -> State:
    """``function`` of a state's tensor, or of each factor's: a dict again."""
    if isinstance(state, Mapping):
        return {name: function(part, *(other[name] for other in others)) for name, part in state.items()}
    return function(state, *others)


def first(state: State) -> Tensor:
    """The tensor, or the first factor's: they share batch and device."""
    return next(iter(state.values())) if isinstance(state, Mapping) else state


def batch(state: State) -> int:
    """The batch size B."""
    return len(first(state))


def all_finite(x: Tensor) -> bool:
    """Whether all values are finite: their sum tells, at a fraction of the cost, unless it overflows."""
    x = x.detach()
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def same_factors(what: str, got: Any, names: Any) -> None:
    """Raise unless ``got`` is a dict with exactly these names."""
    if not isinstance(got, Mapping):
        raise TypeError(
            f"{what} must be a dict with the factors {', '.join(map(repr, names))}, got {type(got).__name__}"
        )
    if set(got) != set(names):
        raise ValueError(
            f"{what} must have the factors {', '.join(map(repr, names))}, got {', '.join(map(repr, got)) or 'none'}"
        )
