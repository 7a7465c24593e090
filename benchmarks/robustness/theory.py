r"""Closed forms of error propagation in the linear Gaussian world.

Data :math:`N(m, c^2)` on a Gaussian path has :math:`p_t = N(\alpha m, s_t^2)` with
:math:`s_t^2 = \alpha^2c^2 + \sigma^2`. Under noise :math:`g^2 = 2\gamma b`, :math:`b = \sigma W/\alpha` (gamma = 0 the
flow, gamma = 1 the reverse of the noising process), the drift is linear in the state, and a disturbance at time t
reaches time r multiplied by

.. math:: \Phi_\gamma(r, t) = \Bigl(\frac{s_r}{s_t}\Bigr)^{1+\gamma}\Bigl(\frac{\alpha_t}{\alpha_r}\Bigr)^{\gamma},

as :math:`\partial_x u = \dot s/s` and :math:`b\,\partial_x\nabla\log p = -b/s^2 = \dot s/s - \dot\alpha/\alpha`.
In the standardised state :math:`y = (x - \alpha m)/s` the flow is at rest and the noise is an Ornstein-Uhlenbeck
process: y at r keeps the share :math:`\rho = \Phi\,s_t/s_r` of what it was at t, and N(0, 1) is its law at all times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from genmatch.quadrature import integrate
from genmatch.schedules import CondOT, Schedule

__all__ = [
    "LEVELS",
    "GaussianWorld",
    "Level",
    "Waves",
    "amplification",
    "gaussian_kl",
    "heat_growth",
    "ornstein_damping",
]

Level = Literal["network", "drift"]
LEVELS: tuple[Level, ...] = ("network", "drift")
Kick = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Waves:
    r"""A smooth field on the line, :math:`f(x) = \sum_j a_j\cos(k_j x + \phi_j)`; float64 vectors."""

    amplitudes: Tensor
    wavenumbers: Tensor
    phases: Tensor

    @classmethod
    def random(cls, seed: int, length: float = 1.0, count: int = 12) -> Waves:
        r"""A draw of the Gaussian field of unit variance with covariance :math:`e^{-(x-y)^2/2\ell^2}`, nearly."""
        generator = torch.Generator().manual_seed(seed)
        wavenumbers = torch.randn(count, generator=generator, dtype=torch.float64) / length
        phases = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
        return cls(torch.full((count,), math.sqrt(2 / count), dtype=torch.float64), wavenumbers, phases)

    def __call__(self, x: Tensor) -> Tensor:
        """f at each element of ``x``."""
        waves = torch.cos(x[..., None] * self.wavenumbers.to(x) + self.phases.to(x))
        return waves @ self.amplitudes.to(x)

    def mean(self, centre: Tensor, variance: Tensor) -> Tensor:
        r""":math:`E f(X)`, X ~ N(centre, variance): each wave is damped by :math:`e^{-k^2 v/2}`."""
        damping = torch.exp(-0.5 * self.wavenumbers**2 * variance[..., None])
        return (self.amplitudes * damping * torch.cos(centre[..., None] * self.wavenumbers + self.phases)).sum(-1)


@dataclass(frozen=True)
class GaussianWorld:
    """Data N(mean, std^2) on the line and a Gaussian path."""

    mean: float = 1.0
    std: float = 1.0
    schedule: Schedule = field(default_factory=CondOT)

    def scale(self, t: Tensor) -> Tensor:
        r""":math:`s_t`, the standard deviation of :math:`p_t`."""
        alpha, sigma = self.schedule(t)
        return torch.hypot(alpha * self.std, sigma)

    def factor(self, end: float | Tensor, t: Tensor, gamma: float) -> Tensor:
        r""":math:`\Phi_\gamma(\text{end}, t)`."""
        last = torch.as_tensor(end, dtype=t.dtype)
        memory = (self.schedule(t)[0] / self.schedule(last)[0]) ** gamma
        return (self.scale(last) / self.scale(t)) ** (1 + gamma) * memory

    def memory(self, end: float | Tensor, t: Tensor, gamma: float) -> Tensor:
        r""":math:`\rho`: how much of the standardised state at t is left at ``end``."""
        last = torch.as_tensor(end, dtype=t.dtype)
        return self.factor(end, t, gamma) * self.scale(t) / self.scale(last)

    def bias(self, gamma: float, level: Level, kick: Kick | None = None, start: float = 0.0, end: float = 1.0) -> float:
        r"""Shift of the mean at ``end``, per unit of a velocity error ``kick(t)`` from ``start`` on; 1 by default.

        :math:`a\int\Phi(\text{end}, t)\,k(t)\,dt`, where a = 1 for an error of the drift itself and :math:`1 + \gamma`
        for one of the network: velocity and score are read off it, and :math:`b\,\delta s = \delta u`.
        """
        kick = torch.ones_like if kick is None else kick
        return amplification(gamma, level) * self._integral(lambda t: self.factor(end, t, gamma) * kick(t), start, end)

    def white_variance(self, gamma: float, level: Level) -> float:
        r"""Variance that white noise of unit intensity in the drift adds at t = 1: :math:`a^2\int\Phi^2\,dt`."""
        return amplification(gamma, level) ** 2 * self._integral(lambda t: self.factor(1.0, t, gamma) ** 2, 0.0, 1.0)

    def field_slope(self, gamma: float, level: Level, waves: Waves, nodes: int = 96) -> float:
        r""":math:`dW_2/d\epsilon` at 0 of the law at t = 1, under a drift error :math:`\epsilon f(x)`.

        To first order mass at y moves by :math:`D(y) = aE[\int\Phi(1, t) f(X_t)\,dt\,|\,X_1 = y]`, and on the line
        :math:`W_2 = \epsilon\sqrt{E D^2}`. The standardised state is reversible, so that given its end it is
        :math:`N(\rho y, 1 - \rho^2)` at t.
        """
        places, weights = _gauss(nodes)
        y, on_y = math.sqrt(2) * _hermite(nodes)[0], _hermite(nodes)[1] / math.sqrt(math.pi)
        t = (places + 1) / 2
        # Nodes that crowd both ends: the memory of gamma < 1 has an infinite slope at t = 0.
        t, weights = t**2 * (3 - 2 * t), weights / 2 * 6 * t * (1 - t)
        rho, scale = self.memory(1.0, t, gamma), self.scale(t)
        centre = self.schedule(t)[0] * self.mean + scale * rho * y[:, None]
        moved = waves.mean(centre, (scale**2 * (1 - rho**2)).expand_as(centre))
        shift = (moved * self.factor(1.0, t, gamma) * weights).sum(1)
        return amplification(gamma, level) * math.sqrt(float((on_y * shift**2).sum()))

    def _integral(self, function: Kick, start: float, end: float) -> float:
        lower, upper = (torch.tensor([v], dtype=torch.float64) for v in (start, end))
        return float(integrate(function, lower, upper))


def amplification(gamma: float, level: Level) -> float:
    """What a unit error in the velocity makes of the drift."""
    if level not in LEVELS:
        raise ValueError(f"level must be 'network' or 'drift', got {level!r}")
    return 1 + gamma if level == "network" else 1.0


def gaussian_kl(mean: float, variance: float) -> float:
    r""":math:`KL(N(\text{mean}, \text{variance})\,\|\,N(0, 1))` in nats."""
    return 0.5 * (mean**2 + variance - 1 - math.log(variance))


def heat_growth(wavenumber: float, time: float) -> float:
    r""":math:`e^{k^2\tau/2}`: what undoing :math:`\partial_\tau p = \tfrac12 p''` for a time does to a wave."""
    return math.exp(wavenumber**2 * time / 2)


def ornstein_damping(wavenumber: float, memory: float) -> float:
    r"""Share of :math:`\int|q - p|` left of a relative disturbance :math:`\cos ky - e^{-k^2/2}` of N(0, 1).

    The reversible Ornstein-Uhlenbeck semigroup takes it to :math:`E[\cos k(\rho y + \sqrt{1-\rho^2}z)] - e^{-k^2/2} =
    e^{-k^2(1-\rho^2)/2}\cos k\rho y - e^{-k^2/2}`.
    """
    y = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-(y**2) / 2)
    mass = math.exp(-(wavenumber**2) / 2)

    def size(rho: float) -> float:
        damped = math.exp(-(wavenumber**2) * (1 - rho**2) / 2) * torch.cos(wavenumber * rho * y) - mass
        return float((damped.abs() * density).sum())

    return size(memory) / size(1.0)


def _gauss(nodes: int) -> tuple[Tensor, Tensor]:
    from numpy.polynomial.legendre import leggauss

    places, weights = leggauss(nodes)
    return torch.from_numpy(places), torch.from_numpy(weights)


def _hermite(nodes: int) -> tuple[Tensor, Tensor]:
    from numpy.polynomial.hermite import hermgauss

    places, weights = hermgauss(nodes)
    return torch.from_numpy(places), torch.from_numpy(weights)
