"""E2: errors of the drift, constant, smooth and random in space, a pulse in time, white in time; and where they arise.

``network`` errors sit in the velocity that the network says: flow and score are both read off it, so that the drift is
wrong by 1 + gamma times as much. ``drift`` errors are the process's own and the same whatever the noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import genmatch as gm

from .errors import Hiss, Push, diffusion, exact_model, late, marginal, solve, spoil
from .record import GAMMAS, Interval, Scale, fine_gammas, interval
from .theory import LEVELS, GaussianWorld, Level, Waves, amplification

__all__ = ["pulse", "run", "slope"]

SIZE = 0.1  # of the errors: laws under +SIZE and -SIZE are compared, so that what is quadratic in it drops out
WINDOW = 0.02  # length of a pulse
HISS = 0.25  # intensity of white noise, in units of variance per unit of time
PULSES = (0.1, 0.25, 0.5, 0.75, 0.95)
MODES = gm.worlds.GaussianMixture(torch.tensor([[-1.5], [1.5]]), 0.1)
Shape = Callable[[Tensor, Tensor], Tensor]
World = GaussianWorld | gm.worlds.GaussianMixture


def slope(
    world: World, gamma: float, level: Level, shape: Shape, *, power: int = 2, samples: int, steps: int, seed: int
) -> float:
    r""":math:`W_p(p^{+\epsilon}, p^{-\epsilon})/2\epsilon` at t = 1 of errors of a shape, from the same noise."""

    def law(size: float) -> Tensor:
        return solve(world, gamma, level, lambda x, t: size * shape(x, t), samples=samples, steps=steps, seed=seed)

    apart = (law(SIZE).sort(0).values - law(-SIZE).sort(0).values).abs()
    return float((apart**power).mean() ** (1 / power)) / (2 * SIZE)


def pulse(world: GaussianWorld, gamma: float, level: Level, time: float, *, samples: int, steps: int) -> float:
    """Shift of the mean at t = 1 per unit of impulse given to the velocity around ``time``, from exact samples before.

    The grid has the pulse's ends among its points, and the drift is looked at inside the window alone.
    """
    begin, end = time - WINDOW / 2, time + WINDOW / 2
    model = exact_model(world)
    x = marginal(world, begin, samples=samples, seed=0)
    ends = []
    for size in (1.0, -1.0):
        inside = diffusion(model, gamma) + Push(model, lambda x, t, s=size: s / WINDOW + 0 * x)
        if level == "network":
            inside = diffusion(spoil(model, lambda x, t, s=size: s / WINDOW + 0 * x), gamma)
        y = gm.sample(inside, x, times=gm.grids.uniform(8, begin, end), solver=gm.solvers.Heun(), seed=1)
        rest = gm.grids.uniform(steps, end, 1.0)
        ends.append(gm.sample(diffusion(model, gamma), y, times=rest, solver=gm.solvers.Heun(), seed=2))
    return float((ends[0] - ends[1]).mean() / 2)


def white(gamma: float, level: Level, *, samples: int, steps: int, seed: int) -> float:
    """Variance at t = 1 that white noise of the drift adds, per unit of its intensity."""
    world = GaussianWorld()
    model = exact_model(world)
    clean = diffusion(model, gamma)
    if level == "network":
        hissing = diffusion(spoil(model, Hiss(HISS, steps, seed)), gamma)
    else:
        hissing = clean + Push(model, variance=HISS)
    noisy, quiet = (late(process, world, samples=samples, steps=steps, seed=seed).var() for process in (hissing, clean))
    return float((noisy - quiet) / HISS)


def run(scale: Scale) -> dict[str, Any]:
    """Slopes for errors constant and smooth in two worlds, variances by white noise, shifts by pulses.

    Between two modes the slope is that of W1: what passes from one to the other costs W2 a root of its mass. Slopes
    under random fields are in units of the flow's under the same field.
    """
    world = GaussianWorld()
    samples, steps = scale.pick((4000, 64), (500, 20))
    repeats = range(scale.pick(4, 2))
    gammas = scale.pick(GAMMAS, (0.0, 1.0))
    shapes = [_shape(Waves.random(seed)) for seed in repeats]
    points: list[dict[str, Any]] = []
    flows: dict[tuple[str, Level], list[float]] = {}  # slopes of the flow under each field

    def note(kind: str, place: str, level: Level, gamma: float, value: Interval, **more: Any) -> None:
        points.append({"kind": kind, "world": place, "level": level, "gamma": gamma, **value._asdict(), **more})

    def note_field(place: str, level: Level, gamma: float, found: list[float]) -> None:
        base = flows.setdefault((place, level), found)  # gamma 0 comes first
        shares = [a / b for a, b in zip(found, base, strict=True)]
        note("field", place, level, gamma, interval(shares), slopes=found)

    size = {"samples": samples, "steps": steps}
    cases: list[tuple[float, Level]] = [(gamma, level) for gamma in gammas for level in LEVELS]
    for gamma, level in scale.bar(cases, "E2 slopes"):
        # Every sample of the Gaussian world is shifted alike: few of them, and no interval.
        shift = slope(world, gamma, level, _ones, samples=100, steps=steps, seed=0)
        note("constant", "gaussian", level, gamma, interval([shift]))
        found = [slope(MODES, gamma, level, _ones, power=1, **size, seed=seed) for seed in repeats]
        note("constant", "two modes", level, gamma, interval(found))
        note_field("gaussian", level, gamma, [slope(world, gamma, level, f, **size, seed=9) for f in shapes])
        found = [slope(MODES, gamma, level, f, power=1, **size, seed=9) for f in shapes]
        note_field("two modes", level, gamma, found)
        found = [white(gamma, level, samples=2 * samples, steps=steps, seed=seed) for seed in repeats]
        note("white", "gaussian", level, gamma, interval(found))
    for gamma, level in scale.bar([c for c in cases if c[0] in (0.0, 1.0, 2.0)], "E2 pulses"):
        for time in PULSES:
            value = pulse(world, gamma, level, time, samples=200, steps=steps)
            note("pulse", "gaussian", level, gamma, interval([value]), time=time)
    return {
        "settings": {
            "samples": samples,
            "steps": steps,
            "repeats": len(repeats),
            "size": SIZE,
            "window": WINDOW,
            "intensity": HISS,
            "mean": world.mean,
            "std": world.std,
            "modes": MODES.means.flatten().tolist(),
            "mode_variance": 0.1,
        },
        "points": points,
        "lines": lines([Waves.random(seed) for seed in repeats]) + lengths(scale.pick(40, 2)),
    }


def lines(fields: list[Waves]) -> list[dict[str, Any]]:
    """The closed forms over gamma, over the time of a pulse, and over the width of the data."""
    world, gammas = GaussianWorld(), fine_gammas()
    found: list[dict[str, Any]] = []
    times = torch.linspace(0.005, 1, 200, dtype=torch.float64)
    widths = torch.logspace(-2, 1, 61, dtype=torch.float64).tolist()
    for level in LEVELS:
        flow = [world.field_slope(0.0, level, f) for f in fields]
        of_field = [
            sum(world.field_slope(g, level, f) / base for f, base in zip(fields, flow, strict=True)) / len(fields)
            for g in gammas
        ]
        for kind, values in (
            ("constant", [world.bias(g, level) for g in gammas]),
            ("white", [world.white_variance(g, level) for g in gammas]),
            ("field", of_field),
        ):
            found.append({"kind": kind, "level": level, "over": "gamma", "x": gammas, "y": values})
        for gamma in (0.0, 1.0, 2.0):
            pulses = amplification(gamma, level) * world.factor(1.0, times, gamma)
            line = {"kind": "pulse", "level": level, "gamma": gamma}
            found.append({**line, "over": "time", "x": times.tolist(), "y": pulses.tolist()})
        for gamma in (0.5, 1.0, 2.0):
            worlds = [GaussianWorld(std=c) for c in widths]
            ratios = [w.bias(gamma, level) / w.bias(0.0, level) for w in worlds]
            line = {"kind": "width", "level": level, "gamma": gamma}
            found.append({**line, "over": "width", "x": widths, "y": ratios})
    return found


def lengths(count: int) -> list[dict[str, Any]]:
    """Slope over the flow's under an error of the network by its correlation length, a mean over random fields."""
    world, gammas = GaussianWorld(), (0.25, 0.5, 1.0, 2.0)
    over = torch.logspace(-0.7, 0.7, 12, dtype=torch.float64).tolist()
    shares: dict[float, list[float]] = {gamma: [] for gamma in gammas}
    for length in over:
        fields = [Waves.random(seed, length) for seed in range(count)]
        flows = [world.field_slope(0.0, "network", f) for f in fields]
        for gamma in gammas:
            ratios = [world.field_slope(gamma, "network", f) / b for f, b in zip(fields, flows, strict=True)]
            shares[gamma].append(interval(ratios).mean)
    line = {"kind": "length", "level": "network", "over": "length"}
    return [{**line, "gamma": gamma, "x": over, "y": values} for gamma, values in shares.items()]


def _ones(x: Tensor, t: Tensor) -> Tensor:
    return torch.ones_like(x)


def _shape(field: Waves) -> Shape:
    return lambda x, t: field(x.squeeze(-1))[:, None]
