"""The figure class. The only module that needs matplotlib to be imported."""

from __future__ import annotations

from matplotlib.figure import Figure

from .canvas import to_png

__all__ = ["NotebookFigure"]


class NotebookFigure(Figure):
    """A figure that notebooks show when it is the value of a cell, though no pyplot knows it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        # Drawn at two pixels to one and shown at one to one.
        width, height = self.get_size_inches() * self.dpi
        return to_png(self), {"width": round(width), "height": round(height)}
