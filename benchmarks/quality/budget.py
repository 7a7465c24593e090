"""A training budget in seconds: of the wall, or of the processor."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["CLOCKS", "Budget"]

CLOCKS = ("cpu", "wall")


def _processor() -> float:
    """Processor seconds of this process, and of those it started and waited for (a compiler's)."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def _wall() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Budget:
    """Counts down from the moment it is made.

    Parameters
    ----------
    seconds
        How long the training may take, preparation and compilation included.
    clock
        ``"wall"``, or ``"cpu"``: the processor time of one thread, which is the wall time of a machine that has nothing
        else to do, and stays so on one that is shared.
    marks
        Seconds at which :meth:`due` becomes true, once each.
    """

    def __init__(self, seconds: float, clock: str, marks: tuple[float, ...] = ()) -> None:
        if clock not in CLOCKS:
            raise ValueError(f"clock must be one of {CLOCKS}, got {clock!r}")
        if seconds <= 0:
            raise ValueError(f"a budget is a positive number of seconds, got {seconds}")
        if clock == "cpu" and torch.get_num_threads() != 1:
            raise ValueError(
                f"processor time stands for wall time on one thread, there are {torch.get_num_threads()}: "
                "torch.set_num_threads(1), or clock='wall'"
            )
        self.seconds, self._read = float(seconds), _processor if clock == "cpu" else _wall
        self._marks = sorted(m for m in marks if m < seconds)
        self._paused = 0.0
        self._begin = self._read()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._read() - self._begin - self._paused

    @property
    def share(self) -> float:
        """What is spent of the whole, at most 1."""
        return min(1.0, self.spent / self.seconds)

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.seconds

    def due(self) -> float | None:
        """The mark that was passed since the last call, or None."""
        if self._marks and self.spent >= self._marks[0]:
            return self._marks.pop(0)
        return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done here does not count."""
        begin = self._read()
        try:
            yield
        finally:
            self._paused += self._read() - begin
