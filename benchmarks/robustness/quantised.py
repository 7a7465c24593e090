"""E5: the weights of trained networks rounded to few bits."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import genmatch as gm

from .errors import diffusion
from .record import Scale, interval
from .trained import Task, digits, moons, networks

__all__ = ["quantise", "round_weights", "run"]

BITS = (None, 8, 6, 5, 4, 3)
GAMMAS = (0.0, 0.5, 1.0, 2.0)
STEPS = 32
M = TypeVar("M", bound=nn.Module)


def quantise(weight: Tensor, bits: int) -> Tensor:
    r"""Nearest of the :math:`2^b - 1` values :math:`k\Delta`, :math:`|k| < 2^{b-1}`, with one Delta for the tensor."""
    if bits < 2:
        raise ValueError(f"a sign and a size take at least 2 bits, got {bits}")
    top = 2 ** (bits - 1) - 1
    delta = weight.abs().max() / top
    return torch.where(delta > 0, (weight / delta).round() * delta, weight)


def round_weights(model: M, bits: int | None) -> M:
    """A copy whose matrices and kernels are quantised; biases and gains of norms stay as they are."""
    rounded = copy.deepcopy(model)
    if bits is not None:
        with torch.no_grad():
            for parameter in rounded.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(quantise(parameter, bits))
    return rounded


def run(scale: Scale) -> dict[str, Any]:
    """Distance from the data against bits, for each task, kind of network and noise.

    ``ratio`` is the distance over that of the flow of the same network: what the seeds have in common drops out.
    """
    bits, gammas = scale.pick((BITS, GAMMAS), ((None, 4), (0.0, 1.0)))
    steps = scale.pick(STEPS, 4)
    points, searches, floors, metrics = [], {}, {}, {}
    for task in (moons(scale), digits(scale)):
        found, searches[task.name] = networks(task)
        floors[task.name], metrics[task.name] = task.floor, task.metric
        cases = [(reading, b) for reading in found for b in bits]
        for reading, b in scale.bar(cases, f"E5 on {task.name}"):
            models = [round_weights(trained.model, b) for trained in found[reading]]
            flow: list[float] = []
            for gamma in gammas:
                values = [_measure(task, model, gamma, steps, seed) for seed, model in enumerate(models)]
                flow = flow or values  # gamma 0 comes first
                ratio = interval([v / f for v, f in zip(values, flow, strict=True)], log=True)
                point = {"task": task.name, "reading": reading, "bits": b, "gamma": gamma, "values": values}
                points.append({**point, **interval(values, log=True)._asdict(), "ratio": ratio._asdict()})
    settings = {"steps": steps, "solver": "Exponential(2)", "path": "CondOT"}
    return {"settings": settings, "search": searches, "floors": floors, "metrics": metrics, "points": points}


def _measure(task: Task, model: Any, gamma: float, steps: int, seed: int) -> float:
    return task.measure(gm.sample(diffusion(model, gamma), (task.count, *task.shape), steps=steps, seed=100 + seed))
