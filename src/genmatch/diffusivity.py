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

The variance may depend on the state, too, :math:`A_t(x) = g_t^2\,r_t(x)` with :math:`g_t^2` one of the above: then the
drift has to make up for its slope (:class:`genmatch.Multiplicative`).

============================  ============================================================================
state-dependent diffusivity   :math:`r_t(x)`
============================  ============================================================================
``StateDependent(f)``         :math:`f(x, t)`
``Curvature(g2, where)``      more, or less, noise where trajectories bend
``fit_residual(...)``         learned from what two networks get wrong (:func:`genmatch.fit_residual`)
============================  ============================================================================

References
----------
.. [1] Y. Song et al., arXiv 2011.13456, eq. 6 (the reverse SDE).
.. [2] N. Ma et al., "SiT", arXiv 2401.08740, Section 2.3 (the choice of g after training).
.. [3] C. Domingo-Enrich et al., "Adjoint matching", arXiv 2409.08861, Section 4 (memoryless noise).
.. [4] T. Lelièvre, G. Stoltz, "Partial differential equations and stochastic methods in molecular dynamics", Acta
   Numerica 25 (2016) (diffusions whose noise depends on the state, with a given invariant law).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .quadrature import integrate
from .schedules import Instant, Number, Schedule, check_positive, divide

__all__ = [
    "Constant",
    "Curvature",
    "Diffusivity",
    "EndpointSafe",
    "Function",
    "Memoryless",
    "StateDependent",
    "StateDiffusivity",
]


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


class StateDiffusivity(ABC):
    r"""A variance that depends on the state, :math:`A_t(x) = g_t^2\,r_t(x)`.

    Attributes
    ----------
    scale
        :math:`g_t^2`, a :class:`Diffusivity`: what makes the noise fade where the score grows without bound.
    elementwise
        Whether each value of r depends on the same value of x alone.
    motion
        Whether r reads the velocity and the acceleration of trajectories.
    """

    scale: Diffusivity
    elementwise: bool = False
    motion: bool = False

    @abstractmethod
    def share(self, prediction: Any) -> Callable[[Tensor], Tensor]:
        """r at the time and under the condition of a prediction, as a function of the state.

        It maps x ``(B, *S)`` to ``(B, 1, ..., 1)``, one variance for each sample, or to ``(B, *S)``, one for each value
        (a diagonal A); at least 0.
        """


@dataclass(frozen=True)
class StateDependent(StateDiffusivity):
    r""":math:`A_t(x) = g_t^2\,f(x, t)`, f a user's function.

    Parameters
    ----------
    function
        Called with x ``(B, *S)`` and t, a float or ``(B, 1, ..., 1)``; returns ``(B, 1, ..., 1)`` or ``(B, *S)``, at
        least 0. Each sample on its own: the value for one must not depend on the others. If it is a module its
        parameters are the generator's.
    scale
        :math:`g_t^2`; constant 1 by default, so that the function is the variance itself. Near the data the score grows
        like :math:`1/\sigma` and Euler steps want less noise: with ``EndpointSafe()`` the drift stays finite.
    elementwise
        For a result of shape ``(B, *S)``: whether each value depends on the same value of x alone. Then the divergence
        costs one backward pass of the function; otherwise one for each value in a sample.

    Examples
    --------
    >>> import torch
    >>> noise = StateDependent(lambda x, t: 0.5 + torch.exp(-x.square().sum(-1, keepdim=True)))
    """

    function: Callable[[Tensor, Number], Tensor]
    scale: Diffusivity = Constant(1.0)
    elementwise: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "StateDependent needs a function of (x, t) that returns a variance, "
                f"got {type(self.function).__name__}: a variance that is the same at all states is a "
                "gm.diffusivity.Constant"
            )
        _check_scale(self.scale)

    def share(self, prediction: Any) -> Callable[[Tensor], Tensor]:
        t = prediction.instant.t
        return lambda x: self.function(x, t)


@dataclass(frozen=True)
class Curvature(StateDiffusivity):
    r"""Noise by how much the trajectories of the flow bend.

    With the acceleration :math:`a = \partial_t u + (u\cdot\nabla)u` along a trajectory, its part :math:`a_\perp` across
    the velocity, and

    .. math:: \kappa = \frac{|a_\perp|\,|u|^2}{(|u|^2 + \epsilon)^2}

    (the curvature of the trajectory, 0 instead of undefined where it stands still), the share of the scale is

    .. math:: r = \frac{\kappa^2}{\kappa_0^2 + \kappa^2} \quad\text{(where bent)}, \qquad
              r = \frac{\kappa_0^2}{\kappa_0^2 + \kappa^2} \quad\text{(where straight)} .

    The first spends noise where the flow is hard to follow, as proposed in arXiv 2412.11024; the second keeps it away
    from there. Both leave the marginals alone; which is better, if any, is a matter of measurement.

    The acceleration is one forward-mode pass (``torch.func.jvp``) of the network, and the divergence of this noise
    differentiates that once more: :class:`genmatch.solvers.EndPoint` does without. A line has no curvature: states of
    one value are refused.

    Parameters
    ----------
    scale
        :math:`g_t^2`, the most noise that there can be; ``EndpointSafe()`` by default.
    where
        ``"bent"`` or ``"straight"``: where the noise is.
    half
        :math:`\kappa_0`, the curvature (one over a length) at which the share is a half.
    softening
        :math:`\epsilon`, a squared speed below which a trajectory counts as standing still. Near such points the
        curvature is a narrow peak; the larger :math:`\epsilon`, the smoother is the noise.
    """

    scale: Diffusivity = EndpointSafe()
    where: Literal["bent", "straight"] = "bent"
    half: float = 1.0
    softening: float = 0.1
    motion = True

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        if self.where not in ("bent", "straight"):
            raise ValueError(f"where must be 'bent' or 'straight', got {self.where!r}")
        check_positive("half", self.half)
        check_positive("softening", self.softening)

    def share(self, prediction: Any) -> Callable[[Tensor], Tensor]:
        def share(x: Tensor) -> Tensor:
            if x[0].numel() < 2:
                raise ValueError(
                    "a trajectory on a line has no curvature: Curvature needs states of two values or more"
                )
            square = self.square(*prediction.motion(x)).reshape(-1, *[1] * (x.ndim - 1))
            total = self.half**2 + square
            return (square if self.where == "bent" else self.half**2) / total

        return share

    def square(self, velocity: Tensor, acceleration: Tensor) -> Tensor:
        r""":math:`\kappa^2` ``(B,)``, by products: smooth where the velocity vanishes."""
        u, a = velocity.flatten(1), acceleration.flatten(1)
        speed = u.square().sum(1, keepdim=True)
        across = a * speed - (a * u).sum(1, keepdim=True) * u  # |u|^2 times the part of a across u
        return across.square().sum(1) / (speed.squeeze(1) + self.softening) ** 4


def _check_scale(scale: Any) -> None:
    if not isinstance(scale, Diffusivity):
        hint = f": gm.diffusivity.Constant({scale})" if isinstance(scale, (int, float)) else ""
        raise TypeError(f"scale must be a Diffusivity such as EndpointSafe(), got {type(scale).__name__}{hint}")
