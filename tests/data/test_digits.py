"""scikit-learn's digits: the real images, and a split that is stratified and stays."""

from __future__ import annotations

import sys

import pytest
import torch

from genmatch.data import digits

load_digits = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits


def test_images_are_scikit_learns_in_range():
    images, labels = digits("all")
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert set(images.unique().tolist()) == {i / 8 - 1 for i in range(17)}
    # The same pairs of image and label as scikit-learn's, in another order.
    source = load_digits()
    ours = {(tuple(image.flatten().tolist()), int(label)) for image, label in zip(images, labels, strict=True)}
    theirs = {
        (tuple((image / 8 - 1).flatten().tolist()), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    }
    assert ours == theirs


def test_upright_and_labelled_right():
    # A zero has an empty middle and a one a full one; a seven has more ink above, a six below.
    images, labels = digits("all")
    mean = torch.stack([images[labels == digit, 0].mean(0) for digit in range(10)])
    assert mean[0, 3:5, 3:5].mean() < -0.5 < 0.5 < mean[1, 3:5, 3:5].mean()
    assert mean[7, :3].mean() > mean[7, 5:].mean()
    assert mean[6, :3].mean() < mean[6, 5:].mean()


def test_split_is_fixed_disjoint_and_stratified():
    train, test, everything = digits("train"), digits("test"), digits("all")
    assert len(train.labels) == 1500
    assert len(test.labels) == 297
    assert torch.equal(torch.cat([train.images, test.images]), everything.images)
    assert torch.equal(torch.cat([train.labels, test.labels]), everything.labels)
    share = torch.bincount(test.labels) - torch.bincount(everything.labels) * 297 / 1797
    assert (share.abs() < 1).all()
    again = digits("test")
    assert torch.equal(again.images, test.images)
    assert digits().images.shape == train.images.shape
    # Not the tail of the set: random choices come from all over it.
    position = {tuple(row): i for i, row in enumerate(load_digits().data.tolist())}
    places = sorted(position[tuple(((image + 1) * 8).flatten().tolist())] for image in test.images)
    assert places[0] < 60
    assert places[-1] > 1797 - 60
    assert abs(sum(places) / 297 - 898) < 5 * 1797 / (12 * 297) ** 0.5


def test_split_does_not_touch_or_follow_the_global_generator():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = digits("test").images
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(digits("test").images, first)


def test_wrong_split_is_refused():
    with pytest.raises(ValueError, match="split is one of 'train', 'test', 'all', got True"):
        digits(True)  # pyright: ignore[reportArgumentType]


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'genmatch\[data\]'"):
        digits()
