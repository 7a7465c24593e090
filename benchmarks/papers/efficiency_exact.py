r"""How bent the ways from noise to data are when nothing is learned: exact fields of laws like MNIST's.

Lengths and angles do not change under a rotation, so a Gaussian law with the mean and the covariance of the images is
a diagonal one in the basis of their principal axes, and its exact fields cost no more than a product by numbers. The
law of the training images themselves, each a point, has exact fields too: those of a network that knows them by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.predict import clocks
from genmatch.schedules import Schedule

from .scale import Scale

__all__ = ["Gaussian", "Points", "chain_curvature", "crossing", "exact_curvatures", "exponent"]


class Gaussian(nn.Module):
    r"""Posterior mean of :math:`N(m, \mathrm{diag}\,c)`, :math:`m + \alpha c (x-\alpha m)/(\alpha^2c+\sigma^2)`."""

    def __init__(self, mean: Tensor, variances: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.mean, self.variances, self.schedule = mean, variances, schedule

    @classmethod
    def of(cls, images: Tensor, schedule: Schedule) -> Gaussian:
        """With the mean and the covariance of images, in the basis of their principal axes."""
        rows = images.flatten(1).double()
        mean = rows.mean(0)
        variances, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        return cls(axes.T @ mean, variances.clamp(min=0), schedule)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The posterior mean at t ``(B,)``."""
        alpha, sigma = (part[:, None] for part in self.schedule(t.double()))
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2).clamp(min=1e-300)
        return (self.mean + gain * (x.double() - alpha * self.mean)).to(x.dtype)


class Points(nn.Module):
    """Posterior mean of a law of equal points: their average, weighted by how likely each led to x."""

    def __init__(self, points: Tensor, schedule: Schedule) -> None:
        super().__init__()
        self.points, self.schedule = points.flatten(1), schedule

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The posterior mean at t ``(B,)``."""
        alpha, sigma = (part[:, None].to(x.dtype) for part in self.schedule(t.double()))
        # |x - alpha p|^2 without |x|^2, which is the same for all points.
        near = (alpha * x @ self.points.T - 0.5 * alpha**2 * self.points.square().sum(1)) / sigma.clamp(min=1e-6) ** 2
        return near.softmax(1) @ self.points


def chain_curvature(square: float, steps: int, schedule: Schedule | None = None) -> float:
    r"""Curvature of the exact reversed chain in high dimension: no property of the data but its mean square counts.

    Two states of the chain of noising, t the noisier one, obey
    :math:`x_t = r x_s + \sqrt{\sigma_t^2 - r^2\sigma_s^2}\,z` with :math:`r = \alpha_t/\alpha_s`. So

    .. math:: E|x_t - x_s|^2/d = (1 - r)^2 (\alpha_s^2 q + \sigma_s^2) + \sigma_t^2 - r^2\sigma_s^2,

    q the mean square of a pixel, and lengths in high dimension are the roots of their mean squares.
    Reading every k-th state of a longer exact chain gives the same law, so the same number.
    """
    schedule = schedule or gm.schedules.DDPM()
    alpha, sigma = schedule(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    noisy, clean = slice(None, -1), slice(1, None)
    ratio = alpha[noisy] / alpha[clean]
    size = alpha[clean] ** 2 * square + sigma[clean] ** 2
    pieces = (1 - ratio) ** 2 * size + sigma[noisy] ** 2 - ratio**2 * sigma[clean] ** 2
    whole = (1 - alpha[0]) ** 2 * square + sigma[0] ** 2
    return float(pieces.clamp(min=0).sqrt().sum() / whole.sqrt())


def crossing(level: float, counts: list[int], values: list[float]) -> float:
    """The number of steps at which a rising curve passes a level: a line in the logarithms between two counts."""
    for (n, low), (m, high) in pairwise(zip(counts, values, strict=True)):
        if low <= level <= high:
            share = math.log(level / low) / math.log(high / low)
            return n * (m / n) ** share
    return math.nan


def exponent(counts: list[int], values: list[float]) -> float:
    """Slope between the two largest counts, both axes logarithmic."""
    return math.log(values[-1] / values[-2]) / math.log(counts[-1] / counts[-2])


def exact_curvatures(images: Tensor, counts: Sequence[int], traced: int, scale: Scale) -> list[dict[str, Any]]:
    """Median curvatures of the flow, of the diffusion's ODE and of its chain, for both exact laws."""
    many, points = (images[:: max(1, len(images) // n)] for n in scale.pick((50, 20), (6000, 500), (60000, 10000)))
    paths = {
        "flow": gm.GaussianPath(gm.schedules.CondOT()),
        "DDIM": gm.GaussianPath(gm.schedules.DDPM()),
        "ancestral": gm.GaussianPath(gm.schedules.DDPM()),
    }
    solvers = {"flow": gm.solvers.Euler(), "DDIM": gm.solvers.DDIM(), "ancestral": gm.solvers.DDPM()}
    found = []
    for law, make, data in (("Gaussian", Gaussian.of, many), ("training images", Points, points)):
        for name, path in paths.items():
            schedule = path.schedule
            model = gm.predict.Data(make(data, schedule), path, time=clocks.t)
            for steps in scale.bar(counts, f"{law}, {name}"):
                noise = gm.Draws(7, traced, device=scale.device).normal((traced, images[0].numel()))
                states = gm.sample(gm.Flow(model), noise, steps=steps, solver=solvers[name], seed=7, trajectory=True)
                values = gm.metrics.curvature(states).values
                found.append({"law": law, "process": name, "steps": steps, "median": float(values.median())})
    return found
