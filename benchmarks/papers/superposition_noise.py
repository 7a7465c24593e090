"""Part 3: noise that depends on the state, on images: does it leave the law alone, and does it help?

Kinds of noise, all of variance :math:`2\\sigma W\\,r(x)` with r of mean 1 along the flow's own trajectories:

- ``constant``: r = 1;
- ``grey``, ``ink``: by the pixel, more noise for pixels that are neither paper nor ink, or less for them;
- ``bent``, ``straight``: by the image, more noise where the trajectory bends, or less there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import genmatch as gm
from genmatch.generators import Operator

from ..robustness.state_noise import curvatures, matched
from . import networks
from .images import Images, load
from .scale import Scale
from .superposition_equivalence import BLUR, BlurredDigits, blurred
from .superposition_models import PATH, calls, digits, frechet_of, made, summary

__all__ = ["Forgetful", "by_pixel", "grey", "laws", "run"]

Share = Callable[[Tensor, Any], Tensor]
KINDS = ("constant", "grey", "ink", "bent", "straight")
SPAN = 0.5  # how far from the middle a pixel counts as grey
LEAST = 0.25  # of the greatest variance


def grey(x: Tensor, t: Any) -> Tensor:
    r"""The share of noise of each pixel: 1 in the middle between paper and ink, a quarter far from it."""
    return LEAST + (1 - LEAST) * torch.exp(-(x / SPAN).square())


def ink(x: Tensor, t: Any) -> Tensor:
    """The opposite: a quarter in the middle."""
    return 1 + LEAST - grey(x, t)


class Forgetful(gm.Generator):
    r"""Noise that depends on the state without the drift :math:`\tfrac12\nabla\cdot A`: a negative control."""

    speed = 0.0
    additive = False

    def __init__(self, model: gm.Predictor, noise: gm.diffusivity.StateDependent) -> None:
        super().__init__(model)
        self.noise = noise

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        variance = self.noise.scale.variance(prediction.instant) * self.noise.share(prediction)(x)
        return gm.Triplet(drift=variance / 2 * prediction.score, variance=variance)


def by_pixel(
    share: Callable[[Tensor, Any], Tensor], passed: list[tuple[float, Tensor]]
) -> gm.diffusivity.StateDependent:
    r"""Noise by the pixel whose total over the states passed through is that of ``EndpointSafe()``.

    On the linear path :math:`2\sigma W = 2(1-t)`, so the mean share is weighted by 1 - t.
    """
    mean = sum((1 - t) * float(share(x, t).mean()) for t, x in passed) / sum(1 - t for t, _ in passed)
    return gm.diffusivity.StateDependent(share, gm.diffusivity.EndpointSafe(1 / mean), elementwise=True)


def passed_by(model: gm.Predictor, images: Images, count: int) -> list[tuple[float, Tensor]]:
    """States on the way of the flow, at 10 times inside (0, 1)."""
    times = torch.linspace(0, 1, 21, dtype=torch.float64)
    states = gm.sample(gm.Flow(model), (count, *images.shape), times=times, seed=50, trajectory=True)
    return list(zip(times.tolist(), states, strict=True))[1:20:2]


def laws(images: Images, scale: Scale) -> dict[str, Any]:
    """Distances from the exact law of blurred digits under the exact field, halfway and at the end, by Euler steps.

    ``end-point`` takes end-point steps instead; ``forgetful`` is noise by the pixel without the divergence in its
    drift.
    """
    count, steps = scale.pick(60, 1000, 10000), scale.pick((4,), (20, 80), (20, 80, 320))
    means = images.train[: scale.pick(50, 1500, 1500)]
    model = gm.predict.Data(BlurredDigits(means, BLUR).to(means.device), PATH)
    exact = {t: blurred(means, t, 4 * count, seed=1) for t in (0.5, 1.0)}
    noises = {name: by_pixel(f, passed_by(model, images, 100)) for name, f in (("grey", grey), ("ink", ink))}
    arms: dict[str, Operator] = {"none": gm.Flow(model), "constant": gm.Diffusion(model, gm.diffusivity.EndpointSafe())}
    arms |= {name: gm.Diffusion(model, noise) for name, noise in noises.items()}
    arms |= {f"{name}, end-point": gm.Diffusion(model, noise) for name, noise in noises.items()}
    arms |= {f"{name}, forgetful": gm.Flow(model) + Forgetful(model, noise) for name, noise in noises.items()}
    points = []
    for name, operator in arms.items():
        for n in scale.bar(steps, f"exact digits, noise {name}"):
            states: dict[float, Tensor] = {}

            def keep(i: int, t: float, x: Tensor, states: dict[float, Tensor] = states) -> None:
                states[t] = x.clone()

            solver = gm.solvers.EndPoint() if name.endswith("end-point") else gm.solvers.Euler()
            gm.sample(operator, (count, *images.shape), steps=n, solver=solver, seed=0, callback=keep)
            points.append({"noise": name, "steps": n, **_away(states, exact)})
    floor = _away({t: blurred(means, t, count, seed=2) for t in (0.5, 1.0)}, exact)
    return {"count": count, "floor": floor, "points": points}


def _away(states: dict[float, Tensor], exact: dict[float, Tensor]) -> dict[str, Any]:
    """Sliced Wasserstein distance and the deviation of the pixels' mean square, halfway and at the end."""
    found = {}
    for name, t in (("halfway", 0.5), ("end", 1.0)):
        x, y = states[t].flatten(1), exact[t].flatten(1)
        found[name] = gm.metrics.sliced_wasserstein(x, y, projections=128).value
        found[f"{name}, square"] = float(x.square().mean() / y.square().mean())
    return found


