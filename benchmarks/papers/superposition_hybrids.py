"""Part 2: hybrids (1 - r) flow + r diffusion of trained networks: quality, cost and stability against the share r.

Ways to make one:

- ``velocity``: one velocity network read in both ways, by the exponential solver of order 2;
- ``noise``: the same with one noise network;
- ``two``: the flow of the velocity network, the diffusion of the noise network. Two networks are no semilinear sum:
  Euler steps, equal in log-SNR;
- ``velocity, Euler``: the first by the solver of ``two``, to compare with it;
- ``velocity, uniform``: the first by Euler steps equal in t, which are too long for memoryless noise near t = 0.

On digits both networks are trained on the linear path. On MNIST they are those of the comparison of flow and diffusion:
the noise network is of the chain of 1000 steps, and is read on the linear path by a change of schedule.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import genmatch as gm
from genmatch.solvers import Solver

from ..robustness.hybrids import hybrid
from . import networks
from .images import Images, load
from .scale import Scale
from .superposition_models import PATH, calls, digits, equal, frechet_of, made, summary

__all__ = ["PIECES", "RATIOS", "pairs", "steps_of"]

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
FAR = 1.5  # pixels of the data are in [-1, 1]: those beyond this have run away
Pair = tuple[gm.Predictor, gm.Predictor]


def steps_of(way: str, steps: int) -> tuple[Tensor, Solver]:
    """The times and the solver of a way to make a hybrid."""
    if way == "velocity, uniform":
        return gm.grids.uniform(steps, 0.01, 1.0), gm.solvers.Euler()
    if way in ("velocity", "noise"):
        return equal(steps), gm.solvers.Exponential()
    half_log_snr = torch.linspace(-4, 4, steps, dtype=torch.float64)
    return torch.cat([torch.sigmoid(half_log_snr), torch.ones(1, dtype=torch.float64)]), gm.solvers.Euler()


def pairs(way: str, velocity: list[Any], noise: list[Any]) -> list[Pair]:
    """For each seed the network of the flow and the network of the diffusion."""
    if way == "two":
        return list(zip(velocity, noise, strict=True))
    return [(model, model) for model in (noise if way == "noise" else velocity)]


def sweep(
    images: Images, ways: dict[str, list[Pair]], ratios: tuple[float, ...], steps: tuple[int, ...], scale: Scale
) -> list[dict[str, Any]]:
    """A record for each way, share and number of steps."""
    count = scale.pick(20, 300 if images.shape[-1] < 16 else 150, 10000)
    return [
        {"way": way, "ratio": ratio, "steps": n, **record(images, way, several, ratio, n, count, scale)}
        for way, several in ways.items()
        for ratio in scale.bar(ratios, f"hybrids of {images.name}, {way}")
        for n in steps
    ]


def record(
    images: Images, way: str, several: list[Pair], ratio: float, steps: int, count: int, scale: Scale
) -> dict[str, Any]:
    """Distance from the data of each seed, the share of pixels that ran away, network calls and seconds per image."""
    times, solver = steps_of(way, steps)
    found = []
    for seed, (flow, noisy) in enumerate(several):
        operator: Any = hybrid(flow, noisy, ratio)  # type: ignore[arg-type]
        found.append(made(images, operator, count, scale, times=times, solver=solver, seed=seed))
    away = [float((f.images.abs() > FAR).float().mean()) if f else 1.0 for f in found]
    seconds = sorted(f.seconds for f in found if f)
    first: Any = hybrid(*several[0], ratio)  # type: ignore[arg-type]
    return {
        **summary([frechet_of(images, f) for f in found]),
        "away": sum(away) / len(away),
        "calls": calls(first, images, times, solver),
        "milliseconds": 1000 * seconds[len(seconds) // 2] if seconds else math.nan,
    }


def on_digits(images: Images, scale: Scale) -> dict[str, Any]:
    """All ways on digits."""
    velocity, noise = ([t.model for t in digits(images, scale, kind)[0]] for kind in ("flow", "noise"))
    names = ("velocity", "noise", "two", "velocity, Euler", "velocity, uniform")
    ways = {way: pairs(way, velocity, noise) for way in names}
    ratios, steps = scale.pick((0.0, 0.5), RATIOS, RATIOS), scale.pick((4,), (5, 10, 40), (5, 10, 20, 40, 160))
    points = sweep(images, ways, ratios, steps, scale)
    return {"floor": images.floor(297), "count": scale.pick(20, 300, 10000), "points": points}


def on_mnist(_: Images, scale: Scale) -> dict[str, Any]:
    """One velocity network and two networks on MNIST."""
    images = load("mnist", scale)
    found = {kind: networks.repeats(images, scale, kind) for kind in ("flow", "diffusion")}
    velocity = [t.model for t in found["flow"][0]]
    noise = [gm.predict.Reschedule(t.model, PATH) for t in found["diffusion"][0]]  # type: ignore[arg-type]
    one, two = ({way: pairs(way, velocity, noise)} for way in ("velocity", "two"))
    few, ratios = scale.pick((4,), (10,), (5, 10, 20, 40, 160)), scale.pick((0.0, 0.5), RATIOS, RATIOS)
    points = sweep(images, one, ratios, few, scale)
    points += sweep(images, two, scale.pick((0.5,), (0.0, 0.5, 1.0), RATIOS), few, scale)
    count = scale.pick(20, 150, 10000)
    search = {kind: tried for kind, (_, tried) in found.items()}
    return {"search": search, "floor": images.floor(count), "count": count, "points": points}


PIECES = {"digits": on_digits, "mnist": on_mnist}
