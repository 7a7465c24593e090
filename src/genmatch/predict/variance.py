r"""A learned variance: the one generator whose noise depends on the state because it must."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..divergences import Divergence, GeneralisedKL
from ..paths import ContinuousMixtureInstant
from ..paths.interval import IntervalPath
from . import clocks
from .predictor import Learned, check_parts

__all__ = ["Variance", "VariancePrediction"]

TINY = 1e-20  # least softplus: its logarithm is finite in float32


class VariancePrediction:
    """The readings of a variance network."""

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Any, x: Tensor, instant: ContinuousMixtureInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def variance(self) -> Tensor:
        r""":math:`A_t(x) = E[\sigma_t^2(x|z)\,|\,x]`, ``(B, *S)``; in a solver's plan with :math:`\dot\kappa` averaged
        over the coming step.
        """
        return self.instant.slope * self.model.scale * _positive(self.native)


class Variance(Learned):
    r"""The network predicts the variance of the diffusion that follows a path on an interval.

    .. math:: A_t(x) = E\bigl[\sigma_t^2(x|z)\,|\,x_t = x\bigr] = \dot\kappa_t\,(b-a)^2\,\mathrm{softplus}(N(x))

    with the conditional variance of :mod:`genmatch.paths.interval`. Per unit of :math:`\dot\kappa` it is bounded up to
    t = 1 where the data have a density. It is trained on the conditional variance per unit of the hazard, whose
    prediction is :math:`(1-\kappa)(b-a)^2\,\mathrm{softplus}(N)`, both over :math:`(b-a)^2`.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)``; returns ``(B, *S)``.
    path
        An :class:`~genmatch.paths.IntervalPath`.
    time
        What the network is fed for t, see :mod:`genmatch.predict.clocks`.
    divergence
        Generalised Kullback-Leibler by default; :class:`~genmatch.divergences.Squared` will do too. Itakura-Saito will
        not: a coordinate that has arrived has variance 0.
    """

    kind = "variance"
    readings = frozenset({"variance"})
    path: IntervalPath

    def __init__(
        self,
        network: nn.Module,
        path: IntervalPath,
        *,
        time: clocks.Clock | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, IntervalPath):
            raise TypeError(f"Variance needs an IntervalPath, got {path!r}")
        check_parts(network, time, divergence)
        self.network, self.path = network, path
        self.scale = path.interval.width**2
        self.time = clocks.t if time is None else time
        self.divergence = GeneralisedKL() if divergence is None else divergence

    def at(self, t: Tensor, until: Tensor | None = None) -> ContinuousMixtureInstant:
        """The path's numbers."""
        return self.path.at(t, until)

    def inputs(self, x: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
        """The state."""
        return x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The output ``(B, *S)``."""
        if output.shape != x.shape:
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for a state of shape {tuple(x.shape)}: "
                "it needs one number for each coordinate"
            )
        return output

    def prediction(self, x: Tensor, instant: ContinuousMixtureInstant, native: Tensor) -> VariancePrediction:
        """The lazy readings of ``native``."""
        return VariancePrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Ones of the shape of ``x``."""
        return x.new_ones(x.shape)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
        """The divergence of the conditional variance from the predicted one, both per unit of the hazard."""
        target = self.path.exposure(x, x1) / self.scale
        return self.divergence(target, (1 - instant.kappa) * _positive(native))

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: ContinuousMixtureInstant) -> float:
        """1: a variance is not compared with data."""
        return 1.0

    def reads(self, instant: ContinuousMixtureInstant) -> bool:
        """Always."""
        return True

    def extra_repr(self) -> str:
        return f"path={self.path!r}"


def _positive(native: Tensor) -> Tensor:
    return F.softplus(native) + TINY
