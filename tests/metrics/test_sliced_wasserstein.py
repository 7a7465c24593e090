"""Sliced Wasserstein-2: exact transport in one dimension, expectations over directions in more."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import genmatch as gm
from genmatch.metrics import transport

SLICED = gm.metrics.sliced_wasserstein


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 1000))
def test_one_dimension_is_optimal_transport(n: int, m: int, seed: int):
    x, y = normal(n, seed=seed), normal(m, seed=seed + 5000)
    # Each point repeated until both sets are equally large, then an assignment that knows nothing of sorting.
    cost = (x.repeat_interleave(m)[:, None] - y.repeat_interleave(n)).square()
    row, column = linear_sum_assignment(cost.numpy())
    assert SLICED(x, y, projections=3).squared == pytest.approx(float(cost[row, column].mean()), rel=1e-9)


def test_gaussians_in_one_dimension():
    # W2^2 = (m1 - m2)^2 + (s1 - s2)^2, with midpoint quantiles in place of samples.
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x = torch.special.ndtri(levels)
    result = SLICED(x, 0.7 + 1.5 * x[::2], projections=2)
    assert result.squared == pytest.approx(0.7**2 + 0.5**2, rel=1e-3)
    assert result.value == math.sqrt(result.squared)
    assert result.standard_error == pytest.approx(0, abs=1e-12)


def test_isotropic_gaussians():
    # Each shadow is N(theta . m, c^2), and the mean of (theta . m)^2 is |m|^2 / d.
    m = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x, y = normal(8000, 3), m + 1.5 * normal(6000, 3, seed=1)
    result = SLICED(x, y, projections=300)
    expected = float(m.square().sum()) / 3 + 0.25
    assert result.squared == pytest.approx(expected, abs=4 * result.standard_error + 0.03)
    assert result.standard_error < 0.08 * expected


def test_a_translation_and_its_standard_error():
    # Sample against shifted self: W2^2 of each shadow is (theta . v)^2 exactly; over the sphere in d dimensions its
    # mean is |v|^2 / d and its variance |v|^4 (3 / (d (d + 2)) - 1 / d^2).
    d, count, x = 4, 4000, normal(30, 4)
    v = torch.tensor([2.0, 0, 0, 0], dtype=torch.float64)
    result = SLICED(x, x + v, projections=count)
    error = math.sqrt(16 * (3 / (d * (d + 2)) - 1 / d**2) / count)
    assert result.standard_error == pytest.approx(error, rel=0.05)
    assert result.squared == pytest.approx(4 / d, abs=4 * error)
    # Directions that were not normalised would have means d times as large.
    assert 4 - 4 / d > 8 * error


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-5, 5), n=st.integers(1, 9))
def test_invariances(seed: int, scale: float, shift: float, n: int):
    x, y = normal(n, 3, seed=seed), normal(7, 3, seed=seed + 5000)
    value = SLICED(x, y, projections=8).value
    assert SLICED(y, x, projections=8).value == pytest.approx(value, rel=1e-9)
    moved = SLICED(scale * x + shift, scale * y + shift, projections=8).value
    assert moved == pytest.approx(scale * value, rel=1e-6, abs=1e-9)
    assert SLICED(x, x.flip(0), projections=8).value == pytest.approx(0, abs=1e-12)
    assert SLICED(x, x.repeat(3, 1), projections=8).value == pytest.approx(0, abs=1e-12)  # the law counts


def test_rotations_change_the_directions_only():
    x, y = normal(300, 3), normal(200, 3, seed=1) * torch.tensor([1.0, 2.0, 3.0])
    turn = torch.linalg.qr(normal(3, 3)).Q
    before, after = SLICED(x, y, projections=500), SLICED(x @ turn, y @ turn, projections=500)
    assert after.squared == pytest.approx(before.squared, abs=5 * (before.standard_error + after.standard_error))


def test_seeds_and_blocks(monkeypatch: pytest.MonkeyPatch):
    x, y = normal(20, 2, 2), normal(30, 2, 2, seed=1)
    whole = SLICED(x, y, projections=16)
    assert SLICED(x.flatten(1), y.flatten(1), projections=16) == whole
    assert SLICED(x, y, projections=16, seed=1) != whole
    state = torch.get_rng_state()
    SLICED(x, y)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(transport, "BLOCK", 150)
    assert SLICED(x, y, projections=16) == pytest.approx(whole, rel=1e-12)
    assert math.isnan(SLICED(x, y, projections=1).standard_error)


def test_bad_input():
    x = normal(5, 2)
    with pytest.raises(ValueError, match="2 and 1 coordinates"):
        SLICED(x, x[:, :1])
    with pytest.raises(ValueError, match="y has 0 samples, needs at least 1"):
        SLICED(x, x[:0])
    with pytest.raises(ValueError, match="x holds 10 non-finite"):
        SLICED(x * math.nan, x)
    with pytest.raises(ValueError, match="projections must be at least 1, got 0"):
        SLICED(x, x, projections=0)
    with pytest.raises(TypeError, match="projections must be an integer, got bool"):
        SLICED(x, x, projections=True)
