"""For each class of generators: one to check, with samples of the law that it is for. A new class is a new line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import genmatch as gm
from genmatch import generators
from genmatch.random import Draws
from genmatch.spaces.states import each
from jumps.jump_worlds import exact_jump
from products import test_products as products
from token_worlds import ExactPosterior, TokenWorld

ROWS = 4096
CHECKED_ROWS, CHECKED_TIMES = 1000, (0.3, 0.75)  # that a subject is checked with and at


@dataclass(frozen=True)
class Subject:
    """A generator, data, and options of ``check_generator`` (a check that is left out needs a reason beside it)."""

    generator: gm.Superposition | gm.Generator
    data: Any
    options: dict[str, Any] = field(default_factory=dict)


class Swirl(gm.Generator):
    """As a user would write it."""

    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(drift=prediction.score.flip(-1) * x.new_tensor([1.0, -1.0]))


class Posterior(ExactPosterior):
    """The exact posterior, with a time for each row."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output = torch.empty(*x.shape, 3, dtype=torch.float64)
        for time in t.unique():
            output[t == time] = self.world.posterior(x[t == time], time.double()).log()
        return output


WORLD = gm.worlds.GaussianMixture(
    torch.tensor([[-1.5, 0.0], [1.5, 1.0], [0.5, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.5]], [[0.6, -0.2], [-0.2, 0.3]], [[0.2, 0.0], [0.0, 0.7]]]),
    [0.5, 0.2, 0.3],
)


@cache
def plane(schedule: gm.Schedule | None = None) -> tuple[gm.Predictor, Tensor]:
    """The exact model of a mixture in the plane, and its data."""
    return WORLD.predictor(gm.GaussianPath(schedule)), WORLD.sample(ROWS, seed=1)


@cache
def tokens(mask: int | None = None) -> tuple[gm.Predictor, Tensor]:
    """The exact model of pairs of tokens, and data."""
    world = TokenWorld(gm.MixturePath(3, mask=mask))
    edges = world.law.cumsum(0)
    level = Draws(2, ROWS).uniform((ROWS,), torch.float64) * edges[-1]
    rows = torch.searchsorted(edges, level, right=True).clamp(max=len(edges) - 1)
    return gm.predict.Tokens(Posterior(world), world.path), world.data[rows]


@cache
def bridge() -> tuple[gm.Predictor, Tensor]:
    """The same data by Brownian bridges from standard normal noise: p_t is that of a Gaussian path."""

    class Exact(nn.Module):
        def forward(self, x, t):
            return WORLD.posterior_mean(x, t, ((1 - t) ** 2 + 0.5 * t * (1 - t)).sqrt())

    return gm.predict.BridgeData(Exact(), gm.paths.BridgePath(0.5)), plane()[1]


@cache
def label_and_point() -> tuple[gm.Predictor, dict[str, Tensor]]:
    """A label and a point that depends on it."""
    draws = Draws(5, ROWS)
    label = (draws.uniform((ROWS, 1), torch.float64) > products.WEIGHTS.cumsum(0)).sum(1)
    point = products.MEANS[label] + products.SPREADS[label] * draws.fork(1).normal((ROWS,), torch.float64)
    data = {"label": label, "point": point[:, None]}
    return products.model_on(products.product_path({"label": lambda t: 1 - (1 - t) ** 2})), data


@cache
def atoms() -> tuple[gm.Predictor, Tensor]:
    """Jumps to three atoms, in bins that are a small part of the noise at the times that are checked."""
    points, weights = torch.tensor([[-0.8], [0.2], [0.9]]), torch.tensor([0.3, 0.2, 0.5])
    model = exact_jump(points, weights, torch.linspace(-1.8, 1.8, 49))
    which = torch.searchsorted(weights.cumsum(0), Draws(6, 500).uniform((500,)), right=True).clamp(max=2)
    return model, points[which]


@cache
def switching() -> tuple[gm.Predictor, Tensor]:
    """Whole states that jump from N(0, 1) to the data of the plane."""

    class LogRatio(nn.Module):
        def forward(self, x, t):
            return WORLD.log_prob(x) + 0.5 * x.square().sum(1) + math.log(2 * math.pi)

    return gm.predict.Survival(LogRatio(), gm.paths.ContinuousMixturePath()), plane()[1]


