"""What a network is told beside the state: the time, and perhaps a class label."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Conditioning", "Labels"]


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
        If `classes` is below 1 or `dropout` not in ``[0, 1]``; on a call, for labels of another shape or outside
        ``[0, classes]``.
    TypeError
        On a call, for labels that are not int64 or int32.

    Notes
    -----
    The range of labels is checked where reading them costs nothing: on the CPU, outside ``torch.compile``. Elsewhere
    an out-of-range label is caught by the lookup itself, without a host read.

    References
    ----------
    .. [1] J. Ho and T. Salimans, "Classifier-free diffusion guidance", 2022, algorithm 1.
    """

    def __init__(self, classes: int, dim: int, dropout: float = 0.1) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes must be at least 1, got {classes}; for no classes at all pass None")
        if not 0 <= dropout <= 1:
            raise ValueError(f"label_dropout is a probability in [0, 1], got {dropout}")
        self.classes, self.dropout = classes, float(dropout)
        self.table = nn.Embedding(classes + 1, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, label: Tensor | None, batch: int) -> Tensor:
        """Embed labels ``(B,)`` as ``(B, dim)``; ``None`` is the null label for all, ``(1, dim)``."""
        if label is None:
            return self.table.weight[self.classes :]
        self._check(label, batch)
        if self.training and self.dropout > 0:
            dropped = torch.rand(batch, device=label.device) < self.dropout
            label = label.masked_fill(dropped, self.classes)
        return self.table(label)

    def _check(self, label: Tensor, batch: int) -> None:
        if label.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"labels are int64, got {label.dtype}; convert them with .long()")
        if label.shape != (batch,):
            raise ValueError(f"one label for each sample is needed, shape ({batch},), got {tuple(label.shape)}")
        if label.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
            low, high = label.aminmax()
            if low < 0 or high > self.classes:
                raise ValueError(
                    f"labels are in [0, {self.classes}), and {self.classes} is the null label; "
                    f"got labels from {int(low)} to {int(high)}"
                )


class Conditioning(nn.Module):
    """Time and label as one vector: ``silu(linear(silu(linear(embed(t)))) + label)``, ``(B, dim)``.

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
                f"a time embedding is a module with an integer attribute `dim`, such as Sinusoidal or Fourier; "
                f"got {type(time).__name__}"
            )
        self.time = time
        self.input = nn.Linear(features, dim)
        self.output = nn.Linear(dim, dim)
        self.labels = None if classes is None else Labels(classes, dim, label_dropout)

    def forward(self, t: Tensor, label: Tensor | None, batch: int) -> Tensor:
        """The condition ``(B, dim)`` for times ``(B,)`` and labels ``(B,)`` or None."""
        if not isinstance(t, Tensor):
            raise TypeError(f"t must be a tensor of shape ({batch},), got {type(t).__name__}")
        if t.shape != (batch,):
            raise ValueError(
                f"one time for each sample is needed: t has shape {tuple(t.shape)}, expected ({batch},); "
                f"a scalar time becomes one by t.expand({batch})"
            )
        h = self.output(F.silu(self.input(self.time(t).to(self.input.weight.dtype))))
        if self.labels is not None:
            h = h + self.labels(label, batch)
        elif label is not None:
            raise ValueError("this network knows no labels: build it with classes=..., or leave `label` out")
        return F.silu(h)
