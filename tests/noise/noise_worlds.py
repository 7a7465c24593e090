"""Laws on the line known in closed form, and runs of solvers on them without Monte Carlo.

The world is a mixture of normals on a Gaussian path, with density, score and velocity written out here; the generators
under test read them through predictors. A run is propagated backwards: the mean of f after a step is an integral over
one normal, by Gauss-Hermite nodes, of a spline of f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import Field, Solver

MEANS, VARIANCES, WEIGHTS = (-1.2, 0.9), (0.3, 0.15), (0.4, 0.6)
GRID = torch.linspace(-9, 9, 361, dtype=torch.float64)[:, None]
STEP = (GRID[1] - GRID[0]).item()
TESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sine": lambda x: torch.sin(x.squeeze(-1) + 0.3),
    "square": lambda x: x.squeeze(-1) ** 2,
    "step": lambda x: torch.tanh(2 * x.squeeze(-1) - 0.5),
    "bump": lambda x: torch.exp(-((x.squeeze(-1) - 0.7) ** 2)),
}


class Mixture:
    """The mixture on a Gaussian path, in one dimension."""

    def __init__(self, schedule: gm.Schedule) -> None:
        self.schedule, self.path = schedule, gm.GaussianPath(schedule)
        self.model = gm.worlds.GaussianMixture(
            torch.tensor(MEANS)[:, None], torch.tensor(VARIANCES)[:, None, None], torch.tensor(WEIGHTS)
        ).predictor(self.path)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t, written out; ``(B,)``."""
        alpha, sigma = (v.reshape(-1, 1) for v in self.schedule(t))
        logs = [
            math.log(weight)
            - (x - alpha * mean) ** 2 / (2 * (alpha**2 * variance + sigma**2))
            - 0.5 * torch.log(2 * math.pi * (alpha**2 * variance + sigma**2))
            for mean, variance, weight in zip(MEANS, VARIANCES, WEIGHTS, strict=True)
        ]
        return torch.stack(logs).logsumexp(0).squeeze(-1)

    def density(self, t: float) -> Tensor:
        """p_t on the grid."""
        return self.log_density(GRID, torch.tensor(t, dtype=torch.float64)).exp()

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """p_t and its time derivative on the grid."""
        time = torch.tensor(t, dtype=torch.float64)
        return torch.func.jvp(lambda s: self.log_density(GRID, s).exp(), (time,), (torch.ones_like(time),))


def residual(operator: Any, law: tuple[Tensor, Tensor], t: float, speed: float | None = None) -> float:
    """The largest residual of the forward equation, relative to <p_t, |L f|>."""
    density, rate = law
    speed = operator.speed_at(t) if speed is None else speed
    triplet, worst = operator(GRID, t), 0.0
    for function in TESTS.values():
        value = triplet.apply(function, GRID)
        moved, expected = (density * value).sum(), speed * (rate * function(GRID)).sum()
        worst = max(worst, ((moved - expected).abs() / (density * value.abs()).sum()).item())
    return worst


class Given:
    """The draws of a step, with given normals."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def fork(self, stream: int) -> Given:
        return self

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return self.z


def backward(operator: Any, solver: Solver, times: Tensor, function: Callable[[Tensor], Tensor], nodes: int = 12):
    """Mean of f at the last time, as a function of the state at the first, on the grid."""
    places, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = torch.tensor(weights / weights.sum())
    z = torch.tensor(places).repeat(len(GRID))[:, None]
    x = GRID.repeat_interleave(nodes, 0)
    field = Field(operator, GRID)
    values = function(GRID)
    with torch.no_grad():
        for c in reversed(solver.plan(field, times)):
            moved, _ = solver.step(field, x, c, Given(z), solver.start(field, x))
            spline = CubicSpline(GRID[:, 0].numpy(), values.numpy())
            after = torch.tensor(spline(moved[:, 0].clamp(GRID[0, 0], GRID[-1, 0]).numpy()))
            values = (after.reshape(-1, nodes) * weights).sum(1)
    return values


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order of convergence: minus the slope of log error against log steps."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x = x - x.mean()
    return -(x @ (y - y.mean()) / (x @ x)).item()


class Still(nn.Module):
    """The velocity of a law that does not move."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x)


def still() -> gm.Predictor:
    """N(0, 1) data on the quarter circle: p_t is N(0, 1) at all times, and the velocity is 0."""
    return gm.predict.Velocity(Still(), gm.GaussianPath(gm.schedules.Cosine()))


def bell(x: Tensor, t: Any) -> Tensor:
    """A variance with a bump in the middle."""
    return 0.5 + 1.5 * torch.exp(-x.square())


def bell_slope(x: Tensor) -> Tensor:
    """Its derivative, by hand."""
    return -3 * x * torch.exp(-x.square())


class Careless(gm.Generator):
    """State-dependent noise with the half score, and without half the divergence: the planted bug."""

    speed = 0.0
    additive = False

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        variance = bell(x, t)
        return gm.Triplet(drift=0.5 * variance * prediction.score, variance=variance)
