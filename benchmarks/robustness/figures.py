"""Figures of the results: closed forms as lines, measurements as points with 95% intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genmatch import viz
from genmatch.viz import canvas
from genmatch.viz.palette import COLOURS, DASHES, INK, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from .theory import LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

Results = Mapping[str, Any]
OF_GAMMA = {0.0: COLOURS["flow"], 0.25: OTHERS[1], 0.5: COLOURS["hybrid"], 1.0: COLOURS["diffusion"], 2.0: OTHERS[0]}
OF_LEVEL = {"network": COLOURS["diffusion"], "drift": COLOURS["flow"]}
NAMES = {"network": "error of the network", "drift": "error of the drift"}
NOISE = "noise level γ"


def panels(titles: Sequence[str], *, across: int | None = None, height: float = 340) -> tuple[Figure, list[Axes]]:
    """A figure with one styled panel for each title."""
    across = across or len(titles)
    down = -(-len(titles) // across)
    figure = canvas.new_figure(380 * across if across > 1 else 560, height * down)
    axes = [figure.add_subplot(down, across, i + 1) for i in range(len(titles))]
    for ax, title in zip(axes, titles, strict=True):
        canvas.style(ax)
        ax.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=8)
    return figure, axes


def draw(ax: Axes, points: Iterable[Results], x: str, colour: str, label: str = "", **style: Any) -> None:
    """Measured means with their intervals."""
    rows = sorted(points, key=lambda p: p[x])
    if not rows:
        return
    style = {"marker": "o", "linestyle": "none", **style}
    ax.errorbar(
        [p[x] for p in rows],
        [p["mean"] for p in rows],
        yerr=[[p["mean"] - p["low"] for p in rows], [p["high"] - p["mean"] for p in rows]],
        color=colour,
        label=label or None,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.4,
        elinewidth=1.1,
        capsize=2.5,
        **style,
    )


def legend(ax: Axes, **options: Any) -> None:
    """Without a frame."""
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK, handlelength=1.8, **options)


def chosen(rows: Iterable[Results], **keys: Any) -> list[Results]:
    """Rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in keys.items())]


def density(results: Results) -> Figure:
    """E1."""
    figure, (left, right) = panels(["Size at the end, by wave number", "Size on the way, k = 2"])
    black = OTHERS[3]
    for line in results["lines"]:
        ax, colour = (left if line["over"] == "k" else right), OF_GAMMA.get(line.get("gamma", -1.0), black)
        ax.plot(line["x"], line["y"], color=colour, linewidth=1.6)
    for process in dict.fromkeys(p["process"] for p in results["points"]):
        rows = chosen(results["points"], process=process)
        gamma = rows[0].get("gamma")
        name = "heat equation, undone" if gamma is None else "flow (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"
        draw(left, rows, "k", black if gamma is None else OF_GAMMA[gamma], name)
    for trace in results["traces"]:
        rows = [
            {"t": t, **dict.fromkeys(("mean", "low", "high"), s)}
            for t, s in zip(trace["t"], trace["share"], strict=True)
        ]
        draw(right, rows, "t", OF_GAMMA[trace["gamma"]])
    left.set(yscale="log", ylim=(1e-6, 1e6), xlabel="wave number k, per standard deviation", ylabel="size, start = 1")
    right.set(yscale="log", ylim=(1e-3, 2), xlabel="time t", ylabel="size, start = 1")
    legend(left, loc="upper left")
    return figure


def drift(results: Results) -> Figure:
    """E2, over the noise level."""
    labels = {
        ("gaussian", "constant"): ("Gaussian data: constant", "$dW_2/dε$"),
        ("gaussian", "field"): ("Gaussian data: smooth random field", "$dW_2/dε$, flow = 1"),
        ("gaussian", "white"): ("Gaussian data: white in time", "added variance / intensity"),
        ("two modes", "constant"): ("Two modes: constant", "$dW_1/dε$"),
        ("two modes", "field"): ("Two modes: smooth random field", "$dW_1/dε$, flow = 1"),
    }
    titles = [*(title for title, _ in labels.values()), "Field in the network: its length"]
    figure, axes = panels(titles, across=3, height=310)
    for ax, (place, kind) in zip(axes, labels, strict=False):
        for level in LEVELS:
            for line in chosen(results["lines"], kind=kind, level=level, over="gamma") if place == "gaussian" else ():
                ax.plot(line["x"], line["y"], color=OF_LEVEL[level], linewidth=1.6)
            rows = chosen(results["points"], kind=kind, level=level, world=place)
            joined = "none" if place == "gaussian" else ":"
            style = {"marker": MARKERS[LEVELS.index(level)], "linestyle": joined}
            draw(ax, rows, "gamma", OF_LEVEL[level], NAMES[level], **style)
        ax.set(xlabel=NOISE, ylabel=labels[place, kind][1])
        ax.set_ylim(0, 1.15 * ax.get_ylim()[1])
    for line in chosen(results["lines"], kind="length"):
        axes[5].plot(line["x"], line["y"], color=OF_GAMMA[line["gamma"]], linewidth=1.6, label=f"γ = {line['gamma']:g}")
    axes[5].axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes[5].set(xscale="log", xlabel="correlation length of the error", ylabel="$dW_2/dε$, flow = 1", ylim=(0.7, 1.7))
    label_logarithmic(axes[5].xaxis)
    legend(axes[0], loc="upper left")
    legend(axes[5], loc="upper left", ncols=2)
    return figure


