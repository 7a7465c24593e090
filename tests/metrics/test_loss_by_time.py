"""Loss by time bin, counted by hand and against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import genmatch as gm

BY_TIME = gm.metrics.loss_by_time


def test_by_hand():
    t = torch.tensor([0.0, 0.1, 0.25, 0.74, 0.75, 1.0])
    losses = torch.tensor([1.0, 3.0, 5.0, 7.0, 2.0, 6.0])
    result = BY_TIME(losses, t, bins=4)
    assert result.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert result.count.tolist() == [2, 1, 1, 2]
    assert result.mean.tolist() == [2, 5, 7, 4]  # an edge belongs to the bin above it, and 1 to the last
    assert result.standard_error[[0, 3]].tolist() == [1, 2]  # a deviation of sqrt 2 and sqrt 8, over sqrt 2
    assert result.standard_error[[1, 2]].isnan().all()


def test_empty_bins_are_nan_with_count_zero():
    result = BY_TIME(torch.tensor([1.0, 2.0]), torch.tensor([0.05, 0.95]))
    assert result.count.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert result.mean[1:9].isnan().all()
    assert result.standard_error.isnan().all()
    assert result.mean[[0, 9]].tolist() == [1, 2]


@given(count=st.integers(1, 60), bins=st.integers(1, 7), seed=st.integers(0, 100))
def test_against_a_loop(count: int, bins: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    losses, t = torch.rand(2, count, generator=generator, dtype=torch.float64) + torch.tensor([[1e6], [0.0]])
    result = BY_TIME(losses, t, bins=bins)
    assert int(result.count.sum()) == count
    for i in range(bins):
        part = losses[(t >= result.edges[i]) & (t < result.edges[i + 1])]
        assert int(result.count[i]) == len(part)
        if len(part) > 1:
            assert float(result.mean[i]) == pytest.approx(float(part.mean()), rel=1e-14)
            assert float(result.standard_error[i]) == pytest.approx(float(part.std()) / math.sqrt(len(part)), rel=1e-6)
    total = (result.mean.nan_to_num() * result.count).sum() / count
    assert float(total) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_given_edges_and_gradients():
    losses = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    result = BY_TIME(losses, torch.tensor([0.1, 0.5, 0.9]), bins=torch.tensor([0.0, 0.8, 0.9]))
    assert result.mean.tolist() == [1.5, 3]
    assert not result.mean.requires_grad
    assert result.mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("losses", "t", "bins", "error", "message"),
    [
        (torch.ones(3), torch.ones(2), 10, ValueError, r"both have shape \(B,\), got \(3,\) and \(2,\)"),
        (torch.ones(3, 1), torch.ones(3, 1), 10, ValueError, r"got \(3, 1\) and \(3, 1\)"),
        (torch.ones(0), torch.ones(0), 10, ValueError, r"got \(0,\)"),
        (torch.ones(2), torch.tensor([0.5, 1.5]), 10, ValueError, r"1 of 2 times lie outside of \[0, 1\]"),
        (torch.ones(2), torch.tensor([0.5, 0.1]), torch.tensor([0.2, 1.0]), ValueError, r"1 of 2 .* \[0.2, 1\]"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), 10, ValueError, "losses holds 1 non-finite"),
        (torch.ones(2), torch.tensor([0.0, math.nan]), 10, ValueError, "t holds 1 non-finite"),
        (torch.ones(2), torch.ones(2), 0, ValueError, "bins must be at least 1, got 0"),
        (torch.ones(2), torch.ones(2), 2.5, TypeError, "bins must be an integer, got float"),
        (torch.ones(2), torch.ones(2), torch.tensor([0.0, 1.0, 0.5]), ValueError, "edges that rise"),
        (torch.ones(2), torch.ones(2), torch.tensor([0.0]), ValueError, r"got shape \(1,\)"),
        ([1.0], torch.ones(1), 10, TypeError, "losses must be a tensor, got list"),
    ],
)
def test_bad_input(losses: object, t: object, bins: object, error: type, message: str):
    with pytest.raises(error, match=message):
        BY_TIME(losses, t, bins)
