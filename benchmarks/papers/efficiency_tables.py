"""The tables of the page on efficiency, from the results: the page holds them word for word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .superposition_tables import table

__all__ = ["TABLES", "ranged"]

Results = Mapping[str, Any]
LAWS = {"flow, Euler": "flow", "diffusion, DDIM": "DDIM", "diffusion, ancestral": "ancestral"}


def ranged(mean: float, low: float, high: float, form: str = ".2f") -> str:
    """A number, and the range of the repeats where there are any."""
    return f"{mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if low < high else "")


def curvature(results: Results) -> str:
    """Medians, and the middle 90% of what is trained."""
    rows = [row for row in results["rows"] if row["seed"] == 0 and row["arm"] in LAWS]
    exact = results["exact"]
    steps = sorted({row["steps"] for row in rows if any(r["steps"] == row["steps"] for r in exact["rows"])})
    lines = []
    for arm, process in LAWS.items():
        own = {row["steps"]: row["curvature"] for row in rows if row["arm"] == arm}
        form = ".2f" if process == "ancestral" else ".3f"
        lines.append([f"{arm}, trained", *(ranged(c["median"], c["low"], c["high"], form) for c in _at(own, steps))])
        for law in ("Gaussian", "training images"):
            known = {r["steps"]: r["median"] for r in exact["rows"] if (r["law"], r["process"]) == (law, process)}
            lines.append([f"{arm}, exact: {law}", *(f"{value:{form}}" for value in _at(known, steps))])
    chain = dict(zip(exact["chain"]["steps"], exact["chain"]["curvature"], strict=True))
    lines.append(["the chain's closed form", *(f"{value:.2f}" for value in _at(chain, steps))])
    return table(["process", *(f"N = {n}" for n in steps)], lines)


def _at(values: Mapping[int, Any], steps: Sequence[int]) -> list[Any]:
    return [values[n] for n in steps]


def frechet(results: Results) -> str:
    """Over three trainings."""
    rows = [row for row in results["summary"] if row["repeats"] > 1]
    steps = sorted({row["steps"] for row in rows if row["arm"] == "diffusion, ancestral"})
    found = {(row["arm"], row["steps"]): row["frechet"] for row in rows}
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = [found.get((arm, n)) for n in steps]
        lines.append([arm, *("" if c is None else ranged(c["mean"], c["least"], c["greatest"]) for c in cells)])
    return table(["sampler", *(f"N = {n}" for n in steps)], lines)


def long(results: Results) -> str:
    """Of one training, at every number of steps."""
    rows = [row for row in results["rows"] if row["seed"] == 0 and row["arm"] in LAWS]
    steps = sorted({row["steps"] for row in rows if row["arm"] == "diffusion, DDIM"})
    found = {(row["arm"], row["steps"]): row["frechet"] for row in rows}
    lines = [[arm, *(f"{found[arm, n]:.2f}" for n in steps)] for arm in LAWS]
    return table(["sampler", *(f"N = {n}" for n in steps)], lines)


def solvers(results: Results) -> str:
    """Euler and RK4 by steps and evaluations: distance from the data, and from the flow solved finely."""
    wanted = ("flow, Euler", "flow, RK4", "flow, Exponential(2)")
    rows = [row for row in results["summary"] if row["arm"] in wanted and row["repeats"] > 1]
    lines = [
        [
            row["arm"].removeprefix("flow, "),
            str(row["steps"]),
            str(row["evaluations"]),
            ranged(row["frechet"]["mean"], row["frechet"]["least"], row["frechet"]["greatest"]),
            "" if row["error"] is None else f"{row['error']:.4f}",
        ]
        for row in sorted(rows, key=lambda r: (r["evaluations"], r["arm"]))
    ]
    return table(
        ["solver", "steps", "evaluations", "Fréchet distance", "root mean square from the fine solution"], lines
    )


def time(results: Results) -> str:
    """Milliseconds an image."""
    lines = [
        [
            row["network"],
            row["arm"],
            str(row["steps"]),
            str(row["batch"]),
            ranged(row["median"], row["low"], row["high"], ".1f"),
        ]
        for row in results["costs"]["milliseconds"]
    ]
    return table(["network", "sampler", "steps", "batch", "ms an image"], lines)


def memory(results: Results) -> str:
    """MiB at the worst moment."""
    lines = [
        [
            row["task"],
            row["model"],
            str(row["batch"]),
            ranged(_mean(row["mib"]), min(row["mib"]), max(row["mib"]), ".0f"),
        ]
        for row in results["costs"]["memory"]
    ]
    return table(["task", "model", "batch", "MiB"], lines)


def search(results: Results) -> str:
    """The held-out losses of the rates tried, the same for both kinds; losses of two kinds are not comparable."""
    tried = results["search"]["tried"]
    rates = results["search"]["rates"]
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in tried):
        losses = {row["lr"]: row["held_out"] for row in tried if row["kind"] == kind}
        chosen = min(losses, key=losses.__getitem__)
        lines.append([kind, *(f"{losses[rate]:.4f}" + (" (taken)" if rate == chosen else "") for rate in rates)])
    return table(["model", *(f"rate {rate:g}" for rate in rates)], lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


TABLES: dict[str, Callable[[Results], str]] = {
    "curvature": curvature,
    "frechet": frechet,
    "long": long,
    "solvers": solvers,
    "time": time,
    "memory": memory,
    "search": search,
}
