"""Schedules given by a formula."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule, check_positive, rest

__all__ = ["EDM", "VE", "VP", "CondOT", "Cosine", "Polynomial"]


@dataclass(frozen=True)
class CondOT(Schedule):
    r"""The straight line of rectified flow and flow matching.

    .. math:: \alpha_t = t, \qquad \sigma_t = 1 - (1 - \sigma_{\min}) t

    With ``sigma_min`` = 0 (the default) the path ends in the data themselves; otherwise in the data blurred by noise of
    that standard deviation (arXiv 2210.02747, eq. 20).
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        check_positive("sigma_min", self.sigma_min, zero=True)
        if self.sigma_min >= 1:
            raise ValueError(f"sigma_min must be below 1, got {self.sigma_min}: noise must shrink along the path")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.sigma_min == 0:
            return t, rest(t)
        # A product with a number costs ten times as much where it is differentiated.
        return t, torch.lerp(t.new_ones(()), t.new_full((), self.sigma_min), t)

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.full_like(t, self.sigma_min - 1)


@dataclass(frozen=True)
class Polynomial(Schedule):
    r"""A convex path that lingers at the noise.

    .. math:: \alpha_t = t^n, \qquad \sigma_t = 1 - t^n, \qquad n \ge 1

    For n < 1 the velocity at t = 0 is infinite, so it is refused.
    """

    n: float = 2.0

    def __post_init__(self) -> None:
        check_positive("n", self.n)
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}: below 1 the velocity at t = 0 is infinite")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = t**self.n
        return alpha, rest(alpha)

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_dot = self.n * t ** (self.n - 1)
        return alpha_dot, -alpha_dot


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""The variance-preserving quarter circle.

    .. math:: \alpha_t = \sin\tfrac{\pi t}{2}, \qquad \sigma_t = \cos\tfrac{\pi t}{2}
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(pi (1 - t) / 2) is exactly 0 at t = 1, where cos(pi t / 2) would leave 6e-17.
        return torch.sin(math.pi / 2 * t), torch.sin(math.pi / 2 * rest(t))

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return math.pi / 2 * torch.cos(math.pi / 2 * t), -math.pi / 2 * torch.cos(math.pi / 2 * rest(t))


@dataclass(frozen=True)
class VP(Schedule):
    r"""The variance-preserving diffusion with a linear rate, in the continuous form of arXiv 2011.13456.

    With r = 1 - t the time of the noising process,

    .. math:: \alpha_t = e^{-B(r)/2}, \quad \sigma_t^2 = 1 - e^{-B(r)}, \quad
       B(r) = \beta_{\min} r + \tfrac12(\beta_{\max}-\beta_{\min}) r^2 .

    :math:`\dot\sigma` is infinite at t = 1 (:math:`\sigma \sim \sqrt{\beta_{\min}(1-t)}`), and so is the target of a
    velocity network: predict data, noise or v on this schedule.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_positive("beta_min", self.beta_min)
        check_positive("beta_max", self.beta_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r = rest(t)
        total = self.beta_min * r + (self.beta_max - self.beta_min) / 2 * r**2
        return torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total))

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self(t)
        half = (self.beta_min + (self.beta_max - self.beta_min) * rest(t)) / 2  # of the rate
        return half * alpha, -half * alpha**2 / sigma


@dataclass(frozen=True)
class VE(Schedule):
    r"""The variance-exploding diffusion: noise of geometrically falling size on unscaled data.

    .. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{\max}\,(\sigma_{\min}/\sigma_{\max})^t

    The path ends in the data blurred by ``sigma_min``.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(math.log(self.sigma_max) + t * math.log(self.sigma_min / self.sigma_max))
        return torch.ones_like(t), sigma

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_min / self.sigma_max) * self(t)[1]


@dataclass(frozen=True)
class EDM(Schedule):
    r"""Unscaled data under noise that falls as in Karras et al. (arXiv 2206.00364, eq. 5).

    .. math:: \alpha_t = 1, \qquad
       \sigma_t = \bigl[\sigma_{\max}^{1/\rho} + t(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho})\bigr]^\rho

    A uniform grid in t is the Karras grid in :math:`\sigma`. The path ends in the data blurred by ``sigma_min``.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)
        check_positive("rho", self.rho)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (high + t * (low - high)) ** self.rho

    def closed_derivatives(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.zeros_like(t), self.rho * (low - high) * (high + t * (low - high)) ** (self.rho - 1)


def _check_range(sigma_min: float, sigma_max: float) -> None:
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
