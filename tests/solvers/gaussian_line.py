"""A Gaussian law on the line, exact networks of every kind for it, and runs of solvers on it without Monte Carlo.

Everything a generator of a Gaussian world does is affine in the state, so a whole run is an affine map of the first
state and of the normals of its steps. Unit vectors in place of those give its coefficients, and they the exact mean and
variance of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.solvers import Field, Solver

MEAN, VARIANCE = 0.7, 0.25
KINDS = {
    "velocity": gm.predict.Velocity,
    "data": gm.predict.Data,
    "noise": gm.predict.Noise,
    "score": gm.predict.Score,
    "v": gm.predict.V,
    "karras": gm.predict.Karras,
}
SIGMA_DATA = 0.5  # of Karras


class Exact(nn.Module):
    """What a perfect network of a kind returns for data N(MEAN, VARIANCE), each coordinate on its own; it counts."""

    def __init__(self, kind: str, schedule: gm.Schedule) -> None:
        super().__init__()
        self.kind, self.schedule, self.calls = kind, schedule, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        alpha, sigma, alpha_dot, sigma_dot = numbers(self.schedule, t[0].item())
        if self.kind == "karras":  # fed c_in x / alpha
            x = x * (sigma**2 + alpha**2 * SIGMA_DATA**2) ** 0.5
        spread = alpha**2 * VARIANCE + sigma**2
        centred = x - alpha * MEAN
        data, noise = MEAN + alpha * VARIANCE / spread * centred, sigma / spread * centred
        return {
            "velocity": lambda: alpha_dot * data + sigma_dot * noise,
            "data": lambda: data,
            "noise": lambda: noise,
            "score": lambda: -centred / spread,
            "v": lambda: alpha * noise - sigma * data,
            "karras": lambda: (
                (sigma * data - alpha * SIGMA_DATA**2 * noise)
                / (SIGMA_DATA * (sigma**2 + alpha**2 * SIGMA_DATA**2) ** 0.5)
            ),
        }[self.kind]()


def numbers(schedule: gm.Schedule, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma and their derivatives, each by hand."""
    match schedule:
        case gm.schedules.CondOT(sigma_min=least):
            return t, 1 - (1 - least) * t, 1.0, least - 1
        case gm.schedules.Cosine():
            return (
                math.sin(math.pi / 2 * t),
                math.sin(math.pi / 2 * (1 - t)),
                math.pi / 2 * math.cos(math.pi / 2 * t),
                -math.pi / 2 * math.sin(math.pi / 2 * t),
            )
        case gm.schedules.Polynomial(n=n):
            return t**n, 1 - t**n, n * t ** (n - 1), -n * t ** (n - 1)
        case gm.schedules.VP(beta_min=low, beta_max=high):
            r = 1 - t
            total, rate = low * r + (high - low) / 2 * r**2, low + (high - low) * r
            alpha, sigma = math.exp(-total / 2), math.sqrt(-math.expm1(-total))
            return alpha, sigma, alpha * rate / 2, -(alpha**2) * rate / (2 * sigma) if sigma else -math.inf
        case gm.schedules.VE(sigma_min=low, sigma_max=high):
            sigma = high * (low / high) ** t
            return 1.0, sigma, 0.0, sigma * math.log(low / high)
        case gm.schedules.EDM(sigma_min=low, sigma_max=high, rho=rho):
            root, slope = high ** (1 / rho), low ** (1 / rho) - high ** (1 / rho)
            return 1.0, (root + t * slope) ** rho, 0.0, rho * slope * (root + t * slope) ** (rho - 1)
    instant = schedule.at(torch.tensor(t, dtype=torch.float64))
    return instant.alpha.item(), instant.sigma.item(), instant.alpha_dot.item(), instant.sigma_dot.item()


def predictor(schedule: gm.Schedule, kind: str = "data") -> gm.Predictor:
    """The exact predictor of a kind; its network sees t."""
    network = Exact(kind, schedule)
    return KINDS[kind](network, gm.GaussianPath(schedule), time=gm.predict.clocks.t)


def levels(schedule: gm.Schedule, t: float) -> tuple[float, float]:
    """alpha and sigma."""
    return numbers(schedule, t)[:2]


def spread(schedule: gm.Schedule, t: float) -> float:
    """Variance of p_t."""
    alpha, sigma = levels(schedule, t)
    return alpha**2 * VARIANCE + sigma**2


def flow_map(schedule: gm.Schedule, x: Tensor, t: float, s: float) -> Tensor:
    """The state at s of the flow that is at x at t: quantiles stay quantiles."""
    start, stop = levels(schedule, t)[0] * MEAN, levels(schedule, s)[0] * MEAN
    return stop + math.sqrt(spread(schedule, s) / spread(schedule, t)) * (x - start)


def walk(generator: Any, solver: Solver, times: Tensor, x: Tensor, *, draws: Any = None) -> Tensor:
    """The bare loop."""
    field = Field(generator, x)
    plan = solver.plan(field, times)
    numbers = gm.Draws(0, len(x)).steps(len(plan)) if draws is None else draws
    carry = solver.start(field, x)
    for c, now in zip(plan, numbers, strict=True):
        x, carry = solver.step(field, x, c, now, carry)
    return x


def trail(generator: Any, solver: Solver, times: Tensor, x: Tensor) -> Tensor:
    """All states of the bare loop, (steps + 1, B, *S)."""
    field = Field(generator, x)
    states, carry = [x], solver.start(field, x)
    plan = solver.plan(field, times)
    for c, now in zip(plan, gm.Draws(0, len(x)).steps(len(plan)), strict=True):
        x, carry = solver.step(field, states[-1], c, now, carry)
        states.append(x)
    return torch.stack(states)


class Probe:
    """Draws whose normal in step i is 1 for sample 2 + i and 0 for all others."""

    def __init__(self, step: int) -> None:
        self.step = step

    def fork(self, stream: int) -> Probe:
        return self

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        z = torch.zeros(tuple(shape), dtype=dtype)
        z[2 + self.step] = 1
        return z


class Given:
    """The draws of a step, with given normals."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def fork(self, stream: int) -> Given:
        return self

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        return self.z


def transfer(generator: Any, solver: Solver, times: Tensor) -> tuple[float, float, Tensor]:
    """(offset, factor, stds) of the map x -> offset + factor x + sum_i stds_i z_i that a run is."""
    steps = len(times) - 1
    x = torch.zeros(steps + 2, 1, dtype=torch.float64)
    x[1] = 1
    end = walk(generator, solver, times, x, draws=[Probe(i) for i in range(steps)]).flatten()
    return end[0].item(), (end[1] - end[0]).item(), end[2:] - end[0]


def moments(generator: Any, solver: Solver, times: Tensor, mean: float, variance: float) -> tuple[float, float]:
    """Exact mean and variance of a run whose first state has those given."""
    offset, factor, stds = transfer(generator, solver, times)
    return offset + factor * mean, factor**2 * variance + (stds**2).sum().item()


def law(schedule: gm.Schedule, t: float) -> tuple[float, float]:
    """Mean and variance of p_t."""
    return levels(schedule, t)[0] * MEAN, spread(schedule, t)


def order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the slope of log error against log steps, by least squares."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x = x - x.mean()
    return -(x @ (y - y.mean()) / (x @ x)).item()
