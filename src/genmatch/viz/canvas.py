"""Figures and axes: made without pyplot, so that nothing global is touched, and shown by notebooks all the same.

One inch is 100 pixels on the screen. A figure is 700 pixels wide unless its content asks for less.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from .palette import GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "DPI",
    "figure_of",
    "new_axes",
    "new_figure",
    "require_matplotlib",
    "set_title",
    "style",
    "text_width",
    "to_data_uri",
    "to_png",
]

DPI = 100
SMALL, NORMAL, LARGE = 9.0, 10.0, 12.0  # type sizes in points: ticks and notes, labels, titles


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "matplotlib":
            raise
        raise ImportError("genmatch.viz draws with matplotlib: pip install genmatch[plot]") from error


def new_figure(width: float, height: float, *, constrained: bool = True) -> Figure:
    """An empty figure of so many pixels.

    Raises
    ------
    ImportError
        If matplotlib is missing.
    """
    require_matplotlib()
    from .figure import NotebookFigure

    figure = NotebookFigure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained" if constrained else "none")
    return figure


def new_axes(ax: Axes | None, width: float = 700, height: float = 420) -> tuple[Figure, Axes]:
    """Styled axes and their figure: the given axes, or those of a new figure.

    Raises
    ------
    TypeError
        If ``ax`` is given and is not matplotlib axes.
    """
    if ax is None:
        figure = new_figure(width, height)
        ax = figure.add_subplot()
    else:
        figure = figure_of(ax)
    style(ax)
    return figure, ax


def figure_of(ax: Axes) -> Figure:
    """The figure that axes belong to, also through sub-figures."""
    require_matplotlib()
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be matplotlib axes, got {type(ax).__name__}")
    return ax.figure.figure


def style(ax: Axes) -> None:
    """Two quiet spines, a faint horizontal grid behind the data, type that can be read at 700 pixels."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(MUTED)
        spine.set_linewidth(0.8)
    ax.tick_params(which="both", labelsize=SMALL, labelcolor=INK, color=MUTED, length=3, width=0.8)
    ax.grid(visible=True, which="major", axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.xaxis.label.set(fontsize=NORMAL, color=INK)
    ax.yaxis.label.set(fontsize=NORMAL, color=INK)


def set_title(ax: Axes, text: str | None) -> None:
    """A title at the left, where reading begins."""
    if text:
        ax.set_title(text, loc="left", fontsize=LARGE, fontweight="bold", color=INK, pad=10)


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width in pixels of a line of text, before there is anything to draw it on."""
    require_matplotlib()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    outline = TextPath((0, 0), text, size=size, prop=FontProperties(weight="bold" if bold else "normal"))
    return float(outline.get_extents().x1) * DPI / 72


def to_png(figure: Figure, *, dpi: float = 2 * DPI) -> bytes:
    """A figure as a PNG file, by default with two pixels to one on the screen.

    The same figure gives the same bytes: no date and no version is written into the file.
    """
    if not (isinstance(dpi, int | float) and dpi > 0):
        raise ValueError(f"dpi must be above 0, got {dpi}")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def to_data_uri(figure: Figure, *, dpi: float = 2 * DPI) -> str:
    """A figure as the ``src`` of an HTML image, so that a report is one file: ``<img src="..." width="700">``."""
    return "data:image/png;base64," + base64.b64encode(to_png(figure, dpi=dpi)).decode("ascii")
