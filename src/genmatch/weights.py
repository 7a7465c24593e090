r"""Loss weights, as functions of the noise level.

A weight multiplies the squared error **of the data prediction**, whatever the network predicts:
:func:`~genmatch.matching_loss` converts it. So one weight means the same for a noise, data, velocity or v network,
which is where published implementations have gone wrong. Without a weight the loss is the plain error of the network's
own output. Any function of an instant (with ``alpha``, ``sigma``, ``snr``, ...) is a weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .schedules import Instant, Number, check_positive

__all__ = ["EDM", "MinSNR", "Weighting"]


class Weighting(ABC):
    """A weight of the squared error in data."""

    @abstractmethod
    def __call__(self, instant: Instant) -> Number:
        """The weight at an instant, >= 0."""


@dataclass(frozen=True)
class MinSNR(Weighting):
    r""":math:`\min(\mathrm{SNR}, \gamma)` with SNR = :math:`\alpha^2/\sigma^2` (T. Hang et al., arXiv 2303.09556).

    For a noise network that is :math:`\min(\mathrm{SNR}, \gamma)/\mathrm{SNR}` on its own error (eq. 8 there), for a v
    network on a variance-preserving path :math:`\min(\mathrm{SNR}, \gamma)/(\mathrm{SNR}+1)`.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        check_positive("gamma", self.gamma)

    def __call__(self, instant: Instant) -> Number:
        """The signal-to-noise ratio, at most gamma."""
        snr = _snr(instant)
        return snr.clamp(max=self.gamma) if isinstance(snr, Tensor) else min(snr, self.gamma)


@dataclass(frozen=True)
class EDM(Weighting):
    r""":math:`(\hat\sigma^2 + d^2)/(\hat\sigma d)^2` with :math:`\hat\sigma = \sigma/\alpha` and d = ``sigma_data``.

    It is unit weight on the network F of :class:`~genmatch.predict.Karras` (arXiv 2206.00364, Table 1).
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_positive("sigma_data", self.sigma_data)

    def __call__(self, instant: Instant) -> Number:
        """The weight of EDM's loss."""
        # 1 / d^2 + 1 / sigma_hat^2, which is finite at infinite noise.
        return 1 / self.sigma_data**2 + _snr(instant)


def _snr(instant: Instant) -> Number:
    if not hasattr(instant, "snr"):
        raise TypeError("this weight is a function of the signal-to-noise ratio: it is for models on Gaussian paths")
    return instant.snr
