"""The tableaus of the Runge-Kutta methods, against the order conditions, SciPy's tables and torchdiffeq's steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from scipy.integrate import RK23, RK45
from torch import Tensor

import genmatch as gm
from genmatch.random import Draws
from genmatch.solvers import (
    RK4,
    BogackiShampine,
    DormandPrince,
    Euler,
    Field,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    TorchDiffEq,
)

METHODS = [Euler(), Midpoint(), Ralston(), Heun(), BogackiShampine(), RK4(), DormandPrince()]
Tree = tuple  # a rooted tree is the sorted tuple of the subtrees at its root
COUNTS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 9, 6: 20}  # how many of them have so many nodes


def size(tree: Tree) -> int:
    return 1 + sum(size(child) for child in tree)


def trees(nodes: int) -> list[Tree]:
    """All rooted trees with so many nodes."""
    found = set()
    for sizes in partitions(nodes - 1, nodes - 1):
        for children in itertools.product(*(trees(n) for n in sizes)):
            found.add(tuple(sorted(children)))
    return sorted(found)


def partitions(total: int, largest: int) -> list[tuple[int, ...]]:
    if total == 0:
        return [()]
    return [(n, *rest) for n in range(min(total, largest), 0, -1) for rest in partitions(total - n, n)]


def density(tree: Tree) -> int:
    """gamma: the product of the sizes of all its subtrees."""
    return size(tree) * math.prod(density(child) for child in tree)


def weights(matrix: Tensor, tree: Tree) -> Tensor:
    """The elementary weights of the stages."""
    value = torch.ones(len(matrix), dtype=torch.float64)
    for child in tree:
        value = value * (matrix @ weights(matrix, child))
    return value


def residuals(method, order: int) -> list[float]:
    """sum_j b_j phi_j - 1 / gamma for every tree of an order (Butcher 2016, Theorem 313A)."""
    rows = [[*row, *[0.0] * (len(method.b) - len(row))] for row in method.a]
    matrix, b = torch.tensor(rows, dtype=torch.float64), torch.tensor(method.b, dtype=torch.float64)
    return [(b @ weights(matrix, tree)).item() - 1 / density(tree) for tree in trees(order)]


def order(method) -> int:
    """The order up to which all conditions hold."""
    held = itertools.takewhile(lambda p: max(map(abs, residuals(method, p))) < 1e-13, range(1, 7))
    return max(held, default=0)


def test_the_trees_are_all_there() -> None:
    assert {n: len(trees(n)) for n in COUNTS} == COUNTS


def test_all_methods_are_here() -> None:
    ours = {kind for kind in RungeKutta.__subclasses__() if kind.__module__.startswith("genmatch.")}
    assert ours == {type(method) for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_order_conditions_hold_to_the_order_claimed_and_no_further(method: RungeKutta) -> None:
    assert order(method) == method.order
    for row, c in zip(method.a, method.c, strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    assert len(method.b) == len(method.a) == len(method.c)


@pytest.mark.parametrize("method", METHODS[1:], ids=repr)
def test_any_wrong_entry_is_found(method: RungeKutta) -> None:
    """The control: one entry of a or b off by a hundredth."""

    def bent(row: Sequence[float], at: int) -> tuple[float, ...]:
        return tuple(value + 0.01 * (i == at) for i, value in enumerate(row))

    for at in range(len(method.b)):
        assert order(SimpleNamespace(a=method.a, b=bent(method.b, at))) < method.order
    for which, row in enumerate(method.a):
        for at in range(len(row)):
            a = tuple(bent(r, at) if i == which else r for i, r in enumerate(method.a))
            assert order(SimpleNamespace(a=a, b=method.b)) < method.order, (which, at)


@pytest.mark.parametrize(("method", "theirs"), [(BogackiShampine(), RK23), (DormandPrince(), RK45)], ids=repr)
def test_scipy_has_the_same_pairs(method: RungeKutta, theirs) -> None:
    assert list(method.c) == pytest.approx(list(theirs.C), abs=1e-15)
    assert list(method.b) == pytest.approx(list(theirs.B), abs=1e-15)
    for ours, row in zip(method.a, theirs.A, strict=True):
        assert list(ours) == pytest.approx(list(row[: len(ours)]), abs=1e-15)


class Bent(torch.nn.Module):
    """A field that is linear in nothing."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(2 * x) + x.flip(-1) * torch.cos(3 * t)[:, None]


@pytest.mark.parametrize(
    ("method", "theirs"),
    [(BogackiShampine(), "bosh3"), (DormandPrince(), "dopri5"), (Midpoint(), "midpoint")],
    ids=repr,
)
def test_torchdiffeq_makes_the_same_step(method: RungeKutta, theirs: str) -> None:
    """One step that is accepted whatever its error."""
    flow = gm.Flow(gm.predict.Velocity(Bent(), gm.GaussianPath()))
    x, times = Draws(0, 8).normal((8, 2), torch.float64), torch.tensor([0.2, 0.5], dtype=torch.float64)
    forced = {} if theirs == "midpoint" else {"first_step": 0.3, "min_step": 0.3}
    other = TorchDiffEq(theirs, options=forced)
    states = [gm.sample(flow, x, times=times, solver=solver) for solver in (method, other)]
    torch.testing.assert_close(*states, rtol=1e-13, atol=1e-13)
    assert (states[0] - x).abs().max() > 0.1


def test_methods_without_a_stage_at_the_end_do_not_look_there() -> None:
    field = Field(gm.Flow(gm.predict.Velocity(Bent(), gm.GaussianPath())), torch.zeros(1, 2))
    for method in (Midpoint(), Ralston(), BogackiShampine()):
        (step,) = method.plan(field, torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert max(instant.t for instant in step.instants) < 1
