"""Part 5: jumps, and jumps with a flow, beside flow and diffusion on digits: the ordering of arXiv 2410.20587, Table 3.

One body for all: a velocity network, a network of jump rates with a head of 27 bins, and one of both heads, trained on
the sum of their losses. A sum of flow and jump is made of the two heads of the last (``joint``, as in the paper) or of
two networks that were trained apart (``apart``). All images are rounded to the 17 grey levels of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import genmatch as gm
from genmatch.generators import Operator
from genmatch.solvers import Solver

from .images import Images
from .scale import Scale
from .superposition_models import calls, digits, frechet_of, levels, made, summary

__all__ = ["GRIDS", "PAPER", "arms", "best", "run"]

PAPER = {"jump": 4.23, "flow": 2.94, "jump + flow": 2.49, "flow, order 2": 2.48, "jump + flow, mixed": 2.36}


def late(steps: int) -> Tensor:
    """Equal steps in -log(1 - t) up to t = 0.98, then one to the end: as many jumps in each."""
    return torch.cat([gm.grids.hazard(steps - 1, stop=0.98), torch.ones(1, dtype=torch.float64)])


GRIDS = {"equal": gm.grids.uniform, "hazard": late}
MAIN = ("flow", "jump", "jump + flow, joint", "jump + flow, apart")  # on both grids, and ranked
Arm = tuple[
    Sequence[Operator], Solver, int
]  # one process a seed, its solver, and how many of its steps are one of Euler's


def arms(velocity: list[Any], jump: list[Any], joint: list[Any]) -> dict[str, Arm]:
    """Processes by name: as many network calls each, where the bodies are one."""
    euler, flows, jumps = gm.solvers.Euler(), [gm.Flow(m) for m in velocity], [gm.Jump(m) for m in jump]
    apart = [0.5 * f + 0.5 * j for f, j in zip(flows, jumps, strict=True)]
    together = [0.5 * gm.Flow(pair[0]) + 0.5 * gm.Jump(pair[1]) for pair in joint]
    return {
        "flow": (flows, euler, 1),
        "jump": (jumps, euler, 1),
        "jump + flow, joint": (together, euler, 1),
        "jump + flow, apart": (apart, euler, 1),
        "jump + 3 flow, joint": ([0.75 * gm.Flow(pair[0]) + 0.25 * gm.Jump(pair[1]) for pair in joint], euler, 1),
        "3 jump + flow, joint": ([0.25 * gm.Flow(pair[0]) + 0.75 * gm.Jump(pair[1]) for pair in joint], euler, 1),
        "flow of the joint network": ([gm.Flow(pair[0]) for pair in joint], euler, 1),
        "jump of the joint network": ([gm.Jump(pair[1]) for pair in joint], euler, 1),
        "diffusion": ([gm.Diffusion(m) for m in velocity], gm.solvers.Exponential(1), 1),
        "flow, order 2": (flows, gm.solvers.Heun(), 2),
        "jump, order 2": (jumps, gm.solvers.TwoEvent(), 2),
        "jump + flow, order 2": (together, gm.solvers.Strang(gm.solvers.Midpoint()), 6),
    }


def best(points: list[dict[str, Any]], arm: str, steps: int) -> dict[str, Any]:
    """The record of an arm on the grid that has the least mean distance: each arm chooses among the same grids."""
    rows = [p for p in points if p["arm"] == arm and p["steps"] == steps and p["mean"] is not None]
    return min(rows, key=lambda p: p["mean"])


def ranking(points: list[dict[str, Any]], steps: int, names: tuple[str, ...]) -> dict[str, Any]:
    """The arms from best to worst, and in how many seeds each pair of neighbours ranks as the means do."""
    found = sorted((best(points, name, steps) for name in names), key=lambda p: p["mean"])
    agreeing = [
        sum(a < b for a, b in zip(one["values"], other["values"], strict=True)) for one, other in pairwise(found)
    ]
    return {"steps": steps, "order": [p["arm"] for p in found], "means": [p["mean"] for p in found], "seeds": agreeing}


def run(images: Images, scale: Scale) -> dict[str, Any]:
    """Distances of all arms, on each grid and number of steps, and their order."""
    found, search = {}, {}
    for kind in ("flow", "jump", "joint"):
        found[kind], search[kind] = digits(images, scale, kind, longer=4)
    processes = arms(*([t.model for t in found[kind]] for kind in ("flow", "jump", "joint")))
    count, steps = scale.pick(20, 300, 10000), scale.pick((8,), (12, 24, 72), (12, 24, 48, 96, 192, 384))
    points = []
    for name, (several, solver, cost) in processes.items():
        for grid, make in GRIDS.items() if name in MAIN else [("equal", GRIDS["equal"])]:
            for n in scale.bar(steps, f"{name}, {grid}"):
                times = make(n // cost)
                drawn = [
                    made(images, operator, count, scale, times=times, solver=solver, seed=seed)
                    for seed, operator in enumerate(several)
                ]
                seconds = sorted(d.seconds for d in drawn if d)
                points.append(
                    {
                        "arm": name,
                        "grid": grid,
                        "steps": n,
                        **summary([frechet_of(images, d, levels) for d in drawn]),
                        "unrounded": summary([frechet_of(images, d) for d in drawn]),
                        "calls": calls(several[0], images, times, solver),
                        "milliseconds": 1000 * seconds[len(seconds) // 2] if seconds else None,
                    }
                )
    return {
        "search": search,
        "paper": PAPER,
        "floor": images.frechet(levels(images.test[:297])),
        "count": count,
        "parameters": {kind: several[0].parameters for kind, several in found.items()},
        "training": {kind: [t.processor_seconds for t in several] for kind, several in found.items()},
        "points": points,
        "rankings": [ranking(points, n, MAIN) for n in steps],
    }