def pulse(results: Results) -> Figure:
    """E2, over the time of a pulse and the width of the data."""
    titles = ["A pulse in the network", "A pulse in the drift", "Constant error: diffusion over flow"]
    figure, axes = panels(titles, height=320)
    for ax, level in zip(axes, LEVELS, strict=False):
        for gamma in (0.0, 1.0, 2.0):
            for line in chosen(results["lines"], kind="pulse", level=level, gamma=gamma):
                ax.plot(line["x"], line["y"], color=OF_GAMMA[gamma], linewidth=1.6)
            rows = chosen(results["points"], kind="pulse", level=level, gamma=gamma)
            draw(ax, rows, "time", OF_GAMMA[gamma], "flow (γ = 0)" if gamma == 0 else f"γ = {gamma:g}")
        ax.set(xlabel="time of the pulse", ylabel="shift of the mean / impulse", ylim=(0, 4.2))
    legend(axes[0], loc="upper left")
    for line in chosen(results["lines"], kind="width"):
        style = "-" if line["level"] == "network" else "--"
        axes[2].plot(line["x"], line["y"], style, color=OF_GAMMA[line["gamma"]], linewidth=1.6)
    axes[2].axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes[2].plot([], [], "-", color=INK, label=NAMES["network"])
    axes[2].plot([], [], "--", color=INK, label=NAMES["drift"])
    for gamma in (0.5, 1.0, 2.0):
        axes[2].plot([], [], color=OF_GAMMA[gamma], label=f"γ = {gamma:g}")
    axes[2].set(xscale="log", xlabel="standard deviation of the data", ylabel="bias / bias of the flow", ylim=(0, 2.6))
    label_logarithmic(axes[2].xaxis)
    legend(axes[2], loc="upper left", ncols=2)
    return figure


def network(results: Results) -> Figure:
    """E3."""
    margin = results["settings"]["margin"]
    figure, (left, right) = panels([f"On [{margin:g}, {1 - margin:g}]", "By the margin left out at both ends"])
    colours = dict(zip(("velocity", "data", "noise"), (COLOURS["flow"], COLOURS["hybrid"], OTHERS[0]), strict=True))
    for reading, colour in colours.items():
        for line in chosen(results["lines"], reading=reading):
            ax = left if line["over"] == "gamma" else right
            # For the flow data and noise are one line.
            wide = 3.4 if reading == "data" and line.get("gamma") == 0 else 1.5
            ax.plot(
                line["x"],
                line["y"],
                DASHES[int(line.get("gamma", 0) == 1)],
                color=colour,
                linewidth=wide,
            )
        rows = chosen(results["points"], reading=reading)
        draw(left, chosen(rows, over="gamma"), "gamma", colour, reading)
        for gamma, marker in ((0.0, "o"), (1.0, "s")):
            draw(right, chosen(rows, over="margin", gamma=gamma), "margin", colour, marker=marker)
    right.plot([], [], "o-", color=INK, markersize=5, label="flow (γ = 0)")
    right.plot([], [], "s--", color=INK, markersize=5, label="γ = 1")
    left.set(xlabel=NOISE, ylabel="bias / error of the network", ylim=(0, None))
    right.set(xscale="log", xlabel="margin", ylabel="bias / error of the network", ylim=(0, None))
    label_logarithmic(right.xaxis)
    right.invert_xaxis()
    legend(left, loc="upper left")
    legend(right, loc="upper left")
    return figure


def initial(results: Results) -> Figure:
    """E4."""
    figure, (ax,) = panels(["What is left at the data of a wrong start"])
    for i, line in enumerate(results["lines"]):
        colour = (COLOURS["hybrid"], OTHERS[0], COLOURS["diffusion"])[i]
        # From t = 0 the memoryless noise forgets all at any level above 0: a line along the axis, and a point at 0.
        rest = slice(1, None) if "from t = 0" in line["family"] and "memoryless" in line["family"] else slice(None)
        rest = slice(None) if line["family"].endswith("0.1") else rest
        ax.plot(line["x"][rest], line["y"][rest], color=colour, linewidth=1.6)
        rows = [p for p in results["points"] if p["family"] == line["family"]]
        draw(ax, rows, "gamma", colour, line["family"], marker=MARKERS[i])
    ax.set(xlabel=NOISE + " (0: the flow)", ylabel="KL(q₁ ‖ p₁), nats", ylim=(-0.03, None))
    legend(ax, loc="upper right")
    return figure


