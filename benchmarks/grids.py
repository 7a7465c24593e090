"""Where few steps should go: optimised time grids against those that need no search, on trained networks.

A flow (CondOT, velocity network) and a diffusion (VP, noise network) are trained on scikit-learn's digits, 8 x 8. Then
each grid is used by each solver from the same noise, which the search never saw: how far the samples end from where
an accurate run ends, and how far their law is from that of the digits (Frechet distance of a classifier's features).

Run it as ``python benchmarks/grids.py [--save]``; it takes two or three minutes on one core, half of it for
training, which is kept in ``--cache`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _interleave import RESULTS, save, versions
from torch import Tensor
from tqdm import tqdm

import genmatch as gm
from genmatch.demo.classifier import train_classifier
from genmatch.solvers import Euler, Exponential, Field, Heun, Solver

ROOT = Path(__file__).parents[1]
BUDGETS = (5, 6, 8, 10)
SOLVERS: tuple[Solver, ...] = (Euler(), Exponential(order=2), Heun())
STEPS = 3000  # of training
PIXELS = 64
FITTED = 128  # samples of the search, half of them held out
MEASURED = 500  # samples of the comparison, of another seed
PACKAGES = ("genmatch", "torch", "scikit-learn")
Grid = Callable[[gm.Schedule, int], Tensor]


def from_zero(grid: Grid) -> Grid:
    """The grid with its first point at t = 0, where all runs begin."""

    def moved(schedule: gm.Schedule, steps: int) -> Tensor:
        times = grid(schedule, steps)
        times[0] = 0.0
        return times

    return moved


GRIDS: dict[str, Grid] = {
    "uniform": lambda _, steps: gm.grids.uniform(steps),
    "quadratic": lambda _, steps: gm.grids.quadratic(steps),
    "Karras": from_zero(gm.grids.karras),
    "log-SNR": from_zero(gm.grids.log_snr),
}


def trained(reading: str, path: gm.GaussianPath, images: Tensor, cache: Path, progress: bool) -> gm.predict.Affine:
    """A perceptron with averaged weights, from the cache if it is there."""
    torch.manual_seed(0)
    network = gm.nn.MLP(PIXELS, width=256)
    kind = {"velocity": gm.predict.Velocity, "noise": gm.predict.Noise}[reading]
    model = kind(network, path)
    kept = cache / f"digits-mlp-{reading}-{STEPS}.pt"
    if not kept.exists():
        fitted = gm.training.fit(
            model,
            images,
            STEPS,
            batch_size=64,
            lr=2e-3,
            warmup=100,
            schedule="cosine",
            ema=0.995,
            seed=0,
            progress=progress,
        )
        with fitted.ema.applied():  # type: ignore[union-attr]
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        cache.mkdir(parents=True, exist_ok=True)
        torch.save(weights, kept)
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model.eval()


def frechet(moments: gm.metrics.Moments, features: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Distance of the law of samples from that of the digits."""
    return gm.metrics.frechet(x.reshape(-1, 1, 8, 8), moments, features).value


def evaluations(flow: gm.Flow, solver: Solver, steps: int) -> int:
    """Of a run of that many steps."""
    return solver.evaluations(solver.plan(Field(flow, torch.zeros(1, PIXELS)), gm.grids.uniform(steps)))


def most_steps(flow: gm.Flow, solver: Solver, budget: int) -> int:
    """The most steps within a budget."""
    return max(n for n in range(1, budget + 1) if evaluations(flow, solver, n) <= budget)


def compare(name: str, flow: gm.Flow, measure: Callable[[Tensor], float], bar: tqdm) -> dict[str, Any]:
    """Every grid under every solver and budget, for one model."""
    noise = gm.Draws(1, MEASURED).normal((MEASURED, PIXELS))
    fine = gm.grids.log_snr(flow.path.schedule, 200)
    reference = gm.sample(flow, noise, times=fine, solver=Exponential(order=3))
    rows = []
    for solver in SOLVERS:
        tried = set()
        for budget in BUDGETS:
            steps = most_steps(flow, solver, budget)
            bar.set_postfix_str(f"{name}, {solver!r}, {steps} steps")
            if steps not in tried:
                tried.add(steps)
                begin = time.perf_counter()
                found = gm.solvers.optimise_grid(flow, (FITTED, PIXELS), steps, solver=solver, seed=0)
                seconds = time.perf_counter() - begin
                candidates = {key: grid(flow.path.schedule, steps) for key, grid in GRIDS.items()} | {
                    "optimised": found
                }
                for key, times in candidates.items():
                    x = gm.sample(flow, noise, times=times, solver=solver)
                    apart = (x - reference).double().norm(dim=1) / PIXELS**0.5  # root mean square over the pixels
                    rows.append(
                        {
                            "solver": repr(solver),
                            "steps": steps,
                            "evaluations": evaluations(flow, solver, steps),
                            "grid": key,
                            "rms": apart.square().mean().sqrt().item(),
                            "median": apart.median().item(),
                            "frechet": measure(x),
                            "times": times.tolist(),
                            **({"seconds": seconds} if key == "optimised" else {}),
                        }
                    )
            bar.update()
    return {"model": name, "frechet of the accurate run": measure(reference), "rows": rows}


