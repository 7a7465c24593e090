r"""Laws of the training time: which t the loss is averaged over.

A law is its quantile function, so that stratification (one time in each of B equal quantiles, at a common random offset)
works for all of them and every time keeps its law.

References
----------
.. [1] P. Esser et al., arXiv 2403.03206, Section 3.1 (logit-normal).
.. [2] T. Karras et al., arXiv 2206.00364, Table 1 (log-normal noise levels).
.. [3] D. Kingma et al., "Variational diffusion models", arXiv 2107.00630, Appendix I.1 (a stratified batch).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .paths import Path
from .random import Draws
from .schedules import check_positive

__all__ = ["LogNormalNoise", "LogitNormal", "TimeLaw", "Uniform"]


class TimeLaw(ABC):
    """A law of t in [0, 1]."""

    stratified: bool

    @abstractmethod
    def quantile(self, u: Tensor, path: Path) -> Tensor:
        """The time below which a share ``u`` in [0, 1) of the law lies, on the path that is trained."""

    def draw(self, path: Path, draws: Draws) -> Tensor:
        """Times ``(B,)``, float32."""
        u = draws.uniform((draws.samples,))
        if self.stratified:
            # One offset for the batch; sample i takes the stratum of its global index, so splits of a batch agree.
            index = torch.arange(draws.first_index, draws.first_index + draws.samples, device=draws.device)
            offset = Draws(draws.seed, 1, step=draws.step, stream=draws.stream, device=draws.device).uniform((1,))
            u = (offset + index / draws.samples) % 1.0
        return self.quantile(u, path)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """Uniform on [low, high)."""

    stratified: bool = False
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"low and high must satisfy 0 <= low < high <= 1, got {self.low} and {self.high}")

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogitNormal(TimeLaw):
    r""":math:`\log\frac{t}{1-t} \sim N(m, s^2)`: more of the middle, where prediction is hardest."""

    mean: float = 0.0
    std: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        check_positive("std", self.std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _probit(u))


@dataclass(frozen=True)
class LogNormalNoise(TimeLaw):
    r""":math:`\log\hat\sigma \sim N(m, s^2)` for the noise level :math:`\hat\sigma = \sigma/\alpha`, as EDM trains."""

    mean: float = -1.2
    std: float = 1.2
    stratified: bool = False

    def __post_init__(self) -> None:
        check_positive("std", self.std)

    def quantile(self, u: Tensor, path: Path) -> Tensor:
        if not hasattr(path, "schedule"):
            raise TypeError(f"noise levels are those of a Gaussian path, got {path!r}")
        # More data means less noise: the quantiles run the other way.
        level = self.mean - self.std * _probit(u)
        return path.schedule.inverse_log_snr(-2 * level).to(u.dtype)


def _probit(u: Tensor) -> Tensor:
    # Uniforms are multiples of 2**-24 (float32): half a step away from 0 the quantile is finite.
    return torch.erfinv((2 * u.double() - 1).clamp(-1 + 2.0**-24, 1 - 2.0**-24)).mul(math.sqrt(2)).to(u.dtype)
