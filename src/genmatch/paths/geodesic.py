r"""The geodesic path on a manifold, and the sources it starts from.

.. math:: x_t = \exp_{x_0}\bigl(\kappa_t \log_{x_0} x_1\bigr), \qquad
   \dot x_t = \frac{\dot\kappa_t}{1 - \kappa_t}\,\log_{x_t} x_1

The distance to the data falls as :math:`d(x_t, x_1) = (1 - \kappa_t)\,d(x_0, x_1)`.

References
----------
.. [1] R. Chen, Y. Lipman, "Flow matching on general geometries", arXiv 2302.03660, Section 3.2.
.. [2] Y. Nagano et al., "A wrapped normal distribution on hyperbolic space", arXiv 1902.02992.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..couplings import OT, Coupling, Independent
from ..random import Draws
from ..schedules import CondOT, Number, Schedule, along_batch, check_positive
from ..spaces.manifold import Manifold
from .path import NOISY, Path
from .sources import Empirical, Source, check_ends

__all__ = ["GeodesicInstant", "GeodesicPath", "UniformPoints", "WrappedNormal"]


class UniformPoints:
    """The uniform law on a compact manifold: of constant density by its volume."""

    def __init__(self, space: Manifold) -> None:
        _check_space(space)
        if not space.compact:
            raise ValueError(
                f"{space!r} has infinite volume and no uniform law: use gm.paths.WrappedNormal(space, mean, scale)"
            )
        self.space = space

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Points of ``shape`` ``(B, *S)``."""
        return self.space.uniform(shape, draws)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UniformPoints) and other.space == self.space

    def __hash__(self) -> int:
        return hash((UniformPoints, self.space))

    def __repr__(self) -> str:
        return f"UniformPoints({self.space!r})"


