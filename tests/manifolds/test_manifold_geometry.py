"""Exponential maps, logarithms and distances: closed forms, an oracle, isometries, cut loci, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from curved_worlds import NAMES, SPACES, isometry, moebius, points, skew, vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from genmatch.random import Draws
from genmatch.spaces import SO3, PoincareBall, Sphere, Torus

SEEDS = st.integers(0, 2**32)
EACH = pytest.mark.parametrize("space", SPACES, ids=NAMES)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# Properties


@EACH
@settings(max_examples=15)
@given(seed=SEEDS, lead=st.sampled_from([(), (3,)]))
def test_exp_undoes_log(space, seed, lead):
    x, y = points(space, seed, 8, lead), points(space, seed + 1, 8, lead)
    v = space.log(x, y)
    close(space.distance(space.exp(x, v), y), torch.zeros(8, *lead, dtype=torch.float64), 1e-7)
    close(space.tangent(x, v), v)
    close(space.norm(x, v), space.distance(x, y), 1e-7)


@EACH
@settings(max_examples=15)
@given(seed=SEEDS, scale=st.floats(1e-9, 0.5))
def test_log_undoes_exp_inside_the_injectivity_radius(space, seed, scale):
    x = points(space, seed, 8)
    v = vectors(space, x, seed + 1)
    v = v * (scale * math.pi / space.norm(x, v).clamp(min=1)).reshape(-1, *[1] * space.event_ndim)
    close(space.log(x, space.exp(x, v)), v, 1e-12 + 1e-8 * scale)


@EACH
@settings(max_examples=15)
@given(seed=SEEDS)
def test_the_distance_is_a_metric(space, seed):
    x, y, z = (points(space, seed + i, 16) for i in range(3))
    close(space.distance(x, y), space.distance(y, x), 1e-12)
    assert bool((space.distance(x, z) <= space.distance(x, y) + space.distance(y, z) + 1e-9).all())
    assert bool((space.distance(x, y) > 0).all())
    assert torch.equal(space.distance(x, x) < 2e-8, torch.ones(16, dtype=torch.bool))


@EACH
@settings(max_examples=15)
@given(seed=SEEDS)
def test_isometries_carry_geodesics_to_geodesics(space, seed):
    g = isometry(space, seed)
    x, y = points(space, seed, 8), points(space, seed + 1, 8)
    v = vectors(space, x, seed + 2, 0.5)
    gv = torch.func.jvp(g, (x,), (v,))[1]
    close(space.distance(g(x), g(y)), space.distance(x, y), 1e-9)
    close(space.norm(g(x), gv), space.norm(x, v), 1e-9)
    close(space.distance(space.exp(g(x), gv), g(space.exp(x, v))), torch.zeros(8, dtype=torch.float64), 1e-7)


@EACH
@settings(max_examples=10)
@given(seed=SEEDS, s=st.floats(0, 1))
def test_geodesics_run_at_constant_speed(space, seed, s):
    x, y = points(space, seed, 8), points(space, seed + 1, 8)
    between = space.geodesic(x, y, s)
    close(space.distance(x, between), s * space.distance(x, y), 1e-7)
    close(space.distance(between, y), (1 - s) * space.distance(x, y), 1e-7)


@EACH
def test_tangent_and_metric(space):
    x = points(space, 0, 16, (2,))
    a, b = (Draws(i, 16).normal(x.shape, x.dtype) for i in (1, 2))
    ta, tb = space.tangent(x, a), space.tangent(x, b)
    close(space.tangent(x, ta), ta)
    assert space.inner(x, ta, tb).shape == (16, 2) == space.distance(x, x).shape
    close(space.inner(x, ta, tb), space.inner(x, tb, ta))
    close(space.inner(x, ta, b), space.inner(x, ta, tb))  # the projection is orthogonal
    curve = torch.func.jvp(lambda s: space.exp(x, s * ta), (torch.zeros(()).double(),), (torch.ones(()).double(),))[1]
    close(curve, ta, 1e-9)
    slope = torch.func.jvp(lambda s: space.retract(x, s * ta), (torch.zeros(()).double(),), (torch.ones(()).double(),))
    close(slope[1], ta, 1e-9)


@EACH
def test_the_noise_has_the_inverse_metric_as_its_covariance(space):
    """Sum over the ambient basis of <u, noise(e)>^2 = |u|^2 for tangent u: a missing factor of the metric shows."""
    x = points(space, 0, 8)
    u = vectors(space, x, 1)
    size = x[0].numel()
    basis = torch.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
    total = sum(space.inner(x, u, space.noise(x, e.expand_as(x))) ** 2 for e in basis)
    close(total, space.inner(x, u, u), 1e-9)
    if not isinstance(space, Torus):
        unscaled = sum(space.inner(x, u, 1.1 * space.noise(x, e.expand_as(x))) ** 2 for e in basis)
        assert bool((unscaled > 1.2 * space.inner(x, u, u)).all())


@EACH
def test_projection(space):
    x = points(space, 3, 32, (2,))
    close(space.project(x), x, 1e-12)
    assert float(space.deviation(x).max()) < 1e-12
    far = space.project(x + Draws(4, 32).normal(x.shape, x.dtype))
    assert float(space.deviation(far).max()) < 1e-12
    space.check(far)
    close(space.project(far), far, 1e-12)


# Closed forms


def test_the_sphere_in_coordinates():
    space = Sphere(2)
    pole, east = doubles([[0.0, 0.0, 1.0]]), doubles([[1.0, 0.0, 0.0]])
    for angle in (1e-9, 1e-4, 0.09, 0.11, 0.5, 1.0, 2.0, 3.0, math.pi - 1e-4, math.pi - 1e-9):
        y = math.cos(angle) * pole + math.sin(angle) * east
        close(space.exp(pole, angle * east), y, 1e-15)
        close(space.log(pole, y), angle * east, 1e-9 if angle > 3 else 1e-15)
        close(space.distance(pole, y), doubles([angle]), 2e-15)
    close(space.exp(pole, 5 * math.pi / 2 * east), east)  # past the antipode and round


def test_rotations_in_coordinates():
    space = SO3()
    axis = doubles([1.0, -2.0, 0.5])
    axis = axis / axis.norm()
    x = points(space, 0, 1)
    for angle in (1e-9, 1e-4, 0.3, 1.0, 2.0, 3.0, math.pi - 1e-4, math.pi - 1e-9):
        v = x @ skew(angle * axis)
        y = x @ torch.linalg.matrix_exp(skew(angle * axis))
        close(space.exp(x, v), y, 1e-14)
        close(space.log(x, y), v, 1e-14)
        close(space.distance(x, y), doubles([angle]), 1e-14)


def test_the_nearest_rotation_is_the_polar_factor():
    space = SO3()
    m = points(space, 0, 200) + 0.3 * Draws(1, 200).normal((200, 3, 3), torch.float64)
    left, _, right = torch.linalg.svd(m)
    right_handed = torch.linalg.det(m) > 0
    close(space.project(m)[right_handed], (left @ right)[right_handed], 1e-12)
    wild = 2 * Draws(2, 500).normal((500, 3, 3), torch.float64)  # half of them reflect
    assert float(space.deviation(space.project(wild)).max()) < 1e-12
    for degenerate in (torch.zeros(1, 3, 3), torch.ones(1, 3, 3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))[None]):
        assert float(space.deviation(space.project(degenerate.double())).max()) < 1e-12


@pytest.mark.parametrize("c", [1.0, 2.5])
def test_the_ball_from_the_centre_and_by_translation(c):
    space = PoincareBall(2, -c)
    root, ray = math.sqrt(c), doubles([[0.6, -0.8]])
    centre, by = torch.zeros(1, 2).double(), doubles([[0.2, 0.3]])
    for r in (1e-9, 1e-3, 0.5, 2.0, 6.0):
        y = ray * math.tanh(root * r / 2) / root
        close(space.exp(centre, ray * r / 2), y, 1e-14)
        close(space.log(centre, y), ray * r / 2, 1e-9)
        close(space.distance(centre, y), doubles([r]), 1e-9)
        # Moebius translations are isometries, so the distance from elsewhere is the one from the centre.
        close(space.distance(by, moebius(c, by, y)), doubles([r]), 1e-8)


def test_geodesics_back_past_the_centre_keep_their_digits():
    """From one side of the ball to the other: the Moebius sum alone loses half the digits and more."""
    space, count = PoincareBall(2), 200
    for dtype, radius, tolerance in ((torch.float64, 8.0, 1e-7), (torch.float32, 4.0, 5e-4)):
        sides = [Sphere(1).uniform((count, 2), Draws(i, count)).to(dtype) * radius / 2 for i in (3, 4)]
        x, y = (space.exp(torch.zeros_like(side), side) for side in sides)
        v = space.log(x, y)
        assert float(space.distance(space.exp(x, v), y).max()) < tolerance
        half = space.c**0.5 * space.conformal(x) * v.norm(dim=-1, keepdim=True) / 2
        textbook = space.project(moebius(1.0, x, half.tanh() * v / v.norm(dim=-1, keepdim=True)))
        assert float(space.distance(textbook, y).max()) > 5 * tolerance


def test_long_geodesics_of_the_ball_have_the_right_derivatives():
    space = PoincareBall(2, -1.3)
    x = points(space, 0, 6, spread=1.2)
    v = vectors(space, x, 1, 2.0)
    assert bool(((space.c * (x * x).sum(-1) > 0.25) & (space.norm(x, v) > 1)).any())  # the branch for those is taken
    assert torch.autograd.gradcheck(space.exp, (x.requires_grad_(), v.requires_grad_()))
    assert torch.autograd.gradcheck(space.log, (x, points(space, 2, 6).requires_grad_()))


def test_angles_wrap():
    space = Torus(1)
    turns = torch.arange(-3, 4, dtype=torch.float64)[:, None] * 2 * math.pi
    close(space.project(turns + 0.3), torch.full((7, 1), 0.3, dtype=torch.float64), 1e-14)
    for dtype in (torch.float32, torch.float64):
        ends = torch.tensor(
            [[-math.pi], [math.pi], [math.nextafter(math.pi, 0)], [-1e-9], [3 * math.pi], [1e30], [-1e30]], dtype=dtype
        )
        inside = space.project(ends)
        assert bool(((inside >= -math.pi) & (inside < math.pi)).all())
    x = points(space, 0)
    assert torch.equal(space.project(x), x)  # what is inside is not rounded
    close(space.distance(doubles([[-3.1]]), doubles([[3.1]]))[0], doubles(2 * math.pi - 6.2))


# An oracle


@pytest.mark.parametrize("space", [Sphere(2), Sphere(4), PoincareBall(2), PoincareBall(3, -2.5)], ids=repr)
def test_geoopt_agrees(space):
    geoopt = pytest.importorskip("geoopt")
    oracle = geoopt.Sphere() if isinstance(space, Sphere) else geoopt.PoincareBall(c=space.c)
    x, y = points(space, 0, 100), points(space, 1, 100)
    u, v = vectors(space, x, 2), vectors(space, x, 3)
    digits = 1e-9 if isinstance(space, Sphere) else 1e-5  # the oracle's own, far from the centre of the ball
    close(space.distance(x, y), oracle.dist(x, y), digits)
    close(space.log(x, y), oracle.logmap(x, y), digits)
    close(space.exp(x, v), oracle.expmap(x, v), digits)
    torch.testing.assert_close(space.inner(x, u, v), oracle.inner(x, u, v, keepdim=True)[..., 0])
    w = Draws(4, 100).normal(x.shape, x.dtype)
    if isinstance(space, Sphere):
        close(space.tangent(x, w), oracle.proju(x, w))
        close(space.project(w), oracle.projx(w))
        close(space.retract(x, v), oracle.retr(x, v), 1e-10)


# Cut loci and zero distance


def antipodes(space, x):
    """Points at the cut locus of x."""
    if isinstance(space, Sphere):
        return -x
    if isinstance(space, Torus):
        return space.project(x + math.pi)
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=x.dtype))
    return x @ half_turn


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("where", ["zero", "antipode"])
def test_values_and_gradients_are_finite_and_repeat(space, dtype, where):
    x = points(space, 0, 16).to(dtype)
    if where == "antipode" and not space.compact:
        pytest.skip("hyperbolic space has no cut locus")
    others = [x.clone()] if where == "zero" else [antipodes(space, x)]
    others += [others[0] + e * Draws(1, 16).normal(x.shape, dtype) for e in (1e-20, 1e-8, 1e-4)]
    for other in others:
        other = space.project(other)
        found = []
        for _ in range(2):
            a, b = x.clone().requires_grad_(), other.clone().requires_grad_()
            v = space.log(a, b)
            outputs = (v, space.distance(a, b), space.exp(a, v), space.geodesic(a, b, 0.5), space.norm(a, v))
            gradients = torch.autograd.grad(sum(o.sum() for o in outputs), (a, b))
            found.append([*outputs, *gradients])
        for first, second in zip(*found, strict=True):
            assert bool(first.isfinite().all())
            assert torch.equal(first, second)
        length = space.norm(x, space.log(x, other))
        close(length, space.distance(x, other), 1e-3 if dtype == torch.float32 else 1e-7)


@EACH
def test_no_velocity_and_no_distance_have_derivatives(space):
    x = points(space, 0, 8).requires_grad_()
    zero = torch.zeros_like(x).requires_grad_()
    gradient = torch.autograd.grad(space.exp(x, zero).sum(), zero)[0]
    direct = torch.autograd.grad(space.tangent(x, zero).sum(), zero)[0]
    close(gradient, direct, 1e-9)  # exp is the identity to first order, on the tangent space
    assert torch.equal(torch.autograd.grad(space.distance(x, x.detach()).sum(), x)[0], torch.zeros_like(x))


def test_the_choice_at_the_antipode():
    sphere = Sphere(2)
    x = doubles([[0.0, 0.6, 0.8], [0.8, 0.0, 0.6], [1.0, 0.0, 0.0]])
    v = sphere.log(x, -x)
    axes = doubles([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    close(v, math.pi * axes)
    close(sphere.exp(x, v), -x)
    close(Torus(1).log(torch.zeros(1, 1), torch.full((1, 1), -math.pi)), torch.full((1, 1), -math.pi))
    rotation = torch.eye(3).double()[None]
    for axis in torch.eye(3).double():
        half_turn = 2 * axis[:, None] * axis - torch.eye(3).double()
        close(SO3().log(rotation, half_turn[None]), math.pi * skew(axis)[None], 1e-12)


@EACH
def test_gradients_of_the_squared_distance_are_logarithms(space):
    """The gradient of d(x, y)^2 / 2 along a tangent v is -<log_x y, v>: a closed form for derivatives of distances."""
    x, y = points(space, 0, 16), points(space, 1, 16)
    v = vectors(space, x, 2)
    one = torch.ones((), dtype=x.dtype)

    def half(s):
        return 0.5 * space.distance(space.exp(x, s * v), y) ** 2

    close(torch.func.jvp(half, (0 * one,), (one,))[1], -space.inner(x, space.log(x, y), v), 1e-7)


def test_projections_of_what_has_no_nearest_point():
    sphere, x = Sphere(2), points(Sphere(2), 0, 4)
    first = doubles([1.0, 0.0, 0.0]).expand(4, 3)
    assert torch.equal(sphere.project(torch.zeros(4, 3, dtype=torch.float64)), first)
    assert torch.equal(sphere.retract(x, -x), x)
    v = (-x).clone().requires_grad_()
    assert bool(torch.autograd.grad(sphere.retract(x, v).sum(), v)[0].isfinite().all())


@pytest.mark.parametrize("space", [Sphere(2), SO3()], ids=repr)
def test_a_retraction_is_the_projection_of_the_sum(space):
    """For ambient vectors, tangent or not: the nearest point, where the rest is orthogonal to the tangent space."""
    x = points(space, 0, 50)
    v = 0.15 * Draws(1, 50).normal(x.shape, x.dtype)
    y = space.retract(x, v)
    rest = space.tangent(y, x + v - y)
    close(rest, torch.zeros_like(rest), 1e-12)
    elsewhere = space.exp(y, vectors(space, y, 2, 0.3))
    assert bool(((x + v - y).flatten(1).norm(dim=1) < (x + v - elsewhere).flatten(1).norm(dim=1)).all())


def test_a_retraction_of_the_ball_never_leaves_it():
    space = PoincareBall(2)
    x = points(space, 0, 500, spread=1.5).float()
    for scale in (0.1, 1.0, 10.0, 1e4):
        v = scale * Draws(1, 500).normal(x.shape)
        space.check(space.retract(x, v))
        space.check(space.exp(x, v))
    small = 1e-3 * space.noise(x, Draws(2, 500).normal(x.shape))
    close(space.retract(x, small), x + small, 1e-7)
    long = 3 * space.noise(x, torch.ones_like(x))
    close(space.retract(x, long), space.exp(x, long), 0)


# Bad input


@pytest.mark.parametrize(
    ("space", "x", "error", "message"),
    [
        (
            Sphere(2),
            torch.ones(4, 3),
            ValueError,
            r"4 of 4 points are off Sphere\(2\) by up to 0.73 .*space.project\(x\)",
        ),
        (Sphere(2), torch.ones(4, 2), ValueError, r"shape \(B, ..., 3\): points of shape \(3\), got \(4, 2\)"),
        (Sphere(2), torch.ones(3), ValueError, r"shape \(B, ..., 3\)"),
        (Sphere(2), torch.full((4, 3), math.nan), ValueError, "12 non-finite values of 12"),
        (Sphere(2), torch.ones(4, 3, dtype=torch.int64), TypeError, r"must be floating point, got torch.int64"),
        (Torus(2), torch.full((4, 2), 4.0), ValueError, r"4 of 4 points are off Torus\(2\) by up to 0.86"),
        (SO3(), torch.eye(3).expand(4, 3, 3) * 1.01, ValueError, r"off SO3\(\) by up to 0.02"),
        (SO3(), -torch.eye(3).expand(4, 3, 3), ValueError, r"off SO3\(\) by up to 2"),
        (SO3(), torch.zeros(4, 9), ValueError, r"points of shape \(3, 3\), got \(4, 9\)"),
        (PoincareBall(2), torch.tensor([[0.6, 0.8]]), ValueError, r"1 of 1 points are off PoincareBall\(2\)"),
        (
            PoincareBall(2, -4.0),
            torch.tensor([[0.6, 0.0]]),
            ValueError,
            r"off PoincareBall\(2, curvature=-4\) by up to 0.2",
        ),
    ],
    ids=["off", "last", "scalar", "nan", "integers", "angles", "scaled", "reflection", "flat", "boundary", "curvature"],
)
def test_what_is_no_point(space, x, error, message):
    with pytest.raises(error, match=message):
        space.check(x)


def test_what_is_no_manifold():
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        Sphere(0)
    with pytest.raises(TypeError, match="dimension must be an integer, got float"):
        Torus(2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the curvature of hyperbolic space is negative, got 1.0"):
        PoincareBall(2, 1.0)
    with pytest.raises(TypeError, match="curvature must be a number, got str"):
        PoincareBall(2, "-1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"infinite volume and no uniform law: start from gm.paths.WrappedNormal"):
        PoincareBall(2).uniform((4, 2), Draws(0, 4))
    with pytest.raises(ValueError, match=r"points of shape \(3\), got \(4, 2\)"):
        Sphere(2).uniform((4, 2), Draws(0, 4))


def test_manifolds_compare_by_value():
    assert Sphere(2) == Sphere() != Sphere(3)
    assert PoincareBall(2) == PoincareBall(2, -1.0) != PoincareBall(2, -2.0)
    assert SO3() == SO3()
    assert Sphere(2) != Torus(2)
    assert len({SO3(), SO3(), Torus(2), Torus(2), Sphere(2)}) == 3
