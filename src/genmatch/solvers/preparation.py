"""What is done once for all batches of a run: the solver, the times, the checks of both ends, and the plan."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from .. import grids
from ..generators import Operator
from ..paths import GaussianPath, Path
from ..paths.path import NOISY
from .exponential import Exponential
from .field import Field
from .log_density import check_span
from .run import Run, first_time, read_times
from .runge_kutta import Euler
from .solver import Solver, refuse_parts
from .staged import Staged, offers

__all__ = ["WHAT", "check_generator", "default_solver", "evaluation_mode", "prepare"]

WHAT = "the log-density of samples"


def check_generator(generator: Any, who: str) -> None:
    """Raise unless it is a generator, or a sum of them."""
    if not isinstance(generator, Operator):
        raise TypeError(
            f"{who} takes a generator such as gm.Flow(model), got {type(generator).__name__}"
            + (": a predictor becomes one by gm.Flow(predictor)" if isinstance(generator, nn.Module) else "")
        )


def default_solver(field: Field) -> Solver:
    """The exponential solver where the field is semilinear, Euler elsewhere."""
    return Euler() if Exponential().why_not(field) else Exponential()


def prepare(field: Field, solver, steps, times, start, stop, *, from_source: bool, dense: bool) -> Run:
    """The run, or why there is none. Warnings point at the caller of the function that calls this one."""
    solver = default_solver(field) if solver is None else solver
    if not isinstance(solver, Solver):
        hint = ": call it, as in gm.solvers.Heun()" if isinstance(solver, type) else ""
        if isinstance(solver, str):
            hint = ", by an instance such as gm.solvers.Heun() or gm.solvers.Exponential()"
        raise TypeError(f"solver must be a genmatch Solver, got {solver!r}{hint}")
    if times is not None:
        if steps is not None or start is not None or stop is not None:
            raise ValueError("give times alone, or steps with start and stop: times say where it starts and stops")
        grid = read_times(times)
    else:
        steps, finish = solver.default_steps if steps is None else steps, 1.0 if stop is None else stop
        begin = 0.0 if start is None else start
        grid = grids.uniform(steps, begin, finish)
        field.at(grid)  # the numbers of all times in one call
        if start is None and first_time(field, solver) > 0:
            grid = grids.uniform(steps, first_time(field, solver), finish)
    instant = field.at(grid[:1])[0].models[0]
    if from_source:
        _check_noise(field.operator.path, instant, falls=bool(grid[-1] < grid[0]), told=start is not None)
    if dense:
        check_span(field, solver, grid, instant, WHAT)
    if float(grid[-1]) == 1.0:
        _check_data(field.operator.path, field.at(grid[-1:])[0].models[0])
    if not solver.defined(field, float(grid[0])):
        parts = field.parts(field.at(grid[:1])[0])
        refuse_parts(solver, parts, offers(parts))  # what it cannot move at all it cannot move later either
        other = ", or use gm.solvers.Exponential(), which is exact where the noise is infinite"
        raise ValueError(
            f"{solver!r} cannot start at t = {float(grid[0]):g}, where a network's reading or the noise is infinite: "
            f"start a little inside (0, 1), by start={abs(float(grid[0]) - 0.01):g} say"
            + (other if isinstance(solver, Staged) and not Exponential.why_not(field) else "")
        )
    plan = solver.plan(field, grid)
    if type(solver).__module__.partition(".")[0] != __name__.partition(".")[0]:
        # Our own look in their plan, and one must not probe.
        parts = field.parts(field.at(grid[:1])[0])
        refuse_parts(solver, parts, offers(parts))
    if len(plan) != len(grid) - 1:
        raise ValueError(f"{solver!r} planned {len(plan)} steps between {len(grid)} times: a plan has one for each")
    return Run(solver, grid.tolist(), plan, instant)


def _check_noise(path: Path, instant: Any, *, falls: bool, told: bool) -> None:
    """Raise or warn unless a sample of the source, scaled, is near enough a sample of p_t at the start."""
    if falls:
        raise ValueError("from data to noise the states at the start are data: pass them instead of a shape")
    why = path.why_not_noise(instant)
    if not why:
        return
    if (told and instant.t > 0) or getattr(path, "given", None):
        raise ValueError(why)
    warnings.warn(why, UserWarning, stacklevel=4)


def _check_data(path: Path, instant: Any) -> None:
    """Warn if the end of the path is not the data: they would come out shrunk or noisy."""
    if isinstance(path, GaussianPath) and (abs(instant.alpha - 1) > NOISY or instant.sigma > NOISY * instant.alpha):
        warnings.warn(
            f"{path!r} does not end in the data: at t = 1 alpha = {instant.alpha:.3g} and sigma = {instant.sigma:.3g}, "
            "so samples are alpha * data + sigma * noise",
            UserWarning,
            stacklevel=4,
        )


@contextlib.contextmanager
def evaluation_mode(module: nn.Module, grad: bool) -> Iterator[None]:
    """Evaluation mode for the networks, and their own mode back; nothing when gradients are asked for."""
    training = [] if grad else [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
