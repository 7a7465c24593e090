"""Samples of the trained models by every sampler, kept between runs."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import genmatch as gm
from genmatch.solvers import Solver

from ..robustness.record import interval
from .images import Images
from .measure import Outcome, measure
from .models import Trained
from .scale import Scale

__all__ = ["ARMS", "Arm", "pack", "plan", "sample_all", "summary", "unpack"]

SHOWN = 8  # images of a row of the grids
LEVELS = 16  # of grey, in the pictures


class Arm(NamedTuple):
    """Which model, by which solver, at which numbers of steps beside those of a sweep."""

    kind: str
    make: Callable[[], Solver]
    extra: tuple[int, ...] | None = None  # numbers of steps instead of the sweep's


FEW = (5, 10, 20)
ARMS = {
    "flow, Euler": Arm("flow", gm.solvers.Euler),
    "diffusion, DDIM": Arm("diffusion", gm.solvers.DDIM),
    "diffusion, ancestral": Arm("diffusion", gm.solvers.DDPM),
    "flow, RK4": Arm("flow", gm.solvers.RK4, (5, 10)),
    "flow, Exponential(2)": Arm("flow", lambda: gm.solvers.Exponential(order=2), FEW),
    "diffusion, DPM-Solver++": Arm("diffusion", lambda: gm.solvers.DPMSolver(order=2), FEW),
}


class Run(NamedTuple):
    """One entry of the plan."""

    arm: str
    steps: int
    seed: int
    images: int


def plan(scale: Scale) -> list[Run]:
    """What is sampled, the costly last: of a thousand steps one seed."""
    count = images_of(scale)
    few, seeds = scale.pick(FEW[:2], FEW, FEW), scale.pick(2, 3, 3)
    found: list[Run] = []
    for arm, (_, _, extra) in ARMS.items():
        steps = [n for n in extra or FEW if n in few]
        steps += [40] if arm == "flow, Euler" and scale.size != "smoke" else []  # as many evaluations as RK4 of 10
        found += [Run(arm, n, seed, count) for n in steps for seed in range(seeds)]
    swept = [arm for arm, (_, _, extra) in ARMS.items() if extra is None]
    for n in scale.pick((12,), (50, 100), (50, 100)):
        found += [Run(arm, n, seed, count) for arm in swept for seed in range(scale.pick(1, 3, 3))]
    return found + [Run(arm, scale.pick(15, 1000, 1000), 0, count) for arm in swept]


def images_of(scale: Scale) -> int:
    """Images of every run whose distance from the data is taken: distances compare at equal counts."""
    return scale.pick(40, 200, 2000)


def sample_all(
    images: Images, models: dict[str, list[Trained]], scale: Scale
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """A row for each run of the plan; the first images of each sampler of the sweep, packed."""
    rows: list[dict[str, Any]] = []
    pictures: dict[str, dict[str, str]] = {}
    made: dict[tuple[str, int], Tensor] = {}
    for one in scale.bar(plan(scale), "samples"):
        kind, make, _ = ARMS[one.arm]
        outcome = _kept(images, models[kind][one.seed], make(), one, scale)
        if one.seed == 0:
            made[one.arm, one.steps] = outcome.images
            pictures.setdefault(one.arm, {})[str(one.steps)] = pack(outcome.images[:SHOWN, 0])
        rows.append(
            {
                **one._asdict(),
                "evaluations": outcome.evaluations,
                "frechet": outcome.frechet,
                "curvature": _quantiles(outcome.curvatures),
                "seconds_per_image": outcome.seconds_per_image,
            }
        )
    finest = max(one.steps for one in plan(scale))
    for row in rows:  # how far from the same noise's image when the equation is solved finely
        reference = {"flow": "flow, Euler", "diffusion": "diffusion, DDIM"}[ARMS[row["arm"]].kind]
        noisy = row["arm"] == "diffusion, ancestral" or row["seed"] or row["steps"] == finest
        fine = made[reference, finest]
        gap = None if noisy else made[row["arm"], row["steps"]][: len(fine)] - fine
        row["error"] = None if gap is None else float(gap.double().square().mean().sqrt())
    return rows, pictures


def _kept(images: Images, trained: Trained, solver: Solver, one: Run, scale: Scale) -> Outcome:
    """Sampled, or taken from the cache."""
    weights = hashlib.sha256()
    for value in trained.model.state_dict().values():
        weights.update(value.cpu().numpy().tobytes())
    what = [images.name, asdict(trained.recipe), weights.hexdigest(), repr(solver), *one, torch.__version__]
    key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    path = scale.cache / f"samples-{images.name}-{trained.recipe.kind}-{one.steps}-{one.seed}-{key}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        flow = gm.Flow(trained.model)
        found = measure(images, flow, solver, one.steps, one.images, scale, seed=1000 + one.seed, traced=100)
        torch.save(found._asdict(), path)
    return Outcome(**torch.load(path, map_location=scale.device, weights_only=True))


def _quantiles(values: Tensor) -> dict[str, Any]:
    levels = {"low": 0.05, "first": 0.25, "median": 0.5, "third": 0.75, "high": 0.95}
    found = {name: float(values.quantile(level)) for name, level in levels.items()}
    return {**found, "least": float(values.min()), "greatest": float(values.max()), "count": len(values)}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the seeds, for each sampler and number of steps."""
    found = []
    for arm, steps in dict.fromkeys((row["arm"], row["steps"]) for row in rows):
        own = [row for row in rows if (row["arm"], row["steps"]) == (arm, steps)]
        frechet = [row["frechet"] for row in own]
        found.append(
            {
                "arm": arm,
                "steps": steps,
                "evaluations": own[0]["evaluations"],
                "images": own[0]["images"],
                "repeats": len(own),
                "frechet": {**interval(frechet)._asdict(), "least": min(frechet), "greatest": max(frechet)},
                "error": own[0]["error"],
                "curvature": [row["curvature"]["median"] for row in own],
            }
        )
    return found


def pack(pictures: Tensor) -> str:
    """Images ``(n, H, W)`` in [-1, 1] side by side, as text: 16 greys, compressed."""
    strip = torch.cat(list(pictures.clamp(-1, 1)), dim=1)
    grey = ((strip + 1) / 2 * (LEVELS - 1)).round().to(torch.uint8).cpu().numpy()
    return f"{grey.shape[0]}x{grey.shape[1]}:" + base64.b85encode(zlib.compress(grey.tobytes(), 9)).decode()


def unpack(text: str) -> np.ndarray:
    """The strip ``(H, n W)``, in [0, 1]."""
    size, _, body = text.partition(":")
    grey = np.frombuffer(zlib.decompress(base64.b85decode(body)), np.uint8)
    return grey.reshape(*map(int, size.split("x"))) / (LEVELS - 1)
