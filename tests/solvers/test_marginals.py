"""Marginal laws of stochastic runs, exactly (see :mod:`gaussian_line`), and of the starts that are not exact."""

from __future__ import annotations

import math

import gaussian_line as line
import pytest
import torch
from test_weak_order import PROCESSES

import genmatch as gm
from genmatch.solvers import DDIM, DDPM, Euler, Exponential, Heun, Solver

CONDOT = gm.schedules.CondOT()


def misses(generator, solver: Solver, times: torch.Tensor, schedule: gm.Schedule = CONDOT) -> tuple[float, float]:
    """Errors of mean and variance at the end of a run that starts from p_t of its first time."""
    start, stop = times[0].item(), times[-1].item()
    mean, variance = line.moments(generator, solver, times, *line.law(schedule, start))
    (m, v) = line.law(schedule, stop)
    return abs(mean - m), abs(variance - v)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_diffusion_from_pure_noise_ends_in_the_data_law(name: str) -> None:
    """From t = 0 exactly, to t = 1, by the default solver: 1e-3 at 200 steps, and better the more there are."""
    generator = PROCESSES[name].build(line.predictor(CONDOT))
    errors = []
    for steps in (25, 50, 200):
        mean, variance = misses(generator, Exponential(2), gm.grids.uniform(steps))
        assert mean < 1e-12
        errors.append(variance)
    if name == "constant":  # does not fade at the data: see the next test
        assert errors[-1] < 2e-3
    else:
        assert errors[-1] < 1e-3
        assert errors[-1] < errors[0] / 8


def test_constant_noise_is_a_task_for_heun() -> None:
    """With constant noise the exponential solver is stable but not accurate at the data, however many the steps.

    It damps the state towards the data prediction by g^2 / 2 sigma^2, which is without bound, and freezes that
    prediction meanwhile; the law itself damps by g^2 / 2 S only. At g^2 = 1 a twentieth of the variance is lost at
    200 steps, where stochastic Heun loses next to nothing. Noise that fades with sigma does not know the problem.
    """
    model = line.predictor(CONDOT)
    constant = gm.Diffusion(model, gm.diffusivity.Constant(1.0))
    lost = [misses(constant, Exponential(2), gm.grids.uniform(n))[1] for n in (50, 200)]
    assert all(0.01 < error < 0.03 for error in lost)
    assert misses(constant, Heun(), gm.grids.uniform(200))[1] < 1e-3
    assert (
        misses(gm.Diffusion(model, gm.diffusivity.EndpointSafe(1.0)), Exponential(2), gm.grids.uniform(200))[1] < 1e-4
    )


@pytest.mark.parametrize("steps", [10, 50, 200])
@pytest.mark.parametrize(
    "diffusivity",
    [gm.diffusivity.Constant(10.0), gm.diffusivity.Constant(100.0), gm.diffusivity.Memoryless(20.0)],
    ids=repr,
)
def test_noise_of_any_strength_leaves_the_states_bounded(diffusivity: gm.diffusivity.Diffusivity, steps: int) -> None:
    """Order 2 does not extrapolate what noise has swamped: samples lose variance, as those of order 1, but never gain.

    Extrapolated all the same, the variance would grow with the number of steps, to seven times the data's.
    """
    generator = gm.Diffusion(line.predictor(CONDOT), diffusivity)
    _, variance = line.moments(generator, Exponential(2), gm.grids.uniform(steps), *line.law(CONDOT, 0.0))
    assert 0.3 * line.VARIANCE < variance < line.VARIANCE


@pytest.mark.parametrize("schedule", [gm.schedules.Cosine(), gm.schedules.VP(), gm.schedules.EDM()], ids=repr)
@pytest.mark.parametrize("name", ["memoryless", "endpoint-safe", "hybrid", "weighted"])
def test_on_other_schedules_too(name: str, schedule: gm.Schedule) -> None:
    generator = PROCESSES[name].build(line.predictor(schedule))
    mean, variance = misses(generator, Exponential(2), gm.grids.uniform(200), schedule)
    assert mean < 1e-10
    assert variance < 1e-3


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0, 2.0])
def test_any_amount_of_langevin_noise_leaves_the_law_alone(weight: float) -> None:
    model = line.predictor(CONDOT)
    generator = gm.Flow(model) + weight * gm.Langevin(model)
    assert misses(generator, Exponential(2), gm.grids.uniform(200))[1] < 1e-3
    # Negative control: noise without its drift blurs the data.
    halved = gm.Flow(model) + Blur(model)
    assert misses(halved, Euler(), gm.grids.uniform(200, 0.02, 1.0))[1] > 0.05


class Blur(gm.Generator):
    """Noise of variance 0.3 without the drift that undoes it."""

    speed = 0.0

    def triplet(self, x, t, prediction):
        return gm.Triplet(variance=0.3)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["memoryless", "gamma", "hybrid", "difference"])
