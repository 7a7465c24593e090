"""The robustness experiments: their closed forms derived again, what is measured against them, and that they run.

The derivations here start from the linear equation of the process, written out by hand for CondOT and integrated by
scipy, and share no formula with the experiments.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from torch import nn

import genmatch as gm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is beside the package and not in it

from benchmarks.robustness import (  # noqa: E402
    density,
    drift,
    errors,
    hybrids,
    initial,
    network,
    quantised,
    record,
    state_noise,
    trained,
)
from benchmarks.robustness.__main__ import EXPERIMENTS, main  # noqa: E402
from benchmarks.robustness.theory import (  # noqa: E402
    GaussianWorld,
    Waves,
    gaussian_kl,
    heat_growth,
    ornstein_damping,
)

RESULTS = ROOT / "benchmarks/results/robustness"
EARLY = 1e-7


def slope_of_drift(t: float, c: float, gamma: float) -> float:
    """d/dx of u + gamma b score on CondOT: u' = (t c^2 - (1 - t)) / s^2, score' = -1 / s^2, b = (1 - t) / t."""
    s2 = (t * c) ** 2 + (1 - t) ** 2
    return (t * c**2 - (1 - t)) / s2 - (gamma * (1 - t) / t / s2 if gamma else 0.0)


def integrate(right, begin: float, start: float) -> float:
    return float(solve_ivp(right, (begin, 1.0), [start], method="LSODA", rtol=1e-10, atol=1e-12).y[0, -1])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_transition_factor_is_that_of_the_linear_equation(c: float, gamma: float):
    world, t = GaussianWorld(std=c), torch.tensor(0.3, dtype=torch.float64)
    found = float(world.factor(1.0, t, gamma))
    assert found == pytest.approx(integrate(lambda t, x: slope_of_drift(t, c, gamma) * x, 0.3, 1.0), rel=1e-7)
    if gamma:  # without the memory of alpha it would not be
        assert abs(found / float((world.scale(torch.tensor(1.0)) / world.scale(t)) ** (1 + gamma)) - 1) > 0.2
    assert float(world.memory(1.0, torch.tensor(0.0, dtype=torch.float64), gamma)) == (0.0 if gamma else 1.0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("c", [0.3, 1.0, 2.0])
def test_bias_and_white_variance_are_those_of_the_linear_equation(c: float, gamma: float):
    world = GaussianWorld(std=c)
    for level in drift.LEVELS:
        amplified = 1 + gamma if level == "network" else 1.0
        mean = integrate(lambda t, m, a=amplified: slope_of_drift(t, c, gamma) * m + a, EARLY, 0.0)
        assert world.bias(gamma, level) == pytest.approx(mean, rel=1e-5)
        variance = integrate(lambda t, v, a=amplified: 2 * slope_of_drift(t, c, gamma) * v + a**2, EARLY, 0.0)
        assert world.white_variance(gamma, level) == pytest.approx(variance, rel=1e-5)
    # The process itself, by its Lyapunov equation, ends in the variance of the data; without the score it would not.
    noise = lambda t: 2 * gamma * (1 - t) / t  # noqa: E731
    begin = 0.01
    start = (begin * c) ** 2 + (1 - begin) ** 2
    for g, right in ((gamma, True), (0.0, gamma == 0)):
        end = integrate(lambda t, v, g=g: 2 * slope_of_drift(t, c, g) * v + noise(t), begin, start)
        assert (abs(end / c**2 - 1) < 1e-6) is right


def test_closed_forms_of_the_constant_error():
    for c in (0.1, 1.0, 3.0):
        exact = c / math.sqrt(1 + c**2) * (math.asinh(c) + math.asinh(1 / c))
        assert GaussianWorld(std=c).bias(0.0, "drift") == pytest.approx(exact, rel=1e-10)
    one = GaussianWorld()
    assert one.bias(0.0, "network") == one.bias(0.0, "drift") == pytest.approx(1.2464504802804606)
    assert one.bias(1.0, "network") == pytest.approx(math.pi / 2)
    assert one.bias(1.0, "drift") == pytest.approx(math.pi / 4)
    assert one.white_variance(0.0, "drift") == pytest.approx(math.pi / 2)
    assert one.white_variance(1.0, "drift") == pytest.approx(math.pi / 4)
    with pytest.raises(ValueError, match="level must be 'network' or 'drift', got 'both'"):
        one.bias(1.0, "both")  # type: ignore[arg-type]


def ones(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(x)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_library_has_the_bias_that_the_closed_form_says(gamma: float):
    world = GaussianWorld()
    found = {level: drift.slope(world, gamma, level, ones, samples=50, steps=60, seed=0) for level in drift.LEVELS}
    for level in drift.LEVELS:
        assert found[level] == pytest.approx(world.bias(gamma, level), rel=0.01)
    # The two levels rank flow and noise in opposite order; at gamma 0 they are one.
    assert found["network"] / found["drift"] == pytest.approx(1 + gamma, rel=0.01)


def test_field_slope_of_the_flow_is_that_of_its_perturbed_paths():
    world, waves, size = GaussianWorld(), Waves.random(3), 1e-4
    y = torch.linspace(-6, 6, 61, dtype=torch.float64)

    def right(t: float, x: np.ndarray, sign: float) -> np.ndarray:
        return 1 + slope_of_drift(t, 1.0, 0.0) * (x - t) + sign * size * waves(torch.from_numpy(x)).numpy()

    def flow(sign: float) -> np.ndarray:
        return solve_ivp(right, (0, 1), y.numpy(), rtol=1e-10, atol=1e-12, args=(sign,)).y[:, -1]

    # On the line the flow keeps the order, so that W2 is the distance between the ends of the paths.
    moved = torch.from_numpy(flow(1.0) - flow(-1.0)) / (2 * size)
    density_of = torch.exp(-(y**2) / 2)
    exact = float((moved**2 * density_of).sum() / density_of.sum()) ** 0.5
    assert world.field_slope(0.0, "network", waves) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_the_library_has_the_field_slope_that_the_closed_form_says(gamma: float):
    world, waves = GaussianWorld(), Waves.random(0)
    shape = lambda x, t: waves(x.squeeze(-1))[:, None]  # noqa: E731
    found = drift.slope(world, gamma, "drift", shape, samples=3000, steps=40, seed=1)
    assert found == pytest.approx(world.field_slope(gamma, "drift", waves), rel=0.05)
    other = world.field_slope(1 - gamma, "drift", waves)
    assert abs(found / other - 1) > 0.2, "the forms of the two processes are told apart"


def test_waves_mean_is_that_of_quadrature():
    waves = Waves.random(5)
    normal = lambda z: math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    at = lambda z: float(waves(torch.tensor(0.7 + 0.5 * z, dtype=torch.float64)))  # noqa: E731
    exact = quad(lambda z: at(z) * normal(z), -9, 9)[0]
    centre, variance = (torch.tensor([v], dtype=torch.float64) for v in (0.7, 0.25))
    assert float(waves.mean(centre, variance)[0]) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("level", drift.LEVELS)
def test_pulse_and_white_noise_follow_the_transition_factor(level: str):
    world, amplified = GaussianWorld(), 2.0 if level == "network" else 1.0
    exact = amplified * float(world.factor(1.0, torch.tensor(0.4, dtype=torch.float64), 1.0))
    assert drift.pulse(world, 1.0, level, 0.4, samples=20, steps=30) == pytest.approx(exact, rel=0.01)  # type: ignore[arg-type]
    found = drift.white(1.0, level, samples=10000, steps=40, seed=0)  # type: ignore[arg-type]
    assert found == pytest.approx(world.white_variance(1.0, level), rel=0.1)  # type: ignore[arg-type]


def test_density_follows_the_forward_equation_and_disturbances_the_closed_form():
    world = GaussianWorld()
    x = torch.linspace(-7, 8, 901, dtype=torch.float64)
    model, start = errors.exact_model(world), torch.tensor(density.START, dtype=torch.float64)
    wave = density.disturbance(world, x, 2.0)
    scale = world.scale(start)
    law = torch.exp(-(((x - density.START) / scale) ** 2) / 2) / (math.sqrt(2 * math.pi) * scale)
    data = torch.exp(-((x - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    h = float(x[1] - x[0])
    for gamma in (0.0, 1.0):
        operator, both = errors.diffusion(model, gamma), torch.stack([law, wave], 1)
        end = density.evolve(operator, both, x, density.START, 150)[-1]
        assert float((end[:, 0] - data).abs().sum() * h) < 1e-3
        left = float(end[:, 1].abs().sum() / wave.abs().sum())
        memory = float(world.memory(1.0, start, gamma))
        assert left == pytest.approx(ornstein_damping(2.0, memory), rel=2e-3)
    wrong = density.evolve(operator, both, x, density.START, 150, score=False)[-1]
    assert float((wrong[:, 0] - data).abs().sum() * h) > 0.2, "noise without the score leaves the path"


def test_undoing_heat_amplifies_by_the_closed_form():
    for k in (1, 2, 3):
        assert density.undo_heat(k, 0.9) == pytest.approx(heat_growth(k, 0.9), rel=1e-6)
    assert heat_growth(3, 0.9) == pytest.approx(math.exp(4.05))


def test_wrong_initial_law_is_kept_by_the_flow_and_forgotten_by_noise():
    world = GaussianWorld()
    assert initial.safe_memory(world, 1.5, 0.0, 1.0) == pytest.approx(math.exp(-1.5 * math.pi / 4))
    normal = torch.distributions.Normal
    exact = torch.distributions.kl_divergence(normal(0.4, 1.3), normal(0.0, 1.0))
    assert gaussian_kl(0.4, 1.69) == pytest.approx(float(exact), rel=1e-6)
    assert initial.left(1.0) == pytest.approx(gaussian_kl(initial.SHIFT, initial.VARIANCE))
    for family in initial.FAMILIES:
        for gamma in (0.0, 0.5):
            start = initial.FAMILIES[family][1]
            found = initial.measured(world, family, gamma, samples=8000, steps=30, seed=3)
            exact = initial.left(initial.memory_of(world, family, gamma, start, 1.0))
            assert found == pytest.approx(exact, abs=0.03)
    assert initial.left(0.0) == 0.0


@pytest.mark.parametrize("reading", errors.READINGS)
def test_exact_networks_and_their_errors_are_read_as_the_library_reads_them(reading: str):
    world = gm.worlds.GaussianMixture(torch.tensor([[-1.0], [2.0]]), 0.3)
    model, x = errors.exact_model(world, reading), torch.randn(6, 1, dtype=torch.float64)
    exact = world.predictor(model.path)(x, 0.6)
    assert torch.allclose(model(x, 0.6).velocity, exact.velocity)
    spoilt = errors.spoil(model, lambda x, t: 0.1 * torch.ones_like(x))
    change = spoilt(x, 0.6).velocity - exact.velocity
    kick = network.kick(GaussianWorld(), reading)(torch.tensor([0.6], dtype=torch.float64))
    assert torch.allclose(change, 0.1 * kick.expand_as(change))
    assert torch.isfinite(errors.Exact(world, model.path.schedule, reading)(x, torch.ones(6, dtype=x.dtype))).all()


@pytest.mark.parametrize("reading", errors.READINGS)
def test_error_of_each_parametrisation_shifts_the_mean_by_the_closed_form(reading: str):
    world = GaussianWorld()
    for gamma in (0.0, 1.0):
        found = network.shift(world, gamma, reading, 0.1, samples=20, steps=60)
        exact = world.bias(gamma, "network", network.kick(world, reading), 0.1, 0.9)
        assert found == pytest.approx(exact, rel=0.01)


def test_data_error_grows_without_bound_and_noise_error_only_in_the_flow():
    world = GaussianWorld()

    def growth(reading: str, gamma: float) -> float:
        kick = network.kick(world, reading)
        near, far = (abs(world.bias(gamma, "network", kick, d, 1 - d)) for d in (1e-4, 1e-5))
        return (far - near) / math.log(10)

    # W / sigma = 1 / (1 - t) where Phi is 1, W / alpha = 1 / t where Phi is s_1 / s_0 = 1 or, with noise, 0.
    assert growth("data", 0.0) == pytest.approx(1, rel=1e-3)
    assert growth("data", 1.0) == pytest.approx(2, rel=1e-3)
    assert growth("noise", 0.0) == pytest.approx(1, rel=1e-3)
    assert abs(growth("noise", 1.0)) < 1e-3


def test_quantised_weights_are_the_nearest_of_few_levels():
    weight = torch.randn(40, 30)
    for bits in (2, 4, 8):
        rounded = quantised.quantise(weight, bits)
        delta = float(weight.abs().max()) / (2 ** (bits - 1) - 1)
        assert len(rounded.unique()) <= 2**bits - 1
        assert float((rounded - weight).abs().max()) <= delta / 2 * (1 + 1e-5)
        assert torch.allclose(quantised.quantise(rounded, bits), rounded)
    assert torch.equal(quantised.quantise(torch.zeros(3, 3), 4), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="at least 2 bits, got 1"):
        quantised.quantise(weight, 1)
    layer = nn.Linear(5, 5)
    few = quantised.round_weights(layer, 3)
    assert torch.equal(few.bias, layer.bias)
    assert not torch.equal(few.weight, layer.weight)
    assert torch.equal(quantised.round_weights(layer, None).weight, layer.weight)


class Wrong(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(3 * x) + t[:, None]


class AsNoise(nn.Module):
    """The noise x - t u that a velocity u on CondOT stands for."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - t[:, None] * Wrong()(x, t)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_mixed_loss_is_the_mixture_of_the_two_losses(ratio: float):
    path, x1 = gm.GaussianPath(), torch.randn(512, 2)
    velocity, noise = gm.predict.Velocity(Wrong(), path), gm.predict.Noise(AsNoise(), path)
    mixed = gm.matching_loss(velocity, x1, weight=hybrids.MixedLoss(ratio), seed=4)
    parts = [gm.matching_loss(model, x1, seed=4) for model in (velocity, noise)]
    assert float(mixed) == pytest.approx(float((1 - ratio) * parts[0] + ratio * parts[1]), rel=1e-4)


