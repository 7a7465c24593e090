"""The geodesic path and its predictor: velocities, the forward equation, exact transport, losses, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from curved_worlds import NAMES, SPACES, ExactField, points
from torch import nn

import genmatch as gm
from genmatch.paths import GeodesicPath, UniformPoints, WrappedNormal
from genmatch.predict import TangentVelocity
from genmatch.spaces import SO3, PoincareBall, Sphere, Torus

EACH = pytest.mark.parametrize("space", SPACES, ids=NAMES)


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def legendre(count, low, high):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    half = (high - low) / 2
    return torch.tensor(low + half * (nodes + 1)), torch.tensor(half * weights)


class Linear(nn.Module):
    """A network of any state: a linear map of the coordinates, the same for each point."""

    def __init__(self, space):
        super().__init__()
        size = math.prod(space.event_shape)
        self.space, self.inner = space, nn.Linear(size + 1, size)

    def forward(self, x, t):
        flat = x.flatten(-self.space.event_ndim)
        t = t.reshape(-1, *[1] * (flat.ndim - 1)).expand(*flat.shape[:-1], 1)
        return self.inner(torch.cat([flat, t], -1)).reshape(x.shape)


# Velocities


@EACH
@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr)
def test_the_velocity_is_the_derivative_of_the_path(space, schedule):
    path = GeodesicPath(space, schedule=schedule)
    x0, x1 = points(space, 0, 12, (2,)), points(space, 1, 12, (2,))
    t = torch.linspace(0, 1, 12, dtype=torch.float64)
    instant = path.instant(t, x0)
    x = path.sample(x0, x1, t)
    found = path.velocity(x, x0, x1, instant)
    kappa, kappa_dot = instant.kappa, instant.kappa_dot
    derivative = torch.func.jvp(lambda s: space.geodesic(x0, x1, s), (kappa,), (kappa_dot,))[1]
    close(found, derivative, 1e-7)
    close(space.tangent(x, found), found, 1e-9)
    close(x[:1], x0[:1], 1e-12)
    close(space.distance(x[-1:], x1[-1:]), torch.zeros(1, 2, dtype=torch.float64), 1e-7)
    inside = t < 0.95
    hazard = instant.hazard * space.log(x, x1)
    close(found[inside], hazard[inside], 1e-6)


@EACH
def test_velocities_are_finite_at_both_ends_and_for_pairs_at_the_cut_locus(space):
    path = GeodesicPath(space)
    x0 = points(space, 0, 8).float()
    pairs = [(x0, x0), (x0, points(space, 1, 8).float())]
    if isinstance(space, Sphere):
        pairs.append((x0, -x0))
    if isinstance(space, Torus):
        pairs.append((x0, space.project(x0 + math.pi)))
    if isinstance(space, SO3):
        pairs.append((x0, x0 @ torch.diag(torch.tensor([1.0, -1.0, -1.0]))))
    for start, end in pairs:
        for t in (0.0, 1e-8, 0.5, 1 - 1e-7, 1.0):
            x = path.sample(start, end, t)
            space.check(x)
            velocity = path.velocity(x, start, end, path.instant(t, x))
            close(space.norm(x, velocity), space.distance(start, end), 2e-3)


# The forward equation


def test_the_forward_equation_on_the_circle():
    """d/dt <p_t, f> in closed form against <p_t, u f'> by quadrature; uniform source, von Mises data."""
    space = Torus(1)
    path = GeodesicPath(space, schedule=gm.schedules.Cosine())
    w, weights = legendre(80, -math.pi, math.pi)
    data = torch.linspace(-math.pi, math.pi, 65, dtype=torch.float64)[:-1]
    p1 = torch.exp(2 * torch.cos(data - 0.5))
    p1 = p1 / p1.sum()
    x1 = data.repeat(len(w))[:, None]
    x0 = space.project(x1 + w.repeat_interleave(len(data))[:, None])
    mass = p1.repeat(len(w)) * weights.repeat_interleave(len(data)) / (2 * math.pi)
    for t in (0.0, 0.2, 0.5, 0.9):
        instant = path.instant(t, x0)
        x = path.between(x0, x1, instant, gm.Draws(0, len(x0)))
        velocity = path.velocity(x, x0, x1, instant)[:, 0]
        for k in (1, 2, 5):
            a = k * math.pi * (1 - instant.kappa)
            slope = (math.cos(a) - math.sin(a) / a) / a  # of sin(a) / a
            exact = (p1 * torch.cos(k * data)).sum() * slope * (-k * math.pi * instant.kappa_dot)
            found = (mass * velocity * (-k * torch.sin(k * x[:, 0]))).sum()
            close(found, exact, 1e-9)
            if t > 0:  # the factor kappa' / (1 - kappa) forgotten
                assert abs(float(found) * (1 - instant.kappa) / instant.kappa_dot - float(exact)) > 1e-4


