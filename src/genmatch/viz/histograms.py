"""How bent trajectories are: one histogram of curvature for each model, on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..metrics import Curvature, curvature
from . import canvas
from .palette import INK, MUTED, colours
from .ticks import label_logarithmic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curvature_histogram"]


def curvature_histogram(
    curvatures: Mapping[str, Tensor | Curvature],
    *,
    bins: int = 40,
    limit: float | None = None,
    title: str | None = None,
) -> Figure:
    """Histograms of curvature C, one below the other on a shared axis from 1, each with its median.

    Parameters
    ----------
    curvatures
        Name -> values ``(B,)``, states ``(N + 1, B, *S)``, or what :func:`genmatch.metrics.curvature` returned.
    bins
        Bars over the axis; they are as wide in log C where the axis runs beyond 4.
    limit
        Where the axis ends: by default the 99th percentile of the widest histogram. Samples beyond, the infinite ones
        among them, are counted at the right of their histogram, as are those that never moved.
    title
        Above all.

    Raises
    ------
    TypeError
        If an entry is none of these.
    ValueError
        If there are no entries, values lie below 1, or no value is finite.
    ImportError
        If matplotlib is missing.
    """
    if not isinstance(curvatures, Mapping):
        raise TypeError(f"curvatures must map names to values or states, got {type(curvatures).__name__}")
    if not curvatures:
        raise ValueError("there are no curvatures to draw: the mapping is empty")
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins must be a positive integer, got {bins!r}")
    values = {str(name): _values(str(name), entry) for name, entry in curvatures.items()}
    limit = _limit(values, limit)
    logarithmic = limit > 4
    edges = np.geomspace(1, limit, bins + 1) if logarithmic else np.linspace(1, limit, bins + 1)
    colour = colours(values)
    figure = canvas.new_figure(700, 92 * len(values) + 60 + 30 * bool(title))
    panels = figure.subplots(len(values), sharex=True, squeeze=False)[:, 0]
    for ax, (name, c) in zip(panels, values.items(), strict=True):
        _draw(ax, name, c, edges, colour[name], logarithmic)
    panels[-1].set_xlabel("curvature C: path length / displacement", fontsize=canvas.NORMAL, color=INK)
    panels[-1].set_xlim(1, limit)
    if logarithmic:
        label_logarithmic(panels[-1].xaxis)
    canvas.set_title(panels[0], title)
    return figure


def _draw(ax: Axes, name: str, c: np.ndarray, edges: np.ndarray, colour: str, logarithmic: bool) -> None:
    canvas.style(ax)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    ax.set_yticks([])
    if logarithmic:
        ax.set_xscale("log")
    moved = c[~np.isnan(c)]
    middle = float(np.median(moved))
    shares = np.histogram(np.maximum(moved, 1), edges)[0] / len(c)
    ax.stairs(shares, edges, fill=True, color=colour, alpha=0.5, label=name)
    ax.set_ylim(0, 1.1 * max(float(shares.max()), 1e-9))
    if middle <= edges[-1]:
        ax.axvline(middle, color=colour, linewidth=1.6)
    beyond, still = int((moved > edges[-1]).sum()), len(c) - len(moved)
    head, _, rest = name.partition(", ")  # a long name in two lines leaves the histogram its room
    lines = [rest] * bool(rest) + [f"median {middle:.3g}"]
    lines += [f"{beyond} of {len(c)} beyond"] * bool(beyond) + [f"{still} of {len(c)} never moved"] * bool(still)
    for text, y, weight, shade in ((head, 0.78, "bold", colour), ("\n".join(lines), 0.66, "normal", MUTED)):
        ax.text(
            -0.02,
            y,
            text,
            transform=ax.transAxes,
            ha="right",
            va="baseline" if weight == "bold" else "top",
            fontsize=canvas.SMALL if weight == "normal" else canvas.NORMAL,
            fontweight=weight,
            color=shade,
            linespacing=1.25,
        )


def _values(name: str, entry: object) -> np.ndarray:
    if isinstance(entry, Tensor) and entry.ndim > 1:
        entry = curvature(entry)
    if isinstance(entry, Curvature):
        entry = entry.values
    if not isinstance(entry, Tensor) or not entry.is_floating_point():
        got = entry.dtype if isinstance(entry, Tensor) else type(entry).__name__
        raise TypeError(f"{name!r} must be curvatures (B,) or states (N + 1, B, *S) in floating point, got {got}")
    c = entry.detach().double().cpu().numpy()
    if c.size == 0 or np.isnan(c).all():
        raise ValueError(f"{name!r} has no sample that moved")
    if float(np.nanmin(c)) < 1 - 1e-4:
        raise ValueError(f"{name!r} has values below 1, which no curvature is: the least is {np.nanmin(c):.4g}")
    return c


def _limit(values: Mapping[str, np.ndarray], limit: float | None) -> float:
    if limit is None:
        finite = [c[np.isfinite(c)] for c in values.values()]
        if not any(len(c) for c in finite):
            raise ValueError("no curvature is finite: every trajectory ends where it began")
        return max(1.01, *(float(np.quantile(c, 0.99)) for c in finite if len(c)))
    if not (isinstance(limit, int | float) and math.isfinite(limit) and limit > 1):
        raise ValueError(f"limit must be above 1 and finite, got {limit!r}")
    return float(limit)
