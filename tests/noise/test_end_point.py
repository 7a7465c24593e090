r"""The end-point solver: the same process as Euler on the Ito triplet, at order 1, without a derivative.

No Monte Carlo: a run is an integral operator, applied to functions on a grid (:mod:`noise_worlds`).
"""

from __future__ import annotations

import math
from typing import Any

import noise_worlds as worlds
import numpy as np
import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.diffusivity import Constant, Curvature, EndpointSafe, StateDependent
from genmatch.generators import Multiplicative
from genmatch.solvers import EndPoint, Euler, Field

FAST = 20.0  # the variance is multiplied by this, so that a run is as long as that many units of time
SQUARE = worlds.TESTS["square"]


def normal_mean(values: Tensor) -> float:
    """<N(0, 1), f> on the grid."""
    weights = torch.exp(-0.5 * worlds.GRID[:, 0] ** 2)
    return ((values * weights).sum() / weights.sum()).item()


def stationary(operator: Any, solver: gm.Solver, steps: int) -> float:
    """Mean of x^2 at the end of a run that starts anywhere: from 0 and from 1 alike, if it has forgotten its start."""
    values = worlds.backward(operator, solver, gm.grids.uniform(steps), SQUARE)
    middle = len(worlds.GRID) // 2
    start, other = values[middle].item(), values[middle + round(1 / worlds.STEP)].item()
    assert abs(start - other) < 5e-3
    return start


class Careless(worlds.Careless):
    """The planted bug, as fast as the rest."""

    def triplet(self, x: Tensor, t: Any, prediction: Any) -> gm.Triplet:
        return FAST * super().triplet(x, t, prediction)


def test_dropping_the_divergence_gives_the_predicted_wrong_law():
    """Without it the stationary law is p/A; the variance of that, by quadrature, is 1.647 for this A, not 1."""
    x = worlds.GRID[:, 0]
    wrong = torch.exp(-0.5 * x**2) / worlds.bell(x, 0)
    predicted = ((wrong * x**2).sum() / wrong.sum()).item()
    assert predicted == pytest.approx(1.647, abs=2e-3)
    model, steps = worlds.still(), 400  # h = 0.05 in units of the process
    noise = StateDependent(worlds.bell, Constant(FAST))
    right = gm.Flow(model) + Multiplicative(model, noise)
    assert stationary(gm.Flow(model) + Careless(model), Euler(), steps) == pytest.approx(predicted, abs=0.08)
    assert stationary(right, Euler(), steps) == pytest.approx(1.0, abs=0.06)
    assert stationary(right, EndPoint(), steps) == pytest.approx(1.0, abs=0.06)


class Midway(gm.Solver):
    """The planted bug of convention: noise of half way to the end point (Stratonovich)."""

    parts, order = frozenset({"drift", "variance"}), 1

    def defined(self, field, t):
        return True

    def plan(self, field, times):
        return EndPoint().plan(field, times)

    def evaluations(self, plan):
        return len(plan)

    def step(self, field, x, c, draws, carry):
        (prediction,) = field.operator.predict(x, c.instant, None)
        triplet, variance = field.operator.terms[1][1].end_point(x, c.instant.t, prediction)
        z = draws.normal(x.shape)
        ahead = x + 0.5 * (c.h * triplet.variance).sqrt() * z
        return x + c.h * triplet.drift + (c.h * variance(ahead)).sqrt() * z, None


def test_the_noise_is_that_of_the_end_and_not_of_the_middle():
    model = worlds.still()
    right = gm.Flow(model) + Multiplicative(model, StateDependent(worlds.bell, Constant(FAST)))
    assert abs(stationary(right, Midway(), 400) - 1) > 0.1


WORLD = worlds.Mixture(gm.schedules.CondOT())
NOISE = StateDependent(lambda x, t: (1 + t) * worlds.bell(x, t), EndpointSafe(1.0))


def runs(solver: gm.Solver, operator: Any, steps: int, function, start: float, stop: float) -> Tensor:
    return worlds.backward(operator, solver, start + (stop - start) * gm.grids.uniform(steps), function)


@pytest.mark.parametrize("solver", [Euler(), EndPoint()], ids=repr)
def test_the_law_is_reached_at_order_one(solver: gm.Solver):
    """From p_0.1 exactly: the mean of f under p_0.9 is approached like h."""
    operator = gm.Diffusion(WORLD.model, NOISE)
    begin, end = WORLD.density(0.1), WORLD.density(0.9)
    errors = {name: [] for name in ("square", "bump")}
    steps = (50, 100, 200)
    for name in errors:
        function = worlds.TESTS[name]
        truth = ((end * function(worlds.GRID)).sum() / end.sum()).item()
        for n in steps:
            values = runs(solver, operator, n, function, 0.1, 0.9)
            errors[name].append(abs(((begin * values).sum() / begin.sum()).item() - truth))
    for name, own in errors.items():
        assert 0.8 < worlds.slope(steps, own) < 1.4, name
        assert own[-1] < 2e-2


