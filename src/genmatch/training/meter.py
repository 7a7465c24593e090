"""Losses and gradient norms on their way from the device to the host, without making it wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Meter", "Moment", "Reading"]


class Moment(NamedTuple):
    """What the host knew when a copy began."""

    step: int
    lr: float
    seconds: float
    samples: int
    logged: bool  # whether a row of the log ends here


class Reading(NamedTuple):
    """The losses and gradient norms of the steps up to a moment."""

    moment: Moment
    losses: list[float]
    norms: list[float]


class Meter:
    """Keeps the scalars of each step on the device and copies them to the host in batches, asynchronously on CUDA."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._coming: deque[tuple[Moment, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Note a step's loss and gradient norm, scalars on the device."""
        self._losses.append(loss)
        self._norms.append(norm)

    def launch(self, moment: Moment) -> None:
        """Start to copy what was noted since the last time, at least one step."""
        values = torch.stack([*self._losses, *self._norms])
        self._losses, self._norms = [], []
        event = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._coming.append((moment, values, event))

    def arrived(self, wait: bool) -> Iterator[Reading]:
        """What has been copied, oldest first; with ``wait``, all of it."""
        while self._coming:
            moment, values, event = self._coming[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._coming.popleft()
            numbers = values.tolist()
            yield Reading(moment, numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :])
