"""Test functions for the forward equation: a deterministic family for each kind of space.

A family is made for a law, given by some states of it: the functions vary where the law has mass. A generator that is
wrong anywhere must move one of them wrongly, so each family has functions of first and of second order in the state,
and oscillating ones that tell apart what moments cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ..random import Draws
from ..spaces import Space
from ..spaces.interval import Interval
from ..spaces.states import State, batch, each
from ..spaces.torus import Torus

__all__ = ["PILOT", "TestFunctions", "check_values", "default_test_functions", "named", "spreads"]

TestFunctions = Mapping[str, Callable[[Any], Tensor]]
PILOT = 512  # states that a family is made for
_FACTOR = 3  # functions of each factor of a product that are multiplied with those of the others


def default_test_functions(space: Space, reference: State, *, seed: int = 0) -> TestFunctions:
    """Named functions ``(B, *S) -> (B,)`` that vary on a law.

    Vectors, and manifolds in their coordinates: a linear function, two quadratic ones, waves of three lengths, a step
    and a bump, along random directions of the standardised state. Angles of a torus enter by their sine and cosine,
    coordinates of an interval by a cosine that is level at both ends.
    Tokens: random tables summed over positions and multiplied over two of them, indicators of a token and of a pair
    that the law shows, the share of a token. Products: functions of each factor, and products of them over each pair
    of factors and over all factors.

    Parameters
    ----------
    space
        Where the states live.
    reference
        A few hundred states of the law.
    seed
        Chooses directions, phases and tables.
    """
    if isinstance(reference, Mapping):
        return _of_product(space, reference, seed)
    if not reference.is_floating_point():
        return _of_tokens(reference, seed)
    if isinstance(space, Torus):
        chart: Callable[[Tensor], Tensor] = _circles
    elif isinstance(space, Interval):
        chart = partial(_between_walls, space)
    else:
        return _of_vectors(reference, seed)
    return {name: (lambda x, f=f: f(chart(x))) for name, f in _of_vectors(chart(reference), seed).items()}


def _circles(angles: Tensor) -> Tensor:
    """Points of circles, ``(B, 2d)``, for angles: functions of them have no seam."""
    return torch.cat([_rows(angles).cos(), _rows(angles).sin()], 1)


def _between_walls(space: Interval, x: Tensor) -> Tensor:
    """Coordinates of zero slope at both ends, as the test functions of a reflected process have."""
    return torch.cos(math.pi * (_rows(x) - space.low) / space.width)


def _of_vectors(reference: Tensor, seed: int) -> TestFunctions:
    flat = _rows(reference).double()
    mean, spread = flat.mean(0), spreads(flat)
    size = flat.shape[1]
    directions = Draws(seed, 8, device=flat.device).normal((8, size), torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    phases = 2 * math.pi * Draws(seed, 8, stream=1, device=flat.device).uniform((8,), torch.float64)
    centres = ((flat - mean) / spread) @ directions.T
    centres = centres.quantile(torch.tensor([0.3, 0.7], dtype=torch.float64, device=flat.device), dim=0)

    weights = directions / spread  # one product with the state, as each test function is differentiated twice
    offsets = weights @ mean

    def along(which: int, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        weight, offset = weights[which], float(offsets[which])
        return lambda x: function(_rows(x) @ weight.to(x) - offset)

    def radius(x: Tensor) -> Tensor:
        return (((_rows(x) - mean.to(x)) * spread.reciprocal().to(x)) ** 2).sum(1) * (1 / size)

    low, high, phase = float(centres[0, 6]), float(centres[1, 7]), phases.tolist()
    return {
        "linear": along(0, lambda y: y),
        "square": along(1, lambda y: y**2),
        "radius": radius,
        "wave 1": along(2, lambda y: torch.sin(y + phase[2])),
        "wave 2": along(3, lambda y: torch.sin(1.7 * y + phase[3])),
        "wave 3": along(4, lambda y: torch.sin(2.5 * y + phase[4])),
        "step": along(6, lambda y: torch.tanh(2 * (y - low))),
        "bump": along(7, lambda y: torch.exp(-((y - high) ** 2))),
    }


def spreads(x: Tensor) -> Tensor:
    """The standard deviation of each coordinate, ``(d,)`` in float64: the scale on which test functions vary.

    1 for a coordinate that hardly varies beside the others: it is not blown up, as what it does would be rounding.
    """
    spread = _rows(x).double().std(0)
    return torch.where(spread > 1e-3 * spread.max(), spread, torch.ones_like(spread))


def _rows(x: Tensor) -> Tensor:
    """``(B, *S)`` as ``(B, d)``, also where S is empty."""
    return x.reshape(len(x), -1)


def _of_tokens(reference: Tensor, seed: int) -> TestFunctions:
    flat = _rows(reference).long()
    size = flat.shape[1]
    draws = Draws(seed, 6, device=flat.device)
    rows = draws.integers((6,), len(flat)).tolist()
    firsts = draws.fork(1).integers((6,), size)
    seconds = (firsts + 1 + draws.fork(2).integers((6,), max(1, size - 1))) % size  # another position, if there is one
    pairs = [torch.stack(pair).unique() for pair in zip(firsts, seconds, strict=True)]
    keys = draws.fork(3).bits((6,)).tolist()
    everywhere = torch.arange(size, device=flat.device)

    def summed(k: int) -> Callable[[Tensor], Tensor]:
        return lambda x: _table(keys[k], everywhere, _rows(x)).sum(1) / math.sqrt(size)

    def product(k: int) -> Callable[[Tensor], Tensor]:
        return lambda x: _table(keys[k], pairs[k], _rows(x)[:, pairs[k]]).prod(1)

    def shown(where: Tensor, values: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: (_rows(x)[:, where] == values).all(1).double()

    common = int(flat.flatten().bincount().argmax())
    return {
        "table 1": summed(0),
        "table 2": summed(1),
        "pair 1": product(2),
        "pair 2": product(3),
        "pair shown": shown(pairs[4], flat[rows[4], pairs[4]]),
        "token shown": shown(firsts[5:], flat[rows[5], firsts[5:]]),
        f"share of {common}": lambda x: (_rows(x) == common).double().mean(1),
    }


def _table(key: int, where: Tensor, x: Tensor) -> Tensor:
    """A fixed random number in [-1, 1) for each (position, id); scrambled, as a table would be as long as an id."""
    word = (x.long() * 0x9E3779B1 + where * 0x85EBCA77 + key) & 0xFFFFFFFF
    for multiplier in (0x7FEB352D, 0x846CA68B):
        word = ((word ^ (word >> 16)) * multiplier) & 0xFFFFFFFF
    return (word ^ (word >> 16)).double() * 2.0**-31 - 1


def _of_product(space: Any, reference: Mapping[str, Tensor], seed: int) -> TestFunctions:
    families = {
        name: default_test_functions(space.factors[name], state, seed=seed + i)
        for i, (name, state) in enumerate(reference.items())
    }
    found: dict[str, Callable[[Any], Tensor]] = {}
    for name, family in families.items():
        for label, function in family.items():
            found[f"{name}: {label}"] = lambda x, n=name, f=function: f(x[n])
    groups = [*combinations(families, 2)]
    groups += [tuple(families)] if len(families) > 2 else []  # what couples all may show in no pair
    for group in groups:
        for chosen in zip(*(_bounded(families[name]) for name in group), strict=False):
            labels = [f"{name}: {label}" for name, (label, _) in zip(group, chosen, strict=True)]
            found[" * ".join(labels)] = partial(_product_of, group, [function for _, function in chosen])
    return found


def _product_of(names: Sequence[str], functions: Sequence[Callable[[Tensor], Tensor]], x: State) -> Tensor:
    return math.prod(
        (f(x[name]) for name, f in zip(names[1:], functions[1:], strict=True)), start=functions[0](x[names[0]])
    )


def _bounded(family: TestFunctions) -> list[tuple[str, Callable[[Any], Tensor]]]:
    """Some functions of a family, waves before the unbounded ones."""
    names = sorted(family, key=lambda name: not name.startswith(("wave", "table", "pair")))
    return [(name, family[name]) for name in names[:_FACTOR]]


def named(test_functions: Any) -> tuple[tuple[str, ...], list[Callable[[Any], Tensor]]]:
    """Names and functions of what a caller gave: one function, a sequence of them, or a dict."""
    if callable(test_functions):
        test_functions = [test_functions]
    if not isinstance(test_functions, Mapping):
        test_functions = {getattr(f, "__name__", "f") + f" {i}": f for i, f in enumerate(test_functions)}
    if not test_functions:
        raise ValueError("there are no test functions: give at least one, or none at all for the default family")
    for name, function in test_functions.items():
        if not callable(function):
            raise TypeError(f"a test function maps (B, *S) to (B,), {name!r} is of type {type(function).__name__}")
    return tuple(test_functions), list(test_functions.values())


def check_values(names: Sequence[str], functions: Sequence[Callable[[Any], Tensor]], x: State) -> None:
    """Raise unless each function maps states to one number each."""
    few = each(lambda v: v[:2], x)
    count = batch(few)
    for name, function in zip(names, functions, strict=True):
        value = function(few)
        if not isinstance(value, Tensor) or value.shape != (count,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"test function {name!r} must map {count} states to shape ({count},), got {got}")
