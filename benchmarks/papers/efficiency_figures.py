"""Figures of the study of efficiency: measured points, exact fields as lines, the paper's numbers dashed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from genmatch.viz import canvas
from genmatch.viz.palette import COLOURS, INK, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from ..robustness.figures import Results, chosen, draw, legend, panels
from .efficiency_samples import unpack

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

STYLES = {
    "flow, Euler": (COLOURS["flow"], MARKERS[0]),
    "diffusion, DDIM": (OTHERS[0], MARKERS[1]),
    "diffusion, ancestral": (COLOURS["diffusion"], MARKERS[2]),
    "flow, RK4": (OTHERS[1], MARKERS[3]),
    "flow, Exponential(2)": (OTHERS[3], MARKERS[1]),
    "diffusion, DPM-Solver++": (COLOURS["hybrid"], MARKERS[0]),
}
LAWS = {"flow": "flow, Euler", "DDIM": "diffusion, DDIM", "ancestral": "diffusion, ancestral"}
LEVEL = {"color": MUTED, "linewidth": 1, "linestyle": (0, (4, 3))}
STEPS = "steps N"


def curvature(results: Results) -> Figure:
    """Medians and the middle 90%, over the number of steps."""
    figure, axes = panels(["Curvature: median and middle 90%", "The equations without noise, closer"], height=360)
    paper = results["paper"]
    for ax in axes:
        for row in results["rows"]:
            if row["seed"] == 0 and row["arm"] in LAWS.values():
                colour, marker = STYLES[row["arm"]]
                middle = row["curvature"]
                point = {"n": row["steps"], "mean": middle["median"], "low": middle["low"], "high": middle["high"]}
                draw(ax, [point], "n", colour, marker=marker)
        for process, arm in LAWS.items():
            for law, style in (("Gaussian", "-"), ("training images", ":")):
                rows = chosen(results["exact"]["rows"], law=law, process=process)
                ax.plot([r["steps"] for r in rows], [r["median"] for r in rows], style, color=STYLES[arm][0], lw=1.5)
        for name in ("flow", "diffusion"):
            ax.axhline(paper[f"{name} curvature"], **LEVEL)
        ax.set(xscale="log", xlabel=STEPS, ylabel="length / displacement")
        label_logarithmic(ax.xaxis)
    for arm in LAWS.values():
        axes[0].plot([], [], STYLES[arm][1], color=STYLES[arm][0], label=arm)
    axes[0].plot([], [], "-", color=INK, label="exact: a Gaussian")
    axes[0].plot([], [], ":", color=INK, label="exact: the training images")
    axes[0].plot([], [], label="the paper's 1.02 and 3.45", **LEVEL)
    axes[0].set(yscale="log")
    axes[0].set_ylim(0.9, 20 * axes[0].get_ylim()[1])  # room for the legend
    label_logarithmic(axes[0].yaxis)
    axes[1].set(ylim=(0.99, 1.27))
    legend(axes[0], loc="upper left")
    return figure


def frechet(results: Results) -> Figure:
    """Distances from the data, over steps and over evaluations."""
    rows = results["summary"]
    few = sorted({row["steps"] for row in rows})[:3]
    figure, axes = panels(["One training", "Mean and range of three trainings"], height=360)
    for arm, (colour, marker) in STYLES.items():
        own = [row for row in rows if row["arm"] == arm]
        if arm in LAWS.values():
            firsts = [r for r in results["rows"] if (r["arm"], r["seed"]) == (arm, 0)]
            points = sorted((row["steps"], row["frechet"]) for row in firsts)
            axes[0].plot(*zip(*points, strict=True), f"-{marker}", color=colour, label=arm, ms=5, lw=1.4)
        small = [{"n": r["evaluations"], **r["frechet"]} for r in own if r["repeats"] > 1]
        small = [{**r, "low": r["least"], "high": r["greatest"]} for r in small]
        draw(axes[1], small, "n", colour, arm, marker=marker, linestyle="-")
    for ax in axes:
        ax.axhline(results["floor"], **LEVEL)
        ax.set(xscale="log", yscale="log", ylabel=f"Fréchet distance, {results['images']} images")
        ax.set_ylim(None, 2.5 * ax.get_ylim()[1])  # room for the legend
        label_logarithmic(ax.xaxis)
        label_logarithmic(ax.yaxis)
    axes[0].set_xlabel(STEPS)
    axes[1].set(xlabel="evaluations of the network", xlim=(0.9 * few[0], None))
    legend(axes[0], loc="upper right")
    legend(axes[1], loc="upper right")
    return figure


def images(results: Results) -> Figure:
    """The same noise by each sampler and number of steps."""
    pictures = results["pictures"]
    swept = [arm for arm in LAWS.values() if arm in pictures]
    counts = sorted({int(n) for arm in swept for n in pictures[arm]} & {5, 10, 12, 15, 20, 50, 100, 1000})
    figure = canvas.new_figure(250 * len(swept), 36 * len(counts) + 40)
    widest = max(unpack(picture).shape[1] for own in pictures.values() for picture in own.values())
    for i, n in enumerate(counts):
        for j, arm in enumerate(swept):
            ax = figure.add_subplot(len(counts), len(swept), i * len(swept) + j + 1)
            if str(n) in pictures[arm]:
                ax.imshow(unpack(pictures[arm][str(n)]), cmap="gray", vmin=0, vmax=1)
                ax.set_xlim(-0.5, widest - 0.5)  # fewer images keep their size
            ax.set_axis_off()
            if i == 0:
                ax.set_title(arm, fontsize=10.5, fontweight="bold", color=INK)
            if j == 0:
                ax.text(-0.03, 0.5, f"N = {n}", transform=ax.transAxes, ha="right", va="center", color=INK, fontsize=9)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "efficiency_curvature": curvature,
    "efficiency_frechet": frechet,
    "efficiency_images": images,
}
