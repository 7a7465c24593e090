"""Batches from a DataLoader or any other iterable, and how a run finds its place in one again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, Batches, name_parts, place
from .files import checksum
from .seeds import derive_seed, seed_generators

__all__ = ["Stream"]


class Stream(Batches):
    """What an iterable yields, from its start again at its end.

    To find its place again a resumed run repeats the iteration: generators that the loader holds are set to where they
    were when the epoch began, and as many batches are drawn and dropped as were used. torch's global generator is set
    before every batch to a function of the seed, the epoch and the batch, so a loader that shuffles, or a dataset that
    augments, by torch's generators repeats itself, with worker processes too. Random numbers from elsewhere
    (``random``, numpy), or from persistent workers, which are seeded once, do not: the last batch's checksum is stored,
    and if it differs a ``RuntimeWarning`` says that the run goes on, but not as it would have.
    """

    def __init__(
        self,
        data: Iterable[Any],
        names: Sequence[str],
        accumulate: int,
        seed: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.data, self.names, self.accumulate, self.seed = data, names, accumulate, seed
        self.device, self.channels_last = device, channels_last
        self._once = iter(data) is data if isinstance(data, Iterator) else False
        self._iterator: Iterator[Any] | None = None
        self._epoch, self._index, self._copies = 0, 0, False
        self._generators = _generators(data)
        self._began = [generator.get_state() for generator in self._generators]
        self._last: list[Tensor] = []

    def take(self, step: int) -> list[Batch]:
        """The next ``accumulate`` batches."""
        batches, first = [], 0
        for _ in range(self.accumulate):
            x1, named = self._next()
            x1, named = place(x1, named, self.device, self.channels_last)
            batches.append(Batch(x1, named or None, first))
            first += len(x1)
        return batches

    def hold(self) -> None:
        """Copy batches from now on: an iterable may fill one buffer again and again."""
        self._copies = True

    def settings(self) -> dict[str, Any]:
        """Accumulation, the type of the iterable, and its lengths as far as it has any."""
        described: dict[str, Any] = {"accumulate": self.accumulate, "data": type(self.data).__name__}
        for name, holder, attribute in (
            ("data.batches", self.data, "__len__"),
            ("data.batch_size", self.data, "batch_size"),
            ("data.samples", getattr(self.data, "dataset", None), "__len__"),
        ):
            value = getattr(holder, attribute, None)
            try:
                described[name] = value() if callable(value) else value
            except TypeError:  # a DataLoader over an iterable dataset without a length
                described[name] = None
        return described

    def bookmark(self) -> Callable[[], dict[str, Any]]:
        """Epoch and batch, the generators as the epoch began, and the checksum of the last batch."""
        epoch, index, began, last = self._epoch, self._index, self._began, self._last
        return lambda: {"epoch": epoch, "index": index, "generators": began, "last": checksum(last)}

    def seek(self, position: dict[str, Any]) -> None:
        """Iterate again up to a stored position."""
        self._iterator, self._epoch, self._index = None, position["epoch"], 0
        if self._epoch and getattr(self.data, "persistent_workers", False):
            # Their first iteration draws a number more, the seed of the workers, than those that follow.
            seed_generators(derive_seed(self.seed, "batch", 0, 0))
            iter(self.data)
        for generator, state in zip(self._generators, position["generators"], strict=True):
            generator.set_state(state)
        for _ in range(position["index"]):
            self._next()
        if (self._epoch, self._index) != (position["epoch"], position["index"]):
            raise ValueError(f"the checkpoint stands at batch {position['index']} of an epoch, data ends before")
        if checksum(self._last) != position["last"]:
            warnings.warn(
                f"batch {position['index']} of epoch {position['epoch']} is not what it was before the interruption: "
                "data does not repeat itself, so the resumed run goes on but not as it would have. Random numbers in a "
                "dataset repeat if they come from torch's global generator",
                RuntimeWarning,
                stacklevel=5,
            )

    def _next(self) -> tuple[Tensor, dict[str, Tensor]]:
        seed_generators(derive_seed(self.seed, "batch", self._epoch, self._index))
        item = self._draw()
        if item is _END:
            self._check_end()
            self._iterator, self._epoch, self._index = None, self._epoch + 1, 0
            seed_generators(derive_seed(self.seed, "batch", self._epoch, self._index))
            item = self._draw()
            if item is _END:
                raise ValueError(
                    f"data gave no batch in epoch {self._epoch + 1}: it must start again when it is iterated again"
                )
        x1, named = name_parts(item, self.names, f"batch {self._index} of data")
        if self._copies:
            x1, named = x1.clone(), {name: value.clone() for name, value in named.items()}
        self._index += 1
        self._last = [x1, *named.values()]
        return x1, named

    def _draw(self) -> Any:
        if self._iterator is None:
            self._began = [generator.get_state() for generator in self._generators]
            self._iterator = iter(self.data)
        return next(self._iterator, _END)

    def _check_end(self) -> None:
        if self._index == 0:
            raise ValueError("data is empty: it gave no batch" + (" (is it used up?)" if self._once else ""))
        if self._once:
            raise ValueError(
                f"data ended after {self._index} batches and, being an iterator, cannot start again: give a "
                "DataLoader, a list, or an object with __iter__"
            )


_END = object()


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader or its samplers hold."""
    batch_sampler = getattr(data, "batch_sampler", None)
    holders = (data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
