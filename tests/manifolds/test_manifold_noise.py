"""The second-order part on manifolds: the Laplace-Beltrami operator, its random walk, and Langevin dynamics."""

from __future__ import annotations

import math

import pytest
import torch
from curved_worlds import ExactField, hermite, points, skew, vectors, von_mises_fisher
from scipy import stats

import genmatch as gm
from genmatch.paths import GeodesicPath
from genmatch.spaces import SO3, PoincareBall, Sphere, Torus

RARE = 1e-4


def height(space, x):
    """The time coordinate of the hyperboloid, cosh of the root of c times the distance from the centre."""
    squared = space.c * (x * x).sum(-1)
    return (1 + squared) / (1 - squared)


# Function, and what the Laplace-Beltrami operator makes of it: eigenfunctions, or a formula of its own.
EIGEN = {
    "circle": (Sphere(1), lambda x: x[:, 0] * x[:, 1], lambda x: -4 * x[:, 0] * x[:, 1]),
    "sphere-1": (Sphere(2), lambda x: x[:, 0], lambda x: -2 * x[:, 0]),
    "sphere-2": (Sphere(2), lambda x: x[:, 0] * x[:, 2], lambda x: -6 * x[:, 0] * x[:, 2]),
    "sphere-square": (Sphere(4), lambda x: x[:, 0] ** 2, lambda x: 2 - 10 * x[:, 0] ** 2),
    "torus": (Torus(2), lambda x: torch.cos(x[:, 0] - 2 * x[:, 1]), lambda x: -5 * torch.cos(x[:, 0] - 2 * x[:, 1])),
    "rotations-1": (SO3(), lambda x: x[:, 0, 1], lambda x: -2 * x[:, 0, 1]),
    "rotations-2": (
        SO3(),
        lambda x: x[:, 0, 0] * x[:, 1, 1] + x[:, 1, 0] * x[:, 0, 1],
        lambda x: -6 * (x[:, 0, 0] * x[:, 1, 1] + x[:, 1, 0] * x[:, 0, 1]),
    ),
    "ball": (PoincareBall(2), lambda x: height(PoincareBall(2), x), lambda x: 2 * height(PoincareBall(2), x)),
    "ball-curved": (
        PoincareBall(3, -2.5),
        lambda x: height(PoincareBall(3, -2.5), x),
        lambda x: 7.5 * height(PoincareBall(3, -2.5), x),
    ),
}


@pytest.mark.parametrize("world", EIGEN)
def test_the_laplacian(world):
    space, f, laplacian = EIGEN[world]
    x = points(space, 0, 20)
    torch.testing.assert_close(space.second_order(f, x, 0.6), 0.3 * laplacian(x))
    drift = vectors(space, x, 1)
    slope = torch.func.jvp(lambda s: f(space.exp(x, s * drift)), (x.new_zeros(()),), (x.new_ones(()),))[1]
    applied = gm.Triplet(drift=drift, variance=0.6).apply(f, x, space)
    torch.testing.assert_close(applied, slope + 0.3 * laplacian(x))


def test_the_laplacian_of_the_ball_in_coordinates():
    r"""lambda^-2 Delta f + (n - 2) c lambda^-1 x . grad f, of the metric's determinant: the second is an Ito drift."""
    space = PoincareBall(4, -1.7)
    x = points(space, 0, 20)

    def f(x):
        return x[:, 0].sin() * x[:, 1] + (x[:, 2] - x[:, 3]) ** 3

    flat = gm.Triplet(variance=2.0).apply(f, x)
    radial = gm.Triplet(drift=x).apply(f, x)
    scale = space.conformal(x)[:, 0]
    laplacian = flat / scale**2 + 2 * space.c * radial / scale
    torch.testing.assert_close(space.second_order(f, x, 2.0), laplacian)
    assert float((flat / scale**2 - laplacian).abs().max()) > 0.1  # the second term matters


