r"""Riemannian manifolds: states are points, drifts are tangent vectors, noise is isotropic in the metric.

A state ``(B, *S)`` holds one point or several: the last ``event_ndim`` dimensions are a point's coordinates, those in
front of them count points, so that ``(B, n, 3)`` is n points on a sphere for each sample. Vectors are given in the same
coordinates as points (ambient ones on a sphere and for rotations) and have the shape of the state.

A generator's value (drift b, variance :math:`\Sigma`, one number for each point) means

.. math:: L f = \langle\nabla f, b\rangle_g + \tfrac12\Sigma\,\Delta_g f

with the Laplace-Beltrami operator :math:`\Delta_g`. A step of it moves along the drift by a retraction, and then along
a geodesic in a random direction:

.. math:: y = R_x(h\,b), \qquad x' = \exp_y\bigl(\sqrt{h\,\Sigma}\,\xi\bigr), \qquad
   \xi \sim N(0, g^{-1}) \text{ in } T_y .

The second derivative of f along a geodesic is its Hessian, whose trace is the Laplacian, so the geodesic step has the
right generator on every manifold and in any coordinates, without a correction. The scheme has weak order 1 with every
solver; on a flat space it is the Euclidean one.

References
----------
.. [1] E. Jorgensen, "The central limit problem for geodesic random walks", Z. Wahrscheinlichkeitstheorie 32 (1975).
.. [2] E. Hairer, C. Lubich, G. Wanner, "Geometric numerical integration", 2006, Section IV.4: a Runge-Kutta method
   with projected stages keeps its order, for it is the method itself on the field that the projection extends.
.. [3] V. De Bortoli et al., "Riemannian score-based generative modelling", arXiv 2202.02763, Section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..random import Draws
from ..schedules import Number
from ..triplet import Triplet
from .space import BROWNIAN, Space, root
from .squares import length
from .states import all_finite

__all__ = ["Manifold"]


class Manifold(Space, ABC):
    r"""A Riemannian manifold. :meth:`move` and :meth:`brownian` are final; a subclass writes the geometry.

    Attributes
    ----------
    dimension
        Of the manifold, for one point.
    compact
        Whether there is a uniform law, of density 1 / volume.
    isotropic
        Whether a variance is one number for each point. On a flat space it may differ between coordinates.
    tolerance
        How far off the manifold :meth:`check` lets a state be, as :meth:`deviation` measures it.
    """

    parts = frozenset({"drift", "variance", "rates"})
    dimension: int
    compact: bool = True
    isotropic: bool = True
    tolerance: float = 1e-5

    @property
    @abstractmethod
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one point."""

    @abstractmethod
    def deviation(self, x: Tensor) -> Tensor:
        """How far each point is off the manifold, at least 0, shape of ``x`` without the event dimensions."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """The point of the manifold that ``x`` ``(B, *S)`` stands for: the nearest one, or the one it wraps to.

        What is not finite must stay so: a state that a network has spoilt is not to pass for a point.
        """

    @abstractmethod
    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """The orthogonal projection of an ambient ``v`` ``(B, *S)`` onto the tangent space at ``x``."""

    @abstractmethod
    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        r"""A tangent vector of law :math:`N(0, g^{-1})` at ``x`` from standard normals ``z`` ``(B, *S)``, linear."""

    @abstractmethod
    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """The projection of ``x + v`` for any ambient ``v``, tangent at ``x`` or not.

        Sums of Runge-Kutta slopes are tangent at no point. Projected, a method keeps its order; along geodesics without
        parallel transport of the slopes it would have order 2 at most.
        """

    @abstractmethod
    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The end of the geodesic that leaves ``x`` with tangent velocity ``v``, after a unit of time."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The initial velocity of the shortest geodesic from ``x`` to ``y``; at the cut locus a fixed choice of it."""

    @abstractmethod
    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance of each pair of points, shape without the event dimensions; derivative 0 at distance 0."""

    @abstractmethod
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        r""":math:`\langle u, v\rangle_g` of tangent vectors at ``x``, shape without the event dimensions."""

    @abstractmethod
    def uniform(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Points of ``shape`` ``(B, *S)`` from the uniform law; raises where there is none (``compact``)."""

    @property
    def event_ndim(self) -> int:
        """How many trailing dimensions one point takes."""
        return len(self.event_shape)

    def norm(self, x: Tensor, v: Tensor) -> Tensor:
        """The length of tangent vectors in the metric, shape without the event dimensions; derivative 0 at 0."""
        return length(self.inner(x, v, v))

    def geodesic(self, x: Tensor, y: Tensor, s: Number) -> Tensor:
        r""":math:`\exp_x(s\log_x y)`: the point a share ``s`` of the way, a number or ``(B, 1, ..., 1)``."""
        return self.exp(x, s * self.log(x, y))

    def project(self, x: Tensor) -> Tensor:
        """The point of the manifold that ``x`` ``(B, *S)`` stands for, :meth:`nearest`; raises if x is not finite."""
        _check_finite(x, f"no point of {self!r} is nearest to it")
        return self.nearest(x)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise unless ``shape`` ``(B, *S)`` ends in the shape of a point."""
        shape = tuple(shape)
        if len(shape) <= self.event_ndim or shape[-self.event_ndim :] != self.event_shape:
            points = ", ".join(map(str, self.event_shape))
            raise ValueError(
                f"a state on {self!r} has shape (B, ..., {points}): points of shape ({points}), got {shape}"
            )

    def check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(f"a state on {self!r} must be floating point, got {x.dtype}: call .float() on it")
        self.check_shape(x.shape)
        _check_finite(x, "check the data for NaN")
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return
        deviation = self.deviation(x.detach())
        off = deviation > self.tolerance
        if bool(off.any()):
            raise ValueError(
                f"{int(off.sum())} of {off.numel()} points are off {self!r} by up to {deviation.max().item():.2g} "
                f"(allowed: {self.tolerance:g}): bring them there with space.project(x)"
            )

    def brownian(self, x: Tensor, draws: Draws) -> Tensor:
        """Standard normals of the shape of ``x``; :meth:`noise` turns them into tangent ones where they act."""
        return draws.fork(BROWNIAN).normal(x.shape, x.dtype)

    def move(self, x: Tensor, triplet: Triplet, h: Number, draws: Draws, noise: Tensor | None = None) -> Tensor:
        """Along the drift by the retraction, a geodesic in the direction of the noise, then jumps of whole states."""
        if triplet.rates is not None and not all(term.where.whole for term in triplet.rates.terms):
            raise ValueError(
                f"a state on {self!r} jumps as a whole, got rates of single coordinates: they would leave it"
            )
        start = x
        if triplet.drift is not None:
            if triplet.drift.shape != x.shape:
                raise ValueError(
                    f"a drift has the shape {tuple(x.shape)} of the state, got {tuple(triplet.drift.shape)}"
                )
            x = self.retract(x, h * triplet.drift)
        if triplet.variance is not None:
            self._check_variance(triplet.variance, x)
            variance = h * triplet.variance
            if not isinstance(variance, Tensor) and variance < 0:
                raise ValueError(f"a variance must be at least 0, got {triplet.variance} over a time of {h}")
            z = self.brownian(start, draws) if noise is None else noise
            spread = root(variance) if isinstance(variance, Tensor) else math.sqrt(variance)
            x = self.exp(x, spread * self.noise(x, z))
        return x if triplet.rates is None else triplet.rates.leap(x, h, draws)

    def second_order(self, function: Callable[[Tensor], Tensor], x: Tensor, variance: Any) -> Tensor:
        r""":math:`\tfrac12\Sigma\,\Delta_g f` at ``x``, ``(B,)``: second derivatives along geodesics, by forward mode.

        With the ambient basis :math:`e_k`, vectors :math:`\xi_k` = ``noise(x, e_k)`` have
        :math:`\sum_k\xi_k\xi_k^T = g^{-1}`; so :math:`\Delta_g f = \sum_k \frac{d^2}{ds^2} f(\exp_x s\,\xi_k)` at 0.
        """
        variance = torch.as_tensor(variance, dtype=x.dtype, device=x.device)
        self._check_variance(variance, x)
        variance = variance.expand_as(x)
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
        zero, one = x.new_zeros(()), x.new_ones(())

        def along(direction: Tensor) -> Tensor:
            tangent = self.noise(x, direction.expand_as(x))

            def slope(s: Tensor) -> Tensor:
                return torch.func.jvp(lambda r: function(self.exp(x, r * tangent)), (s,), (one,))[1]

            return torch.func.jvp(slope, (zero,), (one,))[1] * (direction * variance).flatten(1).sum(1)

        return 0.5 * torch.stack([along(e) for e in basis]).sum(0)

    def reduce(self, v: Tensor) -> Tensor:
        """The sum over each point's coordinates, shape without the event dimensions."""
        return v.sum(dim=tuple(range(-self.event_ndim, 0)))

    def _check_variance(self, variance: Number, x: Tensor) -> None:
        if not isinstance(variance, Tensor) or variance.ndim == 0:
            return
        ones = (1,) * self.event_ndim
        if variance.ndim != x.ndim or (self.isotropic and variance.shape[-self.event_ndim :] != ones):
            each = "one for each point" if self.isotropic else "of the shape of the state"
            needs = ", ".join(["B", "...", *map(str, ones if self.isotropic else self.event_shape)])
            raise ValueError(
                f"a variance on {self!r} is a number or {each}, ({needs}), "
                f"for a state of shape {tuple(x.shape)}, got {tuple(variance.shape)}"
            )


def _check_finite(x: Tensor, why: str) -> None:
    """Raise if a value is NaN or infinite; on a CPU, where a look costs nothing, and outside compiled graphs."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not all_finite(x):
        bad = int((~x.isfinite()).sum())
        raise ValueError(f"the state has {bad} non-finite values of {x.numel()}: {why}")


def check_dimension(dimension: Any) -> None:
    """Raise unless ``dimension`` is an integer of at least 1."""
    if isinstance(dimension, bool) or not isinstance(dimension, int):
        raise TypeError(f"dimension must be an integer, got {type(dimension).__name__}")
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
