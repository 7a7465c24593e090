from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genmatch.training.tree import pack, unpack


def round_trip(tree):
    packed, tensors = pack(tree)
    return unpack(json.loads(json.dumps(packed)), tensors)


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.integers() | st.text() | st.none() | st.booleans()
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=20,
)


def exact(a, b) -> bool:
    """Equality that tells 1 from True and 1.0, and a tuple from a list."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(exact, a, b))
    if isinstance(a, dict):
        return exact(list(a), list(b)) and all(exact(a[key], b[key]) for key in a)
    return a == b


@given(trees)
def test_trees_come_back_exactly(tree):
    assert exact(round_trip(tree), tree)


def test_exact_tells_types_apart():
    assert not exact(1, True)
    assert not exact((1,), [1])
    assert not exact({1: 2}, {"1": 2})


def test_numbers_that_json_does_not_know_come_back():
    back = round_trip([float("inf"), float("-inf"), 5e-324, 0.1 + 0.2])
    assert back == [float("inf"), float("-inf"), 5e-324, 0.1 + 0.2]
    assert round_trip(float("nan")) != round_trip(float("nan"))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)], ids=str)
def test_tensors_keep_dtype_shape_and_bits(dtype, shape):
    tensor = (torch.randn(shape) * 10).to(dtype)
    back = round_trip({"a": [tensor]})["a"][0]
    assert back.dtype == dtype
    assert back.shape == shape
    assert torch.equal(back, tensor)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(4, 3).T,
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ],
    ids=["channels_last", "transposed", "permuted"],
)
def test_layouts_come_back(tensor):
    packed, tensors = pack([tensor])
    stored = {name: value.contiguous() for name, value in tensors.items()}  # as a file has it
    (back,) = unpack(packed, stored)
    assert back.stride() == tensor.stride()
    assert torch.equal(back, tensor)


def test_expanded_and_strided_views_become_plain_tensors():
    for view in (torch.randn(3, 1).expand(3, 4), torch.randn(6)[::2]):
        packed, tensors = pack([view])
        (back,) = unpack(packed, {name: value.contiguous() for name, value in tensors.items()})
        assert back.is_contiguous()
        assert torch.equal(back, view)


def test_a_tensor_that_occurs_twice_is_stored_once_and_shared_again():
    tensor, other = torch.ones(3), torch.ones(3)
    packed, tensors = pack({"a": tensor, "b": [tensor], "c": other})
    assert len(tensors) == 2
    back = unpack(packed, tensors)
    assert back["a"] is back["b"][0]
    assert back["c"] is not back["a"]


def test_empty_tensors_stay_apart():
    packed, tensors = pack([torch.empty(0), torch.empty(0)])
    back = unpack(packed, tensors)
    assert len(tensors) == 2
    assert back[0] is not back[1]


def test_names_that_would_collide_do_not():
    tree = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}
    back = round_trip(tree)
    assert back["a"]["b"].item() == 0
    assert back["a.b"].item() == 1


def test_names_are_paths():
    assert list(pack({"optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}})[1]) == ["optimizer.state.0.exp_avg"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [object()]}, r"a\.0 is object: .*unpickled"),
        ({"f": lambda: 0}, "f is function"),
        (object(), "the tree is object"),
        ({"a": {(1, 2): 3}}, r"a has the key \(1, 2\)"),
        ({"a": torch.eye(2).to_sparse()}, "a is a torch.sparse_coo tensor"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tree, message):
    with pytest.raises(TypeError, match=message):
        pack(tree)


def test_a_mapping_becomes_a_dict():
    assert round_trip(OrderedDict(b=1, a=2)) == {"b": 1, "a": 2}


@pytest.mark.parametrize(("packed", "message"), [({"tensor": "x"}, "'x' is missing"), ({"what": 1}, "no packed tree")])
def test_what_pack_did_not_make_is_refused(packed, message):
    with pytest.raises(ValueError, match=message):
        unpack(packed, {})
