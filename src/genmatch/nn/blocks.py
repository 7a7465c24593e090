"""What a U-Net is built of: residual blocks that are told the time, and attention among pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention

__all__ = ["CONVOLUTIONS", "PixelAttention", "ResidualBlock", "Stage", "halve", "modulated_norm", "zero"]

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes


class Stage(nn.Module):
    """A residual block, and attention after it where `heads` is given, among pixels and to a context."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        groups: int,
        heads: int | None,
        dropout: float,
        axes: int = 2,
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, groups, dropout, axes)
        self.attention = None if heads is None else PixelAttention(outputs, groups, heads, context)

    def forward(
        self,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Features ``(B, inputs, *size)`` to ``(B, outputs, *size)``."""
        x = self.block(x, scale, shift)
        return x if self.attention is None else self.attention(x, context, mask)


class ResidualBlock(nn.Module):
    """``skip(x) + conv(silu(scale * norm(conv(silu(norm(x)))) + shift))``, scale and shift ``(B, outputs)``."""

    def __init__(self, inputs: int, outputs: int, groups: int, dropout: float, axes: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[axes]
        self.inputs, self.outputs, self.groups = inputs, outputs, groups
        self.norm = nn.GroupNorm(groups, inputs)
        self.conv1 = convolution(inputs, outputs, 3, padding=1)
        self.conv2 = convolution(outputs, outputs, 3, padding=1)
        self.skip = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        zero(self.conv2)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Features ``(B, inputs, *size)`` to ``(B, outputs, *size)``."""
        h = self.conv1(F.silu(self.norm(x)))
        h = F.silu(modulated_norm(h, self.groups, scale, shift))
        return self.skip(x) + self.conv2(self.dropout(h))


class PixelAttention(nn.Module):
    """Self-attention among the pixels, and where there is a context attention to it, each added to them."""

    def __init__(self, channels: int, groups: int, heads: int, context: int | None = None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.mix = SelfAttention(channels, heads)
        self.cross = None if context is None else CrossAttention(channels, heads, context)
        zero(self.mix.output)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features ``(B, C, *size)`` to ones of the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        mixed = self.mix(tokens)
        if self.cross is not None:
            seen = F.layer_norm(x.flatten(2).transpose(1, 2) + mixed, x.shape[1:2])
            mixed = mixed + self.cross(seen, context, mask)
        return x + mixed.transpose(1, 2).reshape(x.shape)


def modulated_norm(x: Tensor, groups: int, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale * group_norm(x) + shift`` for x ``(B, C, *size)`` and a scale and shift ``(B, C)`` for each sample."""
    if not torch.compiler.is_compiling() and len(x) and x.is_contiguous():
        # The batch as channels of one sample: its weights are then a sample's own, and scale and shift cost no pass
        # over x of their own, nor their gradients (a sum over pixels, slow on a CPU). A compiler fuses them anyway, and
        # would be bound to this batch by the number of groups.
        batch, channels, *size = x.shape
        rows = x.view(1, batch * channels, *size)
        return F.group_norm(rows, batch * groups, scale.flatten(), shift.flatten()).view(x.shape)
    ones = (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(*shift.shape, *ones), F.group_norm(x, groups), scale.view(*scale.shape, *ones))


def halve(x: Tensor) -> Tensor:
    """Means of 2 pixels along every axis of ``(B, C, *size)``."""
    # Strided halves are on a CPU 2 to 4 times as fast as torch's pooling, forwards and backwards, which has no bfloat16
    # for volumes besides.
    for axis in range(2, x.ndim):
        x = x.unflatten(axis, (-1, 2))
        x = torch.lerp(x.select(axis + 1, 0), x.select(axis + 1, 1), 0.5)  # a sum could overflow in float16
    return x


def zero(layer: nn.Module) -> None:
    """Zero a layer's parameters: what it feeds into starts as if it were not there."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
