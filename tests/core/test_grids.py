"""Time grids against their formulas; their ends are exact and their points distinct."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, SCHEDULES, name
from hypothesis import given, settings
from hypothesis import strategies as st

from genmatch import grids
from genmatch.schedules import DDPM, EDM, VE, VP, CondOT, Cosine

SPANNED = {
    "uniform": grids.uniform,
    "quadratic": grids.quadratic,
    "shifted": lambda n, **span: grids.shifted(n, 3.0, **span),
}
steps = st.integers(1, 200)
spans = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda s: abs(s[0] - s[1]) > 1e-3)


@pytest.mark.parametrize("grid", SPANNED.values(), ids=SPANNED)
@given(n=steps, span=spans)
@settings(max_examples=30)
def test_spanned_grids(grid, n, span):
    start, stop = span
    times = grid(n, start=start, stop=stop)
    assert times.shape == (n + 1,)
    assert times.dtype == F64
    assert (float(times[0]), float(times[-1])) == (start, stop)
    assert bool((times.diff() * (stop - start) > 0).all())


def test_formulas():
    i = torch.arange(9, dtype=F64) / 8
    torch.testing.assert_close(grids.uniform(8), i)
    torch.testing.assert_close(grids.quadratic(8), 1 - (1 - i) ** 2)
    shifted = grids.shifted(8, 3.0)
    torch.testing.assert_close((1 - shifted[1:-1]) / shifted[1:-1], 3 * (1 - i[1:-1]) / i[1:-1])
    torch.testing.assert_close(grids.shifted(8, 1.0), i)
    # More steps at the noise, and fewer for a shift below 1.
    assert bool((shifted[1:-1] < i[1:-1]).all())
    assert bool((grids.shifted(8, 0.5)[1:-1] > i[1:-1]).all())


def test_quadratic_shrinks_towards_the_stop_in_both_directions():
    assert bool((grids.quadratic(6).diff().diff() < 0).all())
    assert bool((grids.quadratic(6, 1.0, 0.0).diff().abs().diff() < 0).all())


@given(
    n=st.integers(1, 60),
    low=st.floats(1e-3, 0.3),
    high=st.floats(1.0, 100.0),
    rho=st.floats(1.0, 9.0),
)
@settings(max_examples=60)
def test_karras_on_its_own_schedule_is_the_uniform_grid(n, low, high, rho):
    times = grids.karras(EDM(low, high, rho), n, sigma_min=low, sigma_max=high, rho=rho)
    torch.testing.assert_close(times, grids.uniform(n), rtol=0, atol=1e-9)
    assert (float(times[0]), float(times[-1])) == (0, 1)


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP(), DDPM()], ids=name)
def test_karras_levels(schedule):
    times = grids.karras(schedule, 10, sigma_min=0.05, sigma_max=20.0, rho=7.0)
    assert times.shape == (11,)
    assert float(times[-1]) == 1
    alpha, sigma = schedule(times[:-1])
    expected = torch.linspace(20 ** (1 / 7), 0.05 ** (1 / 7), 10, dtype=F64) ** 7
    torch.testing.assert_close(sigma / alpha, expected, rtol=1e-7, atol=0)
    assert float(times[0]) > 0  # where the level is sigma_max, not at t = 0


def test_karras_is_cut_to_what_the_schedule_reaches():
    times = grids.karras(VE(0.1, 10.0), 6, sigma_min=0.002, sigma_max=80.0)
    assert (float(times[0]), float(times[-1])) == (0, 1)
    sigma = VE(0.1, 10.0)(times)[1]
    expected = torch.linspace(10 ** (1 / 7), 0.1 ** (1 / 7), 7, dtype=F64) ** 7
    torch.testing.assert_close(sigma, expected, rtol=1e-7, atol=0)
    # A schedule that falls below sigma_min ends in one more step, to the data.
    assert grids.karras(VE(0.001, 10.0), 6, sigma_min=0.1, sigma_max=10.0)[-2] < 0.6
    assert grids.karras(CondOT(), 1).shape == (2,)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_log_snr_grid(schedule):
    times = grids.log_snr(schedule, 12, low=-6.0, high=6.0)
    assert times.shape == (13,)
    assert (float(times[0]), float(times[-1])) == (0, 1)
    assert bool((times.diff() > 0).all())
    ends = schedule.log_snr(torch.tensor([0.0, 1.0], dtype=F64)).tolist()
    low, high = max(-6.0, ends[0]), min(6.0, ends[1])
    expected = torch.linspace(low, high, 13, dtype=F64)[1:-1]
    torch.testing.assert_close(schedule.log_snr(times[1:-1]), expected, rtol=1e-8, atol=1e-8)
    assert grids.log_snr(schedule, 1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grids.uniform(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: grids.uniform(2.0), TypeError, "steps must be an integer, got float"),
        (lambda: grids.quadratic(True), TypeError, "steps must be an integer, got bool"),
        (lambda: grids.uniform(5, -0.1), ValueError, r"start must be in \[0, 1\], got -0.1: 0 is noise, 1 is data"),
        (lambda: grids.uniform(5, 0.0, 1.5), ValueError, r"stop must be in \[0, 1\], got 1.5"),
        (lambda: grids.uniform(5, math.nan), ValueError, "start must be in"),
        (lambda: grids.uniform(5, 0.5, 0.5), ValueError, "start and stop are both 0.5: there is nothing to integrate"),
        (lambda: grids.shifted(5, 0.0), ValueError, "shift must be above 0"),
        (lambda: grids.karras(CondOT(), 0), ValueError, "steps must be at least 1"),
        (lambda: grids.karras(CondOT(), 5, rho=-1.0), ValueError, "rho must be above 0"),
        (lambda: grids.karras(CondOT(), 5, sigma_min=2.0, sigma_max=1.0), ValueError, "no noise level between"),
        (lambda: grids.karras(VE(1.0, 2.0), 5, sigma_min=0.1, sigma_max=0.5), ValueError, "which covers 1 to 2"),
        (lambda: grids.log_snr(CondOT(), 5, low=1.0, high=0.0), ValueError, "low must be below high and both finite"),
        (lambda: grids.log_snr(CondOT(), 5, high=math.inf), ValueError, "low must be below high and both finite"),
        (lambda: grids.log_snr(VE(1.0, 2.0), 5, low=2.0), ValueError, "outside what the schedule reaches"),
        (lambda: grids.log_snr(CondOT(), 1.5), TypeError, "steps must be an integer"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
