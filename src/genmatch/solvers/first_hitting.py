r"""Exact sampling of masked paths, one position after the other, each at the time at which the chain would unmask it.

A masked position jumps at the hazard :math:`\dot\kappa/(1-\kappa)` wherever it stands and whatever shows elsewhere, so
the times of all jumps can be drawn beforehand: :math:`\kappa` at the time of a position's jump is uniform. The tokens
are then drawn in the order of the times, each from the posterior given all that shows by then.

References
----------
.. [1] K. Zheng et al., "Masked diffusion models are secretly time-agnostic masked models and exploit inaccurate
   categorical sampling", arXiv 2409.02908 (the first-hitting sampler).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..inversion import pick
from ..random import Draws
from .field import Field
from .solver import Solver
from .unmasking import masked_path

__all__ = ["FirstHitting"]

WHEN, WHERE = 16, 17  # streams of the draws of step 0, for the whole run


class Span(NamedTuple):
    """One span: kappa at the start of the run and at the span's end, and the positions of a sample."""

    origin: float
    ahead: float
    positions: int


class FirstHitting(Solver):
    """The masked chain exactly: one position a time, in the order and at the times of its jumps.

    Event-driven: how many positions jump in a step is read by the host, and the network runs once for each of them (as
    often as the sample of the batch with most jumps in that step needs). ``steps=1`` therefore costs one evaluation for
    each masked position; more steps are for a trajectory or a progress bar, and give the same samples: every draw
    belongs to its position, not to a step.

    Raises
    ------
    ValueError
        In ``gm.sample``, unless the generator is :class:`~genmatch.CTMC` alone on a path with a mask.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> network = gm.nn.Transformer(5, inputs=6, width=16, depth=1, heads=1, length=8)
    >>> chain = gm.CTMC(gm.predict.Tokens(network, gm.MixturePath(5, mask=5)))
    >>> gm.sample(chain, (2, 8), steps=1, solver=gm.solvers.FirstHitting(), seed=0).shape
    torch.Size([2, 8])
    """

    parts = frozenset({"rates"})
    order = 1  # of any: there is no error that steps could make smaller
    on_the_host = True

    def defined(self, field: Field, t: float) -> bool:
        """Always: a posterior is finite at all times."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[Span]:
        """The levels of kappa between which a span's jumps lie."""
        masked_path(self, field, times)
        rows = [row.models[0] for row in field.at(times[:-1], times[1:])]
        return [Span(rows[0].kappa, row.ahead, math.prod(field.like.shape[1:])) for row in rows]

    def evaluations(self, plan: Sequence[Span]) -> int:
        """At most one for each position and sample of the batch; one for each position in a single step."""
        return plan[0].positions

    def step(
        self, field: Field, x: Tensor, c: Span, draws: Draws, carry: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """All jumps of a span; see the class."""
        levels, times, where = self._draw(field, x, c, draws) if carry is None else carry
        pending = (x == field.operator.path.mask).flatten(1)  # type: ignore[attr-defined]
        if field.fixed is not None:
            pending &= ~field.fixed.flatten(1)
        pending &= levels <= c.ahead
        counts = pending.sum(1)
        order = levels.masked_fill(~pending, math.inf).argsort(1)
        for k in range(int(counts.max())):
            position = order[:, k : k + 1]
            instant = field.operator.instant(times.gather(1, position).squeeze(1), x)
            logits = field(x, instant).rates.terms[0].where.logits.flatten(1, -2)
            own = logits.gather(1, position[..., None].expand(-1, -1, logits.shape[-1])).squeeze(1)
            token = pick(own, where.gather(1, position).squeeze(1)).to(x.dtype)
            flat = x.flatten(1)
            token = torch.where(k < counts, token, flat.gather(1, position).squeeze(1))
            x = flat.scatter(1, position, token[:, None]).reshape(x.shape)
        return x, (levels, times, where)

    def _draw(self, field: Field, x: Tensor, c: Span, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Kappa and time of every position's jump, and the uniform it lands by."""
        own = draws.at(0)
        levels = own.fork(WHEN).uniform(x.shape, torch.float64).flatten(1)
        levels = c.origin + (1 - c.origin) * levels
        times = field.operator.path.time(levels)  # type: ignore[attr-defined]
        return levels, times, own.fork(WHERE).uniform(x.shape).flatten(1)

    def __repr__(self) -> str:
        return "FirstHitting()"
