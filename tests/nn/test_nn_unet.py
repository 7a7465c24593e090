"""The U-Net: sizes, layouts, where the attention is, and its modulated normalisation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import awake

from genmatch.nn import UNet
from genmatch.nn.blocks import PixelAttention, halve, modulated_norm

TINY = {"width": 8, "multipliers": (1, 2), "blocks": 1, "groups": 4, "attention": ()}


def test_mnist_has_the_papers_shape():
    network = UNet.mnist(classes=10)
    assert 4.2e6 < sum(p.numel() for p in network.parameters()) < 4.8e6
    assert [level[0].block.outputs for level in network.down] + [network.middle[0].block.outputs] == [64, 128, 256]
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, PixelAttention):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output.shape}))
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 32, 32), torch.rand(2), label=torch.tensor([0, 9])).shape == (2, 1, 32, 32)
    assert len(seen) == 2  # on the way down and on the way up
    assert set(seen.values()) == {(2, 128, 16, 16)}


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (8, 8)),
        ({}, (2, 10)),
        ({"multipliers": (1,)}, (3, 5)),  # a plain residual network
        ({"multipliers": (1, 1, 2, 3), "blocks": (1, 2, 1, 3)}, (8, 24)),
        ({"out_channels": 6}, (4, 4)),
        ({"width": 4, "groups": 1, "attention": (0, 1), "heads": 1}, (4, 4)),
        ({"dropout": 0.5}, (4, 4)),
    ],
)
def test_shapes(options, size):
    network = awake(UNet(3, **{**TINY, **options}))
    output = network(torch.randn(2, 3, *size), torch.rand(2))
    assert output.shape == (2, options.get("out_channels", 3), *size)
    assert output.isfinite().all()


def test_blocks_of_each_level():
    network = UNet(1, **{**TINY, "multipliers": (1, 2, 4), "blocks": (1, 3, 2)})
    assert [len(level) for level in network.down] == [1, 3]
    assert len(network.middle) == 2
    assert [len(level) for level in network.up] == [3, 1]


@pytest.mark.parametrize(
    ("attention", "sizes"), [((), set()), ((0,), {8}), ((-1,), {2}), ((1, 2), {4, 2}), ((-3, 0), {8})]
)
def test_attention_is_at_the_chosen_levels(attention, sizes):
    network = UNet(1, **{**TINY, "multipliers": (1, 1, 2), "attention": attention})
    seen = set()
    for module in network.modules():
        if isinstance(module, PixelAttention):
            module.register_forward_hook(lambda _module, _inputs, output: seen.add(output.shape[-1]))
    network(torch.zeros(1, 1, 8, 8), torch.rand(1))
    assert seen == sizes


def influence(network: UNet, size: int) -> torch.Tensor:
    """Which pixels of the output the pixel in the corner moves."""
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    other = x.clone()
    other[..., 0, 0] += 1
    t = torch.full((1,), 0.3, dtype=torch.float64)
    return ((network(x, t) - network(other, t)).abs() > 1e-12)[0, 0]


def test_skips_and_levels_reach_the_output():
    # Cutting any stage must show: each is on the way from input to output.
    network = awake(UNet(1, **{**TINY, "multipliers": (1, 2, 2), "blocks": 2}).double())
    x, t = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.rand(1)
    expected = network(x, t)
    for level in [*network.down, network.middle, *network.up]:
        for stage in level:
            kept = stage.block.conv2.weight.detach().clone()
            with torch.no_grad():
                stage.block.conv2.weight.zero_()
                assert (network(x, t) - expected).abs().max() > 1e-6
                stage.block.conv2.weight.copy_(kept)
    assert influence(network, 16).all()  # group normalisation sees the whole image


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_channels_last_agrees(dtype):
    options = {**TINY, "attention": (0, 1), "heads": 2}
    plain, last = (awake(UNet(3, **options)).to(dtype) for _ in range(2))
    last = last.to(memory_format=torch.channels_last)
    x, t = torch.randn(4, 3, 8, 8, dtype=dtype), torch.rand(4)
    tolerance = {torch.float32: 3e-4, torch.float64: 1e-11}[dtype]
    results = []
    for network, state in ((plain, x), (last, x.contiguous(memory_format=torch.channels_last))):
        output = network(state, t)
        output.square().sum().backward()
        results.append((output, [p.grad for p in network.parameters()]))
    assert results[1][0].is_contiguous(memory_format=torch.channels_last)  # it was not turned round within
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance * 10, check_stride=False)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_norm_is_the_formula(layout):
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64).contiguous(memory_format=layout)
    scale, shift = torch.randn(2, 3, 8, dtype=torch.float64).unbind(0)
    expected = torch.empty_like(x)
    for b in range(3):
        for g in range(2):
            group = x[b, 4 * g : 4 * g + 4]
            normal = (group - group.mean()) / (group.var(correction=0) + 1e-5).sqrt()
            for c in range(4):
                expected[b, 4 * g + c] = scale[b, 4 * g + c] * normal[c] + shift[b, 4 * g + c]
    torch.testing.assert_close(modulated_norm(x, 2, scale, shift), expected)
    wrong = modulated_norm(x, 2, scale.roll(1, 0), shift)
    assert (wrong - expected).abs().max() > 0.1  # another sample's scale


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_norm_has_its_gradients(layout):
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    scale, shift = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    inputs = (x, scale, shift)
    assert torch.autograd.gradcheck(lambda *inputs: modulated_norm(inputs[0], 2, *inputs[1:]), inputs)


@pytest.mark.parametrize("size", [(6,), (4, 6), (2, 4, 6)])
def test_halve_is_the_mean_of_two_along_every_axis(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(size)]
    torch.testing.assert_close(halve(x), pool(x, 2))
    assert torch.autograd.gradcheck(halve, (x,))
    low = halve(x.detach().to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), pool(x, 2).detach(), rtol=0, atol=0.03)


def test_halve_keeps_the_layout():
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=torch.channels_last)
    assert halve(x).is_contiguous(memory_format=torch.channels_last)
    assert halve(x.contiguous()).is_contiguous()


def test_dropout_is_for_training():
    network = awake(UNet(1, **TINY, dropout=0.5))
    x, t = torch.randn(2, 1, 4, 4), torch.rand(2)
    assert not torch.allclose(network(x, t), network(x, t), atol=1e-3)
    network.eval()
    assert torch.equal(network(x, t), network(x, t))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 6, 8), "multiples of 4, as 3 levels halve them 2 times; got 6 x 8: pad the states"),
        ((2, 1, 8, 7), "got 8 x 7"),
        ((2, 1, 0, 8), "got 0 x 8"),
        ((2, 3, 8, 8), r"x must be \(B, 1, H, W\), got \(2, 3, 8, 8\)"),
        ((2, 64), r"x must be \(B, 1, H, W\), got \(2, 64\)"),
    ],
)
def test_bad_states(shape, message):
    network = UNet(1, **{**TINY, "multipliers": (1, 2, 2)})
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape), torch.rand(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be positive, got channels=0"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"multipliers": ()}, r"multipliers are positive integers, one for each level, got \(\)"),
        ({"multipliers": (1, 0)}, r"got \(1, 0\)"),
        ({"blocks": (1, 1, 1)}, r"one for each of the 2 levels, got \(1, 1, 1\)"),
        ({"blocks": 0}, "blocks is a positive integer"),
        ({"attention": (2,)}, r"attention names levels 0 .. 1 \(or -1 .. -2\), got 2"),
        ({"attention": (0,), "heads": 3}, "heads must divide the width: got heads=3 and width 8"),
        ({"groups": 3}, r"groups must divide the channels of every level, \[8, 16\], got groups=3"),
        ({"groups": 0}, "got groups=0"),
        ({"dropout": 1.0}, r"dropout is a probability in \[0, 1\), got 1.0"),
        ({"width": 9, "groups": 1}, "even, positive size .* got dim=9"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{"channels": 1, **TINY, **options})
