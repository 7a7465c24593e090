r"""The predictor of mixture paths: a posterior over data tokens at every position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import CrossEntropy, Divergence
from ..paths import MixtureInstant, MixturePath
from . import clocks
from .predictor import Condition, Predictor, call, check_parts

__all__ = ["TokenPrediction", "Tokens"]


class TokenPrediction:
    """The readings of a token network."""

    __slots__ = ("instant", "model", "native", "x")

    def __init__(self, model: Any, x: Tensor, instant: MixtureInstant, native: Tensor) -> None:
        self.model, self.x, self.instant, self.native = model, x, instant, native

    @property
    def logits(self) -> Tensor:
        """Logits of the posterior over data tokens, ``(B, *S, K)``."""
        return self.native

    @property
    def probabilities(self) -> Tensor:
        """:math:`p_{1|t}(\\cdot\\,|\\,x)` at each position, ``(B, *S, K)``, in float32 at least."""
        return self.native.softmax(-1, dtype=torch.promote_types(self.native.dtype, torch.float32))


class Tokens(Predictor):
    """The network predicts logits of the data token at each position of a mixture path.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with tokens x ``(B, *S)``, the mask id among them on a masked path;
        returns logits ``(B, *S, K)`` over the K data tokens.
    path
        The :class:`~genmatch.MixturePath` it is trained on.
    time, divergence
        As for the other predictors; cross-entropy by default.
    """

    kind = "tokens"
    readings = frozenset({"logits", "probabilities"})
    path: MixturePath

    def __init__(
        self,
        network: nn.Module,
        path: MixturePath,
        *,
        time: clocks.Clock | None = None,
        divergence: Divergence | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(path, MixturePath):
            raise TypeError(f"Tokens needs a MixturePath, got {type(path).__name__}")
        check_parts(network, time, divergence)
        self.network, self.path = network, path
        self.divergence = CrossEntropy() if divergence is None else divergence
        self.time = clocks.t if time is None else time

    def at(self, t: Tensor, until: Tensor | None = None) -> MixtureInstant:
        """The path's numbers."""
        return self.path.at(t, until)

    def native(self, x: Tensor, instant: MixtureInstant, condition: Condition = None) -> Tensor:
        """The network's logits ``(B, *S, K)``; a wrong shape raises."""
        logits = call(self.network, x, self.time(instant), condition)
        if logits.shape != (*x.shape, self.path.vocabulary):
            raise ValueError(
                f"the network returned shape {tuple(logits.shape)} for tokens of shape {tuple(x.shape)}: it needs "
                f"{(*x.shape, self.path.vocabulary)}, one logit for each of the {self.path.vocabulary} data tokens "
                "(none for the mask)"
            )
        return logits

    def prediction(self, x: Tensor, instant: MixtureInstant, native: Tensor) -> TokenPrediction:
        """The readings of ``native``."""
        return TokenPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Zero logits."""
        return torch.zeros(*x.shape, self.path.vocabulary, device=x.device)

    def target(self, x0: Tensor, x1: Tensor, instant: MixtureInstant) -> Tensor:
        """The data tokens; padding stands in as token 0 and carries no loss."""
        return x1 if self.path.padding is None else torch.where(x1 == self.path.padding, 0, x1)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: MixtureInstant) -> Tensor:
        """The divergence of the data tokens from the logits."""
        return self.divergence(self.target(x0, x1, instant), native)

    def scored(self, x: Tensor, x1: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Where the posterior is not known already: masked positions of a masked path, never padding."""
        padding = self.path.padding
        counted = None if padding is None else x1 != padding
        return self.path.movable(x), counted

    def per_data(self, instant: MixtureInstant) -> float:
        """1: the loss already is one of data."""
        return 1.0

    def reads(self, instant: MixtureInstant) -> bool:
        """Always: a posterior is finite at all times."""
        return True

    def extra_repr(self) -> str:
        return f"path={self.path!r}"