@cache
def moving_normal() -> tuple[gm.Predictor, Tensor]:
    """The density of a normal law on the straight path, data N(0.5, 0.25)."""

    def log_density(x: Tensor, t: Tensor) -> Tensor:
        variance = (1 - t) ** 2 + 0.25 * t**2
        return -0.5 * ((x.squeeze(-1) - 0.5 * t) ** 2 / variance + variance.log())

    data = 0.5 + 0.5 * Draws(7, 1000).normal((1000, 1))
    return gm.predict.Density(log_density, gm.GaussianPath()), data


@cache
def between_walls() -> tuple[gm.Predictor, Tensor]:
    """Data of density 2 x on [0, 1]: (A p)'' / 2 = kappa' (2 x - 1), level at the walls, A p = kappa' / 2 at 0."""

    class Exact(nn.Module):
        def forward(self, x, t):
            density = 1 - t[:, None] + 2 * t[:, None] * x
            return ((2 / 3 * x**3 - x**2 + 0.5) / density).expm1().log()  # the inverse of softplus

    return gm.predict.Variance(Exact(), gm.paths.IntervalPath()), Draws(8, ROWS).uniform((ROWS, 1)).sqrt()


@cache
def far() -> tuple[gm.Predictor, Tensor]:
    """Data whose mean is a hundred times their spread."""
    world = gm.worlds.GaussianMixture(torch.tensor([[100.0, 0.0], [101.0, 2.0]]), 0.3)
    return world.predictor(gm.GaussianPath()), world.sample(ROWS, seed=1)


