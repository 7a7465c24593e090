"""Pairing ahead on a thread: the same run bit for bit, errors at the step they belong to, no thread left behind."""

from __future__ import annotations

import signal
import threading
import time
from functools import partial

import pytest
import torch
from small_runs import CrashError, points, same, weights
from torch.utils.data import DataLoader, TensorDataset

import genmatch as gm
from genmatch.couplings import OT, Coupling
from genmatch.nn import MLP
from genmatch.training import fit

MAIN = threading.main_thread()


class Flip(Coupling):
    """Pairs in the reverse order, and notes who asked."""

    independent = False
    costly = True

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.steps: list[int] = []

    def __call__(self, x0, x1, condition, draws):
        self.threads.append(threading.current_thread())
        self.steps.append(draws.step)
        return x0.flip(0), x1, condition


class Cheap(Flip):
    costly = False


class Failing(Flip):
    """Cannot pair the samples of one step."""

    def __call__(self, x0, x1, condition, draws):
        if draws.step == 4:
            raise ValueError("these samples have no partners")
        return super().__call__(x0, x1, condition, draws)


class Moving(Flip):
    """Moves data and conditions instead of the source: what was paired is used whole."""

    def __call__(self, x0, x1, condition, draws):
        x0, _, _ = super().__call__(x0, x1, condition, draws)
        return x0, x1.roll(1, 0), {name: value.roll(1, 0) for name, value in condition.items()}


def model(coupling: Coupling, seed: int = 0) -> gm.predict.Velocity:
    torch.manual_seed(seed)
    network = MLP(2, width=16, depth=2, embedding=8, classes=3)
    return gm.predict.Velocity(network, gm.GaussianPath(coupling=coupling))


def run(coupling: Coupling, data=None, steps: int = 7, seed: int = 0, **options):
    options = {"batch_size": 16, "lr": 1e-2, "ema": 0.9, "progress": False, "log_every": 1, **options}
    return fit(model(coupling, seed), points() if data is None else data, steps, **options)


def outcome(result) -> dict[str, torch.Tensor]:
    return {**weights(result.model), **{f"ema.{name}": value for name, value in result.ema.state_dict().items()}}


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("genmatch-pairing")]


def loader() -> DataLoader:
    x1, condition = points()
    return DataLoader(TensorDataset(x1, condition["label"]), batch_size=12, shuffle=True)


LOADED = {"batch_size": None, "condition": "label"}
CASES = {
    "in memory": (points, {}),
    "accumulated": (points, {"accumulate": 3}),
    "bfloat16": (points, {"autocast": "bf16"}),
    "options of the loss": (points, {"loss": partial(gm.matching_loss, time=gm.times.LogitNormal())}),
    "a loader": (loader, LOADED),
    "a loader, accumulated": (loader, {**LOADED, "accumulate": 2}),
}


@pytest.mark.parametrize("coupling", [OT, Flip, Moving])
@pytest.mark.parametrize("case", CASES)
def test_a_run_with_pairs_made_ahead_is_the_same(case, coupling):
    data, options = CASES[case]
    ahead = run(coupling(), data(), **options)
    within = run(coupling(), data(), prefetch=False, **options)
    assert ahead.losses == within.losses
    assert same(outcome(ahead), outcome(within))


def test_pairs_are_those_of_their_step():
    # What the test above would see if a step were given the pairs of another one.
    class Late(Flip):
        def __call__(self, x0, x1, condition, draws):
            return super().__call__(gm.Draws(draws.seed, draws.samples, step=1).normal(x0.shape), x1, condition, draws)

    assert run(Late()).losses[2:] != run(Flip()).losses[2:]


def test_pairs_are_made_on_a_thread_and_once_a_step():
    ahead, within, cheap = Flip(), Flip(), Cheap()
    run(ahead)
    run(within, prefetch=False)
    run(cheap)
    assert ahead.steps == within.steps == cheap.steps == list(range(7))  # nothing beyond the last step
    assert MAIN not in ahead.threads
    assert set(within.threads) == set(cheap.threads) == {MAIN}


def test_the_next_pairs_are_made_while_a_step_runs():
    coupling, seen = Flip(), []

    def schedule(step: int) -> float:  # is asked in the middle of a step
        deadline = time.monotonic() + 20
        while step < 6 and step + 1 not in coupling.steps and time.monotonic() < deadline:
            time.sleep(0.001)
        seen.append(step + 1 in coupling.steps)
        return 1.0

    run(coupling, schedule=schedule)
    assert seen == [True] * 6 + [False]


def own(model, x1, condition, draws):
    return gm.matching_loss(model, x1, condition=condition, draws=draws)


@pytest.mark.parametrize("loss", [own, partial(gm.matching_loss, x0=torch.zeros(16, 2))])
def test_a_loss_that_draws_by_itself_pairs_by_itself(loss):
    coupling = Flip()
    run(coupling, loss=loss)
    assert set(coupling.threads) == {MAIN}


