r"""An interval with reflecting ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import Draws
from ..schedules import Number
from ..triplet import Triplet, second_order
from .space import Euclidean, Space

__all__ = ["Interval"]

FLAT = Euclidean()


@dataclass(frozen=True)
class Interval(Space):
    r"""Coordinates in [low, high], any shape; what would leave is reflected at the ends.

    A move is that of R^d, folded back. With drift and noise bounded, reflected Euler steps follow the process of zero
    flux through the ends: test functions have zero slope there.

    Raises
    ------
    ValueError
        If low and high are not finite, low < high; by a state that lies outside.

    Examples
    --------
    >>> Interval(0.0, 1.0).fold(torch.tensor([1.2, -0.3, 0.5]))
    tensor([0.8000, 0.3000, 0.5000])
    """

    low: float = 0.0
    high: float = 1.0
    parts = frozenset({"drift", "variance", "rates"})

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"an interval has finite ends, low < high, got {self.low} and {self.high}")

    @property
    def width(self) -> float:
        """high - low."""
        return self.high - self.low

    def check(self, x: Tensor) -> None:
        FLAT.check(x)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            slack = 1e-6 * self.width  # rounding of a number at an end
            outside = (x < self.low - slack) | (x > self.high + slack)
            if bool(outside.any()):
                raise ValueError(
                    f"states lie in [{self.low:g}, {self.high:g}], got {x[outside][0].item():g}: scale the data"
                )

    def brownian(self, x: Tensor, draws: Draws) -> Tensor:
        return FLAT.brownian(x, draws)

    def move(self, x: Tensor, triplet: Triplet, h: Number, draws: Draws, noise: Tensor | None = None) -> Tensor:
        moved = self.fold(FLAT.move(x, Triplet(triplet.drift, triplet.variance), h, draws, noise))
        return moved if triplet.rates is None else triplet.rates.leap(moved, h, draws)

    def second_order(self, function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
        return second_order(function, x, variance)

    def fold(self, x: Tensor) -> Tensor:
        """Reflected into the interval, as often as it takes."""
        inside = (x >= self.low) & (x <= self.high)
        turned = torch.remainder(x - self.low, 2 * self.width)
        folded = self.low + self.width - (turned - self.width).abs()
        return torch.where(inside, x, folded)  # untouched where nothing is to be done: the fold rounds
