r"""The path of Brownian bridges between source and data.

.. math:: x_t = (1-t)\,x_0 + t\,x_1 + \sqrt{s^2\,t(1-t)}\;z

Given both ends this is Brownian motion of variance :math:`s^2` per unit of time, pinned at both. Unlike on a Gaussian
path the noise is there from any source: it is what lets a diffusion carry data to data.

References
----------
.. [1] S. Peluchetti, "Non-denoising forward-time diffusions", arXiv 2312.14589.
.. [2] Y. Shi, V. De Bortoli, A. Campbell, A. Doucet, "Diffusion Schroedinger bridge matching", arXiv 2303.16852.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..couplings import Coupling, Independent
from ..random import Draws
from ..schedules import Number, along_batch, check_positive
from ..spaces import Euclidean
from .path import Path
from .sources import Empirical, Normal, Source, check_ends

__all__ = ["BridgeInstant", "BridgePath"]

EARLY = 1e-3  # t up to which the source stands for the path


class BridgeInstant(NamedTuple):
    r"""A bridge's numbers: t, the pull :math:`1/(1-t)` towards the data, and the variance per unit of time.

    In a solver's plan the variance is its average over the coming step, :math:`s^2\,\frac{1-s}{1-t}` for a step from t
    to s. With it an Euler step is exactly a Brownian bridge to the data prediction, and a step that ends at t = 1 ends
    in it, without noise.
    """

    t: Number
    pull: Number
    variance: Number

    def rows(self) -> list[BridgeInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [BridgeInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> BridgeInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return BridgeInstant(*(along_batch(f, x) for f in self))


class BridgePath(Path):
    r"""Brownian bridges of variance :math:`s^2` from a source sample to a data sample.

    Parameters
    ----------
    variance
        :math:`s^2` (not the standard deviation), above 0. The bridge's own variance is largest half way,
        :math:`s^2/4`.
    source, coupling
        As for :class:`GaussianPath`: the standard normal and independent pairs by default. For data to data give the
        other data set as the source, and ``coupling=gm.couplings.Given()`` if its rows are pairs.
    """

    def __init__(
        self, variance: float = 1.0, *, source: Source | Tensor | None = None, coupling: Coupling | None = None
    ) -> None:
        check_positive("variance", variance)
        if isinstance(source, Tensor):
            source = Empirical(source)
        source = Normal() if source is None else source
        coupling = Independent() if coupling is None else coupling
        check_ends(source, coupling)
        self.variance, self.source, self.coupling = float(variance), source, coupling
        self.space = Euclidean()

    @property
    def has_score(self) -> bool:
        """Whether a score can be read off the data prediction."""
        return not self.why_no_score()

    def why_no_score(self) -> str:
        """The reason why no score can be read off a network on this path; empty where it can."""
        if not self.coupling.independent:
            return f"its coupling {self.coupling!r} makes source and data dependent"
        if not isinstance(self.source, Normal):
            return f"its source {self.source!r} is not the standard normal"
        return ""

    def at(self, t: Tensor, until: Tensor | None = None) -> BridgeInstant:
        """Pull and variance at ``t``; the variance's average over the steps from ``t`` to ``until``."""
        rest = 1 - t.double()
        variance = torch.full_like(rest, self.variance)
        if until is not None:
            # Of a bridge to the data prediction; back in time there is none, and nothing to be averaged.
            variance = variance * torch.where(until.double() > t.double(), (1 - until.double()) / rest, 1.0)
        return BridgeInstant(t, (1 / rest).to(t.dtype), variance.to(t.dtype))

    def between(self, x0: Tensor, x1: Tensor, instant: BridgeInstant, draws: Draws) -> Tensor:
        r""":math:`(1-t)x_0 + t x_1 + \sqrt{s^2 t(1-t)}\,z`, shape ``(B, *S)``."""
        t = instant.t
        spread = self.variance * t * (1 - t)
        return (1 - t) * x0 + t * x1 + spread**0.5 * draws.normal(x1.shape, x1.dtype)

    def prior(self, x0: Tensor, instant: BridgeInstant) -> Tensor:
        """The source sample: the bridge starts there."""
        return x0

    def why_not_noise(self, instant: BridgeInstant) -> str:
        """Unless t is nearly 0."""
        if instant.t <= EARLY:
            return ""
        return (
            f"{self!r} has left its source at t = {instant.t:g}: pass states drawn from its p_t, "
            "path.sample(x0, x1, t), instead of a shape"
        )

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self.variance, self.source, self.coupling)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BridgePath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [f"{self.variance:g}"]
        if not isinstance(self.source, Normal):
            parts.append(f"source={self.source!r}")
        if not self.coupling.independent:
            parts.append(f"coupling={self.coupling!r}")
        return f"BridgePath({', '.join(parts)})"
