from __future__ import annotations

import inspect
import math

import pytest
import torch
from small_runs import Mean, Network, Plain, build, flow_loss, points, same, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from genmatch.nn import EMA
from genmatch.random import Draws
from genmatch.training import Fit, fit, load


def run(model, data=None, steps=6, **options) -> Fit:
    options = {"loss": flow_loss, "ema": None, "progress": False, "batch_size": 16, "lr": 1e-2, **options}
    return fit(model, points()[0] if data is None else data, steps, **options)


def plain(seed: int = 0) -> Plain:
    torch.manual_seed(seed)
    return Plain()


# The loop is the loop one would write


def test_it_is_the_loop_written_by_hand():
    x1, ours, theirs = points()[0], plain(), plain()
    average = Mean(ours, 0.8)
    result = run(ours, x1, 12, warmup=3, schedule="cosine", clip=0.5, seed=7, ema=average, log_every=1)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1, (k + 1) / 3) * 0.5 * (1 + math.cos(math.pi * max(0, k - 3) / 9))
    )
    mean = Mean(theirs, 0.8)
    order = []
    for epoch in range(4):
        words = Draws(7, 50, step=epoch).fork(255).fork(255).bits((50, 2)).tolist()
        order += sorted(range(50), key=lambda i: (words[i][0], words[i][1] >> 1))
    for step in range(12):
        rows = order[16 * step : 16 * (step + 1)]
        optimizer.zero_grad()
        loss = flow_loss(theirs, x1[rows], None, Draws(7, 16, step=step))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        assert result.losses[step] == pytest.approx(loss.item(), rel=1e-5)
        assert result.rows[step].grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert result.rows[step].lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        rates.step()
        mean.update()
    for name, value in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(average.values[name], mean.values[name], rtol=1e-4, atol=1e-6)


def test_it_learns():
    # All data in one point: a good network's loss is small, while without it no network's is below the variance of x0.
    result = run(plain(), torch.full((64, 2), 2.0), 300, lr=3e-2)
    assert result.losses[0] > 2
    assert sum(result.losses[-20:]) / 20 < 0.5


# Accumulation


def trained(data, loss=flow_loss, **options) -> dict[str, torch.Tensor]:
    model = plain().double()
    run(model, data, loss=loss, batch_size=options.pop("batch_size", None), **options)
    return weights(model)


def test_accumulated_batches_are_one_large_batch():
    data = points()[0].double()
    whole = trained(data, batch_size=32)
    pieces = trained(data, batch_size=8, accumulate=4)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-10, atol=1e-12)


def test_accumulated_batches_with_equal_draws_are_not():
    # Draws that forget where in the step a batch stands give every piece the same noise.
    def forgetful(model, x1, condition, draws):
        return flow_loss(model, x1, condition, Draws(draws.seed, draws.samples, step=draws.step))

    data = points()[0].double()
    whole = trained(data, forgetful, batch_size=32)
    pieces = trained(data, forgetful, batch_size=8, accumulate=4)
    assert (whole["body.0.weight"] - pieces["body.0.weight"]).abs().max() > 1e-4


def test_batches_of_different_sizes_count_by_their_samples():
    x1 = points(12)[0].double()
    sgd = {"optimizer": None, "steps": 1, "clip": None}
    whole = trained([x1], **sgd)
    pieces = trained([x1[:3], x1[3:]], accumulate=2, **sgd)
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-10, atol=1e-12)


def test_the_loss_of_an_accumulated_step_is_the_mean_over_its_samples():
    x1 = points(12)[0]
    whole = run(plain(), [x1], 1, batch_size=None).losses
    pieces = run(plain(), [x1[:3], x1[3:]], 1, batch_size=None, accumulate=2).losses
    assert pieces == pytest.approx(whole, rel=1e-5)
    by_hand = [
        flow_loss(plain(), x1[:3], None, Draws(0, 3)),
        flow_loss(plain(), x1[3:], None, Draws(0, 9, first_index=3)),
    ]
    assert pieces[0] == pytest.approx((3 * by_hand[0].item() + 9 * by_hand[1].item()) / 12, rel=1e-5)
    assert abs(pieces[0] - (by_hand[0].item() + by_hand[1].item()) / 2) > 1e-3


