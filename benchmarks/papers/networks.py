"""The networks and the training that the studies share: the same for flow and diffusion, weights found once."""

from __future__ import annotations

from typing import Any

from torch import nn

import genmatch as gm

from .images import Images
from .models import RATES, Network, Recipe, Trained, search, train
from .scale import Scale

__all__ = ["best", "digits_unet", "mnist_unet", "network", "recipe", "repeats"]

SEEDS = (0, 1, 2)


def mnist_unet(time_scale: float) -> nn.Module:
    """16, 32 and 64 channels, attention at 16 x 16 of 32 x 32 pixels: the paper's shape at a quarter of its width.

    One residual block a level and one head: 138 000 weights, 3.6 ms of one core for an image's training step under
    bfloat16 and 1.6 ms for an evaluation. Two blocks and four heads would take twice that.
    """
    return gm.nn.UNet(1, width=16, multipliers=(1, 2, 4), blocks=1, attention=(1,), heads=1, time_scale=time_scale)


def full_unet(time_scale: float) -> nn.Module:
    """64, 128 and 256 channels, attention at 16 x 16: the paper's network, 4.5 million weights."""
    return gm.nn.UNet.mnist(time_scale=time_scale)


def digits_unet(time_scale: float) -> nn.Module:
    """16 and 32 channels, attention at 4 x 4 of 8 x 8 pixels: 38 000 weights."""
    return gm.nn.UNet(1, width=16, multipliers=(1, 2), blocks=1, attention=(1,), heads=1, time_scale=time_scale)


def tiny_unet(time_scale: float) -> nn.Module:
    """For rehearsals."""
    return gm.nn.UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), heads=1, time_scale=time_scale)


def network(images: Images, scale: Scale) -> tuple[str, Network]:
    """The name and the architecture for one of the two sets, digits or MNIST, at this size."""
    if images.name == "digits":
        return scale.pick(("tiny", tiny_unet), ("d16", digits_unet), ("d16", digits_unet))
    return scale.pick(("tiny", tiny_unet), ("u16a", mnist_unet), ("u64a", full_unet))


def recipe(
    images: Images, scale: Scale, kind: str, *, lr: float = RATES[0], seed: int = 0, searched: bool = False
) -> Recipe:
    """How models of digits and of MNIST are trained at this size, and how they are while a rate is searched."""
    name, _ = network(images, scale)
    if images.name == "digits":
        steps, batch_size = scale.pick(6, 3000, 20000), scale.pick(16, 64, 128)
    else:
        # On a CPU a search at full length would cost as much as the models: it has a fifth of their steps.
        steps, batch_size = scale.pick(6, 800 if searched else 4000, 30000), scale.pick(16, 32, 128)
    return Recipe(kind, name, steps, batch_size, lr, seed)


def best(images: Images, scale: Scale, kind: str) -> tuple[Recipe, list[dict[str, Any]]]:
    """Of the rates in :data:`RATES`, on seed 0, the one of the least held-out loss; and all tried."""
    _, build = network(images, scale)
    return search(images, [recipe(images, scale, kind, lr=lr, searched=True) for lr in RATES], build, scale)


def repeats(images: Images, scale: Scale, kind: str) -> tuple[list[Trained], list[dict[str, Any]]]:
    """The best recipe with each seed of :data:`SEEDS` (two in a rehearsal), and what the search tried."""
    _, build = network(images, scale)
    found, tried = best(images, scale, kind)
    seeds = scale.pick(SEEDS[:2], SEEDS, SEEDS)
    again = [recipe(images, scale, kind, lr=found.lr, seed=seed) for seed in seeds]
    return [train(images, r, build, scale) for r in again], tried