def show(results: list[dict[str, Any]]) -> None:
    """Print a table: distance from the accurate run, and the Frechet distance."""
    names = [*GRIDS, "optimised"]
    for result in results:
        print(f"\n{result['model']}: Frechet distance of the accurate run {result['frechet of the accurate run']:.2f}")
        print("root mean square distance per pixel from the accurate run / Frechet distance")
        print(f"{'solver':22}{'evaluations':>12}" + "".join(f"{name:>16}" for name in names))
        for solver, count in dict.fromkeys((row["solver"], row["evaluations"]) for row in result["rows"]):
            cells = {r["grid"]: r for r in result["rows"] if (r["solver"], r["evaluations"]) == (solver, count)}
            line = "".join(f"{cells[name]['rms']:>9.4f} /{cells[name]['frechet']:5.1f}" for name in names)
            print(f"{solver:22}{count:>12}{line}")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Errors against evaluations, and where the steps are, for the exponential solver."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names, solver = [*GRIDS, "optimised"], repr(Exponential(order=2))
    colours = dict(zip(names, ("#7f7f7f", "#4477aa", "#ccbb44", "#66ccee", "#cc3311"), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), height_ratios=(1.6, 1), constrained_layout=True)
    for (errors, places), result in zip(axes.T, results, strict=True):
        rows = [row for row in result["rows"] if row["solver"] == solver]
        for height, name in enumerate(reversed(names)):
            own = [row for row in rows if row["grid"] == name]
            width = 2.4 if name == "optimised" else 1.4
            counts = [row["evaluations"] for row in own]
            errors.plot(counts, [row["rms"] for row in own], "o-", color=colours[name], lw=width, ms=4, label=name)
            places.plot(own[-1]["times"], [height] * len(own[-1]["times"]), "|-", color=colours[name], lw=0.8, ms=13)
        errors.set(yscale="log", xticks=list(BUDGETS), xlabel="evaluations", title=result["model"])
        errors.grid(alpha=0.3, which="both")
        places.set(yticks=range(len(names)), yticklabels=list(reversed(names)), xlabel="t (0 is noise, 1 is data)")
        places.set_title(f"{own[-1]['evaluations']} evaluations", fontsize=10)
        places.set_ylim(-0.6, len(names) - 0.4)
    axes[0, 0].set_ylabel("distance from the accurate run\n(root mean square per pixel)")
    axes[0, 0].legend(reverse=True, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Train, compare, print, and save if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/grids.json and the figure")
    parser.add_argument("--draw", action="store_true", help="draw the figure of the results that are there")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/grids", help="folder of trained weights")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args()
    figure = ROOT / "docs/_static/grids.png"
    if args.draw:
        results = json.loads((RESULTS / "grids.json").read_text())["models"]
        show(results)
        draw(results, figure)
        return
    train = gm.data.digits("train")
    classifier = train_classifier(train, steps=600, seed=0, progress=False)
    moments = gm.metrics.Moments.of(train.images, classifier.features)
    models = {
        "flow (CondOT, velocity)": ("velocity", gm.schedules.CondOT()),
        "diffusion (VP, noise)": ("noise", gm.schedules.VP()),
    }
    results = []
    with tqdm(total=len(models) * len(SOLVERS) * len(BUDGETS), disable=args.quiet, leave=False) as bar:
        for name, (reading, schedule) in models.items():
            model = trained(reading, gm.GaussianPath(schedule), train.images.flatten(1), args.cache, not args.quiet)
            results.append(compare(name, gm.Flow(model), partial(frechet, moments, classifier.features), bar))
    show(results)
    if args.save:
        settings = {"training steps": STEPS, "samples of the search": FITTED, "samples measured": MEASURED}
        path = save("grids", {"versions": versions(*PACKAGES), "settings": settings, "models": results})
        draw(results, figure)
        print(f"\nwritten to {path} and {figure}")


if __name__ == "__main__":
    main()