def quantised(results: Results) -> Figure:
    """E5: distances from the data."""
    figure, axes = _by_bits(results, lambda p: p)
    for ax, (task, _) in zip(axes, _networks(results), strict=True):
        ax.axhline(results["floors"][task], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_ylabel(results["metrics"][task])
    legend(axes[0], loc="upper left")
    return figure


def quantised_ratio(results: Results) -> Figure:
    """E5: distances in units of the flow's of the same network."""
    figure, axes = _by_bits(results, lambda p: {**p, **p["ratio"]})
    for ax in axes:
        ax.axhline(1, color=OF_GAMMA[0.0], linewidth=1.4)
        ax.set(ylabel="distance / the flow's", ylim=(0.09, 3.2))
    legend(axes[1], loc="lower left")
    return figure


def _networks(results: Results) -> list[tuple[str, str]]:
    return [(task, reading) for task in results["floors"] for reading in ("velocity", "noise")]


def _by_bits(results: Results, value: Callable[[Results], Results]) -> tuple[Figure, list[Axes]]:
    """A panel for each task and kind of network, values against bits, for each noise that is not the unit."""
    figure, axes = panels([f"{t}: {r} network" for t, r in _networks(results)], across=2, height=320)
    bits = sorted({p["bits"] for p in results["points"] if p["bits"]}, reverse=True)
    places = {None: 0, **{b: i + 1 for i, b in enumerate(bits)}}
    for ax, (task, reading) in zip(axes, _networks(results), strict=True):
        gammas = sorted({p["gamma"] for p in results["points"]})
        for i, gamma in enumerate(gammas):
            rows = [value(p) for p in chosen(results["points"], task=task, reading=reading, gamma=gamma)]
            if all(row["mean"] == row["low"] == 1.0 for row in rows):
                continue
            beside = 0.09 * (i - (len(gammas) - 1) / 2)
            rows = [{**p, "place": places[p["bits"]] + beside} for p in rows]
            name = "flow (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"
            draw(ax, rows, "place", OF_GAMMA[gamma], name, marker=MARKERS[i], linestyle="-", alpha=0.9)
        ax.set(yscale="log", xlabel="bits of a weight")
        ax.set_xticks(list(places.values()), ["32", *map(str, bits)])
        label_logarithmic(ax.yaxis)
    return figure, axes


def hybrids(results: Results) -> Figure:
    """Hybrids: quality against the ratio."""
    tasks, counts = list(results["floors"]), sorted({p["steps"] for p in results["points"]})
    figure, axes = panels([f"{t}, {n} steps" for t in tasks for n in counts], across=2, height=320)
    ways = list(dict.fromkeys(p["way"] for p in results["points"]))
    colours = (COLOURS["flow"], OTHERS[1], COLOURS["diffusion"], COLOURS["hybrid"])
    order = sorted(ways, key=lambda w: (w != "one network", "Euler" not in w, w))
    for ax, (task, count) in zip(axes, ((t, n) for t in tasks for n in counts), strict=True):
        for i, way in enumerate(order):
            rows = chosen(results["points"], task=task, steps=count, way=way)
            rows = [{**p, "place": p["ratio"] + 0.012 * (i - 1)} for p in rows]
            draw(ax, rows, "place", colours[i], way, marker=MARKERS[i], linestyle="-")
        ax.axhline(results["floors"][task], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set(xlabel="share r of the diffusion", ylabel=results["metrics"][task], ylim=(0, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def state_noise(results: Results) -> Figure:
    """Noise that depends on the state, against steps' and noise's number."""
    tasks, counts = list(results["floors"]), sorted({p["steps"] for p in results["points"]})
    figure, axes = panels([f"{t}, {n} steps" for n in counts for t in tasks], across=len(tasks), height=310)
    colours = {"fixed": COLOURS["diffusion"], "bent": OTHERS[0], "straight": COLOURS["hybrid"]}
    names = {"fixed": "the same everywhere", "bent": "where trajectories bend", "straight": "where they are straight"}
    for ax, (task, count) in zip(axes, ((t, n) for n in counts for t in tasks), strict=True):
        rows = chosen(results["points"], task=task, steps=count)
        draw(ax, chosen(rows, noise="none"), "gamma", COLOURS["flow"], "none: the flow")
        for i, (kind, colour) in enumerate(colours.items()):
            shifted = [{**p, "place": p["gamma"] + 0.03 * (i - 1)} for p in chosen(rows, noise=kind)]
            draw(ax, shifted, "place", colour, names[kind], marker=MARKERS[i + 1], linestyle=":")
        ax.axhline(results["floors"][task], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        top = max(p["high"] for p in rows)
        ax.set(xlabel="total noise γ", ylabel=results["metrics"][task], ylim=(0, 1.5 * top), xlim=(-0.2, 2.2))
    legend(axes[0], loc="upper left")
    return figure


FIGURES: dict[str, dict[str, Callable[[Results], Figure]]] = {
    "E1": {"density": density},
    "E2": {"drift": drift, "pulse": pulse},
    "E3": {"network": network},
    "E4": {"initial": initial},
    "E5": {"quantised": quantised, "quantised_ratio": quantised_ratio},
    "hybrids": {"hybrids": hybrids},
    "noise": {"noise": state_noise},
}


def to_png(figure: Figure) -> bytes:
    """For a page: a pixel and a half to one on the screen keeps the file small."""
    return viz.to_png(figure, dpi=1.5 * canvas.DPI)
