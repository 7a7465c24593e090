"""Images of integer levels as continuous data, and their bits."""

from __future__ import annotations

import math

import pytest
import torch

import genmatch as gm
from genmatch.likelihood import bits_per_dim, dequantise

F64 = torch.float64


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_each_value_is_spread_over_its_own_bin(levels: int):
    pixels = torch.randint(0, levels, (50, 1, 4, 4))
    x = dequantise(pixels, levels=levels, seed=0, dtype=F64)
    width = 2 / (levels - 1)
    offset = (x - (pixels * width - 1)) / width
    assert offset.min() >= -0.5
    assert offset.max() < 0.5
    assert abs(offset.mean()) < 4 * (1 / 12 / offset.numel()) ** 0.5
    assert abs(offset.var() * 12 - 1) < 0.2
    loaded = (pixels / ((levels - 1) / 2) - 1).float()
    assert torch.equal(dequantise(loaded, levels=levels, seed=0, dtype=F64), x)
    assert torch.equal(dequantise(pixels[30:], levels=levels, seed=0, first_index=30, dtype=F64), x[30:])
    assert dequantise(pixels.to(torch.uint8), levels=levels).dtype == torch.float32


def test_equal_levels_take_the_bits_of_their_number():
    # A density that is uniform over the bins of all K levels gives each value log2 K bits.
    for levels in (2, 17, 256):
        density = -6 * math.log(levels * 2 / (levels - 1))
        bits = bits_per_dim(torch.full((3,), density, dtype=F64), (1, 2, 3), levels=levels)
        torch.testing.assert_close(bits, torch.full((3,), math.log2(levels), dtype=F64))
    nats = torch.tensor([-6 * math.log(2.0)])
    torch.testing.assert_close(bits_per_dim(nats, 6, levels=None), torch.ones(1))


def test_the_bound_holds_and_is_tight_for_a_density_that_is_flat_in_the_bins():
    # A density c on the bin of level 0 and 1 - c on that of 1: E[log p] + log width is the log-probability itself.
    pixels = torch.tensor([[0], [1]]).repeat(100, 1)
    x, share = dequantise(pixels, levels=2, seed=0), torch.tensor([0.3, 0.7])
    density = (share / 2).log()[(x[:, 0] >= 0).long()]
    bits = bits_per_dim(density, 1, levels=2)
    torch.testing.assert_close(bits, -share.log2()[pixels[:, 0]])
    # And for one that is not flat it is below.
    slope = torch.tensor(1.0)
    law = torch.distributions.Normal(0.0, slope)
    probability = law.cdf(torch.tensor(0.0)) - law.cdf(torch.tensor(-2.0))
    bound = law.log_prob(x[pixels[:, 0] == 0][:, 0]).mean() + math.log(2)
    assert bound < probability.log() - 0.01


def test_digits_end_to_end():
    pytest.importorskip("sklearn")
    images, _ = gm.data.digits()
    x = dequantise(images[:4], levels=17, seed=0)
    flow = gm.Flow(
        gm.predict.Velocity(gm.nn.UNet(1, width=8, multipliers=(1, 2), blocks=1, groups=4), gm.GaussianPath())
    )
    value = gm.log_prob(flow, x, divergence=gm.likelihood.Hutchinson(), solver=gm.solvers.Heun(), steps=3, seed=0)
    bits = bits_per_dim(value, x.shape[1:], levels=17)
    assert bits.shape == (4,)
    assert bool((bits > 0).all())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dequantise(torch.tensor([[256]])), ValueError, r"values 0 .. 255, got 256"),
        (lambda: dequantise(torch.tensor([[-1]])), ValueError, r"got -1"),
        (lambda: dequantise(torch.tensor([[0.1234]])), ValueError, "not on a grid of 256 levels"),
        (lambda: dequantise(torch.tensor([[0.0]]), levels=1), ValueError, "at least 2, got 1"),
        (lambda: dequantise(torch.tensor([[0]]), levels=2.0), TypeError, "integer, got float"),
        (lambda: dequantise(torch.tensor([[True]])), TypeError, "got torch.bool"),
        (lambda: dequantise([0]), TypeError, "must be a tensor"),
        (lambda: dequantise(torch.tensor([[0]]), dtype=torch.float16), TypeError, "float32 or float64"),
        (lambda: bits_per_dim(torch.zeros(1), 0, levels=256), ValueError, "dims is the number"),
        (lambda: bits_per_dim(torch.zeros(1), 3, levels=1), ValueError, "at least 2"),
    ],
)
def test_what_is_refused(call, error, message: str):
    with pytest.raises(error, match=message):
        call()
