"""The jump generator: its forward equation, its samples, and its end."""

from __future__ import annotations

import math

import pytest
import torch
from jump_worlds import density, exact_jump
from torch import Tensor

import genmatch as gm
from genmatch.generators import Flow, Jump

F64 = torch.float64
ATOMS, WEIGHTS = torch.tensor([[-0.8], [0.1], [0.6]]), torch.tensor([0.3, 0.2, 0.5])
TESTS = (
    lambda x: torch.sin(2 * x.squeeze(-1) + 0.3),
    lambda x: x.squeeze(-1) ** 2,
    lambda x: torch.exp(-((x.squeeze(-1) - 0.4) ** 2)),
)


def residual(jump: Jump, t: float) -> float:
    """The largest relative residual of the forward equation, by quadrature."""
    schedule = jump.path.schedule  # type: ignore[attr-defined]
    x = torch.linspace(-8, 8, 641, dtype=F64)[:, None]
    time = torch.tensor(t, dtype=F64)
    law, change = torch.func.jvp(lambda s: density(x, s, ATOMS, WEIGHTS, schedule), (time,), (torch.ones_like(time),))
    triplet = jump(x, t)
    worst = 0.0
    for f in TESTS:
        moved = (law * triplet.apply(f, x)).sum()
        expected, size = (change * f(x)).sum(), (law * triplet.apply(f, x).abs()).sum()
        worst = max(worst, ((moved - expected).abs() / size).item())
    return worst


@pytest.mark.parametrize("schedule", [gm.schedules.CondOT(), gm.schedules.Cosine()], ids=repr)
def test_the_forward_equation_to_the_width_of_the_bins(schedule: gm.Schedule):
    path, reach = gm.GaussianPath(schedule), 1.7 if schedule == gm.schedules.CondOT() else 6.6
    found = []
    for bins in (8, 16, 32):
        edges = torch.linspace(-reach, reach, bins + 1)
        found.append(residual(Jump(exact_jump(ATOMS, WEIGHTS, edges, path)), 0.3))
    # Masses are exact, so that only the law within a bin is not: second order in its width.
    assert found[-1] < 0.02
    assert found[1] / found[2] > 3.5
    assert found[0] / found[1] > 3.0


def test_the_forward_equation_fails_for_landings_of_the_wrong_kernel():
    path, edges = gm.GaussianPath(), torch.linspace(-1.7, 1.7, 33)
    right = Jump(exact_jump(ATOMS, WEIGHTS, edges, path))
    mirrored = Jump(exact_jump(ATOMS, WEIGHTS, edges, path))
    mirrored.model.edges = -edges.flip(0) + 0.2
    assert residual(right, 0.3) < 0.01
    assert residual(mirrored, 0.3) > 0.05


def test_the_conditional_process_reproduces_its_law_and_its_number_of_jumps():
    z, stop, samples = torch.tensor([[1.3]]), 0.9, 8000
    edges = torch.linspace(-0.75, 2.1, 172)
    jump = Jump(exact_jump(z, torch.ones(1), edges))
    times = gm.grids.hazard(120, stop=stop)
    states = gm.sample(jump, (samples, 1), times=times, seed=0, trajectory=True)
    jumps = (states.diff(dim=0) != 0).sum(0).float()
    # Z(1.3) log(1/(1 - t)) jumps on average; N(t z, (1 - t)^2) in the end.
    root = math.sqrt(1.3**2 + 4)
    low, high = (1.3 - root) / 2, (1.3 + root) / 2
    flux = high * math.exp(-(low**2) / 2) / math.sqrt(2 * math.pi) - low * math.exp(-(high**2) / 2) / math.sqrt(
        2 * math.pi
    )
    expected = flux * math.log(1 / (1 - stop))
    error = jumps.std().item() / math.sqrt(samples)
    assert jumps.mean().item() == pytest.approx(expected, abs=4 * error + 0.01)  # frozen rates: 2.3 / 120 a step
    x = states[-1]
    assert x.mean().item() == pytest.approx(stop * 1.3, abs=4 * 0.1 / math.sqrt(samples) + 0.002)
    assert x.std().item() == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * samples) + 0.004)


