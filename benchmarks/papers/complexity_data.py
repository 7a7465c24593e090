"""How complex an image set is: numbers of the images themselves, and the exact field that they define."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.predict import clocks
from genmatch.schedules import Schedule

from .images import Images
from .models import KINDS
from .scale import Scale

__all__ = ["Field", "complexity", "exact", "intrinsic_dimension", "participation", "spaced"]

WIDTH = 0.02  # standard deviation of the pixels around an image: 2.5 of 255 grey levels
NEIGHBOURS = 20


class Field(nn.Module):
    r"""The exact velocity or noise of images, each with a little Gaussian noise of standard deviation w.

    With :math:`S^2 = \alpha^2 w^2 + \sigma^2` and the mean image :math:`\bar\mu` under the posterior weights, which are
    proportional to :math:`\exp(-|x - \alpha\mu_k|^2/2S^2)`,

    .. math:: E[x_1|x] = \bar\mu + \frac{\alpha w^2}{S^2}(x - \alpha\bar\mu), \qquad
              E[x_0|x] = \frac{\sigma}{S^2}(x - \alpha\bar\mu).

    It is what a network of any architecture would learn if it learned these images by heart.
    """

    def __init__(self, images: Tensor, schedule: Schedule, *, velocity: bool, width: float = WIDTH) -> None:
        super().__init__()
        flat = images.reshape(len(images), -1)
        self.middle = flat.mean(0)
        self.points = flat - self.middle  # smaller numbers round less
        self.schedule, self.velocity, self.width = schedule, velocity, width

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Of states ``(B, *S)`` at times ``(B,)``."""
        now = self.schedule.at(t.double())
        alpha, sigma = (v.to(x.dtype)[:, None] for v in (now.alpha, now.sigma))
        spread = (alpha * self.width) ** 2 + sigma**2
        points, middle = self.points.to(x.dtype), self.middle.to(x.dtype)
        moved = x.reshape(len(x), -1) - alpha * middle
        logits = (alpha * (moved @ points.T) - 0.5 * alpha**2 * points.square().sum(1)) / spread
        mean = logits.softmax(1) @ points
        off = (moved - alpha * mean) / spread
        noise = sigma * off
        if not self.velocity:
            return noise.reshape(x.shape)
        data = middle + mean + alpha * self.width**2 * off
        alpha_dot, sigma_dot = (v.to(x.dtype)[:, None] for v in (now.alpha_dot, now.sigma_dot))
        return (alpha_dot * data + sigma_dot * noise).reshape(x.shape)


def exact(images: Images, kind: str, scale: Scale) -> gm.Predictor:
    """The exact model of some training images, on the path and with the reading of a kind of trained models."""
    likeness = KINDS[kind](nn.Identity())
    chosen = spaced(images.train, scale.pick(200, 2000, 50000))
    field = Field(chosen, likeness.path.schedule, velocity=kind == "flow")
    return type(likeness)(field, likeness.path, time=clocks.t)


def spaced(rows: Tensor, count: int) -> Tensor:
    """At most so many, evenly spaced: images that are read from folders come class by class."""
    return rows if len(rows) <= count else rows[torch.linspace(0, len(rows) - 1, count).long()]


def complexity(images: Images, scale: Scale) -> dict[str, float]:
    """Numbers of the training images that need no model."""
    flat = images.train.reshape(len(images.train), -1)
    some, many = spaced(flat, scale.pick(200, 5000, 50000)), spaced(flat, scale.pick(200, 50000, 50000))
    return {
        "dimension": flat.shape[1],
        "participation": participation(some),
        "intrinsic": intrinsic_dimension(many, queries=scale.pick(50, 300, 1000)),
    }


def participation(flat: Tensor) -> float:
    r"""Directions that carry the variance, :math:`(\mathrm{tr}\,C)^2 / \mathrm{tr}\,C^2`, of rows ``(n, d)``.

    d for white noise, 1 for points on a line.
    """
    covariance = gm.metrics.Moments.of(flat).covariance
    return float(covariance.trace() ** 2 / covariance.square().sum())


def intrinsic_dimension(flat: Tensor, *, queries: int, neighbours: int = NEIGHBOURS) -> float:
    r"""Maximum likelihood estimate of the dimension of the manifold on which rows ``(n, d)`` lie.

    Where points are spread evenly on m dimensions, the number of neighbours within a distance r grows like
    :math:`r^m`, and of the distances :math:`r_1 \le \dots \le r_k` to the nearest

    .. math:: \frac1m \approx \operatorname{mean}\ \frac{1}{k-1}\sum_{j<k}\log\frac{r_k}{r_j},

    the mean over points (E. Levina and P. Bickel, 2004; averaged as D. MacKay and Z. Ghahramani, 2005, say). It is low
    by some for few points in many dimensions. Images that are there twice are left out.
    """
    rows = spaced(flat, queries)
    parts = []
    for some in rows.split(100):
        squared = some.square().sum(1)[:, None] - 2 * some @ flat.T + flat.square().sum(1)
        # The squares by differences round badly for the very nearest: those are taken again, exactly.
        near = squared.topk(neighbours + 2, dim=1, largest=False).indices
        distances = (flat[near].double() - some[:, None].double()).square().sum(2).sqrt().sort(1).values
        distances = distances[:, 1:]  # without the point itself
        whole = distances[(distances[:, 0] > 0), :neighbours]
        parts.append((whole[:, -1:] / whole[:, :-1]).log().sum(1) / (neighbours - 1))
    return 1 / float(torch.cat(parts).mean())
