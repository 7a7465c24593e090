r"""The jump generator of mixture paths: a continuous-time Markov chain on tokens."""

from __future__ import annotations

from torch import Tensor

from ..predict import Predictor, Tokens
from ..predict.tokens import TokenPrediction
from ..schedules import Number
from ..triplet import Jump, Rates, Triplet
from .operator import Generator

__all__ = ["CTMC"]


class CTMC(Generator):
    r"""Each position jumps to a sample of its posterior at the hazard of the path.

    .. math:: Q^i_t(y, x) = \frac{\dot\kappa_t}{1-\kappa_t}\bigl(p^i_{1|t}(y\,|\,x) - \delta_{x^i}(y)\bigr)

    (discrete flow matching, arXiv 2407.15595, eq. 24). On a masked path only masked positions jump: where a token shows,
    the posterior is that token. Padding never moves.

    Parameters
    ----------
    model
        A :class:`~genmatch.predict.Tokens` predictor.
    """

    speed = 1.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        if not isinstance(model, Tokens):
            raise TypeError(f"CTMC needs a gm.predict.Tokens predictor, got {type(model).__name__}")

    def triplet(self, x: Tensor, t: Number, prediction: TokenPrediction) -> Triplet:
        hazard = prediction.instant.hazard
        movable = self.path.movable(x)  # type: ignore[attr-defined]
        if movable is None:
            total = x.new_full(x.shape, 1.0, dtype=prediction.logits.dtype) * hazard
        else:
            # where and not a product: the hazard of a step that ends at the data is infinite.
            total = _where(movable, hazard, prediction.logits)
        return Triplet(rates=Rates(Jump(total, prediction.logits)))


def _where(movable: Tensor, hazard: Number, logits: Tensor) -> Tensor:
    zero = logits.new_zeros(())
    return zero.add(hazard).where(movable, zero)