def test_hybrid_of_one_network_is_the_diffusion_with_a_share_of_the_noise():
    model = errors.exact_model(GaussianWorld())
    mixed, plain = hybrids.hybrid(model, model, 0.25), errors.diffusion(model, 0.25)
    ends = [gm.sample(p, (30, 1), steps=20, seed=0, dtype=torch.float64) for p in (mixed, plain)]
    assert torch.allclose(*ends)
    assert len(hybrids.hybrid(model, errors.exact_model(GaussianWorld()), 0.0).models) == 1, (
        "what has no weight is idle"
    )


@pytest.mark.parametrize("where", ["bent", "straight"])
def test_noise_by_curvature_is_given_the_total_of_the_noise_it_is_compared_with(where: str):
    times = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    measured = [(t, torch.rand(50, dtype=torch.float64).exp() * t) for t in times.tolist()]
    noise = state_noise.matched(measured, where, 0.7)
    assert noise.where == where
    scale = gm.schedules.CondOT().at(times)
    spent = fixed = 0.0
    for i, (_, square) in enumerate(measured):
        bent = square / (noise.half**2 + square)
        share = bent if where == "bent" else 1 - bent
        spent += float(noise.scale.variance(scale)[i] * share.mean())
        fixed += 2 * 0.7 * (1 - float(times[i]))  # 2 gamma sigma W on CondOT
    assert spent == pytest.approx(fixed, rel=1e-9)


