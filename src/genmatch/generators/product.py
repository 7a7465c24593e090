r"""Generators on products: the sum of the factors' own, each reading the prediction made from the whole state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..predict.product import Product as ProductPredictor
from ..predict.product import ProductPrediction, named
from ..rates import Rates, Term
from ..schedules import Number
from ..spaces.states import State, same_factors
from ..triplet import Triplet, Triplets
from .operator import Generator, Operator, OperatorInstant

__all__ = ["Product"]


class Product(Generator):
    r"""The generator of a product path, one generator for each factor.

    .. math:: L_t f(x) = \sum_i \dot c_i(t)\,L^{i}_{c_i(t)} f(x),

    where :math:`L^i` acts on the factor i alone, with parameters that depend on the whole state (generator matching,
    arXiv 2410.20587, Proposition 4), and :math:`c_i` is the factor's clock.

    Parameters
    ----------
    model
        A :class:`genmatch.predict.Product`.
    factors
        Generators by name, as classes or functions of the factor's predictor: ``{"label": gm.CTMC, "point": gm.Flow}``,
        or ``lambda model: 0.5 * gm.Flow(model) + 0.5 * gm.Diffusion(model)``.

    Raises
    ------
    ValueError
        If the factors' generators have different speeds.
    """

    def __init__(self, model: ProductPredictor, factors: Mapping[str, Callable[[Any], Operator]]) -> None:
        super().__init__(model)
        if not isinstance(model, ProductPredictor):
            raise TypeError(f"Product needs a gm.predict.Product, got {type(model).__name__}")
        same_factors("factors", factors, model.path.factors)
        for name, make in factors.items():
            if isinstance(make, nn.Module):
                raise TypeError(
                    f"the factor {name!r} needs a generator class such as gm.Flow, or a function of the factor's "
                    f"predictor, got a {type(make).__name__} that is made already"
                )
        made = {name: _make(name, factors[name], model.models[name]) for name in model.path.factors}
        for name, operator in made.items():
            if not isinstance(operator, Operator):
                raise TypeError(f"the factor {name!r} needs a generator, got {type(operator).__name__}")
            if tuple(operator.models) != (model.models[name],):
                raise ValueError(f"the generator of the factor {name!r} must read the predictor that it is given")
        speeds = {name: operator.speed_at(0.5) for name, operator in made.items()}
        if max(speeds.values()) - min(speeds.values()) > 1e-6:
            raise ValueError(f"the factors must have one speed, got {speeds}: no single path would be followed")
        self.factors = nn.ModuleDict(named(made))
        self.nested, self._given = made, model.path.given
        self.speed = speeds[next(iter(speeds))]
        self.additive = all(g.additive for operator in made.values() for _, g in operator.terms)

    def triplet(self, x: State, t: Number, prediction: ProductPrediction) -> Triplets:
        """Every factor's triplet, at its own time and the speed of its clock."""
        value, instant = Triplets(), prediction.instant
        for name, operator in self.nested.items():
            if name in self._given:
                value[name] = Triplet()
                continue
            own, reading = instant.factors[name], prediction[name]
            now = OperatorInstant(own.t, (own,), operator.weights_at(own.t))
            value[name] = _at_speed(operator.read(x[name], now, [reading]), instant.speeds[name])
        return value


def _make(name: str, make: Callable[[Any], Operator], model: Any) -> Operator:
    try:
        return make(model)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the factor {name!r}: {error}") from error


def _at_speed(triplet: Triplet, speed: Number) -> Triplet:
    """The triplet times the speed of a clock; 0 where the clock stands, also where the triplet is infinite."""
    if isinstance(speed, float) and speed == 1.0:
        return triplet

    def times(value: Any) -> Any:
        if isinstance(speed, float) and speed != 0.0:
            return value * speed
        value = torch.as_tensor(value) * speed
        return torch.where(torch.as_tensor(speed, device=value.device) == 0, torch.zeros_like(value), value)

    rates = None
    if triplet.rates is not None:
        rates = Rates(*(Term(times(term.total), term.where) for term in triplet.rates.terms))
    drift, variance = (None if part is None else times(part) for part in (triplet.drift, triplet.variance))
    return Triplet(drift, variance, rates)
