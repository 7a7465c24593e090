"""Schedules and grids moved in log-SNR, for another resolution; schedules rescaled to start in pure noise."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from closed_forms import F64, Recorder, mixture

import genmatch as gm
from genmatch import grids
from genmatch.schedules import (
    DDPM,
    EDM,
    VE,
    VP,
    CondOT,
    Cosine,
    Polynomial,
    Shifted,
    ZeroTerminal,
    resolution_shift,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "solvers"))
import gaussian_line as line

LINES = (CondOT(), Polynomial(2.0))
CIRCLES = (Cosine(), VP(), DDPM(), DDPM([0.1] * 10))
OTHERS = (VE(), EDM(), CondOT(0.05))
INSIDE = torch.linspace(0.01, 0.99, 99, dtype=F64)


# Shifted schedules


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("schedule", [*LINES, *CIRCLES, *OTHERS], ids=repr)
def test_the_log_snr_is_lower_by_twice_the_log_of_the_shift(schedule, shift):
    moved = Shifted(schedule, shift).log_snr(INSIDE) - schedule.log_snr(INSIDE)
    torch.testing.assert_close(moved, torch.full_like(moved, -2 * math.log(shift)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [*LINES, *CIRCLES, *OTHERS], ids=repr)
def test_the_scale_of_the_state_stays(schedule):
    alpha, sigma = Shifted(schedule, 2.5)(torch.linspace(0, 1, 41, dtype=F64))
    if schedule in LINES:
        torch.testing.assert_close(alpha + sigma, torch.ones_like(alpha), rtol=1e-14, atol=0)
    elif schedule in CIRCLES:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=1e-12, atol=0)
    else:
        assert torch.equal(alpha, schedule(torch.linspace(0, 1, 41, dtype=F64))[0])


@pytest.mark.parametrize("shift", [0.4, 3.0])
def test_the_shifted_grid_is_the_uniform_one_of_the_shifted_schedule(shift):
    there, here = grids.shifted(9, shift), grids.uniform(9)
    for kept, moved in zip(CondOT()(there), Shifted(CondOT(), shift)(here), strict=True):
        torch.testing.assert_close(moved, kept, rtol=1e-14, atol=1e-15)
    # And so are the samples of an exponential solver, which sees a schedule by its values alone.
    world = gm.worlds.GaussianMixture(mixture().means, mixture().covariances)
    x0 = torch.randn(16, 2, dtype=F64, generator=torch.Generator().manual_seed(0))

    def run(schedule, times):
        return gm.sample(gm.Flow(world.predictor(gm.GaussianPath(schedule))), x0, times=times)

    torch.testing.assert_close(run(Shifted(CondOT(), shift), here), run(CondOT(), there), rtol=1e-10, atol=1e-10)
    assert float((run(CondOT(), here) - run(CondOT(), there)).abs().max()) > 1e-3


def test_shifts_multiply():
    twice, once = Shifted(Shifted(VP(), 2.0), 3.0), Shifted(VP(), 6.0)
    t = torch.linspace(0, 1, 21, dtype=F64)
    torch.testing.assert_close(torch.stack(twice(t)), torch.stack(once(t)), rtol=1e-12, atol=1e-15)


def test_a_larger_image_under_the_shift_is_as_noisy_as_the_small_one():
    # Averaged over 2 x 2 pixels, the large noisy image is the small one at the same time.
    small, large = VP(), Shifted(VP(), resolution_shift(128, 64))
    t = torch.tensor(0.6, dtype=F64)
    picture = torch.rand(64, 64, dtype=F64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 128, 128, dtype=F64, generator=torch.Generator().manual_seed(1))
    alpha, sigma = large(t)
    noisy = alpha * picture.repeat_interleave(2, 0).repeat_interleave(2, 1) + sigma * noise
    seen = torch.nn.functional.avg_pool2d(noisy, 2)[0] / alpha - picture
    ratio = float(small(t)[1] / small(t)[0])
    assert float(seen.std()) == pytest.approx(ratio, rel=0.04)  # 4096 pixels: 1.1% standard error
    assert abs(float(small(t)[1] / small(t)[0] / 2) - float(seen.std())) > 0.1  # what no shift would give


def test_the_shift_of_a_resolution():
    assert resolution_shift(1024, 256) == 4
    assert resolution_shift(64, 64) == 1
    assert resolution_shift((32, 128), 64) == 1
    assert resolution_shift((8, 64, 64), (2, 64, 64)) == 2  # frames, height, width
    # 2 log(64 / 512), what simple diffusion adds to its log-SNR at 512 pixels.
    expected = 2 * math.log(64 / 512)
    moved = Shifted(Cosine(), resolution_shift(512, 64)).log_snr(INSIDE) - Cosine().log_snr(INSIDE)
    torch.testing.assert_close(moved, torch.full_like(moved, expected), rtol=1e-9, atol=0)


def test_the_grid_of_a_resolution_is_the_shifted_one():
    assert torch.equal(grids.resolution(8, 512, 256), grids.shifted(8, 2.0))
    assert torch.equal(
        grids.resolution(8, (128, 256), 64, start=0.1, stop=0.9), grids.shifted(8, math.sqrt(8), 0.1, 0.9)
    )
    assert torch.equal(grids.resolution(5, 64, 64), grids.uniform(5))


def test_training_and_sampling_under_a_shift():
    path = gm.GaussianPath(Shifted(CondOT(), 3.0))
    model = gm.predict.Velocity(gm.nn.MLP(2, width=16, depth=1), path)
    loss = gm.matching_loss(model, torch.randn(64, 2), seed=0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert gm.sample(gm.Flow(model), (4, 2), steps=3, seed=0).isfinite().all()


# Zero terminal SNR


def rescaled_bars(betas) -> torch.Tensor:
    """The cumulative products of Algorithm 1 of arXiv 2305.08891, for the noising chain."""
    roots = torch.cumprod(1 - torch.as_tensor(betas, dtype=F64), 0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    return ((roots - last) * first / (first - last)) ** 2


CHAINS = {
    "default": DDPM().betas,
    "textbook": [0.1] * 10,
    "two steps": [0.2, 0.7],
    "scaled linear": (torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2).tolist(),
}


@pytest.mark.parametrize("betas", CHAINS.values(), ids=CHAINS)
def test_a_chain_is_rescaled_as_in_the_paper(betas):
    length, schedule = len(betas), ZeroTerminal(DDPM(betas))
    t = grids.uniform(length)[:-1].flip(0)  # the chain's first step first
    bars = rescaled_bars(betas)
    alpha, sigma = schedule(t)
    torch.testing.assert_close(alpha**2, bars, rtol=1e-10, atol=1e-16)
    torch.testing.assert_close(sigma**2, 1 - bars, rtol=1e-9, atol=0)
    assert float(alpha[-1]) == 0
    assert float(DDPM(betas)(t)[0][-1]) > 1e-3  # which is what was wrong
    # The cleanest step stays, and so does all that is behind it.
    behind = torch.linspace(1 - 1 / length, 1, 5, dtype=F64)
    torch.testing.assert_close(torch.stack(schedule(behind)), torch.stack(DDPM(betas)(behind)), rtol=1e-12, atol=0)


def test_diffusers_rescales_alike():
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    for betas in CHAINS.values():
        theirs = scheduling.rescale_zero_terminal_snr(torch.tensor(betas, dtype=F64))
        alpha, _ = ZeroTerminal(DDPM(betas))(grids.uniform(len(betas))[:-1].flip(0))
        torch.testing.assert_close(alpha**2, torch.cumprod(1 - theirs, 0), rtol=1e-9, atol=1e-15)


def test_the_continuous_diffusion_is_rescaled_by_one_line():
    t = torch.linspace(0, 1, 33, dtype=F64)
    alpha, sigma = ZeroTerminal(VP())(t)
    old = VP()(t)[0]
    torch.testing.assert_close(alpha, (old - old[0]) / (1 - old[0]), rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    assert float(ZeroTerminal(VP()).log_snr(t[:1])) == -math.inf
    slope = ZeroTerminal(VP()).at(t[:1]).alpha_dot
    torch.testing.assert_close(slope, VP().at(t[:1]).alpha_dot / (1 - old[0]))


@pytest.mark.parametrize("schedule", [VP(), DDPM()], ids=repr)
def test_the_noise_keeps_its_digits_near_the_data(schedule):
    t = 1 - torch.logspace(-6, -1, 30, dtype=F64)
    t = t.float().double()  # the same numbers in both precisions
    exact, single = ZeroTerminal(schedule)(t)[1], ZeroTerminal(schedule)(t.float())[1].double()
    torch.testing.assert_close(single, exact, rtol=3e-3 if schedule == DDPM() else 1e-5, atol=0)
    naive = (1 - ZeroTerminal(schedule)(t.float())[0] ** 2).sqrt().double()
    assert float(((naive - exact) / exact).abs().max()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("schedule", [VP(), DDPM(), DDPM([0.1] * 10), Shifted(VP(), 2.0), Cosine()], ids=repr)
def test_the_start_is_pure_noise_in_any_precision(schedule, dtype):
    t = torch.tensor([0.0, 1e-7, 1e-3], dtype=dtype)
    alpha, sigma = ZeroTerminal(schedule)(t)
    assert float(alpha[0]) == 0
    assert float(sigma[0]) == pytest.approx(1, abs=2e-7)
    assert bool((alpha >= 0).all())
    assert float(alpha[2]) > 0


@pytest.mark.parametrize("kind", ["data", "v"])
def test_samples_start_at_zero_and_end_in_the_law(kind):
    # A chain whose last step still has a quarter of the data in it: from pure noise its samples miss the mean.
    betas = [0.05] * 50

    def moments(schedule):
        # A run of a flow is an affine map of its start, a standard normal.
        ends = torch.tensor([[0.0], [1.0]], dtype=F64)
        low, high = line.walk(
            gm.Flow(line.predictor(schedule, kind)), gm.solvers.Exponential(), grids.uniform(150), ends
        ).flatten()
        return float(low), float(high - low) ** 2

    right, variance = moments(ZeroTerminal(DDPM(betas)))
    assert right == pytest.approx(line.MEAN, abs=2e-3)
    assert variance == pytest.approx(line.VARIANCE, rel=1e-2)
    wrong, _ = moments(DDPM(betas))
    assert abs(wrong - line.MEAN) > 0.03
    seen = []
    flow = gm.Flow(line.predictor(ZeroTerminal(DDPM(betas)), kind))
    x0 = torch.randn(3, 1, dtype=F64)
    gm.sample(flow, x0, steps=4, callback=lambda i, t, x: seen.append(t))
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_a_noise_network_starts_where_it_sees_something():
    schedule = ZeroTerminal(VP())
    seen = []
    flow = gm.Flow(line.predictor(schedule, "noise"))
    gm.sample(flow, torch.randn(3, 1, dtype=F64), steps=1, solver=gm.solvers.Exponential(order=1))
    gm.sample(flow, torch.randn(3, 1, dtype=F64), steps=2, callback=lambda i, t, x: seen.append(t))
    begin = 2 * seen[0] - seen[1]
    assert float(schedule.log_snr(torch.tensor(begin, dtype=F64))) == pytest.approx(-10, abs=1e-6)


@pytest.mark.parametrize("kind", [gm.predict.V, gm.predict.Data], ids=lambda k: k.__name__)
def test_training_at_time_zero(kind):
    model = kind(gm.nn.MLP(2, width=16, depth=1), gm.GaussianPath(ZeroTerminal(DDPM())))
    loss = gm.matching_loss(model, torch.randn(32, 2), t=torch.zeros(32), seed=0)
    loss.backward()
    assert math.isfinite(loss.item())


def test_a_network_of_table_indices_is_fed_the_chain():
    chain = DDPM([0.01] * 20)
    network = Recorder()
    path = gm.GaussianPath(ZeroTerminal(chain))
    gm.sample(gm.Flow(gm.predict.V(network, path, time=gm.predict.clocks.index(chain))), (2, 3), steps=20, seed=0)
    assert [t[0].item() for t in network.times] == list(range(19, -1, -1))
    plain = Recorder()
    gm.sample(gm.Flow(gm.predict.V(plain, path)), (2, 3), steps=20, seed=0)
    assert plain.times[0][0].item() == 0  # without it, t


# Values and bad input


def test_equal_parameters_are_equal_schedules():
    assert Shifted(VP(), 2.0) == Shifted(VP(), 2.0)
    assert Shifted(VP(), 2.0) != Shifted(VP(), 3.0)
    assert Shifted(VP(), 2.0) != Shifted(Cosine(), 2.0)
    assert len({ZeroTerminal(VP()), ZeroTerminal(VP()), ZeroTerminal(DDPM())}) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Shifted(VP(), 0.0), ValueError, "shift must be above 0 and finite, got 0.0"),
        (lambda: Shifted(VP(), "2"), TypeError, "shift must be a number, got str"),
        (lambda: Shifted(VP, 2.0), TypeError, r"schedule must be a genmatch Schedule, got .*: call it"),
        (lambda: ZeroTerminal("vp"), TypeError, "schedule must be a genmatch Schedule, got 'vp'"),
        (lambda: ZeroTerminal(CondOT()), ValueError, "is for variance-preserving schedules .* start in pure noise as"),
        (lambda: ZeroTerminal(VE()), ValueError, "is for variance-preserving schedules"),
        (lambda: ZeroTerminal(DDPM([0.3])), ValueError, "a chain of one step has no other that could stay"),
        (lambda: resolution_shift(0, 64), ValueError, "size must be at least 1 on every side, got 0"),
        (lambda: resolution_shift(64.0, 64), TypeError, "size must be the side of a square image"),
        (lambda: resolution_shift(64, (64, True)), TypeError, "base must be the side of a square image"),
        (lambda: resolution_shift((), 64), TypeError, "size must be the side"),
        (lambda: grids.resolution(4, -1, 64), ValueError, "size must be at least 1"),
        (lambda: grids.resolution(0, 64, 64), ValueError, "steps must be at least 1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
