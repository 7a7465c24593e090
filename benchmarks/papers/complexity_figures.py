"""Figures of the study of complexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from genmatch.viz.palette import COLOURS, INK, MARKERS, MUTED, OTHERS
from genmatch.viz.ticks import label_logarithmic

from ..robustness.figures import draw, legend, panels
from .complexity_models import ARCHITECTURES, KINDS
from .complexity_solvers import ACCELERATED
from .complexity_tables import EQUAL, NAMES, Results, budgets, chosen, error, measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

OF_SOLVER = dict(zip(("Euler", *EQUAL, "Dopri5"), (COLOURS["flow"], *OTHERS), strict=True))


def point(x: float, values: Sequence[float]) -> dict[str, float]:
    """The geometric mean of repeats, and their range for an interval: two or three repeats have no quantiles."""
    low, high = min(values), max(values)
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return {"x": x, "mean": min(max(mean, low), high), "low": low, "high": high}  # rounding may lead outside


def solvers(results: Results) -> Figure:
    """Error of the trained flows against evaluations."""
    figure, axes = panels([NAMES[name] for name in measured(results)], across=2, height=330)
    for ax, name in zip(axes, measured(results), strict=True):
        of = chosen(results["fields"], set=name, kind="flow", field="trained")
        for i, (solver, colour) in enumerate(OF_SOLVER.items()):
            if solver == "Dopri5":
                rows = [
                    point(
                        sum(r["adaptive"][j]["evaluations"] for r in of) / len(of),
                        [r["adaptive"][j]["error"] for r in of],
                    )
                    for j in range(len(of[0]["adaptive"]))
                ]
            else:
                spent = [row["evaluations"] for row in chosen(of[0]["errors"], solver=solver)]
                rows = [point(n, [error(r, solver, n) for r in of]) for n in spent]
            draw(ax, rows, "x", colour, solver, marker=MARKERS[i], linestyle="-")
        ax.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="distance from the solution")
        label_logarithmic(ax.xaxis)
        label_logarithmic(ax.yaxis)
    legend(axes[0], loc="lower left")
    return figure


def gains(results: Results) -> Figure:
    """Euler's error over others' at equal evaluations, by set."""
    names = measured(results)
    titles = [f"{field} fields, {n} evaluations" for field in ("Trained", "Exact") for n in (20, 40)]
    figure, axes = panels(titles, across=2, height=300)
    places = [(field, n) for field in ("trained", "exact") for n in (20, 40)]
    for ax, (field, spent) in zip(axes, places, strict=True):
        for i, solver in enumerate(EQUAL):
            rows = []
            for j, name in enumerate(names):
                of = chosen(results["fields"], set=name, kind="flow", field=field)
                values = [error(r, "Euler", spent) / error(r, solver, spent) for r in of]
                rows.append(point(j + 0.1 * (i - 1), values))
            draw(ax, rows, "x", OF_SOLVER[solver], solver, marker=MARKERS[i + 1])
        ax.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set(yscale="log", ylabel="Euler's error / this one's", xlim=(-0.5, len(names) - 0.5))
        ax.set_xticks(range(len(names)), _two_lines(names))
        label_logarithmic(ax.yaxis)
    legend(axes[0], loc="best")
    return figure


def curvature(results: Results) -> Figure:
    """Curvature by set: exact and trained, each in the coordinates of both paths."""
    names = measured(results)
    figure, axes = panels(["On the flow's path", "On the diffusion's path"], height=340)
    for ax, path in zip(axes, KINDS, strict=True):
        arms = [(kind, field) for kind in KINDS for field in ("exact", "trained")]
        for i, (kind, field) in enumerate(arms):
            rows = []
            for j, name in enumerate(names):
                of = chosen(results["fields"], set=name, kind=kind, field=field)
                rows.append(point(j + 0.13 * (i - 1.5), [r["curvature"]["in"][path] for r in of]))
            face = {} if field == "trained" else {"alpha": 0.45}
            draw(ax, rows, "x", COLOURS[kind], f"{kind}, {field}", marker=MARKERS[i], **face)
        ax.set_xticks(range(len(names)), _two_lines(names))
        ax.set(ylabel="length / displacement", ylim=(1.0, None), xlim=(-0.5, len(names) - 0.5))
    legend(axes[1], loc="upper right")
    return figure


def accelerated(results: Results) -> Figure:
    """Frechet distances of flow and diffusion by the same solvers."""
    sets = [about for about in results["sets"] if budgets(results, about["set"])]
    figure, axes = panels([NAMES[about["set"]] for about in sets], height=380)
    for ax, about in zip(axes, sets, strict=True):
        name = about["set"]
        for kind in KINDS:
            ancestral = ("DDPM (ancestral)",) if kind == "diffusion" else ()
            for i, solver in enumerate((*ACCELERATED, *ancestral)):
                rows = []
                for budget in budgets(results, name):
                    of = chosen(results["quality"], set=name, kind=kind, solver=solver, budget=budget)
                    shift = (0.97 if kind == "flow" else 1.03) * 1.012 ** (i - 2)
                    rows += [point(budget * shift, [r["frechet"] for r in of])] if of else []
                style: dict[str, Any] = {"linestyle": ":" if solver in ancestral else "-"}
                draw(ax, rows, "x", COLOURS[kind], f"{kind}: {solver}", marker=MARKERS[i], **style)
        ax.axhline(about["floor"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ticks = budgets(results, name)
        ax.set(xscale="log", yscale="log", xlabel="evaluations", ylabel="Frechet distance", xlim=(4, 1.25 * ticks[-1]))
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        label_logarithmic(ax.yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8, labelcolor=INK)
    return figure


def architectures(results: Results) -> Figure:
    """Curvature and few-step quality of each architecture, on digits."""
    titles = ["Curvature on its own path", "Frechet distance, 5 evaluations", "Frechet distance, converged"]
    figure, axes = panels(titles, height=330)

    def few(row: Results) -> float:
        return min(part["frechet"] for part in row["few"] if part["steps"] == 5)

    readings: list[Callable[[Results], float]] = [lambda r: r["curvature"]["median"], few, lambda r: r["fine"]]
    for ax, reading in zip(axes, readings, strict=True):
        for i, kind in enumerate(KINDS):
            rows = []
            for j, name in enumerate(ARCHITECTURES):
                of = chosen(results["architectures"], architecture=name, kind=kind)
                rows.append(point(j + 0.16 * (i - 0.5), [reading(r) for r in of]))
            draw(ax, rows, "x", COLOURS[kind], kind, marker=MARKERS[i])
        _names(ax, ARCHITECTURES)
    about = next(row for row in results["sets"] if row["set"] == "digits")
    for i, kind in enumerate(KINDS):
        (exact,) = chosen(results["fields"], set="digits", kind=kind, field="exact")
        label = "exact field" if i else None
        axes[0].axhline(exact["curvature"]["median"], color=COLOURS[kind], linewidth=1, linestyle=":", label=label)
    axes[0].set(ylabel="length / displacement", ylim=(1, None))
    for ax in axes[1:]:
        ax.axhline(about["floor"], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        ax.set(ylabel="Frechet distance", ylim=(0, None))
    legend(axes[0], loc="lower right")
    return figure


def _two_lines(names: Iterable[str]) -> list[str]:
    return ["\n".join(NAMES[name].rsplit(" ", 1)) for name in names]


def _names(ax: Axes, names: Iterable[str]) -> None:
    ax.set_xticks(range(len(list(names))), [name.replace(", ", ",\n") for name in names], rotation=30, ha="right")


FIGURES: dict[str, Callable[[Results], Figure]] = {
    "complexity-solvers": solvers,
    "complexity-gains": gains,
    "complexity-curvature": curvature,
    "complexity-accelerated": accelerated,
    "complexity-architectures": architectures,
}