def test_the_forward_equation_on_the_sphere():
    """The same on the sphere: uniform source in polar coordinates about each of three data points."""
    space = Sphere(2)
    path = GeodesicPath(space)
    theta, weights = legendre(60, 0, math.pi)
    phi = torch.arange(32, dtype=torch.float64) * 2 * math.pi / 32
    e = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)

    def mean(b, along):
        """E of f = <e, x> + <e, x>^2 at a share 1 - b of the way to data whose height is ``along``."""
        cosine = (1 + torch.cos(b * math.pi)) / (2 * (1 - b**2))
        square = 0.5 + (1 + torch.cos(2 * b * math.pi)) / (4 * (1 - 4 * b**2))
        return along * cosine + along**2 * square + (1 - along**2) / 2 * (1 - square)

    for x1 in points(space, 0, 3):
        aside = torch.linalg.svd(x1[None])[2][1:]
        ring = torch.stack([phi.cos(), phi.sin()], -1) @ aside
        x0 = (theta.cos()[:, None, None] * x1 + theta.sin()[:, None, None] * ring).reshape(-1, 3)
        mass = (weights * theta.sin() / 2).repeat_interleave(32) / 32
        end = x1.expand_as(x0)
        for t in (0.1, 0.4, 0.8):
            instant = path.instant(t, x0)
            x = path.between(x0, end, instant, gm.Draws(0, len(x0)))
            slope = 1 + 2 * (x @ e)
            found = (mass * slope * (path.velocity(x, x0, end, instant) @ e)).sum()
            b = torch.tensor(1 - t, dtype=torch.float64)
            exact = -torch.func.jvp(lambda b, a=x1 @ e: mean(b, a), (b,), (torch.ones_like(b),))[1]
            close(found, exact, 1e-9)
            forgotten = (mass * slope * (space.log(x, end) @ e)).sum()
            assert abs(float(forgotten - exact)) > 1e-3


def test_the_flow_carries_the_uniform_law_to_the_data_exactly():
    """On the circle: quantiles of the uniform law end at the same quantiles of a von Mises law."""
    space = Torus(1)
    path = GeodesicPath(space)
    v, weights = legendre(40, -math.pi, math.pi)

    def density(x):
        return torch.exp(2 * torch.cos(x))

    def field(x, t, factor=1.0):
        """The posterior mean of the conditional velocity, by quadrature over the pairs that pass through x."""
        x0, x1 = space.project(x - t * v), space.project(x + (1 - t) * v)
        here = x.expand_as(x1)[..., None]
        velocity = path.velocity(here, x0[..., None], x1[..., None], path.instant(t, here))[..., 0]
        mass = weights * density(x1)
        return factor * (mass * velocity).sum(-1, keepdim=True) / mass.sum(-1, keepdim=True)

    q = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    x0 = (2 * math.pi * q - math.pi)[:, None]
    solver = gm.solvers.RK4()
    x1 = gm.sample(gm.Flow(ExactField(path, field)), x0, steps=40, solver=solver)
    nodes, mass = legendre(60, -1, 1)

    def cdf(x):
        half = (x + math.pi) / 2
        return (half * density(-math.pi + half * (nodes + 1)) * mass).sum(-1) / (2 * math.pi * np.i0(2.0))

    close(cdf(x1), q, 1e-6)
    slow = gm.sample(gm.Flow(ExactField(path, lambda x, t: field(x, t, 0.99))), x0, steps=40, solver=solver)
    assert float((cdf(slow) - q).abs().max()) > 1e-4


# The predictor and its loss


def test_the_loss_is_the_squared_error_in_the_metric():
    for space in SPACES:
        path = GeodesicPath(space)
        model = TangentVelocity(Linear(space).double(), path)
        x0, x1 = points(space, 0, 6, (2,)), points(space, 1, 6, (2,))
        t = torch.linspace(0.05, 0.9, 6, dtype=torch.float64)
        loss = gm.matching_loss(model, x1, x0=x0, t=t, reduction="none", seed=0)
        assert loss.shape == (6,)
        x = path.sample(x0, x1, t)
        times = t.reshape(-1, *[1] * (x.ndim - 1))
        error = space.tangent(x, model.network(x, t)) - space.log(x, x1) / (1 - times)
        expected = space.inner(x, error, error).mean(1) / space.dimension
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
        loss.sum().backward()
        assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_losses_are_finite_at_both_ends():
    for space in SPACES:
        model = TangentVelocity(Linear(space), GeodesicPath(space))
        x1 = points(space, 1, 6).float()
        for t in (0.0, 1.0):
            assert bool(gm.matching_loss(model, x1, t=t, seed=0).isfinite())


