"""A context: what is masked does not count, its order says nothing, and it guides."""

from __future__ import annotations

import pytest
import torch
from small_networks import BY_NAME, CLASSES, CONTEXT, DIT, awake

import genmatch as gm
from genmatch.nn import Context, CrossAttention, DiT, UNet
from genmatch.nn.attention import attend

KINDS = [BY_NAME["unet_context"], BY_NAME["dit_context"]]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def prepared(kind, batch: int = 4, **options):
    """A network in float64 with states, times, a context of 4 vectors, and a mask that lets through 1 to 3 of them."""
    network = awake(kind.build(**options).double())
    x, t = kind.states(batch, torch.float64), torch.rand(batch, dtype=torch.float64)
    context = kind.told(batch, torch.float64)["context"]
    mask = torch.arange(4) <= torch.arange(batch)[:, None] % 3
    return network, x, t, context, mask


# What counts


@each
def test_masked_vectors_do_not_matter_at_all(kind):
    network, x, t, context, mask = prepared(kind)
    context.requires_grad_()
    output = network(x, t, context=context, context_mask=mask)
    (gradient,) = torch.autograd.grad(output.square().sum(), context)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask].abs().amax(1) > 1e-6).all()
    other = torch.where(mask[..., None], context.detach(), 1e6)
    assert torch.equal(network(x, t, context=other, context_mask=mask), output)
    moved = network(x, t, context=context.detach() + 0.1, context_mask=mask)
    assert ((moved - output).abs().flatten(1).amax(1) > 1e-4).all()


@each
def test_masked_vectors_are_as_if_left_out(kind):
    network, x, t, context, _ = prepared(kind)
    mask = torch.tensor([True, False, True, False]).expand(4, 4)
    shorter = network(x, t, context=context[:, ::2])
    torch.testing.assert_close(network(x, t, context=context, context_mask=mask), shorter)
    full = network(x, t, context=context)
    torch.testing.assert_close(network(x, t, context=context, context_mask=torch.ones_like(mask)), full)
    assert (full - shorter).abs().max() > 1e-3


@each
def test_the_order_of_a_context_says_nothing(kind):
    network, x, t, context, mask = prepared(kind)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        network(x, t, context=context[:, order], context_mask=mask[:, order]),
        network(x, t, context=context, context_mask=mask),
    )


@each
def test_none_of_no_vectors_and_masked_whole_are_the_same(kind):
    network, x, t, context, mask = prepared(kind)
    alone = network(x, t)
    empty = network(x, t, context=context[:, :0], context_mask=mask[:, :0])
    masked = network(x, t, context=context, context_mask=torch.zeros_like(mask))
    torch.testing.assert_close(empty, alone)
    torch.testing.assert_close(network(x, t, context=context[:, :0]), alone)
    torch.testing.assert_close(masked, alone)
    mask[1] = False  # one sample of a batch
    output = network(x, t, context=context, context_mask=mask)
    torch.testing.assert_close(output[1], alone[1])
    others = torch.tensor([0, 2, 3])
    assert ((output - alone)[others].abs().flatten(1).amax(1) > 1e-3).all()


@each
def test_layers_that_read_a_context_have_a_gradient_of_zero_if_it_is_masked_and_none_without_it(kind):
    network, x, t, context, mask = prepared(kind)
    readers = [name for name, _ in network.named_parameters() if ".cross.context." in name]
    found = []
    for told in ({}, {"context": context, "context_mask": torch.zeros_like(mask)}, {"context": context}):
        network.zero_grad(set_to_none=True)
        network(x, t, torch.arange(4), **told).square().sum().backward()
        gradients = dict(network.named_parameters())
        found.append([gradients[name].grad for name in readers])
        without = [name for name, p in gradients.items() if p.grad is None]
        assert without == ([] if told else readers)
    assert readers
    assert all(gradient is None for gradient in found[0])
    assert not any(gradient.any() for gradient in found[1])
    assert all(gradient.any() for gradient in found[2])


@each
def test_zeros_are_not_no_context(kind):
    network, x, t, context, _ = prepared(kind)
    assert (network(x, t, context=torch.zeros_like(context)) - network(x, t)).abs().max() > 1e-3


@each
def test_label_and_context_both_count(kind):
    network, x, t, context, mask = prepared(kind)
    network.eval()
    label, told = torch.arange(4), {"context": context, "context_mask": mask}
    outputs = [network(x, t), network(x, t, label), network(x, t, **told), network(x, t, label, **told)]
    for i in range(4):
        for j in range(i):
            assert (outputs[i] - outputs[j]).abs().flatten(1).amax(1).min() > 1e-3
    torch.testing.assert_close(network(x, t, torch.full((4,), CLASSES), **told), outputs[2])


