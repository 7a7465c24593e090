r"""E4: a wrong initial law. What is left at t = 1 of :math:`KL(q_0\|p_0)`.

A flow carries it along unchanged; noise makes it fall, at the rate of half the variance times the relative Fisher
information. Bounded noise leaves some; the memoryless, infinite at t = 0, leaves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import genmatch as gm
from genmatch.quadrature import integrate

from .errors import exact_model
from .record import GAMMAS, Scale, fine_gammas, interval
from .theory import GaussianWorld, gaussian_kl

__all__ = ["FAMILIES", "left", "run", "safe_memory"]

SHIFT, VARIANCE = 1.0, 2.25  # of the wrong law, in units of the right one
LATE = 0.1  # where the memoryless run of the second kind starts
FAMILIES: dict[str, tuple[Callable[[float], gm.diffusivity.Diffusivity], float]] = {
    "bounded noise, from t = 0": (gm.diffusivity.EndpointSafe, 0.0),
    "memoryless noise, from t = 0.1": (gm.diffusivity.Memoryless, LATE),
    "memoryless noise, from t = 0": (gm.diffusivity.Memoryless, 0.0),
}


def safe_memory(world: GaussianWorld, gamma: float, start: float, end: float) -> float:
    r""":math:`\rho = \exp(-\int\gamma\sigma W/s^2\,dt)` of noise :math:`g^2 = 2\gamma\sigma W`."""

    def rate(t: Tensor) -> Tensor:
        instant = world.schedule.at(t)
        return gamma * instant.sigma * instant.wronskian / world.scale(t) ** 2

    lower, upper = (torch.tensor([v], dtype=torch.float64) for v in (start, end))
    return math.exp(-float(integrate(rate, lower, upper)))


def left(memory: float) -> float:
    """KL at the end: the standardised law is Gaussian, its mean times rho and its variance's excess times rho^2."""
    return gaussian_kl(SHIFT * memory, 1 + (VARIANCE - 1) * memory**2)


def memory_of(world: GaussianWorld, family: str, gamma: float, start: float, end: float) -> float:
    """The share of the start that is left at the end."""
    if "bounded" in family:
        return safe_memory(world, gamma, start, end)
    return float(world.memory(end, torch.tensor(start, dtype=torch.float64), gamma))


def measured(world: GaussianWorld, family: str, gamma: float, *, samples: int, steps: int, seed: int) -> float:
    """KL of the Gaussian with the samples' mean and variance from the data."""
    noise, start = FAMILIES[family]
    t = torch.tensor(start, dtype=torch.float64)
    y = SHIFT + math.sqrt(VARIANCE) * gm.random.Draws(seed, samples).fork(200).normal((samples, 1), torch.float64)
    x = world.schedule(t)[0] * world.mean + world.scale(t) * y
    model = exact_model(world)
    process = gm.Diffusion(model, noise(gamma)) if gamma else gm.Flow(model)
    end = (gm.sample(process, x, times=gm.grids.uniform(steps, start), seed=seed) - world.mean) / world.std
    return gaussian_kl(float(end.mean()), float(end.var()))


def run(scale: Scale) -> dict[str, Any]:
    """KL at t = 1 for each family of noise."""
    world = GaussianWorld()
    samples, steps = scale.pick((10000, 100), (1000, 20))
    seeds = range(scale.pick(5, 2))
    gammas = scale.pick(GAMMAS, (0.0, 1.0))
    cases = [(family, gamma) for family in FAMILIES for gamma in gammas]
    points = []
    for family, gamma in scale.bar(cases, "E4"):
        found = [measured(world, family, gamma, samples=samples, steps=steps, seed=seed) for seed in seeds]
        points.append({"family": family, "gamma": gamma, **interval(found)._asdict()})
    fine = fine_gammas(101)
    lines = [
        {"family": f, "x": fine, "y": [left(memory_of(world, f, g, FAMILIES[f][1], 1.0)) for g in fine]}
        for f in FAMILIES
    ]
    settings = {"samples": samples, "steps": steps, "seeds": len(seeds), "shift": SHIFT, "variance": VARIANCE}
    return {"settings": {**settings, "start_kl": left(1.0)}, "points": points, "lines": lines}
