"""A multilayer perceptron for vectors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import zero
from .conditioning import Conditioning
from .embeddings import Sinusoidal

__all__ = ["MLP"]


class MLP(nn.Module):
    """Residual perceptron told the time at every layer: ``(B, dim) -> (B, out)``.

    With ``h`` the hidden state and ``c`` the embedded time and class, layer i is ``h + silu(A_i h + B_i c)``, where
    A_i and B_i are affine.

    Parameters
    ----------
    dim
        Size of a state; 1 or more.
    width
        Size of the hidden state.
    depth
        Number of hidden layers.
    out
        Size of the output; `dim` for None.
    embedding
        Size of the vector that carries time and class, and of the sinusoidal embedding; even.
    classes
        Number of classes for ``label=``; None for an unconditional network. See :class:`~genmatch.nn.Labels`.
    label_dropout
        Probability of training without the label, for classifier-free guidance.
    time_scale
        Multiplies the times in front of the sinusoidal embedding: 1000 suits times in ``[0, 1]``. Pass 1 where the
        predictor feeds table indices 0 .. 999.
    time
        Another embedding of the time than ``Sinusoidal(embedding, scale=time_scale)``.

    Raises
    ------
    ValueError
        If a size is below 1, on construction; on a call, if x is not ``(B, dim)``, or times or labels are not ``(B,)``.

    Notes
    -----
    A call is ``network(x, t, label=None)`` with x ``(B, dim)``, t ``(B,)`` any real numbers, label ``(B,)`` int64 in
    ``[0, classes)``. The null label is ``classes``; None means null for every sample. A new network returns zero.

    Examples
    --------
    >>> import torch
    >>> MLP(2)(torch.zeros(5, 2), torch.rand(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        width: int = 128,
        depth: int = 4,
        out: int | None = None,
        *,
        embedding: int = 64,
        classes: int | None = None,
        label_dropout: float = 0.1,
        time_scale: float = 1000.0,
        time: nn.Module | None = None,
    ) -> None:
        super().__init__()
        out = dim if out is None else out
        if min(dim, width, depth, out) < 1:
            raise ValueError(f"sizes must be positive, got dim={dim}, width={width}, depth={depth}, out={out}")
        self.dim, self.classes = dim, classes
        self.conditioning = Conditioning(
            Sinusoidal(embedding, scale=time_scale) if time is None else time, embedding, classes, label_dropout
        )
        self.input = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.shifts = nn.Linear(embedding, depth * width)  # one product for all layers
        self.output = nn.Linear(width, out)
        zero(self.output)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Evaluate at states ``(B, dim)``, times ``(B,)`` and labels ``(B,)`` or None."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be (B, {self.dim}), got {tuple(x.shape)}: flatten other states, or use a UNet")
        shifts = self.shifts(self.conditioning(t, label, x.shape[0]))
        h = self.input(x)
        for layer, shift in zip(self.layers, shifts.expand(x.shape[0], -1).chunk(len(self.layers), dim=1), strict=True):
            h = h + F.silu(layer(h) + shift)
        return self.output(h)