def test_the_start_at_infinite_noise_is_exact(order: int, name: str) -> None:
    """The first step forgets its state altogether: it draws alpha_s E[x_1] + sigma_s z."""
    generator = PROCESSES[name].build(line.predictor(CONDOT))
    offset, factor, stds = line.transfer(generator, Exponential(order), torch.tensor([0.0, 0.3], dtype=torch.float64))
    assert factor == 0
    assert offset == pytest.approx(0.3 * line.MEAN, rel=1e-14)
    assert stds.item() == pytest.approx(0.7, rel=1e-14)


def test_infinite_noise_gives_one_result_from_all_starts() -> None:
    generator = gm.Diffusion(line.predictor(CONDOT))
    a, b = (gm.sample(generator, torch.full((4, 1), value), steps=8, seed=3) for value in (0.0, 9.0))
    assert torch.equal(a, b)
    c, d = (
        gm.sample(PROCESSES["endpoint-safe"].build(line.predictor(CONDOT)), torch.full((4, 1), value), steps=8, seed=3)
        for value in (0.0, 9.0)
    )
    assert not torch.allclose(c, d)


@pytest.mark.parametrize("kind", ["noise", "score"])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("schedule", [CONDOT, gm.schedules.Cosine()], ids=repr)
def test_a_network_blind_at_pure_noise_starts_a_little_later_at_a_known_price(kind, noisy: bool, schedule) -> None:
    """Noise and score networks say nothing of the data where alpha_0 = 0: the run starts at log-SNR -10 instead.

    There alpha is 0.0067, and the start takes noise of variance alpha^2 + sigma^2 for p_t. A flow carries the missing
    mean alpha m and the difference of variance alpha^2 (1 - C) to the end by the factor Phi; noise forgets them.
    """
    model = line.predictor(schedule, kind)
    generator = gm.Diffusion(model) if noisy else gm.Flow(model)
    seen: list[float] = []
    first = model.network.forward
    model.network.forward = lambda x, t: (seen.append(t[0].item()), first(x, t))[1]
    gm.sample(generator, (2, 1), steps=4, seed=0, dtype=torch.float64)
    begin = schedule.inverse_log_snr(torch.tensor(-10.0)).item()
    assert seen[0] == pytest.approx(begin, rel=1e-12)
    alpha, sigma = line.levels(schedule, begin)
    assert alpha / sigma == pytest.approx(math.exp(-5))

    times = gm.grids.uniform(400, begin, 1.0)
    mean, variance = line.moments(generator, Exponential(2), times, 0.0, alpha**2 + sigma**2)
    own = line.moments(generator, Exponential(2), times, *line.law(schedule, begin))  # of the solver alone
    phi = 0.0 if noisy else math.sqrt(line.VARIANCE / line.spread(schedule, begin))
    assert own[0] - mean == pytest.approx(phi * alpha * line.MEAN, abs=2e-5)
    assert abs(own[0] - mean) < 0.0068 * line.MEAN
    assert abs(own[1] - variance) < 2e-5


def test_other_predictors_start_at_pure_noise() -> None:
    for kind in ("velocity", "data", "v", "karras"):
        seen: list[float] = []
        model = line.predictor(CONDOT, kind)
        first = model.network.forward
        model.network.forward = lambda x, t, first=first, seen=seen: (seen.append(t[0].item()), first(x, t))[1]
        gm.sample(gm.Flow(model), (2, 1), steps=4, seed=0)
        assert seen[0] == 0.0, kind


@pytest.mark.parametrize("solver", [DDPM(), DDIM(1.0), DDIM(0.5)], ids=repr)
def test_ancestral_samplers_end_in_the_data_law(solver: Solver) -> None:
    errors = [misses(gm.Flow(line.predictor(CONDOT)), solver, gm.grids.uniform(n))[1] for n in (50, 200)]
    assert errors[1] < 1.2e-2
    assert errors[1] < errors[0] / 2.5


def test_stochastic_heun_keeps_the_law_and_euler_maruyama_nears_it() -> None:
    generator = PROCESSES["endpoint-safe"].build(line.predictor(CONDOT))
    assert misses(generator, Heun(), gm.grids.uniform(200))[1] < 1e-4
    assert 1e-4 < misses(generator, Euler(), gm.grids.uniform(200))[1] < 5e-3


def test_samples_have_the_moments_that_the_affine_map_says() -> None:
    """Once by Monte Carlo, through the public door: the trick itself is right."""
    generator = gm.Diffusion(line.predictor(CONDOT))
    x = gm.sample(generator, (40_000, 1), steps=20, seed=0, dtype=torch.float64)
    mean, variance = line.moments(generator, Exponential(2), gm.grids.uniform(20), 0.0, 1.0)
    assert x.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / 40_000))
    assert x.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))
