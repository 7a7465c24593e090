r"""Stochastic Runge-Kutta steps: two numbers of a Brownian path a step, its increment and its area.

Over a step of length h let :math:`\Delta W` be the increment of a Brownian motion and

.. math:: I_{10} = \int_t^{t+h} (W_r - W_t)\,dr = h\left(\tfrac12\Delta W + H\right), \qquad H \sim N(0, h/12)

the integral of what it has gone; H, its space-time Levy area, is independent of :math:`\Delta W`. What is smooth in a
step follows the path to an order more than a solver that sees :math:`\Delta W` alone.

References
----------
.. [1] A. Roessler, "Runge-Kutta methods for the strong approximation of solutions of stochastic differential
   equations", SIAM J. Numer. Anal. 48 (2010): the classes SRA (additive noise) and SRI (diagonal noise), their order
   conditions, and the schemes SRA1 and SRI1W1.
.. [2] J. Foster, T. Lyons, H. Oberhauser, "An optimal polynomial approximation of Brownian motion", SIAM J. Numer.
   Anal. 58 (2020) (the area H).
.. [3] P. Kloeden, E. Platen, "Numerical solution of stochastic differential equations", 1992, Sections 10.3 and 10.4
   (which noise commutes).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import AREA, Draws
from ..schedules import Number
from ..spaces import Euclidean, Space
from ..spaces.space import check_drift, check_variance, root
from ..triplet import Triplet
from .end_point import Variance, without_divergence
from .field import Field
from .staged import Staged, Step, refuse_state_noise

__all__ = ["SRA", "SRI"]

NODES = (0.0, 3 / 4)  # of the drift's stages, in both classes
COIN = 17  # stream of a step's draws


class SRA(Staged):
    r"""Stochastic Runge-Kutta for additive noise: strong order 1.5, weak order 2, two evaluations a step.

    For :math:`dX = f(t, X)\,dt + g(t)\,dW`, the scheme SRA1,

    .. math::
        \hat x &= x + \tfrac34 h f_1 + \tfrac32 g_1 I_{10}/h, \qquad f_1 = f(t, x),\quad g_1 = g(t), \\
        x' &= x + h\bigl(\tfrac13 f_1 + \tfrac23 f_2\bigr) + g_1\Delta W + \tfrac43 (g_2 - g_1)(\Delta W - I_{10}/h),

    with :math:`f_2, g_2` those at :math:`t + \tfrac34 h` and :math:`\hat x`. Where Roessler's scheme evaluates g at the
    ends of the step, this one does where f is evaluated: the conditions ask of g that it be right to first order in
    time, and the network runs no third time. Without noise it is Ralston's method of order 2 with nodes 0 and 3/4.

    The stages are never at the end of a step, so a field that is singular at the data is not asked there; the last
    step then is the one that :class:`~genmatch.solvers.RungeKutta` makes.
    """

    c = NODES
    order = 2
    parts = frozenset({"drift", "variance"})

    def check(self, field: Field, parts: frozenset[str]) -> None:
        """Noise must be additive, and the space R^d."""
        refuse_state_noise(self, field, parts, "gm.solvers.SRI() or gm.solvers.Euler()")
        _refuse_curved(self, field)

    def advance(self, field: Field, x: Tensor, c: Step, draws: Draws) -> Tensor:
        """One step; see the class."""
        space, h = field.space, c.h
        first = field(x, c.instants[0])
        if len(c.instants) == 1:
            return space.move(x, first, h, draws)
        pair = None if first.variance is None else _brownian(space, x, draws)
        ahead = space.move(x, _scaled(first.drift, 3 / 4), h, draws)
        if pair is not None:
            ahead = space.move(ahead, Triplet(variance=first.variance), h, draws, 1.5 * pair[1])
        second = field(ahead, c.instants[1])
        x = space.move(x, _scaled(first.drift, 1 / 3) + _scaled(second.drift, 2 / 3), h, draws)
        if first.variance is None and second.variance is None:
            return x
        z, slope = _brownian(space, x, draws) if pair is None else pair  # none: a weight is 0 at the start of a run
        late = 4 / 3 * (z - slope)
        for triplet, noise in ((first, z - late), (second, late)):
            if triplet.variance is not None:
                x = space.move(x, Triplet(variance=triplet.variance), h, draws, noise)
        return x

    def __repr__(self) -> str:
        return "SRA()"


class SRI(Staged):
    r"""Stochastic Runge-Kutta for noise that depends on the state, each value's on itself: strong order 1.5, weak 2.

    For :math:`dX_i = f_i(t, X)\,dt + b_i(t, X_i)\,dW_i`, :math:`b = A^{1/2}`: the scheme SRI1W1, with the drift at two
    stages and the noise at four, :math:`y_1 = x` and

    .. math::
        \hat x &= x + \tfrac34 h f_1 + \tfrac32 b_1 I_{10}/h, \qquad
        y_2 = x + \tfrac14 h f_1 + \tfrac12\epsilon b_1, \qquad y_3 = x + h f_1 - \epsilon b_1, \\
        y_4 &= x + \tfrac14 h f_1 + \epsilon(-5 b_1 + 3 b_2 + \tfrac12 b_3), \\
        x' &= x + h\bigl(\tfrac13 f_1 + \tfrac23 f_2\bigr) + \sum_{k=1}^4 \Bigl(\beta^1_k\Delta W
        + \beta^2_k\frac{I_{11}}{\epsilon} + \beta^3_k\frac{I_{10}}{h} + \beta^4_k\frac{I_{111}}{h}\Bigr) b_k,

    :math:`I_{11} = (\Delta W^2 - h)/2`, :math:`I_{111} = (\Delta W^3 - 3h\Delta W)/6`. Roessler has
    :math:`\epsilon = \sqrt h`; here its sign is a coin's, one for each value and step. The conditions of strong order
    1.5 hold for either sign, and the terms of a step's weak error that go as :math:`h^{5/2}` are odd in it: with one
    sign the weak order is 1.5, with both it is 2. Between the times of the drift's stages, where the variance is known
    as a function of the state, b is linear in time.

    Each network runs twice a step; the variance as a function of the state is evaluated seven times, and if it reads a
    network (:class:`genmatch.diffusivity.Curvature`), so is that.

    Where a value's variance depends on other values too, as one variance for the whole of a sample of two values or
    more does, the noise of two coordinates does not commute, and no method made of increments and areas of single
    coordinates can tell their order. There it still converges to the right law, at Euler-Maruyama's rates: strong order
    1/2 and weak order 1. For additive noise :class:`SRA` has the same orders.

    Generators whose noise depends on the state must give the variance as a function, by ``end_point``, as
    :class:`genmatch.Multiplicative` does.
    """

    c = NODES
    order = 2
    lifts = False
    parts = frozenset({"drift", "variance"})

    def check(self, field: Field, parts: frozenset[str]) -> None:
        """The variance must be known as a function of the state, and the space R^d."""
        _refuse_curved(self, field)
        if field.lift is not None:
            raise ValueError("SRI moves states of the operator alone: along states that carry more, use an ODE solver")
        for _, generator in field.operator.terms:
            if not generator.additive and getattr(generator, "end_point", None) is None:
                raise ValueError(
                    f"SRI needs the variance as a function of the state, and {type(generator).__name__} gives none: "
                    "write a method end_point(x, t, prediction) that returns the triplet without half the divergence "
                    "and the variance as a function of the state, or use gm.solvers.Euler()"
                )

    def advance(self, field: Field, x: Tensor, c: Step, draws: Draws) -> Tensor:
        """One step; see the class."""
        space, h = field.space, c.h
        if len(c.instants) == 1:
            return space.move(x, field(x, c.instants[0]), h, draws)
        first, early = _read(field, x, c.instants[0])
        drift, start = _drift(first, h), _deviation(first.variance, x)
        ahead = x + 3 / 4 * drift
        pair = None if first.variance is None else _brownian(space, x, draws)
        if pair is not None:
            ahead = ahead + (1.5 * _root(h)) * start * pair[1]
        second, later = _read(field, ahead, c.instants[1])
        end = x + (1 / 3) * drift + 2 / 3 * _drift(second, h)
        if first.variance is None and second.variance is None:
            return end
        z, slope = _brownian(space, x, draws) if pair is None else pair
        step = _root(h)

        def deviation(y: Tensor, share: float) -> Any:
            now = _deviation(early(y), x)
            return now + share * (_deviation(later(y), x) - now)

        quarter = x + 1 / 4 * drift
        side = step * torch.where(draws.fork(COIN).uniform(x.shape, x.dtype) < 0.5, -1.0, 1.0).to(x.dtype)
        two = deviation(quarter + side / 2 * start, 1 / 3)  # at t + h / 4, a third of the way to t + 3 h / 4
        three = deviation(x + drift - side * start, 4 / 3)  # at t + h
        four = deviation(quarter + side * (-5 * start + 3 * two + 0.5 * three), 1 / 3)
        square, cube = side / (2 * step) * (z.square() - 1), (z**3 - 3 * z) / 6
        noise = (2 * slope - z - square - 2 * cube) * start
        noise = noise + (4 * (z + square - slope) + 5 * cube) / 3 * two
        noise = noise + (2 * (z - slope - cube) - square) / 3 * three
        return end + step * (noise + cube * four)

    def __repr__(self) -> str:
        return "SRI()"


def _brownian(space: Space, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    r""":math:`\Delta W/\sqrt h` and :math:`I_{10}/h^{3/2}`."""
    z = space.brownian(x, draws)
    return z, 0.5 * z + math.sqrt(1 / 12) * draws.fork(AREA).normal(x.shape, x.dtype)


def _scaled(drift: Tensor | None, weight: float) -> Triplet:
    return Triplet() if drift is None else Triplet(weight * drift)


def _read(field: Field, x: Tensor, instant: OperatorInstant) -> tuple[Triplet, Variance]:
    """The Ito triplet and its variance as a function of the state; each network runs once."""
    predictions = field.operator.predict(x, instant, field.condition)
    triplet = field.operator.read(x, instant, predictions)
    if triplet.drift is not None:
        check_drift(triplet.drift, x)
    variance = without_divergence(field, x, instant, predictions)[1]
    return triplet, (lambda y: triplet.variance) if variance is None else variance


def _drift(triplet: Triplet, h: float) -> Any:
    return 0.0 if triplet.drift is None else h * triplet.drift


def _deviation(variance: Number | None, x: Tensor) -> Any:
    if variance is None:
        return 0.0
    check_variance(variance, x)
    return _root(variance)


def _root(number: Number) -> Any:
    return root(number) if isinstance(number, Tensor) else math.sqrt(number)


def _refuse_curved(solver: Staged, field: Field) -> None:
    if not isinstance(field.space, Euclidean):
        raise ValueError(f"{type(solver).__name__} steps on R^d, got {field.space!r}: use gm.solvers.Euler()")
