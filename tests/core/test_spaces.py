"""Moves: their exact law on R^d and on tokens, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, fits
from scipy import stats

from genmatch.random import Draws
from genmatch.rates import Rates
from genmatch.spaces import Euclidean, Tokens
from genmatch.triplet import Triplet

RARE = 1e-4
PLANE = Euclidean()


# R^d


def test_a_drift_moves_by_itself():
    x, drift = Draws(1, 5).normal((5, 3), F64), Draws(2, 5).normal((5, 3), F64)
    assert torch.equal(PLANE.move(x, Triplet(drift=drift), 0.25, Draws(3, 5)), x + 0.25 * drift)
    assert PLANE.move(x, Triplet(), 0.25, Draws(3, 5)) is x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_states_are_finite_where_every_value_is(dtype: torch.dtype):
    largest = torch.finfo(dtype).max
    for values in ([], [0.0], [1.0, -2.0], [largest, largest], [largest] * 100 + [-largest] * 100):
        PLANE.check(torch.tensor(values, dtype=dtype).reshape(-1, 1))
    for values in ([math.nan], [math.inf], [math.inf, -math.inf], [largest, largest, -math.inf], [1.0, math.nan]):
        bad = sum(not math.isfinite(v) for v in values)
        with pytest.raises(ValueError, match=f"{bad} non-finite values of {len(values)}"):
            PLANE.check(torch.tensor(values, dtype=dtype).reshape(-1, 1))


@pytest.mark.parametrize("kind", ["host", "0-d", "per sample", "full"])
def test_noise_has_the_variance_times_the_time(kind: str):
    n, h = 30_000, 0.3
    x = torch.zeros(n, 2, dtype=F64)
    full = torch.tensor([0.5, 2.0], dtype=F64).expand(n, 2)
    variance = {"host": 1.3, "0-d": torch.tensor(1.3), "per sample": full[:, :1], "full": full}[kind]
    y = PLANE.move(x, Triplet(drift=torch.ones_like(x), variance=variance), h, Draws(4, n)) - h
    expected = h * torch.as_tensor(variance, dtype=F64).expand(n, 2)[0]
    for i in range(2):
        assert stats.kstest((y[:, i] / expected[i] ** 0.5).numpy(), "norm").pvalue > RARE
        assert stats.kstest((y[:, i] / (expected[i] * h) ** 0.5).numpy(), "norm").pvalue < RARE  # h for sqrt(h)
    assert abs(float(torch.corrcoef(y.T)[0, 1])) < 4.5 / n**0.5


def test_given_noise_is_used_and_missing_noise_is_the_brownian():
    x, triplet = torch.zeros(4, 3), Triplet(variance=4.0)
    noise = Draws(8, 4).normal((4, 3))
    assert torch.equal(PLANE.move(x, triplet, 0.25, Draws(1, 4), noise), noise)
    draws = Draws(1, 4).at(3)
    assert torch.equal(PLANE.move(x, triplet, 0.25, draws), PLANE.brownian(x, draws))
    # Shared between the stages of a step: asking again gives the same.
    assert torch.equal(PLANE.brownian(x, draws), PLANE.brownian(x, draws))
    assert not torch.equal(PLANE.brownian(x, draws), PLANE.brownian(x, draws.at(4)))
    assert PLANE.brownian(x.double(), draws).dtype == F64


def test_zero_variance_is_no_noise():
    x = torch.ones(4, 3)
    assert torch.equal(PLANE.move(x, Triplet(variance=torch.zeros(4, 1)), 0.25, Draws(1, 4)), x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, r"must be floating point, got torch.int64: call .float\(\)"),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError, "must be floating point"),
        (torch.tensor(1.0), ValueError, r"a state has shape \(B, \*S\), got a scalar"),
        (
            torch.tensor([[1.0, math.nan], [math.inf, 0.0]]),
            ValueError,
            "2 non-finite values of 4: check the data for NaN",
        ),
    ],
    ids=["int", "bool", "scalar", "nan"],
)
def test_what_is_no_state_of_the_plane(x, error, message):
    with pytest.raises(error, match=message):
        PLANE.check(x)


def test_states_of_the_plane():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, F64):
        PLANE.check(torch.zeros(2, 3, dtype=dtype))
    PLANE.check(torch.zeros(2))
    PLANE.check(torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("triplet", "message"),
    [
        (Triplet(drift=torch.zeros(3)), r"a drift has the shape \(3, 3\) of the state, got \(3,\)"),
        (Triplet(drift=torch.zeros(1, 3)), "a drift has the shape"),
        (Triplet(drift=torch.zeros(2, 3, 3)), "a drift has the shape"),
        (Triplet(variance=torch.ones(3)), r"got \(3,\): it would be read along a feature"),
        (Triplet(variance=-0.5), "a variance must be at least 0, got -0.5"),
    ],
    ids=["row", "broadcast", "extra", "batch of variances", "negative"],
)
def test_parts_of_the_wrong_shape(triplet, message):
    with pytest.raises(ValueError, match=message):
        PLANE.move(torch.zeros(3, 3), triplet, 0.1, Draws(0, 3))


# Tokens

WORDS = Tokens(4)


def certain(token: int, *shape: int) -> torch.Tensor:
    logits = torch.full((*shape, 4), -math.inf)
    logits[..., token] = 0
    return logits


@pytest.mark.parametrize(("rate", "h"), [(1.0, 1.0), (0.05, 2.0), (3.0, 0.7)])
def test_the_probability_of_a_jump(rate: float, h: float):
    n = 20_000
    x = torch.zeros(n, 2, dtype=torch.int64)
    y = WORDS.move(x, Triplet(rates=Rates((torch.full((n, 2), rate), certain(3, n, 2)))), h, Draws(5, n))
    jumped = int((y == 3).sum())
    assert int((y == 0).sum()) + jumped == 2 * n
    assert stats.binomtest(jumped, 2 * n, 1 - math.exp(-h * rate)).pvalue > RARE
    assert stats.binomtest(jumped, 2 * n, min(1.0, h * rate)).pvalue < RARE  # the first-order probability is not it
    both = int((y == 3).all(1).sum())  # positions jump on their own
    assert stats.binomtest(both, n, (1 - math.exp(-h * rate)) ** 2).pvalue > RARE


def test_the_law_of_a_move():
    n, h = 60_000, 0.8
    logits = torch.tensor([[0.5, -0.3, 1.0, 0.0], [0.0, 2.0, -1.0, 0.3]])
    totals = [0.9, 0.4]
    x = torch.ones(n, dtype=torch.int64)
    rates = Rates(*((torch.full((n,), r), v.expand(n, 4)) for r, v in zip(totals, logits, strict=True)))
    y = WORDS.move(x, Triplet(rates=rates), h, Draws(6, n))
    where = (0.9 * logits[0].softmax(-1) + 0.4 * logits[1].softmax(-1)).double() / 1.3
    expected = (1 - math.exp(-1.3 * h)) * where
    expected[1] += math.exp(-1.3 * h)
    counts = torch.bincount(y, minlength=4)
    assert fits(counts, expected)
    # Self-jumps are no-ops: excluding them while keeping the total would jump too often.
    wrong = where.clone()
    wrong[1] = 0
    wrong = (1 - math.exp(-1.3 * h)) * wrong / wrong.sum()
    wrong[1] += math.exp(-1.3 * h)
    assert not fits(counts, wrong)


def test_whether_and_where_are_independent():
    # One uniform for both would make those that jump land low: whether < chance.
    n = 40_000
    x = torch.full((n,), 4)
    rates = Rates((torch.full((n,), 0.2), torch.zeros(n, 4)))
    y = Tokens(4, (4,)).move(x, Triplet(rates=rates), 1.0, Draws(7, n))
    counts = torch.bincount(y[y < 4], minlength=4)
    assert int(counts.sum()) > 5_000
    assert fits(counts, torch.ones(4))


def test_infinite_and_zero_rates():
    x = torch.zeros(1_000, 3, dtype=torch.int32)
    rates = torch.tensor([math.inf, 0.0, 1e30]).expand(1_000, 3)
    y = WORDS.move(x, Triplet(rates=Rates((rates, certain(2, 1_000, 3)))), 0.1, Draws(8, 1_000))
    assert y.dtype == x.dtype
    assert bool((y == torch.tensor([2, 0, 2])).all())
    assert WORDS.move(x, Triplet(), 0.1, Draws(8, 1_000)) is x


def test_moves_do_not_depend_on_the_batch():
    x = Draws(1, 64).integers((64, 5), 4)
    rates, logits = Draws(2, 64).uniform((64, 5)), Draws(3, 64).normal((64, 5, 4))
    whole = WORDS.move(x, Triplet(rates=Rates((rates, logits))), 0.9, Draws(4, 64))
    for first in range(0, 64, 7):
        rows = slice(first, min(first + 7, 64))
        part = Triplet(rates=Rates((rates[rows], logits[rows])))
        draws = Draws(4, rows.stop - first, first_index=first)
        assert torch.equal(WORDS.move(x[rows], part, 0.9, draws), whole[rows])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, r"tokens must be integers, got torch.float32: call .long\(\)"),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError, "tokens must be integers"),
        (torch.tensor(1), ValueError, "got a scalar"),
        (torch.tensor([[0, 4]]), ValueError, r"tokens must be in \[0, 4\) or 7, 9, got 4: is the vocabulary"),
        (torch.tensor([[0, -1]]), ValueError, "got -1"),
        (torch.tensor([[0, 8]], dtype=torch.uint8), ValueError, "got 8"),
    ],
    ids=["float", "bool", "scalar", "outside", "negative", "byte"],
)
def test_what_is_no_sequence_of_tokens(x, error, message):
    with pytest.raises(error, match=message):
        Tokens(4, (7, 9)).check(x)


def test_sequences_of_tokens():
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        Tokens(4, (7, 9)).check(torch.tensor([[0, 3, 7, 9]], dtype=dtype))
    Tokens(4, (-1,)).check(torch.tensor([[0, -1]]))
    with pytest.raises(TypeError, match="tokens have no Brownian noise"):
        WORDS.brownian(torch.zeros(2, 3, dtype=torch.int64), Draws(0, 2))


def test_spaces_compare_by_value():
    assert Euclidean() == Euclidean()
    assert Tokens(4, (7,)) == Tokens(4, (7,)) != Tokens(4)
    assert hash(Tokens(4)) == hash(Tokens(4))
    assert Euclidean() != Tokens(4)