def test_the_output_is_made_tangent():
    space = Sphere(2)
    model = TangentVelocity(Linear(space), GeodesicPath(space))
    x = points(space, 0, 5).float()
    velocity = model(x, 0.3).velocity
    close((velocity * x).sum(-1).detach(), torch.zeros(5), 1e-6)
    raw = model.network(x, torch.full((5,), 0.3)).detach()
    assert float((raw * x).sum(-1).abs().max()) > 1e-2
    assert repr(model.path) in repr(model)


def test_an_error_of_the_velocity_followed_to_the_data():
    path = GeodesicPath(Torus(2))
    model = TangentVelocity(Linear(Torus(2)), path)
    for t in (0.0, 0.3, 1.0):
        assert model.per_data(path.instant(t, torch.zeros(1, 2))) == pytest.approx((1 - t) ** 2)


@EACH
def test_samples_from_noise(space):
    generator = gm.Flow(TangentVelocity(Linear(space), GeodesicPath(space)))
    for solver in (gm.solvers.Euler(), gm.solvers.Heun(), gm.solvers.RK4(), None):
        x = gm.sample(generator, (10, 2, *space.event_shape), steps=6, seed=0, solver=solver)
        assert x.shape == (10, 2, *space.event_shape)
        assert x.dtype == torch.float32
        space.check(x)


@pytest.mark.parametrize("space", [Sphere(1), Sphere(2), Sphere(4), SO3()], ids=repr)
def test_a_flow_runs_back(space):
    generator = gm.Flow(TangentVelocity(Linear(space), GeodesicPath(space)))
    x = points(space, 0, 10, (2,)).float()
    back = gm.sample(generator, x, steps=40, start=1.0, stop=0.0, solver=gm.solvers.RK4())
    again = gm.sample(generator, back, steps=40, solver=gm.solvers.RK4())
    assert float(space.distance(back, x).min()) > 1e-2
    close(space.distance(again, x), torch.zeros(10, 2), 1e-3)


