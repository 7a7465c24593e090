"""What the kernels compute, in torch: the same integers, and the same normals to rounding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..inversion import pick
from ..random import Draws

__all__ = ["Address", "jump", "normal", "step"]


class Address(NamedTuple):
    """Where random numbers are taken from: what a :class:`~genmatch.Draws` holds but for its device."""

    seed: int
    first: int
    step: int
    stream: int

    @classmethod
    def of(cls, draws: Draws) -> Address:
        """The address of draws."""
        return cls(draws.seed, draws.first_index, draws.step, draws.stream)

    def draws(self, like: Tensor, stream: int | None = None) -> Draws:
        """The draws at this address for the samples of a tensor."""
        own = self.stream if stream is None else stream
        return Draws(self.seed, len(like), first_index=self.first, step=self.step, stream=own, device=like.device)


def normal(like: Tensor, address: Address) -> Tensor:
    """Standard normals, float32, of the shape of ``like`` ``(B, *S)``."""
    return address.draws(like).normal(like.shape, torch.float32).contiguous()


def step(
    x: Tensor, y: Tensor, other: Tensor | None, a: float, b: float, guidance: float, std: float, address: Address
) -> Tensor:
    """``a x + b y' + std z`` in float32 and then in the dtype of x, with ``y' = other + guidance (y - other)``."""
    native = y.float()
    if other is not None:
        native = other.float() + guidance * (native - other.float())
    return (a * x.float() + b * native + std * normal(x, address)).to(x.dtype).contiguous()


def jump(x: Tensor, logits: Tensor, chance: Tensor, address: Address, where: int) -> Tensor:
    """Tokens after a step in which each jumps with probability ``chance``, and then lands by ``logits``."""
    first = address.draws(x).uniform(x.shape)
    second = address.draws(x, where).uniform(x.shape)
    moved = torch.where(first < chance, pick(logits, second).to(x.dtype), x)
    return moved.masked_fill(chance.isnan(), torch.tensor(-1).to(x.dtype)).contiguous()
