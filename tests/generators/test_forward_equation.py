r"""The forward equation of every generator: d/dt <p_t, f> * speed = <p_t, L_t f>, by quadrature and by enumeration.

The left side knows nothing of the library but the schedule: densities of mixtures of normals are written out here, and
differentiated in t by forward mode. The right side is the generator's triplet, by its definition (``Triplet.apply``).
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import genmatch as gm
from covered import FORWARD_EQUATION, proved
from genmatch.generators import Generator, Operator, Superposition
from token_worlds import TokenWorld

SCHEDULES = {"condot": gm.schedules.CondOT(), "cosine": gm.schedules.Cosine(), "vp": gm.schedules.VP()}
# What the drift of a mixture looks like: one broad and two narrow bumps, none centred, none of equal weight.
MEANS, VARIANCES, WEIGHTS = (-1.5, 0.4, 1.8), (0.09, 0.5, 0.2), (0.3, 0.2, 0.5)
TIMES = (0.07, 0.5, 0.96)
TESTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sine": lambda x: torch.sin(x.squeeze(-1) + 0.3),
    "square": lambda x: x.squeeze(-1) ** 2,
    "step": lambda x: torch.tanh(2 * x.squeeze(-1) - 0.5),
    "bump": lambda x: torch.exp(-((x.squeeze(-1) - 0.7) ** 2)),
}
DIFFUSIVITIES = {
    "memoryless": gm.diffusivity.Memoryless(),
    "half memoryless": gm.diffusivity.Memoryless(0.5),
    "endpoint safe": gm.diffusivity.EndpointSafe(1.3),
    "constant": gm.diffusivity.Constant(0.8),
    "function": gm.diffusivity.Function(lambda t: 0.2 + t**2),
}


class MixtureWorld:
    """The mixture on a Gaussian path, in one dimension."""

    def __init__(self, schedule: gm.Schedule, width: float = 1.0) -> None:
        self.schedule, self.path = schedule, gm.GaussianPath(schedule)
        world = gm.worlds.GaussianMixture(
            torch.tensor(MEANS)[:, None], torch.tensor(VARIANCES)[:, None, None], torch.tensor(WEIGHTS)
        )
        self.model = world.predictor(self.path)
        self.width = width  # of the state, which unscaled data under much noise has in plenty
        self.grid = width * torch.linspace(-12, 12, 801, dtype=torch.float64)[:, None]

    def density(self, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        value = torch.zeros_like(self.grid[:, 0])
        for mean, variance, weight in zip(MEANS, VARIANCES, WEIGHTS, strict=True):
            spread = alpha**2 * variance + sigma**2
            value = value + weight * torch.exp(-((self.grid[:, 0] - alpha * mean) ** 2) / (2 * spread)) / torch.sqrt(
                2 * math.pi * spread
            )
        return value

    @cache  # noqa: B019  the worlds live as long as the module
    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """p_t and its time derivative on the grid."""
        time = torch.tensor(t, dtype=torch.float64)
        return torch.func.jvp(self.density, (time,), (torch.ones_like(time),))

    def residuals(self, operator: Operator, t: float, speed: float) -> Iterator[float]:
        """Of each test function, relative to <p_t, |L f|>."""
        density, rate = self.law(t)
        step = (self.grid[1] - self.grid[0]).item()
        triplet = operator(self.grid, t)
        for test in TESTS.values():

            def function(x: Tensor, test=test) -> Tensor:
                return test(x / self.width)

            value = triplet.apply(function, self.grid)
            moved, expected = (density * value).sum() * step, speed * (rate * function(self.grid)).sum() * step
            yield ((moved - expected).abs() / ((density * value.abs()).sum() * step)).item()


class EnumeratedWorld:
    """Pairs of tokens, all of whose states are listed; the network sees times in float32, so these are dyadic."""

    def __init__(self, path: gm.MixturePath) -> None:
        self.tokens = TokenWorld(path)
        self.path, self.model = path, self.tokens.model()

    def residuals(self, operator: Operator, t: float, speed: float) -> Iterator[float]:
        time = torch.tensor(round(t * 64) / 64, dtype=torch.float64)
        density, rate = torch.func.jvp(self.tokens.density, (time,), (torch.ones_like(time),))
        states = self.tokens.states
        triplet = operator(states, time.item())
        for target in states[:: 2 if len(states) > 9 else 1]:
            value = triplet.apply(lambda x, y=target: (x == y).all(-1).double(), states)
            expected = speed * rate[self.tokens.index(target[None])]
            yield (((density * value).sum() - expected).abs() / (density * value.abs()).sum()).item()


GAUSSIAN = {name: MixtureWorld(schedule) for name, schedule in SCHEDULES.items()}
TOKENS = {
    "uniform": EnumeratedWorld(gm.MixturePath(3)),
    "mask": EnumeratedWorld(gm.MixturePath(3, mask=3)),
    "uniform cosine": EnumeratedWorld(gm.MixturePath(3, schedule=gm.schedules.Cosine())),
    "mask cubic": EnumeratedWorld(gm.MixturePath(3, mask=3, schedule=gm.schedules.Polynomial(3.0))),
}

# For each class of the package: how to make it on a world's model, and the worlds that it lives in.
WORLDS: dict[type, tuple[Callable[[gm.Predictor], Operator], dict]] = {
    gm.Flow: (gm.Flow, GAUSSIAN),
    gm.Langevin: (gm.Langevin, GAUSSIAN),
    gm.Diffusion: (gm.Diffusion, GAUSSIAN),
    gm.CTMC: (gm.CTMC, TOKENS),
    Superposition: (lambda model: 0.3 * gm.Flow(model) + 0.7 * gm.Diffusion(model), GAUSSIAN),
}


def residual(world, operator: Operator, t: float, speed: float | None = None) -> float:
    """The largest relative residual; ``speed`` is the operator's own unless told."""
    return max(world.residuals(operator, t, operator.speed_at(t) if speed is None else speed))


