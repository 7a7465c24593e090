"""Figures: samples, densities with trajectories, curvature, quality against cost, loss.

Every function returns a matplotlib ``Figure`` of its own, made without pyplot: notebooks show it, servers can make many
at a time, and nothing needs closing. A model has one colour everywhere (:data:`palette.COLOURS`).

matplotlib is an extra: ``pip install genmatch[plot]``.
"""

from __future__ import annotations

from . import palette
from .canvas import to_data_uri, to_png
from .densities import density
from .histograms import curvature_histogram
from .images import grid
from .losses import loss_curve
from .quality import quality_curves

__all__ = [
    "curvature_histogram",
    "density",
    "grid",
    "loss_curve",
    "palette",
    "quality_curves",
    "to_data_uri",
    "to_png",
]
