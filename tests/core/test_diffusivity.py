"""Diffusivities: variances in closed form, exposures against scipy's quadrature, end points as documented."""

from __future__ import annotations

import math

import pytest
import torch
from closed_forms import F64, SCHEDULES, name, subclasses
from scipy.integrate import quad

from genmatch.diffusivity import Constant, Diffusivity, EndpointSafe, Function, Memoryless
from genmatch.schedules import DDPM, EDM, VP, CondOT, Cosine, Instant, Polynomial, Schedule

EXAMPLES = [
    Memoryless(),
    Memoryless(gamma=0.4),
    Memoryless(gamma=0),
    EndpointSafe(),
    EndpointSafe(gamma=2.0),
    Constant(0.7),
    Constant(0),
    Function(lambda t: 0.5 + t**2),
]
every = pytest.mark.parametrize(
    "diffusivity", EXAMPLES, ids=[type(d).__name__ + str(i) for i, d in enumerate(EXAMPLES)]
)


def instant(schedule: Schedule, t: float) -> Instant:
    return schedule.at(torch.tensor([t], dtype=F64)).rows()[0]


def test_every_diffusivity_is_covered():
    assert {type(d) for d in EXAMPLES} == set(subclasses(Diffusivity))


@every
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_per_sigma_is_the_variance_over_sigma(diffusivity: Diffusivity, schedule: Schedule):
    t = torch.tensor([0.15, 0.5, 0.93], dtype=F64)
    tensors = schedule.at(t)
    variance = torch.as_tensor(diffusivity.variance(tensors)).expand(3)
    per_sigma = torch.as_tensor(diffusivity.per_sigma(tensors)).expand(3)
    torch.testing.assert_close(per_sigma, variance / schedule(t)[1], rtol=1e-12, atol=0)
    assert bool((variance >= 0).all())
    for i, row in enumerate(tensors.rows()):  # host floats give the same numbers, as host floats
        assert isinstance(diffusivity.variance(row), float)
        assert diffusivity.variance(row) == pytest.approx(float(variance[i]), rel=1e-12)
        assert diffusivity.per_sigma(row) == pytest.approx(float(per_sigma[i]), rel=1e-12)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_variances_in_closed_form(t: float):
    assert Memoryless(0.3).variance(instant(CondOT(), t)) == pytest.approx(2 * 0.3 * (1 - t) / t)
    assert EndpointSafe(0.3).variance(instant(CondOT(), t)) == pytest.approx(2 * 0.3 * (1 - t))
    assert Memoryless().variance(instant(Cosine(), t)) == pytest.approx(math.pi / math.tan(math.pi * t / 2))
    assert Constant(0.3).variance(instant(Cosine(), t)) == 0.3
    assert Function(lambda s: s**3).variance(instant(Cosine(), t)) == pytest.approx(t**3)
    # On VP, memoryless noise is the noise of the process that is reversed: g^2 = beta.
    assert Memoryless().variance(instant(VP(0.5, 6.0), t)) == pytest.approx(0.5 + 5.5 * (1 - t))
    assert Memoryless(2.0).variance(instant(VP(0.5, 6.0), t)) == pytest.approx(2 * (0.5 + 5.5 * (1 - t)))


SPANS = {  # within a step of the chain, whose rate jumps at its knots
    CondOT(): [(0.12, 0.33), (0.4, 0.9), (0.55, 0.55)],
    CondOT(0.05): [(0.0, 1.0)],
    Cosine(): [(0.12, 0.33), (0.4, 0.99)],
    VP(): [(0.0, 0.5), (0.4, 0.9)],
    DDPM([0.1] * 10): [(0.41, 0.49), (0.91, 0.98)],
    EDM(0.1, 5.0, 3.0): [(0.0, 1.0)],
}


