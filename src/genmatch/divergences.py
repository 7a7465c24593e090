r"""Divergences: what a network is trained with.

For the conditional loss to have the gradient of the marginal one, the divergence must be a Bregman divergence,

.. math:: D_\phi(a, b) = \phi(a) - \phi(b) - \langle a - b, \nabla\phi(b)\rangle,

with the target a first and the prediction b second (generator matching, arXiv 2410.20587, Proposition 2). Then the best
prediction is the posterior mean of the target, whatever :math:`\phi`. With the arguments swapped it is not: the swapped
Itakura-Saito divergence is minimised by the harmonic mean, the swapped generalised Kullback-Leibler by the geometric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedules import check_positive

__all__ = ["CrossEntropy", "Divergence", "GeneralisedKL", "ItakuraSaito", "PseudoHuber", "Squared"]


class Divergence(ABC):
    """A divergence of targets from predictions, position by position."""

    bregman: bool = True  # whether the best prediction is the posterior mean

    @abstractmethod
    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        """Divergence at each position, shape ``(B, *S)``."""


@dataclass(frozen=True)
class Squared(Divergence):
    r""":math:`(a - b)^2`, of :math:`\phi(a) = a^2`."""

    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        return (target - prediction) ** 2


@dataclass(frozen=True)
class GeneralisedKL(Divergence):
    r""":math:`b - a + a\log(a/b)`, of :math:`\phi(a) = a\log a`, for rates: :math:`a \ge 0`, :math:`b > 0`."""

    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        return prediction - target + torch.xlogy(target, target) - torch.xlogy(target, prediction)


@dataclass(frozen=True)
class ItakuraSaito(Divergence):
    r""":math:`a/b - \log(a/b) - 1`, of :math:`\phi(a) = -\log a`, for variances: :math:`a, b > 0`.

    Twice the Kullback-Leibler divergence of N(0, a) from N(0, b).
    """

    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        ratio = target / prediction
        return ratio - ratio.log() - 1


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    r""":math:`-\log\mathrm{softmax}(b)_a` for tokens a ``(B, *S)`` and logits b ``(B, *S, K)``.

    The Kullback-Leibler divergence (:math:`\phi(a) = \sum a\log a` on the simplex) from the one-hot target.
    """

    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        count = prediction.shape[-1]
        if target.device.type == "cpu" and not torch.compiler.is_compiling():
            outside = (target < 0) | (target >= count)
            if bool(outside.any()):
                raise ValueError(
                    f"targets must be in [0, {count}), got {int(target[outside][0])}: is the mask or the padding "
                    "among the data?"
                )
        logits = prediction.movedim(-1, 1) if prediction.ndim > 2 else prediction
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, target.long(), reduction="none")


@dataclass(frozen=True)
class PseudoHuber(Divergence):
    r""":math:`2c\,(\sqrt{(a-b)^2 + c^2} - c)`: squared for small errors, linear for large ones.

    **Not** a Bregman divergence: the best prediction is not the posterior mean, so a model trained with it does not
    follow the path exactly. It is a robust option for few-step methods and dirty data (arXiv 2310.14189, Section 3.3).
    """

    c: float = 0.1
    bregman = False

    def __post_init__(self) -> None:
        check_positive("c", self.c)

    def __call__(self, target: Tensor, prediction: Tensor) -> Tensor:
        return 2 * self.c * (((target - prediction) ** 2 + self.c**2).sqrt() - self.c)
