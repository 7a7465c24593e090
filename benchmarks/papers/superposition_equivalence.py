"""Part 1: with one schedule flow, diffusion and hybrids are one model. Exact fields, and networks that were trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Operator

from ..robustness.density import evolve
from ..robustness.errors import exact_model
from .images import Images
from .models import HELD_OUT, Trained
from .scale import Scale
from .superposition_models import PATH, digits, equal, frechet_of, made, summary

__all__ = ["BlurredDigits", "Read", "blurred", "density_errors", "processes", "read_as", "run"]

BLUR = 0.1  # standard deviation: the digits and this much noise are a law with a density
START = 0.1  # of the densities: memoryless noise is infinite at 0
LINE = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.5]]), 0.15, weights=(0.3, 0.7))
READINGS = {"velocity": gm.predict.Velocity, "data": gm.predict.Data, "noise": gm.predict.Noise}
READINGS |= {"score": gm.predict.Score, "v": gm.predict.V}


class BlurredDigits(nn.Module):
    r"""The exact posterior mean of images :math:`\mu_k + \text{blur}\,z`, all k alike, on the linear path.

    With :math:`S = \alpha^2\,\text{blur}^2 + \sigma^2` and the softmax r of :math:`-|x - \alpha\mu_k|^2/2S`

    .. math:: E[x_1|x] = (1 - w\alpha)\,\textstyle\sum_k r_k\mu_k + w\,x, \qquad w = \alpha\,\text{blur}^2/S .
    """

    means: Tensor

    def __init__(self, images: Tensor, blur: float) -> None:
        super().__init__()
        self.register_buffer("means", images.flatten(1))
        self.blur = blur

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha = t[:, None]
        variance = (alpha * self.blur) ** 2 + (1 - alpha) ** 2
        flat = x.flatten(1)
        fits = (alpha * (flat @ self.means.T) - alpha**2 / 2 * self.means.square().sum(1)) / variance
        gain = alpha * self.blur**2 / variance
        mean = (1 - gain * alpha) * (torch.softmax(fits, 1) @ self.means) + gain * flat
        return mean.reshape(x.shape)


def blurred(images: Tensor, t: float, count: int, seed: int) -> Tensor:
    """Exact samples of :math:`p_t` of the blurred images, ``(count, *S)``."""
    draws = gm.Draws(seed, count, device=images.device)
    chosen = images[draws.fork(1).integers((count,), len(images))]
    data = chosen + BLUR * draws.fork(2).normal(chosen.shape)
    return t * data + (1 - t) * draws.fork(3).normal(chosen.shape)


def processes(model: gm.Predictor) -> dict[str, Operator]:
    """A flow, diffusions, and sums of them: on one path, so they should have one law at every time."""
    flow, diffusion = gm.Flow(model), gm.Diffusion(model)
    return {
        "flow": flow,
        "diffusion, half the noise": gm.Diffusion(model, gm.diffusivity.Memoryless(0.5)),
        "diffusion": diffusion,
        "diffusion, twice the noise": gm.Diffusion(model, gm.diffusivity.Memoryless(2.0)),
        "diffusion, noise finite at both ends": gm.Diffusion(model, gm.diffusivity.EndpointSafe()),
        "0.75 flow + 0.25 diffusion": 0.75 * flow + 0.25 * diffusion,
        "0.5 flow + 0.5 diffusion": 0.5 * flow + 0.5 * diffusion,
        "t flow + (1 - t) diffusion": (lambda t: t) * flow + (lambda t: 1 - t) * diffusion,
    }


class Read(nn.Module):
    """A predictor as a network of another reading."""

    def __init__(self, model: gm.Predictor, reading: str) -> None:
        super().__init__()
        self.model, self.reading = model, reading

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return getattr(self.model(x, t), self.reading)


def read_as(model: gm.Predictor, reading: str) -> gm.predict.Affine:
    """A predictor whose network says another thing than the model's: velocity, data, noise, score or v."""
    return READINGS[reading](Read(model, reading), model.path)


def density_errors(scale: Scale) -> list[dict[str, Any]]:
    """L1 distance of the density at t = 1 from the data's, by the forward equation on finer and finer grids.

    Two modes on a line, from the exact density at t = 0.1. ``without`` is the diffusion whose drift lacks the score.
    """
    cells = scale.pick((101, 201), (126, 251, 501, 1001), (501, 1001, 2001, 4001))
    model = exact_model(LINE)
    found = []
    for name, operator in {**processes(model), "without the score": gm.Diffusion(model)}.items():
        errors = []
        for n in cells:
            x = torch.linspace(-6, 6, n, dtype=torch.float64)
            h = float(x[1] - x[0])
            first, last = (LINE.log_prob(x[:, None], t, PATH.schedule).exp() for t in (START, 1.0))
            steps = (n - 1) // 2  # both steps fall together
            end = evolve(operator, first[:, None], x, START, steps, score=not name.startswith("without"))[-1, :, 0]
            errors.append(float((end - last).abs().sum() * h))
        order = math.log(errors[-2] / errors[-1]) / math.log((cells[-1] - 1) / (cells[-2] - 1))
        found.append({"process": name, "cells": list(cells), "errors": errors, "order": order})
    return found


class Marginals(NamedTuple):
    """Sliced Wasserstein distances from exact samples at half time and at the end."""

    halfway: float
    end: float