@pytest.mark.parametrize("masked", [True, False])
def test_both_ways_of_attention_agree_on_a_mask(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    mask = torch.tensor([[True, False, True, True, False], [False, False, False, True, False]])[:, None, None]
    mask = mask if masked else None
    expected = attend(query, key, value, mask)
    primal, tangent = torch.func.jvp(lambda q: attend(q, key, value, mask), (query,), (query.sin(),))
    torch.testing.assert_close(primal, expected)
    h = 1e-6
    ahead, behind = (attend(query + s * query.sin(), key, value, mask) for s in (h, -h))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    if masked:
        torch.testing.assert_close(expected[1], value[1, :, 3:4].expand(3, 5, 4))


@each
def test_jvp_through_the_context(kind):
    network, x, t, context, mask = prepared(kind)

    def along(c: torch.Tensor) -> torch.Tensor:
        return network(x, t, context=c, context_mask=mask)

    _, tangent = torch.func.jvp(along, (context,), (context.sin(),))
    h = 1e-5
    difference = (along(context + h * context.sin()) - along(context - h * context.sin())) / (2 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-7)


# Dropout


def test_context_dropout_in_training_alone_and_for_each_sample():
    module, context = Context(3, dropout=0.25), torch.randn(4000, 5, 3)
    mask = torch.rand(4000, 5) < 0.5
    assert module.eval()(context, mask, 4000)[1] is mask
    assert module(context, None, 4000)[1] is None
    module.train()
    for given in (None, mask):
        torch.manual_seed(3)
        same, dropped = module(context, given, 4000)
        assert same is context
        full = torch.ones_like(mask) if given is None else given
        kept = (dropped == full).all(1)
        assert (kept | ~dropped.any(1)).all()  # whole samples, or nothing
        share = (~dropped.any(1) & full.any(1)).double().sum() / full.any(1).double().sum()
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
        torch.manual_seed(3)
        assert torch.equal(module(context, given, 4000)[1], dropped)


@each
@pytest.mark.parametrize(("dropout", "expected"), [(0.0, "given"), (1.0, "none")])
def test_context_dropout_of_none_and_of_all(kind, dropout, expected):
    network, x, t, context, mask = prepared(kind, context_dropout=dropout, label_dropout=0.0)
    before = torch.get_rng_state()
    output = network(x, t, context=context, context_mask=mask)
    assert torch.equal(torch.get_rng_state(), before) == (dropout == 0)
    network.eval()
    told = {"context": context, "context_mask": mask} if expected == "given" else {}
    torch.testing.assert_close(output, network(x, t, **told))


# Through the library


def model_of(kind):
    network, x, t, context, mask = prepared(kind)
    return gm.predict.Velocity(network.eval(), gm.GaussianPath()), x, t, {"context": context, "context_mask": mask}


@each
def test_guidance_replaces_the_mask(kind):
    model, x, t, told = model_of(kind)
    guided = gm.guidance.ClassifierFree(model, 3.0, null={"context_mask": False})
    instant = guided.at(t)
    given, free = model.network(x, t, **told), model.network(x, t)
    torch.testing.assert_close(guided.native(x, instant, told), free + 3.0 * (given - free))
    assert (given - free).abs().max() > 1e-3


@each
def test_guidance_of_label_and_context(kind):
    model, x, t, told = model_of(kind)
    told = {**told, "label": torch.arange(4)}
    guided = gm.guidance.ClassifierFree(model, -0.5, null={"context_mask": False, "label": CLASSES})
    given, free = model.network(x, t, **told), model.network(x, t)
    torch.testing.assert_close(guided.native(x, guided.at(t), told), free - 0.5 * (given - free))


@each
def test_losses_and_samples_are_told_the_context(kind):
    model, x, _, told = model_of(kind)
    losses = gm.matching_loss(model, x, condition=told, seed=0, reduction="none")
    others = gm.matching_loss(model, x, condition={**told, "context": told["context"] + 1}, seed=0, reduction="none")
    assert (losses - others).abs().min() > 1e-6
    samples = gm.sample(gm.Flow(model), x, steps=3, condition=told)
    none = gm.sample(gm.Flow(model), x, steps=3)
    masked = gm.sample(
        gm.Flow(model), x, steps=3, condition={**told, "context_mask": torch.zeros_like(told["context_mask"])}
    )
    torch.testing.assert_close(masked, none)
    assert ((samples - none).abs().flatten(1).amax(1) > 1e-4).all()


def test_a_context_decides_where_samples_go():
    # Signals of 4 at the height that the second coordinate of the one vector that counts says: only the context knows.
    generator = torch.Generator().manual_seed(0)
    height = torch.randint(0, 2, (512,), generator=generator) * 4.0 - 2.0
    context = torch.randn(512, 2, CONTEXT, generator=generator)
    context[:, 0, 1] = height / 2
    mask = torch.tensor([True, False]).expand(512, 2).contiguous()
    x1 = height[:, None, None].expand(512, 1, 4) + 0.1 * torch.randn(512, 1, 4, generator=generator)
    torch.manual_seed(0)
    network = DiT(1, 4, context=CONTEXT, context_dropout=0.2, **DIT)
    model = gm.predict.Velocity(network, gm.GaussianPath())
    gm.training.fit(
        model,
        (x1, context, mask),
        250,
        batch_size=64,
        condition=("context", "context_mask"),
        lr=1e-2,
        ema=None,
        progress=False,
    )
    network.eval()
    told = {"context": context[:64], "context_mask": mask[:64]}
    samples = gm.sample(gm.Flow(model), (64, 1, 4), steps=10, condition=told, seed=1)
    assert (samples.mean((1, 2)) * height[:64] > 2).double().mean() > 0.9
    guided = gm.guidance.ClassifierFree(model, 1.5, null={"context_mask": False})
    samples = gm.sample(gm.Flow(guided), (64, 1, 4), steps=10, condition=told, seed=1)
    assert (samples.mean((1, 2)) * height[:64] > 2).double().mean() > 0.9
    free = gm.sample(gm.Flow(model), (64, 1, 4), steps=10, seed=1).mean((1, 2))
    assert 0.2 < (free * height[:64] > 0).double().mean() < 0.8  # without it the height is anyone's guess


# Bad input


@each
@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ({"context_mask": torch.ones(4, 2, dtype=torch.bool)}, ValueError, "a context_mask needs a context"),
        ({"context": torch.zeros(4, CONTEXT)}, ValueError, r"context must be \(4, M, 3\), got \(4, 3\)"),
        ({"context": torch.zeros(3, 2, CONTEXT)}, ValueError, r"context must be \(4, M, 3\), got \(3, 2, 3\)"),
        ({"context": torch.zeros(4, 2, 5)}, ValueError, r"context must be \(4, M, 3\), got \(4, 2, 5\)"),
        ({"context": torch.zeros(4, 2, 3, dtype=torch.int64)}, TypeError, "got torch.int64: embed ids first"),
        (
            {"context": torch.zeros(4, 2, 3), "context_mask": torch.ones(4, 2)},
            TypeError,
            "context_mask must be bool, true where a vector counts, got torch.float32",
        ),
        (
            {"context": torch.zeros(4, 2, 3), "context_mask": torch.ones(4, 3, dtype=torch.bool)},
            ValueError,
            r"context_mask must be \(4, 2\), one for each vector of the context, got \(4, 3\)",
        ),
        (
            {"context": torch.zeros(4, 2, 3), "context_mask": torch.ones(2, dtype=torch.bool)},
            ValueError,
            r"context_mask must be \(4, 2\).* got \(2,\)",
        ),
    ],
)
def test_bad_contexts(kind, told, error, message):
    with pytest.raises(error, match=message):
        kind.build()(kind.states(4), torch.rand(4), **told)


