from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import genmatch.training.memory
from genmatch.data import Labelled
from genmatch.random import Draws
from genmatch.training.data import make_batches
from genmatch.training.seeds import derive_seed

CPU = torch.device("cpu")


def make(data, **options):
    options = {
        "batch_size": None,
        "accumulate": 1,
        "condition": None,
        "seed": 0,
        "device": CPU,
        "channels_last": False,
        **options,
    }
    return make_batches(data, **options)


def numbers(count: int) -> torch.Tensor:
    return torch.arange(float(count))[:, None]


def taken(batches, steps) -> list[int]:
    return [int(value) for step in steps for batch in batches.take(step) for value in batch.x1[:, 0]]


# Tensors in memory


@pytest.mark.parametrize(("count", "size", "accumulate"), [(10, 4, 1), (10, 3, 2), (7, 7, 1), (5, 12, 1), (6, 5, 3)])
def test_every_epoch_has_every_sample_once(count, size, accumulate):
    batches = make(numbers(count), batch_size=size, accumulate=accumulate)
    steps = 4 * count  # whole epochs, whatever the batch
    order = taken(batches, range(steps))
    assert len(order) == steps * size * accumulate
    epochs = [order[i : i + count] for i in range(0, len(order), count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_does_not_depend_on_the_steps_before():
    data = numbers(23)
    order = {step: taken(make(data, batch_size=7), [step]) for step in (0, 3, 11, 40)}
    batches = make(data, batch_size=7)
    for step in (40, 3, 11, 0, 3):
        assert taken(batches, [step]) == order[step]


def test_permutations_are_uniform():
    # Each of 3! orders has probability 1/6: chi-square with 5 degrees of freedom, 99.9 % quantile 20.5.
    batches = make(numbers(3), batch_size=3)
    orders = [tuple(taken(batches, [epoch])) for epoch in range(1200)]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum((count - 200) ** 2 / 200 for count in counts) < 20.5


def test_seeds_give_different_orders():
    orders = {tuple(taken(make(numbers(20), batch_size=20, seed=seed), [0])) for seed in range(10)}
    assert len(orders) == 10


def test_accumulation_cuts_the_same_batch():
    whole = make(numbers(30), batch_size=12)
    pieces = make(numbers(30), batch_size=3, accumulate=4)
    for step in range(5):
        assert [batch.first_index for batch in pieces.take(step)] == [0, 3, 6, 9]
        assert taken(whole, [step]) == taken(pieces, [step])


def test_conditions_stay_with_their_samples():
    data = (numbers(9), {"label": torch.arange(9) * 10, "size": torch.arange(9) * 100})
    for batch in make(data, batch_size=4, accumulate=2).take(1):
        assert batch.condition is not None
        assert torch.equal(batch.condition["label"], batch.x1[:, 0].long() * 10)
        assert torch.equal(batch.condition["size"], batch.x1[:, 0].long() * 100)


@pytest.mark.parametrize(
    "data",
    [
        (numbers(6), torch.arange(6)),
        TensorDataset(numbers(6), torch.arange(6)),
    ],
    ids=["tuple", "TensorDataset"],
)
def test_a_name_makes_a_condition(data):
    (batch,) = make(data, batch_size=6, condition="label").take(0)
    assert batch.condition is not None
    assert batch.condition["label"].tolist() == batch.x1[:, 0].tolist()


def test_labelled_images_are_data():
    images = Labelled(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 1, 0]), ("a", "b"))
    (batch,) = make(images, batch_size=4, condition="label").take(0)
    assert batch.x1.shape == (4, 1, 2, 2)
    assert batch.condition is not None
    assert sorted(batch.condition["label"].tolist()) == [0, 0, 1, 1]


def test_channels_last():
    (batch,) = make(torch.rand(4, 3, 2, 2), batch_size=4, channels_last=True).take(0)
    assert batch.x1.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"channels_last is for images \(B, C, H, W\), the data has shape \(4, 1\)"):
        make(numbers(4), batch_size=4, channels_last=True).take(0)


