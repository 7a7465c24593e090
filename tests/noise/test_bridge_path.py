r"""Brownian bridges: their law, the generator that carries it from any source, and its end.

Between normals everything is in closed form: with Cov(x0, x1) = R, the state is normal of variance
:math:`(1-t)^2 C_0 + t^2 C_1 + 2t(1-t) R + s^2 t(1-t)`, and the mean of x1 given it is linear.
"""

from __future__ import annotations

import math
from typing import Any

import noise_worlds as worlds
import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Bridge, ReverseDiffusion
from genmatch.paths import BridgePath
from genmatch.predict import BridgeData

F64 = torch.float64
S2 = 0.6


class Normals:
    """Bridges between N(m0, c0) and N(m1, c1) with covariance r, on the line."""

    def __init__(self, m0=-1.0, c0=0.5, m1=0.8, c1=0.2, r=0.0, s2=S2, standard=False) -> None:
        self.m0, self.c0, self.m1, self.c1, self.r, self.s2 = m0, c0, m1, c1, r, s2
        source = None if standard else self
        self.path = BridgePath(s2, source=source, coupling=None if r == 0 else gm.couplings.Given())
        self.model = BridgeData(_Exact(self), self.path)

    def draw(self, shape, draws):
        return self.m0 + math.sqrt(self.c0) * draws.normal(shape)

    def pairs(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        draws = gm.Draws(seed, count)
        z0, z1 = draws.fork(1).normal((count, 1)), draws.fork(2).normal((count, 1))
        x0 = self.m0 + math.sqrt(self.c0) * z0
        rest = math.sqrt(self.c1 - self.r**2 / self.c0)
        return x0, self.m1 + self.r / math.sqrt(self.c0) * z0 + rest * z1

    def mean(self, t: Any) -> Any:
        return (1 - t) * self.m0 + t * self.m1

    def variance(self, t: Any) -> Any:
        return (1 - t) ** 2 * self.c0 + t**2 * self.c1 + (2 * self.r + self.s2) * t * (1 - t)

    def data(self, x: Any, t: Any) -> Any:
        return self.m1 + (t * self.c1 + (1 - t) * self.r) / self.variance(t) * (x - self.mean(t))

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        time = torch.tensor(t, dtype=F64)

        def density(s: Tensor) -> Tensor:
            away = worlds.GRID[:, 0] - self.mean(s)
            return torch.exp(-0.5 * away**2 / self.variance(s)) / torch.sqrt(2 * math.pi * self.variance(s))

        return torch.func.jvp(density, (time,), (torch.ones_like(time),))


class _Exact(nn.Module):
    def __init__(self, world: Normals) -> None:
        super().__init__()
        self.world = world

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.world.data(x, t[:, None])


WORLDS = {
    "independent": Normals(),
    "pairs": Normals(r=0.25),
    "opposed": Normals(r=-0.2),
    "little noise": Normals(s2=0.05),
    "from noise": Normals(m0=0.0, c0=1.0, standard=True),
}


@pytest.mark.parametrize("name", WORLDS)
def test_the_bridge_carries_its_path(name: str):
    world = WORLDS[name]
    for t in (0.05, 0.5, 0.95):
        law = world.law(t)
        assert worlds.residual(Bridge(world.model), law, t) < 1e-6
        assert worlds.residual(Bridge(world.model), law, t, speed=0.9) > 1e-3

    class Silent(Bridge):
        def triplet(self, x, t, prediction):
            return gm.Triplet(drift=super().triplet(x, t, prediction).drift)

    assert worlds.residual(Silent(world.model), world.law(0.5), 0.5) > 1e-2, "the noise plays no role"


@pytest.mark.parametrize("name", ["pairs", "independent"])
def test_states_between_have_the_law(name: str):
    world = WORLDS[name]
    x0, x1 = world.pairs(40000, 1)
    for t in (0.0, 0.3, 0.8, 1.0):
        x = world.path.sample(x0, x1, t, gm.Draws(2, len(x0)))
        assert x.mean().item() == pytest.approx(world.mean(t), abs=0.02)
        assert x.var().item() == pytest.approx(world.variance(t), rel=0.03)
    torch.testing.assert_close(world.path.sample(x0, x1, 0.0), x0)
    torch.testing.assert_close(world.path.sample(x0, x1, 1.0), x1)


def run_moments(world: Normals, operator: Any, solver: gm.Solver, times: Tensor) -> tuple[float, float]:
    """Mean and variance of a run from the source, exactly: each step is affine in the state and one normal."""
    mean, variance = world.m0, world.c0
    field = gm.solvers.Field(operator, torch.zeros(3, 1, dtype=F64))
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
    z = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    for c in solver.plan(field, times):
        (offset, one, noisy), _ = solver.step(field, x, c, worlds.Given(z), None)
        factor, deviation = (one - offset).item(), (noisy - offset).item()
        mean, variance = offset.item() + factor * mean, factor**2 * variance + deviation**2
    return mean, variance


def end_errors(world: Normals, solver: gm.Solver, steps: tuple[int, ...], stop: float = 1.0, power: float = 1.0):
    """Of mean and variance at the end of runs on grids that shrink towards the data like 1 - (1 - u)^power."""
    errors = []
    for n in steps:
        times = stop * (1 - (1 - gm.grids.uniform(n)) ** power)
        mean, variance = run_moments(world, Bridge(world.model), solver, times)
        errors.append(abs(mean - world.mean(stop)) + abs(variance - world.variance(stop)))
    return errors


@pytest.mark.parametrize("solver", [gm.solvers.Euler(), gm.solvers.EndPoint()], ids=repr)
@pytest.mark.parametrize("name", WORLDS)
def test_the_run_ends_in_the_law_of_the_data(name: str, solver: gm.Solver):
    """Order 1 on steps that shrink towards the data. On equal ones the end costs a logarithm: h log(1/h)."""
    world, steps = WORLDS[name], (40, 80, 160, 320)
    assert worlds.slope(steps, end_errors(world, solver, steps, stop=0.8)) > 0.85
    shrinking, even = end_errors(world, solver, steps, power=2.0), end_errors(world, solver, steps)
    assert worlds.slope(steps, shrinking) > 0.85
    assert shrinking[2] < 0.02
    scaled = [error * n / math.log(n) for error, n in zip(even, steps, strict=True)]
    assert scaled[-1] < 1.25 * scaled[0]


def test_heun_is_of_order_two_inside():
    world, steps = WORLDS["independent"], (20, 40, 80)
    assert worlds.slope(steps, end_errors(world, gm.solvers.Heun(), steps, stop=0.8)) > 1.8
    heun, euler = (end_errors(world, solver, steps)[-1] for solver in (gm.solvers.Heun(), gm.solvers.Euler()))
    assert heun < euler / 2


def test_a_step_is_exactly_a_bridge_to_the_data_prediction():
    """With a network that knows the end: the law at every grid time is that of the pinned Brownian motion."""

    class Known(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.full_like(x, 2.0)

    path = BridgePath(S2, source=torch.zeros(1, 1))
    bridge = Bridge(BridgeData(Known(), path))
    solver, field = gm.solvers.Euler(), gm.solvers.Field(bridge, torch.zeros(3, 1, dtype=F64))
    mean = variance = 0.0
    times = torch.tensor([0.0, 0.13, 0.5, 0.92, 1.0], dtype=F64)
    x = torch.tensor([[0.0], [1.0], [0.0]], dtype=F64)
    z = torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)
    for c, t in zip(solver.plan(field, times), times[1:].tolist(), strict=True):
        (offset, one, noisy), _ = solver.step(field, x, c, worlds.Given(z), None)
        factor, deviation = (one - offset).item(), (noisy - offset).item()
        mean, variance = offset.item() + factor * mean, factor**2 * variance + deviation**2
        assert mean == pytest.approx(2 * t, abs=1e-12)
        assert variance == pytest.approx(S2 * t * (1 - t), abs=1e-12)
    x = gm.sample(bridge, (5, 1), steps=7, seed=0)
    torch.testing.assert_close(x, torch.full((5, 1), 2.0))


def test_samples_end_in_the_data_prediction():
    for solver in (None, gm.solvers.Heun(), gm.solvers.EndPoint()):
        world = WORLDS["pairs"]
        x0, _ = world.pairs(6, 3)
        path = gm.sample(Bridge(world.model), x0, steps=5, seed=0, trajectory=True, solver=solver)
        expected = world.data(path[-2], 0.8)
        torch.testing.assert_close(path[-1], expected, rtol=1e-4, atol=1e-5)


def test_pairs_are_kept_where_their_paths_do_not_cross():
    """Where they do, a process that sees the state alone cannot tell them apart: the pairs are lost."""
    x0 = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)])
    for r, share in ((0.99, 1.0), (-0.99, 0.0)):
        world = Normals(c0=1.0, c1=1.0, m0=0.0, m1=0.0, r=r, s2=0.01)
        x = gm.sample(Bridge(world.model), x0, steps=100, seed=0)
        as_paired = (x.sign() == math.copysign(1, r) * x0.sign()).float().mean().item()
        assert as_paired == pytest.approx(share, abs=0.05)


