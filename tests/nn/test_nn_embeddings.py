"""Embeddings of time: their formulas, what they tell apart, and what survives a change of dtype."""

from __future__ import annotations

import math

import pytest
import torch

from genmatch.nn import Fourier, Sinusoidal


def test_sinusoidal_is_the_formula():
    embedding = Sinusoidal(6, max_period=100.0, scale=3.0)
    t = [0.0, 0.25, -2.0]
    expected = [
        [wave(3.0 * time * 100.0 ** (-2 * i / 6)) for wave in (math.sin, math.cos) for i in range(3)] for time in t
    ]
    torch.testing.assert_close(
        embedding(torch.tensor(t, dtype=torch.float64)), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("embedding", [Sinusoidal(32, scale=7.0), Fourier(32, bandwidth=2.0)], ids=["sin", "fourier"])
def test_similarity_depends_on_the_difference_of_times_alone(embedding):
    t = torch.linspace(-1, 1, 9, dtype=torch.float64)
    here, there = embedding(t), embedding(t + 0.3)
    similarity = (here * there).sum(-1)
    torch.testing.assert_close(similarity, similarity[:1].expand(9))
    assert abs(similarity[0] - (here * embedding(t + 0.5)).sum(-1)[0]) > 0.1


def test_scale_suits_the_range_of_the_times():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)

    def nearest(embedded):
        return (embedded[1:] - embedded[:-1]).norm(dim=1).min()

    index = nearest(Sinusoidal(64)(1000 * t))
    torch.testing.assert_close(nearest(Sinusoidal(64, scale=1000.0)(t)), index)
    assert nearest(Sinusoidal(64)(t)) < 0.002 * index  # unscaled, times in [0, 1] are hardly told apart


def test_neighbouring_indices_differ_in_a_bfloat16_network():
    embedding = Sinusoidal(32)
    t = torch.tensor([998.0, 999.0])
    expected = embedding(t)
    torch.testing.assert_close(embedding.to(torch.bfloat16)(t), expected, rtol=0, atol=0)
    assert torch.equal(*t.to(torch.bfloat16))  # what it would be told otherwise
    assert (expected[0] - expected[1]).norm() > 0.5


@pytest.mark.parametrize("make", [lambda: Sinusoidal(8), lambda: Fourier(8)], ids=["sin", "fourier"])
def test_dtype_is_float32_or_that_of_float64_times(make):
    t = torch.tensor([0, 1, 7])
    for dtype, expected in ((torch.int64, torch.float32), (torch.bfloat16, torch.float32), (torch.float64,) * 2):
        embedded = make()(t.to(dtype))
        assert (embedded.dtype, embedded.shape) == (expected, (3, 8))
        torch.testing.assert_close(embedded, make()(t.double()).to(expected), atol=2e-4, rtol=0)


def test_fourier_similarity_is_the_gaussian_kernel():
    # E cos(2 pi b d) = exp(-2 (pi beta d)^2) for b ~ N(0, beta^2): a characteristic function.
    beta, half = 1.5, 20_000
    t = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    embedded = Fourier(2 * half, bandwidth=beta)(t)
    similarity = embedded @ embedded[0] / half
    kernel = torch.exp(-2 * (math.pi * beta * t) ** 2)
    tolerance = 5 / math.sqrt(2 * half)  # the standard deviation of a mean of cosines is below 1 / sqrt(2 half)
    torch.testing.assert_close(similarity, kernel, atol=tolerance, rtol=0)
    wrong = torch.exp(-2 * (math.pi * 1.1 * beta * t) ** 2)
    assert (similarity - wrong).abs().max() > tolerance


def test_fourier_frequencies_are_the_seeds_and_travel_with_the_weights():
    before = torch.get_rng_state()
    one, same, other = Fourier(16, seed=1), Fourier(16, seed=1), Fourier(16, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.frequencies, same.frequencies)
    assert not torch.isclose(one.frequencies, other.frequencies).any()
    other.load_state_dict(one.state_dict())
    t = torch.rand(4)
    assert torch.equal(other(t), one(t))
    assert list(one.parameters()) == []


def test_fourier_frequencies_survive_bfloat16():
    embedding = Fourier(256, bandwidth=16.0)
    expected = embedding(t := torch.rand(5))
    assert torch.equal(embedding.to(torch.bfloat16).float()(t), expected)
    assert torch.equal(embedding.to(torch.bfloat16)(t), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sinusoidal(7), "even, positive size .* got dim=7"),
        (lambda: Sinusoidal(0), "even, positive size .* got dim=0"),
        (lambda: Sinusoidal(8, max_period=1.0), "max_period must be a finite number above 1, got 1"),
        (lambda: Sinusoidal(8, scale=0.0), "scale must be a finite positive number, got 0"),
        (lambda: Sinusoidal(8, scale=math.nan), "scale must be a finite positive number, got nan"),
        (lambda: Fourier(5), "even, positive size .* got dim=5"),
        (lambda: Fourier(8, bandwidth=-1.0), "bandwidth must be a finite positive number, got -1"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
