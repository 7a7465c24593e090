r"""Laws of where jumps land, given that they happen: tokens, bins of the line, listed states, samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .inversion import invert, pick, under
from .random import Draws

__all__ = ["Atoms", "Bins", "Categorical", "Landing", "Listed", "Sampler"]

# Gauss-Legendre points that an expectation takes in each bin: exact for polynomials of degree 15.
NODES = 8


class Landing(ABC):
    """The law of where jumps land, given that they happen.

    Attributes
    ----------
    whole
        Whether the state jumps as a whole, or each position on its own.
    width
        How many numbers the law of one landing is made of.
    """

    whole: bool
    width: int = 1

    @abstractmethod
    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Landings for uniforms in [0, 1): one a position, or one a state. ``draws`` for laws that need more."""

    @abstractmethod
    def take(self, where: Tensor) -> Landing:
        """The law of some positions (or states) alone: a bool mask, or the numbers of positions in flattened order."""

    @abstractmethod
    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        r"""The term's part of the generator, :math:`\lambda\,(E f(y) - f(x))` summed over positions, ``(B,)``."""


class Categorical(Landing):
    """Each position lands on one of the values 0 .. K - 1, by logits ``(B, *S, K)``."""

    __slots__ = ("logits",)
    whole = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of values."""
        return self.logits.shape[-1]

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Values, int64, by inverting the distribution function at the uniforms."""
        return pick(self.logits, uniform)

    def take(self, where: Tensor) -> Categorical:
        return Categorical(_rows(self.logits, where))

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        values = torch.arange(self.logits.shape[-1], device=x.device, dtype=x.dtype)
        return _position_gain(function, x, total, self.logits, values.expand(1, -1))


class Listed(Landing):
    """Each position lands on one of V listed values, all positions by one law.

    Parameters
    ----------
    values
        ``(V,)``: they may lie outside 0 .. K - 1, as a mask does.
    probabilities
        ``(V,)``, at least 0, adding to 1.
    """

    __slots__ = ("probabilities", "values")
    whole = False

    def __init__(self, values: Tensor, probabilities: Tensor) -> None:
        if values.ndim != 1 or values.shape != probabilities.shape:
            raise ValueError(
                f"one probability for each listed value is needed, got shapes {tuple(values.shape)} and "
                f"{tuple(probabilities.shape)}"
            )
        self.values, self.probabilities = values, probabilities

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Values, by inverting the one distribution function at the uniforms."""
        edges = self.probabilities.cumsum(0)
        return self.values[torch.searchsorted(edges, under(uniform.to(edges.dtype) * edges[-1], edges[-1]), right=True)]

    def take(self, where: Tensor) -> Listed:
        return self

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        return _position_gain(function, x, total, self.probabilities.log().expand(*x.shape, -1), self.values[None])


class Bins(Landing):
    r"""Each coordinate lands in one of K bins, uniformly inside it: a piecewise constant density.

    Parameters
    ----------
    logits
        ``(B, *S, K)``: log-masses of the bins, unnormalised.
    edges
        ``(K + 1,)``, strictly increasing and finite.
    """

    __slots__ = ("edges", "logits")
    whole = False

    def __init__(self, logits: Tensor, edges: Tensor) -> None:
        if edges.ndim != 1 or len(edges) != logits.shape[-1] + 1:
            raise ValueError(
                f"{logits.shape[-1]} bins have {logits.shape[-1] + 1} edges in a row, got shape {tuple(edges.shape)}"
            )
        self.logits, self.edges = logits, edges

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of bins."""
        return self.logits.shape[-1]

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Coordinates, by inverting the piecewise linear distribution function at the uniforms."""
        index, rest = invert(self.logits, uniform)
        edges = self.edges.to(rest.dtype)
        return edges[index] + rest * (edges[index + 1] - edges[index])

    def take(self, where: Tensor) -> Bins:
        return Bins(_rows(self.logits, where), self.edges)

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        nodes, weights = _legendre(x)
        edges = self.edges.to(x.dtype)
        points = edges[:-1] + nodes[:, None] * edges.diff()
        return _position_gain(function, x, total, self.logits, points, weights)


class Atoms(Landing):
    """The whole state lands on one of K given states.

    Parameters
    ----------
    points
        ``(K, *S)``.
    logits
        ``(B, K)``, or ``(1, K)`` for all samples.
    """

    __slots__ = ("logits", "points")
    whole = True

    def __init__(self, points: Tensor, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[-1] != len(points):
            raise ValueError(
                f"{len(points)} states to land on need logits (B, {len(points)}), got shape {tuple(logits.shape)}"
            )
        self.points, self.logits = points, logits

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """States ``(B, *S)``."""
        logits = self.logits.expand(len(uniform), -1)
        return self.points[invert(logits, uniform)[0]]

    def take(self, where: Tensor) -> Atoms:
        return self if len(self.logits) == 1 else Atoms(self.points, self.logits[where])

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        chances = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).softmax(-1)
        values = function(self.points.to(x.dtype))
        return total.reshape(-1) * ((chances * values).sum(-1) - function(x))


class Sampler(Landing):
    """The whole state lands on a draw of a function ``draws -> (B, *S)``.

    ``B`` is ``draws.samples``. An expectation over it is one draw for each sample: unbiased, and noisy.
    """

    __slots__ = ("function", "where")
    whole = True

    def __init__(self, function: Callable[[Draws], Tensor], where: Tensor | None = None) -> None:
        if not callable(function):
            raise TypeError(f"a sampler is a function of draws, got {type(function).__name__}")
        self.function, self.where = function, where

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """States; drawn for the whole batch, so that a sample's draw does not depend on who else jumps."""
        landed = self.function(draws)
        return landed if self.where is None else landed[self.where]

    def take(self, where: Tensor) -> Sampler:
        return Sampler(self.function, where)

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        landed = self.function(Draws(None, len(x), device=x.device)).to(x.dtype)
        return total.reshape(-1) * (function(landed) - function(x))


def _rows(logits: Tensor, where: Tensor) -> Tensor:
    """Rows of logits ``(*S, K)`` under a bool mask, or by their numbers in flattened order."""
    if where.dtype == torch.bool:
        return logits[where]
    try:
        return logits.view(-1, logits.shape[-1]).index_select(0, where)
    except RuntimeError:  # no view: laws shared by some dimensions, which are not to be copied whole
        return logits[torch.unravel_index(where, logits.shape[:-1])]


def _position_gain(function, x: Tensor, total: Tensor, logits: Tensor, points: Tensor, weights=None) -> Tensor:
    """Sum over positions, values ``points`` (nodes, K) and node weights of rate times the gain of landing there."""
    chances = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).expand(*x.shape, -1)
    here = function(x)
    value = torch.zeros_like(here)
    flat, rate, chances = (
        x.reshape(len(x), -1),
        total.reshape(len(x), -1),
        chances.reshape(len(x), -1, logits.shape[-1]),
    )
    shares = torch.ones(1).to(here) if weights is None else weights
    for position in range(flat.shape[1]):
        for node, share in enumerate(shares):
            for which, point in enumerate(points[node]):
                landed = flat.clone()
                landed[:, position] = point
                gain = function(landed.reshape(x.shape)) - here
                value = value + rate[:, position] * chances[:, position, which] * gain * share
    return value


def _legendre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1) / 2).to(x), (vectors[0] ** 2).to(x)
