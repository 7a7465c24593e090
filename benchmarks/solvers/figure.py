"""The figure: a row for each world, a panel for each family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from genmatch.viz import canvas
from genmatch.viz.palette import COLOURS as COLOURS_OF_MODELS
from genmatch.viz.palette import DASHES, INK, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from .contenders import FAMILIES

__all__ = ["draw"]

COLOURS = (*COLOURS_OF_MODELS.values(), *OTHERS)
COMMON = "Exponential 2"  # the default, drawn in grey in every panel
ADAPTIVE = "Dormand-Prince 5(4) per sample"


def draw(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Error against evaluations, both logarithmic, as a PNG."""
    figure = canvas.new_figure(400 * len(FAMILIES), 320 * len(tables))
    for row, (world, records) in enumerate(tables.items()):
        errors = [r["error"] for r in records if r["error"] > 0]
        for column, family in enumerate(FAMILIES):
            ax = figure.add_subplot(len(tables), len(FAMILIES), row * len(FAMILIES) + column + 1)
            canvas.style(ax)
            ax.set_title(f"{world}: {family}", loc="left", fontsize=10, fontweight="bold", color=INK)
            names = [name for name in FAMILIES[family] if name != COMMON]
            _line(ax, records, COMMON, MUTED, 0, linewidth=3.5, alpha=0.45)
            for i, name in enumerate(names):
                _line(ax, records, name, COLOURS[i % len(COLOURS)], i)
            if column == 0:
                _line(ax, records, ADAPTIVE, MUTED, 5)
            ax.set(xscale="log", yscale="log", ylim=(min(errors) * 0.6, max(min(max(errors), 3.0), 1e-3) * 1.4))
            label_logarithmic(ax.xaxis)
            if row == len(tables) - 1:
                ax.set_xlabel("network evaluations")
            if column == 0:
                ax.set_ylabel("relative error of the end point")
            ax.legend(fontsize=7, frameon=False, loc="lower left")
    return canvas.to_png(figure, dpi=canvas.DPI)


def _line(ax: Any, records: Sequence[Mapping[str, Any]], name: str, colour: str, i: int, **style: Any) -> None:
    points = sorted((r["evaluations"], r["error"]) for r in records if r["solver"] == name)
    if not points:
        return
    x, y = zip(*points, strict=True)
    style = {"linewidth": 1.5, **style}
    mark = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4.5, "linestyle": DASHES[i % len(DASHES)]}
    ax.plot(x, y, color=colour, label=name, **mark, **style)
