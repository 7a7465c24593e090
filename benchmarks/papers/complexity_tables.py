"""What the page shows of the results: tables in Markdown, and the numbers that they and the figures share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .complexity_models import ARCHITECTURES, KINDS
from .complexity_solvers import ACCELERATED, STEPS, TOLERANCES

__all__ = ["EQUAL", "NAMES", "TABLES", "Results", "budgets", "chosen", "error", "gain", "measured", "spread"]

Results = Mapping[str, Any]
NAMES = {"digits": "digits 8×8", "mnist": "MNIST 32×32", "grey": "CIFAR grey 16×16", "cifar10": "CIFAR-10 32×32×3"}
EQUAL = {"Heun": 2, "RK4": 4, "Exponential 2": 1}  # evaluations a step
MEASURE = {"trained": "error", "exact": "median"}  # where an image ends at another one, the mean is of that alone


def chosen(rows: Iterable[Results], **keys: Any) -> list[Results]:
    """Rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in keys.items())]


def measured(results: Results) -> list[str]:
    """The sets, in their order."""
    return [row["set"] for row in results["sets"]]


def budgets(results: Results, name: str) -> list[int]:
    """Evaluations at which the quality on a set was measured."""
    return sorted({row["budget"] for row in chosen(results["quality"], set=name)})


def error(row: Results, solver: str, evaluations: int) -> float:
    """Distance from the solution of a model's row of a solver of equal steps that cost so many evaluations."""
    (found,) = chosen(row["errors"], solver=solver, evaluations=evaluations)
    return found[MEASURE[row["field"]]]


def gain(row: Results, solver: str, steps: int, *, equal: str) -> float:
    """Euler's error over a solver's: at equal ``"steps"``, or at equal ``"evaluations"``."""
    spent = EQUAL[solver] * steps
    return error(row, "Euler", steps if equal == "steps" else spent) / error(row, solver, spent)


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The mean of repeats and their range: geometric, as for ratios and distances."""
    mean = math.exp(sum(map(math.log, values)) / len(values))
    text = _short(mean, digits)
    return text if len(values) == 1 else f"{text} ({_short(min(values), digits)}–{_short(max(values), digits)})"


def _short(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sets(results: Results) -> str:
    """The image sets by their complexity, and the curvature of their exact and trained fields."""
    head = ["images", "numbers", "directions", "intrinsic dimension", "flow: exact", "flow: trained"]
    head += ["diffusion: exact", "diffusion: trained", "the same diffusion, on the flow's path"]
    rows = []
    for about in results["sets"]:
        row = [NAMES[about["set"]], f"{about['dimension']}", f"{about['participation']:.0f}"]
        row.append(f"{about['intrinsic']:.1f}")
        for kind in KINDS:
            for field in ("exact", "trained"):
                of = chosen(results["fields"], set=about["set"], kind=kind, field=field)
                row.append(spread([r["curvature"]["median"] for r in of], 4))
        of = chosen(results["fields"], set=about["set"], kind="diffusion", field="trained")
        rows.append([*row, spread([r["curvature"]["in"]["flow"] for r in of], 4)])
    return table(head, rows)


def gains(results: Results, field: str) -> str:
    """Gains over Euler at N steps."""
    head = ["images", "N", "Euler's error", *(f"{name}, N steps" for name in EQUAL)]
    head += [f"{name}, equal evaluations" for name in ("Heun", "RK4")]
    rows = []
    for name in measured(results):
        of = chosen(results["fields"], set=name, kind="flow", field=field)
        for steps in STEPS:
            row = [NAMES[name], str(steps), spread([error(r, "Euler", steps) for r in of])]
            row += [spread([gain(r, solver, steps, equal="steps") for r in of]) for solver in EQUAL]
            row += [spread([gain(r, solver, steps, equal="evaluations") for r in of]) for solver in ("Heun", "RK4")]
            rows.append(row)
    return table(head, rows)


def adaptive(results: Results) -> str:
    """Dopri5 beside Euler with as many evaluations."""
    head = ["images", *(f"tolerance {tolerance:g}" for tolerance in TOLERANCES)]
    rows = []
    for name in measured(results):
        of = chosen(results["fields"], set=name, kind="flow", field="trained")
        row = [NAMES[name]]
        for tolerance in TOLERANCES:
            found = [chosen(r["adaptive"], tolerance=tolerance)[0] for r in of]
            spent = sum(f["evaluations"] for f in found) / len(found)
            gained = spread([f["euler"] / f["error"] for f in found])
            row.append(f"{spent:.0f}: {spread([f['error'] for f in found]).split()[0]}, gain {gained}")
        rows.append(row)
    return table(head, rows)


def distances(results: Results) -> str:
    """Distance from the model's own solution at 5, 10 and 20 evaluations, on the better grid."""

    def entry(name: str, kind: str, solver: str, budget: int) -> list[float]:
        of = chosen(results["fields"], set=name, kind=kind, field="trained")
        rows = [chosen(r["accelerated"], solver=solver, budget=budget) for r in of]
        return [min(r["error"] for r in each) for each in rows if each]

    return _by_solver(measured(results), entry, lambda name: STEPS)


