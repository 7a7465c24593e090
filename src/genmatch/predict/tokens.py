r"""The predictor of mixture paths: a posterior over data tokens at every position."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..divergences import CrossEntropy, Divergence, GeneralisedKL
from ..paths import MixtureInstant, MixturePath
from ..schedules import Number
from . import clocks
from .predictor import Learned, check_parts

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

    def chance(self, x: Tensor) -> Tensor:
        r""":math:`p_{1|t}(x^i\,|\,x)`: how likely it is that a position of the state shows its data, ``(B, *S)``.

        1 where a token shows on a masked path, 0 at masks and at padding. In float32 at least.
        """
        path: MixturePath = self.model.path
        dtype = torch.promote_types(self.native.dtype, torch.float32)
        shows = path.shows(x)
        if path.mask is not None and shows is not None:
            return shows.to(dtype)
        inside = x.clamp(0, path.vocabulary - 1).long()[..., None]
        here = (self.native.gather(-1, inside).squeeze(-1).to(dtype) - self.native.to(dtype).logsumexp(-1)).exp()
        return here if shows is None else here * shows


class Tokens(Learned):
    r"""The network predicts logits of the data token at each position of a mixture path.

    Parameters
    ----------
    network
        Called as ``network(x, t, **condition)`` with tokens x ``(B, *S)``, the mask id among them on a masked path;
        returns logits ``(B, *S, K)`` over the K data tokens.
    path
        The :class:`~genmatch.MixturePath` it is trained on.
    time
        As for the other predictors.
    divergence
        :class:`~genmatch.divergences.CrossEntropy` (the default) trains the posterior.
        :class:`~genmatch.divergences.GeneralisedKL` trains the rates, with the same best network: a position's loss is
        the divergence of the rates given the data from the network's,

        .. math:: \sum_{y\ne x} D\bigl(Q^z(y, x), Q^\theta(y, x)\bigr) = \frac{\dot\kappa}{1-\kappa}
           \begin{cases} -\log p^\theta(z) - p^\theta(x) & x \ne z \\ 1 - p^\theta(x) & x = z \end{cases}

        on a masked path :math:`-\frac{\dot\kappa}{1-\kappa}\log p^\theta(z)` at the masks. Its mean over uniform t,
        summed over positions, bounds :math:`-\log p^\theta_1(z)` from above, in nats: it is the divergence of the two
        processes. The hazard is infinite at t = 1, so that time is refused; on an unmasked path a network whose
        :math:`1 - p^\theta(x)` does not vanish like :math:`1 - \kappa` has an infinite divergence, and is trained up to
        ``time=gm.times.Uniform(high=0.999)``, say.
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

    def inputs(self, x: Tensor, instant: MixtureInstant) -> Tensor:
        """The tokens."""
        return x

    def checked(self, output: Tensor, x: Tensor) -> Tensor:
        """The logits ``(B, *S, K)``."""
        if output.shape != (*x.shape, self.path.vocabulary):
            raise ValueError(
                f"the network returned shape {tuple(output.shape)} for tokens of shape {tuple(x.shape)}: it needs "
                f"{(*x.shape, self.path.vocabulary)}, one logit for each of the {self.path.vocabulary} data tokens "
                "(none for the mask)"
            )
        return output

    def prediction(self, x: Tensor, instant: MixtureInstant, native: Tensor) -> TokenPrediction:
        """The readings of ``native``."""
        return TokenPrediction(self, x, instant, native)

    def blank(self, x: Tensor) -> Tensor:
        """Zero logits, one number in memory."""
        return torch.zeros((), device=x.device).expand(*x.shape, self.path.vocabulary)

    def target(self, x0: Tensor, x1: Tensor, instant: MixtureInstant) -> Tensor:
        """The data tokens; padding stands in as token 0 and carries no loss."""
        return x1 if self.path.padding is None else torch.where(x1 == self.path.padding, 0, x1)

    def error(self, native: Tensor, x: Tensor, x0: Tensor, x1: Tensor, instant: MixtureInstant) -> Tensor:
        """The divergence of the data tokens from the logits, or of the rates given the data from the network's."""
        target = self.target(x0, x1, instant)
        if not isinstance(self.divergence, GeneralisedKL):
            return self.divergence(target, native)
        return _hazard(instant) * _rate_divergence(target, native, x, self.path)

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


def _rate_divergence(target: Tensor, native: Tensor, x: Tensor, path: MixturePath) -> Tensor:
    """The generalised Kullback-Leibler divergence of rates to other tokens than x, for a hazard of 1, ``(B, *S)``."""
    entropy = CrossEntropy()(target, native)
    if path.mask is not None:
        return entropy  # where a mask shows; elsewhere nothing is scored
    here = torch.where(x == path.padding, 0, x) if path.padding is not None else x
    stays = (-CrossEntropy()(here, native)).exp()
    return torch.where(here == target, 1.0, entropy) - stays


def _hazard(instant: MixtureInstant) -> Number:
    hazard = instant.hazard
    if not isinstance(hazard, Tensor):
        infinite = not math.isfinite(hazard)
    elif hazard.device.type == "cpu" and not torch.compiler.is_compiling():
        infinite = not bool(hazard.isfinite().all())
    else:  # reading the values would make a GPU wait
        infinite = False
    if infinite:
        raise ValueError("rates are trained at t < 1: the hazard kappa'/(1 - kappa) is infinite where kappa is 1")
    return hazard
