"""The forward equation without noise: both sides as integrals over a law that is known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..generators import Operator
from ..predict.predictor import Condition
from ..spaces.states import State, batch, each
from .families import PILOT, check_values, default_test_functions, named
from .residuals import rounding_of

__all__ = ["Density", "integrals"]

_TOTAL = 1e-3  # how far a density may be from 1 in total


@dataclass(frozen=True, eq=False)
class Density:
    r"""A law :math:`p_t` in closed form and where to sum over it: quadrature on a grid, or all states of a finite set.

    Parameters
    ----------
    function
        ``(x, t) -> (N,)``, the density (or the probabilities) at states ``x`` and a 0-d time ``t``, differentiable in t
        by forward mode.
    states
        ``(N, *S)``: a grid wide enough to hold the law at all times asked, in float64, or every state of a finite set.
    weights
        What a state counts in an integral: the spacing of a grid, the area of its cells, ``(N,)`` for a rule with
        weights of its own; 1 on a finite set. On an even grid the plain sum of a smooth, decaying density is exact to
        rounding.
    """

    function: Callable[[Any, Tensor], Tensor]
    states: Any
    weights: Tensor | float = 1.0


def integrals(
    generator: Operator, test_functions: Any, density: Density, t: float, condition: Condition, seed: int
) -> tuple[Any, ...]:
    """Names of the functions; means of both sides, standard errors (0), scales and rounding, ``(F,)`` each."""
    x, space = density.states, generator.path.space
    time = torch.tensor(t, dtype=torch.float64)
    with torch.no_grad():
        law, slope, *_ = torch.func.jvp(lambda s: density.function(x, s), (time,), (torch.ones_like(time),))
        law, slope = law.double() * density.weights, slope.double() * density.weights
        _check_law(law, batch(x), t)
        if test_functions is None:
            test_functions = default_test_functions(space, _quantiles(x, law), seed=seed)
        names, functions = named(test_functions)
        check_values(names, functions, x)
        triplet = generator(x, t, condition)
        columns = []
        for f in functions:
            value, move = f(x).double(), triplet.apply(f, x, space).double()
            given = (slope.abs() * (value - (law * value).sum()).abs()).sum()
            made = (law * move.abs()).sum()
            rounding = rounding_of(torch.float64) * (made + given)
            nothing = torch.zeros_like(made)
            columns.append(
                torch.stack([(law * move).sum(), (slope * value).sum(), nothing, torch.minimum(made, given), rounding])
            )
    return names, *torch.stack(columns, 1)


def _quantiles(x: State, law: Tensor) -> State:
    """States in the proportions of a law."""
    levels = (torch.arange(PILOT, device=law.device, dtype=law.dtype) + 0.5) / PILOT
    edges = law.clamp(min=0).cumsum(0)
    where = torch.searchsorted(edges, levels * edges[-1]).clamp(max=len(law) - 1)
    return each(lambda v: v[where], x)


def _check_law(law: Tensor, count: int, t: float) -> None:
    if law.shape != (count,):
        raise ValueError(f"the density must have shape ({count},), one value for each state, got {tuple(law.shape)}")
    total = float(law.sum())
    if not abs(total - 1) < _TOTAL:
        raise ValueError(
            f"at t = {t:g} the density adds to {total:.6g} on its states, not to 1: is the grid too narrow or too "
            "coarse, or weights= not the spacing?"
        )
