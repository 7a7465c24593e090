r"""Hyperbolic space in the Poincare ball.

References
----------
.. [1] O. Ganea, G. Becigneul, T. Hofmann, "Hyperbolic neural networks", arXiv 1805.09112, Section 2: Moebius addition,
   exponential map and logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..random import Draws
from .manifold import Manifold, check_dimension
from .squares import asinhc, length, tanhc

__all__ = ["PoincareBall"]

FARTHEST = 1e3  # half a length, in units of the radius of curvature


@dataclass(frozen=True, repr=False)
class PoincareBall(Manifold):
    r"""Hyperbolic space of curvature :math:`-c`: the ball :math:`\sqrt c\,|x| < 1` with a conformal metric.

    .. math:: g_x = \lambda_x^2 I, \qquad \lambda_x = \frac{2}{1 - c|x|^2}

    With :math:`m = (1 - c|x|^2)(y - x) - c|y - x|^2 x`, the direction of the Moebius sum :math:`(-x)\oplus y`,

    .. math:: d(x, y) = \tfrac{2}{\sqrt c}\operatorname{arsinh}
       \frac{\sqrt c\,|x - y|}{\sqrt{(1 - c|x|^2)(1 - c|y|^2)}}, \qquad
       \log_x y = \frac{d(x, y)}{\lambda_x}\frac{m}{|m|}, \qquad
       \exp_x v = x \oplus \tanh\Bigl(\tfrac{\sqrt c\,\lambda_x|v|}{2}\Bigr)\frac{v}{\sqrt c\,|v|} .

    Parameters
    ----------
    dimension
        n, the number of coordinates.
    curvature
        :math:`-c`, negative.

    Notes
    -----
    There is no cut locus. Points end at :math:`\sqrt c\,|x| = 1 - 10^{-5}` in float32 (a distance of 12.2 from
    the centre for c = 1) and :math:`1 - 10^{-12}` in float64 (28.3): beyond, :math:`1 - c|x|^2` has no digits left.
    The distance has derivative 0 at distance 0.
    """

    dimension: int
    curvature: float = -1.0
    compact = False
    tolerance = 0.0

    def __post_init__(self) -> None:
        check_dimension(self.dimension)
        if isinstance(self.curvature, bool) or not isinstance(self.curvature, (int, float)):
            raise TypeError(f"curvature must be a number, got {type(self.curvature).__name__}")
        if not -math.inf < self.curvature < 0:
            raise ValueError(
                f"the curvature of hyperbolic space is negative, got {self.curvature}: -1 is the usual one"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dimension,)

    @property
    def c(self) -> float:
        """Minus the curvature."""
        return -float(self.curvature)

    def deviation(self, x: Tensor) -> Tensor:
        r"""By how much :math:`\sqrt c\,|x|` exceeds its largest value."""
        return (math.sqrt(self.c) * x.norm(dim=-1) - 1 + _margin(x) / 2).clamp(min=0)

    def nearest(self, x: Tensor) -> Tensor:
        """The point itself, or the one where its ray leaves the part of the ball that is used."""
        radius = math.sqrt(self.c) * length((x * x).sum(-1, keepdim=True))
        outside = radius > 1 - _margin(x)
        return torch.where(outside, x * ((1 - _margin(x)) / torch.where(outside, radius, 1.0)), x)

    def conformal(self, x: Tensor) -> Tensor:
        r""":math:`\lambda_x`, with the last dimension kept."""
        return 2 / self._gap(x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """``v`` itself."""
        return v

    def noise(self, x: Tensor, z: Tensor) -> Tensor:
        r""":math:`z/\lambda_x`."""
        return z * (0.5 * self._gap(x))

    def retract(self, x: Tensor, v: Tensor) -> Tensor:
        r"""``x + v`` where :math:`\sqrt c\,\lambda_x|v| < 1`, which cannot leave the ball; beyond, :meth:`exp`.

        Small steps are those of the coordinates, so a Runge-Kutta method keeps its order; long ones stay inside.
        """
        short = self.c * (v * v).sum(-1, keepdim=True) < 0.25 * self._gap(x) ** 2
        return torch.where(short, self.nearest(x + v), self.exp(x, v))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        half = 1 / self._gap(x)  # lambda / 2
        # Longer ones end at the same last point of the ball; their squares would overflow.
        v = v * (FARTHEST / (math.sqrt(self.c) * half * v.detach().abs().amax(-1, keepdim=True)).clamp(min=FARTHEST))
        squared = self.c * (half * half) * (v * v).sum(-1, keepdim=True)
        near = self._add(x, tanhc(squared) * half * v)
        far = (squared > 0.25) & (self.c * (x * x).sum(-1, keepdim=True) > 0.25)
        return self.nearest(torch.where(far, self._shoot(x, v, squared, far), near))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        across = y - x
        squared = self.c * (across * across).sum(-1, keepdim=True)
        gap, other = self._gap(x), self._gap(y)
        direction = gap * across - squared * x  # of length |y - x| (gap * other + squared) ** 0.5
        return gap * asinhc(squared / (gap * other)) * direction / (gap * other * (gap * other + squared)).sqrt()

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        across = x - y
        squared = (across * across).sum(-1, keepdim=True) / (self._gap(x) * self._gap(y))
        return (2 * length(squared) * asinhc(self.c * squared))[..., 0]

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return (self.conformal(x) ** 2)[..., 0] * (u * v).sum(-1)

    def uniform(self, shape: Sequence[int], draws: Draws) -> Tensor:
        raise ValueError(
            f"{self!r} has infinite volume and no uniform law: start from gm.paths.WrappedNormal(space, mean, scale)"
        )

    def __repr__(self) -> str:
        return f"PoincareBall({self.dimension}{'' if self.c == 1 else f', curvature={self.curvature:g}'})"

    def _gap(self, x: Tensor) -> Tensor:
        """1 - c |x|^2, kept above 0 also for what is no point of the ball."""
        return (1 - self.c * (x * x).sum(-1, keepdim=True)).clamp(min=_margin(x))

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        """The Moebius sum."""
        inner = 2 * self.c * (x * y).sum(-1, keepdim=True)
        squared = self.c * (y * y).sum(-1, keepdim=True)
        own = self.c * (x * x).sum(-1, keepdim=True)
        total = (1 + inner + squared) * x + (1 - own) * y
        return total / (1 + inner + own * squared).clamp(min=torch.finfo(x.dtype).tiny)

    def _shoot(self, x: Tensor, v: Tensor, squared: Tensor, far: Tensor) -> Tensor:
        r"""exp where ``far``: long geodesics from points far from the centre.

        Those that come back past the centre lose all digits in the Moebius sum. With the unit vectors :math:`\hat x`
        and :math:`\hat v`, w half the squared length of their sum, :math:`\rho = \sqrt c|x|` and A the length times
        :math:`\sqrt c`, numerator and denominator of the Moebius sum, times :math:`e^{-A}\cosh^2(A/2)`, are these. All
        terms of the denominator are positive, so none cancels another.
        """
        root = math.sqrt(self.c)
        rho = root * length(torch.where(far, (x * x).sum(-1, keepdim=True), 0.25 / self.c))
        decay = (-2 * torch.where(far, squared, 0.25).sqrt()).exp()  # e^-A
        sinh, cosh = (1 - decay**2) / 2, (1 + decay**2) / 2  # times e^-A
        ray = root * x / rho
        both = ray + v / length(torch.where(far, (v * v).sum(-1, keepdim=True), 1.0))
        w = (both * both).sum(-1, keepdim=True) / 2
        along = rho * decay**2 - sinh * (0.5 * (1 - rho) ** 2 - rho**2 * w)
        total = along * ray + 0.5 * (1 - rho**2) * sinh * both
        below = 0.5 * (1 - rho) ** 2 * cosh + rho * decay**2 + rho * w * sinh + 0.5 * (1 - rho**2) * decay
        return total / (root * below)


def _margin(x: Tensor) -> float:
    return 1e-12 if x.dtype == torch.float64 else 1e-5
