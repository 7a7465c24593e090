"""Transformer blocks that a vector modulates (adaLN-Zero), with a context to read where there is one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, Rotation, SelfAttention

__all__ = ["MODULATIONS", "ModulatedBlock", "modulate"]

MODULATIONS = 6  # a shift, a scale and a gate for each of the two halves of a block


class ModulatedBlock(nn.Module):
    """Attention among the tokens, then a feed-forward layer, each modulated, gated and added.

    With a context the tokens read it in between. Gates, shifts and scales come from outside, so that one product makes
    those of all blocks.

    Parameters
    ----------
    width, heads
        As in :class:`~genmatch.nn.SelfAttention`.
    context
        Size of the vectors of a context; None for none.
    ratio
        Width of the feed-forward layer, in units of `width`.
    """

    def __init__(self, width: int, heads: int, *, context: int | None = None, ratio: float = 4.0) -> None:
        super().__init__()
        inner = int(ratio * width)
        if inner < 1:
            raise ValueError(f"the feed-forward layer needs a width of at least 1, got ratio={ratio} of {width}")
        self.attention = SelfAttention(width, heads)
        self.cross = None if context is None else CrossAttention(width, heads, context)
        self.feedforward = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(
        self,
        h: Tensor,
        shift1: Tensor,
        scale1: Tensor,
        gate1: Tensor,
        shift2: Tensor,
        scale2: Tensor,
        gate2: Tensor,
        rotation: Rotation | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Tokens ``(B, L, width)`` to ones of the same shape; modulations ``(B, 1, width)``."""
        h = torch.addcmul(h, gate1, self.attention(modulate(h, shift1, scale1), rotation))
        if self.cross is not None:
            h = h + self.cross(F.layer_norm(h, h.shape[-1:]), context, mask)
        return torch.addcmul(h, gate2, self.feedforward(modulate(h, shift2, scale2)))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``shift + (1 + scale) * layer_norm(h)``."""
    return torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale)
