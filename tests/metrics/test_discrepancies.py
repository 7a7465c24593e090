"""Energy distance, MMD and KID: closed forms, brute force, and what the pairs of a point with itself do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special
from torch import Tensor

import genmatch as gm
from genmatch.metrics import distances

ENERGY, MMD, KID = gm.metrics.energy_distance, gm.metrics.mmd, gm.metrics.kid


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles(mean: float, deviation: float, count: int) -> Tensor:
    """A sample without chance: the midpoint quantiles of a Gaussian."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + deviation * torch.special.ndtri(levels)


# Closed forms


def mean_absolute(mean: float, variance: float) -> float:
    """E|N(m, v)|: the folded normal."""
    return math.sqrt(2 * variance / math.pi) * math.exp(-(mean**2) / (2 * variance)) + mean * math.erf(
        mean / math.sqrt(2 * variance)
    )


def gaussian_energy(m1: float, v1: float, m2: float, v2: float) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, where a difference of Gaussians is one, of summed variances."""
    return 2 * mean_absolute(m1 - m2, v1 + v2) - mean_absolute(0, 2 * v1) - mean_absolute(0, 2 * v2)


def gaussian_kernel_mean(difference: Tensor, variance: float, bandwidth: float) -> float:
    """E exp(-|Z|^2 / 2 l^2) for Z ~ N(difference, variance I): the integral of two Gaussian densities' product."""
    total, width = bandwidth**2 + variance, len(difference)
    return float((bandwidth**2 / total) ** (width / 2) * torch.exp(-difference.square().sum() / (2 * total)))


def test_energy_distance_of_gaussians():
    expected = gaussian_energy(0, 1, 0.7, 2.25)
    # In one dimension it is also twice the squared L2 distance of the distribution functions.
    gap = integrate.quad(lambda x: (special.ndtr(x) - special.ndtr((x - 0.7) / 1.5)) ** 2, -12, 14, epsabs=1e-12)[0]
    assert expected == pytest.approx(2 * gap, rel=1e-9)
    x, y = quantiles(0, 1, 2000), quantiles(0.7, 1.5, 1500)
    assert ENERGY(x, y, unbiased=False) == pytest.approx(expected, rel=1e-3)
    # Without the within-sample terms it would be another number altogether.
    assert abs(2 * mean_absolute(0.7, 3.25) - expected) > 0.5


def test_energy_distance_is_unbiased_without_the_pairs_of_a_point_with_itself():
    expected, n, m = gaussian_energy(0, 1, 0.7, 2.25), 5, 8
    x, y = normal(3000, n), 0.7 + 1.5 * normal(3000, m, seed=1)
    for unbiased, bias in ((True, 0.0), (False, mean_absolute(0, 2) / n + mean_absolute(0, 4.5) / m)):
        values = torch.tensor([ENERGY(a, b, unbiased=unbiased) for a, b in zip(x, y, strict=True)])
        error = float(values.std()) / math.sqrt(len(values))
        assert float(values.mean()) == pytest.approx(expected + bias, abs=4 * error)
        assert 8 * error < (mean_absolute(0, 2) / n + mean_absolute(0, 4.5) / m)  # the test can tell the two apart


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
def test_mmd_of_gaussians(bandwidth: float):
    def expected(d: int, shift: float) -> float:
        zero, difference = torch.zeros(d), torch.full((d,), shift)
        within = gaussian_kernel_mean(zero, 2.0, bandwidth) + gaussian_kernel_mean(zero, 4.5, bandwidth)
        return within - 2 * gaussian_kernel_mean(difference, 3.25, bandwidth)

    x, y = quantiles(0, 1, 2000), quantiles(0.7, 1.5, 1500)
    result = MMD(x, y, bandwidth=bandwidth, unbiased=False)
    assert result.value == pytest.approx(expected(1, 0.7), rel=3e-3)
    assert result.bandwidth == bandwidth
    # In two dimensions the product of two quantile grids.
    x, y = torch.cartesian_prod(*[quantiles(0, 1, 40)] * 2), torch.cartesian_prod(*[quantiles(0.7, 1.5, 45)] * 2)
    assert MMD(x, y, bandwidth=bandwidth, unbiased=False).value == pytest.approx(expected(2, 0.7), rel=0.06)


def test_kernel_mean_by_quadrature():
    density = lambda z: math.exp(-0.5 * (z - 0.7) ** 2 / 3.25) / math.sqrt(2 * math.pi * 3.25)  # noqa: E731
    value = integrate.quad(lambda z: density(z) * math.exp(-0.5 * z**2 / 0.09), -20, 20, points=[0])[0]
    assert gaussian_kernel_mean(torch.tensor([0.7]), 3.25, 0.3) == pytest.approx(value, rel=1e-6)


