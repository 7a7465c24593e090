"""Convergence orders of the deterministic solvers, against closed-form flow maps and a fine reference.

A solver's ``order`` is a claim; each is measured here as a slope over four numbers of steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import gaussian_line as line
import pytest
import torch
from torch import Tensor

import genmatch as gm
from covered import ORDER, proved
from genmatch.schedules import Instant
from genmatch.solvers import (
    DDIM,
    DDPM,
    RK4,
    AdamsBashforth,
    BogackiShampine,
    DormandPrince,
    Euler,
    Exponential,
    Field,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    Solver,
)

SCHEDULES = [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.VP(), gm.schedules.EDM()]
STEPS = (20, 40, 80, 160)
SLACK = 0.25  # the slope over finite numbers of steps is short of the order by so much


def steps_of(solver: Solver) -> tuple[int, ...]:
    """Multistep methods of order 3 settle to their slope at twice as many steps."""
    multistep = isinstance(solver, (Exponential, AdamsBashforth))
    return tuple(2 * n for n in STEPS) if solver.order >= 3 and multistep else STEPS


# Which instances of each class are measured, and where. A new solver belongs here or among the stochastic ones.
DETERMINISTIC: dict[type[Solver], list[Solver]] = {
    Euler: [Euler()],
    Midpoint: [Midpoint()],
    Ralston: [Ralston()],
    Heun: [Heun()],
    BogackiShampine: [BogackiShampine()],
    RK4: [RK4()],
    DormandPrince: [DormandPrince()],
    AdamsBashforth: [AdamsBashforth(2), AdamsBashforth(3), AdamsBashforth(4)],
    Exponential: [Exponential(1), Exponential(2), Exponential(3)],
    DDIM: [DDIM()],
}
STOCHASTIC: dict[type[Solver], list[Solver]] = {DDPM: [DDPM()]}  # noise of its own: see test_weak_order
SOLVERS = [solver for solvers in DETERMINISTIC.values() for solver in solvers]


def shipped(kind: type[Solver]) -> Iterator[type[Solver]]:
    for child in kind.__subclasses__():
        yield from shipped(child)
        if child.__module__.startswith("genmatch.") and not child.__abstractmethods__ and child is not RungeKutta:
            yield child


def test_every_solver_has_its_order_measured() -> None:
    found = {kind.__name__ for kind in shipped(Solver)}
    assert found >= {"Euler", "Exponential"}
    missing = found - {kind.__name__ for kind in (*DETERMINISTIC, *STOCHASTIC)} - proved(ORDER)
    assert not missing, f"no claim of order is tested for {', '.join(sorted(missing))}: add it to test_order.py"


def uniform(steps: int) -> Tensor:
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def waves(steps: int) -> Tensor:
    """Steps that differ up to threefold."""
    u = uniform(steps)
    return u + torch.sin(3 * math.pi * u) / (6 * math.pi)


@pytest.mark.parametrize("solver", [Heun(), RK4()], ids=repr)
def test_stages_at_the_end_of_a_step_are_at_the_grid_point_itself(solver: RungeKutta) -> None:
    """And not at start + length, which rounding may put beyond 1."""
    field = Field(gm.Flow(line.predictor(SCHEDULES[1], "velocity")), torch.zeros(1, 1, dtype=torch.float64))
    times = waves(37)
    assert [step.instants[-1].t for step in solver.plan(field, times)] == times[1:].tolist()


def measure(
    solver: Solver, kind: str, schedule: gm.Schedule, grid, start: float, stop: float, *, along: bool = False
) -> float:
    """The slope of the error at the end, or of the largest along the run.

    At the end the leading two terms of the error of a high order may cancel, at some number of steps.
    """
    flow = gm.Flow(line.predictor(schedule, kind))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None] * line.spread(schedule, start) ** 0.5
    truth = line.flow_map(schedule, x, start, stop)
    steps, errors = steps_of(solver), []
    for times in (start + (stop - start) * grid(n) for n in steps):
        if not along:
            errors.append((line.walk(flow, solver, times, x) - truth).abs().max().item())
            continue
        states = line.trail(flow, solver, times, x)
        places = [line.flow_map(schedule, x, start, t) for t in times.tolist()]
        errors.append((states - torch.stack(places)).abs().max().item())
    return line.order(steps[1:], errors[1:])


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [uniform, waves])
def test_order_of_the_interior(solver: Solver, schedule: gm.Schedule, grid) -> None:
    assert measure(solver, "data", schedule, grid, 0.0, 0.9, along=solver.order >= 3) > solver.order - SLACK


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("grid", [uniform, waves])
def test_order_of_the_whole_run_where_the_field_is_finite_at_the_data(solver, schedule, grid) -> None:
    assert measure(solver, "velocity", schedule, grid, 0.0, 1.0, along=solver.order >= 3) > solver.order - SLACK


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_order_of_the_whole_run_of_a_denoiser(solver: Solver, schedule: gm.Schedule) -> None:
    """The velocity of a data network is 0/0 at the data, so the last step of Runge-Kutta and Adams methods is DDIM's.

    That step has a local error of h^2 once: order 2 is kept and order 4 is not. On VP sigma goes as sqrt(1 - t), so the
    last step turns by sqrt(h) in angle and its error goes as h^1.5. The exponential solver keeps orders 1 and 2
    everywhere, and order 3 but for half an order on VP; on EDM the noise does not reach 0 and nothing is lost.
    """
    at_most = {"CondOT": 2.0, "Cosine": 2.0, "VP": 1.5, "EDM": 5.0}[type(schedule).__name__]
    if isinstance(solver, Exponential):
        at_most = 2.5 if isinstance(schedule, gm.schedules.VP) else 4.0
    bounded = isinstance(solver, (RungeKutta, AdamsBashforth, Exponential))
    claim = min(solver.order, at_most) if bounded else solver.order
    measured = measure(solver, "data", schedule, uniform, 0.0, 1.0)
    assert measured > claim - SLACK
    if claim < solver.order:
        assert measured < claim + SLACK  # what the docstring says is lost, is lost


@pytest.mark.parametrize("kind", ["noise", "score"])
@pytest.mark.parametrize("solver", [Exponential(1), Exponential(2), DDIM()], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_order_of_the_whole_run_of_a_network_that_is_blind_at_pure_noise(kind: str, solver: Solver, schedule) -> None:
    """From log-SNR -10, where errors in its data prediction count 150-fold and order 2 is held back for a few steps."""
    start = schedule.inverse_log_snr(torch.tensor(-10.0)).item()
    assert measure(solver, kind, schedule, uniform, start, 1.0) > solver.order - SLACK


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(
    ("schedule", "start"),
    [(gm.schedules.CondOT(), 1.0), (gm.schedules.Cosine(), 1.0), (gm.schedules.VP(), 0.9)],
    ids=["CondOT", "Cosine", "VP"],
)
def test_order_from_data_to_noise(solver: Solver, schedule: gm.Schedule, start: float) -> None:
    assert measure(solver, "velocity", schedule, uniform, start, 0.0, along=solver.order >= 3) > solver.order - SLACK


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_there_and_back_is_the_identity_up_to_the_order(solver: Solver) -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine(), "velocity"))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    errors = []
    for n in steps_of(solver):
        there = gm.sample(flow, x, steps=n, solver=solver)
        back = gm.sample(flow, there, steps=n, solver=solver, start=1.0, stop=0.0)
        errors.append((back - x).abs().max().item())
    assert line.order(STEPS[1:], errors[1:]) > solver.order - SLACK
    assert errors[-1] < {1: 0.1, 2: 2e-3, 3: 1e-4, 4: 1e-7, 5: 1e-9}[solver.order]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.VP()], ids=lambda s: type(s).__name__)
def test_order_on_a_mixture_against_a_fine_reference(solver: Solver, schedule: gm.Schedule) -> None:
    """No symmetry helps here: the field bends, in two dimensions."""
    world = gm.worlds.GaussianMixture(
        torch.tensor([[-1.5, 0.2], [1.0, 1.2], [0.6, -1.0]]),
        torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, -0.1], [-0.1, 0.3]]]),
        [0.5, 0.2, 0.3],
    )
    flow = gm.Flow(world.predictor(gm.GaussianPath(schedule)))
    x = gm.Draws(0, 12).normal((12, 2), torch.float64)
    times = 0.1 + 0.8 * uniform(400)
    truth = line.walk(flow, DormandPrince(), times, x)
    steps = steps_of(solver)
    errors = [(line.walk(flow, solver, 0.1 + 0.8 * uniform(n), x) - truth).abs().max().item() for n in steps]
    assert line.order(STEPS[1:], errors[1:]) > solver.order - SLACK


# Negative controls: the same measurement on solvers with a term dropped.


class Lame(RungeKutta):
    """Heun with the second stage at the wrong place."""

    a, b, c = ((), (0.8,)), (0.5, 0.5), (0.0, 1.0)
    order = 2
    parts = frozenset({"drift"})


class LogSNR(Exponential):
    """Order 2 by extrapolation in log-SNR, DPM-Solver++'s way, in place of the sine of the angle."""

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        half = field.operator.path.schedule.log_snr(times) / 2
        alpha = field.operator.path.schedule(times)[0]
        h = half.diff()
        gains = (-(alpha[2:] * torch.expm1(-h[1:])) * h[1:] / (2 * h[:-1])).tolist()
        return [(), *((gain if math.isfinite(gain) else 0.0,) for gain in gains)]


