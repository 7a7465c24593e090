r"""Schedules: how much data and how much noise there is at each time.

A schedule maps t in [0, 1] to :math:`(\alpha_t, \sigma_t)` in :math:`x_t = \alpha_t x_1 + \sigma_t x_0`, with noise at
t = 0 and data at t = 1. A subclass writes ``__call__`` alone; derivatives are taken by forward-mode differentiation, so
none is ever written (or mistyped) by hand.

With :math:`\lambda = \log(\alpha/\sigma)` half the log signal-to-noise ratio, the Wronskian
:math:`W = \dot\alpha\sigma - \alpha\dot\sigma = \alpha\sigma\dot\lambda` is positive wherever the path moves from noise
to data.

References
----------
.. [1] Y. Lipman et al., "Flow matching for generative modeling", arXiv 2210.02747 (CondOT, with ``sigma_min``).
.. [2] X. Liu, C. Gong, Q. Liu, "Flow straight and fast", arXiv 2209.03003 (rectified flow: CondOT).
.. [3] A. Nichol, P. Dhariwal, "Improved denoising diffusion", arXiv 2102.09672; M. Albergo et al., "Stochastic
   interpolants", arXiv 2303.08797 (the trigonometric path).
.. [4] J. Ho, A. Jain, P. Abbeel, "Denoising diffusion probabilistic models", arXiv 2006.11239, Section 4.
.. [5] Y. Song et al., "Score-based generative modeling through SDEs", arXiv 2011.13456, Appendix C (VP, VE).
.. [6] T. Karras et al., "Elucidating the design space of diffusion-based generative models", arXiv 2206.00364, eq. 5.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

__all__ = ["DDPM", "EDM", "VE", "VP", "CondOT", "Cosine", "Instant", "Polynomial", "Schedule"]

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


def rest(x: Tensor) -> Tensor:
    """``1 - x`` in kernels that forward-mode differentiation knows (``rsub`` is decomposed); +0 at 1, not -0."""
    return -x + 1


def check_positive(name: str, value: float, *, zero: bool = False) -> None:
    """Raise unless ``value`` is a finite number above zero (or zero, where allowed)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and finite, got {value}")


