"""What a network is told beside the state: the time, and perhaps a class label or a context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conditioning", "Context", "Labels", "look_up", "read_context"]


class Labels(nn.Module):
    """Class embeddings with one extra row, the null label, for classifier-free guidance.

    Parameters
    ----------
    classes
        Number of classes; labels are 0 .. classes - 1, and ``classes`` itself is the null label.
    dim
        Size of an embedding.
    dropout
        Probability, in ``[0, 1]``, with which a label is replaced by the null one in training mode, each sample on
        its own. The draw is from torch's global generator, as that of ``nn.Dropout`` is: save its state to resume a
        training exactly.

    Raises
    ------
    ValueError
        If `classes` is below 1 or `dropout` not in ``[0, 1]``; on a call, for labels that are not ``(B,)``, or
        outside ``[0, classes]`` (on a GPU the lookup itself stops the program: reading labels would cost a stall).
    TypeError
        On a call, for labels that are not int64 or int32.

    References
    ----------
    .. [1] J. Ho and T. Salimans, "Classifier-free diffusion guidance", 2022, algorithm 1.
    """

    def __init__(self, classes: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}; pass None for a network without labels")
        if not 0 <= dropout <= 1:
            raise ValueError(f"label_dropout is a probability in [0, 1], got {dropout}")
        self.classes, self.dropout = classes, float(dropout)
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        """Embed labels ``(B,)`` as ``(B, dim)``; None is the null label for all, ``(1, dim)``."""
        null = self.table.weight[self.classes :]
        if label is None:
            return null
        if label.shape != (batch,):
            raise ValueError(f"one label for each sample is needed, shape ({batch},), got {tuple(label.shape)}")
        rows = look_up(self.table, label, f"labels 0 .. {self.classes - 1} (and {self.classes}, the null label)")
        if self.training and self.dropout > 0:
            dropped = torch.rand(batch, 1, device=label.device) < self.dropout
            rows = torch.where(dropped, null, rows)
        return rows


class Conditioning(nn.Module):
    """Time and label as one vector: ``silu(linear(silu(linear(embed(t)))) + embed(label))``, ``(B, dim)``.

    Parameters
    ----------
    time
        An embedding of times: a module ``(B,) -> (B, F)`` whose attribute ``dim`` is F.
    dim
        Size of the vector.
    classes, label_dropout
        As in :class:`Labels`; no classes for None.
    """

    def __init__(self, time: nn.Module, dim: int, classes: int | None = None, label_dropout: float = 0.1) -> None:
        super().__init__()
        features = getattr(time, "dim", None)
        if not isinstance(features, int):
            raise TypeError(
                "time is a module that embeds times and says in `dim` how long its vectors are, "
                f"such as Sinusoidal or Fourier; got {type(time).__name__}"
            )
        if dim < 1:
            raise ValueError(f"embedding must be positive, got {dim}")
        self.time = time
        self.input = nn.Linear(features, dim)
        self.output = nn.Linear(dim, dim)
        self.labels = None if classes is None else Labels(classes, dim, label_dropout)

    def forward(self, t: Tensor, label: Tensor | None, batch: int) -> Tensor:
        """The condition ``(B, dim)`` for times ``(B,)`` and labels ``(B,)`` or None."""
        if t.shape != (batch,):
            raise ValueError(
                f"one time for each sample is needed: t must be ({batch},), got {tuple(t.shape)}; "
                f"repeat a scalar by t.expand({batch})"
            )
        h = self.output(F.silu(self.input(self.time(t).to(self.input.weight.dtype))))
        if self.labels is not None:
            h = h + self.labels(label, batch)
        elif label is not None:
            raise ValueError("this network knows no labels: build it with classes=..., or leave label out")
        return F.silu(h)


def look_up(table: nn.Embedding, ids: Tensor, allowed: str) -> Tensor:
    """The rows of a table; on a CPU an id outside it is a ValueError that says what is `allowed`."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids are int64, got {ids.dtype}: convert them by .long()")
    try:
        return table(ids)
    except IndexError as error:  # the lookup has checked the range already: reading it again costs only who erred
        low, high = ids.aminmax()
        raise ValueError(f"expected {allowed}; got ids from {int(low)} to {int(high)}") from error


class Context(nn.Module):
    """A sequence of vectors that a network may read: its checks, and training without it.

    Parameters
    ----------
    dim
        Size of its vectors.
    dropout
        Probability, in ``[0, 1]``, with which a sample's context is masked out whole in training mode, for
        classifier-free guidance. Drawn as in :class:`Labels`.

    Raises
    ------
    ValueError
        If `dim` is below 1 or `dropout` not in ``[0, 1]``; on a call, for a context that is not ``(B, M, dim)``, or a
        mask that is not ``(B, M)``.
    TypeError
        On a call, for a context that is not of floating point, or a mask that is not bool.

    Notes
    -----
    No context, one of no vectors (M = 0) and one that is masked out whole are the same to a network: its attention
    sees a learned null vector alone. For :class:`~genmatch.guidance.ClassifierFree` "no context" is therefore the mask:
    ``condition={"context": c, "context_mask": m}`` and ``null={"context_mask": False}``. A context of zeros is not it.
    What is masked must still be finite, as zero times NaN is NaN.

    The layers that read a context have no gradient (``grad`` is None) after a batch without one, and zero after one
    that is masked out whole. Where every weight must have a gradient, as in ``DistributedDataParallel``, mask.
    """

    def __init__(self, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"the vectors of a context have a positive size, got context={dim}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"the dropout of a context is a probability in [0, 1], got {dropout}")
        self.dim, self.dropout = dim, float(dropout)

    def forward(self, context: Tensor | None, mask: Tensor | None, batch: int) -> tuple[Tensor | None, Tensor | None]:
        """The context, and which of its vectors count; None for all."""
        if context is None:
            if mask is not None:
                raise ValueError("a context_mask needs a context")
            return None, None
        if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != self.dim:
            raise ValueError(f"context must be ({batch}, M, {self.dim}), got {tuple(context.shape)}")
        if not context.is_floating_point():
            raise TypeError(f"context holds vectors of floating point, got {context.dtype}: embed ids first")
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"context_mask must be bool, true where a vector counts, got {mask.dtype}")
            if mask.shape != context.shape[:2]:
                raise ValueError(
                    f"context_mask must be {tuple(context.shape[:2])}, one for each vector of the context, got "
                    f"{tuple(mask.shape)}"
                )
        if self.training and self.dropout > 0:
            kept = torch.rand(batch, 1, device=context.device) >= self.dropout
            mask = kept.expand(context.shape[:2]) if mask is None else mask & kept
        return context, mask

    def extra_repr(self) -> str:
        """Say what it was made with."""
        return f"{self.dim}, dropout={self.dropout:g}"


def read_context(
    module: Context | None, context: Tensor | None, mask: Tensor | None, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """The context and its mask, by the network's module for it; raises if the network knows none."""
    if module is not None:
        return module(context, mask, batch)
    if context is not None or mask is not None:
        raise ValueError("this network reads no context: build it with context=..., or leave context out")
    return None, None
