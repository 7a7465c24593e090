"""Pairings: optimal transport against every permutation; the data and their conditions stay in place."""

from __future__ import annotations

import itertools
import math
import threading
import time

import pytest
import torch
from closed_forms import F64, subclasses
from hypothesis import given, settings
from hypothesis import strategies as st

import genmatch as gm
from genmatch import couplings
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


def ring(count: int) -> torch.Tensor:
    """Points around eight centres: many samples want the same partners."""
    angles = Draws(4, count).integers((count,), 8) * (math.pi / 4)
    return 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * Draws(5, count).normal((count, 2))


LARGE = {
    "ring": lambda n: (Draws(1, n).normal((n, 2)), ring(n)),
    "line": lambda n: (Draws(1, n).normal((n, 1)), Draws(2, n).normal((n, 1)) ** 3),
    "many dimensions": lambda n: (Draws(1, n).normal((n, 64)), Draws(2, n).normal((n, 64)).sign()),
    "all alike": lambda n: (Draws(1, n).normal((n, 2)), torch.ones(n, 2)),
    "copies": lambda n: (Draws(1, n).normal((n, 2)), ring(n)[torch.arange(n) // 3]),
    "one far away": lambda n: (Draws(1, n).normal((n, 2)), torch.cat([ring(n - 1), torch.full((1, 2), 1e6)])),
    "enormous": lambda n: (Draws(1, n).normal((n, 2)) * 1e18, ring(n) * 1e18),
    "tiny": lambda n: (Draws(1, n).normal((n, 2)) * 1e-18, ring(n) * 1e-18),
}


@pytest.mark.parametrize("batch", [couplings._PRICED, 301])
@pytest.mark.parametrize("case", LARGE)
def test_prices_leave_the_pairing_optimal(case, batch, monkeypatch):
    # From here on prices are found first. Any are right: what is tested is that the total is as small as without.
    x0, x1 = (x.double() for x in LARGE[case](batch))
    priced = pair(OT(), x0, x1)[0]
    monkeypatch.setattr(couplings, "_PRICED", 10**9)
    plain = pair(OT(), x0, x1)[0]
    assert sorted(map(tuple, priced.tolist())) == sorted(map(tuple, x0.tolist()))
    assert cost(priced, x1) == pytest.approx(cost(plain, x1), rel=1e-9)


@pytest.mark.parametrize("far", [1e5, 1e6, 1e8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outliers_do_not_cost_the_others_their_partners(far, dtype, monkeypatch):
    x0, x1 = (Draws(seed, couplings._PRICED).normal((couplings._PRICED, 2), torch.float64) for seed in (1, 2))
    for x in (x0, x1):
        x[:2] = torch.tensor([[far, 0.0], [-far, 0.0]])
    x0, x1 = x0.to(dtype), x1.to(dtype)
    totals = []
    for first in (couplings._PRICED, 10**9):
        monkeypatch.setattr(couplings, "_PRICED", first)
        pairs = pair(OT(), x0, x1)[0]
        assert torch.equal(pairs[:2], x1[:2])
        totals.append(cost(pairs[2:].double(), x1[2:].double()))  # without the far ones, which would hide the rest
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prices_in_less_precision_pair_as_well(dtype):
    x0, x1 = (x.to(dtype) for x in LARGE["ring"](300))
    best = cost(pair(OT(), x0.double(), x1.double())[0], x1)
    assert cost(pair(OT(), x0, x1)[0], x1) == pytest.approx(best, rel=1e-5)


def test_prices_that_are_no_numbers_or_wrong_do_not_matter(monkeypatch):
    x0, x1 = LARGE["ring"](300)
    best = pair(OT(), x0, x1)[0]
    monkeypatch.setattr(couplings, "_prices", lambda cost: 3 * Draws(0, 300).normal((300,)))
    assert torch.equal(pair(OT(), x0, x1)[0], best)


def test_prices_are_nearly_those_of_an_optimal_pairing():
    # Under exact prices every row's partner is its cheapest column; without prices a ring has few such rows.
    x0, x1 = (x.double() for x in LARGE["ring"](400))
    cost = couplings._by_coordinates(x0, x1)
    partners = torch.empty(400, dtype=torch.int64)
    partners[couplings._assign(cost)] = torch.arange(400)
    excess = {}
    for name, prices in (("priced", couplings._prices(cost)), ("plain", torch.zeros(400))):
        net = cost - prices
        excess[name] = float((net.gather(1, partners[:, None])[:, 0] - net.amin(1)).mean())
    assert excess["priced"] < 0.03 * excess["plain"]


def test_prices_find_pairs_along_geodesics_too(monkeypatch):
    space = gm.spaces.Sphere(2)
    x0, x1 = (torch.nn.functional.normalize(Draws(i, 260).normal((260, 3), F64), dim=1) for i in (1, 2))
    priced = pair(OT(space), x0, x1 * torch.ones(260, 1))[0]
    monkeypatch.setattr(couplings, "_PRICED", 10**9)
    assert torch.equal(priced, pair(OT(space), x0, x1)[0])


def test_only_optimal_transport_is_worth_a_thread():
    assert [coupling.costly for coupling in EXAMPLES] == [False, True, False]


def test_an_assignment_lets_other_threads_run(monkeypatch):
    # Otherwise nothing would be gained by pairing ahead on a thread.
    cost, ticks = -(LARGE["ring"](1000)[0] @ LARGE["ring"](1000)[1].T), []
    monkeypatch.setattr(couplings, "_PRICED", 10**9)
    thread = threading.Thread(target=couplings._assign, args=(cost,))
    couplings._assign(cost[:2, :2])  # imports
    thread.start()
    while thread.is_alive():
        ticks.append(None)
        time.sleep(0.001)
    assert len(ticks) > 5


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
