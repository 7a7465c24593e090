"""Embeddings of a time: real numbers to vectors whose coordinates vary slowly and fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..random import Draws

__all__ = ["Fourier", "Sinusoidal"]


class Sinusoidal(nn.Module):
    r"""Sinusoidal embedding, ``t -> (sin(s w_i t), cos(s w_i t))`` with :math:`w_i = P^{-2 i / d}`, i = 0 .. d/2 - 1.

    Parameters
    ----------
    dim
        Size d of the embedding, even and positive.
    max_period
        P, which sets the slowest frequency, close to ``scale / P``; above 1.
    scale
        s, multiplies the times first. The fastest frequency is ``scale`` radians for each unit of time, so choose it
        by the range of the times: 1 for the table indices 0 .. 999 that the formula was made for, 1000 for times in
        ``[0, 1]``, where a scale of 1 would leave all but a few coordinates constant.

    Raises
    ------
    ValueError
        If `dim` is odd or below 2, if `max_period` is not above 1, or if `scale` is not positive.

    Notes
    -----
    Times ``(B,)`` give embeddings ``(B, dim)``, computed in float32 (float64 for float64 times) whatever the dtype of
    the network: bfloat16 has 8 bits and cannot tell index 998 from 999. The frequencies are no buffer for the same
    reason; ``network.to(torch.bfloat16)`` would round them.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, section 3.5.
    .. [2] J. Ho, A. Jain and P. Abbeel, "Denoising diffusion probabilistic models", 2020, appendix B.

    Examples
    --------
    >>> import torch
    >>> Sinusoidal(4, scale=1000.0)(torch.tensor([0.0, 0.5])).shape
    torch.Size([2, 4])
    """

    def __init__(self, dim: int, max_period: float = 10000.0, scale: float = 1.0) -> None:
        super().__init__()
        _check_dim(dim)
        if not (math.isfinite(max_period) and max_period > 1):
            raise ValueError(f"max_period must be a finite number above 1, got {max_period}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a finite positive number, got {scale}")
        self.dim, self.max_period, self.scale = dim, float(max_period), float(scale)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``(B,)`` as ``(B, dim)``."""
        half = self.dim // 2
        dtype = torch.promote_types(t.dtype, torch.float32)
        powers = torch.arange(half, device=t.device, dtype=dtype)
        frequencies = self.scale * torch.exp(powers * (-math.log(self.max_period) / half))
        angles = t.to(dtype)[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def extra_repr(self) -> str:
        """Say what it was made with."""
        return f"{self.dim}, max_period={self.max_period:g}, scale={self.scale:g}"


class Fourier(nn.Module):
    r"""Random Fourier features, ``t -> (sin(2 pi b_i t), cos(2 pi b_i t))`` with :math:`b_i \sim N(0, \beta^2)`.

    Parameters
    ----------
    dim
        Size of the embedding, even and positive.
    bandwidth
        beta, the standard deviation of the frequencies, in cycles for each unit of time; positive. About 16 serves
        ``log sigma / 4`` and times in ``[0, 1]``.
    seed
        Chooses the frequencies. The same seed gives the same ones on every machine; torch's generator is not used.

    Raises
    ------
    ValueError
        If `dim` is odd or below 2, or `bandwidth` is not positive.

    Notes
    -----
    Times ``(B,)`` give embeddings ``(B, dim)``, computed in float32 (float64 for float64 times). The frequencies are
    not trained; they are a buffer, so they travel with the weights. They are rounded to bfloat16 when they are made,
    so that ``network.to(torch.bfloat16)`` leaves them, and what the network learned about them, as they are.

    References
    ----------
    .. [1] M. Tancik et al., "Fourier features let networks learn high frequency functions in low dimensional
       domains", 2020, equation 5 and section 6.
    .. [2] Y. Song et al., "Score-based generative modeling through stochastic differential equations", 2021, appendix
       C.2 (bandwidth 16 on log sigma).
    """

    frequencies: Tensor

    def __init__(self, dim: int, bandwidth: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        _check_dim(dim)
        if not (math.isfinite(bandwidth) and bandwidth > 0):
            raise ValueError(f"bandwidth must be a finite positive number, got {bandwidth}")
        self.dim, self.bandwidth, self.seed = dim, float(bandwidth), seed
        frequencies = bandwidth * Draws(seed).normal((1, dim // 2))[0]
        self.register_buffer("frequencies", frequencies.to(torch.bfloat16).to(torch.float32))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times ``(B,)`` as ``(B, dim)``."""
        dtype = torch.promote_types(t.dtype, torch.float32)
        angles = (2 * math.pi) * t.to(dtype)[:, None] * self.frequencies.to(dtype)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    def extra_repr(self) -> str:
        """Say what it was made with."""
        return f"{self.dim}, bandwidth={self.bandwidth:g}, seed={self.seed}"


def _check_dim(dim: int) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"an embedding has an even, positive size (sines and cosines), got dim={dim}")
