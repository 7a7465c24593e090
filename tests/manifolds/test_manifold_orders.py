"""Solvers on manifolds: orders against exact flows, and states that stay where they belong."""

from __future__ import annotations

import math

import pytest
import torch
from curved_worlds import NAMES, SPACES, ExactField, clock, moebius, pace, points, skew

import genmatch as gm
from genmatch.paths import GeodesicPath, UniformPoints, WrappedNormal
from genmatch.spaces import SO3, PoincareBall, Sphere, Torus

FOUR = [Sphere(2), Torus(3), SO3(), PoincareBall(2)]


def axis(space, length=1.0):
    e = torch.zeros(space.event_shape, dtype=torch.float64)
    e[0] = length
    return e


def spinning(space):
    """A rotation about the first axis of a sphere."""
    return torch.block_diag(torch.zeros(1, 1), torch.tensor([[0.0, -2.0], [2.0, 0.0]])).double()


def sphere_turn(space):
    turn = spinning(space)
    return (lambda x, t: pace(t) * x @ turn.T), (lambda x: x @ torch.linalg.matrix_exp(clock(1) * turn).T)


def sphere_fall(space):
    """Towards the first axis at a speed that depends on where, turning about it: tanh m = artanh m_0 + K."""
    e, turn = axis(space, 1.5), spinning(space)

    def field(x, t):
        return pace(t) * (e - (x @ e)[:, None] * x + x @ turn.T)

    def flow(x):
        along = torch.tanh(torch.atanh(x[:, :1]) + 1.5 * clock(1))
        aside = x[:, 1:] / x[:, 1:].norm(dim=-1, keepdim=True) * (1 - along**2).sqrt()
        return torch.cat([along, aside], -1) @ torch.linalg.matrix_exp(clock(1) * turn).T

    return field, flow


def torus_flow(space):
    """One angle falls to pi, tan(x/2) growing like e^K; the other runs round and across the seam."""

    def field(x, t):
        return pace(t) * torch.stack([x[:, 0].sin(), torch.full_like(x[:, 0], 6.0)], -1)

    def flow(x):
        first = 2 * torch.atan((x[:, 0] / 2).tan() * math.exp(clock(1)))
        return space.project(torch.stack([first, x[:, 1] + 6 * clock(1)], -1))

    return field, flow


LEFT, RIGHT = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64), torch.tensor([0.2, 1.1, -0.6], dtype=torch.float64)


def rotations_turn(space):
    """Turned from both sides: the speed depends on where."""
    left, right = skew(LEFT), skew(RIGHT)

    def flow(x):
        return torch.linalg.matrix_exp(clock(1) * left) @ x @ torch.linalg.matrix_exp(clock(1) * right)

    return (lambda x, t: pace(t) * (left @ x + x @ right)), flow


def rotations_fall(space):
    """Towards the identity along the axis: tan(angle/2) falls like e^-K. The gradient of the trace."""

    def flow(x):
        log = space.log(torch.eye(3, dtype=x.dtype).expand_as(x), x)
        angle = (0.5 * (log * log).sum((-2, -1), keepdim=True)).sqrt()
        return torch.linalg.matrix_exp(log / angle * 2 * torch.atan((angle / 2).tan() * math.exp(-clock(1))))

    return (lambda x, t: pace(t) * 0.5 * (torch.eye(3, dtype=x.dtype) - x @ x)), flow


def ball_translation(space):
    """A Moebius translation along a: an isometry, faster the farther from its axis."""
    a, c = axis(space, 0.8), space.c

    def field(x, t):
        return pace(t) * (0.5 * (1 + c * (x * x).sum(-1, keepdim=True)) * a - c * (x @ a)[:, None] * x)

    def flow(x):
        shift = torch.tanh(math.sqrt(c) * 0.8 * clock(1) / torch.tensor(2.0, dtype=x.dtype)) / math.sqrt(c)
        return moebius(c, (shift * a / 0.8).expand_as(x), x)

    return field, flow


def ball_contraction(space):
    return (lambda x, t: -0.7 * pace(t) * x), (lambda x: x * math.exp(-0.7 * clock(1)))


WORLDS = {
    "sphere-turn": (Sphere(2), sphere_turn),
    "sphere-fall": (Sphere(2), sphere_fall),
    "torus": (Torus(2), torus_flow),
    "rotations-turn": (SO3(), rotations_turn),
    "rotations-fall": (SO3(), rotations_fall),
    "ball-translation": (PoincareBall(2), ball_translation),
    "ball-contraction": (PoincareBall(3, -2.5), ball_contraction),
}


def errors(space, make, solver, counts, like=None):
    """The largest distance from the exact flow for each number of steps."""
    field, flow = make(space)
    x = points(space, 5, 32)
    if isinstance(space, SO3):
        x = space.geodesic(torch.eye(3, dtype=x.dtype).expand_as(x), x, 0.8)  # away from half turns
    path = GeodesicPath(space if like is None else like)
    sampled = [gm.sample(gm.Flow(ExactField(path, field)), x, steps=n, solver=solver) for n in counts]
    exact = flow(x)
    assert float(space.deviation(exact).max()) < 1e-9
    return [float(space.distance(y, exact).max()) for y in sampled]


