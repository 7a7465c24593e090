"""What a step trains on, and the forms a batch may come in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.labelled import Labelled
from ..losses import Pair

__all__ = ["Batch", "Batches", "hint", "name_parts", "place"]


FACTOR = "x1/"  # before the names of a product's factors, which travel among the conditions


class Batch(NamedTuple):
    """One pass through the network: data ``(B, *S)``, conditions with B rows, index of the first sample in the step.

    ``pair`` is what the loss uses instead where source and data were paired ahead.
    """

    x1: Tensor
    condition: dict[str, Tensor] | None
    first_index: int
    pair: Pair | None = None

    def read(self) -> tuple[Tensor | dict[str, Tensor], dict[str, Tensor] | None]:
        """The data, on a product a dict of its factors, and the conditions."""
        named = self.condition or {}
        factors = {name.removeprefix(FACTOR): value for name, value in named.items() if name.startswith(FACTOR)}
        rest = {name: value for name, value in named.items() if not name.startswith(FACTOR)}
        return factors or self.x1, rest or None


class Batches(ABC):
    """The batches of every step."""

    @abstractmethod
    def take(self, step: int) -> list[Batch]:
        """The batches whose gradients make up a step, counted from 0; steps are taken in order."""

    @abstractmethod
    def hold(self) -> None:
        """From now on a batch that was taken stays as it is when the next one is."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must agree for a run to go on, as JSON."""

    @abstractmethod
    def bookmark(self) -> Callable[[], dict[str, Any]]:
        """A function that gives the :meth:`position` of now, also when more has been taken since."""

    def position(self) -> dict[str, Any]:
        """Where the next step stands, as far as the step itself does not say it."""
        return self.bookmark()()

    @abstractmethod
    def seek(self, position: dict[str, Any]) -> None:
        """Go to a stored position."""


def name_parts(item: Any, names: Sequence[str], what: str) -> tuple[Tensor, dict[str, Tensor]]:
    """``x1``, ``(x1, {"label": y})`` or, with names for what follows x1, ``(x1, y, ...)`` as data and conditions.

    Where x1 is a dict, the state of a product, its first factor stands for it and all are among the conditions.

    Raises
    ------
    TypeError, ValueError
        If ``item``, called ``what`` in the message, is none of these, or the tensors have different lengths.
    """
    parts = list(item) if isinstance(item, tuple | list | Labelled) else [item]
    if not parts or (isinstance(parts[0], Mapping) and not parts[0]):
        raise ValueError(f"{what} is empty")
    factors = {}
    if isinstance(parts[0], Mapping):
        factors = {f"{FACTOR}{name}": value for name, value in parts[0].items()}
        parts[0] = next(iter(factors.values()))
    if len(parts) == 2 and isinstance(parts[1], Mapping):
        if names:
            raise ValueError(f"{what} names its conditions itself, {list(parts[1])}: leave condition= out")
        named = dict(parts[1])
    elif len(parts) - 1 == len(names):
        named = dict(zip(names, parts[1:], strict=True))
    else:
        raise ValueError(
            f"{what} has {len(parts) - 1} tensors after x1, and condition= names {len(names)} {list(names)}: name each "
            'of them, by condition="label" or a list of names, or pass (x1, {"label": y})'
        )
    for name in named:
        if not isinstance(name, str):
            raise TypeError(f"{what} has a condition called {name!r}: names are strings")
        if name.startswith(FACTOR):
            raise ValueError(f"{what} has a condition called {name!r}: names with {FACTOR!r} are a product's factors")
    named = {**factors, **named}
    for name, value in {"x1": parts[0], **named}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} in {what} must be a tensor, got {type(value).__name__}{hint(value)}")
        if value.ndim < 1 or len(value) != len(parts[0]):
            raise ValueError(
                f"{name} in {what} has shape {tuple(value.shape)} beside x1 of shape {tuple(parts[0].shape)}: "
                "each needs one row for each sample"
            )
    if not len(parts[0]):
        raise ValueError(f"{what} is empty: x1 has shape {tuple(parts[0].shape)}")
    return parts[0], named


def hint(value: Any) -> str:
    """What to do about data of another type, for a message."""
    if type(value).__module__ == "numpy":
        return ": torch.from_numpy(...) makes one"
    if isinstance(value, Mapping):
        return ': the data comes first, (x1, {"label": y})'
    return ""


def place(x1: Tensor, named: Mapping[str, Tensor], device: torch.device, channels_last: bool) -> tuple[Tensor, dict]:
    """A batch on the device, in the memory layout asked for."""
    layout = torch.channels_last if channels_last else torch.preserve_format
    if channels_last and x1.ndim != 4:
        raise ValueError(f"channels_last is for images (B, C, H, W), the data has shape {tuple(x1.shape)}")
    if device.type == "cuda" and x1.device.type == "cpu":
        # From pinned memory a copy does not make the host wait.
        x1, named = _pin(x1), {name: _pin(value) for name, value in named.items()}
    moved = {name: value.to(device, non_blocking=True) for name, value in named.items()}
    return x1.to(device, non_blocking=True, memory_format=layout), moved


def _pin(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_pinned() else tensor.pin_memory()
