"""E3: the same error in a network that predicts velocity, data or noise.

An error e of the data prediction is one of W e / sigma in the velocity, of the noise prediction -W e / alpha: infinite
at the data, and at the noise. So the run is over [d, 1 - d], from exact samples, and d is a parameter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import genmatch as gm

from .errors import READINGS, diffusion, exact_model, marginal, spoil
from .record import GAMMAS, Scale, fine_gammas, interval
from .theory import GaussianWorld

__all__ = ["kick", "run", "shift"]

SIZE = 0.1
MARGIN = 0.01
MARGINS = (0.1, 0.03, 0.01, 0.003, 0.001)


def kick(world: GaussianWorld, reading: str) -> Any:
    """Velocity error of a unit error of the network's output, as a function of t."""

    def of(t: Tensor) -> Tensor:
        instant = world.schedule.at(t)
        if reading == "velocity":
            return torch.ones_like(t)
        return instant.wronskian / instant.sigma if reading == "data" else -instant.wronskian / instant.alpha

    return of


def shift(world: GaussianWorld, gamma: float, reading: str, margin: float, *, samples: int, steps: int) -> float:
    """Shift of the mean at 1 - margin per unit of a constant error in the network, between laws under +e and -e.

    In this world the shift is that of every sample, so it has no interval.
    """
    x = marginal(world, margin, samples=samples, seed=0)
    # Equal steps in log(alpha / sigma): both ends are far away.
    far = torch.logit(torch.tensor(1 - margin, dtype=torch.float64))
    times = torch.sigmoid(torch.linspace(-1, 1, steps + 1, dtype=torch.float64) * far)
    model, heun = exact_model(world, reading), gm.solvers.Heun()
    up, down = (
        gm.sample(diffusion(spoil(model, lambda x, t, e=e: e + 0 * x), gamma), x, times=times, solver=heun, seed=0)
        for e in (SIZE, -SIZE)
    )
    return float((up - down).mean() / (2 * SIZE))


def run(scale: Scale) -> dict[str, Any]:
    """Shifts for each parametrisation: over gamma at one margin, and over the margin for gamma 0 and 1."""
    world = GaussianWorld()
    samples, steps = 100, scale.pick(200, 40)
    cases = [(reading, gamma, MARGIN, "gamma") for reading in READINGS for gamma in scale.pick(GAMMAS, (0.0, 1.0))]
    cases += [(r, g, m, "margin") for r in READINGS for g in (0.0, 1.0) for m in scale.pick(MARGINS, (0.1,))]
    points = []
    for reading, gamma, margin, over in scale.bar(cases, "E3"):
        value = abs(shift(world, gamma, reading, margin, samples=samples, steps=steps))
        points.append(
            {"reading": reading, "gamma": gamma, "margin": margin, "over": over, **interval([value])._asdict()}
        )
    settings = {"samples": samples, "steps": steps, "size": SIZE, "margin": MARGIN}
    return {"settings": {**settings, "mean": world.mean, "std": world.std}, "points": points, "lines": lines(world)}


def lines(world: GaussianWorld) -> list[dict[str, Any]]:
    """The closed forms."""
    found: list[dict[str, Any]] = []
    gammas, margins = fine_gammas(), torch.logspace(-3, -1, 41, dtype=torch.float64).tolist()
    for reading in READINGS:
        error = kick(world, reading)
        values = [abs(world.bias(g, "network", error, MARGIN, 1 - MARGIN)) for g in gammas]
        found.append({"reading": reading, "over": "gamma", "x": gammas, "y": values})
        for gamma in (0.0, 1.0):
            values = [abs(world.bias(gamma, "network", error, d, 1 - d)) for d in margins]
            found.append({"reading": reading, "gamma": gamma, "over": "margin", "x": margins, "y": values})
    return found
