r"""The Kolmogorov forward equation, measured: does a generator move its path?

A generator follows the path :math:`p_t` at speed v if and only if, for all test functions f,

.. math:: v\,\frac{d}{dt}\langle p_t, f\rangle = \langle p_t, L_t f\rangle

(generator matching, arXiv 2410.20587, eq. 6, with v = 1). Both sides can be estimated without a solver, a simulation or
a step size, which makes this the sharpest check of a generator that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..generators import Operator
from ..paths import Path
from ..paths.path import BETWEEN
from ..predict.predictor import Condition, check_condition
from ..random import Draws
from ..spaces.states import State, batch, each, first
from .changes import change, draw_ends
from .densities import Density, integrals
from .families import PILOT, TestFunctions, check_values, default_test_functions, named
from .residuals import ForwardResidual, rounding_of

__all__ = ["Terms", "at_each", "forward_terms", "kfe_residual", "seeded", "summarise"]

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
PILOT_STREAM, SIGN_STREAM = 8, 9


class Terms(NamedTuple):
    """Both sides at one time, sample by sample: the rows of a Monte-Carlo estimate."""

    names: tuple[str, ...]
    changes: Tensor  # (functions, B), float64: d/dt of f, unbiased
    moves: Tensor  # (functions, B), float64: (L_t f)(x_t)
    speed: float
    method: str


def kfe_residual(
    generator: Operator,
    test_functions: TestFunctions | Sequence[Callable[[Any], Tensor]] | None = None,
    *,
    data: State | None = None,
    density: Density | None = None,
    t: float | Sequence[float] = TIMES,
    condition: Condition = None,
    seed: int | None = 0,
) -> ForwardResidual:
    r"""How far a generator is from moving its path.

    .. math:: \langle p_t, L_t f\rangle - v\,\frac{d}{dt}\langle p_t,f\rangle

    Give ``data`` for an estimate from samples: each row is used once for each time, with a source sample of its own, so
    the rows should be independent draws of the law that the generator is for. For a learned generator these are data
    held out from training, and the residual is the model's error, seen through f. Give ``density`` for an integral
    without noise.

    Parameters
    ----------
    generator
        A generator or a sum of generators; its ``speed`` is what the left side is multiplied by.
    test_functions
        Functions ``(B, *S) -> (B,)``, each sample on its own, twice differentiable if there is noise; a dict names
        them. By default the family of :func:`default_test_functions`, made anew for the law at each time.
    data
        ``(B, *S)``, or a dict of them on a product; their dtype is that of the computation.
    density
        The law in closed form, in the place of ``data``.
    t
        Times inside (0, 1).
    condition
        Tensors with B rows for the network. Each function is then also tested times a random function of the
        condition, which a generator that ignores it does not pass.
    seed
        Of source samples and test functions; ``None`` takes one from torch's global generator.

    Returns
    -------
    Residuals, standard errors and scales by time and function; see :class:`ForwardResidual`, whose
    ``passed(tolerance)`` is the verdict.

    Raises
    ------
    TypeError
        If ``generator`` is none, or a test function is no function.
    ValueError
        If not exactly one of data and density is given, a time is not inside (0, 1), there are fewer than two rows, a
        test function returns another shape than ``(B,)``, or a density does not add to 1 on its states.

    Notes
    -----
    The cost is one evaluation of the networks for each time; the test functions cost one pass for each coordinate if
    there is noise, and one evaluation for each value of each position if there are jumps.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> flow = gm.Flow(world.predictor(gm.GaussianPath()))
    >>> gm.metrics.kfe_residual(flow, data=world.sample(2000, seed=1)).passed()
    True
    """
    _check(generator, data, density, condition)
    times = _times(t)
    seed = Draws(seed).seed
    rows, names, samples, methods = [], (), 0, []
    for step, time in enumerate(times):
        if density is not None:
            names, *row = integrals(generator, test_functions, density, time, condition, seed)
            methods.append("by quadrature")
        else:
            terms = forward_terms(generator, test_functions, data, time, condition, seed, step)
            names, samples = terms.names, terms.moves.shape[1]
            methods.append(terms.method)
            row = summarise(terms)
        rows.append([*row, torch.full_like(row[0], generator.speed_at(time))])
    moved, changed, error, scale, rounding, speed = (torch.stack(part).cpu() for part in zip(*rows, strict=True))
    return ForwardResidual(
        times, names, moved, speed * changed, error, scale, rounding, speed[:, 0], samples, at_each(times, methods)
    )


def forward_terms(
    generator: Operator, test_functions: Any, data: State, t: float, condition: Condition, seed: int, step: int = 0
) -> Terms:
    """Both sides for each sample of ``data`` at one time; different steps are independent given the data."""
    path: Path = generator.path
    device = first(data).device
    draws = Draws(seed, batch(data), step=step, device=device)
    with torch.no_grad():
        x0, x1, condition = draw_ends(path, data, condition, draws)
        if test_functions is None:
            count = min(PILOT, batch(data))
            few0, few1 = (each(lambda v: v[:count], end) for end in (x0, x1))
            pilot = Draws(seed, count, step=step, stream=PILOT_STREAM, device=device)
            test_functions = default_test_functions(path.space, path.sample(few0, few1, t, pilot), seed=seed)
        names, functions = named(test_functions)
        check_values(names, functions, x1)
        x, changes, method = change(path, functions, x0, x1, t, draws.fork(BETWEEN))
        triplet = generator(x, t, condition)
        with seeded(seed):  # a landing that can only be sampled draws from the global generator
            moves = torch.stack([triplet.apply(f, x, path.space).double() for f in functions])
    if condition:
        sign = _of_condition(condition, seed).to(moves.device)
        names = (*names, *(f"{name} * condition" for name in names))
        changes, moves = torch.cat([changes, changes * sign]), torch.cat([moves, moves * sign])
    return Terms(names, changes, moves, generator.speed_at(t), method)


def at_each(times: Sequence[float], methods: Sequence[str]) -> str:
    """How the derivative was taken, and at which times if not everywhere in the same way."""
    used = dict.fromkeys(methods)
    if len(used) == 1:
        return methods[0]
    where = {m: ", ".join(f"{t:g}" for t, own in zip(times, methods, strict=True) if own == m) for m in used}
    return "; ".join(f"{method} at t = {own}" for method, own in where.items())


def summarise(terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Means of both sides, the standard error of their difference, its scale, and what rounding may do to it."""
    count = terms.moves.shape[1]
    error = (terms.moves - terms.speed * terms.changes).std(1) / count**0.5
    made, given = terms.moves.abs().mean(1), terms.changes.abs().mean(1)
    rounding = rounding_of(torch.float32) * (made + abs(terms.speed) * given)
    return terms.moves.mean(1), terms.changes.mean(1), error, torch.minimum(made, given), rounding


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generator at a seed, and afterwards as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed % 2**63)
        yield