def test_mmd_is_a_u_statistic():
    x, y = normal(6, 2), normal(9, 2, seed=1) + 1
    kernel = lambda a, b: math.exp(-float((a - b).square().sum()) / (2 * 0.8**2))  # noqa: E731
    within = lambda z: sum(kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j)  # noqa: E731
    cross = sum(kernel(a, b) for a in x for b in y) / 54
    assert MMD(x, y, bandwidth=0.8).value == pytest.approx(within(x) / 30 + within(y) / 72 - 2 * cross, rel=1e-12)
    biased = (within(x) + 6) / 36 + (within(y) + 9) / 81 - 2 * cross
    assert MMD(x, y, bandwidth=0.8, unbiased=False).value == pytest.approx(biased, rel=1e-12)


def test_median_heuristic():
    # Points 0, 1, 3, 7: distances 1, 2, 3, 4, 6, 7, of which torch's median is the lower middle one.
    assert MMD(torch.tensor([0.0, 7.0]), torch.tensor([1.0, 3.0])).bandwidth == 3.0
    x, y = normal(1500, 3), normal(1500, 3, seed=1)  # above 2,000 points it looks at 2,000 of them
    exact = float(torch.pdist(torch.cat([x, y])).median())
    assert MMD(x, y, seed=0).bandwidth == pytest.approx(exact, rel=0.02)
    assert MMD(x, y, seed=0) == MMD(x, y, seed=0)
    assert MMD(x, y, seed=0).bandwidth != MMD(x, y, seed=1).bandwidth


def test_kid_of_gaussians():
    # In one dimension (x y + 1)^3 = 1 + 3 x y + 3 x^2 y^2 + x^3 y^3: three differences of raw moments.
    m, s = 0.4, 1.3
    moments = [(0.0, m), (1.0, m**2 + s**2), (0.0, m**3 + 3 * m * s**2)]
    expected = sum(w * (a - b) ** 2 for w, (a, b) in zip((3, 3, 1), moments, strict=True))
    x, y = normal(40_000, 1), m + s * normal(40_000, 1, seed=1)
    result = KID(x, y, blocks=40)
    assert result.value == pytest.approx(expected, abs=4 * result.standard_error)
    assert result.standard_error < 0.04 * expected
    assert result.blocks == 40


def brute_kid(x: Tensor, y: Tensor, *, own: bool) -> float:
    kernel = lambda a, b: (float(a @ b) / len(a) + 1) ** 3  # noqa: E731

    def within(z: Tensor) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if own or i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_against_brute_force():
    x, y = normal(7, 5), normal(9, 5, seed=1) + 0.5
    result = KID(x, y, blocks=1)
    assert result.value == pytest.approx(brute_kid(x, y, own=False), rel=1e-12)
    assert result.value != pytest.approx(brute_kid(x, y, own=True), rel=1e-2)
    assert math.isnan(result.standard_error)


def test_kid_is_unbiased_and_its_error_honest():
    estimates = [KID(normal(40, 4, seed=2 * i), normal(40, 4, seed=2 * i + 1), blocks=4) for i in range(400)]
    values = torch.tensor([e.value for e in estimates])
    error = float(values.std()) / 20
    assert abs(float(values.mean())) < 4 * error
    # The spread from run to run is what each run says of itself.
    assert math.sqrt(sum(e.standard_error**2 for e in estimates) / 400) == pytest.approx(float(values.std()), rel=0.15)
    # The V-statistic of the same parts is off by far more.
    biased = [brute_kid(normal(10, 4, seed=2 * i), normal(10, 4, seed=2 * i + 1), own=True) for i in range(20)]
    assert sum(biased) / 20 > 20 * error


def test_kid_uses_every_sample_whatever_the_split():
    x, y = normal(23, 2), normal(31, 2, seed=1)
    value = KID(x, y, blocks=5).value
    for i in range(23):
        assert KID(x + torch.eye(23, dtype=torch.float64)[:, i : i + 1], y, blocks=5).value != value
    for i in range(31):
        assert KID(x, y + torch.eye(31, dtype=torch.float64)[:, i : i + 1], blocks=5).value != value
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    assert KID(x[order], y, blocks=1).value == pytest.approx(KID(x, y, blocks=1).value, rel=1e-9)
    assert KID(x, y, blocks=5) == KID(x, y, blocks=5, seed=0) != KID(x, y, blocks=5, seed=1)


def test_sorted_samples_are_shuffled_first():
    # Both sorted by the same key: cut as they come, parts would agree or differ together.
    x, y = normal(400, 1).sort(0).values, normal(400, 1, seed=1).sort(0, descending=True).values
    result = KID(x, y, blocks=10)
    assert abs(result.value) < 4 * result.standard_error
    parts = [KID(a, b, blocks=1).value for a, b in zip(x.split(40), y.split(40), strict=True)]
    assert sum(parts) / 10 > 20 * result.standard_error


# Invariances