def test_the_hazard_is_exact_over_a_step():
    # With the network frozen, a step's survival is ((1 - s)/(1 - t))^intensity, also for long steps.
    class Constant(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([torch.full_like(x, math.log(0.7))[..., None], x.new_zeros(*x.shape, 34)], -1)

    model = gm.predict.Rates(Constant(), gm.GaussianPath(), torch.linspace(-1.7, 1.7, 35))
    x = torch.full((40_000, 1), 5.0)
    moved = gm.sample(Jump(model), x, times=[0.2, 0.9], seed=0)
    stays = (moved == 5).double().mean().item()
    assert stays == pytest.approx((0.1 / 0.8) ** 0.7, abs=4 * math.sqrt(0.25 / 40_000))


def test_jumps_alone_reproduce_the_data_in_two_dimensions():
    atoms, weights = torch.tensor([[-0.8, 0.5], [0.6, -0.7]]), torch.tensor([0.35, 0.65])
    jump = Jump(exact_jump(atoms, weights, torch.linspace(-1.7, 1.7, 69)))
    times = torch.cat([gm.grids.hazard(60, stop=0.995), torch.ones(1, dtype=F64)])
    x = gm.sample(jump, (2000, 2), times=times, seed=0)
    gap = torch.cdist(x.double(), atoms.double())
    assert gap.amin(1).mean() < 0.06  # bins are 0.05 wide
    share = (gap.argmin(1) == 0).double().mean().item()
    assert share == pytest.approx(0.35, abs=4 * math.sqrt(0.35 * 0.65 / 2000) + 0.01)


def test_the_default_grid_ends_finite_and_near_the_data():
    jump = Jump(exact_jump(ATOMS, WEIGHTS, torch.linspace(-1.7, 1.7, 137)))
    x = gm.sample(jump, (2000, 1), seed=0)
    assert bool(x.isfinite().all())
    gap = (x.double() - ATOMS.double().T).abs()
    assert gap.amin(1).median() < 0.04  # sigma = 0.02 at the last step, bins of 0.025
    for k, weight in enumerate(WEIGHTS.tolist()):
        assert (gap.argmin(1) == k).double().mean().item() == pytest.approx(weight, abs=0.05)


def test_rows_that_are_drawn_for_nothing_change_nothing():
    # A CPU draws landings only for those who jump; where gradients are asked for, as on a GPU, for all.
    jump = Jump(exact_jump(ATOMS, WEIGHTS, torch.linspace(-1.7, 1.7, 35)))
    x = torch.randn(64, 1)
    sparse = gm.sample(jump, x, steps=5, stop=0.9, seed=0)
    dense = gm.sample(jump, x.clone().requires_grad_(), steps=5, stop=0.9, seed=0, grad=True)
    assert torch.allclose(sparse, dense.detach(), atol=1e-6)


def test_samples_do_not_depend_on_the_batch():
    jump = Jump(exact_jump(ATOMS, WEIGHTS, torch.linspace(-1.7, 1.7, 35)))
    whole = gm.sample(jump, (16, 1), steps=10, seed=3)
    parts = gm.sample(jump, (16, 1), steps=10, seed=3, batch_size=5)
    assert torch.allclose(whole, parts, atol=1e-6)


def test_a_sum_with_a_flow_ends_by_the_data_prediction():
    edges = torch.linspace(-1.7, 1.7, 35)
    jump = Jump(exact_jump(ATOMS, WEIGHTS, edges))
    world = gm.worlds.GaussianMixture(ATOMS, 0.0, WEIGHTS)
    flow = Flow(world.predictor(gm.GaussianPath()))
    for solver in (None, gm.solvers.Strang()):
        x = gm.sample(0.5 * flow + 0.5 * jump, (2000, 1), steps=40, seed=0, solver=solver)
        gap = (x - ATOMS.T).abs()
        assert gap.amin(1).quantile(0.95) < 1e-3  # no bin, 0.1 wide, is seen
        for k, weight in enumerate(WEIGHTS.tolist()):
            assert (gap.argmin(1) == k).double().mean().item() == pytest.approx(weight, abs=0.06)


@pytest.mark.slow
def test_a_trained_network_jumps_to_the_data():
    torch.manual_seed(0)
    atoms, weights = torch.tensor([[-0.8], [0.5]]), torch.tensor([0.3, 0.7])
    bins = 68
    network = gm.nn.MLP(1, width=64, depth=2, out=bins + 1, time_scale=10.0)
    model = gm.predict.Rates(network, gm.GaussianPath(), torch.linspace(-1.7, 1.7, bins + 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1000):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / 1000)
        x1 = atoms[torch.multinomial(weights, 512, replacement=True)]
        optimizer.zero_grad()
        gm.matching_loss(model, x1, seed=step).backward()
        optimizer.step()
    x = gm.sample(Jump(model), (4000, 1), times=gm.grids.hazard(80, stop=0.98), seed=1)
    low = x < -0.1
    assert low.double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert x[low].mean().item() == pytest.approx(-0.8 * 0.98, abs=0.03)
    assert x[~low].mean().item() == pytest.approx(0.5 * 0.98, abs=0.03)


# The grid


def test_the_hazard_grid_has_equal_steps_in_the_logarithm():
    times = gm.grids.hazard(10, start=0.1, stop=0.99)
    steps = (-torch.log1p(-times)).diff()
    assert times.shape == (11,)
    assert (times[0].item(), times[-1].item()) == (0.1, 0.99)
    assert torch.allclose(steps, steps[:1].expand(10))


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.5, 0.5), (-0.1, 0.9), (0.9, 0.1)])
def test_a_hazard_grid_stops_below_one(start: float, stop: float):
    with pytest.raises(ValueError, match="0 <= start < stop < 1"):
        gm.grids.hazard(5, start=start, stop=stop)
