"""Small networks of each kind with inputs for them, and weights that are away from their zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from genmatch.nn import MLP, DiT, Transformer, UNet

CLASSES = 5
CONTEXT = 3  # size of the vectors of a context

UNET = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (-1,), "heads": 2, "groups": 4}
DIT = {"width": 16, "depth": 2, "heads": 2, "ratio": 2.0}


@dataclass(frozen=True)
class Kind:
    """How to build a small network of a kind, and a batch for it."""

    name: str
    make: Callable[..., nn.Module]
    shape: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, classes: int | None = CLASSES, **options) -> nn.Module:
        return self.make(classes=classes, **{**self.options, **options})

    @property
    def width(self) -> int:
        """Channels of the first level, size of a token or of a hidden layer."""
        return self.options["width"]

    @property
    def tokens(self) -> bool:
        return self.name == "transformer"

    @property
    def reads_context(self) -> bool:
        return "context" in self.options

    def states(self, batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        if self.tokens:
            return torch.randint(0, 8, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator).to(dtype)

    def told(self, batch: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """What a batch is told beside time and label: a context with its mask, the same vectors for the same row."""
        if not self.reads_context:
            return {}
        generator = torch.Generator().manual_seed(1)
        context = torch.randn(batch, 4, CONTEXT, generator=generator).to(dtype)
        mask = torch.arange(4) < torch.arange(batch)[:, None] % 5  # the first row is masked whole
        return {"context": context, "context_mask": mask}

    def call(self, network: nn.Module) -> Callable[..., Tensor]:
        """The network with its context: ``(x, t, label=None) -> output``."""
        return lambda x, t, label=None: network(x, t, label=label, **self.told(len(x), t.dtype))


def _kinds() -> list[Kind]:
    context = {"context": CONTEXT, "context_dropout": 0.0}
    return [
        Kind("mlp", lambda **o: MLP(3, **o), (3,), {"width": 16, "depth": 2, "embedding": 8}),
        Kind("unet", lambda **o: UNet(2, **o), (2, 4, 6), UNET),
        Kind(
            "transformer",
            lambda **o: Transformer(6, 8, **o),
            (5,),
            {"width": 16, "depth": 2, "heads": 2, "length": 7},
        ),
        Kind("unet_1d", lambda **o: UNet(2, **o), (2, 6), {**UNET, "axes": 1}),
        Kind("unet_3d", lambda **o: UNet(2, **o), (2, 4, 2, 4), {**UNET, "axes": 3}),
        Kind("unet_context", lambda **o: UNet(2, **o), (2, 4, 6), {**UNET, **context}),
        Kind("dit", lambda **o: DiT(2, (4, 6), **o), (2, 4, 6), DIT),
        Kind("dit_learned", lambda **o: DiT(2, (4, 6), **o), (2, 4, 6), {**DIT, "positions": "learned"}),
        Kind("dit_1d", lambda **o: DiT(2, 6, **o), (2, 6), {**DIT, "patch": 3}),
        Kind("dit_3d", lambda **o: DiT(2, (2, 4, 3), **o), (2, 2, 4, 3), {**DIT, "patch": (1, 2, 3)}),
        Kind("dit_context", lambda **o: DiT(2, (4, 6), **o), (2, 4, 6), {**DIT, **context}),
    ]


KINDS = _kinds()
BY_NAME = {kind.name: kind for kind in KINDS}
SMOOTH = [kind for kind in KINDS if not kind.tokens]


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network with every weight drawn anew: none is zero, so that every layer tells in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return network
