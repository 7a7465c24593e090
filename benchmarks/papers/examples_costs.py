"""Flow against diffusion in costs, on digits: trainings of growing length, few and many steps, memory, repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

import genmatch as gm
from genmatch.solvers import Solver

from ..robustness.record import interval
from .costs import peak_memory, sampling, spread, timed, training
from .images import Images, load
from .measure import measure
from .models import RATES, Trained, search, train
from .networks import network, recipe
from .scale import Scale

__all__ = ["costs", "needed", "reach", "repeatable"]

KINDS = ("flow", "diffusion")
BOTH = {"flow": gm.solvers.Euler(), "diffusion": gm.solvers.DDIM()}
ARMS: dict[str, tuple[str, Solver]] = {
    "flow, Euler": ("flow", gm.solvers.Euler()),
    "diffusion, DDIM": ("diffusion", gm.solvers.DDIM()),
    "diffusion, ancestral": ("diffusion", gm.solvers.DDPM()),
    "flow, Exponential(2)": ("flow", gm.solvers.Exponential(order=2)),
    "diffusion, Exponential(2)": ("diffusion", gm.solvers.Exponential(order=2)),
}
LEVELS = (1.3, 1.2, 1.1)  # of distance from the data, in units of the worse side's best


def costs(scale: Scale) -> dict[str, Any]:
    """All of it, and the ratios of flow to diffusion."""
    images = load("digits", scale)
    lengths = scale.pick((3, 6), (150, 300, 600), (1000, 3000, 10000, 30000))
    models, searched = _trainings(images, lengths, scale)
    steps = _steps(images, {kind: models[kind, lengths[-1]] for kind in KINDS}, scale)
    samplers = {kind: better(steps, kind) for kind in KINDS}
    learning = _learning(images, models, samplers, scale)
    timing = _timing(images, scale)
    return {
        "lengths": list(lengths),
        "search": {"rates": list(RATES), "tried": searched},
        "floor": images.floor(_count(images, scale)),
        "images": _count(images, scale),
        "samplers": samplers,
        "learning": learning,
        "reach": reach(learning),
        "steps": steps,
        "needed": needed(steps, scale.pick(10.0, 1.05, 1.05)),
        "timing": timing,
        "repeatable": repeatable(images, {kind: models[kind, lengths[-1]][0] for kind in KINDS}, scale),
    }


def _count(images: Images, scale: Scale) -> int:
    return min(scale.pick(40, 300, 700), len(images.test))


def _trainings(
    images: Images, lengths: Sequence[int], scale: Scale
) -> tuple[dict[tuple[str, int], list[Trained]], list[dict[str, Any]]]:
    """Three trainings of each length for each kind, each length with a schedule of its own that ends at zero.

    Each kind has the better of the same two rates at the greatest length, on the first seed.
    """
    _, build = network(images, scale)
    found, searched = {}, []
    for kind in KINDS:
        tries = [replace(recipe(images, scale, kind, lr=lr), steps=lengths[-1]) for lr in RATES]
        best, tried = search(images, tries, build, scale)
        searched += tried
        for steps in lengths:
            recipes = [replace(best, steps=steps, seed=seed) for seed in range(scale.pick(2, 3, 3))]
            found[kind, steps] = [train(images, r, build, scale) for r in recipes]
    return found, searched


def better(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The sampler of a kind that is the best at the greatest number of steps."""
    finest = max(row["steps"] for row in rows)
    own = [row for row in rows if row["steps"] == finest and ARMS[row["arm"]][0] == kind]
    return min(own, key=lambda row: row["mean"])["arm"]


def _learning(
    images: Images, models: Mapping[tuple[str, int], list[Trained]], samplers: Mapping[str, str], scale: Scale
) -> list[dict[str, Any]]:
    """Distance from the data after trainings of each length, by 50 steps of each kind's better sampler."""
    rows, count, many = [], _count(images, scale), scale.pick(5, 50, 50)
    for (kind, steps), trained in scale.bar(models.items(), "learning"):
        solver = ARMS[samplers[kind]][1]
        for seed, one in enumerate(trained):
            made = measure(images, gm.Flow(one.model), solver, many, count, scale, seed=60 + seed)
            rows.append(
                {
                    "model": kind,
                    "steps": steps,
                    "seed": seed,
                    "processor_seconds": one.processor_seconds,
                    "held_out": one.held_out,
                    "frechet": made.frechet,
                }
            )
    return rows


