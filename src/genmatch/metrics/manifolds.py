"""Fidelity and variety apart: precision and recall, density and coverage, by nearest neighbours of features.

A sample set's manifold is estimated by the closed balls around its points that reach to each point's k-th nearest
other point. Quality then splits in two: are generated samples inside the real manifold, and is the real one reached?
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .distances import distance_blocks, nearest_distances
from .samples import Features, check_count, embed, same_width

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]


class PrecisionRecall(NamedTuple):
    """Share of generated samples on the real manifold, and of real samples on the generated one; both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """How densely generated samples fill the real manifold (1 if the laws are equal), and the share of it reached."""

    density: float
    coverage: float


def precision_recall(
    real: Tensor, generated: Tensor, features: Features | None = None, *, k: int = 3, batch_size: int = 256
) -> PrecisionRecall:
    """Improved precision and recall.

    Precision is the share of generated samples that fall in a k-nearest-neighbour ball of any real sample; recall is
    the same with the roles exchanged. Both depend on the number of samples: compare at equal numbers. One outlier
    with a large ball can raise precision much: see :func:`density_coverage`.

    Parameters
    ----------
    real, generated
        ``(n, d)`` and ``(m, d)`` features; ``(n, *S)`` samples with ``features``.
    features
        Maps ``(B, *S)`` to ``(B, d)``, called in batches of ``batch_size``.
    k
        Which neighbour a ball reaches to, the point itself not counted.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If features differ in size, are not finite, or either set has no more than ``k`` samples.

    References
    ----------
    T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", arXiv 1904.06991,
    eqs. 1 and 2; k = 3 as there.
    """
    real, generated = _pair(real, generated, features, k, batch_size, both=True)
    inside, _ = _balls(real, k, generated)
    reached, _ = _balls(generated, k, real)
    return PrecisionRecall(float((inside > 0).double().mean()), float((reached > 0).double().mean()))


def density_coverage(
    real: Tensor, generated: Tensor, features: Features | None = None, *, k: int = 5, batch_size: int = 256
) -> DensityCoverage:
    r"""Density and coverage: the same balls around real samples only, counted so that outliers weigh little.

    .. math:: \text{density} = \frac{1}{k m} \sum_j \#\{i : y_j \in B_i\}, \qquad
        \text{coverage} = \frac{1}{n} \#\{i : \exists j,\ y_j \in B_i\}

    For equal laws the expected density is 1 and the expected coverage
    :math:`1 - \prod_{i=1}^{k} (n - i)/(n + m - i)`, whatever the law (:math:`1 - 2^{-k}` for large n = m).

    Parameters
    ----------
    real, generated
        ``(n, d)`` and ``(m, d)`` features; ``(n, *S)`` samples with ``features``.
    features
        Maps ``(B, *S)`` to ``(B, d)``, called in batches of ``batch_size``.
    k
        Which neighbour a ball reaches to, the point itself not counted.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor.
    ValueError
        If features differ in size, are not finite, or there are no more than ``k`` real samples.

    References
    ----------
    M. Naeem et al., "Reliable fidelity and diversity metrics for generative models", arXiv 2002.09797, Section 3;
    k = 5 as there.
    """
    real, generated = _pair(real, generated, features, k, batch_size, both=False)
    inside, covered = _balls(real, k, generated)
    return DensityCoverage(float(inside.double().mean()) / k, float(covered.double().mean()))


def _pair(
    real: Tensor, generated: Tensor, features: Features | None, k: int, batch_size: int, *, both: bool
) -> tuple[Tensor, Tensor]:
    check_count("k", k)
    names = ("real", "generated")
    pair = [
        torch.cat(list(embed(name, z, features, batch_size))) for name, z in zip(names, (real, generated), strict=True)
    ]
    for name, z in list(zip(names, pair, strict=True))[: 1 + both]:
        if len(z) <= k:
            raise ValueError(
                f"{name} has {len(z)} samples, which have no {k}-th other neighbour: needs more than k={k}"
            )
    same_width(names, *pair)
    return pair[0], pair[1]


def _balls(centres: Tensor, k: int, points: Tensor) -> tuple[Tensor, Tensor]:
    """How many balls each point is in, and whether each ball holds a point."""
    radii = nearest_distances(centres, k)
    counts, holds = [], torch.zeros_like(radii, dtype=torch.bool)
    for _, block in distance_blocks(points, centres):
        inside = block <= radii
        counts.append(inside.sum(1))
        holds |= inside.any(0)
    return torch.cat(counts), holds