def test_trained_weights_are_kept_for_the_same_recipe_and_data_alone(tmp_path: Path):
    scale = record.Scale(smoke=True, progress=False, cache=tmp_path)
    task, recipe = trained.plane("toy", gm.data.TwoMoons(), scale), trained.Recipe("velocity", 1e-3, 0)
    first, again = trained.train(task, recipe), trained.train(task, recipe)
    assert len(list(tmp_path.iterdir())) == 1
    assert (first.losses, first.held_out) == (again.losses, again.held_out)
    x = torch.randn(4, 2)
    assert torch.equal(first.model(x, 0.5).velocity, again.model(x, 0.5).velocity)
    other = trained.train(trained.plane("toy", gm.data.TwoMoons(noise=0.3), scale), recipe)
    assert len(list(tmp_path.iterdir())) == 2
    assert other.losses != first.losses
    trained.train(task, recipe._replace(seed=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_interval_is_students():
    half = 4.302652729 / math.sqrt(3)  # the table's 97.5% quantile for 2 degrees of freedom, and a deviation of 1
    assert record.interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))
    powers = [math.exp(v) for v in (1.0, 2.0, 3.0)]
    assert record.interval(powers, log=True) == pytest.approx([math.exp(v) for v in (2.0, 2 - half, 2 + half)])
    assert record.interval([5.0]) == (5.0, 5.0, 5.0)


