"""Loss against steps, from whatever a training run left."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import canvas
from .labels import label_ends
from .palette import colours
from .ticks import label_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["loss_curve"]


def loss_curve(
    log: object,
    *,
    x: str = "step",
    y: str = "loss",
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Training loss against steps: as logged in a pale line, smoothed in a strong one.

    The smoothed line is the running mean over the last twentieth of the run so far, at least one row and at most a
    twentieth of all rows.

    Parameters
    ----------
    log
        Rows with ``step`` and ``loss``, as mappings or objects (``fit.rows``); a sequence of losses, of steps 1, 2, ...
        (``fit.losses``); the path of a log in CSV or JSON lines; or name -> any of these, for several runs.
    x, y
        Keys of the axes, ``lr`` or ``grad_norm`` for instance.
    title
        Above the axes.
    ax
        Draw into these axes and not into a new figure.

    Raises
    ------
    TypeError
        If ``log`` is none of the above.
    ValueError
        If a log is empty, lacks a key, or holds a value that is not finite.
    ImportError
        If matplotlib is missing.
    """
    logs = {str(name): part for name, part in log.items()} if isinstance(log, Mapping) else {"": log}
    if not logs:
        raise ValueError("there is no log to draw: the mapping is empty")
    columns = {name: _columns(name, part, x, y) for name, part in logs.items()}
    figure, ax = canvas.new_axes(ax, 700, 380)
    colour = colours([name or "flow" for name in columns])
    positive = all(min(values) > 0 for _, values in columns.values())
    drawn = []
    for name, (steps, values) in columns.items():
        smooth = _running_mean(values)
        shade = colour[name or "flow"]
        ax.plot(steps, values, color=shade, alpha=0.3, linewidth=0.8, label="_logged")
        drawn += ax.plot(steps, smooth, color=shade, linewidth=1.8, label=name or y)
    ax.set(xlabel=x, ylabel=y)
    if positive:
        ax.set_yscale("log")
        label_logarithmic(ax.yaxis)
    ax.set_xlim(0, max(steps[-1] for steps, _ in columns.values()))
    canvas.set_title(ax, title)
    if any(columns):
        label_ends(ax, drawn)
    return figure


def _running_mean(values: Sequence[float]) -> list[float]:
    totals = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    count = np.arange(1, len(values) + 1)
    window = np.minimum(np.maximum(count // 20, 1), max(len(values) // 20, 1))
    return ((totals[count] - totals[count - window]) / window).tolist()


def _columns(name: str, log: object, x: str, y: str) -> tuple[list[float], list[float]]:
    what = f"log {name!r}" if name else "log"
    rows = _read(what, log) if isinstance(log, str | os.PathLike) else log
    if not isinstance(rows, Sequence):
        raise TypeError(f"{what} must be rows, losses, or the path of a .csv or .jsonl file, got {type(log).__name__}")
    if not rows:
        raise ValueError(f"{what} has no rows")
    numbers = [float(row) for row in rows if isinstance(row, int | float)]
    if len(numbers) == len(rows):
        xs, ys = [float(i) for i in range(1, len(rows) + 1)], numbers
    else:
        xs, ys = ([_value(what, i, row, key) for i, row in enumerate(rows)] for key in (x, y))
    for i, pair in enumerate(zip(xs, ys, strict=True)):
        if not all(math.isfinite(value) for value in pair):
            raise ValueError(f"row {i} of {what} holds a value that is not finite: {x} {pair[0]:g}, {y} {pair[1]:g}")
    return xs, ys


def _value(what: str, i: int, row: object, key: str) -> float:
    value = row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)
    if value is None:
        raise ValueError(f"row {i} of {what} has no {key!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"row {i} of {what} has {value!r} for {key!r}, needs a number") from None


def _read(what: str, path: str | os.PathLike[str]) -> Sequence[Mapping[str, Any]]:
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{what} must end in .csv or .jsonl, got {str(path)!r}")
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
