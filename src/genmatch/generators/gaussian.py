r"""The flow, the noise that leaves a path alone, and their sum.

They read a velocity and a score. On a Gaussian path any network gives both; elsewhere a model has them or has not.

References
----------
.. [1] M. Albergo, N. Boffi, E. Vanden-Eijnden, "Stochastic interpolants", arXiv 2303.08797, Corollary 2.18: the
   marginals of :math:`dX = (u + \tfrac12 g^2 s)\,dt + g\,dW` are those of :math:`dX = u\,dt`, for any :math:`g`.
.. [2] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..diffusivity import Diffusivity, EndpointSafe, Function, Memoryless, StateDiffusivity
from ..paths import GaussianPath
from ..predict import Predictor
from ..schedules import Number
from ..triplet import Triplet
from .multiplicative import Multiplicative, moving
from .operator import Generator, Superposition
from .readings import check_affine, half_noise

__all__ = ["Diffusion", "Flow", "Langevin"]


class Flow(Generator):
    r"""The deterministic generator :math:`L_t f = \nabla f\cdot u_t`, :math:`u_t(x) = E[\dot x_t\,|\,x_t = x]`.

    The flow of flow matching, the probability-flow ODE of diffusion: one and the same.
    """

    speed = 1.0
    semilinear = True

    def __init__(self, model: Predictor) -> None:
        super().__init__(model)
        check_affine(self, model, "velocity")

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The velocity."""
        return Triplet(drift=prediction.velocity)


class Langevin(Generator):
    r"""Noise with the drift that undoes it: :math:`L_t f = \tfrac12 g_t^2\,(\nabla f\cdot\nabla\log p_t + \Delta f)`.

    It leaves every :math:`p_t` alone (speed 0), so it may be added to any generator, with any weight that keeps the
    variance from becoming negative.

    Parameters
    ----------
    model
        A predictor with a score: on a Gaussian path, or one whose readings have it.
    diffusivity
        :math:`g_t^2`: a :class:`~genmatch.diffusivity.Diffusivity`, or a function of t that returns the variance; if it
        is a module its parameters are the generator's. Memoryless by default, on a Gaussian path; there is no default
        elsewhere.

    Raises
    ------
    TypeError, ValueError
        If the model has no score; if the noise is made for Gaussian paths and the path is none, or depends on the state
        (:class:`Multiplicative` takes that); if a function of t gives a variance that is negative or nan.
    """

    speed = 0.0
    semilinear = True

    def __init__(self, model: Predictor, diffusivity: Diffusivity | Callable[[Number], Number] | None = None) -> None:
        super().__init__(model)
        check_affine(self, model, "score")
        if isinstance(diffusivity, type):
            raise TypeError(f"diffusivity is the class {diffusivity.__name__}: call it, as in Memoryless()")
        if isinstance(diffusivity, (int, float)):
            raise TypeError(
                f"diffusivity must say what the number is: gm.diffusivity.Constant({diffusivity}) is a variance"
            )
        if isinstance(diffusivity, StateDiffusivity):
            raise TypeError(
                f"the noise of Langevin is the same at every state, got {type(diffusivity).__name__}: "
                "use gm.Multiplicative(model, ...), or gm.Diffusion, which takes both"
            )
        if not isinstance(model.path, GaussianPath) and isinstance(diffusivity, (type(None), Memoryless, EndpointSafe)):
            name = "the default, Memoryless" if diffusivity is None else type(diffusivity).__name__
            raise ValueError(
                f"{name} is noise for Gaussian paths, and {model.path!r} is none: "
                "give gm.diffusivity.Constant(variance) or a function of t"
            )
        diffusivity = Memoryless() if diffusivity is None else diffusivity
        if isinstance(diffusivity, nn.Module) and not isinstance(diffusivity, Diffusivity):
            self.function = diffusivity  # registered: Function is no module
        self.diffusivity = diffusivity if isinstance(diffusivity, Diffusivity) else Function(diffusivity)

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """Half the variance times the score, and the variance."""
        instant = prediction.instant
        variance = self.diffusivity.variance(instant)
        if isinstance(self.diffusivity, Function) and isinstance(variance, (int, float)) and not variance >= 0:
            raise ValueError(
                f"the diffusivity is {variance:g} at t = {instant.t:g}: it is a variance per unit of time, at least 0"
            )
        return Triplet(drift=half_noise(prediction, self.diffusivity, variance), variance=variance)


class Diffusion(Superposition):
    r"""Flow + noise: :math:`dX = (u_t + \tfrac12 g_t^2\nabla\log p_t)\,dt + g_t\,dW`.

    The same marginals as the flow, by random paths. With :class:`~genmatch.diffusivity.Memoryless` (the default) it is
    the reverse of the noising diffusion, and one exponential step of order 1 is the DDPM posterior. Noise that depends
    on the state is :class:`Multiplicative`, all other is :class:`Langevin`.

    Parameters
    ----------
    model
        A predictor on a path with a score.
    diffusivity
        :math:`g_t^2`, as for :class:`Langevin`, or a :class:`~genmatch.diffusivity.StateDiffusivity`.
    """

    def __init__(
        self,
        model: Predictor,
        diffusivity: Diffusivity | StateDiffusivity | Callable[[Number], Number] | None = None,
    ) -> None:
        if isinstance(diffusivity, StateDiffusivity):
            model = moving(model, diffusivity)  # here, so that flow and noise share one run of the network
            super().__init__([(1.0, Flow(model)), (1.0, Multiplicative(model, diffusivity))])
        else:
            super().__init__([(1.0, Flow(model)), (1.0, Langevin(model, diffusivity))])
