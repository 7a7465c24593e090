"""Quality against cost: where the quality of few steps comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from . import canvas
from .labels import label_ends
from .palette import DASHES, MARKERS, MUTED, colours
from .ticks import label_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["quality_curves"]

_NAMES = {
    "evaluations": "network evaluations per sample",
    "steps": "steps",
    "ms_per_image": "milliseconds per image",
    "frechet": "Frechet distance",
    "curvature": "curvature C",
}


def quality_curves(
    records: Sequence[Mapping[str, Any]],
    *,
    x: str = "evaluations",
    y: str = "frechet",
    floor: float | None = None,
    floor_label: str = "floor",
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Quality against cost on logarithmic axes, one line for each pair of model and sampler.

    The colour is the model's, marker and dash are the sampler's, and the name stands at the end of the line. Several
    records at one x (of several seeds) are drawn as their median in a band from the least to the greatest.

    Parameters
    ----------
    records
        Mappings with keys ``model``, ``sampler``, and those named by ``x`` and ``y``; others are ignored.
    x, y
        Keys of the axes: ``evaluations``, ``steps``, ``ms_per_image``; ``frechet``, ``curvature``; or any of yours.
    floor, floor_label
        A horizontal line at the value that cannot be beaten, for instance real data against other real data.
    title
        Above the axes.
    ax
        Draw into these axes; leave room to the right of them for the names.

    Raises
    ------
    ValueError
        If there are no records, one lacks a key, or a value is not a positive number.
    ImportError
        If matplotlib is missing.
    """
    lines = _lines(records, x, y)
    if floor is not None:
        _check_positive("floor", floor)
    figure, ax = canvas.new_axes(ax, 700, 440)
    colour = colours(model for model, _ in lines)
    samplers = list(dict.fromkeys(sampler for _, sampler in lines))
    drawn = []
    for (model, sampler), points in lines.items():
        i = samplers.index(sampler)
        xs = sorted(points)
        middle = [median(points[value]) for value in xs]
        if any(len(points[value]) > 1 for value in xs):
            low, high = ([pick(points[value]) for value in xs] for pick in (min, max))
            ax.fill_between(xs, low, high, color=colour[model], alpha=0.15, linewidth=0)
        text = ", ".join(filter(None, (model, sampler)))
        drawn += ax.plot(
            xs,
            middle,
            color=colour[model],
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
            linewidth=1.7,
            label=text,
        )
    if floor is not None:
        ax.axhline(floor, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label="_floor")
    ax.set(xscale="log", yscale="log", xlabel=_NAMES.get(x, x), ylabel=_NAMES.get(y, y))
    label_logarithmic(ax.xaxis)
    label_logarithmic(ax.yaxis)
    if floor is not None:
        ax.annotate(
            f"{floor_label} {floor:.3g}",
            xy=(0, floor),
            xycoords=("axes fraction", "data"),
            xytext=(4, -3),
            textcoords="offset points",
            va="top",
            fontsize=canvas.SMALL,
            color=MUTED,
        )
    canvas.set_title(ax, title)
    label_ends(ax, drawn)
    return figure


def _lines(records: Sequence[Mapping[str, Any]], x: str, y: str) -> dict[tuple[str, str], dict[float, list[float]]]:
    """(model, sampler) -> x -> the values of y there, in the order of the records."""
    if isinstance(records, Mapping) or not isinstance(records, Sequence):
        raise TypeError(f"records must be a sequence of mappings, got {type(records).__name__}")
    if not records:
        raise ValueError("there are no records to draw")
    lines: dict[tuple[str, str], dict[float, list[float]]] = {}
    for i, record in enumerate(records):
        missing = [key for key in ("model", "sampler", x, y) if key not in record]
        if missing:
            raise ValueError(f"record {i} has no {' and no '.join(map(repr, missing))}; its keys are {list(record)}")
        for key in (x, y):
            _check_positive(f"{key} of record {i} ({record['model']}, {record['sampler']})", record[key])
        line = lines.setdefault((str(record["model"]), str(record["sampler"])), {})
        line.setdefault(float(record[x]), []).append(float(record[y]))
    return lines


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number to stand on a logarithmic axis, got {value!r}")
