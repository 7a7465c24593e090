"""Distributions on R^2 to look at, to test on, and to start from.

Every toy is a small frozen description with counter-based draws: point i depends on (seed, i) alone, whatever the
batch. The defaults keep nearly all points within [-4, 4] (the eight Gaussians reach about 5.5). Where the density has
a closed form there is ``log_prob``; where it is an integral that does not close (moons, spirals) there is no method.

References
----------
.. [1] W. Grathwohl et al., "FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models",
   ICLR 2019, Figure 2: the shapes most papers draw.
.. [2] M. J. Johnson et al., "Composing graphical models with neural networks for structured representations and
   fast inference", NeurIPS 2016, Figure 1: the pinwheel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..random import Draws

__all__ = ["Checkerboard", "EightGaussians", "Pinwheel", "Spirals", "Toy", "TwoMoons"]

# Which mode a point is of, and where on it, are independent of the noise around it.
_MODE, _PLACE, _NOISE = 1, 2, 3


class Toy(ABC):
    """A distribution on R^2. A subclass writes :meth:`draw`."""

    @abstractmethod
    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)`` from ``draws``: what a path asks of its source.

        Raises ValueError for another shape, TypeError for a dtype other than float32 and float64.
        """

    @final
    def sample(
        self,
        n: int,
        *,
        seed: int | None = None,
        first_index: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """``(n, 2)`` points.

        Parameters
        ----------
        n
            How many, at least 0.
        seed
            In ``[0, 2**64)``; ``None`` takes one from torch's global generator.
        first_index
            Index of the first point: ``sample(3, seed=0, first_index=5)`` is ``sample(8, seed=0)[5:]``, bit for bit.
        device, dtype
            Where they are made and as what: any floating dtype, computed in float64 for float64, else in float32.
        """
        if isinstance(n, bool) or not isinstance(n, int):
            raise TypeError(f"n must be an integer, got {type(n).__name__}")
        if n < 0:
            raise ValueError(f"n must be at least 0, got {n}")
        if not dtype.is_floating_point:
            raise TypeError(f"points need a floating dtype, asked for {dtype}")
        work = torch.float64 if dtype == torch.float64 else torch.float32
        draws = Draws(seed, n, first_index=first_index, device=device)
        return self.draw((n, 2), draws, work).to(dtype)


@dataclass(frozen=True)
class EightGaussians(Toy):
    """Eight equal Gaussians on a circle: ``p(x) = 1/8 sum_k N(x; radius (cos k pi/4, sin k pi/4), std^2 I)``.

    Parameters
    ----------
    radius, std
        Of the circle and of each mode. The defaults, 4 and 0.5, are FFJORD's before its division by sqrt 2.
        torchcfm's examples have radius 5 and variance ``sqrt(.1)``: ``EightGaussians(5.0, 0.1**0.25)``.
    """

    radius: float = 4.0
    std: float = 0.5

    def __post_init__(self) -> None:
        _require("radius", self.radius, self.radius > 0, "positive")
        _require("std", self.std, self.std > 0, "positive")

    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)``; see :meth:`Toy.draw`."""
        rows = _rows(shape, dtype)
        angle = draws.fork(_MODE).integers((rows, 1), 8).to(dtype) * (math.pi / 4)
        return self.radius * _direction(angle) + self.std * draws.fork(_NOISE).normal((rows, 2), dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x)`` in nats, ``(B, 2)`` to ``(B,)``."""
        _check_points(x)
        centres = self.radius * _direction(torch.arange(8, dtype=x.dtype, device=x.device)[:, None] * (math.pi / 4))
        squares = (x[:, None] - centres).square().sum(-1)
        return (squares / (-2 * self.std**2)).logsumexp(1) - math.log(8 * 2 * math.pi * self.std**2)


