r"""Generators run back in time.

If L moves :math:`p_t` at speed v, its time reversal

.. math:: \bar L_t f = p_t^{-1}\bigl(L_t^*(p_t f) - f\,L_t^* p_t\bigr)

moves it at speed -v: :math:`\langle p, \bar L f\rangle = -\langle p, Lf\rangle`. It is linear in L, so a sum is
reversed term by term. For a diffusion with drift b and variance A it has the same variance and the drift
:math:`-b + A\nabla\log p_t + \nabla\cdot A`. A flow is turned round, and noise with the drift that undoes it, which is
reversible, stays as it is: the reverse of flow + noise is noise - flow.

References
----------
.. [1] B. Anderson, "Reverse-time diffusion equation models", Stochastic Processes and their Applications 12 (1982).
.. [2] U. Haussmann, E. Pardoux, "Time reversal of diffusions", Annals of Probability 14 (1986).
.. [3] P. Holderrieth et al., "Generator matching", arXiv 2410.20587, Proposition 3 (predictor-corrector).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from ..schedules import Number
from ..spaces import Euclidean
from ..triplet import Triplet
from .bridge import Bridge
from .gaussian import Flow, Langevin
from .multiplicative import Multiplicative
from .operator import Generator, Operator, Superposition, check_reading
from .product import Product

__all__ = ["Reverse", "ReverseDiffusion", "reverses"]

G = TypeVar("G", bound=Generator)

_REVERSES: dict[type[Generator], Callable[[Any], Operator]] = {}


def reverses(kind: type[G]) -> Callable[[Callable[[G], Operator]], Callable[[G], Operator]]:
    """Register how generators of a class, and of those derived from it, are reversed.

    The decorated function takes a generator and returns an operator of minus its speed; it raises where what it needs
    (a score, a posterior of the source, a density) is not at hand.

    Examples
    --------
    >>> import genmatch as gm
    >>> from genmatch.generators import reverses
    >>> class Swirl(gm.Generator):
    ...     speed = 0.0
    ...     def triplet(self, x, t, prediction):
    ...         return gm.Triplet(drift=prediction.score.flip(-1) * x.new_tensor([1.0, -1.0]))
    >>> @reverses(Swirl)
    ... def unstir(swirl):
    ...     return -1.0 * swirl
    """

    def register(function: Callable[[G], Operator]) -> Callable[[G], Operator]:
        _REVERSES[kind] = function
        return function

    return register


class Reverse(Superposition):
    r"""A generator, or a sum of them, run back in time: of minus its speed, and with rates and variances of its own.

    With :math:`a - b = 1`, ``a * forward + b * gm.Reverse(forward)`` follows the path at speed 1 for any
    :math:`b \ge 0`: predictor and corrector in one sum.

    Parameters
    ----------
    operator
        What to reverse. A generator without an entry of its own (:func:`reverses`) is taken for a diffusion:
        :class:`ReverseDiffusion`.

    Raises
    ------
    TypeError, ValueError
        Where what the reverse needs is not at hand: the score of a diffusion on a path that has none, say.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> model = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1).predictor(gm.GaussianPath())
    >>> sde = gm.Diffusion(model, gm.diffusivity.EndpointSafe())
    >>> corrected = 1.5 * sde + 0.5 * gm.Reverse(sde)
    >>> gm.Reverse(sde).speed_at(0.5), corrected.speed_at(0.5)
    (-1.0, 1.0)
    >>> gm.sample(corrected, (4, 1), steps=20, seed=0).shape
    torch.Size([4, 1])
    """

    def __init__(self, operator: Operator) -> None:
        if not isinstance(operator, Operator):
            raise TypeError(f"Reverse takes a generator such as gm.Flow(model), got {type(operator).__name__}")
        super().__init__([(weight, _reverse(generator)) for weight, generator in operator.terms])


class ReverseDiffusion(Generator):
    r"""Any drift and noise, reversed through the score: drift :math:`-b + A\nabla\log p_t`, variance A.

    Parameters
    ----------
    generator
        A generator of drift and of a variance that is the same at every state. A drift alone needs no score.

    Raises
    ------
    ValueError
        If the variance depends on the state.
    TypeError
        When evaluated: if there are jumps, or noise and no score.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator.model)
        if not generator.additive:
            raise ValueError(
                f"{type(generator).__name__} is not known to have noise that is the same at every state, so its "
                "reverse needs more than the score: say how it is reversed, with @gm.generators.reverses"
            )
        if not isinstance(generator.path.space, Euclidean):
            raise ValueError(
                f"diffusions are reversed on R^d, got {type(generator).__name__} on {generator.path.space!r}: say how "
                "it is reversed, with @gm.generators.reverses"
            )
        self.speed = -generator.speed
        self.generator = generator

    def triplet(self, x: Tensor, t: Number, prediction: Any) -> Triplet:
        """The reversed drift, and the same variance."""
        generator = self.generator
        forward = generator.triplet(x, t, prediction)
        if forward.rates is not None:
            raise TypeError(
                f"the jumps of {type(generator).__name__} cannot be reversed by a score: say how it is reversed, "
                "with @gm.generators.reverses"
            )
        drift = None if forward.drift is None else -forward.drift
        if forward.variance is None:
            return Triplet(drift=drift)
        check_reading(self, self.model, "score")
        push = forward.variance * prediction.score
        return Triplet(drift=push if drift is None else drift + push, variance=forward.variance)


@reverses(Flow)
def _turn(generator: Flow) -> Operator:
    return -1.0 * generator


def _keep(generator: Generator) -> Operator:
    return generator


reverses(Langevin)(_keep)
reverses(Multiplicative)(_keep)


@reverses(Bridge)
def _unbridge(generator: Bridge) -> Operator:
    path = generator.model.path
    if not path.has_score:
        raise ValueError(
            f"the reverse of a bridge needs the score, and there is none to be read on {path!r}: "
            f"{path.why_no_score()}. Data are carried back by a bridge trained the other way round, "
            "with source and data exchanged"
        )
    return ReverseDiffusion(generator)


@reverses(Product)
def _each(generator: Product) -> Operator:
    """Factor by factor: every one at its own time."""
    turned = {name: _reversed(operator) for name, operator in generator.nested.items()}
    return Product(generator.model, turned)  # type: ignore[arg-type]


def _reversed(operator: Operator) -> Callable[[Any], Operator]:
    return lambda model: Reverse(operator)


def _reverse(generator: Generator) -> Operator:
    for kind in type(generator).__mro__:
        if kind in _REVERSES:
            return _REVERSES[kind](generator)
        if "triplet" in vars(kind):  # what is known of a class above does not hold for another triplet
            break
    return ReverseDiffusion(generator)
