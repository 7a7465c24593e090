"""What a generator says of itself, held to the facts: additive, semilinear, affine in the prediction, compilable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..generators import Generator
from ..metrics.families import default_test_functions
from ..random import Draws
from ..spaces.states import State, each, first
from ..triplet import Triplet
from .case import CLOSE, Case, all_close, factors, is_random, tensors
from .report import Failure, Skip

__all__ = ["check_additive", "check_affine", "check_compile", "check_condition", "check_semilinear"]

LINEAR = {"velocity", "data", "noise", "score", "v", "karras"}  # kinds of output that are linear in the posterior
_KNOWN = LINEAR | {"tokens"}
ROWS = 32
OTHER = 30  # stream of the made-up predictions


def check_additive(case: Case) -> str:
    """``additive`` says that variance and rates are the same at every state."""
    claimed = [g for _, g in case.operator.terms if g.additive]
    if not claimed:
        raise Skip("it does not claim to be")
    for generator in claimed:
        for t in case.times:
            x, condition = case.states(t)
            for name, value in tensors(generator(x, t, condition), x).items():
                if name.endswith("drift") or not value.ndim or len(value) != len(first(x)):
                    continue
                if not all_close(value, value[:1].expand_as(value)):
                    raise Failure(
                        f"the {name} of {type(generator).__name__} differs between states at t = {t:g}: set "
                        "additive = False, or solvers that rely on it sample another law"
                    )
    return ", ".join(type(g).__name__ for g in claimed)


def check_semilinear(case: Case) -> str:
    """``semilinear`` says that the drift is speed times velocity plus half the variance times the score."""
    claimed = [g for _, g in case.operator.terms if g.semilinear]
    if not claimed:
        raise Skip("it does not claim to be")
    for generator in claimed:
        for t in case.times:
            x, condition = case.states(t)
            triplet, prediction = generator(x, t, condition), generator.model(x, t, condition)
            expected: Any = 0.0 * x
            if generator.speed:
                expected = expected + generator.speed * prediction.velocity
            if triplet.variance is not None:
                expected = expected + triplet.variance / 2 * prediction.score
            drift = torch.zeros_like(x) if triplet.drift is None else triplet.drift
            if triplet.rates is not None or not all_close(drift, expected):
                raise Failure(
                    f"the drift of {type(generator).__name__} is not speed * velocity + variance / 2 * score at "
                    f"t = {t:g}: the exponential solver would sample another law; set semilinear = False"
                )
    return ", ".join(type(g).__name__ for g in claimed)


def check_affine(case: Case) -> str:
    """The value for the average of two predictions is the average of the two values.

    Otherwise the posterior mean, which training finds, is not what the generator needs.
    """
    names = []
    for _, generator in case.operator.terms:
        for t in case.times:
            _check_affine_of(generator, case, t)
        names.append(type(generator).__name__)
    return ", ".join(dict.fromkeys(names))


def _check_affine_of(generator: Generator, case: Case, t: float) -> None:
    model = generator.model
    x, condition = case.states(t, ROWS)
    instant = model.instant(t, x)
    one = model.native(x, instant, condition)
    kinds = _kinds(model, one)
    other = each(lambda native, kind: _another(native, kind, case.seed), one, kinds)
    values = []
    for native in (one, other, each(_average, one, other, kinds)):
        triplet = generator.triplet(x, instant.t, model.prediction(x, instant, native))
        if is_random(triplet, x):
            raise Skip("the mean of a Sampler can only be estimated")
        values.append(_linear_parts(triplet, x, model.path.space, case.seed))
    for name, middle in values[2].items():
        first_value, second_value = (torch.as_tensor(value[name]).double() for value in values[:2])
        scale = torch.maximum(first_value.abs(), second_value.abs()).max()
        away = (torch.as_tensor(middle).double() - (first_value + second_value) / 2).abs().max()
        if not away <= 10 * CLOSE * scale:
            raise Failure(
                f"the {name} of {type(generator).__name__} is not affine in the prediction at t = {t:g}: that of an "
                f"average of predictions is off by {float(away / scale):.2g} of its size. Give a variance and not its "
                "root, rates and not their logarithms"
            )


def _kinds(model: Any, native: Any) -> Any:
    """What a network predicts, by factor on a product; skips unless it is known how to average some of it."""
    if isinstance(native, Mapping):
        kinds = {name: getattr(getattr(model, "models", {}).get(name), "kind", "") for name in native}
    else:
        kinds = model.kind
    leaves = list(native.values()) if isinstance(native, Mapping) else [native]
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise Skip(f"the network's output is no tensor but a {type(leaves[0]).__name__}")
    if not _KNOWN & set(kinds.values() if isinstance(kinds, Mapping) else [kinds]):
        raise Skip(f"how to average predictions of the kind {model.kind!r} is not known here")
    return kinds


def _another(native: Tensor, kind: str, seed: int) -> Tensor:
    """A made-up prediction; the same one where it is not known how to average."""
    if kind not in _KNOWN:
        return native
    noise = Draws(seed, len(native), stream=OTHER, device=native.device).normal(native.shape)
    return native.roll(1, 0) + noise.to(native.dtype)


def _linear_parts(triplet: Any, x: State, space: Any, seed: int) -> dict[str, Any]:
    """Drift, variance, and what the rates do to some functions: each is linear in the generator."""
    parts = {}
    for prefix, own, state in factors(triplet, x):
        parts |= {prefix + part: getattr(own, part) for part in own.parts & {"drift", "variance"}}
        if own.rates is not None:
            inner, rates = space.factors[prefix.removesuffix(": ")] if prefix else space, Triplet(rates=own.rates)
            functions = default_test_functions(inner, state, seed=seed).values()
            parts[f"{prefix}rates"] = torch.stack([rates.apply(f, state, inner).double() for f in functions])
    return parts


def _average(one: Tensor, other: Tensor, kind: str) -> Tensor:
    if kind == "tokens":
        return ((one.softmax(-1) + other.softmax(-1)) / 2).log()  # logits of the mean posterior
    return (one + other) / 2


def check_condition(case: Case) -> str:
    """What it is conditioned on makes a difference."""
    if not case.condition:
        raise Skip("there is no condition")
    used = dict.fromkeys(case.condition, False)
    for t in case.times:
        x, condition = case.states(t, ROWS)
        ours = tensors(case.operator(x, t, condition), x)
        for name, value in (condition or {}).items():
            theirs = tensors(case.operator(x, t, {**(condition or {}), name: value.roll(1, 0)}), x)
            used[name] |= any(not torch.equal(ours[part], theirs[part]) for part in ours)
            if torch.equal(value, value[:1].expand_as(value)):
                raise Skip(f"the first {len(value)} rows of condition {name!r} are alike")
    ignored = [name for name, makes_a_difference in used.items() if not makes_a_difference]
    if ignored:
        raise Failure(f"it ignores the condition {', '.join(map(repr, ignored))}")
    return ", ".join(used)


def check_compile(case: Case) -> str:
    """Its value compiles as one graph: no host reads, no decision by a tensor's value."""
    operator, t = case.operator, case.times[0]
    x, condition = case.states(t)
    instant = operator.instant(t, x)
    with torch.no_grad():
        operator.read(x, instant, operator.predict(x, instant, condition))  # derivatives are taken outside the graph

    def value(state: Any) -> dict[str, Tensor]:
        return tensors(operator.read(state, instant, operator.predict(state, instant, condition)), state)

    eager = value(x)
    try:
        compiled = torch.compile(value, fullgraph=True, backend="eager")(x)
    except Exception as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise Failure(f"it does not compile as one graph: {words[0]}") from None
    finally:
        torch.compiler.reset()
    for name, part in eager.items():
        if not all_close(part, compiled[name]):
            raise Failure(f"the {name} is another one when compiled")
    return "one graph"
