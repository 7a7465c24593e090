r"""The predictor of geodesic paths: a velocity in the tangent space.

References
----------
.. [1] R. Chen, Y. Lipman, "Flow matching on general geometries", arXiv 2302.03660, eq. 7: the loss in the metric.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import Squared
from ..paths.geodesic import GeodesicInstant, GeodesicPath
from ..schedules import divide
from . import clocks
from .predictor import Learned, check_parts

__all__ = ["TangentPrediction", "TangentVelocity"]


class TangentPrediction:
    """The readings of a velocity on a manifold."""

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Any, x: Tensor, instant: GeodesicInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def velocity(self) -> Tensor:
        r""":math:`u_t(x) = E[\dot x_t\,|\,x_t = x]`, a tangent vector at each point, ``(B, *S)``."""
        return self.native


class TangentVelocity(Learned):
    r"""The network predicts the velocity :math:`E[\dot x_t\,|\,x_t = x]` on a geodesic path (Riemannian flow matching).

    Its output is projected onto the tangent space, so any network that returns ambient vectors will do. The loss is the
    squared length of the error in the metric,

    .. math:: \frac1n\,\Bigl|u^\theta_t(x_t) - \frac{\dot\kappa_t}{1 - \kappa_t}\log_{x_t} x_1\Bigr|_g^2 ,

    for each degree of freedom of a point (n is the dimension of the manifold), written at all positions of the point:
    the mean over positions is the mean over points and degrees of freedom, which on a flat torus is that of an ordinary
    velocity.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)`` and t ``(B,)``; returns ``(B, *S)``.
    path
        The :class:`~genmatch.paths.GeodesicPath` it is trained on.
    time
        What the network is fed for t; t itself by default.
    """

    kind = "velocity"
    readings = frozenset({"velocity"})
    path: GeodesicPath

    def __init__(self, network: nn.Module, path: GeodesicPath, *, time: clocks.Clock | None = None) -> None:
        super().__init__()
        if not isinstance(path, GeodesicPath):
            raise TypeError(f"TangentVelocity needs a GeodesicPath, got {type(path).__name__}")
        check_parts(network, time, None)
        self.network, self.path = network, path
        self.divergence = Squared()  # of the metric
        self.time = clocks.t if time is None else time

    def at(self, t: Tensor, until: Tensor | None = None) -> GeodesicInstant:
        """The path's numbers."""
        return self.path.at(t, until)

    def inputs(self, x: Tensor, instant: GeodesicInstant) -> Tensor:
        """The state."""
        return x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The output's tangent part ``(B, *S)``."""
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(x.shape)}: a "
                "TangentVelocity network returns one ambient velocity for each value of the state"
            )
        return self.path.space.tangent(x, output)

    def prediction(self, x: Tensor, instant: GeodesicInstant, native: Tensor) -> TangentPrediction:
        """The readings of ``native``."""
        return TangentPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Ones of the shape of ``x``."""
        return torch.ones_like(x)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: GeodesicInstant) -> Tensor:
        """The squared length of the error in the metric over the dimension, at all positions of a point."""
        space = self.path.space
        difference = native - self.path.velocity(x, x0, x1, instant)
        squared = space.inner(x, difference, difference) / space.dimension
        return squared.reshape(*squared.shape, *[1] * space.event_ndim).expand(x.shape)

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: GeodesicInstant) -> Any:
        r""":math:`((1-\kappa)/\dot\kappa)^2`: an error of the velocity, followed to the data along a geodesic."""
        return divide(1 - instant.kappa, instant.kappa_dot) ** 2

    def reads(self, instant: GeodesicInstant) -> bool:
        """Always: a velocity that is finite at both ends is all that is read."""
        return True

    def extra_repr(self) -> str:
        return f"path={self.path!r}"
