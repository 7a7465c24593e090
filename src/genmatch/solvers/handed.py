"""The random numbers of a step, made before it: what a step asks for, and draws that hand it over.

A compiled or captured step must not make its numbers itself: counter-based draws are host integers, of which a graph
would make constants. So a run of the same steps is listened to once, and the numbers it asked for are made ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..random import Draws, fusible, kernels

__all__ = ["Ask", "Handed", "Listening"]

Way = tuple[tuple[str, int], ...]  # forks and steps between the draws of a step and those that are asked


class Ask(NamedTuple):
    """One question that a step puts to its draws: by which forks, for what, of which shape, and a dtype or a limit."""

    way: Way
    kind: str
    shape: tuple[int, ...]
    what: Any

    def answer(self, draws: Draws) -> Tensor:
        """What the draws of a step say."""
        for name, number in self.way:
            draws = getattr(draws, name)(number)
        if self.kind == "normal" and draws.device.type == "cuda":
            like = torch.empty(self.shape, dtype=self.what, device=draws.device)
            if fusible(like, draws):
                return kernels().normal(like, draws)  # as the spaces do
        made = getattr(draws, self.kind)
        return made(self.shape) if self.what is None else made(self.shape, self.what)


class Listening:
    """Draws that answer as those they stand for, and note what they were asked."""

    __slots__ = ("_draws", "_way", "asked")

    def __init__(self, draws: Draws, asked: dict[Ask, None], way: Way = ()) -> None:
        self._draws, self.asked, self._way = draws, asked, way

    @property
    def samples(self) -> int:
        """How many samples, B."""
        return self._draws.samples

    @property
    def device(self) -> torch.device:
        """Where the numbers are made."""
        return self._draws.device

    def fork(self, stream: int) -> Listening:
        """An independent stream."""
        return Listening(self._draws, self.asked, (*self._way, ("fork", stream)))

    def at(self, step: int) -> Listening:
        """The draws of another step."""
        return Listening(self._draws, self.asked, (*self._way, ("at", step)))

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`genmatch.Draws.normal`."""
        return self._note("normal", shape, dtype)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`genmatch.Draws.uniform`."""
        return self._note("uniform", shape, dtype)

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """See :meth:`genmatch.Draws.integers`."""
        return self._note("integers", shape, high)

    def bits(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`genmatch.Draws.bits`."""
        return self._note("bits", shape, None)

    def _note(self, kind: str, shape: Sequence[int], what: Any) -> Tensor:
        ask = Ask(self._way, kind, tuple(shape), what)
        self.asked[ask] = None
        return ask.answer(self._draws)


class Handed:
    """Draws that hand over numbers made before: pure look-ups, of tensors that a graph takes as inputs."""

    __slots__ = ("_numbers", "_way", "device", "samples")

    def __init__(self, samples: int, device: torch.device, numbers: dict[Ask, Tensor], way: Way = ()) -> None:
        self.samples, self.device, self._numbers, self._way = samples, device, numbers, way

    @classmethod
    def of(cls, draws: Draws, asks: Iterable[Ask]) -> Handed:
        """What the draws of a step answer to all that it will ask."""
        return cls(draws.samples, draws.device, {ask: ask.answer(draws) for ask in asks})

    def fork(self, stream: int) -> Handed:
        """An independent stream."""
        return Handed(self.samples, self.device, self._numbers, (*self._way, ("fork", stream)))

    def at(self, step: int) -> Handed:
        """The draws of another step."""
        return Handed(self.samples, self.device, self._numbers, (*self._way, ("at", step)))

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`genmatch.Draws.normal`."""
        return self._numbers[Ask(self._way, "normal", tuple(shape), dtype)]

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """See :meth:`genmatch.Draws.uniform`."""
        return self._numbers[Ask(self._way, "uniform", tuple(shape), dtype)]

    def integers(self, shape: Sequence[int], high: int) -> Tensor:
        """See :meth:`genmatch.Draws.integers`."""
        return self._numbers[Ask(self._way, "integers", tuple(shape), high)]

    def bits(self, shape: Sequence[int]) -> Tensor:
        """See :meth:`genmatch.Draws.bits`."""
        return self._numbers[Ask(self._way, "bits", tuple(shape), None)]
