r"""The rotations of space, SO(3), as 3 x 3 matrices.

References
----------
.. [1] N. Higham, "Computing the polar decomposition, with applications", SIAM J. Sci. Stat. Comput. 7 (1986): the
   iteration :math:`M \leftarrow (\mu M + \mu^{-1} M^{-T})/2` behind :meth:`SO3.nearest`.
.. [2] S. Shepperd, "Quaternion from rotation matrix", J. Guidance and Control 1 (1978): the choice of the largest
   component, which keeps the logarithm exact at all angles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import Draws
from .manifold import Manifold
from .squares import arc, length, sinc, versine

__all__ = ["SO3"]

NEWTON = 10  # iterations of a projection: enough for float64 at the least determinant
LEAST = 1e-4  # determinant, relative to that of equal singular values, of a matrix with a polar factor


@dataclass(frozen=True, repr=False)
class SO3(Manifold):
    r"""Rotation matrices, a point in the last two dimensions; distances are angles of rotation.

    A tangent vector at X is :math:`V = X[\omega]_\times`, of length :math:`|\omega|`: the metric is
    :math:`\langle U, V\rangle = \tfrac12\operatorname{tr} U^TV`, invariant under rotations from both sides.

    .. math:: \exp_X X[\omega]_\times = X\bigl(I + \tfrac{\sin\theta}{\theta}[\omega]_\times
       + \tfrac{1 - \cos\theta}{\theta^2}[\omega]_\times^2\bigr), \qquad \theta = |\omega|

    (Rodrigues); the logarithm goes through the unit quaternion of :math:`X^TY`.

    Notes
    -----
    The cut locus of X are the half turns from it, where :math:`\omega` and :math:`-\omega` lead to the same rotation.
    There :meth:`log` takes the axis whose largest component is positive. Values and derivatives are finite everywhere;
    the distance has derivative 0 at distance 0.
    """

    dimension = 3

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (3, 3)

    def deviation(self, x: Tensor) -> Tensor:
        r"""The largest entry of :math:`|X^TX - I|`, and at least 2 for a reflection."""
        identity = torch.eye(3, dtype=x.dtype, device=x.device)
        off = (_times(x.mT, x) - identity).abs().amax((-2, -1))
        return torch.where(_determinant(x) > 0, off, off.clamp(min=2))

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest rotation to a matrix of positive determinant (its polar factor).

        A determinant that is negative or almost 0, which belongs to no matrix near a rotation, is led to the rotation
        that Gram-Schmidt makes of the first two columns.
        """
        size = x.detach().abs().amax((-2, -1), keepdim=True)  # taken out first: no overflow, and NaN where infinite
        x = x / torch.where(size == 0, 1.0, size)
        volume = ((x * x).sum((-2, -1)) / 3) ** 1.5  # what the determinant would be, were all singular values equal
        # In this order, as NaN compares false: it stays what it is.
        x = torch.where((_determinant(x) <= LEAST * volume)[..., None, None], _orthonormalise(x), x)
        for _ in range(NEWTON):
            cofactor = _cofactor(x)  # det * inverse transpose
            determinant = (x * cofactor).sum((-2, -1), keepdim=True) / 3
            scale = determinant ** (-1 / 3)
            x = 0.5 * (scale * x + cofactor / (scale * determinant))
        return x

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        r""":math:`X\,(X^TV - V^TX)/2`."""
        return 0.5 * (v - _times(_times(x, v.mT), x))

    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`\sqrt2` times the tangent part of ``z``: then :math:`\omega` is standard normal."""
        return math.sqrt(2) * self.tangent(x, z)

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        return self.nearest(x + v)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        skew = _times(x.mT, v)
        skew = 0.5 * (skew - skew.mT)
        squared = 0.5 * (skew * skew).sum((-2, -1), keepdim=True)
        turned = _times(x, sinc(squared) * skew + versine(squared) * _times(skew, skew)) + x
        # One Newton-Schulz step takes away the rounding, which would add up over steps.
        return 1.5 * turned - 0.5 * _times(turned, _times(turned.mT, turned))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        real, vector = _quaternion(_times(x.mT, y))
        omega = 2 * arc((vector * vector).sum(-1, keepdim=True), real) * vector
        return _times(x, _cross(omega))

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The angle of the rotation :math:`X^TY`, in :math:`[0, \pi]`."""
        real, vector = _quaternion(_times(x.mT, y))
        return 2 * torch.atan2(length((vector * vector).sum(-1)), real[..., 0])

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return 0.5 * (u * v).sum((-2, -1))

    def uniform(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """The Haar law: rotations of uniform unit quaternions."""
        self.check_shape(shape)
        q = draws.normal((*shape[:-2], 4))
        return _matrix(q / q.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny))

    def __repr__(self) -> str:
        return "SO3()"


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of 3 x 3 matrices, in their own dtype: ``@`` rounds to bfloat16 under autocast, to TF32 on a GPU."""
    (a1, a2, a3), (b1, b2, b3) = a[..., None].unbind(-2), b[..., None, :, :].unbind(-2)
    return a1 * b1 + a2 * b2 + a3 * b3


def _cofactor(m: Tensor) -> Tensor:
    a, b, c = m.unbind(-2)
    return torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2)


def _determinant(m: Tensor) -> Tensor:
    a, b, c = m.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1)


def _orthonormalise(m: Tensor) -> Tensor:
    """A rotation from the first two columns; from coordinate axes where they are too short or parallel."""
    tiny, little = torch.finfo(m.dtype).tiny ** 0.5, 1e-3
    axes = torch.eye(3, dtype=m.dtype, device=m.device)
    first, second = m[..., 0], m[..., 1]
    first = torch.where(_norm(first) > tiny, first, axes[0])
    first = first / _norm(first)
    across = second - (first * second).sum(-1, keepdim=True) * first
    aside = torch.linalg.cross(first, axes[first.abs().argmin(-1)])
    second = torch.where((_norm(second) > tiny) & (_norm(across) > little * _norm(second)), across, aside)
    second = second / _norm(second)
    return torch.stack([first, second, torch.linalg.cross(first, second)], -1)


def _norm(v: Tensor) -> Tensor:
    return length((v * v).sum(-1, keepdim=True))


def _cross(omega: Tensor) -> Tensor:
    """The matrix of the cross product with ``omega`` ``(..., 3)``."""
    a, b, c = omega.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def _matrix(q: Tensor) -> Tensor:
    """The rotation of a unit quaternion ``(..., 4)``, real part first."""
    real, vector = q[..., :1, None], q[..., 1:]
    cross = _cross(vector)
    return torch.eye(3, dtype=q.dtype, device=q.device) + 2 * (real * cross + _times(cross, cross))


def _quaternion(m: Tensor) -> tuple[Tensor, Tensor]:
    """Real part ``(..., 1)``, at least 0, and vector ``(..., 3)`` of a rotation's unit quaternion.

    The rows of 4 q q^T are multiples of q; the one with the largest diagonal has norm 2 at least.
    """
    trace = m.diagonal(dim1=-2, dim2=-1).sum(-1)
    odd = torch.stack([m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]], -1)
    even = m + m.mT + torch.eye(3, dtype=m.dtype, device=m.device) * (1 - trace)[..., None, None]
    outer = torch.cat(
        [torch.cat([(1 + trace)[..., None], odd], -1)[..., None, :], torch.cat([odd[..., None], even], -1)], -2
    )
    largest = outer.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    row = torch.take_along_dim(outer, largest, -2)[..., 0, :]
    row = row / row.norm(dim=-1, keepdim=True)
    row = torch.where(row[..., :1] < 0, -row, row)
    return row[..., :1], row[..., 1:]
