"""MNIST from its four IDX files, found in a folder or downloaded there and checked."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .idx import read_idx
from .labelled import Labelled, data_folder, signed, split_parts

__all__ = ["mnist"]

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
# Of the uncompressed files: a gzip header holds a date, so equal content can have many compressed forms.
_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_PLACES = (".", "mnist", "MNIST/raw")
_TIMEOUT = 30.0  # seconds without a byte
_MAX_DOWNLOAD, _MAX_UNPACKED = 2**24, 2**26  # the largest file has 9.9 MB, and 47 MB unpacked
_CHUNK = 1 << 16


def mnist(
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    size: int = 28,
    *,
    download: bool = False,
    progress: bool = True,
) -> Labelled:
    """The MNIST digits, or any set in the same files, such as Fashion-MNIST.

    Parameters
    ----------
    root
        Folder that holds the files, as ``train-images-idx3-ubyte`` or ``.gz`` and so on, in itself, in ``mnist/`` or
        in ``MNIST/raw/``. By default the environment variable GENMATCH_DATA.
    split
        ``"train"`` (60,000), ``"test"`` (10,000) or ``"all"`` (train, then test).
    size
        28, or 32 for a border of two black pixels (-1) on each side.
    download
        Fetch missing files (12 MB in all) into ``root/mnist``. Each is checked by SHA-256 before it gets its name,
        so a cut connection leaves no half file. Files that were there are read as they are.
    progress
        Show a bar while downloading.

    Returns
    -------
    Labelled
        Images ``(N, 1, size, size)``, ``pixel / 127.5 - 1``: background -1, ink up to 1. Labels 0 .. 9.

    Raises
    ------
    FileNotFoundError
        If files are missing and were not, or could not be, downloaded; it says which, and where to put them.
    ValueError
        For another split or size, a damaged file, images that are not 28x28 bytes, labels that do not fit, or a
        download with the wrong checksum.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    parts = split_parts(split)
    if size not in (28, 32):
        raise ValueError(f"size is 28, or 32 for a border of two black pixels, got {size!r}")
    names = [name for part in parts for name in _FILES[part]]
    files = _find(data_folder(root, f"{', '.join(names)} (plain or .gz)"), names, download, progress)
    pairs = [_read(files[images], files[labels]) for images, labels in (_FILES[part] for part in parts)]
    images = signed(torch.cat([images for images, _ in pairs]))[:, None]
    if size == 32:
        images = torch.nn.functional.pad(images, (2, 2, 2, 2), value=-1.0)
    labels = torch.cat([labels for _, labels in pairs]).to(torch.int64)
    return Labelled(images, labels, tuple(str(digit) for digit in range(10)))


def _read(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"{images_path} should hold (N, 28, 28) images of bytes, got {tuple(images.shape)} of {images.dtype}"
        )
    if labels.dtype != torch.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_path} should hold {len(images)} labels of one byte, got {tuple(labels.shape)} of {labels.dtype}"
        )
    if labels.numel() and labels.max() > 9:
        raise ValueError(f"{labels_path} should hold labels 0 .. 9, got {labels.max().item()}")
    return images, labels


def _find(root: Path, names: list[str], download: bool, progress: bool) -> dict[str, Path]:
    found = [{name: path for name in names if (path := _present(root / place, name))} for place in _PLACES]
    best = max(found, key=len)
    missing = [name for name in names if name not in best]
    if not missing:
        return best
    wanted = f"put {', '.join(missing)} (plain or .gz) into {root} or its mnist/ or MNIST/raw/"
    if not download:
        raise FileNotFoundError(f"MNIST is incomplete: {wanted}, or pass download=True to fetch from {_MIRRORS[0]}")
    folder = next(iter(best.values())).parent if best else root / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return best | {name: _download(name, folder, progress) for name in missing}
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(f"MNIST could not be downloaded ({error}): {wanted}") from error


def _present(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(name: str, folder: Path, progress: bool) -> Path:
    """The file from the first mirror that answers; the last one's OSError if none does."""
    target, partial = folder / f"{name}.gz", folder / f"{name}.gz.{os.getpid()}.part"
    try:
        for mirror in _MIRRORS:
            try:
                _fetch(f"{mirror}{name}.gz", partial, progress)
                break
            except (OSError, http.client.HTTPException):
                if mirror == _MIRRORS[-1]:
                    raise
        digest = _sha256(partial)
        if digest != _SHA256[name]:
            raise ValueError(
                f"the download of {name}.gz is not the file it should be: its content has SHA-256 {digest}, "
                f"expected {_SHA256[name]}; nothing was kept"
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _fetch(url: str, path: Path, progress: bool) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        with tqdm(desc=url.rsplit("/", 1)[1], total=total, unit="B", unit_scale=True, disable=not progress) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                if file.tell() > _MAX_DOWNLOAD:
                    raise ValueError(f"{url} sends more than {_MAX_DOWNLOAD} bytes: not an MNIST file")


def _sha256(path: Path) -> str:
    """SHA-256 of what a gzip file holds; empty for what is no gzip, so that it matches nothing."""
    digest, size = hashlib.sha256(), 0
    try:
        with gzip.open(path) as file:
            while size <= _MAX_UNPACKED and (chunk := file.read(_CHUNK)):
                digest.update(chunk)
                size += len(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return f"none ({error})"
    return digest.hexdigest()
