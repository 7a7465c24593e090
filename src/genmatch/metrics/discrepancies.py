r"""Discrepancies between two samples by a kernel: energy distance, MMD and KID.

All three are one expression, with one kernel each:

.. math:: D^2 = E\,k(X, X') + E\,k(Y, Y') - 2 E\,k(X, Y)

==================  ================================================  =========================
energy distance     :math:`k(x, y) = -|x - y|`                         Székely and Rizzo 2013
MMD                 :math:`k(x, y) = \exp(-|x - y|^2 / 2 l^2)`          Gretton et al. 2012
KID                 :math:`k(x, y) = (x \cdot y / d + 1)^3`            Bińkowski et al. 2018
==================  ================================================  =========================

The means over pairs within one sample leave out each point's pair with itself (a U-statistic), which makes the
estimate unbiased at any number of samples and slightly negative at times. With those pairs kept (a V-statistic) the
estimate is never negative and exactly zero on two equal samples, and biased upwards by O(1/n).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .distances import BLOCK, distance_blocks
from .samples import Features, check_count, embed, flatten, same_width, shuffled

__all__ = ["KID", "MMD", "energy_distance", "kid", "mmd"]

Kernel = Callable[[Tensor, Tensor], Iterator[tuple[int, Tensor]]]  # blocks of rows of the matrix k(x_i, y_j)

_HEURISTIC_SAMPLES = 2000  # the median of two million distances is known to three digits


class MMD(NamedTuple):
    """Squared maximum mean discrepancy and the bandwidth it was measured with."""

    value: float
    bandwidth: float


class KID(NamedTuple):
    """Kernel distance, its standard error over the blocks (NaN for one block), and how many blocks there were."""

    value: float
    standard_error: float
    blocks: int


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = True) -> float:
    r"""Energy distance between two samples.

    .. math:: D^2 = 2 E|X - Y| - E|X - X'| - E|Y - Y'|

    Zero if and only if the laws are equal. It is squared: its root is a metric, and scales as the root of a length.

    Parameters
    ----------
    x, y
        ``(n, *S)`` and ``(m, *S)``; the norm runs over all elements of S.
    unbiased
        Leave out a point's distance to itself. Without, the value is at least 0, 0 exactly on equal samples, and
        biased up by :math:`E|X - X'|/n + E|Y - Y'|/m`.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If the samples are of different sizes, not finite, or fewer than 2.

    References
    ----------
    G. Székely and M. Rizzo, "Energy statistics", J. Stat. Plan. Inference 143, 2013.
    """
    x, y = flatten("x", x, 2), flatten("y", y, 2)
    same_width(("x", "y"), x, y)
    return _discrepancy(x, y, _negative_distance, unbiased)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None, unbiased: bool = True, seed: int | None = 0) -> MMD:
    r"""Squared maximum mean discrepancy with a Gaussian kernel.

    .. math:: k(x, y) = \exp\left(-\frac{|x - y|^2}{2 l^2}\right)

    Parameters
    ----------
    x, y
        ``(n, *S)`` and ``(m, *S)``; the norm runs over all elements of S.
    bandwidth
        l, in the units of x. By default the median distance between points of the two samples together (over at most
        2,000 points of the pool, chosen by the seed). Values are comparable at one bandwidth only: fix it
        across models.
    unbiased
        The U-statistic of eq. 3; without, the V-statistic of eq. 5, at least 0.
    seed
        Chooses the points for the median; None draws one from the global generator.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If the samples are of different sizes, not finite or fewer than 2, or the median distance is 0.

    References
    ----------
    A. Gretton et al., "A kernel two-sample test", JMLR 13, 2012; the median heuristic is in Section 8.
    """
    x, y = flatten("x", x, 2), flatten("y", y, 2)
    same_width(("x", "y"), x, y)
    if bandwidth is None:
        bandwidth = _median_distance(shuffled(torch.cat([x, y]), seed)[:_HEURISTIC_SAMPLES])
        if bandwidth == 0:
            raise ValueError("the median distance is 0, so most points are equal: give bandwidth=")
    elif not isinstance(bandwidth, int | float) or isinstance(bandwidth, bool):
        raise TypeError(f"bandwidth must be a number, got {type(bandwidth).__name__}")
    elif not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"bandwidth must be above 0 and finite, got {bandwidth}")
    scale = -0.5 / bandwidth**2

    def gaussian(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
        return ((first, block.square_().mul_(scale).exp_()) for first, block in distance_blocks(x, y))

    return MMD(_discrepancy(x, y, gaussian, unbiased), float(bandwidth))


def kid(
    x: Tensor,
    y: Tensor,
    features: Features | None = None,
    *,
    blocks: int = 10,
    seed: int | None = 0,
    batch_size: int = 256,
) -> KID:
    r"""Kernel (Inception) distance: the unbiased squared MMD with a cubic kernel on features.

    .. math:: k(a, b) = \left(\frac{a \cdot b}{d} + 1\right)^3

    Unlike the Frechet distance its expectation does not depend on the number of samples. Both samples are shuffled and
    cut into ``blocks`` disjoint parts; the value is the mean of the parts' estimates, and since they share no sample
    the standard error is honest. (Overlapping subsets, as often reported, make it too small.)

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(m, d)`` features; ``(n, *S)`` samples with ``features``.
    features
        Maps ``(B, *S)`` to ``(B, d)``, called in batches of ``batch_size``.
    blocks
        Disjoint parts. One gives the estimate of smallest variance, over all pairs, and no standard error.
    seed
        Shuffles the samples; None draws one from the global generator.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If features differ in size, are not finite, or a block would have fewer than 2 samples.

    References
    ----------
    M. Bińkowski, D. Sutherland, M. Arbel and A. Gretton, "Demystifying MMD GANs", arXiv 1801.01401, Section 4.
    Values are often reported times 1000.
    """
    check_count("blocks", blocks)
    x, y = (torch.cat(list(embed(name, z, features, batch_size))) for name, z in (("x", x), ("y", y)))
    same_width(("x", "y"), x, y)
    least = min(len(x), len(y))
    if least < 2 * blocks:
        raise ValueError(
            f"{blocks} blocks need at least {2 * blocks} samples on either side, got {least}: lower blocks"
        )
    parts = zip(shuffled(x, seed, 1).tensor_split(blocks), shuffled(y, seed, 2).tensor_split(blocks), strict=True)
    estimates = torch.tensor([_discrepancy(a, b, _cubic, unbiased=True) for a, b in parts], dtype=torch.float64)
    error = float(estimates.std()) / math.sqrt(blocks) if blocks > 1 else math.nan
    return KID(float(estimates.mean()), error, blocks)


def _negative_distance(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    return ((first, block.neg_()) for first, block in distance_blocks(x, y))


def _cubic(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    step = max(1, BLOCK // len(y))
    for first in range(0, len(x), step):
        yield first, (x[first : first + step] @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def _discrepancy(x: Tensor, y: Tensor, kernel: Kernel, unbiased: bool) -> float:
    cross = sum(float(block.sum()) for _, block in kernel(x, y)) / (len(x) * len(y))
    return _within(x, kernel, unbiased) + _within(y, kernel, unbiased) - 2 * cross


def _within(x: Tensor, kernel: Kernel, unbiased: bool) -> float:
    """Mean of k(x_i, x_j) over pairs; over i != j only, if unbiased."""
    total, own = 0.0, 0.0
    for first, block in kernel(x, x):
        total += float(block.sum())
        own += float(block.diagonal(offset=first).sum())
    return (total - own) / (len(x) * (len(x) - 1)) if unbiased else total / len(x) ** 2


def _median_distance(x: Tensor) -> float:
    """Over the pairs i < j."""
    pairs = [block[torch.ones_like(block, dtype=torch.bool).triu_(first + 1)] for first, block in distance_blocks(x, x)]
    return float(torch.cat(pairs).median())
