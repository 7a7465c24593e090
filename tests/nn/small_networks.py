"""Small networks of each kind with inputs for them, and weights that are away from their zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genmatch.nn import MLP, Transformer, UNet

CLASSES = 5


@dataclass(frozen=True)
class Kind:
    """How to build a small network of a kind, and a batch for it."""

    name: str

    def build(self, classes: int | None = CLASSES, **options) -> nn.Module:
        if self.name == "mlp":
            return MLP(3, width=16, depth=2, embedding=8, classes=classes, **options)
        if self.name == "transformer":
            return Transformer(6, 8, width=16, depth=2, heads=2, length=7, classes=classes, **options)
        return UNet(
            2, width=8, multipliers=(1, 2), blocks=1, attention=(-1,), heads=2, groups=4, classes=classes, **options
        )

    def states(self, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        if self.name == "transformer":
            return torch.randint(0, 8, (batch, 5), generator=generator)
        shape = (batch, 3) if self.name == "mlp" else (batch, 2, 4, 6)
        return torch.randn(shape, generator=generator, dtype=dtype)


KINDS = [Kind("mlp"), Kind("unet"), Kind("transformer")]
SMOOTH = KINDS[:2]


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight drawn anew: none is zero, so that every layer tells in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return network