def test_each_point_has_its_own_variance():
    space = Sphere(2)
    x = points(space, 0, 10, (4,))
    variance = torch.linspace(0, 1, 40).reshape(10, 4, 1).double()
    found = space.second_order(lambda x: x[:, :, 0].sum(1), x, variance)
    torch.testing.assert_close(found, -(variance * x[:, :, :1]).sum((1, 2)))
    angles = points(Torus(2), 0, 10)
    variance = torch.rand(10, 2, dtype=torch.float64)
    torch.testing.assert_close(
        Torus(2).second_order(lambda x: x.cos().sum(1), angles, variance), -0.5 * (variance * angles.cos()).sum(1)
    )


def residuals(space, f, runs):
    """For each (h, variance) the norm over 3 points of (E f(after a step) - f) / h - L f with variance 0.5.

    The mean over the noise is by quadrature.
    """
    nodes, mass = hermite(space.dimension, 10)
    start, count = points(space, 2, 3), len(nodes)
    drift = vectors(space, start, 3)
    applied = gm.Triplet(drift=drift, variance=0.5).apply(f, start, space)
    if isinstance(space, SO3):
        z = start[:, None] @ skew(nodes) / math.sqrt(2)
    elif isinstance(space, Sphere):  # an orthonormal basis of the tangent space
        z = nodes @ torch.linalg.svd(start[:, None])[2][:, 1:]
    else:
        z = nodes.expand(3, *nodes.shape)
    x, drift = (v[:, None].expand_as(z).flatten(0, 1) for v in (start, drift))
    norms = []
    for h, variance in runs:
        y = space.move(x, gm.Triplet(drift=drift, variance=variance), h, gm.Draws(0, len(x)), noise=z.flatten(0, 1))
        mean = f(y).reshape(3, count) @ mass
        norms.append(float(((mean - f(start)) / h - applied).norm()))
    return norms


@pytest.mark.parametrize(
    "world", ["sphere-1", "sphere-2", "torus", "rotations-1", "rotations-2", "ball", "ball-curved"]
)
def test_a_step_has_weak_order_one(world):
    """The local error is O(h^2): one step's error over h halves with h. With another variance it stays."""
    space, f, _ = EIGEN[world]
    coarse, fine, *wrong = residuals(
        space, f, [(0.004, 0.5), (0.002, 0.5), (0.002, 0.25), (0.002, 1.0), (0.002, 0.5**0.5)]
    )
    assert abs(coarse / fine - 2) < 0.1
    assert min(wrong) > 8 * fine


BROWNIAN = {
    "sphere": (Sphere(2), lambda x: x, 1.0),
    "sphere-4": (Sphere(4), lambda x: x, 2.0),
    "torus": (Torus(2), lambda x: x.cos(), 0.5),
    "rotations": (SO3(), lambda x: x, 1.0),
    "ball": (PoincareBall(3), lambda x: height(PoincareBall(3), x)[:, None], -1.5),
}


@pytest.mark.parametrize("world", BROWNIAN)
def test_brownian_motion(world):
    """E f(x_t) = exp(-rate * variance * t) f(x_0): exp(-n t / 2) x_0 on the n-sphere."""
    space, f, rate = BROWNIAN[world]
    n, variance = 6000, 0.7
    x = points(space, 8, 1).expand(n, *space.event_shape).contiguous()
    model = ExactField(GeodesicPath(space))
    y = f(
        gm.sample(
            gm.Diffusion(model, gm.diffusivity.Constant(variance)), x, steps=40, seed=1, solver=gm.solvers.Euler()
        )
    )
    start = f(x)[0]

    def score(rate):
        error = y.mean(0) - math.exp(-rate * variance) * start
        return float((error / (y.std(0) / math.sqrt(n))).abs().max())

    assert score(rate) < 4.5
    assert score(rate / 2) > 9  # noise of half the variance
    assert score(rate * 2) > 9