def test_data_too_large_for_the_device_stays_where_it_is(monkeypatch):
    small = make(numbers(8), batch_size=4, device=torch.device("meta"))
    assert small.x1.device.type == "meta"
    monkeypatch.setattr(genmatch.training.memory, "_RESIDENT", 31)
    large = make(numbers(8), batch_size=4, device=torch.device("meta"))
    assert large.x1.device.type == "cpu"
    assert large.take(0)[0].x1.device.type == "meta"


def test_settings_tell_data_apart():
    base = make((numbers(100), {"label": torch.zeros(100)}), batch_size=4).settings()
    assert base == make((numbers(100), {"label": torch.zeros(100)}), batch_size=4).settings()
    others = {
        "batch_size": make((numbers(100), {"label": torch.zeros(100)}), batch_size=5),
        "accumulate": make((numbers(100), {"label": torch.zeros(100)}), batch_size=4, accumulate=2),
        "samples": make((numbers(101), {"label": torch.zeros(101)}), batch_size=4),
        "data.x1": make((numbers(100) + 1, {"label": torch.zeros(100)}), batch_size=4),
        "data.label": make((numbers(100), {"label": torch.ones(100)}), batch_size=4),
    }
    for name, other in others.items():
        assert other.settings()[name] != base[name]
    assert "data.label" not in make(numbers(100), batch_size=4).settings()


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.full((3, 2), float("nan")), {}, ValueError, "x1 has non-finite values"),
        ((numbers(2), {"a": torch.tensor([1, float("inf")])}), {}, ValueError, "a has non-finite values"),
        (torch.empty(0, 2), {}, ValueError, r"data is empty: x1 has shape \(0, 2\)"),
        (torch.tensor(1.0), {}, ValueError, r"x1 in data has shape \(\)"),
        ((), {}, ValueError, "data is empty"),
        (
            (numbers(3), {"label": torch.zeros(2)}),
            {},
            ValueError,
            r"label in data has shape \(2,\) beside x1 .*\(3, 1\)",
        ),
        (
            (numbers(3), torch.zeros(3)),
            {},
            ValueError,
            r"data has 1 tensors after x1, and condition= names 0 \[\]: name",
        ),
        (numbers(3), {"condition": "label"}, ValueError, r"0 tensors after x1, and condition= names 1 \['label'\]"),
        ((numbers(3), {"a": torch.zeros(3)}), {"condition": "a"}, ValueError, r"names its conditions itself, \['a'\]"),
        ((numbers(3), torch.zeros(3)), {"condition": ["a", "a"]}, ValueError, "list of different names"),
        ((numbers(3), torch.zeros(3)), {"condition": [3]}, ValueError, "list of different names"),
        ((numbers(3), {3: torch.zeros(3)}), {}, TypeError, "condition called 3: names are strings"),
        (
            (numbers(3), {"a": np.zeros(3)}),
            {},
            TypeError,
            r"a in data must be a tensor, got ndarray: torch\.from_numpy",
        ),
        (({"a": [0, 1, 2]}, numbers(3)), {"condition": "b"}, TypeError, "x1 in data must be a tensor, got list"),
        (({"a": torch.zeros(3)}, {"x1/a": numbers(3)}), {}, ValueError, "names with 'x1/' are a product's factors"),
        (({},), {}, ValueError, "data is empty"),
        ((np.zeros((3, 2)), {"label": numbers(3)}), {}, TypeError, r"x1 in data must be a tensor, got ndarray: torch"),
        (np.zeros((3, 2)), {}, TypeError, r"data must be a tensor .* got ndarray: torch\.from_numpy"),
        ({"x1": [1, 2, 3]}, {}, TypeError, r"data must be a tensor .* got dict: the data comes first"),
        (3, {}, TypeError, "data must be a tensor .* got int"),
        ([numbers(3)], {"batch_size": 2}, ValueError, "batch_size=2 is for tensors"),
    ],
)
def test_data_that_make_no_sense_are_refused(data, options, error, message):
    with pytest.raises(error, match=message):
        make(data, **options)


