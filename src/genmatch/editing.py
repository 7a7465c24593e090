r"""Editing of given samples: the noise that a flow makes of them, and samples with part of the noise added.

A flow is invertible: run from data to noise it gives each sample the :math:`x_0` from which the same flow makes it
again. Samples with some of the noise of a path are states of that path, so a run may start from them.

References
----------
.. [1] J. Song, C. Meng, S. Ermon, "DDIM", arXiv 2010.02502, Section 5.4 (encoding and reconstruction).
.. [2] C. Meng et al., "SDEdit", arXiv 2108.01073 (from a partly noised sample).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .generators import Operator
from .initial import read_state
from .paths import Path
from .random import Draws
from .sampling import sample
from .schedules import check_positive
from .solvers import Dopri5, Field, Solver
from .solvers.run import check_ends, direction
from .spaces.states import State, batch, each, first

__all__ = ["encode", "noised"]


def encode(
    generator: Operator,
    x1: Tensor,
    *,
    solver: Solver | None = None,
    steps: int | None = None,
    tolerance: float = 1e-6,
    start: float = 1.0,
    stop: float = 0.0,
    condition: Mapping[str, Tensor] | None = None,
    batch_size: int | None = None,
    report: bool = False,
    grad: bool = False,
) -> Any:
    r"""The noise of given samples under a flow: the end of :math:`\dot x = u_t(x)` from ``start`` down to ``stop``.

    ``gm.sample(flow, encode(flow, x1), solver=gm.solvers.Dopri5(1e-6, 1e-6))`` is x1 again, up to the tolerance times
    what the flow stretches an error by on its way.

    Parameters
    ----------
    generator
        A flow, or a superposition of drifts alone.
    x1
        Samples ``(B, *S)`` at ``start``.
    solver
        By default :class:`~genmatch.solvers.Dopri5` with both tolerances at ``tolerance``: steps of its own for each
        sample, so that the result does not depend on the batch.
    steps
        The number of equal steps of a solver on a grid, 50 by default.
    tolerance
        Relative and absolute tolerance of a step's error; in float32 5e-7 is the least.
    start, stop
        Times, ``start > stop``: 1 is data, 0 is noise.
    condition
        Tensors with B rows, passed to the networks by name.
    batch_size, report, grad
        As for :func:`gm.sample <genmatch.sample>`.

    Returns
    -------
    ``(B, *S)``; with ``report`` a pair of that and a :class:`~genmatch.solvers.Report`.

    Raises
    ------
    ValueError, TypeError
        For a generator with noise or jumps, which has no inverse; for times that do not fall; for a solver and a
        tolerance at once; and as ``gm.sample`` does.
    genmatch.solvers.UnfinishedError
        If some samples did not reach ``stop``, unless ``report`` is asked for.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> world = gm.worlds.GaussianMixture(torch.tensor([[-2.0], [2.0]]), 0.1)
    >>> flow = gm.Flow(world.predictor(gm.GaussianPath()))
    >>> x1 = world.sample(4, seed=0)
    >>> back = gm.sample(flow, encode(flow, x1), solver=gm.solvers.Dopri5(1e-6, 1e-6))
    >>> bool((back - x1).abs().max() < 1e-4)
    True
    """
    if not isinstance(generator, Operator):
        raise TypeError(f"encode takes a generator such as gm.Flow(model), got {type(generator).__name__}")
    if not isinstance(x1, Tensor):
        raise TypeError(f"encode takes a tensor of samples (B, *S), got {type(x1).__name__}")
    check_ends(start, stop)
    if not 1 >= start > stop >= 0:
        raise ValueError(f"encode runs from data to noise, 1 >= start > stop >= 0, got {start} and {stop}")
    check_positive("tolerance", tolerance)
    if solver is not None and tolerance != 1e-6:
        raise ValueError("give a solver, which has tolerances of its own, or a tolerance, not both")
    field = Field(generator, read_state(generator, x1, None, None).like, speed=direction(generator, None, start, stop))
    (middle,) = field.at(torch.tensor([(start + stop) / 2], dtype=torch.float64))
    random = sorted(field.parts(middle) - {"drift"})
    if "rates" in random:
        raise ValueError("jumps have no inverse: only flows on continuous states are encoded")
    if random:
        raise ValueError(
            f"the generator has {' and '.join(random)}: a random run has no inverse. Encode with the flow of the same "
            "model, gm.Flow(model), which has the same marginals"
        )
    return sample(
        generator,
        x1,
        solver=Dopri5(tolerance, tolerance) if solver is None else solver,
        steps=steps,
        start=start,
        stop=stop,
        condition=condition,
        batch_size=batch_size,
        report=report,
        grad=grad,
    )


def noised(path: Path, x1: State, t: float, *, seed: int | None = None, first_index: int = 0) -> State:
    r"""Given samples with the noise of time ``t``: :math:`x_t` of the path between a source sample and ``x1``.

    ``gm.sample(flow, noised(path, x1, 0.6, seed=0), start=0.6)`` keeps what is left of them at t = 0.6 and makes the
    rest anew.

    Parameters
    ----------
    path
        Any path: on tokens some positions are masked, on a product each factor is noised.
    x1
        Samples ``(B, *S)``, or a dict of them on a product.
    t
        The time, a number in [0, 1]: 1 leaves them as they are, 0 leaves nothing of them.
    seed, first_index
        Sample i depends on the seed and on ``first_index + i`` alone. Without a seed one is taken from torch's global
        generator.

    Returns
    -------
    The shape and dtype of ``x1``.

    Raises
    ------
    ValueError, TypeError
        For a path that pairs source and data, where noise that does not know its sample is no noise of the path; for
        states that are none of the path's.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> noised(gm.GaussianPath(), torch.zeros(2, 3), 0.6, seed=0).shape
    torch.Size([2, 3])
    """
    if not isinstance(path, Path):
        raise TypeError(f"noised takes a path such as flow.path, got {type(path).__name__}")
    if isinstance(t, bool) or not isinstance(t, (int, float)):
        raise TypeError(f"t must be a number in [0, 1], got {type(t).__name__}: samples at one time make one run")
    if not isinstance(x1, (Tensor, Mapping)):
        raise TypeError(f"noised takes a tensor of samples (B, *S), or a dict of them, got {type(x1).__name__}")
    path.space.check(x1)
    if not path.coupling.independent:
        raise ValueError(
            f"{path!r} pairs source and data by {path.coupling!r}: noise drawn on its own is not the noise of these "
            "samples. Encode them, gm.encode(flow, x1, stop=t)"
        )
    draws = Draws(seed, batch(x1), first_index=first_index, device=first(x1).device)
    x0 = path.draw_source(each(lambda part: tuple(part.shape), x1), draws)
    return path.sample(each(lambda part, like: part.to(like.dtype), x0, x1), x1, t, draws)
