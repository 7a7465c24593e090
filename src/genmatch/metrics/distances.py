"""Distances between all pairs of two sets, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["distance_blocks", "nearest_distances"]

BLOCK = 1 << 22  # elements of a block: 32 MiB in float64
_DIRECT = 32  # up to this many coordinates differences are about as fast as a matrix product, and exact


def distance_blocks(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    r"""Euclidean distances :math:`|x_i - y_j|` as pairs of a first row i and a block ``(rows, len(y))``.

    Up to 32 coordinates the differences are taken as they are. Beyond, the distance comes from a matrix product,
    :math:`|x|^2 + |y|^2 - 2 x\cdot y` about the mean of y, and what is below its rounding is set to zero, so that equal
    points are at distance 0 exactly either way.

    Parameters
    ----------
    x, y
        Float64 matrices ``(n, d)`` and ``(m, d)``.
    """
    count, width = x.shape
    step = max(1, BLOCK // len(y))
    if width <= _DIRECT:
        for first in range(0, count, step):
            yield first, torch.cdist(x[first : first + step], y, compute_mode="donot_use_mm_for_euclid_dist")
        return
    centre = y.mean(0)
    y = y - centre
    y_norms = y.square().sum(1)
    rounding = 4 * width**0.5 * torch.finfo(x.dtype).eps
    for first in range(0, count, step):
        part = x[first : first + step] - centre
        norms = part.square().sum(1)[:, None] + y_norms
        squared = torch.addmm(norms, part, y.T, alpha=-2)
        yield first, torch.where(squared > rounding * norms, squared, 0).sqrt()


def nearest_distances(x: Tensor, k: int) -> Tensor:
    """Distance of each row of ``x`` ``(n, d)`` to its k-th nearest other row, ``(n,)``; needs n > k."""
    # Each row meets itself at distance 0, so that the k-th other is the (k + 1)-th of all.
    return torch.cat([block.kthvalue(k + 1, dim=1).values for _, block in distance_blocks(x, x)])