# Seeds and global state


def test_a_seed_is_a_run_even_with_dropout():
    results = []
    for seed, before in ((0, 1), (0, 2), (1, 1)):
        model = build()
        torch.manual_seed(before)
        run(model, points(), seed=seed)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = plain()
    state = torch.get_rng_state()
    run(build(), points())
    torch.set_rng_state(state)
    run(model, DataLoader(TensorDataset(points()[0]), batch_size=8, shuffle=True), batch_size=None)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


def test_dropout_differs_from_step_to_step():
    masks = []

    def loss(model, x1, condition, draws):
        masks.append(model.dropout(torch.ones(64)))
        return flow_loss(model, x1, condition, draws)

    run(build(), points(), 5, loss=loss)
    assert len({tuple(mask.tolist()) for mask in masks}) == 5


def test_a_callback_does_not_change_the_run():
    def meddle(state):
        torch.rand(7)
        state.model.eval()

    quiet, loud = build(), build()
    run(quiet, points(), log_every=2)
    run(loud, points(), log_every=2, callback=meddle)
    assert same(weights(quiet), weights(loud))


@pytest.mark.parametrize("mode", [True, False])
def test_modes_of_all_submodules_come_back(mode):
    model = build().train(mode)
    model.dropout.train(not mode)
    seen = []

    def loss(model, x1, condition, draws):
        seen.append(all(module.training for module in model.modules()))
        return flow_loss(model, x1, condition, draws)

    run(model, points(), loss=loss)
    assert all(seen)
    assert model.training is mode
    assert model.dropout.training is not mode
    with pytest.raises(ZeroDivisionError):
        run(model, points(), loss=lambda *_, **__: 1 / 0)
    assert model.training is mode
    assert model.dropout.training is not mode


def test_the_optimiser_keeps_its_rates_and_no_gradients():
    model = plain()
    optimizer = torch.optim.SGD(
        [{"params": model.body[0].parameters(), "lr": 0.1}, {"params": model.body[2].parameters()}], lr=0.2
    )
    result = run(model, optimizer=optimizer, lr=None, warmup=3, schedule="cosine", log_every=1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]
    assert result.rows[0].lr == pytest.approx(0.1 / 3)
    assert all(p.grad is None for p in model.parameters())


# Options


def test_clipping_bounds_the_step_and_the_norm_is_that_before():
    model = plain()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    result = run(model, steps=1, optimizer=optimizer, lr=None, clip=1e-3)
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm().item()
    assert moved == pytest.approx(1e-3, rel=1e-3)
    assert result.rows[0].grad_norm > 0.1


def test_no_clipping_takes_the_whole_gradient():
    model = plain()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    result = run(model, steps=1, optimizer=optimizer, lr=None, clip=None)
    moved = (nn.utils.parameters_to_vector(model.parameters()).detach() - before).norm().item()
    assert moved == pytest.approx(1e-2 * result.rows[0].grad_norm, rel=1e-3)


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights():
    dtypes = set()
    model = plain()
    model.body[0].register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    run(model, autocast="bf16")
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    dtypes.clear()
    run(model)
    assert dtypes == {torch.float32}


def test_channels_last_reaches_weights_and_images():
    model = nn.Conv2d(3, 3, 3, padding=1)
    seen = []

    def loss(model, x1, condition, draws):
        seen.append(x1.is_contiguous(memory_format=torch.channels_last) and not x1.is_contiguous())
        return (model(x1) - x1).square().mean()

    run(model, torch.rand(20, 3, 4, 4), loss=loss, channels_last=True, accumulate=2, batch_size=4)
    assert all(seen)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_compile_compiles_the_network(monkeypatch):
    compiled = []

    def note(module):
        compiled.append(module)

    monkeypatch.setattr(nn.Module, "compile", note)
    model = nn.Module()
    model.network = plain()
    run(model, loss=lambda model, *args, **kwargs: flow_loss(model.network, *args, **kwargs), compile=True)
    assert compiled == [model.network]
    run(model.network, compile=True)
    assert compiled == [model.network, model.network]
    run(model.network)
    assert len(compiled) == 2


