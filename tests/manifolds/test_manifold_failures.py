"""What is not finite is not passed off as a point, long steps stay points, and autocast rounds nothing."""

from __future__ import annotations

import math

import pytest
import torch
from curved_worlds import NAMES, SPACES, ExactField, points, vectors
from torch import nn

import genmatch as gm
from genmatch.paths import GeodesicPath
from genmatch.spaces import SO3, Sphere, Torus

EACH = pytest.mark.parametrize("space", SPACES, ids=NAMES)
BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


@EACH
@BAD
def test_what_is_not_finite_stays_so(space, bad):
    """One bad value in any place of a point or a vector; its neighbours in the batch are as they were."""
    x = points(space, 0, 4)
    v = vectors(space, x, 1, 0.1)
    clean = [space.nearest(x), space.retract(x, v), space.exp(x, v)]
    for place in range(x[0].numel()):
        y, w = x.clone(), v.clone()
        y[1].view(-1)[place] = bad
        w[1].view(-1)[place] = bad
        spoilt = [space.nearest(y), space.retract(x, w), space.exp(x, w)]
        for a, b in zip(spoilt, clean, strict=True):
            assert not bool(a[1].isfinite().all())
            torch.testing.assert_close(a[[0, 2, 3]], b[[0, 2, 3]])
        if math.isnan(bad):
            assert bool(space.distance(x, y)[1].isnan())
            assert not bool(space.log(x, y)[1].isfinite().all())


@EACH
@BAD
def test_projecting_it_raises(space, bad):
    x = points(space, 0, 4)
    x[2].view(-1)[0] = bad
    with pytest.raises(ValueError, match=r"1 non-finite values of .*no point of"):
        space.project(x)
    with pytest.raises(ValueError, match=r"1 non-finite values of .*check the data for NaN"):
        space.check(x)


class Broken(nn.Module):
    """A network whose output is not a number after some time."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after = after

    def forward(self, x, t):
        return torch.where(t.reshape(-1, *[1] * (x.ndim - 1)) > self.after, math.nan, torch.zeros_like(x))


@EACH
@pytest.mark.parametrize("check", [False, True])
def test_a_network_that_breaks_is_reported(space, check):
    flow, whole = (gm.Flow(gm.predict.TangentVelocity(Broken(t), GeodesicPath(space))) for t in (0.5, 2.0))
    with pytest.raises(FloatingPointError, match="4 of 4 states are not finite"):
        gm.sample(flow, (4, *space.event_shape), steps=5, check=check, seed=0)
    space.check(gm.sample(whole, (4, *space.event_shape), steps=5, check=check, seed=0))


class Negative(gm.Generator):
    """A variance below 0."""

    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(torch.zeros_like(x), torch.full((len(x), *[1] * (x.ndim - 1)), -1.0, dtype=x.dtype))


@EACH
def test_a_negative_variance_is_reported(space):
    model = ExactField(GeodesicPath(space))
    with pytest.raises(FloatingPointError, match="4 of 4 states are not finite"):
        gm.sample(gm.Flow(model) + Negative(model), (4, *space.event_shape), steps=2, seed=0)


@EACH
@pytest.mark.parametrize("size", [1e4, 1e20, 1e25])
def test_long_steps_end_on_the_manifold(space, size):
    """The squares of their lengths overflow in float32."""
    x = points(space, 0, 8).float()
    v = vectors(space, x, 1)
    far = space.retract(x, size * v)
    space.check(far)
    expected = space.nearest(x.double() + size * v.double())
    if isinstance(space, (Sphere, SO3)):
        torch.testing.assert_close(far.double(), expected, rtol=0, atol=1e-4)
    elif not isinstance(space, Torus):  # the last points of the ball, in different directions
        assert bool((math.sqrt(space.c) * far.norm(dim=-1) > 0.99).all())
        assert bool((space.distance(far, x) > 1).all())


def test_rotations_are_computed_in_their_own_precision():
    """Matrix products round to bfloat16 under autocast."""
    space = SO3()
    path = GeodesicPath(space)
    x, y = points(space, 0).float(), points(space, 1).float()
    v = vectors(space, x, 2)

    def values():
        return [
            space.uniform((64, 3, 3), gm.Draws(0, 64)), space.exp(x, v), space.log(x, y), space.tangent(x, v),
            space.retract(x, v), space.distance(x, y), space.deviation(x), space.noise(x, v), path.sample(x, y, 0.3),
        ]  # fmt: skip

    plain = values()
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ y).dtype == torch.bfloat16, "autocast rounds nothing: nothing is tested"
        rounded = values()
    for a, b in zip(plain, rounded, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)
