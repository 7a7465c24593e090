"""Both ends of time: finite states everywhere, the last step, grids, spans, and starts that are not noise."""

from __future__ import annotations

import warnings

import gaussian_line as line
import pytest
import torch
from torch import nn

import genmatch as gm
from genmatch.solvers import DDIM, DDPM, RK4, Euler, Exponential, Heun, Midpoint, Solver

SCHEDULES = [
    gm.schedules.CondOT(),
    gm.schedules.CondOT(sigma_min=1e-4),
    gm.schedules.Polynomial(2),
    gm.schedules.Cosine(),
    gm.schedules.VP(),
    gm.schedules.VE(),
    gm.schedules.EDM(),
    gm.schedules.DDPM(),
]
DETERMINISTIC = [Euler(), Midpoint(), Heun(), RK4(), Exponential(1), Exponential(2), DDIM()]
ANCESTRAL = [DDIM(0.5), DDIM(1.0), DDPM()]
NOISES = {
    "memoryless": gm.diffusivity.Memoryless(),
    "endpoint-safe": gm.diffusivity.EndpointSafe(),
    "constant": gm.diffusivity.Constant(0.3),
}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", line.KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_flows_are_finite_with_few_steps_for_every_solver(steps: int, kind: str, schedule: gm.Schedule) -> None:
    flow = gm.Flow(line.predictor(schedule, kind))
    for solver in DETERMINISTIC + ANCESTRAL:
        x = gm.sample(flow, (5, 1), steps=steps, solver=solver, seed=0)
        assert x.isfinite().all(), solver
        assert x.dtype == torch.float32


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", line.KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_diffusions_are_finite_with_few_steps_for_every_solver(noise: str, kind: str, schedule: gm.Schedule) -> None:
    generator = gm.Diffusion(line.predictor(schedule, kind), NOISES[noise])
    for steps in (1, 2, 3):
        for solver in (Exponential(1), Exponential(2)):
            assert gm.sample(generator, (5, 1), steps=steps, solver=solver, seed=0).isfinite().all(), solver
        for solver in (Euler(), Heun()):
            # A little later than 0, where memoryless noise may be infinite.
            x = gm.sample(generator, (5, 1), steps=steps, solver=solver, start=0.02, seed=0)
            assert x.isfinite().all(), solver


