"""Distribution functions of logits, inverted: how a value is drawn from very many."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["invert", "pick", "under"]

# Values up to which a distribution function is inverted in one piece; above it in two levels of about the root.
FLAT = 64


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """The value at which the distribution function reaches a uniform; -1, no value, where logits are nan.

    What checks the states at the end of a run sees it there.
    """
    index, rest = invert(logits, uniform)
    return torch.where(rest.isnan(), -1, index)


def invert(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The distribution function of logits ``(*S, K)`` inverted at uniforms ``(*S,)``: the value, and how far into it.

    Never a value of probability zero. A large K is searched in two levels, blocks and values in the block: a running
    sum over all of it would cost more than the exponentials.
    """
    # float32 at least: half precision cannot hold a distribution function over a vocabulary.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = logits.softmax(-1)
    uniform = uniform[..., None].to(weights.dtype)
    count = weights.shape[-1]
    if count <= FLAT:
        index, below, mass = _search(weights, uniform, share=True)
    else:
        size = 1 << (count.bit_length() // 2)
        whole = count - count % size
        sums = weights[..., :whole].unflatten(-1, (-1, size)).sum(-1)
        if whole < count:
            sums = torch.cat([sums, weights[..., whole:].sum(-1, keepdim=True)], -1)
        block, below, _ = _search(sums, uniform, share=True)
        index = block * size + torch.arange(size, device=block.device)
        inside = weights.gather(-1, index.clamp(max=count - 1)).masked_fill(index >= count, 0)
        inner, below, mass = _search(inside, below, share=False)
        index = block * size + inner
    return index.squeeze(-1), (below / mass).squeeze(-1)


def _search(weights: Tensor, level: Tensor, *, share: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(index, how far the level is above its lower edge, its weight) for a level, or a share of the whole."""
    edges = weights.cumsum(-1)
    last = edges[..., -1:]
    level = under(level * last if share else level, last)
    index = torch.searchsorted(edges, level, right=True).clamp(max=weights.shape[-1] - 1)
    mass = weights.gather(-1, index)
    above = (level - (edges.gather(-1, index) - mass)).clamp(min=0)
    return index, torch.minimum(above, mass), mass


def under(level: Tensor, last: Tensor) -> Tensor:
    """A level strictly below the last edge, so that rounding never lands on a value of weight zero."""
    return torch.minimum(level, torch.nextafter(last, torch.zeros_like(last)))
