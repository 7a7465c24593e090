"""Batches from tensors in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..random import Draws
from ..spaces.states import all_finite
from .batches import Batch, Batches, place
from .files import checksum

__all__ = ["Memory"]

_RESIDENT = 2 << 30  # bytes: data up to this size moves to the accelerator once
_SAMPLED = 64  # rows whose bytes identify the data of a run


class Memory(Batches):
    """Tensors in memory, in an order that is a function of seed and position alone.

    The samples follow each other in epochs, each a permutation that the seed and the epoch's number give; step k takes
    the samples from k G to (k + 1) G, G = batch size times accumulation, across the end of an epoch where it falls so.
    Every epoch has every sample once and every batch is full.
    """

    def __init__(
        self,
        x1: Tensor,
        named: dict[str, Tensor],
        batch_size: int,
        accumulate: int,
        seed: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        for name, value in {"x1": x1, **named}.items():
            if value.is_floating_point() and not all_finite(value):
                raise ValueError(f"{name} has non-finite values: remove those samples before training")
        self.batch_size, self.accumulate, self.seed = batch_size, accumulate, seed
        self.device, self.channels_last = device, channels_last
        self._settings = _describe_tensors(x1, named)
        size = sum(value.numel() * value.element_size() for value in (x1, *named.values()))
        home = device if size <= _RESIDENT else torch.device("cpu")
        self.x1 = x1.detach().to(home)
        self.named = {name: value.detach().to(home) for name, value in named.items()}
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def take(self, step: int) -> list[Batch]:
        """The batches of a step, one gather cut into ``accumulate`` pieces."""
        size = self.batch_size
        rows = self.rows(step * size * self.accumulate, size * self.accumulate)
        x1 = self.x1.index_select(0, rows)
        named = {name: value.index_select(0, rows) for name, value in self.named.items()}
        x1, named = place(x1, named, self.device, self.channels_last)
        if self.accumulate == 1:
            return [Batch(x1, named or None, 0)]
        batches = []
        for first in range(0, len(x1), size):
            condition = {name: value[first : first + size] for name, value in named.items()}
            batches.append(Batch(x1[first : first + size], condition or None, first))
        return batches

    def rows(self, start: int, count: int) -> Tensor:
        """Indices of the samples at positions ``start`` to ``start + count`` of the endless sequence of epochs."""
        parts, length = [], len(self.x1)
        while count:
            epoch, offset = divmod(start, length)
            part = self._permutation(epoch)[offset : offset + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def hold(self) -> None:
        """Nothing to do: each batch is gathered into memory of its own."""

    def settings(self) -> dict[str, Any]:
        """Batch size, accumulation, and what the tensors are."""
        return {"batch_size": self.batch_size, "accumulate": self.accumulate, **self._settings}

    def bookmark(self) -> Callable[[], dict[str, Any]]:
        """Nothing: the step alone says where the data stands."""
        return dict

    def seek(self, position: dict[str, Any]) -> None:
        """Nothing to do: see :meth:`bookmark`."""

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            # A stream two forks deep that no loss forks into; 63-bit keys, so that equal ones hardly occur.
            draws = Draws(self.seed, len(self.x1), step=epoch, device=self.x1.device).fork(255).fork(255)
            high, low = draws.bits((len(self.x1), 2)).unbind(1)
            self._epoch, self._order = epoch, torch.argsort((high << 31) | (low >> 1), stable=True)
        return self._order


def _describe_tensors(x1: Tensor, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """Length, shapes, dtypes, and a checksum of rows spread over the data: other data should not pass for the same."""
    rows = torch.linspace(0, len(x1) - 1, min(_SAMPLED, len(x1)), dtype=torch.float64).long()
    described: dict[str, Any] = {"samples": len(x1)}
    for name, value in {"x1": x1, **named}.items():
        sample = value.index_select(0, rows.to(value.device))
        described[f"data.{name}"] = (
            f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape[1:])} crc {checksum([sample]):08x}"
        )
    return described
