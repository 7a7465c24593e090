"""Exact models, and ways to spoil them: in what a network says, or in the drift itself."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch.generators import Operator

from .theory import GaussianWorld, Level

__all__ = [
    "READINGS",
    "Exact",
    "Hiss",
    "Push",
    "Spoilt",
    "diffusion",
    "exact_model",
    "late",
    "late_grid",
    "marginal",
    "solve",
    "spoil",
]

READINGS = {"velocity": gm.predict.Velocity, "data": gm.predict.Data, "noise": gm.predict.Noise}
Error = Callable[[Tensor, Tensor], Tensor]  # of the states (B, 1) and the times (B,)
EARLY = 1e-3  # where a solver starts that cannot meet the infinite noise at t = 0


class Exact(nn.Module):
    """What a perfect network of a reading says in a mixture world."""

    def __init__(self, world: gm.worlds.GaussianMixture, schedule: gm.Schedule, reading: str) -> None:
        super().__init__()
        self.world, self.schedule, self.reading = world, schedule, reading
        self.instants: dict[float, gm.schedules.Instant] = {}  # derivatives cost more than all the rest

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        instant = self.instants.setdefault(float(t[0]), self.schedule.at(t[:1].double()))
        alpha, sigma = instant.alpha.to(x), instant.sigma.to(x)
        data = self.world.posterior_mean(x, alpha.squeeze(), sigma.squeeze())
        # At the data the noise is independent of the state, and its mean is 0.
        noise = torch.where(sigma == 0, 0.0, (x - alpha * data) / sigma)
        if self.reading == "velocity":
            return instant.alpha_dot.to(x) * data + instant.sigma_dot.to(x) * noise
        return data if self.reading == "data" else noise


class Spoilt(nn.Module):
    """A network with an error added to its output."""

    def __init__(self, network: nn.Module, error: Error) -> None:
        super().__init__()
        self.network, self.error = network, error

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t) + self.error(x, t)


class Push(gm.Generator):
    """A drift error of the process itself. It says that it leaves the path alone, which is not true: that is the point.

    With ``variance`` instead it is white noise that no drift undoes.
    """

    speed = 0.0

    def __init__(self, model: gm.predict.Predictor, error: Error | None = None, variance: float = 0.0) -> None:
        super().__init__(model)
        self.error, self.variance = error, variance

    def triplet(self, x: Tensor, t: gm.schedules.Number, prediction: object) -> gm.Triplet:
        drift = None if self.error is None else self.error(x, torch.as_tensor(t, dtype=x.dtype).expand(len(x)))
        return gm.Triplet(drift=drift, variance=self.variance if self.variance else None)


class Hiss:
    r"""White noise in what a network says, for Heun steps on :func:`late_grid`.

    It is drawn afresh at each of a step's two calls, whose mean moves the state, so that a call's variance is twice
    intensity / h; h is t log(1 / start) / steps on that grid.
    """

    def __init__(self, intensity: float, steps: int, seed: int) -> None:
        self.spread = 2 * intensity * steps / math.log(1 / EARLY)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return (self.spread / t).sqrt()[:, None] * noise


def exact_model(world: GaussianWorld | gm.worlds.GaussianMixture, reading: str = "velocity") -> gm.predict.Affine:
    """A perfect predictor of a world on the line, on CondOT or the world's own schedule."""
    schedule = world.schedule if isinstance(world, GaussianWorld) else gm.schedules.CondOT()
    return READINGS[reading](Exact(mixture(world), schedule, reading), gm.GaussianPath(schedule))


def mixture(world: GaussianWorld | gm.worlds.GaussianMixture) -> gm.worlds.GaussianMixture:
    """A world as one of the library's."""
    if isinstance(world, GaussianWorld):
        return gm.worlds.GaussianMixture(torch.tensor([[world.mean]], dtype=torch.float64), world.std**2)
    return world


def spoil(model: gm.predict.Affine, error: Error) -> gm.predict.Affine:
    """The same predictor with an error in its network."""
    return type(model)(Spoilt(model.network, error), model.path, time=model.time)


def diffusion(model: gm.predict.Predictor, gamma: float) -> Operator:
    """The process with noise 2 gamma b; the flow for 0."""
    return gm.Diffusion(model, gm.diffusivity.Memoryless(gamma)) if gamma else gm.Flow(model)


def late_grid(steps: int, start: float) -> Tensor:
    """Steps in proportion to t from ``start``: the noise 2 gamma b sets the pace there."""
    times = start ** (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)
    times[-1] = 1.0
    return times


def solve(
    world: GaussianWorld | gm.worlds.GaussianMixture,
    gamma: float,
    level: Level,
    error: Error,
    *,
    samples: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Samples at t = 1 under an error in the velocity network, or of the drift alone; ``(samples, 1)``, float64."""
    model = exact_model(world)
    if level == "network":
        process = diffusion(spoil(model, error), gamma)
    else:
        process = diffusion(model, gamma) + Push(model, error)
    return late(process, world, samples=samples, steps=steps, seed=seed)


def late(
    process: Operator,
    world: GaussianWorld | gm.worlds.GaussianMixture,
    *,
    samples: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Samples at t = 1 by Heun steps from exact samples of p_t at t = 0.001, ``(samples, 1)``, float64.

    What happens before is forgotten under noise, and is a thousandth of the whole without.
    """
    x = marginal(world, EARLY, samples=samples, seed=seed)
    return gm.sample(process, x, times=late_grid(steps, EARLY), solver=gm.solvers.Heun(), seed=seed)


def marginal(world: GaussianWorld | gm.worlds.GaussianMixture, t: float, *, samples: int, seed: int) -> Tensor:
    """Exact samples of p_t, ``(samples, 1)``, float64."""
    draws = gm.random.Draws(seed, samples)
    alpha, sigma = exact_model(world).path.schedule(torch.tensor(t, dtype=torch.float64))
    x1 = mixture(world).draw((samples, 1), draws.fork(201)).double()
    return alpha * x1 + sigma * draws.fork(200).normal((samples, 1), torch.float64)
