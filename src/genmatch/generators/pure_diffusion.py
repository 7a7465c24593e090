r"""A diffusion without drift."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..predict import Predictor
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, check_reading

__all__ = ["PureDiffusion"]


class PureDiffusion(Generator):
    r"""Noise alone, of a variance that depends on the state: :math:`L_tf = \tfrac12 \sum_i A^i_t(x)\,\partial_i^2 f`.

    On an interval it follows the mixture path, where no flow does (generator matching, arXiv 2410.20587, Example 2).
    Ito noise: solvers of several stages refuse it.

    Parameters
    ----------
    model
        A predictor with a variance: :class:`~genmatch.predict.Variance`.
    """

    speed = 1.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        check_reading(self, model, "variance")

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The variance ``(B, *S)``."""
        return Triplet(variance=prediction.variance)
