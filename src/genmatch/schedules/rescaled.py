r"""Schedules made of others: shifted in log-SNR for another resolution, or rescaled to start in pure noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .chain import DDPM
from .schedule import Schedule, check_positive, rest

__all__ = ["Shifted", "ZeroTerminal", "resolution_shift"]


def resolution_shift(size: int | Sequence[int], base: int | Sequence[int]) -> float:
    r"""The shift for images of another size, :math:`\sqrt{m/n}` with m and n the numbers of pixels (or of tokens).

    Averaging 2 x 2 pixels halves the noise and leaves the picture: an image of twice the side keeps its content up to
    twice the noise. With the shift s the noise-to-signal ratio :math:`\sigma/\alpha` is s times as large, the log-SNR
    lower by :math:`2\log s`.

    Parameters
    ----------
    size, base
        Side of the square images in question, and of those for which the schedule is known to be right; or
        (height, width), or (frames, height, width), of each.

    References
    ----------
    .. [1] P. Esser et al., arXiv 2403.03206, eq. 23.
    .. [2] E. Hoogeboom, J. Heek, T. Salimans, "Simple diffusion", arXiv 2301.11093, Section 3.1:
       :math:`\log\mathrm{SNR}` plus :math:`2\log(\text{base}/\text{size})`.

    Examples
    --------
    >>> resolution_shift(1024, 256)
    4.0
    """
    shift = math.sqrt(_pixels("size", size) / _pixels("base", base))
    if _axes(size) != _axes(base):
        raise ValueError(f"size and base must have as many sides, got {size!r} and {base!r}")
    return shift


@dataclass(frozen=True)
class Shifted(Schedule):
    r"""A schedule with ``shift`` times the noise-to-signal ratio at every time: as large images want in training.

    .. math:: \frac{\sigma'_t}{\alpha'_t} = s\,\frac{\sigma_t}{\alpha_t}, \qquad
       \log\mathrm{SNR}'_t = \log\mathrm{SNR}_t - 2\log s

    The scale of the state stays what it is: :math:`\alpha' + \sigma' = 1` on a straight line (CondOT, Polynomial),
    :math:`\alpha'^2 + \sigma'^2 = 1` where the variance is preserved (Cosine, VP, DDPM); on other schedules
    :math:`\alpha' = \alpha`, :math:`\sigma' = s\sigma` (VE, EDM). Ends without noise or without data stay so.

    A network trained on ``Shifted(schedule, s)`` with equal steps, and one trained on ``schedule`` with times and steps
    shifted, see the same noise: on CondOT the uniform grid here is :func:`genmatch.grids.shifted` there, state by
    state. It is fed its own t in [0, 1]; on a chain the steps keep their times, so a network of table indices takes
    ``time=gm.predict.clocks.index(DDPM(betas))``.

    Parameters
    ----------
    schedule
        The schedule to shift.
    shift
        s > 0, above 1 for more noise; :func:`resolution_shift` gives it for a size.

    References
    ----------
    .. [1] E. Hoogeboom, J. Heek, T. Salimans, "Simple diffusion", arXiv 2301.11093, Section 3.1.
    .. [2] P. Esser et al., arXiv 2403.03206, Section 5.3.2.
    """

    schedule: Schedule
    shift: float

    def __post_init__(self) -> None:
        _check_schedule(self.schedule)
        check_positive("shift", self.shift)
        if not 1 / FARTHEST <= self.shift <= FARTHEST:
            raise ValueError(f"shift must be between {1 / FARTHEST:g} and {FARTHEST:g}, got {self.shift:g}")
        alpha, sigma = self.schedule(torch.linspace(0, 1, 33, dtype=torch.float64))
        line = bool(((alpha + sigma - 1).abs() < _ROUNDING).all())
        object.__setattr__(self, "_power", 1 if line else 2 if _preserves_variance(alpha, sigma) else 0)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.schedule(t)
        if self._power == 1:  # type: ignore[attr-defined]
            size = alpha + self.shift * rest(alpha)
        elif self._power == 2:  # type: ignore[attr-defined]
            # sigma^2 as (1 - alpha)(1 + alpha): its own derivative may be infinite where it is 0.
            size = (alpha**2 + self.shift**2 * (rest(alpha) * (1 + alpha))).sqrt()
        else:
            return alpha, self.shift * sigma
        return alpha / size, self.shift * sigma / size


@dataclass(frozen=True)
class ZeroTerminal(Schedule):
    r"""A variance-preserving schedule rescaled to start in pure noise: zero terminal SNR.

    .. math:: \alpha'_t = \frac{\alpha_t - \alpha_0}{\alpha_* - \alpha_0}\,\alpha_*, \qquad
       \sigma'_t = \sqrt{1 - \alpha'^2_t}

    with :math:`\alpha_*` the last value, which stays: 1 at t = 1, and on a :class:`DDPM` chain that of its cleanest
    step, at t = 1 - 1/T, behind which nothing is changed. VP and DDPM leave :math:`\alpha_0` = 0.0066 and 0.0064 of the
    data in their noise; a network learns to read the mean of an image off it, which at sampling is always 0.

    At t = 0 a noise network says nothing of the data: train :class:`genmatch.predict.V` or
    :class:`genmatch.predict.Data`, from which sampling starts at t = 0 exactly (with a noise network
    :func:`genmatch.sample` starts at log-SNR -10). The steps of a chain keep their times, so a network of table indices
    takes ``time=gm.predict.clocks.index(DDPM(betas))``.

    Parameters
    ----------
    schedule
        A variance-preserving schedule, :math:`\alpha^2 + \sigma^2 = 1`; a chain of two steps or more.

    References
    ----------
    .. [1] S. Lin, B. Liu, J. Li, X. Yang, "Common diffusion noise schedules and sample steps are flawed",
       arXiv 2305.08891, Algorithm 1.
    """

    schedule: Schedule

    def __post_init__(self) -> None:
        schedule = self.schedule
        _check_schedule(schedule)
        if isinstance(schedule, DDPM) and schedule.length < 2:
            raise ValueError("a chain of one step has no other that could stay while the first becomes noise")
        kept = 1 - 1 / schedule.length if isinstance(schedule, DDPM) else 1.0
        alpha, sigma = schedule(torch.linspace(0, 1, 33, dtype=torch.float64))
        if not _preserves_variance(alpha, sigma):
            raise ValueError(
                f"zero terminal SNR is for variance-preserving schedules (VP, DDPM), got {schedule!r}, which is none: "
                "CondOT and Polynomial start in pure noise as they are"
            )
        last_alpha, last_sigma = (value.item() for value in schedule(torch.tensor(kept, dtype=torch.float64)))
        for name, value in (("_kept", kept), ("_first", alpha[0].item()), ("_last", last_alpha)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_remains", last_sigma**2 / (1 + last_alpha))  # 1 - alpha there, without cancellation

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last, remains = self._first, self._last, self._remains  # type: ignore[attr-defined]
        alpha, sigma = self.schedule(t)
        scaled = (alpha - first) * (last / (last - first))
        # Exactly 0 at t = 0, in any precision; the derivative is its own.
        scaled = torch.where(t <= 0, scaled - scaled.detach(), scaled.clamp(min=0))
        # 1 - alpha'^2 as sigma^2 times what is finite and positive: near the data the difference would cancel.
        part = last / (1 + alpha) - (first * remains / sigma**2 if remains else 0.0)
        noise = sigma * (part * (1 + scaled) / (last - first)).sqrt()
        behind = t > self._kept  # type: ignore[attr-defined]
        return torch.where(behind, alpha, scaled), torch.where(behind, sigma, noise)


FARTHEST = 1e9  # shift: its square is a number in float32
_ROUNDING = 1e-9


def _check_schedule(schedule: Schedule) -> None:
    if not isinstance(schedule, Schedule):
        hint = ": call it, as in gm.schedules.CondOT()" if isinstance(schedule, type) else ""
        raise TypeError(f"schedule must be a genmatch Schedule, got {schedule!r}{hint}")


def _preserves_variance(alpha: Tensor, sigma: Tensor) -> bool:
    return bool(((alpha**2 + sigma**2 - 1).abs() < _ROUNDING).all())


def _axes(size: int | Sequence[int]) -> int:
    return len(size) if isinstance(size, Sequence) else 2


def _pixels(name: str, size: int | Sequence[int]) -> int:
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if not sides or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"{name} must be the side of a square image or its (height, width), integers, got {size!r}")
    if min(sides) < 1:
        raise ValueError(f"{name} must be at least 1 on every side, got {size!r}")
    return math.prod(sides)
