"""The reflecting diffusion on an interval: variance alone carries uniform noise to data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import PureDiffusion
from genmatch.paths import IntervalPath, UniformInterval
from genmatch.predict import Variance
from genmatch.spaces import Interval
from genmatch.triplet import Triplet

F64 = torch.float64
LOW, HIGH = -1.0, 2.0
PATH = IntervalPath(LOW, HIGH)
NODES = LOW + (HIGH - LOW) * (torch.arange(3000, dtype=F64) + 0.5) / 3000


def data_density(x: Tensor) -> Tensor:
    """A smooth law on the interval, by no means uniform, with mass at the ends."""
    u = (x - LOW) / (HIGH - LOW)
    return (1 + 0.8 * torch.cos(math.pi * u) + 0.15 * torch.cos(3 * math.pi * u)) / (HIGH - LOW)


class ExactVariance(nn.Module):
    """What a perfect network returns for the law above: ((1-kappa)/L) E c(x, z) / p_t(x), as the readings want it."""

    def __init__(self) -> None:
        super().__init__()
        z = NODES
        table = PATH.exposure(NODES[:, None], z).matmul(data_density(z)) * (HIGH - LOW) / len(z)
        self.register_buffer("table", table)

    def mean_exposure(self, x: Tensor) -> Tensor:
        """E c(x, z) over the data, between the nodes linearly."""
        position = ((x.double() - LOW) / (HIGH - LOW) * len(NODES) - 0.5).clamp(0, len(NODES) - 1.000001)
        left = position.long()
        return torch.lerp(self.table[left], self.table[left + 1], position - left)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        law = (1 - t[:, None]) / (HIGH - LOW) + t[:, None] * data_density(x)
        value = self.mean_exposure(x) / (HIGH - LOW) / law / (HIGH - LOW) ** 2
        return value.expm1().log().to(x.dtype)  # the inverse of softplus


def exact() -> PureDiffusion:
    return PureDiffusion(Variance(ExactVariance(), PATH))


def bump(k: int):
    """Test functions with zero slope at both ends."""
    return lambda x: torch.cos(k * math.pi * (x.squeeze(-1) - LOW) / (HIGH - LOW))


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_conditional_forward_equation(t: float):
    for z in (-0.8, 0.3, 1.9):
        # From z to both ends by Gauss and Legendre, so that the kink is at an end.
        nodes, weights = legendre(40)
        for k in (1, 2, 5):
            value = 0.0
            for a, b in ((LOW, z), (z, HIGH)):
                x = a + (b - a) * nodes
                variance = PATH.variance(x, torch.full_like(x, z), t)
                second = -((k * math.pi / (HIGH - LOW)) ** 2) * bump(k)(x[:, None])
                value += ((1 - t) / (HIGH - LOW) * weights * (b - a) * variance / 2 * second).sum().item()
            expected = bump(k)(torch.tensor([[z]], dtype=F64)).item()  # less the mean under the uniform law, 0
            assert value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_marginal_forward_equation(t: float):
    jump, x = exact(), NODES[:, None]
    law = (1 - t) / (HIGH - LOW) + t * data_density(NODES)
    triplet = jump(x, t)
    step = (HIGH - LOW) / len(NODES)
    for k in (1, 2, 3):
        moved = (law * triplet.apply(bump(k), x)).sum() * step
        expected = (data_density(NODES) * bump(k)(x)).sum() * step
        assert abs(moved - expected) < 1e-6
    # A variance averaged over the data instead of the posterior has another law.
    wrong = jump.model.path.instant(t, x).hazard * jump.model.network.mean_exposure(NODES)
    moved = (law * 0.5 * wrong * -((math.pi / (HIGH - LOW)) ** 2) * bump(1)(x)).sum() * step
    assert abs(moved - (data_density(NODES) * bump(1)(x)).sum() * step) > 0.01


def legendre(count: int) -> tuple[Tensor, Tensor]:
    k = torch.arange(1, count, dtype=F64)
    off = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0] ** 2


def test_the_conditional_process_arrives_and_stays():
    count, z, stop = 8000, 0.5, 0.8
    x1 = torch.full((count, 1), z)
    draws = gm.Draws(0, count)
    start = UniformInterval(LOW, HIGH).draw((count, 1), draws.fork(9))
    times = gm.grids.hazard(400, stop=stop)
    x = PATH.walk(start, x1, times, draws)
    error = 4 * math.sqrt(0.25 / count)
    assert (x == z).double().mean().item() == pytest.approx(stop, abs=error + 0.01)
    rest = (x[x != z] - LOW) / (HIGH - LOW)
    spread = 4 / math.sqrt(12 * len(rest))
    assert rest.mean().item() == pytest.approx(0.5, abs=spread)  # the others are still uniform
    assert rest.std().item() == pytest.approx(12**-0.5, abs=spread)
    # Without absorption what crosses z is carried on, and too little is near it.
    free = start
    for i, (a, b) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        instant = PATH.at(torch.tensor([a], dtype=F64), torch.tensor([b], dtype=F64)).rows()[0]
        variance = instant.hazard * PATH.exposure(free, x1)
        free = PATH.space.move(free, Triplet(variance=variance), b - a, draws.at(i))
    assert ((free - z).abs() < 0.01).double().mean().item() < stop - 0.15


def test_the_conditional_process_ends_at_the_data():
    x1 = torch.tensor([[-1.0, 0.2], [2.0, 1.7]])
    x = PATH.walk(torch.rand(2, 2), x1, gm.grids.uniform(10), gm.Draws(0, 2))
    assert torch.equal(x, x1)


@pytest.mark.parametrize("stop", [0.6, 1.0])
def test_samples_of_the_marginal_process(stop: float):
    count = 20_000
    x = gm.sample(exact(), (count, 1), steps=200, stop=stop, seed=0)
    assert bool(((x >= LOW) & (x <= HIGH)).all())
    # E cos(k pi u) is what the data have, times kappa.
    for k, weight in ((1, 0.4), (2, 0.0), (3, 0.075)):
        assert bump(k)(x).double().mean().item() == pytest.approx(stop * weight, abs=4 * 0.75 / math.sqrt(count) + 0.01)


def test_training_finds_the_variance():
    torch.manual_seed(0)

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.values = nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.values[((x - LOW) / (HIGH - LOW) * 6).long().clamp(0, 5)]

    cells = ((NODES - LOW) / (HIGH - LOW) * 6).long()
    t = 0.5
    law = (1 - t) / (HIGH - LOW) + t * data_density(NODES)
    truth = exact()(NODES[:, None], t).variance[:, 0]
    expected = torch.stack([(law * truth)[cells == k].sum() / law[cells == k].sum() for k in range(6)])
    edges = data_density(NODES).cumsum(0)
    for divergence in (None, gm.divergences.Squared()):
        model = Variance(Table(), PATH, divergence=divergence)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.2, betas=(0.9, 0.99))
        for step in range(250):
            for group in optimizer.param_groups:
                group["lr"] = 0.2 * (1 - step / 250)
            uniform = gm.Draws(step, 4096).uniform((4096,), F64)
            x1 = NODES[torch.searchsorted(edges, uniform * edges[-1]).clamp(max=2999)][:, None].float()
            optimizer.zero_grad()
            gm.matching_loss(model, x1, t=t, seed=step).backward()
            optimizer.step()
        x = torch.tensor([[LOW + (HIGH - LOW) * (k + 0.5) / 6] for k in range(6)])
        found = model(x, t).variance[:, 0].detach().double()
        assert torch.allclose(found, expected, rtol=0.04), divergence


# The space


def test_what_leaves_is_reflected():
    space = Interval(0.0, 2.0)
    x = torch.tensor([-0.5, 2.5, 4.5, -3.0, 1.25, 0.0, 2.0])
    assert space.fold(x).tolist() == [0.5, 1.5, 0.5, 1.0, 1.25, 0.0, 2.0]
    moved = space.move(torch.tensor([[1.5]]), Triplet(drift=torch.tensor([[1.0]])), 1.0, gm.Draws(0, 1))
    assert moved.item() == 1.5


def test_reflected_noise_keeps_the_uniform_law():
    space, count = Interval(0.0, 1.0), 20_000
    draws = gm.Draws(0, count)
    x = draws.fork(9).uniform((count, 1))
    for step in range(5):
        x = space.move(x, Triplet(variance=2.0), 0.05, draws.at(step))
    for k in (1, 2):
        assert torch.cos(k * math.pi * x).mean().abs() < 4 / math.sqrt(2 * count)


# Bad input


def test_what_cannot_be_is_refused():
    for low, high in ((1.0, 0.0), (0.0, math.inf)):
        with pytest.raises(ValueError, match="finite ends"):
            Interval(low, high)
    with pytest.raises(ValueError, match=r"states lie in \[-1, 2\], got 3"):
        gm.matching_loss(Variance(nn.Identity(), PATH), torch.tensor([[3.0]]))
    with pytest.raises(TypeError, match="Variance needs an IntervalPath"):
        Variance(nn.Identity(), gm.GaussianPath())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="PureDiffusion needs a model with a variance"):
        PureDiffusion(gm.predict.Velocity(nn.Identity(), gm.GaussianPath()))
    with pytest.raises(ValueError, match="times must be at least two in a row, increasing"):
        PATH.walk(torch.zeros(2, 1), torch.zeros(2, 1), torch.tensor([0.5, 0.2]), gm.Draws(0, 2))
    with pytest.raises(ValueError, match=r"returned shape \(2, 3\) for a state of shape \(2, 1\)"):
        Variance(nn.Linear(1, 3), PATH).checked(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="needs additive noise"):
        gm.sample(exact(), (2, 1), steps=3, solver=gm.solvers.Heun())


def test_paths_and_sources_compare():
    assert IntervalPath(0.0, 1.0) == IntervalPath(0.0, 1.0) != IntervalPath(0.0, 2.0)
    assert hash(IntervalPath(0.0, 1.0)) == hash(IntervalPath(0.0, 1.0))
    assert UniformInterval(0.0, 1.0) != UniformInterval(0.0, 2.0)
    assert "UniformInterval(-1, 2)" in repr(PATH)
