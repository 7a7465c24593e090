r"""The Frechet distance between Gaussians fitted to two sets of features.

.. math:: F = |m_1 - m_2|^2 + \mathrm{tr}\left(C_1 + C_2 - 2 (C_1^{1/2} C_2\, C_1^{1/2})^{1/2}\right)

The squared Wasserstein-2 distance between N(m1, C1) and N(m2, C2); with the features of an Inception network it is the
FID (Heusel et al., arXiv 1706.08500, eq. 6). It depends on the features and on the number of samples, with a bias of
about 1/n upwards: compare values at equal n only, and print n and the features beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .samples import Features, check_count, check_finite, embed, rows, same_width, shuffled

__all__ = ["Frechet", "FrechetInfinity", "Moments", "frechet", "frechet_infinity"]

_BATCH = 256
_ROWS = 8192  # rows of a feature matrix that are made float64 at once


class Frechet(NamedTuple):
    """Frechet distance, its two terms, the samples on either side (0: exact moments), and the number of features."""

    value: float
    mean_term: float
    covariance_term: float
    samples: tuple[int, int]
    dimension: int


class FrechetInfinity(NamedTuple):
    """Extrapolated Frechet distance, and the sample counts and mean distances it was extrapolated from."""

    value: float
    samples: tuple[int, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and covariance of features: all that a Frechet distance needs to know of a data set.

    Immutable; :meth:`update` and ``+`` return new ones, and what order the samples came in makes no difference but
    rounding. Keep those of a reference set and measure every model against them.

    Parameters
    ----------
    count
        Samples seen; 0 for exact moments.
    mean
        ``(d,)``, float64.
    covariance
        ``(d, d)``, float64, divided by count - 1; zero where count is 1.

    Raises
    ------
    TypeError
        If a part has another type.
    ValueError
        If shapes do not fit, values are not finite, or the covariance is not symmetric or has a negative variance.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(1000, 4)
    >>> moments = Moments.of(x[:300]).update(x[300:])
    >>> torch.allclose(moments.covariance, torch.cov(x.T.double()))
    True
    """

    count: int
    mean: Tensor
    covariance: Tensor

    def __post_init__(self) -> None:
        check_count("count", self.count, least=0)
        for name in ("mean", "covariance"):
            check_finite(name, getattr(self, name))
            object.__setattr__(self, name, getattr(self, name).detach().double())
        width = len(self.mean) if self.mean.ndim == 1 else -1
        if self.covariance.shape != (width, width) or width == 0:
            raise ValueError(
                f"moments need a mean (d,) and a covariance (d, d), got {tuple(self.mean.shape)} "
                f"and {tuple(self.covariance.shape)}"
            )
        if self.mean.device != self.covariance.device:
            raise ValueError(f"mean is on {self.mean.device} and covariance on {self.covariance.device}")
        variances = self.covariance.diagonal()
        if bool((variances < 0).any()):
            raise ValueError(f"a covariance has no negative variance, got {float(variances.min())} on its diagonal")
        asymmetry = float((self.covariance - self.covariance.T).abs().max())
        if asymmetry > 1e-5 * float(variances.max()):  # float32 statistics pass
            raise ValueError(f"a covariance is symmetric, got one that differs from its transpose by {asymmetry:g}")

    @classmethod
    def of(cls, x: Tensor, features: Features | None = None, *, batch_size: int = _BATCH) -> Moments:
        """Moments of features ``(n, d)``, or of samples ``(n, *S)`` through ``features``, batch by batch."""
        if features is None:
            check_count("batch_size", batch_size)
            batches = iter(rows("x", x).split(_ROWS))
        else:
            batches = embed("x", x, features, batch_size)
        moments = cls._of_rows(next(batches))
        for batch in batches:
            moments = moments + cls._of_rows(batch)
        return moments

    def update(self, x: Tensor, features: Features | None = None, *, batch_size: int = _BATCH) -> Moments:
        """Moments of the samples seen and of these."""
        return self + Moments.of(x, features, batch_size=batch_size)

    def __add__(self, other: Moments) -> Moments:
        # T. Chan, G. Golub and R. LeVeque, 1979: no difference of large sums, so a far mean costs no precision.
        if not isinstance(other, Moments):
            return NotImplemented
        same_width(("the first moments", "the second"), self.mean[None], other.mean[None])
        if 0 in (self.count, other.count):
            raise ValueError("exact moments (count=0) cannot be added to others: they are of no number of samples")
        count = self.count + other.count
        difference = other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter += torch.outer(difference, difference) * (self.count * other.count / count)
        return Moments(count, self.mean + difference * (other.count / count), scatter / (count - 1))

    @classmethod
    def _of_rows(cls, x: Tensor) -> Moments:
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred / max(len(x) - 1, 1))


