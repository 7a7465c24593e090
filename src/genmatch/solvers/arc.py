r"""The angle in which exponential solvers extrapolate: its steps, and what they gain.

With :math:`\theta = \arctan(\alpha/\sigma)` the normalised state :math:`y = x/\sqrt{\alpha^2+\sigma^2}` of a flow is a
forced oscillator, :math:`y'' + y = K`. Over a step of angle :math:`\tau` a constant K gains :math:`1-\cos\tau`, and one
that grows with the angle gains :math:`\tau-\sin\tau`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from numpy.polynomial import legendre
from torch import Tensor

from ..schedules import Instant

__all__ = ["Arc", "part_of"]


class Arc(NamedTuple):
    r"""Steps in the angle that the run turns through, :math:`\omega = \theta` forwards, :math:`\pi/2 - \theta` back."""

    turn: Tensor  # of each step, positive
    change: Tensor  # of sin(omega)
    lag: Tensor  # integral over the step of (omega - omega at its end) d sin(omega)
    norm: Tensor  # of (alpha, sigma) at the end of each step

    @classmethod
    def of(cls, now: Instant) -> Arc:
        t, s = part_of(now, slice(None, -1)), part_of(now, slice(1, None))
        forwards = bool(now.t[-1] > now.t[0])
        # Differences of sines by products, as near both ends the sines themselves are equal to rounding.
        turn = torch.atan2(s.alpha * t.sigma - t.alpha * s.sigma, s.alpha * t.alpha + s.sigma * t.sigma).abs()
        left = torch.atan2(now.sigma, now.alpha) if forwards else torch.atan2(now.alpha, now.sigma)  # pi/2 - omega
        change = 2 * torch.sin(turn / 2) * torch.sin((left[:-1] + left[1:]) / 2)
        places, weights = (torch.from_numpy(values) for values in legendre.leggauss(8))
        back = turn[:, None] * (1 - places) / 2
        lag = -(back * torch.sin(left[1:, None] + back) * weights).sum(1) * turn / 2
        return cls(turn, change, lag, torch.hypot(s.alpha, s.sigma))

    @property
    def constant(self) -> Tensor:
        """Gain of K = 1."""
        return 2 * torch.sin(self.turn / 2) ** 2

    @property
    def linear(self) -> Tensor:
        """Gain of K = omega - omega at the start."""
        small = self.turn**3 / 6 * (1 - self.turn**2 / 20 * (1 - self.turn**2 / 42))
        return torch.where(self.turn < 0.1, small, self.turn - torch.sin(self.turn))

    def third(self) -> tuple[list[float], list[float]]:
        """What multiplies the last change of D, and the one before, in the steps from the third on."""
        a, b = self.change[1:-1], self.lag[1:-1]  # the last change is a K_0 + b K_1
        c, d = self.change[:-2], self.lag[:-2] - self.turn[1:-1] * self.change[:-2]  # the one before
        scale = self.norm[2:] / (a * d - b * c)
        constant, linear = self.constant[2:], self.linear[2:]
        return (scale * (constant * d - linear * c)).tolist(), (scale * (linear * a - constant * b)).tolist()


def part_of(instant: Instant, where: slice) -> Instant:
    """Some rows of a vector of instants, without derivatives."""
    return Instant(instant.t[where], instant.alpha[where], instant.sigma[where])