def test_it_is_the_same_process_as_euler_on_the_ito_triplet():
    """Not the same marginals alone: the mean given where a path was. Against Euler, extrapolated to h = 0."""
    operator, function, steps = gm.Diffusion(WORLD.model, NOISE), worlds.TESTS["step"], (10, 20, 40)
    fine, finer = (runs(Euler(), operator, n, function, 0.2, 0.8) for n in (80, 160))
    inner = slice(len(worlds.GRID) // 2 - 30, len(worlds.GRID) // 2 + 31)  # |x| <= 1.5
    truth = (2 * finer - fine)[inner]
    errors = [(runs(EndPoint(), operator, n, function, 0.2, 0.8)[inner] - truth).abs().max().item() for n in steps]
    assert worlds.slope(steps, errors) > 0.8
    assert errors[-1] < 2e-2
    other = gm.Diffusion(WORLD.model, StateDependent(lambda x, t: (1 + t) * worlds.bell(x, t), EndpointSafe(0.5)))
    assert (runs(EndPoint(), other, 40, function, 0.2, 0.8)[inner] - truth).abs().max() > 5e-2, "noise plays no role"


def test_samples_have_the_moments_of_the_data():
    for noise in (NOISE, StateDependent(worlds.bell, EndpointSafe(), elementwise=True)):
        x = gm.sample(gm.Diffusion(WORLD.model, noise), (8000, 1), steps=100, seed=0, solver=EndPoint())
        mean = sum(w * m for w, m in zip(worlds.WEIGHTS, worlds.MEANS, strict=True))
        square = sum(w * (m**2 + v) for w, m, v in zip(worlds.WEIGHTS, worlds.MEANS, worlds.VARIANCES, strict=True))
        assert x.mean().item() == pytest.approx(mean, abs=0.05)
        assert x.square().mean().item() == pytest.approx(square, abs=0.07)


def test_nothing_is_differentiated():
    """A variance that only numpy can compute: no derivative of it can be taken."""

    def rough(x: Tensor, t: Any) -> Tensor:
        return torch.from_numpy(0.5 + 1.5 * np.exp(-np.square(x.detach().numpy())))

    smooth = gm.Diffusion(WORLD.model, StateDependent(worlds.bell, EndpointSafe()))
    sde = gm.Diffusion(WORLD.model, StateDependent(rough, EndpointSafe()))
    arguments: dict[str, Any] = {"steps": 5, "seed": 0}
    expected = gm.sample(smooth, (6, 1), solver=EndPoint(), **arguments)
    torch.testing.assert_close(gm.sample(sde, (6, 1), solver=EndPoint(), **arguments), expected)
    with pytest.raises((RuntimeError, TypeError)):
        gm.sample(sde, (6, 1), solver=Euler(), **arguments)


def test_without_state_dependent_noise_it_is_euler():
    model = WORLD.model
    for operator in (
        gm.Flow(model),
        gm.Diffusion(model, EndpointSafe()),
        0.5 * gm.Flow(model) + 0.5 * gm.Diffusion(model, Constant(0.3)),
    ):
        pair = [gm.sample(operator, (5, 1), steps=6, seed=1, stop=0.9, solver=s) for s in (Euler(), EndPoint())]
        torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_noises_add_up():
    """A sum of state-dependent and constant noise is the noise of the summed variance."""
    model = WORLD.model
    parts = (
        gm.Flow(model)
        + 0.5 * Multiplicative(model, StateDependent(worlds.bell))
        + 2 * gm.Langevin(model, Constant(0.3))
    )
    whole = gm.Diffusion(model, StateDependent(lambda x, t: 0.5 * worlds.bell(x, t) + 0.6))
    pair = [gm.sample(o, (5, 1), steps=6, seed=1, start=0.0, stop=0.9, solver=EndPoint()) for o in (parts, whole)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_products_are_refused():
    field = Field(gm.Flow(worlds.still()), {"a": torch.zeros(1, 1), "b": torch.zeros(1, 1)})
    with pytest.raises(ValueError, match="states that are one tensor, got a product"):
        EndPoint().plan(field, gm.grids.uniform(3))


class Noisy(gm.Generator):
    """A user's own state-dependent noise, that says nothing of its divergence."""

    additive = False

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.velocity, variance=1 + x.square())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: gm.sample(Noisy(WORLD.model), (4, 1), steps=4, solver=EndPoint(), seed=0),
            r"Noisy gives none: write a method end_point\(x, t, prediction\)",
        ),
        (
            lambda: gm.sample(
                gm.Diffusion(WORLD.model, NOISE), torch.zeros(4, 1), start=0.9, stop=0.1, solver=EndPoint(), seed=0
            ),
            "noise and jumps run from noise to data",
        ),
        (
            lambda: gm.sample(
                gm.Flow(WORLD.model) - Multiplicative(WORLD.model, NOISE), (4, 1), steps=4, solver=EndPoint(), seed=0
            ),
            "make the variance negative",
        ),
        (
            lambda: gm.sample(
                gm.Diffusion(WORLD.model, StateDependent(worlds.bell, gm.diffusivity.Memoryless())),
                (4, 1),
                steps=4,
                solver=EndPoint(),
                seed=0,
            ),
            r"EndPoint\(\) cannot start at t = 0",
        ),
    ],
)
def test_what_it_cannot_step_is_refused(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_users_generator_can_tell():
    class Told(Noisy):
        def end_point(self, x, t, prediction):
            variance = 1 + x.square()
            return gm.Triplet(drift=prediction.velocity - x, variance=variance), lambda y: 1 + y.square()

    x = gm.sample(Told(WORLD.model), (6, 1), steps=4, solver=EndPoint(), seed=0)
    assert x.isfinite().all()


COMPILED = {
    "scalar": StateDependent(lambda x, t: 0.5 + torch.exp(-x.square().sum(-1, keepdim=True))),
    "elementwise": StateDependent(lambda x, t: 1 / (1 + x.square()), elementwise=True),
    "diagonal": StateDependent(lambda x, t: 0.5 + x.square() * torch.sin(x.flip(-1)) ** 2),
    "curvature": Curvature(),
}


@pytest.mark.parametrize(
    ("solver", "noise"),
    [
        (EndPoint(), "scalar"),
        pytest.param(Euler(), "scalar", marks=pytest.mark.slow),
        *(
            pytest.param(solver, noise, marks=pytest.mark.slow)
            for solver in (Euler(), EndPoint())
            for noise in ("elementwise", "diagonal", "curvature")
        ),
    ],
    ids=repr,
)
def test_a_step_compiles_as_one_graph(solver: gm.Solver, noise: str):
    model = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.4], [0.8, -0.5]]), 0.3).predictor(gm.GaussianPath())
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs):
        graphs.append(graph)
        return graph.forward

    fast = slow = gm.Draws(1, 6).normal((6, 2))
    field = Field(gm.Diffusion(model, COMPILED[noise]), fast)
    plan = solver.plan(field, gm.grids.uniform(5, 0.05, 0.95))
    step = torch.compile(solver.step, fullgraph=True, backend=backend)
    with torch.no_grad():
        for c, draws in zip(plan, gm.Draws(0, 6).steps(len(plan)), strict=True):
            fast, _ = step(field, fast, c, draws, None)
            slow, _ = solver.step(field, slow, c, draws, None)
    torch.testing.assert_close(fast, slow)
    assert 1 <= len(graphs) <= 4