def test_compile_leaves_a_compiled_network_alone():
    runs = []

    def backend(graph, inputs):
        def run_graph(*args):
            runs.append(graph)
            return graph(*args)

        return run_graph

    def loss(model, *args, **kwargs):
        return flow_loss(model.network, *args, **kwargs)

    eager = nn.Module()
    eager.network = plain()
    run(eager, loss=loss)
    in_place = plain()
    in_place.compile(backend=backend)
    for compiled in (torch.compile(plain(), backend=backend), in_place):
        runs.clear()
        model = nn.Module()
        model.network = compiled
        run(model, loss=loss, compile=True)
        assert len(runs) == 6  # steps, by the backend of the user and not the default one
        assert (compiled._compiled_call_impl is None) == (compiled is not in_place)  # and nothing around it
        for own, other in zip(compiled.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(own, other)


@pytest.mark.slow
def test_compiled_training_is_training():
    eager, compiled = plain(), plain()
    run(eager)
    run(compiled, compile=True)
    for name, value in weights(eager).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-5)


def test_frozen_weights_stay():
    model = plain()
    model.body[0].requires_grad_(False)
    before = weights(model)
    run(model)
    assert torch.equal(model.body[0].weight, before["body.0.weight"])
    assert not torch.equal(model.body[2].weight, before["body.2.weight"])


def test_conditions_reach_the_loss():
    seen = []

    def loss(model, x1, condition, draws):
        seen.append(condition)
        return flow_loss(model, x1, condition, draws)

    x1, condition = points()
    run(build(), (x1, condition), 1, loss=loss)
    run(build(), x1, 1, loss=loss)
    run(build(), DataLoader(TensorDataset(x1, condition["label"]), 8), 1, loss=loss, condition="label", batch_size=None)
    assert seen[0]["label"].shape == (16,)
    assert seen[1] is None
    assert torch.equal(seen[2]["label"], condition["label"][:8])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.RMSprop])
def test_any_optimiser_will_do(optimizer):
    model = plain()
    before = weights(model)
    run(model, optimizer=optimizer(model.parameters(), lr=1e-2), lr=None)
    assert not same(weights(model), before)


# What it tells


def test_rows_are_means_over_their_steps():
    result = run(plain(), steps=10, log_every=4)
    assert [row.step for row in result.rows] == [4, 8, 10]
    assert [row.samples for row in result.rows] == [64, 128, 160]
    assert [row.loss for row in result.rows] == pytest.approx(
        [sum(result.losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))]
    )
    seconds = [row.seconds for row in result.rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= result.seconds + 1e-9
    norms = [row.grad_norm for row in run(plain(), steps=10, log_every=1).rows]
    assert result.rows[0].grad_norm == pytest.approx(sum(norms[:4]) / 4)


def test_the_result():
    model, average = plain(), Mean(plain())
    result = run(model, steps=3, ema=average)
    assert result.model is model
    assert result.ema is average
    assert (result.start, result.step, len(result.losses)) == (0, 3, 3)
    assert repr(result).startswith("Fit(Plain, step 3 from 0, loss ")


def test_a_callback_sees_every_row_and_can_stop():
    seen = []

    def watch(state):
        seen.append((state.step, len(state.losses), state.rows[-1].step))
        return state.step == 6

    result = run(plain(), steps=20, log_every=3, callback=watch)
    assert seen == [(3, 3, 3), (6, 6, 6)]
    assert result.step == 6
    # A truthy value is not enough: a callback that returns a number by accident goes on.
    assert run(plain(), steps=6, log_every=3, callback=lambda state: 1).step == 6


def test_the_bar(capfd):
    run(plain(), steps=6, progress=False)
    assert capfd.readouterr() == ("", "")
    run(plain(), steps=6, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "6/6" in err
    assert "loss " in err


# Numbers that are not finite


def spoilt(at: int, how):
    calls = iter(range(10**6))

    def loss(model, x1, condition, draws):
        value = flow_loss(model, x1, condition, draws)
        return how(value) if next(calls) == at else value

    return loss


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda loss: loss * math.nan, r"the loss of step 8 is nan, that of the step before was [\d.]+: .*lr=0\.01"),
        (lambda loss: loss * math.inf, "the loss of step 8 is inf"),
        # d sqrt(y)/dy is infinite at 0: a finite loss with a gradient that is not.
        (lambda loss: loss + (loss - loss.detach()).abs().sqrt(), "the gradient of step 8 has norm (nan|inf)"),
    ],
)
def test_a_loss_that_is_not_finite_raises_at_the_next_row(how, message, tmp_path):
    seen = []
    with pytest.raises(FloatingPointError, match=message):
        run(
            plain(),
            steps=50,
            loss=spoilt(7, how),
            log_every=5,
            log=tmp_path / "log.csv",
            checkpoint=tmp_path,
            checkpoint_every=4,
            callback=lambda state: seen.append(state.step),
        )
    assert seen == [5]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    # The checkpoint of step 4 is there, that of step 8 was not written.
    assert load(tmp_path / "checkpoint.safetensors", plain()) == {"step": 4}