def frechet(results: Results) -> str:
    """Frechet distance at 5, 10 and 20 evaluations."""

    def entry(name: str, kind: str, solver: str, budget: int) -> list[float]:
        keys = {"set": name, "kind": kind, "solver": solver, "budget": budget}
        return [row["frechet"] for row in chosen(results["quality"], **keys)]

    names = [name for name in measured(results) if budgets(results, name)]
    if not names:
        raise ValueError("these results have no Frechet distances")
    floors = [_short(about["floor"], 3) for about in results["sets"] if about["set"] in names]
    return "\n".join(
        [
            _by_solver(names, entry, lambda name: budgets(results, name), digits=3),
            f"| few-step distilled models | {' | '.join(['not measured'] * len(names))} |",
            f"| as many test images | {' | '.join(floors)} |",
        ]
    )


def _by_solver(
    names: Sequence[str],
    entry: Callable[[str, str, str, int], list[float]],
    budgets: Callable[[str], Sequence[int]],
    digits: int = 2,
) -> str:
    heads = [f"{NAMES[name]}: {' / '.join(map(str, budgets(name)))}" for name in names]
    rows = []
    for kind in KINDS:
        for solver in (*ACCELERATED, "DDPM (ancestral)"):
            cells = []
            for name in names:
                values = [entry(name, kind, solver, budget) for budget in budgets(name)]
                cells.append(" / ".join(spread(v, digits).split()[0] if v else "–" for v in values))
            if any(set(cell) - set("– /") for cell in cells):
                label = "DDIM, which is Euler" if (kind, solver) == ("flow", "DDIM") else solver
                rows.append([f"{kind}: {label}", *cells])
    return table(["sampler", *heads], rows)


def architectures(results: Results) -> str:
    """Curvature and few-step quality of each architecture."""
    head = ["network", "weights", "kind", "held-out loss", "curvature", "on the flow's path"]
    head += ["Frechet, DDIM 5 / 10", "Frechet, Exponential 2 5 / 10", "converged", "error, DDIM 5 / 10"]
    head += ["error, Exponential 2 5 / 10"]
    rows = []
    for name in ARCHITECTURES:
        for kind in KINDS:
            of = chosen(results["architectures"], architecture=name, kind=kind)
            row = [name, f"{of[0]['parameters']:,}", kind, spread([r["held_out"] for r in of], 3)]
            row += [spread([r["curvature"]["median"] for r in of], 4)]
            row += [spread([r["curvature"]["in"]["flow"] for r in of], 4)]
            cells = {}
            for what, digits in (("frechet", 3), ("error", 2)):
                for solver in ("DDIM", "Exponential 2"):
                    few = [[chosen(r["few"], solver=solver, steps=n)[0][what] for r in of] for n in (5, 10)]
                    cells[what, solver] = " / ".join(spread(v, digits).split()[0] for v in few)
            row += [cells["frechet", "DDIM"], cells["frechet", "Exponential 2"], spread([r["fine"] for r in of], 3)]
            rows.append([*row, cells["error", "DDIM"], cells["error", "Exponential 2"]])
    return table(head, rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "sets": sets,
    "gains, trained": lambda results: gains(results, "trained"),
    "gains, exact": lambda results: gains(results, "exact"),
    "adaptive": adaptive,
    "distances": distances,
    "frechet": frechet,
    "architectures": architectures,
}
