"""The networks against their formulas, written out once more and plainly; and where they start."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from small_networks import BY_NAME, CLASSES, awake
from torch import Tensor, nn

from genmatch.nn import MLP, Conditioning, CrossAttention, DiT, Sinusoidal, Transformer, UNet
from genmatch.nn.blocks import PixelAttention, ResidualBlock, Stage
from genmatch.nn.modulated import ModulatedBlock


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.mT + layer.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def normal(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-5).sqrt()


def group_normal(x: Tensor, groups: int) -> Tensor:
    return normal(x.unflatten(1, (groups, -1)), tuple(range(2, x.ndim + 1))).flatten(1, 2)


def condition(part: Conditioning, t: Tensor, label: Tensor) -> Tensor:
    time = linear(part.output, silu(linear(part.input, part.time(t))))
    return silu(time + part.labels.table.weight[label])


def turned(x: Tensor, places: Tensor | None) -> Tensor:
    """A head ``(B, L, d)`` as d / 2 complex numbers, each turned by the position along the axis that it belongs to."""
    if places is None:
        return x
    half, axes = x.shape[-1] // 2, places.shape[1]
    z, each = torch.complex(x[..., :half], x[..., half:]), half // axes
    for axis in range(axes):
        for i in range(each):
            z[..., axis * each + i] *= torch.exp(1j * places[:, axis] * 100.0 ** (-i / each))
    return torch.cat([z.real, z.imag], -1)


def attention(layer, x: Tensor, places: Tensor | None = None) -> Tensor:
    """Multi-head attention with the heads one by one."""
    query, key, value = linear(layer.input, x).chunk(3, dim=-1)
    size = x.shape[-1] // layer.heads
    out = []
    for h in range(layer.heads):
        mine = slice(h * size, (h + 1) * size)
        products = torch.einsum("bid,bjd->bij", turned(query[..., mine], places), turned(key[..., mine], places))
        out.append(torch.einsum("bij,bjd->bid", (products / size**0.5).softmax(-1), value[..., mine]))
    return linear(layer.output, torch.cat(out, dim=-1))


def reading(layer: CrossAttention, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
    """Attention to a context, sample by sample: to the null vector and to the vectors that count, no others."""
    rows = []
    for tokens, vectors, counts in zip(x, context, mask, strict=True):
        pairs = torch.cat([layer.null[None], linear(layer.context, vectors[counts])])
        (key, value), query = pairs.chunk(2, dim=-1), linear(layer.query, tokens)
        size = x.shape[-1] // layer.heads
        heads = [slice(h * size, (h + 1) * size) for h in range(layer.heads)]
        rows.append(
            torch.cat([(query[:, h] @ key[:, h].T / size**0.5).softmax(-1) @ value[:, h] for h in heads], dim=-1)
        )
    return linear(layer.output, torch.stack(rows))


def mlp(network: MLP, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    told = linear(network.shifts, condition(network.conditioning, t, label)).chunk(len(network.layers), dim=1)
    h = linear(network.input, x)
    for layer, shift in zip(network.layers, told, strict=True):
        h = h + silu(linear(layer, h) + shift)
    return linear(network.output, h)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return shift + (1 + scale) * normal(h, (2,))


def through(block: ModulatedBlock, h: Tensor, told, places: Tensor | None = None, context=None, mask=None) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = told
    h = h + gate1 * attention(block.attention, modulated(h, shift1, scale1), places)
    if block.cross is not None:
        h = h + reading(block.cross, normal(h, (2,)), context, mask)
    wide, _, narrow = block.feedforward
    return h + gate2 * linear(narrow, gelu(linear(wide, modulated(h, shift2, scale2))))


def transformer(network: Transformer, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    width = network.tokens.weight.shape[1]
    told = linear(network.modulations, condition(network.conditioning, t, label))
    told = told.view(len(x), 1, -1, width).unbind(2)
    h = network.tokens.weight[x] + network.positions[: x.shape[1]]
    for i, block in enumerate(network.blocks):
        h = through(block, h, told[6 * i : 6 * i + 6])
    return linear(network.output, modulated(h, *told[-2:]))


def dit(network: DiT, x: Tensor, t: Tensor, label: Tensor, context=None, context_mask=None) -> Tensor:
    """Patches cut out one by one, in row-major order; within a patch the channels come last."""
    patch, grid = network.patch, [n // p for n, p in zip(x.shape[2:], network.patch, strict=True)]
    places = list(itertools.product(*map(range, grid)))
    cuts = [
        (slice(None), slice(None), *(slice(i * p, (i + 1) * p) for i, p in zip(place, patch, strict=True)))
        for place in places
    ]
    told = linear(network.modulations, condition(network.conditioning, t, label))
    told = told.view(len(x), 1, -1, network.width).unbind(2)
    h = linear(network.input, torch.stack([x[cut].movedim(1, -1).flatten(1) for cut in cuts], 1))
    turns = None if network.table is not None else torch.tensor(places, dtype=x.dtype)
    if network.table is not None:
        h = h + network.table
    for i, block in enumerate(network.blocks):
        h = through(block, h, told[6 * i : 6 * i + 6], turns, context, context_mask)
    h = linear(network.output, modulated(h, *told[-2:]))
    out = torch.zeros(len(x), h.shape[-1] // math.prod(patch), *x.shape[2:], dtype=x.dtype)
    for n, cut in enumerate(cuts):
        out[cut] = h[:, n].view(len(x), *patch, -1).movedim(-1, 1)
    return out


def unet(network: UNet, x: Tensor, t: Tensor, label: Tensor, context=None, context_mask=None) -> Tensor:
    told = linear(network.film, condition(network.conditioning, t, label))
    total = told.shape[1] // 2
    used = 0
    axes = range(2, x.ndim)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(axes)]

    def pixels(v: Tensor) -> Tensor:
        return v[(..., *[None] * len(axes))]

    def pointwise(layer: nn.Module, h: Tensor) -> Tensor:
        return torch.einsum("oi,bi...->bo...", layer.weight.flatten(1), h) + pixels(layer.bias)

    def stage(part: Stage, h: Tensor) -> Tensor:
        nonlocal used
        block = part.block
        here = slice(used, used + block.outputs)
        used += block.outputs
        scale, shift = pixels(1 + told[:, :total][:, here]), pixels(told[:, total:][:, here])
        inner = group_normal(h, block.groups) * pixels(block.norm.weight) + pixels(block.norm.bias)
        inner = convolve(silu(inner), block.conv1.weight, block.conv1.bias, padding=1)
        inner = silu(scale * group_normal(inner, block.groups) + shift)
        inner = convolve(inner, block.conv2.weight, block.conv2.bias, padding=1)
        if block.inputs != block.outputs:
            h = pointwise(block.skip, h)
        h = h + inner
        if part.attention is not None:
            norm = part.attention.norm
            tokens = group_normal(h, norm.num_groups) * pixels(norm.weight) + pixels(norm.bias)
            before = h.flatten(2).mT
            after = before + attention(part.attention.mix, tokens.flatten(2).mT)
            if part.attention.cross is not None:
                after = after + reading(part.attention.cross, normal(after, (2,)), context, context_mask)
            h = after.mT.reshape(h.shape)
        return h

    h = convolve(x, network.input.weight, network.input.bias, padding=1)
    kept = []
    for level in network.down:
        for part in level:
            h = stage(part, h)
            kept.append(h)
        for axis in axes:
            h = h.unflatten(axis, (-1, 2)).mean(axis + 1)
    for part in network.middle:
        h = stage(part, h)
    for rise, level in zip(network.rise, network.up, strict=True):
        h = pointwise(rise, h)
        for axis in axes:
            h = h.repeat_interleave(2, axis)
        for part in level:
            h = stage(part, torch.cat([h, kept.pop()], 1))
    h = group_normal(h, network.norm.num_groups) * pixels(network.norm.weight) + pixels(network.norm.bias)
    return convolve(silu(h), network.output.weight, network.output.bias, padding=1)


FORMULAS = {"mlp": mlp, "unet": unet, "transformer": transformer, "dit": dit}


@pytest.mark.parametrize("name", BY_NAME)
def test_networks_are_their_formulas(name):
    kind, formula = BY_NAME[name], FORMULAS[name.split("_")[0]]
    network = awake(kind.build().double()).eval()
    x, t = kind.states(4, torch.float64), torch.rand(4, dtype=torch.float64)
    label = torch.tensor([1, CLASSES, 0, 4])
    told = kind.told(4, torch.float64)
    # The network's cosines and sines are of float32.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if getattr(network, "rotates", False) else {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(network(x, t, label, **told), formula(network, x, t, label, **told), **tolerance)


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


@pytest.mark.parametrize("axes", [2, 3])
def test_a_signal_is_an_image_of_one_column(axes):
    # Without levels that halve: a kernel with weights in its middle column alone sees a column as a signal.
    options = {"width": 8, "multipliers": (1,), "blocks": 2, "heads": 2, "groups": 4}
    flat, deep = (awake(UNet(2, axes=n, **options).double()) for n in (1, axes))
    weights = dict(flat.named_parameters())
    with torch.no_grad():
        for name, parameter in deep.named_parameters():
            values = weights[name]
            if parameter.ndim == 2 + axes:
                parameter.zero_()
                middle = (parameter.shape[-1] // 2,) * (axes - 1)
                parameter[(..., *middle)] = values
            else:
                parameter.copy_(values)
    x, t = torch.randn(3, 2, 7, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    column = deep(x.view(3, 2, 7, *[1] * (axes - 1)), t)
    torch.testing.assert_close(column.flatten(2), flat(x, t))