def test_a_rotation_and_a_shift_are_a_product():
    turns = SO3()
    path = gm.ProductPath({"turn": GeodesicPath(turns), "shift": gm.GaussianPath()})

    class Joint(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(14, 12)

        def forward(self, x, t):
            times = torch.stack([t["turn"], t["shift"]], 1)
            out = self.inner(torch.cat([x["turn"].flatten(1), x["shift"], times], 1))
            return {"turn": out[:, :9].unflatten(1, (3, 3)), "shift": out[:, 9:]}

    factors = {"turn": TangentVelocity, "shift": gm.predict.Velocity}
    model = gm.predict.Product(Joint(), factors, path)
    data = {"turn": points(turns, 0, 16).float(), "shift": gm.Draws(1, 16).normal((16, 3))}
    assert bool(gm.matching_loss(model, data, seed=0).isfinite())
    flow = gm.Product(model, {"turn": gm.Flow, "shift": gm.Flow})
    for solver in (gm.solvers.Euler(), gm.solvers.RK4()):
        x = gm.sample(flow, {"turn": (5, 3, 3), "shift": (5, 3)}, steps=4, seed=0, solver=solver)
        turns.check(x["turn"])
        assert x["shift"].shape == (5, 3)
    with pytest.raises(ValueError, match=r"off SO3\(\) by up to 2"):
        gm.matching_loss(model, {**data, "turn": -data["turn"]}, seed=0)


# Sources


def test_uniform_points():
    """Means of harmonics of the first two degrees vanish, and components have the variance of the uniform law."""
    for space in (Sphere(2), SO3(), Torus(2)):
        n = 20_000
        x = UniformPoints(space).draw((n, *space.event_shape), gm.Draws(0, n)).double()
        space.check(x)
        first = x.cos() if isinstance(space, Torus) else x * math.sqrt(3)  # each entry has variance 1/3
        scale = math.sqrt(2) if isinstance(space, Torus) else 1.0
        flat = first.flatten(1) * scale
        assert float(flat.mean(0).abs().max()) < 5 / math.sqrt(n)
        assert float((flat.T @ flat / n - torch.eye(flat.shape[1])).abs().max()) < 8 / math.sqrt(n)


def test_wrapped_normals():
    n = 20_000
    for space in (Sphere(2), SO3(), Torus(2), PoincareBall(2, -2.0)):
        mean = points(space, 5, 1)[0].float()
        x = WrappedNormal(space, mean, 0.3).draw((n, *space.event_shape), gm.Draws(0, n))
        space.check(x)
        v = space.log(mean.expand_as(x), x)
        squared = space.inner(mean.expand_as(x), v, v)
        expected = 0.09 * space.dimension
        assert float(squared.mean()) == pytest.approx(expected, rel=6 * math.sqrt(2 / space.dimension / n))


# Bad input


def test_what_is_no_path():
    with pytest.raises(
        TypeError, match=r"space must be a manifold such as gm.spaces.Sphere\(2\), got the class Sphere"
    ):
        GeodesicPath(Sphere)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"space must be a manifold .*, got Euclidean"):
        GeodesicPath(gm.spaces.Euclidean())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"alpha runs from 0 to 1, VE\(.*runs from 1 to 1: CondOT"):
        GeodesicPath(Sphere(2), schedule=gm.schedules.VE())
    with pytest.raises(TypeError, match="schedule must be a genmatch Schedule, got str"):
        GeodesicPath(Sphere(2), schedule="linear")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="source must be a tensor of samples or have a method draw"):
        GeodesicPath(Sphere(2), source=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"4 of 4 points are off Sphere\(2\)"):
        GeodesicPath(Sphere(2), source=torch.ones(4, 3))
    with pytest.raises(ValueError, match="infinite volume and no uniform law"):
        UniformPoints(PoincareBall(2))
    with pytest.raises(ValueError, match=r"mean must be one point of Sphere\(2\), shape \(3,\), got \(1, 3\)"):
        WrappedNormal(Sphere(2), torch.tensor([[0.0, 0.0, 1.0]]))
    with pytest.raises(ValueError, match=r"1 of 1 points are off Sphere\(2\)"):
        WrappedNormal(Sphere(2), torch.tensor([0.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match="scale must be above 0"):
        WrappedNormal(Sphere(2), torch.tensor([0.0, 0.0, 1.0]), 0.0)
    with pytest.raises(TypeError, match="mean must be a tensor, one point of"):
        WrappedNormal(Sphere(2), [0.0, 0.0, 1.0])  # type: ignore[arg-type]


def test_what_is_no_predictor():
    space = Sphere(2)
    path, x1 = GeodesicPath(space), points(Sphere(2), 0, 4).float()
    with pytest.raises(TypeError, match="TangentVelocity needs a GeodesicPath, got GaussianPath"):
        TangentVelocity(Linear(space), gm.GaussianPath())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Velocity needs a GaussianPath, got GeodesicPath"):
        gm.predict.Velocity(Linear(space), path)  # type: ignore[arg-type]

    class Wide(nn.Module):
        def forward(self, x, t):
            return x.new_zeros(4, 4)

    with pytest.raises(ValueError, match=r"returned shape \(4, 4\) for a state of shape \(4, 3\)"):
        TangentVelocity(Wide(), path)(x1, 0.5)
    model = TangentVelocity(Linear(space), path)
    with pytest.raises(ValueError, match="4 of 4 points are off"):
        gm.matching_loss(model, 2 * x1)
    with pytest.raises(ValueError, match="4 of 4 points are off"):
        gm.sample(gm.Flow(model), 2 * x1, steps=2)
    with pytest.raises(ValueError, match=r"points of shape \(3\), got \(4, 2\)"):
        gm.sample(gm.Flow(model), (4, 2), steps=2)
    with pytest.raises((TypeError, ValueError), match="score"):
        gm.Langevin(model, gm.diffusivity.Constant(1.0))
    with pytest.raises(ValueError, match=r"is not noise at t = 0.5, where kappa = 0.5: pass states drawn from its p_t"):
        gm.sample(gm.Flow(model), (4, 3), steps=2, start=0.5)


def test_paths_compare_by_value():
    assert GeodesicPath(Sphere(2)) == GeodesicPath(Sphere(2)) != GeodesicPath(Sphere(3))
    assert GeodesicPath(PoincareBall(2)) == GeodesicPath(PoincareBall(2))
    assert hash(GeodesicPath(SO3())) == hash(GeodesicPath(SO3()))
    assert GeodesicPath(Sphere(2), schedule=gm.schedules.Cosine()) != GeodesicPath(Sphere(2))
    pole = torch.tensor([0.0, 0.0, 1.0])
    normal = WrappedNormal(Sphere(2), pole, 0.5)
    assert GeodesicPath(Sphere(2), normal) == GeodesicPath(Sphere(2), WrappedNormal(Sphere(2), pole.clone(), 0.5))
    assert repr(GeodesicPath(Torus(2))) == "GeodesicPath(Torus(2))"
    assert repr(GeodesicPath(PoincareBall(2))) == "GeodesicPath(PoincareBall(2))"
    assert (
        repr(GeodesicPath(Sphere(2), normal))
        == "GeodesicPath(Sphere(2), source=WrappedNormal(Sphere(2), [0.0, 0.0, 1.0], 0.5))"
    )
