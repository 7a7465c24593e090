"""What a conditional probability path is: a source, a pairing of source and data, and a state between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..couplings import Coupling
from ..random import Draws
from ..spaces import Space
from ..spaces.states import State, each, first
from .sources import Source

__all__ = ["NOISY", "Path", "check_pair", "read_time"]

SOURCE, PAIRING, BETWEEN = 4, 5, 6  # streams of a path's draws
NOISY = 0.05  # alpha / sigma, or kappa, up to which the source stands for the path


class Path(ABC):
    r"""The conditional law :math:`p_t(\cdot\,|\,x_0, x_1)` between a source sample and a data sample.

    The path owns source and coupling because what may be read off a network depends on them. A subclass sets ``space``,
    ``source`` and ``coupling`` and writes :meth:`at`, :meth:`between` and :meth:`prior`.
    """

    space: Space
    source: Source
    coupling: Coupling

    @abstractmethod
    def at(self, t: Tensor, until: Tensor | None = None) -> Any:
        """The path's numbers at a vector of times, as a tuple of tensors with ``rows`` and ``broadcast``.

        ``until`` are the ends of the steps that start at ``t``: rates are then averages over the step.
        """

    @abstractmethod
    def between(self, x0: State, x1: State, instant: Any, draws: Draws) -> State:
        """A state :math:`x_t` given both ends; ``draws`` for paths that are random given both ends."""

    @abstractmethod
    def prior(self, x0: State, instant: Any) -> State:
        """The state that a sampler starts from at ``instant``, near t = 0, made of a source sample alone."""

    @abstractmethod
    def why_not_noise(self, instant: Any) -> str:
        """Why a sample of the source does not stand for one of :math:`p_t`; empty near enough to t = 0."""

    def instant(self, t: Any, x: State) -> Any:
        """The path's numbers at a user's time, as :func:`read_time` makes them."""
        return read_time(self, t, x)

    def sample(self, x0: State, x1: State, t: Any, draws: Draws | None = None) -> State:
        """A state at time ``t`` between ``x0`` and ``x1``, both ``(B, *S)``; ``t`` a number or ``(B,)``."""
        self.space.check(x0)
        self.space.check(x1)
        each(check_pair, x0, x1)
        if draws is None:
            draws = Draws(None, len(first(x1)), device=first(x1).device)
        return self.between(x0, x1, self.instant(t, x1), draws.fork(BETWEEN))

    def draw_source(self, shape: Any, draws: Draws) -> State:
        """Samples of the source, ``shape`` ``(B, *S)``, or a dict of shapes on a product."""
        return self.source.draw(shape, draws.fork(SOURCE))

    def pair(
        self, x0: State, x1: State, condition: Mapping[str, Tensor] | None, draws: Draws
    ) -> tuple[State, State, Mapping[str, Tensor] | None]:
        """Source and data as the coupling pairs them, conditions carried along."""
        return self.coupling(x0, x1, condition, draws.fork(PAIRING))


def read_time(owner: Any, t: Any, x: State) -> Any:
    """The numbers ``owner.at`` gives for a user's time: a float, a 0-d tensor, or ``(B,)`` for B samples.

    Numbers of a float are host floats; those of a ``(B,)`` tensor broadcast along the batch of ``x``, never along a
    feature. An instant passes through.
    """
    if hasattr(t, "broadcast"):
        return t
    if isinstance(t, Mapping):
        if not hasattr(owner, "each"):
            raise TypeError("a dict of times is for a product path: give one time, a number or (B,)")
        return owner.each(t, x)
    if isinstance(t, Tensor):
        like = first(x)
        work = torch.promote_types(t.dtype, like.dtype if like.is_floating_point() else torch.float32)
        work = torch.promote_types(work, torch.float32)
        if t.ndim == 0:
            _check_times(t)
            return owner.at(t.to(work))
        if t.shape != like.shape[:1]:
            raise ValueError(
                f"t must be a number or have shape ({like.shape[0]},), one time for each sample, got {tuple(t.shape)}"
            )
        if not t.is_floating_point():
            raise TypeError(f"t must be floating point, got {t.dtype}: times are in [0, 1]")
        _check_times(t)
        return owner.at(t.to(work)).broadcast(x)
    if isinstance(t, bool) or not isinstance(t, (int, float)):
        raise TypeError(f"t must be a number or a tensor, got {type(t).__name__}")
    if not 0 <= t <= 1:
        raise ValueError(f"t must be in [0, 1], got {t}: 0 is noise, 1 is data")
    return owner.at(torch.tensor([t], dtype=torch.float64)).rows()[0]


def check_pair(x0: Tensor, x1: Tensor) -> None:
    """Raise unless source and data are batches of one shape on one device."""
    if x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must have one shape (B, *S), got {tuple(x0.shape)} and {tuple(x1.shape)}")
    if x0.device != x1.device:
        raise ValueError(f"x0 and x1 must be on one device, got {x0.device} and {x1.device}: move one with .to(...)")


def _check_times(t: Tensor) -> None:
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        return  # reading the values would make a GPU wait
    # vmap and jvp hide the values, and pass times that were checked before.
    if torch._C._functorch.is_functorch_wrapped_tensor(t):  # type: ignore[attr-defined]
        return
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t must be in [0, 1], got {t.min().item():g} to {t.max().item():g}: 0 is noise, 1 is data")
