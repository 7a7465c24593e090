"""The density of a flow, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from gaussian_data import KINDS, Linear, World, linear_flow, linear_log_prob, normal
from torch import Tensor, nn

import genmatch as gm

F64 = torch.float64
FINE = gm.solvers.Dopri5(rtol=1e-8, atol=1e-8)
SCHEDULES = {
    "condot": gm.schedules.CondOT(),
    "cosine": gm.schedules.Cosine(),
    "polynomial": gm.schedules.Polynomial(2.0),
    "vp": gm.schedules.VP(),
    "ve": gm.schedules.VE(),
    "edm": gm.schedules.EDM(),
}
MATRIX = torch.tensor([[0.5, -2.0], [1.0, -0.3]], dtype=F64)


def close(actual: Tensor, expected: Tensor, within: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=within)


@pytest.mark.parametrize(("kind", "name"), [*((kind, "condot") for kind in KINDS), ("noise", "cosine")])
def test_every_kind_of_network_against_the_gaussian_law(kind: str, name: str):
    world, schedule, t = World(), SCHEDULES[name], 0.97
    flow, x = world.flow(schedule, kind), world.states(SCHEDULES[name], 0.97)
    stop = gm.solvers.run.first_time(gm.solvers.Field(flow, x[:1]), gm.solvers.RK4())
    value = gm.log_prob(flow, x, start=t, solver=FINE)
    close(value, world.carried(schedule, x, t, stop))
    if stop == 0:  # the source is the law at 0
        close(value, world.log_prob(schedule, x, t))


@pytest.mark.parametrize("name", ["condot", "cosine", "polynomial", "ve", "edm"])
def test_the_density_of_the_data_where_the_velocity_is_finite(name: str):
    world, schedule = World(), SCHEDULES[name]
    x = world.states(schedule, 1.0)
    close(gm.log_prob(world.flow(schedule), x, solver=FINE), world.carried(schedule, x, 1.0, 0.0))


@pytest.mark.parametrize(("name", "kind"), [("vp", "noise"), ("condot", "data"), ("vp", "velocity")])
def test_the_density_of_blurred_data_where_it_is_not(name: str, kind: str):
    world, schedule = World(), SCHEDULES[name]
    x = world.states(schedule, 1.0)
    t = schedule.inverse_log_snr(torch.tensor(12.0, dtype=F64))
    alpha, sigma = schedule(t)
    assert abs(sigma / alpha - math.exp(-6)) < 1e-9
    expected = world.carried(schedule, alpha * x, t.item(), 0.0) + 3 * alpha.log()
    close(gm.log_prob(world.flow(schedule, kind), x, solver=FINE), expected)
    # That is the law of the data and noise, but for what the source leaves out at t = 0.
    blurred = normal(x, world.mean, world.variance + (sigma / alpha) ** 2)
    start_alpha = schedule(torch.zeros((), dtype=F64))[0]
    close(expected, blurred, 1e-9 if start_alpha == 0 else 0.1)


def test_mixtures():
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.3]])
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]])
    world = gm.worlds.GaussianMixture(means, covariances, weights=[1.0, 2.0])
    x, schedule = 1.5 * world.sample(20, seed=1).double(), gm.schedules.Cosine()
    flow = gm.Flow(world.predictor(gm.GaussianPath(schedule)))
    close(gm.log_prob(flow, x, start=0.8, solver=FINE), world.log_prob(x, 0.8, schedule))
    close(gm.log_prob(flow, x), world.log_prob(x), 1e-2)  # with the defaults: blurred data, tolerances of 1e-5


@pytest.mark.parametrize("shape", [(4,), (1, 2, 3), (2, 1, 2), (1,), ()])
def test_data_of_any_shape(shape: tuple[int, ...]):
    world, schedule = World(shape), SCHEDULES["condot"]
    x = world.states(schedule, 1.0)
    value, report = gm.log_prob(world.flow(schedule), x, solver=FINE, report=True)
    assert value.shape == (5,)
    close(value, world.log_prob(schedule, x))
    assert report.status.tolist() == [0] * 5


@pytest.mark.parametrize("divergence", [None, gm.likelihood.Hutchinson()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_linear_field_at_default_tolerances_costs_less_than_a_thousand_evaluations(divergence, dtype):
    # Solvers that draw a new probe at each evaluation take hundreds of thousands here.
    matrix = torch.tensor([[1.0, 0.5], [2.0, -1.0]], dtype=dtype)
    flow, x = linear_flow(matrix), torch.randn(7, 2, dtype=dtype)
    value, report = gm.log_prob(flow, x, report=True, divergence=divergence, seed=0)
    network = flow.model.network
    assert isinstance(network, Linear)
    assert int(report.evaluations.max()) <= network.calls
    assert network.calls * (1 + 2) < 1000 / 4, "each with two products beside it"
    if divergence is None:
        close(value, linear_log_prob(matrix, x).detach(), 2e-4)
    else:  # one probe z gives z^T A z and its error: 2.5 z_1 z_2 over a unit of time
        error = (value - linear_log_prob(matrix, x).detach()).abs()
        close(error, torch.full_like(error, 2.5), 2e-4)


@pytest.mark.parametrize(
    ("solver", "within"),
    [
        (gm.solvers.Heun(), 2e-3),
        (gm.solvers.RK4(), 1e-6),
        (gm.solvers.AdamsBashforth(2), 2e-2),
        (gm.solvers.TorchDiffEq("dopri5", rtol=1e-9, atol=1e-9), 1e-6),
        (gm.solvers.TorchDiffEq("rk4"), 1e-6),
    ],
    ids=repr,
)
def test_every_solver_of_drifts(solver: gm.Solver, within: float):
    x = torch.randn(4, 2, dtype=F64)
    close(gm.log_prob(linear_flow(MATRIX), x, solver=solver), linear_log_prob(MATRIX, x), within)


def test_without_the_divergence_it_is_wrong():
    class Nothing(gm.likelihood.Exact):
        def __call__(self, function, x, probes=None, *, reverse=None):
            return function(x), x.new_zeros(len(x))

    x = torch.randn(4, 2, dtype=F64)
    wrong = gm.log_prob(linear_flow(MATRIX), x, divergence=Nothing(), solver=FINE) - linear_log_prob(MATRIX, x)
    close(wrong, torch.trace(MATRIX).expand(4).detach(), 1e-7)


class Rough(nn.Module):
    """A velocity that no closed form knows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim + 1, 16), nn.Linear(16, dim)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        x = x if shift is None else x + shift[:, None]
        return 3 * self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], 1))))