@dataclass(frozen=True)
class Checkerboard(Toy):
    """Uniform on every other square of a board over ``[-half_width, half_width]^2``; the lower left square counts.

    ``p(x) = 1 / (2 half_width^2)`` on those squares, which cover half of the board, and 0 elsewhere.

    Parameters
    ----------
    cells
        Squares along an edge, even, at most 1024. The default is 4: eight squares of edge 2.
    half_width
        Half the edge of the board, 4 by default.
    """

    cells: int = 4
    half_width: float = 4.0

    def __post_init__(self) -> None:
        if isinstance(self.cells, bool) or not isinstance(self.cells, int):
            raise TypeError(f"cells must be an integer, got {type(self.cells).__name__}")
        _require("cells", self.cells, 2 <= self.cells <= 1024 and self.cells % 2 == 0, "even and in [2, 1024]")
        _require("half_width", self.half_width, self.half_width > 0, "positive")

    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)``; see :meth:`Toy.draw`."""
        rows = _rows(shape, dtype)
        half = self.cells // 2
        square = draws.fork(_MODE).integers((rows, 1), self.cells * half)
        column = square // half
        row = 2 * (square % half) + column % 2
        # A hair inside the square: rounding to float32 must not push a point over an edge, where the density is 0.
        margin = self.cells * 2.0**-22
        place = margin + (1 - 2 * margin) * draws.fork(_PLACE).uniform((rows, 2), dtype)
        return (torch.cat([column, row], 1) + place) * (2 * self.half_width / self.cells) - self.half_width

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x)`` in nats, ``(B, 2)`` to ``(B,)``; ``-inf`` off the squares."""
        _check_points(x)
        index = ((x + self.half_width) * (self.cells / (2 * self.half_width))).floor()
        inside = ((index >= 0) & (index < self.cells)).all(1) & (index.sum(1) % 2 == 0)
        level = x.new_full(x.shape[:1], -math.log(2 * self.half_width**2)).masked_fill(~inside, -math.inf)
        return level.masked_fill(x.isnan().any(1), math.nan)


@dataclass(frozen=True)
class Pinwheel(Toy):
    """Curved arms around the origin, like a child's windmill.

    ``x = scale R(2 pi k / arms + twist exp(|f|)) f``, ``f ~ N((1, 0), diag(radial_std^2, tangential_std^2))``,
    with k uniform and R(a) the rotation by a. The twist depends on ``|f|``, which a rotation keeps, so the map is
    undone exactly and keeps areas: the density is a mixture of Gaussians read at the untwisted point. (The pinwheel
    of Johnson et al. twists by the first coordinate of f instead: the same to the eye, but its density does not
    close.)

    Parameters
    ----------
    arms
        At least 1; 5 by default.
    radial_std, tangential_std
        Spread along and across an arm before scaling; 0.3 and 0.1.
    twist
        How much an arm curves, any sign; 0.25.
    scale
        Distance of the middle of an arm from the origin; 2.
    """

    arms: int = 5
    radial_std: float = 0.3
    tangential_std: float = 0.1
    twist: float = 0.25
    scale: float = 2.0

    def __post_init__(self) -> None:
        _require_count("arms", self.arms)
        _require("radial_std", self.radial_std, self.radial_std > 0, "positive")
        _require("tangential_std", self.tangential_std, self.tangential_std > 0, "positive")
        _require("twist", self.twist, True, "finite")
        _require("scale", self.scale, self.scale > 0, "positive")

    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)``; see :meth:`Toy.draw`."""
        rows = _rows(shape, dtype)
        arm = draws.fork(_MODE).integers((rows, 1), self.arms).to(dtype)
        noise = draws.fork(_NOISE).normal((rows, 2), dtype)
        f = torch.cat([1 + self.radial_std * noise[:, :1], self.tangential_std * noise[:, 1:]], 1)
        angle = arm * (2 * math.pi / self.arms) + self.twist * f.norm(dim=1, keepdim=True).exp()
        return self.scale * _rotate(f, angle)

    def log_prob(self, x: Tensor) -> Tensor:
        """``log p(x)`` in nats, ``(B, 2)`` to ``(B,)``."""
        _check_points(x)
        y = x / self.scale
        arm = torch.arange(self.arms, dtype=x.dtype, device=x.device)[:, None, None]
        angle = arm * (2 * math.pi / self.arms) + self.twist * y.norm(dim=1, keepdim=True).exp()
        f = _rotate(y.expand(self.arms, -1, -1), -angle)
        exponent = -0.5 * (((f[..., 0] - 1) / self.radial_std) ** 2 + (f[..., 1] / self.tangential_std) ** 2)
        volume = 2 * math.pi * self.radial_std * self.tangential_std * self.scale**2
        return exponent.logsumexp(0) - math.log(self.arms * volume)


@dataclass(frozen=True)
class Spirals(Toy):
    """Archimedean spirals: ``x = radius r (cos a, sin a) + noise z`` with ``a = 2 pi (turns r + k / arms)``.

    ``r = sqrt(u)`` with u uniform spreads the points evenly over the disc rather than crowding them at its centre;
    z is standard normal, the arm k uniform. No ``log_prob``: the density is an integral along the arm.

    Parameters
    ----------
    arms
        At least 1; 2 by default.
    turns
        Of each arm; 1.5.
    radius
        Of the disc; 3.
    noise
        Standard deviation around the arm, at least 0; 0.1.
    """

    arms: int = 2
    turns: float = 1.5
    radius: float = 3.0
    noise: float = 0.1

    def __post_init__(self) -> None:
        _require_count("arms", self.arms)
        _require("turns", self.turns, self.turns > 0, "positive")
        _require("radius", self.radius, self.radius > 0, "positive")
        _require("noise", self.noise, self.noise >= 0, "at least 0")

    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)``; see :meth:`Toy.draw`."""
        rows = _rows(shape, dtype)
        arm = draws.fork(_MODE).integers((rows, 1), self.arms).to(dtype)
        r = draws.fork(_PLACE).uniform((rows, 1), dtype).sqrt()
        angle = 2 * math.pi * (self.turns * r + arm / self.arms)
        return self.radius * r * _direction(angle) + self.noise * draws.fork(_NOISE).normal((rows, 2), dtype)