def towards(space: gm.spaces.Manifold, target: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The velocity at ``x`` of geodesics that end in one point at t = 1."""
    return space.log(x, target.to(x).expand_as(x)) / (1 - t.reshape(-1, *[1] * space.event_ndim))


@cache
def geodesics(space: gm.spaces.Manifold) -> tuple[gm.Predictor, Tensor]:
    """Geodesics to one point."""
    target = space.project(torch.linspace(-0.5, 0.65, math.prod(space.event_shape)).reshape(1, *space.event_shape))

    class Exact(nn.Module):
        def forward(self, x, t):
            return towards(space, target, x, t)

    path = gm.paths.GeodesicPath(space)
    return gm.predict.TangentVelocity(Exact(), path), target.repeat(1000, *[1] * space.event_ndim)


@cache
def given(factor: str) -> tuple[gm.Predictor, dict[str, Tensor]]:
    """A label and a point, one of them given: its clock stands at the data."""
    return products.model_on(products.product_path({factor: torch.ones_like})), label_and_point()[1]


@cache
def label_and_direction() -> tuple[gm.Predictor, dict[str, Tensor]]:
    """A label, and beside it geodesics on the sphere."""
    space, target = gm.spaces.Sphere(2), torch.tensor([[0.6, 0.0, 0.8]])

    class Exact(nn.Module):
        def forward(self, x, t):
            shown = (1 - t["label"][:, None]) / 3 + t["label"][:, None] * (x["label"][:, None] == torch.arange(3))
            direction = towards(space, target, x["direction"], t["direction"])
            return {"label": (products.WEIGHTS * shown).log(), "direction": direction}

    path = gm.ProductPath({"label": gm.MixturePath(3), "direction": gm.paths.GeodesicPath(space)})
    factors = {"label": gm.predict.Tokens, "direction": gm.predict.TangentVelocity}
    return gm.predict.Product(Exact(), factors, path), {
        "label": label_and_point()[1]["label"], "direction": target.repeat(ROWS, 1)
    }  # fmt: skip


def on(world: tuple[gm.Predictor, Any], make: Callable[[gm.Predictor], Any], **options: Any) -> Subject:
    model, data = world
    return Subject(make(model), each(lambda v: v[:CHECKED_ROWS], data), {"t": CHECKED_TIMES} | options)


def blended(model: gm.Predictor) -> gm.Superposition:
    """From flow to diffusion in the course of time."""
    return (lambda t: 1 - t) * gm.Flow(model) + (lambda t: t) * gm.Diffusion(model, gm.diffusivity.Constant(0.5))


NOISE = gm.diffusivity.StateDependent(lambda x, t: 0.3 + torch.exp(-x.square().sum(-1, keepdim=True)))

SUBJECTS: dict[type, list[Callable[[], Subject]]] = {
    gm.Flow: [
        lambda: on(plane(), gm.Flow),
        lambda: on(plane(gm.schedules.Cosine()), gm.Flow),
        lambda: on(far(), gm.Flow),
        # The networks of this file have no limit at t = 1.
        lambda: on(geodesics(gm.spaces.Sphere(2)), gm.Flow, skip=["ends"]),
        lambda: on(geodesics(gm.spaces.SO3()), gm.Flow, skip=["ends"]),
        lambda: on(geodesics(gm.spaces.PoincareBall(2)), gm.Flow, skip=["ends"]),
    ],
    gm.Langevin: [lambda: on(plane(), gm.Langevin), lambda: on(plane(gm.schedules.VP()), gm.Langevin)],
    gm.Diffusion: [
        lambda: on(plane(), lambda m: gm.Diffusion(m, gm.diffusivity.Constant(0.8))),
        lambda: on(far(), lambda m: gm.Diffusion(m, gm.diffusivity.Constant(0.8))),
    ],
    gm.Superposition: [
        lambda: on(plane(), lambda m: 0.7 * gm.Flow(m) + 0.3 * gm.Diffusion(m)),
        lambda: on(plane(), lambda m: (lambda t: 1 - t) * gm.Flow(m) + (lambda t: t) * gm.Diffusion(m)),
        lambda: on(plane(), lambda m: gm.Flow(m) + 0.5 * Swirl(m)),
        lambda: on(plane(), lambda m: 0.4 * gm.Flow(m) + gm.Langevin(m)),  # at a speed of 0.4
        lambda: on(
            label_and_point(),
            lambda m: (
                (lambda t: 1 - t) * gm.Product(m, {"label": gm.CTMC, "point": gm.Flow})
                + (lambda t: t) * gm.Product(m, {"label": gm.CTMC, "point": gm.Diffusion})
            ),
        ),
    ],
    gm.CTMC: [lambda: on(tokens(), gm.CTMC), lambda: on(tokens(3), gm.CTMC)],
    generators.Multiplicative: [lambda: on(plane(), lambda m: generators.Multiplicative(m, NOISE))],
    generators.Reverse: [
        lambda: on(plane(), lambda m: generators.Reverse(gm.Flow(m) + gm.Langevin(m))),
    ],
    generators.ReverseDiffusion: [lambda: on(plane(), lambda m: generators.ReverseDiffusion(Swirl(m)))],
    generators.Jump: [
        lambda: on(atoms(), generators.Jump, skip=["ends"])  # nor has the network of these rates
    ],
    generators.MixtureJump: [lambda: on(switching(), lambda m: generators.MixtureJump(m, WORLD))],
    generators.MinimalJump: [
        lambda: on(moving_normal(), lambda m: generators.MinimalJump(m, torch.linspace(-5, 5, 61)))
    ],
    generators.PureDiffusion: [lambda: on(between_walls(), generators.PureDiffusion)],
    generators.ReverseCTMC: [
        lambda: on(tokens(), generators.ReverseCTMC),
        lambda: on(tokens(3), generators.ReverseCTMC),
    ],
    generators.TokenChurn: [
        lambda: on(tokens(), generators.TokenChurn),
        lambda: on(tokens(3), generators.TokenChurn),
    ],
    generators.Bridge: [
        lambda: on(bridge(), generators.Bridge, skip=["ends"])  # its pull 1 / (1 - t) is infinite at the data
    ],
    gm.Product: [
        lambda: on(label_and_point(), lambda m: gm.Product(m, {"label": gm.CTMC, "point": blended})),
        lambda: on(given("label"), lambda m: gm.Product(m, {"label": gm.CTMC, "point": gm.Flow})),
        lambda: on(given("point"), lambda m: gm.Product(m, {"label": gm.CTMC, "point": gm.Diffusion})),
        lambda: on(
            label_and_direction(),
            lambda m: gm.Product(m, {"label": gm.CTMC, "direction": gm.Flow}),
            skip=["ends"],  # as above
        ),
    ],
    Swirl: [lambda: on(plane(), Swirl)],
}