def frechet(
    x: Tensor | Moments, y: Tensor | Moments, features: Features | None = None, *, batch_size: int = _BATCH
) -> Frechet:
    r"""Frechet distance between two sets of features (FID, where the features are Inception's).

    The trace of the root is the sum of the singular values of :math:`C_1^{1/2} C_2^{1/2}`, whose factors come from
    symmetric eigendecompositions: singular covariances are no trouble, and nothing is complex.

    Parameters
    ----------
    x, y
        ``(n, d)`` features; ``(n, *S)`` samples with ``features``; or :class:`Moments`.
    features
        Maps ``(B, *S)`` to ``(B, d)``, called in batches of ``batch_size``.

    Returns
    -------
    :class:`Frechet`, whose ``value`` is the (squared) distance, at least 0.

    Raises
    ------
    TypeError
        If an argument is neither a floating-point tensor nor moments.
    ValueError
        If features differ in size, are not finite, or are of fewer than 2 samples.
    """
    first, second = (_moments(name, z, features, batch_size) for name, z in (("x", x), ("y", y)))
    return _distance(first, second)


def frechet_infinity(
    x: Tensor,
    y: Tensor | Moments,
    features: Features | None = None,
    *,
    parts: int = 5,
    seed: int | None = 0,
    batch_size: int = _BATCH,
) -> FrechetInfinity:
    r"""Frechet distance extrapolated to infinitely many samples x, against fixed y.

    The bias is :math:`b/n + O(1/n^2)`. For each k = 1 .. ``parts`` the samples are cut into k disjoint parts of n/k,
    the distances of the parts to y are averaged, and a line in k/n is fitted through them; the value is its intercept.
    With 5 parts about a share of d/n of the bias is left, and the value may be slightly negative. The bias that comes
    from a finite y stays: give its exact moments, or many samples.

    Parameters
    ----------
    x
        ``(n, d)`` features, or ``(n, *S)`` samples with ``features``; shuffled by the seed.
    y
        The same, or :class:`Moments`.
    parts
        The smallest parts have n / ``parts`` samples, of which there must be more than twice the number of features:
        below, the bias is far from its first term.
    seed
        Shuffles x; None draws one from the global generator.

    Raises
    ------
    TypeError
        If an argument is neither a floating-point tensor nor moments.
    ValueError
        If features differ in size, are not finite, or are of too few samples.

    References
    ----------
    M. Chong and D. Forsyth, "Effectively unbiased FID and Inception Score", arXiv 1911.07023, Section 4. There random
    subsets of growing size take the place of the disjoint parts, which use every sample equally.
    """
    check_count("parts", parts, least=2)
    reference = _moments("y", y, features, batch_size)
    samples = torch.cat(list(embed("x", x, features, batch_size)))
    same_width(("x", "y"), samples, reference.mean[None])
    count, width = samples.shape
    if count // parts <= 2 * width:
        raise ValueError(
            f"{parts} parts of {count} samples have {count // parts} each, which {width} features need more than "
            f"{2 * width} of: take more samples, fewer parts or fewer features"
        )
    samples = shuffled(samples, seed)
    distances = [
        sum(_distance(Moments.of(part), reference).value for part in samples.tensor_split(k)) / k
        for k in range(1, parts + 1)
    ]
    k = torch.arange(1, parts + 1, dtype=torch.float64)
    levels = torch.tensor(distances, dtype=torch.float64)
    # The distance at k has k parts of which each varies k times as much as the whole: about one variance for all k.
    slope = ((k - k.mean()) * levels).sum() / (k - k.mean()).square().sum()
    return FrechetInfinity(
        float(levels.mean() - slope * k.mean()), tuple(count // i for i in range(1, parts + 1)), tuple(distances)
    )


def _moments(name: str, z: Tensor | Moments, features: Features | None, batch_size: int) -> Moments:
    if not isinstance(z, Tensor | Moments):
        raise TypeError(f"{name} must be a tensor or Moments, got {type(z).__name__}")
    moments = z if isinstance(z, Moments) else Moments.of(z, features, batch_size=batch_size)
    if moments.count == 1:
        raise ValueError(f"{name} has 1 sample, needs at least 2 for a covariance")
    return moments


def _distance(first: Moments, second: Moments) -> Frechet:
    same_width(("x", "y"), first.mean[None], second.mean[None])
    mean_term = float((first.mean - second.mean).square().sum())
    overlap = torch.linalg.svdvals(_root(first.covariance).T @ _root(second.covariance)).sum()
    # Rounding can leave a hair below zero where the covariances are equal.
    covariance_term = max(0.0, float(first.covariance.trace() + second.covariance.trace() - 2 * overlap))
    return Frechet(
        mean_term + covariance_term,
        mean_term,
        covariance_term,
        (first.count, second.count),
        len(first.mean),
    )


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = C. What an eigenvalue's rounding could be is taken for zero: its root would not be small."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors * torch.where(values > rounding, values, 0).sqrt()
