"""Batches of the next step, paired on a thread while this step runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .batches import Batch, Batches

__all__ = ["Prefetch"]


class _Coming(NamedTuple):
    """A step's batches on their way, and where the data stands after them."""

    batches: Future[tuple[list[Batch], torch.cuda.Event | None]]
    position: Callable[[], dict[str, Any]]


class Prefetch:
    """Hands out the batches of step after step.

    With a function ``pair`` those of step k + 1 are taken from the data as step k is handed out, and paired on a thread
    of their own until they are asked for; on CUDA on a stream of their own, which does not wait for the step. The data
    is iterated by the caller's thread alone, as loaders and torch's global generators are not made for two. An error of
    a step's data or pairing is raised when that step is asked for.
    """

    def __init__(
        self, batches: Batches, pair: Callable[[Batch, int], Batch] | None, steps: int, device: torch.device
    ) -> None:
        self._batches, self._pair, self._steps = batches, pair, steps
        self._position = batches.bookmark()
        self._coming: _Coming | None = None
        self._thread = None if pair is None else ThreadPoolExecutor(1, thread_name_prefix="genmatch-pairing")
        self._device, self._stream = device, None
        if pair is not None:
            batches.hold()
        if pair is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # which moved the data to the device

    def take(self, step: int) -> list[Batch]:
        """The batches of a step; steps are taken in order."""
        if self._thread is None:
            batches = self._batches.take(step)
            self._position = self._batches.bookmark()
            return batches
        coming = self._coming or self._start(step, self._thread)
        batches, done = coming.batches.result()
        self._position = coming.position
        if done is not None:
            _hand_over(batches, done, self._device)
        self._coming = self._start(step + 1, self._thread) if step + 1 < self._steps else None
        return batches

    def position(self) -> dict[str, Any]:
        """Where the data stands after the steps that were handed out."""
        return self._position()

    def close(self) -> None:
        """End the thread, after the pairing it is at."""
        self._coming = None
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _start(self, step: int, thread: ThreadPoolExecutor) -> _Coming:
        try:
            with self._on_stream():
                batches = self._batches.take(step)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return _Coming(failed, self._position)
        return _Coming(thread.submit(self._work, batches, step), self._batches.bookmark())

    def _work(self, batches: list[Batch], step: int) -> tuple[list[Batch], torch.cuda.Event | None]:
        with self._on_stream():
            paired = [self._pair(batch, step) for batch in batches]  # pyright: ignore[reportOptionalCall]
            if self._stream is None:
                return paired, None
            done = torch.cuda.Event()
            done.record(self._stream)
            return paired, done

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _hand_over(batches: list[Batch], done: torch.cuda.Event, device: torch.device) -> None:
    """Let the device's current stream use what another one made, once it is made."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(done)
    for value in tree_leaves(batches):
        if isinstance(value, Tensor):
            value.record_stream(stream)  # its memory is not given to others before this stream is through
