r"""The solvers of the torchdiffeq package, and its adjoint, behind the same call.

References
----------
.. [1] R. Chen, Y. Rubanova, J. Bettencourt, D. Duvenaud, "Neural ordinary differential equations", arXiv 1806.07366,
   Section 2 and Appendix B (the adjoint); https://github.com/rtqichen/torchdiffeq.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..random import Draws
from ..schedules import check_positive
from .controller import first_step, size
from .ending import before_the_end
from .exponential import Exponential
from .field import Field
from .pair import slope
from .part import refuse_curved, refuse_product
from .report import DONE, NOT_FINITE, Report, UnfinishedError
from .solver import Solver, refuse_parts
from .span import Opening, finite, read_span
from .transition import Transition, apply_transition

__all__ = ["TorchDiffEq"]

ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
FIXED = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "implicit_adams": 4,
}
TIMES = ("step_t", "jump_t", "grid_constructor")  # options that hold times, which are not ours inside
WHY = {
    "underflow in dt": "the step became too small for the precision of time: the field is not smooth or not finite "
    "there, or the tolerance is below what the state's dtype can hold",
    "max_num_steps": "the most steps allowed, options={'max_num_steps': ...}, were taken before the end",
    "non-finite values": "the state is not finite",
}

# Options that are numbers above 0: torchdiffeq takes any, and comes to no end.
POSITIVE = ("first_step", "safety", "ifactor", "dfactor", "max_num_steps", "min_step", "max_step", "step_size")


class Leg(NamedTuple):
    """Between two asked times: what torchdiffeq solves, and the steps before and after it where that cannot be."""

    begin: float
    end: float
    first: Opening | None = None
    last: Transition | None = None


class Tally(NamedTuple):
    """What the run cost so far, and which samples are finite."""

    evaluations: int
    accepted: int
    rejected: int
    status: Tensor

    def report(self) -> Report:
        """The costs, which all samples share."""
        evaluations, accepted, rejected = (torch.full_like(self.status, n) for n in self[:3])
        return Report(evaluations, accepted, rejected, self.status)


class TorchDiffEq(Solver):
    r"""A solver of the torchdiffeq package: a second back end for ODEs, and gradients in constant memory.

    All samples take the same steps; those of :mod:`genmatch.solvers.adaptive` take their own. The numbers of
    the field are computed in float64 at each time that torchdiffeq asks for, which is within the span of the run.

    A fixed-step method makes one step between two times unless ``options`` has a ``step_size``.

    Where the field is not finite at the end of the run (a data network's velocity at the data) the run goes to a cut
    shortly before, where :math:`\sigma/\alpha`, or towards noise :math:`\alpha/\sigma`, is
    :math:`\sqrt{\text{rtol}+\text{atol}}/4`, and from there by one exponential step of order 1, whose error is of the
    order of the tolerance; a run that begins at such a time begins with the inverse of that step.

    Parameters
    ----------
    method
        "dopri5", "dopri8", "bosh3", "fehlberg2" or "adaptive_heun", which choose their steps; or "euler", "midpoint",
        "heun2", "heun3", "rk4" or "implicit_adams", which do not.
    rtol, atol
        Relative and absolute tolerance, of the root mean square over the whole batch.
    adjoint
        Where gradients are asked for, ``gm.sample(..., grad=True)``, get them from the adjoint equation
        :math:`\dot a = -a\,\partial u/\partial x`, solved back from the end: memory does not grow with the steps. They
        are those of the flow, and not of the steps, with respect to the states, the operator's parameters and the
        condition. The states are solved back too: where a flow contracts k-fold, that multiplies the tolerance by k.
        A network that is random (dropout) has no such gradients.
    options
        torchdiffeq's options for the method, such as ``{"first_step": 0.1}`` or ``{"max_num_steps": 1000}``.

    Raises
    ------
    ValueError
        If torchdiffeq does not know the method or an option.
    genmatch.solvers.UnfinishedError
        By a run that did not get to its end. There are no states then, as torchdiffeq gives none.
    """

    lifts = True
    parts = frozenset({"drift"})
    on_the_host = True

    def __init__(
        self,
        method: str = "dopri5",
        *,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        adjoint: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        orders = {**ADAPTIVE, **FIXED}
        if not isinstance(method, str) or method not in orders:
            raise ValueError(f"method must be one of {', '.join(orders)}, got {method!r}")
        if not isinstance(adjoint, bool):
            raise TypeError(f"adjoint must be True or False, got {adjoint!r}")
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options must be a dict of torchdiffeq's options, got {options!r}")
        for name in POSITIVE:
            if name in (options or {}):
                check_positive(name, options[name])  # type: ignore[index]
        check_positive("rtol", rtol)
        check_positive("atol", atol)
        self.method, self.rtol, self.atol, self.adjoint = method, float(rtol), float(atol), bool(adjoint)
        self.options, self.order = dict(options or {}), orders[method]
        self.default_steps = 1 if method in ADAPTIVE or "step_size" in self.options else 50
        ours = [name for name in TIMES if name in self.options]
        if ours:
            raise ValueError(f"give times to gm.sample(..., times=...) and not in options, got {', '.join(ours)}")
        _check_options(method, self.options)

    def defined(self, field: Field, t: float) -> bool:
        """Whether the drift is finite at ``t``, or an exponential step leads there and back."""
        return finite(field, t) or (t in (0.0, 1.0) and field.lift is None and not Exponential.why_not(field))

    def plan(self, field: Field, times: Tensor) -> list[Leg]:
        """The legs between the times."""
        refuse_product(self, field)
        refuse_curved(self, field)
        parts = field.parts(field.at(times[:1])[0])
        refuse_parts(self, parts, "gm.solvers.Euler()" if "rates" in parts else "gm.solvers.Exponential() or Heun()")
        # The weights' speed, which is looked at when times are asked for as host floats alone.
        field.at(torch.linspace(float(times[0]), float(times[-1]), 33, dtype=torch.float64))
        tolerance = self.rtol + self.atol
        span = read_span(field, times, tolerance)
        inner, last = before_the_end(field, times, tolerance)
        ends = inner.tolist()
        legs = [Leg(begin, end) for begin, end in pairwise(ends)]
        if len(inner) < len(times):  # the last leg is the exponential step alone
            legs.append(Leg(ends[-1], ends[-1], None, last))
        elif last is not None:
            legs[-1] = legs[-1]._replace(last=last)
        if span.opening is not None:
            legs[0] = self._open(field, legs[0], span.start, span.opening)
        return legs

    @staticmethod
    def _open(field: Field, leg: Leg, start: float, opening: Opening) -> Leg:
        """The first leg of a run that begins where the field is not finite: by way of the cut, forth or back."""
        if (leg.end - start) * (leg.end - leg.begin) > 0:
            return leg._replace(begin=start, first=opening)
        if leg.last is None:
            back = torch.tensor([start, leg.end], dtype=torch.float64)
            return Leg(start, start, opening, Exponential(order=1).single(field, back) if start != leg.end else None)
        return Leg(leg.end, leg.end, opening, leg.last)

    def evaluations(self, plan: Sequence[Leg]) -> int:
        """Not known before a run."""
        raise ValueError("how often the network runs is known after a run alone: gm.sample(..., report=True) says it")

    def step(self, field: Field, x: Tensor, c: Leg, draws: Draws, carry: Tally | None) -> tuple[Tensor, Tally]:
        """The state at the next asked time; see the class."""
        if carry is None:
            carry = Tally(0, 0, 0, torch.full((len(x),), DONE, dtype=torch.int64, device=x.device))
        evaluations, accepted, rejected, status = carry
        if c.first is not None:
            x = c.first.leave(field, x)
            evaluations, accepted = evaluations + 1, accepted + 1
        if c.end != c.begin:
            motion = _Motion(field, c, self.method in ADAPTIVE)
            x = self._solve(motion, x)
            evaluations, rejected = evaluations + motion.evaluations, rejected + motion.rejected
            accepted += motion.steps - motion.rejected
        if c.last is not None:
            x, _ = apply_transition(field, x, c.last, None)
            evaluations, accepted = evaluations + 1, accepted + 1
        finite = x.detach().isfinite().flatten(1).all(1)
        return x, Tally(evaluations, accepted, rejected, torch.where(finite, status, NOT_FINITE))

    def _solve(self, motion: _Motion, x: Tensor) -> Tensor:
        import torchdiffeq

        span = torch.tensor([0.0, motion.length], dtype=torch.float64, device=x.device)
        options, back = dict(self.options), {name: value for name, value in self.options.items() if name != "norm"}
        if self.method in ADAPTIVE:  # end at the end: else they step beyond it and interpolate
            options["step_t"], back["step_t"] = span[1:], span[:1]
        known: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        solve: Any = torchdiffeq.odeint
        if torch.is_grad_enabled():
            if self.adjoint:
                solve = torchdiffeq.odeint_adjoint
                known.update(adjoint_params=motion.parameters(), adjoint_options=back)
            elif self.method in ADAPTIVE:  # torchdiffeq would differentiate its own estimate, and by time all after it
                options.setdefault("first_step", self._first_step(motion, x.detach()))
        try:
            return solve(motion, x, span, **known)[-1]
        except AssertionError as error:
            why = next((text for sign, text in WHY.items() if sign in str(error)), str(error))
            raise UnfinishedError(f"torchdiffeq stopped at t = {motion.t:.6g}: {why}") from error

    @torch.no_grad()
    def _first_step(self, motion: _Motion, x: Tensor) -> float:
        """The length of a first step, from two evaluations: see ``controller.first_step``."""
        scale = self.atol + self.rtol * x.abs()
        slope, state = motion(x.new_zeros(()), x), size(x[None], scale[None])
        steep = size(slope[None], scale[None])
        tried = torch.where((state < 1e-5) | (steep < 1e-5), 1e-6, 0.01 * state / steep).clamp(max=motion.length)
        change = motion(tried[0], x + tried.to(x.dtype) * slope) - slope
        return min(first_step(steep, size(change[None], scale[None]), tried).item(), motion.length)

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g}, adjoint={self.adjoint})"


class _Motion:
    """A field's drift along a span as torchdiffeq calls it, in a time u that rises from 0; it counts.

    u is in the state's dtype, so it is kept small where times crowd: t itself is a float64.
    """

    def __init__(self, field: Field, leg: Leg, adaptive: bool) -> None:
        self.field, self.begin, self.u = field, leg.begin, torch.zeros(())
        self.length, self.sign = abs(leg.end - leg.begin), math.copysign(1.0, leg.end - leg.begin)
        self.evaluations = self.steps = self.rejected = 0
        if adaptive:
            self.callback_reject_step = self._reject

    def __call__(self, u: Tensor, x: Tensor) -> Tensor:
        self.evaluations += 1
        self.u = u.detach().double().clamp(0.0, self.length)  # guesses of a first step may look beyond
        times = (self.begin + self.sign * self.u).repeat(len(x))
        return self.sign * slope(self.field, x, self.field.among(times))

    @property
    def t(self) -> float:
        """The time that was looked at last."""
        return self.begin + self.sign * float(self.u)

    def callback_step(self, u: Tensor, x: Tensor, h: Tensor) -> None:
        """A step is tried."""
        self.steps += 1

    def _reject(self, u: Tensor, x: Tensor, h: Tensor) -> None:
        self.rejected += 1

    def parameters(self) -> tuple[Tensor, ...]:
        """What the adjoint differentiates by, beside the state."""
        given = (self.field.condition or {}).values()
        return tuple(p for p in [*self.field.operator.parameters(), *given] if p.requires_grad)


def _check_options(method: str, options: Mapping[str, Any]) -> None:
    """Ask torchdiffeq itself, on nothing that moves, whether it takes the options."""
    import torchdiffeq

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        known: dict[str, Any] = {"method": method, "options": dict(options)}
        try:
            torchdiffeq.odeint(lambda t, y: torch.zeros_like(y), torch.ones(1), ends, **known)
        except AssertionError:  # too few steps allowed for this span
            return
        except (UserWarning, ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"torchdiffeq's {method} does not take these options: {error}") from error
