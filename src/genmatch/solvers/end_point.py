r"""Steps for noise that depends on the state, without its derivative: the noise of a step is that of where it leads.

The Ito drift of a diffusion of variance :math:`A(x)` that leaves a law alone has a term :math:`\tfrac12\nabla\cdot A`.
In the end-point (anti-Ito, kinetic, Haenggi-Klimontovich) convention it has not: there the noise of an infinitesimal
step is multiplied by :math:`A^{1/2}` at the step's end. A step that looks ahead does that,

.. math:: \hat x = x \oplus \sqrt{h A(x)}\,z, \qquad x' = x \oplus h\,\bigl(b - \tfrac12\nabla\cdot A\bigr)(x)
   \oplus \sqrt{h A(\hat x)}\,z ,

with one z: the mean of :math:`\sqrt{hA_i(\hat x)}\,z_i` is :math:`\tfrac h2\partial_i A_i(x) + O(h^2)`, which is the
missing term.

References
----------
.. [1] P. Haenggi, H. Thomas, "Stochastic processes: time evolution, symmetries and linear response", Phys. Rep. 88
   (1982) (the convention).
.. [2] Y. Klimontovich, "Ito, Stratonovich and kinetic forms of stochastic equations", Physica A 163 (1990).
.. [3] M. Huetter, H. C. Oettinger, "Fluctuation-dissipation theorem, kinetic stochastic integral and efficient
   simulations", J. Chem. Soc., Faraday Trans. 94 (1998) (steps in this convention).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import Generator, OperatorInstant
from ..generators.multiplicative import NotFiniteError
from ..paths import GaussianPath
from ..random import Draws
from ..schedules import Number
from ..triplet import Triplet
from .exponential import Exponential
from .field import Field
from .part import DataEnding, FlowEnding, end_by_flow, end_noise, rates_are_finite
from .solver import Solver, refuse_parts
from .transition import Transition, apply_transition

__all__ = ["EndPoint", "without_divergence"]

Variance = Callable[[Tensor], Number]


class Step(NamedTuple):
    """One step: its length, and the numbers at its start (rates averaged over it)."""

    h: float
    instant: OperatorInstant
    last: Transition | None = None
    ending: FlowEnding | DataEnding | None = None


class EndPoint(Solver):
    """The end-point step for state-dependent noise: one evaluation, weak order 1, no derivative of the variance.

    It takes every term's drift without half the divergence of its variance, and so needs generators that can tell it:
    :class:`genmatch.Multiplicative`, and all whose noise does not depend on the state. There it is Euler-Maruyama. The
    variance is evaluated twice a step; if it reads a network (:class:`genmatch.diffusivity.Curvature`), so is that.
    """

    parts = frozenset({"drift", "variance", "rates"})
    order = 1

    def defined(self, field: Field, t: float) -> bool:
        """Whether drift and variance are finite at ``t``."""
        try:
            triplet, _ = _probe(field, field.at(torch.tensor([t], dtype=torch.float64))[0])
        except NotFiniteError:
            return False
        return all(
            bool(part.isfinite().all()) if isinstance(part, Tensor) else math.isfinite(part)
            for part in (triplet.drift, triplet.variance)
            if part is not None
        )

    def plan(self, field: Field, times: Tensor) -> list[Step]:
        """Lengths, and the numbers at the starts of the steps."""
        starts, ends = times[:-1], times[1:]
        rows = field.at(starts, ends)
        weights = tuple(1.0 if callable(w) else float(w) for w, _ in field.operator.terms)
        parts = _probe(field, rows[0]._replace(weights=weights))[0].parts
        refuse_parts(self, parts, "gm.solvers.Euler()")
        if parts & {"variance", "rates"} and bool(times[-1] < times[0]):
            raise ValueError(
                "noise and jumps run from noise to data: times that fall are for a flow, drift alone, and for "
                "gm.Reverse(generator) by gm.solvers.Euler()"
            )
        field.settle(rows[0], rows)
        for row in rows:
            if any(weight < 0 for weight in row.weights):
                _refuse_negative(field, row)
        plan = [Step(h, row) for h, row in zip((ends - starts).tolist(), rows, strict=True)]
        if float(times[-1]) == 1.0:
            plan[-1] = self._last(field, times[-2:], plan[-1], parts)
        return plan

    def _last(self, field: Field, times: Tensor, step: Step, parts: frozenset[str]) -> Step:
        """The step to the data, which ends in their prediction where noise or rates would be left."""
        if parts & {"drift", "variance"} and not self.defined(field, 1.0):
            if not Exponential.why_not(field):
                step = step._replace(last=Exponential(order=1).single(field, times))
            elif "variance" in parts or not isinstance(field.operator.path, GaussianPath):
                step = step._replace(ending=end_noise(field, times))
        jumps = "rates" in parts and isinstance(field.operator.path, GaussianPath)
        if jumps and not rates_are_finite(field, step.instant):
            step = step._replace(ending=end_by_flow(field, times))
        return step

    def evaluations(self, plan: Sequence[Step]) -> int:
        """One a step, and what the variance reads besides."""
        return len(plan)

    def step(self, field: Field, x: Tensor, c: Step, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step; see the module."""
        if c.ending is not None:
            return c.ending.step(field, x), None
        if c.last is not None:
            return apply_transition(field, x, c.last, draws)[0], None
        space, operator = field.space, field.operator
        triplet, variance = without_divergence(field, x, c.instant, operator.predict(x, c.instant, field.condition))
        if triplet.rates is not None and field.fixed is not None:
            triplet = Triplet(triplet.drift, triplet.variance, triplet.rates.keep(~field.fixed))
        if triplet.variance is None or variance is None:
            return space.move(x, triplet, c.h, draws), None
        noise = space.brownian(x, draws)
        ahead = space.move(x, Triplet(variance=triplet.variance), c.h, draws, noise)
        return space.move(x, Triplet(triplet.drift, variance(ahead), triplet.rates), c.h, draws, noise), None

    def __repr__(self) -> str:
        return "EndPoint()"


