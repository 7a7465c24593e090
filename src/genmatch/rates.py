r"""Jump rates: how often a state jumps, and where to.

A generator's jump part is :math:`\int (f(y) - f(x))\,Q_t(dy; x)`. The kernel is kept as a sum of factored terms,
:math:`Q(dy; x) = \sum_k \lambda^k(x)\,J^k(dy; x)`: a total rate and a law of the landing. Terms are of two kinds, and
may stand side by side: every position of the state jumps on its own (tokens, or coordinates of a vector), or the state
jumps as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .random import Draws
from .schedules import Number

__all__ = ["Atoms", "Bins", "Categorical", "Landing", "Listed", "Rates", "Sampler", "Term"]

# Streams of a step's draws: whether and where a position jumps, and the same for the state as a whole.
WHETHER, WHERE, WHETHER_WHOLE, WHERE_WHOLE = 2, 3, 10, 11
# Values up to which a distribution function is inverted in one piece; above it in two levels of about the root.
FLAT = 64
# Weights that are inverted at once where rows are taken one by one: about what a core's cache holds.
CACHED = 1 << 18
# Gauss-Legendre points that an expectation takes in each bin: exact for polynomials of degree 15.
NODES = 8


class Landing(ABC):
    """The law of where jumps land, given that they happen.

    Attributes
    ----------
    whole
        Whether the state jumps as a whole, or each position on its own.
    width
        How many numbers the law of one landing is made of.
    """

    whole: bool
    width: int = 1

    @abstractmethod
    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Landings for uniforms in [0, 1): one a position, or one a state. ``draws`` for laws that need more."""

    @abstractmethod
    def take(self, where: Tensor) -> Landing:
        """The law of some positions (or states) alone: a bool mask, or the numbers of positions in flattened order."""

    @abstractmethod
    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        r"""The term's part of the generator, :math:`\lambda\,(E f(y) - f(x))` summed over positions, ``(B,)``."""


class Categorical(Landing):
    """Each position lands on one of the values 0 .. K - 1, by logits ``(B, *S, K)``."""

    __slots__ = ("logits",)
    whole = False

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of values."""
        return self.logits.shape[-1]

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Values, int64, by inverting the distribution function at the uniforms."""
        return pick(self.logits, uniform)

    def take(self, where: Tensor) -> Categorical:
        return Categorical(_rows(self.logits, where))

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        values = torch.arange(self.logits.shape[-1], device=x.device, dtype=x.dtype)
        return _position_gain(function, x, total, self.logits, values.expand(1, -1))


class Listed(Landing):
    """Each position lands on one of V listed values, all positions by one law.

    Parameters
    ----------
    values
        ``(V,)``: they may lie outside 0 .. K - 1, as a mask does.
    probabilities
        ``(V,)``, at least 0, adding to 1.
    """

    __slots__ = ("probabilities", "values")
    whole = False

    def __init__(self, values: Tensor, probabilities: Tensor) -> None:
        if values.ndim != 1 or values.shape != probabilities.shape:
            raise ValueError(
                f"one probability for each listed value is needed, got shapes {tuple(values.shape)} and "
                f"{tuple(probabilities.shape)}"
            )
        self.values, self.probabilities = values, probabilities

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Values, by inverting the one distribution function at the uniforms."""
        edges = self.probabilities.cumsum(0)
        return self.values[
            torch.searchsorted(edges, _below(uniform.to(edges.dtype) * edges[-1], edges[-1]), right=True)
        ]

    def take(self, where: Tensor) -> Listed:
        return self

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        return _position_gain(function, x, total, self.probabilities.log().expand(*x.shape, -1), self.values[None])


class Bins(Landing):
    r"""Each coordinate lands in one of K bins, uniformly inside it: a piecewise constant density.

    Parameters
    ----------
    logits
        ``(B, *S, K)``: log-masses of the bins, unnormalised.
    edges
        ``(K + 1,)``, strictly increasing and finite.
    """

    __slots__ = ("edges", "logits")
    whole = False

    def __init__(self, logits: Tensor, edges: Tensor) -> None:
        if edges.ndim != 1 or len(edges) != logits.shape[-1] + 1:
            raise ValueError(
                f"{logits.shape[-1]} bins have {logits.shape[-1] + 1} edges in a row, got shape {tuple(edges.shape)}"
            )
        self.logits, self.edges = logits, edges

    @property
    def width(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of bins."""
        return self.logits.shape[-1]

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """Coordinates, by inverting the piecewise linear distribution function at the uniforms."""
        index, rest = invert(self.logits, uniform)
        edges = self.edges.to(rest.dtype)
        return edges[index] + rest * (edges[index + 1] - edges[index])

    def take(self, where: Tensor) -> Bins:
        return Bins(_rows(self.logits, where), self.edges)

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        nodes, weights = _legendre(x)
        edges = self.edges.to(x.dtype)
        points = edges[:-1] + nodes[:, None] * edges.diff()
        return _position_gain(function, x, total, self.logits, points, weights)


