r"""Exact sampling of token chains whose rates change between jumps, by thinning a Poisson process.

References
----------
.. [1] P. Lewis, G. Shedler, "Simulation of nonhomogeneous Poisson processes by thinning", Naval Research Logistics
   Quarterly 26 (1979).
.. [2] H. Chen, L. Ying, "Convergence analysis of discrete diffusion model: exact implementation through
   uniformization", arXiv 2402.08095.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import CTMC, OperatorInstant
from ..inversion import invert, pick
from ..paths import MixturePath
from ..random import Draws
from ..rates import Categorical, Listed, Rates
from ..schedules import check_positive
from .field import Field
from .solver import Solver, refuse_negative
from .unmasking import spell

__all__ = ["Thinning"]

EVENTS = 16  # stream of the draws of events
MOST = 1 << 20  # events of a sample in one step, so that step and event make one counter
SLACK = 1e-4  # rounding of a rate beside its bound


class Span(NamedTuple):
    """One span on the clock that candidates tick by, how often they do, and a last leap to the data."""

    number: int
    begin: float
    end: float
    often: float
    leap: tuple[float, OperatorInstant] | None = None


class Thinning(Solver):
    r"""A token chain exactly: candidate jumps at a rate that none exceeds, each taken with the share it has of it.

    Each sample has its own candidates and its own times, and the network is evaluated at every one of them, so the law
    is that of the chain, whatever the steps. Event-driven: after each candidate the host reads whether one is left.

    Without a bound, for :class:`~genmatch.CTMC` alone: all D positions have the path's hazard, which is its own bound
    (uniformisation). A candidate is a jump of a random position to its posterior, and from :math:`\kappa_t` to
    :math:`\kappa_s` there are :math:`D\log\frac{1-\kappa_t}{1-\kappa_s}` of them. A run that ends at the data ends in a
    leap of all positions over the last of it, :math:`\kappa` from 1 - ``last`` to 1, with an error of order
    :math:`(D\cdot\mathrm{last})^2` for a well trained network.

    With a bound, for any sum of token chains: candidates come ``bound`` times per unit of time for each sample, and
    those are taken that the rates of all jumps to *other* tokens account for. Near t = 1 these rates are bounded only
    as far as the network is right: stop before, or leave the bound out.

    Parameters
    ----------
    bound
        Jumps per unit of time of a whole sample that the rates never exceed.
    last
        The share of the path, in kappa, that the leap at the end covers; without a bound only.

    Raises
    ------
    ValueError
        If the bound is not above 0, if ``last`` is not in (0, 1), for a sum of chains without a bound; while sampling,
        if a rate exceeds the bound.
    """

    parts = frozenset({"rates"})
    order = 1  # of any: there is no error that steps could make smaller
    on_the_host = True

    def __init__(self, bound: float | None = None, last: float = 1e-3) -> None:
        if bound is not None:
            check_positive("bound", bound)
        check_positive("last", last)
        if last >= 1:
            raise ValueError(f"last is a share in (0, 1), got {last}")
        self.bound, self.last = bound, float(last)

    def defined(self, field: Field, t: float) -> bool:
        """Always: rates are asked for inside the steps."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[Span]:
        """The spans, in t, or in -log(1 - kappa) where there is no bound."""
        if bool(times[-1] < times[0]):
            raise ValueError("jumps run from noise to data: with times that fall use a flow, drift alone")
        if not isinstance(field.operator.path, MixturePath):
            raise ValueError(f"Thinning samples chains of tokens, got a generator on {field.operator.path!r}")
        if len(times) - 1 > 2**32 // MOST:
            raise ValueError(f"Thinning takes at most {2**32 // MOST} steps, got {len(times) - 1}: they change no law")
        rows = field.at(times[:-1], times[1:])
        refuse_negative(field, rows)
        if self.bound is not None:
            pairs = zip(times.tolist(), times[1:].tolist(), strict=False)
            return [Span(i, begin, end, float(self.bound)) for i, (begin, end) in enumerate(pairs)]
        lone = field.operator.terms
        if len(lone) != 1 or not isinstance(lone[0][1], CTMC) or lone[0][0] != 1.0:
            raise ValueError(
                f"without a bound Thinning samples gm.CTMC(model) alone, got {spell(field.operator)}: give "
                "Thinning(bound) the most jumps that a sample makes per unit of time"
            )
        return [self._span(field, i, row) for i, row in enumerate(rows)]

    def _span(self, field: Field, index: int, row: OperatorInstant) -> Span:
        kappa, ahead = row.models[0].kappa, row.models[0].ahead
        often = float(math.prod(field.like.shape[1:]))
        if ahead < 1:
            return Span(index, -math.log1p(-kappa), -math.log1p(-ahead), often)
        turn = max(kappa, 1 - self.last)
        path: MixturePath = field.operator.path  # type: ignore[assignment]
        begin = (
            path.time(torch.tensor([turn], dtype=torch.float64))
            if turn > kappa
            else torch.tensor([row.t], dtype=torch.float64)
        )
        (leap,) = field.at(begin, torch.ones(1, dtype=torch.float64))
        return Span(index, -math.log1p(-kappa), -math.log1p(-turn), often, (1 - begin.item(), leap))

    def evaluations(self, plan: Sequence[Span]) -> int:
        """The expected number of candidates of one sample, rounded up, and the leap; a batch needs its unluckiest's."""
        candidates = sum((span.end - span.begin) * span.often for span in plan)
        return math.ceil(candidates) + sum(span.leap is not None for span in plan)

    def step(self, field: Field, x: Tensor, c: Span, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """All jumps of a span; see the class."""
        path: MixturePath = field.operator.path  # type: ignore[assignment]
        positions = math.prod(x.shape[1:])
        now = torch.full((len(x),), c.begin, dtype=torch.float64, device=x.device)
        for event in range(MOST):
            u = draws.at(c.number * MOST + event).fork(EVENTS).uniform((len(x), 4), torch.float64)
            now = now - torch.log1p(-u[:, 0]) / c.often
            live = now < c.end
            if not bool(live.any()):
                break
            clock = now.clamp(max=c.end)
            t = path.time(-torch.expm1(-clock)) if self.bound is None else clock
            rates = field(x, field.operator.instant(t, x)).rates
            if self.bound is None:
                position = (u[:, 1] * positions).long()
                live = live & (_take(rates.terms[0].total, x, position) > 0)
                chances = _take_logits(rates.terms[0].where, x, position)
            else:
                leaving = _leaving(rates, x)
                position, taken = _thin(leaving, float(self.bound), u, live)
                live = live & taken
                chances = _elsewhere(rates, path, x, position)
            token = pick(chances, u[:, 3])
            values = torch.arange(path.vocabulary, device=x.device) if self.bound is None else _ids(path, x)
            flat, row = x.flatten(1), position[:, None]
            token = torch.where(live, values.to(x.dtype)[token], flat.gather(1, row).squeeze(1))
            x = flat.scatter(1, row, token[:, None]).reshape(x.shape)
        else:
            raise ValueError(f"a sample has more than {MOST} candidate jumps in one step: take more steps")
        if c.leap is not None:
            x = field.space.move(x, field(x, c.leap[1]), c.leap[0], draws)
        return x, None

    def __repr__(self) -> str:
        return f"Thinning({'' if self.bound is None else f'bound={self.bound:g}'})"


def _thin(leaving: Tensor, bound: float, u: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """The position that jumps, and whether it does, by the rates ``(B, positions)`` of leaving it."""
    total = leaving.sum(1)
    highest = torch.where(live, total, 0).max().item()
    if not highest <= bound * (1 + SLACK):
        raise ValueError(
            f"the jumps of a sample have the rate {highest:g}, above the bound {bound:g}: "
            "give a higher bound, or stop before t = 1"
        )
    return invert(leaving.log(), u[:, 2])[0], u[:, 1] * bound < total


def _take(total: Tensor, x: Tensor, position: Tensor) -> Tensor:
    """The values ``(B,)`` at one position of each sample."""
    return total.expand(x.shape).flatten(1).gather(1, position[:, None]).squeeze(1)


def _take_logits(where: Categorical, x: Tensor, position: Tensor) -> Tensor:
    """The logits ``(B, K)`` at one position of each sample."""
    logits = where.logits.expand(*x.shape, -1).reshape(len(x), -1, where.width)
    return logits[torch.arange(len(x), device=x.device), position]


def _leaving(rates: Rates, x: Tensor) -> Tensor:
    """The rates ``(B, positions)`` of jumps to other tokens, in float64."""
    leaving = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for total, where in rates.terms:
        if isinstance(where, Categorical):
            inside = (x >= 0) & (x < where.width)
            at = torch.where(inside, x, 0).long()[..., None]
            logits = where.logits.double()
            stays = torch.where(inside, (logits.gather(-1, at).squeeze(-1) - logits.logsumexp(-1)).exp(), 0.0)
        elif isinstance(where, Listed):
            stays = ((x[..., None] == where.values) * where.probabilities).sum(-1)
        else:
            raise ValueError(f"Thinning moves tokens to tokens, got a landing of the type {type(where).__name__}")
        leaving = leaving + total * (1 - stays).clamp(min=0)
    return leaving.flatten(1)


def _ids(path: MixturePath, x: Tensor) -> Tensor:
    """All ids that a position may land on."""
    extra = [] if path.mask is None else [path.mask]
    return torch.cat([torch.arange(path.vocabulary, device=x.device), x.new_tensor(extra, dtype=torch.int64)])


def _elsewhere(rates: Rates, path: MixturePath, x: Tensor, position: Tensor) -> Tensor:
    """Logits ``(B, ids)`` of where one position of each sample jumps, its own token left out."""
    ids = _ids(path, x)
    table = torch.zeros(len(x), len(ids), dtype=torch.float64, device=x.device)
    for total, where in rates.terms:
        rate = _take(total, x, position).double()[:, None]  # type: ignore[arg-type]
        if isinstance(where, Categorical):
            chances = _take_logits(where, x, position).double().softmax(-1)
            table[:, : where.width] += rate * chances
        elif isinstance(where, Listed):
            table += rate * ((where.values[:, None] == ids) * where.probabilities[:, None]).sum(0)
    here = x.flatten(1).gather(1, position[:, None])
    return table.masked_fill(ids == here, 0).log()
