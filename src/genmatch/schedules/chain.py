"""The schedule of a discrete chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .instant import Number
from .schedule import Schedule, rest

__all__ = ["DDPM"]


def _linear_betas() -> tuple[float, ...]:
    return tuple(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist())


@dataclass(frozen=True)
class DDPM(Schedule):
    r"""The discrete variance-preserving diffusion of any length T and any betas.

    With :math:`\bar\alpha_n = \prod_{m \le n} (1-\beta_m)`, step n = T - 1, ..., 0 of the chain sits at time
    :math:`t = 1 - (n+1)/T`, where :math:`\alpha^2 = \bar\alpha_n` and :math:`\sigma^2 = 1 - \bar\alpha_n`; the data sit
    at t = 1. Between the steps the log-SNR is interpolated linearly; behind the last one, where it grows without bound,
    :math:`\sigma^2` falls linearly to 0. A uniform grid of T steps therefore visits the chain exactly.

    Parameters
    ----------
    betas
        T numbers in (0, 1), first step of the noising chain first. The default is the 1000-step linear schedule from
        1e-4 to 0.02 of arXiv 2006.11239.

    Notes
    -----
    The path starts in noise only if :math:`\bar\alpha_{T-1}` is tiny: it is 4e-5 by default, but for the textbook
    chain of ten steps of constant beta 0.1 it is 0.35 (:math:`\alpha_0 = 0.59`), far from noise. There
    :func:`genmatch.sample` from a shape starts in the wrong law and warns; give it states drawn from the true
    :math:`p_0` instead.
    """

    betas: Sequence[float] = field(default_factory=_linear_betas, repr=False)

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas, dtype=torch.float64)
        if betas.ndim != 1 or not len(betas):
            raise ValueError(f"betas must be a sequence of T >= 1 numbers, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"every beta must be in (0, 1), got {betas.min().item():g} to {betas.max().item():g}")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        log_bar = torch.log1p(-betas).cumsum(0).flip(0)  # knot j sits at t = j / T
        object.__setattr__(self, "_log_snr", log_bar - torch.log(-torch.expm1(log_bar)))
        object.__setattr__(self, "_tables", {})

    @property
    def length(self) -> int:
        """T, the number of steps of the chain."""
        return len(self.betas)

    def index(self, t: Number) -> Number:
        """The chain's step n = T (1 - t) - 1 in [0, T - 1], what networks of this family are fed.

        Real-valued between the knots, and exactly an integer at them: networks that look n up in a table truncate it.
        """
        last = self.length - 1.0
        if not isinstance(t, Tensor):
            n = self.length * (1 - t) - 1
            n = round(n) if abs(n - round(n)) < 1e-12 * self.length else n
            return min(max(float(n), 0.0), last)
        n = self.length * (1 - t) - 1
        off = (n.round() - n).detach()  # what t has lost to rounding, T times enlarged; the derivative stays T
        return (n + torch.where(off.abs() < 4 * torch.finfo(n.dtype).eps * self.length, off, 0)).clamp(0, last)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        knots = self._table(t)
        position = t * self.length
        last = self.length - 1
        left = position.detach().floor().long().clamp(0, max(last - 1, 0))
        right = (left + 1).clamp(max=last)
        log_snr = knots[left] + (position - left).clamp(max=1.0) * (knots[right] - knots[left])
        # Behind the last knot sigma^2 = sigma_last^2 * T (1 - t).
        tail = torch.sigmoid(-knots[last]) * rest(t) * self.length
        behind = position >= last
        sigma2 = torch.where(behind, tail, torch.sigmoid(-log_snr))
        alpha2 = torch.where(behind, rest(tail), torch.sigmoid(log_snr))
        return alpha2.sqrt(), sigma2.sqrt()

    def _table(self, t: Tensor) -> Tensor:
        where = (t.device, t.dtype)
        tables: dict[tuple[torch.device, torch.dtype], Tensor] = self._tables  # type: ignore[attr-defined]
        table = tables.get(where)
        if table is None:
            table = self._log_snr.to(*where)  # type: ignore[attr-defined]
            # One made within a graph, a transform or a fake mode is of no use outside it, and cannot be copied.
            if torch.compiler.is_compiling():
                return table
            if type(table) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(table):  # type: ignore[attr-defined]
                tables[where] = table
        return table
