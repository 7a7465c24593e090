"""Small trainings that end where only a right loss ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from token_worlds import VOCABULARY, TokenWorld, total_variation


class Perceptron(nn.Module):
    """Two hidden layers on the point and a few waves of the time."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2 + 5, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        waves = [t, *(wave(math.pi * k * t) for k in (1, 2) for wave in (torch.sin, torch.cos))]
        return self.body(torch.cat([x, *waves], 1))


def train(model: gm.Predictor, draw: Callable[[int], Tensor], steps: int, lr: float = 3e-3, **options) -> gm.Predictor:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        x1 = draw(step)
        optimizer.zero_grad()
        gm.matching_loss(model, x1, draws=gm.Draws(0, len(x1), step=step), **options).backward()
        optimizer.step()
        decay.step()
    return model


class Backwards(gm.predict.Velocity):
    """Velocities with the wrong sign: x0 - x1."""

    def target(self, x0, x1, instant):
        return -gm.predict.Velocity.target(self, x0, x1, instant)


class NoiseAsVelocity(gm.predict.Velocity):
    """A noise network whose output is read as a velocity."""

    def target(self, x0, x1, instant):
        return x0


RINGS = gm.data.EightGaussians()
COUNT = 4000


def distance(model: gm.Predictor, steps: int = 20) -> float:
    """Energy distance of samples from data."""
    samples = gm.sample(gm.Flow(model), (COUNT, 2), seed=1, steps=steps)
    return float(gm.metrics.energy_distance(samples, RINGS.sample(COUNT, seed=2)))


@pytest.fixture(scope="module")
def scale() -> tuple[float, float]:
    """Energy distances: of one sample of the data from another, and of one Gaussian with their mean and covariance.

    The second is the best that anything can do which knows the data by two moments: who is well below it has found
    modes. The first is what a perfect sampler would get, and it is in every distance.
    """
    data, other = RINGS.sample(COUNT, seed=2), RINGS.sample(COUNT, seed=3)
    noise = gm.Draws(4, COUNT).normal((COUNT, 2))
    gaussian = data.mean(0) + noise @ torch.linalg.cholesky(data.T.cov()).T
    return float(gm.metrics.energy_distance(data, other)), float(gm.metrics.energy_distance(data, gaussian))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Velocity", "Noise", "Data", "V"])
def test_a_flow_finds_eight_modes(scale: tuple[float, float], kind: str):
    floor, gaussian = scale
    assert floor < gaussian / 20, "too few samples to tell"
    model = getattr(gm.predict, kind)(Perceptron(), gm.GaussianPath(gm.schedules.Cosine()))
    time = gm.times.Uniform(stratified=True)
    train(model, lambda k: RINGS.sample(256, seed=5, first_index=256 * k), 1500, time=time)
    assert distance(model, steps=100) - floor < gaussian / 8


def test_a_short_training_beats_any_gaussian(scale: tuple[float, float]):
    _, gaussian = scale
    model = gm.predict.Velocity(Perceptron(64), gm.GaussianPath())
    train(model, lambda k: RINGS.sample(256, seed=5, first_index=256 * k), 500)
    assert distance(model) < gaussian / 2


@pytest.mark.parametrize("wrong", [Backwards, NoiseAsVelocity])
def test_a_wrong_target_is_worse_than_a_gaussian(scale: tuple[float, float], wrong: type):
    """The same training as above; however long it goes on, the law it converges to is another."""
    _, gaussian = scale
    model = train(
        wrong(Perceptron(64), gm.GaussianPath()), lambda k: RINGS.sample(256, seed=5, first_index=256 * k), 500
    )
    assert distance(model) > gaussian


class Table(nn.Module):
    """Free logits for every state and position, and for a few bins of time."""

    def __init__(self, values: int, bins: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(bins, values, values, 2, VOCABULARY))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        bins = (t * len(self.logits)).long().clamp(max=len(self.logits) - 1)
        return self.logits[bins, x[:, 0], x[:, 1]]


@pytest.mark.parametrize(("mask", "bins"), [(3, 1), (None, 16)])
def test_a_token_model_finds_the_joint_law(mask: int | None, bins: int):
    """A table has room for the exact posterior, so what is left is its statistical error and that of 32 tau-leaps.

    The product of the marginals, all that a model can learn which scores each position without looking at the other, is
    at a total variation of 0.46 from the law; the steps and 20,000 samples cost less than 0.03.
    """
    world = TokenWorld(gm.MixturePath(3, mask=mask))
    marginals = world.law.reshape(3, 3).sum(1)[:, None] * world.law.reshape(3, 3).sum(0)[None]
    product = total_variation(marginals.flatten(), world.law)
    model = gm.predict.Tokens(Table(3 if mask is None else 4, bins), world.path)
    generator = torch.Generator().manual_seed(0)

    def draw(step: int) -> Tensor:
        return world.data[torch.multinomial(world.law, 2048, replacement=True, generator=generator)]

    train(model, draw, 250, lr=0.3, time=gm.times.Uniform(stratified=True))
    found = world.histogram(gm.sample(gm.CTMC(model), (20_000, 2), steps=32, seed=1))
    assert total_variation(found, world.end()) < 0.1 * product

    # The same without the other position's token in sight.
    with torch.no_grad():
        logits = model.network.logits
        logits[..., 0, :] = logits[..., 0, :].mean(2, keepdim=True)
        logits[..., 1, :] = logits[..., 1, :].mean(1, keepdim=True)
    blind = world.histogram(gm.sample(gm.CTMC(model), (20_000, 2), steps=32, seed=1))
    assert total_variation(blind, world.end()) > 0.4 * product
