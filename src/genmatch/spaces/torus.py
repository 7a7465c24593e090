r"""The flat torus :math:`(\mathbb R/2\pi\mathbb Z)^d` in angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import Draws
from .manifold import Manifold, check_dimension
from .squares import length

__all__ = ["Torus"]


@dataclass(frozen=True, repr=False)
class Torus(Manifold):
    r"""The flat torus: points are d angles in :math:`[-\pi, \pi)`, in the last dimension.

    .. math:: \exp_x v = \operatorname{wrap}(x + v), \qquad \log_x y = \operatorname{wrap}(y - x)

    where wrap adds the multiple of :math:`2\pi` that leads into :math:`[-\pi, \pi)`. The space is flat: a step with
    frozen drift and variance is exact, and a variance may differ between angles.

    Parameters
    ----------
    dimension
        d, the number of angles of a point.

    Notes
    -----
    Angles half a turn apart are each other's cut locus: :meth:`log` is :math:`-\pi` there. Its derivative is the
    identity everywhere; the distance has derivative 0 at distance 0.
    """

    dimension: int
    isotropic = False

    def __post_init__(self) -> None:
        check_dimension(self.dimension)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension,)

    def deviation(self, x: Tensor) -> Tensor:
        r"""By how much the angles leave :math:`[-\pi, \pi]`."""
        return (x.abs() - math.pi).clamp(min=0).amax(-1)

    def nearest(self, x: Tensor) -> Tensor:
        r"""The same angles in :math:`[-\pi, \pi)`; those inside pass unchanged."""
        wrapped = torch.remainder(x + math.pi, 2 * math.pi) - math.pi
        wrapped = torch.where(wrapped >= math.pi, wrapped - 2 * math.pi, wrapped)  # where it was rounded up
        return torch.where((x >= -math.pi) & (x < math.pi), x, wrapped)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v`` itself."""
        return v

    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        """``z`` itself."""
        return z

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.nearest(x + v)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.nearest(x + v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.nearest(y - x)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`|\log_x y|`, at most :math:`\pi\sqrt d`."""
        difference = self.log(x, y)
        return length((difference * difference).sum(-1))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1)

    def uniform(self, shape: Sequence[int], draws: Draws) -> Tensor:
        self.check_shape(shape)
        return self.nearest(2 * math.pi * draws.uniform(shape) - math.pi)

    def __repr__(self) -> str:
        return f"Torus({self.dimension})"
