"""One run of a solver over one batch: the times, and the loop over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..generators import Operator
from ..random import Draws
from ..spaces import Product, Space
from ..spaces.states import State, all_finite, each
from .field import Field
from .report import Report, read_report
from .solver import Solver
from .staged import Staged

__all__ = [
    "Increments",
    "Run",
    "Watch",
    "check_ends",
    "check_finite",
    "direction",
    "first_time",
    "follow",
    "read_times",
    "stack",
]

BLIND_LOG_SNR = -10.0  # where a network that knows nothing of the data at t = 0 starts: about DDPM's last step


class Increments(Protocol):
    """Brownian increments of a path of time, such as :class:`genmatch.BrownianTree`."""

    def along(self, draws: Draws, times: Sequence[float]) -> Sequence[Any]:
        """The draws of each step between ``times``: those of ``draws``, with other Brownian noise."""
        ...


class Run(NamedTuple):
    """What all batches share."""

    solver: Solver
    times: list[float]
    plan: Sequence[Any]
    begin: Any  # the path's instant at the first time
    step: Callable[..., Any] | None = None  # in place of the solver's own: the same, compiled


class Watch(NamedTuple):
    """What is looked at along the way: all of it sees the plain states, whatever the solver carries."""

    trajectory: bool = False
    callback: Callable[[int, float, State], None] | None = None
    check: bool = False
    report: bool = False
    bar: Any = None


def follow(
    run: Run, field: Field, x: State, draws: Draws, watch: Watch, brownian: Increments | None = None
) -> tuple[State, list[State], Report | None]:
    """The state at the end, all states if they are asked for, and the report if there is one."""
    solver, step = run.solver, run.step or run.solver.step
    view = field.lift.states if field.lift is not None else lambda state: state  # type: ignore[attr-defined]
    carry = solver.start(field, x)
    states = [view(x)] if watch.trajectory else []
    steps = draws.steps(len(run.plan)) if brownian is None else brownian.along(draws, run.times)
    for i, (c, now) in enumerate(zip(run.plan, steps, strict=True), start=1):
        x, carry = step(field, x, c, now, carry)
        if watch.trajectory:
            states.append(view(x))
        if watch.check:
            check_finite(field.space, x, f"after step {i} of {len(run.plan)}, at t = {run.times[i]:g}")
        if watch.callback is not None:
            watch.callback(i, run.times[i], view(x))
        if watch.bar is not None:
            watch.bar.update()
    found = None
    if watch.report or hasattr(carry, "report"):
        found = read_report(solver, run.plan, carry, draws.samples, draws.device)
        if not watch.report:
            found.refuse()
    if not watch.check and not hasattr(carry, "report"):
        check_finite(field.space, x, "at the end; check=True tells at which step it begins")
    return x, states, found


def check_ends(start: Any, stop: Any) -> None:
    """Raise unless start and stop are numbers, or left out."""
    for name, value in (("start", start), ("stop", stop)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a time, a number in [0, 1], got {value!r}")


def direction(generator: Operator, times: Any, start: float | None, stop: float | None) -> float:
    """The speed that a generator needs: -1 if times fall and it is one that is run back."""
    check_ends(start, stop)
    if times is not None:
        grid = read_times(times)
        begin, end = float(grid[0]), float(grid[-1])
    else:
        begin, end = 0.0 if start is None else start, 1.0 if stop is None else stop
    return -1.0 if end < begin and abs(generator.speed_at((begin + end) / 2) + 1) < 1e-6 else 1.0


def first_time(field: Field, solver: Solver) -> float:
    """0, or for a network that cannot tell the data there the time at which it can."""
    if solver.defined(field, 0.0):
        return 0.0
    (zero,) = field.at(torch.zeros(1, dtype=torch.float64))
    probe = field.probe(zero) if isinstance(solver, Staged) else None
    variance = getattr(probe, "variance", None)
    if variance is not None and not bool(torch.as_tensor(variance).isfinite().all()):
        return 0.0  # infinite noise is no fault of a network: this solver cannot start there, and says so
    starts = [0.0]
    for model, instant in zip(field.models, zero.models, strict=True):
        schedule = getattr(model.path, "schedule", None)
        if not model.reads(instant) and schedule is not None:
            blind = torch.tensor([BLIND_LOG_SNR], dtype=torch.float64)
            starts.append(schedule.inverse_log_snr(blind).item())
    return max(starts)


def read_times(times: Tensor | Sequence[float]) -> Tensor:
    """The times that a caller gave, float64; raises unless they are strictly monotone in [0, 1]."""
    grid = torch.as_tensor(times, dtype=torch.float64).cpu()
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"times must be at least two numbers in a row, got shape {tuple(grid.shape)}")
    if not bool(((grid >= 0) & (grid <= 1)).all()):
        raise ValueError(f"times must be in [0, 1], got {grid.min().item():g} to {grid.max().item():g}")
    steps = grid.diff()
    if not bool((steps > 0).all() | (steps < 0).all()):
        raise ValueError("times must rise strictly (noise to data) or fall strictly (data to noise)")
    return grid


def check_finite(space: Space, state: State, when: str) -> None:
    """Raise unless states are finite, and tokens are tokens."""
    if isinstance(space, Product):
        for name, own in space.factors.items():
            check_finite(own, state[name], when)
    elif space.discrete:
        try:
            space.check(state)
        except ValueError as error:
            raise FloatingPointError(f"{when} tokens are none: {error}. Are the network's logits finite?") from None
    else:
        _check_part(state, when)


def _check_part(x: Tensor, when: str) -> None:
    if x.is_floating_point() and not all_finite(x):
        bad = int((~x.isfinite().reshape(len(x), -1).all(1)).sum())
        raise FloatingPointError(
            f"{bad} of {len(x)} states are not finite {when}: the network's output is not finite, "
            "or the steps are too long for this solver"
        )


def stack(states: list[State]) -> State:
    """States of one batch after each step, ``(steps + 1, B, *S)``."""
    return each(lambda *parts: torch.stack(parts), *states)
