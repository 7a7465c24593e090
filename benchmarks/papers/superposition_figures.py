"""The figures of the study of superpositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from genmatch.viz.palette import COLOURS, DASHES, INK, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from ..robustness.figures import OF_GAMMA, chosen, draw, legend, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

Results = Mapping[str, Any]
DISTANCE = "Fréchet distance, classifier"
MANY = (COLOURS["flow"], COLOURS["diffusion"], COLOURS["hybrid"], *OTHERS)


def floor(ax: Axes, value: float) -> None:
    """What held-out data score."""
    ax.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def equivalence(results: Results) -> Figure:
    """Errors of densities by the grid, distances of samples by the steps."""
    part = results["equivalence"]
    figure, (left, right) = panels(["Densities by exact fields", "Samples by the exact field of digits"], height=360)
    for i, row in enumerate(part["densities"]):
        style = {"color": MANY[i % len(MANY)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4.5, "linewidth": 1.3}
        left.plot(row["cells"], row["errors"], DASHES[i // len(MANY)], label=row["process"], **style)
        points = chosen(part["marginals"]["points"], process=row["process"])
        if points:
            steps = [p["steps"] for p in points]
            right.plot(steps, [p["end"] for p in points], DASHES[i // len(MANY)], **style)
    floor(right, part["marginals"]["floor"]["end"])
    left.set(xscale="log", yscale="log", xlabel="cells of the grid", ylabel="∫|q − p| at the data")
    right.set(xscale="log", xlabel="steps", ylabel="sliced Wasserstein distance", ylim=(0, None))
    for axis in (left.xaxis, right.xaxis):
        label_logarithmic(axis)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8, labelcolor=INK)
    return figure


def hybrids(results: Results) -> Figure:
    """Distance against the share of the diffusion, a panel for each number of steps."""
    part = results["hybrids"]
    cases = [(name, n) for name in ("digits", "mnist") for n in sorted({p["steps"] for p in part[name]["points"]})]
    titles = [f"{'MNIST' if name == 'mnist' else name}, {n} steps" for name, n in cases]
    figure, axes = panels(titles, across=min(3, len(cases)), height=300)
    ways = list(dict.fromkeys(p["way"] for p in part["digits"]["points"]))
    names = {
        "velocity": "one velocity network",
        "noise": "one noise network",
        "two": "two networks, Euler in log-SNR",
        "velocity, Euler": "velocity network, Euler in log-SNR",
        "velocity, uniform": "velocity network, Euler in t",
    }
    for ax, (name, n) in zip(axes, cases, strict=True):
        for i, way in enumerate(ways):
            rows = [p for p in chosen(part[name]["points"], steps=n, way=way) if p["mean"] is not None]
            rows = [{**p, "place": p["ratio"] + 0.012 * (i - 2)} for p in rows]
            draw(ax, rows, "place", MANY[i], names[way], marker=MARKERS[i], linestyle="-")
        floor(ax, part[name]["floor"])
        ax.set(xlabel="share r of the diffusion", ylabel=DISTANCE, yscale="log")
        label_logarithmic(ax.yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def noise(results: Results) -> Figure:
    """The law under noise by the state with and without its drift; quality over constant noise."""
    part = results["noise"]
    cases = [(name, n) for name in ("digits", "mnist") for n in sorted({p["steps"] for p in part[name]["points"]})]
    titles = ["Mean square of a pixel, halfway", *(f"{'MNIST' if d == 'mnist' else d}, {n} steps" for d, n in cases)]
    figure, (first, *axes) = panels(titles, across=2, height=340)
    kinds = list(dict.fromkeys(p["noise"] for p in part["laws"]["points"]))
    steps = sorted({p["steps"] for p in part["laws"]["points"]})
    for i, n in enumerate(steps):
        rows = chosen(part["laws"]["points"], steps=n)
        values = [row["halfway, square"] for row in rows]
        first.plot(range(len(kinds)), values, MARKERS[i], color=MANY[i], label=f"{n} steps", markersize=5)
    floor(first, 1.0)
    first.set_xticks(range(len(kinds)), kinds, fontsize=8, rotation=35, ha="right")
    first.set_ylabel("over the exact one")
    legend(first, loc="upper left")
    for ax, (name, n) in zip(axes, cases, strict=True):
        rows = chosen(part[name]["points"], steps=n)
        draw(ax, [{**p, "place": i} for i, p in enumerate(rows)], "place", COLOURS["diffusion"])
        ax.set_xticks(range(len(rows)), [p["noise"] for p in rows])
        ax.set(ylabel=DISTANCE, ylim=(0, None))
    return figure


def errors(results: Results) -> Figure:
    """Distance over that of the flow of the same spoilt network, for each error."""
    part = results["errors"]
    cases = [(d, r) for d in ("digits", "mnist") for r in ("velocity", "noise")]
    titles = [f"{'MNIST' if d == 'mnist' else d}: {r} network" for d, r in cases]
    figure, axes = panels(titles, across=2, height=330)
    for ax, (name, reading) in zip(axes, cases, strict=True):
        rows = chosen(part[name]["points"], reading=reading)
        kinds = list(dict.fromkeys(p["error"] for p in rows))
        gammas = [g for g in sorted({p["gamma"] for p in rows}) if g]
        for i, gamma in enumerate(gammas):
            beside = 0.12 * (i - (len(gammas) - 1) / 2)
            at = [{**p["ratio"], "place": kinds.index(p["error"]) + beside} for p in chosen(rows, gamma=gamma)]
            at = [p for p in at if p["mean"] is not None]
            draw(ax, at, "place", OF_GAMMA[gamma], f"γ = {gamma:g}", marker=MARKERS[i])
        ax.axhline(1, color=OF_GAMMA[0.0], linewidth=1.4)
        ax.set_xticks(range(len(kinds)), kinds, fontsize=8.5, rotation=35, ha="right")
        ax.set(ylabel="distance / the flow's", yscale="log")
        label_logarithmic(ax.yaxis)
    legend(axes[0], loc="upper left", ncols=2)
    return figure


def jumps(results: Results) -> Figure:
    """Flow, jump and their sums against the network's calls, and the values of the seeds."""
    part = results["jumps"]
    arms = ("flow", "jump", "jump + flow, joint", "jump + flow, apart", "diffusion")
    more = ("flow, order 2", "jump, order 2", "jump + flow, order 2")
    figure, axes = panels(["Equal steps", "Equal steps in −log(1 − t)", "Order 2, equal steps"], height=340)
    colours = dict(zip(arms, (MANY[0], MANY[3], MANY[2], MANY[4], MANY[1]), strict=True))
    for ax, grid, names in zip(axes, ("equal", "hazard", "equal"), (arms, arms, more), strict=True):
        for i, arm in enumerate(names):
            rows = [p for p in chosen(part["points"], grid=grid, arm=arm) if p["mean"] is not None]
            colour = colours[arms[i]]
            rows = [{**p, "place": p["calls"] * (1 + 0.02 * (i - 2))} for p in rows]
            draw(ax, rows, "place", colour, arm, marker=MARKERS[i], linestyle="-")
        floor(ax, part["floor"])
        ax.set(xscale="log", yscale="log", xlabel="network calls for an image", ylabel=DISTANCE)
        label_logarithmic(ax.xaxis)
        label_logarithmic(ax.yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "superposition-equivalence": equivalence,
    "superposition-hybrids": hybrids,
    "superposition-noise": noise,
    "superposition-errors": errors,
    "superposition-jumps": jumps,
}
