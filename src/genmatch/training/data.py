"""The forms of data that a run takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from ..data.labelled import Labelled
from .batches import Batches, hint, name_parts
from .memory import Memory
from .stream import Stream

__all__ = ["make_batches"]

BATCH = 128


def make_batches(
    data: Any,
    *,
    batch_size: int | None,
    accumulate: int,
    condition: str | Sequence[str] | None,
    seed: int,
    device: torch.device,
    channels_last: bool,
) -> Batches:
    """The batches of ``data`` in one of the forms that :func:`genmatch.training.fit` takes."""
    names = (condition,) if isinstance(condition, str) else tuple(condition or ())
    if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"condition must be a name or a list of different names, got {condition!r}")
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Mapping) and data and all(isinstance(part, Tensor) for part in data.values()):
        data = (data,)  # the states of a product
    if isinstance(data, Tensor | tuple | Labelled):
        x1, named = name_parts(data, names, "data")
        size = BATCH if batch_size is None else batch_size
        return Memory(x1, named, size, accumulate, seed, device, channels_last)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"data is a {type(data).__name__}, which yields samples: give batches, DataLoader(data, batch_size=...)"
        )
    if isinstance(data, Mapping) or not isinstance(data, Iterable) or type(data).__module__ == "numpy":
        raise TypeError(
            'data must be a tensor (N, *S), a tuple (x1, {"label": y}), or an iterable of batches such as a '
            f"DataLoader, got {type(data).__name__}{hint(data)}"
        )
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size} is for tensors: an iterable brings batches of its own")
    return Stream(data, names, accumulate, seed, device, channels_last)
