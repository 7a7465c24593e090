"""CIFAR-10 from the official binary batches or from class-named folders of images, on disk or in an archive."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from .archives import ARCHIVE_SUFFIXES, read_files
from .folders import image_folder, is_image
from .labelled import Labelled, data_folder, signed, split_parts

__all__ = ["cifar10"]

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}
_PICKLES = {"batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))}
_RECORDS, _RECORD = 10_000, 1 + 3 * 32 * 32
_PLACES = (".", "cifar10", "CIFAR10", "cifar-10")
_ARCHIVE = "cifar-10-binary.tar.gz"
_PYTHON_VERSION = (
    "is the python version of CIFAR-10, made of pickles, and unpickling can run any code: "
    f"get the binary version, {_ARCHIVE}, from the same page"
)
_INSTRUCTIONS = (
    f"the official {_ARCHIVE} (https://www.cs.toronto.edu/~kriz/cifar.html) or its folder cifar-10-batches-bin, "
    "or images as train/airplane/0001.png and test/airplane/0001.png, or one archive of those with 'cifar' in its name"
)


def cifar10(root: str | os.PathLike[str] | None = None, split: str = "train", *, progress: bool = True) -> Labelled:
    """The CIFAR-10 images.

    Parameters
    ----------
    root
        An archive, or a folder that has, in itself or in ``cifar10/``, ``CIFAR10/`` or ``cifar-10/``, the first found
        of: the official binary batches (in ``cifar-10-batches-bin/`` or bare), JPEG or PNG images in
        ``train/airplane/`` and so on, or one .tar.gz, .tar.xz or .zip of either with ``cifar`` in its name.
        By default the environment variable GENMATCH_DATA.
    split
        ``"train"`` (50,000), ``"test"`` (10,000) or ``"all"`` (train, then test). Class folders that are not under
        ``train/`` and ``test/`` have no split, and are read by ``"all"`` only.
    progress
        Show a bar on work longer than a second.

    Returns
    -------
    Labelled
        Images ``(N, 3, 32, 32)``, RGB, ``pixel / 127.5 - 1``: 614 MB for the train part. Batches keep the official
        order; folders come sorted by class and name, so shuffle before training. Labels 0 .. 9 in the official order.

    Raises
    ------
    FileNotFoundError
        If there is no CIFAR-10 there; it says what to put where.
    ValueError
        For another split, a batch of another length or with other labels, images that are not 32x32, classes other
        than the ten, an archive that is damaged or not safe, more than one archive, or the python version of the
        set, which is made of pickles: nothing is ever unpickled.
    ImportError
        For a folder of images without Pillow: ``pip install 'genmatch[data]'``.

    References
    ----------
    A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
    """
    parts = split_parts(split)
    source = _find(data_folder(root, _INSTRUCTIONS))
    first = _first(source)
    if not is_image(first):
        return _read_batches(source, parts, progress)
    in_parts = PurePosixPath(first).parts[-3:-2] in (("train",), ("test",))
    if not in_parts and split != "all":
        raise ValueError(f"{source} has no train/ and test/ ({first!r} is in neither): pass split='all'")
    labelled = image_folder(source, parts=parts if in_parts else None, classes=_CLASSES, progress=progress)
    if labelled.images.shape[2:] != (32, 32):
        height, width = labelled.images.shape[2:]
        raise ValueError(f"{source}: CIFAR-10 images are 32x32, got {height}x{width}; image_folder reads any size")
    return labelled


def _find(root: Path) -> Path:
    if root.is_file():
        return root
    folders = [root / place for place in _PLACES if (root / place).is_dir()]
    for folder in folders:
        batches = folder / "cifar-10-batches-bin"
        if batches.is_dir():
            return batches
        marks = [*sum(_BATCHES.values(), ()), "train/airplane", "test/airplane", "airplane"]
        if any((folder / mark).exists() for mark in marks):
            return folder
        archives = sorted(path for path in folder.iterdir() if _is_archive(path.name) and path.is_file())
        if len(archives) > 1:
            raise ValueError(f"{folder} has several archives, {[path.name for path in archives]}: give one as root=")
        if archives:
            return archives[0]
    for folder in folders:
        for name in ("cifar-10-python.tar.gz", "cifar-10-batches-py", *sorted(_PICKLES)):
            if (folder / name).exists():
                raise ValueError(f"{folder / name} {_PYTHON_VERSION}")
    raise FileNotFoundError(f"no CIFAR-10 in {root} or its cifar10/: put there {_INSTRUCTIONS}")


def _is_archive(name: str) -> bool:
    name = name.lower()
    others = ("cifar-10-python", "cifar-100", "cifar100")
    return "cifar" in name and name.endswith(ARCHIVE_SUFFIXES) and not name.startswith(others)


def _first(source: Path) -> str:
    """Name of the first batch or image, which tells the kind of the source."""
    pickles = []

    def tells_kind(name: str) -> bool:
        base = PurePosixPath(name).name
        if base in _PICKLES:
            pickles.append(name)
        return base in sum(_BATCHES.values(), ()) or is_image(name)

    for name, _ in read_files(source, tells_kind, max_bytes=_RECORDS * _RECORD, progress=False):
        return name
    if pickles:
        raise ValueError(f"{source} {_PYTHON_VERSION}")
    raise ValueError(f"{source} holds neither data_batch_1.bin nor images: give {_INSTRUCTIONS}")


def _read_batches(source: Path, parts: Sequence[str], progress: bool) -> Labelled:
    needed = [name for part in parts for name in _BATCHES[part]]
    size = _RECORDS * _RECORD
    batches: dict[str, np.ndarray] = {}
    for name, content in read_files(
        source, lambda name: PurePosixPath(name).name in needed, max_bytes=size, progress=progress
    ):
        if len(content) != size:
            raise ValueError(f"{source}: {name!r} has {len(content)} bytes, {size} expected")
        batch = PurePosixPath(name).name
        if batch in batches:
            raise ValueError(f"{source} has {batch} twice")
        batches[batch] = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
        if batches[batch][:, 0].max() > 9:
            raise ValueError(f"{source}: {name!r} has label {batches[batch][:, 0].max()}, 0 .. 9 expected")
    missing = [name for name in needed if name not in batches]
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing)}")
    records = np.concatenate([batches[name] for name in needed])
    images = signed(records[:, 1:].reshape(-1, 3, 32, 32))
    return Labelled(images, torch.from_numpy(records[:, 0].astype(np.int64)), _CLASSES)
