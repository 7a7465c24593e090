"""The one loop: states of a generator, from noise to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .generators import Operator
from .initial import read_fixed, read_state, rows_of
from .predict.predictor import check_condition
from .random import Draws
from .solvers import Field, Solver
from .solvers.log_density import LogDensity, check_density, density_solver, source_log_prob
from .solvers.preparation import WHAT, check_generator, default_solver, evaluation_mode, prepare
from .solvers.report import Report, known
from .solvers.run import Increments, Watch, direction, follow, stack
from .solvers.traces import Trace
from .spaces.states import State, each

__all__ = ["Increments", "default_solver", "evaluation_mode", "sample"]


def sample(
    generator: Operator,
    shape_or_state: Sequence[int] | State,
    *,
    steps: int | None = None,
    times: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    seed: int | None = None,
    first_index: int = 0,
    condition: Mapping[str, Tensor] | None = None,
    fixed: State | None = None,
    trajectory: bool = False,
    start: float | None = None,
    stop: float | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[int, float, State], None] | None = None,
    check: bool = False,
    grad: bool = False,
    brownian: Increments | None = None,
    report: bool = False,
    log_prob: bool = False,
    divergence: Trace | None = None,
) -> Any:
    r"""States of a generator at ``stop``, from noise or from given states at ``start``.

    Parameters
    ----------
    generator
        A generator or superposition of speed 1, or of speed -1 where times fall.
    shape_or_state
        ``(B, *S)``: that many samples from the path's source. A tensor: the states at ``start``. On a product a dict of
        either, and so is the result.
    steps, times
        The number of equal steps (50 if neither is given; 1 for an adaptive solver, which makes its own between the
        times), or the times themselves: strictly monotone in [0, 1], see
        :mod:`genmatch.grids`.
    solver
        :class:`~genmatch.solvers.Exponential` on a Gaussian path, :class:`~genmatch.solvers.Euler` elsewhere.
    seed, first_index
        Every draw is a function of the seed and of a sample's index, ``first_index`` and on: batches, shards and
        devices get the same numbers. Without a seed one is taken from torch's global generator.
    condition
        Tensors with B rows, passed to the networks by name.
    fixed
        Bool ``(B, *S)``, tokens only: positions of the given states that stay (a prompt).
    trajectory
        Return all states, ``(steps + 1, B, *S)``, and not only the last.
    start, stop
        The span of the steps, 0 and 1 by default; ``start > stop`` runs a flow, or a generator of speed -1 such as
        :class:`gm.Reverse(...) <genmatch.Reverse>`, from data to noise. A network that knows
        nothing of the data at t = 0 (a noise network where :math:`\alpha_0 = 0`) starts at log-SNR -10 unless told.
    batch_size
        Split the samples into batches of this size; the result is the same.
    device, dtype
        Of the states; those of the given states or of the network's parameters by default. float32 or float64: a
        network of lower precision runs under ``torch.autocast``.
    progress
        Show a progress bar.
    callback
        Called as ``callback(i, t, x)`` after step i = 1, 2, ... of each batch, at time t.
    check
        Look for non-finite states after every step instead of at the end.
    grad
        Differentiate through the steps; the networks then stay in the mode they are in. Otherwise they run in
        evaluation mode, without gradients, and get their mode back.
    brownian
        A :class:`~genmatch.BrownianTree`: then noise is one path of time for each sample, which all grids sample, and
        not independent numbers for each step. Runs with more steps converge to one another, sample by sample.
    report
        Return the :class:`~genmatch.solvers.Report` too: evaluations, steps and a status for each sample.
    log_prob
        Return the log-density of the samples too, ``(B,)`` in nats, by the same steps: that of the law which a flow
        (drift alone) carries from the path's source to ``stop``. See :func:`genmatch.log_prob`, which has the solver
        that is the default here.
    divergence
        How it is taken: :class:`gm.likelihood.Exact() <genmatch.likelihood.Exact>` or
        :class:`gm.likelihood.Hutchinson(...) <genmatch.likelihood.Hutchinson>`.

    Returns
    -------
    ``(B, *S)``, or ``(steps + 1, B, *S)`` with ``trajectory``; a tuple with ``log_prob`` and ``report`` after it where
    they are asked for, in this order.

    Raises
    ------
    ValueError, TypeError
        On wrong input, at the call.
    FloatingPointError
        If a state becomes non-finite.
    genmatch.solvers.UnfinishedError
        If an adaptive solver did not reach the end for some samples, unless ``report`` is asked for.
    """
    check_generator(generator, "sample")
    initial = read_state(generator, shape_or_state, device, dtype)
    count, like = initial.samples, initial.like
    check_condition(condition, count)
    read_fixed(fixed, initial.given)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int)):
        raise TypeError(f"batch_size must be an integer, got {type(batch_size).__name__}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function of (i, t, x), got {type(callback).__name__}")
    if brownian is not None and (isinstance(brownian, type) or not callable(getattr(brownian, "along", None))):
        hint = ": call it" if isinstance(brownian, type) else ""
        raise TypeError(f"brownian must be a gm.BrownianTree() or None, got {brownian!r}{hint}")
    if not isinstance(log_prob, bool):
        raise TypeError(f"log_prob must be True or False, got {log_prob!r}: how it is taken is said by divergence=")
    if log_prob and brownian is not None:
        raise ValueError("a log-density is that of a flow, which draws no noise: leave brownian out")
    if log_prob:
        check_density(generator, divergence, WHAT)
    elif divergence is not None:
        raise ValueError("divergence says how a log-density is taken: ask for it by log_prob=True")
    seed = Draws(seed, 0, first_index=first_index).seed  # one seed for all batches, also where none was given
    size = min(count, batch_size or count)

    parts: list[tuple[State, ...]] = []
    reports: list[Report] = []
    with evaluation_mode(generator, grad), torch.set_grad_enabled(grad):
        speed = direction(generator, times, start, stop)
        lift = LogDensity(divergence, like, Draws(seed, 1), generator) if log_prob else None
        field = Field(generator, like, speed=speed, lift=lift)
        if log_prob and solver is None:
            solver = density_solver()
        given = initial.given is not None
        run = prepare(field, solver, steps, times, start, stop, from_source=not given, dense=log_prob)
        total = len(run.plan) * math.ceil(count / size)
        with tqdm(total=total, disable=not progress, unit="step", leave=False) as bar:
            watch = Watch(trajectory, callback, check, report, bar if progress else None)
            for begin in range(0, count, size):
                rows = slice(begin, min(begin + size, count))
                draws = Draws(seed, rows.stop - begin, first_index=first_index + begin, device=initial.device)
                own = [rows_of(value, rows, initial.device) for value in (condition, fixed)]
                lift = LogDensity(divergence, like, draws, generator) if log_prob else None
                field = Field(generator, like, *own, speed=speed, lift=lift)
                # No name holds the first states: they are let go after a step.
                first = [initial.states(generator.path, run.begin, rows, draws)]
                if lift is None:
                    ending, passed, own_report = follow(run, field, first.pop(), draws, watch, brownian)
                    density = ()
                else:
                    before = source_log_prob(generator.path, first[0], run.begin)
                    state, passed, own_report = follow(run, field, lift.join(first.pop()), draws, watch)
                    ending, change = lift.split(state)
                    density = (before + change,)
                parts.append((stack(passed) if trajectory else ending, *density))
                reports += [] if own_report is None else [own_report]
    first_part, *others = (
        _join(batches, dim=1 if trajectory and not i else 0) for i, batches in enumerate(zip(*parts, strict=True))
    )
    if report:
        found = Report(*(torch.cat(each_part) for each_part in zip(*reports, strict=True)))
        others = [*(known(density, found) for density in others), found]
    return (first_part, *others) if others else first_part


def _join(batches: Sequence[State], dim: int) -> State:
    """All batches as one, along ``dim``."""
    return batches[0] if len(batches) == 1 else each(lambda *parts: torch.cat(parts, dim=dim), *batches)
