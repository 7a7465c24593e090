"""A generator under test: states of its path to look at, and its value as named tensors that can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..generators import Operator
from ..metrics.changes import draw_ends
from ..predict.predictor import Condition
from ..random import Draws
from ..rates import Landing, Sampler
from ..spaces.states import State, batch, each, first
from ..triplet import Triplet
from .report import Failure

__all__ = ["CLOSE", "Case", "all_close", "factors", "is_random", "tensors"]

CLOSE = 1e-4  # what two orders of the same float32 sums may differ by, relative to the largest value
ROWS = 5  # states that a check of the interface looks at


@dataclass(frozen=True)
class Case:
    """What all checks share."""

    operator: Operator
    data: State
    condition: Condition
    times: tuple[float, ...]
    tolerance: float
    false_alarm: float
    seed: int

    def states(self, t: float, rows: int = ROWS) -> tuple[State, Condition]:
        """States of the path at ``t`` and their conditions."""
        count = min(rows, batch(self.data))
        condition = None if self.condition is None else {k: v[:count] for k, v in self.condition.items()}
        draws = Draws(self.seed, count, step=int(t * 1e6), device=first(self.data).device)
        x0, x1, condition = draw_ends(self.operator.path, each(lambda v: v[:count], self.data), condition, draws)
        return self.operator.path.sample(x0, x1, t, draws), condition


def factors(triplet: Any, x: State) -> Iterator[tuple[str, Triplet, Tensor]]:
    """The triplet of each factor and the state it belongs to; a name in front of what is said of it."""
    if isinstance(x, Mapping):
        if not isinstance(triplet, Mapping):
            raise Failure(f"on a product a generator returns Triplets by factor, got {type(triplet).__name__}")
        for name, own in triplet.items():
            if name not in x:
                raise Failure(f"there is a triplet for {name!r}, which is no factor of the state")
            yield f"{name}: ", own, x[name]
    else:
        yield "", triplet, x


def tensors(triplet: Any, x: State) -> dict[str, Tensor]:
    """Every number of a generator's value by name: drift, variance, total rates, and what a landing is made of."""
    found: dict[str, Any] = {}
    for prefix, own, _ in factors(triplet, x):
        for part in ("drift", "variance"):
            if getattr(own, part) is not None:
                found[prefix + part] = getattr(own, part)
        for i, (total, where) in enumerate([] if own.rates is None else own.rates.terms):
            found[f"{prefix}total rate {i + 1}"] = total
            found.update({f"{prefix}{name} {i + 1}": value for name, value in _made_of(where)})
    return {name: torch.as_tensor(value) for name, value in found.items()}


def _made_of(where: Landing) -> Iterator[tuple[str, Tensor]]:
    slots = [name for cls in type(where).__mro__ for name in getattr(cls, "__slots__", ())]
    for name in dict.fromkeys([*slots, *getattr(where, "__dict__", ())]):
        value = getattr(where, name, None)
        if isinstance(value, Tensor):
            yield name, value.softmax(-1) if name == "logits" else value  # logits count up to a constant


def all_close(a: Tensor, b: Tensor, close: float = CLOSE) -> bool:
    """Whether two tensors agree relative to the largest finite value; infinities in the same places."""
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.double().nan_to_num(nan=0.0), b.double().nan_to_num(nan=0.0)
    scale = torch.maximum(a.abs(), b.abs()).max() if a.numel() else torch.zeros(())
    return bool((a - b).abs().max() <= close * scale + 1e-12) if a.numel() else True


def is_random(triplet: Any, x: State) -> bool:
    """Whether the mean of a landing can only be estimated."""
    return any(
        isinstance(term.where, Sampler)
        for _, own, _ in factors(triplet, x)
        for term in (() if own.rates is None else own.rates.terms)
    )
