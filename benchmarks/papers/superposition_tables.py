"""The tables of the page on superpositions, from the results: the page holds them word for word."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["TABLES"]

Results = Mapping[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Two digits behind the point, or the significant ones of what is small or large."""
    if value is None:
        return "diverged"
    return f"{value:.2f}" if 0.095 <= abs(value) < 100 else f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def seeds(point: Results) -> str:
    """Geometric mean and, of several seeds, the least and the greatest."""
    values = [v for v in point["values"] if v is not None]
    note = f", {point['diverged']} of {len(point['values'])} diverged" if point["diverged"] and values else ""
    between = f" ({number(min(values))} to {number(max(values))}{note})" if len(values) > 1 or note else ""
    return number(point["mean"]) + between


def within(point: Results) -> str:
    """Geometric mean and its 95% interval."""
    if point["mean"] is None or len(point["values"]) - point["diverged"] < 2:
        return number(point["mean"])
    return f"{number(point['mean'])} ({number(point['low'])} to {number(point['high'])})"


def pick(rows: Sequence[Results], **keys: Any) -> Results:
    """The only row with these values."""
    (found,) = (row for row in rows if all(row[key] == value for key, value in keys.items()))
    return found


def steps_in(rows: Sequence[Results]) -> list[int]:
    """The numbers of steps that occur."""
    return sorted({row["steps"] for row in rows})


def equivalence(results: Results) -> str:
    """Exact fields."""
    part = results["equivalence"]
    points = part["marginals"]["points"]
    steps = steps_in(points)
    cells = part["densities"][0]["cells"]
    head = [
        "process",
        f"density, {cells[0]} cells",
        f"{cells[-1]} cells",
        "order",
        *(f"samples, {n} steps" for n in steps),
    ]
    rows = []
    for row in part["densities"]:
        known = [p for p in points if p["process"] == row["process"]]
        ends = [f"{pick(known, steps=n)['end']:.4f}" for n in steps] if known else [""] * len(steps)
        errors = [f"{row['errors'][0]:.1e}", f"{row['errors'][-1]:.1e}"]
        rows.append([row["process"], *errors, f"{abs(row['order']):.2f}", *ends])
    rows.append(["as many exact samples", "", "", "", *[f"{part['marginals']['floor']['end']:.4f}"] * len(steps)])
    return table(head, rows)


def readings(results: Results) -> str:
    """Largest differences over what a network is read as."""
    found = results["equivalence"]["readings"]
    rows = []
    for trained in dict.fromkeys(row["trained"] for row in found):
        for kind in ("flow", "hybrid", "diffusion"):
            own = [row[kind] for row in found if row["trained"] == trained]
            worst = [f"{max(row[what] for row in own):.0e}" for what in ("drift", "samples")]
            rows.append([trained, kind, *worst])
    return table(["network trained to tell", "process", "drift", "pixel of a sample"], rows)


def quality(results: Results) -> str:
    """Velocity and noise networks."""
    points = results["equivalence"]["quality"]["points"]
    rows = [
        [p["process"], str(p["steps"]), seeds(p["velocity"]), seeds(p["noise"]), within(p["noise over velocity"])]
        for p in points
    ]
    return table(["process", "steps", "velocity network", "noise network", "noise over velocity"], rows)


def data_errors(results: Results) -> str:
    """Mean over seeds of the error in the data, by time."""
    found = results["equivalence"]["quality"]["data_errors"]
    times = [row["t"] for row in found["flow"][0]]
    rows = []
    for name, kind in (("velocity", "flow"), ("noise", "noise")):
        means = [sum(seed[i]["error"] for seed in found[kind]) / len(found[kind]) for i in range(len(times))]
        rows.append([name, *(f"{value:.4f}" for value in means)])
    return table(["network", *(f"t = {t:g}" for t in times)], rows)


def hybrids(results: Results, name: str) -> str:
    """Quality, cost and stability of hybrids."""
    points = results["hybrids"][name]["points"]
    steps = steps_in(points)
    cost = steps[min(1, len(steps) - 1)]
    rows = []
    for way in dict.fromkeys(p["way"] for p in points):
        for ratio in sorted({p["ratio"] for p in points if p["way"] == way}):
            own = [p for p in points if p["way"] == way and p["ratio"] == ratio]
            at = pick(own, steps=cost)
            values = [seeds(pick(own, steps=n)) for n in steps]
            away = f"{100 * pick(own, steps=steps[0])['away']:.1f}%"
            rows.append([way, f"{ratio:g}", *values, away, str(at["calls"]), f"{at['milliseconds']:.2f}"])
    head = ["way", "r", *(f"{n} steps" for n in steps), f"run away, {steps[0]} steps", f"calls, {cost} steps", "ms"]
    return table(head, rows)