def test_brownian_motion_of_many_points():
    space, n = Sphere(2), 3000
    x = points(space, 3, 1, (2,)).expand(n, 2, 3).contiguous()
    model = ExactField(GeodesicPath(space))
    y = gm.sample(gm.Diffusion(model, gm.diffusivity.Constant(1.0)), x, steps=20, seed=1, solver=gm.solvers.Euler())
    error = (y.mean(0) - math.exp(-1) * x[0]) / y.std(0) * math.sqrt(n)
    assert float(error.abs().max()) < 4.5
    # The points move on their own: the mean of a product is the product of the means.
    product = y[:, 0] * y[:, 1]
    error = (product.mean(0) - math.exp(-2) * x[0, 0] * x[0, 1]) / product.std(0) * math.sqrt(n)
    assert float(error.abs().max()) < 4.5


@pytest.mark.parametrize(
    ("factor", "solver"),
    [(1.0, gm.solvers.Euler()), (2.0, gm.solvers.Euler()), (1.0, gm.solvers.Heun())],
    ids=["langevin", "no-half", "heun"],
)
def test_langevin_keeps_a_von_mises_fisher_law(factor, solver):
    """With the drift g^2/2 times the score the law stays; without the 1/2 it becomes that of twice the kappa."""
    kappa, n = 3.0, 5000
    mean = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    space = Sphere(2)
    x = von_mises_fisher(kappa, mean, gm.Draws(5, n))
    space.check(x)
    model = ExactField(GeodesicPath(space), score=lambda x, t: factor * kappa * space.tangent(x, mean.expand_as(x)))
    still = gm.Flow(model) + gm.Langevin(model, gm.diffusivity.Constant(4.0))
    y = gm.sample(still, x, steps=160, seed=2, solver=solver)

    def cdf(kappa):
        return lambda m: (torch.as_tensor(kappa * (m - 1)).exp() - math.exp(-2 * kappa)) / (1 - math.exp(-2 * kappa))

    along = (y @ mean).numpy()
    kept, doubled = (stats.kstest(along, lambda m, k=k: cdf(k)(m).numpy()).pvalue for k in (kappa, 2 * kappa))
    assert (kept > RARE) == (factor == 1.0)
    assert (doubled > RARE) == (factor == 2.0)
    moved = (x - y).norm(dim=1).mean()
    assert float(moved) > 0.5


def test_langevin_on_the_ball_keeps_a_law_that_is_a_density_by_volume():
    """p = exp(-beta cosh d) by Riemannian volume on the plane: cosh d - 1 is exponential with rate beta."""
    space, beta, n = PoincareBall(2), 2.0, 4000
    model = ExactField(
        GeodesicPath(space),
        # grad_g = lambda^-2 grad, of cosh d = (1 + |x|^2) / (1 - |x|^2) with grad 4 x / (1 - |x|^2)^2 = lambda^2 x
        score=lambda x, t: -beta * x,
    )
    u = gm.Draws(0, n).uniform((n, 1), torch.float64)
    d = torch.acosh(1 - torch.log1p(-u) / beta)
    ray = Sphere(1).uniform((n, 2), gm.Draws(1, n)).double()
    x = space.exp(torch.zeros(n, 2, dtype=torch.float64), ray * d / 2)
    noise = gm.Diffusion(model, gm.diffusivity.Constant(2.0))
    y = gm.sample(noise, x, steps=100, seed=2, solver=gm.solvers.Euler())
    law = stats.expon(scale=1 / beta)
    assert stats.kstest((height(space, x) - 1).numpy(), law.cdf).pvalue > RARE
    assert stats.kstest((height(space, y) - 1).numpy(), law.cdf).pvalue > RARE
    # The density by Lebesgue measure is lambda^2 times p: its Euclidean score is another drift, and another law.
    wrong = ExactField(GeodesicPath(space), score=lambda x, t: -beta * x + 2 * x / space.conformal(x))
    y = gm.sample(gm.Diffusion(wrong, gm.diffusivity.Constant(2.0)), x, steps=100, seed=2, solver=gm.solvers.Euler())
    assert stats.kstest((height(space, y) - 1).numpy(), law.cdf).pvalue < RARE
