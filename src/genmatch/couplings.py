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

__all__ = ["OT", "Coupling", "Given", "Independent"]

Condition = Mapping[str, Tensor] | None


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
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"


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
    """

    independent = False

    def __call__(self, x0: Tensor, x1: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, Tensor, Condition]:
        from scipy.optimize import linear_sum_assignment  # 0.3 s, which only this coupling should cost

        if not (x0.is_floating_point() and x1.is_floating_point()):
            raise TypeError(f"optimal transport pairs continuous states, got {x0.dtype} and {x1.dtype}")
        if x0.shape != x1.shape:
            raise ValueError(f"x0 and x1 must have one shape (B, *S), got {tuple(x0.shape)} and {tuple(x1.shape)}")
        with torch.no_grad():
            flat0, flat1 = (_centred(x.reshape(len(x), -1)) for x in (x0, x1))
            # |x1|^2 - 2 x1.x0 + |x0|^2: the squared norms are the same for every pairing, so the product decides.
            with torch.autocast(x0.device.type, enabled=False):  # bfloat16 would pair others
                cost = -(flat1 @ flat0.T).cpu()
            if not bool(cost.isfinite().all()):
                raise ValueError("optimal transport got non-finite samples: check the data for NaN")
            _, columns = linear_sum_assignment(cost.numpy())
        return x0[torch.as_tensor(columns, device=x0.device)], x1, condition


def _centred(x: Tensor) -> Tensor:
    """Less their mean, in float32 at least: a shift costs every pairing the same, and drowns the differences."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.mean(0)
