"""Hybrids (1 - r) flow + r diffusion of trained networks: quality, cost, and what the seed of the training changes.

Ways to make one:

- ``one network``: a velocity network, read as flow and as diffusion. As Diffusion = Flow + Langevin it is the diffusion
  with r times the memoryless noise.
- ``one network, Euler``: the same by the solver of the next, to compare with it.
- ``two networks``: the flow of a velocity network, the diffusion of a noise network, trained apart on one path.
- ``one network, mixed loss``: a velocity network trained with (1 - r) times the velocity loss plus r times the noise
  loss, then as the first. On the plane alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import genmatch as gm
from genmatch.generators import Operator

from .._interleave import interleave, ratios
from .record import Scale, interval
from .trained import Recipe, Task, Trained, digits, moons, networks, spread, train

__all__ = ["RATIOS", "MixedLoss", "hybrid", "run"]

RATIOS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS = (10, 40)
Pairs = list[tuple[gm.predict.Affine, gm.predict.Affine]]


@dataclass(frozen=True)
class MixedLoss:
    r"""The weight of the data error that makes :math:`(1-r)|\delta u|^2 + r|\delta E_0|^2` of it.

    :math:`|\delta u| = W|\delta X_1|/\sigma` and :math:`|\delta E_0| = \alpha|\delta X_1|/\sigma`.
    """

    ratio: float

    def __call__(self, instant: gm.schedules.Instant) -> gm.schedules.Number:
        velocity, noise = instant.wronskian / instant.sigma, instant.alpha / instant.sigma
        return (1 - self.ratio) * velocity**2 + self.ratio * noise**2


def hybrid(flow: gm.predict.Affine, noisy: gm.predict.Affine, ratio: float) -> Operator:
    """(1 - ratio) flow + ratio diffusion, the latter of another network or the same; what has no weight is not run."""
    if ratio in (0, 1):
        return gm.Diffusion(noisy) if ratio else gm.Flow(flow)
    return (1 - ratio) * gm.Flow(flow) + ratio * gm.Diffusion(noisy)


def run(scale: Scale) -> dict[str, Any]:
    """Records for each task, way, ratio and number of steps, with every seed's value."""
    shares, counts = scale.pick((RATIOS, STEPS), ((0.0, 0.5), (4,)))
    points, training, costs, floors, metrics = [], [], [], {}, {}
    for task in (moons(scale), digits(scale)):
        found, _ = networks(task)
        floors[task.name], metrics[task.name] = task.floor, task.metric
        for reading, several in found.items():
            training.append({"task": task.name, "ratio": None, "loss": reading, **_stability(several)})
        timed: dict[tuple[str, float], Pairs] = {}
        for ratio in scale.bar(shares, f"hybrids on {task.name}"):
            arms = {
                "one network": [(t.model, t.model) for t in found["velocity"]],
                "one network, Euler": [(t.model, t.model) for t in found["velocity"]],
                "two networks": [(v.model, n.model) for v, n in zip(found["velocity"], found["noise"], strict=True)],
            }
            if task.name == "two moons":
                mixed = _mixed(task, found["velocity"][:3], ratio)
                arms["one network, mixed loss"] = [(t.model, t.model) for t in mixed]
                training.append({"task": task.name, "ratio": ratio, "loss": "mixed", **_stability(mixed)})
            for way, pairs in arms.items():
                points += [_record(task, way, pairs, ratio, steps) for steps in counts]
                if way in ("one network", "two networks"):
                    timed[way, ratio] = pairs
        costs += _costs(task, timed, counts[0], scale.pick(7, 1))
    settings = {"solver": {"one": "Exponential(2)", "Euler": "equal steps in log-SNR"}}
    return {
        "settings": settings,
        "floors": floors,
        "metrics": metrics,
        "points": points,
        "training": training,
        "costs": costs,
    }


def _mixed(task: Task, plain: list[Trained], ratio: float) -> list[Trained]:
    if ratio == 0:
        return plain
    weight, lr = MixedLoss(ratio), plain[0].recipe.lr
    return [train(task, Recipe("velocity", lr, t.recipe.seed, weight, f"-mixed-{ratio:g}")) for t in plain]


def _stability(several: list[Trained]) -> dict[str, float]:
    """Spread of the held-out loss over seeds, and how restless the batch losses are at the end."""
    return {
        "held_out_spread": spread([t.held_out for t in several]),
        "unrest": interval([t.unrest for t in several]).mean,
    }


def _record(task: Task, way: str, pairs: Pairs, ratio: float, steps: int) -> dict[str, Any]:
    values, evaluations = [], 0
    for seed, (flow, noisy) in enumerate(pairs):
        operator = hybrid(flow, noisy, ratio)
        solver, times = _solver(way, steps)
        x = gm.sample(operator, (task.count, *task.shape), times=times, solver=solver, seed=200 + seed)
        values.append(task.measure(x))
        plan = solver.plan(gm.solvers.Field(operator, x), times)
        evaluations = solver.evaluations(plan) * len(operator.models)
    return {
        "task": task.name,
        "way": way,
        "ratio": ratio,
        "steps": steps,
        "evaluations": evaluations,
        "values": values,
        "spread": spread(values),
        **interval(values, log=True)._asdict(),
    }


def _costs(task: Task, arms: Mapping[tuple[str, float], Pairs], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds per sample of each way and ratio, in turns, and over those of the flow in the same round."""

    def contender(way: str, ratio: float, pairs: Pairs) -> Callable[[], object]:
        operator, (solver, times) = hybrid(*pairs[0], ratio), _solver(way, steps)
        return lambda: gm.sample(operator, (task.count, *task.shape), times=times, solver=solver, seed=0)

    times = interleave({f"{w}|{r:g}": contender(w, r, pairs) for (w, r), pairs in arms.items()}, rounds)
    found = []
    for way, ratio in arms:
        over = ratios(times, f"{way}|0")[f"{way}|{ratio:g}"]
        ms = 1000 * statistics.median(times[f"{way}|{ratio:g}"]) / task.count
        row = {"task": task.name, "way": way, "ratio": ratio, "steps": steps, "ms_per_sample": ms}
        found.append({**row, "over_flow": dict(zip(("median", "least", "greatest"), over, strict=True))})
    return found


def _solver(way: str, steps: int) -> tuple[gm.solvers.Solver, torch.Tensor]:
    """The exponential solver where one network is read; for two, Euler steps that follow the infinite noise at 0."""
    if way not in ("two networks", "one network, Euler"):
        return gm.solvers.Exponential(), gm.grids.uniform(steps)
    half_log_snr = torch.linspace(-4, 4, steps, dtype=torch.float64)
    return gm.solvers.Euler(), torch.cat([torch.sigmoid(half_log_snr), torch.ones(1, dtype=torch.float64)])