@given(
    seed=st.integers(0, 1000),
    angle=st.floats(0, 6),
    shift=st.floats(-5, 5),
    scale=st.floats(0.1, 10),
    n=st.integers(2, 9),
)
def test_invariances(seed: int, angle: float, shift: float, scale: float, n: int):
    x, y = normal(n, 2, seed=seed), normal(7, 2, seed=seed + 5000) * 2 + 1
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    moved = [scale * z @ turn + shift for z in (x, y)]
    for unbiased in (True, False):
        energy, gaussian = ENERGY(x, y, unbiased=unbiased), MMD(x, y, bandwidth=1.5, unbiased=unbiased).value
        assert ENERGY(y, x, unbiased=unbiased) == pytest.approx(energy, rel=1e-9, abs=1e-12)
        assert ENERGY(*moved, unbiased=unbiased) == pytest.approx(scale * energy, rel=1e-7, abs=1e-9)
        scaled = MMD(*moved, bandwidth=1.5 * scale, unbiased=unbiased).value
        assert scaled == pytest.approx(gaussian, rel=1e-7, abs=1e-9)
    assert ENERGY(x, y, unbiased=False) >= 0
    assert MMD(x, y, bandwidth=1.5, unbiased=False).value >= -1e-12
    assert ENERGY(x, x.clone(), unbiased=False) == 0
    assert MMD(x, x.clone(), bandwidth=1.5, unbiased=False).value == 0
    turned = KID(x @ turn, y @ turn, blocks=1).value  # the cubic kernel sees rotations no more, but an origin it has
    assert turned == pytest.approx(KID(x, y, blocks=1).value, rel=1e-7, abs=1e-9)


def test_shapes_are_flattened_and_dtypes_raised():
    x, y = normal(8, 3, 2, 2), normal(9, 3, 2, 2, seed=1)
    assert ENERGY(x, y) == ENERGY(x.flatten(1), y.flatten(1))
    assert ENERGY(x[:, 0, 0, 0], y[:, 0, 0, 0]) == ENERGY(x[:, :1, 0, 0], y[:, :1, 0, 0])
    rounded = [z.float().double() for z in (x, y)]
    assert ENERGY(x.float(), y.float()) == ENERGY(*rounded)
    assert isinstance(ENERGY(x, y), float)


@pytest.mark.parametrize("width", [3, 40])
def test_blocks_change_nothing(width: int, monkeypatch: pytest.MonkeyPatch):
    x, y = normal(50, width), normal(37, width, seed=1)
    whole = ENERGY(x, y), MMD(x, y, bandwidth=2.0).value, KID(x, y, blocks=1).value, MMD(x, y).bandwidth
    monkeypatch.setattr(distances, "BLOCK", 100)
    monkeypatch.setattr("genmatch.metrics.discrepancies.BLOCK", 100)
    parts = ENERGY(x, y), MMD(x, y, bandwidth=2.0).value, KID(x, y, blocks=1).value, MMD(x, y).bandwidth
    assert parts == pytest.approx(whole, rel=1e-9)
    assert len(list(distances.distance_blocks(x, y))) == 25


@pytest.mark.parametrize("width", [2, 32, 33, 200])
def test_distances(width: int):
    x, y = 1000 + normal(40, width), 1000 + normal(30, width, seed=1)
    y[:5] = x[:5]
    exact = (x[:, None] - y).square().sum(-1).sqrt()
    found = torch.cat([block for _, block in distances.distance_blocks(x, y)])
    assert torch.allclose(found, exact, rtol=1e-12)
    assert bool((found[:5, :5].diagonal() == 0).all())  # equal points are at distance 0, not at the root of a rounding
    nearest = distances.nearest_distances(torch.cat([x, x[:3]]), 1)
    assert bool((nearest[:3] == 0).all())
    assert float(nearest[3:40].min()) > 0


# Bad input


@pytest.mark.parametrize("metric", [ENERGY, MMD])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        ([1.0], torch.zeros(3, 2), TypeError, "x must be a tensor, got list"),
        (torch.zeros(3, 2), torch.zeros(3, 2).long(), TypeError, "y must be floating point, got torch.int64"),
        (torch.zeros(1, 2), torch.zeros(3, 2), ValueError, "x has 1 samples, needs at least 2"),
        (torch.zeros(3, 2), torch.zeros(3, 4), ValueError, "2 and 4 coordinates"),
        (torch.zeros(3, 2), torch.full((3, 2), math.nan), ValueError, "y holds 6 non-finite values .* among 6"),
        (torch.tensor(1.0), torch.zeros(3, 2), ValueError, "got a single number"),
        (torch.zeros(3, 0), torch.zeros(3, 0), ValueError, r"without elements: its shape is \(3, 0\)"),
    ],
)
def test_bad_samples(metric, x: object, y: object, error: type, message: str):
    with pytest.raises(error, match=message):
        metric(x, y)


def test_bad_settings():
    x = normal(10, 2)
    with pytest.raises(ValueError, match="bandwidth must be above 0 and finite, got 0"):
        MMD(x, x, bandwidth=0)
    with pytest.raises(TypeError, match="bandwidth must be a number, got str"):
        MMD(x, x, bandwidth="median")
    with pytest.raises(ValueError, match=r"the median distance is 0.*give bandwidth="):
        MMD(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="6 blocks need at least 12 samples on either side, got 10"):
        KID(x, x, blocks=6)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        KID(x, x, blocks=0)
    with pytest.raises(TypeError, match="blocks must be an integer, got float"):
        KID(x, x, blocks=2.0)
    with pytest.raises(ValueError, match=r"x must be features of shape \(n, d\), got \(10, 1, 2\).*features=network"):
        KID(x[:, None], x)