class Bands(gm.Generator):
    """The same noise on the sphere, without the gradient of its variance: the planted bug."""

    speed, additive = 0.0, False

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=torch.zeros_like(x), variance=4 * bands(x, t))


def bands(x: Tensor, t: Any) -> Tensor:
    """A variance that is least on the equator."""
    return 0.2 + 2 * x[..., 2:].square()


def test_on_the_sphere_the_uniform_law_is_left_alone():
    """And without the gradient it becomes 1/A, by quadrature over the height, which is uniform."""
    sphere = gm.spaces.Sphere(2)
    path = gm.paths.GeodesicPath(sphere)
    flow = gm.Flow(gm.predict.TangentVelocity(worlds.Still(), path))
    uniform = gm.predict.Density(lambda x, t: 0 * (x.sum(-1) + t) - math.log(4 * math.pi), path)
    right = flow + Multiplicative(uniform, StateDependent(bands, Constant(4.0)))
    start = gm.paths.UniformPoints(sphere).draw((6000, 3), gm.Draws(3, 6000))
    height = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    share = 1 / (0.2 + 2 * height**2)
    predicted = ((share * height**2).sum() / share.sum()).item()
    assert predicted < 0.25
    for operator, solver, expected in (
        (right, Euler(), 1 / 3),
        (right, EndPoint(), 1 / 3),
        (flow + Bands(uniform), Euler(), predicted),
    ):
        x = gm.sample(operator, start, steps=100, seed=0, solver=solver)
        assert x[:, 2].square().mean().item() == pytest.approx(expected, abs=0.02)
        assert (x.norm(dim=-1) - 1).abs().max() < 1e-5