def slope(found):
    return math.log2(found[-2] / found[-1])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.Heun(), gm.solvers.RK4()], ids=repr)
def test_solvers_keep_their_order(world, solver):
    space, make = WORLDS[world]
    found = errors(space, make, solver, (64, 128) if solver.order < 4 else (48, 96))
    assert found[-1] < 0.2
    assert abs(slope(found) - solver.order) < 0.2


class Geodesics(Sphere):
    """The exponential map in the place of the projection, without transport of the slopes."""

    def retract(self, x, v):
        return self.exp(x, self.tangent(x, v))


def test_the_exponential_map_in_the_place_of_the_projection_loses_the_order():
    assert slope(errors(Sphere(2), sphere_fall, gm.solvers.RK4(), (24, 48), like=Geodesics(2))) < 2.6
    assert slope(errors(Sphere(2), sphere_fall, gm.solvers.RK4(), (24, 48))) > 3.8


@pytest.mark.parametrize("noise", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["noise", "flow"])
@pytest.mark.parametrize("space", FOUR, ids=repr)
def test_a_thousand_float32_steps_stay_on_the_manifold(space, noise):
    x = points(space, 0, 16, (2,), spread=0.2).float()

    def field(x, t):
        return space.tangent(x, 3 * torch.cos(7 * x + t))

    model = ExactField(GeodesicPath(space), field)
    generator = gm.Diffusion(model, gm.diffusivity.Constant(1.0)) if noise else gm.Flow(model)
    y = gm.sample(generator, x, steps=1000, solver=gm.solvers.Euler() if noise else gm.solvers.RK4(), seed=0)
    assert float(space.deviation(y).max()) < 1e-6
    assert float(space.distance(x, y).min()) > 1e-3
    space.check(y)


@pytest.mark.parametrize("space", SPACES, ids=NAMES)
def test_samples_do_not_depend_on_the_batch(space):
    model = ExactField(GeodesicPath(space), lambda x, t: space.tangent(x, torch.cos(x)))
    generator = gm.Diffusion(model, gm.diffusivity.Constant(0.5))
    options = {"steps": 5, "seed": 3, "dtype": torch.float64, "solver": gm.solvers.Euler()}
    whole = gm.sample(generator, (12, *space.event_shape), **options)
    parts = gm.sample(generator, (12, *space.event_shape), batch_size=5, **options)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    space.check(whole)


@pytest.mark.parametrize("space", FOUR, ids=repr)
def test_a_step_is_one_graph_and_differentiable(space):
    x = points(space, 0, 4).float()
    drift, draws = space.tangent(x, torch.cos(x)), gm.Draws(0, 4)

    def step(x, drift):
        return space.move(x, gm.Triplet(drift=drift, variance=0.3), 0.1, draws)

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, drift), step(x, drift))
    x, drift = x.double().requires_grad_(), drift.double().requires_grad_()
    assert torch.autograd.gradcheck(step, (x, drift))


def test_sources():
    for space in SPACES:
        path = GeodesicPath(space)
        source = UniformPoints(space) if space.compact else WrappedNormal(space, torch.zeros(space.event_shape))
        assert path.source == source
        space.check(path.draw_source((50, 2, *space.event_shape), gm.Draws(0, 50)))


def test_wrong_moves():
    space, x = Sphere(2), points(Sphere(2), 0, 4)
    with pytest.raises(ValueError, match=r"a drift has the shape \(4, 3\) of the state, got \(4, 1\)"):
        space.move(x, gm.Triplet(drift=torch.zeros(4, 1)), 0.1, gm.Draws(0, 4))
    for variance in (torch.ones(4), torch.ones(4, 3)):
        with pytest.raises(
            ValueError, match=r"a variance on Sphere\(2\) is a number or one for each point, \(B, ..., 1\)"
        ):
            space.move(x, gm.Triplet(variance=variance), 0.1, gm.Draws(0, 4))
    with pytest.raises(ValueError, match="a variance must be at least 0, got -1"):
        space.move(x, gm.Triplet(variance=-1.0), 0.1, gm.Draws(0, 4))
    with pytest.raises(ValueError, match=r"Torus\(2\) is a number or of the shape of the state, \(B, ..., 2\)"):
        Torus(2).move(torch.zeros(4, 2), gm.Triplet(variance=torch.ones(4)), 0.1, gm.Draws(0, 4))
    rates = gm.rates.Rates(
        gm.rates.Term(torch.ones(4, 3), gm.rates.Bins(torch.zeros(4, 3, 1), torch.tensor([0.0, 1.0])))
    )
    with pytest.raises(ValueError, match=r"a state on Sphere\(2\) jumps as a whole"):
        space.move(x, gm.Triplet(rates=rates), 0.1, gm.Draws(0, 4))