@every
@pytest.mark.parametrize("schedule", SPANS, ids=name)
def test_exposure_is_the_integral_of_half_the_variance_over_sigma_squared(diffusivity, schedule):
    starts, stops = torch.tensor(SPANS[schedule], dtype=F64).T
    exposure = diffusivity.exposure(schedule, starts, stops)

    def integrand(t: float) -> float:
        now = instant(schedule, t)
        return diffusivity.variance(now) / (2 * now.sigma**2)

    if schedule == CondOT(0.05) and isinstance(diffusivity, Memoryless) and diffusivity.gamma:
        assert exposure.tolist() == [math.inf]  # it forgets the start
        return
    expected = [quad(integrand, a, b, epsabs=0, epsrel=1e-9)[0] for a, b in SPANS[schedule]]
    assert exposure.tolist() == pytest.approx(expected, rel=1e-8, abs=1e-14)
    assert exposure.dtype == F64


def test_exposures_in_closed_form():
    start, stop = torch.tensor([0.2], dtype=F64), torch.tensor([0.7], dtype=F64)
    # gamma log(alpha_s sigma_t / (alpha_t sigma_s)); integral of v / (2 (1 - t)^2); integral of gamma / (1 - t).
    assert float(Memoryless(0.6).exposure(CondOT(), start, stop)) == pytest.approx(
        0.6 * math.log(0.7 * 0.8 / (0.2 * 0.3))
    )
    assert float(Constant(0.9).exposure(CondOT(), start, stop)) == pytest.approx(0.45 * (1 / 0.3 - 1 / 0.8))
    assert float(EndpointSafe(0.6).exposure(CondOT(), start, stop)) == pytest.approx(0.6 * math.log(0.8 / 0.3))
    assert float(Memoryless(0).exposure(CondOT(), start, stop)) == 0
    # From t = 0 the memoryless diffusion forgets everything, a bounded one does not.
    zero = torch.zeros(1, dtype=F64)
    assert float(Memoryless(0.6).exposure(CondOT(), zero, stop)) == math.inf
    assert float(EndpointSafe(0.6).exposure(CondOT(), zero, stop)) == pytest.approx(0.6 * math.log(1 / 0.3))


# End points


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), Polynomial(2.0)], ids=name)
def test_end_points(schedule: Schedule):
    noise, data = instant(schedule, 0.0), instant(schedule, 1.0)
    for t in (noise, data):
        assert math.isfinite(EndpointSafe().variance(t))
        assert math.isfinite(EndpointSafe().per_sigma(t))
    assert EndpointSafe().variance(data) == 0
    assert not math.isfinite(Memoryless().variance(noise))
    assert Memoryless().variance(data) == 0
    assert math.isfinite(Memoryless().per_sigma(data))
    assert Constant(0.5).per_sigma(data) == math.inf
    assert Function(lambda t: 0.5).per_sigma(data) == math.inf
    assert Constant(0.5).variance(noise) == Constant(0.5).variance(data) == 0.5
    # Tensors say the same.
    ends = schedule.at(torch.tensor([0.0, 1.0], dtype=F64))
    assert EndpointSafe().per_sigma(ends).tolist() == [EndpointSafe().per_sigma(t) for t in (noise, data)]
    assert float(Constant(0.5).per_sigma(ends)[1]) == math.inf
    assert not math.isfinite(float(Memoryless().variance(ends)[0]))


def test_the_memoryless_limit_at_the_data():
    # g^2 / sigma -> 2 gamma W / alpha: 2 for CondOT, pi for Cosine.
    assert Memoryless().per_sigma(instant(CondOT(), 1.0)) == 2
    assert Memoryless().per_sigma(instant(Cosine(), 1.0)) == pytest.approx(math.pi)


def test_diffusivities_compare_by_value():
    assert Memoryless(0.5) == Memoryless(0.5) != Memoryless(0.6)
    assert Constant(0.5) == Constant(0.5) != EndpointSafe(0.5)
    assert hash(EndpointSafe(0.5)) == hash(EndpointSafe(0.5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Memoryless(-1.0), ValueError, "gamma must be at least 0 and finite, got -1.0"),
        (lambda: EndpointSafe(math.inf), ValueError, "gamma must be at least 0 and finite, got inf"),
        (lambda: Constant(-0.1), ValueError, "variance must be at least 0 and finite, got -0.1"),
        (lambda: Constant("1"), TypeError, "variance must be a number, got str"),
        (lambda: Function(0.5), TypeError, "a diffusivity is a Diffusivity or a function of t, got float"),
        (lambda: Constant(std=0.1), TypeError, "std"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
