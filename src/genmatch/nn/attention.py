"""Attention that forward-mode differentiation passes through: among a state's tokens, and from them to a context."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["CrossAttention", "Rotation", "SelfAttention", "attend", "rotary"]

LARGEST = 2**24  # weights of an attention that are written out for the sake of speed: some 200 MiB with their gradients
MOST_KEYS = 256  # beyond, torch's kernel is the faster one

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (L, d) each, the first half of the sines negated


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Attention, :math:`\mathrm{softmax}(q k^T / \sqrt d) v`, over ``(B, heads, L, d)``.

    ``mask`` is bool, ``(B, 1, 1, M)``: which of the M keys count. At least one must, for every query.

    Notes
    -----
    This is ``scaled_dot_product_attention``, and in two cases the formula written out, which keeps the weights: for
    inputs that carry a tangent (``torch.func.jvp``), as the fused kernels have no forward derivative; and for gradients
    in bfloat16 on a CPU over up to 256 keys (and 2**24 weights), as torch 2.13's fused kernel takes 1.1 to 3 times as
    long there. Products of queries and keys and the softmax are then of float32, as in the kernel; the weights are
    rounded.

    The fused kernels have no second derivative either; for one (the gradient of a divergence, ``jvp`` of ``grad``) run
    the network within ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    if _carries_tangent(query, key, value) or _slow_when_fused(query, key):
        wide = torch.promote_types(query.dtype, torch.float32)
        with _without_autocast(query):  # which would round the products, and with them large logits
            weights = (query.to(wide) * query.shape[-1] ** -0.5) @ key.to(wide).transpose(-2, -1)
            if mask is not None:
                weights = weights.masked_fill(~mask, float("-inf"))
            return torch.softmax(weights, dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _carries_tangent(*inputs: Tensor) -> bool:
    return any(forward_ad.unpack_dual(each).tangent is not None for each in inputs)


def _slow_when_fused(query: Tensor, key: Tensor) -> bool:
    """Whether the gradient is faster with the formula; an exported program has the fused operator, for any device."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or torch.compiler.is_exporting():
        return False
    keys = key.shape[-2]
    return (
        torch.is_grad_enabled()
        and query.requires_grad
        and keys <= MOST_KEYS
        and query[..., 0].numel() * keys <= LARGEST
    )


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


class SelfAttention(nn.Module):
    """Multi-head self-attention on tokens ``(B, L, width)``.

    Parameters
    ----------
    width
        Size of a token.
    heads
        Number of heads; divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.input = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Mix the tokens; with a `rotation` (see :func:`rotary`) by their relative positions."""
        batch, length, width = x.shape
        parts = self.input(x).view(batch, length, 3, self.heads, width // self.heads)
        parts = parts.permute(2, 0, 3, 1, 4)
        value = parts[2]
        query, key = (parts[:2] if rotation is None else _rotate(parts[:2], rotation)).unbind(0)
        return self.output(attend(query, key, value).transpose(1, 2).reshape(batch, length, width))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens ``(B, L, width)`` to a context ``(B, M, context)``.

    A learned null vector stands in front of the context and always counts: without a context, or with one that is
    masked out whole, the tokens see it alone. The output layer starts at zero.

    Parameters
    ----------
    width, heads
        As in :class:`SelfAttention`.
    context
        Size of a vector of the context.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        _check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.context = nn.Linear(context, 2 * width)
        self.null = nn.Parameter(torch.zeros(2 * width))
        self.output = nn.Linear(width, width)
        nn.init.normal_(self.null, std=0.02)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """What the tokens ``(B, L, width)`` read; ``mask`` bool ``(B, M)``, the vectors that count."""
        batch, length, width = x.shape
        pairs = self.null.expand(batch, 1, -1)
        if context is not None:
            pairs = torch.cat((pairs, self.context(context)), dim=1)
        allowed = None
        if mask is not None:
            allowed = F.pad(mask, (1, 0), value=True)[:, None, None]
        parts = pairs.view(batch, pairs.shape[1], 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query = self.query(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
        key, value = parts.unbind(0)
        return self.output(attend(query, key, value, allowed).transpose(1, 2).reshape(batch, length, width))


def rotary(grid: Sequence[int], dim: int, *, period: float = 100.0, device: torch.device | None = None) -> Rotation:
    r"""Cosines and sines that rotate queries and keys by the positions of their tokens on an N-dimensional grid.

    The ``dim`` coordinates of a head are dealt out evenly to the N axes; the pairs of an axis turn by position times
    :math:`P^{-i/n}`, i = 0 .. n - 1. A product of two rotated vectors depends on the difference of their positions
    alone. Coordinates left over by the division stay as they are.

    Parameters
    ----------
    grid
        Tokens along each axis; the tokens are in row-major order.
    dim
        Size of a head, even.
    period
        P, which sets the slowest frequency.

    Returns
    -------
    Two tensors ``(L, dim)``, float32; pair i are coordinates i and i + dim / 2, and the first one's sine is negated.

    References
    ----------
    .. [1] J. Su et al., "RoFormer", arXiv 2104.09864, Section 3.2.2.
    .. [2] B. Heo et al., "Rotary position embedding for vision transformer", arXiv 2403.13298, Section 3.2 (axial).
    """
    pairs = dim // (2 * len(grid))
    frequencies = period ** -(torch.arange(pairs, device=device, dtype=torch.float32) / max(pairs, 1))
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))
    angles = (places[:, :, None] * frequencies).flatten(1)
    angles = F.pad(angles, (0, dim // 2 - angles.shape[1]))
    sine = angles.sin()
    return torch.cat((angles.cos(),) * 2, -1), torch.cat((-sine, sine), -1)


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn the pairs (i, i + d/2) of the last axis, in float32 and back."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cosine, torch.cat((second, first), dim=-1), sine).to(x.dtype)


def _check_heads(width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width: got heads={heads} and width {width}")
