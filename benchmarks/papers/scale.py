"""How large an experiment is: a rehearsal of seconds, a run on a CPU, or the full run on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

__all__ = ["ROOT", "SIZES", "Scale"]

ROOT = Path(__file__).parents[2]
SIZES = ("smoke", "cpu", "full")
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """Where and how largely an experiment runs.

    Attributes
    ----------
    size
        ``"smoke"`` (seconds, on scikit-learn's digits: shows that every part runs, and its numbers mean nothing),
        ``"cpu"`` or ``"full"`` (on a GPU).
    data
        Folder that holds ``mnist`` and ``cifar10``.
    cache
        Folder of trained weights, which are kept between runs.
    device
        ``"cpu"`` or ``"cuda"``.
    progress
        Whether to show bars.
    """

    size: str = "cpu"
    data: Path = ROOT.parent / "shared/data"
    cache: Path = ROOT / "runs/papers"
    device: str = "cpu"
    progress: bool = True

    def pick(self, smoke: T, cpu: T, full: T) -> T:
        """The one that belongs to this size."""
        return (smoke, cpu, full)[SIZES.index(self.size)]

    def bar(self, items: Iterable[T], name: str) -> Iterable[T]:
        """The items, with a progress bar."""
        items = list(items)
        return tqdm(items, desc=name, disable=not self.progress, leave=False)

    def wait(self) -> None:
        """Until the device has done what it was given: before a clock is read."""
        if self.device == "cuda":
            torch.cuda.synchronize()
