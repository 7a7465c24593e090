"""Optimal transport along geodesics, against every permutation; pairing is not rounded by autocast."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from curved_worlds import NAMES, SPACES, points

import genmatch as gm
from genmatch import couplings
from genmatch.couplings import OT
from genmatch.paths import GeodesicPath
from genmatch.spaces import SO3, PoincareBall, Sphere, Torus

EACH = pytest.mark.parametrize("space", SPACES, ids=NAMES)


def cost(space, x0, x1) -> float:
    return float((space.distance(x0, x1) ** 2).sum())


@EACH
@pytest.mark.parametrize("lead", [(), (2,)], ids=["one point", "two points"])
@pytest.mark.parametrize("block", [2**20, 1])
def test_the_pairing_is_the_best_permutation(space, lead, block, monkeypatch):
    monkeypatch.setattr(couplings, "_BLOCK", block)
    by_coordinates = 0
    for seed in range(4):
        x0, x1 = points(space, seed, 5, lead, 1.5), points(space, 50 + seed, 5, lead, 1.5)
        best = min(cost(space, x0[list(order)], x1) for order in itertools.permutations(range(5)))
        paired, data, _ = GeodesicPath(space, coupling=OT(space)).pair(x0, x1, None, gm.Draws(0, 5))
        assert data is x1
        assert cost(space, paired, x1) == pytest.approx(best, rel=1e-9)
        by_coordinates += cost(space, OT()(x0, x1, None, gm.Draws(0, 5))[0], x1) > best + 1e-9
    if isinstance(space, Torus):
        assert by_coordinates, "coordinates find the same pairs: nothing is tested"


def test_angles_are_paired_across_the_seam():
    space = Torus(1)
    x0 = torch.tensor([[math.pi - 0.1], [0.2]])
    x1 = torch.tensor([[0.0], [-math.pi + 0.1]])
    paired = OT(space)(x0, x1, None, gm.Draws(0, 2))[0]
    assert torch.equal(paired, x0[[1, 0]])
    assert torch.equal(paired, space.project(paired))
    x0, x1 = torch.tensor([[3.1], [-1.0]]), torch.tensor([[-3.1], [1.0]])
    assert torch.equal(OT(space)(x0, x1, None, gm.Draws(0, 2))[0], x0)
    assert torch.equal(OT()(x0, x1, None, gm.Draws(0, 2))[0], x0[[1, 0]])  # by coordinates the other way


def test_a_model_trains_and_its_pairs_are_near():
    space = Sphere(2)
    path = GeodesicPath(space, coupling=OT(space))

    class Still(torch.nn.Module):
        def forward(self, x, t):
            return torch.zeros_like(x)

    data = points(space, 3, 64).float()
    # The loss of a network that stands still is the mean squared distance of the pairs, for each degree of freedom.
    near, far = (
        float(gm.matching_loss(gm.predict.TangentVelocity(Still(), p), data, seed=0))
        for p in (path, GeodesicPath(space))
    )
    assert near < 0.3 * far
    assert not path.coupling.independent


@pytest.mark.parametrize("space", [Sphere(2), Torus(2), SO3(), PoincareBall(2)], ids=repr)
@pytest.mark.parametrize(
    ("coupling", "message"),
    [
        (OT(), r"OT\(\) pairs by coordinates, not along the geodesics of .*: pass OT\(space\)"),
        (OT(Sphere(7)), r"OT\(space=Sphere\(7\)\) pairs by distances on Sphere\(7\), not along the geodesics of"),
    ],
)
def test_another_distance_is_refused(space, coupling, message):
    with pytest.raises(ValueError, match=message):
        GeodesicPath(space, coupling=coupling)


def test_bad_input():
    with pytest.raises(TypeError, match=r"space must be a manifold such as gm.spaces.Sphere\(2\), got Euclidean"):
        OT(gm.spaces.Euclidean())
    with pytest.raises(ValueError, match="bring them there with space"):
        OT(Sphere(2))(torch.ones(4, 3), torch.ones(4, 3), None, gm.Draws(0, 4))


def test_they_compare_by_value():
    assert OT(Sphere(2)) == OT(Sphere(2)) != OT(Sphere(3))
    assert OT() == OT() != OT(Sphere(2))
    assert hash(OT(Sphere(2))) == hash(OT(Sphere(2)))
    assert (
        repr(GeodesicPath(Sphere(2), coupling=OT(Sphere(2)))) == "GeodesicPath(Sphere(2), coupling=OT(space=Sphere(2)))"
    )


@pytest.mark.parametrize("space", [None, SO3()], ids=repr)
def test_autocast_does_not_change_the_pairs(space):
    x0, x1 = points(SO3(), 0, 200).float(), points(SO3(), 1, 200).float()
    plain = OT(space)(x0, x1, None, gm.Draws(0, 200))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert (x0[0] @ x1[0]).dtype == torch.bfloat16, "autocast rounds nothing: nothing is tested"
        rounded = OT(space)(x0, x1, None, gm.Draws(0, 200))[0]
    assert torch.equal(plain, rounded)
