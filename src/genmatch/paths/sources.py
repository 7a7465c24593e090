"""Sources: the law of x0, the start of a path. Each draws from counter-based numbers, so sample i is always the same.

Anything with a method ``draw(shape, draws)`` is a source: the toys of :mod:`genmatch.data` are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..couplings import Coupling
from ..random import Draws

__all__ = ["Empirical", "Masked", "Normal", "Source", "UniformTokens"]


@runtime_checkable
class Source(Protocol):
    """What a path can start from."""

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Samples of ``shape`` ``(B, *S)``, a pure function of ``draws``, on its device."""
        ...


def check_ends(source: Any, coupling: Any) -> None:
    """Raise unless the source can draw and the coupling is one."""
    if isinstance(source, type) or not isinstance(source, Source):
        what = f"the class {source.__name__}: call it" if isinstance(source, type) else type(source).__name__
        raise TypeError(f"source must be a tensor of samples or have a method draw(shape, draws), got {what}")
    if not isinstance(coupling, Coupling):
        what = f"the class {coupling.__name__}: call it" if isinstance(coupling, type) else type(coupling).__name__
        raise TypeError(f"coupling must be a genmatch Coupling, got {what}")
    if not isinstance(getattr(coupling, "independent", None), bool):
        raise TypeError(
            f"{type(coupling).__name__} must say whether source and data are independent under it: set the class "
            "attribute independent to True or False, as a score is read off a velocity only where they are"
        )


class Normal:
    """Standard normal noise, the source under which data, noise, score and velocity are readings of one another."""

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Standard normals of ``shape``."""
        return draws.normal(shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Normal)

    def __hash__(self) -> int:
        return hash(Normal)

    def __repr__(self) -> str:
        return "Normal()"


class Empirical:
    """Rows of a tensor ``(N, *S)``, drawn with replacement: data-to-data paths, reflow, coupled data."""

    def __init__(self, samples: Tensor) -> None:
        if samples.ndim < 1 or not len(samples):
            raise ValueError(f"an empirical source needs at least one row, got shape {tuple(samples.shape)}")
        self.samples = samples

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Rows of the tensor, as a batch of ``shape``."""
        if tuple(shape[1:]) != tuple(self.samples.shape[1:]):
            raise ValueError(
                f"the source has samples of shape {tuple(self.samples.shape[1:])}, asked for {tuple(shape[1:])}"
            )
        rows = draws.integers((shape[0],), len(self.samples))
        return self.samples.to(draws.device)[rows]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Empirical) and other.samples is self.samples

    def __hash__(self) -> int:
        return hash((Empirical, id(self.samples)))

    def __repr__(self) -> str:
        return f"Empirical({tuple(self.samples.shape)})"


class Masked:
    """The mask at every position."""

    def __init__(self, mask: int) -> None:
        self.mask = mask

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Masks of ``shape``, int64."""
        return torch.full(tuple(shape), self.mask, dtype=torch.int64, device=draws.device)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masked) and other.mask == self.mask

    def __hash__(self) -> int:
        return hash((Masked, self.mask))

    def __repr__(self) -> str:
        return f"Masked({self.mask})"


class UniformTokens:
    """A uniformly random token at every position."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def draw(self, shape: Sequence[int], draws: Draws) -> Tensor:
        """Tokens of ``shape``, int64."""
        return draws.integers(shape, self.vocabulary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UniformTokens) and other.vocabulary == self.vocabulary

    def __hash__(self) -> int:
        return hash((UniformTokens, self.vocabulary))

    def __repr__(self) -> str:
        return f"UniformTokens({self.vocabulary})"