def without_divergence(
    field: Field, x: Tensor, instant: OperatorInstant, predictions: Sequence[Any]
) -> tuple[Triplet, Variance | None]:
    """The weighted sum of the terms without the divergences of their variances, and its variance as a function.

    The function is missing where no variance depends on the state.
    """
    operator, total = field.operator, Triplet()
    constant: Number = 0.0
    varying: list[tuple[Number, Variance]] = []
    for weight, (_, generator), which in zip(instant.weights, operator.terms, operator._which, strict=True):
        if isinstance(weight, float) and weight == 0.0:
            continue
        triplet, variance = _term(generator, x, instant.t, predictions[which])
        total = total + triplet.__mul__(weight)  # dynamo does not trace the operator between the two
        if variance is not None:
            varying.append((weight, variance))
        elif triplet.variance is not None:
            constant = constant + weight * triplet.variance
    if not varying:
        return total, None

    def everywhere(y: Tensor) -> Number:
        value = constant
        for weight, variance in varying:
            value = value + weight * variance(y)
        return value

    return total, everywhere


def _term(generator: Generator, x: Tensor, t: Number, prediction: Any) -> tuple[Triplet, Variance | None]:
    own = getattr(generator, "end_point", None)
    if own is not None:
        return own(x, t, prediction)
    triplet = generator.triplet(x, t, prediction)
    if triplet.variance is not None and not generator.additive:
        raise ValueError(
            f"EndPoint needs the drift without half the divergence of the variance, and {type(generator).__name__} "
            "gives none: write a method end_point(x, t, prediction) that returns the triplet without it and the "
            "variance as a function of the state, or use gm.solvers.Euler()"
        )
    return triplet, None


def _probe(field: Field, instant: OperatorInstant) -> tuple[Triplet, Variance | None]:
    """The triplet of one made-up state from made-up predictions."""
    if isinstance(field.like, Mapping):
        raise ValueError("EndPoint moves states that are one tensor, got a product: use gm.solvers.Euler()")
    x = torch.ones_like(field.like[:1])
    made_up = [model.prediction(x, i, model.blank(x)) for model, i in zip(field.models, instant.models, strict=True)]
    return without_divergence(field, x, instant, made_up)


def _refuse_negative(field: Field, instant: OperatorInstant) -> None:
    triplet, _ = _probe(field, instant)
    if triplet.variance is not None and bool((torch.as_tensor(triplet.variance) < 0).any()):
        raise ValueError(
            f"the weights {instant.weights} make the variance negative at t = {instant.t:g}: "
            "the diffusions subtracted carry more noise than those added"
        )
    terms = () if triplet.rates is None else triplet.rates.terms
    if any(bool((torch.as_tensor(term.total) < 0).any()) for term in terms):
        raise ValueError(f"the weights {instant.weights} make a jump rate negative at t = {instant.t:g}")
