"""Runs of a solver from given starts, judged by an accurate run from the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ..generators import Operator
from ..initial import rows_of
from ..spaces import Manifold, Product, Space
from ..spaces.states import State, each, first
from .exponential import Exponential
from .field import Field
from .runge_kutta import RK4
from .solver import Solver

__all__ = ["Trial", "displacement", "march"]

ROUNDINGS = 16  # of the states' size: a run of a few steps errs by no more than this much of it by rounding
FINER = 4  # steps of the exponential reference between two knots: as many evaluations as RK4 makes


class Trial(NamedTuple):
    """Runs of a solver from some starts, against an accurate one."""

    solver: Solver
    field: Field
    knots: Tensor
    reference: list[State]  # states at the knots

    @classmethod
    def of(
        cls,
        generator: Operator,
        solver: Solver,
        x: State,
        condition: Any,
        rows: slice,
        knots: Tensor,
        speed: float = 1.0,
    ) -> Trial:
        part = each(lambda whole: whole[rows], x)
        device = next(iter(part.values())).device if isinstance(part, Mapping) else part.device
        field = Field(generator, part, rows_of(condition, rows, device), speed=speed)
        exact = RK4() if Exponential.why_not(field) else Exponential(order=3)
        finer = 1 if isinstance(exact, RK4) else FINER
        inner = knots[:-1, None] + knots.diff()[:, None] * torch.arange(finer, dtype=torch.float64) / finer
        states = march(exact, field, part, torch.cat([inner.flatten(), knots[-1:]]))
        trial = cls(solver, field, knots, [part, *states[finer - 1 :: finer]])
        if not bool(trial._displacement(part, trial.reference[-1]).isfinite().all()):
            raise FloatingPointError("the accurate run is not finite at its end: the network's output is not finite")
        return trial

    def apart(self, times: Tensor) -> Tensor | None:
        """Where samples end, seen from the reference: float64 ``(B, coordinates)``; None if a run is not finite."""
        if not bool((times.diff() * (times[-1] - times[0]) > 0).all()):
            return None
        apart = self._displacement(self.reference[-1], march(self.solver, self.field, self.reference[0], times)[-1])
        return apart if bool(apart.isfinite().all()) else None

    def residual(self, times: Tensor, scale: float) -> Tensor | None:
        r"""A vector whose square is the mean of :math:`2c^2(\sqrt{1 + d^2/c^2} - 1)`, with c = ``scale``."""
        apart = self.apart(times)
        if apart is None:
            return None
        ratio = apart.square().sum(1, keepdim=True) / scale**2
        # Without cancellation where d is small: (sqrt(1 + r) - 1) / r = 1 / (sqrt(1 + r) + 1).
        return (apart * (2 / ((1 + ratio).sqrt() + 1)).sqrt()).flatten() / len(apart) ** 0.5

    def loss(self, times: Tensor, scale: float) -> float:
        """The square of the residual; infinite if a run is not finite."""
        residual = self.residual(times, scale)
        return float("inf") if residual is None else residual.square().sum().item()

    def distance(self, times: Tensor) -> float:
        """The median distance, or where that is 0 the root mean square; infinite if a run is not finite."""
        apart = self.apart(times)
        if apart is None:
            return float("inf")
        lengths = apart.norm(dim=1)
        return lengths.median().item() or lengths.square().mean().sqrt().item()

    @property
    def rounding(self) -> float:
        """What a distance may be by rounding alone."""
        end = first(self.reference[-1])
        return ROUNDINGS * torch.finfo(end.dtype).eps * end.double().square().mean().sqrt().item()

    def local_errors(self) -> Tensor:
        """Root mean square errors of single steps between knots, each from the reference's state, ``(knots - 1,)``.

        What the solver remembers of the steps before is kept: a method of several steps errs as it does in a run.
        """
        plan, carry = self.solver.plan(self.field, self.knots), self.solver.start(self.field, self.reference[0])
        errors = []
        for x, goal, c in zip(self.reference, self.reference[1:], plan, strict=False):
            moved, carry = self.solver.step(self.field, x, c, _NO_DRAWS, carry)
            errors.append(self._displacement(goal, moved).square().mean().sqrt())
        return torch.nan_to_num(torch.stack(errors), nan=0.0, posinf=0.0)

    def _displacement(self, goal: State, x: State) -> Tensor:
        return displacement(self.field.operator.path.space, goal, x)


def displacement(space: Space, goal: State, x: State) -> Tensor:
    """Displacements from ``goal`` to ``x``, float64 ``(B, coordinates)``, of the length of the distance."""
    if isinstance(space, Product):
        return torch.cat([displacement(own, goal[name], x[name]) for name, own in space.factors.items()], 1)
    if not isinstance(space, Manifold):
        return (x.double() - goal.double()).reshape(len(x), -1)
    goal, x = goal.double(), x.double()
    straight = space.log(goal, x)
    flat = straight.flatten(straight.ndim - space.event_ndim)
    scale = space.norm(goal, straight) / flat.norm(dim=-1).clamp(min=1e-300)
    return (flat * scale[..., None]).reshape(len(x), -1)


class _NoDraws:
    """Draws for solvers that need none."""

    def fork(self, stream: int) -> _NoDraws:
        return self

    def at(self, step: int) -> _NoDraws:
        return self

    def _refuse(self, *args: Any, **named: Any) -> NoReturn:
        raise ValueError(
            "the solver draws random numbers, and a grid is fitted to ends that follow from their starts: optimise for "
            "a deterministic one, gm.solvers.Exponential() say, and use its grid with this one"
        )

    normal = uniform = integers = bits = _refuse


_NO_DRAWS: Any = _NoDraws()


def march(solver: Solver, field: Field, x: State, times: Tensor) -> list[State]:
    """The states after each step."""
    carry, states = solver.start(field, x), []
    for c in solver.plan(field, times):
        x, carry = solver.step(field, x, c, _NO_DRAWS, carry)
        states.append(x)
    if hasattr(carry, "report"):
        raise ValueError(f"{solver!r} chooses its own steps between the times it is given: it needs no grid")
    return states