def reach(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Training steps until each level of the distance is reached, and flow over diffusion, seed by seed.

    Lines in the logarithms between the lengths; a level is a multiple of the worse side's best mean, and a seed that
    does not come down to it, or is below it from the first, gives no number.
    """
    best = max(
        min(
            _mean([r["frechet"] for r in rows if (r["model"], r["steps"]) == (kind, n)])
            for n in {r["steps"] for r in rows}
        )
        for kind in KINDS
    )
    found = []
    for times in LEVELS:
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for kind in KINDS:
            for seed in sorted({r["seed"] for r in rows}):
                own = sorted((r["steps"], r["frechet"]) for r in rows if (r["model"], r["seed"]) == (kind, seed))
                taken[kind].append(_falls_to(times * best, own))
        ratios = [f / d for f, d in zip(taken["flow"], taken["diffusion"], strict=True) if math.isfinite(f / d)]
        ratio = interval(ratios, log=True)._asdict() if ratios else None
        clean = {kind: [n if math.isfinite(n) else None for n in values] for kind, values in taken.items()}
        found.append({"level": times * best, "times": times, **clean, "ratio": ratio, "repeats": len(ratios)})
    return found


def _falls_to(level: float, curve: Sequence[tuple[int, float]]) -> float:
    for (n, high), (m, low) in pairwise(curve):
        if high >= level >= low:
            return n * (m / n) ** (math.log(high / level) / math.log(high / low))
    return math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _steps(images: Images, models: Mapping[str, list[Trained]], scale: Scale) -> list[dict[str, Any]]:
    """Distance from the data over the number of steps, for each sampler and training."""
    counts = scale.pick((3, 5), (3, 5, 8, 10, 15, 20, 30, 50), (3, 5, 8, 10, 15, 20, 30, 50, 100, 200, 1000))
    rows = []
    for name, (kind, solver) in scale.bar(ARMS.items(), "steps"):
        for n in counts:
            values = [
                measure(images, gm.Flow(one.model), solver, n, _count(images, scale), scale, seed=60 + seed).frechet
                for seed, one in enumerate(models[kind])
            ]
            found = {"values": values, "least": min(values), "greatest": max(values), **interval(values)._asdict()}
            rows.append({"arm": name, "steps": n, **found})
    return rows


def needed(rows: Sequence[Mapping[str, Any]], within: float = 1.05) -> dict[str, dict[str, Any]]:
    """The fewest steps from which a sampler stays within a factor of its own best, and of the best of all."""
    found = {}
    best = min(row["mean"] for row in rows)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = sorted((row["steps"], row["mean"]) for row in rows if row["arm"] == arm)
        mine = min(mean for _, mean in own)
        found[arm] = {"own best": mine, "of its own": _stays(own, within * mine), "of all": _stays(own, within * best)}
    return found


def _stays(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """The first count from which on no mean is above the level."""
    first = None
    for n, mean in reversed(curve):
        if mean > level:
            return first
        first = n
    return first


def _timing(images: Images, scale: Scale) -> dict[str, Any]:
    """A training step, and 20 against 50 steps of sampling; peak memory of both."""
    _, build = network(images, scale)
    rounds, batch = scale.pick(2, 5, 10), scale.pick(4, 64, 128)
    fresh = {kind: _untrained(kind, build, scale) for kind in KINDS}
    shape = (batch, *images.shape)
    step = timed({kind: training(model, shape, 10) for kind, model in fresh.items()}, rounds, scale)
    runs = {
        f"{kind}, {n}": sampling(model.eval(), BOTH[kind], shape, n) for kind, model in fresh.items() for n in (20, 50)
    }
    taken = timed(runs, rounds, scale)
    memory = {
        task: {
            kind: [peak_memory(task, kind, scale.pick(2, 32, 128), scale) for _ in range(scale.pick(1, 2, 3))]
            for kind in KINDS
        }
        for task in ("training", "sampling")
    }
    return {
        "training step": spread(_ratios(step["flow"], step["diffusion"])),
        "20 steps of flow over 50 of diffusion": spread(_ratios(taken["diffusion, 50"], taken["flow, 20"])),
        "20 steps of diffusion over 50": spread(_ratios(taken["diffusion, 50"], taken["diffusion, 20"])),
        "flow over diffusion, 20 steps": spread(_ratios(taken["flow, 20"], taken["diffusion, 20"])),
        "memory": memory,
        "memory ratio": {task: spread(_ratios(m["flow"], m["diffusion"])) for task, m in memory.items()},
        "milliseconds": {name: 1000 * spread(values)["median"] / batch for name, values in taken.items()},
        "training milliseconds": {name: 100 * spread(values)["median"] for name, values in step.items()},
    }


def _untrained(kind: str, build: Any, scale: Scale) -> gm.Predictor:
    from .models import Recipe, predictor

    return predictor(Recipe(kind, "timing", 1), build).to(scale.device)


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def repeatable(images: Images, models: Mapping[str, Trained], scale: Scale) -> list[dict[str, Any]]:
    """Same seed, same image: again, in batches of other sizes, with another seed; greatest differences of a pixel."""
    count = 24
    rows = []
    for name, (kind, solver) in ARMS.items():
        flow = gm.Flow(models[kind].model)

        def draw(seed: int, batch: int, flow: gm.Flow = flow, solver: Solver = solver) -> torch.Tensor:
            return gm.sample(flow, (count, *images.shape), steps=10, solver=solver, seed=seed, batch_size=batch)

        first = draw(5, count)
        gaps = {f"batches of {batch}": float((draw(5, batch) - first).abs().max()) for batch in (1, 7)}
        other = float((draw(6, count) - first).square().mean().sqrt())
        rows.append({"arm": name, "again": float((draw(5, count) - first).abs().max()), **gaps, "another seed": other})
    return rows
