"""Densities in the plane, with trajectories over them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import canvas
from .palette import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["density"]

Bounds = tuple[float, float, float, float]
LogDensity = Callable[[Tensor], Tensor]  # (m, 2) -> (m,)


def density(
    target: Tensor | LogDensity,
    trajectories: Tensor | None = None,
    *,
    bounds: Bounds | None = None,
    resolution: int | None = None,
    colour: str = COLOURS["flow"],
    labels: tuple[str, str] = ("first coordinate", "second coordinate"),
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A density in the plane as shades of grey, with trajectories drawn over it from ring to dot.

    Parameters
    ----------
    target
        ``(n, 2)`` samples, shown as a histogram; or a log-density, which maps points ``(m, 2)`` of torch's default
        dtype to ``(m,)`` and is shown as the density itself.
    trajectories
        ``(N + 1, B, 2)`` states, as from ``gm.sample(..., trajectory=True)``. All are drawn: pass a few dozen.
    bounds
        Left, right, bottom, top. By default what holds samples and trajectories; a function without trajectories
        needs them.
    resolution
        Cells along each axis: by default 60 for samples, 200 for a function.
    colour
        Of the trajectories.
    labels
        Of the axes.
    title
        Above the axes.
    ax
        Draw into these axes and not into a new figure.

    Raises
    ------
    TypeError
        If ``target`` is neither a floating-point tensor nor callable.
    ValueError
        If shapes do not fit, values are not finite, or bounds are missing or empty.
    ImportError
        If matplotlib is missing.
    """
    source: np.ndarray | LogDensity
    if isinstance(target, Tensor) or not callable(target):
        source = samples = _plane("target", target, 2)
    else:
        source, samples = target, None
    if isinstance(resolution, bool) or not (resolution is None or (isinstance(resolution, int) and resolution > 0)):
        raise ValueError(f"resolution must be a positive integer, got {resolution!r}")
    paths = None if trajectories is None else _plane("trajectories", trajectories, 3)
    left, right, bottom, top = bounds = _bounds(bounds, samples, paths)
    figure, ax = canvas.new_axes(ax, 560, 560)
    shades = _shades(source, bounds, resolution)
    # The darkest shade is a middle grey, so that lines stay the strongest thing on it.
    ax.imshow(
        shades,
        origin="lower",
        extent=bounds,
        cmap="Greys",
        vmin=0,
        vmax=1.6 * max(float(shades.max()), np.finfo(float).tiny),
        interpolation="nearest" if samples is not None else "bilinear",
        aspect="equal",
    )
    if paths is not None:
        _draw_paths(ax, paths, colour)
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel=labels[0], ylabel=labels[1])
    ax.grid(visible=False)
    canvas.set_title(ax, title)
    return figure


def _draw_paths(ax: Axes, paths: np.ndarray, colour: str) -> None:
    from matplotlib.collections import LineCollection

    count = paths.shape[1]
    strength = float(np.clip(12 / math.sqrt(count) / 2, 0.25, 0.9))
    ax.add_collection(LineCollection(list(paths.transpose(1, 0, 2)), colors=colour, linewidths=1.1, alpha=strength))
    size = float(np.clip(900 / count, 6, 22))
    ax.scatter(*paths[0].T, s=size, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=3, label="start")
    ax.scatter(*paths[-1].T, s=size, facecolors=colour, edgecolors="white", linewidths=0.5, zorder=4, label="end")
    scale = math.sqrt(22 / size)  # the dots of the legend stay legible where those of the figure are small
    ax.legend(loc="upper right", fontsize=canvas.SMALL, framealpha=0.9, edgecolor="none", markerscale=scale)


def _shades(source: np.ndarray | LogDensity, bounds: Bounds, resolution: int | None) -> np.ndarray:
    """The density in each cell, rows from bottom to top."""
    if not isinstance(source, np.ndarray):
        return _evaluate(source, bounds, resolution or 200)
    left, right, bottom, top = bounds
    edges = [[left, right], [bottom, top]]
    return np.histogram2d(*source.T, bins=resolution or 60, range=edges, density=True)[0].T


def _evaluate(log_density: LogDensity, bounds: Bounds, resolution: int) -> np.ndarray:
    left, right, bottom, top = bounds
    centres = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    x, y = left + (right - left) * centres, bottom + (top - bottom) * centres
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).to(torch.get_default_dtype())
    with torch.no_grad():
        values = log_density(points)
    if not isinstance(values, Tensor) or values.shape != (len(points),):
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"the log-density must map points ({len(points)}, 2) to ({len(points)},), got {got}")
    if bool((values.isnan() | (values == math.inf)).any()):
        raise ValueError("the log-density is NaN or infinite somewhere between the bounds")
    return values.double().exp().cpu().numpy().reshape(resolution, resolution)


def _plane(name: str, x: object, dimensions: int) -> np.ndarray:
    shape = "(n, 2)" if dimensions == 2 else "(N + 1, B, 2)"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        or_else = " or a log-density function" if name == "target" else ""
        raise TypeError(f"{name} must be a floating-point tensor {shape}{or_else}, got {got}")
    if x.ndim != dimensions or x.shape[-1] != 2 or x.numel() == 0:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds values that are not finite (NaN or infinity)")
    return x.detach().double().cpu().numpy()


def _bounds(bounds: Bounds | None, *points: np.ndarray | None) -> Bounds:
    if bounds is None:
        known = [x.reshape(-1, 2) for x in points if x is not None]
        if not known:
            raise ValueError("a log-density without trajectories needs bounds=(left, right, bottom, top)")
        low, high = np.concatenate(known).min(0), np.concatenate(known).max(0)
        margin = 0.05 * max(*(high - low), 1e-6)
        return (
            float(low[0] - margin),
            float(high[0] + margin),
            float(low[1] - margin),
            float(high[1] + margin),
        )
    if len(bounds) != 4 or not all(math.isfinite(b) for b in bounds):
        raise ValueError(f"bounds must be four finite numbers: left, right, bottom, top; got {bounds}")
    left, right, bottom, top = bounds
    if not (left < right and bottom < top):
        raise ValueError(f"bounds must rise from left to right and from bottom to top, got {bounds}")
    return left, right, bottom, top
