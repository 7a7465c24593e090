r"""Token chains that run back in time, and token chains that leave the path's law alone.

On a mixture path whose source is drawn independently of the data and of the other positions, with known probabilities
:math:`p_0`, everything follows from the posterior :math:`p_{1|t}` that the network predicts.

The reverse. Given data z a position that shows z is source with the rest of the probability, so

.. math:: p_{0|t}(v\,|\,x) = (1 - p_{1|t}(x^i|x))\,\delta_{x^i}(v) + p_{1|t}(x^i|x)\,
   \frac{(1-\kappa)\,p_0(x^i)\,\delta_{x^i}(v) + \kappa\,p_0(v)}{(1-\kappa)\,p_0(x^i) + \kappa}

and the generator :math:`\frac{\dot\kappa}{\kappa}(p_{0|t} - \delta)` runs the path back in time (the backward velocity
of discrete flow matching, arXiv 2407.15595). Its rates are also those of the forward chain's time reversal,
:math:`\bar Q(y, x) = Q(x, y)\,p_t(y)/p_t(x)`.

The churn. Given z the law of a position is :math:`p_t(v|z) = (1-\kappa)\,p_0(v) + \kappa\,\delta_z(v)`, and drawing it
anew from that law at any rate is in detailed balance with it. Its average over z is a chain of speed 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..paths import MixturePath
from ..predict import Predictor
from ..predict.tokens import TokenPrediction
from ..rates import Categorical, Listed, Rates, Term
from ..schedules import Number
from ..triplet import Triplet
from .ctmc import CERTAIN, CTMC, check_tokens, mobility
from .operator import Generator, Operator
from .reverse import reverses

__all__ = ["ReverseCTMC", "TokenChurn"]


class ReverseCTMC(Generator):
    r"""Each position that shows data turns back into a draw of the source: :class:`CTMC` run back in time, speed -1.

    .. math:: Q^i_t(y, x) = \frac{\dot\kappa_t\; p^i_{1|t}(x^i\,|\,x)}{(1-\kappa_t)\,p_0(x^i) + \kappa_t}\;
       \bigl(p_0(y) - \delta_{x^i}(y)\bigr)

    On a masked path that is: tokens that show are masked again at the rate :math:`\dot\kappa/\kappa`. With
    :math:`a - b = 1` the sum ``a * gm.CTMC(model) + b * gm.ReverseCTMC(model)`` follows the path for any
    :math:`b \ge 0`: predictor and corrector, or remasking.

    The rate at t = 0 may be infinite, on states that have no probability there. In a solver's step it is the average of
    :meth:`genmatch.paths.MixtureInstant.backward`.

    Parameters
    ----------
    model
        A predictor of tokens on a mixture path with an independent coupling and a source of known probabilities.

    Raises
    ------
    ValueError
        If the posterior of the source is not known in closed form.
    """

    speed = -1.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        _check_source(self, model)

    def triplet(self, x: Tensor, t: Number, prediction: TokenPrediction) -> Triplet:
        """Rates at which positions turn back, and the source's law."""
        path: MixturePath = self.path  # type: ignore[assignment]
        rate = prediction.instant.backward(path.source_share(x))
        rate = rate.clamp(max=CERTAIN) if isinstance(rate, Tensor) else min(rate, CERTAIN)
        total = prediction.chance(x) * rate
        return Triplet(rates=Rates(Term(total, Listed(*path.source_law(x)))))


class TokenChurn(Generator):
    r"""Each position is drawn anew from its law given the data, at the rate 1: leaves :math:`p_t` alone.

    .. math:: Q^i_t(y, x) = (1-\kappa_t)\,p_0(y) + \kappa_t\,p^i_{1|t}(y\,|\,x) - \delta_{x^i}(y)

    ``gm.CTMC(model) + c * gm.TokenChurn(model)`` follows the path for any rate c >= 0, a number or a function of t. In
    a solver's step :math:`\kappa` is that of the step's end, so that no source is left at t = 1.

    Parameters
    ----------
    model
        As for :class:`ReverseCTMC`.

    Raises
    ------
    ValueError
        If the probabilities of the source are not known.
    """

    speed = 0.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        _check_source(self, model)

    def triplet(self, x: Tensor, t: Number, prediction: TokenPrediction) -> Triplet:
        """Two terms: to the source and to the posterior."""
        path: MixturePath = self.path  # type: ignore[assignment]
        kappa = prediction.instant.ahead
        posterior = mobility(path, x, prediction.logits)
        shows = path.shows(x)  # a mask that is drawn anew from the source stays a mask
        source = torch.ones_like(posterior) if shows is None else shows.to(posterior.dtype)
        return Triplet(
            rates=Rates(
                Term(source * (1 - kappa), Listed(*path.source_law(x))),
                Term(posterior * kappa, Categorical(prediction.logits)),
            )
        )


def _check_source(generator: Generator, model: Predictor) -> None:
    check_tokens(generator, model)
    why = model.path.why_no_source()
    if why:
        raise ValueError(f"{type(generator).__name__} needs the posterior of the source on {model.path!r}: {why}")


@reverses(CTMC)
def _back(generator: CTMC) -> Operator:
    return ReverseCTMC(generator.model)


@reverses(ReverseCTMC)
def _forth(generator: ReverseCTMC) -> Operator:
    return CTMC(generator.model)


@reverses(TokenChurn)
def _keep(generator: TokenChurn) -> Operator:
    return generator
