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

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import Flow, Generator, Langevin, OperatorInstant
from ..paths import GaussianPath
from ..random import Draws
from ..schedules import Instant
from .arc import Arc, part_of
from .exposure import exposure, noise_terms, noisy_gain
from .field import Field
from .solver import Solver, read_order, refuse_negative
from .transition import Transition, apply_transition, combine

__all__ = ["DDIM", "DDPM", "Exponential", "Opening", "Semilinear", "check_own_noise", "refuse_nonlinear"]

# Noise of more than this many times the memoryless one makes the data prediction of the step before a poor guide.
CALM = 4.0
# A network's error in the extrapolation counts at most this many times what it counts in a run of equal short steps.
TRUST = 4.0
SHORT = (0.0, 0.5, 21 / 12)  # that is, in units of its count in the step itself, by the changes taken (Adams-Bashforth)


class Opening(NamedTuple):
    """A first step made twice: by order 1, then with the change of the extrapolated quantity over it."""

    first: Transition
    end: OperatorInstant
    keep: tuple[float, float]  # the reading of that quantity at the end
    gain: float


class Semilinear(Solver):
    """What the exponential solvers share: plans of transitions of one network.

    Attributes
    ----------
    form
        What is extrapolated from step to step: "data", "noise", or "" for the data forwards and the noise backwards,
        each of which is finite at both ends of such a run.
    guarded
        Whether gains are cut where a network's errors in the steps before would count for much more than in this one.
    """

    parts = frozenset({"drift", "variance"})
    form: str = ""
    guarded: bool = True

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
    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        """For each step what multiplies the last, the last but one, ... change of the extrapolated quantity."""

    @abstractmethod
    def opening(self, field: Field, now: Instant) -> float:
        """What multiplies the change of the extrapolated quantity over the first step, if that is made twice; else 0.

        A method of order 3 or more that began with a step of order 1 would be of order 2.
        """

    def defined(self, field: Field, t: float) -> bool:
        """Whether data and noise can be read off the network at ``t``."""
        refuse_nonlinear(self, field)
        (instant,) = field.at(torch.tensor([t], dtype=torch.float64))
        return field.models[0].reads(instant.models[0])

    def plan(self, field: Field, times: Tensor) -> list[Transition | Opening]:
        """Two coefficients a step, and those of noise and history where there are any."""
        refuse_nonlinear(self, field)
        model = field.models[0]
        instants = field.at(times)
        refuse_negative(field, instants)
        numbers = [i.models[0] for i in instants]
        values = torch.tensor([(n.t, n.alpha, n.sigma) for n in numbers], dtype=torch.float64)
        now = Instant(*values.unbind(1))
        factor, std = self.damping(field, part_of(now, slice(None, -1)), part_of(now, slice(1, None)))
        gains = self.gains(field, times, now)
        # Nothing is needed after the last step; it keeps as much as the one before, so that one graph serves both.
        reach = [len(row) for row in gains]
        reach.append(reach[-1])
        opening = self.opening(field, now)
        form = self.form or ("data" if bool(times[-1] > times[0]) else "noise")
        history = (1.0, 0.0) if form == "data" else (0.0, 1.0)
        keeps: list[Any] = [model.coefficients(number, *history) if any(reach) else None for number in numbers]
        plan: list[Transition | Opening] = []
        for i, (damp, noise) in enumerate(zip(factor.tolist(), std.tolist(), strict=True)):
            a, b = model.coefficients(numbers[i], numbers[i + 1].alpha, numbers[i + 1].sigma * damp)
            row = _trusted(gains[i], keeps[: i + 1], b) if self.guarded else gains[i]
            if row:
                a, b = a + row[0] * keeps[i][0], b + row[0] * keeps[i][1]
            keep = keeps[i] if reach[i + 1] else None
            plan.append(Transition(instants[i], a, b, noise, _past(row), keep, reach[i + 1]))
        if opening:
            first: Any = plan[0]
            (gain,) = _trusted((opening,), (keeps[0], keeps[1]), first.b) if self.guarded else (opening,)
            plan[0] = Opening(first, instants[1], keeps[1], gain)
        return plan

    def single(self, field: Field, times: Tensor) -> Transition:
        """The step between two times, alone."""
        (step,) = self.plan(field, times)
        return step  # type: ignore[return-value]  # there is no opening in a run of one step

    def evaluations(self, plan: Sequence[Transition | Opening]) -> int:
        """One a step, and one for an opening."""
        return len(plan) + sum(isinstance(c, Opening) for c in plan)

    def step(self, field: Field, x: Tensor, c: Transition | Opening, draws: Draws, carry: Any) -> tuple[Tensor, Any]:
        """One step; see :class:`Transition`."""
        if not isinstance(c, Opening):
            moved, kept = apply_transition(field, x, c, draws, carry)
            return moved, kept or None  # as before the first step, so that order 1 has one kind of step
        moved, kept = apply_transition(field, x, c.first, draws, carry)
        again = field.native(moved, c.end)
        terms = [(1.0, moved), (c.gain * c.keep[0], moved), (c.gain * c.keep[1], again), (-c.gain, kept[0])]
        return combine(terms), kept


