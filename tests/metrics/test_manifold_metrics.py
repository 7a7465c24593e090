"""Precision, recall, density and coverage: sets on a line counted by hand, and expectations that hold for any law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import genmatch as gm
from genmatch.metrics import distances

PR, DC = gm.metrics.precision_recall, gm.metrics.density_coverage

REAL = torch.tensor([0.0, 1.0, 2.0, 10.0])[:, None]  # radii for k = 1: 1, 1, 1, 8
GENERATED = torch.tensor([0.5, 3.5, 20.0])[:, None]  # radii for k = 1: 3, 3, 16.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # Real balls [-1, 1], [0, 2], [1, 3], [2, 18] hold 0.5 twice, 3.5 once, 20 never, and [1, 3] holds none.
    # Generated balls [-2.5, 3.5], [0.5, 6.5], [3.5, 36.5] hold every real point.
    assert PR(REAL, GENERATED, k=1) == pytest.approx((2 / 3, 1.0))
    assert DC(REAL, GENERATED, k=1) == pytest.approx((3 / 3, 3 / 4))
    # Exchanged: [-2.5, 3.5] holds 0, 1, 2; [0.5, 6.5] holds 1, 2; [3.5, 36.5] holds 10.
    assert PR(GENERATED, REAL, k=1) == pytest.approx((1.0, 2 / 3))
    assert DC(GENERATED, REAL, k=1) == pytest.approx((6 / 4, 1.0))
    # k = 2: real radii 2, 1, 2, 9 and balls [-2, 2], [0, 2], [0, 4], [1, 19] hold 0.5 thrice, 3.5 twice, 20 never.
    assert PR(REAL, GENERATED, k=2).precision == pytest.approx(2 / 3)
    assert DC(REAL, GENERATED, k=2) == pytest.approx((5 / 6, 1.0))


def test_balls_are_closed():
    real = torch.tensor([0.0, 1.0])[:, None]
    edge, beyond = torch.tensor([[2.0], [2.0]]), torch.tensor([[2.0 + 1e-6], [5.0]]).double()
    assert PR(real, edge, k=1).precision == 1
    assert PR(real.double(), beyond, k=1).precision == 0


@pytest.mark.parametrize(("n", "m", "k"), [(8, 12, 3), (10, 5, 2)])
def test_equal_laws(n: int, m: int, k: int):
    # Of the n points around a real one (n - 1 real, one generated), the generated is among the k nearest with
    # probability k / n: density 1. Of n - 1 + m, the k nearest are all real with prod (n - i) / (n + m - i).
    # Neither depends on the law: uniform on a cube and a heavy-tailed one are measured together.
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    densities, coverages = [], []
    for seed in range(600):
        points = normal(n + m, 2, seed=seed)
        points = points.atan() if seed % 2 else points.pow(3)
        result = DC(points[:n], points[n:], k=k)
        densities.append(result.density)
        coverages.append(result.coverage)
    for values, mean in ((densities, 1.0), (coverages, expected)):
        values = torch.tensor(values)
        assert float(values.mean()) == pytest.approx(mean, abs=4 * float(values.std()) / math.sqrt(600))
    # A ball that reached to the (k - 1)-th neighbour, as if the point itself counted, would be seen.
    assert abs(expected - (1 - math.prod((n - i) / (n + m - i) for i in range(1, k)))) > 0.08


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 10), shift=st.floats(-3, 3), k=st.integers(1, 4))
def test_invariances(seed: int, scale: float, shift: float, k: int):
    x, y = normal(9, 3, seed=seed), normal(7, 3, seed=seed + 5000)
    turn = torch.linalg.qr(normal(3, 3, seed=seed)).Q
    moved = [scale * z @ turn + shift for z in (x, y)]
    assert PR(*moved, k=k) == PR(x, y, k=k)
    assert DC(*moved, k=k) == DC(x, y, k=k)
    assert PR(x, y, k=k) == PR(y, x, k=k)[::-1]
    assert PR(x, x.clone(), k=k) == (1, 1)
    assert DC(x, x.clone(), k=k).coverage == 1
    assert DC(x, x.clone(), k=k).density >= 1  # each point is in its own ball and k others reach somebody


@pytest.mark.parametrize("width", [2, 100])
def test_copies_are_on_the_manifold(width: int):
    # Four copies of each point: radii of 0 for k = 3, and copies are at distance 0 exactly.
    real = normal(6, width).repeat(4, 1)
    assert PR(real, real.flip(0), k=3) == (1, 1)
    assert DC(real, real[:5], k=3).density == pytest.approx(4 / 3)
    assert PR(real, real + 1e-3, k=3) == (0, 0)


def test_modes_dropped_and_modes_invented():
    centres = 100 * torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.float64)
    real = (centres[:, None] + normal(4, 50, 2)).reshape(-1, 2)
    dropped, invented = real[:100] + 0.01, torch.cat([real + 0.01, real[:100] + 1000])
    assert PR(real, dropped).precision == 1
    assert PR(real, dropped).recall == 0.5
    assert DC(real, dropped).coverage == 0.5
    assert PR(real, invented).precision == pytest.approx(2 / 3)
    assert PR(real, invented).recall == 1


def test_one_outlier_raises_precision_and_hardly_density():
    real = torch.cat([normal(200, 2), torch.tensor([[50.0, 0.0]], dtype=torch.float64)])
    wrong = 20 + normal(200, 2, seed=1)
    assert PR(real, wrong).precision == 1
    assert DC(real, wrong).density <= 1 / 5


def test_blocks_and_networks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    x, y = normal(60, 4), normal(45, 4, seed=1)
    whole = PR(x, y), DC(x, y)
    images = [z.reshape(-1, 1, 2, 2) for z in (x, y)]
    assert (PR(*images, lambda z: z.flatten(1), batch_size=7), DC(*images, lambda z: z.flatten(1))) == whole
    monkeypatch.setattr(distances, "BLOCK", 100)
    assert (PR(x, y), DC(x, y)) == whole


def test_bad_input():
    x = normal(5, 2)
    with pytest.raises(ValueError, match="real has 3 samples, which have no 3-th other neighbour: needs more than k=3"):
        PR(x[:3], x)
    with pytest.raises(ValueError, match="generated has 2 samples"):
        PR(x, x[:2])
    with pytest.raises(ValueError, match=r"real has 5 samples.*k=5"):
        DC(x, x)
    assert DC(x, x[:1], k=2).coverage >= 0  # generated samples have no balls here: one is enough
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        PR(x, x, k=0)
    with pytest.raises(ValueError, match="real and generated must have samples of one size, got 2 and 1"):
        DC(x, x[:, :1], k=1)
    with pytest.raises(ValueError, match="generated holds 2 non-finite"):
        PR(x, x.new_full((1, 2), math.nan), k=1)
    with pytest.raises(ValueError, match=r"generated must be features of shape \(n, d\), got \(5,\)"):
        PR(x, x[:, 0])
