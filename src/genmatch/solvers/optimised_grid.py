r"""Time grids computed for a model, a solver and a budget.

References
----------
.. [1] A. Sabour, S. Fidler, K. Kreis, "Align your steps", arXiv 2404.14507.
.. [2] S. Xue et al., "Accelerating diffusion sampling with optimized time steps", arXiv 2402.17376.
.. [3] V. Tong et al., "Learning to discretize denoising diffusion ODEs", arXiv 2405.15506 (LD3: the distance of end
   points as the objective).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..generators import Operator
from ..grids import uniform
from ..initial import read_state
from ..predict.predictor import check_condition
from ..random import Draws
from ..spaces import Product
from ..spaces.states import State
from .classical_grids import between, classical_grids, spread_knots
from .field import Field
from .grid_search import Warp, search
from .preparation import default_solver, evaluation_mode
from .run import direction, first_time
from .solver import Solver
from .trial import Trial, march

__all__ = ["optimise_grid"]

SPREAD = 2.0  # times the median distance: from where samples count less than by the square


def optimise_grid(
    generator: Operator,
    shape_or_state: Sequence[int] | State,
    steps: int,
    *,
    solver: Solver | None = None,
    condition: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    start: float | None = None,
    stop: float | None = None,
    reference_steps: int = 64,
    iterations: int = 8,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    r"""The times at which few steps of a solver end nearest to where the flow ends.

    The grid minimises, over :math:`t_1 < \ldots < t_{n-1}`,

    .. math:: \frac1B \sum_b \rho\bigl(d(\hat x^b, x^b)\bigr), \qquad \rho(d) = 2c^2\bigl(\sqrt{1 + d^2/c^2} - 1\bigr)

    with :math:`\hat x` the end of a run over the grid, x that of an accurate run from the same start, and d the
    distance of the space. :math:`\rho` is the squared distance for most samples and grows like the distance for those
    far out: a coarse run sends a few to another mode, and they would outweigh all others. Its scale c is twice the
    median distance that the best grid has before the search.

    The search starts from the grid that spreads the solver's measured local error evenly, and again from the best of
    the classical grids, and goes by least squares over the lengths of the steps (Levenberg-Marquardt by differences;
    nothing is differentiated, so any deterministic solver and network will do).

    Half of the samples are fitted. The other half decides: of the grids found, the even one, and the uniform,
    quadratic, Karras and log-SNR grids (the last two on Gaussian paths, from the same start) the best on it is
    returned. So on that half none of those is better; with few samples in few dimensions chance may still decide.

    Parameters
    ----------
    generator
        A flow, or a sum of flows. For a diffusion optimise the grid of its flow, ``gm.Flow(model)``: both have the same
        marginals.
    shape_or_state
        As :func:`genmatch.sample` takes it, with B >= 2 samples: the more there are and the larger they are, the
        better the grid carries over to others. 64 images do; in the plane take some hundreds.
    steps
        Steps n of the grid; how many evaluations a step takes is the solver's affair.
    solver
        The solver the grid is for: :class:`Exponential` on Gaussian paths and :class:`Euler` elsewhere by default.
    condition
        Tensors with B rows for the networks. A grid is as good as its conditions are like those to come.
    seed
        Of the samples; the same seed gives the same grid.
    start, stop
        As for :func:`genmatch.sample`; where ``start > stop`` the times fall.
    reference_steps
        Knots of the accurate run, four evaluations each.
    iterations
        The most that the search makes; 0 for the best grid without one.
    device, dtype
        Of the states, as for :func:`genmatch.sample`.
    progress
        Show a progress bar of the runs over candidate grids.

    Returns
    -------
    Tensor
        ``(steps + 1,)``, float64, strictly monotone, for ``times=``.

    Raises
    ------
    ValueError, TypeError
        On wrong input; for tokens, noise and jumps, which have no end point that belongs to a start; for a solver that
        draws random numbers or chooses its own steps.
    FloatingPointError
        If the accurate run is not finite.

    Notes
    -----
    It costs at most about :math:`4K + n(n+2)I` evaluations of all B samples, for K = ``reference_steps`` and I
    iterations, times the stages of the solver: some 600 for five steps and 1200 for ten. The grid is a value: keep it
    beside the weights.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> flow = gm.Flow(world.predictor(gm.GaussianPath(gm.schedules.VP())))
    >>> times = gm.solvers.optimise_grid(flow, (64, 1), 6, seed=0)
    >>> gm.sample(flow, (1000, 1), times=times, seed=1).shape
    torch.Size([1000, 1])
    """
    _check_numbers(generator, steps, reference_steps, iterations)
    initial = read_state(generator, shape_or_state, device, dtype)
    if initial.samples < 2:
        raise ValueError(f"at least two samples are needed, one to fit and one to decide, got {initial.samples}")
    check_condition(condition, initial.samples)
    with evaluation_mode(generator, False), torch.no_grad():
        speed = direction(generator, None, start, stop)
        field = Field(generator, initial.like, condition, speed=speed)
        solver, begin, end = _read_run(field, solver, start, stop, given=initial.given is not None)
        (instant,) = field.at(torch.tensor([begin], dtype=torch.float64))
        why = "" if initial.given is not None else generator.path.why_not_noise(instant.models[0])
        if why:
            raise ValueError(why)
        rows = slice(0, initial.samples)
        draws = Draws(seed, initial.samples, device=initial.device)
        x = initial.states(generator.path, instant.models[0], rows, draws)
        if steps == 1:
            march(solver, Field(generator, x, condition, speed=speed), x, uniform(1, begin, end))
            return uniform(1, begin, end)
        knots = spread_knots(generator.path, reference_steps, begin, end)
        half = (initial.samples + 1) // 2
        fitted, decisive = (
            Trial.of(generator, solver, x, condition, part, between(begin, end, knots), speed)
            for part in (slice(0, half), slice(half, initial.samples))
        )
        with tqdm(disable=not progress, unit="run", leave=False) as bar:
            return _optimise(fitted, decisive, knots, steps, iterations, bar)


def _optimise(fitted: Trial, decisive: Trial, knots: Tensor, steps: int, iterations: int, bar: Any) -> Tensor:
    begin, end = fitted.knots[0].item(), fitted.knots[-1].item()

    def times(shares: Tensor) -> Tensor:
        return between(begin, end, shares)

    def residual(logs: Tensor) -> Tensor | None:
        bar.update()
        return fitted.residual(times(warp.grid(logs)), scale)

    warp = Warp.of(knots, fitted.local_errors(), fitted.solver.order)
    even = times(warp.grid(torch.zeros(steps - 1, dtype=torch.float64)))
    grids = [even, *classical_grids(fitted.field.operator.path, steps, begin, end)]
    scale = SPREAD * min(fitted.distance(grid) for grid in grids)
    if scale <= SPREAD * fitted.rounding:  # a straight flow: one step is exact, and there is nothing to fit
        return grids[1]
    if not scale < float("inf"):
        raise FloatingPointError(f"{fitted.solver!r} reaches no finite end in {steps} steps, on any grid: take more")
    best = min(grids, key=lambda grid: fitted.loss(grid, scale))
    for first in (even,) if best is even else (even, best):
        if iterations:
            logs = search(residual, warp.logs((first - begin) / (end - begin)), iterations)
            grids.append(times(warp.grid(logs)))
    return min(grids, key=lambda grid: decisive.loss(grid, scale))


def _check_numbers(generator: Any, steps: Any, reference_steps: Any, iterations: Any) -> None:
    if not isinstance(generator, Operator):
        raise TypeError(f"optimise_grid takes a generator such as gm.Flow(model), got {type(generator).__name__}")
    numbers = (("steps", steps, 1), ("reference_steps", reference_steps, 8), ("iterations", iterations, 0))
    for name, value, least in numbers:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if reference_steps < 2 * steps:
        raise ValueError(
            f"reference_steps must be at least twice the steps, got {reference_steps} for {steps} steps: the accurate "
            "run must be far more so than the one it judges"
        )


def _read_run(field: Field, solver: Any, start: Any, stop: Any, *, given: bool) -> tuple[Solver, float, float]:
    path = field.operator.path
    spaces = path.space.factors.values() if isinstance(path.space, Product) else (path.space,)
    if any(space.discrete for space in spaces):
        raise ValueError(
            "tokens jump at random, so their ends do not follow from their starts and no grid can be fitted to them: "
            "take a grid of gm.grids, hazard or uniform"
        )
    (middle,) = field.at(torch.tensor([0.5], dtype=torch.float64))
    random = sorted(field.parts(middle) - {"drift"})
    if random:
        raise ValueError(
            f"the generator has {' and '.join(random)}, so its ends do not follow from their starts: optimise the "
            "grid of the flow with the same marginals, gm.Flow(model), and use it here"
        )
    solver = default_solver(field) if solver is None else solver
    if not isinstance(solver, Solver):
        hint = ": call it, as in gm.solvers.Heun()" if isinstance(solver, type) else ""
        raise TypeError(f"solver must be a genmatch Solver, got {solver!r}{hint}")
    begin, end = first_time(field, solver) if start is None else float(start), 1.0 if stop is None else float(stop)
    uniform(1, begin, end)  # says what is wrong with them
    if end < begin and not given:
        raise ValueError("from data to noise the states at the start are data: pass them instead of a shape")
    if not solver.defined(field, begin):
        raise ValueError(
            f"{solver!r} cannot start at t = {begin:g}, where a network's reading is infinite: start a little inside "
            f"(0, 1), by start={abs(begin - 0.01):g} say"
        )
    return solver, begin, end
