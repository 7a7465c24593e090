"""CIFAR-10: official batches and class folders give the same set; pickles and damaged batches are refused."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")

from image_writer import encode, pixels, write_any, write_folder, write_tar

from genmatch.data import cifar10

MODULE = sys.modules["genmatch.data.cifar"]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
KINDS = ["folder", "gz", "xz", "zip"]
SIZES = {"train": 50, "test": 10}
LABELS = {part: [(7 * i + 3) % 10 for i in range(size)] for part, size in SIZES.items()}
PIXELS = {part: [pixels(1000 * k + i, 32, 32) for i in range(SIZES[part])] for k, part in enumerate(SIZES)}


def batches() -> dict[str, bytes]:
    """The official layout: a label, then 1024 bytes of red, of green, of blue, row by row."""
    records = {
        part: [
            bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
            for label, image in zip(LABELS[part], PIXELS[part], strict=True)
        ]
        for part in SIZES
    }
    files = {f"data_batch_{i + 1}.bin": b"".join(records["train"][10 * i : 10 * i + 10]) for i in range(5)}
    return files | {"test_batch.bin": b"".join(records["test"]), "batches.meta.txt": "\n".join(CLASSES).encode()}


def folders() -> dict[str, bytes]:
    return {
        f"{part}/{CLASSES[label]}/{i:04}.png": encode(image)
        for part in SIZES
        for i, (label, image) in enumerate(zip(LABELS[part], PIXELS[part], strict=True))
    }


def under(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{prefix}{name}": content for name, content in files.items()}


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(MODULE, "_RECORDS", 10)


def check(labelled, parts):
    labels = [label for part in parts for label in LABELS[part]]
    images = torch.stack([torch.from_numpy(image) for part in parts for image in PIXELS[part]]).permute(0, 3, 1, 2)
    assert labelled.classes == CLASSES
    assert labelled.labels.dtype == torch.int64
    assert labelled.labels.tolist() == labels
    torch.testing.assert_close(labelled.images, images.float() / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "cifar-10-batches-bin/"])
def test_official_batches(tmp_path, kind, prefix):
    root = write_any(kind, tmp_path / "cifar-10-binary", under(prefix, batches()))
    for split, parts in {"train": ["train"], "test": ["test"], "all": ["train", "test"]}.items():
        check(cifar10(root, split, progress=False), parts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "cifar10/"])
def test_class_folders_hold_the_same_set_sorted(tmp_path, kind, prefix):
    root = write_any(kind, tmp_path / "images", under(prefix, folders()))
    order = {part: sorted(range(SIZES[part]), key=lambda i, part=part: (LABELS[part][i], i)) for part in SIZES}
    for split, parts in {"train": ["train"], "test": ["test"], "all": ["train", "test"]}.items():
        labelled = cifar10(root, split)
        assert labelled.classes == CLASSES
        assert labelled.labels.tolist() == [LABELS[part][i] for part in parts for i in order[part]]
        expected = np.stack([PIXELS[part][i] for part in parts for i in order[part]]).transpose(0, 3, 1, 2)
        torch.testing.assert_close(labelled.images, torch.from_numpy(expected).float() / 127.5 - 1, rtol=0, atol=1e-6)


def test_folders_without_parts_have_no_split(tmp_path):
    files = {name.removeprefix("test/"): content for name, content in folders().items() if name.startswith("test/")}
    root = write_folder(tmp_path, files)
    assert len(cifar10(root, "all").labels) == 10
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"has no train/ and test/ .*pass split='all'"):
            cifar10(root, split)


@pytest.mark.parametrize("place", [".", "cifar10", "CIFAR10", "cifar-10"])
@pytest.mark.parametrize("name", ["cifar-10-binary.tar.gz", "cifar10-jpg.tar.xz", "my-cifar.zip"])
def test_archives_are_found_in_every_documented_place(tmp_path, place, name, monkeypatch):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    kind = name.rsplit(".", 1)[1]
    write_any(kind, folder / "raw", batches()).rename(folder / name)
    (folder / "cifar-100-binary.tar.gz").write_bytes(b"another set")
    (tmp_path / "imagenet.tar.gz").write_bytes(b"another set")
    check(cifar10(tmp_path, "test"), ["test"])
    monkeypatch.setenv("GENMATCH_DATA", str(tmp_path))
    check(cifar10(split="test"), ["test"])


def test_unpacked_batches_are_found_before_archives(tmp_path):
    write_folder(tmp_path / "cifar10" / "cifar-10-batches-bin", batches())
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"not looked at")
    check(cifar10(tmp_path, "test"), ["test"])


def test_two_archives_are_ambiguous(tmp_path):
    for name in ("cifar-10-binary.tar.gz", "cifar10-jpg.tar.xz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"several archives, \['cifar-10-binary.tar.gz', 'cifar10-jpg.tar.xz'\]"):
        cifar10(tmp_path)


class Trap:
    """Unpickling this would end the test run."""

    def __reduce__(self):
        return sys.exit, ("unpickled",)


def python_version() -> dict[str, bytes]:
    names = ["batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    return {f"cifar-10-batches-py/{name}": pickle.dumps(Trap()) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_the_python_version_is_refused_not_unpickled(tmp_path, kind):
    root = write_any(kind, tmp_path / "cifar-10-python", python_version())
    with pytest.raises(ValueError, match=r"python version .* pickles.* get the binary version, cifar-10-binary.tar.gz"):
        cifar10(root)


def test_the_python_version_is_refused_where_it_is_found(tmp_path):
    write_tar(tmp_path / "cifar-10-python.tar.gz", python_version())
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is the python version"):
        cifar10(tmp_path)
    write_folder(tmp_path / "unpacked", python_version())
    for root in (tmp_path / "unpacked", tmp_path / "unpacked" / "cifar-10-batches-py"):
        with pytest.raises(ValueError, match=r"is the python version"):
            cifar10(root)
    write_any("gz", tmp_path / "cifar-10-binary", batches())  # beside it, the binary version serves
    check(cifar10(tmp_path, "test"), ["test"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "'data_batch_3.bin' has 30729 bytes, 30730 expected"),
        (lambda c: c[:-3073], "'data_batch_3.bin' has 27657 bytes, 30730 expected"),
        (lambda c: c + b"!", "'data_batch_3.bin' has 30731 bytes, at most 30730 expected"),
        (lambda c: b"\x0a" + c[1:], "'data_batch_3.bin' has label 10, 0 .. 9 expected"),
    ],
)
def test_wrong_batches_are_named(tmp_path, kind, change, message):
    files = batches()
    files["data_batch_3.bin"] = change(files["data_batch_3.bin"])
    root = write_any(kind, tmp_path / "cifar-10-binary", files)
    with pytest.raises(ValueError, match=message) as caught:
        cifar10(root)
    assert str(root) in str(caught.value)
    check(cifar10(root, "test"), ["test"])


def test_missing_and_doubled_batches(tmp_path):
    files = batches()
    root = write_any("gz", tmp_path / "doubled", under("a/", files) | under("b/", files))
    with pytest.raises(ValueError, match=r"has data_batch_1.bin twice"):
        cifar10(root)
    del files["data_batch_2.bin"], files["data_batch_5.bin"]
    with pytest.raises(ValueError, match=r"lacks data_batch_2.bin, data_batch_5.bin"):
        cifar10(write_any("gz", tmp_path / "missing", files))


def test_wrong_images_are_refused(tmp_path):
    other = {f"train/{label}/0.png": encode(pixels(0, 28, 28)) for label in CLASSES}
    with pytest.raises(ValueError, match="CIFAR-10 images are 32x32, got 28x28"):
        cifar10(write_folder(tmp_path / "small", other))
    lacking = {name: content for name, content in folders().items() if "/truck/" not in name}
    with pytest.raises(ValueError, match=r"unknown \[\], missing or empty \['truck'\]"):
        cifar10(write_folder(tmp_path / "lacking", lacking))
    foreign = folders() | {"train/tractor/0.png": encode(pixels(0, 32, 32))}
    with pytest.raises(ValueError, match=r"unknown \['tractor'\], missing or empty \[\]"):
        cifar10(write_folder(tmp_path / "foreign", foreign))
    train_only = {name: content for name, content in folders().items() if name.startswith("train/")}
    with pytest.raises(ValueError, match="no images under 'test'"):
        cifar10(write_folder(tmp_path / "half", train_only), "all")


def test_unsafe_and_empty_archives_are_refused(tmp_path):
    path = write_tar(tmp_path / "cifar.tar.gz", batches() | {"../evil": b"x"})
    with pytest.raises(ValueError, match=r"entry '../evil' escapes the archive's folder"):
        cifar10(path)
    empty = write_tar(tmp_path / "empty.tar.gz", {"readme.txt": b"x"})
    with pytest.raises(ValueError, match=r"holds neither data_batch_1.bin nor images"):
        cifar10(empty)


def test_missing_data_says_what_to_put_where(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            cifar10(root)
        message = str(caught.value)
        assert str(root) in message
        assert "cifar-10-binary.tar.gz" in message
        assert "train/airplane/0001.png" in message
    with pytest.raises(FileNotFoundError, match="GENMATCH_DATA"):
        cifar10()
    with pytest.raises(ValueError, match="split is one of"):
        cifar10(tmp_path, "valid")


@pytest.mark.slow
def test_the_real_test_part(real_data):
    root = real_data("cifar10").parent
    images, labels = cifar10(root, "test", progress=False)
    assert images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [1000] * 10
    # The channel means everybody normalises by, within what JPEG loses; red, green, blue in this order.
    mean = (images.mean((0, 2, 3)) + 1) / 2
    torch.testing.assert_close(mean, torch.tensor([0.4942, 0.4851, 0.4504]), rtol=0, atol=2e-3)
    # Labels belong to their pictures: ships and aeroplanes stand before blue, frogs and deer do not.
    blue = torch.stack([(images[labels == label, 2] - images[labels == label, 0]).mean() for label in range(10)])
    assert blue[[0, 8]].min() > blue[[1, 2, 3, 4, 5, 6, 7, 9]].max()
    # Upright: the sky above an aeroplane or a ship is brighter than what is below.
    for label in (0, 8):
        assert images[labels == label, :, :8].mean() > images[labels == label, :, 24:].mean()


@pytest.mark.slow
def test_the_real_training_part(real_data):
    images, labels = cifar10(real_data("cifar10").parent, progress=False)
    assert images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(labels).tolist() == [5000] * 10
    mean = (images.mean((0, 2, 3)) + 1) / 2
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), rtol=0, atol=2e-3)
