r"""Couplings: which source sample is paired with which data sample.

A coupling keeps both marginals and changes only the pairing; the data and their conditions stay in place and the source
samples are permuted to them, so a label never loses its image.

References
----------
.. [1] A. Pooladian et al., "Multisample flow matching", arXiv 2304.14772.
.. [2] A. Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
   arXiv 2302.00482.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from .random import Draws
from .spaces.manifold import Manifold

__all__ = ["OT", "Coupling", "Given", "Independent"]

Condition = Mapping[str, Tensor] | None
_BLOCK = 2**20  # coordinates of differences that are held at once


class Coupling(ABC):
    """Who is paired with whom."""

    independent: bool  # whether x0 and x1 are independent: only then does a velocity give a score

    @abstractmethod
    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        """Paired ``x0`` and ``x1``, both ``(B, *S)``, and the condition of each pair; randomness from ``draws``."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *sorted(vars(self).items())))

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={v}" for k, v in vars(self).items() if v is not None)
        return f"{type(self).__name__}({given})"


class Independent(Coupling):
    """Pairs as they come: source and data drawn independently."""

    independent = True

    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        return x0, x1, condition


class Given(Coupling):
    """Pairs that belong together: ``x0`` and ``x1`` are passed to the loss as pairs (paired data, reflow)."""

    independent = False

    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        return x0, x1, condition


class OT(Coupling):
    r"""Exact minibatch optimal transport: the one-to-one pairing of least total cost :math:`\sum|x_0 - x_1|^2`.

    Every source sample and every data sample is used exactly once (a plan sampled with replacement would drop data).
    Any data shape; the cost is computed on flattened samples. Time grows like B^3, fast to a few thousand samples.

    Parameters
    ----------
    space
        A manifold such as ``gm.spaces.Sphere(2)``: the cost is then :math:`\sum d(x_0, x_1)^2`, the squared geodesic
        distance summed over the points of a sample, as a :class:`~genmatch.paths.GeodesicPath` needs it.
    """

    independent = False

    def __init__(self, space: Manifold | None = None) -> None:
        if not (space is None or isinstance(space, Manifold)):
            raise TypeError(f"space must be a manifold such as gm.spaces.Sphere(2), got {type(space).__name__}")
        self.space = space

    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        from scipy.optimize import linear_sum_assignment  # 0.3 s, which only this coupling should cost

        if not (x0.is_floating_point() and x1.is_floating_point()):
            raise TypeError(f"optimal transport pairs continuous states, got {x0.dtype} and {x1.dtype}")
        if x0.shape != x1.shape:
            raise ValueError(f"x0 and x1 must have one shape (B, *S), got {tuple(x0.shape)} and {tuple(x1.shape)}")
        with torch.no_grad():
            cost = (_by_coordinates(x0, x1) if self.space is None else _by_geodesics(self.space, x0, x1)).cpu()
            if not bool(cost.isfinite().all()):
                raise ValueError("optimal transport got non-finite samples: check the data for NaN")
            _, columns = linear_sum_assignment(cost.numpy())
        return x0[torch.as_tensor(columns, device=x0.device)], x1, condition


def _by_coordinates(x0: Tensor, x1: Tensor) -> Tensor:
    """Costs ``(B, B)`` up to a constant, data by source.

    In |x1|^2 - 2 x1.x0 + |x0|^2 the squared norms add the same to every pairing, so the product decides.
    """
    flat0, flat1 = (_centred(x.reshape(len(x), -1)) for x in (x0, x1))
    with torch.autocast(x0.device.type, enabled=False):  # in bfloat16 other pairs would seem the best
        return -(flat1 @ flat0.T)


def _by_geodesics(space: Manifold, x0: Tensor, x1: Tensor) -> Tensor:
    """Squared geodesic distances ``(B, B)``, data by source."""
    space.check(x0)
    space.check(x1)
    rows = x1[:, None].split(max(1, _BLOCK // x0.numel()))
    return torch.cat([space.distance(x0, row).square().reshape(len(row), len(x0), -1).sum(2) for row in rows])


def _centred(x: Tensor) -> Tensor:
    """Less their mean, in float32 at least: a shift costs every pairing the same, and drowns the differences."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.mean(0)
