r"""Churn: exact laws of its runs, against Karras' algorithm written out in the noise level, and what the order of its
operations is worth. No Monte Carlo but for one test of the whole call.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import gaussian_line as line
import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.solvers import DDIM, Churn, Field

SCHEDULES = [gm.schedules.CondOT(), gm.schedules.Cosine(), gm.schedules.VP(), gm.schedules.EDM()]
EVERY = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
WIDE = {"noise": 1.0, "low": 0.0, "high": math.inf}
STEPS = (40, 80, 160)


def karras(steps: int, lowest: float = 0.002, highest: float = 80.0) -> list[float]:
    """The levels of arXiv 2206.00364, eq. 5, with the 0 at their end."""
    low, high = lowest ** (1 / 7), highest ** (1 / 7)
    return [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]


def denoise(x: Tensor, level: float) -> Tensor:
    """E[x1 | x1 + level x0 = x] for the Gaussian data."""
    return line.MEAN + line.VARIANCE / (line.VARIANCE + level**2) * (x - line.MEAN)


def published(levels: Sequence[float], x: Tensor, z: Tensor, solver: Churn) -> Tensor:
    """Algorithm 2 of the paper with s(t) = 1: states and levels of the data's scale; z ``(N, B, 1)``."""
    count = len(levels) - 1
    for i in range(count):
        now, after = levels[i], levels[i + 1]
        gamma = min(solver.churn / count, 2**0.5 - 1) if solver.low <= now <= solver.high else 0.0
        up = now * (1 + gamma)
        x = x + (up**2 - now**2) ** 0.5 * solver.noise * z[i]
        slope = (x - denoise(x, up)) / up
        ahead = x + (after - up) * slope
        if after > 0 and solver.order == 2:
            ahead = x + (after - up) * (0.5 * slope + 0.5 * (ahead - denoise(ahead, after)) / after)
        x = ahead
    return x


# The published algorithm, on every schedule


@EVERY
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("churn", [0.0, 3.0, 100.0])
def test_a_run_is_the_published_algorithm_in_the_noise_level(schedule: gm.Schedule, order: int, churn: float) -> None:
    """The affine map of a whole run: offset, factor and each step's noise. 100 / 12 is beyond the cap of gamma."""
    solver = Churn(churn, noise=1.01, low=0.03, high=20.0, order=order)
    edm = isinstance(schedule, gm.schedules.EDM)
    levels = karras(12)[:-1] if edm else karras(12, highest=15.0)  # EDM starts at 80 and ends at 0.002
    times = schedule.inverse_log_snr(-2 * torch.tensor(levels, dtype=torch.float64).log())
    alphas = schedule(times)[0]
    count = len(levels) - 1
    offset, factor, stds = line.transfer(gm.Flow(line.predictor(schedule)), solver, times)
    x = torch.zeros(count + 2, 1, dtype=torch.float64)
    x[1] = 1 / alphas[0]
    z = torch.zeros(count, count + 2, 1, dtype=torch.float64)
    for i in range(count):
        z[i, 2 + i] = 1
    truth = alphas[-1] * published(levels, x, z, solver).flatten()
    assert offset == pytest.approx(truth[0].item(), rel=1e-7)
    assert factor == pytest.approx((truth[1] - truth[0]).item(), rel=1e-7, abs=1e-12)
    torch.testing.assert_close(stds, truth[2:] - truth[0], rtol=1e-7, atol=1e-10)
    assert (stds != 0).sum() == (0 if churn == 0 else sum(0.03 <= level <= 20 for level in levels[:-1]))


@EVERY
def test_without_churn_it_follows_the_flow(schedule: gm.Schedule) -> None:
    """Order 2 in the noise level, on levels of the paper's spacing."""
    flow = gm.Flow(line.predictor(schedule))
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    errors = []
    for n in STEPS:
        times = gm.grids.karras(schedule, n)
        start = x * line.spread(schedule, times[0].item()) ** 0.5
        end = line.walk(flow, Churn(0.0), times, start)
        errors.append((end - line.flow_map(schedule, start, times[0].item(), 1.0)).abs().max().item())
    assert line.order(STEPS, errors) > 1.9


