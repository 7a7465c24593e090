"""Labels at the ends of lines, in place of a legend: the eye need not travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from .canvas import SMALL, figure_of
from .palette import LEADER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["label_ends", "spread"]

_KEY, _TEXT = (9.0, 31.0), 36.0  # points to the right of the axes: the key from and to, the text


def label_ends(ax: Axes, lines: Sequence[Line2D]) -> None:
    """Write a column of labels to the right of axes: for each line a key, in its dash and marker, and its label.

    Each stands as near the height of its line's end as the others allow, and a thin leader runs to it from there. The
    limits of the axes must be final.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import ConnectionPatch
    from matplotlib.transforms import Affine2D, Affine2DBase, ScaledTranslation, Transform

    figure = figure_of(ax)
    place = ax.transData + ax.transAxes.inverted()
    ends = [np.asarray(line.get_xydata(), dtype=float)[-1] for line in lines]
    heights = [float(place.transform(end)[1]) for end in ends]

    def beside(height: float) -> Transform:
        """Points to the right of the axes at a height."""
        edge = ScaledTranslation(1, height, cast(Affine2DBase, ax.transAxes))
        return Affine2D().scale(1 / 72) + figure.dpi_scale_trans + edge

    texts = []
    for line, height in zip(lines, heights, strict=True):
        style = {"fontsize": SMALL, "fontweight": "bold", "color": line.get_color(), "va": "center_baseline"}
        texts.append(ax.text(_TEXT, 0, str(line.get_label()), transform=beside(height), **style))
    # How far apart labels must be depends on how tall the layout makes the axes, and that on how wide the labels are.
    figure.draw_without_rendering()
    gap = 1.5 * SMALL / 72 * figure.dpi / ax.get_window_extent().height
    for line, text, end, height in zip(lines, texts, ends, spread(heights, gap), strict=True):
        where = beside(height)
        text.set_transform(where)
        key = Line2D(_KEY, (0, 0), transform=where, clip_on=False, markevery=[0])
        key.update_from(line)
        key.set(transform=where, clip_on=False, label="_key")
        key.set_data([_KEY[0], sum(_KEY) / 2, _KEY[1]], [0, 0, 0])
        key.set_markevery([1])
        leader = ConnectionPatch(
            tuple(end), (_KEY[0] - 3, 0), ax.transData, where, color=LEADER, linewidth=0.7, zorder=1
        )
        leader.set(clip_on=False, in_layout=False)
        ax.add_artist(key)
        ax.add_artist(leader)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights at least ``gap`` apart in the order of the given, and as near to those as can be (least squares)."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # With y_i = h_i - i gap the constraint is that y rises: isotonic regression, by pooling adjacent violators.
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = heights[i] - rank * gap, 1
        while pools and pools[-1][0] > mean:
            below, count = pools.pop()
            mean, size = (mean * size + below * count) / (size + count), size + count
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    result = [0.0] * len(heights)
    for rank, i in enumerate(order):
        result[i] = levels[rank] + rank * gap
    return result
