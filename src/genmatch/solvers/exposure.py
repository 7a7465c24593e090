r"""The numbers of noise in an exponential step: how far it damps, and what a linear change of the data adds.

For diffusions of variance :math:`g^2` the exposure of a step is :math:`G(t, s) = \int_t^s g^2/(2\sigma^2)\,d\tau`, the
weighted sum of those of its :class:`~genmatch.Langevin` terms.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..diffusivity import Diffusivity, Function
from ..generators import Langevin
from ..quadrature import integrate
from ..schedules import Instant, Schedule
from .field import Field

__all__ = ["exposure", "noise_terms", "noisy_gain"]

NODES = 16  # of Gauss-Legendre in a step: what it integrates is smooth there


def noise_terms(field: Field) -> list[tuple[Any, Diffusivity]]:
    """Weight and diffusivity of each term that carries noise; equal diffusivities of constant weights are added up."""
    varying: list[tuple[Any, Diffusivity]] = []
    constant: list[tuple[float, Diffusivity]] = []
    for weight, generator in field.operator.terms:
        if not isinstance(generator, Langevin):
            continue
        if callable(weight):
            varying.append((weight, generator.diffusivity))
            continue
        same = next((i for i, (_, known) in enumerate(constant) if known == generator.diffusivity), None)
        if same is None:
            constant.append((weight, generator.diffusivity))
        else:  # both may be infinite at t = 0, where their difference is not
            constant[same] = (constant[same][0] + weight, generator.diffusivity)
    return [*varying, *(term for term in constant if term[0])]


def exposure(field: Field, t: Instant, s: Instant) -> Tensor:
    """G of each step; refuses noise that is negative, or that runs backwards in time."""
    terms = noise_terms(field)
    total = torch.zeros_like(t.t)
    if not terms:
        return total
    if bool((s.t < t.t).any()):
        raise ValueError("noise runs from noise to data: with times that fall use a flow, without Langevin")
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    inner = s.sigma > 0
    for weight, diffusivity in terms:
        if isinstance(diffusivity, Function):
            _refuse_negative(diffusivity, t)
        if callable(weight):
            part = integrate(lambda times, w=weight, d=diffusivity: _rate(w, d, schedule.at(times)), t.t, s.t)
        else:
            part = weight * diffusivity.exposure(schedule, t.t, s.t)
        # Where the step ends in the data the old noise has no weight, whatever G is.
        total = total + torch.where(inner, part, math.inf)
    if not bool((total >= 0).all()):
        worst = int(torch.argmin(torch.nan_to_num(total, nan=-math.inf)))
        step = f"between t = {t.t[worst]:g} and {s.t[worst]:g}"
        if bool(total[worst].isnan()):
            raise ValueError(f"infinite noise is both added and subtracted {step}: start later, by start=")
        raise ValueError(
            f"the weights make the variance negative {step}: "
            "the diffusions subtracted carry more noise than those added"
        )
    return total


def _refuse_negative(diffusivity: Function, t: Instant) -> None:
    """A function of the user's may be negative for a part of a step, which the integral over it would hide."""
    variance = torch.as_tensor(diffusivity.variance(t), dtype=t.t.dtype).expand_as(t.t)
    if not bool((variance >= 0).all()):
        worst = int(torch.argmin(torch.nan_to_num(variance, nan=-math.inf)))
        raise ValueError(
            f"the diffusivity is {variance[worst]:g} at t = {t.t[worst]:g}: "
            "it is a variance per unit of time, at least 0"
        )


def noisy_gain(field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
    r""":math:`\sin\theta_s\int_t^s\bigl(1 - \frac{\tan\theta}{\tan\theta_s}e^{-G(\cdot,s)}\bigr)\,d\sin\theta`, with
    :math:`\theta = \arctan(\alpha/\sigma)`, and G; both right for steps that start inside (0, 1).

    G from each node to the end of the step comes from the same nodes: the integral of their interpolating polynomial.
    """
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    places, weights, tails = _rule()
    half = (s.t - t.t)[:, None] / 2
    times = t.t[:, None] + half * (1 + places)
    inner = schedule.at(times)
    rate = torch.zeros_like(times)
    for weight, diffusivity in noise_terms(field):
        rate = rate + _rate(weight, diffusivity, inner)
    left = half * (rate @ tails.T)
    ratio = inner.alpha / inner.sigma * (s.sigma / s.alpha)[:, None]  # 0 where the step ends in the data
    # d sin(theta) = cos(theta) d theta = sigma W / norm^3 dt
    slope = inner.sigma * inner.wronskian / (inner.alpha**2 + inner.sigma**2) ** 1.5
    gain = ((1 - ratio * torch.exp(-left)) * slope * weights * half).sum(1)
    return torch.sin(torch.atan2(s.alpha, s.sigma)) * gain, (rate * weights * half).sum(1)


def _rate(weight: Any, diffusivity: Diffusivity, instant: Instant) -> Tensor:
    """The weighted g^2 / (2 sigma^2) at many times; a weight is a host function of one time."""
    t = instant.t
    if callable(weight):
        weight = torch.tensor([weight(time) for time in t.flatten().tolist()], dtype=t.dtype).reshape(t.shape)
    return weight * torch.as_tensor(diffusivity.per_sigma(instant), dtype=t.dtype) / (2 * instant.sigma)


@cache
def _rule() -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [-1, 1], and the weights of the integrals from each node to 1."""
    places, weights = legendre.leggauss(NODES)
    antiderivatives = legendre.legint(np.eye(NODES), lbnd=-1)
    heads = legendre.legvander(places, NODES) @ antiderivatives @ np.linalg.inv(legendre.legvander(places, NODES - 1))
    return torch.from_numpy(places), torch.from_numpy(weights), torch.from_numpy(weights - heads)
