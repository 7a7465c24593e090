"""What a schedule is: a subclass writes the values, derivatives and inverses follow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .instant import Instant

__all__ = ["Schedule", "check_positive", "rest"]


def rest(x: Tensor) -> Tensor:
    """``1 - x``, +0 at 1: one operation, which is half the cost of ``-x + 1`` where it is differentiated."""
    return 1 - x


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise unless ``value`` is a finite number above zero (or zero, where allowed)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and finite, got {value}")


class Schedule(ABC):
    r"""A map from time to :math:`(\alpha_t, \sigma_t)`, with t = 0 noise and t = 1 data.

    A subclass writes :meth:`__call__` with torch operations on a tensor of any shape, and may write
    ``closed_derivatives``. Signal must grow against noise: :math:`\alpha_t/\sigma_t` strictly increases.

    Examples
    --------
    >>> import torch
    >>> class Quadratic(Schedule):
    ...     def __call__(self, t):
    ...         return t**2, 1 - t**2
    >>> Quadratic().at(torch.tensor([0.5])).alpha_dot.item()
    1.0
    """

    # A function of the times, (alpha_dot, sigma_dot) in closed form, where a subclass has one: it writes a method.
    closed_derivatives: Any = None

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        names = ("__call__", "closed_derivatives")
        values, slopes = (next(i for i, base in enumerate(cls.__mro__) if name in vars(base)) for name in names)
        if values < slopes:  # a closed form that a base wrote for its own values is not of these
            cls.closed_derivatives = None

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`(\alpha_t, \sigma_t)` at times ``t`` in [0, 1], each of the shape of ``t``."""

    def derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`(\dot\alpha_t, \dot\sigma_t)` at times ``t``, each of their shape.

        By one forward-mode pass through :meth:`__call__`, which costs as much as a small network, unless a subclass
        has written a method ``closed_derivatives(t)``. One that writes :meth:`__call__` alone does not inherit it.
        """
        if self.closed_derivatives is not None:
            return self.closed_derivatives(t)
        return torch.func.jvp(self, (t,), (torch.ones_like(t),))[1]

    def at(self, t: Tensor) -> Instant:
        r"""Values at ``t`` (any shape, floating), and on demand their :meth:`derivatives`."""
        alpha, sigma = self(t)
        return Instant(t, alpha, sigma, derive=lambda: self.derivatives(t))

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Log signal-to-noise ratio :math:`\log(\alpha_t^2/\sigma_t^2)`; infinite where :math:`\sigma_t = 0`."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which :meth:`log_snr` takes the values asked; 0 or 1 for values the schedule does not reach.

        By bisection in float64 and two Newton steps, so that small times keep their relative accuracy.
        """
        target = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = (low + high) / 2
        for _ in range(2):
            value, slope = torch.func.jvp(self.log_snr, (t,), (torch.ones_like(t),))  # type: ignore[misc]
            step = (value - target) / slope
            t = torch.where(step.isfinite(), (t - step).clamp(low - 1e-9, high + 1e-9), t)
        ends = self.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device=target.device))
        t = torch.where(target.isnan(), target, t.clamp(0, 1))
        return torch.where(target <= ends[0], 0.0, torch.where(target >= ends[1], 1.0, t))