def _of_condition(condition: Mapping[str, Tensor], seed: int) -> Tensor:
    """A function of the condition with values in [-1, 1], ``(B,)``: random for each label, a wave for numbers."""
    total: Any = 0.0
    for k, value in enumerate(condition.values()):
        flat = value.reshape(len(value), -1)
        if flat.is_floating_point():
            direction = Draws(seed, 1, stream=SIGN_STREAM, step=k, device=flat.device).normal((1, flat.shape[1]))
            phase = (flat.double() * direction.double()).sum(1)
        else:
            which = flat.unique(dim=0, return_inverse=True)[1]
            phase = 2.399963 * (which.double() + 1)  # the golden angle: no two labels alike
        total = total + phase
    return torch.cos(total)


def _check(generator: Any, data: Any, density: Any, condition: Condition) -> None:
    if not isinstance(generator, Operator):
        raise TypeError(
            f"the forward equation is one of a generator such as gm.Flow(model), got {type(generator).__name__}"
        )
    if (data is None) == (density is None):
        raise ValueError("give either data= (samples of the data law) or density= (the law p_t in closed form)")
    if density is not None and not isinstance(density, Density):
        raise TypeError(f"density must be gm.metrics.Density(function, states, weights), got {type(density).__name__}")
    if density is not None:
        return check_condition(condition, batch(density.states))
    if not isinstance(data, (Tensor, Mapping)):
        raise TypeError(f"data must be a tensor (B, *S), or a dict of them on a product, got {type(data).__name__}")
    generator.path.space.check(data)
    if batch(data) < 2:
        raise ValueError(f"a standard error needs at least 2 rows of data, got {batch(data)}")
    check_condition(condition, batch(data))


def _times(t: Any) -> tuple[float, ...]:
    times = (t,) if isinstance(t, (int, float)) else tuple(float(v) for v in t)
    if not times or not all(0 < time < 1 for time in times):
        raise ValueError(f"the forward equation is asked for at times inside (0, 1), got {t}")
    return times
