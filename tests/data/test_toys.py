"""Toys: counter-based draws, densities that integrate to one and match the samples, closed-form moments."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genmatch.data import Checkerboard, EightGaussians, Pinwheel, Spirals, Toy, TwoMoons
from genmatch.random import Draws

TOYS = [TwoMoons(), EightGaussians(), Checkerboard(), Spirals(), Pinwheel()]
DENSE = [
    EightGaussians(),
    EightGaussians(radius=5.0, std=0.1**0.25),
    Checkerboard(),
    Checkerboard(cells=6, half_width=3.3),
    Pinwheel(),
    Pinwheel(arms=3, radial_std=0.4, tangential_std=0.15, twist=-0.3, scale=1.5),
]


def test_every_toy_is_tested():
    assert {type(toy) for toy in TOYS} == set(Toy.__subclasses__())
    assert {type(toy) for toy in DENSE} == {kind for kind in Toy.__subclasses__() if hasattr(kind, "log_prob")}
    assert not hasattr(TwoMoons, "log_prob")
    assert not hasattr(Spirals, "log_prob")


@pytest.mark.parametrize("toy", TOYS, ids=repr)
@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 40), cut=st.integers(0, 40), seed=st.integers(0, 2**64 - 1))
def test_a_point_depends_on_its_index_alone(toy, n, cut, seed):
    cut = min(cut, n)
    whole = toy.sample(n, seed=seed)
    head, tail = toy.sample(cut, seed=seed), toy.sample(n - cut, seed=seed, first_index=cut)
    assert whole.shape == (n, 2)
    assert torch.equal(torch.cat([head, tail]), whole)


@pytest.mark.parametrize("toy", TOYS, ids=repr)
def test_draw_is_what_sample_returns_and_seeds_differ(toy):
    draws = Draws(3, 7, first_index=2)
    assert torch.equal(toy.draw((7, 2), draws), toy.sample(7, seed=3, first_index=2))
    assert not torch.equal(toy.sample(7, seed=3), toy.sample(7, seed=4))


@pytest.mark.parametrize("toy", TOYS, ids=repr)
def test_global_generator_is_touched_only_without_a_seed(toy):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    toy.sample(5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    toy.sample(5)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("toy", TOYS, ids=repr)
def test_dtypes_give_the_same_points_to_rounding(toy):
    single, double = toy.sample(2000, seed=0), toy.sample(2000, seed=0, dtype=torch.float64)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-4)
    assert (single.double() != double).any()  # float64 is computed, not converted
    assert torch.equal(toy.sample(50, seed=0, dtype=torch.bfloat16), toy.sample(50, seed=0).bfloat16())


@pytest.mark.parametrize("toy", DENSE, ids=repr)
def test_density_integrates_to_one(toy):
    assert _on_grid(toy).sum() == pytest.approx(1, abs=_tolerance(toy))


def test_negative_control_a_twist_that_does_not_keep_areas_does_not_integrate_to_one():
    class Careless:
        @staticmethod
        def log_prob(x):  # twisted by the first coordinate, without the Jacobian
            angle = -0.25 * (x[:, 0] / 2).exp()
            turned = torch.stack(
                [angle.cos() * x[:, 0] - angle.sin() * x[:, 1], angle.sin() * x[:, 0] + angle.cos() * x[:, 1]], 1
            )
            return Pinwheel(twist=0.0).log_prob(turned)

    assert abs(_on_grid(Careless()).sum() - 1) > 1e-2
    assert _on_grid(Pinwheel(twist=0.0)).sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("toy", DENSE, ids=repr)
def test_density_matches_a_histogram_of_samples(toy):
    assert _p_value(toy, toy.sample(200_000, seed=0, dtype=torch.float64)) > 1e-3


@pytest.mark.parametrize(
    ("toy", "other"),
    [
        (EightGaussians(), EightGaussians(std=0.52)),
        (EightGaussians(), EightGaussians(radius=4.05)),
        (Checkerboard(), Checkerboard(half_width=4.1)),
        (Pinwheel(), Pinwheel(twist=0.24)),
        (Pinwheel(), Pinwheel(radial_std=0.31)),
        (Pinwheel(), Pinwheel(tangential_std=0.104)),
    ],
    ids=repr,
)
def test_negative_control_the_histogram_tells_neighbours_apart(toy, other):
    assert _p_value(toy, other.sample(200_000, seed=0, dtype=torch.float64)) < 1e-6


def test_eight_gaussians_against_a_mixture_written_out():
    toy = EightGaussians(radius=3.0, std=0.7)
    x = toy.sample(300, seed=0, dtype=torch.float64) * 1.3
    h = math.sqrt(0.5)
    centres = [(1, 0), (h, h), (0, 1), (-h, h), (-1, 0), (-h, -h), (0, -1), (h, -h)]
    density = sum(scipy.stats.multivariate_normal.pdf(x.numpy(), (3 * a, 3 * b), 0.49) / 8 for a, b in centres)
    torch.testing.assert_close(toy.log_prob(x), torch.as_tensor(density).log(), rtol=1e-10, atol=1e-10)


def test_eight_gaussians_modes_have_equal_weight_and_their_spread():
    toy = EightGaussians(radius=40.0, std=0.5)  # far apart: the nearest centre is the mode
    x = toy.sample(80_000, seed=0, dtype=torch.float64)
    mode = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long() % 8
    assert scipy.stats.chisquare(torch.bincount(mode, minlength=8).numpy()).pvalue > 1e-3
    angle = mode * (math.pi / 4)
    rest = x - 40 * torch.stack([angle.cos(), angle.sin()], 1)
    for axis in (0, 1):
        assert scipy.stats.kstest(rest[:, axis].numpy(), "norm", args=(0, 0.5)).pvalue > 1e-3
    assert abs(torch.corrcoef(rest.T)[0, 1]) < 5 / math.sqrt(len(x))


def test_checkerboard_colours_and_support():
    toy = Checkerboard()
    inside = torch.tensor([[-3.0, -3.0], [-1.0, -1.0], [1.0, 1.0], [3.0, 3.0], [-3.0, 1.0], [1.0, -3.0]])
    outside = torch.tensor([[-3.0, -1.0], [3.0, 1.0], [4.5, 4.5], [-5.0, 3.0], [1.0, 99.0], [math.inf, 1.0]])
    assert toy.log_prob(inside).tolist() == pytest.approx([-math.log(32)] * 6)
    assert (toy.log_prob(outside) == -math.inf).all()
    assert toy.log_prob(torch.tensor([[math.nan, 1.0]])).isnan().all()


@pytest.mark.parametrize("toy", [Checkerboard(), Checkerboard(64, 3.3), Checkerboard(1024, 1e3)], ids=repr)
def test_every_checkerboard_sample_has_a_density(toy):
    assert toy.log_prob(toy.sample(200_000, seed=1)).isfinite().all()


@pytest.mark.parametrize("toy", [Checkerboard(), Checkerboard(64, 3.3), Checkerboard(512, 1e3)], ids=repr)
def test_checkerboard_keeps_inside_for_the_extreme_uniforms(toy, monkeypatch):
    rows = toy.cells**2 // 2
    squares = torch.arange(rows)[:, None]
    monkeypatch.setattr(Draws, "integers", lambda self, shape, high: squares % high)
    for extreme in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(Draws, "uniform", lambda self, shape, dtype, u=extreme: torch.full(shape, u, dtype=dtype))
        x = toy.draw((rows, 2), Draws(0, rows))
        assert len(x.unique(dim=0)) == rows  # every square once
        assert toy.log_prob(x).isfinite().all()


def test_pinwheel_keeps_the_radius_of_its_gaussian():
    # Rotations keep |f|: E |x|^2 = scale^2 (1 + radial_std^2 + tangential_std^2), whatever the twist.
    x = Pinwheel(twist=0.9, scale=3.0).sample(200_000, seed=0, dtype=torch.float64)
    squares = x.square().sum(1)
    expected = 9 * (1 + 0.09 + 0.01)
    assert abs(squares.mean() - expected) < 5 * squares.std() / math.sqrt(len(x))


def test_two_moons_moments():
    noise, scale = 0.2, 1.7
    x = TwoMoons(noise, scale).sample(400_000, seed=0, dtype=torch.float64)
    # Half circles: Var cos a = 1/2, Var sin a = 1/2 - 4/pi^2; their means differ by (1, 1/2 - 4/pi).
    apart = torch.tensor([1, 0.5 - 4 / math.pi], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([0.5, 0.5 - 4 / math.pi**2], dtype=torch.float64)) + noise**2 * torch.eye(2)
    covariance = scale**2 * (covariance + torch.outer(apart, apart) / 4)
    bound = 5 / math.sqrt(len(x))
    assert (x.mean(0).abs() < bound * covariance.diag().sqrt()).all()
    products = x[:, :, None] * x[:, None]
    assert ((products.mean(0) - covariance).abs() < bound * products.std(0)).all()


def test_two_moons_without_noise_lie_on_scikit_learns_half_circles():
    x = TwoMoons(noise=0.0, scale=2.0).sample(4000, seed=0, dtype=torch.float64) / 2 + torch.tensor([0.5, 0.25])
    upper = (x.norm(dim=1) - 1).abs() < 1e-12
    lower = ((x - torch.tensor([1, 0.5])).norm(dim=1) - 1).abs() < 1e-12
    assert (upper | lower).all()
    assert (x[upper & ~lower, 1] >= 0).all()
    assert (x[lower & ~upper, 1] <= 0.5).all()
    assert abs(upper.sum() - 2000) < 5 * math.sqrt(1000)
    angle = torch.acos(x[upper & ~lower, 0].clamp(-1, 1)) / math.pi
    assert scipy.stats.kstest(angle.numpy(), "uniform").pvalue > 1e-3


def test_spirals_lie_on_their_arms_evenly_over_the_disc():
    toy = Spirals(arms=3, turns=1.25, radius=2.0, noise=0.0)
    x = toy.sample(30_000, seed=0, dtype=torch.float64)
    r = x.norm(dim=1) / 2
    assert scipy.stats.kstest((r**2).numpy(), "uniform").pvalue > 1e-3
    # What is left of the angle after the winding is a multiple of 1/3 of a turn: the arm.
    arm = 3 * (torch.atan2(x[:, 1], x[:, 0]) / (2 * math.pi) - 1.25 * r)
    torch.testing.assert_close(arm, arm.round(), rtol=0, atol=1e-9)
    assert scipy.stats.chisquare(torch.bincount(arm.round().long() % 3).numpy()).pvalue > 1e-3


def test_spirals_noise_is_isotropic_of_its_size():
    clean = Spirals(noise=0.0).sample(50_000, seed=0, dtype=torch.float64)
    rest = Spirals(noise=0.3).sample(50_000, seed=0, dtype=torch.float64) - clean
    for axis in (0, 1):
        assert scipy.stats.kstest(rest[:, axis].numpy(), "norm", args=(0, 0.3)).pvalue > 1e-3


@pytest.mark.parametrize("toy", TOYS, ids=repr)
def test_nearly_all_points_within_the_documented_square(toy):
    x = toy.sample(20_000, seed=0)
    limit = 6.0 if isinstance(toy, EightGaussians) else 4.0
    assert ((x.abs() <= limit).all(1)).double().mean() > 0.999


@pytest.mark.parametrize("toy", [EightGaussians(), Checkerboard(), Pinwheel()], ids=repr)
def test_density_compiles_to_one_graph_and_gradients_are_the_score(toy):
    x = toy.sample(6, seed=0, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(toy.log_prob, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), toy.log_prob(x))
    if not isinstance(toy, Checkerboard):
        assert torch.autograd.gradcheck(toy.log_prob, x.requires_grad_())


def test_a_toy_without_draw_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Toy,), {})()


@pytest.mark.parametrize("toy", TOYS, ids=repr)
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1), (4, 1, 2)])
def test_wrong_shape_is_refused(toy, shape):
    with pytest.raises(ValueError, match=r"points of shape \(B, 2\), asked for \(4,"):
        toy.draw(shape, Draws(0, 4))


@pytest.mark.parametrize("toy", TOYS, ids=repr)
def test_wrong_draws_and_dtypes_are_refused(toy):
    with pytest.raises(ValueError, match="draws for 3 samples"):
        toy.draw((4, 2), Draws(0, 3))
    with pytest.raises(TypeError, match=r"float32 or float64, asked for torch.float16"):
        toy.draw((4, 2), Draws(0, 4), torch.float16)
    with pytest.raises(TypeError, match=r"floating dtype, asked for torch.int64"):
        toy.sample(4, dtype=torch.int64)
    with pytest.raises(TypeError, match="n must be an integer, got float"):
        toy.sample(4.0)
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        toy.sample(-1)


@pytest.mark.parametrize("toy", [EightGaussians(), Checkerboard(), Pinwheel()], ids=repr)
def test_density_refuses_what_is_no_point(toy):
    with pytest.raises(ValueError, match=r"shape \(B, 2\), got \(2,\)"):
        toy.log_prob(torch.zeros(2))
    with pytest.raises(TypeError, match=r"floating-point points, got torch.int64"):
        toy.log_prob(torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EightGaussians(radius=0), "radius must be positive, got 0"),
        (lambda: EightGaussians(std=-1.0), "std must be positive, got -1.0"),
        (lambda: EightGaussians(std=math.nan), "std must be positive, got nan"),
        (lambda: Checkerboard(cells=3), r"cells must be even and in \[2, 1024\], got 3"),
        (lambda: Checkerboard(half_width=math.inf), "half_width must be positive, got inf"),
        (lambda: Spirals(arms=0), "arms must be at least 1, got 0"),
        (lambda: Spirals(turns=0), "turns must be positive, got 0"),
        (lambda: Spirals(radius=-3), "radius must be positive, got -3"),
        (lambda: Spirals(noise=-0.1), "noise must be at least 0, got -0.1"),
        (lambda: Pinwheel(arms=-5), "arms must be at least 1, got -5"),
        (lambda: Pinwheel(radial_std=0), "radial_std must be positive, got 0"),
        (lambda: Pinwheel(tangential_std=0), "tangential_std must be positive, got 0"),
        (lambda: Pinwheel(twist=math.inf), "twist must be finite, got inf"),
        (lambda: Pinwheel(scale=0), "scale must be positive, got 0"),
        (lambda: TwoMoons(noise=-1), "noise must be at least 0, got -1"),
        (lambda: TwoMoons(scale=0), "scale must be positive, got 0"),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda: Checkerboard(cells=4.0), lambda: Spirals(arms=True), lambda: Pinwheel(arms="5")]
)
def test_counts_are_integers(make):
    with pytest.raises(TypeError, match="must be an integer, got"):
        make()


_CELLS, _FINE = 24, 32  # cells of the histogram along an edge, and points of quadrature along a cell


def _edge(toy) -> float:
    if isinstance(toy, Checkerboard):
        return toy.half_width * 4 / 3  # the edges of the squares are edges of grid cells, for 4 and for 6 squares
    return toy.radius + 8 * toy.std if isinstance(toy, EightGaussians) else 7.5


def _tolerance(toy) -> float:
    # The midpoint rule is spectrally accurate on smooth densities, and exact on squares of whole grid cells.
    return 1e-12 if isinstance(toy, Checkerboard) else 1e-9


def _on_grid(toy) -> torch.Tensor:
    """Density times area on a midpoint grid of (_CELLS _FINE)^2 points over the square of half width _edge."""
    n, edge = _CELLS * _FINE, _edge(toy)
    axis = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * edge / n) - edge
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return toy.log_prob(points).exp().reshape(n, n) * (2 * edge / n) ** 2


def _p_value(toy, x: torch.Tensor) -> float:
    """Chi-square of samples against the integrated density, cells of few points (and all beyond) in one."""
    edge = _edge(toy)
    cell = ((x + edge) * (_CELLS / (2 * edge))).floor().long()
    inside = ((cell >= 0) & (cell < _CELLS)).all(1)
    seen = torch.bincount(cell[inside, 0] * _CELLS + cell[inside, 1], minlength=_CELLS**2).double()
    expected = _on_grid(toy).reshape(_CELLS, _FINE, _CELLS, _FINE).sum((1, 3)).flatten() * len(x)
    frequent = expected >= 20
    seen = torch.cat([seen[frequent], (len(x) - seen[frequent].sum())[None]])
    expected = torch.cat([expected[frequent], (len(x) - expected[frequent].sum()).clamp_min(0)[None]])
    if expected[-1] < 1:  # the board covers everything: a point beyond it is proof enough
        if seen[-1] > 20:
            return 0.0
        seen, expected = seen[:-1], expected[:-1] * (seen[:-1].sum() / expected[:-1].sum())
    return float(scipy.stats.chisquare(seen.numpy(), expected.numpy(), sum_check=False).pvalue)