def test_weights_that_are_not_finite_are_not_stored(tmp_path):
    model = plain()

    class Broken(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["params"][1].data.fill_(math.inf)

    optimizer = Broken(model.parameters(), lr=1e-3)
    with pytest.raises(FloatingPointError, match=r"no longer finite \(body\.0\.bias is the first\)"):
        run(model, steps=1, optimizer=optimizer, lr=None, checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_infinite_buffers_are_no_error(tmp_path):
    model = plain()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    run(model, checkpoint=tmp_path)


# The host does not wait


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def host_reads(steps: int, **options) -> int:
    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # AdamW on a CPU reads its counters, which are on the host
    with Reads() as reads:
        run(model, steps=steps, batch_size=25, log_every=10**6, optimizer=optimizer, lr=None, **options)
    return reads.count


def test_steps_read_nothing_to_the_host():
    options = {"ema": 0.9, "warmup": 3, "schedule": "cosine", "accumulate": 2}
    assert host_reads(40, **options) == host_reads(4, **options)


def test_a_read_in_the_loss_is_seen():
    def loss(model, x1, condition, draws):
        value = flow_loss(model, x1, condition, draws)
        value.item()
        return value

    assert host_reads(40, loss=loss) == host_reads(4) + 40


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu():
    def loss(model, x1, condition, draws):
        torch.cuda.set_sync_debug_mode("error" if draws.step else "default")
        return flow_loss(model, x1, condition, draws)

    try:
        result = run(plain(), steps=20, loss=loss, log_every=5, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(result.losses) == 20


# Bad input


BAD = [
    ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ({"steps": 2.5}, TypeError, r"steps must be an integer, got 2\.5"),
    ({"steps": True}, TypeError, "steps must be an integer, got True"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"accumulate": 0}, ValueError, "accumulate must be at least 1"),
    ({"log_every": 0}, ValueError, "log_every must be at least 1"),
    ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be at least 1"),
    ({"warmup": -1}, ValueError, "warmup must be at least 0, got -1"),
    ({"schedule": "step"}, ValueError, "schedule must be 'constant', 'cosine' or a function"),
    ({"clip": 0}, ValueError, "clip must be a positive number or None, got 0"),
    ({"clip": "1"}, ValueError, "clip must be a positive number or None, got '1'"),
    ({"clip": math.nan}, ValueError, "clip must be a positive number or None, got nan"),
    ({"lr": 0.0}, ValueError, r"lr must be a positive number, got 0\.0"),
    ({"lr": math.nan}, ValueError, "lr must be a positive number, got nan"),
    ({"ema": 1.0}, ValueError, r"ema must be a decay in \[0, 1\), got 1\.0"),
    ({"ema": "yes"}, TypeError, "ema must be a decay such as 0.999, a genmatch.nn.EMA or None, got 'yes'"),
    ({"autocast": "fp16"}, ValueError, "autocast must be 'bf16' or None, got 'fp16': float16 would need loss scaling"),
    ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ({"seed": 2**64}, ValueError, r"seed must be in \[0, 2\*\*64\)"),
    ({"seed": 0.5}, TypeError, "seed must be an integer, got 0.5"),
    ({"seed": None}, TypeError, "seed must be an integer, got None"),
    ({"resume": "previous"}, ValueError, "resume='previous' goes on from a checkpoint: give checkpoint="),
    ({"resume": "last"}, ValueError, "resume must be True, False or 'previous', got 'last'"),
    ({"loss": 3}, TypeError, "loss must be a function, got 3"),
    ({"callback": "print"}, TypeError, "callback must be a function, got 'print'"),
    ({"log": "metrics.txt"}, ValueError, r"log must end in \.csv or \.jsonl"),
    ({"checkpoint": "run.pt"}, ValueError, r"checkpoints are safetensors, got 'run\.pt'"),
    ({"optimizer": "adam", "lr": None}, TypeError, "optimizer must be a torch optimiser or None, got str"),
    ({"device": "nowhere"}, RuntimeError, "nowhere"),
    (
        {"loss": lambda *_, **__: 3.0},
        ValueError,
        "the loss must be a scalar tensor, the mean over the batch, got float",
    ),
    ({"loss": lambda *_, **__: torch.zeros(4)}, ValueError, r"the loss must be a scalar tensor, .* got \(4,\)"),
    ({"loss": lambda *_, **__: torch.zeros(())}, ValueError, "does not depend on any trainable parameter"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[case[2] for case in BAD])
def test_options_that_make_no_sense_are_refused(options, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(plain(), **options)
    assert not list(tmp_path.iterdir())


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        run(plain(), learning_rate=1e-3)
    kinds = {parameter.kind for parameter in inspect.signature(fit).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


def test_models_that_cannot_be_trained_are_refused():
    with pytest.raises(TypeError, match=r"model must be a torch module .* got function"):
        run(lambda x, t: x)
    with pytest.raises(ValueError, match="ReLU has no parameter to train"):
        run(nn.ReLU())
    with pytest.raises(ValueError, match="Plain has no parameter to train"):
        run(plain().requires_grad_(False))


def test_optimisers_that_do_not_go_with_the_model_are_refused():
    model, other = plain(), plain()
    with pytest.raises(ValueError, match="the optimiser holds 4 parameters that are not the model's"):
        run(model, optimizer=torch.optim.SGD(other.parameters(), lr=0.1), lr=None)
    with pytest.raises(ValueError, match="give lr to the optimiser, or leave the optimiser to fit"):
        run(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), lr=0.1)
    with pytest.raises(TypeError, match="LBFGS evaluates the loss several times"):
        run(model, optimizer=torch.optim.LBFGS(model.parameters()), lr=None)


def test_an_average_of_another_model_is_refused():
    model = plain()
    with pytest.raises(ValueError, match="ema averages another Plain than the one that is trained"):
        run(model, ema=EMA(plain()))
    assert run(model, ema=EMA(model.body)).step == 6


def test_a_decay_makes_an_average():
    model = plain()
    average = run(model, ema=0.5).ema
    assert isinstance(average, EMA)
    assert (average.module, average.decay, average.updates) == (model, 0.5, 6)


def test_a_loss_of_another_model_is_refused():
    other = plain()
    with pytest.raises(ValueError, match="no parameter of the optimiser got a gradient: does the loss use this model"):
        run(plain(), loss=lambda model, x1, condition, draws: flow_loss(other, x1, condition, draws))


def test_defaults_are_those_documented():
    defaults = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    assert defaults["clip"] == 1.0
    model = Network()
    from genmatch.training.optimizers import choose_optimizer

    optimizer = choose_optimizer(model, None, None)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["lr"] == 2e-4
    assert (
        optimizer.param_groups[0]["weight_decay"]
        == torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).defaults["weight_decay"]
    )
