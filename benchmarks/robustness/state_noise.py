"""Noise that depends on the state against noise that does not, of the same total, on data of growing complexity.

Trained velocity networks, and Euler-Maruyama steps for all: the end-point solver, which is that where the noise is the
same everywhere. ``bent`` puts noise where the trajectories of the flow bend, ``straight`` keeps it away from there.
"""

from __future__ import annotations

from typing import Any

import torch

import genmatch as gm
from genmatch.generators import Operator

from .record import Scale, interval
from .trained import Recipe, Task, digits, moons, plane, train

__all__ = ["curvatures", "matched", "run"]

GAMMAS = (0.5, 1.0, 2.0)
FEW, MANY = 10, 40  # steps; many at gamma 1 alone
RATE = 4e-3  # of the search on two moons and on digits
WORLD = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.2)


def gaussians(scale: Scale) -> Task:
    """Two round Gaussians that overlap."""
    return plane("two Gaussians", WORLD, scale)


def curvatures(model: gm.predict.Predictor, shape: tuple[int, ...], samples: int) -> list[tuple[float, torch.Tensor]]:
    """Squared curvature of the flow's trajectories on their way, ``(samples,)`` at each of 10 times inside (0, 1)."""
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    states = gm.sample(gm.Flow(model), (samples, *shape), times=times, seed=50, trajectory=True)
    moving, probe = gm.predict.Motion(model), gm.diffusivity.Curvature()
    found = []
    with torch.no_grad():
        for t, x in list(zip(times.tolist(), states, strict=True))[1:20:2]:
            found.append((t, probe.square(*moving(x, t).motion(x))))
    return found


def matched(measured: list[tuple[float, torch.Tensor]], where: Any, gamma: float) -> gm.diffusivity.Curvature:
    r"""Noise by curvature whose mean over the flow's trajectories is that of ``EndpointSafe(gamma)``.

    The curvature at which the share is a half is the median of what was measured; the scale makes up for the mean share
    :math:`\int(1 - t)\,E r\,dt / \int(1 - t)\,dt`.
    """
    half = float(torch.cat([square for _, square in measured]).median().sqrt())
    shares = [(1 - t, (s if where == "bent" else half**2) / (half**2 + s)) for t, s in measured]
    mean = sum(w * float(share.mean()) for w, share in shares) / sum(w for w, _ in shares)
    return gm.diffusivity.Curvature(gm.diffusivity.EndpointSafe(gamma / mean), where, half=half)


def run(scale: Scale) -> dict[str, Any]:
    """Distances from the data for each task, kind of noise, its total and number of steps."""
    gammas, few, many = scale.pick((GAMMAS, FEW, MANY), ((1.0,), 4, 5))
    points, floors, metrics, halves = [], {}, {}, {}
    for task in (gaussians(scale), moons(scale), digits(scale)):
        models = [train(task, Recipe("velocity", RATE, seed)).model for seed in range(task.seeds)]
        measured = [curvatures(model, task.shape, scale.pick(200, 20)) for model in models]
        halves[task.name] = [matched(m, "bent", 1.0).half for m in measured]
        floors[task.name], metrics[task.name] = task.floor, task.metric
        cases = [(0.0, "none")] + [(gamma, kind) for gamma in gammas for kind in ("fixed", "bent", "straight")]
        fixed: dict[tuple[float, int], list[float]] = {}
        for gamma, kind in scale.bar(cases, f"noise on {task.name}"):
            processes = [_process(m, c, kind, gamma) for m, c in zip(models, measured, strict=True)]
            for steps in (few, many) if gamma in (0.0, 1.0) else (few,):
                values = [_measure(task, process, steps, seed) for seed, process in enumerate(processes)]
                base = fixed.setdefault((gamma, steps), values)  # noise that is the same everywhere comes first
                ratio = interval([v / f for v, f in zip(values, base, strict=True)], log=True)
                point = {"task": task.name, "noise": kind, "gamma": gamma, "steps": steps, "values": values}
                points.append({**point, **interval(values, log=True)._asdict(), "ratio": ratio._asdict()})
    settings = {"solver": "EndPoint", "fixed": "EndpointSafe", "half": halves}
    return {"settings": settings, "floors": floors, "metrics": metrics, "points": points}


def _process(model: Any, measured: list[tuple[float, torch.Tensor]], kind: str, gamma: float) -> Operator:
    if kind == "none":
        return gm.Flow(model)
    noise = gm.diffusivity.EndpointSafe(gamma) if kind == "fixed" else matched(measured, kind, gamma)
    return gm.Diffusion(model, noise)


def _measure(task: Task, process: Operator, steps: int, seed: int) -> float:
    shape = (task.count, *task.shape)
    return task.measure(gm.sample(process, shape, steps=steps, solver=gm.solvers.EndPoint(), seed=300 + seed))
