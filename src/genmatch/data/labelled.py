"""What every image set here returns, and what every reader of one shares: splits, data folders, pixel range."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Labelled", "data_folder", "signed", "split_parts"]

_PARTS = {"train": ("train",), "test": ("test",), "all": ("train", "test")}


@dataclass(frozen=True, eq=False, repr=False)
class Labelled:
    """Images with their labels; iterating gives those two, so it unpacks.

    Attributes
    ----------
    images
        ``(N, C, H, W)``, float32 in ``[-1, 1]``: black is -1, white is 1.
    labels
        ``(N,)``, int64: index into ``classes``.
    classes
        The names of the classes.

    Raises
    ------
    ValueError
        If the shapes do not match, or a label has no name.
    TypeError
        If the images are not floating-point or the labels not int64.

    Examples
    --------
    >>> import torch
    >>> images, labels = Labelled(torch.zeros(2, 1, 8, 8), torch.tensor([1, 0]), ("cat", "dog"))
    >>> images.shape, labels.tolist()
    (torch.Size([2, 1, 8, 8]), [1, 0])

    A DataLoader takes ``torch.utils.data.TensorDataset(*labelled)``.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.images.is_floating_point() or self.labels.dtype != torch.int64:
            raise TypeError(
                f"images are floating-point and labels int64, got {self.images.dtype} and {self.labels.dtype}"
            )
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "images are (N, C, H, W) and labels (N,) of the same N, "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if self.labels.numel():
            low, high = self.labels.min().item(), self.labels.max().item()
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"labels are in [0, {len(self.classes)}), got {low} .. {high}")

    def __iter__(self) -> Iterator[Tensor]:
        yield self.images
        yield self.labels

    def __repr__(self) -> str:
        return f"Labelled(images={tuple(self.images.shape)}, labels={tuple(self.labels.shape)}, classes={self.classes})"


def split_parts(split: str) -> tuple[str, ...]:
    """The parts a split consists of: ``"train"``, ``"test"``, or ``"all"`` (train, then test)."""
    if split not in _PARTS:
        raise ValueError(f"split is one of {', '.join(map(repr, _PARTS))}, got {split!r}")
    return _PARTS[split]


def data_folder(root: str | os.PathLike[str] | None, needs: str) -> Path:
    """``root``, else the folder named by the environment variable GENMATCH_DATA, else FileNotFoundError."""
    if root is None:
        root = os.environ.get("GENMATCH_DATA") or None
    if root is None:
        raise FileNotFoundError(f"no data folder: pass root=, or set GENMATCH_DATA, to a folder that has {needs}")
    return Path(root).expanduser()


def signed(pixels: np.ndarray | Tensor) -> Tensor:
    """8-bit pixels ``v`` in 0 .. 255 as float32 ``v / 127.5 - 1`` in ``[-1, 1]``, both ends exact."""
    return torch.as_tensor(pixels).to(torch.float32).div_(127.5).sub_(1.0)
