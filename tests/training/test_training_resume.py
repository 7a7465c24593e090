from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial

import pytest
import torch
from small_runs import CrashError, Mean, build, flow_loss, points, same, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import genmatch.training.trainer
from genmatch.nn import EMA
from genmatch.training import Fit, fit, load, save
from genmatch.training.batches import Batches
from genmatch.training.stream import Stream

STEPS, CRASH = 21, 14  # the checkpoint before the crash is that of step 12


class Outcome:
    """Everything a run leaves."""

    def __init__(self, result: Fit, optimizer: torch.optim.Optimizer | None) -> None:
        self.result = result
        self.weights = weights(result.model)
        self.average = {} if result.ema is None else {k: v.clone() for k, v in result.ema.state_dict().items()}
        self.moments = {}
        if optimizer is not None:
            for index, state in optimizer.state_dict()["state"].items():
                self.moments |= {f"{index}.{name}": torch.as_tensor(value) for name, value in state.items()}

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Outcome)
            and same(self.weights, other.weights)
            and same(self.average, other.average)
            and same(self.moments, other.moments)
        )


def crash_at(step: int):
    calls = iter(range(10**6))

    def loss(*args, **kwargs):
        if next(calls) == step:
            raise CrashError
        return flow_loss(*args, **kwargs)

    loss.__qualname__ = "flow_loss"  # the same loss, but for the crash
    return loss


def start(make_optimizer=None, data=None, seed: int = 0, ema=0.9, **options) -> Outcome:
    """A run in a process of its own, as far as this one can play it: everything made anew."""
    torch.manual_seed(1000 + seed)
    model = build(seed)
    optimizer = None if make_optimizer is None else make_optimizer(model)
    torch.manual_seed(2000 + seed)  # the global state that a process happens to have
    options = {"loss": flow_loss, "batch_size": 8, "warmup": 3, "progress": False, **options}
    options["ema"] = ema(model) if callable(ema) else ema
    if optimizer is None:
        options.setdefault("lr", 1e-2)
    result = fit(model, points() if data is None else data(), STEPS, optimizer=optimizer, checkpoint_every=4, **options)
    return Outcome(result, optimizer)


def crash_and_resume(folder, make_optimizer=None, crash: int = CRASH, **options) -> Outcome:
    calls = crash * options.get("accumulate", 1)
    with pytest.raises(CrashError):
        start(make_optimizer, **options, loss=crash_at(calls), checkpoint=folder)
    # Other weights to begin with, wherever there is a checkpoint: all that counts must come from it.
    return start(make_optimizer, **options, seed=0 if crash < 4 else 5, checkpoint=folder)


OPTIMISERS = {
    "default": None,
    "AdamW by tensor": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=False),
    "AdamW by list": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, foreach=True),
    "AdamW, capturable off, amsgrad": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, amsgrad=True),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9, nesterov=True),
    "two groups": lambda m: torch.optim.Adam(
        [
            {"params": m.entry.parameters(), "lr": 1e-3},
            {"params": [m.middle.weight, m.exit.weight], "betas": (0.5, 0.9)},
        ]
    ),
    "a rate that is a tensor": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(1e-2)),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=1e-2),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=1e-2),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=1e-2),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-2, momentum=0.5, centered=True),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=1e-2),
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_resumed_run_ends_in_the_same_weights(name, tmp_path):
    make = OPTIMISERS[name]
    resumed = crash_and_resume(tmp_path, make)
    assert resumed.result.start == 12
    assert resumed == start(make)


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "cosine"},
        {"accumulate": 3},
        {"autocast": "bf16"},
        {"ema": None},
        {"ema": Mean},
        {"ema": partial(EMA, decay=0.9, warmup=False)},
        {"clip": None},
        {"batch_size": 70},  # more than an epoch
    ],
    ids=str,
)
def test_whatever_the_options(options, tmp_path):
    assert crash_and_resume(tmp_path, **options) == start(**options)