def quality(
    images: Images,
    trained: list[gm.Predictor],
    kinds: tuple[str, ...],
    steps: tuple[int, ...],
    count: int,
    scale: Scale,
) -> list[dict[str, Any]]:
    """Distances from the data for each noise and number of steps, and their ratio to those of constant noise."""
    points, base = [], {}
    for kind in ("none", *kinds):
        operators = [_operator(model, kind, images, scale.pick(10, 100, 500)) for model in trained]
        for n in scale.bar(steps, f"{images.name}, noise {kind}"):
            times, solver = gm.grids.uniform(n), gm.solvers.EndPoint()
            found = [
                made(images, operator, count, scale, times=times, solver=solver, seed=seed)
                for seed, operator in enumerate(operators)
            ]
            values = [frechet_of(images, f) for f in found]
            if kind == "constant":
                base[n] = values
            ratio = [v / b if v and b else None for v, b in zip(values, base.get(n, [None] * len(values)), strict=True)]
            seconds = sorted(f.seconds for f in found if f)
            points.append(
                {
                    "noise": kind,
                    "steps": n,
                    **summary(values),
                    "over constant": summary(ratio) if kind not in ("none",) else None,
                    "calls": calls(operators[0], images, times, solver),
                    "milliseconds": 1000 * seconds[len(seconds) // 2] if seconds else None,
                }
            )
    return points


def _operator(model: gm.Predictor, kind: str, images: Images, count: int) -> Operator:
    if kind == "none":
        return gm.Flow(model)
    if kind == "constant":
        return gm.Diffusion(model, gm.diffusivity.EndpointSafe())
    if kind in ("grey", "ink"):
        return gm.Diffusion(model, by_pixel(grey if kind == "grey" else ink, passed_by(model, images, count)))
    return gm.Diffusion(model, matched(curvatures(model, images.shape, count), kind, 1.0))


def run(images: Images, scale: Scale) -> dict[str, Any]:
    """Laws under the exact field of digits, then quality on digits and on MNIST."""
    velocity = [t.model for t in digits(images, scale, "flow")[0]]
    count, steps = scale.pick(20, 300, 10000), scale.pick((4,), (10, 40), (10, 40, 160))
    found = {"laws": laws(images, scale)}
    found["digits"] = {"count": count, "points": quality(images, velocity, KINDS, steps, count, scale)}
    mnist = load("mnist", scale)
    several = [t.model for t in networks.repeats(mnist, scale, "flow")[0]]
    count, steps = scale.pick(20, 200, 10000), scale.pick((4,), (10,), (10, 40, 160))
    kinds = scale.pick(("constant", "grey"), ("constant", "grey"), KINDS)
    found["mnist"] = {"count": count, "points": quality(mnist, several, kinds, steps, count, scale)}
    return found