class Last(nn.Module):
    """Remembers its last input and answer."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[torch.Tensor] = []
        self.times: list[float] = []
        self.answer = torch.empty(0)

    def forward(self, x, t):
        self.inputs.append(x)
        self.times.append(t[0].item())
        self.answer = torch.tanh(x) + 0.1 * t[:, None]
        return self.answer


@pytest.mark.parametrize("solver", [*DETERMINISTIC, *ANCESTRAL], ids=repr)
@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[3], SCHEDULES[4], SCHEDULES[7]], ids=repr)
def test_the_last_step_of_a_denoiser_ends_in_its_data_prediction(solver: Solver, schedule: gm.Schedule) -> None:
    network = Last()
    flow = gm.Flow(gm.predict.Data(network, gm.GaussianPath(schedule), time=gm.predict.clocks.t))
    states = gm.sample(flow, (4, 2), steps=5, solver=solver, seed=0, trajectory=True)
    assert network.times[-1] == pytest.approx(0.8)
    torch.testing.assert_close(network.inputs[-1], states[-2])
    if solver.order == 1 or not isinstance(solver, Exponential):
        assert torch.equal(states[-1], network.answer)


@pytest.mark.parametrize("solver", [Euler(), Heun(), Exponential(1)], ids=repr)
def test_so_does_that_of_constant_noise(solver: Solver) -> None:
    network = Last()
    generator = gm.Diffusion(gm.predict.Data(network, gm.GaussianPath()), gm.diffusivity.Constant(0.5))
    x = gm.sample(generator, (4, 2), steps=5, solver=solver, seed=0)
    assert torch.equal(x, network.answer)


@pytest.mark.parametrize("solver", [Midpoint(), Heun(), RK4()], ids=repr)
def test_a_finite_field_is_followed_to_the_very_end(solver: Solver) -> None:
    """A velocity network on CondOT: no special last step."""
    network = Last()
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath()))
    gm.sample(flow, (4, 2), steps=5, solver=solver, seed=0)
    assert network.times[-1] == pytest.approx(0.9 if isinstance(solver, Midpoint) else 1.0)


def test_a_velocity_network_is_never_asked_where_its_target_is_infinite() -> None:
    """On VP at t = 1."""
    network = Last()
    flow = gm.Flow(gm.predict.Velocity(network, gm.GaussianPath(gm.schedules.VP())))
    for solver in DETERMINISTIC:
        gm.sample(flow, (4, 2), steps=5, solver=solver, seed=0)
        assert max(network.times) < 1, solver


def test_sums_of_two_networks_that_are_singular_at_the_data_end_in_an_euler_step() -> None:
    """No exponential step reads two networks; the last step looks at its start alone."""
    path = gm.GaussianPath()
    a, b = Last(), Last()
    flow = 0.5 * gm.Flow(gm.predict.Data(a, path)) + 0.5 * gm.Flow(gm.predict.Data(b, path))
    states = gm.sample(flow, (4, 2), steps=5, solver=Heun(), seed=0, trajectory=True)
    assert a.times[-1] == pytest.approx(0.8)
    torch.testing.assert_close(states[-1], (a.answer + b.answer) / 2, rtol=1e-5, atol=1e-5)


GRIDS = {
    "uniform": lambda s: gm.grids.uniform(12),
    "quadratic": lambda s: gm.grids.quadratic(12),
    "shifted": lambda s: gm.grids.shifted(12, 3.0),
    "karras": lambda s: gm.grids.karras(s, 12),
    "log_snr": lambda s: gm.grids.log_snr(s, 12),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_grid_runs_on_every_schedule(grid: str, schedule: gm.Schedule) -> None:
    times = GRIDS[grid](schedule)
    for generator in (gm.Flow(line.predictor(schedule)), gm.Diffusion(line.predictor(schedule))):
        for solver in (Exponential(2), Exponential(1)):
            x = gm.sample(generator, (64, 1), times=times, solver=solver, seed=0, check=True)
            assert abs(x.mean().item() - line.MEAN) < 0.5
    assert gm.sample(gm.Flow(line.predictor(schedule)), (4, 1), times=times.tolist(), seed=0).isfinite().all()


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4(), Exponential(1), DDIM()], ids=repr)
def test_two_spans_are_one_run(solver: Solver) -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine()))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    middle = gm.sample(flow, x, steps=6, start=0.0, stop=0.6, solver=solver)
    end = gm.sample(flow, middle, steps=4, start=0.6, solver=solver)
    torch.testing.assert_close(end, gm.sample(flow, x, steps=10, solver=solver), rtol=1e-12, atol=1e-12)


def test_given_states_at_a_start_inside_are_followed_from_there() -> None:
    schedule = gm.schedules.CondOT()
    flow = gm.Flow(line.predictor(schedule))
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    end = gm.sample(flow, x, steps=50, start=0.6)
    torch.testing.assert_close(end, line.flow_map(schedule, x, 0.6, 1.0), rtol=1e-3, atol=1e-3)
    stop = gm.sample(flow, x, steps=50, start=0.6, stop=0.8)
    torch.testing.assert_close(stop, line.flow_map(schedule, x, 0.6, 0.8), rtol=1e-3, atol=1e-3)
    back = gm.sample(flow, x, steps=50, start=0.6, stop=0.1)
    torch.testing.assert_close(back, line.flow_map(schedule, x, 0.6, 0.1), rtol=1e-3, atol=1e-3)


def test_the_textbook_chain_of_ten_steps_does_not_start_in_noise_and_says_so() -> None:
    flow = gm.Flow(line.predictor(gm.schedules.DDPM([0.1] * 10)))
    with pytest.warns(UserWarning, match=r"is not noise at t = 0, where alpha = 0.59 and sigma = 0.807"):
        gm.sample(flow, (4, 1), steps=10, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gm.sample(flow, torch.zeros(4, 1), steps=10, seed=0)  # states given: their owner knows
        gm.sample(gm.Flow(line.predictor(gm.schedules.DDPM())), (4, 1), steps=10, seed=0)


def test_pure_noise_is_no_start_inside_the_path() -> None:
    flow = gm.Flow(line.predictor(gm.schedules.CondOT()))
    with pytest.raises(ValueError, match=r"is not noise at t = 0.5, where alpha = 0.5 and sigma = 0.5: pass states"):
        gm.sample(flow, (4, 1), start=0.5)
    with pytest.warns(UserWarning, match=r"is not noise at t = 0.5"):
        gm.sample(flow, (4, 1), times=[0.5, 1.0])
    with pytest.raises(ValueError, match="from data to noise the states at the start are data: pass them"):
        gm.sample(flow, (4, 1), start=1.0, stop=0.0)


def test_the_source_is_scaled_to_the_path_where_noise_is_not_of_variance_one() -> None:
    """sqrt(alpha^2 + sigma^2) x0, the second moment of p_0 for data of variance 1; x0 itself on CondOT."""
    seen: dict[str, torch.Tensor] = {}
    for name, schedule in (("CondOT", gm.schedules.CondOT()), ("EDM", gm.schedules.EDM())):
        flow = gm.Flow(line.predictor(schedule))
        seen[name] = gm.sample(flow, (4, 1), steps=1, seed=0, trajectory=True)[0]
    assert torch.equal(seen["CondOT"], flow.path.draw_source((4, 1), gm.Draws(0, 4)))
    torch.testing.assert_close(seen["EDM"], seen["CondOT"] * (1 + 80**2) ** 0.5)
