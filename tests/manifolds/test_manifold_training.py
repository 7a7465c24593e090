"""Small networks trained on a sphere and a torus reach the law they were trained on, whose density is known."""

from __future__ import annotations

import math

import pytest
import torch
from curved_worlds import von_mises_fisher
from torch import nn

import genmatch as gm
from genmatch.paths import GeodesicPath
from genmatch.predict import TangentVelocity
from genmatch.spaces import Sphere, Torus

pytestmark = pytest.mark.slow

KAPPA, WEIGHT = 10.0, 0.7
POLES = torch.tensor([[0.6, 0.0, 0.8], [-0.8, 0.6, 0.0]], dtype=torch.float64)
MEANS, WIDTH = torch.tensor([[2.8, -2.8], [0.0, 1.0]], dtype=torch.float64), 0.5  # the first wraps both ways


class Forgetful(GeodesicPath):
    """The velocity without its factor 1 / (1 - kappa): a planted bug."""

    def velocity(self, x, x0, x1, instant):
        return self.space.log(x, x1)


class Small(nn.Module):
    def __init__(self, features, inputs, outputs):
        super().__init__()
        self.features = features
        layers = [nn.Linear(inputs + 3, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU()]
        self.inner = nn.Sequential(*layers, nn.Linear(96, outputs))

    def forward(self, x, t):
        t = t[:, None]
        return self.inner(torch.cat([self.features(x), t, (math.pi * t).cos(), t**4], -1))


def which(draws):
    return (draws.fork(9).uniform((draws.samples,)) >= WEIGHT).long()


def sphere_data(draws):
    both = torch.stack([von_mises_fisher(KAPPA, pole, draws.fork(20 + i)) for i, pole in enumerate(POLES)])
    return both[which(draws), torch.arange(draws.samples)].float()


def torus_data(draws):
    x = MEANS[which(draws)] + WIDTH * draws.fork(30).normal((draws.samples, 2), torch.float64)
    return Torus(2).project(x).float()


def sphere_density(x):
    """By area: kappa / (4 pi sinh kappa) exp(kappa <m, x>)."""
    bumps = KAPPA / (4 * math.pi * math.sinh(KAPPA)) * (KAPPA * x @ POLES.T).exp()
    return bumps @ torch.tensor([WEIGHT, 1 - WEIGHT], dtype=x.dtype)


def torus_density(x):
    turns = torch.cartesian_prod(*[torch.arange(-2.0, 3.0, dtype=x.dtype)] * 2) * 2 * math.pi
    z = (x[:, None, None] + turns[:, None] - MEANS) / WIDTH
    bumps = (-0.5 * (z * z).sum(-1)).exp().sum(1) / (2 * math.pi * WIDTH**2)
    return bumps @ torch.tensor([WEIGHT, 1 - WEIGHT], dtype=x.dtype)


def sphere_cells(x):
    """Equal-area cells: height and longitude, 10 x 16."""
    height = ((x[:, 2] + 1) / 2 * 10).long().clamp(0, 9)
    return height * 16 + ((torch.atan2(x[:, 1], x[:, 0]) + math.pi) / (2 * math.pi) * 16).long().clamp(0, 15)


def torus_cells(x):
    cells = ((x + math.pi) / (2 * math.pi) * 14).long().clamp(0, 13)
    return cells[:, 0] * 14 + cells[:, 1]


def lattice(count):
    """The centres of equal cells of the unit square."""
    ticks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cartesian_prod(ticks, ticks)


def sphere_grid():
    uv = lattice(480)
    height, longitude = 2 * uv[:, 0] - 1, 2 * math.pi * uv[:, 1] - math.pi
    radius = (1 - height**2).sqrt()
    return torch.stack([radius * longitude.cos(), radius * longitude.sin(), height], -1), 4 * math.pi / len(uv)


def torus_grid():
    uv = lattice(420)
    return 2 * math.pi * uv - math.pi, 4 * math.pi**2 / len(uv)


WORLDS = {
    "sphere": (Sphere(2), sphere_data, sphere_density, sphere_cells, sphere_grid, 160, lambda x: x, 3),
    "torus": (
        Torus(2),
        torus_data,
        torus_density,
        torus_cells,
        torus_grid,
        196,
        lambda x: torch.cat([x.sin(), x.cos()], -1),
        4,
    ),
}


def train(path, data, features, inputs, steps):
    torch.manual_seed(0)
    size = path.space.event_shape[0]
    model = TangentVelocity(Small(features, inputs, size), path)
    batch = 512
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    pool = data(gm.Draws(1, batch * 100)).split(batch)
    for step in range(steps):
        loss = gm.matching_loss(model, pool[step % 100], draws=gm.Draws(2, batch).at(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model


@pytest.mark.parametrize("kind", [GeodesicPath, Forgetful], ids=["right", "forgetful"])
@pytest.mark.parametrize("world", WORLDS)
def test_training_reaches_the_density(world, kind):
    space, data, density, cells, grid, count, features, inputs = WORLDS[world]
    nodes, area = grid()
    mass = torch.zeros(count, dtype=torch.float64).index_add_(0, cells(nodes), density(nodes) * area)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)

    def distance(x):
        """Total variation between a histogram and the exact masses of its cells."""
        return 0.5 * float((torch.bincount(cells(x.double()), minlength=count) / len(x) - mass).abs().sum())

    n = 8000
    model = train(kind(space), data, features, inputs, steps=1000 if kind is GeodesicPath else 300)
    x = gm.sample(gm.Flow(model), (n, space.event_shape[0]), steps=24, solver=gm.solvers.Heun(), seed=3)
    noise = distance(data(gm.Draws(4, n)))  # of as many exact samples
    if kind is GeodesicPath:
        assert distance(x) < noise + 0.045
    else:
        assert distance(x) > noise + 0.2
