"""Networks to train, called as ``network(x, t, **condition)``, and what they are built of.

======================================  ===============================================================================
networks                                :class:`MLP` for vectors, :class:`UNet` for images, :class:`Transformer` for
                                        tokens
embeddings of time                      :class:`Sinusoidal`, :class:`Fourier`
parts to build one's own network with   :class:`Conditioning`, :class:`Labels`, :class:`SelfAttention`
averaged weights                        :class:`EMA`
======================================  ===============================================================================

Any ``torch.nn.Module`` with this call will do; nothing else in the library asks for these.
"""

from __future__ import annotations

from .attention import SelfAttention
from .conditioning import Conditioning, Labels
from .ema import EMA
from .embeddings import Fourier, Sinusoidal
from .mlp import MLP
from .transformer import Transformer
from .unet import UNet

__all__ = ["EMA", "MLP", "Conditioning", "Fourier", "Labels", "SelfAttention", "Sinusoidal", "Transformer", "UNet"]
