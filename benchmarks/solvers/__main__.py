"""Error against evaluations of every solver: ``python -m benchmarks.solvers`` from the root of a checkout.

The error is the root mean square distance of the end points from those of a fine run from the same noise, over the root
mean square of the end points: what the solver adds to what the model is. All take equal steps in t. It takes about five
minutes on a CPU core once the digit models of ``benchmarks.robustness`` are trained (they are kept in ``--cache``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import genmatch as gm
from genmatch.solvers import Field

from .._interleave import RESULTS, save, versions
from ..robustness.record import Scale
from ..robustness.trained import Recipe, digits, train
from .contenders import FAMILIES, steps_for
from .figure import draw

ROOT = Path(__file__).parents[2]
BUDGETS = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 100)
TOLERANCES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4, 1e-5)
START_LOG_SNR = -10.0  # of a noise network on a path whose alpha starts at 0, which knows nothing of the data there


class World(NamedTuple):
    """A model whose samples are made by every solver."""

    name: str
    flow: gm.Flow
    noise: Tensor
    start: float
    tolerance: float  # of the reference run


def worlds(smoke: bool, cache: Path) -> list[World]:
    """A mixture in the plane under an exact network, on two schedules, and two networks trained on digits."""
    count = 20 if smoke else 500
    mixture = gm.worlds.GaussianMixture(
        torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.3]]]),
        [0.5, 0.2, 0.3],
    )
    z = gm.Draws(0, count).normal((count, 2), torch.float64)
    fine = 1e-3 if smoke else 1e-9
    paths = {"CondOT": gm.GaussianPath(), "VP": gm.GaussianPath(gm.schedules.VP())}
    found = [World(f"mixture, {name}", gm.Flow(mixture.predictor(p)), z, 0.0, fine) for name, p in paths.items()]
    scale = Scale(smoke=smoke, progress=False, cache=cache)
    task = digits(scale)
    images = 4 if smoke else 64
    noise = gm.Draws(0, images).normal((images, *task.shape))
    for reading, lr in (("velocity", 4e-3), ("noise", 4e-3)):
        model = train(task, Recipe(reading, lr, 0)).model
        at = torch.tensor([START_LOG_SNR], dtype=torch.float64)
        start = 0.0 if reading == "velocity" else model.path.schedule.inverse_log_snr(at).item()
        found.append(World(f"digits, {reading} network", gm.Flow(model), noise, start, 1e-2 if smoke else 2e-6))
    return found


def measure(world: World, smoke: bool) -> list[dict[str, Any]]:
    """Records of one world: family, solver, steps, evaluations and error."""
    x = world.noise * _source(world)
    exact = gm.solvers.Dopri5(rtol=world.tolerance, atol=world.tolerance, max_evaluations=100_000)
    reference = _run(world, x, exact, 1)
    size = reference.double().square().mean().sqrt().item()

    def error(found: Tensor) -> float:
        return (found.double() - reference.double()).square().mean().sqrt().item() / size

    records = []
    field = Field(world.flow, x[:1])
    for family, solvers in FAMILIES.items():
        for name, make in tqdm(solvers.items(), desc=f"{world.name}: {family}", leave=False, disable=smoke):
            done = set()
            for budget in BUDGETS[:2] if smoke else BUDGETS:
                run = steps_for(make(), field, world.start, budget)
                if run is None or run in done:
                    continue
                done.add(run)
                value = error(_run(world, x, make(), run.steps))
                records.append({"family": family, "solver": name, **run._asdict(), "error": value})
    for tolerance in TOLERANCES[:1] if smoke else TOLERANCES:
        solver = gm.solvers.Dopri5(rtol=tolerance, atol=tolerance)
        states, report = gm.sample(world.flow, x, start=world.start, solver=solver, report=True)
        mean = report.evaluations.double().mean().item()
        adaptive = {"family": "adaptive", "solver": "Dormand-Prince 5(4) per sample", "tolerance": tolerance}
        records.append({**adaptive, "evaluations": mean, "error": error(states)})
    return records


def _source(world: World) -> float:
    """The noise at the start: sigma there (alpha is next to nothing)."""
    _, sigma = world.flow.path.schedule(torch.tensor(world.start, dtype=torch.float64))  # type: ignore[attr-defined]
    return sigma.item()


def _run(world: World, x: Tensor, solver: gm.Solver, steps: int) -> Tensor:
    return gm.sample(world.flow, x, steps=steps, start=world.start, solver=solver)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, save and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.solvers",
        description="Error against evaluations of every solver.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--smoke", action="store_true", help="a rehearsal of seconds, whose numbers mean nothing")
    parser.add_argument("--draw", action="store_true", help="draw the figure of the results that are there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs/_static/solvers", help="folder of the figure")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/robustness", help="folder of trained weights")
    args = parser.parse_args(arguments)
    if args.smoke and any(getattr(args, name) == parser.get_default(name) for name in ("out", "figures", "cache")):
        parser.error("--smoke would overwrite the real results: give --out, --figures and --cache")
    path = args.out / "solvers.json"
    if not args.draw:
        tables = {world.name: measure(world, args.smoke) for world in worlds(args.smoke, args.cache)}
        path = save("solvers", {"versions": versions("genmatch", "torch"), "worlds": tables}, args.out)
    tables = json.loads(path.read_text())["worlds"]
    for name, records in tables.items():
        print(f"\n{name}: relative error at 5, 10, 20 evaluations at most")
        for solver in dict.fromkeys(r["solver"] for r in records):
            own = [r for r in records if r["solver"] == solver]
            cells = [min((r["error"] for r in own if r["evaluations"] <= n), default=None) for n in (5, 10, 20)]
            print(f"  {solver:32s}" + "".join(f"{'-' if c is None else f'{c:.2g}':>10}" for c in cells))
    args.figures.mkdir(parents=True, exist_ok=True)
    (args.figures / "error.png").write_bytes(draw(tables))


if __name__ == "__main__":
    main()
