r"""Jump rates: how often a state jumps, and where to.

A generator's jump part is :math:`\int (f(y) - f(x))\,Q_t(dy; x)`. The kernel is kept as a sum of factored terms,
:math:`Q(dy; x) = \sum_k \lambda^k(x)\,J^k(dy; x)`: a total rate and a law of the landing. Terms are of two kinds, and
may stand side by side: every position of the state jumps on its own (tokens, or coordinates of a vector), or the state
jumps as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .landings import Atoms, Bins, Categorical, Landing, Listed, Sampler
from .random import Draws, kernels
from .schedules import Number

__all__ = ["Atoms", "Bins", "Categorical", "Landing", "Listed", "Rates", "Sampler", "Term"]

# Streams of a step's draws: whether and where a position jumps, and the same for the state as a whole.
WHETHER, WHERE, WHETHER_WHOLE, WHERE_WHOLE = 2, 3, 10, 11
# Weights that are inverted at once where rows are taken one by one: about what a core's cache holds.
CACHED = 1 << 18


class Term(NamedTuple):
    """One factored term of :class:`Rates`: how often, and where to."""

    total: Number  # (B, *S): jumps per unit of time at each position, >= 0; (B, 1, ..., 1) of the whole state
    where: Landing


class Rates:
    r"""Jump rates as a sum of factored terms, :math:`Q(dy; x) = \sum_k \lambda^k(x)\,J^k(dy; x)`.

    A vocabulary of many thousand tokens never becomes a table of rates. Jumps of a position to its own value are kept:
    they are no-ops, and dropping them would make the rates depend on the state through more than the network.

    Parameters
    ----------
    terms
        :class:`Term` pairs; a tensor of logits ``(B, *S, K)`` stands for :class:`Categorical`.

    Examples
    --------
    >>> import torch
    >>> rates = Rates((2.0, torch.zeros(1, 3, 4)))  # two jumps per unit of time, to 4 tokens alike
    >>> (rates + 0.5 * rates).total()
    3.0
    """

    __slots__ = ("terms",)

    def __init__(self, *terms: Term | tuple[Number, Landing | Tensor]) -> None:
        pairs = []
        for term in terms:
            if not isinstance(term, tuple) or len(term) != 2:
                raise TypeError(
                    f"Rates takes pairs of a total and a landing, got {type(term).__name__}: the predictor of rates is "
                    "gm.predict.Rates(network, path, edges)"
                )
            total, where = term
            if isinstance(where, Tensor):
                where = Categorical(where)
            if not isinstance(where, Landing):
                raise TypeError(f"a term of rates lands by logits or a genmatch Landing, got {type(where).__name__}")
            pairs.append(Term(total, where))
        self.terms = tuple(pairs)

    def __add__(self, other: Rates) -> Rates:
        terms = list(self.terms)
        for term in other.terms:
            same = next((i for i, known in enumerate(terms) if _same(known.where, term.where)), None)
            if same is None:
                terms.append(term)
            else:
                terms[same] = Term(terms[same].total + term.total, terms[same].where)
        return Rates(*terms)

    def __mul__(self, weight: Number) -> Rates:
        return Rates(*(Term(term.total * weight, term.where) for term in self.terms))

    __rmul__ = __mul__

    def total(self) -> Tensor:
        """Jumps per unit of time at each position, ``(B, *S)``, self-jumps and jumps of the whole state included."""
        return sum(term.total for term in self.terms)  # type: ignore[return-value]

    def table(self) -> Tensor:
        """Every rate of a position, ``(B, *S, K)``: memory B x S x K; for tests and small vocabularies."""
        if any(not isinstance(term.where, (Categorical, Bins)) for term in self.terms):
            raise TypeError("only rates over values or bins have a table: a jump of the whole state has none")
        return sum(_column(term.total) * term.where.logits.softmax(-1) for term in self.terms)  # type: ignore

    def keep(self, where: Tensor) -> Rates:
        """The rates of the positions where the mask ``(B, *S)`` is true; the others never jump."""
        if any(term.where.whole for term in self.terms):
            raise ValueError("positions cannot be held where the state jumps as a whole")
        return Rates(*(Term(torch.where(where, term.total, 0), term.where) for term in self.terms))

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        r""":math:`\int (f(y) - f(x))\,Q(dy; x)`, ``(B,)``; exact but for a :class:`Sampler`, which draws once."""
        parts = []
        for total, where in self.terms:
            shape = (len(x), *[1] * (x.ndim - 1)) if where.whole else x.shape
            parts.append(where.gain(function, x, torch.as_tensor(total, device=x.device).expand(shape)))
        return torch.stack(parts).sum(0)

    def leap(self, x: Tensor, h: Number, draws: Draws) -> Tensor:
        r"""The state after a time h with these rates frozen, each position jumping at most once.

        A position jumps with probability :math:`1 - e^{-h\lambda}`. Then the state as a whole may jump. Two uniforms
        decide, whether and where: one has too few values in float32 to choose among many thousand tokens. Given a jump,
        the first one over its probability is again uniform: it chooses the term.
        """
        positions = [term for term in self.terms if not term.where.whole]
        whole = [term for term in self.terms if term.where.whole]
        if positions:
            x = _leap(positions, x, h, x.shape, draws, WHETHER, WHERE)
        if whole:
            x = _leap(whole, x, h, (len(x), *[1] * (x.ndim - 1)), draws, WHETHER_WHOLE, WHERE_WHOLE)
        return x


def _leap(terms: list[Term], x: Tensor, h: Number, shape, draws: Draws, whether: int, where: int) -> Tensor:
    totals = [torch.as_tensor(term.total, device=x.device).expand(shape) for term in terms]
    total = totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)
    chance = -torch.expm1(-h * total)
    logits = _one_table(terms, x, draws) if x.is_cuda else None
    if logits is not None:
        return kernels().jump(x, logits, chance.contiguous(), draws.fork(whether), draws.fork(where))
    first, second = draws.fork(whether).uniform(shape), draws.fork(where).uniform(shape)
    jumping = first < chance
    chosen = _choose(totals, first / chance) if len(terms) > 1 else None
    # Rows that do not jump need no landing; on a GPU, or compiled, to know them would cost more than to draw all.
    sparse = x.device.type == "cpu" and not torch.compiler.is_compiling() and not x.requires_grad
    for i, term in enumerate(terms):
        mask = jumping if chosen is None else jumping & (chosen == i)
        if term.where.whole:
            x = _land_whole(term.where, x, mask, second, draws.fork(where), sparse)
        elif sparse:
            rows = torch.arange(mask.numel(), device=x.device)[mask.flatten()]
            landed = _land_some(term.where, rows, second.flatten()[rows], draws.fork(where)).to(x.dtype)
            x = x.flatten().index_put((rows,), landed).reshape(x.shape)
        else:
            x = torch.where(mask, term.where.land(second, draws.fork(where)).to(x.dtype), x)
    return x


def _one_table(terms: list[Term], x: Tensor, draws: Draws) -> Tensor | None:
    """The logits of which one pass does it all: those of tokens with one law, outside a compiled graph."""
    where = terms[0].where
    plain = type(draws) is Draws and not torch.compiler.is_compiling()
    one = plain and len(terms) == 1 and not x.is_floating_point()
    return where.logits if one and isinstance(where, Categorical) and kernels().usable(x.device) else None


def _land_some(where: Landing, rows: Tensor, uniform: Tensor, draws: Draws) -> Tensor:
    """Landings of the numbered positions, a few at a time: what a law is made of then never leaves the cache."""
    size = max(1, CACHED // where.width)
    if len(rows) <= size:
        return where.take(rows).land(uniform, draws)
    parts = zip(rows.split(size), uniform.split(size), strict=True)
    return torch.cat([where.take(part).land(level, draws) for part, level in parts])


def _land_whole(where: Landing, x: Tensor, mask: Tensor, uniform: Tensor, draws: Draws, sparse: bool) -> Tensor:
    rows = mask.reshape(-1)
    landed = (
        where.take(rows).land(uniform.reshape(-1)[rows], draws) if sparse else where.land(uniform.reshape(-1), draws)
    )
    if landed.shape[1:] != x.shape[1:]:
        raise ValueError(f"a jump lands on states of shape {tuple(landed.shape[1:])}, these have {tuple(x.shape[1:])}")
    if not sparse:
        return torch.where(mask, landed.to(x.dtype), x)
    return x.index_put((rows,), landed.to(x.dtype))


def _choose(totals: list[Tensor], uniform: Tensor) -> Tensor:
    # Clamped, as an infinite rate (the last step of a mixture path) has no share.
    edges = torch.stack(totals).clamp(max=1e30).cumsum(0)
    return (uniform * edges[-1] >= edges).sum(0).clamp(max=len(totals) - 1)


def _same(a: Landing, b: Landing) -> bool:
    """Whether two laws are one: the same object, or the same logits over the same values."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Sampler):
        return False
    return all(getattr(a, name) is getattr(b, name) for name in a.__slots__)


def _column(total: Number) -> Number:
    return total[..., None] if isinstance(total, Tensor) and total.ndim else total
