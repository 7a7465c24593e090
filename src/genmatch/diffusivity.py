r"""How much noise a diffusion on a Gaussian path carries: the variance :math:`g_t^2` of its Brownian part.

Any :math:`g_t^2 \ge 0` leaves the marginals of the path alone if the drift is :math:`u + \tfrac12 g^2 \nabla\log p`
(:class:`genmatch.Langevin` adds exactly that), so it is a choice made after training. With
:math:`b = \sigma W/\alpha`, half the variance rate of the forward noising process:

====================  ===========================  ==============================================================
diffusivity           :math:`g_t^2`                what it is
====================  ===========================  ==============================================================
``Memoryless()``      :math:`2 b`                  the reverse of the noising SDE, the limit of ancestral sampling
``EndpointSafe(g)``   :math:`2\gamma\sigma W`      finite drift at both ends
``Constant(v)``       :math:`v`                    the drift is infinite at the data
``Function(f)``       :math:`f(t)`                 anything else
====================  ===========================  ==============================================================

References
----------
.. [1] Y. Song et al., arXiv 2011.13456, eq. 6 (the reverse SDE).
.. [2] N. Ma et al., "SiT", arXiv 2401.08740, Section 2.3 (the choice of g after training).
.. [3] C. Domingo-Enrich et al., "Adjoint matching", arXiv 2409.08861, Section 4 (memoryless noise).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .quadrature import integrate
from .schedules import Instant, Number, Schedule, check_positive, divide

__all__ = ["Constant", "Diffusivity", "EndpointSafe", "Function", "Memoryless"]


class Diffusivity(ABC):
    r"""The variance :math:`g_t^2` of a diffusion on a Gaussian path."""

    @abstractmethod
    def variance(self, instant: Instant) -> Number:
        r""":math:`g_t^2 \ge 0`, per unit of time."""

    @abstractmethod
    def per_sigma(self, instant: Instant) -> Number:
        r""":math:`g_t^2/\sigma_t`, in a form that stays finite at t = 1 where its limit is: half of it multiplies the
        noise prediction in the drift, :math:`\tfrac12 g^2 s = -\tfrac12 (g^2/\sigma)\,E[x_0|x_t]`."""

    @abstractmethod
    def exposure(self, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
        r""":math:`\int_{t}^{s} g^2/(2\sigma^2)\,d\tau`, by which the exponential solver damps the old noise.

        ``start`` and ``stop`` are float64 vectors of times, ``start <= stop``, :math:`\sigma_{stop} > 0`.
        """


@dataclass(frozen=True)
class Memoryless(Diffusivity):
    r""":math:`g^2 = 2\gamma\,\sigma W/\alpha`; for CondOT :math:`2\gamma(1-t)/t`.

    For gamma = 1 the diffusion is the time reversal of the noising SDE. For any gamma > 0 the end of the path is
    independent of its start when :math:`\alpha_0 = 0`, since the variance is infinite at t = 0: the exponential solver
    integrates that exactly, Euler-Maruyama cannot start there.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma, zero=True)

    def variance(self, instant: Instant) -> Number:
        return instant.sigma * self.per_sigma(instant)

    def per_sigma(self, instant: Instant) -> Number:
        return 2 * self.gamma * divide(instant.wronskian, instant.alpha)

    def exposure(self, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
        if self.gamma == 0:
            return torch.zeros_like(start)
        return self.gamma / 2 * (schedule.log_snr(stop) - schedule.log_snr(start))


@dataclass(frozen=True)
class EndpointSafe(Diffusivity):
    r""":math:`g^2 = 2\gamma\,\sigma W`; for CondOT :math:`2\gamma(1-t)`.

    The drift :math:`u + \gamma(\alpha u - \dot\alpha x)` is finite at both ends.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma, zero=True)

    def variance(self, instant: Instant) -> Number:
        return instant.sigma * self.per_sigma(instant)

    def per_sigma(self, instant: Instant) -> Number:
        return 2 * self.gamma * instant.wronskian

    def exposure(self, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
        return _exposure(self, schedule, start, stop)


@dataclass(frozen=True)
class Constant(Diffusivity):
    """The same variance (not standard deviation) at all times."""

    value: float

    def __post_init__(self) -> None:
        check_positive("variance", self.value, zero=True)

    def variance(self, instant: Instant) -> Number:
        return self.value + 0 * instant.t

    def per_sigma(self, instant: Instant) -> Number:
        return divide(self.value, instant.sigma)

    def exposure(self, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
        return _exposure(self, schedule, start, stop)


@dataclass(frozen=True)
class Function(Diffusivity):
    """A user's function of time that returns a variance; it is called with floats and with tensors."""

    function: Callable[[Number], Number]

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"a diffusivity is a Diffusivity or a function of t, got {type(self.function).__name__}")

    def variance(self, instant: Instant) -> Number:
        return self.function(instant.t)

    def per_sigma(self, instant: Instant) -> Number:
        return divide(self.function(instant.t), instant.sigma)

    def exposure(self, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
        return _exposure(self, schedule, start, stop)


def _exposure(diffusivity: Diffusivity, schedule: Schedule, start: Tensor, stop: Tensor) -> Tensor:
    def integrand(t: Tensor) -> Tensor:
        instant = schedule.at(t)
        return torch.as_tensor(diffusivity.per_sigma(instant), dtype=t.dtype) / (2 * instant.sigma)

    return integrate(integrand, start, stop)
