r"""Classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..predict.predictor import Condition, Predictor
from ..predict.wrapper import Wrapper
from ..schedules import Number

__all__ = ["ClassifierFree"]


class ClassifierFree(Wrapper):
    r"""A conditional predictor pushed away from its own unconditional prediction.

    .. math:: N_w(x, t, y) = N(x, t, \varnothing) + w\,\bigl(N(x, t, y) - N(x, t, \varnothing)\bigr)

    (J. Ho, T. Salimans, arXiv 2207.12598, eq. 6, whose w is one less). w = 1 is the conditional model, 0 the
    unconditional one. Every native output is linear in data and noise, so what is extrapolated does not matter; for
    tokens logits are, which multiplies rates, :math:`Q_y^w Q_\varnothing^{1-w}`.

    The network runs once per evaluation, on a batch of twice the size. For w = 1 and w = 0 one half would not count:
    then it runs on the batch itself.

    Parameters
    ----------
    model
        A predictor whose network was trained with its condition dropped at times.
    scale
        w.
    null
        What stands for "no condition", by name: the value that replaces each condition, such as ``{"label": 10}`` for a
        :class:`~genmatch.nn.UNet` of ten classes, or ``{"context_mask": False}`` where there is a context. Names that
        are not here keep their value in both halves.

    Examples
    --------
    >>> import genmatch as gm, torch
    >>> network = gm.nn.UNet(1, width=8, multipliers=(1, 2), blocks=1, groups=4, classes=10)
    >>> model = gm.predict.Velocity(network, gm.GaussianPath())
    >>> guided = gm.guidance.ClassifierFree(model, 2.0, null={"label": 10})
    >>> gm.sample(gm.Flow(guided), (2, 1, 8, 8), steps=2, condition={"label": torch.tensor([3, 7])}).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, model: Predictor, scale: float, null: Mapping[str, Number]) -> None:
        super().__init__(model)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
            raise ValueError(f"scale must be a finite number, got {scale!r}: 1 is the conditional model, 0 the other")
        if not isinstance(null, Mapping) or not null:
            raise ValueError(f"null must say what stands for no condition, such as {{'label': classes}}, got {null!r}")
        self.path, self.kind, self.scale, self.null = model.path, model.kind, float(scale), dict(null)

    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The model's numbers."""
        return self.model.at(t, until)

    def native(self, x: Tensor, instant: Any, condition: Condition = None) -> Tensor:
        """The guided output ``(B, *S)``."""
        condition = {} if condition is None else condition
        missing = sorted(set(self.null) - set(condition))
        if missing:
            raise ValueError(
                f"guidance needs a condition for {', '.join(missing)}, got {sorted(condition) or 'none'}: "
                "pass condition={...} with one row for each sample"
            )
        null = {
            name: torch.full_like(value, self.null[name]) if name in self.null else value
            for name, value in condition.items()
        }
        if self.scale in (0.0, 1.0):
            return self.model.native(x, instant, condition if self.scale else null)
        both = {name: torch.cat([value, null[name]]) for name, value in condition.items()}
        given, free = self.model.native(torch.cat([x, x]), _twice(instant), both).chunk(2)
        return free + self.scale * (given - free)

    def prediction(self, x: Tensor, instant: Any, native: Tensor) -> Any:
        """The model's readings of the guided output."""
        return self.model.prediction(x, instant, native)

    def coefficients(self, instant: Any, p: Number, q: Number) -> tuple[Number, Number]:
        """The model's: the guided output is of the same kind."""
        return self.model.coefficients(instant, p, q)  # type: ignore[operator]

    def reads(self, instant: Any) -> bool:
        """As the model."""
        return self.model.reads(instant)


def _twice(instant: Any) -> Any:
    """Per-sample numbers for both halves of the doubled batch; host numbers as they are."""
    if not (isinstance(instant.t, Tensor) and instant.t.ndim):
        return instant
    fields = [
        torch.cat([f, f]) if isinstance(f, Tensor) and f.ndim else _twice(f) if hasattr(f, "broadcast") else f
        for f in instant
    ]
    return type(instant)(*fields)
