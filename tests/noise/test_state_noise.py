r"""Noise that depends on the state: it leaves every law alone, and without its divergence it does not."""

from __future__ import annotations

import math
from typing import Any

import noise_worlds as worlds
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.diffusivity import Constant, Curvature, EndpointSafe, Memoryless, StateDependent
from genmatch.generators import Multiplicative
from genmatch.generators.multiplicative import divergence

SCHEDULES = {"condot": gm.schedules.CondOT(), "cosine": gm.schedules.Cosine(), "vp": gm.schedules.VP()}
WORLDS = {name: worlds.Mixture(schedule) for name, schedule in SCHEDULES.items()}
NOISES = {
    "bell": StateDependent(worlds.bell),
    "wave": StateDependent(lambda x, t: 0.4 + 0.8 * torch.sin(1.3 * x + t) ** 2, EndpointSafe(1.5)),
    "memoryless": StateDependent(lambda x, t: torch.sigmoid(2 * x), Memoryless(0.7)),
    "elementwise": StateDependent(worlds.bell, elementwise=True),
    "touching 0": StateDependent(lambda x, t: x.square() / (1 + x.square())),
}


# The forward equation


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("world", WORLDS)
def test_the_law_is_left_alone(world: str, noise: str):
    model = WORLDS[world].model
    for t in (0.1, 0.5, 0.9):
        law = WORLDS[world].law(t)
        own = Multiplicative(model, NOISES[noise])
        assert worlds.residual(own, law, t) < 1e-6
        assert worlds.residual(gm.Diffusion(model, NOISES[noise]), law, t) < 1e-6
        assert worlds.residual(0.7 * gm.Flow(model) + 0.3 * gm.Diffusion(model) + 2 * own, law, t) < 1e-6
        assert worlds.residual(own, law, t, speed=1.0) > 1e-3, "speed 0 passes for speed 1"


def test_without_the_divergence_it_is_not():
    world = WORLDS["condot"]
    assert worlds.residual(worlds.Careless(world.model), world.law(0.5), 0.5) > 0.05


def test_a_module_is_a_variance_and_its_parameters_are_the_generators():
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor, t: Any) -> Tensor:
            return self.gain**2 * (1 + x.square()) / (1 + 0.1 * x**4)

    generator = Multiplicative(WORLDS["condot"].model, StateDependent(Gain()))
    assert worlds.residual(generator, WORLDS["condot"].law(0.5), 0.5) < 1e-6
    assert [name for name, _ in generator.named_parameters()] == ["function.gain"]
    triplet = generator(worlds.GRID.float(), 0.5)
    (gradient,) = torch.autograd.grad(triplet.drift.sum(), list(generator.parameters()))
    assert gradient.abs() > 0


# The divergence


X = gm.Draws(0, 6).normal((6, 3), torch.float64)


def full(x: Tensor) -> Tensor:
    """A diagonal whose entries depend on all coordinates."""
    return 1 + x.square() * torch.sin(x.roll(1, -1)) ** 2


def jacobian(function, x: Tensor) -> Tensor:
    """By central differences, (B, value, coordinate)."""
    h, columns = 1e-5, []
    for i in range(x.shape[1]):
        e = torch.zeros_like(x)
        e[:, i] = h
        columns.append((function(x + e) - function(x - e)) / (2 * h))
    return torch.stack(columns, -1)