def test_without_churn_and_of_order_one_it_is_ddim() -> None:
    schedule = gm.schedules.Cosine()
    flow, x = gm.Flow(line.predictor(schedule)), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    times = gm.grids.uniform(9)
    torch.testing.assert_close(
        line.walk(flow, Churn(0.0, order=1), times, x), line.walk(flow, DDIM(), times, x), rtol=1e-13, atol=1e-13
    )


def test_without_churn_it_runs_backwards() -> None:
    schedule, steps = gm.schedules.CondOT(), (40, 80, 160)
    flow, x = gm.Flow(line.predictor(schedule, "velocity")), torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    truth = line.flow_map(schedule, x, 1.0, 0.0)
    errors = [(line.walk(flow, Churn(0.0), gm.grids.uniform(n, 1.0, 0.0), x) - truth).abs().max().item() for n in steps]
    assert line.order(steps, errors) > 1.7


# Orders


def errors_of(schedule: gm.Schedule, solver: Churn, steps: Sequence[int], grid: Callable[[int], Tensor]) -> list[float]:
    """The larger of the errors of mean and variance at t = 1, for runs that start in the right law."""
    flow, end = gm.Flow(line.predictor(schedule)), line.law(schedule, 1.0)
    found = []
    for n in steps:
        times = grid(n)
        mean, variance = line.moments(flow, solver, times, *line.law(schedule, times[0].item()))
        found.append(max(abs(mean - end[0]), abs(variance - end[1])))
    return found


@EVERY
@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize("order", [1, 2])
def test_weak_order_on_the_levels_of_the_paper(schedule: gm.Schedule, churn: float, order: int) -> None:
    found = errors_of(schedule, Churn(churn, order=order, **WIDE), STEPS, lambda n: gm.grids.karras(schedule, n))
    assert line.order(STEPS, found) > order - 0.1
    assert found[-1] < {1: 2e-2, 2: 1e-3}[order]


@pytest.mark.parametrize("churn", [0.0, 5.0])
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: type(s).__name__)
def test_weak_order_on_equal_steps_from_pure_noise(schedule: gm.Schedule, churn: float) -> None:
    """From alpha = 0, where the level is infinite: one step of DDIM there costs no order."""
    steps = (80, 160, 320)
    found = errors_of(schedule, Churn(churn, **WIDE), steps, gm.grids.uniform)
    assert line.order(steps, found) > 1.75
    assert found[-1] < 1e-4


def test_equal_steps_on_vp_lose_an_order_at_the_data() -> None:
    steps = (80, 160, 320)
    found = errors_of(gm.schedules.VP(), Churn(5.0, **WIDE), steps, gm.grids.uniform)
    assert 0.9 < line.order(steps, found) < 1.5


def test_much_churn_needs_steps_before_its_order_shows() -> None:
    """At 40 steps gamma is capped."""
    schedule, steps = gm.schedules.EDM(), (80, 160, 320)
    found = errors_of(schedule, Churn(20.0, **WIDE), steps, lambda n: gm.grids.karras(schedule, n))
    assert line.order(steps, found) > 1.9


def test_more_noise_than_was_taken_away_does_not_converge() -> None:
    schedule = gm.schedules.EDM()
    grid = lambda n: gm.grids.karras(schedule, n)  # noqa: E731
    (fair,) = errors_of(schedule, Churn(5.0, **WIDE), (640,), grid)
    more = errors_of(schedule, Churn(5.0, **{**WIDE, "noise": 1.05}), (320, 640), grid)
    assert fair < 1e-4
    assert more[1] > 1e-2
    assert more[1] > 0.9 * more[0]


# Where the network looks


def before_the_noise(levels: Sequence[float], churn: float) -> float:
    """Variance of Euler runs in which the noise prediction is made before the noise is added: the planted bug."""
    count, variance = len(levels) - 1, line.VARIANCE + levels[0] ** 2
    for now, after in itertools.pairwise(levels):
        up = now * (1 + min(churn / count, 2**0.5 - 1))
        slope = now / (line.VARIANCE + now**2)  # of E_0 in the state
        variance = (1 + (after - up) * slope) ** 2 * variance + up**2 - now**2
    return variance


