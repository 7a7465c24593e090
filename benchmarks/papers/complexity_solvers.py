"""How far a sampler of few steps ends from the exact solution of its own model's equation, and how bent the way is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import genmatch as gm
from genmatch.generators import Operator
from genmatch.schedules import Schedule
from genmatch.solvers import Solver

from .measure import evaluations
from .scale import Scale

__all__ = [
    "ACCELERATED",
    "GRIDS",
    "STEPS",
    "Solution",
    "accelerated",
    "adaptive",
    "bends",
    "errors",
    "in_coordinates",
    "solve",
]

STEPS = (5, 10, 20)
TOLERANCES = (0.1, 0.01, 0.001)
s = gm.solvers
# One evaluation a step, but for Heun, which gets half as many steps: all are compared at equal evaluations.
ACCELERATED: dict[str, Callable[[], Solver]] = {
    "DDIM": s.DDIM,
    "Heun": s.Heun,
    "DPM-Solver++ 2M": lambda: s.DPMSolver(2),
    "UniPC 2": lambda: s.UniPC(2),
    "Exponential 2": lambda: s.Exponential(2),
}
# The gain over Euler, by steps: at N = 5, 10, 20, and Euler with the evaluations that the others cost.
CLASSICAL: dict[str, tuple[Callable[[], Solver], tuple[int, ...]]] = {
    "Euler": (s.Euler, (5, 10, 20, 40, 80)),
    "Heun": (s.Heun, (5, 10, 20)),
    "RK4": (s.RK4, (5, 10, 20)),
    "Exponential 2": (lambda: s.Exponential(2), (5, 10, 20, 40, 80)),
}


def _schedule(generator: Operator) -> Schedule:
    return generator.path.schedule  # type: ignore[attr-defined]  # of a Gaussian path


def _log_snr(generator: Operator, steps: int) -> Tensor:
    return gm.grids.log_snr(_schedule(generator), steps)


GRIDS: dict[str, Callable[[Operator, int], Tensor]] = {
    "uniform": lambda generator, steps: gm.grids.uniform(steps),
    "log-SNR": _log_snr,
}


class Solution(NamedTuple):
    """The ends of the solution from some noise, and how far a run of half as many steps is from them."""

    noise: Tensor
    ends: Tensor
    doubt: float


def distance(x: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean square of the difference of two sets of images, by pixel: of all images, and of the median image."""
    squares = (x - y).double().square().flatten(1).mean(1)
    return {"error": float(squares.mean().sqrt()), "median": float(squares.median().sqrt())}


def solve(generator: Operator, shape: tuple[int, ...], count: int, scale: Scale, *, seed: int = 0) -> Solution:
    """The solution by many small steps of order 2.

    Adaptive steps to a tolerance take more: a network that is told the time by fast waves is rough in time.
    """
    noise = gm.Draws(seed, count, device=scale.device).normal((count, *shape))
    steps, some = scale.pick(30, 200, 1000), noise[: max(1, count // 4)]
    ends = gm.sample(generator, noise, solver=s.Exponential(2), steps=steps)
    half = gm.sample(generator, some, solver=s.Exponential(2), steps=steps // 2)
    return Solution(noise, ends, distance(half, ends[: len(some)])["error"])


def errors(generator: Operator, solution: Solution) -> list[dict[str, Any]]:
    """Euler, Heun, RK4 and Exponential on equal steps in t."""
    rows = []
    for name, (solver, counts) in CLASSICAL.items():
        for steps in counts:
            times = gm.grids.uniform(steps)
            rows.append({"solver": name, "steps": steps, **_run(generator, solution, solver(), times)})
    return rows


def adaptive(generator: Operator, solution: Solution) -> list[dict[str, Any]]:
    """Dopri5 to some tolerances, each beside Euler with as many evaluations."""
    rows = []
    for tolerance in TOLERANCES:
        solver = s.Dopri5(rtol=tolerance, atol=tolerance)
        ends, report = gm.sample(generator, solution.noise, solver=solver, report=True)
        spent = float(report.evaluations.double().mean())
        plain = gm.sample(generator, solution.noise, solver=s.Euler(), steps=round(spent))
        found = {"solver": "Dopri5", "tolerance": tolerance, "evaluations": spent, **distance(ends, solution.ends)}
        rows.append({**found, "euler": distance(plain, solution.ends)["error"]})
    return rows


def accelerated(generator: Operator, solution: Solution) -> list[dict[str, Any]]:
    """The solvers of :data:`ACCELERATED` on every grid, at 5, 10 and 20 evaluations (Heun at 10 and 20)."""
    rows = []
    for name, solver in ACCELERATED.items():
        for steps in STEPS:
            if (taken := steps_of(name, steps)) is None:
                continue
            for grid, points in GRIDS.items():
                found = _run(generator, solution, solver(), points(generator, taken))
                rows.append({"solver": name, "budget": steps, "steps": taken, "grid": grid, **found})
    return rows


def steps_of(name: str, budget: int) -> int | None:
    """Steps of a solver of :data:`ACCELERATED` for a number of evaluations; None where they do not come out even."""
    if name != "Heun":
        return budget
    return budget // 2 if budget % 2 == 0 else None


def _run(generator: Operator, solution: Solution, solver: Solver, times: Tensor) -> dict[str, Any]:
    ends = gm.sample(generator, solution.noise, solver=solver, times=times)
    spent = evaluations(generator, solver, solution.noise, len(times) - 1)
    return {"evaluations": spent, **distance(ends, solution.ends)}


def bends(generator: Operator, shape: tuple[int, ...], count: int, scale: Scale) -> dict[str, Any]:
    """Curvature of solutions in the coordinates of the model's own path, and in those of both kinds.

    ``median`` and its quartiles over samples; ``in`` holds medians by kind of path.
    """
    noise = gm.Draws(0, count, device=scale.device).normal((count, *shape))
    steps = scale.pick(10, 50, 200)
    parts = [
        gm.sample(generator, some, solver=s.Exponential(2), steps=steps, trajectory=True) for some in noise.split(100)
    ]
    states = torch.cat(parts, 1)
    own = gm.metrics.curvature(states)
    low, high = own.values.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64, device=own.values.device)).tolist()
    moved = in_coordinates(generator, states)
    medians = {kind: gm.metrics.curvature(path).median for kind, path in moved.items()}
    return {"median": own.median, "mean": own.mean, "low": low, "high": high, "steps": steps, "in": medians}


def in_coordinates(generator: Operator, states: Tensor) -> Mapping[str, Tensor]:
    r"""One trajectory ``(N + 1, B, *S)`` as both kinds of path show it.

    Paths of the same signal-to-noise ratio differ by a factor: :math:`x/(\alpha+\sigma)` is the state on CondOT, the
    flow's path, and :math:`x/\sqrt{\alpha^2+\sigma^2}` that on a variance-preserving one, the diffusion's.
    """
    now = _schedule(generator).at(torch.linspace(0, 1, len(states), dtype=torch.float64))
    shape = (-1, *[1] * (states.ndim - 1))
    scales = {"flow": now.alpha + now.sigma, "diffusion": (now.alpha**2 + now.sigma**2).sqrt()}
    return {kind: states / scale.to(states).reshape(shape) for kind, scale in scales.items()}