@pytest.mark.parametrize("grad", [True, False])
def test_divergences_are_those_of_finite_differences(grad: bool):
    scalar = lambda x: torch.exp(-x.square().sum(-1, keepdim=True))  # noqa: E731
    single = lambda x: torch.cos(x) + 2  # noqa: E731
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(divergence(scalar, X), jacobian(scalar, X)[:, 0], rtol=1e-6, atol=1e-9)
        diagonal = jacobian(full, X).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(divergence(full, X), diagonal, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(divergence(single, X, elementwise=True), -torch.sin(X))
        torch.testing.assert_close(divergence(single, X), -torch.sin(X))
        torch.testing.assert_close(divergence(torch.ones_like, X), torch.zeros_like(X))
    assert not torch.allclose(divergence(full, X), jacobian(full, X).sum(1)), (
        "the sum over rows passes for the diagonal"
    )


def test_images_have_diagonals_too():
    x = gm.Draws(0, 2).normal((2, 1, 2, 2), torch.float64)
    value = divergence(lambda y: y.square() * y.sum((1, 2, 3), keepdim=True), x)
    torch.testing.assert_close(value, 2 * x * x.sum((1, 2, 3), keepdim=True) + x.square())


@pytest.mark.parametrize(
    "noise",
    [
        StateDependent(lambda x, t: 0.5 + torch.exp(-x.square().sum(-1, keepdim=True))),
        StateDependent(lambda x, t: full(x)),
        StateDependent(lambda x, t: 1 / (1 + x.square()), elementwise=True),
        Curvature(EndpointSafe(0.8), half=0.6, softening=1.0),
        Curvature(EndpointSafe(0.8), where="straight", softening=1.0),
    ],
    ids=["scalar", "diagonal", "elementwise", "bent", "straight"],
)
def test_the_law_in_the_plane_is_left_alone(noise):
    """By quadrature on a square: scalar and diagonal A, and A that reads the network."""
    world = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.4], [0.8, -0.5]]), 0.3, [0.4, 0.6])
    model = world.predictor(gm.GaussianPath())
    t, line = 0.6, torch.linspace(-6, 6, 221, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    density = world.log_prob(grid, t, gm.schedules.CondOT()).exp()
    triplet = Multiplicative(model, noise)(grid, t)
    careless = gm.Triplet(drift=0.5 * triplet.variance * model(grid, t).score, variance=triplet.variance)
    for function in (lambda x: torch.sin(x[:, 0] + 0.5 * x[:, 1]), lambda x: x[:, 0] * x[:, 1] + x[:, 1] ** 2):
        for value, holds in ((triplet.apply(function, grid), True), (careless.apply(function, grid), False)):
            error = (density * value).sum().abs() / (density * value.abs()).sum()
            assert (error < 1e-6) if holds else (error > 1e-3)


# What it looks like to users


def test_the_dispatch_of_diffusion():
    model = WORLDS["condot"].model
    kinds = [type(generator) for _, generator in gm.Diffusion(model, NOISES["bell"]).terms]
    assert kinds == [gm.Flow, Multiplicative]
    assert [type(g) for _, g in gm.Diffusion(model).terms] == [gm.Flow, gm.Langevin]
    bent = gm.Diffusion(gm.worlds.GaussianMixture(torch.zeros(1, 2), 1.0).predictor(gm.GaussianPath()), Curvature())
    assert len(bent.models) == 1, "flow and noise run two networks"


def test_times_run_along_the_batch():
    model = WORLDS["condot"].model
    sde = gm.Diffusion(model, StateDependent(lambda x, t: (1 + t) * worlds.bell(x, t), EndpointSafe()))
    x, t = X[:, :1], torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    together = sde(x, t)
    for i in range(6):
        alone = sde(x[i : i + 1], t[i].item())
        torch.testing.assert_close(together.drift[i], alone.drift[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.variance[i], alone.variance[0])


def test_a_step_of_a_sample_does_not_depend_on_the_batch():
    model = gm.worlds.GaussianMixture(torch.tensor([[-1.0, 0.4], [0.8, -0.5]]), 0.3).predictor(gm.GaussianPath())
    for noise in (Curvature(), StateDependent(lambda x, t: full(x), EndpointSafe())):
        for solver in (gm.solvers.Euler(), gm.solvers.EndPoint()):
            arguments: dict[str, Any] = {"steps": 4, "seed": 3, "solver": solver, "stop": 0.9}
            whole = gm.sample(gm.Diffusion(model, noise), (8, 2), **arguments)
            parts = gm.sample(gm.Diffusion(model, noise), (8, 2), batch_size=3, **arguments)
            torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_gradients_pass_through_the_steps():
    network = nn.Linear(2, 2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(self.inner(x))

    sde = gm.Diffusion(gm.predict.Velocity(Net(), gm.GaussianPath()), StateDependent(lambda x, t: full(x)))
    for solver in (gm.solvers.Euler(), gm.solvers.EndPoint()):
        end = gm.sample(sde, (4, 2), steps=3, seed=0, stop=0.8, solver=solver, grad=True)
        (gradient,) = torch.autograd.grad(end.square().sum(), network.weight)
        assert gradient.abs().sum() > 0


# Bad input


MODEL = WORLDS["condot"].model
ROW = torch.zeros(4, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StateDependent(0.5), TypeError, r"function of \(x, t\).*got float.*gm.diffusivity.Constant"),
        (lambda: StateDependent(worlds.bell, 2.0), TypeError, r"scale must be a Diffusivity.*Constant\(2.0\)"),
        (lambda: Multiplicative(MODEL, Constant(1.0)), TypeError, "depends on the state.*got Constant.*gm.Langevin"),
        (
            lambda: gm.Langevin(MODEL, NOISES["bell"]),
            TypeError,
            "same at every state, got StateDependent.*Multiplicative",
        ),
        (lambda: Multiplicative(worlds.Still(), NOISES["bell"]), TypeError, "needs a predictor"),
        (lambda: Curvature(where="left"), ValueError, "where must be 'bent' or 'straight', got 'left'"),
        (lambda: Curvature(half=0.0), ValueError, "half must be above 0"),
        (lambda: Curvature(softening=-1.0), ValueError, "softening must be above 0"),
        (
            lambda: gm.Diffusion(MODEL, Curvature())(ROW, 0.5),
            ValueError,
            "a line has no curvature.*two values or more",
        ),
        (
            lambda: Multiplicative(MODEL, StateDependent(lambda x, t: x.sum(-1)))(ROW, 0.5),
            ValueError,
            r"shape \(B, 1, ..., 1\) or \(B, \*S\).*got \(4,\).*keepdim",
        ),
        (
            lambda: Multiplicative(MODEL, StateDependent(lambda x, t: 1.0))(ROW, 0.5),
            TypeError,
            "must be a tensor, got float",
        ),
        (
            lambda: Multiplicative(MODEL, StateDependent(lambda x, t: x - 1))(ROW, 0.5),
            ValueError,
            "at least 0 and finite, got -1 and 4 such values of 4",
        ),
        (
            lambda: Multiplicative(MODEL, StateDependent(lambda x, t: x / 0))(ROW, 0.5),
            ValueError,
            "at least 0 and finite, got nan",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message: str):
    with pytest.raises(error, match=message):
        call()


def test_a_diagonal_that_is_not_elementwise_is_found_out():
    model = gm.worlds.GaussianMixture(torch.zeros(1, 3), 1.0).predictor(gm.GaussianPath())
    with pytest.raises(ValueError, match=r"said to be elementwise, but .* leave elementwise out"):
        Multiplicative(model, StateDependent(lambda x, t: full(x), elementwise=True))(X, 0.5)
    Multiplicative(model, StateDependent(lambda x, t: full(x)))(X, 0.5)


def test_a_path_without_a_score_is_refused():
    path = gm.GaussianPath(coupling=gm.couplings.OT())
    with pytest.raises(ValueError, match=r"Multiplicative needs the score.*makes noise and data dependent"):
        Multiplicative(gm.predict.Velocity(worlds.Still(), path), NOISES["bell"])


@pytest.mark.parametrize("solver", [gm.solvers.Heun(), gm.solvers.Exponential()], ids=repr)
def test_solvers_that_would_converge_to_another_law_refuse(solver):
    with pytest.raises(ValueError, match=r"additive noise|not semilinear"):
        gm.sample(gm.Diffusion(MODEL, NOISES["wave"]), (4, 1), steps=4, seed=0, solver=solver)
    assert math.isfinite(gm.sample(gm.Diffusion(MODEL, NOISES["wave"]), (4, 1), steps=4, seed=0).sum())
