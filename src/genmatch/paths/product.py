r"""Paths on products: each factor on a path of its own, at a time of its own.

.. math:: p_t(x\,|\,x_0, x_1) = \prod_i p^i_{c_i(t)}(x^i\,|\,x^i_0, x^i_1)

The conditional path factorises, the marginal one does not: every factor's generator sees the whole state (generator
matching, arXiv 2410.20587, Proposition 4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..couplings import Given, Independent
from ..random import Draws
from ..schedules import Number
from ..spaces.product import FACTORS, Product
from ..spaces.states import State, same_factors
from .path import Path

__all__ = ["ProductInstant", "ProductPath"]

Time = Callable[[Tensor], Tensor]  # a factor's own time as a function of the common one


class ProductInstant:
    r"""The numbers of every factor at one common time t, and the speeds :math:`\dot c_i` of their clocks.

    In a solver's plan a speed is the clock's average over the coming step.
    """

    __slots__ = ("factors", "speeds", "t")

    def __init__(self, t: Any, factors: Mapping[str, Any], speeds: Mapping[str, Number]) -> None:
        self.t, self.factors, self.speeds = t, factors, speeds

    @property
    def running(self) -> ProductInstant:
        """The same instant with every clock at speed 1, also those that stand just now."""
        return ProductInstant(self.t, self.factors, dict.fromkeys(self.speeds, 1.0))

    @property
    def derived(self) -> bool:
        """Whether some factor's derivatives have been taken."""
        return any(getattr(factor, "derived", False) for factor in self.factors.values())

    @property
    def alpha_dot(self) -> Any:
        """Every factor's; asked for to have them taken ahead of a compiled step."""
        return [factor.alpha_dot for factor in self.factors.values() if hasattr(factor, "derived")]

    def rows(self) -> list[ProductInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        factors = {name: factor.rows() for name, factor in self.factors.items()}
        speeds = {name: speed.tolist() for name, speed in self.speeds.items()}  # type: ignore[union-attr]
        return [
            ProductInstant(
                t, {name: rows[i] for name, rows in factors.items()}, {name: rows[i] for name, rows in speeds.items()}
            )
            for i, t in enumerate(self.t.tolist())
        ]

    def broadcast(self, x: State) -> ProductInstant:
        """Per-sample values ``(B,)`` to broadcast against the factors of ``x``."""
        factors = {name: factor.broadcast(x[name]) for name, factor in self.factors.items()}
        speeds = {
            name: speed.reshape(-1, *[1] * (x[name].ndim - 1))  # type: ignore[union-attr]
            for name, speed in self.speeds.items()
        }
        return ProductInstant(self.t, factors, speeds)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.t, self.factors, self.speeds))


