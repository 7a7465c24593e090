"""The triplet against derivatives by hand and jumps one by one; rates against their table."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from closed_forms import F64, fits
from hypothesis import given, settings
from hypothesis import strategies as st

from genmatch.random import Draws
from genmatch.rates import WHERE, WHETHER, Categorical, Rates
from genmatch.triplet import Triplet


def points(batch: int = 4) -> torch.Tensor:
    return Draws(1, batch).normal((batch, 2), F64)


def cubic(x: torch.Tensor) -> torch.Tensor:
    """x^2 y + 3 x - y^3."""
    return x[:, 0] ** 2 * x[:, 1] + 3 * x[:, 0] - x[:, 1] ** 3


def test_drift_is_the_derivative_along_it():
    x = points()
    drift = torch.stack([x[:, 1].sin(), 2 - x[:, 0]], 1)
    gradient = torch.stack([2 * x[:, 0] * x[:, 1] + 3, x[:, 0] ** 2 - 3 * x[:, 1] ** 2], 1)
    torch.testing.assert_close(Triplet(drift=drift).apply(cubic, x), (gradient * drift).sum(1))


@pytest.mark.parametrize("kind", ["full", "per sample", "number", "host"])
def test_variance_is_half_the_trace(kind: str):
    x = points()
    full = 0.5 + x**2
    variance = {"full": full, "per sample": full[:, :1], "number": torch.tensor(0.7, dtype=F64), "host": 0.7}[kind]
    curvature = torch.stack([2 * x[:, 1], -6 * x[:, 1]], 1)
    expected = 0.5 * (curvature * torch.as_tensor(variance)).sum(1)
    torch.testing.assert_close(Triplet(variance=variance).apply(cubic, x), expected)
    # Dropping the half, or taking the deviation for the variance, is seen.
    assert not torch.allclose(2 * expected, expected)
    assert not torch.allclose(Triplet(variance=torch.as_tensor(variance, dtype=F64).sqrt()).apply(cubic, x), expected)


def test_mixed_derivatives_do_not_enter():
    x = points()
    value = Triplet(variance=torch.ones_like(x)).apply(lambda y: y[:, 0] * y[:, 1], x)
    assert float(value.abs().max()) == 0


def test_states_of_any_shape():
    x = Draws(1, 3).normal((3, 2, 2), F64)
    drift, variance = 2 * x, x**2
    got = Triplet(drift, variance).apply(lambda y: (y**3).flatten(1).sum(1), x)
    torch.testing.assert_close(got, (3 * x**2 * drift + 3 * x * variance).flatten(1).sum(1))


def token_rates(seed: int, tokens: int = 3, shape: tuple[int, ...] = (4, 2)) -> Rates:
    draws = Draws(seed, shape[0])
    return Rates((1 + draws.uniform(shape, F64), draws.fork(1).normal((*shape, tokens), F64)))


def test_jumps_one_by_one():
    x = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])
    weights = torch.tensor([1.0, 10.0], dtype=F64)

    def square(y: torch.Tensor) -> torch.Tensor:
        return ((y + 1.0).to(F64) * weights).sum(1) ** 2

    rates = token_rates(0)
    term = rates.terms[0]
    expected = []
    for b in range(4):
        total = 0.0
        for i in range(2):
            odds = [math.exp(float(value)) for value in term.where.logits[b, i]]
            for token in range(3):
                landed = x.clone()
                landed[b, i] = token
                rate = float(term.total[b, i]) * odds[token] / sum(odds)
                total += rate * float(square(landed)[b] - square(x)[b])
        expected.append(total)
    got = Triplet(rates=rates).apply(square, x)
    assert got.tolist() == pytest.approx(expected, rel=1e-12)


def test_absent_parts_are_not_zeros():
    x = points()
    assert Triplet().parts == frozenset()
    assert float(Triplet().apply(cubic, x).abs().max()) == 0
    drift, variance = Triplet(drift=x), Triplet(variance=0.5)
    both = drift + variance
    assert both.parts == {"drift", "variance"}
    assert both.drift is x
    assert both.variance == 0.5
    assert (Triplet() + drift).drift is x
    assert (2.0 * drift).parts == {"drift"}
    assert Triplet(variance=torch.zeros(4, 1)).parts == {"variance"}
    with pytest.raises(TypeError, match="unsupported operand"):
        drift + 3


weights = st.floats(-3, 3)


@given(a=weights, b=weights)
@settings(max_examples=40)
def test_apply_is_linear(a: float, b: float):
    x = points()
    first = Triplet(drift=x.sin(), variance=0.3 + x**2)
    second = Triplet(drift=1 - x, variance=torch.full((4, 1), 0.8, dtype=F64))
    # Also where the difference has a negative variance: no generator, but still an operator.
    combined = (a * first + second * b).apply(cubic, x)
    torch.testing.assert_close(combined, a * first.apply(cubic, x) + b * second.apply(cubic, x), rtol=1e-9, atol=1e-9)


@given(a=st.floats(0, 3), b=st.floats(0, 3))
@settings(max_examples=40)
def test_apply_is_linear_in_rates(a: float, b: float):
    x = torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0]])

    def product(y: torch.Tensor) -> torch.Tensor:
        return ((y[:, 0] + 1) * (y[:, 1] + 2)).to(F64)

    first, second = Triplet(rates=token_rates(0)), Triplet(rates=token_rates(5))
    combined = (a * first + b * second).apply(product, x)
    expected = a * first.apply(product, x) + b * second.apply(product, x)
    torch.testing.assert_close(combined, expected, rtol=1e-9, atol=1e-9)


def test_a_standard_deviation_is_not_linear():
    # Why the second part is a variance: superposing standard deviations gives another operator.
    x = points()
    half = 0.5 * Triplet(variance=1.0) + 0.5 * Triplet(variance=4.0)
    of_deviations = Triplet(variance=(0.5 * 1 + 0.5 * 2) ** 2)
    assert not torch.allclose(half.apply(cubic, x), of_deviations.apply(cubic, x))


# Rates


def test_table_and_total():
    first, second = token_rates(0), token_rates(5)
    table = (first + 2.0 * second).table()
    expected = first.terms[0].total[..., None] * first.terms[0].where.logits.softmax(-1)
    expected = expected + 2 * second.terms[0].total[..., None] * second.terms[0].where.logits.softmax(-1)
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close((first + 2.0 * second).total(), expected.sum(-1))


def test_terms_with_the_same_logits_merge():
    logits = torch.randn(4, 2, 3)
    summed = Rates((torch.ones(4, 2), logits)) + Rates((2 * torch.ones(4, 2), logits))
    assert len(summed.terms) == 1
    assert torch.equal(summed.terms[0].total, 3 * torch.ones(4, 2))
    assert summed.terms[0].where.logits is logits
    assert len((summed + Rates((torch.ones(4, 2), logits.clone()))).terms) == 2
    plain = Rates((1.0, logits)).terms[0]  # host totals, plain pairs
    assert plain.total == 1.0
    assert isinstance(plain.where, Categorical)
    assert plain.where.logits is logits


class Given:
    """Draws with given uniforms: the first for whether and which term, the second for where."""

    def __init__(self, *numbers: torch.Tensor) -> None:
        self.numbers = dict(zip((WHETHER, WHERE), numbers, strict=True))

    def fork(self, stream: int):
        return SimpleNamespace(uniform=lambda shape: self.numbers[stream])


def land(rates: Rates, term: torch.Tensor, where: torch.Tensor, *, dense: bool) -> torch.Tensor:
    """Where each position lands when all jump, by drawing the rows that jump or all of them."""
    x = torch.full(term.shape, -1.0, requires_grad=dense)
    return rates.leap(x, 1e12, cast(Draws, Given(term, where))).detach().long()


@pytest.fixture(params=[True, False], ids=["dense", "sparse"])
def dense(request) -> bool:
    return request.param


def grid_uniforms(count: int) -> torch.Tensor:
    return (torch.arange(count) + 0.5) / count


def test_landing_follows_the_logits(dense: bool):
    # On a grid of uniforms the counts are right to one: nothing random about it.
    count, logits = 10_000, torch.tensor([0.3, -1.0, 2.0, 0.0, -0.5])
    rates = Rates((torch.ones(count), logits.expand(count, 5)))
    landed = land(rates, torch.rand(count), grid_uniforms(count), dense=dense)
    counts = torch.bincount(landed, minlength=5)
    assert float((counts - count * logits.softmax(-1)).abs().max()) <= 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_landing_on_probability_zero(dtype: torch.dtype, dense: bool):
    minus = -math.inf
    for logits in ([minus, 0, 1, minus, 2, minus], [0, minus, minus], [minus, minus, 3.0], [0, minus, 200.0, minus]):
        allowed = {i for i, v in enumerate(logits) if v > minus}
        # The last one is below 1, but not in float32.
        edge = torch.tensor(
            [0.0, 2.0**-24, 0.5, *Draws(0, 1).uniform((1, 500))[0], 1 - 2.0**-24, 1 - 2.0**-32], dtype=F64
        )
        table = torch.tensor(logits, dtype=dtype).expand(len(edge), len(logits))
        landed = land(Rates((torch.ones(len(edge)), table)), torch.zeros(len(edge)), edge, dense=dense)
        assert set(landed.tolist()) <= allowed


def test_half_precision_logits_keep_their_law(dense: bool):
    # A distribution function over 1,000 values summed in bfloat16 would stop growing half way.
    count, size = 4_000, 1_000
    logits = torch.zeros(size, dtype=torch.bfloat16)
    landed = land(
        Rates((torch.ones(count), logits.expand(count, size))),
        torch.zeros(count),
        grid_uniforms(count),
        dense=dense,
    )
    assert int(torch.bincount(landed, minlength=size).max()) <= 6


def test_several_terms_are_chosen_by_their_totals(dense: bool):
    count = 40_000
    draws = Draws(3, count)
    totals = [0.5, 0.0, 2.0, 1.5]
    logits = Draws(9, 4).normal((4, 3))
    rates = Rates(*((torch.full((count,), r), v.expand(count, 3)) for r, v in zip(totals, logits, strict=True)))
    landed = land(rates, draws.fork(1).uniform((count,)), draws.fork(2).uniform((count,)), dense=dense)
    counts = torch.bincount(landed, minlength=3)
    assert fits(counts, sum(r * v.softmax(-1) for r, v in zip(totals, logits, strict=True)))
    assert not fits(counts, sum(v.softmax(-1) for v in logits))  # terms chosen alike, whatever their totals


def test_a_term_of_rate_zero_is_never_chosen(dense: bool):
    edge = torch.tensor([0.0, 2.0**-24, 0.3, 1 - 2.0**-24])
    one, other = torch.tensor([0.0, -math.inf]).expand(4, 2), torch.tensor([-math.inf, 0.0]).expand(4, 2)
    for totals, expected in (((0.0, 1.0), 1), ((1.0, 0.0), 0), ((1.1, 0.0), 0)):
        rates = Rates(*((torch.full((4,), t), v) for t, v in zip(totals, (one, other), strict=True)))
        assert land(rates, edge, edge, dense=dense).tolist() == [expected] * 4


def test_an_infinite_rate_takes_all(dense: bool):
    one, other = torch.tensor([0.0, -math.inf]).expand(4, 2), torch.tensor([-math.inf, 0.0]).expand(4, 2)
    u = torch.tensor([0.0, 0.2, 0.9, 1 - 2.0**-24])
    certain = Rates((torch.full((4,), math.inf), one), (torch.ones(4), other))
    assert land(certain, u, u, dense=dense).tolist() == [0, 0, 0, 0]
    both = Rates((torch.full((4,), math.inf), one), (torch.full((4,), math.inf), other))
    assert land(both, u, u, dense=dense).tolist() == [0, 0, 1, 1]  # two infinite rates share alike
