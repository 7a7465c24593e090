"""Where in time a loss is made: its mean by time bin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .samples import check_count, check_finite

__all__ = ["LossByTime", "loss_by_time"]


@dataclass(frozen=True, eq=False)
class LossByTime:
    """Loss by time bin, as float64 tensors.

    Attributes
    ----------
    edges
        ``(bins + 1,)``; bin i is [edges[i], edges[i + 1]), the last one with its right end.
    mean
        ``(bins,)``; NaN where the count is 0.
    standard_error
        ``(bins,)``, of the mean; NaN where the count is below 2.
    count
        ``(bins,)``, int64; they add up to the number of losses.
    """

    edges: Tensor
    mean: Tensor
    standard_error: Tensor
    count: Tensor


def loss_by_time(losses: Tensor, t: Tensor, bins: int | Tensor = 10) -> LossByTime:
    """Mean loss by time bin.

    Parameters
    ----------
    losses
        ``(B,)``, as from ``matching_loss(..., reduction="none")``.
    t
        ``(B,)``, the time of each.
    bins
        How many equal bins of [0, 1], or their edges ``(bins + 1,)``, rising.

    Raises
    ------
    TypeError
        If an argument is not a floating-point tensor, or ``bins`` neither an integer nor edges.
    ValueError
        If shapes differ or are not ``(B,)``, values are not finite, edges do not rise, or a time lies outside of them.
    """
    check_finite("losses", losses)
    check_finite("t", t)
    if losses.ndim != 1 or losses.shape != t.shape or len(losses) == 0:
        raise ValueError(f"losses and t must both have shape (B,), got {tuple(losses.shape)} and {tuple(t.shape)}")
    if isinstance(bins, Tensor):
        check_finite("bins", bins)
        if bins.ndim != 1 or len(bins) < 2 or not bool((bins.diff() > 0).all()):
            raise ValueError(f"bins must be edges that rise, of shape (bins + 1,), got shape {tuple(bins.shape)}")
        edges = bins.detach().double().to(losses.device)
    else:
        check_count("bins", bins)
        edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=losses.device)
    losses, t = losses.detach().double(), t.detach().double().to(losses.device)
    outside = int(((t < edges[0]) | (t > edges[-1])).sum())
    if outside:
        raise ValueError(
            f"{outside} of {len(t)} times lie outside of [{float(edges[0]):g}, {float(edges[-1]):g}]: "
            "time runs from 0 (noise) to 1 (data); give bins= edges that hold them all"
        )
    count = len(edges) - 1
    where = (torch.searchsorted(edges, t, right=True) - 1).clamp_max(count - 1)
    number = torch.bincount(where, minlength=count)
    mean = torch.zeros_like(edges[1:]).index_add_(0, where, losses) / number
    squares = torch.zeros_like(mean).index_add_(0, where, (losses - mean[where]).square())
    error = torch.where(number > 1, (squares / (number - 1).clamp_min(1) / number).sqrt(), torch.nan)
    return LossByTime(edges, mean, error, number)
