"""The tables of the page of worked examples, from the results: the page holds them word for word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .efficiency_tables import ranged
from .superposition_tables import table

__all__ = ["TABLES"]

Results = Mapping[str, Any]


def starts(results: Results) -> str:
    """How far the start is from a normal law."""
    found = results["line"]["starts"]
    keys = [key for key in next(iter(found.values())) if key != "sigma"]
    lines = [[name, *(f"{part[key]:.3g}" for key in keys)] for name, part in found.items()]
    return table(["noising", *(key.replace("|", "‖") for key in keys)], lines)  # a bar would end the cell


def line(results: Results) -> str:
    """W1 from the data."""
    found = results["line"]["rows"]
    lines = []
    for case, start in dict.fromkeys((row["case"], row["start"]) for row in found):
        cells = {row["field"]: row for row in found if (row["case"], row["start"]) == (case, start)}
        exact, trained = (cells[field] for field in ("exact", "trained"))
        lines.append([case, start, *(ranged(r["mean"], r["least"], r["greatest"], ".3f") for r in (exact, trained))])
    return table(["process", "start", "W1, exact field", "W1, trained field"], lines)


def learning(results: Results) -> str:
    """Distance from the data after each length of training."""
    paid = results["costs"]
    lines = []
    for kind in ("flow", "diffusion"):
        cells = []
        for steps in paid["lengths"]:
            values = [r["frechet"] for r in paid["learning"] if (r["model"], r["steps"]) == (kind, steps)]
            cells.append(ranged(sum(values) / len(values), min(values), max(values)))
        lines.append([kind, *cells])
    return table(["model", *(f"{steps} steps" for steps in paid["lengths"])], lines)


def reach(results: Results) -> str:
    """Training of flow over training of diffusion, to one quality."""
    lines = []
    for row in results["costs"]["reach"]:
        ratio = row["ratio"]
        told = "no number" if ratio is None else f"{ratio['mean']:.2f}"
        if ratio is not None and row["repeats"] > 2:  # two numbers make no interval
            told = ranged(ratio["mean"], ratio["low"], ratio["high"])
        lines.append([f"{row['level']:.2f}", f"{row['times']:g}", told, str(row["repeats"])])
    return table(["Fréchet distance", "times the worse best", "flow / diffusion", "repeats"], lines)


def steps(results: Results) -> str:
    """Distance from the data over the number of steps."""
    paid = results["costs"]
    counts = sorted({row["steps"] for row in paid["steps"]})
    lines = []
    for arm, need in paid["needed"].items():
        values = {row["steps"]: row["mean"] for row in paid["steps"] if row["arm"] == arm}
        own = [str(need[key] or "not") for key in ("of its own", "of all")]
        lines.append([arm, *(f"{values[n]:.2f}" for n in counts), *own])
    return table(["sampler", *map(str, counts), "near its best from", "near the best of all from"], lines)


def ratios(results: Results) -> str:
    """Costs as ratios of flow to diffusion."""
    timing = results["costs"]["timing"]
    rows = {
        "time of a training step, flow / diffusion": timing["training step"],
        "time of 20 steps of sampling, flow / diffusion": timing["flow over diffusion, 20 steps"],
        "time of 50 steps of diffusion / 20 steps of flow": timing["20 steps of flow over 50 of diffusion"],
        "time of 50 steps of diffusion / 20 steps of diffusion": timing["20 steps of diffusion over 50"],
        "peak memory of training, flow / diffusion": timing["memory ratio"]["training"],
        "peak memory of sampling, flow / diffusion": timing["memory ratio"]["sampling"],
    }
    lines = [[name, ranged(found["median"], found["low"], found["high"])] for name, found in rows.items()]
    return table(["ratio", "median (least to greatest)"], lines)


def repeatable(results: Results) -> str:
    """Greatest difference of a pixel."""
    rows = results["costs"]["repeatable"]
    keys = ["again", "batches of 7", "batches of 1", "another seed"]
    lines = [[row["arm"], *(f"{row[key]:.2g}" for key in keys)] for row in rows]
    return table(["sampler", *keys[:-1], "another seed, root mean square"], lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "starts": starts,
    "line": line,
    "learning": learning,
    "reach": reach,
    "steps": steps,
    "ratios": ratios,
    "repeatable": repeatable,
}
