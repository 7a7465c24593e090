"""The diffusion transformer: patches, positions, sizes, and the shape that was published."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from small_networks import DIT, awake
from torch import nn

from genmatch.nn import DiT, SelfAttention, UNet
from genmatch.nn.attention import rotary
from genmatch.nn.modulated import ModulatedBlock

SIZES = [((6,), (2,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 2))]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def identity(layer: nn.Linear) -> None:
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)


# Rotary positions


def logits(grid: tuple[int, ...], dim: int) -> torch.Tensor:
    """Products of one query and one key, put at every pair of positions."""
    attention = SelfAttention(dim, 1).double()
    with torch.no_grad():
        attention.input.weight.zero_()
        attention.input.bias.copy_(torch.cat([draw(dim), draw(dim + 1)[1:], draw(dim)]))
    seen = {}

    def keep(query, key, value, mask=None):
        seen["products"] = (query @ key.mT)[0, 0]
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genmatch.nn.attention.attend", keep)
        rotation = tuple(part.double() for part in rotary(grid, dim))
        attention(draw(1, math.prod(grid), dim), rotation)
    return seen["products"].detach()


@pytest.mark.parametrize(("grid", "dim"), [((7,), 8), ((7,), 2), ((3, 4), 8), ((3, 4), 10), ((2, 3, 4), 12)])
def test_products_depend_on_relative_positions_alone(grid, dim):
    products, found = logits(grid, dim), {}
    for (i, a), (j, b) in itertools.product(enumerate(itertools.product(*map(range, grid))), repeat=2):
        found.setdefault(tuple(q - p for p, q in zip(a, b, strict=True)), []).append(products[i, j])
    assert len(found) == math.prod(2 * n - 1 for n in grid)
    spreads = [torch.stack(values).max() - torch.stack(values).min() for values in found.values()]
    assert max(spreads) < 1e-5  # the angles are of float32
    means = torch.stack([torch.stack(values).mean() for values in found.values()])
    apart = torch.cdist(means[:, None], means[:, None]) + torch.eye(len(means))
    assert apart.min() > 1e-5  # every difference of positions tells, along each axis and in both directions


def test_a_translated_grid_attends_alike():
    attention, x = SelfAttention(16, 2).double(), draw(2, 12, 16)
    wide = [part.double().view(6, 7, -1) for part in rotary((6, 7), 8)]
    moved = tuple(part[2:5, 3:7].reshape(12, -1) for part in wide)
    here = tuple(part.double() for part in rotary((3, 4), 8))
    torch.testing.assert_close(attention(x, moved), attention(x, here), rtol=1e-5, atol=1e-5)
    stretched = tuple(part[::2, :4].reshape(12, -1) for part in wide)
    assert (attention(x, stretched) - attention(x, here)).abs().max() > 1e-3
    assert (attention(x) - attention(x, here)).abs().max() > 1e-3


def test_rotations_keep_lengths_and_leave_what_is_over():
    cosine, sine = rotary((3, 5), 14)  # 7 pairs, 3 for each axis
    torch.testing.assert_close(cosine**2 + sine**2, torch.ones(15, 14))
    assert (sine[:, [6, 13]] == 0).all()
    assert (sine[1:, [0, 3]] != 0).any(1).all()


def test_the_slowest_pair_turns_by_less_than_the_fastest():
    angles = torch.atan2(*reversed(rotary((2,), 8, period=16.0)))[1]
    expected = torch.tensor([1.0, 0.5, 0.25, 0.125])
    torch.testing.assert_close(angles, torch.cat([-expected, expected]))


@pytest.mark.parametrize("low", ["weights", "autocast"])
def test_rotations_stay_in_float32(low):
    # A bfloat16 cosine is off by up to 1/512 and would make products depend on where the pair is.
    network = awake(DiT(1, 8, **DIT))
    seen = []
    network.blocks[0].register_forward_pre_hook(lambda _module, inputs: seen.append((inputs[0].dtype, inputs[7])))
    x, t = torch.randn(2, 1, 8), torch.rand(2)
    if low == "weights":
        network.to(torch.bfloat16)(x.to(torch.bfloat16), t)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            network(x, t)
    assert seen[0][0] == torch.bfloat16
    assert [part.dtype for part in seen[0][1]] == [torch.float32] * 2


# Patches


@pytest.mark.parametrize(("size", "patch"), SIZES)
def test_patches_are_cut_and_put_back_in_place(size, patch):
    # With blocks that add nothing, and identities around, a patch comes out as itself, normalised.
    network = DiT(3, size, patch=patch, **{**DIT, "width": 3 * math.prod(patch), "heads": 1, "positions": "learned"})
    network = network.double()
    identity(network.input)
    identity(network.output)
    nn.init.zeros_(network.table)
    x = draw(2, 3, *size)
    output, seen = network(x, torch.rand(2)), torch.zeros_like(x)
    for place in itertools.product(*(range(0, n, p) for n, p in zip(size, patch, strict=True))):
        cut = (..., *(slice(a, a + p) for a, p in zip(place, patch, strict=True)))
        every = tuple(range(1, x.ndim))
        centred = x[cut] - x[cut].mean(every, keepdim=True)
        expected = centred / (centred.square().mean(every, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(output[cut], expected)
        seen[cut] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize(("size", "patch"), SIZES)
def test_a_pixel_moves_its_own_patch_without_attention_and_all_with_it(size, patch):
    network = awake(DiT(1, size, patch=patch, **DIT).double())
    x, t = draw(1, 1, *size), torch.rand(1)
    last = tuple(n - 1 for n in size)
    other = x.clone()
    other[(0, 0, *last)] += 1

    def moved() -> torch.Tensor:
        return (network(x, t) != network(other, t))[0, 0]

    assert moved().all()
    with torch.no_grad():
        for block in network.blocks:
            block.attention.output.weight.zero_()
    own = torch.zeros(size, dtype=torch.bool)
    own[tuple(slice(n - p, n) for n, p in zip(size, patch, strict=True))] = True
    assert torch.equal(moved(), own)


def test_new_blocks_are_the_identity():
    network, same = DiT(1, (4, 4), context=3, **DIT), []
    for module in network.modules():
        if isinstance(module, ModulatedBlock):
            module.register_forward_hook(lambda _m, inputs, output: same.append(torch.equal(inputs[0], output)))
    network(torch.randn(2, 1, 4, 4), torch.rand(2), context=torch.randn(2, 5, 3))
    assert same == [True] * 2


# Sizes


@pytest.mark.parametrize(("size", "patch"), SIZES)
def test_rotary_positions_take_other_sizes(size, patch):
    small, x = DiT(2, size, patch=patch, **DIT), torch.randn(3, 2, *(2 * n for n in size))
    large = DiT(2, x.shape[2:], patch=patch, **DIT)
    awake(large).load_state_dict(awake(small).state_dict())
    t = torch.rand(3)
    assert small(x, t).shape == x.shape
    torch.testing.assert_close(small(x, t), large(x, t))  # the size a network is built for means nothing to it


def test_learned_positions_are_for_one_size():
    network = DiT(2, (4, 6), **{**DIT, "positions": "learned"})
    with pytest.raises(ValueError, match=r'of size \(4, 6\), got \(4, 8\): build .* positions="rotary" for others'):
        network(torch.zeros(3, 2, 4, 8), torch.rand(3))


def test_learned_positions_tell_equal_patches_apart():
    x, t = torch.ones(1, 1, 4, 4), torch.rand(1)
    for positions, alike in (("rotary", True), ("learned", False)):
        output = awake(DiT(1, (4, 4), **{**DIT, "positions": positions}))(x, t)
        assert torch.allclose(output[..., :2, :2], output[..., 2:, 2:], atol=1e-4) == alike


@pytest.mark.parametrize("out", [1, 6])
def test_channels_of_the_output(out):
    assert DiT(3, (4, 4), out, **DIT)(torch.zeros(2, 3, 4, 4), torch.rand(2)).shape == (2, out, 4, 4)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"), [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458)]
)
def test_weights_are_as_many_as_published(width, depth, heads, millions):
    # Table 1 of Peebles and Xie, for S, B and L at patches of 2, 4 x 32 x 32 latents, 1000 classes, mean and variance.
    with torch.device("meta"):
        network = DiT(4, (32, 32), 8, width=width, depth=depth, heads=heads, classes=1000)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize(("embedding", "dim"), [(None, 16), (40, 40)])
def test_size_of_the_vector_of_time_and_class(embedding, dim):
    network = awake(DiT(1, (4, 4), **DIT, embedding=embedding, classes=3))
    assert network.conditioning(torch.rand(2), None, 2).shape == (2, dim)
    assert network(torch.randn(2, 1, 4, 4), torch.rand(2)).isfinite().all()


# Bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 4, 4), r"x must be \(B, 2, 4, 6\), got \(2, 1, 4, 4\)"),
        ((2, 2, 4), r"x must be \(B, 2, 4, 6\), got \(2, 2, 4\)"),
        ((2, 2, 4, 5), r"the size must be multiples of the patch \(2, 2\), got \(4, 5\)"),
        ((2, 2, 0, 4), r"got \(0, 4\)"),
    ],
)
def test_bad_states(shape, message):
    with pytest.raises(ValueError, match=message):
        DiT(2, (4, 6), **DIT)(torch.zeros(shape), torch.rand(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": ()}, r"size has one to three axes, got \(\)"),
        ({"size": (2, 2, 2, 2)}, r"size has one to three axes, got \(2, 2, 2, 2\)"),
        ({"channels": 0}, "sizes must be positive, got channels=0"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"depth": 0}, "depth=0"),
        ({"embedding": 0}, "embedding must be positive, got 0"),
        ({"patch": 0}, r"patch=\(0, 0\)"),
        ({"patch": 4}, r"must divide the size on every axis, got patch=\(4, 4\) and size=\(4, 6\)"),
        ({"patch": (2,)}, r"got patch=\(2,\) and size=\(4, 6\)"),
        ({"positions": "sine"}, 'positions must be "rotary" or "learned", got \'sine\''),
        ({"width": 15, "heads": 3}, "rotary positions turn pairs: a head has an even size, got 5"),
        ({"width": 24, "heads": 5}, "heads must divide the width: got heads=5 and width 24"),
        ({"heads": 0}, "heads must divide the width: got heads=0"),
        ({"ratio": 0.01}, "needs a width of at least 1, got ratio=0.01 of 16"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DiT(**{"channels": 1, "size": (4, 6), **DIT, **options})


def test_a_head_too_small_for_the_axes_is_refused():
    for size, width, heads in (((8, 8), 8, 4), ((4, 4, 4), 16, 4)):
        with pytest.raises(ValueError, match="need a pair of a head's coordinates for each axis"):
            DiT(1, size, width=width, heads=heads, depth=1)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_checkpointed_networks_are_differentiated_forwards_too(kind):
    """What is computed again has no tangent, so within a transform nothing is."""
    build = {
        "dit": lambda again: DiT(1, (4, 4), width=16, heads=2, depth=1, checkpoint=again),
        "unet": lambda again: UNet(1, width=8, multipliers=(1, 2), blocks=1, heads=2, groups=4, checkpoint=again),
    }[kind]
    x, t = torch.randn(2, 1, 4, 4), torch.rand(2)
    found = []
    for again in (False, True):
        network = awake(build(again)).train()
        value, tangent = torch.func.jvp(lambda x, network=network: network(x, t), (x,), (x,))
        (value.square().sum() + tangent.square().sum()).backward()
        found.append([p.grad for p in network.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed)


@pytest.mark.parametrize("network", [DiT(1, (4, 4), width=16, heads=2, depth=1, context=3)], ids=["dit"])
def test_an_empty_batch(network):
    assert network(torch.zeros(0, 1, 4, 4), torch.zeros(0)).shape == (0, 1, 4, 4)
