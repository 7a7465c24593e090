r"""Explicit Runge-Kutta steps of drift, noise and jumps: a method is its tableau.

References
----------
.. [1] J. Butcher, "Numerical methods for ordinary differential equations", 2016, Section 23.
.. [2] P. Kloeden, E. Platen, "Numerical solution of stochastic differential equations", 1992, Sections 10.2 and 14.1:
   Euler-Maruyama, and the weak order 2 of the Heun step under additive noise.
.. [3] D. Gillespie, "Approximate accelerated stochastic simulation", J. Chem. Phys. 115 (2001): tau-leaping.
.. [4] A. Ralston, "Runge-Kutta methods with minimum error bounds", Math. Comp. 16 (1962), Section 3.
.. [5] P. Bogacki, L. Shampine, "A 3(2) pair of Runge-Kutta formulas", Appl. Math. Lett. 2 (1989).
.. [6] J. Dormand, P. Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6 (1980), Table 2.
"""

from __future__ import annotations

from ..random import Draws
from ..spaces.states import State
from ..triplet import Triplet
from .field import Field
from .staged import Staged, Step, refuse_state_noise

__all__ = ["RK4", "BogackiShampine", "DormandPrince", "Euler", "Heun", "Midpoint", "Ralston", "RungeKutta", "weigh"]


class RungeKutta(Staged):
    r"""An explicit Runge-Kutta method given by its tableau; a subclass sets four attributes.

    .. math:: k_j = L_{t + c_j h}\bigl(x \oplus h\textstyle\sum_l a_{jl} k_l\bigr), \qquad
       x' = x \oplus h\textstyle\sum_j b_j k_j

    where :math:`\oplus` is the space's move. The Brownian increment is one per step, shared between its stages; on
    tokens whether and where a position jumps is drawn from the rates of the last sum.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]

    def check(self, field: Field, parts: frozenset[str]) -> None:
        """Several stages need additive noise."""
        if len(self.c) > 1:
            refuse_state_noise(self, field, parts, "gm.solvers.Euler()")

    def advance(self, field: Field, x: State, c: Step, draws: Draws) -> State:
        """One step; see the class."""
        if len(c.instants) == 1:
            return field.space.move(x, field(x, c.instants[0]), c.h, draws)
        slopes, noise = self.stages(field, x, c, draws)
        return field.space.move(x, weigh(self.b, slopes), c.h, draws, noise)

    def stages(self, field: Field, x: State, c: Step, draws: Draws) -> tuple[list[Triplet], State | None]:
        """The values :math:`k_j` at the stages of a step, and the noise that they share."""
        first = field(x, c.instants[0])
        noise = field.space.brownian(x, draws) if "variance" in first.parts else None
        slopes = [first]
        for weights, instant in zip(self.a[1:], c.instants[1:], strict=True):
            slopes.append(field(field.space.move(x, weigh(weights, slopes), c.h, draws, noise), instant))
        return slopes, noise

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Euler(RungeKutta):
    """One evaluation, order 1: Euler on a drift, Euler-Maruyama on a diffusion, tau-leaping on rates, all in one."""

    a, b, c = ((),), (1.0,), (0.0,)
    order = 1
    parts = frozenset({"drift", "variance", "rates"})


class Midpoint(RungeKutta):
    """Two evaluations, order 2, drift only."""

    a, b, c = ((), (0.5,)), (0.0, 1.0), (0.0, 0.5)
    order = 2
    parts = frozenset({"drift"})


class Ralston(RungeKutta):
    """Two evaluations, order 2, drift only: the least bound on the error of all such methods. None at a step's end."""

    a, b, c = ((), (2 / 3,)), (1 / 4, 3 / 4), (0.0, 2 / 3)
    order = 2
    parts = frozenset({"drift"})


class Heun(RungeKutta):
    """Two evaluations, order 2; with additive noise the stochastic Heun step, of weak order 2."""

    a, b, c = ((), (1.0,)), (0.5, 0.5), (0.0, 1.0)
    order = 2
    parts = frozenset({"drift", "variance"})


class BogackiShampine(RungeKutta):
    """Three evaluations, order 3, drift only. None at a step's end: the pair's fourth is for an estimate of error."""

    a, b, c = ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), (0.0, 1 / 2, 3 / 4)
    order = 3
    parts = frozenset({"drift"})


class RK4(RungeKutta):
    """Four evaluations, order 4, drift only: the classical method."""

    a, b, c = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0)
    order = 4
    parts = frozenset({"drift"})


class DormandPrince(RungeKutta):
    """Six evaluations, order 5, drift only: the pair's seventh, for an estimate of error, has no use on a grid."""

    a = (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    )
    b = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
    c = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
    order = 5
    parts = frozenset({"drift"})


def weigh(weights: tuple[float, ...], slopes: list[Triplet]) -> Triplet:
    """The weighted sum of triplets; those of weight 0 are left out."""
    terms = [w * slope if w != 1.0 else slope for w, slope in zip(weights, slopes, strict=False) if w]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
