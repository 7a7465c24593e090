"""E1: a disturbed density, through the backward heat equation, the flow and the generative diffusion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

from genmatch.generators import Operator

from .errors import diffusion, exact_model
from .record import Scale, interval
from .theory import GaussianWorld, heat_growth, ornstein_damping

__all__ = ["evolve", "run", "undo_heat"]

START = 0.2
GAMMAS = (0.0, 0.5, 1.0, 2.0)
WAVES = (1.0, 2.0, 3.0, 4.0)


def evolve(operator: Operator, density: Tensor, x: Tensor, start: float, steps: int, *, score: bool = True) -> Tensor:
    r"""Densities on a grid by the forward equation :math:`\partial_t p = -(a p)' + \tfrac12 g^2 p''`.

    ``(steps + 1, n, K)``, from K densities ``(n, K)`` at ``start``, which may be disturbances: the equation is linear.
    Finite volumes, central fluxes, Crank-Nicolson in time: second order, and for the flow without numerical damping.
    Drift and variance are the library's triplet at the faces. ``score=False`` drops the part of the drift that undoes
    the noise, for a negative control.
    """
    h = float(x[1] - x[0])
    faces = (x[:-1] + x[1:])[:, None] / 2
    times = torch.linspace(start, 1.0, steps + 1, dtype=torch.float64)
    states, p = [density], density.numpy()
    ((_, flow), *_) = operator.terms
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        triplet = operator(faces, (t + s) / 2)
        drift = (triplet if score else flow(faces, (t + s) / 2)).drift
        spread = 0.0 if triplet.variance is None else float(triplet.variance) / (2 * h)
        up, down = (drift[:, 0] / 2 + spread).numpy(), (drift[:, 0] / 2 - spread).numpy()
        # Flux through the face right of cell i: up_i p_i + down_i p_{i+1}; none through the ends of the grid.
        bands = np.zeros((3, len(p)))
        bands[0, 1:], bands[2, :-1] = -down, up
        bands[1, :-1] -= up
        bands[1, 1:] += down
        bands *= (s - t) / (2 * h)
        right = p + bands[1, :, None] * p
        right[:-1] += bands[0, 1:, None] * p[1:]
        right[1:] += bands[2, :-1, None] * p[:-1]
        bands = -bands
        bands[1] += 1
        p = solve_banded((1, 1), bands, right)
        states.append(torch.from_numpy(p))
    return torch.stack(states)


def undo_heat(wavenumber: int, time: float, points: int = 14) -> float:
    """Growth of a wave on a circle when a heat kernel, as a matrix, is undone by solving with it."""
    x = 2 * math.pi * torch.arange(points, dtype=torch.float64) / points
    turns = 2 * math.pi * torch.arange(-8, 9, dtype=torch.float64)
    distance = x[:, None, None] - x[None, :, None] + turns
    kernel = torch.exp(-(distance**2) / (2 * time)).sum(-1)
    wave = torch.cos(wavenumber * x)
    return float(torch.linalg.solve(kernel / kernel.sum(1, keepdim=True), wave).norm() / wave.norm())


def disturbance(world: GaussianWorld, x: Tensor, wavenumber: float) -> Tensor:
    """p (cos ky - e^{-k^2/2}) at the start, y the standardised state: no mass, and the size of k is in units of s."""
    t = torch.tensor(START, dtype=torch.float64)
    y = (x - world.schedule(t)[0] * world.mean) / world.scale(t)
    wave = torch.cos(wavenumber * y) - math.exp(-(wavenumber**2) / 2)
    return wave * torch.exp(-(y**2) / 2) / (math.sqrt(2 * math.pi) * world.scale(t))


def run(scale: Scale) -> dict[str, Any]:
    """Sizes of the disturbance at t = 1, in units of that at the start, and along the way for k = 2."""
    world = GaussianWorld(mean=1.0, std=1.0)
    cells, steps = scale.pick((2401, 800), (601, 60))
    x = torch.linspace(-8, 9, cells, dtype=torch.float64)
    model, t = exact_model(world), torch.tensor(START, dtype=torch.float64)
    heat_time = float((world.schedule(t)[1] / world.scale(t)) ** 2)
    points: list[dict[str, Any]] = [
        {"process": "heat", "k": k, **interval([undo_heat(k, heat_time)])._asdict()}
        for k in scale.pick((1, 2, 3, 4), (1, 2))
    ]
    traces, waves = [], scale.pick(WAVES, (2.0,))
    for gamma in scale.bar(scale.pick(GAMMAS, (0.0, 1.0)), "E1 grids"):
        start = torch.stack([disturbance(world, x, k) for k in waves], 1)
        sizes = evolve(diffusion(model, gamma), start, x, START, steps).abs().sum(1)
        share = sizes / sizes[0]
        for k, final in zip(waves, share[-1].tolist(), strict=True):
            points.append({"process": f"gamma {gamma:g}", "gamma": gamma, "k": k, **interval([final])._asdict()})
        every = steps // 10
        times = torch.linspace(START, 1, steps + 1, dtype=torch.float64)[::every].tolist()
        traces.append({"gamma": gamma, "t": times, "share": share[::every, waves.index(2.0)].tolist()})
    return {
        "settings": {"mean": world.mean, "std": world.std, "start": START, "cells": cells, "steps": steps},
        "points": points,
        "traces": traces,
        "lines": lines(world, heat_time),
    }


def lines(world: GaussianWorld, heat_time: float) -> list[dict[str, Any]]:
    """The closed forms: over k at t = 1, and over t for k = 2."""
    waves = torch.linspace(0.5, 4, 71, dtype=torch.float64).tolist()
    start = torch.tensor(START, dtype=torch.float64)
    found: list[dict[str, Any]] = [
        {"process": "heat", "over": "k", "x": waves, "y": [heat_growth(k, heat_time) for k in waves]}
    ]
    times = torch.linspace(START, 1, 81, dtype=torch.float64).tolist()
    for gamma in GAMMAS:
        memory = float(world.memory(1.0, start, gamma))
        kept = [float(world.memory(s, start, gamma)) for s in times]
        sizes = ([ornstein_damping(k, memory) for k in waves], [ornstein_damping(2.0, rho) for rho in kept])
        for over, x, y in (("k", waves, sizes[0]), ("t", times, sizes[1])):
            found.append({"process": f"gamma {gamma:g}", "gamma": gamma, "over": over, "x": x, "y": y})
    return found