@pytest.mark.parametrize("case", ["in memory", "accumulated", "a loader", "a loader, accumulated"])
def test_a_resumed_run_repeats_itself(case, tmp_path):
    data, options = CASES[case]

    def crash(state):
        if state.step == 5:
            raise CrashError

    with pytest.raises(CrashError):
        run(OT(), data(), **options, checkpoint=tmp_path, checkpoint_every=3, callback=crash)
    assert not alive()
    resumed = run(OT(), data(), seed=1, **options, checkpoint=tmp_path, checkpoint_every=3)
    assert resumed.start == 3
    assert same(outcome(resumed), outcome(run(OT(), data(), **options, prefetch=False)))


def test_a_run_may_go_on_without_the_thread(tmp_path):
    run(OT(), loader(), steps=4, **LOADED, checkpoint=tmp_path)
    resumed = run(OT(), loader(), seed=1, **LOADED, checkpoint=tmp_path, prefetch=False)
    assert resumed.start == 4
    assert same(outcome(resumed), outcome(run(OT(), loader(), **LOADED)))


def test_the_place_in_the_data_is_that_of_the_steps_done(tmp_path):
    # Not that of the batch which lies ready: a run that skipped it would differ.
    for steps in (2, 4, 5):  # five batches an epoch
        folder = tmp_path / str(steps)
        run(OT(), loader(), steps=7, **LOADED, checkpoint=folder, callback=lambda state, last=steps: state.step == last)
        resumed = run(OT(), loader(), seed=1, **LOADED, checkpoint=folder)
        assert resumed.start == steps
        assert same(outcome(resumed), outcome(run(OT(), loader(), **LOADED)))


def test_an_error_of_a_pairing_is_raised_at_its_step():
    seen = []
    with pytest.raises(ValueError, match="these samples have no partners"):
        run(Failing(), callback=lambda state: seen.append(state.step))
    assert seen == [1, 2, 3, 4]
    assert not alive()


def test_bad_data_is_refused_with_the_message_of_the_loss():
    for prefetch in (True, False):
        with pytest.raises(TypeError, match=r"a continuous state must be floating point, got torch\.int64"):
            run(OT(), torch.ones(20, 2, dtype=torch.int64), prefetch=prefetch)
    assert not alive()


def test_an_error_of_the_data_is_raised_at_its_step():
    def batches():
        for _ in range(3):
            yield torch.ones(4, 2)
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        run(OT(), batches(), batch_size=None, callback=lambda state: seen.append(state.step))
    assert seen == [1, 2, 3]
    assert not alive()


class OneBuffer:
    """Fills one tensor again and again."""

    def __iter__(self):
        buffer = torch.empty(16, 2)
        for step in range(5):
            yield buffer.copy_(gm.Draws(1, 16, step=step).normal((16, 2)))


def test_an_iterable_may_use_one_buffer(tmp_path):
    unlabelled = {"batch_size": None, "checkpoint_every": 4, "checkpoint": tmp_path}
    found = [run(OT(), OneBuffer(), 8, prefetch=ahead, resume=False, **unlabelled) for ahead in (True, False)]
    assert found[0].losses == found[1].losses
    again = run(OT(), OneBuffer(), 12, prefetch=True, resume="previous", **unlabelled)  # without a warning
    assert again.step == 12


def test_data_that_end_with_the_run_are_enough():
    result = run(OT(), iter([torch.ones(4, 2)] * 7), batch_size=None)
    assert result.step == 7


def test_ctrl_c_ends_the_thread_and_leaves_a_checkpoint(tmp_path):
    def interrupt(state):
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)

    for options in ({}, {"checkpoint": tmp_path}):
        with pytest.raises(KeyboardInterrupt):
            run(OT(), callback=interrupt, **options)
        assert not alive()
    resumed = run(OT(), seed=1, checkpoint=tmp_path)
    assert resumed.start in (3, 4)
    assert same(outcome(resumed), outcome(run(OT())))


def test_the_thread_ends_with_the_run():
    during = []
    run(OT(), callback=lambda state: during.append(len(alive())))
    assert during[0] == 1
    assert not alive()


def test_prefetch_is_a_switch():
    with pytest.raises(TypeError, match="prefetch must be True or False, got 2"):
        run(OT(), prefetch=2)


def test_a_loss_uses_pairs_as_they_are_given():
    coupling = Flip()
    x1, condition = points(8)
    x0 = gm.Draws(3, 8).normal((8, 2))
    given = {"draws": gm.Draws(0, 8), "condition": condition}
    paired = gm.matching_loss(model(coupling), x1, x0=x0, paired=True, **given)
    assert not coupling.steps
    assert paired == gm.matching_loss(model(gm.couplings.Given()), x1, x0=x0, **given)
    assert paired != gm.matching_loss(model(coupling), x1, x0=x0, **given)
    with pytest.raises(ValueError, match="paired=True says that x0 belongs to x1: give x0 as well"):
        gm.matching_loss(model(coupling), x1, paired=True, **given)
    with pytest.raises(TypeError, match="paired must be True or False, got 'False'"):
        gm.matching_loss(model(coupling), x1, x0=x0, paired="False", **given)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("data", [points, loader], ids=["in memory", "a loader"])
def test_pairs_made_on_a_stream_of_their_own_are_the_same(data):
    options = {"device": "cuda", "steps": 40, **(LOADED if data is loader else {})}
    assert run(OT(), data(), **options).losses == run(OT(), data(), prefetch=False, **options).losses
