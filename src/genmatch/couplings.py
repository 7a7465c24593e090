r"""Couplings: which source sample is paired with which data sample.

A coupling keeps both marginals and changes only the pairing; the data and their conditions stay in place and the source
samples are permuted to them, so a label never loses its image.

References
----------
.. [1] A. Pooladian et al., "Multisample flow matching", arXiv 2304.14772.
.. [2] A. Tong et al., "Improving and generalizing flow-based generative models with minibatch optimal transport",
   arXiv 2302.00482.
.. [3] M. Cuturi, "Sinkhorn distances", arXiv 1306.0895; B. Schmitzer, "Stabilized sparse scaling algorithms for entropy
   regularized transport problems", arXiv 1610.06519, Section 3 (prices while the regularisation falls, coarse to fine);
   A. Thibault et al., "Overrelaxed Sinkhorn-Knopp algorithm", arXiv 1711.01851.
.. [4] D. Crouse, "On implementing 2D rectangular assignment algorithms", 2016: what SciPy solves an assignment by.
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
_PRICED = 256  # batch from which prices cost less than they save
# Share of the rows, smoothing in standard deviations of the cost, sweeps: coarse and smooth first. Measured to be the
# fastest in all on points in the plane, in 16 dimensions and on images.
_STAGES = ((1 / 8, 0.3, 5), (1 / 4, 0.1, 10), (1 / 2, 0.03, 10), (1, 0.01, 20))
_FEWER = ((1 / 4, 0.1, 8), (1, 0.02, 12))  # for batches up to 512, where the sweeps are what costs
_RELAXATION = 1.8
_LEAST = 1e-15  # bound of scalings, so that neither they nor their powers overflow in float32


class Coupling(ABC):
    """Who is paired with whom."""

    independent: bool  # whether x0 and x1 are independent: only then does a velocity give a score
    costly: bool = False  # whether a pairing takes long enough to be made on a thread while a step runs

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
    Any data shape; the cost is computed on flattened samples.

    The assignment is SciPy's, which takes time of the order of B^3 where samples compete for the same partners.
    Subtracting a price from each data sample's costs changes every pairing by the same amount, so from 256 samples on
    nearly optimal prices are found first by Sinkhorn's iteration, and the exact search has little left to do.
    :func:`genmatch.training.fit` makes the pairing of the next step on a thread while this one runs.

    Parameters
    ----------
    space
        A manifold such as ``gm.spaces.Sphere(2)``: the cost is then :math:`\sum d(x_0, x_1)^2`, the squared geodesic
        distance summed over the points of a sample, as a :class:`~genmatch.paths.GeodesicPath` needs it.
    """

    independent = False
    costly = True

    def __init__(self, space: Manifold | None = None) -> None:
        if not (space is None or isinstance(space, Manifold)):
            raise TypeError(f"space must be a manifold such as gm.spaces.Sphere(2), got {type(space).__name__}")
        self.space = space

    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        if not (x0.is_floating_point() and x1.is_floating_point()):
            raise TypeError(f"optimal transport pairs continuous states, got {x0.dtype} and {x1.dtype}")
        if x0.shape != x1.shape:
            raise ValueError(f"x0 and x1 must have one shape (B, *S), got {tuple(x0.shape)} and {tuple(x1.shape)}")
        with torch.no_grad(), torch.autocast(x0.device.type, enabled=False):  # bfloat16 would find other pairs the best
            cost = _by_coordinates(x0, x1) if self.space is None else _by_geodesics(self.space, x0, x1)
            order = _assign(cost)
        return x0[order.to(x0.device)], x1, condition


def _assign(cost: Tensor) -> Tensor:
    """The row that each column is given in the assignment of least cost ``(B, B)``, int64 on the host."""
    from scipy.optimize import linear_sum_assignment  # 0.3 s, which only this coupling should cost

    prices = _prices(cost) if len(cost) >= _PRICED else None
    reduced = cost.cpu().double()
    if not bool(reduced.isfinite().all()):
        raise ValueError("optimal transport got non-finite samples: check the data for NaN")
    if prices is not None:
        reduced = reduced - prices.cpu().double()
    rows, columns = linear_sum_assignment(reduced.numpy())  # without Python's lock: other threads go on
    order = torch.empty(len(cost), dtype=torch.int64)
    order[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return order


def _prices(cost: Tensor) -> Tensor:
    r"""Prices v of the columns ``(B,)``, near those under which every row's cheapest column is its partner.

    Sinkhorn's iteration for the plan :math:`e^{(u_i + v_j - c_ij)/\epsilon}` with equal marginals, over-relaxed, on a
    growing share of the rows while :math:`\epsilon` falls.
    """
    size, some = len(cost), cost.flatten()[:: max(1, cost.numel() // 2**16)]
    # The spread of most: prices of the size of an outlier's cost would round away what decides between the others.
    scale = (1.5 * (some - some.median()).abs().median()).clamp(min=torch.finfo(cost.dtype).tiny)
    prices = cost.new_zeros(size)
    for share, smoothing, sweeps in _FEWER if size <= 512 else _STAGES:
        rows = cost[:: round(1 / share)]
        width = smoothing * scale
        net = prices - rows
        plan = net.sub_(net.amax(1, keepdim=True)).div_(width).exp_()  # the largest of a row is 1
        a, b = plan.new_ones(len(rows)), plan.new_ones(size)
        for _ in range(sweeps):
            a = _relax(a, plan @ b)
            b = _relax(b, (a @ plan) * (size / len(rows)))
        prices = prices + width * b.log()
    return prices.nan_to_num(0.0, 0.0, 0.0)  # any prices are right, only not as quick


def _relax(scaling: Tensor, marginal: Tensor) -> Tensor:
    """Beyond the scaling that would make a marginal 1."""
    beyond = marginal.clamp(min=_LEAST).pow(-_RELAXATION) * scaling.pow(1 - _RELAXATION)
    return beyond.clamp(_LEAST, 1 / _LEAST)


def _by_coordinates(x0: Tensor, x1: Tensor) -> Tensor:
    """Costs ``(B, B)`` up to a constant, source by data.

    In |x1|^2 - 2 x1.x0 + |x0|^2 the squared norms add the same to every pairing, so the product decides.
    """
    flat0, flat1 = (_centred(x.reshape(len(x), -1)) for x in (x0, x1))
    return -(flat0 @ flat1.T)


def _by_geodesics(space: Manifold, x0: Tensor, x1: Tensor) -> Tensor:
    """Squared geodesic distances ``(B, B)``, source by data."""
    space.check(x0)
    space.check(x1)
    rows = x0[:, None].split(max(1, _BLOCK // x1.numel()))
    return torch.cat([space.distance(row, x1).square().reshape(len(row), len(x1), -1).sum(2) for row in rows])


def _centred(x: Tensor) -> Tensor:
    """Less their mean, in float32 at least: a shift costs every pairing the same, and drowns the differences."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.mean(0)