@pytest.mark.parametrize("name", ["unet", "dit"])
@pytest.mark.parametrize("told", ["context", "context_mask"])
def test_a_context_to_a_network_that_reads_none(name, told):
    kind = BY_NAME[name]
    with pytest.raises(ValueError, match="this network reads no context: build it with context="):
        kind.build()(kind.states(4), torch.rand(4), **{told: torch.ones(4, 2, 3)})


@each
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "the vectors of a context have a positive size, got context=0"),
        ({"context_dropout": -0.1}, r"the dropout of a context is a probability in \[0, 1\], got -0.1"),
    ],
)
def test_bad_context_options(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind.build(**options)


def test_a_unet_without_attention_reads_no_context():
    with pytest.raises(ValueError, match="a context is read by attention: name at least one level in attention"):
        UNet(1, attention=(), context=3)


@pytest.mark.parametrize("axes", [0, 4, "2"])
def test_axes_of_a_unet(axes):
    with pytest.raises(ValueError, match=f"a state has 1, 2 or 3 axes, got axes={axes!r}"):
        UNet(1, axes=axes)


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        (1, (2, 1, 5), "length must be multiples of 2, .* got 5"),
        (1, (2, 1, 4, 4), r"x must be \(B, 1, L\), got \(2, 1, 4, 4\)"),
        (3, (2, 1, 4, 4, 3), "depth, height and width must be multiples of 2, .* got 4 x 4 x 3"),
        (3, (2, 1, 4, 4), r"x must be \(B, 1, D, H, W\), got \(2, 1, 4, 4\)"),
    ],
)
def test_states_of_signals_and_volumes(axes, shape, message):
    network = UNet(1, width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(), axes=axes)
    with pytest.raises(ValueError, match=message):
        network(torch.zeros(shape), torch.rand(2))


def test_heads_of_cross_attention():
    with pytest.raises(ValueError, match="heads must divide the width: got heads=3 and width 8"):
        CrossAttention(8, 3, 5)
