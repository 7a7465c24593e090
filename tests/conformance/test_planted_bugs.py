"""A list of bugs, each a generator that differs from a right one in one place: the right passes, the wrong is caught.

Both are judged at the same settings, from samples alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

import genmatch as gm
from conformance.subjects import plane, tokens
from genmatch.rates import Atoms, Bins, Rates, Term
from genmatch.testing import ConformanceError, check_generator
from token_worlds import TokenWorld

CHECKED = {"only": ["forward equation", "speed"], "tolerance": 0.01}


class Vector(gm.Generator):
    """Velocity and noise of variance g2 = 2 sigma W at speed 1, with one mistake."""

    def __init__(self, model: gm.Predictor, mistake: str = "") -> None:
        super().__init__(model)
        self.mistake = mistake

    def triplet(self, x, t, prediction):
        instant = prediction.instant
        g2 = 2 * instant.sigma * instant.wronskian
        u, s = prediction.velocity, prediction.score
        match self.mistake:
            case "":
                return gm.Triplet(u + g2 / 2 * s, g2)
            case "wrong sign of the drift":
                return gm.Triplet(-u + g2 / 2 * s, g2)
            case "wrong sign of the score":
                return gm.Triplet(u - g2 / 2 * s, g2)
            case "missing half":
                return gm.Triplet(u + g2 * s, g2)
            case "half twice":
                return gm.Triplet(u + g2 / 4 * s, g2)
            case "sigma for sigma^2":
                return gm.Triplet(u + g2 / 2 * s, math.sqrt(g2))
            case "noise without drift":
                return gm.Triplet(u, g2)
            case "drift without noise":
                return gm.Triplet(u + g2 / 2 * s)
            case "score scaled by sigma":
                return gm.Triplet(u + g2 / 2 * prediction.noise, g2)
            case "data for velocity":
                return gm.Triplet(prediction.data + g2 / 2 * s, g2)
            case "drift at a later time":
                return gm.Triplet(self.model(x, t + 0.1).velocity + g2 / 2 * s, g2)
            case "velocity of another schedule":
                other = gm.schedules.Cosine().at(torch.tensor(t, dtype=torch.float64))
                return gm.Triplet(
                    other.alpha_dot * prediction.data + other.sigma_dot * prediction.noise + g2 / 2 * s, g2
                )
            case "variance of one coordinate only":
                return gm.Triplet(u + g2 / 2 * s, g2 * torch.ones_like(x) * x.new_tensor([1.0, 0.0]))
        raise AssertionError(self.mistake)


VECTOR = (
    "wrong sign of the drift", "wrong sign of the score", "missing half", "half twice", "sigma for sigma^2",
    "noise without drift", "drift without noise", "score scaled by sigma", "data for velocity",
    "drift at a later time", "velocity of another schedule", "variance of one coordinate only",
)  # fmt: skip


class ForwardAndBack(gm.Generator):
    """a * flow - b * flow, and Langevin noise: at a speed of a - b."""

    speed = 0.4

    def __init__(self, model: gm.Predictor, forward: float, back: float) -> None:
        super().__init__(model)
        self.forward_weight, self.back_weight = forward, back

    def triplet(self, x, t, prediction):
        u, s = prediction.velocity, prediction.score
        return gm.Triplet((self.forward_weight - self.back_weight) * u + 0.1 * s, 0.2)


class StateDependent(gm.Generator):
    """Noise of variance A(x) = 0.5 + 0.4 sin(2 x) for each coordinate, undone by the drift (A s + div A) / 2."""

    speed = 0.0
    additive = False

    def __init__(self, model: gm.Predictor, divergence: float) -> None:
        super().__init__(model)
        self.divergence = divergence

    def triplet(self, x, t, prediction):
        variance, slope = 0.5 + 0.4 * torch.sin(2 * x), 0.8 * torch.cos(2 * x)
        return gm.Triplet(0.5 * variance * prediction.score + self.divergence * slope, variance)


class Chain(gm.Generator):
    """Jumps of tokens, with one mistake."""

    additive = False

    def __init__(self, model: gm.Predictor, mistake: str = "") -> None:
        super().__init__(model)
        self.mistake = mistake

    def triplet(self, x, t, prediction):
        hazard, logits = prediction.instant.hazard, prediction.logits
        match self.mistake:
            case "without the hazard":
                hazard = 1.0
            case "hazard without 1 - kappa":
                hazard *= 1 - prediction.instant.kappa
            case "hazard over kappa":
                hazard *= (1 - prediction.instant.kappa) / prediction.instant.kappa
            case "posterior of another position":
                logits = logits.flip(-2)
            case "posterior of an earlier time":
                logits = self.model(x, t / 2).logits
            case "sharpened posterior":
                logits = 2 * logits
        return gm.Triplet(rates=Rates(Term(hazard * torch.ones(x.shape, dtype=torch.float64), logits)))


CHAIN = (
    "without the hazard", "hazard without 1 - kappa", "hazard over kappa", "posterior of another position",
    "posterior of an earlier time", "sharpened posterior",
)  # fmt: skip


class Table(gm.Generator):
    """The same chain by a table of rates between whole states, which may be read the wrong way round."""

    additive = False

    def __init__(self, model: gm.Predictor, transposed: bool) -> None:
        super().__init__(model)
        self.transposed, self.world = transposed, TokenWorld(model.path)

    def triplet(self, x, t, prediction):
        states = self.world.states
        p = self.world.posterior(states, torch.tensor(t, dtype=torch.float64))
        rates = torch.zeros(len(states), len(states), dtype=torch.float64)  # from, to
        for position in range(2):
            for value in range(3):
                landed = states.clone()
                landed[:, position] = value
                rates[torch.arange(len(states)), self.world.index(landed)] += p[:, position, value]
        rates = prediction.instant.hazard * rates * (1 - torch.eye(len(states)))
        rows = (rates.T if self.transposed else rates)[self.world.index(x)]
        return gm.Triplet(rates=Rates(Term(rows.sum(-1, keepdim=True), Atoms(states, rows.log()))))


class Jump(gm.Generator):
    r"""The jump process of one atom z on the path N(t z, (1 - t)^2) (arXiv 2410.20587, eq. 13), in bins.

    With k(x) = (x - t z)(x - z) - (1 - t)^2: the rate is [k(x)]_+ / (1 - t)^3 at the source x, the density of landings
    proportional to [-k(y)]_+ N(y; t z, (1 - t)^2) at the target y.
    """

    additive = False
    z, bins = 1.3, 32

    def __init__(self, model: gm.Predictor, mistake: str = "") -> None:
        super().__init__(model)
        self.mistake = mistake

    def triplet(self, x, t, prediction):
        z, width = self.z, 1 - t
        xi = (x - t * z) / width
        low, high = (z - math.sqrt(z * z + 4)) / 2, (z + math.sqrt(z * z + 4)) / 2
        rate = (xi**2 - z * xi - 1).clamp(min=0) / width
        edges = torch.linspace(low, high, self.bins + 1, dtype=torch.float64)
        cumulative = (edges - z) * torch.exp(-(edges**2) / 2)  # antiderivative of (1 + z xi - xi^2) phi
        match self.mistake:
            case "kernel at the source":  # a constant in the target: landings have the density of the path
                edges = torch.linspace(-5, 5, 2 * self.bins + 1, dtype=torch.float64)
                cumulative = torch.special.ndtr(edges)
            case "kernel over the data only":  # landings beyond the data point are left out
                edges = torch.linspace(low, 0.0, self.bins + 1, dtype=torch.float64)
                cumulative = (edges - z) * torch.exp(-(edges**2) / 2)
            case "rate without 1 / (1 - t)":
                rate = rate * width
            case "rate of the other sign":
                rate = (1 + z * xi - xi**2).clamp(min=0) / width
        mass = cumulative.diff()
        logits = mass.log().expand(*x.shape, len(mass))
        return gm.Triplet(rates=Rates(Term(rate, Bins(logits, t * z + width * edges))))


JUMP = ("kernel at the source", "kernel over the data only", "rate without 1 / (1 - t)", "rate of the other sign")


@cache
def atom() -> tuple[gm.Predictor, Tensor]:
    world = gm.worlds.GaussianMixture(torch.tensor([[Jump.z]]), 0.0)
    return world.predictor(gm.GaussianPath()), torch.full((1000, 1), Jump.z)


BUGS: dict[str, tuple[Callable, Callable, Callable]] = {  # name -> world, right generator, wrong generator
    **{f"diffusion: {m}": (plane, Vector, lambda model, m=m: Vector(model, m)) for m in VECTOR},
    "superposition: weights swapped": (
        plane,
        lambda model: ForwardAndBack(model, 0.7, 0.3),
        lambda model: ForwardAndBack(model, 0.3, 0.7),
    ),
    "superposition: weights do not add to 1": (
        plane,
        lambda model: ForwardAndBack(model, 0.7, 0.3),
        lambda model: ForwardAndBack(model, 0.7, 0.2),
    ),
    "state-dependent noise: no divergence": (
        plane,
        lambda model: StateDependent(model, 0.5),
        lambda model: StateDependent(model, 0.0),
    ),
    "state-dependent noise: no half": (
        plane,
        lambda model: StateDependent(model, 0.5),
        lambda model: StateDependent(model, 1.0),
    ),
    **{f"tokens: {m}": (tokens, Chain, lambda model, m=m: Chain(model, m)) for m in CHAIN},
    "tokens: rates transposed": (tokens, lambda model: Table(model, False), lambda model: Table(model, True)),
    **{f"jump: {m}": (atom, Jump, lambda model, m=m: Jump(model, m)) for m in JUMP},
}


@cache
def right_passes(make: Callable, world: Callable) -> bool:
    model, data = world()
    return check_generator(make(model), data=data, **CHECKED).passed


@pytest.mark.parametrize("name", BUGS)
def test_the_bug_is_caught_and_the_right_one_passes(name: str):
    world, right, wrong = BUGS[name]
    model, data = world()
    assert right_passes(right, world)
    with pytest.raises(ConformanceError, match="forward equation"):
        check_generator(wrong(model), data=data, **CHECKED)


class Off(gm.Generator):
    """Flow, Langevin noise of variance 0.64 and jumps of tokens, each off by a little."""

    def __init__(self, model: gm.Predictor, pull: float = 0.0, half: float = 0.5, rates: float = 1.0) -> None:
        super().__init__(model)
        self.pull, self.half, self.rates = pull, half, rates

    def triplet(self, x, t, prediction):
        if not x.is_floating_point():
            return gm.CTMC(self.model).triplet(x, t, prediction) * self.rates
        return gm.Triplet(prediction.velocity + self.pull * x + 0.64 * self.half * prediction.score, 0.64)


@pytest.mark.parametrize(
    ("world", "small", "large"),
    [
        (plane, {"pull": 0.05}, {"pull": 0.1}),
        (plane, {"half": 0.53}, {"half": 0.65}),
        (tokens, {"rates": 1.05}, {"rates": 1.2}),
    ],
    ids=["pull", "half", "rates"],
)
def test_how_small_an_error_is_seen(world: Callable, small: dict, large: dict):
    """What the guide says of the default settings."""
    model, data = world()
    assert check_generator(Off(model, **small), data=data, only=CHECKED["only"]).passed
    with pytest.raises(ConformanceError, match="forward equation"):
        check_generator(Off(model, **large), data=data, only=CHECKED["only"])


def test_a_weight_between_generators_of_one_speed_is_no_bug():
    """0.3 and 0.7 of flow and diffusion swapped is another generator of the same path: nothing may be reported."""
    model, data = plane()
    for a in (0.3, 0.7):
        assert check_generator(a * gm.Flow(model) + (1 - a) * gm.Diffusion(model), data=data, **CHECKED).passed
