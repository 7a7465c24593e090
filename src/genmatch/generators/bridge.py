r"""The diffusion of bridge matching."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..paths.bridge import BridgePath
from ..predict import Predictor
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, check_reading

__all__ = ["Bridge"]


class Bridge(Generator):
    r"""Brownian motion that is pulled to the data it predicts.

    .. math:: dX = \frac{E[x_1|X_t] - X}{1 - t}\,dt + s\,dW

    The mean, over the pairs that may have led to a state, of the drifts of their Brownian bridges: its marginals are
    those of the path from any source and for any pairing (arXiv 2303.16852, arXiv 2312.14589). The pairs
    at its ends are those of the path only where the path itself is Markov.

    In a solver's plan the noise is averaged over each step, so that an Euler step is exactly a bridge to the data
    prediction, and the last one ends in it.

    Parameters
    ----------
    model
        A predictor of the data on a bridge path: :class:`~genmatch.predict.BridgeData`.
    """

    speed = 1.0

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        if not isinstance(model.path, BridgePath):
            raise TypeError(
                f"Bridge needs a model on a BridgePath such as gm.predict.BridgeData, got one on {model.path!r}"
            )
        check_reading(self, model, "drift")

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The pull towards the data prediction, and the path's variance."""
        return Triplet(drift=prediction.drift, variance=prediction.instant.variance)