def make_loader() -> DataLoader:
    x1, condition = points()
    return DataLoader(TensorDataset(x1, condition["label"]), batch_size=8, shuffle=True)


@pytest.mark.parametrize("crash", [14, 15, 20])
@pytest.mark.filterwarnings("error")
def test_whatever_the_place_in_a_loader(crash, tmp_path):
    options = {"data": make_loader, "batch_size": None, "condition": "label", "crash": crash}
    resumed = crash_and_resume(tmp_path, **options)
    del options["crash"]
    assert resumed == start(**options)


@pytest.mark.parametrize("crash", [1, 4, 5, 20])
def test_whatever_the_step(crash, tmp_path):
    resumed = crash_and_resume(tmp_path, crash=crash)
    assert resumed.result.start == crash // 4 * 4
    assert resumed == start()


def test_any_number_of_times(tmp_path):
    for crash in (5, 6, 3, 11):  # at steps 5, 4 + 6, 8 + 3, 8 + 11
        with pytest.raises(CrashError):
            start(loss=crash_at(crash), checkpoint=tmp_path)
    resumed = start(checkpoint=tmp_path)
    assert resumed.result.start == 16
    assert resumed == start()


def test_losses_and_log_go_on(tmp_path):
    log = {"log": tmp_path / "log.jsonl", "log_every": 5}
    resumed = crash_and_resume(tmp_path, **log)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    whole = start(log_every=5)
    assert resumed.result.losses == whole.result.losses[12:]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 21]
    # The row of step 15 is a mean over steps 11 to 15, two of them before the checkpoint.
    for row, expected in zip(rows, whole.result.rows, strict=True):
        assert {**row, "seconds": 0} == {**vars(expected), "seconds": 0}
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_a_finished_run_is_only_loaded(tmp_path):
    first = start(checkpoint=tmp_path)
    again = start(seed=5, checkpoint=tmp_path)
    assert again.result.start == again.result.step == STEPS
    assert again.result.losses == []
    assert again == first


def test_a_run_can_be_made_longer(tmp_path):
    model, longer, whole = build(), build(1), build()
    options = {"loss": flow_loss, "ema": None, "progress": False, "batch_size": 8}
    fit(model, points(), 10, checkpoint=tmp_path, **options)
    fit(longer, points(), 20, checkpoint=tmp_path, **options)
    fit(whole, points(), 20, **options)
    assert same(weights(longer), weights(whole))


def test_weights_can_be_loaded_from_a_checkpoint(tmp_path):
    whole = start(checkpoint=tmp_path)
    path, model = tmp_path / "checkpoint.safetensors", build(9)
    assert load(path, model) == {"step": STEPS}
    assert same(weights(model), whole.weights)
    assert load(path, model, ema=True) == {"step": STEPS}
    assert not same(weights(model), whole.weights)
    assert isinstance(whole.result.ema, EMA)
    with whole.result.ema.applied():
        assert same(weights(model), weights(whole.result.model))


def test_the_average_of_half_precision_weights_fits_them(tmp_path):
    def loss(model, x1, condition, draws):
        return (model(x1.bfloat16()) - 1).float().square().mean()

    model = nn.Linear(2, 2).bfloat16()
    result = fit(model, points()[0], 5, loss=loss, checkpoint=tmp_path, progress=False, ema=0.5)
    assert isinstance(result.ema, EMA)
    twin = nn.Linear(2, 2).bfloat16()
    load(tmp_path / "checkpoint.safetensors", twin, ema=True)
    with result.ema.applied():
        assert same(weights(twin), weights(model))


