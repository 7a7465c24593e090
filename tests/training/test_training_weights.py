from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import Network, build, same, weights
from torch import nn

from genmatch.training import load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


def test_weights_come_back(path):
    model, twin = build(0), build(1)
    assert not same(weights(model), weights(twin))
    save(path, model, classes=["a", "b"], epoch=3)
    assert load(path, twin) == {"classes": ["a", "b"], "epoch": 3}
    assert same(weights(model), weights(twin))


def test_tied_weights_are_stored_once_and_stay_tied(path):
    model, twin = build(0), build(1)
    save(path, model)
    assert "again.weight" not in load_file(path)
    load(path, twin)
    assert twin.again.weight is twin.middle.weight
    assert torch.equal(twin.middle.weight, model.middle.weight)


def test_tied_weights_fill_a_model_that_does_not_tie(path):
    model, loose = build(0), build(1)
    loose.again.weight = nn.Parameter(torch.zeros(8, 8))
    save(path, model)
    load(path, loose)
    assert torch.equal(loose.again.weight, model.middle.weight)
    assert torch.equal(loose.middle.weight, model.middle.weight)


def test_different_values_for_one_tensor_are_refused(path):
    loose, tied = build(0), build(1)
    loose.again.weight = nn.Parameter(torch.zeros(8, 8))
    save(path, loose)
    before = weights(tied)
    with pytest.raises(
        ValueError, match=r"different values for again\.weight and middle\.weight, which are one tensor"
    ):
        load(path, tied)
    assert same(weights(tied), before)


def test_a_file_of_another_program_is_read(path):
    model, twin = nn.Linear(2, 3), nn.Linear(2, 3)
    save_file(dict(model.state_dict()), path)
    assert load(path, twin) == {}
    assert same(weights(model), weights(twin))


class Other(nn.Module):
    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, value in tensors.items():
            self.register_buffer(name, value)


@pytest.mark.parametrize(
    ("file", "model", "message"),
    [
        (Other(a=torch.ones(2)), Other(a=torch.ones(2), b=torch.ones(1)), "does not fit Other: it lacks b$"),
        (Other(a=torch.ones(2), b=torch.ones(1)), Other(a=torch.ones(2)), "does not fit Other: the model lacks b$"),
        (
            Other(a=torch.ones(2)),
            Other(a=torch.ones(3)),
            r"shape or dtype differ in a \(float32 \(2,\) in the file, float32 \(3,\) in the model\)",
        ),
        (
            Other(a=torch.ones(2, dtype=torch.float64)),
            Other(a=torch.ones(2)),
            r"a \(float64 \(2,\) in the file, float32 \(2,\) in the model\)",
        ),
        (Other(a=torch.ones(2)), Other(b=torch.ones(2)), "it lacks b; the model lacks a"),
        (
            Other(**{f"w{i}": torch.ones(1) for i in range(12)}),
            Other(),
            "the model lacks w0, w1, w10, w11, w2, w3, w4, w5 and 4 more",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(path, file, model, message):
    save(path, file)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        load(path, model)
    assert same(weights(model), before)


def test_nothing_is_filled_unless_everything_fits(path):
    save(path, Other(a=torch.zeros(2), b=torch.zeros(2)))
    model = Other(a=torch.ones(2), b=torch.ones(3))
    with pytest.raises(ValueError, match="shape or dtype differ in b"):
        load(path, model)
    assert torch.equal(model.a, torch.ones(2))


def test_compiled_and_plain_models_share_files(path):
    model, twin = Network(), build(1)
    save(path, torch.compile(model, backend="eager"))
    load(path, twin)
    assert same(weights(model), weights(twin))
    compiled = torch.compile(build(2), backend="eager")
    load(path, compiled)
    assert same(weights(model), weights(compiled._orig_mod))


def test_layout_and_gradient_flags_stay(path):
    model, twin = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    twin.bias.requires_grad_(False)
    save(path, model)
    load(path, twin)
    assert torch.equal(model.weight, twin.weight)
    assert twin.weight.is_contiguous(memory_format=torch.channels_last)
    assert twin.weight.requires_grad
    assert not twin.bias.requires_grad


@pytest.mark.parametrize("name", ["weights.pt", "weights", "weights.safetensors.bak"])
def test_other_endings_are_refused(tmp_path, name):
    for act in (save, load):
        with pytest.raises(ValueError, match=r"end the name in \.safetensors"):
            act(tmp_path / name, nn.Linear(1, 1))


def test_state_that_is_no_tensor_is_refused(path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

        def set_extra_state(self, state): ...

    with pytest.raises(TypeError, match="_extra_state in the state of Extra is dict: a file holds tensors only"):
        save(path, Extra(1, 1))


def test_lazy_weights_are_refused(path):
    with pytest.raises(ValueError, match="weight of LazyLinear has no shape yet: call the model once"):
        save(path, nn.LazyLinear(2))


def test_metadata_must_be_json(path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(path, nn.Linear(1, 1), when=object())
    assert not path.exists()


def test_a_later_format_is_refused(path):
    from genmatch.training.files import write_tensors

    write_tensors(path, dict(nn.Linear(1, 1).state_dict()), {"kind": "weights", "format": 2})
    with pytest.raises(ValueError, match="has format 2, this version of genmatch reads format 1"):
        load(path, nn.Linear(1, 1))


def test_a_damaged_file_is_refused(path):
    model = nn.Linear(20, 20)
    save(path, model)
    content = bytearray(path.read_bytes())
    content[-10] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged: the checksum of 'weight' does not agree"):
        load(path, model)
