r"""The jump generator of mixture paths: a continuous-time Markov chain on tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import MixturePath
from ..predict import Predictor
from ..predict.tokens import TokenPrediction
from ..rates import Categorical, Rates, Term
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, check_reading

__all__ = ["CTMC", "check_tokens", "mobility"]

CERTAIN = 1e30  # for the infinite hazard of a step that ends at the data: weights of a sum keep their shares of it


class CTMC(Generator):
    r"""Each position jumps to a sample of its posterior at the hazard of the path.

    .. math:: Q^i_t(y, x) = \frac{\dot\kappa_t}{1-\kappa_t}\bigl(p^i_{1|t}(y\,|\,x) - \delta_{x^i}(y)\bigr)

    (discrete flow matching, arXiv 2407.15595, eq. 24). On a masked path only masked positions jump: where a token
    shows, the posterior is that token. Padding never moves.

    Parameters
    ----------
    model
        A predictor on a mixture path: :class:`~genmatch.predict.Tokens`, guided or not.
    """

    speed = 1.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        check_tokens(self, model)

    def triplet(self, x: Tensor, t: Number, prediction: TokenPrediction) -> Triplet:
        """Total rates at the path's hazard, and the network's logits: no table of rates."""
        hazard, logits = prediction.instant.forward, prediction.logits
        hazard = hazard.clamp(max=CERTAIN) if isinstance(hazard, Tensor) else min(hazard, CERTAIN)
        total = mobility(self.path, x, logits)  # type: ignore[arg-type]
        return Triplet(rates=Rates(Term(total * hazard, Categorical(logits))))


def check_tokens(generator: Generator, model: Predictor) -> None:
    """Raise unless a model predicts tokens on a mixture path."""
    if not isinstance(model.path, MixturePath):
        raise TypeError(
            f"{type(generator).__name__} needs a model on a MixturePath such as gm.predict.Tokens, got one on "
            f"{model.path!r}"
        )
    check_reading(generator, model, "logits")


def mobility(path: MixturePath, x: Tensor, logits: Tensor) -> Tensor:
    """1 where the posterior may move a position, 0 elsewhere, ``(B, *S)``.

    float32 at least, whatever the logits are: half precision would round the chance of a jump.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    movable = path.movable(x)
    return torch.ones(x.shape, dtype=dtype, device=x.device) if movable is None else movable.to(dtype)
