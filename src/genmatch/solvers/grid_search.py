r"""The search for a time grid: where a solver errs, and least squares over the lengths of its steps.

A grid of n steps is n - 1 numbers: the log lengths of its steps, less that of the last, in a coordinate s in which the
solver errs evenly. The end points of a run are a smooth function of them, and their distance to the reference is a sum
of squares, so the search is that of Levenberg and Marquardt, with differences for derivatives: the states are never
differentiated, and any solver and network will do.

References
----------
.. [1] J. Nocedal, S. Wright, "Numerical optimization", 2006, Section 10.3 (Levenberg-Marquardt).
.. [2] U. Ascher, R. Mattheij, R. Russell, "Numerical solution of boundary value problems for ordinary differential
   equations", 1995, Section 9.1 (equidistribution of the local error).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Warp", "search"]

FLOOR = 0.1  # share of the knots themselves in the density of steps: no stretch, however easy, is left without any
NUDGE = 0.1  # change of a log length in a difference: it looks past the ripples of a network
FAR = 1.0  # no log length changes more in one iteration
TRIES = 6
ENOUGH = 1e-3  # an iteration that gains less than this share of the loss is the last


class Warp(NamedTuple):
    """A coordinate s in [0, 1] along a run, in which a solver's equal steps err about equally.

    ``shares`` are the knots as shares of the run, 0 to 1, and ``coordinates`` their s; both rise strictly.
    """

    shares: np.ndarray
    coordinates: np.ndarray

    @classmethod
    def of(cls, shares: Tensor, errors: Tensor, order: int) -> Warp:
        r"""From the local errors :math:`e_i \sim C(t) h^{p+1}` between knots: density :math:`e_i^{1/(p+1)}`."""
        density = errors.double().cpu() ** (1 / (order + 1))
        total = float(density.sum())
        even = torch.full_like(density, 1 / len(density))
        mixed = (1 - FLOOR) * density / total + FLOOR * even if math.isfinite(total) and total > 0 else even
        places = torch.cat([torch.zeros(1, dtype=torch.float64), mixed.cumsum(0)])
        return cls(shares.numpy(), (places / places[-1]).numpy())

    def logs(self, shares: Tensor) -> Tensor:
        """The parameters ``(steps - 1,)`` of a grid given by its points as shares of the run."""
        lengths = torch.from_numpy(np.interp(shares.numpy(), self.shares, self.coordinates)).diff().clamp(min=1e-9)
        return (lengths[:-1] / lengths[-1]).log()

    def grid(self, logs: Tensor) -> Tensor:
        """The points ``(steps + 1,)`` of a grid as shares of the run, from its parameters."""
        lengths = torch.cat([logs, logs.new_zeros(1)]).softmax(0)
        inner = np.interp(lengths.cumsum(0)[:-1].numpy(), self.coordinates, self.shares)
        return torch.cat([logs.new_zeros(1), torch.from_numpy(inner), logs.new_ones(1)])


def search(residual: Callable[[Tensor], Tensor | None], logs: Tensor, iterations: int) -> Tensor:
    """The parameters of least squared residual that iterations of Levenberg-Marquardt find from ``logs``.

    ``residual`` maps parameters to a vector, or to None where a run comes to nothing. An iteration costs one residual
    for each parameter and 1 to 6 more, and never raises the sum of squares.
    """
    here = residual(logs)
    if here is None or not len(logs):
        return logs
    damping = 1e-2
    for _ in range(iterations):
        loss = here.square().sum().item()
        columns = []
        for i in range(len(logs)):
            nudged = logs.clone()
            nudged[i] += NUDGE
            there = residual(nudged)
            columns.append(torch.zeros_like(here) if there is None else (there - here) / NUDGE)
        jacobian = torch.stack(columns, 1)
        curvature, slope = (jacobian.mT @ jacobian).cpu(), (jacobian.mT @ here).cpu()
        scale = curvature.diagonal().clamp(min=1e-12 * float(curvature.diagonal().max()) + 1e-300)
        gained = 0.0
        for _ in range(TRIES):
            change = -torch.linalg.solve(curvature + damping * torch.diag(scale), slope)
            change = change * min(1.0, FAR / max(float(change.abs().max()), 1e-30))
            there = residual(logs + change)
            gained = 0.0 if there is None else loss - there.square().sum().item()
            if there is not None and gained > 0:
                logs, here, damping = logs + change, there, max(damping / 4, 1e-6)
                break
            damping *= 8
        if gained <= ENOUGH * loss:
            break
    return logs
