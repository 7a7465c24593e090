"""Figures of the worked examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from genmatch.viz.palette import COLOURS, INK, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from ..robustness.figures import Results, chosen, draw, legend, panels
from .efficiency_figures import LEVEL, STYLES
from .examples_line import CASES
from .examples_world import Mixture, normal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

SHOWN = {
    "Diffusion from the exact p₀": ("constant rate, with noise", "p_0"),
    "Diffusion from N(0, 1)": ("constant rate, with noise", "N(0, 1)"),
    "Linear path from N(0, 1)": ("linear path, 100 steps", "N(0, 1)"),
}
WINDOW = np.linspace(-4.5, 4.5, 301)


def line(results: Results) -> Figure:
    """Densities and particles on the way, with exact fields; what is made of them at the data."""
    found = results["line"]
    law = Mixture(**{name: tuple(values) for name, values in found["law"].items()})
    figure, axes = panels([*SHOWN, "", "", ""], across=3, height=300)
    for above, below, (case, start) in zip(axes[:3], axes[3:], SHOWN.values(), strict=True):
        name = f"{case}, {start}"
        _density(above, law, case)
        paths = np.array(found["particles"][f"{name}, exact"])
        times = np.linspace(0, 1, paths.shape[1])
        above.plot(times, paths.T, color="white", linewidth=0.6, alpha=0.8)
        edges = np.array(found["histograms"]["edges"])
        middles = 0.5 * (edges[1:] + edges[:-1])
        below.plot(WINDOW, law.density(WINDOW), color=INK, linewidth=1.4, label="the data")
        if start != "p_0" and case.startswith("constant"):
            begin = law.noised(*_ends(case, [0.0])[0])
            wrong = law.carried(WINDOW, begin, normal())
            below.plot(WINDOW, wrong, ":", color=MUTED, linewidth=1.4, label="without noise, closed form")
        for field, colour in (("exact", COLOURS["flow"]), ("trained", COLOURS["diffusion"])):
            heights = found["histograms"]["densities"][f"{name}, {field}"]
            below.step(middles, heights, where="mid", color=colour, linewidth=1.1, label=f"{field} field")
        above.set(xlabel="time t", ylabel="x", ylim=(WINDOW[0], WINDOW[-1]))
        below.set(xlabel="x at t = 1", ylabel="density", ylim=(0, 0.75))
        legend(below, loc="upper left")
    return figure


def _ends(case: str, times: list[float]) -> list[tuple[float, float]]:
    alpha, sigma = CASES[case].schedule(torch.tensor(times, dtype=torch.float64))
    return list(zip(alpha.tolist(), sigma.tolist(), strict=True))


def _density(ax: Axes, law: Mixture, case: str) -> None:
    """Each time in units of its own greatest density: the modes would else outshine the start."""
    times = np.linspace(0, 1, 121)
    columns = [law.noised(*end).density(WINDOW) for end in _ends(case, times.tolist())]
    ax.pcolormesh(times, WINDOW, np.array([c / c.max() for c in columns]).T, cmap="viridis", shading="nearest")
    ax.grid(False)


def costs(results: Results) -> Figure:
    """Quality over training, and over the number of steps."""
    found = results["costs"]
    figure, axes = panels(["Longer trainings, 50 steps of sampling", "More steps, the longest training"], height=360)
    for kind in ("flow", "diffusion"):
        for steps in found["lengths"]:
            values = [row["frechet"] for row in chosen(found["learning"], model=kind, steps=steps)]
            point = {"n": steps, "mean": sum(values) / len(values), "low": min(values), "high": max(values)}
            draw(axes[0], [point], "n", COLOURS[kind], kind if steps == found["lengths"][0] else "")
    colours = {**{name: style[0] for name, style in STYLES.items()}, "diffusion, Exponential(2)": OTHERS[2]}
    colours["flow, Exponential(2)"] = OTHERS[1]
    for arm in dict.fromkeys(row["arm"] for row in found["steps"]):
        rows = [{**r, "low": r["least"], "high": r["greatest"]} for r in chosen(found["steps"], arm=arm)]
        draw(axes[1], rows, "steps", colours[arm], arm, linestyle="-")
    for ax, label in zip(axes, ("training steps", "steps of sampling"), strict=True):
        ax.axhline(found["floor"], **LEVEL)
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel=f"Fréchet distance, {found['images']} images")
        ax.set_ylim(None, 4 * ax.get_ylim()[1])  # room for the legend
        label_logarithmic(ax.xaxis)
        label_logarithmic(ax.yaxis)
        legend(ax, loc="upper right")
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {"examples_line": line, "examples_costs": costs}
