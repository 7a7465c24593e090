"""Self-attention that forward-mode differentiation passes through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["SelfAttention", "attend"]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    r"""Attention, :math:`\mathrm{softmax}(q k^T / \sqrt d) v`, over ``(B, heads, L, d)``.

    Notes
    -----
    This is ``scaled_dot_product_attention``, but for inputs that carry a tangent (``torch.func.jvp``): its fused
    kernels have no forward derivative, so the formula is written out there. They have no second derivative either;
    for one (the gradient of a divergence, ``jvp`` of ``grad``) run the network within
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    if any(forward_ad.unpack_dual(each).tangent is not None for each in (query, key, value)):
        weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return torch.softmax(weights, dim=-1) @ value
    return F.scaled_dot_product_attention(query, key, value)


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
        if heads < 1 or width % heads:
            raise ValueError(f"heads must divide the width: got heads={heads} and width {width}")
        self.heads = heads
        self.input = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        batch, length, width = x.shape
        parts = self.input(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return self.output(attend(query, key, value).transpose(1, 2).reshape(batch, length, width))
