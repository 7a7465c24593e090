r"""The mixture path on continuous states: data with probability :math:`\kappa_t`, source otherwise.

.. math:: p_t(\cdot\,|\,x_0, x_1) = (1-\kappa_t)\,\delta_{x_0} + \kappa_t\,\delta_{x_1}

of whole states on any space, or of each coordinate by itself. No flow follows it, as mass has to be in two places at
once. A pure jump does: who has not jumped jumps to x1 at the rate :math:`\dot\kappa/(1-\kappa)`, and stays from t to s
with probability :math:`(1-\kappa_s)/(1-\kappa_t)`.

References
----------
.. [1] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Section 4 (mixture paths).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..couplings import Coupling, Independent
from ..random import Draws
from ..schedules import CondOT, Number, Schedule, along_batch
from ..spaces import Euclidean, Manifold, Space
from .path import NOISY, Path
from .sources import Empirical, Normal, Source, check_ends

__all__ = ["ContinuousMixtureInstant", "ContinuousMixturePath"]


class ContinuousMixtureInstant(NamedTuple):
    r"""The numbers of a mixture path: t, :math:`\kappa`, and how it goes on.

    ``hazard`` is :math:`\dot\kappa/(1-\kappa)` and ``slope`` :math:`\dot\kappa`. In a solver's plan both are averages
    over the coming step, and ``gain`` is what :math:`\kappa` gains in it; elsewhere the gain is 0.
    """

    t: Number
    kappa: Number
    hazard: Number
    slope: Number
    gain: Number

    def rows(self) -> list[ContinuousMixtureInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [ContinuousMixtureInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> ContinuousMixtureInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return ContinuousMixtureInstant(*(along_batch(f, x) for f in self))


class ContinuousMixturePath(Path):
    r"""The mixture path between a source and data on a continuous space.

    Parameters
    ----------
    schedule
        :math:`\kappa_t` is its :math:`\alpha_t`, which must run from 0 to 1; CondOT by default (:math:`\kappa_t = t`).
    source, coupling
        As for :class:`~genmatch.GaussianPath`.
    space
        Where states live; R^d by default.
    whole
        Whether a state changes as a whole, or each of its coordinates by itself. On a manifold, whose coordinates are
        bound to one another, states are whole.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, the schedule's :math:`\alpha` does not run from 0 to 1, or the coordinates
        of a manifold are to change one by one.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        source: Source | Tensor | None = None,
        coupling: Coupling | None = None,
        *,
        space: Space | None = None,
        whole: bool = True,
    ) -> None:
        schedule = CondOT() if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            hint = f"the class {schedule.__name__}: call it" if isinstance(schedule, type) else type(schedule).__name__
            raise TypeError(f"schedule must be a genmatch Schedule, got {hint}")
        ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].tolist()
        if abs(ends[0]) > 1e-9 or abs(ends[1] - 1) > 1e-9:
            raise ValueError(
                f"kappa must run from 0 to 1, the alpha of {schedule!r} runs from {ends[0]:g} to {ends[1]:g}: "
                "CondOT, Polynomial and Cosine do"
            )
        space = Euclidean() if space is None else space
        if not isinstance(space, Space):
            raise TypeError(f"space must be a genmatch Space, got {type(space).__name__}")
        if space.discrete:
            raise ValueError(f"{space!r} is discrete: gm.MixturePath is the mixture path on tokens")
        if not whole and isinstance(space, Manifold):
            raise ValueError(f"the coordinates of a point on {space!r} are bound to one another: use whole=True")
        if isinstance(source, Tensor):
            source = Empirical(source)
        if source is None and isinstance(space, Manifold):
            raise ValueError(f"a path on {space!r} needs its source: gm.paths.UniformPoints(space), or points of it")
        source = Normal() if source is None else source
        coupling = Independent() if coupling is None else coupling
        check_ends(source, coupling)
        self.schedule, self.source, self.coupling, self.space, self.whole = schedule, source, coupling, space, whole

    def at(self, t: Tensor, until: Tensor | None = None) -> ContinuousMixtureInstant:
        r""":math:`\kappa` at ``t`` and its growth there, or over the steps from ``t`` to ``until``."""
        instant = self.schedule.at(t.double())  # 1 - kappa has no digits left in float32 near the data
        kappa = instant.alpha
        if until is None:
            slope, gain = instant.alpha_dot, torch.zeros_like(kappa)
            hazard = slope / (1 - kappa)
        else:
            end, h = self.schedule(until.double())[0], until.double() - t.double()
            slope, gain = (end - kappa) / h, end - kappa
            hazard = ((1 - kappa) / (1 - end)).log() / h
        return ContinuousMixtureInstant(t, *(value.to(t.dtype) for value in (kappa, hazard, slope, gain)))

    def between(self, x0: Tensor, x1: Tensor, instant: ContinuousMixtureInstant, draws: Draws) -> Tensor:
        r"""x1 with probability :math:`\kappa_t`, x0 otherwise, ``(B, *S)``."""
        shape = (len(x1), *[1] * (x1.ndim - 1)) if self.whole else x1.shape
        return torch.where(draws.uniform(shape, torch.float64) < instant.kappa, x1, x0)

    def prior(self, x0: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
        """The source itself."""
        return x0

    def why_not_noise(self, instant: ContinuousMixtureInstant) -> str:
        r"""Unless :math:`\kappa_t` is small."""
        if instant.kappa <= NOISY:
            return ""
        return (
            f"{self!r} is not noise at t = {instant.t:g}, where kappa = {instant.kappa:.3g}: pass states drawn from "
            "its p_t, by path.sample(x0, x1, t), instead of a shape"
        )

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self.schedule, self.source, self.coupling, self.space, self.whole)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ContinuousMixturePath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [repr(self.schedule)]
        parts += [] if isinstance(self.source, Normal) else [f"source={self.source!r}"]
        parts += [] if self.coupling.independent else [f"coupling={self.coupling!r}"]
        parts += [] if self.space == Euclidean() else [f"space={self.space!r}"]
        return f"ContinuousMixturePath({', '.join(parts)}, whole={self.whole})"
