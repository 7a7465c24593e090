"""The samples of an adaptive run: where each of them is, and the states that they passed at the times asked for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import along_batch
from .pair import Trial
from .report import DONE, Report
from .span import Span

__all__ = ["Carry", "Samples", "has_passed", "read_off"]


class Samples(NamedTuple):
    """Where each sample is; all but the states and slopes are ``(B,)``."""

    x: Tensor
    slope: Tensor
    t: Tensor  # float64, as the three that follow
    step: Tensor  # the length to try next
    before: Tensor  # errors of the last two steps accepted
    earlier: Tensor
    held: Tensor  # whether the last try was rejected
    evaluations: Tensor
    accepted: Tensor
    rejected: Tensor
    status: Tensor

    def running(self, stop: float) -> Tensor:
        """Which samples are to go on."""
        return (self.status == DONE) & (self.t != stop)

    def of(self, rows: Tensor) -> Samples:
        """Some of the samples."""
        return Samples(*(value[rows] for value in self))

    def with_rows(self, rows: Tensor, new: Samples) -> Samples:
        """All samples, some of them new."""
        return Samples(*(value.index_copy(0, rows, own) for value, own in zip(self, new, strict=True)))


class Carry(NamedTuple):
    """The samples, and the states at times asked for that some of them have passed already."""

    samples: Samples
    passed: dict[int, Tensor]

    def report(self) -> Report:
        """Costs and ends so far."""
        return Report(*self.samples[-4:])


def read_off(
    carry: Carry, span: Span, trial: Trial, rows: Tensor | None, t: Tensor, until: Tensor
) -> dict[int, Tensor]:
    """The states that samples have passed, with those that they passed in one step from t to ``until``."""
    passed = dict(carry.passed)
    places = list(span.asked)
    times = span.sign * torch.tensor(list(span.asked.values()), dtype=torch.float64, device=t.device)
    low = torch.searchsorted(times, span.sign * t, right=True)
    high = torch.searchsorted(times, span.sign * until, right=True)
    moved = low < high
    first, last = torch.stack([torch.where(moved, low, len(places)).min(), torch.where(moved, high, 0).max()]).tolist()
    for place in places[first:last]:
        target = span.asked[place]
        covers = moved & has_passed(until, span, target) & ~has_passed(t, span, target)
        share = torch.where(covers, (target - t) / torch.where(covers, until - t, 1.0), 0.0)
        known = passed.get(place, carry.samples.x)
        old = known if rows is None else known[rows]
        state = torch.where(along_batch(covers, old).bool(), trial.within(share), old)
        passed[place] = state if rows is None else known.index_copy(0, rows, state)
    return passed


def has_passed(t: Tensor, span: Span, target: float) -> Tensor:
    """Whether times ``t`` ``(B,)`` are at a time or beyond."""
    return span.sign * (t - target) >= 0
