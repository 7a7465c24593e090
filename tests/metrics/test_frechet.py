"""Frechet distances against closed forms for known covariances, and moments in a stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import genmatch as gm

FRECHET, INFINITY, Moments = gm.metrics.frechet, gm.metrics.frechet_infinity, gm.metrics.Moments


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(mean: list[float], covariance: list[list[float]]) -> gm.metrics.Moments:
    return Moments(0, torch.tensor(mean, dtype=torch.float64), torch.tensor(covariance, dtype=torch.float64))


def spread(width: int, seed: int) -> Tensor:
    factor = normal(width, width + 2, seed=seed)
    return factor @ factor.T


def test_commuting_covariances():
    # Diagonal: coordinates apart, each |m1 - m2|^2 + (s1 - s2)^2.
    first = exact([0, 1, 2], torch.diag(torch.tensor([1.0, 4, 9])).tolist())
    second = exact([1, 1, 0], torch.diag(torch.tensor([4.0, 0.25, 9])).tolist())
    result = FRECHET(first, second)
    assert result.mean_term == 5
    assert result.covariance_term == pytest.approx(1 + 1.5**2)
    assert result.value == pytest.approx(5 + 3.25)
    assert (result.samples, result.dimension) == ((0, 0), 3)


@pytest.mark.parametrize("seed", range(5))
def test_two_dimensions_by_hand(seed: int):
    # A 2 x 2 matrix M with positive eigenvalues has tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)); M = C1 C2 here.
    a, b = spread(2, seed), spread(2, seed + 100)
    root_trace = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.linalg.det(a) * torch.linalg.det(b))))
    expected = float(a.trace() + b.trace()) - 2 * root_trace
    zero = torch.zeros(2, dtype=torch.float64)
    assert FRECHET(Moments(0, zero, a), Moments(0, zero, b)).value == pytest.approx(expected, rel=1e-10)
    # Without the cross term, or with the roots multiplied without noticing that they do not commute, it is another.
    assert float(a.trace() + b.trace()) > expected + 0.1
    naive = float((scipy.linalg.sqrtm(a.numpy()) - scipy.linalg.sqrtm(b.numpy())).__pow__(2).sum())
    assert naive > expected + 1e-4


def test_many_dimensions_by_the_matrix_root():
    a, b, shift = spread(20, 0), spread(20, 1), normal(20)
    root = scipy.linalg.sqrtm((a @ b).numpy())
    expected = float(shift.square().sum() + a.trace() + b.trace()) - 2 * float(np.trace(root).real)
    zero = torch.zeros(20, dtype=torch.float64)
    assert FRECHET(Moments(0, zero, a), Moments(0, shift, b)).value == pytest.approx(expected, rel=1e-9)


def test_singular_covariances():
    # C1 = v v^T and C2 = w w^T: the trace of the root is |v . w|.
    v, w, zero = normal(30), normal(30, seed=1), torch.zeros(30, dtype=torch.float64)
    result = FRECHET(Moments(0, zero, torch.outer(v, v)), Moments(0, zero, torch.outer(w, w)))
    expected = float(v @ v + w @ w) - 2 * abs(float(v @ w))
    assert result.value == pytest.approx(expected, rel=1e-10)
    points = Moments(0, zero, torch.zeros(30, 30, dtype=torch.float64))
    assert FRECHET(points, Moments(0, zero, torch.outer(w, w))).value == pytest.approx(float(w @ w))
    assert FRECHET(points, points).value == 0


def test_fewer_samples_than_features():
    # Against the dual form: the nuclear norm of the cross product of the centred samples, which needs no root.
    x, y = normal(10, 60), normal(15, 60, seed=1) * 2
    centred = [(z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y)]
    nuclear = float(torch.linalg.svdvals(centred[0] @ centred[1].T).sum())
    traces = sum(float(z.square().sum()) for z in centred)
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + traces - 2 * nuclear
    assert FRECHET(x, y).value == pytest.approx(expected, rel=1e-10)
    assert FRECHET(x, x.clone()).value == pytest.approx(0, abs=1e-10)


def test_samples_use_the_unbiased_covariance():
    x, y = normal(50, 3), normal(40, 3, seed=1) * 2 + 1
    result = FRECHET(x, y)
    first = Moments(50, torch.from_numpy(x.numpy().mean(0)), torch.from_numpy(np.cov(x.numpy(), rowvar=False)))
    assert FRECHET(first, y)[:3] == pytest.approx(result[:3], rel=1e-9)
    assert result.samples == (50, 40)
    assert result.value == result.mean_term + result.covariance_term


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-10, 10), n=st.integers(2, 12))
def test_invariances(seed: int, scale: float, shift: float, n: int):
    x, y = normal(n, 4, seed=seed), normal(8, 4, seed=seed + 5000) * 2 + 1
    turn = torch.linalg.qr(normal(4, 4, seed=seed)).Q
    value = FRECHET(x, y).value
    assert value >= 0
    assert FRECHET(y, x).value == pytest.approx(value, rel=1e-8)
    assert FRECHET(*(scale * z @ turn + shift for z in (x, y))).value == pytest.approx(scale**2 * value, rel=1e-6)
    assert FRECHET(x, x.clone()).value == pytest.approx(0, abs=1e-10)


# Moments


@given(cuts=st.lists(st.integers(1, 49), max_size=5, unique=True))
def test_moments_in_a_stream(cuts: list[int]):
    x = normal(50, 3) * torch.tensor([1.0, 10, 100])
    parts = [part for part in torch.tensor_split(x, sorted(cuts)) if len(part)]
    moments = Moments.of(parts[0])
    for part in parts[1:]:
        moments = moments.update(part)
    assert moments.count == 50
    assert torch.allclose(moments.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    assert torch.allclose(moments.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-10)


def test_a_far_mean_costs_no_precision():
    x = normal(1000, 2)
    far = Moments.of(x[:400] + 1e6) + Moments.of(x[400:] + 1e6)
    assert torch.allclose(far.covariance, torch.cov(x.T), rtol=1e-8)
    # E x x^T - m m^T, the short way, has lost eight digits of sixteen and more.
    square = ((x + 1e6).T @ (x + 1e6) / 1000 - torch.outer((x + 1e6).mean(0), (x + 1e6).mean(0))) * (1000 / 999)
    assert not torch.allclose(square, torch.cov(x.T), rtol=1e-6)


def test_moments_by_a_network_in_batches():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    network[2].eval()  # a module that was left in another mode than the rest comes back in it
    x = normal(25, 3, 2, 2).float()
    whole = Moments.of(x, network, batch_size=25)
    parts = Moments.of(x, network, batch_size=7)
    assert torch.allclose(whole.covariance, parts.covariance, rtol=1e-6)  # neither dropout nor batch statistics
    assert [module.training for module in network.modules()] == [True, True, True, False, True]
    direct = network.eval()(x).detach()
    assert torch.allclose(whole.mean, direct.double().mean(0), rtol=1e-5, atol=1e-7)
    y = normal(30, 3, 2, 2, seed=1).float()
    assert FRECHET(x, y, network).value == pytest.approx(FRECHET(direct, network(y).detach()).value, rel=1e-4)
    assert FRECHET(whole, y, network).value == pytest.approx(FRECHET(x, y, network).value, rel=1e-5)
    assert not whole.mean.requires_grad


def test_the_mode_comes_back_after_an_error():
    network = nn.Sequential(nn.Linear(5, 3))
    with pytest.raises(RuntimeError):
        Moments.of(torch.zeros(4, 2), network)
    assert network.training
    assert network[0].training


def test_integer_samples_may_go_through_a_network():
    tokens = torch.arange(12).reshape(6, 2)
    moments = Moments.of(tokens, lambda batch: batch.float() * 2)
    assert moments.mean.tolist() == [10.0, 12.0]


# Extrapolation


def test_extrapolation_removes_the_bias():
    # x and y have one law, so the distance is 0 and what is measured is bias.
    width, reference = 6, Moments(0, torch.zeros(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64))
    plain, extrapolated = [], []
    for seed in range(120):
        result = INFINITY(normal(600, width, seed=seed), reference, seed=seed)
        plain.append(result.distances[0])
        extrapolated.append(result.value)
    # To first order in 1/n each mean gives 1/n, each standard deviation 1/2n, each pair of features 1/2n.
    bias = (width + width / 2 + width * (width - 1) / 4) / 600
    assert sum(plain) / 120 == pytest.approx(bias, rel=0.1)
    left, error = sum(extrapolated) / 120, float(torch.tensor(extrapolated).std()) / math.sqrt(120)
    assert abs(left) < 4 * error < 0.15 * bias


def test_extrapolation_reports_what_it_fitted():
    x, y = normal(500, 2), normal(400, 2, seed=1) + 1
    result = INFINITY(x, y, parts=4)
    assert result.samples == (500, 250, 166, 125)
    assert result.distances[0] == pytest.approx(FRECHET(x, y).value, rel=1e-12)
    slope, intercept = np.polyfit([1, 2, 3, 4], result.distances, 1)
    assert result.value == pytest.approx(float(intercept), rel=1e-9)
    assert slope != 0
    assert INFINITY(x, y, parts=4) == result
    assert INFINITY(x, y, parts=4, seed=1) != result
    assert INFINITY(x[:, None], y[:, None], lambda z: z[:, 0], parts=4).value == pytest.approx(result.value)


# Bad input


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ("inception", TypeError, "x must be a tensor or Moments, got str"),
        (torch.zeros(5, 1, 8, 8), ValueError, r"features of shape \(n, d\), got \(5, 1, 8, 8\): .*flatten\(1\)"),
        (torch.zeros(1, 3), ValueError, "x has 1 sample, needs at least 2"),
        (torch.zeros(5, 4), ValueError, "4 and 3 coordinates"),
        (torch.full((5, 3), math.inf), ValueError, "x holds 15 non-finite"),
        (torch.zeros(5, 3).int(), TypeError, "floating point, got torch.int32"),
    ],
)
def test_bad_features(x: object, error: type, message: str):
    with pytest.raises(error, match=message):
        FRECHET(x, torch.randn(6, 3))


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ("inception", TypeError, r"features must map a batch to \(B, d\) features, got str"),
        (lambda x: x[:2], ValueError, r"must return \(4, d\) for 4 samples, got \(2, 3\)"),
        (lambda x: x[:, None], ValueError, r"must return \(4, d\) for 4 samples, got \(4, 1, 3\)"),
        (lambda x: None, ValueError, r"must return \(4, d\) for 4 samples, got NoneType"),
        (lambda x: x / 0, ValueError, "features of x holds 12 non-finite"),
        (lambda x: x.int(), TypeError, "features of x must be floating point, got torch.int32"),
    ],
)
def test_bad_networks(features: object, error: type, message: str):
    with pytest.raises(error, match=message):
        FRECHET(torch.ones(4, 3), torch.ones(4, 3), features)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 2), r"mean \(d,\) and a covariance \(d, d\), got \(3,\) and \(2, 2\)"),
        (torch.zeros(3, 1), torch.zeros(3, 3), r"got \(3, 1\) and \(3, 3\)"),
        (torch.zeros(2), -torch.eye(2), "no negative variance, got -1"),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "symmetric, got one that differs .* by 0.5"),
        (torch.zeros(2), torch.full((2, 2), math.nan), "covariance holds 4 non-finite"),
    ],
)
def test_bad_moments(mean: Tensor, covariance: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        Moments(10, mean, covariance)


def test_bad_settings():
    x = normal(30, 3)
    with pytest.raises(ValueError, match=r"exact moments \(count=0\) cannot be added"):
        exact([0], [[1]]) + exact([0], [[1]])
    with pytest.raises(TypeError, match="unsupported operand"):
        Moments.of(x) + x
    with pytest.raises(ValueError, match="count must be at least 0, got -1"):
        Moments(-1, torch.zeros(1), torch.ones(1, 1))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        FRECHET(x, x, batch_size=0)
    with pytest.raises(ValueError, match="5 parts of 30 samples have 6 each, which 3 features need more than 6 of"):
        INFINITY(x, x)
    with pytest.raises(ValueError, match="parts must be at least 2, got 1"):
        INFINITY(x, x, parts=1)
    with pytest.raises(ValueError, match=r"got \(0, 3\)"):
        FRECHET(x[:0], x, lambda z: z)
