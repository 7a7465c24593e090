"""Ticks of logarithmic axes, as plain numbers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from .canvas import DPI

if TYPE_CHECKING:
    from matplotlib.axis import Axis

__all__ = ["label_logarithmic"]

_CHOICES = (
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0),
    (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0),
    (1.0, 2.0, 5.0),
    (1.0,),
)


def label_logarithmic(axis: Axis) -> None:
    """Plain numbers, as many to a decade as there is room for.

    The limits of the axis must be final.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    box = axis.axes.get_window_extent()
    wide = axis is axis.axes.xaxis
    pixels = (box.width if wide else box.height) / axis.axes.figure.figure.dpi * DPI
    room = pixels / max(math.log10(high / low), 1e-3)  # for a decade
    needed = 36 if wide else 20  # from one label to the next
    steps = next((steps for steps in _CHOICES if room * _closest(steps) >= needed), (1.0,))
    axis.set_major_locator(LogLocator(subs=steps, numticks=30))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    axis.set_minor_formatter(NullFormatter())


def _closest(steps: tuple[float, ...]) -> float:
    """The least distance between neighbours, in decades."""
    return min(math.log10(above / below) for below, above in pairwise((*steps, 10.0)))