def test_a_wrong_tableau_is_found_out() -> None:
    assert measure(Lame(), "data", gm.schedules.Cosine(), uniform, 0.0, 0.9) < 1.3


def test_extrapolation_in_log_snr_is_of_order_two_inside_and_loses_it_at_the_ends() -> None:
    cosine = gm.schedules.Cosine()
    assert measure(LogSNR(), "data", cosine, uniform, 0.2, 0.8) > 1.8
    assert measure(LogSNR(), "data", cosine, uniform, 0.0, 1.0) < 1.5
    assert measure(Exponential(2), "data", cosine, uniform, 0.0, 1.0) > 1.8


class Level(Exponential):
    """Order 3 without what K changes by over a step."""

    def gains(self, field: Field, times: Tensor, now: Instant) -> list[tuple[float, ...]]:
        return [
            (),
            *((row[0] + 2 * row[1], -row[1]) if len(row) == 2 else row for row in super().gains(field, times, now)[1:]),
        ]


class Cold(Exponential):
    """Order 3 that begins with a step of order 1."""

    def opening(self, field: Field, now: Instant) -> float:
        return 0.0


@pytest.mark.parametrize("control", [Level, Cold])
def test_order_three_needs_the_change_of_the_force_and_its_first_step(control: type[Exponential]) -> None:
    cosine = gm.schedules.Cosine()
    assert measure(Exponential(3), "data", cosine, waves, 0.1, 0.9) > 2.8
    assert measure(control(3), "data", cosine, waves, 0.1, 0.9) < 2.4
