"""A transformer for sequences of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import zero
from .conditioning import Conditioning, look_up
from .embeddings import Sinusoidal
from .modulated import MODULATIONS, ModulatedBlock, modulate

__all__ = ["Transformer"]


class Transformer(nn.Module):
    """Bidirectional transformer whose blocks a time, and perhaps a class, modulates: ``(B, L) -> (B, L, vocabulary)``.

    Each block is ``h + gate * attention(modulate(h))`` and then ``h + gate * feedforward(modulate(h))``, where
    ``modulate(h) = shift + (1 + scale) * layer_norm(h)``; gates, shifts and scales are affine in the embedded time
    and class and start at zero.

    Parameters
    ----------
    vocabulary
        K, the number of tokens that the logits range over.
    inputs
        Number of input ids, K or more: the ids from K on, such as a mask or padding, are read but never predicted.
        None is ``vocabulary + 1``, room for a mask whose id is K.
    width
        Size of a token's vector.
    depth
        Number of blocks.
    heads
        Heads of the attention; divides `width`.
    length
        The longest sequence; shorter ones are welcome. Positions are learned.
    classes
        Number of classes for ``label=``; None for an unconditional network. See :class:`~genmatch.nn.Labels`.
    label_dropout
        Probability of training without the label, for classifier-free guidance.
    time_scale
        Multiplies the times in front of the sinusoidal embedding: 1000 suits times in ``[0, 1]``.
    time
        Another embedding of the time than ``Sinusoidal(width, scale=time_scale)``.

    Raises
    ------
    ValueError
        If a size is out of range, on construction; on a call, if x is not ``(B, L)`` with L at most `length`, holds
        an id outside 0 .. inputs - 1 (a GPU stops in the lookup), or times or labels are not ``(B,)``.
    TypeError
        On a call, if x does not hold integers.

    Notes
    -----
    A call is ``network(x, t, label=None)`` with x ``(B, L)`` int64, t ``(B,)`` any real numbers, label ``(B,)`` int64
    in ``[0, classes)``. The null label is ``classes``; None means null for every sample. A new network returns zero
    logits. Every position attends to every other, padding too.

    References
    ----------
    .. [1] W. Peebles and S. Xie, "Scalable diffusion models with transformers", 2023, section 3.2 (adaLN-Zero).

    Examples
    --------
    >>> import torch
    >>> network = Transformer(vocabulary=27, width=32, depth=2, length=16)  # id 27 is a mask
    >>> network(torch.full((4, 16), 27), torch.rand(4)).shape
    torch.Size([4, 16, 27])
    """

    def __init__(
        self,
        vocabulary: int,
        inputs: int | None = None,
        *,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        length: int = 256,
        classes: int | None = None,
        label_dropout: float = 0.1,
        time_scale: float = 1000.0,
        time: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inputs = vocabulary + 1 if inputs is None else inputs
        if min(vocabulary, width, depth, length) < 1:
            raise ValueError(
                f"sizes must be positive, got vocabulary={vocabulary}, width={width}, depth={depth}, length={length}"
            )
        if inputs < vocabulary:
            raise ValueError(
                f"inputs counts all input ids, the {vocabulary} of the vocabulary and the ones beyond, got {inputs}"
            )
        self.vocabulary, self.inputs, self.length, self.classes = vocabulary, inputs, length, classes
        self.conditioning = Conditioning(
            Sinusoidal(width, scale=time_scale) if time is None else time, width, classes, label_dropout
        )
        self.tokens = nn.Embedding(inputs, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads) for _ in range(depth))
        # One product makes the modulations of all blocks, and a shift and a scale in front of the output.
        self.modulations = nn.Linear(width, (MODULATIONS * depth + 2) * width)
        self.output = nn.Linear(width, vocabulary)
        zero(self.modulations)
        zero(self.output)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """The logits for tokens ``(B, L)``, times ``(B,)`` and labels ``(B,)`` or None."""
        if x.ndim != 2 or not 0 < x.shape[1] <= self.length:
            raise ValueError(f"x must be (B, L) with L from 1 to {self.length}, got {tuple(x.shape)}")
        condition = self.conditioning(t, label, x.shape[0])
        modulations = self.modulations(condition)[:, None].chunk(MODULATIONS * len(self.blocks) + 2, dim=-1)
        h = look_up(self.tokens, x, f"input ids 0 .. {self.inputs - 1}") + self.positions[: x.shape[1]]
        for i, block in enumerate(self.blocks):
            h = block(h, *modulations[MODULATIONS * i : MODULATIONS * (i + 1)])
        return self.output(modulate(h, *modulations[-2:]))
