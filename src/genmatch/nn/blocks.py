"""What a U-Net is built of: residual blocks that are told the time, and attention among pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SelfAttention

__all__ = ["PixelAttention", "ResidualBlock", "Stage", "modulated_norm", "zero"]


class Stage(nn.Module):
    """A residual block, and attention after it where `heads` is given."""

    def __init__(self, inputs: int, outputs: int, groups: int, heads: int | None, dropout: float) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, groups, dropout)
        self.attention = None if heads is None else PixelAttention(outputs, groups, heads)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Features ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        x = self.block(x, scale, shift)
        return x if self.attention is None else self.attention(x)


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(scale * norm(conv(silu(norm(x)))) + shift))``, scale and shift ``(B, outputs)``."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.inputs, self.outputs, self.groups = inputs, outputs, groups
        self.norm = nn.GroupNorm(groups, inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        zero(self.conv2)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Features ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        h = self.conv1(F.silu(self.norm(x)))
        h = F.silu(modulated_norm(h, self.groups, scale, shift))
        return self.skip(x) + self.conv2(self.dropout(h))


class PixelAttention(nn.Module):
    """Self-attention among the pixels, added to them."""

    def __init__(self, channels: int, groups: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.mix = SelfAttention(channels, heads)
        zero(self.mix.output)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(B, C, H, W)`` to ones of the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.mix(tokens).transpose(1, 2).reshape(x.shape)


def modulated_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * group_norm(x) + shift`` for x ``(B, C, H, W)`` and a scale and shift ``(B, C)`` for each sample."""
    if x.is_contiguous():
        # The batch as channels of one sample: its weights are then a sample's own, and scale and shift cost no pass
        # over x of their own, nor their gradients (a sum over pixels, slow on a CPU).
        batch, channels, height, width = x.shape
        rows = x.view(1, batch * channels, height, width)
        return F.group_norm(rows, batch * groups, scale.flatten(), shift.flatten()).view(x.shape)
    return torch.addcmul(shift[:, :, None, None], F.group_norm(x, groups), scale[:, :, None, None])


def zero(layer: nn.Module) -> None:
    """Zero a layer's parameters: what it feeds into starts as if it were not there."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
