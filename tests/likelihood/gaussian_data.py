"""Independent Gaussian data of any shape, exact networks of every kind for them, and the density of their flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import genmatch as gm

KINDS = {
    "velocity": gm.predict.Velocity,
    "data": gm.predict.Data,
    "noise": gm.predict.Noise,
    "score": gm.predict.Score,
    "v": gm.predict.V,
    "karras": gm.predict.Karras,
}
SIGMA_DATA = 0.5


class Exact(nn.Module):
    """What a perfect network of a kind returns for data N(mean, variance), each value on its own."""

    def __init__(self, kind: str, schedule: gm.Schedule, mean: Tensor, variance: Tensor) -> None:
        super().__init__()
        self.kind, self.schedule, self.calls = kind, schedule, 0
        self.register_buffer("mean", mean)
        self.register_buffer("variance", variance)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        self.calls += 1
        alpha, sigma, alpha_dot, sigma_dot = (
            value.reshape(-1, *[1] * (x.ndim - 1)) for value in list(self.schedule.at(t))[1:]
        )
        mean = self.mean if shift is None else self.mean + shift.reshape(-1, *[1] * (x.ndim - 1))
        factor = 1.0
        if self.kind == "karras":  # fed c_in x / alpha
            factor = (sigma**2 + alpha**2 * SIGMA_DATA**2) ** 0.5
        # Slope and offset first, and one product and sum with the state, whose derivatives are dear.
        spread = alpha**2 * self.variance + sigma**2
        slope, lost = alpha * self.variance / spread, sigma / spread
        data, noise = (slope, mean - slope * alpha * mean), (lost, -lost * alpha * mean)
        p, q, c = {
            "velocity": (alpha_dot, sigma_dot, 1.0),
            "data": (1.0, 0.0, 1.0),
            "noise": (0.0, 1.0, 1.0),
            "score": (0.0, -1.0, sigma),
            "v": (-sigma, alpha, 1.0),
            "karras": (sigma, -alpha * SIGMA_DATA**2, SIGMA_DATA * (sigma**2 + alpha**2 * SIGMA_DATA**2) ** 0.5),
        }[self.kind]
        return (p * data[0] + q * noise[0]) / c * factor * x + (p * data[1] + q * noise[1]) / c


class World:
    """Data N(mean, variance), both of the shape S of one sample."""

    def __init__(self, shape: tuple[int, ...] = (3,)) -> None:
        size = math.prod(shape)
        self.mean = (torch.arange(size, dtype=torch.float64).reshape(shape) - 1) / max(size, 2)
        self.variance = 0.2 + torch.linspace(0, 1, size, dtype=torch.float64).reshape(shape) / 2

    def predictor(self, schedule: gm.Schedule, kind: str = "velocity") -> gm.Predictor:
        network = Exact(kind, schedule, self.mean, self.variance)
        return KINDS[kind](network, gm.GaussianPath(schedule), time=gm.predict.clocks.t)

    def flow(self, schedule: gm.Schedule, kind: str = "velocity") -> gm.Flow:
        return gm.Flow(self.predictor(schedule, kind))

    def states(self, schedule: gm.Schedule, t: float, count: int = 5) -> Tensor:
        """States at time t, a little wider than the law."""
        mean, spread = self.law(schedule, t)
        z = torch.randn(count, *self.mean.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        return mean + 1.2 * spread.sqrt() * z

    def law(self, schedule: gm.Schedule, t: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of the states at time t."""
        alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
        return alpha * self.mean, alpha**2 * self.variance + sigma**2

    def log_prob(self, schedule: gm.Schedule, x: Tensor, t: float = 1.0) -> Tensor:
        """log p_t."""
        return normal(x, *self.law(schedule, t))

    def carried(self, schedule: gm.Schedule, x: Tensor, t: float, stop: float) -> Tensor:
        """The density at time t of what the flow makes of the scaled source at ``stop``: quantiles stay quantiles."""
        mean, spread = self.law(schedule, t)
        mean0, spread0 = self.law(schedule, stop)
        alpha, sigma = schedule(torch.tensor(stop, dtype=torch.float64))
        x0 = mean0 + (spread0 / spread).sqrt() * (x - mean)
        stretch = 0.5 * (spread0 / spread).log().sum()
        return normal(x0, torch.zeros(()), (alpha**2 + sigma**2).expand(self.mean.shape)) + stretch


def normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The log-density of independent normals, ``(B,)``."""
    logs = -0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())
    return logs.reshape(len(x), -1).sum(1)


class Linear(nn.Module):
    """x -> A x, at all times; it counts its calls."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix, self.calls = nn.Parameter(matrix), 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return (x.flatten(1) @ self.matrix.T).reshape(x.shape)


def linear_log_prob(matrix: Tensor, x: Tensor) -> Tensor:
    """The density of what x -> A x makes of standard normals in a unit of time: by the matrix exponential."""
    back = torch.matrix_exp(-matrix)
    flat = x.flatten(1) @ back.T
    return normal(flat, torch.zeros(()), torch.ones(matrix.shape[:1], dtype=x.dtype)) - torch.trace(matrix)


def linear_flow(matrix: Tensor, source=None) -> gm.Flow:
    return gm.Flow(gm.predict.Velocity(Linear(matrix), gm.GaussianPath(source=source)))
