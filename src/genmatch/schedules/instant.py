"""A schedule's values at one time, as host floats or tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["Instant", "Number", "along_batch", "divide"]

Number = Any  # float or Tensor: a coefficient is a host float in a solver's plan and a tensor in a training step


class Instant:
    r"""A schedule's values at one time: :math:`t, \alpha, \sigma`, and on demand :math:`\dot\alpha, \dot\sigma`.

    The values are host floats (a solver's plan) or tensors that broadcast against the state (a training step). The
    derivatives wait because most readings do without them, and the pass that takes them costs more than a small step.

    Parameters
    ----------
    t, alpha, sigma, alpha_dot, sigma_dot
        The values.
    derive
        Called once for :math:`(\dot\alpha, \dot\sigma)` where they are not given.
    """

    __slots__ = ("_alpha_dot", "_derive", "_sigma_dot", "alpha", "sigma", "t")

    def __init__(
        self,
        t: Number,
        alpha: Number,
        sigma: Number,
        alpha_dot: Number = None,
        sigma_dot: Number = None,
        *,
        derive: Callable[[], tuple[Number, Number]] | None = None,
    ) -> None:
        self.t, self.alpha, self.sigma = t, alpha, sigma
        self._alpha_dot, self._sigma_dot, self._derive = alpha_dot, sigma_dot, derive

    @property
    def derived(self) -> bool:
        """Whether the derivatives have been taken."""
        return self._alpha_dot is not None

    @property
    def alpha_dot(self) -> Number:
        r""":math:`\dot\alpha`."""
        if self._alpha_dot is None:
            self._take_derivatives()
        return self._alpha_dot

    @property
    def sigma_dot(self) -> Number:
        r""":math:`\dot\sigma`."""
        if self._sigma_dot is None:
            self._take_derivatives()
        return self._sigma_dot

    @property
    def wronskian(self) -> Number:
        r""":math:`W = \dot\alpha\sigma - \alpha\dot\sigma`; 1 for CondOT, :math:`\pi/2` for Cosine."""
        return self.alpha_dot * self.sigma - self.alpha * self.sigma_dot

    @property
    def snr(self) -> Number:
        r"""Signal-to-noise ratio :math:`\alpha^2/\sigma^2`; infinite where :math:`\sigma = 0`."""
        return divide(self.alpha**2, self.sigma**2)

    def rows(self) -> list[Instant]:
        """The instants of a vector of times, one by one, as host floats."""
        found: list[Instant] = []

        def derive(i: int) -> tuple[float, float]:
            # One pass serves all rows.
            for row, alpha_dot, sigma_dot in zip(found, self.alpha_dot.tolist(), self.sigma_dot.tolist(), strict=True):
                row._alpha_dot, row._sigma_dot = alpha_dot, sigma_dot
            return found[i]._alpha_dot, found[i]._sigma_dot

        values = zip(self.t.tolist(), self.alpha.tolist(), self.sigma.tolist(), strict=True)
        found += [Instant(*row, derive=partial(derive, i)) for i, row in enumerate(values)]
        return found

    def broadcast(self, x: Tensor) -> Instant:
        """Per-sample values ``(B,)`` as ``(B, 1, ..., 1)`` in the state's dtype; other values as they are."""
        return Instant(
            along_batch(self.t, x),
            along_batch(self.alpha, x),
            along_batch(self.sigma, x),
            derive=lambda: (along_batch(self.alpha_dot, x), along_batch(self.sigma_dot, x)),
        )

    def __iter__(self) -> Iterator[Number]:
        return iter((self.t, self.alpha, self.sigma, self.alpha_dot, self.sigma_dot))

    def __repr__(self) -> str:
        return f"Instant(t={self.t}, alpha={self.alpha}, sigma={self.sigma})"

    def _take_derivatives(self) -> None:
        if self._derive is None:
            raise ValueError("this instant was made without derivatives: take it from Schedule.at")
        self._alpha_dot, self._sigma_dot = self._derive()


def along_batch(value: Number, x: Tensor) -> Number:
    """A per-sample ``(B,)`` tensor as ``(B, 1, ..., 1)`` in the dtype of ``x``; floats and 0-d tensors unchanged."""
    if isinstance(value, Tensor) and value.ndim:
        return value.to(x.dtype if x.is_floating_point() else value.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return value


def divide(numerator: Number, denominator: Number) -> Number:
    """A quotient that is infinite (or nan) where the denominator is zero, for host floats as for tensors."""
    if isinstance(denominator, Tensor) or denominator:
        return numerator / denominator
    if isinstance(numerator, Tensor):
        return numerator / torch.zeros_like(numerator)
    return float("nan") if numerator == 0 or numerator != numerator else float("inf") * (1 if numerator > 0 else -1)
