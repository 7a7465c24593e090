from __future__ import annotations

from functools import partial

import pytest
import torch
from small_runs import Mean, Network, Plain, build, flow_loss, points, same, weights
from torch import nn

from genmatch.nn import EMA
from genmatch.training import fit, save
from genmatch.training.checkpoint import Checkpoint


def run(folder, model=None, data=None, steps=8, **options):
    options = {
        "loss": flow_loss,
        "ema": None,
        "batch_size": 8,
        "checkpoint": folder,
        "checkpoint_every": 4,
        "progress": False,
        **options,
    }
    return fit(build() if model is None else model, points() if data is None else data, steps, **options)


@pytest.fixture
def folder(tmp_path):
    run(tmp_path)
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Places


def test_a_folder_holds_the_checkpoint_and_the_one_before(folder):
    assert names(folder) == ["checkpoint.previous.safetensors", "checkpoint.safetensors"]
    store = Checkpoint(folder)
    last, before = store.open(True), store.open("previous")
    assert last is not None
    assert before is not None
    assert (last.step, before.step) == (8, 4)


def test_a_file_has_the_name_it_is_given(tmp_path):
    run(tmp_path / "deep" / "down" / "mnist.safetensors")
    assert names(tmp_path / "deep" / "down") == ["mnist.previous.safetensors", "mnist.safetensors"]
    assert run(tmp_path / "deep" / "down" / "mnist.safetensors").start == 8


@pytest.mark.parametrize("name", ["run.pt", "run.pth", "run.ckpt", "run.pkl", "run.bin"])
def test_pickles_are_not_written(tmp_path, name):
    with pytest.raises(ValueError, match=r"checkpoints are safetensors, got .*: give a folder or NAME\.safetensors"):
        Checkpoint(tmp_path / name)


def test_a_folder_may_have_a_dot(tmp_path):
    run(tmp_path / "run.2")
    assert names(tmp_path / "run.2")[-1] == "checkpoint.safetensors"


# Starting over


def test_starting_over_replaces_both_files(folder):
    result = run(folder, steps=4, resume=False)
    assert result.start == 0
    # The one before belonged to another run.
    assert names(folder) == ["checkpoint.safetensors"]
    saved = Checkpoint(folder).open(True)
    assert saved is not None
    assert saved.step == 4


def test_starting_over_destroys_nothing_before_it_has_something(folder):
    with pytest.raises(ZeroDivisionError):
        run(folder, resume=False, loss=lambda *_, **__: 1 / 0)
    assert run(folder).start == 8


@pytest.mark.parametrize("resume", ["last", None, 2, 1, 0])
def test_resume_is_checked(folder, resume):
    with pytest.raises(ValueError, match="resume must be True, False or 'previous', got"):
        run(folder, resume=resume)


# Damage


def test_a_damaged_checkpoint_raises_and_names_the_one_before(folder):
    damage(folder / "checkpoint.safetensors")
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors is damaged: the checksum of .* does not agree"
    ) as error:
        run(folder)
    advice = r"The one before it, .*checkpoint\.previous\.safetensors, is whole, at step 4: resume='previous' goes on"
    error.match(advice)
    error.match("resume=False starts over")


def test_the_one_before_is_taken_when_asked_for(folder):
    whole = build()
    run(None, whole, steps=12)
    damage(folder / "checkpoint.safetensors")
    model = build(3)
    assert run(folder, model, steps=12, resume="previous").start == 4
    assert same(weights(model), weights(whole))


def test_a_damaged_file_does_not_push_out_the_good_one(folder):
    good = (folder / "checkpoint.previous.safetensors").read_bytes()
    damage(folder / "checkpoint.safetensors")

    class Stop(Exception):  # noqa: N818
        pass

    def stop(state):
        if state.step > 6:
            raise Stop

    with pytest.raises(Stop):
        run(folder, steps=12, resume="previous", callback=stop, log_every=1, checkpoint_every=6)
    # One checkpoint was written after the resume, at step 6: in the place of the damaged file.
    assert (folder / "checkpoint.previous.safetensors").read_bytes() == good
    saved = Checkpoint(folder).open(True)
    assert saved is not None
    assert saved.step == 6


@pytest.mark.parametrize("what", ["both", "only"])
def test_without_a_whole_one_the_advice_is_to_start_over(folder, what):
    damage(folder / "checkpoint.safetensors")
    previous = folder / "checkpoint.previous.safetensors"
    if what == "both":
        damage(previous)
    else:
        previous.unlink()
    with pytest.raises(ValueError, match="There is no whole checkpoint before it: resume=False starts over"):
        run(folder)
    assert run(folder, resume=False).start == 0