# Iterables


def loader(count: int = 10, size: int = 4, **options) -> DataLoader:
    return DataLoader(TensorDataset(numbers(count), torch.arange(count)), batch_size=size, **options)


def test_an_iterable_starts_again_at_its_end():
    batches = make([numbers(2), numbers(3)])
    assert taken(batches, range(5)) == [0, 1, 0, 1, 2, 0, 1, 0, 1, 2, 0, 1]


def test_accumulation_takes_several_batches_with_their_offsets():
    batches = make([numbers(2), numbers(3)], accumulate=3)
    assert [batch.first_index for batch in batches.take(0)] == [0, 2, 5]
    assert [batch.first_index for batch in batches.take(1)] == [0, 3, 5]


@pytest.mark.parametrize(
    ("batch", "condition"),
    [
        ((numbers(2), {"label": torch.tensor([0, 1])}), None),
        ([numbers(2), torch.tensor([0, 1])], "label"),
    ],
)
def test_forms_of_a_batch(batch, condition):
    (got,) = make([batch], condition=condition).take(0)
    assert got.condition is not None
    assert got.condition["label"].tolist() == [0, 1]


def test_a_loader_with_labels_needs_a_name_for_them():
    with pytest.raises(ValueError, match=r"batch 0 of data has 1 tensors after x1, and condition= names 0"):
        make(loader()).take(0)


def test_a_dataset_needs_a_loader():
    class Samples(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return numbers(3)[index]

    with pytest.raises(TypeError, match=r"Samples, which yields samples: give batches, DataLoader\(data"):
        make(Samples())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty: it gave no batch$"),
        (iter([]), r"data is empty: it gave no batch \(is it used up\?\)"),
        ([torch.empty(0, 2)], "batch 0 of data is empty"),
    ],
)
def test_an_empty_iterable_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        make(data).take(0)


def test_an_iterator_that_ends_is_refused_then():
    batches = make(numbers(2) for _ in range(3))
    assert len(taken(batches, range(3))) == 6
    with pytest.raises(ValueError, match="data ended after 3 batches and, being an iterator, cannot start again"):
        batches.take(3)


def test_an_iterable_that_is_used_up_is_refused():
    class Once:
        def __init__(self):
            self.batches = iter([numbers(2)])

        def __iter__(self):
            yield from self.batches

    batches = make(Once())
    batches.take(0)
    with pytest.raises(ValueError, match="data gave no batch in epoch 2: it must start again"):
        batches.take(1)


