r"""Samplers of masked paths that choose which positions to unmask, or mask again, by another rule than tau-leaping.

References
----------
.. [1] H. Chang et al., "MaskGIT", arXiv 2202.04200 (unmasking in the order of confidence).
.. [2] G. Wang et al., "Remasking discrete diffusion models", arXiv 2503.00307.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..generators import CTMC, Operator, OperatorInstant, Superposition
from ..inversion import pick
from ..paths import MixturePath
from ..random import Draws
from ..rates import Categorical, Listed, Rates, Term
from ..schedules import check_positive
from ..triplet import Triplet
from .field import Field
from .solver import Solver

__all__ = ["Confidence", "Remasking", "masked_path", "spell"]

WHERE, GUMBEL = 16, 17  # streams of a step's draws
CERTAIN = 1e30
SCORES = ("probability", "margin", "entropy")


def masked_path(solver: Solver, field: Field, times: Tensor) -> MixturePath:
    """The path of a lone :class:`~genmatch.CTMC` with a mask; anything else is refused."""
    if bool(times[-1] < times[0]):
        raise ValueError("jumps run from noise to data: with times that fall use a flow, drift alone")
    path = field.operator.path
    if not isinstance(path, MixturePath):
        raise ValueError(f"{type(solver).__name__} samples chains of tokens, got a generator on {path!r}")
    lone = [generator for _, generator in field.operator.terms]
    if len(lone) != 1 or not isinstance(lone[0], CTMC) or field.operator.terms[0][0] != 1.0:
        raise ValueError(
            f"{type(solver).__name__} samples gm.CTMC(model) alone, got {spell(field.operator)}: a sum of chains is "
            "for gm.solvers.Euler() or Thinning(bound)"
        )
    if path.mask is None:
        raise ValueError(
            f"{type(solver).__name__} unmasks, and {path!r} has no mask: use gm.solvers.Euler() or Thinning()"
        )
    return path


def spell(operator: Operator) -> str:
    """A generator in a line, for messages."""
    return repr(operator) if isinstance(operator, Superposition) else f"gm.{type(operator).__name__}"


class Reveal(NamedTuple):
    """One step: the instant, and the share of the positions masked at the start that are masked after it."""

    instant: OperatorInstant
    after: float


class Confidence(Solver):
    r"""Unmask the positions first of which the network is surest, as many in each step as the schedule asks for.

    After a step that ends at :math:`\kappa_s`, :math:`D\,(1-\kappa_s)/(1-\kappa_{t_0})` of the D positions that were
    masked at the start :math:`t_0` are masked still, rounded. One evaluation a step. Every masked position draws a
    token; those with the highest score keep it. It often gives better single samples than an exact sampler, but **it
    does not sample the model's law**: sure tokens come too often.

    Parameters
    ----------
    score
        ``"probability"``: of the token drawn; ``"margin"``: between the two likeliest tokens; ``"entropy"``: the least.
    temperature
        Of the tokens drawn: the posterior to the power 1 / temperature; 0 takes the likeliest.
    noise
        Gumbel noise on the score, its scale the share of positions still masked after the step times this: the order
        of unmasking is then random too.

    Raises
    ------
    ValueError
        For another score, or a negative temperature or noise; in ``gm.sample``, without a mask.
    """

    parts = frozenset({"rates"})
    order = 1

    def __init__(self, score: str = "probability", temperature: float = 1.0, noise: float = 0.0) -> None:
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        check_positive("temperature", temperature, zero=True)
        check_positive("noise", noise, zero=True)
        self.score, self.temperature, self.noise = score, float(temperature), float(noise)

    def defined(self, field: Field, t: float) -> bool:
        """Always: a posterior is finite at all times."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[Reveal]:
        """Shares of masked positions."""
        masked_path(self, field, times)
        rows = field.at(times[:-1], times[1:])
        origin = 1 - rows[0].models[0].kappa
        return [Reveal(row, (1 - row.models[0].ahead) / origin) for row in rows]

    def evaluations(self, plan: Sequence[Reveal]) -> int:
        """One a step."""
        return len(plan)

    def step(self, field: Field, x: Tensor, c: Reveal, draws: Draws, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """One step; see the class. What is carried is how many positions of each sample were masked at the start."""
        logits = field(x, c.instant).rates.terms[0].where.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        masked = _unmaskable(field, x)
        present = masked.flatten(1).sum(1)
        origin = present if carry is None else carry
        if self.temperature == 0:
            tokens = logits.argmax(-1)
        else:
            tokens = pick(logits / self.temperature, draws.fork(WHERE).uniform(x.shape))
        score = self._score(logits, tokens)
        if self.noise:
            u = draws.fork(GUMBEL).uniform(x.shape, torch.float64)
            score = score - self.noise * c.after * (-(u + 2.0**-33).log()).log().to(score.dtype)
        score = score.masked_fill(~masked, -math.inf).flatten(1)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        count = present - (origin * c.after).round().to(present.dtype)
        chosen = (rank < count[:, None]).reshape(x.shape) & masked
        return torch.where(chosen, tokens.to(x.dtype), x), origin

    def _score(self, logits: Tensor, tokens: Tensor) -> Tensor:
        chances = logits.log_softmax(-1)
        if self.score == "probability":
            return chances.gather(-1, tokens[..., None]).squeeze(-1)
        if self.score == "margin":
            best = chances.topk(2, -1).values.exp()
            return best[..., 0] - best[..., 1]
        return torch.special.entr(chances.exp()).sum(-1).neg()

    def __repr__(self) -> str:
        return f"Confidence({self.score!r}, temperature={self.temperature:g}, noise={self.noise:g})"


class Remask(NamedTuple):
    """One step: the instant, and the hazards, over the step, of unmasking and of masking again."""

    instant: OperatorInstant
    reveal: float
    hide: float


class Remasking(Solver):
    r"""Unmask and mask again, so that tokens once drawn can be drawn anew: a corrector built into the step.

    In a step from :math:`\kappa_t` to :math:`\kappa_s` a token that shows is masked with probability :math:`\sigma`,
    and a mask becomes a draw of the posterior with probability
    :math:`(\kappa_s - (1-\sigma)\kappa_t)/(1-\kappa_t)`, so that :math:`\kappa_s` shows afterwards (arXiv
    2503.00307). One of three rules says :math:`\sigma`; it can never be above :math:`(1-\kappa_s)/\kappa_t`.

    Parameters
    ----------
    churn
        b: the step of ``(1 + b) * gm.CTMC(model) + b * gm.ReverseCTMC(model)`` with the posterior frozen, exactly:
        :math:`\sigma = (1-\kappa_s) - (1-\kappa_t)
        \bigl(\tfrac{1-\kappa_s}{1-\kappa_t}\bigr)^{1+b}\bigl(\tfrac{\kappa_t}{\kappa_s}\bigr)^b`.
        With more steps the law is the model's, to order 1.
    cap
        :math:`\sigma` is this, or the largest that can be. With more steps more is masked in all, and never one
        position at a time: an error stays, as for ``rescale``.
    rescale
        :math:`\sigma` is this share, in [0, 1], of the largest that can be.

    Raises
    ------
    ValueError
        Unless one rule is given; in ``gm.sample``, without a mask.
    """

    parts = frozenset({"rates"})
    order = 1

    def __init__(self, churn: float | None = None, *, cap: float | None = None, rescale: float | None = None) -> None:
        given = {name: v for name, v in (("churn", churn), ("cap", cap), ("rescale", rescale)) if v is not None}
        if len(given) != 1:
            raise ValueError(f"give one of churn, cap and rescale, got {', '.join(given) or 'none'}")
        ((self.rule, value),) = given.items()
        check_positive(self.rule, value, zero=True)
        if self.rule != "churn" and value > 1:
            raise ValueError(f"{self.rule} is a probability or a share, in [0, 1], got {value}")
        self.value = float(value)

    def defined(self, field: Field, t: float) -> bool:
        """Always: a posterior is finite at all times."""
        return True

    def plan(self, field: Field, times: Tensor) -> list[Remask]:
        """The hazards of each step."""
        masked_path(self, field, times)
        plan = []
        for row in field.at(times[:-1], times[1:]):
            now, then = row.models[0].kappa, row.models[0].ahead
            hide = self.share(now, then)
            reveal = (then - (1 - hide) * now) / (1 - now)
            plan.append(Remask(row, _hazard(reveal), _hazard(hide)))
        return plan

    def share(self, now: float, then: float) -> float:
        r"""The probability :math:`\sigma` of masking in a step from kappa ``now`` to ``then``."""
        most = min(1.0, (1 - then) / now) if now > 0 else 1.0
        if self.rule == "cap":
            return min(self.value, most)
        if self.rule == "rescale":
            return self.value * most
        forgotten = ((1 - then) / (1 - now)) ** (1 + self.value) * (now / then) ** self.value
        return min(max((1 - then) - (1 - now) * forgotten, 0.0), most)

    def evaluations(self, plan: Sequence[Remask]) -> int:
        """One a step."""
        return len(plan)

    def step(self, field: Field, x: Tensor, c: Remask, draws: Draws, carry: None) -> tuple[Tensor, None]:
        """One step; see the class."""
        path: MixturePath = field.operator.path  # type: ignore[assignment]
        logits = field(x, c.instant).rates.terms[0].where.logits
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rates = Rates(Term(_unmaskable(field, x).to(dtype) * c.reveal, Categorical(logits)))
        if c.hide > 0:
            shows: Tensor = path.shows(x)  # type: ignore[assignment]
            shows = shows if field.fixed is None else shows & ~field.fixed
            rates = rates + Rates(Term(shows.to(dtype) * c.hide, Listed(*path.source_law(x))))
        return field.space.move(x, Triplet(rates=rates), 1.0, draws), None

    def __repr__(self) -> str:
        return f"Remasking({self.rule}={self.value:g})"


def _hazard(probability: float) -> float:
    """The hazard over a step with this probability of a jump."""
    return -math.log1p(-probability) if probability < 1 else CERTAIN


def _unmaskable(field: Field, x: Tensor) -> Tensor:
    masked = x == field.operator.path.mask  # type: ignore[attr-defined]
    return masked if field.fixed is None else masked & ~field.fixed
