"""What every network does: the call, times, labels, dtypes, derivatives, compilation."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from small_networks import BY_NAME, CLASSES, KINDS, SMOOTH, awake
from torch import nn

from genmatch.nn import MLP, Fourier, Transformer, UNet

COMPILED = [
    pytest.param(kind, id=kind.name, marks=[] if kind.name in ("mlp", "unet", "dit_context") else pytest.mark.slow)
    for kind in KINDS
]
each_checkpointed = pytest.mark.parametrize("name", ["unet_context", "unet_3d", "dit_context", "dit_1d"])
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
each_smooth = pytest.mark.parametrize("kind", SMOOTH, ids=lambda kind: kind.name)


def outputs_of(kind, network: nn.Module, t, label=None) -> torch.Tensor:
    with torch.no_grad():
        return kind.call(network)(kind.states(len(t)), t, label=label)


# The call


@each
def test_new_networks_return_zero_and_can_learn_from_there(kind):
    network = kind.build()
    x, t, label = kind.states(4), torch.rand(4), torch.arange(4)
    told = kind.call(network)
    assert not told(x, t, label=label).any()
    # A gradient must reach every parameter within a few steps: two zeros in a row would keep each other at zero.
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    reached = set()
    for seed in range(4):
        torch.manual_seed(seed)
        optimiser.zero_grad()
        output = told(x, t, label=label)
        (output - torch.randn(output.shape)).square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        reached |= {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
    # A shift in front of a normalisation is taken off again; keys may gain a common vector freely.
    assert {name for name, _ in network.named_parameters()} - reached == set()


@each
def test_time_matters(kind):
    network = awake(kind.build())
    same, later = torch.full((4,), 0.5), torch.full((4,), 0.6)
    change = outputs_of(kind, network, same) - outputs_of(kind, network, later)
    assert change.abs().max() > 0.01
    assert torch.equal(outputs_of(kind, network, same), outputs_of(kind, network, same))


@each
def test_rows_do_not_see_each_other(kind):
    network = awake(kind.build().double()).eval()
    x, t = kind.states(6, torch.float64), torch.rand(6, dtype=torch.float64)
    label = torch.tensor([0, 1, 2, CLASSES, 4, 0])
    told = kind.told(6, torch.float64)

    def of(rows) -> torch.Tensor:
        return network(x[rows], t[rows], label=label[rows], **{name: value[rows] for name, value in told.items()})

    together = of(slice(None))
    torch.testing.assert_close(together, torch.cat([of([i]) for i in range(6)]), rtol=1e-10, atol=1e-10)
    order = torch.randperm(6)
    torch.testing.assert_close(of(order), together[order], rtol=1e-10, atol=1e-10)
    assert (together - together.roll(1, 0)).abs().max() > 0.01  # or the comparison would say nothing


@each
def test_times_and_channels_of_equal_number(kind):
    # A (B,) time that broadcast along a feature would pass unnoticed but for its values.
    batch = kind.width
    network = awake(kind.build().double()).eval()
    x, t = kind.states(batch, torch.float64), torch.rand(batch, dtype=torch.float64)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(batch)])
    torch.testing.assert_close(network(x, t), alone, rtol=1e-9, atol=1e-9)


@each
def test_state_dict_round_trip(kind):
    network, other = awake(kind.build(), 0), awake(kind.build(), 1)
    t = torch.rand(3)
    assert not torch.equal(outputs_of(kind, network, t), outputs_of(kind, other, t))
    other.load_state_dict(network.state_dict())
    assert torch.equal(outputs_of(kind, network, t), outputs_of(kind, other, t))


@each
def test_time_scale_multiplies_the_times(kind):
    by_index, by_time = kind.build(time_scale=1.0), kind.build(time_scale=1000.0)
    awake(by_index).load_state_dict(awake(by_time).state_dict())
    t = torch.tensor([0.0, 0.25, 0.999])
    torch.testing.assert_close(outputs_of(kind, by_index, 1000 * t), outputs_of(kind, by_time, t), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(outputs_of(kind, by_index, t), outputs_of(kind, by_time, t), atol=1e-2)


@each
def test_another_embedding_of_time(kind):
    network = awake(kind.build(time=Fourier(10, bandwidth=1.0)))
    assert "conditioning.time.frequencies" in network.state_dict()
    assert outputs_of(kind, network, torch.tensor([-1.5, 0.0, 1.1])).isfinite().all()


# Labels


@each
def test_none_is_the_null_label_and_labels_matter(kind):
    network = awake(kind.build()).eval()
    t, null = torch.rand(4), torch.full((4,), CLASSES)
    torch.testing.assert_close(outputs_of(kind, network, t), outputs_of(kind, network, t, null))
    labelled = outputs_of(kind, network, t, torch.arange(4))
    assert (labelled - outputs_of(kind, network, t)).abs().amax(dim=tuple(range(1, labelled.ndim))).min() > 1e-3


@each
def test_label_dropout_in_training_alone(kind):
    network, t, label = awake(kind.build(label_dropout=0.25)), torch.rand(4000), torch.arange(4000) % CLASSES
    network.eval()
    given, null = network.conditioning(t, label, 4000), network.conditioning(t, None, 4000)
    assert torch.equal(network.conditioning(t, label, 4000), given)
    network.train()
    torch.manual_seed(3)
    mixed = network.conditioning(t, label, 4000)
    dropped, kept = (mixed == null).all(1), (mixed == given).all(1)
    assert (dropped ^ kept).all()
    assert abs(dropped.double().mean() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5
    torch.manual_seed(3)  # the draw is of the global generator
    assert torch.equal(network.conditioning(t, label, 4000), mixed)


@each
@pytest.mark.parametrize(("dropout", "expected"), [(0.0, "given"), (1.0, "null")])
def test_label_dropout_of_none_and_of_all(kind, dropout, expected):
    network = awake(kind.build(label_dropout=dropout))
    t, label = torch.rand(4), torch.arange(4)
    before = torch.get_rng_state()
    output = outputs_of(kind, network, t, label)
    assert torch.equal(torch.get_rng_state(), before) == (dropout == 0)
    network.eval()
    torch.testing.assert_close(output, outputs_of(kind, network, t, label if expected == "given" else None))


# Dtypes, derivatives, compilation


@each
def test_bfloat16_autocast_is_close(kind):
    network = awake(kind.build()).eval()
    x, t, label = kind.states(6), torch.rand(6), torch.arange(6) % CLASSES
    expected = kind.call(network)(x, t, label=label)
    with torch.autocast("cpu", torch.bfloat16):
        output = kind.call(network)(x, t, label=label)
        if len(kind.shape) < 4:  # torch's bfloat16 gradient of a 3-D convolution on a CPU reads memory nobody wrote
            output.float().square().mean().backward()
    error = (output.float() - expected).norm() / expected.norm()
    assert 1e-4 < error < 0.03  # bfloat16 rounds by up to 1/256: less would mean that nothing was cast
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@each
def test_bfloat16_weights(kind):
    network = awake(kind.build()).eval()
    t = torch.rand(6)
    expected = outputs_of(kind, network, t)
    output = network.to(torch.bfloat16)(kind.states(6, torch.bfloat16), t, **kind.told(6, torch.bfloat16))
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() / expected.norm() < 0.04


@each
def test_gradients_of_all_weights_are_the_derivatives(kind):
    network = awake(kind.build().double()).eval()
    x, t, label = kind.states(3, torch.float64), torch.rand(3, dtype=torch.float64), torch.tensor([0, CLASSES, 2])
    parameters, told = list(network.parameters()), kind.call(network)
    gradients = torch.autograd.grad(told(x, t, label=label).sin().sum(), parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            direction, values, kept = torch.randn_like(parameter), [], parameter.clone()
            for h in (1e-6, -1e-6):
                parameter.copy_(kept + h * direction)
                values.append(told(x, t, label=label).sin().sum())
            parameter.copy_(kept)
            torch.testing.assert_close(
                (gradient * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-6
            )


@each_smooth
def test_jvp_is_the_derivative(kind):
    network = kind.call(awake(kind.build(time_scale=1.0).double()).eval())
    x, t = kind.states(3, torch.float64), torch.rand(3, dtype=torch.float64)
    along = (kind.states(3, torch.float64).flip(0), torch.ones(3, dtype=torch.float64))
    _, tangent = torch.func.jvp(network, (x, t), along)
    h = 1e-5
    ahead, behind = (network(x + s * along[0], t + s * along[1]) for s in (h, -h))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-7)
    _, still = torch.func.jvp(lambda x: network(x, t), (x,), along[:1])
    assert (tangent - still).abs().max() > 1e-3  # the time has its part in it


@pytest.mark.parametrize(
    ("name", "low"),
    # Under autocast on a CPU, torch leaves the tangent behind a group normalisation in float32, which conv2d refuses.
    [
        (kind.name, low)
        for kind in SMOOTH
        for low in ("weights", "autocast")
        if (kind.name[:4], low) != ("unet", "autocast")
    ],
)
def test_jvp_in_bfloat16_is_close(name, low):
    kind = BY_NAME[name]
    network = awake(kind.build(time_scale=1.0)).eval()
    x, t, dtype = kind.states(3), torch.rand(3), torch.bfloat16
    expected = torch.func.jvp(lambda x: kind.call(network)(x, t), (x,), (x.flip(0),))[1]
    if low == "weights":
        network, x = network.to(dtype), x.to(dtype)
    told = kind.told(3, x.dtype)
    with torch.autocast("cpu", dtype, enabled=low == "autocast"):
        output, tangent = torch.func.jvp(lambda x: network(x, t, **told), (x,), (x.flip(0),))
    assert output.dtype == dtype
    assert (tangent.float() - expected).norm() / expected.norm() < 0.06


@each_smooth
def test_vjp_is_the_transpose_of_jvp(kind):
    network = kind.call(awake(kind.build().double()).eval())
    x, t = kind.states(2, torch.float64), torch.rand(2, dtype=torch.float64)
    direction, weights = x.flip(0), x.cos()
    _, tangent = torch.func.jvp(lambda x: network(x, t), (x,), (direction,))
    _, pull = torch.func.vjp(lambda x: network(x, t), x)
    torch.testing.assert_close((tangent * weights).sum(), (pull(weights)[0] * direction).sum())


def with_gradients(function, network, *inputs, **condition):
    network.zero_grad()
    torch.manual_seed(0)  # the dropout of labels
    output = function(*inputs, **condition)
    output.square().mean().backward()
    return output.detach(), [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("kind", COMPILED)
@pytest.mark.parametrize(("labelled", "backend"), [(True, "aot_eager"), (False, "eager")], ids=["label", "null"])
def test_compiles_in_one_graph(kind, labelled, backend):
    network = awake(kind.build(**({"context_dropout": 0.5} if kind.reads_context else {})))
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    for batch in (3, 4) if backend == "eager" else (3,):  # the second compiles for any batch
        inputs = (kind.states(batch), torch.rand(batch), torch.arange(batch) if labelled else None)
        torch.testing.assert_close(
            with_gradients(kind.call(compiled), network, *inputs), with_gradients(kind.call(network), network, *inputs)
        )


@pytest.mark.parametrize("kind", [each for each in COMPILED if each.id != "transformer"])
def test_vjp_compiles_in_one_graph(kind):
    network = awake(kind.build()).eval()
    x, t, told = kind.states(3), torch.rand(3), kind.told(3)
    torch._dynamo.reset()

    def pulled(x, t):
        output, pull = torch.func.vjp(lambda x: network(x, t, **told), x)
        return pull(torch.ones_like(output))[0]

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(pulled, fullgraph=True, backend="eager")(x, t), pulled(x, t))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit_context"])
def test_inductor_agrees(name):
    kind = BY_NAME[name]
    network = awake(kind.build()).eval()
    torch._dynamo.reset()
    x, t, label = kind.states(3), torch.rand(3), torch.arange(3)
    with torch.no_grad():
        output = kind.call(torch.compile(network, fullgraph=True))(x, t, label=label)
        torch.testing.assert_close(output, kind.call(network)(x, t, label=label), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [each for each in COMPILED if each.id == "unet" or each.marks])
def test_one_compilation_serves_any_batch(kind):
    network = awake(kind.build(classes=None)).eval()
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for batch in (7, 9, 11):  # not the size of anything else, which would be taken for it
            inputs = kind.states(batch), torch.rand(batch)
            torch.testing.assert_close(kind.call(compiled)(*inputs), kind.call(network)(*inputs))
    assert counter.frame_count == 1


# Activation checkpointing


def saved_bytes(run) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the weights."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(kept.values())


@each_checkpointed
def test_checkpointing_changes_nothing_but_the_memory(name):
    kind = BY_NAME[name]
    dropouts = {"context_dropout": 0.5} if kind.reads_context else {}
    plain, thrifty = (awake(kind.build(checkpoint=again, **dropouts).double()) for again in (False, True))
    inputs = (kind.states(8, torch.float64), torch.rand(8, dtype=torch.float64), torch.arange(8) % CLASSES)
    torch.testing.assert_close(
        with_gradients(kind.call(thrifty), thrifty, *inputs), with_gradients(kind.call(plain), plain, *inputs)
    )
    wide = (torch.cat([inputs[0]] * 8), inputs[1].repeat(8), inputs[2].repeat(8))
    assert saved_bytes(lambda: kind.call(thrifty)(*wide)) < 0.5 * saved_bytes(lambda: kind.call(plain)(*wide))
    thrifty.eval()  # for evaluation it stays out of the way of torch.func
    value = torch.func.grad(lambda x: kind.call(thrifty)(x, *inputs[1:]).square().sum())(inputs[0])
    plain.eval()
    expected = torch.func.grad(lambda x: kind.call(plain)(x, *inputs[1:]).square().sum())(inputs[0])
    torch.testing.assert_close(value, expected)


def test_checkpointing_draws_the_same_dropout_again():
    network = awake(BY_NAME["unet"].build(checkpoint=True, dropout=0.5).double())
    kind = BY_NAME["unet"]
    x, t = kind.states(4, torch.float64), torch.rand(4, dtype=torch.float64)
    plain = awake(kind.build(dropout=0.5).double())
    torch.testing.assert_close(with_gradients(network, network, x, t), with_gradients(plain, plain, x, t))


@each_checkpointed
def test_jvp_of_a_checkpointing_network(name):
    kind = BY_NAME[name]
    x, t = kind.states(3, torch.float64), torch.rand(3, dtype=torch.float64)
    networks = [awake(kind.build(checkpoint=again, classes=None).double()) for again in (True, False)]
    tangents = [torch.func.jvp(kind.call(network), (x, t), (x.flip(0), t))[1] for network in networks]
    torch.testing.assert_close(*tangents)


@pytest.mark.parametrize("name", ["unet", pytest.param("dit_context", marks=pytest.mark.slow)])
def test_checkpointing_compiles_in_one_graph(name):
    kind = BY_NAME[name]
    network = awake(kind.build(checkpoint=True, classes=None))
    inputs = kind.states(3), torch.rand(3)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(kind.call(compiled), network, *inputs), with_gradients(kind.call(network), network, *inputs)
    )


# Export, layouts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "dit", "dit_learned", "dit_context"])
def test_exports_for_any_batch(name):
    kind = BY_NAME[name]
    network = awake(kind.build(classes=None)).eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    told = kind.told(3)
    program = torch.export.export(
        network,
        (kind.states(3), torch.rand(3)),
        told,
        dynamic_shapes={"x": {0: batch}, "t": {0: batch}, **{name: {0: batch} for name in told}},
    )
    x, t = kind.states(5), torch.rand(5)
    torch.testing.assert_close(program.module()(x, t, **kind.told(5)), network(x, t, **kind.told(5)))


@pytest.mark.parametrize("name", ["unet", "unet_context", "dit", "dit_context"])
def test_channels_last_states(name):
    kind = BY_NAME[name]
    network = awake(kind.build().double()).eval()
    x, t = kind.states(3, torch.float64), torch.rand(3, dtype=torch.float64)
    expected = kind.call(network)(x, t)
    network.to(memory_format=torch.channels_last)
    output = kind.call(network)(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(output, expected, check_stride=False)


# Bad input


@each
@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (5,)])
def test_one_time_for_each_sample(kind, shape):
    with pytest.raises(ValueError, match=r"t must be \(4,\), got .*expand\(4\)"):
        kind.build()(kind.states(4), torch.zeros(shape))


@each
def test_unknown_conditions_are_refused(kind):
    with pytest.raises(TypeError, match="lable"):
        kind.build()(kind.states(4), torch.rand(4), lable=torch.arange(4))


@each
def test_labels_to_a_network_without_classes(kind):
    with pytest.raises(ValueError, match="knows no labels: build it with classes"):
        kind.build(classes=None)(kind.states(4), torch.rand(4), label=torch.arange(4))


@each
@pytest.mark.parametrize(
    ("label", "error", "message"),
    [
        (
            torch.tensor([0, 1, 2, CLASSES + 1]),
            ValueError,
            "labels 0 .. 4 .and 5, the null label.; got ids from 0 to 6",
        ),
        (torch.tensor([0, 1, -1, 2]), ValueError, "got ids from -1 to 2"),
        (torch.arange(3), ValueError, r"one label for each sample is needed, shape \(4,\), got \(3,\)"),
        (torch.arange(4)[:, None], ValueError, r"shape \(4,\), got \(4, 1\)"),
        (torch.arange(4.0), TypeError, r"ids are int64, got torch.float32: convert them by .long\(\)"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_labels(kind, label, error, message, training):
    network = kind.build(label_dropout=1.0).train(training)  # a dropped label is checked as well
    with pytest.raises(error, match=message):
        network(kind.states(4), torch.rand(4), label=label)


@each
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": 0}, ValueError, "classes must be at least 1, got 0"),
        ({"label_dropout": 1.5}, ValueError, r"label_dropout is a probability in \[0, 1\], got 1.5"),
        ({"time_scale": -1.0}, ValueError, "scale must be a finite positive number, got -1"),
        ({"time": nn.Linear(1, 4)}, TypeError, "says in `dim` how long its vectors are.*got Linear"),
    ],
)
def test_bad_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind.build(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(0), "sizes must be positive, got dim=0"),
        (lambda: MLP(2, depth=0), "depth=0"),
        (lambda: MLP(2, embedding=7), "even, positive size .* got dim=7"),
        (lambda: Transformer(0), "sizes must be positive, got vocabulary=0"),
        (lambda: Transformer(27, 26), "inputs counts all input ids, the 27 of the vocabulary .* got 26"),
        (lambda: Transformer(27, width=30, heads=4), "heads must divide the width: got heads=4 and width 30"),
        (lambda: UNet(1, embedding=0), "embedding must be positive, got 0"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# What is special to vectors and to tokens


@pytest.mark.parametrize(("dim", "out"), [(1, None), (3, 5), (40, 1)])
def test_mlp_sizes(dim, out):
    assert MLP(dim, width=8, depth=3, out=out)(torch.zeros(4, dim), torch.rand(4)).shape == (4, out or dim)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 1)])
def test_mlp_states(shape):
    with pytest.raises(ValueError, match=r"x must be \(B, 3\), got .*flatten other states"):
        MLP(3)(torch.zeros(shape), torch.rand(4))


def test_transformer_without_positions_commutes_with_the_order_of_tokens():
    network, kind = awake(BY_NAME["transformer"].build().double()).eval(), BY_NAME["transformer"]
    x, t, order = kind.states(4), torch.rand(4), torch.tensor([2, 4, 0, 1, 3])
    assert not torch.allclose(network(x[:, order], t), network(x, t)[:, order], atol=1e-3)
    nn.init.zeros_(network.positions)
    torch.testing.assert_close(network(x[:, order], t), network(x, t)[:, order])


def test_transformer_reads_every_input_id_and_every_position():
    network = awake(Transformer(3, width=16, depth=1, heads=2, length=4).double())
    x = torch.zeros(2, 4, dtype=torch.int64)
    t = torch.rand(1).expand(2)
    logits = []
    for position in range(4):
        for token in range(4):  # 3 is the mask
            x[0], x[0, position] = 0, token
            logits.append(network(x, t)[0].flatten())
    distances = torch.cdist(torch.stack(logits), torch.stack(logits))
    same = torch.zeros(16, 16, dtype=torch.bool)
    same[::4, ::4] = True  # all zeros, whichever position was set to 0
    assert (distances[~(same | torch.eye(16, dtype=torch.bool))] > 1e-3).all()
    assert (distances[same] < 1e-9).all()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 8, dtype=torch.int64), ValueError, r"L from 1 to 7, got \(2, 8\)"),
        (torch.zeros(2, 0, dtype=torch.int64), ValueError, r"L from 1 to 7, got \(2, 0\)"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"x must be \(B, L\)"),
        (torch.zeros(2, 5), TypeError, "ids are int64, got torch.float32"),
        (torch.full((2, 5), 8), ValueError, "expected input ids 0 .. 7; got ids from 8 to 8"),
        (torch.full((2, 5), -1), ValueError, "got ids from -1 to -1"),
    ],
)
def test_transformer_tokens(x, error, message):
    with pytest.raises(error, match=message):
        BY_NAME["transformer"].build()(x, torch.rand(2))
