r"""A mixture of Gaussians on a line, noised: its density, its distribution function, and what a wrong start costs.

On a line the flow of exact fields is the one rising map that carries :math:`p_0` into :math:`p_t`,
:math:`x_t = F_t^{-1}(F_0(x_0))`, whatever the schedule. So the density that the flow makes of another start, and its
distance from the data, are closed forms too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import integrate
from scipy.special import ndtr

__all__ = ["Mixture", "kl", "normal", "steps_for", "to_law", "wasserstein"]

GRID = 4001


class Mixture(NamedTuple):
    """Weights, means and standard deviations of the parts."""

    weights: tuple[float, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def noised(self, alpha: float, sigma: float) -> Mixture:
        """The law of alpha x + sigma z."""
        deviations = tuple(math.hypot(alpha * c, sigma) for c in self.deviations)
        return Mixture(self.weights, tuple(alpha * m for m in self.means), deviations)

    def density(self, x: np.ndarray) -> np.ndarray:
        """At x, of any shape."""
        parts = zip(self.weights, self.means, self.deviations, strict=True)
        root = math.sqrt(2 * math.pi)
        return sum((w * np.exp(-0.5 * ((x - m) / c) ** 2) / (c * root) for w, m, c in parts), np.zeros_like(x))

    def below(self, x: np.ndarray) -> np.ndarray:
        """The distribution function at x."""
        parts = zip(self.weights, self.means, self.deviations, strict=True)
        return sum((w * ndtr((x - m) / c) for w, m, c in parts), np.zeros_like(x))

    def grid(self, count: int = GRID, width: float = 10.0) -> np.ndarray:
        """Points that reach ``width`` standard deviations beyond the outer parts."""
        low = min(m - width * c for m, c in zip(self.means, self.deviations, strict=True))
        high = max(m + width * c for m, c in zip(self.means, self.deviations, strict=True))
        return np.linspace(low, high, count)

    def quantile(self, u: np.ndarray) -> np.ndarray:
        """Where the distribution function is u, by halving: good to 1e-12 where the density is not tiny."""
        ends = self.grid(2, 40.0)
        low, high = np.full_like(u, ends[0]), np.full_like(u, ends[1])
        for _ in range(60):
            middle = 0.5 * (low + high)
            left = self.below(middle) < u
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        return 0.5 * (low + high)

    def carried(self, x: np.ndarray, start: Mixture, wrong: Mixture) -> np.ndarray:
        """The density that the exact flow from ``start`` to this law makes of ``wrong``: p_1 (wrong / start)(x_0)."""
        begin = start.quantile(self.below(x))
        return self.density(x) * wrong.density(begin) / start.density(begin)


def normal() -> Mixture:
    """N(0, 1)."""
    return Mixture((1.0,), (0.0,), (1.0,))


def kl(p: Mixture, q: Mixture) -> float:
    """KL(p || q) in nats, by the trapezoidal rule, which is exact to rounding for smooth laws that end in zeros."""
    x = p.grid()
    values, others = p.density(x), q.density(x)
    inside = values > 1e-290
    return float(integrate.trapezoid(np.where(inside, values * np.log(np.where(inside, values / others, 1.0)), 0), x))


def wasserstein(p: Mixture, q: Mixture) -> float:
    """W1 on a line: the area between the distribution functions."""
    ends = [*p.grid(2), *q.grid(2)]
    x = np.linspace(min(ends), max(ends), GRID)
    return float(integrate.trapezoid(np.abs(p.below(x) - q.below(x)), x))


def to_law(samples: np.ndarray, law: Mixture) -> float:
    """W1 between equally likely samples and a law: the area between the distribution functions, gap by gap.

    Taken on the law's quantiles at the middles of n equal parts, which leaves out what varies inside of a part.
    """
    n = len(samples)
    return float(np.abs(np.sort(samples) - law.quantile((np.arange(n) + 0.5) / n)).mean())


def steps_for(law: Mixture, beta: float, level: float, *, chain: bool) -> float:
    """How long noise of constant rate must run until KL(p_0 || N(0, 1)) is at ``level``.

    In steps of a chain that keeps :math:`1-\\beta` of the variance in each, or in time of the equation that keeps
    :math:`e^{-\\beta}` in each unit.
    """
    low, high = 0.0, 40.0  # of the log of what is kept
    for _ in range(60):
        middle = 0.5 * (low + high)
        alpha = math.exp(-middle / 2)
        far = kl(law.noised(alpha, math.sqrt(1 - alpha**2)), normal()) > level
        low, high = (middle, high) if far else (low, middle)
    return high / (-math.log1p(-beta) if chain else beta)
