r"""Pure jump generators on continuous spaces.

References
----------
.. [1] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Section 6 (jump models) and Proposition 3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..paths import ContinuousMixturePath, Empirical, Source
from ..predict import Predictor
from ..random import Draws
from ..rates import Rates, Sampler, Term
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, check_reading

__all__ = ["Jump", "MixtureJump"]


class Jump(Generator):
    r"""Each coordinate jumps at its rate into one of its bins: :math:`L_tf(x) = \sum_i\int(f(y)-f(x))\,Q^i_t(dy;x)`.

    A solver's plan averages the hazard over each step (:math:`1/(1-t)` over [t, s] is
    :math:`\frac1h\log\frac{1-t}{1-s}`), so that only the network is frozen in it. Under CondOT a coordinate jumps about
    :math:`\log\frac{1}{1-t}` times up to t: equal steps of :math:`-\log(1-t)`, :func:`genmatch.grids.hazard`, suit it.

    At t = 1 the hazard is infinite, and a step that ends there makes every coordinate jump: the result is a draw of the
    last landing law, within about :math:`\sigma` of the data and no finer than a bin. In a sum with a flow the
    data prediction of the flow ends the run, and no bin is seen in the result.

    Parameters
    ----------
    model
        A predictor with rates: :class:`~genmatch.predict.Rates`.
    """

    speed = 1.0
    additive = False

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        check_reading(self, model, "rates")

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The rates."""
        return Triplet(rates=prediction.rates)


class MixtureJump(Generator):
    r"""The state as a whole jumps to a data sample, at the rate at which the mixture path needs it.

    .. math:: Q_t(dy; x) = \frac{\dot\kappa_t}{1-\kappa_t}\,P(\text{not yet jumped}\,|\,x)\;p_1(dy)

    for source and data that are independent: who has not jumped knows nothing of where it will land. Between two jumps
    the state stands still, and a step is taken with the exact probability of doing so.

    Parameters
    ----------
    model
        A :class:`~genmatch.predict.Survival` predictor, on a mixture path of whole states with independent coupling.
    data
        Where jumps land: data ``(N, *S)``, or an object with ``draw(shape, draws)``.

    Raises
    ------
    TypeError, ValueError
        If the model has no survival, or the coupling makes source and data dependent.
    """

    speed = 1.0
    additive = False

    def __init__(self, model: Predictor, data: Source | Tensor) -> None:
        super().__init__(model)
        check_reading(self, model, "survival")
        path: ContinuousMixturePath = model.path
        if not path.coupling.independent:
            raise ValueError(
                f"on {path!r} source and data are dependent, so where a state lands depends on where it is: "
                "use independent coupling"
            )
        source = Empirical(data) if isinstance(data, Tensor) else data
        if isinstance(source, type) or not isinstance(source, Source):
            raise TypeError(f"data must be a tensor (N, *S) or have a method draw(shape, draws), got {source!r}")
        self.landing = source

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The rate ``(B, 1, ..., 1)`` and a sampler of the data."""

        def land(draws: Draws) -> Tensor:
            return self.landing.draw((draws.samples, *x.shape[1:]), draws)

        rate = prediction.rate.reshape(-1, *[1] * (x.ndim - 1))
        return Triplet(rates=Rates(Term(rate.to(torch.promote_types(rate.dtype, torch.float32)), Sampler(land))))