def refuse_nonlinear(solver: Solver, field: Field) -> None:
    """Raise unless the field is one that an exponential solver can move."""
    why = Semilinear.why_not(field)
    if why:
        gaussian = isinstance(field.operator.path, GaussianPath)
        others = ", Heun() or, without noise, Midpoint() or RK4()" if gaussian else ", which moves rates"
        raise ValueError(
            f"{type(solver).__name__} needs one network and generators that are flow and Langevin noise on a "
            f"Gaussian path, but {why}. Use gm.solvers.Euler(){others}"
        )


class Exponential(Semilinear):
    r"""The exponential solver of order 1 to 3, for flows and diffusions; the default on Gaussian paths, with order 2.

    One evaluation a step. Order 1 without noise is DDIM, which on CondOT is Euler; with memoryless noise it is the DDPM
    posterior. Order 2 is a multistep method (weak order 2 with noise) that starts with one step of order 1. Order 3
    starts with a step of order 2, which costs one evaluation more; where there is noise it is order 2.

    Parameters
    ----------
    order
        1, 2 or 3.
    """

    def __init__(self, order: int = 2) -> None:
        read_order(order, (1, 2, 3))
        self.order = order

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        r""":math:`e^{-G}` and :math:`\sigma_s\sqrt{1 - e^{-2G}}`."""
        total = exposure(field, t, s)
        return torch.exp(-total), s.sigma * torch.sqrt(-torch.expm1(-2 * total))

    def opening(self, field: Field, now: Instant) -> float:
        r"""Order 3 begins with a step of order 2, to s by order 1 and there again: K is its change over the step."""
        if self.order < 3 or len(now.t) < 3 or noise_terms(field):
            return 0.0
        arc = Arc.of(now)
        return (arc.norm * arc.constant / arc.change)[0].item()

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        r"""With :math:`D = D_t + K(\sin\theta - \sin\theta_t)` over a step, x_s gains K times

        .. math:: \sqrt{\alpha_s^2+\sigma_s^2}\,\sin\theta_s\Bigl[\sin\theta_s - \sin\theta_t
                  - \int_t^s \frac{\tan\theta}{\tan\theta_s} e^{-G(\cdot,s)}\,d\sin\theta\Bigr],

        which is :math:`\sqrt{\alpha_s^2+\sigma_s^2}\,(1 - \cos(\theta_s-\theta_t))` without noise. K comes from the
        step before, where the noise does not swamp it. Order 3 takes :math:`K = K_0 + K_1(\theta-\theta_t)` from the
        two steps before, and gains :math:`\sqrt{\alpha_s^2+\sigma_s^2}\,[K_0(1-\cos\tau) + K_1(\tau-\sin\tau)]` over an
        angle :math:`\tau`. Backwards E_0 takes the place of D and :math:`\pi/2-\theta` that of :math:`\theta`.
        """
        steps = len(times) - 1
        if self.order == 1 or steps == 1:
            return [()] * steps
        arc, noisy = Arc.of(now), bool(noise_terms(field))
        if noisy:
            t, s = part_of(now, slice(None, -1)), part_of(now, slice(1, None))
            part, noise = noisy_gain(field, t, s)
            calm = noise <= CALM * (t.sigma * s.alpha / (t.alpha * s.sigma)).log()
        else:
            part, calm = arc.constant, torch.ones_like(arc.turn, dtype=torch.bool)
        second = torch.where(calm[:-1], (arc.norm * part)[1:] / arc.change[:-1], 0.0)
        rows: list[tuple[float, ...]] = [(), *((gain,) for gain in second.tolist())]
        if self.order == 3 and not noisy:
            rows[2:] = zip(*arc.third(), strict=True)
        return rows

    def __repr__(self) -> str:
        return f"Exponential(order={self.order})"


