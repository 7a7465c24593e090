"""The networks against their formulas, written out once more and plainly; and where they start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_networks import CLASSES, KINDS, awake
from torch import Tensor, nn

from genmatch.nn import MLP, Conditioning, Sinusoidal, Transformer, UNet
from genmatch.nn.blocks import PixelAttention, ResidualBlock, Stage
from genmatch.nn.modulated import ModulatedBlock


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.mT + layer.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def normal(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()


def group_normal(x: Tensor, groups: int) -> Tensor:
    return normal(x.unflatten(1, (groups, -1)), (2, 3, 4)).flatten(1, 2)


def pixels(v: Tensor) -> Tensor:
    return v[..., None, None]


def condition(part: Conditioning, t: Tensor, label: Tensor) -> Tensor:
    time = linear(part.output, silu(linear(part.input, part.time(t))))
    return silu(time + part.labels.table.weight[label])


def attention(layer, x: Tensor) -> Tensor:
    """Multi-head attention with the heads one by one."""
    query, key, value = linear(layer.input, x).chunk(3, dim=-1)
    size = x.shape[-1] // layer.heads
    out = []
    for h in range(layer.heads):
        mine = slice(h * size, (h + 1) * size)
        scores = torch.einsum("bid,bjd->bij", query[..., mine], key[..., mine]) / size**0.5
        out.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), value[..., mine]))
    return linear(layer.output, torch.cat(out, dim=-1))


def mlp(network: MLP, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    told = linear(network.shifts, condition(network.conditioning, t, label)).chunk(len(network.layers), dim=1)
    h = linear(network.input, x)
    for layer, shift in zip(network.layers, told, strict=True):
        h = h + silu(linear(layer, h) + shift)
    return linear(network.output, h)


def transformer(network: Transformer, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    width = network.tokens.weight.shape[1]
    told = linear(network.modulations, condition(network.conditioning, t, label))
    told = told.view(len(x), 1, -1, width).unbind(2)

    def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return shift + (1 + scale) * normal(h, (2,))

    h = network.tokens.weight[x] + network.positions[: x.shape[1]]
    for i, block in enumerate(network.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = told[6 * i : 6 * i + 6]
        h = h + gate1 * attention(block.attention, modulate(h, shift1, scale1))
        wide, _, narrow = block.feedforward
        h = h + gate2 * linear(narrow, F.gelu(linear(wide, modulate(h, shift2, scale2)), approximate="tanh"))
    return linear(network.output, modulate(h, *told[-2:]))


def unet(network: UNet, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    told = linear(network.film, condition(network.conditioning, t, label))
    total = told.shape[1] // 2
    used = 0

    def stage(part: Stage, h: Tensor) -> Tensor:
        nonlocal used
        block = part.block
        here = slice(used, used + block.outputs)
        used += block.outputs
        scale, shift = pixels(1 + told[:, :total][:, here]), pixels(told[:, total:][:, here])
        inner = group_normal(h, block.groups) * pixels(block.norm.weight) + pixels(block.norm.bias)
        inner = F.conv2d(silu(inner), block.conv1.weight, block.conv1.bias, padding=1)
        inner = silu(scale * group_normal(inner, block.groups) + shift)
        inner = F.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
        if block.inputs != block.outputs:
            h = torch.einsum("oi,bihw->bohw", block.skip.weight[..., 0, 0], h) + pixels(block.skip.bias)
        h = h + inner
        if part.attention is not None:
            norm = part.attention.norm
            tokens = group_normal(h, norm.num_groups) * pixels(norm.weight) + pixels(norm.bias)
            h = h + attention(part.attention.mix, tokens.flatten(2).mT).mT.view(h.shape)
        return h

    h = F.conv2d(x, network.input.weight, network.input.bias, padding=1)
    kept = []
    for level in network.down:
        for part in level:
            h = stage(part, h)
            kept.append(h)
        h = (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4
    for part in network.middle:
        h = stage(part, h)
    for rise, level in zip(network.rise, network.up, strict=True):
        h = torch.einsum("oi,bihw->bohw", rise.weight[..., 0, 0], h) + pixels(rise.bias)
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for part in level:
            h = stage(part, torch.cat([h, kept.pop()], 1))
    h = group_normal(h, network.norm.num_groups) * pixels(network.norm.weight) + pixels(network.norm.bias)
    return F.conv2d(silu(h), network.output.weight, network.output.bias, padding=1)


@pytest.mark.parametrize(("kind", "formula"), [*zip(KINDS, (mlp, unet, transformer), strict=True)])
def test_networks_are_their_formulas(kind, formula):
    network = awake(kind.build().double()).eval()
    x, t = kind.states(4, torch.float64), torch.rand(4, dtype=torch.float64)
    label = torch.tensor([1, CLASSES, 0, 4])
    torch.testing.assert_close(network(x, t, label=label), formula(network, x, t, label))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_deeper_unet_is_its_formula(layout):
    network = UNet(2, width=4, multipliers=(1, 2, 3), blocks=(2, 1, 2), groups=2, attention=(1,), heads=2, classes=3)
    network = awake(network.double()).eval().to(memory_format=layout)
    x, t = torch.randn(2, 2, 8, 12, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    x, label = x.contiguous(memory_format=layout), torch.tensor([3, 1])
    torch.testing.assert_close(network(x, t, label=label), unet(network, x, t, label), check_stride=False)


def test_conditioning_is_its_formula_without_labels():
    part = awake(Conditioning(Sinusoidal(6), 5).double())
    t = torch.rand(3, dtype=torch.float64)
    expected = silu(linear(part.output, silu(linear(part.input, part.time(t)))))
    torch.testing.assert_close(part(t, None, 3), expected)


def test_new_blocks_are_the_identity():
    x, scale, shift = torch.randn(2, 8, 4, 4), torch.randn(2, 8), torch.randn(2, 8)
    assert torch.equal(ResidualBlock(8, 8, 2, 0.0)(x, scale, shift), x)
    assert torch.equal(PixelAttention(8, 2, 2)(x), x)
    narrowing = ResidualBlock(8, 4, 2, 0.0)
    assert torch.equal(narrowing(x, scale[:, :4], shift[:, :4]), narrowing.skip(x))


def test_new_transformer_blocks_are_the_identity():
    network = Transformer(5, width=8, depth=3, heads=2)
    seen = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, inputs, output: seen.append(torch.equal(inputs[0], output)))
    network(torch.zeros(2, 4, dtype=torch.int64), torch.rand(2))
    assert seen == [True] * 3
    gates = torch.ones(2, 1, 8)
    h = torch.randn(2, 4, 8)
    assert not torch.equal(ModulatedBlock(8, 2)(h, *[gates] * 6), h)  # the gates do it, not dead weights