def test_a_missing_checkpoint_beside_one_before_raises(folder):
    (folder / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is missing\. The one before it, .* at step 4"):
        run(folder)


def test_previous_must_be_there(tmp_path):
    with pytest.raises(ValueError, match=r"resume='previous', but there is no .*checkpoint\.previous\.safetensors"):
        run(tmp_path, resume="previous")


@pytest.mark.parametrize("length", [0, 100, 2000])
def test_a_truncated_checkpoint_raises(folder, length):
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        run(folder)


def test_plain_weights_are_not_a_checkpoint(tmp_path):
    save(tmp_path / "checkpoint.safetensors", build())
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors holds weights and is not a checkpoint"):
        run(tmp_path)


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('unpickled')",))

    torch.save({"model": Bomb()}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        run(tmp_path)


# Other settings

CHANGES = {
    "batch_size was 8, is 9": {"batch_size": 9},
    "accumulate was 1, is 2": {"accumulate": 2},
    "seed was 0, is 1": {"seed": 1},
    r"clip was 1\.0, is 0\.5": {"clip": 0.5},
    r"clip was 1\.0, is None": {"clip": None},
    "warmup was 0, is 3": {"warmup": 3},
    "schedule was constant, is cosine; steps was nothing, is 8": {"schedule": "cosine"},
    r"optimizer\.0\.lr was 0\.0002, is 0\.001": {"lr": 1e-3},
    r"autocast was None, is torch\.bfloat16": {"autocast": "bf16"},
    r"loss was flow_loss, is partial\(flow_loss\)": {"loss": partial(flow_loss)},
    r"samples was 50, is 49; data\.x1 was .*, is ": {"data": points(49)},
    r"data\.x1 was float32 \(2,\) crc \w+, is float32 \(2,\) crc": {"data": (points()[0] + 1, points()[1])},
    r"data\.label was int64 \(\) crc \w+, is int64 \(\) crc": {
        "data": (points()[0], {"label": points(50, 9)[1]["label"]})
    },
    r"data\.label was int64 .*, is nothing": {"data": points()[0]},
}


@pytest.mark.parametrize("message", CHANGES)
def test_other_settings_are_named(folder, message):
    model = build(3)
    before = weights(model)
    with pytest.raises(ValueError, match=f"was written under other settings.*{message}"):
        run(folder, model, **CHANGES[message])
    assert same(weights(model), before)


def test_other_optimisers_are_named(folder):
    model = build()
    for optimizer, message in (
        (torch.optim.SGD(model.parameters(), lr=2e-4), "optimizer was AdamW, is SGD"),
        (
            torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.5, 0.9)),
            r"optimizer\.0\.betas was \[0\.9, 0\.999\], is \[",
        ),
        (torch.optim.AdamW(model.entry.parameters(), lr=2e-4), r"optimizer\.0\.parameters was \d+, is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            run(folder, model, optimizer=optimizer)


def test_numbers_of_groups_are_named(folder):
    model = build()
    groups = [{"params": [p]} for p in model.parameters()]
    with pytest.raises(ValueError, match=r"optimizer groups was 1, is 7; optimizer\.0\.parameters was 7, is 1\."):
        run(folder, model, optimizer=torch.optim.AdamW(groups, lr=2e-4))


def test_an_option_that_another_torch_lacks_does_not_matter(folder):
    class Newer(torch.optim.AdamW):
        pass

    Newer.__name__ = "AdamW"
    model = build()
    optimizer = Newer(model.parameters(), lr=2e-4)
    del optimizer.param_groups[0]["maximize"]
    optimizer.param_groups[0]["cautious"] = False
    optimizer.step = lambda closure=None: None
    assert run(folder, model, optimizer=optimizer).start == 8
    assert optimizer.param_groups[0]["cautious"] is False


def test_how_a_step_is_computed_may_change(folder):
    model = build()
    assert run(folder, model, optimizer=torch.optim.AdamW(model.parameters(), lr=2e-4, foreach=True)).start == 8


def test_an_average_is_a_setting(tmp_path):
    model = build()
    run(tmp_path, model, ema=Mean(model))
    with pytest.raises(ValueError, match="ema was Mean, is None"):
        run(tmp_path, build())
    with pytest.raises(ValueError, match=r"ema was Mean, is decay 0\.99, with warmup"):
        run(tmp_path, build(), ema=0.99)


def test_an_average_is_its_decay(tmp_path):
    run(tmp_path, ema=0.99)
    with pytest.raises(ValueError, match=r"ema was decay 0\.99, with warmup, is decay 0\.9, with warmup"):
        run(tmp_path, ema=0.9)
    model = build()
    with pytest.raises(ValueError, match=r"ema was decay 0\.99, with warmup, is decay 0\.99, without warmup"):
        run(tmp_path, model, ema=EMA(model, 0.99, warmup=False))
    assert run(tmp_path, model, ema=EMA(model, 0.99)).start == 8


def test_other_models_are_named(folder):
    with pytest.raises(ValueError, match="model was Network, is Plain"):
        run(folder, Plain(), data=points()[0])
    with pytest.raises(
        ValueError, match=r"does not fit Network: shape or dtype differ in .*entry\.bias \(float32 \(8,\) in"
    ):
        run(folder, Network(width=9))


def test_settings_that_do_not_matter_may_change(folder):
    result = run(folder, steps=10, log_every=3, checkpoint_every=7, callback=lambda state: None)
    assert (result.start, result.step) == (8, 10)


def test_a_cosine_cannot_be_made_longer(tmp_path):
    run(tmp_path, schedule="cosine")
    with pytest.raises(ValueError, match="steps was 8, is 9"):
        run(tmp_path, schedule="cosine", steps=9)


def test_fewer_steps_than_done_are_refused(folder):
    with pytest.raises(
        ValueError, match=r"is at step 8, beyond steps=5, which counts from the very start: ask for more"
    ):
        run(folder, steps=5)


def test_state_that_cannot_be_stored_is_named(tmp_path):
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.state[self.param_groups[0]["params"][0]]["object"] = object()

    model = nn.Linear(2, 2)
    optimizer = Odd(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"optimizer\.state\.0\.object is object: .*unpickled"):
        run(tmp_path, model, points()[0], optimizer=optimizer, loss=lambda m, x1, **_: m(x1).square().mean())
    assert names(tmp_path) == []