def test_it_is_trained_by_the_one_loss():
    world = WORLDS["pairs"]
    network = gm.nn.MLP(1, width=32)
    model = BridgeData(network, world.path)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(250):
        x0, x1 = world.pairs(512, step)
        loss = gm.matching_loss(model, x1, x0=x0, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.linspace(-1, 1, 9)[:, None] * 0.8
    for t in (0.3, 0.7):
        centred = x + world.mean(t)
        assert (model(centred, t).data - world.data(centred, t)).abs().max() < 0.15


# Readings


def test_from_noise_score_and_velocity_are_there():
    world = WORLDS["from noise"]
    x = gm.Draws(0, 5).normal((5, 1), F64)
    for t in (0.0, 0.3, 0.9):
        prediction = world.model(x, t)
        torch.testing.assert_close(prediction.score, -(x - world.mean(t)) / world.variance(t), rtol=1e-6, atol=1e-7)
        assert worlds.residual(gm.Flow(world.model), world.law(max(t, 0.01)), max(t, 0.01)) < 1e-6
    noisy = gm.Flow(world.model) + gm.Langevin(world.model, gm.diffusivity.Constant(0.4))
    assert worlds.residual(noisy, world.law(0.5), 0.5) < 1e-6
    # The bridge is its flow and Langevin of its own variance.
    whole = gm.Flow(world.model) + gm.Langevin(world.model, gm.diffusivity.Constant(S2))
    torch.testing.assert_close(whole(x, 0.4).drift, Bridge(world.model)(x, 0.4).drift)


@pytest.mark.parametrize(
    ("name", "why"), [("pairs", "makes source and data dependent"), ("independent", "is not the standard normal")]
)
def test_elsewhere_they_are_refused(name: str, why: str):
    world = WORLDS[name]
    assert world.model.readings == {"data", "drift"}
    for reading in ("score", "velocity"):
        with pytest.raises(ValueError, match=f"there is no score on BridgePath.*{why}.*Use gm.Bridge"):
            getattr(world.model(torch.zeros(2, 1), 0.5), reading)
    with pytest.raises(TypeError, match=r"Langevin needs a model on a GaussianPath, got one on BridgePath.* no score"):
        gm.Langevin(world.model, gm.diffusivity.Constant(1.0))
    with pytest.raises(
        ValueError, match=f"the reverse of a bridge needs the score.*{why}.*trained the other way round"
    ):
        gm.generators.Reverse(Bridge(world.model))


def test_the_reverse_of_a_bridge():
    world = WORLDS["from noise"]
    reverse = gm.generators.Reverse(Bridge(world.model))
    assert isinstance(reverse.terms[0][1], ReverseDiffusion)
    for t in (0.1, 0.5, 0.9):
        assert worlds.residual(reverse, world.law(t), t, speed=-1.0) < 1e-6
        assert worlds.residual(1.5 * Bridge(world.model) + 0.5 * reverse, world.law(t), t, speed=1.0) < 1e-6


# Bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BridgePath(0.0), ValueError, "variance must be above 0"),
        (lambda: BridgePath("1"), TypeError, "variance must be a number"),
        (lambda: BridgePath(1.0, coupling=gm.couplings.OT), TypeError, "the class OT: call it"),
        (lambda: BridgePath(1.0, source=3), TypeError, "source must be a tensor of samples or have a method draw"),
        (
            lambda: BridgeData(nn.Identity(), gm.GaussianPath()),
            TypeError,
            "BridgeData needs a BridgePath, got GaussianPath",
        ),
        (lambda: BridgeData(lambda x, t: x, BridgePath(1.0)), TypeError, "must be a torch.nn.Module"),
        (
            lambda: Bridge(gm.predict.Data(nn.Identity(), gm.GaussianPath())),
            TypeError,
            r"Bridge needs a model on a BridgePath such as gm.predict.BridgeData, got one on GaussianPath",
        ),
        (
            lambda: gm.sample(Bridge(WORLDS["pairs"].model), (4, 1), start=0.5, steps=3, seed=0),
            ValueError,
            "has left its source at t = 0.5: pass states drawn from its p_t",
        ),
        (
            lambda: gm.sample(Bridge(WORLDS["pairs"].model), torch.zeros(4, 1), start=1.0, stop=0.0, steps=3, seed=0),
            ValueError,
            "noise and jumps run from noise to data|cannot start at t = 1",
        ),
        (
            lambda: gm.Langevin(WORLDS["from noise"].model),
            ValueError,
            "the default, Memoryless is noise for Gaussian paths, and BridgePath.* is none",
        ),
        (
            lambda: gm.Langevin(WORLDS["from noise"].model, gm.diffusivity.EndpointSafe()),
            ValueError,
            "EndpointSafe is noise for Gaussian paths",
        ),
    ],
)
def test_bad_input_is_refused(call, error, message: str):
    with pytest.raises(error, match=message):
        call()


def test_at_the_data_what_is_not_finite_is_refused():
    model, x = WORLDS["from noise"].model, torch.zeros(2, 1)
    torch.testing.assert_close(model(x, 1.0).data, WORLDS["from noise"].data(x, 1.0))
    for reading in ("drift", "score", "velocity"):
        with pytest.raises(ValueError, match=r"at t = 1 of BridgePath.* not finite: the bridge has arrived"):
            getattr(model(x, 1.0), reading)
        assert not getattr(model(x, torch.tensor([0.5, 1.0])), reading)[1].isfinite().all()
    with pytest.raises(ValueError, match="the bridge has arrived"):
        Bridge(model)(x, 1.0)


def test_a_network_of_another_shape_is_refused():
    class Wide(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.cat([x, x], -1)

    with pytest.raises(ValueError, match=r"returned shape \(2, 2\) for a state of shape \(2, 1\)"):
        BridgeData(Wide(), BridgePath(1.0))(torch.zeros(2, 1), 0.5)
