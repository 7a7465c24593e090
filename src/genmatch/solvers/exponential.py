r"""Exponential solvers: exact in everything but the data prediction.

A generator on a Gaussian path that is a flow with Langevin noise has the drift
:math:`u + \tfrac12 g^2 s`, which is linear in the state and in the data prediction D. With
:math:`G = \int_t^s g^2/(2\sigma^2)` and D frozen, its solution over a step is exactly

.. math:: x_s = \alpha_s D + \frac{\sigma_s}{\sigma_t} e^{-G}(x_t - \alpha_t D) + \sigma_s\sqrt{1 - e^{-2G}}\;z
              = \alpha_s X_1 + \sigma_s e^{-G} E_0 + \sigma_s\sqrt{1 - e^{-2G}}\;z .

The second form is a reading of the network's output, two host numbers: no division by :math:`\alpha` or :math:`\sigma`,
finite from t = 0 and to t = 1, in both directions of time. G = 0 is DDIM; memoryless noise gives the DDPM posterior.

Order 2 extrapolates D linearly from the step before: not in log-SNR, which is infinite at the ends and loses an order
there, but in :math:`\sin\theta` with :math:`\theta = \arctan(\alpha/\sigma)`. In that angle the normalised state
:math:`y = x/\sqrt{\alpha^2+\sigma^2}` of a flow is a forced oscillator, :math:`y'' + y = K`, where
:math:`K = dX_1/d\sin\theta = dE_0/d\cos\theta` is smooth at both ends and the same for every schedule; DDIM is K = 0.

References
----------
.. [1] J. Song, C. Meng, S. Ermon, "DDIM", arXiv 2010.02502, eq. 12 and 16.
.. [2] C. Lu et al., "DPM-Solver++", arXiv 2211.01095 (data prediction, multistep, and with noise).
.. [3] J. Ho, A. Jain, P. Abbeel, arXiv 2006.11239, eq. 6 and 7 (the posterior).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import Langevin, OperatorInstant
from ..paths import GaussianPath
from ..predict.affine import weighted
from ..quadrature import integrate
from ..random import Draws
from ..schedules import Instant, Schedule
from .field import Field
from .solver import Solver

__all__ = ["DDIM", "DDPM", "Exponential", "Transition", "apply_transition"]

# Noise of more than this many times the memoryless one makes the data prediction of the step before a poor guide.
CALM = 4.0


class Transition(NamedTuple):
    r"""A step :math:`x_s = A x + B N + \text{std}\,z + \text{slope}\,(D - D_{\text{before}})`, N the network's output.

    ``history`` are the coefficients of the quantity D that is extrapolated: the data prediction forwards, the noise
    prediction backwards; ``None`` where it is not needed.
    """

    instant: OperatorInstant
    a: float
    b: float
    std: float = 0.0
    slope: float = 0.0
    history: tuple[float, float] | None = None


def apply_transition(field: Field, x: Tensor, c: Transition, draws: Draws, before: Any = None) -> tuple[Tensor, Any]:
    """The step, and the quantity that the next one extrapolates."""
    native = field.native(x, c.instant)
    moved = weighted(c.a, x, c.b, native)
    now = None if c.history is None else weighted(c.history[0], x, c.history[1], native)
    if c.slope:
        moved = moved + c.slope * (now - before)
    if c.std:
        moved = moved + c.std * field.space.brownian(x, draws)
    return moved, now


class _Semilinear(Solver):
    """What the exponential solvers share: plans of transitions of one network."""

    parts = frozenset({"drift", "variance"})

    @staticmethod
    def why_not(field: Field) -> str:
        """Why a field is not semilinear; empty where it is."""
        operator = field.operator
        for _, generator in operator.terms:
            if not generator.semilinear:
                return f"{type(generator).__name__} is not semilinear"
        if len(operator.models) != 1:
            return f"it reads {len(operator.models)} networks"
        path = operator.path
        if not isinstance(path, GaussianPath):
            return f"{path!r} is not a Gaussian path"
        if not path.readable:
            return f"on {path!r} noise is added to the state"
        return ""

    @abstractmethod
    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        r"""The factor of :math:`\sigma_s E_0` and the standard deviation of the noise, for vectors of steps t -> s."""

    @abstractmethod
    def slopes(self, field: Field, times: Tensor, now: Instant) -> list[float]:
        """What multiplies the change of the extrapolated quantity, for each step; 0 for order 1."""

    def defined(self, field: Field, t: float) -> bool:
        """Whether data and noise can be read off the network at ``t``."""
        self._refuse(field)
        (instant,) = field.at(torch.tensor([t], dtype=torch.float64))
        return field.models[0].reads(instant.models[0])

    def plan(self, field: Field, times: Tensor) -> list[Transition]:
        """Two coefficients a step, and those of noise and history where there are any."""
        self._refuse(field)
        model = field.models[0]
        instants = field.at(times)
        values = torch.tensor([i.models[0][:5] for i in instants], dtype=torch.float64)
        now = Instant(*values.unbind(1))
        factor, std = self.damping(field, _part(now, slice(None, -1)), _part(now, slice(1, None)))
        slopes = self.slopes(field, times, now)
        used = [i for i, slope in enumerate(slopes) if slope]
        history = (1.0, 0.0) if bool(times[-1] > times[0]) else (0.0, 1.0)
        plan = []
        for i, (damp, noise) in enumerate(zip(factor.tolist(), std.tolist(), strict=True)):
            start, end = instants[i].models[0], instants[i + 1].models[0]
            a, b = model.coefficients(start, end.alpha, end.sigma * damp)
            past = model.coefficients(start, *history) if used and used[0] - 1 <= i <= used[-1] else None
            plan.append(Transition(instants[i], a, b, noise, slopes[i], past))
        return plan

    def evaluations(self, plan: Sequence[Transition]) -> int:
        """One a step."""
        return len(plan)

    def step(self, field: Field, x: Tensor, c: Transition, draws: Draws, carry: Any) -> tuple[Tensor, Any]:
        """One step; see :class:`Transition`."""
        return apply_transition(field, x, c, draws, carry)

    def _refuse(self, field: Field) -> None:
        why = self.why_not(field)
        if why:
            raise ValueError(
                f"{type(self).__name__} needs one network and generators that are flow and Langevin noise on a "
                f"Gaussian path, but {why}. Use gm.solvers.Euler(), Heun() or, without noise, Midpoint() or RK4()"
            )


class Exponential(_Semilinear):
    r"""The exponential solver of order 1 or 2, for flows and diffusions; the default on Gaussian paths.

    One evaluation a step. Order 1 without noise is DDIM, which on CondOT is Euler; with memoryless noise it is the DDPM
    posterior. Order 2 is a multistep method (weak order 2 with noise) that starts with one step of order 1.

    Parameters
    ----------
    order
        1 or 2.
    """

    def __init__(self, order: int = 2) -> None:
        if order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {order}")
        self.order = order

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        r""":math:`e^{-G}` and :math:`\sigma_s\sqrt{1 - e^{-2G}}`."""
        total = _exposure(field, t, s)
        return torch.exp(-total), s.sigma * torch.sqrt(-torch.expm1(-2 * total))

    def slopes(self, field: Field, times: Tensor, now: Instant) -> list[float]:
        r"""With :math:`D = D_t + K(\sin\theta - \sin\theta_t)` over a step, x_s gains K times

        .. math:: \sqrt{\alpha_s^2+\sigma_s^2}\,\sin\theta_s\Bigl[\sin\theta_s - \sin\theta_t
                  - \int_t^s \frac{\tan\theta}{\tan\theta_s} e^{-G(\cdot,s)}\,d\sin\theta\Bigr],

        which is :math:`\sqrt{\alpha_s^2+\sigma_s^2}\,(1 - \cos(\theta_s-\theta_t))` without noise. K comes from the step
        before, where the noise does not swamp it. Backwards E_0 takes the place of D and :math:`\cos` that of :math:`\sin`.
        """
        steps = len(times) - 1
        if self.order == 1 or steps == 1:
            return [0.0] * steps
        theta = torch.atan2(now.alpha, now.sigma)
        norm = torch.hypot(now.alpha, now.sigma)[1:]
        if _langevin(field):
            gain = norm * _noisy_gain(field, times, now)
            calm = _exposure(field, _part(now, slice(None, -1)), _part(now, slice(1, None))) <= CALM * (
                now.alpha.log() - now.sigma.log()
            ).diff()
        else:
            gain = norm * (1 - torch.cos(theta.diff()))
            calm = torch.ones_like(gain, dtype=torch.bool)
        change = (torch.sin(theta) if bool(times[-1] > times[0]) else torch.cos(theta)).diff()
        return [0.0, *torch.where(calm[:-1], gain[1:] / change[:-1], 0.0).tolist()]

    def __repr__(self) -> str:
        return f"Exponential(order={self.order})"


class DDIM(_Semilinear):
    r"""Denoising diffusion implicit models (arXiv 2010.02502, eq. 12) on any Gaussian path.

    .. math:: x_s = \alpha_s X_1 + \sqrt{\sigma_s^2 - S^2}\,E_0 + S z, \qquad
       S = \eta\,\sigma_s\sqrt{1 - (\alpha_t\sigma_s/\alpha_s\sigma_t)^2}

    For :math:`\eta` = 0 it is ``Exponential(order=1)`` on a flow; it adds noise of its own otherwise, so it takes drift
    alone.

    Parameters
    ----------
    eta
        0 for the deterministic sampler, 1 for ancestral sampling; any number in [0, 1].
    """

    order = 1
    parts = frozenset({"drift"})

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        self.eta = float(eta)

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        return _ancestral(self, field, t, s, self.eta)

    def slopes(self, field: Field, times: Tensor, now: Instant) -> list[float]:
        return [0.0] * (len(times) - 1)

    def __repr__(self) -> str:
        return f"DDIM(eta={self.eta:g})"


class DDPM(_Semilinear):
    r"""Ancestral sampling: a draw from the posterior :math:`q(x_s\,|\,x_t, x_1 = X_1)` (arXiv 2006.11239, eq. 6).

    It adds noise of its own, so it takes a flow (drift alone). On the memoryless diffusion ``Exponential(order=1)`` is
    the same step.
    """

    order = 1
    parts = frozenset({"drift"})

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        return _ancestral(self, field, t, s, 1.0)

    def slopes(self, field: Field, times: Tensor, now: Instant) -> list[float]:
        return [0.0] * (len(times) - 1)

    def __repr__(self) -> str:
        return "DDPM()"


def _ancestral(solver: Solver, field: Field, t: Instant, s: Instant, eta: float) -> tuple[Tensor, Tensor]:
    if any(not _is_zero(w) for w, g in field.operator.terms if isinstance(g, Langevin)):
        raise ValueError(
            f"{type(solver).__name__} adds noise of its own, and the generator has noise too: "
            "pass the flow alone, or use gm.solvers.Exponential() for the diffusion"
        )
    if eta and bool((s.t < t.t).any()):
        raise ValueError("ancestral noise runs from noise to data: with times that fall use DDIM(eta=0)")
    kept = t.alpha * s.sigma / (s.alpha * t.sigma)  # share of the old noise's direction; 0 from pure noise
    share = eta * torch.sqrt(1 - kept**2)
    if eta and not bool(field.operator.path.has_score):  # type: ignore[attr-defined]
        raise ValueError(
            f"ancestral noise needs a standard normal source independent of the data: on {field.operator.path!r} "
            f"{field.operator.path.why_no_score()}. Use DDIM(eta=0)"  # type: ignore[attr-defined]
        )
    return torch.sqrt(1 - share**2), s.sigma * share


def _is_zero(weight: Any) -> bool:
    return not callable(weight) and weight == 0


def _part(instant: Instant, where: slice) -> Instant:
    return Instant(*(f[where] for f in instant))


def _langevin(field: Field) -> list[tuple[Any, Langevin]]:
    return [(w, g) for w, g in field.operator.terms if isinstance(g, Langevin) and not _is_zero(w)]


def _exposure(field: Field, t: Instant, s: Instant) -> Tensor:
    """G of each step; refuses noise that is negative, or that runs backwards in time."""
    terms = _langevin(field)
    total = torch.zeros_like(t.t)
    if not terms:
        return total
    if bool((s.t < t.t).any()):
        raise ValueError("noise runs from noise to data: with times that fall use a flow, without Langevin")
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    inner = s.sigma > 0
    for weight, generator in terms:
        if callable(weight):
            part = _weighted_exposure(weight, generator, schedule, t.t, s.t)
        else:
            part = weight * generator.diffusivity.exposure(schedule, t.t, s.t)
        # Where the step ends in the data the old noise has no weight, whatever G is.
        total = total + torch.where(inner, part, math.inf)
    if not bool((total >= 0).all()):
        worst = int(torch.argmin(torch.nan_to_num(total, nan=-math.inf)))
        raise ValueError(
            f"the weights make the variance negative between t = {t.t[worst]:g} and {s.t[worst]:g}: "
            "the diffusions subtracted carry more noise than those added"
        )
    return total


def _weighted_exposure(weight: Any, generator: Langevin, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    def integrand(times: Tensor) -> Tensor:
        instant = schedule.at(times)
        weights = torch.tensor([[float(weight(v)) for v in row] for row in times.tolist()], dtype=times.dtype)
        return weights * torch.as_tensor(generator.diffusivity.per_sigma(instant)) / (2 * instant.sigma)

    return integrate(integrand, t, s)


def _noisy_gain(field: Field, times: Tensor, now: Instant) -> Tensor:
    """The bracket of ``Exponential.slopes``, times sin(theta_s); the integral vanishes where the step ends in the data."""
    schedule: Schedule = field.operator.path.schedule  # type: ignore[attr-defined]
    sine = torch.sin(torch.atan2(now.alpha, now.sigma))
    end = _part(now, slice(1, None))

    def integrand(tau: Tensor) -> Tensor:
        inner = schedule.at(tau)
        flat = Instant(*(f.reshape(-1) for f in inner))
        ends = Instant(*(f[:, None].expand_as(tau).reshape(-1) for f in end))
        damp = torch.exp(-_exposure(field, flat, ends)).reshape(tau.shape)
        # d sin(theta) = cos(theta) d theta = sigma W / norm^3 dt
        slope = inner.sigma * inner.wronskian / (inner.alpha**2 + inner.sigma**2) ** 1.5
        ratio = (inner.alpha / inner.sigma) / (end.alpha / end.sigma)[:, None]
        return torch.nan_to_num(ratio, nan=0.0, posinf=0.0) * damp * slope

    kept = torch.where(end.sigma > 0, integrate(integrand, times[:-1], times[1:]), 0.0)
    return sine[1:] * (sine.diff() - kept)
