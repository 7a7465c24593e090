"""Samples with their log-densities, by the same steps."""

from __future__ import annotations

import pytest
import torch
from gaussian_data import World, linear_flow, linear_log_prob

import genmatch as gm

F64 = torch.float64
MATRIX = torch.tensor([[0.5, -2.0], [1.0, -0.3]], dtype=F64)
RK4 = gm.solvers.RK4()


@pytest.mark.parametrize("solver", [None, RK4, gm.solvers.TorchDiffEq()], ids=repr)
def test_they_are_the_densities_of_the_samples(solver):
    flow = linear_flow(MATRIX)
    x, value = gm.sample(flow, (6, 2), log_prob=True, seed=0, solver=solver)
    torch.testing.assert_close(value, linear_log_prob(MATRIX, x), rtol=0, atol=5e-4)
    torch.testing.assert_close(value, gm.log_prob(flow, x, solver=solver), rtol=0, atol=5e-4)
    if solver is RK4:
        assert torch.equal(x, gm.sample(flow, (6, 2), seed=0, solver=solver)), "the samples are what they are without"
        torch.testing.assert_close(value, linear_log_prob(MATRIX, x), rtol=0, atol=1e-6)


def test_images_conditions_batches_and_what_else_is_returned():
    world, schedule = World((1, 2, 2)), gm.schedules.CondOT()
    flow, shift = world.flow(schedule), torch.tensor([0.0, 1.0, -2.0], dtype=F64)
    seen: list[tuple[int, ...]] = []
    known = {"seed": 1, "solver": RK4, "steps": 20, "condition": {"shift": shift}, "dtype": F64, "log_prob": True}
    x, value, report = gm.sample(
        flow, (3, 1, 2, 2), callback=lambda i, t, x: seen.append(tuple(x.shape)), report=True, **known
    )
    assert seen == [(3, 1, 2, 2)] * 20
    assert report.evaluations.tolist() == [80] * 3
    expected = world.log_prob(schedule, x - shift[:, None, None, None])
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-5)
    passed, split = gm.sample(flow, (3, 1, 2, 2), batch_size=2, trajectory=True, check=True, **known)
    assert passed.shape == (21, 3, 1, 2, 2)
    torch.testing.assert_close(passed[-1], x)
    torch.testing.assert_close(split, value)


def test_given_noise_and_a_time_before_the_data():
    world, schedule = World(), gm.schedules.Cosine()
    x0 = torch.randn(4, 3, dtype=F64)
    x, value = gm.sample(world.flow(schedule, "data"), x0, stop=0.8, log_prob=True, solver=RK4)
    torch.testing.assert_close(value, world.log_prob(schedule, x, 0.8), rtol=0, atol=1e-6)


def test_an_estimated_divergence_follows_its_seed():
    flow = linear_flow(MATRIX)
    known = {"log_prob": True, "divergence": gm.likelihood.Hutchinson(), "solver": RK4, "steps": 10}
    x, value = gm.sample(flow, (50, 2), seed=0, **known)
    again = gm.log_prob(flow, x, seed=0, divergence=gm.likelihood.Hutchinson(), solver=RK4)
    torch.testing.assert_close(value, again, rtol=0, atol=1e-4)  # the same probes in both directions
    assert (value - linear_log_prob(MATRIX, x)).abs().max() > 0.1
    _, part = gm.sample(flow, (20, 2), seed=0, first_index=30, **known)
    torch.testing.assert_close(part, value[30:])


def test_what_has_no_density_is_refused():
    world, schedule = World(), gm.schedules.CondOT()
    flow = world.flow(schedule)
    with pytest.raises(ValueError, match=r"velocity is infinite at t = 1.*stop=0.99"):
        gm.sample(world.flow(schedule, "data"), (2, 3), log_prob=True)
    with pytest.raises(ValueError, match="ask for it by log_prob=True"):
        gm.sample(flow, (2, 3), divergence=gm.likelihood.Exact())
    with pytest.raises(ValueError, match=r"known of the source alone: .* is not noise at t = 0.5"):
        gm.sample(flow, torch.randn(2, 3, dtype=F64), start=0.5, log_prob=True)
    with pytest.raises(ValueError, match="drift alone, and this generator has variance"):
        gm.sample(gm.Diffusion(flow.model), (2, 3), log_prob=True, stop=0.9)
    with pytest.raises(ValueError, match="solver of general drifts, and Exponential"):
        gm.sample(flow, (2, 3), log_prob=True, solver=gm.solvers.Exponential())
    with pytest.raises(TypeError, match="got Exact: call it"):
        gm.sample(flow, (2, 3), log_prob=True, divergence=gm.likelihood.Exact)  # type: ignore[arg-type]
