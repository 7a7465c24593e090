r"""Generators and their sums.

If :math:`L` and :math:`L'` carry one path at speeds :math:`v` and :math:`v'`,
:math:`\langle p_t, L_t f\rangle = v\,\tfrac{d}{dt}\langle p_t, f\rangle`, then :math:`aL + bL'` carries it at speed
:math:`av + bv'` (Markov superposition, predictor-corrector and divergence-free components are the cases v' = 1, -1 and
0; generator matching, arXiv 2410.20587, Proposition 3). Speed 1 is what sampling needs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..paths import GaussianPath, Path
from ..predict import Predictor
from ..predict.predictor import Condition, asked_at, check_condition
from ..schedules import Number, along_batch
from ..spaces.states import State, batch
from ..triplet import Triplet, Triplets
from .registration import Own, keep_once

__all__ = ["Generator", "Operator", "OperatorInstant", "Superposition", "Weight", "check_reading", "in_full"]

Weight = float | Callable[[float], float]


class OperatorInstant(NamedTuple):
    """What an operator needs at one time: each network's numbers, and each term's weight."""

    t: Number
    models: tuple[Any, ...]
    weights: tuple[Number, ...]


class Operator(nn.Module, ABC):
    """A generator or a sum of them: weighted terms that share the networks they read.

    Each network runs once per evaluation however many terms read it, and is registered once, so that the state dict
    holds every tensor once.
    """

    _which: tuple[int, ...]  # the network that each term reads
    __array_ufunc__ = None  # numpy leaves products to __rmul__, and makes no arrays of operators

    def __init__(self, models: Iterable[Predictor]) -> None:
        super().__init__()
        self._models = tuple(dict.fromkeys(models))  # a tuple beside the list: access to it costs nothing in a step
        self.models = nn.ModuleList(self._models)
        keep_once(self)

    @property
    @abstractmethod
    def terms(self) -> tuple[tuple[Weight, Generator], ...]:
        """(weight, generator) pairs."""

    @property
    def path(self) -> Path:
        """The path that is carried."""
        return self._models[0].path

    def at(self, t: Tensor, until: Tensor | None = None, *, speed: float = 1.0) -> list[OperatorInstant]:
        """The numbers of a float64 vector of times, one by one, as host floats.

        ``until`` are the ends of the steps that start at ``t``; see ``MixturePath.at``. The weights are checked: the
        speeds must add to ``speed`` at every time.
        """
        times = t.tolist()
        models = [model.at(t, until).rows() for model in self._models]
        weights = [tuple(_weigh(w, time) for w, _ in self.terms) for time in times]
        self._check_speed(times, weights, speed)
        for (_, generator), which in zip(self.terms, self._which, strict=True):
            for name, operator in generator.nested.items():
                own = [row.factors[name].t for row in models[which]]
                operator._check_speed(own, [operator.weights_at(time) for time in own], generator.speed)
        return [OperatorInstant(*row) for row in zip(times, zip(*models, strict=True), weights, strict=True)]

    def predict(self, x: State, instant: OperatorInstant, condition: Condition = None) -> tuple[Any, ...]:
        """The prediction of each network at ``x``, each run once."""
        return tuple(
            [
                model.prediction(x, i, in_full(model.native(x, i, condition), x))
                for model, i in zip(self._models, instant.models, strict=True)
            ]
        )

    def read(self, x: State, instant: OperatorInstant, predictions: Sequence[Any]) -> Any:
        """The triplet at ``x`` from given predictions: the weighted sum of the terms'."""
        total: Any = None
        for weight, (_, generator), which in zip(instant.weights, self.terms, self._which, strict=True):
            host = isinstance(weight, float)
            if host and weight == 0.0:
                continue
            triplet = generator.triplet(x, instant.t, predictions[which])
            if not isinstance(triplet, (Triplet, Triplets)):
                name = type(generator).__name__
                raise TypeError(f"{name}.triplet must return a gm.Triplet(drift=...), got {type(triplet).__name__}")
            if not (host and weight == 1.0):
                triplet = _scale(triplet, weight, x)
            total = triplet if total is None else total + triplet
        return Triplet() if total is None else total

    def forward(self, x: State, t: Any, condition: Condition = None) -> Any:
        """The triplet at ``x`` ``(B, *S)`` and ``t``, a number or ``(B,)``; a dict of them on a product."""
        self.path.space.check(x)
        check_condition(condition, batch(x))
        instant = self.instant(t, x)
        return self.read(x, instant, [asked_at(t, p) for p in self.predict(x, instant, condition)])

    def instant(self, t: Any, x: State) -> OperatorInstant:
        """The numbers of a user's time, to broadcast against ``x``."""
        if isinstance(t, OperatorInstant):
            return t
        models = tuple(model.instant(t, x) for model in self._models)
        time = models[0].t
        return OperatorInstant(time, models, self.weights_at(time))

    def weights_at(self, t: Number) -> tuple[Number, ...]:
        """The terms' weights at a time, host floats for a host float."""
        return tuple(_weigh(w, t) for w, _ in self.terms)

    def lowest_weight(self, instant: OperatorInstant) -> float:
        """The least weight of the terms at an instant of host floats, those of a product's factors included."""
        inner = [
            operator.lowest_weight(OperatorInstant(own.t, (own,), operator.weights_at(own.t)))
            for (_, generator), which in zip(self.terms, self._which, strict=True)
            for name, operator in generator.nested.items()
            for own in [instant.models[which].factors[name]]
        ]
        return min([*instant.weights, *inner])  # type: ignore[type-var]

    def speed_at(self, t: float) -> float:
        r"""The speed at time t: :math:`\sum_k a_k(t)\,v_k`."""
        return sum(_weigh(weight, t) * generator.speed for weight, generator in self.terms)

    def _check_speed(self, times: Sequence[float], weights: Sequence[tuple[Number, ...]], asked: float) -> None:
        speeds = [generator.speed for _, generator in self.terms]
        for time, row in zip(times, weights, strict=True):
            if not all(math.isfinite(w) for w in row):
                raise ValueError(f"a weight is not finite at t = {time:g}: {row}")
            speed = sum(w * v for w, v in zip(row, speeds, strict=True))
            if abs(speed - asked) > 1e-6:
                raise ValueError(
                    f"the weights carry the path at speed {speed:g}, not {asked:g}, at t = {time:g}: weights of "
                    f"generators that follow the path must add to {asked:g} (Langevin, of speed 0, does not count, and "
                    "a reversed generator, of speed -1, counts against them)"
                    + (": a reversed generator runs from data to noise" if speed == -1 else "")
                )

    def __add__(self, other: Operator) -> Superposition:
        if not isinstance(other, Operator):
            return NotImplemented
        return Superposition([(1.0, self), (1.0, other)])

    def __sub__(self, other: Operator) -> Superposition:
        if not isinstance(other, Operator):
            return NotImplemented
        return Superposition([(1.0, self), (-1.0, other)])

    def __radd__(self, other: object) -> Operator:
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([...]) starts with 0

    def __mul__(self, weight: Weight) -> Superposition:
        return Superposition([(weight, self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Superposition:
        if callable(divisor) or not isinstance(divisor, Real):
            return NotImplemented
        return Superposition([(1 / float(divisor), self)])

    def __neg__(self) -> Superposition:
        return Superposition([(-1.0, self)])


class Generator(Operator):
    r"""A Markov generator read off one network. Authors subclass this.

    A subclass writes :meth:`triplet`; it must be affine in the prediction.

    Attributes
    ----------
    speed
        :math:`\langle p_t, L_t f\rangle = \text{speed}\cdot\tfrac{d}{dt}\langle p_t, f\rangle`: 1 follows the path, 0
        leaves :math:`p_t` alone, -1 runs it back.
    additive
        Whether variance (and rates) are the same at every state. Solvers with several stages need it.
    nested
        Generators of a product's factors, by name.
    semilinear
        Whether the triplet is ``speed`` times the velocity plus half its variance times the score, with an additive,
        scalar variance: then :class:`~genmatch.solvers.Exponential` integrates it exactly but for the data prediction.

    Examples
    --------
    >>> import genmatch as gm
    >>> class Swirl(gm.Generator):  # stirs p_t without changing it
    ...     speed = 0.0
    ...     def triplet(self, x, t, prediction):
    ...         return gm.Triplet(drift=prediction.score.flip(-1) * x.new_tensor([1.0, -1.0]))
    """

    speed: float = 1.0
    additive: bool = True
    semilinear: bool = False
    nested: Mapping[str, Operator] = MappingProxyType({})

    def __init__(self, model: Predictor) -> None:
        if not isinstance(model, Predictor):
            raise TypeError(
                f"{type(self).__name__} needs a predictor such as gm.predict.Velocity(network, path), "
                f"got {type(model).__name__}"
            )
        super().__init__([model])
        self._which = (0,)

    @property
    def model(self) -> Predictor:
        """The network it reads."""
        return self._models[0]

    @property
    def terms(self) -> tuple[tuple[Weight, Generator], ...]:
        """Itself, once."""
        return ((1.0, self),)

    @abstractmethod
    def triplet(self, x: Any, t: Number, prediction: Any) -> Any:
        """The value at ``x`` ``(B, *S)``, a :class:`~genmatch.Triplet`; the schedule's numbers at ``t`` are in
        ``prediction.instant``.
        """


def check_reading(generator: Generator, model: Predictor, reading: str) -> None:
    """Raise unless a prediction of the model can be asked for ``reading``: "velocity", "score", "rates" ..."""
    if reading not in model.readings:
        raise TypeError(
            f"{type(generator).__name__} needs a model with {'' if reading.endswith('s') else 'a '}{reading}; "
            f"a {type(model).__name__} on {model.path!r} "
            f"has {', '.join(sorted(model.readings)) or 'none'}"
        )


class Superposition(Operator):
    r"""A weighted sum of generators on one path, :math:`\sum_k a_k(t)\,L^{(k)}_t`.

    Written ``0.7 * flow + 0.3 * sde``; weights are numbers or host functions of t, never of the state (a weight that
    depends on the state breaks the forward equation). A solver's plan looks at them at the times where it evaluates
    and, for noise, at the integral over each step: what happens in between is not seen.

    Parameters
    ----------
    terms
        (weight, generator or superposition) pairs; sums of sums are flattened.
    """

    def __init__(self, terms: Iterable[tuple[Weight, Operator]]) -> None:
        flat: list[tuple[Weight, Generator]] = []
        for weight, operator in terms:
            if not isinstance(operator, Operator):
                raise TypeError(f"a superposition is of generators, got {type(operator).__name__}")
            _check_weight(weight)
            flat += [(_times(weight, inner), generator) for inner, generator in operator.terms]
        if not flat:
            raise ValueError("a superposition needs at least one generator")
        first = flat[0][1].path
        for _, generator in flat:
            if generator.path != first:
                both = isinstance(first, GaussianPath) and isinstance(generator.path, GaussianPath)
                raise ValueError(
                    f"generators of different paths cannot be added, got {first!r} and {generator.path!r}"
                    + (": change the schedule of one model with gm.predict.Reschedule" if both else "")
                )
        merged: list[tuple[Weight, Generator]] = []
        for weight, generator in flat:  # the same generator twice is one term
            same = next((i for i, (_, known) in enumerate(merged) if known is generator), None)
            if same is None:
                merged.append((weight, generator))
            else:
                merged[same] = (_plus(merged[same][0], weight), generator)
        super().__init__(generator.model for _, generator in merged)
        self._terms = tuple(merged)
        self._which = tuple(self._models.index(generator.model) for _, generator in merged)
        self.own = nn.ModuleList(Own(generator) for _, generator in merged)

    @property
    def terms(self) -> tuple[tuple[Weight, Generator], ...]:
        """(weight, generator) pairs, flattened."""
        return self._terms

    def __repr__(self) -> str:
        def name(weight: Weight) -> str:
            return "w(t)" if callable(weight) else f"{weight:g}"

        return " + ".join(f"{name(weight)} * {type(generator).__name__}" for weight, generator in self._terms)


def in_full(native: Any, x: State) -> Any:
    """A network's output in its state's dtype: in half precision the length of every step would be rounded with it."""
    if isinstance(native, Mapping) and isinstance(x, Mapping):
        return {name: in_full(part, x[name]) for name, part in native.items()}
    if isinstance(native, Tensor) and isinstance(x, Tensor) and x.is_floating_point() and native.is_floating_point():
        return native if native.dtype == x.dtype else native.to(x.dtype)
    if isinstance(native, Tensor) and native.is_complex():
        raise TypeError(f"the network's output is {native.dtype}, and states are real: return its real part")
    return native


def _scale(triplet: Any, weight: Number, x: State) -> Any:
    """A multiple of a triplet; a weight for each sample runs along the batch of every factor."""
    if isinstance(triplet, Triplets) and isinstance(weight, Tensor) and weight.ndim:
        return Triplets({name: part * along_batch(weight.reshape(-1), x[name]) for name, part in triplet.items()})
    return triplet.__mul__(weight)  # by name: a compiler would hand the product of a tensor and a triplet to torch


def _check_weight(weight: Any) -> None:
    # A module is callable, but a generator is no weight, and the parameters of a network would be registered nowhere.
    if callable(weight) and not isinstance(weight, (nn.Module, type)):
        return
    if isinstance(weight, bool) or not isinstance(weight, Real):
        raise TypeError(
            f"a weight is a number or a function of t, got {type(weight).__name__}: "
            "a weight for each sample or state would break the forward equation"
        )
    if not math.isfinite(weight):
        raise ValueError(f"a weight must be a finite number or a function of t, got {weight}")


def _weigh(weight: Weight, t: Number) -> Number:
    """A weight at a time; functions see host floats alone, one by one if ``t`` is a tensor."""
    if not callable(weight):
        return float(weight)
    if isinstance(t, Mapping):
        raise TypeError("a weight is a function of one time, and every factor was given its own: give one time for all")
    if isinstance(t, Tensor):
        values = [_weigh(weight, time) for time in t.flatten().tolist()]
        return torch.tensor(values, dtype=t.dtype, device=t.device).reshape(t.shape)
    value = weight(t)
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"a weight must return a number, got {type(value).__name__} at t = {t:g}") from None


def _times(a: Weight, b: Weight) -> Weight:
    if callable(a) or callable(b):
        return lambda t: _weigh(a, t) * _weigh(b, t)
    return float(a) * float(b)


def _plus(a: Weight, b: Weight) -> Weight:
    if callable(a) or callable(b):
        return lambda t: _weigh(a, t) + _weigh(b, t)
    return float(a) + float(b)