@pytest.mark.parametrize("ema", [None, Mean], ids=str)
def test_an_average_that_is_not_there_is_not_loaded(ema, tmp_path):
    start(ema=ema, checkpoint=tmp_path)
    save(tmp_path / "weights.safetensors", build())
    for name in ("checkpoint", "weights"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors has no moving average of the whole model"):
            load(tmp_path / f"{name}.safetensors", build(), ema=True)


class Precise(torch.optim.Optimizer):
    """Momentum kept in float32 for weights in bfloat16, with a counter in its group."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "count": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state.setdefault("velocity", torch.zeros(p.shape)).mul_(0.9).add_(p.grad.float())
                    p.sub_((group["lr"] / group["count"] ** 0.5 * state["velocity"]).to(p.dtype))


def test_optimisers_may_keep_more_digits_and_counters_in_groups(tmp_path):
    def half(model):
        model.bfloat16()
        model.norm.float()
        return Precise(model.parameters(), lr=1e-2)

    def loss(model, x1, condition, draws):
        return flow_loss(model, x1.bfloat16(), condition, draws)

    def go(**options):
        model = build()
        optimizer = half(model)
        options = {"loss": loss, "ema": None, "progress": False, "batch_size": 8, "autocast": "bf16", **options}
        fit(model, points(), 12, optimizer=optimizer, checkpoint_every=4, **options)
        return Outcome(Fit(model, None), optimizer)

    calls = iter(range(100))

    def crash(*args, **kwargs):
        if next(calls) == 6:
            raise CrashError
        return loss(*args, **kwargs)

    crash.__qualname__ = loss.__qualname__
    with pytest.raises(CrashError):
        go(loss=crash, checkpoint=tmp_path)
    resumed = go(checkpoint=tmp_path)
    assert resumed == go()
    assert {value.dtype for name, value in resumed.moments.items() if "velocity" in name} == {torch.float32}


def test_channels_last_weights_keep_their_moments_in_that_layout(tmp_path):
    def loss(model, x1, condition, draws):
        noisy = x1 + draws.normal(x1.shape).contiguous(memory_format=torch.channels_last)
        return (model(noisy) - x1).square().mean()

    x1 = torch.rand(20, 3, 5, 5, generator=torch.Generator().manual_seed(0))

    def go(steps, **options):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1))
        optimizer = torch.optim.AdamW(model.to(memory_format=torch.channels_last).parameters(), lr=1e-2, fused=True)
        options = {"loss": loss, "ema": None, "progress": False, "batch_size": 8, "channels_last": True, **options}
        fit(model, x1, steps, optimizer=optimizer, **options)
        return model, optimizer

    go(7, checkpoint=tmp_path)
    resumed, optimizer = go(16, checkpoint=tmp_path)
    whole, _ = go(16)
    assert optimizer.state[resumed[0].weight]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert same(weights(resumed), weights(whole))


# What the tests above would see


def nothing(*args, **kwargs):
    return None


FORGET = {
    "optimiser": (genmatch.training.trainer, "restore_optimizer"),
    "weights and buffers": (genmatch.training.trainer, "fill_weights"),
    "average": (EMA, "load_state_dict"),
    "dropout": (genmatch.training.trainer, "seed_generators"),
}


@pytest.mark.parametrize("what", FORGET)
def test_a_resume_that_forgets_is_seen(what, tmp_path, monkeypatch):
    whole = start()
    with pytest.raises(CrashError):
        start(loss=crash_at(CRASH), checkpoint=tmp_path)
    monkeypatch.setattr(*FORGET[what], nothing)
    assert start(seed=5, checkpoint=tmp_path) != whole


@pytest.mark.parametrize("tensor", ["norm.running_mean", "norm.running_var", "middle.weight"])
def test_a_resume_that_gets_one_tensor_wrong_is_seen(tensor, tmp_path, monkeypatch):
    whole = start()
    with pytest.raises(CrashError):
        start(loss=crash_at(CRASH), checkpoint=tmp_path)
    fill = genmatch.training.trainer.fill_weights

    def fill_wrongly(module, tensors, aliases, source):
        fill(module, {**tensors, tensor: torch.nextafter(tensors[tensor], torch.tensor(9.0))}, aliases, source)

    monkeypatch.setattr(genmatch.training.trainer, "fill_weights", fill_wrongly)
    assert start(seed=5, checkpoint=tmp_path) != whole


@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_a_resume_that_gets_one_moment_wrong_is_seen(name, tmp_path, monkeypatch):
    whole = start()
    with pytest.raises(CrashError):
        start(loss=crash_at(CRASH), checkpoint=tmp_path)
    restore = genmatch.training.trainer.restore_optimizer

    def restore_wrongly(optimizer, saved):
        saved["state"][0][name] = saved["state"][0][name] * (1 + 1e-3)
        restore(optimizer, saved)

    monkeypatch.setattr(genmatch.training.trainer, "restore_optimizer", restore_wrongly)
    assert start(seed=5, checkpoint=tmp_path) != whole


def test_a_resume_that_loses_its_place_in_a_loader_is_seen(tmp_path, monkeypatch):
    options = {"data": make_loader, "batch_size": None, "condition": "label"}
    whole = start(**options)
    with pytest.raises(CrashError):
        start(**options, loss=crash_at(CRASH), checkpoint=tmp_path)
    monkeypatch.setattr(Stream, "seek", nothing)
    assert start(**options, seed=5, checkpoint=tmp_path) != whole


def test_every_kind_of_batches_has_its_place_tested():
    assert {cls.__name__ for cls in Batches.__subclasses__()} == {"Memory", "Stream"}


# Ctrl-C


def interrupt_at(step: int, times: int = 1):
    calls = iter(range(10**6))

    def loss(*args, **kwargs):
        if next(calls) == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return flow_loss(*args, **kwargs)

    loss.__qualname__ = "flow_loss"
    return loss


def test_ctrl_c_finishes_the_step_and_writes_a_checkpoint(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(loss=interrupt_at(9), checkpoint=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = start(seed=5, checkpoint=tmp_path)
    assert resumed.result.start == 10
    assert resumed == start()


def test_a_step_that_fails_after_ctrl_c_is_an_interruption_too(tmp_path):
    interrupt = interrupt_at(9)

    def loss(*args, **kwargs):
        value = interrupt(*args, **kwargs)
        if done.append(1) or len(done) == 10:
            raise RuntimeError("a worker is gone")
        return value

    done = []
    loss.__qualname__ = "flow_loss"
    with pytest.raises(KeyboardInterrupt) as error:
        start(loss=loss, checkpoint=tmp_path)
    assert str(error.value.__cause__) == "a worker is gone"
    resumed = start(seed=5, checkpoint=tmp_path)
    assert resumed.result.start == 8
    assert resumed == start()


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(loss=interrupt_at(9, times=2), checkpoint=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = start(seed=5, checkpoint=tmp_path)
    assert resumed.result.start == 8
    assert resumed == start()


def test_ctrl_c_without_a_checkpoint_stops_at_once():
    done = []

    def loss(*args, **kwargs):
        if len(done) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
        return flow_loss(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        start(loss=loss)
    assert len(done) == 3


def test_ctrl_c_in_a_callback_writes_a_checkpoint(tmp_path):
    def stop(state):
        if state.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(callback=stop, log_every=3, checkpoint=tmp_path)
    resumed = start(seed=5, checkpoint=tmp_path)
    assert resumed.result.start == 6
    assert resumed == start()


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert start(loss=interrupt_at(9), checkpoint=tmp_path) == start()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_can_train(tmp_path):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(start(checkpoint=tmp_path)))
    thread.start()
    thread.join()
    assert outcomes == [start()]


def test_a_callback_that_stops_leaves_a_checkpoint(tmp_path):
    stopped = start(callback=lambda state: state.step == 6, log_every=3, checkpoint=tmp_path)
    assert stopped.result.step == 6
    resumed = start(seed=5, checkpoint=tmp_path)
    assert resumed.result.start == 6
    assert resumed == start()
