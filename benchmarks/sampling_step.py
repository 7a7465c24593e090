"""A sampling step with a real network, beside other libraries around the same one.

The network is a small U-Net of ours, handed to every library as the callable that it asks for; each takes as many steps
and as many evaluations, which is checked. The ratio is of whole runs, their loop over ours: 1.00 where the network is
everything. What the loops cost without a network is ``sampling_overhead.py``.

Run it as ``python benchmarks --only step``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from _loops import RIVALS, against, gather
from _suite import Row, Scale
from torch import Tensor, nn

import genmatch as gm

__all__ = ["rows"]


class Counted(nn.Module):
    """A network that takes any kind of time, and counts its evaluations."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.count = network, 0

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        self.count += 1
        return self.network(x, torch.as_tensor(t, dtype=x.dtype).expand(len(x)))

    def check(self, x: Tensor, steps: int) -> None:
        """Refuse to compare loops that evaluate the network another number of times."""
        with torch.no_grad():
            contenders, _ = gather(self, x, steps)
            for name in {*RIVALS, *itertools.chain(*RIVALS.values())} & set(contenders):
                self.count = 0
                contenders[name]()
                if self.count != steps:
                    raise RuntimeError(f"{name} takes {self.count} evaluations for {steps} steps")


def rows(scale: Scale) -> Iterator[Row]:
    """A row for each library that has the method."""
    torch.manual_seed(0)
    side, steps = scale.pick(32, 32, 8), scale.pick(10, 4, 2)
    for batch in scale.pick((1, 16), (1, 4), (2,)):
        unet = gm.nn.UNet(3, width=32, multipliers=(1, 2), blocks=1, groups=4).eval()
        for weights in unet.parameters():  # outputs that start at zero would let the states decay
            nn.init.normal_(weights, std=0.02)
        network, x = Counted(unet), torch.randn(batch, 3, side, side)
        network.check(x, steps)
        yield from against(network, x, steps, scale.repeats(7))
