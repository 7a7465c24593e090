r"""Products of spaces: a state is a dict of factors, each moved by its own triplet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..random import Draws
from ..schedules import Number
from ..triplet import Triplets
from .space import Space
from .states import State, same_factors

__all__ = ["FACTORS", "Product"]

FACTORS = 64  # streams of the factors' draws, from here on


class Product(Space):
    r"""The product of named spaces, :math:`x = (x^1, \dots, x^n)`.

    Over a step every factor moves by its own triplet, which may depend on the whole state; that each then moves on its
    own is an error of the order of the step (generator matching, arXiv 2410.20587, Proposition 4).

    Parameters
    ----------
    factors
        Spaces by name; at most 128.
    """

    def __init__(self, factors: Mapping[str, Space]) -> None:
        if not factors:
            raise ValueError("a product needs at least one factor")
        for name, space in factors.items():
            if isinstance(space, Product):
                raise TypeError(f"the factor {name!r} is a product itself: name its factors here, one level deep")
            if not isinstance(space, Space):
                raise TypeError(f"the factor {name!r} must be a genmatch Space, got {type(space).__name__}")
        if len(factors) > 128:
            raise ValueError(f"a product has at most 128 factors, got {len(factors)}")
        self.factors = dict(factors)
        self.parts = frozenset().union(*(space.parts for space in self.factors.values()))

    def check(self, x: State) -> None:
        same_factors("a state of this product", x, self.factors)
        sizes = {}
        for name, space in self.factors.items():
            if not isinstance(x[name], Tensor):
                raise TypeError(f"the factor {name!r} must be a tensor (B, *S), got {type(x[name]).__name__}")
            space.check(x[name])
            sizes[name] = len(x[name])
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the factors must have one batch size, got {sizes}")

    def brownian(self, x: State, draws: Draws) -> State:
        """Noise of every factor that a variance can move."""
        return {
            name: space.brownian(x[name], self._own(name, draws))
            for name, space in self.factors.items()
            if "variance" in space.parts
        }

    def move(self, x: State, triplet: Triplets, h: Number, draws: Draws, noise: State | None = None) -> State:
        """Each factor by its own triplet; one without a triplet stays."""
        if not isinstance(triplet, Triplets) or not set(triplet) <= set(self.factors):
            got = ", ".join(map(repr, triplet)) if isinstance(triplet, Triplets) else f"a {type(triplet).__name__}"
            raise ValueError(
                f"on a product a generator returns Triplets with factors among {', '.join(map(repr, self.factors))}, "
                f"got {got}"
            )
        moved = {}
        for name, space in self.factors.items():
            own = triplet.get(name)
            given = None if noise is None or own is None or own.variance is None else noise[name]
            moved[name] = x[name] if own is None else space.move(x[name], own, h, self._own(name, draws), given)
        return moved

    def second_order(self, function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
        raise TypeError("a product has no second-order part of its own: ask its factors")

    def _own(self, name: str, draws: Draws) -> Draws:
        return draws.fork(FACTORS + list(self.factors).index(name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Product) and other.factors == self.factors

    def __hash__(self) -> int:
        return hash((Product, tuple(self.factors.items())))

    def __repr__(self) -> str:
        return f"Product({', '.join(f'{name}={space!r}' for name, space in self.factors.items())})"
