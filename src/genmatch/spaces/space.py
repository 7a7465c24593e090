r"""Where a state lives, and how it moves.

A space turns the value of a generator into a random move over a time h. Everything above it is linear in the triplet;
this is one of the two places that are not (the other is the divergence a network is trained with).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..random import AREA, BROWNIAN, Draws, fusible, kernels
from ..schedules import Number
from ..triplet import Triplet, second_order
from .states import State, all_finite

__all__ = ["AREA", "BROWNIAN", "Euclidean", "Space", "Tokens", "check_drift", "check_variance"]


class Space(ABC):
    """Where a state ``(B, *S)`` lives.

    Attributes
    ----------
    parts
        Which parts of a triplet can move a state here.
    discrete
        Whether states are integers.
    """

    parts: frozenset[str]
    discrete: bool = False

    @abstractmethod
    def check(self, x: State) -> None:
        """Raise unless ``x`` has the dtype and (outside a compiled graph and on a CPU) the values of a state here."""

    @abstractmethod
    def brownian(self, x: State, draws: Draws) -> State:
        """Standard Brownian noise at ``x``: drawn once per step and shared between the stages of the step."""

    @abstractmethod
    def move(self, x: State, triplet: Any, h: Number, draws: Draws, noise: State | None = None) -> State:
        """The state after a time ``h`` with the parts of ``triplet`` frozen.

        ``noise`` is what :meth:`brownian` gave; it is drawn here if it is missing and needed.
        """

    @abstractmethod
    def second_order(self, function: Callable[[Tensor], Tensor], x: State, variance: Tensor) -> Tensor:
        r"""The second-order part of a generator, :math:`\tfrac12\Sigma\cdot\nabla^2 f` at ``x``, ``(B,)``."""


def root(variance: Tensor) -> Tensor:
    """The root of a variance, with the derivative 0 where it is 0."""
    if not (torch.is_grad_enabled() and variance.requires_grad):
        return variance.sqrt()
    none = variance == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, variance).sqrt())


def check_drift(drift: Tensor, x: Tensor) -> None:
    """Raise unless a drift has the shape of the state."""
    if drift.shape != x.shape:
        raise ValueError(f"a drift has the shape {tuple(x.shape)} of the state, got {tuple(drift.shape)}")


def check_variance(variance: Number, x: Tensor) -> None:
    """Raise unless a variance (perhaps times a step) broadcasts along the batch; a number must be at least 0."""
    if not isinstance(variance, Tensor):
        if variance < 0:
            raise ValueError(f"a variance must be at least 0, got {variance} in a step")
        return
    if variance.ndim not in (0, x.ndim):
        raise ValueError(
            f"a variance is a number or has shape (B, *S) or (B, 1, ..., 1) for a state of shape "
            f"{tuple(x.shape)}, got {tuple(variance.shape)}: it would be read along a feature"
        )
    if torch.broadcast_shapes(variance.shape, x.shape) != x.shape:
        raise ValueError(
            f"a variance must broadcast to the state's shape {tuple(x.shape)}, got {tuple(variance.shape)}"
        )


@dataclass(frozen=True)
class Euclidean(Space):
    r"""R^d, any shape: :math:`x + h\,b + \sqrt{h\,\Sigma}\,z`, then jumps."""

    parts = frozenset({"drift", "variance", "rates"})

    def check(self, x: Tensor) -> None:
        if not x.is_floating_point():
            images = " (8-bit images go to [-1, 1]: x / 127.5 - 1, or gm.likelihood.dequantise)" * (
                x.dtype == torch.uint8
            )
            raise TypeError(f"a continuous state must be floating point, got {x.dtype}: call .float() on it{images}")
        if x.ndim < 1:
            raise ValueError("a state has shape (B, *S), got a scalar")
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and not all_finite(x):
            bad = int((~x.isfinite()).sum())
            raise ValueError(f"the state has {bad} non-finite values of {x.numel()}: check the data for NaN")

    def brownian(self, x: Tensor, draws: Draws) -> Tensor:
        own = draws.fork(BROWNIAN)
        if x.is_cuda and fusible(x, own):
            return kernels().normal(x, own)
        return own.normal(x.shape, x.dtype)

    def move(self, x: Tensor, triplet: Triplet, h: Number, draws: Draws, noise: Tensor | None = None) -> Tensor:
        if triplet.drift is not None:
            check_drift(triplet.drift, x)
            x = x + h * triplet.drift
        if triplet.variance is not None:
            variance = h * triplet.variance
            check_variance(triplet.variance, x)
            z = self.brownian(x, draws) if noise is None else noise
            x = x + (root(variance) if isinstance(variance, Tensor) else math.sqrt(variance)) * z
        return x if triplet.rates is None else triplet.rates.leap(x, h, draws)

    def second_order(self, function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
        return second_order(function, x, variance)


@dataclass(frozen=True)
class Tokens(Space):
    r"""Sequences of tokens 0 .. K - 1 and of ids beside them (mask, padding), each position jumping on its own.

    A position jumps with probability :math:`1 - e^{-h\lambda}`: with the rates frozen that is exact.
    """

    vocabulary: int
    extras: tuple[int, ...] = ()
    parts = frozenset({"rates"})
    discrete = True

    def check(self, x: Tensor) -> None:
        if x.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
            raise TypeError(f"tokens must be integers, got {x.dtype}: call .long() on them")
        largest = max(self.vocabulary - 1, *self.extras) if self.extras else self.vocabulary - 1
        if torch.iinfo(x.dtype).max < largest:
            raise TypeError(f"{x.dtype} cannot hold the id {largest}: call .long() on the tokens")
        if x.ndim < 1:
            raise ValueError("a state has shape (B, *S), got a scalar")
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            known = (x >= 0) & (x < self.vocabulary)
            for extra in self.extras:
                known |= x == extra
            if not bool(known.all()):
                also = f" or {', '.join(map(str, self.extras))}" if self.extras else ""
                raise ValueError(
                    f"tokens must be in [0, {self.vocabulary}){also}, got {int(x[~known][0])}: "
                    "is the vocabulary given to the path the data's?"
                )

    def brownian(self, x: Tensor, draws: Draws) -> Tensor:
        raise TypeError("tokens have no Brownian noise: they move by rates alone")

    def move(self, x: Tensor, triplet: Triplet, h: Number, draws: Draws, noise: Tensor | None = None) -> Tensor:
        return x if triplet.rates is None else triplet.rates.leap(x, h, draws)

    def second_order(self, function: Callable[[Tensor], Tensor], x: Tensor, variance: Tensor) -> Tensor:
        raise TypeError("tokens have no Brownian noise: they move by rates alone")
