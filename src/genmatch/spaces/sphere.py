r"""The unit sphere :math:`S^n` in :math:`\mathbb R^{n+1}`, with the metric of the space around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import Draws
from .manifold import Manifold, check_dimension
from .squares import arc, cosine, length, sinc

__all__ = ["Sphere"]


@dataclass(frozen=True, repr=False)
class Sphere(Manifold):
    r"""The unit sphere: points of the last dimension n + 1 and norm 1.

    .. math:: \exp_x v = \cos|v|\,x + \frac{\sin|v|}{|v|}\,v, \qquad
       \log_x y = \frac{\theta}{\sin\theta}\,(y - \cos\theta\,x), \quad \cos\theta = \langle x, y\rangle

    Parameters
    ----------
    dimension
        n: 2 is the ordinary sphere, whose points have 3 coordinates.

    Notes
    -----
    The cut locus of x is its antipode. Within an angle of 16 units of rounding of it (2e-6 in float32)
    :meth:`log` is :math:`\pi` times one fixed unit tangent vector at x: the projection of the coordinate axis that is
    least aligned with x, the first one of equals. Its derivative there is taken as zero. The distance has derivative 0
    at distance 0 and at the antipode.
    """

    dimension: int = 2

    def __post_init__(self) -> None:
        check_dimension(self.dimension)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension + 1,)

    def deviation(self, x: Tensor) -> Tensor:
        r""":math:`\bigl||x| - 1\bigr|`."""
        return (x.norm(dim=-1) - 1).abs()

    def nearest(self, x: Tensor) -> Tensor:
        """``x / |x|``; the first axis for the centre, which is equally far from all points."""
        first = torch.zeros_like(x)
        first[..., 0] = 1
        return _normalise(x, first)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - (x * v).sum(-1, keepdim=True) * x

    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        """The tangent part of ``z``."""
        return self.tangent(x, z)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        """``(x + v) / |x + v|``; ``x`` itself where ``v = -x``."""
        return _normalise(x + v, x)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        squared = (v * v).sum(-1, keepdim=True)
        return _normalise(cosine(squared) * x + sinc(squared) * v, x)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        cosine = (x * y).sum(-1, keepdim=True)
        # The same tangent part either way; the small difference keeps its digits near both ends.
        across = self.tangent(x, torch.where(cosine < 0, y + x, y - x))
        squared = (across * across).sum(-1, keepdim=True)
        antipode = (cosine < 0) & (squared < (16 * torch.finfo(x.dtype).eps) ** 2)
        return torch.where(antipode, torch.pi * _aside(x.detach()), arc(squared, cosine) * across)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`2\operatorname{atan2}(|x - y|, |x + y|)`, exact to rounding at every angle."""
        chord, across = x - y, x + y
        return 2 * torch.atan2(length((chord * chord).sum(-1)), length((across * across).sum(-1)))

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (u * v).sum(-1)

    def uniform(self, shape: Sequence[int], draws: Draws) -> Tensor:
        self.check_shape(shape)
        return self.nearest(draws.normal(shape))

    def __repr__(self) -> str:
        return f"Sphere({self.dimension})"


def _normalise(y: Tensor, otherwise: Tensor) -> Tensor:
    """``y / |y|``, and the other where y = 0; NaN for what is not finite."""
    size = y.detach().abs().amax(-1, keepdim=True)  # taken out first, so that no square overflows
    zero = size == 0
    y = y / torch.where(zero, 1.0, size)
    norm = (y * y).sum(-1, keepdim=True)
    return torch.where(zero, otherwise, y / torch.where(zero, 1.0, norm).sqrt())


def _aside(x: Tensor) -> Tensor:
    """The unit tangent vector at ``x`` along the coordinate axis that is least aligned with it."""
    axes = torch.arange(x.shape[-1], device=x.device)
    axis = (axes == x.abs().argmin(-1, keepdim=True)).to(x.dtype)
    tangent = axis - (x * axis).sum(-1, keepdim=True) * x
    return tangent / tangent.norm(dim=-1, keepdim=True)