def test_the_network_looks_after_the_noise_was_added() -> None:
    """40 Euler steps, S_churn 20. After it, the law comes out too narrow (14 percent); before it, too wide (18)."""
    schedule = gm.schedules.EDM()
    times = gm.grids.karras(schedule, 39)
    levels = schedule(times)[1].tolist()
    flow = gm.Flow(line.predictor(schedule))
    solver = Churn(20.0, order=1, **WIDE)
    _, variance = line.moments(flow, solver, times, *line.law(schedule, 0.0))
    after = math.sqrt(variance / line.VARIANCE) - 1
    before = math.sqrt(before_the_noise(levels, 20.0) / line.VARIANCE) - 1
    assert -0.2 < after < -0.1
    assert 0.1 < before < 0.25
    (up, *_) = [step.instant.t for step in solver.plan(Field(flow, torch.zeros(1, 1)), times)][1:]
    assert up < times[1].item()  # at the raised level's own time


# Levels


@EVERY
def test_levels_are_raised_by_gamma_between_low_and_high_and_never_beyond_the_start(schedule: gm.Schedule) -> None:
    solver, times = Churn(4.0, low=0.1, high=50.0), gm.grids.karras(schedule, 20)
    plan = solver.plan(Field(gm.Flow(line.predictor(schedule)), torch.zeros(1, 1, dtype=torch.float64)), times)
    highest = (-schedule.log_snr(torch.zeros(1, dtype=torch.float64)) / 2).exp().item()
    for step, t in zip(plan, times.tolist(), strict=False):
        alpha, sigma = line.levels(schedule, t)
        level = sigma / alpha
        raised = step.instant.models[0].sigma / step.instant.models[0].alpha
        if 0.1 <= level <= 50:
            assert raised == pytest.approx(min(level * (1 + 4 / len(plan)), highest), rel=1e-7)
            assert step.std > 0
        else:
            assert (raised, step.std, step.keep) == (pytest.approx(level, rel=1e-12), 0.0, 1.0)


def test_no_level_beyond_that_of_t_0() -> None:
    """On EDM the level is 80 at t = 0: from 70, gamma = sqrt(2) - 1 asks for 99."""
    schedule = gm.schedules.EDM()
    times = schedule.inverse_log_snr(-2 * torch.tensor([70.0, 30.0, 1.0], dtype=torch.float64).log())
    plan = Churn(100.0, **WIDE).plan(Field(gm.Flow(line.predictor(schedule)), torch.zeros(1, 1)), times)
    assert plan[0].instant.t == 0.0
    assert plan[0].std == pytest.approx((80**2 - 70**2) ** 0.5, rel=1e-9)
    assert plan[1].instant.models[0].sigma == pytest.approx(30 * 2**0.5, rel=1e-9)


@pytest.mark.parametrize("kind", ["velocity", "noise", "score", "v", "karras"])
def test_every_network_gives_the_same_run(kind: str) -> None:
    schedule, solver = gm.schedules.Cosine(), Churn(4.0)
    times = gm.grids.karras(schedule, 12)
    truth = line.transfer(gm.Flow(line.predictor(schedule, "data")), solver, times)
    found = line.transfer(gm.Flow(line.predictor(schedule, kind)), solver, times)
    assert found[:2] == (pytest.approx(truth[0], rel=1e-9), pytest.approx(truth[1], rel=1e-9))
    torch.testing.assert_close(found[2], truth[2], rtol=1e-9, atol=1e-12)


# The whole call


def test_samples_have_the_law_and_evaluations_are_counted() -> None:
    schedule = gm.schedules.CondOT()
    model = line.predictor(schedule, "velocity")
    x, report = gm.sample(
        gm.Flow(model), (20000, 1), solver=Churn(5.0, **WIDE), steps=40, seed=3, dtype=torch.float64, report=True
    )
    # The variance of a sample variance of n normals is 2 V^2 / n; 5 standard errors.
    assert abs(x.mean().item() - line.MEAN) < 5 * math.sqrt(line.VARIANCE / 20000) + 1e-3
    assert abs(x.var().item() - line.VARIANCE) < 5 * line.VARIANCE * math.sqrt(2 / 20000) + 1e-3
    assert model.network.calls == int(report.evaluations[0]) == 40 + 38  # Euler from alpha = 0 and to sigma = 0


