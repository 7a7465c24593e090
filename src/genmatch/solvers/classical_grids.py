"""Grids between any two times that need no search: what an optimised one is held against, and knots to judge it by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..grids import quadratic, uniform
from ..paths import GaussianPath
from ..schedules import Schedule

__all__ = ["between", "classical_grids", "spread_knots"]

TABLE = 4096
SPAN = 10.0  # log-SNR between which the knots of the reference are spread


def between(begin: float, end: float, shares: Tensor) -> Tensor:
    """Times from shares of a run, both ends exact."""
    times = begin + (end - begin) * shares
    times[0], times[-1] = begin, end
    return times


def spread_knots(path: Any, count: int, begin: float, end: float) -> Tensor:
    r"""Knots of the reference as shares of the run, 0 to 1: by t, by the angle and by the log-SNR, a third each."""
    shares = torch.linspace(0, 1, TABLE + 1, dtype=torch.float64)
    if isinstance(path, GaussianPath):
        alpha, sigma = path.schedule(begin + (end - begin) * shares)
        angle = torch.atan2(alpha, sigma)
        levels = (2 * (alpha.log() - sigma.log())).clamp(-SPAN, SPAN)
        scales = [shares] + [(v - v[0]) / (v[-1] - v[0]) for v in (angle, levels) if v[-1] != v[0]]
    else:
        scales = [shares, torch.sin(torch.pi / 2 * shares) ** 2]
    table = torch.stack(scales).mean(0).numpy()
    knots = torch.from_numpy(np.interp(np.linspace(0, 1, count + 1), table, shares.numpy()))
    knots[0], knots[-1] = 0.0, 1.0
    return knots


def classical_grids(path: Any, steps: int, begin: float, end: float) -> list[Tensor]:
    """Uniform and quadratic, and on Gaussian paths Karras and log-SNR, each from ``begin`` to ``end``."""
    found = [uniform(steps, begin, end), quadratic(steps, begin, end)]
    if isinstance(path, GaussianPath):
        low, high = min(begin, end), max(begin, end)
        for make in (_karras, _log_snr):
            grid = make(path.schedule, steps, low, high)
            grid[0], grid[-1] = low, high
            if bool((grid.diff() > 0).all()):
                found.append(grid if begin < end else grid.flip(0))
    return found


def _karras(schedule: Schedule, steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """Karras' noise levels between two times, cut to 0.002 .. 80."""
    first, last = (-schedule.log_snr(torch.tensor([low, high], dtype=torch.float64)) / 2).exp().tolist()
    first, least = min(first, 80.0), 0.002
    ramp = torch.linspace(0, 1, steps + 1 if last >= least else steps, dtype=torch.float64)
    least = max(last, least)
    levels = (first ** (1 / rho) + ramp * (least ** (1 / rho) - first ** (1 / rho))) ** rho
    times = schedule.inverse_log_snr(-2 * levels.log())
    return times if len(times) > steps else torch.cat([times, times.new_tensor([high])])


def _log_snr(schedule: Schedule, steps: int, low: float, high: float) -> Tensor:
    """Equal steps in log-SNR between two times, cut to -10 .. 10."""
    first, last = schedule.log_snr(torch.tensor([low, high], dtype=torch.float64)).tolist()
    return schedule.inverse_log_snr(torch.linspace(max(first, -SPAN), min(last, SPAN), steps + 1, dtype=torch.float64))