class Schedule(ABC):
    r"""A map from time to :math:`(\alpha_t, \sigma_t)`, with t = 0 noise and t = 1 data.

    A subclass writes :meth:`__call__` with torch operations on a tensor of any shape. Signal must grow against noise:
    :math:`\alpha_t/\sigma_t` strictly increases.

    Examples
    --------
    >>> import torch
    >>> class Quadratic(Schedule):
    ...     def __call__(self, t):
    ...         return t**2, 1 - t**2
    >>> Quadratic().at(torch.tensor([0.5])).alpha_dot.item()
    1.0
    """

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`(\alpha_t, \sigma_t)` at times ``t`` in [0, 1], each of the shape of ``t``."""

    def at(self, t: Tensor) -> Instant:
        r"""Values at ``t`` (any shape, floating), and on demand time derivatives, by one forward-mode pass."""
        alpha, sigma = self(t)
        return Instant(t, alpha, sigma, derive=lambda: torch.func.jvp(self, (t,), (torch.ones_like(t),))[1])

    def log_snr(self, t: Tensor) -> Tensor:
        r"""Log signal-to-noise ratio :math:`\log(\alpha_t^2/\sigma_t^2)`; infinite where :math:`\sigma_t = 0`."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which :meth:`log_snr` takes the values asked; 0 or 1 for values the schedule does not reach.

        By bisection in float64 and two Newton steps, so that small times keep their relative accuracy.
        """
        target = torch.as_tensor(log_snr, dtype=torch.float64)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(60):
            middle = (low + high) / 2
            above = self.log_snr(middle) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = (low + high) / 2
        for _ in range(2):
            value, slope = torch.func.jvp(self.log_snr, (t,), (torch.ones_like(t),))  # type: ignore[misc]
            step = (value - target) / slope
            t = torch.where(step.isfinite(), (t - step).clamp(low - 1e-9, high + 1e-9), t)
        ends = self.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64, device=target.device))
        t = torch.where(target.isnan(), target, t.clamp(0, 1))
        return torch.where(target <= ends[0], 0.0, torch.where(target >= ends[1], 1.0, t))


@dataclass(frozen=True)
class CondOT(Schedule):
    r"""The straight line of rectified flow and flow matching.

    .. math:: \alpha_t = t, \qquad \sigma_t = 1 - (1 - \sigma_{\min}) t

    With ``sigma_min`` = 0 (the default) the path ends in the data themselves; otherwise in the data blurred by noise of
    that standard deviation (arXiv 2210.02747, eq. 20).
    """

    sigma_min: float = 0.0

    def __post_init__(self) -> None:
        check_positive("sigma_min", self.sigma_min, zero=True)
        if self.sigma_min >= 1:
            raise ValueError(f"sigma_min must be below 1, got {self.sigma_min}: noise must shrink along the path")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, (self.sigma_min - 1) * t + 1


@dataclass(frozen=True)
class Polynomial(Schedule):
    r"""A convex path that lingers at the noise.

    .. math:: \alpha_t = t^n, \qquad \sigma_t = 1 - t^n, \qquad n \ge 1

    For n < 1 the velocity at t = 0 is infinite, so it is refused.
    """

    n: float = 2.0

    def __post_init__(self) -> None:
        check_positive("n", self.n)
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}: below 1 the velocity at t = 0 is infinite")

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = t**self.n
        return alpha, rest(alpha)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""The variance-preserving quarter circle.

    .. math:: \alpha_t = \sin\tfrac{\pi t}{2}, \qquad \sigma_t = \cos\tfrac{\pi t}{2}
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # sin(pi (1 - t) / 2) is exactly 0 at t = 1, where cos(pi t / 2) would leave 6e-17.
        return torch.sin(math.pi / 2 * t), torch.sin(math.pi / 2 * rest(t))


@dataclass(frozen=True)
class VP(Schedule):
    r"""The variance-preserving diffusion with a linear rate, in the continuous form of arXiv 2011.13456.

    With r = 1 - t the time of the noising process,

    .. math:: \alpha_t = e^{-B(r)/2}, \quad \sigma_t^2 = 1 - e^{-B(r)}, \quad
       B(r) = \beta_{\min} r + \tfrac12(\beta_{\max}-\beta_{\min}) r^2 .

    :math:`\dot\sigma` is infinite at t = 1 (:math:`\sigma \sim \sqrt{\beta_{\min}(1-t)}`), and so is the target of a
    velocity network: predict data, noise or v on this schedule.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_positive("beta_min", self.beta_min)
        check_positive("beta_max", self.beta_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r = rest(t)
        total = self.beta_min * r + (self.beta_max - self.beta_min) / 2 * r**2
        return torch.exp(-total / 2), torch.sqrt(-torch.expm1(-total))


def _linear_betas() -> tuple[float, ...]:
    return tuple(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DDPM(Schedule):
    r"""The discrete variance-preserving diffusion of any length T and any betas.

    With :math:`\bar\alpha_n = \prod_{m \le n} (1-\beta_m)`, step n = T - 1, ..., 0 of the chain sits at time
    :math:`t = 1 - (n+1)/T`, where :math:`\alpha^2 = \bar\alpha_n` and :math:`\sigma^2 = 1 - \bar\alpha_n`; the data sit
    at t = 1. Between the steps the log-SNR is interpolated linearly; behind the last one, where it grows without bound,
    :math:`\sigma^2` falls linearly to 0. A uniform grid of T steps therefore visits the chain exactly.

    Parameters
    ----------
    betas
        T numbers in (0, 1), first step of the noising chain first. The default is the 1000-step linear schedule from
        1e-4 to 0.02 of arXiv 2006.11239.

    Notes
    -----
    The path starts in noise only if :math:`\bar\alpha_{T-1}` is tiny: it is 4e-5 by default, but for the textbook
    chain of ten steps of constant beta 0.1 it is 0.35 (:math:`\alpha_0 = 0.59`), far from noise. There
    :func:`genmatch.sample` from a shape starts in the wrong law and warns; give it states drawn from the true
    :math:`p_0` instead.
    """

    betas: Sequence[float] = field(default_factory=_linear_betas, repr=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be a sequence of T >= 1 numbers, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"every beta must be in (0, 1), got {betas.min().item():g} to {betas.max().item():g}")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        log_bar = torch.log1p(-betas).cumsum(0).flip(0)  # knot j sits at t = j / T
        object.__setattr__(self, "_log_snr", log_bar - torch.log(-torch.expm1(log_bar)))
        object.__setattr__(self, "_tables", {})

    @property
    def length(self) -> int:
        """T, the number of steps of the chain."""
        return len(self.betas)

    def index(self, t: Number) -> Number:
        """The chain's step n = T (1 - t) - 1 in [0, T - 1], what networks of this family are fed.

        Real-valued between the knots, and exactly an integer at them: networks that look n up in a table truncate it.
        """
        last = self.length - 1.0
        if not isinstance(t, Tensor):
            n = self.length * (1 - t) - 1
            n = round(n) if abs(n - round(n)) < 1e-12 * self.length else n
            return min(max(float(n), 0.0), last)
        n = self.length * (1 - t) - 1
        off = (n.round() - n).detach()  # what t has lost to rounding, T times enlarged; the derivative stays T
        return (n + torch.where(off.abs() < 4 * torch.finfo(n.dtype).eps * self.length, off, 0)).clamp(0, last)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._table(t)
        position = t * self.length
        last = self.length - 1
        left = position.detach().floor().long().clamp(0, max(last - 1, 0))
        right = (left + 1).clamp(max=last)
        log_snr = knots[left] + (position - left).clamp(max=1.0) * (knots[right] - knots[left])
        # Behind the last knot sigma^2 = sigma_last^2 * T (1 - t).
        tail = torch.sigmoid(-knots[last]) * rest(t) * self.length
        behind = position >= last
        sigma2 = torch.where(behind, tail, torch.sigmoid(-log_snr))
        alpha2 = torch.where(behind, rest(tail), torch.sigmoid(log_snr))
        return alpha2.sqrt(), sigma2.sqrt()

    def _table(self, t: Tensor) -> Tensor:
        where = (t.device, t.dtype)
        if where not in self._tables:  # type: ignore[attr-defined]
            self._tables[where] = self._log_snr.to(*where)  # type: ignore[attr-defined]
        return self._tables[where]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class VE(Schedule):
    r"""The variance-exploding diffusion: noise of geometrically falling size on unscaled data.

    .. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{\max}\,(\sigma_{\min}/\sigma_{\max})^t

    The path ends in the data blurred by ``sigma_min``.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.exp(math.log(self.sigma_max) + t * math.log(self.sigma_min / self.sigma_max))
        return torch.ones_like(t), sigma


@dataclass(frozen=True)
class EDM(Schedule):
    r"""Unscaled data under noise that falls as in Karras et al. (arXiv 2206.00364, eq. 5).

    .. math:: \alpha_t = 1, \qquad
       \sigma_t = \bigl[\sigma_{\max}^{1/\rho} + t(\sigma_{\min}^{1/\rho} - \sigma_{\max}^{1/\rho})\bigr]^\rho

    A uniform grid in t is the Karras grid in :math:`\sigma`. The path ends in the data blurred by ``sigma_min``.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)
        check_positive("rho", self.rho)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (high + t * (low - high)) ** self.rho


def _check_range(sigma_min: float, sigma_max: float) -> None:
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min} and {sigma_max}")
