r"""The mixture path on tokens: each position is data with probability :math:`\kappa_t`, source otherwise.

.. math:: p_t(x\,|\,x_0, x_1) = \prod_i \bigl[(1-\kappa_t)\,\delta_{x_0^i}(x^i) + \kappa_t\,\delta_{x_1^i}(x^i)\bigr]

References
----------
.. [1] I. Gat et al., "Discrete flow matching", arXiv 2407.15595, eq. 7.
.. [2] A. Campbell et al., "Generative flows on discrete state-spaces", arXiv 2402.04997.
.. [3] J. Shi et al., "Simplified and generalized masked diffusion", arXiv 2406.04329 (the masked source).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..couplings import Coupling, Independent
from ..random import Draws
from ..schedules import CondOT, Number, Schedule, along_batch, divide
from ..spaces import Tokens
from .path import NOISY, Path
from .sources import Masked, Source, UniformTokens, check_ends
from .token_sources import CategoricalTokens

__all__ = ["MixtureInstant", "MixturePath"]


class MixtureInstant(NamedTuple):
    r"""A mixture path's numbers: t, :math:`\kappa_t`, its hazard :math:`\dot\kappa/(1-\kappa)`, its slope.

    In a solver's plan the hazard is its average over the coming step, :math:`\frac1h\log\frac{1-\kappa_t}{1-\kappa_s}`:
    with it :math:`1 - e^{-h\lambda}` is exactly the probability :math:`(\kappa_s-\kappa_t)/(1-\kappa_t)` of a jump, and
    1 on a step that ends at the data. The slope :math:`\dot\kappa` is an average too, and ``ahead`` is
    :math:`\kappa_s`; elsewhere it is :math:`\kappa_t`.
    """

    t: Number
    kappa: Number
    hazard: Number
    slope: Number
    ahead: Number

    def rows(self) -> list[MixtureInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [MixtureInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> MixtureInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return MixtureInstant(*(along_batch(f, x) for f in self))

    @property
    def forward(self) -> Number:
        r"""The hazard; on a step of a plan that runs back, from data to noise, the mirror image of :meth:`backward`.

        .. math:: \frac{\kappa_s}{h}\Bigl[\log\frac{\kappa}{1-\kappa}\Bigr]_{\kappa_s}^{\kappa_t}

        It is 0 on a step that ends at the source, where no data are left.
        """
        k, ahead = self.kappa, self.ahead
        if isinstance(k, Tensor) or ahead >= k:
            return self.hazard
        if ahead <= 0:
            return 0.0
        now, then = (math.log(kappa / (1 - kappa)) if kappa < 1 else math.inf for kappa in (k, ahead))
        return ahead * self.slope / (k - ahead) * (now - then)

    def backward(self, share: Number) -> Number:
        r"""The rate at which data that show turn back into source, where the source gives what shows probability p.

        :math:`\dot\kappa / (p + (1-p)\kappa)`, which for a mask (p = 0) is :math:`\dot\kappa/\kappa`. In a plan it is
        an average over the step that counts a jump by the probability that the hazard does not undo it in the step,

        .. math:: \frac{1-\kappa_s}{h}\Bigl[\log\frac{p + (1-p)\kappa}{1-\kappa}\Bigr]_{\kappa_t}^{\kappa_s} .

        It is 0 on a step that ends at the data, where no source is left. On a step that runs back, from data to noise,
        nothing is undone, and it is the plain average: a token that shows is still there with the probability
        :math:`\kappa_s/\kappa_t` for a mask, and with none at t = 0.
        """
        k, ahead = self.kappa, self.ahead
        if isinstance(k, Tensor) or ahead == k:
            # Only a plan's host floats are averages.
            return divide(self.slope, share + (1 - share) * k)
        if ahead < k:
            # slope log(1 + r)/(1 - p)(k_t - k_s) with r = (1 - p)(k_t - k_s)/(p + (1 - p) k_s), by log(1 + r)/r,
            # which is finite for p = 1.
            low = share + (1 - share) * ahead
            if isinstance(low, Tensor):
                some = torch.where(low > 0, low, 1.0)
                return torch.where(low > 0, self.slope * _log_growth((1 - share) * (k - ahead) / some) / some, math.inf)
            return self.slope * _log_growth((1 - share) * (k - ahead) / low) / low if low > 0 else math.inf
        if ahead >= 1:
            return 0.0
        length = (ahead - k) / self.slope
        now, then = (_log((share + (1 - share) * kappa) / (1 - kappa)) for kappa in (k, ahead))
        return (1 - ahead) / length * (then - now)


class MixturePath(Path):
    r"""The mixture path between a source of tokens and data tokens 0 .. vocabulary - 1.

    Parameters
    ----------
    vocabulary
        K, the number of data tokens.
    mask
        ``None``: the source is a uniformly random token at each position (uniform diffusion). An id outside
        0 .. K - 1: the source is that id everywhere (masked diffusion).
    schedule
        :math:`\kappa_t` is its :math:`\alpha_t`, which must run from 0 to 1; CondOT by default (:math:`\kappa_t = t`).
    padding
        An id outside 0 .. K - 1 for positions beyond the end of a sequence: they are never noised, never move, and
        carry no loss.
    source, coupling
        As for :class:`GaussianPath`; the source given here replaces the uniform one. A source of known probabilities is
        :class:`genmatch.paths.CategoricalTokens`.
    """

    def __init__(
        self,
        vocabulary: int,
        mask: int | None = None,
        schedule: Schedule | None = None,
        *,
        padding: int | None = None,
        source: Source | None = None,
        coupling: Coupling | None = None,
    ) -> None:
        if isinstance(vocabulary, bool) or not isinstance(vocabulary, int):
            raise TypeError(f"vocabulary must be an integer, got {type(vocabulary).__name__}")
        if vocabulary < 2:
            raise ValueError(f"vocabulary must be at least 2, got {vocabulary}")
        for name, extra in (("mask", mask), ("padding", padding)):
            if extra is not None and (isinstance(extra, bool) or not isinstance(extra, int)):
                raise TypeError(f"the {name} id must be an integer, got {type(extra).__name__}")
            if extra is not None and 0 <= extra < vocabulary:
                raise ValueError(
                    f"the {name} id {extra} is one of the tokens 0 .. {vocabulary - 1}: use {vocabulary} or above"
                )
        if mask is not None and mask == padding:
            raise ValueError(f"mask and padding are both {mask}: they mean different things")
        if mask is not None and source is not None:
            raise ValueError("give a mask or a source, not both: a mask is a source")
        schedule = CondOT() if schedule is None else schedule
        if not isinstance(schedule, Schedule):
            hint = f"the class {schedule.__name__}: call it" if isinstance(schedule, type) else type(schedule).__name__
            raise TypeError(f"schedule must be a genmatch Schedule, got {hint}")
        ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))[0]
        if not torch.allclose(ends, torch.tensor([0.0, 1.0], dtype=torch.float64)):
            raise ValueError(
                f"a mixture path needs a schedule whose alpha runs from 0 to 1, {schedule!r} runs from "
                f"{ends[0].item():g} to {ends[1].item():g}: CondOT, Polynomial and Cosine do"
            )
        if source is None:
            source = UniformTokens(vocabulary) if mask is None else Masked(mask)
        self.vocabulary, self.mask, self.padding, self.schedule = vocabulary, mask, padding, schedule
        coupling = Independent() if coupling is None else coupling
        check_ends(source, coupling)
        if isinstance(source, CategoricalTokens) and len(source.probabilities) != vocabulary:
            raise ValueError(
                f"the source has {len(source.probabilities)} tokens and the vocabulary {vocabulary}: give one "
                "probability for each data token"
            )
        if isinstance(source, UniformTokens) and source.vocabulary != vocabulary:
            raise ValueError(
                f"the source draws from {source.vocabulary} tokens and the vocabulary is {vocabulary}: give "
                "gm.paths.CategoricalTokens with one probability for each data token"
            )
        if isinstance(source, Masked) and mask is None:
            raise ValueError(f"a mask is given by mask={source.mask}, an id outside the vocabulary, not as a source")
        self.source, self.coupling = source, coupling
        self.space = Tokens(vocabulary, tuple(extra for extra in (mask, padding) if extra is not None))

    def at(self, t: Tensor, until: Tensor | None = None) -> MixtureInstant:
        r""":math:`\kappa` and its hazard at ``t``, or the hazard's average over the steps from ``t`` to ``until``."""
        # 1 - kappa has no digits left in float32 near the data; a derivative needs times that are not expanded.
        instant = self.schedule.at(t.double().contiguous())
        kappa, rest = instant.alpha, 1 - instant.alpha
        if until is None:
            ahead, slope = kappa, instant.alpha_dot
            hazard = slope / rest
        else:
            ahead, h = self.schedule(until.double())[0], until.double() - t.double()
            hazard, slope = (rest / (1 - ahead)).log() / h, (ahead - kappa) / h
        return MixtureInstant(t, *(value.to(t.dtype) for value in (kappa, hazard, slope, ahead)))

    def per_token(self, t: Tensor) -> MixtureInstant:
        r"""The numbers of a time for each position, ``t`` ``(B, *S)`` in [0, 1].

        Pass it for a time, ``gm.matching_loss(model, x1, t=path.per_token(t))`` or ``path.sample(x0, x1, ...)``: each
        position is then noised at its own time (diffusion forcing, arXiv 2407.01392). The network is fed
        ``(B, *S)`` times.
        """
        if not isinstance(t, Tensor) or not t.is_floating_point():
            what = f"{t.dtype}" if isinstance(t, Tensor) else type(t).__name__
            raise TypeError(f"times of positions are a floating point tensor (B, *S), got {what}")
        if t.ndim < 2:
            raise ValueError(
                f"times of positions have the shape (B, *S) of the tokens, got {tuple(t.shape)}: times of samples, "
                "(B,), are passed as they are"
            )
        if t.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(
                f"t must be in [0, 1], got {t.min().item():g} to {t.max().item():g}: 0 is noise, 1 is data"
            )
        return self.at(t.to(torch.promote_types(t.dtype, torch.float32)))

    def time(self, kappa: Tensor) -> Tensor:
        r"""The times, float64, at which :math:`\kappa_t` takes the values asked, in [0, 1]; by bisection."""
        kappa = kappa.double()
        low, high = torch.zeros_like(kappa), torch.ones_like(kappa)
        for _ in range(54):
            middle = (low + high) / 2
            above = self.schedule(middle)[0] > kappa
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2

    def between(self, x0: Tensor, x1: Tensor, instant: MixtureInstant, draws: Draws) -> Tensor:
        r"""x1 with probability :math:`\kappa_t` at each position, x0 otherwise; padding stays. ``(B, *S)``."""
        x = torch.where(draws.uniform(x1.shape) < instant.kappa, x1, x0)
        return x if self.padding is None else torch.where(x1 == self.padding, x1, x)

    def prior(self, x0: Tensor, instant: MixtureInstant) -> Tensor:
        """The source itself."""
        return x0

    def why_not_noise(self, instant: MixtureInstant) -> str:
        r"""Unless :math:`\kappa_t` is small."""
        if instant.kappa <= NOISY:
            return ""
        return (
            f"{self!r} is not noise at t = {instant.t:g}, where kappa = {instant.kappa:.3g}: pass states drawn from "
            "its p_t, each token data with probability kappa_t, instead of a shape"
        )

    def movable(self, x: Tensor) -> Tensor | None:
        """Where the process may still jump, bool ``(B, *S)``: masked positions of a masked path, never padding.

        ``None`` stands for everywhere.
        """
        if self.mask is not None:
            return x == self.mask
        return None if self.padding is None else x != self.padding

    def shows(self, x: Tensor) -> Tensor | None:
        """Where a token shows, bool ``(B, *S)``: neither a mask nor padding. ``None`` stands for everywhere."""
        if self.mask is None:
            return self.movable(x)
        return (x != self.mask) if self.padding is None else (x != self.mask) & (x != self.padding)

    def why_no_source(self) -> str:
        r"""Why the posterior of the source, :math:`p_{0|t}`, cannot be told from that of the data; "" if it can."""
        if not self.coupling.independent:
            return f"{self.coupling!r} pairs source and data: what a position came from depends on where it goes"
        if not isinstance(self.source, (Masked, UniformTokens, CategoricalTokens)):
            return (
                f"the probabilities of its source {self.source!r} are not known: use a mask, the uniform source or "
                "gm.paths.CategoricalTokens"
            )
        return ""

    def source_law(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ids that the source draws, ``(V,)`` in the dtype of ``x``, and their probabilities, float64.

        Raises :class:`ValueError` where they are not known; see :meth:`why_no_source`.
        """
        if self.mask is not None:
            return x.new_tensor([self.mask]), torch.ones(1, dtype=torch.float64, device=x.device)
        values = torch.arange(self.vocabulary, device=x.device).to(x.dtype)
        if isinstance(self.source, CategoricalTokens):
            return values, self.source.probabilities.to(x.device)
        if isinstance(self.source, UniformTokens):
            return values, torch.full((self.vocabulary,), 1 / self.vocabulary, dtype=torch.float64, device=x.device)
        raise ValueError(f"the source's law is not known: {self.why_no_source()}")

    def source_share(self, x: Tensor) -> Number:
        """The probability that the source gives the token that shows at each position; a mask gives tokens none."""
        if self.mask is not None:
            return 0.0
        if isinstance(self.source, UniformTokens):
            return 1 / self.vocabulary
        return self.source_law(x)[1][x.clamp(0, self.vocabulary - 1).long()]

    def _key(self) -> tuple[Any, ...]:
        return (type(self), self.vocabulary, self.mask, self.padding, self.schedule, self.source, self.coupling)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MixturePath) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        parts = [str(self.vocabulary)]
        parts += [f"{n}={v}" for n, v in (("mask", self.mask), ("padding", self.padding)) if v is not None]
        parts += [] if self.schedule == CondOT() else [f"schedule={self.schedule!r}"]
        if not isinstance(self.source, (Masked, UniformTokens)):
            parts.append(f"source={self.source!r}")
        parts += [] if self.coupling.independent else [f"coupling={self.coupling!r}"]
        return f"MixturePath({', '.join(parts)})"


def _log_growth(r: Number) -> Number:
    """:math:`\\log(1 + r)/r`, 1 at r = 0."""
    if isinstance(r, Tensor):
        return torch.where(r == 0, 1.0, torch.log1p(r) / torch.where(r == 0, 1.0, r))
    return 1.0 if r == 0 else math.log1p(r) / r


def _log(value: Number) -> Number:
    if isinstance(value, Tensor):
        return value.log()
    return math.log(value) if value > 0 else -math.inf
