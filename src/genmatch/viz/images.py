"""Grids of sample images, pixel for pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .canvas import LARGE, NORMAL, figure_of, new_figure, set_title, text_width
from .palette import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["grid"]

_WIDTH = 700  # pixels
_SMALLEST, _LARGEST = 32, 112  # pixels: no image smaller where blocks can go below each other, none larger
_GAP, _BETWEEN, _MARGIN = 3, 24, 10  # between images, between blocks, around all
_LINE = 24  # height of a line of title


def grid(
    images: Tensor | Mapping[str, Tensor],
    columns: int | None = None,
    *,
    value_range: tuple[float, float] = (-1.0, 1.0),
    row_labels: Sequence[str] | None = None,
    across: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Images in a grid, or in several grids with a title each.

    Every image pixel is the same whole number of screen pixels: nothing is blurred and nothing interpolated.

    Parameters
    ----------
    images
        ``(B, H, W)`` or ``(B, C, H, W)`` with C = 1 (grey), 3 (red, green, blue); or title -> images, for instance
        of several samplers side by side.
    columns
        Images in a row; by default as many as make a square.
    value_range
        The values of black and white. Samples may lie beyond; they are shown as black or white.
    row_labels
        A label for each row of images, to the left of the first block: steps, or classes.
    across
        Blocks side by side; by default up to four, as long as the images stay large enough.
    title
        Above all.
    ax
        Draw into these axes (one block, no row labels) and not into a new figure.

    Raises
    ------
    TypeError
        If images are no floating-point tensor.
    ValueError
        If they have another shape, values that are not finite, or labels that do not fit their rows.
    ImportError
        If matplotlib is missing.
    """
    low, high = value_range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"value_range must rise from black to white, got {value_range}")
    blocks = images if isinstance(images, Mapping) else {"": images}
    if not blocks:
        raise ValueError("there are no images to show: the mapping is empty")
    pixels = {str(name): _pixels(name, block, low, high) for name, block in blocks.items()}
    sizes = {block.shape[1:3] for block in pixels.values()}
    if len(sizes) > 1:
        raise ValueError(f"images of several blocks must be of one size, got {sorted(sizes)} as height and width")
    for name, value in (("columns", columns), ("across", across)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    widest = columns or max(math.ceil(math.sqrt(len(block))) for block in pixels.values())
    if row_labels is not None:
        _check_labels(row_labels, pixels, widest)
    if ax is not None:
        return _draw_into(ax, pixels, widest, title, row_labels)
    return _Layout(pixels, widest, list(row_labels or ()), across, title).draw()


class _Layout:
    """Where everything stands, in whole pixels."""

    def __init__(
        self,
        pixels: dict[str, np.ndarray],
        columns: int,
        row_labels: list[str],
        across: int | None,
        title: str | None,
    ) -> None:
        self.pixels, self.columns, self.row_labels, self.title = pixels, columns, row_labels, title
        self.left = _MARGIN
        if row_labels:
            self.left += math.ceil(max(text_width(label, NORMAL) for label in row_labels)) + 8
        self.tall, self.wide = next(iter(pixels.values())).shape[1:3]
        for self.across in [across] if across else range(min(4, len(pixels)), 0, -1):
            empty = -len(pixels) % self.across  # places left free in the last line of blocks
            self.scale = self._largest_scale()
            if self.scale * max(self.tall, self.wide) >= _SMALLEST and empty <= 1:
                break
        self.scale = max(1, self.scale)
        self.names = any(pixels)
        self.cell = math.ceil(
            max(
                self.columns * (self.wide * self.scale + _GAP) - _GAP,
                *(text_width(name, NORMAL, bold=True) for name in pixels),
                0,
            )
        )

    def _largest_scale(self) -> int:
        room = (_WIDTH - self.left - _MARGIN - (self.across - 1) * _BETWEEN) / self.across
        fits = int((room - (self.columns - 1) * _GAP) // (self.columns * self.wide))
        return min(fits, max(1, _LARGEST // max(self.tall, self.wide)))

    def draw(self) -> Figure:
        mosaics = {name: mosaic(block, self.columns, self.scale, _GAP) for name, block in self.pixels.items()}
        items = list(mosaics.items())
        lines = [items[i : i + self.across] for i in range(0, len(items), self.across)]
        heights = [max(len(image) for _, image in line) + self.names * _LINE for line in lines]
        top = _MARGIN + (_LINE + 6 if self.title else 0)
        height = top + sum(heights) + _BETWEEN * (len(lines) - 1) + _MARGIN
        title_width = text_width(self.title or "", LARGE, bold=True)
        used = min(self.across, len(items))
        width = self.left + used * (self.cell + _BETWEEN) - _BETWEEN + _MARGIN
        width = max(width, math.ceil(title_width) + 2 * _MARGIN)
        figure = new_figure(width, height, constrained=False)

        def write(x: float, y: float, text: str, **how: Any) -> None:
            figure.text(x / width, 1 - y / height, text, color=INK, **how)

        if self.title:
            write(_MARGIN, _MARGIN, self.title, fontsize=LARGE, fontweight="bold", va="top")
        for line, space in zip(lines, heights, strict=True):
            for i, (name, image) in enumerate(line):
                x, y = self.left + i * (self.cell + _BETWEEN), top
                if self.names:
                    write(x, y + _LINE - 7, name, fontsize=NORMAL, fontweight="bold", va="baseline")
                    y += _LINE
                rows, wide = image.shape[:2]
                ax = figure.add_axes((x / width, 1 - (y + rows) / height, wide / width, rows / height))
                _show(ax, image, name)
                for j, label in enumerate(self.row_labels if i == 0 else ()):
                    middle = y + j * (self.tall * self.scale + _GAP) + self.tall * self.scale / 2
                    write(x - 8, middle, label, fontsize=NORMAL, ha="right", va="center")
            top += space + _BETWEEN
        return figure


def mosaic(pixels: np.ndarray, columns: int, scale: int, gap: int) -> np.ndarray:
    """Images ``(B, H, W, 3)`` side by side on white, each pixel ``scale`` times as large, ``gap`` pixels apart."""
    count, tall, wide, _ = pixels.shape
    large = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    rows, across = math.ceil(count / columns), min(columns, count)
    down, right = tall * scale + gap, wide * scale + gap
    sheet = np.full((rows * down - gap, across * right - gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(large):
        y, x = i // columns * down, i % columns * right
        sheet[y : y + tall * scale, x : x + wide * scale] = image
    return sheet


def _pixels(name: object, images: Tensor, low: float, high: float) -> np.ndarray:
    what = f"images {name!r}" if name != "" else "images"
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{what} must be a floating-point tensor, got {got}; scale integers to value_range first")
    stacked = images[:, None] if images.ndim == 3 else images
    if stacked.ndim != 4 or stacked.shape[1] not in (1, 3) or stacked.numel() == 0:
        raise ValueError(
            f"{what} must have shape (B, H, W) or (B, C, H, W) with C = 1 or 3 and B of at least 1, "
            f"got {tuple(images.shape)}"
        )
    if not bool(torch.isfinite(images).all()):
        raise ValueError(f"{what} hold values that are not finite (NaN or infinity)")
    unit = (stacked.detach().double().cpu() - low) / (high - low)
    grey = (unit.clamp(0, 1) * 255).round().to(torch.uint8)
    return grey.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _check_labels(labels: Sequence[str], pixels: dict[str, np.ndarray], columns: int) -> None:
    if isinstance(labels, str):
        raise TypeError(f"row_labels must be a sequence of labels, got the string {labels!r}")
    for name, block in pixels.items():
        rows = math.ceil(len(block) / columns)
        if rows != len(labels):
            of = f" of {name!r}" if name else ""
            raise ValueError(f"{len(block)} images{of} in {columns} columns make {rows} rows, got {len(labels)} labels")


def _draw_into(
    ax: Axes, pixels: dict[str, np.ndarray], columns: int, title: str | None, row_labels: Sequence[str] | None
) -> Figure:
    figure = figure_of(ax)
    if len(pixels) > 1 or row_labels is not None:
        raise ValueError("ax= takes one block without row labels; leave ax out to get a figure of its own")
    ((name, block),) = pixels.items()
    _show(ax, mosaic(block, columns, max(1, _LARGEST // 2 // max(block.shape[1:3])), 2), name)
    set_title(ax, title or name)
    return figure


def _show(ax: Axes, image: np.ndarray, name: str) -> None:
    ax.imshow(image, interpolation="nearest", aspect="equal")
    ax.set_axis_off()
    ax.set_label(name)
