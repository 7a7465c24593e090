"""The log-density of data under a flow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import grids
from ..generators import Operator
from ..initial import read_state, rows_of
from ..paths import GaussianPath
from ..predict.predictor import check_condition
from ..random import Draws
from ..sampling import evaluation_mode
from ..solvers import Field, Solver
from ..solvers.log_density import LogDensity, check_density, check_span, density_solver, inner_time, source_log_prob
from ..solvers.report import Report, known
from ..solvers.run import Run, Watch, direction, first_time, follow, read_times
from ..solvers.traces import Trace

__all__ = ["log_prob"]

WHAT = "log_prob"


def log_prob(
    generator: Operator,
    x1: Tensor,
    *,
    divergence: Trace | None = None,
    solver: Solver | None = None,
    steps: int | None = None,
    times: Tensor | Sequence[float] | None = None,
    start: float | None = None,
    stop: float | None = None,
    condition: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    first_index: int = 0,
    batch_size: int | None = None,
    grad: bool = False,
    report: bool = False,
    progress: bool = False,
) -> Any:
    r"""The log-density of data under a flow, ``(B,)`` in nats.

    .. math:: \log p(x_1) = \log p_0(x_0) - \int_0^1 \nabla\cdot u_t(x_t)\,dt

    along the trajectory that ends in :math:`x_1`, which is followed back to the source. It is the density of what
    :func:`genmatch.sample` draws with the same flow and a perfect solver.

    Parameters
    ----------
    generator
        A flow: a generator or sum of generators that has drift alone, on R^d with a source that has a density.
    x1
        Data ``(B, *S)``, float32 or float64.
    divergence
        :class:`~genmatch.likelihood.Exact` by default, d products with the Jacobian for each evaluation;
        :class:`~genmatch.likelihood.Hutchinson` for an unbiased estimate of :math:`\log p` in few.
    solver
        A solver of drifts. By default an adaptive one of order 5 with tolerances of 1e-5, each sample with steps of its
        own.
    steps, times
        Equal steps, or the times of the steps, falling.
    start
        The time at which ``x1`` are states, and at which the density is that of the flow's law, :math:`\log p_t(x_1)`.
        By default 1, the data, where the velocity is finite there. Where it is not (a data network, or any network on
        the VP and DDPM schedules) the run starts where the log-SNR is 12 and the result is the density at :math:`x_1`
        of the data blurred by noise of standard deviation :math:`\sigma/\alpha = 0.0025`:
        :math:`\log p_t(\alpha_t x_1) + d\log\alpha_t`.
    stop
        The time of the source: 0, or for a network that knows nothing of the data there the time of log-SNR -10. The
        law there is taken for the source scaled by :math:`\sqrt{\alpha^2+\sigma^2}`, from which ``gm.sample`` starts,
        which is exact where :math:`\alpha_0 = 0`.
    condition
        Tensors with B rows, passed to the networks by name: the density is the conditional one.
    seed, first_index
        Of the probes of a stochastic divergence, a function of the seed and of a sample's index.
    batch_size
        Split the data into batches of this size.
    grad
        Differentiate the result with respect to data, parameters and conditions, through the steps or, with an adjoint
        solver, in constant memory; the networks then stay in the mode they are in.
    report
        Return the :class:`~genmatch.solvers.Report` too. An evaluation is the drift and its divergence: the network
        runs once, and its derivative along d directions, or along the probes, beside it. The log-density of a sample
        that did not reach the source is nan.
    progress
        Show a progress bar.

    Returns
    -------
    ``(B,)``, or a pair of that and the report. Divide by :math:`-d\log 2` for bits per dimension, by
    :func:`~genmatch.likelihood.bits_per_dim`.

    Raises
    ------
    ValueError, TypeError
        On a generator with noise or jumps, a space that is not R^d, a source without a density, times that rise or do
        not end at the source, wrong shapes.
    genmatch.solvers.UnfinishedError
        If an adaptive solver did not reach the source for some samples, unless ``report`` is asked for.

    Notes
    -----
    An adaptive solver measures its error as a root mean square over the d coordinates and the log-density, all alike:
    a state of many coordinates gives the log-density, whose size is of order d, a share of one in d + 1.

    References
    ----------
    R. Chen et al., arXiv 1806.07366, Theorem 1; Y. Song et al., arXiv 2011.13456, Appendix D.2.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> flow = gm.Flow(gm.predict.Velocity(gm.nn.MLP(2), gm.GaussianPath()))
    >>> gm.log_prob(flow, torch.randn(4, 2)).shape
    torch.Size([4])
    """
    if not isinstance(generator, Operator):
        raise TypeError(
            f"log_prob takes a flow such as gm.Flow(model), got {type(generator).__name__}"
            + (": a predictor becomes one by gm.Flow(predictor)" if isinstance(generator, nn.Module) else "")
        )
    check_density(generator, divergence, WHAT)
    if not isinstance(x1, Tensor):
        raise TypeError(f"x1 must be a tensor of data (B, *S), got {type(x1).__name__}")
    initial = read_state(generator, x1, None, None)
    count, like = initial.samples, initial.like
    check_condition(condition, count)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    seed = Draws(seed, 0, first_index=first_index).seed
    size = min(count, batch_size or count)
    solver = density_solver() if solver is None else solver
    if not isinstance(solver, Solver):
        hint = ": call it, as in gm.solvers.RK4()" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a genmatch Solver, got {solver!r}{hint}")

    values: list[Tensor] = []
    reports: list[Report] = []
    with evaluation_mode(generator, grad), torch.set_grad_enabled(grad):
        speed = direction(generator, times, 1.0 if start is None else start, 0.0 if stop is None else stop)
        field = Field(generator, like, speed=speed, lift=LogDensity(divergence, like, Draws(seed, 1), generator))
        run, last, scale = _prepare(field, solver, steps, times, start, stop)
        total = len(run.plan) * math.ceil(count / size)
        with tqdm(total=total, disable=not progress, unit="step", leave=False) as bar:
            watch = Watch(report=report, bar=bar if progress else None)
            for begin in range(0, count, size):
                rows = slice(begin, min(begin + size, count))
                draws = Draws(seed, rows.stop - begin, first_index=first_index + begin, device=initial.device)
                lift = LogDensity(divergence, like, draws, generator)
                field = Field(generator, like, rows_of(condition, rows, initial.device), speed=speed, lift=lift)
                x = scale * initial.states(generator.path, run.begin, rows, draws)
                state, _, own_report = follow(run, field, lift.join(x), draws, watch)
                x0, change = lift.split(state)
                values.append(source_log_prob(generator.path, x0, last) - change + like.numel() * math.log(scale))
                reports += [] if own_report is None else [own_report]
    value = torch.cat(values)
    if not report:
        return value
    found = Report(*(torch.cat(parts) for parts in zip(*reports, strict=True)))
    return known(value, found), found


def _prepare(field: Field, solver: Solver, steps, times, start, stop) -> tuple[Run, Any, float]:
    """The run back to the source, the path's instant there, and what the data are multiplied by before it."""
    scale = 1.0
    if times is not None:
        if steps is not None or start is not None or stop is not None:
            raise ValueError("give times alone, or steps with start and stop: times say where it starts and stops")
        grid = read_times(times)
    else:
        begin = 1.0 if start is None else start
        if start is None and not solver.defined(field, 1.0):
            begin = inner_time(field, noisy=False)
            path = field.operator.path
            if isinstance(path, GaussianPath):
                scale = path.at(torch.tensor([begin], dtype=torch.float64)).rows()[0].alpha
        end = first_time(field, solver) if stop is None else stop
        grid = grids.uniform(solver.default_steps if steps is None else steps, begin, end)
    if bool(grid[-1] > grid[0]):
        raise ValueError("log_prob follows the data back to the source: times fall, start is above stop")
    last = field.at(grid[-1:])[0].models[0]
    check_span(field, solver, grid, last, WHAT)
    why = field.operator.path.why_not_noise(last)
    if why:
        about = f"{why.split(': pass', 1)[0]}: the density is that of gm.sample's samples, which start from the source"
        warnings.warn(about, UserWarning, stacklevel=3)
    plan = solver.plan(field, grid)
    return Run(solver, grid.tolist(), plan, field.at(grid[:1])[0].models[0]), last, scale
