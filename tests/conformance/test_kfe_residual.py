"""The forward equation's residual: its left side against closed forms, its noise, its scale, and its verdicts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import genmatch as gm
from conformance.subjects import plane, tokens
from generators.test_forward_equation import GAUSSIAN, TIMES, MixtureWorld
from genmatch.metrics import Density, default_test_functions, kfe_residual
from genmatch.metrics.changes import POSITIONS, change
from genmatch.paths.path import Path
from genmatch.random import Draws
from token_worlds import TokenWorld

F64 = torch.float64


def line(world: MixtureWorld) -> Density:
    return Density(lambda x, t: world.density(t), world.grid, (world.grid[1] - world.grid[0]).item())


class Scaled(gm.Generator):
    """The flow, too fast, and noise with the drift that undoes it; its declared speed is 1."""

    def __init__(self, model: gm.Predictor, factor: float, noise: float = 0.0, half: float = 0.5) -> None:
        super().__init__(model)
        self.factor, self.noise, self.half = factor, noise, half
        self.speed = 1.0 if factor else 0.0

    def triplet(self, x, t, prediction):
        drift = self.factor * prediction.velocity
        if not self.noise:
            return gm.Triplet(drift)
        return gm.Triplet(drift + self.half * self.noise * prediction.score, self.noise)


# The left side


def within_noise(values: Tensor, exact: Tensor) -> None:
    error = values.std(-1) / values.shape[-1] ** 0.5
    assert bool(((values.mean(-1) - exact).abs() < 4.5 * error).all())
    assert bool((error < 0.2 * exact.abs().max()).all()), "so noisy that nothing is tested"


@pytest.mark.parametrize("name", GAUSSIAN)
def test_along_a_gaussian_path_the_rate_is_that_of_the_density(name: str):
    world = GAUSSIAN[name]
    data = gm.worlds.GaussianMixture(
        torch.tensor([[-1.5], [0.4], [1.8]]), torch.tensor([0.09, 0.5, 0.2])[:, None, None], [0.3, 0.2, 0.5]
    ).sample(20_000, seed=1)
    source = Draws(2, len(data)).normal(data.shape)
    functions = [lambda x: torch.sin(x[:, 0] + 0.3), lambda x: x[:, 0] ** 2, lambda x: torch.tanh(2 * x[:, 0] - 0.5)]
    for t in TIMES:
        found = change(world.path, functions, source, data, t, Draws(3, len(data)))
        _, slope = world.law(t)
        step = (world.grid[1] - world.grid[0]).item()
        within_noise(found.values, torch.stack([(slope * f(world.grid)).sum() * step for f in functions]))
        assert found.method == "along the path"


@pytest.mark.parametrize("mask", [None, 3])
def test_on_tokens_the_rate_is_that_of_the_probabilities(mask: int | None):
    model, data = tokens(mask)
    world = TokenWorld(model.path)
    functions = [lambda x, s=s: (x == s).all(-1).double() for s in world.states]
    time = torch.tensor(0.4, dtype=F64)
    _, slope = torch.func.jvp(world.density, (time,), (torch.ones_like(time),))
    source = model.path.draw_source(tuple(data.shape), Draws(2, len(data)))
    found = change(model.path, functions, source, data, 0.4, Draws(3, len(data)))
    within_noise(found.values, slope)
    assert found.method == "by switching positions"


def test_switching_is_exact_for_sums_over_positions_and_unbiased_for_long_sequences():
    path = gm.MixturePath(5, padding=7, schedule=gm.schedules.Polynomial(2.0))
    table = torch.linspace(-1, 1, 8, dtype=F64) ** 2
    for size in (POSITIONS, 3 * POSITIONS):
        draws = Draws(0, 3000)
        source, data = draws.integers((3000, size), 5), draws.fork(1).integers((3000, size), 5)
        data[:, -2:] = 7
        # Padding shows from the start, whatever the source has there.
        exact = 2 * 0.3 * (table[data] - table[source])[:, :-2].sum(1)
        found = change(path, [lambda x: table[x].sum(1)], source, data, 0.3, Draws(5, 3000)).values[0]
        if size == POSITIONS:
            torch.testing.assert_close(found, exact)
        else:
            away = found - exact
            assert abs(away.mean()) < 4.5 * away.std() / 3000**0.5
            assert away.std() > 0.1


class Switch(Path):
    """A path written by a user: the state jumps as a whole from source to data, at kappa = t^2."""

    def __init__(self) -> None:
        self.space, self.source, self.coupling = gm.spaces.Euclidean(), gm.paths.Normal(), gm.couplings.Independent()

    def at(self, t, until=None):
        return gm.schedules.Polynomial(2.0).at(t)

    def between(self, x0, x1, instant, draws):
        return torch.where(draws.uniform((len(x1), 1)) < instant.alpha, x1, x0)

    def prior(self, x0, instant):
        return x0

    def why_not_noise(self, instant):
        return ""


class Opaque(gm.GaussianPath):
    """A Gaussian path written so that forward mode does not go through."""

    def between(self, x0, x1, instant, draws):
        alpha, sigma = (float(torch.as_tensor(v).numpy()) for v in (instant.alpha, instant.sigma))
        return alpha * x1 + sigma * x0


def test_other_paths_are_differentiated_by_differences():
    draws = Draws(0, 20_000)
    data, source = draws.normal((20_000, 2), F64) + 2.0, draws.fork(1).normal((20_000, 2), F64)
    functions = [lambda x: x[:, 0] ** 2, lambda x: torch.sin(x[:, 0] + x[:, 1])]
    found = change(Switch(), functions, source, data, 0.6, draws.fork(2))
    exact = torch.stack([2 * 0.6 * (f(data) - f(source)).mean() for f in functions])
    within_noise(found.values, exact)
    assert found.method == "by differences over 0.02"
    ours = change(Opaque(gm.schedules.Cosine()), functions, source, data, 0.6, draws)
    theirs = change(gm.GaussianPath(gm.schedules.Cosine()), functions, source, data, 0.6, draws)
    assert (ours.method[:14], theirs.method) == ("by differences", "along the path")
    # The difference's own error: of fourth order in a step over which the fastest samples move a fifth.
    torch.testing.assert_close(ours.values, theirs.values, rtol=0.0, atol=5e-3)
    torch.testing.assert_close(ours.values.mean(1), theirs.values.mean(1), rtol=1e-4, atol=1e-5)


def test_each_factor_of_a_product_has_its_clock():
    path = gm.ProductPath(
        {"label": gm.MixturePath(3), "point": gm.GaussianPath()}, clocks={"point": lambda t: t**2 * (3 - 2 * t)}
    )
    draws = Draws(0, 100)
    x0 = {"label": draws.integers((100,), 3), "point": draws.normal((100, 2), F64)}
    x1 = {"label": draws.fork(1).integers((100,), 3), "point": draws.fork(1).normal((100, 2), F64)}
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    functions = [lambda x: x["point"][:, 0], lambda x: weight[x["label"]]]
    found = change(path, functions, x0, x1, 0.25, draws.fork(2)).values
    torch.testing.assert_close(found[0], 6 * 0.25 * 0.75 * (x1["point"] - x0["point"])[:, 0])
    torch.testing.assert_close(found[1], weight[x1["label"]] - weight[x0["label"]])


def test_a_factor_that_is_given_does_not_change():
    path = gm.ProductPath({"label": gm.MixturePath(3), "point": gm.GaussianPath()}, clocks={"label": torch.ones_like})
    draws = Draws(0, 100)
    x0 = {"label": draws.integers((100,), 3), "point": draws.normal((100, 2), F64)}
    x1 = {"label": draws.fork(1).integers((100,), 3), "point": draws.fork(1).normal((100, 2), F64)}
    functions = [lambda x: x["label"] * x["point"][:, 0]]
    found = change(path, functions, x0, x1, 0.25, draws.fork(2))
    torch.testing.assert_close(found.values[0], x1["label"] * (x1["point"] - x0["point"])[:, 0])
    assert (found.x["label"] == x1["label"]).all()
    assert found.method == "along the path"
    both = gm.ProductPath(path.factors, clocks=dict.fromkeys(path.factors, torch.ones_like))
    still = change(both, functions, x0, x1, 0.25, draws.fork(2))
    assert torch.equal(still.values, torch.zeros(1, 100, dtype=F64))
    assert still.method == "of a path that stands"


@pytest.mark.parametrize("mean", [50.0, 1e4])
def test_data_far_from_zero_move_along_their_path(mean: float):
    world = gm.worlds.GaussianMixture(torch.tensor([[mean, 0.0]]), 1.0)
    model = world.predictor(gm.GaussianPath())
    for seed in range(3):
        data = world.sample(500, seed=seed)
        found = kfe_residual(gm.Flow(model), data=data, seed=seed)
        assert found.method == "along the path"
        assert found.passed(0.02)
        assert not kfe_residual(Scaled(model, 0.95), data=data, seed=seed).passed(0.02)


class Drifting(Switch):
    """The path that jumps, and drifts fast besides."""

    def between(self, x0, x1, instant, draws):
        return super().between(x0, x1, instant, draws) + 30 * instant.alpha


def test_a_jump_is_seen_beside_a_fast_drift():
    draws = Draws(0, 20_000)
    data, source = draws.normal((20_000, 2), F64) + 2.0, draws.fork(1).normal((20_000, 2), F64)
    found = change(Drifting(), [lambda x: x[:, 0]], source, data, 0.6, draws.fork(2))
    within_noise(found.values, 1.2 * (data - source + 30)[:, 0].mean())
    assert found.method == "by differences over 0.02"


# By quadrature


@pytest.mark.parametrize("name", GAUSSIAN)
def test_quadrature_resolves_a_millionth(name: str):
    world = GAUSSIAN[name]
    for operator in (gm.Flow(world.model), gm.Langevin(world.model), gm.Diffusion(world.model)):
        found = kfe_residual(operator, density=line(world), t=TIMES)
        assert found.worst < 1e-6
        assert found.passed()
        assert found.samples == 0
    for factor in (1 + 1e-5, 1 - 1e-5):
        wrong = kfe_residual(Scaled(world.model, factor), density=line(world), t=TIMES)
        assert wrong.worst > 5e-6
        assert not wrong.passed()
        assert wrong.passed(tolerance=1e-4)


def test_all_states_of_a_finite_set_are_summed_over():
    model, _ = tokens()
    world = TokenWorld(model.path)
    found = kfe_residual(gm.CTMC(model), density=Density(lambda x, t: world.density(t), world.states), t=[0.25, 0.5])
    assert found.worst < 1e-12
    assert found.method == "by quadrature"
    half = kfe_residual(0.5 * gm.CTMC(model), density=Density(lambda x, t: world.density(t), world.states), t=0.5)
    assert half.worst < 1e-12  # at its own speed of a half
    torch.testing.assert_close(half.speed, torch.tensor([0.5], dtype=F64))


def test_a_wrong_generator_hides_neither_behind_large_terms_nor_behind_being_small():
    world = GAUSSIAN["condot"]
    loud = kfe_residual(Scaled(world.model, 0.9, noise=1000.0), density=line(world), t=0.5)
    assert loud.worst > 0.05
    assert float((loud.residual.abs() / 1000).max()) < 0.01, "the noise does not drown it: nothing is tested"
    quiet = kfe_residual(Scaled(world.model, 0.0, noise=1e-6, half=-0.5), density=line(world), t=0.5)
    assert quiet.worst > 0.5
    assert not quiet.passed(0.1)


# From samples


def test_the_standard_error_is_right_and_false_alarms_are_as_rare_as_promised():
    world = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.5]]), 0.3)
    flow = gm.Flow(world.predictor(gm.GaussianPath()))
    scores, alarms, seeds = [], 0, 80
    for seed in range(seeds):
        found = kfe_residual(flow, data=world.sample(300, seed=1000 + seed), t=0.6, seed=seed)
        scores.append(found.residual / found.standard_error)
        alarms += not found.passed(false_alarm=0.2)
    z = torch.stack(scores)
    assert 0.9 < float(z.std()) < 1.1
    assert float(z.mean((0,)).abs().max()) < 4.5 / seeds**0.5
    # Bonferroni: at most a fifth, and not much less, though the functions have much in common.
    assert 0.03 * seeds < alarms < (0.2 + 3 * (0.16 / seeds) ** 0.5) * seeds


@pytest.mark.slow
def test_the_suite_passes_right_generators_at_the_stated_rate():
    from genmatch.testing import ConformanceError, check_generator

    world = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [1.5]]), 0.3)
    sde = gm.Diffusion(world.predictor(gm.GaussianPath()))
    failed = dict.fromkeys(("forward equation", "speed", "move"), 0)
    for seed in range(40):
        try:
            check_generator(
                sde,
                data=world.sample(400, seed=500 + seed),
                only=list(failed),
                tolerance=0.0,
                false_alarm=0.1,
                seed=seed,
            )
        except ConformanceError as error:
            for check in error.report.failed:
                failed[check.name] += 1
    for name, count in failed.items():
        assert count <= 40 * (0.1 + 3 * (0.09 / 40) ** 0.5), name


def test_a_seed_repeats_a_result_and_leaves_the_global_generator_alone():
    model, data = plane()
    state = torch.get_rng_state()
    first, second, other = (kfe_residual(gm.Flow(model), data=data[:100], t=0.5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.residual, second.residual)
    assert not torch.equal(first.residual, other.residual)
    kfe_residual(gm.Flow(model), data=data[:100], t=0.5, seed=None)
    assert not torch.equal(torch.get_rng_state(), state)


def test_functions_of_ones_own():
    model, data = plane()

    def energy(x: Tensor) -> Tensor:
        return x.square().sum(1)

    alone = kfe_residual(gm.Flow(model), energy, data=data, t=0.5)
    assert alone.functions == ("energy 0",)
    several = kfe_residual(gm.Flow(model), {"a": energy, "b": lambda x: x[:, 0]}, data=data, t=[0.2, 0.5])
    assert several.functions == ("a", "b")
    assert several.residual.shape == (2, 2)
    assert several.passed()
    # d/dt E|x_t|^2 = 2 t E|x1|^2 - 2 (1 - t) d at t = 0.5
    expected = float(data.square().sum(1).mean()) - 2
    assert float(alone.expected) == pytest.approx(expected, abs=0.15)


def test_nothing_but_numbers_passes():
    model, data = plane()

    class Bad(gm.Generator):
        def triplet(self, x, t, prediction):
            return gm.Triplet(torch.full_like(x, math.nan))

    found = kfe_residual(Bad(model), data=data, t=0.5)
    assert not found.passed(1e9)
    assert len(found.failures()) == found.residual.numel()


def test_the_method_is_told_for_every_time():
    world = gm.worlds.GaussianMixture(torch.tensor([[0.5]]), 0.3)
    flow = gm.Flow(world.predictor(Opaque()))
    data = world.sample(50, seed=1)
    found = kfe_residual(flow, data=data, t=[0.03, 0.4, 0.5])
    assert found.method == "by differences over 0.01 at t = 0.03; by differences over 0.02 at t = 0.4, 0.5"
    assert kfe_residual(flow, data=data, t=[0.4, 0.5]).method == "by differences over 0.02"


def test_the_table():
    model, data = plane()
    found = kfe_residual(Scaled(model, 1.5), data=data, t=[0.25, 0.75])
    text = repr(found).splitlines()
    assert text[0] == "relative residual of the forward equation (4096 samples, d/dt along the path)"
    assert text[1].split() == ["t", "=", "0.25", "t", "=", "0.75"]
    assert len(text) == 2 + len(found.functions)
    worst = found.failures()[0]
    assert worst.startswith(("at t = 0.25 ", "at t = 0.75 "))
    assert "+-" not in repr(kfe_residual(gm.Flow(GAUSSIAN["vp"].model), density=line(GAUSSIAN["vp"]), t=0.5))


# Families


def test_families_are_deterministic_and_vary_on_their_law():
    spaces: list[tuple[Any, Any]] = [
        (gm.spaces.Euclidean(), torch.randn(400, 3) * torch.tensor([1.0, 100.0, 0.01]) + 5),
        (gm.spaces.Euclidean(), torch.randn(400, 2, 2)),
        (gm.spaces.Tokens(5), torch.randint(5, (400, 6))),
        (gm.spaces.Tokens(50_000), torch.randint(50_000, (400, 6))),
        (gm.spaces.Tokens(5), torch.randint(5, (400,))),
    ]
    for space, x in spaces:
        one, two, other = (default_test_functions(space, x, seed=seed) for seed in (0, 0, 1))
        values = {name: f(x) for name, f in one.items()}
        assert all(torch.equal(f(x), values[name]) for name, f in two.items())
        assert any(not torch.equal(f(x), g(x)) for f, g in zip(one.values(), other.values(), strict=True))
        assert all(v.shape == (400,) for v in values.values())
        assert sum(float(v.double().std()) > 1e-3 for v in values.values()) >= len(values) - 1


class ExclusiveOr(torch.nn.Module):
    """Three bits of which any two are independent and the third is their sum; a blind network knows the pairs only."""

    states = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.blind = blind

    def forward(self, x: dict[str, Tensor], t: dict[str, Tensor]) -> dict[str, Tensor]:
        shown = torch.stack([x[name] for name in "abc"], 1)[:, None]
        kappa = t["a"].double()[:, None, None]
        likelihood = ((1 - kappa) / 2 + kappa * (shown == self.states)).prod(-1)  # of each of the four
        ones = (likelihood[..., None] * self.states).sum(1) / likelihood.sum(1, keepdim=True)
        if self.blind:
            ones = ((1 - kappa) / 2 + kappa * shown)[:, 0]
        return {name: torch.stack([1 - ones[:, i], ones[:, i]], -1).log() for i, name in enumerate("abc")}


def test_what_couples_three_factors_and_no_two_of_them_is_seen():
    path = gm.ProductPath({name: gm.MixturePath(2) for name in "abc"})
    rows = ExclusiveOr.states[Draws(0, 4000).integers((4000,), 4)]
    data = dict(zip("abc", rows.unbind(1), strict=True))
    right, blind = (
        gm.Product(
            gm.predict.Product(ExclusiveOr(b), dict.fromkeys("abc", gm.predict.Tokens), path),
            dict.fromkeys("abc", gm.CTMC),
        )
        for b in (False, True)
    )
    assert kfe_residual(right, data=data, t=[0.5, 0.7]).passed()
    found = kfe_residual(blind, data=data, t=[0.5, 0.7])
    triple = torch.tensor([name.count(" * ") == 2 for name in found.functions])
    assert int(triple.sum()) == 3
    wrong = (found.excess() > 1).any(0)
    assert wrong[triple].any()
    assert not wrong[~triple].any()


def test_functions_of_angles_have_no_seam():
    x = torch.rand(100, 2, dtype=F64) * 2 * math.pi - math.pi
    for f in default_test_functions(gm.spaces.Torus(2), x).values():
        torch.testing.assert_close(f(x), f(x + 2 * math.pi))


@pytest.mark.parametrize(
    ("error", "message", "change_of"),
    [
        (TypeError, "such as gm.Flow", {"generator": 3}),
        (ValueError, "give either data=", {"data": None}),
        (ValueError, "give either data=", {"density": Density(lambda x, t: x, torch.zeros(2, 2))}),
        (TypeError, "density must be gm.metrics.Density", {"data": None, "density": lambda x, t: x}),
        (TypeError, "data must be a tensor", {"data": [1, 2]}),
        (ValueError, "at least 2 rows", {"data": torch.zeros(1, 2)}),
        (ValueError, r"inside \(0, 1\)", {"t": 1.0}),
        (ValueError, r"inside \(0, 1\)", {"t": []}),
        (ValueError, "no test functions", {"test_functions": []}),
        (TypeError, "'f' is of type int", {"test_functions": {"f": 3}}),
        (ValueError, r"must map 2 states to shape \(2,\), got \(2, 2\)", {"test_functions": lambda x: x}),
        (ValueError, "needs one row for each sample", {"condition": {"label": torch.zeros(3)}}),
        (ValueError, "adds to 0 on its states, not to 1", {
            "data": None, "density": Density(lambda x, t: 0 * x[:, 0] * t, torch.zeros(5, 2))
        }),
        (ValueError, r"must have shape \(5,\)", {
            "data": None, "density": Density(lambda x, t: 0 * x * t, torch.zeros(5, 2))
        }),
    ],
)  # fmt: skip
def test_bad_arguments(error: type[Exception], message: str, change_of: dict):
    model, data = plane()
    arguments = {"generator": gm.Flow(model), "data": data, "t": 0.5, **change_of}
    with pytest.raises(error, match=message):
        kfe_residual(arguments.pop("generator"), arguments.pop("test_functions", None), **arguments)


def test_bad_tolerances():
    model, data = plane()
    found = kfe_residual(gm.Flow(model), data=data, t=0.5)
    with pytest.raises(ValueError, match="tolerance is a relative residual"):
        found.passed(-0.1)
    with pytest.raises(ValueError, match="false_alarm is a probability"):
        found.passed(false_alarm=1.5)
