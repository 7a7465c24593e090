"""Tanh-sinh quadrature against antiderivatives, end-point singularities included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from closed_forms import F64
from hypothesis import given, settings
from hypothesis import strategies as st

from genmatch.quadrature import integrate


def number(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=F64)


@pytest.mark.parametrize(
    ("function", "lower", "upper", "expected"),
    [
        (torch.exp, 0.0, 1.0, math.e - 1),
        (torch.exp, 1.0, 0.0, 1 - math.e),
        (torch.ones_like, 0.3, 0.7, 0.4),
        (lambda t: t**7, -1.0, 2.0, (2**8 - 1) / 8),
        (lambda t: torch.cos(20 * t), 0.0, 1.0, math.sin(20) / 20),
        (lambda t: torch.sqrt(1 - t), 0.0, 1.0, 2 / 3),
        (lambda t: 1 / t.sqrt(), 0.0, 1.0, 2.0),
        (torch.log, 0.0, 1.0, -1.0),
        (lambda t: torch.log(t) ** 2, 0.0, 1.0, 2.0),
        (lambda t: 1 / (t * (1 + t)), 0.5, 1.0, math.log(3 / 2)),
    ],
)
def test_closed_forms(function, lower, upper, expected):
    got = float(integrate(function, number(lower), number(upper)))
    assert got == pytest.approx(expected, rel=2e-14, abs=2e-14)


def test_gauss_legendre_would_not_do():
    nodes, weights = np.polynomial.legendre.leggauss(141)
    assert abs((0.5 * weights / np.sqrt((nodes + 1) / 2)).sum() - 2) > 1e-3
    assert abs(float(integrate(lambda t: 1 / t.sqrt(), number(0.0), number(1.0))) - 2) < 1e-13


@pytest.mark.parametrize(
    ("function", "lower", "upper", "expected"),
    [
        (lambda t: 1 / torch.sqrt(1 - t), 0.0, 1.0, 2.0),
        (lambda t: 1 / torch.sqrt(t - 0.5), 0.5, 1.0, 2 * 0.5**0.5),
        (lambda t: 1 / torch.sqrt(1 - t), 1.0, 0.0, -2.0),
    ],
)
def test_a_singularity_away_from_zero_is_finite(function, lower, upper, expected):
    assert float(integrate(function, number(lower), number(upper))) == pytest.approx(expected, rel=3e-8)


def test_a_logarithm_away_from_zero():
    assert float(integrate(lambda t: torch.log1p(-t), number(0.0), number(1.0))) == pytest.approx(-1, rel=1e-13)


def test_vectors_of_limits_and_one_call():
    calls = []

    def function(t: torch.Tensor) -> torch.Tensor:
        calls.append(t.shape)
        return t**2

    lower, upper = torch.tensor([0.0, 1.0, 2.0], dtype=F64), torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    result = integrate(function, lower, upper)
    torch.testing.assert_close(result, torch.tensor([1 / 3, 0.0, -8 / 3], dtype=F64), rtol=1e-14, atol=1e-15)
    assert len(calls) == 1
    assert result.dtype == F64


@given(st.floats(-2, 2), st.floats(-2, 2), st.lists(st.floats(-3, 3), min_size=1, max_size=6))
@settings(max_examples=50)
def test_polynomials(a, b, coefficients):
    def value(t):
        return sum(c * t**k for k, c in enumerate(coefficients))

    def antiderivative(t):
        return sum(c * t ** (k + 1) / (k + 1) for k, c in enumerate(coefficients))

    got = integrate(lambda t: value(t) + 0 * t, number(a), number(b))
    assert float(got) == pytest.approx(antiderivative(b) - antiderivative(a), abs=1e-11)
