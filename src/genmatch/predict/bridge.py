r"""The predictor of Brownian-bridge paths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import Divergence, Squared
from ..paths.bridge import BridgeInstant, BridgePath
from ..schedules import divide
from . import clocks
from .predictor import Condition, Predictor, call, check_parts, spread

__all__ = ["BridgeData", "BridgePrediction"]


class BridgePrediction:
    """The readings of a network that predicts the data on a bridge, each of the shape of the state.

    Raises
    ------
    ValueError
        By all but the data at t = 1, where a predictor was called with that number; per-sample times give infinities
        there. By score and velocity where there are none.
    """

    __slots__ = ("instant", "model", "native", "strict", "x")

    def __init__(self, model: Any, x: Tensor, instant: BridgeInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native
        self.strict = False

    @property
    def data(self) -> Tensor:
        """:math:`X_1 = E[x_1|x_t]`, the network's own output."""
        return self.native

    @property
    def drift(self) -> Tensor:
        r""":math:`(X_1 - x)/(1 - t)`, the mean drift of the bridges through the state."""
        self._check_finite()
        return (self.native - self.x) * self.instant.pull

    @property
    def score(self) -> Tensor:
        r""":math:`\nabla\log p_t(x) = \frac{t X_1 - x}{(1-t)^2 + s^2 t(1-t)}`, for a standard normal source independent
        of the data.

        The state is then :math:`t x_1` plus a normal of that variance. From another source, or with dependent pairs,
        the score also needs :math:`E[x_0|x_t]`, of which the network says nothing.
        """
        path = self.model.path
        why = path.why_no_score()
        if why:
            raise ValueError(
                f"there is no score on {path!r}: {why}, so it cannot be read off the data alone. "
                "Use gm.Bridge, which needs none"
            )
        self._check_finite()
        t = self.instant.t
        return (t * self.native - self.x) * divide(1.0, (1 - t) * (1 - t + path.variance * t))

    @property
    def velocity(self) -> Tensor:
        r""":math:`u = \frac{X_1 - x}{1-t} - \tfrac12 s^2\nabla\log p_t`, where there is a score.

        The flow with the marginals of the bridge.
        """
        score = self.score
        return self.drift - self.model.path.variance / 2 * score

    def _check_finite(self) -> None:
        if self.strict and not math.isfinite(self.instant.pull):
            raise ValueError(
                f"at t = 1 of {self.model.path!r} this is not finite: the bridge has arrived. "
                "Ask before, or for the data"
            )


class BridgeData(Predictor):
    r"""The network predicts the data :math:`E[x_1|x_t]` on a :class:`~genmatch.BridgePath`.

    From the standard normal source and with independent pairs, score and velocity can be read off it, too: the bridge
    is then a Gaussian path with :math:`\alpha = t`, :math:`\sigma^2 = (1-t)^2 + s^2 t(1-t)`.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)`` and t ``(B,)``; returns ``(B, *S)``.
    path
        The bridge path it is trained on.
    time, divergence
        As for the other predictors; squared error by default.
    """

    kind = "data"
    readings = frozenset({"data", "drift", "score", "velocity"})
    path: BridgePath

    def __init__(
        self,
        network: nn.Module,
        path: BridgePath,
        *,
        time: clocks.Clock | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, BridgePath):
            raise TypeError(f"BridgeData needs a BridgePath, got {type(path).__name__}")
        check_parts(network, time, divergence)
        self.network, self.path = network, path
        self.divergence = Squared() if divergence is None else divergence
        self.time = clocks.t if time is None else time
        if not path.has_score:
            self.readings = frozenset({"data", "drift"})

    def at(self, t: Tensor, until: Tensor | None = None) -> BridgeInstant:
        """The path's numbers."""
        return self.path.at(t, until)

    def native(self, x: Tensor, instant: BridgeInstant, condition: Condition = None) -> Tensor:
        """The network's output ``(B, *S)``; a wrong shape raises."""
        output = call(self.network, x, spread(self.time(instant), x), condition)
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(x.shape)}: "
                "a BridgeData network returns one data value for each value of the state"
            )
        return output

    def prediction(self, x: Tensor, instant: BridgeInstant, native: Tensor) -> BridgePrediction:
        """The lazy readings of ``native``."""
        return BridgePrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Zeros of the shape of ``x``."""
        return torch.zeros_like(x)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: BridgeInstant) -> Tensor:
        """The divergence of the data from the output."""
        return self.divergence(x1, native)

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: BridgeInstant) -> float:
        """1: the loss is one of data."""
        return 1.0

    def reads(self, instant: BridgeInstant) -> bool:
        """Yes: the data are what the network predicts."""
        return True

    def extra_repr(self) -> str:
        return f"path={self.path!r}"