def test_the_density_of_an_untrained_network_is_normalised():
    flow = gm.Flow(gm.predict.Velocity(Rough(1).double(), gm.GaussianPath()))
    grid = torch.linspace(-12, 12, 4001, dtype=F64)
    density = gm.log_prob(flow, grid[:, None], solver=gm.solvers.RK4(), steps=40).exp()
    assert abs(torch.trapezoid(density, grid).item() - 1) < 1e-5
    assert not 0.999 < torch.trapezoid(density**1.01, grid) < 1.001  # the grid is no proof of itself
    plane = torch.linspace(-9, 9, 121, dtype=F64)
    flow = gm.Flow(gm.predict.Velocity(Rough(2).double(), gm.GaussianPath()))
    points = torch.cartesian_prod(plane, plane)
    density = gm.log_prob(flow, points, solver=gm.solvers.RK4(), steps=12).exp().reshape(121, 121)
    assert abs(torch.trapezoid(torch.trapezoid(density, plane), plane).item() - 1) < 1e-3


def test_a_condition_gives_the_conditional_density():
    world, schedule = World(), SCHEDULES["condot"]
    x, shift = world.states(schedule, 1.0), torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0], dtype=F64)
    value = gm.log_prob(world.flow(schedule), x, condition={"shift": shift}, solver=FINE)
    close(value, normal(x, world.mean + shift[:, None], world.variance))


