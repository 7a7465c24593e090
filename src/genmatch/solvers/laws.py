r"""Laws of the state after one step given the state before: densities, probabilities, divergences in closed form.

Sums over a sample are taken in float64, as float32 rounds a log-density of :math:`10^4` nats to :math:`10^{-3}`, and
what is wanted are ratios.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..rates import Categorical, Landing, Listed, Rates
from ..spaces import Tokens
from ..spaces.states import State

__all__ = ["CategoricalLaw", "GaussianLaw", "PointLaw", "ProductLaw", "TransitionLaw"]

CERTAIN = 1e20  # expected jumps from which on a jump is certain: generators bound an infinite hazard


class TransitionLaw(ABC):
    """The law of the state after a step, one for each sample of the batch."""

    @abstractmethod
    def log_prob(self, x: State) -> Tensor:
        """The logarithm, ``(B,)`` in float64 and nats, of the density or probability of the states ``(B, *S)``."""

    @abstractmethod
    def kl(self, other: TransitionLaw) -> Tensor:
        r""":math:`D_{KL}(\text{self}\,\|\,\text{other})`, ``(B,)`` in float64 and nats, to a law of the same kind."""


L = TypeVar("L", bound=TransitionLaw)


class GaussianLaw(TransitionLaw):
    r"""Independent normals, :math:`N(x'; m, s^2)` in every dimension of a sample.

    Parameters
    ----------
    mean
        m, ``(B, *S)``.
    std
        s, a number above 0, or a tensor that broadcasts to ``(B, *S)``.

    Examples
    --------
    >>> import torch
    >>> law = GaussianLaw(torch.zeros(1, 2), 0.5)
    >>> law.log_prob(torch.zeros(1, 2)), law.kl(GaussianLaw(torch.ones(1, 2), 0.5))
    (tensor([-0.4516], dtype=torch.float64), tensor([4.], dtype=torch.float64))
    """

    __slots__ = ("mean", "std")

    def __init__(self, mean: Tensor, std: float | Tensor) -> None:
        lowest = std.detach().amin().item() if isinstance(std, Tensor) else std
        if not lowest > 0:
            raise ValueError(
                f"the noise of the step has standard deviation {lowest:g} somewhere, and so no density: give noise "
                "that is above 0 at every state"
            )
        self.mean, self.std = mean, std

    def log_prob(self, x: Tensor) -> Tensor:
        r""":math:`-\sum_i\bigl[\tfrac12 (x'_i - m_i)^2/s_i^2 + \log s_i + \tfrac12\log 2\pi\bigr]`."""
        check_shape(x, self.mean)
        return -_sum(0.5 * ((x - self.mean) / self.std) ** 2) - self._log_volume()

    def kl(self, other: TransitionLaw) -> Tensor:
        r""":math:`\sum_i\bigl[\log(s'_i/s_i) + (s_i^2 + (m_i - m'_i)^2)/2s'^2_i - \tfrac12\bigr]`."""
        theirs = _alike(self, other)
        check_shape(theirs.mean, self.mean)
        apart = 0.5 * ((self.mean - theirs.mean) / theirs.std) ** 2
        share = self.std / theirs.std
        if isinstance(share, Tensor):
            share = share.to(self.mean)
            return _sum(apart) + _sum((0.5 * (share**2 - 1) - share.log()).expand_as(self.mean))
        return _sum(apart) + math.prod(self.mean.shape[1:]) * (0.5 * (share**2 - 1) - math.log(share))

    def _log_volume(self) -> float | Tensor:
        count = math.prod(self.mean.shape[1:])
        constant = 0.5 * count * math.log(2 * math.pi)
        if isinstance(self.std, Tensor):
            return constant + _sum(self.std.log().expand_as(self.mean))
        return constant + count * math.log(self.std)

    def __repr__(self) -> str:
        std = f"a tensor {tuple(self.std.shape)}" if isinstance(self.std, Tensor) else f"{self.std:g}"
        return f"GaussianLaw(mean of shape {tuple(self.mean.shape)}, std={std})"


class PointLaw(TransitionLaw):
    """A step without noise: a point mass where it leads.

    Parameters
    ----------
    mean
        Where it leads, ``(B, *S)``.
    """

    __slots__ = ("mean",)

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean

    def log_prob(self, x: Tensor) -> Tensor:
        """0 for states where the step leads, up to rounding.

        Raises
        ------
        ValueError
            For other states: they have no density, and a ratio of two such is none.
        """
        check_shape(x, self.mean)
        away = self._apart(x)
        if bool(away.any()):
            raise ValueError(
                f"{int(away.sum())} of {len(x)} states are not where a step without noise leads, and have no density: "
                "with other parameters than those that drew the states leave such steps out, by which='random'; "
                "otherwise give the times, the solver, the condition and the fixed positions that drew the states"
            )
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def kl(self, other: TransitionLaw) -> Tensor:
        """0 where both lead to one place, up to rounding, and infinity elsewhere."""
        theirs = _alike(self, other)
        check_shape(theirs.mean, self.mean)
        zero = torch.zeros(len(self.mean), dtype=torch.float64, device=self.mean.device)
        return zero.masked_fill(self._apart(theirs.mean), math.inf)

    def _apart(self, x: Tensor) -> Tensor:
        """Which samples differ by more than rounding: another batch size, or machine, changes the last digits."""
        own, x = self.mean.detach().flatten(1), x.detach().flatten(1)
        if not own.is_floating_point():
            return (own != x).any(1)
        slack = torch.finfo(own.dtype).eps ** 0.5 * (1 + own.abs().amax(1, keepdim=True))
        return ~((x - own).abs() <= slack).all(1)

    def __repr__(self) -> str:
        return f"PointLaw(mean of shape {tuple(self.mean.shape)})"


class CategoricalLaw(TransitionLaw):
    r"""A step of tokens with the rates frozen, each position on its own.

    A position jumps with probability :math:`1 - e^{-h\lambda}`, and lands by the rates' law J, maybe on its own value:

    .. math:: P(x'^i) = e^{-h\lambda^i}\,[x'^i = x^i] + (1 - e^{-h\lambda^i})\,J^i(x'^i) .

    Positions that cannot jump (those that are fixed, tokens that show on a masked path) count 0 where they stay. What
    cannot happen has the log-probability :math:`-\infty`.

    Parameters
    ----------
    space
        The tokens.
    x
        The states before the step, ``(B, *S)``.
    rates
        The rates there.
    h
        The length of the step.
    """

    __slots__ = ("h", "rates", "space", "x")

    def __init__(self, space: Tokens, x: Tensor, rates: Rates, h: float) -> None:
        for term in rates.terms:
            if not isinstance(term.where, (Categorical, Listed)):
                raise TypeError(
                    f"a law of tokens is of positions that jump to tokens, got a landing of the type "
                    f"{type(term.where).__name__}"
                )
        self.space, self.x, self.rates, self.h = space, x, rates, h

    def log_prob(self, x: Tensor) -> Tensor:
        """The sum of the positions' log-probabilities."""
        check_shape(x, self.x)
        return _sum(self._chances(x[..., None]).squeeze(-1))

    def table(self) -> Tensor:
        """Log-probabilities of every value of each position, ``(B, *S, K + E)``: tokens, then the space's E extras."""
        ids = torch.cat(
            [
                torch.arange(self.space.vocabulary, device=self.x.device),
                torch.tensor(self.space.extras, dtype=torch.int64, device=self.x.device),
            ]
        )
        return self._chances(ids.expand(*self.x.shape, -1))

    def kl(self, other: TransitionLaw) -> Tensor:
        """The sum of the positions' divergences; infinite where the other law excludes what this one allows."""
        theirs = _alike(self, other)
        check_shape(theirs.x, self.x)
        if theirs.space != self.space:
            raise ValueError(f"the laws are of different tokens, {self.space!r} and {theirs.space!r}")
        own = self.table()
        never = own == -math.inf
        gap = torch.where(never, 0.0, own) - torch.where(never, 0.0, theirs.table())
        return _sum((own.exp() * gap).sum(-1))

    def _chances(self, values: Tensor) -> Tensor:
        """Log-probabilities of values ``(B, *S, M)`` of each position."""
        pairs = [(_exposure(self.h, term.total, self.x), term.where) for term in self.rates.terms]
        total = torch.stack([exposure for exposure, _ in pairs]).sum(0)
        moves = total > 0
        safe = torch.where(moves, total, 1.0)  # a derivative at 0 would be infinite, and times 0 not a number
        landings = torch.stack(
            [(_log(exposure) - safe.log())[..., None] + _landing(where, values) for exposure, where in pairs]
        )
        never = (landings == -math.inf).all(0)  # the derivative of such a sum is not a number
        landings = torch.where(never, -math.inf, landings.masked_fill(never, 0.0).logsumexp(0))
        jumps = torch.where(moves, (-torch.expm1(-safe)).log(), -math.inf)[..., None] + landings
        stays = torch.where(total < CERTAIN, -total, -math.inf)[..., None]
        return torch.where(values == self.x[..., None], torch.logaddexp(stays, jumps), jumps)

    def __repr__(self) -> str:
        return f"CategoricalLaw({self.space!r}, states of shape {tuple(self.x.shape)})"


class ProductLaw(TransitionLaw):
    """The factors of a product, each on its own.

    Parameters
    ----------
    factors
        Laws by name.
    """

    __slots__ = ("factors",)

    def __init__(self, factors: Mapping[str, TransitionLaw]) -> None:
        self.factors = dict(factors)

    def log_prob(self, x: State) -> Tensor:
        """The sum of the factors' log-probabilities."""
        return torch.stack([law.log_prob(x[name]) for name, law in self.factors.items()]).sum(0)

    def kl(self, other: TransitionLaw) -> Tensor:
        """The sum of the factors' divergences."""
        theirs = _alike(self, other)
        return torch.stack([law.kl(theirs.factors[name]) for name, law in self.factors.items()]).sum(0)

    def __repr__(self) -> str:
        return f"ProductLaw({self.factors!r})"


def check_shape(x: Tensor, like: Tensor) -> None:
    """Raise unless states have the shape of the law's."""
    if x.shape != like.shape:
        raise ValueError(f"the law is of states of shape {tuple(like.shape)}, got {tuple(x.shape)}")


def _alike(law: L, other: TransitionLaw) -> L:
    """The other law, which must be of the same kind."""
    if isinstance(other, type(law)):
        return other
    raise TypeError(
        f"the divergence of a {type(law).__name__} is from one of its own kind, got a {type(other).__name__}: "
        "the two runs must share their times and have noise in the same steps"
    )


def _sum(values: Tensor) -> Tensor:
    """The sum over a sample, ``(B,)``, in float64."""
    return values.flatten(1).sum(1, dtype=torch.float64)


def _exposure(h: float, total: float | Tensor, x: Tensor) -> Tensor:
    """Expected jumps of each position in the step, ``(B, *S)``, in float32 at least."""
    value = h * torch.as_tensor(total, device=x.device)
    return value.to(torch.promote_types(value.dtype, torch.float32)).expand(x.shape)


def _log(value: Tensor) -> Tensor:
    """The logarithm, minus infinity without a derivative at 0."""
    some = value > 0
    return torch.where(some, torch.where(some, value, 1.0).log(), -math.inf)


def _landing(where: Landing, values: Tensor) -> Tensor:
    """Log-probabilities of landing on values ``(B, *S, M)``."""
    if isinstance(where, Listed):
        ids, which = where.values.unique(return_inverse=True)
        chances = where.probabilities / where.probabilities.sum()
        chances = torch.zeros(len(ids)).to(chances).index_add(0, which, chances)
        values = values.to(ids.dtype).contiguous()
        found = torch.searchsorted(ids, values).clamp(max=len(ids) - 1)
        return _log(torch.where(ids[found] == values, chances[found], 0.0))
    logits = where.logits  # type: ignore[attr-defined]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).expand(*values.shape[:-1], -1)
    inside = (values >= 0) & (values < logits.shape[-1])
    chosen = logits.gather(-1, torch.where(inside, values, 0).long())
    return torch.where(inside, chosen - logits.logsumexp(-1, keepdim=True), -math.inf)