class ProductPath(Path):
    r"""A path for every factor of a state that is a dict.

    Parameters
    ----------
    factors
        Paths by name. Their source and data are paired independently or as given: a pairing that moves samples about
        would tear the factors of a sample apart.
    clocks
        For some factors, by name, their time :math:`c_i(t)` as a function of the common time: an increasing,
        differentiable function of a tensor, with :math:`c(0) = 0` and :math:`c(1) = 1`. A factor whose clock runs ahead
        is made first: with ``{"label": lambda t: 1 - (1 - t) ** 4}`` the label is nearly there when the point begins.
        ``torch.ones_like``, a clock that stands at 1, is for a factor that is given: it does not move.

    Examples
    --------
    >>> import genmatch as gm
    >>> gm.ProductPath({"label": gm.MixturePath(3), "point": gm.GaussianPath()})
    ProductPath(label=MixturePath(3), point=GaussianPath(CondOT(sigma_min=0.0)))
    """

    def __init__(
        self,
        factors: Mapping[str, Path],
        *,
        clocks: Mapping[str, Time] | None = None,
    ) -> None:
        if not isinstance(factors, Mapping):
            raise TypeError(f"factors must be a dict of paths by name, got {type(factors).__name__}")
        for name, path in factors.items():
            if not isinstance(path, Path):
                raise TypeError(f"the factor {name!r} must be a genmatch Path, got {type(path).__name__}")
            if not isinstance(path.coupling, (Independent, Given)):
                raise ValueError(
                    f"the factor {name!r} pairs source and data by {path.coupling!r}: that would tear the factors of a "
                    "sample apart. Leave its coupling independent"
                )
        self.factors = dict(factors)
        self.space = Product({name: path.space for name, path in self.factors.items()})
        self.clocks = dict(clocks or {})
        for name in self.factors:
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"a factor's name is a string without dots, got {name!r}: tensors are saved under it")
        self.given = frozenset(n for n, clock in self.clocks.items() if _stands(n, clock, self.factors))
        given = any(isinstance(path.coupling, Given) for path in self.factors.values())
        self.coupling = Given() if given else Independent()
        self.source = _Sources(self)

    def at(self, t: Tensor, until: Tensor | None = None) -> ProductInstant:
        """Every factor's numbers at its own time."""
        return self.gather(self.factors, t, until)

    def each(self, t: Mapping[str, Any], x: State) -> ProductInstant:
        """The numbers at times given factor by factor, ``{name: (B,) or number}``: clocks do not apply."""
        return self.separate(self.factors, t, x)

    def gather(self, owners: Mapping[str, Any], t: Tensor, until: Tensor | None) -> ProductInstant:
        """The numbers of ``owners`` of the factors (their paths, or predictors on them), each at its own time."""
        factors, speeds = {}, {}
        for name, owner in owners.items():
            clock, own, end, speed = self.clocks.get(name), t, until, torch.ones_like(t)
            if clock is not None:
                own, speed = torch.func.jvp(clock, (t,), (torch.ones_like(t),))  # type: ignore[misc]
                own = own.clamp(0, 1)
                if until is not None:
                    end = clock(until).clamp(0, 1)
                    speed = (end - own) / (until - t)
            factors[name], speeds[name] = owner.at(own, end), speed
        return ProductInstant(t, factors, speeds)

    def separate(self, owners: Mapping[str, Any], t: Mapping[str, Any], x: State) -> ProductInstant:
        """The numbers of ``owners`` at times given factor by factor."""
        same_factors("t", t, self.factors)
        factors = {name: owner.instant(t[name], x[name]) for name, owner in owners.items()}
        return ProductInstant(dict(t), factors, dict.fromkeys(factors, 1.0))

    def between(self, x0: State, x1: State, instant: ProductInstant, draws: Draws) -> State:
        """Every factor's state between its ends."""
        return {
            name: path.between(x0[name], x1[name], instant.factors[name], draws.fork(FACTORS + i))
            for i, (name, path) in enumerate(self.factors.items())
        }

    def prior(self, x0: State, instant: ProductInstant) -> State:
        """Every factor's."""
        return {name: path.prior(x0[name], instant.factors[name]) for name, path in self.factors.items()}

    def why_not_noise(self, instant: ProductInstant) -> str:
        """The first factor's reason."""
        if self.given:
            names = ", ".join(sorted(self.given))
            return f"{names} is given, its clock stands at 1: pass its values, and states of the other factors"
        reasons = (path.why_not_noise(instant.factors[name]) for name, path in self.factors.items())
        return next((reason for reason in reasons if reason), "")

    def _key(self) -> tuple[Any, ...]:
        return (tuple(self.factors.items()), tuple(self.clocks.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProductPath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((ProductPath, self._key()))

    def __repr__(self) -> str:
        parts = [f"{name}={path!r}" for name, path in self.factors.items()]
        parts += [f"clocks for {', '.join(self.clocks)}"] if self.clocks else []
        return f"ProductPath({', '.join(parts)})"


class _Sources:
    """Each factor's source, with a stream of its own."""

    def __init__(self, path: ProductPath) -> None:
        self.paths = path.factors

    def draw(self, shape: Any, draws: Draws) -> State:
        """Samples of the shapes ``{name: (B, *S)}``."""
        same_factors("the shapes", shape, self.paths)
        return {
            name: path.draw_source(tuple(shape[name]), draws.fork(FACTORS + i))
            for i, (name, path) in enumerate(self.paths.items())
        }


def _stands(name: str, clock: Any, factors: Mapping[str, Path]) -> bool:
    """Whether a clock stands at 1; raises unless it does or increases smoothly from 0 to 1."""
    if name not in factors:
        raise ValueError(f"there is a clock for {name!r}, which is no factor: they are {', '.join(factors)}")
    if not callable(clock):
        raise TypeError(f"the clock of {name!r} must be a function of t, got {type(clock).__name__}")
    times = clock(torch.linspace(0, 1, 65, dtype=torch.float64))
    if not isinstance(times, Tensor) or times.shape != (65,):
        raise TypeError(f"the clock of {name!r} must map a tensor of times to one of the same shape")
    if bool((times == 1).all()):
        return True
    ends = times[[0, -1]] - torch.tensor([0.0, 1.0], dtype=times.dtype)
    if not bool((times.diff() >= 0).all()) or float(ends.abs().max()) > 1e-6:
        raise ValueError(
            f"the clock of {name!r} must increase from 0 to 1, it runs from {float(times[0]):g} to {float(times[-1]):g}"
            + ("" if bool((times.diff() >= 0).all()) else " and falls on the way")
        )
    grid = torch.linspace(0, 1, 65, dtype=torch.float64)
    speed = torch.func.jvp(clock, (grid,), (torch.ones_like(grid),))[1]
    if not bool(speed.isfinite().all()):
        bad = float(grid[~speed.isfinite()][0])
        raise ValueError(f"the clock of {name!r} runs infinitely fast at t = {bad:g}: a factor's speed must be finite")
    distance = float(torch.trapezoid(speed, grid))
    if abs(distance - 1) > 0.1:
        raise ValueError(
            f"the clock of {name!r} moves by 1 and its derivative says {distance:.3g}: write it with differentiable "
            "torch operations, without detach"
        )
    return False
