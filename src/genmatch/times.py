r"""Laws of the training time: which t the loss is averaged over.

A law is its quantile function, so that stratification works for all of them and every time keeps its law: sample i of a
run takes the quantile at the i-th point of van der Corput's sequence in base 2 (the bits of i mirrored at the point),
scrambled by one random number for all. Any :math:`2^k` samples in a row then have exactly one time in each of
:math:`2^k` equal quantiles, and a batch has the same times whole, split over devices, or accumulated in parts.

References
----------
.. [1] P. Esser et al., arXiv 2403.03206, Section 3.1 (logit-normal).
.. [2] T. Karras et al., arXiv 2206.00364, Table 1 (log-normal noise levels).
.. [3] D. Kingma et al., "Variational diffusion models", arXiv 2107.00630, Appendix I.1 (a stratified batch).
.. [4] A. Owen, "Randomly permuted (t,m,s)-nets and (t,s)-sequences", 1995 (scrambling keeps the strata).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import GaussianPath, Path
from .random import Draws
from .schedules import check_positive

__all__ = ["LogNormalNoise", "LogitNormal", "TimeLaw", "Uniform"]


class TimeLaw(ABC):
    """A law of t in [0, 1].

    Attributes
    ----------
    stratified
        Spread the times of a batch evenly over the quantiles instead of drawing each on its own.
    """

    stratified: bool

    @abstractmethod
    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """The time below which a share ``u`` in [0, 1) of the law lies, on the path that is trained."""

    def draw(self, path: Path, draws: Draws) -> Tensor:
        """Times ``(B,)``, float32, below 1."""
        if self.stratified:
            index = torch.arange(draws.first_index, draws.first_index + draws.samples, device=draws.device)
            scramble = Draws(draws.seed, 1, step=draws.step, stream=draws.stream, device=draws.device).bits((1,))
            u = (_mirror(index) ^ (scramble >> 8)).float() * 2.0**-24
        else:
            u = draws.uniform((draws.samples,))
        # Rounding can take a quantile to 1, where targets of some networks are infinite.
        return self.quantile(u, path).clamp(max=1 - 2.0**-24)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """Uniform on [low, high)."""

    stratified: bool = False
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_flag(self.stratified)
        check_positive("low", self.low, zero=True)
        check_positive("high", self.high)
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}")

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """``low + (high - low) u``."""
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    r""":math:`\log\frac{t}{1-t} \sim N(m, s^2)`: more of the middle, where prediction is hardest."""

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        _check_normal(self)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """The logistic function of a normal quantile."""
        return torch.sigmoid(self.mean + self.std * _probit(u))


@dataclass(frozen=True)
class LogNormalNoise(TimeLaw):
    r""":math:`\log\hat\sigma \sim N(m, s^2)` for the noise level :math:`\hat\sigma = \sigma/\alpha`, as EDM trains."""

    mean: float = -1.2
    std: float = 1.2
    stratified: bool = False

    def __post_init__(self) -> None:
        _check_normal(self)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """The time of a noise level of that quantile."""
        if not isinstance(path, GaussianPath):
            raise TypeError(f"noise levels are those of a Gaussian path, got {path!r}")
        # More data means less noise: the quantiles run the other way.
        level = self.mean - self.std * _probit(u)
        return path.schedule.inverse_log_snr(-2 * level).to(u.dtype)


def _probit(u: Tensor) -> Tensor:
    # Uniforms are multiples of 2**-24 (float32): half a step away from 0 the quantile is finite.
    return torch.erfinv((2 * u.double() - 1).clamp(-1 + 2.0**-24, 1 - 2.0**-24)).mul(math.sqrt(2)).to(u.dtype)


def _mirror(index: Tensor) -> Tensor:
    """The lowest 24 bits in reverse order: a float32 holds them exactly."""
    for shift, mask in ((12, 0x000FFF), (6, 0x03F03F), (3, 0x1C71C7)):
        index = (index >> shift & mask) | (index & mask) << shift
    # Triples are left: their outer bits change places.
    return (index >> 2 & 0x249249) | (index & 0x492492) | (index & 0x249249) << 2


def _check_normal(law: LogitNormal | LogNormalNoise) -> None:
    _check_flag(law.stratified)
    check_positive("std", law.std)
    if isinstance(law.mean, bool) or not isinstance(law.mean, (int, float)) or not math.isfinite(law.mean):
        raise ValueError(f"mean must be a finite number, got {law.mean!r}")


def _check_flag(stratified: object) -> None:
    if not isinstance(stratified, bool):
        raise TypeError(f"stratified must be True or False, got {stratified!r}")
