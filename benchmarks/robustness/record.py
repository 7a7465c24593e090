"""What all experiments share: how large they are, how repeats become an interval, and which noise levels they scan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from scipy import stats
from tqdm import tqdm

__all__ = ["GAMMAS", "Interval", "Scale", "fine_gammas", "interval"]

GAMMAS = (0.0, 0.25, 0.5, 1.0, 2.0)
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """How large an experiment is: in full, or a rehearsal that shows that every part runs."""

    smoke: bool = False
    progress: bool = True
    cache: Path = Path("runs/robustness")

    def pick(self, full: T, small: T) -> T:
        """The full size, or that of the rehearsal."""
        return small if self.smoke else full

    def bar(self, items: Iterable[T], name: str) -> Iterable[T]:
        """The items, with a progress bar."""
        items = list(items)
        return tqdm(items, desc=name, disable=not self.progress, leave=False)


class Interval(NamedTuple):
    """A mean and the ends of its 95% interval, which are the mean itself for a single value."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], *, log: bool = False) -> Interval:
    """Student's interval of the mean of independent repeats; with ``log`` of the geometric mean of what is positive."""
    numbers = torch.tensor(values, dtype=torch.float64)
    numbers = numbers.log() if log else numbers
    mean, half = float(numbers.mean()), 0.0
    if len(numbers) > 1:
        quantile = float(stats.t.ppf(0.975, len(numbers) - 1))
        half = quantile * float(numbers.std()) / math.sqrt(len(numbers))
    ends = (mean, mean - half, mean + half)
    return Interval(*map(math.exp, ends)) if log else Interval(*ends)


def fine_gammas(count: int = 61) -> list[float]:
    """Noise levels from 0 to 2, for lines."""
    return torch.linspace(0, 2, count, dtype=torch.float64).tolist()
