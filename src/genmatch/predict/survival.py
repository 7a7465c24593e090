r"""The learned piece of a mixture path of whole states: the probability of not having jumped yet."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..divergences import CrossEntropy
from ..paths import ContinuousMixtureInstant, ContinuousMixturePath
from . import clocks
from .predictor import Learned, check_parts

__all__ = ["Survival", "SurvivalPrediction"]

CERTAIN = 1e30  # a rate at which a jump is certain in any step
SOON = 1e-9  # least kappa and 1 - kappa that a logit sees


class SurvivalPrediction:
    """The readings of a survival network."""

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Any, x: Tensor, instant: ContinuousMixtureInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def survival(self) -> Tensor:
        r""":math:`P(\text{not yet jumped}\,|\,x_t = x)`, ``(B,)``."""
        return torch.sigmoid(_logit(self.native, self.instant))

    @property
    def rate(self) -> Tensor:
        r"""Jumps per unit of time at ``x``, ``(B,)``; in a solver's plan the exact average over the coming step.

        With :math:`r = p_1(x)/p_0(x)` the rate is :math:`\dot\kappa/(1 + \kappa(r - 1))`. For a state that stands still
        its integral over a step in which :math:`\kappa` gains g is :math:`g\log(1 + d)/d` over
        :math:`1 + \kappa(r - 1)`, with :math:`d = g(r-1)/(1 + \kappa(r-1))`.
        """
        work = self.native.double()
        kappa, slope, gain = (
            _flat(value, work) for value in (self.instant.kappa, self.instant.slope, self.instant.gain)
        )
        excess = torch.expm1(work.clamp(max=80.0))
        below = 1 + kappa * excess
        d = gain * excess / below
        # log(1 + d) / d, by its series where the quotient cancels.
        average = torch.where(d.abs() < 1e-6, 1 - d / 2, torch.log1p(d) / torch.where(d == 0, 1, d))
        dtype = torch.promote_types(self.native.dtype, torch.float32)
        return (slope * average / below).clamp(max=CERTAIN).to(dtype)


class Survival(Learned):
    r"""The network predicts :math:`N = \log\,(p_1/p_0)(x)`, which tells whether a state has jumped yet.

    On a mixture path :math:`P(\text{not yet jumped}\,|\,x) = (1-\kappa)p_0/((1-\kappa)p_0 + \kappa p_1)`, so that its
    logit is :math:`\log\frac{1-\kappa}{\kappa} - N(x)`: what is not known is a log-ratio of densities and does not
    depend on time. It is trained with binary cross-entropy, whose best prediction is the posterior probability.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with x ``(B, *S)``; returns ``(B,)`` or ``(B, 1)``. It may ignore t.
    path
        A :class:`~genmatch.paths.ContinuousMixturePath` of whole states.
    time
        What the network is fed for t, see :mod:`genmatch.predict.clocks`.

    Notes
    -----
    A state that equals its data is one that has jumped: source and data must not coincide, as laws with densities do
    not.
    """

    kind = "survival"
    readings = frozenset({"survival", "rate"})
    path: ContinuousMixturePath

    def __init__(self, network: nn.Module, path: ContinuousMixturePath, *, time: clocks.Clock | None = None) -> None:
        super().__init__()
        if not isinstance(path, ContinuousMixturePath):
            raise TypeError(f"Survival needs a ContinuousMixturePath, got {path!r}")
        if not path.whole:
            raise ValueError(
                f"on {path!r} each coordinate jumps by itself: use gm.predict.Rates, or a path with whole=True"
            )
        check_parts(network, time, None)
        self.network, self.path = network, path
        self.time = clocks.t if time is None else time
        self.divergence = CrossEntropy()

    def at(self, t: Tensor, until: Tensor | None = None) -> ContinuousMixtureInstant:
        """The path's numbers."""
        return self.path.at(t, until)

    def inputs(self, x: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
        """The state."""
        return x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The log-ratio ``(B,)``."""
        if output.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for {len(x)} states: it needs one number for each, "
                f"({len(x)},) or ({len(x)}, 1)"
            )
        return output.reshape(-1)

    def prediction(self, x: Tensor, instant: ContinuousMixtureInstant, native: Tensor) -> SurvivalPrediction:
        """The lazy readings of ``native``."""
        return SurvivalPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """A state far from the data, that has not jumped: so a plan sees the rate that is infinite at the end."""
        return torch.full((len(x),), -80.0, dtype=x.dtype, device=x.device)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
        """The cross-entropy of whether the state has jumped, the same at every position."""
        stays = (x != x1).flatten(1).any(1)
        logit = _logit(native, instant)
        loss = F.binary_cross_entropy_with_logits(logit, stays.to(logit.dtype), reduction="none")
        return loss.reshape(-1, *[1] * (x.ndim - 1)).expand(x.shape)

    def scored(self, x: Tensor, x1: Tensor) -> tuple[None, None]:
        """All positions."""
        return None, None

    def per_data(self, instant: ContinuousMixtureInstant) -> float:
        """1: a probability is not compared with data."""
        return 1.0

    def reads(self, instant: ContinuousMixtureInstant) -> bool:
        """Always."""
        return True

    def extra_repr(self) -> str:
        return f"path={self.path!r}"


def _flat(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1)


def _logit(native: Tensor, instant: ContinuousMixtureInstant) -> Tensor:
    dtype = torch.promote_types(native.dtype, torch.float32)
    kappa = _flat(instant.kappa, native.double()).clamp(SOON, 1 - SOON)
    return (torch.log1p(-kappa) - kappa.log() - native.double()).to(dtype)