class WrappedNormal:
    r"""The law of :math:`\exp_m(s\,\xi)` with :math:`\xi` standard normal in the tangent space at m.

    Parameters
    ----------
    space
        The manifold.
    mean
        m, one point of the space.
    scale
        s, the standard deviation in each direction, in the space's unit of length.
    """

    def __init__(self, space: Manifold, mean: Tensor, scale: float = 1.0) -> None:
        _check_space(space)
        check_positive("scale", scale)
        if not isinstance(mean, Tensor):
            raise TypeError(f"mean must be a tensor, one point of {space!r}, got {type(mean).__name__}")
        if tuple(mean.shape) != space.event_shape:
            raise ValueError(f"mean must be one point of {space!r}, shape {space.event_shape}, got {tuple(mean.shape)}")
        space.check(mean[None])
        self.space, self.mean, self.scale = space, mean, float(scale)

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Points of ``shape`` ``(B, *S)``."""
        self.space.check_shape(shape)
        mean = self.mean.to(draws.device).expand(tuple(shape))
        return self.space.exp(mean, self.scale * self.space.noise(mean, draws.normal(shape, mean.dtype)))

    def _key(self) -> tuple[Any, ...]:
        return (WrappedNormal, self.space, self.scale, *self.mean.flatten().tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrappedNormal) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"WrappedNormal({self.space!r}, {self.mean.tolist()}, {self.scale:g})"


class GeodesicInstant(NamedTuple):
    r"""A geodesic path's numbers: t, :math:`\kappa_t`, :math:`\dot\kappa_t`, and :math:`\dot\kappa/(1-\kappa)`.

    The last is infinite at the data; no target is computed from it there.
    """

    t: Number
    kappa: Number
    kappa_dot: Number
    hazard: Number

    def rows(self) -> list[GeodesicInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [GeodesicInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> GeodesicInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return GeodesicInstant(*(along_batch(f, x) for f in self))


class GeodesicPath(Path):
    r"""The path along shortest geodesics, :math:`x_t = \exp_{x_0}(\kappa_t\log_{x_0} x_1)`.

    Parameters
    ----------
    space
        The manifold: :class:`~genmatch.spaces.Sphere`, :class:`~genmatch.spaces.Torus`,
        :class:`~genmatch.spaces.SO3`, :class:`~genmatch.spaces.PoincareBall` or one of your own. States ``(B, *S)`` end
        in the shape of a point; dimensions in front of it count points, which move on their own.
    source
        The law of x0: an object with ``draw(shape, draws)``, or a tensor of samples. By default the uniform law, and
        on the Poincare ball, which has none, a :class:`WrappedNormal` of scale 1 about the centre.
    schedule
        :math:`\kappa_t` is its :math:`\alpha_t`, which must run from 0 to 1; CondOT by default
        (:math:`\kappa_t = t`).
    coupling
        Who is paired with whom; independent by default. Optimal transport needs the space:
        ``gm.couplings.OT(space)``.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> from genmatch.paths import GeodesicPath
    >>> from genmatch.spaces import Sphere
    >>> path = GeodesicPath(Sphere(2))
    >>> pole, east = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> path.sample(pole, east, t=0.5)
    tensor([[0.7071, 0.0000, 0.7071]])
    """

    space: Any  # a Manifold

    def __init__(
        self,
        space: Manifold,
        source: Source | Tensor | None = None,
        schedule: Schedule | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        _check_space(space)
        schedule = CondOT() if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            hint = f"the class {schedule.__name__}: call it" if isinstance(schedule, type) else type(schedule).__name__
            raise TypeError(f"schedule must be a genmatch Schedule, got {hint}")
        ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].tolist()
        if max(abs(ends[0]), abs(ends[1] - 1)) > 1e-6:
            raise ValueError(
                f"a geodesic path needs a schedule whose alpha runs from 0 to 1, {schedule!r} runs from "
                f"{ends[0]:g} to {ends[1]:g}: CondOT, Polynomial and Cosine do"
            )
        if isinstance(source, Tensor):
            space.check(source)
            source = Empirical(source)
        source = _usual_source(space) if source is None else source
        coupling = Independent() if coupling is None else coupling
        check_ends(source, coupling)
        if isinstance(coupling, OT) and coupling.space != space:
            by = "coordinates" if coupling.space is None else f"distances on {coupling.space!r}"
            raise ValueError(f"{coupling!r} pairs by {by}, not along the geodesics of {space!r}: pass OT(space)")
        self.space, self.source, self.schedule, self.coupling = space, source, schedule, coupling

    def at(self, t: Tensor, until: Tensor | None = None) -> GeodesicInstant:
        r""":math:`\kappa`, its derivative and its hazard at ``t``; ``until`` is for jumps, and there are none."""
        instant = self.schedule.at(t.double())  # 1 - kappa has no digits left in float32 near the data
        hazard = instant.alpha_dot / (1 - instant.alpha)
        return GeodesicInstant(t, *(f.to(t.dtype) for f in (instant.alpha, instant.alpha_dot, hazard)))

    def between(self, x0: Tensor, x1: Tensor, instant: GeodesicInstant, draws: Draws) -> Tensor:
        r"""The point a share :math:`\kappa_t` of the way from ``x0`` to ``x1``, ``(B, *S)``."""
        return self.space.geodesic(x0, x1, instant.kappa)

    def velocity(self, x: Tensor, x0: Tensor, x1: Tensor, instant: GeodesicInstant) -> Tensor:
        r"""The velocity :math:`\dot x_t` at ``x = between(x0, x1)``, a tangent vector ``(B, *S)``.

        Read off the end that is farther, :math:`\dot\kappa\log_x x_1/(1-\kappa)` or
        :math:`-\dot\kappa\log_x x_0/\kappa`: the same vector, and finite from t = 0 to t = 1.
        """
        kappa = torch.as_tensor(instant.kappa, dtype=x.dtype, device=x.device)
        early = kappa < 0.5
        ahead = self.space.log(x, x1) / torch.where(early, 1 - kappa, 1.0)
        behind = self.space.log(x, x0) / torch.where(early, 1.0, -kappa)
        return instant.kappa_dot * torch.where(early, ahead, behind)

    def prior(self, x0: Tensor, instant: GeodesicInstant) -> Tensor:
        """The source itself."""
        return x0

    def why_not_noise(self, instant: GeodesicInstant) -> str:
        r"""Unless :math:`\kappa_t` is small."""
        if instant.kappa <= NOISY:
            return ""
        return (
            f"{self!r} is not noise at t = {instant.t:g}, where kappa = {instant.kappa:.3g}: pass states drawn from "
            "its p_t, a share kappa_t of the way from source to data, instead of a shape"
        )

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self.space, self.schedule, self.source, self.coupling)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeodesicPath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [repr(self.space)]
        if self.source != _usual_source(self.space):
            parts.append(f"source={self.source!r}")
        parts += [] if self.schedule == CondOT() else [f"schedule={self.schedule!r}"]
        parts += [] if self.coupling.independent else [f"coupling={self.coupling!r}"]
        return f"GeodesicPath({', '.join(parts)})"


def _usual_source(space: Manifold) -> Source:
    return UniformPoints(space) if space.compact else WrappedNormal(space, torch.zeros(space.event_shape))


def _check_space(space: Any) -> None:
    if not isinstance(space, Manifold):
        what = f"the class {space.__name__}: call it" if isinstance(space, type) else type(space).__name__
        raise TypeError(f"space must be a manifold such as gm.spaces.Sphere(2), got {what}")
