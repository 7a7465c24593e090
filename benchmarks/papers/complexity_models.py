"""The models of the study of complexity: one U-Net for all image sets, and the architectures compared on digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

import genmatch as gm

from .images import Images, load
from .models import RATES, Network, Recipe, Trained, search, train
from .networks import best
from .networks import repeats as shared_repeats
from .scale import Scale

__all__ = ["ARCHITECTURES", "BASE", "KINDS", "repeats", "seeds"]

KINDS = ("flow", "diffusion")
BASE = "U-Net 16"  # on every image set


def unet(channels: int, width: int = 16, attention: bool = True) -> Network:
    """Three levels of one residual block, attention of one head at half the resolution: that of MNIST's models."""
    levels = (1,) if attention else ()

    def build(time_scale: float) -> nn.Module:
        return gm.nn.UNet(
            channels, width=width, multipliers=(1, 2, 4), blocks=1, attention=levels, heads=1, time_scale=time_scale
        )

    return build


def dit(channels: int, side: int) -> Network:
    """Four blocks on patches of 2 x 2 pixels."""

    def build(time_scale: float) -> nn.Module:
        return gm.nn.DiT(channels, (side, side), patch=2, width=48, depth=4, heads=3, time_scale=time_scale)

    return build


ARCHITECTURES: dict[str, Callable[[Images], Network]] = {
    "U-Net 8": lambda images: unet(images.shape[0], 8),
    BASE: lambda images: unet(images.shape[0]),
    "U-Net 32": lambda images: unet(images.shape[0], 32),
    "U-Net 16, no attention": lambda images: unet(images.shape[0], attention=False),
    "DiT": lambda images: dit(images.shape[0], images.shape[-1]),
}


def seeds(images: Images, scale: Scale) -> tuple[int, ...]:
    """Of the repeats."""
    return scale.pick((0,), (0, 1, 2), (0, 1, 2))


def repeats(
    images: Images, kind: str, scale: Scale, architecture: str = BASE
) -> tuple[list[Trained], list[dict[str, Any]]]:
    """A model for each seed, and what the search of the learning rate tried.

    Each kind of model is given the rates of :data:`RATES`: on digits with the base network, on MNIST with the models
    that all studies share. What is best there is taken for the other architectures and for the photographs.
    """
    if images.name == "mnist":
        return shared_repeats(images, scale, kind)
    build = ARCHITECTURES[architecture](images)
    steps, batch_size = _length(images, scale)

    def recipe(lr: float, seed: int = 0) -> Recipe:
        return Recipe(kind, _short(architecture), steps, batch_size, lr, seed)

    if images.name == "digits":
        base = [replace(recipe(lr), network=_short(BASE)) for lr in RATES]
        found, tried = search(images, base, ARCHITECTURES[BASE](images), scale)
    else:
        found, tried = best(load("mnist", scale), scale, kind)
    return [train(images, recipe(found.lr, seed), build, scale) for seed in seeds(images, scale)], tried


def _short(architecture: str) -> str:
    return architecture.lower().replace(", ", "-").replace(" ", "")


def _length(images: Images, scale: Scale) -> tuple[int, int]:
    return scale.pick((6, 16), (1200, 32), (20000 if images.name == "digits" else 100000, 128))
