"""The solvers that are compared, by family, and how many steps of each fit a number of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

import genmatch as gm
from genmatch.solvers import Field, Solver

__all__ = ["FAMILIES", "Run", "steps_for"]

s = gm.solvers
# Each name is a function of nothing: solvers are cheap to make, and some refuse some models.
FAMILIES: Mapping[str, Mapping[str, Callable[[], Solver]]] = {
    "Runge-Kutta": {
        "Euler": s.Euler,
        "Midpoint": s.Midpoint,
        "Heun": s.Heun,
        "Ralston": s.Ralston,
        "Bogacki-Shampine 3": s.BogackiShampine,
        "RK4": s.RK4,
        "Dormand-Prince 5": s.DormandPrince,
    },
    "multistep": {
        "Exponential 1 (DDIM)": lambda: s.Exponential(1),
        "Exponential 2": lambda: s.Exponential(2),
        "Exponential 3": lambda: s.Exponential(3),
        "Adams-Bashforth 2": lambda: s.AdamsBashforth(2),
        "Adams-Bashforth 4": lambda: s.AdamsBashforth(4),
    },
    "published": {
        "DPM-Solver++ 2M": lambda: s.DPMSolver(2),
        "DPM-Solver++ 3M": lambda: s.DPMSolver(3),
        "DPM-Solver-3": lambda: s.DPMSolverSingle(3),
        "UniPC 2": lambda: s.UniPC(2),
        "UniPC 3": lambda: s.UniPC(3),
        "DEIS 3": lambda: s.DEIS(3),
        "iPNDM 4": lambda: s.IPNDM(4),
    },
}
MOST = 400  # steps that are looked at


class Run(NamedTuple):
    """Steps of a solver, and what they cost."""

    steps: int
    evaluations: int


def steps_for(solver: Solver, field: Field, start: float, budget: int) -> Run | None:
    """As many equal steps as a budget of evaluations allows; ``None`` if it allows not even one."""
    best = None
    for steps in range(1, min(budget, MOST) + 1):
        times = start + (1 - start) * torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        cost = solver.evaluations(solver.plan(field, times))
        if cost > budget:
            break
        best = Run(steps, cost)
    return best