def places(folder: Path) -> list[str]:
    return ["--out", str(folder), "--figures", str(folder), "--cache", str(folder / "cache"), "--quiet"]


def test_rehearsal_of_what_is_cheap_writes_results_and_figures(tmp_path: Path):
    pytest.importorskip("matplotlib")
    main(["--smoke", "--only", "E1", "E4", *places(tmp_path)])
    for name, figure in (("E1", "density"), ("E4", "initial")):
        results = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"date", "commit", "machine", "versions", "command", "seconds", "settings", "points"} <= set(results)
        assert results["smoke"] is True
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_rehearsal_of_all(tmp_path: Path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    main(["--smoke", *places(tmp_path)])
    assert {path.stem for path in tmp_path.glob("*.json")} == set(EXPERIMENTS)


@pytest.mark.parametrize("given", [[], ["--out"], ["--out", "--cache"]])
def test_a_rehearsal_does_not_overwrite_results(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--smoke", *(word for option in given for word in (option, str(tmp_path)))])
    assert "--smoke would overwrite the real results" in capsys.readouterr().err


def agrees(point: dict, line: dict, keys: tuple[str, ...]) -> bool:
    """Whether a line, which may be for all values of a key, is that of a point."""
    return all(line.get(key, point.get(key)) == point.get(key) for key in keys)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recorded_results_are_of_a_full_run_and_lie_on_their_lines(name: str):
    results = json.loads((RESULTS / f"{name}.json").read_text())
    assert results["smoke"] is False
    keys = {"E1": ("process",), "E2": ("kind", "level"), "E3": ("reading",), "E4": ("family",)}.get(name, ())
    seen = 0
    for point in results["points"] if keys else ():
        if point.get("world", "gaussian") != "gaussian":
            continue
        over = {"E1": "k", "E2": "time" if "time" in point else "gamma", "E3": point.get("over")}.get(name, "gamma")
        lines = [line for line in results["lines"] if line.get("over", over) == over and agrees(point, line, keys)]
        lines = [line for line in lines if over == "gamma" or line.get("gamma") == point.get("gamma")]
        (line,) = lines
        exact = float(np.interp(point[over], line["x"], line["y"]))
        noise = point["high"] - point["low"]  # twice the half width: few of a hundred points lie outside the half
        assert point["mean"] == pytest.approx(exact, rel=0.03, abs=max(noise, 2e-3 if name == "E4" else 0)), point
        seen += 1
    assert bool(seen) is bool(keys)


def test_the_lines_show_where_the_ranking_flips():
    lines = json.loads((RESULTS / "E2.json").read_text())["lines"]

    def at(kind: str, level: str, gamma: float) -> float:
        (line,) = (v for v in lines if (v["kind"], v["level"], v["over"]) == (kind, level, "gamma"))
        return float(np.interp(gamma, line["x"], line["y"]))

    for kind in ("constant", "white", "field"):
        assert at(kind, "network", 1.0) > at(kind, "network", 0.0), "the flow is more robust to the network's errors"
        assert at(kind, "drift", 1.0) < at(kind, "drift", 0.0), "and less to the drift's"
    narrow = GaussianWorld(std=0.05)
    assert narrow.bias(1.0, "network") < narrow.bias(0.0, "network"), "but not where the data are narrow"
