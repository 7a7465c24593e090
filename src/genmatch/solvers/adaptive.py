r"""Steps chosen for each sample by an estimate of their error: Dormand and Prince's pair of orders 5 and 4.

Every sample has a time, a step and a memory of errors of its own. All that still run are evaluated together; those that
are done are left out, so that they cost nothing, and where an error is too large that sample alone tries again. States
at the times asked for are read off the steps that cover them, so asking for more changes neither the steps nor the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..random import Draws
from ..schedules import along_batch, check_positive
from ..spaces import Euclidean
from ..spaces.states import State
from .controller import Controller, first_step, size
from .exponential import Exponential
from .field import Field
from .pair import STAGES, Trial, slope, try_step
from .part import refuse_product
from .report import CAPPED, DONE, NOT_FINITE, TOO_SMALL
from .samples import Carry, Samples, has_passed, read_off
from .solver import Solver, refuse_parts
from .span import Span, finite, read_span
from .staged import offers
from .transition import Transition, apply_transition

__all__ = ["Dopri5"]

LEAST_CAP = 16  # evaluations: a start, one step and the layers at both ends
STRETCH = 1.01  # a step that would leave less than this much goes to the end
# Nearer to an end at which the field is not finite than is right for a tolerance of this many roundings, its rounding
# counts for more than what the layer there errs by.
LAYER = 400.0
ROUNDING = 4.0  # the least step, and the least tolerance, in units of the rounding of the state's dtype


class Ask(NamedTuple):
    """What one step of the loop is to return: the state at the place among the run's times."""

    place: int
    span: Span


