r"""Functions of a squared length that are smooth where the length is zero.

The exponential maps and logarithms of manifolds are :math:`g(|v|)\,v` with even functions g. As functions of the length
they have no derivative at zero in floating point (the root has none); as functions of the square they are analytic.
Below a threshold the Taylor series is taken, to the last digit of float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["arc", "asinhc", "cosine", "length", "sinc", "tanhc", "versine"]

SINE = (1, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000)
ARCSINE = (1, 1 / 6, 3 / 40, 5 / 112, 35 / 1152, 63 / 2816, 231 / 13312)
TANGENT = (1, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875)


def sinc(s: Tensor) -> Tensor:
    r""":math:`\sin(\sqrt s)/\sqrt s` for :math:`s \ge 0`, any shape."""
    small = s < 0.25
    root = torch.where(small, 1.0, s).sqrt()
    return torch.where(small, _series(SINE, torch.where(small, s, 0.0)), root.sin() / root)


def versine(s: Tensor) -> Tensor:
    r""":math:`(1 - \cos\sqrt s)/s` for :math:`s \ge 0`, any shape."""
    return 0.5 * sinc(s / 4) ** 2


def cosine(s: Tensor) -> Tensor:
    r""":math:`\cos\sqrt s` for :math:`s \ge 0`, any shape."""
    return 1 - s * versine(s)


def arc(sine_squared: Tensor, cosine: Tensor) -> Tensor:
    r""":math:`\theta/\sin\theta` for the angle in :math:`[0, \pi]` with this sine, squared, and cosine.

    At :math:`\theta = \pi`, where it is infinite, it is :math:`\pi`: finite, and for the caller to replace.
    """
    small = (sine_squared < 0.01) & (cosine > 0)
    root = torch.where(small | (sine_squared <= 0), 1.0, sine_squared).sqrt()
    angle = torch.atan2(torch.where(sine_squared <= 0, 0.0, root), cosine)
    return torch.where(small, _series(ARCSINE, torch.where(small, sine_squared, 0.0)), angle / root)


def asinhc(s: Tensor) -> Tensor:
    r""":math:`\operatorname{arsinh}(\sqrt s)/\sqrt s` for :math:`s \ge 0`, any shape."""
    small = s < 0.01
    root = torch.where(small, 1.0, s).sqrt()
    return torch.where(small, _series(ARCSINE, -torch.where(small, s, 0.0)), root.asinh() / root)


def tanhc(s: Tensor) -> Tensor:
    r""":math:`\tanh(\sqrt s)/\sqrt s` for :math:`s \ge 0`, any shape."""
    small = s < 0.01
    root = torch.where(small, 1.0, s).sqrt()
    return torch.where(small, _series(TANGENT, torch.where(small, s, 0.0)), root.tanh() / root)


def length(s: Tensor) -> Tensor:
    r""":math:`\sqrt s` for :math:`s \ge 0`, with derivative 0 at 0: the least of the subgradients of a norm."""
    zero = s <= 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, s).sqrt())  # NaN stays NaN


def _series(coefficients: tuple[float, ...], s: Tensor) -> Tensor:
    value = torch.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * s + coefficient
    return value
