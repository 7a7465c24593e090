"""What the conditional jump of single coordinates on a path is, and that of a mixture path.

On a mixture path a coordinate that is not yet data jumps to its data value at the hazard of the path. The jump of a
Gaussian path is in :mod:`genmatch.paths.gaussian_jumps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .continuous_mixture import ContinuousMixturePath

__all__ = ["JumpKernel", "MixtureJumpKernel"]


class JumpKernel(ABC):
    r"""The conditional jump of single coordinates on a path, as a hazard times something free of scale.

    .. math:: Q_t(dy; x|z) = h_t\,\ell_t(x|z)\,J_t(dy|z)

    with :math:`h_t` known and :math:`\ell` of order one at all times: a network learns :math:`\ell` and J.
    """

    path: Any  # subclasses say which

    @abstractmethod
    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The path's numbers with the hazard, or its average over the steps from ``t`` to ``until``."""

    @abstractmethod
    def reach(self, low: float, high: float) -> tuple[float, float]:
        """Between which values coordinates land, at any time, for data between ``low`` and ``high``."""

    @abstractmethod
    def intensity(self, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> Tensor:
        r""":math:`\ell_t(x|z)`, ``(B, *S)``, for a state ``x`` between ``x0`` and ``x1``."""

    @abstractmethod
    def masses(self, x1: Tensor, instant: Any, edges: Tensor) -> tuple[Tensor, Tensor]:
        """The masses of bins under J, ``(B, *S, K)``, and what lies beyond the outermost edges, ``(B, *S)``.

        The outermost bins take what lies beyond them, so that the masses add to 1.
        """


class MixtureJumpKernel(JumpKernel):
    """The jump of a coordinate of a mixture path to its data value.

    Parameters
    ----------
    path
        A :class:`~genmatch.paths.ContinuousMixturePath` whose coordinates change one by one, ``whole=False``.
    """

    def __init__(self, path: ContinuousMixturePath) -> None:
        if not isinstance(path, ContinuousMixturePath):
            raise TypeError(f"the jump kernel of a mixture of continuous states needs one, got {path!r}")
        if path.whole:
            raise ValueError(
                f"on {path!r} the state jumps as a whole, so no coordinate has bins of its own: use whole=False, "
                "or gm.predict.Survival with gm.MixtureJump"
            )
        self.path = path

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The path's numbers."""
        return self.path.at(t, until)

    def reach(self, low: float, high: float) -> tuple[float, float]:
        """Coordinates land on the data."""
        return low, high

    def intensity(self, x: Tensor, x0: Tensor, x1: Tensor, instant: Any) -> Tensor:
        """1 where the coordinate has not jumped, 0 where it has."""
        return (x != x1).double()

    def masses(self, x1: Tensor, instant: Any, edges: Tensor) -> tuple[Tensor, Tensor]:
        """1 for the bin of the data value."""
        edges = edges.to(x1)
        which = torch.bucketize(x1.contiguous(), edges[1:-1].contiguous(), right=True)
        outside = (x1 < edges[0]) | (x1 > edges[-1])
        return torch.nn.functional.one_hot(which, len(edges) - 1).double(), outside.double()
