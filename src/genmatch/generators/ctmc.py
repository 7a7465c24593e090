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
from .operator import Generator

__all__ = ["CTMC"]

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
        if not isinstance(model.path, MixturePath):
            raise TypeError(f"CTMC needs a model on a MixturePath such as gm.predict.Tokens, got one on {model.path!r}")

    def triplet(self, x: Tensor, t: Number, prediction: TokenPrediction) -> Triplet:
        """Total rates at the path's hazard, and the network's logits: no table of rates."""
        hazard, logits = prediction.instant.hazard, prediction.logits
        hazard = hazard.clamp(max=CERTAIN) if isinstance(hazard, Tensor) else min(hazard, CERTAIN)
        movable = self.path.movable(x)  # type: ignore[attr-defined]
        # float32 at least, whatever the logits are: half precision would round the chance of a jump.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        total = torch.ones(x.shape, dtype=dtype, device=x.device) if movable is None else movable.to(dtype)
        return Triplet(rates=Rates(Term(total * hazard, Categorical(logits))))
