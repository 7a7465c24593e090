"""Pairings: optimal transport against every permutation; the data and their conditions stay in place."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from closed_forms import F64, subclasses
from hypothesis import given, settings
from hypothesis import strategies as st

import genmatch as gm
from genmatch.couplings import OT, Coupling, Given, Independent
from genmatch.random import Draws

EXAMPLES = [Independent(), OT(), Given()]


def pair(coupling: Coupling, x0: torch.Tensor, x1: torch.Tensor, condition=None):
    return coupling(x0, x1, condition, Draws(0, len(x1)))


def cost(x0: torch.Tensor, x1: torch.Tensor) -> float:
    return float(((x0.double() - x1.double()) ** 2).sum())


def test_every_coupling_is_covered():
    assert {type(c) for c in EXAMPLES} == set(subclasses(Coupling))


@pytest.mark.parametrize("coupling", EXAMPLES, ids=repr)
def test_marginals_are_kept_and_data_stay(coupling: Coupling):
    x0, x1 = Draws(1, 9).normal((9, 2)), Draws(2, 9).normal((9, 2))
    condition = {"label": torch.arange(9)}
    y0, y1, kept = pair(coupling, x0, x1, condition)
    assert y1 is x1
    assert kept is condition
    assert sorted(map(tuple, y0.tolist())) == sorted(map(tuple, x0.tolist()))  # each source sample exactly once
    if not isinstance(coupling, OT):
        assert y0 is x0
    assert coupling.independent == isinstance(coupling, Independent)


@given(batch=st.integers(1, 6), size=st.integers(1, 3), seed=st.integers(0, 10**6), shift=st.floats(-1e4, 1e4))
@settings(max_examples=60)
def test_optimal_transport_is_the_best_permutation(batch, size, seed, shift):
    x0 = Draws(seed, batch).normal((batch, size), F64) + shift
    x1 = Draws(seed, batch).fork(1).normal((batch, size), F64) * 2 + shift
    y0, _, _ = pair(OT(), x0, x1)
    best = min(cost(x0[list(order)], x1) for order in itertools.permutations(range(batch)))
    assert cost(y0, x1) == pytest.approx(best, rel=1e-9, abs=1e-9)


@given(batch=st.integers(1, 40), seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_it_never_costs_more_than_the_pairs_as_they_came(batch, seed):
    x0, x1 = Draws(seed, batch).normal((batch, 3)), Draws(seed, batch).fork(1).normal((batch, 3))
    assert cost(pair(OT(), x0, x1)[0], x1) <= cost(x0, x1) * (1 + 1e-6)


def test_it_does_pair_the_near_ones():
    x1 = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
    x0 = torch.tensor([[29.0], [1.0], [21.0], [9.0]])
    assert pair(OT(), x0, x1)[0].flatten().tolist() == [1, 9, 21, 29]
    # In one dimension optimal pairs are sorted.
    x0, x1 = Draws(1, 50).normal((50, 1)), Draws(2, 50).normal((50, 1))
    y0 = pair(OT(), x0, x1)[0]
    assert torch.equal(y0[x1[:, 0].argsort()], x0.sort(0).values)


def test_a_far_away_pair_of_clouds_in_float32():
    # Products of coordinates near 1e4 have no digits left for the differences: centring keeps them.
    x0 = Draws(1, 6).normal((6, 2)) + 1e4
    x1 = Draws(2, 6).normal((6, 2)) + 1e4
    best = min(cost(x0[list(order)], x1) for order in itertools.permutations(range(6)))
    assert cost(pair(OT(), x0, x1)[0], x1) == pytest.approx(best, rel=1e-6)
    naive = (x1 @ x0.T).double()
    exact = x1.double() @ x0.double().T
    assert float((naive - exact).abs().max()) > 1


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 1, 4, 4), (5, 2, 3), (1, 2)])
def test_any_shape_of_data(shape: tuple[int, ...]):
    x0, x1 = Draws(1, shape[0]).normal(shape), Draws(2, shape[0]).normal(shape)
    y0, y1, _ = pair(OT(), x0, x1)
    assert y0.shape == y1.shape == shape
    flat = pair(OT(), x0.reshape(shape[0], math.prod(shape[1:])), x1.reshape(shape[0], math.prod(shape[1:])))[0]
    assert torch.equal(y0.reshape(flat.shape), flat)


def test_gradients_pass_to_the_samples():
    x0 = Draws(1, 5).normal((5, 2)).requires_grad_()
    y0, _, _ = pair(OT(), x0, Draws(2, 5).normal((5, 2)))
    y0.sum().backward()
    assert torch.equal(x0.grad, torch.ones(5, 2))


def test_labels_stay_with_their_data_in_a_loss():
    class Net(torch.nn.Module):
        def forward(self, x, t, label):
            seen.append(label)
            return 0 * x

    seen: list[torch.Tensor] = []
    x1 = Draws(2, 8).normal((8, 2))
    model = gm.predict.Data(Net(), gm.GaussianPath(coupling=OT()))
    labels = torch.arange(8)
    loss = gm.matching_loss(model, x1, condition={"label": labels}, seed=0, reduction="none")
    assert torch.equal(seen[0], labels)
    torch.testing.assert_close(loss, (x1**2).mean(1))  # sample i still stands for datum i


def test_couplings_compare_by_value():
    assert OT() == OT() != Independent()
    assert hash(OT()) == hash(OT())
    assert repr(OT()) == "OT()"
    assert gm.GaussianPath(coupling=OT()) == gm.GaussianPath(coupling=OT()) != gm.GaussianPath()


@pytest.mark.parametrize(
    ("x0", "x1", "error", "message"),
    [
        (
            torch.tensor([[math.nan], [0.0]]),
            torch.zeros(2, 1),
            ValueError,
            "non-finite samples: check the data for NaN",
        ),
        (torch.zeros(2, 1), torch.tensor([[math.inf], [0.0]]), ValueError, "non-finite samples"),
        (torch.zeros(2, 1).long(), torch.zeros(2, 1), TypeError, "pairs continuous states, got torch.int64"),
        (
            torch.zeros(3, 1),
            torch.zeros(2, 1),
            ValueError,
            r"must have one shape \(B, \*S\), got \(3, 1\) and \(2, 1\)",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 1), ValueError, "must have one shape"),
    ],
    ids=["nan", "inf", "int", "batch", "size"],
)
def test_bad_input(x0, x1, error, message):
    with pytest.raises(error, match=message):
        pair(OT(), x0, x1)
