r"""Generators on Gaussian paths.

References
----------
.. [1] M. Albergo, N. Boffi, E. Vanden-Eijnden, "Stochastic interpolants", arXiv 2303.08797, Corollary 2.18: the
   marginals of :math:`dX = (u + \tfrac12 g^2 s)\,dt + g\,dW` are those of :math:`dX = u\,dt`, for any :math:`g`.
.. [2] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..diffusivity import Diffusivity, Function, Memoryless
from ..paths import GaussianPath
from ..predict import Predictor
from ..predict.affine import Prediction
from ..schedules import Number
from ..triplet import Triplet
from .operator import Generator, Superposition

__all__ = ["Diffusion", "Flow", "Langevin"]


class Flow(Generator):
    r"""The deterministic generator :math:`L_t f = \nabla f\cdot u_t`, :math:`u_t(x) = E[\dot x_t\,|\,x_t = x]`.

    The flow of flow matching, the probability-flow ODE of diffusion: one and the same.
    """

    speed = 1.0
    semilinear = True

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        _needs_reading(self, model, "velocity")

    def triplet(self, x: Tensor, t: Number, prediction: Prediction) -> Triplet:
        """The velocity."""
        return Triplet(drift=prediction.velocity)


class Langevin(Generator):
    r"""Noise with the drift that undoes it: :math:`L_t f = \tfrac12 g_t^2\,(\nabla f\cdot\nabla\log p_t + \Delta f)`.

    It leaves every :math:`p_t` alone (speed 0), so it may be added to any generator, with any weight that keeps the
    variance from becoming negative.

    Parameters
    ----------
    model
        A predictor on a path with a score.
    diffusivity
        :math:`g_t^2`: a :class:`~genmatch.diffusivity.Diffusivity`, or a function of t that returns the variance; if it
        is a module its parameters are the generator's.

    Raises
    ------
    ValueError
        If the path has no score, or a function of t gives a variance that is negative or nan.
    """

    speed = 0.0
    semilinear = True

    def __init__(self, model: Predictor, diffusivity: Diffusivity | Callable[[Number], Number] | None = None) -> None:
        super().__init__(model)
        _needs_reading(self, model, "score")
        if isinstance(diffusivity, (int, float)):
            raise TypeError(
                f"diffusivity must say what the number is: gm.diffusivity.Constant({diffusivity}) is a variance"
            )
        diffusivity = Memoryless() if diffusivity is None else diffusivity
        if isinstance(diffusivity, nn.Module) and not isinstance(diffusivity, Diffusivity):
            self.function = diffusivity  # registered: Function is no module
        self.diffusivity = diffusivity if isinstance(diffusivity, Diffusivity) else Function(diffusivity)

    def triplet(self, x: Tensor, t: Number, prediction: Prediction) -> Triplet:
        """Half the variance times the score, and the variance."""
        instant = prediction.instant
        variance = self.diffusivity.variance(instant)
        if isinstance(self.diffusivity, Function) and isinstance(variance, (int, float)) and not variance >= 0:
            raise ValueError(
                f"the diffusivity is {variance:g} at t = {instant.t:g}: it is a variance per unit of time, at least 0"
            )
        if prediction.model.kind == "score":
            return Triplet(drift=variance / 2 * prediction.native, variance=variance)
        # By the noise and not by the score: the quotient by sigma is taken where its limit is known.
        drift = prediction.combine(0.0, -0.5 * self.diffusivity.per_sigma(instant))
        return Triplet(drift=drift, variance=variance)


class Diffusion(Superposition):
    r"""Flow + Langevin: :math:`dX = (u_t + \tfrac12 g_t^2\nabla\log p_t)\,dt + g_t\,dW`.

    The same marginals as the flow, by random paths. With :class:`~genmatch.diffusivity.Memoryless` (the default) it is
    the reverse of the noising diffusion, and one exponential step of order 1 is the DDPM posterior.

    Parameters
    ----------
    model
        A predictor on a path with a score.
    diffusivity
        :math:`g_t^2`, as for :class:`Langevin`.
    """

    def __init__(self, model: Predictor, diffusivity: Diffusivity | Callable[[Number], Number] | None = None) -> None:
        super().__init__([(1.0, Flow(model)), (1.0, Langevin(model, diffusivity))])


def _needs_reading(generator: Generator, model: Predictor, reading: str) -> None:
    path = model.path
    if not isinstance(path, GaussianPath):
        raise TypeError(f"{type(generator).__name__} needs a model on a GaussianPath, got one on {path!r}")
    kind = getattr(model, "kind", "")
    if not path.readable and kind != reading:
        raise ValueError(
            f"on {path!r} noise is added to the state, so the {reading} cannot be read off a {kind} network"
        )
    if reading == "score" and not path.has_score:
        raise ValueError(
            f"{type(generator).__name__} needs the score, and there is none to be read on {path!r}: "
            f"{path.why_no_score()}. Use Flow, or an independent coupling with the standard normal source"
        )
