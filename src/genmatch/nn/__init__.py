"""Networks to train, called as ``network(x, t, **condition)``, and what they are built of.

======================================  ===============================================================================
networks                                :class:`MLP` for vectors, :class:`UNet` and :class:`DiT` for signals, images and
                                        volumes, :class:`Transformer` for tokens
embeddings of time                      :class:`Sinusoidal`, :class:`Fourier`
parts to build one's own network with   :class:`Conditioning`, :class:`Labels`, :class:`Context`,
                                        :class:`SelfAttention`, :class:`CrossAttention`
averaged weights                        :class:`EMA`; :class:`PowerEMA`, whose width
                                        :func:`reconstruct` sets after the training
======================================  ===============================================================================

Any ``torch.nn.Module`` with this call will do; nothing else in the library asks for these.
"""

from __future__ import annotations

from .attention import CrossAttention, SelfAttention
from .conditioning import Conditioning, Context, Labels
from .dit import DiT
from .ema import EMA
from .embeddings import Fourier, Sinusoidal
from .mlp import MLP
from .power_ema import PowerEMA
from .snapshots import Snapshot, reconstruct
from .transformer import Transformer
from .unet import UNet

__all__ = [
    "EMA",
    "MLP",
    "Conditioning",
    "Context",
    "CrossAttention",
    "DiT",
    "Fourier",
    "Labels",
    "PowerEMA",
    "SelfAttention",
    "Sinusoidal",
    "Snapshot",
    "Transformer",
    "UNet",
    "reconstruct",
]
