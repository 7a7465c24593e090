"""The numbers of a plan as tensors: then a compiler takes them as inputs, and one graph serves all steps of a kind.

A plan holds Python floats, which cost an eager step less. A compiler makes constants of some of them and compiles anew
for each step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..generators import OperatorInstant
from ..schedules import Instant

__all__ = ["as_tensors", "kinds_of"]

CONSTANT = (0.0, 1.0)  # numbers that a step may leave out of a sum


def kinds_of(plan: Sequence[Any]) -> list[int]:
    """For each step of a plan the number of its kind: steps of one kind differ in the values of their floats alone."""
    known: dict[Hashable, int] = {}
    return [known.setdefault(_form(step), len(known)) for step in plan]


def as_tensors(plan: Sequence[Any], device: torch.device) -> list[Any]:
    """The plan with 0-d float64 tensors for its floats, but for those that are 0, or 1, in all steps of a kind.

    A 0-d tensor does not promote a state: ``c * x`` has the dtype of x, as with a float.

    Raises
    ------
    ValueError
        If a step holds what is no number of a Gaussian path or of the solver's own.
    """
    kinds, values = kinds_of(plan), [list(_floats(step)) for step in plan]
    fixed: dict[int, list[bool]] = {}
    for kind in set(kinds):
        columns = zip(*(row for row, own in zip(values, kinds, strict=True) if own == kind), strict=True)
        fixed[kind] = [column[0] in CONSTANT and all(v == column[0] for v in column) for column in columns]
    flat = torch.tensor([v for row in values for v in row], dtype=torch.float64).to(device)
    pieces = iter([number.clone() for number in flat.unbind()])  # each with memory of its own: aligned
    filled = []
    for step, row, kind in zip(plan, values, kinds, strict=True):
        own = [next(pieces) for _ in row]
        chosen = [v if keep else number for v, number, keep in zip(row, own, fixed[kind], strict=True)]
        filled.append(_fill(step, iter(chosen)))
    return filled


def _parts(node: Any) -> tuple[Any, ...] | None:
    """What a node of a step is made of; ``None`` for a leaf."""
    if isinstance(node, OperatorInstant) and not all(type(model) is Instant for model in node.models):
        strange = next(type(model).__name__ for model in node.models if type(model) is not Instant)
        raise ValueError(
            f"the steps cannot be compiled: they hold a {strange}, whose numbers mean averages over a step as long as "
            "they are floats. Steps of one network or more on a Gaussian path can; elsewhere compile the network, by "
            "network.compile(), which is nearly all of a step"
        )
    if isinstance(node, OperatorInstant):
        # A term of weight 0 is left out of a sum, whatever it is.
        return (node.t, node.models, tuple(None if weight == 0.0 else weight for weight in node.weights))
    if type(node) is Instant:
        own = (node.t, node.alpha, node.sigma)
        return (*own, node.alpha_dot, node.sigma_dot) if node.derived else own
    if isinstance(node, (tuple, list)):
        return tuple(node)
    return tuple(node.values()) if isinstance(node, Mapping) else None


def _form(node: Any) -> Hashable:
    """All of a node but the values of its floats."""
    parts = _parts(node)
    if parts is not None:
        names = tuple(node) if isinstance(node, Mapping) else ()
        return (type(node), names, tuple(_form(part) for part in parts))
    if isinstance(node, float):
        return float
    if node is None or isinstance(node, (bool, int, str)):
        return (type(node), node)
    if isinstance(node, nn.Module):
        return (nn.Module, id(node))
    raise ValueError(f"the steps cannot be compiled: they hold a {type(node).__name__}, and a plan is made of numbers")


def _floats(node: Any) -> Iterator[float]:
    parts = _parts(node)
    if parts is not None:
        for part in parts:
            yield from _floats(part)
    elif isinstance(node, float):
        yield node


def _fill(node: Any, numbers: Iterator[float | Tensor]) -> Any:
    parts = _parts(node)
    if parts is None:
        return next(numbers) if isinstance(node, float) else node
    filled = [_fill(part, numbers) for part in parts]
    if isinstance(node, OperatorInstant):
        t, models, weights = filled
        return OperatorInstant(t, models, tuple(0.0 if weight is None else weight for weight in weights))
    if type(node) is Instant:
        return Instant(*filled)
    if isinstance(node, Mapping):
        return dict(zip(node, filled, strict=True))
    return type(node)(*filled) if hasattr(node, "_fields") else type(node)(filled)
