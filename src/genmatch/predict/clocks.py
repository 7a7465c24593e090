"""What a network is told of the time: functions of a path's instant, host floats in, a host float out (or tensors).

A predictor chooses by itself: the index of the chain on a DDPM schedule, a quarter of the log noise level for
:class:`~genmatch.predict.Karras` where that level is finite, t otherwise. Pass ``time=`` to choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..schedules import DDPM, Number

__all__ = ["Clock", "index", "log_noise", "scaled", "t"]

Clock = Callable[[Any], Number]


def t(instant: Any) -> Number:
    """The time itself, in [0, 1]."""
    return instant.t


def scaled(factor: float) -> Clock:
    """``factor * t``."""

    def clock(instant: Any) -> Number:
        return factor * instant.t

    return clock


def log_noise(instant: Any) -> Number:
    r""":math:`\tfrac14\log(\sigma/\alpha)`, as arXiv 2206.00364, Table 1."""
    if isinstance(instant.sigma, Tensor):
        return (instant.sigma / instant.alpha).log() / 4
    if not (instant.sigma > 0 and instant.alpha > 0):
        raise ValueError(
            f"the log noise level is infinite at t = {instant.t:g} on this schedule: feed the network another time, "
            "time=clocks.t, or keep inside (0, 1)"
        )
    return math.log(instant.sigma / instant.alpha) / 4


def index(schedule: DDPM) -> Clock:
    """The step n of a DDPM chain, real-valued in [0, T - 1]; n = 0 is the cleanest."""

    def clock(instant: Any) -> Number:
        return schedule.index(instant.t)

    return clock
