r"""Images of integer levels: continuous data with a known share of the likelihood, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..random import Draws

__all__ = ["bits_per_dim", "dequantise"]

DEQUANTISE = 201  # stream of the draws


def dequantise(
    images: Tensor,
    *,
    levels: int = 256,
    seed: int | None = None,
    first_index: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Images of integer levels, each value spread evenly over its level's bin.

    .. math:: x = \frac{2}{K-1}\bigl(v + w\bigr) - 1, \qquad v \in \{0, \dots, K-1\},\ w \sim U[-\tfrac12, \tfrac12)

    The centres of the bins are the values in [-1, 1] that the loaders of :mod:`genmatch.data` return, and a bin is
    :math:`\Delta = 2/(K-1)` wide, so that by Jensen's inequality a density p of x bounds the probability of an image of
    d values,

    .. math:: \log P(v) \;\ge\; E_w[\log p(x)] + d\log\Delta .

    Parameters
    ----------
    images
        ``(B, *S)``: integers 0 .. K - 1, or what a loader made of them, ``v / 127.5 - 1`` for 8 bits.
    levels
        K: 256 for 8-bit images, 17 for :func:`genmatch.data.digits`.
    seed, first_index
        Noise is a function of the seed and of a sample's index.
    dtype
        float32 or float64.

    Raises
    ------
    ValueError, TypeError
        For values that are no levels.

    References
    ----------
    L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", arXiv 1511.01844, 3.1.

    Examples
    --------
    >>> pixels = torch.tensor([[0, 255]])
    >>> x = dequantise(pixels, seed=0)
    >>> bool(((x - torch.tensor([[-1.0, 1.0]])).abs() <= 1 / 255).all())
    True
    """
    number = read_levels(images, levels)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images become float32 or float64, got {dtype}")
    draws = Draws(seed, len(images), first_index=first_index, device=images.device).fork(DEQUANTISE)
    noise = draws.uniform(images.shape, torch.float64) - 0.5
    return ((number + noise) * (2 / (levels - 1)) - 1).to(dtype)


def bits_per_dim(log_prob: Tensor, dims: int | Sequence[int], *, levels: int | None) -> Tensor:
    r"""Bits for each value of an image, ``(B,)``:
    :math:`-\bigl(\log p(x) + d\log\tfrac{2}{K-1}\bigr) / (d\log 2)`.

    Parameters
    ----------
    log_prob
        Nats ``(B,)``: the density of images in [-1, 1] from :func:`dequantise`.
    dims
        d, or the shape ``S`` of an image.
    levels
        K, as given to :func:`dequantise`. ``None`` for nats that are of probabilities already, such as those of
        ``elbo(..., levels=K)``: then nothing is added.

    Examples
    --------
    >>> uniform = torch.tensor([-3 * math.log(256 * 2 / 255)])  # the density of three values of 256 equal levels
    >>> bits_per_dim(uniform, 3, levels=256)
    tensor([8.])
    """
    if not isinstance(log_prob, Tensor):
        raise TypeError(f"log_prob must be a tensor of nats (B,), got {type(log_prob).__name__}")
    sides = tuple(dims) if isinstance(dims, Sequence) else (dims,)
    if not sides or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"dims is the number of values of one image or its shape, integers, got {dims!r}")
    if min(sides) < 1:
        raise ValueError(f"dims is the number of values of one image or its shape, at least 1, got {dims!r}")
    size = math.prod(sides)
    if levels is not None:
        _check_levels(levels)
        log_prob = log_prob + size * math.log(2 / (levels - 1))
    return -log_prob / (size * math.log(2))


def read_levels(images: Tensor, levels: int) -> Tensor:
    """The integer levels of images, as float64; raises if there are other values."""
    _check_levels(levels)
    if not isinstance(images, Tensor) or images.ndim < 1:
        raise TypeError(f"images must be a tensor (B, *S), got {type(images).__name__}")
    if images.dtype == torch.bool or images.is_complex():
        raise TypeError(f"images are integers or floats in [-1, 1], got {images.dtype}")
    if images.is_floating_point():
        exact = (images.double() + 1) * ((levels - 1) / 2)
        number = exact.round()
        off = (exact - number).abs().max().item() if images.numel() else 0.0
        if not off < 0.01:
            raise ValueError(
                f"the images are not on a grid of {levels} levels in [-1, 1] (off by {off:.2g} levels): give integers "
                "0 .. levels - 1, or the right number of levels"
            )
    else:
        number = images.double()
    if images.numel() and not 0 <= number.min().item() <= number.max().item() <= levels - 1:
        raise ValueError(
            f"images of {levels} levels have values 0 .. {levels - 1}, got {number.min().item():g} to "
            f"{number.max().item():g}"
        )
    return number


def _check_levels(levels: object) -> None:
    if isinstance(levels, bool) or not isinstance(levels, int):
        raise TypeError(f"levels must be an integer, got {type(levels).__name__}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