def classes_of_the_package() -> list[type]:
    """Every concrete class of generators and sums that genmatch defines."""
    for module in pkgutil.walk_packages(gm.__path__, "genmatch."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("genmatch"):
                    raise
    found: list[type] = []
    todo: list[type] = [Generator, Superposition]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls.__module__.split(".")[0] == "genmatch" and not inspect.isabstract(cls) and cls not in found:
            found.append(cls)
    return sorted(found, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", classes_of_the_package(), ids=lambda cls: cls.__name__)
def test_every_generator_follows_its_path(cls: type):
    if cls.__name__ in proved(FORWARD_EQUATION):
        return
    assert cls in WORLDS, (
        f"{cls.__name__} has no world here: add it to WORLDS in {__file__} with a law p_t known in closed form, "
        "so that its forward equation is tested"
    )
    make, worlds = WORLDS[cls]
    for name, world in worlds.items():
        operator = make(world.model)
        for t in TIMES:
            assert residual(world, operator, t) < 1e-6, f"{cls.__name__} on {name} at t = {t}"


def test_every_class_is_found():
    names = {cls.__name__ for cls in classes_of_the_package()}
    assert names >= {"Flow", "Langevin", "Diffusion", "CTMC", "Superposition"}
    assert "Generator" not in names


@pytest.mark.parametrize("name", DIFFUSIVITIES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_diffusivity_leaves_the_law_alone(schedule: str, name: str):
    world = GAUSSIAN[schedule]
    for t in TIMES:
        langevin = gm.Langevin(world.model, DIFFUSIVITIES[name])
        assert residual(world, langevin, t, speed=0.0) < 1e-6
        assert residual(world, gm.Diffusion(world.model, DIFFUSIVITIES[name]), t, speed=1.0) < 1e-6
        assert residual(world, langevin, t, speed=1.0) > 1e-3, "a generator of speed 0 passes for one of speed 1"


@pytest.mark.parametrize(
    ("schedule", "t", "width"),
    [
        (gm.schedules.CondOT(sigma_min=0.2), 0.9, 1.0),
        (gm.schedules.Polynomial(2.5), 0.6, 1.0),
        (gm.schedules.VE(), 0.05, 40.0),
        (gm.schedules.VE(), 0.5, 1.0),
        (gm.schedules.EDM(), 0.1, 60.0),
        (gm.schedules.EDM(), 0.8, 1.0),
        (gm.schedules.DDPM(), 0.33333, 1.0),
        (gm.schedules.DDPM([0.1] * 10), 0.55, 1.0),
        (gm.schedules.DDPM([0.1] * 10), 0.97, 1.0),
    ],
    ids=repr,
)
def test_every_schedule_has_its_flow_and_its_diffusion(schedule: gm.Schedule, t: float, width: float):
    world = MixtureWorld(schedule, width)
    for operator in (gm.Flow(world.model), gm.Diffusion(world.model)):
        assert residual(world, operator, t, speed=1.0) < 1e-6
    assert residual(world, gm.Flow(world.model), t, speed=0.9) > 1e-3


@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_on_another_path_than_it_was_trained_on(schedule: str, trained: str):
    world = GAUSSIAN[schedule]
    model = gm.predict.Reschedule(GAUSSIAN[trained].model, world.path)
    for t in TIMES:
        assert residual(world, gm.Flow(model), t, speed=1.0) < 1e-6
        assert residual(world, gm.Langevin(model), t, speed=0.0) < 1e-6


KINDS = (gm.predict.Velocity, gm.predict.Noise, gm.predict.Score, gm.predict.V, gm.predict.Karras)


class Reading(nn.Module):
    """The exact output of a network of another kind, by its definition from the exact data prediction."""

    def __init__(self, world: MixtureWorld, kind: str) -> None:
        super().__init__()
        self.world, self.kind = world, kind

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        (alpha, sigma), (a, s) = torch.func.jvp(self.world.schedule, (t,), (torch.ones_like(t),))
        alpha, sigma, a, s = (v[:, None] for v in (alpha, sigma, a, s))
        level = (sigma**2 + 0.25 * alpha**2).sqrt()
        state = x * level if self.kind == "karras" else x  # its network sees the state at unit variance
        data = self.world.model.network(state, t)
        noise = (state - alpha * data) / sigma
        if self.kind == "velocity":
            return a * data + s * noise
        if self.kind == "v":
            return alpha * noise - sigma * data
        if self.kind == "karras":  # D = c_skip x / alpha + c_out F, with sigma / alpha for EDM's sigma
            ratio = sigma / alpha
            skip, out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / (ratio**2 + 0.25).sqrt()
            return (data - skip * state / alpha) / out
        return noise if self.kind == "noise" else -noise / sigma


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_whatever_the_network_predicts(schedule: str, kind: type):
    world = GAUSSIAN[schedule]
    model = kind(Reading(world, kind.kind), world.path, time=gm.predict.clocks.t)
    for t in TIMES:
        assert residual(world, gm.Flow(model), t, speed=1.0) < 1e-6
        for name in ("memoryless", "constant"):  # by the noise that tends to 0 with sigma, and by one that does not
            assert residual(world, gm.Langevin(model, DIFFUSIVITIES[name]), t, speed=0.0) < 1e-6


# Sums


def sums(model: gm.Predictor) -> dict[str, tuple[Operator, Callable[[float], float]]]:
    """Operators and the speed that each must have."""
    flow, sde = gm.Flow(model), gm.Diffusion(model, gm.diffusivity.EndpointSafe(0.7))
    langevin = gm.Langevin(model, gm.diffusivity.Constant(1.5))
    return {
        "convex": (0.7 * flow + 0.3 * sde, lambda t: 1.0),
        "one negative weight": (1.4 * sde - 0.4 * flow, lambda t: 1.0),
        "in time": ((lambda t: 1 - t) * flow + (lambda t: t) * sde, lambda t: 1.0),
        "much Langevin": (flow + 7.5 * langevin, lambda t: 1.0),
        "Langevin in time": (flow + (lambda t: 3 * math.sin(t)) * langevin, lambda t: 1.0),
        "less noise than a diffusion": (
            gm.Diffusion(model, gm.diffusivity.Constant(2.0)) - 0.5 * langevin,
            lambda t: 1.0,
        ),
        "half speed": (0.5 * flow + 0.2 * langevin, lambda t: 0.5),
        "speed in time": ((lambda t: 2 * t) * sde, lambda t: 2 * t),
        "backwards": (-flow, lambda t: -1.0),
        "nested": (0.5 * (0.5 * flow + 0.5 * sde) + 0.5 * (flow + langevin), lambda t: 1.0),
        "summed": (sum([0.25 * flow, 0.25 * sde, 0.5 * flow]), lambda t: 1.0),
        "mean": ((flow + sde) / 2, lambda t: 1.0),
    }


@pytest.mark.parametrize("name", sums(GAUSSIAN["condot"].model))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sums_carry_the_path_at_their_speed(schedule: str, name: str):
    world = GAUSSIAN[schedule]
    operator, speed = sums(world.model)[name]
    for t in TIMES:
        assert operator.speed_at(t) == pytest.approx(speed(t), abs=1e-12)
        assert residual(world, operator, t, speed=speed(t)) < 1e-6


def test_sums_of_token_generators():
    for path in (gm.MixturePath(3), gm.MixturePath(3, mask=3)):
        world = EnumeratedWorld(path)
        first, second = gm.CTMC(world.model), gm.CTMC(world.tokens.model())
        for t in TIMES:
            assert residual(world, 0.3 * first + 0.7 * second, t, speed=1.0) < 1e-6
            assert residual(world, 0.3 * first + 0.3 * second, t, speed=0.6) < 1e-6
        assert max(residual(world, 0.3 * first + 0.3 * second, t, speed=1.0) for t in TIMES) > 0.1


def test_per_sample_times_agree_with_one_time_for_all():
    """A sum with weights in time, at (B,) times where B is also the number of features, row by row."""
    model = gm.worlds.GaussianMixture(torch.randn(2, 3, dtype=torch.float64), 0.3).predictor(gm.GaussianPath())
    flow, langevin = gm.Flow(model), gm.Langevin(model, gm.diffusivity.EndpointSafe())
    operator = (lambda t: math.exp(-t)) * flow + (lambda t: 1.0 if t < 0.5 else 2.0) * langevin
    x, t = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    together = operator(x, t)
    for i in range(3):
        alone = operator(x[i : i + 1], t[i].item())
        torch.testing.assert_close(together.drift[i : i + 1], alone.drift, rtol=1e-13, atol=1e-13)
        assert together.variance.flatten()[i].item() == pytest.approx(alone.variance, rel=1e-13)


# Wrong generators: what each residual is there to see


class Wrong(Generator):
    """Flow + noise of variance g2 = 2 sigma W, with one mistake."""

    speed = 1.0

    def __init__(self, model: gm.Predictor, mistake: str) -> None:
        super().__init__(model)
        self.mistake = mistake

    def triplet(self, x, t, prediction):
        instant = prediction.instant
        g2 = 2 * instant.sigma * instant.wronskian
        velocity, score = prediction.velocity, prediction.score
        match self.mistake:
            case "none":
                return gm.Triplet(velocity + g2 / 2 * score, g2)
            case "wrong sign of the score":
                return gm.Triplet(velocity - g2 / 2 * score, g2)
            case "missing half":
                return gm.Triplet(velocity + g2 * score, g2)
            case "sigma for sigma^2":
                return gm.Triplet(velocity + g2 / 2 * score, math.sqrt(g2))
            case "missing score":
                return gm.Triplet(velocity, g2)
            case "noise for score":
                return gm.Triplet(velocity + g2 / 2 * prediction.noise, g2)
            case "data for velocity":
                return gm.Triplet(prediction.data + g2 / 2 * score, g2)
            case "reversed":
                return gm.Triplet(-velocity + g2 / 2 * score, g2)
        raise AssertionError(self.mistake)


MISTAKES = (
    "wrong sign of the score",
    "missing half",
    "sigma for sigma^2",
    "missing score",
    "noise for score",
    "data for velocity",
    "reversed",
)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_pattern_of_the_wrong_generators_is_right_without_a_mistake(schedule: str):
    world = GAUSSIAN[schedule]
    for t in TIMES:
        assert residual(world, Wrong(world.model, "none"), t) < 1e-6


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_mistake_is_seen(schedule: str, mistake: str):
    world = GAUSSIAN[schedule]
    assert max(residual(world, Wrong(world.model, mistake), t) for t in TIMES) > 1e-2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_swapped_weights_are_seen(schedule: str):
    """0.8 * flow + 0.2 * (-1) runs at 0.6; with the weights swapped at -0.6."""
    world = GAUSSIAN[schedule]
    flow, back = gm.Flow(world.model), -gm.Flow(world.model)
    right, swapped = 0.8 * flow + 0.2 * back, 0.2 * flow + 0.8 * back
    for t in TIMES:
        assert residual(world, right, t, speed=0.6) < 1e-6
        assert residual(world, swapped, t, speed=0.6) > 0.1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_model_of_another_schedule_is_seen(schedule: str):
    """The predictor of one path read as if it were on another: right in form, wrong in numbers."""
    world = GAUSSIAN[schedule]
    other = GAUSSIAN["cosine" if schedule == "condot" else "condot"]
    model = gm.predict.Data(world.model.network, other.path)
    assert max(residual(other, gm.Flow(model), t) for t in TIMES) > 1e-2
