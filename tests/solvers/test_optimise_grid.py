"""Optimised time grids: nearer to the accurate end than the classical ones, on noise that the search never saw."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import genmatch as gm
from genmatch.solvers import DDIM, DDPM, Euler, Exponential, Heun, optimise_grid
from genmatch.solvers.grid_search import Warp, search
from genmatch.solvers.trial import Trial, displacement

F64 = torch.float64


def world() -> gm.worlds.GaussianMixture:
    means = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    return gm.worlds.GaussianMixture(means, 0.1)


@cache
def flow(schedule: gm.Schedule) -> gm.Flow:
    return gm.Flow(world().predictor(gm.GaussianPath(schedule)))


VP, LINE = gm.schedules.VP(), gm.schedules.CondOT()
NOISE = torch.randn(1000, 4, generator=torch.Generator().manual_seed(99))


@cache
def goal(schedule: gm.Schedule) -> torch.Tensor:
    """Where the held-out noise ends, by many steps between levels that are not those of the search."""
    times = gm.grids.log_snr(schedule, 200, low=-10.0, high=12.0)
    return gm.sample(flow(schedule), NOISE, times=times, solver=Exponential(order=3))


def distances(schedule, solver, times) -> tuple[float, float]:
    """Root mean square and median distance of held-out ends."""
    apart = (gm.sample(flow(schedule), NOISE, times=times, solver=solver) - goal(schedule)).norm(dim=1)
    return float(apart.square().mean().sqrt()), float(apart.median())


def karras(schedule, steps):
    times = gm.grids.karras(schedule, steps)
    times[0] = 0.0  # all from the same noise at t = 0
    return times


@cache
def found(schedule, solver_type, steps, iterations=8):
    return optimise_grid(flow(schedule), (256, 4), steps, solver=solver_type(), seed=0, iterations=iterations)


# Better than what needs no search


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("solver", [Euler, Exponential], ids=lambda s: s.__name__)
def test_it_beats_every_classical_grid_on_a_diffusion_path(solver, steps):
    optimised = distances(VP, solver(), found(VP, solver, steps))
    classical = {
        "uniform": gm.grids.uniform(steps),
        "karras": karras(VP, steps),
        "log_snr": gm.grids.log_snr(VP, steps),
        "quadratic": gm.grids.quadratic(steps),
    }
    for name, times in classical.items():
        rms, median = distances(VP, solver(), times)
        assert optimised[0] < 0.95 * rms, name
        assert optimised[1] < 0.85 * median, name


@pytest.mark.parametrize("solver", [Euler, Exponential], ids=lambda s: s.__name__)
def test_it_beats_uniform_and_karras_on_the_straight_path(solver):
    # Here equal steps are hard to beat: what is to be gained is a few samples in other modes, and the typical error of
    # the solver of order 2.
    times = optimise_grid(flow(LINE), (512, 4), 5, solver=solver(), seed=0)
    rms, median = distances(LINE, solver(), times)
    uniform = distances(LINE, solver(), gm.grids.uniform(5))
    assert rms < uniform[0]
    assert median < (0.85 if solver is Exponential else 1.02) * uniform[1]
    for other in (karras(LINE, 5), gm.grids.quadratic(5)):
        assert rms < 0.8 * distances(LINE, solver(), other)[0]


def test_without_the_search_it_is_worse():
    for solver in (Euler, Exponential):
        searched = distances(VP, solver(), found(VP, solver, 10))
        unsearched = distances(VP, solver(), found(VP, solver, 10, iterations=0))
        assert searched[0] < 0.95 * unsearched[0]
        assert searched[1] < 0.85 * unsearched[1]


def test_it_is_made_for_its_solver():
    own = distances(VP, Exponential(), found(VP, Exponential, 10))
    of_another = distances(VP, Exponential(), found(VP, Euler, 10))
    assert own[1] < of_another[1]


def test_the_held_out_half_decides(monkeypatch):
    # A search that is led astray is not followed: what comes back is one of the grids that need none.
    from genmatch.solvers import optimised_grid

    monkeypatch.setattr(optimised_grid, "search", lambda residual, logs, iterations: logs + torch.linspace(0, 6, 4))
    misled = optimise_grid(flow(VP), (256, 4), 5, solver=Euler(), seed=0)
    monkeypatch.undo()
    assert torch.equal(misled, optimise_grid(flow(VP), (256, 4), 5, solver=Euler(), seed=0, iterations=0))


# What it returns


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_times_are_strictly_monotone_from_end_to_end(steps):
    times = optimise_grid(flow(VP), (32, 4), steps, solver=Heun(), seed=3, iterations=2)
    assert times.shape == (steps + 1,)
    assert times.dtype == F64
    assert (float(times[0]), float(times[-1])) == (0, 1)
    assert bool((times.diff() > 0).all())


def test_the_seed_gives_the_grid():
    one, same, other = (optimise_grid(flow(VP), (32, 4), 4, seed=seed, iterations=2) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    state = torch.get_rng_state()
    optimise_grid(flow(VP), (8, 4), 2, seed=1, iterations=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_part_of_the_path_and_the_way_back():
    part = optimise_grid(flow(VP), goal(VP)[:64], 4, start=0.9, stop=0.3, iterations=2)
    assert (float(part[0]), float(part[-1])) == (0.9, 0.3)
    assert bool((part.diff() < 0).all())
    back = optimise_grid(flow(LINE), goal(LINE)[:128], 6, start=0.99, stop=0.0)
    reached = gm.sample(flow(LINE), goal(LINE), times=gm.grids.uniform(400, 0.99, 0.0))

    def error(times):
        return float((gm.sample(flow(LINE), goal(LINE), times=times) - reached).norm(dim=1).median())

    assert error(back) < 0.9 * error(gm.grids.uniform(6, 0.99, 0.0))


def test_a_straight_flow_needs_no_grid():
    # All data in one point: every trajectory is a straight line, which one step of Euler follows exactly.
    point = gm.worlds.GaussianMixture(torch.zeros(1, 2), 0.0)
    straight = gm.Flow(point.predictor(gm.GaussianPath()))
    times = optimise_grid(straight, torch.ones(4, 2, dtype=F64), 4, solver=Exponential(order=1))
    assert bool((times.diff() > 0).all())
    assert times.shape == (5,)


def test_a_blind_network_starts_where_sampling_does():
    class Zero(nn.Module):
        def forward(self, x, t):
            return 0.5 * x * t[:, None]

    noise = gm.Flow(gm.predict.Noise(Zero(), gm.GaussianPath(LINE)))
    times = optimise_grid(noise, (16, 2), 3, seed=0, iterations=1)
    assert float(LINE.log_snr(times[0])) == pytest.approx(-10, abs=1e-6)


def test_the_mode_and_gradients_of_the_network_are_left_alone():
    model = gm.predict.Velocity(nn.Sequential(), gm.GaussianPath())
    model.network = gm.nn.MLP(2, width=8, depth=1)
    model.train()
    optimise_grid(gm.Flow(model), (8, 2), 2, seed=0, iterations=1)
    assert model.network.training
    assert all(p.grad is None for p in model.parameters())


def test_conditions_are_split_with_the_samples():
    seen = []

    class Shift(nn.Module):
        def forward(self, x, t, label):
            seen.append(label.clone())
            return -x + label[:, None] * torch.sin(6 * t[:, None])

    conditioned = gm.Flow(gm.predict.Velocity(Shift(), gm.GaussianPath()))
    optimise_grid(conditioned, (6, 2), 2, condition={"label": torch.arange(6.0)}, seed=0, iterations=1)
    assert {tuple(label.tolist()) for label in seen} == {(0.0, 1.0, 2.0), (3.0, 4.0, 5.0)}


def test_other_spaces():
    sphere = gm.GeodesicPath(gm.spaces.Sphere(2))

    class Turn(nn.Module):
        def forward(self, x, t):
            axis = torch.tensor([0.0, 0.0, 1.0], dtype=x.dtype).expand_as(x)
            return torch.linalg.cross(axis, x) * (8 * t[:, None] ** 3)

    turn = gm.Flow(gm.predict.TangentVelocity(Turn(), sphere))
    x = nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=F64), dim=1)
    times = optimise_grid(turn, x, 5, solver=Euler(), stop=0.9, iterations=4)
    end = 2 * 0.9**4  # the angle turned
    exact = torch.stack(
        [x[:, 0] * np.cos(end) - x[:, 1] * np.sin(end), x[:, 0] * np.sin(end) + x[:, 1] * np.cos(end), x[:, 2]], 1
    )

    def error(grid):
        return float((gm.sample(turn, x, times=grid, solver=Euler()) - exact).norm(dim=1).median())

    assert error(times) < 0.8 * error(gm.grids.uniform(5, 0.0, 0.9))


class Coupled(nn.Module):
    """A velocity of two factors that turns fast towards the end of the run."""

    def forward(self, x, t):
        swing = 8 * t["a"][:, None] ** 3
        return {"a": swing * torch.cos(x["b"]), "b": swing * torch.sin(x["a"])}


def test_products_of_vectors():
    path = gm.ProductPath({"a": gm.GaussianPath(), "b": gm.GaussianPath()})
    factors = {"a": gm.predict.Velocity, "b": gm.predict.Velocity}
    both = gm.Product(gm.predict.Product(Coupled(), factors, path), {"a": gm.Flow, "b": gm.Flow})
    times = optimise_grid(both, {"a": (64, 2), "b": (64, 2)}, 5, solver=Euler(), seed=0, iterations=4)
    x0 = {name: torch.randn(64, 2, generator=torch.Generator().manual_seed(5)) for name in "ab"}
    exact = gm.sample(both, x0, steps=400)

    def error(grid):
        x = gm.sample(both, x0, times=grid, solver=Euler())
        return float(sum((x[name] - exact[name]).square().sum() for name in "ab"))

    assert error(times) < 0.8 * error(gm.grids.uniform(5))


def test_a_product_with_tokens_is_refused():
    path = gm.ProductPath({"a": gm.GaussianPath(), "label": gm.MixturePath(3)})
    factors = {"a": gm.predict.Velocity, "label": gm.predict.Tokens}
    joint = gm.Product(gm.predict.Product(nn.Identity(), factors, path), {"a": gm.Flow, "label": gm.CTMC})
    with pytest.raises(ValueError, match="tokens jump at random"):
        optimise_grid(joint, {"a": (4, 2), "label": (4, 1)}, 5)


@pytest.mark.parametrize(
    "space", [gm.spaces.Sphere(2), gm.spaces.Torus(2), gm.spaces.PoincareBall(2), gm.spaces.SO3()], ids=repr
)
def test_displacements_are_as_long_as_the_distance(space):
    draws = gm.Draws(0, 20)
    if space.compact:
        a, b = (space.uniform((20, *space.event_shape), draws.fork(stream)).double() for stream in (1, 2))
    else:
        a, b = (0.3 * draws.fork(stream).normal((20, 2), F64).tanh() for stream in (1, 2))
    a, b = space.nearest(a), space.nearest(b)
    apart = displacement(space, a, b)
    torch.testing.assert_close(apart.norm(dim=1), space.distance(a, b), rtol=1e-6, atol=1e-9)
    assert bool((displacement(space, a, a).norm(dim=1) < 1e-6).all())


def test_the_bar_counts_runs(capsys):
    optimise_grid(flow(VP), (8, 4), 2, seed=0, iterations=1, progress=True)
    assert "run" in capsys.readouterr().err
    optimise_grid(flow(VP), (8, 4), 2, seed=0, iterations=1)
    assert capsys.readouterr().err == ""


# The parts of the search


def test_equal_steps_of_the_warp_err_equally():
    # Euler on dx/dt = f(t): the local error is f' h^2 / 2, so equal errors are steps of density sqrt(f').
    shares = torch.linspace(0, 1, 401, dtype=F64)
    middle = (shares[1:] + shares[:-1]) / 2
    slope = 0.1 + 30 * torch.exp(-(((middle - 0.7) / 0.05) ** 2))
    warp = Warp.of(shares, slope * shares.diff() ** 2 / 2, order=1)
    grid = warp.grid(torch.zeros(39, dtype=F64))
    lengths = grid.diff()
    at = (grid[1:] + grid[:-1]) / 2
    errors = (0.1 + 30 * torch.exp(-(((at - 0.7) / 0.05) ** 2))) * lengths**2
    even = (0.1 + 30 * torch.exp(-(((middle - 0.7) / 0.05) ** 2))) * (1 / 40) ** 2
    assert float(errors.max()) < 0.15 * float(even.max())
    assert float(lengths.max()) < 10 / 40  # the floor: no step is too long


def test_parameters_and_grids_are_one_to_one():
    warp = Warp.of(torch.linspace(0, 1, 33, dtype=F64), torch.rand(32, dtype=F64) + 0.1, order=2)
    grid = torch.tensor([0.0, 0.1, 0.4, 0.45, 0.9, 1.0], dtype=F64)
    torch.testing.assert_close(warp.grid(warp.logs(grid)), grid, rtol=1e-12, atol=1e-12)


def test_the_search_solves_least_squares_and_never_gets_worse():
    target = torch.tensor([0.5, -1.2, 2.0], dtype=F64)
    calls = []

    def residual(logs):  # Rosenbrock-like valleys
        calls.append(0)
        d = logs - target
        return torch.stack([d[0], 3 * (d[1] - d[0] ** 2), d[2] + d[1] * d[0]])

    start = torch.zeros(3, dtype=F64)
    losses = [residual(search(residual, start, n)).square().sum().item() for n in (0, 1, 2, 4, 8, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4 * losses[0]
    calls.clear()
    search(residual, start, 3)
    assert len(calls) <= 1 + 3 * (3 + 6)


def test_the_search_steps_back_where_runs_come_to_nothing():
    logs = search(lambda z: None if bool(z.abs().max() > 0.5) else z - 2.0, torch.zeros(2, dtype=F64), 10)
    assert bool((logs.abs() <= 0.5).all())
    assert bool((logs > 0.1).all())
    assert torch.equal(search(lambda z: None, torch.zeros(2, dtype=F64), 5), torch.zeros(2, dtype=F64))


def test_the_scale_tames_only_those_far_out():
    trial = Trial.of(flow(VP), Euler(), NOISE[:64], None, slice(0, 64), gm.grids.log_snr(VP, 64))
    times = gm.grids.quadratic(6)
    apart = trial.apart(times)
    assert apart is not None
    squares = apart.square().sum(1)
    assert trial.loss(times, 1e6) == pytest.approx(float(squares.mean()), rel=1e-6)
    c = float(squares.sqrt().median())
    expected = (2 * c**2 * ((1 + squares / c**2).sqrt() - 1)).mean()
    assert trial.loss(times, c) == pytest.approx(float(expected), rel=1e-9)
    assert trial.distance(times) == pytest.approx(c)


def test_the_reference_is_accurate():
    trial = Trial.of(flow(VP), Euler(), NOISE, None, slice(0, 1000), gm.grids.log_snr(VP, 64))
    gap = (trial.reference[-1] - goal(VP)).norm(dim=1)
    assert float(gap.median()) < 1e-3 < 0.03 * distances(VP, Euler(), found(VP, Euler, 10))[1] * 10


# Bad input


def tokens() -> gm.Generator:
    path = gm.MixturePath(5)
    return gm.CTMC(gm.predict.Tokens(nn.Identity(), path))


class Blow(nn.Module):
    def forward(self, x, t):
        return x * float("nan")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optimise_grid(flow(VP).models[0], (4, 4), 5), TypeError, "takes a generator such as gm.Flow"),
        (lambda: optimise_grid(flow(VP), (4, 4), 0), ValueError, "steps must be at least 1, got 0"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5.0), TypeError, "steps must be an integer, got float"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, iterations=-1), ValueError, "iterations must be at least 0"),
        (
            lambda: optimise_grid(flow(VP), (4, 4), 5, reference_steps=4),
            ValueError,
            "reference_steps must be at least 8",
        ),
        (lambda: optimise_grid(flow(VP), (4, 4), 40), ValueError, "reference_steps must be at least twice the steps"),
        (lambda: optimise_grid(flow(VP), (1, 4), 5), ValueError, "at least two samples are needed, one to fit"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, solver=Euler), TypeError, "call it, as in gm.solvers.Heun"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, start=1.5), ValueError, r"start must be in \[0, 1\]"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, start=0.5, stop=0.5), ValueError, "nothing to integrate"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, start=0.5), ValueError, "is not noise at t = 0.5"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, start=1.0, stop=0.0), ValueError, "pass them instead of a shape"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, condition={"y": torch.zeros(3)}), ValueError, "y"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, solver=DDPM()), ValueError, "the solver draws random numbers"),
        (lambda: optimise_grid(flow(VP), (4, 4), 5, solver=DDIM(0.5)), ValueError, "the solver draws random numbers"),
        (
            lambda: optimise_grid(gm.Diffusion(flow(VP).models[0]), (4, 4), 5),
            ValueError,
            r"the generator has variance, .* gm.Flow\(model\)",
        ),
        (lambda: optimise_grid(tokens(), (4, 4), 5), ValueError, "tokens jump at random.* hazard or uniform"),
        (
            lambda: optimise_grid(gm.Flow(gm.predict.Velocity(Blow(), gm.GaussianPath())), (4, 2), 3),
            FloatingPointError,
            "the accurate run is not finite",
        ),
    ],
)
def test_bad_input(call, error, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=message):
            call()
