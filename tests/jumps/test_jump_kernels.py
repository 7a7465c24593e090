"""The conditional jump of Gaussian paths: closed forms against the forward equation, and against quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import genmatch as gm
from genmatch.paths import ContinuousMixturePath, GaussianJumpKernel, MixtureJumpKernel
from genmatch.quadrature import integrate

SCHEDULES = [
    gm.schedules.CondOT(),
    gm.schedules.CondOT(sigma_min=0.01),
    gm.schedules.Cosine(),
    gm.schedules.VP(),
    gm.schedules.Polynomial(2.0),
    gm.schedules.VE(0.1, 5.0),
    gm.schedules.DDPM(),
]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
F64 = torch.float64


def grid(schedule: gm.Schedule, t: float, z: float, count: int = 4001, reach: float = 12.0) -> Tensor:
    alpha, sigma = (value.item() for value in schedule(torch.tensor(t, dtype=F64)))
    return torch.linspace(alpha * z - reach * sigma, alpha * z + reach * sigma, count, dtype=F64)


def law(schedule: gm.Schedule, y: Tensor, t: float, z: float) -> tuple[Tensor, Tensor]:
    """p_t(y|z) and its time derivative, from the density alone."""

    def density(s: Tensor) -> Tensor:
        alpha, sigma = schedule(s)
        return torch.exp(-(((y - alpha * z) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))

    time = torch.tensor(t, dtype=F64)
    return torch.func.jvp(density, (time,), (torch.ones_like(time),))


def imbalance(kernel: GaussianJumpKernel, landing: Tensor, y: Tensor, t: float, z: float) -> float:
    """Gain minus loss against d/dt p, pointwise and relative, for a law of landings given on ``y``."""
    density, change = law(kernel.path.schedule, y, t, z)
    gain = kernel.flux(torch.tensor([z], dtype=F64), t) * landing
    loss = kernel.rate(y, torch.full_like(y, z), t) * density
    return ((gain - loss - change).abs().max() / change.abs().max()).item()


@every
@pytest.mark.parametrize("t", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("z", [-0.7, 0.0, 1.3])
def test_gain_minus_loss_is_the_change_of_the_density(schedule: gm.Schedule, t: float, z: float):
    kernel = GaussianJumpKernel(gm.GaussianPath(schedule))
    y = grid(schedule, t, z)
    landing = kernel.density(y, torch.full_like(y, z), t)
    assert imbalance(kernel, landing, y, t, z) < 1e-12
    # The weight of a landing taken at the source is no weight of landings: a normal cut at the roots.
    density, change = law(schedule, y, t, z)
    cut = torch.where(change > 0, density, 0)
    planted = cut / (cut.sum() * (y[1] - y[0]))
    assert imbalance(kernel, planted, y, t, z) > 0.1


@every
def test_bin_masses_are_those_of_the_density(schedule: gm.Schedule):
    kernel, t, z = GaussianJumpKernel(gm.GaussianPath(schedule)), 0.4, 0.8
    alpha, sigma = (value.item() for value in schedule(torch.tensor(t, dtype=F64)))
    edges = alpha * z + sigma * torch.tensor([-0.5, -0.45, 0.2, 1.1, 1.12], dtype=F64)
    masses, outside = kernel.masses(torch.tensor([z], dtype=F64), kernel.instant(t, torch.zeros(1, dtype=F64)), edges)

    def inside(y: Tensor) -> Tensor:
        return kernel.density(y, torch.full_like(y, z), t)

    low, high = kernel.roots(torch.tensor([z], dtype=F64), t)
    ends = [alpha * z + sigma * root.clamp(-10, 10) for root in (low, high)]
    cut = torch.minimum(torch.maximum(edges, ends[0]), ends[1])  # some landing sets end between these edges
    bounds = torch.cat([ends[0], cut[1:-1], ends[1]])
    assert torch.allclose(masses[0], integrate(inside, bounds[:-1], bounds[1:]), atol=1e-12)
    beyond = integrate(inside, torch.cat([ends[0], cut[-1:]]), torch.cat([cut[:1], ends[1]])).sum()
    assert torch.allclose(outside, beyond, atol=1e-12)
    assert abs(masses.sum().item() - 1) < 1e-14


def test_the_mass_of_a_narrow_bin_keeps_its_digits():
    kernel = GaussianJumpKernel(gm.GaussianPath())
    z, t = torch.tensor([0.5], dtype=F64), 0.3
    for middle in (0.31, 1.05):  # in the bulk, and near the root
        edges = torch.tensor([-1.0, middle, middle + 1e-9, 2.0], dtype=F64)
        width = (edges[2] - edges[1]).item()
        mass = kernel.masses(z, kernel.instant(t, z), edges)[0][0, 1]
        expected = kernel.density(edges[1:2] + width / 2, z, t)[0] * width
        assert torch.allclose(mass, expected, rtol=1e-6, atol=0)
        eta = (edges - t * z) / (1 - t)  # the plain difference of the antiderivative has lost them
        value = (eta - z) * torch.exp(-(eta**2) / 2)
        total = kernel.flux(z, t) * (1 - t) * math.sqrt(2 * math.pi)
        assert ((value[2] - value[1]) / total / expected - 1).abs() > 1e-9


@every
def test_quantiles_invert_the_distribution_function(schedule: gm.Schedule):
    kernel = GaussianJumpKernel(gm.GaussianPath(schedule))
    u = torch.linspace(0.001, 0.999, 41, dtype=F64)
    for z in (-1.2, 0.0, 0.6):
        zs = torch.full_like(u, z)
        y = kernel.quantile(u, zs, 0.6)
        assert bool((y.diff() > 0).all())
        assert torch.allclose(kernel.cdf(y, zs, 0.6), u, atol=1e-13)


def test_the_published_line_under_condot():
    # k_t(x) = x^2 - (t+1) x z - (1-t)^2 + t z^2, lambda = [k]_+ / (1-t)^3 (arXiv 2410.20587, eq. 13).
    kernel = GaussianJumpKernel(gm.GaussianPath())
    x, z, t = torch.linspace(-3, 3, 61, dtype=F64), torch.full((61,), 0.7, dtype=F64), 0.35
    k = x**2 - (t + 1) * x * z - (1 - t) ** 2 + t * z**2
    assert torch.allclose(kernel.rate(x, z, t), k.clamp(min=0) / (1 - t) ** 3)
    golden = (1 + math.sqrt(5)) / 2
    low, high = kernel.roots(torch.ones(1, dtype=F64), t)
    assert high.item() == pytest.approx(golden, abs=1e-14)
    assert low.item() == pytest.approx(-1 / golden, abs=1e-14)
    # Z(0) = 2 phi(1), and Z(z)/(1 - t) jumps per unit of time.
    assert kernel.flux(torch.zeros(1, dtype=F64), t).item() * (1 - t) == pytest.approx(2 * 0.24197072451914337)


@every
def test_the_expected_rate_is_the_flux(schedule: gm.Schedule):
    kernel, z, t = GaussianJumpKernel(gm.GaussianPath(schedule)), 0.9, 0.45
    y = grid(schedule, t, z, 40001)
    density, change = law(schedule, y, t, z)
    expected = (kernel.rate(y, torch.full_like(y, z), t) * density).sum() * (y[1] - y[0])
    flux = kernel.flux(torch.tensor([z], dtype=F64), t)
    assert torch.allclose(flux, expected, rtol=1e-6)
    assert torch.allclose(flux, change.abs().sum() * (y[1] - y[0]) / 2, rtol=1e-6)  # no jump process does with less


@pytest.mark.parametrize("schedule", SCHEDULES[:-1], ids=repr)
def test_the_hazard_is_averaged_over_a_step(schedule: gm.Schedule):
    kernel = GaussianJumpKernel(gm.GaussianPath(schedule))
    t, s = torch.tensor([0.0, 0.3, 0.9], dtype=F64), torch.tensor([0.1, 0.9, 0.99], dtype=F64)
    average = integrate(lambda u: kernel.at(u).hazard, t, s) / (s - t)
    assert torch.allclose(kernel.at(t, s).hazard, average, rtol=1e-9)
    if schedule == gm.schedules.CondOT():
        assert torch.allclose(average, ((1 - t) / (1 - s)).log() / (s - t))
    last = kernel.at(torch.tensor([0.9], dtype=F64), torch.ones(1, dtype=F64)).hazard
    assert math.isinf(last.item()) == (schedule(torch.ones(1, dtype=F64))[1].item() == 0)


def test_reach_is_where_landings_are():
    golden = (1 + math.sqrt(5)) / 2
    low, high = GaussianJumpKernel(gm.GaussianPath()).reach(-1.0, 1.0)
    assert (low, high) == (pytest.approx(-golden, abs=1e-4), pytest.approx(golden, abs=1e-4))
    # Where sigma stands still, at t = 0 of the cosine, landings have the law xi exp(-xi^2/2): 1e-9 lies beyond.
    _, high = GaussianJumpKernel(gm.GaussianPath(gm.schedules.Cosine())).reach(-1.0, 1.0)
    assert high == pytest.approx(math.sqrt(2 * math.log(1e9)), abs=1e-3)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_and_right_at_both_ends(schedule: gm.Schedule, dtype: torch.dtype):
    kernel = GaussianJumpKernel(gm.GaussianPath(schedule))
    x1 = torch.tensor([[-1.0], [0.0], [0.8], [1.0]], dtype=dtype)
    x0 = torch.tensor([[1.7], [-2.0], [0.1], [-0.4]], dtype=dtype)
    edges = torch.linspace(-40, 40, 1601)
    for t in (0.0, 1e-7, 1 - 6e-8, 1.0):
        instant = kernel.at(torch.full((4,), t, dtype=dtype)).broadcast(x1)
        intensity = kernel.intensity(x1, x0, x1, instant)
        masses, _ = kernel.masses(x1, instant, edges)
        assert bool(intensity.isfinite().all() & (intensity >= 0).all())
        assert intensity.max() < 10
        assert torch.allclose(masses.sum(-1), torch.ones(4, 1, dtype=F64))
        if schedule(torch.ones(1, dtype=F64))[1].item() == 0 and t > 0.5:  # all land on the data
            middle = (masses * (edges[1:] + edges[:-1]).double() / 2).sum(-1)
            assert torch.allclose(middle, x1.double(), atol=0.03)


def test_a_mixture_path_jumps_to_the_data():
    kernel = MixtureJumpKernel(ContinuousMixturePath(whole=False))
    x1, edges = torch.tensor([[0.1, -0.9, 1.0, 2.0]]), torch.linspace(-1, 1, 5)
    masses, outside = kernel.masses(x1, None, edges)
    assert masses.argmax(-1).tolist() == [[2, 0, 3, 3]]
    assert outside.tolist() == [[0.0, 0.0, 0.0, 1.0]]
    x = torch.tensor([[0.1, 0.0, 1.0, 0.5]])
    assert kernel.intensity(x, x, x1, None).tolist() == [[0.0, 1.0, 0.0, 1.0]]
    assert kernel.reach(-2.0, 3.0) == (-2.0, 3.0)


def test_paths_without_a_known_jump_are_refused():
    class Rising(gm.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return t, (1 - t) * (1 + 2 * t)

    with pytest.raises(ValueError, match="rises somewhere"):
        GaussianJumpKernel(gm.GaussianPath(Rising()))
    with pytest.raises(ValueError, match="noise and data dependent"):
        GaussianJumpKernel(gm.GaussianPath(coupling=gm.couplings.OT()))
    with pytest.raises(ValueError, match="adds noise"):
        GaussianJumpKernel(gm.GaussianPath(noise=0.1))
    with pytest.raises(TypeError, match="needs one"):
        GaussianJumpKernel(gm.MixturePath(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole=False"):
        MixtureJumpKernel(ContinuousMixturePath())
    with pytest.raises(TypeError, match="needs one"):
        MixtureJumpKernel(gm.GaussianPath())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="jumps of single coordinates are known on"):
        gm.predict.Rates(torch.nn.Identity(), gm.MixturePath(3), [-1.0, 1.0])
