r"""The value of a Markov generator at a state and a time: drift, variance and rates.

On R^d every regular Markov generator is

.. math:: L_t f(x) = \nabla f\cdot b_t(x) + \tfrac12 \nabla^2 f\cdot \Sigma_t(x) + \int (f(y) - f(x))\,Q_t(dy; x)

(generator matching, arXiv 2410.20587, Theorem 1), and on a finite set it is rates alone. All three parts are linear in
the generator, so posterior averages, superpositions, guidance and Runge-Kutta stages are plain sums of triplets. That
is why the second part is a variance and never a standard deviation, and the third rates and never their logarithms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .schedules import Number

__all__ = ["Jump", "Rates", "Triplet"]


class Jump(NamedTuple):
    """One factored term of :class:`Rates`: how often, and where to."""

    total: Number  # (B, *S): jumps per unit of time at each position, >= 0
    logits: Tensor  # (B, *S, K): where to, unnormalised log-probabilities over K values


class Rates:
    r"""Jump rates of every position of a token state, as a sum of factored terms.

    .. math:: Q(y_i; x) = \sum_k \lambda^k_i(x)\,\mathrm{softmax}(\ell^k_i(x))_{y_i}

    A term is a pair of a total rate ``(B, *S)`` and logits ``(B, *S, K)``; a table of B x S x K rates is made only when
    asked for. Jumps of a position to its own value are kept: they are no-ops, and dropping them would make the rates
    depend on the state through more than the network.

    Parameters
    ----------
    terms
        :class:`Jump` pairs.
    """

    __slots__ = ("terms",)

    def __init__(self, *terms: Jump) -> None:
        self.terms = tuple(Jump(*term) for term in terms)

    def __add__(self, other: Rates) -> Rates:
        terms = list(self.terms)
        for term in other.terms:
            same = next((i for i, known in enumerate(terms) if known.logits is term.logits), None)
            if same is None:
                terms.append(term)
            else:
                terms[same] = Jump(terms[same].total + term.total, term.logits)
        return Rates(*terms)

    def __mul__(self, weight: Number) -> Rates:
        return Rates(*(Jump(term.total * weight, term.logits) for term in self.terms))

    __rmul__ = __mul__

    def total(self) -> Tensor:
        """Jumps per unit of time at each position, ``(B, *S)``, self-jumps included."""
        return sum(term.total for term in self.terms)  # type: ignore[return-value]

    def table(self) -> Tensor:
        """Every rate, ``(B, *S, K)``: memory B x S x K; for tests and small vocabularies."""
        return sum(_column(term.total) * term.logits.softmax(-1) for term in self.terms)  # type: ignore[return-value]

    def land(self, term_uniform: Tensor, where_uniform: Tensor) -> Tensor:
        """Where a jump lands, int64 ``(B, *S)``, by inverting the distribution functions of term and value.

        Two uniforms ``(B, *S)``: one has too few values in float32 to choose among many thousand tokens.
        """
        if len(self.terms) == 1:
            return _invert(self.terms[0].logits, where_uniform)
        # Clamped, as an infinite rate (the last step of a mixture path) has no share.
        totals = torch.stack([torch.as_tensor(t.total).expand_as(where_uniform) for t in self.terms]).clamp(max=1e30)
        edges = totals.cumsum(0)
        chosen = (term_uniform * edges[-1] >= edges).sum(0).clamp(max=len(self.terms) - 1)
        landings = torch.stack([_invert(t.logits, where_uniform) for t in self.terms])
        return landings.gather(0, chosen[None])[0]


@dataclass(slots=True, eq=False)
class Triplet:
    r"""A generator's value: drift ``(B, *S)``, variance ``(B, *S)`` or broadcastable, and :class:`Rates`.

    ``None`` means the part is absent, which is not the same as zero: solvers look at which parts are there. The drift
    is the Ito drift. The variance may be a host number, the same for the whole state.

    Examples
    --------
    >>> import torch
    >>> a = Triplet(drift=torch.ones(1, 2))
    >>> b = Triplet(drift=torch.ones(1, 2), variance=0.5)
    >>> (0.5 * a + 2 * b).drift, (0.5 * a + 2 * b).variance
    (tensor([[2.5000, 2.5000]]), 1.0)
    """

    drift: Tensor | None = None
    variance: Number | None = None
    rates: Rates | None = None

    def __add__(self, other: Triplet) -> Triplet:
        if not isinstance(other, Triplet):
            return NotImplemented
        return Triplet(
            _add(self.drift, other.drift), _add(self.variance, other.variance), _add(self.rates, other.rates)
        )

    def __mul__(self, weight: Number) -> Triplet:
        return Triplet(*(None if part is None else part * weight for part in (self.drift, self.variance, self.rates)))

    __rmul__ = __mul__

    @property
    def parts(self) -> frozenset[str]:
        """The names of the parts that are there: of ``drift``, ``variance``, ``rates``."""
        return frozenset(name for name in ("drift", "variance", "rates") if getattr(self, name) is not None)

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        r"""The definition: :math:`(L f)(x)`, shape ``(B,)``.

        ``function`` maps ``(B, *S)`` to ``(B,)``, each sample on its own and, for drift and variance, twice
        differentiable. Derivatives are exact (forward mode); the cost is one pass per coordinate, so this is for tests
        and for checks of the forward equation, not for sampling.
        """
        value = torch.zeros(x.shape[0], dtype=x.dtype if x.is_floating_point() else torch.get_default_dtype())
        value = value.to(x.device)
        if self.drift is not None:
            value = value + torch.func.jvp(function, (x,), (self.drift.to(x.dtype),))[1]
        if self.variance is not None:
            value = value + _second_order(function, x, torch.as_tensor(self.variance, dtype=x.dtype))
        if self.rates is not None:
            value = value + _jump_part(function, x, self.rates)
        return value


def _add(a, b):
    if a is None:
        return b
    return a if b is None else a + b


def _column(total: Number) -> Number:
    return total[..., None] if isinstance(total, Tensor) and total.ndim else total


def _invert(logits: Tensor, uniform: Tensor) -> Tensor:
    # float32 at least: half precision cannot hold a distribution function over a vocabulary.
    edges = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).cumsum(-1)
    last = edges[..., -1:]
    # Strictly below the last edge, so that rounding never lands on a value of probability zero.
    level = torch.minimum(uniform[..., None].to(edges.dtype) * last, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(edges, level, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _second_order(function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
    """1/2 sum_i variance_i d^2 f / dx_i^2, by two nested forward passes along each coordinate.

    Linear in the variance, negative ones included: a difference of generators has one.
    """
    variance = variance.expand_as(x)
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])

    def along(direction: Tensor) -> Tensor:
        tangent = direction.expand_as(x).contiguous()
        second = torch.func.jvp(lambda y: torch.func.jvp(function, (y,), (tangent,))[1], (x,), (tangent,))[1]
        return second * (direction * variance).flatten(1).sum(1)

    return 0.5 * torch.stack([along(e) for e in basis]).sum(0)


def _jump_part(function: Callable[[Tensor], Tensor], x: Tensor, rates: Rates) -> Tensor:
    table = rates.table()
    here = function(x)
    value = torch.zeros_like(here)
    for position in range(x[0].numel()):
        for token in range(table.shape[-1]):
            landed = x.flatten(1).clone()
            landed[:, position] = token
            rate = table.flatten(1, -2)[:, position, token]
            value = value + rate * (function(landed.reshape(x.shape)) - here)
    return value