class Dopri5(Solver):
    r"""The adaptive method of Dormand and Prince, order 5 with an error estimate of order 4; drift only.

    Each sample takes steps of its own, such that the root mean square of a step's estimated error over
    :math:`\text{atol} + \text{rtol}\max(|x|, |x'|)` is at most 1. An accepted step costs six evaluations and so does a
    rejected one; the start costs two. ``gm.sample(..., report=True)`` tells what each sample took and how it ended; a
    sample that cannot go on stops where it is, and the others do not notice. The network's batch shrinks as samples get
    to the end; samples take the same steps in every batch, if the network treats them alike in every batch.

    With ``times`` or ``trajectory=True`` the states between are those of a polynomial of order 4 through each step: the
    steps, their cost and the end are the same as without. The errors of these states are not estimated on their own and
    may be a few times that of the ends of the steps. With ``grad=True`` the accepted steps are differentiated, the
    choice of their lengths is not.

    At an end of the path where the field is not finite (a data network's velocity at the data, a noise network's at
    pure noise) the run stops short of it where :math:`\sigma/\alpha`, or :math:`\alpha/\sigma`, is
    :math:`\sqrt{\text{atol}+\text{rtol}}/4` (in float32 at least 0.0017, as rounding counts for more towards the end),
    and makes one exponential step of order 1, whose error is of the order of the tolerance; a run that begins there
    begins with the inverse of that step. So it starts at t = 0 with every network.

    On a DDPM chain the log-SNR is a line between any two of its steps, so the velocity jumps at each of them: errors
    stay near 1e-3 whatever the tolerance. For less move the model to VP first, by :class:`genmatch.predict.Reschedule`.

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance of a step's error. The error at the end is some multiple of it, which the field
        decides.
    pid
        Gains (proportional, integral, derivative) of the controller of the steps; see Notes.
    max_evaluations
        The most evaluations that a sample may cost, never exceeded; at least 16. A sample that would need more ends
        with status 1.
    safety
        The share of the length expected to meet the tolerance that is tried; in (0, 1).
    first_step
        Length of the first step tried; by default estimated from the field for each sample (one evaluation).

    Raises
    ------
    ValueError, TypeError
        On wrong options. By :func:`gm.sample <genmatch.sample>` for noise and jumps, products and curved spaces, for a
        tolerance below the rounding of the state's dtype, and where a run ends or begins at a time at which the field
        is not finite and is no flow on a Gaussian path.

    Notes
    -----
    After a step of error e a step of length h is followed by one of
    :math:`h\,S\,e_n^{-(P+I+D)/5} e_{n-1}^{(P+2D)/5} e_{n-2}^{-D/5}`, within a factor of 0.2 to 5. ``(0, 1, 0)``, the
    integral gain alone, is the classical choice; it aims at the tolerance with every step and more are rejected.

    References
    ----------
    .. [1] J. Dormand, P. Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6 (1980).
    .. [2] E. Hairer, S. Nørsett, G. Wanner, "Solving ordinary differential equations I", 1993, Sections II.4 to II.6.
    .. [3] G. Söderlind, "Digital filters in adaptive time-stepping", ACM TOMS 29 (2003).

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> flow = gm.Flow(world.predictor(gm.GaussianPath()))
    >>> x, report = gm.sample(flow, (4, 1), solver=gm.solvers.Dopri5(rtol=1e-4, atol=1e-4), seed=0, report=True)
    >>> report.status.tolist()
    [0, 0, 0, 0]
    """

    lifts = True
    parts = frozenset({"drift"})
    order = 5
    default_steps = 1
    on_the_host = True

    def __init__(
        self,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        *,
        pid: tuple[float, float, float] = (0.4, 0.3, 0.0),
        max_evaluations: int = 10_000,
        safety: float = 0.9,
        first_step: float | None = None,
    ) -> None:
        for name, value in (("rtol", rtol), ("atol", atol)):
            check_positive(name, value, zero=True)
        if not 0 < rtol + atol < 1:
            raise ValueError(f"rtol + atol must be above 0 and below 1, got {rtol} and {atol}")
        if isinstance(max_evaluations, bool) or not isinstance(max_evaluations, int):
            raise TypeError(f"max_evaluations must be an integer, got {type(max_evaluations).__name__}")
        if max_evaluations < LEAST_CAP:
            raise ValueError(
                f"max_evaluations must be at least {LEAST_CAP}, one step and both ends of a run, got {max_evaluations}"
            )
        check_positive("safety", safety)
        if not safety < 1:
            raise ValueError(f"safety must be in (0, 1), got {safety}")
        if first_step is not None:
            check_positive("first_step", first_step, zero=True)
        if first_step is not None and not 0 < first_step <= 1:
            raise ValueError(f"first_step must be in (0, 1], got {first_step}: times run from 0 to 1")
        gains: Any = tuple(pid) if isinstance(pid, Sequence) else ()
        numbers = all(isinstance(gain, (int, float)) and math.isfinite(gain) for gain in gains)
        if len(gains) != 3 or not numbers:
            raise ValueError(f"pid must be three numbers (proportional, integral, derivative), got {pid}")
        if not gains[1] > 0:
            raise ValueError(f"the integral gain must be positive, got pid={pid}: steps would not follow the error")
        self.rtol, self.atol, self.max_evaluations = float(rtol), float(atol), max_evaluations
        self.first_step, self.controller = first_step, Controller(gains[0], gains[1], gains[2], safety)

    def defined(self, field: Field, t: float) -> bool:
        """Whether the field is finite at ``t``, or an exponential step leads there and back."""
        return finite(field, t) or (t in (0.0, 1.0) and field.lift is None and not Exponential.why_not(field))

    def plan(self, field: Field, times: Tensor) -> list[Ask]:
        """The places of the times; how many steps there are between them each sample finds out."""
        refuse_product(self, field)
        (first,) = field.at(times[:1])
        refuse_parts(self, field.parts(first), offers(field.parts(first)))
        if not isinstance(field.space, Euclidean):
            raise ValueError(
                f"{type(self).__name__} is for Euclidean states, got {field.space!r}: its error estimate subtracts "
                "states. Use gm.solvers.RK4(), which follows geodesics"
            )
        least = ROUNDING * torch.finfo(field.like.dtype).eps
        if self.rtol < least and self.atol < least:
            raise ValueError(
                f"rtol = {self.rtol:g} and atol = {self.atol:g} are below the rounding of {field.like.dtype} states: "
                f"ask for {least:.1g} or more, or for dtype=torch.float64"
            )
        field.at(torch.linspace(float(times[0]), float(times[-1]), 33, dtype=torch.float64))  # the weights' speed
        layer = max(self.rtol + self.atol, LAYER * torch.finfo(field.like.dtype).eps)
        span = read_span(field, times, layer)
        return [Ask(place, span) for place in range(1, len(times))]

    def evaluations(self, plan: Sequence[Ask]) -> int:
        """The most that a sample may cost: what it did cost is in the report of the run."""
        return self.max_evaluations

    def step(self, field: Field, x: State, c: Ask, draws: Draws, carry: Any) -> tuple[State, Carry]:
        """The states at the next time asked for, after as many steps as the slowest sample needs to pass it."""
        place, span = c
        carry = self._begin(field, x, span) if carry is None else carry
        if place in span.before:
            return _through(field, carry, span.before[place])
        target = span.asked.get(place)
        while len(rows := carry.samples.running(span.stop).nonzero().squeeze(1)):
            if target is not None and bool(has_passed(carry.samples.t[rows], span, target).all()):
                break
            carry = self._advance(field, carry, span, rows)
        if target is None:
            return _through(field, carry, span.after[place]) if place in span.after else (carry.samples.x, carry)
        samples, passed = carry
        there = along_batch(has_passed(samples.t, span, target), samples.x).bool()
        state = torch.where(there, passed[place], samples.x) if place in passed else samples.x
        return state, Carry(samples, {key: value for key, value in passed.items() if key != place})

    def _begin(self, field: Field, x: Tensor, span: Span) -> Carry:
        """The samples at the start of their span, with a first step to try."""
        none, count = torch.zeros(len(x), dtype=torch.float64, device=x.device), 0
        t = none + span.start
        if span.opening is not None:
            x, count = span.opening.leave(field, x), 1
        steps, first = torch.full_like(none, self.first_step or 0.0), torch.zeros_like(x)
        if span.start != span.stop:
            first, count = slope(field, x, field.among(t)), count + 1
            if self.first_step is None:
                steps, count = self._first_step(field, x, first, t, span), count + 1
        numbers = torch.full((len(x),), count, dtype=torch.int64, device=x.device)
        whole = first.reshape(len(x), -1).isfinite().all(1)
        status = torch.where(whole, DONE, NOT_FINITE)
        samples = Samples(
            x, first, t, steps, none + 1, none + 1, none.bool(), numbers, numbers * 0, numbers * 0, status
        )
        return Carry(samples._replace(status=self._capped(samples, span, len(span.before))), {})

    @torch.no_grad()
    def _first_step(self, field: Field, x: Tensor, first: Tensor, t: Tensor, span: Span) -> Tensor:
        scale = self.atol + self.rtol * x.abs()
        level, steepness = size(x, scale), size(first, scale)
        usual = 0.01 * level / steepness
        tried = torch.where((level < 1e-5) | (steepness < 1e-5), 1e-6, usual).nan_to_num(nan=1e-6)
        tried = tried.clamp(max=abs(span.stop - span.start))
        moved = x + along_batch(span.sign * tried, x) * first
        change = size(slope(field, moved, field.among(t + span.sign * tried)) - first, scale)
        return first_step(steepness, change, tried)

    def _advance(self, field: Field, carry: Carry, span: Span, rows: Tensor) -> Carry:
        """One try of a step by the samples of some rows, all those that run."""
        every = carry.samples
        # What a larger state carries may be of the whole batch: then those that are done come along, and stay.
        whole = len(rows) == len(every.t) or field.lift is not None
        own, now = (field, every) if whole else (_field_of(field, rows), every.of(rows))
        live = now.running(span.stop)
        left = (span.stop - now.t).abs()
        until = torch.where(now.step * STRETCH >= left, span.stop, now.t + span.sign * now.step)
        until = torch.where(live, until, now.t)
        length = (until - now.t).abs()
        trial = try_step(own, now.x, now.slope, now.t, until)
        error = self._error(trial)
        if torch.is_grad_enabled() and bool((live & ~error.isfinite()).any()):
            # The derivative of what is not finite would be nan also where it is not chosen.
            until = torch.where(error.isfinite(), until, now.t)
            trial = try_step(own, now.x, now.slope, now.t, until)
            now = now._replace(evaluations=now.evaluations + STAGES * live)
        new = self._decide(now, trial, error, length, until, live, span)
        passed = carry.passed
        if span.asked:
            passed = read_off(carry, span, trial, rows if not whole else None, now.t, new.t)
        return Carry(new if whole else every.with_rows(rows, new), passed)

    @torch.no_grad()
    def _error(self, trial: Trial) -> Tensor:
        scale = self.atol + self.rtol * torch.maximum(trial.x.abs(), trial.end.abs())
        return size(trial.error, scale)

    def _decide(
        self, now: Samples, trial: Trial, error: Tensor, length: Tensor, until: Tensor, live: Tensor, span: Span
    ) -> Samples:
        """The samples after a try: moved where its error is tolerated, with the step to try next."""
        accept = live & (error <= 1)
        reject = live & ~accept
        step = length * self.controller.factor(error, now.before, now.earlier, now.held)
        chosen = along_batch(accept, now.x).bool()
        new = Samples(
            torch.where(chosen, trial.end, now.x),
            torch.where(chosen, trial.slopes[-1], now.slope),
            torch.where(accept, until, now.t),
            torch.where(live, step, now.step),
            torch.where(accept, error, now.before),
            torch.where(accept, now.before, now.earlier),
            reject,
            now.evaluations + STAGES * live,
            now.accepted + accept,
            now.rejected + reject,
            now.status,
        )
        least = ROUNDING * torch.finfo(now.x.dtype).eps
        failed = torch.where(error.isfinite(), TOO_SMALL, NOT_FINITE)
        new = new._replace(status=torch.where(reject & (step < least), failed, new.status))
        return new._replace(status=self._capped(new, span, 0))

    def _capped(self, samples: Samples, span: Span, more: int) -> Tensor:
        """The status, where another step and what is sure to follow would cost more than is allowed."""
        ahead = more + len(span.after) + STAGES * (1 + torch.is_grad_enabled())
        over = samples.running(span.stop) & (samples.evaluations + ahead > self.max_evaluations)
        return torch.where(over, CAPPED, samples.status)

    def __repr__(self) -> str:
        return f"Dopri5(rtol={self.rtol:g}, atol={self.atol:g})"


def _through(field: Field, carry: Carry, layer: Transition) -> tuple[Tensor, Carry]:
    """The states at the other end of a layer, of the samples that got so far."""
    samples = carry.samples
    done = samples.status == DONE
    rows = done.nonzero().squeeze(1)
    if not len(rows):
        return samples.x, carry
    moved, _ = apply_transition(_field_of(field, rows), samples.x[rows], layer, None)
    return samples.x.index_copy(0, rows, moved), carry._replace(
        samples=samples._replace(evaluations=samples.evaluations + done)
    )


def _field_of(field: Field, rows: Tensor) -> Field:
    """The field of some of the samples: each has its own condition."""
    condition = field.condition
    if condition is not None:
        condition = {name: value[rows] for name, value in condition.items()}
    return Field(field.operator, field.like, condition, speed=field.speed)
