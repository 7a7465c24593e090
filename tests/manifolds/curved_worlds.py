"""Manifolds with points, isometries and exact fields on them, for the tests beside this file."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genmatch.paths import GeodesicPath
from genmatch.predict import Predictor
from genmatch.random import Draws
from genmatch.spaces import SO3, Manifold, PoincareBall, Sphere, Torus

SPACES: list[Manifold] = [
    Sphere(1),
    Sphere(2),
    Sphere(4),
    Torus(1),
    Torus(3),
    SO3(),
    PoincareBall(2),
    PoincareBall(3, -2.5),
]
NAMES = [repr(space) for space in SPACES]


def points(space: Manifold, seed: int, count: int = 64, lead: tuple[int, ...] = (), spread: float = 0.4) -> Tensor:
    """Points of shape (count, *lead, *event) in float64; on the ball within a distance of a few spreads."""
    shape = (count, *lead, *space.event_shape)
    if space.compact:
        return space.project(space.uniform(shape, Draws(seed, count)).double())
    centre = torch.zeros(shape, dtype=torch.float64)
    return space.exp(centre, spread * Draws(seed, count).normal(shape, torch.float64))


def vectors(space: Manifold, x: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    """Tangent vectors of standard normal law in the metric, times scale."""
    return scale * space.noise(x, Draws(seed, len(x)).normal(x.shape, x.dtype))


def skew(omega: Tensor) -> Tensor:
    """The matrix of the cross product, written out."""
    a, b, c = omega.unbind(-1)
    zero = torch.zeros_like(a)
    rows = [torch.stack(row, -1) for row in ([zero, -c, b], [c, zero, -a], [-b, a, zero])]
    return torch.stack(rows, -2)


def moebius(c: float, x: Tensor, y: Tensor) -> Tensor:
    """The Moebius sum of the Poincare ball, as in arXiv 1805.09112, Definition 2.1."""
    xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
    return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / (1 + 2 * c * xy + c**2 * xx * yy)


def isometry(space: Manifold, seed: int) -> Callable[[Tensor], Tensor]:
    """A random isometry of the space, a differentiable function of points."""
    draws = Draws(seed, 1)
    if isinstance(space, Torus):
        shift = draws.normal((1, space.dimension), torch.float64)[0] * 3
        return lambda x: space.project(x + shift)
    if isinstance(space, SO3):
        left, right = (space.uniform((1, 3, 3), draws.fork(i)).double()[0] for i in (1, 2))
        left, right = space.project(left), space.project(right)
        return lambda x: left @ x @ right
    size = space.event_shape[0]
    turn = torch.linalg.qr(draws.normal((1, size, size), torch.float64)[0])[0]
    if isinstance(space, PoincareBall):
        by = 0.3 * torch.tanh(draws.fork(3).normal((1, size), torch.float64)[0])
        return lambda x: moebius(space.c, by.expand_as(x), x @ turn.T)
    return lambda x: x @ turn.T


class ExactPrediction:
    """What a function says of velocity and score."""

    def __init__(self, model: ExactField, x: Tensor, instant: Any) -> None:
        self.model, self.x, self.instant = model, x, instant

    @property
    def velocity(self) -> Tensor:
        return self.model.functions["velocity"](self.x, self.instant.t)

    @property
    def score(self) -> Tensor:
        return self.model.functions["score"](self.x, self.instant.t)


class ExactField(Predictor):
    """A predictor of given functions of (x, t) in the place of a network."""

    kind = "exact"
    readings = frozenset({"velocity", "score"})

    def __init__(self, path: GeodesicPath, velocity: Callable | None = None, score: Callable | None = None) -> None:
        super().__init__()
        self.path = path
        none = lambda x, t: torch.zeros_like(x)  # noqa: E731
        self.functions = {"velocity": velocity or none, "score": score or none}

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        return self.path.at(t, until)

    def native(self, x: Tensor, instant: Any, condition: Any = None) -> Tensor:
        return x

    def prediction(self, x: Tensor, instant: Any, native: Tensor) -> ExactPrediction:
        return ExactPrediction(self, x, instant)

    def blank(self, x: Tensor) -> Tensor:
        return x

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> Tensor:
        raise TypeError("there is nothing to train")

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        return None, None

    def per_data(self, instant: Any) -> float:
        return 1.0

    def reads(self, instant: Any) -> bool:
        return True


def pace(t: Any) -> Any:
    """A speed that changes with time."""
    return 1 + math.sin(3 * t)


def clock(t: float) -> float:
    """The integral of :func:`pace` from 0."""
    return t + (1 - math.cos(3 * t)) / 3


def hermite(dimension: int, count: int) -> tuple[Tensor, Tensor]:
    """Nodes (count ** dimension, dimension) and weights of Gauss-Hermite quadrature for the standard normal law."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * dimension).reshape(-1, dimension)
    mass = torch.cartesian_prod(*[torch.tensor(weights / weights.sum())] * dimension).reshape(-1, dimension).prod(-1)
    return grid, mass


def von_mises_fisher(kappa: float, mean: Tensor, draws: Draws) -> Tensor:
    """Samples (B, 3) in float64 of density proportional to exp(kappa <mean, x>) on the sphere."""
    u = draws.fork(1).uniform((draws.samples, 1), torch.float64)
    along = 1 + torch.log(u + (1 - u) * math.exp(-2 * kappa)) / kappa
    aside = draws.fork(2).normal((draws.samples, 3), torch.float64)
    aside = aside - (aside @ mean)[:, None] * mean
    return along * mean + (1 - along**2).clamp(min=0).sqrt() * aside / aside.norm(dim=-1, keepdim=True)