@dataclass(frozen=True)
class TwoMoons(Toy):
    """Two interleaved half circles: ``x = scale (m - (1/2, 1/4) + noise z)``, z standard normal.

    m is ``(cos a, sin a)`` or ``(1 - cos a, 1/2 - sin a)``, each with probability 1/2, and a is uniform in
    ``[0, pi]``: scikit-learn's ``make_moons``, centred so that the mean is 0. No ``log_prob``: the density is an
    integral along the half circles.

    Parameters
    ----------
    noise
        Standard deviation in units of the moons' radius, at least 0; 0.1.
    scale
        Radius of a moon; 2.
    """

    noise: float = 0.1
    scale: float = 2.0

    def __post_init__(self) -> None:
        _require("noise", self.noise, self.noise >= 0, "at least 0")
        _require("scale", self.scale, self.scale > 0, "positive")

    def draw(self, shape: Sequence[int], draws: Draws, dtype: torch.dtype = torch.float32) -> Tensor:
        """Points of ``shape`` ``(B, 2)``; see :meth:`Toy.draw`."""
        rows = _rows(shape, dtype)
        # The lower moon is the upper one turned by half a turn about (1/2, 1/4), which is the mean.
        sign = 1 - 2 * draws.fork(_MODE).integers((rows, 1), 2).to(dtype)
        angle = math.pi * draws.fork(_PLACE).uniform((rows, 1), dtype)
        upper = torch.cat([angle.cos() - 0.5, angle.sin() - 0.25], 1)
        return self.scale * (sign * upper + self.noise * draws.fork(_NOISE).normal((rows, 2), dtype))


def _direction(angle: Tensor) -> Tensor:
    return torch.cat([angle.cos(), angle.sin()], -1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos * x[..., :1] - sin * x[..., 1:], sin * x[..., :1] + cos * x[..., 1:]], -1)


def _rows(shape: Sequence[int], dtype: torch.dtype) -> int:
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(f"a toy draws points of shape (B, 2), asked for {tuple(shape)}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"a toy draws float32 or float64, asked for {dtype}")
    return shape[0]


def _check_points(x: Tensor) -> None:
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"the density takes points of shape (B, 2), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"the density takes floating-point points, got {x.dtype}")


def _require(name: str, value: float, holds: bool, need: str) -> None:
    if not math.isfinite(value) or not holds:
        raise ValueError(f"{name} must be {need}, got {value}")


def _require_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    _require(name, value, value >= 1, "at least 1")
