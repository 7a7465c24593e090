"""Derivatives of log-densities by data, parameters, conditions: through the steps, by the adjoint, by differences."""

from __future__ import annotations

import gc

import pytest
import torch
from gaussian_data import World, linear_flow, linear_log_prob
from torch import Tensor, nn

import genmatch as gm

F64 = torch.float64


class Small(nn.Module):
    """A velocity under a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([x, t[:, None]], 1)) + shift[:, None]))


def gradients(solver: gm.Solver, **known) -> list[Tensor]:
    torch.manual_seed(0)
    network = Small().double()
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    shift = torch.randn(3, dtype=F64, requires_grad=True)
    value = gm.log_prob(flow, x, condition={"shift": shift}, grad=True, solver=solver, seed=0, **known)
    total = (value * torch.tensor([1.0, 2.0, -1.0], dtype=F64)).sum()
    return list(torch.autograd.grad(total, [x, shift, *network.parameters()]))


@pytest.mark.parametrize("divergence", [gm.likelihood.Exact(), gm.likelihood.Hutchinson(2)], ids=repr)
def test_all_ways_agree(divergence):
    direct = gradients(gm.solvers.RK4(), steps=12, divergence=divergence)
    tight = {"rtol": 1e-8, "atol": 1e-8}
    for solver in (gm.solvers.TorchDiffEq(adjoint=True, **tight), gm.solvers.Dopri5(**tight)):
        for a, b in zip(gradients(solver, divergence=divergence), direct, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 1e-3 for gradient in direct), "each is worth a comparison"


def test_they_are_the_slopes_of_the_closed_form():
    matrix = torch.tensor([[0.5, -2.0], [1.0, -0.3]], dtype=F64)
    flow = linear_flow(matrix.clone())
    x = torch.randn(4, 2, dtype=F64, requires_grad=True)
    parameter = flow.model.network.matrix
    got = torch.autograd.grad(gm.log_prob(flow, x, grad=True, solver=gm.solvers.RK4()).sum(), [x, parameter])
    matrix.requires_grad_()
    expected = torch.autograd.grad(linear_log_prob(matrix, x).sum(), [x, matrix])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_the_slope_in_the_data_is_the_score():
    world, schedule = World(), gm.schedules.CondOT()
    x = world.states(schedule, 1.0).requires_grad_()
    value = gm.log_prob(world.flow(schedule), x, grad=True, solver=gm.solvers.RK4(), steps=30)
    (score,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(score, -(x - world.mean) / world.variance, rtol=0, atol=1e-4)


def test_differences_see_them_too():
    torch.manual_seed(0)
    network = Small().double()
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    condition = {"shift": torch.randn(1, dtype=F64)}

    def density(x: Tensor) -> Tensor:
        return gm.log_prob(flow, x, condition=condition, grad=True, solver=gm.solvers.RK4(), steps=3)

    assert torch.autograd.gradcheck(density, torch.randn(1, 2, dtype=F64, requires_grad=True))


def test_samples_with_densities_are_differentiated_too():
    matrix = torch.tensor([[0.5, -2.0], [1.0, -0.3]], dtype=F64)
    flow = linear_flow(matrix)
    x, value = gm.sample(flow, (4, 2), log_prob=True, grad=True, seed=0, solver=gm.solvers.RK4(), steps=20)
    (gradient,) = torch.autograd.grad(value.sum(), flow.model.network.matrix)
    # Of samples in which the source is fixed the density is that of the source less the trace.
    torch.testing.assert_close(gradient, -4 * torch.eye(2, dtype=F64), rtol=0, atol=1e-6)
    assert x.requires_grad


class Held:
    """A tensor that waits for the backward pass; all that wait at one time are counted."""

    total = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Held.total += tensor.numel()

    def __del__(self) -> None:
        Held.total -= self.tensor.numel()


def kept(solver: gm.Solver, steps: int) -> int:
    """Numbers that wait for the backward pass of a log-density."""
    flow, x = linear_flow(torch.randn(4, 4, dtype=F64) / 4), torch.randn(8, 4, dtype=F64)
    times = [1.0 - i / steps for i in range(steps)] + [0.0]
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        value = gm.log_prob(flow, x, grad=True, solver=solver, times=times)
        gc.collect()
        before = Held.total
    del value
    gc.collect()
    return before - Held.total


def test_the_adjoint_keeps_no_more_for_more_steps():
    few, many = (kept(gm.solvers.TorchDiffEq("rk4", adjoint=True, options={"step_size": 1 / n}), 1) for n in (8, 64))
    assert many == few > 0
    assert kept(gm.solvers.RK4(), 64) > 6 * kept(gm.solvers.RK4(), 8), "through the steps it grows"
