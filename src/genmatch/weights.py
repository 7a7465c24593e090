r"""Loss weights, as functions of the noise level.

A weight multiplies the squared error **of the data prediction**, whatever the network predicts:
:func:`~genmatch.matching_loss` converts it. So one weight means the same for a noise, data, velocity or v network, which
is where published implementations have gone wrong. Without a weight the loss is the plain error of the network's own
output. Any function of an instant (with ``alpha``, ``sigma``, ``snr``, ...) is a weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from .schedules import Instant, Number, check_positive

__all__ = ["EDM", "MinSNR", "Weighting"]


class Weighting(ABC):
    """A weight of the squared error in data."""

    @abstractmethod
    def __call__(self, instant: Instant) -> Number:
        """The weight at an instant, >= 0."""


@dataclass(frozen=True)
class MinSNR(Weighting):
    r""":math:`\min(\alpha^2/\sigma^2, \gamma)` (T. Hang et al., arXiv 2303.09556, eq. 8: for a noise network
    :math:`\min(\mathrm{SNR}, \gamma)/\mathrm{SNR}`, for a v network :math:`\min(\mathrm{SNR}, \gamma)/(\mathrm{SNR}+1)`,
    both consequences of it here)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def __call__(self, instant: Instant) -> Number:
        return torch.as_tensor(instant.snr).clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM(Weighting):
    r""":math:`(\hat\sigma^2 + d^2)/(\hat\sigma d)^2` with :math:`\hat\sigma = \sigma/\alpha`, d = ``sigma_data``: unit weight
    on the network F of :class:`~genmatch.predict.Karras` (arXiv 2206.00364, Table 1)."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)

    def __call__(self, instant: Instant) -> Number:
        # 1 / d^2 + 1 / sigma_hat^2, which is finite at infinite noise.
        return 1 / self.sigma_data**2 + instant.snr