def marginals(images: Images, scale: Scale) -> dict[str, Any]:
    """Distances of samples from exact ones by the exact field of blurred digits, for each process and steps.

    All take steps of the exponential solver of order 2. The ``floor`` is what as many exact samples have.
    """
    count, steps = scale.pick(100, 1000, 10000), scale.pick((4, 8), (5, 10, 20, 40), (5, 10, 20, 40, 80, 160))
    means = images.train[: scale.pick(50, 1500, 1500)]
    model = gm.predict.Data(BlurredDigits(means, BLUR).to(means.device), PATH)
    exact = {t: blurred(means, t, 4 * count, seed=1).flatten(1) for t in (0.5, 1.0)}

    def distances(states: dict[float, Tensor]) -> Marginals:
        return Marginals(
            *(gm.metrics.sliced_wasserstein(states[t].flatten(1), exact[t], projections=128).value for t in (0.5, 1.0))
        )

    floor = distances({t: blurred(means, t, count, seed=2) for t in (0.5, 1.0)})
    points = []
    for name, operator in processes(model).items():
        for n in scale.bar(steps, f"exact digits, {name}"):
            states: dict[float, Tensor] = {}

            def keep(i: int, t: float, x: Tensor, states: dict[float, Tensor] = states) -> None:
                states[t] = x.clone()

            # Half time is a point of every grid.
            times = torch.cat([gm.grids.uniform(n - n // 2, 0, 0.5)[:-1], gm.grids.uniform(n // 2, 0.5, 1)])
            gm.sample(operator, (count, *images.shape), times=times, seed=0, callback=keep)
            points.append({"process": name, "steps": n, **distances(states)._asdict()})
    return {"count": count, "images": len(means), "blur": BLUR, "floor": floor._asdict(), "points": points}


def readings(models: dict[str, gm.Predictor], images: Images, scale: Scale) -> list[dict[str, Any]]:
    """Largest differences of generators and of samples between a trained network and what it is read as, float64.

    ``drift`` is the largest over t = 0.1, 0.5 and 0.9 of the difference of drifts, flow and diffusion, over the largest
    drift; ``samples`` the largest of a pixel after 20 exponential steps of order 1 from one noise.
    """
    found = []
    count = scale.pick(4, 32, 64)
    x = gm.Draws(7, count, device=scale.device).normal((count, *images.shape), torch.float64)
    times = gm.grids.uniform(scale.pick(3, 20, 20), 0.01, 1.0)
    for trained, model in models.items():
        model.double()
        kinds: dict[str, Callable[[gm.Predictor], Operator]] = {
            "flow": gm.Flow,
            "diffusion": lambda m: gm.Diffusion(m, gm.diffusivity.EndpointSafe()),
            "hybrid": lambda m: 0.5 * gm.Flow(m) + 0.5 * gm.Diffusion(m),
        }
        drifts, ends = _told(model, kinds, x, times)
        for reading in READINGS:
            row: dict[str, Any] = {"trained": trained, "read": reading}
            its, others = _told(read_as(model, reading), kinds, x, times)
            for name in kinds:
                worst = max(
                    float((a - b).abs().max() / a.abs().max()) for a, b in zip(drifts[name], its[name], strict=True)
                )
                row[name] = {"drift": worst, "samples": float((ends[name] - others[name]).abs().max())}
            found.append(row)
        model.float()
    return found


@torch.no_grad()
def _told(
    model: gm.Predictor, kinds: dict[str, Callable[[gm.Predictor], Operator]], x: Tensor, times: Tensor
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Drifts at three times, and samples, of each kind of process."""
    drifts = {name: [kind(model)(x, t).drift for t in (0.1, 0.5, 0.9)] for name, kind in kinds.items()}
    # Of order 1: the solver of order 2 extrapolates with more or less trust in what the network is read as.
    solver = gm.solvers.Exponential(1)
    return drifts, {name: gm.sample(kind(model), x, times=times, solver=solver, seed=1) for name, kind in kinds.items()}


@torch.no_grad()
def data_errors(trained: Trained, images: Images) -> list[dict[str, float]]:
    """Mean squared error of the data that a network implies, on held-out images, at several times."""
    data = read_as(trained.model, "data")
    times = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
    losses = [float(gm.matching_loss(data, images.test, t=t, seed=HELD_OUT)) for t in times]
    return [{"t": t, "error": loss} for t, loss in zip(times, losses, strict=True)]


def quality(found: dict[str, list[Trained]], images: Images, scale: Scale) -> dict[str, Any]:
    """Frechet distances of velocity and noise networks, as flow and as diffusion, seed by seed, and their ratio."""
    count, steps = scale.pick(20, 300, 10000), scale.pick((4,), (10, 40), (10, 40, 160))
    points = []
    for process, make in {"flow": gm.Flow, "diffusion": gm.Diffusion}.items():
        for n in steps:
            values: dict[str, list[Any]] = {}
            for kind in ("flow", "noise"):
                values[kind] = [
                    frechet_of(images, made(images, make(t.model), count, scale, times=equal(n), seed=i))
                    for i, t in enumerate(found[kind])
                ]
            ratio = [b / a if a and b else None for a, b in zip(values["flow"], values["noise"], strict=True)]
            point = {"process": process, "steps": n, "velocity": summary(values["flow"])}
            points.append({**point, "noise": summary(values["noise"]), "noise over velocity": summary(ratio)})
    errors = {kind: [data_errors(t, images) for t in several] for kind, several in found.items()}
    return {"count": count, "points": points, "data_errors": errors}


def run(images: Images, scale: Scale) -> dict[str, Any]:
    """Densities and samples by exact fields; readings, and the quality, of trained networks."""
    found, search = {}, {}
    for kind in ("flow", "noise"):
        found[kind], search[kind] = digits(images, scale, kind)
    return {
        "search": search,
        "densities": density_errors(scale),
        "marginals": marginals(images, scale),
        "readings": readings({"velocity": found["flow"][0].model, "noise": found["noise"][0].model}, images, scale),
        "quality": quality(found, images, scale),
    }
