"""The container of an image set, and what its readers share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genmatch.data import Labelled
from genmatch.data.labelled import data_folder, signed, split_parts


def test_unpacks_into_images_and_labels():
    labelled = Labelled(torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 0]), ("a", "b"))
    images, labels = labelled
    assert images is labelled.images
    assert labels is labelled.labels
    dataset = torch.utils.data.TensorDataset(*labelled)
    assert dataset[1][1] == 1
    assert repr(labelled) == "Labelled(images=(3, 1, 2, 2), labels=(3,), classes=('a', 'b'))"
    with pytest.raises(AttributeError):
        labelled.images = images  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(3).long(), ValueError, r"of the same N, got \(2, 1, 2, 2\) and \(3,\)"),
        (torch.zeros(2, 2, 2), torch.zeros(2).long(), ValueError, r"images are \(N, C, H, W\)"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, 2]), ValueError, r"labels are in \[0, 2\), got 0 .. 2"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([-1, 0]), ValueError, r"labels are in \[0, 2\), got -1 .. 0"),
        (torch.zeros(2, 1, 2, 2).byte(), torch.zeros(2).long(), TypeError, "got torch.uint8 and torch.int64"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2), TypeError, "got torch.float32 and torch.float32"),
    ],
)
def test_what_does_not_fit_together_is_refused(images, labels, error, message):
    with pytest.raises(error, match=message):
        Labelled(images, labels, ("a", "b"))


def test_pixels_fill_the_range_exactly_and_in_order():
    values = signed(np.arange(256, dtype=np.uint8))
    assert values[0] == -1
    assert values[255] == 1
    torch.testing.assert_close(values.diff(), torch.full((255,), 2 / 255))
    assert torch.equal(((values + 1) * 127.5).round(), torch.arange(256.0))


def test_splits():
    assert split_parts("train") == ("train",)
    assert split_parts("all") == ("train", "test")
    with pytest.raises(ValueError, match="split is one of 'train', 'test', 'all', got 'valid'"):
        split_parts("valid")


def test_data_folder_is_the_argument_then_the_variable(monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match="pass root=, or set GENMATCH_DATA, to a folder that has some files"):
        data_folder(None, "some files")
    monkeypatch.setenv("GENMATCH_DATA", str(tmp_path))
    assert data_folder(None, "some files") == tmp_path
    assert data_folder("other", "some files").name == "other"
