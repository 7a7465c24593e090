r"""Sliced Wasserstein-2 distance: optimal transport of every one-dimensional shadow.

.. math:: SW_2^2 = E_\theta\, W_2^2(\theta \cdot X, \theta \cdot Y), \quad \theta \text{ uniform on the sphere}

In one dimension transport is sorting: :math:`W_2^2 = \int_0^1 (F^{-1}(q) - G^{-1}(q))^2 dq` with the quantile
functions of the two samples, which are step functions; the integral is exact for any two sample sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..random import Draws
from .distances import BLOCK
from .samples import check_count, flatten, same_width

__all__ = ["SlicedWasserstein", "sliced_wasserstein"]


class SlicedWasserstein(NamedTuple):
    """Distance, its square, and the standard error of the square over the projections (NaN for one projection)."""

    value: float
    squared: float
    standard_error: float


def sliced_wasserstein(x: Tensor, y: Tensor, *, projections: int = 128, seed: int | None = 0) -> SlicedWasserstein:
    """Sliced Wasserstein-2 distance between two samples, of equal or unequal numbers.

    Between isotropic Gaussians N(m1, a^2 I) and N(m2, b^2 I) in d dimensions the square is
    ``|m1 - m2|^2 / d + (a - b)^2``.

    Parameters
    ----------
    x, y
        ``(n, *S)`` and ``(m, *S)``; every element of S is a coordinate. For one coordinate the value is W2 itself.
    projections
        Directions, drawn uniformly. The standard error is that of this average; the error from having finitely many
        samples is not in it.
    seed
        Of the directions, the same for every call with this seed; None draws one from the global generator.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If samples differ in size, are not finite, or there are none.

    References
    ----------
    N. Bonneel et al., "Sliced and Radon Wasserstein barycenters of measures", J. Math. Imaging Vision 51, 2015.
    """
    check_count("projections", projections)
    x, y = flatten("x", x), flatten("y", y)
    same_width(("x", "y"), x, y)
    directions = Draws(seed, projections, device=x.device).normal((projections, x.shape[1]), torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    weights, left, right = _common_steps(len(x), len(y), x.device)
    step = max(1, BLOCK // (len(x) + len(y)))
    squares = torch.cat(
        [
            weights @ ((x @ some.T).sort(0).values[left] - (y @ some.T).sort(0).values[right]).square()
            for some in directions.split(step)
        ]
    )
    squared = float(squares.mean())
    error = float(squares.std()) / math.sqrt(projections) if projections > 1 else math.nan
    return SlicedWasserstein(math.sqrt(squared), squared, error)


def _common_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The steps on which both quantile functions are constant: their lengths, and which value each takes there."""
    # In units of 1 / (n m) every edge is an integer, so that equal edges are equal.
    edges = torch.cat([torch.arange(n + 1, device=device) * m, torch.arange(m + 1, device=device) * n]).unique()
    starts = edges[:-1]
    return edges.diff().double() / (n * m), starts // m, starts // n
