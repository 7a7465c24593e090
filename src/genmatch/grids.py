"""Time grids: where a solver steps. Plain float64 tensors ``(steps + 1,)`` from ``start`` to ``stop``, both exact.

Pass one as ``times=`` to :func:`genmatch.sample`, or write your own: any strictly monotone tensor in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .schedules import Schedule, check_positive, resolution_shift

__all__ = ["hazard", "karras", "log_snr", "quadratic", "resolution", "shifted", "uniform"]

_ROUNDING = 1e-9


def uniform(steps: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    """Equal steps in t. From data to noise if ``start > stop``."""
    return _span(_fractions(steps), start, stop)


def quadratic(steps: int, start: float = 0.0, stop: float = 1.0) -> Tensor:
    r"""Steps that shrink towards ``stop``: :math:`1 - t = (1 - i/N)^2`.

    DDIM's quadratic choice (arXiv 2010.02502, Appendix D.2).
    """
    return _span(1 - (1 - _fractions(steps)) ** 2, start, stop)


def shifted(steps: int, shift: float, start: float = 0.0, stop: float = 1.0) -> Tensor:
    r"""The uniform grid with :math:`\sigma/\alpha` of CondOT multiplied by ``shift``: more steps at the noise for
    ``shift`` > 1, as large images want.

    .. math:: t = \frac{r}{r + \text{shift}\,(1 - r)}, \quad r = i/N

    P. Esser et al., arXiv 2403.03206, eq. 23 (there in 1 - t).
    """
    check_positive("shift", shift)
    r = _fractions(steps)
    return _span(r / (r + shift * (1 - r)), start, stop)


def resolution(
    steps: int, size: int | Sequence[int], base: int | Sequence[int], start: float = 0.0, stop: float = 1.0
) -> Tensor:
    r"""The :func:`shifted` grid for images of another size than the model's steps were chosen for.

    Its shift is :math:`\sqrt{m/n}`, with m pixels of images of ``size`` and n of ``base``: more of them average the
    noise away, so what matters happens at more noise. Sides of squares or (height, width); where the model works on
    latents or patches, in these (arXiv 2403.03206, eq. 23). To train with the shift, see
    :class:`genmatch.schedules.Shifted`.
    """
    return shifted(steps, resolution_shift(size, base), start, stop)


def hazard(steps: int, start: float = 0.0, stop: float = 0.999) -> Tensor:
    r"""Equal steps in :math:`-\log(1 - t)`: :math:`1 - t` falls by the same factor in each.

    For jumps, which come at the rate :math:`1/(1-t)` on a Gaussian path under CondOT and on a mixture path: as many in
    each step. ``stop`` must be below 1, where the grid would have no end; a last point at 1 may be appended.
    """
    if not 0 <= start < stop < 1:
        raise ValueError(
            f"a grid in -log(1 - t) needs 0 <= start < stop < 1, got {start} and {stop}: stop near 1, at 0.999 say"
        )
    r = _fractions(steps)
    times = 1 - (1 - start) * ((1 - stop) / (1 - start)) ** r
    times[0], times[-1] = start, stop
    return times


def karras(
    schedule: Schedule, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    r"""The grid of Karras et al. in the noise level :math:`\hat\sigma = \sigma/\alpha` of any Gaussian schedule.

    :math:`\hat\sigma_i = [\sigma_{\max}^{1/\rho} + \tfrac{i}{N-1}(\sigma_{\min}^{1/\rho} -
    \sigma_{\max}^{1/\rho})]^\rho` for i = 0 .. N - 1, then t = 1 (arXiv 2206.00364, eq. 5); on a schedule that never
    falls below ``sigma_min`` the levels themselves reach t = 1, at i = N. The range is cut to what it reaches.
    The first point is where the noise level is ``sigma_max``, which need not be t = 0.
    """
    _check_steps(steps)
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    check_positive("rho", rho)
    first, last = (-schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)) / 2).exp().tolist()
    # Levels that differ by rounding are the same: no step of 1e-9 at either end.
    ends_above, starts_below = last >= sigma_min * (1 - _ROUNDING), first <= sigma_max * (1 + _ROUNDING)
    low, high = max(sigma_min, last), min(sigma_max, first)
    if low >= high:
        raise ValueError(
            f"no noise level between sigma_min={sigma_min} and sigma_max={sigma_max} is on this schedule, "
            f"which covers {last:g} to {first:g}"
        )
    ramp = _fractions(steps) if ends_above else _fractions(max(steps - 1, 1))[:steps]
    levels = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    times = schedule.inverse_log_snr(-2 * levels.log())
    if starts_below:
        times[0] = 0.0
    if ends_above:
        times[-1] = 1.0
        return _distinct(times)
    return _distinct(torch.cat([times, torch.ones(1, dtype=torch.float64)]))


def log_snr(schedule: Schedule, steps: int, *, low: float = -10.0, high: float = 10.0) -> Tensor:
    """Equal steps in log-SNR from ``low`` to ``high``, with t = 0 and t = 1 as the first and last points.

    The grid of DPM-Solver (arXiv 2206.00927, Section 3.4). The log-SNR of an interior end (t = 0 or 1) may be infinite,
    so the span is cut at ``low`` and ``high``, and at what the schedule reaches.
    """
    _check_steps(steps)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low must be below high and both finite, got {low} and {high}")
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    low, high = max(low, ends[0]), min(high, ends[1])
    inner = schedule.inverse_log_snr(low + (high - low) * _fractions(steps))
    inner[0], inner[-1] = 0.0, 1.0
    return _distinct(inner)


def _check_steps(steps: int) -> bool:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {type(steps).__name__}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return True


def _fractions(steps: int) -> Tensor:
    _check_steps(steps)
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def _span(fractions: Tensor, start: float, stop: float) -> Tensor:
    for name, value in (("start", start), ("stop", stop)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}: 0 is noise, 1 is data")
    if start == stop:
        raise ValueError(f"start and stop are both {start}: there is nothing to integrate")
    times = start + (stop - start) * fractions
    times[0], times[-1] = start, stop
    return times


def _distinct(times: Tensor) -> Tensor:
    if not bool((times.diff() > 0).all()):
        raise ValueError(
            "the grid has repeated points: the levels asked for lie outside what the schedule reaches; "
            "narrow the range or take fewer steps"
        )
    return times
