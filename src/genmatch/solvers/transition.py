"""The step that exponential solvers plan: a linear combination of the state, the network's output and what was kept."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import BROWNIAN, Draws, fusible, kernels
from .field import Field

__all__ = ["Transition", "apply_transition", "combine"]

Kept = tuple[Tensor, ...]


class Transition(NamedTuple):
    r"""A step :math:`x_s = A x + B N + \sum_{j\ge1} p_j D_{-j} + \text{std}\,z`, N the network's output at x.

    ``past`` are the :math:`p_j`, the latest step's first. :math:`D = k_0 x + k_1 N`, with :math:`k` = ``keep``, is what
    this step keeps for those after it (``None``: nothing), and ``memory`` how many kept quantities the next step needs.
    """

    instant: OperatorInstant
    a: float
    b: float
    std: float = 0.0
    past: tuple[float, ...] = ()
    keep: tuple[float, float] | None = None
    memory: int = 0


def apply_transition(
    field: Field, x: Tensor, c: Transition, draws: Draws | None, before: Kept | None = None
) -> tuple[Tensor, Kept]:
    """The step, and what was kept, the latest first."""
    before = before or ()
    native = field.native(x, c.instant)
    noisy = isinstance(c.std, Tensor) or c.std != 0.0
    if noisy and x.is_cuda and c.keep is None and not c.past and fusible(x, draws):
        return kernels().step(x, native, c.a, c.b, c.std, draws.fork(BROWNIAN)), before[: c.memory]  # type: ignore
    terms = [(c.a, x), (c.b, native), *zip(c.past, before, strict=False)]
    if noisy:
        terms.append((c.std, field.space.brownian(x, draws)))  # type: ignore[arg-type]
    kept = before if c.keep is None else (combine([(c.keep[0], x), (c.keep[1], native)]), *before)
    return combine(terms), kept[: c.memory]


def combine(terms: Iterable[tuple[float, Tensor]]) -> Tensor:
    """The sum of c y over pairs (c, y) in as few passes over the memory as there can be; one y alone is not copied."""
    terms = list(terms)
    if torch.compiler.is_compiling():
        # One pass anyway. A choice by the numbers, or a number that is no factor, would be a constant of the graph.
        return functools.reduce(operator.add, [c * y for c, y in terms])
    rest = [(c, y) for c, y in terms if c != 0.0]
    if not rest:
        return torch.zeros_like(terms[0][1])
    lead = next((i for i, (c, _) in enumerate(rest) if c == 1.0), None)
    if lead is None:
        total = rest[0][0] * rest[0][1]
        rest = rest[1:]
    else:
        total = rest.pop(lead)[1]
        if not rest:
            return total
        c, y = rest.pop(0)
        total = torch.add(total, y, alpha=c)
    own = not torch.is_grad_enabled()  # the buffer is ours; where gradients are taken each sum stays apart
    for c, y in rest:
        total = total.add_(y, alpha=c) if own else torch.add(total, y, alpha=c)
    return total