class DDIM(Semilinear):
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

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        return [()] * (len(times) - 1)

    def opening(self, field: Field, now: Instant) -> float:
        return 0.0

    def __repr__(self) -> str:
        return f"DDIM(eta={self.eta:g})"


class DDPM(Semilinear):
    r"""Ancestral sampling: a draw from the posterior :math:`q(x_s\,|\,x_t, x_1 = X_1)` (arXiv 2006.11239, eq. 6).

    It adds noise of its own, so it takes a flow (drift alone). On the memoryless diffusion ``Exponential(order=1)`` is
    the same step.
    """

    order = 1
    parts = frozenset({"drift"})

    def damping(self, field: Field, t: Instant, s: Instant) -> tuple[Tensor, Tensor]:
        return _ancestral(self, field, t, s, 1.0)

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        return [()] * (len(times) - 1)

    def opening(self, field: Field, now: Instant) -> float:
        return 0.0

    def __repr__(self) -> str:
        return "DDPM()"


def check_own_noise(solver: Solver, field: Field, quiet: str, falls: bool, kind: str = "ancestral noise") -> None:
    """Raise unless a solver may add noise of its own; ``quiet`` is the solver without it, "" if none is added."""
    if noise_terms(field):
        raise ValueError(
            f"{type(solver).__name__} adds noise of its own, and the generator has noise too: "
            "pass the flow alone, or use gm.solvers.Exponential() for the diffusion"
        )
    if not quiet:
        return
    if falls:
        raise ValueError(f"{kind} runs from noise to data: with times that fall use {quiet}")
    if not bool(field.operator.path.has_score):  # type: ignore[attr-defined]
        raise ValueError(
            f"{kind} needs a standard normal source independent of the data: on {field.operator.path!r} "
            f"{field.operator.path.why_no_score()}. Use {quiet}"  # type: ignore[attr-defined]
        )


def _ancestral(solver: Solver, field: Field, t: Instant, s: Instant, eta: float) -> tuple[Tensor, Tensor]:
    check_own_noise(solver, field, "DDIM(eta=0)" if eta else "", bool((s.t < t.t).any()))
    if not eta:
        return torch.ones_like(t.t), torch.zeros_like(t.t)
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


def _past(row: Sequence[float]) -> tuple[float, ...]:
    """The weights of the kept quantities before this step's own in a sum of their changes times the gains."""
    return tuple(after - before for before, after in zip(row, [*row, 0.0][1:], strict=True))


def _trusted(row: Sequence[float], keeps: Sequence[tuple[float, float]], b: float) -> tuple[float, ...]:
    """The gains, less where the network's errors before the step would count for much more than those in it.

    ``keeps`` are the readings of the extrapolated quantity up to this step: their second numbers are what an error of
    the output makes in it; b is what it makes in the step. A noise network near pure noise knows little of the data; a
    step that builds on that would undo what it knows by now. In short steps the gains are left alone.
    """
    if not row:
        return ()
    now, before = abs(keeps[-1][1]), [abs(keep[1]) for keep in keeps[-2 : -2 - len(row) : -1]]
    influence = sum(abs(weight) * error for weight, error in zip(_past(row), before, strict=True))
    most = TRUST * SHORT[len(row)] * abs(b)
    if max(before) <= now or influence <= most:
        return tuple(row)
    return tuple(gain * most / influence for gain in row)
