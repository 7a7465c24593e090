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

from ..generators import Flow, Generator, Langevin, OperatorInstant
from ..paths import GaussianPath
from ..random import Draws
from ..schedules import Instant
from .exposure import exposure, noise_terms, noisy_gain
from .field import Field
from .solver import Solver, refuse_negative

__all__ = ["DDIM", "DDPM", "Exponential", "Transition", "apply_transition"]

# Noise of more than this many times the memoryless one makes the data prediction of the step before a poor guide.
CALM = 4.0
# A network's error in the extrapolation counts at most this many times as in the step itself (in short steps, half).
TRUST = 2.0


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
    moved = _affine(c.a, x, c.b, native)
    now = None if c.history is None else _affine(c.history[0], x, c.history[1], native)
    if c.slope:
        moved = torch.add(moved, now - before, alpha=c.slope)
    if c.std:
        moved = torch.add(moved, field.space.brownian(x, draws), alpha=c.std)
    return moved, now


def _affine(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """``a x + b y`` in as few passes over the memory as there can be."""
    if a == 0.0:
        return y if b == 1.0 else b * y
    return torch.add(x if a == 1.0 else a * x, y, alpha=b)


class _Semilinear(Solver):
    """What the exponential solvers share: plans of transitions of one network."""

    parts = frozenset({"drift", "variance"})

    @staticmethod
    def why_not(field: Field) -> str:
        """Why a field is not semilinear; empty where it is."""
        operator = field.operator
        if field.speed != 1:
            return "it is run back in time"
        for _, generator in operator.terms:
            if not _declares_semilinear(generator):
                return f"{type(generator).__name__} is not semilinear"
        if len(operator.models) != 1:
            return f"it reads {len(operator.models)} networks"
        path = operator.path
        if not isinstance(path, GaussianPath):
            return f"{path!r} is not a Gaussian path"
        if not path.readable:
            return f"on {path!r} noise is added to the state"
        if not hasattr(operator.models[0], "coefficients"):
            return f"data and noise cannot be read off a {type(operator.models[0]).__name__} by two numbers"
        for _, generator in operator.terms:
            if not isinstance(generator, (Flow, Langevin)) and _has_variance(field, generator):
                return f"{type(generator).__name__} has a variance and is no gm.Langevin, whose diffusivity is known"
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
        refuse_negative(field, instants)
        numbers = [i.models[0] for i in instants]
        values = torch.tensor([(n.t, n.alpha, n.sigma) for n in numbers], dtype=torch.float64)
        now = Instant(*values.unbind(1))
        factor, std = self.damping(field, _part(now, slice(None, -1)), _part(now, slice(1, None)))
        slopes = self.slopes(field, times, now)
        steep = any(slopes)
        history = (1.0, 0.0) if bool(times[-1] > times[0]) else (0.0, 1.0)
        plan = []
        for i, (damp, noise) in enumerate(zip(factor.tolist(), std.tolist(), strict=True)):
            start, end = instants[i].models[0], instants[i + 1].models[0]
            a, b = model.coefficients(start, end.alpha, end.sigma * damp)
            past = model.coefficients(start, *history) if steep else None
            slope = slopes[i]
            if slope:
                slope = _trusted(slope, plan[-1].history[1], past[1], b)  # type: ignore[index]
            plan.append(Transition(instants[i], a, b, noise, slope, past))
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
            gaussian = isinstance(field.operator.path, GaussianPath)
            others = ", Heun() or, without noise, Midpoint() or RK4()" if gaussian else ", which moves rates"
            raise ValueError(
                f"{type(self).__name__} needs one network and generators that are flow and Langevin noise on a "
                f"Gaussian path, but {why}. Use gm.solvers.Euler(){others}"
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
        total = exposure(field, t, s)
        return torch.exp(-total), s.sigma * torch.sqrt(-torch.expm1(-2 * total))

    def slopes(self, field: Field, times: Tensor, now: Instant) -> list[float]:
        r"""With :math:`D = D_t + K(\sin\theta - \sin\theta_t)` over a step, x_s gains K times

        .. math:: \sqrt{\alpha_s^2+\sigma_s^2}\,\sin\theta_s\Bigl[\sin\theta_s - \sin\theta_t
                  - \int_t^s \frac{\tan\theta}{\tan\theta_s} e^{-G(\cdot,s)}\,d\sin\theta\Bigr],

        which is :math:`\sqrt{\alpha_s^2+\sigma_s^2}\,(1 - \cos(\theta_s-\theta_t))` without noise. K comes from the
        step before, where the noise does not swamp it. Backwards E_0 takes the place of D and :math:`\cos` that of
        :math:`\sin`.
        """
        steps = len(times) - 1
        if self.order == 1 or steps == 1:
            return [0.0] * steps
        t, s = _part(now, slice(None, -1)), _part(now, slice(1, None))
        # Differences of sines and cosines by products, as near both ends the sines themselves are equal to rounding.
        turn = torch.atan2(s.alpha * t.sigma - t.alpha * s.sigma, s.alpha * t.alpha + s.sigma * t.sigma)
        theta, rest = torch.atan2(now.alpha, now.sigma), torch.atan2(now.sigma, now.alpha)
        between = (rest[:-1] + rest[1:]) / 2 if bool(times[-1] > times[0]) else -(theta[:-1] + theta[1:]) / 2
        change = 2 * torch.sin(turn / 2) * torch.sin(between)
        norm = torch.hypot(s.alpha, s.sigma)
        if noise_terms(field):
            part, noise = noisy_gain(field, t, s)
            calm = noise <= CALM * (t.sigma * s.alpha / (t.alpha * s.sigma)).log()
        else:
            part, calm = 2 * torch.sin(turn / 2) ** 2, torch.ones_like(turn, dtype=torch.bool)
        return [0.0, *torch.where(calm[:-1], (norm * part)[1:] / change[:-1], 0.0).tolist()]

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
    if noise_terms(field):
        raise ValueError(
            f"{type(solver).__name__} adds noise of its own, and the generator has noise too: "
            "pass the flow alone, or use gm.solvers.Exponential() for the diffusion"
        )
    if not eta:
        return torch.ones_like(t.t), torch.zeros_like(t.t)
    if bool((s.t < t.t).any()):
        raise ValueError("ancestral noise runs from noise to data: with times that fall use DDIM(eta=0)")
    if not bool(field.operator.path.has_score):  # type: ignore[attr-defined]
        raise ValueError(
            f"ancestral noise needs a standard normal source independent of the data: on {field.operator.path!r} "
            f"{field.operator.path.why_no_score()}. Use DDIM(eta=0)"  # type: ignore[attr-defined]
        )
    kept = t.alpha * s.sigma / (s.alpha * t.sigma)  # share of the old noise's direction; 0 from pure noise
    share = eta * torch.sqrt(1 - kept**2)
    return torch.sqrt(1 - share**2), s.sigma * share


def _declares_semilinear(generator: Generator) -> bool:
    """Whether the class that writes the triplet says so, or one derived of it: what a class above says is outdated."""
    for kind in type(generator).__mro__:
        if "semilinear" in vars(kind) or "triplet" in vars(kind):
            return bool(vars(kind).get("semilinear", False))
    return False


def _has_variance(field: Field, generator: Generator) -> bool:
    (instant,) = field.at(torch.tensor([0.5], dtype=torch.float64))
    x, (model,) = torch.ones_like(field.like[:1]), field.models
    prediction = model.prediction(x, instant.models[0], model.blank(x))
    return generator.triplet(x, instant.t, prediction).variance is not None


def _part(instant: Instant, where: slice) -> Instant:
    return Instant(instant.t[where], instant.alpha[where], instant.sigma[where])


def _trusted(slope: float, before: float, now: float, b: float) -> float:
    """The slope, less where the network's errors before the step would count for much more than those in it.

    ``before`` and ``now`` are what an error of the output makes in the extrapolated quantity, b what it makes in the
    step. A noise network near pure noise knows little of the data; a step that builds on that would undo what it knows
    by now. In short steps the errors count half as much as in the step itself, and the slope is left alone.
    """
    if abs(before) <= abs(now) or abs(slope * before) <= TRUST * abs(b):
        return slope
    return math.copysign(TRUST * abs(b / before), slope)
