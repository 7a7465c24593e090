r"""Exact sampling of jumps on continuous spaces, by thinning a Poisson process.

References
----------
.. [1] P. Lewis, G. Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics
   Quarterly 26 (1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import OperatorInstant
from ..random import Draws
from ..schedules import check_positive
from .field import Field
from .part import rates_are_finite, refuse_product
from .solver import Solver, refuse_negative, refuse_parts
from .two_event import cumulative, jump_once

__all__ = ["JumpThinning"]

CANDIDATES = 22  # stream of the draws of candidates
MOST = 1 << 16  # candidates of a sample in one step, so that step and candidate make one counter
SLACK = 1e-4  # rounding of a rate beside its bound


class Span(NamedTuple):
    """One span on the clock -log(1 - t), or a last step that ends where rates are infinite."""

    number: int
    begin: float
    end: float
    leap: tuple[float, OperatorInstant] | None = None


class JumpThinning(Solver):
    r"""Jumps exactly: candidates that come more often than any jump, each taken with the share that the rates have.

    Candidates come at the rate :math:`\text{bound}/(1-t)`, for each sample at times of its own, and a candidate is a
    jump with probability :math:`(1-t)\Lambda_t(x)/\text{bound}`, :math:`\Lambda = \sum_i\lambda_i` at that time.
    The network is evaluated at every candidate, ``bound`` :math:`\cdot\log\frac{1-t}{1-s}` times from t to s, and
    the law is that of the generator, whatever the steps. Event-driven: after each candidate the host reads whether one
    is left. A step that ends where the rates are infinite is one leap.

    Parameters
    ----------
    bound
        What :math:`(1-t)\Lambda_t(x)` never exceeds, of a whole state. Under CondOT a coordinate at
        :math:`\xi = (x - tz)/(1-t)` has :math:`\xi^2 - z\xi - 1`: 30 a coordinate is plenty.

    Raises
    ------
    ValueError
        If the bound is not above 0; while sampling, if the rates exceed it.
    """

    parts = frozenset({"rates"})
    order = 1  # of any: there is no error that steps could make smaller
    on_the_host = True

    def __init__(self, bound: float) -> None:
        check_positive("bound", bound)
        self.bound = float(bound)

    def defined(self, field: Field, t: float) -> bool:
        """Always: rates are asked for inside the steps."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[Span]:
        """The spans on the clock."""
        refuse_product(self, field)
        rows = field.at(times[:-1], times[1:])
        refuse_parts(self, field.parts(rows[0]), "gm.solvers.Strang(), which moves drift and noise besides")
        if bool(times[-1] < times[0]):
            raise ValueError("jumps run from noise to data: times that fall are for a flow, drift alone")
        if field.space.discrete:
            raise ValueError("JumpThinning is for continuous states: gm.solvers.Thinning() samples chains of tokens")
        if len(times) - 1 > 2**32 // MOST:
            raise ValueError(f"JumpThinning takes at most {2**32 // MOST} steps, got {len(times) - 1}")
        refuse_negative(field, rows)
        clock = (-torch.log1p(-times)).tolist()
        plan = [Span(i, *pair) for i, pair in enumerate(pairwise(clock))]
        if math.isinf(clock[-1]) or not rates_are_finite(field, field.at(times[-1:])[0]):
            plan[-1] = plan[-1]._replace(leap=(float(times[-1] - times[-2]), rows[-1]))
        return plan

    def evaluations(self, plan: Sequence[Span]) -> int:
        """The expected number of candidates of one sample, and one for a leap."""
        spans = sum(span.end - span.begin for span in plan if span.leap is None)
        return math.ceil(spans * self.bound) + sum(span.leap is not None for span in plan)

    def step(self, field: Field, x: Tensor, c: Span, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """All jumps of a span; see the class."""
        if c.leap is not None:
            return field.space.move(x, field(x, c.leap[1]), c.leap[0], draws), None
        now = torch.full((len(x),), c.begin, dtype=torch.float64, device=x.device)
        for candidate in range(MOST):
            here = draws.at(c.number * MOST + candidate).fork(CANDIDATES)
            u = here.uniform((len(x), 2), torch.float64)
            now = now - torch.log1p(-u[:, 0]) / self.bound
            live = now < c.end
            if not bool(live.any()):
                return x, None
            rest = torch.exp(-now.clamp(max=c.end))
            rates = field(x, field.operator.instant(1 - rest, x)).rates
            edges = cumulative(rates, x)
            share = edges[:, -1] * rest / self.bound
            self._check_bound(torch.where(live, share, 0))
            x = jump_once(rates, x, edges, (live & (u[:, 1] < share))[:, None], here)
        raise ValueError(f"a sample has more than {MOST} candidate jumps in one step: take more steps")

    def _check_bound(self, share: Tensor) -> None:
        highest = share.max().item()
        if not highest <= 1 + SLACK:
            raise ValueError(
                f"the jumps of a sample have the rate {highest * self.bound:g}/(1 - t), above the bound "
                f"{self.bound:g}: give a higher bound"
            )

    def __repr__(self) -> str:
        return f"JumpThinning({self.bound:g})"