def laws(results: Results) -> str:
    """Noise by the state under the exact field."""
    part = results["noise"]["laws"]
    steps = steps_in(part["points"])
    rows = []
    for kind in dict.fromkeys(p["noise"] for p in part["points"]):
        own = [pick(part["points"], noise=kind, steps=n) for n in steps]
        rows.append([kind, *(f"{p['halfway, square']:.3f}" for p in own), *(f"{p['end']:.4f}" for p in own)])
    floor = part["floor"]
    exact = [*[f"{floor['halfway, square']:.3f}"] * len(steps), *[f"{floor['end']:.4f}"] * len(steps)]
    head = [
        "noise",
        *(f"square halfway, {n} steps" for n in steps),
        *(f"distance at the end, {n} steps" for n in steps),
    ]
    return table(head, [*rows, ["exact samples", *exact]])


def state_noise(results: Results) -> str:
    """Noise by the state, trained networks."""
    rows = []
    for name in ("digits", "mnist"):
        for p in results["noise"][name]["points"]:
            over = within(p["over constant"]) if p["over constant"] else ""
            ms = "" if p["milliseconds"] is None else f"{p['milliseconds']:.2f}"
            rows.append([name, str(p["steps"]), p["noise"], seeds(p), over, str(p["calls"]), ms])
    return table(["data", "steps", "noise", "distance", "over constant noise", "calls", "ms"], rows)


def errors(results: Results, name: str) -> str:
    """Distances of the flow, and those of diffusions over it."""
    points = results["errors"][name]["points"]
    gammas = [g for g in sorted({p["gamma"] for p in points}) if g]
    rows = []
    for reading in ("velocity", "noise"):
        for kind in dict.fromkeys(p["error"] for p in points):
            own = [p for p in points if p["reading"] == reading and p["error"] == kind]
            ratios = [within(pick(own, gamma=g)["ratio"]) for g in gammas]
            rows.append([reading, kind, seeds(pick(own, gamma=0.0)), *ratios])
    return table(["network", "error", "the flow's distance", *(f"γ = {g:g}, over it" for g in gammas)], rows)


def jumps(results: Results) -> str:
    """All processes on each grid."""
    points = results["jumps"]["points"]
    steps = steps_in(points)
    rows = []
    for arm in dict.fromkeys(p["arm"] for p in points):
        for grid in dict.fromkeys(p["grid"] for p in points if p["arm"] == arm):
            own = [p for p in points if p["arm"] == arm and p["grid"] == grid]
            many = [pick(own, steps=n) for n in steps]
            calls = " / ".join(str(p["calls"]) for p in many)
            rows.append([arm, grid, *(seeds(p) for p in many), calls])
    return table(["process", "grid", *(f"N = {n}" for n in steps), "network calls"], rows)


def rankings(results: Results) -> str:
    """Each on its better grid, from best to worst."""
    rows = []
    for row in results["jumps"]["rankings"]:
        named = [f"{arm} {number(mean)}" for arm, mean in zip(row["order"], row["means"], strict=True)]
        rows.append([str(row["steps"]), *named, ", ".join(map(str, row["seeds"]))])
    places = ["best", *[""] * (len(results["jumps"]["rankings"][0]["order"]) - 2), "worst"]
    return table(["N", *places, "seeds that agree"], rows)


def search(results: Results) -> str:
    """Held-out losses of the rates that were tried."""
    found = {**results["equivalence"]["search"], **results["jumps"]["search"]}
    tried = {f"digits, {kind}": rows for kind, rows in found.items()}
    tried |= {f"MNIST, {kind}": rows for kind, rows in results["hybrids"]["mnist"]["search"].items()}
    rows = [
        [name, *(f"{r['lr']:g}: {r['held_out']:.4f}" for r in own), str(own[0]["steps"])] for name, own in tried.items()
    ]
    return table(["model", "a rate: held-out loss", "the other", "steps"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "equivalence": equivalence,
    "readings": readings,
    "quality": quality,
    "data_errors": data_errors,
    "hybrids on digits": lambda results: hybrids(results, "digits"),
    "hybrids on MNIST": lambda results: hybrids(results, "mnist"),
    "laws": laws,
    "state_noise": state_noise,
    "errors on digits": lambda results: errors(results, "digits"),
    "errors on MNIST": lambda results: errors(results, "mnist"),
    "jumps": jumps,
    "rankings": rankings,
    "search": search,
}
