"""One run of a sampler: its images, their distance from the data, how bent their ways were, and what it cost."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

import genmatch as gm
from genmatch.generators import Operator
from genmatch.solvers import Field, Solver

from .images import Images
from .scale import Scale

__all__ = ["Outcome", "evaluations", "measure"]


class Outcome(NamedTuple):
    """What a sampler gave."""

    images: Tensor
    frechet: float
    curvatures: Tensor  # of each traced sample, empty where none was
    evaluations: int  # of the network, for each image
    seconds_per_image: float  # of processor time on a CPU, of the clock on a GPU


class Trace:
    """Keeps the first states of a batch, step by step."""

    def __init__(self, x: Tensor, count: int) -> None:
        self.count = count
        self.states = [x[:count]]

    def __call__(self, i: int, t: float, x: Tensor) -> None:
        self.states.append(x[: self.count].clone())  # a view would keep every whole state


def measure(
    images: Images,
    generator: Operator,
    solver: Solver,
    steps: int,
    count: int,
    scale: Scale,
    *,
    seed: int = 0,
    traced: int = 0,
    batch_size: int = 250,
) -> Outcome:
    """Sample ``count`` images from the noise that ``seed`` gives, the same for every generator and solver.

    The first ``traced`` of them have the curvature of their trajectories taken.
    """
    noise = gm.Draws(seed, count, device=scale.device).normal((count, *images.shape))
    parts: list[Tensor] = []
    bent: list[Tensor] = []
    clock = time.process_time if scale.device == "cpu" else time.perf_counter
    begin = clock()
    for first in range(0, count, batch_size):
        x = noise[first : first + batch_size]
        follow = max(0, min(traced - first, len(x)))
        trace = Trace(x, follow) if follow else None
        parts.append(gm.sample(generator, x, steps=steps, solver=solver, seed=seed, first_index=first, callback=trace))
        if trace is not None:
            bent.append(gm.metrics.curvature(torch.stack(trace.states)).values)
    scale.wait()
    seconds = (clock() - begin) / count
    made = torch.cat(parts)
    spent = evaluations(generator, solver, noise, steps)
    return Outcome(made, images.frechet(made), torch.cat(bent) if bent else torch.empty(0), spent, seconds)


def evaluations(generator: Operator, solver: Solver, like: Tensor, steps: int) -> int:
    """How often the network is asked in a run on a grid; 0 for solvers that choose their own steps."""
    plan = solver.plan(Field(generator, like), torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return solver.evaluations(plan)
