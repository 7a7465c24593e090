"""Class-named folders of images: labels follow names, and nothing is dropped or changed without a word."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")

from image_writer import encode, pixels, write_any, write_folder
from PIL import Image

from genmatch.data import image_folder

KINDS = ["folder", "gz", "xz", "zip"]


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "top/", "./"])
def test_images_labels_and_classes_belong_together(tmp_path, kind, prefix):
    files = {
        f"{prefix}{label}/{i}.png": encode(pixels(10 * k + i)) for k, label in enumerate(("dog", "cat")) for i in (1, 0)
    }
    root = write_any(kind, tmp_path / "set", files)
    labelled = image_folder(root, progress=False)
    assert labelled.classes == ("cat", "dog")
    assert labelled.labels.tolist() == [0, 0, 1, 1]
    assert labelled.labels.dtype == torch.int64
    expected = torch.stack([as_tensor(pixels(seed)) for seed in (10, 11, 0, 1)])
    assert labelled.images.dtype == torch.float32
    torch.testing.assert_close(labelled.images, expected, rtol=0, atol=1e-6)


def test_parts_come_in_the_order_asked(tmp_path):
    files = {f"{part}/cat/0.png": encode(pixels(seed)) for seed, part in enumerate(("train", "test", "extra"))}
    root = write_folder(tmp_path / "set", files)
    for parts, seeds in (("train", [0]), ("test", [1]), (("train", "test"), [0, 1]), (("test", "train"), [1, 0])):
        images = image_folder(root, parts=parts).images
        torch.testing.assert_close(images, torch.stack([as_tensor(pixels(seed)) for seed in seeds]))
    with pytest.raises(ValueError, match=r"at several places, 'extra', 'test', 'train': .*parts='train'"):
        image_folder(root)
    with pytest.raises(ValueError, match="no images under 'valid'"):
        image_folder(root, parts=("train", "valid"))


def test_files_that_are_no_images_are_passed_over(tmp_path):
    files = {
        "cat/0.png": encode(pixels(0)),
        "cat/.0.png": b"junk",
        "cat/Thumbs.db": b"junk",
        "README.txt": b"about",
        "__MACOSX/cat/._0.png": b"junk",
        ".cache/cat/1.png": b"junk",
    }
    assert image_folder(write_folder(tmp_path, files)).images.shape == (1, 3, 8, 8)


def test_size_cuts_the_centred_square_and_resamples(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    wide[0, 4:8] = 100  # upper row: up stays up
    root = write_folder(tmp_path, {"cat/0.png": encode(wide)})
    images = image_folder(root, 4).images
    torch.testing.assert_close(images[0], as_tensor(wide[:, 4:8]), rtol=0, atol=1e-6)
    flat = write_folder(tmp_path / "flat", {"cat/0.png": encode(np.full((30, 20, 3), 77, np.uint8))})
    assert image_folder(flat, 7).images.unique().tolist() == pytest.approx([77 / 127.5 - 1])
    for size in (0, -1, 8.0, True):
        with pytest.raises(ValueError, match="size is a number of pixels or None, got"):
            image_folder(root, size)
    with pytest.raises(ValueError, match="channels is 1 or 3, got 4"):
        image_folder(root, channels=4)


def test_channels(tmp_path):
    grey, colour = pixels(0, channels=1), pixels(1)
    root = write_folder(tmp_path, {"a/0.png": encode(grey), "a/1.png": encode(colour)})
    rgb, luma = image_folder(root).images, image_folder(root, channels=1).images
    assert rgb.shape == (2, 3, 8, 8)
    assert torch.equal(rgb[0, 0], rgb[0, 2])
    assert luma.shape == (2, 1, 8, 8)
    torch.testing.assert_close(luma[0], as_tensor(grey))
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    torch.testing.assert_close(luma[1], as_tensor((colour @ weights)[..., None]).float(), rtol=0, atol=1.01 / 127.5)


def test_cameras_orientation_tag_is_obeyed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    array = np.zeros((8, 8, 3), np.uint8)
    array[:, :4] = 255  # left half white: the upper half when shown
    root = write_folder(tmp_path, {"a/0.png": encode(array, exif=exif)})
    image = image_folder(root).images[0]
    assert (image[:, :4] == 1).all()
    assert (image[:, 4:] == -1).all()


def test_different_shapes_need_a_size(tmp_path):
    root = write_folder(tmp_path, {"a/0.png": encode(pixels(0)), "a/1.png": encode(pixels(0, 9, 8))})
    with pytest.raises(ValueError, match=r"'a/0.png' is 8x8 and 'a/1.png' is 9x8: pass size="):
        image_folder(root)
    assert image_folder(root, 8).images.shape == (2, 3, 8, 8)


def test_given_classes_fix_the_labels(tmp_path):
    root = write_folder(tmp_path, {"dog/0.png": encode(pixels(0)), "cat/0.png": encode(pixels(1))})
    labelled = image_folder(root, classes=("dog", "cat"))
    assert labelled.classes == ("dog", "cat")
    assert labelled.labels.tolist() == [1, 0]
    torch.testing.assert_close(labelled.images[labelled.labels == 0][0], as_tensor(pixels(0)))
    with pytest.raises(ValueError, match=r"unknown \['dog'\], missing or empty \['frog'\]"):
        image_folder(root, classes=("cat", "frog"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.txt": b"x"}, "has no images in class-named folders, such as cat/001.png"),
        ({"0.png": b"x"}, r"'0.png' is in no class-named folder"),
        ({"a/0.gif": b"GIF89a"}, r"'a/0.gif' is not JPEG or PNG: convert it"),
        ({"a/0.png": b"not an image"}, r"'a/0.png' is not a readable JPEG or PNG"),
        ({"a/0.png": encode(pixels(0))[:-30]}, r"'a/0.png' is not a readable JPEG or PNG"),
        ({"a/0.jpg": encode(pixels(0, 64, 64), "JPEG")[:-200]}, r"'a/0.jpg' is not a readable JPEG or PNG"),
        ({"a/0.png": encode(pixels(0), "BMP")}, r"'a/0.png' is not a readable JPEG or PNG"),
        ({"a/0.png": encode(pixels(0, channels=4))}, r"'a/0.png' is partly transparent"),
        ({"a/0.png": encode(np.zeros((4, 4), np.uint16))}, r"'a/0.png' has pixels of mode 'I;16', 8 bits"),
    ],
)
def test_what_cannot_be_taken_is_named(tmp_path, files, message):
    root = write_folder(tmp_path / "set", files)
    with pytest.raises(ValueError, match=message) as caught:
        image_folder(root)
    assert str(root) in str(caught.value)


def test_stray_images_in_a_part_are_named(tmp_path):
    root = write_folder(tmp_path, {"train/cat/0.png": encode(pixels(0)), "train/1.png": encode(pixels(1))})
    with pytest.raises(ValueError, match=r"'train/1.png' is in no class-named folder"):
        image_folder(root, parts="train")


def test_an_opaque_alpha_channel_is_no_loss(tmp_path):
    array = pixels(0, channels=4)
    array[..., 3] = 255
    images = image_folder(write_folder(tmp_path, {"a/0.png": encode(array)})).images
    torch.testing.assert_close(images[0], as_tensor(array[..., :3]))


def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(tmp_path):
    root = write_folder(tmp_path, {"a/0.png": encode(np.zeros((8200, 8200), bool))})  # 10 kB on disk
    with pytest.raises(ValueError, match=r"'a/0.png' claims 8200x8200 pixels, more than 67108864"):
        image_folder(root)


def test_jpeg_is_close_to_its_original(tmp_path):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    root = write_folder(tmp_path, {"a/0.JPG": encode(smooth, "JPEG", quality=95)})
    torch.testing.assert_close(image_folder(root).images[0], as_tensor(smooth), rtol=0, atol=0.06)


def test_unsafe_archive_is_refused(tmp_path):
    for kind in KINDS[1:]:
        path = write_any(kind, tmp_path / kind, {"cat/0.png": encode(pixels(0)), "../evil.png": encode(pixels(0))})
        with pytest.raises(ValueError, match=r"entry '../evil.png' escapes"):
            image_folder(path)


def test_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError):
        image_folder(tmp_path / "nothing")


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    root = write_folder(tmp_path, {"a/0.png": encode(pixels(0))})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'genmatch\[data\]'"):
        image_folder(root)
