r"""The mixture path on tokens: each position is data with probability :math:`\kappa_t`, source otherwise.

.. math:: p_t(x\,|\,x_0, x_1) = \prod_i \bigl[(1-\kappa_t)\,\delta_{x_0^i}(x^i) + \kappa_t\,\delta_{x_1^i}(x^i)\bigr]

References
----------
.. [1] I. Gat et al., "Discrete flow matching", arXiv 2407.15595, eq. 7.
.. [2] A. Campbell et al., "Generative flows on discrete state-spaces", arXiv 2402.04997.
.. [3] J. Shi et al., "Simplified and generalized masked diffusion", arXiv 2406.04329 (the masked source).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..couplings import Coupling, Independent
from ..random import Draws
from ..schedules import CondOT, Number, Schedule, along_batch
from ..spaces import Tokens
from .path import NOISY, Path
from .sources import Masked, Source, UniformTokens, check_ends

__all__ = ["MixtureInstant", "MixturePath"]


class MixtureInstant(NamedTuple):
    r"""A mixture path's numbers: t, :math:`\kappa_t`, and the hazard :math:`\dot\kappa/(1-\kappa)`.

    In a solver's plan the hazard is its average over the coming step, :math:`\frac1h\log\frac{1-\kappa_t}{1-\kappa_s}`:
    with it :math:`1 - e^{-h\lambda}` is exactly the probability :math:`(\kappa_s-\kappa_t)/(1-\kappa_t)` of a jump, and
    1 on a step that ends at the data.
    """

    t: Number
    kappa: Number
    hazard: Number

    def rows(self) -> list[MixtureInstant]:
        """The instants of a vector of times, one by one, as host floats."""
        return [MixtureInstant(*row) for row in zip(*(f.tolist() for f in self), strict=True)]

    def broadcast(self, x: Tensor) -> MixtureInstant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)``."""
        return MixtureInstant(*(along_batch(f, x) for f in self))


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
        As for :class:`GaussianPath`; the source given here replaces the uniform one.
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
            raise TypeError(f"schedule must be a genmatch Schedule, got {type(schedule).__name__}")
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
        self.source, self.coupling = source, coupling
        self.space = Tokens(vocabulary, tuple(extra for extra in (mask, padding) if extra is not None))

    def at(self, t: Tensor, until: Tensor | None = None) -> MixtureInstant:
        r""":math:`\kappa` and its hazard at ``t``, or the hazard's average over the steps from ``t`` to ``until``."""
        instant = self.schedule.at(t.double())  # 1 - kappa has no digits left in float32 near the data
        rest = 1 - instant.alpha
        if until is None:
            hazard = instant.alpha_dot / rest
        else:
            hazard = (rest / (1 - self.schedule(until.double())[0])).log() / (until.double() - t.double())
        return MixtureInstant(t, instant.alpha.to(t.dtype), hazard.to(t.dtype))

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
            f"{self!r} is not noise at t = {instant.t:g}, where kappa = {instant.kappa:.3g}: pass states drawn from its "
            "p_t, each token data with probability kappa_t, instead of a shape"
        )

    def movable(self, x: Tensor) -> Tensor | None:
        """Where the process may still jump, bool ``(B, *S)``: masked positions of a masked path, never padding.

        ``None`` stands for everywhere.
        """
        if self.mask is not None:
            return x == self.mask
        return None if self.padding is None else x != self.padding

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
        return f"MixturePath({', '.join(parts)})"
