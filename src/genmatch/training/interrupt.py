"""Ctrl-C between two steps instead of within one."""

from __future__ import annotations

import signal
import threading
from types import FrameType

__all__ = ["DeferredInterrupt"]


class DeferredInterrupt:
    """A context in which Ctrl-C sets ``requested`` and nothing else, so that weights are never saved half updated.

    A second Ctrl-C interrupts at once. Outside the main thread, where Python has no signals, and where SIGINT is
    ignored (a job in the background), the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous = None

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._give_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            self._give_back()
            raise KeyboardInterrupt
        self.requested = True

    def _give_back(self) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