class Augmented(Dataset):
    """Samples with noise from torch's global generator."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.tensor([float(index)]) + 0.1 * torch.rand(1)


class Streamed(IterableDataset):
    def __iter__(self):
        yield from (torch.rand(1) for _ in range(7))


LOADERS = {
    "in order": loader,
    "shuffled": lambda: loader(shuffle=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=torch.Generator().manual_seed(5)),
    "augmented": lambda: DataLoader(Augmented(), batch_size=3, shuffle=True),
    "stream": lambda: DataLoader(Streamed(), batch_size=2),
    "workers": lambda: DataLoader(Augmented(), batch_size=3, shuffle=True, num_workers=1),
    "persistent workers": lambda: loader(shuffle=True, num_workers=1, persistent_workers=True),
}


PLACES = [(kind, done) for kind in LOADERS for done in ([4, 5] if "workers" in kind else [0, 2, 4, 5, 9])]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "done"), PLACES)
def test_a_loader_finds_its_place_again(kind, done):
    condition = "label" if isinstance(LOADERS[kind]().dataset, TensorDataset) else None
    torch.manual_seed(1)
    batches = make(LOADERS[kind](), condition=condition)
    for step in range(done):
        batches.take(step)
        torch.rand(3)  # the training draws as well
    position = batches.position()
    rest = [batches.take(step)[0].x1 for step in range(done, done + 6)]
    torch.manual_seed(2)
    again = make(LOADERS[kind](), condition=condition)
    again.seek(position)
    assert all(torch.equal(again.take(done + i)[0].x1, x1) for i, x1 in enumerate(rest))


def test_a_place_forgotten_is_seen():
    # What the test above would see if the position, or the loader's own generator, were not restored.
    for forget in ("epoch", "index", "generators"):
        batches = make(LOADERS["shuffled by a generator"](), condition="label")
        for step in range(5):
            batches.take(step)
        position = batches.position()
        rest = [batches.take(step)[0].x1 for step in range(5, 11)]
        position[forget] = [torch.Generator().manual_seed(5).get_state()] if forget == "generators" else 0
        again = make(LOADERS["shuffled by a generator"](), condition="label")
        if forget == "epoch":  # this loader's order is in its generator: the epoch only counts
            again = make(LOADERS["shuffled"](), condition="label")
            position["generators"] = []
        with pytest.warns(RuntimeWarning, match="is not what it was before the interruption"):
            again.seek(position)
        assert not all(torch.equal(again.take(5 + i)[0].x1, x1) for i, x1 in enumerate(rest))


def test_a_loader_that_does_not_repeat_itself_is_told_of():
    class Noisy:
        def __init__(self, seed):
            self.random = np.random.default_rng(seed)

        def __iter__(self):
            for _ in range(4):
                yield torch.tensor(self.random.normal(size=(2, 1)))

    batches = make(Noisy(0))
    for step in range(3):
        batches.take(step)
    with pytest.warns(RuntimeWarning, match=r"batch 3 of epoch 0 .*: data does not repeat itself"):
        make(Noisy(1)).seek(batches.position())


def test_persistent_workers_that_draw_are_told_of():
    # Their generators are seeded once, when they start: a resumed run starts them later.
    def persistent():
        return DataLoader(Augmented(), batch_size=3, num_workers=1, persistent_workers=True)

    batches = make(persistent())
    for step in range(5):
        batches.take(step)
    with pytest.warns(RuntimeWarning, match=r"batch 1 of epoch 1 .*: data does not repeat itself"):
        make(persistent()).seek(batches.position())


def test_an_iterable_that_became_shorter_is_refused():
    batches = make([numbers(2)] * 5)
    for step in range(4):
        batches.take(step)
    with pytest.raises(ValueError, match="stands at batch 4 of an epoch, data ends before"):
        make([numbers(2)] * 3).seek(batches.position())


def test_settings_of_a_loader():
    settings = make(loader(), condition="label").settings()
    assert settings["data.batches"] == 3
    assert settings["data.batch_size"] == 4
    assert settings["data.samples"] == 10
    assert make(loader(size=5), condition="label").settings() != settings
    assert make(loader(count=9), condition="label").settings() != settings
    assert make(DataLoader(Streamed(), batch_size=2)).settings()["data.batches"] is None


def test_derived_seeds_are_different_and_in_range():
    seeds = {
        derive_seed(seed, purpose, *index)
        for seed in (0, 1, 2**64 - 1)
        for purpose in ("step", "batch")
        for index in ((0,), (1,), (0, 0), (0, 1), (1, 0), (10,), (1, 1), (11,))
    }
    assert len(seeds) == 3 * 2 * 8
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_the_permutation_is_that_of_its_own_draws():
    order = taken(make(numbers(9), batch_size=9, seed=3), [2])
    words = Draws(3, 9, step=2).fork(255).fork(255).bits((9, 2)).tolist()
    assert order == sorted(range(9), key=lambda i: (words[i][0], words[i][1] >> 1))