class Atoms(Landing):
    """The whole state lands on one of K given states.

    Parameters
    ----------
    points
        ``(K, *S)``.
    logits
        ``(B, K)``, or ``(1, K)`` for all samples.
    """

    __slots__ = ("logits", "points")
    whole = True

    def __init__(self, points: Tensor, logits: Tensor) -> None:
        if logits.ndim != 2 or logits.shape[-1] != len(points):
            raise ValueError(
                f"{len(points)} states to land on need logits (B, {len(points)}), got shape {tuple(logits.shape)}"
            )
        self.points, self.logits = points, logits

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """States ``(B, *S)``."""
        logits = self.logits.expand(len(uniform), -1)
        return self.points[invert(logits, uniform)[0]]

    def take(self, where: Tensor) -> Atoms:
        return self if len(self.logits) == 1 else Atoms(self.points, self.logits[where])

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        chances = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).softmax(-1)
        values = function(self.points.to(x.dtype))
        return total.reshape(-1) * ((chances * values).sum(-1) - function(x))


class Sampler(Landing):
    """The whole state lands on a draw of a function ``draws -> (B, *S)``.

    ``B`` is ``draws.samples``. An expectation over it is one draw for each sample: unbiased, and noisy.
    """

    __slots__ = ("function", "where")
    whole = True

    def __init__(self, function: Callable[[Draws], Tensor], where: Tensor | None = None) -> None:
        if not callable(function):
            raise TypeError(f"a sampler is a function of draws, got {type(function).__name__}")
        self.function, self.where = function, where

    def land(self, uniform: Tensor, draws: Draws) -> Tensor:
        """States; drawn for the whole batch, so that a sample's draw does not depend on who else jumps."""
        landed = self.function(draws)
        return landed if self.where is None else landed[self.where]

    def take(self, where: Tensor) -> Sampler:
        return Sampler(self.function, where)

    def gain(self, function: Callable[[Tensor], Tensor], x: Tensor, total: Tensor) -> Tensor:
        landed = self.function(Draws(None, len(x), device=x.device)).to(x.dtype)
        return total.reshape(-1) * (function(landed) - function(x))


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
        for total, where in terms:
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


