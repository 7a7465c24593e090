r"""How bent and how uneven trajectories are: curvature, straightness and kinetic energy.

A sampler of few steps does well where trajectories are straight and run at constant speed. The curvature C sees the
bends only; the straightness S sees uneven speed too; the kinetic energy K is what optimal transport makes smallest.

All three take states ``(N + 1, B, *S)`` as :func:`genmatch.sample` returns with ``trajectory=True``, and the last two
their times, and not a velocity field. So they measure the path that the solver took, exactly (it is piecewise
linear), with no further evaluation of the network and none at an end point where its velocity is infinite. Between
grid points a velocity changes, so S and K of a smooth trajectory come out low by O(1/N^2).

On the same Gaussian path a flow from N(0, I) to N(m, c^2 I) in d dimensions has, with CondOT,
:math:`S = (2 - \pi/2)\, c\, d` and :math:`K = |m|^2 + (1 + c^2 - \pi c / 2)\, d`.

On paths of a diffusion all three diverge as N grows, C like the root of N, because Brownian paths have no length:
compare trajectories of ODEs, or at one N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .samples import check_finite

__all__ = ["Curvature", "Straightness", "curvature", "kinetic_energy", "straightness"]


@dataclass(frozen=True, eq=False)
class Curvature:
    """Curvature of a batch of trajectories.

    Attributes
    ----------
    values
        ``(B,)``, float64: length over displacement of each sample, at least 1 but for rounding; infinite where a
        sample came back to where it began, NaN where it never moved.
    median
        Over all samples that moved, the infinite ones included: the number to quote.
    mean
        Over all samples but the ``excluded``; NaN if there are none.
    ratio
        Mean length over mean displacement, over all samples.
    excluded
        Samples left out of the mean, because their displacement is below ``guard`` times their length.
    steps
        N, the number of steps of the trajectories.
    """

    values: Tensor
    median: float
    mean: float
    ratio: float
    excluded: int
    steps: int


class Straightness(NamedTuple):
    """S, S over the mean squared displacement (NaN where nothing moved), and the standard error of S over samples."""

    value: float
    normalised: float
    standard_error: float


def curvature(states: Tensor, *, guard: float = 1e-3) -> Curvature:
    r"""Path length over displacement of each trajectory.

    .. math:: C = \frac{\sum_i |x_{i+1} - x_i|}{|x_N - x_0|} \ge 1

    1 for a straight trajectory at any speed, :math:`\pi/2` for a half circle. Where trajectories return to where they
    began C is not defined, and near there it has no mean: on the CondOT path from N(0, I) to N(0, I) every sample does.
    So read the median or the ratio of means, and the count of what the mean leaves out.

    Parameters
    ----------
    states
        ``(N + 1, B, *S)``; the norm runs over all elements of S.
    guard
        Samples with a displacement below ``guard`` times their length (C above 1 / guard) are left out of the mean,
        and counted.

    Raises
    ------
    TypeError
        If ``states`` is not a floating-point tensor, or ``guard`` not a number.
    ValueError
        If there are fewer than 2 states or no samples, values are not finite, or ``guard`` is not in [0, 1).

    Notes
    -----
    Of SDE paths C grows like :math:`\sqrt{N}`: compare ODE trajectories, or fix N.
    """
    if isinstance(guard, bool) or not isinstance(guard, int | float):
        raise TypeError(f"guard must be a number, got {type(guard).__name__}")
    if not 0 <= guard < 1:
        raise ValueError(f"guard must be in [0, 1), got {guard}: it is a displacement over a path length")
    states = _checked(states)
    length = torch.stack([_squares(after - before).sqrt() for before, after in _steps(states)]).sum(0)
    displacement = _squares(states[-1].double() - states[0].double()).sqrt()
    values = length / displacement
    usable = (displacement > guard * length) & (length > 0)
    moved = values[length > 0]
    return Curvature(
        values,
        float(moved.median()) if len(moved) else math.nan,
        float(values[usable].mean()) if bool(usable.any()) else math.nan,
        float(length.mean() / displacement.mean()),
        int((~usable).sum()),
        len(states) - 1,
    )


def straightness(states: Tensor, times: Tensor | Sequence[float]) -> Straightness:
    r"""How far trajectories are from straight lines at constant speed.

    .. math:: S = \int E\left|\frac{Z_T - Z_0}{T} - \dot Z_t\right|^2 dt
        = K - \frac{E|Z_T - Z_0|^2}{T}, \qquad \text{normalised: } S\, T / E|Z_T - Z_0|^2

    over the span T of the times, which is 1 for a whole trajectory. Zero if and only if every trajectory is straight
    and at constant speed, where one Euler step is exact.

    Parameters
    ----------
    states
        ``(N + 1, B, *S)``; the norm runs over all elements of S.
    times
        ``(N + 1,)``, where the states were taken, rising or falling: the ``times`` given to :func:`genmatch.sample`.

    Raises
    ------
    TypeError
        If ``states`` is not a floating-point tensor, or ``times`` neither one nor a sequence.
    ValueError
        If there are fewer than 2 states or no samples, values are not finite, or times do not fit the states or are
        not strictly monotone.

    References
    ----------
    X. Liu, C. Gong and Q. Liu, "Flow straight and fast", arXiv 2209.03003, Section 2; normalising is ours.
    """
    states = _checked(states)
    span = _spans(states, times)
    whole = (states[-1].double() - states[0].double()) / span.sum()
    # Differences from the mean velocity, not a difference of two energies: S near 0 keeps its digits.
    parts = [
        h * _squares((after - before) / h - whole) for h, (before, after) in zip(span, _steps(states), strict=True)
    ]
    each = torch.stack(parts).sum(0)
    value = float(each.mean())
    squared = float(_squares(whole).mean() * span.sum())
    error = float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Straightness(value, value / squared if squared > 0 else math.nan, error)


def kinetic_energy(states: Tensor, times: Tensor | Sequence[float]) -> float:
    r"""Kinetic energy of trajectories.

    .. math:: K = \int E|\dot Z_t|^2 dt \ge W_2^2(p_0, p_1)

    Equal only for the optimal transport map followed at constant speed (Benamou and Brenier, 2000). Parameters and
    errors are those of :func:`straightness`.
    """
    states = _checked(states)
    span = _spans(states, times)
    parts = [_squares(after - before).mean() / h for h, (before, after) in zip(span, _steps(states), strict=True)]
    return float(torch.stack(parts).sum())


def _steps(states: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive states in float64, one pair at a time: a whole trajectory of images is large enough in float32."""
    return ((before.double(), after.double()) for before, after in pairwise(states))


def _squares(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).square().sum(1)


def _checked(states: Tensor) -> Tensor:
    check_finite("states", states)
    if states.ndim < 2 or len(states) < 2 or states[0].numel() == 0:
        raise ValueError(
            f"states must have shape (N + 1, B, *S) with N and B of at least 1, got {tuple(states.shape)}: "
            "gm.sample(..., trajectory=True) returns them"
        )
    return states.detach()


def _spans(states: Tensor, times: Tensor | Sequence[float]) -> Tensor:
    """Durations of the steps, positive, on the states' device."""
    if isinstance(times, Sequence):
        times = torch.tensor(times, dtype=torch.float64)
    check_finite("times", times)
    if times.shape != (len(states),):
        raise ValueError(f"{len(states)} states need times of shape ({len(states)},), got {tuple(times.shape)}")
    span = times.detach().double().diff()
    if not (bool((span > 0).all()) or bool((span < 0).all())):
        raise ValueError("times must rise, or fall, strictly from each state to the next")
    return span.abs().to(states.device)
