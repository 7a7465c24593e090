r"""The value of a Markov generator at a state and a time: drift, variance and rates.

On R^d every regular Markov generator is

.. math:: L_t f(x) = \nabla f\cdot b_t(x) + \tfrac12 \nabla^2 f\cdot \Sigma_t(x) + \int (f(y) - f(x))\,Q_t(dy; x)

(generator matching, arXiv 2410.20587, Theorem 1), and on a finite set it is rates alone. All three parts are linear in
the generator, so posterior averages, superpositions, guidance and Runge-Kutta stages are plain sums of triplets. That
is why the second part is a variance and never a standard deviation, and the third rates and never their logarithms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rates import Rates
from .schedules import Number

__all__ = ["Triplet", "Triplets", "second_order"]


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

    def apply(self, function: Callable[[Tensor], Tensor], x: Tensor, space: Any = None) -> Tensor:
        r"""The definition: :math:`(L f)(x)`, shape ``(B,)``.

        ``function`` maps ``(B, *S)`` to ``(B,)``, each sample on its own and, for drift and variance, twice
        differentiable. Derivatives are exact (forward mode); the cost is one pass per coordinate, so this is for tests
        and for checks of the forward equation, not for sampling. On a manifold pass its ``space``: the second-order
        part is then the Laplace-Beltrami operator.
        """
        value = torch.zeros(x.shape[0], dtype=x.dtype if x.is_floating_point() else torch.get_default_dtype())
        value = value.to(x.device)
        if self.drift is not None:
            value = value + torch.func.jvp(function, (x,), (self.drift.to(x.dtype),))[1]
        if self.variance is not None:
            second = second_order if space is None else space.second_order
            value = value + second(function, x, torch.as_tensor(self.variance, dtype=x.dtype, device=x.device))
        if self.rates is not None:
            value = value + self.rates.gain(function, x)
        return value


class Triplets(dict[str, Triplet]):
    """A generator's value on a product: one :class:`Triplet` for each factor of the state, by name.

    Sums and multiples are taken factor by factor; a factor that is missing does not move.
    """

    def __add__(self, other: Triplets) -> Triplets:
        if not isinstance(other, Triplets):
            return NotImplemented
        total = Triplets(self)
        for name, triplet in other.items():
            total[name] = total[name] + triplet if name in total else triplet
        return total

    def __mul__(self, weight: Number) -> Triplets:
        return Triplets({name: triplet * weight for name, triplet in self.items()})

    __rmul__ = __mul__

    @property
    def parts(self) -> frozenset[str]:
        """The parts that any factor has."""
        return frozenset().union(*(triplet.parts for triplet in self.values()))

    def apply(self, function: Callable[[Any], Tensor], x: Mapping[str, Tensor], space: Any = None) -> Tensor:
        """The definition, ``(B,)``: each factor's part on the function of that factor, the others as they are."""
        spaces = {} if space is None else space.factors
        parts = [
            triplet.apply(lambda y, name=name: function({**x, name: y}), x[name], spaces.get(name))
            for name, triplet in self.items()
        ]
        return torch.stack(parts).sum(0)


def _add(a, b):
    if a is None:
        return b
    return a if b is None else a + b


def second_order(function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
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