def test_a_superposition_with_a_generator_that_stirs():
    class Stir(gm.Generator):
        speed = 0.0

        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=prediction.score.flip(-1) * x.new_tensor([1.0, -1.0]))

    world, schedule = World((2,)), SCHEDULES["condot"]
    model, x = world.predictor(schedule), world.states(schedule, 0.9)
    close(gm.log_prob(gm.Flow(model) + 2.0 * Stir(model), x, start=0.9, solver=FINE), world.log_prob(schedule, x, 0.9))


def test_the_reverse_of_a_flow_is_run_back_to_the_source_too():
    world, schedule = World(), SCHEDULES["cosine"]
    x = world.states(schedule, 1.0)
    reverse = gm.Reverse(world.flow(schedule))
    close(gm.log_prob(reverse, x, solver=FINE), world.log_prob(schedule, x))


def test_another_source_with_a_density():
    source = gm.worlds.GaussianMixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), 0.5)
    x = torch.randn(5, 2, dtype=F64)
    expected = source.log_prob(x @ torch.matrix_exp(-MATRIX).T) - torch.trace(MATRIX)
    close(gm.log_prob(linear_flow(MATRIX, source), x, solver=FINE), expected.detach())


def test_the_result_does_not_depend_on_the_batch():
    flow = gm.Flow(gm.predict.Velocity(Rough(2), gm.GaussianPath()))
    x, shift = torch.randn(9, 2), torch.randn(9)
    for divergence in (gm.likelihood.Exact(), gm.likelihood.Hutchinson(2), gm.likelihood.Hutchinson(1, "normal")):
        whole = gm.log_prob(flow, x, condition={"shift": shift}, seed=4, divergence=divergence)
        split = gm.log_prob(flow, x, condition={"shift": shift}, seed=4, divergence=divergence, batch_size=4)
        tail = gm.log_prob(flow, x[5:], condition={"shift": shift[5:]}, seed=4, divergence=divergence, first_index=5)
        torch.testing.assert_close(split, whole, rtol=0, atol=2e-5)
        torch.testing.assert_close(tail, whole[5:], rtol=0, atol=2e-5)
    other = gm.log_prob(flow, x, condition={"shift": shift}, seed=5, divergence=gm.likelihood.Hutchinson())
    again = gm.log_prob(flow, x, condition={"shift": shift}, seed=4, divergence=gm.likelihood.Hutchinson())
    assert (other - again).abs().max() > 1e-3


def test_times_and_steps_are_the_same_grid():
    flow, x = linear_flow(MATRIX), torch.randn(3, 2, dtype=F64)
    rk4 = gm.solvers.RK4()
    by_steps = gm.log_prob(flow, x, solver=rk4, steps=8)
    assert torch.equal(gm.log_prob(flow, x, solver=rk4, times=torch.linspace(1, 0, 9, dtype=F64)), by_steps)
    flow.model.network.calls = 0
    _, report = gm.log_prob(flow, x, solver=rk4, steps=8, report=True)
    assert report.evaluations.tolist() == [32] * 3
    assert flow.model.network.calls == 32


def test_hutchinson_has_the_exact_density_as_its_mean():
    flow, x = gm.Flow(gm.predict.Velocity(Rough(3).double(), gm.GaussianPath())), torch.randn(1, 3, dtype=F64)
    rk4, count = gm.solvers.RK4(), 4000
    exact = gm.log_prob(flow, x, solver=rk4, steps=10)
    many = x.expand(count, 3).contiguous()
    for distribution in ("rademacher", "normal"):
        divergence = gm.likelihood.Hutchinson(1, distribution)
        values = gm.log_prob(flow, many, solver=rk4, steps=10, divergence=divergence, seed=0)
        assert abs(values.mean() - exact) < 4 * values.std() / count**0.5
        assert values.std() > 0.01, "the probes differ from sample to sample"


def test_the_network_gets_its_mode_and_graph_back():
    network = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(torch.cat([x, t[:, None]], 1))

    flow = gm.Flow(gm.predict.Velocity(Dropped(), gm.GaussianPath()))
    x = torch.randn(3, 2)
    first, second = gm.log_prob(flow, x), gm.log_prob(flow, x)
    assert torch.equal(first, second)
    assert flow.training
    assert not first.requires_grad
