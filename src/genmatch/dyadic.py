r"""Values of a Brownian tree along the steps of a run: which intervals are halved, and what is remembered.

Time is counted in ticks of ``2**-depth``. Node n is an interval: the root 1 is [0, 1], and the halves of n are 2n and
2n + 1. See :mod:`genmatch.brownian` for the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from .random import Draws

__all__ = ["Course", "Pair", "Walk", "halve", "join"]

ROOT = 1  # its own values are the normals of 0, those that halve node n the normals of n
LOOKAHEAD = 1 << 15  # normals made at once for the coming nodes: small states pay one call for many nodes
ROOTS = (math.sqrt(0.5), math.sqrt(6) / 4, math.sqrt(2) / 4)

Pair = tuple[Tensor, Tensor]  # w and k of an interval


class Course:
    """The steps of one run in units of ``2**-depth``, and a walk for each kind of numbers asked for."""

    __slots__ = ("_walks", "depth", "direction", "ticks")

    def __init__(self, depth: int, ticks: list[int]) -> None:
        self.depth, self.ticks = depth, ticks
        self.direction = 1 if ticks[0] < ticks[1] else -1
        self._walks: dict[tuple, Walk] = {}

    def __len__(self) -> int:
        return len(self.ticks) - 1

    def span(self, step: int) -> tuple[int, int]:
        """The lower and the higher end of a step."""
        if step >= len(self):
            raise ValueError(
                f"Brownian noise was asked for step {step} of a run of {len(self)} steps: a tree knows its times alone"
            )
        a, b = self.ticks[step], self.ticks[step + 1]
        return min(a, b), max(a, b)

    def pair(self, nodes: Draws, step: int, shape: tuple[int, ...], dtype: torch.dtype) -> Pair:
        """(w, k) of a step, made by the walk of these nodes and this shape."""
        self.span(step)
        work = torch.float64 if dtype == torch.float64 else torch.float32
        key = (nodes.stream, shape, work)
        if key not in self._walks:
            self._walks[key] = Walk(self, nodes, shape, work)
        return self._walks[key].pair(step)

    def tour(self, step: int, stack: list[int]) -> Iterator[tuple[int, int]]:
        """(node, -1) for what lies behind a step, (node, 1) for a piece of it, (node, 0) for what is halved.

        ``stack`` holds the nodes not halved yet that cover what is ahead, the nearest last.
        """
        low, high = self.span(step)
        while stack:
            node = stack[-1]
            level = node.bit_length() - 1
            width = 1 << (self.depth - level)
            start = (node - (1 << level)) * width
            before, after = start + width <= low, start >= high
            if after if self.direction > 0 else before:
                return
            stack.pop()
            if before or after:
                yield node, -1
            elif low <= start and start + width <= high:
                yield node, 1
            else:
                stack += [2 * node + 1, 2 * node] if self.direction > 0 else [2 * node, 2 * node + 1]
                yield node, 0


class Walk:
    """The values of the steps in turn, from those of the nodes ahead that were not halved yet.

    These are a memo: a question about what lies behind begins again at the root, and finds the same values.
    """

    def __init__(self, course: Course, nodes: Draws, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.course, self.nodes, self.shape, self.dtype = course, nodes, (*shape, 2), dtype
        self.at_once = max(1, LOOKAHEAD // max(1, math.prod(self.shape)))
        self.step = len(course)

    def pair(self, step: int) -> Pair:
        """(w, k) of a step."""
        if step == self.step:
            return self.known
        if step < self.step:
            self.stack, self.fresh = [ROOT], {}
            self.values = {ROOT: self._normals(0, step)}
        self.step = len(self.course)  # if this is interrupted the next question begins again
        pieces = []
        for node, place in self.course.tour(step, self.stack):
            pair = self.values.pop(node)
            if place > 0:
                pieces.append((node, pair))
            elif place == 0:
                self.values[2 * node], self.values[2 * node + 1] = halve(pair, self._normals(node, step))
        self.known: Pair = join(pieces[:: self.course.direction], self.course, step)
        self.step = step
        return self.known

    def _normals(self, node: int, step: int) -> Pair:
        """The two fresh normals of a node; for small states those of the coming nodes are made in the same call."""
        if node not in self.fresh:
            stack = list(self.stack)
            halved = (n for s in range(step, len(self.course)) for n, place in self.course.tour(s, stack) if place == 0)
            coming = [node, *islice(halved, self.at_once - 1)]
            self.fresh = dict(zip(coming, self.nodes.normals(coming, self.shape, self.dtype).unbind(0), strict=True))
        first, second = self.fresh.pop(node).unbind(-1)
        return first, second


def halve(pair: Pair, fresh: Pair) -> tuple[Pair, Pair]:
    """(w, k) of the two halves of an interval.

    Products and sums are rounded one by one, nothing is fused, so that the bits are the same for every shape.
    """
    (w, k), (z1, z2) = pair, fresh
    mean, change = w * ROOTS[0], (k * ROOTS[1]).add_(z1 * ROOTS[2])
    area, change_of_area = (k * ROOTS[2]).sub_(z1 * ROOTS[1]), z2 * ROOTS[0]
    return (mean + change, area + change_of_area), (mean - change, area - change_of_area)


def join(pieces: list[tuple[int, Pair]], course: Course, step: int) -> Pair:
    """(w, k) of a step from those of its pieces, in the order of time."""
    low, high = course.span(step)
    w: Tensor | None = None
    k: Tensor | None = None
    for node, (own_w, own_k) in pieces:
        level = node.bit_length() - 1
        width = 1 << (course.depth - level)
        share = width / (high - low)
        start = (node - (1 << level)) * width
        lever = math.sqrt(12 * share) * (low + high - 2 * start - width) / (2 * (high - low))
        term = own_k * share**1.5
        if lever:
            term.add_(own_w * lever)
        k = term if k is None else k.add_(term)
        term = own_w * (course.direction * math.sqrt(share))
        w = term if w is None else w.add_(term)
    return w, k  # type: ignore[return-value]