@pytest.mark.parametrize(("order", "expected"), [(1, 12), (2, 23)])
def test_two_evaluations_a_step_of_heun_but_the_last(order: int, expected: int) -> None:
    schedule = gm.schedules.VP()
    model = line.predictor(schedule)
    solver, times = Churn(3.0, order=order), gm.grids.karras(schedule, 12)
    plan = solver.plan(Field(gm.Flow(model), torch.zeros(1, 1, dtype=torch.float64)), times)
    line.walk(gm.Flow(model), solver, times, torch.zeros(3, 1, dtype=torch.float64))
    assert solver.evaluations(plan) == model.network.calls == expected


def test_batches_get_the_numbers_of_the_whole() -> None:
    flow = gm.Flow(line.predictor(gm.schedules.Cosine()))
    whole = gm.sample(flow, (5, 1), solver=Churn(9.0), steps=10, seed=1)
    torch.testing.assert_close(gm.sample(flow, (5, 1), solver=Churn(9.0), steps=10, seed=1, batch_size=2), whole)


# What is refused


def test_what_is_refused() -> None:
    schedule = gm.schedules.CondOT()
    model = line.predictor(schedule)
    x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match="Churn adds noise of its own, and the generator has noise too"):
        gm.sample(gm.Diffusion(model), (2, 1), solver=Churn())
    with pytest.raises(ValueError, match=r"churn runs from noise to data: .* use gm.solvers.Churn\(0, order=2\)"):
        gm.sample(gm.Flow(line.predictor(schedule, "velocity")), x, solver=Churn(), start=1.0, stop=0.0)
    coupled = gm.GaussianPath(schedule, coupling=gm.couplings.OT())
    flow = gm.Flow(gm.predict.Velocity(line.Exact("velocity", schedule), coupled))
    with pytest.raises(ValueError, match="churn needs a standard normal source independent of the data"):
        gm.sample(flow, (2, 1), solver=Churn())
    gm.sample(flow, (2, 1), solver=Churn(0.0), steps=3)
    chain = gm.CTMC(gm.predict.Tokens(torch.nn.Identity(), gm.MixturePath(5, mask=5)))
    with pytest.raises(ValueError, match="Churn needs one network"):
        gm.sample(chain, (2, 3), solver=Churn())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"churn": -1.0}, ValueError, "churn must be at least 0"),
        ({"churn": "much"}, TypeError, "churn must be a number"),
        ({"noise": 0.0}, ValueError, "noise must be above 0"),
        ({"low": -0.1}, ValueError, "low must be at least 0"),
        ({"high": math.nan}, ValueError, "high must be above 0"),
        ({"low": 2.0, "high": 1.0}, ValueError, "between low and high, got 2.0 and 1.0"),
        ({"order": 3}, ValueError, "order must be 1"),
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Churn(**options)


def test_it_says_what_it_is() -> None:
    assert repr(Churn(20.0, order=1)) == "Churn(20, noise=1.003, low=0.05, high=50, order=1)"


# The authors' algorithm as another library has it


def sampling_of_k_diffusion(monkeypatch: pytest.MonkeyPatch):
    """Its samplers alone: what the library imports beside them for images need not be there."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    package: Any = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    helpers: Any = types.ModuleType("k_diffusion.utils")
    helpers.append_dims = lambda value, ndim: value.reshape(value.shape + (1,) * (ndim - value.ndim))
    package.utils = helpers
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    monkeypatch.setitem(sys.modules, "k_diffusion.utils", helpers)
    return pytest.importorskip("k_diffusion.sampling", exc_type=ImportError)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("churn", [0.0, 12.0])
def test_it_agrees_with_k_diffusion(order: int, churn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = sampling_of_k_diffusion(monkeypatch)
    schedule = gm.schedules.EDM()
    times = gm.grids.karras(schedule, 20)
    x = 80 * torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    noises = gm.Draws(0, 20).normal((20, 7, 1), torch.float64)
    left = iter(noises)
    monkeypatch.setattr(torch, "randn_like", lambda like: next(left))
    theirs = {1: sampling.sample_euler, 2: sampling.sample_heun}[order](
        lambda y, level: denoise(y, level[0].item()),
        x,
        schedule(times)[1],
        disable=True,
        s_churn=churn,
        s_noise=1.01,
        s_tmin=0.05,
        s_tmax=50.0,
    )
    ours = line.walk(
        gm.Flow(line.predictor(schedule)),
        Churn(churn, noise=1.01, low=0.05, high=50.0, order=order),
        times,
        x,
        draws=[line.Given(z) for z in noises],
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