def _land_some(where: Landing, rows: Tensor, uniform: Tensor, draws: Draws) -> Tensor:
    """Landings of the numbered positions, a few at a time: what a law is made of then never leaves the cache."""
    size = max(1, CACHED // where.width)
    if len(rows) <= size:
        return where.take(rows).land(uniform, draws)
    parts = zip(rows.split(size), uniform.split(size), strict=True)
    return torch.cat([where.take(part).land(level, draws) for part, level in parts])


def _rows(logits: Tensor, where: Tensor) -> Tensor:
    """Rows of logits ``(*S, K)`` under a bool mask, or by their numbers in flattened order."""
    if where.dtype == torch.bool:
        return logits[where]
    try:
        return logits.view(-1, logits.shape[-1]).index_select(0, where)
    except RuntimeError:  # no view: laws shared by some dimensions, which are not to be copied whole
        return logits[torch.unravel_index(where, logits.shape[:-1])]


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


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The value at which the distribution function reaches a uniform; -1, no value, where logits are nan.

    What checks the states at the end of a run sees it there.
    """
    index, rest = invert(logits, uniform)
    return torch.where(rest.isnan(), -1, index)


def invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution function of logits ``(*S, K)`` inverted at uniforms ``(*S,)``: the value, and how far into it.

    Never a value of probability zero. A large K is searched in two levels, blocks and values in the block: a running
    sum over all of it would cost more than the exponentials.
    """
    # float32 at least: half precision cannot hold a distribution function over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.softmax(-1)
    uniform = uniform[..., None].to(weights.dtype)
    count = weights.shape[-1]
    if count <= FLAT:
        index, below, mass = _search(weights, uniform, share=True)
    else:
        size = 1 << (count.bit_length() // 2)
        whole = count - count % size
        sums = weights[..., :whole].unflatten(-1, (-1, size)).sum(-1)
        if whole < count:
            sums = torch.cat([sums, weights[..., whole:].sum(-1, keepdim=True)], -1)
        block, below, _ = _search(sums, uniform, share=True)
        index = block * size + torch.arange(size, device=block.device)
        inside = weights.gather(-1, index.clamp(max=count - 1)).masked_fill(index >= count, 0)
        inner, below, mass = _search(inside, below, share=False)
        index = block * size + inner
    return index.squeeze(-1), (below / mass).squeeze(-1)


def _search(weights: Tensor, level: Tensor, *, share: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(index, how far the level is above its lower edge, its weight) for a level, or a share of the whole."""
    edges = weights.cumsum(-1)
    last = edges[..., -1:]
    level = _below(level * last if share else level, last)
    index = torch.searchsorted(edges, level, right=True).clamp(max=weights.shape[-1] - 1)
    mass = weights.gather(-1, index)
    above = (level - (edges.gather(-1, index) - mass)).clamp(min=0)
    return index, torch.minimum(above, mass), mass


def _below(level: Tensor, last: Tensor) -> Tensor:
    """A level strictly below the last edge, so that rounding never lands on a value of weight zero."""
    return torch.minimum(level, torch.nextafter(last, torch.zeros_like(last)))


def _position_gain(function, x: Tensor, total: Tensor, logits: Tensor, points: Tensor, weights=None) -> Tensor:
    """Sum over positions, values ``points`` (nodes, K) and node weights of rate times the gain of landing there."""
    chances = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).expand(*x.shape, -1)
    here = function(x)
    value = torch.zeros_like(here)
    flat, rate, chances = (
        x.reshape(len(x), -1),
        total.reshape(len(x), -1),
        chances.reshape(len(x), -1, logits.shape[-1]),
    )
    shares = torch.ones(1).to(here) if weights is None else weights
    for position in range(flat.shape[1]):
        for node, share in enumerate(shares):
            for which, point in enumerate(points[node]):
                landed = flat.clone()
                landed[:, position] = point
                gain = function(landed.reshape(x.shape)) - here
                value = value + rate[:, position] * chances[:, position, which] * gain * share
    return value


def _legendre(x: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre on [0, 1]."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1) / 2).to(x), (vectors[0] ** 2).to(x)


def _same(a: Landing, b: Landing) -> bool:
    """Whether two laws are one: the same object, or the same logits over the same values."""
    if a is b:
        return True
    if type(a) is not type(b) or isinstance(a, Sampler):
        return False
    return all(getattr(a, name) is getattr(b, name) for name in a.__slots__)


def _column(total: Number) -> Number:
    return total[..., None] if isinstance(total, Tensor) and total.ndim else total
