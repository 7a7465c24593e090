"""Part 4: networks of images with errors in their output or in their weights, against the level of the noise.

Errors of the output, of a size in units of the root mean square of what the network should say:

- ``offset``: the same number added to every pixel, at all times;
- ``pattern``: plus or minus that number, a pattern of pixels that is the same for all images and times;
- ``waves``: a cosine of the pixel's own value, of a phase for each pixel: it varies over half a standard deviation;
- ``hiss``: drawn afresh at each call.

Errors of the weights: matrices and kernels rounded to few bits, as on the page on robustness.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import genmatch as gm

from ..robustness.errors import Error, diffusion, spoil
from ..robustness.quantised import round_weights
from . import networks
from .images import Images, load
from .scale import Scale
from .superposition_models import PATH, digits, equal, frechet_of, made, summary

__all__ = ["ERRORS", "PIECES", "error_of", "native_size"]

ERRORS = ("offset", "pattern", "waves", "hiss")
GAMMAS = (0.0, 0.25, 0.5, 1.0, 2.0)
SIZES = {"offset": 0.1, "pattern": 0.1, "waves": 0.2, "hiss": 0.5}
BITS = (5, 4, 3)


def native_size(reading: str, images: Tensor) -> float:
    r"""Root mean square of the target: 1 of a noise, :math:`\sqrt{1 + E x_1^2}` of the velocity :math:`x_1 - x_0`."""
    return math.sqrt(1 + float(images.square().mean())) if reading == "velocity" else 1.0


def error_of(kind: str, size: float, shape: tuple[int, ...], seed: int) -> Error:
    """An error of the output of that root mean square, as a function of the states and the times.

    Examples
    --------
    >>> error_of("offset", 0.1, (1, 2, 2), 0)(torch.zeros(1, 1, 2, 2), torch.zeros(1)).flatten().tolist()
    [0.10000000149011612, 0.10000000149011612, 0.10000000149011612, 0.10000000149011612]
    """
    source = torch.Generator().manual_seed(seed)
    if kind == "offset":
        return lambda x, t: torch.full_like(x, size)
    if kind == "pattern":
        signs = 2.0 * torch.randint(0, 2, shape, generator=source) - 1
        return lambda x, t: size * signs.to(x).expand_as(x)
    if kind == "waves":
        phase = 2 * math.pi * torch.rand(shape, generator=source)
        return lambda x, t: math.sqrt(2) * size * torch.cos(2 * math.pi * x + phase.to(x))
    if kind == "hiss":
        return lambda x, t: size * torch.randn(x.shape, generator=source).to(x)
    raise ValueError(f"an error is one of {', '.join(ERRORS)}, got {kind!r}")


def spoilt(model: Any, kind: str, images: Images, seed: int) -> gm.Predictor:
    """A model with an error: of :data:`ERRORS` in the output, "4 bits" in the weights, or "none"."""
    if kind == "none":
        return model
    if kind.endswith("bits"):
        return round_weights(model, int(kind.split()[0]))
    size = SIZES[kind] * native_size(model.kind, images.train)
    return spoil(model, error_of(kind, size, images.shape, 500 + seed))


def measured(
    images: Images,
    models: dict[str, list[Any]],
    kinds: tuple[str, ...],
    gammas: tuple[float, ...],
    steps: int,
    count: int,
    scale: Scale,
) -> list[dict[str, Any]]:
    """Distances for each network, error and noise; ``ratio`` to those of the flow of the same spoilt network."""
    points = []
    for reading, several in models.items():
        for kind in scale.bar(kinds, f"errors on {images.name}, {reading}"):
            base: list[float | None] = []
            for gamma in gammas:
                values = []
                for seed, model in enumerate(several):
                    wrong = spoilt(model, kind, images, seed)
                    if wrong.path != PATH:  # the error was made in the network, on its own path
                        wrong = gm.predict.Reschedule(wrong, PATH)  # type: ignore[arg-type]
                    found = made(images, diffusion(wrong, gamma), count, scale, times=equal(steps), seed=seed)
                    values.append(frechet_of(images, found))
                base = base or values  # the flow comes first
                ratio = [v / b if v and b else None for v, b in zip(values, base, strict=True)]
                point = {"reading": reading, "error": kind, "gamma": gamma}
                points.append({**point, **summary(values), "ratio": summary(ratio)})
    return points


def on_digits(images: Images, scale: Scale) -> dict[str, Any]:
    """Velocity and noise networks of one path."""
    models = {
        name: [t.model for t in digits(images, scale, kind)[0]]
        for name, kind in (("velocity", "flow"), ("noise", "noise"))
    }
    bits = tuple(f"{b} bits" for b in BITS)
    kinds = scale.pick(("none", "pattern", "4 bits"), ("none", *ERRORS, *bits), ("none", *ERRORS, *bits))
    gammas, steps = scale.pick((0.0, 1.0), (0.0, 0.5, 1.0, 2.0), GAMMAS), scale.pick(4, 20, 64)
    count = scale.pick(20, 300, 10000)
    points = measured(images, models, kinds, gammas, steps, count, scale)
    return {"count": count, "steps": steps, "sizes": SIZES, "points": points}


def on_mnist(_: Images, scale: Scale) -> dict[str, Any]:
    """The networks of the comparison of flow and diffusion."""
    images = load("mnist", scale)
    models = {
        name: [t.model for t in networks.repeats(images, scale, kind)[0][: scale.pick(1, 3, 3)]]
        for name, kind in (("velocity", "flow"), ("noise", "diffusion"))
    }
    bits = tuple(f"{b} bits" for b in BITS)
    kinds = scale.pick(("none",), ("none", "pattern", "4 bits"), ("none", *ERRORS, *bits))
    gammas, steps = scale.pick((0.0, 1.0), (0.0, 1.0), GAMMAS), scale.pick(4, 10, 64)
    count = scale.pick(20, 150, 10000)
    points = measured(images, models, kinds, gammas, steps, count, scale)
    return {"count": count, "steps": steps, "sizes": SIZES, "points": points}


PIECES = {"digits": on_digits, "mnist": on_mnist}
